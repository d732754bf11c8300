//! Busy waiting, for as long as it pays off.
//!
//! A wake-up costs ten microseconds or more, so a thread that expects to wait less than that spins. It learns how long
//! to spin: the budget doubles when the event came in time, and shrinks to a quarter when it did not. A budget that has
//! become small could never grow again if waits became longer, so after several misses a longer spin is tried.

use std::hint;
use std::time::{Duration, Instant};

/// The smallest budget.
const LEAST: Duration = Duration::from_micros(2);
/// The largest budget.
const MOST: Duration = Duration::from_micros(50);

/// How long to spin for a piece of a long value, which takes ten microseconds unless a thread is preempted.
const FOR_PIECE: Duration = Duration::from_micros(100);

/// After this many misses in a row, the budget is set to half of `MOST`.
const MISSES: u32 = 8;

/// How many times the condition is checked between two readings of the clock.
const LOOKS: u32 = 32;

/// How long one kind of wait may spin.
#[derive(Debug, Clone, Copy)]
pub struct Spin {
    budget: Duration,
    misses: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Spin {
            budget: MOST / 2,
            misses: 0,
        }
    }
}

impl Spin {
    /// Spins until `come` returns true, within the budget and while `may` returns true. Returns whether it came.
    /// `expected` is how long it will take, if that is known; if that is too long, this returns at once.
    pub fn until(
        &mut self,
        expected: Option<Duration>,
        come: impl FnMut() -> bool,
        may: impl FnMut() -> bool,
    ) -> bool {
        let least = match expected {
            Some(expected) if expected > MOST => return false,
            Some(expected) => (2 * expected).min(MOST),
            None => LEAST,
        };
        let hit = spin(self.budget.max(least), come, may);
        self.budget = if hit {
            self.misses = 0;
            (2 * self.budget).min(MOST)
        } else {
            self.misses += 1;
            if self.misses.is_multiple_of(MISSES) {
                MOST / 2
            } else {
                (self.budget / 4).max(LEAST)
            }
        };
        hit
    }
}

/// Spins for the next piece of a long value, which the other side is about to write or to take away.
pub fn spin_for_piece(come: impl FnMut() -> bool, may: impl FnMut() -> bool) -> bool {
    spin(FOR_PIECE, come, may)
}

fn spin(budget: Duration, mut come: impl FnMut() -> bool, mut may: impl FnMut() -> bool) -> bool {
    if cfg!(pool_shuttle) {
        // Under shuttle, time does not pass.
        return come();
    }
    let mut began = None;
    loop {
        if !may() {
            return come();
        }
        for _ in 0..LOOKS {
            if come() {
                return true;
            }
            hint::spin_loop();
        }
        let began = *began.get_or_insert_with(Instant::now);
        if began.elapsed() >= budget {
            return false;
        }
    }
}
