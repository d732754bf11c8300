//! Waiting for one of several descriptors, for a time, or to be woken.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// If the system will not wait, so long passes between two looks.
const PAUSE: Duration = Duration::from_millis(10);

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

    /// Waits until one of `fds` is readable, the waker was used, or `timeout` is over. Gives for each
    /// whether it may be readable.
    pub fn wait(&self, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Vec<bool> {
        let mut polled = Vec::with_capacity(fds.len() + 1);
        polled.push(PollFd::new(&*self.wake, PollFlags::IN));
        polled.extend(
            fds.iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            // More descriptors than the process may have by now, or no memory.
            Err(_) => {
                std::thread::park_timeout(PAUSE);
                return vec![true; fds.len()];
            }
        }
        if !polled[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.wake, &mut count);
        }
        polled[1..]
            .iter()
            .map(|fd| !fd.revents().is_empty())
            .collect()
    }
}

impl Waker {
    /// Ends the wait that goes on, or the next one.
    pub fn wake(&self) {
        // It can only fail by being full, and then it has been woken.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}
