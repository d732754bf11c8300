//! Processes that should be gone.
//!
//! Tests run side by side in one process, so a test can't check for "no children": each test checks for its own.

use std::fs;
use std::process;
use std::thread;

/// Fails if any of these processes is still a child of this one, even as a zombie.
#[track_caller]
pub(crate) fn none_left(pids: &[u32]) {
    let left: Vec<_> = pids.iter().filter(|pid| is_child(**pid)).collect();
    assert!(left.is_empty(), "processes left behind: {left:?}");
}

/// Waits until this process is dead; for a process that somebody else reaps, or nobody.
pub(crate) fn wait_until_dead(pid: u32) {
    while is_alive(pid) {
        thread::yield_now();
    }
}

/// Whether this process exists and can still run.
pub(crate) fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn is_child(pid: u32) -> bool {
    stat(pid).is_some_and(|(_, parent)| parent == process::id())
}

/// Returns the state and the parent of a process.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses, and may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent))
}
