//! The parent's clock, as a node knows it.
//!
//! Both sides use monotonic clocks, which have nothing in common but their pace. The node asks the parent what time it is
//! there, counted from the start of the pool. If the answer takes `t`, the parent's time in the middle of `t` is known to
//! `t / 2`. This estimate becomes worse by [`DRIFT`] as time passes, and is replaced by the next one that is at least as
//! good. So times are as exact as the fastest round trips: well below a millisecond in a local network.

use std::time::{Duration, Instant};

/// Two clocks are assumed to deviate by no more than one part in this many.
const DRIFT: u32 = 10_000;

/// What a node knows of the parent's clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// When it was `parent` there.
    here: Instant,
    parent: Duration,
    /// How much this may be wrong.
    error: Duration,
}

impl Clock {
    /// Of the answer to a question asked and answered at these times.
    pub(crate) fn new(asked: Instant, answered: Instant, parent: Duration) -> Clock {
        let error = answered.saturating_duration_since(asked) / 2;
        Clock {
            here: asked + error,
            parent,
            error,
        }
    }

    /// Takes another answer into account.
    pub(crate) fn improve(&mut self, other: Clock) {
        let passed = other.here.saturating_duration_since(self.here);
        if other.error <= self.error + passed / DRIFT {
            *self = other;
        }
    }

    /// What time it was for the parent; zero if its pool did not exist yet.
    pub(crate) fn convert(&self, at: Instant) -> Duration {
        let later = at.saturating_duration_since(self.here);
        let earlier = self.here.saturating_duration_since(at);
        (self.parent + later).saturating_sub(earlier)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_better_answer_counts_and_an_old_one_is_replaced() {
        let start = Instant::now();
        // The parent's pool is older by 1000 ms.
        let mut clock = Clock::new(start, start + ms(10), ms(1005));
        assert_eq!(clock.convert(start + ms(100)), ms(1100));
        assert_eq!(clock.convert(start), ms(1000));
        // A slow answer, which may be wrong by 50 ms, does not count.
        clock.improve(Clock::new(start + ms(100), start + ms(200), ms(1190)));
        assert_eq!(clock.convert(start), ms(1000));
        clock.improve(Clock::new(start + ms(300), start + ms(302), ms(1302)));
        assert_eq!(clock.convert(start + ms(300)), ms(1301));
        // After an hour, the clocks may deviate by 360 ms.
        let later = start + ms(3_600_000);
        clock.improve(Clock::new(later, later + ms(100), ms(3_601_100)));
        assert_eq!(clock.convert(later + ms(50)), ms(3_601_100));
        // Before the parent's pool.
        let Some(before) = start.checked_sub(ms(5000)) else {
            return;
        };
        assert_eq!(clock.convert(before), ms(0));
    }

    proptest! {
        /// Whatever the answers take on each way, the time is known as exactly as the clock says.
        #[test]
        fn the_error_is_bounded(
            ways in prop::collection::vec((0..50_000_u64, 0..50_000_u64, 0..5_000_000_u64), 1..30),
            offset in 0..1_000_000_000_u64,
        ) {
            let us = Duration::from_micros;
            let start = Instant::now();
            let (mut now, mut clock) = (start, None::<Clock>);
            for (there, back, pause) in ways {
                let asked = now;
                let parent = us(offset) + (asked + us(there)).duration_since(start);
                now = asked + us(there) + us(back);
                let next = Clock::new(asked, now, parent);
                clock.get_or_insert(next).improve(next);
                now += us(pause);
            }
            let clock = clock.expect("there is an answer");
            let (known, real) = (clock.convert(now), us(offset) + now.duration_since(start));
            prop_assert!(known.abs_diff(real) <= clock.error + Duration::from_nanos(1));
        }
    }
}
