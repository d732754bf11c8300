//! [`Imap`] and [`ImapUnordered`]: results as an iterator, inputs drawn as they are consumed.

use std::any::Any;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::Task;

use crate::backend::{Next, Outcomes, Sink, Want};
use crate::call::decode;
use crate::error::Error;
use crate::feed::Feed;
use crate::inbox::{AsTheyCome, InOrder, Inbox};
use crate::open::Encode;
use crate::pool::{Engine, Pool};

/// A chunk that the pool chooses is not larger than this here, so that little is drawn ahead.
const CHUNK_MAX: usize = 64;

/// Of tasks so short that so many make a portion, inputs are drawn when there is room for half of those
/// that may be drawn ahead.
const SHORT: usize = 32;

/// The results of [`Pool::imap`] or [`Pool::istarmap`], in the order of the inputs.
///
/// Yields one `Result<T::Output, Error>` for each input; an error takes its place and the results go
/// on behind it. Inputs are drawn in the thread that calls `next`, at most
/// `processes * (chunk size + 2)` ahead of what was consumed, so the inputs may be endless. (Without an
/// explicit chunk size, that is from 1 to 64, by how short the tasks are.) `next` draws before it looks
/// for a result, so an iterator that waits makes it wait, but not for more than one input if the
/// result is there.
///
/// If the input iterator panics, the results of all inputs before are yielded first, then the panic goes
/// on. If the pool is terminated or breaks on the way, there is one item for each input that it took,
/// then the error once for all the rest, those already drawn among them, then `None`.
///
/// Dropped before its end, it takes back what has not begun; what runs is run to its end, and its
/// results are thrown away.
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
/// let first: Result<Vec<u64>, Error> = pool.imap(square, 0..).take(4).collect();
/// assert_eq!(first?, [0, 1, 4, 9]);
/// # Ok(())
/// # }
/// ```
pub struct Imap<T: Task, I: Iterator> {
    stream: Stream<T, I>,
}

/// The results of [`Pool::imap_unordered`] or [`Pool::istarmap_unordered`], as they are finished.
///
/// As [`Imap`], but for the order. An error tells which input it belongs to:
/// [`Error::index`](crate::Error::index).
pub struct ImapUnordered<T: Task, I: Iterator> {
    stream: Stream<T, I>,
}

macro_rules! results {
    ($name:ident, $order:expr) => {
        impl<T: Task, I: Iterator> $name<T, I> {
            /// Begins to draw. Where there is no feed, the call was refused.
            pub(crate) fn new(
                pool: &Pool,
                feed: impl FnOnce(Arc<dyn Sink>) -> Result<Feed, Error>,
                inputs: I,
                encode: Encode<I::Item>,
            ) -> Self {
                let mut stream = Stream::new(pool, feed, inputs, encode, $order);
                stream.draw();
                $name { stream }
            }

            /// Waits for the next result, but no longer than `timeout`.
            ///
            /// `Some(Err(Error::Timeout))` if it is not there in time: nothing is lost, ask again.
            /// `None` if there are no more. The time that the input iterator takes is not limited.
            pub fn next_timeout(&mut self, timeout: Duration) -> Option<Result<T::Output, Error>> {
                self.stream.next(Instant::now().checked_add(timeout))
            }
        }

        impl<T: Task, I: Iterator> Iterator for $name<T, I> {
            type Item = Result<T::Output, Error>;

            fn next(&mut self) -> Option<Self::Item> {
                self.stream.next(None)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.stream.size_hint()
            }
        }

        impl<T: Task, I: Iterator> FusedIterator for $name<T, I> {}

        impl<T: Task, I: Iterator> fmt::Debug for $name<T, I> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("task", &T::NAME)
                    .field("drawn", &self.stream.drawn)
                    .field("consumed", &self.stream.consumed)
                    .finish_non_exhaustive()
            }
        }
    };
}

results!(Imap, Order::AsGiven(InOrder::default()));
results!(ImapUnordered, Order::AsFinished(AsTheyCome::default()));

/// What has arrived, in the order in which it is yielded.
#[derive(Debug)]
enum Order {
    AsGiven(InOrder),
    AsFinished(AsTheyCome),
}

impl Order {
    fn add(&mut self, outcomes: Outcomes) {
        match self {
            Order::AsGiven(order) => order.add(outcomes),
            Order::AsFinished(order) => order.add(outcomes),
        }
    }

    fn pop(&mut self) -> Option<Next<'_>> {
        match self {
            Order::AsGiven(order) => order.pop(),
            Order::AsFinished(order) => order.pop(),
        }
    }

    /// What of the job is waited for, after so many were consumed.
    fn want(&self, consumed: usize) -> Want {
        match self {
            Order::AsGiven(_) => Want::Index(consumed),
            Order::AsFinished(_) => Want::Any,
        }
    }
}

/// What both iterators do.
struct Stream<T, I: Iterator> {
    engine: Arc<Engine>,
    inbox: Arc<Inbox>,
    order: Order,
    arrived: Vec<Outcomes>,
    feed: Option<Feed>,
    /// `None` once they have ended.
    inputs: Option<I>,
    encode: Encode<I::Item>,
    drawn: usize,
    consumed: usize,
    /// What comes behind the last result.
    finally: Option<Finally>,
    task: PhantomData<fn() -> T>,
}

