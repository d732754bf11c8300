//! [`AsyncResult`]: the handle of a result; and where the outcomes of its call are gathered.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::backend::{Encoded, Failure, JobId, Outcomes, Sink, Waiter, Waiting, Want, What};
use crate::error::Error;
use crate::few::Few;
use crate::log::Tail;
use crate::pool::Engine;
use crate::sync::{self, Parker};

/// Gathers the outcomes of one job. There may be very many of these, so rarely used fields are in a box.
pub(crate) struct Gather {
    /// All outcomes have arrived, or the call was refused.
    done: AtomicBool,
    state: Mutex<GatherState>,
}

type Then = Box<dyn FnOnce(&Gather) + Send>;

#[derive(Default)]
struct GatherState {
    /// In the order of the inputs, once all have arrived.
    outcomes: Few<Outcomes>,
    /// How many inputs have no outcome yet.
    missing: usize,
    refused: Option<Box<Error>>,
    listeners: Option<Box<Listeners>>,
}

/// Those to notify when all outcomes have arrived.
#[derive(Default)]
struct Listeners {
    waker: Option<Waker>,
    /// These run on the callback thread of their engine.
    then: Vec<(Arc<Engine>, Then)>,
    followers: Vec<Arc<Parker>>,
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather")
            .field("missing", &self.lock().missing)
            .finish_non_exhaustive()
    }
}

impl Gather {
    /// For a call with this many inputs.
    pub(crate) fn new(inputs: usize) -> Arc<Gather> {
        Arc::new(Gather {
            done: AtomicBool::new(false),
            state: Mutex::new(GatherState {
                missing: inputs,
                ..GatherState::default()
            }),
        })
    }

    /// Expects outcomes for exactly this many inputs.
    pub(crate) fn expect(&self, count: usize) {
        self.lock().missing = count;
    }

    /// The call was accepted, and had no inputs.
    pub(crate) fn finish_empty(self: &Arc<Self>) {
        self.finish(self.lock());
    }

    /// The call was refused as a whole.
    pub(crate) fn refuse(self: &Arc<Self>, error: Error) {
        let mut state = self.lock();
        state.refused = Some(Box::new(error));
        self.finish(state);
    }

    /// Runs `then` on the callback thread once all outcomes have arrived. Returns whether that is still to come.
    fn then(self: &Arc<Self>, engine: &Arc<Engine>, then: Then) -> bool {
        let mut state = self.lock();
        if !self.is_over() {
            state.listeners().then.push((Arc::clone(engine), then));
            return true;
        }
        self.push_callback(engine, then);
        drop(state);
        engine.callbacks.start();
        false
    }

    /// Called under the lock, for which a callback that has begun meanwhile waits.
    fn push_callback(self: &Arc<Self>, engine: &Engine, then: Then) {
        let this = Arc::clone(self);
        engine.callbacks.push(Box::new(move || then(&this)));
    }

    fn lock(&self) -> MutexGuard<'_, GatherState> {
        sync::lock(&self.state)
    }

    /// All outcomes have arrived, or the call was refused.
    fn finish(self: &Arc<Self>, mut state: MutexGuard<'_, GatherState>) {
        state.outcomes.sort_by_key(|outcomes| outcomes.first);
        let Some(listeners) = state.listeners.take() else {
            self.done.store(true, Ordering::Release);
            return;
        };
        let Listeners {
            waker,
            then,
            followers,
        } = *listeners;
        let called = then.first().map(|(engine, _)| Arc::clone(engine));
        for (engine, then) in then {
            self.push_callback(&engine, then);
        }
        // Whoever sees this without the lock finds the callbacks in the queue.
        self.done.store(true, Ordering::Release);
        drop(state);
        for follower in followers {
            follower.wake();
        }
        if let Some(engine) = called {
            engine.callbacks.start();
        }
        if let Some(waker) = waker {
            pool_worker::wake(waker);
        }
    }

    /// Decodes the outcomes, and keeps them.
    fn decode<R>(&self, decode: Decode<R>) -> Result<R, Error> {
        let state = self.lock();
        match &state.refused {
            Some(error) => Err((**error).clone()),
            None if self.is_over() => decode(Held::Borrowed(&state.outcomes)),
            // In a forked copy of the process, no thread works for the pool.
            None => Err(Error::Terminated),
        }
    }
}

impl GatherState {
    fn listeners(&mut self) -> &mut Listeners {
        self.listeners.get_or_insert_default()
    }
}

