//! What an observer is told about workers and inputs, if there is one.
//!
//! Workers report an input by its number, before its reply is readable. The scheduler knows which input that is until the
//! reply is processed, so reports are read first. If a worker dies during an input, there is no last report; it is made up here,
//! so that each input that began also ends.

use std::borrow::Cow;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use pool_worker::{BEGAN, Ending, RAN, Ran, Reports, Worker, read_began, read_ran};

use super::state::State;
use super::statistics::LostRun;
use crate::backend::{News, Observe, Observer, Settings, Span};
use crate::event::{Ended, Event};
use crate::scheduler::{Happened, Located, Time};
use crate::stats::task_name;

/// The minimum time between two reports of how many inputs wait; it is longer if there are many jobs to add up.
const SAMPLE: Duration = Duration::from_millis(2);
const SAMPLE_MORE: Duration = Duration::from_micros(1);

/// The most inputs that a worker may have run without having reported them.
const UNTOLD_MAX: u32 = 1 << 16;

/// Tells an observer.
pub(super) struct Watching {
    observer: Arc<dyn Observer>,
    observe: Observe,
    /// When the pool was built.
    began: Time,
    news: Vec<News>,
    /// The inputs whose beginning was reported, by slot.
    running: Vec<Option<Began>>,
    /// How many inputs were reported as run, and when the last of them ended; by slot.
    told: Vec<(u32, Time)>,
    /// When to report next how many inputs wait, and what was reported last.
    sample_at: Time,
    sampled: usize,
}

/// An input that has begun.
#[derive(Debug, Clone, Copy)]
struct Began {
    number: u32,
    at: Time,
    input: Located,
}

/// The worker that an event is about.
#[derive(Clone, Copy)]
struct Who {
    worker: usize,
    pid: u32,
}

impl Watching {
    /// `None` if there is no observer that wants to know.
    pub(super) fn new(settings: &Settings, began: Time, slots: usize) -> Option<Watching> {
        let observe = settings.observe;
        let observer = Arc::clone(settings.observer.as_ref()?);
        (observe.workers || observe.inputs || observe.spans).then(|| Watching {
            observer,
            observe,
            began,
            news: Vec::new(),
            running: vec![None; slots],
            told: vec![(0, began); slots],
            sample_at: began,
            sampled: 0,
        })
    }

    /// The time since the start of the pool.
    fn at(&self, time: Time) -> Duration {
        time.saturating_sub(self.began)
    }

    fn tell(&mut self, event: Event) {
        self.news.push(News::Event(event));
    }

    fn tell_began(&mut self, who: Who, input: Located, at: Time) {
        let at = self.at(at);
        self.tell(Event::InputBegan {
            worker: who.worker,
            pid: who.pid,
            host: None,
            task: Cow::Borrowed(task_name(input.task)),
            index: input.index,
            at,
        });
    }

    fn tell_ended(&mut self, who: Who, began: Began, outcome: Ended, ended: Time) {
        let at = self.at(ended);
        self.tell(Event::InputEnded {
            worker: who.worker,
            pid: who.pid,
            host: None,
            task: Cow::Borrowed(task_name(began.input.task)),
            index: began.input.index,
            outcome,
            took: ended.saturating_sub(began.at),
            at,
        });
    }

    /// An input was begun.
    fn began(&mut self, slot: usize, who: Who, number: u32, at: Time, input: Located) {
        // A worker that lies may report this twice.
        if self.observe.inputs && self.running[slot].is_none() {
            self.running[slot] = Some(Began { number, at, input });
            self.tell_began(who, input, at);
        }
    }

