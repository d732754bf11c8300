//! What follows from what workers do: they are ready, reply, give back, and talk nonsense.

use std::mem;
use std::time::Duration;

use pool_worker::{Fault, Frames, Tag};

use super::slot::{Given, Phase, Reason};
use super::{Action, Scheduler, Time};
use crate::backend::{JobId, Outcomes, What};

impl Scheduler {
    /// The process of this slot was started.
    pub(crate) fn started(&mut self, slot: usize, now: Time) {
        self.slots[slot].phase = Phase::Starting {
            until: now.checked_add(self.rules.start_timeout),
        };
        // All may be over by now.
        if self.kill_at.is_some() {
            self.kill(slot, Reason::Other);
        }
        self.wants_tick = true;
    }

    /// The worker takes tasks.
    pub(crate) fn ready(&mut self, slot: usize, now: Time) {
        if matches!(self.slots[slot].phase, Phase::Starting { .. }) {
            let state = &mut self.slots[slot];
            state.phase = Phase::Ready;
            state.ready_since = Some(now);
            state.was_ready = true;
            self.saturated = false;
            self.note_idle(slot);
            self.prepare_understudy(slot);
            self.dispatch();
        }
    }

    /// The worker will not do, for this reason, and is to be killed.
    pub(crate) fn refuse(&mut self, slot: usize, why: String) {
        if self.slots[slot].has_process() {
            self.slots[slot].why.get_or_insert(why);
        }
        match self.slots[slot].phase {
            Phase::Ready | Phase::Leaving { .. } => {
                self.recall(slot);
                self.kill(slot, Reason::Other);
            }
            Phase::Starting { .. } => self.kill(slot, Reason::Other),
            Phase::Overdue { .. } | Phase::Dying(_) => {
                self.actions.push_back(Action::Kill { slot });
            }
            Phase::Empty | Phase::Wanted { .. } | Phase::Launching => {}
        }
    }

    /// How much memory the worker has after its last input.
    pub(crate) fn note_memory(&mut self, slot: usize, bytes: u64) {
        if let Some(max) = self.rules.max_memory
            && bytes > max
            && self.slots[slot].is_ready()
            && !self.slots[slot].used_up
        {
            self.slots[slot].used_up = true;
            self.prepare_understudy(slot);
            self.recall(slot);
        }
    }

    /// How long an input of a task took.
    pub(crate) fn observe(&mut self, task: u32, each: Duration) {
        self.paces.observe(task, each);
        self.saturated = false;
    }

    /// The worker has answered the next inputs that it was given.
    pub(crate) fn answered(&mut self, slot: usize, mut replies: Frames) {
        while replies.count() > 0 {
            let state = &mut self.slots[slot];
            let Some(given) = state.given.front_mut() else {
                self.refuse(slot, "it replied to what it was not given".to_owned());
                break;
            };
            let mut count = replies.count().min(given.left());
            match first_to_retry(given, &replies, count) {
                Some(0) => {
                    replies.pop();
                    self.retry_front(slot);
                    continue;
                }
                Some(before) => count = before,
                None => {}
            }
            let state = &mut self.slots[slot];
            let Some(given) = state.given.front_mut() else {
                break;
            };
            let first = given.portion.first + given.answered;
            let (job, task, void) = (given.job, given.task, given.void);
            given.answered += count;
            state.answered = state.answered.wrapping_add(count as u32);
            state.last_answered = Some((job, first + count - 1));
            state.last_task = task;
            let part = if given.left() == 0 {
                let inputs = mem::take(&mut given.portion.inputs);
                state.given.pop_front();
                state.sent = state.sent.saturating_sub(1);
                replies.take_front_into(count, inputs)
            } else {
                replies.take_front(count)
            };
            let (open, worker) = (state.open - count, state.worker);
            self.set_open(slot, open);
            self.book.task(task).attempts += count as u64;
            self.book.worker(worker).done += count as u64;
            let outcomes = Outcomes {
                first,
                what: What::Replies(part),
            };
            if !void {
                self.deliver(job, outcomes);
            }
        }
        self.slots[slot].failures = 0;
        self.saturated = false;
        self.note_idle(slot);
        self.dispatch();
    }

