//! [`Event`]: what happens in a pool, reported at once.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Exit;

/// An event of a worker or of an input: see [`PoolBuilder::on_event`](crate::PoolBuilder::on_event).
///
/// In each event, `worker` is the worker's position in its pool, from 0 ([`worker::index`](crate::worker::index) there),
/// `pid` is its process id, `host` is the machine that it runs on (`None` for this one), and `at` is the time since the start
/// of the pool.
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
    /// A healthy worker is being replaced by a fresh one.
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
        /// How long the run took.
        took: Duration,
        /// When.
        at: Duration,
    },
    /// The machine lacks something that the [`Sandbox`](crate::Sandbox) of the workers needs, and the pool goes on without it
    /// ([`best_effort`](crate::Sandbox::best_effort)).
    #[non_exhaustive]
    SandboxIncomplete {
        /// What is missing: a sentence for each part.
        missing: Vec<String>,
        /// The machine.
        host: Option<String>,
        /// When.
        at: Duration,
    },
    /// The handler, or that of [`Output::lines`](crate::Output::lines), was too slow, or the connection to another machine:
    /// this many events and lines before this one were dropped.
    #[non_exhaustive]
    Missed {
        /// How many.
        count: usize,
    },
}

impl Event {
    /// Notes that it happened on another machine.
    pub(crate) fn place(&mut self, name: &str) {
        match self {
            Event::WorkerStarted { host, .. }
            | Event::WorkerReady { host, .. }
            | Event::WorkerDied { host, .. }
            | Event::WorkerRecycled { host, .. }
            | Event::InputBegan { host, .. }
            | Event::InputEnded { host, .. }
            | Event::SandboxIncomplete { host, .. } => *host = Some(name.to_owned()),
            Event::Missed { .. } => {}
        }
    }

    /// What follows from it if the machine is lost.
    pub(crate) fn lost(&self, at: Duration, why: &str) -> Option<Event> {
        match self {
            Event::WorkerStarted {
                worker, pid, host, ..
            } => Some(Event::WorkerDied {
                worker: *worker,
                pid: *pid,
                host: host.clone(),
                how: Exit::Unknown,
                why: Some(why.to_owned()),
                at,
            }),
            Event::InputBegan {
                worker,
                pid,
                host,
                task,
                index,
                at: began,
            } => Some(Event::InputEnded {
                worker: *worker,
                pid: *pid,
                host: host.clone(),
                task: task.clone(),
                index: *index,
                outcome: Ended::WorkerLost,
                took: at.saturating_sub(*began),
                at,
            }),
            _ => None,
        }
    }

    /// When it happened.
    pub(crate) fn at(&mut self) -> Option<&mut Duration> {
        match self {
            Event::WorkerStarted { at, .. }
            | Event::WorkerReady { at, .. }
            | Event::WorkerDied { at, .. }
            | Event::WorkerRecycled { at, .. }
            | Event::InputBegan { at, .. }
            | Event::InputEnded { at, .. }
            | Event::SandboxIncomplete { at, .. } => Some(at),
            Event::Missed { .. } => None,
        }
    }
}

/// Why a worker was replaced by a fresh one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Recycled {
    /// It has run as many inputs as [`max_tasks_per_child`](crate::PoolBuilder::max_tasks_per_child) allows.
    MaxTasks,
    /// It used more memory than [`max_memory_per_child`](crate::PoolBuilder::max_memory_per_child) allows.
    MaxMemory,
    /// It used half of the processor time that [`Sandbox::cpu_time`](crate::Sandbox::cpu_time) allows.
    CpuTime,
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
    /// The worker died while it ran the input.
    WorkerLost,
    /// It exceeded its time limit.
    TimeLimit,
    /// It exceeded its memory limit.
    MemoryLimit,
    /// It was cancelled, or the pool was terminated.
    Stopped,
}
