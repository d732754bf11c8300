//! One call at a time: `apply` waits for the result, `apply_async` returns a handle to it, and callbacks get it without
//! waiting.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn work(c: u32, d: u32, e: u32) -> (u32, u32) {
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c}, {d}, {e})", process::id());
    (222, 333)
}

#[pool_task]
fn refuse(c: u32) -> (u32, u32) {
    panic!("{c} is no good");
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;

    let tell = |result: &(u32, u32)| println!("callback: {result:?}");
    let results: Vec<_> = (0..3)
        .map(|_| pool.apply_async(work, (3, 4, 1)).callback(tell))
        .collect();
    for result in results {
        result.get()?;
    }
    println!("--- the asynchronous calls are over ---");

    // Like calling the function, but it runs elsewhere.
    for _ in 0..3 {
        println!("apply: {:?}", pool.apply(work, (3, 4, 1))?);
    }

    // Of these two callbacks only the second is called.
    let failed = pool
        .apply_async(refuse, (13,))
        .callback(tell)
        .error_callback(|error| println!("error callback: {error}"));
    failed.wait();

    // `join` waits for the callbacks too.
    pool.close();
    pool.join()
}
