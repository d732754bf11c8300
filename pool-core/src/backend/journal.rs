//! [`Journal`]: statistics and events of tasks that are run in this process, without workers.

use std::borrow::Cow;
use std::process;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_worker::{Frames, Tallied};

use super::{Job, JobId, News, Observe, Observer, Settings, Span};
use crate::event::{Ended, Event};
use crate::scheduler::{Counts, Time};
use crate::stats::{self, Running, Stats, TalliedTasks, WorkerState, WorkerStats, task_name};
use crate::sync::lock;

/// Records what was run.
#[derive(Debug)]
pub(super) struct Journal {
    /// When the pool was built.
    began: Time,
    observe: Observe,
    observer: Option<Arc<dyn Observer>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the number of the task.
    counts: Vec<Counts>,
    times: TalliedTasks,
    done: u64,
    busy: Duration,
    running: Vec<Begun>,
}

/// An input that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Begun {
    task: u32,
    job: u32,
    index: Option<usize>,
    at: Time,
}

impl Journal {
    pub(super) fn new(settings: &Settings) -> Journal {
        Journal {
            began: pool_worker::now(),
            observe: settings.observe,
            observer: settings.observer.clone(),
            known: Mutex::default(),
        }
    }

    /// An input of this job is about to run, for the first time or again.
    pub(super) fn begin(&self, id: JobId, job: Job, index: usize) -> Begun {
        let begun = Begun {
            task: job.task,
            job: id.serial,
            index: (!job.single).then_some(index),
            at: pool_worker::now(),
        };
        lock(&self.known).running.push(begun);
        if let Some(observer) = &self.observer
            && self.observe.inputs
        {
            observer.observe(vec![News::Event(Event::InputBegan {
                worker: 0,
                pid: process::id(),
                host: None,
                task: Cow::Borrowed(task_name(begun.task)),
                index: begun.index,
                at: self.at(begun.at),
            })]);
        }
        begun
    }

    /// The input was run, with this reply, which is its outcome unless it is going to run again.
    pub(super) fn end(&self, begun: Begun, reply: &Frames, is_outcome: bool) {
        let now = pool_worker::now();
        let took = now.saturating_sub(begun.at);
        let mut counted = Counts::default();
        for (tag, bytes) in reply.iter() {
            *counted.of_reply(tag, bytes) += 1;
        }
        let outcome = match counted {
            Counts { panicked: 1.., .. } => Ended::Panicked,
            Counts {
                unreadable: 1.., ..
            } => Ended::Unreadable,
            _ => Ended::Done,
        };
        let mut known = lock(&self.known);
        let place = known.running.iter().rposition(|other| *other == begun);
        place.map(|place| known.running.remove(place));
        known.done += 1;
        // If it was run by another input, the other's time includes its time.
        if known.running.is_empty() {
            known.busy += took;
        }
        let task = begun.task as usize;
        if task >= known.counts.len() {
            known.counts.resize(task + 1, Counts::default());
        }
        let counts = &mut known.counts[task];
        counts.attempts += 1;
        if is_outcome {
            counts.done += counted.done;
            counts.panicked += counted.panicked;
            counts.unreadable += counted.unreadable;
        }
        let Tallied { ran, waited } = known.times.entry(begun.task).or_default();
        ran.record(took.as_nanos() as u64);
        waited.record(0);
        drop(known);
        self.tell_end(begun, outcome, now);
    }

    fn tell_end(&self, begun: Begun, outcome: Ended, now: Time) {
        let Some(observer) = &self.observer else {
            return;
        };
        let took = now.saturating_sub(begun.at);
        let task = Cow::Borrowed(task_name(begun.task));
        let mut news = Vec::new();
        if self.observe.inputs {
            news.push(News::Event(Event::InputEnded {
                worker: 0,
                pid: process::id(),
                host: None,
                task: task.clone(),
                index: begun.index,
                outcome,
                took,
                at: self.at(now),
            }));
        }
        if self.observe.spans {
            news.push(News::Span(Span {
                worker: 0,
                pid: process::id(),
                host: None,
                task,
                job: begun.job,
                first: begun.index,
                count: 1,
                failed: usize::from(outcome != Ended::Done),
                began: self.at(begun.at),
                ended: self.at(now),
                busy: took,
                outcome,
            }));
        }
        if !news.is_empty() {
            observer.observe(news);
        }
    }

    fn at(&self, time: Time) -> Duration {
        time.saturating_sub(self.began)
    }

    /// The statistics: one worker, which is this process, and everything that was run.
    pub(super) fn stats(&self) -> Stats {
        let now = pool_worker::now();
        let uptime = self.at(now);
        let known = lock(&self.known);
        let outermost = known.running.first();
        let busy = known.busy + outermost.map_or(Duration::ZERO, |run| now.saturating_sub(run.at));
        let share = busy.as_secs_f64() / uptime.as_secs_f64().max(1e-9);
        let worker = WorkerStats {
            pid: Some(process::id()),
            state: match known.running.is_empty() {
                true => WorkerState::Idle,
                false => WorkerState::Busy,
            },
            running: known.running.last().map(|run| Running {
                task: task_name(run.task).to_owned(),
                index: run.index,
                since: now.saturating_sub(run.at),
            }),
            done: known.done,
            busy: share.clamp(0.0, 1.0),
            ..WorkerStats::default()
        };
        Stats {
            uptime,
            workers: vec![worker],
            tasks: stats::tasks(&known.counts, &known.times),
            ..Stats::default()
        }
    }
}
