//! Memory that two processes share: a sealed memfd, mapped.
//!
//! Nobody can shrink it, so a process that touches it can't be killed by SIGBUS, whatever the other one
//! does. It has no name, and reaches the other process as a descriptor.

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
        let fd = unsealed(name, len)?;
        ftruncate(&fd, len as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Memory::map(&fd, len, WRITABLE, MapFlags::SHARED)?, fd))
    }

    /// Maps memory that another process has made.
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

    /// Where it begins: the start of a page.
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
        // SAFETY: the mapping is ours, and whoever has a pointer into it holds this value.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}

/// Bytes that nobody can change, shared by as many processes as like.
#[derive(Debug)]
pub struct Constant(Memory);

impl Constant {
    /// Makes them of these parts, and gives the descriptor by which other processes get them. There must be some.
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

    /// Maps what another process has made.
    pub(crate) fn open(fd: &OwnedFd, len: usize) -> io::Result<Constant> {
        check_size(fd, len)?;
        // Before Linux 6.7 nothing that is sealed against writing is mapped as shared, not even for reading.
        let memory = Memory::map(fd, len, ProtFlags::READ, MapFlags::PRIVATE)?;
        Ok(Constant(memory))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is as long, lives as long as `self`, and is sealed against writing.
        unsafe { slice::from_raw_parts(self.0.base, self.0.len) }
    }
}

fn unsealed(name: &str, len: usize) -> io::Result<OwnedFd> {
    // Going past it is a signal that ends the process.
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
        return Err(io::Error::other("shared memory of another size"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_constant_can_be_read_and_not_be_written() {
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
