//! A task that calls `exit` leaves its worker to the exit handlers, and they may hang (C's `atexit`, destructors of
//! libraries). While they run the process is not dead, and the parent can't know that it never will be anything else. So
//! it gets some time, and then ends as it was about to.
//!
//! Handlers run in the opposite order of their registration. Ours is registered last of those that there are before
//! the first task, so it runs before all others but those that tasks register themselves.

#[cfg(target_env = "gnu")]
mod gnu {
    use std::ffi::c_void;
    use std::ptr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;
    use std::time::Duration;

    use crate::lineage::lineage;

    /// Exit handlers of a task's `exit` may take so long.
    const EXIT_MAX: Duration = Duration::from_secs(1);

    /// Who runs tasks; 0: nobody.
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

    /// From now on it runs none: the parent knows, and sees to the rest.
    pub(crate) fn be_gone() {
        WORKER.store(0, Ordering::Relaxed);
    }

    extern "C" fn on_task_exit(status: libc::c_int, _: *mut c_void) {
        // A copy that a task has made by `fork` is nobody's concern.
        if WORKER.load(Ordering::Relaxed) != lineage() {
            return;
        }
        let _ = thread::Builder::new().stack_size(64 << 10).spawn(move || {
            thread::sleep(EXIT_MAX);
            // SAFETY: ends the process, and runs no handler.
            unsafe { libc::_exit(status) };
        });
    }
}

#[cfg(target_env = "gnu")]
pub(crate) use gnu::{be_gone, watch};

#[cfg(not(target_env = "gnu"))]
pub(crate) fn watch() {}

#[cfg(not(target_env = "gnu"))]
pub(crate) fn be_gone() {}
