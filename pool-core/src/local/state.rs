//! What the lock of a pool guards: the scheduler, the workers, and the sinks of outcomes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use pool_worker::{Bell, Channel, Frames, Freed, Glance, Noted, Reports, Sleeper, Spin, Worker};

use super::output::{Lines, Orphans, Reach};
use crate::backend::{Job, JobId, LogLevel, Observer, Outcomes, Portion, Sink, task_failed};
use crate::few::Few;
use crate::scheduler::{Action, Mode, Rules, Scheduler, with_last_line};
use crate::sync::{self, Parker};

use super::stamp::Stamps;
use super::statistics::Past;
use super::watching::Watching;

/// If this many inputs were given to workers since the last look, some may have finished, and what is known about the
/// workers' backlogs is outdated.
const LOOK_AFTER: usize = 64;

pub(super) struct State {
    pub(super) scheduler: Scheduler,
    pub(super) workers: Vec<Option<Worker>>,
    /// What is known about workers that are gone.
    pub(super) past: Past,
    /// The observer that is told what happens, if there is one.
    pub(super) watching: Option<Watching>,
    /// Gives submissions their times.
    stamps: Stamps,
    pub(super) bell: Bell,
    /// Attachments that workers need not keep any more.
    freed: Arc<Freed>,
    /// The sinks of open jobs, by the place of the job.
    sinks: Vec<Option<Opened>>,
    /// Slots for which a process must be started.
    pub(super) wanted: Vec<usize>,
    /// Some thread looks at the rings, or sleeps on the bell.
    pub(super) has_leader: bool,
    /// How long the leader spins.
    pub(super) spin: Spin,
    pub(super) followers: Vec<Arc<Parker>>,
    /// Some thread sleeps, or is about to, and relies on being woken at [`Worker::set_wake_at`].
    pub(super) listening: bool,
    /// Idle workers may send messages.
    have_channels: bool,
    /// Which log records of workers are wanted.
    log_level: LogLevel,
    /// Some worker has logged something.
    pub(super) has_logged: bool,
    /// The observer that gets records that belong to no job.
    #[cfg_attr(
        not(feature = "tracing"),
        expect(dead_code, reason = "used for log records only")
    )]
    pub(super) observer: Option<Arc<dyn Observer>>,
    /// What each worker's `wake_at` was set to.
    armed: Vec<Option<u32>>,
    /// The supervisor checks the busy workers from time to time.
    pub(super) patrolling: bool,
    /// The supervisor has nothing more to do.
    pub(super) over: bool,
    /// Slots that were sent something, and may have to be woken.
    pub(super) sent_to: Vec<usize>,
    /// How many inputs had been given at the last look before a submission, and how many submissions there have been since.
    looked_at: usize,
    submits: usize,
    replies: VecDeque<Frames>,
    pub(super) lines: Lines,
    /// The pipes of dead workers, as long as processes that they left behind may write there.
    pub(super) orphans: Orphans,
    pub(super) effects: Box<Effects>,
}

/// The sink of a job; and the thread that draws the job's inputs, if known.
struct Opened {
    serial: u32,
    sink: Arc<dyn Sink>,
    drawn_by: u64,
}

/// What must be done after the lock is released.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) deliveries: Vec<(Arc<dyn Sink>, Outcomes)>,
    pub(super) sleepers: Vec<Sleeper>,
    /// Sinks that get nothing any more. Dropping one may drop values of the user.
    pub(super) forgotten: Vec<Arc<dyn Sink>>,
    /// Channels whose receivers wait for messages that have arrived.
    pub(super) awaited: Vec<Arc<Channel>>,
    /// Attachments that take a while to free.
    pub(super) freed: Vec<Noted>,
    pub(super) wake_supervisor: bool,
    /// Something was delivered that the leader may be waiting for, and that does not ring the bell.
    pub(super) leader_may_sleep: bool,
    /// Threads that wait for the end, or for the start, must check again.
    pub(super) over: bool,
}

