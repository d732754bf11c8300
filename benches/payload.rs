//! How fast bytes travel: to a worker and back, and to a worker that reads them in place.

use std::hint::black_box;
use std::time::Instant;

use pool_core::{Pool, Task};

use crate::peers::Procspawn;
use crate::raw::copy;
use crate::report::{AtLeast, Bound, Row};
use crate::tasks::{echo, length};
use crate::tools::{Outcome, median, side_by_side};
use crate::{BANDWIDTH, Bench};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The goals for one size: for the echo, for its ratio to memcpy and to Python, and for reading in place.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    echo: Option<Bound>,
    copy: Option<Bound>,
    python: Option<Bound>,
    read: Option<Bound>,
}

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    let other = Procspawn::new(2)?;
    for (size, name) in [
        (64 * KIB, "64 KiB"),
        (MIB, "1 MiB"),
        (16 * MIB, "16 MiB"),
        (64 * MIB, "64 MiB"),
    ] {
        let mut wanted = Wanted::default();
        if size == MIB {
            wanted.echo = Some(AtLeast(5.0));
            wanted.read = Some(AtLeast(12.0));
        } else if size == 64 * MIB {
            wanted.copy = Some(AtLeast(0.6));
            wanted.python = Some(AtLeast(12.0));
        }
        one_size(bench, &pool, &other, (size, name), wanted)?;
    }
    Ok(())
}

/// Returns the seconds per round trip; the arguments are made beforehand.
fn round_trip<T: Task<Args = (Vec<u8>,)>>(
    pool: &Pool,
    task: impl Fn() -> T,
    bytes: &[u8],
    times: usize,
) -> Outcome<f64> {
    let arguments: Vec<_> = (0..times).map(|_| bytes.to_vec()).collect();
    let start = Instant::now();
    for bytes in arguments {
        black_box(pool.apply(task(), (bytes,))?);
    }
    Ok(start.elapsed().as_secs_f64() / times as f64)
}

fn one_size(
    bench: &mut Bench,
    pool: &Pool,
    other: &Procspawn,
    (size, name): (usize, &str),
    wanted: Wanted,
) -> Outcome<()> {
    let times = (20 * MIB / size).clamp(1, 100);
    let bytes = vec![7_u8; size];
    let mut to = vec![1_u8; size];
    round_trip(pool, || echo, &bytes, 2)?;
    round_trip(pool, || length, &bytes, 2)?;
    let [copied, echoed, read] = side_by_side(
        bench.runs.max(5),
        [
            &mut || Ok(copy(&bytes, &mut to, times)),
            &mut || round_trip(pool, || echo, &bytes, times),
            &mut || round_trip(pool, || length, &bytes, times),
        ],
    )?;
    // Longer ones take Python seconds.
    let theirs = if size <= MIB {
        let runs = if bench.quick { 5 } else { 15 };
        other.echo(bytes.clone())?;
        Some(median(runs, || other.echo(bytes.clone()))?)
    } else {
        None
    };
    let there_and_back = |seconds: f64| 2.0 * size as f64 / seconds / 1e9;
    let copied = size as f64 / copied / 1e9;
    let (echoed, read) = (there_and_back(echoed), there_and_back(read));
    let python = bench.python.at("echo", size).map(there_and_back);
    let theirs = theirs.map(there_and_back);
    let mut row = Row::new(format!("echo of {name}, Vec<u8>"), echoed, "GB/s")
        .limit("memcpy into used memory", copied, wanted.copy)
        .rival("Python, bytes", python, wanted.python);
    if theirs.is_some() {
        row = row.rival("procspawn, Vec<u8>", theirs, None);
    }
    if let Some(bound) = wanted.echo {
        row = row.wanted(bound);
    }
    bench.report.row(row);
    let row = Row::new(format!("{name} read in place, &[u8]"), read, "GB/s").limit(
        "memcpy into used memory",
        copied,
        None,
    );
    bench.report.row(match wanted.read {
        Some(bound) => row.wanted(bound),
        None => row,
    });
    for (name, figure) in [
        ("pool, &[u8] read in place", Some(read)),
        ("memcpy, one way", Some(copied)),
        ("pool, Vec<u8> echo", Some(echoed)),
        ("Python, bytes echo", python),
        ("procspawn, Vec<u8> echo", theirs),
    ] {
        bench.report.point(BANDWIDTH, name, size as f64, figure);
    }
    Ok(())
}
