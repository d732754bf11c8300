//! Asks for a pool, and says what came of it and how many processes this one has started.
//!
//! A test runs it with the variable that calls a worker, and with a value in it that the entry does
//! not take: so `main` runs in a process that was meant to be a worker. Were it to start workers,
//! each of them would do the same.

#![expect(
    clippy::print_stdout,
    reason = "the test reads it from standard output"
)]

use pool_core::{Error, Pool};

fn main() {
    match Pool::new() {
        Ok(pool) => println!("a pool of {}", pool.processes()),
        Err(Error::Start(why)) => println!("Start: {why}"),
        Err(other) => println!("not Start: {other}"),
    }
    // What was started and has ended would be a child still to be waited for, or have been one: the
    // system remembers the largest of those.
    println!("largest child: {} KiB", largest_child());
}

fn largest_child() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for the answer.
    let failed = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr()) };
    assert_eq!(failed, 0);
    // SAFETY: zeroes are a valid value already.
    unsafe { usage.assume_init() }.ru_maxrss
}
