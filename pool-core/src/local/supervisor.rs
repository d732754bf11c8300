//! Starts workers, hears their first words, sees them die, and keeps the time: one thread for each pool.

use std::io;
use std::mem;
use std::thread;
use std::time::Duration;

use pool_worker::{Exit, Process, Said, Starting, TICK, Waker, Watch, Worker};

use super::Shared;
use super::preload::Keeper;
use super::state::State;
use crate::scheduler::{End, Time};

/// A dead process whose status can't be read yet is looked at again after this time; after so long without
/// one it is taken for what it is. (A debugger may keep the status to itself.)
const AGAIN: Duration = Duration::from_millis(20);
const UNREAD_MAX: Duration = Duration::from_millis(300);

/// So often is looked for room for what initializers need.
const ROOM_TICK: Duration = Duration::from_millis(1);

/// At the end those that were killed are waited for no longer than this, and looked at so often.
const BURIAL_MAX: Duration = Duration::from_secs(1);
const BURIAL_TICK: Duration = Duration::from_millis(2);

/// Where memory is limited, workers are looked at so often.
const MEMORY_TICK: Duration = Duration::from_millis(20);

/// What is watched.
#[derive(Clone, Copy)]
pub(super) enum Watched {
    /// The death of the worker of this serial number, wherever it sits by then.
    Death(u64),
    /// What the worker of this slot says before it is ready.
    Words(usize),
    ZygoteDeath,
    ZygoteWords,
    ZygoteOutput,
}

/// No worker has such a serial number, and no slot such a place.
const ZYGOTE_DEATH: u64 = u64::MAX - 1;
const ZYGOTE_WORDS: u64 = u64::MAX - 2;
const ZYGOTE_OUTPUT: u64 = u64::MAX - 3;

impl Watched {
    pub(super) fn mark(self) -> u64 {
        match self {
            Watched::Death(serial) => 2 * serial,
            Watched::Words(slot) => 2 * slot as u64 + 1,
            Watched::ZygoteDeath => ZYGOTE_DEATH,
            Watched::ZygoteWords => ZYGOTE_WORDS,
            Watched::ZygoteOutput => ZYGOTE_OUTPUT,
        }
    }

    fn of(mark: u64) -> Watched {
        match mark {
            ZYGOTE_DEATH => Watched::ZygoteDeath,
            ZYGOTE_WORDS => Watched::ZygoteWords,
            ZYGOTE_OUTPUT => Watched::ZygoteOutput,
            _ if mark.is_multiple_of(2) => Watched::Death(mark / 2),
            _ => Watched::Words((mark / 2) as usize),
        }
    }
}

/// What the supervisor knows of processes.
struct Supervisor<'s> {
    shared: &'s Shared,
    watch: &'s Watch,
    /// What has workers forked, if they are not started.
    keeper: Option<Keeper<'s>>,
    /// Those that are not ready yet.
    starting: Vec<Option<Starting>>,
    /// Dead since then, but how they ended can't be read yet.
    unread: Vec<(u64, Time)>,
    /// They can say nothing any more, for their initializer has closed what is not its own; what comes of it may stand
    /// in their rings yet.
    mute: Vec<usize>,
    /// Of no interest any more, but they must be buried.
    graves: Vec<Process>,
}

pub(super) fn supervise(shared: &Shared, watch: &Watch) {
    let seats = crate::sync::lock(&shared.state).scheduler.seats();
    let mut supervisor = Supervisor {
        shared,
        watch,
        keeper: shared
            .preload
            .as_ref()
            .map(|terms| Keeper::new(terms, &shared.launcher, watch)),
        starting: (0..seats).map(|_| None).collect(),
        unread: Vec::new(),
        mute: Vec::new(),
        graves: Vec::new(),
    };
    while supervisor.take_turn() {}
    shared.launcher.end();
    shared.launcher.bell().wake_collector();
    shared.outputs_waker.iter().for_each(Waker::wake);
    bury_all(&mut supervisor.graves);
}

/// Nobody looks at these any more after this: waits until all are buried, but not for long, for a debugger may hold a dead
/// process.
pub(super) fn bury_all<'p>(dead: impl IntoIterator<Item = &'p mut Process>) {
    let mut dead: Vec<_> = dead.into_iter().collect();
    let until = pool_worker::now() + BURIAL_MAX;
    loop {
        dead.retain_mut(|process| process.reap().is_none());
        if dead.is_empty() || pool_worker::now() >= until {
            return;
        }
        thread::sleep(BURIAL_TICK);
    }
}

