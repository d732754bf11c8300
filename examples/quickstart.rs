//! The shortest useful program: a function, a pool, a map.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    println!("{:?}", pool.map(square, 0..10)?);
    Ok(())
}
