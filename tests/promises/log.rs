//! What tasks log reaches the subscriber of the caller.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use pool_core::{Error, Sandbox, pool_task};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, with_default};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;

use crate::support::{Gate, builder, checked, host, pool, pool_with, square, stand, watchdog};

/// Keeps everything.
#[derive(Clone)]
struct Keep {
    level: Level,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    events: Vec<Logged>,
    spans: Vec<Logged>,
    /// By the number of the span, from 1: how many handles it has.
    handles: Vec<usize>,
    /// The spans that threads are in.
    entered: Vec<(thread::ThreadId, u64)>,
}

#[derive(Debug, Clone, Default)]
struct Logged {
    metadata: Option<&'static Metadata<'static>>,
    name: &'static str,
    target: String,
    level: Option<Level>,
    file: Option<String>,
    line: Option<u32>,
    fields: BTreeMap<&'static str, String>,
    /// The number of the span around it.
    parent: Option<u64>,
}

impl Logged {
    fn of(metadata: &'static Metadata<'static>, parent: Option<u64>) -> Logged {
        Logged {
            metadata: Some(metadata),
            name: metadata.name(),
            target: metadata.target().to_owned(),
            level: Some(*metadata.level()),
            file: metadata.file().map(str::to_owned),
            line: metadata.line(),
            fields: BTreeMap::new(),
            parent,
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    fn message(&self) -> &str {
        self.field("message").unwrap_or_default()
    }
}

impl Visit for Logged {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let cause = value.source().map(|cause| format!(": {cause}"));
        let text = format!("{value}{}", cause.unwrap_or_default());
        self.fields.insert(field.name(), text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

impl Keep {
    fn new(level: Level) -> Keep {
        let kept = Arc::default();
        Keep { level, kept }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("nobody panics")
    }

    /// All events, in order.
    fn events(&self) -> Vec<Logged> {
        self.kept().events.clone()
    }

    fn messages(&self) -> Vec<String> {
        let events = self.events();
        events
            .iter()
            .map(|event| event.message().to_owned())
            .collect()
    }

    /// The names of the spans around it, from the inside.
    fn around(&self, logged: &Logged) -> Vec<&'static str> {
        let kept = self.kept();
        let mut names = Vec::new();
        let mut next = logged.parent;
        while let Some(id) = next {
            let span = &kept.spans[id as usize - 1];
            names.push(span.name);
            next = span.parent;
        }
        names
    }

    fn span(&self, name: &str) -> Logged {
        let kept = self.kept();
        let mut spans = kept.spans.iter();
        spans
            .find(|span| span.name == name)
            .expect("it is here")
            .clone()
    }

    /// How many spans are open.
    fn open(&self) -> usize {
        let kept = self.kept();
        kept.handles.iter().filter(|handles| **handles > 0).count()
    }
}

impl Subscriber for Keep {
    // What other tests do in this process is none of ours.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target() != "hidden"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let current = self.current_span();
        let contextual = current.id().filter(|_| span.is_contextual());
        let parent = span.parent().or(contextual).map(Id::into_u64);
        let mut logged = Logged::of(span.metadata(), parent);
        span.record(&mut logged);
        let mut kept = self.kept();
        kept.spans.push(logged);
        kept.handles.push(1);
        if let Some(parent) = parent {
            assert!(
                kept.handles[parent as usize - 1] > 0,
                "the span around it is over"
            );
        }
        Id::from_u64(kept.spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let at = span.into_u64() as usize - 1;
        let mut logged = self.kept().spans[at].clone();
        values.record(&mut logged);
        self.kept().spans[at] = logged;
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        let from = self.kept().spans[follows.into_u64() as usize - 1].name;
        let at = span.into_u64() as usize - 1;
        self.kept().spans[at]
            .fields
            .insert("follows", from.to_owned());
    }

    fn event(&self, event: &Event<'_>) {
        let current = self.current_span();
        let contextual = current.id().filter(|_| event.is_contextual());
        let parent = event.parent().or(contextual).map(Id::into_u64);
        let mut logged = Logged::of(event.metadata(), parent);
        event.record(&mut logged);
        let mut kept = self.kept();
        if let Some(parent) = parent {
            assert!(kept.handles[parent as usize - 1] > 0, "its span is over");
        }
        kept.events.push(logged);
    }

    fn enter(&self, span: &Id) {
        let here = thread::current().id();
        self.kept().entered.push((here, span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        let left = (thread::current().id(), span.into_u64());
        let mut kept = self.kept();
        let at = kept.entered.iter().rposition(|entered| *entered == left);
        kept.entered.remove(at.expect("it was entered"));
    }

    fn clone_span(&self, span: &Id) -> Id {
        let handles = &mut self.kept().handles[span.into_u64() as usize - 1];
        assert!(*handles > 0, "it is over");
        *handles += 1;
        span.clone()
    }

    fn try_close(&self, span: Id) -> bool {
        let handles = &mut self.kept().handles[span.into_u64() as usize - 1];
        *handles = handles.checked_sub(1).expect("it is not over");
        *handles == 0
    }

    fn current_span(&self) -> Current {
        let here = thread::current().id();
        let kept = self.kept();
        let mut entered = kept.entered.iter().rev();
        match entered.find(|(thread, _)| *thread == here) {
            Some((_, id)) => {
                let metadata = kept.spans[*id as usize - 1].metadata;
                let metadata = metadata.expect("it has some");
                Current::new(Id::from_u64(*id), metadata)
            }
            None => Current::none(),
        }
    }
}

#[derive(Debug)]
struct Outer(std::num::ParseIntError);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outer")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[pool_task]
fn say(number: u64) -> u32 {
    tracing::info!(target: "said", number, half = 0.5, yes = true, minus = -1_i64, text = "a b", list = ?[1, 2], "it is {number}");
    std::process::id()
}

#[pool_task]
fn say_error() {
    let error = Outer("x".parse::<i32>().expect_err("it is no number"));
    tracing::error!(
        error = &error as &dyn std::error::Error,
        big = u128::MAX,
        "failed"
    );
}

#[test]
fn events_of_tasks_have_their_fields_and_where_they_come_from() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::INFO);
    let pool = pool(1);
    let pid = with_default(keep.clone(), || {
        let pids = pool.map(say, 5..8)?;
        pool.apply(say_error, ())?;
        Ok::<_, Error>(pids[0])
    })?;
    pool.flush();
    let events = keep.events();
    assert_eq!(keep.messages(), ["it is 5", "it is 6", "it is 7", "failed"]);
    for (index, event) in events[..3].iter().enumerate() {
        let number = (index + 5).to_string();
        assert_eq!(event.field("number"), Some(&*number));
        assert_eq!(event.field("half"), Some("0.5"));
        assert_eq!(event.field("yes"), Some("true"));
        assert_eq!(event.field("minus"), Some("-1"));
        assert_eq!(event.field("text"), Some("a b"));
        assert_eq!(event.field("list"), Some("[1, 2]"));
        assert_eq!(event.field("worker"), Some("0"));
        assert_eq!(event.field("pid"), Some(&*pid.to_string()));
        assert_eq!(event.field("host"), host().as_deref());
        assert_eq!(event.field("input"), Some(&*index.to_string()));
        assert_eq!(event.field("task"), Some(<say as pool_core::Task>::NAME));
        assert_eq!((&*event.target, event.level), ("said", Some(Level::INFO)));
        assert!(
            event
                .file
                .as_deref()
                .is_some_and(|file| file.ends_with("log.rs"))
        );
        assert!(event.line.is_some());
        assert_eq!(event.parent, None);
    }
    let failed = &events[3];
    assert_eq!(
        failed.field("error"),
        Some("outer: invalid digit found in string")
    );
    assert_eq!(failed.field("big"), Some(&*u128::MAX.to_string()));
    assert_eq!(failed.field("input"), None);
    Ok(())
}

#[pool_task]
#[tracing::instrument(name = "work")]
fn nested(x: u64) -> u64 {
    tracing::info!("outside");
    let inner = tracing::info_span!("inner", late = tracing::field::Empty);
    inner.in_scope(|| {
        tracing::info!("inside");
        tracing::info!(parent: None, "apart");
    });
    inner.record("late", 7);
    let next = tracing::info_span!(parent: None, "next");
    next.follows_from(&inner);
    x
}

#[test]
fn spans_of_tasks_are_in_that_of_the_caller() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::INFO);
    let pool = pool(1);
    let later = with_default(keep.clone(), || {
        tracing::info_span!("caller").in_scope(|| {
            pool.apply(nested, (1,))?;
            // The caller's span is left before the task runs.
            Ok::<_, Error>(pool.apply_async(nested, (2,)))
        })
    })?;
    assert_eq!(later.get()?, 2);
    pool.close();
    pool.join()?;
    let events = keep.events();
    assert_eq!(keep.messages(), ["outside", "inside", "apart"].repeat(2));
    assert_eq!(keep.around(&events[0]), ["work", "caller"]);
    assert_eq!(keep.around(&events[1]), ["inner", "work", "caller"]);
    assert_eq!(keep.around(&events[2]), ["caller"]);
    assert_eq!(keep.around(&events[4]), ["inner", "work", "caller"]);
    let work = keep.span("work");
    assert_eq!(work.field("x"), Some("1"));
    assert_eq!(work.field("worker"), Some("0"));
    assert_eq!(work.field("task"), Some(<nested as pool_core::Task>::NAME));
    assert_eq!(keep.span("inner").field("late"), Some("7"));
    assert_eq!(keep.span("next").field("follows"), Some("inner"));
    assert_eq!(keep.around(&keep.span("next")), ["caller"]);
    assert_eq!(keep.open(), 0);
    Ok(())
}

/// Which levels were wanted in the worker; and it says something of each.
#[pool_task]
fn levels() -> Vec<bool> {
    tracing::error!("1");
    tracing::warn!("2");
    tracing::info!("3");
    tracing::debug!("4");
    tracing::trace!("5");
    tracing::error!(target: "hidden", "6");
    vec![
        tracing::enabled!(Level::WARN),
        tracing::enabled!(Level::TRACE),
        log::log_enabled!(log::Level::Warn),
        log::log_enabled!(log::Level::Trace),
    ]
}

/// In a process of its own, for other tests want to have other levels.
#[test]
fn workers_filter_by_the_level_of_the_caller() {
    let _dog = watchdog();
    in_own_process("log::workers_filter_by_the_level_of_the_caller", || {
        let keep = Keep::new(Level::WARN);
        let filtered = LevelOnly(keep.clone());
        let pool = pool(1);
        // Nobody listens.
        assert_eq!(pool.apply(levels, ()).expect("it runs"), [false; 4]);
        let wanted = with_default(filtered, || pool.apply(levels, ()));
        assert_eq!(wanted.expect("it runs"), [true, false, true, false]);
        pool.close();
        pool.join().expect("it was closed");
        assert_eq!(keep.messages(), ["1", "2"]);
    });
}

/// Says what its level is.
struct LevelOnly(Keep);

impl Subscriber for LevelOnly {
    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.0.level.into())
    }
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.0.new_span(span)
    }
    fn record(&self, span: &Id, values: &Record<'_>) {
        self.0.record(span, values);
    }
    fn record_follows_from(&self, span: &Id, follows: &Id) {
        self.0.record_follows_from(span, follows);
    }
    fn event(&self, event: &Event<'_>) {
        self.0.event(event);
    }
    fn enter(&self, span: &Id) {
        self.0.enter(span);
    }
    fn exit(&self, span: &Id) {
        self.0.exit(span);
    }
}

