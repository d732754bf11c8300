//! The parent's end of the rings.

use std::collections::VecDeque;
use std::fmt;
use std::iter;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic;
use std::time::Duration;

use super::{
    ANNOUNCED_ALIGN_AT, CHANNELS, Garbled, HEAD, Head, PIECE_LEN, PIECE_MIN, REPLIES, REQUESTS,
    Segment, WINDOW, Words, asleep, cost, join, kind, read_mark, record_len, report_kind, split,
};
use crate::attach::Sent;
use crate::buffer::{ALIGN_MAX, Buffer};
use crate::copy;
use crate::frames::{FRAME_MAX, Frames, LONG, MESSAGE, PIECE, Tag, WORD, read_word};
use crate::futex;
use crate::level::LogLevel;
use crate::lineage::lineage;
use crate::starve::Starved;
use crate::sync::{Ordering, Shared, fence, this_cpu};
use crate::tally::{Tallied, Tally};

/// Memory for a long reply is reserved in advance up to this length, in bytes; beyond that, as the pieces come.
const LONG_MAX: usize = 1 << 30;

/// How many bytes may be received before the parent checks again whether the worker sleeps for room. If it does, it has
/// filled the ring up to one frame, so more than half of the ring is still unread, which is a reason to receive again.
const UNLOOKED: u64 = if cfg!(pool_shuttle) {
    0
} else {
    REPLIES as u64 / 8
};
const _: () =
    assert!(cfg!(pool_shuttle) || REPLIES - (WORD + FRAME_MAX) - UNLOOKED as usize > REPLIES / 2);

const NO_MEMORY: Garbled = Garbled("no memory for its reply");
const CUT_SHORT: Garbled = Garbled("a reply of it is cut short");
const NO_REPLY: Garbled = Garbled("it has written something that is not a reply");
const NOT_AS_LONG: Garbled = Garbled("the length of a reply is not the announced one");
const NO_MESSAGE: Garbled = Garbled("it has sent something that is not a message");
const TOO_MUCH: Garbled = Garbled("it has sent more messages than it may");

/// How far a worker has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many inputs were begun since the worker started; wraps around.
    pub begun: u32,
    /// When the last of them was begun (CLOCK_MONOTONIC), if it has a time limit.
    pub begun_at: Duration,
    /// Changes whenever the worker does something for the pool.
    pub pulse: u64,
    /// Whether words that the worker never changes have changed: something has written over them.
    pub overwritten: bool,
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
    /// How many of the inputs, from the first on, have their replies already, and are not sent.
    pub skip: usize,
    /// When the inputs were accepted, by [`now`](crate::now()); zero if that is not known.
    pub submitted: Duration,
}

/// The parent's end; one thread uses it at a time.
#[derive(Debug)]
pub(crate) struct ParentEnd {
    segment: Segment,
    /// The positions in the rings. The worker might change those in the shared memory.
    sent: u64,
    taken: u64,
    received: u64,
    /// The value of `received` when [`sleeper_for_room`](ParentEnd::sleeper_for_room) last checked.
    looked_at: u64,
    generation: u32,
    /// A word that only the parent writes has changed.
    overwritten: bool,
    /// How many bytes were sent of the input that is being sent in pieces.
    partial: usize,
    wake_at: u32,
    /// If there is more to send: how much room the next record takes.
    needs: Option<usize>,
    /// The CPU that the worker was last told.
    cpu: u32,
    pace: u64,
    long: Option<Long>,
    /// Whether the worker may send messages.
    sends_messages: bool,
    /// Whether it may report log records.
    logs: bool,
    /// How many bytes of messages have come, or count as if they had, by the place of their channel.
    messages: Box<[u64; CHANNELS]>,
    /// How many channels have each place.
    channels: Box<[u32; CHANNELS]>,
    credits: Arc<Credits>,
}

/// A reply or a message that comes in pieces.
#[derive(Debug)]
struct Long {
    /// The part that has come.
    bytes: Buffer,
    /// How many bytes are still to come, according to its announcement.
    missing: u64,
    is_message: bool,
}

/// Messages that have come for one channel.
#[derive(Debug)]
pub(crate) struct Messages {
    pub(crate) channel: u64,
    pub(crate) bytes: Framed,
    pub(crate) credit: Credit,
}

/// How messages lie in memory.
#[derive(Debug)]
pub(crate) enum Framed {
    /// As in the ring, one behind the other.
    Many(Vec<u8>),
    /// A single message: the id of its channel, and the value.
    Alone(Buffer),
}

