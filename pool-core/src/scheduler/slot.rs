//! Slots: one worker process each, from the wish for it to its end.

use std::collections::VecDeque;
use std::time::Duration;

use super::Time;
use crate::backend::{JobId, Options, Portion};

/// Inputs in the hands of a worker.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) job: JobId,
    pub(crate) task: u32,
    pub(crate) options: Options,
    pub(crate) portion: Portion,
    /// How many of them were answered.
    pub(crate) answered: usize,
    /// What became of them before.
    pub(super) past: Past,
    /// Their outcome is out already: their job was cancelled.
    pub(super) void: bool,
}

impl Given {
    /// How many inputs were not answered.
    pub(super) fn left(&self) -> usize {
        self.portion.inputs.count() - self.answered
    }

    /// When they were accepted; zero, if that is not known, or if they have waited for something else too.
    pub(crate) fn submitted(&self) -> Time {
        match self.past {
            Past {
                attempts: 0,
                misses: 0,
                submitted_ns,
            } => Time::from_nanos(submitted_ns),
            _ => Time::ZERO,
        }
    }

    /// Cuts off the first `count` that were not answered.
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

    /// Whether these go on in the explicit chunk of an input before them, and so belong to its worker.
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

/// What became of inputs before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Past {
    /// How often they were begun, and came to an end that is no outcome.
    pub(super) attempts: u32,
    /// How many workers have died that were to begin the first of them next.
    pub(super) misses: u32,
    /// When they were accepted, in nanoseconds; 0, if that is not known. (Inputs are moved often.)
    submitted_ns: u64,
}

impl Past {
    /// Nothing became of them yet, and they were accepted then.
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
    /// A process is to be started, but not before this time.
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
    /// Runs an input that is past a limit, the last of `begun`; what it has not begun is
    /// being taken back.
    Overdue {
        begun: u32,
        why: Reason,
    },
    /// Asked to exit, and to be killed at a time that is not known before the next tick.
    Leaving {
        until: Option<Time>,
    },
    /// To be killed, or killed already.
    Dying(Reason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// An input ran past its time limit.
    TimeLimit,
    /// An input used so much memory.
    MemoryLimit(u64),
    /// It was not ready in time.
    Late,
    /// The job of what it runs was cancelled, or it talked nonsense, or all is over.
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    /// In which place its worker is: what the worker knows as its index.
    pub(super) worker: usize,
    pub(super) phase: Phase,
    pub(super) given: VecDeque<Given>,
    /// How many of `given`, from the front, were sent.
    pub(super) sent: usize,
    /// How many inputs were given and not answered.
    pub(super) open: usize,
    /// How many were answered since the process started; wraps around.
    pub(super) answered: u32,
    pub(super) last_answered: Option<(JobId, usize)>,
    /// The task of that.
    pub(super) last_task: u32,
    /// How many inputs this process was given in all.
    pub(super) total: usize,
    /// The slowest pace among what it was given since it was idle; `None` if one is unknown.
    pub(super) pace: Option<Duration>,
    /// A recall is on its way; nothing is given until it is answered.
    pub(super) recalling: bool,
    /// A recall has found nothing to take back since work was last given.
    pub(super) drained: bool,
    /// It is given work. Otherwise it is, or will be, the understudy of one that is.
    pub(super) on_duty: bool,
    /// It is in the list of those that may be idle.
    pub(super) listed: bool,
    /// When it became ready.
    pub(super) ready_since: Option<Time>,
    /// It was ready once, or a predecessor of it.
    pub(super) was_ready: bool,
    /// How many processes in a row were of no use: not started, dead before they were ready, or before they
    /// had done anything.
    pub(super) failures: u32,
    /// When it is killed if it has not ended by then, once that is known.
    pub(super) kill_at: Option<Option<Time>>,
    /// Why it must go.
    pub(super) why: Option<String>,
    /// Its pulse when it was last looked at, and how often in a row it was the same since, though there was
    /// something to begin.
    pub(super) pulse: u64,
    pub(super) silent: u32,
    pub(super) looked_at: Time,
    /// How many inputs had begun when that was last looked at for a time limit, and when it was first seen.
    pub(super) seen_begun: Option<(u32, Time)>,
    /// It has more memory than it may keep, and goes once it has nothing to do.
    pub(super) used_up: bool,
    /// It was asked to go, though all is well.
    pub(super) let_go: bool,
    /// It has not begun what it was given. It is given nothing until it shows that it lives.
    pub(super) shunned: bool,
}

impl Slot {
    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether it is ready, or on its way to be.
    pub(super) fn is_coming(&self) -> bool {
        matches!(
            self.phase,
            Phase::Launching | Phase::Starting { .. } | Phase::Ready
        )
    }

    /// Whether it is good for something, as far as is known; or its place soon will be.
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

    /// How long it has to do, as far as is known.
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

    /// What runs now, by the ring's count of those begun.
    pub(super) fn running_now(&self, begun: u32) -> Option<&Given> {
        let mut before = self.running(begun).checked_sub(1)?;
        self.given.iter().find(|given| {
            let here = before < given.left();
            before = before.saturating_sub(given.left());
            here
        })
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

    /// Takes away all but the first `keep` inputs that were not answered. Leaves `open` as it is.
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
        // What has begun was sent.
        self.sent = self.given.len();
        back
    }
}
