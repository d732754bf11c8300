//! Turns the records of workers into calls of a subscriber or of a logger, all on the thread `pool-log`.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use pool_worker::record::{FIELDS_MAX, Record, Value, Values};
use pool_worker::{LogLevel, task_name};
use tracing_core::dispatcher::Dispatch;
use tracing_core::field::{self, DisplayValue, Field, ValueSet};
use tracing_core::span::{Attributes, Id, Record as Recorded};
use tracing_core::{Event, Level};

use super::site::{self, Site};
use super::{Context, guard};
use crate::backend::{LogRecords, LogSource};

/// The field of an event that holds its text.
const MESSAGE: &str = "message";

/// What workers have described and opened.
#[derive(Default)]
pub(super) struct Delivery {
    sources: HashMap<LogSource, Source>,
}

/// One worker.
#[derive(Default)]
struct Source {
    /// By the numbers that the worker uses.
    callsites: HashMap<u32, Callsite>,
    spans: HashMap<u64, Open>,
}

#[derive(Clone, Copy)]
struct Callsite {
    site: &'static Site,
    /// Only the field at this position, of those that the worker has, is known here.
    only: Option<usize>,
}

/// A span that was created anew; or, if the subscriber did not want it, the span around it.
struct Open {
    context: Arc<Context>,
    dispatch: Dispatch,
    id: Id,
    /// `None` if it is the span around it.
    callsite: Option<Callsite>,
}

impl Open {
    fn close(self) {
        self.dispatch.try_close(self.id);
    }
}

/// The worker whose records these are, and the input that ran, if any.
pub(super) struct Sender<'a> {
    source: &'a mut Source,
    worker: u64,
    pid: u64,
    host: Option<&'a str>,
    task: Option<&'static str>,
    input: Option<u64>,
}

impl Delivery {
    pub(super) fn source<'a>(&'a mut self, records: &'a LogRecords) -> Sender<'a> {
        let source = &records.source;
        if !self.sources.contains_key(source) {
            self.sources.insert(source.clone(), Source::default());
        }
        Sender {
            worker: source.worker as u64,
            pid: source.pid.into(),
            host: source.host.as_deref(),
            task: records.task.and_then(task_name),
            input: records.index.map(|index| index as u64),
            source: self.sources.entry(source.clone()).or_default(),
        }
    }

    /// Nothing more will come from this worker.
    pub(super) fn end_of(&mut self, source: &LogSource) {
        if let Some(source) = self.sources.remove(source) {
            source.end();
        }
    }

    /// Nothing more will come.
    pub(super) fn end(self) {
        self.sources.into_values().for_each(Source::end);
    }
}

impl Source {
    fn end(self) {
        for open in self.spans.into_values() {
            guard(|| open.close());
        }
    }
}

/// Warns about dropped records.
pub(super) fn warn_of_dropped(context: &Context, dropped: u64) {
    let text = format!(
        "{dropped} log records of workers were dropped: they came faster than they could be passed on"
    );
    let callsite = pool_worker::record::Callsite {
        is_span: false,
        level: LogLevel::Warn,
        name: "dropped".into(),
        target: "pool_core".into(),
        module: None,
        file: None,
        line: None,
        fields: vec![MESSAGE.into(), "dropped".into()],
    };
    let site = site::find(&callsite);
    let callsite = Callsite { site, only: None };
    let values = [
        Some(Shown::Debug(field::display(&text))),
        Some(Shown::U64(dropped)),
    ];
    tell(
        context,
        None,
        callsite,
        values.into_iter().enumerate(),
        [None; 5],
    );
}