enum Finally {
    /// The pool took no more inputs.
    Refused(Error),
    /// The input iterator panicked.
    Panicked(Box<dyn Any + Send>),
}

impl<T: Task, I: Iterator> Stream<T, I> {
    fn new(
        pool: &Pool,
        feed: impl FnOnce(Arc<dyn Sink>) -> Result<Feed, Error>,
        inputs: I,
        encode: Encode<I::Item>,
        order: Order,
    ) -> Self {
        let inbox = Arc::new(Inbox::default());
        let sink = Arc::clone(&inbox) as Arc<dyn Sink>;
        let mut stream = Stream {
            engine: Arc::clone(pool.engine()),
            inbox,
            order,
            arrived: Vec::new(),
            feed: None,
            inputs: Some(inputs),
            encode,
            drawn: 0,
            consumed: 0,
            finally: None,
            task: PhantomData,
        };
        match feed(sink) {
            Ok(feed) => stream.feed = Some(feed),
            Err(error) => stream.end(Some(Finally::Refused(error))),
        }
        stream
    }

    /// Draws inputs, as many whole chunks as fit the bound.
    fn draw(&mut self) {
        // A result that is there should not wait long for inputs that are slow in coming.
        while self.draw_some() && !(self.is_slow() && self.inbox.has_some()) {}
    }

    fn is_slow(&self) -> bool {
        self.feed.as_ref().is_some_and(Feed::is_slow)
    }

    /// Draws some inputs and hands them over. False: there is no room for more, or there are none.
    fn draw_some(&mut self) -> bool {
        let (Some(inputs), Some(feed)) = (&mut self.inputs, &mut self.feed) else {
            return false;
        };
        let hint = feed.hint();
        let chunk = feed.explicit_chunk().unwrap_or(hint.min(CHUNK_MAX));
        let processes = self.engine.workers.count();
        let bound = processes.saturating_mul(chunk.saturating_add(2));
        let room = bound.saturating_sub(self.drawn - self.consumed) / chunk * chunk;
        // Short tasks are handed over several at a time. Long ones one by one: the next input may be long
        // in coming.
        let least = if hint >= SHORT { bound / 2 } else { 1 };
        if room < least.max(1) {
            return false;
        }
        let room = if hint == 1 { chunk } else { room };
        let mut panicked = None;
        let next = || match panic::catch_unwind(AssertUnwindSafe(|| inputs.next())) {
            Ok(next) => next,
            Err(payload) => {
                panicked = Some(Finally::Panicked(payload));
                None
            }
        };
        let (batch, more) = feed.draw(room, next, self.encode);
        let count = batch.len();
        match feed.send(batch, more) {
            Ok(()) => {
                self.drawn += count;
                if !more {
                    self.end(panicked);
                }
                more
            }
            Err(error) => {
                self.end(Some(panicked.unwrap_or(Finally::Refused(error))));
                false
            }
        }
    }

    fn end(&mut self, finally: Option<Finally>) {
        self.inputs = None;
        self.finally = finally;
    }

    fn next(&mut self, deadline: Option<Instant>) -> Option<Result<T::Output, Error>> {
        loop {
            self.draw();
            if self.consumed < self.drawn {
                return Some(self.next_drawn(deadline));
            }
            match self.finally.take() {
                Some(Finally::Refused(error)) => return Some(Err(error)),
                Some(Finally::Panicked(payload)) => panic::resume_unwind(payload),
                None if self.inputs.is_none() => return None,
                // Nothing was drawn, yet there is more: the iterator gave nothing in its time.
                None => {}
            }
        }
    }

    /// The next result, of which there is one to come.
    fn next_drawn(&mut self, deadline: Option<Instant>) -> Result<T::Output, Error> {
        loop {
            if let Some((index, outcome)) = self.order.pop() {
                self.consumed += 1;
                let decode = || decode::<T>(outcome, Some(index));
                return self.engine.decode(decode);
            }
            if self.inbox.take(&mut self.arrived) > 0 {
                for outcomes in self.arrived.drain(..) {
                    self.order.add(outcomes);
                }
                continue;
            }
            let Some(id) = self.feed.as_ref().and_then(Feed::id) else {
                return Err(Error::Terminated);
            };
            let want = self.order.want(self.consumed);
            if !self
                .inbox
                .wait(1, &*self.engine.workers, id, want, deadline)
            {
                return Err(if deadline.is_some() {
                    Error::Timeout
                } else {
                    // In a forked copy of the process nobody works for the pool.
                    Error::Terminated
                });
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let drawn = self.drawn - self.consumed + usize::from(self.finally.is_some());
        let (least, most) = self.inputs.as_ref().map_or((0, Some(0)), I::size_hint);
        (
            least.saturating_add(drawn),
            most.and_then(|most| most.checked_add(drawn)),
        )
    }
}

impl<T, I: Iterator> Drop for Stream<T, I> {
    fn drop(&mut self) {
        if let Some(feed) = &mut self.feed
            && self.consumed < self.drawn
        {
            feed.abandon();
        }
    }
}
