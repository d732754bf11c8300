//! The decisions of the scheduler: who gets what, how much, and who gives it back.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::{Action, Given, Mode, Pending, Phase, Reason, Scheduler, Slot};
use crate::backend::{Failure, JobId, Outcome};

/// How long a portion should keep a worker busy: long against the price of a message, short against
/// the patience of whoever waits for the first result.
const PORTION_TIME: Duration = Duration::from_millis(1);

/// The most inputs in a portion, unless one chunk is larger.
const PORTION_MAX: usize = 4096;

/// Small inputs go together up to this size, in bytes.
const PORTION_BYTES: usize = 48 * 1024;

/// A worker with less work than this ahead is given its next portion before it is through.
const BACKLOG: Duration = Duration::from_millis(1);

impl Scheduler {
    /// Starts a worker for an empty slot, if one is still wanted.
    pub(super) fn start(&mut self, slot: usize) {
        let wanted = match self.mode {
            Mode::Open => true,
            Mode::Closed => !self.jobs.is_empty(),
            Mode::Terminated | Mode::Broken(_) => false,
        };
        if wanted && self.slots[slot].phase == Phase::Empty {
            self.slots[slot].phase = Phase::Starting;
            self.actions.push_back(Action::Start { slot });
        }
    }

    /// Gives work to all who can take some, and lets go who is not needed any more.
    pub(super) fn dispatch(&mut self) {
        self.retire();
        while let Some(id) = self.next_queue() {
            let Some(slot) = self.next_slot(id) else {
                break;
            };
            self.give(slot, id);
        }
        self.balance();
        if self.mode == Mode::Closed && self.jobs.is_empty() {
            for slot in 0..self.slots.len() {
                if self.slots[slot].phase == Phase::Ready && self.slots[slot].given.is_empty() {
                    self.leave(slot);
                }
            }
        }
    }

    /// The oldest job with inputs that nobody has.
    fn next_queue(&self) -> Option<JobId> {
        self.jobs
            .iter()
            .find(|(_, queue)| !queue.pending.is_empty())
            .map(|(id, _)| *id)
    }

    /// Who takes the next portion of this job: an idle worker, or else one that will be idle soon.
    fn next_slot(&self, id: JobId) -> Option<usize> {
        let free = |slot: &Slot| {
            slot.phase == Phase::Ready && !slot.recalling && self.tasks_left(slot) > 0
        };
        if let Some(idle) = self
            .slots
            .iter()
            .position(|slot| free(slot) && slot.given.is_empty())
        {
            return Some(idle);
        }
        let pace = self.pace.get(self.jobs[&id].job.task)?;
        if *pace >= BACKLOG {
            return None;
        }
        self.slots.iter().position(|slot| {
            free(slot) && slot.portions() < 2 && {
                // An input of unknown pace may take for ever.
                let backlog = slot.given.iter().try_fold(Duration::ZERO, |sum, given| {
                    Some(sum + *self.pace.get(given.task.task)?)
                });
                backlog.is_some_and(|backlog| backlog < BACKLOG + PORTION_TIME)
            }
        })
    }

    fn tasks_left(&self, slot: &Slot) -> usize {
        self.max_tasks
            .map_or(usize::MAX, |max| max.saturating_sub(slot.total))
    }

    /// Gives the next portion of a job to a slot.
    fn give(&mut self, slot: usize, id: JobId) {
        let tasks_left = self.tasks_left(&self.slots[slot]);
        let workers = self.slots.len();
        let Some(queue) = self.jobs.get_mut(&id) else {
            return;
        };
        let pace = self.pace.get(queue.job.task);
        let by_time = pace.map_or(1, |pace| by_time(*pace));
        // What is left is shared out in ever smaller portions, so that all end together.
        let shares = if queue.more { workers } else { 2 * workers };
        let share = queue.pending.len().div_ceil(shares);
        let most = by_time
            .min(share)
            .min(4 * queue.last_portion.max(1))
            .min(tasks_left);
        let mut bytes = 0;
        let mut count = queue
            .pending
            .iter()
            .take(most)
            .take_while(|next| {
                bytes += next.input.bytes.len();
                bytes <= PORTION_BYTES
            })
            .count()
            .max(1);
        if let Some(size) = queue.job.options.chunksize {
            count = whole_chunks(&queue.pending, size, count);
        }
        queue.last_portion = count;
        let job = queue.job;
        let portion = queue
            .pending
            .drain(..count)
            .map(|next| Given {
                job: id,
                task: job,
                input: next.input,
                deaths: next.deaths,
                last: false,
                void: false,
            })
            .collect();
        self.hand_over(slot, portion);
    }

    /// Adds inputs to what a slot has, as one portion.
    pub(super) fn hand_over(&mut self, slot: usize, mut portion: Vec<Given>) {
        let Some(last) = portion.last_mut() else {
            return;
        };
        last.last = true;
        let count = portion.len();
        let state = &mut self.slots[slot];
        self.actions.push_back(Action::Run {
            slot,
            generation: state.generation,
            from: state.given.len(),
            count,
        });
        state.total += count;
        state.drained = false;
        state.given.extend(portion);
    }

    /// Takes work from the busy for the idle, once there is nothing else for them.
    fn balance(&mut self) {
        let idle = self
            .slots
            .iter()
            .any(|slot| slot.phase == Phase::Ready && slot.given.is_empty());
        if !idle || self.next_queue().is_some() {
            return;
        }
        let busiest = (0..self.slots.len())
            .filter(|slot| {
                let slot = &self.slots[*slot];
                slot.phase == Phase::Ready
                    && !slot.recalling
                    && !slot.drained
                    && self.can_share(slot)
            })
            .max_by_key(|slot| self.slots[*slot].given.len());
        if let Some(slot) = busiest {
            self.recall(slot);
        }
    }

