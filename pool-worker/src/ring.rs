//! The two rings between the parent and one worker, in one piece of shared memory.
//!
//! # Layout
//!
//! A page of [`Words`], then the ring of requests, then the ring of replies, then a [`Tally`] for each task. Positions count bytes since
//! the start of the worker and never wrap; a byte's place is its position modulo the ring's size. Each
//! word is written by one side only (but for `claim` and `asleep`).
//!
//! # Requests
//!
//! The parent writes *records* at `requests_end`, each in one piece, aligned to 8: a [`Head`], then its
//! body. The worker reads it where it lies, and moves `requests_taken` behind it when it is through. A
//! record that would reach over the end of the ring is preceded by a `SKIP` that fills the rest; the `SKIP`
//! is shown at once, even if the record must wait for room, since both may be more than the ring holds. A
//! portion is one record: its inputs one behind the other, as frames. An input that stands alone
//! comes as `PIECE` records, which the worker puts together, and a `RUN_ALONE` with the last piece.
//!
//! What inputs have in common comes before them, as `ATTACH`, once for each worker; `BIND` says which attachment the
//! inputs behind it begin with. These stand whatever is taken back.
//!
//! # Claims
//!
//! The word `claim` holds a *generation* and the number of inputs *begun* so far. Inputs are begun in the
//! order in which they were sent. The worker begins one by raising the number, if the generation is still
//! the one in the record; otherwise the rest of the record is void. The parent takes back all that was
//! not begun by raising the generation, and learns from the same operation how much was begun. One atomic
//! word decides, so no input runs after it was taken back, and none is taken back after it began.
//!
//! # Replies
//!
//! The worker writes one frame for each input that it has begun, in order, and moves `replies_end`: then
//! the reply *stands*, and the parent will read it even if the worker dies at the next instruction. It
//! writes no input's reply before its own, and begins no input before the reply to the last one stands.
//! So when the worker is dead and all replies are read, what was begun and has no reply is the one input
//! that it died in. A reply too long for one frame is announced by its length and alignment (`LONG`) and comes in
//! pieces, the last of which is an ordinary frame. The parent copies what stands, and only then reads the copy.
//!
//! # Messages
//!
//! What tasks send into channels stands between the replies, as frames whose word is marked (`MESSAGE`): the id of the
//! channel, then the value. So it arrives before the reply of the input that has sent it, and stands if the worker dies.
//! Other threads of a task may send, too: they and the thread that replies take turns, by a lock in the worker's memory.
//!
//! A worker may have [`WINDOW`] bytes of messages unread in each channel, and one message if that is longer. How much was
//! read the parent tells in a table of words, `channels`, in the place that it has given the channel with its `ATTACH`. (If
//! a worker has more channels than there are places, some share one, and a window.) What others have left unread counts as sent
//! from the start. A sender that must wait sleeps on `sender_asleep`, for that or for room in the ring.
//!
//! # Reports
//!
//! What a worker tells its pool besides, such as when inputs began, stands there too, as messages for a channel that is none
//! (`REPORT`). No window bounds them: the parent reads the ring to its end in any case, and drops what it has no room for. They
//! wake nobody, unless the ring is crowded.
//!
//! # Sleeping
//!
//! The worker sleeps on `asleep`: for a request (1), or for room in the ring of replies (2). It writes
//! the word, then a fence, then looks once more; the parent writes its position, then a fence, then looks
//! at the word. One of them sees the other. (For room the parent looks only once in a while: a worker that
//! sleeps for it has left more than half of the ring standing, and that is a reason to receive again.) The
//! worker wakes the parent through the bell, if the parent wants to be: when the reply number `wake_at`
//! stands, when the ring of replies is more than half full, or when the parent waits for room
//! (`wants_room`) and half of the ring of requests is free, or all of it and the worker is about to sleep.
//! The parent then looks whether its next record fits.
//!
//! # Trust
//!
//! The worker believes the parent. The parent believes nothing that a worker may have written: it keeps
//! its own positions in memory of its own, reads each word of the worker's once, bounds it, and gives up
//! the worker ([`Garbled`]) if it is out of bounds. No lock is held by anybody, so nobody can die holding
//! one.

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

