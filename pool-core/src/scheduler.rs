//! Decides what runs where. Pure: no thread, no clock, no process; events go in, actions come out.
//!
//! # Jobs
//!
//! A [`job`] is a queue of inputs. Jobs of higher priority go first, and older ones among equals. The inputs that are sent to
//! a worker at once are a *portion*: as many as take about a millisecond, and fewer towards the end of the job. If the caller
//! gave a chunk size, the inputs of a *chunk* must stay together; then a portion consists of whole chunks. [`decide`] chooses
//! which worker gets which portion; this file says what follows from each event.
//!
//! # Slots
//!
//! Each worker process sits in a [`slot`], which is also the state machine of that process: wanted, starting, ready, leaving,
//! dying. `given` holds the inputs that it was given and has not answered, in order; a worker also answers in that order.
//! `answered` counts what it has answered since it started. Together with the number of inputs that it has *begun*, which
//! only the worker's ring knows, this tells the scheduler exactly which input is running and which have not begun.
//!
//! Inputs that have not begun can be taken back: the scheduler requests it with [`Action::Recall`], and the answer comes
//! through [`Scheduler::recalled`]. This is done for a worker that would otherwise be idle, for a cancelled job, and before a
//! worker is killed.
//!
//! # Time
//!
//! Time is a number that comes with events. [`Scheduler::tick`] does what is due, and returns when it wants to be called
//! again. If an event that brings no time begins a wait, [`Scheduler::wants_tick`] asks for a call.
//!
//! # Invariants
//!
//! - Each input gets exactly one outcome, unless its job was abandoned.
//! - An input is in one place: pending in its job, or given to one slot.
//! - Only a slot that is `Ready` is given work.
//! - An input that has begun is never given again, unless the job allows retries and its worker died.

mod clock;
mod count;
mod death;
mod decide;
mod job;
mod pace;
mod slot;
mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pool_worker::{Exit, Starved};

use self::count::Book;
pub(crate) use self::count::{Counts, Happened, Lives};
pub(crate) use self::death::with_last_line;
use self::job::{Jobs, Pending};
use self::pace::Paces;
use self::slot::{Given, Phase, Reason, Slot};
use crate::backend::{Failure, Job, JobId, Outcomes, Portion, Want};
use crate::few::Few;

/// A moment, as the time since a fixed one.
pub(crate) type Time = Duration;

/// The pause after a failed start. It doubles with each further failure, up to the maximum.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A worker that has lived this long counts as working, even if it has had nothing to do.
const PROVED: Duration = Duration::from_secs(1);

/// The minimum time between two checks of a worker that has something to begin and gives no sign of life.
const LOOK_AGAIN: Duration = Duration::from_millis(90);

/// After this many checks without a sign of life, the inputs that a worker has not begun are taken back; after this many it
/// is killed. Checks are counted instead of time, so that workers don't suffer when the whole program was stopped.
const LOOKS_TO_SHUN: u32 = 3;
const LOOKS_TO_KILL: u32 = 20;

/// An attacker who controls the workers that run an input can pretend that none of them begins it. So a worker that gives signs
/// of life must begin an input with a time limit in this time, and in the second one if others have already failed to.
const BEGIN_MAX: Duration = Duration::from_secs(60);
const BEGIN_AGAIN_MAX: Duration = Duration::from_secs(15);

/// While workers have something to do, [`Scheduler::tick`] is called at least ten times a second. If it was not called for
/// this long, the whole program was stopped (Ctrl-Z, a frozen cgroup, a suspended virtual machine). This many such periods
/// are remembered.
const STOPPED_MIN: Duration = Duration::from_millis(500);
const STOPS_MAX: usize = 64;

/// An input that was taken back this often from workers that had not begun it for some time is not taken back again: it stays
/// with its worker until that is dead, so that it is blamed in the end.
const TAKEBACKS_MAX: u32 = 20;

/// An input is blamed once this many workers have died that were about to begin it.
const MISSES_MAX: u32 = 5;

/// When everything is ended, idle workers have this long after being asked to exit, and busy ones after SIGTERM.
const GRACE: Duration = Duration::from_millis(200);

