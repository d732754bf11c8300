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
    /// It was run for its effect, and returned an error.
    Returned(String),
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
    /// What the task printed before, at the end of it, if the parent captures that. A worker leaves it out.
    pub output: Option<String>,
}

impl Fault {
    /// As a worker writes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings into a vector: does not fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// As a worker writes it in so many bytes: the ends of long texts are missing.
    pub(crate) fn to_bytes_within(&self, most: usize) -> Vec<u8> {
        let bytes = self.to_bytes();
        if bytes.len() <= most {
            return bytes;
        }
        // Three texts at the most, and some bytes for each.
        let each = most / 4;
        let cut = |text: &String| {
            let mut end = each.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text[..end].to_owned()
        };
        let short = match self {
            Fault::Panicked(panic) => Fault::Panicked(Panic {
                message: cut(&panic.message),
                location: panic.location.as_ref().map(cut),
                backtrace: panic.backtrace.as_ref().map(cut),
                output: None,
            }),
            Fault::Decode(why) => Fault::Decode(cut(why)),
            Fault::Encode(why) => Fault::Encode(cut(why)),
            Fault::Unknown(why) => Fault::Unknown(cut(why)),
            Fault::Returned(why) => Fault::Returned(cut(why)),
        };
        short.to_bytes()
    }

    /// Reads what a worker wrote; `None` if it is no fault.
    pub fn from_bytes(bytes: &[u8]) -> Option<Fault> {
        postcard::from_bytes(bytes).ok()
    }
}
