//! [`Inline`]: a backend without workers.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use pool_worker::{Frames, Panic};

use super::journal::Journal;
use super::{
    Backend, Failure, Few, Job, JobId, Outcomes, Portion, Preparation, Settings, Sink, What,
    Workers, read_panic, task_failed,
};
use crate::error::Error;
use crate::stats::Stats;
use crate::sync::{self, lock, thread_number};

/// The longest wait for the end of a pool that is dropped.
const END_MAX: Duration = Duration::from_secs(5);

/// A backend that runs tasks in this process, one after the other, before the call that submits them returns: for a debugger,
/// a profiler, Miri, or a test that must see what a task does. It is used by
/// [`PoolBuilder::inline`](crate::PoolBuilder::inline), and if the environment has `POOL_INLINE=1`.
///
/// Arguments and results are encoded and decoded as usual; order, laziness, errors and retries after panics are the same.
/// Panics are caught, with their locations: the program's panic hook is not called for them. What needs a process of its own
/// does not work:
///
/// - A task that crashes ends the program. Limits of time and memory are not enforced.
/// - An input that has begun can't be stopped: [`cancel`](crate::AsyncResult::cancel) and
///   [`terminate`](crate::Pool::terminate) take effect before the next input.
/// - [`worker::index`](crate::worker::index) is `None`, and `static` variables are those of this program.
/// - The preload task and initializers run once, in the thread that builds the pool; finalizers run once, in the thread that
///   joins or drops it. [`PoolBuilder::env`](crate::PoolBuilder::env) does nothing: there is no environment but that of this
///   program.
///
/// Miri needs to see the environment: `POOL_INLINE=1 MIRIFLAGS=-Zmiri-env-forward=POOL_INLINE cargo +nightly miri run`. It
/// supports tasks whose bound and [shared](crate::Shared) arguments are short: long ones are in memory files, which Miri does
/// not know.
///
/// Threads that make calls at the same time take turns. A task may use the pool that it runs in, from its own thread. A call
/// from a thread that the task has started waits until the task has ended, so a task that waits for such a thread waits
/// forever.
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

/// Runs a task for its side effects.
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
    /// A turn has ended, or a job.
    changed: Condvar,
    journal: Journal,
}

#[derive(Debug, Default)]
struct State {
    next: u32,
    closed: bool,
    terminated: bool,
    /// The tasks to run at the end.
    finalizers: Vec<Preparation>,
    /// Jobs that run, or may get more inputs.
    jobs: HashMap<JobId, Open>,
    /// The thread that runs tasks now, and how many nested calls it is in.
    turn: Option<(u64, usize)>,
}

#[derive(Debug)]
struct Open {
    job: Job,
    sink: Arc<dyn Sink>,
    /// The thread that submitted the last inputs.
    drawn_by: u64,
    more: bool,
    /// That thread runs inputs, or waits for its turn.
    busy: bool,
    runs: bool,
    /// Why the remaining inputs are not run.
    stopped: Option<Stopped>,
}

#[derive(Debug, Clone)]
enum Stopped {
    /// The outcomes are no longer wanted.
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
            let start = first;
            let mut deliver = |what| {
                Arc::clone(sink).deliver(Outcomes { first, what });
                first += 1;
                stopped = self.stopped(id);
                stopped.is_none().then_some(first)
            };
            if job.options.retries.has_on_panic() {
                self.run_with_retries(id, job, start, inputs, deliver);
            } else {
                let begin = |index| (index < end).then(|| self.journal.begin(id, job, index));
                let mut begun = begin(start);
                pool_worker::run_here(job.task, inputs, |reply| {
                    if let Some(begun) = begun.take() {
                        self.journal.end(begun, &reply, true);
                    }
                    let next = deliver(What::Replies(reply));
                    begun = next.and_then(&begin);
                    next.is_some()
                });
            }
        }
        if let Some(Stopped::Because(failure)) = stopped
            && first < end
        {
            Arc::clone(sink).deliver(Outcomes::failed(first, end - first, Arc::new(failure)));
        }
    }

    /// Runs each input until it does not panic, or may not be run again. `deliver` gets its outcome, and returns the position
    /// of the next input, if that may run.
    fn run_with_retries(
        &self,
        id: JobId,
        job: Job,
        first: usize,
        mut inputs: Frames,
        mut deliver: impl FnMut(What) -> Option<usize>,
    ) {
        let retries = job.options.retries;
        let mut next = Some(first);
        while let Some(index) = next
            && inputs.count() > 0
        {
            let input = inputs.take_front(1);
            let mut attempts = 0;
            let mut again = true;
            while mem::take(&mut again) {
                let begun = self.journal.begin(id, job, index);
                pool_worker::run_here(job.task, input.clone(), |reply| {
                    attempts += 1;
                    let panic = panic_in(&reply);
                    again = panic.is_some() && retries.go_on_after_panic(attempts);
                    self.journal.end(begun, &reply, !again);
                    if !again {
                        next = deliver(match panic {
                            Some(panic) if attempts > 1 => What::Failed {
                                count: 1,
                                failure: Arc::new(Failure::Panicked { panic, attempts }),
                            },
                            _ => What::Replies(reply),
                        });
                    }
                    false
                });
                if again {
                    thread::sleep(retries.pause_after(attempts));
                }
            }
        }
    }

    fn stopped(&self, id: JobId) -> Option<Stopped> {
        let state = self.lock();
        state.jobs.get(&id).and_then(|open| open.stopped.clone())
    }

    /// Runs finalizers, once. Their outcomes are ignored.
    fn finalize(&self) {
        let finalizers = mem::take(&mut self.lock().finalizers);
        for finalizer in finalizers {
            let _ = prepare("a finalizer", finalizer);
        }
    }

    /// Waits until nothing runs, and nothing more will come.
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
    /// Stops a job. If it can be dropped at once, it is returned, to be dropped without the lock.
    fn stop(&mut self, id: JobId, why: Stopped) -> Option<Open> {
        let open = self.jobs.get_mut(&id)?;
        if !open.busy {
            return self.jobs.remove(&id);
        }
        open.stopped.get_or_insert(why);
        None
    }
}

/// A thread's turn to run inputs of a job. It ends even if dropping an argument of a task panics.
struct Turn<'a> {
    here: &'a Here,
    job: JobId,
    thread: u64,
    /// How many other turns of the same thread this one is nested in.
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
        // Without the lock: this may drop the last handle of anything.
        drop(over);
    }
}

/// The panic, if a reply tells of one.
fn panic_in(reply: &Frames) -> Option<Panic> {
    let mut replies = reply.iter();
    replies.find_map(|(tag, bytes)| read_panic(tag, bytes))
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
