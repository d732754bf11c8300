//! `#[cfg]` on either side of the attribute, and two versions of one task.

use pool_core::pool_task;

#[pool_task]
#[cfg(any())]
fn size(x: Missing) -> Missing {
    x
}

#[pool_task]
#[cfg(not(any()))]
fn size(x: u64) -> u64 {
    x
}

#[cfg(any())]
#[pool_task(handle = Gone)]
fn gone() {}

#[pool_task(handle = GoneToo)]
#[cfg(any())]
fn gone_too() {}

#[pool_task(no_such_option)]
#[cfg(any())]
fn gone_with_its_mistakes<T>(x: &mut T) {}

#[cfg_attr(all(), pool_task)]
#[cfg_attr(all(), cfg(any()), inline)]
fn never() -> Missing {}

fn main() {
    let gone = size(3);
    let gone_too = gone;
    assert_eq!(gone_too, 3);
}
