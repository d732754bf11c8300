//! What workers print: the output of C code before it crashed, in the error of that input; and lines as they come, above a
//! progress bar that stays intact.

use std::ffi::{CString, c_char, c_int};

use indicatif::ProgressBar;
use pool_core::{Error, Output, Pool, Progress, Stream, WorkerLine, pool_task};

unsafe extern "C" {
    fn printf(format: *const c_char, ...) -> c_int;
    fn abort() -> !;
}

/// Stands for a C library that prints what it does, and crashes on bad input.
#[pool_task]
fn decode(name: &str) -> usize {
    let text = CString::new(name).expect("names have no NUL");
    // SAFETY: the format takes one string, and gets one.
    unsafe { printf(c"decoding %s ...".as_ptr(), text.as_ptr()) };
    if name.starts_with("broken") {
        // SAFETY: takes nothing.
        unsafe { abort() };
    }
    println!(" done");
    name.len()
}

/// Prints while it works, and complains about some numbers.
#[pool_task]
fn check(number: u64) -> u64 {
    println!("checking {number}");
    if number.is_multiple_of(4) {
        eprintln!("{number} is a multiple of four");
    }
    number * number
}

fn main() -> Result<(), Error> {
    // Nothing is printed, but each error has what its own input has printed.
    let pool = Pool::builder()
        .processes(2)
        .output(Output::Capture)
        .build()?;
    let names = ["a.jpg", "broken.jpg", "b.jpg"].map(String::from);
    for outcome in pool.task(decode).map_results(names) {
        match outcome {
            Ok(len) => println!("decoded: {len}"),
            Err(error) => println!("failed after: {}", error.output().unwrap_or_default()),
        }
    }

    // A function gets each line, together with the worker and the input that printed it. (Without a terminal, no bar is drawn.)
    let bar = ProgressBar::new(0);
    let above = bar.clone();
    let output = Output::lines(move |line: &WorkerLine| {
        let index = line.index.unwrap_or_default();
        let sign = match line.stream {
            Stream::Stdout => ' ',
            Stream::Stderr => '!',
        };
        above.suspend(|| println!("{sign} [input {index}] {}", line.text));
    });
    let pool = Pool::builder().processes(2).output(output).build()?;
    let shown = bar.clone();
    let squares = pool.task(check).progress(move |progress: &Progress| {
        shown.set_length(progress.total.unwrap_or(progress.done) as u64);
        shown.set_position(progress.done as u64);
    });
    let sum: u64 = squares.map(1..=10)?.into_iter().sum();

    // All lines are shown by the time the pool has ended.
    pool.close();
    pool.join()?;
    bar.finish();
    println!("sum of squares: {sum}");
    Ok(())
}
