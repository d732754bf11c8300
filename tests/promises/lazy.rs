//! `imap` draws its inputs as its results are consumed.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::iter;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

use crate::support::{
    Gate, lines, mark, pool, square, stand, wait_at, watchdog, workers_are_elsewhere, works,
};

const SHORT: Duration = Duration::from_millis(20);

/// Returns `0..`, and a counter of how many of its items were drawn.
fn counted() -> (impl Iterator<Item = u64>, Rc<Cell<usize>>) {
    let drawn = Rc::new(Cell::new(0));
    let count = Rc::clone(&drawn);
    let inputs = (0..).inspect(move |_| count.set(count.get() + 1));
    (inputs, drawn)
}

/// Consumes `count` results, and fails if more is ever drawn than the bound allows.
#[track_caller]
fn check_bound(
    mut results: impl Iterator<Item = Result<u64, Error>>,
    drawn: &Cell<usize>,
    ahead: usize,
    count: usize,
) {
    for consumed in 0..count {
        let now = drawn.get();
        assert!(
            now <= consumed + ahead,
            "{now} drawn at {consumed} of {ahead}"
        );
        results.next().unwrap().unwrap();
    }
}

#[test]
fn endless_inputs_are_drawn_a_little_ahead() {
    let _dog = watchdog();
    for workers in [1, 3] {
        let pool = pool(workers);
        for size in [1, 2, 10, 100] {
            let ahead = workers * (size + 2);
            let (inputs, drawn) = counted();
            let results = pool.task(square).chunksize(size).imap(inputs);
            check_bound(results, &drawn, ahead, 1000);
            let (inputs, drawn) = counted();
            let results = pool.task(square).chunksize(size).imap_unordered(inputs);
            check_bound(results, &drawn, ahead, 1000);
        }
        // The pool's own chunks do not grow without bound here.
        let ahead = workers * 66;
        let (inputs, drawn) = counted();
        check_bound(pool.imap(square, inputs), &drawn, ahead, 5000);
        let (inputs, drawn) = counted();
        check_bound(pool.imap_unordered(square, inputs), &drawn, ahead, 5000);
    }
}

#[test]
fn a_chunk_larger_than_all_inputs() {
    let _dog = watchdog();
    let pool = pool(2);
    let results = pool.task(square).chunksize(1_000_000).imap(0..100);
    assert_eq!(results.map(Result::unwrap).max(), Some(99 * 99));
}

#[test]
fn work_begins_before_the_first_result_is_asked_for() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let results = pool
        .task(wait_at)
        .istarmap((0..).map(|id| (gate.path(), id)));
    gate.let_through(2);
    drop(results);
    // One or two more may have begun when the first two had finished.
    while let Some(held) = gate.poll() {
        held.release();
    }
}

#[test]
fn what_had_not_begun_is_not_run_after_drop() {
    if workers_are_elsewhere() {
        // They begin what they have until they hear that nobody wants it.
        return;
    }
    let _dog = watchdog();
    for unordered in [false, true] {
        let pool = pool(1);
        let gate = Gate::new();
        let inputs = (0..100).map(|id| (gate.path(), id));
        let call = pool.task(wait_at).chunksize(1);
        let mut results: Box<dyn Iterator<Item = _>> = if unordered {
            Box::new(call.istarmap_unordered(inputs))
        } else {
            Box::new(call.istarmap(inputs))
        };
        gate.let_through(1);
        assert_eq!(results.next().unwrap().unwrap(), 0);
        let second = gate.accept();
        drop(results);
        // A running input runs to its end.
        second.release();
        works(&pool);
        pool.close();
        pool.join().unwrap();
        assert!(gate.poll().is_none(), "what was taken back was run");
    }
}

#[test]
fn dropping_many_halves_leaves_the_pool_usable() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(2);
    for round in 0..50usize {
        let file = directory.path().join(round.to_string());
        let inputs = (0..).map(|line| (file.clone(), line));
        let size = round % 5 + 1;
        let mut results = pool.task(mark).chunksize(size).istarmap(inputs);
        let half = results.by_ref().take(round).map(Result::unwrap);
        assert_eq!(
            half.collect::<Vec<_>>(),
            (0..round as u64).collect::<Vec<_>>()
        );
        drop(results);
        works(&pool);
        assert!(lines(&file).len() <= round + 2 * (size + 2));
    }
    pool.close();
    pool.join().unwrap();
}

