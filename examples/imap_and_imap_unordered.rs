//! Results one by one, while the rest is still running: `imap` in the order of the inputs,
//! `imap_unordered` as they are finished.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn work((c, d, i, e): (u32, u32, u32, u32)) -> (u32, u32) {
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c}, {d}, {i}, {e})", process::id());
    (i, 333)
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    let inputs = (0..5).map(|i| (1, 2, i, 3));

    // Both begin at once, and neither waits.
    let ordered = pool.task(work).chunksize(2).imap(inputs.clone());
    println!("imap has returned");
    let unordered = pool.task(work).chunksize(2).imap_unordered(inputs);
    println!("imap_unordered has returned");
    // What was begun goes on to its end.
    pool.close();

    for result in ordered {
        println!("imap: {:?}", result?);
    }
    for result in unordered {
        println!("imap_unordered: {:?}", result?);
    }
    Ok(())
}
