//! Captured output of workers: read, assigned to inputs, and handed on.
//!
//! Before a worker's replies are processed, its pipes are read, so that an error contains everything that its input wrote.
//! Besides that, a thread reads them, so that a worker that prints a lot need not wait, and lines come as soon as they are
//! written.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pool_worker::{Capture, Fault, Frames, Passage, Side, Tag, Watch, Worker};

use super::Shared;
use super::state::State;
use crate::backend::{News, Observer};
use crate::output::{Stream, WorkerLine};
use crate::scheduler::Located;

/// Before each input, a worker writes a few bytes. So the thread that reads them sleeps this long after it has read little.
const PAUSE: Duration = Duration::from_millis(5);
const LITTLE: usize = 16 << 10;

/// After it has read more than that, it sleeps this long, so that threads that wait for the lock get it.
const BREATH: Duration = Duration::from_micros(50);

/// How much of what was written is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// A part, so that the lock is not held for long.
    Turn,
    /// Everything that was written until now: outcomes have arrived.
    Rest,
    /// The same, and the worker is dead.
    Last,
}

/// Who gets lines, and which input last wrote in each slot.
#[derive(Debug)]
pub(super) struct Lines {
    observer: Option<Arc<dyn Observer>>,
    /// By slot: the last input that has written something, by its worker and its number; it may have its outcome by now.
    last: Vec<Option<((u64, u32), Located)>>,
}

impl Lines {
    pub(super) fn to(observer: Option<Arc<dyn Observer>>) -> Lines {
        Lines {
            observer,
            last: Vec::new(),
        }
    }
}

/// The pipes of dead workers that are still held by processes that have left the worker's process group. Writing to them must
/// not kill these processes.
#[derive(Debug, Default)]
pub(super) struct Orphans(VecDeque<Orphan>);

#[derive(Debug)]
struct Orphan {
    serial: u64,
    worker: usize,
    pid: u32,
    capture: Capture,
}

/// If there are more than this, the oldest are closed.
const ORPHANS_MAX: usize = 64;

impl State {
    /// The worker in this position is dead, and has been reaped.
    pub(super) fn keep_pipes(&mut self, worker: usize, dead: &mut Worker) {
        let (serial, pid) = (dead.serial(), dead.pid());
        let capture = dead.take_capture();
        if let Some(capture) = capture.filter(Capture::is_open) {
            let Orphans(orphans) = &mut self.orphans;
            if orphans.len() == ORPHANS_MAX {
                orphans.pop_front();
            }
            orphans.push_back(Orphan {
                serial,
                worker,
                pid,
                capture,
            });
        }
    }

    /// Reads what processes have written that the worker with this serial number left behind.
    fn read_orphan(&mut self, serial: u64) -> usize {
        let Orphans(orphans) = &mut self.orphans;
        let place = orphans.iter().position(|orphan| orphan.serial == serial);
        let Some(orphan) = place.and_then(|place| orphans.get_mut(place)) else {
            return 0;
        };
        let read = orphan.capture.read();
        let passages = orphan.capture.take_passages().into_iter();
        let (worker, pid) = (orphan.worker, orphan.pid);
        let news = passages.map(|passage| news_of(worker, pid, None, passage));
        let news: Vec<News> = news.collect();
        orphans.retain(|orphan| orphan.capture.is_open());
        if let Some(observer) = &self.lines.observer
            && !news.is_empty()
        {
            observer.observe(news);
        }
        read
    }

    /// Reads what the worker of this slot has written. Returns the number of bytes.
    pub(super) fn read_output(&mut self, slot: usize, reach: Reach) -> usize {
        let Some(worker) = &mut self.workers[slot] else {
            return 0;
        };
        let (pid, serial) = (worker.pid(), worker.serial());
        let Some(capture) = worker.capture() else {
            return 0;
        };
        let read = match reach {
            Reach::Turn => capture.read(),
            Reach::Rest => capture.read_rest(),
            Reach::Last => capture.read_last(),
        };
        let passages = capture.take_passages();
        if let Some(observer) = self.lines.observer.clone()
            && !passages.is_empty()
        {
            let told = passages.into_iter();
            let told = told.map(|passage| self.tell(slot, pid, serial, passage));
            observer.observe(told.collect());
        }
        read
    }

