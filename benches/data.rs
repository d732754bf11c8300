//! Data that tasks need: lent, bound, shared, in blocks, preloaded.

use std::fs;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pool_core::{Pool, Shared, pool_task};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::raw::ending_processes;
use crate::report::{AtLeast, AtMost, Row};
use crate::tasks::square;
use crate::tools::{Outcome, field, fresh, side_by_side, time};
use crate::{Bench, DATA};

/// The modes in which this program measures in a process of its own.
pub(crate) mod modes {
    pub(crate) const LENT: &str = "data-lent";
    pub(crate) const CLONED: &str = "data-cloned";
    pub(crate) const SHARED: &str = "data-shared";
    pub(crate) const PRELOADED: &str = "data-preloaded";
    pub(crate) const FORKS: &str = "data-forks";
}

const MIB: usize = 1 << 20;

/// The number of workers of a preloaded pool.
const WORKERS: usize = 8;

#[pool_task]
pub(crate) fn letters(text: &str) -> usize {
    text.len()
}

#[pool_task]
pub(crate) fn nothing(x: u64) -> u64 {
    x
}

#[pool_task]
pub(crate) fn at_of_shared(table: Shared<[f64]>, at: u64) -> u64 {
    at ^ table[at as usize & 0xff].to_bits()
}

#[pool_task]
pub(crate) fn at_of_shared_bytes(table: Shared<[u8]>, at: u64) -> u64 {
    at ^ u64::from(table[at as usize & 0xff])
}

#[pool_task]
pub(crate) fn at_of_bound(table: &[u8], at: u64) -> u64 {
    at ^ u64::from(table[at as usize & 0xff])
}

#[pool_task]
pub(crate) fn echo_numbers(numbers: Vec<f64>) -> Vec<f64> {
    numbers
}

#[pool_task]
pub(crate) fn count_numbers(numbers: &[f64]) -> usize {
    numbers.len()
}

static MODEL: OnceLock<Vec<u8>> = OnceLock::new();

/// Loads a model, and notes in a file when it had finished.
#[pool_task]
pub(crate) fn load(bytes: usize, through: PathBuf) {
    assert!(MODEL.set(vec![1; bytes]).is_ok());
    fs::write(through, now().as_nanos().to_string()).expect("there is room");
}

#[pool_task]
pub(crate) fn at_of_model(at: u64) -> u64 {
    at ^ u64::from(MODEL.get().expect("it was loaded")[at as usize])
}

/// Reads the clock that all processes share.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

fn texts() -> Vec<String> {
    (0..1_000_000).map(|x| format!("{x:032}")).collect()
}

/// As much memory as is available, up to 1 GiB.
fn much() -> Outcome<usize> {
    let free = field("/proc/meminfo", "MemAvailable:")? as usize >> 10;
    Ok(1024.min(free / 4) * MIB)
}

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    lend(bench)?;
    share(bench)?;
    bind(bench)?;
    sizes(bench)?;
    blocks(bench)?;
    preload(bench)
}

fn number(value: &Value, key: &str) -> Outcome<f64> {
    let number = value.get(key).and_then(Value::as_f64);
    Ok(number.ok_or_else(|| format!("no {key} in {value}"))?)
}

fn lend(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    let texts = texts();
    let [lent, cloned] = side_by_side(
        bench.runs,
        [
            &mut || time(|| pool.task(letters).by_ref().map(&texts).map(drop)),
            &mut || time(|| pool.map(letters, texts.clone()).map(drop)),
        ],
    )?;
    let row = Row::new("map of a million texts, lent", lent * 1e3, "ms").limit(
        "map of their clones",
        cloned * 1e3,
        AtMost(1.0),
    );
    bench.report.row(row);
    let lent = number(&fresh(modes::LENT)?, "kib")?;
    let cloned = number(&fresh(modes::CLONED)?, "kib")?;
    let row = Row::new("the same, memory at the peak", lent / 1024.0, "MiB").limit(
        "map of their clones",
        cloned / 1024.0,
        AtMost(1.0),
    );
    bench.report.row(row);
    Ok(())
}

/// Returns by how much the peak of memory exceeds the memory used before.
pub(crate) fn peak(clones: bool) -> Outcome<Value> {
    let peak = || field("/proc/self/status", "VmHWM:");
    let pool = Pool::with_processes(2)?;
    let texts = texts();
    pool.task(letters).by_ref().map(&texts[..1000])?;
    let before = peak()?;
    if clones {
        pool.map(letters, texts.clone())?;
    } else {
        pool.task(letters).by_ref().map(&texts)?;
    }
    Ok(json!({ "kib": peak()? - before }))
}

