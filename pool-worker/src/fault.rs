//! Why a task that its worker survived gave no result.

use serde::{Deserialize, Serialize};

/// Why a task that its worker survived gave no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// It panicked.
    Panicked(Panic),
    /// The worker could not decode the arguments.
    Decode(String),
    /// The worker could not encode the result.
    Encode(String),
    /// The worker does not know the task.
    Unknown(String),
}

/// A panic, as the worker's panic hook saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// The panic message; a fixed text if the payload is no string.
    pub message: String,
    /// `file:line:column`, if known.
    pub location: Option<String>,
    /// The worker's backtrace, if `RUST_BACKTRACE` asks for it.
    pub backtrace: Option<String>,
}

impl Fault {
    /// As a worker writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings into a vector: does not fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Reads what a worker wrote; `None` if it is no fault.
    pub fn from_bytes(bytes: &[u8]) -> Option<Fault> {
        postcard::from_bytes(bytes).ok()
    }
}
