//! Tests the scheduler against a model of workers that work, dawdle and die, in a world with simulated time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pool_worker::{Exit, Fault, Frames, Progress, Tag};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::backend::{LogLevel, Options, Outcomes};
use crate::retries::Retries;

const PATROL: Duration = Duration::from_millis(100);

/// A worker as the scheduler's actions have made it.
#[derive(Debug, Default)]
struct Process {
    ready: bool,
    /// Inputs that it was sent and has not begun: job, input, and the generation in which they were sent.
    queue: VecDeque<(JobId, usize, u32)>,
    /// Inputs that it has begun and not reported, the oldest first; only the last of them may still be running.
    begun_not_told: VecDeque<(JobId, usize)>,
    begun: u32,
    begun_at: Time,
    taken: u64,
    generation: u32,
    asked: bool,
    killed: bool,
}

#[derive(Debug, Default)]
struct Submitted {
    inputs: usize,
    retries: u32,
    on_panic: bool,
    chunksize: Option<usize>,
    abandoned: bool,
}

type Outcome = Result<Vec<u8>, Arc<Failure>>;

/// The world around a scheduler, which checks that nothing forbidden happens.
#[derive(Debug)]
struct World {
    scheduler: Scheduler,
    slots: Vec<Option<Process>>,
    /// How many inputs fit between the parent and a worker.
    room: usize,
    wanted: BTreeSet<usize>,
    jobs: BTreeMap<JobId, Submitted>,
    outcomes: BTreeMap<(JobId, usize), Outcome>,
    forgotten: BTreeSet<JobId>,
    times_begun: BTreeMap<(JobId, usize), u32>,
    now: Time,
}

impl World {
    fn new(slots: usize, max_tasks: Option<usize>) -> World {
        World::with(slots, max_tasks, false)
    }

    fn with(slots: usize, max_tasks: Option<usize>, finalizes: bool) -> World {
        World::over(Rules {
            max_tasks,
            finalizes,
            ..World::rules(slots)
        })
    }

    fn rules(slots: usize) -> Rules {
        Rules {
            slots,
            cpus: 2,
            max_tasks: None,
            start_timeout: Duration::from_secs(30),
            initializers: Vec::new(),
            give_up_after: Duration::from_secs(30),
            grace: Duration::from_millis(100),
            memory_limit: None,
            max_memory: None,
            cpu_time: None,
            leave_max: LEAVE_MAX,
            finalizes: false,
        }
    }

    fn over(rules: Rules) -> World {
        let seats = rules.seats();
        let mut world = World {
            scheduler: Scheduler::new(rules),
            slots: (0..seats).map(|_| None).collect(),
            room: 10_000,
            wanted: BTreeSet::new(),
            jobs: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            times_begun: BTreeMap::new(),
            now: Duration::from_secs(1),
        };
        world.act();
        world
    }

    fn act(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.scheduler.next_action() {
            actions += 1;
            assert!(actions < 10_000, "the scheduler never comes to rest");
            match action {
                Action::Start { slot } => {
                    assert!(self.slots[slot].is_none(), "two workers in one slot");
                    assert!(self.wanted.insert(slot), "one worker wanted twice");
                }
                Action::Send { slot } => {
                    if let Some(process) = self.slots[slot].as_ref() {
                        assert!(process.ready, "work for a worker that is not ready");
                        self.send(slot);
                    }
                }
                Action::Recall { slot } => {
                    if let Some(process) = self.slots[slot].as_mut() {
                        process.generation += 1;
                        let begun = process.begun;
                        self.scheduler.recalled(slot, begun);
                    }
                }
                Action::Move { from, to } => {
                    assert!(self.slots[to].is_none(), "two workers in one slot");
                    self.slots[to] = self.slots[from].take();
                }
                Action::Ask { slot } => {
                    let process = self.slots[slot].as_mut().expect("no worker to ask");
                    process.asked = true;
                }
                Action::Kill { slot } | Action::Terminate { slot } => {
                    if let Some(process) = self.slots[slot].as_mut() {
                        process.killed = true;
                    }
                }
                Action::Deliver {
                    job,
                    outcomes,
                    last,
                } => {
                    self.deliver(job, &outcomes);
                    if last {
                        self.forget(job);
                    }
                }
                Action::Forget { job } => self.forget(job),
            }
        }
    }

    fn send(&mut self, slot: usize) {
        let Some(process) = self.slots[slot].as_mut() else {
            return;
        };
        while process.queue.len() < self.room
            && let Some(given) = self.scheduler.next_to_send(slot)
        {
            assert!(!process.killed, "work for a worker that is being killed");
            assert!(!process.asked, "work for a worker that was asked to exit");
            let first = given.portion.first + given.answered;
            let end = given.portion.first + given.portion.inputs.count();
            assert!(first < end, "nothing is sent");
            for index in first..end {
                let generation = process.generation;
                process.queue.push_back((given.job, index, generation));
            }
            self.scheduler.sent(slot);
        }
    }

    fn deliver(&mut self, job: JobId, outcomes: &Outcomes) {
        assert!(!self.forgotten.contains(&job), "an outcome after the last");
        outcomes.for_each(|index, outcome| {
            let outcome = outcome.map(|bytes| bytes.to_vec());
            let before = self.outcomes.insert((job, index), outcome);
            assert!(before.is_none(), "two outcomes for {job:?} {index}");
        });
    }