fn share(bench: &mut Bench) -> Outcome<()> {
    let figures = fresh(modes::SHARED)?;
    let mib = number(&figures, "bytes")? / MIB as f64;
    let shared = number(&figures, "shared")? * 1e6;
    let row = Row::new(format!("a task with a Shared of {mib} MiB"), shared, "µs").limit(
        "a task without",
        number(&figures, "empty")? * 1e6,
        AtMost(1.5),
    );
    bench.report.row(row);
    let grown = number(&figures, "shmem_kib")? / 1024.0;
    let row = Row::new("the same, shared memory of the machine", grown, "MiB").limit(
        "the value",
        mib,
        AtMost(1.01),
    );
    bench.report.row(row);
    Ok(())
}

/// Compares tasks that read a large value with tasks that read nothing.
pub(crate) fn shared() -> Outcome<Value> {
    let pool = Pool::with_processes(2)?;
    let bytes = much()?;
    let shmem = || field("/proc/meminfo", "Shmem:");
    let before = shmem()?;
    let values = vec![1.0; bytes / size_of::<f64>()];
    let table = Shared::copy_from(&values[..])?;
    drop(values);
    let tasks = 10_000;
    let inputs = || (0..tasks).map(|at| (table.clone(), at));
    pool.starmap(at_of_shared, inputs())?;
    pool.map(nothing, 0..tasks)?;
    let [shared, empty] = side_by_side(
        9,
        [
            &mut || time(|| pool.starmap(at_of_shared, inputs()).map(drop)),
            &mut || time(|| pool.map(nothing, 0..tasks).map(drop)),
        ],
    )?;
    let each = |seconds: f64| seconds / tasks as f64;
    Ok(json!({
        "bytes": bytes,
        "shared": each(shared),
        "empty": each(empty),
        "shmem_kib": shmem()?.saturating_sub(before),
    }))
}

fn bind(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    let table = vec![7_u8; 10 * MIB];
    let tasks = 10_000;
    for (chunk, key, name) in [
        (
            None,
            "partial_default",
            "partial over 10 MiB, default chunks",
        ),
        (Some(1), "partial_1", "partial over 10 MiB, chunksize(1)"),
    ] {
        let call = || {
            let call = pool.task(at_of_bound).by_ref().partial((&table,));
            match chunk {
                Some(chunk) => call.chunksize(chunk),
                None => call,
            }
        };
        let inputs: Vec<u64> = (0..tasks).collect();
        let [bound] = side_by_side(bench.runs, [&mut || time(|| call().map(&inputs).map(drop))])?;
        let each = bound / tasks as f64 * 1e6;
        let python = bench.python.get(key).map(|seconds| seconds * 1e6);
        let row = Row::new(name, each, "µs");
        bench
            .report
            .row(row.rival("Python, functools.partial", python, AtLeast(100.0)));
    }
    Ok(())
}

/// How a table of several sizes, which all tasks read, gets to the workers.
fn sizes(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    let inputs: Vec<u64> = (0..1000).collect();
    for size in [64 << 10, MIB, 16 * MIB, 64 * MIB] {
        let table = vec![7_u8; size];
        // Sending it with each task takes seconds.
        let few = &inputs[..(64 * MIB / size).clamp(4, 1000)];
        let [bound, shared, sent] = side_by_side(
            3,
            [
                &mut || {
                    time(|| {
                        let call = pool.task(at_of_bound).by_ref().partial((&table,));
                        call.map(&inputs).map(drop)
                    })
                },
                &mut || {
                    time(|| {
                        let table = Shared::copy_from(&table[..])?;
                        let call = pool.task(at_of_shared_bytes).partial((table,));
                        call.by_ref().map(&inputs).map(drop)
                    })
                },
                &mut || {
                    let pairs = few.iter().map(|at| (&table, at));
                    time(|| pool.task(at_of_bound).by_ref().starmap(pairs).map(drop))
                },
            ],
        )?;
        let us = |seconds: f64, tasks: usize| seconds / tasks as f64 * 1e6;
        for (name, figure) in [
            ("pool, Shared", Some(us(shared, inputs.len()))),
            ("pool, partial", Some(us(bound, inputs.len()))),
            ("pool, sent with each task", Some(us(sent, few.len()))),
            (
                "Python, functools.partial",
                bench.python.at("bound", size).map(|seconds| seconds * 1e6),
            ),
        ] {
            bench.report.point(DATA, name, size as f64, figure);
        }
    }
    Ok(())
}

fn blocks(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    let numbers = vec![1.0; MIB];
    let times = if bench.quick { 5 } else { 20 };
    let echo = || {
        let all: Vec<_> = (0..times).map(|_| numbers.clone()).collect();
        time(|| {
            for numbers in all {
                black_box(pool.apply(echo_numbers, (numbers,))?);
            }
            Ok::<_, pool_core::Error>(())
        })
    };
    let read = || {
        let all: Vec<_> = (0..times).map(|_| numbers.clone()).collect();
        time(|| {
            for numbers in all {
                black_box(pool.apply(count_numbers, (numbers,))?);
            }
            Ok::<_, pool_core::Error>(())
        })
    };
    let [echoed, read] = side_by_side(bench.runs, [&mut { echo }, &mut { read }])?;
    let rate = |seconds: f64| 2.0 * 8.0 * MIB as f64 * f64::from(times) / seconds / 1e9;
    let row = Row::new("echo of 8 MiB, Vec<f64>", rate(echoed), "GB/s");
    bench.report.row(row.wanted(AtLeast(3.0)));
    let row = Row::new("8 MiB read in place, &[f64]", rate(read), "GB/s");
    bench.report.row(row.wanted(AtLeast(8.0)));
    Ok(())
}