#[test]
fn imap_ends_after_terminate() {
    let _dog = watchdog();
    for chunk in [1, 5] {
        let pool = pool(2);
        let (inputs, drawn) = counted();
        let mut results = pool.task(square).chunksize(chunk).imap(inputs);
        assert_eq!(results.next().unwrap().unwrap(), 0);
        pool.terminate();
        let mut items = 1;
        for item in results.by_ref() {
            items += 1;
            if let Err(error) = item {
                assert!(matches!(error, Error::Terminated), "{error}");
            }
        }
        assert!(results.next().is_none());
        // The last items drawn were refused: one error stands for them.
        let refused = drawn.get() + 1 - items;
        assert!((chunk..=2 * (chunk + 2)).contains(&refused), "{refused}");
    }
}

#[test]
fn imap_goes_on_after_close() {
    let _dog = watchdog();
    let pool = pool(2);
    let mut results = pool.task(square).chunksize(1).imap(0..100);
    assert_eq!(results.next().unwrap().unwrap(), 0);
    pool.close();
    let rest: Vec<u64> = results.map(Result::unwrap).collect();
    assert_eq!(rest, (1..100).map(|x| x * x).collect::<Vec<_>>());
    pool.join().unwrap();
}

#[test]
fn join_refuses_to_wait_for_its_own_thread() {
    let _dog = watchdog();
    let pool = pool(2);
    let mut results = pool.task(square).chunksize(1).imap(0..100);
    pool.close();
    assert!(matches!(pool.join(), Err(Error::StillOpen)));
    assert!(matches!(pool.join_timeout(SHORT), Err(Error::StillOpen)));
    assert_eq!(results.by_ref().map(Result::unwrap).count(), 100);
    pool.join().unwrap();
    drop(results);
}

#[test]
fn join_after_the_half_consumed_was_dropped() {
    let _dog = watchdog();
    let pool = pool(2);
    let mut results = pool.imap(square, 0..);
    results.next().unwrap().unwrap();
    pool.close();
    assert!(matches!(pool.join(), Err(Error::StillOpen)));
    drop(results);
    pool.join().unwrap();
}

#[test]
fn join_when_all_was_drawn_but_not_consumed() {
    let _dog = watchdog();
    let pool = pool(2);
    // So few that they are all drawn at once.
    let results = pool.task(square).chunksize(4).imap(0..5);
    pool.close();
    pool.join().unwrap();
    assert_eq!(
        results.map(Result::unwrap).collect::<Vec<_>>(),
        [0, 1, 4, 9, 16]
    );
}

#[test]
fn join_waits_for_the_stream_of_another_thread() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    thread::scope(|scope| {
        let consumer = scope.spawn(|| {
            let inputs = (0..50).map(|id| (gate.path(), id));
            let results = pool.task(wait_at).chunksize(1).istarmap(inputs);
            results.map(Result::unwrap).count()
        });
        let first = gate.accept();
        pool.close();
        assert!(matches!(pool.join_timeout(SHORT), Err(Error::Timeout)));
        first.release();
        let joiner = scope.spawn(|| pool.join());
        gate.let_through(49);
        assert_eq!(consumer.join().unwrap(), 50);
        joiner.join().unwrap().unwrap();
    });
}

#[test]
fn next_timeout_loses_nothing_in_order() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let inputs = (0..10).map(|id| (gate.path(), id));
    let mut results = pool.task(wait_at).chunksize(1).istarmap(inputs);
    let mut all = Vec::new();
    let mut timeouts = 0;
    while all.len() < 10 {
        for timeout in [Duration::ZERO, SHORT] {
            match results.next_timeout(timeout).unwrap() {
                Ok(value) => all.push(value),
                Err(Error::Timeout) => timeouts += 1,
                Err(error) => panic!("{error:?}"),
            }
            if all.len() == 10 {
                break;
            }
        }
        if let Some(held) = gate.poll() {
            held.release();
        }
    }
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    assert!(timeouts > 0, "nobody had been let through at first");
    assert!(results.next_timeout(Duration::ZERO).is_none());
    assert!(results.next_timeout(Duration::MAX).is_none());
}

