//! [`Stats`]: what a pool is doing, and has done, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use pool_worker::{Spread, Tallied};
use serde::{Deserialize, Serialize};

use crate::scheduler::{Counts, Lives};

/// What a pool is doing, and has done since it was built: given by [`Pool::stats`](crate::Pool::stats).
///
/// It prints as two tables, and can be serialized. The counts of outcomes are exact: they are made when outcomes are
/// delivered. Times are measured by the workers; those of short inputs appear a moment after their results, and those of runs
/// in which a worker was killed once it is dead.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn square(x: u64) -> u64 { x * x }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// pool.map(square, 0..1000)?;
///
/// let stats = pool.stats();
/// let task = &stats.tasks[0];
/// assert!(task.task.ends_with("square"));
/// assert_eq!(task.done, 1000);
/// assert!(task.run_times.p50 <= task.run_times.max);
/// let done: u64 = stats.workers.iter().map(|worker| worker.done).sum();
/// assert_eq!(done, 1000);
/// println!("{stats}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// How long ago the pool was built.
    pub uptime: Duration,
    /// How many accepted inputs no worker has begun yet.
    pub queued: usize,
    /// How many bytes were sent to workers in total: arguments and overhead.
    pub bytes_sent: u64,
    /// How many bytes came from workers in total: results, messages and overhead.
    pub bytes_received: u64,
    /// What the [`Sandbox`](crate::Sandbox) of the workers should do and their machine can't: a sentence for each part. Empty
    /// unless the sandbox has [`best_effort`](crate::Sandbox::best_effort).
    pub unenforced: Vec<String>,
    /// The workers, in the order of their positions.
    pub workers: Vec<WorkerStats>,
    /// The tasks that have had inputs, in the order of their names.
    pub tasks: Vec<TaskStats>,
}

/// What the workers in one position of a pool are doing, and have done: when a worker is replaced, the counts go on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStats {
    /// The position: [`worker::index`](crate::worker::index) there.
    pub worker: usize,
    /// The process id of the current worker.
    pub pid: Option<u32>,
    /// The machine it runs on; `None` for this one.
    pub host: Option<String>,
    /// What the worker is doing.
    pub state: WorkerState,
    /// The input that it runs now.
    pub running: Option<Running>,
    /// How many inputs have been run to their end.
    pub done: u64,
    /// How often a worker had to be replaced by another, or failed to start, and why.
    pub restarts: Restarts,
    /// How much memory it uses, in bytes, if the system tells.
    pub resident: Option<u64>,
    /// The share of the time since the pool was built in which inputs ran here, from 0 to 1, whatever became of them.
    pub busy: f64,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WorkerState {
    /// There is no worker at the moment.
    #[default]
    Absent,
    /// It is starting, or running its initializers.
    Starting,
    /// It has nothing to do.
    Idle,
    /// It has inputs.
    Busy,
    /// It is about to exit.
    Leaving,
}

/// An input that runs now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Running {
    /// The name of the task.
    pub task: String,
    /// The position of the input among those of its call; `None` as for [`Error::index`](crate::Error::index).
    pub index: Option<usize>,
    /// How long it has been running. For inputs that take less than a few microseconds, how long several of them have.
    pub since: Duration,
}

/// How often workers were replaced, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Restarts {
    /// They exited without having been asked to, or were killed: because of a limit, or because the input that they ran was
    /// cancelled.
    pub died: usize,
    /// By [`max_tasks_per_child`](crate::PoolBuilder::max_tasks_per_child).
    pub max_tasks: usize,
    /// By [`max_memory_per_child`](crate::PoolBuilder::max_memory_per_child).
    pub max_memory: usize,
    /// By [`Sandbox::cpu_time`](crate::Sandbox::cpu_time).
    pub cpu_time: usize,
    /// They failed to start.
    pub failed_starts: usize,
    /// The last reason, as a sentence.
    pub last: Option<String>,
}

impl Restarts {
    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.died + self.max_tasks + self.max_memory + self.cpu_time + self.failed_starts
    }
}

