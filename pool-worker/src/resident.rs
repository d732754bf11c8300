//! How much memory and processor time a process uses.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::pread;

use crate::greeting::Own;

/// The resident memory of a worker, in bytes. `None` if the system doesn't say. If it is contained, `pid` is that of its guard.
pub(crate) fn of(pid: u32, contained: bool) -> Option<u64> {
    read_field(&format!("/proc/{}/statm", own_pid(pid, contained)?), 1)
}

/// The processor time that a worker has used, likewise.
pub(crate) fn cpu_time(pid: u32, contained: bool) -> Option<Duration> {
    let pid = i32::try_from(own_pid(pid, contained)?).ok()?;
    let mut clock = libc::clockid_t::default();
    // SAFETY: writes to a variable of ours.
    let known = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    let mut used = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: as above.
    let told = known == 0 && unsafe { libc::clock_gettime(clock, used.as_mut_ptr()) } == 0;
    // SAFETY: all zero is valid, and so is what was written.
    let used = unsafe { used.assume_init() };
    let (seconds, nanos) = (used.tv_sec.try_into(), used.tv_nsec.try_into());
    told.then_some(Duration::new(seconds.ok()?, nanos.ok()?))
}

/// The process id of a worker itself, not of its guard: that of the only child of its only child.
fn own_pid(pid: u32, contained: bool) -> Option<u32> {
    if contained {
        only_child(only_child(pid)?)
    } else {
        Some(pid)
    }
}

fn only_child(pid: u32) -> Option<u32> {
    let mut text = [0; 32];
    let len = read_start(&format!("/proc/{pid}/task/{pid}/children"), &mut text).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// The numbers of this process, kept open because a sandbox does not allow opening them.
static OWN: OnceLock<Option<Own>> = OnceLock::new();

/// From now on, the numbers of this process are read from a file that stays open.
pub(crate) fn keep_open() {
    OWN.get_or_init(|| open(STATM).ok().map(Own::new));
}

const STATM: &str = "/proc/self/statm";

/// The resident memory of this process.
pub(crate) fn of_this_process() -> Option<u64> {
    read_own(1)
}

/// The size of this process's address space, in bytes. Allocates nothing.
pub(crate) fn address_space() -> Option<u64> {
    read_own(0)
}

fn read_own(field: usize) -> Option<u64> {
    match OWN.get() {
        Some(own) => {
            let mut text = [0; 128];
            let len = pread(own.as_ref()?.get()?, &mut text, 0).ok()?;
            number(&text[..len], field)
        }
        None => read_field(STATM, field),
    }
}

fn read_field(path: &str, field: usize) -> Option<u64> {
    let mut text = [0; 128];
    let len = read_start(path, &mut text).ok()?;
    number(&text[..len], field)
}

/// The number in this field, in bytes.
fn number(text: &[u8], field: usize) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let pages: u64 = text.split(' ').nth(field)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn read_start(path: &str, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::read(&open(path)?, buffer)?)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    const ALONE: &str = "POOL_TEST_ALONE";

    #[test]
    #[expect(clippy::disallowed_methods, reason = "no worker is started here")]
    fn it_grows_when_memory_is_touched() {
        if env::var_os(ALONE).is_none() {
            // Other tests give memory back at the same time, so this one runs in a process without them.
            let program = env::current_exe().expect("there is /proc");
            let name = "resident::tests::it_grows_when_memory_is_touched";
            let run = Command::new(program)
                .args(["--exact", name])
                .env(ALONE, "1")
                .output()
                .expect("it starts");
            let output = String::from_utf8_lossy(&run.stdout);
            assert!(
                run.status.success() && output.contains("1 passed"),
                "{output}"
            );
            return;
        }
        let before = of_this_process().expect("there is /proc");
        let touched = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = of(std::process::id(), false).expect("there is /proc");
        assert!(after > before + (32 << 20), "{before} {after}");
        drop(touched);
    }
}