impl Waiting for Gather {
    fn is_over(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    fn tell(&self, parker: &Arc<Parker>, wake: bool) {
        let mut state = self.lock();
        if wake {
            state.listeners().followers.push(Arc::clone(parker));
        } else if let Some(listeners) = &mut state.listeners {
            let followers = &mut listeners.followers;
            followers.retain(|other| !Arc::ptr_eq(other, parker));
        }
    }
}

impl Sink for Gather {
    fn deliver(self: Arc<Self>, outcomes: Outcomes) {
        let mut state = self.lock();
        state.missing = state.missing.saturating_sub(outcomes.count());
        state.outcomes.push(outcomes);
        if state.missing == 0 {
            self.finish(state);
        }
    }
}

/// All outcomes, owned or borrowed.
pub(crate) enum Held<'a> {
    Own(Few<Outcomes>),
    Borrowed(&'a Few<Outcomes>),
}

impl Held<'_> {
    /// Passes on each outcome, with its position.
    pub(crate) fn for_each(self, mut each: impl FnMut(usize, Encoded<'_>)) {
        match self {
            Held::Own(all) => all.into_iter().for_each(|some| some.consume(&mut each)),
            Held::Borrowed(all) => all.iter().for_each(|some| some.for_each(&mut each)),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.all().iter().map(Outcomes::count).sum()
    }

    /// Whether any of them was cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.all().iter().any(|outcomes| {
            matches!(&outcomes.what, What::Failed { failure, .. } if **failure == Failure::Cancelled)
        })
    }

    fn all(&self) -> &Few<Outcomes> {
        match self {
            Held::Own(all) => all,
            Held::Borrowed(all) => all,
        }
    }
}

/// Turns all outcomes into the value that the caller gets.
pub(crate) type Decode<R> = fn(Held<'_>) -> Result<R, Error>;

/// The handle of a call that runs in the background: [`Pool::apply_async`](crate::Pool::apply_async),
/// [`map_async`](crate::Pool::map_async), [`starmap_async`](crate::Pool::starmap_async).
///
/// Wait for the result with [`get`](AsyncResult::get), or `.await` it: it is a [`Future`] that works with any executor. The
/// value can be taken once.
///
/// Dropping the handle does not stop the work, not even in a `select` or under a timeout; the result is thrown away.
/// [`cancel`](AsyncResult::cancel) stops the work, and after [`cancel_on_drop`](AsyncResult::cancel_on_drop) dropping the
/// handle does so as well. [`as_completed`](crate::as_completed) waits for many handles and yields results as they finish.
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
    engine: Arc<Engine>,
    /// `None` if the call was refused.
    job: Option<JobId>,
    /// What its inputs have logged.
    tail: Tail,
    usage: Mutex<Usage>,
    /// Stops the work when it is dropped.
    on_drop: Option<Box<CancelOnDrop>>,
}

/// Stops the work when it is dropped.
struct CancelOnDrop {
    gather: Arc<Gather>,
    engine: Arc<Engine>,
    job: JobId,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if !self.gather.is_over() {
            self.engine.workers.cancel(self.job, true);
        }
    }
}

