//! The decisions of the scheduler: which worker gets what, how much, and which gives it back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::pace::inputs_in;
use super::slot::Past;
use super::{
    Action, GRACE, Given, Happened, Mode, Pending, Phase, Portion, Reason, Scheduler, Slot, Time,
};
use crate::backend::{Failure, JobId, Outcomes};
use crate::event::Recycled;
use crate::few::Few;

/// Small inputs are sent together up to this size, in bytes.
const PORTION_BYTES: usize = 48 * 1024;

/// A worker with less work than this left is given its next portion before it has finished.
const BACKLOG: Duration = Duration::from_millis(1);

/// Inputs that take longer than this are not given to a busy worker. If they take less, one is.
const AHEAD_MAX: Duration = Duration::from_millis(50);

/// Less work than this is not worth waking a second worker for.
const WORTH: Duration = Duration::from_micros(30);

/// If workers fill all CPUs, another worker helps only if they wait for something: waking it takes up to this many times as
/// much work to be worthwhile.
const WORTH_FACTOR_MAX: usize = 8;

/// The most inputs that a worker may have and still be given more.
const OPEN_MAX: usize = 8192;

impl Scheduler {
    /// Requests a worker for an empty slot, if one is still needed; at once, or not before some time.
    pub(super) fn want_worker(&mut self, slot: usize, not_before: Option<Time>) {
        if !self.needs_workers() || self.slots[slot].phase != Phase::Empty {
            return;
        }
        self.slots[slot].phase = match not_before {
            Some(not_before) => {
                self.wants_tick = true;
                Phase::Wanted { not_before }
            }
            None => {
                self.actions.push_back(Action::Start { slot });
                Phase::Launching
            }
        };
    }

    /// Whether a new worker could still be useful.
    pub(crate) fn needs_workers(&self) -> bool {
        match self.mode {
            Mode::Open => true,
            Mode::Closed => !self.jobs.is_empty(),
            Mode::Terminated | Mode::Broken(_) => false,
        }
    }

    /// The slot of this one's understudy, or the slot whose understudy this one is.
    pub(super) fn partner(&self, slot: usize) -> Option<usize> {
        let pairs = self.rules.pairs();
        let partner = (slot + self.rules.slots) % pairs;
        (slot < pairs && partner != slot).then_some(partner)
    }

    /// Starts an understudy if the worker on duty has few inputs left.
    pub(super) fn prepare_understudy(&mut self, slot: usize) {
        let Some(partner) = self.partner(slot) else {
            return;
        };
        let state = &self.slots[slot];
        let few_left = |max| self.tasks_left(state) <= 1 + max / 8;
        if state.on_duty && (state.used_up.is_some() || self.rules.max_tasks.is_some_and(few_left))
        {
            self.want_worker(partner, None);
        }
    }

    /// Puts the understudy of a slot on duty.
    fn relieve(&mut self, slot: usize) {
        if let Some(partner) = self.partner(slot) {
            self.slots[slot].on_duty = false;
            self.slots[partner].on_duty = true;
            self.want_worker(partner, None);
            self.note_idle(partner);
            self.saturated = false;
            self.prepare_understudy(partner);
        }
    }

    /// Ensures that there is a worker after the one in this slot, not before some time.
    pub(super) fn replace_worker(&mut self, slot: usize, not_before: Option<Time>) {
        if slot >= self.rules.pairs() {
            self.clear_the_way(slot);
            return;
        }
        match self.partner(slot) {
            Some(partner) if !self.slots[slot].on_duty => self.prepare_understudy(partner),
            Some(partner) if self.slots[partner].is_coming() => self.relieve(slot),
            _ => self.want_worker(slot, not_before),
        }
    }

    /// Gives work to all workers that can take some, and lets those exit that are no longer needed.
    pub(super) fn dispatch(&mut self) {
        if self.rules.recycles() {
            self.retire();
        }
        while !self.saturated
            && let Some(id) = self.jobs.next()
        {
            let Some(queue) = self.jobs.get(id) else {
                return;
            };
            match self.next_slot(queue.job.task, queue.pending_inputs) {
                Some(slot) => self.give(slot, id),
                None => self.saturated = true,
            }
        }
        self.balance(false);
        if self.mode == Mode::Closed && self.jobs.is_empty() {
            self.close_down();
        }
    }

