//! Slots: each holds one worker process, from the decision to start it to its end.

use std::collections::VecDeque;
use std::time::Duration;

use super::{BEGIN_AGAIN_MAX, BEGIN_MAX, TAKEBACKS_MAX, Time};
use crate::backend::{JobId, Options, Portion};
use crate::event::Recycled;

/// Inputs that a worker was given.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) job: JobId,
    pub(crate) task: u32,
    pub(crate) options: Options,
    pub(crate) portion: Portion,
    /// How many of them have been answered.
    pub(crate) answered: usize,
    /// Their earlier attempts.
    pub(super) past: Past,
    /// Their outcome has already been delivered: their job was cancelled.
    pub(super) void: bool,
}

impl Given {
    /// How many inputs have not been answered.
    pub(super) fn left(&self) -> usize {
        self.portion.inputs.count() - self.answered
    }

    /// When they were accepted; zero if that is not known, or if they have been delayed by anything but the queue.
    pub(crate) fn submitted(&self) -> Time {
        match self.past {
            Past {
                attempts: 0,
                misses: 0,
                takebacks: 0,
                submitted_ns,
            } => Time::from_nanos(submitted_ns),
            _ => Time::ZERO,
        }
    }

    /// Cuts off the first `count` that have not been answered.
    pub(super) fn split_front(&mut self, count: usize) -> Given {
        self.forget_answered();
        let inputs = self.portion.inputs.take_front(count);
        let first = self.portion.first;
        self.portion.first += count;
        Given {
            portion: Portion { first, inputs },
            ..*self
        }
    }

    fn forget_answered(&mut self) {
        if self.answered > 0 {
            self.portion.inputs.take_front(self.answered);
            self.portion.first += self.answered;
            self.answered = 0;
        }
    }

    /// Whether these continue the explicit chunk of an input before them, and so belong to its worker.
    pub(super) fn goes_on_from(&self, before: (JobId, usize)) -> bool {
        self.of_same_chunk(before) > 0
    }

    /// How many of these belong to the explicit chunk of an input before them.
    pub(super) fn of_same_chunk(&self, (job, index): (JobId, usize)) -> usize {
        match self.options.chunksize {
            Some(size) if job == self.job => {
                let end = (index / size + 1).saturating_mul(size);
                let first = self.portion.first + self.answered;
                end.saturating_sub(first).min(self.left())
            }
            _ => 0,
        }
    }
}

/// The earlier attempts of inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Past {
    /// How often they were begun without an outcome.
    pub(super) attempts: u32,
    /// How many workers have died that were about to begin the first of them.
    pub(super) misses: u32,
    /// How often the first of them was taken back from a worker that had not begun it for some time.
    pub(super) takebacks: u32,
    /// When they were accepted, in nanoseconds; 0 if that is not known. (A number, since inputs are moved often.)
    submitted_ns: u64,
}