/// What the caller has done with the result so far.
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
        engine: &Arc<Engine>,
        job: Option<JobId>,
        tail: Tail,
    ) -> Self {
        AsyncResult {
            gather,
            decode,
            engine: Arc::clone(engine),
            job,
            tail,
            usage: Mutex::default(),
            on_drop: None,
        }
    }

    /// Waits for the result and takes it.
    ///
    /// # Errors
    ///
    /// That of the call; for a map, that of the failed input with the lowest index. [`Error::Taken`] if
    /// [`get_timeout`](AsyncResult::get_timeout) has already returned the result.
    pub fn get(mut self) -> Result<R, Error> {
        self.wait();
        let usage = self.usage.get_mut();
        if usage.unwrap_or_else(PoisonError::into_inner).taken {
            return Err(Error::Taken);
        }
        let AsyncResult {
            gather,
            decode,
            engine,
            on_drop,
            ..
        } = self;
        drop(on_drop);
        engine.decode(|| use_up(gather, decode))
    }

    /// Waits for the result, but no longer than `timeout`, and takes it.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if the result is not ready in time: you can ask again. Otherwise as [`get`](AsyncResult::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<R, Error> {
        if self.wait_timeout(timeout) {
            self.take()
        } else {
            Err(Error::Timeout)
        }
    }

    /// Waits until the result is ready.
    pub fn wait(&self) {
        self.wait_until(None);
    }

    /// Waits until the result is ready, but no longer than `timeout`; returns whether it is.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        // A deadline too far away to represent means no deadline.
        let deadline = Instant::now().checked_add(timeout);
        self.wait_until(deadline)
    }

    /// Whether the result is ready.
    pub fn ready(&self) -> bool {
        self.gather.is_over()
    }

    /// Whether the call succeeded; `None` if the result is not ready.
    pub fn successful(&self) -> Option<bool> {
        if !self.ready() {
            return None;
        }
        let mut usage = self.lock();
        let decode = || {
            self.engine
                .decode(|| self.gather.decode(self.decode))
                .is_ok()
        };
        Some(*usage.successful.get_or_insert_with(decode))
    }

    /// Stops the work. Inputs that have not begun are taken back and never run; those that run are stopped by killing their
    /// workers, which are replaced. The result is then [`Error::Cancelled`].
    ///
    /// Returns false if it was too late: the result is ready.
    pub fn cancel(&self) -> bool {
        if self.ready() {
            return false;
        }
        if let Some(job) = self.job {
            self.engine.workers.cancel(job, true);
        }
        // The last outcomes may have been on their way during the cancellation.
        self.wait();
        Held::Borrowed(&self.gather.lock().outcomes).is_cancelled()
    }

    /// From now on, dropping this handle stops the work, as [`cancel`](AsyncResult::cancel) does, but without waiting: for a
    /// request whose client goes away, a branch of a `select` that loses, a future under a timeout.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn endless() { loop { std::thread::park(); } }
    ///
    /// #[pool_task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(1)?;
    /// let request = pool.apply_async(endless, ()).cancel_on_drop();
    /// drop(request);
    /// // The only worker is free again, as another process.
    /// assert_eq!(pool.apply(square, (3,))?, 9);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "dropping it stops the work"]
    pub fn cancel_on_drop(mut self) -> Self {
        if self.on_drop.is_none() {
            self.on_drop = self.job.map(|job| {
                Box::new(CancelOnDrop {
                    gather: Arc::clone(&self.gather),
                    engine: Arc::clone(&self.engine),
                    job,
                })
            });
        }
        self
    }

    /// Calls `callback` with the result once it is ready, if the call succeeds. It is called once, on a thread of the pool,
    /// and gets its own copy of the value, so it may run before or after [`get`](AsyncResult::get) returns.
    ///
    /// A callback that panics or takes long affects only the callbacks behind it.
    pub fn callback(self, callback: impl FnOnce(&R) + Send + 'static) -> Self
    where
        R: 'static,
    {
        let (decode, engine) = (self.decode, Arc::clone(&self.engine));
        self.then(Box::new(move |gather| {
            if let Ok(value) = engine.decode(|| gather.decode(decode)) {
                callback(&value);
            }
        }))
    }

    /// Calls `callback` with the error if the call fails; otherwise like [`callback`](AsyncResult::callback).
    pub fn error_callback(self, callback: impl FnOnce(&Error) + Send + 'static) -> Self
    where
        R: 'static,
    {
        let (decode, engine) = (self.decode, Arc::clone(&self.engine));
        self.then(Box::new(move |gather| {
            if let Err(error) = engine.decode(|| gather.decode(decode)) {
                callback(&error);
            }
        }))
    }

    fn then(self, then: Then) -> Self {
        if self.gather.then(&self.engine, then) {
            self.notify();
        }
        self
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// `None` if the call was refused.
    pub(crate) fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Sets the waker to wake when the result is ready, replacing the previous one. Returns false if the result is already
    /// ready.
    pub(crate) fn wake(&self, waker: &Waker) -> bool {
        let mut state = self.gather.lock();
        if self.gather.is_over() {
            return false;
        }
        // A future that has moved to another task is woken there, and only there.
        let before = state.listeners().waker.replace(waker.clone());
        drop(state);
        if before.is_none() {
            self.notify();
        }
        true
    }

    /// The result must be delivered even if no thread waits for it.
    fn notify(&self) {
        if let Some(job) = self.job {
            self.engine.workers.notify(job);
        }
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        if !self.gather.is_over()
            && let Some(job) = self.job
        {
            let waiter = Waiter(&*self.gather);
            let workers = &self.engine.workers;
            if !workers.wait(job, Want::All, waiter, deadline) {
                return false;
            }
        }
        self.settle(deadline);
        true
    }

    /// The result is ready: lets what its inputs have printed and logged come before it.
    pub(crate) fn settle(&self, deadline: Option<Instant>) {
        self.engine.workers.settle();
        self.tail.settle(deadline);
    }

    /// Call this when the result is ready.
    pub(crate) fn take(&self) -> Result<R, Error> {
        if mem::replace(&mut self.lock().taken, true) {
            return Err(Error::Taken);
        }
        self.engine.decode(|| self.gather.decode(self.decode))
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        sync::lock(&self.usage)
    }
}

/// The result of a call that has finished.
pub(crate) fn use_up<R>(gather: Arc<Gather>, decode: Decode<R>) -> Result<R, Error> {
    // A callback may need the outcomes too.
    let gather = match Arc::try_unwrap(gather) {
        Ok(gather) if gather.is_over() => gather,
        Ok(gather) => return gather.decode(decode),
        Err(gather) => return gather.decode(decode),
    };
    let state = gather.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    match state.refused {
        Some(error) => Err(*error),
        None => decode(Held::Own(state.outcomes)),
    }
}

impl<R> Future for AsyncResult<R> {
    type Output = Result<R, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.wake(context.waker()) {
            return Poll::Pending;
        }
        self.engine.workers.settle();
        Poll::Ready(self.take())
    }
}
