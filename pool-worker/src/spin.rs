//! Waiting awake, for as long as it pays.
//!
//! A wake-up costs ten microseconds and more, so whoever waits for less spins. Whether it will be less is
//! learned: the budget doubles when what was waited for came in time, and shrinks to a quarter when it
//! did not. It never shrinks so far that it could not learn again.

use std::hint;
use std::time::{Duration, Instant};

const LEAST: Duration = Duration::from_micros(2);
const MOST: Duration = Duration::from_micros(50);

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
    pub fn until(&mut self, mut come: impl FnMut() -> bool, mut may: impl FnMut() -> bool) -> bool {
        let mut began = None;
        loop {
            if !may() {
                return come();
            }
            for _ in 0..LOOKS {
                if come() {
                    self.budget = (2 * self.budget).min(MOST);
                    return true;
                }
                hint::spin_loop();
            }
            let began = *began.get_or_insert_with(Instant::now);
            if began.elapsed() >= self.budget {
                self.budget = (self.budget / 4).max(LEAST);
                return false;
            }
        }
    }
}
