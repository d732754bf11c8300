//! Starts workers, waits for their deaths, and keeps the time: one thread for each pool.
//!
//! Time is limits of tasks, the deadline of a start, the pause before another try, the grace before
//! SIGKILL, and a look at the busy from time to time: whoever broke its own channel can't tell.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pool_worker::{Watch, Worker};

use super::mailbox::{during, read_mailbox, start_failed};
use super::{OF_A_POOL, STACK, Seat, Settings, Shared, State};
use crate::scheduler::Scheduler;

/// Busy workers are looked at this often.
const PATROL: Duration = Duration::from_secs(1);

/// Whoever has sent what is not understood for so many rounds is taken to have broken its channel.
/// Rounds, since a parent that was stopped, or starved, must not count the time.
const UNHEARD_MAX: u32 = 5;

/// A dead worker's mailbox is nudged this often, if it does not report the death.
const NUDGE: Duration = Duration::from_millis(100);

pub(super) fn supervise(shared: &Arc<Shared>, watch: &Watch) {
    OF_A_POOL.set(true);
    loop {
        clear_seats(shared);
        start_workers(shared);
        // In one with the actions that follow, so that they meet the workers that they are meant for.
        let watched = shared.update(|state| {
            if state.scheduler.is_over() && state.seats.iter().all(|seat| seat.worker.is_none()) {
                state.over = true;
                return None;
            }
            let (next, stuck) = keep_time(state, &shared.settings);
            let workers: Vec<Worker> = state
                .seats
                .iter()
                .filter_map(|seat| seat.worker.clone().filter(|_| !seat.gone))
                .filter(|worker| !worker.is_dead())
                .collect();
            let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
            Some((workers, timeout, stuck))
        });
        let Some((workers, timeout, stuck)) = watched else {
            shared.changed.notify_all();
            return;
        };
        // A nudge may have to wait for the mailbox, which may have to wait for the lock.
        for worker in stuck {
            worker.nudge();
        }
        watch.wait(&workers, timeout);
    }
}

/// Ends the threads of workers that are gone.
fn clear_seats(shared: &Shared) {
    let gone: Vec<_> = {
        let mut state = shared.lock();
        state
            .seats
            .iter_mut()
            .filter(|seat| seat.gone)
            .filter_map(|seat| {
                let next = Seat {
                    wanted: seat.wanted,
                    pause_until: seat.pause_until,
                    ..Seat::default()
                };
                std::mem::replace(seat, next).thread
            })
            .collect()
    };
    for thread in gone {
        // It has nothing left to do but to return.
        let _ = thread.join();
    }
}

/// Starts all workers that are wanted, one right after the other.
fn start_workers(shared: &Arc<Shared>) {
    let wanted: Vec<usize> = {
        let mut state = shared.lock();
        let now = Instant::now();
        let terminated = state.kill_at.is_some();
        let seats = state.seats.iter_mut().enumerate();
        seats
            .filter(|(_, seat)| seat.wanted && seat.worker.is_none())
            .filter(|(_, seat)| terminated || seat.pause_until.is_none_or(|until| until <= now))
            .map(|(slot, seat)| {
                seat.wanted = false;
                slot
            })
            .collect()
    };
    for slot in wanted {
        if shared.lock().kill_at.is_some() {
            shared.update(|state| state.scheduler.not_started(slot));
            continue;
        }
        let settings = &shared.settings;
        let launched = pool_worker::launch(slot, settings.initializer.clone());
        let started = launched.and_then(|(worker, mailbox)| {
            let mut state = shared.lock();
            let reader = {
                let shared = Arc::clone(shared);
                let worker = worker.clone();
                move || read_mailbox(&shared, slot, &worker, mailbox)
            };
            let thread = thread::Builder::new()
                .name(format!("pool-mailbox-{slot}"))
                .stack_size(STACK)
                .spawn(reader)
                .inspect_err(|_| worker.discard())?;
            // Terminated in the meantime: it is told like the others.
            if state.kill_at.is_some() {
                worker.kill();
            }
            let seat = &mut state.seats[slot];
            seat.worker = Some(worker);
            seat.thread = Some(thread);
            seat.ready_by = Instant::now().checked_add(settings.start_timeout);
            Ok(())
        });
        if let Err(error) = started {
            shared.update(|state| start_failed(state, slot, error.to_string()));
            shared.changed.notify_all();
        }
    }
}

