//! Jobs: calls that were accepted and have not finished.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use super::Time;
use super::slot::{Given, Past};
use crate::backend::{Job, JobId, Portion, Want};
use crate::few::Few;

/// If no job is open, memory for more jobs than this is freed.
const KEPT: usize = 4096;

/// Inputs that no worker was given.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) portion: Portion,
    /// Their earlier attempts.
    pub(super) past: Past,
}

impl From<Given> for Pending {
    fn from(given: Given) -> Pending {
        Pending {
            portion: given.portion,
            past: given.past,
        }
    }
}

/// Inputs that no worker was given, in order. Usually there is one portion, or none.
#[derive(Debug, Default)]
pub(super) struct PendingQueue {
    front: Option<Pending>,
    rest: VecDeque<Pending>,
}

impl PendingQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    pub(super) fn front(&self) -> Option<&Pending> {
        self.front.as_ref()
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut Pending> {
        self.front.as_mut()
    }

    pub(super) fn pop_front(&mut self) -> Option<Pending> {
        let front = self.front.take();
        if !self.rest.is_empty() {
            self.front = self.rest.pop_front();
        }
        front
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pending> {
        self.front.iter().chain(&self.rest)
    }

    fn push_back(&mut self, pending: Pending) {
        match self.front {
            None => self.front = Some(pending),
            Some(_) => self.rest.push_back(pending),
        }
    }

    fn insert(&mut self, pending: Pending) {
        let first = pending.portion.first;
        match &self.front {
            None => self.front = Some(pending),
            Some(front) if front.portion.first > first => {
                if let Some(second) = self.front.replace(pending) {
                    self.rest.push_front(second);
                }
            }
            Some(_) => {
                let place = self.rest.partition_point(|next| next.portion.first < first);
                self.rest.insert(place, pending);
            }
        }
    }
}

/// The order of jobs: the lowest rank comes first. Among equal priorities, that is the oldest job.
type Rank = (Reverse<i32>, u64);

/// One job.
#[derive(Debug)]
pub(super) struct Queue {
    serial: u32,
    rank: Rank,
    pub(super) job: Job,
    pub(super) pending: PendingQueue,
    /// How many inputs these are.
    pub(super) pending_inputs: usize,
    /// Inputs that must not run before a pause is over: the length of the pause, and its end, once known.
    resting: Vec<(Duration, Option<Time>, Pending)>,
    /// Inputs without an outcome, pending or given.
    open: usize,
    /// More inputs may come.
    pub(super) more: bool,
    /// Its results are no longer wanted: inputs that are taken back are dropped.
    pub(super) abandoned: bool,
    /// The size of the last portion.
    pub(super) last_portion: usize,
    /// How many threads wait for outcomes, and for which.
    waiting: usize,
    wanted: Want,
    /// Outcomes that are wanted even if no thread waits.
    notify: Option<Want>,
    /// It is in `waiting`.
    listed: bool,
}

impl Queue {
    pub(super) fn want(&self) -> Option<Want> {
        if self.waiting > 0 {
            return Some(self.wanted);
        }
        self.notify
    }

    pub(super) fn is_done(&self) -> bool {
        self.open == 0 && !self.more
    }

    /// Puts inputs back where they were.
    fn insert(&mut self, pending: Pending) {
        self.pending_inputs += pending.portion.inputs.count();
        self.pending.insert(pending);
    }
}

/// All jobs, each in a place of its own.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    places: Vec<Option<Queue>>,
    free: Vec<u32>,
    opened: u64,
    /// Jobs with pending inputs, in the order of their ranks; and some that have none left.
    waiting: VecDeque<(Rank, JobId)>,
    /// How many have a [`want`](Queue::want).
    wanted: usize,
    /// The most that can have resting inputs.
    resting: usize,
    /// There was a job with another priority than most have.
    has_priorities: bool,
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    #[inline]
    pub(super) fn get(&self, id: JobId) -> Option<&Queue> {
        let queue = self.places.get(id.place as usize)?.as_ref()?;
        (queue.serial == id.serial).then_some(queue)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: JobId) -> Option<&mut Queue> {
        let queue = self.places.get_mut(id.place as usize)?.as_mut()?;
        (queue.serial == id.serial).then_some(queue)
    }

