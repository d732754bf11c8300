//! How long it takes to start processes, and to replace them.

use std::hint::black_box;

use pool_core::Pool;

use crate::raw::{bare_processes, ending_processes};
use crate::report::{AtLeast, AtMost, Row};
use crate::tasks::square;
use crate::tools::{Outcome, field, side_by_side, time};
use crate::{Bench, START_UP};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    for processes in [2, 4, 8, 16, 32] {
        let [ours, bare] = ready(bench, processes)?;
        let python = bench.python.at("ready", processes).map(|s| s * 1e3);
        let x = processes as f64;
        bench.report.point(START_UP, "pool", x, ours);
        bench.report.point(START_UP, "bare processes", x, bare);
        bench.report.point(START_UP, "Python Pool", x, python);
        if processes == 2 || processes == 8 {
            let row = Row::new(format!("ready, {processes} workers"), ours, "ms")
                .limit("bare processes that say one byte", bare, AtMost(1.5))
                .rival("Python Pool, first answers", python, None);
            bench.report.row(row);
        }
    }
    // Skipped where it would push the machine to its limits.
    if field("/proc/meminfo", "MemAvailable:")? > 4 << 20 {
        let much = vec![1_u8; 2 << 30];
        for processes in [2, 8] {
            let [ours, bare] = ready(bench, processes)?;
            let name = format!("ready, {processes} workers, 2 GiB in the parent");
            let row = Row::new(name, ours, "ms").limit(
                "bare processes that say one byte",
                bare,
                AtMost(1.5),
            );
            bench.report.row(row);
        }
        black_box(much);
    }
    recycle(bench)
}

/// Returns the milliseconds until the pool is built, and until as many bare processes are running.
fn ready(bench: &Bench, processes: usize) -> Outcome<[f64; 2]> {
    let mut ours = || {
        let mut pool = None;
        let seconds = time(|| Pool::with_processes(processes).map(|it| pool = Some(it)));
        drop(pool);
        seconds
    };
    let runs = if bench.quick { 7 } else { 15 };
    let figures = side_by_side(runs, [&mut ours, &mut || bare_processes(processes)])?;
    Ok(figures.map(|seconds| seconds * 1e3))
}

/// Each worker runs one task and is replaced.
fn recycle(bench: &mut Bench) -> Outcome<()> {
    let count = if bench.quick { 200 } else { 1000 };
    let mut ours = || {
        let builder = Pool::builder().processes(2).max_tasks_per_child(1);
        let pool = builder.build()?;
        time(|| pool.task(square).map(0..count).map(drop))
    };
    let [ours, bare] = side_by_side(bench.runs, [&mut ours, &mut || ending_processes(count)])?;
    let row = Row::new("max_tasks_per_child(1)", count as f64 / ours, "/s").limit(
        "bare processes that end, two at a time",
        count as f64 / bare,
        AtLeast(0.8),
    );
    bench.report.row(row);
    Ok(())
}
