use pool_core::pool_task;

#[pool_task(nam = "square")]
fn square(x: u64) -> u64 {
    x * x
}

#[pool_task(3)]
fn cube(x: u64) -> u64 {
    x * x * x
}

fn main() {
    square(3) + cube(3);
}
