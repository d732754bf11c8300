//! Which result comes when, which inputs stay together, and which error is reported.

use std::collections::{BTreeMap, HashSet};
use std::hint::black_box;
use std::path::{Path, PathBuf};

use pool_core::{Call, Error, Pool, pool_task};

use crate::support::{
    Gate, Held, append, lines, mark, multiply, pool, square, stand, wait_at, watchdog, who,
    workers_are_elsewhere, works,
};

/// Inputs of very different lengths: the first of every few is the longest.
#[pool_task]
fn uneven(x: u64) -> u64 {
    let rounds = if x.is_multiple_of(7) { 200_000 } else { 10 };
    (0..rounds).fold(x, |sum, y| black_box(sum ^ y) ^ y)
}

fn uneven_result(x: u64) -> u64 {
    x
}

#[test]
fn results_come_in_the_order_of_the_inputs() {
    let _dog = watchdog();
    let pool = pool(3);
    let expected: Vec<u64> = (0..200).map(uneven_result).collect();
    for size in [None, Some(1), Some(3), Some(64), Some(1000)] {
        let call = || match size {
            Some(size) => pool.task(uneven).chunksize(size),
            None => pool.task(uneven),
        };
        assert_eq!(call().map(0..200).unwrap(), expected, "{size:?}");
        assert_eq!(call().map_async(0..200).get().unwrap(), expected);
        let results: Result<Vec<u64>, Error> = call().imap(0..200).collect();
        assert_eq!(results.unwrap(), expected);
        let results: Result<Vec<u64>, Error> = call().map_results(0..200).into_iter().collect();
        assert_eq!(results.unwrap(), expected);
        let tuples = (0..200).map(|x| (x,));
        assert_eq!(call().starmap(tuples.clone()).unwrap(), expected);
        assert_eq!(
            call().starmap_async(tuples.clone()).get().unwrap(),
            expected
        );
        let results: Result<Vec<u64>, Error> = call().istarmap(tuples).collect();
        assert_eq!(results.unwrap(), expected);
    }
}

/// The first of each chunk waits at the gate.
#[pool_task]
fn chunk_begins(gate: &Path, size: u64, x: u64) -> u64 {
    if x.is_multiple_of(size) {
        crate::support::stand(gate, x);
    }
    x
}

#[test]
fn map_gives_each_worker_a_chunk_however_large_chunks_are() {
    let _dog = watchdog();
    let gate = Gate::new();
    for size in [50, 300] {
        // It does not know yet that the task is short.
        let pool = pool(4);
        let call = pool.task(chunk_begins).partial((gate.path(), size));
        let call = call.chunksize(size as usize);
        std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(call.map(0..4 * size).unwrap().len() as u64, 4 * size));
            // All at once.
            let held: Vec<Held> = (0..4).map(|_| gate.accept()).collect();
            let begun: HashSet<u64> = held.iter().map(|one| one.id / size).collect();
            assert_eq!(begun, (0..4).collect());
            held.into_iter().for_each(Held::release);
        });
    }
}

#[test]
fn imap_waits_for_the_first_though_others_are_done() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let inputs = (0..4).map(|id| (gate.path(), id));
    let mut results = pool.task(wait_at).chunksize(1).istarmap(inputs);
    let mut at_the_gate: BTreeMap<u64, Held> = BTreeMap::new();
    let mut hold = |held: Held| at_the_gate.insert(held.id, held);
    hold(gate.accept());
    hold(gate.accept());
    // The second is let through, and the third arrives.
    at_the_gate.remove(&1).unwrap().release();
    let third = gate.accept();
    assert_eq!(third.id, 2);
    assert!(matches!(
        results.next_timeout(std::time::Duration::from_millis(20)),
        Some(Err(Error::Timeout))
    ));
    at_the_gate.remove(&0).unwrap().release();
    assert_eq!(results.next().unwrap().unwrap(), 0);
    assert_eq!(results.next().unwrap().unwrap(), 1);
    third.release();
    gate.let_through(1);
    assert_eq!(results.next().unwrap().unwrap(), 2);
    assert_eq!(results.next().unwrap().unwrap(), 3);
    assert!(results.next().is_none());
}

#[test]
fn unordered_results_come_as_they_finish() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let inputs = (0..3).map(|id| (gate.path(), id));
    let mut results = pool.task(wait_at).chunksize(1).istarmap_unordered(inputs);
    let mut first_two = [gate.accept(), gate.accept()];
    first_two.sort_by_key(|held| held.id);
    let [first, second] = first_two;
    second.release();
    assert_eq!(results.next().unwrap().unwrap(), 1);
    gate.let_through(1);
    assert_eq!(results.next().unwrap().unwrap(), 2);
    first.release();
    assert_eq!(results.next().unwrap().unwrap(), 0);
    assert!(results.next().is_none());
}

