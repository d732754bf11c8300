//! How long inputs ran and waited, by task: counted by the worker in memory that its parent can read.
//!
//! Each task has a block, whose place follows from the task's number, so the two sides need not agree on it. A block is two
//! pages, one for each kind of time; pages that are never touched cost nothing. The worker writes with plain stores, and
//! waits for nothing; the parent reads when statistics are asked for, and when the worker has ended. The parent only shows
//! these numbers, and decides nothing by them.
//!
//! Times are counted in buckets whose width grows with the time: eight for each power of two, as in Gil Tene's
//! `HdrHistogram`. So a time is known to within an eighth of itself, from a nanosecond to three days. A bucket stands for
//! the longest time in it, so the times that are shown are never too short.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

/// How many bits of a time, below the highest one, select its bucket.
const BITS: u32 = 3;

/// Times of this many bits and more share the last bucket.
const MOST_BITS: u32 = 48;

/// How many buckets there are.
pub(crate) const BUCKETS: usize = ((MOST_BITS - BITS + 1) << BITS) as usize;

/// The block of one task, as it lies in memory.
#[repr(C)]
pub(crate) struct Tally {
    pub(crate) ran: Times,
    pub(crate) waited: Times,
}

/// Durations, counted in buckets.
#[repr(C, align(4096))]
pub(crate) struct Times {
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
    /// How many were not measured.
    unknown: AtomicU64,
    counts: [AtomicU64; BUCKETS],
}

const _: () = assert!(size_of::<Tally>() == 2 * 4096);

/// The bucket of a time.
#[inline]
fn bucket(ns: u64) -> usize {
    let bits = u64::BITS - ns.leading_zeros();
    let shift = bits.saturating_sub(BITS + 1);
    if shift == 0 {
        return ns as usize;
    }
    let at = (u64::from(shift) << BITS) + (ns >> shift);
    (at as usize).min(BUCKETS - 1)
}

/// The longest time in a bucket.
fn top(bucket: usize) -> u64 {
    let shift = (bucket >> BITS).saturating_sub(1);
    let low = (bucket - (shift << BITS)) as u64;
    ((low + 1) << shift) - 1
}

/// Adds to a word that no other thread writes.
#[inline]
fn add(word: &AtomicU64, more: u64) {
    word.store(word.load(Relaxed).wrapping_add(more), Relaxed);
}

impl Times {
    /// Counts `times` durations of `each_ns`. Their sum is passed, too, since it is exact.
    #[inline]
    pub(crate) fn record(&self, each_ns: u64, times: u64, sum_ns: u64) {
        add(&self.counts[bucket(each_ns)], times);
        add(&self.sum_ns, sum_ns);
        if each_ns > self.max_ns.load(Relaxed) {
            self.max_ns.store(each_ns, Relaxed);
        }
    }

    /// Counts `times` durations that were not measured. The next measurement may stand for these, too.
    #[inline]
    pub(crate) fn skip(&self, times: u64) {
        add(&self.unknown, times);
    }

    /// The same as [`record`](Times::record), and assumes the same for durations that were skipped.
    #[inline]
    pub(crate) fn record_for_skipped(&self, each_ns: u64, times: u64) {
        let skipped = self.unknown.load(Relaxed);
        if skipped > 0 {
            self.unknown.store(0, Relaxed);
        }
        let times = times.wrapping_add(skipped);
        self.record(each_ns, times, each_ns.saturating_mul(times));
    }

    fn read(&self) -> Spread {
        Spread {
            sum_ns: self.sum_ns.load(Relaxed),
            max_ns: self.max_ns.load(Relaxed),
            unknown: self.unknown.load(Relaxed),
            counts: self
                .counts
                .iter()
                .map(|count| count.load(Relaxed))
                .collect(),
        }
    }
}

impl Tally {
    /// The current numbers.
    pub(crate) fn read(&self) -> Tallied {
        Tallied {
            ran: self.ran.read(),
            waited: self.waited.read(),
        }
    }
}

/// How long the inputs of a task ran and waited.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tallied {
    /// From the beginning of each input to its end.
    pub ran: Spread,
    /// From the acceptance of an input to the beginning of its portion.
    pub waited: Spread,
}

impl Tallied {
    /// Counts inputs of which it is not known how long they ran, or waited.
    pub fn add_unknown(&mut self, ran: u64, waited: u64) {
        self.ran.unknown = self.ran.unknown.saturating_add(ran);
        self.waited.unknown = self.waited.unknown.saturating_add(waited);
    }

    /// Adds the numbers of another.
    pub fn merge(&mut self, other: &Tallied) {
        self.ran.merge(&other.ran);
        self.waited.merge(&other.waited);
    }
}

/// The distribution of times.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Spread {
    /// The sum of all, in nanoseconds.
    pub sum_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
    /// How many were not measured.
    pub unknown: u64,
    /// How many lie in each bucket; empty before the first.
    #[serde(with = "sparse")]
    counts: Vec<u64>,
}

/// Writes only the buckets that are not empty, since most are.
mod sparse {
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::Serializer;

    use super::BUCKETS;

    pub(super) fn serialize<S: Serializer>(counts: &[u64], to: S) -> Result<S::Ok, S::Error> {
        let full = (0_u16..).zip(counts).filter(|(_, count)| **count > 0);
        to.collect_seq(full.collect::<Vec<_>>())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let full = Vec::<(u16, u64)>::deserialize(from)?;
        if full.is_empty() {
            return Ok(Vec::new());
        }
        let mut counts = vec![0; BUCKETS];
        for (bucket, count) in full {
            if let Some(place) = counts.get_mut(usize::from(bucket)) {
                *place = count;
            }
        }
        Ok(counts)
    }
}

impl Spread {
    /// Counts one time.
    pub fn record(&mut self, ns: u64) {
        self.counts.resize(BUCKETS, 0);
        let count = &mut self.counts[bucket(ns)];
        *count = count.saturating_add(1);
        self.sum_ns = self.sum_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds the numbers of another.
    pub fn merge(&mut self, other: &Spread) {
        if other.counts.len() > self.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.unknown = self.unknown.saturating_add(other.unknown);
    }

    /// How many times were counted, measured or not.
    pub fn count(&self) -> u64 {
        let counts = self.counts.iter();
        counts.fold(self.unknown, |sum, count| sum.saturating_add(*count))
    }

    /// The measured times, in nanoseconds and as exact as the buckets are, and how many there were of each: a time may be shown
    /// up to an eighth too long, but never longer than the longest.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let all = self.counts.iter().copied().enumerate();
        all.filter(|(_, count)| *count > 0)
            .map(|(bucket, count)| (top(bucket).min(self.max_ns), count))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        let mut last = 0;
        for bits in 0..60_u32 {
            for ns in [(1 << bits) - 1, 1 << bits, (1 << bits) + (1 << bits) / 2] {
                let at = bucket(ns);
                assert!(at >= last, "{ns}");
                last = at;
            }
        }
        assert_eq!(last, BUCKETS - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for at in 0..BUCKETS {
            assert_eq!(bucket(top(at)), at);
            assert_eq!(bucket(top(at) + 1), (at + 1).min(BUCKETS - 1));
        }
    }

    proptest! {
        #[test]
        fn a_time_is_known_to_an_eighth(ns in 1..1_u64 << 47) {
            let known = top(bucket(ns));
            prop_assert!(known >= ns && (known - ns) * 8 <= ns, "{ns}: {known}");
        }
    }
}
