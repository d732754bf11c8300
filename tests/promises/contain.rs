//! Contained workers: what they start ends with them.

use std::path::Path;
use std::process;
use std::time::Duration;

use pool_core::{Error, PoolBuilder, Sandbox, pool_task};

use crate::support::{
    Gate, builder, builder_with, checked, forever, multiply, signal, square, stand, watchdog,
    workers_are_elsewhere, works,
};

/// Returns a builder of contained pools; `None`, after saying so, where the system allows no namespaces.
fn contained() -> Option<PoolBuilder> {
    contained_with(|sandbox| sandbox)
}

/// The same; if workers are sandboxed, these may do this, too.
fn contained_with(permit: fn(Sandbox) -> Sandbox) -> Option<PoolBuilder> {
    match builder().processes(1).contain().build() {
        Ok(_) => Some(builder_with(permit).processes(2).contain()),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("it can't be contained"), "{text}");
            None
        }
    }
}

#[pool_task]
fn leave_a_daemon(gate: &Path) {
    daemon_at(gate);
}

/// Leaves behind a process, outside the session and the process group, that waits at the gate.
fn daemon_at(gate: &Path) {
    // SAFETY: a worker of this program has one thread, so the copy is complete.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: touches no memory.
        unsafe { libc::setsid() };
        // SAFETY: as above.
        if unsafe { libc::fork() } == 0 {
            stand(gate, 7);
        }
        // SAFETY: ends the copy.
        unsafe { libc::_exit(0) };
    }
    // SAFETY: it is our child, and nobody asks for its status.
    let waited = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert_eq!(waited, child);
}

#[pool_task]
fn leave_a_daemon_and_die(gate: &Path) {
    daemon_at(gate);
    stand(gate, 1);
    process::abort();
}

#[pool_task]
fn exit_with(code: i32) {
    process::exit(code);
}

#[pool_task]
fn raise(number: i32) {
    signal_self(number);
    forever();
}

fn signal_self(number: i32) {
    // (In its namespace it has a small number, but it is not the first process.)
    signal(process::id(), number);
}

#[pool_task]
fn fill(bytes: usize) -> u8 {
    let filled = std::hint::black_box(vec![1_u8; bytes]);
    if bytes > 0 {
        forever();
    }
    filled.first().copied().unwrap_or_default()
}

#[test]
fn a_daemon_ends_with_the_pool() {
    let _watchdog = watchdog();
    let Some(builder) = contained_with(Sandbox::processes) else {
        return;
    };
    let gate = Gate::new();
    let pool = checked(builder.build());
    pool.apply(leave_a_daemon, (gate.path(),))
        .expect("the task returns");
    let daemon = gate.accept();
    works(&pool);
    drop(pool);
    daemon.wait_until_gone();
}

#[test]
fn a_daemon_ends_with_a_worker_that_dies() {
    let _watchdog = watchdog();
    let Some(builder) = contained_with(Sandbox::processes) else {
        return;
    };
    let gate = Gate::new();
    let pool = checked(builder.build());
    let running = pool.apply_async(leave_a_daemon_and_die, (gate.path(),));
    let mut both = [gate.accept(), gate.accept()];
    both.sort_by_key(|held| held.id);
    let [task, daemon] = both;
    task.release();
    match running.get() {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.signal(), Some("SIGABRT"), "{lost}"),
        other => panic!("{other:?}"),
    }
    daemon.wait_until_gone();
    works(&pool);
}

#[pool_task]
fn is_readable(path: &Path) -> bool {
    std::fs::read(path).is_ok()
}

/// Before a worker may read something, it makes sure that it has only one thread, whose number in /proc is not the one that
/// it has in its namespace.
#[test]
fn a_contained_worker_can_be_sandboxed() {
    let _watchdog = watchdog();
    let Some(builder) = contained() else { return };
    let sandbox = Sandbox::new().read("/etc/passwd").processes();
    let pool = checked(builder.sandbox(sandbox).build());
    let readable = |path: &str| pool.apply(is_readable, (path.into(),));
    assert!(readable("/etc/passwd").expect("the task returns"));
    assert!(!readable("/etc/group").expect("the task returns"));
}

#[test]
fn the_end_of_a_contained_worker_is_told_as_it_was() {
    let _watchdog = watchdog();
    let Some(builder) = contained() else { return };
    let pool = checked(builder.build());
    match pool.apply(exit_with, (3,)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(3), "{lost}"),
        other => panic!("{other:?}"),
    }
    for (number, name) in [
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGSEGV, "SIGSEGV"),
    ] {
        match pool.apply(raise, (number,)) {
            Err(Error::WorkerLost(lost)) => assert_eq!(lost.signal(), Some(name), "{lost}"),
            other => panic!("{other:?}"),
        }
    }
    works(&pool);
}

#[test]
fn limits_hold_for_contained_workers() {
    let _watchdog = watchdog();
    let Some(builder) = contained() else { return };
    let pool = checked(
        builder
            .time_limit(Duration::from_secs(5))
            .memory_limit(256 << 20)
            .max_tasks_per_child(3)
            .build(),
    );
    let call = pool.task(raise).time_limit(Duration::from_millis(50));
    // A stopped worker can't obey, and one that waits for a signal can.
    for number in [libc::SIGSTOP, libc::SIGWINCH] {
        let outcome = call.apply((number,));
        assert!(matches!(outcome, Err(Error::TimeLimit(_))), "{outcome:?}");
    }
    let outcome = pool.apply(fill, (512 << 20,));
    assert!(matches!(outcome, Err(Error::MemoryLimit(_))), "{outcome:?}");
    works(&pool);
}

#[test]
fn signals_to_the_guard_reach_the_worker() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    let Some(builder) = contained() else { return };
    let gate = Gate::new();
    let pool = checked(builder.processes(1).build());
    let pids = pool.worker_pids();
    let running = pool.apply_async(crate::support::wait_at, (gate.path(), 1));
    let _held = gate.accept();
    signal(pids[0], libc::SIGUSR1);
    match running.get() {
        Err(Error::WorkerLost(lost)) => {
            assert_eq!((lost.signal(), lost.pid()), (Some("SIGUSR1"), pids[0]));
        }
        other => panic!("{other:?}"),
    }
}

/// Nothing runs twice when the guard of a worker with much to do is killed.
#[test]
fn a_killed_guard_costs_no_more_than_one_input() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    let Some(builder) = contained() else { return };
    let pool = checked(builder.build());
    for round in 0..10 {
        let results = pool.task(multiply).chunksize(100);
        let pids = pool.worker_pids();
        let outcomes = results.istarmap((0..20_000).map(|x| (x, 3)));
        let mut lost = 0;
        for (x, outcome) in outcomes.enumerate() {
            if x == 1000 * round {
                signal(pids[0], libc::SIGKILL);
            }
            match outcome {
                Ok(product) => assert_eq!(product, 3 * x as u64),
                Err(Error::WorkerLost(_)) => lost += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(lost <= 1, "{lost} lost");
    }
    assert_eq!(pool.apply(square, (5,)).expect("the pool works"), 25);
}
