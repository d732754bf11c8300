//! Measures how long it takes until a death is reported, and until there is another worker: `deaths [N [--sandbox]]`, by
//! default 10,000 deaths.
//!
//!     cargo run --release -p tests --bin deaths

use std::env;
use std::process;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use pool_core::{Error, pool_task};
use tests::{pool_with, temporary};

#[pool_task]
fn die(told: std::path::PathBuf) {
    std::fs::write(told, now().as_nanos().to_string()).expect("there is room");
    // SAFETY: sends a signal to this process.
    unsafe { libc::kill(process::id() as libc::pid_t, libc::SIGKILL) };
}

#[pool_task]
fn ready() {}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let deaths: u64 = env::args().nth(1).map_or(Ok(10_000), |n| n.parse())?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("when");
    let pool = pool_with(temporary, 1)?;
    let mut told = Histogram::<u64>::new(3)?;
    let mut replaced = Histogram::<u64>::new(3)?;
    for _ in 0..deaths {
        let error = pool.apply(die, (file.clone(),)).unwrap_err();
        let until_told = now();
        assert!(matches!(error, Error::WorkerLost(_)), "{error:?}");
        pool.apply(ready, ())?;
        let until_replaced = now();
        let died: u64 = std::fs::read_to_string(&file)?.parse()?;
        let since = |moment: Duration| (moment.as_nanos() as u64).saturating_sub(died) / 1000;
        told.record(since(until_told))?;
        replaced.record(since(until_replaced))?;
    }
    println!("{deaths} deaths, in µs       p50      p99    p99.9      max");
    for (what, times) in [("told", told), ("another is ready", replaced)] {
        let at = |quantile| times.value_at_quantile(quantile);
        println!(
            "{what:<20} {:>9} {:>8} {:>8} {:>8}",
            at(0.5),
            at(0.99),
            at(0.999),
            times.max()
        );
    }
    Ok(())
}