    fn forget(&mut self, job: JobId) {
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

    fn submit(&mut self, count: usize, options: Options, more: bool) -> Option<JobId> {
        if *self.scheduler.mode() != Mode::Open {
            return None;
        }
        let job = Job {
            single: false,
            task: (count % 2) as u32,
            options,
            log_level: LogLevel::Off,
        };
        // The id is known only afterwards, but outcomes are checked only in `act`.
        let id = self.scheduler.submit(job, inputs(0, count), more);
        self.jobs.insert(
            id,
            Submitted {
                inputs: count,
                retries: (0..9)
                    .find(|n| !options.retries.go_on_after(n + 1))
                    .unwrap_or(9),
                on_panic: options.retries.has_on_panic(),
                chunksize: options.chunksize,
                abandoned: false,
            },
        );
        Some(id)
    }

    fn push(&mut self, id: JobId, count: usize, more: bool) {
        if !self.scheduler.takes(id) {
            return;
        }
        let submitted = self.jobs.get_mut(&id).unwrap();
        // In whole chunks, as the seam requires.
        let count = match submitted.chunksize {
            Some(size) => count.next_multiple_of(size),
            None => count,
        };
        let first = submitted.inputs;
        submitted.inputs += count;
        self.scheduler.push(id, inputs(first, count), more);
    }

    fn start(&mut self, slot: usize, works: bool) {
        if !self.wanted.remove(&slot) {
            return;
        }
        if works {
            self.slots[slot] = Some(Process::default());
            self.scheduler.started(slot, self.now);
        } else {
            self.now += Duration::from_secs(2);
            self.scheduler
                .start_failed(slot, "no luck".to_owned(), self.now);
        }
    }

    fn become_ready(&mut self, slot: usize) {
        if let Some(process) = self.slots[slot].as_mut()
            && !process.ready
        {
            process.ready = true;
            self.scheduler.ready(slot, self.now);
        }
    }

    /// Begins the next input that may begin.
    fn begin(&mut self, slot: usize) {
        self.send(slot);
        let Some(process) = self.slots[slot].as_mut() else {
            return;
        };
        while let Some((job, index, generation)) = process.queue.pop_front() {
            process.taken += 1;
            if generation != process.generation {
                continue;
            }
            process.begun = process.begun.wrapping_add(1);
            process.begun_at = self.now;
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

    /// Reports the oldest results; `all`: including that of the input begun last.
    fn tell(&mut self, slot: usize, all: bool) {
        let Some(process) = self.slots[slot].as_mut() else {
            return;
        };
        let told = process
            .begun_not_told
            .len()
            .saturating_sub(usize::from(!all));
        let mut replies = Frames::default();
        for (job, index) in process.begun_not_told.drain(..told) {
            let pushed: Result<_, ()> = replies.push(|out| {
                out.extend(format!("{} {index}", job.serial).into_bytes());
                Ok(None)
            });
            assert_eq!(pushed, Ok(None));
        }
        if replies.count() > 0 {
            for task in [0, 1] {
                self.scheduler.observe(task, Duration::from_micros(3));
            }
            self.scheduler.answered(slot, replies);
        }
    }

    /// The oldest input that was begun has panicked.
    fn panic(&mut self, slot: usize) {
        if let Some(process) = self.slots[slot].as_mut()
            && process.begun_not_told.pop_front().is_some()
        {
            let fault = Fault::Panicked(pool_worker::Panic {
                message: "no".to_owned(),
                location: None,
                backtrace: None,
                output: None,
            });
            let reply = Frames::alone(Tag::Fault, fault.to_bytes());
            self.scheduler.answered(slot, reply);
        }
    }

    fn die(&mut self, slot: usize) {
        if let Some(process) = self.slots[slot].take() {
            let end = End {
                pid: 1,
                exit: Exit::Signal(9),
                begun: Some(process.begun),
                initialized: 0,
                starved: None,
                forbidden: None,
                output: None,
            };
            self.scheduler.died(slot, end, self.now);
        }
    }

    /// Lets time pass, while the supervisor looks ten times a second.
    fn age(&mut self, by: Duration) {
        let until = self.now + by;
        while self.now + PATROL < until {
            self.stop(PATROL);
        }
        self.stop(until - self.now);
    }

    /// Lets time pass while nothing is called, since the whole program is stopped.
    fn stop(&mut self, by: Duration) {
        self.now += by;
        let slots = &self.slots;
        let progress = |slot: usize| {
            slots[slot]
                .as_ref()
                .map_or_else(Default::default, |process| Progress {
                    begun: process.begun,
                    begun_at: process.begun_at,
                    pulse: process.taken,
                    overwritten: false,
                })
        };
        let next = self.scheduler.tick(self.now, progress, |_| None);
        assert!(
            next.is_none_or(|next| next > self.now),
            "something was due, and was not done"
        );
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
                    Some(process)
                        if process.killed || process.asked && process.queue.is_empty() =>
                    {
                        self.die(slot);
                    }
                    Some(_) => {
                        self.begin(slot);
                        self.tell(slot, true);
                    }
                    None => {}
                }
                self.act();
            }
            self.age(Duration::from_millis(50));
            self.act();
        }
        panic!("it never ends: {self:#?}");
    }
}

fn inputs(first: usize, count: usize) -> Few<Portion> {
    let mut inputs = Frames::default();
    for _ in 0..count {
        let pushed: Result<_, ()> = inputs.push(|out| {
            out.extend([0; 8]);
            Ok(None)
        });
        assert_eq!(pushed, Ok(None));
    }
    if count == 0 {
        return Few::default();
    }
    Few::one(Portion { first, inputs })
}