#[test]
fn unordered_results_come_once_each() {
    let _dog = watchdog();
    let pool = pool(3);
    for size in [None, Some(1), Some(7), Some(500)] {
        let mut call = pool.task(uneven);
        if let Some(size) = size {
            call = call.chunksize(size);
        }
        let results: Vec<u64> = call.imap_unordered(0..500).map(Result::unwrap).collect();
        let unique: HashSet<u64> = results.iter().copied().collect();
        assert_eq!((results.len(), unique.len()), (500, 500));
        assert_eq!(unique, (0..500).map(uneven_result).collect());
        assert_eq!(call.istarmap_unordered((0..500).map(|x| (x,))).count(), 500);
    }
}

// ---- chunks ---------------------------------------------------------------------------------------

/// Fails unless chunk k, of `size` inputs, ran in order in one worker.
#[track_caller]
fn check_chunks(size: usize, answers: &[(u32, u64)]) {
    for (chunk, answers) in answers.chunks(size).enumerate() {
        let (pid, first) = answers[0];
        for (answer, calls) in answers.iter().zip(first..) {
            assert_eq!(
                *answer,
                (pid, calls),
                "chunk {chunk} of {size}: {answers:?}"
            );
        }
    }
}

#[test]
fn an_explicit_chunk_runs_in_order_in_one_worker() {
    let _dog = watchdog();
    let pool = pool(3);
    for size in [1, 2, 3, 10, 64, 99, 100, 1000] {
        let call = || pool.task(who).chunksize(size);
        check_chunks(size, &call().map(0..100).unwrap());
        check_chunks(size, &call().map_async(0..100).get().unwrap());
        check_chunks(
            size,
            &call().imap(0..100).collect::<Result<Vec<_>, _>>().unwrap(),
        );
    }
    // Several calls at once.
    let many: Vec<_> = (0..20)
        .map(|size| {
            (
                size + 1,
                pool.task(who).chunksize(size + 1).map_async(0..50),
            )
        })
        .collect();
    for (size, results) in many {
        check_chunks(size, &results.get().unwrap());
    }
}

#[pool_task]
fn who_at(gate: Option<PathBuf>, id: u64) -> (u32, u64) {
    if let Some(gate) = gate {
        stand(&gate, id);
    }
    who(id)
}

#[pool_task]
fn mark_at(gate: Option<PathBuf>, done: &Path, id: u64) {
    if let Some(gate) = gate {
        stand(&gate, id);
    }
    append(done, id);
}

#[test]
fn an_explicit_chunk_is_not_taken_apart_for_the_idle() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    // The first input of a chunk is held; the other worker has nothing to do, but must not help.
    let inputs = (0..10).map(|id| ((id == 0).then(|| gate.path()), id));
    let results = pool.task(who_at).chunksize(10).starmap_async(inputs);
    let held = gate.accept();
    works_meanwhile(&pool);
    held.release();
    check_chunks(10, &results.get().unwrap());
}

fn works_meanwhile(pool: &Pool) {
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
    assert_eq!(pool.task(square).chunksize(2).map(0..9).unwrap().len(), 9);
}

#[test]
fn the_idle_help_where_the_pool_chose_the_chunks() {
    let _dog = watchdog();
    let pool = pool(2);
    // So many of them are quick that the pool sends them in bulk; then one of a bulk is held.
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("done");
        let inputs = (0..2000).map(|id| (None, file.clone(), id));
        pool.starmap(mark_at, inputs).unwrap();
    }
    let gate = Gate::new();
    let inputs = (0..2000).map(|id| ((id == 500).then(|| gate.path()), id));
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let inputs = inputs.map(|(gate, id)| (gate, done.clone(), id));
    let results = pool.starmap_async(mark_at, inputs);
    let held = gate.accept();
    // All others are done, whichever worker got them first.
    while lines(&done).len() < 1999 {
        std::thread::yield_now();
    }
    held.release();
    assert_eq!(results.get().unwrap().len(), 2000);
}

// ---- errors ---------------------------------------------------------------------------------------

#[pool_task]
fn picky(x: u64) -> u64 {
    assert!(!x.is_multiple_of(10) || x == 0, "not {x}");
    x * x
}

