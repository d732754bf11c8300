//! What runs where next. Pure: no thread, no clock, no process; events go in, actions come out.
//!
//! # Jobs
//!
//! A [`job`] is a queue of inputs. Those of higher priority go first, and older ones among equals. What is sent to a worker at once is a *portion*: as
//! many inputs as take about a millisecond, and fewer towards the end of the job. A *chunk* is what a
//! caller with an explicit chunk size wants kept together; then a portion is made of whole chunks. Who
//! gets which portion is decided in [`decide`]; here is what follows from each event.
//!
//! # Slots
//!
//! Each worker process sits in a [`slot`], which is also the state machine of that process: wanted,
//! starting, ready, leaving, dying. `given` holds what it was given and has not answered, in order; a
//! worker answers in that order too. `answered` counts what it has answered since it started, so together
//! with the number of inputs that it has *begun*, which only the worker's ring knows, the scheduler knows
//! exactly which input runs now and which have not begun.
//!
//! Work that has not begun can be taken back: the scheduler asks for it with [`Action::Recall`],
//! and the answer comes back through [`Scheduler::recalled`]. That serves a worker that would
//! otherwise idle, a cancelled job, and a worker that must be killed.
//!
//! # Time
//!
//! Time is a number that comes in with events. [`Scheduler::tick`] does what is due, and says when it wants
//! to be called again. Where an event that brings no time begins a wait, [`Scheduler::wants_tick`] asks
//! for one.
//!
//! # Invariants
//!
//! - Each input gets exactly one outcome, unless its job was abandoned.
//! - An input is in one place: pending in its job, or given to one slot.
//! - Only a slot that is `Ready` is given work.
//! - What was begun is never given again, unless the job allows retries and its worker died.

mod clock;
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

use self::job::{Jobs, Pending};
use self::pace::Paces;
use self::slot::{Given, Phase, Reason, Slot};
use crate::backend::{Failure, Job, JobId, Outcomes, Portion, Want};
use crate::few::Few;

/// A moment: how long after one that is fixed.
pub(crate) type Time = Duration;

/// After a failed start the next try waits so long; after each more that fails twice as long, up to the
/// most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A worker that has lived so long is a good one, though it had nothing to do.
const PROVED: Duration = Duration::from_secs(1);

/// A worker that has something to begin and gives no sign of life is looked at no sooner than after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(90);

/// After so many looks without a sign of life, what it has not begun is taken back; after so many it is killed. Looks
/// are counted, not time, so that a whole job that was stopped is none the worse for it.
const LOOKS_TO_SHUN: u32 = 3;
const LOOKS_TO_KILL: u32 = 20;

/// While workers have something to do, [`Scheduler::tick`] is called at least ten times a second. If it was not for so
/// long, the whole program was stopped (Ctrl-Z, a frozen cgroup, a virtual machine that slept). So many times are
/// remembered.
const STOPPED_MIN: Duration = Duration::from_millis(500);
const STOPS_MAX: usize = 64;

/// An input is blamed when so many workers have died that were to begin it next.
const MISSES_MAX: u32 = 5;

/// When all is ended, an idle worker that was asked to exit, and a busy one after SIGTERM, have this
/// long.
const GRACE: Duration = Duration::from_millis(200);

/// A worker that was let go has this long for its finalizers and exit handlers, if nobody says otherwise.
pub(crate) const LEAVE_MAX: Duration = Duration::from_secs(10);

/// What the caller of the scheduler must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a worker for this slot, and call [`Scheduler::started`] or [`Scheduler::start_failed`].
    Start { slot: usize },
    /// Send what there is to send: see [`Scheduler::next_to_send`].
    Send { slot: usize },
    /// Take back what has not begun, and call [`Scheduler::recalled`].
    Recall { slot: usize },
    /// The worker sits in another slot from now on.
    Move { from: usize, to: usize },
    /// Ask the worker to exit when it is through.
    Ask { slot: usize },
    /// Tell the worker to end, by SIGTERM.
    Terminate { slot: usize },
    /// Kill the worker.
    Kill { slot: usize },
    /// Hand outcomes to whoever waits for them. `last`: nothing comes for this job any more.
    Deliver {
        job: JobId,
        outcomes: Outcomes,
        last: bool,
    },
    /// Nothing comes for this job any more.
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

