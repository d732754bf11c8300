//! The thread that runs callbacks, one after the other, in the order in which results arrive.
//!
//! The thread belongs to the pool and is started with the first callback. A callback that panics or takes long affects only
//! the callbacks behind it. The same thread also [looks](Tick) from time to time at calls that report their progress.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crate::sync;

type Callback = Box<dyn FnOnce() + Send>;

/// A little less than thirty times a second.
const PERIOD: Duration = Duration::from_millis(34);

/// Something that the thread must look at from time to time.
pub(crate) trait Tick: Send {
    /// Whether it must be looked at now. Work that is pending when the pool ends includes this; what is not urgent then is
    /// kept until it is, and the thread is [roused](Callbacks::rouse).
    fn is_urgent(&self) -> bool;
    /// Looks at it. Returns false if that was the last time.
    fn tick(&mut self) -> bool;
}

/// A queue of callbacks, and the thread that runs them.
pub(crate) struct Callbacks {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The process that has the thread; a forked copy has none to wait for.
    owner: u32,
}

impl Default for Callbacks {
    fn default() -> Self {
        Callbacks {
            shared: Arc::default(),
            thread: Mutex::default(),
            owner: pool_worker::lineage(),
        }
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Callback>,
    /// What to look at, and when.
    ticks: Vec<(Instant, Box<dyn Tick>)>,
    running: bool,
    /// How many callbacks were ever put into the queue, and how many of them were taken out and have ended.
    queued: u64,
    ended_callbacks: u64,
    /// The thread ends after everything in the queue has run.
    ended: bool,
    /// The thread that takes callbacks from here, if it runs.
    thread: Option<ThreadId>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        sync::lock(&self.queue)
    }
}

impl Queue {
    fn is_done(&self) -> bool {
        !self.running
            && self.waiting.is_empty()
            && !self.ticks.iter().any(|(_, tick)| tick.is_urgent())
    }

    /// Takes out what must be looked at now.
    fn take_due(&mut self) -> Option<Box<dyn Tick>> {
        if self.ticks.is_empty() {
            return None;
        }
        let now = Instant::now();
        let mut ticks = self.ticks.iter();
        let due = ticks.position(|(at, tick)| *at <= now || tick.is_urgent())?;
        Some(self.ticks.swap_remove(due).1)
    }
}

impl Callbacks {
    /// Puts `callback` at the end of the queue; call [`start`](Callbacks::start) soon, unless the thread was
    /// [started](Callbacks::start_thread) before.
    pub(crate) fn push(&self, callback: Callback) {
        let mut queue = self.shared.lock();
        queue.queued += 1;
        queue.waiting.push_back(callback);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Starts the thread, for callers that can't run callbacks themselves. Fails if the system can't start a thread.
    pub(crate) fn start_thread(&self) -> io::Result<()> {
        let mut thread = sync::lock(&self.thread);
        let mut queue = self.shared.lock();
        if queue.thread.is_some() {
            return Ok(());
        }
        self.spawn(&mut thread, &mut queue)
    }

    fn spawn(&self, thread: &mut Option<JoinHandle<()>>, queue: &mut Queue) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name("pool-callbacks".to_owned())
            .spawn(move || work(&shared))
            .map_err(|error| pool_worker::no_thread("thread for callbacks", error))?;
        queue.thread = Some(spawned.thread().id());
        *thread = Some(spawned);
        Ok(())
    }

    /// Ensures that everything that was pushed is run. This may run callbacks itself.
    pub(crate) fn start(&self) {
        if self.rouse() {
            return;
        }
        // Run the callbacks here and now rather than never.
        let mut queue = self.shared.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        queue.ended_callbacks = queue.queued;
        let is_urgent = |(_, tick): &mut (_, Box<dyn Tick>)| tick.is_urgent();
        let urgent: Vec<_> = queue.ticks.extract_if(.., is_urgent).collect();
        drop(queue);
        waiting.into_iter().for_each(call);
        for (_, tick) in urgent {
            drop(look(tick));
        }
    }

    /// Wakes the thread, or starts it. Returns false if the system can't start one. Runs no code of the user's, so it may be
    /// called under the lock of a pool.
    pub(crate) fn rouse(&self) -> bool {
        let mut thread = sync::lock(&self.thread);
        let mut queue = self.shared.lock();
        if queue.thread.is_none() && self.spawn(&mut thread, &mut queue).is_err() {
            return false;
        }
        drop((queue, thread));
        self.shared.changed.notify_all();
        true
    }