impl Past {
    /// No attempts yet; the inputs were accepted at this time.
    pub(super) fn of(submitted: Time) -> Past {
        Past {
            submitted_ns: submitted.as_nanos() as u64,
            ..Past::default()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Phase {
    /// No process, and none is wanted.
    #[default]
    Empty,
    /// A process should be started, but not before this time.
    Wanted {
        not_before: Time,
    },
    /// It is being started.
    Launching,
    /// Started, and not ready yet.
    Starting {
        until: Option<Time>,
    },
    Ready,
    /// Runs an input that has exceeded a limit, the last of `begun`; the inputs that it has not begun are being taken back.
    Overdue {
        begun: u32,
        why: Reason,
    },
    /// Was asked to exit, and will be killed at a time that is not known before the next tick.
    Leaving {
        until: Option<Time>,
    },
    /// Will be killed, or was killed already.
    Dying(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// An input ran past its time limit.
    TimeLimit,
    /// An input used this much memory.
    MemoryLimit(u64),
    /// It was not ready in time.
    Late,
    /// The job of its input was cancelled, it sent something invalid, or the pool is ending.
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The position of its worker: what the worker knows as its index.
    pub(super) worker: usize,
    pub(super) phase: Phase,
    pub(super) given: VecDeque<Given>,
    /// How many elements of `given`, from the front, were sent.
    pub(super) sent: usize,
    /// How many inputs were given and have not been answered.
    pub(super) open: usize,
    /// How many inputs were answered since the process started; wraps around.
    pub(super) answered: u32,
    pub(super) last_answered: Option<(JobId, usize)>,
    /// The task of the last input that was given.
    pub(super) last_task: u32,
    /// How many inputs this process was given in total.
    pub(super) total: usize,
    /// The slowest pace among the tasks that it was given since it was idle; `None` if one is unknown.
    pub(super) pace: Option<Duration>,
    /// A recall is on its way; nothing is given until it is answered.
    pub(super) recalling: bool,
    /// A recall has found nothing to take back since work was last given.
    pub(super) drained: bool,
    /// It is given work. Otherwise it is, or will be, the understudy of a worker that is.
    pub(super) on_duty: bool,
    /// It is in the list of slots that may be idle.
    pub(super) listed: bool,
    /// When it became ready.
    pub(super) ready_since: Option<Time>,
    /// It was ready once, or one of its predecessors was.
    pub(super) was_ready: bool,
    /// How many processes in a row have failed: they could not be started, or died before they were ready or had done
    /// anything.
    pub(super) failures: u32,
    /// When it is killed if it has not ended by then; `Some(None)` until that is known.
    pub(super) kill_at: Option<Option<Time>>,
    /// Why it is killed.
    pub(super) why: Option<String>,
    /// Its pulse when it was last checked, and how often in a row the pulse was the same although there was something to
    /// begin.
    pub(super) pulse: u64,
    pub(super) silent: u32,
    pub(super) looked_at: Time,
    /// How many inputs it had begun when it was last checked.
    pub(super) begun: u32,
    /// Since when it was seen to have inputs to begin, and to have begun none.
    pub(super) dawdles_since: Option<Time>,
    /// How many inputs had begun at the last check of a time limit, and when that number was first seen.
    pub(super) seen_begun: Option<(u32, Time)>,
    /// It has used more of something than it may, and is asked to exit once it is idle.
    pub(super) used_up: Option<Recycled>,
    /// It was asked to exit although it was healthy.
    pub(super) let_go: bool,
    /// It has not begun its inputs. It is given no more until it shows a sign of life.
    pub(super) shunned: bool,
}

impl Slot {
    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether it is ready, or will be.
    pub(super) fn is_coming(&self) -> bool {
        matches!(
            self.phase,
            Phase::Launching | Phase::Starting { .. } | Phase::Ready
        )
    }

    /// Whether it is working, as far as is known, or its place soon will be.
    pub(super) fn is_promising(&self) -> bool {
        let lasts = matches!(self.phase, Phase::Overdue { .. } | Phase::Leaving { .. });
        self.failures == 0 && (self.is_coming() || lasts)
    }

    pub(super) fn has_process(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Empty | Phase::Wanted { .. } | Phase::Launching
        )
    }

    /// How long its inputs will take, as far as is known.
    pub(super) fn backlog(&self) -> Duration {
        match self.pace {
            _ if self.open == 0 => Duration::ZERO,
            Some(pace) => pace.saturating_mul(u32::try_from(self.open).unwrap_or(u32::MAX)),
            None => Duration::MAX,
        }
    }

    /// How many inputs of `given` have begun, by the ring's count.
    pub(super) fn running(&self, begun: u32) -> usize {
        (begun.wrapping_sub(self.answered) as usize).min(self.open)
    }

    /// The element of `given` whose input is running, by the ring's count of those begun.
    pub(super) fn running_now(&self, begun: u32) -> Option<&Given> {
        let mut before = self.running(begun).checked_sub(1)?;
        self.given.iter().find(|given| {
            let here = before < given.left();
            before = before.saturating_sub(given.left());
            here
        })
    }

    /// How long it may give signs of life, and not begin the input that it has to begin next. (Long inputs take time until they
    /// have arrived.)
    pub(super) fn may_dawdle(&self) -> Option<Duration> {
        let next = self.next()?;
        Some(match next.options.time_limit {
            // It need not end.
            None => Duration::MAX,
            Some(_) if next.past.misses > 0 || next.past.takebacks > 1 => BEGIN_AGAIN_MAX,
            Some(_) => BEGIN_MAX,
        })
    }

    /// Whether the input that it has to begin next stays with it until it has begun it, or is dead.
    pub(super) fn keeps_next(&self) -> bool {
        let next = self.next();
        next.is_some_and(|next| next.past.takebacks >= TAKEBACKS_MAX)
    }

    /// The inputs that it has to answer next.
    pub(super) fn next(&self) -> Option<&Given> {
        self.given.iter().find(|given| given.left() > 0)
    }

    /// The input that it was given last.
    pub(super) fn last_given(&self) -> Option<(JobId, usize)> {
        self.given
            .back()
            .map(|given| {
                let last = given.portion.first + given.portion.inputs.count() - 1;
                (given.job, last)
            })
            .or(self.last_answered)
    }

    /// Takes away all but the first `keep` inputs that have not been answered. Leaves `open` unchanged.
    pub(super) fn take_back(&mut self, mut keep: usize) -> Vec<Given> {
        let mut kept = 0;
        let mut back = Vec::new();
        for mut given in std::mem::take(&mut self.given) {
            let left = given.left();
            if keep >= left {
                keep -= left;
                kept += left;
                self.given.push_back(given);
            } else {
                if keep > 0 {
                    let front = given.split_front(keep);
                    kept += keep;
                    keep = 0;
                    self.given.push_back(front);
                } else {
                    given.forget_answered();
                }
                back.push(given);
            }
        }
        self.total -= self.open - kept;
        // Inputs that have begun were sent.
        self.sent = self.given.len();
        back
    }
}
