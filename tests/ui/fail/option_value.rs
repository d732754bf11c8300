use pool_core::pool_task;

#[pool_task(name = "")]
fn empty() {}

#[pool_task(name = square)]
fn not_a_literal() {}

#[pool_task(name)]
fn no_value() {}

#[pool_task(handle = "Square")]
fn not_an_identifier() {}

#[pool_task(handle(Square))]
fn in_parentheses() {}

#[pool_task(crate = "pool_core")]
fn not_a_path() {}

#[pool_task(time_limit = "soon")]
fn no_duration() {}

#[pool_task(time_limit = "0s")]
fn no_time() {}

#[pool_task(time_limit = 5)]
fn no_unit() {}

#[pool_task(retries = -1)]
fn too_few() {}

#[pool_task(retries = "2")]
fn no_number() {}

#[pool_task(name = "a" handle = B)]
fn no_comma() {}

fn main() {}
