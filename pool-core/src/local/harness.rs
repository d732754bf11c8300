//! Lets libtest capture what the workers of a test print, together with what the test prints.
//!
//! libtest captures what `print!` prints on the thread of a test, and on threads that were started from there: `std` passes
//! the capture on to them. What workers write to inherited descriptors bypasses that and goes to the terminal. So in a test
//! that is captured, workers write into two pipes, and what comes from there is printed here, line by line. This is the only
//! place where this library prints, and it only prints what would have been printed anyway.
//!
//! A thread that takes a result prints everything that was written until then: tests may share a pool, and each should capture
//! what its own calls print. If tests use the pool at the same time, their lines may get mixed up. What no thread has printed
//! for a moment while none waits for a result, a thread of the pool prints, for the test that built the pool.
//!
//! Nothing says directly whether the harness captures, but the clues used here are good enough. If they mislead, everything
//! is still printed.

use std::env;
use std::ffi::OsStr;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pool_worker::{Capture, Passage, Side, Watch};

use super::Shared;
use crate::sync::lock;

/// Whether this thread seems to be that of a test whose output is captured.
pub(super) fn captures() -> bool {
    // The harness names the thread after the test. A program without the harness runs in its main thread.
    let is_named = thread::current().name().is_some_and(|name| name != "main");
    is_named
        && env::current_exe().is_ok_and(|path| path.file_name().is_some_and(is_of_tests))
        && !env::args_os().skip(1).any(|argument| says_no(&argument))
        && env::var_os("RUST_TEST_NOCAPTURE").is_none_or(|value| value == "0")
}

/// Whether a program has a name that Cargo gives to tests: that of the target, and a hash: `promises-f76f54634bba62d8`.
fn is_of_tests(name: &OsStr) -> bool {
    let hash = name.to_str().and_then(|name| name.rsplit_once('-'));
    hash.is_some_and(|(_, hash)| {
        hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Whether an argument turns capturing off. With `--show-output`, output is still captured, and shown later.
fn says_no(argument: &OsStr) -> bool {
    ["--nocapture", "--no-capture", "--bench"]
        .iter()
        .any(|no| argument == *no)
}

/// If what was not printed yet takes more memory than this, in bytes, the thread of the pool prints it.
const UNPRINTED_MAX: usize = 1 << 20;

/// A thread that waits for no result yet may do so soon: what was written is kept for it this long.
const HELD: Duration = Duration::from_millis(250);

/// Prints what the workers of a test have written.
pub(super) struct Printer {
    written: Mutex<Written>,
    /// Standard output is closed: nothing more is printed.
    is_closed: AtomicBool,
}

struct Written {
    capture: Capture,
    unprinted: Vec<Passage>,
    /// How much memory these take, in bytes.
    size: usize,
    /// When the first of these was read.
    since: Option<Instant>,
    /// How many threads wait for results, and will print.
    callers: usize,
}

impl Printer {
    pub(super) fn new(capture: Capture) -> Printer {
        let written = Mutex::new(Written {
            capture,
            unprinted: Vec::new(),
            size: 0,
            since: None,
            callers: 0,
        });
        Printer {
            written,
            is_closed: AtomicBool::new(false),
        }
    }

    /// Waits for a result that this thread will take.
    pub(super) fn around<R>(&self, wait: impl FnOnce() -> R) -> R {
        lock(&self.written).callers += 1;
        let result = wait();
        let mut written = lock(&self.written);
        written.callers -= 1;
        // This thread prints it soon, or waits for more.
        written.since = written.since.map(|_| Instant::now());
        drop(written);
        result
    }

    /// Prints on this thread what was written until now.
    pub(super) fn settle(&self) {
        let passages = {
            let mut written = lock(&self.written);
            written.read(Capture::read_rest);
            written.take()
        };
        self.print(&passages);
    }

    /// Reads what was written, and prints it unless another thread will. Returns the number of bytes read, and whether
    /// anything is left to be printed.
    fn read(&self, over: bool) -> (usize, bool) {
        let (read, passages, is_left) = {
            let mut written = lock(&self.written);
            let read = written.read(match over {
                false => Capture::read,
                true => Capture::read_last,
            });
            let is_old = written.since.is_some_and(|since| since.elapsed() >= HELD);
            let is_due = over || written.callers == 0 && is_old || written.size > UNPRINTED_MAX;
            let passages = if is_due { written.take() } else { Vec::new() };
            (read, passages, !written.unprinted.is_empty())
        };
        self.print(&passages);
        (read, is_left)
    }

    #[expect(
        clippy::print_stdout,
        clippy::print_stderr,
        reason = "nothing else is captured by the harness of a test"
    )]
    fn print(&self, passages: &[Passage]) {
        if passages.is_empty() || self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        // `println!` panics if standard output is closed.
        let printed = panic::catch_unwind(AssertUnwindSafe(|| {
            for passage in passages {
                let text = String::from_utf8_lossy(&passage.text);
                match passage.side {
                    Side::Out => println!("{text}"),
                    Side::Err => eprintln!("{text}"),
                }
            }
        }));
        if printed.is_err() {
            self.is_closed.store(true, Ordering::Relaxed);
        }
    }
}

impl Written {
    fn read(&mut self, read: impl FnOnce(&mut Capture) -> usize) -> usize {
        let read = read(&mut self.capture);
        let passages = self.capture.take_passages();
        let sizes = passages.iter().map(|passage| passage.text.capacity());
        self.size += sizes.sum::<usize>() + size_of_val(&*passages);
        if !passages.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
        self.unprinted.extend(passages);
        read
    }

    /// What must be printed, without the lock: standard output may block, or be locked by a caller.
    fn take(&mut self) -> Vec<Passage> {
        (self.size, self.since) = (0, None);
        mem::take(&mut self.unprinted)
    }
}

impl Shared {
    /// The main loop of the thread that reads what workers of a test have written.
    pub(super) fn print_for_test(&self, watch: &Watch, printer: &Printer) {
        let mut is_left = false;
        loop {
            watch.wait(is_left.then_some(HELD));
            let over = lock(&self.state).over;
            let mut read = usize::MAX;
            while read > 0 {
                (read, is_left) = printer.read(over);
                if over {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_recognized_by_name() {
        for name in ["promises-f76f54634bba62d8", "a-b-0123456789abcdef"] {
            assert!(is_of_tests(name.as_ref()), "{name}");
        }
        for name in [
            "promises",
            "a-b",
            "a-0123456789abcdeg",
            "a-0123456789abcdef0",
            "",
        ] {
            assert!(!is_of_tests(name.as_ref()), "{name}");
        }
    }
}
