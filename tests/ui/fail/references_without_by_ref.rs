//! References go through `by_ref`; what is passed by value has the owned type.

use pool_core::{Error, Pool, Shared, pool_task};

#[pool_task]
fn count_words(text: &str) -> usize {
    text.split_whitespace().count()
}

#[pool_task]
fn differ(one: &str, other: &str) -> bool {
    one != other
}

#[pool_task]
fn sum(bytes: &[u8], from: usize) -> u64 {
    bytes[from..].iter().map(|byte| u64::from(*byte)).sum()
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    let files = vec![String::new()];
    pool.map(count_words, ["a", "b"])?;
    pool.starmap(differ, files.iter().zip(&files))?;
    let shared = Shared::<[u8]>::copy_from(b"abc")?;
    pool.task(sum).partial((shared,)).map([1])?;
    Ok(())
}
