//! Asks for a pool, and prints the result and how many processes this one has started.
//!
//! A test runs it with the variable that makes a process a worker, set to a value that the entry rejects. So `main`
//! runs in a process that was meant to be a worker. If it started workers, each of them would do the same.

use pool_core::{Error, Pool};

fn main() {
    match Pool::new() {
        Ok(pool) => println!("a pool of {}", pool.processes()),
        Err(Error::Start(why)) => println!("Start: {why}"),
        Err(other) => println!("not Start: {other}"),
    }
    // A process that was started and has ended would be a child that nobody has waited for, or one that has been waited
    // for: the system remembers the size of the largest of those.
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
