use std::{fs, io};

use pool_core::pool_task;

#[derive(Debug)]
enum Mistake {
    Small,
}

#[pool_task]
fn length(file: &str) -> Result<u64, std::io::Error> {
    Ok(fs::metadata(file)?.len())
}

#[pool_task]
fn lines(file: &str) -> io::Result<usize> {
    Ok(fs::read_to_string(file)?.lines().count())
}

#[pool_task]
fn half(x: u64) -> Result<u64, Mistake> {
    if x == 0 { Err(Mistake::Small) } else { Ok(x / 2) }
}

#[pool_task(format = "msgpack")]
fn third(x: u64) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    Ok(x / 3)
}

#[pool_task]
fn thread(x: u64) -> Result<std::thread::Thread, String> {
    Err(x.to_string())
}

fn main() {}
