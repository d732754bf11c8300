use pool_core::pool_task;

#[pool_task]
fn sort(numbers: &mut Vec<u64>) {
    numbers.sort();
}

fn main() {}