    /// Lets workers exit that have run as many inputs as they may.
    fn retire(&mut self) {
        for slot in 0..self.slots.len() {
            let state = &self.slots[slot];
            let used_up = state.used_up.is_some() || self.tasks_left(state) == 0;
            if state.is_ready() && state.given.is_empty() && used_up {
                let (why, worker) = (state.used_up.unwrap_or(Recycled::MaxTasks), state.worker);
                let at = self.leave(slot);
                self.relieve(slot);
                self.note_recycled(worker, at, why);
            }
        }
    }

    /// Lets all workers exit: there is nothing left to do, and nothing more will come.
    fn close_down(&mut self) {
        for slot in 0..self.slots.len() {
            let state = &self.slots[slot];
            if state.is_ready() && state.given.is_empty() {
                self.leave(slot);
            }
            // Workers that are still wanted are no longer needed.
            if matches!(self.slots[slot].phase, Phase::Wanted { .. }) {
                self.slots[slot].phase = Phase::Empty;
                self.wants_tick = true;
            }
        }
    }

    /// How much work is worth waking another worker for.
    fn worth(&self) -> Duration {
        let factor = (self.busy / self.rules.cpus).clamp(1, WORTH_FACTOR_MAX);
        WORTH * factor as u32
    }

    fn takes_more(&self, slot: &Slot) -> bool {
        slot.is_ready()
            && slot.on_duty
            && !slot.recalling
            && !slot.shunned
            && slot.used_up.is_none()
            && self.tasks_left(slot) > 0
    }

    fn is_idle(&self, slot: &Slot) -> bool {
        self.takes_more(slot) && slot.given.is_empty()
    }

    /// Lists a slot that may be idle now.
    pub(super) fn note_idle(&mut self, slot: usize) {
        let state = &mut self.slots[slot];
        if state.given.is_empty() && state.is_ready() && !state.listed {
            state.listed = true;
            self.idle.push(slot);
        }
    }

    fn next_idle(&mut self) -> Option<usize> {
        while let Some(slot) = self.idle.last().copied() {
            if self.is_idle(&self.slots[slot]) {
                return Some(slot);
            }
            self.idle.pop();
            self.slots[slot].listed = false;
        }
        None
    }

    /// The worker that gets the next of this many inputs of this task: the one that was given inputs last, if there is too
    /// little work to wake another; or an idle one; or one that will be idle soon.
    fn next_slot(&mut self, task: u32, pending: usize) -> Option<usize> {
        let pace = self.paces.of(task);
        if let Some(pace) = pace
            && !self.spreading
        {
            let recent = &self.slots[self.recent];
            let more = u32::try_from(pending).map_or(Duration::MAX, |n| pace.saturating_mul(n));
            if self.takes_more(recent)
                && recent.open < OPEN_MAX
                && recent.backlog().saturating_add(more) < self.worth()
            {
                return Some(self.recent);
            }
        }
        if let Some(idle) = self.next_idle() {
            return Some(idle);
        }
        let pace = pace.filter(|pace| *pace < AHEAD_MAX)?;
        (0..self.slots.len())
            .filter(|slot| {
                let slot = &self.slots[*slot];
                let backlog = slot.backlog();
                self.takes_more(slot)
                    && slot.open < OPEN_MAX
                    && (backlog < BACKLOG || slot.open == 1 && backlog.max(pace) < AHEAD_MAX)
            })
            .min_by_key(|slot| self.slots[*slot].backlog())
    }

    pub(super) fn tasks_left(&self, slot: &Slot) -> usize {
        self.rules
            .max_tasks
            .map_or(usize::MAX, |max| max.saturating_sub(slot.total))
    }

    /// Gives the next portion of a job to a slot.
    fn give(&mut self, slot: usize, id: JobId) {
        let tasks_left = self.tasks_left(&self.slots[slot]);
        let workers = self.rules.slots;
        let worth = self.worth();
        let Some(queue) = self.jobs.get_mut(id) else {
            return;
        };
        let job = queue.job;
        let pace = self.paces.of(job.task);
        // The rest is divided into ever smaller portions, so that all workers finish together; but not smaller than is
        // worthwhile.
        let shares = if queue.more { workers } else { 2 * workers };
        let share = queue.pending_inputs.div_ceil(shares);
        let least = pace.map_or(1, |pace| inputs_in(worth, pace));
        let most = self
            .paces
            .portion(job.task)
            .min(share.max(least))
            .min(4 * queue.last_portion.max(1))
            .min(tasks_left);
        let Some(next) = queue.pending.front() else {
            return;
        };
        let mut count = next.portion.inputs.fitting(most, PORTION_BYTES);
        let first = next.portion.first;
        let mut end_of_chunk = None;
        if let Some(size) = job.options.chunksize {
            // Back to the end of a chunk, or forward to the end of the first.
            let whole = (first + count) / size * size;
            let end = if whole > first {
                whole
            } else {
                (first / size + 1).saturating_mul(size)
            };
            count = (end - first).min(next.portion.inputs.count());
            end_of_chunk = Some(end);
        }
        queue.last_portion = count;
        self.give_first(slot, id, count);
        // A chunk may consist of several pieces, if it contains large inputs.
        while let Some(end) = end_of_chunk
            && let Some(queue) = self.jobs.get(id)
            && let Some(next) = queue.pending.front()
            && next.portion.first < end
        {
            let count = next.portion.inputs.count().min(end - next.portion.first);
            self.give_first(slot, id, count);
        }
    }