fn each_chunksize(pool: &Pool, check: impl Fn(Call<'_, picky>)) {
    check(pool.task(picky));
    for size in [1, 2, 7, 64, 1000] {
        check(pool.task(picky).chunksize(size));
    }
}

#[track_caller]
fn is_about(error: &Error, x: u64) {
    assert_eq!(error.index(), Some(x as usize));
    let task = error.task().unwrap();
    assert!(task.ends_with("order::picky"), "{task}");
    let Error::Panicked(panicked) = error else {
        panic!("{error:?}");
    };
    assert_eq!(panicked.message(), format!("not {x}"));
    let text = error.to_string();
    assert!(text.contains(task), "{text}");
    assert!(text.contains(&format!("input {x}")), "{text}");
}

#[test]
fn map_tells_the_error_of_the_lowest_index() {
    let _dog = watchdog();
    let pool = pool(3);
    each_chunksize(&pool, |call| {
        is_about(&call.map(0..100).unwrap_err(), 10);
        is_about(&call.map_async(0..100).get().unwrap_err(), 10);
        is_about(&call.starmap((0..100).map(|x| (x,))).unwrap_err(), 10);
        is_about(
            &call
                .starmap_async((0..100).map(|x| (x,)))
                .get()
                .unwrap_err(),
            10,
        );
    });
}

#[test]
fn the_lowest_index_counts_though_another_failed_first() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();

    #[pool_task]
    fn fail_at(gate: &Path, id: u64) {
        stand(gate, id);
        panic!("{id}");
    }

    let inputs = (0..2).map(|id| (gate.path(), id));
    let results = pool.task(fail_at).chunksize(1).starmap_async(inputs);
    let mut both = [gate.accept(), gate.accept()];
    both.sort_by_key(|held| held.id);
    let [first, second] = both;
    second.release();
    // The other has failed by the time its worker does something else.
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
    assert!(!results.ready());
    first.release();
    let error = results.get().unwrap_err();
    assert_eq!(error.index(), Some(0));
}

#[test]
fn nothing_is_skipped_behind_an_error() {
    let _dog = watchdog();
    let pool = pool(3);
    let check = |results: Vec<Result<u64, Error>>| {
        assert_eq!(results.len(), 100);
        for (x, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert_eq!(value, x * x),
                Err(error) => is_about(&error, x),
            }
        }
    };
    each_chunksize(&pool, |call| {
        check(call.map_results(0..100));
        check(call.starmap_results((0..100).map(|x| (x,))));
        check(call.imap(0..100).collect());
        check(call.istarmap((0..100).map(|x| (x,))).collect());
        let mut results: Vec<_> = call.imap_unordered(0..100).collect();
        results.sort_by_key(|result| match result {
            Ok(value) => *value,
            Err(error) => (error.index().unwrap() as u64).pow(2),
        });
        check(results);
    });
    works(&pool);
}

#[test]
fn a_single_call_has_no_index() {
    let _dog = watchdog();
    let pool = pool(1);
    let error = pool.apply(picky, (10,)).unwrap_err();
    assert_eq!(error.index(), None);
    assert!(error.task().unwrap().ends_with("order::picky"));
    assert!(!error.to_string().contains("input"), "{error}");
    for error in [Error::Closed, Error::Timeout] {
        assert_eq!((error.task(), error.index()), (None, None));
    }
}

#[test]
fn many_inputs() {
    let _dog = watchdog();
    let pool = pool(2);
    let products = pool
        .starmap(multiply, (0..100_000).map(|x| (x, 3)))
        .unwrap();
    assert!((0..).zip(&products).all(|(x, product)| *product == 3 * x));
    assert_eq!(products.len(), 100_000);
    let sum: u64 = pool.imap(square, 0..50_000).map(Result::unwrap).sum();
    assert_eq!(sum, (0..50_000u64).map(|x| x * x).sum::<u64>());
}

#[test]
fn a_call_that_is_urgent_does_not_wait_behind_one_that_is_not() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let first = pool.apply_async(wait_at, (gate.path(), 0));
    let held = gate.accept();
    let many = |numbers: std::ops::Range<u64>| numbers.map(|n| (file.path().to_owned(), n));
    let later = pool.task(mark).priority(-1).starmap_async(many(100..120));
    let usual = pool.starmap_async(mark, many(0..50));
    let urgent = pool
        .task(mark)
        .priority(7)
        .apply_async((file.path().to_owned(), 77));
    held.release();
    for result in [later, usual] {
        result.get().unwrap();
    }
    urgent.get().unwrap();
    first.get().unwrap();
    let expected: Vec<u64> = [77].into_iter().chain(0..50).chain(100..120).collect();
    let order = lines(file.path());
    if workers_are_elsewhere() {
        // A load or two were about to begin.
        assert!(order[..10].contains(&77), "{order:?}");
        let late = order[..40].iter().filter(|line| **line >= 100).count();
        assert!(late <= 10, "{order:?}");
        return;
    }
    assert_eq!(order, expected);
}
