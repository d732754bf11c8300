//! The tests of CPython's `multiprocessing.Pool`, under their own names: `_TestPool`,
//! `_TestPoolWorkerErrors` and `_TestPoolWorkerLifetime` of `Lib/test/_test_multiprocessing.py`.
//!
//! Where this pool differs on purpose (it reports the error of the lowest failing index, skips nothing, and `imap` goes
//! on after an error), the test says what is true here. There is no counterpart to `test_resource_warning`, since a
//! dropped pool is terminated, nor to the variants for thread pools and for managers. Keyword arguments do not exist
//! either.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::iter;
use std::panic::{self, AssertUnwindSafe};
use std::process::{self, Command};
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, Side, pool_task};
use serde::{Deserialize, Serialize, Serializer, ser};

use crate::leaks;
use crate::support::{
    Gate, builder, checked, multiply, own_pid, pool, square, wait_at, watchdog,
    workers_are_elsewhere, works,
};

const SAID_WHEN: &str = "somebody said when";

/// Yields `0..total`, and panics at `when`, or immediately without one.
fn throwing(total: u64, when: Option<u64>) -> impl Iterator<Item = u64> {
    let mut next = 0;
    iter::from_fn(move || {
        assert!(when.is_some_and(|when| next != when), "{SAID_WHEN}");
        next += 1;
        (next <= total).then(|| next - 1)
    })
}

/// Fails unless `call` panics with the message of [`throwing`].
#[track_caller]
fn says_when<R>(call: impl FnOnce() -> R) {
    let Err(payload) = panic::catch_unwind(AssertUnwindSafe(call)) else {
        panic!("the iterator's panic did not come through");
    };
    let message = payload.downcast_ref::<String>().expect("a message");
    assert_eq!(message, SAID_WHEN);
}

fn squares(count: u64) -> Vec<u64> {
    (0..count).map(|x| x * x).collect()
}

/// Can't be encoded.
#[derive(Debug, Deserialize)]
struct Unpicklable;

impl Serialize for Unpicklable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom("cannot pickle"))
    }
}

#[pool_task]
fn accept(_: Unpicklable) {}

#[pool_task]
fn unpickleable_result() -> Unpicklable {
    Unpicklable
}

#[pool_task]
fn parse(text: &str) -> i64 {
    text.parse().expect("no number")
}

#[pool_task]
fn nap(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

#[pool_task]
fn slow_square(x: u64) -> u64 {
    thread::sleep(Duration::from_millis(50));
    x * x
}

#[test]
fn apply() {
    let _dog = watchdog();
    let pool = pool(4);
    assert_eq!(pool.apply(square, (5,)).unwrap(), square(5));
}

#[test]
fn map() {
    let _dog = watchdog();
    let pool = pool(4);
    assert_eq!(pool.map(square, 0..10).unwrap(), squares(10));
    let results = pool.task(square).chunksize(20).map(0..100).unwrap();
    assert_eq!(results, squares(100));
}

#[test]
fn starmap() {
    let _dog = watchdog();
    let pool = pool(4);
    let pairs = |count: u64| (0..count).zip((0..count).rev());
    let products = |count| pairs(count).map(|(x, y)| x * y).collect::<Vec<_>>();
    assert_eq!(pool.starmap(multiply, pairs(10)).unwrap(), products(10));
    let results = pool.task(multiply).chunksize(20).starmap(pairs(100));
    assert_eq!(results.unwrap(), products(100));
}

#[test]
fn starmap_async() {
    let _dog = watchdog();
    let pool = pool(4);
    let results = pool.starmap_async(multiply, (0..100).zip((0..100).rev()));
    let expected: Vec<u64> = (0..100).map(|x| x * (99 - x)).collect();
    assert_eq!(results.get().unwrap(), expected);
}

#[test]
fn map_async() {
    let _dog = watchdog();
    let pool = pool(4);
    assert_eq!(pool.map_async(square, 0..10).get().unwrap(), squares(10));
}

#[test]
fn map_async_callbacks() {
    let _dog = watchdog();
    let pool = pool(4);
    let call = |text: &str| {
        let (sender, calls) = mpsc::channel();
        let errors = sender.clone();
        pool.map_async(parse, [text.to_owned()])
            .callback(move |values| sender.send(Ok(values.clone())).unwrap())
            .error_callback(move |error| errors.send(Err(error.clone())).unwrap())
            .wait();
        // The loop ends when both callbacks are gone.
        calls.iter().collect::<Vec<_>>()
    };
    let calls = call("1");
    assert!(
        matches!(&calls[..], [Ok(values)] if *values == [1]),
        "{calls:?}"
    );
    let calls = call("a");
    assert!(matches!(&calls[..], [Err(Error::Panicked(_))]), "{calls:?}");
}

#[test]
fn map_unplicklable() {
    let _dog = watchdog();
    let pool = pool(4);
    let inputs = iter::repeat_with(|| Unpicklable).take(10);
    let error = pool.map(accept, inputs).unwrap_err();
    let Error::Encode(codec) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(codec.side(), Side::Arguments);
    assert_eq!(error.index(), Some(0));
    assert!(error.task().unwrap().ends_with("::accept"), "{error}");
    assert!(matches!(
        pool.apply(accept, (Unpicklable,)),
        Err(Error::Encode(_))
    ));
    let all: Vec<_> = pool.imap(accept, [Unpicklable, Unpicklable]).collect();
    assert!(matches!(
        &all[..],
        [Err(Error::Encode(_)), Err(Error::Encode(_))]
    ));
    works(&pool);
}

#[test]
fn map_chunksize() {
    let _dog = watchdog();
    let pool = pool(4);
    let nothing = iter::empty::<u64>();
    let results = pool.task(square).chunksize(1).map_async(nothing);
    assert_eq!(results.get().unwrap(), [0_u64; 0]);
}

#[test]
fn map_handle_iterable_exception() {
    let _dog = watchdog();
    let pool = pool(4);
    let call = || pool.task(square).chunksize(1);
    says_when(|| call().map(throwing(1, None)));
    says_when(|| call().map(throwing(1, None)));
    says_when(|| call().map(throwing(10, Some(3))));
    says_when(|| call().map_results(throwing(10, Some(3))));
    says_when(|| call().map_async(throwing(10, Some(3))));
    says_when(|| pool.map(square, throwing(10_000, Some(9_000))));

    /// Knows its length, but panics.
    struct Special;
    impl Iterator for Special {
        type Item = u64;
        fn next(&mut self) -> Option<u64> {
            panic!("{SAID_WHEN}")
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (1, Some(1))
        }
    }
    says_when(|| call().map(Special));
    says_when(|| call().map(Special));
    works(&pool);
    pool.close();
    pool.join().unwrap();
}

#[test]
fn r#async() {
    let _dog = watchdog();
    let pool = pool(4);
    assert_eq!(pool.apply_async(slow_square, (7,)).get().unwrap(), 49);
}

