//! What happens when workers become ready, reply, give inputs back, or send something invalid.

use std::mem;
use std::time::Duration;

use pool_worker::{Frames, Panic};

use super::death::split_first;
use super::slot::{Given, Phase, Reason};
use super::{Action, Scheduler, Time};
use crate::backend::{Failure, JobId, Outcomes, What, read_panic};
use crate::event::Recycled;

impl Scheduler {
    /// The process of this slot was started.
    pub(crate) fn started(&mut self, slot: usize, now: Time) {
        self.slots[slot].phase = Phase::Starting {
            until: now.checked_add(self.rules.start_timeout),
        };
        // The pool may have ended by now.
        if self.kill_at.is_some() {
            self.kill(slot, Reason::Other);
        }
        self.wants_tick = true;
    }

    /// The worker accepts inputs.
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

    /// The worker is unusable, for this reason, and must be killed.
    pub(crate) fn refuse(&mut self, slot: usize, why: String) {
        if self.slots[slot].has_process() {
            self.slots[slot].why.get_or_insert(why);
        }
        match self.slots[slot].phase {
            // Nothing is taken back until it is dead: an input that several such workers say they have not begun is blamed.
            Phase::Ready | Phase::Leaving { .. } | Phase::Starting { .. } => {
                self.kill(slot, Reason::Other);
            }
            Phase::Overdue { .. } | Phase::Dying(_) => {
                self.actions.push_back(Action::Kill { slot });
            }
            Phase::Empty | Phase::Wanted { .. } | Phase::Launching => {}
        }
    }

    /// The worker has this much memory after its last input.
    pub(crate) fn note_memory(&mut self, slot: usize, bytes: u64) {
        if let Some(max) = self.rules.max_memory
            && bytes > max
        {
            self.use_up(slot, Recycled::MaxMemory);
        }
    }

    /// The worker has used this much processor time for its inputs. One that has used half of what it may makes way for another,
    /// so that the kernel ends no worker in an input that does not use much itself.
    pub(crate) fn note_cpu_time(&mut self, slot: usize, used: Duration) {
        if self.rules.cpu_time.is_some_and(|most| used > most / 2) {
            self.use_up(slot, Recycled::CpuTime);
        }
    }

    /// A fresh worker takes the place of this one, for this reason.
    fn use_up(&mut self, slot: usize, why: Recycled) {
        if self.slots[slot].is_ready() && self.slots[slot].used_up.is_none() {
            self.slots[slot].used_up = Some(why);
            self.prepare_understudy(slot);
            if !self.slots[slot].keeps_next() {
                self.recall(slot);
            }
        }
    }

    /// An input of a task took this long.
    pub(crate) fn observe(&mut self, task: u32, each: Duration) {
        self.paces.observe(task, each);
        self.saturated = false;
    }

    /// The worker has answered the next inputs that it was given.
    pub(crate) fn answered(&mut self, slot: usize, mut replies: Frames) {
        while replies.count() > 0 {
            let state = &mut self.slots[slot];
            let Some(given) = state.given.front_mut() else {
                self.refuse(
                    slot,
                    "it replied to an input that it was not given".to_owned(),
                );
                break;
            };
            let mut count = replies.count().min(given.left());
            match first_panic(given, &replies, count) {
                Some((0, panic)) => {
                    replies.pop();
                    self.front_panicked(slot, panic);
                    continue;
                }
                Some((before, _)) => count = before,
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

    /// The oldest input of a slot has panicked. It is run again if its job allows that.
    fn front_panicked(&mut self, slot: usize, panic: Panic) {
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
        let attempts = input.past.attempts;
        if !input.options.retries.go_on_after_panic(attempts) {
            self.fail(&input, Failure::Panicked { panic, attempts });
        } else if self.is_wanted(&input) {
            self.try_again(input);
        }
    }

    /// The answer to [`Action::Recall`]: how many inputs the worker has begun in total.
    pub(crate) fn recalled(&mut self, slot: usize, begun: u32) {
        // The worker in question may have died since, and another may be in its slot.
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
            // Still the same input, and no other has begun.
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
        // The running input belongs to a cancelled job.
        let state = &self.slots[slot];
        if state.is_ready() && state.given.back().is_some_and(|given| given.void) {
            self.kill(slot, Reason::Other);
        }
        if running == 0
            && self.slots[slot].dawdles_since.is_some()
            && let Some(mut first) = split_first(&mut back)
        {
            first.past.takebacks += 1;
            back.insert(0, first);
        }
        back.retain(|given| self.is_wanted(given));
        // The rest of an explicit chunk stays with its worker, if the worker lives on.
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

    /// Gives inputs back to the slot that belong to the chunk of the input `before`.
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
        // The inputs that are left here can't be shared, so asking again would never end.
        self.slots[slot].drained = true;
    }
}

/// The first of the next `count` replies that is a panic, if it makes a difference: the input must be run again, or its failure
/// must say how many attempts there were.
fn first_panic(given: &Given, replies: &Frames, count: usize) -> Option<(usize, Panic)> {
    let attempts = given.past.attempts + 1;
    if given.void || attempts == 1 && !given.options.retries.go_on_after_panic(attempts) {
        return None;
    }
    let panics = replies.iter().take(count).enumerate();
    let mut panics = panics.filter_map(|(at, (tag, bytes))| Some((at, read_panic(tag, bytes)?)));
    panics.next()
}
