//! What `#[pool_task]` accepts, and its messages about what it does not.
//!
//! `pass` holds programs that must compile and run. `fail` holds one rule per file, next to the compiler's
//! output. `TRYBUILD=overwrite cargo test -p ui` rewrites that output, which depends on the version of the stable
//! compiler.

#[test]
fn ui() {
    let tests = trybuild::TestCases::new();
    tests.pass("pass/*.rs");
    tests.compile_fail("fail/*.rs");
}
