//! A death in a task costs that input and nothing else.

use std::any::Any;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::panic;
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pool_core::{Call, Error, Pool, Retries, Sandbox, Task, WorkerLost, pool_task};
use serde::{Deserialize, Serialize};

use crate::leaks;
use crate::support::{
    Gate, append, builder, checked, forever, hang, lines, own_pid, pool, pool_with, signal, square,
    stand, wait_at, watchdog, workers_are_elsewhere, works,
};

/// Ways for a task to die with its worker.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Death {
    Segfault,
    Kill,
    Term,
    Abort,
    ExitInPeace,
    Exit,
    Overflow,
    PanicTwice,
}

const DEATHS: [Death; 8] = [
    Death::Segfault,
    Death::Kill,
    Death::Term,
    Death::Abort,
    Death::ExitInPeace,
    Death::Exit,
    Death::Overflow,
    Death::PanicTwice,
];

impl Death {
    fn die(self) {
        match self {
            // SAFETY: none; nothing is mapped there, and the process dies of it, as intended.
            Death::Segfault => unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) },
            Death::Kill => signal(process::id(), libc::SIGKILL),
            Death::Term => signal(process::id(), libc::SIGTERM),
            Death::Abort => process::abort(),
            Death::ExitInPeace => process::exit(0),
            Death::Exit => process::exit(3),
            Death::Overflow => {
                recurse(0);
            }
            Death::PanicTwice => {
                let _explosive = PanicsOnDrop;
                panic!("first");
            }
        }
        // A signal to oneself is delivered before `kill` returns, or very soon.
        forever();
    }

    /// Fails unless the error reports this death.
    fn check(self, lost: &WorkerLost) {
        let signals: &[&str] = match self {
            Death::Segfault => &["SIGSEGV"],
            Death::Kill => &["SIGKILL"],
            Death::Term => &["SIGTERM"],
            Death::Abort | Death::PanicTwice => &["SIGABRT"],
            Death::ExitInPeace | Death::Exit => &[],
            Death::Overflow => &["SIGSEGV", "SIGABRT"],
        };
        let text = Error::WorkerLost(lost.clone()).to_string();
        assert!(text.contains(&lost.pid().to_string()), "{text}");
        assert_eq!(lost.attempts(), 1);
        let code = match self {
            Death::ExitInPeace => Some(0),
            Death::Exit => Some(3),
            _ => None,
        };
        assert_eq!(lost.exit_code(), code, "{text}");
        if let Some(code) = code {
            assert_eq!(lost.signal(), None, "{text}");
            assert!(text.contains(&format!("code {code}")), "{text}");
        } else {
            let name = lost.signal().expect("a signal");
            assert!(signals.contains(&name), "{text}");
            assert!(text.contains(name), "{text}");
        }
    }
}

fn recurse(depth: u64) -> u64 {
    let ballast = black_box([depth; 512]);
    if black_box(true) {
        recurse(depth + 1) + black_box(ballast[7])
    } else {
        depth
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic!("and second");
    }
}

/// The input that dies.
const UNLUCKY: u64 = 17;
const INPUTS: u64 = 40;

#[pool_task]
fn fragile((death, x): (Death, u64)) -> u64 {
    if x == UNLUCKY {
        death.die();
    }
    x * x
}

#[pool_task]
fn fragile_too(death: Death, x: u64) -> u64 {
    if x == UNLUCKY {
        death.die();
    }
    x * x
}

