//! Tells a process apart from its forked copies, without a system call.

use std::process;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// The next free number.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A number that differs between this process, every process that it was forked from, and every process forked from it.
#[inline]
pub fn lineage() -> u32 {
    static WORD: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    // Miri has neither such memory nor a fork.
    if cfg!(miri) {
        return process::id();
    }
    let Some(word) = WORD.get_or_init(wiped_on_fork) else {
        return process::id();
    };
    match word.load(Ordering::Relaxed) {
        // The first call in this process, or in this forked copy.
        0 => {
            let new = NEXT.fetch_add(1, Ordering::Relaxed);
            let set = word.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
            set.map_or_else(|other| other, |_| new)
        }
        number => number,
    }
}

/// A word that is 0 in every forked copy of this process. `None` if the system can't provide one.
fn wiped_on_fork() -> Option<&'static AtomicU32> {
    let len = rustix::param::page_size();
    // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
    let page = unsafe {
        mmap_anonymous(
            ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    };
    let page = page.ok()?;
    // SAFETY: the page is ours.
    unsafe { madvise(page, len, Advice::LinuxWipeOnFork) }.ok()?;
    // SAFETY: the page is zeroed, aligned, and never unmapped.
    Some(unsafe { &*page.cast::<AtomicU32>() })
}
