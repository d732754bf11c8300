//! The worker's end of the rings.

use std::mem;
use std::process;
use std::slice;
use std::sync::atomic;
use std::sync::{Arc, PoisonError};

use super::{
    ANNOUNCED_ALIGN_AT, CHANNELS, HEAD, Head, PIECE_LEN, REPLIES, REPORT, REPORT_MAX, REQUESTS,
    Segment, WINDOW, Words, asleep, cost, join, kind, mark, record_len, split,
};
use crate::bell::Bell;
use crate::buffer::Buffer;
use crate::clock;
use crate::copy;
use crate::frames::{self, FRAME_MAX, LONG, MESSAGE, PIECE, Tag, WORD};
use crate::futex;
#[cfg(feature = "tracing")]
use crate::level::LogLevel;
use crate::spin::{Spin, spin_for_piece};
use crate::starve::Starved;
use crate::sync::{Mutex, MutexGuard, Ordering, Shared, fence, this_cpu};
use crate::tally::Tally;

/// An input is begun only if this much room is free for its reply: so a reply of usual size stands as soon as it is finished,
/// and is not lost if the worker dies while it waits for room.
const RESERVE: usize = if cfg!(pool_shuttle) { 8 } else { 4096 };

/// A request that comes within this many looks, which take some microseconds, has hardly been waited for.
const LOOKS_SHORT: u32 = 256;

/// A larger buffer is returned to the system after use. Allocating one of this size anew costs 30 ms.
const KEEP_MAX: usize = 128 << 20;

/// A request of the parent.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Run(Run<'a>),
    /// An attachment to keep.
    Attach(u64, Came<'a>),
    /// That attachment is no longer needed.
    Detach(u64),
    /// The inputs that follow begin with the arguments in that attachment; with none if it is 0.
    Bind(u64),
    Exit,
}

/// How an attachment comes.
#[derive(Debug)]
pub(crate) enum Came<'a> {
    Here(&'a [u8]),
    /// Over the socket, with this many bytes.
    AsDescriptor(u64),
    /// A channel: its place, and how many bytes count as sent.
    Channel(u8, u64),
}

/// Inputs to run.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) task: u32,
    pub(crate) generation: u32,
    /// Whether the inputs have a time limit: then show when each begins.
    pub(crate) limited: bool,
    /// When they were accepted, in nanoseconds; 0 if that is not known.
    pub(crate) submitted: u64,
    /// Whether the worker has waited for them longer than a reading of the clock takes.
    pub(crate) waited: bool,
    pub(crate) body: Body<'a>,
}