/// Runs `check` with a call for each chunk size.
fn each_chunksize<T: Task>(pool: &Pool, task: T, mut check: impl FnMut(Call<'_, T>)) {
    check(pool.task(task));
    for size in [1, 7] {
        check(pool.task(task).chunksize(size));
    }
}

fn inputs(death: Death) -> impl Iterator<Item = (Death, u64)> {
    (0..INPUTS).map(move |x| (death, x))
}

#[track_caller]
fn check_lost(death: Death, error: &Error) {
    let Error::WorkerLost(lost) = error else {
        panic!("{death:?}: {error:?}");
    };
    death.check(lost);
}

/// Fails unless only the unlucky input was lost.
#[track_caller]
fn check_all(death: Death, results: &[Result<u64, Error>]) {
    assert_eq!(results.len() as u64, INPUTS);
    for (x, result) in (0..).zip(results) {
        match result {
            Ok(value) => assert_eq!((*value, x == UNLUCKY), (x * x, false)),
            Err(error) => {
                assert_eq!(x, UNLUCKY, "{death:?}: {error}");
                assert_eq!(error.index(), Some(x as usize));
                assert!(error.task().unwrap().contains("::crash::fragile"));
                check_lost(death, error);
            }
        }
    }
}

#[test]
fn apply() {
    let _dog = watchdog();
    let pool = pool(2);
    for death in DEATHS {
        let neighbours: Vec<_> = (0..10).map(|x| pool.apply_async(square, (x,))).collect();
        // Includes the successor of the last one.
        let mut pids = pool.worker_pids();
        while pids.len() < pool.processes() && !workers_are_elsewhere() {
            thread::yield_now();
            pids = pool.worker_pids();
        }
        let error = pool.apply(fragile_too, (death, UNLUCKY)).unwrap_err();
        assert_eq!(error.index(), None);
        check_lost(death, &error);
        let Error::WorkerLost(lost) = error else {
            unreachable!("just checked");
        };
        assert!(pids.contains(&lost.pid()) || workers_are_elsewhere());
        for (x, result) in (0..).zip(neighbours) {
            assert_eq!(result.get().unwrap(), x * x);
        }
        works(&pool);
    }
}

#[test]
fn map() {
    let _dog = watchdog();
    let pool = pool(2);
    for death in DEATHS {
        each_chunksize(&pool, fragile, |call| {
            check_all(death, &call.map_results(inputs(death)));
            let error = call.map(inputs(death)).unwrap_err();
            assert_eq!(error.index(), Some(UNLUCKY as usize));
            check_lost(death, &error);
        });
        works(&pool);
    }
}

#[test]
fn imap() {
    let _dog = watchdog();
    let pool = pool(2);
    for death in DEATHS {
        each_chunksize(&pool, fragile, |call| {
            check_all(death, &call.imap(inputs(death)).collect::<Vec<_>>());
            let mut results: Vec<_> = call.imap_unordered(inputs(death)).collect();
            results.sort_by_key(|result| match result {
                Ok(value) => *value,
                Err(error) => error.index().unwrap().pow(2) as u64,
            });
            check_all(death, &results);
        });
        works(&pool);
    }
}

#[test]
fn starmap_async() {
    let _dog = watchdog();
    let pool = pool(2);
    for death in DEATHS {
        each_chunksize(&pool, fragile_too, |call| {
            let error = call.starmap_async(inputs(death)).get().unwrap_err();
            assert_eq!(error.index(), Some(UNLUCKY as usize));
            check_lost(death, &error);
            check_all(death, &call.starmap_results(inputs(death)));
        });
        works(&pool);
    }
}

#[test]
fn every_input_dies() {
    let _dog = watchdog();
    let pool = pool(2);
    let deaths = || (0..24).map(|_| (Death::Kill, UNLUCKY));
    each_chunksize(&pool, fragile, |call| {
        let results = call.map_results(deaths());
        assert_eq!(results.len(), 24);
        for (index, result) in results.into_iter().enumerate() {
            let error = result.unwrap_err();
            assert_eq!(error.index(), Some(index));
            check_lost(Death::Kill, &error);
        }
    });
    works(&pool);
}

// ---- panics: the worker lives on ------------------------------------------------------------------

#[pool_task]
fn panic_oddly(how: &str) -> u64 {
    match how {
        "number" => panic::panic_any(42),
        "dangerous payload" => panic::panic_any(PanicsOnDrop),
        "resumed" => panic::resume_unwind(Box::new("resumed")),
        "static" => panic!("static"),
        "formatted" => panic!("{how}"),
        "long" => panic!("{}", "long ".repeat(100_000)),
        "empty" => panic!(""),
        "caught" => {
            let caught = panic::catch_unwind(|| panic!("caught"));
            let payload: Box<dyn Any + Send> = caught.unwrap_err();
            panic!("not {}", payload.downcast_ref::<&str>().expect("a string"))
        }
        "another thread" => thread::spawn(|| panic::resume_unwind(Box::new("inner")))
            .join()
            .expect("another thread"),
        "overflow" => black_box(u64::MAX).checked_add(1).expect("overflow"),
        "index" => [1, 2, 3][black_box(7)],
        _ => 7,
    }
}

#[test]
fn a_panic_leaves_its_worker_alive() {
    let _dog = watchdog();
    let pool = pool_with(Sandbox::threads, 1);
    let pids = pool.worker_pids();
    let cases = [
        ("number", "not a string"),
        ("dangerous payload", "not a string"),
        ("resumed", "resumed"),
        ("static", "static"),
        ("formatted", "formatted"),
        ("long", "long long long"),
        ("empty", ""),
        ("caught", "not caught"),
        ("another thread", "another thread"),
        ("overflow", "overflow"),
        ("index", "index out of bounds"),
    ];
    for (how, message) in cases {
        let error = pool.apply(panic_oddly, (how.to_owned(),)).unwrap_err();
        let Error::Panicked(panicked) = &error else {
            panic!("{how}: {error:?}");
        };
        let said = panicked.message();
        assert!(said.contains(message), "{how}: {said}");
        let located = panicked
            .location()
            .is_some_and(|at| at.contains("crash.rs:"));
        assert_eq!(
            located,
            how != "resumed",
            "{how}: {:?}",
            panicked.location()
        );
        assert_eq!(pool.apply(panic_oddly, ("fine".to_owned(),)).unwrap(), 7);
    }
    assert_eq!(pool.worker_pids(), pids);
}

#[test]
fn a_panic_has_neighbours_too() {
    let _dog = watchdog();
    let pool = pool(2);
    let pids = pool.worker_pids();
    let hows = || (0..30).map(|x| if x % 10 == 4 { "static" } else { "fine" }.to_owned());
    each_chunksize(&pool, panic_oddly, |call| {
        for results in [call.map_results(hows()), call.imap(hows()).collect()] {
            assert_eq!(results.len(), 30);
            for (index, result) in results.into_iter().enumerate() {
                match result {
                    Ok(value) => assert_eq!((value, index % 10 == 4), (7, false)),
                    Err(error) => {
                        assert_eq!((error.index(), index % 10), (Some(index), 4));
                        assert!(matches!(error, Error::Panicked(_)));
                    }
                }
            }
        }
    });
    assert_eq!(pool.worker_pids(), pids);
}

// ---- descriptors ----------------------------------------------------------------------------------

#[pool_task]
fn close_descriptors(unlucky: bool, x: u64) -> u64 {
    if unlucky {
        for fd in 3..1024 {
            // SAFETY: none for this process, which will notice; the parent must not.
            unsafe { libc::close(fd) };
        }
    }
    x * x
}

#[test]
fn a_task_that_closes_all_descriptors() {
    let _dog = watchdog();
    let pool = pool(2);
    each_chunksize(&pool, close_descriptors, |call| {
        let inputs = (0..INPUTS).map(|x| (x == UNLUCKY, x));
        let results = call.starmap_results(inputs);
        for (x, result) in (0..).zip(results) {
            match result {
                // Its result may still arrive, through the shared memory.
                Ok(value) => assert_eq!(value, x * x),
                Err(error) => {
                    assert!(matches!(error, Error::WorkerLost(_)), "{error:?}");
                    assert_eq!(x, UNLUCKY, "{error}");
                }
            }
        }
    });
    works(&pool);
}

#[pool_task]
fn babble(bytes: &[u8], x: u64) -> u64 {
    if x == UNLUCKY {
        for fd in 3..64 {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: only reads `bytes`. The damage to the channels is intended.
            unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
        }
    }
    x * x
}

#[test]
fn a_task_that_sends_an_empty_frame_through_its_channels() {
    send_through_channels(Vec::new());
}

#[test]
fn a_task_that_sends_a_few_bytes_through_its_channels() {
    send_through_channels(b"nonsense".to_vec());
}

#[test]
fn a_task_that_sends_many_bytes_through_its_channels() {
    send_through_channels(vec![0xff; 4000]);
}

fn send_through_channels(frame: Vec<u8>) {
    let _dog = watchdog();
    let pool = pool(2);
    each_chunksize(&pool, babble, |call| {
        let inputs = (0..INPUTS).map(|x| (frame.clone(), x));
        let results = call.starmap_results(inputs);
        for (x, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert_eq!(value, x * x),
                // Its worker is killed, whatever it is running by then.
                Err(error) => assert!(matches!(error, Error::WorkerLost(_)), "{error:?}"),
            }
        }
    });
    works(&pool);
}

