//! Waiting awake, for as long as it pays.
//!
//! A wake-up costs ten microseconds and more, so whoever waits for less spins. Whether it will be less is
//! learned: the budget doubles when what was waited for came in time, and shrinks to a quarter when it
//! did not. One that has become small could not learn that longer waits have become worth it, so after
//! some misses a longer one is tried.

use std::hint;
use std::time::{Duration, Instant};

const LEAST: Duration = Duration::from_micros(2);
const MOST: Duration = Duration::from_micros(50);

/// A piece takes ten microseconds, unless somebody is preempted.
const FOR_PIECE: Duration = Duration::from_micros(100);

/// After so many misses in a row it tries again with half of the most.
const MISSES: u32 = 8;

/// Looks between two readings of the clock.
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
    /// Spins until `come`, within the budget and as long as `may`. Gives whether it came. `expected`: how
    /// long it will take, if that is known; if it is too long, there is no spinning.
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

/// Spins for the next piece of something long, which the other side is about to write or to take away.
pub fn spin_for_piece(come: impl FnMut() -> bool, may: impl FnMut() -> bool) -> bool {
    spin(FOR_PIECE, come, may)
}

fn spin(budget: Duration, mut come: impl FnMut() -> bool, mut may: impl FnMut() -> bool) -> bool {
    if cfg!(pool_shuttle) {
        // Waiting awake proves nothing there.
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