fn preload(bench: &mut Bench) -> Outcome<()> {
    let forks = fresh(modes::FORKS)?;
    let figures = fresh(modes::PRELOADED)?;
    let mib = number(&figures, "bytes")? / MIB as f64;
    let ready = number(&figures, "ready")? * 1e3;
    let name = format!("{WORKERS} workers that share {mib} MiB, ready");
    let row = Row::new(name, ready, "ms").limit(
        "bare forks of such a process",
        number(&forks, "ready")? * 1e3,
        AtMost(1.5),
    );
    bench.report.row(row);
    let each = (number(&figures, "grown_kib")? / 1024.0 - mib) / WORKERS as f64;
    let row = Row::new("the same, memory that each adds", each, "MiB");
    bench.report.row(row.wanted(AtMost(2.0)));
    let tables = number(&figures, "tables_kib")? / 1024.0 / WORKERS as f64;
    bench
        .report
        .row(Row::new("the same, page tables of each", tables, "MiB"));

    let count = if bench.quick { 200 } else { 1000 };
    let through = tempfile::NamedTempFile::new()?;
    let mut ours = || {
        let pool = Pool::builder()
            .processes(2)
            .max_tasks_per_child(1)
            .preload(load, (0, through.path().to_owned()))
            .build()?;
        time(|| pool.task(square).map(0..count).map(drop))
    };
    let [ours, bare] = side_by_side(bench.runs, [&mut ours, &mut || ending_processes(count)])?;
    let row = Row::new(
        "max_tasks_per_child(1), preloaded",
        count as f64 / ours,
        "/s",
    )
    .limit(
        "bare processes that end, two at a time",
        count as f64 / bare,
        AtLeast(2.0),
    );
    bench.report.row(row);
    Ok(())
}

/// Measures a pool whose workers share what one process has loaded.
pub(crate) fn preloaded() -> Outcome<Value> {
    let bytes = much()?;
    let through = tempfile::NamedTempFile::new()?;
    let mut ready = Vec::new();
    let (mut grown, mut tables) = (0, 0);
    for _ in 0..5 {
        let before = field("/proc/self/smaps_rollup", "Pss:")?;
        let pool = Pool::builder()
            .processes(WORKERS)
            .preload(load, (bytes, through.path().to_owned()))
            .build()?;
        let built = now();
        let loaded: u64 = fs::read_to_string(through.path())?.parse()?;
        ready.push(built.saturating_sub(Duration::from_nanos(loaded)));
        pool.map(at_of_model, 0..1000)?;
        let mut sum = field("/proc/self/smaps_rollup", "Pss:")?;
        for child in children()? {
            sum += field(&format!("/proc/{child}/smaps_rollup"), "Pss:")?;
        }
        grown = sum - before;
        tables = 0;
        for pid in pool.worker_pids() {
            tables += field(&format!("/proc/{pid}/status"), "VmPTE:")?;
        }
    }
    ready.sort_unstable();
    Ok(json!({
        "bytes": bytes,
        "ready": ready[ready.len() / 2].as_secs_f64(),
        "grown_kib": grown,
        "tables_kib": tables,
    }))
}

fn children() -> Outcome<Vec<u32>> {
    let mut all = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let children = fs::read_to_string(thread?.path().join("children"))?;
        for child in children.split_whitespace() {
            all.push(child.parse()?);
        }
    }
    Ok(all)
}

/// Measures a process that has as much memory in use, and forks as often.
pub(crate) fn forks() -> Outcome<Value> {
    let model = vec![1_u8; much()?];
    let mut ready = Vec::new();
    for _ in 0..5 {
        let (mut reader, mut writer) = io::pipe()?;
        let start = Instant::now();
        let mut forked = Vec::new();
        for _ in 0..WORKERS {
            // SAFETY: there is only one thread, and the child writes a byte and ends.
            match unsafe { libc::fork() } {
                0 => {
                    let said = writer.write_all(b"x");
                    process::exit(i32::from(said.is_err()));
                }
                -1 => return Err(io::Error::last_os_error().into()),
                pid => forked.push(pid),
            }
        }
        reader.read_exact(&mut [0; WORKERS])?;
        ready.push(start.elapsed());
        for pid in forked {
            // SAFETY: waits for a child of ours; its status is ignored.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        }
    }
    black_box(model);
    ready.sort_unstable();
    Ok(json!({ "ready": ready[ready.len() / 2].as_secs_f64() }))
}
