//! The clock that all processes of a machine share.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since some point in the past, the same point for all processes: CLOCK_MONOTONIC.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    // The kernel never gives a negative time here.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The same in nanoseconds, which last for five hundred years of uptime.
pub(crate) fn now_ns() -> u64 {
    now().as_nanos() as u64
}
