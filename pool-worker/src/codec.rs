//! How values are encoded: with postcard, one value after another with nothing in between; or with MessagePack, if the
//! task says so.
//!
//! `#[pool_task]` emits calls of the functions here.
//!
//! # Blocks
//!
//! Several numbers (`Vec<u8>`, `&[f64]`, `[u32; 8]`) are sent as one block of bytes, as they are in memory, instead of
//! element by element: both sides are the same program on the same kind of machine. The last block of an input is sent
//! without its length, and if it is long, in its own buffer. A block that is too long for a frame is aligned relative
//! to the start of the input, so that it can be read in place.

use std::borrow::Cow;
use std::fmt;
use std::mem;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use bytemuck::Pod;
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};

use crate::attach::Attached;
use crate::buffer::{Arrived, Buffer};
use crate::copy;
use crate::decode as decoding;
use crate::encode as encoding;
use crate::frames::FRAME_MAX;
use crate::msgpack;

/// The number types that are sent as blocks.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a number, so it can't be read in place",
    label = "not one of `u8` to `u128`, `i8` to `i128`, `usize`, `isize`, `f32`, `f64`",
    note = "`Shared::new(value)` takes any value that serde supports, and each worker decodes it once"
)]
pub trait Primitive: Pod + Send + Sync {}

macro_rules! primitives {
    ($($name:ident)*) => {$(impl Primitive for $name {})*};
}
primitives! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64 }

/// A value could not be encoded or decoded. `Display` gives the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecError(String);

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CodecError {}

/// Appends `value` to `out`. On an error, `out` is unchanged.
#[inline]
pub fn encode<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = out.len();
    encoding::encode(value, out).map_err(|why| {
        out.truncate(start);
        CodecError(why)
    })
}

/// As [`encode`], in the format of `#[pool_task(format = "msgpack")]`.
pub fn encode_msgpack<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let start = out.len();
    msgpack::encode(value, out).map_err(|why| {
        out.truncate(start);
        CodecError(why)
    })
}

/// The number of bytes to skip at `offset` so that a block of this many bytes is aligned.
#[inline]
fn padding<P>(offset: usize, bytes: usize) -> usize {
    if bytes > FRAME_MAX {
        offset.wrapping_neg() % align_of::<P>()
    } else {
        0
    }
}

#[inline]
fn pad<P>(block: &[P], out: &mut Vec<u8>, start: usize) {
    let padding = padding::<P>(out.len() - start, size_of_val(block));
    out.resize(out.len() + padding, 0);
}

/// Appends a block to `out`, in which the input begins at `start`.
#[inline]
pub fn encode_block<P: Primitive>(
    block: &[P],
    out: &mut Vec<u8>,
    start: usize,
) -> Result<(), CodecError> {
    encode(&block.len(), out)?;
    encode_last_block(block, out, start);
    Ok(())
}

/// The same, but appends only the length and returns the numbers, which must follow.
#[inline]
pub(crate) fn bind_block<'a, P: Primitive>(
    block: &'a [P],
    out: &mut Vec<u8>,
    start: usize,
) -> Result<&'a [u8], CodecError> {
    encode(&block.len(), out)?;
    pad(block, out, start);
    Ok(bytemuck::cast_slice(block))
}

/// Appends the last block of an input.
#[inline]
pub fn encode_last_block<P: Primitive>(block: &[P], out: &mut Vec<u8>, start: usize) {
    pad(block, out, start);
    // For smaller blocks, the buffer grows as usual.
    if size_of_val(block) >= copy::HUGE_MIN {
        copy::reserve(out, size_of_val(block));
    }
    out.extend_from_slice(bytemuck::cast_slice(block));
}

/// The same, but a long block is returned instead. It must follow what was appended.
#[inline]
pub fn give_last_block<P: Primitive>(
    block: impl Into<Vec<P>> + AsRef<[P]>,
    out: &mut Vec<u8>,
    start: usize,
) -> Option<Tail> {
    if size_of_val(block.as_ref()) > FRAME_MAX {
        pad(block.as_ref(), out, start);
        return Some(Tail::from(Buffer::from(block.into())));
    }
    encode_last_block(block.as_ref(), out, start);
    None
}

/// The same for a lent block: a long one is copied.
#[inline]
pub fn lend_last_block<P: Primitive>(block: &[P], out: &mut Vec<u8>, start: usize) -> Option<Tail> {
    if size_of_val(block) > FRAME_MAX {
        return give_last_block(copied::<P>(bytemuck::cast_slice(block)), out, start);
    }
    encode_last_block(block, out, start);
    None
}

/// The rest of an encoded input, in its own buffer.
#[derive(Clone, Debug)]
pub struct Tail(Arc<Buffer>);

impl From<Buffer> for Tail {
    fn from(buffer: Buffer) -> Tail {
        Tail(Arc::new(buffer))
    }
}

