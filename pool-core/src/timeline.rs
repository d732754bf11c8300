//! A timeline: a recording of what happens in a pool.
//!
//! | module | |
//! |---|---|
//! | `collect` | keeps what a backend reports, in bounded memory |
//! | `model` | the recording, as plain data |
//! | `trace` | the recording in Chrome's trace format, for Perfetto |
//! | `html` | the recording as a page that draws it |

mod collect;
mod html;
mod model;
mod trace;

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::collect::Collected;
use self::model::{Bar, Outcome, Recording, Table};
use crate::backend::{News, Workers};
use crate::stats::Stats;
use crate::sync::lock;

/// The most pools that have ended whose statistics are kept.
const ENDED_MAX: usize = 100;

/// Records what the workers of pools do, for viewing: when and where each input ran, when workers started, died and were
/// replaced, how many inputs waited.
///
/// Pass it to [`PoolBuilder::timeline`](crate::PoolBuilder::timeline) of one pool or of several. Clones refer to the same
/// timeline. It may be written at any time, also several times, and after the pools are gone.
///
/// Inputs that take less than 20 µs share a bar, up to 1 ms together, so even a million inputs cost little. Memory is
/// bounded: beyond 100,000 bars, neighboring bars are merged; the number of inputs and the time that they ran stay exact.
/// Workers on other machines have lanes of their own, with the name of the machine; two nodes on one machine share them.
/// Pools that follow each other share lanes. There are at most 10,000 lanes, and the statistics are those of pools that are
/// there and of the 100 that ended last. The recording says what was left out.
///
/// # Examples
///
/// ```
/// use pool_core::{Pool, Timeline, pool_task};
///
/// #[pool_task]
/// fn square(x: u64) -> u64 { x * x }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir();
/// # let page = directory.join(format!("pool-timeline-{}.html", std::process::id()));
/// let timeline = Timeline::new();
/// let pool = Pool::builder().processes(2).timeline(&timeline).build()?;
/// pool.map(square, 0..1000)?;
/// timeline.write_html(&page)?;
/// # std::fs::remove_file(&page)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Timeline(Arc<Shared>);

struct Shared {
    began: Instant,
    began_unix: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    collected: Collected,
    /// By the number of the pool.
    pools: BTreeMap<u32, Recorded>,
    /// The number of the next pool.
    next: u32,
    /// The pools that have ended, in that order.
    ended: VecDeque<u32>,
    /// How many of these are no longer there.
    forgotten: usize,
}

impl State {
    /// Keeps the last statistics of a pool, and forgets the pool that ended first if there are too many.
    fn keep(&mut self, pool: u32, stats: Stats) {
        self.pools.insert(pool, Recorded::Once(Box::new(stats)));
        self.ended.push_back(pool);
        if self.ended.len() > ENDED_MAX
            && let Some(first) = self.ended.pop_front()
        {
            self.pools.remove(&first);
            self.forgotten += 1;
        }
    }
}

/// A pool that is recorded.
enum Recorded {
    /// The pool is being built.
    Nothing,
    Now(Weak<dyn Workers>),
    /// The pool is gone; these were its last statistics.
    Once(Box<Stats>),
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").finish_non_exhaustive()
    }
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline::new()
    }
}

impl Timeline {
    /// Creates an empty timeline, which begins now.
    #[must_use]
    pub fn new() -> Timeline {
        Timeline(Arc::new(Shared {
            began: Instant::now(),
            began_unix: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            state: Mutex::default(),
        }))
    }

