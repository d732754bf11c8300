//! Errors that say what ran out.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// How many descriptors a pool needs besides those of its workers, including a few that are open for a moment only.
const FOR_POOL: u64 = 8;

/// How many descriptors each worker needs while it starts; two of them it keeps.
const FOR_WORKER: u64 = 4;

/// Checks the limit of open descriptors. `more`: how many each worker needs in addition, and how many the pool.
///
/// # Errors
///
/// If the process may not open enough descriptors for that many workers. The message says how many workers would fit.
pub(crate) fn check_descriptors(workers: usize, more: (u64, u64)) -> io::Result<()> {
    let Some(most) = getrlimit(Resource::Nofile).current else {
        return Ok(());
    };
    let open =
        fs::read_dir("/proc/self/fd").map_or(0, |open| open.count().saturating_sub(1)) as u64;
    let (for_worker, for_pool) = (FOR_WORKER + more.0, FOR_POOL + more.1);
    let fit = most.saturating_sub(open + for_pool) / for_worker;
    if workers as u64 <= fit {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{workers} workers need up to {} descriptors while they start, and this process may open {most} in all \
         (RLIMIT_NOFILE), of which {open} are open: {fit} workers would fit",
        (workers as u64)
            .saturating_mul(for_worker)
            .saturating_add(for_pool),
    )))
}

/// What EAGAIN means when a process or a thread can't be made.
const AGAIN_PROCESS: &str = "no process is left (RLIMIT_NPROC, or the pids.max of a cgroup)";
const AGAIN_THREAD: &str = "no thread is left (RLIMIT_NPROC, or the pids.max of a cgroup), or no memory for its stack \
     (RLIMIT_AS)";

/// Adds to an error what could not be had, and, where that is known, which resource has run out.
pub(crate) fn no(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| tell(what, error, None)
}

/// As [`no`], for a process.
pub(crate) fn no_process(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| tell(what, error, Some(AGAIN_PROCESS))
}

/// As `no`, for a thread. (The C library also returns EAGAIN if there is no memory for the stack.)
pub fn no_thread(what: &str, error: io::Error) -> io::Error {
    tell(what, error, Some(AGAIN_THREAD))
}

fn tell(what: &str, error: io::Error, again: Option<&str>) -> io::Error {
    let ran_out = match Errno::from_io_error(&error) {
        Some(Errno::MFILE) => Some("this process may open no more descriptors (RLIMIT_NOFILE)"),
        Some(Errno::NFILE) => Some("the system has no descriptor left"),
        Some(Errno::NOMEM) => Some("no memory or no address space (RLIMIT_AS) is left"),
        Some(Errno::AGAIN) => again,
        Some(Errno::NOSPC) => Some("no space is left"),
        Some(Errno::FBIG) => Some("this process may make no file so large (RLIMIT_FSIZE)"),
        _ => None,
    };
    let text = match ran_out {
        Some(ran_out) => format!("no {what}: {ran_out}: {error}"),
        None => format!("no {what}: {error}"),
    };
    io::Error::new(error.kind(), text)
}

/// # Errors
///
/// If the system provides no random numbers.
pub(crate) fn fill_randomly(bytes: &mut [u8]) -> io::Result<()> {
    let filled = rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| no("random number for a worker")(error.into()))?;
    Ok(())
}
