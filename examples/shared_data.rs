//! One large table that every task reads, and five ways to get it to the workers: `shared_data --mib 512`. For each it prints
//! how long the work took, and how much memory this program and its workers used for it.
//!
//! The work: of all rows of the table, find the one that is most similar to a given vector.

use std::fs;
use std::sync::OnceLock;
use std::time::Instant;

use clap::Parser;
use pool_core::{Error, Pool, Shared, pool_task};

/// Searches a large table in two workers, and compares the ways to get it to them.
#[derive(Parser)]
struct Options {
    /// Size of the table, in MiB
    #[arg(long, default_value_t = 128)]
    mib: usize,
    /// How many vectors to search for
    #[arg(long, default_value_t = 12)]
    searches: usize,
}

struct Problem {
    mib: usize,
    table: Vec<f32>,
    wanted: Vec<Vec<f32>>,
}

type Way = fn(&Problem, &mut Meter) -> Result<Vec<usize>, Error>;

const WAYS: [(&str, Way); 5] = [
    ("sent with each task", sent),
    ("partial", bound),
    ("Shared", shared),
    ("initializer", loaded_by_each),
    ("preload", loaded_once),
];

/// The table is an argument like any other: encoded and copied for each input.
fn sent(problem: &Problem, meter: &mut Meter) -> Result<Vec<usize>, Error> {
    let pool = Pool::with_processes(2)?;
    let inputs = problem.wanted.iter().map(|one| (&problem.table, one));
    meter.collect(pool.task(search_argument).by_ref().istarmap(inputs))
}

/// The same task, but the table is sent to each worker once: as memory that all of them map.
fn bound(problem: &Problem, meter: &mut Meter) -> Result<Vec<usize>, Error> {
    let pool = Pool::with_processes(2)?;
    let call = pool.task(search_argument).by_ref();
    let call = call.partial((&problem.table,));
    meter.collect(call.imap(&problem.wanted))
}

#[pool_task]
fn search_argument(table: &[f32], wanted: &[f32]) -> usize {
    search(table, wanted)
}

/// Also memory that all workers map, but as a value: several tasks and pools can use it, structs can contain it, and this
/// program can read it.
fn shared(problem: &Problem, meter: &mut Meter) -> Result<Vec<usize>, Error> {
    let pool = Pool::with_processes(2)?;
    let table = Shared::copy_from(&problem.table[..])?;
    let inputs = problem.wanted.iter().map(|one| (&table, one));
    meter.collect(pool.task(search_shared).by_ref().istarmap(inputs))
}

#[pool_task]
fn search_shared(table: &Shared<[f32]>, wanted: &[f32]) -> usize {
    search(table, wanted)
}

/// Each worker reads a table of its own when it starts.
fn loaded_by_each(problem: &Problem, meter: &mut Meter) -> Result<Vec<usize>, Error> {
    let builder = Pool::builder().processes(2);
    let pool = builder.initializer(load, (problem.mib,)).build()?;
    meter.collect(pool.task(search_static).by_ref().imap(&problem.wanted))
}

/// One process reads the table, and the workers are copies of that process.
fn loaded_once(problem: &Problem, meter: &mut Meter) -> Result<Vec<usize>, Error> {
    let builder = Pool::builder().processes(2);
    let pool = builder.preload(load, (problem.mib,)).build()?;
    meter.collect(pool.task(search_static).by_ref().imap(&problem.wanted))
}

static TABLE: OnceLock<Vec<f32>> = OnceLock::new();

#[pool_task]
fn load(mib: usize) {
    TABLE.set(read_table(mib)).expect("this runs once");
}

#[pool_task]
fn search_static(wanted: &[f32]) -> usize {
    search(TABLE.get().expect("load ran first"), wanted)
}

const WIDTH: usize = 64;

/// Stands for reading a file: returns random numbers from -1 to 1, always the same ones.
fn read_table(mib: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = || {
        // xorshift32
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    std::iter::repeat_with(next)
        .take((mib << 20) / size_of::<f32>())
        .collect()
}

/// The number of the row whose product with this vector is largest.
fn search(table: &[f32], wanted: &[f32]) -> usize {
    let product = |row: &[f32]| -> f32 { row.iter().zip(wanted).map(|(a, b)| a * b).sum() };
    let products = table.chunks_exact(WIDTH).map(product).enumerate();
    products
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(0, |(at, _)| at)
}

fn main() -> Result<(), Error> {
    let Options { mib, searches } = Options::parse();
    let table = read_table(mib);
    let rows = table.chunks_exact(WIDTH).cycle().step_by(97);
    let wanted: Vec<_> = rows.take(searches).map(<[f32]>::to_vec).collect();
    let expected: Vec<_> = wanted.iter().map(|one| search(&table, one)).collect();
    let problem = Problem { mib, table, wanted };

    println!("{:<20} {:>9} {:>9}", "", "seconds", "MiB");
    for (name, way) in WAYS {
        let mut meter = Meter::start();
        let found = way(&problem, &mut meter)?;
        println!("{name:<20} {:>9.3} {:>9}", meter.seconds, meter.mib());
        assert_eq!(found, expected, "{name}");
    }
    println!("each way has found the same rows");
    Ok(())
}

struct Meter {
    start: Instant,
    seconds: f64,
    kib_before: u64,
    kib_most: u64,
}

impl Meter {
    fn start() -> Meter {
        let kib = memory_kib();
        Meter {
            start: Instant::now(),
            seconds: 0.0,
            kib_before: kib,
            kib_most: kib,
        }
    }

    /// Returns all results. Measures the memory after each.
    fn collect(
        &mut self,
        results: impl Iterator<Item = Result<usize, Error>>,
    ) -> Result<Vec<usize>, Error> {
        let watched = results.inspect(|_| self.kib_most = self.kib_most.max(memory_kib()));
        let found = watched.collect();
        self.seconds = self.start.elapsed().as_secs_f64();
        found
    }

    /// The peak of memory in use, minus what was in use before.
    fn mib(&self) -> u64 {
        (self.kib_most - self.kib_before) >> 10
    }
}

/// The memory of this process and its children. A page that several of them share counts once, divided among them (PSS).
fn memory_kib() -> u64 {
    let threads = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let children = threads.flat_map(|thread| {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_whitespace().map(pss_kib).collect::<Vec<_>>()
    });
    pss_kib("self") + children.sum::<u64>()
}

/// 0 for a process that has just ended.
fn pss_kib(pid: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = pss.and_then(|pss| pss.trim().strip_suffix(" kB"));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
