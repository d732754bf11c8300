//! [`Imap`] and [`ImapUnordered`]: iterators over results, which draw inputs as results are consumed.

use std::any::Any;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
#[cfg(feature = "futures")]
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "futures")]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pool_worker::Task;

use crate::backend::{Next, Outcomes, Sink, Want};
use crate::call::decode;
use crate::error::Error;
use crate::feed::Feed;
use crate::inbox::{InOrder, Inbox, Unordered};
use crate::open::Encode;
use crate::pool::{Engine, Pool};

/// The largest chunk that the pool chooses here, so that few inputs are drawn ahead.
const CHUNK_MAX: usize = 64;

/// If tasks are so short that this many make a portion, inputs are drawn once there is room for half of those that may be
/// drawn ahead.
const SHORT: usize = 32;

/// The results of [`Pool::imap`] or [`Pool::istarmap`], in the order of the inputs.
///
/// Yields one `Result<T::Output, Error>` for each input; an error takes the place of its result, and the iterator goes on.
/// Inputs are drawn in the thread that calls `next`, at most `processes * (chunk size + 2)` ahead of what was consumed, so
/// there may be infinitely many. (Without an explicit chunk size, it is between 1 and 64, depending on how short the tasks
/// are.) `next` draws inputs before it looks for a result, so it blocks while the input iterator blocks, but for no more than
/// one input if the result is ready.
///
/// If the input iterator panics, the results of all inputs before are yielded first, then the panic continues. If the pool is
/// terminated or breaks meanwhile, each remaining input yields that error, so there is still one item for each input; but if
/// the iterator may be infinite (its [`size_hint`](Iterator::size_hint) has no upper bound), the error comes once, then
/// `None`. A call that is refused from the start also yields the error once.
///
/// It knows how many results are left ([`ExactSizeIterator`]) if the input iterator does: a `Vec`, an array, a `Range<usize>`
/// (not a `Range<u64>`). It holds the pool's workers, not the [`Pool`], so it may outlive the pool, and may be sent to
/// another thread if the input iterator may.
///
/// If it is dropped before its end, inputs that have not begun are taken back; those that run are finished, and their results
/// are thrown away.
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
#[must_use = "dropping it throws away the results, and takes back inputs that have not begun"]
pub struct Imap<T: Task, I: Iterator> {
    stream: Stream<T, I>,
}

/// The results of [`Pool::imap_unordered`] or [`Pool::istarmap_unordered`], in the order in which they finish.
///
/// Like [`Imap`], except for the order. [`indexed`](ImapUnordered::indexed) says which input each result belongs to.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn measure(text: &str) -> usize {
///     assert!(!text.is_empty(), "an empty text");
///     text.len()
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let texts = ["one", "", "three"].map(String::from);
/// let (mut sum, mut failed) = (0, 0);
/// for result in pool.imap_unordered(measure, texts) {
///     match result {
///         Ok(length) => sum += length,
///         // The others go on.
///         Err(error) => {
///             assert_eq!(error.index(), Some(1));
///             failed += 1;
///         }
///     }
/// }
/// assert_eq!((sum, failed), (8, 1));
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it throws away the results, and takes back inputs that have not begun"]
pub struct ImapUnordered<T: Task, I: Iterator> {
    stream: Stream<T, I>,
}

macro_rules! results {
    ($name:ident, $order:expr) => {
        impl<T: Task, I: Iterator> $name<T, I> {
            /// Begins to draw inputs. If creating the feed failed, the call was refused.
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
            /// Returns `Some(Err(Error::Timeout))` if no result is ready in time; nothing is lost, and you can ask again.
            /// Returns `None` after the last result. The time that the input iterator takes is not limited.
            pub fn next_timeout(&mut self, timeout: Duration) -> Option<Result<T::Output, Error>> {
                let next = self.stream.next(Instant::now().checked_add(timeout));
                next.map(|(_, result)| result)
            }

            /// Turns the iterator into a stream, for async programs. Needs the feature `futures` of this crate.
            #[cfg(feature = "futures")]
            pub fn stream(self) -> ImapStream<T, I> {
                ImapStream(self.stream)
            }
        }

        impl<T: Task, I: Iterator> Iterator for $name<T, I> {
            type Item = Result<T::Output, Error>;

            fn next(&mut self) -> Option<Self::Item> {
                self.stream.next(None).map(|(_, result)| result)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.stream.size_hint()
            }
        }

        impl<T: Task, I: ExactSizeIterator> ExactSizeIterator for $name<T, I> {}

        impl<T: Task, I: Iterator> FusedIterator for $name<T, I> {}

        impl<T: Task, I: Iterator> fmt::Debug for $name<T, I> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.stream.debug(stringify!($name), f)
            }
        }
    };
}

results!(Imap, Order::AsGiven(InOrder::default()));
results!(ImapUnordered, Order::AsFinished(Unordered::default()));

