//! Telling an abort for want of memory from another.
//!
//! Rust's standard library aborts when an allocation fails, and so do most programs in C and C++. What the abort is
//! for, only its last error number tells: the allocator has left ENOMEM there. A handler of SIGABRT looks, and writes
//! what it finds into the rings; then the process ends as it would have. (It finds nothing where the standard library prints a
//! backtrace first, as with RUST_BACKTRACE=1, for that leaves numbers of its own.)

use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;

use rustix::process::{Resource, getrlimit};

use crate::resident;
use crate::ring::Replies;

/// An allocation has failed, and the process aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Starved {
    /// How much address space the process may have, in bytes; `u64::MAX` without a limit (RLIMIT_AS).
    pub limit: u64,
    /// How much it had, in bytes; 0 if that is not known.
    pub used: u64,
}

static REPLIES: OnceLock<Replies> = OnceLock::new();

/// From now on. (A task may set a handler of its own; then nothing is told.)
pub(crate) fn watch(replies: Replies) {
    let _ = REPLIES.set(replies);
    // SAFETY: all zero is an empty set, no flags, and no handler.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_abort as *const () as libc::sighandler_t;
    // Once, and on the stack for signals, where there is one.
    action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: the handler does only what is allowed in one.
    unsafe { libc::sigaction(libc::SIGABRT, &action, ptr::null_mut()) };
}

/// `abort` sends the signal again once this returns. So must we for a signal that another process has sent.
extern "C" fn on_abort(signal: libc::c_int) {
    if io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM)
        && let Some(replies) = REPLIES.get()
    {
        replies.set_starved(Starved {
            limit: getrlimit(Resource::As).current.unwrap_or(u64::MAX),
            used: resident::address_space().unwrap_or_default(),
        });
    }
    // SAFETY: sends a signal to this thread, where it is blocked until the handler returns.
    unsafe { libc::raise(signal) };
}
