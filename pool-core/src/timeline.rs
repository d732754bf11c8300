//! A timeline: what happened in a pool, to be looked at.
//!
//! | module | |
//! |---|---|
//! | `collect` | what is kept of what a backend tells, in bounded memory |
//! | `model` | what is recorded, as plain data |
//! | `trace` | the same in Chrome's trace format, for Perfetto |
//! | `html` | the same as a page that draws it |

mod collect;
mod html;
mod model;
mod trace;

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::mem;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::collect::Collected;
use self::model::{Bar, Outcome, Recording, Table};
use crate::backend::{News, Workers};
use crate::stats::Stats;
use crate::sync::lock;

/// Records what the workers of pools do, to be looked at: when each input ran and where, when workers started, died and were replaced, how
/// many inputs waited.
///
/// It is given to [`PoolBuilder::timeline`](crate::PoolBuilder::timeline), of one pool or of several. A copy is the same timeline. It may be
/// written at any time, and several times, also after the pools are gone.
///
/// Inputs that take less than 20 µs share a bar, up to 1 ms together, so a million inputs make no difference that one would feel. Memory is
/// bounded: from 100,000 bars on, neighbouring bars are merged; how many inputs there were and how long they ran stays exact. Nodes of
/// `pool-nats` tell nothing yet.
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
    pools: Vec<Recorded>,
}

/// A pool that is recorded.
enum Recorded {
    /// It is being built, or could not be.
    Nothing,
    Now(Weak<dyn Workers>),
    /// It is gone, and this is what it has done.
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
    /// An empty one, which begins now.
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

    /// Writes what was recorded until now in Chrome's trace format, which <https://ui.perfetto.dev> opens.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn write_trace(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        trace::write(&self.recording(), &mut out)?;
        out.flush()
    }

    /// Writes what was recorded until now as one page that needs nothing else.
    ///
    /// # Errors
    ///
    /// If the file can't be written.
    pub fn write_html(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        html::write(&self.recording(), &mut out)?;
        out.flush()
    }

    /// A pool that is about to be built is recorded too.
    pub(crate) fn record(&self) -> Recorder {
        let mut state = lock(&self.0.state);
        let pool = state.pools.len() as u32;
        state.pools.push(Recorded::Nothing);
        Recorder {
            timeline: Arc::clone(&self.0),
            pool,
            began: self.0.began.elapsed(),
        }
    }

    /// What was recorded until now.
    fn recording(&self) -> Recording {
        let workers: Vec<Option<Arc<dyn Workers>>> = {
            let state = lock(&self.0.state);
            let pools = state.pools.iter();
            let now = |pool: &Recorded| match pool {
                Recorded::Now(workers) => workers.upgrade(),
                _ => None,
            };
            pools.map(now).collect()
        };
        // Pools tell what there is when they are asked, and take this lock.
        let asked: Vec<Option<Stats>> = workers
            .into_iter()
            .map(|workers| Some(workers?.stats()))
            .collect();
        let now = self.0.began.elapsed();
        let mut state = lock(&self.0.state);
        let State { collected, pools } = &mut *state;
        let several = pools.len() > 1;
        let (mut tables, mut running) = (Vec::new(), Vec::new());
        for (pool, (recorded, asked)) in (0..).zip(pools.iter().zip(&asked)) {
            let stats = match (recorded, asked) {
                (_, Some(stats)) => {
                    running.extend(still_running(collected, pool, stats, now));
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
        let is_over = asked.iter().all(Option::is_none);
        let mut bars = collected.bars();
        bars.extend(running);
        bars.sort_by_key(|bar| (bar.lane, bar.began_ns));
        let mut marks = collected.marks.clone();
        marks.sort_by_key(|mark| mark.at_ns);
        Recording {
            title: program(),
            started_unix_ms: self.0.began_unix.as_millis() as u64,
            length_ns: match is_over {
                true => collected.last(),
                false => collected.last().max(now.as_nanos() as u64),
            },
            lanes: collected.lanes.clone(),
            tasks: collected.tasks.clone(),
            bars,
            marks,
            waiting: collected.waiting(),
            tables,
            notes: collected.notes(),
        }
    }
}

/// What runs now, in a pool that has these statistics.
fn still_running(collected: &mut Collected, pool: u32, stats: &Stats, now: Duration) -> Vec<Bar> {
    let mut bars = Vec::new();
    for worker in &stats.workers {
        let Some(running) = &worker.running else {
            continue;
        };
        let began_ns = now.saturating_sub(running.since).as_nanos() as u64;
        let ended_ns = now.as_nanos() as u64;
        bars.push(Bar {
            lane: collected.lane(pool, worker.worker, worker.host.as_ref()) as u32,
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

/// Rows of cells, of which the first has the heads.
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
    /// When the pool was built.
    began: Duration,
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
            ..*self
        }
    }
}

impl Recorder {
    /// Takes what happened.
    pub(crate) fn take(&self, news: &[News]) {
        let mut state = lock(&self.timeline.state);
        state.collected.take(self.pool, self.began, news);
    }

    /// The pool is built.
    pub(crate) fn begin(&self, workers: &Arc<dyn Workers>) {
        self.set(Recorded::Now(Arc::downgrade(workers)));
    }

    /// The pool is gone.
    pub(crate) fn end(&self, stats: Stats) {
        self.set(Recorded::Once(Box::new(stats)));
    }

    fn set(&self, recorded: Recorded) {
        let mut state = lock(&self.timeline.state);
        if let Some(pool) = state.pools.get_mut(self.pool as usize) {
            let before = mem::replace(pool, recorded);
            drop(state);
            // Perhaps the last that held the workers.
            drop(before);
        }
    }
}
