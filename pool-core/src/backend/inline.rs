//! [`Inline`]: no workers at all.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use pool_worker::{Frames, Tag};

use super::journal::Journal;
use super::{
    Backend, Failure, Few, Job, JobId, Outcomes, Portion, Preparation, Settings, Sink, What,
    Workers, read_fault, task_failed,
};
use crate::error::Error;
use crate::stats::Stats;
use crate::sync::{self, lock, thread_number};

/// The end of a pool is not waited for longer than this when it is dropped.
const END_MAX: Duration = Duration::from_secs(5);

/// A backend that runs tasks in this process, one after the other, before the call returns that hands them over: for a debugger, a profiler,
/// Miri, or a test that is to see what a task does. [`PoolBuilder::inline`](crate::PoolBuilder::inline) asks for it, and so does
/// `POOL_INLINE=1` in the environment.
///
/// Arguments and results are encoded and decoded as ever; order, laziness, errors and retries after panics are the same. Panics are caught, with
/// their locations: the program's panic hook is not called for them. What takes a process of its own is not there:
///
/// - A task that crashes ends the program. Limits of time and memory are not kept.
/// - What has begun can't be stopped: [`cancel`](crate::AsyncResult::cancel) and [`terminate`](crate::Pool::terminate) take effect
///   before the next input.
/// - [`worker::index`](crate::worker::index) is `None`, and `static` variables are those of this program.
/// - The preload task and initializers run once, in the thread that builds the pool; finalizers once, in the thread that joins or drops
///   it. [`PoolBuilder::env`](crate::PoolBuilder::env) does nothing: there is no environment but that of this program.
///
/// Miri is to see the environment: `POOL_INLINE=1 MIRIFLAGS=-Zmiri-env-forward=POOL_INLINE cargo +nightly miri run`. It takes tasks whose bound and
/// [shared](crate::Shared) arguments are short: long ones lie in memory files, which it does not know.
///
/// Threads that call at the same time take turns. A task may use the pool that it runs in.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, backend::Inline, pool_task};
///
/// #[pool_task]
/// fn pid() -> u32 { std::process::id() }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::builder().backend(Inline).build()?;
/// assert_eq!(pool.apply(pid, ())?, std::process::id());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Backend for Inline {
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
        let journal = Journal::new(&settings);
        pool_worker::report_panics_here();
        if let Some(preload) = settings.preload {
            prepare("the preload task", preload)?;
        }
        for initializer in settings.initializers {
            prepare("the initializer", initializer)?;
        }
        Ok(Arc::new(Here {
            count: settings.workers.unwrap_or(1),
            state: Mutex::new(State {
                finalizers: settings.finalizers,
                ..State::default()
            }),
            changed: Condvar::new(),
            journal,
        }))
    }
}

/// Runs a task for what it leaves behind.
fn prepare(what: &str, preparation: Preparation) -> Result<(), Error> {
    let Preparation {
        task,
        name,
        arguments,
        attachments,
        ..
    } = preparation;
    pool_worker::prepare_here(task, &arguments, &attachments)
        .map_err(|fault| Error::start(task_failed(what, &name, &fault)))
}

/// This process.
#[derive(Debug)]
struct Here {
    count: usize,
    state: Mutex<State>,
    /// A turn is over, or a job.
    changed: Condvar,
    journal: Journal,
}

#[derive(Debug, Default)]
struct State {
    next: u32,
    closed: bool,
    terminated: bool,
    /// What is to run at the end.
    finalizers: Vec<Preparation>,
    /// Those that run, or that more inputs may come for.
    jobs: HashMap<JobId, Open>,
    /// The thread that runs tasks now, and in how many calls, one within the other.
    turn: Option<(u64, usize)>,
}

#[derive(Debug)]
struct Open {
    job: Job,
    sink: Arc<dyn Sink>,
    /// The thread that has handed over the last inputs.
    drawn_by: u64,
    more: bool,
    /// That thread runs inputs, or waits for its turn to.
    busy: bool,
    runs: bool,
    /// Why the rest is not run.
    stopped: Option<Stopped>,
}

