//! Attacks a pool at one of its corners: `corners WHAT`, see `main`. Prints `fine` at the end. With `--sandbox`, the workers
//! are sandboxed, and may do only what the attack needs.

use std::collections::HashSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, Sandbox, pool_task};
use tests::{builder, is_sandboxed, pool, pool_with, temporary};

/// How long something instantaneous may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

#[pool_task]
fn count(bytes: &[u8]) -> usize {
    bytes.len()
}

/// Runs until this file exists.
#[pool_task]
fn wait_for(file: &Path) -> u64 {
    await_file(file);
    7
}

fn main() -> Result<(), Error> {
    let what = env::args().nth(1).unwrap_or_default();
    match what.as_str() {
        "stopped" => stopped(),
        "all-stopped" => all_stopped(),
        "continued" => continued(),
        "large" => large(),
        "scarce" => scarce(),
        "too-scarce" => too_scarce(),
        "too-many" => too_many(),
        "recycled" => recycled(),
        "initializers" => initializers(),
        "finalizers" => finalizers(),
        "arguments" => arguments(),
        "lying-clock" => lying_clock(),
        "unbegun" => unbegun(),
        "other-user" => other_user(),
        "paused" => paused(),
        "exit-hangs" => exit_hangs(),
        "traced" => traced(),
        "reaped" => reaped(),
        "scribbled" => scribbled(),
        "locked" => locked(),
        "slow-reader" => slow_reader(),
        "forked" => forked(),
        "starved" => starved(),
        _ => panic!("no such corner: {what:?}"),
    }?;
    println!("fine");
    Ok(())
}

