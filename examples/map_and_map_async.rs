//! Many inputs in one call: `map` waits for all results, `map_async` hands out a promise of them.
//!
//! The task takes one argument. Where Python binds the others with `partial`, this one takes a
//! tuple apart; `starmap.rs` has tasks of several arguments.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn work((c, d, i, e): (u32, u32, u32, u32)) -> (u32, u32) {
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c}, {d}, {i}, {e})", process::id());
    (222, 333)
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    let inputs = (0..5).map(|i| (1, 2, i, 3));

    // Chunks of two: one worker takes inputs 0 and 1, the other 2 and 3, and one of them 4.
    let results = pool.task(work).chunksize(2).map(inputs.clone())?;
    println!("map: {results:?}");

    let promise = pool.task(work).chunksize(2).map_async(inputs);
    println!("map_async has returned");
    println!("map_async: {:?}", promise.get()?);
    Ok(())
}