#[derive(Debug)]
pub(crate) enum Body<'a> {
    /// Several inputs: their number, and the frames.
    Many(usize, &'a [u8]),
    /// One input that was sent alone, in a buffer that is used again unless it is taken.
    Alone(&'a mut Buffer),
    /// One input of this many bytes, for which there is no memory.
    TooLong(u64),
}

/// Called when the shared memory holds something that the parent never writes: a task has overwritten it, and possibly other
/// memory. The inputs of this process that were not begun will run elsewhere.
#[cold]
fn give_up() -> ! {
    process::abort()
}

/// Reads requests.
#[derive(Debug)]
pub(crate) struct Requests {
    segment: Segment,
    bell: Bell,
    index: usize,
    spin: Spin,
    /// The CPU that the parent was last told.
    cpu: u32,
    /// The position up to which requests are finished.
    taken: u64,
    /// The position behind the record that was returned last.
    next: u64,
    /// An input that comes in pieces.
    pieces: Buffer,
    /// How many bytes have come of an input for which there is no memory.
    dropped: u64,
    /// Whether the worker has waited long for what comes next.
    waited: bool,
}

impl Requests {
    /// Returns the next request, and releases the memory of the previous one. `before_sleep` is called once before waiting.
    pub(crate) fn next(&mut self, mut before_sleep: impl FnMut()) -> Request<'_> {
        loop {
            self.release();
            if self.end() == self.next {
                before_sleep();
                self.wait();
            }
            let ahead = self.end().wrapping_sub(self.next);
            if ahead > REQUESTS as u64 {
                give_up();
            }
            let (at, to_end) = self.segment.request_at(self.next);
            if to_end < HEAD {
                // Too little for a head: the parent has continued at the start of the ring.
                self.next += to_end as u64;
                continue;
            }
            // SAFETY: the parent wrote a head here before it moved the end behind it.
            let head = unsafe { at.cast::<Head>().read() };
            if head.kind == kind::SKIP {
                self.next += to_end as u64;
                continue;
            }
            let len = head.len as usize;
            if len > to_end - HEAD || record_len(len) as u64 > ahead {
                give_up();
            }
            self.next += record_len(len) as u64;
            let cpu = this_cpu();
            if cpu != self.cpu {
                self.cpu = cpu;
                let word = &self.segment.words().worker.0.cpu;
                word.store(cpu, Ordering::Relaxed);
            }
            // SAFETY: the body follows the head, within the ring.
            let body = unsafe { at.add(HEAD) };
            // SAFETY: as above; the parent does not write there before it is released.
            let body = unsafe { slice::from_raw_parts(body, len) };
            let body = match head.kind {
                kind::RUN | kind::RUN_LIMITED => Body::Many(head.count as usize, body),
                kind::PIECE | kind::RUN_ALONE | kind::RUN_ALONE_LIMITED => {
                    let whole = head.before() + body.len() as u64;
                    if head.before() == 0 {
                        let align_log2 = head.align_log2.into();
                        if self.pieces.align_log2() == align_log2 {
                            self.pieces.clear();
                        } else {
                            self.pieces = Buffer::aligned(align_log2);
                        }
                        self.dropped = 0;
                        let total = if head.kind == kind::PIECE {
                            head.total()
                        } else {
                            whole
                        };
                        if !self.pieces.reserve(total as usize) {
                            self.dropped = whole;
                        }
                    } else if self.dropped > 0 && head.before() == self.dropped {
                        self.dropped = whole;
                    }
                    if self.dropped > 0 && self.dropped == whole {
                        if head.kind == kind::PIECE {
                            continue;
                        }
                        return Request::Run(Run {
                            task: head.task,
                            generation: head.generation,
                            limited: head.kind == kind::RUN_ALONE_LIMITED,
                            submitted: head.submitted,
                            waited: mem::take(&mut self.waited),
                            body: Body::TooLong(whole),
                        });
                    }
                    // Otherwise the input that these pieces belong to was taken back.
                    if head.before() == self.pieces.len() as u64 {
                        if !self.pieces.reserve(body.len()) {
                            give_up();
                        }
                        self.pieces.append(body);
                    }
                    if head.kind == kind::PIECE || whole != self.pieces.len() as u64 {
                        continue;
                    }
                    Body::Alone(&mut self.pieces)
                }
                kind::EXIT => return Request::Exit,
                kind::ATTACH => return Request::Attach(head.id(), Came::Here(body)),
                kind::ATTACH_LONG => {
                    return Request::Attach(head.id(), Came::AsDescriptor(head.total()));
                }
                kind::ATTACH_CHANNEL => {
                    let total = head.total();
                    let channel = Came::Channel(total as u8, total >> 8);
                    return Request::Attach(head.id(), channel);
                }
                kind::DETACH => return Request::Detach(head.id()),
                kind::BIND => return Request::Bind(head.id()),
                _ => give_up(),
            };
            return Request::Run(Run {
                task: head.task,
                generation: head.generation,
                limited: matches!(head.kind, kind::RUN_LIMITED | kind::RUN_ALONE_LIMITED),
                submitted: head.submitted,
                waited: mem::take(&mut self.waited),
                body,
            });
        }
    }

    /// Offers a buffer in which the next input can be put together, in case there is none.
    pub(crate) fn recycle(&mut self, buffer: Buffer) {
        if self.pieces.capacity() == 0 && buffer.capacity() <= KEEP_MAX {
            self.pieces = buffer;
        }
    }

    fn end(&self) -> u64 {
        self.segment.words().requests_end.0.load(Ordering::Acquire)
    }

    /// Frees the room of the requests that were read.
    fn release(&mut self) {
        if self.taken == self.next {
            return;
        }
        self.taken = self.next;
        let words = self.segment.words();
        words.requests_taken.0.store(self.taken, Ordering::Release);
        if words.parent.0.wants_room.load(Ordering::Relaxed) != 0
            && self.end().wrapping_sub(self.taken) <= REQUESTS as u64 / 2
        {
            fence(Ordering::SeqCst);
            self.bell.ring();
        }
    }

    /// Waits for a request.
    #[cold]
    fn wait(&mut self) {
        let words = self.segment.words();
        let (bell, index) = (&self.bell, self.index);
        let next = self.next;
        let come = || words.requests_end.0.load(Ordering::Acquire) != next;
        let apart = || words.parent.0.cpu.load(Ordering::Relaxed) != this_cpu();
        let mut looks = 0;
        let counted = || {
            looks += 1;
            come()
        };
        let spun = bell.start_spinning(index)
            && self
                .spin
                .until(None, counted, || bell.may_spin(index) && apart());
        self.waited |= !spun || looks > LOOKS_SHORT;
        if spun {
            return;
        }
        let asleep = &words.asleep.0;
        while !come() {
            asleep.store(asleep::FOR_REQUEST, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if come() {
                break;
            }
            // All requests are taken. If the parent asked for room at the very moment at which it was freed, neither has seen
            // the other's write.
            if words.parent.0.wants_room.load(Ordering::Relaxed) != 0 {
                bell.ring();
            }
            crate::serve::stay_with_parent();
            if futex::wait(asleep, asleep::FOR_REQUEST, None).is_err() {
                std::thread::yield_now();
            }
        }
        asleep.store(asleep::NO, Ordering::Relaxed);
    }
}

/// Writes replies. Its state is in shared memory, or shared by its clones, so each clone can continue where another left off.
#[derive(Debug, Clone)]
pub(crate) struct Replies {
    segment: Segment,
    bell: Bell,
    /// Up to where the parent had read when that was last looked up.
    taken: Arc<atomic::AtomicU64>,
    turns: Arc<Turns>,
}

/// Has threads take turns at writing into the ring. As long as tasks send nothing, only one thread writes.
#[derive(Debug, Default)]
struct Turns {
    are_taken: atomic::AtomicBool,
    lock: Mutex<()>,
    /// How long the thread that runs inputs has waited for room since that was last asked, in nanoseconds.
    stalled: atomic::AtomicU64,
}

impl Turns {
    #[inline]
    fn take(&self) -> Option<Turn<'_>> {
        let are_taken = self.are_taken.load(atomic::Ordering::Relaxed);
        are_taken.then(|| {
            own_turn::begin();
            let lock = self.lock.lock();
            Turn(Some(lock.unwrap_or_else(PoisonError::into_inner)))
        })
    }
}

