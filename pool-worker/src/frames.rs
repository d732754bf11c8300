//! A sequence of byte strings in one buffer: the inputs of a portion, or the replies to them.
//!
//! A *frame* is a word of four bytes, little-endian (the length times four, plus a [`Tag`]), followed by the
//! bytes. Frames have the same form in the rings, so a whole portion is copied there at once. A byte string
//! longer than [`FRAME_MAX`] stands alone, without the word, so that its buffer can become the value.

use std::fmt;
use std::slice;
use std::sync::Arc;

use crate::attach::{self, Attachment, Collection};
use crate::buffer::{Arrived, Buffer};
use crate::codec::Tail;

/// The length in bytes of the longest byte string that may share a buffer with others.
pub const FRAME_MAX: usize = 32 * 1024;

/// The bytes reserved for the first byte string, so that small ones need only one allocation.
const RESERVE: usize = 60;

/// Buffers with more capacity than this are not reused, since the next content may need less.
const RECYCLE: usize = 256;

/// The size of the word before the bytes.
pub(crate) const WORD: usize = 4;

/// The kind of a byte string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// An encoded input, or an encoded result.
    Value,
    /// An encoded [`Fault`](crate::Fault).
    Fault,
}

/// The size of what [`Frames::to_bytes`] writes after the bytes: the number of byte strings, and one byte that is
/// [`MANY`], or the tag and alignment of a byte string that stands alone.
const TRAILER: usize = size_of::<u32>() + 1;
const MANY: u8 = u8::MAX;

/// Used only in a ring: the tag of a piece of a longer byte string, of which more pieces follow.
pub(crate) const PIECE: u32 = 2;

/// Used only in a ring: the tag that announces such a byte string. Eight bytes give its length.
pub(crate) const LONG: u32 = 3;

/// Used only in a ring: set in the word of a message, which a task sends while it runs. Its first eight bytes are the
/// id of the channel.
pub(crate) const MESSAGE: u32 = 1 << 31;

impl Tag {
    pub(crate) fn bits(self) -> u32 {
        match self {
            Tag::Value => 0,
            Tag::Fault => 1,
        }
    }
}

/// The word before `len` bytes.
#[inline]
pub(crate) fn word(len: usize, tag: u32) -> [u8; WORD] {
    debug_assert!(len <= FRAME_MAX);
    ((len as u32) << 2 | tag).to_le_bytes()
}

/// Reads a word: returns the length and the bits of the tag.
#[inline]
pub(crate) fn read_word(word: [u8; WORD]) -> (usize, u32) {
    let word = u32::from_le_bytes(word);
    ((word >> 2) as usize, word & 3)
}

/// Byte strings, in order.
#[derive(Clone, Default)]
pub struct Frames {
    /// From `start` on: `count` frames, or the one byte string that stands alone.
    bytes: Vec<u8>,
    start: usize,
    count: usize,
    /// The tag of the byte string that stands alone.
    alone: Option<Tag>,
    /// It is known that there is no fault among them.
    only_values: bool,
    /// Rarely used fields, in a box because frames are moved often.
    extra: Option<Box<Extra>>,
}

#[derive(Clone, Default)]
struct Extra {
    /// The rest, after `bytes`, of a byte string that stands alone.
    tail: Option<Tail>,
    /// The bound arguments, which precede every byte string.
    bound: Option<Arc<Attachment>>,
    /// The attachments that some of the byte strings refer to.
    held: Arc<Vec<Arc<Attachment>>>,
}

impl Extra {
    /// The id of the attachment that was referred to last, or 0.
    fn known(&self) -> u64 {
        self.held.last().map_or(0, |last| last.id())
    }
}

impl PartialEq for Frames {
    fn eq(&self, other: &Frames) -> bool {
        (self.count, self.alone, self.rest(), self.tail())
            == (other.count, other.alone, other.rest(), other.tail())
    }
}

impl Eq for Frames {}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames")
            .field("count", &self.count)
            .field("bytes", &self.size())
            .finish()
    }
}