/// How long a worker that was asked to exit may take for its finalizers and exit handlers, if they have no limits of their
/// own.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(10);

/// What the caller of the scheduler must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a worker for this slot, and call [`Scheduler::started`] or [`Scheduler::start_failed`].
    Start { slot: usize },
    /// Send whatever is to be sent: see [`Scheduler::next_to_send`].
    Send { slot: usize },
    /// Take back the inputs that have not begun, and call [`Scheduler::recalled`].
    Recall { slot: usize },
    /// From now on, the worker sits in another slot.
    Move { from: usize, to: usize },
    /// Ask the worker to exit when it has finished.
    Ask { slot: usize },
    /// Tell the worker to end, with SIGTERM.
    Terminate { slot: usize },
    /// Kill the worker.
    Kill { slot: usize },
    /// Deliver outcomes. `last`: nothing else will come for this job.
    Deliver {
        job: JobId,
        outcomes: Outcomes,
        last: bool,
    },
    /// Nothing else will come for this job.
    Forget { job: JobId },
}

/// Whether new work is accepted, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    Closed,
    Terminated,
    Broken(String),
}

/// The settings for workers.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) slots: usize,
    /// How many CPUs the workers may use.
    pub(crate) cpus: usize,
    /// How many inputs a worker may run before another takes its place.
    pub(crate) max_tasks: Option<usize>,
    /// How long a worker may take until it is ready.
    pub(crate) start_timeout: Duration,
    /// The names of the tasks that a worker runs before it is ready, for messages.
    pub(crate) initializers: Vec<String>,
    /// How long the pool may be without a working worker before it is broken.
    pub(crate) give_up_after: Duration,
    /// How long after SIGTERM a worker that has exceeded a limit is killed.
    pub(crate) grace: Duration,
    /// How much memory a worker may have while it runs an input, and how much afterwards.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) max_memory: Option<u64>,
    /// How much processor time a worker may use in its life.
    pub(crate) cpu_time: Option<Duration>,
    /// How long a worker that was asked to exit may take.
    pub(crate) leave_max: Duration,
    /// Workers run finalizers, so they have that time even if other workers wait for their place.
    pub(crate) finalizes: bool,
}

impl Rules {
    /// Whether healthy workers are replaced.
    fn recycles(&self) -> bool {
        self.max_tasks.is_some() || self.max_memory.is_some() || self.cpu_time.is_some()
    }

    /// Names, for messages, the initializer in which a worker failed: the one after those that had finished, or all if that
    /// is unknown.
    fn during(&self, initialized: Option<usize>) -> String {
        let names = match (&self.initializers[..], initialized) {
            (names, Some(next)) if next < names.len() => &names[next..=next],
            (names, _) => names,
        };
        match names {
            [] => String::new(),
            [name] => format!(" (initializer `{name}`)"),
            names => format!(" (initializers `{}`)", names.join("`, `")),
        }
    }

    /// The number of slots for workers that are, or will be, on duty. If workers are recycled, each has an understudy, which
    /// is started in advance.
    fn pairs(&self) -> usize {
        if self.recycles() {
            2 * self.slots
        } else {
            self.slots
        }
    }

    /// The maximum number of processes. A worker that was asked to exit moves to a slot behind all others, where it may take
    /// its time for its exit handlers.
    pub(crate) fn seats(&self) -> usize {
        if self.recycles() {
            3 * self.slots
        } else {
            self.slots
        }
    }
}

/// The end of a worker. All its replies have been processed.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) pid: u32,
    pub(crate) exit: Exit,
    /// How many inputs it had begun, if that number is credible.
    pub(crate) begun: Option<u32>,
    /// How many of its initializers had finished.
    pub(crate) initialized: usize,
    /// It aborted because an allocation failed.
    pub(crate) starved: Option<Starved>,
    /// The system call because of which its sandbox has ended it.
    pub(crate) forbidden: Option<String>,
    /// The last output of its last input, or of its initializers, if output is captured.
    pub(crate) output: Option<String>,
}