impl Deref for Tail {
    type Target = Buffer;

    #[inline]
    fn deref(&self) -> &Buffer {
        &self.0
    }
}

impl Tail {
    /// The buffer, or a copy if it has other owners.
    pub(crate) fn into_buffer(self) -> Buffer {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| Buffer::from(shared.to_vec()))
    }
}

/// Appends a block that is a whole result. A long one is returned instead.
#[inline]
pub fn encode_output_block<P: Primitive>(
    block: impl Into<Vec<P>> + AsRef<[P]>,
    out: &mut Vec<u8>,
) -> Option<Buffer> {
    if size_of_val(block.as_ref()) > FRAME_MAX {
        return Some(Buffer::from(block.into()));
    }
    encode_output_array(block.as_ref(), out);
    None
}

/// The same for an array.
#[inline]
pub fn encode_output_array<P: Primitive>(block: &[P], out: &mut Vec<u8>) {
    out.extend_from_slice(bytemuck::cast_slice(block));
}

/// The numbers in these bytes, which need not be aligned.
#[inline]
pub(crate) fn copied<P: Primitive>(bytes: &[u8]) -> Vec<P> {
    let mut large = Buffer::aligned(align_of::<P>().ilog2());
    if bytes.len() < copy::HUGE_MIN || !large.reserve(bytes.len()) {
        return bytemuck::pod_collect_to_vec(bytes);
    }
    large.append(bytes);
    large.into_vec()
}

/// Decodes a whole result that is a block.
#[inline]
pub fn decode_output_block<P: Primitive>(bytes: Arrived<'_>) -> Result<Vec<P>, CodecError> {
    whole::<P>(&bytes)?;
    Ok(match bytes {
        Arrived::Own(buffer) => buffer.into_vec(),
        Arrived::Lent(bytes) => copied(bytes),
    })
}

/// The block as an array.
#[inline]
pub fn array<P: Primitive, const N: usize>(block: &[P]) -> Result<[P; N], CodecError> {
    block.try_into().map_err(|_| {
        let len = block.len();
        CodecError(format!("there are {len} numbers for an array of {N}"))
    })
}

/// Checks that these bytes are a whole number of `P`s.
#[inline]
pub(crate) fn whole<P>(bytes: &[u8]) -> Result<(), CodecError> {
    if bytes.len().is_multiple_of(size_of::<P>()) {
        return Ok(());
    }
    Err(CodecError("the last number is incomplete".to_owned()))
}

/// Decodes one value that fills `bytes` to the end.
#[inline]
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut reader = Reader::over(bytes);
    let value = reader.take_owned()?;
    reader.finish()?;
    Ok(value)
}

/// As [`decode`], in the format of `#[pool_task(format = "msgpack")]`.
pub fn decode_msgpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let mut reader = Reader::over(bytes);
    let value = reader.take_msgpack()?;
    reader.finish()?;
    Ok(value)
}

/// The encoded arguments of one input, in a worker.
#[derive(Debug)]
pub struct Input<'a> {
    /// The first arguments, if `partial` has bound them for all inputs of the call.
    bound: Option<&'a Attached>,
    rest: Rest<'a>,
}

#[derive(Debug)]
pub(crate) enum Rest<'a> {
    /// In the ring, where they arrived.
    Shared(&'a [u8]),
    /// In a buffer of this process, which may be taken away.
    Buffer(&'a mut Buffer),
}

impl<'a> Input<'a> {
    #[inline]
    pub(crate) fn new(rest: Rest<'a>, bound: Option<&'a Attached>) -> Self {
        Input { bound, rest }
    }

    #[inline]
    fn rest(&self) -> &[u8] {
        match &self.rest {
            Rest::Shared(bytes) => bytes,
            Rest::Buffer(bytes) => bytes,
        }
    }

    /// The numbers, if the only argument is a block of them.
    #[inline]
    pub fn into_block<P: Primitive>(self) -> Result<Vec<P>, CodecError> {
        match self {
            Input {
                bound: None,
                rest: Rest::Buffer(buffer),
            } => {
                whole::<P>(buffer)?;
                Ok(mem::take(buffer).into_vec())
            }
            input => Ok(Reader::new(&input).take_last_block()?.into_owned()),
        }
    }
}

/// Takes one value after another from the front of an input.
#[derive(Debug)]
pub struct Reader<'a> {
    bound: Option<&'a Attached>,
    /// The bytes of `bound` that were not taken yet.
    bound_rest: &'a [u8],
    rest: &'a [u8],
    /// The length of `rest` at the start.
    len: usize,
}

impl<'a> Reader<'a> {
    /// A reader over all of `input`.
    #[inline]
    pub fn new(input: &'a Input<'_>) -> Self {
        Reader {
            bound: input.bound,
            bound_rest: input.bound.map_or(&[], Attached::bytes),
            ..Reader::over(input.rest())
        }
    }

