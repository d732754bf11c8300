//! Two workers share five inputs. Each result tells the input, the worker's own process id, and that of its parent, which is
//! this program.

use std::os::unix::process::parent_id;
use std::process;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn describe(x: u32) -> String {
    format!("++{x}++{}++{}++", process::id(), parent_id())
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    println!("{:?}", pool.map(describe, [1, 2, 3, 4, 5])?);
    Ok(())
}
