//! The trait that `#[pool_task]` implements, so that a function can be called in another process.

use std::time::Duration;

use crate::buffer::Arrived;
use crate::codec::{CodecError, Tail};

/// A function that a pool can run in another process.
///
/// Only the attribute `#[pool_task]` implements it: the hidden members may change in any release.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a pool task",
    label = "not a pool task",
    note = "annotate the function with `#[pool_task]`",
    note = "a closure can't be a task: write a function, and pass what it captures as arguments"
)]
pub trait Task: Copy + Send + Sync + 'static {
    /// The arguments, as a tuple of owned types: `()` for none, `(A,)` for one, `(A, B)` for two.
    type Args;
    /// What the function returns.
    type Output;
    /// The name shown in every error about this task: `crate::module::function`, unless
    /// `#[pool_task(name = "…")]` gives another.
    const NAME: &'static str;

    /// How long an input may run, unless the call sets its own limit.
    #[doc(hidden)]
    const TIME_LIMIT: Option<Duration> = None;

    /// How many times an input is run again, unless the call sets its own number.
    #[doc(hidden)]
    const RETRIES: Option<u32> = None;

    /// Identifies the function in a worker: the name and the place in the source, since functions nested
    /// in different functions may have the same name.
    #[doc(hidden)]
    const ID: &'static str;

    /// A number that identifies the function, for quick look-ups.
    #[doc(hidden)]
    fn number() -> u32;

    /// How the argument for each parameter is encoded, as a tuple of [markers](crate::param).
    #[doc(hidden)]
    type Params;

    /// Appends the encoded arguments to `out`. A long block at the end is not appended but returned; it
    /// must follow the appended bytes.
    #[doc(hidden)]
    fn encode_args(args: Self::Args, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError>;

    /// Decodes the result that the worker sent back.
    #[doc(hidden)]
    fn decode_output(bytes: Arrived<'_>) -> Result<Self::Output, CodecError>;
}
