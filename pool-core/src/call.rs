//! [`Call`]: a task with options for one call; and the code that all calls share.
//!
//! If inputs have another type than the task takes, the compiler shows the line of the bound on `I`, with the comment behind it.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use pool_worker::param::Binds;
use pool_worker::{Attachment, CodecError, Frames, Task};

use crate::backend::{
    Encoded, Failure, Job, JobId, Options, Outcomes, Portion, Sink, Waiter, Want,
};
use crate::by_ref::ByRef;
use crate::error::{Codec, Error, Place, Side, Verb};
use crate::feed::{self, Feed};
use crate::few::Few;
use crate::handle::{self, AsyncResult, Decode, Gather, Held};
use crate::inbox::{InOrder, Inbox};
use crate::iter::{Imap, ImapUnordered};
use crate::log::Tail;
use crate::open::{self, Encode, Left, Open, UnaryTask};
use crate::pool::Pool;
use crate::progress::{self, Handler, Progress, Reporting};
use crate::retries::Retries;

/// A task with options for one call: `pool.task(square).chunksize(2).map(0..5)`.
///
/// Made by [`Pool::task`]. It has the methods of [`Pool`] that run work, and also [`map_results`](Call::map_results).
/// [`by_ref`](Call::by_ref) and [`partial`](Call::partial) save clones and copies of arguments: see [the
/// guide](crate::guide).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn careful(x: i32) -> i32 {
///     assert!(x != 2, "not with me");
///     x
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let results = pool
///     .task(careful)
///     .time_limit(Duration::from_secs(5))
///     .map_results([1, 2, 3]);
/// assert!(results[0].is_ok() && results[1].is_err() && results[2].is_ok());
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until one of its methods runs it"]
pub struct Call<'p, T, O = T> {
    pool: &'p Pool,
    options: Options,
    /// The bound arguments, with which all inputs begin.
    bound: Result<Option<Arc<Attachment>>, Error>,
    progress: Option<Handler>,
    open: PhantomData<fn() -> (T, O)>,
}

impl<T, O> Clone for Call<'_, T, O> {
    fn clone(&self) -> Self {
        Call {
            pool: self.pool,
            options: self.options,
            bound: self.bound.clone(),
            progress: self.progress.clone(),
            open: PhantomData,
        }
    }
}

impl<T: Task, O> fmt::Debug for Call<'_, T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("task", &T::NAME)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<'p, T: Task> Call<'p, T> {
    pub(crate) fn new(pool: &'p Pool) -> Self {
        // In an inline pool, the task's own limit does not apply. A limit that the call is given is refused.
        let time_limit = T::TIME_LIMIT.filter(|_| !pool.engine().inline);
        Call {
            pool,
            options: Options {
                chunksize: None,
                time_limit: time_limit.or(pool.defaults().time_limit),
                retries: T::RETRIES.map_or(pool.defaults().retries, Retries::new),
                priority: 0,
            },
            bound: Ok(None),
            progress: None,
            open: PhantomData,
        }
    }
}

impl<'p, T: Task, O: Open<T>> Call<'p, T, O> {
    /// Binds the first arguments, like Python's `functools.partial`. The result is a call that takes the remaining arguments,
    /// so `map` can run a task of three arguments of which two are bound.
    ///
    /// The bound arguments are encoded once and sent to each worker once. They stay there as long as this call, a copy of it,
    /// or work that it started exists. If a parameter is a reference, its argument is decoded once in each worker (`&str` and
    /// `&[f64]` are not decoded at all, but read in place), so for large data write `&Model` rather than `Model`.
    ///
    /// May be called again: it binds the first of the remaining arguments. If the bound arguments can't be encoded, whichever
    /// method runs the call returns that error.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn line(a: f64, b: f64, x: f64) -> f64 { a * x + b }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let call = pool.task(line).partial((2.0, 1.0));
    /// assert_eq!(call.map([1.0, 2.0])?, [3.0, 5.0]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn partial<B>(self, arguments: B) -> Call<'p, T, Left<T, B::Args, B::Params>>
    where
        B: Binds<O::Args, O::Params>,
    {
        self.bind(|out| arguments.encode(out))
    }