#[test]
fn next_timeout_loses_nothing_unordered() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let inputs = (0..10).map(|id| (gate.path(), id));
    let mut results = pool.task(wait_at).chunksize(1).istarmap_unordered(inputs);
    let mut all = Vec::new();
    for _ in 0..10 {
        let held = gate.accept();
        for timeout in [Duration::ZERO, SHORT] {
            let early = results.next_timeout(timeout);
            assert!(matches!(early, Some(Err(Error::Timeout))), "{early:?}");
        }
        held.release();
        all.push(results.next_timeout(Duration::MAX).unwrap().unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    assert!(results.next_timeout(Duration::ZERO).is_none());
    assert!(results.next_timeout(Duration::MAX).is_none());
}

#[test]
fn the_end_stays_the_end() {
    let _dog = watchdog();
    let pool = pool(1);
    // An iterator that would go on after its end is not asked again.
    let mut calls = 0;
    let inputs = iter::from_fn(|| {
        calls += 1;
        (calls != 3).then_some(calls)
    });
    let mut results = pool.imap(square, inputs);
    assert_eq!(
        results.by_ref().map(Result::unwrap).collect::<Vec<_>>(),
        [1, 4]
    );
    for _ in 0..3 {
        assert!(results.next().is_none());
        assert!(results.next_timeout(Duration::ZERO).is_none());
    }
    drop(results);
    assert_eq!(calls, 3);
}

#[test]
fn the_size_of_what_is_left_is_known() {
    let _dog = watchdog();
    let pool = pool(2);
    let mut results = pool.imap(square, 0..10);
    for left in (1..=10).rev() {
        assert_eq!(results.size_hint(), (left, Some(left)));
        results.next().unwrap().unwrap();
    }
    assert_eq!(results.size_hint(), (0, Some(0)));
    assert!(results.next().is_none());
    assert_eq!(pool.imap(square, 0..).size_hint().1, None);
}

#[test]
fn an_exact_size_stays_true_whatever_becomes_of_the_pool() {
    let _dog = watchdog();
    let file = tempfile::NamedTempFile::new().unwrap();
    for unordered in [false, true] {
        let pool = Arc::new(pool(2));
        let inputs: Vec<_> = (0..1000)
            .map(|line| (file.path().to_owned(), line))
            .collect();
        let call = pool.task(mark).chunksize(3);
        let mut results: Box<dyn ExactSizeIterator<Item = _> + Send> = if unordered {
            Box::new(call.istarmap_unordered(inputs))
        } else {
            Box::new(call.istarmap(inputs))
        };
        // Another thread continues where this one was, and has the pool.
        let others = Arc::clone(&pool);
        let consumer = thread::spawn(move || {
            for left in (990..1000).rev() {
                results.next().unwrap().unwrap();
                assert_eq!(results.len(), left);
            }
            others.terminate();
            let mut last = results.len();
            for result in results.by_ref() {
                assert!(
                    matches!(result, Ok(_) | Err(Error::Terminated)),
                    "{result:?}"
                );
                last -= 1;
            }
            assert_eq!((last, results.len()), (0, 0));
            assert!(results.next().is_none());
        });
        consumer.join().unwrap();
    }
}

#[test]
fn results_outlive_their_pool() {
    let _dog = watchdog();
    let pool = pool(1);
    let mut results = pool.imap(square, vec![1, 2, 3]);
    assert_eq!(results.next().unwrap().unwrap(), 1);
    drop(pool);
    let rest: Vec<_> = results.collect();
    assert_eq!(rest.len(), 2);
}

#[test]
fn one_result_of_two_tells_where_its_input_stood() {
    let _dog = watchdog();
    let pool = pool(3);
    let inputs: Vec<u64> = (0..1000).rev().collect();
    let results = pool.imap_unordered(square, inputs.clone()).indexed();
    assert_eq!(results.len(), 1000);
    let mut seen = vec![false; 1000];
    for (index, result) in results {
        assert_eq!(result.unwrap(), inputs[index] * inputs[index]);
        assert!(!std::mem::replace(&mut seen[index], true));
    }
    assert!(seen.into_iter().all(|seen| seen));
    // Also calls that fail, and calls that are no longer accepted.
    let file = Path::new("/nowhere/at/all");
    let results = pool.istarmap_unordered(mark, vec![(file.to_owned(), 1); 50]);
    let mut indices: Vec<usize> = results
        .indexed()
        .inspect(|_| pool.terminate())
        .map(|(index, result)| {
            assert!(result.is_err());
            index
        })
        .collect();
    indices.sort_unstable();
    assert!(indices.into_iter().eq(0..50));
}

#[test]
fn map_draws_as_it_goes() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("done");
    let pool = pool(2);
    let inputs = (0..1000).map(|id| {
        if id == 999 {
            assert!(
                !lines(&file).is_empty(),
                "all was drawn before any work was done"
            );
        }
        (file.clone(), id)
    });
    let results = pool.starmap(mark, inputs).unwrap();
    assert_eq!(results, (0..1000).collect::<Vec<_>>());
}

