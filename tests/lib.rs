//! The examples of the README, run as doctests.

/// See README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