/// The outcomes of a task's inputs. Each input that has an outcome is counted in one of the fields from `done` to
/// `terminated`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TaskStats {
    /// The name of the task.
    pub task: String,
    /// How many inputs have results. An `Err` that the task returned is a result, too.
    pub done: u64,
    /// How many panicked.
    pub panicked: u64,
    /// How many failed because a worker could not decode the arguments or encode the result.
    pub unreadable: u64,
    /// How many were lost with their workers.
    pub lost: u64,
    /// How many exceeded their time limit.
    pub time_limit: u64,
    /// How many exceeded their memory limit.
    pub memory_limit: u64,
    /// How many were cancelled.
    pub cancelled: u64,
    /// How many had no outcome when the pool was terminated, or broke.
    pub terminated: u64,
    /// How many runs have ended: more than there are inputs if some were run again, fewer if some were cancelled before they
    /// began.
    pub attempts: u64,
    /// How long runs took that have ended. Those that ended because their worker died or was killed, for instance at their time
    /// limit, count from their beginning to its death.
    pub run_times: Times,
    /// How long inputs waited, from when they were accepted until a worker took the portion that contains them. Of a run in which a
    /// worker died this is not measured.
    pub waiting_times: Times,
}

impl TaskStats {
    /// How many inputs have an [`Error`](crate::Error) as their outcome. An `Err` that the task returned is none: it counts as
    /// [`done`](TaskStats::done).
    #[must_use]
    pub fn failed(&self) -> u64 {
        let limits = self.time_limit + self.memory_limit;
        self.panicked + self.unreadable + self.lost + limits + self.cancelled + self.terminated
    }
}

/// How times are distributed. All fields are zero if there was none. Tables show `-` if none was measured.
///
/// `mean` and `max` are as measured. Workers count times in buckets, and `p50`, `p90` and `p99` are the longest time of theirs: the exact
/// value, or up to an eighth (12.5 %) more, but never more than `max`. So none of them is less than the shortest time, and inputs that
/// all take equally long have almost the same `p50` and `max`. (In these three, times of more than three days count as three days.)
///
/// For inputs that take less than 2 µs, the mean of sixteen is measured; for those that are submitted every 4 µs or faster, the
/// waiting time of one in sixteen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Times {
    /// How many times there were, also those that were not measured.
    pub count: u64,
    /// Their mean.
    pub mean: Duration,
    /// Half of them took no longer.
    pub p50: Duration,
    /// Nine of ten took no longer.
    pub p90: Duration,
    /// Ninety-nine of a hundred took no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// The longest time that a histogram holds: longer times count as this long, except in the maximum.
const LONGEST: u64 = 1 << 48;

impl From<&Spread> for Times {
    fn from(spread: &Spread) -> Times {
        // Two digits are more than the buckets provide, so the longest time of a bucket stays what it is.
        let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, LONGEST, 2) else {
            return Times::default();
        };
        for (ns, count) in spread.iter() {
            histogram.saturating_record_n(ns, count);
        }
        let known = histogram.len();
        let at = |quantile| {
            let ns = histogram.value_at_quantile(quantile).min(spread.max_ns);
            Duration::from_nanos(ns)
        };
        Times {
            count: known.saturating_add(spread.unknown),
            mean: Duration::from_nanos(spread.sum_ns.checked_div(known).unwrap_or_default()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: Duration::from_nanos(spread.max_ns),
        }
    }
}

impl From<&Lives> for Restarts {
    fn from(lives: &Lives) -> Restarts {
        Restarts {
            died: lives.died,
            max_tasks: lives.max_tasks,
            max_memory: lives.max_memory,
            cpu_time: lives.cpu_time,
            failed_starts: lives.failed_starts,
            last: lives.last.clone(),
        }
    }
}

/// The name of a task of this program.
pub(crate) fn task_name(task: u32) -> &'static str {
    pool_worker::task_name(task).unwrap_or("?")
}

/// How long inputs ran and waited, by the number of the task.
pub(crate) type TalliedTasks = BTreeMap<u32, Tallied>;

