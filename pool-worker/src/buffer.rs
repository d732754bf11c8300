//! Bytes that can become a vector of numbers without a copy.
//!
//! A vector frees its memory with the alignment that it was allocated with, so a `Vec<u8>` can't become a `Vec<f64>`,
//! even if its bytes happen to be aligned. A [`Buffer`] is allocated with the alignment of the numbers that it will
//! hold. The code that assembles a long value knows that alignment before the first byte arrives.

use std::alloc::{self, Layout};
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::slice;

use crate::codec::{Primitive, copied};
use crate::copy;

/// Buffers grow by multiples of this: the size of the largest number.
const UNIT: usize = size_of::<u128>();

/// The largest alignment of numbers, as a power of two.
pub(crate) const ALIGN_MAX: u32 = align_of::<u128>().ilog2();

/// Owned bytes, aligned for numbers of one size.
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// The allocated size in bytes. If it is 0, nothing is allocated.
    capacity: usize,
    /// The alignment of the allocation.
    align: usize,
}

// SAFETY: it is the only owner of its memory, as a vector is.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared buffer can only be read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// An empty buffer for numbers whose alignment is 2 to the power of `log2`.
    pub(crate) fn aligned(log2: u32) -> Buffer {
        Buffer {
            start: NonNull::dangling(),
            len: 0,
            capacity: 0,
            align: 1 << log2.min(ALIGN_MAX),
        }
    }

    /// The base-2 logarithm of its alignment.
    pub(crate) fn align_log2(&self) -> u32 {
        self.align.ilog2()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes room for `additional` more bytes, in large pages where that pays off. Returns false if there is not enough
    /// memory.
    pub(crate) fn reserve(&mut self, additional: usize) -> bool {
        let Some(needed) = self.len.checked_add(additional) else {
            return false;
        };
        needed <= self.capacity || self.grow(needed)
    }

    /// Grows to the needed size at first; later, by at least half of the current capacity.
    #[cold]
    fn grow(&mut self, needed: usize) -> bool {
        let wanted = needed.max(self.capacity.saturating_add(self.capacity / 2));
        let wanted = wanted.checked_next_multiple_of(UNIT);
        let Some(layout) = wanted.and_then(|size| Layout::from_size_align(size, self.align).ok())
        else {
            return false;
        };
        let start = match self.layout() {
            // SAFETY: `needed` exceeds the capacity, so the size is not 0.
            None => unsafe { alloc::alloc(layout) },
            // SAFETY: the memory was allocated with `old`, and the new size comes from a valid layout.
            Some(old) => unsafe { alloc::realloc(self.start.as_ptr(), old, layout.size()) },
        };
        let Some(start) = NonNull::new(start) else {
            return false;
        };
        self.start = start;
        self.capacity = layout.size();
        // SAFETY: this memory was just allocated.
        unsafe { copy::advise_large(start.as_ptr(), self.capacity) };
        true
    }

    fn layout(&self) -> Option<Layout> {
        let layout = Layout::from_size_align(self.capacity, self.align).ok();
        layout.filter(|layout| layout.size() > 0)
    }

    /// Appends bytes, for which there must be room. Large buffers don't fit into the caches, so they are written past
    /// them.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let past = self.capacity >= copy::HUGE_MIN;
        let spare = self.spare(bytes.len()).as_mut_ptr().cast::<u8>();
        if past {
            // SAFETY: there is room for them, in memory that only this process has.
            unsafe { copy::to_other(bytes.as_ptr(), spare, bytes.len()) };
        } else {
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), spare, bytes.len()) };
        }
        // SAFETY: all of them were just written.
        unsafe { self.wrote(bytes.len()) };
    }

    /// The memory for the next `len` bytes, for which there must be room.
    pub(crate) fn spare(&mut self, len: usize) -> &mut [MaybeUninit<u8>] {
        assert!(len <= self.capacity - self.len, "there is room");
        // SAFETY: within what was allocated.
        let start = unsafe { self.start.as_ptr().add(self.len) };
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(start.cast(), len) }
    }

    /// Adds `len` bytes that were written to the spare memory.
    ///
    /// # Safety
    ///
    /// The caller has written them to [`spare`](Buffer::spare).
    pub(crate) unsafe fn wrote(&mut self, len: usize) {
        self.len += len;
    }

    /// Turns the bytes into numbers, without a copy if they were allocated for such numbers. A partial number at the
    /// end is dropped.
    pub(crate) fn into_vec<P: Primitive>(self) -> Vec<P> {
        const { assert!(size_of::<P>() > 0) };
        let (len, capacity) = (self.len / size_of::<P>(), self.capacity / size_of::<P>());
        if self.align != align_of::<P>() || capacity * size_of::<P>() != self.capacity {
            return copied(&self[..len * size_of::<P>()]);
        }
        let this = ManuallyDrop::new(self);
        // SAFETY: it was allocated like a vector with room for `capacity` numbers; `len` of them were written, and any
        // bytes are valid numbers.
        unsafe { Vec::from_raw_parts(this.start.as_ptr().cast(), len, capacity) }
    }
}

