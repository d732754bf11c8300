//! The workers on this machine: threads, time and processes around the [`scheduler`](crate::scheduler).
//!
//! One lock guards the scheduler and the parent's ends of the rings. A thread that has an event (a caller with work, a thread
//! that finds replies) takes the lock, tells the scheduler, and carries out its decisions, none of which blocks. Outcomes are
//! delivered, and workers woken, after the lock is released.
//!
//! # Who collects replies
//!
//! The threads that wait: see [`collect`]. If several threads wait, one of them is the *leader*, which looks at the rings and
//! sleeps on the bell; the others follow. If no thread waits, the *collector* is woken instead, and only for what can't be
//! postponed: work to hand on, callbacks, futures.
//!
//! # Threads
//!
//! - The [`supervisor`] starts workers, notices their deaths, and keeps the time. The system kills workers when the thread
//!   that started them ends, so this thread lives as long as they do.
//! - The *collector*. (It can't be the same thread: one waits for descriptors, the other for a word of memory.)
//! - The *output* thread exists if what workers print is captured: see [`output`] and [`harness`].
//! - The *callback* thread: see [`callback`](crate::callback).

mod collect;
mod harness;
#[cfg(feature = "tracing")]
mod logs;
mod output;
mod preload;
mod stamp;
mod state;
mod statistics;
mod supervisor;
mod watching;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pool_worker::{
    Capture, Freed, Kind, Launcher, Output, Preload, Process, Setup, Tells, Waker, Watch, Worker,
};

use self::harness::Printer;
use self::preload::Terms;
use self::state::{Effects, State};
use self::watching::Watching;
use crate::backend::{
    Backend, Job, JobId, Observe, Portion, Preparation, Settings, Sink, Streams, Tallies, Waiter,
    Want, Workers,
};
use crate::error::{Broken, Error, Start};
use crate::few::Few;
use crate::scheduler::{Mode, Rules, Time};
use crate::stats::Stats;
use crate::sync::{self, lock};

/// The library's threads need little stack: they run no code of users other than the wakers of their futures.
const STACK: usize = 256 * 1024;

/// The longest wait for the end of a pool that is dropped.
const END_MAX: Duration = Duration::from_secs(5);

thread_local! {
    static EFFECTS: Cell<Option<Box<Effects>>> = const { Cell::new(None) };
    /// How many nested deliveries this thread is in.
    static DELIVERIES: Cell<usize> = const { Cell::new(0) };
    /// Whether this is a supervisor or a collector.
    static OF_A_POOL: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread works for a pool on this machine, and must not be held up.
#[cfg(feature = "tracing")]
pub(crate) fn is_of_a_pool() -> bool {
    OF_A_POOL.try_with(Cell::get).unwrap_or(false)
}

/// The workers on this machine: each is a process, this same program started again. The default backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Backend for Local {
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
        Ok(Arc::new(LocalWorkers::start(settings)?))
    }
}

#[derive(Debug)]
struct LocalWorkers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The process that built the pool. A forked copy of it has no threads, and the workers are not its children.
    owner: u32,
}

struct Shared {
    processes: usize,
    /// When the pool was built.
    began: Time,
    cpus: usize,
    /// The names of the initializers, for messages.
    initializers: Vec<String>,
    launcher: Launcher,
    /// How workers are forked, if a preload task is set.
    preload: Option<Terms>,
    state: Mutex<State>,
    /// Workers became ready, or the pool has ended.
    changed: Condvar,
    /// Ends the supervisor's sleep.
    waker: Waker,
    /// Watches the pipes through which captured output comes; the waker ends that.
    outputs: Option<Arc<Watch>>,
    outputs_waker: Option<Waker>,
    /// Prints what workers write, in a test whose output is captured.
    printer: Option<Printer>,
    /// How many threads hold outcomes that they have not delivered yet.
    delivering: AtomicUsize,
    /// How many threads wait for the end of the pool.
    joining: AtomicUsize,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("processes", &self.processes)
            .finish_non_exhaustive()
    }
}

