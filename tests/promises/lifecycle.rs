//! From `build` to `drop`: settings, initializers, the life of workers, `close`, `terminate`, `join`.

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::ffi::{OsStr, OsString};
use std::iter;
use std::os::unix::ffi::OsStrExt;
use std::panic;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use pool_core::{AsyncResult, Error, Pool, PoolBuilder, Shared, pool_task, worker};
use serde::{Deserialize, Serialize};

use crate::leaks;
use crate::support::{
    Gate, append, builder, checked, forever, hang, is_sandboxed, lines, mark, own_pid, pool,
    signal, square, wait_at, watchdog, who, workers_are_elsewhere, works,
};

/// Short, but long enough for a timeout to have passed.
const SHORT: Duration = Duration::from_millis(20);

fn is_closed<R>(result: &Result<R, Error>) -> bool {
    matches!(result, Err(Error::Closed))
}

#[track_caller]
fn refuses_work(pool: &Pool) {
    assert!(is_closed(&pool.apply(square, (1,))));
    assert!(is_closed(&pool.apply_async(square, (1,)).get()));
    assert!(is_closed(&pool.map(square, 0..5)));
    assert!(is_closed(&pool.map_async(square, 0..5).get()));
    assert!(is_closed(&pool.starmap(square, [(1,)])));
    assert!(is_closed(&pool.starmap_async(square, [(1,)]).get()));
    let mut refused = pool.imap(square, 0..5);
    assert!(is_closed(&refused.next().unwrap()));
    assert!(refused.next().is_none());
    let mut refused = pool.imap_unordered(square, 0..5);
    assert!(is_closed(&refused.next().unwrap()));
    assert!(refused.next().is_none());
    let results = pool.task(square).map_results(0..5);
    assert_eq!(results.len(), 5);
    assert!(results.iter().all(is_closed));
}

// ---- close, join, terminate -----------------------------------------------------------------------

#[test]
fn close_lets_what_was_accepted_run() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let held: Vec<_> = (0..6)
        .map(|id| pool.apply_async(wait_at, (gate.path(), id)))
        .collect();
    pool.close();
    refuses_work(&pool);
    gate.let_through(6);
    pool.join().unwrap();
    for (id, result) in (0..).zip(held) {
        assert!(result.ready());
        assert_eq!(result.get().unwrap(), id);
    }
    assert!(pool.worker_pids().is_empty());
    refuses_work(&pool);
}

#[test]
fn join_needs_close() {
    let _dog = watchdog();
    let pool = pool(1);
    assert!(matches!(pool.join(), Err(Error::StillOpen)));
    assert!(matches!(pool.join_timeout(SHORT), Err(Error::StillOpen)));
    works(&pool);
}

#[test]
fn all_may_be_called_again() {
    let _dog = watchdog();
    let closed = pool(2);
    closed.close();
    closed.close();
    closed.join().unwrap();
    closed.join().unwrap();
    closed.close();
    closed.terminate();
    closed.join().unwrap();
    refuses_work(&closed);

    let terminated = pool(2);
    terminated.terminate();
    terminated.terminate();
    terminated.close();
    terminated.join().unwrap();
    terminated.terminate();
    terminated.join().unwrap();
    refuses_work(&terminated);
}

#[test]
fn all_may_be_called_from_any_thread() {
    let _dog = watchdog();
    for round in 0..10 {
        let pool = pool(2);
        let results = pool.map_async(square, 0..1000);
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for thread in 0..8 {
                let (pool, start) = (&pool, &start);
                scope.spawn(move || {
                    start.wait();
                    if (thread + round) % 4 == 0 {
                        pool.terminate();
                    } else {
                        pool.close();
                    }
                    pool.join().unwrap();
                });
            }
        });
        assert!(matches!(results.get(), Ok(_) | Err(Error::Terminated)));
        refuses_work(&pool);
    }
}

#[test]
fn all_may_be_called_from_a_callback() {
    let _dog = watchdog();
    for terminate in [false, true] {
        let pool = Arc::new(builder().processes(2).build().unwrap());
        let pids = pool.worker_pids();
        let (sender, joined) = mpsc::channel();
        let inner = Arc::clone(&pool);
        let result = pool.apply_async(square, (3,)).callback(move |_| {
            if terminate {
                inner.terminate();
            }
            inner.close();
            inner.close();
            sender.send(inner.join().is_ok()).unwrap();
        });
        assert_eq!(result.get().unwrap(), 9);
        assert!(joined.recv().unwrap());
        pool.join().unwrap();
        drop(pool);
        leaks::none_left(&pids);
    }
}

#[test]
fn join_waits_for_callbacks() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let calls = Arc::new(AtomicU64::new(0));
    for id in 0..4 {
        let calls = Arc::clone(&calls);
        drop(
            pool.apply_async(wait_at, (gate.path(), id))
                .callback(move |_| {
                    calls.fetch_add(1, Ordering::Relaxed);
                }),
        );
    }
    gate.let_through(4);
    pool.close();
    pool.join().unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 4);
}

#[test]
fn join_timeout_gives_up_and_may_be_asked_again() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 7));
    pool.close();
    assert!(matches!(pool.join_timeout(SHORT), Err(Error::Timeout)));
    assert!(matches!(
        pool.join_timeout(Duration::ZERO),
        Err(Error::Timeout)
    ));
    gate.let_through(1);
    pool.join_timeout(Duration::MAX).unwrap();
    assert_eq!(result.get().unwrap(), 7);
}