/// The turn of this thread to write.
struct Turn<'t>(Option<MutexGuard<'t, ()>>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.0.take());
        own_turn::end();
    }
}

/// Whether this thread writes, or waits for its turn: then a signal handler that runs on it must not wait for another turn.
#[cfg(feature = "tracing")]
mod own_turn {
    use std::cell::Cell;

    thread_local! {
        static IS_TAKEN: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn begin() {
        IS_TAKEN.set(true);
    }

    pub(super) fn end() {
        IS_TAKEN.set(false);
    }

    pub(super) fn is_taken() -> bool {
        IS_TAKEN.get()
    }
}

/// Without the feature `tracing`, no signal handler can cause reports.
#[cfg(not(feature = "tracing"))]
mod own_turn {
    pub(super) fn begin() {}

    pub(super) fn end() {}

    pub(super) fn is_taken() -> bool {
        false
    }
}

/// The word on which a thread sleeps while it waits for room in the ring of replies.
#[derive(Debug, Clone, Copy)]
enum Sleeps {
    AsWorker,
    AsSender,
}

impl Replies {
    /// Opens the worker's end of both rings.
    pub(crate) fn open(memory: Shared<Words>, bell: Bell, index: usize) -> (Requests, Replies) {
        Replies::of(Segment(Arc::new(memory)), bell, index)
    }

