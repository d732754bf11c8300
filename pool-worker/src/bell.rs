//! The bell of a pool: how workers wake the thread that collects their replies.
//!
//! The bell is one page that the parent shares with all its workers. `listener` says which thread to wake:
//!
//! - [`AWAKE`]: none. A thread is collecting, and will look at all rings once more before it sleeps.
//! - [`LEADER`]: the thread that waits for a result, which sleeps on `listener` itself.
//! - [`COLLECTOR`]: the pool's own thread, which sleeps on `collector`.
//!
//! A worker with something to say swaps in `AWAKE` and wakes the thread that it found there, so each sleeper is
//! woken once. No wake-up is lost: the sleeper writes `listener`, then a fence, then looks at the rings; the worker
//! writes its ring, then a fence, then looks at `listener`. At least one of them sees the other.
//!
//! The page holds only hints. A task that overwrites it can delay a wake-up or cause needless ones, so every sleep
//! with work outstanding has a bound ([`TICK`]). A task may also sleep on these words itself, so all that sleep there are
//! woken: otherwise the wake-up might only reach the task.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::futex;
use crate::sync::{self, AtomicU32, Ordering, Shared, fence};

/// Wake no thread.
const AWAKE: u32 = 0;
/// Wake the thread that waits for a result.
const LEADER: u32 = 1;
/// Wake the pool's own thread.
const COLLECTOR: u32 = 2;

/// With work outstanding, no thread sleeps longer than this without looking at the rings.
pub const TICK: Duration = Duration::from_millis(100);

/// How many workers may spin at a time, at most.
const SPINNERS: usize = if cfg!(pool_shuttle) { 1 } else { 63 };

#[repr(C, align(64))]
struct Line(AtomicU32);

#[repr(C)]
pub(crate) struct Words {
    listener: Line,
    /// How many times the collector was woken; it sleeps on this.
    collector: Line,
    /// For each place, the index of the worker that may spin in it, plus one.
    spinners: [Line; SPINNERS],
}

// SAFETY: atomics, for which every bit pattern is valid, aligned to 64.
unsafe impl sync::Words for Words {
    const SIZE: usize = 8192;

    #[cfg(pool_shuttle)]
    fn new() -> Self {
        let line = || Line(AtomicU32::new(0));
        Words {
            listener: line(),
            collector: line(),
            spinners: std::array::from_fn(|_| line()),
        }
    }
}

/// Both ends of the bell.
#[derive(Clone)]
pub struct Bell {
    memory: Arc<Shared<Words>>,
    /// How many workers may spin at a time.
    spinners: usize,
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bell")
    }
}

impl Bell {
    /// Creates a bell, and the descriptor with which workers open it. `cpus`: how many this process may use.
    pub(crate) fn create(cpus: usize) -> io::Result<(Bell, OwnedFd)> {
        let (memory, fd) = Shared::create("pool-bell", 0)?;
        Ok((Bell::of(memory, cpus), fd))
    }

    pub(crate) fn open(fd: &OwnedFd, cpus: usize) -> io::Result<Bell> {
        Ok(Bell::of(Shared::open(fd, 0)?, cpus))
    }

    pub(crate) fn of(memory: Shared<Words>, cpus: usize) -> Bell {
        Bell {
            memory: Arc::new(memory),
            // The parent needs a CPU, too.
            spinners: cpus.saturating_sub(1).min(SPINNERS),
        }
    }

    #[inline]
    fn words(&self) -> &Words {
        self.memory.words()
    }

    // ---- workers ------------------------------------------------------------------------------

