//! A crate that tolerates nothing.

#![forbid(unsafe_code)]
#![deny(
    warnings,
    missing_docs,
    missing_debug_implementations,
    missing_copy_implementations
)]
#![deny(
    nonstandard_style,
    future_incompatible,
    unused,
    unused_qualifications,
    unused_results
)]
#![deny(
    rust_2018_idioms,
    single_use_lifetimes,
    trivial_casts,
    let_underscore_drop
)]
#![deny(unnameable_types, missing_abi, non_local_definitions)]

use pool_core::pool_task;

/// Squares.
#[pool_task]
#[must_use = "it does nothing else"]
pub fn square(x: u64) -> u64 {
    x * x
}

/// Cubes.
#[pool_task(handle = Cube)]
#[inline]
#[must_use]
pub fn cube(x: u64) -> u64 {
    x * x * x
}

#[pool_task]
#[expect(missing_docs, reason = "it says so itself")]
pub fn undocumented() {}

#[pool_task]
#[expect(unused_variables, reason = "on purpose")]
fn with_expectation(x: u64) {}

#[pool_task]
#[allow(non_snake_case)]
fn Shout(text: &str) -> String {
    text.to_uppercase()
}

#[pool_task]
#[deprecated]
#[doc = "Old."]
pub fn old(n: u32) -> u32 {
    if n == 0 { 0 } else { old(n - 1) }
}

#[pool_task]
fn never_called() {
    #[pool_task]
    fn nested(x: &[u8]) -> Vec<u8> {
        x.to_vec()
    }
    assert!(nested(&[]).is_empty());
}

/// The pool runs it.
fn main() {
    assert_eq!(square(3) + cube(2) + Cube(1), 18);
    undocumented();
    with_expectation(1);
    assert_eq!(Shout("a"), "A");
    #[expect(deprecated, reason = "callers are told")]
    let zero = old(3);
    assert_eq!(zero, 0);
}
