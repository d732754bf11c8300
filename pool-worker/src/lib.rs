//! One worker process, seen from both ends: launch it, talk to it, be it.
//!
//! Use `pool-core`, which makes a pool of these; nothing here is meant to be called by programs,
//! and everything may change in any release. What the modules do:
//!
//! | module | |
//! |---|---|
//! | `task`, `registry`, `codec`, `check` | what a task is, which ones this binary has, how values become bytes, why not |
//! | `entry`, `serve`, `unwind` | the worker's end: before `main`, its loop, its panics |
//! | `launch`, `bootstrap`, `watch`, `exit` | the parent's end: start, find each other, talk, see it die |
//! | `protocol`, `ledger`, `link` | what both ends share: messages, memory, how bytes travel |
//!
//! This crate does not know about pools, about queues of work, or about what a failure means to a
//! caller.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "pool-worker needs Linux: it starts workers through /proc and watches them by pidfd"
);

mod bootstrap;
mod check;
mod clock;
mod codec;
mod entry;
mod exit;
mod launch;
mod ledger;
mod link;
mod protocol;
mod registry;
mod serve;
mod task;
mod unwind;
mod watch;

pub use clock::now;
pub use codec::{CodecError, Reader, decode, decode_bytes, encode, encode_bytes};
pub use exit::Exit;
pub use launch::{Event, Mailbox, Outcome, Report, Setup, Worker, launch, may_launch};
pub use ledger::Progress;
pub use protocol::{Fault, Panic};
pub use registry::{Registration, Run, RunError};
pub use serve::index;
pub use task::Task;
pub use watch::{Waker, Watch};

#[doc(hidden)]
pub use inventory;
