//! The encoding of what a worker logs: one [`Record`] in each report of the kind [`LOG`](crate::report::LOG).
//!
//! A record begins with its kind and the number of the input that ran, counted as in the ring. Integers are little-endian; a
//! text is its length in two bytes, then UTF-8. Each place in the program that logs (a *callsite*) is described once by each
//! worker, before it is referred to by a number. A record that would be longer than a report may be is cut: values at its end
//! are left out, and long texts are shortened.
//!
//! The reader trusts nothing: bytes that can't be read are not a record, and a value that can't be read ends the values.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::str;

use crate::level::LogLevel;
use crate::ring::REPORT_MAX;

/// A text is cut to at most this many bytes.
const TEXT_MAX: usize = 4096;

/// The largest number of fields of a callsite: `tracing` allows no more.
pub const FIELDS_MAX: usize = 32;

/// Of an error, at most this many causes are kept.
const CAUSES_MAX: usize = 8;

/// How many bytes a value takes besides its text.
const VALUE: usize = 4;

/// How many bytes all records begin with: the kind, and the number of the input.
const HEAD: usize = 1 + size_of::<u32>();

mod kind {
    pub(super) const CALLSITE: u8 = 0;
    pub(super) const EVENT: u8 = 1;
    pub(super) const SPAN: u8 = 2;
    pub(super) const VALUES: u8 = 3;
    pub(super) const FOLLOWS: u8 = 4;
    pub(super) const CLOSE: u8 = 5;
    pub(super) const LOG: u8 = 6;
}

mod value {
    pub(super) const I64: u8 = 0;
    pub(super) const U64: u8 = 1;
    pub(super) const I128: u8 = 2;
    pub(super) const U128: u8 = 3;
    pub(super) const F64: u8 = 4;
    pub(super) const FALSE: u8 = 5;
    pub(super) const TRUE: u8 = 6;
    pub(super) const TEXT: u8 = 7;
    pub(super) const DEBUG: u8 = 8;
    pub(super) const ERROR: u8 = 9;
}

/// One thing that a worker has logged.
#[derive(Debug, Clone, PartialEq)]
pub enum Record<'a> {
    /// Describes a callsite, to which later records refer.
    Callsite {
        /// The number by which they refer to it.
        number: u32,
        /// Its description.
        callsite: Callsite<'a>,
    },
    /// An event.
    Event {
        /// The number of its callsite.
        callsite: u32,
        /// The span that it is in; 0: none.
        parent: u64,
        /// The values of its fields.
        values: Values<'a>,
    },
    /// A new span.
    Span {
        /// The number of its callsite.
        callsite: u32,
        /// Its number, which is unique in this worker.
        id: u64,
        /// The span that it is in; 0: none.
        parent: u64,
        /// The values of its fields.
        values: Values<'a>,
    },
    /// More values of a span.
    Values {
        /// The span.
        span: u64,
        /// The values.
        values: Values<'a>,
    },
    /// A span follows from another.
    Follows {
        /// The span.
        span: u64,
        /// The span that it follows from.
        other: u64,
    },
    /// The end of a span.
    Close {
        /// The span.
        span: u64,
    },
    /// A record of the crate `log`.
    Log {
        /// The span that it is in; 0: none.
        parent: u64,
        /// Where it was logged.
        callsite: Callsite<'a>,
        /// Its message.
        text: &'a str,
    },
}

/// A place in the program that logs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Callsite<'a> {
    /// Whether it makes spans; otherwise it makes events.
    pub is_span: bool,
    /// Its level.
    pub level: LogLevel,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its target.
    pub target: Cow<'a, str>,
    /// Its module.
    pub module: Option<Cow<'a, str>>,
    /// Its file.
    pub file: Option<Cow<'a, str>>,
    /// Its line.
    pub line: Option<u32>,
    /// The names of its fields.
    pub fields: Vec<Cow<'a, str>>,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// A number.
    I64(i64),
    /// A number.
    U64(u64),
    /// A number.
    I128(i128),
    /// A number.
    U128(u128),
    /// A number.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// The `Debug` output of a value.
    Debug(&'a str),
    /// An error, and its causes.
    Error(Vec<&'a str>),
}

/// What is known about a record without reading all of it: the number of the input that ran when it was logged, and whether
/// it describes a callsite, or begins or ends a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glimpse {
    /// The number of the input, as the ring counts the inputs that were begun; wraps around.
    pub begun: u32,
    /// What the record is.
    pub what: Seen,
}

