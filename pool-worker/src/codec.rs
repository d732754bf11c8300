//! How values become bytes: postcard, one value after the other, and nothing between them.
//!
//! The functions here are what `#[pool_task]` calls; the choice of format is made in this file
//! alone. Byte strings (`Vec<u8>`, `&[u8]`) go as one block instead of element by element.

use std::fmt;

use serde::Serialize;
use serde::de::Deserialize;

use crate::encode as encoding;

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

/// Decodes one value that fills `bytes` to the end.
#[inline]
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut reader = Reader::new(bytes);
    let value = reader.take_owned()?;
    reader.finish()?;
    Ok(value)
}

/// Decodes one byte string that fills `bytes` to the end.
#[inline]
pub fn decode_bytes(bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut reader = Reader::new(bytes);
    let value = reader.take_bytes()?.to_vec();
    reader.finish()?;
    Ok(value)
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
        let (value, rest) = postcard::take_from_bytes(self.0).map_err(|error| {
            CodecError(match error {
                postcard::Error::WontImplement => {
                    "the type asks what the bytes hold, which they do not say (`#[serde(untagged)]`, \
                     `serde_json::Value` and the like do that)"
                        .to_owned()
                }
                error => error.to_string(),
            })
        })?;
        self.0 = rest;
        Ok(value)
    }

    /// Takes a byte string, in place.
    #[inline]
    pub fn take_bytes(&mut self) -> Result<&'a [u8], CodecError> {
        self.take::<&serde_bytes::Bytes>().map(|bytes| &**bytes)
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
