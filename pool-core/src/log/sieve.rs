//! [`LogSieve`]: what is dropped where there is too little room.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use pool_worker::record::{Glimpse, Seen};

use crate::backend::{LogRecords, LogSource, Room, each_record};

/// The most callsites and open spans that one worker is believed to have.
pub(super) const CALLSITES_MAX: usize = 8192;
pub(super) const SPANS_MAX: usize = 1 << 16;

/// Drops log records where there is too little room for them, for instance on the way from another machine.
///
/// Descriptions of callsites are kept as long as there is any room, since later records refer to them. The end of a span is
/// kept if its beginning was.
#[derive(Debug, Default)]
pub struct LogSieve {
    sources: HashMap<LogSource, Known>,
}

/// What a worker has described or opened, as far as it was not dropped.
#[derive(Debug, Default)]
struct Known {
    callsites: usize,
    spans: HashSet<u64>,
}

impl LogSieve {
    /// Drops what there is no room for, and returns how many records that were. All records must pass, also while there is
    /// room. Tell the listener about those that were dropped: [`LogRecords::note_dropped`].
    pub fn pass(&mut self, records: &mut LogRecords, room: Room) -> u64 {
        if records.ended {
            self.sources.remove(&records.source);
            return 0;
        }
        let known = match self.sources.entry(records.source.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(Known::default()),
        };
        let (mut kept, mut left_out, mut dropped) = (Vec::new(), false, 0);
        for record in each_record(&records.records) {
            let seen = Glimpse::of(record).map(|glimpse| glimpse.what);
            let keep = match seen {
                Some(Seen::Callsite) => {
                    known.callsites += 1;
                    known.callsites <= CALLSITES_MAX && room != Room::None
                }
                Some(Seen::Span(id)) => {
                    room == Room::Enough && known.spans.len() < SPANS_MAX && known.spans.insert(id)
                }
                Some(Seen::Close(id)) => known.spans.remove(&id),
                Some(Seen::Other) => room == Room::Enough,
                None => false,
            };
            if keep {
                kept.push(record);
            } else {
                left_out = true;
                // The span was counted when it began.
                let counts = !matches!(seen, None | Some(Seen::Close(_)));
                dropped += u64::from(counts);
            }
        }
        if left_out {
            let whole = kept.into_iter().flat_map(|record| {
                let len = (record.len() as u32).to_le_bytes();
                len.into_iter().chain(record.iter().copied())
            });
            records.records = whole.collect();
        }
        dropped
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }
}
