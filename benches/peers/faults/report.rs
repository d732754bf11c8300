//! The reports of the program under test to its keeper: lines of JSON in a file, which no worker holds open.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// The environment variable that names the file.
pub(crate) const REPORT: &str = "FAULTS_REPORT";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line {
    /// A worker has begun an input that never ends.
    Began,
    /// The outcomes of the batch with the fault in it.
    First(Vec<Outcome>),
    /// The outcomes of a later batch. There are two such batches if nothing came back from the first.
    Later(Vec<Outcome>),
    /// How the pool ended, and how many seconds that took.
    Closed(Closing, u64),
}

/// The outcome of one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Right,
    Wrong,
    NoAnswer,
    TimeLimit(String),
    MemoryLimit(String),
    Error(String),
}

/// How a pool ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Closing {
    /// When asked to finish its work.
    Orderly,
    /// Only when asked to drop everything.
    Forced,
    /// Not at all.
    Hangs,
}

/// Writes a line.
pub(crate) fn report(line: &Line) {
    let path = env::var_os(REPORT).expect("the keeper sets it");
    let text = serde_json::to_string(line).expect("it is plain data") + "\n";
    let file = OpenOptions::new().append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.expect("the keeper has made it");
}

/// Writes a line, and waits until the keeper has looked.
pub(crate) fn report_and_wait(line: &Line) {
    report(line);
    let read = io::stdin().read_line(&mut String::new());
    read.expect("the keeper writes to it");
}
