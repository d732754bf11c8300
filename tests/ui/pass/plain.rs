//! The struct that takes the place of the function: called, passed on as a `fn`, copied, printed.

use pool_core::{Task, pool_task};

/// Squares.
#[pool_task]
pub fn square(x: u64) -> u64 {
    x * x
}

/// Calls itself by its own name, and gives itself away as a task.
#[pool_task]
const fn factorial(n: u64) -> u64 {
    if n < 2 { 1 } else { n * factorial(n - 1) }
}

#[pool_task]
fn own_name() -> String {
    name_of(own_name).to_owned()
}

#[pool_task]
fn nothing() {}

fn name_of<T: Task>(_: T) -> &'static str {
    T::NAME
}

fn main() {
    assert_eq!(square(3), 9);
    assert_eq!([1, 2, 3].map(*square), [1, 4, 9]);
    let copy = square;
    assert_eq!(copy(2), square(2));
    assert_eq!(format!("{square:?}"), "square");
    assert_eq!(factorial(5), 120);
    assert!(own_name().ends_with("::own_name"));
    nothing();

    let args: <square as Task>::Args = (3u64,);
    let output: <square as Task>::Output = square(args.0);
    let (): <nothing as Task>::Args = ();
    let _: u64 = output;
}
