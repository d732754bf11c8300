//! Errors that say what ran out.

use std::io;

use rustix::io::Errno;

/// Adds to an error what was tried, and, where that is known, what the system has no more of.
pub(crate) fn no(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| {
        let ran_out = match Errno::from_io_error(&error) {
            Some(Errno::MFILE) => "this process may open no more descriptors (RLIMIT_NOFILE)",
            Some(Errno::NFILE) => "the system has no descriptor left",
            Some(Errno::NOMEM) => "no memory is left, or no address space (RLIMIT_AS)",
            Some(Errno::AGAIN) => "no process is left (RLIMIT_NPROC, or the pids.max of a cgroup)",
            Some(Errno::NOSPC) => "no space is left",
            _ => return io::Error::new(error.kind(), format!("no {what}: {error}")),
        };
        io::Error::new(error.kind(), format!("no {what}: {ran_out}: {error}"))
    }
}
