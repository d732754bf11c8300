//! Log records of tasks reach the subscriber of this program, with the worker, the process, the task and the input that they
//! come from, and within the span of the call. This includes what a worker has logged before it crashed, and what a library
//! logs by the crate `log`.

use std::process;

use pool_core::{Error, Pool, pool_task};
use tracing::{info, info_span, instrument, warn};

#[pool_task]
#[instrument(name = "parse", skip_all, fields(length = text.len()))]
fn parse(text: &str) -> u32 {
    info!("looks at the text");
    match text.parse() {
        Ok(number) => number,
        Err(error) => {
            warn!(%error, "takes zero for it");
            0
        }
    }
}

#[pool_task]
fn crash() {
    log::info!("this library logs by another crate");
    info!("about to crash");
    process::abort();
}

fn main() -> Result<(), Error> {
    // As in any program: workers use this subscriber, too, and its level applies to them.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .without_time()
        .with_writer(std::io::stdout)
        .init();
    let pool = Pool::with_processes(2)?;
    info_span!("request", id = 7).in_scope(|| {
        let numbers = pool.map(parse, ["1", "two", "3"].map(String::from))?;
        info!(?numbers, "parsed");
        let lost = pool.apply(crash, ());
        info!(lost = lost.is_err(), "goes on");
        Ok::<_, Error>(())
    })?;
    // Records arrive on a thread of the pool's. When `join` returns, all of them have arrived.
    pool.close();
    pool.join()
}
