//! What the machine allows: two processes that wake each other with a futex, bare processes, and copying memory.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::tools::{Outcome, pin, spin, time};

/// The modes in which this program does as little as a process can.
pub(crate) const SAYS_ONE_BYTE: &str = "bare-says-one-byte";
pub(crate) const ENDS: &str = "bare-ends";

/// Two processes wake each other through one word of shared memory. Returns the seconds per round trip. The other one
/// is pinned to `cpus`; before each round, this one is busy for `pause`.
pub(crate) fn ping_pong(rounds: u32, cpus: &[usize], pause: Duration) -> Outcome<f64> {
    let word = shared_word()?;
    // SAFETY: the child calls nothing but `sched_setaffinity` and `futex`, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if child == 0 {
        pin(0, cpus);
        for round in 0..rounds {
            wait_while(word, 2 * round);
            wake(word, 2 * round + 2);
        }
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    // Time for the child to start waiting.
    thread::sleep(Duration::from_millis(5));
    let mut total = Duration::ZERO;
    let mut start = Instant::now();
    for round in 0..rounds {
        if !pause.is_zero() {
            spin(pause);
            start = Instant::now();
        }
        wake(word, 2 * round + 1);
        wait_while(word, 2 * round + 1);
        if !pause.is_zero() {
            total += start.elapsed();
        }
    }
    if pause.is_zero() {
        total = start.elapsed();
    }
    // SAFETY: reaps the child that was just made.
    unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
    Ok(total.as_secs_f64() / f64::from(rounds))
}

/// Returns a word that forked children share. It is never unmapped: there are few.
fn shared_word() -> Outcome<&'static AtomicU32> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping of one page, at an address that the kernel chooses.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the page is zeroed, aligned, and lives as long as the process.
    Ok(unsafe { &*page.cast::<AtomicU32>() })
}

fn wait_while(word: &AtomicU32, value: u32) {
    let forever = ptr::null::<libc::timespec>();
    while word.load(Ordering::Acquire) == value {
        let (futex, wait) = (libc::SYS_futex, libc::FUTEX_WAIT);
        // SAFETY: waits on a word that stays mapped; returns at once if it has changed.
        unsafe { libc::syscall(futex, word.as_ptr(), wait, value, forever) };
    }
}

fn wake(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    // SAFETY: wakes the process that waits on a word that stays mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}

/// The child of [`bare_processes`]: writes one byte, then waits for the end of its input.
pub(crate) fn say_one_byte() -> Outcome<()> {
    let mut output = io::stdout();
    output.write_all(b"x")?;
    output.flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Returns the seconds until `count` processes of this same program have each written one byte.
pub(crate) fn bare_processes(count: usize) -> Outcome<f64> {
    let start = Instant::now();
    let mut children = Vec::with_capacity(count);
    for _ in 0..count {
        let mut command = Command::new("/proc/self/exe");
        command.arg(SAYS_ONE_BYTE);
        children.push(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?,
        );
    }
    for child in &mut children {
        let said = child.stdout.as_mut().ok_or("no pipe")?;
        said.read_exact(&mut [0])?;
    }
    let elapsed = start.elapsed().as_secs_f64();
    for mut child in children {
        drop(child.stdin.take());
        child.wait()?;
    }
    Ok(elapsed)
}

/// Returns the seconds for `count` processes of this same program that end at once, two at a time.
pub(crate) fn ending_processes(count: u64) -> Outcome<f64> {
    let half = |count: u64| -> io::Result<()> {
        for _ in 0..count {
            Command::new("/proc/self/exe").arg(ENDS).status()?;
        }
        Ok(())
    };
    time(|| {
        thread::scope(|scope| {
            let other = scope.spawn(|| half(count / 2));
            half(count - count / 2)?;
            other.join().unwrap_or(Ok(()))
        })
    })
}

/// Returns the seconds to copy `from` over memory that has been used before.
pub(crate) fn copy(from: &[u8], to: &mut [u8], times: usize) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        to.copy_from_slice(black_box(from));
        black_box(&mut *to);
    }
    start.elapsed().as_secs_f64() / times as f64
}
