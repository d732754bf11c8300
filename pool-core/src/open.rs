//! Which arguments of a call are open: all of the task's, or those that [`partial`](crate::Call::partial) has left.

use std::fmt;
use std::marker::PhantomData;

use pool_worker::param::{EndsWith, GivesAll, Lends, LendsAll, Param};
use pool_worker::{CodecError, Tail, Task};

/// What appends an encoded input. A long block at its end is given back, to follow what was appended.
pub(crate) type Encode<X> = fn(X, &mut Vec<u8>) -> Encoded;

/// What comes of encoding an input.
pub(crate) type Encoded = Result<Option<Tail>, CodecError>;

/// The arguments that a call of the task `T` still takes: all, for the task itself, or what `partial` has
/// [`Left`].
///
/// Not meant to be implemented elsewhere.
pub trait Open<T> {
    /// They, as a tuple.
    type Args;
    #[doc(hidden)]
    type Params;
    #[doc(hidden)]
    fn encode(args: Self::Args, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError>;
}

impl<T: Task> Open<T> for T {
    type Args = T::Args;
    type Params = T::Params;

    #[inline]
    fn encode(args: T::Args, out: &mut Vec<u8>) -> Encoded {
        T::encode_args(args, out)
    }
}

/// The last arguments of the task `T`, when the first ones are bound: `A`, a tuple.
pub struct Left<T, A, P>(PhantomData<T>, PhantomData<A>, PhantomData<P>);

impl<T, A, P> fmt::Debug for Left<T, A, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Left")
    }
}

impl<T, A: GivesAll<P>, P> Open<T> for Left<T, A, P> {
    type Args = A;
    type Params = P;

    #[inline]
    fn encode(args: A, out: &mut Vec<u8>) -> Encoded {
        args.encode(out)
    }
}

/// Argument tuples of one element: what `map` and `imap` can fill from one input.
///
/// Implemented for `(A,)`; not meant to be implemented elsewhere.
#[diagnostic::on_unimplemented(
    message = "`{T}` does not take exactly one argument here: it takes `{Self}`",
    label = "`map` and `imap` need a task of one argument",
    note = "use `starmap` or `istarmap`, with a tuple of arguments for each input",
    note = "or bind the first arguments for all inputs: `pool.task(f).partial((a, b))`"
)]
pub trait OneArgument<T> {
    /// The argument.
    type Argument;
    #[doc(hidden)]
    fn pack(argument: Self::Argument) -> Self;
}

// Without the bound the compiler would advise to make a tuple of the task.
#[diagnostic::do_not_recommend]
impl<T: Task<Args: EndsWith<A>>, A> OneArgument<T> for (A,) {
    type Argument = A;
    fn pack(argument: A) -> Self {
        (argument,)
    }
}

/// The same of what is lent.
#[diagnostic::on_unimplemented(
    message = "`{T}` does not take exactly one argument here",
    label = "`map` and `imap` need a task of one argument",
    note = "use `starmap` or `istarmap`, with a tuple of references for each input",
    note = "or bind the first arguments for all inputs: `pool.task(f).partial((a, b))`"
)]
pub trait OneParam<T> {
    #[doc(hidden)]
    type Param: Param<Lent = Self::Lent>;
    /// What is lent.
    type Lent: ?Sized;
}

#[diagnostic::do_not_recommend]
impl<T, P: Param> OneParam<T> for (P,) {
    type Param = P;
    type Lent = P::Lent;
}

/// Appends what is lent as the only argument.
#[inline]
pub(crate) fn lend_one<T, P: OneParam<T>, S: Lends<P::Lent>>(
    input: S,
    out: &mut Vec<u8>,
) -> Encoded {
    let start = out.len();
    P::Param::lend_last(input.lent(), out, start)
}

/// Appends what is lent as all arguments.
#[inline]
pub(crate) fn lend_all<P, S: LendsAll<P>>(input: S, out: &mut Vec<u8>) -> Encoded {
    input.encode(out)
}

/// Appends the only argument.
#[inline]
pub(crate) fn give_one<T, O: Open<T>>(
    argument: <O::Args as OneArgument<T>>::Argument,
    out: &mut Vec<u8>,
) -> Encoded
where
    O::Args: OneArgument<T>,
{
    O::encode(OneArgument::pack(argument), out)
}
