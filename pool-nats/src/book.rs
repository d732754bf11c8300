//! The parent's record of its jobs, loads and nodes, and the decisions that follow from events. No I/O: events in,
//! actions out.
//!
//! A *load* is the inputs that one node gets at once: whole chunks of one job, about as much as a worker does in
//! [`TARGET_NS`]. Only enough loads are published to keep all workers busy, plus a few; other inputs wait here. A load
//! that a node has taken stays with the node until it is done or the node is lost. If the load had begun by then, its
//! open inputs fail, or run again if retries allow; otherwise it is published again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use pool_core::backend::{Exit, Failure, Job, Outcomes, Portion, WorkerId};

use crate::wire::NodeId;

/// The time that a load should take a worker, in nanoseconds.
const TARGET_NS: u64 = 5_000_000;

/// The most inputs in a load. Until the pace of a task is known, a load holds one chunk.
const LOAD_MAX: usize = 16_384;

/// The most bytes in a load, unless a single chunk has more.
const LOAD_BYTES: usize = 192 << 10;

/// A load that no node has taken is published again after this many ticks.
const IDLE_MAX: u32 = 2;

/// After this many ticks without a node taking a load, the stream is considered stuck.
const STUCK: u32 = 6;

/// A load fails when this many nodes could not begin it.
const RETURNS_MAX: u32 = 10;

/// How many loads are published per worker, if `bytes_max` allows.
const AHEAD: usize = 3;

/// What the parent must do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Publish this load.
    Publish {
        load: u64,
        job: u64,
        what: Job,
        pieces: Vec<Portion>,
    },
    /// Pass these outcomes to the sink of the job.
    Deliver { job: u64, outcomes: Outcomes },
    /// The job is over: its sink gets nothing more.
    Over(u64),
    /// The load is done: remove it from the stream by publishing to this subject.
    Acknowledge(String),
    /// What was stored for this load is no longer needed.
    Forget(u64),
}

#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct Book {
    jobs: BTreeMap<u64, JobState>,
    loads: HashMap<u64, LoadState>,
    nodes: HashMap<String, NodeState>,
    next_load: u64,
    /// How many inputs are in no load.
    pending: usize,
    /// How long an input takes, in nanoseconds, by task number.
    paces: HashMap<u32, u64>,
    /// The number of the job that is served next.
    turn: u64,
    /// A job with a priority other than 0 has been submitted.
    has_priorities: bool,
    /// No load is published while the published ones hold this many bytes or more.
    bytes_max: usize,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct JobState {
    what: Job,
    pending: VecDeque<Portion>,
    more: bool,
    /// Inputs without outcomes.
    open: usize,
}

#[derive(Debug)]
struct LoadState {
    job: u64,
    pieces: Vec<Portion>,
    bytes: usize,
    /// Whether each input has its outcome, in the order of the pieces.
    answered: Vec<bool>,
    missing: usize,
    holder: Option<Holder>,
    /// How many nodes were lost while running it.
    losses: u32,
    /// How many ticks it has gone without a node.
    idle: u32,
    /// How many nodes could not begin it and returned it.
    returns: u32,
    /// It was published again, behind a load of higher priority.
    made_way: bool,
}

#[derive(Debug)]
struct Holder {
    node: String,
    ack: String,
    begun: bool,
}

#[derive(Debug)]
struct NodeState {
    node: NodeId,
    processes: usize,
}

impl Book {
    pub(crate) fn new(bytes_max: usize) -> Book {
        Book {
            jobs: BTreeMap::new(),
            loads: HashMap::new(),
            nodes: HashMap::new(),
            next_load: 0,
            pending: 0,
            paces: HashMap::new(),
            turn: 0,
            has_priorities: false,
            bytes_max,
            actions: Vec::new(),
        }
    }

    /// Returns what must be done since the last call.
    pub(crate) fn actions(&mut self) -> Vec<Action> {
        self.publish();
        std::mem::take(&mut self.actions)
    }

    /// Returns the number of workers on all nodes.
    pub(crate) fn workers(&self) -> usize {
        self.nodes.values().map(|node| node.processes).sum()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.values().map(|node| &node.node)
    }

    pub(crate) fn node(&self, id: &str) -> Option<&NodeId> {
        self.nodes.get(id).map(|state| &state.node)
    }

    /// Returns the number of inputs that are in no load that has begun.
    pub(crate) fn queued(&self) -> usize {
        let loads = self.loads.values().filter(|load| !load.has_begun());
        self.pending + loads.map(|load| load.missing).sum::<usize>()
    }

    /// Returns the number of inputs of a job that nodes run now, as far as loads tell: a worker runs a chunk at a time.
    pub(crate) fn running(&self, job: u64) -> usize {
        let Some(state) = self.jobs.get(&job) else {
            return 0;
        };
        let chunk = state.what.options.chunksize.unwrap_or(1);
        let mut by_node = HashMap::<&str, usize>::new();
        let loads = self.loads.values().filter(|load| load.job == job);
        for load in loads {
            if let Some(holder) = load.holder.as_ref().filter(|holder| holder.begun) {
                *by_node.entry(&holder.node).or_default() += load.missing.div_ceil(chunk);
            }
        }
        let by_node = by_node.into_iter();
        let processes = |node: &str| self.nodes.get(node).map_or(0, |node| node.processes);
        by_node
            .map(|(node, chunks)| chunks.min(processes(node)))
            .sum()
    }

