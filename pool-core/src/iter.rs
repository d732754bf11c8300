//! [`Imap`] and [`ImapUnordered`]: results as an iterator, inputs drawn as they are consumed.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::iter::{FusedIterator, Map};
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pool_worker::Task;

use crate::backend::{Backend, Options, Outcome, Sink};
use crate::call::decode;
use crate::error::Error;
use crate::feed::{Feed, PATIENCE};
use crate::pool::Pool;

/// The inputs of `imap`, each made a tuple of one.
pub type Packed<T, A, I> = Map<<I as IntoIterator>::IntoIter, fn(A) -> <T as Task>::Args>;

/// A chunk that the pool chooses is not larger than this here, so that little is drawn ahead.
const CHUNK_MAX: usize = 64;

/// How soon results are looked for that are finished but not sent, and how often at the least.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_LAST: Duration = Duration::from_millis(50);

/// The results of [`Pool::imap`] or [`Pool::istarmap`], in the order of the inputs.
///
/// Yields one `Result<T::Output, Error>` for each input; an error takes its place and the results go
/// on behind it. Inputs are drawn in the thread that calls `next`, at most
/// `processes * (chunk size + 2)` ahead of what was consumed, so the inputs may be endless. (Without an
/// explicit chunk size, that is from 1 to 64, by how short the tasks are.) `next` draws before it looks
/// for a result, so an iterator that waits makes it wait, but not for more than one input if the
/// result is there. If the
/// input iterator panics, the results of all inputs before are yielded first, then the panic goes on.
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
pub struct Imap<'p, T: Task, I> {
    stream: Stream<'p, T, I>,
}

/// The results of [`Pool::imap_unordered`] or [`Pool::istarmap_unordered`], as they are finished.
///
/// As [`Imap`], but for the order. An error tells which input it belongs to:
/// [`Error::index`](crate::Error::index).
pub struct ImapUnordered<'p, T: Task, I> {
    stream: Stream<'p, T, I>,
}

