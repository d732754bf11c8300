//! What a task returns where it may fail: the compile error about an error that can't be sent names the remedy.
//!
//! `#[pool_task]` asks [`Returned`] for both directions where a return type is spelled `Result`. For a `Result` of any two
//! types that finds the function of its own, which asks for an [`ErrorValue`]; for a user's own type of that name the one of
//! [`AnyReturned`], which asks for what serde does. Both directions ask the same function, so there is one message.

use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, decode, decode_msgpack, encode, encode_msgpack};

/// The error of a task, which the caller gets as a value.
#[diagnostic::on_unimplemented(
    message = "the error `{Self}` can't be sent to the caller",
    label = "not both `serde::Serialize` and `serde::Deserialize`",
    note = "return `Result<T, TaskError>`: `?` makes a `pool_core::TaskError` of any error",
    note = "for an error type of your own, `#[derive(serde::Serialize, serde::Deserialize)]` does, too"
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
    /// How it travels.
    #[inline]
    pub fn travels() -> impl Travels<Result<T, E>>
    where
        T: Serialize + for<'de> Deserialize<'de>,
        E: ErrorValue,
    {
        BySerde
    }
}

/// The same for whatever is no `Result`.
pub trait AnyReturned {
    /// That type.
    type Value;

    /// How it travels.
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

/// Both directions, in both formats.
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
    /// If these bytes are no such value.
    fn decode(self, bytes: &[u8]) -> Result<R, CodecError>;

    /// As [`decode_msgpack`](fn@decode_msgpack).
    ///
    /// # Errors
    ///
    /// If these bytes are no such value.
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
