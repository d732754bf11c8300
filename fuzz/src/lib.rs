//! What one input may cost. (libFuzzer's own limit of time counts whole seconds on the clock of the wall, and its limit
//! of memory is looked at once a second, when another input may be at work.)

use std::mem;
use std::time::Duration;

/// So much time on a CPU may an input take: very much more than any should, for other programs may have thrown its
/// memory out of the caches.
const TIME: Duration = Duration::from_millis(100);

/// So much memory may this process have used, libFuzzer's own included, in KiB.
const MEMORY: i64 = 256 << 10;

/// Runs one input.
pub fn within_limits(run: impl FnOnce()) {
    let before = cpu_time();
    run();
    let took = cpu_time() - before;
    assert!(took < TIME, "it takes {took:?}");
    let memory = peak_memory();
    assert!(memory < MEMORY, "it takes {} MiB", memory >> 10);
}

/// Of this thread: what a second one does meanwhile is not the input's.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes into `time`.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn peak_memory() -> i64 {
    // SAFETY: all zero is a valid one.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: writes into `usage`.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    assert_eq!(failed, 0);
    usage.ru_maxrss
}
