use pool_core::pool_task;

#[pool_task]
fn largest<T: Ord>(numbers: Vec<T>) -> Option<T> {
    numbers.into_iter().max()
}

fn main() {}
