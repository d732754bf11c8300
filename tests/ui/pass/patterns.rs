//! Every pattern that a parameter can be.

use pool_core::{Task, pool_task};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Point {
    x: u32,
    y: u32,
}

#[pool_task]
fn add(
    (a, mut b): (u32, u32),
    Point { x, y: down }: Point,
    _: u32,
    mut list: Vec<u32>,
    [first, ..]: [u32; 3],
    Point { x: ref left, .. }: Point,
    &Point { y, .. }: &Point,
    #[allow(unused_variables)] spare: u8,
) -> u32 {
    b += 1;
    list.push(first);
    a + b + x + down + *left + y + list.iter().sum::<u32>()
}

fn main() {
    type Args = ((u32, u32), Point, u32, Vec<u32>, [u32; 3], Point, Point, u8);
    let point = || Point { x: 3, y: 4 };
    let args: <add as Task>::Args = ((1, 1), point(), 0, vec![10], [5, 6, 7], point(), point(), 0);
    let args: Args = args;
    assert_eq!(
        add(
            args.0, args.1, args.2, args.3, args.4, args.5, &args.6, args.7
        ),
        32
    );
}
