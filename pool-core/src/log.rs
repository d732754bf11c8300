//! Passes what workers log to the subscriber of this program, or to its logger.
//!
//! When a call is made, the subscriber of its thread and the span that the thread is in are kept with the call's [`Sink`],
//! which gets the records of its inputs. Records that belong to no call come through the [`Observer`]. Both put records into
//! one queue. The thread `pool-log` takes them out and calls the subscriber, so a slow subscriber holds up that thread and
//! nothing else.
//!
//! # Bounds
//!
//! The queue for a slow subscriber is bounded: when it is full, records are dropped and counted, and once there is room
//! again, a warning says how many. Descriptions of callsites are never dropped, nor are the ends of spans whose beginning was
//! not. There are few of them.
//!
//! # Order
//!
//! A result that is returned waits for a moment until what its inputs have logged has been delivered ([`Tail`]), so a program
//! that logs the result itself does so after them. Once that took too long, no result waits for a second. Futures never wait.
//!
//! # Spans
//!
//! The spans of workers are created anew here, inside the span of the caller ([`delivery`]); they are not entered. The
//! caller's span is kept open as long as the call has an open span. It must not be closed under a lock, nor by a thread that
//! others wait for, since the subscriber then runs code of the user.

mod delivery;
mod sieve;
mod site;

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use tracing_core::LevelFilter;
use tracing_core::dispatcher::{self, Dispatch};
use tracing_core::span::Id;
use tracing_core::subscriber::NoSubscriber;

use self::delivery::Delivery;
pub use self::sieve::LogSieve;
use crate::backend::{
    LogLevel, LogRecords, News, Observer, Outcomes, Room, Sink, each_record as each,
};
use crate::local::is_of_a_pool;
use crate::sync::{self, lock};

/// How many records, and how many bytes of them, may wait for the subscriber.
const RECORDS_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 16 << 20;

/// How many spans of callers may wait to be closed; others stay open.
const RELEASES_MAX: usize = 1 << 16;

/// A result waits at most this long for what its inputs have logged to be delivered.
const PATIENCE: Duration = Duration::from_millis(5);

/// Once a result has waited in vain, no result waits for this long.
const RESIGNED: Duration = Duration::from_secs(1);

/// When a pool is dropped, what is in the queue gets this much time before the drop returns.
const AT_DROP: Duration = Duration::from_millis(500);

/// The queue of records for the subscriber, and the thread that calls it.
pub(crate) struct Logs {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Grows with every delivery.
    delivered: AtomicU64,
    /// How many items were taken from the queue and delivered.
    done: AtomicU64,
    /// How many threads wait in [`Tail::settle`].
    settling: AtomicUsize,
    patience: Duration,
    /// For records that belong to no call: the subscriber of the thread that built the pool, or else of the first thread that
    /// made a call and had one.
    home: OnceLock<Arc<Context>>,
    /// The process that has the thread; a forked copy does not.
    owner: u32,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// How many items were ever put into it.
    queued: u64,
    /// Until then, no result waits, since one has waited in vain.
    resigned: Option<Instant>,
    records: usize,
    bytes: usize,
    releases: usize,
    /// How many records were dropped since the last one that was queued.
    dropped: u64,
    sieve: LogSieve,
    /// The thread that takes from the queue, whether it is at work or sleeps.
    thread: Option<ThreadId>,
    works: bool,
    sleeps: bool,
    /// The thread ends once the queue is empty.
    ended: bool,
}

enum Item {
    Records(Option<Arc<Context>>, LogRecords),
    /// A span to be closed.
    Release(Dispatch, Id),
}

/// The listener of a call, and the span of the caller.
pub(super) struct Context {
    dispatch: Dispatch,
    /// There is a subscriber; otherwise there may be a logger.
    hears: bool,
    span: Option<Id>,
    shared: Weak<Shared>,
    /// The number of the last item in the queue that is for this listener.
    queued: Arc<AtomicU64>,
}

/// What the inputs of a call log, for those who take its results. Does not keep the caller's span open.
#[derive(Clone)]
pub(crate) struct Tail(Option<(Weak<Shared>, Arc<AtomicU64>)>);

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").finish_non_exhaustive()
    }
}

impl Tail {
    /// For a call that was refused, or that nobody listens to.
    pub(crate) fn none() -> Tail {
        Tail(None)
    }

