//! What one worker has begun and finished, in memory that it shares with its parent.
//!
//! A worker can die at any instruction, and then the parent must know three things exactly: which
//! input it was running, which inputs it never began, and which results were finished but not yet
//! sent. A message for each step would tell, at the price of two more messages a task. The ledger
//! tells for the price of one compare-and-swap.
//!
//! # Claims
//!
//! Inputs are begun in the order in which they were sent. The word `claim` holds a *generation* and
//! the number of inputs *begun* so far. The worker begins an input by raising the number, if the
//! generation is still the one under which the input was sent; otherwise it skips the input. The
//! parent takes back all that was not begun by raising the generation ([`Ledger::recall`]), and
//! reads from the same operation how much was begun. One atomic word decides, so no input is run
//! after it was taken back and none is taken back after it began. No lock is held by anybody, so
//! nobody can die holding it.
//!
//! # Journal
//!
//! Results of short tasks are sent many at a time. Until then a copy of each lies in the journal.
//! The word `journal` holds an *epoch*, the number of messages with outcomes that were sent before,
//! and the *length* of what lies there. When the worker is dead, the parent has read all messages
//! and knows the epoch that comes next: if the journal is of that epoch, what lies there was never
//! sent, and is taken as if it had been.
//!
//! A living worker's journal can be read as well ([`Ledger::peek`]), for somebody who waits for a result
//! that is finished while the next input takes its time. Records stay where they are until the epoch
//! changes; if it has changed after they were copied, the copy is thrown away.
//!
//! The parent trusts nothing here: lengths are bounded, records are parsed like any message.

use std::fmt;
use std::sync::atomic::{self, AtomicU64, Ordering};

use ipc_channel::ipc::IpcSharedMemory;

/// Size of the shared memory, in bytes.
const SIZE: usize = 64 * 1024;

#[repr(C)]
struct Header {
    /// generation << 32 | begun
    claim: AtomicU64,
    /// CLOCK_MONOTONIC, in nanoseconds, when the last input was begun.
    begun_at: AtomicU64,
    /// epoch << 32 | length
    journal: AtomicU64,
}

/// What the journal can hold, in bytes.
pub(crate) const JOURNAL_MAX: usize = SIZE - size_of::<Header>();

pub(crate) struct Ledger {
    /// Points into `_memory`, which stays mapped as long as this value lives.
    base: *mut u8,
    _memory: IpcSharedMemory,
}

// SAFETY: `base` points to a mapping that `_memory` owns and that does not move. The header is only
// accessed through atomics. The journal's bytes are written by one thread of the worker's process, and
// read by the parent's with volatile reads, never through a reference.
unsafe impl Send for Ledger {}
// SAFETY: as above.
unsafe impl Sync for Ledger {}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (generation, begun) = split(self.header().claim.load(Ordering::Relaxed));
        f.debug_struct("Ledger")
            .field("generation", &generation)
            .field("begun", &begun)
            .finish_non_exhaustive()
    }
}

/// How far a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many inputs were begun since the worker started; wraps around.
    pub begun: u32,
    /// CLOCK_MONOTONIC, in nanoseconds, when the last of them was.
    pub begun_at_ns: u64,
}

impl Ledger {
    /// Fresh memory, all zero.
    pub(crate) fn memory() -> IpcSharedMemory {
        IpcSharedMemory::from_byte(0, SIZE)
    }

