//! Workers that are forked: the zygote as the supervisor keeps it.
//!
//! It is started when a worker is wanted and there is none, and asked for one worker at a time. Each of its steps has
//! a deadline; one that is late, talks nonsense or dies is killed, buried, and started again:
//!
//! - at once, if it has forked a worker: whoever waits for the next waits for its successor;
//! - else when a worker is wanted again: whoever waited has failed to start, and tries again after a pause.
//!
//! So each further start of a zygote comes of progress or of a pause, and there is no endless succession.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use pool_worker::{Exit, Heard, Launcher, Preload, Process, Starting, Watch, Worker, Zygote};

use super::supervisor::{Watched, bury_all};
use crate::backend::task_failed;
use crate::scheduler::{Time, with_last_line};

/// What came of a wish for a worker.
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
    /// Each step of a zygote may take so long.
    pub(crate) timeout: Duration,
    pub(crate) processes: usize,
}

/// Keeps a zygote.
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
    /// One is to be started though nobody waits.
    is_wanted: bool,
    /// Slots that wait for a worker. If the zygote has been asked for one, it is for the first.
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

    /// When it wants a turn at the latest.
    pub(super) fn until(&self) -> Option<Time> {
        self.until
    }

    /// Does what there is to do. `is_open`: workers are still needed. Gives what came of wishes since the last turn.
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

    /// False: there is nothing to do now.
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

    /// What came of the wish of the first slot that waits.
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

    /// What the preload task prints is read, so that it need not wait.
    pub(super) fn read_output(&mut self) {
        if let Some(capture) = self.zygote.as_mut().and_then(Zygote::capture) {
            capture.read(false);
        }
    }

    /// Kills it. What follows comes with its death.
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
                "the preload task `{name}`, in process {pid}, was not through in {timeout:?}"
            );
            with_output(why, zygote)
        } else {
            format!("process {pid}, which forks the workers, did not answer in {timeout:?}")
        }
    }

    /// The zygote is dead. Gives what is still to be buried.
    pub(super) fn bury(&mut self) -> Option<Process> {
        self.hear();
        let mut zygote = self.zygote.take()?;
        self.until = None;
        self.watch.remove(zygote.process().pidfd());
        self.watch.remove(zygote.socket());
        let is_loading = zygote.is_loading();
        // If that can't be read now, somebody else has an eye on it.
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

    /// Hears what the zygote has said.
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

/// Why it failed, and what it printed last.
fn with_output(why: String, zygote: &mut Zygote) -> String {
    let output = zygote.capture().map(|capture| {
        capture.read(true);
        capture.take_early_text()
    });
    with_last_line(why, output.as_deref())
}

/// Kills it, and waits until it is buried, but not for long.
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