#[derive(Debug, Clone)]
enum Step {
    Submit {
        count: usize,
        chunksize: Option<usize>,
        retries: Retries,
        limit_ms: Option<u64>,
        priority: i32,
        more: bool,
    },
    Push(Index, usize, bool),
    Cancel(Index),
    Abandon(Index),
    Start(Index, bool),
    Ready(Index),
    Begin(Index),
    Tell(Index, bool),
    Panic(Index),
    Age(u64),
    Stop(u64),
    Balance,
    Refuse(Index),
    Die(Index),
    Close,
    Terminate,
}

fn retries() -> impl Strategy<Value = Retries> {
    (
        0..3u32,
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0), 1..200u64],
    )
        .prop_map(|(most, on_panic, on_time_limit, backoff_ms)| {
            let mut retries = Retries::new(most).backoff(Duration::from_millis(backoff_ms));
            if on_panic {
                retries = retries.on_panic();
            }
            if on_time_limit {
                retries = retries.on_time_limit();
            }
            retries
        })
}

fn step() -> impl Strategy<Value = Step> {
    let slot = any::<Index>;
    let some = proptest::option::of::<std::ops::Range<usize>>;
    prop_oneof![
        6 => (0..20usize, some(1..4), retries(), proptest::option::of(1..50u64), -1..2_i32, any::<bool>()).prop_map(
            |(count, chunksize, retries, limit_ms, priority, more)| {
                Step::Submit { count, chunksize, retries, limit_ms, priority, more }
            },
        ),
        3 => (slot(), 0..6usize, any::<bool>()).prop_map(|(i, n, more)| Step::Push(i, n, more)),
        1 => slot().prop_map(Step::Cancel),
        1 => slot().prop_map(Step::Abandon),
        6 => (slot(), proptest::bool::weighted(0.9)).prop_map(|(i, works)| Step::Start(i, works)),
        6 => slot().prop_map(Step::Ready),
        30 => slot().prop_map(Step::Begin),
        20 => (slot(), any::<bool>()).prop_map(|(i, all)| Step::Tell(i, all)),
        3 => slot().prop_map(Step::Panic),
        4 => prop_oneof![Just(0), 1..40u64, Just(1000), Just(31_000)].prop_map(Step::Age),
        1 => (1..100_000u64).prop_map(Step::Stop),
        1 => Just(Step::Balance),
        1 => slot().prop_map(Step::Refuse),
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

fn take_step(world: &mut World, step: &Step) {
    let slots = world.slots.len();
    let slot = |index: &Index| index.index(slots);
    let job = |world: &World, index: &Index| {
        let ids: Vec<JobId> = world.jobs.keys().copied().collect();
        (!ids.is_empty()).then(|| *index.get(&ids))
    };
    match step {
        Step::Submit {
            count,
            chunksize,
            retries,
            limit_ms,
            priority,
            more,
        } => {
            let options = Options {
                chunksize: *chunksize,
                time_limit: limit_ms.map(Duration::from_millis),
                retries: *retries,
                priority: *priority,
            };
            let count = match (chunksize, more) {
                (Some(size), true) => count.next_multiple_of(*size),
                _ => *count,
            };
            world.submit(count, options, *more);
        }
        Step::Push(index, count, more) => {
            if let Some(id) = job(world, index) {
                world.push(id, *count, *more);
            }
        }
        Step::Cancel(index) => {
            if let Some(id) = job(world, index) {
                world.scheduler.cancel(id, true);
            }
        }
        Step::Abandon(index) => {
            if let Some(id) = job(world, index) {
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
        Step::Panic(index) => world.panic(slot(index)),
        Step::Age(ms) => world.age(Duration::from_millis(*ms)),
        Step::Stop(ms) => world.stop(Duration::from_millis(*ms)),
        Step::Balance => {
            world.scheduler.balance(true);
        }
        Step::Refuse(index) => {
            if world.slots[slot(index)].is_some() {
                world.scheduler.refuse(slot(index), "nonsense".to_owned());
            }
        }
        Step::Die(index) => world.die(slot(index)),
        Step::Close => world.scheduler.close(),
        Step::Terminate => world.scheduler.terminate(world.now),
    }
    world.act();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: each input ends exactly once, nothing runs more often than its job allows, nothing
    /// is given to a worker that is exiting (all checked in `World`), and after `close` the pool ends.
    #[test]
    fn each_input_ends_exactly_once(
        slots in 1..4usize,
        room in prop_oneof![1..8usize, Just(10_000)],
        max_tasks in proptest::option::of(1..10usize),
        finalizes: bool,
        steps in steps(),
    ) {
        let mut world = World::with(slots, max_tasks, finalizes);
        world.room = room;
        for step in steps {
            take_step(&mut world, &step);
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
                    Ok(bytes) => {
                        prop_assert_eq!(bytes, &format!("{} {index}", id.serial).into_bytes());
                    }
                    Err(failure) => {
                        if let Failure::Lost { attempts, .. } = **failure {
                            let begun = world.times_begun.get(&(*id, index));
                            if begun == Some(&(1 + submitted.retries)) {
                                prop_assert_eq!(attempts, 1 + submitted.retries);
                            } else {
                                // No worker lived to begin it.
                                let begun = begun.copied().unwrap_or_default();
                                prop_assert_eq!(attempts, begun + MISSES_MAX);
                            }
                        }
                        if let Failure::Panicked { attempts, .. } = **failure {
                            let begun = world.times_begun.get(&(*id, index));
                            prop_assert_eq!(begun, Some(&attempts));
                            if submitted.on_panic {
                                prop_assert_eq!(attempts, 1 + submitted.retries);
                            }
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

/// The same, but both tasks have this pace.
fn ready_at(slots: usize, pace: Duration) -> World {
    let mut world = ready(slots);
    world.scheduler.observe(0, pace);
    world.scheduler.observe(1, pace);
    world
}

fn queue_of(world: &World, slot: usize) -> Vec<usize> {
    let process = world.slots[slot].as_ref().unwrap();
    let valid = process
        .queue
        .iter()
        .filter(|(_, _, generation)| *generation == process.generation);
    valid.map(|(_, index, _)| *index).collect()
}

fn chunks_of(size: usize) -> Options {
    Options {
        chunksize: Some(size),
        ..Options::default()
    }
}

fn limited(seconds: u64) -> Options {
    Options {
        time_limit: Some(Duration::from_secs(seconds)),
        ..Options::default()
    }
}

#[test]
fn explicit_chunks_are_kept() {
    let mut world = ready(2);
    world.submit(7, chunks_of(3), false);
    world.act();
    assert_eq!(queue_of(&world, 1), [0, 1, 2]);
    assert_eq!(queue_of(&world, 0), [3, 4, 5]);
    world.begin(0);
    world.begin(0);
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert_eq!(queue_of(&world, 0), [6]);
    // No other worker takes the rest of a chunk from the worker that has begun it.
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert_eq!(queue_of(&world, 1), [0, 1, 2]);
}

#[test]
fn the_first_chunks_are_single_and_later_ones_follow_the_pace() {
    let mut world = ready(1);
    world.submit(1000, Options::default(), false);
    world.act();
    assert_eq!(queue_of(&world, 0).len(), 1);
    let mut sizes = Vec::new();
    while world.forgotten.is_empty() {
        let before = queue_of(&world, 0).len();
        sizes.push(before);
        for _ in 0..before {
            world.begin(0);
        }
        world.tell(0, true);
        world.act();
    }
    let largest = sizes.iter().max().unwrap();
    assert!(*largest > 50, "{sizes:?}");
    assert!(sizes.iter().sum::<usize>() >= 1000);
}

#[test]
fn work_that_takes_less_than_a_wake_up_wakes_no_other_worker() {
    let mut world = ready_at(2, Duration::from_nanos(100));
    for _ in 0..3 {
        world.submit(2, Options::default(), false);
        world.act();
    }
    let lengths = [queue_of(&world, 0).len(), queue_of(&world, 1).len()];
    assert!(lengths == [6, 0] || lengths == [0, 6], "{lengths:?}");
}

#[test]
fn an_idle_worker_gets_what_a_busy_one_has_not_begun() {
    let mut world = ready_at(2, Duration::from_micros(10));
    world.submit(64, Options::default(), false);
    world.act();
    // Worker 0 is stuck in its first input; worker 1 does everything else.
    world.begin(0);
    let mut done = 0;
    while !queue_of(&world, 1).is_empty() {
        world.begin(1);
        world.tell(1, true);
        world.act();
        if queue_of(&world, 1).is_empty() && world.scheduler.balance(false) {
            world.scheduler.balance(true);
            world.act();
        }
        done += 1;
    }
    assert_eq!(done, 63);
    assert_eq!(world.scheduler.slots[0].open, 1);
}

#[test]
fn a_small_portion_is_shared_when_that_is_urgent() {
    let mut world = ready_at(2, Duration::from_nanos(100));
    world.submit(20, Options::default(), false);
    world.act();
    let busy = usize::from(queue_of(&world, 0).is_empty());
    world.begin(busy);
    assert!(
        world.scheduler.balance(false),
        "it looks as if it would soon be done"
    );
    assert_eq!(queue_of(&world, 1 - busy).len(), 0);
    world.scheduler.balance(true);
    world.act();
    assert_eq!(queue_of(&world, 1 - busy).len(), 19);
}

#[test]
fn the_rest_of_a_chunk_is_not_asked_for_again_and_again() {
    let mut world = ready_at(2, Duration::from_micros(10));
    world.submit(8, chunks_of(4), false);
    world.act();
    assert_eq!(queue_of(&world, 0), [4, 5, 6, 7]);
    world.begin(0);
    // Worker 1 has finished and is idle.
    for _ in 0..4 {
        world.begin(1);
    }
    world.tell(1, true);
    world.act();
    world.scheduler.balance(true);
    world.act();
    assert!(queue_of(&world, 1).is_empty());
    assert_eq!(world.scheduler.slots[0].open, 4);
}

#[test]
fn a_time_limit_costs_one_input() {
    let mut world = ready(1);
    let options = Options {
        chunksize: Some(3),
        ..limited(1)
    };
    let id = world.submit(3, options, false).unwrap();
    world.act();
    world.begin(0);
    world.age(Duration::from_millis(900));
    world.begin(0);
    world.tell(0, false);
    world.act();
    // Input 1 is running now, but input 0 was for most of the time.
    world.age(Duration::from_millis(900));
    world.act();
    assert!(!world.slots[0].as_ref().unwrap().killed);
    world.age(Duration::from_millis(100));
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
    world.die(0);
    world.act();
    world.scheduler.close();
    world.act();
    world.run_to_the_end();
    assert!(world.outcomes[&(id, 0)].is_ok());
    assert_eq!(
        world.outcomes[&(id, 1)],
        Err(Arc::new(Failure::TimeLimit {
            worker: 1.into(),
            limit: Duration::from_secs(1),
            attempts: 1,
            output: None,
        }))
    );
    assert!(world.outcomes[&(id, 2)].is_ok());
}

#[test]
fn a_limit_does_not_count_the_time_in_which_the_program_was_stopped() {
    let mut world = ready(1);
    world.submit(1, limited(2), false).unwrap();
    world.act();
    world.begin(0);
    world.age(Duration::from_secs(1));
    world.stop(Duration::from_secs(1000));
    world.age(Duration::from_millis(800));
    world.act();
    assert!(!world.slots[0].as_ref().unwrap().killed);
    world.age(Duration::from_millis(300));
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
}

fn urgent(priority: i32) -> Options {
    Options {
        priority,
        ..Options::default()
    }
}

#[test]
fn higher_priorities_go_first_and_older_ones_among_equals() {
    let mut world = ready(1);
    let jobs = [0, -1, 3, 0, 3].map(|priority| {
        let id = world.submit(1, urgent(priority), false).unwrap();
        world.act();
        id
    });
    let mut order = Vec::new();
    while let Some(given) = world.scheduler.slots[0].given.front() {
        order.push(jobs.iter().position(|id| *id == given.job).unwrap());
        world.begin(0);
        world.tell(0, true);
        world.act();
    }
    // The first was given to the worker before the others were submitted.
    assert_eq!(order, [0, 2, 4, 3, 1]);
}

#[test]
fn what_has_not_begun_is_taken_back_for_what_has_priority() {
    let mut world = ready(2);
    // With this pace, a worker gets one input more than the one that it runs.
    world.scheduler.observe(0, Duration::from_millis(20));
    world.submit(20, Options::default(), false).unwrap();
    world.act();
    world.begin(0);
    world.begin(1);
    assert_eq!(queue_of(&world, 0).len(), 1);
    let id = world.submit(2, urgent(1), false).unwrap();
    world.act();
    for slot in 0..2 {
        let given: Vec<_> = world.scheduler.slots[slot].given.iter().collect();
        assert_eq!(given.len(), 2);
        assert_eq!(given[1].job, id);
    }
    world.scheduler.close();
    world.run_to_the_end();
}

#[test]
fn another_attempt_waits_for_its_pause() {
    let mut world = ready(1);
    let options = Options {
        retries: Retries::new(2).on_panic().backoff(Duration::from_secs(1)),
        ..Options::default()
    };
    let id = world.submit(1, options, false).unwrap();
    world.act();
    for pause in [1, 2] {
        world.begin(0);
        world.panic(0);
        world.act();
        world.age(Duration::from_secs(pause) - PATROL);
        world.act();
        assert_eq!(queue_of(&world, 0), [0_usize; 0]);
        world.age(2 * PATROL);
        world.act();
        assert_eq!(queue_of(&world, 0), [0]);
    }
    world.begin(0);
    world.panic(0);
    world.act();
    let outcome = world.outcomes[&(id, 0)].clone();
    assert!(matches!(
        outcome.map_err(|failure| (*failure).clone()),
        Err(Failure::Panicked { attempts: 3, .. })
    ));
}

#[test]
fn a_worker_that_replies_to_an_input_it_was_not_given_is_killed() {
    let mut world = ready(1);
    world
        .scheduler
        .answered(0, Frames::alone(Tag::Value, vec![1]));
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
}

#[test]
fn a_limit_that_comes_too_late_kills_nobody() {
    let mut world = ready(1);
    let options = Options {
        chunksize: Some(2),
        ..limited(1)
    };
    world.submit(2, options, false);
    world.act();
    world.begin(0);
    world.age(Duration::from_secs(2));
    // Between the check of the time and the recall, the worker has gone on to the next input.
    world.begin(0);
    world.act();
    assert!(!world.slots[0].as_ref().unwrap().killed);
    world.tell(0, true);
    world.act();
    assert_eq!(world.outcomes.len(), 2);
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed_and_said_to_be_late() {
    let mut world = World::new(1, None);
    world.start(0, true);
    world.age(Duration::from_secs(29));
    world.act();
    assert!(!world.slots[0].as_ref().unwrap().killed);
    world.age(Duration::from_secs(1));
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
    world.die(0);
    let why = world.scheduler.first_failure().unwrap();
    assert_eq!(why, "process 1 was not ready in time");
}

/// Fails to start the worker of a slot again and again, as soon as allowed, until some time.
fn fail_to_start(world: &mut World, slot: usize, until: Duration) -> usize {
    let mut attempts = 0;
    while world.now < until {
        if world.wanted.remove(&slot) {
            attempts += 1;
            world
                .scheduler
                .start_failed(slot, "no luck".to_owned(), world.now);
            world.act();
        }
        world.age(Duration::from_millis(10));
        world.act();
    }
    attempts
}

#[test]
fn a_pool_without_a_good_worker_for_long_is_broken() {
    let mut world = World::new(2, None);
    let id = world.submit(1, Options::default(), false).unwrap();
    let began = world.now;
    // The other worker is never ready; after its first failure it no longer counts.
    world.start(1, false);
    world.act();
    let attempts = fail_to_start(&mut world, 0, began + Duration::from_secs(29));
    assert_eq!(world.scheduler.mode(), &Mode::Open);
    // 7 in the first one and a half seconds, then one each second.
    assert!((30..=36).contains(&attempts), "{attempts}");
    fail_to_start(&mut world, 0, began + Duration::from_secs(34));
    let why = "workers keep dying before they are ready; the last failure: no luck";
    assert_eq!(world.scheduler.mode(), &Mode::Broken(why.into()));
    assert_eq!(
        world.outcomes[&(id, 0)],
        Err(Arc::new(Failure::Broken(why.into())))
    );
}

#[test]
fn one_good_worker_is_enough() {
    let mut world = ready(2);
    world.die(0);
    world.act();
    let until = world.now + Duration::from_secs(100);
    fail_to_start(&mut world, 0, until);
    assert_eq!(world.scheduler.mode(), &Mode::Open);
    let id = world.submit(1, Options::default(), false).unwrap();
    world.act();
    world.begin(1);
    world.tell(1, true);
    world.act();
    assert!(world.outcomes[&(id, 0)].is_ok());
}

#[test]
fn a_worker_that_starts_for_the_first_time_is_waited_for() {
    let mut world = World::new(2, None);
    world.start(1, true);
    // One worker takes long to start; the other fails to start meanwhile.
    let until = world.now + Duration::from_secs(29);
    fail_to_start(&mut world, 0, until);
    world.become_ready(1);
    world.act();
    let until = world.now + Duration::from_secs(29);
    fail_to_start(&mut world, 0, until);
    assert_eq!(world.scheduler.mode(), &Mode::Open);
}

#[test]
fn an_input_that_no_worker_lives_to_begin_is_lost_in_the_end() {
    let mut world = ready(1);
    let id = world.submit(2, Options::default(), false).unwrap();
    world.act();
    for deaths in 0..MISSES_MAX {
        assert!(world.outcomes.is_empty(), "{deaths}");
        world.die(0);
        world.act();
        assert!(!world.wanted.contains(&0), "it is not replaced at once");
        world.age(PAUSE_MAX);
        world.act();
        world.start(0, true);
        world.become_ready(0);
        world.act();
    }
    let lost = Failure::Lost {
        worker: 1.into(),
        exit: Exit::Signal(9),
        attempts: MISSES_MAX,
        why: None,
        output: None,
    };
    assert_eq!(world.outcomes[&(id, 0)], Err(Arc::new(lost)));
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert!(world.outcomes[&(id, 1)].is_ok());
}

#[test]
fn a_worker_goes_after_its_number_of_inputs_and_its_understudy_is_there() {
    let mut world = World::new(1, Some(2));
    world.start(0, true);
    world.become_ready(0);
    world.act();
    assert!(world.wanted.is_empty());
    world.submit(5, Options::default(), false);
    world.act();
    // It is wanted before the worker has finished, when one input is left.
    assert!(world.wanted.contains(&1));
    let mut on_duty = 0;
    for round in 0..3 {
        world.start(1 - on_duty, true);
        world.become_ready(1 - on_duty);
        world.act();
        // Only one of the two is given work.
        assert_eq!(queue_of(&world, 1 - on_duty), [0_usize; 0]);
        for _ in 0..2 {
            world.begin(on_duty);
            world.tell(on_duty, true);
            world.act();
        }
        if round == 2 {
            break;
        }
        // The worker has moved out of the way.
        let process = world.slots[2].as_ref().unwrap();
        assert!(process.asked);
        assert_eq!(process.begun, 2);
        // The other has its work before this one is gone.
        assert!(!queue_of(&world, 1 - on_duty).is_empty());
        world.die(2);
        world.act();
        on_duty = 1 - on_duty;
    }
    assert_eq!(world.outcomes.len(), 5);
}

#[test]
fn a_worker_that_has_used_much_processor_time_finishes_its_input_and_goes() {
    let mut world = World::over(Rules {
        cpu_time: Some(Duration::from_secs(2)),
        ..World::rules(1)
    });
    world.start(0, true);
    world.become_ready(0);
    world.submit(5, chunks_of(1), false);
    world.act();
    world.begin(0);
    world.scheduler.note_cpu_time(0, Duration::from_secs(1));
    world.act();
    assert!(world.wanted.is_empty());
    // It may be told several times before the worker goes.
    for _ in 0..2 {
        world
            .scheduler
            .note_cpu_time(0, Duration::from_millis(1001));
        world.act();
        assert!(world.wanted.contains(&1));
    }
    world.start(1, true);
    world.become_ready(1);
    world.tell(0, true);
    world.act();
    let process = world.slots[2].as_ref().unwrap();
    assert!(process.asked);
    assert_eq!(process.begun, 1);
    assert_eq!(queue_of(&world, 1)[0], 1);
    assert_eq!(world.scheduler.lives()[0].cpu_time, 1);
    world.scheduler.close();
    world.run_to_the_end();
    assert_eq!(world.outcomes.len(), 5);
    assert!(world.outcomes.values().all(Result::is_ok));
}

#[test]
fn workers_that_hang_at_exit_delay_no_others() {
    let mut world = World::new(1, Some(1));
    world.submit(20, Options::default(), false).unwrap();
    world.act();
    for round in 0..20 {
        for slot in 0..2 {
            world.start(slot, true);
            world.become_ready(slot);
            world.act();
        }
        for slot in 0..2 {
            world.begin(slot);
            world.tell(slot, true);
            world.act();
        }
        world.age(PATROL);
        world.act();
        // No worker exits by itself; those that are killed end.
        for slot in 0..3 {
            if world.slots[slot]
                .as_ref()
                .is_some_and(|process| process.killed)
            {
                world.die(slot);
                world.act();
            }
        }
        assert!(world.outcomes.len() > round / 2, "{round}");
    }
}

#[test]
fn workers_that_run_finalizers_are_waited_for() {
    let mut world = World::with(1, Some(1), true);
    world.scheduler.rules.leave_max = Duration::from_secs(100);
    world.submit(20, Options::default(), false).unwrap();
    world.act();
    for slot in [0, 1, 0, 1] {
        for slot in 0..2 {
            world.start(slot, true);
            world.become_ready(slot);
            world.act();
        }
        world.begin(slot);
        world.tell(slot, true);
        world.act();
    }
    assert_eq!(world.outcomes.len(), 3);
    // All three slots are taken by workers that are exiting: none is killed for that, and none is started.
    world.age(Duration::ZERO);
    world.age(Duration::from_secs(99));
    world.act();
    assert!(world.wanted.is_empty());
    let all = world.slots.iter().flatten();
    assert!(all.clone().all(|process| process.asked && !process.killed));
    assert_eq!(all.count(), 3);
    world.die(0);
    world.act();
    assert_eq!(world.wanted.len(), 1);
    world.age(Duration::from_secs(1));
    world.act();
    let all = world.slots.iter().flatten();
    assert!(all.clone().all(|process| process.killed));
}

#[test]
fn an_understudy_goes_on_duty_for_a_worker_that_died() {
    let mut world = World::new(1, Some(1));
    world.start(0, true);
    world.become_ready(0);
    world.act();
    world.start(1, true);
    world.become_ready(1);
    world.act();
    world.die(0);
    world.act();
    world.submit(1, Options::default(), false);
    world.act();
    assert_eq!(queue_of(&world, 1), [0]);
    assert_eq!(world.scheduler.slots_of(0), [Some(1), Some(0)]);
}

#[test]
fn a_worker_that_does_not_leave_is_killed() {
    let mut world = ready(1);
    world.scheduler.close();
    world.act();
    assert!(world.slots[0].as_ref().unwrap().asked);
    world.age(Duration::ZERO);
    world.age(LEAVE_MAX - Duration::from_millis(1));
    world.act();
    assert!(!world.slots[0].as_ref().unwrap().killed);
    world.age(Duration::from_millis(1));
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
}

#[test]
fn what_a_worker_does_not_begin_goes_to_another() {
    let mut world = ready(2);
    let id = world.submit(2, Options::default(), false).unwrap();
    world.act();
    assert_eq!(queue_of(&world, 0).len() + queue_of(&world, 1).len(), 2);
    // Slot 0 is stopped; slot 1 runs what it gets.
    for _ in 0..LOOKS_TO_SHUN {
        world.begin(1);
        world.tell(1, true);
        world.age(Duration::from_millis(100));
        world.act();
    }
    world.begin(1);
    world.tell(1, true);
    world.act();
    assert!(world.outcomes[&(id, 0)].is_ok() && world.outcomes[&(id, 1)].is_ok());
    // The silent worker is given nothing,
    for _ in 0..5 {
        world.submit(1, Options::default(), false);
        world.submit(1, Options::default(), false);
        world.act();
        assert_eq!(queue_of(&world, 0), [0_usize; 0]);
        world.begin(1);
        world.begin(1);
        world.tell(1, true);
        world.act();
    }
    // until it goes on.
    world.begin(0);
    world.age(Duration::from_millis(100));
    world.act();
    assert!(!world.scheduler.slots[0].shunned);
}

#[test]
fn an_input_that_makes_every_worker_silent_is_lost_in_the_end() {
    let mut world = ready(1);
    let id = world.submit(3, Options::default(), false).unwrap();
    world.act();
    let mut deaths = 0;
    for _ in 0..10_000 {
        if world.outcomes.contains_key(&(id, 0)) {
            break;
        }
        world.age(Duration::from_millis(100));
        world.act();
        if world.slots[0].as_ref().is_some_and(|it| it.killed) {
            deaths += 1;
            world.die(0);
            world.act();
        }
        world.start(0, true);
        world.act();
        world.become_ready(0);
        world.act();
    }
    let Some(Err(failure)) = world.outcomes.get(&(id, 0)) else {
        panic!("it is tried forever");
    };
    assert!(matches!(**failure, Failure::Lost { .. }));
    assert!(deaths >= MISSES_MAX, "{deaths}");
    // It alone is to blame.
    world.scheduler.close();
    world.run_to_the_end();
    assert!(world.outcomes[&(id, 1)].is_ok() && world.outcomes[&(id, 2)].is_ok());
}

#[test]
fn a_worker_that_stays_silent_is_replaced() {
    let mut world = ready(1);
    let id = world.submit(1, Options::default(), false).unwrap();
    world.act();
    for _ in 0..LOOKS_TO_KILL {
        assert!(!world.slots[0].as_ref().unwrap().killed);
        world.age(Duration::from_millis(100));
        world.act();
    }
    assert!(world.slots[0].as_ref().unwrap().killed);
    world.die(0);
    world.age(PAUSE_MAX);
    world.act();
    world.start(0, true);
    world.become_ready(0);
    world.act();
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert!(world.outcomes[&(id, 0)].is_ok());
}

#[test]
fn a_worker_that_unbegins_an_input_is_killed() {
    let mut world = ready(1);
    world.submit(2, limited(100), false);
    world.act();
    world.begin(0);
    world.age(Duration::from_millis(100));
    world.act();
    let process = world.slots[0].as_mut().unwrap();
    assert!(!process.killed);
    process.begun -= 1;
    process.taken += 1;
    world.age(Duration::from_millis(100));
    world.act();
    assert!(world.slots[0].as_ref().unwrap().killed);
}

/// Runs a pool whose only input makes every worker pretend that it has not begun, and give signs of life, while `meddle` does
/// what might have the input taken back. Returns how long it takes until the input has an outcome.
fn hold_back(rules: Rules, options: Options, mut meddle: impl FnMut(&mut World)) -> Option<Time> {
    let mut world = World::over(rules);
    world.start(0, true);
    world.become_ready(0);
    let id = world.submit(1, options, false).unwrap();
    world.act();
    let began = world.now;
    for _ in 0..10_000 {
        if world.outcomes.contains_key(&(id, 0)) {
            return Some(world.now - began);
        }
        for slot in 0..world.slots.len() {
            if let Some(process) = &mut world.slots[slot] {
                process.taken += 1;
            }
        }
        meddle(&mut world);
        world.age(Duration::from_millis(100));
        world.act();
        for slot in 0..world.slots.len() {
            let process = world.slots[slot].as_ref();
            if process.is_some_and(|it| it.killed || it.asked && it.queue.is_empty()) {
                world.die(slot);
                world.act();
            }
            world.start(slot, true);
            world.act();
            world.become_ready(slot);
            world.act();
        }
    }
    None
}

#[test]
fn a_worker_that_never_begins_can_not_escape_a_time_limit_by_signs_of_life() {
    let most = BEGIN_MAX + BEGIN_AGAIN_MAX * (MISSES_MAX - 1);
    let took = hold_back(World::rules(1), limited(1), |_| ()).expect("it ends");
    assert!(took >= BEGIN_MAX && took < most * 2, "{took:?}");
    // Without a limit, it may take its time.
    assert_eq!(hold_back(World::rules(1), Options::default(), |_| ()), None);
}

#[test]
fn a_worker_that_never_begins_can_not_escape_a_time_limit_by_using_up_its_processor_time() {
    let rules = Rules {
        cpu_time: Some(Duration::from_secs(2)),
        ..World::rules(1)
    };
    let use_up = |world: &mut World| {
        for slot in 0..world.slots.len() {
            // It takes a while to use that much.
            if world.slots[slot].as_ref().is_some_and(|it| it.taken > 10) {
                world.scheduler.note_cpu_time(slot, Duration::from_secs(2));
            }
        }
        world.act();
    };
    let took = hold_back(rules, limited(1), use_up).expect("it ends");
    assert!(took < BEGIN_MAX * 4, "{took:?}");
}

#[test]
fn the_number_of_inputs_that_a_worker_has_begun_wraps_around() {
    let mut world = ready(1);
    world.submit(3, limited(100), false);
    world.act();
    let almost = u32::MAX - 1;
    let state = &mut world.scheduler.slots[0];
    (state.begun, state.answered) = (almost, almost);
    world.slots[0].as_mut().unwrap().begun = almost;
    for _ in 0..3 {
        world.begin(0);
        world.age(Duration::from_millis(200));
        world.act();
        world.tell(0, true);
        world.act();
        assert!(!world.slots[0].as_ref().unwrap().killed);
    }
    assert_eq!(world.outcomes.len(), 3);
}

#[test]
fn a_recall_that_comes_after_the_death_is_not_meant_for_the_next_worker() {
    let mut world = ready(1);
    world.submit(1, limited(1), false);
    world.act();
    world.begin(0);
    world.age(Duration::from_secs(2));
    // Before the recall is carried out, the worker dies by itself, and another takes its place.
    let begun = world.slots[0].as_ref().unwrap().begun;
    world.die(0);
    world.scheduler.recalled(0, begun);
    world.act();
    world.start(0, true);
    world.become_ready(0);
    let id = world.submit(1, Options::default(), false).unwrap();
    world.act();
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert!(world.outcomes[&(id, 0)].is_ok());
}

#[test]
fn the_pool_wakes_up_when_a_waiting_thread_has_what_it_wants() {
    let mut world = ready_at(1, Duration::from_micros(10));
    let first = world.submit(4, chunks_of(4), false).unwrap();
    let second = world.submit(4, chunks_of(4), false).unwrap();
    world.act();
    assert_eq!(world.scheduler.wake_at(0), None);
    world.scheduler.want(second, Want::All);
    assert_eq!(world.scheduler.wake_at(0), Some(8));
    world.scheduler.want(first, Want::Index(2));
    assert_eq!(world.scheduler.wake_at(0), Some(3));
    world.begin(0);
    world.tell(0, true);
    world.act();
    assert_eq!(world.scheduler.wake_at(0), Some(3));
    world.scheduler.forget_want(first);
    assert_eq!(world.scheduler.wake_at(0), Some(8));
    world.scheduler.notify(first, Want::All);
    assert_eq!(world.scheduler.wake_at(0), Some(4));
}

#[test]
fn a_fault_is_an_outcome_like_any_other() {
    let mut world = ready(1);
    let id = world.submit(1, Options::default(), false).unwrap();
    world.act();
    world.begin(0);
    let fault = Fault::Encode("no".to_owned());
    world
        .scheduler
        .answered(0, Frames::alone(Tag::Fault, fault.to_bytes()));
    world.act();
    assert_eq!(
        world.outcomes[&(id, 0)],
        Err(Arc::new(Failure::EncodeResult("no".to_owned())))
    );
}
