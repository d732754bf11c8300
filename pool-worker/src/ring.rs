//! The two rings between the parent and one worker, in one piece of shared memory.
//!
//! # Layout
//!
//! A page of [`Words`], then the ring of requests, then the ring of replies, then a [`Tally`] for each task. Positions count
//! bytes since the start of the worker and never wrap; a byte's place is its position modulo the ring's size. Each word is
//! written by one side only (except `claim`, `asleep` and `sender_asleep`).
//!
//! # Requests
//!
//! The parent writes *records* at `requests_end`, each contiguous and aligned to 8: a [`Head`], then its body. The worker
//! reads a record in place, and moves `requests_taken` behind it when it has finished with it. A record that would reach
//! beyond the end of the ring is preceded by a `SKIP` that fills the rest; the `SKIP` is published at once, even if the
//! record must wait for room, since both together may be more than the ring holds. A portion is one record, which holds its
//! inputs as frames, one after the other. An input that is sent alone comes as `PIECE` records, which the worker puts
//! together, and a `RUN_ALONE` with the last piece.
//!
//! Attachments come before the inputs that need them, as `ATTACH`, once for each worker; `BIND` says with which attachment
//! the inputs after it begin. Taking back inputs does not affect these records.
//!
//! # Claims
//!
//! The word `claim` holds a *generation* and the number of inputs *begun* so far. Inputs are begun in the order in which they
//! were sent. The worker begins one by raising the number, if the generation is still the one in the record; otherwise the
//! rest of the record is void. The parent takes back all inputs that were not begun by raising the generation, and learns
//! from the same operation how many were begun. Since one atomic word decides, no input runs after it was taken back, and
//! none is taken back after it began.
//!
//! # Replies
//!
//! The worker writes one frame for each input that it has begun, in order, and moves `replies_end`: then the reply *stands*,
//! and the parent will read it even if the worker dies at the next instruction. Replies are written in the order of the
//! inputs, and no input is begun before the reply to the previous one stands. So when the worker is dead and all replies are
//! read, at most one input was begun and has no reply: the one in which the worker died. A reply too long for one frame is
//! announced by its length and alignment (`LONG`) and comes in pieces, the last of which is an ordinary frame. The parent
//! first copies the bytes that stand, and then reads only the copy.
//!
//! # Messages
//!
//! Messages stand between the replies, as frames whose word has the bit `MESSAGE`: the id of the channel, then the value. So
//! a message arrives before the reply to the input that has sent it, even if the worker dies. Other threads of a task may
//! send, too: they and the thread that replies take turns, by a lock in the worker's memory.
//!
//! A worker may have [`WINDOW`] bytes of unread messages in each channel, or one message if that is longer. The parent shows
//! how much was read in a table of words, `channels`, in the place that it has assigned to the channel with its
//! `ATTACH_CHANNEL`. (If a worker has more channels than there are places, several share a place and its window.) Messages of
//! other workers that are unread when the channel is sent count as if this worker had sent them. A sender that must wait, for
//! reading or for room in the ring, sleeps on `sender_asleep`.
//!
//! # Reports
//!
//! Reports, for instance when an input began, stand there too, as messages for a pseudo-channel (`REPORT`). No window limits
//! them: the parent always reads the ring to its end, and drops what it has no room for. They don't wake the parent, unless
//! the ring is more than half full.
//!
//! # Sleeping
//!
//! The worker sleeps on `asleep`: for a request (1), or for room in the ring of replies (2). It writes the word, executes a
//! fence, then looks once more; the parent writes its position, executes a fence, then looks at the word. So at least one of
//! them sees the other's write. (The parent only looks now and then for a worker that waits for room: when that happens, more
//! than half of the ring is unread, which is a reason to receive again.) The worker wakes the parent through the bell, if the
//! parent wants that: when the reply number `wake_at` stands; when the ring of replies is more than half full; or when the
//! parent waits for room (`wants_room`) and half of the ring of requests is free, or all of it is and the worker is about to
//! sleep. The parent then checks whether its next record fits.
//!
//! # Trust
//!
//! The worker trusts the parent. The parent trusts nothing that a worker may have written: it keeps its positions in memory
//! of its own, reads each word of the worker's once, checks its bounds, and gives up the worker ([`Garbled`]) if it is out of
//! bounds. There are no locks in shared memory, so no process can die holding one.