    pub(super) fn of(segment: Segment, bell: Bell, index: usize) -> (Requests, Replies) {
        let requests = Requests {
            segment: segment.clone(),
            bell: bell.clone(),
            index,
            spin: Spin::default(),
            cpu: 0,
            taken: 0,
            next: 0,
            pieces: Buffer::default(),
            dropped: 0,
            waited: false,
        };
        let replies = Replies {
            segment,
            bell,
            taken: Arc::default(),
            turns: Arc::default(),
        };
        (requests, replies)
    }

    /// Begins the next input, unless it was taken back.
    #[inline]
    pub(crate) fn begin(&self, generation: u32) -> bool {
        let words = self.segment.words();
        if !self.has_room(RESERVE) {
            self.wait_for_room(RESERVE);
        }
        let claim = &words.claim.0;
        let mut seen = claim.load(Ordering::Relaxed);
        loop {
            let (current, begun) = split(seen);
            if current != generation {
                return false;
            }
            match claim.compare_exchange_weak(
                seen,
                join(current, begun.wrapping_add(1)),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// How many inputs were begun since the start, wrapping around.
    #[inline]
    pub(crate) fn begun(&self) -> u32 {
        let (_, begun) = split(self.segment.words().claim.0.load(Ordering::Relaxed));
        begun
    }

    /// Shows when the next input begins. To be called before [`begin`](Replies::begin): a reader that sees the new number
    /// sees this time or a later one.
    pub(crate) fn begins_at(&self, now_ns: u64) {
        let begun_at = &self.segment.words().worker.0.begun_at;
        begun_at.store(now_ns, Ordering::Relaxed);
    }

    /// Shows how much memory is in use. To be called before [`write`](Replies::write).
    pub(crate) fn set_memory(&self, bytes: u64) {
        let memory = &self.segment.words().worker.0.memory;
        memory.store(bytes, Ordering::Relaxed);
    }

    /// Notes because of which system call the sandbox ends this process.
    pub(crate) fn set_forbidden(&self, call: u32) {
        let forbidden = &self.segment.words().worker.0.forbidden;
        forbidden.store(call.saturating_add(1), Ordering::Release);
    }

    /// Shows that an allocation has failed, before this process aborts.
    pub(crate) fn set_starved(&self, starved: Starved) {
        let (limit, used) = &self.segment.words().worker.0.starved;
        used.store(starved.used, Ordering::Relaxed);
        limit.store(starved.limit, Ordering::Release);
    }

    /// Shows how long an input of this task takes.
    pub(crate) fn set_pace(&self, task: u32, each_ns: u64) {
        let each_ns = u32::try_from(each_ns.max(1)).unwrap_or(u32::MAX);
        let pace = &self.segment.words().worker.0.pace;
        pace.store(join(task, each_ns), Ordering::Relaxed);
    }

    /// Shows when the clock was last read.
    #[inline]
    pub(crate) fn set_read_at(&self, now_ns: u64) {
        let read_at = &self.segment.words().read_at.0;
        read_at.store(now_ns, Ordering::Relaxed);
    }

    /// How long the thread that runs inputs has waited for room in the ring since the last call, in nanoseconds.
    #[inline]
    pub(crate) fn stalled(&self) -> u64 {
        let stalled = &self.turns.stalled;
        if stalled.load(atomic::Ordering::Relaxed) == 0 {
            return 0;
        }
        stalled.swap(0, atomic::Ordering::Relaxed)
    }

    /// Where inputs of this task are counted, if they are.
    #[inline]
    pub(crate) fn tally(&self, task: u32) -> Option<&Tally> {
        self.segment.tally(task)
    }

    /// Writes one frame that is not the reply to an input, and is not counted.
    pub(crate) fn write_aside(&self, tag: Tag, bytes: &[u8]) {
        debug_assert!(bytes.len() <= FRAME_MAX);
        let _turn = self.turns.take();
        self.put(tag.bits(), bytes, Sleeps::AsWorker);
    }

    /// Writes the reply to the input that was begun last.
    #[inline]
    pub(crate) fn write(&self, tag: Tag, buffer: &Buffer) {
        let _turn = self.turns.take();
        let mut bytes: &[u8] = buffer;
        if bytes.len() > FRAME_MAX {
            let align = u64::from(buffer.align_log2()) << ANNOUNCED_ALIGN_AT;
            let announced = bytes.len() as u64 | align;
            self.put(LONG, &announced.to_le_bytes(), Sleeps::AsWorker);
            bytes = self.put_pieces(bytes, Sleeps::AsWorker);
        }
        self.put(tag.bits(), bytes, Sleeps::AsWorker);
        let words = self.segment.words();
        let count = &words.replies.0.1;
        let number = count.load(Ordering::Relaxed).wrapping_add(1);
        count.store(number, Ordering::Release);
        fence(Ordering::SeqCst);
        let wake_at = words.parent.0.wake_at.load(Ordering::Relaxed);
        if (wake_at.wrapping_sub(number) as i32) <= 0 {
            self.bell.ring();
        } else {
            self.ring_if_crowded();
        }
    }

    /// Writes all pieces but the last, and returns the bytes of that, which belong into an ordinary frame.
    fn put_pieces<'b>(&self, mut bytes: &'b [u8], sleeps: Sleeps) -> &'b [u8] {
        while bytes.len() > FRAME_MAX {
            let (piece, rest) = bytes.split_at(PIECE_LEN);
            self.put(PIECE, piece, sleeps);
            self.ring_if_crowded();
            bytes = rest;
        }
        bytes
    }

    /// Writes a message: the id of its channel, and the value.
    pub(super) fn write_message(&self, mut bytes: &[u8]) {
        let turn = self.turns.take();
        let mut mark = MESSAGE;
        if bytes.len() > FRAME_MAX {
            let len = bytes.len() as u64;
            self.put(LONG | MESSAGE, &len.to_le_bytes(), Sleeps::AsSender);
            bytes = self.put_pieces(bytes, Sleeps::AsSender);
            mark = 0;
        }
        self.put(Tag::Value.bits() | mark, bytes, Sleeps::AsSender);
        drop(turn);
        fence(Ordering::SeqCst);
        self.bell.ring();
    }

    /// From now on, threads other than the one that runs inputs may write into the ring.
    pub(crate) fn share(&self) {
        self.turns.are_taken.store(true, atomic::Ordering::Relaxed);
    }

    /// Writes a report, of at most [`REPORT_MAX`] bytes. Waits for room in the ring, which the parent always makes. Before
    /// other threads than the one that runs inputs may report, [`share`](Replies::share) must have been called. A report of a
    /// signal handler that has interrupted this thread during such a write is dropped.
    pub(crate) fn report(&self, kind: u8, bytes: &[u8]) {
        debug_assert!(bytes.len() <= REPORT_MAX);
        if own_turn::is_taken() {
            return;
        }
        let mark = mark(REPORT | u64::from(kind), 0).to_le_bytes();
        let turn = self.turns.take();
        let tag = Tag::Value.bits() | MESSAGE;
        self.put_parts(tag, [&mark, bytes], Sleeps::AsSender);
        drop(turn);
        self.ring_if_crowded();
    }

    /// Wakes the parent, if it sleeps, so that it reads reports now.
    #[cfg(feature = "tracing")]
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        self.bell.ring();
    }

