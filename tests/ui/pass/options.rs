//! Names, and paths to the crate.

use pool_core::{Task, pool_task};

mod facade {
    pub use pool_core;
}

#[pool_task(name = "resize")]
fn resize_v2(x: u64) -> u64 {
    x
}

#[pool_task(crate = facade::pool_core)]
fn through_a_facade() {}

#[pool_task(crate = ::pool_core, handle = Last, name = "last",)]
fn all_three() {}

#[pool_task()]
fn r#match(x: u64) -> u64 {
    x
}

fn main() {
    assert_eq!(resize_v2::NAME, "resize");
    assert_eq!(Last::NAME, "last");
    assert!(r#match::NAME.ends_with("::match"));
    assert_eq!(r#match(1), 1);
    through_a_facade();
}
