//! [`Call`]: a task with options for one call; and what all calls have in common.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use pool_worker::Task;

use crate::backend::{Failure, Options, Outcome, Sink};
use crate::error::{Codec, Error, Place, Side};
use crate::feed::{Batch, Feed};
use crate::handle::{AsyncResult, Decode, Gather, GatherSink};
use crate::iter::{Imap, ImapUnordered, Packed};
use crate::pool::Pool;

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
            options: Options::default(),
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
    /// Default: for ever. Zero is refused with [`Error::InvalidSetting`].
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.options.time_limit = Some(limit);
        self
    }

    /// How often an input is run again if its worker dies under it. A panic or a passed time limit
    /// is no such death.
    ///
    /// Default: 0, nothing runs twice.
    pub fn retries(mut self, retries: u32) -> Self {
        self.options.retries = retries;
        self
    }

    /// [`Pool::apply`] with these options.
    ///
    /// # Errors
    ///
    /// As [`Pool::apply`], and [`Error::InvalidSetting`].
    pub fn apply(self, args: T::Args) -> Result<T::Output, Error> {
        self.apply_async(args).get()
    }

    /// [`Pool::apply_async`] with these options.
    pub fn apply_async(self, args: T::Args) -> AsyncResult<T::Output> {
        self.start(std::iter::once(args), decode_one::<T>)
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
        let (gather, refused) = self.run(&mut inputs);
        match gather.wait_done(None) {
            Some(Ok(outcomes)) => {
                let results = decode_all::<T>(outcomes)?;
                refused.map_or(Ok(results), |refusal| Err(refusal.error))
            }
            Some(Err(error)) => Err(error.clone()),
            None => Err(Error::Terminated),
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
        let (gather, refused) = self.run(&mut inputs);
        let mut results = Vec::new();
        if let Some(Ok(outcomes)) = gather.wait_done(None) {
            let decoded = outcomes.iter().enumerate();
            results.extend(decoded.map(|(index, outcome)| decode::<T>(outcome, Some(index))));
        }
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

    /// Draws all inputs at once, and returns while they run.
    fn start<R>(self, inputs: impl Iterator<Item = T::Args>, decode: Decode<R>) -> AsyncResult<R> {
        let gather = Gather::new(self.pool.callbacks());
        let backend = self.pool.backend();
        let mut id = None;
        let sent = self.feed(&gather).and_then(|mut feed| {
            let mut batch = Batch::default();
            for args in inputs {
                feed.encode::<T>(&args, &mut batch);
            }
            gather.expect(batch.len());
            feed.send(batch, false)?;
            id = feed.id();
            Ok(())
        });
        match sent {
            Ok(()) => gather.complete(),
            Err(error) => gather.refuse(error),
        }
        let origin = id.map(|id| (Arc::downgrade(backend), id));
        AsyncResult::new(gather, decode, origin)
    }

    /// Draws inputs as the workers get on, until all are handed over, or some are refused; then the
    /// rest is left in `inputs`.
    fn run(self, inputs: &mut dyn Iterator<Item = T::Args>) -> (Arc<Gather>, Option<Refusal>) {
        let gather = Gather::new(self.pool.callbacks());
        let fed = self
            .feed(&gather)
            .map_err(|error| Refusal { error, count: 0 })
            .and_then(|mut feed| self.feed_all(&mut feed, &gather, inputs));
        gather.complete();
        (gather, fed.err())
    }

    fn feed_all(
        self,
        feed: &mut Feed,
        gather: &Gather,
        inputs: &mut dyn Iterator<Item = T::Args>,
    ) -> Result<(), Refusal> {
        let workers = self.pool.processes();
        loop {
            // Far enough ahead that no worker waits for us, in whole chunks.
            let chunk = feed.explicit_chunk().unwrap_or(1);
            let ahead = (4 * workers * feed.hint())
                .max(AHEAD_MIN)
                .next_multiple_of(chunk);
            let room = ahead.saturating_sub(gather.missing()).max(chunk) / chunk * chunk;
            let (batch, more) = feed.draw::<T>(room, &mut || inputs.next());
            let count = batch.len();
            gather.expect(count);
            if let Err(error) = feed.send(batch, more) {
                gather.forget(count);
                return Err(Refusal { error, count });
            }
            if !more {
                return Ok(());
            }
            gather.wait_for_room(ahead / 2);
        }
    }

    fn feed(&self, gather: &Arc<Gather>) -> Result<Feed, Error> {
        let sink: Arc<dyn Sink> = Arc::new(GatherSink(Arc::clone(gather)));
        Feed::new::<T>(self.pool.backend(), sink, self.options)
    }
}

/// `map` draws at least this many inputs ahead, so that it need not wake for each result.
const AHEAD_MIN: usize = 64;

/// The pool took no more inputs, and `count` had been drawn for it already.
struct Refusal {
    error: Error,
    count: usize,
}

/// The result, or the error, that an outcome stands for.
pub(crate) fn decode<T: Task>(outcome: &Outcome, index: Option<usize>) -> Result<T::Output, Error> {
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

fn decode_one<T: Task>(outcomes: &[Outcome]) -> Result<T::Output, Error> {
    let missing = Err(Box::new(Failure::Terminated));
    decode::<T>(outcomes.first().unwrap_or(&missing), None)
}

/// All results, or the error of the lowest failing index.
fn decode_all<T: Task>(outcomes: &[Outcome]) -> Result<Vec<T::Output>, Error> {
    outcomes
        .iter()
        .enumerate()
        .map(|(index, outcome)| decode::<T>(outcome, Some(index)))
        .collect()
}
