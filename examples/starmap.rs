//! Tasks of several arguments: each input is a tuple of them.

use std::process;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn power(base: u64, exponent: u32) -> u64 {
    println!("worker {}: power({base}, {exponent})", process::id());
    base.pow(exponent)
}

#[pool_task]
fn repeat(word: &str, times: usize) -> String {
    word.repeat(times)
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;

    let results = pool.starmap(power, [(2, 10), (3, 4), (10, 3)])?;
    println!("starmap: {results:?}");

    let promise = pool.starmap_async(power, (0..5).map(|exponent| (2, exponent)));
    println!("starmap_async: {:?}", promise.get()?);

    // Where the function borrows, the tuple has an owned value: a `String` for a `&str`.
    let inputs = [("ha".to_owned(), 3), ("ho".to_owned(), 2)];
    for result in pool.istarmap(repeat, inputs) {
        println!("istarmap: {}", result?);
    }
    Ok(())
}