impl Frames {
    /// A single byte string.
    pub fn alone(tag: Tag, bytes: impl Into<Buffer>) -> Frames {
        let bytes = bytes.into();
        if bytes.len() > FRAME_MAX {
            return Frames {
                alone: Some(tag),
                extra: Some(Box::new(Extra {
                    tail: Some(bytes.into()),
                    ..Extra::default()
                })),
                ..Frames::many(Vec::new(), 1)
            };
        }
        let mut framed = Vec::with_capacity(WORD + bytes.len());
        framed.extend_from_slice(&word(bytes.len(), tag.bits()));
        framed.extend_from_slice(&bytes);
        Frames::many(framed, 1)
    }

    /// No byte strings, with room for this many bytes.
    pub fn with_capacity(bytes: usize) -> Frames {
        Frames::many(Vec::with_capacity(bytes), 0)
    }

    /// `count` frames, which must be valid.
    pub(crate) fn many(bytes: Vec<u8>, count: usize) -> Frames {
        Frames {
            bytes,
            start: 0,
            count,
            alone: None,
            only_values: false,
            extra: None,
        }
    }

    /// The same, for frames without a fault.
    pub(crate) fn values(bytes: Vec<u8>, count: usize) -> Frames {
        Frames {
            only_values: true,
            ..Frames::many(bytes, count)
        }
    }

    /// Whether it is known, without looking, that there is no fault among them.
    #[inline]
    pub fn are_values(&self) -> bool {
        self.only_values
    }

