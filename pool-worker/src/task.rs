//! What makes a function callable in another process: the trait that `#[pool_task]` implements.

use std::time::Duration;

use crate::buffer::Arrived;
use crate::codec::{CodecError, Tail};

/// A function that a pool can run in another process.
///
/// Implemented by the attribute `#[pool_task]`, and by nothing else: the hidden members may change
/// in any release.
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
    /// The name of the function, `crate::module::function` unless `#[pool_task(name = "…")]` says
    /// otherwise. It stands in every error about this task.
    const NAME: &'static str;

    /// How long an input may run, if the call does not say.
    #[doc(hidden)]
    const TIME_LIMIT: Option<Duration> = None;

    /// How often an input is run again, if the call does not say.
    #[doc(hidden)]
    const RETRIES: Option<u32> = None;

    /// What finds the function in a worker: the name and the place in the source, since two
    /// functions nested in two others may bear one name.
    #[doc(hidden)]
    const ID: &'static str;

    /// The same in a form that is quick to look up.
    #[doc(hidden)]
    fn number() -> u32;

    /// How each parameter travels, as a tuple of [markers](crate::param).
    #[doc(hidden)]
    type Params;

    /// Appends the encoded arguments to `out`. A long block at their end is given back instead, to
    /// follow what was appended.
    #[doc(hidden)]
    fn encode_args(args: Self::Args, out: &mut Vec<u8>) -> Result<Option<Tail>, CodecError>;

    /// Decodes what the worker sent back.
    #[doc(hidden)]
    fn decode_output(bytes: Arrived<'_>) -> Result<Self::Output, CodecError>;
}
