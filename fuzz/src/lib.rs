//! Limits on what one input may cost. (libFuzzer's own time limit counts whole seconds of wall-clock time, and it
//! checks its memory limit once a second, when another input may be running.)

use std::mem;
use std::time::Duration;

/// How much CPU time an input may take. This is far more than any input should need, because other programs may have
/// evicted its memory from the caches.
const TIME: Duration = Duration::from_millis(100);

/// How much memory this process may have used, libFuzzer included, in KiB.
const MEMORY: i64 = 256 << 10;

/// Runs one input.
pub fn within_limits(run: impl FnOnce()) {
    let before = cpu_time();
    run();
    let took = cpu_time() - before;
    assert!(took < TIME, "took {took:?}");
    let memory = peak_memory();
    assert!(memory < MEMORY, "used {} MiB", memory >> 10);
}

/// The CPU time of this thread: what a second thread does meanwhile does not count.
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
    // SAFETY: all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: writes into `usage`.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    assert_eq!(failed, 0);
    usage.ru_maxrss
}
