//! What the test programs share; and the programs in the README and the guide, run as doctests.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Event, Pool, PoolBuilder, Sandbox};

/// The programs in Markdown files.
#[cfg(doctest)]
mod pages {
    macro_rules! pages {
        ($($name:ident: $path:literal,)*) => {
            $(
                #[doc = include_str!($path)]
                mod $name {}
            )*
        };
    }

    pages! {
        readme: "../README.md",
        readme_of_pool_core: "../pool-core/README.md",
        readme_of_pool_nats: "../pool-nats/README.md",
        first_steps: "../pool-core/guide/first_steps.md",
        data: "../pool-core/guide/data.md",
        errors: "../pool-core/guide/errors.md",
        limits: "../pool-core/guide/limits.md",
        sandbox: "../pool-core/guide/sandbox.md",
        output: "../pool-core/guide/output.md",
        services: "../pool-core/guide/services.md",
        testing: "../pool-core/guide/testing.md",
        machines: "../pool-core/guide/machines.md",
        coming_from: "../pool-core/guide/coming_from.md",
        how_it_works: "../pool-core/guide/how_it_works.md",
        recipes: "../pool-core/guide/recipes.md",
    }
}

/// Whether a test program was told to sandbox its workers, by the argument `--sandbox`.
pub fn is_sandboxed() -> bool {
    env::args_os().any(|argument| argument == "--sandbox")
}

/// The settings of a test program's pools. If their workers are sandboxed, they may do only this, and what every worker may.
pub fn builder_with(permit: impl FnOnce(Sandbox) -> Sandbox) -> PoolBuilder {
    let builder = Pool::builder();
    if is_sandboxed() {
        builder.sandbox(permit(Sandbox::new()))
    } else {
        builder
    }
}

/// The same, without permissions.
pub fn builder() -> PoolBuilder {
    builder_with(|sandbox| sandbox)
}

/// A pool of so many workers, without permissions.
///
/// # Errors
///
/// If the pool can't be started.
pub fn pool(processes: usize) -> Result<Pool, Error> {
    builder().processes(processes).build()
}

/// The same, with permissions.
///
/// # Errors
///
/// If the pool can't be started.
pub fn pool_with(permit: impl FnOnce(Sandbox) -> Sandbox, processes: usize) -> Result<Pool, Error> {
    builder_with(permit).processes(processes).build()
}

/// Permits reading and writing temporary files.
pub fn temporary(sandbox: Sandbox) -> Sandbox {
    let directory = env::temp_dir();
    sandbox.read(&directory).write(&directory)
}

/// The events that were told.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<(Mutex<Vec<Event>>, Condvar)>);

impl Told {
    /// Keeps an event.
    pub fn tell(&self, event: &Event) {
        let (events, changed) = &*self.0;
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event.clone());
        changed.notify_all();
    }

    /// Waits for the first event, from this one on, of which `find` finds something.
    pub fn wait_for<R>(&self, from: usize, find: impl Fn(&Event) -> Option<R>) -> R {
        let (events, changed) = &*self.0;
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = events.iter().skip(from).find_map(&find) {
                return found;
            }
            let waited = changed.wait(events);
            events = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All events until now.
    pub fn all(&self) -> Vec<Event> {
        let (events, _) = &*self.0;
        let events = events.lock().unwrap_or_else(PoisonError::into_inner);
        events.clone()
    }
}

/// Returns how many children this process has, dead ones included.
pub fn children() -> usize {
    fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .map(|children| children.split_whitespace().count())
        .sum()
}

/// The system resources that a program holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Possessions {
    descriptors: usize,
    threads: usize,
    children: usize,
    /// Mappings of anonymous memory.
    shared: usize,
    /// The files in `TMPDIR` (the test that starts the program gives it its own) and in `/dev/shm`.
    files: BTreeSet<PathBuf>,
}

impl Possessions {
    /// How long the system may take to clean up what a program has returned: a thread that was joined still counts
    /// among the program's for a moment, which is long on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Returns what a program with only this thread and no children holds; waits until that is so.
    ///
    /// # Panics If it does not come to be so.
    pub fn at_rest() -> Possessions {
        let began = Instant::now();
        loop {
            let now = Possessions::now();
            if (now.threads, now.children) == (1, 0) {
                return now;
            }
            assert!(began.elapsed() < Possessions::PATIENCE, "{now:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn now() -> Possessions {
        let entries = |path: &str| fs::read_dir(path).map_or(0, Iterator::count);
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let temporary = env::var_os("TMPDIR").map(PathBuf::from);
        let files = temporary
            .into_iter()
            .chain([PathBuf::from("/dev/shm")])
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        Possessions {
            descriptors: entries("/proc/self/fd"),
            threads: entries("/proc/self/task"),
            children: children(),
            shared: maps.lines().filter(|line| line.contains("memfd:")).count(),
            files,
        }
    }

    /// Waits until the program holds exactly this again.
    ///
    /// # Errors If it does not: a text with what it held and what it holds.
    pub fn regained(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let mut now = Possessions::now();
            // Other programs' files may have gone meanwhile.
            if now.files.is_subset(&self.files) {
                now.files.clone_from(&self.files);
            }
            if now == *self {
                return Ok(());
            }
            if began.elapsed() > Possessions::PATIENCE {
                return Err(format!("left behind: {self:?} became {now:?}"));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}
