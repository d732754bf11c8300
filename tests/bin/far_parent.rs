//! A program whose pool is on other machines: `far_parent URL RUN` builds it, says so, and waits for a task that never ends. (Whoever
//! runs it is about to kill it.) `far_parent URL RUN fork` forks instead, and says what becomes of the copy and of the pool.

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

#[pool_task]
fn nothing() {}

fn main() -> Result<(), Error> {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().unwrap_or_default();
    let (url, run) = (next(), next());
    let backend = pool_nats::connect(&url)?.run(&run);
    let pool = Pool::builder().backend(backend).build()?;
    if next() == "fork" {
        return fork(pool);
    }
    let hanging = pool.apply_async(hang, ());
    let mut out = io::stdout();
    let said = writeln!(out, "ready").and_then(|()| out.flush());
    said.expect("somebody listens");
    hanging.get()
}

fn fork(pool: Pool) -> Result<(), Error> {
    pool.apply(nothing, ())?;
    // SAFETY: no other thread of this program holds a lock that the child takes: the pool's thread waits.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        let refused = pool.apply(nothing, ());
        let is_fine = matches!(refused, Err(Error::Closed));
        drop(pool);
        // SAFETY: ends this process without running what `main` has left to run.
        unsafe { libc::_exit(if is_fine { 42 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status of a child of ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "{}", io::Error::last_os_error());
    pool.apply(nothing, ())?;
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    let said = writeln!(io::stdout(), "child: {code:?}");
    said.expect("somebody listens");
    Ok(())
}