    /// Waits until what was logged before the results that have arrived has been delivered, so that it is seen before them;
    /// but not for a slow subscriber, nor beyond the deadline.
    #[inline]
    pub(crate) fn settle(&self, deadline: Option<Instant>) {
        if let Some((shared, queued)) = &self.0 {
            let queued = queued.load(Ordering::Acquire);
            if queued > 0
                && let Some(shared) = shared.upgrade()
                && shared.done.load(Ordering::Acquire) < queued
            {
                shared.settle(queued, deadline);
            }
        }
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// Which records the current listener wants.
#[inline]
fn level() -> LogLevel {
    match LevelFilter::current() {
        LevelFilter::OFF => log::max_level().into(),
        level => level.into(),
    }
}

impl Logs {
    pub(crate) fn new() -> Logs {
        Logs {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                changed: Condvar::new(),
                delivered: AtomicU64::new(0),
                done: AtomicU64::new(0),
                settling: AtomicUsize::new(0),
                patience: PATIENCE,
                home: OnceLock::new(),
                owner: pool_worker::lineage(),
            }),
            thread: Mutex::default(),
        }
    }

    /// Which records are wanted here. If any are, the calling thread's subscriber gets what belongs to no call.
    pub(crate) fn level(&self) -> LogLevel {
        let level = level();
        if level > LogLevel::Off {
            self.make_home();
            self.start();
        }
        level
    }

    /// Lets the calling thread's subscriber, if there is one, get what belongs to no call, unless another already does.
    fn make_home(&self) {
        if self.shared.home.get().is_none() {
            let context = Context::current(&self.shared, false);
            if context.hears {
                let _ = self.shared.home.set(Arc::new(context));
            }
        }
    }

    /// Returns an observer that takes what belongs to no call, and passes on other news.
    pub(crate) fn observer(&self, next: Option<Arc<dyn Observer>>) -> Option<Arc<dyn Observer>> {
        let shared = Arc::clone(&self.shared);
        Some(Arc::new(Listener { shared, next }))
    }

    /// Wraps the sink of a call that this thread makes, for its backend; and says which records are wanted.
    #[inline]
    pub(crate) fn listen(&self, sink: Arc<dyn Sink>) -> (Arc<dyn Sink>, LogLevel, Tail) {
        match level() {
            LogLevel::Off => (sink, LogLevel::Off, Tail::none()),
            level => {
                let (sink, tail) = self.listening(sink);
                (sink, level, tail)
            }
        }
    }

    #[cold]
    fn listening(&self, sink: Arc<dyn Sink>) -> (Arc<dyn Sink>, Tail) {
        self.make_home();
        self.start();
        let context = Arc::new(Context::current(&self.shared, true));
        let tail = context.tail();
        (Arc::new(Listening { sink, context }), tail)
    }

    /// Starts the thread if it does not run. If it can't be started, records are dropped.
    fn start(&self) {
        if pool_worker::lineage() != self.shared.owner {
            return;
        }
        let mut queue = lock(&self.shared.queue);
        if queue.thread.is_some() || queue.ended {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name("pool-log".to_owned())
            .spawn(move || shared.work());
        if let Ok(spawned) = spawned {
            queue.thread = Some(spawned.thread().id());
            *lock(&self.thread) = Some(spawned);
        }
    }

    /// Waits until everything that has arrived by now has been delivered, unless the subscriber is stuck, or this is called by
    /// it. Returns false if the deadline came first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let shared = &self.shared;
        if pool_worker::lineage() != shared.owner {
            return true;
        }
        let mut queue = lock(&shared.queue);
        let queued = queue.queued;
        let (mut seen, mut until) = (None, Instant::now());
        shared.settling.fetch_add(1, Ordering::SeqCst);
        let in_time = loop {
            let is_done = shared.done.load(Ordering::SeqCst) >= queued;
            if is_done || !queue.is_delivered_elsewhere() {
                break true;
            }
            let delivered = Some(shared.delivered.load(Ordering::Relaxed));
            let now = Instant::now();
            if mem::replace(&mut seen, delivered) != delivered {
                until = now + sync::STUCK;
            } else if now >= until {
                break true;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                break false;
            }
            let next = deadline.map_or(until, |deadline| deadline.min(until));
            queue = sync::wait(&shared.changed, queue, Some(next)).0;
        };
        shared.settling.fetch_sub(1, Ordering::SeqCst);
        in_time
    }