    /// Whether the slot may have something to give away: more than what runs, and more than the
    /// rest of one explicit chunk.
    fn can_share(&self, slot: &Slot) -> bool {
        match (slot.given.front(), slot.given.back()) {
            (Some(first), Some(last)) => {
                slot.given.len() > 1 && !goes_on((first.job, first.input.index), last)
            }
            _ => false,
        }
    }

    /// Lets workers go that have done as many tasks as they may.
    fn retire(&mut self) {
        if self.max_tasks.is_none() {
            return;
        }
        for slot in 0..self.slots.len() {
            let state = &self.slots[slot];
            if state.phase == Phase::Ready && state.given.is_empty() && self.tasks_left(state) == 0
            {
                self.leave(slot);
            }
        }
    }

    fn leave(&mut self, slot: usize) {
        self.slots[slot].phase = Phase::Leaving;
        self.actions.push_back(Action::Ask { slot });
    }

    pub(super) fn recall(&mut self, slot: usize) {
        if !self.slots[slot].recalling {
            self.slots[slot].recalling = true;
            self.actions.push_back(Action::Recall { slot });
        }
    }

    pub(super) fn kill(&mut self, slot: usize, reason: Reason) {
        self.slots[slot].phase = Phase::Dying(reason);
        self.actions.push_back(Action::Kill { slot });
    }

    /// Whether an input that was taken back should run. One of an abandoned job is dropped here.
    pub(super) fn is_wanted(&mut self, given: &Given) -> bool {
        match self.jobs.get_mut(&given.job) {
            Some(queue) if !queue.abandoned => !given.void,
            Some(queue) if !given.void => {
                queue.open -= 1;
                self.finish_if_done(given.job);
                false
            }
            _ => false,
        }
    }

    /// Puts inputs back into their queues, where they were.
    pub(super) fn put_back(&mut self, back: Vec<Given>) {
        for given in back.into_iter().rev() {
            let Some(queue) = self.jobs.get_mut(&given.job) else {
                continue;
            };
            let place = queue
                .pending
                .partition_point(|next| next.input.index < given.input.index);
            queue.pending.insert(
                place,
                Pending {
                    input: given.input,
                    deaths: given.deaths,
                },
            );
        }
    }

    /// How long an input took: half of what we think comes from the last report.
    pub(super) fn observe(&mut self, task: &'static str, each: Duration) {
        let pace = self.pace.entry(task).or_insert(each);
        *pace = (*pace + each) / 2;
    }

    /// Closes inputs of a job with their outcomes.
    pub(super) fn deliver(&mut self, id: JobId, outcomes: Vec<(usize, Outcome)>) {
        if let Some(queue) = self.jobs.get_mut(&id) {
            queue.open -= outcomes.len();
            if !outcomes.is_empty() {
                self.actions
                    .push_back(Action::Deliver { job: id, outcomes });
            }
            self.finish_if_done(id);
        }
    }

    pub(super) fn finish_if_done(&mut self, id: JobId) {
        if let Some(queue) = self.jobs.get(&id)
            && queue.open == 0
            && !queue.more
        {
            self.jobs.remove(&id);
            self.actions.push_back(Action::Forget { job: id });
        }
    }

    /// Answers everything with `failure`, and wants no worker any more.
    pub(super) fn end(&mut self, mode: Mode, failure: &Failure) {
        self.mode = mode;
        let mut given: HashMap<JobId, Vec<usize>> = HashMap::new();
        for slot in &self.slots {
            for input in slot.given.iter().filter(|input| !input.void) {
                given.entry(input.job).or_default().push(input.input.index);
            }
        }
        for (id, queue) in std::mem::take(&mut self.jobs) {
            let pending = queue.pending.iter().map(|next| next.input.index);
            let outcomes = pending
                .chain(given.remove(&id).unwrap_or_default())
                .map(|index| (index, Err(Box::new(failure.clone()))))
                .collect();
            self.actions
                .push_back(Action::Deliver { job: id, outcomes });
            self.actions.push_back(Action::Forget { job: id });
        }
        for slot in &mut self.slots {
            for given in &mut slot.given {
                given.void = true;
            }
            if slot.phase == Phase::Ready {
                slot.phase = Phase::Dying(Reason::Other);
            }
        }
    }
}

/// How many inputs of this pace make a portion.
pub(super) fn by_time(pace: Duration) -> usize {
    let pace = pace.as_nanos().max(1);
    usize::try_from(PORTION_TIME.as_nanos() / pace)
        .unwrap_or(PORTION_MAX)
        .clamp(1, PORTION_MAX)
}

/// The inputs at the front that make up as many whole chunks as fit into `most`, but at least one.
fn whole_chunks(pending: &VecDeque<Pending>, size: usize, most: usize) -> usize {
    let chunk = |at: usize| pending.get(at).map(|next| next.input.index / size);
    // Back from `most` to where a chunk ends, or forward to the end of the first.
    (1..=most)
        .rev()
        .find(|at| chunk(*at) != chunk(at - 1))
        .unwrap_or_else(|| {
            let first = chunk(0);
            (most..pending.len())
                .find(|at| chunk(*at) != first)
                .unwrap_or(pending.len())
        })
}

/// Whether an input belongs to the same explicit chunk as one before it, and so to the same worker.
pub(super) fn goes_on((job, index): (JobId, usize), given: &Given) -> bool {
    job == given.job
        && given
            .task
            .options
            .chunksize
            .is_some_and(|size| index / size == given.input.index / size)
}
