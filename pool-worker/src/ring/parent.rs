//! The parent's end of the rings.

use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::{
    Garbled, HEAD, Head, PIECE_LEN, REPLIES, REQUESTS, Segment, asleep, join, kind, record_len,
    split,
};
use crate::frames::{FRAME_MAX, Frames, PIECE, Tag, WORD, read_word};
use crate::futex;
use crate::memory::Memory;

/// How far a worker is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many inputs were begun since the worker started; wraps around.
    pub begun: u32,
    /// CLOCK_MONOTONIC, when the last of them was, if it has a time limit.
    pub begun_at: Duration,
}

/// One portion, as it is sent.
#[derive(Debug, Clone, Copy)]
pub struct Portion<'a> {
    /// The number of the task.
    pub task: u32,
    /// Whether its inputs have a time limit.
    pub limited: bool,
    /// The inputs.
    pub inputs: &'a Frames,
    /// How many of them were answered already, and are not sent.
    pub skip: usize,
}

/// What the parent holds; one thread uses it at a time.
#[derive(Debug)]
pub(crate) struct ParentEnd {
    segment: Segment,
    /// What the worker must not be believed about.
    sent: u64,
    taken: u64,
    received: u64,
    generation: u32,
    begun: u32,
    /// How many bytes of the portion that is being sent have been.
    partial: usize,
    wake_at: u32,
    wants_room: bool,
    /// The CPU that the worker knows.
    cpu: u32,
    pace: u64,
    /// Pieces of a long reply.
    pieces: Vec<u8>,
}

impl ParentEnd {
    pub(crate) fn new(memory: Memory) -> ParentEnd {
        ParentEnd {
            segment: Segment(Arc::new(memory)),
            sent: 0,
            taken: 0,
            received: 0,
            generation: 0,
            begun: 0,
            partial: 0,
            wake_at: 0,
            wants_room: false,
            cpu: u32::MAX,
            pace: 0,
            pieces: Vec::new(),
        }
    }

    // ---- requests -----------------------------------------------------------------------------

    /// Sends a portion, as far as there is room; true if it is sent whole. Otherwise the same portion is
    /// to be given again when there is room, or to be [`recall`](ParentEnd::recall)ed.
    pub(crate) fn send(&mut self, portion: Portion<'_>) -> Result<bool, Garbled> {
        let sent = self.send_what_fits(portion);
        if let Ok(whole) = sent
            && self.wants_room == whole
        {
            self.wants_room = !whole;
            let word = &self.segment.words().parent.0.wants_room;
            word.store(u32::from(!whole), Ordering::Relaxed);
        }
        sent
    }

    fn send_what_fits(&mut self, portion: Portion<'_>) -> Result<bool, Garbled> {
        let (bytes, alone) = portion.inputs.as_bytes();
        let mut head = Head {
            kind: match (alone, portion.limited) {
                (false, false) => kind::RUN,
                (false, true) => kind::RUN_LIMITED,
                (true, false) => kind::RUN_ALONE,
                (true, true) => kind::RUN_ALONE_LIMITED,
            },
            task: portion.task,
            generation: self.generation,
            count: 0,
            len: 0,
            unused: 0,
        };
        if !alone {
            let mut rest = bytes;
            for _ in 0..portion.skip {
                let Some((word, after)) = rest.split_first_chunk() else {
                    break;
                };
                rest = &after[read_word(*word).0..];
            }
            head.count = (portion.inputs.count() - portion.skip) as u32;
            return self.write(head, rest);
        }
        loop {
            let rest = &bytes[self.partial..];
            head.count = (self.partial / PIECE_LEN) as u32;
            if rest.len() <= PIECE_LEN {
                let sent = self.write(head, rest)?;
                if sent {
                    self.partial = 0;
                }
                return Ok(sent);
            }
            let piece = Head {
                kind: kind::PIECE,
                ..head
            };
            if !self.write(piece, &rest[..PIECE_LEN])? {
                return Ok(false);
            }
            self.partial += PIECE_LEN;
        }
    }

    /// Asks the worker to exit behind everything else; false if there is no room.
    pub(crate) fn send_exit(&mut self) -> Result<bool, Garbled> {
        let head = Head {
            kind: kind::EXIT,
            task: 0,
            generation: self.generation,
            count: 0,
            len: 0,
            unused: 0,
        };
        self.write(head, &[])
    }

