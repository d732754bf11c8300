//! How values become bytes: postcard, one value after the other, and nothing between them.
//!
//! The functions here are what `#[pool_task]` calls; the choice of format is made in this file
//! alone. Byte strings (`Vec<u8>`, `&[u8]`) go as one block instead of element by element, and one behind
//! which nothing comes goes without its length: its buffer can become the value.

use std::fmt;
use std::mem;

use serde::Serialize;
use serde::de::Deserialize;

use crate::decode as decoding;
use crate::encode as encoding;
use crate::frames::FRAME_MAX;

/// A value could not be encoded or decoded; prints the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError(String);

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

/// Appends `value` to `out`; on an error `out` is as it was.
#[inline]
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    encoding::encode(value, out).map_err(|why| {
        out.truncate(start);
        CodecError(why)
    })
}

/// Appends a byte string to `out`, as one block.
#[inline]
pub fn encode_bytes(value: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
    encode(serde_bytes::Bytes::new(value), out)
}

/// Appends a byte string behind which nothing comes; or, if it is long, gives it back.
#[inline]
pub fn encode_last_bytes(value: Vec<u8>, out: &mut Vec<u8>) -> Option<Vec<u8>> {
    if value.len() > FRAME_MAX {
        return Some(value);
    }
    out.extend_from_slice(&value);
    None
}

/// Writes a byte string that is a whole result. A long one is not copied.
#[inline]
pub fn encode_output_bytes(value: Vec<u8>, out: &mut Vec<u8>) {
    if value.len() > FRAME_MAX && out.is_empty() {
        *out = value;
    } else {
        out.extend_from_slice(&value);
    }
}

/// Decodes one value that fills `bytes` to the end.
#[inline]
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut reader = Reader::new(bytes);
    let value = reader.take_owned()?;
    reader.finish()?;
    Ok(value)
}

/// The encoded arguments of one input, in a worker.
#[derive(Debug)]
pub enum Input<'a> {
    /// Where they arrived.
    Shared(&'a [u8]),
    /// In a buffer of this process. Whoever takes it away leaves none for the next.
    Buffer(&'a mut Vec<u8>),
}

impl Input<'_> {
    /// The bytes, in place.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Input::Shared(bytes) => bytes,
            Input::Buffer(bytes) => bytes,
        }
    }

    /// The bytes, if they are one byte string.
    #[inline]
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Input::Shared(bytes) => bytes.to_vec(),
            Input::Buffer(bytes) => mem::take(bytes),
        }
    }
}

/// Takes values off the front of a block of bytes.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// A reader over all of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    /// Takes a value that owns all it has.
    #[inline]
    pub fn take_owned<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, CodecError> {
        self.take()
    }

    /// Takes a value that may borrow from the bytes, such as `&str`.
    #[inline]
    pub fn take<T: Deserialize<'a>>(&mut self) -> Result<T, CodecError> {
        let (value, rest) = decoding::decode(self.0).map_err(CodecError)?;
        self.0 = rest;
        Ok(value)
    }

    /// Takes a byte string, in place.
    #[inline]
    pub fn take_bytes(&mut self) -> Result<&'a [u8], CodecError> {
        self.take::<&serde_bytes::Bytes>().map(|bytes| &**bytes)
    }

    /// Takes all that is left, in place: a byte string behind which nothing comes.
    #[inline]
    pub fn take_last_bytes(&mut self) -> &'a [u8] {
        mem::take(&mut self.0)
    }

    /// Says that nothing more is expected.
    #[inline]
    pub fn finish(self) -> Result<(), CodecError> {
        match self.0.len() {
            0 => Ok(()),
            rest => Err(CodecError(format!("{rest} bytes more than the type takes"))),
        }
    }
}
