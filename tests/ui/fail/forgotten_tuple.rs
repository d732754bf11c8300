//! `apply` takes a tuple, even for one argument.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    pool.apply(square, 3)?;
    pool.apply_async(square, 3).get()?;
    Ok(())
}