    /// Locks the queue, to wait until things in there are done. Whoever put them there may be about to start the thread, or
    /// could not start it.
    fn lock_started(&self) -> MutexGuard<'_, Queue> {
        let queue = self.shared.lock();
        if queue.thread.is_some() || queue.is_done() {
            return queue;
        }
        drop(queue);
        self.start();
        self.shared.lock()
    }

    /// From now on, looks at this from time to time; and whenever it is urgent when the thread is
    /// [started](Callbacks::start).
    pub(crate) fn look_at(&self, tick: Box<dyn Tick>) {
        self.shared.lock().ticks.push((Instant::now(), tick));
        self.start();
    }

    /// Whether this process has the thread, or may start it: it is no forked copy of that one.
    pub(crate) fn is_ours(&self) -> bool {
        pool_worker::lineage() == self.owner
    }

    /// Whether this is the callback thread.
    pub(crate) fn is_here(&self) -> bool {
        self.shared.lock().thread == Some(thread::current().id())
    }

    /// Waits until every pending callback has run; does not wait if it is called from a callback.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        if !self.is_ours() {
            return true;
        }
        let mut queue = self.lock_started();
        while !queue.is_done() && queue.thread != Some(thread::current().id()) {
            let (guard, in_time) = sync::wait(&self.shared.changed, queue, deadline);
            if !in_time {
                return false;
            }
            queue = guard;
        }
        true
    }

    /// Waits until every callback that is pending by now has run, unless one is stuck, or this is called from a callback.
    pub(crate) fn flush(&self) {
        if !self.is_ours() {
            return;
        }
        let mut queue = self.lock_started();
        let (queued, mut ended) = (queue.queued, queue.ended_callbacks);
        let mut until = Instant::now() + sync::STUCK;
        while queue.ended_callbacks < queued
            && queue
                .thread
                .is_some_and(|thread| thread != thread::current().id())
        {
            if std::mem::replace(&mut ended, queue.ended_callbacks) != queue.ended_callbacks {
                until = Instant::now() + sync::STUCK;
            }
            let (guard, in_time) = sync::wait(&self.shared.changed, queue, Some(until));
            queue = guard;
            if !in_time {
                return;
            }
        }
    }

    /// Lets the thread end when it has finished, and waits for that if it will be soon.
    pub(crate) fn end(&self) {
        if !self.is_ours() {
            return;
        }
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        let has_finished = self.wait(Some(Instant::now() + Duration::from_millis(100)));
        let thread = sync::lock(&self.thread).take();
        if let Some(thread) = thread
            && has_finished
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.lock();
    loop {
        // One of each in turn, so that neither delays the other for long.
        let due = queue.take_due();
        let callback = queue.waiting.pop_front();
        if due.is_some() || callback.is_some() {
            queue.running = true;
            drop(queue);
            let due = due.and_then(look);
            let ran = u64::from(callback.is_some());
            if let Some(callback) = callback {
                call(callback);
            }
            queue = shared.lock();
            queue.ended_callbacks += ran;
            queue
                .ticks
                .extend(due.map(|tick| (Instant::now() + PERIOD, tick)));
            queue.running = false;
            shared.changed.notify_all();
        } else if queue.ended {
            queue.thread = None;
            return;
        } else {
            let next = queue.ticks.iter().map(|(at, _)| *at).min();
            queue = sync::wait(&shared.changed, queue, next).0;
        }
    }
}

/// Looks at something. Returns it if it must be looked at again.
fn look(mut tick: Box<dyn Tick>) -> Option<Box<dyn Tick>> {
    let mut again = false;
    call(|| again = tick.tick());
    if again {
        return Some(tick);
    }
    call(|| drop(tick));
    None
}

/// Runs code of the user, catching panics.
pub(crate) fn call(callback: impl FnOnce()) {
    // The user's panic hook has already reported the panic.
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(callback)) {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Puts itself into the queue again and again.
    fn again(callbacks: &Arc<Callbacks>, stop: &Arc<AtomicBool>) {
        if !stop.load(Ordering::Relaxed) {
            let (next, stop) = (Arc::clone(callbacks), Arc::clone(stop));
            callbacks.push(Box::new(move || again(&next, &stop)));
        }
    }

    #[test]
    fn a_flush_waits_for_what_is_pending_and_no_longer() {
        let callbacks = Arc::new(Callbacks::default());
        callbacks.start_thread().expect("a thread");
        let (stop, ran) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        again(&callbacks, &stop);
        let runs = Arc::clone(&ran);
        callbacks.push(Box::new(move || runs.store(true, Ordering::Relaxed)));
        // The queue never becomes empty.
        callbacks.flush();
        assert!(ran.load(Ordering::Relaxed));
        stop.store(true, Ordering::Relaxed);
        callbacks.end();
        assert!(callbacks.wait(Some(Instant::now() + Duration::from_secs(60))));
    }

    #[test]
    fn what_is_pushed_before_there_is_a_thread_is_waited_for() {
        for waits in [Callbacks::flush, |callbacks: &Callbacks| {
            _ = callbacks.wait(None)
        }] {
            let callbacks = Callbacks::default();
            let ran = Arc::new(AtomicBool::new(false));
            let runs = Arc::clone(&ran);
            callbacks.push(Box::new(move || runs.store(true, Ordering::Relaxed)));
            waits(&callbacks);
            assert!(ran.load(Ordering::Relaxed));
            callbacks.end();
        }
    }

    #[test]
    fn a_flush_from_a_callback_does_not_wait_for_itself() {
        let callbacks = Arc::new(Callbacks::default());
        callbacks.start_thread().expect("a thread");
        let this = Arc::clone(&callbacks);
        callbacks.push(Box::new(move || this.flush()));
        callbacks.flush();
        callbacks.end();
    }
}