    /// The oldest input of a slot has panicked, and is to be run again.
    fn retry_front(&mut self, slot: usize) {
        let state = &mut self.slots[slot];
        let Some(given) = state.given.front_mut() else {
            return;
        };
        let mut input = given.split_front(1);
        if given.left() == 0 {
            state.given.pop_front();
            state.sent = state.sent.saturating_sub(1);
        }
        state.answered = state.answered.wrapping_add(1);
        state.last_answered = Some((input.job, input.portion.first));
        state.last_task = input.task;
        let (open, worker) = (state.open - 1, state.worker);
        self.set_open(slot, open);
        self.book.task(input.task).attempts += 1;
        self.book.worker(worker).done += 1;
        input.past.attempts += 1;
        if self.is_wanted(&input) {
            self.try_again(input);
        }
    }

    /// The answer to [`Action::Recall`]: how many inputs the worker has begun in all.
    pub(crate) fn recalled(&mut self, slot: usize, begun: u32) {
        // The worker that was meant may have died since, and another may sit in its place.
        if !mem::take(&mut self.slots[slot].recalling) {
            return;
        }
        let state = &mut self.slots[slot];
        let running = state.running(begun);
        let mut back = state.take_back(running);
        state.drained = back.is_empty();
        self.set_open(slot, running);
        let state = &mut self.slots[slot];
        match state.phase {
            // Still the same input, and nothing else behind it.
            Phase::Overdue { begun: then, why } if then == begun && running > 0 => match why {
                Reason::TimeLimit => self.end_gently(slot, why),
                _ => self.kill(slot, why),
            },
            Phase::Overdue { .. } => {
                state.phase = Phase::Ready;
                self.wants_tick = true;
            }
            _ => {}
        }
        // The input that runs belongs to a cancelled job.
        let state = &self.slots[slot];
        if state.is_ready() && state.given.back().is_some_and(|given| given.void) {
            self.kill(slot, Reason::Other);
        }
        back.retain(|given| self.is_wanted(given));
        // The rest of an explicit chunk stays with its worker, if that one lives on.
        let state = &self.slots[slot];
        if state.is_ready()
            && let Some(before) = state.last_given()
            && back.first().is_some_and(|next| next.goes_on_from(before))
        {
            self.keep_chunk(slot, before, &mut back);
        }
        self.put_back(back);
        self.saturated = false;
        self.note_idle(slot);
        self.spreading = true;
        self.dispatch();
        self.spreading = false;
    }

    /// Gives back to the slot what belongs to the chunk of the input `before`.
    fn keep_chunk(&mut self, slot: usize, before: (JobId, usize), back: &mut Vec<Given>) {
        while let Some(next) = back.first_mut() {
            let stays = next.of_same_chunk(before);
            if stays == 0 {
                break;
            }
            if stays == next.left() {
                let next = back.remove(0);
                self.hand_over(slot, next);
            } else {
                let front = next.split_front(stays);
                self.hand_over(slot, front);
                break;
            }
        }
        // What is left here now can't be shared, so asking again would never end.
        self.slots[slot].drained = true;
    }
}

/// Which of the next so many replies is a panic after which the input is to be run again.
fn first_to_retry(given: &Given, replies: &Frames, count: usize) -> Option<usize> {
    let retries = given.options.retries;
    if !retries.has_on_panic() || given.void || !retries.go_on_after(given.past.attempts + 1) {
        return None;
    }
    replies.iter().take(count).position(|(tag, bytes)| {
        tag == Tag::Fault && matches!(Fault::from_bytes(bytes), Some(Fault::Panicked(_)))
    })
}
