//! Sleeping until a word of shared memory changes.

#[cfg(pool_shuttle)]
pub(crate) use self::model::{wait, wake, wake_all};
#[cfg(not(pool_shuttle))]
pub(crate) use self::real::{wait, wake, wake_all};

#[cfg(not(pool_shuttle))]
mod real {
    use std::io;
    use std::time::Duration;

    use rustix::io::Errno;
    use rustix::thread::futex::{Flags, Timespec, wait as futex_wait, wake as futex_wake};

    use crate::sync::AtomicU32;

    /// How many times a failed wake-up is tried again.
    const TRIES: usize = 100;

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

    /// Wakes one thread that sleeps on `word`, if there is one.
    pub(crate) fn wake(word: &AtomicU32) {
        wake_some(word, 1);
    }

    /// Wakes all threads that sleep on `word`.
    pub(crate) fn wake_all(word: &AtomicU32) {
        wake_some(word, i32::MAX as u32);
    }

    #[inline]
    fn wake_some(word: &AtomicU32, most: u32) {
        if futex_wake(word, Flags::empty(), most).is_err() {
            wake_again(word, most);
        }
    }

    /// A wake-up can fail although the word is mapped: its page may be swapped out, with no memory to bring it back
    /// right now. It must be repeated, since the sleeper may have no timeout.
    #[cold]
    fn wake_again(word: &AtomicU32, most: u32) {
        for _ in 0..TRIES {
            std::thread::yield_now();
            if futex_wake(word, Flags::empty(), most).is_ok() {
                return;
            }
        }
    }
}

/// A model of the kernel in which sleepers wake only when they are woken, so shuttle reports a lost wake-up as a
/// deadlock.
#[cfg(pool_shuttle)]
mod model {
    use std::io;
    use std::time::Duration;

    use shuttle::sync::{Condvar, Mutex};

    use crate::sync::{AtomicU32, Ordering};

    shuttle::lazy_static! {
        static ref KERNEL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub(crate) fn wait(word: &AtomicU32, value: u32, _: Option<Duration>) -> io::Result<()> {
        let mut guard = KERNEL.0.lock().unwrap();
        if word.load(Ordering::SeqCst) == value {
            guard = KERNEL.1.wait(guard).unwrap();
        }
        drop(guard);
        Ok(())
    }

    pub(crate) fn wake(word: &AtomicU32) {
        wake_all(word);
    }

    pub(crate) fn wake_all(_: &AtomicU32) {
        let guard = KERNEL.0.lock().unwrap();
        KERNEL.1.notify_all();
        drop(guard);
    }
}
