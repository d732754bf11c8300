use pool_core::pool_task;

#[pool_task]
fn double(x: u64) -> u64
where
    u64: Copy,
{
    2 * x
}

fn main() {}
