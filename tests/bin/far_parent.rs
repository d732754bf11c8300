//! A program whose pool is on other machines: `far_parent URL RUN` builds it, says so, and waits for a task that never ends. (Whoever
//! runs it is about to kill it.)

use std::env;
use std::io::{self, Write};
use std::thread;

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn hang() {
    loop {
        thread::park();
    }
}

fn main() -> Result<(), Error> {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (url, run) = (next(), next());
    let backend = pool_nats::connect(&url)?.run(&run);
    let pool = Pool::builder().backend(backend).build()?;
    let hanging = pool.apply_async(hang, ());
    let mut out = io::stdout();
    let said = writeln!(out, "ready").and_then(|()| out.flush());
    said.expect("somebody listens");
    hanging.get()
}