#[pool_task]
fn print_to_closed_stdout(x: u64) -> u64 {
    // SAFETY: standard output may be closed; nothing in this process relies on it.
    unsafe { libc::close(1) };
    let text = format!("{x}\n");
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    // No newline: the library itself will try to write this text.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), b"unfinished");
    x * x
}

#[test]
fn a_task_that_prints_to_a_closed_stdout() {
    let _dog = watchdog();
    let pool = pool(2);
    let pids = pool.worker_pids();
    each_chunksize(&pool, print_to_closed_stdout, |call| {
        let expected: Vec<u64> = (0..INPUTS).map(|x| x * x).collect();
        assert_eq!(call.map(0..INPUTS).unwrap(), expected);
    });
    works(&pool);
    assert_eq!(pool.worker_pids(), pids);
}

// ---- time limits ----------------------------------------------------------------------------------

/// Far more than a task that only computes needs, under any load.
const LIMIT: Duration = Duration::from_secs(2);

#[pool_task]
fn endless(unlucky: u64, x: u64) -> u64 {
    if x == unlucky {
        forever();
    }
    x * x
}

#[track_caller]
fn check_limit(error: &Error) {
    let Error::TimeLimit(limit) = error else {
        panic!("{error:?}");
    };
    assert_eq!(limit.limit(), LIMIT);
    assert!(error.to_string().contains("2s"), "{error}");
}

