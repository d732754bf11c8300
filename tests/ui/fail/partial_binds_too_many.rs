//! More arguments are bound than the task has, or arguments of other types.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn line(a: f64, b: f64, name: String) -> String {
    format!("{name}: {a} {b}")
}

fn main() -> Result<(), Error> {
    let pool = Pool::new()?;
    pool.task(line).partial((1.0, 2.0, String::new(), 3));
    pool.task(line).partial((1.0, "b"));
    let call = pool.task(line).partial((1.0,));
    // Two are left.
    call.map([2.0])?;
    call.starmap([(2.0,)])?;
    call.by_ref().map([&2.0])?;
    Ok(())
}
