//! Statistics of workers, including those that are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use pool_worker::{Tallied, Witness, Worker};

use super::Shared;
use super::state::State;
use crate::backend::Tallies;
use crate::scheduler::{Counts, Lives, Located, Time};
use crate::stats::{self, Restarts, Running, Stats, TalliedTasks, WorkerState, WorkerStats};

/// What workers that are gone have counted.
#[derive(Debug, Default)]
pub(super) struct Past {
    times: TalliedTasks,
    /// How long inputs ran, by the position of the worker.
    busy: BTreeMap<usize, Duration>,
    sent: u64,
    received: u64,
}

impl Past {
    /// A worker that has answered this many inputs is gone from this position; `lost` is the run in which it died.
    pub(super) fn add(
        &mut self,
        place: usize,
        worker: &Worker,
        answered: Answered,
        lost: Option<LostRun>,
    ) {
        self.sent = self.sent.saturating_add(worker.sent());
        self.received = self.received.saturating_add(worker.received());
        let witness = worker.witness();
        let busy = add_times(&mut self.times, witness.tallied(), answered, lost);
        let before = self.busy.entry(place).or_default();
        *before = before.saturating_add(busy);
    }
}

/// How many inputs a worker has answered, wrapping around, and the task of the last one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answered {
    count: u32,
    task: Option<u32>,
}

/// A run that ended with the death of its worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct LostRun {
    /// Which of the inputs that the worker began it was.
    pub(super) number: u32,
    pub(super) input: Located,
    pub(super) began: Time,
    pub(super) ended: Time,
}

/// A worker measures at most this many inputs together.
const UNMEASURED_MAX: u32 = 64;

/// Adds what a worker has counted, and the run in which it died. Returns how long inputs ran in it.
fn add_times(
    times: &mut TalliedTasks,
    tallied: impl Iterator<Item = (u32, Tallied)>,
    answered: Answered,
    lost: Option<LostRun>,
) -> Duration {
    let (mut busy, mut ran, mut waited) = (0_u64, 0_u64, 0_u64);
    for (task, tallied) in tallied {
        busy = busy.saturating_add(tallied.ran.sum_ns);
        ran = ran.saturating_add(tallied.ran.count());
        waited = waited.saturating_add(tallied.waited.count());
        times.entry(task).or_default().merge(&tallied);
    }
    // The last inputs that it has answered are not measured yet, or never will be.
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
    if let Some(lost) = lost {
        // A worker may die between measuring an input and replying to it. Then it has counted one more than it has answered.
        let is_counted = |counted: u64| counted as u32 == answered.count.wrapping_add(1);
        let tallied = times.entry(lost.input.task).or_default();
        if !is_counted(ran) {
            let took = lost.ended.saturating_sub(lost.began);
            let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            tallied.ran.record(took);
            busy = busy.saturating_add(took);
        }
        if !is_counted(waited) {
            tallied.add_unknown(0, 1);
        }
    }
    Duration::from_nanos(busy)
}

/// When a worker began what it runs, if it read the clock last at `read_at`, and was ready at `ready`. It may lie: it can't have
/// begun before it was ready, nor later than now.
fn began(read_at: Time, ready: Time, now: Time) -> Time {
    read_at.min(now).max(ready)
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
    /// When the worker became ready.
    ready: Time,
    answered: Answered,
    running: Option<Located>,
}

impl State {
    /// The run in which the worker of this slot died, if it has begun this many inputs.
    pub(super) fn lost_run(
        &self,
        slot: usize,
        worker: &Worker,
        begun: Option<u32>,
    ) -> Option<LostRun> {
        let number = begun?;
        let input = self.scheduler.locate(slot, number)?;
        let ready = self.scheduler.ready_since(slot)?;
        let now = pool_worker::now();
        Some(LostRun {
            number,
            input,
            began: began(worker.witness().read_at(), ready, now),
            ended: now,
        })
    }

