//! `churn N [--sandbox]`: makes and drops N pools, each with work in it, and compares the system resources that this process holds
//! before and after: descriptors, threads, children, shared memory, files.
//!
//! The first pools do not count: a program may keep what it opens only once.

use std::env;
use std::process;

use pool_core::{Error, Output, pool_task};
use tests::Possessions;

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
    let held = Possessions::at_rest();
    for round in 0..rounds {
        one_pool(round)?;
    }
    match held.regained() {
        Ok(()) => println!("fine"),
        Err(left) => {
            println!("{left}");
            process::exit(1);
        }
    }
    Ok(())
}

/// Every other pool is dropped with work in it, every third one captures what workers print, and every fifth one forks its workers.
fn one_pool(round: usize) -> Result<(), Error> {
    let mut builder = tests::builder().processes(1 + round % 2);
    if round.is_multiple_of(5) {
        builder = builder.preload(square, (1,));
    }
    if round.is_multiple_of(3) {
        builder = builder.output(Output::Capture);
    }
    let pool = builder.build()?;
    let results = pool.map_async(square, 0..10);
    if round % 4 < 2 {
        assert_eq!(results.get()?.iter().sum::<u64>(), 285);
    }
    Ok(())
}
