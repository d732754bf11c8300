//! What workers log reaches the subscriber of this program, or its logger.
//!
//! When a call is made, the subscriber of its thread and the span that it is in are kept with the call's [`Sink`]; there the records of
//! its inputs arrive. What belongs to no call comes through the [`Observer`]. Both put it into one queue. The thread `pool-log` takes
//! it out, and calls the subscriber: one that is slow holds up that thread, and nothing else.
//!
//! # Bounds
//!
//! So much waits for a slow subscriber, and no more: what comes then is dropped and counted, and once there is room again, a warning
//! says how much it was. Descriptions of callsites are never dropped, nor are ends of spans that were not. There are
//! few of them.
//!
//! # Spans
//!
//! The spans of workers are made again here, with the span of the caller around them ([`delivery`]); they are not entered. The span of
//! the caller is kept open as long as the call has one open. It must not be closed under a lock, nor by a thread that others wait for:
//! what a subscriber does then is the user's.

mod delivery;
mod site;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use pool_worker::record::{Glimpse, Seen};
use tracing_core::LevelFilter;
use tracing_core::dispatcher::{self, Dispatch};
use tracing_core::span::Id;
use tracing_core::subscriber::NoSubscriber;

use self::delivery::Delivery;
use crate::backend::{LogLevel, LogRecords, LogSource, News, Observer, Outcomes, Sink};
use crate::local::is_of_a_pool;
use crate::sync::{self, lock};

/// So many records, or so many bytes of them, may wait for the subscriber.
const RECORDS_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 16 << 20;

/// A worker has no more callsites and no more open spans than this, as far as is believed.
const CALLSITES_MAX: usize = 8192;
const SPANS_MAX: usize = 1 << 16;

/// So many spans of callers may wait to be closed; more stay open.
const RELEASES_MAX: usize = 1 << 16;

/// A subscriber that does nothing for so long is not waited for; nor is one for so long when a pool is dropped.
const STUCK: Duration = Duration::from_secs(5);
const STUCK_AT_DROP: Duration = Duration::from_millis(500);

/// Where records wait for the subscriber, and the thread that calls it.
pub(crate) struct Logs {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Grows with what was delivered.
    delivered: AtomicU64,
    /// For what belongs to no call: the subscriber of the thread that has built the pool, or has made the first call with one.
    home: OnceLock<Arc<Context>>,
    /// In a forked copy of the process there is no such thread.
    owner: u32,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    records: usize,
    bytes: usize,
    releases: usize,
    /// How many were dropped since the last that was not.
    dropped: u64,
    sources: HashMap<LogSource, Known>,
    /// The thread takes from here, and is at it; or sleeps.
    thread: Option<ThreadId>,
    works: bool,
    sleeps: bool,
    /// The thread ends once there is nothing.
    ended: bool,
}

/// What a worker has said that was not dropped.
#[derive(Default)]
struct Known {
    callsites: usize,
    spans: HashSet<u64>,
}

enum Item {
    Records(Option<Arc<Context>>, LogRecords),
    /// To be closed.
    Release(Dispatch, Id),
}

