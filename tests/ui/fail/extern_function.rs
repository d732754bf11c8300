use pool_core::pool_task;

#[pool_task]
extern "C" fn double(x: u64) -> u64 {
    2 * x
}

fn main() {}
