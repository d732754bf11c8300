//! What runs where next. Pure: no thread, no clock, no process; events go in, actions come out.
//!
//! # Jobs
//!
//! A job is a queue of inputs. Older jobs go first. What is sent to a worker at once is a *portion*: as
//! many inputs as take about a millisecond, and fewer towards the end of the job. A *chunk* is what a
//! caller with an explicit chunk size wants kept together; then a portion is made of whole chunks. Who
//! gets which portion is decided in [`decide`]; here is what follows from each event.
//!
//! # Slots
//!
//! Each worker process sits in a slot. `given` holds what it was given and has not answered, in
//! order; a worker answers in that order too. `answered` counts what it has answered since it
//! started, so together with the number of inputs that it has *begun*, which only the worker's
//! ledger knows, the scheduler knows exactly which input runs now and which have not begun.
//!
//! Work that has not begun can be taken back: the scheduler asks for it with [`Action::Recall`],
//! and the answer comes back through [`Scheduler::recalled`]. That serves a worker that would
//! otherwise idle, a cancelled job, and a worker that must be killed.
//!
//! # Invariants
//!
//! - Each input gets exactly one outcome, unless its job was abandoned.
//! - An input is in one place: pending in its job, or given to one slot.
//! - Only a slot that is `Ready` is given work.
//! - What was begun is never given again, unless the job allows retries and its worker died.

mod decide;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use pool_worker::{Exit, Fault};

use self::decide::{by_time, goes_on};
use crate::backend::{Failure, Input, Job, JobId, Outcome};

/// Failed starts are counted over this time.
const INTENSITY_PERIOD: Duration = Duration::from_secs(30);

/// What the caller of the scheduler must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a worker for this slot.
    Start { slot: usize },
    /// Send `count` of the inputs given to this slot, from position `from` of [`Scheduler::given`].
    Run {
        slot: usize,
        generation: u32,
        from: usize,
        count: usize,
    },
    /// Take back what has not begun, and call [`Scheduler::recalled`].
    Recall { slot: usize },
    /// Ask the worker to exit when it is through.
    Ask { slot: usize },
    /// Kill the worker.
    Kill { slot: usize },
    /// Hand outcomes to whoever waits for them.
    Deliver {
        job: JobId,
        outcomes: Vec<(usize, Outcome)>,
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

/// An input in the hands of a worker.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) job: JobId,
    pub(crate) task: Job,
    pub(crate) input: Input,
    /// How many workers have died under it.
    deaths: u32,
    /// The last of a portion.
    last: bool,
    /// Its outcome is out already: its job was cancelled.
    void: bool,
}

#[derive(Debug)]
struct Pending {
    input: Input,
    deaths: u32,
}

#[derive(Debug)]
struct Queue {
    job: Job,
    pending: VecDeque<Pending>,
    /// Inputs without an outcome, pending or given.
    open: usize,
    /// More inputs may come.
    more: bool,
    /// Nobody wants its results any more: what was taken back is dropped.
    abandoned: bool,
    /// The size of the last portion.
    last_portion: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No process; one is wanted or not.
    Empty,
    /// Started, and not ready yet.
    Starting,
    Ready,
    /// Runs an input that is past its time limit, the last of `begun`; what it has not begun is
    /// being taken back.
    Overdue {
        begun: u32,
    },
    /// Asked to exit.
    Leaving,
    /// To be killed, or killed already.
    Dying(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    TimeLimit,
    /// The job of what it runs was cancelled, or it talked nonsense, or all is over.
    Other,
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    given: VecDeque<Given>,
    generation: u32,
    answered: u32,
    last_answered: Option<(JobId, usize)>,
    /// How many inputs this process was given in all.
    total: usize,
    /// A recall is on its way; nothing is given until it is answered.
    recalling: bool,
    /// A recall has found nothing to take back since work was last given.
    drained: bool,
}

impl Slot {
    fn new() -> Slot {
        Slot {
            phase: Phase::Empty,
            given: VecDeque::new(),
            generation: 0,
            answered: 0,
            last_answered: None,
            total: 0,
            recalling: false,
            drained: false,
        }
    }