impl Supervisor<'_> {
    /// Does what there is to do, then waits. False: all is over.
    fn take_turn(&mut self) -> bool {
        let unread = mem::take(&mut self.unread);
        for (serial, since) in unread {
            self.bury(serial, since);
        }
        self.graves.retain_mut(|process| process.reap().is_none());
        for slot in mem::take(&mut self.mute) {
            if !self.take_up(slot, Said::SetUp) {
                self.mute.push(slot);
            }
        }
        self.start_workers();
        // Nothing is over before the zygote is buried.
        if self.keeper.is_some() && crate::sync::lock(&self.shared.state).scheduler.is_over() {
            self.keeper = None;
        }
        let Some(timeout) = self.tick() else {
            return false;
        };
        if !crate::sync::lock(&self.shared.state).wanted.is_empty() {
            return true;
        }
        for mark in self.watch.wait(timeout) {
            match Watched::of(mark) {
                Watched::Words(slot) => self.hear(slot),
                Watched::ZygoteWords => self.keeper.iter_mut().for_each(Keeper::hear),
                Watched::ZygoteOutput => self.keeper.iter_mut().for_each(Keeper::read_output),
                Watched::ZygoteDeath => {
                    let unburied = self.keeper.as_mut().and_then(Keeper::bury);
                    self.graves.extend(unburied);
                }
                Watched::Death(serial) => {
                    let slot = self.shared.update(|state| {
                        let slot = state.slot_of(serial)?;
                        self.watch.remove(state.workers[slot].as_ref()?.pidfd());
                        Some(slot)
                    });
                    if let Some(slot) = slot {
                        // The last words of one that failed at its start.
                        self.hear(slot);
                        self.forget_words(slot);
                        self.mute.retain(|mute| *mute != slot);
                    }
                    self.bury(serial, pool_worker::now());
                }
            }
        }
        true
    }

    /// Keeps the time. Gives how long to wait at the most; nothing: all is over.
    fn tick(&self) -> Option<Option<Duration>> {
        let bounds = [
            (!self.unread.is_empty()).then_some(AGAIN),
            (!self.mute.is_empty()).then_some(AGAIN),
            (!self.graves.is_empty()).then_some(TICK),
        ];
        // In one with the actions that follow, so that they meet the workers that they are meant for.
        self.shared.update(|state| {
            state.collect();
            let undetached = !state.detach_freed();
            let unprepared = self.prepare_setups(state);
            let now = pool_worker::now();
            let workers = &state.workers;
            let limited = state.scheduler.limits_memory();
            let progress = |slot: usize| {
                let worker = workers[slot].as_ref();
                worker.map_or_else(Default::default, Worker::progress)
            };
            let memory = |slot: usize| workers[slot].as_ref()?.resident();
            let next = state.scheduler.tick(now, progress, memory);
            if state.scheduler.is_over() {
                if self.keeper.is_some() {
                    return Some(Some(Duration::ZERO));
                }
                state.end();
                state.announce();
                return None;
            }
            let busy = state.wants_patrol();
            state.patrolling = busy;
            let until = self.keeper.as_ref().and_then(Keeper::until);
            let next = next.into_iter().chain(until).min();
            let next = next.map(|at| at.saturating_sub(now));
            let patrol = if limited { MEMORY_TICK } else { TICK };
            let all = bounds.into_iter().chain([
                next,
                busy.then_some(patrol),
                unprepared.then_some(ROOM_TICK),
                undetached.then_some(AGAIN),
            ]);
            Some(all.flatten().min())
        })
    }

    /// Sends workers that start what their initializers need. True: there was not enough room.
    fn prepare_setups(&self, state: &mut State) -> bool {
        let starting = self.starting.iter().enumerate();
        let slots = starting.filter_map(|(slot, talk)| talk.is_some().then_some(slot));
        let mut short = false;
        for slot in slots {
            if let Some(worker) = &mut state.workers[slot] {
                short |= !self.shared.launcher.prepare_setup(worker);
                state.sent_to.push(slot);
                state.look_for_channels();
            }
        }
        short
    }

    /// Starts all workers that are wanted, one right after the other.
    fn start_workers(&mut self) {
        let wanted = mem::take(&mut crate::sync::lock(&self.shared.state).wanted);
        let Some(keeper) = &mut self.keeper else {
            for slot in wanted {
                let index = slot % self.shared.processes;
                let launched = self.shared.launcher.launch(index);
                self.seat(slot, launched.map_err(|error| error.to_string()));
            }
            return;
        };
        wanted.into_iter().for_each(|slot| keeper.want(slot));
        let is_open = crate::sync::lock(&self.shared.state)
            .scheduler
            .needs_workers();
        for forked in keeper.take_turn(is_open, pool_worker::now()) {
            self.seat(forked.slot, forked.worker);
        }
    }

    /// A worker was started for this slot, or could not be.
    fn seat(&mut self, slot: usize, launched: Result<(Worker, Starting), String>) {
        let launched = launched.and_then(|(worker, starting)| {
            self.watch_over(slot, worker, starting)
                .map_err(|error| error.to_string())
        });
        let now = pool_worker::now();
        self.shared.update(|state| match launched {
            Ok(worker) => {
                state.seat(slot, worker);
                state.note_started(slot);
                state.scheduler.started(slot, now);
            }
            Err(why) => {
                state.scheduler.start_failed(slot, why, now);
                state.announce();
            }
        });
    }

    fn watch_over(
        &mut self,
        slot: usize,
        mut worker: Worker,
        starting: Starting,
    ) -> io::Result<Worker> {
        let death = Watched::Death(worker.serial()).mark();
        let death = self.watch.add(worker.pidfd(), death);
        let watched = death.and_then(|()| {
            self.watch
                .add(starting.socket(), Watched::Words(slot).mark())
        });
        let watched = watched.and_then(|()| self.watch_output(&mut worker));
        match watched {
            Ok(()) => {
                self.starting[slot] = Some(starting);
                Ok(worker)
            }
            Err(error) => {
                self.watch.remove(worker.pidfd());
                worker.kill();
                self.graves.push(worker.into_process());
                Err(error)
            }
        }
    }

    /// What it prints is read from now on, if it comes here.
    fn watch_output(&self, worker: &mut Worker) -> io::Result<()> {
        let serial = worker.serial();
        let watched = self.shared.outputs.as_ref().zip(worker.capture());
        watched.map_or(Ok(()), |(watch, capture)| {
            capture.pipes().try_for_each(|pipe| watch.add(pipe, serial))
        })
    }

    /// Hears what a worker says before its first task.
    fn hear(&mut self, slot: usize) {
        let Some(talk) = &mut self.starting[slot] else {
            return;
        };
        let said = talk.hear();
        let is_gone = said == Said::Gone;
        let is_through = is_gone || said == Said::Ready;
        let is_known = self.take_up(slot, said);
        if is_known || is_through {
            self.forget_words(slot);
        }
        if is_gone && !is_known {
            self.mute.push(slot);
        }
    }

    /// Does what follows from what a worker has said. False: it has not come so far.
    fn take_up(&mut self, slot: usize, said: Said) -> bool {
        self.shared.update(|state| {
            let is_set_up = match said {
                Said::Nothing => None,
                Said::Ready => Some(Ok(())),
                Said::SetUp | Said::Gone => state.set_up(slot, &self.shared.initializers),
                Said::Unfit(why) => Some(Err(why)),
            };
            match is_set_up {
                None => {}
                Some(Ok(())) => {
                    state.note_ready(slot);
                    state.scheduler.ready(slot, pool_worker::now());
                    state.announce();
                    return true;
                }
                Some(Err(why)) => {
                    state.scheduler.refuse(slot, why);
                    return true;
                }
            }
            false
        })
    }

    fn forget_words(&mut self, slot: usize) {
        if let Some(talk) = self.starting[slot].take() {
            self.watch.remove(talk.socket());
        }
    }

    /// A worker is dead: what it has replied is taken up, then the scheduler learns of it. If how it ended can't
    /// be read yet, that comes later.
    fn bury(&mut self, serial: u64, since: Time) {
        let now = pool_worker::now();
        let later = now.saturating_sub(since) < UNREAD_MAX;
        let buried = self.shared.update(|state| {
            let Some(slot) = state.slot_of(serial) else {
                return Ok(None);
            };
            let exit = match state.workers[slot].as_mut().map(Worker::reap) {
                Some(None) if later => return Err(()),
                Some(exit) => exit.unwrap_or(Exit::Unknown),
                None => return Ok(None),
            };
            if let Some(worker) = &mut state.workers[slot] {
                worker.bar();
            }
            state.read_output(slot, true);
            state.take_replies(slot);
            // With its last reply it may have been let go, and have moved.
            state.act_all();
            let Some(slot) = state.slot_of(serial) else {
                return Ok(None);
            };
            #[cfg(feature = "tracing")]
            state.end_logs(slot);
            let Some(mut worker) = state.workers[slot].take() else {
                return Ok(None);
            };
            let progress = worker.progress();
            let has_begun = progress.begun > 0;
            let output = worker.capture().map(|capture| match has_begun {
                true => capture.take_text_of(progress.begun),
                false => capture.take_early_text(),
            });
            let end = End {
                pid: worker.pid(),
                exit,
                begun: (!progress.overwritten).then_some(progress.begun),
                initialized: worker.initialized(),
                starved: worker
                    .starved()
                    .filter(|_| exit.signal_name() == Some("SIGABRT")),
                output,
            };
            let place = state.scheduler.worker_of(slot);
            let answered = state.answered_and_lost(slot, end.begun);
            state.past.add(place, &worker, answered);
            let starved = end.starved.is_some_and(|starved| starved.limit < u64::MAX);
            state.note_broken_off(slot, &worker, end.begun, starved);
            state.scheduler.died(slot, end, now);
            state.keep_pipes(place, &mut worker);
            state.announce();
            Ok(Some(worker))
        });
        match buried {
            Ok(worker) => {
                let mut process = worker.map(Worker::into_process);
                let unburied = process.take_if(|process| process.reap().is_none());
                self.graves.extend(unburied);
            }
            Err(()) => self.unread.push((serial, since)),
        }
    }
}