macro_rules! results {
    ($name:ident, $order:expr) => {
        impl<'p, T: Task, I: Iterator<Item = T::Args>> $name<'p, T, I> {
            pub(crate) fn new(pool: &'p Pool, options: Options, inputs: I) -> Self {
                let mut stream = Stream::new(pool, options, inputs, $order);
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

        impl<T: Task, I: Iterator<Item = T::Args>> Iterator for $name<'_, T, I> {
            type Item = Result<T::Output, Error>;

            fn next(&mut self) -> Option<Self::Item> {
                self.stream.next(None)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                self.stream.size_hint()
            }
        }

        impl<T: Task, I: Iterator<Item = T::Args>> FusedIterator for $name<'_, T, I> {}

        impl<T: Task, I> fmt::Debug for $name<'_, T, I> {
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

results!(Imap, Order::AsGiven);
results!(ImapUnordered, Order::AsFinished);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AsGiven,
    AsFinished,
}

/// What both iterators do.
struct Stream<'p, T, I> {
    pool: &'p Pool,
    arrivals: Arc<Arrivals>,
    feed: Option<Feed>,
    /// `None` once they have ended.
    inputs: Option<I>,
    drawn: usize,
    consumed: usize,
    /// What comes behind the last result.
    finally: Option<Finally>,
    task: PhantomData<T>,
}

enum Finally {
    /// The pool took no more inputs.
    Refused(Error),
    /// The input iterator panicked.
    Panicked(Box<dyn Any + Send>),
}

impl<'p, T: Task, I: Iterator<Item = T::Args>> Stream<'p, T, I> {
    fn new(pool: &'p Pool, options: Options, inputs: I, order: Order) -> Self {
        let arrivals = Arc::new(Arrivals {
            order,
            arrived: Mutex::default(),
            changed: Condvar::new(),
        });
        let sink: Arc<dyn Sink> = Arc::clone(&arrivals) as _;
        let mut stream = Stream {
            pool,
            arrivals,
            feed: None,
            inputs: Some(inputs),
            drawn: 0,
            consumed: 0,
            finally: None,
            task: PhantomData,
        };
        match Feed::new::<T>(pool.backend(), sink, options) {
            Ok(feed) => stream.feed = Some(feed),
            Err(error) => stream.end(Some(Finally::Refused(error))),
        }
        stream
    }

    /// Draws inputs, as many whole chunks as fit the bound.
    fn draw(&mut self) {
        let mut began = Instant::now();
        while self.draw_some() {
            // A result that is there should not wait long for inputs that are slow in coming.
            let now = Instant::now();
            if now - began >= PATIENCE && self.arrivals.has(self.consumed) {
                return;
            }
            began = now;
        }
    }

    /// Draws some inputs and hands them over. False: there is no room for more, or there are none.
    fn draw_some(&mut self) -> bool {
        let (Some(inputs), Some(feed)) = (&mut self.inputs, &mut self.feed) else {
            return false;
        };
        let chunk = match feed.explicit_chunk() {
            Some(size) => size,
            None => feed.hint().min(CHUNK_MAX),
        };
        let bound = self
            .pool
            .processes()
            .saturating_mul(chunk.saturating_add(2));
        let room = bound.saturating_sub(self.drawn - self.consumed) / chunk * chunk;
        if room == 0 {
            return false;
        }
        // Long tasks are handed over one by one: the next input may be long in coming.
        let room = if chunk == 1 { 1 } else { room };
        let mut panicked = None;
        let (batch, more) = feed.draw::<T>(room, &mut || match panic::catch_unwind(
            AssertUnwindSafe(|| inputs.next()),
        ) {
            Ok(next) => next,
            Err(payload) => {
                panicked = Some(Finally::Panicked(payload));
                None
            }
        });
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
                let backend = self.pool.backend();
                return Some(
                    match self.arrivals.take(self.consumed, deadline, &**backend) {
                        Some((index, outcome)) => {
                            self.consumed += 1;
                            decode::<T>(&outcome, Some(index))
                        }
                        None => Err(Error::Timeout),
                    },
                );
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

    fn size_hint(&self) -> (usize, Option<usize>) {
        let drawn = self.drawn - self.consumed + usize::from(self.finally.is_some());
        let (least, most) = self.inputs.as_ref().map_or((0, Some(0)), I::size_hint);
        (
            least.saturating_add(drawn),
            most.and_then(|most| most.checked_add(drawn)),
        )
    }
}

impl<T, I> Drop for Stream<'_, T, I> {
    fn drop(&mut self) {
        if let Some(feed) = &mut self.feed
            && self.consumed < self.drawn
        {
            feed.abandon();
        }
    }
}

/// Where the outcomes of a stream wait to be consumed.
#[derive(Debug)]
struct Arrivals {
    order: Order,
    arrived: Mutex<Arrived>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Arrived {
    by_index: BTreeMap<usize, Outcome>,
    by_time: VecDeque<(usize, Outcome)>,
}

impl Arrivals {
    /// Waits for the outcome of this input; or for any, if the order does not matter.
    ///
    /// Results of short tasks come many together, and if a long one follows them, they would wait for
    /// that. So whoever waits has the backend look for them from time to time.
    fn take(
        &self,
        index: usize,
        deadline: Option<Instant>,
        backend: &dyn Backend,
    ) -> Option<(usize, Outcome)> {
        let mut pause = Some(LOOK_FIRST);
        let mut arrived = self.lock();
        loop {
            let next = match self.order {
                Order::AsGiven => arrived.by_index.remove_entry(&index),
                Order::AsFinished => arrived.by_time.pop_front(),
            };
            if next.is_some() {
                return next;
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let Some(wait) = [left, pause].into_iter().flatten().min() else {
                arrived = self
                    .changed
                    .wait(arrived)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (guard, timeout) = self
                .changed
                .wait_timeout(arrived, wait)
                .unwrap_or_else(PoisonError::into_inner);
            arrived = guard;
            if timeout.timed_out()
                && let Some(last) = pause
            {
                drop(arrived);
                pause = backend.look().then(|| (2 * last).min(LOOK_LAST));
                arrived = self.lock();
            }
        }
    }

    /// Whether [`take`](Arrivals::take) would not have to wait.
    fn has(&self, index: usize) -> bool {
        let arrived = self.lock();
        match self.order {
            Order::AsGiven => arrived.by_index.contains_key(&index),
            Order::AsFinished => !arrived.by_time.is_empty(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Arrivals {
    fn deliver(&self, outcomes: Vec<(usize, Outcome)>) {
        let mut arrived = self.lock();
        match self.order {
            Order::AsGiven => arrived.by_index.extend(outcomes),
            Order::AsFinished => arrived.by_time.extend(outcomes),
        }
        drop(arrived);
        self.changed.notify_all();
    }
}
