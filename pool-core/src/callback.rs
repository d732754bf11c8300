//! The thread that runs callbacks, one after the other, in the order in which results arrive.
//!
//! It is the pool's own, started with the first callback: a callback that panics or takes its time
//! harms nothing but the callbacks behind it. The same thread [looks](Tick) from time to time at calls that report their progress.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crate::sync;

type Callback = Box<dyn FnOnce() + Send>;

/// Thirty times a second, or not quite.
const PERIOD: Duration = Duration::from_millis(34);

/// Something that the thread is to look at from time to time.
pub(crate) trait Tick: Send {
    /// Whether it is to be looked at now. What was due at the end of the pool includes this.
    fn is_urgent(&self) -> bool;
    /// Looks. False: that was the last time.
    fn tick(&mut self) -> bool;
}

/// A queue of callbacks, and the thread that runs them.
pub(crate) struct Callbacks {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// In a forked copy of the process there is no such thread to wait for.
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
    /// What is to be looked at, and when.
    ticks: Vec<(Instant, Box<dyn Tick>)>,
    running: bool,
    /// The thread ends once those here have run.
    ended: bool,
    /// The thread that takes callbacks from here, if there is one.
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

    /// Takes out what is to be looked at now.
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
    /// Puts `callback` behind the others; call [`start`](Callbacks::start) soon, unless the thread was
    /// [started](Callbacks::start_thread) before.
    pub(crate) fn push(&self, callback: Callback) {
        self.shared.lock().waiting.push_back(callback);
        self.shared.changed.notify_all();
    }

    /// Starts the thread, for whom can't run callbacks itself if there is none. False: the system has no thread left.
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

    /// Sees to it that the thread runs what was pushed. This may run callbacks itself.
    pub(crate) fn start(&self) {
        let mut thread = sync::lock(&self.thread);
        let mut queue = self.shared.lock();
        if queue.thread.is_none() && self.spawn(&mut thread, &mut queue).is_err() {
            // The system has no thread left. Better here and now than never.
            let waiting = std::mem::take(&mut queue.waiting);
            let is_urgent = |(_, tick): &mut (_, Box<dyn Tick>)| tick.is_urgent();
            let urgent: Vec<_> = queue.ticks.extract_if(.., is_urgent).collect();
            drop((queue, thread));
            waiting.into_iter().for_each(call);
            for (_, tick) in urgent {
                drop(look(tick));
            }
            return;
        }
        self.shared.changed.notify_all();
    }

    /// Has this looked at now, and from then on; and whenever it is urgent when the thread is [started](Callbacks::start).
    pub(crate) fn look_at(&self, tick: Box<dyn Tick>) {
        self.shared.lock().ticks.push((Instant::now(), tick));
        self.start();
    }

    /// Whether this is the callback thread.
    pub(crate) fn is_here(&self) -> bool {
        self.shared.lock().thread == Some(thread::current().id())
    }

    /// Waits until every callback that was due has run; not if called from one.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut queue = self.shared.lock();
        while !queue.is_done() && queue.thread != Some(thread::current().id()) {
            let (guard, in_time) = sync::wait(&self.shared.changed, queue, deadline);
            if !in_time {
                return false;
            }
            queue = guard;
        }
        true
    }

    /// Lets the thread end when it is through. It is waited for if it is through soon.
    pub(crate) fn end(&self) {
        if pool_worker::lineage() != self.owner {
            return;
        }
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        let through = self.wait(Some(Instant::now() + Duration::from_millis(100)));
        let thread = sync::lock(&self.thread).take();
        if let Some(thread) = thread
            && through
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.lock();
    loop {
        // One of each in turn, so that neither keeps the other waiting for long.
        let due = queue.take_due();
        let callback = queue.waiting.pop_front();
        if due.is_some() || callback.is_some() {
            queue.running = true;
            drop(queue);
            let due = due.and_then(look);
            if let Some(callback) = callback {
                call(callback);
            }
            queue = shared.lock();
            queue
                .ticks
                .extend(due.map(|tick| (Instant::now() + PERIOD, tick)));
            queue.running = false;
            shared.changed.notify_all();
        } else if queue.ended {
            queue.thread = None;
            // What is dropped may be anything.
            let ticks = std::mem::take(&mut queue.ticks);
            drop(queue);
            call(|| drop(ticks));
            return;
        } else {
            let next = queue.ticks.iter().map(|(at, _)| *at).min();
            queue = sync::wait(&shared.changed, queue, next).0;
        }
    }
}

/// Looks at something. Gives it back if it is to be looked at again.
fn look(mut tick: Box<dyn Tick>) -> Option<Box<dyn Tick>> {
    let mut again = false;
    call(|| again = tick.tick());
    if again {
        return Some(tick);
    }
    call(|| drop(tick));
    None
}

/// Runs what is not ours, whatever it does.
pub(crate) fn call(callback: impl FnOnce()) {
    // The user's panic hook has said what there is to say.
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(callback)) {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
    }
}