/// What a record is, as far as that must be known before the record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It describes a callsite.
    Callsite,
    /// It is the beginning of this span.
    Span(u64),
    /// It is the end of this span.
    Close(u64),
    /// Anything else.
    Other,
}

impl Glimpse {
    /// Looks at the beginning of these bytes; `None` if they don't begin as a record.
    pub fn of(bytes: &[u8]) -> Option<Glimpse> {
        let mut reader = Reader(bytes);
        let kind = reader.u8()?;
        let begun = reader.u32()?;
        let what = match kind {
            kind::CALLSITE => Seen::Callsite,
            kind::SPAN => {
                reader.u32()?;
                Seen::Span(reader.u64()?)
            }
            kind::CLOSE => Seen::Close(reader.u64()?),
            _ => Seen::Other,
        };
        Some(Glimpse { begun, what })
    }
}

impl<'a> Record<'a> {
    /// Reads a record, whatever a worker may have written.
    pub fn read(bytes: &'a [u8]) -> Option<Record<'a>> {
        let mut reader = Reader(bytes);
        let kind = reader.u8()?;
        reader.u32()?;
        Some(match kind {
            kind::CALLSITE => Record::Callsite {
                number: reader.u32()?,
                callsite: reader.callsite()?,
            },
            kind::EVENT => Record::Event {
                callsite: reader.u32()?,
                parent: reader.u64()?,
                values: Values(reader),
            },
            kind::SPAN => Record::Span {
                callsite: reader.u32()?,
                id: reader.u64()?,
                parent: reader.u64()?,
                values: Values(reader),
            },
            kind::VALUES => Record::Values {
                span: reader.u64()?,
                values: Values(reader),
            },
            kind::FOLLOWS => Record::Follows {
                span: reader.u64()?,
                other: reader.u64()?,
            },
            kind::CLOSE => Record::Close {
                span: reader.u64()?,
            },
            kind::LOG => Record::Log {
                parent: reader.u64()?,
                callsite: reader.callsite()?,
                text: reader.text()?,
            },
            _ => return None,
        })
    }
}

/// The values of fields, each with the position of its field.
#[derive(Debug, Clone, PartialEq)]
pub struct Values<'a>(Reader<'a>);

impl<'a> Iterator for Values<'a> {
    type Item = (usize, Value<'a>);

    fn next(&mut self) -> Option<(usize, Value<'a>)> {
        let read = self.0.value();
        if read.is_none() {
            self.0 = Reader(&[]);
        }
        read
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = u16::from_le_bytes(self.take()?);
        let (text, rest) = self.0.split_at_checked(usize::from(len))?;
        self.0 = rest;
        str::from_utf8(text).ok()
    }

    fn maybe_text(&mut self) -> Option<Option<Cow<'a, str>>> {
        match self.u8()? {
            0 => Some(None),
            _ => Some(Some(self.text()?.into())),
        }
    }