    pub(crate) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Returns the number of inputs of a task that a worker runs in the time of one load.
    pub(crate) fn hint(&self, task: u32) -> usize {
        self.paces
            .get(&task)
            .map_or(1, |pace| (TARGET_NS / (*pace).max(1)) as usize)
            .clamp(1, LOAD_MAX)
    }

    pub(crate) fn submit(&mut self, job: u64, what: Job) {
        self.has_priorities |= what.options.priority != 0;
        self.jobs.insert(
            job,
            JobState {
                what,
                pending: VecDeque::new(),
                more: true,
                open: 0,
            },
        );
    }

    /// Adds inputs to a job, if it is open.
    pub(crate) fn push(&mut self, job: u64, inputs: impl Iterator<Item = Portion>, more: bool) {
        let Some(state) = self.jobs.get_mut(&job) else {
            return;
        };
        for portion in inputs {
            state.open += portion.inputs.count();
            self.pending += portion.inputs.count();
            state.pending.push_back(portion);
        }
        state.more = more;
        self.end_if_over(job);
    }

    fn end_if_over(&mut self, job: u64) {
        if let Some(state) = self.jobs.get(&job)
            && state.open == 0
            && !state.more
        {
            self.jobs.remove(&job);
            self.actions.push(Action::Over(job));
        }
    }

    /// Drops what is left of a job. With a failure, that becomes the outcome of its open inputs.
    pub(crate) fn cancel(&mut self, job: u64, failure: Option<Failure>) {
        let Some(state) = self.jobs.remove(&job) else {
            return;
        };
        let failure = failure.map(Arc::new);
        let mut fail = |first, count| {
            if let Some(failure) = &failure {
                self.actions.push(Action::Deliver {
                    job,
                    outcomes: Outcomes::failed(first, count, Arc::clone(failure)),
                });
            }
        };
        for portion in state.pending {
            self.pending -= portion.inputs.count();
            fail(portion.first, portion.inputs.count());
        }
        let (mut acknowledge, mut forget) = (Vec::new(), Vec::new());
        self.loads.retain(|number, load| {
            if load.job != job {
                return true;
            }
            forget.push(Action::Forget(*number));
            for position in load.unanswered() {
                fail(position, 1);
            }
            if let Some(holder) = load.holder.take() {
                acknowledge.push(holder.ack);
            }
            false
        });
        self.actions
            .extend(acknowledge.into_iter().map(Action::Acknowledge));
        self.actions.extend(forget);
        self.actions.push(Action::Over(job));
    }

    /// Ends all jobs with this failure.
    pub(crate) fn end(&mut self, failure: &Failure) {
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        for job in all {
            self.cancel(job, Some(failure.clone()));
        }
    }

    pub(crate) fn joined(&mut self, node: NodeId, processes: usize) {
        let id = node.id.clone();
        self.nodes.insert(id, NodeState { node, processes });
    }

    /// A node has received a load, which has not begun.
    pub(crate) fn took(&mut self, node: &str, load: u64, ack: String) {
        self.hold(node, load, ack);
    }

    /// Returns whether a load may begin on this node, and if so, marks it as begun. The node may ask again if the
    /// answer was lost.
    pub(crate) fn begin(&mut self, node: &str, load: u64, ack: String) -> bool {
        let makes_way = self.makes_way(load);
        let Some(holder) = self.hold(node, load, ack) else {
            return false;
        };
        if !makes_way || holder.begun {
            holder.begun = true;
            return true;
        }
        if let Some(state) = self.loads.get_mut(&load) {
            state.made_way = true;
            let holder = state.holder.take();
            let ack = holder.into_iter().map(|holder| holder.ack);
            self.actions.extend(ack.map(Action::Acknowledge));
            self.publish_again(load);
        }
        false
    }

    /// Whether a load should be published again instead of begun, because a load with a higher priority has no node.
    /// (Nodes get loads in the order of publication.) This happens once per load, since the other load may have been
    /// lost.
    fn makes_way(&self, load: u64) -> bool {
        let Some(state) = self.loads.get(&load).filter(|state| !state.made_way) else {
            return false;
        };
        let priority = self.priority(state.job);
        self.has_priorities
            && self
                .loads
                .values()
                .any(|other| other.holder.is_none() && self.priority(other.job) > priority)
    }

    fn priority(&self, job: u64) -> i32 {
        self.jobs
            .get(&job)
            .map_or(0, |job| job.what.options.priority)
    }

    /// Makes the node the holder of a load, unless another node is. Acknowledges deliveries that are no longer needed.
    fn hold(&mut self, node: &str, load: u64, ack: String) -> Option<&mut Holder> {
        if !self.nodes.contains_key(node) {
            // The node was declared lost, and its loads are elsewhere.
            return None;
        }
        let actions = &mut self.actions;
        let Some(state) = self.loads.get_mut(&load) else {
            actions.push(Action::Acknowledge(ack));
            return None;
        };
        state.idle = 0;
        let holder = state.holder.get_or_insert_with(|| Holder {
            node: node.to_owned(),
            ack: ack.clone(),
            begun: false,
        });
        if holder.ack != ack {
            let mut superfluous = ack;
            if holder.node == node {
                // It gave the load back, which will be heard later, or again, and has received it once more.
                holder.begun = false;
                std::mem::swap(&mut holder.ack, &mut superfluous);
            }
            actions.push(Action::Acknowledge(superfluous));
        }
        (holder.node == node).then_some(holder)
    }

