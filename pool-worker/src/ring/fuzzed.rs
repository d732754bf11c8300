//! The parent's end over memory that may hold anything, and may change at any moment.
//!
//! A hostile worker's writes happen at once, or when the parent next looks at the memory (so an input is reproducible), or
//! from a thread that never stops.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use arbitrary::Arbitrary;

use super::*;
use crate::frames::{FRAME_MAX, Frames, LONG, MESSAGE, PIECE, WORD};
use crate::sync::{Ordering, Shared};

pub(crate) struct Fuzzed {
    pub(crate) parent: ParentEnd,
}

/// What a hostile worker writes.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) enum Write {
    /// One of the words, including those that only the parent may write.
    Word { which: u8, value: Number },
    /// Frames behind the replies, as far as there is room: with any tag, as messages or not, and with whatever bytes lie
    /// there.
    Frames { tag: u8, len: u16, times: u16 },
    /// The frame that announces a long reply.
    Long { len: Number },
    /// A long reply that has the announced length, or nearly, as far as there is room.
    Whole { more: u16, off: i8 },
    /// Moves the end of the replies over whatever lies there.
    Reply { by: u16 },
    /// Bytes, at this distance from the end of the replies.
    Bytes { away: i16, bytes: [u8; 12] },
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Number {
    Small(u16),
    Any(u64),
    /// The present value, or one close to it.
    Near(i8),
}

impl Number {
    fn at(self, before: u64) -> u64 {
        match self {
            Number::Small(number) => number.into(),
            Number::Any(number) => number,
            Number::Near(by) => before.wrapping_add_signed(by.into()),
        }
    }
}

impl Fuzzed {
    pub(crate) fn new() -> Fuzzed {
        DUE.take();
        BY_TURNS.take();
        let (memory, _) = Shared::create("fuzz", 0).expect("there is memory");
        Fuzzed {
            parent: ParentEnd::new(memory),
        }
    }

    pub(crate) fn send(&mut self, inputs: &Frames, skip: usize) -> Result<bool, Garbled> {
        self.parent.send(Portion {
            task: 7,
            limited: inputs.count() % 2 == 1,
            inputs,
            skip,
            submitted: Duration::ZERO,
        })
    }

    pub(crate) fn write(&self, write: &Write) {
        write.to(self.parent.segment());
    }

    /// Writes this at a later look of the parent's: after `looks` more looks, counted from the previous such write.
    pub(crate) fn write_later(&self, looks: u8, write: Write) {
        DUE.with_borrow_mut(|due| due.push_back((looks, write)));
    }

    /// Writes these two alternately, one at each look of the parent's from now on.
    pub(crate) fn write_by_turns(&self, next: Write, then: Write) {
        BY_TURNS.set(Some((next, then)));
    }

    /// Writes all of this, again and again, from another thread while `steps` runs.
    pub(crate) fn beside(&mut self, writes: Vec<Write>, steps: impl FnOnce(&mut Fuzzed)) {
        let racer = RACER
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let is_over = Arc::new(AtomicBool::new(false));
        let (has_ended, end) = mpsc::channel::<()>();
        let race = Race {
            segment: self.parent.segment().clone(),
            writes,
            is_over: is_over.clone(),
            has_ended,
        };
        racer.send(race).expect("the thread is there");
        // Stops the thread also when a step panics.
        struct Over(Arc<AtomicBool>, mpsc::Receiver<()>);
        impl Drop for Over {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
                let _ = self.1.recv();
            }
        }
        let _over = Over(is_over, end);
        steps(self);
    }
}

thread_local! {
    /// What the worker writes at later looks, and after how many looks.
    static DUE: RefCell<VecDeque<(u8, Write)>> = const { RefCell::new(VecDeque::new()) };

    /// What it writes at each look.
    static BY_TURNS: Cell<Option<(Write, Write)>> = const { Cell::new(None) };
}

/// Called when the parent looks at the memory.
pub(super) fn write_what_is_due(segment: &Segment) {
    let due = DUE.with_borrow_mut(|due| {
        let (looks, _) = due.front_mut()?;
        if *looks > 0 {
            *looks -= 1;
            return None;
        }
        due.pop_front()
    });
    if let Some((_, write)) = due {
        write.to(segment);
    }
    if let Some((next, then)) = BY_TURNS.take() {
        next.to(segment);
        BY_TURNS.set(Some((then, next)));
    }
}

/// A thread that is started only once, since starting one takes longer than an input.
static RACER: LazyLock<Mutex<Sender<Race>>> = LazyLock::new(|| {
    let (races, next) = mpsc::channel::<Race>();
    thread::spawn(move || {
        for race in next {
            while !race.is_over.load(Ordering::Relaxed) {
                for write in &race.writes {
                    write.to(&race.segment);
                }
            }
            drop(race);
        }
    });
    Mutex::new(races)
});