#[test]
fn terminate_ends_every_open_result() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let running = pool.apply_async(wait_at, (gate.path(), 0));
    let _at_the_gate = gate.accept();
    let queued: Vec<_> = (1..20)
        .map(|id| pool.apply_async(wait_at, (gate.path(), id)))
        .collect();
    let many = pool.map_async(square, 0..10_000);
    let mut stream = pool
        .task(wait_at)
        .istarmap((20..).map(|id| (gate.path(), id)));
    thread::scope(|scope| {
        // Waiting callers are woken.
        let map = scope.spawn(|| pool.map(square, 0..u64::MAX));
        let apply = scope.spawn(|| pool.apply(wait_at, (gate.path(), 99)));
        let waiting = scope.spawn(move || running.get());
        pool.terminate();
        for ended in [waiting.join().unwrap(), apply.join().unwrap()] {
            assert!(matches!(ended, Err(Error::Terminated | Error::Closed)));
        }
        let ended = map.join().unwrap();
        assert!(matches!(ended, Err(Error::Terminated | Error::Closed)));
    });
    for result in queued {
        assert!(result.ready() || workers_are_elsewhere());
        result.wait();
        assert_eq!(result.successful(), Some(false));
        assert!(matches!(result.get(), Err(Error::Terminated)));
    }
    assert!(matches!(many.get(), Err(Error::Terminated)));
    // An endless stream ends.
    assert!(stream.all(|result| matches!(result, Err(Error::Terminated))));
    assert!(stream.next().is_none());
    pool.join().unwrap();
}

