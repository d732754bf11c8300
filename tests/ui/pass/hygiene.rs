//! Names of the user's own that the emitted code might have meant.

#![allow(dead_code, non_camel_case_types, unused_imports, unused_macros)]

mod core {}
mod std {}
mod serde {}
struct Result;
struct Option;
struct Vec;
struct String;
struct Task;
struct Clone;
struct Copy;
struct Debug;
struct u8;
struct str;
enum Shadow {
    Ok,
    Err,
    Some,
    None,
}
use Shadow::*;

macro_rules! concat {
    () => {};
}
macro_rules! module_path {
    () => {};
}
macro_rules! line {
    () => {};
}

const __pool_task: u32 = 0;

#[pool_core::pool_task]
fn run(input: u32, output: &::core::primitive::str, arg0: u32, args: u32, out: u32) -> u32 {
    let bytes = output.len() as u32;
    input + bytes + arg0 + args + out
}

#[pool_core::pool_task]
fn reader() -> ::std::vec::Vec<u32> {
    ::std::vec::Vec::new()
}

#[pool_core::pool_task]
fn result(value: u32) -> ::core::result::Result<u32, ::std::string::String> {
    ::core::result::Result::Ok(value)
}

#[pool_core::pool_task]
fn deref(x: u32) -> u32 {
    x
}

#[pool_core::pool_task]
fn encode_args(x: u32) -> u32 {
    x
}

fn main() {
    assert_eq!(run(1, "a", 2, 3, 4), 11);
    assert!(reader().is_empty());
    assert!(result(1).is_ok());
    assert_eq!(deref(1) + encode_args(2), 3);
}
