//! What tasks log reaches the subscriber of this program: with the worker, the process, the task and the input that it comes from, and in
//! the span that the call was made in. Also what a worker has logged before it crashed; and what a library logs by the crate `log`.

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
    // As in any program: workers get no subscriber of their own. Theirs is this one, and its level holds there, too.
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
    // They come on a thread of the pool's own: what was logged before is there when `join` returns.
    pool.close();
    pool.join()
}