    fn callsite(&mut self) -> Option<Callsite<'a>> {
        Some(Callsite {
            is_span: self.u8()? != 0,
            level: LogLevel::of(self.u8()?.into()),
            name: self.text()?.into(),
            target: self.text()?.into(),
            module: self.maybe_text()?,
            file: self.maybe_text()?,
            line: match self.u8()? {
                0 => None,
                _ => Some(self.u32()?),
            },
            fields: {
                let count = usize::from(self.u8()?).min(FIELDS_MAX);
                let fields = (0..count).map(|_| self.text().map(Cow::from));
                fields.collect::<Option<_>>()?
            },
        })
    }

    fn value(&mut self) -> Option<(usize, Value<'a>)> {
        let field = usize::from(self.u8()?);
        let value = match self.u8()? {
            value::I64 => Value::I64(i64::from_le_bytes(self.take()?)),
            value::U64 => Value::U64(self.u64()?),
            value::I128 => Value::I128(i128::from_le_bytes(self.take()?)),
            value::U128 => Value::U128(u128::from_le_bytes(self.take()?)),
            value::F64 => Value::F64(f64::from_le_bytes(self.take()?)),
            value::FALSE => Value::Bool(false),
            value::TRUE => Value::Bool(true),
            value::TEXT => Value::Text(self.text()?),
            value::DEBUG => Value::Debug(self.text()?),
            value::ERROR => {
                let count = usize::from(self.u8()?).min(CAUSES_MAX);
                let texts = (0..count).map(|_| self.text());
                Value::Error(texts.collect::<Option<_>>()?)
            }
            _ => return None,
        };
        Some((field, value))
    }
}

