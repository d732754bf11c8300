//! The tasks that the workers run.

use std::time::Instant;

use pool_core::{Sender, pool_task};

/// Does next to nothing.
#[pool_task]
pub(crate) fn square(x: u64) -> u64 {
    x.wrapping_mul(x)
}

/// Keeps a CPU busy for this many nanoseconds.
#[pool_task]
pub(crate) fn work(nanoseconds: u64) -> u64 {
    busy(nanoseconds)
}

#[pool_task]
pub(crate) fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

/// Reads its argument in place.
#[pool_task]
pub(crate) fn length(bytes: &[u8]) -> usize {
    bytes.len()
}

/// Sends this many messages.
#[pool_task]
pub(crate) fn say(count: u64, to: Sender<(u64, u64)>) -> Result<(), String> {
    (0..count).try_for_each(|x| to.send((x, !x)).map_err(|error| error.to_string()))
}

/// Does what [`work`] does, for peers that call a function.
pub(crate) fn busy(nanoseconds: u64) -> u64 {
    let start = Instant::now();
    while (start.elapsed().as_nanos() as u64) < nanoseconds {}
    nanoseconds
}

/// Returns durations in nanoseconds, from 1 µs to 10 ms: most are short, and a few make up most of the sum. The same in
/// every run.
pub(crate) fn mixed(count: usize) -> Vec<u64> {
    let mut state: u64 = 1;
    let mut uniform = || {
        // Knuth's MMIX generator; its high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    };
    (0..count)
        .map(|_| (1_000.0 * uniform().powf(-1.5)).min(10_000_000.0) as u64)
        .collect()
}