    /// Inputs were run, of which this is the last that has no reply.
    fn ran(&mut self, slot: usize, who: Who, ran: &Ran, input: Located, now: Time) {
        let ended = ran.ended.min(now);
        let outcome = match ran.ending {
            Ending::Done => Ended::Done,
            Ending::Unreadable => Ended::Unreadable,
            Ending::Panicked => Ended::Panicked,
        };
        if let Some(began) = self.running[slot]
            && began.number == ran.number
        {
            self.running[slot] = None;
            self.tell_ended(who, began, outcome, ended);
        }
        let told = &mut self.told[slot];
        *told = (told.0.wrapping_add(ran.count), ended);
        if self.observe.spans {
            let began = ran.began.clamp(self.began, ended.max(self.began));
            let back = ran.before as usize;
            self.news.push(News::Span(Span {
                worker: who.worker,
                pid: who.pid,
                host: None,
                task: Cow::Borrowed(task_name(input.task)),
                job: input.job.serial,
                first: input.index.map(|index| index.saturating_sub(back)),
                count: ran.count.max(1) as usize,
                failed: ran.failed.min(ran.count) as usize,
                began: self.at(began),
                ended: self.at(ended),
                busy: ran.busy.min(ended.saturating_sub(began)),
                outcome,
            }));
        }
    }

    /// A worker died in an input, or was killed.
    fn broke_off(&mut self, slot: usize, who: Who, running: Began, outcome: Ended, now: Time) {
        if self.observe.inputs {
            if self.running[slot].take().is_none() {
                self.tell_began(who, running.input, running.at);
            }
            self.tell_ended(who, running, outcome, now);
        }
        if self.observe.spans {
            self.news.push(News::Span(Span {
                worker: who.worker,
                pid: who.pid,
                host: None,
                task: Cow::Borrowed(task_name(running.input.task)),
                job: running.input.job.serial,
                first: running.input.index,
                count: 1,
                failed: 1,
                began: self.at(running.at),
                ended: self.at(now),
                busy: now.saturating_sub(running.at),
                outcome,
            }));
        }
    }
}

impl State {
    /// A timeline is recorded, or workers log.
    pub(super) fn wants_news_soon(&self) -> bool {
        let watching = self.watching.as_ref();
        self.has_logged && self.hears_logs()
            || watching.is_some_and(|watching| watching.observe.spans)
    }

    fn who(&self, slot: usize) -> Option<Who> {
        Some(Who {
            worker: self.scheduler.worker_of(slot),
            pid: self.workers[slot].as_ref()?.pid(),
        })
    }

    /// The sandbox of the workers lacks this.
    pub(super) fn note_unenforced(&mut self, missing: &[String]) {
        if let Some(watching) = &mut self.watching
            && watching.observe.workers
            && !missing.is_empty()
        {
            let at = watching.at(pool_worker::now());
            watching.tell(Event::SandboxIncomplete {
                missing: missing.to_vec(),
                host: None,
                at,
            });
        }
    }

    /// A worker was started.
    pub(super) fn note_started(&mut self, slot: usize) {
        if let Some(watching) = &mut self.watching {
            watching.told[slot] = (0, pool_worker::now());
        }
        if let Some(who) = self.who(slot)
            && let Some(watching) = &mut self.watching
            && watching.observe.workers
        {
            let at = watching.at(pool_worker::now());
            watching.tell(Event::WorkerStarted {
                worker: who.worker,
                pid: who.pid,
                host: None,
                at,
            });
        }
    }

    /// A worker accepts inputs.
    pub(super) fn note_ready(&mut self, slot: usize) {
        if let Some(who) = self.who(slot)
            && let Some(watching) = &mut self.watching
            && watching.observe.workers
        {
            let at = watching.at(pool_worker::now());
            watching.tell(Event::WorkerReady {
                worker: who.worker,
                pid: who.pid,
                host: None,
                at,
            });
        }
    }

    /// From now on, this worker is in another slot.
    pub(super) fn note_move(&mut self, from: usize, to: usize) {
        if let Some(watching) = &mut self.watching {
            watching.running[to] = watching.running[from].take();
            watching.told[to] = watching.told[from];
        }
    }