/// Who listens, and the span of the caller.
pub(super) struct Context {
    dispatch: Dispatch,
    /// It is a subscriber; otherwise there is a logger, perhaps.
    hears: bool,
    span: Option<Id>,
    shared: Weak<Shared>,
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

/// Which records somebody wants to have.
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
                home: OnceLock::new(),
                owner: pool_worker::lineage(),
            }),
            thread: Mutex::default(),
        }
    }

    /// Which records somebody wants to have. If there are any, the calling thread's subscriber gets what belongs to no call.
    pub(crate) fn level(&self) -> LogLevel {
        let level = level();
        if level > LogLevel::Off {
            self.make_home();
            self.start();
        }
        level
    }

    /// The calling thread's subscriber, if there is one, gets what belongs to no call, if nobody does yet.
    fn make_home(&self) {
        if self.shared.home.get().is_none() {
            let context = Context::current(&self.shared, false);
            if context.hears {
                let _ = self.shared.home.set(Arc::new(context));
            }
        }
    }

    /// Gets what belongs to no call. Other news goes on.
    pub(crate) fn observer(&self, next: Option<Arc<dyn Observer>>) -> Option<Arc<dyn Observer>> {
        let shared = Arc::clone(&self.shared);
        Some(Arc::new(Listener { shared, next }))
    }

    /// The sink of a call that this thread makes, for its backend; and which records somebody wants to have.
    #[inline]
    pub(crate) fn listen(&self, sink: Arc<dyn Sink>) -> (Arc<dyn Sink>, LogLevel) {
        match level() {
            LogLevel::Off => (sink, LogLevel::Off),
            level => (self.listening(sink), level),
        }
    }

    #[cold]
    fn listening(&self, sink: Arc<dyn Sink>) -> Arc<dyn Sink> {
        self.make_home();
        self.start();
        Arc::new(Listening {
            sink,
            context: Arc::new(Context::current(&self.shared, true)),
        })
    }

    /// Starts the thread, if there is none. Without one, records are dropped.
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

    /// Waits until all that has come was delivered, unless the subscriber is stuck, or calls this. False: the deadline came first.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        self.wait_while_it_moves(deadline, STUCK)
    }

    fn wait_while_it_moves(&self, deadline: Option<Instant>, stuck: Duration) -> bool {
        let shared = &self.shared;
        if pool_worker::lineage() != shared.owner {
            return true;
        }
        let mut queue = lock(&shared.queue);
        let (mut seen, mut until) = (None, Instant::now());
        while queue.is_busy() && queue.thread != Some(thread::current().id()) {
            let delivered = Some(shared.delivered.load(Ordering::Relaxed));
            let now = Instant::now();
            if mem::replace(&mut seen, delivered) != delivered {
                until = now + stuck;
            } else if now >= until {
                return true;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return false;
            }
            let next = deadline.map_or(until, |deadline| deadline.min(until));
            queue = sync::wait(&shared.changed, queue, Some(next)).0;
        }
        true
    }

    /// Lets the thread end when everything was delivered. That is waited for, if the subscriber is not stuck.
    pub(crate) fn end(&self) {
        if pool_worker::lineage() != self.shared.owner {
            return;
        }
        self.wait_while_it_moves(None, STUCK_AT_DROP);
        let is_through = {
            let mut queue = lock(&self.shared.queue);
            queue.ended = true;
            !queue.is_busy()
        };
        self.shared.changed.notify_all();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && is_through
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

    fn is_full(&self) -> bool {
        self.records >= RECORDS_MAX || self.bytes >= BYTES_MAX
    }

    /// Puts in what there is room for.
    fn push(&mut self, context: Option<Arc<Context>>, mut records: LogRecords) {
        if self.thread.is_none() {
            return;
        }
        if records.ended {
            self.sources.remove(&records.source);
            self.items.push_back(Item::Records(context, records));
            return;
        }
        let is_full = self.is_full();
        let is_over_full = self.bytes >= 2 * BYTES_MAX;
        let known = match self.sources.entry(records.source.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(Known::default()),
        };
        let (mut kept, mut left_out) = (Vec::new(), false);
        for record in each(&records.records) {
            let seen = Glimpse::of(record).map(|glimpse| glimpse.what);
            let keep = match seen {
                Some(Seen::Callsite) => {
                    known.callsites += 1;
                    known.callsites <= CALLSITES_MAX && !is_over_full
                }
                Some(Seen::Span(id)) => {
                    !is_full && known.spans.len() < SPANS_MAX && known.spans.insert(id)
                }
                Some(Seen::Close(id)) => known.spans.remove(&id),
                Some(Seen::Other) => !is_full,
                None => false,
            };
            if keep {
                kept.push(record);
            } else {
                left_out = true;
                // The span was counted when it began.
                let counts = !matches!(seen, None | Some(Seen::Close(_)));
                self.dropped += u64::from(counts);
            }
        }
        self.records += kept.len();
        if left_out {
            let whole = kept.into_iter().flat_map(|record| {
                let len = (record.len() as u32).to_le_bytes();
                len.into_iter().chain(record.iter().copied())
            });
            records.records = whole.collect();
        }
        if !records.records.is_empty() {
            self.bytes += records.records.len();
            self.items.push_back(Item::Records(context, records));
        }
    }
}

/// The records that lie behind each other.
fn each(mut records: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = records.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        records = rest;
        Some(record)
    })
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

    /// The life of the thread.
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
        let mut last = None;
        for item in items {
            match item {
                Item::Release(dispatch, id) => guard(|| {
                    dispatch.try_close(id);
                }),
                Item::Records(context, records) => {
                    let context = context.unwrap_or_else(|| self.home());
                    if records.ended {
                        guard(|| delivery.end_of(&records.source));
                        continue;
                    }
                    let mut source = delivery.source(&records);
                    for record in each(&records.records) {
                        guard(|| source.deliver(&context, record));
                        self.delivered.fetch_add(1, Ordering::Relaxed);
                    }
                    last = Some(context);
                }
            }
        }
        // They came behind what was delivered by now.
        if dropped > 0 {
            let context = last.unwrap_or_else(|| self.home());
            guard(|| delivery::warn_of_dropped(&context, dropped));
        }
    }

    /// Who listens to what belongs to no call.
    fn home(&self) -> Arc<Context> {
        let home = self.home.get().map(Arc::clone);
        home.unwrap_or_else(|| Arc::new(Context::of_thread(Weak::new(), false)))
    }
}

/// What is the user's may panic. Its hook has said what there is to say.
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

    /// The subscriber of this thread, and the span that it is in.
    fn of_thread(shared: Weak<Shared>, with_span: bool) -> Context {
        dispatcher::get_default(|dispatch| {
            let current = with_span.then(|| dispatch.current_span());
            let span = current.as_ref().and_then(|current| current.id());
            Context {
                hears: !dispatch.is::<NoSubscriber>(),
                span: span.map(|id| dispatch.clone_span(id)),
                dispatch: dispatch.clone(),
                shared: Weak::clone(&shared),
            }
        })
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
                if queue.releases < RELEASES_MAX {
                    queue.releases += 1;
                    queue.items.push_back(Item::Release(dispatch, id));
                }
            });
            return;
        }
        guard(|| {
            self.dispatch.try_close(id);
        });
    }
}

/// The sink of a call, and who listens to what its inputs log.
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

/// Gets what belongs to no call.
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
    use super::*;

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
    fn a_full_queue_takes_what_must_not_be_lost() {
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

    #[test]
    fn what_a_worker_makes_up_has_bounds() {
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
        assert!(queue.sources.is_empty());
    }
}
