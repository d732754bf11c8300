//! What a timeline has recorded, as plain data. The collector creates a [`Recording`]; `trace.rs` and `html.rs` draw it.
//!
//! Nothing here knows a pool, a clock or a file. Times are nanoseconds since the recording began. The creator of a recording
//! bounds its size: consecutive short bars of the same worker, task and job are merged into one, which says how many inputs
//! it contains and how long they ran.

use serde::{Deserialize, Serialize};

/// Everything that is drawn.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recording {
    /// The title of the page: the name of the program, for instance.
    pub(crate) title: String,
    /// When it began, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
    /// How long it lasted. Bars of inputs that are still running end here.
    pub(crate) length_ns: u64,
    /// One for each worker of the pool. A replacement continues in the lane of the worker that it replaces.
    pub(crate) lanes: Vec<Lane>,
    /// The names of tasks.
    pub(crate) tasks: Vec<String>,
    /// What ran, ordered by time in each lane.
    pub(crate) bars: Vec<Bar>,
    /// What happened to workers, in order of time.
    pub(crate) marks: Vec<Mark>,
    /// How many inputs waited, and since when, ordered by time. Consecutive values differ.
    pub(crate) waiting: Vec<Waiting>,
    /// The statistics.
    pub(crate) tables: Vec<Table>,
    /// What was left out because the recording was full, as a sentence.
    pub(crate) notes: Vec<String>,
}

/// The lane of one worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lane {
    /// The worker's position in its pool: [`worker::index`](crate::worker::index) there.
    pub(crate) worker: usize,
    /// Its machine, if it is not this one.
    pub(crate) host: Option<String>,
}

/// An input that ran, or several that ran one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// An index into [lanes](Recording::lanes).
    pub(crate) lane: u32,
    /// The process that ran it.
    pub(crate) pid: u32,
    /// An index into [tasks](Recording::tasks).
    pub(crate) task: u32,
    /// Distinguishes calls: inputs of one call have the same number.
    pub(crate) job: u32,
    /// The lowest position of its inputs among those of the call; `None` for a call with one input.
    pub(crate) first: Option<usize>,
    /// How many inputs.
    pub(crate) count: usize,
    /// How many of them failed.
    pub(crate) failed: usize,
    /// When the first input began.
    pub(crate) began_ns: u64,
    /// When the last input ended.
    pub(crate) ended_ns: u64,
    /// How long the inputs ran in total: the length of the bar without the gaps between them.
    pub(crate) busy_ns: u64,
    /// How the inputs ended; the worst outcome, if they ended in different ways.
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
    /// It was cancelled, or the pool ended.
    Cancelled,
    /// Arguments or result could not be encoded or decoded.
    Codec,
    /// The task panicked.
    Panicked,
    /// It exceeded its time limit.
    TimeLimit,
    /// It exceeded its memory limit.
    MemoryLimit,
    /// Its worker died.
    Lost,
}

/// An event of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// An index into [lanes](Recording::lanes).
    pub(crate) lane: u32,
    /// The process of the worker.
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
    /// It accepts inputs.
    Ready,
    /// It died unexpectedly; the text says how, as in "was killed by SIGSEGV".
    Died(String),
    /// It was replaced by a fresh one; the text says why, as in `max_tasks_per_child`.
    Recycled(String),
}

/// How many inputs waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// Since when.
    pub(crate) at_ns: u64,
    /// How many had been accepted and had not begun.
    pub(crate) inputs: usize,
}

/// Statistics as they are shown: all cells are formatted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    /// The title: "Tasks", "Workers".
    pub(crate) title: String,
    /// The headers of the columns. The first column is text; the others are numbers, and are aligned to the right.
    pub(crate) columns: Vec<String>,
    /// The cells, row by row.
    pub(crate) rows: Vec<Vec<String>>,
}