/// Reports of a worker, of one kind, in order.
#[derive(Debug)]
pub struct Reports {
    /// The kind.
    pub kind: u8,
    /// As in the ring, one behind the other.
    frames: Vec<u8>,
}

impl Reports {
    /// The reports, as the worker has written them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.frames[..];
        iter::from_fn(move || {
            let (word, behind) = rest.split_first_chunk()?;
            let (len, _) = read_word((u32::from_le_bytes(*word) & !MESSAGE).to_le_bytes());
            let (frame, behind) = behind.split_at_checked(len)?;
            rest = behind;
            frame.get(size_of::<u64>()..)
        })
    }
}

impl Messages {
    /// These as reports, if they are; otherwise returns them unchanged.
    pub(crate) fn reports(self) -> Result<Reports, Messages> {
        match (report_kind(self.channel), self.bytes) {
            (Some(kind), Framed::Many(frames)) => Ok(Reports { kind, frames }),
            (_, bytes) => Err(Messages { bytes, ..self }),
        }
    }
}

#[cfg(all(test, not(pool_shuttle)))]
impl Messages {
    /// How many bytes they count as in the window.
    pub(super) fn size(&self) -> u64 {
        self.credit.bytes
    }
}

/// How many bytes of a worker's messages were read. The words that the worker sees are a copy of this.
struct Credits {
    segment: Segment,
    taken: [atomic::AtomicU64; CHANNELS],
    /// The [`lineage`] of the parent. A forked copy of it has copies of unread messages, and shares the rings' memory.
    owner: u32,
}

impl fmt::Debug for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credits")
    }
}

impl Credits {
    fn give(&self, place: usize, bytes: u64) {
        if lineage() != self.owner {
            return;
        }
        let before = self.taken[place].fetch_add(bytes, Ordering::SeqCst);
        let words = self.segment.words();
        let shown = &words.channels.0[place].taken;
        // Another thread may add more at the same time.
        shown.fetch_max(before.wrapping_add(bytes), Ordering::SeqCst);
        wake_senders(words);
    }
}

/// Wakes the threads of a worker that wait to send messages.
fn wake_senders(words: &Words) {
    fence(Ordering::SeqCst);
    let asleep = &words.sender_asleep.0;
    if asleep.load(Ordering::Relaxed) != 0 {
        asleep.store(0, Ordering::SeqCst);
        futex::wake_all(asleep);
    }
}

/// When this is dropped, its bytes count as read, and the worker may send that much more into the channel.
#[derive(Debug)]
pub(crate) struct Credit {
    credits: Arc<Credits>,
    place: usize,
    bytes: u64,
}

impl Credit {
    /// The place of the channel.
    pub(crate) fn place(&self) -> usize {
        self.place
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        self.credits.give(self.place, self.bytes);
    }
}

/// The kind of consecutive frames in the ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Replies,
    /// Messages for a channel.
    Messages {
        channel: u64,
        place: usize,
    },
}

/// Divides a copy of a part of the ring by kinds of frames.
struct Division<'a> {
    bytes: Vec<u8>,
    /// Where the last frames of one kind begin, their kind, and how many they are.
    from: usize,
    kind: Kind,
    count: usize,
    /// Whether there is a fault among them.
    faulty: bool,
    replies: &'a mut VecDeque<Frames>,
    messages: &'a mut Vec<Messages>,
}

impl Division<'_> {
    /// The next frame begins at `at` and is of this kind.
    fn go_on(&mut self, at: usize, kind: Kind, credits: &Arc<Credits>) {
        if kind != self.kind {
            self.cut(at, credits);
            self.kind = kind;
        }
        self.count += 1;
    }

    /// Hands on the frames up to `at`.
    fn cut(&mut self, at: usize, credits: &Arc<Credits>) {
        let count = mem::take(&mut self.count);
        let from = mem::replace(&mut self.from, at);
        if count == 0 {
            return;
        }
        let bytes = if from == 0 && at == self.bytes.len() {
            mem::take(&mut self.bytes)
        } else {
            self.bytes[from..at].to_vec()
        };
        match self.kind {
            Kind::Replies if mem::take(&mut self.faulty) => {
                self.replies.push_back(Frames::many(bytes, count));
            }
            Kind::Replies => self.replies.push_back(Frames::values(bytes, count)),
            Kind::Messages { channel, place } => self.messages.push(Messages {
                channel,
                credit: Credit {
                    credits: Arc::clone(credits),
                    place,
                    bytes: match report_kind(channel) {
                        Some(_) => 0,
                        None => bytes.len() as u64,
                    },
                },
                bytes: Framed::Many(bytes),
            }),
        }
    }
}