    /// Which log records the parent wants.
    #[cfg(feature = "tracing")]
    #[inline]
    pub(crate) fn log_level(&self) -> LogLevel {
        let level = &self.segment.words().parent.0.log_level;
        LogLevel::of(level.load(Ordering::Relaxed))
    }

    fn ring_if_crowded(&self) {
        if !self.has_room(REPLIES / 2) {
            fence(Ordering::SeqCst);
            self.bell.ring();
        }
    }

    /// Appends a frame, which then stands.
    #[inline]
    fn put(&self, tag: u32, bytes: &[u8], sleeps: Sleeps) {
        self.put_parts(tag, [bytes], sleeps);
    }

    /// The same, for bytes in several parts.
    #[inline]
    fn put_parts<const N: usize>(&self, tag: u32, parts: [&[u8]; N], sleeps: Sleeps) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let len = WORD + bytes;
        if !self.has_room(len) {
            match sleeps {
                Sleeps::AsWorker => self.wait_for_room(len),
                Sleeps::AsSender => self.sleep_as_sender(|| self.has_room(len)),
            }
        }
        let replies = &self.segment.words().replies.0.0;
        let end = replies.load(Ordering::Relaxed);
        self.copy_in(end, &frames::word(bytes, tag));
        let mut at = end + WORD as u64;
        for part in parts {
            self.copy_in(at, part);
            at += part.len() as u64;
        }
        replies.store(end + len as u64, Ordering::Release);
    }

