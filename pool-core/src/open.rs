//! The open arguments of a call: all of the task's, or those that [`partial`](crate::Call::partial) has left.

use std::fmt;
use std::marker::PhantomData;

use pool_worker::param::{EndsWith, GivesAll, Lends, LendsAll, Param};
use pool_worker::{CodecError, Tail, Task};

/// Appends an encoded input. Returns a long block at its end instead of appending it; it must follow.
pub(crate) type Encode<X> = fn(X, &mut Vec<u8>) -> Encoded;

/// The outcome of encoding an input.
pub(crate) type Encoded = Result<Option<Tail>, CodecError>;

/// The arguments that a call of the task `T` still takes: all of them, for the task itself; or, after `partial`, those that
/// are [`Left`].
///
/// Not meant to be implemented elsewhere.
pub trait Open<T> {
    /// The arguments, as a tuple.
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

/// The last arguments of the task `T`, after the first ones were bound: `A`, a tuple.
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

/// A task of one argument, as [`map`](crate::Pool::map) and [`imap`](crate::Pool::imap) need it; or a task `T` of which
/// [`partial`](crate::Call::partial) has left one argument open.
///
/// Every `T: Task<Args = (A,)>` implements it, with `A` as its argument. Not meant to be implemented elsewhere.
///
/// # Examples
///
/// A function that takes any task of one argument:
///
/// ```
/// use pool_core::{Error, Pool, Task, UnaryTask, pool_task};
///
/// fn first<T: Task + UnaryTask>(pool: &Pool, task: T, input: T::Argument) -> Result<T::Output, Error> {
///     Ok(pool.map(task, [input])?.remove(0))
/// }
///
/// #[pool_task]
/// fn square(x: u64) -> u64 { x * x }
///
/// # fn main() -> Result<(), Error> {
/// assert_eq!(first(&Pool::with_processes(1)?, square, 3)?, 9);
/// # Ok(())
/// # }
/// ```
pub trait UnaryTask<T = Self>: Open<T> {
    /// The argument.
    type Argument;
    #[doc(hidden)]
    fn encode_one(argument: Self::Argument, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError>;
}

impl<T, O> UnaryTask<T> for O
where
    O: Open<T>,
    O::Args: OneArgument<T>,
{
    type Argument = <O::Args as OneArgument<T>>::Argument;

    #[inline]
    fn encode_one(argument: Self::Argument, out: &mut Vec<u8>) -> Encoded {
        O::encode(OneArgument::pack(argument), out)
    }
}

/// The same for a call that takes references, as [`ByRef::map`](crate::ByRef::map) and [`ByRef::imap`](crate::ByRef::imap)
/// need it.
pub trait UnaryByRef<T = Self>: Open<T> {
    /// What is passed by reference: `str` for a parameter `String` or `&str`.
    type Lent: ?Sized;
    #[doc(hidden)]
    fn lend_one<S: Lends<Self::Lent>>(
        input: S,
        out: &mut Vec<u8>,
    ) -> Result<Option<Tail>, CodecError>;
}

impl<T, O> UnaryByRef<T> for O
where
    O: Open<T>,
    O::Params: OneParam<T>,
{
    type Lent = <O::Params as OneParam<T>>::Lent;

    #[inline]
    fn lend_one<S: Lends<Self::Lent>>(input: S, out: &mut Vec<u8>) -> Encoded {
        let start = out.len();
        <O::Params as OneParam<T>>::Param::lend_last(input.lent(), out, start)
    }
}

/// Tuples of one argument.
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

// Without the bound, the compiler would advise making a tuple of the task.
#[diagnostic::do_not_recommend]
impl<T: Task<Args: EndsWith<A>>, A> OneArgument<T> for (A,) {
    type Argument = A;
    fn pack(argument: A) -> Self {
        (argument,)
    }
}

/// The same for references.
#[diagnostic::on_unimplemented(
    message = "`{T}` does not take exactly one argument here",
    label = "`map` and `imap` need a task of one argument",
    note = "use `starmap` or `istarmap`, with a tuple of references for each input",
    note = "or bind the first arguments for all inputs: `pool.task(f).partial((a, b))`"
)]
pub trait OneParam<T> {
    #[doc(hidden)]
    type Param: Param<Lent = Self::Lent>;
    /// What is passed by reference.
    type Lent: ?Sized;
}

#[diagnostic::do_not_recommend]
impl<T, P: Param> OneParam<T> for (P,) {
    type Param = P;
    type Lent = P::Lent;
}

/// Appends references as all arguments.
#[inline]
pub(crate) fn lend_all<P, S: LendsAll<P>>(input: S, out: &mut Vec<u8>) -> Encoded {
    input.encode(out)
}
