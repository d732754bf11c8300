//! [`Call`]: a task with options for one call; and what all calls have in common.

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
use crate::open::{self, Encode, Left, Open, UnaryTask};
use crate::pool::Pool;
use crate::progress::{self, Handler, Progress, Reporting};
use crate::retries::Retries;

/// A task with options for one call: `pool.task(square).chunksize(2).map(0..5)`.
///
/// Made by [`Pool::task`]. It has the methods of [`Pool`] that run work, and
/// [`map_results`](Call::map_results) on top of them. [`by_ref`](Call::by_ref) and [`partial`](Call::partial) save clones
/// and copies of arguments: see [the guide](crate::guide).
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
    /// What all inputs begin with.
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
        // Inline, that of the task does not apply. One that the call is given is refused.
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
    /// Binds the first arguments, as Python's `functools.partial`: a call over those that are left. So `map` takes a task of
    /// three arguments of which two are bound.
    ///
    /// What is bound is encoded once, goes to each worker once, and stays there while there is this call, or a copy of
    /// it, or work that it was asked for. A parameter that is a reference is decoded once in each worker (`&str` and
    /// `&[f64]` not at all: they are read where they lie), so write `&Model` rather than `Model` for what is
    /// large.
    ///
    /// May be used again: it binds the first ones of those that are left. If what is bound can't be encoded, that is
    /// the error of whatever runs the call.
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

    /// The same call over references: see [`ByRef`].
    pub fn by_ref(self) -> ByRef<'p, T, O> {
        ByRef::new(self)
    }

    /// How many inputs a worker takes at once. Chunk `k` holds the inputs `k * size` up to
    /// `k * size + size - 1`, and they run in order in one worker (but if that one dies, the rest
    /// runs in another).
    ///
    /// Default: the pool chooses, from how long the inputs of this task have taken so far: many short
    /// ones at once, long ones one by one. 0 is refused with [`Error::InvalidSetting`].
    pub fn chunksize(mut self, size: usize) -> Self {
        self.options.chunksize = Some(size);
        self
    }

    /// How long each input may run, from when the worker begins it. The worker of one that takes
    /// longer is killed, and that input's outcome is [`Error::TimeLimit`].
    ///
    /// The worker is sent SIGTERM, and SIGKILL when [`grace`](crate::PoolBuilder::grace) is over. Time in which this
    /// whole program was stopped (Ctrl-Z) does not count.
    ///
    /// Default: what the task says (`#[pool_task(time_limit = "5s")]`), or else the pool
    /// ([`PoolBuilder::time_limit`](crate::PoolBuilder::time_limit)); or else for ever. Zero is refused with [`Error::InvalidSetting`],
    /// and so is any in a pool that is [`inline`](crate::PoolBuilder::inline).
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.options.time_limit = Some(limit);
        self
    }

    /// How often an input is run again if its worker dies under it; and after what else: see [`Retries`].
    ///
    /// Default: what the task says (`#[pool_task(retries = 2)]`), or else the pool
    /// ([`PoolBuilder::retries`](crate::PoolBuilder::retries)); or else 0, nothing runs twice.
    pub fn retries(mut self, retries: impl Into<Retries>) -> Self {
        self.options.retries = retries.into();
        self
    }

    /// Inputs of a call with a higher priority begin before those of the others; among equals, those that were accepted first.
    /// So a call that somebody waits for need not wait until a large [`map_async`](Call::map_async) is through.
    ///
    /// What has begun is not stopped for it, nor are the inputs of a [chunk](Call::chunksize) torn apart.
    ///
    /// Default: 0. Negative ones come after it.
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
    /// // Does not wait until the report is through.
    /// assert_eq!(pool.apply(square, (7,))?, 49);
    /// assert_eq!(report.get()?.len(), 100_000);
    /// # Ok(())
    /// # }
    /// ```
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// Calls `handler` with how far the call is: at the start, at most 30 times a second when something has changed, and once at the
    /// end, when every input has an outcome.
    ///
    /// It runs on the pool's callback thread. One that takes its time gets fewer reports, each of them new, and keeps only other
    /// [callbacks](AsyncResult::callback) waiting; one that panics is called again. Methods that wait for the results ([`map`](Call::map)) return
    /// after the last report, or 100 ms later if the handler takes longer; [`Pool::join`] waits for it in any case.
    ///
    /// Works with every method. A call without inputs has one report, the last. Inputs that are cancelled, or refused because
    /// the pool was closed, have failed. There is no last report of an [`Imap`] that is dropped before its end, nor if the
    /// iterator over the inputs panics in a [`map`](Call::map).
    ///
    /// Default: no handler. A second one takes the place of the first.
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

    /// [`Pool::apply`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::apply`], and [`Error::InvalidSetting`].
    pub fn apply(&self, args: O::Args) -> Result<T::Output, Error> {
        self.apply_encoded(|out| O::encode(args, out))
    }

    /// [`Pool::apply_async`] with these options.
    pub fn apply_async(&self, args: O::Args) -> AsyncResult<T::Output> {
        self.apply_async_encoded(|out| O::encode(args, out))
    }

    /// [`Pool::map`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::map`], and [`Error::InvalidSetting`].
    pub fn map<I>(&self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>,
    {
        self.all(inputs.into_iter(), O::encode_one)
    }

    /// [`Pool::map_async`] with these options.
    pub fn map_async<I>(&self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>,
    {
        self.start(inputs.into_iter(), O::encode_one)
    }

    /// Like [`map`](Call::map), but keeps every outcome: one result or error for each input, in
    /// order.
    pub fn map_results<I>(&self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>,
    {
        self.each(inputs.into_iter(), O::encode_one)
    }

    /// Like [`map_results`](Call::map_results), but the outcomes are there later. All inputs are drawn at once. The result itself is
    /// an error only if the pool did not take the call.
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
        I: IntoIterator<Item = O::Argument>,
    {
        self.start_each(inputs.into_iter(), O::encode_one)
    }

    /// [`Pool::imap`] with these options.
    pub fn imap<I>(&self, inputs: I) -> Imap<T, I::IntoIter>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>,
    {
        self.lazy(inputs.into_iter(), O::encode_one)
    }

    /// [`Pool::imap_unordered`] with these options.
    pub fn imap_unordered<I>(&self, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        O: UnaryTask<T>,
        I: IntoIterator<Item = O::Argument>,
    {
        self.lazy_unordered(inputs.into_iter(), O::encode_one)
    }

    /// [`Pool::starmap`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::starmap`], and [`Error::InvalidSetting`].
    pub fn starmap<I>(&self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        I: IntoIterator<Item = O::Args>,
    {
        self.all(inputs.into_iter(), O::encode)
    }

    /// [`Pool::starmap_async`] with these options.
    pub fn starmap_async<I>(&self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        I: IntoIterator<Item = O::Args>,
    {
        self.start(inputs.into_iter(), O::encode)
    }

    /// Like [`starmap`](Call::starmap), but keeps every outcome: one result or error for each
    /// input, in order.
    pub fn starmap_results<I>(&self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        I: IntoIterator<Item = O::Args>,
    {
        self.each(inputs.into_iter(), O::encode)
    }

    /// Like [`starmap_results`](Call::starmap_results), but the outcomes are there later: see
    /// [`map_results_async`](Call::map_results_async).
    pub fn starmap_results_async<I>(&self, inputs: I) -> AsyncResult<Vec<Result<T::Output, Error>>>
    where
        I: IntoIterator<Item = O::Args>,
    {
        self.start_each(inputs.into_iter(), O::encode)
    }

    /// [`Pool::istarmap`] with these options.
    pub fn istarmap<I>(&self, inputs: I) -> Imap<T, I::IntoIter>
    where
        I: IntoIterator<Item = O::Args>,
    {
        self.lazy(inputs.into_iter(), O::encode)
    }

    /// [`Pool::istarmap_unordered`] with these options.
    pub fn istarmap_unordered<I>(&self, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        I: IntoIterator<Item = O::Args>,
    {
        self.lazy_unordered(inputs.into_iter(), O::encode)
    }
}

/// What these methods have in common with those over references.
impl<T: Task, O> Call<'_, T, O> {
    pub(crate) fn apply_encoded(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> open::Encoded,
    ) -> Result<T::Output, Error> {
        let gather = Gather::new(1);
        let sink = Arc::clone(&gather) as Arc<dyn Sink>;
        let (sink, mut reporting) = self.report(sink, (1, Some(1)));
        let sent = self.submit_one(encode, sink, &mut reporting);
        if let Ok(job) = sent {
            let workers = self.pool.workers();
            workers.wait(job, Want::All, Waiter(&*gather), None);
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
        let job = self
            .submit_one(encode, sink, &mut reporting)
            .map_err(|error| gather.refuse(error))
            .ok();
        AsyncResult::new(gather, decode_one::<T>, self.pool.engine(), job)
    }

    /// Hands over one input, without what it takes to hand over many.
    fn submit_one(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> open::Encoded,
        sink: Arc<dyn Sink>,
        reporting: &mut Option<Reporting>,
    ) -> Result<JobId, Error> {
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
        let (sink, log_level) = self.pool.engine().logs.listen(sink);
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
        Ok(id)
    }

    /// All results, or the error of the lowest failing index.
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

    /// Every outcome.
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

    /// The same, with every outcome.
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
        let mut id = None;
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
                id = feed.id();
                if count == 0 {
                    gather.finish_empty();
                }
                Ok(())
            });
        if let Err(error) = sent {
            gather.refuse(error);
        }
        AsyncResult::new(gather, decode, self.pool.engine(), id)
    }

    /// Draws inputs as the workers get on, and shows `each` outcome in the order of the inputs, as they
    /// come. If inputs are refused, the rest is left in `inputs`.
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
            // Far enough ahead that no worker waits for us, in whole chunks.
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
                // In a forked copy of the process nobody works for the pool.
                let error = Error::Terminated;
                return Some(Refusal {
                    error,
                    count: missing,
                });
            }
        }
    }

    /// What feeds an iterator that announces so many inputs.
    fn feed(&self, sink: Arc<dyn Sink>, announced: (usize, Option<usize>)) -> Result<Feed, Error> {
        let bound = self.bound.clone()?;
        let (sink, reporting) = self.report(sink, announced);
        Feed::new::<T>(self.pool.engine(), sink, self.options, bound, reporting)
    }

    /// Has the call's progress reported, if that was asked for.
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

/// Adds arguments to those that were bound before: what is appended, and what that gives.
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

/// `map` draws at least this many inputs ahead, so that it need not wake for each result.
const AHEAD_MIN: usize = 64;

/// It draws no more than this many at once, before it looks for results.
const DRAW_MAX: usize = 8192;

/// So many results are worth decoding while others are still to come.
const DECODE_AT: usize = 16384;

/// Room for so many results is made at once, if so many inputs are announced.
const RESERVE_MAX: usize = 1 << 20;

/// The pool took no more inputs, and `count` had been drawn for it already.
struct Refusal {
    error: Error,
    count: usize,
}

/// The result, or the error, that an outcome stands for.
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

/// All results, or the error of the lowest failing index; unless the call was cancelled.
fn decode_all<T: Task>(outcomes: Held<'_>) -> Result<Vec<T::Output>, Error> {
    if outcomes.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let mut results = Vec::with_capacity(outcomes.count());
    let mut failed = None;
    outcomes.for_each(|index, outcome| keep::<T>(&mut results, &mut failed, index, outcome));
    failed.map_or(Ok(results), Err)
}

/// Every outcome.
fn decode_each<T: Task>(outcomes: Held<'_>) -> Result<Vec<Result<T::Output, Error>>, Error> {
    let mut results = Vec::with_capacity(outcomes.count());
    outcomes.for_each(|index, outcome| results.push(decode::<T>(outcome, Some(index))));
    Ok(results)
}

/// Adds a result to the others, or notes the first error, after which nothing is added.
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
