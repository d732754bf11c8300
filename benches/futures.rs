//! A great many calls of one async program, all awaited at once; compared with tokio's own threads for blocking code.

use std::error::Error;
use std::hint::black_box;

use futures::future::join_all;
use pool_core::Pool;
use tokio::runtime::{Builder, Runtime};

use crate::Bench;
use crate::report::{AtMost, Row};
use crate::tasks::square;
use crate::tools::{Outcome, side_by_side, time};

const CALLS: u64 = 20_000;

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    pool.map(square, 0..10_000)?;
    // With as many blocking threads as tokio uses by default, and with as many as the pool has workers.
    let (tokio, two) = (runtime(512)?, runtime(2)?);
    let [ours, threads, two_threads] = side_by_side(
        bench.runs,
        [
            &mut || in_pool(&tokio, &pool),
            &mut || in_threads(&tokio),
            &mut || in_threads(&two),
        ],
    )?;
    let row = Row::new("join_all of 20,000 apply_async", ours * 1e3, "ms")
        .limit("tokio's spawn_blocking", threads * 1e3, AtMost(1.0))
        .limit("the same, in two threads", two_threads * 1e3, None);
    bench.report.row(row);
    Ok(())
}

/// Returns a runtime of two threads, and up to `blocking` more for blocking code.
fn runtime(blocking: usize) -> Outcome<Runtime> {
    let mut builder = Builder::new_multi_thread();
    let builder = builder.worker_threads(2).max_blocking_threads(blocking);
    Ok(builder.build()?)
}

fn in_pool(tokio: &Runtime, pool: &Pool) -> Outcome<f64> {
    let calls = || (0..CALLS).map(|x| pool.apply_async(square, (x,)));
    time(|| all_well(tokio.block_on(async { join_all(calls()).await })))
}

fn in_threads(tokio: &Runtime) -> Outcome<f64> {
    let calls = || (0..CALLS).map(|x| tokio.spawn_blocking(move || square(x)));
    time(|| all_well(tokio.block_on(async { join_all(calls()).await })))
}

fn all_well<E: Error + 'static>(results: Vec<Result<u64, E>>) -> Outcome<()> {
    for result in results {
        black_box(result?);
    }
    Ok(())
}
