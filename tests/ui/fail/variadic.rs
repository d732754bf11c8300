use pool_core::pool_task;

#[pool_task]
unsafe extern "C" fn sum(count: u64, mut rest: ...) -> u64 {
    count
}

fn main() {}