/// An input that a worker has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) job: JobId,
    pub(crate) task: u32,
    /// Its position; `None` if it is the only input of its call.
    pub(crate) index: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    rules: Rules,
    mode: Mode,
    slots: Vec<Slot>,
    jobs: Jobs,
    /// Slots that may be idle.
    idle: Vec<usize>,
    /// The slot that was given inputs last.
    recent: usize,
    /// How many inputs were given to workers.
    given: usize,
    /// How many slots have inputs open, and how many have more than one.
    busy: usize,
    sharable: usize,
    /// As far as is known, no worker takes more inputs.
    saturated: bool,
    /// Work was taken back for others to do.
    spreading: bool,
    paces: Paces,
    /// When the next inputs were accepted, if known.
    stamp: Time,
    book: Book,
    /// Why the first failed start failed, and the last.
    first_failure: Option<String>,
    last_failure: Option<String>,
    /// When the last tick was, if workers had something to do then.
    ticked_at: Option<Time>,
    /// When each period in which the whole program was stopped ended, and how long it was.
    stops: VecDeque<(Time, Duration)>,
    /// Since when no worker is working, or starting for the first time.
    hopeless_since: Option<Time>,
    /// When the workers that have not exited by themselves are killed.
    kill_at: Option<Time>,
    wants_tick: bool,
    /// The shortest time limit that the last tick knew of, or that has been added since.
    shortest_limit: Option<Duration>,
    actions: VecDeque<Action>,
}

impl Scheduler {
    pub(crate) fn new(rules: Rules) -> Scheduler {
        let slots = rules.slots;
        let mut scheduler = Scheduler {
            mode: Mode::Open,
            slots: (0..rules.seats())
                .map(|slot| Slot {
                    worker: slot % slots,
                    on_duty: slot < slots,
                    ..Slot::default()
                })
                .collect(),
            book: Book::new(slots),
            stamp: Time::ZERO,
            rules,
            jobs: Jobs::default(),
            idle: Vec::with_capacity(slots),
            recent: 0,
            given: 0,
            busy: 0,
            sharable: 0,
            saturated: false,
            spreading: false,
            paces: Paces::default(),
            first_failure: None,
            last_failure: None,
            ticked_at: None,
            stops: VecDeque::new(),
            hopeless_since: None,
            kill_at: None,
            wants_tick: false,
            shortest_limit: None,
            actions: VecDeque::new(),
        };
        for slot in 0..slots {
            scheduler.want_worker(slot, None);
        }
        scheduler
    }

    /// The next action; `None` if there is none.
    #[inline]
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Why the first failed start failed.
    pub(crate) fn first_failure(&self) -> Option<&str> {
        self.first_failure.as_deref()
    }

    /// Whether every worker is ready, or was once.
    pub(crate) fn are_all_ready(&self) -> bool {
        self.slots[..self.rules.slots]
            .iter()
            .all(|slot| slot.was_ready)
    }

    /// The maximum number of processes, including understudies.
    pub(crate) fn seats(&self) -> usize {
        self.slots.len()
    }

    /// The slots of this worker: the one on duty, and its understudy's.
    pub(crate) fn slots_of(&self, worker: usize) -> [Option<usize>; 2] {
        match self.partner(worker) {
            Some(other) if self.slots[other].on_duty => [Some(other), Some(worker)],
            other => [Some(worker), other],
        }
    }

    /// Whether there is no process, and none is wanted.
    pub(crate) fn is_over(&self) -> bool {
        self.mode != Mode::Open
            && self.jobs.is_empty()
            && self.slots.iter().all(|slot| slot.phase == Phase::Empty)
    }

    /// Whether this job still accepts inputs.
    pub(crate) fn takes(&self, job: JobId) -> bool {
        self.jobs.get(job).is_some_and(|job| job.more)
    }

    /// How many inputs of this task make a portion.
    pub(crate) fn hint(&self, task: u32) -> usize {
        self.paces.portion(task)
    }

    /// Whether there are inputs that no worker was given.
    pub(crate) fn has_pending(&self) -> bool {
        self.jobs.has_pending()
    }

