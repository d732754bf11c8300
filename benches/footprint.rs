//! What the pool uses of the machine: memory, threads, descriptors, wake-ups. Most is measured in a fresh process of
//! its own: see [`modes`].

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use pool_core::Pool;
use serde_json::{Value, json};

use crate::Bench;
use crate::raw::SAYS_ONE_BYTE;
use crate::report::{AtMost, Row};
use crate::tasks::{square, work};
use crate::tools::{Outcome, entries, field, fresh, side_by_side, switches, time};

/// The modes in which this program measures in a process of its own.
pub(crate) mod modes {
    pub(crate) const MEMORY: &str = "footprint-memory";
    pub(crate) const MANY: &str = "footprint-many";
    pub(crate) const IDLE: &str = "footprint-idle";
}

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let number = |value: &Value, key: &str| -> Outcome<f64> {
        let number = value.get(key).and_then(Value::as_f64);
        Ok(number.ok_or_else(|| format!("no {key} in {value}"))?)
    };
    let memory = fresh(modes::MEMORY)?;
    let bytes = number(&memory, "bytes")?;
    let name = "memory at the peak of a map, each u64";
    bench
        .report
        .row(Row::new(name, bytes, "bytes").wanted(AtMost(32.0)));

    let many = fresh(modes::MANY)?;
    for (processes, wanted) in [(16, 1.05), (64, 1.1), (128, 1.15)] {
        let figures = many.get(processes.to_string()).ok_or("no such pool")?;
        let name = format!("{processes} workers, 5 µs tasks");
        let row = Row::new(name, number(figures, "ours")? * 1e3, "ms").limit(
            "2 workers",
            number(figures, "two")? * 1e3,
            AtMost(wanted),
        );
        bench.report.row(row);
        let threads = number(figures, "threads")?;
        let name = format!("{processes} workers, threads of the parent");
        bench
            .report
            .row(Row::new(name, threads, "").wanted(AtMost(4.0)));
        let descriptors = number(figures, "descriptors")?;
        let most = AtMost(f64::from(8 + 3 * processes));
        let name = format!("{processes} workers, descriptors of the parent");
        bench
            .report
            .row(Row::new(name, descriptors, "").wanted(most));
    }

    let idle = fresh(modes::IDLE)?;
    let added = number(&idle, "worker_pss")? - number(&idle, "bare_pss")?;
    let name = "memory that a worker adds to a bare process";
    bench
        .report
        .row(Row::new(name, added, "KiB").wanted(AtMost(512.0)));
    let switches = number(&idle, "switches")?;
    let name = "idle for 3 s, context switches";
    bench
        .report
        .row(Row::new(name, switches, "").wanted(AtMost(1.0)));
    Ok(())
}

/// Returns by how much the peak during a map exceeds the memory of the pool before it, per result.
pub(crate) fn memory() -> Outcome<Value> {
    let peak = || field("/proc/self/status", "VmHWM:");
    let pool = Pool::with_processes(2)?;
    pool.map(square, 0..1000)?;
    let before = peak()?;
    let results = pool.map(square, 0..5_000_000)?;
    let kib = peak()? - before;
    Ok(json!({ "bytes": kib as f64 * 1024.0 / results.len() as f64 }))
}

/// Compares many workers with two, on the same tasks, once all workers have run some.
pub(crate) fn many() -> Outcome<Value> {
    let tasks = |count: usize| (0..count).map(|_| 5_000);
    let mut all = serde_json::Map::new();
    for processes in [16, 64, 128] {
        let pool = Pool::with_processes(processes)?;
        for _ in 0..3 {
            pool.map(work, tasks(20_000))?;
        }
        let threads = entries("/proc/self/task")?;
        let descriptors = entries("/proc/self/fd")?;
        let pair = Pool::with_processes(2)?;
        pair.map(work, tasks(20_000))?;
        let [ours, two] = side_by_side(
            5,
            [
                &mut || time(|| pool.map(work, tasks(40_000)).map(drop)),
                &mut || time(|| pair.map(work, tasks(40_000)).map(drop)),
            ],
        )?;
        let figures = json!({
            "ours": ours, "two": two, "threads": threads, "descriptors": descriptors,
        });
        all.insert(processes.to_string(), figures);
    }
    Ok(Value::Object(all))
}

/// Measures what a worker uses after it has worked, and what an idle pool does.
pub(crate) fn idle() -> Outcome<Value> {
    let pool = Pool::with_processes(2)?;
    pool.map(square, 0..1_000_000)?;
    let mut bare = Command::new("/proc/self/exe")
        .arg(SAYS_ONE_BYTE)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    thread::sleep(Duration::from_millis(300));
    let pss = |pid: u32| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:");
    let pids = pool.worker_pids();
    let workers = pids
        .iter()
        .map(|pid| pss(*pid))
        .collect::<Outcome<Vec<_>>>()?;
    let bare_pss = pss(bare.id())?;
    drop(bare.stdin.take());
    bare.wait()?;

    thread::sleep(Duration::from_millis(300));
    let all = || -> Outcome<u64> {
        let mut sum = switches(std::process::id())?;
        for pid in &pids {
            sum += switches(*pid)?;
        }
        Ok(sum)
    };
    let before = all()?;
    thread::sleep(Duration::from_secs(3));
    let switches = all()? - before;
    Ok(json!({
        "worker_pss": workers.iter().max(), "bare_pss": bare_pss, "switches": switches,
    }))
}