impl LocalWorkers {
    /// Starts the workers, and waits until all are ready.
    fn start(settings: Settings) -> Result<LocalWorkers, Error> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let processes = settings.workers.unwrap_or(cpus);
        let initializers = settings.initializers.iter();
        let initializers: Vec<String> = initializers.map(|task| task.name.clone()).collect();
        let rules = Rules {
            slots: processes,
            cpus,
            max_tasks: settings.max_tasks,
            start_timeout: settings.start_timeout,
            initializers: initializers.clone(),
            give_up_after: settings.give_up_after,
            grace: settings.grace,
            memory_limit: settings.memory_limit,
            max_memory: settings.max_memory,
            cpu_time: settings
                .sandbox
                .as_ref()
                .and_then(|sandbox| sandbox.inner().cpu_time),
            leave_max: settings.leave_max(),
            finalizes: !settings.finalizers.is_empty(),
        };
        let tells = match settings.observe {
            _ if settings.observer.is_none() => Tells::Nothing,
            Observe { inputs: true, .. } => Tells::Each,
            Observe { spans: true, .. } => Tells::Spans,
            _ => Tells::Nothing,
        };
        let began = pool_worker::now();
        let watching = Watching::new(&settings, began, rules.seats());
        let setup = set_up(&settings).transpose().map_err(start_error)?;
        let of_test = (settings.streams == Streams::Inherit && harness::captures())
            .then(Capture::of_all)
            .transpose();
        let (of_test, ends) = of_test.map_err(start_error)?.unzip();
        let kind = Kind {
            setup,
            tells_memory: settings.max_memory.is_some(),
            contained: settings.contained,
            decode_stack: settings.decode_stack,
            tells,
            env: settings.env,
            output: match settings.streams {
                Streams::Inherit => match ends {
                    Some(ends) => Output::Common(ends),
                    None => Output::Inherit,
                },
                Streams::Null => Output::Null,
                Streams::Capture => Output::Here { lines: false },
                Streams::Lines => Output::Here { lines: true },
            },
        };
        let (watch, waker) = Watch::new().map_err(start_error)?;
        let outputs = matches!(kind.output, Output::Here { .. } | Output::Common(_));
        let outputs = outputs.then(Watch::new);
        let outputs = outputs.transpose().map_err(start_error)?;
        let (outputs, outputs_waker) = outputs
            .map(|(watch, waker)| (Arc::new(watch), waker))
            .unzip();
        if let (Some(capture), Some(outputs)) = (&of_test, &outputs) {
            let watched = capture.pipes().try_for_each(|pipe| outputs.add(pipe, 0));
            watched.map_err(start_error)?;
        }
        let freed = Freed::new(waker.clone());
        let launcher = Launcher::new(processes, cpus, kind, Arc::clone(&freed));
        let launcher = launcher.map_err(start_error)?;
        let shared = Arc::new(Shared {
            processes,
            began,
            cpus,
            initializers,
            state: Mutex::new(State::new(
                rules,
                launcher.bell().clone(),
                freed,
                settings.observer,
                watching,
                settings.log_level,
            )),
            launcher,
            preload: settings.preload.map(|task| Terms {
                preload: Preload::new(task.task, task.arguments),
                name: task.name,
                timeout: settings.start_timeout,
                processes,
            }),
            changed: Condvar::new(),
            waker,
            outputs: outputs.clone(),
            outputs_waker,
            printer: of_test.map(Printer::new),
            delivering: AtomicUsize::new(0),
            joining: AtomicUsize::new(0),
        });
        // The scheduler's first actions: start a worker for each slot.
        shared.update(|state| state.note_unenforced(shared.launcher.unenforced()));
        let local = LocalWorkers {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
            owner: pool_worker::lineage(),
        };
        let supervised = Arc::clone(&shared);
        local.spawn("pool-supervisor", move || {
            let work = AssertUnwindSafe(|| supervisor::supervise(&supervised, &watch));
            if panic::catch_unwind(work).is_err() {
                // The workers end with the supervisor.
                supervised.break_down();
            }
        })?;
        let collected = Arc::clone(&shared);
        local.spawn("pool-collector", move || {
            collected.collect_when_nobody_waits()
        })?;
        if let Some(outputs) = outputs {
            let read = Arc::clone(&shared);
            local.spawn("pool-output", move || match &read.printer {
                Some(printer) => read.print_for_test(&outputs, printer),
                None => read.read_outputs(&outputs),
            })?;
        }
        match shared.wait_until_ready() {
            Ok(()) => Ok(local),
            // Dropping it terminates the workers that did start.
            Err(why) => Err(Error::Start(Start(why))),
        }
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                OF_A_POOL.set(true);
                work();
            })
            .map_err(|error| start_error(pool_worker::no_thread("thread for a pool", error)))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    fn is_ours(&self) -> bool {
        pool_worker::lineage() == self.owner
    }
}

