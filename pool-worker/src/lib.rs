//! One worker process, seen from both ends: launch it, talk to it, be it.

mod codec;
mod registry;
mod task;

pub use codec::{CodecError, Reader, decode, decode_bytes, encode, encode_bytes};
pub use registry::{Registration, RunError};
pub use task::Task;

#[doc(hidden)]
pub use inventory;
