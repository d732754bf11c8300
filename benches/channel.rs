//! How many messages per second arrive from two workers while their tasks run.

use pool_core::{Pool, channel};

use crate::Bench;
use crate::report::{AtLeast, Row};
use crate::tasks::say;
use crate::tools::{Outcome, median, time};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let pool = Pool::with_processes(2)?;
    let each = bench.scaled(2_000_000);
    let seconds = median(bench.runs, || time(|| receive(&pool, each)))?;
    let rate = |seconds: f64| 1e-6 / seconds;
    let python = bench.python.get("channel").map(rate);
    let row = Row::new(
        "channel, 16 bytes, from two workers",
        rate(seconds / (2 * each) as f64),
        "M/s",
    )
    .wanted(AtLeast(2.0))
    .rival("Python, multiprocessing.Queue", python, None);
    bench.report.row(row);
    Ok(())
}

/// Two tasks send `each` messages each, which this thread reads.
fn receive(pool: &Pool, each: u64) -> Outcome<()> {
    let (sender, receiver) = channel()?;
    let inputs = [(each, sender.clone()), (each, sender)];
    let sent = pool.starmap_async(say, inputs);
    let count = receiver.filter(|(x, y): &(u64, u64)| *x == !*y).count();
    sent.get()?;
    if count as u64 != 2 * each {
        return Err(format!("{count} of {} messages arrived", 2 * each).into());
    }
    Ok(())
}