    /// Gives the first `count` pending inputs of a job, which are in one piece.
    fn give_first(&mut self, slot: usize, id: JobId, count: usize) {
        let Some(queue) = self.jobs.get_mut(id) else {
            return;
        };
        let Some(next) = queue.pending.front_mut() else {
            return;
        };
        let past = next.past;
        let portion = if count < next.portion.inputs.count() {
            let first = next.portion.first;
            next.portion.first += count;
            let inputs = next.portion.inputs.take_front(count);
            Portion { first, inputs }
        } else {
            let Some(Pending { portion, .. }) = queue.pending.pop_front() else {
                return;
            };
            portion
        };
        queue.pending_inputs -= count;
        let given = Given {
            job: id,
            task: queue.job.task,
            options: queue.job.options,
            portion,
            answered: 0,
            past,
            void: false,
        };
        self.hand_over(slot, given);
    }

    /// Gives a single input to a worker without putting it into the queue, if the queue is empty and a worker can take it.
    /// Otherwise returns the inputs.
    pub(super) fn give_at_once(
        &mut self,
        id: JobId,
        inputs: Few<Portion>,
        submitted: Time,
    ) -> Option<Few<Portion>> {
        let Some(portion) = inputs.single().filter(|only| only.inputs.count() == 1) else {
            return Some(inputs);
        };
        let Some(queue) = self.jobs.get_mut(id) else {
            return Some(inputs);
        };
        let job = queue.job;
        if self.jobs.has_pending() || job.options.chunksize.is_some_and(|size| size > 1) {
            return Some(inputs);
        }
        let size = portion.inputs.size();
        let Some(slot) = self
            .next_slot(job.task, 1)
            .filter(|_| size <= PORTION_BYTES)
        else {
            return Some(inputs);
        };
        self.jobs.open_inputs(id, 1);
        for portion in inputs {
            let given = Given {
                job: id,
                task: job.task,
                options: job.options,
                portion,
                answered: 0,
                past: Past::of(submitted),
                void: false,
            };
            self.hand_over(slot, given);
        }
        None
    }

    /// Notes how many inputs a slot has open.
    pub(super) fn set_open(&mut self, slot: usize, open: usize) {
        let before = std::mem::replace(&mut self.slots[slot].open, open);
        self.busy = self.busy + usize::from(open > 0) - usize::from(before > 0);
        self.sharable = self.sharable + usize::from(open > 1) - usize::from(before > 1);
    }

    /// Adds inputs to those that a slot has.
    pub(super) fn hand_over(&mut self, slot: usize, given: Given) {
        let pace = self.paces.of(given.task);
        if let Some(limit) = given.options.time_limit
            && self.shortest_limit.is_none_or(|known| limit < known)
        {
            self.shortest_limit = Some(limit);
            self.wants_tick = true;
        }
        let state = &mut self.slots[slot];
        let count = given.left();
        state.pace = if state.open == 0 {
            pace
        } else {
            state.pace.zip(pace).map(|(one, other)| one.max(other))
        };
        state.total += count;
        state.drained = false;
        state.given.push_back(given);
        let open = state.open + count;
        self.set_open(slot, open);
        if self.rules.max_tasks.is_some() {
            self.prepare_understudy(slot);
        }
        self.recent = slot;
        self.given = self.given.wrapping_add(count);
        self.actions.push_back(Action::Send { slot });
    }

