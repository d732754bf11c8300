//! A process pool: Python's `multiprocessing.Pool` for Rust.
#![forbid(unsafe_code)]

mod backend;
mod builder;
mod call;
mod callback;
mod error;
mod feed;
mod handle;
mod iter;
mod local;
mod pool;
mod scheduler;
pub mod worker;

pub use pool_macros::pool_task;
pub use pool_worker::Task;

pub use builder::PoolBuilder;
pub use call::{Call, OneArgument};
pub use error::{Broken, Codec, Error, InvalidSetting, Panicked, Side, Start, TimeLimit, WorkerLost};
pub use handle::AsyncResult;
pub use iter::{Imap, ImapUnordered};
pub use pool::Pool;

/// What `#[pool_task]` emits paths to; no part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use pool_worker::{
        CodecError, Reader, Registration, RunError, Task, decode, decode_bytes, encode,
        encode_bytes, inventory,
    };
}
