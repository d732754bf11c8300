use std::path::Path;

use pool_core::pool_task;

#[pool_task]
fn join(texts: &[&str]) -> String {
    texts.concat()
}

#[pool_task]
fn sum(rows: &Vec<&[u32]>, _first: [&Path; 2], _pair: (&str, &u8)) -> u32 {
    rows.iter().copied().flatten().sum()
}

#[pool_task]
fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

fn main() {}