/// So many tasks have a [`Tally`] at the most.
const TALLIES_MAX: usize = 4096;

/// How many bytes the tallies of this program's tasks take. (Under shuttle there are none.)
pub(crate) fn tallies_len() -> usize {
    if cfg!(pool_shuttle) {
        return 0;
    }
    registry::tasks().len().min(TALLIES_MAX) * size_of::<Tally>()
}

/// A word that is written each time has a line of the cache for itself; those that are seldom written share
/// one, since the other side reads them each time.
#[repr(C, align(128))]
struct Line<T>(T);

#[repr(C)]
pub(crate) struct Words {
    /// By the parent: where the next request will be.
    requests_end: Line<AtomicU64>,
    /// By the parent: how far replies were read.
    replies_taken: Line<AtomicU64>,
    parent: Line<ParentWords>,
    /// By both: generation << 32 | begun.
    claim: Line<AtomicU64>,
    /// By the worker: where the next reply will be, and how many there were.
    replies: Line<(AtomicU64, AtomicU32)>,
    /// By the worker: how far requests were read.
    requests_taken: Line<AtomicU64>,
    worker: Line<WorkerWords>,
    /// By the worker: CLOCK_MONOTONIC, in nanoseconds, when it last read the clock. What it runs has begun then, or a little later.
    read_at: Line<AtomicU64>,
    /// By both: what the worker sleeps for.
    asleep: Line<AtomicU32>,
    /// By both: whether threads of the worker that send messages sleep.
    sender_asleep: Line<AtomicU32>,
    /// By the parent.
    channels: Line<[ChannelWords; CHANNELS]>,
}

/// Of the channels that have one place in the table.
#[repr(C)]
struct ChannelWords {
    /// How many bytes of messages were read.
    taken: AtomicU64,
    /// The id of one that nobody reads any more.
    closed: AtomicU64,
}

#[repr(C)]
struct ParentWords {
    /// The number of the reply at which the parent wants to be woken.
    wake_at: AtomicU32,
    /// The CPU that the parent ran on when it last sent something.
    cpu: AtomicU32,
    /// The parent has more to send than there is room for.
    wants_room: AtomicU32,
    /// Which log records the parent wants to have.
    log_level: AtomicU32,
}

#[repr(C)]
struct WorkerWords {
    /// CLOCK_MONOTONIC, in nanoseconds, when the last input with a time limit was begun.
    begun_at: AtomicU64,
    /// A task << 32 | how long an input of it took lately, in nanoseconds; 0 before the first.
    pace: AtomicU64,
    /// How much memory it had in use after its last input, in bytes; 0 if it does not tell.
    memory: AtomicU64,
    /// What it says of a failed allocation before it aborts: the limit, 0 if there was none; and what it used.
    starved: (AtomicU64, AtomicU64),
    /// The CPU that it ran on when it last took a request.
    cpu: AtomicU32,
}

const _: () = assert!(cfg!(pool_shuttle) || size_of::<Words>() <= REQUESTS_AT);

// SAFETY: atomics, for which every bit pattern is valid, aligned to 128.
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

/// So many bytes of messages may be unread in a channel, of each worker.
const WINDOW: u64 = if cfg!(pool_shuttle) { 40 } else { 1 << 20 };

/// What is in front of a message: the id of its channel, and the place that it has in this worker.
pub(crate) fn mark(channel: u64, place: u8) -> u64 {
    u64::from(place) << MARK_PLACE_AT | channel
}

/// The id of a channel, and its place; whatever a worker may have written.
fn read_mark(mark: u64) -> (u64, usize) {
    let place = (mark >> MARK_PLACE_AT) as usize % CHANNELS;
    (mark & ((1 << MARK_PLACE_AT) - 1), place)
}