    /// A node returns a load that it was allowed to begin: because it could not begin it, or because others may begin
    /// it sooner. The node may say so again if the answer was lost.
    pub(crate) fn returned(&mut self, node: &str, load: u64, ack: String, could_not: bool) {
        let holder = self.loads.get(&load).and_then(|load| load.holder.as_ref());
        if holder.is_some_and(|holder| holder.node == node && holder.ack != ack) {
            // It has received the load once more since, and may have begun it.
            self.actions.push(Action::Acknowledge(ack));
            return;
        }
        self.hold(node, load, ack.clone());
        if let Some(state) = self.loads.get_mut(&load)
            && let Some(holder) = state
                .holder
                .take_if(|holder| holder.node == node && holder.ack == ack)
        {
            self.actions.push(Action::Acknowledge(holder.ack));
            state.returns += u32::from(could_not);
            if state.returns < RETURNS_MAX {
                self.publish_again(load);
            } else {
                let why = "no node could fetch its data from the object store";
                self.refused(load, Failure::DecodeArguments(why.to_owned()));
            }
        }
    }

    /// Publishes all loads that no node has, since the server may have lost them.
    pub(crate) fn publish_all_again(&mut self) {
        let free = self.loads.iter().filter(|(_, load)| load.holder.is_none());
        let free: Vec<u64> = free.map(|(number, _)| *number).collect();
        for load in free {
            if let Some(state) = self.loads.get_mut(&load) {
                state.idle = 0;
            }
            self.publish_again(load);
        }
    }

    /// To be called once a second. If nodes hold fewer loads than there are workers, publishes loads again that no node
    /// has: they may have gone to a node that died or was stopped. Ignores loads for which `is_on_its_way` holds: they
    /// have not reached the server yet. Returns true if publishing again has not helped, so the stream is stuck.
    pub(crate) fn tick(&mut self, is_on_its_way: impl Fn(u64) -> bool) -> bool {
        let held = self.loads.values().filter(|load| load.holder.is_some());
        let mut room = self.workers().saturating_sub(held.count());
        let mut late = Vec::new();
        let mut is_stuck = false;
        for (number, load) in &mut self.loads {
            if load.holder.is_some() || room == 0 || is_on_its_way(*number) {
                continue;
            }
            room -= 1;
            load.idle += 1;
            is_stuck |= load.idle >= STUCK;
            if load.idle.is_multiple_of(IDLE_MAX) {
                late.push(*number);
            }
        }
        late.into_iter().for_each(|load| self.publish_again(load));
        is_stuck
    }

    fn publish_again(&mut self, load: u64) {
        if let Some(state) = self.loads.get(&load)
            && let Some(job) = self.jobs.get(&state.job)
        {
            self.actions.push(Action::Publish {
                load,
                job: state.job,
                what: job.what,
                pieces: state.pieces.clone(),
            });
        }
    }

    /// Records outcomes of a load. Returns the task number if they improve the estimate of how long that task takes.
    pub(crate) fn done(
        &mut self,
        node: &str,
        load: u64,
        outcomes: Outcomes,
        each_ns: u64,
    ) -> Option<u32> {
        let state = self.loads.get_mut(&load)?;
        // Outcomes from a node that was declared lost no longer count.
        if state
            .holder
            .as_ref()
            .is_none_or(|holder| holder.node != node)
        {
            return None;
        }
        let job = state.job;
        let (first, count) = (outcomes.first, outcomes.count());
        let fresh = state.answer(first, count)?;
        let mut task = None;
        if fresh {
            if let Some(job) = self.jobs.get_mut(&job) {
                job.open -= count;
                task = Some(job.what.task);
                let pace = self.paces.entry(job.what.task).or_insert(each_ns);
                *pace = pace.saturating_mul(3).saturating_add(each_ns) / 4;
            }
            self.actions.push(Action::Deliver { job, outcomes });
        }
        if state.missing == 0 {
            let done = self.loads.remove(&load);
            self.actions.push(Action::Forget(load));
            if let Some(holder) = done.and_then(|done| done.holder) {
                self.actions.push(Action::Acknowledge(holder.ack));
            }
            self.end_if_over(job);
        }
        task
    }

    /// Whether the outcomes of this job are still wanted.
    pub(crate) fn is_wanted(&self, job: u64) -> bool {
        self.jobs.contains_key(&job)
    }

    pub(crate) fn has_load(&self, load: u64) -> bool {
        self.loads.contains_key(&load)
    }

    /// Whether this node holds the load and the input at `first` still has no outcome.
    pub(crate) fn waits_for(&self, node: &str, load: u64, first: usize) -> bool {
        self.loads.get(&load).is_some_and(|load| {
            load.is_held_by(node) && load.unanswered().any(|position| position == first)
        })
    }

