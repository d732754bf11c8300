//! [`Call`]: a task with options for one call; and what all calls have in common.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use pool_worker::{Frames, Task};

use crate::backend::{Encoded, Failure, Job, JobId, Options, Outcomes, Portion, Sink, Want};
use crate::error::{Codec, Error, Place, Side};
use crate::feed::{self, Batch, Feed};
use crate::few::Few;
use crate::handle::{self, AsyncResult, Decode, Gather, Held};
use crate::inbox::{InOrder, Inbox};
use crate::iter::{Imap, ImapUnordered, Packed};
use crate::pool::Pool;
use crate::retries::Retries;

/// Argument tuples of one element: what `map` and `imap` can fill from one input.
///
/// Implemented for `(A,)`; not meant to be implemented elsewhere.
#[diagnostic::on_unimplemented(
    message = "`{T}` does not take exactly one argument: it takes `{Self}`",
    label = "`map` and `imap` need a task of one argument",
    note = "use `starmap` or `istarmap`, with a tuple of arguments for each input"
)]
pub trait OneArgument<T> {
    /// The argument.
    type Argument;
    #[doc(hidden)]
    fn pack(argument: Self::Argument) -> Self;
}

// Without the bound the compiler would advise to make a tuple of the task.
impl<T: Task<Args = (A,)>, A> OneArgument<T> for (A,) {
    type Argument = A;
    fn pack(argument: A) -> Self {
        (argument,)
    }
}

/// A task with options for one call: `pool.task(square).chunksize(2).map(0..5)`.
///
/// Made by [`Pool::task`]. It has the methods of [`Pool`] that run work, and
/// [`map_results`](Call::map_results) on top of them.
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
#[derive(Debug, Clone, Copy)]
#[must_use = "a call does nothing until one of its methods runs it"]
pub struct Call<'p, T> {
    pool: &'p Pool,
    options: Options,
    task: PhantomData<T>,
}

