//! Arguments that the caller lends or binds: what may be lent for each parameter, and how it is encoded in place.
//!
//! `#[pool_task]` emits one of these markers for each parameter, depending on how its type is spelled. A lent value is
//! encoded to the same bytes as `Task::encode_args` encodes an owned one.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;

use crate::codec::{
    CodecError, Primitive, Tail, bind_block, encode, encode_block, encode_last_block,
    encode_msgpack, give_last_block, lend_last_block,
};

/// How the argument for one parameter is encoded.
pub trait Param {
    /// The type that the caller passes by value.
    type Owned: Borrow<Self::Lent>;
    /// The type that the caller lends.
    type Lent: ?Sized + 'static;

    /// Appends a lent argument to `out`, in which the input begins at `start`.
    ///
    /// # Errors
    ///
    /// If it can't be encoded.
    fn encode(lent: &Self::Lent, out: &mut Vec<u8>, start: usize) -> Result<(), CodecError>;

    /// The same for a bound argument. Returns bytes that must follow the appended ones and need not be copied.
    ///
    /// # Errors
    ///
    /// As [`encode`](Param::encode).
    fn bind<'a>(
        lent: &'a Self::Lent,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<&'a [u8], CodecError> {
        Self::encode(lent, out, start)?;
        Ok(&[])
    }

    /// The same for the last argument. A long block is not appended but returned; it must follow the appended bytes.
    ///
    /// # Errors
    ///
    /// As [`encode`](Param::encode).
    fn lend_last(
        lent: &Self::Lent,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<Tail>, CodecError> {
        Self::encode(lent, out, start)?;
        Ok(None)
    }

    /// The same for the last argument, passed by value.
    ///
    /// # Errors
    ///
    /// As [`encode`](Param::encode).
    fn give_last(
        owned: Self::Owned,
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<Tail>, CodecError> {
        Self::lend_last(owned.borrow(), out, start)
    }
}

macro_rules! markers {
    ($($(#[$doc:meta])* $name:ident<$($param:ident $(: $bound:tt)?),*>;)*) => {$(
        $(#[$doc])*
        pub struct $name<$($param $(: $bound Sized)?),*>($(PhantomData<$param>),*);

        impl<$($param $(: $bound Sized)?),*> fmt::Debug for $name<$($param),*> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

markers! {
    /// `T`, `&T`: lent as a `T`.
    Plain<T>;
    /// `&Path` and similar types: lent as they are.
    Unsized<U: ?>;
    /// `Vec<T>`, `&[T]`: lent as a `[T]`.
    Slice<T>;
    /// As `Plain`, for `#[pool_task(format = "msgpack")]`.
    Described<T>;
    /// As `Slice`, for `#[pool_task(format = "msgpack")]`.
    DescribedSlice<T>;
    /// `Vec<f64>`, `&[f64]`, `Box<[f64]>`: lent as a `[f64]`. `V` owns the numbers, and `P` is their type.
    Block<V, P>;
    /// `[f64; 8]`: lent as it is.
    Array<A>;
}

impl<T: Serialize + 'static> Param for Plain<T> {
    type Owned = T;
    type Lent = T;

    #[inline]
    fn encode(lent: &T, out: &mut Vec<u8>, _: usize) -> Result<(), CodecError> {
        encode(lent, out)
    }
}

impl<U: ToOwned + Serialize + ?Sized + 'static> Param for Unsized<U> {
    type Owned = U::Owned;
    type Lent = U;

    #[inline]
    fn encode(lent: &U, out: &mut Vec<u8>, _: usize) -> Result<(), CodecError> {
        encode(lent, out)
    }
}

impl<T: Serialize + 'static> Param for Slice<T> {
    type Owned = Vec<T>;
    type Lent = [T];

    #[inline]
    fn encode(lent: &[T], out: &mut Vec<u8>, _: usize) -> Result<(), CodecError> {
        encode(lent, out)
    }
}

impl<T: Serialize + 'static> Param for Described<T> {
    type Owned = T;
    type Lent = T;

    fn encode(lent: &T, out: &mut Vec<u8>, _: usize) -> Result<(), CodecError> {
        encode_msgpack(lent, out)
    }
}

impl<T: Serialize + 'static> Param for DescribedSlice<T> {
    type Owned = Vec<T>;
    type Lent = [T];

    fn encode(lent: &[T], out: &mut Vec<u8>, _: usize) -> Result<(), CodecError> {
        encode_msgpack(lent, out)
    }
}

impl<V, P: Primitive> Param for Block<V, P>
where
    V: Borrow<[P]> + AsRef<[P]> + Into<Vec<P>>,
{
    type Owned = V;
    type Lent = [P];

    #[inline]
    fn encode(lent: &[P], out: &mut Vec<u8>, start: usize) -> Result<(), CodecError> {
        encode_block(lent, out, start)
    }

    fn bind<'a>(lent: &'a [P], out: &mut Vec<u8>, start: usize) -> Result<&'a [u8], CodecError> {
        bind_block(lent, out, start)
    }

