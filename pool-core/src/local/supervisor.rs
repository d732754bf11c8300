//! Starts workers, hears their first words, sees them die, and keeps the time: one thread for each pool.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use pool_worker::{Said, Starting, TICK, Watch};

use super::Shared;
use crate::scheduler::End;

/// A dead process whose status can't be read yet is looked at again after this time.
const AGAIN: Duration = Duration::from_millis(20);

pub(super) fn supervise(shared: &Shared, watch: &Watch) {
    let seats = crate::sync::lock(&shared.state).scheduler.seats();
    let mut starting: Vec<Option<Starting>> = (0..seats).map(|_| None).collect();
    // Dead, but how they ended can't be read yet.
    let mut unread: Vec<usize> = Vec::new();
    loop {
        unread.retain(|slot| !bury(shared, *slot));
        start_workers(shared, &mut starting);
        // In one with the actions that follow, so that they meet the workers that they are meant for.
        let watched = shared.update(|state| {
            state.collect();
            let now = pool_worker::now();
            let workers = &state.workers;
            let next = state.scheduler.tick(now, |slot| {
                workers[slot]
                    .as_ref()
                    .map_or_else(Default::default, pool_worker::Worker::progress)
            });
            if state.scheduler.is_over() {
                state.over = true;
                state.announce();
                return None;
            }
            let busy = (0..state.workers.len()).any(|slot| state.scheduler.is_busy(slot));
            state.patrolling = busy;
            let mut timeout = next.map(|at| at.saturating_sub(now));
            for bound in [busy.then_some(TICK), (!unread.is_empty()).then_some(AGAIN)] {
                timeout = timeout.into_iter().chain(bound).min();
            }
            let pidfds: Vec<_> = (0..)
                .zip(&state.workers)
                .filter(|(slot, _)| !unread.contains(slot))
                .filter_map(|(slot, worker)| Some((slot, worker.as_ref()?.pidfd())))
                .collect();
            Some((pidfds, timeout))
        });
        let Some((pidfds, timeout)) = watched else {
            shared.launcher.bell().wake_collector();
            return;
        };
        if has_wanted(shared) {
            continue;
        }
        let talking: Vec<usize> = (0..starting.len())
            .filter(|slot| starting[*slot].is_some())
            .collect();
        let fds: Vec<BorrowedFd<'_>> = pidfds
            .iter()
            .map(|(_, pidfd)| pidfd.as_fd())
            .chain(talking.iter().filter_map(|slot| {
                let starting = starting[*slot].as_ref()?;
                Some(starting.socket())
            }))
            .collect();
        let ready = watch.wait(&fds, timeout);
        let (dead, spoken) = ready.split_at(pidfds.len());
        for (slot, _) in talking.iter().zip(spoken).filter(|(_, spoken)| **spoken) {
            hear(shared, *slot, &mut starting[*slot]);
        }
        for ((slot, _), _) in pidfds.iter().zip(dead).filter(|(_, dead)| **dead) {
            // The last words of one that failed at its start.
            hear(shared, *slot, &mut starting[*slot]);
            starting[*slot] = None;
            if !bury(shared, *slot) {
                unread.push(*slot);
            }
        }
    }
}

fn has_wanted(shared: &Shared) -> bool {
    !crate::sync::lock(&shared.state).wanted.is_empty()
}

/// Starts all workers that are wanted, one right after the other.
fn start_workers(shared: &Shared, starting: &mut [Option<Starting>]) {
    let wanted = std::mem::take(&mut crate::sync::lock(&shared.state).wanted);
    for slot in wanted {
        let launched = shared.launcher.launch(slot % shared.processes);
        let now = pool_worker::now();
        shared.update(|state| match launched {
            Ok((worker, talk)) => {
                state.seat(slot, worker);
                starting[slot] = Some(talk);
                state.scheduler.started(slot, now);
            }
            Err(error) => {
                state.scheduler.start_failed(slot, error.to_string(), now);
                state.announce();
            }
        });
    }
}

/// Hears what a worker says before its first task.
fn hear(shared: &Shared, slot: usize, starting: &mut Option<Starting>) {
    let Some(talk) = starting else {
        return;
    };
    let said = talk.hear();
    if matches!(said, Said::Gone | Said::Ready) {
        *starting = None;
    }
    let ready = shared.update(|state| {
        let is_set_up = match said {
            Said::Nothing => None,
            Said::Ready => Some(Ok(())),
            Said::SetUp | Said::Gone => state.set_up(slot, shared.initializer_name),
            Said::Unfit(why) => Some(Err(why)),
        };
        match is_set_up {
            None => {}
            Some(Ok(())) => {
                state.scheduler.ready(slot, pool_worker::now());
                state.announce();
                return true;
            }
            Some(Err(why)) => state.scheduler.refuse(slot, why),
        }
        false
    });
    if ready {
        *starting = None;
    }
}

/// A worker is dead: what it has replied is taken up, then the scheduler learns of it. False: how it ended
/// can't be read yet.
fn bury(shared: &Shared, slot: usize) -> bool {
    shared.update(|state| {
        let Some(exit) = state.workers[slot]
            .as_mut()
            .and_then(|worker| worker.reap())
        else {
            return false;
        };
        state.take_replies(slot);
        if let Some(worker) = state.workers[slot].take() {
            let end = End {
                pid: worker.pid(),
                exit,
                begun: worker.progress().begun,
            };
            state.scheduler.died(slot, end, pool_worker::now());
        }
        state.announce();
        true
    })
}
