//! Errors that say what ran out.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// What a pool needs of descriptors beside those of its workers, and a few for what is opened for a moment.
const FOR_POOL: u64 = 8;

/// What each worker needs while it starts; two of them it keeps.
const FOR_WORKER: u64 = 4;

/// `more`: what each worker needs besides, and what the pool does.
///
/// # Errors
///
/// If the process may not open the descriptors that so many workers need, says how many would fit.
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

/// What else EAGAIN stands for.
const AGAIN_PROCESS: &str = "no process is left (RLIMIT_NPROC, or the pids.max of a cgroup)";
const AGAIN_THREAD: &str = "no thread is left (RLIMIT_NPROC, or the pids.max of a cgroup), or no memory for its stack \
     (RLIMIT_AS)";

/// Adds to an error what was tried, and, where that is known, what the system has no more of.
pub(crate) fn no(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| tell(what, error, None)
}

/// As [`no`], for a process.
pub(crate) fn no_process(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| tell(what, error, Some(AGAIN_PROCESS))
}

/// As `no`, for a thread. (The C library says the same of a stack for which there is no memory.)
pub fn no_thread(what: &str, error: io::Error) -> io::Error {
    tell(what, error, Some(AGAIN_THREAD))
}

fn tell(what: &str, error: io::Error, again: Option<&str>) -> io::Error {
    let ran_out = match Errno::from_io_error(&error) {
        Some(Errno::MFILE) => Some("this process may open no more descriptors (RLIMIT_NOFILE)"),
        Some(Errno::NFILE) => Some("the system has no descriptor left"),
        Some(Errno::NOMEM) => Some("no memory is left, or no address space (RLIMIT_AS)"),
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
/// If the system has no random numbers to give.
pub(crate) fn fill_randomly(bytes: &mut [u8]) -> io::Result<()> {
    let filled = rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| no("random number for a worker")(error.into()))?;
    Ok(())
}
