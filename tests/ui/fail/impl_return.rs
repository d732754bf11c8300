use pool_core::pool_task;

#[pool_task]
fn evens(below: u64) -> impl Iterator<Item = u64> {
    (0..below).step_by(2)
}

fn main() {}
