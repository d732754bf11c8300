//! Workers that are replaced after two tasks each, and prepare themselves when they start.
//!
//! Use this when tasks leak memory: a worker's memory is freed when its process ends.

use std::process;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn prepare(a: u32, b: u32) {
    println!("worker {}: prepare({a}, {b})", process::id());
}

#[pool_task]
fn work(c: u32, d: u32) {
    thread::sleep(Duration::from_millis(200));
    println!("worker {}: work({c}, {d})", process::id());
}

fn main() -> Result<(), Error> {
    let pool = Pool::builder()
        .processes(2)
        .initializer(prepare, (1, 2))
        .max_tasks_per_child(2)
        .build()?;
    let results: Vec<_> = (0..5).map(|_| pool.apply_async(work, (3, 4))).collect();
    // No more calls: the workers end when all work is done, and we wait for that.
    pool.close();
    pool.join()?;
    for result in results {
        result.get()?;
    }
    println!("all done");
    Ok(())
}
