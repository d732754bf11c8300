//! Counts of what happened to inputs and workers, for statistics only: nothing is decided by them.

use pool_worker::{Exit, Fault, Tag};
use serde::{Deserialize, Serialize};

use super::slot::{Phase, Reason};
use super::{Located, Scheduler, Time};
use crate::backend::{Failure, Outcomes, What};
use crate::event::{Ended, Recycled};
use crate::stats::WorkerState;

/// The outcomes of the inputs of one task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) panicked: u64,
    pub(crate) unreadable: u64,
    pub(crate) lost: u64,
    pub(crate) time_limit: u64,
    pub(crate) memory_limit: u64,
    pub(crate) cancelled: u64,
    pub(crate) terminated: u64,
    /// How many runs have ended, in any way.
    pub(crate) attempts: u64,
}

/// What happened to the workers in one position.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lives {
    /// How many inputs they have answered.
    pub(crate) done: u64,
    pub(crate) died: usize,
    pub(crate) max_tasks: usize,
    pub(crate) max_memory: usize,
    pub(crate) cpu_time: usize,
    pub(crate) failed_starts: usize,
    /// The reason of the last of these, as a sentence.
    pub(crate) last: Option<String>,
}

/// Something that happened to a worker, for an observer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Happened {
    Died {
        worker: usize,
        pid: u32,
        exit: Exit,
        why: Option<String>,
    },
    Recycled {
        worker: usize,
        slot: usize,
        why: Recycled,
    },
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// By the number of the task.
    tasks: Vec<Counts>,
    workers: Vec<Lives>,
    /// What has happened, if there is an observer.
    pub(super) happened: Option<Vec<Happened>>,
}

impl Book {
    pub(super) fn new(workers: usize) -> Book {
        Book {
            tasks: Vec::new(),
            workers: vec![Lives::default(); workers],
            happened: None,
        }
    }

    #[inline]
    pub(super) fn task(&mut self, task: u32) -> &mut Counts {
        let at = task as usize;
        if at >= self.tasks.len() {
            self.tasks.resize(at + 1, Counts::default());
        }
        &mut self.tasks[at]
    }

    pub(super) fn worker(&mut self, worker: usize) -> &mut Lives {
        if worker >= self.workers.len() {
            self.workers.resize(worker + 1, Lives::default());
        }
        &mut self.workers[worker]
    }

    /// Counts outcomes that are being delivered.
    #[inline]
    pub(super) fn count(&mut self, task: u32, outcomes: &Outcomes) {
        self.task(task).count(outcomes);
    }

    /// Notes what happened to a worker, if there is an observer.
    pub(super) fn note(&mut self, happened: impl FnOnce() -> Happened) {
        if let Some(all) = &mut self.happened {
            all.push(happened());
        }
    }
}

impl Counts {
    /// Counts outcomes that are being delivered.
    #[inline]
    pub(crate) fn count(&mut self, outcomes: &Outcomes) {
        match &outcomes.what {
            What::Replies(replies) if replies.are_values() => {
                self.done += replies.count() as u64;
            }
            What::Replies(replies) => {
                for (tag, bytes) in replies.iter() {
                    *self.of_reply(tag, bytes) += 1;
                }
            }
            What::Failed { count, failure } => *self.of_failure(failure) += *count as u64,
        }
    }

    /// The count that a reply belongs to.
    pub(crate) fn of_reply(&mut self, tag: Tag, bytes: &[u8]) -> &mut u64 {
        match tag {
            Tag::Value => &mut self.done,
            Tag::Fault => match Fault::from_bytes(bytes) {
                Some(Fault::Panicked(_)) => &mut self.panicked,
                _ => &mut self.unreadable,
            },
        }
    }

