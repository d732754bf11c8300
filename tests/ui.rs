//! What `#[pool_task]` accepts, and the messages about what it does not.
//!
//! `ui/pass` holds programs that must compile and run. `ui/fail` holds one rule a file, with what
//! the compiler prints beside it; `TRYBUILD=overwrite cargo test --test ui` writes that anew, and
//! the messages belong to the stable compiler of their day.

#[test]
fn ui() {
    let tests = trybuild::TestCases::new();
    tests.pass("ui/pass/*.rs");
    tests.compile_fail("ui/fail/*.rs");
}