#[pool_task]
fn say_by_log(number: u64) {
    log::warn!(target: "old", "it was {number}");
}

#[test]
fn records_of_log_are_events() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::INFO);
    let pool = pool(1);
    with_default(keep.clone(), || {
        tracing::info_span!("caller").in_scope(|| pool.map(say_by_log, [4, 5]))
    })?;
    pool.close();
    pool.join()?;
    let events = keep.events();
    assert_eq!(keep.messages(), ["it was 4", "it was 5"]);
    let event = &events[1];
    assert_eq!((&*event.target, event.level), ("old", Some(Level::WARN)));
    assert_eq!(event.field("input"), Some("1"));
    assert_eq!(keep.around(event), ["caller"]);
    assert!(
        event
            .file
            .as_deref()
            .is_some_and(|file| file.ends_with("log.rs"))
    );
    Ok(())
}

#[pool_task]
fn say_and_crash(number: u64) {
    let span = tracing::info_span!("last");
    let _entered = span.enter();
    for _ in 0..100 {
        tracing::info!(number, "about to crash");
    }
    std::process::abort();
}

#[test]
fn what_was_logged_before_a_crash_arrives() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::INFO);
    let pool = pool(2);
    let lost = with_default(keep.clone(), || pool.task(say_and_crash).map_results(0..10));
    assert!(
        lost.iter()
            .all(|lost| matches!(lost, Err(Error::WorkerLost(_))))
    );
    pool.close();
    pool.join()?;
    let events = keep.events();
    for input in 0..10 {
        let input = input.to_string();
        let mut of_it = events
            .iter()
            .filter(|event| event.field("input") == Some(&input));
        assert!(
            of_it
                .clone()
                .all(|event| event.field("number") == Some(&input))
        );
        assert!(of_it.by_ref().all(|event| keep.around(event) == ["last"]));
        let count = events
            .iter()
            .filter(|event| event.field("input") == Some(&input));
        assert_eq!(count.count(), 100);
    }
    // Their spans ended with them.
    assert_eq!(keep.open(), 0);
    Ok(())
}