    /// Lets the thread end after everything has been delivered, and waits for that, but not long.
    pub(crate) fn end(&self) {
        if pool_worker::lineage() != self.shared.owner {
            return;
        }
        self.wait(Some(Instant::now() + AT_DROP));
        let is_idle = {
            let mut queue = lock(&self.shared.queue);
            queue.ended = true;
            !queue.is_busy()
        };
        self.shared.changed.notify_all();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && is_idle
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if pool_worker::lineage() == self.shared.owner {
            lock(&self.shared.queue).ended = true;
            self.shared.changed.notify_all();
        }
    }
}

impl Queue {
    fn is_busy(&self) -> bool {
        self.works || !self.items.is_empty()
    }

    /// Another thread than this one takes from the queue.
    fn is_delivered_elsewhere(&self) -> bool {
        self.thread
            .is_some_and(|thread| thread != thread::current().id())
    }

    fn add(&mut self, item: Item) {
        self.queued += 1;
        if let Item::Records(Some(context), _) = &item {
            context.queued.store(self.queued, Ordering::Release);
        }
        self.items.push_back(item);
    }

    fn is_full(&self) -> bool {
        self.records >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    /// Queues the records for which there is room.
    fn push(&mut self, context: Option<Arc<Context>>, mut records: LogRecords) {
        if self.thread.is_none() {
            return;
        }
        let room = if !self.is_full() {
            Room::Enough
        } else if self.bytes < 2 * BYTES_MAX {
            Room::Little
        } else {
            Room::None
        };
        self.dropped += self.sieve.pass(&mut records, room) + records.dropped;
        self.records += each(&records.records).count();
        self.bytes += records.records.len();
        if !records.records.is_empty() || records.ended || records.dropped > 0 {
            self.add(Item::Records(context, records));
        }
    }
}

impl Shared {
    fn push(&self, context: Option<Arc<Context>>, records: LogRecords) {
        if pool_worker::lineage() == self.owner {
            self.put(|queue| queue.push(context, records));
        }
    }

    fn put(&self, put: impl FnOnce(&mut Queue)) {
        let mut queue = lock(&self.queue);
        put(&mut queue);
        if queue.sleeps && !queue.items.is_empty() {
            queue.sleeps = false;
            drop(queue);
            self.changed.notify_all();
        }
    }

    /// The main loop of the thread.
    fn work(&self) {
        let mut delivery = Delivery::default();
        let mut queue = lock(&self.queue);
        loop {
            if !queue.items.is_empty() {
                queue.works = true;
                let items = mem::take(&mut queue.items);
                (queue.records, queue.bytes, queue.releases) = (0, 0, 0);
                let dropped = mem::take(&mut queue.dropped);
                drop(queue);
                self.deliver(&mut delivery, items, dropped);
                queue = lock(&self.queue);
                queue.works = false;
                self.changed.notify_all();
            } else if queue.ended {
                drop(queue);
                guard(|| delivery.end());
                lock(&self.queue).thread = None;
                self.changed.notify_all();
                return;
            } else {
                queue.sleeps = true;
                queue = sync::wait(&self.changed, queue, None).0;
                queue.sleeps = false;
            }
        }
    }

    fn deliver(&self, delivery: &mut Delivery, items: VecDeque<Item>, dropped: u64) {
        let (mut last, count) = (None, items.len());
        for (at, item) in items.into_iter().enumerate() {
            match item {
                Item::Release(dispatch, id) => guard(|| {
                    dispatch.try_close(id);
                }),
                Item::Records(_, records) if records.ended => {
                    guard(|| delivery.end_of(&records.source));
                }
                Item::Records(context, records) => {
                    let context = context.unwrap_or_else(|| self.home());
                    let mut source = delivery.source(&records);
                    for record in each(&records.records) {
                        guard(|| source.deliver(&context, record));
                        self.delivered.fetch_add(1, Ordering::Relaxed);
                    }
                    // Otherwise not kept: whoever sees that all is delivered may count on the caller's span.
                    last = (dropped > 0).then_some(context);
                }
            }
            // The dropped records came after those delivered so far.
            if dropped > 0 && at + 1 == count {
                let context = last.take().unwrap_or_else(|| self.home());
                guard(|| delivery::warn_of_dropped(&context, dropped));
            }
            self.done.fetch_add(1, Ordering::SeqCst);
            if self.settling.load(Ordering::SeqCst) > 0 {
                drop(lock(&self.queue));
                self.changed.notify_all();
            }
        }
    }