    fn portions(&self) -> usize {
        self.given.iter().filter(|given| given.last).count()
    }

    /// How many of `given` have begun, by the ledger's count.
    fn running(&self, begun: u32) -> usize {
        (begun.wrapping_sub(self.answered) as usize).min(self.given.len())
    }
}

#[derive(Debug)]
pub(crate) struct Scheduler {
    mode: Mode,
    slots: Vec<Slot>,
    jobs: BTreeMap<JobId, Queue>,
    next_job: u64,
    max_tasks: Option<usize>,
    /// How long one input of a task takes, lately.
    pace: HashMap<&'static str, Duration>,
    failed_starts: VecDeque<Duration>,
    actions: VecDeque<Action>,
}

impl Scheduler {
    /// `max_tasks`: how many inputs a worker is given before another takes its place.
    pub(crate) fn new(slots: usize, max_tasks: Option<usize>) -> Scheduler {
        let mut scheduler = Scheduler {
            mode: Mode::Open,
            slots: (0..slots).map(|_| Slot::new()).collect(),
            jobs: BTreeMap::new(),
            next_job: 0,
            max_tasks,
            pace: HashMap::new(),
            failed_starts: VecDeque::new(),
            actions: VecDeque::new(),
        };
        for slot in 0..slots {
            scheduler.start(slot);
        }
        scheduler
    }

    /// The next thing to do; `None` when all is done.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }

    /// What this slot was given and has not answered.
    pub(crate) fn given(&self, slot: usize) -> &VecDeque<Given> {
        &self.slots[slot].given
    }

    /// The position in [`given`](Scheduler::given) of the input that runs, by the ledger's count of
    /// those begun; `None` if none does, or if the slot is to be killed anyway.
    pub(crate) fn running(&self, slot: usize, begun: u32) -> Option<usize> {
        let slot = &self.slots[slot];
        match slot.phase {
            Phase::Ready => slot.running(begun).checked_sub(1),
            _ => None,
        }
    }

    pub(crate) fn is_ready(&self, slot: usize) -> bool {
        self.slots[slot].phase == Phase::Ready
    }

    /// Whether there is no process and no wish for one.
    pub(crate) fn is_over(&self) -> bool {
        self.mode != Mode::Open
            && self.jobs.is_empty()
            && self.slots.iter().all(|slot| slot.phase == Phase::Empty)
    }

    /// Whether this job still takes inputs.
    pub(crate) fn takes(&self, job: JobId) -> bool {
        self.jobs.get(&job).is_some_and(|queue| queue.more)
    }

    /// How many inputs of this task make a portion.
    pub(crate) fn hint(&self, task: &'static str) -> usize {
        self.pace.get(task).map_or(1, |pace| by_time(*pace))
    }

    // ---- what users do ------------------------------------------------------------------------

    /// Accepts a job. The caller has checked that the mode is `Open`.
    pub(crate) fn submit(&mut self, job: Job, inputs: Vec<Input>, more: bool) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.jobs.insert(
            id,
            Queue {
                job,
                pending: VecDeque::new(),
                open: 0,
                more: true,
                abandoned: false,
                last_portion: 0,
            },
        );
        self.push(id, inputs, more);
        id
    }

    /// Adds inputs to a job that takes them.
    pub(crate) fn push(&mut self, id: JobId, inputs: Vec<Input>, more: bool) {
        let Some(queue) = self.jobs.get_mut(&id) else {
            return;
        };
        queue.open += inputs.len();
        queue.more = more;
        queue
            .pending
            .extend(inputs.into_iter().map(|input| Pending { input, deaths: 0 }));
        self.finish_if_done(id);
        self.dispatch();
    }

