//! The scheduler against a model of workers that behave, dawdle and die.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pool_worker::Exit;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::backend::Options;

/// A worker as the scheduler's actions make it.
#[derive(Debug, Default)]
struct Process {
    ready: bool,
    /// What it was sent and has not begun: job, input, and the generation under which.
    queue: VecDeque<(JobId, usize, u32)>,
    /// Begun and not reported, the oldest first; only the last of them may still run.
    begun_not_told: VecDeque<(JobId, usize)>,
    begun: u32,
    generation: u32,
    asked: bool,
    killed: bool,
}

#[derive(Debug, Default)]
struct Submitted {
    inputs: usize,
    retries: u32,
    chunksize: Option<usize>,
    abandoned: bool,
    more: bool,
}

/// The world around a scheduler, and what it must never see.
#[derive(Debug)]
struct World {
    scheduler: Scheduler,
    slots: Vec<Option<Process>>,
    wanted: BTreeSet<usize>,
    jobs: BTreeMap<JobId, Submitted>,
    outcomes: BTreeMap<(JobId, usize), Outcome>,
    forgotten: BTreeSet<JobId>,
    times_begun: BTreeMap<(JobId, usize), u32>,
    now: Duration,
}

impl World {
    fn new(slots: usize, max_tasks: Option<usize>) -> World {
        let mut world = World {
            scheduler: Scheduler::new(slots, max_tasks),
            slots: (0..slots).map(|_| None).collect(),
            wanted: BTreeSet::new(),
            jobs: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            times_begun: BTreeMap::new(),
            now: Duration::ZERO,
        };
        world.act();
        world
    }

    fn act(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.scheduler.next_action() {
            actions += 1;
            assert!(actions < 10_000, "the scheduler keeps itself busy");
            match action {
                Action::Start { slot } => {
                    assert!(self.slots[slot].is_none(), "two workers in one slot");
                    assert!(self.wanted.insert(slot), "one worker wanted twice");
                }
                Action::Run {
                    slot,
                    generation,
                    from,
                    count,
                } => {
                    let process = self.slots[slot].as_mut().expect("work for nobody");
                    assert!(process.ready, "work for a worker that is not ready");
                    assert!(!process.killed, "work for a worker that is being killed");
                    assert!(!process.asked, "work for a worker that was let go");
                    assert!(count > 0);
                    let given = self.scheduler.given(slot);
                    for given in given.range(from..from + count) {
                        process
                            .queue
                            .push_back((given.job, given.input.index, generation));
                    }
                }
                Action::Recall { slot } => {
                    if let Some(process) = self.slots[slot].as_mut() {
                        process.generation += 1;
                        let (generation, begun) = (process.generation, process.begun);
                        self.scheduler.recalled(slot, generation, begun);
                    }
                }
                Action::Ask { slot } => {
                    let process = self.slots[slot].as_mut().expect("nobody to ask");
                    process.asked = true;
                }
                Action::Kill { slot } => {
                    let process = self.slots[slot].as_mut().expect("nobody to kill");
                    process.killed = true;
                }
                Action::Deliver { job, outcomes } => {
                    assert!(!self.forgotten.contains(&job), "an outcome after the last");
                    for (index, outcome) in outcomes {
                        let before = self.outcomes.insert((job, index), outcome);
                        assert!(before.is_none(), "two outcomes for {job:?} {index}");
                    }
                }
                Action::Forget { job } => {
                    assert!(self.forgotten.insert(job));
                    let submitted = &self.jobs[&job];
                    if !submitted.abandoned {
                        for index in 0..submitted.inputs {
                            assert!(
                                self.outcomes.contains_key(&(job, index)),
                                "{job:?} was forgotten without the outcome of {index}"
                            );
                        }
                    }
                }
            }
        }
    }

    fn submit(&mut self, count: usize, options: Options, more: bool) {
        if *self.scheduler.mode() != Mode::Open {
            return;
        }
        let inputs = inputs(0, count);
        let job = Job {
            task: if count.is_multiple_of(2) {
                "even"
            } else {
                "odd"
            },
            options,
        };
        // The id is known only afterwards, but what it delivers is looked at only in `act`.
        let id = self.scheduler.submit(job, inputs, more);
        self.jobs.insert(
            id,
            Submitted {
                inputs: count,
                retries: options.retries,
                chunksize: options.chunksize,
                abandoned: false,
                more,
            },
        );
    }