/// Combines what is known about the tasks: the outcomes of their inputs, by the number of the task, and their times.
pub(crate) fn tasks(counts: &[Counts], times: &TalliedTasks) -> Vec<TaskStats> {
    let known = (0..)
        .zip(counts)
        .filter(|(task, counts)| **counts != Counts::default() || times.contains_key(task));
    let mut tasks: Vec<TaskStats> = known
        .map(|(task, counts)| {
            let times = times.get(&task).cloned().unwrap_or_default();
            TaskStats {
                task: task_name(task).to_owned(),
                done: counts.done,
                panicked: counts.panicked,
                unreadable: counts.unreadable,
                lost: counts.lost,
                time_limit: counts.time_limit,
                memory_limit: counts.memory_limit,
                cancelled: counts.cancelled,
                terminated: counts.terminated,
                attempts: counts.attempts,
                run_times: Times::from(&times.ran),
                waiting_times: Times::from(&times.waited),
            }
        })
        .collect();
    tasks.sort_by(|one, other| one.task.cmp(&other.task));
    tasks
}

/// A table as wide as its contents. The first column is aligned to the left, the others to the right.
pub(crate) struct Table(pub(crate) Vec<Vec<String>>);

impl Table {
    fn new<const N: usize>(heads: [&str; N]) -> Table {
        Table(vec![heads.iter().map(|head| (*head).to_owned()).collect()])
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.0 {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    line += &format!("{cell:<width$}");
                } else {
                    line += &format!("  {cell:>width$}");
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// One of these times; "-" if none was measured.
fn short_of(times: &Times, time: Duration) -> String {
    match times.max.is_zero() {
        true => "-".to_owned(),
        false => short(time),
    }
}

/// A duration with three digits: "1.53 ms".
pub(crate) fn short(time: Duration) -> String {
    let ns = time.as_nanos() as f64;
    let (value, unit) = match ns {
        _ if ns < 1e3 => return format!("{ns:.0} ns"),
        _ if ns < 1e6 => (ns / 1e3, "µs"),
        _ if ns < 1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = match value {
        _ if value < 10.0 => 2,
        _ if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// An amount of memory with three digits: "1.53 MiB".
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    let mut units = ["B", "KiB", "MiB", "GiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let digits = match value {
        _ if unit == "B" || value >= 100.0 => 0,
        _ if value < 10.0 => 2,
        _ => 1,
    };
    format!("{value:.digits$} {unit}")
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WorkerState::Absent => "absent",
            WorkerState::Starting => "starting",
            WorkerState::Idle => "idle",
            WorkerState::Busy => "busy",
            WorkerState::Leaving => "leaving",
        })
    }
}

/// `square[3] for 1.5 s`.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.task)?;
        if let Some(index) = self.index {
            write!(f, "[{index}]")?;
        }
        write!(f, " for {}", short(self.since))
    }
}

impl Stats {
    pub(crate) fn workers_table(&self) -> Table {
        let mut table = Table::new([
            "worker", "pid", "state", "busy", "memory", "done", "restarts", "runs",
        ]);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for worker in &self.workers {
            let on = worker.host.as_ref().map(|host| format!(" on {host}"));
            table.row([
                format!("{}{}", worker.worker, on.unwrap_or_default()),
                or_dash(worker.pid.map(|pid| pid.to_string())),
                worker.state.to_string(),
                format!("{:.0} %", 100.0 * worker.busy),
                or_dash(worker.resident.map(bytes)),
                worker.done.to_string(),
                worker.restarts.total().to_string(),
                or_dash(worker.running.as_ref().map(Running::to_string)),
            ]);
        }
        table
    }

