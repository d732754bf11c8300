//! What the parent does with what a worker says, and with its death: one thread for each worker.

use std::time::{Duration, Instant};

use pool_worker::{Event, Exit, Fault, Mailbox, Worker};

use super::{OF_A_POOL, Settings, Shared, State};
use crate::scheduler::Mode;

/// After a failed start the next try waits this long.
const START_PAUSE: Duration = Duration::from_millis(100);

/// A worker that dies idle so soon after its start is not replaced at once.
const EARLY: Duration = Duration::from_secs(1);

pub(super) fn read_mailbox(shared: &Shared, slot: usize, worker: &Worker, mut mailbox: Mailbox) {
    OF_A_POOL.set(true);
    loop {
        match mailbox.receive() {
            Event::Ready => {
                shared.update(|state| {
                    let seat = &mut state.seats[slot];
                    seat.ready_at = Some(Instant::now());
                    seat.ready_by = None;
                    state.scheduler.ready(slot);
                });
                shared.changed.notify_all();
            }
            Event::Failed(fault) => {
                let why = initializer_failed(shared, &fault);
                let mut state = shared.lock();
                state.seats[slot].failure = Some(why);
                drop(state);
                worker.kill();
            }
            Event::Outcomes(report) => shared.update(|state| {
                let (outcomes, busy) = worker.accept(report);
                state.scheduler.answered(slot, outcomes, busy);
            }),
            Event::Garbled(why) => {
                shared.update(|state| {
                    state.seats[slot].failure.get_or_insert(why);
                    state.scheduler.distrust(slot);
                });
            }
            Event::Died(exit) => {
                shared.update(|state| bury(shared, state, slot, worker, exit));
                shared.waker.wake();
                shared.changed.notify_all();
                return;
            }
        }
    }
}

fn initializer_failed(shared: &Shared, fault: &Fault) -> String {
    let name = shared.settings.initializer_name;
    match fault {
        Fault::Panicked(panic) => {
            let at = match &panic.location {
                Some(location) => format!(" at {location}"),
                None => String::new(),
            };
            format!("its initializer `{name}` panicked{at}: {}", panic.message)
        }
        Fault::Decode(why) => {
            format!("the arguments of its initializer `{name}` can't be decoded: {why}")
        }
        Fault::Encode(why) => {
            format!("the result of its initializer `{name}` can't be encoded: {why}")
        }
        Fault::Unknown(why) => why.clone(),
    }
}

/// A worker is dead, and all that it said was heard.
fn bury(shared: &Shared, state: &mut State, slot: usize, worker: &Worker, exit: Exit) {
    let seat = &mut state.seats[slot];
    seat.gone = true;
    seat.ready_by = None;
    if let Some(ready_at) = seat.ready_at {
        let begun = worker.progress().begun;
        if begun == 0 && ready_at.elapsed() < EARLY {
            seat.pause_until = Some(Instant::now() + START_PAUSE);
        }
        state.scheduler.died(slot, begun, worker.pid(), exit);
        return;
    }
    let why = seat.failure.take().unwrap_or_else(|| {
        let during = during(&shared.settings);
        format!(
            "process {} {exit} before it was ready{during}",
            worker.pid()
        )
    });
    start_failed(state, slot, why);
}

/// Names the initializer, for a worker that never was ready.
pub(super) fn during(settings: &Settings) -> String {
    match settings.initializer {
        Some(_) => format!(" (initializer `{}`)", settings.initializer_name),
        None => String::new(),
    }
}

pub(super) fn start_failed(state: &mut State, slot: usize, why: String) {
    state.seats[slot].pause_until = Some(Instant::now() + START_PAUSE);
    state.scheduler.start_failed(slot, &why, pool_worker::now());
    state.start_error.get_or_insert(why);
    if matches!(state.scheduler.mode(), Mode::Broken(_)) {
        state.wind_up();
    }
}
