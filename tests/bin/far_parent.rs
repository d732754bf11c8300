//! A program whose pool is on other machines. `far_parent URL RUN` builds it, says so, and waits for a task that never
//! ends. (The test is about to kill it.) `far_parent URL RUN fork` forks instead, and prints what happens to the copy
//! and to the pool. `far_parent URL RUN work FILE` does some work: it appends 300 numbers to the file.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

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
    // Its node may have to wait for a processor.
    let pool = Pool::builder()
        .backend(backend)
        .start_timeout(Duration::from_secs(120))
        .build()?;
    match &*next() {
        "fork" => return fork(pool),
        "work" => {
            let file = PathBuf::from(next());
            let numbers = pool.starmap_async(append, (0..300).map(|x| (file.clone(), x)));
            say("ready");
            assert_eq!(numbers.get()?, Vec::from_iter(0..300));
            return Ok(());
        }
        _ => {}
    }
    let hanging = pool.apply_async(hang, ());
    say("ready");
    hanging.get()
}

fn say(what: &str) {
    let mut out = io::stdout();
    let said = writeln!(out, "{what}").and_then(|()| out.flush());
    said.expect("somebody listens");
}

/// Takes 5 ms.
#[pool_task]
fn append(file: &Path, x: u64) -> u64 {
    let file = OpenOptions::new().append(true).create(true).open(file);
    let mut file = file.expect("the file can be written");
    file.write_all(format!("{x}\n").as_bytes())
        .expect("the file can be written");
    thread::sleep(Duration::from_millis(5));
    x
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
        // SAFETY: ends this process without running the rest of `main`.
        unsafe { libc::_exit(if is_fine { 42 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status of a child of ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child, "{}", io::Error::last_os_error());
    pool.apply(nothing, ())?;
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    say(&format!("child: {code:?}"));
    Ok(())
}