    #[inline]
    fn copy_in(&self, position: u64, bytes: &[u8]) {
        let (at, to_end) = self.segment.reply_at(position);
        if bytes.len() <= to_end {
            // SAFETY: the ring has room for them, as `put` has checked, and the parent does not look behind `replies_end`.
            unsafe { copy::to_other(bytes.as_ptr(), at, bytes.len()) };
            return;
        }
        let (first, rest) = bytes.split_at(to_end);
        // SAFETY: as above, up to the end of the ring.
        unsafe { copy::to_other(first.as_ptr(), at, first.len()) };
        let (start, _) = self.segment.reply_at(0);
        // SAFETY: as above, from the start of the ring.
        unsafe { copy::to_other(rest.as_ptr(), start, rest.len()) };
    }

    fn parent_is_elsewhere(&self) -> bool {
        let cpu = self.segment.words().parent.0.cpu.load(Ordering::Relaxed);
        cpu != this_cpu()
    }

    /// Whether `len` bytes are free. Looks up how far the parent has read only if that may matter.
    #[inline]
    fn has_room(&self, len: usize) -> bool {
        let words = self.segment.words();
        // Another thread may write at the same time: `taken` is read before the end, so that the end is not before it.
        let room = |taken: u64| {
            let end = words.replies.0.0.load(Ordering::Acquire);
            (REPLIES as u64).checked_sub(end.wrapping_sub(taken))
        };
        let has = |room: Option<u64>| room.is_some_and(|room| room >= len as u64);
        if has(room(self.taken.load(atomic::Ordering::Acquire))) {
            return true;
        }
        let mut taken = words.replies_taken.0.load(Ordering::Acquire);
        loop {
            self.taken.store(taken, atomic::Ordering::Release);
            let room = room(taken);
            if room.is_some() {
                return has(room);
            }
            // More was written than fits, unless the parent has read more in the meantime.
            let now = words.replies_taken.0.load(Ordering::Acquire);
            if now == taken {
                give_up();
            }
            taken = now;
        }
    }