#[test]
fn async_timeout() {
    let _dog = watchdog();
    let pool = pool(3);
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 36));
    let early = result.get_timeout(Duration::from_millis(20));
    assert!(matches!(early, Err(Error::Timeout)), "{early:?}");
    pool.terminate();
    pool.join().unwrap();
}

#[test]
fn imap() {
    let _dog = watchdog();
    let pool = pool(4);
    let results: Result<Vec<u64>, Error> = pool.imap(square, 0..10).collect();
    assert_eq!(results.unwrap(), squares(10));

    let mut results = pool.imap(square, 0..10);
    for x in 0..10 {
        assert_eq!(results.next().unwrap().unwrap(), x * x);
    }
    assert!(results.next().is_none());
    assert!(results.next().is_none());

    let mut results = pool.task(square).chunksize(100).imap(0..1000);
    for x in 0..1000 {
        assert_eq!(results.next().unwrap().unwrap(), x * x);
    }
    assert!(results.next().is_none());
}

#[test]
fn imap_handle_iterable_exception() {
    let _dog = watchdog();
    let pool = pool(4);
    for _ in 0..2 {
        let mut results = pool.task(square).chunksize(1).imap(throwing(1, None));
        says_when(|| results.next());
    }
    // CPython drops the results of the chunk that the panic cut short; here they all arrive.
    for (total, when, chunksize) in [(10, 3, 1), (20, 7, 2), (20, 7, 4)] {
        let inputs = throwing(total, Some(when));
        let mut results = pool.task(square).chunksize(chunksize).imap(inputs);
        for x in 0..when {
            assert_eq!(results.next().unwrap().unwrap(), x * x);
        }
        says_when(|| results.next());
        assert!(results.next().is_none(), "the panic comes once");
    }
    works(&pool);
    pool.close();
    pool.join().unwrap();
}

#[test]
fn imap_unordered() {
    let _dog = watchdog();
    let pool = pool(4);
    let collect = |chunksize, count| {
        let results = pool
            .task(square)
            .chunksize(chunksize)
            .imap_unordered(0..count);
        let mut results: Vec<u64> = results.map(Result::unwrap).collect();
        results.sort_unstable();
        results
    };
    assert_eq!(collect(1, 10), squares(10));
    assert_eq!(collect(100, 1000), squares(1000));
}