#[test]
fn a_time_limit_ends_only_what_is_overdue() {
    let _dog = watchdog();
    let pool = pool(2);
    each_chunksize(&pool, endless, |call| {
        let inputs = (0..INPUTS).map(|x| (UNLUCKY, x));
        let results = call.time_limit(LIMIT).starmap_results(inputs);
        assert_eq!(results.len() as u64, INPUTS);
        for (x, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert_eq!(value, x * x),
                Err(error) => {
                    assert_eq!(x, UNLUCKY, "{error}");
                    assert_eq!(error.index(), Some(x as usize));
                    check_limit(&error);
                }
            }
        }
    });
    works(&pool);
}

#[test]
fn a_time_limit_is_no_death_to_be_retried() {
    let _dog = watchdog();
    let pool = pool(1);
    let call = pool.task(hang).time_limit(LIMIT).retries(5);
    check_limit(&call.apply(()).unwrap_err());
    works(&pool);
}

#[test]
fn the_time_in_the_queue_does_not_count() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let first = pool.apply_async(wait_at, (gate.path(), 1));
    let limited = pool.task(square).time_limit(LIMIT).apply_async((3,));
    let at_the_gate = gate.accept();
    // Another pool's task outlasts the limit, while ours has not begun.
    let other = pool_of_one();
    check_limit(&other.task(hang).time_limit(LIMIT).apply(()).unwrap_err());
    assert!(!limited.ready());
    at_the_gate.release();
    assert_eq!(limited.get().unwrap(), 9);
    assert_eq!(first.get().unwrap(), 1);
}

fn pool_of_one() -> crate::support::Checked {
    pool(1)
}

#[pool_task]
fn stop_yourself() {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(libc::SIGSTOP) };
    forever();
}

#[test]
fn a_time_limit_ends_a_worker_that_stopped_itself() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let pool = pool(2);
    let before = pool.worker_pids();
    let stopped = pool.task(stop_yourself).time_limit(LIMIT).apply_async(());
    works(&pool);
    check_limit(&stopped.get().unwrap_err());
    works(&pool);
    let after = pool.worker_pids();
    assert_eq!(before.iter().filter(|pid| after.contains(pid)).count(), 1);
}

// ---- retries --------------------------------------------------------------------------------------

/// Dies the first `deaths` times that it runs for this file.
#[pool_task]
fn stubborn(file: &Path, deaths: usize, x: u64) -> u64 {
    append(file, x);
    if lines(file).len() <= deaths {
        signal(process::id(), libc::SIGKILL);
        forever();
    }
    x * x
}

#[test]
fn retries_run_a_task_again() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(2);
    let file = |name: &str| directory.path().join(name);

    let call = pool.task(stubborn).retries(3);
    assert_eq!(call.apply((file("third"), 3, 5)).unwrap(), 25);
    assert_eq!(lines(&file("third")).len(), 4);

    let error = call.apply((file("too often"), 4, 5)).unwrap_err();
    let Error::WorkerLost(lost) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(lost.attempts(), 4);
    assert!(error.to_string().contains('4'), "{error}");
    assert_eq!(lines(&file("too often")).len(), 4);

    let error = pool.apply(stubborn, (file("never"), 1, 5)).unwrap_err();
    assert!(matches!(&error, Error::WorkerLost(lost) if lost.attempts() == 1));
    assert_eq!(lines(&file("never")).len(), 1);
}

#[test]
fn retries_count_for_each_input() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(2);
    for (round, size) in [None, Some(1), Some(4)].into_iter().enumerate() {
        let file = |x: u64| directory.path().join(format!("{round}-{x}"));
        let mut call = pool.task(stubborn).retries(2);
        if let Some(size) = size {
            call = call.chunksize(size);
        }
        let deaths = |x: u64| (x % 4) as usize;
        let results = call.starmap_results((0..16).map(|x| (file(x), deaths(x), x)));
        for (x, result) in (0..).zip(results) {
            match result {
                Ok(value) => assert_eq!((value, deaths(x) <= 2), (x * x, true)),
                Err(Error::WorkerLost(lost)) => {
                    assert_eq!((lost.attempts(), deaths(x)), (3, 3));
                }
                Err(error) => panic!("{error:?}"),
            }
            assert_eq!(lines(&file(x)).len(), deaths(x).min(2) + 1);
        }
    }
}

