//! Sleeping until a word of shared memory changes.

use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{Flags, Timespec, wait as futex_wait, wake as futex_wake};

/// Sleeps while `word` is `value`, but no longer than `timeout`. May return early.
pub(crate) fn wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match futex_wait(word, Flags::empty(), value, timeout.as_ref()) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Wakes who sleeps on `word`; one at the most.
pub(crate) fn wake(word: &AtomicU32) {
    // It fails for a word that is not mapped, which a reference is.
    let _ = futex_wake(word, Flags::empty(), 1);
}