/// Writes one record.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn begin(&mut self, kind: u8, begun: u32) {
        self.0.clear();
        self.0.push(kind);
        self.u32(begun);
    }

    pub(crate) fn describe(&mut self, begun: u32, number: u32, callsite: &Callsite<'_>) {
        self.begin(kind::CALLSITE, begun);
        self.u32(number);
        self.callsite(callsite);
    }

    pub(crate) fn event(&mut self, begun: u32, callsite: u32, parent: u64) {
        self.begin(kind::EVENT, begun);
        self.u32(callsite);
        self.u64(parent);
    }

    pub(crate) fn span(&mut self, begun: u32, callsite: u32, id: u64, parent: u64) {
        self.begin(kind::SPAN, begun);
        self.u32(callsite);
        self.u64(id);
        self.u64(parent);
    }

    pub(crate) fn values(&mut self, begun: u32, span: u64) {
        self.begin(kind::VALUES, begun);
        self.u64(span);
    }

    pub(crate) fn follows(&mut self, begun: u32, span: u64, other: u64) {
        self.begin(kind::FOLLOWS, begun);
        self.u64(span);
        self.u64(other);
    }

    pub(crate) fn close(&mut self, begun: u32, span: u64) {
        self.begin(kind::CLOSE, begun);
        self.u64(span);
    }

    pub(crate) fn log(
        &mut self,
        begun: u32,
        parent: u64,
        callsite: &Callsite<'_>,
        text: fmt::Arguments<'_>,
    ) {
        self.begin(kind::LOG, begun);
        self.u64(parent);
        self.callsite(callsite);
        self.write(TEXT_MAX * 2, text);
    }

    /// Writes the value of the field at this position, if there is room.
    pub(crate) fn value(&mut self, field: usize, value: &Value<'_>) {
        if !self.has_room(VALUE + size_of::<u128>()) {
            return;
        }
        match value {
            Value::I64(value) => self.plain(field, value::I64, &value.to_le_bytes()),
            Value::U64(value) => self.plain(field, value::U64, &value.to_le_bytes()),
            Value::I128(value) => self.plain(field, value::I128, &value.to_le_bytes()),
            Value::U128(value) => self.plain(field, value::U128, &value.to_le_bytes()),
            Value::F64(value) => self.plain(field, value::F64, &value.to_le_bytes()),
            Value::Bool(true) => self.plain(field, value::TRUE, &[]),
            Value::Bool(false) => self.plain(field, value::FALSE, &[]),
            Value::Text(text) => {
                self.plain(field, value::TEXT, &[]);
                self.text(text);
            }
            Value::Debug(text) => {
                self.plain(field, value::DEBUG, &[]);
                self.text(text);
            }
            Value::Error(texts) => {
                let texts = &texts[..texts.len().min(CAUSES_MAX)];
                self.plain(field, value::ERROR, &[texts.len() as u8]);
                for (text, behind) in texts.iter().zip((0..texts.len()).rev()) {
                    // Leaves room for the lengths of the texts that follow.
                    let room = self.room_for_text(TEXT_MAX);
                    let room = room.saturating_sub(behind * size_of::<u16>());
                    self.write_text(room, text);
                }
            }
        }
    }

    /// Writes the `Debug` output of a value, without a copy.
    pub(crate) fn debug(&mut self, field: usize, value: &dyn fmt::Debug) {
        if self.has_room(VALUE + size_of::<u128>()) {
            self.plain(field, value::DEBUG, &[]);
            self.write(TEXT_MAX, format_args!("{value:?}"));
        }
    }

    fn plain(&mut self, field: usize, kind: u8, bytes: &[u8]) {
        self.0.extend([field as u8, kind]);
        self.0.extend_from_slice(bytes);
    }

    fn callsite(&mut self, callsite: &Callsite<'_>) {
        self.0
            .extend([u8::from(callsite.is_span), callsite.level as u8]);
        self.short(&callsite.name);
        self.short(&callsite.target);
        for text in [&callsite.module, &callsite.file] {
            self.0.push(u8::from(text.is_some()));
            if let Some(text) = text {
                self.short(text);
            }
        }
        self.0.push(u8::from(callsite.line.is_some()));
        if let Some(line) = callsite.line {
            self.u32(line);
        }
        let fields = &callsite.fields[..callsite.fields.len().min(FIELDS_MAX)];
        self.0.push(fields.len() as u8);
        fields.iter().for_each(|field| self.short(field));
    }

    fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn has_room(&self, len: usize) -> bool {
        self.0.len() + len <= REPORT_MAX
    }

    /// How long a text may be that is written now.
    fn room_for_text(&self, most: usize) -> usize {
        let left = REPORT_MAX.saturating_sub(self.0.len() + size_of::<u16>());
        left.min(most)
    }

    fn text(&mut self, text: &str) {
        self.write_text(TEXT_MAX, text);
    }

    /// Writes a text of a callsite, short enough that the texts of all fields fit.
    fn short(&mut self, text: &str) {
        self.write_text(SHORT_MAX, text);
    }

    fn write_text(&mut self, most: usize, text: &str) {
        let text = cut(text, self.room_for_text(most));
        self.0.extend((text.len() as u16).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// The same for formatted text.
    fn write(&mut self, most: usize, text: fmt::Arguments<'_>) {
        let room = self.room_for_text(most);
        let at = self.0.len();
        self.0.extend([0; size_of::<u16>()]);
        let mut cut = Cut {
            bytes: &mut self.0,
            room,
        };
        let _ = cut.write_fmt(text);
        let len = (self.0.len() - at - size_of::<u16>()) as u16;
        self.0[at..at + size_of::<u16>()].copy_from_slice(&len.to_le_bytes());
    }
}

/// A text of a callsite is cut to at most this many bytes.
const SHORT_MAX: usize = 400;
const _: () =
    assert!(cfg!(pool_shuttle) || HEAD + 32 + (4 + FIELDS_MAX) * (2 + SHORT_MAX) < REPORT_MAX);
const _: () = assert!(cfg!(pool_shuttle) || VALUE + 16 >= 3 + CAUSES_MAX * size_of::<u16>());

/// Keeps what fits, and drops the rest without an error, since code that formats may not expect one.
struct Cut<'a> {
    bytes: &'a mut Vec<u8>,
    room: usize,
}

impl fmt::Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = cut(text, self.room);
        self.bytes.extend_from_slice(taken.as_bytes());
        self.room = if taken.len() < text.len() {
            0
        } else {
            self.room - taken.len()
        };
        Ok(())
    }
}

/// The beginning of a text that fits into `most` bytes.
fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let len = (0..=most).rev().find(|len| text.is_char_boundary(*len));
    &text[..len.unwrap_or(0)]
}

#[cfg(all(test, not(pool_shuttle)))]
mod tests {
    use super::*;