    /// A node is lost.
    pub(crate) fn lost(&mut self, node: &str, why: &str) {
        let Some(NodeState { node, .. }) = self.nodes.remove(node) else {
            return;
        };
        let held: Vec<u64> = self
            .loads
            .iter()
            .filter(|(_, load)| load.is_held_by(&node.id))
            .map(|(number, _)| *number)
            .collect();
        for number in held {
            self.lose(number, &node, why);
        }
    }

    fn lose(&mut self, number: u64, node: &NodeId, why: &str) {
        let Some(state) = self.loads.get_mut(&number) else {
            return;
        };
        let Some(holder) = state.holder.take() else {
            return;
        };
        if !holder.begun {
            self.actions.push(Action::Acknowledge(holder.ack));
            self.publish_again(number);
            return;
        }
        let Some(state) = self.loads.remove(&number) else {
            return;
        };
        self.actions.push(Action::Acknowledge(holder.ack));
        self.actions.push(Action::Forget(number));
        let losses = state.losses + 1;
        let Some(job) = self.jobs.get(&state.job) else {
            return;
        };
        if job.what.options.retries.go_on_after(losses) {
            let again = LoadState {
                job: state.job,
                bytes: state.bytes,
                losses,
                holder: None,
                idle: 0,
                returns: 0,
                made_way: false,
                missing: state.missing,
                answered: vec![false; state.missing],
                pieces: state.missing_pieces(),
            };
            self.publish_load(again);
            return;
        }
        let failure = Arc::new(Failure::Lost {
            worker: WorkerId {
                pid: node.pid,
                host: Some(node.host.clone()),
            },
            exit: Exit::Unknown,
            attempts: losses,
            why: Some(why.to_owned()),
            output: None,
        });
        self.fail(&state, failure);
    }

    /// Fails a load that can't be published or begun.
    pub(crate) fn refused(&mut self, number: u64, failure: Failure) {
        let Some(state) = self.loads.remove(&number) else {
            return;
        };
        self.actions.push(Action::Forget(number));
        self.fail(&state, Arc::new(failure));
    }

    /// Gives this failure to the open inputs of a load that has been removed.
    fn fail(&mut self, state: &LoadState, failure: Arc<Failure>) {
        if let Some(job) = self.jobs.get_mut(&state.job) {
            job.open -= state.missing;
        }
        for position in state.unanswered() {
            self.actions.push(Action::Deliver {
                job: state.job,
                outcomes: Outcomes::failed(position, 1, Arc::clone(&failure)),
            });
        }
        self.end_if_over(state.job);
    }

    /// Publishes as many loads as there is room for, taking turns among the jobs of the highest priority. Loads of
    /// lower priority take no room from them.
    fn publish(&mut self) {
        let room = self.workers() * AHEAD;
        let mut bytes: usize = self.loads.values().map(|load| load.bytes).sum();
        while bytes < self.bytes_max || self.loads.is_empty() {
            let (first, in_its_way) = if self.has_priorities {
                let ready = self.jobs.values().filter(|job| job.is_ready());
                let Some(first) = ready.map(|job| job.what.options.priority).max() else {
                    return;
                };
                let loads = self.loads.values();
                let in_its_way = loads.filter(|load| self.priority(load.job) >= first);
                (first, in_its_way.count())
            } else {
                (0, self.loads.len())
            };
            if in_its_way >= room {
                return;
            }
            let has = |(number, job): (&u64, &JobState)| {
                (job.what.options.priority == first && job.is_ready()).then_some(*number)
            };
            let next = self.jobs.range(self.turn..).find_map(has);
            let Some(number) = next.or_else(|| self.jobs.iter().find_map(has)) else {
                return;
            };
            self.turn = number + 1;
            bytes += self.cut(number);
        }
    }

    /// Publishes the next load of a job, and returns its size in bytes.
    fn cut(&mut self, number: u64) -> usize {
        let workers = self.workers().max(1);
        let task = self.jobs.get(&number).map_or(0, |job| job.what.task);
        let wanted = self.hint(task);
        let Some(job) = self.jobs.get_mut(&number) else {
            return 0;
        };
        let chunk = job.what.options.chunksize.unwrap_or(1);
        // Towards the end, loads get smaller so that every worker gets one.
        let waiting: usize = job.pending.iter().map(|some| some.inputs.count()).sum();
        let wanted = wanted.min(waiting.div_ceil(2 * workers)).max(1);
        let wanted = wanted.next_multiple_of(chunk);
        let mut pieces = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        while count < wanted && (bytes < LOAD_BYTES || !count.is_multiple_of(chunk)) {
            let Some(front) = job.pending.front_mut() else {
                break;
            };
            let taken = front.inputs.take_front(wanted - count);
            let first = front.first;
            front.first += taken.count();
            if front.inputs.count() == 0 {
                job.pending.pop_front();
            }
            count += taken.count();
            self.pending -= taken.count();
            bytes += taken.size();
            pieces.push(Portion {
                first,
                inputs: taken,
            });
        }
        self.publish_load(LoadState {
            job: number,
            pieces,
            bytes,
            answered: vec![false; count],
            missing: count,
            holder: None,
            losses: 0,
            idle: 0,
            returns: 0,
            made_way: false,
        });
        bytes
    }