    /// The ledger in that memory; `None` if it is too small to be one.
    pub(crate) fn new(mut memory: IpcSharedMemory) -> Option<Ledger> {
        if memory.len() < SIZE {
            return None;
        }
        // SAFETY: no other reference into the mapping exists in this process: it was just made or
        // received, and the slice is turned into a pointer at once.
        let bytes = unsafe { memory.deref_mut() };
        let base = bytes.as_mut_ptr();
        Some(Ledger {
            base,
            _memory: memory,
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, at least `SIZE` bytes long, lives as long as `self`,
        // and the header consists of atomics, for which every bit pattern is valid.
        unsafe { &*self.base.cast::<Header>() }
    }

    fn journal_bytes(&self) -> *mut u8 {
        // SAFETY: the header is smaller than the mapping.
        unsafe { self.base.add(size_of::<Header>()) }
    }

    /// Worker: begins the next input, unless it was taken back. `now_ns` is when.
    pub(crate) fn begin(&self, generation: u32, now_ns: u64) -> bool {
        let header = self.header();
        // The time goes first: whoever sees the new number sees this time or a later one.
        header.begun_at.store(now_ns, Ordering::Relaxed);
        let mut claim = header.claim.load(Ordering::Relaxed);
        loop {
            let (current, begun) = split(claim);
            if current != generation {
                return false;
            }
            match header.claim.compare_exchange_weak(
                claim,
                join(current, begun.wrapping_add(1)),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => claim = now,
            }
        }
    }

    /// Parent: takes back all that was not begun. Gives the new generation, and what was begun.
    pub(crate) fn recall(&self) -> (u32, u32) {
        let header = self.header();
        let mut claim = header.claim.load(Ordering::Relaxed);
        loop {
            let (generation, begun) = split(claim);
            let next = generation.wrapping_add(1);
            match header.claim.compare_exchange_weak(
                claim,
                join(next, begun),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return (next, begun),
                Err(now) => claim = now,
            }
        }
    }

    /// Parent: how far the worker is.
    pub(crate) fn progress(&self) -> Progress {
        let header = self.header();
        let (_, begun) = split(header.claim.load(Ordering::Acquire));
        Progress {
            begun,
            begun_at_ns: header.begun_at.load(Ordering::Relaxed),
        }
    }

    /// Parent: how many messages with outcomes the worker has sent.
    pub(crate) fn epoch(&self) -> u32 {
        split(self.header().journal.load(Ordering::Acquire)).0
    }

    /// Worker: puts a record behind the others; false if it does not fit.
    pub(crate) fn append(&self, record: &[u8]) -> bool {
        let header = self.header();
        let (epoch, len) = split(header.journal.load(Ordering::Relaxed));
        let len = len as usize;
        if record.len() > JOURNAL_MAX - len {
            return false;
        }
        // SAFETY: `len + record.len()` is within the journal, as just checked.
        let end = unsafe { self.journal_bytes().add(len) };
        // SAFETY: as above; nothing else in this process refers to these bytes, and the parent does
        // not look beyond `len`.
        unsafe { std::ptr::copy_nonoverlapping(record.as_ptr(), end, record.len()) };
        header
            .journal
            .store(join(epoch, (len + record.len()) as u32), Ordering::Release);
        true
    }

    /// Worker: empties the journal, after its content was sent as message number `epoch - 1`.
    pub(crate) fn clear(&self, epoch: u32) {
        self.header()
            .journal
            .store(join(epoch, 0), Ordering::Release);
    }

    /// Parent: the records of this epoch, which were not sent yet. Of a dead worker, these are all.
    pub(crate) fn peek(&self, epoch: u32) -> Vec<u8> {
        let journal = &self.header().journal;
        let (before, len) = split(journal.load(Ordering::Acquire));
        if before != epoch {
            return Vec::new();
        }
        let start = self.journal_bytes();
        let bytes: Vec<u8> = (0..(len as usize).min(JOURNAL_MAX))
            .map(|at| {
                // SAFETY: `at` is within the journal.
                let byte = unsafe { start.add(at) };
                // SAFETY: the byte is mapped, and any value is valid. Another process may write to it,
                // which makes the value wrong, but nothing else.
                unsafe { byte.read_volatile() }
            })
            .collect();
        atomic::fence(Ordering::Acquire);
        let (after, _) = split(journal.load(Ordering::Relaxed));
        if after == epoch { bytes } else { Vec::new() }
    }
}

fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(Ledger::memory()).unwrap()
    }

    #[test]
    fn what_was_taken_back_is_not_begun() {
        let ledger = ledger();
        assert!(ledger.begin(0, 5));
        assert!(ledger.begin(0, 6));
        assert_eq!(ledger.recall(), (1, 2));
        assert!(!ledger.begin(0, 7));
        assert!(ledger.begin(1, 8));
        assert_eq!(
            ledger.progress(),
            Progress {
                begun: 3,
                begun_at_ns: 8
            }
        );
    }

    #[test]
    fn every_input_is_either_begun_or_taken_back() {
        // One thread begins, the other takes back: what was begun under a generation that the
        // recall ended is counted by that recall, always.
        for _ in 0..200 {
            let ledger = ledger();
            let begun = std::thread::scope(|scope| {
                let worker = scope.spawn(|| (0..100).take_while(|_| ledger.begin(0, 0)).count());
                let (_, seen) = ledger.recall();
                (worker.join().unwrap(), seen as usize)
            });
            assert_eq!(begun.0, begun.1);
        }
    }

    #[test]
    fn only_what_was_not_sent_is_left() {
        let ledger = ledger();
        assert!(ledger.append(b"one"));
        assert!(ledger.append(b"two"));
        assert_eq!(ledger.peek(0), b"onetwo");
        // Sent, but the worker died before it emptied the journal: the parent expects epoch 1.
        assert_eq!(ledger.peek(1), b"");
        ledger.clear(1);
        assert_eq!(ledger.peek(1), b"");
        assert!(ledger.append(b"three"));
        assert_eq!(ledger.peek(1), b"three");
    }

    #[test]
    fn a_full_journal_says_so() {
        let ledger = ledger();
        assert!(ledger.append(&vec![1; JOURNAL_MAX]));
        assert!(!ledger.append(b"x"));
        ledger.clear(1);
        assert!(!ledger.append(&vec![1; JOURNAL_MAX + 1]));
    }

    #[test]
    fn a_length_that_lies_is_bounded() {
        let ledger = ledger();
        ledger
            .header()
            .journal
            .store(join(0, u32::MAX), Ordering::Release);
        assert_eq!(ledger.peek(0).len(), JOURNAL_MAX);
    }
}
