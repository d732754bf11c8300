//! `churn N`: makes and drops N pools with work in each, and prints what this process holds of the
//! system before and after: descriptors, threads, children.
//!
//! The first pools are not counted: what a program opens once, it may keep.

#![expect(
    clippy::print_stdout,
    reason = "the test reads it from standard output"
)]

use std::env;
use std::fs;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Error> {
    let rounds = env::args().nth(1).map_or(Ok(100), |n| n.parse());
    let rounds: usize = rounds.expect("a number");
    for round in 0..5 {
        one_pool(round)?;
    }
    println!("before: {}", possessions());
    for round in 0..rounds {
        one_pool(round)?;
    }
    println!("after: {}", possessions());
    Ok(())
}

/// Every other pool is dropped with work in it.
fn one_pool(round: usize) -> Result<(), Error> {
    let pool = Pool::with_processes(1 + round % 2)?;
    let results = pool.map_async(square, 0..10);
    if round % 4 < 2 {
        assert_eq!(results.get()?.iter().sum::<u64>(), 285);
    }
    Ok(())
}

fn possessions() -> String {
    let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
    let children = tests::children();
    let descriptors = entries("/proc/self/fd");
    let threads = entries("/proc/self/task");
    format!("{descriptors} descriptors, {threads} threads, {children} children")
}