/// A subscriber of the worker's own.
struct Own;

static OWN: AtomicUsize = AtomicUsize::new(0);

impl Subscriber for Own {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {
        OWN.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[pool_task]
fn install_own() {
    tracing::subscriber::set_global_default(Own).expect("there is none");
}

#[pool_task]
fn count_own() -> usize {
    let before = OWN.load(Ordering::Relaxed);
    tracing::error!("for its own");
    log::error!("for nobody");
    OWN.load(Ordering::Relaxed) - before
}

#[test]
fn a_worker_that_has_its_own_subscriber_keeps_it() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::TRACE);
    let counted = with_default(keep.clone(), || {
        let pool = checked(builder().processes(1).initializer(install_own, ()).build());
        let counted = pool.apply(count_own, ())?;
        pool.close();
        pool.join()?;
        Ok::<_, Error>(counted)
    })?;
    assert_eq!(counted, 1);
    assert_eq!(keep.messages(), Vec::<String>::new());
    Ok(())
}

#[pool_task]
fn begin() {
    tracing::info_span!("beginning").in_scope(|| tracing::info!("begins"));
}

#[pool_task]
fn finish() {
    tracing::info!("finishes");
}

#[pool_task]
fn finish_by_log() {
    log::info!("has finished");
}

#[test]
fn initializers_and_finalizers_are_heard() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::INFO);
    with_default(keep.clone(), || {
        let settings = builder().processes(1).initializer(begin, ());
        let settings = settings.finalizer(finish, ()).finalizer(finish_by_log, ());
        let pool = checked(settings.build());
        pool.apply(square, (3,))?;
        pool.close();
        pool.join()
    })?;
    assert_eq!(keep.messages(), ["begins", "finishes", "has finished"]);
    let events = keep.events();
    assert!(
        events
            .iter()
            .all(|event| event.field("worker") == Some("0"))
    );
    assert!(events.iter().all(|event| event.field("task").is_none()));
    assert_eq!(keep.around(&events[0]), ["beginning"]);
    assert_eq!(keep.open(), 0);
    Ok(())
}

