//! [`AsyncResult`]: the promise of a result, and the place where its outcomes gather.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::backend::{Backend, Failure, JobId, Outcome, Sink};
use crate::callback::Callbacks;
use crate::error::Error;

/// Gathers the outcomes of one job, in the order of its inputs.
pub(crate) struct Gather {
    state: Mutex<GatherState>,
    changed: Condvar,
    /// Set once, when the last outcome is there.
    done: OnceLock<Done>,
    callbacks: Arc<Callbacks>,
}

/// All outcomes; or why the call was refused.
pub(crate) type Done = Result<Vec<Outcome>, Error>;

type Then = Box<dyn FnOnce(&Done) + Send>;

#[derive(Default)]
struct GatherState {
    outcomes: Vec<Option<Outcome>>,
    /// How many of them are missing.
    missing: usize,
    /// More inputs may come.
    more: bool,
    /// Whoever feeds the job waits until no more than this many are missing.
    room: Option<usize>,
    waker: Option<Waker>,
    then: Vec<Then>,
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Gather")
            .field("inputs", &state.outcomes.len())
            .field("missing", &state.missing)
            .finish_non_exhaustive()
    }
}

impl Gather {
    pub(crate) fn new(callbacks: &Arc<Callbacks>) -> Arc<Gather> {
        Arc::new(Gather {
            state: Mutex::new(GatherState {
                more: true,
                ..GatherState::default()
            }),
            changed: Condvar::new(),
            done: OnceLock::new(),
            callbacks: Arc::clone(callbacks),
        })
    }

    /// Expects outcomes for `count` more inputs.
    pub(crate) fn expect(&self, count: usize) {
        let mut state = self.lock();
        let len = state.outcomes.len() + count;
        state.outcomes.resize_with(len, || None);
        state.missing += count;
    }

    /// Takes back the last `count` of them.
    pub(crate) fn forget(&self, count: usize) {
        let mut state = self.lock();
        let len = state.outcomes.len() - count;
        state.outcomes.truncate(len);
        state.missing -= count;
    }

    /// How many outcomes are missing.
    pub(crate) fn missing(&self) -> usize {
        self.lock().missing
    }

    /// No more inputs come.
    pub(crate) fn complete(self: &Arc<Self>) {
        let mut state = self.lock();
        state.more = false;
        self.finish_if_done(state);
    }

    /// The call was refused, as a whole.
    pub(crate) fn refuse(self: &Arc<Self>, error: Error) {
        self.finish(self.lock(), Err(error));
    }

    /// Waits until at most `most` outcomes are missing.
    pub(crate) fn wait_for_room(&self, most: usize) {
        let mut state = self.lock();
        while state.missing > most {
            state.room = Some(most);
            state = self.wait_changed(state, None);
        }
        state.room = None;
    }

    pub(crate) fn wait_done(&self, deadline: Option<Instant>) -> Option<&Done> {
        let mut state = self.lock();
        loop {
            if let Some(done) = self.done.get() {
                return Some(done);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return None;
            }
            state = self.wait_changed(state, deadline);
        }
    }

    fn wait_changed<'a>(
        &self,
        state: MutexGuard<'a, GatherState>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, GatherState> {
        match deadline {
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                self.changed
                    .wait_timeout(state, deadline.saturating_duration_since(Instant::now()))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        }
    }

    /// Runs `then` on the callback thread once all is there.
    fn then(self: &Arc<Self>, then: Then) {
        let mut state = self.lock();
        if self.done.get().is_none() {
            state.then.push(then);
            return;
        }
        self.push_callback(then);
        drop(state);
        self.callbacks.start();
    }

    /// Called under the lock: whoever sees the result finds its callbacks in the queue.
    fn push_callback(self: &Arc<Self>, then: Then) {
        let this = Arc::clone(self);
        self.callbacks.push(Box::new(move || {
            if let Some(done) = this.done.get() {
                then(done);
            }
        }));
    }

    fn lock(&self) -> MutexGuard<'_, GatherState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish_if_done(self: &Arc<Self>, mut state: MutexGuard<'_, GatherState>) {
        if state.missing == 0 && !state.more {
            let outcomes = mem::take(&mut state.outcomes);
            self.finish(state, Ok(outcomes.into_iter().flatten().collect()));
        } else if state.room.is_some_and(|room| state.missing <= room) {
            // Not each outcome is worth waking somebody.
            drop(state);
            self.changed.notify_all();
        }
    }

    fn finish(self: &Arc<Self>, mut state: MutexGuard<'_, GatherState>, done: Done) {
        state.missing = 0;
        state.more = false;
        let waker = state.waker.take();
        let thens = mem::take(&mut state.then);
        let called = !thens.is_empty();
        let _ = self.done.set(done);
        thens.into_iter().for_each(|then| self.push_callback(then));
        drop(state);
        self.changed.notify_all();
        if called {
            self.callbacks.start();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes outcomes as they come.
    fn take(self: &Arc<Self>, outcomes: Vec<(usize, Outcome)>) {
        let mut state = self.lock();
        for (index, outcome) in outcomes {
            if let Some(place @ None) = state.outcomes.get_mut(index) {
                *place = Some(outcome);
                state.missing -= 1;
            }
        }
        self.finish_if_done(state);
    }
}

/// The sink is the shared pointer, since callbacks keep the outcomes alive.
#[derive(Debug)]
pub(crate) struct GatherSink(pub(crate) Arc<Gather>);

impl Sink for GatherSink {
    fn deliver(&self, outcomes: Vec<(usize, Outcome)>) {
        self.0.take(outcomes);
    }
}

/// Makes the value that the caller wants of all outcomes.
pub(crate) type Decode<R> = fn(&[Outcome]) -> Result<R, Error>;

/// The result of a call that goes on: [`Pool::apply_async`](crate::Pool::apply_async),
/// [`map_async`](crate::Pool::map_async), [`starmap_async`](crate::Pool::starmap_async).
///
/// Wait for it with [`get`](AsyncResult::get), or `.await` it: it is a [`Future`], woken when the
/// result is there, under any executor. The value is moved out once.
///
/// Dropping it does not stop the work, not even in a `select` or under a timeout; the result is thrown
/// away. [`cancel`](AsyncResult::cancel) stops it: `select` over `&mut result`, then cancel.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn nap(ms: u64) -> u64 {
///     std::thread::sleep(Duration::from_millis(ms));
///     ms
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(1)?;
/// let result = pool.apply_async(nap, (300,));
/// assert!(matches!(result.get_timeout(Duration::from_millis(1)), Err(Error::Timeout)));
/// assert_eq!(result.get()?, 300);
/// # Ok(())
/// # }
/// ```
pub struct AsyncResult<R> {
    gather: Arc<Gather>,
    decode: Decode<R>,
    origin: Option<(Weak<dyn Backend>, JobId)>,
    usage: Mutex<Usage>,
}

/// What was done with the result so far.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    taken: bool,
    successful: Option<bool>,
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult")
            .field("ready", &self.ready())
            .finish_non_exhaustive()
    }
}