#[derive(Debug, Clone)]
enum Stopped {
    /// Nobody wants the outcomes.
    Abandoned,
    Because(Failure),
}

impl Here {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Runs inputs of a job when it is this thread's turn.
    fn run(&self, id: JobId, inputs: Few<Portion>) {
        let turn = Turn::take(self, id);
        let known = self.lock().jobs.get_mut(&id).map(|open| {
            open.runs = true;
            (open.job, Arc::clone(&open.sink))
        });
        if let Some((job, sink)) = known {
            for portion in inputs {
                self.run_portion(id, job, &sink, portion);
            }
        }
        drop(turn);
    }

    fn run_portion(&self, id: JobId, job: Job, sink: &Arc<dyn Sink>, portion: Portion) {
        let Portion { mut first, inputs } = portion;
        let end = first + inputs.count();
        let mut stopped = self.stopped(id);
        if stopped.is_none() {
            let begin = |index| (index < end).then(|| self.journal.begin(id, job, index));
            let mut begun = begin(first);
            let deliver = |reply: Frames| {
                if let Some(begun) = begun.take() {
                    self.journal.end(begun, &reply);
                }
                let what = What::Replies(reply);
                Arc::clone(sink).deliver(Outcomes { first, what });
                first += 1;
                stopped = self.stopped(id);
                if stopped.is_none() {
                    begun = begin(first);
                }
                stopped.is_none()
            };
            if job.options.retries.has_on_panic() {
                run_again_and_again(job, inputs, deliver);
            } else {
                pool_worker::run_here(job.task, inputs, deliver);
            }
        }
        if let Some(Stopped::Because(failure)) = stopped
            && first < end
        {
            Arc::clone(sink).deliver(Outcomes::failed(first, end - first, Arc::new(failure)));
        }
    }

    fn stopped(&self, id: JobId) -> Option<Stopped> {
        let state = self.lock();
        state.jobs.get(&id).and_then(|open| open.stopped.clone())
    }

    /// Runs finalizers, once. What comes of them is told to nobody.
    fn finalize(&self) {
        let finalizers = mem::take(&mut self.lock().finalizers);
        for finalizer in finalizers {
            let _ = prepare("a finalizer", finalizer);
        }
    }

    /// Waits until nothing runs, and nothing more comes.
    fn wait_for_end(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let me = thread_number();
        let mut state = self.lock();
        while !state.jobs.is_empty() {
            if state.jobs.values().any(|open| open.drawn_by == me) {
                return Err(Error::StillOpen);
            }
            let (guard, in_time) = sync::wait(&self.changed, state, deadline);
            state = guard;
            if !in_time {
                return Err(Error::Timeout);
            }
        }
        Ok(())
    }
}

impl State {
    /// Stops a job. What can be forgotten at once is given back, to be dropped without the lock.
    fn stop(&mut self, id: JobId, why: Stopped) -> Option<Open> {
        let open = self.jobs.get_mut(&id)?;
        if !open.busy {
            return self.jobs.remove(&id);
        }
        open.stopped.get_or_insert(why);
        None
    }
}

/// A thread's turn to run inputs of a job. It ends whatever comes out of these: what tasks have been lent may panic when it is dropped.
struct Turn<'a> {
    here: &'a Here,
    job: JobId,
    thread: u64,
    /// In how many others, of the same thread, this one is.
    depth: usize,
}