    /// Ends a job; see `Backend::cancel`.
    pub(crate) fn cancel(&mut self, id: JobId, running: bool) {
        let Some(queue) = self.jobs.get_mut(&id) else {
            return;
        };
        queue.more = false;
        queue.abandoned = true;
        let pending = std::mem::take(&mut queue.pending);
        let mut open = Vec::new();
        if running {
            open.extend(pending.into_iter().map(|pending| pending.input.index));
        } else {
            queue.open -= pending.len();
        }
        for slot in 0..self.slots.len() {
            let mut concerned = false;
            for given in &mut self.slots[slot].given {
                if given.job == id && !given.void {
                    concerned = true;
                    if running {
                        given.void = true;
                        open.push(given.input.index);
                    }
                }
            }
            if concerned && self.slots[slot].phase == Phase::Ready {
                self.recall(slot);
            }
        }
        let cancelled = |index| (index, Err(Box::new(Failure::Cancelled)));
        self.deliver(id, open.into_iter().map(cancelled).collect());
        self.dispatch();
    }

    /// No more jobs; those accepted go on.
    pub(crate) fn close(&mut self) {
        if self.mode == Mode::Open {
            self.mode = Mode::Closed;
            self.dispatch();
        }
    }

    /// Ends everything. The caller sees to it that the workers die.
    pub(crate) fn terminate(&mut self) {
        if matches!(self.mode, Mode::Open | Mode::Closed) {
            self.end(Mode::Terminated, &Failure::Terminated);
        }
    }

    // ---- what workers do ----------------------------------------------------------------------

    /// The worker's initializer is through.
    pub(crate) fn ready(&mut self, slot: usize) {
        if self.slots[slot].phase == Phase::Starting {
            self.slots[slot].phase = Phase::Ready;
            self.dispatch();
        }
    }

    /// The worker has answered the next inputs that it was given.
    pub(crate) fn answered(
        &mut self,
        slot: usize,
        outcomes: Vec<pool_worker::Outcome>,
        busy: Duration,
    ) {
        let count = outcomes.len();
        let mut task = None;
        let mut told: Vec<(JobId, Vec<(usize, Outcome)>)> = Vec::new();
        for outcome in outcomes {
            let state = &mut self.slots[slot];
            // More answers than questions: a worker that lies harms nobody else.
            let Some(given) = state.given.pop_front() else {
                break;
            };
            state.answered = state.answered.wrapping_add(1);
            state.last_answered = Some((given.job, given.input.index));
            task = Some(given.task.task);
            if given.void {
                continue;
            }
            let outcome = outcome.map_err(|fault| {
                Box::new(match *fault {
                    Fault::Panicked(panic) => Failure::Panicked(panic),
                    Fault::Decode(why) | Fault::Unknown(why) => Failure::DecodeArguments(why),
                    Fault::Encode(why) => Failure::EncodeResult(why),
                })
            });
            let outcome = (given.input.index, outcome);
            match told.last_mut() {
                Some((job, outcomes)) if *job == given.job => outcomes.push(outcome),
                _ => told.push((given.job, vec![outcome])),
            }
        }
        for (job, outcomes) in told {
            self.deliver(job, outcomes);
        }
        if let (Some(task), Ok(count @ 1..)) = (task, u32::try_from(count))
            && !busy.is_zero()
        {
            self.observe(task, busy / count);
        }
        self.dispatch();
    }

    /// The answer to [`Action::Recall`]: the new generation, and how many inputs the worker has
    /// begun in all.
    pub(crate) fn recalled(&mut self, slot: usize, generation: u32, begun: u32) {
        let state = &mut self.slots[slot];
        // The worker that was meant may have died since, and another may sit in its place.
        if !std::mem::take(&mut state.recalling) {
            return;
        }
        state.generation = generation;
        let running = state.running(begun);
        let mut back: Vec<Given> = state.given.drain(running..).collect();
        state.total -= back.len();
        state.drained = back.is_empty();
        if let Some(given) = state.given.back_mut() {
            given.last = true;
        }
        match state.phase {
            // Still the same input, and nothing else behind it.
            Phase::Overdue { begun: then } if then == begun && running > 0 => {
                self.kill(slot, Reason::TimeLimit);
            }
            Phase::Overdue { .. } => state.phase = Phase::Ready,
            _ => {}
        }
        let state = &self.slots[slot];
        // The input that runs belongs to a cancelled job.
        if state.phase == Phase::Ready && state.given.back().is_some_and(|given| given.void) {
            self.kill(slot, Reason::Other);
        }
        back.retain(|given| self.is_wanted(given));
        // The rest of an explicit chunk stays with its worker, if that one lives on.
        let state = &self.slots[slot];
        let before = state
            .given
            .back()
            .map(|running| (running.job, running.input.index))
            .or(state.last_answered);
        if state.phase == Phase::Ready
            && let Some(before) = before
            && back.first().is_some_and(|next| goes_on(before, next))
        {
            let stays = back
                .iter()
                .take_while(|given| goes_on(before, given))
                .count();
            let rest = back.split_off(stays);
            self.hand_over(slot, back);
            // What is left here now can't be shared, so asking again would never end.
            self.slots[slot].drained = true;
            back = rest;
        }
        self.put_back(back);
        self.dispatch();
    }

