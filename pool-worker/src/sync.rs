//! Words in shared memory: real atomics, or shuttle's, which tries very many orders of their accesses.
//!
//! `RUSTFLAGS="--cfg pool_shuttle" cargo test -p pool-worker --lib orders` runs the code of `ring` and `bell` in
//! threads under shuttle, in the memory of one process and with rings of a few bytes.

#[cfg(pool_shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(pool_shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(pool_shuttle))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(pool_shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard};

use std::io;
use std::os::fd::OwnedFd;

/// The CPU that this thread runs on.
#[inline]
pub(crate) fn this_cpu() -> u32 {
    if cfg!(pool_shuttle) {
        // Every run must be the same.
        return 0;
    }
    rustix::thread::sched_getcpu() as u32
}

/// The words at the start of a piece of shared memory, all zero at first.
///
/// # Safety
///
/// Every bit pattern must be valid, and the type's alignment must not exceed a page.
pub(crate) unsafe trait Words {
    /// The size of the memory in bytes.
    const SIZE: usize;

    #[cfg(pool_shuttle)]
    fn new() -> Self;
}

/// Shared memory that begins with words. Their owner decides how to use the rest.
pub(crate) struct Shared<W> {
    #[cfg(not(pool_shuttle))]
    memory: crate::memory::Memory,
    #[cfg(not(pool_shuttle))]
    words: std::marker::PhantomData<W>,
    #[cfg(pool_shuttle)]
    words: W,
    #[cfg(pool_shuttle)]
    bytes: Box<std::cell::UnsafeCell<[u8]>>,
}

#[cfg(not(pool_shuttle))]
impl<W: Words> Shared<W> {
    /// Makes memory, and the descriptor by which another process gets it. `more`: how many bytes follow the words.
    pub(crate) fn create(name: &str, more: usize) -> io::Result<(Self, OwnedFd)> {
        let (memory, fd) = crate::memory::Memory::create(name, W::SIZE + more)?;
        let words = std::marker::PhantomData;
        Ok((Shared { memory, words }, fd))
    }

    /// Maps memory that another process has made.
    pub(crate) fn open(fd: &OwnedFd, more: usize) -> io::Result<Self> {
        let memory = crate::memory::Memory::open(fd, W::SIZE + more)?;
        let words = std::marker::PhantomData;
        Ok(Shared { memory, words })
    }

    #[inline]
    pub(crate) fn words(&self) -> &W {
        const { assert!(size_of::<W>() <= W::SIZE) };
        // SAFETY: the mapping starts at a page, has `W::SIZE` bytes, and lives as long as `self`; every bit pattern is
        // a valid `W`.
        unsafe { &*self.memory.base().cast::<W>() }
    }

    /// The first byte.
    #[inline]
    pub(crate) fn base(&self) -> *mut u8 {
        self.memory.base()
    }

    /// How many bytes there are behind the first [`SIZE`](Words::SIZE).
    #[inline]
    pub(crate) fn more(&self) -> usize {
        self.memory.len() - W::SIZE
    }
}

#[cfg(pool_shuttle)]
#[expect(clippy::unnecessary_wraps, reason = "same signature as the real one")]
impl<W: Words> Shared<W> {
    pub(crate) fn create(_: &str, _: usize) -> io::Result<(Self, OwnedFd)> {
        let null = std::fs::File::open("/dev/null")?;
        Ok((Shared::in_this_process(), null.into()))
    }

    pub(crate) fn open(_: &OwnedFd, _: usize) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn in_this_process() -> Self {
        let bytes: Box<[u8]> = vec![0; W::SIZE].into();
        // SAFETY: `UnsafeCell` is transparent.
        let bytes =
            unsafe { Box::from_raw(Box::into_raw(bytes) as *mut std::cell::UnsafeCell<[u8]>) };
        Shared {
            words: W::new(),
            bytes,
        }
    }

    pub(crate) fn words(&self) -> &W {
        &self.words
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.bytes.get().cast()
    }

    pub(crate) fn more(&self) -> usize {
        0
    }
}

#[cfg(pool_shuttle)]
// SAFETY: the users of this type access the bytes, and justify how.
unsafe impl<W: Sync> Sync for Shared<W> {}
