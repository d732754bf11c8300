//! Carries what the pool of a node tells to the parent: what its workers write, log and do.
//!
//! It is sent in batches, once. So a server that fails may lose some, but nothing comes twice. What an input has told is
//! sent before its outcome, over the same connection, so the parent has it before the outcome, unless the parent is behind.
//!
//! Nothing waits for this. The parent answers each batch; while more than [`UNANSWERED_MAX`] bytes have no answer, or there
//! is no connection, news waits here, and what waits is bounded. Beyond that, the oldest lines, events and spans are dropped
//! and counted ([`Event::Missed`](pool_core::Event::Missed)), and log records as a [`LogSieve`] decides, which are counted
//! too. Only a node that ends waits for a moment, until the parent has the last of it.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State as Connection;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use pool_core::WorkerLine;
use pool_core::backend::{LogRecords, LogSieve, News, Observer, Room};
use tokio::sync::Notify;
use tokio::time;

use crate::clock::Clock;
use crate::wire::{NodeId, Run, ToParent, Told, to_bytes};

/// How long to collect news before it is sent.
const PAUSE: Duration = Duration::from_millis(20);

/// News is combined into messages of about this many bytes, or of a quarter of what the server accepts.
const TOGETHER: usize = 128 << 10;

/// At most this many bytes of lines wait, and this many lines.
const LINES_SIZE_MAX: usize = 1 << 20;
const LINES_MAX: usize = 1 << 14;

/// At most this many events and spans wait.
const EVENTS_MAX: usize = 1 << 14;

/// This many jobs are remembered, which spans may belong to.
const JOBS_MAX: usize = 1 << 12;

/// With this many bytes of log records waiting, others are dropped, but not those that others depend on; with twice as
/// many, those too.
const LOGS_SIZE_MAX: usize = 4 << 20;

/// How many bytes may be on their way without an answer of the parent.
const UNANSWERED_MAX: usize = 1 << 20;

/// Answers that have not come after this time are not waited for: messages are lost when a server is killed.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long the last news waits for the parent at the end of a node.
const LAST_MAX: Duration = Duration::from_secs(1);

/// The news that waits to be sent.
pub(crate) struct Outbox {
    client: Client,
    /// The subject of the parent.
    subject: String,
    /// Where the parent answers.
    inbox: String,
    node: NodeId,
    waiting: Mutex<Waiting>,
    came: Notify,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(client: &Client, run: &Run, node: &NodeId, clock: Clock) -> Outbox {
        Outbox {
            client: client.clone(),
            subject: run.parent(),
            inbox: client.new_inbox(),
            node: node.clone(),
            waiting: Mutex::new(Waiting::new(clock)),
            came: Notify::new(),
        }
    }

