//! [`Event`]: what happens in a pool, as it happens.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Exit;

/// What happened to a worker or to an input: for [`PoolBuilder::on_event`](crate::PoolBuilder::on_event).
///
/// In each, `worker` is the worker's position in its pool, from 0 ([`worker::index`](crate::worker::index) there), `pid` its process
/// id, `host` the machine that it is on (`None`: this one), and `at` how long after the start of the pool it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// A worker process was started.
    #[non_exhaustive]
    WorkerStarted {
        /// Its position.
        worker: usize,
        /// Its process id.
        pid: u32,
        /// Its machine.
        host: Option<String>,
        /// When.
        at: Duration,
    },
    /// A worker has run its initializers, and takes inputs.
    #[non_exhaustive]
    WorkerReady {
        /// Its position.
        worker: usize,
        /// Its process id.
        pid: u32,
        /// Its machine.
        host: Option<String>,
        /// When.
        at: Duration,
    },
    /// A worker has ended without having been asked to: it crashed, exited, or was killed.
    #[non_exhaustive]
    WorkerDied {
        /// Its position.
        worker: usize,
        /// Its process id.
        pid: u32,
        /// Its machine.
        host: Option<String>,
        /// How it ended.
        how: Exit,
        /// Why the pool killed it, if it did.
        why: Option<String>,
        /// When.
        at: Duration,
    },
    /// A worker that was well is replaced by a fresh one.
    #[non_exhaustive]
    WorkerRecycled {
        /// Its position.
        worker: usize,
        /// Its process id.
        pid: u32,
        /// Its machine.
        host: Option<String>,
        /// Why.
        why: Recycled,
        /// When.
        at: Duration,
    },
    /// A worker has begun to run an input.
    #[non_exhaustive]
    InputBegan {
        /// The worker's position.
        worker: usize,
        /// Its process id.
        pid: u32,
        /// Its machine.
        host: Option<String>,
        /// The name of the task.
        task: Cow<'static, str>,
        /// The position of the input among those of its call; `None` as for [`Error::index`](crate::Error::index).
        index: Option<usize>,
        /// When.
        at: Duration,
    },
    /// The run of an input has ended.
    #[non_exhaustive]
    InputEnded {
        /// The worker's position.
        worker: usize,
        /// Its process id.
        pid: u32,
        /// Its machine.
        host: Option<String>,
        /// The name of the task.
        task: Cow<'static, str>,
        /// The position of the input among those of its call; `None` as for [`Error::index`](crate::Error::index).
        index: Option<usize>,
        /// How the run ended.
        outcome: Ended,
        /// How long it took.
        took: Duration,
        /// When.
        at: Duration,
    },
    /// The handler was too slow: so many events before this one were dropped.
    #[non_exhaustive]
    Missed {
        /// How many.
        count: usize,
    },
}

/// Why a worker was replaced by a fresh one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Recycled {
    /// It has run as many inputs as [`max_tasks_per_child`](crate::PoolBuilder::max_tasks_per_child) allows.
    MaxTasks,
    /// It had more memory in use than [`max_memory_per_child`](crate::PoolBuilder::max_memory_per_child) allows.
    MaxMemory,
}

/// How the run of an input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ended {
    /// With a result.
    Done,
    /// The task panicked.
    Panicked,
    /// The arguments or the result could not be encoded or decoded.
    Unreadable,
    /// The worker died under it.
    WorkerLost,
    /// It ran past its time limit.
    TimeLimit,
    /// It used more memory than its limit.
    MemoryLimit,
    /// It was cancelled, or the pool terminated.
    Stopped,
}