    fn write(&mut self, mut head: Head, body: &[u8]) -> Result<bool, Garbled> {
        let len = record_len(body.len());
        let (_, to_end) = self.segment.request_at(self.sent);
        let skip = if to_end < len { to_end } else { 0 };
        if self.room() < skip + len {
            self.look_at_taken()?;
            if self.room() < skip + len {
                return Ok(false);
            }
        }
        if skip >= HEAD {
            let filler = Head {
                kind: kind::SKIP,
                len: 0,
                ..head
            };
            self.put(filler, &[]);
        }
        self.sent += skip as u64;
        head.len = body.len() as u32;
        self.put(head, body);
        self.sent += len as u64;
        let words = self.segment.words();
        let cpu = rustix::thread::sched_getcpu() as u32;
        if cpu != self.cpu {
            self.cpu = cpu;
            words.parent.0.cpu.store(cpu, Ordering::Relaxed);
        }
        words.requests_end.0.store(self.sent, Ordering::Release);
        Ok(true)
    }

    /// Writes a record at `sent`; the caller has seen to the room.
    fn put(&self, head: Head, body: &[u8]) {
        let (at, _) = self.segment.request_at(self.sent);
        // SAFETY: the record fits the ring up to its end, `at` is aligned to 8 because all records are,
        // and the worker does not look behind `requests_end`.
        unsafe { at.cast::<Head>().write(head) };
        // SAFETY: as above.
        let to = unsafe { at.add(HEAD) };
        // SAFETY: as above; `body` is memory of this process alone.
        unsafe { ptr::copy_nonoverlapping(body.as_ptr(), to, body.len()) };
    }

    fn room(&self) -> usize {
        REQUESTS - (self.sent - self.taken) as usize
    }

    fn look_at_taken(&mut self) -> Result<(), Garbled> {
        let taken = &self.segment.words().worker.0.requests_taken;
        let taken = taken.load(Ordering::Acquire);
        if taken < self.taken || taken > self.sent {
            return Err(Garbled("it has taken what it was not given"));
        }
        self.taken = taken;
        Ok(())
    }

    /// Whether what was sent before could not all be sent.
    pub(crate) fn wants_room(&self) -> bool {
        self.wants_room
    }

    /// Who sleeps for what was just sent; call after the last [`send`](ParentEnd::send).
    pub(crate) fn sleeper(&self) -> Option<Sleeper> {
        fence(Ordering::SeqCst);
        let asleep = &self.segment.words().asleep.0;
        (asleep.load(Ordering::Relaxed) == asleep::FOR_REQUEST)
            .then(|| Sleeper(self.segment.clone()))
    }

    /// Takes back every input that was not begun. Gives how many were begun since the start.
    pub(crate) fn recall(&mut self) -> u32 {
        self.partial = 0;
        self.generation = self.generation.wrapping_add(1);
        let claim = &self.segment.words().claim.0;
        let mut seen = claim.load(Ordering::Relaxed);
        loop {
            let (_, begun) = split(seen);
            match claim.compare_exchange_weak(
                seen,
                join(self.generation, begun),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    self.begun = begun;
                    return begun;
                }
                Err(now) => seen = now,
            }
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        let words = self.segment.words();
        let (_, begun) = split(words.claim.0.load(Ordering::Acquire));
        let begun_at = words.worker.0.begun_at.load(Ordering::Relaxed);
        Progress {
            begun,
            begun_at: Duration::from_nanos(begun_at),
        }
    }

    // ---- replies ------------------------------------------------------------------------------

    /// Whether there are replies that were not received.
    pub(crate) fn has_replies(&self) -> bool {
        self.segment.words().replies.0.0.load(Ordering::Acquire) != self.received
    }

    /// Whether the worker has, or had, reason to wake the parent.
    pub(crate) fn has_reason_to_ring(&self) -> bool {
        let words = self.segment.words();
        let number = words.replies.0.1.load(Ordering::Acquire);
        let end = words.replies.0.0.load(Ordering::Acquire);
        end != self.received
            && ((self.wake_at.wrapping_sub(number) as i32) <= 0
                || end.wrapping_sub(self.received) > REPLIES as u64 / 2)
            || self.wants_room && {
                let taken = words.worker.0.requests_taken.load(Ordering::Acquire);
                self.sent.wrapping_sub(taken) <= REQUESTS as u64 / 2
            }
    }

    /// What tells from any thread whether there are replies.
    pub(crate) fn glance(&self) -> Glance {
        Glance {
            segment: self.segment.clone(),
            received: self.received,
        }
    }

    /// Appends all replies that stand, in order.
    pub(crate) fn receive(&mut self, replies: &mut VecDeque<Frames>) -> Result<(), Garbled> {
        let end = self.segment.words().replies.0.0.load(Ordering::Acquire);
        let len = end.wrapping_sub(self.received);
        if len == 0 {
            return Ok(());
        }
        if len > REPLIES as u64 {
            return Err(Garbled("it has written more replies than fit"));
        }
        let mut bytes = Vec::with_capacity(len as usize);
        self.copy_out(len as usize, &mut bytes);
        self.received = end;
        let taken = &self.segment.words().parent.0.replies_taken;
        taken.store(end, Ordering::Release);
        self.parse(bytes, replies)
    }