    #[inline]
    fn over(bytes: &'a [u8]) -> Self {
        Reader {
            bound: None,
            bound_rest: &[],
            rest: bytes,
            len: bytes.len(),
        }
    }

    /// Takes a value that borrows nothing.
    #[inline]
    pub fn take_owned<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T, CodecError> {
        self.take()
    }

    /// Takes a value that may borrow from the bytes, such as `&str`.
    #[inline]
    pub fn take<T: Deserialize<'a>>(&mut self) -> Result<T, CodecError> {
        let (from, _) = self.part();
        let (value, rest) = decoding::decode(from).map_err(CodecError)?;
        *from = rest;
        Ok(value)
    }

    /// Takes a value in the format of `#[pool_task(format = "msgpack")]`.
    pub fn take_msgpack<T: DeserializeOwned>(&mut self) -> Result<T, CodecError> {
        let (from, _) = self.part();
        let (value, rest) = decoding::decode_msgpack(from).map_err(CodecError)?;
        *from = rest;
        Ok(value)
    }

    /// Takes a value for a parameter that is a reference. A bound one is decoded only for the first input.
    #[inline]
    pub fn take_kept<T: for<'de> Deserialize<'de> + 'static>(
        &mut self,
    ) -> Result<Kept<T>, CodecError> {
        self.keep(Self::take_owned)
    }

    /// The same in the format of `#[pool_task(format = "msgpack")]`.
    pub fn take_kept_msgpack<T: DeserializeOwned + 'static>(
        &mut self,
    ) -> Result<Kept<T>, CodecError> {
        self.keep(Self::take_msgpack)
    }

    #[inline]
    fn keep<T: 'static>(
        &mut self,
        take: fn(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Kept<T>, CodecError> {
        let Some(bound) = self.bound.filter(|_| !self.bound_rest.is_empty()) else {
            return take(self).map(Kept::Own);
        };
        let (value, rest) = bound.keep(self.bound_rest, || {
            let value = take(self)?;
            Ok((value, self.bound_rest.len()))
        })?;
        self.bound_rest = rest;
        Ok(Kept::Bound(value))
    }

    /// The bytes from the next value on, and its offset from the start.
    #[inline]
    fn part(&mut self) -> (&mut &'a [u8], usize) {
        if self.bound_rest.is_empty() {
            let at = self.len - self.rest.len();
            (&mut self.rest, at)
        } else {
            let len = self.bound.map_or(0, |bound| bound.bytes().len());
            let at = len - self.bound_rest.len();
            (&mut self.bound_rest, at)
        }
    }

    /// Takes a block, in place if it is aligned there.
    #[inline]
    pub fn take_block<P: Primitive>(&mut self) -> Result<Cow<'a, [P]>, CodecError> {
        let count: usize = self.take()?;
        let (from, at) = self.part();
        let len = count.checked_mul(size_of::<P>());
        let (block, rest) = len
            .and_then(|len| {
                let padding = padding::<P>(at, len);
                from.get(padding..)?.split_at_checked(len)
            })
            .ok_or_else(|| CodecError("there are fewer bytes than its numbers take".to_owned()))?;
        *from = rest;
        Ok(in_place(block))
    }

    /// Takes the last block: all bytes that are left.
    #[inline]
    pub fn take_last_block<P: Primitive>(&mut self) -> Result<Cow<'a, [P]>, CodecError> {
        if !self.bound_rest.is_empty() {
            return self.take_block();
        }
        let (from, at) = self.part();
        let rest = mem::take(from);
        let aligned = rest.get(padding::<P>(at, usize::MAX)..).unwrap_or_default();
        let block = if aligned.len() > FRAME_MAX {
            aligned
        } else {
            rest
        };
        whole::<P>(block)?;
        Ok(in_place(block))
    }

    /// Checks that no bytes are left.
    #[inline]
    pub fn finish(self) -> Result<(), CodecError> {
        match self.bound_rest.len() + self.rest.len() {
            0 => Ok(()),
            rest => Err(CodecError(format!(
                "{rest} bytes are left over after the value"
            ))),
        }
    }
}

/// A value for a parameter that is a reference.
#[derive(Debug)]
pub enum Kept<T> {
    /// For this input only.
    Own(T),
    /// For all inputs of the call.
    Bound(Rc<T>),
}

impl<T> Deref for Kept<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match self {
            Kept::Own(value) => value,
            Kept::Bound(value) => value,
        }
    }
}

/// The numbers of a whole block, in place if they are aligned.
#[inline]
fn in_place<P: Primitive>(block: &[u8]) -> Cow<'_, [P]> {
    match bytemuck::try_cast_slice(block) {
        Ok(numbers) => Cow::Borrowed(numbers),
        Err(_) => Cow::Owned(copied(block)),
    }
}