#[test]
fn imap_unordered_handle_iterable_exception() {
    let _dog = watchdog();
    let pool = pool(4);
    for _ in 0..2 {
        let mut results = pool
            .task(square)
            .chunksize(1)
            .imap_unordered(throwing(1, None));
        says_when(|| results.next());
    }
    for (total, when, chunksize) in [(10, 3, 1), (20, 7, 2)] {
        let inputs = throwing(total, Some(when));
        let mut results = pool
            .task(square)
            .chunksize(chunksize)
            .imap_unordered(inputs);
        let mut before: Vec<u64> = (0..when)
            .map(|_| results.next().unwrap().unwrap())
            .collect();
        before.sort_unstable();
        assert_eq!(before, squares(when));
        says_when(|| results.next());
    }
    works(&pool);
}

#[test]
fn make_pool() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let refused = Pool::with_processes(0).unwrap_err();
    let Error::InvalidSetting(setting) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(setting.setting(), "processes");

    let pool = pool(3);
    assert_eq!(pool.processes(), 3);
    assert_eq!(pool.worker_pids().len(), 3);
    pool.close();
    pool.join().unwrap();
    assert!(pool.worker_pids().is_empty());
}

#[test]
fn terminate() {
    let _dog = watchdog();
    let pool = pool(3);
    let naps = iter::repeat_n(300_000, 10_000);
    let result = pool.task(nap).chunksize(1).map_async(naps);
    pool.terminate();
    pool.join().unwrap();
    assert!(matches!(result.get(), Err(Error::Terminated)));
}

#[test]
fn empty_iterable() {
    let _dog = watchdog();
    let pool = pool(1);
    let nothing = iter::empty::<u64>;
    assert_eq!(pool.map(square, nothing()).unwrap(), [0_u64; 0]);
    assert_eq!(pool.imap(square, nothing()).count(), 0);
    assert_eq!(pool.imap_unordered(square, nothing()).count(), 0);
    assert_eq!(pool.map_async(square, nothing()).get().unwrap(), [0_u64; 0]);
    assert!(pool.task(square).map_results(nothing()).is_empty());
    assert!(pool.map_async(square, nothing()).ready());
    pool.close();
    pool.join().unwrap();
}

#[test]
fn context() {
    let _dog = watchdog();
    let result = {
        let pool = pool(2);
        let result = pool.map_async(square, 0..10);
        result.wait();
        pool.terminate();
        pool.join().unwrap();
        assert!(matches!(
            pool.map_async(square, 0..10).get(),
            Err(Error::Closed)
        ));
        result
    };
    // The results outlive their pool.
    assert_eq!(result.get().unwrap(), squares(10));
}

/// The line of the panic in [`raising`].
const RAISED_AT: u32 = line!() + 5;

#[pool_task]
fn raising() -> u64 {
    if pool_core::worker::is_worker() {
        panic!("{}", 123)
    }
    0
}

#[test]
fn traceback() {
    let _dog = watchdog();
    let pool = pool(1);
    let error = pool.apply(raising, ()).unwrap_err();
    let Error::Panicked(panicked) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(panicked.message(), "123");
    let location = panicked.location().unwrap();
    let here = format!("{}:{RAISED_AT}:", file!());
    assert!(location.starts_with(&here), "{location} is not at {here}");
    let text = error.to_string();
    for part in ["cpython::raising", location, "123"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    // A panic of the caller's own iterator is not an error of a task.
    says_when(|| pool.task(square).chunksize(1).map(throwing(1, None)));
}

#[test]
fn wrapped_exception() {
    let _dog = watchdog();
    let pool = pool(1);
    assert!(matches!(
        pool.apply(raising, ()),
        Err(Error::Panicked(panicked)) if panicked.message() == "123"
    ));
}

#[pool_task]
fn raise_large(x: u64) -> u64 {
    panic!("{x}{}", "x".repeat(1 << 20))
}

#[test]
fn map_no_failfast() {
    let _dog = watchdog();
    let pool = pool(2);
    let error = pool.map(raise_large, [0, 1]).unwrap_err();
    let Error::Panicked(panicked) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(error.index(), Some(0));
    assert_eq!(panicked.message().len(), (1 << 20) + 1);
    pool.close();
    pool.join().unwrap();
}

/// Its reference count shows how many copies exist.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Counted {
    #[serde(skip)]
    count: Arc<()>,
}

#[pool_task]
fn identity(counted: Counted) -> Counted {
    counted
}