    pub(crate) fn bind<'a, A, P>(
        self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<&'a [u8], CodecError>,
    ) -> Call<'p, T, Left<T, A, P>> {
        Call {
            pool: self.pool,
            options: self.options,
            bound: self.bound.and_then(|before| bind::<T>(before, encode)),
            progress: self.progress,
            open: PhantomData,
        }
    }

    /// The same call with references instead of values: see [`ByRef`].
    pub fn by_ref(self) -> ByRef<'p, T, O> {
        ByRef::new(self)
    }

    /// Sets how many inputs a worker takes at once. Chunk `k` holds the inputs `k * size` to `k * size + size - 1`, and they
    /// run in order in one worker (but if that worker dies, the rest runs in another).
    ///
    /// Default: the pool chooses, from how long the inputs of this task have taken so far: many at once if they are short,
    /// one by one if they are long. 0 is refused with [`Error::InvalidSetting`].
    pub fn chunksize(mut self, size: usize) -> Self {
        self.options.chunksize = Some(size);
        self
    }

    /// Sets how long each input may run, from when the worker begins it. If it takes longer, the worker is killed and the
    /// outcome of that input is [`Error::TimeLimit`].
    ///
    /// The worker is sent SIGTERM, and SIGKILL after [`grace`](crate::PoolBuilder::grace). Time in which this whole program
    /// was stopped (Ctrl-Z) does not count.
    ///
    /// Default: the limit of the task (`#[pool_task(time_limit = "5s")]`), or else of the pool
    /// ([`PoolBuilder::time_limit`](crate::PoolBuilder::time_limit)), or else none. Zero is refused with
    /// [`Error::InvalidSetting`], and so is any limit in a pool that is [`inline`](crate::PoolBuilder::inline).
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.options.time_limit = Some(limit);
        self
    }

    /// Sets how often an input is run again if its worker dies, or after other failures: see [`Retries`].
    ///
    /// Default: the number of the task (`#[pool_task(retries = 2)]`), or else of the pool
    /// ([`PoolBuilder::retries`](crate::PoolBuilder::retries)), or else 0: nothing runs twice.
    pub fn retries(mut self, retries: impl Into<Retries>) -> Self {
        self.options.retries = retries.into();
        self
    }

    /// Inputs of calls with a higher priority begin first; among equal priorities, those that were accepted first. So an
    /// urgent call need not wait until a large [`map_async`](Call::map_async) has finished.
    ///
    /// Inputs that have begun are not interrupted, and the inputs of a [chunk](Call::chunksize) stay together.
    ///
    /// Default: 0. Negative priorities come after it.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let report = pool.task(square).priority(-1).map_async(0..100_000);
    /// // Does not wait until the report has finished.
    /// assert_eq!(pool.apply(square, (7,))?, 49);
    /// assert_eq!(report.get()?.len(), 100_000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// Calls `handler` with the progress of the call: at the start, at most 30 times a second when something has changed, and
    /// once at the end, when every input has an outcome.
    ///
    /// The handler runs on the pool's callback thread. A slow handler gets fewer reports, each of them current, and delays
    /// only other [callbacks](AsyncResult::callback). A handler that panics is called again. Methods that wait for the
    /// results ([`map`](Call::map)) return after the last report, or 100 ms later if the handler takes longer; [`Pool::join`]
    /// always waits for it.
    ///
    /// Works with every method. A call without inputs gets one report, the last. Inputs that are cancelled, or refused
    /// because the pool was closed, count as failed. There is no last report if an [`Imap`] is dropped before its end, or if
    /// the iterator over the inputs of a [`map`](Call::map) panics.
    ///
    /// Default: no handler. A second one replaces the first.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn square(x: u64) -> u64 { x * x }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let call = pool.task(square).progress(|progress| eprintln!("{progress}"));
    /// assert_eq!(call.map(0..1000)?.len(), 1000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(mut self, handler: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(handler));
        self
    }

    /// Like [`Pool::apply`], with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::apply`], and [`Error::InvalidSetting`].
    pub fn apply(&self, args: O::Args) -> Result<T::Output, Error> {
        self.apply_encoded(|out| O::encode(args, out))
    }

    /// Like [`Pool::apply_async`], with these options.
    pub fn apply_async(&self, args: O::Args) -> AsyncResult<T::Output> {
        self.apply_async_encoded(|out| O::encode(args, out))
    }

    /// Like [`Pool::map`], with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::map`], and [`Error::InvalidSetting`].
    pub fn map<I>(&self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>, // for references: `.by_ref()`
    {
        self.all(inputs.into_iter(), O::encode_one)
    }

    /// Like [`Pool::map_async`], with these options.
    pub fn map_async<I>(&self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>, // for references: `.by_ref()`
    {
        self.start(inputs.into_iter(), O::encode_one)
    }

    /// Like [`map`](Call::map), but returns every outcome: one result or error for each input, in order.
    pub fn map_results<I>(&self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>, // for references: `.by_ref()`
    {
        self.each(inputs.into_iter(), O::encode_one)
    }

    /// Like [`map_results`](Call::map_results), but does not wait. All inputs are drawn at once. The result as a whole is an
    /// error only if the pool refused the call.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, TaskError, pool_task};
    ///
    /// #[pool_task]
    /// fn parse(text: &str) -> Result<i32, TaskError> { Ok(text.parse()?) }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let handle = pool.task(parse).map_results_async(["1", "two"].map(String::from));
    /// // In an async program: `handle.await?`.
    /// for outcome in handle.get()? {
    ///     match outcome? {
    ///         Ok(number) => assert_eq!(number, 1),
    ///         Err(why) => assert_eq!(why.message(), "invalid digit found in string"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn map_results_async<I>(&self, inputs: I) -> AsyncResult<Vec<Result<T::Output, Error>>>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>, // for references: `.by_ref()`
    {
        self.start_each(inputs.into_iter(), O::encode_one)
    }

    /// Like [`Pool::imap`], with these options.
    pub fn imap<I>(&self, inputs: I) -> Imap<T, I::IntoIter>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>, // for references: `.by_ref()`
    {
        self.lazy(inputs.into_iter(), O::encode_one)
    }

    /// Like [`Pool::imap_unordered`], with these options.
    pub fn imap_unordered<I>(&self, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>, // for references: `.by_ref()`
    {
        self.lazy_unordered(inputs.into_iter(), O::encode_one)
    }

    /// Like [`Pool::starmap`], with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::starmap`], and [`Error::InvalidSetting`].
    pub fn starmap<I>(&self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        I: IntoIterator<Item = O::Args>, // for references: `.by_ref()`
    {
        self.all(inputs.into_iter(), O::encode)
    }

    /// Like [`Pool::starmap_async`], with these options.
    pub fn starmap_async<I>(&self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        I: IntoIterator<Item = O::Args>, // for references: `.by_ref()`
    {
        self.start(inputs.into_iter(), O::encode)
    }

    /// Like [`starmap`](Call::starmap), but returns every outcome: one result or error for each input, in order.
    pub fn starmap_results<I>(&self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        I: IntoIterator<Item = O::Args>, // for references: `.by_ref()`
    {
        self.each(inputs.into_iter(), O::encode)
    }

    /// Like [`starmap_results`](Call::starmap_results), but does not wait: see
    /// [`map_results_async`](Call::map_results_async).
    pub fn starmap_results_async<I>(&self, inputs: I) -> AsyncResult<Vec<Result<T::Output, Error>>>
    where
        I: IntoIterator<Item = O::Args>, // for references: `.by_ref()`
    {
        self.start_each(inputs.into_iter(), O::encode)
    }

    /// Like [`Pool::istarmap`], with these options.
    pub fn istarmap<I>(&self, inputs: I) -> Imap<T, I::IntoIter>
    where
        I: IntoIterator<Item = O::Args>, // for references: `.by_ref()`
    {
        self.lazy(inputs.into_iter(), O::encode)
    }

    /// Like [`Pool::istarmap_unordered`], with these options.
    pub fn istarmap_unordered<I>(&self, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        I: IntoIterator<Item = O::Args>, // for references: `.by_ref()`
    {
        self.lazy_unordered(inputs.into_iter(), O::encode)
    }
}

/// Shared by these methods and those that take references.
impl<T: Task, O> Call<'_, T, O> {
    pub(crate) fn apply_encoded(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> open::Encoded,
    ) -> Result<T::Output, Error> {
        let gather = Gather::new(1);
        let sink = Arc::clone(&gather) as Arc<dyn Sink>;
        let (sink, mut reporting) = self.report(sink, (1, Some(1)));
        let sent = self.submit_one(encode, sink, &mut reporting);
        if let Ok((job, tail)) = &sent {
            let workers = self.pool.workers();
            workers.wait(*job, Want::All, Waiter(&*gather), None);
            workers.settle();
            tail.settle(None);
        }
        if let Some(reporting) = &reporting {
            reporting.counts().wait_for_report();
        }
        sent?;
        let engine = self.pool.engine();
        engine.decode(|| handle::use_up(gather, decode_one::<T>))
    }

    pub(crate) fn apply_async_encoded(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> open::Encoded,
    ) -> AsyncResult<T::Output> {
        let gather = Gather::new(1);
        let sink = Arc::clone(&gather) as Arc<dyn Sink>;
        let (sink, mut reporting) = self.report(sink, (1, Some(1)));
        let job = self.submit_one(encode, sink, &mut reporting);
        let (job, tail) = match job {
            Ok((job, tail)) => (Some(job), tail),
            Err(error) => {
                gather.refuse(error);
                (None, Tail::none())
            }
        };
        AsyncResult::new(gather, decode_one::<T>, self.pool.engine(), job, tail)
    }

    /// Submits one input, without the overhead of submitting many.
    fn submit_one(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> open::Encoded,
        sink: Arc<dyn Sink>,
        reporting: &mut Option<Reporting>,
    ) -> Result<(JobId, Tail), Error> {
        feed::check(&self.options, self.pool.engine().inline)?;
        let bound = self.bound.as_ref().map_err(Error::clone)?;
        let workers = self.pool.workers();
        let mut frames = Frames::default();
        let (inputs, failed) = match frames.push(encode) {
            Ok(alone) => {
                let mut inputs = alone.unwrap_or(frames);
                if let Some(bound) = bound {
                    inputs.bind(bound);
                }
                (Few::one(Portion { first: 0, inputs }), None)
            }
            Err(error) => (Few::default(), Some(error)),
        };
        let (sink, log_level, tail) = self.pool.engine().logs.listen(sink);
        let job = Job {
            single: true,
            task: T::number(),
            options: self.options,
            log_level,
        };
        feed::check_channels(&**workers, &inputs, T::NAME)?;
        if let Some(reporting) = reporting {
            reporting.draw(1, false);
        }
        let failing = failed.map(|error| (Arc::clone(&sink), error));
        let sent = workers.submit(job, sink, inputs, false);
        if let Some(reporting) = reporting {
            match &sent {
                Ok(id) => reporting.counts().accepted(*id),
                Err(_) => reporting.counts().refuse(1),
            }
        }
        let id = sent?;
        if let Some((sink, error)) = failing {
            let failure = Failure::EncodeArguments(error.to_string());
            sink.deliver(Outcomes::failed(0, 1, Arc::new(failure)));
        }
        Ok((id, tail))
    }

    /// All results, or the error with the lowest index.
    pub(crate) fn all<X>(
        &self,
        mut inputs: impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
    ) -> Result<Vec<T::Output>, Error> {
        let mut results = Vec::with_capacity(inputs.size_hint().0.min(RESERVE_MAX));
        let mut failed = None;
        let refused = self.run(&mut inputs, encode, |index, outcome| {
            keep::<T>(&mut results, &mut failed, index, outcome);
        });
        match failed.or(refused.map(|refusal| refusal.error)) {
            None => Ok(results),
            Some(error) => Err(error),
        }
    }

    /// All outcomes.
    pub(crate) fn each<X>(
        &self,
        mut inputs: impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
    ) -> Vec<Result<T::Output, Error>> {
        let mut results = Vec::new();
        let refused = self.run(&mut inputs, encode, |index, outcome| {
            results.push(decode::<T>(outcome, Some(index)));
        });
        if let Some(Refusal { error, count }) = refused {
            let refused = (0..count).chain(inputs.map(|_| 0));
            results.extend(refused.map(|_| Err(error.clone())));
        }
        results
    }

    pub(crate) fn lazy<I: Iterator>(&self, inputs: I, encode: Encode<I::Item>) -> Imap<T, I> {
        let announced = inputs.size_hint();
        Imap::new(self.pool, |sink| self.feed(sink, announced), inputs, encode)
    }

    pub(crate) fn lazy_unordered<I: Iterator>(
        &self,
        inputs: I,
        encode: Encode<I::Item>,
    ) -> ImapUnordered<T, I> {
        let announced = inputs.size_hint();
        ImapUnordered::new(self.pool, |sink| self.feed(sink, announced), inputs, encode)
    }

    /// Draws all inputs at once, and returns while they run.
    pub(crate) fn start<X>(
        &self,
        inputs: impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
    ) -> AsyncResult<Vec<T::Output>> {
        self.begin(inputs, encode, decode_all::<T>)
    }

    /// The same, but gives every outcome.
    pub(crate) fn start_each<X>(
        &self,
        inputs: impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
    ) -> AsyncResult<Vec<Result<T::Output, Error>>> {
        self.begin(inputs, encode, decode_each::<T>)
    }

    fn begin<X, R>(
        &self,
        inputs: impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
        decode: Decode<R>,
    ) -> AsyncResult<R> {
        let gather = Gather::new(0);
        let (mut id, mut tail) = (None, Tail::none());
        let sent = self
            .feed(Arc::clone(&gather) as Arc<dyn Sink>, inputs.size_hint())
            .and_then(|mut feed| {
                let mut batch = feed.batch();
                for input in inputs {
                    feed.encode(&mut batch, |out| encode(input, out));
                }
                let count = batch.len();
                gather.expect(count);
                feed.send(batch, false)?;
                (id, tail) = (feed.id(), feed.tail().clone());
                if count == 0 {
                    gather.finish_empty();
                }
                Ok(())
            });
        if let Err(error) = sent {
            gather.refuse(error);
        }
        AsyncResult::new(gather, decode, self.pool.engine(), id, tail)
    }

    /// Draws inputs as the workers make progress, and passes each outcome to `each` as soon as it is its turn, in the order
    /// of the inputs. If inputs are refused, the rest stays in `inputs`.
    fn run<X>(
        &self,
        inputs: &mut impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
        each: impl FnMut(usize, Encoded<'_>),
    ) -> Option<Refusal> {
        let inbox = Arc::new(Inbox::default());
        let sink = Arc::clone(&inbox) as Arc<dyn Sink>;
        let mut feed = match self.feed(sink, inputs.size_hint()) {
            Ok(feed) => feed,
            Err(error) => return Some(Refusal { error, count: 0 }),
        };
        let refused = self.run_fed(&mut feed, &inbox, inputs, encode, each);
        feed.settle(None);
        feed.wait_for_report();
        refused
    }

    fn run_fed<X>(
        &self,
        feed: &mut Feed,
        inbox: &Arc<Inbox>,
        inputs: &mut impl Iterator<Item = X>,
        encode: impl Fn(X, &mut Vec<u8>) -> open::Encoded,
        mut each: impl FnMut(usize, Encoded<'_>),
    ) -> Option<Refusal> {
        let workers = self.pool.processes();
        let chunk = feed.explicit_chunk().unwrap_or(1);
        let mut order = InOrder::default();
        let mut arrived = Vec::new();
        let mut refused = None;
        let mut more = true;
        let mut missing = 0;
        loop {
            // Far enough ahead that no worker waits for this thread, in whole chunks.
            let ahead = (4 * workers * feed.hint()).max(AHEAD_MIN);
            let ahead = ahead.max((2 * workers).saturating_mul(chunk));
            let ahead = feed.ahead(ahead, 2 * workers).next_multiple_of(chunk);
            if more && missing <= ahead / 2 {
                let room = (ahead - missing).max(chunk) / chunk * chunk;
                let room = room.min(DRAW_MAX.max(chunk));
                let (batch, goes_on) = feed.draw(room, || inputs.next(), &encode);
                more = goes_on;
                let count = batch.len();
                match feed.send(batch, more) {
                    Ok(()) => missing += count,
                    Err(error) => {
                        refused = Some(Refusal { error, count });
                        more = false;
                    }
                }
            }
            missing -= inbox.take(&mut arrived);
            arrived.drain(..).for_each(|outcomes| order.add(outcomes));
            while let Some(outcomes) = order.pop_many() {
                let engine = self.pool.engine();
                engine.decode(|| outcomes.consume(&mut each));
            }
            let (Some(id), 1..) = (feed.id(), missing) else {
                if more {
                    continue;
                }
                return refused;
            };
            let enough = if !more {
                missing.min(DECODE_AT)
            } else if missing > ahead / 2 {
                missing - ahead / 2
            } else {
                continue;
            };
            if !inbox.wait(enough, &**self.pool.workers(), id, Want::All, None) {
                // In a forked copy of the process, no thread works for the pool.
                let error = Error::Terminated;
                return Some(Refusal {
                    error,
                    count: missing,
                });
            }
        }
    }

    /// Creates the feed for an iterator with this size hint.
    fn feed(&self, sink: Arc<dyn Sink>, announced: (usize, Option<usize>)) -> Result<Feed, Error> {
        let bound = self.bound.clone()?;
        let (sink, reporting) = self.report(sink, announced);
        Feed::new::<T>(self.pool.engine(), sink, self.options, bound, reporting)
    }

    /// Reports the call's progress, if that was asked for.
    #[inline]
    fn report(
        &self,
        sink: Arc<dyn Sink>,
        announced: (usize, Option<usize>),
    ) -> (Arc<dyn Sink>, Option<Reporting>) {
        let Some(handler) = &self.progress else {
            return (sink, None);
        };
        let callbacks = &self.pool.engine().callbacks;
        let workers = self.pool.workers();
        let (sink, reporting) = progress::report(handler, announced, workers, callbacks, sink);
        (sink, Some(reporting))
    }
}

/// Appends arguments to those that were bound before.
fn bind<'a, T: Task>(
    before: Option<Arc<Attachment>>,
    encode: impl FnOnce(&mut Vec<u8>) -> Result<&'a [u8], CodecError>,
) -> Result<Option<Arc<Attachment>>, Error> {
    let no_memory = |error: io::Error| Error::arguments(T::NAME, error.to_string());
    let mut holds = Vec::new();
    let mut bytes = Vec::new();
    if let Some(before) = &before {
        holds.extend_from_slice(before.holds());
        bytes.extend_from_slice(&before.bytes().map_err(no_memory)?);
    }
    let (encoded, referred) = pool_worker::collect(|| encode(&mut bytes));
    let rest = encoded.map_err(|error| Error::arguments(T::NAME, error.to_string()))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    holds.extend(referred);
    let attachment = Attachment::of(&[&bytes, rest], holds);
    attachment.map(Some).map_err(no_memory)
}

/// `map` draws at least this many inputs ahead, so that it need not wake up for each result.
const AHEAD_MIN: usize = 64;

/// `map` draws at most this many inputs at once before it looks for results.
const DRAW_MAX: usize = 8192;

/// With this many results, decoding starts while others are still to come.
const DECODE_AT: usize = 16384;

/// Room is reserved for at most this many results, even if more inputs are announced.
const RESERVE_MAX: usize = 1 << 20;

/// The pool refused inputs, of which `count` had already been drawn.
struct Refusal {
    error: Error,
    count: usize,
}

/// The result or the error of an outcome.
#[inline]
pub(crate) fn decode<T: Task>(
    outcome: Encoded<'_>,
    index: Option<usize>,
) -> Result<T::Output, Error> {
    match outcome {
        Ok(bytes) => T::decode_output(bytes).map_err(|error| {
            Error::Decode(Codec {
                place: Place::of::<T>(index),
                verb: Verb::Decode,
                what: Side::Result,
                why: error.to_string(),
            })
        }),
        Err(failure) => Err(failure.at(Place::of::<T>(index))),
    }
}

fn decode_one<T: Task>(outcomes: Held<'_>) -> Result<T::Output, Error> {
    let mut result = Err(Error::Terminated);
    outcomes.for_each(|_, outcome| result = decode::<T>(outcome, None));
    result
}

/// All results, or the error with the lowest index; [`Error::Cancelled`] if the call was cancelled.
fn decode_all<T: Task>(outcomes: Held<'_>) -> Result<Vec<T::Output>, Error> {
    if outcomes.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let mut results = Vec::with_capacity(outcomes.count());
    let mut failed = None;
    outcomes.for_each(|index, outcome| keep::<T>(&mut results, &mut failed, index, outcome));
    failed.map_or(Ok(results), Err)
}

/// All outcomes.
fn decode_each<T: Task>(outcomes: Held<'_>) -> Result<Vec<Result<T::Output, Error>>, Error> {
    let mut results = Vec::with_capacity(outcomes.count());
    outcomes.for_each(|index, outcome| results.push(decode::<T>(outcome, Some(index))));
    Ok(results)
}

/// Adds a result to the others, or stores the first error, after which results are ignored.
#[inline]
fn keep<T: Task>(
    results: &mut Vec<T::Output>,
    failed: &mut Option<Error>,
    index: usize,
    outcome: Encoded<'_>,
) {
    if failed.is_none() {
        match decode::<T>(outcome, Some(index)) {
            Ok(result) => results.push(result),
            Err(error) => *failed = Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool_task;

    #[pool_task]
    fn nothing() {}

    #[test]
    fn a_call_that_was_cancelled_says_so_whatever_else_failed() {
        let failed = |index, failure| Outcomes::failed(index, 1, Arc::new(failure));
        let early = || failed(0, Failure::EncodeArguments("why".to_owned()));
        let all = [early(), failed(1, Failure::Cancelled)];
        let result = decode_all::<nothing>(Held::Own(all.into_iter().collect()));
        assert!(matches!(result, Err(Error::Cancelled)));
        let result = decode_all::<nothing>(Held::Own([early()].into_iter().collect()));
        assert!(matches!(result, Err(Error::Encode(_))));
    }
}
