//! [`LogRecords`]: what workers have logged, on its way to the listeners.

use serde::{Deserialize, Serialize};

/// What one worker has logged while it ran one input, or none: see [`Sink::log`](super::Sink::log) and
/// [`News::Log`](super::News::Log). Must be passed on in order. Without the feature `tracing` of this crate, there are none.
///
/// A way that is too slow for them passes them through a [`LogSieve`](super::LogSieve).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogRecords {
    pub(crate) source: LogSource,
    /// The number of the task, and the position of the input as [`Error::index`](crate::Error::index) has it.
    pub(crate) task: Option<u32>,
    pub(crate) index: Option<usize>,
    /// Nothing more will come from this worker.
    pub(crate) ended: bool,
    /// The records as the worker has written them, each preceded by its length in four bytes.
    pub(crate) records: Vec<u8>,
    /// How many more were dropped on the way, after these.
    pub(crate) dropped: u64,
}

/// The worker that has logged something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct LogSource {
    pub(crate) worker: usize,
    pub(crate) pid: u32,
    pub(crate) host: Option<String>,
    /// Distinguishes it from earlier workers with the same process id.
    pub(crate) serial: u64,
}

impl LogRecords {
    /// Notes that they come from another machine.
    #[must_use]
    pub fn on(mut self, name: &str) -> LogRecords {
        self.place(name);
        self
    }

    pub(super) fn place(&mut self, name: &str) {
        self.source.host = Some(name.to_owned());
    }

    /// How many bytes the records take.
    pub fn size(&self) -> usize {
        self.records.len()
    }

    /// Removes as many records from the front as fit into this many bytes, but at least one, and returns them.
    pub fn take_front(&mut self, bytes: usize) -> LogRecords {
        let ends = each(&self.records).scan(0, |end, record| {
            *end += size_of::<u32>() + record.len();
            Some(*end)
        });
        let fit = ends
            .enumerate()
            .take_while(|(at, end)| *at == 0 || *end <= bytes);
        let len = fit.last().map_or(self.records.len(), |(_, end)| end);
        let rest = self.records.split_off(len);
        let is_all = rest.is_empty();
        LogRecords {
            source: self.source.clone(),
            records: std::mem::replace(&mut self.records, rest),
            // They were dropped after the last.
            dropped: if is_all {
                std::mem::take(&mut self.dropped)
            } else {
                0
            },
            ..*self
        }
    }

    /// Notes that this many more records were dropped after these, of whichever worker. The listener is warned.
    pub fn note_dropped(&mut self, count: u64) {
        self.dropped = self.dropped.saturating_add(count);
    }

    /// Whether it says that nothing more will come from its worker.
    pub fn is_end(&self) -> bool {
        self.ended
    }

    /// Returns what says that nothing more will come from the worker that logged these. A worker's own machine says it when
    /// the worker has ended; if the machine is lost, say it in its place, so that the spans of its workers end. The result is
    /// the same for all records of a worker.
    #[must_use]
    pub fn end(&self) -> LogRecords {
        LogRecords {
            source: self.source.clone(),
            task: None,
            index: None,
            ended: true,
            records: Vec::new(),
            dropped: 0,
        }
    }
}

/// Iterates over records that are stored one behind the other.
pub(crate) fn each(mut records: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = records.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        records = rest;
        Some(record)
    })
}

/// How much room there is for records: see [`LogSieve::pass`](super::LogSieve::pass).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// For everything.
    Enough,
    /// Only for what other records depend on.
    Little,
    /// Only for the ends of spans.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_from_the_front_whole() {
        let framed = |texts: &[&str]| -> Vec<u8> {
            let each = texts.iter().flat_map(|text| {
                let len = (text.len() as u32).to_le_bytes();
                len.into_iter().chain(text.bytes())
            });
            each.collect()
        };
        let mut all = LogRecords {
            source: LogSource {
                worker: 1,
                pid: 2,
                host: None,
                serial: 3,
            },
            task: Some(4),
            index: Some(5),
            ended: false,
            records: framed(&["one", "two", "three"]),
            dropped: 6,
        };
        let end = all.end();
        let front = all.take_front(14);
        assert_eq!(front.records, framed(&["one", "two"]));
        assert_eq!(
            (front.task, front.index, front.dropped),
            (Some(4), Some(5), 0)
        );
        // At least one; and what was dropped came after the last.
        let last = all.take_front(1);
        assert_eq!((last.records, last.dropped), (framed(&["three"]), 6));
        assert_eq!((all.size(), all.dropped), (0, 0));
        assert!(end.ended && end == all.end() && end == end.end());
    }
}
