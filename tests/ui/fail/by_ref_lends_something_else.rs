//! What is lent is not what the task takes.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn total(numbers: &[u32]) -> u32 {
    numbers.iter().sum()
}

#[pool_task]
fn repeat(text: &str, times: usize) -> String {
    text.repeat(times)
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    let longs: Vec<Vec<u64>> = vec![vec![1]];
    pool.task(total).by_ref().map(&longs)?;
    pool.task(total).by_ref().map(vec![vec![1_u32]])?;
    pool.task(repeat).by_ref().apply((&3_usize, "a"))?;
    pool.task(repeat).by_ref().apply(("a", 3))?;
    Ok(())
}