#[test]
fn streams_side_by_side() {
    let _dog = watchdog();
    let pool: &Pool = &pool(2);
    let mut streams: Vec<_> = (0..8).map(|from| pool.imap(square, from..)).collect();
    for step in 0..200u64 {
        for (from, stream) in (0..).zip(&mut streams) {
            assert_eq!(stream.next().unwrap().unwrap(), (from + step).pow(2));
        }
    }
}

#[pool_task]
fn quick_or_stuck(gate: &Path, id: u64, stuck: bool) -> u64 {
    if stuck {
        stand(gate, id);
    }
    id
}

#[test]
fn results_do_not_wait_for_a_task_that_takes_its_time_behind_them() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    // Learn that the task is quick, so that many inputs are sent to the worker at once.
    let quick = (0..1000).map(|id| (gate.path(), id, false));
    assert_eq!(pool.starmap(quick_or_stuck, quick).unwrap().len(), 1000);
    // Each stuck input is let through only after the results of all inputs before it have been seen.
    let inputs = (0..300).map(|id| (gate.path(), id, id % 100 == 99));
    let mut results = pool.istarmap_unordered(quick_or_stuck, inputs);
    let mut seen = BTreeSet::new();
    for stuck in [99, 199, 299] {
        // Two threads may deliver what has arrived, so neighbors may change places.
        while !(0..stuck).all(|id| seen.contains(&id)) {
            seen.insert(results.next().unwrap().unwrap());
        }
        assert!(!seen.contains(&stuck));
        gate.accept().release();
        while !seen.contains(&stuck) {
            seen.insert(results.next().unwrap().unwrap());
        }
    }
    assert!(results.next().is_none());
}

/// Its inputs would fill the memory.
#[test]
fn map_draws_few_large_inputs_ahead() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let drawn = AtomicUsize::new(0);
    let large = || {
        drawn.fetch_add(1, Ordering::Relaxed);
        vec![0_u8; 8 << 20]
    };
    thread::scope(|scope| {
        let inputs = (0..40).map(|id| (gate.path(), id, large()));
        let results = scope.spawn(|| pool.task(hold_large).starmap(inputs));
        // The first ones wait until they may go on; by then enough has been drawn.
        for _ in 0..40 {
            let held = gate.accept();
            let ahead = drawn.load(Ordering::Relaxed) - held.id as usize;
            assert!(ahead <= 16, "{ahead}");
            held.release();
        }
        assert_eq!(results.join().unwrap().unwrap().len(), 40);
    });
}

#[pool_task]
fn hold_large(gate: &Path, id: u64, _large: &[u8]) {
    stand(gate, id);
}