#[test]
fn a_panic_is_not_retried() {
    let _dog = watchdog();
    let pool = pool(1);
    let error = pool
        .task(panic_oddly)
        .retries(9)
        .apply(("static".to_owned(),));
    assert!(matches!(error, Err(Error::Panicked(_))));
}

/// Panics, or hangs past its limit, the first `times` that it runs for this file.
#[pool_task]
fn moody(file: &Path, times: usize, hangs: bool) -> usize {
    append(file, 1);
    let runs = lines(file).len();
    if runs <= times {
        if hangs {
            forever();
        }
        panic!("not in the mood, at attempt {runs}");
    }
    runs
}

#[test]
fn panics_and_limits_are_retried_where_that_is_asked_for() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(2);
    let file = |name: &str| directory.path().join(name);

    let on_panic = Retries::new(2).on_panic().backoff(Duration::from_millis(5));
    let call = pool.task(moody).retries(on_panic);
    assert_eq!(call.apply((file("panics"), 2, false)).unwrap(), 3);
    match call.apply((file("panics on"), 3, false)) {
        Err(Error::Panicked(panicked)) => {
            assert!(panicked.message().ends_with("attempt 3"));
            assert_eq!(panicked.attempts(), 3);
            assert!(tells_of_attempts(&panicked.to_string(), 3), "{panicked}");
        }
        other => panic!("{other:?}"),
    }
    let inputs = (0..30).map(|x| (file(&x.to_string()), x % 3, false));
    let results = call.chunksize(4).starmap(inputs).unwrap();
    assert_eq!(results, (0..30).map(|x| x % 3 + 1).collect::<Vec<_>>());

    let call = pool.task(moody).time_limit(LIMIT);
    let on_limit = call.clone().retries(Retries::new(1).on_time_limit());
    assert_eq!(on_limit.apply((file("hangs"), 1, true)).unwrap(), 2);
    let error = on_limit.apply((file("hangs on"), 2, true)).unwrap_err();
    assert!(
        matches!(&error, Error::TimeLimit(limit) if limit.attempts() == 2),
        "{error:?}"
    );
    assert!(tells_of_attempts(&error.to_string(), 2), "{error}");
    assert_eq!(lines(&file("hangs on")).len(), 2);
    let error = call.retries(5).apply((file("once"), 1, true)).unwrap_err();
    assert!(
        matches!(&error, Error::TimeLimit(limit) if limit.attempts() == 1),
        "{error:?}"
    );
    assert!(!error.to_string().contains("attempts"), "{error}");
    assert_eq!(lines(&file("once")).len(), 1);
    works(&pool);
}

/// Whether the text of an error says how many attempts there were.
fn tells_of_attempts(text: &str, attempts: u32) -> bool {
    text.contains(&format!(", in the last of {attempts} attempts"))
}

/// Kills its worker when it runs for this file first, and then fails in another way.
#[pool_task]
fn crash_then(file: &Path, way: &str) {
    append(file, 1);
    if lines(file).len() == 1 {
        process::abort();
    }
    match way {
        "panic" => panic!("at last"),
        "hang" => forever(),
        _ => {
            let hoard = vec![1_u8; 300 << 20];
            black_box(&hoard);
            forever();
        }
    }
}

#[test]
fn an_error_counts_earlier_attempts_that_failed_in_another_way() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let builder = builder().processes(1).retries(1).memory_limit(200 * MIB);
    let pool = checked(builder.build());
    let call = pool.task(crash_then);
    let fails = |call: &Call<'_, crash_then>, way: &str| {
        let error = call
            .apply((directory.path().join(way), way.to_owned()))
            .unwrap_err();
        assert!(tells_of_attempts(&error.to_string(), 2), "{error}");
        error
    };
    let error = fails(&call, "panic");
    assert!(
        matches!(&error, Error::Panicked(panicked) if panicked.attempts() == 2),
        "{error:?}"
    );
    let error = fails(&call, "hoard");
    assert!(
        matches!(&error, Error::MemoryLimit(limit) if limit.attempts() == 2),
        "{error:?}"
    );
    let error = fails(&call.time_limit(LIMIT), "hang");
    assert!(
        matches!(&error, Error::TimeLimit(limit) if limit.attempts() == 2),
        "{error:?}"
    );
    works(&pool);
}

#[pool_task(time_limit = "2s", retries = 1)]
fn with_defaults(file: &Path, deaths: usize, hangs: bool) -> usize {
    append(file, 1);
    let runs = lines(file).len();
    if hangs {
        forever();
    }
    if runs <= deaths {
        process::exit(3);
    }
    runs
}

