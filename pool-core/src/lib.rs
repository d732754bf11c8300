//! A process pool.
#![forbid(unsafe_code)]

pub use pool_macros::pool_task;
pub use pool_worker::Task;

/// What `#[pool_task]` emits paths to; no part of the public interface.
#[doc(hidden)]
pub mod __private {
    pub use pool_worker::{
        CodecError, Reader, Registration, RunError, Task, decode, decode_bytes, encode,
        encode_bytes, inventory,
    };
}
