//! Sends to the pool what tasks log: spans and events of `tracing`, and records of `log`.
//!
//! Nothing is installed as long as the parent does not want log records, nor in a process that has a subscriber or a logger
//! of its own. Initializers run before anything is installed, since they may install something themselves: while they run,
//! `tracing` has a subscriber for their thread only.
//!
//! A record stands in the ring when the call that made it returns, so it arrives, whatever happens to the worker. If the ring
//! is full, the thread waits until the parent has read from it, which never depends on the subscriber in the parent.
//!
//! A thread that is interrupted by a signal while it holds our lock must not try to take it again, so what a signal handler
//! logs then is dropped. A forked copy of the worker writes nothing.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_core::callsite::{self, Identifier};
use tracing_core::dispatcher::{self, Dispatch};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Current, Id, Record};
use tracing_core::subscriber::{Interest, NoSubscriber, Subscriber};
use tracing_core::{Event, LevelFilter, Metadata};

use crate::level::LogLevel;
use crate::lineage::lineage;
use crate::record::{Callsite, FIELDS_MAX, Value, Writer};
use crate::report;
use crate::ring::Replies;

thread_local! {
    /// Whether this is the thread that runs inputs.
    static RUNS_INPUTS: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread holds, or is about to take, the lock of [`Known`].
    static LOCKED: Cell<bool> = const { Cell::new(false) };
    /// The spans that this thread is in.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static WRITER: Cell<Option<Writer>> = const { Cell::new(None) };
    /// The [`place`] of the last event.
    static LAST: Cell<(usize, u32)> = const { Cell::new((0, 0)) };
}

/// Sends the records of this process.
struct Reporter {
    replies: Replies,
    /// The [`lineage`] of the worker: a forked copy must not send anything.
    owner: u32,
    /// The level that the parent wants, as it was last read.
    level: AtomicU32,
    next_span: AtomicU64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The numbers of the callsites that were described to the parent.
    callsites: HashMap<Identifier, u32>,
    spans: HashMap<u64, Open>,
}

/// A span that has not ended.
struct Open {
    handles: usize,
    metadata: &'static Metadata<'static>,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Follows the level that the parent wants, in the thread that runs inputs.
pub(crate) struct Logs {
    replies: Replies,
    seen: LogLevel,
    state: State,
}

enum State {
    /// The parent has not wanted records yet.
    Nothing,
    /// There is a subscriber that only initializers use.
    Scoped(Dispatch),
    Installed,
    /// This process has a subscriber of its own.
    Foreign,
}

impl Logs {
    pub(crate) fn new(replies: &Replies) -> Logs {
        RUNS_INPUTS.set(true);
        Logs {
            replies: replies.clone(),
            seen: LogLevel::Off,
            state: State::Nothing,
        }
    }

    /// Runs an initializer, which may install a subscriber of its own.
    pub(crate) fn within<R>(&mut self, run: impl FnOnce() -> R) -> R {
        if self.look() {
            self.change();
        }
        if has_own() {
            self.state = State::Foreign;
        }
        match &self.state {
            State::Scoped(dispatch) => dispatcher::with_default(dispatch, run),
            _ => run(),
        }
    }

    /// To be called when the initializers have finished.
    pub(crate) fn begin(&mut self) {
        if self.look() {
            self.change();
        }
        self.install();
    }

    /// Reads the level that the parent wants. To be called between inputs.
    #[inline]
    pub(crate) fn follow(&mut self) {
        if self.look() {
            self.change();
            self.install();
        }
    }

    #[inline]
    fn look(&mut self) -> bool {
        let level = self.replies.log_level();
        let changed = level != self.seen;
        self.seen = level;
        changed
    }

    #[cold]
    fn change(&mut self) {
        if matches!(self.state, State::Foreign) {
            return;
        }
        let reporter = REPORTER.get_or_init(|| {
            // Threads of tasks may log from now on.
            self.replies.share();
            Reporter {
                replies: self.replies.clone(),
                owner: lineage(),
                level: AtomicU32::new(0),
                next_span: AtomicU64::new(1),
                known: Mutex::default(),
            }
        });
        reporter.level.store(self.seen as u32, Ordering::Relaxed);
        match &self.state {
            State::Nothing => self.state = State::Scoped(Dispatch::new(ToPool(reporter))),
            // If there is only one subscriber, `tracing` asks the one of this thread.
            State::Scoped(dispatch) => {
                dispatcher::with_default(dispatch, callsite::rebuild_interest_cache);
            }
            State::Installed => {
                callsite::rebuild_interest_cache();
                log::set_max_level(self.seen.into());
            }
            State::Foreign => {}
        }
    }