    /// The last of `begun` inputs, by the ledger's count, is past its time limit.
    pub(crate) fn overdue(&mut self, slot: usize, begun: u32) {
        if self.slots[slot].phase == Phase::Ready {
            self.slots[slot].phase = Phase::Overdue { begun };
            self.recall(slot);
        }
    }

    /// The worker talked nonsense.
    pub(crate) fn distrust(&mut self, slot: usize) {
        match self.slots[slot].phase {
            Phase::Ready | Phase::Leaving => {
                self.recall(slot);
                self.kill(slot, Reason::Other);
            }
            Phase::Starting => self.kill(slot, Reason::Other),
            Phase::Overdue { .. } | Phase::Dying(_) => {
                self.actions.push_back(Action::Kill { slot });
            }
            Phase::Empty => {}
        }
    }

    /// The worker is dead, and everything that it said was heard. `begun` is the ledger's last
    /// count.
    pub(crate) fn died(&mut self, slot: usize, begun: u32, pid: u32, exit: Exit) {
        let state = std::mem::replace(&mut self.slots[slot], Slot::new());
        let running = state.running(begun);
        let mut given: Vec<Given> = state.given.into();
        let back = given.split_off(running);
        let time_limit = state.phase == Phase::Dying(Reason::TimeLimit);
        let mut retry = Vec::new();
        for (position, mut lost) in given.into_iter().enumerate() {
            if lost.void {
                continue;
            }
            let abandoned = self
                .jobs
                .get(&lost.job)
                .is_some_and(|queue| queue.abandoned);
            lost.deaths += 1;
            // The limit was passed by the last one begun; what lies before it went down with it.
            let limit = lost.task.options.time_limit.filter(|_| time_limit);
            let failure = match limit {
                Some(limit) if position + 1 == running => Failure::TimeLimit(limit),
                _ if !abandoned && lost.deaths <= lost.task.options.retries => {
                    retry.push(lost);
                    continue;
                }
                _ => Failure::Lost {
                    pid,
                    exit,
                    attempts: lost.deaths,
                },
            };
            self.deliver(lost.job, vec![(lost.input.index, Err(Box::new(failure)))]);
        }
        retry.extend(back.into_iter().filter(|given| self.is_wanted(given)));
        self.put_back(retry);
        self.start(slot);
        self.dispatch();
    }

    /// The worker could not be started, or was dead before it was ready. `now` is any clock that
    /// does not go back.
    pub(crate) fn start_failed(&mut self, slot: usize, why: &str, now: Duration) {
        self.slots[slot] = Slot::new();
        self.failed_starts.push_back(now);
        while self
            .failed_starts
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > INTENSITY_PERIOD)
        {
            self.failed_starts.pop_front();
        }
        if self.failed_starts.len() > 10.max(5 * self.slots.len())
            && matches!(self.mode, Mode::Open | Mode::Closed)
        {
            let failure = Failure::Broken(why.to_owned());
            self.end(Mode::Broken(why.to_owned()), &failure);
        }
        self.start(slot);
        self.dispatch();
    }

    /// All is over, and the worker that was wanted for this slot was never started.
    pub(crate) fn not_started(&mut self, slot: usize) {
        self.slots[slot] = Slot::new();
    }
}

#[cfg(test)]
mod tests;