#[test]
fn terminate_ends_a_map_under_way() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    thread::scope(|scope| {
        let map = scope.spawn(|| pool.map(square, iter::repeat(3)));
        let results = scope.spawn(|| {
            let endless = (0..).map(|id| (gate.path(), id));
            pool.task(wait_at)
                .chunksize(1)
                .starmap_results(endless.take(100))
        });
        let first = gate.accept();
        let id = first.id;
        first.release();
        let _second = gate.accept();
        pool.terminate();
        // Its thread may have come too late.
        assert!(matches!(
            map.join().unwrap(),
            Err(Error::Terminated | Error::Closed)
        ));
        let results = results.join().unwrap();
        assert_eq!(results.len(), 100);
        for (index, result) in results.into_iter().enumerate() {
            match result {
                Ok(value) => assert_eq!((value, value), (id, index as u64)),
                Err(Error::Terminated) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    });
}

// ---- drop -----------------------------------------------------------------------------------------

/// Stops itself with SIGSTOP, and goes on waiting if it is ever continued.
#[pool_task]
fn stop_yourself(gate: &Path) {
    crate::support::stand(gate, 0);
    // SAFETY: no memory is involved.
    unsafe { libc::raise(libc::SIGSTOP) };
    forever();
}

/// Ignores requests to end.
#[pool_task]
fn ignore_sigterm(gate: &Path) {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    crate::support::stand(gate, 0);
    forever();
}

#[test]
fn drop_leaves_no_child_whatever_the_workers_do() {
    let _dog = watchdog();
    let gate = Gate::new();
    let pool = builder().processes(4).build().unwrap();
    let pids = pool.worker_pids();
    let mut results = vec![
        pool.apply_async(hang, ()),
        pool.apply_async(stop_yourself, (gate.path(),)),
        pool.apply_async(ignore_sigterm, (gate.path(),)),
    ];
    gate.let_through(2);
    results.extend((0..100).map(|_| pool.apply_async(hang, ())));
    drop(pool);
    leaks::none_left(&pids);
    for result in results {
        assert!(result.ready());
        assert!(!result.cancel());
        assert!(matches!(result.get(), Err(Error::Terminated)));
    }
}

#[pool_task]
fn wait_with(gate: &Path, input: &[u8]) -> usize {
    crate::support::stand(gate, 0);
    input.len()
}

#[pool_task]
fn length(input: &[u8]) -> usize {
    input.len()
}

/// The second input waits for room in memory that the worker empties only when it has finished the first. Taking that
/// input back, or ending the pool, must not wait for the room too.
#[test]
fn inputs_that_wait_for_room() {
    let _dog = watchdog();
    let gate = Gate::new();
    for first in [0, 40_000, 400_000] {
        for second in [10_000, 60_000, 100_000, 400_000] {
            let (first, second) = (vec![1; first], vec![2; second]);
            for way in 0..4 {
                let pool = pool(1);
                let running = pool.apply_async(wait_with, (gate.path(), first.clone()));
                let held = gate.accept();
                let waiting = pool.apply_async(length, (second.clone(),));
                match way {
                    0 => {
                        waiting.cancel();
                        held.release();
                        assert_eq!(running.get().unwrap(), first.len());
                        works(&pool);
                    }
                    1 => {
                        assert!(running.cancel());
                        assert_eq!(waiting.get().unwrap(), second.len());
                    }
                    2 => {
                        pool.terminate();
                        assert!(matches!(running.get(), Err(Error::Terminated)));
                        assert!(matches!(waiting.get(), Err(Error::Terminated)));
                    }
                    _ => {
                        held.release();
                        assert_eq!(waiting.get().unwrap(), second.len());
                        assert_eq!(running.get().unwrap(), first.len());
                    }
                }
            }
        }
    }
}

#[test]
fn drop_of_an_idle_pool_with_stopped_workers() {
    let _dog = watchdog();
    let pool = pool(2);
    for pid in pool.worker_pids() {
        signal(pid, libc::SIGSTOP);
    }
}

#[test]
fn drop_while_it_starts_over() {
    let _dog = watchdog();
    for _ in 0..20 {
        let pool = pool(2);
        for pid in pool.worker_pids() {
            signal(pid, libc::SIGKILL);
        }
    }
}

#[test]
fn a_forked_copy_does_nothing_on_drop() {
    let _dog = watchdog();
    let pool = builder().processes(2).build().unwrap();
    let pids = pool.worker_pids();
    let (sender, called) = mpsc::channel();
    // The copy must not need the thread that runs callbacks either.
    drop(
        pool.apply_async(square, (2,))
            .callback(move |_| sender.send(()).unwrap()),
    );
    called.recv().unwrap();
    // SAFETY: the child drops the pool and exits. That takes no lock that any thread can hold now: the pool is idle,
    // and glibc keeps its allocator usable.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(pool);
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` is valid for writes.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((ended, status), (child, 0));
    works(&pool);
    assert_eq!(pool.worker_pids(), pids);
    drop(pool);
    leaks::none_left(&pids);
}

// ---- settings -------------------------------------------------------------------------------------

#[track_caller]
fn refused(result: Result<impl Sized, Error>, name: &str) {
    match result {
        Err(error @ Error::InvalidSetting(_)) => {
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("{name} was accepted"),
    }
}

#[test]
fn impossible_settings_are_refused() {
    let _dog = watchdog();
    refused(Pool::with_processes(0), "processes");
    refused(builder().processes(0).build(), "processes");
    let one = || builder().processes(1);
    refused(one().max_tasks_per_child(0).build(), "max_tasks_per_child");
    refused(one().start_timeout(Duration::ZERO).build(), "start_timeout");

    let pool = pool(1);
    let none = || pool.task(square).chunksize(0);
    refused(none().map(0..3), "chunksize");
    refused(none().map_async(0..3).get(), "chunksize");
    refused(none().apply((3,)), "chunksize");
    refused(none().imap(0..3).next().unwrap(), "chunksize");
    refused(none().imap_unordered(0..3).next().unwrap(), "chunksize");
    refused(none().starmap([(1,)]), "chunksize");
    let results = none().map_results(0..3);
    assert_eq!(results.len(), 3);
    for result in results {
        refused(result, "chunksize");
    }
    let at_once = pool.task(square).time_limit(Duration::ZERO);
    refused(at_once.map(0..3), "time_limit");
    works(&pool);
}

#[test]
fn a_pool_has_a_worker_for_each_cpu() {
    let _dog = watchdog();
    let pool = checked(Pool::new());
    let cpus = thread::available_parallelism().unwrap().get();
    assert_eq!(pool.processes(), cpus);
    let pids: HashSet<u32> = pool.worker_pids().into_iter().collect();
    assert_eq!(pids.len(), cpus);
    assert!(!pids.contains(&process::id()));
    works(&pool);
}

#[test]
fn huge_settings_are_no_harm() {
    let _dog = watchdog();
    let settings = builder()
        .processes(1)
        .max_tasks_per_child(usize::MAX)
        .start_timeout(Duration::MAX);
    let pool = checked(settings.build());
    let call = pool
        .task(square)
        .chunksize(usize::MAX)
        .time_limit(Duration::MAX)
        .retries(u32::MAX);
    assert_eq!(call.map(0..3).unwrap(), [0, 1, 4]);
    assert_eq!(call.map_async(0..3).get().unwrap(), [0, 1, 4]);
    assert_eq!(call.imap(0..3).count(), 3);
    assert_eq!(call.apply((3,)).unwrap(), 9);
    let result = pool.apply_async(square, (3,));
    assert_eq!(result.get_timeout(Duration::MAX).unwrap(), 9);
}

// ---- the life of a worker -------------------------------------------------------------------------

#[test]
fn workers_keep_static_state() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let pool = pool(1);
    let answers = pool.map(who, 0..20).unwrap();
    let pid = pool.worker_pids()[0];
    let expected: Vec<(u32, u64)> = (0..20).map(|calls| (pid, calls)).collect();
    assert_eq!(answers, expected);
    assert_eq!(pool.apply(who, (0,)).unwrap(), (pid, 20));
}

/// Returns how many of `answers` each process gave, and checks that each process counted its own from 0.
fn by_process(answers: &[(u32, u64)]) -> BTreeMap<u32, u64> {
    let mut counts = BTreeMap::new();
    for (pid, calls) in answers {
        let seen = counts.entry(*pid).or_insert(0);
        assert_eq!(seen, calls, "{answers:?}");
        *seen += 1;
    }
    counts
}

#[test]
fn max_tasks_per_child_counts_inputs() {
    let _dog = watchdog();
    let pool = checked(builder().processes(1).max_tasks_per_child(3).build());
    let sizes = |answers: &[(u32, u64)]| by_process(answers).into_values().collect::<Vec<_>>();
    // One by one, and in the pool's own chunks: never more than three.
    for call in [pool.task(who).chunksize(1), pool.task(who)] {
        let answers = call.map(0..12).unwrap();
        assert_eq!(sizes(&answers), [3; 4]);
    }
    // A chunk that has begun is finished.
    let answers = pool.task(who).chunksize(5).map(0..20).unwrap();
    assert_eq!(sizes(&answers), [5; 4]);
    let answers = pool.task(who).chunksize(2).map(0..8).unwrap();
    assert_eq!(sizes(&answers), [4; 2]);
    let answers: Vec<_> = pool.imap(who, 0..9).map(Result::unwrap).collect();
    assert_eq!(sizes(&answers), [3; 3]);
}

#[test]
fn max_tasks_per_child_of_one_is_a_process_a_task() {
    let _dog = watchdog();
    let pool = checked(builder().processes(2).max_tasks_per_child(1).build());
    let answers = pool.map(who, 0..30).unwrap();
    assert_eq!(by_process(&answers).len(), 30);
}

#[pool_task]
fn prepare(file: &Path) {
    append(file, u64::from(process::id()));
    PREPARED.fetch_add(1, Ordering::Relaxed);
}

static PREPARED: AtomicU64 = AtomicU64::new(0);

/// Returns how often [`prepare`] ran in this process, and the pid of this process.
#[pool_task]
fn prepared(_: u64) -> (u64, u32) {
    (PREPARED.load(Ordering::Relaxed), process::id())
}

fn prepared_by(file: &Path) -> PoolBuilder {
    builder().initializer(prepare, (file.to_owned(),))
}

#[test]
fn the_initializer_runs_once_in_each_worker() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prepared");
    let pool = checked(prepared_by(&file).processes(3).build());
    // It has finished when `build` returns.
    let mut prepared_pids = lines(&file);
    let mut pids: Vec<u64> = pool.worker_pids().into_iter().map(u64::from).collect();
    prepared_pids.sort_unstable();
    pids.sort_unstable();
    assert_eq!(prepared_pids, pids);
    let answers = pool.map(prepared, 0..100).unwrap();
    assert!(answers.iter().all(|(times, _)| *times == 1));
    assert_eq!(lines(&file).len(), 3);
    assert_eq!(PREPARED.load(Ordering::Relaxed), 0, "not in the parent");
}

#[test]
fn replacements_run_the_initializer() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prepared");
    let builder = prepared_by(&file).processes(1).max_tasks_per_child(5);
    let pool = checked(builder.build());
    let answers = pool.map(prepared, 0..20).unwrap();
    assert!(answers.iter().all(|(times, _)| *times == 1));
    let users: HashSet<u64> = answers.iter().map(|(_, pid)| u64::from(*pid)).collect();
    assert_eq!(users.len(), 4);
    // A worker that replaces a dead one runs it too.
    for pid in pool.worker_pids() {
        signal(pid, libc::SIGKILL);
    }
    let (times, pid) = pool.apply(prepared, (0,)).unwrap();
    assert_eq!(times, 1);
    pool.close();
    pool.join().unwrap();
    let all: HashSet<u64> = lines(&file).into_iter().collect();
    assert_eq!(all.len(), lines(&file).len(), "twice in one worker");
    assert!(users.is_subset(&all));
    assert!(all.contains(&u64::from(pid)));
}

#[pool_task]
fn fail_to_start(how: &str, file: &Path) {
    append(file, u64::from(process::id()));
    match how {
        "panic" => panic!("no database on port {}", 5432),
        "long panic" => panic!("no database {}", "at all ".repeat(50_000)),
        "rubbish" => {
            for descriptor in 3..64 {
                let rubbish = [0xa5_u8; 100];
                // SAFETY: the bytes are ours. Whose descriptor it is does not matter here.
                unsafe { libc::write(descriptor, rubbish.as_ptr().cast(), rubbish.len()) };
            }
            process::exit(4)
        }
        "exit" => process::exit(3),
        "exit in peace" => process::exit(0),
        "abort" => process::abort(),
        "kill" => signal(process::id(), libc::SIGKILL),
        _ => {}
    }
    forever();
}

#[test]
fn build_says_why_an_initializer_failed() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let cases = [
        ("panic", &["no database on port 5432", "lifecycle.rs:"][..]),
        ("long panic", &["no database at all", "lifecycle.rs:"]),
        ("rubbish", &["code 4"]),
        ("exit", &["code 3"]),
        ("exit in peace", &["code 0"]),
        ("abort", &["SIGABRT"]),
        ("kill", &["SIGKILL"]),
        ("hang", &["in time"]),
    ];
    for (how, parts) in cases {
        let file = directory.path().join(how);
        let mut builder = builder()
            .processes(2)
            .initializer(fail_to_start, (how.to_owned(), file.clone()));
        if how == "hang" {
            builder = builder.start_timeout(Duration::from_secs(10));
        }
        let error = builder.build().unwrap_err();
        assert!(matches!(error, Error::Start(_)), "{how}: {error:?}");
        let text = error.to_string();
        for part in parts.iter().chain(&["fail_to_start"]) {
            assert!(text.contains(part), "{how}: {part} is not in: {text}");
        }
        let pids: Vec<u32> = lines(&file).into_iter().map(|pid| pid as u32).collect();
        leaks::none_left(&pids);
        assert!(pids.len() <= 4, "{how}: an endless succession: {pids:?}");
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Dumped {
    port: u16,
}

#[derive(Serialize, Deserialize)]
struct Mute;

type Checked<E> = Result<u32, E>;

#[pool_task]
fn returns_a_string(text: &str) -> Checked<String> {
    Err(text.to_owned())
}

#[pool_task]
fn returns_an_option(fails: bool) -> Option<Result<u32, String>> {
    fails.then(|| Err("nobody looks into that".to_owned()))
}

#[test]
fn an_initializer_that_returns_an_error_has_failed() {
    let _dog = watchdog();

    #[pool_task]
    fn returns_shown() -> Result<(), Box<str>> {
        Err("no database".into())
    }
    #[pool_task]
    fn returns_dumped() -> Checked<Dumped> {
        Err(Dumped { port: 5432 })
    }
    #[pool_task]
    fn returns_mute() -> Result<Mute, Mute> {
        Err(Mute)
    }

    let is_said = |builder: PoolBuilder, parts: &[&str]| {
        let error = builder.processes(2).build().unwrap_err();
        assert!(matches!(error, Error::Start(_)), "{error:?}");
        let text = error.to_string();
        for part in parts {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    };
    let text = "no such thing".to_owned();
    is_said(
        builder().initializer(returns_a_string, (text,)),
        &["returns_a_string` failed: no such thing"],
    );
    is_said(
        builder().initializer(returns_shown, ()),
        &["its initializer", "returns_shown` failed: no database"],
    );
    is_said(
        builder().initializer(returns_dumped, ()),
        &["returns_dumped` failed: Dumped { port: 5432 }"],
    );
    is_said(
        builder().initializer(returns_mute, ()),
        &["returns_mute` failed: it returned an error that can't be shown"],
    );
    is_said(
        builder().preload(returns_shown, ()),
        &["the preload task", "returns_shown` failed: no database"],
    );
    let long = "all at once ".repeat(50_000);
    is_said(
        builder().initializer(returns_a_string, (long,)),
        &["returns_a_string` failed: all at once all"],
    );
    let pool = checked(
        builder()
            .processes(1)
            .initializer(returns_an_option, (true,))
            .build(),
    );
    works(&pool);
    // As the task of a call, it returns its value as usual.
    let returned = pool.apply(returns_a_string, ("back".to_owned(),)).unwrap();
    assert_eq!(returned, Err("back".to_owned()));
}

