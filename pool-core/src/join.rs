//! [`Join`]: waiting for the end of a pool in async programs.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use crate::error::Error;
use crate::pool::Engine;
use crate::sync::lock;

/// A future that is ready when a pool has ended: see [`Pool::join_async`](crate::Pool::join_async).
#[must_use = "a future does nothing until it is awaited"]
pub struct Join {
    engine: Arc<Engine>,
    waiting: Option<Arc<Mutex<State>>>,
}

/// The result of the waiting thread, and the waker to call.
#[derive(Default)]
struct State {
    waker: Option<Waker>,
    result: Option<Result<(), Error>>,
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Join").finish_non_exhaustive()
    }
}

impl Join {
    pub(crate) fn new(engine: &Arc<Engine>) -> Join {
        Join {
            engine: Arc::clone(engine),
            waiting: None,
        }
    }

    /// Starts the thread that waits.
    fn begin(&self) -> Result<Arc<Mutex<State>>, Error> {
        let state = Arc::new(Mutex::new(State::default()));
        let (engine, told) = (Arc::clone(&self.engine), Arc::clone(&state));
        let wait = move || {
            let result = engine.join(None);
            let mut state = lock(&told);
            state.result = Some(result);
            let waker = mem::take(&mut state.waker);
            drop(state);
            waker.into_iter().for_each(pool_worker::wake);
        };
        let spawned = thread::Builder::new()
            .name("pool-join".to_owned())
            .spawn(wait);
        match spawned {
            Ok(_) => Ok(state),
            Err(error) => {
                let why = pool_worker::no_thread("thread that waits for the end of a pool", error);
                Err(Error::start(why.to_string()))
            }
        }
    }
}

impl Future for Join {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let waiting = match &self.waiting {
            Some(waiting) => Arc::clone(waiting),
            None => match self.begin() {
                Ok(waiting) => waiting,
                Err(error) => return Poll::Ready(Err(error)),
            },
        };
        self.waiting = Some(Arc::clone(&waiting));
        let mut state = lock(&waiting);
        match state.result.clone() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