    /// Whether this slot has inputs that it has not answered.
    pub(crate) fn is_busy(&self, slot: usize) -> bool {
        self.slots[slot].open > 0
    }

    /// Whether this slot runs an input of this job, by the ring's count of those begun.
    pub(crate) fn runs(&self, slot: usize, begun: u32, job: JobId) -> bool {
        let given = self.slots[slot].running_now(begun);
        given.is_some_and(|given| given.job == job && !given.void)
    }

    /// Whether any slot has.
    pub(crate) fn is_any_busy(&self) -> bool {
        self.busy > 0
    }

    /// Whether the workers must be checked from time to time.
    pub(crate) fn wants_patrol(&self) -> bool {
        self.busy > 0 || self.slots.iter().any(|slot| slot.shunned)
    }

    /// How long this slot will be busy, if known.
    pub(crate) fn backlog(&self, slot: usize) -> Option<Duration> {
        let slot = &self.slots[slot];
        slot.pace.map(|_| slot.backlog())
    }

    /// How many inputs were given to workers so far; wraps around.
    pub(crate) fn given_in_all(&self) -> usize {
        self.given
    }

    /// Whether a call of [`tick`](Scheduler::tick) was asked for since the last one.
    pub(crate) fn wants_tick(&self) -> bool {
        self.wants_tick
    }

    // ---- sending ------------------------------------------------------------------------------

    /// Whether to [note](Scheduler::note_cpu_time) how much processor time workers have used.
    pub(crate) fn limits_cpu_time(&self) -> bool {
        self.rules.cpu_time.is_some()
    }

    /// Whether [`tick`](Scheduler::tick) wants to know how much memory workers have.
    pub(crate) fn limits_memory(&self) -> bool {
        self.rules.memory_limit.is_some()
    }

    /// The next portion to send to this slot. Some of its inputs may have been answered already, from an earlier send.
    pub(crate) fn next_to_send(&self, slot: usize) -> Option<&Given> {
        let slot = &self.slots[slot];
        slot.is_ready().then(|| slot.given.get(slot.sent))?
    }

    /// That portion was sent completely.
    pub(crate) fn sent(&mut self, slot: usize) {
        self.slots[slot].sent += 1;
    }

    /// Whether there may be a reply that must be looked at; see [`wake_at`](Scheduler::wake_at).
    pub(crate) fn is_watched(&self) -> bool {
        self.jobs.has_pending() || self.jobs.any_wanted() || self.busy > 1 && self.sharable > 0
    }

    /// The number of the reply that must be looked at: a thread waits for it, or the worker needs more to do.
    pub(crate) fn wake_at(&self, slot: usize) -> Option<u32> {
        let state = &self.slots[slot];
        if state.open == 0 {
            return None;
        }
        let refill = if self.jobs.has_pending() {
            Some(state.open.div_ceil(2))
        } else {
            // When this worker is idle, it may help another.
            let others = self.sharable - usize::from(state.open > 1);
            (others > 0).then_some(state.open)
        };
        let wanted = if self.jobs.any_wanted() {
            self.wanted_of(state)
        } else {
            None
        };
        let soonest = refill.into_iter().chain(wanted).min()?;
        Some(state.answered.wrapping_add(soonest as u32))
    }

    /// Which input the worker of this slot began as its `begun`th since its start, if it has not answered it yet.
    pub(crate) fn locate(&self, slot: usize, begun: u32) -> Option<Located> {
        let state = &self.slots[slot];
        let mut before = begun.wrapping_sub(state.answered).checked_sub(1)? as usize;
        if before >= state.open {
            return None;
        }
        let given = state.given.iter().find(|given| {
            let is_here = before < given.left();
            if !is_here {
                before -= given.left();
            }
            is_here
        })?;
        let index = given.portion.first + given.answered + before;
        let job = self.jobs.get(given.job);
        Some(Located {
            job: given.job,
            task: given.task,
            index: (!job.is_some_and(|queue| queue.job.single)).then_some(index),
        })
    }

    /// How many inputs the worker of this slot has answered since its start.
    pub(crate) fn answered_by(&self, slot: usize) -> u32 {
        self.slots[slot].answered
    }