impl<'a> Turn<'a> {
    fn take(here: &'a Here, job: JobId) -> Turn<'a> {
        let thread = thread_number();
        let mut state = here.lock();
        while state.turn.is_some_and(|(other, _)| other != thread) {
            state = sync::wait(&here.changed, state, None).0;
        }
        let depth = state.turn.map_or(0, |(_, depth)| depth);
        state.turn = Some((thread, depth + 1));
        Turn {
            here,
            job,
            thread,
            depth,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.here.lock();
        state.turn = (self.depth > 0).then_some((self.thread, self.depth));
        let goes_on = state.jobs.get_mut(&self.job).is_some_and(|open| {
            (open.busy, open.runs) = (false, false);
            open.more && open.stopped.is_none()
        });
        let over = if goes_on {
            None
        } else {
            state.jobs.remove(&self.job)
        };
        drop(state);
        self.here.changed.notify_all();
        // Without the lock: it may have the last handle of anything.
        drop(over);
    }
}

/// Runs each input until it does not panic, or may not be tried again.
fn run_again_and_again(job: Job, mut inputs: Frames, mut deliver: impl FnMut(Frames) -> bool) {
    let retries = job.options.retries;
    while inputs.count() > 0 {
        let input = inputs.take_front(1);
        let mut attempts = 0;
        let mut goes_on = true;
        let mut again = true;
        while mem::take(&mut again) {
            pool_worker::run_here(job.task, input.clone(), |reply| {
                attempts += 1;
                again = has_panicked(&reply) && retries.go_on_after(attempts);
                if !again {
                    goes_on = deliver(reply);
                }
                false
            });
            if again {
                thread::sleep(retries.pause_after(attempts));
            }
        }
        if !goes_on {
            return;
        }
    }
}

fn has_panicked(reply: &Frames) -> bool {
    reply
        .iter()
        .any(|(tag, bytes)| tag == Tag::Fault && matches!(read_fault(bytes), Failure::Panicked(_)))
}

impl Workers for Here {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let serial = state.next;
        state.next = serial.wrapping_add(1);
        let id = JobId { place: 0, serial };
        let open = Open {
            job,
            sink,
            drawn_by: thread_number(),
            more,
            busy: true,
            runs: false,
            stopped: None,
        };
        state.jobs.insert(id, open);
        drop(state);
        self.run(id, inputs);
        Ok(id)
    }

    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let terminated = state.terminated;
        let Some(open) = state.jobs.get_mut(&job) else {
            return Err(if terminated {
                Error::Terminated
            } else {
                Error::Cancelled
            });
        };
        (open.more, open.busy) = (more, true);
        open.drawn_by = thread_number();
        drop(state);
        self.run(job, inputs);
        Ok(())
    }

    fn running(&self, job: JobId) -> usize {
        let state = self.lock();
        usize::from(state.jobs.get(&job).is_some_and(|open| open.runs))
    }

    fn cancel(&self, job: JobId, running: bool) {
        let why = if running {
            Stopped::Because(Failure::Cancelled)
        } else {
            Stopped::Abandoned
        };
        let over = self.lock().stop(job, why);
        self.changed.notify_all();
        drop(over);
    }

    fn close(&self) {
        self.lock().closed = true;
    }

    fn terminate(&self) {
        let mut state = self.lock();
        (state.closed, state.terminated) = (true, true);
        let jobs: Vec<JobId> = state.jobs.keys().copied().collect();
        let stop = |id| state.stop(id, Stopped::Because(Failure::Terminated));
        let over: Vec<_> = jobs.into_iter().filter_map(stop).collect();
        drop(state);
        self.changed.notify_all();
        drop(over);
    }

    fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        if !self.lock().closed {
            return Err(Error::StillOpen);
        }
        self.wait_for_end(deadline)?;
        self.finalize();
        Ok(())
    }

    /// A task that runs in another thread can't be stopped, so the wait is bounded.
    fn shut_down(&self) {
        self.terminate();
        if self.wait_for_end(Some(Instant::now() + END_MAX)).is_ok() {
            self.finalize();
        }
    }

    fn count(&self) -> usize {
        self.count
    }

    fn carries_channels(&self) -> bool {
        true
    }

    fn stats(&self) -> Stats {
        self.journal.stats()
    }
}