impl<R> AsyncResult<R> {
    pub(crate) fn new(
        gather: Arc<Gather>,
        decode: Decode<R>,
        origin: Option<(Weak<dyn Backend>, JobId)>,
    ) -> Self {
        AsyncResult {
            gather,
            decode,
            origin,
            usage: Mutex::default(),
        }
    }

    /// Waits for the result and takes it.
    ///
    /// # Errors
    ///
    /// That of the call; of a map, that of the failed input with the lowest index.
    /// [`Error::Taken`] if [`get_timeout`](AsyncResult::get_timeout) gave it away before.
    pub fn get(self) -> Result<R, Error> {
        self.wait();
        self.take()
    }

    /// Waits for the result, but no longer than `timeout`, and takes it.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if it is not there in time: ask again. Otherwise as
    /// [`get`](AsyncResult::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<R, Error> {
        if self.wait_timeout(timeout) {
            self.take()
        } else {
            Err(Error::Timeout)
        }
    }

    /// Waits until the result is there.
    pub fn wait(&self) {
        self.gather.wait_done(None);
    }

    /// Waits until the result is there, but no longer than `timeout`; says whether it is.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        // A time past the end of time is for ever.
        let deadline = Instant::now().checked_add(timeout);
        self.gather.wait_done(deadline).is_some()
    }

    /// Whether the result is there.
    pub fn ready(&self) -> bool {
        self.gather.done.get().is_some()
    }

    /// Whether the call succeeded; `None` while the result is not there.
    pub fn successful(&self) -> Option<bool> {
        let done = self.gather.done.get()?;
        let mut usage = self.lock();
        Some(
            *usage
                .successful
                .get_or_insert_with(|| self.decode_done(done).is_ok()),
        )
    }

    /// Stops the work. What has not begun is taken back and never runs; what runs is stopped by
    /// killing its worker, and another worker takes that one's place. The result is then
    /// [`Error::Cancelled`].
    ///
    /// False: it was too late, the result is there.
    pub fn cancel(&self) -> bool {
        if self.ready() {
            return false;
        }
        if let Some((backend, job)) = &self.origin
            && let Some(backend) = backend.upgrade()
        {
            backend.cancel(*job, true);
        }
        // The last outcomes may have been on their way while we cancelled.
        self.wait();
        let cancelled = |outcome: &Outcome| {
            outcome
                .as_ref()
                .is_err_and(|failure| **failure == Failure::Cancelled)
        };
        matches!(self.gather.done.get(), Some(Ok(outcomes)) if outcomes.iter().any(cancelled))
    }

    /// Calls `callback` with the result once it is there, if the call succeeds. Once, on a thread of
    /// the pool's own; it gets a value of its own, so it may run before or after
    /// [`get`](AsyncResult::get) returns.
    ///
    /// A callback that panics, or takes its time, harms nothing but the callbacks behind it.
    pub fn callback(self, callback: impl FnOnce(&R) + Send + 'static) -> Self
    where
        R: 'static,
    {
        let decode = self.decode;
        self.gather.then(Box::new(move |done| {
            if let Ok(outcomes) = done
                && let Ok(value) = decode(outcomes)
            {
                callback(&value);
            }
        }));
        self
    }

    /// Calls `callback` with the error once it is known, if the call fails; otherwise as
    /// [`callback`](AsyncResult::callback).
    pub fn error_callback(self, callback: impl FnOnce(&Error) + Send + 'static) -> Self
    where
        R: 'static,
    {
        let decode = self.decode;
        self.gather.then(Box::new(move |done| match done {
            Err(error) => callback(error),
            Ok(outcomes) => {
                if let Err(error) = decode(outcomes) {
                    callback(&error);
                }
            }
        }));
        self
    }

    /// Call when the result is there.
    fn take(&self) -> Result<R, Error> {
        if mem::replace(&mut self.lock().taken, true) {
            return Err(Error::Taken);
        }
        let Some(done) = self.gather.done.get() else {
            return Err(Error::Timeout);
        };
        self.decode_done(done)
    }

    fn decode_done(&self, done: &Done) -> Result<R, Error> {
        match done {
            Ok(outcomes) => (self.decode)(outcomes),
            Err(error) => Err(error.clone()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Future for AsyncResult<R> {
    type Output = Result<R, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        {
            let mut state = self.gather.lock();
            if self.gather.done.get().is_none() {
                // A future that has moved to another task is woken there, and only there.
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(self.take())
    }
}
