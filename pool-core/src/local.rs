//! The workers of this machine: threads, time and processes around the [`scheduler`](crate::scheduler).
//!
//! One lock guards the scheduler. Whoever has an event (a caller with work, a worker with results)
//! takes the lock, tells the scheduler, and carries out what it decides; nothing of that blocks, so
//! work goes from the caller's thread straight to a worker, and the next chunk from the thread that
//! received the last one. Outcomes are delivered when the lock is released.
//!
//! # Threads
//!
//! - One [`mailbox`] thread for each worker waits for what the worker says, and ends with it.
//! - One [`supervisor`] starts workers, sees them die, and keeps the time. Workers are killed by the
//!   system when the thread that started them ends, so it lives as long as they do.
//! - The *callback* thread is in [`callback`](crate::callback).

mod mailbox;
mod supervisor;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use pool_worker::{Setup, Waker, Watch, Worker};

use crate::backend::{Backend, Input, Job, JobId, Outcome, Sink};
use crate::error::{Broken, Error, Start};
use crate::scheduler::{Action, Mode, Scheduler};

/// When all is ended, an idle worker that was asked to exit, and a busy one after SIGTERM, have this
/// long.
const GRACE: Duration = Duration::from_millis(200);

/// A worker that was let go has this long for its exit handlers.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// A thread of ours needs little stack: it runs no code of users but the wakers of their futures.
const STACK: usize = 256 * 1024;

thread_local! {
    /// Whether this is a mailbox thread or a supervisor.
    static OF_A_POOL: Cell<bool> = const { Cell::new(false) };
}

/// How the pool is to be.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) processes: usize,
    pub(crate) max_tasks_per_child: Option<usize>,
    pub(crate) initializer: Option<Setup>,
    /// The name of the initializer, for messages.
    pub(crate) initializer_name: &'static str,
    pub(crate) start_timeout: Duration,
}

/// The backend of this machine.
#[derive(Debug)]
pub(crate) struct Local {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    /// In a forked copy of the process there are no threads, and the workers are not its children.
    owner: u32,
}

struct Shared {
    settings: Settings,
    state: Mutex<State>,
    changed: Condvar,
    waker: Waker,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

struct State {
    scheduler: Scheduler,
    seats: Vec<Seat>,
    sinks: HashMap<JobId, Opened>,
    /// The first failed start, while the pool is being built.
    start_error: Option<String>,
    /// When those who have not gone by themselves are killed.
    kill_at: Option<Instant>,
    /// The supervisor looks at the busy workers from time to time.
    patrolling: bool,
    /// The supervisor has nothing more to do.
    over: bool,
}

/// Who gets a job's outcomes; and who draws its inputs, as far as that is known.
struct Opened {
    sink: Arc<dyn Sink>,
    drawn_by: ThreadId,
}

/// A place for one worker.
struct Seat {
    worker: Option<Worker>,
    thread: Option<JoinHandle<()>>,
    /// A worker is to be started.
    wanted: bool,
    /// But not before this time.
    pause_until: Option<Instant>,
    /// A worker that is not ready by then is killed.
    ready_by: Option<Instant>,
    /// A worker that was asked to exit and is not gone by then is killed.
    leave_by: Option<Instant>,
    /// Why the start of this worker counts as failed.
    failure: Option<String>,
    ready_at: Option<Instant>,
    /// It has sent what its mailbox has not understood: how much it had, and for how many rounds.
    unheard: Option<(u32, u32)>,
    patrolled_at: Instant,
    /// It was seen dead at this time.
    dead_at: Option<Instant>,
    /// Its mailbox thread has reported its death.
    gone: bool,
}

impl Default for Seat {
    fn default() -> Self {
        Seat {
            worker: None,
            thread: None,
            wanted: false,
            pause_until: None,
            ready_by: None,
            leave_by: None,
            failure: None,
            ready_at: None,
            unheard: None,
            patrolled_at: Instant::now(),
            dead_at: None,
            gone: false,
        }
    }
}

/// Outcomes on their way out, for each sink.
type Deliveries = Vec<(Arc<dyn Sink>, Vec<(usize, Outcome)>)>;

impl Local {
    /// Starts the workers, and waits until all are ready.
    pub(crate) fn start(settings: Settings) -> Result<Local, Error> {
        pool_worker::may_launch().map_err(start_error)?;
        let (watch, waker) = Watch::new().map_err(start_error)?;
        let processes = settings.processes;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                scheduler: Scheduler::new(processes, settings.max_tasks_per_child),
                seats: (0..processes).map(|_| Seat::default()).collect(),
                sinks: HashMap::new(),
                start_error: None,
                kill_at: None,
                patrolling: false,
                over: false,
            }),
            settings,
            changed: Condvar::new(),
            waker,
        });
        let supervised = Arc::clone(&shared);
        let supervisor = thread::Builder::new()
            .name("pool-supervisor".to_owned())
            .stack_size(STACK)
            .spawn(move || supervisor::supervise(&supervised, &watch))
            .map_err(start_error)?;
        let local = Local {
            shared,
            supervisor: Mutex::new(Some(supervisor)),
            owner: process::id(),
        };
        // The scheduler's first wish: a worker for each slot.
        local.shared.update(|_| ());
        match local.shared.wait_until_ready() {
            Ok(()) => Ok(local),
            // Dropping it terminates what did start.
            Err(why) => Err(Error::Start(Start(why))),
        }
    }

    fn is_ours(&self) -> bool {
        process::id() == self.owner
    }
}

