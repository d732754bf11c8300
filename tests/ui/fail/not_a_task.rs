//! A function without the attribute.

use pool_core::{Error, Pool};

fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    pool.map(square, 0..10)?;
    pool.apply(square, (1,))?;
    Ok(())
}