/// The tasks that workers run besides inputs, if any.
fn set_up(settings: &Settings) -> Option<io::Result<Setup>> {
    let sandbox = settings.sandbox.as_ref();
    let sandbox = sandbox.map(|sandbox| sandbox.inner().clone());
    if sandbox.is_none() {
        settings.preparations().next()?;
    }
    let preparations = settings.preparations();
    let held: Vec<_> = preparations
        .flat_map(|task| task.attachments.iter().map(Arc::clone))
        .collect();
    let (initializers, finalizers) = (steps(&settings.initializers), steps(&settings.finalizers));
    Some(Setup::new(&initializers, &finalizers, &held, sandbox))
}

/// The numbers of tasks, and their arguments.
fn steps(tasks: &[Preparation]) -> Vec<(u32, &[u8])> {
    let all = tasks.iter();
    all.map(|task| (task.task, &task.arguments[..])).collect()
}

fn start_error(error: io::Error) -> Error {
    Error::Start(Start(error.to_string()))
}

/// For a pool that was never completed; one that was has already been shut down.
impl Drop for LocalWorkers {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Workers for LocalWorkers {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error> {
        if !self.is_ours() {
            return Err(Error::Closed);
        }
        self.shared
            .update(|state| state.submit(job, sink, inputs, more))
            .ok_or_else(|| self.shared.why_closed())
    }

    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error> {
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
            state.drawn_here(job);
            state.collect_before_submitting();
            state.stamp();
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

    fn wait(&self, job: JobId, want: Want, waiter: Waiter<'_>, deadline: Option<Instant>) -> bool {
        if !self.is_ours() {
            return waiter.is_over();
        }
        let wait = || self.shared.wait(job, want, waiter.0, deadline);
        match &self.shared.printer {
            None => wait(),
            Some(printer) => printer.around(wait),
        }
    }

    fn settle(&self) {
        if let Some(printer) = &self.shared.printer
            && self.is_ours()
        {
            printer.settle();
        }
    }

    fn running(&self, job: JobId) -> usize {
        if !self.is_ours() {
            return 0;
        }
        self.shared.update(|state| {
            state.collect();
            state.running(job)
        })
    }

    fn notify(&self, job: JobId) {
        self.notify_of(job, Want::All);
    }

    fn notify_of(&self, job: JobId, want: Want) {
        if self.is_ours() {
            self.shared
                .update(|state| state.scheduler.notify(job, want));
        }
    }

    fn hint(&self, task: u32) -> usize {
        if !self.is_ours() {
            return 1;
        }
        lock(&self.shared.state).scheduler.hint(task)
    }

    fn close(&self) {
        if self.is_ours() {
            self.shared.update(|state| state.scheduler.close());
        }
    }

    fn terminate(&self) {
        if self.is_ours() {
            let now = pool_worker::now();
            self.shared.update(|state| {
                // Messages that were sent before this must arrive before the outcomes.
                state.collect();
                state.scheduler.terminate(now);
            });
        }
    }

    fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        if !self.is_ours() {
            return Ok(());
        }
        self.shared.joining.fetch_add(1, Ordering::SeqCst);
        let joined = self.shared.wait_for_end(deadline);
        self.shared.joining.fetch_sub(1, Ordering::SeqCst);
        joined
    }

    /// A process can be stuck in the kernel, out of reach of SIGKILL, so the wait is bounded.
    fn shut_down(&self) {
        let threads = mem::take(&mut *lock(&self.threads));
        if threads.is_empty() || !self.is_ours() {
            return;
        }
        self.terminate();
        // A waker that drops the last handle of a pool may run on a thread of that pool, and the
        // end of the pool waits for its threads.
        if OF_A_POOL.get() {
            return;
        }
        if self.join(Some(Instant::now() + END_MAX)).is_ok() {
            for thread in threads {
                let _ = thread.join();
            }
        }
    }

    fn count(&self) -> usize {
        self.shared.processes
    }

    fn stats(&self) -> Stats {
        self.tallied_stats().0
    }

    fn tallied_stats(&self) -> (Stats, Tallies) {
        if !self.is_ours() {
            return Default::default();
        }
        self.shared.stats()
    }

    fn confines(&self) -> bool {
        true
    }

    fn carries_channels(&self) -> bool {
        true
    }