    /// The count that a failure belongs to.
    fn of_failure(&mut self, failure: &Failure) -> &mut u64 {
        match failure {
            Failure::Panicked { .. } => &mut self.panicked,
            Failure::EncodeArguments(_)
            | Failure::DecodeArguments(_)
            | Failure::EncodeResult(_) => &mut self.unreadable,
            Failure::Lost { .. } => &mut self.lost,
            Failure::TimeLimit { .. } => &mut self.time_limit,
            Failure::MemoryLimit { .. } => &mut self.memory_limit,
            Failure::Cancelled => &mut self.cancelled,
            Failure::Terminated | Failure::Broken(_) => &mut self.terminated,
        }
    }
}

impl Scheduler {
    /// Sets when the inputs were accepted that are [submitted](Scheduler::submit) or [pushed](Scheduler::push) next; zero if
    /// that is not known.
    pub(crate) fn stamp(&mut self, submitted: Time) {
        self.stamp = submitted;
    }

    /// From now on, [what happens](Scheduler::take_happened) is noted.
    pub(crate) fn tell_what_happens(&mut self) {
        self.book.happened = Some(Vec::new());
    }

    /// What has happened to workers since the last call.
    pub(crate) fn take_happened(&mut self) -> Vec<Happened> {
        match &mut self.book.happened {
            Some(happened) if !happened.is_empty() => std::mem::take(happened),
            _ => Vec::new(),
        }
    }

    /// The outcomes of inputs, by the number of the task.
    pub(crate) fn counts(&self) -> &[Counts] {
        &self.book.tasks
    }

    /// What happened to workers, by their position.
    pub(crate) fn lives(&self) -> &[Lives] {
        &self.book.workers
    }

    /// The input that the worker of this slot answered last.
    pub(crate) fn last_answered(&self, slot: usize) -> Option<Located> {
        let slot = &self.slots[slot];
        let (job, index) = slot.last_answered?;
        Some(Located {
            job,
            task: slot.last_task,
            index: Some(index),
        })
    }

    /// The outcome of the run in which the worker of this slot died. `starved`: it had run out of memory.
    pub(crate) fn why_broken_off(&self, slot: usize, number: u32, starved: bool) -> Ended {
        let slot = &self.slots[slot];
        match slot.phase {
            _ if slot.running_now(number).is_some_and(|given| given.void) => Ended::Stopped,
            Phase::Dying(Reason::TimeLimit) => Ended::TimeLimit,
            Phase::Dying(Reason::MemoryLimit(_)) => Ended::MemoryLimit,
            _ if starved => Ended::MemoryLimit,
            _ => Ended::WorkerLost,
        }
    }

    /// An upper bound on the number of open jobs.
    pub(crate) fn open_jobs(&self) -> usize {
        self.jobs.places()
    }

    /// What the worker of this slot is doing.
    pub(crate) fn state_of(&self, slot: usize) -> WorkerState {
        let slot = &self.slots[slot];
        match slot.phase {
            Phase::Empty => WorkerState::Absent,
            Phase::Wanted { .. } | Phase::Launching | Phase::Starting { .. } => {
                WorkerState::Starting
            }
            Phase::Ready if slot.open == 0 => WorkerState::Idle,
            Phase::Ready | Phase::Overdue { .. } => WorkerState::Busy,
            Phase::Leaving { .. } | Phase::Dying(_) => WorkerState::Leaving,
        }
    }

    /// When the worker of this slot became ready.
    pub(crate) fn ready_since(&self, slot: usize) -> Option<Time> {
        self.slots[slot].ready_since
    }

    /// The position of the worker of this slot.
    pub(crate) fn worker_of(&self, slot: usize) -> usize {
        self.slots[slot].worker
    }

    /// How many inputs no worker has begun, given how many each worker has begun.
    pub(crate) fn queued(&self, begun: impl Fn(usize) -> u32) -> usize {
        let given = self.slots.iter().enumerate();
        let given = given.filter(|(_, slot)| slot.open > 0);
        let given: usize = given
            .map(|(at, slot)| slot.open - slot.running(begun(at)))
            .sum();
        self.jobs.pending() + given
    }
}