    /// Who sleeps for the room that was just made; call after [`receive`](ParentEnd::receive).
    pub(crate) fn sleeper_for_room(&self) -> Option<Sleeper> {
        fence(Ordering::SeqCst);
        let asleep = &self.segment.words().asleep.0;
        (asleep.load(Ordering::Relaxed) == asleep::FOR_ROOM).then(|| Sleeper(self.segment.clone()))
    }

    /// Copies `len` bytes from `received` on.
    fn copy_out(&self, len: usize, to: &mut Vec<u8>) {
        let (at, to_end) = self.segment.reply_at(self.received);
        let first = len.min(to_end);
        let target = to.as_mut_ptr();
        // SAFETY: the ring has `first` bytes from `at` on, and the vector room for `len`. A worker may
        // write to them meanwhile, if it breaks the protocol: then the copy holds whatever it holds.
        unsafe { ptr::copy_nonoverlapping(at, target, first) };
        let (start, _) = self.segment.reply_at(0);
        // SAFETY: the vector has room for `len`.
        let behind = unsafe { target.add(first) };
        // SAFETY: as above, for the part at the start of the ring.
        unsafe { ptr::copy_nonoverlapping(start, behind, len - first) };
        // SAFETY: all of them were just written.
        unsafe { to.set_len(len) };
    }

    fn parse(&mut self, bytes: Vec<u8>, replies: &mut VecDeque<Frames>) -> Result<(), Garbled> {
        let mut at = 0;
        let mut run = (0, 0);
        while at < bytes.len() {
            let Some(word) = bytes[at..].first_chunk::<WORD>() else {
                return Err(Garbled("a reply is cut short"));
            };
            let (len, tag) = read_word(*word);
            let next = at + WORD + len;
            if len > FRAME_MAX || next > bytes.len() || tag > PIECE {
                return Err(Garbled("it has written what is no reply"));
            }
            if tag != PIECE && self.pieces.is_empty() {
                run.1 += 1;
                at = next;
                continue;
            }
            if run.1 > 0 {
                replies.push_back(Frames::many(bytes[run.0..at].to_vec(), run.1));
            }
            self.pieces.extend_from_slice(&bytes[at + WORD..next]);
            if tag != PIECE {
                let tag = if tag == Tag::Value.bits() {
                    Tag::Value
                } else {
                    Tag::Fault
                };
                let whole = std::mem::take(&mut self.pieces);
                replies.push_back(Frames::alone(tag, whole));
            }
            at = next;
            run = (next, 0);
        }
        match run {
            (_, 0) => {}
            (0, count) => replies.push_back(Frames::many(bytes, count)),
            (start, count) => replies.push_back(Frames::many(bytes[start..].to_vec(), count)),
        }
        Ok(())
    }

    /// A task, and how long an input of it took, if the worker has said so since the last time.
    pub(crate) fn new_pace(&mut self) -> Option<(u32, Duration)> {
        let pace = self.segment.words().worker.0.pace.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.pace, pace) == pace {
            return None;
        }
        let (task, each_ns) = split(pace);
        Some((task, Duration::from_nanos(each_ns.into())))
    }

    /// Wants to be woken when reply number `at` stands.
    pub(crate) fn set_wake_at(&mut self, at: u32) {
        if at != self.wake_at {
            self.wake_at = at;
            let word = &self.segment.words().parent.0.wake_at;
            word.store(at, Ordering::Relaxed);
        }
    }
}

/// A worker that sleeps and has a reason not to.
#[derive(Debug)]
pub struct Sleeper(Segment);

impl Sleeper {
    /// Wakes it.
    pub fn wake(self) {
        let asleep = &self.0.words().asleep.0;
        if asleep.swap(asleep::NO, Ordering::SeqCst) != asleep::NO {
            futex::wake(asleep);
        }
    }
}

/// Tells whether a worker has replied since, without a lock.
#[derive(Debug)]
pub struct Glance {
    segment: Segment,
    received: u64,
}

impl Glance {
    /// Whether there are replies that were not received when this was made.
    #[inline]
    pub fn has_replies(&self) -> bool {
        self.segment.words().replies.0.0.load(Ordering::Acquire) != self.received
    }

    /// Whether the worker runs on another CPU than this thread.
    pub fn is_elsewhere(&self) -> bool {
        let cpu = self.segment.words().worker.0.cpu.load(Ordering::Relaxed);
        cpu != rustix::thread::sched_getcpu() as u32
    }
}