#[pool_task]
fn fail_the_third_time(file: &Path) -> Result<(), String> {
    append(file, u64::from(process::id()));
    let times = lines(file).len();
    if times > 2 {
        return Err(format!("no more workers, after {times}"));
    }
    Ok(())
}

#[test]
fn a_replacement_whose_initializer_returns_an_error_has_not_started() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("started");
    let builder = builder()
        .processes(2)
        .give_up_after(Duration::from_millis(500))
        .initializer(fail_the_third_time, (file.clone(),));
    let pool = checked(builder.build());
    works(&pool);
    for pid in pool.worker_pids() {
        signal(pid, libc::SIGKILL);
        leaks::wait_until_dead(pid);
    }
    let error = pool.map(square, 0..10).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("failed: no more workers, after"), "{text}");
}

static STEPS: Mutex<Vec<u64>> = Mutex::new(Vec::new());

#[pool_task]
fn take_step(numbers: &[u64], more: Shared<[u64]>) {
    assert!(numbers.as_ptr().is_aligned());
    let mut steps = STEPS.lock().unwrap();
    steps.extend(numbers);
    steps.extend(&more[..]);
}

#[pool_task]
fn steps_taken() -> Vec<u64> {
    STEPS.lock().unwrap().clone()
}

#[test]
fn initializers_add_up_and_run_in_order() -> Result<(), Error> {
    let _dog = watchdog();
    let (one, two) = (
        Shared::copy_from(&[2_u64][..])?,
        Shared::copy_from(&[4_u64][..])?,
    );
    let pool = checked(
        builder()
            .processes(2)
            .initializer(take_step, (vec![1], one.clone()))
            .initializer(returns_an_option, (false,))
            .initializer(take_step, (vec![3], two))
            .initializer(take_step, (vec![5, 6], one))
            .build(),
    );
    let all = pool.task(steps_taken).starmap((0..20).map(|_| ()))?;
    assert!(all.iter().all(|steps| *steps == [1, 2, 3, 4, 5, 6, 2]));
    Ok(())
}

