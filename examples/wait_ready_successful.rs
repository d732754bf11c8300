//! Asking about a result: is it there, and was the call successful?

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn work(c: u32) -> (u32, u32) {
    assert!(c < 5, "{c} is too much");
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c})", process::id());
    (222, 333)
}

fn main() -> Result<(), Error> {
    let patience = Duration::from_secs(8);
    let pool = Pool::with_processes(2)?;

    let good = pool.task(work).chunksize(2).map_async(0..5);
    println!("wait: {}", good.wait_timeout(patience));
    println!(
        "ready: {}, successful: {:?}",
        good.ready(),
        good.successful()
    );
    // This would have waited, too.
    println!("get: {:?}", good.get_timeout(patience)?);

    // One of these inputs fails, so the call does, too.
    let bad = pool.map_async(work, [4, 5]);
    println!("wait: {}", bad.wait_timeout(patience));
    println!("ready: {}, successful: {:?}", bad.ready(), bad.successful());
    match bad.get() {
        Ok(results) => println!("get: {results:?}"),
        Err(error) => println!("get: {error}"),
    }
    Ok(())
}
