//! Tasks that crash in every possible way, among good ones. A crash affects at most the worker in which it happens: the other
//! tasks and this program never notice.

use std::hint::black_box;
use std::ptr;
use std::time::Duration;
use std::{process, thread};

use pool_core::{Error, Pool, pool_task};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Deed {
    Square(u64),
    Segfault,
    Abort,
    Exit,
    Panic,
    OverflowStack,
    SleepForever,
}

#[pool_task]
fn attempt(deed: Deed) -> u64 {
    match deed {
        Deed::Square(x) => x * x,
        Deed::Segfault => write_nowhere(),
        Deed::Abort => process::abort(),
        Deed::Exit => process::exit(3),
        Deed::Panic => panic!("I give up"),
        Deed::OverflowStack => dig(0),
        Deed::SleepForever => loop {
            thread::sleep(Duration::from_secs(1));
        },
    }
}

fn write_nowhere() -> u64 {
    let nowhere = ptr::without_provenance_mut::<u64>(8);
    // SAFETY: none. Nothing is mapped at this address, and that is the point.
    unsafe { nowhere.write_volatile(1) };
    1
}

fn dig(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == u64::MAX {
        return 0;
    }
    dig(depth + 1) + frame[0]
}

fn main() -> Result<(), Error> {
    let deeds = [
        Deed::Square(1),
        Deed::Segfault,
        Deed::Square(2),
        Deed::Abort,
        Deed::Square(3),
        Deed::Exit,
        Deed::Square(4),
        Deed::Panic,
        Deed::Square(5),
        Deed::OverflowStack,
        Deed::Square(6),
        Deed::SleepForever,
        Deed::Square(7),
    ];
    let pool = Pool::with_processes(2)?;
    // `map` would only return the first error; this returns the outcome of each input.
    let results = pool
        .task(attempt)
        .time_limit(Duration::from_secs(2))
        .map_results(deeds);

    println!("{:<14} outcome", "input");
    for (deed, result) in deeds.iter().zip(results) {
        let deed = format!("{deed:?}");
        match result {
            Ok(value) => println!("{deed:<14} {value}"),
            Err(error) => println!("{deed:<14} {error}"),
        }
    }
    let value = pool.apply(attempt, (Deed::Square(8),))?;
    println!("the pool still works: {value}");
    Ok(())
}
