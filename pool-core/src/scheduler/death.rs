//! What happens when a worker ends, or fails to start.
//!
//! # Blame
//!
//! When a worker dies, the input that it had begun is lost. An input that no worker lives to begin (because it is larger than
//! their memory, say) is also blamed, but only after several workers have died that were about to begin it.
//!
//! A worker that dies before it has done anything counts as a failed start. The next attempt in its slot is delayed, longer
//! after each failure; the other workers go on. If no worker works for a long time, the pool is broken.

use std::mem;
use std::sync::Arc;

use super::slot::{Given, Phase, Reason, Slot};
use super::{End, Happened, MISSES_MAX, Mode, PAUSE_MAX, PAUSE_MIN, Scheduler, Time};
use crate::backend::{Failure, Outcomes};
use crate::error::last_line;
use pool_worker::{Exit, Starved};

impl Scheduler {
    /// The worker is dead.
    pub(crate) fn died(&mut self, slot: usize, end: End, now: Time) {
        let End {
            pid,
            exit,
            begun,
            initialized,
            starved,
            forbidden,
            output,
        } = end;
        let open = self.slots[slot].open;
        self.set_open(slot, 0);
        let mut state = self.vacate(slot);
        state.open = open;
        if state.ready_since.is_none() {
            let during = self.rules.during(Some(initialized));
            let why = state.why.unwrap_or_else(|| match state.phase {
                Phase::Dying(Reason::Late) => {
                    format!("process {pid} was not ready in time{during}")
                }
                _ => format!("process {pid} {exit} before it was ready{during}"),
            });
            let why = with_last_line(why, output.as_deref());
            if self.kill_at.is_none() {
                let (worker, why) = (state.worker, Some(why.clone()));
                self.book.note(|| Happened::Died {
                    worker,
                    pid,
                    exit,
                    why,
                });
            }
            self.start_failed(slot, why, now);
            return;
        }
        // Nothing is run twice: an input that may have begun counts as begun.
        let running = begun.map_or(open, |begun| state.running(begun));
        let mut back = state.take_back(running);
        let time_limit = state.phase == Phase::Dying(Reason::TimeLimit);
        let memory_limit = match (state.phase, self.rules.memory_limit, starved) {
            (Phase::Dying(Reason::MemoryLimit(used)), Some(limit), _) => {
                Some(Starved { limit, used })
            }
            _ => starved.filter(|starved| starved.limit < u64::MAX),
        };
        let why = state.why.clone().or_else(|| {
            let out_of_memory = starved.map(|_| "it ran out of memory".to_owned());
            out_of_memory.or_else(|| {
                forbidden.map(|call| format!("it called {call}, which no sandbox permits"))
            })
        });
        self.note_death(&state, pid, exit, why.as_deref());
        let mut position = 0;
        for mut given in state.given {
            while given.left() > 0 {
                let mut lost = given.split_front(1);
                position += 1;
                self.book.task(lost.task).attempts += 1;
                if lost.void {
                    continue;
                }
                lost.past.attempts += 1;
                let attempts = lost.past.attempts;
                let retries = lost.options.retries;
                // The last input that began exceeded the limit; those before it were lost with the worker.
                let limit = lost.options.time_limit;
                let limit = limit.filter(|_| time_limit && position == running);
                let too_much = memory_limit.filter(|_| position == running);
                // The other inputs have written nothing since.
                let output = output.clone().map(|output| match position == running {
                    true => output,
                    false => String::new(),
                });
                let counts = too_much.is_none() && (limit.is_none() || retries.has_on_time_limit());
                if counts && retries.go_on_after(attempts) && !self.is_abandoned(&lost) {
                    self.try_again(lost);
                    continue;
                }
                let failure = match (too_much, limit) {
                    (Some(Starved { limit, used }), _) => Failure::MemoryLimit {
                        worker: pid.into(),
                        limit,
                        used,
                        attempts,
                        output,
                    },
                    (None, Some(limit)) => Failure::TimeLimit {
                        worker: pid.into(),
                        limit,
                        attempts,
                        output,
                    },
                    (None, None) => Failure::Lost {
                        worker: pid.into(),
                        exit,
                        attempts,
                        why: why.clone(),
                        output,
                    },
                };
                self.fail(&lost, failure);
            }
        }
        if running == 0
            && let Some(mut missed) = split_first(&mut back)
        {
            missed.past.misses += 1;
            let attempts = missed.past.attempts + missed.past.misses;
            if missed.past.misses < MISSES_MAX || missed.void || self.is_abandoned(&missed) {
                back.insert(0, missed);
            } else {
                let failure = Failure::Lost {
                    worker: pid.into(),
                    exit,
                    attempts,
                    why: why.clone(),
                    output: output.map(|_| String::new()),
                };
                self.fail(&missed, failure);
            }
        }
        back.retain(|given| self.is_wanted(given));
        self.put_back(back);
        if begun == Some(0) {
            let during = self.rules.during(None);
            self.note_failure(
                slot,
                format!("process {pid} {exit} before it had run an input{during}"),
            );
        }
        self.go_on_after(slot, now);
    }