impl Sender<'_> {
    /// Delivers one record.
    pub(super) fn deliver(&mut self, context: &Arc<Context>, record: &[u8]) {
        let Some(record) = Record::read(record) else {
            return;
        };
        match record {
            Record::Callsite { number, callsite } => {
                let site = site::find(&callsite);
                let message = || callsite.fields.iter().position(|name| name == MESSAGE);
                let only = site.is_any.then(|| message().unwrap_or(FIELDS_MAX));
                self.source
                    .callsites
                    .insert(number, Callsite { site, only });
            }
            Record::Event {
                callsite,
                parent,
                values,
            } => {
                if let Some(callsite) = self.source.callsites.get(&callsite) {
                    self.event(context, parent, *callsite, shown(values));
                }
            }
            Record::Log {
                parent,
                mut callsite,
                text,
            } => {
                callsite.fields = vec![MESSAGE.into()];
                let site = site::find(&callsite);
                let callsite = Callsite { site, only: None };
                let values = [(0, Some(Shown::Debug(field::display(text))))];
                self.event(context, parent, callsite, values.into_iter());
            }
            Record::Span {
                callsite,
                id,
                parent,
                values,
            } => {
                let callsite = self.source.callsites.get(&callsite).copied();
                if let Some(callsite) = callsite.filter(|callsite| callsite.is_span()) {
                    self.span(context, callsite, id, parent, values);
                }
            }
            Record::Values { span, values } => {
                if let Some(open) = self.source.spans.get(&span)
                    && let Some(callsite) = open.callsite
                {
                    with_values(callsite, shown(values), [None; 5], |values| {
                        open.dispatch.record(&open.id, &Recorded::new(values));
                    });
                }
            }
            Record::Follows { span, other } => {
                let spans = &self.source.spans;
                if let (Some(span), Some(other)) = (spans.get(&span), spans.get(&other))
                    // Otherwise the numbers may be those of two subscribers.
                    && Arc::ptr_eq(&span.context, &other.context)
                {
                    span.dispatch.record_follows_from(&span.id, &other.id);
                }
            }
            Record::Close { span } => {
                if let Some(open) = self.source.spans.remove(&span) {
                    open.close();
                }
            }
        }
    }

    fn event<'v>(
        &self,
        context: &Context,
        parent: u64,
        callsite: Callsite,
        values: impl Iterator<Item = (usize, Option<Shown<'v>>)>,
    ) {
        if callsite.is_span() {
            return;
        }
        let span = self.source.spans.get(&parent);
        self.with_origin(|origin| tell(context, span, callsite, values, origin));
    }

    fn span(
        &mut self,
        context: &Arc<Context>,
        callsite: Callsite,
        id: u64,
        parent: u64,
        values: Values<'_>,
    ) {
        let around = self.source.spans.get(&parent);
        let (context, dispatch) = match around {
            Some(open) => (&open.context, &open.dispatch),
            None if context.hears => (context, &context.dispatch),
            None => return,
        };
        let around = around.map(|open| &open.id).or(context.span.as_ref());
        let metadata = callsite.site.metadata();
        let open = if callsite.site.is_wanted(dispatch) {
            let around = around.cloned();
            let make = |values: &ValueSet<'_>| match around {
                Some(around) => dispatch.new_span(&Attributes::child_of(around, metadata, values)),
                None => dispatch.new_span(&Attributes::new_root(metadata, values)),
            };
            let id = self.with_origin(|origin| with_values(callsite, shown(values), origin, make));
            (id, Some(callsite))
        } else {
            // Records inside it are inside the span around it.
            let Some(around) = around else {
                return;
            };
            (dispatch.clone_span(around), None)
        };
        let open = Open {
            context: Arc::clone(context),
            dispatch: dispatch.clone(),
            id: open.0,
            callsite: open.1,
        };
        if let Some(before) = self.source.spans.insert(id, open) {
            before.close();
        }
    }

    /// Calls `with` with the values of the fields that this crate adds.
    fn with_origin<R>(&self, with: impl FnOnce(Origin<'_>) -> R) -> R {
        let Sender {
            worker,
            pid,
            host,
            task,
            input,
            ..
        } = self;
        fn maybe<T: field::Value>(value: &Option<T>) -> Option<&dyn field::Value> {
            value.as_ref().map(|value| value as &dyn field::Value)
        }
        with([
            Some(worker),
            Some(pid),
            maybe(host),
            maybe(task),
            maybe(input),
        ])
    }
}

/// The values of the fields that this crate adds.
type Origin<'a> = [Option<&'a dyn field::Value>; 5];

impl Callsite {
    fn is_span(&self) -> bool {
        self.site.metadata().is_span()
    }
}

/// Passes an event to the subscriber.
fn tell<'v>(
    context: &Context,
    span: Option<&Open>,
    callsite: Callsite,
    values: impl Iterator<Item = (usize, Option<Shown<'v>>)>,
    origin: Origin<'_>,
) {
    let site = callsite.site;
    let (dispatch, around) = match span {
        Some(span) => (&span.dispatch, Some(&span.id)),
        None if context.hears => (&context.dispatch, context.span.as_ref()),
        None => return tell_logger(callsite, values, origin),
    };
    if site.is_wanted(dispatch) {
        with_values(callsite, values, origin, |values| {
            let metadata = site.metadata();
            dispatch.event(&Event::new_child_of(around.cloned(), metadata, values));
        });
    }
}

