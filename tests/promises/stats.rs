//! What `stats` tells.

use std::path::Path;
use std::process;
use std::thread;
use std::time::Duration;

use pool_core::backend::Inline;
use pool_core::{Error, Pool, Retries, Stats, TaskStats, WorkerState, pool_task};

use crate::support::{
    Gate, builder, checked, hang, host, is_sandboxed, pool, signal, square, stand, wait_at,
    watchdog, workers_are_elsewhere,
};

/// What is known of a task.
fn of<'s>(stats: &'s Stats, name: &str) -> &'s TaskStats {
    let mut tasks = stats.tasks.iter();
    tasks
        .find(|task| task.task.ends_with(name))
        .unwrap_or_else(|| panic!("{name} is not among {stats}"))
}

/// How many inputs have an outcome.
fn outcomes(task: &TaskStats) -> u64 {
    task.done + task.failed()
}

/// Some end well, some panic, some kill their worker.
#[pool_task]
fn mixed(x: u64) -> u64 {
    match x % 50 {
        7 => panic!("seven"),
        13 => process::abort(),
        _ => x,
    }
}

#[test]
fn what_four_threads_submit_adds_up_though_workers_die() {
    let _watchdog = watchdog();
    let pool = pool(2);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let results = pool.task(mixed).map_results(0..100);
                let count = |is: fn(&Error) -> bool| {
                    results
                        .iter()
                        .filter_map(|one| one.as_ref().err())
                        .filter(|error| is(error))
                        .count()
                };
                assert_eq!(count(|error| matches!(error, Error::Panicked(_))), 2);
                assert_eq!(count(|error| matches!(error, Error::WorkerLost(_))), 2);
                for x in 0..25 {
                    pool.apply(square, (x,)).expect("it is well");
                }
            });
        }
    });
    let stats = pool.stats();
    let task = of(&stats, "::mixed");
    assert_eq!((task.done, task.panicked, task.lost), (4 * 96, 8, 8));
    assert_eq!(outcomes(task), 400);
    assert_eq!(task.attempts, 400);
    assert_eq!(outcomes(of(&stats, "::square")), 100);
    let died: usize = stats
        .workers
        .iter()
        .map(|worker| worker.restarts.died)
        .sum();
    assert_eq!(died, 8);
    let last = stats
        .workers
        .iter()
        .filter_map(|worker| worker.restarts.last.as_deref());
    assert!(last.clone().count() > 0);
    assert!(last.into_iter().all(|why| why.contains("SIGABRT")));
    let done: u64 = stats.workers.iter().map(|worker| worker.done).sum();
    assert_eq!(done, 4 * 98 + 100);
    assert_eq!(stats.queued, 0);
    assert!(stats.bytes_sent > 0 && stats.bytes_received > 0);

    // When all workers have ended, everything that they have counted is known.
    pool.close();
    pool.join().expect("it ends");
    let stats = pool.stats();
    let task = of(&stats, "::mixed");
    assert_eq!(task.run_times.count, 400);
    assert_eq!(task.waiting_times.count, 400);
    assert_eq!(of(&stats, "::square").run_times.count, 100);
    for times in [task.run_times, task.waiting_times] {
        assert!(times.p50 <= times.p90 && times.p90 <= times.p99 && times.p99 <= times.max);
    }
    for worker in &stats.workers {
        assert_eq!((worker.state, worker.pid), (WorkerState::Absent, None));
        assert!((0.0..=1.0).contains(&worker.busy));
    }
}

#[test]
fn what_runs_and_what_waits_is_shown() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    let held = pool.task(wait_at).partial((gate.path(),)).map_async(0..3);
    let first = gate.accept();
    let stats = pool.stats();
    let worker = &stats.workers[0];
    assert_eq!(worker.state, WorkerState::Busy);
    assert_eq!(worker.pid, Some(first.pid));
    let running = worker.running.as_ref().expect("it runs something");
    assert!(running.task.ends_with("::wait_at"));
    assert_eq!(running.index, Some(0));
    assert!(running.since <= stats.uptime);
    assert_eq!(stats.queued, 2);
    assert!(worker.resident.is_some_and(|bytes| bytes > 0));
    first.release();
    gate.let_through(2);
    held.get().expect("all are let through");
    // One that is the only input of its call has no position.
    let alone = pool.apply_async(wait_at, (gate.path(), 9));
    let second = gate.accept();
    let stats = pool.stats();
    assert_eq!(
        stats.workers[0].running.as_ref().expect("it runs").index,
        None
    );
    assert_eq!(of(&stats, "::wait_at").done, 3);
    second.release();
    alone.get().expect("it is let through");
    let stats = pool.stats();
    assert_eq!(stats.workers[0].done, 4);
    assert_eq!(of(&stats, "::wait_at").done, 4);
}