impl State {
    pub(super) fn new(
        rules: Rules,
        bell: Bell,
        freed: Arc<Freed>,
        observer: Option<Arc<dyn Observer>>,
        watching: Option<Watching>,
        log_level: LogLevel,
    ) -> State {
        let slots = rules.seats();
        let mut scheduler = Scheduler::new(rules);
        if watching.is_some() {
            scheduler.tell_what_happens();
        }
        State {
            scheduler,
            workers: (0..slots).map(|_| None).collect(),
            past: Past::default(),
            watching,
            stamps: Stamps::default(),
            bell,
            freed,
            sinks: Vec::new(),
            wanted: Vec::new(),
            has_leader: false,
            spin: Spin::default(),
            followers: Vec::new(),
            listening: false,
            have_channels: false,
            log_level,
            has_logged: false,
            observer: observer.clone(),
            armed: vec![None; slots],
            patrolling: false,
            over: false,
            sent_to: Vec::new(),
            looked_at: 0,
            submits: 0,
            replies: VecDeque::new(),
            lines: Lines::to(observer),
            orphans: Orphans::default(),
            effects: Box::default(),
        }
    }

    /// Accepts a job, if the pool still accepts jobs.
    pub(super) fn submit(
        &mut self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Option<JobId> {
        if *self.scheduler.mode() != Mode::Open {
            return None;
        }
        self.collect_before_submitting();
        if job.log_level != self.log_level {
            self.set_log_level(job.log_level);
        }
        self.stamp();
        let id = self.scheduler.submit(job, inputs, more);
        self.open(id, sink);
        Some(id)
    }

    /// Notes when the inputs that are about to be submitted are accepted.
    #[inline]
    pub(super) fn stamp(&mut self) {
        let stamp = self.stamps.next(pool_worker::now);
        self.scheduler.stamp(stamp);
    }

    /// Stores the sink of a job.
    fn open(&mut self, id: JobId, sink: Arc<dyn Sink>) {
        let place = id.place as usize;
        if self.sinks.len() <= place {
            self.sinks.resize_with(place + 1, || None);
        }
        self.sinks[place] = Some(Opened {
            serial: id.serial,
            sink,
            drawn_by: sync::thread_number(),
        });
    }

    /// The sink of a job, if it still has one.
    #[cfg(feature = "tracing")]
    pub(super) fn sink_of(&self, job: JobId) -> Option<&Arc<dyn Sink>> {
        let opened = self.sinks.get(job.place as usize)?.as_ref()?;
        (opened.serial == job.serial).then_some(&opened.sink)
    }

    /// From now on, workers must report log records of this level.
    #[cold]
    fn set_log_level(&mut self, level: LogLevel) {
        self.log_level = level;
        for worker in self.workers.iter_mut().flatten() {
            worker.set_log_level(level);
        }
    }

    /// This thread draws the inputs of this job.
    pub(super) fn drawn_here(&mut self, job: JobId) {
        if let Some(Some(opened)) = self.sinks.get_mut(job.place as usize) {
            opened.drawn_by = sync::thread_number();
        }
    }

    /// Whether the end of the pool waits for inputs that only this thread can draw.
    pub(super) fn waits_for(&self, thread: u64) -> bool {
        (0..).zip(&self.sinks).any(|(place, opened)| {
            opened.as_ref().is_some_and(|opened| {
                let serial = opened.serial;
                opened.drawn_by == thread && self.scheduler.takes(JobId { place, serial })
            })
        })
    }

    // ---- replies ------------------------------------------------------------------------------

    /// Processes everything that workers have replied. Returns false if there was nothing.
    pub(super) fn collect(&mut self) -> bool {
        let mut any = false;
        for slot in 0..self.workers.len() {
            if self.is_heard(slot) {
                any |= self.collect_from(slot);
            }
        }
        any
    }

    /// Whether the worker of this slot may have written something.
    fn is_heard(&self, slot: usize) -> bool {
        self.scheduler.is_busy(slot)
            || self.hears_idle()
                && self.workers[slot]
                    .as_ref()
                    .is_some_and(|worker| worker.sends_messages() || worker.logs())
    }

    /// Whether an idle worker may have written something. Those that log ring the bell when they do.
    fn hears_idle(&self) -> bool {
        self.have_channels || self.hears_logs()
    }

    /// Whether workers may write something for which the collector must be woken. While the supervisor patrols, it collects
    /// what idle workers log, so that the collector need not be armed after every call.
    fn is_to_be_collected(&self) -> bool {
        self.scheduler.is_any_busy() || self.have_channels || self.hears_logs() && !self.patrolling
    }

    /// A subscriber listens to what workers log.
    pub(super) fn hears_logs(&self) -> bool {
        self.log_level > LogLevel::Off
    }

    /// Checks whether idle workers may send messages: those that are starting or exiting, or have kept a sender.
    pub(super) fn look_for_channels(&mut self) {
        let mut workers = self.workers.iter().flatten();
        self.have_channels = workers.any(Worker::sends_messages);
    }

    /// Whether workers must be checked from time to time.
    pub(super) fn wants_patrol(&self) -> bool {
        self.scheduler.wants_patrol() || self.have_channels
    }

    /// Before work is given out according to the known backlogs: looks for replies, if these may be outdated.
    pub(super) fn collect_before_submitting(&mut self) {
        let given = self.scheduler.given_in_all();
        if given.wrapping_sub(self.looked_at) >= LOOK_AFTER
            || self.scheduler.has_pending() && self.submits >= LOOK_AFTER
        {
            self.looked_at = given;
            self.submits = 0;
            self.collect();
            // Jobs that have finished with that leave their places to new ones.
            self.act_all();
        }
        self.submits += 1;
    }

    /// Processes what one worker has replied, and sends what there was no room for.
    pub(super) fn collect_from(&mut self, slot: usize) -> bool {
        let any = self.take_replies(slot);
        let wants_room = self.workers[slot].as_ref().is_some_and(Worker::wants_room);
        let sent = wants_room && self.send(slot);
        self.refuse_if_garbled(slot);
        any || sent
    }

    /// Tells the scheduler how much processor time workers have used, if that is limited.
    pub(super) fn note_cpu_times(&mut self) {
        if !self.scheduler.limits_cpu_time() {
            return;
        }
        for slot in 0..self.workers.len() {
            if let Some(used) = self.workers[slot].as_mut().and_then(Worker::cpu_time) {
                self.scheduler.note_cpu_time(slot, used);
            }
        }
    }

    /// Processes what one worker has replied.
    pub(super) fn take_replies(&mut self, slot: usize) -> bool {
        let Some(worker) = &mut self.workers[slot] else {
            return false;
        };
        if !worker.has_replies() {
            return false;
        }
        self.effects
            .sleepers
            .extend(worker.receive(&mut self.replies));
        self.effects.awaited.extend(worker.awaited());
        let reports = worker.reports();
        if let Some((task, each)) = worker.new_pace() {
            self.scheduler.observe(task, each);
        }
        let memory = worker.told_memory();
        // Reports are about inputs that have no answer yet.
        self.take_reports(slot, reports);
        self.scheduler.note_memory(slot, memory);
        if self.workers[slot]
            .as_mut()
            .is_some_and(|worker| worker.capture().is_some())
        {
            self.read_output(slot, Reach::Rest);
            while let Some(replies) = self.replies.pop_front() {
                self.answer_with_output(slot, replies);
            }
            self.forget_output(slot);
            return true;
        }
        while let Some(replies) = self.replies.pop_front() {
            self.scheduler.answered(slot, replies);
        }
        true
    }

    /// How many workers run an input of this job.
    pub(super) fn running(&self, job: JobId) -> usize {
        let slots = self.workers.iter().enumerate();
        let busy = slots.filter(|(slot, worker)| {
            self.scheduler.is_busy(*slot)
                && worker
                    .as_ref()
                    .is_some_and(|worker| self.scheduler.runs(*slot, worker.progress().begun, job))
        });
        busy.count()
    }

    fn take_reports(&mut self, slot: usize, reports: Vec<Reports>) {
        for reports in reports {
            match reports.kind {
                #[cfg(feature = "tracing")]
                pool_worker::report::LOG => self.take_logs(slot, &reports),
                _ => self.hear_of_inputs(slot, &reports),
            }
        }
    }

    /// The outcome of the initializers of a worker, which have these names, if the worker has reported it.
    pub(super) fn set_up(&mut self, slot: usize, names: &[String]) -> Option<Result<(), String>> {
        let worker = self.workers[slot].as_mut()?;
        let set_up = worker.set_up();
        self.effects.awaited.extend(worker.awaited());
        let reports = worker.reports();
        self.take_reports(slot, reports);
        let worker = self.workers[slot].as_mut()?;
        if let Some(why) = worker.garbled() {
            return Some(Err(why.to_owned()));
        }
        let name = names.get(worker.initialized()).map_or("", String::as_str);
        let failed = |fault| {
            let why = task_failed("its initializer", name, &fault);
            let output = worker.capture().map(|capture| {
                capture.read_rest();
                capture.take_early_text()
            });
            with_last_line(why, output.as_deref())
        };
        set_up.map(|result| result.map_err(failed))
    }

    fn refuse_if_garbled(&mut self, slot: usize) {
        if let Some(worker) = &self.workers[slot]
            && let Some(why) = worker.garbled()
        {
            self.scheduler.refuse(slot, why.to_owned());
        }
    }

    /// Handles that tell without the lock whether busy workers have replied; and how long the first worker to finish still
    /// has to do, if known. None if more than `most` are busy.
    pub(super) fn glances(&self, most: usize) -> (Few<Glance>, Option<Duration>) {
        let busy = (0..self.workers.len()).filter(|slot| self.scheduler.is_busy(*slot));
        if busy.clone().nth(most).is_some() {
            return (Few::default(), None);
        }
        let expected = busy.clone().map(|slot| self.scheduler.backlog(slot)).min();
        let glances = busy.filter_map(|slot| Some(self.workers[slot].as_ref()?.glance()));
        (glances.collect(), expected.flatten())
    }

    // ---- consequences -------------------------------------------------------------------------

    /// Carries out the scheduler's decisions, as far as that can be done under the lock.
    pub(super) fn settle(&mut self) {
        loop {
            self.act_all();
            // A thread that sleeps must be woken for what is new.
            if self.listening {
                if !self.arm() {
                    break;
                }
                fence(Ordering::SeqCst);
            } else if !self.has_leader && self.is_to_be_collected() {
                // No thread waits: from now on, the collector is woken.
                self.listen();
                self.bell.listen_as_collector();
            } else {
                break;
            }
            if !self.collect_what_would_ring() {
                break;
            }
        }
        while let Some(slot) = self.sent_to.pop() {
            if let Some(worker) = &self.workers[slot] {
                self.effects.sleepers.extend(worker.sleeper());
            }
        }
        self.effects.wake_supervisor |= self.scheduler.wants_tick() || self.scheduler.is_over();
        self.effects.leader_may_sleep = self.has_leader;
        self.tell_observer();
    }

    pub(super) fn act_all(&mut self) {
        while let Some(action) = self.scheduler.next_action() {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start { slot } => {
                self.wanted.push(slot);
                self.effects.wake_supervisor = true;
            }
            Action::Send { slot } => {
                self.send(slot);
                if !self.patrolling {
                    self.patrolling = true;
                    self.effects.wake_supervisor = true;
                }
            }
            Action::Recall { slot } => {
                let begun = self.workers[slot].as_mut().map_or(0, Worker::recall);
                // Inputs that have begun may have finished: then they were answered.
                self.take_replies(slot);
                self.scheduler.recalled(slot, begun);
            }
            Action::Move { from, to } => {
                self.workers[to] = self.workers[from].take();
                self.armed[to] = self.armed[from].take();
                self.note_move(from, to);
            }
            Action::Ask { slot } => {
                if let Some(worker) = &mut self.workers[slot] {
                    worker.ask_to_exit();
                    self.sent_to.push(slot);
                }
            }
            Action::Terminate { slot } => {
                if let Some(worker) = &mut self.workers[slot] {
                    worker.give_up_sending();
                    worker.terminate();
                }
            }
            Action::Kill { slot } => {
                if let Some(worker) = &mut self.workers[slot] {
                    worker.give_up_sending();
                    worker.kill();
                }
            }
            Action::Deliver {
                job,
                outcomes,
                last,
            } => {
                let Some(place) = self.sinks.get_mut(job.place as usize) else {
                    return;
                };
                debug_assert!(
                    place
                        .as_ref()
                        .is_none_or(|opened| opened.serial == job.serial)
                );
                let sink = if last {
                    place.take().map(|opened| opened.sink)
                } else {
                    place.as_ref().map(|opened| Arc::clone(&opened.sink))
                };
                if let Some(sink) = sink {
                    self.effects.deliveries.push((sink, outcomes));
                }
            }
            Action::Forget { job } => {
                let place = self.sinks.get_mut(job.place as usize);
                let forgotten = place.and_then(Option::take);
                let sink = forgotten.map(|opened| opened.sink);
                self.effects.forgotten.extend(sink);
            }
        }
    }

    /// Tells the workers what they need not keep any more. Returns false if there was not enough room.
    pub(super) fn detach_freed(&mut self) -> bool {
        let freed = self.freed.take();
        let has_news = !freed.is_empty();
        for freed in freed {
            for slot in 0..self.workers.len() {
                let had = self.workers[slot]
                    .as_mut()
                    .is_some_and(|worker| worker.detach(&freed));
                if had && freed.is_long() {
                    self.sent_to.push(slot);
                }
            }
            self.effects.freed.push(freed);
        }
        if has_news && self.have_channels {
            self.look_for_channels();
        }
        let mut all = true;
        for worker in self.workers.iter_mut().flatten() {
            all &= worker.detach_later();
        }
        all
    }

    /// There are no more workers.
    pub(super) fn end(&mut self) {
        self.over = true;
        let freed = self.freed.close();
        self.effects.freed.extend(freed);
    }

    /// Sends a worker what it was given, as far as there is room. Returns false if nothing was sent.
    fn send(&mut self, slot: usize) -> bool {
        let Some(worker) = &mut self.workers[slot] else {
            return false;
        };
        let before = worker.sent();
        let mut with_attachments = false;
        while let Some(given) = self.scheduler.next_to_send(slot) {
            with_attachments |= given.portion.inputs.has_attachments();
            let sent = worker.send(pool_worker::Portion {
                task: given.task,
                limited: given.options.time_limit.is_some(),
                inputs: &given.portion.inputs,
                skip: given.answered,
                submitted: given.submitted(),
            });
            if !sent {
                break;
            }
            self.scheduler.sent(slot);
        }
        let any = worker.sent() != before;
        // A worker that sleeps must also be told if there is not enough room.
        if (any || worker.wants_room()) && self.sent_to.last() != Some(&slot) {
            self.sent_to.push(slot);
        }
        // Detaching short ones is no reason to wake a worker, so it is done along with others.
        if with_attachments {
            self.look_for_channels();
            self.detach_freed();
        }
        any
    }

    /// Has busy workers ring when a thread has reason to look. Returns false if nothing has changed.
    fn arm(&mut self) -> bool {
        if !self.scheduler.is_watched() {
            return false;
        }
        let mut changed = false;
        for slot in 0..self.workers.len() {
            let wake_at = self.scheduler.wake_at(slot);
            let armed = self.armed[slot];
            // A later reply will do once this one has come.
            let sooner = match (wake_at, armed) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(at), Some(armed)) => {
                    let passed = self.scheduler.has_answered(slot, armed);
                    passed || (at.wrapping_sub(armed) as i32) < 0
                }
            };
            if sooner
                && let Some(at) = wake_at
                && let Some(worker) = &mut self.workers[slot]
            {
                worker.set_wake_at(at);
                self.armed[slot] = wake_at;
                changed = true;
            }
        }
        changed
    }

    /// A thread is going to sleep, and must be woken by the bell.
    pub(super) fn listen(&mut self) {
        self.listening = true;
        for slot in 0..self.workers.len() {
            let wake_at = self.scheduler.wake_at(slot);
            if self.armed[slot] != wake_at
                && let Some(worker) = &mut self.workers[slot]
            {
                // Half of all numbers away: never.
                let never = || self.scheduler.answered_by(slot).wrapping_add(1 << 30);
                worker.set_wake_at(wake_at.unwrap_or_else(never));
                self.armed[slot] = wake_at;
            }
        }
    }

    /// No thread sleeps.
    pub(super) fn attend(&mut self) {
        self.listening = false;
        self.bell.attend();
    }

    /// Processes replies for which workers would have rung the bell, had they known. Returns false if there are none.
    pub(super) fn collect_what_would_ring(&mut self) -> bool {
        let mut any = false;
        for slot in 0..self.workers.len() {
            if self.is_heard(slot)
                && let Some(worker) = &self.workers[slot]
                && worker.has_reason_to_ring()
            {
                // If this found nothing, a second look would find nothing either.
                any |= self.collect_from(slot);
            }
        }
        any
    }

    /// The slot of the worker with this serial number, if it is still here.
    pub(super) fn slot_of(&self, serial: u64) -> Option<usize> {
        let is_it = |worker: &Option<Worker>| {
            worker
                .as_ref()
                .is_some_and(|worker| worker.serial() == serial)
        };
        self.workers.iter().position(is_it)
    }

    /// Puts a fresh worker into its slot.
    pub(super) fn seat(&mut self, slot: usize, mut worker: Worker) {
        worker.set_log_level(self.log_level);
        self.workers[slot] = Some(worker);
        self.armed[slot] = None;
    }

    /// Threads that wait for the end, or for the start, must check again.
    pub(super) fn announce(&mut self) {
        self.effects.over = true;
    }

    /// Removes a follower.
    pub(super) fn unfollow(&mut self, parker: &Arc<Parker>) {
        self.followers.retain(|other| !Arc::ptr_eq(other, parker));
    }
}
