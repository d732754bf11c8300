use pool_core::pool_task;

#[pool_task]
fn count(items: Vec<_>) -> usize {
    items.len()
}

fn main() {}