    /// Opens a job without inputs, whose first portion should have `first_portion / 4`.
    pub(super) fn open(&mut self, job: Job, first_portion: usize) -> JobId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u32
        });
        let id = JobId {
            place,
            serial: self.opened as u32,
        };
        self.places[place as usize] = Some(Queue {
            serial: id.serial,
            rank: (Reverse(job.options.priority), self.opened),
            job,
            pending: PendingQueue::default(),
            pending_inputs: 0,
            resting: Vec::new(),
            open: 0,
            more: true,
            abandoned: false,
            last_portion: first_portion,
            waiting: 0,
            wanted: Want::All,
            notify: None,
            listed: false,
        });
        self.opened += 1;
        self.has_priorities |= job.options.priority != 0;
        id
    }

    /// Whether a job may have priority over another.
    pub(super) fn has_priorities(&self) -> bool {
        self.has_priorities
    }

    /// Adds inputs after the others.
    pub(super) fn push(&mut self, id: JobId, inputs: Few<Portion>, submitted: Time) {
        let Some(queue) = self.get_mut(id) else {
            return;
        };
        for portion in inputs {
            let count = portion.inputs.count();
            queue.open += count;
            queue.pending_inputs += count;
            queue.pending.push_back(Pending {
                portion,
                past: Past::of(submitted),
            });
        }
        self.list(id);
    }

    /// Counts inputs that were given to a worker at once.
    pub(super) fn open_inputs(&mut self, id: JobId, count: usize) {
        if let Some(queue) = self.get_mut(id) {
            queue.open += count;
        }
    }

    /// Puts inputs back where they were.
    pub(super) fn put_back(&mut self, id: JobId, pending: Pending) {
        if let Some(queue) = self.get_mut(id) {
            queue.insert(pending);
            self.list(id);
        }
    }

    /// Keeps inputs from running until a pause is over.
    pub(super) fn rest(&mut self, id: JobId, pending: Pending, pause: Duration) {
        if let Some(queue) = self.get_mut(id) {
            queue.resting.push((pause, None, pending));
            self.resting += 1;
        }
    }

    /// Puts back inputs whose pause is over. Returns when the next pause ends.
    pub(super) fn wake_up(&mut self, now: Time) -> Option<Time> {
        if self.resting == 0 {
            return None;
        }
        let (mut next, mut left) = (None::<Time>, 0);
        for place in 0..self.places.len() {
            let Some(queue) = &mut self.places[place] else {
                continue;
            };
            let mut back = Vec::new();
            for (pause, until, pending) in mem::take(&mut queue.resting) {
                let until = until.unwrap_or_else(|| now.saturating_add(pause));
                if until <= now {
                    back.push(pending);
                } else {
                    next = Some(next.map_or(until, |next| next.min(until)));
                    left += 1;
                    queue.resting.push((pause, Some(until), pending));
                }
            }
            let id = JobId {
                place: place as u32,
                serial: queue.serial,
            };
            for pending in back {
                self.put_back(id, pending);
            }
        }
        self.resting = left;
        next
    }

    /// Lists a job that has pending inputs.
    fn list(&mut self, id: JobId) {
        let Some(queue) = self.get_mut(id) else {
            return;
        };
        if queue.listed || queue.pending.is_empty() {
            return;
        }
        queue.listed = true;
        let rank = queue.rank;
        let place = match self.waiting.back() {
            Some((last, _)) if *last > rank => self.waiting.partition_point(|(at, _)| *at < rank),
            _ => self.waiting.len(),
        };
        self.waiting.insert(place, (rank, id));
    }

    /// The number of places for jobs.
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// How many inputs no worker was given.
    pub(super) fn pending(&self) -> usize {
        let all = self.places.iter().flatten();
        let rest = |queue: &Queue| {
            let resting = queue.resting.iter();
            resting
                .map(|(_, _, next)| next.portion.inputs.count())
                .sum::<usize>()
        };
        all.map(|queue| queue.pending_inputs + rest(queue)).sum()
    }

    /// The first job that has inputs that no worker was given.
    pub(super) fn next(&mut self) -> Option<JobId> {
        while let Some((_, id)) = self.waiting.front() {
            let id = *id;
            match self.get_mut(id) {
                Some(queue) if !queue.pending.is_empty() => return Some(id),
                Some(queue) => queue.listed = false,
                None => {}
            }
            self.waiting.pop_front();
        }
        None
    }

    /// Whether there is such a job. (Exact after [`next`](Jobs::next); otherwise there may be none.)
    pub(super) fn has_pending(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn take_pending(&mut self, id: JobId) -> PendingQueue {
        self.get_mut(id)
            .map(|queue| {
                for (_, _, pending) in mem::take(&mut queue.resting) {
                    queue.insert(pending);
                }
                queue.pending_inputs = 0;
                mem::take(&mut queue.pending)
            })
            .unwrap_or_default()
    }

    /// Inputs have their outcome, or will have none.
    pub(super) fn close_inputs(&mut self, id: JobId, count: usize) {
        if let Some(queue) = self.get_mut(id) {
            queue.open -= count;
        }
    }

    pub(super) fn want(&mut self, id: JobId, want: Want) {
        self.change(id, |queue| {
            queue.waiting += 1;
            queue.wanted = want;
        });
    }

    pub(super) fn forget_want(&mut self, id: JobId) {
        self.change(id, |queue| queue.waiting = queue.waiting.saturating_sub(1));
    }

    pub(super) fn notify(&mut self, id: JobId, want: Want) {
        self.change(id, |queue| queue.notify = Some(want));
    }

    fn change(&mut self, id: JobId, change: impl FnOnce(&mut Queue)) {
        let Some(queue) = self.get_mut(id) else {
            return;
        };
        let before = queue.want().is_some();
        change(queue);
        let after = queue.want().is_some();
        self.wanted = self.wanted + usize::from(after) - usize::from(before);
    }

    /// Whether outcomes of any job are wanted.
    pub(super) fn any_wanted(&self) -> bool {
        self.wanted > 0
    }

    /// Ends a job.
    pub(super) fn remove(&mut self, id: JobId) {
        if let Some(queue) = self.get(id) {
            let (is_wanted, is_listed, rank) = (queue.want().is_some(), queue.listed, queue.rank);
            self.wanted -= usize::from(is_wanted);
            // The first entry of the list might stay there forever.
            if self.has_priorities
                && is_listed
                && let Ok(at) = self.waiting.binary_search_by_key(&rank, |(rank, _)| *rank)
            {
                self.waiting.remove(at);
            }
            self.places[id.place as usize] = None;
            self.free.push(id.place);
            if self.is_empty() && self.places.len() > KEPT {
                self.places = Vec::new();
                self.free = Vec::new();
            }
        }
    }

    /// Ends all jobs; returns the task of each, and its pending inputs.
    pub(super) fn remove_all(&mut self) -> Vec<(JobId, u32, PendingQueue)> {
        let ids: Vec<(JobId, u32)> = (0..)
            .zip(&self.places)
            .filter_map(|(place, queue)| {
                let queue = queue.as_ref()?;
                let serial = queue.serial;
                Some((JobId { place, serial }, queue.job.task))
            })
            .collect();
        let all = ids.into_iter().map(|(id, task)| {
            let pending = self.take_pending(id);
            self.remove(id);
            (id, task, pending)
        });
        let all = all.collect();
        self.waiting.clear();
        all
    }
}
