//! Waiting until one of several descriptors is readable, a time has passed, or a waker is used.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::scarce::no;

/// How long to sleep if waiting fails.
const PAUSE: Duration = Duration::from_millis(10);

/// The mark of the waker.
const WAKER: u64 = u64::MAX;

/// How many readable descriptors one wait reports, at most.
const AT_ONCE: usize = 64;

/// A set of descriptors on which one thread waits; see [`Watch::wait`].
#[derive(Debug)]
pub struct Watch {
    // Unlike `poll`, epoll takes any number of descriptors, even if RLIMIT_NOFILE has been lowered.
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
}

/// Ends a wait early, from any thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Watch {
    /// Creates an empty set, and the waker that ends its waits.
    ///
    /// # Errors
    ///
    /// If the process has no descriptor left.
    pub fn new() -> io::Result<(Watch, Waker)> {
        let new = || -> io::Result<(Watch, Waker)> {
            let epoll = epoll::create(CreateFlags::CLOEXEC)?;
            let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            epoll::add(&epoll, &wake, EventData::new_u64(WAKER), EventFlags::IN)?;
            let waker = Waker(Arc::clone(&wake));
            Ok((Watch { epoll, wake }, waker))
        };
        new().map_err(no("descriptor to wait with"))
    }

    /// Adds a descriptor. From now on, [`wait`](Watch::wait) returns `mark` when it is readable.
    ///
    /// # Errors
    ///
    /// If the system can't watch more descriptors.
    pub fn add(&self, fd: impl AsFd, mark: u64) -> io::Result<()> {
        let added = epoll::add(&self.epoll, fd, EventData::new_u64(mark), EventFlags::IN);
        added.map_err(|error| no("watch over a worker")(error.into()))
    }

    /// Removes a descriptor.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits until a descriptor is readable, the waker is used, or `timeout` has passed. Returns the marks of readable
    /// descriptors, but not necessarily of all of them.
    pub fn wait(&self, timeout: Option<Duration>) -> Vec<u64> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let mut events = [MaybeUninit::uninit(); AT_ONCE];
        let ready = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
            Ok((ready, _)) => ready,
            Err(Errno::INTR) => return Vec::new(),
            Err(_) => {
                std::thread::park_timeout(PAUSE);
                return Vec::new();
            }
        };
        let marks = ready.iter().map(|event| event.data.u64());
        let marks = marks.filter(|mark| *mark != WAKER).collect();
        if ready.iter().any(|event| event.data.u64() == WAKER) {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.wake, &mut count);
        }
        marks
    }
}

impl Waker {
    /// Ends the current wait, or the next one.
    pub fn wake(&self) {
        // It fails only if the counter is full, and then the thread has been woken already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}