#[pool_task]
fn does_no_harm(_: &str) {}

#[test]
fn of_several_initializers_the_one_is_named_that_failed() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    for how in ["panic", "exit", "kill", "hang"] {
        let file = directory.path().join(how);
        let mut builder = builder()
            .processes(1)
            .initializer(does_no_harm, ("first".to_owned(),))
            .initializer(fail_to_start, (how.to_owned(), file))
            .initializer(returns_a_string, ("last".to_owned(),));
        if how == "hang" {
            builder = builder.start_timeout(Duration::from_secs(10));
        }
        let text = builder.build().unwrap_err().to_string();
        assert!(text.contains("fail_to_start"), "{how}: {text}");
        assert!(!text.contains("does_no_harm"), "{how}: {text}");
        assert!(!text.contains("returns_a_string"), "{how}: {text}");
    }
}

#[pool_task]
fn leave_a_mark(file: &Path, line: u64) -> Result<(), String> {
    append(file, line);
    Err("nobody hears that".to_owned())
}

#[pool_task]
fn panic_at_the_end() {
    panic!("nobody hears that");
}

#[pool_task]
fn leave_a_sum(file: &Path, numbers: Shared<[u64]>) {
    append(file, numbers.iter().sum());
}

/// Waits at the gate, then adds a line.
#[pool_task(time_limit = "40s")]
fn leave_slowly(gate: &Path, file: &Path) {
    append(file, 1);
    crate::support::stand(gate, 0);
    append(file, 2);
}

