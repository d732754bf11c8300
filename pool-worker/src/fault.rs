//! Why an input has no result although its worker survived.

use serde::{Deserialize, Serialize};

/// Why an input has no result although its worker survived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// The task panicked.
    Panicked(Panic),
    /// The worker could not decode the arguments.
    Decode(String),
    /// The worker could not encode the result.
    Encode(String),
    /// The worker does not know the task.
    Unknown(String),
    /// A task that is run only for its effect, such as an initializer, returned an error.
    Returned(String),
}

/// A panic, as the worker's panic hook saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// The panic message, or a fixed text if the payload is not a string.
    pub message: String,
    /// `file:line:column`, if known.
    pub location: Option<Box<str>>,
    /// The worker's backtrace, if `RUST_BACKTRACE` asks for one.
    pub backtrace: Option<Box<str>>,
    /// What the task printed before, at the end of it, if the parent captures that. A worker leaves it out.
    pub output: Option<Box<str>>,
}

impl Fault {
    /// Encodes it as a worker does.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Writing strings to a vector does not fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The same in at most `most` bytes: long texts are cut off.
    pub(crate) fn to_bytes_within(&self, most: usize) -> Vec<u8> {
        let bytes = self.to_bytes();
        if bytes.len() <= most {
            return bytes;
        }
        // At most three texts, and a few bytes more for each.
        let each = most / 4;
        let cut = |text: &str| {
            let mut end = each.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text[..end].to_owned()
        };
        let short = match self {
            Fault::Panicked(panic) => Fault::Panicked(Panic {
                message: cut(&panic.message),
                location: panic.location.as_deref().map(|text| cut(text).into()),
                backtrace: panic.backtrace.as_deref().map(|text| cut(text).into()),
                output: None,
            }),
            Fault::Decode(why) => Fault::Decode(cut(why)),
            Fault::Encode(why) => Fault::Encode(cut(why)),
            Fault::Unknown(why) => Fault::Unknown(cut(why)),
            Fault::Returned(why) => Fault::Returned(cut(why)),
        };
        short.to_bytes()
    }

    /// Decodes what a worker wrote. Returns `None` if it is not a fault.
    pub fn from_bytes(bytes: &[u8]) -> Option<Fault> {
        postcard::from_bytes(bytes).ok()
    }
}
