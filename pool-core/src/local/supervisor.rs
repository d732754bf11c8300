//! Starts workers, reads their first messages, notices their deaths, and keeps the time: one thread for each pool.

use std::io;
use std::mem;
use std::thread;
use std::time::Duration;

use pool_worker::{Exit, Process, Said, Starting, TICK, Waker, Watch, Worker};

use super::Shared;
use super::output::Reach;
use super::preload::Keeper;
use super::state::State;
use crate::scheduler::{End, Time};

/// A dead process whose status can't be read yet is checked again after this time; after this long without a status, its end
/// counts as unknown. (A debugger may hold the status back.)
const AGAIN: Duration = Duration::from_millis(20);
const UNREAD_MAX: Duration = Duration::from_millis(300);

/// How often to check for room for what initializers need.
const ROOM_TICK: Duration = Duration::from_millis(1);

/// At the end, killed workers are waited for no longer than this, and checked this often.
const BURIAL_MAX: Duration = Duration::from_secs(1);
const BURIAL_TICK: Duration = Duration::from_millis(2);

/// How often workers are checked if memory is limited.
const MEMORY_TICK: Duration = Duration::from_millis(20);

/// While a timeline is recorded or workers log, what they report is read at least this often.
const NEWS_TICK: Duration = Duration::from_millis(5);

/// What is watched.
#[derive(Clone, Copy)]
pub(super) enum Watched {
    /// The death of the worker with this serial number, in whichever slot it is by then.
    Death(u64),
    /// Messages of the worker in this slot, before it is ready.
    Words(usize),
    ZygoteDeath,
    ZygoteWords,
    ZygoteOutput,
}

/// Not used as the serial number of a worker, nor as a slot.
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

/// What the supervisor knows about processes.
struct Supervisor<'s> {
    shared: &'s Shared,
    watch: &'s Watch,
    /// Has workers forked, if there is a preload task.
    keeper: Option<Keeper<'s>>,
    /// Workers that are not ready yet.
    starting: Vec<Option<Starting>>,
    /// Processes that are dead since then, but whose status can't be read yet.
    unread: Vec<(u64, Time)>,
    /// Workers that can say nothing any more, because an initializer has closed descriptors of the library; the outcome of the
    /// initializer may still be in their rings.
    mute: Vec<usize>,
    /// Processes that no longer matter, but must still be reaped.
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

/// Waits until all of these are reaped, since they are not checked again later; but not for long, since a debugger may hold a
/// dead process.
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
    /// Does whatever is due, then waits. Returns false if the pool has ended.
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
        // The pool has not ended before the zygote is reaped.
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
                        // The last message of a worker that failed at its start.
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

    /// Keeps the time. Returns how long to wait at most, or `None` if the pool has ended.
    fn tick(&self) -> Option<Option<Duration>> {
        let bounds = [
            (!self.unread.is_empty()).then_some(AGAIN),
            (!self.mute.is_empty()).then_some(AGAIN),
            (!self.graves.is_empty()).then_some(TICK),
        ];
        // In one step with the actions that follow, so that they reach the workers that they are meant for.
        self.shared.update(|state| {
            state.collect();
            let undetached = !state.detach_freed();
            let unprepared = self.prepare_setups(state);
            let now = pool_worker::now();
            state.note_cpu_times();
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
            let patrol = match limited {
                _ if state.wants_news_soon() => NEWS_TICK,
                true => MEMORY_TICK,
                false => TICK,
            };
            let all = bounds.into_iter().chain([
                next,
                busy.then_some(patrol),
                unprepared.then_some(ROOM_TICK),
                undetached.then_some(AGAIN),
            ]);
            Some(all.flatten().min())
        })
    }

    /// Sends starting workers what their initializers need. Returns true if there was not enough room.
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

    /// From now on, reads what the worker prints, if output is captured.
    fn watch_output(&self, worker: &mut Worker) -> io::Result<()> {
        let serial = worker.serial();
        let watched = self.shared.outputs.as_ref().zip(worker.capture());
        watched.map_or(Ok(()), |(watch, capture)| {
            capture.pipes().try_for_each(|pipe| watch.add(pipe, serial))
        })
    }

    /// Reads messages of a worker before its first task.
    fn hear(&mut self, slot: usize) {
        let Some(talk) = &mut self.starting[slot] else {
            return;
        };
        let said = talk.hear();
        let is_gone = said == Said::Gone;
        let has_finished = is_gone || said == Said::Ready;
        let is_known = self.take_up(slot, said);
        if is_known || has_finished {
            self.forget_words(slot);
        }
        if is_gone && !is_known {
            self.mute.push(slot);
        }
    }

    /// Handles a message of a worker. Returns false if it is incomplete.
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

    /// A worker is dead: processes its replies, then tells the scheduler. If its status can't be read yet, that is done
    /// later.
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
            state.read_output(slot, Reach::Last);
            state.take_replies(slot);
            // After its last reply, the worker may have been asked to exit, and have moved.
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
                forbidden: worker
                    .forbidden_call()
                    .filter(|_| exit.signal_name() == Some("SIGSYS")),
                output,
            };
            let place = state.scheduler.worker_of(slot);
            let answered = state.answered(slot);
            let lost = state.lost_run(slot, &worker, end.begun);
            state.past.add(place, &worker, answered, lost);
            let starved = end.starved.is_some_and(|starved| starved.limit < u64::MAX);
            state.note_broken_off(slot, worker.pid(), lost, starved);
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