    /// Reads what a worker has reported about inputs; called before its replies are processed.
    pub(super) fn hear_of_inputs(&mut self, slot: usize, reports: &Reports) {
        let Some(who) = self.who(slot) else {
            return;
        };
        let Some(watching) = &mut self.watching else {
            return;
        };
        let now = pool_worker::now();
        match reports.kind {
            BEGAN => {
                for (number, at) in reports.iter().filter_map(read_began) {
                    if let Some(input) = self.scheduler.locate(slot, number) {
                        let at = at.clamp(watching.began, now.max(watching.began));
                        watching.began(slot, who, number, at, input);
                    }
                }
            }
            RAN => {
                for ran in reports.iter().filter_map(read_ran) {
                    let input = self.scheduler.locate(slot, ran.number);
                    let input = input.or_else(|| self.scheduler.last_answered(slot));
                    if let Some(input) = input {
                        watching.ran(slot, who, &ran, input, now);
                    }
                }
            }
            _ => {}
        }
    }

    /// A worker is dead, everything that it has reported was processed, and the scheduler is about to be told. `lost` is the run
    /// in which it died.
    pub(super) fn note_broken_off(
        &mut self,
        slot: usize,
        pid: u32,
        lost: Option<LostRun>,
        starved: bool,
    ) {
        let Some(watching) = &mut self.watching else {
            return;
        };
        let who = Who {
            worker: self.scheduler.worker_of(slot),
            pid,
        };
        let now = lost.map_or_else(pool_worker::now, |lost| lost.ended);
        let told = watching.running[slot];
        let running = told.or_else(|| {
            let lost = lost?;
            Some(Began {
                number: lost.number,
                at: lost.began,
                input: lost.input,
            })
        });
        // Short inputs are reported together; these were not reported yet.
        let (told, last) = watching.told[slot];
        let untold = self.scheduler.answered_by(slot).wrapping_sub(told);
        if let Some(input) = self.scheduler.last_answered(slot)
            && (1..=UNTOLD_MAX).contains(&untold)
        {
            let ended = running.map_or(now, |running| running.at);
            let ran = Ran {
                task: input.task,
                number: 0,
                before: untold - 1,
                count: untold,
                failed: 0,
                ending: Ending::Done,
                began: last,
                ended,
                busy: ended.saturating_sub(last),
            };
            watching.ran(slot, who, &ran, input, now);
        }
        if let Some(running) = running {
            let outcome = self.scheduler.why_broken_off(slot, running.number, starved);
            watching.broke_off(slot, who, running, outcome, now);
        }
    }

    /// Reports what happened to the observer.
    pub(super) fn tell_observer(&mut self) {
        let Some(watching) = &mut self.watching else {
            return;
        };
        if watching.observe.workers {
            for happened in self.scheduler.take_happened() {
                let at = watching.at(pool_worker::now());
                let event = match happened {
                    Happened::Died {
                        worker,
                        pid,
                        exit,
                        why,
                    } => Event::WorkerDied {
                        worker,
                        pid,
                        host: None,
                        how: exit,
                        why,
                        at,
                    },
                    Happened::Recycled { worker, slot, why } => Event::WorkerRecycled {
                        worker,
                        pid: self.workers[slot].as_ref().map_or(0, Worker::pid),
                        host: None,
                        why,
                        at,
                    },
                };
                watching.tell(event);
            }
        }
        if watching.observe.spans {
            let now = pool_worker::now();
            if now >= watching.sample_at {
                let jobs = self.scheduler.open_jobs();
                let more = SAMPLE_MORE.saturating_mul(u32::try_from(jobs).unwrap_or(u32::MAX));
                watching.sample_at = now + SAMPLE + more;
                let workers = &self.workers;
                let inputs = self.scheduler.queued(|slot| {
                    let worker = workers[slot].as_ref();
                    worker.map_or(0, |worker| worker.progress().begun)
                });
                if mem::replace(&mut watching.sampled, inputs) != inputs {
                    let at = watching.at(now);
                    watching.news.push(News::Waiting { at, inputs });
                }
            }
        }
        if !watching.news.is_empty() {
            let news = mem::take(&mut watching.news);
            watching.observer.observe(news);
        }
    }
}