    /// Appends what `write` writes, followed by the tail that it returns, as one more byte string. One that is too long to
    /// share the buffer is returned instead, to stand alone.
    ///
    /// # Errors
    ///
    /// Those of `write`. In that case nothing is appended.
    #[inline]
    pub fn push<E>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<Option<Tail>, E>,
    ) -> Result<Option<Frames>, E> {
        let collection = Collection::begin(self.extra.as_ref().map_or(0, |extra| extra.known()));
        let bytes = &mut self.bytes;
        let at = bytes.len();
        if at == 0 {
            bytes.reserve(RESERVE);
        }
        bytes.extend_from_slice(&[0; WORD]);
        let tail = write(bytes).inspect_err(|_| bytes.truncate(at))?;
        let refers = collection.end();
        let len = bytes.len() - at - WORD;
        if len <= FRAME_MAX && tail.is_none() && !refers {
            bytes[at..at + WORD].copy_from_slice(&word(len, Tag::Value.bits()));
            self.count += 1;
            return Ok(None);
        }
        let referred = if refers { attach::take() } else { Vec::new() };
        Ok(self.finish(at, tail, &referred))
    }

    /// Completes the byte string whose word is at `at`.
    #[cold]
    fn finish(
        &mut self,
        at: usize,
        tail: Option<Tail>,
        referred: &[Arc<Attachment>],
    ) -> Option<Frames> {
        let bytes = &mut self.bytes;
        let len = bytes.len() - at - WORD;
        if len <= FRAME_MAX && tail.is_none() {
            bytes[at..at + WORD].copy_from_slice(&word(len, Tag::Value.bits()));
            self.count += 1;
            self.hold(referred);
            return None;
        }
        let (bytes, start) = if self.count == 0 {
            // Earlier ones may have been taken away.
            self.start = 0;
            (std::mem::take(bytes), at + WORD)
        } else {
            let alone = bytes[at + WORD..].to_vec();
            bytes.truncate(at);
            (alone, 0)
        };
        let mut alone = Frames {
            bytes,
            start,
            count: 1,
            alone: Some(Tag::Value),
            only_values: false,
            extra: tail.map(|tail| {
                Box::new(Extra {
                    tail: Some(tail),
                    ..Extra::default()
                })
            }),
        };
        if let Some(known) = self.extra.as_ref().and_then(|extra| extra.held.last()) {
            alone.hold(slice::from_ref(known));
        }
        alone.hold(referred);
        Some(alone)
    }

    /// Adds attachments that byte strings refer to.
    fn hold(&mut self, referred: &[Arc<Attachment>]) {
        if !referred.is_empty() {
            let extra = self.extra.get_or_insert_default();
            let held = Arc::make_mut(&mut extra.held);
            referred.iter().for_each(|one| attach::add(held, one));
        }
    }

    /// Sets the bound arguments, which precede every byte string.
    pub fn bind(&mut self, bound: &Arc<Attachment>) {
        let extra = self.extra.get_or_insert_default();
        extra.bound = Some(Arc::clone(bound));
    }

    /// Whether workers must be sent attachments before these byte strings.
    #[inline]
    pub fn has_attachments(&self) -> bool {
        let extra = self.extra.as_ref();
        extra.is_some_and(|extra| extra.bound.is_some() || !extra.held.is_empty())
    }

    /// Sets the bound arguments and the attachments of frames that were made [from bytes](Frames::from_bytes).
    pub fn attach(&mut self, bound: Option<&Arc<Attachment>>, held: &[Arc<Attachment>]) {
        if let Some(bound) = bound {
            self.bind(bound);
        }
        self.hold(held);
    }

    /// All attachments of these byte strings; each may [hold](Attachment::holds) others.
    pub fn attachments(&self) -> impl Iterator<Item = &Arc<Attachment>> {
        self.bound().into_iter().chain(self.held())
    }

    /// The number of attachments that the byte strings refer to.
    #[inline]
    pub fn references(&self) -> usize {
        self.held().len()
    }

    /// The attachments that some of the byte strings refer to.
    #[inline]
    pub fn held(&self) -> &[Arc<Attachment>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.held)
    }

    /// The bound arguments, which precede every byte string.
    #[inline]
    pub fn bound(&self) -> Option<&Arc<Attachment>> {
        self.extra.as_ref()?.bound.as_ref()
    }

    /// The number of byte strings.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// The number of bytes that they take.
    #[inline]
    pub fn size(&self) -> usize {
        self.bytes.len() - self.start + self.tail().len()
    }

    #[inline]
    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn tail(&self) -> &[u8] {
        let tail = self.extra.as_ref().and_then(|extra| extra.tail.as_ref());
        tail.map_or(&[], |tail| tail)
    }

    /// Removes the first `front` byte strings, and returns them.
    pub fn take_front(&mut self, front: usize) -> Frames {
        if front >= self.count {
            return std::mem::take(self);
        }
        let cut = self.start + skip(self.rest(), front);
        let taken = self.bytes[self.start..cut].to_vec();
        self.start = cut;
        self.count -= front;
        Frames {
            extra: self.extra.clone(),
            only_values: self.only_values,
            ..Frames::many(taken, front)
        }
    }

    /// The same, but reuses the buffer of `used` if it is large enough.
    pub fn take_front_into(&mut self, front: usize, used: Frames) -> Frames {
        let buffer = used.bytes.capacity();
        if front >= self.count || buffer > RECYCLE {
            return self.take_front(front);
        }
        let len = skip(self.rest(), front);
        if len > buffer {
            return self.take_front(front);
        }
        let mut bytes = used.bytes;
        bytes.clear();
        bytes.extend_from_slice(&self.bytes[self.start..self.start + len]);
        self.start += len;
        self.count -= front;
        Frames {
            extra: self.extra.clone(),
            only_values: self.only_values,
            ..Frames::many(bytes, front)
        }
    }

    /// Removes the first byte string, and returns it.
    #[inline]
    pub fn pop(&mut self) -> Option<(Tag, Arrived<'_>)> {
        self.count = self.count.checked_sub(1)?;
        if let Some(tag) = self.alone {
            return Some((tag, Arrived::Own(self.take_alone())));
        }
        let (tag, frame, rest) = first(&self.bytes[self.start..])?;
        self.start = self.bytes.len() - rest.len();
        Some((tag, Arrived::Lent(frame)))
    }

    /// Takes the byte string that stands alone, without a copy if all of it is in the tail.
    fn take_alone(&mut self) -> Buffer {
        let mut front = std::mem::take(&mut self.bytes);
        front.drain(..self.start);
        self.start = 0;
        match self.extra.as_mut().and_then(|extra| extra.tail.take()) {
            Some(tail) if front.is_empty() => tail.into_buffer(),
            tail => {
                front.extend_from_slice(tail.as_deref().map_or(&[], |tail| tail));
                front.into()
            }
        }
    }

    /// Encodes all byte strings as one, without the attachments. It can be decoded by any process that runs this
    /// program on the same kind of machine.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size() + TRAILER);
        bytes.extend_from_slice(self.rest());
        bytes.extend_from_slice(self.tail());
        let kind = match self.alone {
            None => MANY,
            Some(tag) => tag.bits() as u8 | (self.align_log2() as u8) << 4,
        };
        bytes.extend_from_slice(&(self.count as u32).to_le_bytes());
        bytes.push(kind);
        bytes
    }

    /// Decodes the result of [`to_bytes`](Frames::to_bytes). Returns `None` if it is something else.
    pub fn from_bytes(mut bytes: Vec<u8>) -> Option<Frames> {
        let (rest, trailer) = bytes.split_last_chunk::<TRAILER>()?;
        let [count @ .., kind] = *trailer;
        let count = u32::from_le_bytes(count) as usize;
        if kind == MANY {
            let mut left = rest;
            for _ in 0..count {
                (_, _, left) = first(left)?;
            }
            if !left.is_empty() {
                return None;
            }
            bytes.truncate(bytes.len() - TRAILER);
            return Some(Frames::many(bytes, count));
        }
        let tag = match u32::from(kind & 0xf) {
            0 => Tag::Value,
            1 => Tag::Fault,
            _ => return None,
        };
        if count != 1 {
            return None;
        }
        let mut alone = Buffer::aligned(u32::from(kind >> 4));
        if alone.align_log2() == 0 {
            bytes.truncate(bytes.len() - TRAILER);
            alone = bytes.into();
        } else if alone.reserve(rest.len()) {
            alone.append(rest);
        } else {
            return None;
        }
        Some(Frames {
            alone: Some(tag),
            extra: Some(Box::new(Extra {
                tail: Some(alone.into()),
                ..Extra::default()
            })),
            ..Frames::many(Vec::new(), 1)
        })
    }

    /// The number of byte strings at the front that fit into `max_bytes`: at least one, at most `most`.
    #[inline]
    pub fn fitting(&self, most: usize, max_bytes: usize) -> usize {
        let most = most.min(self.count).max(1);
        if self.size() <= max_bytes || self.alone.is_some() {
            return most;
        }
        let mut sizes = self.iter().scan(0, |size, (_, bytes)| {
            *size += WORD + bytes.len();
            Some(*size)
        });
        let fit = sizes.position(|size| size > max_bytes);
        fit.unwrap_or(most).clamp(1, most)
    }

    /// The byte strings, in order. Don't use it for inputs: of a byte string that consists of bytes and a tail, only
    /// the bytes are returned.
    pub fn iter(&self) -> Iter<'_> {
        let rest = match self.rest() {
            [] => self.tail(),
            rest => rest,
        };
        Iter {
            rest,
            alone: self.alone,
            count: self.count,
        }
    }

    /// Reads `count` frames that the parent wrote to a ring.
    #[inline]
    pub(crate) fn read(bytes: &[u8], count: usize) -> Iter<'_> {
        Iter {
            rest: bytes,
            alone: None,
            count,
        }
    }

    /// The frames as they are written to a ring, if they are not a byte string that stands alone.
    pub(crate) fn as_framed(&self) -> Option<&[u8]> {
        self.alone.is_none().then(|| self.rest())
    }

    /// The two parts of a byte string that stands alone.
    pub(crate) fn as_alone(&self) -> [&[u8]; 2] {
        [self.rest(), self.tail()]
    }

    /// The base-2 logarithm of the alignment of a byte string that stands alone.
    pub(crate) fn align_log2(&self) -> u32 {
        let tail = self.extra.as_ref().and_then(|extra| extra.tail.as_ref());
        tail.filter(|_| self.rest().is_empty())
            .map_or(0, |tail| tail.align_log2())
    }
}

