//! What a timeline has recorded, as plain data. The collector makes a [`Recording`]; `trace.rs` and `html.rs` draw it.
//!
//! Nothing here knows a pool, a clock or a file. Times are nanoseconds since the recording began. Whoever makes a recording bounds its
//! size: short bars of one worker, task and job that follow each other are merged into one, which says how many inputs it holds
//! and how long they ran.

use serde::{Deserialize, Serialize};

/// Everything that is drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recording {
    /// What the page is called: the name of the program, for instance.
    pub(crate) title: String,
    /// When it began, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
    /// How long it lasted. What still runs ends here.
    pub(crate) length_ns: u64,
    /// One for each worker of the pool. A worker that takes the place of another goes on in its lane.
    pub(crate) lanes: Vec<Lane>,
    /// The names of tasks.
    pub(crate) tasks: Vec<String>,
    /// What ran. In each lane, in order of time.
    pub(crate) bars: Vec<Bar>,
    /// What happened to workers, in order of time.
    pub(crate) marks: Vec<Mark>,
    /// How many inputs waited, from when on, in order of time. Consecutive ones differ.
    pub(crate) waiting: Vec<Waiting>,
    /// The statistics.
    pub(crate) tables: Vec<Table>,
    /// What was left out because the recording was full, as a sentence.
    pub(crate) notes: Vec<String>,
}

/// The line of one worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lane {
    /// The worker's number in its pool, as [`worker::index`](crate::worker::index) tells it.
    pub(crate) worker: usize,
    /// Its machine, if it is not this one.
    pub(crate) host: Option<String>,
}

/// An input that ran, or several that ran one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// Which of the [lanes](Recording::lanes).
    pub(crate) lane: u32,
    /// The process that ran it.
    pub(crate) pid: u32,
    /// Which of the [tasks](Recording::tasks).
    pub(crate) task: u32,
    /// Tells calls from each other: inputs of one call have one number.
    pub(crate) job: u32,
    /// The lowest position of its inputs among those of the call; `None` for a call of one.
    pub(crate) first: Option<usize>,
    /// How many inputs.
    pub(crate) count: usize,
    /// How many of them failed.
    pub(crate) failed: usize,
    /// When the first began.
    pub(crate) began_ns: u64,
    /// When the last ended.
    pub(crate) ended_ns: u64,
    /// How long the inputs ran, all together: shorter than the bar by the gaps between them.
    pub(crate) busy_ns: u64,
    /// How the inputs ended; the worst of it, if in different ways.
    pub(crate) outcome: Outcome,
}

/// How an input ended, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// With a result.
    Done,
    /// It had not ended when the recording was written.
    Running,
    /// Somebody cancelled it, or ended the pool.
    Cancelled,
    /// Arguments or result could not be encoded or decoded.
    Codec,
    /// The task panicked.
    Panicked,
    /// It ran too long.
    TimeLimit,
    /// It used too much memory.
    MemoryLimit,
    /// Its worker died.
    Lost,
}

/// What happened to a worker at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// Which of the [lanes](Recording::lanes).
    pub(crate) lane: u32,
    /// The process it happened to.
    pub(crate) pid: u32,
    /// When.
    pub(crate) at_ns: u64,
    /// What.
    pub(crate) what: What,
}

/// What happened to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "why")]
pub(crate) enum What {
    /// It was started.
    Started,
    /// It can take work.
    Ready,
    /// It died, though nobody wanted that: how, as in "was killed by SIGSEGV".
    Died(String),
    /// It left to make room for a fresh one: why, as in `max_tasks_per_child`.
    Recycled(String),
}

/// How many inputs waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// From when on.
    pub(crate) at_ns: u64,
    /// So many had been accepted and had not begun.
    pub(crate) inputs: usize,
}

/// Statistics as they are shown: all cells are ready to be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// What it is about: "Tasks", "Workers".
    pub(crate) title: String,
    /// The heads of the columns. The first column is text; the others are numbers, and stand at the right.
    pub(crate) columns: Vec<String>,
    /// The cells, row by row.
    pub(crate) rows: Vec<Vec<String>>,
}