    /// Takes inputs from busy workers for idle ones, if nothing else is left for them. Unless it is `urgent`, only if that
    /// seems worthwhile.
    pub(crate) fn balance(&mut self, urgent: bool) -> bool {
        if self.sharable == 0 || self.jobs.has_pending() || self.next_idle().is_none() {
            return false;
        }
        let busiest = (0..self.slots.len())
            .filter(|slot| self.can_share(&self.slots[*slot]))
            .max_by_key(|slot| self.slots[*slot].open);
        let Some(slot) = busiest else {
            return false;
        };
        // Inputs that are given out again come in portions that are worthwhile, so this ends.
        if urgent || self.slots[slot].backlog() >= 2 * self.worth() {
            self.recall(slot);
            return false;
        }
        true
    }

    /// Takes back inputs that busy workers have not begun, if this job has priority over theirs and would otherwise have to
    /// wait long.
    pub(super) fn overtake(&mut self, id: JobId) {
        let Some(queue) = self.jobs.get(id).filter(|queue| !queue.pending.is_empty()) else {
            return;
        };
        let priority = queue.job.options.priority;
        for slot in 0..self.slots.len() {
            let state = &self.slots[slot];
            let last = state.given.back();
            let is_lower = last.is_some_and(|given| given.options.priority < priority);
            if is_lower && state.backlog() >= BACKLOG && self.can_share(state) {
                self.recall(slot);
            }
        }
    }

    /// Whether the slot may have inputs to give away: more than the one that runs, and more than the rest of one explicit
    /// chunk.
    fn can_share(&self, slot: &Slot) -> bool {
        let (Some(first), Some(last)) = (slot.given.front(), slot.last_given()) else {
            return false;
        };
        let running = (first.job, first.portion.first + first.answered);
        slot.is_ready()
            && !slot.recalling
            && !slot.drained
            && !slot.keeps_next()
            && slot.open > 1
            && !first
                .options
                .chunksize
                .is_some_and(|size| running.0 == last.0 && running.1 / size == last.1 / size)
    }

    /// Asks a worker to exit. Returns the slot where it is afterwards.
    fn leave(&mut self, slot: usize) -> usize {
        if self.slots[slot].shunned {
            self.kill(slot, Reason::Other);
            return slot;
        }
        self.slots[slot].phase = Phase::Leaving { until: None };
        self.slots[slot].let_go = true;
        let slot = self.make_way(slot);
        self.actions.push_back(Action::Ask { slot });
        self.wants_tick = true;
        slot
    }

    /// A healthy worker was asked to exit.
    fn note_recycled(&mut self, worker: usize, slot: usize, why: Recycled) {
        let lives = self.book.worker(worker);
        let (count, text) = match why {
            Recycled::MaxTasks => (
                &mut lives.max_tasks,
                "it had run as many inputs as `max_tasks_per_child` allows",
            ),
            Recycled::MaxMemory => (
                &mut lives.max_memory,
                "it had more memory than `max_memory_per_child` allows",
            ),
            Recycled::CpuTime => (
                &mut lives.cpu_time,
                "it had used half of the processor time that its sandbox allows",
            ),
        };
        *count += 1;
        lives.last = Some(text.to_owned());
        self.book.note(|| Happened::Recycled { worker, slot, why });
    }

    /// Moves a worker that exits to where it blocks no other, if there is such a slot. Returns its slot.
    fn make_way(&mut self, slot: usize) -> usize {
        let mut exits = self.rules.pairs()..self.slots.len();
        if let Some(exit) = exits.find(|exit| self.slots[*exit].phase == Phase::Empty) {
            self.move_out(slot, exit);
            exit
        } else {
            self.hurry();
            slot
        }
    }

    /// Too many workers are exiting: kills the one that has had the most time, unless workers run finalizers. Then the slot
    /// stays occupied until it has exited.
    fn hurry(&mut self) {
        if self.rules.finalizes {
            return;
        }
        let exits = self.rules.pairs()..self.slots.len();
        let leaving = exits.filter_map(|exit| match self.slots[exit].phase {
            Phase::Leaving { until } => Some((until.unwrap_or(Time::MAX), exit)),
            _ => None,
        });
        if let Some((_, oldest)) = leaving.min() {
            self.kill(oldest, Reason::Other);
        }
    }

    fn move_out(&mut self, slot: usize, exit: usize) {
        let leaving = self.vacate(slot);
        self.slots[exit] = Slot {
            on_duty: false,
            listed: false,
            ..leaving
        };
        self.actions.push_back(Action::Move {
            from: slot,
            to: exit,
        });
    }

