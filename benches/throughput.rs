//! How many empty tasks per second two workers run: one by one, and in chunks.

use std::hint::black_box;

use pool_core::{Error, Pool};

use crate::peers::{Procspawn, Rayon};
use crate::report::{AtLeast, AtMost, Row};
use crate::tasks::square;
use crate::tools::{Outcome, median, side_by_side, time};
use crate::{Bench, THROUGHPUT};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    pool.map(square, 0..10_000)?;
    apply_async(bench, &pool)?;
    one_by_one(bench, &pool)?;
    in_chunks(bench, &pool)?;
    many_calls(bench, &pool)
}

fn apply_async(bench: &mut Bench, pool: &Pool) -> Outcome<()> {
    let count = bench.scaled(400_000);
    let rayon = Rayon::new()?;
    let mut ours = || {
        time(|| {
            let all: Vec<_> = (0..count).map(|x| pool.apply_async(square, (x,))).collect();
            all.into_iter()
                .try_for_each(|x| x.get().map(|x| _ = black_box(x)))
        })
    };
    let [ours, threads] = side_by_side(bench.runs, [&mut ours, &mut || rayon.spawn(count)])?;
    let (ours, threads) = (rate(count, ours), rate(count, threads));
    let python = python(bench, "apply_async");
    let row = Row::new("apply_async + get, one task a job", ours, "M/s")
        .wanted(AtLeast(3.0))
        .rival("Python apply_async + get", python, AtLeast(100.0))
        .limit("rayon scope.spawn", threads, AtLeast(0.25));
    bench.report.row(row);
    point(bench, "pool", 0.0, ours);
    point(bench, "rayon", 0.0, threads);
    point(bench, "Python Pool", 0.0, python);
    Ok(())
}

fn one_by_one(bench: &mut Bench, pool: &Pool) -> Outcome<()> {
    let count = bench.scaled(2_000_000);
    let drawn = bench.scaled(400_000);
    let spawned = bench.scaled(20_000);
    let other = Procspawn::new(2)?;
    let mut map = || time(|| pool.task(square).chunksize(1).map(0..count).map(drop));
    let mut imap = || {
        let results = pool.task(square).chunksize(1);
        time(|| {
            results
                .imap(0..drawn)
                .try_for_each(|x| x.map(|x| _ = black_box(x)))
        })
    };
    let mut unordered = || {
        let results = pool.task(square).chunksize(1);
        time(|| {
            results
                .imap_unordered(0..drawn)
                .try_for_each(|x| x.map(|x| _ = black_box(x)))
        })
    };
    let theirs = median(bench.runs, || other.one_by_one(spawned))?;
    drop(other);
    let [map, imap, unordered] = side_by_side(9, [&mut map, &mut imap, &mut unordered])?;
    let theirs = rate(spawned, theirs);
    let futures = python(bench, "futures_1");
    for (x, name, ours, least, key) in [
        (1.0, "map", rate(count, map), 10.0, "map_1"),
        (2.0, "imap", rate(drawn, imap), 4.0, "imap_1"),
        (
            3.0,
            "imap_unordered",
            rate(drawn, unordered),
            4.0,
            "imap_unordered_1",
        ),
    ] {
        let python = python(bench, key);
        let row = Row::new(format!("{name}, chunksize(1)"), ours, "M/s")
            .wanted(AtLeast(least))
            .rival("Python, chunksize=1", python, AtLeast(130.0))
            .rival("concurrent.futures map, chunksize=1", futures, None)
            .rival("procspawn, spawn and join", theirs, None);
        bench.report.row(row);
        point(bench, "pool", x, ours);
        point(bench, "Python Pool", x, python);
    }
    point(bench, "procspawn", 0.0, theirs);
    point(bench, "concurrent.futures", 1.0, futures);
    Ok(())
}

fn in_chunks(bench: &mut Bench, pool: &Pool) -> Outcome<()> {
    let count = bench.scaled(2_000_000);
    let ours = median(bench.runs, || time(|| pool.map(square, 0..count).map(drop)))?;
    let ours = rate(count, ours);
    let (python, futures) = (python(bench, "map_default"), python(bench, "futures_1000"));
    let row = Row::new("map, default chunks", ours, "M/s")
        .wanted(AtLeast(15.0))
        .rival("Python, default chunks", python, AtLeast(2.5))
        .rival("concurrent.futures map, chunksize=1000", futures, None);
    bench.report.row(row);
    point(bench, "pool", 4.0, ours);
    point(bench, "Python Pool", 4.0, python);
    point(bench, "concurrent.futures", 4.0, futures);
    Ok(())
}

/// Compares a thousand jobs of a thousand inputs with one job of a million: the cost of a job.
fn many_calls(bench: &mut Bench, pool: &Pool) -> Outcome<()> {
    let mut one = || time(|| pool.map(square, 0..1_000_000).map(drop));
    let mut many = || {
        time(|| {
            let all: Vec<_> = (0..1000).map(|_| pool.map_async(square, 0..1000)).collect();
            all.into_iter().try_for_each(|x| x.get().map(drop))?;
            Ok::<(), Error>(())
        })
    };
    let [one, many] = side_by_side(bench.runs, [&mut one, &mut many])?;
    let row = Row::new("1000 map_async of 1000 inputs", many * 1e3, "ms").limit(
        "one map of a million",
        one * 1e3,
        AtMost(1.3),
    );
    bench.report.row(row);
    Ok(())
}

/// Converts to millions of tasks per second.
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds / 1e6
}

fn python(bench: &Bench, key: &str) -> Option<f64> {
    bench.python.get(key).map(|seconds| 1e-6 / seconds)
}

/// Plots a rate, in tasks per second.
fn point(bench: &mut Bench, name: &'static str, x: f64, rate: impl Into<Option<f64>>) {
    let rate = rate.into().map(|millions| millions * 1e6);
    bench.report.point(THROUGHPUT, name, x, rate);
}
