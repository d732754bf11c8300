//! Other pools: Python's, through a script that runs once; procspawn and rayon, in this process.

use std::collections::VecDeque;
use std::fmt::Write;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Duration;

use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use serde_json::Value;

use crate::tasks::busy;
use crate::tools::{Outcome, spin, time};

/// The script's figures, most of them in seconds. Empty if there is no Python.
#[derive(Debug)]
pub(crate) struct Python(Option<Value>);

impl Python {
    /// Runs the script for these groups of measurements.
    pub(crate) fn measure(quick: bool, groups: &[&str]) -> Python {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/python.py");
        let output = Command::new("python3")
            .args([script, if quick { "1" } else { "0" }])
            .args(groups)
            .stderr(Stdio::inherit())
            .output();
        let output = output.ok().filter(|output| output.status.success());
        Python(output.and_then(|output| serde_json::from_slice(&output.stdout).ok()))
    }

    pub(crate) fn is_missing(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn version(&self) -> Option<&str> {
        self.0.as_ref()?.get("version")?.as_str()
    }

    /// Returns the figure called `key`.
    pub(crate) fn get(&self, key: &str) -> Option<f64> {
        self.0.as_ref()?.get(key)?.as_f64()
    }

    /// Returns the figure called `key` followed by a number, such as `ready_8`.
    pub(crate) fn at(&self, key: &str, number: usize) -> Option<f64> {
        let mut name = key.to_owned();
        write!(name, "_{number}").ok()?;
        self.get(&name)
    }
}

/// procspawn's pool. It re-executes this program too, and needs `procspawn::init()` in `main`.
pub(crate) struct Procspawn(procspawn::Pool);

impl Procspawn {
    pub(crate) fn new(processes: usize) -> Outcome<Procspawn> {
        let pool = procspawn::Pool::new(processes)?;
        let procspawn = Procspawn(pool);
        // It starts processes without waiting for them.
        procspawn.one_by_one(16 * processes as u64)?;
        Ok(procspawn)
    }

    /// Returns the seconds for `count` empty tasks, with up to a hundred open at a time: each takes four descriptors,
    /// and procspawn panics when they run out.
    pub(crate) fn one_by_one(&self, count: u64) -> Outcome<f64> {
        time(|| {
            let mut open = VecDeque::new();
            for x in 0..count {
                if open.len() == 100 {
                    join(open.pop_front())?;
                }
                open.push_back(self.0.spawn(x, |x: u64| x.wrapping_mul(x)));
            }
            open.into_iter().try_for_each(|handle| join(Some(handle)))
        })
    }

    /// Returns the seconds per round trip, with a pause before each.
    pub(crate) fn round_trip(&self, count: u64, pause: Duration) -> Outcome<f64> {
        let mut total = 0.0;
        for x in 0..count {
            spin(pause);
            total += time(|| {
                let handle = self.0.spawn(x, |x: u64| x.wrapping_mul(x));
                handle.join().map(|square| _ = black_box(square))
            })?;
        }
        Ok(total / count as f64)
    }

    /// Returns the seconds for a byte string there and back.
    pub(crate) fn echo(&self, bytes: Vec<u8>) -> Outcome<f64> {
        time(|| {
            let handle = self.0.spawn(bytes, |bytes: Vec<u8>| bytes);
            handle.join().map(|bytes| _ = black_box(bytes))
        })
    }
}

fn join(handle: Option<procspawn::JoinHandle<u64>>) -> Result<(), procspawn::SpawnError> {
    handle.map_or(Ok(()), |handle| {
        handle.join().map(|square| _ = black_box(square))
    })
}

impl Drop for Procspawn {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// rayon, with two threads.
#[derive(Debug)]
pub(crate) struct Rayon(rayon::ThreadPool);

impl Rayon {
    pub(crate) fn new() -> Outcome<Rayon> {
        let builder = rayon::ThreadPoolBuilder::new().num_threads(2);
        Ok(Rayon(builder.build()?))
    }

    /// Returns the seconds for `count` empty jobs in one scope.
    pub(crate) fn spawn(&self, count: u64) -> Outcome<f64> {
        time(|| {
            self.0.scope(|scope| {
                for x in 0..count {
                    scope.spawn(move |_| _ = black_box(x.wrapping_mul(x)));
                }
            });
            Ok::<_, String>(())
        })
    }

    /// Returns the seconds for busy tasks of these durations, one job each.
    pub(crate) fn work(&self, durations: &[u64]) -> Outcome<f64> {
        time(|| {
            let tasks = || durations.par_iter().with_max_len(1);
            let sum: Vec<u64> = self.0.install(|| tasks().map(|d| busy(*d)).collect());
            black_box(sum);
            Ok::<_, String>(())
        })
    }
}
