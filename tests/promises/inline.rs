//! The pool without workers: [`Inline`].

use std::cell::Cell;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use pool_core::backend::Inline;
use pool_core::{Ended, Error, Event, Pool, PoolBuilder, Retries, Shared, pool_task};

use crate::support::{own_pid, square, watchdog};

fn inline() -> Pool {
    let pool = Pool::builder().inline().build();
    pool.expect("there is nothing to start")
}

thread_local! {
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

/// Something that a worker could not do.
#[pool_task]
fn see(x: u64) -> u64 {
    SEEN.set(SEEN.get() + x);
    x
}

#[pool_task]
fn picky(x: u64) -> u64 {
    assert!(x != 3, "not {x}");
    x
}

#[pool_task]
fn add(table: &[f64], words: &str, shared: Shared<[u32]>, x: usize) -> f64 {
    table[x] + words.len() as f64 + f64::from(shared[x])
}

#[pool_task]
fn twice(numbers: Vec<f64>) -> Vec<f64> {
    numbers.into_iter().map(|x| x * 2.0).collect()
}

#[test]
fn tasks_run_in_the_thread_that_calls() {
    let pool = inline();
    assert_eq!(pool.apply(own_pid, ()).unwrap(), process::id());
    assert_eq!(pool.map(see, 0..100).unwrap(), Vec::from_iter(0..100));
    assert_eq!(SEEN.get(), 4950);
    let mut some = pool.imap(square, 0..);
    assert_eq!(some.next().unwrap().unwrap(), 0);
    assert_eq!(some.next().unwrap().unwrap(), 1);
    drop(some);
    let later = pool.apply_async(square, (7,));
    assert!(later.ready());
    assert_eq!(later.get().unwrap(), 49);
    assert_eq!(
        pollster::block_on(pool.apply_async(square, (8,))).unwrap(),
        64
    );
    assert!(pool.worker_pids().is_empty());
}

#[test]
fn data_reaches_them_as_it_reaches_workers() {
    let pool = inline();
    let shared = Shared::copy_from(&[1_u32, 2, 3, 4][..]).unwrap();
    let table = vec![0.5; 100_000];
    let call = pool.task(add).by_ref();
    let call = call.partial((&table, "words", &shared)).by_value();
    for _ in 0..2 {
        assert_eq!(call.map([0, 3]).unwrap(), [6.5, 9.5]);
    }
    assert_eq!(pool.apply(twice, (table,)).unwrap(), vec![1.0; 100_000]);
}

#[test]
fn panics_cost_their_input() {
    let pool = inline();
    let outcomes = pool.task(picky).map_results(0..5);
    for (index, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(x) => assert_eq!(*x, index as u64),
            Err(Error::Panicked(panic)) => {
                assert_eq!((index, panic.message()), (3, "not 3"));
                let location = panic.location().expect("the hook is ours");
                assert!(location.contains("inline.rs"), "{location}");
            }
            Err(other) => panic!("{other}"),
        }
    }
}

static PREPARED: AtomicU64 = AtomicU64::new(0);

#[pool_task]
fn prepare(table: Shared<[u64]>) {
    PREPARED.store(table[1], Ordering::Relaxed);
}

#[pool_task]
fn refuse() {
    panic!("not today");
}

#[pool_task]
fn decline() -> Result<(), String> {
    Err("nor tomorrow".to_owned())
}

#[test]
fn the_initializer_runs_once_and_may_fail() {
    let table = Shared::copy_from(&[1_u64, 7][..]).unwrap();
    let builder = Pool::builder().backend(Inline);
    let pool = builder.initializer(prepare, (table,)).build().unwrap();
    assert_eq!(PREPARED.load(Ordering::Relaxed), 7);
    drop(pool);
    let failed = Pool::builder()
        .backend(Inline)
        .initializer(refuse, ())
        .build();
    let why = failed.unwrap_err().to_string();
    assert!(
        why.contains("refuse` panicked") && why.contains("not today"),
        "{why}"
    );
    let declined = Pool::builder()
        .backend(Inline)
        .initializer(decline, ())
        .build();
    let why = declined.unwrap_err().to_string();
    assert!(why.contains("decline` failed: nor tomorrow"), "{why}");
}