impl<T: Task, I: Iterator> ImapUnordered<T, I> {
    /// Yields the position of its input with each result.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn length(text: &str) -> usize { text.len() }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// let texts = ["one", "three"].map(str::to_owned);
    /// let mut lengths = [0; 2];
    /// for (index, result) in pool.imap_unordered(length, texts).indexed() {
    ///     lengths[index] = result?;
    /// }
    /// assert_eq!(lengths, [3, 5]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn indexed(self) -> Indexed<T, I> {
        Indexed {
            stream: self.stream,
        }
    }
}

/// Results in the order in which they finish, with the positions of their inputs: see [`ImapUnordered::indexed`].
#[must_use = "dropping it throws away the results, and takes back inputs that have not begun"]
pub struct Indexed<T: Task, I: Iterator> {
    stream: Stream<T, I>,
}

impl<T: Task, I: Iterator> Iterator for Indexed<T, I> {
    type Item = (usize, Result<T::Output, Error>);

    fn next(&mut self) -> Option<Self::Item> {
        self.stream.next(None)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.stream.size_hint()
    }
}

impl<T: Task, I: ExactSizeIterator> ExactSizeIterator for Indexed<T, I> {}

impl<T: Task, I: Iterator> FusedIterator for Indexed<T, I> {}

impl<T: Task, I: Iterator> fmt::Debug for Indexed<T, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.debug("Indexed", f)
    }
}

/// The same results as a [`Stream`](futures_core::Stream): see [`Imap::stream`] and [`ImapUnordered::stream`].
///
/// Inputs are drawn when it is polled, so an input iterator that blocks also blocks the executor's thread.
#[cfg(feature = "futures")]
#[must_use = "dropping it throws away the results, and takes back inputs that have not begun"]
pub struct ImapStream<T: Task, I: Iterator>(Stream<T, I>);

#[cfg(feature = "futures")]
impl<T: Task, I: Iterator> futures_core::Stream for ImapStream<T, I> {
    type Item = Result<T::Output, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.get_mut().0.poll_next(context);
        next.map(|next| next.map(|(_, result)| result))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

// Nothing in it is ever pinned.
#[cfg(feature = "futures")]
impl<T: Task, I: Iterator> Unpin for ImapStream<T, I> {}

#[cfg(feature = "futures")]
impl<T: Task, I: Iterator> fmt::Debug for ImapStream<T, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.debug("ImapStream", f)
    }
}

/// Results that have arrived, in the order in which they are yielded.
#[derive(Debug)]
enum Order {
    AsGiven(InOrder),
    AsFinished(Unordered),
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

    /// Which outcomes of the job to wait for, after this many results were consumed.
    fn want(&self, consumed: usize) -> Want {
        match self {
            Order::AsGiven(_) => Want::Index(consumed),
            Order::AsFinished(_) => Want::Any,
        }
    }
}

/// A result, with the position of its input.
type Item<T> = (usize, Result<<T as Task>::Output, Error>);

/// What all of these iterators share.
struct Stream<T, I: Iterator> {
    engine: Arc<Engine>,
    inbox: Arc<Inbox>,
    order: Order,
    arrived: Vec<Outcomes>,
    feed: Option<Feed>,
    /// `None` once they have ended, or the pool has refused some.
    inputs: Option<I>,
    encode: Encode<I::Item>,
    drawn: usize,
    consumed: usize,
    /// What comes after the last result.
    finally: Option<Finally<I>>,
    task: PhantomData<fn() -> T>,
}

enum Finally<I> {
    /// The pool refused inputs: these, which were drawn, and those that are still to be drawn.
    Refused {
        error: Error,
        count: usize,
        rest: Option<I>,
    },
    /// The input iterator panicked.
    Panicked(Box<dyn Any + Send>),
}

impl<I: Iterator> Finally<I> {
    /// The error, yielded once for all inputs.
    fn once(error: Error) -> Self {
        Finally::Refused {
            error,
            count: 1,
            rest: None,
        }
    }