fn start_error(error: std::io::Error) -> Error {
    Error::Start(Start(error.to_string()))
}

/// For a pool that was never finished: one that was is shut down already.
impl Drop for Local {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Backend for Local {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Vec<Input>,
        more: bool,
    ) -> Result<JobId, Error> {
        if !self.is_ours() {
            return Err(Error::Closed);
        }
        self.shared.update(|state| {
            match state.scheduler.mode() {
                Mode::Open => {}
                Mode::Closed | Mode::Terminated => return Err(Error::Closed),
                Mode::Broken(why) => return Err(Error::Broken(Broken(why.clone()))),
            }
            let id = state.scheduler.submit(job, inputs, more);
            state.sinks.insert(
                id,
                Opened {
                    sink,
                    drawn_by: thread::current().id(),
                },
            );
            Ok(id)
        })
    }

    fn push(&self, job: JobId, inputs: Vec<Input>, more: bool) -> Result<(), Error> {
        if !self.is_ours() {
            return Err(Error::Closed);
        }
        self.shared.update(|state| {
            if !state.scheduler.takes(job) {
                return Err(match state.scheduler.mode() {
                    Mode::Terminated => Error::Terminated,
                    Mode::Broken(why) => Error::Broken(Broken(why.clone())),
                    Mode::Open | Mode::Closed => Error::Cancelled,
                });
            }
            if let Some(opened) = state.sinks.get_mut(&job) {
                opened.drawn_by = thread::current().id();
            }
            state.scheduler.push(job, inputs, more);
            Ok(())
        })
    }

    fn cancel(&self, job: JobId, running: bool) {
        if self.is_ours() {
            self.shared
                .update(|state| state.scheduler.cancel(job, running));
        }
    }

    fn look(&self) -> bool {
        self.is_ours()
            && self.shared.update(|state| {
                let mut more = false;
                for slot in 0..state.seats.len() {
                    // A single input is reported as soon as it is done.
                    if !state.scheduler.is_ready(slot) || state.scheduler.given(slot).len() < 2 {
                        continue;
                    }
                    more = true;
                    if let Some(worker) = &state.seats[slot].worker {
                        let outcomes = worker.peek();
                        state.scheduler.answered(slot, outcomes, Duration::ZERO);
                    }
                }
                more
            })
    }

    fn hint(&self, task: &'static str) -> usize {
        if !self.is_ours() {
            return 1;
        }
        self.shared.lock().scheduler.hint(task)
    }

    fn close(&self) {
        if self.is_ours() {
            self.shared.update(|state| state.scheduler.close());
            self.shared.waker.wake();
        }
    }

    fn terminate(&self) {
        if !self.is_ours() {
            return;
        }
        self.shared.update(|state| {
            state.scheduler.terminate();
            state.wind_up();
        });
        self.shared.waker.wake();
    }

    fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        if !self.is_ours() {
            return Ok(());
        }
        let mut state = self.shared.lock();
        loop {
            if state.over {
                return Ok(());
            }
            if *state.scheduler.mode() == Mode::Open || state.waits_for(thread::current().id()) {
                return Err(Error::StillOpen);
            }
            state = match deadline {
                None => self
                    .shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::Timeout);
                    }
                    self.shared
                        .changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// A process can be stuck in the kernel, beyond the reach of SIGKILL, so the wait is bounded.
    fn shut_down(&self) {
        let supervisor = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(supervisor) = supervisor.filter(|_| self.is_ours()) else {
            return;
        };
        self.terminate();
        // A waker that drops the last handle of a pool may run on a thread of that pool, and the
        // end of the pool waits for its threads.
        if OF_A_POOL.get() {
            return;
        }
        let gone = self.join(Some(Instant::now() + Duration::from_secs(5)));
        if gone.is_ok() {
            let _ = supervisor.join();
        }
    }

