//! What is known of workers, those that are gone included, for whoever asks.

use std::collections::BTreeMap;
use std::time::Duration;

use pool_worker::{Witness, Worker};

use super::Shared;
use super::state::State;
use crate::scheduler::{Counts, Lives, Located, Time};
use crate::stats::{self, Restarts, Running, Stats, TalliedTasks, WorkerState, WorkerStats};

/// What workers have counted that are gone.
#[derive(Debug, Default)]
pub(super) struct Past {
    times: TalliedTasks,
    /// How long inputs ran, by the place of the worker.
    busy: BTreeMap<usize, Duration>,
    sent: u64,
    received: u64,
}

impl Past {
    /// A worker is gone from this place, which has answered so many inputs.
    pub(super) fn add(&mut self, place: usize, worker: &Worker, answered: Answered) {
        self.sent = self.sent.saturating_add(worker.sent());
        self.received = self.received.saturating_add(worker.received());
        let busy = add_times(&mut self.times, &worker.witness(), answered);
        let before = self.busy.entry(place).or_default();
        *before = before.saturating_add(busy);
    }
}

/// How many inputs a worker has answered, wrapping around, and of which task the last was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    count: u32,
    task: Option<u32>,
    /// The task in which it died.
    lost: Option<u32>,
}

/// A worker measures no more inputs than this together.
const UNMEASURED_MAX: u32 = 64;

/// Adds what a worker has counted. Gives how long inputs ran in it.
fn add_times(times: &mut TalliedTasks, witness: &Witness, answered: Answered) -> Duration {
    let (mut busy, mut ran, mut waited) = (0_u64, 0_u64, 0_u64);
    for (task, tallied) in witness.tallied() {
        busy = busy.saturating_add(tallied.ran.sum_ns);
        ran = ran.saturating_add(tallied.ran.count());
        waited = waited.saturating_add(tallied.waited.count());
        times.entry(task).or_default().merge(&tallied);
    }
    // The last that it has answered are not measured yet, or never.
    if let Some(task) = answered.task {
        let unmeasured = |counted: u64| {
            let missing = answered.count.wrapping_sub(counted as u32);
            if missing <= UNMEASURED_MAX {
                missing.into()
            } else {
                0
            }
        };
        let (ran, waited) = (unmeasured(ran), unmeasured(waited));
        if ran > 0 || waited > 0 {
            times.entry(task).or_default().add_unknown(ran, waited);
        }
    }
    if let Some(task) = answered.lost {
        times.entry(task).or_default().add_unknown(0, 1);
    }
    Duration::from_nanos(busy)
}

/// What is copied under the lock.
struct Snapshot {
    counts: Vec<Counts>,
    lives: Vec<Lives>,
    queued: usize,
    sent: u64,
    received: u64,
    times: TalliedTasks,
    busy: BTreeMap<usize, Duration>,
    slots: Vec<Seat>,
}

/// A slot that is not empty.
struct Seat {
    place: usize,
    state: WorkerState,
    witness: Option<Witness>,
    answered: Answered,
    running: Option<Located>,
}

impl State {
    /// What the worker of this slot has answered, and in what it died that had begun so many.
    pub(super) fn answered_and_lost(&self, slot: usize, begun: Option<u32>) -> Answered {
        let lost = begun.and_then(|begun| self.scheduler.locate(slot, begun));
        Answered {
            lost: lost.map(|lost| lost.task),
            ..self.answered(slot)
        }
    }

    /// What the worker of this slot has answered.
    fn answered(&self, slot: usize) -> Answered {
        Answered {
            count: self.scheduler.answered_by(slot),
            task: self.scheduler.last_answered(slot).map(|last| last.task),
            lost: None,
        }
    }

    fn snapshot(&self) -> Snapshot {
        let workers = self.workers.iter().flatten();
        let past = &self.past;
        let begun = |slot: usize| {
            let worker = self.workers[slot].as_ref();
            worker.map_or(0, |worker| worker.progress().begun)
        };
        let slots = (0..self.workers.len()).map(|slot| {
            let worker = self.workers[slot].as_ref();
            Seat {
                place: self.scheduler.worker_of(slot),
                state: self.scheduler.state_of(slot),
                witness: worker.map(Worker::witness),
                answered: self.answered(slot),
                running: self.scheduler.locate(slot, begun(slot)),
            }
        });
        let add = |before: u64, more: u64| before.saturating_add(more);
        Snapshot {
            counts: self.scheduler.counts().to_vec(),
            lives: self.scheduler.lives().to_vec(),
            queued: self.scheduler.queued(begun),
            sent: workers.clone().map(Worker::sent).fold(past.sent, add),
            received: workers.map(Worker::received).fold(past.received, add),
            times: past.times.clone(),
            busy: past.busy.clone(),
            slots: slots
                .filter(|seat| seat.state != WorkerState::Absent)
                .collect(),
        }
    }
}

impl Shared {
    pub(super) fn stats(&self) -> Stats {
        let Snapshot {
            counts,
            lives,
            queued,
            sent,
            received,
            mut times,
            mut busy,
            slots,
        } = self.update(|state| {
            state.collect();
            state.act_all();
            state.snapshot()
        });
        // Whatever workers have written by now: it is read without the lock.
        let now = pool_worker::now();
        let uptime = now.saturating_sub(self.began);
        let mut workers: Vec<WorkerStats> = (0..self.processes)
            .map(|place| WorkerStats {
                worker: place,
                done: lives.get(place).map_or(0, |lives| lives.done),
                restarts: lives.get(place).map(Restarts::from).unwrap_or_default(),
                ..WorkerStats::default()
            })
            .collect();
        for seat in &slots {
            let Some(worker) = workers.get_mut(seat.place) else {
                continue;
            };
            if let Some(witness) = &seat.witness {
                let mut more = add_times(&mut times, witness, seat.answered);
                if seat.running.is_some() {
                    more = more.saturating_add(since(witness, self.began, now));
                }
                let before = busy.entry(seat.place).or_default();
                *before = before.saturating_add(more);
            }
            // Of a worker that goes and its successor that is.
            if rank(seat.state) > rank(worker.state) {
                worker.state = seat.state;
                worker.pid = seat.witness.as_ref().map(Witness::pid);
                worker.resident = seat.witness.as_ref().and_then(Witness::resident);
                worker.running = seat
                    .running
                    .zip(seat.witness.as_ref())
                    .map(|(at, witness)| Running {
                        task: stats::task_name(at.task).to_owned(),
                        index: at.index,
                        since: since(witness, self.began, now),
                    });
            }
        }
        for worker in &mut workers {
            let busy = busy.get(&worker.worker).copied().unwrap_or_default();
            let share = busy.as_secs_f64() / uptime.as_secs_f64().max(1e-9);
            worker.busy = share.clamp(0.0, 1.0);
        }
        Stats {
            uptime,
            queued,
            bytes_sent: sent,
            bytes_received: received,
            workers,
            tasks: stats::tasks(&counts, &times),
        }
    }
}

/// For how long a worker has been running what it runs.
fn since(witness: &Witness, began: Time, now: Time) -> Duration {
    now.saturating_sub(witness.read_at().max(began))
}

/// Which of the states of two workers in one place is shown.
fn rank(state: WorkerState) -> u8 {
    match state {
        WorkerState::Absent => 0,
        WorkerState::Leaving => 1,
        WorkerState::Starting => 2,
        WorkerState::Idle => 3,
        WorkerState::Busy => 4,
    }
}