    #[inline]
    fn lend_last(lent: &[P], out: &mut Vec<u8>, start: usize) -> Result<Option<Tail>, CodecError> {
        Ok(lend_last_block(lent, out, start))
    }

    #[inline]
    fn give_last(owned: V, out: &mut Vec<u8>, start: usize) -> Result<Option<Tail>, CodecError> {
        Ok(give_last_block(owned, out, start))
    }
}

impl<P: Primitive, const N: usize> Param for Array<[P; N]> {
    type Owned = [P; N];
    type Lent = [P; N];

    #[inline]
    fn encode(lent: &[P; N], out: &mut Vec<u8>, start: usize) -> Result<(), CodecError> {
        encode_block(lent, out, start)
    }

    #[inline]
    fn lend_last(
        lent: &[P; N],
        out: &mut Vec<u8>,
        start: usize,
    ) -> Result<Option<Tail>, CodecError> {
        encode_last_block(lent, out, start);
        Ok(None)
    }
}

/// A reference that lends a `B`: to a `B`, or to a type that borrows as one. For example, a `&String` lends a `str`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not lend a `{B}`",
    label = "expected a reference to a `{B}`, or to a type that implements `Borrow<{B}>`"
)]
pub trait Lends<B: ?Sized> {
    /// The value that is lent.
    #[doc(hidden)]
    fn lent(&self) -> &B;
}

#[diagnostic::do_not_recommend]
impl<S: Borrow<B> + ?Sized, B: ?Sized> Lends<B> for &S {
    #[inline]
    fn lent(&self) -> &B {
        (*self).borrow()
    }
}

/// A tuple of references, or a reference to a tuple, that lends an argument for every parameter.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not lend the arguments of this task",
    label = "expected a tuple of references, one for each argument that is not bound, in order"
)]
pub trait LendsAll<Params> {
    /// Encodes all arguments. A long block at the end is not appended but returned; it must follow the appended bytes.
    #[doc(hidden)]
    fn encode(&self, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError>;
}

/// A tuple of values with an argument for every parameter.
pub trait GivesAll<Params> {
    /// Encodes all arguments. A long block at the end is not appended but returned; it must follow the appended bytes.
    ///
    /// # Errors
    ///
    /// If one can't be encoded.
    fn encode(self, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError>;
}

/// A tuple whose last element is an `A`.
pub trait EndsWith<A> {}

/// A tuple with the first of these arguments.
#[diagnostic::on_unimplemented(
    message = "`partial` can't bind `{Self}`: the arguments that are not bound yet are `{Args}`",
    label = "expected a tuple with the first arguments of `{Args}`",
    note = "bind what the caller passes by value: a `String` for `&str`, a `Vec<T>` for `&[T]`; or bind references: `.by_ref().partial(...)`",
    note = "a `Shared<T>` can be bound only if the parameter of the task is a `Shared<T>`"
)]
pub trait Binds<Args, Params> {
    /// The arguments that are left.
    type Args;
    /// The markers of the parameters that are left.
    #[doc(hidden)]
    type Params;

