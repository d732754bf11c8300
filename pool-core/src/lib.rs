//! A process pool: Python's `multiprocessing.Pool` for Rust.
//!
//! ```
//! use pool_core::{Pool, pool_task};
//!
//! #[pool_task]
//! fn square(x: u64) -> u64 { x * x }
//!
//! fn main() -> Result<(), pool_core::Error> {
//!     let pool = Pool::new()?;                       // one worker process for each CPU
//!     assert_eq!(pool.map(square, 0..10)?, [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]);
//!     Ok(())
//! }
//! ```
//!
//! Each worker is this same program, started again: it never reaches `main`, but finds the function
//! that [`macro@pool_task`] has registered, and runs it. A task that crashes its process costs itself,
//! and nothing else.
//!
//! # Where to look
//!
//! - [`macro@pool_task`] says which functions can be tasks, and what happens to their arguments.
//! - [`Pool`] runs them: one ([`apply`](Pool::apply)), many ([`map`](Pool::map),
//!   [`starmap`](Pool::starmap)), as an iterator ([`imap`](Pool::imap)), or later
//!   ([`apply_async`](Pool::apply_async) and the others).
//! - [`guide`] says how to get data to workers, and what each way costs: lent ([`ByRef`]), bound
//!   ([`Call::partial`]), in shared memory ([`Shared`]), or loaded before there are tasks.
//! - [`Pool::builder`] has the settings of a pool: its size, what each worker runs before its first task
//!   ([`initializer`](PoolBuilder::initializer)) and after its last ([`finalizer`](PoolBuilder::finalizer)), what is loaded
//!   once for all workers, a limit of tasks for each worker.
//! - [`Pool::task`] has the options of one call: chunk size, time limit, retries, one outcome for each
//!   input, arguments that are lent or bound.
//! - [`channel()`] lets tasks send something while they run: how far they are, parts of their results.
//! - [`AsyncResult`] is the result of a call that goes on: wait for it, `.await` it, cancel it, or
//!   attach callbacks. [`as_completed`] takes many as they finish. In an async program
//!   [`cancel_on_drop`](AsyncResult::cancel_on_drop) frees the worker of a request that went away,
//!   [`join_async`](Pool::join_async) waits for the end, and with the feature `futures` of this crate there are [`Imap`] and
//!   [`Receiver`] as streams (`imap(…).stream()`); the
//!   example `service` is a web service over a pool.
//! - [`Error`] says what can go wrong, and to whom it happened. [`TaskError`] is for tasks that may fail: they return
//!   `Result<T, TaskError>`, and use `?` on any error.
//! - [`backend`] is for whoever wants the work to run elsewhere; [`backend::Inline`] runs it in the thread that calls, under a
//!   debugger for instance.
//!
//! # What means what
//!
//! Results come in the order of the inputs, but for the `_unordered` ones. If inputs of a
//! [`map`](Pool::map) fail, the others run nevertheless, and the error is that of the lowest index.
//! Nothing runs twice, unless [`retries`](Call::retries) are allowed. What a task prints goes where
//! this program prints; its standard input is empty. Its command line and its environment are those of this program
//! ([`PoolBuilder::env`] adds to them), so a `static` that is made of them is the same there; the first of
//! [`std::env::args`] says which worker it is. A task may have a pool of its own.
//!
//! # Logs
//!
//! With the feature `tracing` of this crate, what tasks log reaches this program: spans and events of `tracing`, and records of
//! `log`. There is nothing to set up in workers. The subscriber of the thread that makes a call gets what its inputs log, in the span
//! that the thread is in then; each event and span has the fields `worker`, `pid`, `task` and `input` (the position of
//! the input; none for [`apply`](Pool::apply)), and `host` on another machine. Where a callsite has a field of one of these names, ours
//! is `pool.task`, and so on. If there is no subscriber but a logger of `log`, that gets the same in words.
//!
//! - Workers make no record that is below the level of the subscriber when the call is made. All other filters are asked here.
//! - A subscriber is called by one thread of the pool, a moment later: no task waits for it, and its times are those of the delivery.
//!   Of what comes faster than it takes it, 65,536 records or 16 MiB wait; what is more is dropped, and a warning of the target
//!   `pool_core` says how much that was. Texts are cut at 4 KiB.
//! - What was logged before is there when [`join`](Pool::join) returns, unless the subscriber does nothing for five seconds. Dropping the
//!   pool waits half a second.
//! - What a worker has logged arrives, though it crashes at the next instruction. Its open spans end then. Spans are made again here, but
//!   are not entered.
//! - What threads log that a task has left behind counts for the input that runs, or for none: then the subscriber gets it that the
//!   pool was built under, or the first call was made under.
//! - An initializer may install a subscriber or a logger; then that has what its worker logs, and this program nothing. Later, a
//!   task can't: this crate has. As long as nobody listens here, nothing is installed there.
//!   (`log` has no loggers for a while, so what an initializer logs by `log` is lost.)
//!
//! The example `logging` shows it.
//!
//! After a `fork` of this process the copy of a pool in the child takes no work and does nothing when
//! it is dropped.
#![forbid(unsafe_code)]

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
mod reporter;
mod retries;
mod scheduler;
mod shared;
mod sync;
mod task_error;
#[cfg(test)]
mod tests;
pub mod worker;

// So that tasks of these tests find what `#[pool_task]` emits paths to.
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
pub use open::{Left, OneArgument, Open};
pub use output::{Output, Stream, WorkerLine};
pub use pool::Pool;
pub use pool_worker::shared::{InPlace, Share};
pub use retries::Retries;
pub use shared::Shared;
pub use task_error::TaskError;

/// What `#[pool_task]` emits paths to; no part of the public interface.
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