#[pool_task]
fn wait_then_panic(gate: &Path, id: u64) {
    stand(gate, id);
    panic!("let through");
}

#[test]
fn each_outcome_has_its_count() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = checked(builder().processes(1).grace(Duration::ZERO).build());
    // Run again, and then it is well.
    let again = pool
        .task(wait_then_panic)
        .retries(Retries::new(1).on_panic())
        .apply_async((gate.path(), 0));
    gate.let_through(2);
    assert!(matches!(again.get(), Err(Error::Panicked(_))));
    let task = of(&pool.stats(), "::wait_then_panic").clone();
    assert_eq!((task.panicked, task.attempts), (1, 2));

    let other = Gate::new();
    let limited = pool.task(wait_at).time_limit(Duration::from_millis(30));
    assert!(matches!(
        limited.apply((other.path(), 0)),
        Err(Error::TimeLimit(_))
    ));
    let cancelled = pool.task(wait_at).partial((gate.path(),)).map_async(0..4);
    let _first = gate.accept();
    assert!(cancelled.cancel());
    let task = of(&pool.stats(), "::wait_at").clone();
    assert_eq!((task.time_limit, task.cancelled, task.done), (1, 4, 0));
    let open = pool.task(wait_at).partial((gate.path(),)).map_async(0..5);
    let _held = gate.accept();
    pool.terminate();
    assert!(matches!(open.get(), Err(Error::Terminated)));
    pool.join().expect("it ends");
    let stats = pool.stats();
    let task = of(&stats, "::wait_at");
    assert_eq!(task.terminated, 5);
    assert_eq!(outcomes(task), 10);
    // The time limit and the cancellation, but not the end.
    assert_eq!(stats.workers[0].restarts.died, 2);
}

/// How long the runs of a task took in all.
fn ran(task: &TaskStats) -> Duration {
    let count = u32::try_from(task.run_times.count).expect("there are few");
    task.run_times.mean * count
}

/// How long inputs ran in the only worker.
fn busy(stats: &Stats) -> Duration {
    stats.uptime.mul_f64(stats.workers[0].busy)
}

#[test]
fn runs_that_are_broken_off_count_with_their_time() {
    let _watchdog = watchdog();
    let limit = Duration::from_millis(150);
    let gate = Gate::new();
    let pool = checked(builder().processes(1).grace(Duration::ZERO).build());

    // Past their time limit; two were tried twice.
    let limited = pool.task(hang).time_limit(limit);
    assert!(matches!(limited.apply(()), Err(Error::TimeLimit(_))));
    let twice = limited.retries(Retries::new(1).on_time_limit());
    assert!(matches!(twice.apply(()), Err(Error::TimeLimit(_))));
    let stats = pool.stats();
    let times = of(&stats, "::hang").run_times;
    assert_eq!((times.count, of(&stats, "::hang").attempts), (3, 3));
    for time in [times.mean, times.p50, times.p99, times.max] {
        assert!((limit..stats.uptime).contains(&time), "{stats}");
    }
    assert!((3 * limit..stats.uptime).contains(&busy(&stats)), "{stats}");

    // Killed from outside, cancelled, and terminated with the pool, each after it has run for a while.
    let long = Duration::from_millis(50);
    let run_on = || {
        let held = gate.accept();
        thread::sleep(long);
        held
    };
    let lost = pool.apply_async(wait_at, (gate.path(), 1));
    signal(run_on().pid, libc::SIGKILL);
    assert!(matches!(lost.get(), Err(Error::WorkerLost(_))));
    let cancelled = pool.apply_async(wait_at, (gate.path(), 2));
    let held = run_on();
    assert!(cancelled.cancel());
    held.wait_until_gone();
    let terminated = pool.apply_async(wait_at, (gate.path(), 3));
    let _held = run_on();
    pool.terminate();
    assert!(matches!(terminated.get(), Err(Error::Terminated)));
    pool.join().expect("it ends");
    let stats = pool.stats();
    let task = of(&stats, "::wait_at");
    assert_eq!((task.lost, task.cancelled, task.terminated), (1, 1, 1));
    assert_eq!((task.attempts, task.run_times.count), (3, 3));
    assert_eq!(task.waiting_times.count, 3);
    assert!(task.run_times.p50 >= long && task.run_times.max >= long);
    // What the tasks tell and what the worker tells is the same.
    let all = ran(of(&stats, "::hang")) + ran(task);
    assert!(all >= 3 * limit + 3 * long && all < stats.uptime, "{stats}");
    let apart = all.abs_diff(busy(&stats));
    assert!(apart < Duration::from_micros(10), "{apart:?} {stats}");
}