impl<'p, T: Task> Call<'p, T> {
    pub(crate) fn new(pool: &'p Pool) -> Self {
        Call {
            pool,
            options: Options {
                chunksize: None,
                time_limit: T::TIME_LIMIT.or(pool.defaults().time_limit),
                retries: T::RETRIES.map_or(pool.defaults().retries, Retries::new),
            },
            task: PhantomData,
        }
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
    /// ([`PoolBuilder::time_limit`](crate::PoolBuilder::time_limit)); or else for ever. Zero is refused with [`Error::InvalidSetting`].
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

    /// [`Pool::apply`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::apply`], and [`Error::InvalidSetting`].
    pub fn apply(self, args: T::Args) -> Result<T::Output, Error> {
        let gather = Gather::new(1);
        let job = self.submit_one(args, &gather)?;
        self.pool.backend().wait(job, Want::All, &*gather, None);
        handle::use_up(gather, decode_one::<T>)
    }

    /// [`Pool::apply_async`] with these options.
    pub fn apply_async(self, args: T::Args) -> AsyncResult<T::Output> {
        let gather = Gather::new(1);
        let job = self
            .submit_one(args, &gather)
            .map_err(|error| gather.refuse(error))
            .ok();
        AsyncResult::new(gather, decode_one::<T>, self.pool.engine(), job)
    }

    /// [`Pool::map`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::map`], and [`Error::InvalidSetting`].
    pub fn map<A, I>(self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        T::Args: OneArgument<T, Argument = A>,
        I: IntoIterator<Item = A>,
    {
        self.starmap(inputs.into_iter().map(OneArgument::pack))
    }

    /// [`Pool::map_async`] with these options.
    pub fn map_async<A, I>(self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        T::Args: OneArgument<T, Argument = A>,
        I: IntoIterator<Item = A>,
    {
        self.starmap_async(inputs.into_iter().map(OneArgument::pack))
    }

    /// Like [`map`](Call::map), but keeps every outcome: one result or error for each input, in
    /// order.
    pub fn map_results<A, I>(self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        T::Args: OneArgument<T, Argument = A>,
        I: IntoIterator<Item = A>,
    {
        self.starmap_results(inputs.into_iter().map(OneArgument::pack))
    }

    /// [`Pool::imap`] with these options.
    pub fn imap<A, I>(self, inputs: I) -> Imap<'p, T, Packed<T, A, I>>
    where
        T::Args: OneArgument<T, Argument = A>,
        I: IntoIterator<Item = A>,
    {
        self.istarmap(
            inputs
                .into_iter()
                .map(OneArgument::pack as fn(A) -> T::Args),
        )
    }

    /// [`Pool::imap_unordered`] with these options.
    pub fn imap_unordered<A, I>(self, inputs: I) -> ImapUnordered<'p, T, Packed<T, A, I>>
    where
        T::Args: OneArgument<T, Argument = A>,
        I: IntoIterator<Item = A>,
    {
        self.istarmap_unordered(
            inputs
                .into_iter()
                .map(OneArgument::pack as fn(A) -> T::Args),
        )
    }

    /// [`Pool::starmap`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::starmap`], and [`Error::InvalidSetting`].
    pub fn starmap<I>(self, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        I: IntoIterator<Item = T::Args>,
    {
        let mut inputs = inputs.into_iter();
        let mut results = Vec::with_capacity(inputs.size_hint().0.min(RESERVE_MAX));
        let mut failed = None;
        let refused = self.run(&mut inputs, |index, outcome| {
            keep::<T>(&mut results, &mut failed, index, outcome);
        });
        match failed.or(refused.map(|refusal| refusal.error)) {
            None => Ok(results),
            Some(error) => Err(error),
        }
    }

    /// [`Pool::starmap_async`] with these options.
    pub fn starmap_async<I>(self, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        I: IntoIterator<Item = T::Args>,
    {
        self.start(inputs.into_iter(), decode_all::<T>)
    }

    /// Like [`starmap`](Call::starmap), but keeps every outcome: one result or error for each
    /// input, in order.
    pub fn starmap_results<I>(self, inputs: I) -> Vec<Result<T::Output, Error>>
    where
        I: IntoIterator<Item = T::Args>,
    {
        let mut inputs = inputs.into_iter();
        let mut results = Vec::new();
        let refused = self.run(&mut inputs, |index, outcome| {
            results.push(decode::<T>(outcome, Some(index)));
        });
        if let Some(Refusal { error, count }) = refused {
            let refused = (0..count).chain(inputs.map(|_| 0));
            results.extend(refused.map(|_| Err(error.clone())));
        }
        results
    }

    /// [`Pool::istarmap`] with these options.
    pub fn istarmap<I>(self, inputs: I) -> Imap<'p, T, I::IntoIter>
    where
        I: IntoIterator<Item = T::Args>,
    {
        Imap::new(self.pool, self.options, inputs.into_iter())
    }

    /// [`Pool::istarmap_unordered`] with these options.
    pub fn istarmap_unordered<I>(self, inputs: I) -> ImapUnordered<'p, T, I::IntoIter>
    where
        I: IntoIterator<Item = T::Args>,
    {
        ImapUnordered::new(self.pool, self.options, inputs.into_iter())
    }

    /// Hands over one input, without what it takes to hand over many.
    fn submit_one(&self, args: T::Args, gather: &Arc<Gather>) -> Result<JobId, Error> {
        feed::check(&self.options)?;
        let backend = self.pool.backend();
        let mut frames = Frames::default();
        let (inputs, failed) = match frames.push(|out| T::encode_args(args, out)) {
            Ok(alone) => {
                let inputs = alone.unwrap_or(frames);
                (Few::one(Portion { first: 0, inputs }), None)
            }
            Err(error) => (Few::default(), Some(error)),
        };
        let job = Job {
            task: T::number(),
            options: self.options,
        };
        let sink = Arc::clone(gather) as Arc<dyn Sink>;
        let id = backend.submit(job, sink, inputs, false)?;
        if let Some(error) = failed {
            let failure = Failure::EncodeArguments(error.to_string());
            Arc::clone(gather).deliver(Outcomes::failed(0, 1, Arc::new(failure)));
        }
        Ok(id)
    }

    /// Draws all inputs at once, and returns while they run.
    fn start<R>(self, inputs: impl Iterator<Item = T::Args>, decode: Decode<R>) -> AsyncResult<R> {
        let gather = Gather::new(0);
        let mut id = None;
        let sent = self
            .feed(Arc::clone(&gather) as Arc<dyn Sink>)
            .and_then(|mut feed| {
                let mut batch = Batch::default();
                for args in inputs {
                    feed.encode::<T>(args, &mut batch);
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
    fn run(
        self,
        inputs: &mut impl Iterator<Item = T::Args>,
        mut each: impl FnMut(usize, Encoded<'_>),
    ) -> Option<Refusal> {
        let inbox = Arc::new(Inbox::default());
        let mut feed = match self.feed(Arc::clone(&inbox) as Arc<dyn Sink>) {
            Ok(feed) => feed,
            Err(error) => return Some(Refusal { error, count: 0 }),
        };
        let workers = self.pool.processes();
        let chunk = feed.explicit_chunk().unwrap_or(1);
        let mut order = InOrder::default();
        let mut arrived = Vec::new();
        let mut refused = None;
        let mut more = true;
        let mut missing = 0;
        loop {
            // Far enough ahead that no worker waits for us, in whole chunks.
            let ahead = (4 * workers * feed.hint())
                .max(AHEAD_MIN)
                .next_multiple_of(chunk);
            if more && missing <= ahead / 2 {
                let room = (ahead - missing).max(chunk) / chunk * chunk;
                let (batch, goes_on) =
                    feed.draw::<T>(room.min(DRAW_MAX.max(chunk)), || inputs.next());
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
                outcomes.consume(&mut each);
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
            if !inbox.wait(enough, &**self.pool.backend(), id, Want::All, None) {
                // In a forked copy of the process nobody works for the pool.
                let error = Error::Terminated;
                return Some(Refusal {
                    error,
                    count: missing,
                });
            }
        }
    }

    fn feed(&self, sink: Arc<dyn Sink>) -> Result<Feed, Error> {
        Feed::new::<T>(self.pool.backend(), sink, self.options)
    }
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
    let place = Place {
        task: T::NAME,
        index,
    };
    match outcome {
        Ok(bytes) => T::decode_output(bytes).map_err(|error| {
            Error::Decode(Codec {
                place,
                what: Side::Result,
                why: error.to_string(),
            })
        }),
        Err(failure) => Err(failure.at(place)),
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