    fn publish_load(&mut self, state: LoadState) {
        let Some(job) = self.jobs.get(&state.job) else {
            return;
        };
        let load = self.next_load;
        self.next_load += 1;
        self.actions.push(Action::Publish {
            load,
            job: state.job,
            what: job.what,
            pieces: state.pieces.clone(),
        });
        self.loads.insert(load, state);
    }
}

impl JobState {
    fn is_ready(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl LoadState {
    fn has_begun(&self) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.begun)
    }

    fn is_held_by(&self, node: &str) -> bool {
        self.holder
            .as_ref()
            .is_some_and(|holder| holder.node == node)
    }

    /// Returns the positions of all inputs, counted within the job.
    fn positions(&self) -> impl Iterator<Item = usize> {
        self.pieces
            .iter()
            .flat_map(|piece| piece.first..piece.first + piece.inputs.count())
    }

    fn unanswered(&self) -> impl Iterator<Item = usize> {
        let all = self.positions().zip(&self.answered);
        all.filter(|(_, answered)| !**answered)
            .map(|(position, _)| position)
    }

    /// Records outcomes. Returns whether they are new, or `None` if they don't match inputs of this load or only some
    /// are new.
    fn answer(&mut self, first: usize, count: usize) -> Option<bool> {
        let start = self.positions().position(|position| position == first)?;
        let end = start.checked_add(count)?;
        let contiguous = self.positions().nth(end.checked_sub(1)?)? == first + count - 1;
        let answered = self.answered.get_mut(start..end).filter(|_| contiguous)?;
        if answered.iter().all(|answered| *answered) {
            return Some(false);
        }
        if answered.iter().any(|answered| *answered) {
            return None;
        }
        answered.fill(true);
        self.missing -= count;
        Some(true)
    }