const MARK_PLACE_AT: u32 = 56;

/// Set in the id of a "channel" that is none: a worker [reports](Replies::report) to its pool. The kind of the report is in
/// the lowest byte.
const REPORT: u64 = 1 << (MARK_PLACE_AT - 1);

/// A report holds no more bytes than this.
pub(crate) const REPORT_MAX: usize = if cfg!(pool_shuttle) { 8 } else { 16 << 10 };

/// The kind of report that messages of this channel are, if they are none of a channel's.
pub(crate) fn report_kind(channel: u64) -> Option<u8> {
    (channel & REPORT != 0).then_some(channel as u8)
}

/// What a message counts for, of so many bytes with the id of its channel.
fn cost(len: usize) -> u64 {
    (WORD + len) as u64
}

/// What the worker sleeps for.
mod asleep {
    pub(super) const NO: u32 = 0;
    pub(super) const FOR_REQUEST: u32 = 1;
    pub(super) const FOR_ROOM: u32 = 2;
}

/// What stands in front of a record's body.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Head {
    kind: u16,
    /// Of an input that stands alone: for numbers of which alignment, as a power of two.
    align_log2: u16,
    task: u32,
    generation: u32,
    count: u32,
    len: u32,
    /// More significant than `count`.
    high: u32,
    /// Of inputs: CLOCK_MONOTONIC, in nanoseconds, when they were accepted; 0, if that is not known.
    submitted: u64,
}

impl Head {
    /// Of a record about an attachment.
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
    /// The same, but they have a time limit: say when each begins.
    pub(super) const RUN_LIMITED: u16 = 2;
    /// The same as `RUN` and `RUN_LIMITED`, for one input that stands alone; `count` and `high` say how many
    /// bytes of it came before, in pieces.
    pub(super) const RUN_ALONE: u16 = 3;
    pub(super) const RUN_ALONE_LIMITED: u16 = 4;
    /// A part of such an input; in addition `generation` and `task` say how many bytes it has in all.
    pub(super) const PIECE: u16 = 5;
    /// Nothing comes any more.
    pub(super) const EXIT: u16 = 6;
    /// An attachment, of which `count` and `high` are the id: its bytes, or only their number, in `generation` and
    /// `task`, if they come as a descriptor over the socket.
    pub(super) const ATTACH: u16 = 7;
    pub(super) const ATTACH_LONG: u16 = 8;
    /// A channel of that id: in `generation` and `task` its place, and how much counts as sent.
    pub(super) const ATTACH_CHANNEL: u16 = 11;
    /// Nobody holds that attachment any more.
    pub(super) const DETACH: u16 = 9;
    /// The inputs of the runs that follow have the arguments in that attachment in front of their own; or none, if it
    /// is 0.
    pub(super) const BIND: u16 = 10;
}

/// The length of a piece, in bytes: several fit the ring, so that one side writes while the other reads.
const PIECE_LEN: usize = if cfg!(pool_shuttle) { 32 } else { 32 * 1024 };

/// The word that announces a long reply: its length, and above that the power of two that is its alignment.
const ANNOUNCED_ALIGN_AT: u32 = 56;

/// A shorter one is not worth writing because the end of the ring is near.
const PIECE_MIN: usize = PIECE_LEN / 8;

fn record_len(body: usize) -> usize {
    HEAD + body.next_multiple_of(8)
}

/// A worker has written what no worker of ours writes.
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

    /// A worker may write at any moment, so also at this one: see `fuzzed`.
    #[inline]
    fn may_change(&self) {
        #[cfg(all(any(test, fuzzing), not(pool_shuttle)))]
        fuzzed::write_what_is_due(self);
    }

    /// Where the byte at `position` of the ring of requests lies, and how many follow up to its end.
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
        // SAFETY: the mapping begins with a page, so this is aligned; it lives as long as `self`; a tally is atomics, for which every
        // bit pattern is valid.
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
