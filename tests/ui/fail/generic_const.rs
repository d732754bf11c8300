use pool_core::pool_task;

#[pool_task]
fn sum<const N: usize>(numbers: [u64; N]) -> u64 {
    numbers.iter().sum()
}

fn main() {}