/// Sample recordings for tests.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    const MS: u64 = 1_000_000;

    fn lanes(workers: usize) -> Vec<Lane> {
        let lane = |worker| Lane { worker, host: None };
        (0..workers).map(lane).collect()
    }

    fn mark(lane: usize, at_ns: u64, what: What) -> Mark {
        Mark {
            lane: lane as u32,
            pid: 1000 + lane as u32,
            at_ns,
            what,
        }
    }

    fn table(title: &str, columns: &[&str], rows: &[&[&str]]) -> Table {
        let strings = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        Table {
            title: title.to_owned(),
            columns: strings(columns),
            rows: rows.iter().map(|row| strings(row)).collect(),
        }
    }

    fn tables() -> Vec<Table> {
        let columns = [
            "task", "done", "failed", "attempts", "p50", "p90", "p99", "max",
        ];
        let one = [
            "examples::render",
            "241",
            "2",
            "243",
            "31 ms",
            "58 ms",
            "690 ms",
            "812 ms",
        ];
        let other = [
            "examples::check",
            "80",
            "0",
            "80",
            "12 ms",
            "20 ms",
            "22 ms",
            "22 ms",
        ];
        vec![table("Tasks", &columns, &[&one, &other])]
    }

    /// Inputs of about 40 ms, some ten times as long; one kills its worker, one panics.
    pub(crate) fn heavy_tail(workers: usize) -> Recording {
        let mut random = 12_345_u64;
        let mut next = move |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % below
        };
        let mut recording = Recording {
            title: "A heavy tail".to_owned(),
            started_unix_ms: 1_790_000_000_000,
            lanes: lanes(workers),
            tasks: vec!["examples::render".to_owned(), "examples::check".to_owned()],
            tables: tables(),
            ..Recording::default()
        };
        let inputs = 40 * workers;
        let mut free = Vec::new();
        for lane in 0..workers {
            recording.marks.push(mark(lane, 0, What::Started));
            let ready = 20 * MS + next(8 * MS);
            recording.marks.push(mark(lane, ready, What::Ready));
            free.push(ready);
        }
        for index in 0..inputs {
            recording.waiting.push(Waiting {
                at_ns: *free.iter().min().expect("there are workers"),
                inputs: inputs - index,
            });
            let lane = (0..workers)
                .min_by_key(|lane| free[*lane])
                .expect("as above");
            let is_tail = next(40) == 0 || index + 2 == inputs;
            let took = (20 + next(40)) * MS * if is_tail { 11 } else { 1 };
            let (began_ns, ended_ns) = (free[lane] + MS / 10, free[lane] + took);
            let outcome = match index {
                7 => Outcome::Lost,
                12 => Outcome::Panicked,
                _ => Outcome::Done,
            };
            recording.bars.push(Bar {
                lane: lane as u32,
                pid: 1000 + lane as u32,
                task: u32::from(index % 4 == 3),
                job: 0,
                first: Some(index),
                count: 1,
                failed: usize::from(outcome != Outcome::Done),
                began_ns,
                ended_ns,
                busy_ns: ended_ns - began_ns,
                outcome,
            });
            free[lane] = ended_ns;
            if index == 7 {
                let how = "was killed by SIGSEGV".to_owned();
                recording.marks.push(mark(lane, ended_ns, What::Died(how)));
                recording
                    .marks
                    .push(mark(lane, ended_ns + MS, What::Started));
                free[lane] += 30 * MS;
                recording.marks.push(mark(lane, free[lane], What::Ready));
            }
            if index == 20 {
                let why = "max_tasks_per_child".to_owned();
                recording
                    .marks
                    .push(mark(lane, ended_ns, What::Recycled(why)));
            }
        }
        recording.length_ns = free.into_iter().max().expect("as above") + 5 * MS;
        recording.waiting.push(Waiting {
            at_ns: recording.bars.last().expect("there are some").began_ns,
            inputs: 0,
        });
        recording.bars.sort_by_key(|bar| (bar.lane, bar.began_ns));
        recording.marks.sort_by_key(|mark| mark.at_ns);
        recording
    }

    /// A million short inputs, merged.
    pub(crate) fn merged(workers: usize) -> Recording {
        let mut recording = Recording {
            title: "A million squares".to_owned(),
            started_unix_ms: 1_790_000_000_000,
            lanes: lanes(workers),
            tasks: vec!["examples::square".to_owned()],
            length_ns: 900 * MS,
            tables: tables(),
            notes: vec!["so many bars that they were merged to 1 ms each".to_owned()],
            ..Recording::default()
        };
        let bars = 20_000 / workers;
        let each = 1_000_000 / (bars * workers);
        for lane in 0..workers {
            recording.marks.push(mark(lane, 0, What::Started));
            recording.marks.push(mark(lane, 12 * MS, What::Ready));
            let span = (880 * MS - 13 * MS) / bars as u64;
            for bar in 0..bars {
                let began_ns = 13 * MS + bar as u64 * span;
                let busy = span * (60 + (bar as u64 / 40) % 40) / 100;
                recording.bars.push(Bar {
                    lane: lane as u32,
                    pid: 1000 + lane as u32,
                    task: 0,
                    job: 0,
                    first: Some((bar * workers + lane) * each),
                    count: each,
                    failed: 0,
                    began_ns,
                    ended_ns: began_ns + busy + span / 20,
                    busy_ns: busy,
                    outcome: Outcome::Done,
                });
            }
        }
        for step in 0..200_u64 {
            recording.waiting.push(Waiting {
                at_ns: 13 * MS + step * 4 * MS,
                inputs: (200 + (step % 7) * 60) as usize,
            });
        }
        recording.marks.sort_by_key(|mark| mark.at_ns);
        recording
    }
}