#[test]
fn it_ends_as_other_pools_do() {
    let pool = Arc::new(inline());
    assert!(matches!(pool.join(), Err(Error::StillOpen)));
    let mut some = pool.imap(square, 0..1000);
    assert!(some.next().is_some());
    pool.close();
    assert!(matches!(pool.apply(square, (1,)), Err(Error::Closed)));
    assert_eq!(some.by_ref().flatten().count(), 999);
    pool.join().unwrap();
    pool.terminate();
    pool.join().unwrap();
}

/// Runs a task in this pool, which runs it in this thread, from within a task.
#[pool_task]
fn nested(fails: bool) -> u64 {
    let pool = inline();
    assert!(pool.apply(picky, (3,)).is_err());
    assert!(!fails, "after the inner one");
    pool.apply(square, (5,)).unwrap()
}

#[test]
fn a_panic_is_told_with_its_location_whatever_ran_within() {
    let pool = inline();
    assert_eq!(pool.apply(nested, (false,)).unwrap(), 25);
    let Err(Error::Panicked(panic)) = pool.apply(nested, (true,)) else {
        panic!("it panics");
    };
    assert!(panic.location().is_some());
}

thread_local! {
    static TRIES: Cell<u32> = const { Cell::new(0) };
}

#[pool_task]
fn succeed_at_third_try(bound: &str, x: u64) -> u64 {
    TRIES.set(TRIES.get() + 1);
    assert!(TRIES.get().is_multiple_of(3), "{bound}");
    x
}

#[test]
fn a_panic_is_tried_again_if_that_is_wanted() {
    let pool = inline();
    let call = pool
        .task(succeed_at_third_try)
        .partial(("once more".to_owned(),));
    let often = Retries::new(2).on_panic().backoff(Duration::from_millis(1));
    assert_eq!(call.clone().retries(often).map(0..3).unwrap(), [0, 1, 2]);
    assert_eq!(TRIES.get(), 9);
    let once = Retries::new(1).on_panic();
    assert!(matches!(
        call.clone().retries(once).map([7]),
        Err(Error::Panicked(panicked)) if panicked.attempts() == 2
    ));
    assert_eq!(TRIES.get(), 11);
    // A number counts deaths, of which there are none.
    TRIES.set(0);
    assert!(call.retries(5).map([7]).is_err());
    assert_eq!(TRIES.get(), 1);
}

#[test]
fn statistics_and_events_tell_of_each_attempt() {
    let _watchdog = watchdog();
    let run = |builder: PoolBuilder| {
        let events = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&events);
        let pool = builder.processes(1).on_event(move |event| {
            let told_of = match event {
                Event::InputBegan { index, .. } => (*index, None),
                Event::InputEnded { index, outcome, .. } => (*index, Some(*outcome)),
                _ => return,
            };
            told.lock().unwrap().push(told_of);
        });
        let pool = pool.build().expect("it can be built");
        let call = pool.task(picky).chunksize(1);
        let outcomes = call.retries(Retries::new(2).on_panic()).map_results(2..5);
        assert!(matches!(
            &outcomes[..],
            [Ok(2), Err(Error::Panicked(panicked)), Ok(4)] if panicked.attempts() == 3
        ));
        pool.close();
        pool.join().unwrap();
        let stats = pool.stats();
        let [task] = &stats.tasks[..] else {
            panic!("{stats}");
        };
        assert_eq!((task.done, task.panicked, task.unreadable), (2, 1, 0));
        let mut events = std::mem::take(&mut *events.lock().unwrap());
        // The input that panics may be tried again at once or after the others.
        events.sort_by_key(|(index, _)| *index);
        let counts = (task.attempts, task.run_times.count, stats.workers[0].done);
        (counts, events)
    };
    let (counts, events) = run(Pool::builder().inline());
    assert_eq!(counts, (5, 5, 5));
    let of = |index, outcome| [(Some(index), None), (Some(index), Some(outcome))];
    let panicked = of(1, Ended::Panicked).repeat(3);
    let expected = [&of(0, Ended::Done)[..], &panicked, &of(2, Ended::Done)].concat();
    assert_eq!(events, expected);
    assert_eq!(run(Pool::builder()), (counts, events));
}

