use pool_core::pool_task;

#[pool_task]
fn width((width, _height): (u32, u32)) -> u32 {
    width
}

fn main() {}
