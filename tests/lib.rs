//! What the test programs have in common; and the programs in the README and the guide, run as doctests.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

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
        output: "../pool-core/guide/output.md",
        services: "../pool-core/guide/services.md",
        testing: "../pool-core/guide/testing.md",
        machines: "../pool-core/guide/machines.md",
        coming_from: "../pool-core/guide/coming_from.md",
        how_it_works: "../pool-core/guide/how_it_works.md",
        recipes: "../pool-core/guide/recipes.md",
    }
}

/// How many children this process has, dead ones included.
pub fn children() -> usize {
    fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .map(|children| children.split_whitespace().count())
        .sum()
}

/// What a program holds of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Possessions {
    descriptors: usize,
    threads: usize,
    children: usize,
    /// Mappings of memory that has no name.
    shared: usize,
    /// What lies in `TMPDIR` (the test that starts the program gives it one of its own) and in `/dev/shm`.
    files: BTreeSet<PathBuf>,
}

impl Possessions {
    /// How long the system may take to put away what a program has given back: a thread that was joined is among
    /// the program's for a moment yet.
    const PATIENCE: Duration = Duration::from_secs(2);

    /// Of a program that has this thread only and no child; waits until that is so.
    ///
    /// # Panics
    /// It does not come to be so.
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

    /// Waits until the program holds just this again.
    ///
    /// # Errors
    /// It does not: what it held and what it holds, as text.
    pub fn regained(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let now = Possessions::now();
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
