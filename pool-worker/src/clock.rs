//! The clock that all processes on a machine share.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since a fixed point in the past, which is the same for all processes: CLOCK_MONOTONIC.
pub fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    // The kernel never returns a negative time here.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// The same in nanoseconds, which suffice for five hundred years of uptime.
pub(crate) fn now_ns() -> u64 {
    now().as_nanos() as u64
}
