//! What workers print, where it comes here: read, told apart by inputs, and handed on.
//!
//! Whoever takes up a worker's replies reads its pipes first, so that an error has all that its input wrote. Beside that a thread reads
//! them, so that a worker that prints a lot need not wait, and lines come as they are written.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pool_worker::{Capture, Fault, Frames, Line, Side, Tag, Watch, Worker};

use super::Shared;
use super::state::State;
use crate::backend::{News, Observer};
use crate::output::{Stream, WorkerLine};
use crate::scheduler::Located;

/// Before each input a worker writes a few bytes. So the thread that reads them sleeps for so long after it has read little.
const PAUSE: Duration = Duration::from_millis(5);
const LITTLE: usize = 16 << 10;

/// Who gets lines, and which worker has written them.
#[derive(Debug)]
pub(super) struct Lines {
    observer: Option<Arc<dyn Observer>>,
    /// By slots: the last input that has written something, by its worker and its number; it may have its outcome by now.
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

/// The pipes of dead workers that somebody still holds: a process that has left the worker's process group. It must not die of
/// writing there.
#[derive(Debug, Default)]
pub(super) struct Orphans(VecDeque<Orphan>);

#[derive(Debug)]
struct Orphan {
    serial: u64,
    worker: usize,
    pid: u32,
    capture: Capture,
}

/// Of more than so many, the oldest are closed.
const ORPHANS_MAX: usize = 64;

impl State {
    /// The worker of this number is dead, and was buried.
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

    /// Reads what processes have written that the worker of this serial number has left behind.
    fn read_orphan(&mut self, serial: u64) -> usize {
        let Orphans(orphans) = &mut self.orphans;
        let place = orphans.iter().position(|orphan| orphan.serial == serial);
        let Some(orphan) = place.and_then(|place| orphans.get_mut(place)) else {
            return 0;
        };
        let read = orphan.capture.read(false);
        let lines = orphan.capture.take_lines_read().into_iter();
        let (worker, pid) = (orphan.worker, orphan.pid);
        let news: Vec<News> = lines.map(|line| news_of(worker, pid, None, line)).collect();
        orphans.retain(|orphan| orphan.capture.is_open());
        if let Some(observer) = &self.lines.observer
            && !news.is_empty()
        {
            observer.observe(news);
        }
        read
    }

    /// Reads what the worker of this slot has written. Gives how many bytes that was.
    pub(super) fn read_output(&mut self, slot: usize, is_dead: bool) -> usize {
        let Some(worker) = &mut self.workers[slot] else {
            return 0;
        };
        let (pid, serial) = (worker.pid(), worker.serial());
        let Some(capture) = worker.capture() else {
            return 0;
        };
        let read = capture.read(is_dead);
        let lines = capture.take_lines_read();
        if let Some(observer) = self.lines.observer.clone()
            && !lines.is_empty()
        {
            let told = lines.into_iter();
            let told = told.map(|line| self.tell(slot, pid, serial, line));
            observer.observe(told.collect());
        }
        read
    }

    fn tell(&mut self, slot: usize, pid: u32, serial: u64, line: Line) -> News {
        let input = line.input;
        let at = input.and_then(|input| self.locate(slot, (serial, input)));
        news_of(self.scheduler.worker_of(slot), pid, at, line)
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

    /// Hands replies to the scheduler; panics with what their inputs wrote.
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

    /// What inputs have written that have their outcomes is needed no more.
    pub(super) fn forget_output(&mut self, slot: usize) {
        let answered = self.scheduler.answered_by(slot);
        let worker = self.workers[slot].as_mut();
        if let Some(capture) = worker.and_then(|worker| worker.capture()) {
            capture.forget_until(answered);
        }
    }
}

fn news_of(worker: usize, pid: u32, at: Option<Located>, line: Line) -> News {
    News::Line(WorkerLine {
        worker,
        pid,
        host: None,
        task: at.and_then(|at| pool_worker::task_name(at.task).map(Cow::Borrowed)),
        index: at.and_then(|at| at.index),
        stream: match line.side {
            Side::Out => Stream::Stdout,
            Side::Err => Stream::Stderr,
        },
        text: String::from_utf8_lossy(&line.text).into_owned(),
    })
}

impl Shared {
    /// The life of the thread that reads.
    pub(super) fn read_outputs(&self, watch: &Watch) {
        let mut serials = VecDeque::new();
        loop {
            serials.extend(watch.wait(None));
            let (over, most) = self.update(|state| {
                let mut most = 0;
                for serial in serials.drain(..) {
                    let Some(slot) = state.slot_of(serial) else {
                        most = most.max(state.read_orphan(serial));
                        continue;
                    };
                    most = most.max(state.read_output(slot, false));
                    // Otherwise what inputs wrote that have replies by now would pile up.
                    if state.scheduler.is_busy(slot) {
                        state.collect_from(slot);
                    }
                }
                (state.over, most)
            });
            if over {
                return;
            }
            if most < LITTLE {
                thread::sleep(PAUSE);
            }
        }
    }
}
