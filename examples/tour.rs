//! Most of what a pool can do, one call after the other.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, Shared, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

#[pool_task]
fn count(text: &str) -> usize {
    text.len()
}

#[pool_task]
fn line(a: u64, b: u64, x: u64) -> u64 {
    a * x + b
}

#[pool_task]
fn entry(table: Shared<[u64]>, at: usize) -> u64 {
    table[at]
}

#[pool_task]
fn process_id() -> u32 {
    process::id()
}

#[pool_task]
fn sleep(seconds: u64) {
    thread::sleep(Duration::from_secs(seconds));
}

fn main() -> Result<(), Error> {
    // Enough, however slow the machine is.
    let soon = Duration::from_secs(60);
    {
        let pool = Pool::with_processes(4)?;

        // All results at once, in order.
        println!("map: {:?}", pool.map(square, 0..10)?);

        // One result after the other, in order.
        let mut squares = pool.imap(square, 0..10);
        if let Some(first) = squares.next() {
            println!("imap: {}", first?);
        }
        if let Some(second) = squares.next() {
            println!("imap: {}", second?);
        }
        if let Some(third) = squares.next_timeout(soon) {
            println!("imap: {}", third?);
        }

        // The same numbers, as they finish.
        for result in pool.imap_unordered(square, 0..10) {
            println!("imap_unordered: {}", result?);
        }

        // Texts that are lent, not moved.
        let texts = ["one", "two", "three"].map(str::to_owned);
        println!("by_ref: {:?}", pool.task(count).by_ref().map(&texts)?);

        // The first arguments are bound for all inputs.
        println!("partial: {:?}", pool.task(line).partial((2, 1)).map(0..5)?);

        // A table that all workers read in place.
        let table = Shared::copy_from(&[10, 20, 30][..])?;
        let inputs = [2, 0].map(|at| (table.clone(), at));
        println!("Shared: {:?}", pool.starmap(entry, inputs)?);

        // One call, in one worker, while this program continues.
        let result = pool.apply_async(square, (20,));
        println!("apply_async: {}", result.get_timeout(soon)?);

        // Which worker takes a call? One of these.
        println!("workers: {:?}", pool.worker_pids());
        let result = pool.apply_async(process_id, ());
        println!("one process id: {}", result.get_timeout(soon)?);

        // Several calls at once may run in several workers.
        let results: Vec<_> = (0..4).map(|_| pool.apply_async(process_id, ())).collect();
        let ids: Result<Vec<u32>, Error> = results.iter().map(|it| it.get_timeout(soon)).collect();
        println!("four process ids: {:?}", ids?);

        // A worker sleeps for ten seconds, and we wait for one.
        let result = pool.apply_async(sleep, (10,));
        match result.get_timeout(Duration::from_secs(1)) {
            Ok(()) => println!("ten seconds went by"),
            Err(Error::Timeout) => println!("we lacked patience: {}", Error::Timeout),
            Err(error) => return Err(error),
        }
    }
    // The end of the block dropped the pool, and the sleeper with it.
    println!("the pool is gone");
    Ok(())
}
