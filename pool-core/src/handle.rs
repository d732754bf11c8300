//! [`AsyncResult`]: the promise of a result, and the place where its outcomes gather.

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
use crate::pool::Engine;
use crate::sync::{self, Parker};

/// Gathers the outcomes of one job. There may be very many of these, so what is rare is in a box.
pub(crate) struct Gather {
    /// All outcomes are there, or the call was refused.
    done: AtomicBool,
    state: Mutex<GatherState>,
}

type Then = Box<dyn FnOnce(&Gather) + Send>;

#[derive(Default)]
struct GatherState {
    /// In the order of the inputs, once all are there.
    outcomes: Few<Outcomes>,
    /// How many inputs have none.
    missing: usize,
    refused: Option<Box<Error>>,
    listeners: Option<Box<Listeners>>,
}

/// Who is told when all is there.
#[derive(Default)]
struct Listeners {
    waker: Option<Waker>,
    /// Runs on the callback thread of this.
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
    /// For a call of so many inputs.
    pub(crate) fn new(inputs: usize) -> Arc<Gather> {
        Arc::new(Gather {
            done: AtomicBool::new(false),
            state: Mutex::new(GatherState {
                missing: inputs,
                ..GatherState::default()
            }),
        })
    }

    /// Expects outcomes for so many inputs, and no more.
    pub(crate) fn expect(&self, count: usize) {
        self.lock().missing = count;
    }

    /// The call was accepted, and had no inputs.
    pub(crate) fn finish_empty(self: &Arc<Self>) {
        self.finish(self.lock());
    }

    /// The call was refused, as a whole.
    pub(crate) fn refuse(self: &Arc<Self>, error: Error) {
        let mut state = self.lock();
        state.refused = Some(Box::new(error));
        self.finish(state);
    }

    /// Runs `then` on the callback thread once all is there. True: it is not there yet.
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

    /// Called under the lock: whoever sees the result finds its callbacks in the queue.
    fn push_callback(self: &Arc<Self>, engine: &Engine, then: Then) {
        let this = Arc::clone(self);
        engine.callbacks.push(Box::new(move || then(&this)));
    }

    fn lock(&self) -> MutexGuard<'_, GatherState> {
        sync::lock(&self.state)
    }

    /// All outcomes are there, or the call was refused.
    fn finish(self: &Arc<Self>, mut state: MutexGuard<'_, GatherState>) {
        state.outcomes.sort_by_key(|outcomes| outcomes.first);
        let listeners = state.listeners.take();
        self.done.store(true, Ordering::Release);
        let Some(listeners) = listeners else {
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

    /// The value of all outcomes, which are kept.
    fn decode<R>(&self, decode: Decode<R>) -> Result<R, Error> {
        let state = self.lock();
        match &state.refused {
            Some(error) => Err((**error).clone()),
            None if self.is_over() => decode(Held::Borrowed(&state.outcomes)),
            // In a forked copy of the process nobody works for the pool.
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

/// All outcomes, to be used up or only looked at.
pub(crate) enum Held<'a> {
    Own(Few<Outcomes>),
    Borrowed(&'a Few<Outcomes>),
}

impl Held<'_> {
    /// Shows each outcome, with its position.
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

/// Makes the value that the caller wants of all outcomes.
pub(crate) type Decode<R> = fn(Held<'_>) -> Result<R, Error>;

/// The result of a call that goes on: [`Pool::apply_async`](crate::Pool::apply_async),
/// [`map_async`](crate::Pool::map_async), [`starmap_async`](crate::Pool::starmap_async).
///
/// Wait for it with [`get`](AsyncResult::get), or `.await` it: it is a [`Future`], woken when the
/// result is there, under any executor. The value is moved out once.
///
/// Dropping it does not stop the work, not even in a `select` or under a timeout; the result is thrown
/// away. With [`cancel_on_drop`](AsyncResult::cancel_on_drop) it does, and [`cancel`](AsyncResult::cancel) stops it at once.
/// [`as_completed`](crate::as_completed) takes many of them as they finish.
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
    /// None, if the call was refused.
    job: Option<JobId>,
    usage: Mutex<Usage>,
    /// Stops the work when it is dropped.
    on_drop: Option<Box<CancelOnDrop>>,
}

/// Nobody wants the result of this any more, when it is dropped.
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
        engine: &Arc<Engine>,
        job: Option<JobId>,
    ) -> Self {
        AsyncResult {
            gather,
            decode,
            engine: Arc::clone(engine),
            job,
            usage: Mutex::default(),
            on_drop: None,
        }
    }

    /// Waits for the result and takes it.
    ///
    /// # Errors
    ///
    /// That of the call; of a map, that of the failed input with the lowest index.
    /// [`Error::Taken`] if [`get_timeout`](AsyncResult::get_timeout) gave it away before.
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
        self.wait_until(None);
    }

    /// Waits until the result is there, but no longer than `timeout`; says whether it is.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        // A time past the end of time is for ever.
        let deadline = Instant::now().checked_add(timeout);
        self.wait_until(deadline)
    }

    /// Whether the result is there.
    pub fn ready(&self) -> bool {
        self.gather.is_over()
    }

    /// Whether the call succeeded; `None` while the result is not there.
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

    /// Stops the work. What has not begun is taken back and never runs; what runs is stopped by
    /// killing its worker, and another worker takes that one's place. The result is then
    /// [`Error::Cancelled`].
    ///
    /// False: it was too late, the result is there.
    pub fn cancel(&self) -> bool {
        if self.ready() {
            return false;
        }
        if let Some(job) = self.job {
            self.engine.workers.cancel(job, true);
        }
        // The last outcomes may have been on their way while we cancelled.
        self.wait();
        Held::Borrowed(&self.gather.lock().outcomes).is_cancelled()
    }

    /// From now on dropping this stops the work, as [`cancel`](AsyncResult::cancel) does, but without waiting: for a request whose client
    /// goes away, a branch of a `select` that loses, a future under a timeout.
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
    /// // The only worker is free again: another one.
    /// assert_eq!(pool.apply(square, (3,))?, 9);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "dropped, it stops the work"]
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

    /// Calls `callback` with the result once it is there, if the call succeeds. Once, on a thread of
    /// the pool's own; it gets a value of its own, so it may run before or after
    /// [`get`](AsyncResult::get) returns.
    ///
    /// A callback that panics, or takes its time, harms nothing but the callbacks behind it.
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

    /// Calls `callback` with the error once it is known, if the call fails; otherwise as
    /// [`callback`](AsyncResult::callback).
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

    /// None, if the call was refused.
    pub(crate) fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Has this waker woken when the result is there, instead of the one before. False: it is there.
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

    /// The result matters, though no thread may wait for it.
    fn notify(&self) {
        if let Some(job) = self.job {
            self.engine.workers.notify(job);
        }
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        if self.gather.is_over() {
            return true;
        }
        let Some(job) = self.job else {
            return true;
        };
        let workers = &self.engine.workers;
        workers.wait(job, Want::All, Waiter(&*self.gather), deadline)
    }

    /// Call when the result is there.
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

/// The result of a call that is over.
pub(crate) fn use_up<R>(gather: Arc<Gather>, decode: Decode<R>) -> Result<R, Error> {
    // A callback may need it too.
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
        Poll::Ready(self.take())
    }
}
