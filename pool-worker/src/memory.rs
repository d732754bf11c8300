//! Memory that two processes share: a sealed memfd, mapped.
//!
//! Nobody can shrink it, so a process that touches it can't be killed by SIGBUS, whatever the other one
//! does. It has no name, and reaches the other process as a descriptor.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Resource, getrlimit};

/// A mapping of shared memory. All zero when it is made.
pub(crate) struct Memory {
    base: *mut u8,
    len: usize,
}

// SAFETY: a mapping belongs to no thread; what is in it is accessed by its users, who say how.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.len).finish()
    }
}

impl Memory {
    /// Makes memory, and the descriptor by which another process gets it.
    pub(crate) fn create(name: &str, len: usize) -> io::Result<(Memory, OwnedFd)> {
        // Going past it is a signal that ends the process.
        let limit = getrlimit(Resource::Fsize).current;
        if limit.is_some_and(|limit| limit < len as u64) {
            return Err(rustix::io::Errno::FBIG.into());
        }
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Memory::map(&fd, len)?, fd))
    }

    /// Maps memory that another process has made.
    pub(crate) fn open(fd: &OwnedFd, len: usize) -> io::Result<Memory> {
        if fstat(fd)?.st_size != len as i64 {
            return Err(io::Error::other("shared memory of another size"));
        }
        Memory::map(fd, len)
    }

    fn map(fd: impl AsFd, len: usize) -> io::Result<Memory> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        Ok(Memory {
            base: base.cast(),
            len,
        })
    }

    /// Where it begins: the start of a page.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and whoever has a pointer into it holds this value.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}