    /// Appends the arguments to `out`, which contains the arguments that were bound before. Returns bytes that must
    /// follow.
    #[doc(hidden)]
    fn encode(&self, out: &mut Vec<u8>) -> Result<&[u8], CodecError>;
}

/// A tuple of references that lends the first of these arguments.
#[diagnostic::on_unimplemented(
    message = "`partial` can't bind `{Self}`: the arguments that are not bound yet are `{Args}`",
    label = "expected a tuple of references to the first arguments of `{Args}`"
)]
pub trait BindsLent<Args, Params> {
    /// The arguments that are left.
    type Args;
    /// The markers of the parameters that are left.
    #[doc(hidden)]
    type Params;

    /// Appends the arguments to `out`, which contains the arguments that were bound before. Returns bytes that must
    /// follow.
    #[doc(hidden)]
    fn encode(&self, out: &mut Vec<u8>) -> Result<&[u8], CodecError>;
}

/// Implements the traits for whole tuples of one length. The last element is separate, since it is encoded differently.
macro_rules! whole {
    ($($s:ident $p:ident $at:tt),* ; $last_s:ident $last_p:ident $last:tt) => {
        #[diagnostic::do_not_recommend]
        impl<$($s, $p,)* $last_s, $last_p> LendsAll<($($p,)* $last_p,)> for ($($s,)* $last_s,)
        where
            $($p: Param, $s: Lends<$p::Lent>,)*
            $last_p: Param,
            $last_s: Lends<$last_p::Lent>,
        {
            #[inline]
            fn encode(&self, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError> {
                let start = out.len();
                $($p::encode(self.$at.lent(), out, start)?;)*
                $last_p::lend_last(self.$last.lent(), out, start)
            }
        }

        #[diagnostic::do_not_recommend]
        impl<$($s, $p,)* $last_s, $last_p> LendsAll<($($p,)* $last_p,)> for &($($s,)* $last_s,)
        where
            $($p: Param, $s: Borrow<$p::Lent>,)*
            $last_p: Param,
            $last_s: Borrow<$last_p::Lent>,
        {
            #[inline]
            fn encode(&self, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError> {
                let start = out.len();
                $($p::encode(self.$at.borrow(), out, start)?;)*
                $last_p::lend_last(self.$last.borrow(), out, start)
            }
        }

        impl<$($s,)* $last_s> EndsWith<$last_s> for ($($s,)* $last_s,) {}

        impl<$($s, $p,)* $last_s, $last_p> GivesAll<($($p,)* $last_p,)> for ($($s,)* $last_s,)
        where
            $($p: Param<Owned = $s>, $s: Borrow<$p::Lent>,)*
            $last_p: Param<Owned = $last_s>,
            $last_s: Borrow<$last_p::Lent>,
        {
            #[inline]
            fn encode(self, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError> {
                let start = out.len();
                $($p::encode(self.$at.borrow(), out, start)?;)*
                $last_p::give_last(self.$last, out, start)
            }
        }
    };
}

/// Implements `Binds` for tuples of one length whose first elements are bound.
macro_rules! bound {
    ($($s:ident $p:ident $at:tt),* ; $($left_s:ident $left_p:ident),*) => {
        #[diagnostic::do_not_recommend]
        impl<$($s, $p,)* $($left_s, $left_p,)*>
            Binds<($($s,)* $($left_s,)*), ($($p,)* $($left_p,)*)> for ($($s,)*)
        where
            $($p: Param<Owned = $s>, $s: Borrow<$p::Lent>,)*
        {
            type Args = ($($left_s,)*);
            type Params = ($($left_p,)*);

            fn encode(&self, _out: &mut Vec<u8>) -> Result<&[u8], CodecError> {
                let mut _rest: &[u8] = &[];
                $(
                    _out.extend_from_slice(_rest);
                    _rest = $p::bind(self.$at.borrow(), _out, 0)?;
                )*
                Ok(_rest)
            }
        }
    };
}

/// Implements `BindsLent` in the same way.
macro_rules! bound_lent {
    ($($s:ident $p:ident $a:ident $at:tt),* ; $($left_a:ident $left_p:ident),*) => {
        #[diagnostic::do_not_recommend]
        impl<$($s, $p, $a,)* $($left_a, $left_p,)*>
            BindsLent<($($a,)* $($left_a,)*), ($($p,)* $($left_p,)*)> for ($($s,)*)
        where
            $($p: Param, $s: Lends<$p::Lent>,)*
        {
            type Args = ($($left_a,)*);
            type Params = ($($left_p,)*);

            fn encode(&self, _out: &mut Vec<u8>) -> Result<&[u8], CodecError> {
                let mut _rest: &[u8] = &[];
                $(
                    _out.extend_from_slice(_rest);
                    _rest = $p::bind(self.$at.lent(), _out, 0)?;
                )*
                Ok(_rest)
            }
        }
    };
}

/// Calls the macros for every number of arguments, and every number of bound ones.
macro_rules! every_length {
    ($($s:ident $p:ident $a:ident $at:tt),*) => {
        every_length!(@lengths [] $([$s $p $a $at])*);
    };
    (@lengths [$($done:tt)*]) => {
        every_length!(@splits [] $($done)*);
    };
    (@lengths [$($done:tt)*] $next:tt $($rest:tt)*) => {
        every_length!(@splits [] $($done)*);
        every_length!(@whole [] $($done)* $next);
        every_length!(@lengths [$($done)* $next] $($rest)*);
    };
    (@whole [$([$s:ident $p:ident $a:ident $at:tt])*] [$last_s:ident $last_p:ident $last_a:ident $last:tt]) => {
        whole!($($s $p $at),* ; $last_s $last_p $last);
    };
    (@whole [$($front:tt)*] $next:tt $($rest:tt)+) => {
        every_length!(@whole [$($front)* $next] $($rest)+);
    };
    (@splits [$([$s:ident $p:ident $a:ident $at:tt])*] $([$left_s:ident $left_p:ident $left_a:ident $left_at:tt])*) => {
        bound!($($s $p $at),* ; $($left_s $left_p),*);
        bound_lent!($($s $p $a $at),* ; $($left_a $left_p),*);
        every_length!(@more [$([$s $p $a $at])*] $([$left_s $left_p $left_a $left_at])*);
    };
    (@more [$($front:tt)*]) => {};
    (@more [$($front:tt)*] $next:tt $($rest:tt)*) => {
        every_length!(@splits [$($front)* $next] $($rest)*);
    };
}

every_length! {
    S0 P0 A0 0, S1 P1 A1 1, S2 P2 A2 2, S3 P3 A3 3, S4 P4 A4 4, S5 P5 A5 5,
    S6 P6 A6 6, S7 P7 A7 7, S8 P8 A8 8, S9 P9 A9 9, S10 P10 A10 10, S11 P11 A11 11
}

#[diagnostic::do_not_recommend]
impl LendsAll<()> for () {
    fn encode(&self, _: &mut Vec<u8>) -> Result<Option<Tail>, CodecError> {
        Ok(None)
    }
}

#[diagnostic::do_not_recommend]
impl LendsAll<()> for &() {
    fn encode(&self, _: &mut Vec<u8>) -> Result<Option<Tail>, CodecError> {
        Ok(None)
    }
}

impl GivesAll<()> for () {
    fn encode(self, _: &mut Vec<u8>) -> Result<Option<Tail>, CodecError> {
        Ok(None)
    }
}
