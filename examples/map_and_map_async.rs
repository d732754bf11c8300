//! Many inputs in one call: `map` waits for all results, `map_async` returns a handle to them.
//!
//! Both pass each input to the task as its last argument. The other arguments are bound before by `partial`, as in Python; if
//! they differ from input to input, see `starmap.rs`.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

// Arguments that are bound for all inputs come first: in Python, `e` is a keyword argument.
#[pool_task]
fn work(c: u32, d: u32, e: u32, i: u32) -> (u32, u32) {
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c}, {d}, {i}, e={e})", process::id());
    (222, 333)
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;

    // `map` supplies one argument, so the others are bound. Chunks of two: one worker takes inputs 0 and 1, the other 2 and
    // 3, and one of them 4.
    let call = pool.task(work).partial((1, 2, 3)).chunksize(2);
    println!("map: {:?}", call.map(0..5)?);

    let promise = call.map_async(0..5);
    println!("map_async has returned");
    println!("map_async: {:?}", promise.get()?);
    Ok(())
}