struct Race {
    segment: Segment,
    writes: Vec<Write>,
    is_over: Arc<AtomicBool>,
    /// Dropped when the race has ended.
    #[expect(dead_code, reason = "to be dropped is its only use")]
    has_ended: Sender<()>,
}

impl Write {
    fn to(&self, segment: &Segment) {
        let memory = Memory(segment);
        match self {
            Write::Word { which, value } => memory.write_word(*which, *value),
            Write::Frames { tag, len, times } => {
                for _ in 0..=*times {
                    if !memory.append((*len).into(), *tag, &[]) {
                        break;
                    }
                }
            }
            Write::Long { len } => {
                let len = len.at(FRAME_MAX as u64);
                memory.append(size_of::<u64>(), LONG as u8, &len.to_le_bytes());
            }
            Write::Whole { more, off } => {
                // Some frames are messages.
                let mark = if *off < 0 { 0x80 } else { 0 };
                let mut rest = FRAME_MAX + 1 + usize::from(*more);
                let len = (rest as u64).wrapping_add_signed((*off).into());
                memory.append(size_of::<u64>(), LONG as u8 | mark, &len.to_le_bytes());
                while rest > FRAME_MAX {
                    memory.append(PIECE_LEN, PIECE as u8, &[]);
                    rest -= PIECE_LEN;
                }
                memory.append(rest, *off as u8, &[]);
            }
            Write::Reply { by } => memory.move_end(memory.end().wrapping_add((*by).into())),
            Write::Bytes { away, bytes } => {
                memory.write_bytes(memory.end().wrapping_add_signed((*away).into()), bytes);
            }
        }
    }
}

/// The memory, as the worker sees it: accesses through this do not count as looks of the parent's.
struct Memory<'a>(&'a Segment);

impl Memory<'_> {
    fn words(&self) -> &Words {
        self.0.0.words()
    }

    fn end(&self) -> u64 {
        self.words().replies.0.0.load(Ordering::Relaxed)
    }

    fn move_end(&self, to: u64) {
        self.words().replies.0.0.store(to, Ordering::Release);
    }

    /// Appends a frame that begins with these bytes, if there is room.
    fn append(&self, len: usize, tag: u8, bytes: &[u8]) -> bool {
        let end = self.end();
        let taken = self.words().replies_taken.0.load(Ordering::Relaxed);
        let room = (REPLIES as u64).saturating_sub(end.wrapping_sub(taken));
        if room < (WORD + len) as u64 {
            return false;
        }
        let mark = if tag & 0x80 == 0 { 0 } else { MESSAGE };
        let word = (len as u32) << 2 | u32::from(tag & 3) | mark;
        self.write_bytes(end, &word.to_le_bytes());
        self.write_bytes(end.wrapping_add(WORD as u64), bytes);
        self.move_end(end.wrapping_add((WORD + len) as u64));
        true
    }

    fn write_word(&self, which: u8, value: Number) {
        let words = self.words();
        let (worker, parent) = (&words.worker.0, &words.parent.0);
        let long = |word: &AtomicU64| {
            word.store(value.at(word.load(Ordering::Relaxed)), Ordering::Relaxed);
        };
        let short = |word: &AtomicU32| {
            let before = word.load(Ordering::Relaxed);
            word.store(value.at(before.into()) as u32, Ordering::Relaxed);
        };
        match which % 17 {
            0 => long(&words.requests_end.0),
            1 => long(&words.replies_taken.0),
            2 => short(&parent.wake_at),
            3 => short(&parent.wants_room),
            4 => short(&parent.cpu),
            5 => long(&words.claim.0),
            6 => long(&words.replies.0.0),
            7 => short(&words.replies.0.1),
            8 => long(&words.requests_taken.0),
            9 => long(&worker.begun_at),
            10 => long(&worker.pace),
            11 => long(&worker.memory),
            12 => long(&worker.starved.0),
            13 => long(&worker.starved.1),
            14 => short(&worker.cpu),
            15 => short(&worker.forbidden),
            _ => short(&words.asleep.0),
        }
    }

    fn write_bytes(&self, position: u64, bytes: &[u8]) {
        for (by, byte) in (0..).zip(bytes) {
            let (place, _) = self.0.at(REPLIES_AT, REPLIES, position.wrapping_add(by));
            // SAFETY: a byte of the ring. A reader that runs at the same time copies it, and trusts nothing that it reads.
            unsafe { place.write_volatile(*byte) };
        }
    }
}
