//! What workers of a test print is captured with what the test prints.
//!
//! libtest catches what `print!` prints on the thread of a test, and on threads that were started from there: `std` hands the place where
//! that goes on to them. What workers write to descriptors that they have inherited goes past it, to the terminal. So in a test that is
//! captured workers write into two pipes, and a thread of the pool prints what comes there, line by line. It is the one place where this
//! library prints, and it prints what would have been printed anyway.
//!
//! Nothing tells whether the harness captures; what is looked at tells that well enough. Where it errs, all is printed just the same.

use std::env;
use std::ffi::OsStr;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use pool_worker::{Capture, Line, Side, Watch};

use super::Shared;
use crate::sync::lock;

/// Whether this thread seems to be that of a test whose output is captured.
pub(super) fn captures() -> bool {
    // The harness names the thread after the test. A program that has no harness runs in its main thread.
    let is_named = thread::current().name().is_some_and(|name| name != "main");
    is_named
        && env::current_exe().is_ok_and(|path| path.file_name().is_some_and(is_of_tests))
        && !env::args_os().skip(1).any(|argument| says_no(&argument))
        && env::var_os("RUST_TEST_NOCAPTURE").is_none_or(|value| value == "0")
}

/// Cargo calls programs of tests after what is tested and a hash: `promises-f76f54634bba62d8`.
fn is_of_tests(name: &OsStr) -> bool {
    let hash = name.to_str().and_then(|name| name.rsplit_once('-'));
    hash.is_some_and(|(_, hash)| {
        hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// With `--show-output` it is captured, and shown later.
fn says_no(argument: &OsStr) -> bool {
    ["--nocapture", "--no-capture", "--bench"]
        .iter()
        .any(|no| argument == *no)
}

impl Shared {
    /// The life of the thread that prints what workers of a test have written.
    pub(super) fn print_for_test(&self, watch: &Watch, mut capture: Capture) {
        let mut goes_on = true;
        loop {
            watch.wait(None);
            let over = lock(&self.state).over;
            loop {
                let read = capture.read(over);
                let lines = capture.take_lines_read();
                goes_on = goes_on && lines.iter().all(print);
                if over {
                    return;
                }
                if read == 0 {
                    break;
                }
            }
        }
    }
}

/// False: it can't be printed.
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "nothing else is captured by the harness of a test"
)]
fn print(line: &Line) -> bool {
    let text = String::from_utf8_lossy(&line.text);
    // `println!` panics if standard output is closed.
    let printed = panic::catch_unwind(AssertUnwindSafe(|| match line.side {
        Side::Out => println!("{text}"),
        Side::Err => eprintln!("{text}"),
    }));
    printed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_told_by_their_names() {
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