#[pool_task]
fn leave_thread(records: usize) {
    thread::spawn(move || {
        for number in 0..records {
            tracing::info!(number, "from a thread {:1000}", "");
        }
        tracing::info!("the thread is through");
    });
}

/// More than the ring holds, from a worker that has nothing to do: it is heard nevertheless, and at once.
#[test]
fn threads_of_idle_workers_are_heard() -> Result<(), Error> {
    let _dog = watchdog();
    let waits = Waits::new("the thread is through");
    let pool = pool_with(Sandbox::threads, 1);
    with_default(waits.clone(), || pool.apply(leave_thread, (1000,)))?;
    waits.wait();
    assert_eq!(waits.0.keep.events().len(), 1001);
    Ok(())
}

/// Tells when it gets something.
#[derive(Clone)]
struct Waits(Arc<Awaited>);

struct Awaited {
    keep: Keep,
    text: &'static str,
    come: Mutex<bool>,
    changed: Condvar,
}

impl Waits {
    fn new(text: &'static str) -> Waits {
        Waits(Arc::new(Awaited {
            keep: Keep::new(Level::INFO),
            text,
            come: Mutex::new(false),
            changed: Condvar::new(),
        }))
    }

    fn wait(&self) {
        let come = self.0.come.lock().expect("nobody panics");
        let come = self.0.changed.wait_while(come, |come| !*come);
        drop(come.expect("nobody panics"));
    }
}