    /// The subject where the parent answers.
    pub(crate) fn inbox(&self) -> &str {
        &self.inbox
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's pool was started at this time. Events are sent from now on.
    pub(crate) fn begin(&self, began: Instant) {
        self.lock().began = Some(began);
        self.came.notify_one();
    }

    /// The node's pool has accepted inputs of this job of the parent as a job with this serial number.
    pub(crate) fn accepted(&self, serial: u32, job: u64) {
        self.lock().jobs.insert(serial, job as u32);
    }

    /// Takes another answer to the question what time it is for the parent.
    pub(crate) fn improve_clock(&self, clock: Clock) {
        self.lock().clock.improve(clock);
    }

    /// Takes what an input of this job of the parent has logged.
    pub(crate) fn log(&self, job: u64, records: LogRecords) {
        let records = records.on(&self.node.host);
        self.lock().push_log(Some(job), records);
        self.came.notify_one();
    }

    /// Sends everything that waits, as far as the parent keeps up.
    pub(crate) async fn flush(&self) {
        while self.send().await {}
    }

    /// Sends the last of it. What the parent is too slow for is counted.
    pub(crate) async fn finish(&self) {
        let deadline = Instant::now() + LAST_MAX;
        loop {
            self.flush().await;
            if self.lock().is_empty() {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // An answer may wake the task that sends, instead.
            let _ = time::timeout(left.min(PAUSE), self.came.notified()).await;
        }
        let (number, told) = {
            let mut waiting = self.lock();
            (waiting.window.next(), waiting.give_up())
        };
        if !told.is_empty() && self.client.connection_state() == Connection::Connected {
            self.publish(number, told).await;
        }
    }

    /// Sends one batch. Returns false if there is nothing to send, or it must wait.
    async fn send(&self) -> bool {
        if self.lock().is_empty() || self.client.connection_state() != Connection::Connected {
            return false;
        }
        let most = TOGETHER.min(self.client.server_info().max_payload / 4);
        let (number, told) = {
            let mut waiting = self.lock();
            if waiting.window.is_full(Instant::now()) {
                return false;
            }
            let told = waiting.take(most);
            if told.is_empty() {
                return false;
            }
            (waiting.window.next(), told)
        };
        self.publish(number, told).await;
        true
    }

    async fn publish(&self, number: u64, told: Vec<Told>) {
        let node = self.node.id.clone();
        let message = to_bytes(&ToParent::News { node, number, told });
        self.lock()
            .window
            .sent(number, message.len(), Instant::now());
        let (subject, inbox) = (self.subject.clone(), self.inbox.clone());
        // The server may refuse it, and it is lost then.
        let sent = self
            .client
            .publish_with_reply(subject, inbox, message.into());
        let _ = sent.await;
    }

    /// Sends what comes, for as long as the node lives.
    pub(crate) async fn send_all(self: Arc<Self>) {
        loop {
            if self.lock().is_empty() {
                self.came.notified().await;
            } else {
                // It waits for an answer, which may be lost, or for a connection.
                let _ = time::timeout(ANSWER_MAX, self.came.notified()).await;
            }
            time::sleep(PAUSE).await;
            self.flush().await;
        }
    }

    /// Listens to the answers of the parent, for as long as the node lives.
    pub(crate) async fn listen(self: Arc<Self>, mut answers: Subscriber) {
        while let Some(answer) = answers.next().await {
            if let Ok(number) = answer.payload.as_ref().try_into() {
                self.lock().window.answered(u64::from_le_bytes(number));
                self.came.notify_one();
            }
        }
    }
}

impl Observer for Outbox {
    fn observe(&self, news: Vec<News>) {
        let mut waiting = self.lock();
        for news in news {
            waiting.push(news.on(&self.node.host));
        }
        drop(waiting);
        self.came.notify_one();
    }
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<WorkerLine>,
    /// How many bytes of text they have.
    lines_size: usize,
    /// Events and spans, with the times of the node's pool.
    events: VecDeque<News>,
    /// How many lines, events and spans were dropped since the last batch.
    missed: usize,
    /// How many inputs wait in the node's pool.
    inputs: Option<News>,
    /// When the node's pool was started.
    began: Option<Instant>,
    clock: Clock,
    jobs: Jobs,
    /// What inputs of a job have logged, or others; and the size of that.
    logs: VecDeque<(Option<u64>, LogRecords)>,
    logs_size: usize,
    sieve: LogSieve,
    window: Window,
}

/// What a batch of records takes besides the records.
const EACH_LOG: usize = size_of::<LogRecords>();

impl Waiting {
    fn new(clock: Clock) -> Waiting {
        Waiting {
            lines: VecDeque::new(),
            lines_size: 0,
            events: VecDeque::new(),
            missed: 0,
            inputs: None,
            began: None,
            clock,
            jobs: Jobs::default(),
            logs: VecDeque::new(),
            logs_size: 0,
            sieve: LogSieve::default(),
            window: Window::default(),
        }
    }

    /// Whether there is nothing that can be sent now.
    fn is_empty(&self) -> bool {
        let no_events = self.events.is_empty() && self.inputs.is_none() || self.began.is_none();
        self.lines.is_empty() && no_events && self.logs.is_empty()
    }

    fn push(&mut self, news: News) {
        match news {
            News::Lines(lines) => self.push_lines(lines),
            News::Log(records) => self.push_log(None, records),
            // Only the last number counts.
            News::Waiting { .. } => self.inputs = Some(news),
            news => {
                self.events.push_back(news);
                if self.events.len() > EVENTS_MAX {
                    self.events.pop_front();
                    self.missed += 1;
                }
            }
        }
    }

    fn push_lines(&mut self, lines: WorkerLine) {
        self.lines_size += lines.text.len();
        self.lines.push_back(lines);
        while self.lines_size > LINES_SIZE_MAX || self.lines.len() > LINES_MAX {
            let oldest = self.lines.pop_front();
            self.lines_size -= oldest.as_ref().map_or(0, |lines| lines.text.len());
            self.missed += oldest.map_or(0, |lines| lines.count());
        }
    }

    fn push_log(&mut self, job: Option<u64>, mut records: LogRecords) {
        let room = match self.logs_size {
            size if size < LOGS_SIZE_MAX => Room::Enough,
            size if size < 2 * LOGS_SIZE_MAX => Room::Little,
            _ => Room::None,
        };
        let dropped = self.sieve.pass(&mut records, room);
        if records.size() == 0
            && !records.is_end()
            && let Some((_, last)) = self.logs.back_mut()
        {
            last.note_dropped(dropped);
            return;
        }
        records.note_dropped(dropped);
        self.logs_size += records.size() + EACH_LOG;
        self.logs.push_back((job, records));
    }

    /// Takes away the oldest of each kind: about so many bytes.
    fn take(&mut self, most: usize) -> Vec<Told> {
        let (mut told, mut size) = (Vec::new(), 0);
        if self.missed > 0 {
            told.push(Told::News(News::missed(std::mem::take(&mut self.missed))));
        }
        while size < most
            && let Some(lines) = self.lines.pop_front()
        {
            // The rest of a line is at least as long as an empty one.
            size += lines.text.len() + size_of::<WorkerLine>();
            self.lines_size -= lines.text.len();
            told.push(Told::News(News::Lines(lines)));
        }
        if let Some(began) = self.began {
            while size < most
                && let Some(event) = self.events.pop_front().or_else(|| self.inputs.take())
            {
                size += size_of::<News>();
                told.push(Told::News(self.convert(event, began)));
            }
        }
        while size < most
            && let Some((job, front)) = self.logs.front_mut()
        {
            let (job, records) = (*job, front.take_front(most - size));
            size += records.size() + EACH_LOG;
            self.logs_size -= records.size();
            if front.size() == 0 {
                self.logs_size -= EACH_LOG;
                self.logs.pop_front();
            }
            told.push(match job {
                Some(job) => Told::Log { job, records },
                None => Told::News(News::Log(records)),
            });
        }
        told
    }

    /// Drops everything, and returns how much that was.
    fn give_up(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        let lines = self.lines.drain(..).map(|lines| lines.count());
        self.missed += lines.sum::<usize>() + self.events.drain(..).count();
        (self.lines_size, self.inputs) = (0, None);
        if self.missed > 0 {
            told.push(Told::News(News::missed(std::mem::take(&mut self.missed))));
        }
        let (mut dropped, mut last) = (0, None);
        for (job, mut records) in self.logs.drain(..) {
            // The parent adds the ends itself. This sieve is new, so nothing passes it.
            if !records.is_end() {
                dropped += LogSieve::default().pass(&mut records, Room::None);
                last = Some((job, records));
            }
        }
        self.logs_size = 0;
        if let Some((job, mut records)) = last {
            records.note_dropped(dropped);
            told.push(match job {
                Some(job) => Told::Log { job, records },
                None => Told::News(News::Log(records)),
            });
        }
        told
    }
}

impl Waiting {
    /// Gives news the times and the jobs of the parent.
    fn convert(&self, news: News, began: Instant) -> News {
        let mut news = news.map_times(|time| self.clock.convert(began + time));
        if let News::Span(span) = &mut news
            && let Some(job) = self.jobs.get(span.job)
        {
            span.job = job;
        }
        news
    }
}

/// The parent's jobs, by the serial numbers of those of the node's pool. The oldest are forgotten.
#[derive(Debug, Default)]
struct Jobs {
    known: HashMap<u32, u32>,
    order: VecDeque<u32>,
}

impl Jobs {
    fn insert(&mut self, serial: u32, job: u32) {
        self.known.insert(serial, job);
        self.order.push_back(serial);
        if self.order.len() > JOBS_MAX {
            let oldest = self.order.pop_front();
            oldest.map(|serial| self.known.remove(&serial));
        }
    }

    fn get(&self, serial: u32) -> Option<u32> {
        self.known.get(&serial).copied()
    }
}

/// The messages that were sent and have no answer.
#[derive(Debug, Default)]
struct Window {
    sent: u64,
    /// Their numbers and sizes.
    open: VecDeque<(u64, usize)>,
    size: usize,
    /// When the last was sent or answered.
    moved: Option<Instant>,
}

impl Window {
    /// Returns the number of the next message.
    fn next(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    fn sent(&mut self, number: u64, size: usize, now: Instant) {
        self.open.push_back((number, size));
        self.size += size;
        self.moved = Some(now);
    }

    /// The parent has this message, and with it those before.
    fn answered(&mut self, number: u64) {
        while let Some((first, size)) = self.open.front()
            && *first <= number
        {
            self.size -= size;
            self.open.pop_front();
        }
        self.moved = Some(Instant::now());
    }

    /// Whether no more may be sent for now. Forgets messages that have not been answered for too long.
    fn is_full(&mut self, now: Instant) -> bool {
        let is_late = |moved: Instant| now.saturating_duration_since(moved) >= ANSWER_MAX;
        if self.moved.is_some_and(is_late) {
            self.open.clear();
            self.size = 0;
        }
        self.size >= UNANSWERED_MAX
    }
}

#[cfg(test)]
mod tests {
    use pool_core::Stream;
    use pool_core::backend::Span;

    use super::*;
    use crate::wire::from_bytes;

    /// The records of a worker: so many, of ten bytes each.
    fn records(count: usize) -> LogRecords {
        let source = (0_usize, 1_u32, None::<String>, 2_u64);
        let each = [6_u8, 0, 0, 0, 1, 2, 3, 4, 5, 6];
        let bytes = each.repeat(count);
        let input = (None::<u32>, None::<usize>);
        let sent = to_bytes(&(source, input.0, input.1, false, bytes, 0_u64));
        from_bytes(&sent).expect("they are made like this")
    }

    fn line(text: &str) -> News {
        News::lines(0, 1, None, None, Stream::Stdout, text)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn span(first: usize, job: u32, began: u64) -> News {
        let (began, ended) = (ms(began), ms(began + 1));
        let mut span = Span::new(0, 1, "task", job, began, ended);
        span.first = Some(first);
        News::Span(span)
    }

    /// The parent's pool is older by 100 ms.
    fn waiting() -> Waiting {
        let now = Instant::now();
        Waiting {
            began: Some(now),
            ..Waiting::new(Clock::new(now, now, ms(100)))
        }
    }

    #[test]
    fn what_waits_is_bounded_and_what_was_missed_is_told() {
        let mut waiting = waiting();
        for number in 0..EVENTS_MAX + 3 {
            waiting.push(span(number, 5, 0));
        }
        for number in 0..LINES_MAX + 1 {
            waiting.push(line(&number.to_string()));
        }
        let told = waiting.take(usize::MAX);
        assert!(waiting.is_empty() && waiting.lines_size == 0);
        let told: Vec<News> = told
            .into_iter()
            .map(|told| match told {
                Told::News(news) => news,
                Told::Log { .. } => panic!("nothing was logged"),
            })
            .collect();
        let (missed, told) = told.split_at(1);
        let (lines, events) = told.split_at(LINES_MAX);
        assert_eq!(missed[0], News::missed(1 + 3));
        assert_eq!(lines[0], line("1"));
        assert_eq!(events[0], span(3, 5, 100));
        assert_eq!(events.len(), EVENTS_MAX);
        let long = "x".repeat(LINES_SIZE_MAX / 2 + 1);
        waiting.push(line(&long));
        waiting.push(line(&long));
        // One is left, behind the number of those that are not.
        assert_eq!(waiting.take(usize::MAX).len(), 2);
        // Each of several lines counts.
        waiting.push(line("one\ntwo"));
        for _ in 0..LINES_MAX {
            waiting.push(line(""));
        }
        let told = waiting.take(usize::MAX);
        assert!(matches!(&told[0], Told::News(news) if *news == News::missed(2)));
    }

    #[test]
    fn events_get_the_times_and_jobs_of_the_parent() {
        let mut waiting = waiting();
        let began = waiting.began.take();
        waiting.push(span(0, 5, 10));
        // As long as the start of the node's pool is not known, they wait.
        assert!(waiting.is_empty() && waiting.take(usize::MAX).is_empty());
        waiting.began = began;
        waiting.jobs.insert(5, 77);
        let waits = |at, inputs| News::Waiting { at: ms(at), inputs };
        waiting.push(waits(1, 3));
        waiting.push(waits(2, 4));
        let told = waiting.take(usize::MAX).into_iter();
        let told = told.map(|told| match told {
            Told::News(news) => news,
            Told::Log { .. } => panic!("nothing was logged"),
        });
        let told: Vec<News> = told.collect();
        assert_eq!(told, [span(0, 77, 110), waits(102, 4)]);
        for serial in 0..JOBS_MAX as u32 {
            waiting.jobs.insert(100 + serial, serial);
        }
        assert_eq!(
            (waiting.jobs.get(5), waiting.jobs.get(100)),
            (None, Some(0))
        );
        assert_eq!(waiting.jobs.known.len(), JOBS_MAX);
    }

    #[test]
    fn records_are_sent_in_order_and_in_pieces() {
        let mut waiting = waiting();
        waiting.push_log(None, records(1));
        waiting.push_log(Some(7), records(4));
        waiting.push(News::Log(records(1).end()));
        let mut sizes = Vec::new();
        while !waiting.is_empty() {
            let taken = waiting.take(EACH_LOG + 25);
            assert!(!taken.is_empty());
            for told in taken {
                sizes.push(match told {
                    Told::Log { job, records } => (Some(job), records.size()),
                    Told::News(News::Log(records)) => {
                        assert_eq!(records.is_end(), waiting.is_empty());
                        (None, records.size())
                    }
                    Told::News(other) => panic!("{other:?}"),
                });
            }
        }
        let expected = [(None, 10), (Some(7), 10), (Some(7), 30), (None, 0)];
        assert_eq!(sizes, expected);
        assert_eq!(waiting.logs_size, 0);
    }

    #[test]
    fn what_is_dropped_at_the_end_is_counted() {
        let mut waiting = waiting();
        waiting.missed = 4;
        waiting.push(line("one\ntwo"));
        waiting.push(span(0, 5, 0));
        waiting.push(News::Waiting {
            at: ms(1),
            inputs: 3,
        });
        waiting.push_log(Some(7), records(4));
        waiting.push_log(None, records(1));
        waiting.push(News::Log(records(1).end()));
        let told = waiting.give_up();
        assert!(waiting.is_empty() && waiting.give_up().is_empty());
        assert_eq!((waiting.lines_size, waiting.logs_size), (0, 0));
        let [Told::News(missed), Told::News(News::Log(records))] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(*missed, News::missed(4 + 2 + 1));
        // The parent adds the end. (Without the feature `tracing`, the sieve does nothing.)
        assert!(!records.is_end());
    }

    #[test]
    fn without_answers_nothing_is_sent_for_a_while() {
        let mut window = Window::default();
        let now = Instant::now();
        let mut numbers = Vec::new();
        while !window.is_full(now) {
            numbers.push(window.next());
            window.sent(window.sent, UNANSWERED_MAX / 4, now);
        }
        assert_eq!(numbers, [1, 2, 3, 4]);
        // An answer says that the earlier ones have come, too.
        window.answered(2);
        assert!(!window.is_full(now));
        window.answered(1);
        assert_eq!(window.size, UNANSWERED_MAX / 2);
        let number = window.next();
        window.sent(number, UNANSWERED_MAX, now);
        assert!(window.is_full(now + ANSWER_MAX / 2));
        assert!(!window.is_full(now + ANSWER_MAX));
        assert_eq!(window.size, 0);
    }
}