mod parent;
mod worker;

pub(crate) use parent::{Credit, Framed, Messages, ParentEnd, Tallies};
pub use parent::{Glance, Portion, Progress, Reports, Sleeper};
pub(crate) use worker::{Body, Came, Gone, Outlet, Replies, Request, Requests, Run};

use std::fmt;
use std::sync::Arc;

use crate::frames::WORD;
use crate::registry;
use crate::sync::{self, AtomicU32, AtomicU64, Shared};
use crate::tally::Tally;

/// The sizes of the rings, in bytes: powers of two.
const REQUESTS: usize = if cfg!(pool_shuttle) { 128 } else { 128 * 1024 };
const REPLIES: usize = if cfg!(pool_shuttle) { 32 } else { 128 * 1024 };

const REQUESTS_AT: usize = 4096;
const REPLIES_AT: usize = REQUESTS_AT + REQUESTS;
const TALLIES_AT: usize = REPLIES_AT + REPLIES;

/// At most this many tasks have a [`Tally`].
const TALLIES_MAX: usize = 4096;

/// How many bytes the tallies of this program's tasks take. (Under shuttle there are none.)
pub(crate) fn tallies_len() -> usize {
    if cfg!(pool_shuttle) {
        return 0;
    }
    registry::tasks().len().min(TALLIES_MAX) * size_of::<Tally>()
}

/// A word that is written for each request or reply has a cache line to itself; those that are seldom written, but often read
/// by the other side, share one.
#[repr(C, align(128))]
struct Line<T>(T);

#[repr(C)]
pub(crate) struct Words {
    /// By the parent: where the next request will be.
    requests_end: Line<AtomicU64>,
    /// By the parent: up to where replies were read.
    replies_taken: Line<AtomicU64>,
    parent: Line<ParentWords>,
    /// By both: generation << 32 | begun.
    claim: Line<AtomicU64>,
    /// By the worker: where the next reply will be, and how many were written.
    replies: Line<(AtomicU64, AtomicU32)>,
    /// By the worker: up to where requests were read.
    requests_taken: Line<AtomicU64>,
    worker: Line<WorkerWords>,
    /// By the worker: when it last read the clock (CLOCK_MONOTONIC, in nanoseconds). The input that it runs began then, or a
    /// little later.
    read_at: Line<AtomicU64>,
    /// By both: what the worker sleeps for, if it sleeps.
    asleep: Line<AtomicU32>,
    /// By both: whether threads of the worker that send messages sleep.
    sender_asleep: Line<AtomicU32>,
    /// By the parent.
    channels: Line<[ChannelWords; CHANNELS]>,
}

/// A place in the table of channels.
#[repr(C)]
struct ChannelWords {
    /// How many bytes of messages were read, in its channels together.
    taken: AtomicU64,
    /// The id of a channel of this place whose receiver is gone.
    closed: AtomicU64,
}

#[repr(C)]
struct ParentWords {
    /// The number of the reply at which the parent wants to be woken.
    wake_at: AtomicU32,
    /// The CPU that the parent ran on when it last sent something.
    cpu: AtomicU32,
    /// Whether the parent has more to send than there is room for.
    wants_room: AtomicU32,
    /// Which log records the parent wants.
    log_level: AtomicU32,
}

#[repr(C)]
struct WorkerWords {
    /// CLOCK_MONOTONIC, in nanoseconds, when the last input with a time limit was begun.
    begun_at: AtomicU64,
    /// task << 32 | how long an input of it took lately, in nanoseconds; 0 before the first.
    pace: AtomicU64,
    /// How much memory the worker had in use after its last input, in bytes; 0 if it does not report that.
    memory: AtomicU64,
    /// Written before an abort because of a failed allocation: the limit of memory, or 0 if none has failed; and how much was
    /// in use.
    starved: (AtomicU64, AtomicU64),
    /// The number of the system call, plus one, because of which the sandbox ends the worker; 0 if there is none.
    forbidden: AtomicU32,
    /// The CPU that the worker ran on when it last took a request.
    cpu: AtomicU32,
}

const _: () = assert!(cfg!(pool_shuttle) || size_of::<Words>() <= REQUESTS_AT);

