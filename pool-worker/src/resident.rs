//! How much memory a process uses.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

/// The resident memory of a process, in bytes. `None` if the system doesn't say.
pub(crate) fn of(pid: u32) -> Option<u64> {
    read(&format!("/proc/{pid}/statm"))
}

/// The resident memory of the only child of its only child.
pub(crate) fn of_grandchild(pid: u32) -> Option<u64> {
    of(only_child(only_child(pid)?)?)
}

fn only_child(pid: u32) -> Option<u32> {
    let mut text = [0; 32];
    let len = read_start(&format!("/proc/{pid}/task/{pid}/children"), &mut text).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// The resident memory of this process.
pub(crate) fn of_this_process() -> Option<u64> {
    read("/proc/self/statm")
}

/// The size of this process's address space, in bytes. Allocates nothing.
pub(crate) fn address_space() -> Option<u64> {
    read_field("/proc/self/statm", 0)
}

fn read(path: &str) -> Option<u64> {
    read_field(path, 1)
}

fn read_field(path: &str, field: usize) -> Option<u64> {
    let mut text = [0; 128];
    let len = read_start(path, &mut text).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    let pages: u64 = text.split(' ').nth(field)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn read_start(path: &str, buffer: &mut [u8]) -> io::Result<usize> {
    let file: OwnedFd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::io::read(&file, buffer)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_when_memory_is_touched() {
        let before = of_this_process().expect("there is /proc");
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = of(std::process::id()).expect("there is /proc");
        assert!(after > before + (32 << 20), "{before} {after}");
        drop(touched);
    }
}