    /// Writes everything recorded so far in Chrome's trace format, which <https://ui.perfetto.dev> opens.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn write_trace(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        trace::write(&self.recording(), &mut out)?;
        out.flush()
    }

    /// Writes everything recorded so far as a self-contained page.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn write_html(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        html::write(&self.recording(), &mut out)?;
        out.flush()
    }

    /// Also records a pool that is about to be built.
    pub(crate) fn record(&self) -> Recorder {
        let mut state = lock(&self.0.state);
        let pool = state.next;
        state.next += 1;
        state.pools.insert(pool, Recorded::Nothing);
        state.collected.begin(pool, self.0.began.elapsed());
        Recorder {
            timeline: Arc::clone(&self.0),
            pool,
        }
    }

    /// Everything recorded so far.
    fn recording(&self) -> Recording {
        let workers: Vec<(u32, Arc<dyn Workers>)> = {
            let state = lock(&self.0.state);
            let pools = state.pools.iter();
            let now = |(pool, recorded): (&u32, &Recorded)| match recorded {
                Recorded::Now(workers) => Some((*pool, workers.upgrade()?)),
                _ => None,
            };
            pools.filter_map(now).collect()
        };
        // When pools are asked, they report what is pending, which takes this lock.
        let asked: BTreeMap<u32, Stats> = workers
            .into_iter()
            .map(|(pool, workers)| (pool, workers.stats()))
            .collect();
        let now = self.0.began.elapsed();
        let mut state = lock(&self.0.state);
        let State {
            collected,
            pools,
            next,
            forgotten,
            ..
        } = &mut *state;
        let several = *next > 1;
        let (mut tables, mut running) = (Vec::new(), Vec::new());
        for (pool, recorded) in &*pools {
            let stats = match (recorded, asked.get(pool)) {
                (_, Some(stats)) => {
                    running.extend(still_running(collected, *pool, stats, now));
                    stats
                }
                (Recorded::Once(stats), None) => &**stats,
                _ => continue,
            };
            let of = |title: &str| match several {
                true => format!("{title} of pool {}", pool + 1),
                false => title.to_owned(),
            };
            tables.push(table(of("Tasks"), stats.tasks_table().0));
            tables.push(table(of("Workers"), stats.workers_table().0));
        }
        let mut notes = collected.notes();
        if *forgotten > 0 {
            notes.push(format!(
                "the statistics of {forgotten} pools that ended earlier were left out"
            ));
        }
        let mut bars = collected.bars();
        bars.extend(running);
        bars.sort_by_key(|bar| (bar.lane, bar.began_ns));
        let mut marks = collected.marks.clone();
        marks.sort_by_key(|mark| mark.at_ns);
        Recording {
            title: program(),
            started_unix_ms: self.0.began_unix.as_millis() as u64,
            length_ns: match asked.is_empty() {
                true => collected.last(),
                false => collected.last().max(now.as_nanos() as u64),
            },
            lanes: collected.lanes.clone(),
            tasks: collected.tasks.clone(),
            bars,
            marks,
            waiting: collected.waiting(),
            tables,
            notes,
        }
    }
}

/// The inputs that run now, in a pool with these statistics.
fn still_running(collected: &mut Collected, pool: u32, stats: &Stats, now: Duration) -> Vec<Bar> {
    let mut bars = Vec::new();
    for worker in &stats.workers {
        let Some(running) = &worker.running else {
            continue;
        };
        let lane = collected.lane(pool, worker.worker, worker.host.as_ref());
        let Some(lane) = lane else {
            continue;
        };
        let began_ns = now.saturating_sub(running.since).as_nanos() as u64;
        let ended_ns = now.as_nanos() as u64;
        bars.push(Bar {
            lane: lane as u32,
            pid: worker.pid.unwrap_or(0),
            task: collected.task(&running.task),
            job: u32::MAX,
            first: running.index,
            count: 1,
            failed: 0,
            began_ns,
            ended_ns,
            busy_ns: ended_ns - began_ns,
            outcome: Outcome::Running,
        });
    }
    bars
}

/// Rows of cells, of which the first row is the header.
fn table(title: String, mut rows: Vec<Vec<String>>) -> Table {
    let columns = match rows.is_empty() {
        true => Vec::new(),
        false => rows.remove(0),
    };
    Table {
        title,
        columns,
        rows,
    }
}

fn program() -> String {
    let program = env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    name.display().to_string()
}

/// Records one pool.
pub(crate) struct Recorder {
    timeline: Arc<Shared>,
    pool: u32,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Clone for Recorder {
    fn clone(&self) -> Recorder {
        Recorder {
            timeline: Arc::clone(&self.timeline),
            pool: self.pool,
        }
    }
}

impl Recorder {
    /// Takes news of the pool.
    pub(crate) fn take(&self, news: &[News]) {
        let mut state = lock(&self.timeline.state);
        state.collected.take(self.pool, news);
    }

    /// The pool has been built.
    pub(crate) fn begin(&self, workers: &Arc<dyn Workers>) {
        let mut state = lock(&self.timeline.state);
        let recorded = Recorded::Now(Arc::downgrade(workers));
        state.pools.insert(self.pool, recorded);
    }

    /// The pool could not be built.
    pub(crate) fn fail(&self) {
        let mut state = lock(&self.timeline.state);
        state.pools.remove(&self.pool);
        state
            .collected
            .end(self.pool, self.timeline.began.elapsed());
    }

    /// The pool is gone.
    pub(crate) fn end(&self, stats: Stats) {
        let mut state = lock(&self.timeline.state);
        state.keep(self.pool, stats);
        state
            .collected
            .end(self.pool, self.timeline.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_pools_that_have_ended_are_bounded() {
        let timeline = Timeline::new();
        for _ in 0..ENDED_MAX + 5 {
            timeline.record().end(Stats::default());
            timeline.record().fail();
        }
        let recording = timeline.recording();
        // There is one of tasks and one of workers.
        assert_eq!(recording.tables.len(), 2 * ENDED_MAX);
        assert_eq!(recording.tables[0].title, "Tasks of pool 11");
        assert_eq!(
            recording.notes,
            ["the statistics of 5 pools that ended earlier were left out"]
        );
        let state = lock(&timeline.0.state);
        assert_eq!(state.pools.len(), ENDED_MAX);
    }
}