#[test]
fn workers_that_are_replaced_are_counted_by_the_reason() {
    let _watchdog = watchdog();
    let pool = checked(builder().processes(1).max_tasks_per_child(5).build());
    pool.task(square)
        .chunksize(1)
        .map(0..20)
        .expect("it is well");
    pool.close();
    pool.join().expect("it ends");
    let stats = pool.stats();
    let worker = &stats.workers[0];
    assert_eq!(worker.done, 20);
    assert!((3..=4).contains(&worker.restarts.max_tasks), "{stats}");
    assert_eq!((worker.restarts.died, worker.restarts.max_memory), (0, 0));
    let task = of(&stats, "::square");
    assert_eq!(
        (task.done, task.run_times.count, task.waiting_times.count),
        (20, 20, 20)
    );
}

#[test]
fn an_idle_pool_a_table_and_a_copy() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let stats = pool.stats();
    assert_eq!(stats.workers.len(), 2);
    let workers = stats.workers.iter();
    assert!(
        workers
            .clone()
            .all(|worker| worker.state == WorkerState::Idle)
    );
    assert!(workers.clone().all(|worker| worker.host == host()));
    let pids: Vec<u32> = workers.filter_map(|worker| worker.pid).collect();
    if workers_are_elsewhere() {
        assert_eq!(pids.len(), 2);
    } else {
        assert_eq!(pids, pool.worker_pids());
    }
    assert!(stats.to_string().contains("idle"));
    assert!(stats.tasks.is_empty());
    // SAFETY: the child calls nothing but what is allowed after a fork in a process of several threads, and allocates, as the other
    // tests of copies do.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_empty = pool.stats() == Stats::default();
        // SAFETY: ends the copy.
        unsafe { libc::_exit(i32::from(!is_empty)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
}

#[test]
fn what_a_worker_was_killed_for_from_outside_is_shown() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(1);
    let lost = pool.apply_async(wait_at, (gate.path(), 1));
    let held = gate.accept();
    signal(held.pid, libc::SIGKILL);
    assert!(matches!(lost.get(), Err(Error::WorkerLost(_))));
    let stats = pool.stats();
    assert_eq!(of(&stats, "::wait_at").lost, 1);
    assert_eq!(stats.workers[0].restarts.died, 1);
    let last = stats.workers[0].restarts.last.as_deref();
    assert!(last.is_some_and(|why| why.contains("SIGKILL")), "{last:?}");
}

#[pool_task]
fn nested(x: u64) -> u64 {
    let pool = Pool::with_processes(1).expect("it starts");
    let y = pool.apply(square, (x,)).expect("it is well");
    let stats = pool.stats();
    assert_eq!(of(&stats, "::square").done, 1);
    y
}

#[test]
fn a_pool_in_a_worker_counts_for_itself() {
    let _watchdog = watchdog();
    // A sandboxed task can't start a pool: see `pools_nest`.
    if is_sandboxed() {
        return;
    }
    let pool = pool(1);
    assert_eq!(pool.apply(nested, (3,)).expect("it is well"), 9);
    let stats = pool.stats();
    assert_eq!(stats.tasks.len(), 1);
    assert_eq!(of(&stats, "::nested").done, 1);
}

#[test]
fn without_workers_it_is_this_process() {
    let pool = Pool::builder().backend(Inline).build().expect("it starts");
    pool.map(square, 0..10).expect("it is well");
    assert!(pool.apply(mixed, (7,)).is_err());
    let stats = pool.stats();
    assert_eq!(stats.workers.len(), 1);
    let worker = &stats.workers[0];
    assert_eq!((worker.pid, worker.done), (Some(process::id()), 11));
    assert_eq!(worker.state, WorkerState::Idle);
    assert_eq!(of(&stats, "::mixed").panicked, 1);
    assert_eq!(of(&stats, "::square").run_times.count, 10);
}