#[test]
fn the_call_wins_over_the_task_and_the_task_over_the_pool() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = builder()
        .processes(2)
        .retries(3)
        .time_limit(Duration::from_secs(300))
        .build();
    let pool = checked(pool);
    let file = |name: &str| directory.path().join(name);
    // The pool's setting.
    assert_eq!(pool.apply(stubborn, (file("pool"), 3, 5)).unwrap(), 25);
    // The task's setting.
    let error = pool.apply(with_defaults, (file("task"), 2, false));
    assert!(matches!(error, Err(Error::WorkerLost(lost)) if lost.attempts() == 2));
    match pool.apply(with_defaults, (file("limit"), 0, true)) {
        Err(Error::TimeLimit(limit)) => assert_eq!(limit.limit(), LIMIT),
        other => panic!("{other:?}"),
    }
    // The call's setting.
    let call = pool.task(with_defaults).retries(0);
    let error = call.apply((file("call"), 1, false));
    assert!(matches!(error, Err(Error::WorkerLost(lost)) if lost.attempts() == 1));
}

/// Notes in a file that it was told to end, and ends.
#[pool_task]
fn tidy(file: &Path, deaf: bool) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    extern "C" fn told(_: libc::c_int) {
        TOLD.store(true, Ordering::SeqCst);
    }
    let handler = told as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler does nothing but store a word.
    unsafe { libc::signal(libc::SIGTERM, handler) };
    append(file, process::id().into());
    loop {
        thread::sleep(Duration::from_millis(1));
        if TOLD.load(Ordering::SeqCst) && !deaf {
            append(file, 0);
            process::exit(0);
        }
    }
}

#[test]
fn who_is_past_its_limit_may_tidy_up_first() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let patient = builder().processes(1).grace(Duration::from_secs(40));
    let pool = checked(patient.build());
    let file = directory.path().join("told");
    let call = pool.task(tidy).time_limit(LIMIT);
    let error = call.apply((file.clone(), false)).unwrap_err();
    let Error::TimeLimit(limit) = &error else {
        panic!("{error:?}");
    };
    let lines = lines(&file);
    assert_eq!(lines, [u64::from(limit.pid()), 0]);
    assert!(error.to_string().contains(&limit.pid().to_string()));
    drop(pool);

    // A worker that ignores SIGTERM is killed after the grace period, and so is a stopped one.
    for grace in [0, 50] {
        let grace = Duration::from_millis(grace);
        let pool = checked(builder().processes(1).grace(grace).build());
        let call = pool.task(tidy).time_limit(Duration::from_millis(100));
        let error = call.apply((directory.path().join("deaf"), true));
        assert!(matches!(error, Err(Error::TimeLimit(_))), "{error:?}");
        let call = pool
            .task(stop_itself)
            .time_limit(Duration::from_millis(100));
        let error = call.apply(());
        assert!(matches!(error, Err(Error::TimeLimit(_))), "{error:?}");
        works(&pool);
    }
}

#[pool_task]
fn stop_itself() {
    signal(process::id(), libc::SIGSTOP);
    forever();
}

const MIB: u64 = 1 << 20;

#[pool_task]
fn hog(x: u64) -> u64 {
    if x == UNLUCKY {
        let mut all = Vec::new();
        // It stops somewhere, in case nothing stops it.
        for _ in 0..64 {
            all.push(black_box(vec![1_u8; 16 << 20]));
            thread::sleep(Duration::from_millis(10));
        }
        forever();
    }
    x * x
}

