//! When inputs are accepted: the clock is read once for each submission, or once for sixteen that follow each other closely.

use crate::scheduler::Time;

/// If submissions follow each other this closely, the clock is not read for most of them.
const CLOSE: Time = Time::from_micros(4);

/// For how many of them, after one that was read.
const SKIPPED: u32 = 15;

/// Gives submissions their times.
#[derive(Debug, Default)]
pub(super) struct Stamps {
    /// The last reading, and how many submissions there have been since.
    last: Time,
    since: u32,
    /// For how many submissions the clock is not read.
    skip: u32,
}

impl Stamps {
    /// The time, or zero if the clock is not read.
    #[inline]
    pub(super) fn next(&mut self, now: impl FnOnce() -> Time) -> Time {
        self.since += 1;
        if self.skip > 0 {
            self.skip -= 1;
            return Time::ZERO;
        }
        let now = now();
        if now.saturating_sub(self.last) < CLOSE * self.since {
            self.skip = SKIPPED;
        }
        self.last = now;
        self.since = 0;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submissions_far_from_each_other_are_all_stamped_and_others_seldom() {
        let mut stamps = Stamps::default();
        for at in (1..1000).map(|n| n * Time::from_micros(10)) {
            assert_eq!(stamps.next(|| at), at);
        }
        let mut stamped = 0;
        for at in (100_000..101_600).map(|n| n * Time::from_nanos(500)) {
            stamped += usize::from(!stamps.next(|| at).is_zero());
        }
        assert!((100..110).contains(&stamped));
    }
}