/// How the workers are to be.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) slots: usize,
    /// How many CPUs the workers may use.
    pub(crate) cpus: usize,
    /// How many inputs a worker is given before another takes its place.
    pub(crate) max_tasks: Option<usize>,
    /// How long a worker may take until it is ready.
    pub(crate) start_timeout: Duration,
    /// The names of what a worker runs before it is ready, for messages.
    pub(crate) initializers: Vec<String>,
    /// How long no worker may be any good before the pool is broken.
    pub(crate) give_up_after: Duration,
    /// How long after SIGTERM a worker that is past a limit is killed.
    pub(crate) grace: Duration,
    /// How much memory a worker may have while it runs an input, and how much afterwards.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) max_memory: Option<u64>,
    /// How long a worker that was let go may take to end.
    pub(crate) leave_max: Duration,
    /// It has that time even if others wait for its place, since it has something to do.
    pub(crate) finalizes: bool,
}

impl Rules {
    /// Whether workers are replaced though they are well.
    fn recycles(&self) -> bool {
        self.max_tasks.is_some() || self.max_memory.is_some()
    }

    /// What a worker that has not worked was at, for messages: the initializer behind so many that were through, or any.
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

    /// How many slots there are for workers that are on duty, or will be. Where workers are recycled, each has an
    /// understudy, which is started ahead of need.
    fn pairs(&self) -> usize {
        if self.recycles() {
            2 * self.slots
        } else {
            self.slots
        }
    }

    /// How many processes there may be. One that was let go moves to a slot behind all others, where it may take its
    /// time for its exit handlers.
    pub(crate) fn seats(&self) -> usize {
        if self.recycles() {
            3 * self.slots
        } else {
            self.slots
        }
    }
}

/// The end of a worker. Everything that it replied was heard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) pid: u32,
    pub(crate) exit: Exit,
    /// How many inputs it had begun, if that can be believed.
    pub(crate) begun: Option<u32>,
    /// How many of its initializers were through.
    pub(crate) initialized: usize,
    /// It aborted because an allocation failed.
    pub(crate) starved: Option<Starved>,
}

