//! The thread that runs callbacks, one after the other, in the order in which results arrive.
//!
//! It is the pool's own, started with the first callback: a callback that panics or takes its time
//! harms nothing but the callbacks behind it.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crate::sync;

type Callback = Box<dyn FnOnce() + Send>;

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

impl Callbacks {
    /// Puts `callback` behind the others; call [`start`](Callbacks::start) soon, unless the thread was
    /// [started](Callbacks::start_thread) before.
    pub(crate) fn push(&self, callback: Callback) {
        self.shared.lock().waiting.push_back(callback);
        self.shared.changed.notify_all();
    }

    /// Starts the thread, for whom can't run callbacks itself if there is none. False: the system has no thread left.
    pub(crate) fn start_thread(&self) -> bool {
        let mut thread = sync::lock(&self.thread);
        let mut queue = self.shared.lock();
        queue.thread.is_some() || self.spawn(&mut thread, &mut queue)
    }

    fn spawn(&self, thread: &mut Option<JoinHandle<()>>, queue: &mut Queue) -> bool {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name("pool-callbacks".to_owned())
            .spawn(move || work(&shared));
        let Ok(spawned) = spawned else {
            return false;
        };
        queue.thread = Some(spawned.thread().id());
        *thread = Some(spawned);
        true
    }

    /// Sees to it that the thread runs what was pushed. This may run callbacks itself.
    pub(crate) fn start(&self) {
        let mut thread = sync::lock(&self.thread);
        let mut queue = self.shared.lock();
        if queue.thread.is_none() && !self.spawn(&mut thread, &mut queue) {
            // The system has no thread left. Better here and now than never.
            let waiting = std::mem::take(&mut queue.waiting);
            drop((queue, thread));
            waiting.into_iter().for_each(call);
            return;
        }
        self.shared.changed.notify_all();
    }

    /// Waits until every callback that was due has run; not if called from one.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut queue = self.shared.lock();
        while (queue.running || !queue.waiting.is_empty())
            && queue.thread != Some(thread::current().id())
        {
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
        if let Some(callback) = queue.waiting.pop_front() {
            queue.running = true;
            drop(queue);
            call(callback);
            queue = shared.lock();
            queue.running = false;
            shared.changed.notify_all();
        } else if queue.ended {
            queue.thread = None;
            return;
        } else {
            queue = sync::wait(&shared.changed, queue, None).0;
        }
    }
}

fn call(callback: Callback) {
    // The user's panic hook has said what there is to say.
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(callback)) {
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
    }
}