    /// Waits until this many items have been delivered, but not for long. Returns false if it does not wait at all.
    #[cold]
    fn settle(&self, queued: u64, deadline: Option<Instant>) -> bool {
        if pool_worker::lineage() != self.owner {
            return false;
        }
        let now = Instant::now();
        let patience = now + self.patience;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let mut queue = lock(&self.queue);
        if until <= now || queue.resigned.is_some_and(|until| now < until) {
            return false;
        }
        self.settling.fetch_add(1, Ordering::SeqCst);
        // The subscriber itself may call the pool.
        while queue.is_delivered_elsewhere() && self.done.load(Ordering::SeqCst) < queued {
            let (guard, in_time) = sync::wait(&self.changed, queue, Some(until));
            queue = guard;
            if !in_time {
                queue.resigned = (until == patience).then(|| Instant::now() + RESIGNED);
                break;
            }
        }
        self.settling.fetch_sub(1, Ordering::SeqCst);
        true
    }

    /// The listener to what belongs to no call.
    fn home(&self) -> Arc<Context> {
        let home = self.home.get().map(Arc::clone);
        home.unwrap_or_else(|| Arc::new(Context::of_thread(Weak::new(), false)))
    }
}

/// Code of the user may panic. The panic hook has already reported it.
fn guard(call: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(call)) {
        // A payload may panic when it is dropped.
        mem::forget(payload);
    }
}

impl Context {
    fn current(shared: &Arc<Shared>, with_span: bool) -> Context {
        Context::of_thread(Arc::downgrade(shared), with_span)
    }

    /// The subscriber of this thread, and the span that the thread is in.
    fn of_thread(shared: Weak<Shared>, with_span: bool) -> Context {
        dispatcher::get_default(|dispatch| {
            let current = with_span.then(|| dispatch.current_span());
            let span = current.as_ref().and_then(|current| current.id());
            Context {
                hears: !dispatch.is::<NoSubscriber>(),
                span: span.map(|id| dispatch.clone_span(id)),
                dispatch: dispatch.clone(),
                shared: Weak::clone(&shared),
                queued: Arc::default(),
            }
        })
    }

    fn tail(&self) -> Tail {
        Tail(Some((Weak::clone(&self.shared), Arc::clone(&self.queued))))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let Some(id) = self.span.take() else {
            return;
        };
        if is_of_a_pool()
            && let Some(shared) = self.shared.upgrade()
        {
            let dispatch = self.dispatch.clone();
            shared.put(|queue| {
                if queue.releases < RELEASES_MAX && queue.thread.is_some() {
                    queue.releases += 1;
                    queue.add(Item::Release(dispatch, id));
                }
            });
            return;
        }
        guard(|| {
            self.dispatch.try_close(id);
        });
    }
}

/// The sink of a call, together with the listener to what its inputs log.
#[derive(Debug)]
struct Listening {
    sink: Arc<dyn Sink>,
    context: Arc<Context>,
}

impl Sink for Listening {
    fn deliver(self: Arc<Self>, outcomes: Outcomes) {
        Arc::clone(&self.sink).deliver(outcomes);
    }

    fn log(&self, records: LogRecords) {
        if let Some(shared) = self.context.shared.upgrade() {
            shared.push(Some(Arc::clone(&self.context)), records);
        }
    }
}