/// The number of bytes in the first `count` frames.
fn skip(bytes: &[u8], count: usize) -> usize {
    let mut at = 0;
    for _ in 0..count {
        let (word, _) = bytes[at..].split_first_chunk().expect("frames are whole");
        at += WORD + read_word(*word).0;
    }
    at
}

/// The first frame, and the bytes after it. `None` if it is incomplete: in a worker, a task may have overwritten it.
#[inline]
fn first(bytes: &[u8]) -> Option<(Tag, &[u8], &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    let (len, tag) = read_word(*word);
    let (frame, rest) = rest.split_at_checked(len)?;
    let tag = if tag == Tag::Fault.bits() {
        Tag::Fault
    } else {
        Tag::Value
    };
    Some((tag, frame, rest))
}

/// See [`Frames::iter`].
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    rest: &'a [u8],
    alone: Option<Tag>,
    count: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (Tag, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        if let Some(tag) = self.alone {
            return Some((tag, self.rest));
        }
        let (tag, frame, rest) = first(self.rest)?;
        self.rest = rest;
        Some((tag, frame))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Iter<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(frames: &mut Frames, bytes: &[u8]) -> Option<Frames> {
        let pushed = frames.push(|out| {
            out.extend_from_slice(bytes);
            Ok::<_, ()>(None)
        });
        pushed.unwrap()
    }

    fn strings(frames: &Frames) -> Vec<Vec<u8>> {
        frames.iter().map(|(_, bytes)| bytes.to_vec()).collect()
    }

    #[test]
    fn byte_strings_come_back_as_pushed() {
        let mut frames = Frames::default();
        for text in ["one", "", "three"] {
            assert_eq!(push(&mut frames, text.as_bytes()), None);
        }
        assert_eq!(strings(&frames), [&b"one"[..], b"", b"three"]);
        let front = frames.take_front(2);
        assert_eq!(strings(&front), [&b"one"[..], b""]);
        assert_eq!(strings(&frames), [b"three"]);
        assert_eq!(strings(&frames.take_front(5)), [b"three"]);
        assert_eq!(frames.count(), 0);
    }

    #[test]
    fn an_error_leaves_nothing_behind() {
        let mut frames = Frames::default();
        push(&mut frames, b"one");
        let failed = frames.push(|out| {
            out.push(7);
            Err("no")
        });
        assert_eq!(failed, Err("no"));
        assert_eq!(strings(&frames), [b"one"]);
    }

    #[test]
    fn a_long_one_stands_alone() {
        let long = vec![7; FRAME_MAX + 1];
        for before in [0, 1] {
            let mut frames = Frames::default();
            for _ in 0..before {
                push(&mut frames, b"x");
            }
            let alone = push(&mut frames, &long).expect("it is too long");
            assert_eq!(strings(&alone), [&long[..]]);
            assert_eq!(alone.count(), 1);
            assert_eq!(frames.count(), before);
            // The same after the others were taken away.
            while frames.pop().is_some() {}
            assert!(push(&mut frames, &long).is_some());
            assert_eq!((frames.count(), frames.size()), (0, 0));
            assert_eq!(push(&mut frames, b"more"), None);
            assert_eq!(strings(&frames), [b"more"]);
        }
        let mut alone = Frames::alone(Tag::Fault, long.clone());
        assert_eq!(strings(&alone), [&long[..]]);
        let (tag, whole) = alone.pop().expect("it is there");
        assert_eq!((tag, &*whole), (Tag::Fault, &*long));
        assert!(matches!(whole, Arrived::Own(_)));
        assert!(alone.pop().is_none());
    }

    #[test]
    fn a_tail_follows_what_was_written() {
        let mut frames = Frames::default();
        push(&mut frames, b"one");
        let pushed = frames.push(|out| {
            out.extend_from_slice(b"head ");
            Ok::<_, ()>(Some(Buffer::from(b"and tail".to_vec()).into()))
        });
        let mut alone = pushed.unwrap().expect("a tail makes it stand alone");
        assert_eq!(alone.size(), 13);
        assert_eq!(alone.as_alone(), [&b"head "[..], b"and tail"]);
        let (tag, whole) = alone.pop().expect("it is there");
        assert_eq!((tag, &*whole), (Tag::Value, &b"head and tail"[..]));
        assert_eq!(frames.count(), 1);
    }

    #[test]
    fn frames_survive_encoding_as_bytes() {
        let mut some = Frames::default();
        for text in ["one", "", "three", "four"] {
            push(&mut some, text.as_bytes());
        }
        some.take_front(1);
        let numbers = |tag| Frames::alone(tag, vec![7_u64; FRAME_MAX]);
        let (long, fault) = (numbers(Tag::Value), numbers(Tag::Fault));
        let mut tailed = Frames::default();
        let tailed = tailed.push(|out| {
            out.extend_from_slice(b"head ");
            Ok::<_, ()>(Some(Buffer::from(vec![1_u16; 3]).into()))
        });
        let tailed = tailed.unwrap().expect("a tail makes it stand alone");
        for frames in [some, Frames::default(), long, fault, tailed] {
            let bytes = frames.to_bytes();
            let mut there = Frames::from_bytes(bytes.clone()).expect("it was written so");
            assert_eq!(there.count(), frames.count());
            assert_eq!(there.to_bytes(), bytes);
            assert_eq!(there.align_log2(), frames.align_log2());
            let mut here = frames.clone();
            while let Some((tag, bytes)) = here.pop() {
                let (other, others) = there.pop().expect("there are as many");
                assert_eq!((tag, &*bytes), (other, &*others));
            }
            assert!(there.pop().is_none());
            for cut in 1..bytes.len().min(20) {
                let cut = Frames::from_bytes(bytes[..bytes.len() - cut].to_vec());
                assert!(cut.is_none_or(|cut| cut.alone.is_some()));
            }
        }
        assert!(Frames::from_bytes(Vec::new()).is_none());
        assert!(Frames::from_bytes(vec![0xff; 20]).is_none());
    }

    #[test]
    fn each_part_keeps_the_attachments() {
        let attachment = |byte| Attachment::new(&[byte], Vec::new()).expect("it is short");
        let (bound, referred) = (attachment(1), attachment(2));
        let mut frames = Frames::default();
        for byte in 0..4 {
            let pushed = frames.push(|out| {
                out.push(byte);
                attach::refer_to(&referred);
                Ok::<_, ()>(None)
            });
            assert_eq!(pushed, Ok(None));
        }
        assert!(!attach::is_collecting());
        frames.bind(&bound);
        let first = frames.take_front(1);
        let second = frames.take_front_into(1, Frames::with_capacity(100));
        for part in [&first, &second, &frames] {
            assert!(part.has_attachments());
            assert!(part.bound().is_some_and(|one| Arc::ptr_eq(one, &bound)));
            let [held] = part.held() else {
                panic!("it is held once");
            };
            assert!(Arc::ptr_eq(held, &referred));
        }
        drop((first, second, frames));
        assert_eq!(Arc::strong_count(&referred), 1);
    }

    #[test]
    fn a_failed_push_holds_no_attachment() {
        let referred = Attachment::new(&[1], Vec::new()).expect("it is short");
        let mut frames = Frames::default();
        let failed = frames.push(|_| {
            attach::refer_to(&referred);
            Err("no")
        });
        assert_eq!(failed, Err("no"));
        assert!(!frames.has_attachments());
        assert_eq!(Arc::strong_count(&referred), 1);
    }

    #[test]
    fn fitting_counts_bytes() {
        let mut frames = Frames::default();
        for _ in 0..10 {
            push(&mut frames, b"12345678");
        }
        assert_eq!(frames.fitting(5, 1000), 5);
        assert_eq!(frames.fitting(20, 1000), 10);
        assert_eq!(frames.fitting(20, 40), 3);
        assert_eq!(frames.fitting(20, 1), 1);
    }
}
