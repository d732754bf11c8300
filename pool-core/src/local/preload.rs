//! Forked workers: how the supervisor runs the zygote.
//!
//! A zygote is started when a worker is wanted and there is no zygote, and asked for one worker at a time. Each of its steps
//! has a deadline. A zygote that is late, sends something invalid or dies is killed, reaped, and started again:
//!
//! - at once, if it has forked a worker: the slots that wait for the next wait for its successor;
//! - otherwise when a worker is wanted again: the slots that waited have failed to start, and try again after a pause.
//!
//! So each new zygote follows from progress or from a pause, and there is no endless succession of them.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use pool_worker::{Exit, Heard, Launcher, Preload, Process, Starting, Watch, Worker, Zygote};

use super::supervisor::{Watched, bury_all};
use crate::backend::task_failed;
use crate::scheduler::{Time, with_last_line};

/// The outcome of a request for a worker.
pub(super) struct Forked {
    pub(super) slot: usize,
    pub(super) worker: Result<(Worker, Starting), String>,
}

/// How workers are forked.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) preload: Preload,
    /// The name of the task.
    pub(crate) name: String,
    /// How long each step of a zygote may take.
    pub(crate) timeout: Duration,
    pub(crate) processes: usize,
}

/// Runs a zygote, and starts another when it is gone.
pub(super) struct Keeper<'s> {
    terms: &'s Terms,
    launcher: &'s Launcher,
    watch: &'s Watch,
    zygote: Option<Zygote>,
    /// When it is late.
    until: Option<Time>,
    /// Why it was killed.
    why: Option<String>,
    has_forked: bool,
    /// A zygote should be started even if no slot waits.
    is_wanted: bool,
    /// Slots that wait for a worker. If the zygote has been asked for a worker, it is for the first of them.
    waiting: VecDeque<usize>,
    forked: Vec<Forked>,
}

impl<'s> Keeper<'s> {
    pub(super) fn new(terms: &'s Terms, launcher: &'s Launcher, watch: &'s Watch) -> Self {
        Keeper {
            terms,
            launcher,
            watch,
            zygote: None,
            until: None,
            why: None,
            has_forked: false,
            is_wanted: false,
            waiting: VecDeque::new(),
            forked: Vec::new(),
        }
    }

    /// A worker is wanted for this slot.
    pub(super) fn want(&mut self, slot: usize) {
        self.waiting.push_back(slot);
    }

    /// When it needs its next turn at the latest.
    pub(super) fn until(&self) -> Option<Time> {
        self.until
    }

    /// Does whatever is due. `is_open`: workers are still needed. Returns the outcomes of requests since the last turn.
    pub(super) fn take_turn(&mut self, is_open: bool, now: Time) -> Vec<Forked> {
        if !is_open {
            self.is_wanted = false;
            self.dismiss("no more workers are needed");
        } else if self.until.is_some_and(|until| until <= now) {
            let why = self.what_is_late();
            self.dismiss(&why);
        }
        while self.take_step(is_open, now) {}
        mem::take(&mut self.forked)
    }

    /// Returns false if there is nothing to do now.
    fn take_step(&mut self, is_open: bool, now: Time) -> bool {
        let Some(zygote) = &mut self.zygote else {
            if !is_open {
                self.fail_all("no more workers are needed");
            } else if !self.waiting.is_empty() || mem::take(&mut self.is_wanted) {
                self.start(now);
            }
            return false;
        };
        if self.why.is_some() || !zygote.is_idle() {
            return false;
        }
        let Some(slot) = self.waiting.front() else {
            return false;
        };
        match zygote.ask(self.launcher, slot % self.terms.processes) {
            Ok(()) => {
                self.until = now.checked_add(self.terms.timeout);
                false
            }
            Err(error) => {
                self.answer(Err(error.to_string()));
                true
            }
        }
    }

    fn start(&mut self, now: Time) {
        let started = Zygote::start(self.launcher, &self.terms.preload).and_then(|mut zygote| {
            let death = Watched::ZygoteDeath.mark();
            let watched = self.watch.add(zygote.process().pidfd(), death);
            let words = Watched::ZygoteWords.mark();
            let watched = watched.and_then(|()| self.watch.add(zygote.socket(), words));
            let output = Watched::ZygoteOutput.mark();
            let watched = watched.and_then(|()| {
                let mut pipes = zygote
                    .capture()
                    .into_iter()
                    .flat_map(|capture| capture.pipes());
                pipes.try_for_each(|pipe| self.watch.add(pipe, output))
            });
            if watched.is_err() {
                end(&mut zygote);
            }
            watched.map(|()| zygote)
        });
        match started {
            Ok(zygote) => {
                self.zygote = Some(zygote);
                self.until = now.checked_add(self.terms.timeout);
                self.why = None;
                self.has_forked = false;
                self.is_wanted = false;
            }
            Err(error) => self.fail_all(&error.to_string()),
        }
    }

