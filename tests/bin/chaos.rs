//! A great many inputs, while workers are killed, stopped and terminated, and tasks misbehave: each input must get
//! exactly one outcome, no result may be wrong, nothing may run twice, and nothing may be left behind.
//!
//!     cargo run --release -p tests --bin chaos -- --tasks 5000000 --kill-every-ms 20
//!     cargo run --release -p tests --bin chaos -- --mixed --minutes 60
//!
//! Each input has a byte in a file that all processes share, in which every run is counted. So the test knows what ran,
//! whatever the pool says. Exits with 1, and says why, if a promise was broken.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use memmap2::MmapRaw;
use pool_core::{Error, Pool, Retries, Shared, pool_task};
use serde::{Deserialize, Deserializer, Serialize};
use tests::Possessions;

/// How many inputs run at a time, on all threads together; everything is checked between rounds.
const ROUND: usize = 100_000;

/// A pool that gives no outcome for this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run of this length shows how much memory grows per hour.
const SOAK: Duration = Duration::from_secs(20 * 60);

#[derive(Parser, Debug)]
#[command(about = "A great many inputs, under all kinds of faults")]
struct Arguments {
    /// How many inputs
    #[arg(long, default_value_t = 200_000)]
    tasks: usize,
    /// How often a worker is killed, in milliseconds, while inputs run; 0: never
    #[arg(long, default_value_t = 20)]
    kill_every_ms: u64,
    /// How many workers
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// How many threads submit
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Other faults too: SIGSTOP, SIGTERM, exits, panics, results that can't be decoded, limits, retries,
    /// cancellations, payloads up to 16 MiB
    #[arg(long)]
    mixed: bool,
    /// Replace workers after this many inputs
    #[arg(long)]
    max_tasks_per_child: Option<usize>,
    /// Contain the workers
    #[arg(long)]
    contain: bool,
    /// Sandbox the workers
    #[arg(long)]
    sandbox: bool,
    /// Run for this many minutes, however many inputs that takes
    #[arg(long)]
    minutes: Option<u64>,
    /// The seed of the random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

// ---- the tasks ------------------------------------------------------------------------------------

static RUNS: OnceLock<MmapRaw> = OnceLock::new();

/// Opens the file in which runs are counted.
#[pool_task]
fn count_in(file: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(file);
    let map = MmapRaw::map_raw(&file.expect("it is there")).expect("it can be mapped");
    assert!(RUNS.set(map).is_ok());
}

fn counted(map: &MmapRaw, place: u64) -> &AtomicU8 {
    assert!((place as usize) < map.len());
    // SAFETY: the place lies in the map.
    let byte = unsafe { map.as_mut_ptr().add(place as usize) };
    // SAFETY: it lives as long as `map`, and all processes access it as an atomic.
    unsafe { AtomicU8::from_ptr(byte) }
}

/// A number that changes when inputs run.
fn runs_in_all(map: &MmapRaw) -> u64 {
    let places = 0..map.len() as u64;
    places
        .map(|place| u64::from(counted(map, place).load(Ordering::Relaxed)))
        .sum()
}

fn run(place: u64) {
    let map = RUNS.get().expect("the initializer ran");
    counted(map, place).fetch_add(1, Ordering::Relaxed);
}

fn value(place: u64) -> u64 {
    place.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (place >> 7)
}

#[pool_task]
fn plain(place: u64) -> u64 {
    run(place);
    value(place)
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Fault {
    None,
    Panic,
    Exit(i32),
    Abort,
    Kill,
    Stop,
    Hang,
    Sleep(u16),
}

#[pool_task]
fn faulty(place: u64, fault: Fault) -> u64 {
    run(place);
    let me = process::id() as libc::pid_t;
    match fault {
        Fault::None => {}
        Fault::Panic => std::panic::resume_unwind(Box::new("on purpose")),
        Fault::Exit(code) => process::exit(code),
        Fault::Abort => process::abort(),
        // SAFETY: sends a signal to this process.
        Fault::Kill => _ = unsafe { libc::kill(me, libc::SIGKILL) },
        // SAFETY: as above.
        Fault::Stop => _ = unsafe { libc::kill(me, libc::SIGSTOP) },
        Fault::Hang => loop {
            thread::sleep(Duration::from_secs(1));
        },
        Fault::Sleep(micros) => thread::sleep(Duration::from_micros(micros.into())),
    }
    value(place)
}

/// A value that can always be encoded, but not always decoded.
#[derive(Debug, Serialize)]
struct OneWay(u64);

impl<'de> Deserialize<'de> for OneWay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        if value.is_multiple_of(3) {
            return Err(serde::de::Error::custom("on purpose"));
        }
        Ok(OneWay(value))
    }
}

