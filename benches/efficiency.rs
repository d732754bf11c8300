//! How much of the time of two CPUs goes into tasks that keep them busy: all of one size, or mixed.

use pool_core::Pool;

use crate::peers::Rayon;
use crate::report::{AtLeast, Row};
use crate::tasks::{mixed, work};
use crate::tools::{Outcome, side_by_side, time};
use crate::{Bench, EFFICIENCY};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    pool.map(work, (0..10_000).map(|_| 1000))?;
    let rayon = Rayon::new()?;
    rayon.work(&[1000; 10_000])?;
    for (us, chunks, single) in [
        (1, 88.0, 80.0),
        (10, 94.0, 92.0),
        (100, 96.0, 94.0),
        (1000, 97.0, 96.0),
    ] {
        one_size(bench, &pool, &rayon, us, [chunks, single])?;
    }
    heavy_tail(bench, &pool, &rayon)
}

/// Returns the seconds for tasks of these durations, in default chunks.
fn in_chunks(pool: &Pool, tasks: &[u64]) -> Outcome<f64> {
    time(|| pool.map(work, tasks.iter().copied()).map(drop))
}

/// The same, one by one.
fn one_by_one(pool: &Pool, tasks: &[u64]) -> Outcome<f64> {
    time(|| {
        pool.task(work)
            .chunksize(1)
            .map(tasks.iter().copied())
            .map(drop)
    })
}

fn one_size(
    bench: &mut Bench,
    pool: &Pool,
    rayon: &Rayon,
    us: usize,
    [chunks_wanted, single_wanted]: [f64; 2],
) -> Outcome<()> {
    let total = if bench.quick { 200_000 } else { 1_000_000 };
    let tasks = vec![us as u64 * 1000; (total / us).min(200_000)];
    let [chunks, single, threads] = side_by_side(
        bench.runs,
        [
            &mut || in_chunks(pool, &tasks),
            &mut || one_by_one(pool, &tasks),
            &mut || rayon.work(&tasks),
        ],
    )?;
    // The useful time as a share of the time of two CPUs.
    let percent = |each: f64| us as f64 * 1e-6 / (2.0 * each) * 100.0;
    let ours = |seconds: f64| percent(seconds / tasks.len() as f64);
    let (chunks, single, threads) = (ours(chunks), ours(single), ours(threads));
    let python = |key| bench.python.at(key, us).map(percent);
    let python = [python("efficiency_default"), python("efficiency_one")];
    let size = if us < 1000 {
        format!("{us} µs")
    } else {
        "1 ms".to_owned()
    };
    for (name, figure, wanted, python) in [
        ("default chunks", chunks, chunks_wanted, python[0]),
        ("chunksize(1)", single, single_wanted, python[1]),
    ] {
        let row = Row::new(format!("efficiency, {size} tasks, {name}"), figure, "%")
            .wanted(AtLeast(wanted))
            .rival("Python, the same chunks", python, None)
            .limit("rayon, with_max_len(1)", threads, None);
        bench.report.row(row);
    }
    for (name, figure) in [
        ("pool, default chunks", Some(chunks)),
        ("pool, chunksize(1)", Some(single)),
        ("rayon", Some(threads)),
        ("Python, default chunks", python[0]),
        ("Python, chunksize=1", python[1]),
    ] {
        bench.report.point(EFFICIENCY, name, us as f64, figure);
    }
    Ok(())
}

/// Compares with the best possible schedule: both CPUs busy to the end, or one busy with the longest task.
fn heavy_tail(bench: &mut Bench, pool: &Pool, rayon: &Rayon) -> Outcome<()> {
    let tasks = mixed(4000);
    let sum: u64 = tasks.iter().sum();
    let longest = tasks.iter().max().copied().unwrap_or(0);
    let best = (sum as f64 / 2.0).max(longest as f64) * 1e-9;
    let [chunks, single, threads] = side_by_side(
        bench.runs,
        [
            &mut || in_chunks(pool, &tasks),
            &mut || one_by_one(pool, &tasks),
            &mut || rayon.work(&tasks),
        ],
    )?;
    for (name, seconds) in [("default chunks", chunks), ("chunksize(1)", single)] {
        let name = format!("mixed, 1 µs to 10 ms, {name}");
        let row = Row::new(name, best / seconds * 100.0, "%")
            .wanted(AtLeast(95.0))
            .limit("rayon, with_max_len(1)", best / threads * 100.0, None);
        bench.report.row(row);
    }
    Ok(())
}