    /// Installs the subscriber of the initializers for all threads, unless the process has one of its own.
    fn install(&mut self) {
        let State::Scoped(dispatch) = &self.state else {
            return;
        };
        let logger = REPORTER.get().filter(|_| !has_own());
        let installed = logger.is_some_and(|logger| log::set_logger(logger).is_ok())
            && dispatcher::set_global_default(dispatch.clone()).is_ok();
        self.state = if installed {
            // Callsites that threads of initializers have reached were noted as disabled.
            callsite::rebuild_interest_cache();
            log::set_max_level(self.seen.into());
            State::Installed
        } else {
            State::Foreign
        };
    }
}

/// Whether this process has a subscriber of its own.
fn has_own() -> bool {
    dispatcher::get_default(|current| !current.is::<NoSubscriber>())
}

impl Reporter {
    fn is_here(&self) -> bool {
        lineage() == self.owner
    }

    fn level(&self) -> LogLevel {
        LogLevel::of(self.level.load(Ordering::Relaxed))
    }

    fn begun(&self) -> u32 {
        self.replies.begun()
    }

    /// Runs `with` under the lock; does nothing if this thread is already in here.
    fn with_known<R>(&self, with: impl FnOnce(&mut Known) -> R) -> Option<R> {
        struct Unlock;
        impl Drop for Unlock {
            fn drop(&mut self) {
                LOCKED.set(false);
            }
        }
        if LOCKED.replace(true) {
            return None;
        }
        // Dropped after the guard below.
        let _unlock = Unlock;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Some(with(&mut known))
    }

    /// Writes a record. Formatting a value may itself log something, and this thread may be ending: then the thread's writer
    /// is not available.
    fn write(&self, write: impl FnOnce(&mut Writer)) {
        let mut writer = WRITER
            .try_with(Cell::take)
            .ok()
            .flatten()
            .unwrap_or_default();
        write(&mut writer);
        self.send(&writer);
        let _ = WRITER.try_with(|kept| kept.set(Some(writer)));
    }

    fn send(&self, writer: &Writer) {
        // The parent does not expect reports from threads that a task has left behind, so it must be woken for them.
        self.replies.report(report::LOG, writer.bytes());
        if !RUNS_INPUTS.get() {
            self.replies.ring();
        }
    }

