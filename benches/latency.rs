//! How long one task takes, there and back: from one thread on one core, on two, after a pause, and from several
//! threads at once.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool};

use crate::peers::Procspawn;
use crate::raw::ping_pong;
use crate::report::{AtLeast, AtMost, Row};
use crate::tasks::square;
use crate::tools::{Outcome, cpus, median, pin, side_by_side, spin, time};
use crate::{Bench, PING, ROUND_TRIP};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let cpus = cpus();
    pin(0, &cpus[..1]);
    let one = one_core(bench, &cpus);
    pin(0, &cpus);
    one?;
    if cpus.len() > 1 {
        let two = two_cores(bench, &cpus);
        pin(0, &cpus);
        two?;
    }
    paused(bench, &cpus)?;
    from_threads(bench)
}

/// Returns the seconds per round trip.
fn applies(pool: &Pool, count: u32) -> Outcome<f64> {
    let total = time(|| {
        (0..u64::from(count)).try_for_each(|x| pool.apply(square, (x,)).map(|x| _ = black_box(x)))
    })?;
    Ok(total / f64::from(count))
}

fn one_core(bench: &mut Bench, cpus: &[usize]) -> Outcome<()> {
    let count = bench.scaled(20_000) as u32;
    let pool = Pool::with_processes(1)?;
    applies(&pool, 500)?;
    let [ours, raw] = side_by_side(
        bench.runs,
        [&mut || applies(&pool, count), &mut || {
            ping_pong(count, &cpus[..1], Duration::ZERO)
        }],
    )?;
    let python = bench.python.get("apply_one_core").map(|s| s * 1e6);
    let row = Row::new("apply, on one core", ours * 1e6, "µs")
        .limit(PING, raw * 1e6, AtMost(1.3))
        .rival("Python Pool.apply", python, AtLeast(15.0));
    bench.report.row(row);
    points(bench, 0.0, [Some(ours), Some(raw)], python, None);
    Ok(())
}

fn two_cores(bench: &mut Bench, cpus: &[usize]) -> Outcome<()> {
    let count = bench.scaled(20_000) as u32;
    let pool = Pool::with_processes(1)?;
    for pid in pool.worker_pids() {
        pin(pid, &cpus[1..2]);
    }
    pin(0, &cpus[..1]);
    applies(&pool, 500)?;
    let [ours, raw] = side_by_side(
        bench.runs,
        [&mut || applies(&pool, 5 * count), &mut || {
            ping_pong(count, &cpus[1..2], Duration::ZERO)
        }],
    )?;
    let python = bench.python.get("apply_two_cores").map(|s| s * 1e6);
    let row = Row::new("apply, on two cores, back to back", ours * 1e6, "µs")
        .limit(PING, raw * 1e6, AtMost(0.05))
        .rival("Python Pool.apply", python, AtLeast(50.0));
    bench.report.row(row);
    points(bench, 1.0, [Some(ours), Some(raw)], python, None);
    Ok(())
}

fn paused(bench: &mut Bench, cpus: &[usize]) -> Outcome<()> {
    let count = bench.scaled(3_000) as u32;
    let pause = Duration::from_micros(100);
    let pool = Pool::with_processes(1)?;
    applies(&pool, 500)?;
    let theirs = Procspawn::new(1)?;
    let mut ours = || {
        let mut total = 0.0;
        for x in 0..u64::from(count) {
            spin(pause);
            total += time(|| pool.apply(square, (x,)).map(|x| _ = black_box(x)))?;
        }
        Ok(total / f64::from(count))
    };
    let [ours, raw, theirs] = side_by_side(
        bench.runs,
        [
            &mut ours,
            &mut || ping_pong(count, cpus, pause),
            &mut || theirs.round_trip(u64::from(count), pause),
        ],
    )?;
    let python = bench.python.get("apply_paused").map(|s| s * 1e6);
    let row = Row::new("apply, unpinned, 100 µs after the last", ours * 1e6, "µs")
        .limit(PING, raw * 1e6, AtMost(1.5))
        .rival("Python Pool.apply", python, None)
        .rival("procspawn spawn and join", theirs * 1e6, None);
    bench.report.row(row);
    points(bench, 2.0, [Some(ours), Some(raw)], python, Some(theirs));
    Ok(())
}

/// Adds one group of bars, in microseconds.
fn points(
    bench: &mut Bench,
    x: f64,
    [ours, raw]: [Option<f64>; 2],
    python: Option<f64>,
    procspawn: Option<f64>,
) {
    for (name, figure) in [
        ("pool", ours.map(|s| s * 1e6)),
        (PING, raw.map(|s| s * 1e6)),
        ("Python Pool", python),
        ("procspawn", procspawn.map(|s| s * 1e6)),
    ] {
        bench.report.point(ROUND_TRIP, name, x, figure);
    }
}

fn from_threads(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    applies(&pool, 500)?;
    for (threads, wanted) in [(1, 2.0), (2, 1.2), (4, 0.5), (8, 0.2)] {
        let each = 40_000 / threads;
        let some =
            || (0..each).try_for_each(|x| pool.apply(square, (x,)).map(|x| _ = black_box(x)));
        let seconds = median(bench.runs, || {
            time(|| {
                thread::scope(|scope| {
                    let all: Vec<_> = (0..threads).map(|_| scope.spawn(some)).collect();
                    let mut ends = all.into_iter().map(|thread| thread.join());
                    // A thread that panicked has reported it; its figure does not count.
                    ends.try_for_each(|end| end.unwrap_or(Ok::<(), Error>(())))
                })
            })
        })?;
        let rate = (each * threads) as f64 / seconds / 1e6;
        let name = match threads {
            1 => "apply, from one thread, unpinned".to_owned(),
            _ => format!("apply, from {threads} threads at once"),
        };
        bench
            .report
            .row(Row::new(name, rate, "M/s").wanted(AtLeast(wanted)));
    }
    Ok(())
}
