//! What follows from the end of a worker, and from a start that failed.

use std::mem;
use std::sync::Arc;

use super::slot::{Phase, Reason, Slot};
use super::{EARLY, End, INTENSITY_PERIOD, Mode, START_PAUSE, Scheduler, Time};
use crate::backend::{Failure, Outcomes};

impl Scheduler {
    /// The worker is dead.
    pub(crate) fn died(&mut self, slot: usize, end: End, now: Time) {
        let End { pid, exit, begun } = end;
        let open = self.slots[slot].open;
        self.set_open(slot, 0);
        let mut state = self.vacate(slot);
        state.open = open;
        let Some(ready_since) = state.ready_since else {
            let during = &self.rules.during;
            let why = state.why.unwrap_or_else(|| match state.phase {
                Phase::Dying(Reason::Late) => {
                    format!("process {pid} was not ready in time{during}")
                }
                _ => format!("process {pid} {exit} before it was ready{during}"),
            });
            self.start_failed(slot, why, now);
            return;
        };
        let running = state.running(begun);
        let back = state.take_back(running);
        let time_limit = state.phase == Phase::Dying(Reason::TimeLimit);
        let mut retry = Vec::new();
        let mut position = 0;
        for mut given in state.given {
            while given.left() > 0 {
                let mut lost = given.split_front(1);
                position += 1;
                if lost.void {
                    continue;
                }
                let abandoned = self.jobs.get(lost.job).is_some_and(|job| job.abandoned);
                lost.deaths += 1;
                // The limit was passed by the last one begun; what lies before it went down with it.
                let limit = lost.options.time_limit.filter(|_| time_limit);
                let failure = match limit {
                    Some(limit) if position == running => Failure::TimeLimit(limit),
                    _ if !abandoned && lost.deaths <= lost.options.retries => {
                        retry.push(lost);
                        continue;
                    }
                    _ => Failure::Lost {
                        pid,
                        exit,
                        attempts: lost.deaths,
                    },
                };
                let outcomes = Outcomes::failed(lost.portion.first, 1, Arc::new(failure));
                self.deliver(lost.job, outcomes);
            }
        }
        retry.extend(back.into_iter().filter(|given| self.is_wanted(given)));
        self.put_back(retry);
        let early = begun == 0 && now.saturating_sub(ready_since) < EARLY;
        self.replace_worker(slot, early.then(|| now + START_PAUSE));
        self.saturated = false;
        self.dispatch();
    }

    /// The worker could not be started, or was dead before it was ready.
    pub(crate) fn start_failed(&mut self, slot: usize, why: String, now: Time) {
        self.vacate(slot);
        self.failed_starts.push_back(now);
        while self
            .failed_starts
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > INTENSITY_PERIOD)
        {
            self.failed_starts.pop_front();
        }
        self.first_failure.get_or_insert_with(|| why.clone());
        if self.failed_starts.len() > 10.max(5 * self.slots.len())
            && matches!(self.mode, Mode::Open | Mode::Closed)
        {
            self.end(Mode::Broken(why.clone()), Failure::Broken(why), now);
        }
        self.replace_worker(slot, Some(now + START_PAUSE));
        self.dispatch();
    }

    /// Makes a slot empty, and gives what it was.
    fn vacate(&mut self, slot: usize) -> Slot {
        let state = &mut self.slots[slot];
        let empty = Slot {
            was_ready: state.was_ready,
            on_duty: state.on_duty,
            listed: state.listed,
            ..Slot::default()
        };
        mem::replace(state, empty)
    }
}
