//! Waiting for the death of any of several workers, for a time, or to be woken.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::launch::Worker;

/// One thread waits here; see [`Watch::wait`].
#[derive(Debug)]
pub struct Watch {
    wake: Arc<OwnedFd>,
}

/// Ends a wait early, from any thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Watch {
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<(Watch, Waker)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let waker = Waker(Arc::clone(&wake));
        Ok((Watch { wake }, waker))
    }

    /// Waits until one of `workers` has died, the waker was used, or `timeout` is over.
    ///
    /// A worker that has died is buried here: what is left of its process group is killed, its exit
    /// status is read, and its mailbox learns of it.
    pub fn wait(&self, workers: &[Worker], timeout: Option<Duration>) {
        let mut fds = Vec::with_capacity(workers.len() + 1);
        fds.push(PollFd::new(&*self.wake, PollFlags::IN));
        fds.extend(
            workers
                .iter()
                .map(|worker| PollFd::from_borrowed_fd(worker.pidfd(), PollFlags::IN)),
        );
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // Out of memory, say: the caller looks around and waits again.
            Err(_) => std::thread::yield_now(),
        }
        let dead: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        if !fds[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.wake, &mut count);
        }
        for (worker, dead) in workers.iter().zip(dead) {
            if dead {
                worker.bury();
            }
        }
    }
}

impl Waker {
    /// Ends the wait that goes on, or the next one.
    pub fn wake(&self) {
        // It can only fail by being full, and then it has been woken.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}