#[test]
fn inputs_are_drawn_as_they_are_needed() {
    let pool = inline();
    let drawn = Cell::new(0_u64);
    let count = |x: u64| {
        drawn.set(drawn.get() + 1);
        x
    };
    let mut some = pool.imap(square, (0..).map(count));
    assert!(some.next().is_some());
    assert!(drawn.get() < 10, "{}", drawn.get());
    drop(some);
    drawn.set(0);
    SEEN.set(0);
    // What was drawn runs before the last is drawn.
    let late = (0..10_000_u64).map(count).inspect(|x| {
        assert!(*x < 9_999 || SEEN.get() > 0);
    });
    assert_eq!(pool.map(see, late).unwrap().len(), 10_000);
}

#[test]
fn what_protects_the_program_is_refused_and_what_is_about_workers_is_not() {
    let second = Duration::from_secs(1);
    let refused = [
        ("time_limit", Pool::builder().time_limit(second)),
        ("memory_limit", Pool::builder().memory_limit(1 << 30)),
        ("contain", Pool::builder().contain()),
    ];
    for (name, builder) in refused {
        match builder.inline().build() {
            Err(Error::InvalidSetting(setting)) => {
                assert_eq!(setting.setting(), name);
                assert!(setting.to_string().contains("inline"), "{setting}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    let builder = Pool::builder().processes(3).max_tasks_per_child(1);
    let builder = builder.grace(second).start_timeout(second).inline();
    let pool = builder.max_memory_per_child(1).build().unwrap();
    assert_eq!(pool.processes(), 3);
    assert_eq!(pool.apply(limited, (4,)).unwrap(), 16);
    let call = pool.task(square).priority(7).chunksize(2);
    assert_eq!(call.map(0..3).unwrap(), [0, 1, 4]);
    let error = call.time_limit(second).map(0..3).unwrap_err();
    assert!(matches!(&error, Error::InvalidSetting(setting) if setting.setting() == "time_limit"));
}

#[pool_task(time_limit = "1ms")]
fn limited(x: u64) -> u64 {
    x * x
}

static POOL: OnceLock<Pool> = OnceLock::new();

/// Ends the work that it is part of.
#[pool_task]
fn end(how: &str, x: u64) -> u64 {
    if x == 2 && how == "terminate" {
        POOL.get().unwrap().terminate();
    }
    x
}

#[test]
fn what_has_not_begun_can_be_stopped() {
    let pool = POOL.get_or_init(inline);
    let call = pool.task(end).partial(("terminate".to_owned(),));
    let outcomes = call.map_results(0..1000);
    assert_eq!(outcomes.len(), 1000);
    let done = outcomes
        .iter()
        .take_while(|outcome| outcome.is_ok())
        .count();
    assert_eq!(done, 3);
    let mut rest = outcomes[3..].iter();
    assert!(rest.all(|outcome| matches!(outcome, Err(Error::Terminated))));
    pool.join().unwrap();
    assert!(matches!(pool.apply(square, (1,)), Err(Error::Closed)));
}

#[pool_task]
fn together(x: u64) -> u64 {
    static RUNNING: AtomicU64 = AtomicU64::new(0);
    assert_eq!(RUNNING.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
    std::thread::yield_now();
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    x
}

#[test]
fn threads_take_turns() {
    let pool = inline();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(pool.map(together, 0..200).unwrap().len(), 200));
        }
    });
    pool.close();
    pool.join().unwrap();
}

#[pool_task]
fn own_index() -> Option<usize> {
    pool_core::worker::index()
}

#[test]
fn no_worker_is_there() {
    assert_eq!(inline().apply(own_index, ()).unwrap(), None);
    assert!(inline().worker_pids().is_empty());
}
