//! What a sandbox costs: when a worker starts, and then for each input.

use std::hint::black_box;

use pool_core::{Pool, PoolBuilder, Sandbox};

use crate::Bench;
use crate::report::{AtLeast, AtMost, Row};
use crate::tasks::square;
use crate::tools::{Outcome, side_by_side, time};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let paths = || Sandbox::new().read("/usr").write("/tmp");
    let all = || paths().network().threads().processes();
    start(bench, "nothing permitted", Sandbox::new)?;
    start(bench, "two paths permitted", paths)?;
    start(bench, "everything permitted", all)?;
    run(bench)
}

/// How much longer the start of each worker takes.
fn start(bench: &mut Bench, name: &str, sandbox: impl Fn() -> Sandbox) -> Outcome<()> {
    const STARTS: usize = 100;
    // Workers start one after the other here, as replacements do; and nothing else runs.
    let starts = |sandbox: Option<Sandbox>| {
        let mut seconds = 0.0;
        for _ in 0..STARTS {
            let mut builder = Pool::builder().processes(1);
            if let Some(sandbox) = &sandbox {
                builder = builder.sandbox(sandbox.clone());
            }
            let mut pool = None;
            seconds += time(|| builder.build().map(|it| pool = Some(it)))?;
            drop(pool);
        }
        Ok(seconds)
    };
    let (mut with, mut without) = (|| starts(Some(sandbox())), || starts(None));
    let [with, without] = side_by_side(bench.runs, [&mut with, &mut without])?;
    let each = |seconds: f64| seconds / STARTS as f64 * 1e3;
    let more = each(with) - each(without);
    let row = Row::new(
        format!("start of a worker, more in a sandbox: {name}"),
        more,
        "ms",
    )
    .wanted(AtMost(0.5))
    .limit("without a sandbox, in all", each(without), None);
    bench.report.row(row);
    Ok(())
}

/// Many small inputs.
fn run(bench: &mut Bench) -> Outcome<()> {
    let count = bench.scaled(400_000);
    let pool = |builder: PoolBuilder| builder.processes(2).build();
    let with = pool(Pool::builder().sandbox(Sandbox::new()))?;
    let without = pool(Pool::builder())?;
    let map = |pool: &Pool| time(|| pool.task(square).chunksize(1).map(0..5 * count).map(drop));
    let apply = |pool: &Pool| {
        time(|| (0..count / 4).try_for_each(|x| pool.apply(square, (x,)).map(|x| _ = black_box(x))))
    };
    let rate = |count: u64, seconds: f64| count as f64 / seconds / 1e6;
    let figures = side_by_side(bench.runs, [&mut || map(&with), &mut || map(&without)])?;
    let [ours, plain] = figures.map(|seconds| rate(5 * count, seconds));
    let row = Row::new("map, chunks of one, in a sandbox", ours, "M/s");
    bench
        .report
        .row(row.limit("without one", plain, AtLeast(0.95)));
    let figures = side_by_side(bench.runs, [&mut || apply(&with), &mut || apply(&without)])?;
    let [ours, plain] = figures.map(|seconds| rate(count / 4, seconds));
    let row = Row::new("apply, in a sandbox", ours, "M/s");
    bench
        .report
        .row(row.limit("without one", plain, AtLeast(0.95)));
    Ok(())
}