impl ParentEnd {
    pub(crate) fn new(memory: Shared<Words>) -> ParentEnd {
        let segment = Segment(Arc::new(memory));
        let credits = Arc::new(Credits {
            segment: segment.clone(),
            taken: std::array::from_fn(|_| atomic::AtomicU64::new(0)),
            owner: lineage(),
        });
        ParentEnd {
            segment,
            sent: 0,
            taken: 0,
            received: 0,
            looked_at: 0,
            generation: 0,
            overwritten: false,
            partial: 0,
            wake_at: 0,
            needs: None,
            cpu: u32::MAX,
            pace: 0,
            long: None,
            sends_messages: false,
            logs: false,
            messages: Box::new([0; CHANNELS]),
            channels: Box::new([0; CHANNELS]),
            credits,
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    // ---- requests -----------------------------------------------------------------------------

    /// Sends a portion, as far as there is room; true if all of it was sent. Otherwise pass the same portion again when there
    /// is room, or [`recall`](ParentEnd::recall) it.
    pub(crate) fn send(&mut self, portion: Portion<'_>) -> Result<bool, Garbled> {
        let before = self.needs.take();
        let sent = self.send_what_fits(portion);
        self.tell_needs(before);
        sent
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Nothing more will be sent.
    pub(crate) fn give_up_sending(&mut self) {
        self.partial = 0;
        let before = self.needs.take();
        self.tell_needs(before);
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    pub(crate) fn tallies(&self) -> Tallies {
        Tallies(self.segment.clone())
    }

    /// Tells the worker whether to ring when there may be room, if that has changed.
    fn tell_needs(&self, before: Option<usize>) {
        if before.is_some() != self.needs.is_some() {
            let word = &self.segment.words().parent.0.wants_room;
            word.store(u32::from(self.needs.is_some()), Ordering::Relaxed);
        }
    }

    fn send_what_fits(&mut self, portion: Portion<'_>) -> Result<bool, Garbled> {
        let Portion {
            task,
            limited,
            inputs,
            skip,
            submitted,
        } = portion;
        let mut head = Head {
            kind: if limited {
                kind::RUN_LIMITED
            } else {
                kind::RUN
            },
            align_log2: 0,
            task,
            generation: self.generation,
            count: (inputs.count() - skip) as u32,
            len: 0,
            high: 0,
            submitted: submitted.as_nanos() as u64,
        };
        let Some(mut rest) = inputs.as_framed() else {
            head.align_log2 = inputs.align_log2() as u16;
            return self.send_alone(head, inputs.as_alone());
        };
        for _ in 0..skip {
            let Some((word, after)) = rest.split_first_chunk() else {
                break;
            };
            rest = &after[read_word(*word).0..];
        }
        head.high = 0;
        self.write(head, rest)
    }

    /// Sends a single input, which is passed in two parts, from byte `partial` on.
    fn send_alone(&mut self, head: Head, [first, second]: [&[u8]; 2]) -> Result<bool, Garbled> {
        let total = first.len() + second.len();
        loop {
            let before = self.partial;
            let rest = match first.get(before..) {
                Some(rest @ [_, ..]) => rest,
                _ => &second[before - first.len()..],
            };
            let (_, to_end) = self.segment.request_at(self.sent);
            let here = to_end.saturating_sub(HEAD);
            let fits = if here >= PIECE_MIN { here } else { PIECE_LEN };
            let piece = &rest[..rest.len().min(PIECE_LEN).min(fits)];
            let last = before + piece.len() == total;
            let count = before as u32;
            let high = (before as u64 >> 32) as u32;
            let head = match (last, head.kind) {
                (false, _) => Head {
                    kind: kind::PIECE,
                    task: (total as u64 >> 32) as u32,
                    generation: total as u32,
                    count,
                    high,
                    ..head
                },
                (true, kind::RUN_LIMITED) => Head {
                    kind: kind::RUN_ALONE_LIMITED,
                    count,
                    high,
                    ..head
                },
                (true, _) => Head {
                    kind: kind::RUN_ALONE,
                    count,
                    high,
                    ..head
                },
            };
            if !self.write(head, piece)? {
                return Ok(false);
            }
            if last {
                self.partial = 0;
                return Ok(true);
            }
            self.partial += piece.len();
        }
    }

    /// Asks the worker to exit after everything that was sent; false if there is no room.
    pub(crate) fn send_exit(&mut self) -> Result<bool, Garbled> {
        self.write_if_room(Head::about(kind::EXIT, 0, 0))
    }

    /// Sends an attachment, or, if its bytes come as a descriptor, their number; false if there is no room yet.
    pub(crate) fn send_attachment(&mut self, id: u64, sent: &Sent<'_>) -> Result<bool, Garbled> {
        match sent {
            Sent::Short(bytes) => self.write_aside(Head::about(kind::ATTACH, id, 0), bytes),
            Sent::Long(_, len) => {
                self.write_aside(Head::about(kind::ATTACH_LONG, id, *len as u64), &[])
            }
        }
    }

    /// Tells the worker that an attachment is no longer needed; false if there is no room for that yet.
    pub(crate) fn send_detach(&mut self, id: u64) -> Result<bool, Garbled> {
        // Nothing may come between the pieces of an input.
        if self.partial > 0 {
            return Ok(false);
        }
        self.write_if_room(Head::about(kind::DETACH, id, 0))
    }

    /// Writes a record if there is room; otherwise does not ask the worker to ring for it.
    fn write_if_room(&mut self, head: Head) -> Result<bool, Garbled> {
        let needs = self.needs;
        let written = self.write(head, &[]);
        self.needs = needs;
        written
    }

    /// Sets the attachment with which inputs begin that are sent from now on; false if there is no room yet.
    pub(crate) fn send_bind(&mut self, id: u64) -> Result<bool, Garbled> {
        self.write_aside(Head::about(kind::BIND, id, 0), &[])
    }

    fn write_aside(&mut self, head: Head, body: &[u8]) -> Result<bool, Garbled> {
        let before = self.needs.take();
        let written = self.write(head, body);
        self.tell_needs(before);
        written
    }

    /// Has the worker ring when it has taken everything that was sent. False if it has already.
    pub(crate) fn wait_until_empty(&mut self) -> Result<bool, Garbled> {
        self.look_at_taken()?;
        if self.taken == self.sent {
            return Ok(false);
        }
        let before = self.needs.replace(REQUESTS);
        self.tell_needs(before);
        Ok(true)
    }

    fn write(&mut self, mut head: Head, body: &[u8]) -> Result<bool, Garbled> {
        let len = record_len(body.len());
        let (_, to_end) = self.segment.request_at(self.sent);
        if to_end < len {
            // The rest of the ring is skipped first, and that is published: rest and record together may be more than the
            // whole ring holds.
            if !self.make_room(to_end)? {
                return Ok(false);
            }
            if to_end >= HEAD {
                let filler = Head {
                    kind: kind::SKIP,
                    len: 0,
                    ..head
                };
                self.put(filler, &[]);
            }
            self.advance(to_end);
        }
        if !self.make_room(len)? {
            return Ok(false);
        }
        head.len = body.len() as u32;
        self.put(head, body);
        let cpu = this_cpu();
        if cpu != self.cpu {
            self.cpu = cpu;
            let words = self.segment.words();
            words.parent.0.cpu.store(cpu, Ordering::Relaxed);
        }
        self.advance(len);
        Ok(true)
    }

    /// Whether there is room for `len` bytes; if not, notes that they are needed.
    fn make_room(&mut self, len: usize) -> Result<bool, Garbled> {
        if self.room() < len {
            self.look_at_taken()?;
            if self.room() < len {
                self.needs = Some(len);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Publishes what was written.
    fn advance(&mut self, len: usize) {
        self.sent += len as u64;
        let end = &self.segment.words().requests_end.0;
        end.store(self.sent, Ordering::Release);
    }

    /// Writes a record at `sent`; the caller has made sure that there is room.
    fn put(&self, head: Head, body: &[u8]) {
        let (at, _) = self.segment.request_at(self.sent);
        // SAFETY: the record fits the ring up to its end, `at` is aligned to 8 because all records are,
        // and the worker does not look behind `requests_end`.
        unsafe { at.cast::<Head>().write(head) };
        // SAFETY: as above.
        let to = unsafe { at.add(HEAD) };
        // SAFETY: as above; `body` is memory of this process alone.
        unsafe { copy::to_other(body.as_ptr(), to, body.len()) };
    }

    fn room(&self) -> usize {
        REQUESTS - (self.sent - self.taken) as usize
    }

    fn look_at_taken(&mut self) -> Result<(), Garbled> {
        let taken = &self.segment.words().requests_taken.0;
        let taken = taken.load(Ordering::Acquire);
        if taken < self.taken || taken > self.sent {
            return Err(Garbled("it claims to have read more than was sent"));
        }
        self.taken = taken;
        Ok(())
    }

    /// Whether the last portion could not be sent as a whole.
    pub(crate) fn wants_room(&self) -> bool {
        self.needs.is_some()
    }

    /// The worker, if it sleeps and must be woken for what was sent; to be called after the last [`send`](ParentEnd::send).
    pub(crate) fn sleeper(&self) -> Option<Sleeper> {
        fence(Ordering::SeqCst);
        let asleep = &self.segment.words().asleep.0;
        (asleep.load(Ordering::Relaxed) == asleep::FOR_REQUEST)
            .then(|| Sleeper(self.segment.clone()))
    }

    /// Takes back every input that was not begun. Returns how many were begun since the start.
    pub(crate) fn recall(&mut self) -> u32 {
        self.give_up_sending();
        let before = self.generation;
        self.generation = before.wrapping_add(1);
        let claim = &self.segment.words().claim.0;
        let mut seen = claim.load(Ordering::Relaxed);
        loop {
            let (generation, begun) = split(seen);
            // Only the parent may change the generation.
            self.overwritten |= generation != before;
            match claim.compare_exchange_weak(
                seen,
                join(self.generation, begun),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => return begun,
                Err(now) => seen = now,
            }
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        let words = self.segment.words();
        let (generation, begun) = split(words.claim.0.load(Ordering::Acquire));
        let begun_at = words.worker.0.begun_at.load(Ordering::Relaxed);
        let taken = words.requests_taken.0.load(Ordering::Relaxed);
        let replied = words.replies.0.0.load(Ordering::Relaxed);
        let end = words.requests_end.0.load(Ordering::Relaxed);
        let is_mine = generation == self.generation && end == self.sent && taken <= self.sent;
        Progress {
            begun,
            begun_at: Duration::from_nanos(begun_at),
            pulse: taken.wrapping_add(replied),
            overwritten: self.overwritten || !is_mine,
        }
    }

    // ---- replies ------------------------------------------------------------------------------

    /// Sets whether it may send messages, each of which is a reason to ring.
    pub(super) fn expect_messages(&mut self, may_send: bool) {
        self.sends_messages = may_send;
    }

    /// Assigns to a channel one of the places with the fewest channels, if possible one where nothing is unread.
    pub(crate) fn open_channel(&mut self) -> u8 {
        let unread = |place: usize| {
            let taken = self.credits.taken[place].load(Ordering::SeqCst);
            self.messages[place] != taken
        };
        let place = (0..CHANNELS).min_by_key(|place| (self.channels[*place], unread(*place)));
        let place = place.unwrap_or_default();
        self.channels[place] += 1;
        self.expect_messages(true);
        place as u8
    }

    /// Frees the place of a channel that the worker no longer has.
    pub(crate) fn give_up_channel(&mut self, place: u8) {
        let channels = &mut self.channels[usize::from(place) % CHANNELS];
        *channels = channels.saturating_sub(1);
        if self.channels.iter().all(|channels| *channels == 0) {
            self.expect_messages(false);
        }
    }

    /// Sends a channel that has this place. `unread`: how many bytes from other workers are unread in the channel; they count
    /// as sent by this worker until the returned credit is dropped. `None` if there is no room yet.
    pub(crate) fn send_channel(
        &mut self,
        id: u64,
        place: u8,
        unread: u64,
    ) -> Result<Option<Credit>, Garbled> {
        let bytes = unread.min(WINDOW);
        let total = bytes << 8 | u64::from(place);
        if !self.write_aside(Head::about(kind::ATTACH_CHANNEL, id, total), &[])? {
            return Ok(None);
        }
        let place = usize::from(place) % CHANNELS;
        self.messages[place] = self.messages[place].wrapping_add(bytes);
        Ok(Some(Credit {
            credits: Arc::clone(&self.credits),
            place,
            bytes,
        }))
    }

    /// Whether it may send messages.
    pub(crate) fn sends_messages(&self) -> bool {
        self.sends_messages
    }

    /// Has the worker report log records of this level from now on.
    pub(crate) fn set_log_level(&mut self, level: LogLevel) {
        self.logs |= level > LogLevel::Off;
        let word = &self.segment.words().parent.0.log_level;
        word.store(level as u32, Ordering::Relaxed);
    }

    /// Whether it was ever told to report log records.
    pub(crate) fn logs(&self) -> bool {
        self.logs
    }

    /// Tells the worker that the receiver of this channel is gone.
    pub(crate) fn close_channel(&self, channel: u64, place: usize) {
        let words = self.segment.words();
        let closed = &words.channels.0[place].closed;
        closed.store(channel, Ordering::SeqCst);
        wake_senders(words);
    }

    /// Whether there are replies that were not received.
    pub(crate) fn has_replies(&self) -> bool {
        self.segment.words().replies.0.0.load(Ordering::Acquire) != self.received
    }

    /// Whether the worker has, or had, a reason to wake the parent.
    pub(crate) fn has_reason_to_ring(&self) -> bool {
        let words = self.segment.words();
        let number = words.replies.0.1.load(Ordering::Acquire);
        let end = words.replies.0.0.load(Ordering::Acquire);
        end != self.received
            && (self.sends_messages
                || self.logs
                || (self.wake_at.wrapping_sub(number) as i32) <= 0
                || end.wrapping_sub(self.received) > REPLIES as u64 / 2)
            || self
                .needs
                .is_some_and(|needs| has_room(words, self.sent, needs))
    }

    /// A handle by which any thread can see whether there are replies.
    pub(crate) fn glance(&self) -> Glance {
        Glance {
            segment: self.segment.clone(),
            received: self.received,
            sends: self.needs.map(|needs| (self.sent, needs)),
            is_long: self.long.is_some(),
        }
    }

    /// Appends all replies and messages that stand, each in order.
    pub(crate) fn receive(
        &mut self,
        replies: &mut VecDeque<Frames>,
        messages: &mut Vec<Messages>,
    ) -> Result<(), Garbled> {
        let end = self.segment.words().replies.0.0.load(Ordering::Acquire);
        if end.wrapping_sub(self.received) > REPLIES as u64 {
            return Err(Garbled("it has written more replies than fit"));
        }
        while self.received != end {
            let stand = (end - self.received) as usize;
            if self.long.is_some() {
                self.receive_piece(stand, replies, messages)?;
            } else {
                self.receive_many(stand, replies, messages)?;
            }
            let taken = &self.segment.words().replies_taken.0;
            taken.store(self.received, Ordering::Release);
        }
        Ok(())
    }

    /// Receives the frames up to the first that announces a long reply or message.
    fn receive_many(
        &mut self,
        stand: usize,
        replies: &mut VecDeque<Frames>,
        messages: &mut Vec<Messages>,
    ) -> Result<(), Garbled> {
        let mut bytes = Vec::new();
        self.copy_to_vec(stand, &mut bytes)?;
        let mut all = Division {
            bytes,
            from: 0,
            kind: Kind::Replies,
            count: 0,
            faulty: false,
            replies,
            messages,
        };
        let mut at = 0;
        while at < all.bytes.len() {
            let rest = &all.bytes[at..];
            let word = *rest.first_chunk().ok_or(CUT_SHORT)?;
            let is_message = u32::from_le_bytes(word) & MESSAGE != 0;
            let (len, tag) = read_word((u32::from_le_bytes(word) & !MESSAGE).to_le_bytes());
            let frame = rest.get(WORD..WORD + len).ok_or(CUT_SHORT)?;
            if tag >= PIECE {
                let long = frame.first_chunk().filter(|_| tag == LONG);
                let announced = u64::from_le_bytes(*long.ok_or(NO_REPLY)?);
                self.long = Some(announce(announced, is_message)?);
                break;
            }
            let kind = if is_message {
                let id = frame.first_chunk().filter(|_| tag == Tag::Value.bits());
                let (channel, place) = read_mark(u64::from_le_bytes(*id.ok_or(NO_MESSAGE)?));
                if report_kind(channel).is_none() {
                    self.count_message(place, len)?;
                }
                Kind::Messages { channel, place }
            } else {
                all.faulty |= tag != Tag::Value.bits();
                Kind::Replies
            };
            all.go_on(at, kind, &self.credits);
            at += WORD + len;
        }
        let announced = if self.long.is_some() {
            WORD + size_of::<u64>()
        } else {
            0
        };
        self.received += (at + announced) as u64;
        if announced > 0 {
            all.bytes.truncate(at);
        }
        all.cut(at, &self.credits);
        Ok(())
    }

    /// Counts a message. A worker that exceeds its window, and might fill the parent's memory, is an error.
    fn count_message(&mut self, place: usize, len: usize) -> Result<(), Garbled> {
        let taken = self.credits.taken[place].load(Ordering::SeqCst);
        let unread = self.messages[place].wrapping_sub(taken);
        let cost = cost(len);
        if unread > 0 && unread.saturating_add(cost) > WINDOW {
            return Err(TOO_MUCH);
        }
        self.messages[place] = self.messages[place].wrapping_add(cost);
        Ok(())
    }

    /// Receives one frame of a long reply, or of a long message.
    fn receive_piece(
        &mut self,
        stand: usize,
        replies: &mut VecDeque<Frames>,
        messages: &mut Vec<Messages>,
    ) -> Result<(), Garbled> {
        let mut word = Vec::with_capacity(WORD);
        self.copy_to_vec(WORD.min(stand), &mut word)?;
        let (len, tag) = read_word(*word.first_chunk().ok_or(CUT_SHORT)?);
        if tag == LONG {
            return Err(NO_REPLY);
        }
        if WORD + len > stand {
            return Err(CUT_SHORT);
        }
        self.received += WORD as u64;
        let Some(mut long) = self.long.take() else {
            return Err(NO_REPLY);
        };
        long.missing = long.missing.checked_sub(len as u64).ok_or(NOT_AS_LONG)?;
        if !long.bytes.reserve(len) {
            return Err(NO_MEMORY);
        }
        self.copy_out(long.bytes.spare(len));
        // SAFETY: all of them were just written.
        unsafe { long.bytes.wrote(len) };
        self.received += len as u64;
        if tag == PIECE {
            self.long = Some(long);
            return Ok(());
        }
        if long.missing > 0 {
            return Err(NOT_AS_LONG);
        }
        if long.is_message {
            messages.push(self.long_message(long.bytes)?);
            return Ok(());
        }
        let tag = if tag == Tag::Value.bits() {
            Tag::Value
        } else {
            Tag::Fault
        };
        replies.push_back(Frames::alone(tag, long.bytes));
        Ok(())
    }

    fn long_message(&mut self, bytes: Buffer) -> Result<Messages, Garbled> {
        let mark = u64::from_le_bytes(*bytes.first_chunk().ok_or(NO_MESSAGE)?);
        let (channel, place) = read_mark(mark);
        if report_kind(channel).is_some() {
            return Err(NO_MESSAGE);
        }
        self.count_message(place, bytes.len())?;
        Ok(Messages {
            channel,
            credit: Credit {
                credits: Arc::clone(&self.credits),
                place,
                bytes: cost(bytes.len()),
            },
            bytes: Framed::Alone(bytes),
        })
    }

    /// The worker, if it sleeps for the room that was just made; to be called after [`receive`](ParentEnd::receive).
    pub(crate) fn sleeper_for_room(&mut self) -> Option<Sleeper> {
        if self.received - self.looked_at <= UNLOOKED {
            return None;
        }
        self.looked_at = self.received;
        fence(Ordering::SeqCst);
        wake_senders(self.segment.words());
        let asleep = &self.segment.words().asleep.0;
        (asleep.load(Ordering::Relaxed) == asleep::FOR_ROOM).then(|| Sleeper(self.segment.clone()))
    }

    /// Appends a copy of `len` bytes from position `received` on.
    fn copy_to_vec(&self, len: usize, to: &mut Vec<u8>) -> Result<(), Garbled> {
        if to.capacity() - to.len() < len && to.try_reserve(len).is_err() {
            return Err(NO_MEMORY);
        }
        self.copy_out(&mut to.spare_capacity_mut()[..len]);
        // SAFETY: all of them were just written.
        unsafe { to.set_len(to.len() + len) };
        Ok(())
    }

    /// Fills `to` with a copy from position `received` on.
    fn copy_out(&self, to: &mut [MaybeUninit<u8>]) {
        let (at, to_end) = self.segment.reply_at(self.received);
        let (len, target) = (to.len(), to.as_mut_ptr().cast::<u8>());
        let first = len.min(to_end);
        // SAFETY: the ring has `first` bytes from `at` on, and the target has room for `len`. A worker that breaks the
        // protocol may write to them at the same time: then the copy holds arbitrary bytes.
        unsafe { ptr::copy_nonoverlapping(at, target, first) };
        if first < len {
            let (start, _) = self.segment.reply_at(0);
            // SAFETY: the target has room for `len`.
            let behind = unsafe { target.add(first) };
            // SAFETY: as above, for the part at the start of the ring.
            unsafe { ptr::copy_nonoverlapping(start, behind, len - first) };
        }
    }

    pub(crate) fn told_memory(&self) -> u64 {
        self.segment.words().worker.0.memory.load(Ordering::Relaxed)
    }

    /// What it reported about a failed allocation.
    pub(crate) fn starved(&self) -> Option<Starved> {
        let (limit, used) = &self.segment.words().worker.0.starved;
        let limit = limit.load(Ordering::Acquire);
        (limit > 0).then(|| Starved {
            limit,
            used: used.load(Ordering::Relaxed),
        })
    }

    /// The number of the system call because of which, as it says, the sandbox ended it.
    pub(crate) fn forbidden(&self) -> Option<u32> {
        let forbidden = &self.segment.words().worker.0.forbidden;
        forbidden.load(Ordering::Acquire).checked_sub(1)
    }

    /// A task, and how long an input of it took, if the worker has written that since the last call.
    pub(crate) fn new_pace(&mut self) -> Option<(u32, Duration)> {
        let pace = self.segment.words().worker.0.pace.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.pace, pace) == pace {
            return None;
        }
        let (task, each_ns) = split(pace);
        Some((task, Duration::from_nanos(each_ns.into())))
    }

    /// Asks to be woken when reply number `at` stands.
    pub(crate) fn set_wake_at(&mut self, at: u32) {
        if at != self.wake_at {
            self.wake_at = at;
            let word = &self.segment.words().parent.0.wake_at;
            word.store(at, Ordering::Relaxed);
        }
    }
}

/// Prepares for a long reply or message, if this announcement is valid.
fn announce(announced: u64, is_message: bool) -> Result<Long, Garbled> {
    let align_log2 = (announced >> ANNOUNCED_ALIGN_AT) as u32;
    let missing = announced & ((1 << ANNOUNCED_ALIGN_AT) - 1);
    // Frames behind an announcement are copied once more, so there must not be many of these in the ring.
    if missing <= FRAME_MAX as u64 || align_log2 > ALIGN_MAX {
        return Err(NO_REPLY);
    }
    // A false length costs only address space, and no more than this.
    let reserved = usize::try_from(missing).map_or(LONG_MAX, |len| len.min(LONG_MAX));
    let mut bytes = Buffer::aligned(align_log2);
    if !bytes.reserve(reserved) {
        return Err(NO_MEMORY);
    }
    Ok(Long {
        bytes,
        missing,
        is_message,
    })
}

/// Whether the ring of requests now has room for `needs` bytes behind `sent`. More may have been sent and taken in the
/// meantime, and a worker may have written any number.
fn has_room(words: &Words, sent: u64, needs: usize) -> bool {
    let taken = words.requests_taken.0.load(Ordering::Acquire);
    sent.saturating_sub(taken) + needs as u64 <= REQUESTS as u64
}

/// Tells how long the inputs of a worker ran and waited. The worker may have written any numbers.
#[derive(Debug, Clone)]
pub(crate) struct Tallies(Segment);

impl Tallies {
    /// The times of a task that this worker was given.
    pub(crate) fn of(&self, task: u32) -> Option<Tallied> {
        self.0.tally(task).map(Tally::read)
    }

    /// When the worker last read the clock, by [`now`](crate::now()): the input that it runs began then, or a little later.
    pub(crate) fn read_at(&self) -> Duration {
        let read_at = &self.0.words().read_at.0;
        Duration::from_nanos(read_at.load(Ordering::Relaxed))
    }
}

/// A worker that sleeps and must be woken.
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

/// Tells, without a lock, whether there are replies of a worker to receive or requests to send.
#[derive(Debug)]
pub struct Glance {
    segment: Segment,
    received: u64,
    /// If there is more to send: the position up to which was sent, and how much room the next record takes.
    sends: Option<(u64, usize)>,
    /// Whether a part of a long reply was received.
    is_long: bool,
}

impl Glance {
    /// Whether there are replies that were not received when this was made, or room for the next record.
    #[inline]
    pub fn has_news(&self) -> bool {
        let words = self.segment.words();
        words.replies.0.0.load(Ordering::Acquire) != self.received
            || self
                .sends
                .is_some_and(|(sent, needs)| has_room(words, sent, needs))
    }

    /// Whether a long input or reply is in transit.
    pub fn is_in_pieces(&self) -> bool {
        self.sends.is_some() || self.is_long
    }

    /// Whether the worker runs on another CPU than this thread.
    pub fn is_elsewhere(&self) -> bool {
        let cpu = self.segment.words().worker.0.cpu.load(Ordering::Relaxed);
        cpu != this_cpu()
    }
}