    /// Wakes the listener, if one sleeps. Call after a fence.
    #[inline]
    pub(crate) fn ring(&self) {
        if self.words().listener.0.load(Ordering::Relaxed) != AWAKE {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        match self.words().listener.0.swap(AWAKE, Ordering::SeqCst) {
            LEADER => futex::wake_all(&self.words().listener.0),
            COLLECTOR => self.wake_collector(),
            _ => {}
        }
    }

    /// Worker `index` wants to spin. Returns false if it may not.
    pub(crate) fn start_spinning(&self, index: usize) -> bool {
        let Some(place) = index.checked_rem(self.spinners) else {
            return false;
        };
        self.words().spinners[place]
            .0
            .store(index as u32 + 1, Ordering::Relaxed);
        true
    }

    /// Whether worker `index` may keep spinning: no other worker has taken its place.
    pub(crate) fn may_spin(&self, index: usize) -> bool {
        index.checked_rem(self.spinners).is_some_and(|place| {
            self.words().spinners[place].0.load(Ordering::Relaxed) == index as u32 + 1
        })
    }

    // ---- the parent ---------------------------------------------------------------------------

    /// A thread is collecting, so workers need not wake one.
    pub fn attend(&self) {
        let listener = &self.words().listener.0;
        if listener.load(Ordering::Relaxed) != AWAKE {
            listener.store(AWAKE, Ordering::SeqCst);
        }
    }

    /// From now on workers wake the leader. Look at the rings afterwards, then sleep.
    pub fn listen_as_leader(&self) {
        self.words().listener.0.store(LEADER, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// From now on workers wake the collector. Look at the rings afterwards.
    pub fn listen_as_collector(&self) {
        self.words().listener.0.store(COLLECTOR, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Whether no worker has rung since [`listen_as_leader`](Bell::listen_as_leader).
    pub fn is_leader_listening(&self) -> bool {
        self.words().listener.0.load(Ordering::Relaxed) == LEADER
    }

    /// Sleeps as the leader until woken, or until `timeout` has passed.
    pub fn sleep_as_leader(&self, timeout: Option<Duration>) {
        if futex::wait(&self.words().listener.0, LEADER, timeout).is_err() {
            std::thread::yield_now();
        }
    }

    /// Wakes the leader, if one sleeps, because of something other than a worker's reply.
    pub fn wake_leader(&self) {
        fence(Ordering::SeqCst);
        let listener = &self.words().listener.0;
        let woken = listener.compare_exchange(LEADER, AWAKE, Ordering::SeqCst, Ordering::Relaxed);
        if woken.is_ok() {
            futex::wake_all(listener);
        }
    }

    /// How many times the collector was woken. Read it before deciding to sleep.
    pub fn collector_wakes(&self) -> u32 {
        self.words().collector.0.load(Ordering::SeqCst)
    }

    /// Sleeps as the collector, unless it was woken since `wakes` was read.
    pub fn sleep_as_collector(&self, wakes: u32, timeout: Option<Duration>) {
        if futex::wait(&self.words().collector.0, wakes, timeout).is_err() {
            std::thread::yield_now();
        }
    }

    /// Wakes the collector.
    pub fn wake_collector(&self) {
        let collector = &self.words().collector.0;
        collector.fetch_add(1, Ordering::SeqCst);
        futex::wake_all(collector);
    }
}

#[cfg(all(test, not(pool_shuttle), not(miri)))]
mod tests {
    use std::fs;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Far longer than a wake-up takes.
    const LONG: Duration = Duration::from_secs(60);

    fn is_asleep(thread: rustix::process::Pid) -> bool {
        let thread = thread.as_raw_nonzero();
        let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
        stat.is_ok_and(|stat| stat.contains(") S "))
    }

    /// Has several threads sleep on a word, as a task might, and then one of ours; returns whether `wake` wakes that.
    fn is_woken(
        sleep: impl Fn(&Bell, Duration) + Send + Clone + 'static,
        wake: impl FnOnce(&Bell),
    ) -> bool {
        let (bell, _fd) = Bell::create(2).expect("there is memory");
        bell.listen_as_leader();
        let (woken, ours) = mpsc::channel();
        for place in 0..4 {
            let (bell, sleep, woken) = (bell.clone(), sleep.clone(), woken.clone());
            let (say, said) = mpsc::channel();
            thread::spawn(move || {
                say.send(rustix::thread::gettid()).expect("it is heard");
                sleep(&bell, LONG * 2);
                let _ = woken.send(place);
            });
            let thread = said.recv().expect("it has begun");
            while !is_asleep(thread) {
                thread::yield_now();
            }
        }
        wake(&bell);
        let mut woken = (0..4).map_while(|_| ours.recv_timeout(LONG).ok());
        woken.any(|place| place == 3)
    }

    #[test]
    fn sleepers_that_came_earlier_keep_no_wake_up_to_themselves() {
        let leader = |bell: &Bell, most| bell.sleep_as_leader(Some(most));
        assert!(is_woken(leader, Bell::ring));
        assert!(is_woken(leader, Bell::wake_leader));
        let collector = |bell: &Bell, most| bell.sleep_as_collector(0, Some(most));
        assert!(is_woken(collector, Bell::wake_collector));
    }
}
