//! A handle of another name: the function stays what it was.

use pool_core::{Task, pool_task};

#[pool_task(handle = Square)]
const fn square(x: u64) -> u64 {
    x * x
}

const NINE: u64 = square(3);

mod square {
    pub const SIDES: u32 = 4;
}

fn main() {
    let square = square(4);
    assert_eq!((NINE, square, square::SIDES), (9, 16, 4));
    assert_eq!(Square(5), 25);
    assert!(Square::NAME.ends_with("::square"));
}