/// An input that a worker has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) job: JobId,
    pub(crate) task: u32,
    /// Its position; none if it is the only input of its call.
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
    /// The slot that was given something last.
    recent: usize,
    /// How many inputs were given.
    given: usize,
    /// How many slots have inputs open, and how many have more than one.
    busy: usize,
    sharable: usize,
    /// No worker takes more, as far as is known.
    saturated: bool,
    /// Work was taken back so that others do it.
    spreading: bool,
    paces: Paces,
    /// Why the first start failed that did, and the last.
    first_failure: Option<String>,
    last_failure: Option<String>,
    /// When the last tick was, if workers had something to do then.
    ticked_at: Option<Time>,
    /// Until when the whole program was stopped, and how long.
    stops: VecDeque<(Time, Duration)>,
    /// Since when no worker is any good, nor on its first way to be.
    hopeless_since: Option<Time>,
    /// When those who have not gone by themselves are killed.
    kill_at: Option<Time>,
    wants_tick: bool,
    /// The shortest time limit that the last tick knew of, or that it was asked for since.
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
                    on_duty: slot < slots,
                    ..Slot::default()
                })
                .collect(),
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

    /// The next thing to do; `None` when all is done.
    #[inline]
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// Why the first start failed that did.
    pub(crate) fn first_failure(&self) -> Option<&str> {
        self.first_failure.as_deref()
    }

    /// Whether every worker is ready, or was once.
    pub(crate) fn are_all_ready(&self) -> bool {
        self.slots[..self.rules.slots]
            .iter()
            .all(|slot| slot.was_ready)
    }

    /// How many processes there may be, understudies included.
    pub(crate) fn seats(&self) -> usize {
        self.slots.len()
    }

    /// The slots of this worker: that which is on duty, and that of its understudy.
    pub(crate) fn slots_of(&self, worker: usize) -> [Option<usize>; 2] {
        match self.partner(worker) {
            Some(other) if self.slots[other].on_duty => [Some(other), Some(worker)],
            other => [Some(worker), other],
        }
    }

    /// Whether there is no process and no wish for one.
    pub(crate) fn is_over(&self) -> bool {
        self.mode != Mode::Open
            && self.jobs.is_empty()
            && self.slots.iter().all(|slot| slot.phase == Phase::Empty)
    }

    /// Whether this job still takes inputs.
    pub(crate) fn takes(&self, job: JobId) -> bool {
        self.jobs.get(job).is_some_and(|job| job.more)
    }

    /// How many inputs of this task make a portion.
    pub(crate) fn hint(&self, task: u32) -> usize {
        self.paces.portion(task)
    }

    /// Whether there are inputs that nobody has.
    pub(crate) fn has_pending(&self) -> bool {
        self.jobs.has_pending()
    }

    /// Whether this slot has inputs that it has not answered.
    pub(crate) fn is_busy(&self, slot: usize) -> bool {
        self.slots[slot].open > 0
    }

    /// Whether any has.
    pub(crate) fn is_any_busy(&self) -> bool {
        self.busy > 0
    }

    /// Whether the workers are to be looked at from time to time.
    pub(crate) fn wants_patrol(&self) -> bool {
        self.busy > 0 || self.slots.iter().any(|slot| slot.shunned)
    }

    /// How long this slot has to do, if that is known.
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

    /// Whether [`tick`](Scheduler::tick) wants to know how much memory workers have.
    pub(crate) fn limits_memory(&self) -> bool {
        self.rules.memory_limit.is_some()
    }

    /// The next portion to send to this slot, with how many of its inputs were answered already (of
    /// another sending).
    pub(crate) fn next_to_send(&self, slot: usize) -> Option<&Given> {
        let slot = &self.slots[slot];
        slot.is_ready().then(|| slot.given.get(slot.sent))?
    }

    /// The last one was sent, as a whole.
    pub(crate) fn sent(&mut self, slot: usize) {
        self.slots[slot].sent += 1;
    }

    /// Whether there may be a reply at which somebody has reason to look; see
    /// [`wake_at`](Scheduler::wake_at).
    pub(crate) fn is_watched(&self) -> bool {
        self.jobs.has_pending() || self.jobs.any_wanted() || self.busy > 1 && self.sharable > 0
    }

    /// The number of the reply at which somebody has reason to look: a thread waits for it, or the
    /// worker needs more to do.
    pub(crate) fn wake_at(&self, slot: usize) -> Option<u32> {
        let state = &self.slots[slot];
        if state.open == 0 {
            return None;
        }
        let refill = if self.jobs.has_pending() {
            Some(state.open.div_ceil(2))
        } else {
            // When it is idle it may help another.
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

    /// Which input the worker of this slot began as its `begun`th since its start, if it has no answer yet.
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

    /// Whether that is at least so many, wrapping around.
    pub(crate) fn has_answered(&self, slot: usize, number: u32) -> bool {
        (number.wrapping_sub(self.slots[slot].answered) as i32) <= 0
    }

    /// After how many more replies of this slot somebody has what it waits for.
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

    /// Adds inputs to a job that takes them.
    pub(crate) fn push(&mut self, id: JobId, inputs: Few<Portion>, more: bool) {
        let Some(job) = self.jobs.get_mut(id) else {
            return;
        };
        job.more = more;
        if let Some(inputs) = self.give_at_once(id, inputs) {
            self.jobs.push(id, inputs);
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

    /// This of the job matters, though no thread may wait for it.
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

    /// No more jobs; those accepted go on.
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