    /// Wakes the parent, and sleeps until the condition holds, which the parent brings about.
    #[cold]
    fn sleep_as_sender(&self, is_so: impl Fn() -> bool) {
        self.bell.ring();
        if spin_for_piece(&is_so, || self.parent_is_elsewhere()) {
            return;
        }
        let asleep = &self.segment.words().sender_asleep.0;
        while !is_so() {
            asleep.store(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if is_so() {
                break;
            }
            self.bell.ring();
            if futex::wait(asleep, 1, None).is_err() {
                std::thread::yield_now();
            }
        }
    }

    /// Wakes the parent, which may wait for something else, and sleeps until there is room.
    #[cold]
    fn wait_for_room(&self, len: usize) {
        let since = clock::now_ns();
        self.sleep_for_room(len);
        let stalled = clock::now_ns().saturating_sub(since);
        self.turns
            .stalled
            .fetch_add(stalled, atomic::Ordering::Relaxed);
    }

    fn sleep_for_room(&self, len: usize) {
        self.bell.ring();
        // The parent may be reading at this moment.
        if spin_for_piece(|| self.has_room(len), || self.parent_is_elsewhere()) {
            return;
        }
        let asleep = &self.segment.words().asleep.0;
        while !self.has_room(len) {
            asleep.store(asleep::FOR_ROOM, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.has_room(len) {
                break;
            }
            self.bell.ring();
            if futex::wait(asleep, asleep::FOR_ROOM, None).is_err() {
                std::thread::yield_now();
            }
        }
        asleep.store(asleep::NO, Ordering::Relaxed);
    }
}

/// The receiver of the channel is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// Sends messages, from any thread of the worker.
#[derive(Debug)]
pub(crate) struct Outlet {
    replies: Replies,
    /// How many bytes were sent, by the place of their channel.
    sent: [atomic::AtomicU64; CHANNELS],
}

impl Outlet {
    /// Makes one; from now on, other threads may write into the ring.
    pub(crate) fn new(replies: &Replies) -> Outlet {
        replies.share();
        Outlet {
            replies: replies.clone(),
            sent: std::array::from_fn(|_| atomic::AtomicU64::new(0)),
        }
    }

    /// Counts this many bytes as sent in this place.
    pub(crate) fn begin(&self, place: u8, sent: u64) {
        self.sent[at(place)].fetch_add(sent, atomic::Ordering::Relaxed);
    }

    /// Sends a message: the [`mark`] of its channel, and the value. Waits while too much is unread.
    pub(crate) fn send(&self, channel: u64, place: u8, bytes: &[u8]) -> Result<(), Gone> {
        let words = &self.replies.segment.words().channels.0[at(place)];
        let is_gone = || words.closed.load(Ordering::Relaxed) == channel;
        let cost = cost(bytes.len());
        loop {
            if is_gone() {
                return Err(Gone);
            }
            // What was reserved must be sent, since the parent counts the same.
            if self.reserve(place, cost) {
                self.replies.write_message(bytes);
                return Ok(());
            }
            self.replies
                .sleep_as_sender(|| is_gone() || self.may_send(place, cost));
        }
    }

    fn may_send(&self, place: u8, cost: u64) -> bool {
        let sent = self.sent[at(place)].load(atomic::Ordering::Relaxed);
        self.fits(place, sent, cost)
    }

    /// Whether `cost` more bytes may be sent after the first `sent`.
    fn fits(&self, place: u8, sent: u64, cost: u64) -> bool {
        let words = &self.replies.segment.words().channels.0[at(place)];
        let unread = sent.wrapping_sub(words.taken.load(Ordering::Acquire));
        unread == 0 || unread.saturating_add(cost) <= WINDOW
    }

    fn reserve(&self, place: u8, cost: u64) -> bool {
        let counter = &self.sent[at(place)];
        let relaxed = atomic::Ordering::Relaxed;
        counter
            .fetch_update(relaxed, relaxed, |sent| {
                self.fits(place, sent, cost)
                    .then(|| sent.wrapping_add(cost))
            })
            .is_ok()
    }
}

fn at(place: u8) -> usize {
    usize::from(place) % CHANNELS
}
