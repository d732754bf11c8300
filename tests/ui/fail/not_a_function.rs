use pool_core::pool_task;

#[pool_task]
struct Square;

#[pool_task]
impl Square {
    fn of(x: u64) -> u64 {
        x * x
    }
}

#[pool_task]
const SQUARE: fn(u64) -> u64 = Square::of;

trait Shape {
    #[pool_task]
    fn area(side: u64) -> u64;
}

fn main() {}