    /// Returns the inputs without outcomes.
    fn missing_pieces(&self) -> Vec<Portion> {
        let mut answered = self.answered.iter();
        let mut missing = Vec::new();
        for piece in &self.pieces {
            let mut rest = piece.inputs.clone();
            for position in piece.first..piece.first + piece.inputs.count() {
                let inputs = rest.take_front(1);
                if answered.next() == Some(&false) {
                    missing.push(Portion {
                        first: position,
                        inputs,
                    });
                }
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pool_core::backend::{Frames, LogLevel, Options, Retries};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Events in a world whose server forgets and repeats things.
    #[derive(Debug, Clone)]
    enum Step {
        Submit {
            inputs: usize,
            chunk: Option<usize>,
            retries: u32,
            priority: i32,
        },
        Push {
            job: usize,
            inputs: usize,
            more: bool,
        },
        Cancel {
            job: usize,
            running: bool,
        },
        Join,
        /// The server delivers a load to a node.
        Give {
            node: usize,
            at: usize,
        },
        /// The server delivers a load again, having forgotten the first time.
        GiveAgain {
            node: usize,
            at: usize,
        },
        Begin {
            node: usize,
            at: usize,
        },
        Finish {
            node: usize,
            at: usize,
            part: bool,
        },
        /// The node reports the same outcome again.
        FinishAgain {
            at: usize,
        },
        /// A node returns a load. The parent may not hear it before the node repeats it.
        Return {
            node: usize,
            at: usize,
            is_heard: bool,
        },
        ReturnAgain {
            at: usize,
        },
        Lose {
            node: usize,
        },
        /// The server loses a load that no node has.
        Forget {
            at: usize,
        },
        Tick,
        Renew,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let at = 0..8_usize;
        let step = prop_oneof![
            2 => (0..40_usize, prop_oneof![Just(None), (1..5_usize).prop_map(Some)], 0..2_u32, -1..2_i32)
                .prop_map(|(inputs, chunk, retries, priority)| Step::Submit { inputs, chunk, retries, priority }),
            1 => (at.clone(), 0..20_usize, any::<bool>())
                .prop_map(|(job, inputs, more)| Step::Push { job, inputs, more }),
            1 => (at.clone(), any::<bool>()).prop_map(|(job, running)| Step::Cancel { job, running }),
            2 => Just(Step::Join),
            8 => (at.clone(), at.clone()).prop_map(|(node, at)| Step::Give { node, at }),
            2 => (at.clone(), at.clone()).prop_map(|(node, at)| Step::GiveAgain { node, at }),
            8 => (at.clone(), at.clone()).prop_map(|(node, at)| Step::Begin { node, at }),
            8 => (at.clone(), at.clone(), any::<bool>())
                .prop_map(|(node, at, part)| Step::Finish { node, at, part }),
            1 => at.clone().prop_map(|at| Step::FinishAgain { at }),
            2 => (at.clone(), at.clone(), any::<bool>())
                .prop_map(|(node, at, is_heard)| Step::Return { node, at, is_heard }),
            1 => at.clone().prop_map(|at| Step::ReturnAgain { at }),
            1 => at.clone().prop_map(|node| Step::Lose { node }),
            1 => at.clone().prop_map(|at| Step::Forget { at }),
            1 => Just(Step::Tick),
            1 => Just(Step::Renew),
        ];
        vec(step, 0..150)
    }

    #[derive(Debug, Clone)]
    struct Given {
        load: u64,
        job: u64,
        ack: String,
        positions: Vec<usize>,
        begun: bool,
        told: usize,
    }

    #[derive(Debug, Default)]
    struct World {
        book: Book,
        /// What the server holds: loads, their jobs, and the positions of their inputs.
        stream: Vec<(u64, u64, Vec<usize>)>,
        /// What the server has delivered.
        given: Vec<(u64, u64, Vec<usize>)>,
        /// What each living node holds.
        nodes: BTreeMap<String, Vec<Given>>,
        next: u64,
        jobs: Vec<u64>,
        feeding: Vec<u64>,
        pushed: BTreeMap<u64, usize>,
        retries: BTreeMap<u64, u32>,
        /// How often each input has begun, and how many outcomes it has.
        begun: BTreeMap<(u64, usize), u32>,
        outcomes: BTreeMap<(u64, usize), u32>,
        /// Jobs that are over, and jobs whose outcomes are not wanted.
        over: Vec<u64>,
        abandoned: Vec<u64>,
        told: Vec<(String, u64, usize, usize)>,
        /// The nodes, numbers and acknowledgements of loads that were returned, perhaps without the parent hearing it.
        returned: Vec<(String, u64, String)>,
    }

    fn frames(count: usize) -> Frames {
        let mut frames = Frames::default();
        for _ in 0..count {
            let pushed = frames.push(|out| {
                out.push(7);
                Ok::<_, ()>(None)
            });
            assert_eq!(pushed, Ok(None));
        }
        frames
    }

    impl World {
        fn number(&mut self) -> u64 {
            self.next += 1;
            self.next
        }

        fn push(&mut self, job: u64, inputs: usize, more: bool) {
            let first = self.pushed.entry(job).or_default();
            let portion = Portion {
                first: *first,
                inputs: frames(inputs),
            };
            *first += inputs;
            self.book
                .push(job, (inputs > 0).then_some(portion).into_iter(), more);
            if !more {
                self.feeding.retain(|feeding| *feeding != job);
            }
        }

        fn act(&mut self) {
            for action in self.book.actions() {
                match action {
                    Action::Publish {
                        load, job, pieces, ..
                    } => {
                        let positions = pieces
                            .iter()
                            .flat_map(|piece| piece.first..piece.first + piece.inputs.count());
                        self.stream.push((load, job, positions.collect()));
                    }
                    Action::Deliver { job, outcomes } => {
                        assert!(!self.over.contains(&job), "an outcome after the end");
                        for position in outcomes.first..outcomes.first + outcomes.count() {
                            *self.outcomes.entry((job, position)).or_default() += 1;
                        }
                    }
                    Action::Over(job) => self.over.push(job),
                    Action::Acknowledge(_) | Action::Forget(_) => {}
                }
            }
        }

        fn pick(&self, node: usize) -> Option<String> {
            self.nodes
                .keys()
                .nth(node % self.nodes.len().max(1))
                .cloned()
        }

        fn give(&mut self, node: usize, (load, job, positions): (u64, u64, Vec<usize>)) {
            let Some(node) = self.pick(node) else {
                self.stream.push((load, job, positions));
                return;
            };
            let ack = self.number().to_string();
            self.given.push((load, job, positions.clone()));
            let has = self.nodes.get_mut(&node).unwrap();
            if has.iter().any(|given| given.load == load) {
                // The node notices the duplicate itself.
                return;
            }
            has.push(Given {
                load,
                job,
                ack: ack.clone(),
                positions,
                begun: false,
                told: 0,
            });
            self.book.took(&node, load, ack);
        }

        fn begin(&mut self, node: &str, at: usize) {
            let given = self.nodes.get_mut(node).unwrap();
            if given.is_empty() {
                return;
            }
            let at = at % given.len();
            if given[at].begun {
                return;
            }
            let (load, ack) = (given[at].load, given[at].ack.clone());
            if !self.book.begin(node, load, ack) {
                self.nodes.get_mut(node).unwrap().remove(at);
                return;
            }
            let given = &mut self.nodes.get_mut(node).unwrap()[at];
            given.begun = true;
            for position in &given.positions {
                *self.begun.entry((given.job, *position)).or_default() += 1;
            }
        }

        fn finish(&mut self, node: &str, at: usize, part: bool) {
            let given = self.nodes.get_mut(node).unwrap();
            if given.is_empty() {
                return;
            }
            let at = at % given.len();
            if !given[at].begun {
                return;
            }
            let load = given[at].load;
            let left = given[at].positions.len() - given[at].told;
            let tell = if part { 1 } else { left };
            for _ in 0..tell {
                let given = &mut self.nodes.get_mut(node).unwrap()[at];
                let position = given.positions[given.told];
                given.told += 1;
                self.tell(node, load, position);
                self.told.push((node.to_owned(), load, position, 1));
            }
            let given = self.nodes.get_mut(node).unwrap();
            if given[at].told == given[at].positions.len() {
                given.remove(at);
            }
        }

        fn tell(&mut self, node: &str, load: u64, position: usize) {
            let outcomes =
                Outcomes::failed(position, 1, Arc::new(Failure::EncodeResult(String::new())));
            self.book.done(node, load, outcomes, 1_000_000);
        }

        fn step(&mut self, step: Step) {
            match step {
                Step::Submit {
                    inputs,
                    chunk,
                    retries,
                    priority,
                } => {
                    let job = self.number();
                    let options = Options {
                        chunksize: chunk,
                        retries: Retries::new(retries),
                        priority,
                        ..Options::default()
                    };
                    self.book.submit(
                        job,
                        Job {
                            task: 1,
                            single: false,
                            options,
                            log_level: LogLevel::Off,
                        },
                    );
                    self.jobs.push(job);
                    self.feeding.push(job);
                    self.retries.insert(job, retries);
                    self.push(job, inputs, true);
                }
                Step::Push { job, inputs, more } => {
                    if !self.feeding.is_empty() {
                        let job = self.feeding[job % self.feeding.len()];
                        self.push(job, inputs, more);
                    }
                }
                Step::Cancel { job, running } => {
                    if !self.jobs.is_empty() {
                        let job = self.jobs[job % self.jobs.len()];
                        if !self.over.contains(&job) && !running {
                            self.abandoned.push(job);
                        }
                        self.feeding.retain(|feeding| *feeding != job);
                        self.book.cancel(job, running.then_some(Failure::Cancelled));
                    }
                }
                Step::Join => {
                    let id = self.number().to_string();
                    let host = "here".to_owned();
                    self.book.joined(
                        NodeId {
                            id: id.clone(),
                            host,
                            pid: 1,
                        },
                        2,
                    );
                    self.nodes.insert(id, Vec::new());
                }
                Step::Give { node, at } => {
                    if !self.stream.is_empty() {
                        let load = self.stream.remove(at % self.stream.len());
                        self.give(node, load);
                    }
                }
                Step::GiveAgain { node, at } => {
                    if !self.given.is_empty() && !self.nodes.is_empty() {
                        let load = self.given[at % self.given.len()].clone();
                        self.give(node, load);
                    }
                }
                Step::Begin { node, at } => {
                    if let Some(node) = self.pick(node) {
                        self.begin(&node, at);
                    }
                }
                Step::Finish { node, at, part } => {
                    if let Some(node) = self.pick(node) {
                        self.finish(&node, at, part);
                    }
                }
                Step::FinishAgain { at } => {
                    if !self.told.is_empty() {
                        let (node, load, position, _) = self.told[at % self.told.len()].clone();
                        self.tell(&node, load, position);
                    }
                }
                Step::Return { node, at, is_heard } => {
                    if let Some(node) = self.pick(node) {
                        let given = self.nodes.get_mut(&node).unwrap();
                        if !given.is_empty() {
                            let at = at % given.len();
                            if given[at].told == 0 {
                                let given = given.remove(at);
                                if given.begun {
                                    // It was allowed to begin, but has not.
                                    for position in &given.positions {
                                        let begun = self.begun.get_mut(&(given.job, *position));
                                        *begun.unwrap() -= 1;
                                    }
                                }
                                let could_not = at.is_multiple_of(2);
                                self.returned
                                    .push((node.clone(), given.load, given.ack.clone()));
                                if is_heard {
                                    self.book.returned(&node, given.load, given.ack, could_not);
                                }
                            }
                        }
                    }
                }
                Step::ReturnAgain { at } => {
                    if !self.returned.is_empty() {
                        let (node, load, ack) = self.returned[at % self.returned.len()].clone();
                        self.book.returned(&node, load, ack, false);
                    }
                }
                Step::Lose { node } => {
                    if let Some(node) = self.pick(node) {
                        self.nodes.remove(&node);
                        self.book.lost(&node, "this is a test");
                    }
                }
                Step::Forget { at } => {
                    if !self.stream.is_empty() {
                        self.stream.remove(at % self.stream.len());
                    }
                }
                Step::Tick => drop(self.book.tick(|_| false)),
                Step::Renew => {
                    self.stream.clear();
                    self.book.publish_all_again();
                }
            }
            self.act();
            self.check();
        }

        fn check(&self) {
            for ((job, position), count) in &self.outcomes {
                assert_eq!(
                    *count, 1,
                    "input {position} of job {job} has {count} outcomes"
                );
            }
            let bytes = || self.book.loads.values().map(|load| load.bytes);
            let bound = self
                .book
                .bytes_max
                .saturating_add(bytes().max().unwrap_or(0));
            assert!(bytes().sum::<usize>() <= bound, "{:?}", self.book);
            let pending = self.book.jobs.values().flat_map(|job| &job.pending);
            let pending: usize = pending.map(|portion| portion.inputs.count()).sum();
            let loads = self.book.loads.values();
            let unbegun = loads.filter(|load| load.holder.as_ref().is_none_or(|one| !one.begun));
            let unbegun: usize = unbegun.map(|load| load.unanswered().count()).sum();
            assert_eq!(self.book.queued(), pending + unbegun);
            for ((job, position), count) in &self.begun {
                let most = 1 + self.retries[job];
                assert!(
                    *count <= most,
                    "input {position} of job {job} has begun {count} times"
                );
            }
        }

        /// From now on, nothing goes wrong.
        fn come_to_an_end(&mut self) {
            for job in std::mem::take(&mut self.feeding) {
                self.push(job, 0, false);
            }
            self.step(Step::Join);
            for (node, load, ack) in std::mem::take(&mut self.returned) {
                self.book.returned(&node, load, ack, false);
            }
            for _ in 0..10_000 {
                let nodes: Vec<String> = self.nodes.keys().cloned().collect();
                for node in nodes {
                    while self.nodes.get(&node).is_some_and(|given| !given.is_empty()) {
                        self.begin(&node, 0);
                        self.finish(&node, 0, false);
                        self.act();
                    }
                }
                while let Some(load) = self.stream.pop() {
                    self.give(0, load);
                }
                self.book.tick(|_| false);
                self.act();
                if !self.book.has_jobs() {
                    break;
                }
            }
            self.check();
            assert!(!self.book.has_jobs(), "{:?}", self.book);
            assert!(self.book.loads.is_empty());
            for job in &self.jobs {
                assert_eq!(self.over.iter().filter(|over| *over == job).count(), 1);
                if !self.abandoned.contains(job) {
                    for position in 0..self.pushed[job] {
                        assert!(
                            self.outcomes.contains_key(&(*job, position)),
                            "{position} of {job}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_runs_is_as_much_as_workers_and_chunks_allow() {
        let mut book = Book::new(usize::MAX);
        for (id, processes) in [("a", 2), ("b", 4)] {
            let node = NodeId {
                id: id.to_owned(),
                host: "here".to_owned(),
                pid: 1,
            };
            book.joined(node, processes);
        }
        let submit = |book: &mut Book, job, inputs, chunksize| {
            let options = Options {
                chunksize,
                ..Options::default()
            };
            let what = Job {
                task: job as u32,
                single: false,
                options,
                log_level: LogLevel::Off,
            };
            book.submit(job, what);
            let portion = Portion {
                first: 0,
                inputs: frames(inputs),
            };
            book.push(job, [portion].into_iter(), false);
            let actions = book.actions().into_iter();
            let loads = actions.filter_map(|action| match action {
                Action::Publish { load, .. } => Some(load),
                _ => None,
            });
            loads.collect::<Vec<u64>>()
        };
        let loads = submit(&mut book, 1, 3, None);
        assert_eq!(loads.len(), 3, "one input each, before the pace is known");
        assert_eq!((book.running(1), book.queued()), (0, 3));
        for (load, node) in loads.iter().zip(["a", "a", "b"]) {
            book.took(node, *load, load.to_string());
            assert!(book.begin(node, *load, load.to_string()));
        }
        assert_eq!((book.running(1), book.queued()), (3, 0));
        let failure = Arc::new(Failure::EncodeResult(String::new()));
        book.done("a", loads[0], Outcomes::failed(0, 1, failure), 1);
        assert_eq!(book.running(1), 2);
        // A chunk of five inputs is one that runs.
        let chunks = submit(&mut book, 2, 10, Some(5));
        for load in &chunks {
            book.took("a", *load, load.to_string());
            assert!(book.begin("a", *load, load.to_string()));
        }
        assert_eq!((book.running(2), book.running(3)), (2, 0));
        book.lost("a", "this is a test");
        assert_eq!((book.running(1), book.running(2)), (1, 0));
    }

    #[test]
    fn what_is_returned_late_is_not_taken_from_a_node_that_has_it_again() {
        let mut book = Book::new(usize::MAX);
        let host = "here".to_owned();
        let id = "a".to_owned();
        book.joined(NodeId { id, host, pid: 1 }, 1);
        let what = Job {
            task: 1,
            single: false,
            options: Options::default(),
            log_level: LogLevel::Off,
        };
        book.submit(1, what);
        let portion = Portion {
            first: 0,
            inputs: frames(1),
        };
        book.push(1, [portion].into_iter(), false);
        let publishes = |book: &mut Book| {
            let actions = book.actions().into_iter();
            actions
                .filter(|action| matches!(action, Action::Publish { .. }))
                .count()
        };
        assert_eq!(publishes(&mut book), 1);
        let ack = |number: u32| number.to_string();
        assert!(book.begin("a", 0, ack(1)));
        // The node returns it, which the parent does not hear, and gets it again.
        book.took("a", 0, ack(2));
        assert_eq!(book.queued(), 1, "it has not begun");
        assert!(book.begin("a", 0, ack(2)));
        book.returned("a", 0, ack(1), false);
        assert_eq!(publishes(&mut book), 0);
        assert!(book.waits_for("a", 0, 0));
        book.returned("a", 0, ack(2), false);
        assert_eq!(publishes(&mut book), 1);
        assert!(!book.waits_for("a", 0, 0));
    }

    proptest! {
        #[test]
        fn one_outcome_each_whatever_happens(
            steps in steps(),
            bytes_max in prop_oneof![Just(0), 1..200_usize, Just(usize::MAX)],
        ) {
            let mut world = World {
                book: Book::new(bytes_max),
                ..World::default()
            };
            for step in steps {
                world.step(step);
            }
            world.come_to_an_end();
        }
    }
}
