//! Memory that two processes share: a sealed, mapped memfd.
//!
//! It can't be shrunk, so nothing that one process does can cause a SIGBUS in the other. It has no name, and
//! is sent to the other process as a descriptor.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;
use std::slice;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::{Resource, getrlimit};

const WRITABLE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A mapping of shared memory, which is zeroed at first.
pub(crate) struct Memory {
    base: *mut u8,
    len: usize,
}

// SAFETY: a mapping is not tied to a thread. The users of this type access the content, and justify how.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("len", &self.len).finish()
    }
}

impl Memory {
    /// Creates memory, and the descriptor with which another process opens it.
    pub(crate) fn create(name: &str, len: usize) -> io::Result<(Memory, OwnedFd)> {
        let fd = unsealed(name, len)?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Memory::map(&fd, len, WRITABLE, MapFlags::SHARED)?, fd))
    }

    /// Maps memory that another process has created.
    pub(crate) fn open(fd: &OwnedFd, len: usize) -> io::Result<Memory> {
        check_size(fd, len)?;
        Memory::map(fd, len, WRITABLE, MapFlags::SHARED)
    }

    fn map(fd: impl AsFd, len: usize, access: ProtFlags, how: MapFlags) -> io::Result<Memory> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe { mmap(ptr::null_mut(), len, access, how, fd, 0)? };
        Ok(Memory {
            base: base.cast(),
            len,
        })
    }

    /// The first byte, which is the start of a page.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    /// How many bytes it has.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and pointers into it are not used after it is dropped.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// Immutable bytes that any number of processes may map.
#[derive(Debug)]
pub struct Constant(Memory);

impl Constant {
    /// Creates them from these parts, and returns the descriptor with which processes open them. They must not be
    /// empty.
    pub(crate) fn create(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
        let len = parts.iter().map(|part| part.len()).sum();
        let mut file = File::from(unsealed(name, len)?);
        for part in parts {
            file.write_all(part)?;
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    }

    /// Maps bytes that this or another process has created.
    pub(crate) fn open(fd: &OwnedFd, len: usize) -> io::Result<Constant> {
        check_size(fd, len)?;
        // Before Linux 6.7, memory that is sealed against writing can't be mapped as shared, not even for reading.
        let memory = Memory::map(fd, len, ProtFlags::READ, MapFlags::PRIVATE)?;
        Ok(Constant(memory))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length, lives as long as `self`, and is sealed against writing.
        unsafe { slice::from_raw_parts(self.0.base, self.0.len) }
    }
}

fn unsealed(name: &str, len: usize) -> io::Result<OwnedFd> {
    // Exceeding the limit would send SIGXFSZ, which kills the process.
    let limit = getrlimit(Resource::Fsize).current;
    if limit.is_some_and(|limit| limit < len as u64) {
        return Err(rustix::io::Errno::FBIG.into());
    }
    Ok(memfd_create(
        name,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?)
}

fn check_size(fd: &OwnedFd, len: usize) -> io::Result<()> {
    if fstat(fd)?.st_size != len as i64 {
        return Err(io::Error::other("shared memory of an unexpected size"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_memory_can_only_be_read() {
        let fd = Constant::create("pool-test", &[b"some ", b"bytes"]).expect("there is memory");
        let one = Constant::open(&fd, 10).expect("there is memory");
        let other = Constant::open(&fd, 10).expect("there is memory");
        assert_eq!(one.bytes(), b"some bytes");
        assert_eq!(other.bytes(), b"some bytes");
        assert!(Constant::open(&fd, 11).is_err());
        assert_eq!(
            rustix::io::pwrite(&fd, b"x", 0),
            Err(rustix::io::Errno::PERM)
        );
        assert!(Memory::open(&fd, 10).is_err());
        assert!(ftruncate(&fd, 5).is_err());
    }
}