#[test]
fn finalizers_run_in_order_when_the_pool_closes() -> Result<(), Error> {
    if workers_are_elsewhere() {
        return Ok(());
    }
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("left");
    let numbers = Shared::copy_from(&vec![1_u64; 100_000][..])?;
    for (contained, preloaded) in [(false, false), (true, false), (false, true)] {
        let mut builder = builder()
            .processes(1)
            .finalizer(leave_a_mark, (file.clone(), 1))
            .finalizer(panic_at_the_end, ())
            .finalizer(leave_a_sum, (file.clone(), numbers.clone()))
            .finalizer(leave_a_mark, (file.clone(), 2));
        if contained {
            builder = builder.contain();
        }
        if preloaded {
            builder = builder.preload(does_no_harm, (String::new(),));
        }
        let pool = checked(builder.build());
        works(&pool);
        assert_eq!(lines(&file), [0; 0]);
        pool.close();
        pool.join()?;
        assert_eq!(lines(&file), [1, 100_000, 2]);
        std::fs::remove_file(&file).unwrap();
    }
    Ok(())
}

#[test]
fn finalizers_run_in_workers_that_are_replaced_and_in_idle_ones_at_the_end() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("left");
    let builder = builder().finalizer(leave_a_mark, (file.clone(), 7));
    let pool = checked(builder.processes(1).max_tasks_per_child(5).build());
    let users: HashSet<u32> = pool
        .map(who, 0..20)
        .unwrap()
        .into_iter()
        .map(|(pid, _)| pid)
        .collect();
    pool.close();
    pool.join().unwrap();
    if workers_are_elsewhere() {
        return;
    }
    // There may have been an understudy.
    assert!(lines(&file).len() >= users.len(), "{:?}", lines(&file));
    for end in ["close", "terminate", "drop"] {
        // If a pool is terminated, idle workers have some time for that. It may not be enough for one that gets no CPU.
        let all_ran = (0..10).any(|round| {
            let file = directory.path().join(format!("{end}-{round}"));
            let builder = crate::support::builder().finalizer(leave_a_mark, (file.clone(), 7));
            let pool = checked(builder.processes(2).build());
            works(&pool);
            match end {
                "close" => pool.close(),
                "terminate" => pool.terminate(),
                _ => {}
            }
            if end != "drop" {
                pool.join().unwrap();
            }
            drop(pool);
            let ran = lines(&file);
            assert!(
                ran.len() <= 2 && ran.iter().all(|line| *line == 7),
                "{ran:?}"
            );
            assert!(ran.len() == 2 || end != "close", "{ran:?}");
            ran.len() == 2
        });
        assert!(all_ran, "{end}");
    }
}

#[test]
fn no_finalizer_runs_in_a_worker_that_is_lost_or_stopped() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("left");
    let gate = Gate::new();
    let builder = builder().finalizer(leave_a_mark, (file.clone(), 1));
    let pool = checked(builder.processes(1).build());
    let running = pool.apply_async(wait_at, (gate.path(), 0));
    let held = gate.accept();
    signal(held.pid, libc::SIGKILL);
    held.wait_until_gone();
    assert!(matches!(running.get(), Err(Error::WorkerLost(_))));
    let running = pool.apply_async(wait_at, (gate.path(), 0));
    let held = gate.accept();
    pool.terminate();
    pool.join().unwrap();
    held.wait_until_gone();
    assert!(matches!(running.get(), Err(Error::Terminated)));
    assert_eq!(lines(&file), [0; 0]);
}

#[test]
fn a_finalizer_has_the_time_that_its_task_says() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();

    #[pool_task(time_limit = "100ms")]
    fn never_leaves(file: &Path) {
        append(file, 1);
        forever();
    }

    let directory = tempfile::tempdir().unwrap();
    let (file, gate) = (directory.path().join("left"), Gate::new());
    let slow = builder()
        .processes(1)
        .max_tasks_per_child(1)
        .give_up_after(Duration::from_millis(1))
        .finalizer(leave_slowly, (gate.path(), file.clone()));
    let pool = checked(slow.build());
    // Three wait at the gate, and no worker is killed for the other inputs.
    let results = pool.map_async(square, 0..6);
    let held: Vec<_> = (0..3).map(|_| gate.accept()).collect();
    assert!(!results.ready());
    held.into_iter().for_each(crate::support::Held::release);
    gate.let_through(3);
    assert_eq!(results.get().unwrap(), [0, 1, 4, 9, 16, 25]);
    pool.close();
    // An understudy may leave, too.
    while pool.join_timeout(SHORT).is_err() {
        if let Some(held) = gate.poll() {
            held.release();
        }
    }
    let left = lines(&file);
    let began = left.iter().filter(|line| **line == 1).count();
    assert_eq!(left.len(), 2 * began, "{left:?}");

    let builder = builder()
        .processes(1)
        .finalizer(never_leaves, (directory.path().join("never"),));
    let pool = checked(builder.build());
    works(&pool);
    pool.close();
    pool.join().unwrap();
    assert_eq!(lines(&directory.path().join("never")), [1]);
}

static KEPT: Mutex<Vec<Option<OsString>>> = Mutex::new(Vec::new());

#[pool_task]
fn keep_variable(name: &str) {
    KEPT.lock().unwrap().push(env::var_os(name));
}