    /// The number of a callsite. If it is new, it is first described to the parent.
    fn number_of(&self, metadata: &Metadata<'static>) -> Option<u32> {
        self.with_known(|known| {
            let next = known.callsites.len() as u32;
            *known
                .callsites
                .entry(metadata.callsite())
                .or_insert_with(|| {
                    let mut writer = Writer::default();
                    writer.describe(self.begun(), next, &describe(metadata));
                    self.send(&writer);
                    next
                })
        })
    }
}

fn describe(metadata: &Metadata<'static>) -> Callsite<'static> {
    let fields = metadata.fields().iter().take(FIELDS_MAX);
    Callsite {
        is_span: metadata.is_span(),
        level: LevelFilter::from_level(*metadata.level()).into(),
        name: metadata.name().into(),
        target: metadata.target().into(),
        module: metadata.module_path().map(Cow::from),
        file: metadata.file().map(Cow::from),
        line: metadata.line(),
        fields: fields.map(|field| field.name().into()).collect(),
    }
}

/// The innermost span that this thread is in; 0: none.
fn current() -> u64 {
    let last = ENTERED.try_with(|entered| entered.try_borrow().ok()?.last().copied());
    last.ok().flatten().unwrap_or_default()
}

fn parent_of(explicit: Option<&Id>, is_contextual: bool) -> u64 {
    match explicit {
        Some(id) => id.into_u64(),
        None if is_contextual => current(),
        None => 0,
    }
}

/// The subscriber of `tracing`.
struct ToPool(&'static Reporter);

impl Subscriber for ToPool {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= LevelFilter::from(self.0.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.0.level().into())
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let reporter = self.0;
        let id = reporter.next_span.fetch_add(1, Ordering::Relaxed);
        let metadata = span.metadata();
        if reporter.is_here()
            && let Some(number) = reporter.number_of(metadata)
        {
            let parent = parent_of(span.parent(), span.is_contextual());
            reporter.with_known(|known| {
                let handles = 1;
                known.spans.insert(id, Open { handles, metadata });
            });
            reporter.write(|writer| {
                writer.span(reporter.begun(), number, id, parent);
                span.record(&mut ValuesTo(writer));
            });
        }
        Id::from_u64(id)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if self.0.is_here() {
            self.0.write(|writer| {
                writer.values(self.0.begun(), span.into_u64());
                values.record(&mut ValuesTo(writer));
            });
        }
    }

    fn record_follows_from(&self, span: &Id, follows: &Id) {
        if self.0.is_here() {
            let (span, other) = (span.into_u64(), follows.into_u64());
            self.0
                .write(|writer| writer.follows(self.0.begun(), span, other));
        }
    }

    fn event(&self, event: &Event<'_>) {
        let reporter = self.0;
        if !reporter.is_here() {
            return;
        }
        let metadata = event.metadata();
        let Some(number) = reporter.number_of(metadata) else {
            return;
        };
        let parent = parent_of(event.parent(), event.is_contextual());
        reporter.write(|writer| {
            writer.event(reporter.begun(), number, parent);
            event.record(&mut ValuesTo(writer));
        });
        LAST.set(place(metadata.file(), metadata.line()));
    }

    fn enter(&self, span: &Id) {
        let _ = ENTERED.try_with(|entered| {
            if let Ok(mut entered) = entered.try_borrow_mut() {
                entered.push(span.into_u64());
            }
        });
    }

    fn exit(&self, span: &Id) {
        let _ = ENTERED.try_with(|entered| {
            if let Ok(mut entered) = entered.try_borrow_mut()
                && let Some(at) = entered.iter().rposition(|id| *id == span.into_u64())
            {
                entered.remove(at);
            }
        });
    }

    fn clone_span(&self, id: &Id) -> Id {
        if self.0.is_here() {
            self.0.with_known(|known| {
                if let Some(open) = known.spans.get_mut(&id.into_u64()) {
                    open.handles += 1;
                }
            });
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        if !self.0.is_here() {
            return false;
        }
        let id = id.into_u64();
        let closes = self.0.with_known(|known| {
            let Some(open) = known.spans.get_mut(&id) else {
                return false;
            };
            open.handles -= 1;
            open.handles == 0 && known.spans.remove(&id).is_some()
        });
        let closes = closes.unwrap_or(false);
        if closes {
            self.0.write(|writer| writer.close(self.0.begun(), id));
        }
        closes
    }

    fn current_span(&self) -> Current {
        let id = current();
        if id == 0 || !self.0.is_here() {
            return Current::none();
        }
        let metadata = self
            .0
            .with_known(|known| known.spans.get(&id).map(|open| open.metadata));
        match metadata.flatten() {
            Some(metadata) => Current::new(Id::from_u64(id), metadata),
            None => Current::none(),
        }
    }
}

/// Identifies a place in the program: the address of the file's name, and the line.
fn place(file: Option<&str>, line: Option<u32>) -> (usize, u32) {
    let file = file.map_or(0, |file| file.as_ptr().addr());
    (file, line.unwrap_or_default())
}

/// With its feature `log-always`, `tracing` also reports spans to `log`, with this target.
const SPANS: &str = "tracing::span";

impl log::Log for Reporter {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        LogLevel::from(metadata.level().to_level_filter()) <= self.level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) || !self.is_here() {
            return;
        }
        // With that feature, events are also passed to `log`, right after the subscriber got them.
        let here = place(record.file(), record.line());
        if LAST.replace((0, 0)) == here && here.0 != 0 || record.target().starts_with(SPANS) {
            return;
        }
        let callsite = Callsite {
            is_span: false,
            level: record.level().to_level_filter().into(),
            name: "log event".into(),
            target: record.target().into(),
            module: record.module_path().map(Cow::from),
            file: record.file().map(Cow::from),
            line: record.line(),
            fields: Vec::new(),
        };
        self.write(|writer| {
            writer.log(self.begun(), current(), &callsite, *record.args());
        });
    }

    fn flush(&self) {}
}

/// Writes the values of fields.
struct ValuesTo<'w>(&'w mut Writer);

impl Visit for ValuesTo<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.value(field.index(), &Value::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.value(field.index(), &Value::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.value(field.index(), &Value::U64(value));
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.0.value(field.index(), &Value::I128(value));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.0.value(field.index(), &Value::U128(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.value(field.index(), &Value::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.value(field.index(), &Value::Text(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut texts = vec![value.to_string()];
        let mut next = value.source();
        while let Some(cause) = next.filter(|_| texts.len() < FIELDS_MAX) {
            texts.push(cause.to_string());
            next = cause.source();
        }
        let texts = texts.iter().map(String::as_str).collect();
        self.0.value(field.index(), &Value::Error(texts));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.debug(field.index(), value);
    }
}