#[pool_task]
fn starve(limit: Option<u64>, bytes: usize) -> u8 {
    if let Some(limit) = limit {
        let limit = libc::rlimit {
            rlim_cur: limit,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: reads the structure.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    }
    let filled = black_box(vec![1_u8; bytes]);
    filled[bytes / 2]
}

#[pool_task]
fn abort() {
    process::abort();
}

/// A failed allocation is distinguished from other aborts.
fn starved() -> Result<(), Error> {
    const LIMIT: u64 = 1 << 30;
    // A sandboxed task can't set a limit: its sandbox does, and counts from what the worker has used by then.
    let limited = pool_with(|sandbox| sandbox.memory(LIMIT), 1)?;
    let limit = (!is_sandboxed()).then_some(LIMIT);
    match limited.apply(starve, (limit, 2 << 30)) {
        Err(Error::MemoryLimit(error)) => {
            if let Some(limit) = limit {
                assert_eq!(error.limit(), limit, "{error}");
            }
            assert!(error.limit() >= LIMIT, "{error}");
            assert!(error.used() > 0 && error.used() < error.limit(), "{error}");
        }
        other => panic!("{other:?}"),
    }
    works(&limited)?;
    let pool = pool(1)?;
    // Nobody has set a limit, and this much memory does not exist.
    match pool.apply(starve, (None, 1 << 46)) {
        Err(Error::WorkerLost(error)) => {
            assert_eq!(error.signal(), Some("SIGABRT"), "{error}");
            assert!(error.to_string().contains("out of memory"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    match pool.apply(abort, ()) {
        Err(Error::WorkerLost(error)) => {
            assert_eq!(error.signal(), Some("SIGABRT"), "{error}");
            assert!(!error.to_string().contains("memory"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    works(&pool)
}

fn works(pool: &Pool) -> Result<(), Error> {
    assert_eq!(
        pool.map(square, 0..20)?,
        (0..20).map(|x| x * x).collect::<Vec<_>>()
    );
    Ok(())
}

/// One of two idle workers is stopped: the other does the work, and does not wait long for it.
fn stopped() -> Result<(), Error> {
    let pool = pool(2)?;
    works(&pool)?;
    let stopped = pool.worker_pids()[0];
    signal(stopped, libc::SIGSTOP);
    for _ in 0..20 {
        let results: Vec<_> = (0..4).map(|x| pool.apply_async(square, (x,))).collect();
        for result in results {
            result.get_timeout(SOON)?;
        }
    }
    let started = Instant::now();
    pool.terminate();
    pool.join()?;
    assert!(started.elapsed() < SOON);
    Ok(())
}

fn all_stopped() -> Result<(), Error> {
    let pool = pool(2)?;
    works(&pool)?;
    let before = pool.worker_pids();
    for pid in &before {
        signal(*pid, libc::SIGSTOP);
    }
    let results: Vec<_> = (0..4).map(|x| pool.apply_async(square, (x,))).collect();
    for result in results {
        result.get_timeout(SOON)?;
    }
    assert_ne!(pool.worker_pids(), before);
    works(&pool)
}

/// All workers are stopped for a while, as by a debugger, and then go on: none is replaced.
fn continued() -> Result<(), Error> {
    let pool = pool(2)?;
    works(&pool)?;
    let before = pool.worker_pids();
    for _ in 0..3 {
        for pid in &before {
            signal(*pid, libc::SIGSTOP);
        }
        let results: Vec<_> = (0..4).map(|x| pool.apply_async(square, (x,))).collect();
        assert!(!results[0].wait_timeout(Duration::from_millis(700)));
        for pid in &before {
            signal(*pid, libc::SIGCONT);
        }
        for result in results {
            result.get_timeout(SOON)?;
        }
        works(&pool)?;
    }
    assert_eq!(pool.worker_pids(), before);
    Ok(())
}

#[pool_task]
fn limit_memory(bytes: u64) {
    limit(libc::RLIMIT_AS, bytes);
}

fn large() -> Result<(), Error> {
    let pool = builder()
        .processes(2)
        .initializer(limit_memory, (300 << 20,))
        .build()?;
    works(&pool)?;
    let before = pool.worker_pids();
    let error = pool.apply(count, (vec![1; 400 << 20],)).unwrap_err();
    assert!(matches!(error, Error::Decode(_)), "{error:?}");
    assert!(error.to_string().contains("no memory"), "{error}");
    assert_eq!(pool.apply(count, (vec![1; 10 << 20],))?, 10 << 20);
    works(&pool)?;
    assert_eq!(pool.worker_pids(), before);
    Ok(())
}

/// There are no free descriptors for a while, and a worker dies: the other one keeps working, and once there are
/// descriptors again, there are two workers.
fn scarce() -> Result<(), Error> {
    let directory = tempfile::tempdir().expect("there is room");
    let over = directory.path().join("over");
    let pool = pool_with(temporary, 2)?;
    works(&pool)?;
    let long = pool.apply_async(wait_for, (over.clone(),));
    let idle = || {
        let pids = pool.worker_pids();
        pids.into_iter().filter(|pid| !is_busy(*pid)).collect()
    };
    let mut found: Vec<u32> = idle();
    // A worker that has just replied looks busy for a moment, and neither looks busy before the task has begun.
    while found.len() != 1 {
        found = idle();
    }
    let before = limit(libc::RLIMIT_NOFILE, 0);
    signal(found[0], libc::SIGKILL);
    eventually("one is left", || pool.worker_pids().len() == 1);
    // Meanwhile many starts fail: more than ten.
    thread::sleep(Duration::from_secs(4));
    let quick = pool.apply_async(square, (3,));
    limit(libc::RLIMIT_NOFILE, before);
    assert_eq!(quick.get_timeout(SOON)?, 9);
    fs::write(&over, "").expect("there is room");
    assert_eq!(long.get_timeout(SOON)?, 7);
    eventually("two are back", || pool.worker_pids().len() == 2);
    works(&pool)
}

fn too_scarce() -> Result<(), Error> {
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let before = limit(libc::RLIMIT_NOFILE, 0);
    for spare in 0..40 {
        limit(libc::RLIMIT_NOFILE, descriptors + spare);
        match pool(2) {
            Ok(pool) => {
                works(&pool)?;
                limit(libc::RLIMIT_NOFILE, before);
                assert!(spare > 5, "{spare}");
                return works(&pool);
            }
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, Error::Start(_)), "{spare}: {error:?}");
                assert!(text.contains("RLIMIT_NOFILE"), "{spare}: {text}");
            }
        }
    }
    panic!("forty descriptors are not enough");
}

/// More workers than there are descriptors for: the error says how many would fit, and that many do fit.
fn too_many() -> Result<(), Error> {
    limit(libc::RLIMIT_NOFILE, 100);
    let error = pool(1000).unwrap_err().to_string();
    assert!(error.contains("RLIMIT_NOFILE"), "{error}");
    let words: Vec<&str> = error.split(' ').collect();
    let number = words.windows(2).rfind(|pair| pair[1] == "workers");
    let fit: usize = number.expect("a number")[0].parse().expect("a number");
    assert!((10..50).contains(&fit), "{error}");
    pool(fit + 1).unwrap_err();
    let pool = pool(fit)?;
    works(&pool)
}

/// Workers that are recycled after each input are killed at the same time: nothing is left of them.
fn recycled() -> Result<(), Error> {
    for round in 0..150_u64 {
        let pool = builder().processes(2).max_tasks_per_child(1).build()?;
        let results: Vec<_> = (0..6).map(|x| pool.apply_async(square, (x,))).collect();
        for _ in 0..4 {
            for pid in pool.worker_pids() {
                signal(pid, libc::SIGKILL);
            }
            thread::sleep(Duration::from_micros(300 + round));
        }
        for result in results {
            match result.get_timeout(SOON) {
                Ok(_) | Err(Error::WorkerLost(_)) => {}
                Err(error) => return Err(error),
            }
        }
        pool.close();
        pool.join_timeout(SOON)?;
    }
    Ok(())
}

#[pool_task]
fn close_all() {
    for descriptor in 0..1024 {
        // SAFETY: none; the worker must survive it.
        unsafe { libc::close(descriptor) };
    }
}

#[pool_task]
fn reopen_all() {
    for descriptor in 3..1024 {
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
    }
    for _ in 0..8 {
        std::mem::forget(fs::File::open("/proc/version"));
    }
}

#[pool_task]
fn fork_at_start() {
    // SAFETY: the copy does nothing but return.
    unsafe { libc::fork() };
}

#[pool_task]
fn hold_output_at_start() {
    let _ = hold_output();
}

/// Initializers that misbehave.
fn initializers() -> Result<(), Error> {
    let two = || builder().processes(2);
    works(&two().initializer(close_all, ()).build()?)?;
    works(&two().initializer(reopen_all, ()).build()?)?;
    let pool = two().initializer(fork_at_start, ()).build()?;
    for _ in 0..20 {
        works(&pool)?;
    }
    let pool = two().initializer(hold_output_at_start, ()).build()?;
    assert_eq!(pool.apply_async(square, (3,)).get_timeout(SOON)?, 9);
    Ok(())
}

/// Prints text without a newline.
#[pool_task]
fn say_goodbye() {
    print!("goodbye ");
}

fn finalizers() -> Result<(), Error> {
    let pool = builder().processes(2).finalizer(say_goodbye, ());
    let pool = pool.build()?;
    works(&pool)?;
    pool.close();
    pool.join()
}

static ARGUMENTS: LazyLock<Vec<OsString>> = LazyLock::new(|| env::args_os().skip(1).collect());

#[pool_task]
fn take_arguments() {
    LazyLock::force(&ARGUMENTS);
}

/// Returns the title, and the other arguments as they are now and as they were when a static was initialized.
#[pool_task]
fn own_arguments() -> (String, Vec<OsString>, Vec<OsString>) {
    let mut all = env::args_os();
    let title = all.next().unwrap_or_default();
    let title = title.to_string_lossy().into_owned();
    (title, all.collect(), ARGUMENTS.clone())
}

#[pool_task]
fn arguments_of_nested() -> (String, Vec<OsString>, Vec<OsString>) {
    let pool = Pool::with_processes(1).expect("it starts");
    pool.apply(own_arguments, ()).expect("it runs")
}

/// What a worker sees of the command line.
fn arguments() -> Result<(), Error> {
    let two = || builder().processes(2);
    let program = env::current_exe().expect("it has a name");
    let name = program.file_name().expect("a file").display().to_string();
    let same = |pool: &Pool| -> Result<(), Error> {
        let (title, now, kept) = pool.apply(own_arguments, ())?;
        assert!(title.starts_with("pool-worker "), "{title}");
        assert!(title.ends_with(&format!(" of {name}")), "{title}");
        assert_eq!((&now, &kept), (&*ARGUMENTS, &*ARGUMENTS));
        // A sandboxed task can't start a pool.
        if !is_sandboxed() {
            let (_, now, kept) = pool.apply(arguments_of_nested, ())?;
            assert_eq!((&now, &kept), (&*ARGUMENTS, &*ARGUMENTS));
        }
        Ok(())
    };
    same(&two().build()?)?;
    same(&two().preload(take_arguments, ()).build()?)?;
    for contained in [two(), two().preload(take_arguments, ())] {
        match contained.contain().build() {
            Ok(pool) => same(&pool)?,
            Err(error) => assert!(error.to_string().contains("contained"), "{error}"),
        }
    }
    Ok(())
}

/// Where this worker has its rings.
fn rings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("there is /proc");
    let line = maps.lines().find(|line| line.contains("memfd:pool-rings"));
    let start = line
        .and_then(|line| line.split('-').next())
        .expect("a range");
    usize::from_str_radix(start, 16).expect("a number")
}

/// Pretends that it has not begun yet, and never ends.
#[pool_task]
fn lie_about_time(value: u64) {
    let start = rings();
    // Overwrites all words of the first page that look like a time.
    for place in (start + 128 * 6..start + 128 * 7).step_by(8) {
        // SAFETY: none. This is what the parent must survive.
        unsafe { (place as *mut u64).write_volatile(value) };
    }
    hang();
}

/// Pretends, once there is a file with the name of its process here, that it has not begun, but is busy reading its request; and
/// never ends.
#[pool_task]
fn unbegin(directory: &Path) {
    let start = rings();
    // SAFETY: none, as above. It is the number of inputs that have begun.
    let claim = unsafe { &*((start + 128 * 3) as *const AtomicU64) };
    // SAFETY: as above. It says how far requests were read.
    let taken = unsafe { &*((start + 128 * 5) as *const AtomicU64) };
    await_file(&directory.join(process::id().to_string()));
    claim.fetch_sub(1, Ordering::SeqCst);
    loop {
        taken.fetch_xor(8, Ordering::SeqCst);
        thread::yield_now();
    }
}

#[pool_task]
fn run_long() {
    hang();
}

fn unbegun() -> Result<(), Error> {
    let pool = pool_with(|sandbox| temporary(sandbox).read("/proc"), 2)?;
    let directory = tempfile::tempdir().expect("there is room");
    let hostile = pool.task(unbegin).time_limit(3 * SOON);
    let hostile = hostile.apply_async((directory.path().to_owned(),));
    let mut seen = HashSet::new();
    // The input is not to blame before the fifth worker.
    for _ in 0..5 {
        let mut pid = 0;
        eventually("it runs", || {
            let workers = pool.stats().workers;
            let runs = workers.iter().find(|one| one.running.is_some());
            pid = runs.and_then(|one| one.pid).unwrap_or_default();
            pid > 0 && seen.insert(pid)
        });
        // Whoever notices that another input has exceeded its limit has looked at this one, too.
        let limited = pool.task(run_long).time_limit(Duration::from_millis(100));
        let error = limited.apply(()).unwrap_err();
        assert!(matches!(error, Error::TimeLimit(_)), "{error:?}");
        fs::write(directory.path().join(pid.to_string()), "").expect("there is room");
    }
    let error = hostile.get_timeout(SOON).unwrap_err();
    assert!(matches!(error, Error::WorkerLost(_)), "{error:?}");
    assert!(error.to_string().contains("overwrote memory"), "{error}");
    works(&pool)
}

fn lying_clock() -> Result<(), Error> {
    let pool = pool_with(|sandbox| sandbox.read("/proc"), 1)?;
    for value in [u64::MAX, u64::MAX / 2, 0] {
        let call = pool
            .task(lie_about_time)
            .time_limit(Duration::from_millis(200));
        let error = call.apply_async((value,)).get_timeout(SOON).unwrap_err();
        assert!(matches!(error, Error::TimeLimit(_)), "{value}: {error:?}");
    }
    works(&pool)
}

#[pool_task]
fn become_another() -> u32 {
    // SAFETY: takes no pointers.
    unsafe { libc::seteuid(65534) };
    // SAFETY: as above.
    unsafe { libc::seteuid(0) };
    std::process::id()
}

/// A worker that has changed its user loses the signal that ends it with its parent, but must end anyway: its pids are
/// printed, then this program is killed.
fn other_user() -> Result<(), Error> {
    let pool = pool(1)?;
    println!("worker {}", pool.apply(become_another, ())?);
    thread::sleep(Duration::from_millis(100));
    // SAFETY: ends this program.
    unsafe { libc::raise(libc::SIGKILL) };
    Ok(())
}

/// Uses this much CPU time, however long that takes.
#[pool_task]
fn compute(ms: u64) -> u64 {
    let used = || {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is valid.
        unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let until = used() + Duration::from_millis(ms);
    while used() < until {
        std::hint::spin_loop();
    }
    ms
}

/// The whole program is stopped for longer than a time limit, as by Ctrl-Z, and goes on: no input exceeds the limit.
fn paused() -> Result<(), Error> {
    let pool = pool(1)?;
    works(&pool)?;
    let call = pool.task(compute).time_limit(Duration::from_millis(2500));
    let result = call.apply_async((200,));
    thread::sleep(Duration::from_millis(100));
    let all = [std::process::id(), pool.worker_pids()[0]];
    // SAFETY: the child makes system calls only.
    let helper = unsafe { libc::fork() };
    assert!(helper >= 0);
    if helper == 0 {
        for pid in all {
            signal(pid, libc::SIGSTOP);
        }
        thread::sleep(Duration::from_secs(3));
        for pid in all {
            signal(pid, libc::SIGCONT);
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    assert_eq!(result.get_timeout(SOON)?, 200);
    // SAFETY: waits for a child of ours.
    unsafe { libc::waitpid(helper, std::ptr::null_mut(), 0) };
    // Time that passes after it has gone on counts.
    let error = call.apply_async((20_000,)).get_timeout(SOON).unwrap_err();
    assert!(matches!(error, Error::TimeLimit(_)), "{error:?}");
    Ok(())
}

extern "C" fn hang() {
    loop {
        thread::sleep(SOON);
    }
}

#[pool_task]
fn hang_at_exit() {
    // SAFETY: the handler calls nothing that is forbidden there.
    unsafe { libc::atexit(hang) };
}

/// Each worker runs one task, and then its exit hangs: nobody waits for it.
fn exit_hangs() -> Result<(), Error> {
    let pool = builder()
        .processes(2)
        .initializer(hang_at_exit, ())
        .max_tasks_per_child(1)
        .build()?;
    // A worker that hangs at its exit is killed after a second: if each were waited for, this would take 100 seconds.
    let results = pool.map_async(square, 0..200);
    assert_eq!(results.get_timeout(SOON)?.len(), 200);
    drop(pool);
    // A task that calls `exit` leaves its input open meanwhile.
    let pool = builder()
        .processes(1)
        .initializer(hang_at_exit, ())
        .build()?;
    let started = Instant::now();
    match pool.apply(leave, (3,)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(3), "{lost}"),
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    works(&pool)?;
    let started = Instant::now();
    pool.close();
    pool.join()?;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    Ok(())
}

#[pool_task]
fn leave(code: i32) {
    process::exit(code);
}

#[pool_task]
fn own_pid() -> u32 {
    std::process::id()
}

#[pool_task]
fn begin_and_wait(begun: &Path, over: &Path) {
    fs::write(begun, "").expect("there is room");
    await_file(over);
}

/// A debugger holds a worker that dies: nobody can read how it ended.
fn traced() -> Result<(), Error> {
    // SAFETY: asks about this process.
    if is_sandboxed() && unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can trace a sandboxed worker");
        return Ok(());
    }
    let pool = pool_with(temporary, 2)?;
    let directory = tempfile::tempdir().expect("there is room");
    let over = directory.path().join("over");
    let begun = directory.path().join("begun");
    let running = pool.apply_async(begin_and_wait, (begun.clone(), over));
    // Inputs that have not begun when their worker dies run elsewhere.
    await_file(&begun);
    let pids = pool.worker_pids();
    let tracers: Vec<_> = pids.iter().map(|pid| trace(*pid)).collect();
    for pid in &pids {
        signal(*pid, libc::SIGKILL);
    }
    let lost = running.get_timeout(SOON).unwrap_err();
    assert!(matches!(lost, Error::WorkerLost(_)), "{lost:?}");
    let result = pool.apply_async(square, (3,));
    assert_eq!(result.get_timeout(SOON)?, 9);
    works(&pool)?;
    let started = Instant::now();
    drop(pool);
    assert!(started.elapsed() < Duration::from_secs(4));
    for tracer in tracers {
        signal(tracer, libc::SIGKILL);
        // SAFETY: waits for a child of ours.
        unsafe { libc::waitpid(tracer as libc::pid_t, std::ptr::null_mut(), 0) };
    }
    Ok(())
}

/// Starts a process that traces another one and never looks at it. Returns its pid.
fn trace(pid: u32) -> u32 {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both.
    let failed = unsafe { libc::pipe(ends.as_mut_ptr()) };
    assert_eq!(failed, 0);
    // SAFETY: the child makes system calls only.
    let tracer = unsafe { libc::fork() };
    assert!(tracer >= 0);
    if tracer == 0 {
        // SAFETY: a request that takes no pointers.
        let failed = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid as libc::pid_t, 0, 0) };
        let said = [u8::from(failed == 0)];
        // SAFETY: writes one byte, which exists.
        unsafe { libc::write(ends[1], said.as_ptr().cast(), 1) };
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    let mut said = [0_u8];
    // SAFETY: reads one byte, for which there is room.
    let read = unsafe { libc::read(ends[0], said.as_mut_ptr().cast(), 1) };
    assert_eq!((read, said), (1, [1]), "tracing is not allowed");
    tracer as u32
}

/// The parent reaps all of its children itself, workers too.
fn reaped() -> Result<(), Error> {
    let pool = pool(2)?;
    thread::spawn(|| {
        loop {
            // SAFETY: waits for any child; ignores the status.
            unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) };
            thread::yield_now();
        }
    });
    for _ in 0..20 {
        for pid in pool.worker_pids() {
            signal(pid, libc::SIGKILL);
        }
        let results: Vec<_> = (0..10).map(|x| pool.apply_async(square, (x,))).collect();
        for result in results {
            match result.get_timeout(SOON) {
                Ok(_) | Err(Error::WorkerLost(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    eventually("two are back", || pool.worker_pids().len() == 2);
    works(&pool)
}

/// Overwrites the memory that the worker shares with its parent, everywhere or at one place.
#[pool_task]
fn scribble(seed: u64) -> u64 {
    let maps = fs::read_to_string("/proc/self/maps").expect("there is /proc");
    let mut state = seed;
    let mut random = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 16
    };
    for line in maps.lines().filter(|line| line.contains("memfd:pool-")) {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let (start, end) = range.expect("a range");
        let number = |text| usize::from_str_radix(text, 16).expect("a number");
        let (start, end) = (number(start), number(end));
        let all = seed.is_multiple_of(2);
        for place in (start..end).step_by(8) {
            if all || random().is_multiple_of(64) {
                // SAFETY: none. This is what the parent must survive.
                unsafe { (place as *mut u64).write_volatile(random()) };
            }
        }
    }
    seed
}

/// Tasks write rubbish over everything that they share with the parent. They lose their own outcomes, and those of
/// inputs that run in the same worker afterwards, but no others.
fn scribbled() -> Result<(), Error> {
    let pool = pool_with(|sandbox| sandbox.read("/proc"), 2)?;
    for seed in 0..40 {
        let results: Vec<_> = (0..10)
            .map(|x| match x {
                3 => pool.apply_async(scribble, (seed,)),
                _ => pool.apply_async(square, (x,)),
            })
            .collect();
        for result in results {
            let outcome = result.get_timeout(SOON);
            assert!(
                !matches!(outcome, Err(Error::Timeout)),
                "no outcome, at seed {seed}"
            );
        }
        eventually("it works again", || works(&pool).is_ok());
    }
    Ok(())
}

/// Leaves a thread behind that holds the lock of standard output.
#[pool_task]
fn hold_output() -> u32 {
    let (locked, is_locked) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let lock = io::stdout().lock();
        let _ = locked.send(());
        loop {
            thread::park();
            std::hint::black_box(&lock);
        }
    });
    is_locked.recv().expect("it locks");
    std::process::id()
}

/// Leaves a thread behind that locks standard output when it is told to.
#[pool_task]
fn leave_a_holder() {
    let (tell, told) = std::sync::mpsc::channel::<std::sync::mpsc::Sender<()>>();
    thread::spawn(move || {
        let locked = told.recv();
        let lock = io::stdout().lock();
        let _ = locked.map(|locked| locked.send(()));
        loop {
            thread::park();
            std::hint::black_box(&lock);
        }
    });
    let _ = HOLDER.set(tell);
}

static HOLDER: OnceLock<std::sync::mpsc::Sender<std::sync::mpsc::Sender<()>>> = OnceLock::new();

#[pool_task]
fn let_it_hold() -> u32 {
    let (locked, is_locked) = std::sync::mpsc::channel();
    let holder = HOLDER.get().expect("the initializer ran");
    holder.send(locked).expect("it waits");
    is_locked.recv().expect("it locks");
    process::id()
}

fn locked() -> Result<(), Error> {
    let pool = pool_with(Sandbox::threads, 1)?;
    for _ in 0..3 {
        let pid = pool.apply_async(hold_output, ()).get_timeout(SOON)?;
        let next = pool.apply_async(own_pid, ()).get_timeout(SOON)?;
        assert_ne!(pid, next, "its process is of no more use");
    }
    works(&pool)?;
    // The same by a thread of an initializer, where tasks may start none.
    let pool = builder()
        .processes(1)
        .initializer(leave_a_holder, ())
        .build()?;
    for _ in 0..3 {
        let pid = pool.apply_async(let_it_hold, ()).get_timeout(SOON)?;
        let next = pool.apply_async(own_pid, ()).get_timeout(SOON)?;
        assert_ne!(pid, next, "its process is of no more use");
    }
    works(&pool)
}

/// Prints a part of a line, in a process with two threads.
#[pool_task]
fn print_among_threads(text: &str) -> u32 {
    static ANOTHER: LazyLock<()> = LazyLock::new(|| {
        thread::spawn(|| {
            loop {
                thread::park();
            }
        });
    });
    LazyLock::force(&ANOTHER);
    print!("{text}");
    process::id()
}

/// Standard output is a full pipe for longer than a lock of it may be held.
fn slow_reader() -> Result<(), Error> {
    const FULL: Duration = Duration::from_millis(600);
    let own = io::stdout().as_fd().try_clone_to_owned().expect("a copy");
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let texts = || (0..400).map(|number| format!("{number:900}"));
    let expected: String = texts().collect();
    replace_stdout(writer.as_fd());
    let pool = pool_with(Sandbox::threads, 1)?;
    drop(writer);
    replace_stdout(own.as_fd());
    let call = pool.starmap_async(print_among_threads, texts().map(|text| (text,)));
    // The pipe fills up meanwhile: it has room for a fraction of that.
    thread::sleep(FULL);
    let mut printed = vec![0; expected.len()];
    io::Read::read_exact(&mut reader, &mut printed).expect("everything is printed");
    assert_eq!(String::from_utf8_lossy(&printed), expected);
    let pids = call.get_timeout(SOON)?;
    assert!(pids.iter().all(|pid| *pid == pids[0]), "no worker is ended");
    works(&pool)
}

/// Makes this descriptor standard output.
fn replace_stdout(with: BorrowedFd<'_>) {
    // SAFETY: both are open, and whoever prints now may print to either.
    assert_eq!(unsafe { libc::dup2(with.as_raw_fd(), 1) }, 1);
}

/// Makes a copy of the worker, which returns as well.
#[pool_task]
fn fork(x: u64) -> u64 {
    // SAFETY: the copy does nothing but return.
    let child = unsafe { libc::fork() };
    if child > 0 {
        // SAFETY: waits for a child of ours.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    x
}

fn forked() -> Result<(), Error> {
    let pool = pool_with(Sandbox::processes, 2)?;
    for chunk in [1, 5] {
        let results = pool.task(fork).chunksize(chunk).map_async(0..100);
        assert_eq!(results.get_timeout(SOON)?, (0..100).collect::<Vec<_>>());
    }
    works(&pool)
}

/// Whether a worker uses the CPU, or has slept only briefly, which is what `wait_for` does.
fn is_busy(pid: u32) -> bool {
    let children = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find(|line| line.starts_with("voluntary_ctxt_switches"));
        line.map(str::to_owned)
    };
    let before = children();
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        if children() != before {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

fn await_file(file: &Path) {
    while !file.exists() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sets the soft limit, and returns the previous one.
fn limit(resource: libc::__rlimit_resource_t, to: u64) -> u64 {
    let mut now = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid.
    let failed = unsafe { libc::getrlimit(resource, &raw mut now) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    let before = now.rlim_cur;
    now.rlim_cur = to.min(now.rlim_max);
    // SAFETY: as above.
    let failed = unsafe { libc::setrlimit(resource, &raw const now) };
    assert_eq!(failed, 0, "{}", io::Error::last_os_error());
    before
}

fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: sends a signal to a child of ours; at worst it is gone.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}
