//! Locks that ignore poisoning, waits with deadlines, and a way for a thread to sleep.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks, even after a panic in another thread: the data guarded here is consistent between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Code of the user that makes no progress for this long is no longer waited for.
pub(crate) const STUCK: Duration = Duration::from_secs(5);

/// Waits to be notified, at most until the deadline; returns false if the deadline has passed.
pub(crate) fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> (MutexGuard<'a, T>, bool) {
    let Some(deadline) = deadline else {
        let guard = condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        return (guard, true);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return (guard, false);
    }
    let (guard, _) = condvar
        .wait_timeout(guard, left)
        .unwrap_or_else(PoisonError::into_inner);
    (guard, true)
}

/// A number that distinguishes threads.
pub(crate) fn thread_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|number| *number)
}

/// Lets one thread sleep until another wakes it. A wake-up before the sleep ends the sleep at once; wake-ups may be spurious.
#[derive(Default)]
pub(crate) struct Parker {
    state: Mutex<Parked>,
    changed: Condvar,
}

#[derive(Default)]
struct Parked {
    asleep: bool,
    woken: bool,
}

impl fmt::Debug for Parker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parker")
    }
}

thread_local! {
    static CURRENT: Cell<Option<Arc<Parker>>> = const { Cell::new(None) };
}

impl Parker {
    /// Calls `with` with the parker of this thread.
    pub(crate) fn with_current<R>(with: impl FnOnce(&Arc<Parker>) -> R) -> R {
        // A waker that is called while this thread waits may itself wait: then it gets a parker of its own.
        let parker = CURRENT.take().unwrap_or_default();
        let result = with(&parker);
        CURRENT.set(Some(parker));
        result
    }

    /// Sleeps until woken, or until the deadline.
    pub(crate) fn park(&self, deadline: Option<Instant>) {
        let mut parked = lock(&self.state);
        while !parked.woken {
            parked.asleep = true;
            let (guard, in_time) = wait(&self.changed, parked, deadline);
            parked = guard;
            if !in_time {
                break;
            }
        }
        *parked = Parked::default();
    }

    pub(crate) fn wake(&self) {
        let mut parked = lock(&self.state);
        parked.woken = true;
        // Notifying is a system call, whether a thread waits or not.
        if parked.asleep {
            drop(parked);
            self.changed.notify_one();
        }
    }
}