/// Returns the variables as they were kept, and as they are now.
#[pool_task]
fn variables(names: Vec<String>) -> (Vec<Option<OsString>>, Vec<Option<OsString>>) {
    let kept = KEPT.lock().unwrap().clone();
    (kept, names.iter().map(env::var_os).collect())
}

#[test]
fn workers_have_variables_of_their_own() {
    let _dog = watchdog();
    let odd = OsStr::from_bytes(b"not \xff UTF-8");
    let names = ["POOL_TEST_ONE", "POOL_TEST_TWO", "POOL_TEST_THREE"];
    let values = [Some("last=".into()), Some(odd.to_owned()), None];
    for preloaded in [false, true] {
        let mut builder = builder()
            .processes(2)
            .env(names[0], "first")
            .env(names[1], odd)
            .env(names[0], "last=")
            .initializer(keep_variable, (names[0].to_owned(),));
        if preloaded {
            builder = builder.preload(keep_variable, (names[1].to_owned(),));
        }
        let pool = checked(builder.build());
        let asked = names.map(str::to_owned).to_vec();
        let (kept, now) = pool.apply(variables, (asked,)).unwrap();
        assert_eq!(now, values);
        if preloaded {
            assert_eq!(kept, [values[1].clone(), values[0].clone()]);
        } else {
            assert_eq!(kept, [values[0].clone()]);
        }
    }
    assert!(names.iter().all(|name| env::var_os(name).is_none()));
}

#[test]
fn variables_that_no_environment_can_hold_are_refused() {
    let bad = [
        ("", "x"),
        ("A=B", "x"),
        ("A\0B", "x"),
        ("A", "x\0y"),
        ("POOL_NODE", "nats://x/y"),
        ("POOL_WORKER_0_1", "1:2:3"),
    ];
    for (name, value) in bad {
        let error = builder().processes(1).env(name, value).build().unwrap_err();
        match &error {
            Error::InvalidSetting(invalid) => assert_eq!(invalid.setting(), "env"),
            other => panic!("{name:?}: {other}"),
        }
    }
}

#[pool_task]
fn start_once(file: &Path) {
    append(file, u64::from(process::id()));
    assert!(lines(file).len() <= 2, "no more workers today");
}

#[test]
fn a_pool_whose_workers_stop_starting_gives_up() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("started");
    let builder = builder()
        .processes(2)
        .give_up_after(Duration::from_millis(500))
        .initializer(start_once, (file.clone(),));
    let pool = checked(builder.build());
    works(&pool);
    for pid in pool.worker_pids() {
        signal(pid, libc::SIGKILL);
        leaks::wait_until_dead(pid);
    }
    let error = pool.map(square, 0..10).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    assert!(
        error.to_string().contains("no more workers today"),
        "{error}"
    );
    let error = pool.apply(square, (1,)).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    pool.close();
    pool.join().unwrap();
}

#[test]
fn initializers_take_no_unencodable_arguments() {
    let _dog = watchdog();

    #[pool_task]
    fn prepare_lock(_: std::sync::Mutex<u32>) {}

    let lock = Arc::new(std::sync::Mutex::new(1));
    let poisoner = Arc::clone(&lock);
    let poisoned = thread::spawn(move || {
        let _guard = poisoner.lock();
        panic::resume_unwind(Box::new("poison"));
    });
    poisoned.join().unwrap_err();
    let lock = Arc::into_inner(lock).unwrap();
    let error = builder()
        .processes(1)
        .initializer(prepare_lock, (lock,))
        .build()
        .unwrap_err();
    assert!(matches!(error, Error::Encode(_)), "{error:?}");
    assert!(error.task().unwrap().contains("prepare_lock"));
}

#[pool_task]
fn index_at(gate: &Path, id: u64) -> (Option<usize>, bool, u32) {
    crate::support::stand(gate, id);
    (worker::index(), worker::is_worker(), process::id())
}

/// Returns the indices of all workers, found by keeping all of them busy at once.
fn indices(pool: &Pool) -> BTreeMap<usize, u32> {
    let gate = Gate::new();
    let count = pool.processes();
    let results: Vec<AsyncResult<_>> = (0..count as u64)
        .map(|id| pool.apply_async(index_at, (gate.path(), id)))
        .collect();
    let all: Vec<_> = (0..count).map(|_| gate.accept()).collect();
    for held in all {
        held.release();
    }
    let answers = results.into_iter().map(|result| {
        let (index, is_worker, pid) = result.get().unwrap();
        assert!(is_worker);
        (index.unwrap(), pid)
    });
    answers.collect()
}