/// Does what is due, and says when the next thing will be.
/// Also gives the dead workers whose mailboxes have not noticed.
fn keep_time(state: &mut State, settings: &Settings) -> (Option<Instant>, Vec<Worker>) {
    let mut stuck = Vec::new();
    let now = Instant::now();
    let clock = pool_worker::now();
    let mut next: Option<Instant> = None;
    let mut soonest = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));

    state.patrolling = false;
    for slot in 0..state.seats.len() {
        let seat = &mut state.seats[slot];
        if seat.wanted && seat.worker.is_none() {
            soonest(seat.pause_until.unwrap_or(now));
        }
        let Some(worker) = seat.worker.clone().filter(|_| !seat.gone) else {
            continue;
        };
        if let Some(at) = seat.ready_by {
            if at <= now {
                seat.ready_by = None;
                seat.failure.get_or_insert_with(|| {
                    let during = during(settings);
                    format!("process {} was not ready in time{during}", worker.pid())
                });
                worker.kill();
            } else {
                soonest(at);
            }
        }
        if let Some(at) = seat.leave_by {
            if at <= now {
                seat.leave_by = None;
                worker.kill();
            } else {
                soonest(at);
            }
        }
        if worker.is_dead() {
            let dead_at = *seat.dead_at.get_or_insert(now);
            if now >= dead_at + NUDGE {
                seat.dead_at = Some(now);
                stuck.push(worker);
            }
            soonest(now + NUDGE);
            continue;
        }
        if !state.scheduler.given(slot).is_empty() {
            state.patrolling = true;
            soonest(now + PATROL);
            seat.unheard = match (worker.unheard(), seat.unheard) {
                (Some(heard), Some((before, rounds))) if heard == before => {
                    // The supervisor wakes for other reasons too.
                    let due = now >= seat.patrolled_at + PATROL;
                    Some((heard, rounds + u32::from(due)))
                }
                (unheard, _) => unheard.map(|heard| (heard, 0)),
            };
            if now >= seat.patrolled_at + PATROL {
                seat.patrolled_at = now;
            }
            if seat
                .unheard
                .is_some_and(|(_, rounds)| rounds >= UNHEARD_MAX)
            {
                seat.unheard = None;
                state.scheduler.distrust(slot);
            }
        }
        // A limit past the end of time is none.
        let left = time_left(&mut state.scheduler, slot, &worker, clock);
        if let Some(at) = left.and_then(|left| now.checked_add(left)) {
            soonest(at);
        }
    }
    if let Some(at) = state.kill_at {
        if at <= now {
            for seat in &state.seats {
                if let Some(worker) = &seat.worker {
                    worker.kill();
                }
            }
        } else {
            soonest(at);
        }
    }
    (next, stuck)
}

/// Ends an input that is past its limit; otherwise says how long it has, or how long the next one
/// will have at least.
fn time_left(
    scheduler: &mut Scheduler,
    slot: usize,
    worker: &Worker,
    clock: Duration,
) -> Option<Duration> {
    if !scheduler.is_ready(slot) {
        return None;
    }
    let given = scheduler.given(slot);
    let shortest = given
        .iter()
        .filter_map(|given| given.task.options.time_limit)
        .min()?;
    let progress = worker.progress();
    let limit = scheduler
        .running(slot, progress.begun)
        .and_then(|running| scheduler.given(slot)[running].task.options.time_limit);
    let Some(limit) = limit else {
        return Some(shortest);
    };
    let ran = clock.saturating_sub(Duration::from_nanos(progress.begun_at_ns));
    let left = limit.saturating_sub(ran);
    if left.is_zero() {
        scheduler.overdue(slot, progress.begun);
    }
    Some(left.min(shortest))
}
