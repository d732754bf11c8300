//! Functions over any task, and over any task of one argument.

use pool_core::{Error, Pool, Task, UnaryTask, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

#[pool_task]
fn length(text: &str) -> usize {
    text.len()
}

#[pool_task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

fn of_numbers<T: Task<Args = (u64,)>>(pool: &Pool, task: T) -> Result<Vec<T::Output>, Error> {
    let mut all = pool.map(task, 0..2)?;
    all.extend(pool.task(task).chunksize(1).map([2, 3])?);
    all.extend(pool.imap(task, vec![4]).flatten());
    all.extend(pool.map_async(task, [5]).get()?);
    Ok(all)
}

fn of_anything<T: Task + UnaryTask>(
    pool: &Pool,
    task: T,
    inputs: Vec<T::Argument>,
) -> Result<Vec<T::Output>, Error> {
    pool.imap(task, inputs).collect()
}

fn of_tuples<T: Task>(pool: &Pool, task: T, inputs: Vec<T::Args>) -> Result<Vec<T::Output>, Error> {
    pool.starmap(task, inputs)
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(1)?;
    assert_eq!(of_numbers(&pool, square)?, [0, 1, 4, 9, 16, 25]);
    assert_eq!(of_anything(&pool, square, vec![3])?, [9]);
    assert_eq!(of_anything(&pool, length, vec!["three".into()])?, [5]);
    assert_eq!(of_tuples(&pool, add, vec![(1, 2)])?, [3]);
    // What stands in an input is inferred from the task.
    assert_eq!(pool.map(length, ["a".into(), "bc".parse().expect("text")])?, [1, 2]);
    assert_eq!(pool.map(square, ["7"].map(|text| text.parse().expect("a number")))?, [49]);
    assert_eq!(pool.task(add).partial((1,)).map([2, 3])?, [3, 4]);
    assert_eq!(pool.task(length).by_ref().map(["a", "bc"].iter().copied())?, [1, 2]);
    assert_eq!(pool.task(length).by_ref().map(&["a".to_owned()])?, [1]);
    Ok(())
}