/// Passes an event to the logger of this process, as text.
fn tell_logger<'v>(
    callsite: Callsite,
    values: impl Iterator<Item = (usize, Option<Shown<'v>>)>,
    origin: Origin<'_>,
) {
    let site = callsite.site;
    let metadata = site.metadata();
    let level = match *metadata.level() {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Info,
        Level::DEBUG => log::Level::Debug,
        Level::TRACE => log::Level::Trace,
    };
    let target = metadata.target();
    let about = log::Metadata::builder().level(level).target(target).build();
    if level > log::max_level() || !log::logger().enabled(&about) {
        return;
    }
    let mut text = Text::default();
    with_values(callsite, values, origin, |values| values.record(&mut text));
    let Text { message, rest } = &text;
    let gap = if message.is_empty() { "" } else { " " };
    let record = |args: fmt::Arguments<'_>| {
        log::logger().log(
            &log::Record::builder()
                .metadata(about)
                .args(args)
                .module_path(metadata.module_path())
                .file(metadata.file())
                .line(metadata.line())
                .build(),
        );
    };
    record(format_args!("{message}{gap}{}", rest.join(" ")));
}

/// An event as text.
#[derive(Default)]
struct Text {
    message: String,
    rest: Vec<String>,
}

impl field::Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            value.clone_into(&mut self.message);
        } else {
            self.rest.push(format!("{}={value:?}", field.name()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE {
            self.message = format!("{value:?}");
        } else {
            self.rest.push(format!("{}={value:?}", field.name()));
        }
    }
}

/// Calls `with` with these values, each of the field at its position, and with those of the added fields.
fn with_values<'v, R>(
    callsite: Callsite,
    values: impl Iterator<Item = (usize, Option<Shown<'v>>)>,
    origin: Origin<'_>,
    with: impl FnOnce(&ValueSet<'_>) -> R,
) -> R {
    let Callsite { site, only } = callsite;
    let fields = site.fields();
    let mut own: [Option<Shown<'v>>; FIELDS_MAX] = [const { None }; FIELDS_MAX];
    for (at, value) in values {
        let at = match only {
            Some(only) if only == at => 0,
            Some(_) => continue,
            None => at,
        };
        if at < site.own() {
            own[at] = value;
        }
    }
    // Positions beyond the fields have no values either.
    let mut all: [(&Field, Option<&dyn field::Value>); FIELDS_MAX] =
        [(&fields[0], None); FIELDS_MAX];
    let values = own[..site.own()].iter();
    let values = values.map(|value| value.as_ref().map(Shown::as_value));
    for (place, value) in all.iter_mut().zip(fields.iter().zip(values.chain(origin))) {
        *place = value;
    }
    with(&site.metadata().fields().value_set(&all))
}

/// The value of a field, in a form that `tracing` takes.
enum Shown<'a> {
    I64(i64),
    U64(u64),
    I128(i128),
    U128(u128),
    F64(f64),
    Bool(bool),
    Text(&'a str),
    Debug(DisplayValue<&'a str>),
    Error(Box<dyn Error + 'static>),
}

fn shown(values: Values<'_>) -> impl Iterator<Item = (usize, Option<Shown<'_>>)> {
    values.map(|(at, value)| (at, Some(Shown::of(value))))
}

impl<'a> Shown<'a> {
    fn of(value: Value<'a>) -> Shown<'a> {
        match value {
            Value::I64(value) => Shown::I64(value),
            Value::U64(value) => Shown::U64(value),
            Value::I128(value) => Shown::I128(value),
            Value::U128(value) => Shown::U128(value),
            Value::F64(value) => Shown::F64(value),
            Value::Bool(value) => Shown::Bool(value),
            Value::Text(text) => Shown::Text(text),
            Value::Debug(text) => Shown::Debug(field::display(text)),
            Value::Error(texts) => Shown::Error(Box::new(Told::of(&texts))),
        }
    }

    fn as_value(&self) -> &dyn field::Value {
        match self {
            Shown::I64(value) => value,
            Shown::U64(value) => value,
            Shown::I128(value) => value,
            Shown::U128(value) => value,
            Shown::F64(value) => value,
            Shown::Bool(value) => value,
            Shown::Text(value) => value,
            Shown::Debug(value) => value,
            Shown::Error(value) => value,
        }
    }
}

/// An error that a worker has logged.
#[derive(Debug)]
struct Told {
    text: String,
    cause: Option<Box<Told>>,
}

impl Told {
    fn of(texts: &[&str]) -> Told {
        let (text, causes) = texts.split_first().unwrap_or((&"", &[]));
        Told {
            text: (*text).to_owned(),
            cause: (!causes.is_empty()).then(|| Box::new(Told::of(causes))),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Told {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::collection::vec;
    use proptest::prelude::*;
    use tracing_core::{Metadata, Subscriber};

    use super::*;

    /// A subscriber that accepts everything, and checks the counts of spans.
    #[derive(Default)]
    struct Strict {
        spans: std::sync::Mutex<HashMap<u64, usize>>,
        next: AtomicU64,
    }

    impl Strict {
        fn handles(&self, id: &Id, change: impl FnOnce(&mut usize)) {
            let mut spans = crate::sync::lock(&self.spans);
            change(spans.get_mut(&id.into_u64()).expect("it is open"));
        }
    }

    impl Subscriber for Strict {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= Level::INFO
        }
        fn new_span(&self, span: &Attributes<'_>) -> Id {
            span.record(&mut Text::default());
            if let Some(parent) = span.parent() {
                self.handles(parent, |_| ());
            }
            let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
            crate::sync::lock(&self.spans).insert(id, 1);
            Id::from_u64(id)
        }
        fn record(&self, id: &Id, values: &Recorded<'_>) {
            values.record(&mut Text::default());
            self.handles(id, |_| ());
        }
        fn record_follows_from(&self, id: &Id, other: &Id) {
            self.handles(id, |_| ());
            self.handles(other, |_| ());
        }
        fn event(&self, event: &Event<'_>) {
            event.record(&mut Text::default());
            if let Some(parent) = event.parent() {
                self.handles(parent, |_| ());
            }
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
        fn clone_span(&self, id: &Id) -> Id {
            self.handles(id, |handles| *handles += 1);
            id.clone()
        }
        fn try_close(&self, id: Id) -> bool {
            let mut left = 0;
            self.handles(&id, |handles| {
                *handles -= 1;
                left = *handles;
            });
            if left == 0 {
                crate::sync::lock(&self.spans).remove(&id.into_u64());
            }
            left == 0
        }
    }

    /// A record as a worker writes it, except for the numbers.
    fn record() -> impl Strategy<Value = Vec<u8>> {
        let text = |text: &str| {
            let mut bytes = (text.len() as u16).to_le_bytes().to_vec();
            bytes.extend(text.as_bytes());
            bytes
        };
        let (kind, small) = (0_u8..8, 0_u8..4);
        let tail = vec(any::<u8>(), 0..40);
        (kind, small.clone(), small.clone(), small, tail).prop_map(
            move |(kind, one, other, level, tail)| {
                let long = |number: u8| u64::from(number).to_le_bytes();
                let mut bytes = vec![kind, 0, 0, 0, 0];
                match kind {
                    0 | 6 => {
                        if kind == 0 {
                            bytes.extend(u32::from(one).to_le_bytes());
                        } else {
                            bytes.extend(long(one));
                        }
                        bytes.extend([other % 2, level + 1]);
                        bytes.extend([text("name"), text("target")].concat());
                        bytes.extend([0, 0, 0, other]);
                        (0..other).for_each(|_| bytes.extend(text("field")));
                        bytes.extend(text("text"));
                    }
                    1 | 2 => {
                        bytes.extend(u32::from(one).to_le_bytes());
                        bytes.extend(long(other));
                        bytes.extend(long(level));
                    }
                    _ => {
                        bytes.extend(long(one));
                        bytes.extend(long(other));
                    }
                }
                bytes.extend(tail);
                bytes
            },
        )
    }

    proptest! {
        /// Whatever a worker writes, spans are closed as often as they were opened, and nothing panics.
        #[test]
        fn any_records_are_delivered(
            records in vec(prop_oneof![4 => record(), 1 => vec(any::<u8>(), 0..60)], 0..60),
        ) {
            let dispatch = Dispatch::new(Strict::default());
            let context = Arc::new(Context {
                dispatch: dispatch.clone(),
                hears: true,
                span: None,
                shared: Weak::new(),
                queued: Arc::default(),
            });
            let source = LogSource {
                worker: 0,
                pid: 1,
                host: None,
                serial: 0,
            };
            let of_worker = LogRecords {
                source,
                task: Some(u32::MAX),
                index: Some(usize::MAX),
                ended: false,
                records: Vec::new(),
                dropped: 0,
            };
            let mut delivery = Delivery::default();
            let mut sender = delivery.source(&of_worker);
            records.iter().for_each(|record| sender.deliver(&context, record));
            delivery.end();
            let strict = dispatch.downcast_ref::<Strict>().expect("it is one");
            prop_assert!(crate::sync::lock(&strict.spans).is_empty());
        }
    }
}
