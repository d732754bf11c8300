//! What came of inputs and of workers, in numbers: for statistics only. Nothing is decided by them.

use pool_worker::{Exit, Fault, Tag};

use super::slot::{Phase, Reason};
use super::{Located, Scheduler, Time};
use crate::backend::{Failure, Outcomes, What};
use crate::event::{Ended, Recycled};
use crate::stats::WorkerState;

/// What came of the inputs of one task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) panicked: u64,
    pub(crate) unreadable: u64,
    pub(crate) lost: u64,
    pub(crate) time_limit: u64,
    pub(crate) memory_limit: u64,
    pub(crate) cancelled: u64,
    pub(crate) terminated: u64,
    /// How many runs have ended, however that was.
    pub(crate) attempts: u64,
}

/// What came of the workers that were in one place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lives {
    /// How many inputs they have answered.
    pub(crate) done: u64,
    pub(crate) died: usize,
    pub(crate) max_tasks: usize,
    pub(crate) max_memory: usize,
    pub(crate) failed_starts: usize,
    /// How the last of these came about.
    pub(crate) last: Option<String>,
}

/// Something that happened to a worker, for whoever wants to be told.
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

/// All that is counted.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// By the number of the task.
    tasks: Vec<Counts>,
    workers: Vec<Lives>,
    /// If somebody wants to be told.
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

    /// These outcomes are delivered.
    #[inline]
    pub(super) fn count(&mut self, task: u32, outcomes: &Outcomes) {
        let counts = self.task(task);
        match &outcomes.what {
            What::Replies(replies) if replies.are_values() => {
                counts.done += replies.count() as u64;
            }
            What::Replies(replies) => {
                for (tag, bytes) in replies.iter() {
                    *counts.of_reply(tag, bytes) += 1;
                }
            }
            What::Failed { count, failure } => *counts.of_failure(failure) += *count as u64,
        }
    }

    /// Notes what happened to a worker, if somebody wants to know.
    pub(super) fn note(&mut self, happened: impl FnOnce() -> Happened) {
        if let Some(all) = &mut self.happened {
            all.push(happened());
        }
    }
}

impl Counts {
    /// Which of them counts a reply.
    pub(crate) fn of_reply(&mut self, tag: Tag, bytes: &[u8]) -> &mut u64 {
        match tag {
            Tag::Value => &mut self.done,
            Tag::Fault => match Fault::from_bytes(bytes) {
                Some(Fault::Panicked(_)) => &mut self.panicked,
                _ => &mut self.unreadable,
            },
        }
    }

    /// Which of them counts a failure.
    fn of_failure(&mut self, failure: &Failure) -> &mut u64 {
        match failure {
            Failure::Panicked(_) => &mut self.panicked,
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
    /// When the next inputs were accepted that are [submitted](Scheduler::submit) or [pushed](Scheduler::push); zero, if that is
    /// not known.
    pub(crate) fn stamp(&mut self, submitted: Time) {
        self.stamp = submitted;
    }

    /// From now on [what happens](Scheduler::take_happened) is told.
    pub(crate) fn tell_what_happens(&mut self) {
        self.book.happened = Some(Vec::new());
    }

    /// What has happened to workers since this was last asked.
    pub(crate) fn take_happened(&mut self) -> Vec<Happened> {
        match &mut self.book.happened {
            Some(happened) if !happened.is_empty() => std::mem::take(happened),
            _ => Vec::new(),
        }
    }

    /// What came of the inputs, by the number of the task.
    pub(crate) fn counts(&self) -> &[Counts] {
        &self.book.tasks
    }

    /// What came of the workers, by their place.
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

    /// How the run of an input ends in which the worker of this slot died. `starved`: it had no memory left.
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

    /// How many jobs are open, or were once at a time.
    pub(crate) fn open_jobs(&self) -> usize {
        self.jobs.places()
    }

    /// What the worker of this slot is about.
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

    /// In which place the worker of this slot is.
    pub(crate) fn worker_of(&self, slot: usize) -> usize {
        self.slots[slot].worker
    }

    /// How many inputs no worker has begun, if workers have begun so many.
    pub(crate) fn queued(&self, begun: impl Fn(usize) -> u32) -> usize {
        let given = self.slots.iter().enumerate();
        let given = given.filter(|(_, slot)| slot.open > 0);
        let given: usize = given
            .map(|(at, slot)| slot.open - slot.running(begun(at)))
            .sum();
        self.jobs.pending() + given
    }
}
