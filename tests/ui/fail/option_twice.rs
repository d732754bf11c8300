use pool_core::pool_task;

#[pool_task(name = "square", handle = Square, name = "sq")]
fn square(x: u64) -> u64 {
    x * x
}

fn main() {}
