//! One worker process, seen from both ends: launch it, talk to it, be it.
//!
//! Use `pool-core`, which makes a pool of these; nothing here is meant to be called by programs,
//! and everything may change in any release. What the modules do:
//!
//! | module | |
//! |---|---|
//! | `task`, `param`, `returned`, `registry`, `codec`, `encode`, `msgpack`, `decode`, `part`, `outcome`, `fault` | what a task is, which tasks this binary has, how parameters and results are encoded and decoded, and what can go wrong |
//! | `entry`, `contain`, `serve`, `unwind`, `starve`, `leave` | the worker's end: before `main`, its namespace, its loop, panics, failed allocations, its exit |
//! | `launch`, `process`, `watch`, `exit`, `lineage` | the parent's end: start a worker, talk to it, notice its death, tell it from a forked copy of it |
//! | `capture` | what workers write to standard output and standard error: both ends |
//! | `zygote` | the process that forks workers which share what it has loaded: both ends |
//! | `greeting` | how a worker and its parent connect; everything that uses ipc-channel |
//! | `attach`, `shared` | data that many inputs share; values in shared memory |
//! | `channel` | what tasks send while they run: both ends |
//! | `log`, `record`, `level`, `report` | what tasks log: the worker's end and the encoding; other reports |
//! | `meter`, `tally` | how long inputs take: when the clock is read, and where times are counted |
//! | `ring`, `frames`, `bell`, `memory`, `sync`, `copy`, `futex`, `spin` | how requests and replies travel, and how their readers are woken |
//!
//! This crate knows nothing about pools, queues of work, or what a failure means to a caller.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "pool-worker needs Linux: it starts workers through /proc and watches them by pidfd"
);

mod attach;
mod bell;
mod buffer;
mod capture;
mod channel;
mod clock;
mod codec;
mod contain;
mod copy;
mod decode;
mod encode;
mod entry;
mod exit;
mod fault;
mod flush;
mod frames;
mod futex;
mod greeting;
mod launch;
mod leave;
mod level;
mod lineage;
#[cfg(feature = "tracing")]
mod log;
#[cfg_attr(pool_shuttle, allow(dead_code))]
mod memory;
mod meter;
mod msgpack;
mod outcome;
pub mod param;
mod part;
mod process;
#[cfg(feature = "tracing")]
pub mod record;
mod registry;
pub mod report;
mod resident;
pub mod returned;
mod ring;
mod sandbox;
mod scarce;
mod serve;
pub mod shared;
mod spin;
mod starve;
mod sync;
mod tally;
mod task;
mod unwind;
mod watch;
mod zygote;

pub use attach::{Attachment, Bytes, Freed, Noted, collect};
pub use bell::{Bell, TICK};
pub use buffer::{Arrived, Buffer};
pub use capture::{Capture, Ends, KEPT as OUTPUT_KEPT, Passage, Side};
pub use channel::{Batch, Channel, Link, SendError, Taken, wake};
pub use clock::now;
pub use codec::{
    CodecError, Input, Kept, Primitive, Reader, Tail, array, decode, decode_msgpack,
    decode_output_block, encode, encode_block, encode_last_block, encode_msgpack,
    encode_output_array, encode_output_block, give_last_block, lend_last_block,
};
pub use decode::{STACK_DEFAULT, with_stack};
pub use entry::NodeKind;
pub use exit::Exit;
pub use fault::{Fault, Panic};
pub use frames::{FRAME_MAX, Frames, Iter, Tag};
pub use greeting::{Said, Setup};
pub use launch::{Kind, Launcher, Output, Starting, Witness, Worker, is_own_variable, may_launch};
pub use level::LogLevel;
pub use lineage::lineage;
pub use outcome::{Outcome, Tell};
pub use process::Process;
pub use registry::{Number, Registration, Run, RunError, fingerprint, task_name, tasks};
pub use report::{BEGAN, Ending, RAN, Ran, Tells, read_began, read_ran};
pub use ring::{Glance, Portion, Progress, Reports, Sleeper};
pub use sandbox::Sandbox;
pub use scarce::no_thread;
pub use serve::{index, prepare_here, report_panics_here, run_here};
pub use spin::{Spin, spin_for_piece};
pub use starve::Starved;
pub use tally::{Spread, Tallied};
pub use task::Task;
pub use watch::{Waker, Watch};
pub use zygote::{Heard, Preload, Zygote};

#[doc(hidden)]
pub use inventory;

#[cfg(all(any(test, fuzzing), not(pool_shuttle)))]
#[doc(hidden)]
pub mod fuzz;