/// Receives what belongs to no call.
struct Listener {
    shared: Arc<Shared>,
    next: Option<Arc<dyn Observer>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Observer for Listener {
    fn observe(&self, news: Vec<News>) {
        let mut others = Vec::new();
        for news in news {
            match news {
                News::Log(records) => self.shared.push(None, records),
                other => others.push(other),
            }
        }
        if let Some(next) = &self.next
            && !others.is_empty()
        {
            next.observe(others);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sieve::{CALLSITES_MAX, SPANS_MAX};
    use super::*;
    use crate::backend::LogSource;

    fn source() -> LogSource {
        LogSource {
            worker: 0,
            pid: 1,
            host: None,
            serial: 0,
        }
    }

    fn records(all: &[Vec<u8>]) -> LogRecords {
        let framed = all.iter().flat_map(|record| {
            let len = (record.len() as u32).to_le_bytes();
            len.into_iter().chain(record.iter().copied())
        });
        LogRecords {
            source: source(),
            task: None,
            index: None,
            ended: false,
            records: framed.collect(),
            dropped: 0,
        }
    }

    fn callsite() -> Vec<u8> {
        vec![0; 5]
    }

    fn event() -> Vec<u8> {
        vec![1, 0, 0, 0, 0]
    }

    fn span(id: u64) -> Vec<u8> {
        let begin = [2, 0, 0, 0, 0, 0, 0, 0, 0].into_iter();
        begin.chain(id.to_le_bytes()).chain([0; 8]).collect()
    }

    fn close(id: u64) -> Vec<u8> {
        [5, 0, 0, 0, 0]
            .into_iter()
            .chain(id.to_le_bytes())
            .collect()
    }

    fn queue() -> Queue {
        Queue {
            thread: Some(thread::current().id()),
            ..Queue::default()
        }
    }

    fn kept(queue: &Queue) -> Vec<Vec<u8>> {
        let items = queue.items.iter().filter_map(|item| match item {
            Item::Records(_, records) => Some(each(&records.records).map(<[u8]>::to_vec)),
            Item::Release(..) => None,
        });
        items.flatten().collect()
    }

    #[test]
    fn a_full_queue_accepts_what_must_not_be_lost() {
        let mut queue = queue();
        queue.push(None, records(&[callsite(), span(1), event()]));
        queue.records = RECORDS_MAX;
        let more = [event(), callsite(), span(2), close(2), event(), close(1)];
        queue.push(None, records(&more));
        let expected = [callsite(), span(1), event(), callsite(), close(1)];
        assert_eq!(kept(&queue), expected);
        // Two events and a span.
        assert_eq!(queue.dropped, 3);
        queue.items.clear();
        queue.records = 0;
        queue.push(None, records(&[event()]));
        assert_eq!(kept(&queue), [event()]);
    }

    /// A context of these logs, with something in the queue that is for it.
    fn with_one_queued(logs: &Logs) -> Arc<Context> {
        let context = Arc::new(Context::current(&logs.shared, false));
        let mut queue = lock(&logs.shared.queue);
        queue.push(Some(Arc::clone(&context)), records(&[callsite()]));
        assert_eq!(context.queued.load(Ordering::Relaxed), 1);
        drop(queue);
        context
    }

    fn logs(patience: Duration) -> Logs {
        let mut logs = Logs::new();
        let shared = Arc::get_mut(&mut logs.shared).expect("no thread has it");
        shared.patience = patience;
        let elsewhere = thread::spawn(|| thread::current().id());
        shared.queue.get_mut().expect("no thread panicked").thread =
            Some(elsewhere.join().expect("it has an id"));
        logs
    }

    #[test]
    fn a_result_waits_for_what_was_logged_before_it() {
        let logs = logs(Duration::from_secs(60));
        let context = with_one_queued(&logs);
        let shared = Arc::clone(&logs.shared);
        let worker = thread::spawn(move || {
            while shared.settling.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            let items = mem::take(&mut lock(&shared.queue).items);
            shared.deliver(&mut Delivery::default(), items, 0);
        });
        context.tail().settle(None);
        assert_eq!(logs.shared.done.load(Ordering::SeqCst), 1);
        assert_eq!(lock(&logs.shared.queue).resigned, None);
        worker.join().expect("it delivered");
        lock(&logs.shared.queue).thread = None;
    }

    #[test]
    fn no_result_waits_for_a_slow_subscriber_twice() {
        let logs = logs(Duration::from_millis(1));
        let context = with_one_queued(&logs);
        context.tail().settle(Some(Instant::now()));
        assert_eq!(lock(&logs.shared.queue).resigned, None);
        context.tail().settle(None);
        assert!(lock(&logs.shared.queue).resigned.is_some());
        assert!(!logs.shared.settle(1, None));
        lock(&logs.shared.queue).thread = None;
    }

    #[test]
    fn what_an_evil_worker_sends_is_bounded() {
        let mut queue = queue();
        let many: Vec<_> = (0..SPANS_MAX as u64 + 10).map(span).collect();
        queue.push(None, records(&many));
        assert_eq!(kept(&queue).len(), SPANS_MAX);
        queue.items.clear();
        queue.push(None, records(&vec![callsite(); CALLSITES_MAX + 10]));
        assert_eq!(kept(&queue).len(), CALLSITES_MAX);
        queue.items.clear();
        queue.push(None, records(&[Vec::new(), vec![1]]));
        assert_eq!(queue.items.len(), 0);
        let ended = LogRecords {
            ended: true,
            ..records(&[])
        };
        queue.push(None, ended);
        assert!(queue.sieve.is_empty());
    }

    #[test]
    fn what_was_dropped_on_the_way_is_told_here() {
        let mut queue = queue();
        let mut late = records(&[event()]);
        late.note_dropped(3);
        queue.push(None, late);
        let mut nothing = records(&[]);
        nothing.note_dropped(4);
        queue.push(None, nothing);
        // Both wake the thread, which warns.
        assert_eq!((queue.dropped, queue.items.len()), (7, 2));
    }
}
