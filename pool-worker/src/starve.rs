//! Finds out whether a worker aborted because it ran out of memory.
//!
//! Rust's standard library aborts when an allocation fails, and so do most C and C++ programs. Only `errno` shows why:
//! the allocator has set it to ENOMEM. A SIGABRT handler checks for that and writes what it finds to the rings; then
//! the process ends as it would have. (It finds nothing if the standard library prints a backtrace first, as with
//! RUST_BACKTRACE=1, since that overwrites `errno`.)

use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use crate::resident;
use crate::ring::Replies;

/// An allocation failed, and the process aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Starved {
    /// The limit of the process's address space in bytes (RLIMIT_AS); `u64::MAX` if there is none.
    pub limit: u64,
    /// The size of its address space in bytes; 0 if unknown.
    pub used: u64,
}

static REPLIES: OnceLock<Replies> = OnceLock::new();

/// Installs the handler. (If a task installs its own, aborts are not explained.)
pub(crate) fn watch(replies: Replies) {
    let _ = REPLIES.set(replies);
    // SAFETY: all zeros means an empty signal set, no flags, and no handler.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_abort as *const () as libc::sighandler_t;
    // Run it only once, and on the alternate signal stack, if there is one.
    action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: the handler does only what is allowed in a signal handler.
    unsafe { libc::sigaction(libc::SIGABRT, &action, ptr::null_mut()) };
}

/// Sends the signal again, because the process must end even if another process has sent it. (`abort` itself would
/// do that.)
extern "C" fn on_abort(signal: libc::c_int) {
    if io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM)
        && let Some(replies) = REPLIES.get()
    {
        replies.set_starved(Starved {
            limit: getrlimit(Resource::As).current.unwrap_or(u64::MAX),
            used: resident::address_space().unwrap_or_default(),
        });
    }
    // SAFETY: this sends a signal to this thread, where it is blocked until the handler returns.
    unsafe { libc::raise(signal) };
}