// SAFETY: they are atomics, for which every bit pattern is valid, aligned to 128.
unsafe impl sync::Words for Words {
    const SIZE: usize = TALLIES_AT;

    #[cfg(pool_shuttle)]
    fn new() -> Self {
        let (long, short) = (|| AtomicU64::new(0), || AtomicU32::new(0));
        Words {
            requests_end: Line(long()),
            replies_taken: Line(long()),
            parent: Line(ParentWords {
                wake_at: short(),
                cpu: short(),
                wants_room: short(),
                log_level: short(),
            }),
            claim: Line(long()),
            replies: Line((long(), short())),
            requests_taken: Line(long()),
            worker: Line(WorkerWords {
                begun_at: long(),
                pace: long(),
                memory: long(),
                starved: (long(), long()),
                forbidden: short(),
                cpu: short(),
            }),
            read_at: Line(long()),
            asleep: Line(short()),
            sender_asleep: Line(short()),
            channels: Line(std::array::from_fn(|_| ChannelWords {
                taken: long(),
                closed: long(),
            })),
        }
    }
}

/// How many places the table of channels has.
const CHANNELS: usize = if cfg!(pool_shuttle) { 1 } else { 64 };

/// How many bytes of messages of each worker may be unread in a channel.
const WINDOW: u64 = if cfg!(pool_shuttle) { 40 } else { 1 << 20 };

/// The first word of a message: the id of its channel, and the place of that in this worker.
pub(crate) fn mark(channel: u64, place: u8) -> u64 {
    u64::from(place) << MARK_PLACE_AT | channel
}

/// The id of a channel, and its place, which is a valid one whatever a worker may have written.
fn read_mark(mark: u64) -> (u64, usize) {
    let place = (mark >> MARK_PLACE_AT) as usize % CHANNELS;
    (mark & ((1 << MARK_PLACE_AT) - 1), place)
}

const MARK_PLACE_AT: u32 = 56;

/// Set in the id of the pseudo-channel for [reports](Replies::report). The kind of the report is in the lowest byte.
const REPORT: u64 = 1 << (MARK_PLACE_AT - 1);

/// The largest size of a report, in bytes.
pub(crate) const REPORT_MAX: usize = if cfg!(pool_shuttle) { 8 } else { 16 << 10 };

/// The kind of the reports, if this is the pseudo-channel for reports.
pub(crate) fn report_kind(channel: u64) -> Option<u8> {
    (channel & REPORT != 0).then_some(channel as u8)
}

/// How many bytes a message counts as in its window. `len`: its length, including the id of its channel.
fn cost(len: usize) -> u64 {
    (WORD + len) as u64
}

/// What the worker sleeps for.
mod asleep {
    pub(super) const NO: u32 = 0;
    pub(super) const FOR_REQUEST: u32 = 1;
    pub(super) const FOR_ROOM: u32 = 2;
}

/// The beginning of a record, before its body.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Head {
    kind: u16,
    /// For an input that is sent alone: the alignment of its numbers, as a power of two.
    align_log2: u16,
    task: u32,
    generation: u32,
    count: u32,
    len: u32,
    /// The upper half of a number whose lower half is `count`.
    high: u32,
    /// For inputs: when they were accepted (CLOCK_MONOTONIC, in nanoseconds); 0 if that is not known.
    submitted: u64,
}

impl Head {
    /// The head of a record about an attachment.
    fn about(kind: u16, id: u64, total: u64) -> Head {
        let ((high, count), (task, generation)) = (split(id), split(total));
        Head {
            kind,
            align_log2: 0,
            task,
            generation,
            count,
            len: 0,
            high,
            submitted: 0,
        }
    }

    fn before(&self) -> u64 {
        join(self.high, self.count)
    }

    fn id(&self) -> u64 {
        join(self.high, self.count)
    }

    fn total(&self) -> u64 {
        join(self.task, self.generation)
    }
}

const HEAD: usize = size_of::<Head>();

