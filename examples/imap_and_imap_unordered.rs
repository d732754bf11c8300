//! Results one by one, while the rest is still running: `imap` in the order of the inputs, `imap_unordered` as they finish.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

// Arguments that are bound for all inputs come first: in Python, `e` is a keyword argument.
#[pool_task]
fn work(c: u32, d: u32, e: u32, i: u32) -> (u32, u32) {
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c}, {d}, {i}, e={e})", process::id());
    (i, 333)
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    let call = pool.task(work).partial((1, 2, 3)).chunksize(2);

    // Both begin at once, and neither waits.
    let ordered = call.imap(0..5);
    println!("imap has returned");
    let unordered = call.imap_unordered(0..5);
    println!("imap_unordered has returned");
    // Inputs that have begun run to their end.
    pool.close();

    for result in ordered {
        println!("imap: {:?}", result?);
    }
    for result in unordered {
        println!("imap_unordered: {:?}", result?);
    }
    Ok(())
}
