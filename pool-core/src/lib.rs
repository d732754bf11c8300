//! A process pool: Python's `multiprocessing.Pool` for Rust, in which a crash costs one task and nothing else.
//!
//! ```
//! use pool_core::{Error, Pool, pool_task};
//!
//! #[pool_task]
//! fn square(x: u64) -> u64 {
//!     x * x
//! }
//!
//! fn main() -> Result<(), Error> {
//!     let pool = Pool::new()?;                       // one worker process for each CPU
//!     assert_eq!(pool.map(square, 0..5)?, [0, 1, 4, 9, 16]);
//!     Ok(())
//! }
//! ```
//!
//! - **What it is.** Workers are this same program, started again. They never run `main`; they run functions that
//!   [`#[pool_task]`](macro@pool_task) has registered. There is nothing to set up, also not in tests, doctests and libraries.
//! - **What it needs.** Linux 5.3 or later, with `/proc`; Rust 1.89 or later.
//! - **What it promises.** Each input gets exactly one outcome. A panic, a segfault, an `exit`, a passed limit of time or memory is an
//!   [`Error`] of the one input that it happened to, and another worker takes over. Nothing runs twice, unless you allow
//!   [retries](Call::retries). Nothing hangs, and nothing is left behind. Nothing of the library prints.
//! - **Its limits.** Tasks are plain functions: no closures, methods or generics. Arguments and results are copied, through serde.
//!   Workers have the rights of this program, unless they are [sandboxed](guide::sandbox).
//! - **Its features** (of this crate, in `Cargo.toml`). `futures`: results and messages as streams. `tracing`: what tasks
//!   log reaches [this program](guide::output#where-do-log-messages-go). None is on by default.
//!
//! **New here?** The [`guide`] begins with the [first steps](guide::first_steps), has [recipes](guide::recipes), and says
//! [what is what](guide::coming_from) for those who come from Python, rayon or Ray. The
//! [examples](https://github.com/pool-rs/pool/blob/main/examples/README.md) are whole programs to copy.
//!
//! # Where to look
//!
//! | I want to | look at |
//! |---|---|
//! | make a function a task | [`macro@pool_task`] |
//! | run one, many, or an endless number of inputs | [`Pool`]: [`apply`](Pool::apply), [`map`](Pool::map), [`imap`](Pool::imap), [`imap_unordered`](Pool::imap_unordered), [`starmap`](Pool::starmap) |
//! | go on, and ask later; `.await`; cancel; callbacks | [`apply_async`](Pool::apply_async), [`AsyncResult`], [`as_completed`] |
//! | set options for one call: time limit, retries, chunk size, priority | [`Pool::task`] gives a [`Call`] |
//! | keep an outcome for each input | [`Call::map_results`] |
//! | know what went wrong | [`Error`], [its chapter](guide::errors) |
//! | return errors from tasks | [`TaskError`] |
//! | avoid copies of large arguments | [`Call::by_ref`], [`Call::partial`], [`Shared`], [its chapter](guide::data) |
//! | set up a pool: size, limits, what runs first in each worker | [`Pool::builder`] gives a [`PoolBuilder`] |
//! | run code that reads hostile data | [`PoolBuilder::sandbox`], [its chapter](guide::sandbox) |
//! | send messages while a task runs | [`channel()`] |
//! | see what workers print and log, how far a call is, where the time goes | [its chapter](guide::output) |
//! | use it in async code | [its chapter](guide::services) |
//! | run on many machines | the crate [`pool-nats`](https://docs.rs/pool-nats), [its chapter](guide::machines) |
//! | know in which process some code runs | [`worker`] |
//! | run the work somewhere else | [`backend`] |
//!
//! # What means what
//!
//! - Results come in the order of the inputs, except from the `_unordered` methods.
//! - If inputs of a [`map`](Pool::map) fail, the others still run, and the error is that of the lowest index.
//! - Workers inherit the directory, the environment ([`PoolBuilder::env`] adds to it), the arguments, standard output and standard
//!   error of this program. Their standard input is empty. The first of [`std::env::args`] says which worker it is.
//! - A `static` is each process's own. A task may have a pool of its own (not in a sandbox).
//! - Dropping a [`Pool`] terminates it. After a `fork` of this process, the copy in the child takes no work and does nothing when it is
//!   dropped.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
mod builder;
mod by_ref;
mod call;
mod callback;
mod channel;
mod completed;
mod error;
mod event;
mod feed;
mod few;
pub mod guide;
mod handle;
mod inbox;
mod iter;
mod join;
mod local;
#[cfg_attr(not(feature = "tracing"), path = "no_log.rs")]
mod log;
mod open;
mod output;
mod pool;
mod progress;
mod reporter;
mod retries;
mod sandbox;
mod scheduler;
mod shared;
mod stats;
mod sync;
mod task_error;
#[cfg(test)]
mod tests;
mod timeline;
pub mod worker;

// Tasks in these tests resolve the paths that `#[pool_task]` emits with this.
#[cfg(test)]
extern crate self as pool_core;

pub use pool_macros::pool_task;
pub use pool_worker::Task;
pub use pool_worker::param::{Binds, BindsLent, Lends, LendsAll};

pub use builder::PoolBuilder;
pub use by_ref::ByRef;
pub use call::Call;
#[cfg(feature = "futures")]
pub use channel::ReceiverStream;
pub use channel::{Receiver, Sender, channel};
pub use completed::{AsCompleted, as_completed};
pub use error::{
    Broken, Codec, Error, InvalidSetting, MemoryLimit, Panicked, Side, Start, TimeLimit, WorkerLost,
};
pub use event::{Ended, Event, Recycled};
pub use handle::AsyncResult;
#[cfg(feature = "futures")]
pub use iter::ImapStream;
pub use iter::{Imap, ImapUnordered, Indexed};
pub use join::Join;
pub use open::{Left, Open, UnaryByRef, UnaryTask};
pub use output::{Output, Stream, WorkerLine};
pub use pool::Pool;
pub use pool_worker::shared::{InPlace, Share};
pub use progress::Progress;
pub use retries::Retries;
pub use sandbox::Sandbox;
pub use shared::Shared;
pub use stats::{Restarts, Running, Stats, TaskStats, Times, WorkerState, WorkerStats};
pub use task_error::TaskError;
pub use timeline::Timeline;

/// The target of paths that `#[pool_task]` emits; not part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use pool_worker::param::{Array, Block, Described, DescribedSlice, Plain, Slice, Unsized};
    pub use pool_worker::returned::{AnyReturned, Returned, Travels};
    pub use pool_worker::{
        Arrived, Buffer, CodecError, Input, Number, Outcome, Reader, Registration, RunError, Tail,
        Task, Tell, array, decode, decode_msgpack, decode_output_block, encode, encode_block,
        encode_last_block, encode_msgpack, encode_output_array, encode_output_block,
        give_last_block, inventory,
    };
}