    /// The outcome of the request of the first slot that waits.
    fn answer(&mut self, worker: Result<(Worker, Starting), String>) {
        if let Some(slot) = self.waiting.pop_front() {
            self.forked.push(Forked { slot, worker });
        }
    }

    fn fail_all(&mut self, why: &str) {
        while !self.waiting.is_empty() {
            self.answer(Err(why.to_owned()));
        }
    }

    /// Reads what the preload task prints, so that the task need not wait.
    pub(super) fn read_output(&mut self) {
        if let Some(capture) = self.zygote.as_mut().and_then(Zygote::capture) {
            capture.read();
        }
    }

    /// Kills the zygote. The rest is done when it is dead.
    fn dismiss(&mut self, why: &str) {
        self.until = None;
        if let Some(zygote) = &self.zygote {
            self.why.get_or_insert_with(|| why.to_owned());
            zygote.process().kill();
        }
    }

    fn what_is_late(&mut self) -> String {
        let pid = self
            .zygote
            .as_ref()
            .map_or(0, |zygote| zygote.process().pid());
        let Terms { name, timeout, .. } = self.terms;
        if let Some(zygote) = self.zygote.as_mut().filter(|zygote| zygote.is_loading()) {
            let why = format!(
                "the preload task `{name}`, in process {pid}, did not finish within {timeout:?}"
            );
            with_output(why, zygote)
        } else {
            format!("process {pid}, which forks the workers, did not respond within {timeout:?}")
        }
    }

    /// The zygote is dead. Returns its process if it still has to be reaped.
    pub(super) fn bury(&mut self) -> Option<Process> {
        self.hear();
        let mut zygote = self.zygote.take()?;
        self.until = None;
        self.watch.remove(zygote.process().pidfd());
        self.watch.remove(zygote.socket());
        let is_loading = zygote.is_loading();
        // If the status can't be read now, another process has it, such as a debugger.
        let exit = zygote.process_mut().reap();
        if let Some(last) = zygote.inherit(self.launcher) {
            self.has_forked |= last.is_ok();
            self.answer(last.map_err(|error| error.to_string()));
        }
        if self.has_forked {
            self.is_wanted = true;
        } else {
            let why = self.why.take().unwrap_or_else(|| {
                let (pid, name) = (zygote.process().pid(), &self.terms.name);
                let exit = exit.unwrap_or(Exit::Unknown);
                if is_loading {
                    let why = format!("process {pid} {exit} in the preload task `{name}`");
                    with_output(why, &mut zygote)
                } else {
                    format!("process {pid}, which forks the workers, {exit}")
                }
            });
            self.fail_all(&why);
        }
        exit.is_none().then(|| zygote.into_process())
    }

    /// Reads a message of the zygote.
    pub(super) fn hear(&mut self) {
        while let Some(zygote) = &mut self.zygote {
            let (name, pid) = (&self.terms.name, zygote.process().pid());
            match zygote.hear(self.launcher) {
                Heard::Nothing => return,
                Heard::Gone => {
                    self.watch.remove(zygote.socket());
                    return;
                }
                Heard::Loaded => self.until = None,
                Heard::Failed(fault) => {
                    let why = task_failed("the preload task", name, &fault);
                    let why = with_output(why, zygote);
                    return self.dismiss(&why);
                }
                Heard::Unfit(why) => {
                    let why = format!("process {pid}, with the preload task `{name}`: {why}");
                    return self.dismiss(&why);
                }
                Heard::Forked(worker) => {
                    self.until = None;
                    self.has_forked |= worker.is_ok();
                    self.answer((*worker).map_err(|error| error.to_string()));
                }
            }
        }
    }
}

/// Appends the last line that the zygote printed.
fn with_output(why: String, zygote: &mut Zygote) -> String {
    let output = zygote.capture().map(|capture| {
        capture.read_last();
        capture.take_early_text()
    });
    with_last_line(why, output.as_deref())
}

/// Kills the zygote, and waits until it is reaped, but not for long.
fn end(zygote: &mut Zygote) {
    zygote.process().kill();
    bury_all([zygote.process_mut()]);
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        let Some(mut zygote) = self.zygote.take() else {
            return;
        };
        self.watch.remove(zygote.process().pidfd());
        self.watch.remove(zygote.socket());
        end(&mut zygote);
        if let Some(Ok((worker, _))) = zygote.inherit(self.launcher) {
            worker.kill();
            bury_all([&mut worker.into_process()]);
        }
    }
}