    fn processes(&self) -> usize {
        self.shared.settings.processes
    }

    fn worker_pids(&self) -> Vec<u32> {
        if !self.is_ours() {
            return Vec::new();
        }
        self.shared
            .lock()
            .seats
            .iter()
            .filter(|seat| !seat.gone)
            .filter_map(|seat| seat.worker.as_ref().map(Worker::pid))
            .collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, does what follows from it, and delivers.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, deliveries, wake) = {
            let mut state = self.lock();
            let result = change(&mut state);
            let (deliveries, wake) = state.act();
            (result, deliveries, wake)
        };
        for (sink, outcomes) in deliveries {
            // The waker of a user's future may panic, and this may be a thread that others need.
            let delivered = panic::catch_unwind(AssertUnwindSafe(|| sink.deliver(outcomes)));
            if let Err(payload) = delivered {
                mem::forget(payload);
            }
        }
        if wake {
            self.waker.wake();
        }
        result
    }

    /// Waits for the first workers.
    fn wait_until_ready(&self) -> Result<(), String> {
        let mut state = self.lock();
        loop {
            if let Some(why) = &state.start_error {
                return Err(why.clone());
            }
            let slots = 0..self.settings.processes;
            if slots
                .into_iter()
                .all(|slot| state.seats[slot].ready_at.is_some())
            {
                return Ok(());
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// Carries out what the scheduler has decided. The second value: the supervisor has something
    /// new to look at.
    fn act(&mut self) -> (Deliveries, bool) {
        let mut deliveries = Deliveries::new();
        let mut wake = false;
        while let Some(action) = self.scheduler.next_action() {
            match action {
                Action::Start { slot } => {
                    self.seats[slot].wanted = true;
                    wake = true;
                }
                Action::Run {
                    slot,
                    generation,
                    from,
                    count,
                } => {
                    let given = self.scheduler.given(slot).range(from..from + count);
                    if let Some(worker) = &self.seats[slot].worker
                        && let Some(first) = given.clone().next()
                    {
                        wake |= first.task.options.time_limit.is_some() || !self.patrolling;
                        self.patrolling = true;
                        worker.run(
                            first.task.task,
                            generation,
                            given.map(|given| given.input.bytes.as_slice()),
                        );
                    }
                }
                Action::Recall { slot } => {
                    if let Some(worker) = &self.seats[slot].worker {
                        let (generation, begun) = worker.recall();
                        self.scheduler.recalled(slot, generation, begun);
                    }
                }
                Action::Ask { slot } => {
                    let seat = &mut self.seats[slot];
                    if let Some(worker) = &seat.worker {
                        worker.ask_to_exit();
                        seat.leave_by = Some(Instant::now() + LEAVE_MAX);
                        wake = true;
                    }
                }
                Action::Kill { slot } => {
                    if let Some(worker) = &self.seats[slot].worker {
                        worker.kill();
                    }
                }
                Action::Deliver { job, outcomes } => {
                    if let Some(opened) = self.sinks.get(&job) {
                        deliveries.push((Arc::clone(&opened.sink), outcomes));
                    }
                }
                Action::Forget { job } => {
                    self.sinks.remove(&job);
                }
            }
        }
        (deliveries, wake || self.scheduler.is_over())
    }

    /// Lets all workers go: the idle are asked, the others are told by SIGTERM.
    fn wind_up(&mut self) {
        if self.kill_at.is_some() {
            return;
        }
        self.kill_at = Some(Instant::now() + GRACE);
        for (slot, seat) in self.seats.iter().enumerate() {
            let Some(worker) = &seat.worker else { continue };
            if seat.ready_at.is_some() && self.scheduler.given(slot).is_empty() {
                worker.ask_to_exit();
            } else {
                worker.terminate();
            }
        }
    }

    /// Whether the end of the pool waits for inputs that only this thread can draw.
    fn waits_for(&self, thread: ThreadId) -> bool {
        self.sinks
            .iter()
            .any(|(job, opened)| opened.drawn_by == thread && self.scheduler.takes(*job))
    }
}
