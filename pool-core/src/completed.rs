//! [`as_completed`]: the results of many calls, in the order in which they finish.

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use crate::backend::{Waiter, Waiting, Want};
use crate::error::Error;
use crate::handle::AsyncResult;
use crate::sync::{Parker, lock};

/// Yields the results of many calls as they finish, each with its position among `results`, like Python's
/// `concurrent.futures.as_completed`. The calls may belong to several pools.
///
/// It blocks the calling thread. In an async program, use the handles as futures: collect them in a
/// `FuturesUnordered`, or write `stream::iter(inputs).map(|x| pool.apply_async(f, (x,))).buffer_unordered(100)`.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, as_completed, pool_task};
///
/// #[pool_task]
/// fn square(x: u64) -> u64 { x * x }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let calls = (0..10).map(|x| pool.apply_async(square, (x,)));
/// for (index, result) in as_completed(calls) {
///     assert_eq!(result?, (index * index) as u64);
/// }
/// # Ok(())
/// # }
/// ```
pub fn as_completed<R>(results: impl IntoIterator<Item = AsyncResult<R>>) -> AsCompleted<R> {
    let finished = Arc::new(Finished::default());
    let results: Vec<_> = results.into_iter().map(Some).collect();
    let mut engines = results.iter().flatten().map(AsyncResult::engine);
    let first = engines.next();
    let is_one_pool = first.is_some_and(|first| engines.all(|other| Arc::ptr_eq(first, other)));
    for (index, result) in results.iter().flatten().enumerate() {
        let one = Arc::new(One {
            index,
            finished: Arc::clone(&finished),
        });
        if !result.wake(&Waker::from(Arc::clone(&one))) {
            finished.add(index);
        }
    }
    AsCompleted {
        is_one_pool,
        left: results.len(),
        first_open: 0,
        results,
        finished,
    }
}

/// An iterator over results as they finish: see [`as_completed`].
///
/// Dropping it drops the handles that it has not yielded. Their work goes on, unless they
/// [cancel it when dropped](AsyncResult::cancel_on_drop).
#[must_use = "results are thrown away with it"]
pub struct AsCompleted<R> {
    /// The handles that were not yielded yet.
    results: Vec<Option<AsyncResult<R>>>,
    left: usize,
    /// All handles belong to one pool.
    is_one_pool: bool,
    /// All handles before this position were yielded.
    first_open: usize,
    finished: Arc<Finished>,
}

/// Is woken when one of the results is ready.
struct One {
    index: usize,
    finished: Arc<Finished>,
}

impl Wake for One {
    fn wake(self: Arc<Self>) {
        self.finished.add(self.index);
    }
}

/// The positions of the results that are ready.
#[derive(Debug, Default)]
struct Finished(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    indices: VecDeque<usize>,
    follower: Option<Arc<Parker>>,
}

impl Finished {
    fn add(&self, index: usize) {
        let mut state = lock(&self.0);
        state.indices.push_back(index);
        if let Some(follower) = state.follower.clone() {
            drop(state);
            follower.wake();
        }
    }

    fn pop(&self) -> Option<usize> {
        lock(&self.0).indices.pop_front()
    }
}

impl Waiting for Finished {
    fn is_over(&self) -> bool {
        !lock(&self.0).indices.is_empty()
    }

    fn tell(&self, parker: &Arc<Parker>, wake: bool) {
        lock(&self.0).follower = wake.then(|| Arc::clone(parker));
    }
}

impl<R> AsCompleted<R> {
    /// Waits for the next result, at most for `timeout`.
    ///
    /// Returns `Some(Err(Error::Timeout))` if no result is ready in time; nothing is lost, and you can ask again. Returns `None` after
    /// the last result.
    #[expect(clippy::type_complexity, reason = "it says what it is")]
    pub fn next_timeout(
        &mut self,
        timeout: Duration,
    ) -> Option<Result<(usize, Result<R, Error>), Error>> {
        match self.next_until(Instant::now().checked_add(timeout)) {
            None if self.left > 0 => Some(Err(Error::Timeout)),
            next => next.map(Ok),
        }
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Option<(usize, Result<R, Error>)> {
        while self.left > 0 {
            if let Some(index) = self.finished.pop() {
                let result = self.results[index].take()?;
                self.left -= 1;
                result.settle(deadline);
                // Its value may have been taken by `get_timeout` before.
                return Some((index, result.take()));
            }
            if !self.wait(deadline) {
                return None;
            }
        }
        None
    }

    /// Waits until one of them is ready. If they all belong to one pool, this thread collects replies for it meanwhile.
    fn wait(&mut self, deadline: Option<Instant>) -> bool {
        while let Some(None) = self.results.get(self.first_open) {
            self.first_open += 1;
        }
        let open = self.results.get(self.first_open).and_then(Option::as_ref);
        let waiter = Waiter(&*self.finished);
        match open.and_then(|result| Some((result, result.job()?))) {
            Some((result, job)) if self.is_one_pool => {
                let workers = &result.engine().workers;
                workers.wait(job, Want::All, waiter, deadline)
            }
            _ => waiter.sleep(deadline),
        }
    }
}

impl<R> Iterator for AsCompleted<R> {
    type Item = (usize, Result<R, Error>);

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_until(None);
        if next.is_none() && self.left > 0 {
            // A forked copy of the process has no threads that work for the pool.
            let open = self.results.iter_mut().enumerate();
            let mut open = open.filter_map(|(index, result)| Some((index, result.take()?)));
            self.left -= 1;
            return open
                .next()
                .map(|(index, _)| (index, Err(Error::Terminated)));
        }
        next
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<R> ExactSizeIterator for AsCompleted<R> {}

impl<R> FusedIterator for AsCompleted<R> {}

impl<R> fmt::Debug for AsCompleted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