    /// How many items come from this.
    fn size_hint(&self) -> (usize, Option<usize>) {
        let Finally::Refused { count, rest, .. } = self else {
            return (1, Some(1));
        };
        let (least, most) = rest.as_ref().map_or((0, Some(0)), I::size_hint);
        let most = most.and_then(|most| most.checked_add(*count));
        (least.saturating_add(*count), most)
    }
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
            Err(error) => stream.end(Some(Finally::once(error))),
        }
        stream
    }

    /// Draws inputs, as many whole chunks as the bound allows.
    fn draw(&mut self) {
        // A result that is ready should not wait long for a slow input iterator.
        while self.draw_some() && !(self.is_slow() && self.inbox.has_some()) {}
    }

    fn is_slow(&self) -> bool {
        self.feed.as_ref().is_some_and(Feed::is_slow)
    }

    /// Draws some inputs and hands them over. Returns false if there is no room for more, or no input left.
    fn draw_some(&mut self) -> bool {
        let (Some(inputs), Some(feed)) = (&mut self.inputs, &mut self.feed) else {
            return false;
        };
        let hint = feed.hint();
        let chunk = feed.explicit_chunk().unwrap_or(hint.min(CHUNK_MAX));
        let processes = self.engine.workers.count();
        let bound = processes.saturating_mul(chunk.saturating_add(2));
        let room = bound.saturating_sub(self.drawn - self.consumed) / chunk * chunk;
        // Inputs of short tasks are handed over several at a time, those of long tasks one by one: the next input may take
        // long to arrive.
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
                let inputs = self.inputs.take();
                let has_begun = self.drawn > 0;
                let finally = panicked.unwrap_or_else(|| match inputs {
                    Some(rest) if has_begun && rest.size_hint().1.is_some() => Finally::Refused {
                        error,
                        count,
                        rest: more.then_some(rest),
                    },
                    _ => Finally::once(error),
                });
                self.end(Some(finally));
                false
            }
        }
    }

    fn end(&mut self, finally: Option<Finally<I>>) {
        self.inputs = None;
        self.finally = finally;
    }

    fn next(&mut self, deadline: Option<Instant>) -> Option<Item<T>> {
        loop {
            self.draw();
            if self.consumed < self.drawn {
                return Some(self.next_drawn(deadline));
            }
            if let Some(next) = self.next_undrawn() {
                return next;
            }
        }
    }

    #[cfg(feature = "futures")]
    fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<Item<T>>> {
        loop {
            self.draw();
            if self.consumed == self.drawn {
                if let Some(next) = self.next_undrawn() {
                    return Poll::Ready(next);
                }
                continue;
            }
            if let Some(next) = self.next_arrived() {
                return Poll::Ready(Some(next));
            }
            let Some(id) = self.feed.as_ref().and_then(Feed::id) else {
                return Poll::Ready(Some(self.give_up()));
            };
            if self.inbox.wake(context.waker()) {
                let want = self.order.want(self.consumed);
                self.engine.workers.notify_of(id, want);
                return Poll::Pending;
            }
            // Something has arrived, though perhaps not the next result.
        }
    }

    /// What comes after all drawn inputs. `None`: more inputs must be drawn.
    fn next_undrawn(&mut self) -> Option<Option<Item<T>>> {
        match &mut self.finally {
            Some(Finally::Refused { error, count, rest }) => {
                let error = error.clone();
                if *count > 0 {
                    *count -= 1;
                } else if rest.as_mut().and_then(Iterator::next).is_none() {
                    self.finally = None;
                    return Some(None);
                }
                Some(Some((self.count_one(), Err(error))))
            }
            Some(Finally::Panicked(_)) => match self.finally.take() {
                Some(Finally::Panicked(payload)) => panic::resume_unwind(payload),
                _ => Some(None),
            },
            None if self.inputs.is_none() => Some(None),
            // Nothing was drawn, but there is more: the iterator yielded nothing in the time that it had.
            None => None,
        }
    }

    /// Counts an input that was refused. Returns its position.
    fn count_one(&mut self) -> usize {
        self.drawn += 1;
        self.consumed += 1;
        self.consumed - 1
    }

    /// No thread works for the pool: this is a forked copy of its process.
    fn give_up(&mut self) -> Item<T> {
        self.consumed += 1;
        (self.consumed - 1, Err(Error::Terminated))
    }

    /// The next result, if it has arrived.
    #[cfg(feature = "futures")]
    fn next_arrived(&mut self) -> Option<Item<T>> {
        loop {
            if let Some(next) = self.next_in_order() {
                return Some(next);
            }
            if !self.take_arrived() {
                return None;
            }
        }
    }

    /// The next result, if it was taken out of the inbox.
    fn next_in_order(&mut self) -> Option<Item<T>> {
        let (index, outcome) = self.order.pop()?;
        self.consumed += 1;
        let decode = || decode::<T>(outcome, Some(index));
        Some((index, self.engine.decode(decode)))
    }

    /// Takes out of the inbox what has arrived. Returns false if that is nothing.
    fn take_arrived(&mut self) -> bool {
        let any = self.inbox.take(&mut self.arrived) > 0;
        for outcomes in self.arrived.drain(..) {
            self.order.add(outcomes);
        }
        any
    }

    /// The next result, which is certain to arrive.
    fn next_drawn(&mut self, deadline: Option<Instant>) -> Item<T> {
        loop {
            if let Some(next) = self.next_in_order() {
                return next;
            }
            if self.take_arrived() {
                if let Some(feed) = &self.feed {
                    feed.settle(deadline);
                }
                continue;
            }
            let Some(id) = self.feed.as_ref().and_then(Feed::id) else {
                return self.give_up();
            };
            let want = self.order.want(self.consumed);
            if !self
                .inbox
                .wait(1, &*self.engine.workers, id, want, deadline)
            {
                return if deadline.is_some() {
                    (self.consumed, Err(Error::Timeout))
                } else {
                    self.give_up()
                };
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let drawn = self.drawn - self.consumed;
        let (least, most) = match (&self.finally, &self.inputs) {
            (Some(finally), _) => finally.size_hint(),
            (None, Some(inputs)) => inputs.size_hint(),
            (None, None) => (0, Some(0)),
        };
        (
            least.saturating_add(drawn),
            most.and_then(|most| most.checked_add(drawn)),
        )
    }

    fn debug(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("task", &T::NAME)
            .field("drawn", &self.drawn)
            .field("consumed", &self.consumed)
            .finish_non_exhaustive()
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