    pub(crate) fn tasks_table(&self) -> Table {
        let mut table = Table::new([
            "task",
            "done",
            "failed",
            "attempts",
            "p50",
            "p90",
            "p99",
            "max",
            "waited p50",
            "max",
        ]);
        for task in &self.tasks {
            let (ran, waited) = (&task.run_times, &task.waiting_times);
            table.row([
                task.task.clone(),
                task.done.to_string(),
                task.failed().to_string(),
                task.attempts.to_string(),
                short_of(ran, ran.p50),
                short_of(ran, ran.p90),
                short_of(ran, ran.p99),
                short_of(ran, ran.max),
                short_of(waited, waited.p50),
                short_of(waited, waited.max),
            ]);
        }
        table
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "up {}, {} queued, {} sent, {} received",
            short(self.uptime),
            self.queued,
            bytes(self.bytes_sent),
            bytes(self.bytes_received),
        )?;
        for part in &self.unenforced {
            writeln!(f, "sandbox without {part}")?;
        }
        if !self.workers.is_empty() {
            write!(f, "\n{}", self.workers_table())?;
        }
        if !self.tasks.is_empty() {
            write!(f, "\n{}", self.tasks_table())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statistics_of_nothing_are_zero() {
        assert_eq!(Times::from(&Spread::default()), Times::default());
    }

    proptest! {
        #[test]
        fn quantiles_are_those_of_a_histogram_or_up_to_an_eighth_more(
            times in prop::collection::vec(1..1_u64 << 40, 1..200)
        ) {
            let mut times = times;
            times.sort_unstable();
            let mut spread = Spread::default();
            times.iter().for_each(|ns| spread.record(*ns));
            let found = Times::from(&spread);
            prop_assert_eq!(found.count, times.len() as u64);
            prop_assert_eq!(found.max.as_nanos() as u64, *times.iter().max().unwrap());
            let mean = times.iter().sum::<u64>() / times.len() as u64;
            prop_assert_eq!(found.mean.as_nanos() as u64, mean);
            for (quantile, found) in [(0.5, found.p50), (0.9, found.p90), (0.99, found.p99)] {
                let rank = (quantile * times.len() as f64).ceil() as usize;
                let (exact, found) = (times[rank - 1], found.as_nanos() as u64);
                prop_assert!(found >= exact, "{quantile}: {found} {exact}");
                prop_assert!(found - exact <= exact / 8, "{quantile}: {found} {exact}");
            }
            prop_assert!(found.p50 <= found.p90 && found.p90 <= found.p99 && found.p99 <= found.max);
        }
    }

    #[test]
    fn a_quantile_is_not_below_the_shortest_time() {
        let mut spread = Spread::default();
        for us in [1_000_062, 1_000_071, 1_000_090] {
            spread.record(us * 1_000);
        }
        let times = Times::from(&spread);
        assert_eq!(times.p50, Duration::from_micros(1_000_090));
        assert_eq!(short(times.p50), "1.00 s");
        // The longest time is far away.
        spread.record(1 << 40);
        let second = Duration::from_secs(1);
        let p50 = Times::from(&spread).p50;
        assert!((second..second * 9 / 8).contains(&p50), "{p50:?}");
    }

    #[test]
    fn tables_are_as_wide_as_their_contents() {
        let stats = Stats {
            unenforced: Vec::new(),
            uptime: Duration::from_millis(2_500),
            queued: 3,
            bytes_sent: 1_600,
            bytes_received: 12,
            workers: vec![WorkerStats {
                pid: Some(77),
                state: WorkerState::Busy,
                running: Some(Running {
                    task: "render".to_owned(),
                    index: Some(4),
                    since: Duration::from_micros(1_500),
                }),
                resident: Some(5 << 20),
                busy: 0.256,
                ..WorkerStats::default()
            }],
            tasks: vec![
                TaskStats {
                    task: "render".to_owned(),
                    done: 12,
                    lost: 1,
                    ..TaskStats::default()
                },
                TaskStats {
                    task: "tiny".to_owned(),
                    done: 2,
                    // None of these was measured yet.
                    run_times: Times {
                        count: 2,
                        ..Times::default()
                    },
                    // Half of them did not wait at all.
                    waiting_times: Times {
                        count: 2,
                        mean: Duration::from_micros(1),
                        p90: Duration::from_micros(2),
                        p99: Duration::from_micros(2),
                        max: Duration::from_micros(2),
                        ..Times::default()
                    },
                    ..TaskStats::default()
                },
            ],
        };
        let expected = "\
up 2.50 s, 3 queued, 1.56 KiB sent, 12 B received

worker  pid  state  busy    memory  done  restarts                     runs
0        77   busy  26 %  5.00 MiB     0         0  render[4] for 1.50 ms

task    done  failed  attempts   p50   p90   p99   max  waited p50   max
render    12       1         0     -     -     -     -           -        -
tiny       2       0         0     -     -     -     -        0 ns  2.00 µs
";
        let shown = stats.to_string();
        assert_eq!(
            shown.split_whitespace().collect::<Vec<_>>(),
            expected.split_whitespace().collect::<Vec<_>>()
        );
        assert_eq!(shown.lines().count(), expected.lines().count());
    }
}