    fn pids(&self) -> Vec<u32> {
        if !self.is_ours() {
            return Vec::new();
        }
        let state = lock(&self.shared.state);
        (0..self.shared.processes)
            .filter_map(|worker| {
                let mut slots = state.scheduler.slots_of(worker).into_iter().flatten();
                slots.find_map(|slot| state.workers[slot].as_ref().map(Worker::pid))
            })
            .collect()
    }
}

impl Shared {
    /// Changes the state, carries out what follows from that, and delivers.
    fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        // One box for each thread, so that nothing large is moved or allocated each time.
        let mut effects = EFFECTS.take().unwrap_or_default();
        let result = {
            let mut state = lock(&self.state);
            mem::swap(&mut state.effects, &mut effects);
            let result = change(&mut state);
            state.settle();
            if !state.effects.deliveries.is_empty() {
                self.delivering.fetch_add(1, Ordering::SeqCst);
            }
            mem::swap(&mut state.effects, &mut effects);
            result
        };
        self.carry_out(&mut effects);
        EFFECTS.set(Some(effects));
        result
    }

    /// Carries out what is done without the lock.
    fn carry_out(&self, effects: &mut Effects) {
        for sleeper in effects.sleepers.drain(..) {
            sleeper.wake();
        }
        for channel in effects.awaited.drain(..) {
            channel.wake();
        }
        effects.freed.clear();
        effects.forgotten.clear();
        if !effects.deliveries.is_empty() {
            DELIVERIES.set(DELIVERIES.get() + 1);
            for (sink, outcomes) in effects.deliveries.drain(..) {
                sink.deliver(outcomes);
            }
            DELIVERIES.set(DELIVERIES.get() - 1);
            self.delivering.fetch_sub(1, Ordering::SeqCst);
            if effects.leader_may_sleep {
                self.launcher.bell().wake_leader();
            }
            // A thread that begins to wait after this check sees the number that was just lowered.
            if self.joining.load(Ordering::SeqCst) > 0 {
                drop(lock(&self.state));
                self.changed.notify_all();
            }
        }
        if mem::take(&mut effects.wake_supervisor) {
            self.waker.wake();
        }
        if mem::take(&mut effects.over) {
            self.changed.notify_all();
        }
    }

    /// Whether another thread is delivering. (This one may run a callback, which is itself being delivered.)
    fn is_delivered_elsewhere(&self) -> bool {
        self.delivering.load(Ordering::SeqCst) > DELIVERIES.get()
    }

    /// Waits until the pool has ended and everything is delivered, or until the deadline.
    fn wait_for_end(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut state = lock(&self.state);
        loop {
            if state.over && !self.is_delivered_elsewhere() {
                return Ok(());
            }
            let open = *state.scheduler.mode() == Mode::Open;
            if open || state.waits_for(sync::thread_number()) {
                return Err(Error::StillOpen);
            }
            let (guard, in_time) = sync::wait(&self.changed, state, deadline);
            if !in_time {
                return Err(Error::Timeout);
            }
            state = guard;
        }
    }

    /// The supervisor is gone: no thread must wait for it.
    #[cold]
    fn break_down(&self) {
        let now = pool_worker::now();
        self.update(|state| {
            state
                .scheduler
                .break_down("the supervisor of the pool panicked", now);
            state.end();
            state.announce();
        });
        self.launcher.bell().wake_collector();
        self.outputs_waker.iter().for_each(Waker::wake);
        // Processes that are killed with this thread would stay zombies.
        let mut dead: Vec<Process> = self.update(|state| {
            let workers = state.workers.iter_mut();
            let dead: Vec<Worker> = workers.filter_map(Option::take).collect();
            // Their counts are lost with the supervisor.
            dead.into_iter().map(Worker::into_process).collect()
        });
        dead.iter().for_each(Process::kill);
        supervisor::bury_all(&mut dead);
    }

    /// Why no more work is accepted.
    #[cold]
    fn why_closed(&self) -> Error {
        match lock(&self.state).scheduler.mode() {
            Mode::Broken(why) => Error::Broken(Broken(why.clone())),
            Mode::Open | Mode::Closed | Mode::Terminated => Error::Closed,
        }
    }

    /// Waits for the first workers.
    fn wait_until_ready(&self) -> Result<(), String> {
        let mut state = lock(&self.state);
        loop {
            if let Some(why) = state.scheduler.first_failure() {
                return Err(why.to_owned());
            }
            if state.scheduler.are_all_ready() {
                return Ok(());
            }
            state = sync::wait(&self.changed, state, None).0;
        }
    }
}