    /// What the worker of this slot has answered.
    pub(super) fn answered(&self, slot: usize) -> Answered {
        Answered {
            count: self.scheduler.answered_by(slot),
            task: self.scheduler.last_answered(slot).map(|last| last.task),
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
                ready: self.scheduler.ready_since(slot).unwrap_or_default(),
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
    pub(super) fn stats(&self) -> (Stats, Tallies) {
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
                let mut more = add_times(&mut times, witness.tallied(), seat.answered, None);
                if seat.running.is_some() {
                    more = more.saturating_add(since(witness, seat.ready, now));
                }
                let before = busy.entry(seat.place).or_default();
                *before = before.saturating_add(more);
            }
            // If a worker that exits has a successor, the successor is shown.
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
                        since: since(witness, seat.ready, now),
                    });
            }
        }
        for worker in &mut workers {
            let busy = busy.get(&worker.worker).copied().unwrap_or_default();
            let share = busy.as_secs_f64() / uptime.as_secs_f64().max(1e-9);
            worker.busy = share.clamp(0.0, 1.0);
        }
        let stats = Stats {
            uptime,
            queued,
            bytes_sent: sent,
            bytes_received: received,
            unenforced: self.launcher.unenforced().to_vec(),
            workers,
            tasks: stats::tasks(&counts, &times),
        };
        (stats, Tallies::new(&counts, times))
    }
}

/// How long a worker that became ready at `ready` has been running its current input.
fn since(witness: &Witness, ready: Time, now: Time) -> Duration {
    now.saturating_sub(began(witness.read_at(), ready, now))
}

/// Ranks the states of workers in one position: the highest is shown.
fn rank(state: WorkerState) -> u8 {
    match state {
        WorkerState::Absent => 0,
        WorkerState::Leaving => 1,
        WorkerState::Starting => 2,
        WorkerState::Idle => 3,
        WorkerState::Busy => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::JobId;

    const MS: Duration = Duration::from_millis(1);

    fn lost(task: u32) -> LostRun {
        LostRun {
            number: 4,
            input: Located {
                job: JobId {
                    place: 0,
                    serial: 0,
                },
                task,
                index: None,
            },
            began: 10 * MS,
            ended: 40 * MS,
        }
    }

    /// A worker has measured this many runs of task 2, 1 ms each.
    fn tallied(runs: u64) -> impl Iterator<Item = (u32, Tallied)> {
        let mut tallied = Tallied::default();
        for _ in 0..runs {
            tallied.ran.record(MS.as_nanos() as u64);
            tallied.waited.record(0);
        }
        std::iter::once((2, tallied))
    }

    const THREE: Answered = Answered {
        count: 3,
        task: Some(2),
    };

    /// By task: how many runs and waits there were, and the longest run.
    fn added(measured: u64, lost: Option<LostRun>) -> (Duration, Vec<(u32, u64, u64, Duration)>) {
        let mut times = TalliedTasks::new();
        let busy = add_times(&mut times, tallied(measured), THREE, lost);
        let times = times.iter().map(|(task, times)| {
            let longest = Duration::from_nanos(times.ran.max_ns);
            (*task, times.ran.count(), times.waited.count(), longest)
        });
        (busy, times.collect())
    }

    #[test]
    fn the_run_in_which_a_worker_died_counts_with_its_time() {
        assert_eq!(added(3, None), (3 * MS, vec![(2, 3, 3, MS)]));
        assert_eq!(added(3, Some(lost(2))), (33 * MS, vec![(2, 4, 4, 30 * MS)]));
        let another = vec![(2, 3, 3, MS), (7, 1, 1, 30 * MS)];
        assert_eq!(added(3, Some(lost(7))), (33 * MS, another));
        // Answered, but not measured.
        assert_eq!(added(1, Some(lost(2))), (31 * MS, vec![(2, 4, 4, 30 * MS)]));
        // Measured, but not answered: this is the run in which it died.
        assert_eq!(added(4, Some(lost(2))), (4 * MS, vec![(2, 4, 4, MS)]));
    }

    #[test]
    fn a_worker_can_not_have_begun_before_it_was_ready_or_later_than_now() {
        let (ready, now) = (10 * MS, 20 * MS);
        for (said, believed) in [(0, 10), (10, 10), (15, 15), (20, 20), (u32::MAX, 20)] {
            assert_eq!(began(MS * said, ready, now), MS * believed);
        }
        // Even if it became ready after the clock was read.
        assert_eq!(began(15 * MS, ready, 5 * MS), ready);
    }
}
