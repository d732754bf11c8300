//! The parent's end over memory in which anything may stand.

use super::*;
use crate::frames::Frames;
use crate::sync::{Ordering, Shared};

pub(crate) struct Fuzzed {
    pub(crate) parent: ParentEnd,
}

impl Fuzzed {
    pub(crate) fn new() -> Fuzzed {
        let (memory, _) = Shared::create("fuzz").expect("there is memory");
        Fuzzed {
            parent: ParentEnd::new(memory),
        }
    }

    fn words(&self) -> &Words {
        self.parent.segment().words()
    }

    pub(crate) fn send(&mut self, inputs: &Frames) -> Result<bool, Garbled> {
        self.parent.send(Portion {
            task: 7,
            limited: inputs.count() % 2 == 1,
            inputs,
            skip: 0,
        })
    }

    pub(crate) fn write_word(&self, which: u8, value: u64) {
        let words = self.words();
        let short = value as u32;
        match which % 12 {
            0 => words.requests_end.0.store(value, Ordering::Relaxed),
            1 => words.replies_taken.0.store(value, Ordering::Relaxed),
            2 => words.parent.0.wake_at.store(short, Ordering::Relaxed),
            3 => words.parent.0.wants_room.store(short, Ordering::Relaxed),
            4 => words.claim.0.store(value, Ordering::Relaxed),
            5 => words.replies.0.0.store(value, Ordering::Relaxed),
            6 => words.replies.0.1.store(short, Ordering::Relaxed),
            7 => words.requests_taken.0.store(value, Ordering::Relaxed),
            8 => words.worker.0.begun_at.store(value, Ordering::Relaxed),
            9 => words.worker.0.pace.store(value, Ordering::Relaxed),
            10 => words.worker.0.cpu.store(short, Ordering::Relaxed),
            _ => words.asleep.0.store(short, Ordering::Relaxed),
        }
    }

    pub(crate) fn reply(&self, by: u64) {
        let end = &self.words().replies.0.0;
        end.store(
            end.load(Ordering::Relaxed).wrapping_add(by),
            Ordering::Relaxed,
        );
    }

    pub(crate) fn write_bytes(&self, position: u64, bytes: &[u8]) {
        for (position, byte) in (position..).zip(bytes) {
            let (place, _) = self.parent.segment().reply_at(position);
            // SAFETY: a byte of the ring, which no other thread uses.
            unsafe { place.write(*byte) };
        }
    }
}