    fn callsite() -> Callsite<'static> {
        Callsite {
            is_span: false,
            level: LogLevel::Info,
            name: "event".into(),
            target: "target".into(),
            module: Some("module".into()),
            file: None,
            line: Some(7),
            fields: vec!["message".into(), "one".into()],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.describe(3, 4, &callsite());
        let record = Record::read(writer.bytes());
        let (number, callsite) = (4, callsite());
        assert_eq!(record, Some(Record::Callsite { number, callsite }));
        let values = [
            (0, Value::Debug("text")),
            (1, Value::I64(-1)),
            (2, Value::U64(u64::MAX)),
            (3, Value::I128(i128::MIN)),
            (4, Value::U128(u128::MAX)),
            (5, Value::F64(0.5)),
            (6, Value::Bool(true)),
            (7, Value::Bool(false)),
            (8, Value::Text("é")),
            (9, Value::Error(vec!["this", "because of that"])),
        ];
        writer.event(3, 4, 5);
        for (field, value) in &values {
            writer.value(*field, value);
        }
        let Some(Record::Event {
            callsite: 4,
            parent: 5,
            values: read,
        }) = Record::read(writer.bytes())
        else {
            panic!("it is an event");
        };
        assert_eq!(read.collect::<Vec<_>>(), values);
        writer.span(3, 4, 5, 6);
        let glimpse = Glimpse::of(writer.bytes());
        let what = Seen::Span(5);
        assert_eq!(glimpse, Some(Glimpse { begun: 3, what }));
    }

    #[test]
    fn what_is_too_long_is_cut() {
        let long = "é".repeat(REPORT_MAX);
        let mut writer = Writer::default();
        writer.event(0, 0, 0);
        for field in 0..FIELDS_MAX {
            match field % 3 {
                0 => writer.value(field, &Value::Text(&long)),
                1 => writer.debug(field, &long),
                _ => writer.value(field, &Value::Error(vec![&long; 20])),
            }
            assert!(writer.bytes().len() <= REPORT_MAX);
        }
        let Some(Record::Event { values, .. }) = Record::read(writer.bytes()) else {
            panic!("it is an event");
        };
        assert_eq!(values.count(), 3);
        let long = Cow::from(long);
        let callsite = Callsite {
            name: long.clone(),
            target: long.clone(),
            module: Some(long.clone()),
            file: Some(long.clone()),
            fields: vec![long.clone(); FIELDS_MAX],
            ..callsite()
        };
        writer.describe(0, 0, &callsite);
        assert!(writer.bytes().len() <= REPORT_MAX);
        assert!(Record::read(writer.bytes()).is_some());
        writer.log(0, 0, &callsite, format_args!("{long}"));
        assert!(writer.bytes().len() <= REPORT_MAX);
        assert!(Record::read(writer.bytes()).is_some());
    }

    /// Reads everything in these bytes.
    fn read_all(bytes: &[u8]) {
        let _ = Glimpse::of(bytes);
        match Record::read(bytes) {
            Some(Record::Event { values, .. } | Record::Span { values, .. }) => {
                assert!(values.count() <= bytes.len());
            }
            Some(Record::Values { values, .. }) => assert!(values.count() <= bytes.len()),
            _ => {}
        }
    }

    #[test]
    fn anything_may_be_read() {
        let mut writer = Writer::default();
        let mut records = Vec::new();
        writer.describe(1, 2, &callsite());
        records.push(writer.bytes().to_vec());
        writer.span(1, 2, 3, 4);
        writer.value(0, &Value::Error(vec!["this", "that"]));
        writer.value(1, &Value::Text("text"));
        records.push(writer.bytes().to_vec());
        writer.log(1, 2, &callsite(), format_args!("text"));
        records.push(writer.bytes().to_vec());
        for record in records {
            for len in 0..record.len() {
                read_all(&record[..len]);
            }
            for at in 0..record.len() {
                for byte in 0..=u8::MAX {
                    let mut changed = record.clone();
                    changed[at] = byte;
                    read_all(&changed);
                }
            }
        }
    }
}