impl<P: Primitive> From<Vec<P>> for Buffer {
    #[inline]
    fn from(numbers: Vec<P>) -> Buffer {
        const { assert!(size_of::<P>() > 0) };
        let mut numbers = ManuallyDrop::new(numbers);
        Buffer {
            start: NonNull::new(numbers.as_mut_ptr().cast()).unwrap_or(NonNull::dangling()),
            len: numbers.len() * size_of::<P>(),
            capacity: numbers.capacity() * size_of::<P>(),
            align: align_of::<P>(),
        }
    }
}

impl Default for Buffer {
    #[inline]
    fn default() -> Buffer {
        Buffer::aligned(0)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes were written.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = self.layout() {
            // SAFETY: it was allocated with this layout, or by a vector with the same layout.
            unsafe { alloc::dealloc(self.start.as_ptr(), layout) };
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Buffer").field(&self.len).finish()
    }
}

/// An encoded value that has arrived.
#[derive(Debug)]
pub enum Arrived<'a> {
    /// In memory that holds other values, too.
    Lent(&'a [u8]),
    /// In its own buffer.
    Own(Buffer),
}

impl Deref for Arrived<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Arrived::Lent(bytes) => bytes,
            Arrived::Own(buffer) => buffer,
        }
    }
}

impl<'a> From<&'a [u8]> for Arrived<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Arrived::Lent(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(log2: u32, bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::aligned(log2);
        for piece in bytes.chunks(100) {
            assert!(buffer.reserve(piece.len()));
            buffer.append(piece);
        }
        buffer
    }

    #[test]
    fn bytes_become_numbers_in_place_or_by_a_copy() {
        fn check<P: Primitive + PartialEq + std::fmt::Debug>(numbers: Vec<P>) {
            let bytes: Vec<u8> = bytemuck::cast_slice(&numbers).to_vec();
            for log2 in 0..=ALIGN_MAX {
                let buffer = filled(log2, &bytes);
                assert_eq!(*buffer, *bytes);
                let at = buffer.as_ptr();
                let vec = buffer.into_vec::<P>();
                assert_eq!(vec, numbers);
                let stayed = vec.as_ptr().cast() == at;
                assert_eq!(stayed, align_of::<P>() == 1 << log2, "{log2}");
                let mut back = vec;
                back.extend_from_slice(&numbers);
                back.shrink_to_fit();
            }
            let at = numbers.as_ptr();
            let back = Buffer::from(numbers).into_vec::<P>();
            assert_eq!(back.as_ptr(), at);
        }
        check::<u8>((0..1001).map(|x| x as u8).collect());
        check::<i16>((0..1001).collect());
        check::<f32>((0..1001_u16).map(f32::from).collect());
        check::<u64>((0..1001).collect());
        check::<i128>((0..1001).collect());
    }

    #[test]
    fn a_partial_number_is_dropped() {
        assert_eq!(filled(3, &[1; 17]).into_vec::<u64>().len(), 2);
        assert_eq!(filled(0, &[1; 17]).into_vec::<u64>().len(), 2);
        assert_eq!(Buffer::from(vec![0_u8; 3]).into_vec::<u8>().len(), 3);
        assert!(Buffer::default().into_vec::<u64>().is_empty());
    }

    #[test]
    fn reserve_fails_without_enough_memory() {
        let mut buffer = filled(3, &[7; 20]);
        assert!(!buffer.reserve(usize::MAX));
        assert!(!buffer.reserve(isize::MAX as usize));
        assert_eq!(*buffer, [7; 20]);
    }
}