    /// A slot for workers that exit is free: moves one there that blocks another.
    pub(super) fn clear_the_way(&mut self, exit: usize) {
        let mut pairs = 0..self.rules.pairs();
        let leaves = |slot: &usize| matches!(self.slots[*slot].phase, Phase::Leaving { .. });
        if let Some(slot) = pairs.find(leaves) {
            let more = pairs.any(|slot| leaves(&slot));
            self.move_out(slot, exit);
            self.replace_worker(slot, None);
            if more {
                self.hurry();
            }
        }
    }

    pub(super) fn recall(&mut self, slot: usize) {
        if !self.slots[slot].recalling {
            self.slots[slot].recalling = true;
            self.actions.push_back(Action::Recall { slot });
        }
    }

    /// Tells the worker to end by itself, and kills it if it does not do so in time.
    pub(super) fn end_gently(&mut self, slot: usize, reason: Reason) {
        if self.rules.grace.is_zero() {
            self.kill(slot, reason);
            return;
        }
        self.slots[slot].phase = Phase::Dying(reason);
        self.slots[slot].kill_at = Some(None);
        self.actions.push_back(Action::Terminate { slot });
        self.wants_tick = true;
    }

    pub(super) fn kill(&mut self, slot: usize, reason: Reason) {
        self.slots[slot].phase = Phase::Dying(reason);
        self.actions.push_back(Action::Kill { slot });
    }

    /// Whether inputs that were taken back should run. Those of an abandoned job are dropped here.
    pub(super) fn is_wanted(&mut self, given: &Given) -> bool {
        match self.jobs.get(given.job) {
            Some(job) if !job.abandoned => !given.void,
            Some(_) if !given.void => {
                self.jobs.close_inputs(given.job, given.left());
                self.book.task(given.task).cancelled += given.left() as u64;
                self.finish_if_done(given.job);
                false
            }
            _ => false,
        }
    }

    /// Puts inputs back into their queues, where they were.
    pub(super) fn put_back(&mut self, back: Vec<Given>) {
        for given in back.into_iter().rev() {
            self.jobs.put_back(given.job, given.into());
        }
    }

    /// Closes inputs of a job with their outcomes.
    pub(super) fn deliver(&mut self, job: JobId, outcomes: Outcomes) {
        let count = outcomes.count();
        self.jobs.close_inputs(job, count);
        let Some(queue) = self.jobs.get(job) else {
            return;
        };
        self.book.count(queue.job.task, &outcomes);
        let last = queue.is_done();
        if last {
            self.jobs.remove(job);
        }
        self.actions.push_back(Action::Deliver {
            job,
            outcomes,
            last,
        });
    }

    pub(super) fn finish_if_done(&mut self, job: JobId) {
        if self.jobs.get(job).is_some_and(|queue| queue.is_done()) {
            self.jobs.remove(job);
            self.actions.push_back(Action::Forget { job });
        }
    }

    /// Answers everything with `failure`, and ends all workers: idle ones are asked to exit, the others get SIGTERM.
    pub(super) fn end(&mut self, mode: Mode, failure: Failure, now: Time) {
        self.mode = mode;
        let failure = Arc::new(failure);
        let mut open: HashMap<JobId, Vec<(usize, usize)>> = HashMap::new();
        for slot in &mut self.slots {
            for given in slot.given.iter_mut().filter(|given| !given.void) {
                given.void = true;
                let left = (given.portion.first + given.answered, given.left());
                open.entry(given.job).or_default().push(left);
            }
        }
        for (job, task, pending) in self.jobs.remove_all() {
            let pending = pending
                .iter()
                .map(|next| (next.portion.first, next.portion.inputs.count()));
            for (first, count) in pending.chain(open.remove(&job).unwrap_or_default()) {
                let outcomes = Outcomes::failed(first, count, Arc::clone(&failure));
                self.book.count(task, &outcomes);
                self.actions.push_back(Action::Deliver {
                    job,
                    outcomes,
                    last: false,
                });
            }
            self.actions.push_back(Action::Forget { job });
        }
        self.kill_at = Some(now + GRACE);
        self.wants_tick = true;
        for slot in 0..self.slots.len() {
            let state = &mut self.slots[slot];
            match state.phase {
                Phase::Empty | Phase::Launching => continue,
                Phase::Wanted { .. } => state.phase = Phase::Empty,
                Phase::Ready if state.given.is_empty() => {
                    state.phase = Phase::Dying(Reason::Other);
                    self.actions.push_back(Action::Ask { slot });
                }
                Phase::Leaving { .. } => {}
                _ => {
                    state.phase = Phase::Dying(Reason::Other);
                    self.actions.push_back(Action::Terminate { slot });
                }
            }
        }
    }
}