    /// Reads what these workers have written, one after the other, until that was more than a little. Returns the number of
    /// bytes.
    fn read_some(&mut self, serials: &mut VecDeque<u64>) -> usize {
        let mut read = 0;
        while read < LITTLE
            && let Some(serial) = serials.pop_front()
        {
            let Some(slot) = self.slot_of(serial) else {
                read += self.read_orphan(serial);
                continue;
            };
            read += self.read_output(slot, Reach::Turn);
            // Otherwise, the output of inputs that have replied would pile up.
            if self.scheduler.is_busy(slot) {
                self.collect_from(slot);
            }
        }
        read
    }

    fn tell(&mut self, slot: usize, pid: u32, serial: u64, passage: Passage) -> News {
        let input = passage.input;
        let at = input.and_then(|input| self.locate(slot, (serial, input)));
        news_of(self.scheduler.worker_of(slot), pid, at, passage)
    }

    fn locate(&mut self, slot: usize, input: (u64, u32)) -> Option<Located> {
        if self.lines.last.len() <= slot {
            self.lines.last.resize(slot + 1, None);
        }
        let last = &mut self.lines.last[slot];
        match self.scheduler.locate(slot, input.1) {
            Some(located) => {
                *last = Some((input, located));
                Some(located)
            }
            None => last
                .filter(|(of, _)| *of == input)
                .map(|(_, located)| located),
        }
    }

    /// Passes replies to the scheduler, after adding to each panic what its input wrote.
    pub(super) fn answer_with_output(&mut self, slot: usize, mut replies: Frames) {
        while replies.count() > 0 {
            let fault = replies.iter().position(|(tag, _)| tag == Tag::Fault);
            match fault {
                None => return self.scheduler.answered(slot, replies),
                Some(0) => {
                    let input = self.scheduler.answered_by(slot).wrapping_add(1);
                    let with_output = replies.pop().map(|(tag, bytes)| (tag, bytes.to_vec()));
                    let Some((tag, bytes)) = with_output else {
                        return;
                    };
                    let bytes = self.add_output(slot, input, bytes);
                    self.scheduler.answered(slot, Frames::alone(tag, bytes));
                }
                Some(before) => {
                    let front = replies.take_front(before);
                    self.scheduler.answered(slot, front);
                }
            }
        }
    }

    fn add_output(&mut self, slot: usize, input: u32, fault: Vec<u8>) -> Vec<u8> {
        let worker = self.workers[slot].as_mut();
        let Some(capture) = worker.and_then(|worker| worker.capture()) else {
            return fault;
        };
        match Fault::from_bytes(&fault) {
            Some(Fault::Panicked(mut panic)) => {
                panic.output = Some(capture.take_text_of(input).into());
                Fault::Panicked(panic).to_bytes()
            }
            _ => fault,
        }
    }

    /// Drops what inputs wrote that have their outcomes.
    pub(super) fn forget_output(&mut self, slot: usize) {
        let answered = self.scheduler.answered_by(slot);
        let worker = self.workers[slot].as_mut();
        if let Some(capture) = worker.and_then(|worker| worker.capture()) {
            capture.forget_until(answered);
        }
    }
}

fn news_of(worker: usize, pid: u32, at: Option<Located>, passage: Passage) -> News {
    News::Lines(WorkerLine {
        worker,
        pid,
        host: None,
        task: at.and_then(|at| pool_worker::task_name(at.task).map(Cow::Borrowed)),
        index: at.and_then(|at| at.index),
        stream: match passage.side {
            Side::Out => Stream::Stdout,
            Side::Err => Stream::Stderr,
        },
        text: String::from_utf8(passage.text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    })
}

impl Shared {
    /// The main loop of the thread that reads.
    pub(super) fn read_outputs(&self, watch: &Watch) {
        let mut serials = VecDeque::new();
        loop {
            serials.extend(watch.wait(None));
            let mut most = 0;
            loop {
                let (over, read) = self.update(|state| (state.over, state.read_some(&mut serials)));
                if over {
                    return;
                }
                most = most.max(read);
                if serials.is_empty() {
                    break;
                }
                thread::sleep(BREATH);
            }
            thread::sleep(if most < LITTLE { PAUSE } else { BREATH });
        }
    }
}