#[test]
fn workers_know_their_index() {
    let _dog = watchdog();
    assert_eq!(worker::index(), None);
    assert!(!worker::is_worker());
    let pool = pool(3);
    let before = indices(&pool);
    assert_eq!(before.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    // A replacement takes over the index.
    signal(before[&1], libc::SIGKILL);
    leaks::wait_until_dead(before[&1]);
    let after = indices(&pool);
    assert_eq!(after.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((after[&0], after[&2]), (before[&0], before[&2]));
    assert_ne!(after[&1], before[&1]);
}

#[test]
fn work_goes_through_after_idle_workers_were_killed() {
    let _dog = watchdog();
    let pool = pool(2);
    for _ in 0..10 {
        for pid in pool.worker_pids() {
            signal(pid, libc::SIGKILL);
        }
        // A killed worker may be given work before the pool knows: that work goes to another. Only inputs that have
        // begun can be lost, and a dead worker begins nothing.
        works(&pool);
        assert_eq!(pool.processes(), 2);
    }
}

// ---- where pools are used -------------------------------------------------------------------------

#[pool_task]
fn sum_of_squares(count: u64) -> (u64, Vec<u32>) {
    let pool = Pool::with_processes(2).expect("a pool within a worker");
    let sum = pool
        .map(square, 0..count)
        .expect("it works")
        .into_iter()
        .sum();
    assert!(worker::is_worker());
    (sum, pool.worker_pids())
}

#[pool_task]
fn inner_pids_then_hang(gate: &Path) {
    let pool = Pool::with_processes(2).expect("a pool within a worker");
    for pid in pool.worker_pids() {
        crate::support::stand(gate, u64::from(pid));
    }
    forever();
}

#[test]
fn pools_nest() {
    let _dog = watchdog();
    let pool = pool(2);
    // Not if they are sandboxed, whatever they are permitted: a pool needs memory without a name (`memfd_create`).
    if is_sandboxed() {
        let refused = pool.apply(sum_of_squares, (3,)).unwrap_err();
        let text = refused.to_string();
        assert!(matches!(refused, Error::Panicked(_)), "{text}");
        assert!(text.contains("Operation not permitted"), "{text}");
        works(&pool);
        return;
    }
    let answers = pool
        .task(sum_of_squares)
        .chunksize(1)
        .map([3, 4, 5])
        .unwrap();
    assert_eq!(
        answers.iter().map(|(sum, _)| *sum).collect::<Vec<_>>(),
        [5, 14, 30]
    );
    for pid in answers.iter().flat_map(|(_, pids)| pids) {
        assert!(!leaks::is_alive(*pid), "an inner pool leaves no worker");
    }
}

#[test]
fn inner_pools_die_with_their_worker() {
    // A sandboxed task can't start a pool: see `pools_nest`.
    if workers_are_elsewhere() || is_sandboxed() {
        return;
    }
    let _dog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    drop(pool.apply_async(inner_pids_then_hang, (gate.path(),)));
    let inner: Vec<u32> = (0..2)
        .map(|_| {
            let held = gate.accept();
            let pid = held.id as u32;
            held.release();
            pid
        })
        .collect();
    assert!(inner.iter().all(|pid| leaks::is_alive(*pid)));
    for pid in pool.worker_pids() {
        signal(pid, libc::SIGKILL);
    }
    for pid in inner {
        leaks::wait_until_dead(pid);
    }
    works(&pool);
}

#[test]
fn thirty_two_threads_share_a_pool() {
    let _dog = watchdog();
    let pool = pool(3);
    let start = Barrier::new(32);
    thread::scope(|scope| {
        for thread in 0..32u64 {
            let (pool, start) = (&pool, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..5 {
                    let from = 1000 * thread + 100 * round;
                    let inputs = from..from + 40;
                    let expected: Vec<u64> = inputs.clone().map(|x| x * x).collect();
                    let results = match (thread + round) % 4 {
                        0 => pool.map(square, inputs).unwrap(),
                        1 => pool.map_async(square, inputs).get().unwrap(),
                        2 => pool.imap(square, inputs).map(Result::unwrap).collect(),
                        _ => inputs
                            .map(|x| pool.apply(square, (x,)).unwrap())
                            .collect::<Vec<_>>(),
                    };
                    assert_eq!(results, expected);
                }
            });
        }
    });
}

#[test]
fn many_pools_side_by_side() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let pools: Vec<_> = (0..6).map(|_| pool(2)).collect();
    let pids: HashSet<u32> = pools.iter().flat_map(|pool| pool.worker_pids()).collect();
    assert_eq!(pids.len(), 12);
    for pool in &pools {
        works(pool);
    }
    let (first, rest) = pools.split_first().unwrap();
    first.terminate();
    first.join().unwrap();
    for pool in rest {
        works(pool);
    }
}

#[pool_task]
fn surroundings(variable: &str) -> (PathBuf, Option<String>, usize) {
    let called = env::vars_os()
        .filter(|(name, _)| name.to_string_lossy().starts_with("POOL_WORKER"))
        .count();
    let directory = env::current_dir().expect("a directory");
    (directory, env::var(variable).ok(), called)
}

#[test]
fn workers_inherit_directory_and_environment() {
    let _dog = watchdog();
    let pool = pool(1);
    let (directory, path, called) = pool.apply(surroundings, ("PATH".to_owned(),)).unwrap();
    assert_eq!(directory, env::current_dir().unwrap());
    assert_eq!(path, env::var("PATH").ok());
    assert_eq!(called, 0, "what made it a worker is not handed on");
}

#[test]
fn workers_are_other_processes() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let pool = pool(2);
    let pids = pool.worker_pids();
    for _ in 0..10 {
        let pid = pool.apply(own_pid, ()).unwrap();
        assert!(pids.contains(&pid));
        assert_ne!(pid, process::id());
    }
}

#[test]
fn a_dropped_handle_does_not_stop_the_work() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let pool = pool(2);
    for line in 0..20 {
        drop(pool.apply_async(mark, (file.clone(), line)));
    }
    drop(pool.starmap_async(mark, (20..40).map(|line| (file.clone(), line))));
    pool.close();
    pool.join().unwrap();
    let mut marks = lines(&file);
    marks.sort_unstable();
    assert_eq!(marks, (0..40).collect::<Vec<_>>());
}
