//! When a task calls `exit`, exit handlers run (C's `atexit`, destructors of libraries), and they may hang. The worker is not
//! dead then, and the parent can't know that its input will never finish. So the handlers get some time, and then the process
//! ends with the status that the task gave to `exit`.
//!
//! Handlers run in the reverse order of their registration. Ours is registered last before the first task, so it runs before
//! all others except those that tasks register themselves.
//!
//! A thread waits for that time; where none can be started, as in most sandboxes, a timer of the kernel does.

#[cfg(target_env = "gnu")]
mod gnu {
    use std::ffi::c_void;
    use std::mem;
    use std::ptr;
    use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use crate::lineage::lineage;

    /// Exit handlers may take this long after a task's `exit`.
    const EXIT_MAX: Duration = Duration::from_secs(1);

    /// The [`lineage`] of the process that runs tasks; 0 while none does.
    static WORKER: AtomicU32 = AtomicU32::new(0);

    type Handler = extern "C" fn(libc::c_int, *mut c_void);

    unsafe extern "C" {
        fn on_exit(handler: Handler, argument: *mut c_void) -> libc::c_int;
    }

    /// From now on this process runs tasks.
    pub(crate) fn watch() {
        WORKER.store(lineage(), Ordering::Relaxed);
        // SAFETY: the handler lives as long as the program, and takes no argument.
        unsafe { on_exit(on_task_exit, ptr::null_mut()) };
    }

    /// From now on it runs none: it exits at the parent's request, and the parent makes sure that it ends.
    pub(crate) fn be_gone() {
        WORKER.store(0, Ordering::Relaxed);
    }

    extern "C" fn on_task_exit(status: libc::c_int, _: *mut c_void) {
        // A copy that a task has made by `fork` may take its time.
        if WORKER.load(Ordering::Relaxed) != lineage() {
            return;
        }
        let started = thread::Builder::new().stack_size(64 << 10).spawn(move || {
            thread::sleep(EXIT_MAX);
            // SAFETY: ends the process, and runs no handler.
            unsafe { libc::_exit(status) };
        });
        if started.is_err() {
            set_timer(status);
        }
    }

    /// What the task gave to `exit`.
    static STATUS: AtomicI32 = AtomicI32::new(0);

    fn set_timer(status: libc::c_int) {
        STATUS.store(status, Ordering::Relaxed);
        // SAFETY: all zeros means an empty signal set, no flags, and no handler.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = on_timer as *const () as libc::sighandler_t;
        // SAFETY: the handler does only what is allowed in a signal handler.
        unsafe { libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()) };
        // SAFETY: as above.
        let mut alarm: libc::sigset_t = unsafe { mem::zeroed() };
        // SAFETY: the set is valid.
        unsafe { libc::sigaddset(&mut alarm, libc::SIGALRM) };
        // SAFETY: as above; null: the old set is not wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &alarm, ptr::null_mut()) };
        let once = libc::itimerval {
            it_interval: libc::timeval {
                tv_sec: 0,
                tv_usec: 0,
            },
            it_value: libc::timeval {
                tv_sec: EXIT_MAX.as_secs() as libc::time_t,
                tv_usec: 0,
            },
        };
        // SAFETY: reads the structure; null: the old timer is not wanted.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &once, ptr::null_mut()) };
    }

    extern "C" fn on_timer(_: libc::c_int) {
        // SAFETY: ends the process, and runs no handler.
        unsafe { libc::_exit(STATUS.load(Ordering::Relaxed)) };
    }
}

#[cfg(target_env = "gnu")]
pub(crate) use gnu::{be_gone, watch};

#[cfg(not(target_env = "gnu"))]
pub(crate) fn watch() {}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn be_gone() {}
