//! `map` fills one argument; use `starmap` for more.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    pool.map(add, [(1, 2), (3, 4)])?;
    for sum in pool.imap(add, [(1, 2)]) {
        sum?;
    }
    Ok(())
}
