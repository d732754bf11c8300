//! Values that many tasks read, in memory that all workers map: the implementation of `Shared`.
//!
//! A shared value is an [`Attachment`]. An input contains only its id, by which the worker finds the attachment that it
//! was sent. Numbers and text are read in place. Any other value is decoded once in each worker, which keeps it as long
//! as the attachment.

use std::any::Any;
use std::fmt;
use std::io;
use std::str;
use std::sync::{Arc, OnceLock};

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer};
use serde::ser::{self, Serialize, Serializer};

use crate::attach::{self, Attachment, Bytes};
use crate::codec::{CodecError, Primitive, decode, encode, whole};

/// A shared value in one process.
pub struct Held {
    bytes: Option<Arc<Bytes>>,
    value: Option<Box<dyn Any + Send + Sync>>,
    /// The bytes are text.
    is_text: bool,
    /// Encodes the value again, since the bytes may refer to attachments that only this process was sent.
    encode: Option<Encode>,
    /// The attachment that workers are sent. A worker creates one if it passes the value to workers of its own pool.
    attachment: OnceLock<Arc<Attachment>>,
}

type Encode = fn(&Held, &mut Vec<u8>) -> Result<(), CodecError>;

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.attachment).finish()
    }
}

/// A type that can be shared: any type that serde can serialize and deserialize, slices of numbers, and `str`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be shared",
    label = "is neither `Serialize + DeserializeOwned + Send + Sync + 'static`, nor a slice of numbers, nor `str`"
)]
pub trait Share: Send + Sync + 'static {
    #[doc(hidden)]
    fn of(held: &Held) -> &Self;

    /// Makes the value from its bytes, in a worker.
    #[doc(hidden)]
    fn take(bytes: Arc<Bytes>) -> Result<Held, String>;
}

/// A type that is read in place, in shared memory: slices of numbers, and `str`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be read in place",
    label = "is neither a slice of numbers nor `str`",
    note = "to share a vector or an array of numbers, pass a slice: `Shared::copy_from(&numbers[..])`",
    note = "`Shared::new(value)` takes any value that serde supports, and each worker decodes it once"
)]
pub trait InPlace: Share {
    #[doc(hidden)]
    const IS_TEXT: bool;
    #[doc(hidden)]
    fn bytes(&self) -> &[u8];
}

/// Why a value can't be shared.
#[derive(Debug)]
pub struct ShareError(pub String);

impl From<io::Error> for ShareError {
    fn from(error: io::Error) -> ShareError {
        ShareError(error.to_string())
    }
}

impl From<CodecError> for ShareError {
    fn from(error: CodecError) -> ShareError {
        ShareError(error.to_string())
    }
}

impl Held {
    /// Shares a value that workers decode.
    ///
    /// # Errors
    ///
    /// If it can't be encoded, or there is not enough memory for it.
    pub fn value<T: Serialize + Send + Sync + 'static>(value: T) -> Result<Held, ShareError> {
        let mut bytes = Vec::new();
        let (encoded, holds) = attach::collect(|| encode(&value, &mut bytes));
        encoded?;
        let attachment = Attachment::new(&bytes, holds)?;
        Ok(Held {
            bytes: None,
            value: Some(Box::new(value)),
            is_text: false,
            encode: None,
            attachment: attachment.into(),
        })
    }

    /// Shares a copy of a value that workers read in place.
    ///
    /// # Errors
    ///
    /// If there is not enough memory for it.
    pub fn copy<T: InPlace + ?Sized>(value: &T) -> Result<Held, ShareError> {
        let attachment = Attachment::new(value.bytes(), Vec::new())?;
        Ok(Held {
            bytes: Some(attachment.bytes()?),
            value: None,
            is_text: T::IS_TEXT,
            encode: None,
            attachment: attachment.into(),
        })
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        self.bytes.as_deref().map_or(&[], |bytes| bytes)
    }

    /// Creates an attachment for workers of this process, of a value that another process has sent to it.
    fn attach_again(&self) -> Result<Arc<Attachment>, String> {
        let Some(encode) = self.encode else {
            return Attachment::new(self.bytes(), Vec::new()).map_err(|error| error.to_string());
        };
        let mut bytes = Vec::new();
        let (encoded, holds) = attach::collect(|| encode(self, &mut bytes));
        encoded.map_err(|error| error.to_string())?;
        Attachment::new(&bytes, holds).map_err(|error| error.to_string())
    }

    /// Serializes the id of the attachment, and attaches it to the data being encoded.
    ///
    /// # Errors
    ///
    /// If that data is not for a worker.
    pub fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if !attach::is_collecting() {
            return Err(ser::Error::custom(
                "a `Shared` can only be sent to the workers of a pool, as an argument of a task or inside one",
            ));
        }
        let attachment = match self.attachment.get() {
            Some(attachment) => attachment,
            None => {
                let own = self.attach_again().map_err(ser::Error::custom)?;
                self.attachment.get_or_init(|| own)
            }
        };
        attach::refer_to(attachment);
        to.serialize_u64(attachment.id())
    }

    /// Finds the value by the id that was serialized.
    ///
    /// # Errors
    ///
    /// If it is not deserialized as a task's argument, or is not a `T`.
    pub fn deserialize<'de, T: Share + ?Sized, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Arc<Held>, D::Error> {
        let id = u64::deserialize(from)?;
        let attached = attach::find(id).map_err(de::Error::custom)?;
        attached.share::<T>(T::take).map_err(de::Error::custom)
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Share for T {
    #[inline]
    fn of(held: &Held) -> &T {
        let value = held.value.as_ref().and_then(|value| value.downcast_ref());
        value.expect("a value is kept as its own type")
    }

    fn take(bytes: Arc<Bytes>) -> Result<Held, String> {
        let value: T = decode(&bytes).map_err(|error| error.to_string())?;
        Ok(Held {
            bytes: Some(bytes),
            value: Some(Box::new(value)),
            is_text: false,
            encode: Some(|held, out| encode(T::of(held), out)),
            attachment: OnceLock::new(),
        })
    }
}

impl<P: Primitive> Share for [P] {
    #[inline]
    fn of(held: &Held) -> &[P] {
        bytemuck::cast_slice(held.bytes())
    }

    fn take(bytes: Arc<Bytes>) -> Result<Held, String> {
        whole::<P>(&bytes).map_err(|error| error.to_string())?;
        Ok(in_place(bytes, false))
    }
}

impl<P: Primitive> InPlace for [P] {
    const IS_TEXT: bool = false;

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }
}

impl Share for str {
    #[inline]
    fn of(held: &Held) -> &str {
        assert!(held.is_text);
        // SAFETY: `is_text` means that the bytes came from a `str` or were checked, and they don't change.
        unsafe { str::from_utf8_unchecked(held.bytes()) }
    }

    fn take(bytes: Arc<Bytes>) -> Result<Held, String> {
        str::from_utf8(&bytes).map_err(|error| error.to_string())?;
        Ok(in_place(bytes, true))
    }
}

impl InPlace for str {
    const IS_TEXT: bool = true;

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }
}

fn in_place(bytes: Arc<Bytes>, is_text: bool) -> Held {
    Held {
        bytes: Some(bytes),
        value: None,
        is_text,
        encode: None,
        attachment: OnceLock::new(),
    }
}