mod kind {
    /// Nothing, up to the end of the ring.
    pub(super) const SKIP: u16 = 0;
    /// Inputs to run.
    pub(super) const RUN: u16 = 1;
    /// The same, with a time limit: the worker shows when each begins.
    pub(super) const RUN_LIMITED: u16 = 2;
    /// The same as `RUN` and `RUN_LIMITED`, for one input that is sent alone; `count` and `high` say how many bytes of it
    /// came before, in pieces.
    pub(super) const RUN_ALONE: u16 = 3;
    pub(super) const RUN_ALONE_LIMITED: u16 = 4;
    /// A part of such an input; in addition `generation` and `task` say how many bytes it has in all.
    pub(super) const PIECE: u16 = 5;
    /// No more requests come; the worker exits.
    pub(super) const EXIT: u16 = 6;
    /// An attachment, whose id is in `count` and `high`. `ATTACH` holds its bytes; `ATTACH_LONG` only their number, in
    /// `generation` and `task`, since they come as a descriptor over the socket.
    pub(super) const ATTACH: u16 = 7;
    pub(super) const ATTACH_LONG: u16 = 8;
    /// A channel with that id; its place, and how much counts as sent, are in `generation` and `task`.
    pub(super) const ATTACH_CHANNEL: u16 = 11;
    /// That attachment is no longer needed.
    pub(super) const DETACH: u16 = 9;
    /// From now on, the arguments in that attachment come before the inputs' own; none do if the id is 0.
    pub(super) const BIND: u16 = 10;
}

/// The length of a piece, in bytes: several fit into the ring, so that one side can write while the other reads.
const PIECE_LEN: usize = if cfg!(pool_shuttle) { 32 } else { 32 * 1024 };

/// In the word that announces a long reply, the alignment, as a power of two, is above the length, from this bit on.
const ANNOUNCED_ALIGN_AT: u32 = 56;

/// A piece that would be shorter than this, because the end of the ring is near, is not worth writing there.
const PIECE_MIN: usize = PIECE_LEN / 8;

fn record_len(body: usize) -> usize {
    HEAD + body.next_multiple_of(8)
}

/// A worker has written something that no worker of ours would write; says what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Garbled(pub(crate) &'static str);

/// The shared memory, as both ends use it.
#[derive(Clone)]
struct Segment(Arc<Shared<Words>>);

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Segment")
    }
}

impl Segment {
    #[inline]
    fn words(&self) -> &Words {
        self.may_change();
        self.0.words()
    }

    /// In tests, writes what a hostile worker might write at this moment: see `fuzzed`.
    #[inline]
    fn may_change(&self) {
        #[cfg(all(any(test, fuzzing), not(pool_shuttle)))]
        fuzzed::write_what_is_due(self);
    }

    /// The address of the byte at `position` in the ring of requests, and the number of bytes from there to the end of the
    /// ring.
    fn request_at(&self, position: u64) -> (*mut u8, usize) {
        self.may_change();
        self.at(REQUESTS_AT, REQUESTS, position)
    }

    fn reply_at(&self, position: u64) -> (*mut u8, usize) {
        self.may_change();
        self.at(REPLIES_AT, REPLIES, position)
    }

    /// The tally of a task, if it has one.
    #[inline]
    fn tally(&self, task: u32) -> Option<&Tally> {
        let at = task as usize;
        if at >= self.0.more() / size_of::<Tally>() {
            return None;
        }
        const { assert!(TALLIES_AT.is_multiple_of(align_of::<Tally>()) || cfg!(pool_shuttle)) };
        // SAFETY: the tallies lie within the mapping, and `at` is one of them.
        let tally = unsafe { self.0.base().add(TALLIES_AT + at * size_of::<Tally>()) };
        // SAFETY: the mapping is aligned to a page, so this is aligned; it lives as long as `self`; a tally consists of
        // atomics, for which every bit pattern is valid.
        Some(unsafe { &*tally.cast::<Tally>() })
    }

    #[inline]
    fn at(&self, start: usize, size: usize, position: u64) -> (*mut u8, usize) {
        let offset = (position % size as u64) as usize;
        // SAFETY: both rings lie within the mapping, and `offset` within its ring.
        let byte = unsafe { self.0.base().add(start + offset) };
        (byte, size - offset)
    }
}

fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(all(any(test, fuzzing), not(pool_shuttle)))]
pub(crate) mod fuzzed;
#[cfg(all(test, pool_shuttle))]
mod orders;
#[cfg(all(test, not(pool_shuttle)))]
mod tests;
