//! The pool without workers: [`Inline`].

use std::cell::Cell;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pool_core::backend::Inline;
use pool_core::{Error, Pool, Shared, pool_task};

use crate::support::{own_pid, square};

fn inline() -> Pool {
    let pool = Pool::builder().backend(Inline).build();
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