    /// Counts the death of a worker that was ready, unless it was asked to exit.
    fn note_death(&mut self, state: &Slot, pid: u32, exit: Exit, why: Option<&str>) {
        if state.let_go || self.kill_at.is_some() {
            return;
        }
        let why = why.map(str::to_owned).or_else(|| match state.phase {
            Phase::Dying(Reason::TimeLimit) => Some("an input ran past its time limit".to_owned()),
            Phase::Dying(Reason::MemoryLimit(_)) => {
                Some("an input used more memory than its limit".to_owned())
            }
            Phase::Dying(Reason::Other) => Some("the input that it ran was cancelled".to_owned()),
            _ => None,
        });
        let lives = self.book.worker(state.worker);
        lives.died += 1;
        lives.last = Some(match &why {
            Some(why) => format!("process {pid} {exit}: {why}"),
            None => format!("process {pid} {exit}"),
        });
        let worker = state.worker;
        self.book.note(|| Happened::Died {
            worker,
            pid,
            exit,
            why,
        });
    }

    /// Puts a single input back, to be run again.
    pub(super) fn try_again(&mut self, input: Given) {
        let pause = input.options.retries.pause_after(input.past.attempts);
        if pause.is_zero() {
            self.put_back(vec![input]);
        } else {
            self.jobs.rest(input.job, input.into(), pause);
            self.wants_tick = true;
        }
    }

    fn is_abandoned(&self, given: &Given) -> bool {
        self.jobs.get(given.job).is_some_and(|job| job.abandoned)
    }

    /// Gives a single input its outcome: a failure.
    pub(super) fn fail(&mut self, input: &Given, failure: Failure) {
        let outcomes = Outcomes::failed(input.portion.first, 1, Arc::new(failure));
        self.deliver(input.job, outcomes);
    }

    /// The worker could not be started, or died before it was ready.
    pub(crate) fn start_failed(&mut self, slot: usize, why: String, now: Time) {
        let worker = self.vacate(slot).worker;
        if self.kill_at.is_none() {
            let lives = self.book.worker(worker);
            lives.failed_starts += 1;
            lives.last = Some(why.clone());
        }
        self.first_failure.get_or_insert_with(|| why.clone());
        self.note_failure(slot, why);
        self.go_on_after(slot, now);
    }

    fn note_failure(&mut self, slot: usize, why: String) {
        let failures = &mut self.slots[slot].failures;
        *failures = failures.saturating_add(1);
        self.last_failure = Some(why);
    }

    /// Continues after the end of a worker.
    fn go_on_after(&mut self, slot: usize, now: Time) {
        self.give_up_if_hopeless(now);
        let pause = match self.slots[slot].failures {
            0 => None,
            failures => Some(
                PAUSE_MIN
                    .saturating_mul(1 << (failures - 1).min(16))
                    .min(PAUSE_MAX),
            ),
        };
        self.replace_worker(slot, pause.map(|pause| now + pause));
        self.saturated = false;
        self.dispatch();
    }

    /// Ends everything if no worker has worked for the maximum time.
    pub(super) fn give_up_if_hopeless(&mut self, now: Time) {
        if self.slots.iter().any(Slot::is_promising) {
            self.hopeless_since = None;
            return;
        }
        let since = *self.hopeless_since.get_or_insert(now);
        if now.saturating_sub(since) >= self.rules.give_up_after {
            let last = self.last_failure.as_deref().unwrap_or_default();
            let why = format!("workers keep dying before they are ready; the last failure: {last}");
            self.break_down(&why, now);
        }
    }

    /// Ends everything, for this reason.
    pub(crate) fn break_down(&mut self, why: &str, now: Time) {
        self.first_failure.get_or_insert_with(|| why.to_owned());
        if matches!(self.mode, Mode::Open | Mode::Closed) {
            let failure = Failure::Broken(why.to_owned());
            self.end(Mode::Broken(why.to_owned()), failure, now);
        }
    }

    /// Empties a slot, and returns its former state.
    pub(super) fn vacate(&mut self, slot: usize) -> Slot {
        let state = &mut self.slots[slot];
        let empty = Slot {
            worker: state.worker,
            was_ready: state.was_ready,
            on_duty: state.on_duty,
            listed: state.listed,
            failures: state.failures,
            ..Slot::default()
        };
        mem::replace(state, empty)
    }
}

/// Takes out the first input.
pub(super) fn split_first(inputs: &mut Vec<Given>) -> Option<Given> {
    let next = inputs.first_mut()?;
    let first = next.split_front(1);
    if next.left() == 0 {
        inputs.remove(0);
    }
    Some(first)
}

/// Appends the last line of the output.
pub(crate) fn with_last_line(why: String, output: Option<&str>) -> String {
    match output.and_then(last_line) {
        Some(line) => format!("{why}; last line printed: {line:?}"),
        None => why,
    }
}