impl Subscriber for Waits {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.keep.enabled(metadata)
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.0.keep.new_span(span)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        self.0.keep.event(event);
        let events = self.0.keep.events();
        if events
            .last()
            .is_some_and(|last| last.message() == self.0.text)
        {
            *self.0.come.lock().expect("nobody panics") = true;
            self.0.changed.notify_all();
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Takes nothing until it may.
struct Slow {
    keep: Keep,
    may: Arc<(Mutex<bool>, Condvar)>,
}

impl Subscriber for Slow {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.keep.enabled(metadata)
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.keep.new_span(span)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let (may, changed) = &*self.may;
        let may = may.lock().expect("nobody panics");
        drop(changed.wait_while(may, |may| !*may).expect("nobody panics"));
        self.keep.event(event);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[pool_task]
fn say_much(_: u64) {
    for _ in 0..1000 {
        tracing::info!("much");
    }
}

/// The subscriber takes nothing before all has run; then it gets what there was room for, and how much there was not.
#[test]
fn no_task_waits_for_a_slow_subscriber() -> Result<(), Error> {
    let _dog = watchdog();
    let keep = Keep::new(Level::INFO);
    let may: Arc<(Mutex<bool>, Condvar)> = Arc::default();
    let slow = Slow {
        keep: keep.clone(),
        may: Arc::clone(&may),
    };
    let pool = pool(2);
    with_default(slow, || pool.map(say_much, 0..150))?;
    *may.0.lock().expect("nobody panics") = true;
    may.1.notify_all();
    pool.close();
    pool.join()?;
    let events = keep.events();
    let dropped = events.iter().filter(|event| event.target == "pool_core");
    let dropped: usize = dropped
        .map(|event| {
            assert_eq!(event.level, Some(Level::WARN));
            let count = event.field("dropped").and_then(|count| count.parse().ok());
            count.unwrap_or(0_usize)
        })
        .sum();
    let much = events
        .iter()
        .filter(|event| event.message() == "much")
        .count();
    assert_eq!(much + dropped, 150_000);
    assert!(dropped > 0 && much >= 1 << 16);
    Ok(())
}

#[pool_task]
fn say_at(gate: &std::path::Path) {
    tracing::info!("waits");
    stand(gate, 0);
}

/// What a task logs while it runs is there while it runs.
#[test]
fn what_a_task_that_hangs_has_logged_is_there() -> Result<(), Error> {
    let _dog = watchdog();
    let waits = Waits::new("waits");
    let gate = Gate::new();
    let pool = pool(1);
    let result = with_default(waits.clone(), || pool.apply_async(say_at, (gate.path(),)));
    waits.wait();
    gate.let_through(1);
    result.get()
}

#[test]
fn where_nobody_listens_nothing_is_installed() {
    let _dog = watchdog();
    in_own_process("log::where_nobody_listens_nothing_is_installed", || {
        let pool = checked(builder().processes(1).initializer(begin, ()).build());
        let found = pool.map(installed, 0..3).expect("it runs");
        assert_eq!(found, vec![(false, "OFF".to_owned()); 3]);
    });
}

/// Whether anything is installed, and what.
#[pool_task]
fn installed(_: u64) -> (bool, String) {
    let level = log::max_level().to_string();
    (tracing::dispatcher::has_been_set(), level)
}

/// The logger of a program without a subscriber.
struct Logger(Mutex<Vec<(String, String)>>);

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let mut kept = self.0.lock().expect("nobody panics");
        kept.push((record.target().to_owned(), record.args().to_string()));
    }
    fn flush(&self) {}
}

static LOGGER: Logger = Logger(Mutex::new(Vec::new()));

#[pool_task]
fn say_both(number: u64) -> u32 {
    tracing::info!(target: "new", number, text = "a b", "by tracing");
    log::info!(target: "old", "by log");
    log::debug!(target: "old", "of no use");
    std::process::id()
}

#[test]
fn without_a_subscriber_the_logger_gets_it() {
    let _dog = watchdog();
    in_own_process("log::without_a_subscriber_the_logger_gets_it", || {
        log::set_logger(&LOGGER).expect("there is none");
        log::set_max_level(log::LevelFilter::Info);
        let pool = pool(1);
        let pid = pool.map(say_both, [7]).expect("it runs")[0];
        pool.close();
        pool.join().expect("it was closed");
        let host = host().map(|host| format!(" host={host:?}"));
        let host = host.unwrap_or_default();
        let from = format!(
            "worker=0 pid={pid}{host} task=\"{}\" input=0",
            <say_both as pool_core::Task>::NAME
        );
        let kept = LOGGER.0.lock().expect("nobody panics").clone();
        let by_tracing = format!("by tracing number=7 text=\"a b\" {from}");
        let expected = [("new", by_tracing), ("old", format!("by log {from}"))];
        assert_eq!(
            kept,
            expected.map(|(target, text)| (target.to_owned(), text))
        );
    });
}

/// Runs a test, of this name, in a process of its own: what is installed for a process is not for other tests.
fn in_own_process(name: &str, test: impl FnOnce()) {
    const ALONE: &str = "POOL_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let this = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(this)
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("it can be started again");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