    fn push(&mut self, id: JobId, count: usize, more: bool) {
        if !self.scheduler.takes(id) {
            return;
        }
        let submitted = self.jobs.get_mut(&id).unwrap();
        // Whole chunks, as the seam demands.
        let count = match submitted.chunksize {
            Some(size) => count.next_multiple_of(size),
            None => count,
        };
        let first = submitted.inputs;
        submitted.inputs += count;
        submitted.more = more;
        self.scheduler.push(id, inputs(first, count), more);
    }

    fn start(&mut self, slot: usize, works: bool) {
        if !self.wanted.remove(&slot) {
            return;
        }
        self.now += Duration::from_secs(2);
        if works {
            self.slots[slot] = Some(Process::default());
        } else {
            self.scheduler.start_failed(slot, "no luck", self.now);
        }
    }

    fn become_ready(&mut self, slot: usize) {
        if let Some(process) = self.slots[slot].as_mut()
            && !process.ready
        {
            process.ready = true;
            self.scheduler.ready(slot);
        }
    }

    /// Begins the next input that may be begun.
    fn begin(&mut self, slot: usize) {
        let Some(process) = self.slots[slot].as_mut() else {
            return;
        };
        while let Some((job, index, generation)) = process.queue.pop_front() {
            if generation != process.generation {
                continue;
            }
            process.begun += 1;
            process.begun_not_told.push_back((job, index));
            let times = self.times_begun.entry((job, index)).or_default();
            *times += 1;
            assert!(
                *times <= 1 + self.jobs[&job].retries,
                "{job:?} {index} was run too often"
            );
            return;
        }
    }

    /// Reports the oldest results; `all`: also that of the input begun last.
    fn tell(&mut self, slot: usize, all: bool) {
        let Some(process) = self.slots[slot].as_mut() else {
            return;
        };
        let told = process
            .begun_not_told
            .len()
            .saturating_sub(usize::from(!all));
        let told = process.begun_not_told.drain(..told);
        let outcomes: Vec<_> = told
            .map(|(job, index)| Ok(format!("{} {index}", job.0).into_bytes()))
            .collect();
        if !outcomes.is_empty() {
            self.scheduler
                .answered(slot, outcomes, Duration::from_micros(300));
        }
    }

    fn die(&mut self, slot: usize) {
        let Some(process) = self.slots[slot].take() else {
            return;
        };
        if process.ready {
            self.scheduler.died(slot, process.begun, 1, Exit::Signal(9));
        } else {
            self.now += Duration::from_secs(2);
            self.scheduler.start_failed(slot, "died early", self.now);
        }
    }

    /// Lets every worker do all that it can, until nothing happens any more.
    fn run_to_the_end(&mut self) {
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.push(id, 0, false);
            self.act();
        }
        for _ in 0..10_000 {
            if self.scheduler.is_over() {
                return;
            }
            for slot in 0..self.slots.len() {
                self.start(slot, true);
                self.act();
                self.become_ready(slot);
                self.act();
                match &self.slots[slot] {
                    Some(process) if process.killed => self.die(slot),
                    Some(process) if process.asked && process.queue.is_empty() => self.die(slot),
                    // The end of the pool kills without asking the scheduler.
                    Some(_)
                        if matches!(self.scheduler.mode(), Mode::Terminated | Mode::Broken(_)) =>
                    {
                        self.die(slot);
                    }
                    Some(_) => {
                        self.begin(slot);
                        self.tell(slot, true);
                    }
                    None => {
                        if matches!(self.scheduler.mode(), Mode::Terminated | Mode::Broken(_))
                            && self.wanted.remove(&slot)
                        {
                            self.scheduler.not_started(slot);
                        }
                    }
                }
                self.act();
            }
        }
        panic!("it never ends: {self:#?}");
    }
}

fn inputs(first: usize, count: usize) -> Vec<Input> {
    (first..first + count)
        .map(|index| Input {
            index,
            bytes: vec![0; 8],
        })
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    Submit {
        count: usize,
        chunksize: Option<usize>,
        retries: u32,
        more: bool,
    },
    Push(Index, usize, bool),
    Cancel(Index),
    Abandon(Index),
    Start(Index, bool),
    Ready(Index),
    Begin(Index),
    Tell(Index, bool),
    Overdue(Index),
    Distrust(Index),
    Die(Index),
    Close,
    Terminate,
}

