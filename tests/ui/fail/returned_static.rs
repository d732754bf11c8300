use pool_core::pool_task;

#[pool_task]
fn name() -> &'static [u8] {
    b"name"
}

fn main() {}
