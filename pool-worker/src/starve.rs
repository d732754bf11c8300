//! Finds out whether a worker aborted because it ran out of memory.
//!
//! Rust's standard library aborts when an allocation fails, and so do most C and C++ programs. `errno` shows why: the allocator
//! has set it to ENOMEM. A SIGABRT handler checks for that and writes what it finds to the rings; then the process ends as it
//! would have.
//!
//! If the standard library prints a backtrace first, as with RUST_BACKTRACE=1, that overwrites `errno`. So the handler also
//! looks at the functions that it was called from: one of them is that by which the standard library ends a program in this
//! case. It looks only if there is a limit. A program that aborts may have overwritten its stack, and looking might crash.

use std::alloc::handle_alloc_error;
use std::ffi::{c_int, c_void};
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
    let is_told = io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM);
    let limit = getrlimit(Resource::As).current;
    if (is_told || limit.is_some() && is_in_alloc_error())
        && let Some(replies) = REPLIES.get()
    {
        replies.set_starved(Starved {
            limit: limit.unwrap_or(u64::MAX),
            used: resident::address_space().unwrap_or_default(),
        });
    }
    // SAFETY: this sends a signal to this thread, where it is blocked until the handler returns.
    unsafe { libc::raise(signal) };
}

#[cfg(not(target_arch = "arm"))]
type Frame = *mut c_void;

/// What the unwinder calls for each frame returns this to go on, or another number to stop.
#[cfg(not(target_arch = "arm"))]
const GO_ON: c_int = 0;
#[cfg(not(target_arch = "arm"))]
const STOP: c_int = 4;

/// Whether this was called because an allocation has failed. (The unwinder of this processor has other functions.)
#[cfg(target_arch = "arm")]
fn is_in_alloc_error() -> bool {
    false
}

/// Whether this was called because an allocation has failed.
#[cfg(not(target_arch = "arm"))]
fn is_in_alloc_error() -> bool {
    // `std` links the unwinder.
    unsafe extern "C" {
        fn _Unwind_Backtrace(
            each: extern "C" fn(Frame, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
    }
    let mut found = false;
    // SAFETY: the function is called with frames and the argument, while this call lasts. It allocates nothing.
    unsafe { _Unwind_Backtrace(look_at, (&raw mut found).cast()) };
    found
}

#[cfg(not(target_arch = "arm"))]
extern "C" fn look_at(frame: Frame, found: *mut c_void) -> c_int {
    unsafe extern "C" {
        fn _Unwind_GetIP(frame: Frame) -> usize;
        fn _Unwind_FindEnclosingFunction(address: *mut c_void) -> *mut c_void;
    }
    // SAFETY: the unwinder has passed the frame.
    let address = unsafe { _Unwind_GetIP(frame) };
    // The call that never returns may be the last instruction of its function, so the address after it is in the next one.
    let within = ptr::without_provenance_mut(address.wrapping_sub(1));
    // SAFETY: looks up any address.
    let function = unsafe { _Unwind_FindEnclosingFunction(within) };
    if function.addr() == (handle_alloc_error as *const ()).addr() {
        // SAFETY: this is the argument above.
        unsafe { found.cast::<bool>().write(true) };
        return STOP;
    }
    GO_ON
}
