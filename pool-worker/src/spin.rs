//! Waiting awake, for as long as it pays.
//!
//! A wake-up costs ten microseconds and more, so whoever waits for less spins. Whether it will be less is
//! learned: the budget doubles when what was waited for came in time, and shrinks to a quarter when it
//! did not. It never shrinks so far that it could not learn again.

use std::hint;
use std::time::{Duration, Instant};

const LEAST: Duration = Duration::from_micros(2);
const MOST: Duration = Duration::from_micros(50);

/// A piece takes ten microseconds, unless somebody is preempted.
const FOR_PIECE: Duration = Duration::from_micros(100);

/// Looks between two readings of the clock.
const LOOKS: u32 = 32;

/// How long one kind of wait may spin.
#[derive(Debug)]
pub struct Spin {
    budget: Duration,
}

impl Default for Spin {
    fn default() -> Self {
        Spin {
            budget: Duration::from_micros(20),
        }
    }
}

impl Spin {
    /// Spins until `come`, within the budget and as long as `may`. Gives whether it came.
    pub fn until(&mut self, come: impl FnMut() -> bool, may: impl FnMut() -> bool) -> bool {
        let hit = spin(self.budget, come, may);
        self.budget = if hit {
            (2 * self.budget).min(MOST)
        } else {
            (self.budget / 4).max(LEAST)
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