#[test]
fn release_task_refs() {
    let _dog = watchdog();
    let pool = pool(2);
    let alive = Arc::new(());
    let counted = || Counted {
        count: Arc::clone(&alive),
    };
    let inputs = || iter::repeat_n(counted(), 10);
    let results = pool.map(identity, inputs()).unwrap();
    assert!(
        results
            .iter()
            .all(|counted| Arc::strong_count(&counted.count) == 1)
    );
    assert_eq!(Arc::strong_count(&alive), 1);
    let pending = pool.map_async(identity, inputs());
    assert_eq!(Arc::strong_count(&alive), 1, "encoded, and needed no more");
    pending.get().unwrap();
    assert_eq!(pool.imap(identity, inputs()).count(), 10);
    assert_eq!(Arc::strong_count(&alive), 1);
    let mut half = pool.imap(identity, inputs());
    half.next().unwrap().unwrap();
    drop(half);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn async_error_callback() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, errors) = mpsc::channel();
    let result = pool
        .apply_async(raising, ())
        .error_callback(move |error| sender.send(error.clone()).unwrap());
    assert!(matches!(result.get(), Err(Error::Panicked(_))));
    assert!(matches!(errors.recv().unwrap(), Error::Panicked(_)));
    assert!(errors.recv().is_err(), "called once");
    pool.close();
    pool.join().unwrap();
}

#[test]
fn unpickleable_results() {
    let _dog = watchdog();
    let pool = pool(2);
    let before = pool.worker_pids();
    for _ in 0..20 {
        let (sender, errors) = mpsc::channel();
        let result = pool
            .apply_async(unpickleable_result, ())
            .error_callback(move |error| sender.send(error.clone()).unwrap());
        let error = result.get().unwrap_err();
        assert!(matches!(&error, Error::Encode(codec) if codec.side() == Side::Result));
        let text = error.to_string();
        assert!(text.contains("cpython::unpickleable_result"), "{text}");
        assert!(matches!(errors.recv().unwrap(), Error::Encode(_)));
    }
    assert_eq!(pool.worker_pids(), before, "no worker was lost to it");
    pool.close();
    pool.join().unwrap();
}

#[test]
fn pool_worker_lifetime() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let pool = checked(builder().processes(3).max_tasks_per_child(10).build());
    let before: HashSet<u32> = pool.worker_pids().into_iter().collect();
    assert_eq!(before.len(), 3);
    let results: Vec<_> = (0..100).map(|x| pool.apply_async(square, (x,))).collect();
    for (x, result) in (0..).zip(results) {
        assert_eq!(result.get().unwrap(), x * x);
    }
    // Three workers were enough for thirty tasks.
    works(&pool);
    let after: HashSet<u32> = pool.worker_pids().into_iter().collect();
    // There are fewer than three while a replacement is still starting.
    assert!(!after.is_empty() && after.len() <= 3);
    assert!(!after.is_superset(&before));
    pool.close();
    pool.join().unwrap();
}

#[test]
fn pool_worker_lifetime_early_close() {
    let _dog = watchdog();
    let pool = checked(builder().processes(3).max_tasks_per_child(1).build());
    let results: Vec<_> = (0..6)
        .map(|x| pool.apply_async(slow_square, (x,)))
        .collect();
    pool.close();
    pool.join().unwrap();
    for (x, result) in (0..).zip(results) {
        assert!(result.ready());
        assert_eq!(result.get().unwrap(), x * x);
    }
}

#[test]
fn pool_maxtasksperchild_invalid() {
    let _dog = watchdog();
    let refused = builder().processes(3).max_tasks_per_child(0).build();
    assert!(matches!(
        refused,
        Err(Error::InvalidSetting(setting)) if setting.setting() == "max_tasks_per_child"
    ));
}

/// Tells the program below where to write the pids of its workers.
const PROGRAM: &str = "PROMISES_POOL_IN_A_STATIC";

/// Not a test, but the program that the next one runs: it leaves a pool behind.
#[test]
fn worker_finalization_program() {
    static PROBLEM: OnceLock<Pool> = OnceLock::new();
    let Some(file) = env::var_os(PROGRAM) else {
        return;
    };
    let _dog = watchdog();
    let pool = PROBLEM.get_or_init(|| Pool::with_processes(1).unwrap());
    assert_eq!(pool.map(square, 0..10).unwrap(), squares(10));
    assert_ne!(pool.apply(own_pid, ()).unwrap(), process::id());
    let pids: Vec<String> = pool.worker_pids().iter().map(u32::to_string).collect();
    fs::write(file, pids.join("\n")).unwrap();
}

#[test]
fn worker_finalization_via_atexit_handler_of_multiprocessing() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let program = Command::new(env::current_exe().unwrap())
        .args(["--exact", "cpython::worker_finalization_program"])
        .env(PROGRAM, &file)
        .output()
        .unwrap();
    assert!(program.status.success(), "{program:?}");
    let pids = fs::read_to_string(file).unwrap();
    assert_eq!(pids.lines().count(), 1);
    for pid in pids.lines() {
        leaks::wait_until_dead(pid.parse().unwrap());
    }
}
