//! Tasks that return a `Result`: the compile error about an error type that can't be sent says what to do.
//!
//! If a return type is spelled `Result`, the code of `#[pool_task]` calls [`Returned::travels`] to encode and to
//! decode. For the standard `Result`, that is the inherent function, which requires an [`ErrorValue`]. For a user's own
//! type of that name, it is the function of [`AnyReturned`], which only requires serde's traits. Encoding and decoding
//! use the same function, so there is only one message.

use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, decode, decode_msgpack, encode, encode_msgpack};

/// The error that a task returns, and that its caller gets as a value.
#[diagnostic::on_unimplemented(
    message = "the error `{Self}` can't be sent to the caller",
    label = "does not implement both `serde::Serialize` and `serde::Deserialize`",
    note = "return `Result<T, TaskError>`: `?` turns any error into a `pool_core::TaskError`",
    note = "or, if the error type is your own, add `#[derive(serde::Serialize, serde::Deserialize)]` to it"
)]
pub trait ErrorValue: Serialize + DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<E: Serialize + DeserializeOwned> ErrorValue for E {}

/// A type that a task returns.
pub struct Returned<R>(PhantomData<R>);

impl<R> fmt::Debug for Returned<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Returned")
    }
}

impl<T, E> Returned<Result<T, E>> {
    /// How it is encoded and decoded.
    #[inline]
    pub fn travels() -> impl Travels<Result<T, E>>
    where
        T: Serialize + for<'de> Deserialize<'de>,
        E: ErrorValue,
    {
        BySerde
    }
}

/// The same for types other than the standard `Result`.
pub trait AnyReturned {
    /// The type.
    type Value;

    /// How it is encoded and decoded.
    #[inline]
    fn travels() -> impl Travels<Self::Value>
    where
        Self::Value: Serialize + for<'de> Deserialize<'de>,
    {
        BySerde
    }
}

impl<R> AnyReturned for Returned<R> {
    type Value = R;
}

/// Encodes and decodes, in both formats.
pub trait Travels<R>: Sized {
    /// As [`encode`](fn@encode).
    ///
    /// # Errors
    ///
    /// If it can't be encoded.
    fn encode(self, value: &R, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// As [`encode_msgpack`](fn@encode_msgpack).
    ///
    /// # Errors
    ///
    /// If it can't be encoded.
    fn encode_msgpack(self, value: &R, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// As [`decode`](fn@decode).
    ///
    /// # Errors
    ///
    /// If the bytes are not such a value.
    fn decode(self, bytes: &[u8]) -> Result<R, CodecError>;

    /// As [`decode_msgpack`](fn@decode_msgpack).
    ///
    /// # Errors
    ///
    /// If the bytes are not such a value.
    fn decode_msgpack(self, bytes: &[u8]) -> Result<R, CodecError>;
}

struct BySerde;

impl<R: Serialize + for<'de> Deserialize<'de>> Travels<R> for BySerde {
    #[inline]
    fn encode(self, value: &R, out: &mut Vec<u8>) -> Result<(), CodecError> {
        encode(value, out)
    }

    fn encode_msgpack(self, value: &R, out: &mut Vec<u8>) -> Result<(), CodecError> {
        encode_msgpack(value, out)
    }

    #[inline]
    fn decode(self, bytes: &[u8]) -> Result<R, CodecError> {
        decode(bytes)
    }

    fn decode_msgpack(self, bytes: &[u8]) -> Result<R, CodecError> {
        decode_msgpack(bytes)
    }
}
