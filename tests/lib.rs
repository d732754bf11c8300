//! What the test programs have in common; and the examples of the README, run as doctests.

use std::fs;

/// See README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// How many children this process has, dead ones included.
pub fn children() -> usize {
    fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .map(|children| children.split_whitespace().count())
        .sum()
}
