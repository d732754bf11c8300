//! Pools that are attacked at their corners: `corners WHAT`, see `main`. Says `fine` at the end.

#![expect(
    clippy::print_stdout,
    reason = "the test reads it from standard output"
)]

use std::env;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, pool_task};

/// What should take no time may take this long on a busy machine.
const SOON: Duration = Duration::from_secs(20);

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

#[pool_task]
fn count(bytes: &[u8]) -> usize {
    bytes.len()
}

/// Runs until there is such a file.
#[pool_task]
fn wait_for(file: &Path) -> u64 {
    await_file(file);
    7
}

fn main() -> Result<(), Error> {
    let what = env::args().nth(1).unwrap_or_default();
    match what.as_str() {
        "stopped" => stopped(),
        "all-stopped" => all_stopped(),
        "continued" => continued(),
        "large" => large(),
        "scarce" => scarce(),
        "too-scarce" => too_scarce(),
        _ => panic!("no such corner: {what:?}"),
    }?;
    println!("fine");
    Ok(())
}

fn works(pool: &Pool) -> Result<(), Error> {
    assert_eq!(
        pool.map(square, 0..20)?,
        (0..20).map(|x| x * x).collect::<Vec<_>>()
    );
    Ok(())
}

/// One of two idle workers is stopped: the other does the work, and does not wait long for it.
fn stopped() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    works(&pool)?;
    let stopped = pool.worker_pids()[0];
    signal(stopped, libc::SIGSTOP);
    for _ in 0..20 {
        let results: Vec<_> = (0..4).map(|x| pool.apply_async(square, (x,))).collect();
        for result in results {
            result.get_timeout(SOON)?;
        }
    }
    let started = Instant::now();
    pool.terminate();
    pool.join()?;
    assert!(started.elapsed() < SOON);
    Ok(())
}

fn all_stopped() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    works(&pool)?;
    let before = pool.worker_pids();
    for pid in &before {
        signal(*pid, libc::SIGSTOP);
    }
    let results: Vec<_> = (0..4).map(|x| pool.apply_async(square, (x,))).collect();
    for result in results {
        result.get_timeout(SOON)?;
    }
    assert_ne!(pool.worker_pids(), before);
    works(&pool)
}

/// All are stopped for a while, as by a debugger, and then go on: nobody is replaced.
fn continued() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    works(&pool)?;
    let before = pool.worker_pids();
    for _ in 0..3 {
        for pid in &before {
            signal(*pid, libc::SIGSTOP);
        }
        let results: Vec<_> = (0..4).map(|x| pool.apply_async(square, (x,))).collect();
        assert!(!results[0].wait_timeout(Duration::from_millis(700)));
        for pid in &before {
            signal(*pid, libc::SIGCONT);
        }
        for result in results {
            result.get_timeout(SOON)?;
        }
        works(&pool)?;
    }
    assert_eq!(pool.worker_pids(), before);
    Ok(())
}

#[pool_task]
fn limit_memory(bytes: u64) {
    limit(libc::RLIMIT_AS, bytes);
}

fn large() -> Result<(), Error> {
    let pool = Pool::builder()
        .processes(2)
        .initializer(limit_memory, (300 << 20,))
        .build()?;
    works(&pool)?;
    let before = pool.worker_pids();
    let error = pool.apply(count, (vec![1; 400 << 20],)).unwrap_err();
    assert!(matches!(error, Error::Decode(_)), "{error:?}");
    assert!(error.to_string().contains("no memory"), "{error}");
    assert_eq!(pool.apply(count, (vec![1; 10 << 20],))?, 10 << 20);
    works(&pool)?;
    assert_eq!(pool.worker_pids(), before);
    Ok(())
}

/// No descriptor is left for a while, and a worker dies: the other's work goes on, and when there are
/// descriptors again there are two workers.
fn scarce() -> Result<(), Error> {
    let directory = tempfile::tempdir().expect("there is room");
    let over = directory.path().join("over");
    let pool = Pool::with_processes(2)?;
    works(&pool)?;
    let long = pool.apply_async(wait_for, (over.clone(),));
    let idle = || {
        let pids = pool.worker_pids();
        pids.into_iter().filter(|pid| !is_busy(*pid)).collect()
    };
    let mut found: Vec<u32> = idle();
    while found.len() > 1 {
        found = idle();
    }
    let before = limit(libc::RLIMIT_NOFILE, 0);
    signal(found[0], libc::SIGKILL);
    eventually("one is left", || pool.worker_pids().len() == 1);
    // Many starts fail meanwhile; more than ten.
    thread::sleep(Duration::from_secs(4));
    let quick = pool.apply_async(square, (3,));
    limit(libc::RLIMIT_NOFILE, before);
    assert_eq!(quick.get_timeout(SOON)?, 9);
    fs::write(&over, "").expect("there is room");
    assert_eq!(long.get_timeout(SOON)?, 7);
    eventually("two are back", || pool.worker_pids().len() == 2);
    works(&pool)
}

fn too_scarce() -> Result<(), Error> {
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let before = limit(libc::RLIMIT_NOFILE, 0);
    for spare in 0..40 {
        limit(libc::RLIMIT_NOFILE, descriptors + spare);
        match Pool::with_processes(2) {
            Ok(pool) => {
                works(&pool)?;
                limit(libc::RLIMIT_NOFILE, before);
                assert!(spare > 5, "{spare}");
                return works(&pool);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::Start(_)), "{spare}: {error:?}");
                assert!(text.contains("RLIMIT_NOFILE"), "{spare}: {text}");
            }
        }
    }
    panic!("forty descriptors are not enough");
}

/// Whether a worker uses the processor or has slept for a short time only, which is what `wait_for` does.
fn is_busy(pid: u32) -> bool {
    let children = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.map(str::to_owned)
    };
    let before = children();
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        if children() != before {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

fn await_file(file: &Path) {
    while !file.exists() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "in time: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sets the soft limit, and gives what it was.
fn limit(resource: libc::__rlimit_resource_t, to: u64) -> u64 {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid.
    let failed = unsafe { libc::getrlimit(resource, &raw mut now) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    let before = now.rlim_cur;
    now.rlim_cur = to.min(now.rlim_max);
    // SAFETY: as above.
    let failed = unsafe { libc::setrlimit(resource, &raw const now) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    before
}

fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: sends a signal to a child of ours; at worst it is gone.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}
