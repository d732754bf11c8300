//! The inputs have another type than the task takes.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    pool.map(square, ["one", "two"])?;
    pool.starmap(square, [1, 2])?;
    Ok(())
}