fn step() -> impl Strategy<Value = Step> {
    let slot = any::<Index>;
    prop_oneof![
        6 => (0..20usize, proptest::option::of(1..4usize), 0..2u32, any::<bool>()).prop_map(
            |(count, chunksize, retries, more)| Step::Submit { count, chunksize, retries, more },
        ),
        3 => (slot(), 0..6usize, any::<bool>()).prop_map(|(i, n, more)| Step::Push(i, n, more)),
        1 => slot().prop_map(Step::Cancel),
        1 => slot().prop_map(Step::Abandon),
        6 => (slot(), proptest::bool::weighted(0.9)).prop_map(|(i, works)| Step::Start(i, works)),
        6 => slot().prop_map(Step::Ready),
        30 => slot().prop_map(Step::Begin),
        20 => (slot(), any::<bool>()).prop_map(|(i, all)| Step::Tell(i, all)),
        1 => slot().prop_map(Step::Overdue),
        1 => slot().prop_map(Step::Distrust),
        3 => slot().prop_map(Step::Die),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        Just(None),
        Just(Some(Step::Close)),
        Just(Some(Step::Terminate)),
    ];
    (
        proptest::collection::vec(step(), 0..120),
        ending,
        proptest::collection::vec(step(), 0..40),
    )
        .prop_map(|(mut steps, ending, after)| {
            steps.extend(ending);
            steps.extend(after);
            steps
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: each input ends exactly once, nothing runs more often
    /// than its job allows, nothing is given to a worker that is on its way out (all checked in
    /// `World`), and after `close` the pool comes to its end.
    #[test]
    fn each_input_ends_exactly_once(
        slots in 1..4usize,
        max_tasks in proptest::option::of(1..10usize),
        steps in steps(),
    ) {
        let mut world = World::new(slots, max_tasks);
        for step in steps {
            let slot = |index: &Index| index.index(slots);
            let job = |world: &World, index: &Index| {
                let ids: Vec<JobId> = world.jobs.keys().copied().collect();
                (!ids.is_empty()).then(|| *index.get(&ids))
            };
            match &step {
                Step::Submit { count, chunksize, retries, more } => {
                    let options = Options { chunksize: *chunksize, time_limit: None, retries: *retries };
                    let count = match (chunksize, more) {
                        (Some(size), true) => count.next_multiple_of(*size),
                        _ => *count,
                    };
                    world.submit(count, options, *more);
                }
                Step::Push(index, count, more) => {
                    if let Some(id) = job(&world, index) {
                        world.push(id, *count, *more);
                    }
                }
                Step::Cancel(index) => {
                    if let Some(id) = job(&world, index) {
                        world.scheduler.cancel(id, true);
                    }
                }
                Step::Abandon(index) => {
                    if let Some(id) = job(&world, index) {
                        if !world.forgotten.contains(&id) {
                            world.jobs.get_mut(&id).unwrap().abandoned = true;
                        }
                        world.scheduler.cancel(id, false);
                    }
                }
                Step::Start(index, works) => world.start(slot(index), *works),
                Step::Ready(index) => world.become_ready(slot(index)),
                Step::Begin(index) => world.begin(slot(index)),
                Step::Tell(index, all) => world.tell(slot(index), *all),
                Step::Overdue(index) => {
                    let slot = slot(index);
                    if let Some(process) = &world.slots[slot]
                        && world.scheduler.running(slot, process.begun).is_some()
                    {
                        let begun = process.begun;
                        world.scheduler.overdue(slot, begun);
                    }
                }
                Step::Distrust(index) => {
                    if world.slots[slot(index)].is_some() {
                        world.scheduler.distrust(slot(index));
                    }
                }
                Step::Die(index) => world.die(slot(index)),
                Step::Close => world.scheduler.close(),
                Step::Terminate => world.scheduler.terminate(),
            }
            world.act();
        }
        world.scheduler.close();
        world.act();
        world.run_to_the_end();
        for (id, submitted) in &world.jobs {
            prop_assert!(world.forgotten.contains(id));
            if submitted.abandoned {
                continue;
            }
            for index in 0..submitted.inputs {
                match &world.outcomes[&(*id, index)] {
                    Ok(bytes) => prop_assert_eq!(bytes, &format!("{} {index}", id.0).into_bytes()),
                    Err(failure) => {
                        if let Failure::Lost { attempts, .. } = **failure {
                            prop_assert_eq!(attempts, 1 + submitted.retries);
                        }
                    }
                }
            }
        }
    }
}

/// A world whose workers are all ready.
fn ready(slots: usize) -> World {
    let mut world = World::new(slots, None);
    for slot in 0..slots {
        world.start(slot, true);
        world.become_ready(slot);
        world.act();
    }
    world
}

fn queue_of(world: &World, slot: usize) -> Vec<usize> {
    let process = world.slots[slot].as_ref().unwrap();
    process.queue.iter().map(|(_, index, _)| *index).collect()
}

fn chunks_of(size: usize) -> Options {
    Options {
        chunksize: Some(size),
        ..Options::default()
    }
}

#[test]
fn explicit_chunks_are_kept() {
    let mut world = ready(2);
    world.submit(7, chunks_of(3), false);
    world.act();
    assert_eq!(queue_of(&world, 0), [0, 1, 2]);
    assert_eq!(queue_of(&world, 1), [3, 4, 5]);
    world.begin(1);
    world.begin(1);
    world.begin(1);
    world.tell(1, true);
    world.act();
    assert_eq!(queue_of(&world, 1), [6]);
    // Nobody takes the rest of a chunk from the worker that has begun it.
    world.begin(1);
    world.tell(1, true);
    world.act();
    assert_eq!(queue_of(&world, 0), [0, 1, 2]);
}

#[test]
fn the_first_chunks_are_single_and_later_ones_follow_the_pace() {
    let mut world = ready(1);
    world.submit(1000, Options::default(), false);
    world.act();
    assert_eq!(queue_of(&world, 0).len(), 1);
    let mut sizes = Vec::new();
    while world.forgotten.is_empty() {
        let before = world.slots[0].as_ref().unwrap().queue.len();
        sizes.push(before);
        for _ in 0..before {
            world.begin(0);
        }
        // 300 microseconds for each chunk.
        world.tell(0, true);
        world.act();
    }
    let largest = sizes.iter().max().unwrap();
    assert!(*largest > 50, "{sizes:?}");
    assert!(sizes.iter().sum::<usize>() >= 1000);
}

#[test]
fn an_idle_worker_gets_what_a_busy_one_has_not_begun() {
    let mut world = ready(2);
    // The pace of the task: very short.
    world
        .scheduler
        .pace
        .insert("even", Duration::from_nanos(100));
    world.submit(64, Options::default(), false);
    world.act();
    // Worker 0 is stuck with its first input; worker 1 does everything else.
    world.begin(0);
    let mut done = 0;
    while !world.slots[1].as_ref().unwrap().queue.is_empty() {
        world.begin(1);
        world.tell(1, true);
        world.act();
        done += 1;
    }
    assert_eq!(done, 63);
    assert_eq!(world.scheduler.given(0).len(), 1);
}

#[test]
fn the_rest_of_a_chunk_is_not_asked_for_again_and_again() {
    let mut world = ready(2);
    world
        .scheduler
        .pace
        .insert("even", Duration::from_nanos(100));
    world.submit(16, chunks_of(4), false);
    world.act();
    assert_eq!(queue_of(&world, 0), [0, 1, 2, 3, 8, 9, 10, 11]);
    // Worker 0 is in its second chunk, and has not told the results of the first.
    for _ in 0..5 {
        world.begin(0);
    }
    // Worker 1 is through, and idles beside it.
    for _ in 0..8 {
        world.begin(1);
    }
    world.tell(1, true);
    world.act();
    assert!(queue_of(&world, 1).is_empty());
    assert_eq!(world.scheduler.given(0).len(), 8);
}

#[test]
fn a_time_limit_costs_one_input() {
    let mut world = ready(1);
    let options = Options {
        time_limit: Some(Duration::from_secs(1)),
        ..chunks_of(3)
    };
    world.submit(3, options, false);
    world.act();
    world.begin(0);
    world.begin(0);
    world.tell(0, false);
    world.act();
    // Input 1 runs; it is overdue.
    world.scheduler.overdue(0, 2);
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
    world.die(0);
    world.act();
    world.scheduler.close();
    world.act();
    world.run_to_the_end();
    let id = JobId(0);
    assert!(world.outcomes[&(id, 0)].is_ok());
    assert_eq!(
        world.outcomes[&(id, 1)],
        Err(Box::new(Failure::TimeLimit(Duration::from_secs(1))))
    );
    assert!(world.outcomes[&(id, 2)].is_ok());
}

#[test]
fn a_limit_that_comes_too_late_kills_nobody() {
    let mut world = ready(1);
    let options = Options {
        time_limit: Some(Duration::from_secs(1)),
        ..chunks_of(2)
    };
    world.submit(2, options, false);
    world.act();
    world.begin(0);
    // Between the look at the clock and the recall the worker has gone on to the next.
    world.begin(0);
    world.scheduler.overdue(0, 1);
    world.act();
    assert!(!world.slots[0].as_ref().unwrap().killed);
    world.tell(0, true);
    world.act();
    assert_eq!(world.outcomes.len(), 2);
}

#[test]
fn too_many_failed_starts_break_the_pool() {
    let mut world = World::new(1, None);
    world.submit(1, Options::default(), false);
    for attempt in 0..11 {
        assert_eq!(world.scheduler.mode(), &Mode::Open, "{attempt}");
        world.start(0, false);
        world.act();
    }
    assert_eq!(world.scheduler.mode(), &Mode::Broken("no luck".into()));
    assert_eq!(
        world.outcomes[&(JobId(0), 0)],
        Err(Box::new(Failure::Broken("no luck".into())))
    );
    assert!(world.wanted.is_empty());
}

#[test]
fn failed_starts_that_are_far_apart_do_not() {
    let mut world = World::new(1, None);
    for _ in 0..50 {
        world.start(0, false);
        world.now += Duration::from_secs(5);
        world.act();
    }
    assert_eq!(world.scheduler.mode(), &Mode::Open);
}

#[test]
fn a_worker_goes_after_its_number_of_inputs() {
    let mut world = World::new(1, Some(2));
    world.start(0, true);
    world.become_ready(0);
    world.act();
    world.submit(5, Options::default(), false);
    world.act();
    let mut processes = 0;
    while world.forgotten.is_empty() {
        world.begin(0);
        world.tell(0, true);
        world.act();
        if world.slots[0].as_ref().is_some_and(|process| process.asked) {
            assert_eq!(world.slots[0].as_ref().unwrap().begun, 2);
            world.die(0);
            world.act();
            world.start(0, true);
            world.become_ready(0);
            world.act();
            processes += 1;
        }
    }
    assert_eq!(processes, 2);
}

#[test]
fn a_recall_that_comes_after_the_death_is_not_meant_for_the_next_worker() {
    let mut world = ready(1);
    let options = Options {
        time_limit: Some(Duration::from_secs(1)),
        ..Options::default()
    };
    world.submit(1, options, false);
    world.act();
    world.begin(0);
    world.scheduler.overdue(0, 1);
    // Before the recall is carried out the worker dies by itself, and another takes its place.
    let dead = world.slots[0].take().unwrap();
    world.scheduler.died(0, dead.begun, 1, Exit::Code(0));
    world.scheduler.recalled(0, 1, dead.begun);
    world.act();
    world.start(0, true);
    world.become_ready(0);
    world.submit(1, Options::default(), false);
    world.act();
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert!(world.outcomes[&(JobId(1), 0)].is_ok());
}

#[test]
fn a_chunk_is_not_cut_between_two_of_its_inputs() {
    let mut world = ready(2);
    for task in ["even", "odd"] {
        let pace = Duration::from_nanos(100);
        world.scheduler.pace.insert(task, pace);
    }
    // A chunk for each worker, and something else behind it.
    world.submit(8, chunks_of(4), false);
    world.submit(1, Options::default(), false);
    world.submit(1, Options::default(), false);
    world.act();
    assert_eq!(queue_of(&world, 1), [4, 5, 6, 7, 0]);
    // Worker 0 is through. Worker 1 has told of two, and has not begun the third, when what is behind
    // its chunk is taken back.
    for _ in 0..5 {
        world.begin(0);
    }
    world.tell(0, true);
    world.begin(1);
    world.begin(1);
    world.tell(1, true);
    world.scheduler.cancel(JobId(2), true);
    world.act();
    assert_eq!(queue_of(&world, 0), [0_usize; 0]);
    world.begin(1);
    world.begin(1);
    world.tell(1, true);
    world.act();
    assert_eq!(world.outcomes.len(), 10);
}