#[pool_task]
fn one_way(place: u64) -> OneWay {
    run(place);
    OneWay(place)
}

#[pool_task]
fn echo(place: u64, bytes: Vec<u8>) -> Vec<u8> {
    run(place);
    bytes
}

fn table(seed: u64, len: usize) -> Vec<u64> {
    (0..len as u64).map(|at| value(at ^ seed)).collect()
}

fn looked_up(table: &[u64], place: u64) -> u64 {
    value(place) ^ table[place as usize % table.len()]
}

#[pool_task]
fn look_up(table: &[u64], place: u64) -> u64 {
    run(place);
    looked_up(table, place)
}

#[pool_task]
fn look_up_shared(table: Shared<[u64]>, place: u64) -> u64 {
    run(place);
    looked_up(&table, place)
}

// ---- what is seen ---------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Seen {
    outcomes: Mutex<BTreeMap<&'static str, usize>>,
    last: AtomicU64,
    broken: Mutex<Vec<String>>,
}

impl Seen {
    fn note(&self, what: &'static str, now: Duration) {
        *lock(&self.outcomes).entry(what).or_default() += 1;
        self.last.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    fn complain(&self, what: String) {
        let mut broken = lock(&self.broken);
        if broken.len() < 20 {
            println!("BROKEN: {what}");
        }
        broken.push(what);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How often an input may have run.
#[derive(Debug, Clone, Copy)]
enum May {
    Once,
    OftenAtMost(u8),
}

struct Chaos<'c> {
    arguments: &'c Arguments,
    pool: &'c Pool,
    runs: &'c MmapRaw,
    seen: &'c Seen,
    began: Instant,
}

impl Chaos<'_> {
    /// Checks one outcome of an input that should have a value.
    fn check<T>(
        &self,
        place: u64,
        outcome: Result<T, Error>,
        may: May,
        is_right: impl Fn(&T) -> bool,
    ) {
        let ran = counted(self.runs, place).load(Ordering::Relaxed);
        let most = match may {
            May::Once => 1,
            May::OftenAtMost(most) => most,
        };
        if ran > most {
            self.seen.complain(format!("input {place} ran {ran} times"));
        }
        let what = match outcome {
            Ok(value) => {
                if !is_right(&value) {
                    self.seen
                        .complain(format!("input {place} has a wrong result"));
                }
                if ran == 0 {
                    self.seen
                        .complain(format!("input {place} has a result, and did not run"));
                }
                "ok"
            }
            Err(Error::WorkerLost(_)) => "lost",
            Err(Error::Panicked(_)) => "panicked",
            Err(Error::TimeLimit(_)) => "past its limit",
            Err(Error::Decode(_)) => "can't be decoded",
            Err(Error::Cancelled) => "cancelled",
            Err(error) => {
                self.seen.complain(format!("input {place}: {error:?}"));
                "something else"
            }
        };
        self.seen.note(what, self.began.elapsed());
    }

    /// Runs the inputs at these places, in one of many ways.
    fn batch(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        if !self.arguments.mixed {
            self.plain(places, random);
            return;
        }
        match random.u8(..12) {
            0..3 => self.plain(places, random),
            3 => self.faulty(places, random),
            4 => self.retried(places, random),
            5 => self.undecodable(places),
            6 => self.echoed(places, random),
            7 => self.cancelled(places, random),
            9 => self.bound(places, random),
            10 => self.shared(places, random),
            8 => {
                let mut left: Vec<u64> = places.clone().collect();
                let mut results = self.pool.task(plain).imap_unordered(places);
                // An input without a result has an error, which does not say where it belongs.
                let mut failed = Vec::new();
                for result in &mut results {
                    match result {
                        Ok(found) => match left.iter().position(|place| value(*place) == found) {
                            Some(at) => {
                                let place = left.swap_remove(at);
                                self.check(place, Ok(found), May::Once, |found| {
                                    *found == value(place)
                                });
                            }
                            None => self.seen.complain(format!("nobody asked for {found}")),
                        },
                        Err(error) => failed.push(error),
                    }
                }
                if failed.len() != left.len() {
                    let (failed, left) = (failed.len(), left.len());
                    self.seen
                        .complain(format!("{failed} errors for {left} inputs"));
                }
                for (place, error) in left.into_iter().zip(failed) {
                    self.check(place, Err(error), May::Once, |_: &u64| true);
                }
            }
            _ => {
                for (place, result) in places.clone().zip(self.pool.task(plain).imap(places)) {
                    self.check(place, result, May::Once, |found| *found == value(place));
                }
            }
        }
    }

    fn plain(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let mut call = self.pool.task(plain);
        if random.bool() {
            call = call.chunksize(random.usize(1..100));
        }
        for (place, result) in places.clone().zip(call.map_results(places)) {
            self.check(place, result, May::Once, |found| *found == value(place));
        }
    }

    /// The data that the inputs share comes through the ring, or in memory of its own.
    fn bound(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let table = table(places.start, random.usize(1..20_000));
        let call = self.pool.task(look_up).by_ref().partial((&table,));
        let inputs: Vec<u64> = places.collect();
        for (place, result) in inputs.iter().zip(call.map_results(&inputs)) {
            self.check(*place, result, May::Once, |found| {
                *found == looked_up(&table, *place)
            });
        }
    }

    fn shared(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let table = table(places.start, random.usize(1..20_000));
        let shared = Shared::copy_from(&table[..]).expect("there is memory");
        let inputs = places.clone().map(|place| (shared.clone(), place));
        let call = self.pool.task(look_up_shared);
        for (place, result) in places.zip(call.starmap_results(inputs)) {
            self.check(place, result, May::Once, |found| {
                *found == looked_up(&table, place)
            });
        }
    }

    fn faults(&self, random: &mut fastrand::Rng) -> Fault {
        match random.u16(..600) {
            0 => Fault::Panic,
            1 => Fault::Exit(0),
            2 => Fault::Exit(3),
            3 => Fault::Abort,
            4 => Fault::Kill,
            5 => Fault::Stop,
            6 => Fault::Hang,
            7..40 => Fault::Sleep(random.u16(..2000)),
            _ => Fault::None,
        }
    }

    fn faulty(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let places = places.start..places.end.min(places.start + 1000);
        let inputs: Vec<_> = places
            .clone()
            .map(|place| (place, self.faults(random)))
            .collect();
        let call = self
            .pool
            .task(faulty)
            .time_limit(Duration::from_millis(300));
        for (place, result) in places.zip(call.starmap_results(inputs)) {
            self.check(place, result, May::Once, |found| *found == value(place));
        }
    }

    fn retried(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let places = places.start..places.end.min(places.start + 300);
        let retries = Retries::new(2).on_panic().on_time_limit();
        let retries = retries.backoff(Duration::from_millis(random.u64(..20)));
        let call = self.pool.task(faulty).retries(retries);
        let call = call.time_limit(Duration::from_millis(300));
        let results: Vec<_> = places
            .clone()
            .map(|place| call.apply_async((place, self.faults(random))))
            .collect();
        for (place, result) in places.zip(results) {
            self.check(place, result.get(), May::OftenAtMost(3), |found| {
                *found == value(place)
            });
        }
    }

    fn undecodable(&self, places: std::ops::Range<u64>) {
        for (place, result) in places
            .clone()
            .zip(self.pool.task(one_way).map_results(places))
        {
            let is_readable = !place.is_multiple_of(3);
            if result.is_ok() && !is_readable {
                self.seen
                    .complain(format!("input {place} can't have a result"));
            }
            self.check(place, result, May::Once, |found| found.0 == place);
        }
    }

    fn echoed(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let places = places.start..places.end.min(places.start + 40);
        let most = if random.u8(..8) == 0 {
            16 << 20
        } else {
            100_000
        };
        let inputs: Vec<_> = places
            .clone()
            .map(|place| (place, vec![place as u8; random.usize(1..most)]))
            .collect();
        let lengths: Vec<usize> = inputs.iter().map(|(_, bytes)| bytes.len()).collect();
        let results = self.pool.starmap_async(echo, inputs);
        // One failed input fails the whole map.
        match results.get() {
            Ok(all) => {
                for ((place, bytes), length) in places.zip(all).zip(lengths) {
                    self.check(place, Ok(bytes), May::Once, |bytes: &Vec<u8>| {
                        bytes.len() == length && bytes.iter().all(|byte| *byte == place as u8)
                    });
                }
            }
            Err(error) => {
                for place in places {
                    self.check(place, Err(error.clone()), May::Once, |_: &Vec<u8>| true);
                }
            }
        }
    }

    fn cancelled(&self, places: std::ops::Range<u64>, random: &mut fastrand::Rng) {
        let places = places.start..places.end.min(places.start + 1000);
        let call = self.pool.task(plain);
        let results: Vec<_> = places
            .clone()
            .map(|place| call.apply_async((place,)))
            .collect();
        for result in &results {
            if random.u8(..4) == 0 {
                black_box(result.cancel());
            }
        }
        for (place, result) in places.zip(results) {
            self.check(place, result.get(), May::Once, |found| {
                *found == value(place)
            });
        }
    }

    /// Does something to a worker that the pool must cope with.
    fn harm(&self, random: &mut fastrand::Rng) {
        let pids = self.pool.worker_pids();
        let Some(pid) = random.choice(&pids) else {
            return;
        };
        let pid = *pid as libc::pid_t;
        let signal = if self.arguments.mixed {
            *random
                .choice([libc::SIGKILL, libc::SIGKILL, libc::SIGTERM, libc::SIGSTOP].iter())
                .unwrap_or(&libc::SIGKILL)
        } else {
            libc::SIGKILL
        };
        // SAFETY: sends a signal to a child of ours; at worst it is gone.
        unsafe { libc::kill(pid, signal) };
        if signal == libc::SIGSTOP {
            thread::sleep(Duration::from_millis(random.u64(..100)));
            // SAFETY: as above.
            unsafe { libc::kill(pid, libc::SIGCONT) };
        }
    }
}

// ---- what is left ---------------------------------------------------------------------------------

/// Returns how many bytes this program holds. (Its resident memory varies with what the C library keeps for reuse in
/// its arenas.)
fn held() -> u64 {
    // SAFETY: reads numbers.
    let heap = unsafe { libc::mallinfo2() };
    (heap.uordblks + heap.hblkhd) as u64
}

/// Returns by how many MiB memory grew from the first moment to the last: the slope of a line through the minimum of
/// each of several spans of time. (Memory that is reused is held sometimes more and sometimes less.)
fn growth(memory: &[(Duration, u64)]) -> f64 {
    const SPANS: usize = 20;
    let least: Vec<(f64, f64)> = memory
        .chunks(memory.len().div_ceil(SPANS).max(1))
        .filter_map(|span| span.iter().min_by_key(|(_, bytes)| *bytes))
        .map(|(at, bytes)| (at.as_secs_f64(), *bytes as f64 / f64::from(1 << 20)))
        .collect();
    let count = least.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| least.iter().map(of).sum::<f64>() / count;
    let (at, held) = (mean(|point| point.0), mean(|point| point.1));
    let (up, across) = least.iter().fold((0.0, 0.0), |(up, across), point| {
        let distance = point.0 - at;
        (
            up + distance * (point.1 - held),
            across + distance * distance,
        )
    });
    let span = memory.last().map_or(0.0, |(at, _)| at.as_secs_f64());
    if across > 0.0 {
        up / across * span
    } else {
        0.0
    }
}

fn main() -> Result<ExitCode, Box<dyn StdError>> {
    let arguments = Arguments::parse();
    let directory = tempfile::tempdir()?;
    let file: PathBuf = directory.path().join("runs");
    File::create(&file)?.set_len(ROUND as u64)?;
    let runs = MmapRaw::map_raw(&OpenOptions::new().read(true).write(true).open(&file)?)?;
    let before = Possessions::at_rest();

    let mut builder = tests::builder()
        .processes(arguments.processes)
        .initializer(count_in, (file,));
    if let Some(tasks) = arguments.max_tasks_per_child {
        builder = builder.max_tasks_per_child(tasks);
    }
    if arguments.contain {
        builder = builder.contain();
    }
    let pool = builder.build()?;
    let seen = Seen::default();
    let chaos = Chaos {
        arguments: &arguments,
        pool: &pool,
        runs: &runs,
        seen: &seen,
        began: Instant::now(),
    };
    let over = AtomicBool::new(false);
    let kills = AtomicUsize::new(0);
    let deadline = arguments
        .minutes
        .map(|minutes| chaos.began + Duration::from_secs(60 * minutes));
    let mut memory: Vec<(Duration, u64)> = Vec::new();
    let mut inputs = 0;
    thread::scope(|scope| {
        if arguments.kill_every_ms > 0 {
            scope.spawn(|| {
                let mut random = fastrand::Rng::with_seed(arguments.seed);
                let mut has_run = 0;
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(arguments.kill_every_ms));
                    // On a machine that starts workers more slowly than they are killed, no input would ever run.
                    while runs_in_all(&runs) == has_run && !over.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(1));
                    }
                    has_run = runs_in_all(&runs);
                    chaos.harm(&mut random);
                    kills.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                let last = Duration::from_millis(seen.last.load(Ordering::Relaxed));
                if chaos.began.elapsed().saturating_sub(last) > PATIENCE {
                    println!("BROKEN: no outcome for {PATIENCE:?}: the pool hangs");
                    process::exit(2);
                }
            }
        });
        let goes_on = |inputs: usize| match deadline {
            Some(deadline) => Instant::now() < deadline,
            None => inputs < arguments.tasks,
        };
        while goes_on(inputs) {
            for place in 0..ROUND as u64 {
                counted(&runs, place).store(0, Ordering::Relaxed);
            }
            let round = inputs;
            let share = (ROUND / arguments.threads) as u64;
            let batches: usize = thread::scope(|scope| {
                let threads: Vec<_> = (0..arguments.threads as u64)
                    .map(|thread| {
                        let chaos = &chaos;
                        scope.spawn(move || {
                            let seed = chaos.arguments.seed ^ (round as u64) << 8 ^ thread;
                            let mut random = fastrand::Rng::with_seed(seed);
                            let (mut next, end) = (thread * share, (thread + 1) * share);
                            while next < end {
                                let batch = random.u64(1..20_000).min(end - next);
                                chaos.batch(next..next + batch, &mut random);
                                next += batch;
                            }
                            share as usize
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_default())
                    .sum()
            });
            inputs += batches;
            memory.push((chaos.began.elapsed(), held()));
        }
        over.store(true, Ordering::Relaxed);
    });
    let took = chaos.began.elapsed();
    drop(pool);
    let left = before.regained();

    let outcomes = lock(&seen.outcomes);
    let total: usize = outcomes.values().sum();
    println!(
        "{total} outcomes in {took:.1?}, {} times a worker was harmed",
        kills.load(Ordering::Relaxed)
    );
    for (what, count) in &*outcomes {
        println!("{count:>10} {what}");
    }
    let growth = growth(&memory);
    println!("{growth:>10.2} MiB memory growth");
    let slope = growth / (took.as_secs_f64() / 3600.0);
    if took >= SOAK {
        println!("{slope:>10.2} MiB growth per hour");
    }
    if let Err(left) = left {
        seen.complain(left);
    }
    if growth > 16.0 {
        seen.complain(format!("memory grew by {growth:.1} MiB"));
    }
    if took >= SOAK && slope > 1.0 {
        seen.complain(format!("memory grew by {slope:.1} MiB per hour"));
    }
    let broken = lock(&seen.broken).len();
    println!("{broken:>10} promises broken");
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