    /// Whether that is at least this number; wraps around.
    pub(crate) fn has_answered(&self, slot: usize, number: u32) -> bool {
        (number.wrapping_sub(self.slots[slot].answered) as i32) <= 0
    }

    /// After how many more replies of this slot some thread has what it waits for.
    fn wanted_of(&self, slot: &Slot) -> Option<usize> {
        let mut before = 0;
        for given in &slot.given {
            let left = given.left();
            if !given.void
                && let Some(want) = self.jobs.get(given.job).and_then(|job| job.want())
            {
                match want {
                    Want::All => return Some(before + left),
                    Want::Any => return Some(before + 1),
                    Want::Index(index) => {
                        let first = given.portion.first + given.answered;
                        if let Some(at) = index.checked_sub(first)
                            && at < left
                        {
                            return Some(before + at + 1);
                        }
                    }
                }
            }
            before += left;
        }
        None
    }

    // ---- what users do ------------------------------------------------------------------------

    /// Accepts a job. The caller has checked that the mode is `Open`.
    pub(crate) fn submit(&mut self, job: Job, inputs: Few<Portion>, more: bool) -> JobId {
        let start = self.paces.first_portion(job.task);
        let id = self.jobs.open(job, start);
        self.push(id, inputs, more);
        id
    }

    /// Adds inputs to a job that accepts them.
    pub(crate) fn push(&mut self, id: JobId, inputs: Few<Portion>, more: bool) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.more = more;
        let stamp = std::mem::take(&mut self.stamp);
        if let Some(inputs) = self.give_at_once(id, inputs, stamp) {
            self.jobs.push(id, inputs, stamp);
            self.finish_if_done(id);
            self.dispatch();
            if self.jobs.has_priorities() {
                self.overtake(id);
            }
        }
    }

    /// A thread waits for outcomes of this job, until [`forget_want`](Scheduler::forget_want).
    pub(crate) fn want(&mut self, id: JobId, want: Want) {
        self.jobs.want(id, want);
    }

    pub(crate) fn forget_want(&mut self, id: JobId) {
        self.jobs.forget_want(id);
    }

    /// The outcomes of the job are wanted as `want` says, even if no thread waits for them.
    pub(crate) fn notify(&mut self, id: JobId, want: Want) {
        self.jobs.notify(id, want);
    }

    /// Ends a job; see `Backend::cancel`.
    pub(crate) fn cancel(&mut self, id: JobId, running: bool) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.more = false;
        job.abandoned = true;
        let task = job.job.task;
        let pending = self.jobs.take_pending(id);
        let mut open: Vec<(usize, usize)> = Vec::new();
        let counts = pending
            .iter()
            .map(|next| (next.portion.first, next.portion.inputs.count()));
        if running {
            open.extend(counts);
        } else {
            let count: usize = counts.map(|(_, count)| count).sum();
            self.jobs.close_inputs(id, count);
            self.book.task(task).cancelled += count as u64;
        }
        for slot in 0..self.slots.len() {
            let mut concerned = false;
            for given in &mut self.slots[slot].given {
                if given.job == id && !given.void {
                    concerned = true;
                    if running {
                        given.void = true;
                        open.push((given.portion.first + given.answered, given.left()));
                    }
                }
            }
            if concerned && self.slots[slot].is_ready() {
                self.recall(slot);
            }
        }
        if open.is_empty() {
            self.finish_if_done(id);
        }
        let cancelled = Arc::new(Failure::Cancelled);
        for (first, count) in open {
            self.deliver(id, Outcomes::failed(first, count, Arc::clone(&cancelled)));
        }
        self.dispatch();
    }

    /// No more jobs are accepted; those that were accepted go on.
    pub(crate) fn close(&mut self) {
        if self.mode == Mode::Open {
            self.mode = Mode::Closed;
            self.dispatch();
        }
    }

    /// Ends everything.
    pub(crate) fn terminate(&mut self, now: Time) {
        if matches!(self.mode, Mode::Open | Mode::Closed) {
            self.end(Mode::Terminated, Failure::Terminated, now);
        }
    }
}

#[cfg(test)]
mod tests;