#[test]
fn a_task_that_uses_too_much_memory_is_ended() {
    let _dog = watchdog();
    let limit = 200 * MIB;
    let builder = builder().processes(2).memory_limit(limit).retries(3);
    let pool = checked(builder.build());
    for (x, result) in (0..).zip(pool.task(hog).map_results(0..INPUTS)) {
        match result {
            Ok(value) => assert_eq!(value, x * x),
            Err(Error::MemoryLimit(error)) => {
                assert_eq!(x, UNLUCKY);
                assert_eq!(error.limit(), limit);
                // All that it takes, if it is noticed late.
                assert!((limit..2048 * MIB).contains(&error.used()), "{error}");
                assert!(!pool.worker_pids().contains(&error.pid()));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    works(&pool);
}

/// Leaks this much, and notes where.
#[pool_task]
fn leak(bytes: u64) -> u32 {
    black_box(vec![1_u8; bytes as usize].leak());
    process::id()
}

#[test]
fn a_worker_that_has_grown_is_replaced() {
    let _dog = watchdog();
    let builder = builder().processes(2);
    let pool = checked(builder.max_memory_per_child(100 * MIB).build());
    let mut runs: BTreeMap<u32, u32> = BTreeMap::new();
    for _ in 0..12 {
        *runs
            .entry(pool.apply(leak, (30 * MIB,)).unwrap())
            .or_default() += 1;
    }
    for pid in pool.task(leak).chunksize(1).map([30 * MIB; 12]).unwrap() {
        *runs.entry(pid).or_default() += 1;
    }
    // The fourth exceeds the limit, and it may have begun a fifth by the time the pool notices.
    assert!(runs.values().all(|runs| *runs <= 5), "{runs:?}");
    assert!(runs.len() >= 5, "{runs:?}");
    works(&pool);
}

#[pool_task]
fn mark_or_die(file: &Path, x: u64) -> u64 {
    append(file, x);
    if x % 5 == 3 {
        signal(process::id(), libc::SIGKILL);
        forever();
    }
    x
}

#[test]
fn nothing_runs_twice_without_retries() {
    let _dog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(3);
    let mut round = 0;
    each_chunksize(&pool, mark_or_die, |call| {
        round += 1;
        let file = directory.path().join(round.to_string());
        let results = call.starmap_results((0..40).map(|x| (file.clone(), x)));
        for (x, result) in (0..).zip(results) {
            assert_eq!(result.is_err(), x % 5 == 3);
        }
        assert_each_once(&file, 40);
    });
}

#[track_caller]
fn assert_each_once(file: &Path, count: u64) {
    let mut marks = lines(file);
    marks.sort_unstable();
    assert_eq!(marks, (0..count).collect::<Vec<_>>());
}

#[pool_task]
fn mark_and_work(file: &Path, x: u64) -> u64 {
    append(file, x);
    (0..20_000).fold(x, |sum, y| black_box(sum ^ y) ^ y)
}

#[test]
fn workers_killed_at_random_lose_only_what_they_run() {
    let _dog = watchdog();
    const COUNT: u64 = 3000;
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(2);
    let mut round = 0;
    each_chunksize(&pool, mark_and_work, |call| {
        round += 1;
        let file: PathBuf = directory.path().join(round.to_string());
        let over = AtomicBool::new(false);
        let (results, kills) = thread::scope(|scope| {
            let killer = scope.spawn(|| {
                let mut kills = 0;
                let mut seen = lines(&file).len();
                while !over.load(Ordering::Relaxed) && kills < 30 {
                    // Only after some work was done, so some is done between any two deaths.
                    let now = lines(&file).len();
                    if now < seen + 40 {
                        thread::yield_now();
                        continue;
                    }
                    seen = now;
                    let pids = pool.worker_pids();
                    if let Some(pid) = pids.get(kills % 2) {
                        signal(*pid, libc::SIGKILL);
                        kills += 1;
                    }
                }
                kills
            });
            let results = call.starmap_results((0..COUNT).map(|x| (file.clone(), x)));
            over.store(true, Ordering::Relaxed);
            (results, killer.join().unwrap())
        });
        assert_eq!(results.len() as u64, COUNT);
        let marks = lines(&file);
        let mut runs = BTreeMap::new();
        for mark in marks {
            *runs.entry(mark).or_insert(0) += 1;
        }
        let mut lost = 0;
        for (x, result) in (0..).zip(results) {
            let ran = runs.get(&x).copied().unwrap_or(0);
            match result {
                Ok(value) => assert_eq!((value, ran), (mark_and_work_result(x), 1)),
                Err(Error::WorkerLost(error)) => {
                    assert_eq!(error.signal(), Some("SIGKILL"));
                    assert!(ran <= 1);
                    lost += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!(lost <= kills, "{kills} kills cost {lost} inputs");
    });
    works(&pool);
}

fn mark_and_work_result(x: u64) -> u64 {
    (0..20_000).fold(x, |sum, y| sum ^ y ^ y)
}

// ---- grandchildren --------------------------------------------------------------------------------

/// Forks a child that holds all of this worker's descriptors and does nothing.
fn fork_sleeper() -> u32 {
    // SAFETY: the child calls nothing but `pause`, which is safe after a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        loop {
            // SAFETY: no memory is involved.
            unsafe { libc::pause() };
        }
    }
    u32::try_from(child).expect("a child")
}

#[pool_task]
fn leave_a_child(gate: &Path, then_die: bool) -> u32 {
    let child = fork_sleeper();
    stand(gate, u64::from(child));
    if then_die {
        signal(process::id(), libc::SIGKILL);
        forever();
    }
    child
}

#[test]
fn a_grandchild_does_not_hide_the_death_of_its_worker() {
    let _dog = watchdog();
    let gate = Gate::new();
    let pool = pool_with(Sandbox::processes, 1);
    let lost = pool.apply_async(leave_a_child, (gate.path(), true));
    let held = gate.accept();
    let grandchild = held.id as u32;
    assert!(leaks::is_alive(grandchild));
    held.release();
    let error = lost.get().unwrap_err();
    check_lost(Death::Kill, &error);
    works(&pool);
    leaks::wait_until_dead(grandchild);
}

#[test]
fn a_grandchild_goes_with_the_pool() {
    let _dog = watchdog();
    for graceful in [true, false] {
        let gate = Gate::new();
        let pool = pool_with(Sandbox::processes, 1);
        let done = pool.apply_async(leave_a_child, (gate.path(), false));
        gate.let_through(1);
        let grandchild = done.get().unwrap();
        assert!(leaks::is_alive(grandchild));
        works(&pool);
        if graceful {
            pool.close();
            pool.join().unwrap();
        }
        drop(pool);
        leaks::wait_until_dead(grandchild);
    }
}

// ---- from outside ---------------------------------------------------------------------------------

#[test]
fn a_worker_killed_from_outside() {
    let _dog = watchdog();
    let gate = Gate::new();
    let pool = pool(2);
    let doomed = pool.apply_async(wait_at, (gate.path(), 1));
    let spared = pool.apply_async(wait_at, (gate.path(), 2));
    let mut both = [gate.accept(), gate.accept()];
    both.sort_by_key(|held| held.id);
    let [first, second] = both;
    signal(first.pid, libc::SIGKILL);
    let error = doomed.get().unwrap_err();
    let Error::WorkerLost(lost) = &error else {
        panic!("{error:?}");
    };
    assert_eq!((lost.pid(), lost.signal()), (first.pid, Some("SIGKILL")));
    second.release();
    assert_eq!(spared.get().unwrap(), 2);
    works(&pool);
    // A real-time signal has no name of its own.
    let doomed = pool.apply_async(wait_at, (gate.path(), 3));
    let third = gate.accept();
    signal(third.pid, libc::SIGRTMIN() + 3);
    let error = doomed.get().unwrap_err();
    let Error::WorkerLost(lost) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(lost.signal(), Some("SIGRTMIN+3"));
    assert!(error.to_string().contains("by SIGRTMIN+3"), "{error}");
}

#[test]
fn a_stopped_worker_goes_on_when_it_is_continued() {
    if workers_are_elsewhere() {
        return;
    }
    let _dog = watchdog();
    let pool = pool(1);
    let pid = pool.apply(own_pid, ()).unwrap();
    signal(pid, libc::SIGSTOP);
    let result = pool.apply_async(square, (3,));
    assert!(!result.wait_timeout(Duration::from_millis(20)));
    signal(pid, libc::SIGCONT);
    assert_eq!(result.get().unwrap(), 9);
    assert_eq!(pool.worker_pids(), [pid]);
}

// ---- found by review ------------------------------------------------------------------------------

#[pool_task]
fn leave_the_group(x: u64) -> u64 {
    if x == UNLUCKY {
        let parent = std::os::unix::process::parent_id() as i32;
        // SAFETY: only passes numbers.
        let parents = unsafe { libc::getpgid(parent) };
        // SAFETY: as above.
        let left = unsafe { libc::setpgid(0, parents) };
        // A worker that leads a session can't leave its group; one that can is killed by other means.
        assert!(left == 0 || left == -1);
        forever();
    }
    x * x
}

#[test]
fn a_task_that_wants_to_leave_its_process_group_is_killed_nevertheless() {
    let _dog = watchdog();
    let pool = pool(2);
    let results = pool
        .task(leave_the_group)
        .time_limit(LIMIT)
        .map_results(0..INPUTS);
    for (x, result) in (0..).zip(results) {
        match result {
            Ok(value) => assert_eq!(value, x * x),
            Err(error) => {
                assert!(matches!(error, Error::TimeLimit(_)), "{error:?}");
                assert_eq!(x, UNLUCKY);
            }
        }
    }
    works(&pool);
}

#[pool_task]
fn panic_with_another_hook(x: u64) -> u64 {
    if x == 0 {
        let caught = std::panic::catch_unwind(|| panic!("old news"));
        assert!(caught.is_err());
        return 0;
    }
    std::panic::resume_unwind(Box::new("the real reason"))
}

#[test]
fn a_panic_that_was_caught_is_not_blamed_on_another_task() {
    let _dog = watchdog();
    let pool = pool(1);
    assert_eq!(pool.apply(panic_with_another_hook, (0,)).unwrap(), 0);
    match pool.apply(panic_with_another_hook, (1,)) {
        Err(Error::Panicked(panicked)) => assert_eq!(panicked.message(), "the real reason"),
        other => panic!("{other:?}"),
    }
}
