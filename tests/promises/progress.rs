//! [`Call::progress`](pool_core::Call::progress): how far a call is.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use pool_core::{Call, Error, Progress, Task, pool_task};

use crate::support::{Gate, builder, checked, hang, multiply, pool, square, wait_at, watchdog};

/// The call, and what comes of its reports.
fn watched<T: Task>(call: Call<'_, T>) -> (Call<'_, T>, Receiver<Progress>) {
    let (tell, told) = mpsc::channel();
    let call = call.progress(move |progress| {
        let _ = tell.send(progress.clone());
    });
    (call, told)
}

/// All reports up to the last one, which must be the only one of its kind.
#[track_caller]
fn until_the_last(told: &Receiver<Progress>) -> Vec<Progress> {
    let mut reports = Vec::new();
    loop {
        reports.push(told.recv().expect("there is a last report"));
        if reports[reports.len() - 1].is_finished() {
            return reports;
        }
    }
}

/// So many inputs, of which so many failed: from nothing to the end, and never back.
#[track_caller]
fn check(reports: &[Progress], count: usize, failed: usize) {
    let (first, last) = (&reports[0], &reports[reports.len() - 1]);
    assert_eq!((first.done, first.running), (0, 0), "{first:?}");
    let end = (last.done, last.failed, last.running, last.total);
    assert_eq!(end, (count, failed, 0, Some(count)), "{last:?}");
    for two in reports.windows(2) {
        assert!(two[0].done <= two[1].done && two[0].elapsed <= two[1].elapsed);
        assert!(two[0].failed <= two[1].failed);
    }
}

#[pool_task]
fn fail_at_three(x: u64) -> u64 {
    assert!(x != 3, "not 3");
    x
}

#[test]
fn every_way_to_call_reports_from_the_start_to_the_end() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (call, told) = watched(pool.task(square));
    let check_last = |count| check(&until_the_last(&told), count, 0);
    assert_eq!(call.map(0..500).unwrap().len(), 500);
    check_last(500);
    assert_eq!(call.map_async(0..500).get().unwrap().len(), 500);
    check_last(500);
    assert_eq!(call.map_results(0..7).len(), 7);
    check_last(7);
    assert_eq!(call.imap(0..500).flatten().count(), 500);
    check_last(500);
    let inputs = vec![(3,); 500];
    assert_eq!(call.istarmap_unordered(inputs).flatten().count(), 500);
    check_last(500);
    assert_eq!(call.apply((3,)).unwrap(), 9);
    check_last(1);
    assert_eq!(call.apply_async((3,)).get().unwrap(), 9);
    check_last(1);
    let (call, told) = watched(pool.task(multiply).chunksize(3));
    assert_eq!(call.starmap([(1, 2), (3, 4)]).unwrap(), [2, 12]);
    check(&until_the_last(&told), 2, 0);
    let (call, told) = watched(pool.task(fail_at_three));
    assert!(call.map(0..5).is_err());
    check(&until_the_last(&told), 5, 1);
    assert!(call.by_ref().map(&[3, 3]).is_err());
    check(&until_the_last(&told), 2, 2);
}

#[test]
fn a_map_that_waits_is_reported_while_it_runs() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let pool = pool(2);
    let (call, told) = watched(pool.task(wait_at).chunksize(1));
    let inputs: Vec<(std::path::PathBuf, u64)> = (0..4).map(|id| (gate.path(), id)).collect();
    let told = std::thread::scope(|scope| {
        let gate = &gate;
        let told = scope.spawn(move || {
            let (one, other) = (gate.accept(), gate.accept());
            let is_seen = |wanted: &dyn Fn(&Progress) -> bool| {
                while !wanted(&told.recv().expect("it runs")) {}
            };
            is_seen(&|progress| progress.running == 2 && progress.done == 0);
            one.release();
            is_seen(&|progress| progress.done == 1 && progress.total == Some(4));
            other.release();
            gate.let_through(2);
            told
        });
        assert_eq!(call.starmap(inputs).unwrap(), [0, 1, 2, 3]);
        told.join().unwrap()
    });
    until_the_last(&told);
    // There is one last report.
    pool.close();
    pool.join().unwrap();
    assert!(told.try_recv().is_err());
}

#[test]
fn a_call_without_inputs_has_an_end_and_no_beginning() {
    let _watchdog = watchdog();
    let pool = pool(1);
    let (call, told) = watched(pool.task(square));
    call.map([]).unwrap();
    call.map((0..100_u64).filter(|x| *x > 100)).unwrap();
    call.map_async([]).get().unwrap();
    assert_eq!(call.imap([]).count(), 0);
    pool.close();
    pool.join().unwrap();
    drop(call);
    let reports: Vec<Progress> = told.iter().collect();
    assert_eq!(reports.len(), 4, "{reports:?}");
    reports
        .iter()
        .for_each(|report| check(std::slice::from_ref(report), 0, 0));
}

#[test]
fn the_total_is_known_once_all_inputs_are_drawn() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (call, told) = watched(pool.task(square));
    // The second input comes when the first is done; an iterator that does not know how many there are.
    let mut reports = Vec::new();
    let inputs = (0..2).filter(|x| {
        while *x == 1 && reports.last().is_none_or(|last: &Progress| last.done < 1) {
            reports.push(told.recv().unwrap());
        }
        true
    });
    assert_eq!(call.imap(inputs).flatten().count(), 2);
    assert!(reports.iter().all(|report| report.total.is_none()));
    let last = until_the_last(&told).pop().unwrap();
    assert_eq!((last.done, last.total), (2, Some(2)));
}

#[test]
fn what_is_cancelled_terminated_or_refused_has_failed() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (call, told) = watched(pool.task(hang));
    let handle = call.starmap_async(vec![(); 10]);
    assert!(handle.cancel());
    check(&until_the_last(&told), 10, 10);
    let handle = call.starmap_async(vec![(); 10]);
    pool.terminate();
    assert!(matches!(handle.get(), Err(Error::Terminated)));
    check(&until_the_last(&told), 10, 10);
    let (call, told) = watched(pool.task(square));
    assert!(matches!(call.map(0..10), Err(Error::Closed)));
    let last = until_the_last(&told).pop().unwrap();
    assert_eq!((last.done, last.failed), (last.total.unwrap(), last.done));
    assert!(matches!(call.apply((1,)), Err(Error::Closed)));
    check(&until_the_last(&told), 1, 1);
}

/// An iterator may outlive its pool. What it had not drawn is refused, and reported.
#[test]
fn an_iterator_without_a_pool_is_reported_to_its_end() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (call, told) = watched(pool.task(square).chunksize(1));
    let mut some = call.imap(0..1000);
    assert!(some.next().is_some());
    drop(call);
    drop(pool);
    let failed = some.filter(Result::is_err).count();
    assert!(failed > 0);
    check(&until_the_last(&told), 1000, failed);
    // One that is abandoned then lets go of the handler.
    let pool = crate::support::pool(2);
    let (call, told) = watched(pool.task(square).chunksize(1));
    let mut some = call.imap(0..1000);
    assert!(some.next().is_some());
    drop(call);
    drop(pool);
    drop(some);
    assert!(told.iter().all(|report| !report.is_finished()));
}

#[test]
fn what_is_dropped_is_reported_no_more() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (call, told) = watched(pool.task(square));
    let mut some = call.imap(0..);
    assert!(some.next().is_some());
    drop((some, call));
    // The handler is dropped once nobody needs it.
    assert!(told.iter().all(|report| !report.is_finished()));
    let (call, told) = watched(pool.task(square));
    let inputs = (0..10).inspect(|x| assert!(*x < 5, "an iterator that panics"));
    assert!(panic::catch_unwind(AssertUnwindSafe(|| call.map(inputs))).is_err());
    drop(call);
    assert!(told.iter().all(|report| !report.is_finished()));
}

#[test]
fn a_handler_that_panics_or_hangs_harms_nothing() {
    let _watchdog = watchdog();
    let pool = pool(2);
    let (tell, told) = mpsc::channel();
    let call = pool.task(square).progress(move |progress| {
        let _ = tell.send(progress.done);
        // No hook prints this.
        panic::resume_unwind(Box::new("a handler that panics"));
    });
    assert_eq!(call.map(0..10).unwrap().len(), 10);
    while told.recv().unwrap() < 10 {}
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reports = Arc::clone(&seen);
    let call = pool.task(square).progress(move |progress| {
        reports.lock().unwrap().push(progress.done);
        let _ = wait.lock().unwrap().recv();
    });
    for _ in 0..3 {
        assert_eq!(call.map(0..100).unwrap().len(), 100);
    }
    drop(go_on);
    pool.close();
    pool.join().unwrap();
    // A beginning and an end of each: what came in between was never told.
    assert_eq!(*seen.lock().unwrap(), [0, 100, 0, 100, 0, 100]);
}

#[test]
fn a_handler_may_use_the_pool_and_be_its_last_owner() {
    let _watchdog = watchdog();
    let pool = Arc::new(builder().processes(2).build().unwrap());
    let (tell, told) = mpsc::channel();
    let own = Arc::clone(&pool);
    let call = pool.task(square).progress(move |progress| {
        if progress.is_finished() {
            let _ = tell.send(own.map(square, 0..3));
        }
    });
    let handle = call.map_async(0..10);
    drop(call);
    drop(pool);
    assert_eq!(told.recv().unwrap().unwrap(), [0, 1, 4]);
    // The pool has ended: on its own callback thread.
    assert!(told.recv().is_err());
    assert_eq!(handle.get().unwrap().len(), 10);
}

#[pool_task]
fn die_at_three(marks: &Path, x: u64) -> u64 {
    crate::support::append(marks, x);
    if x == 3 {
        std::process::abort();
    }
    x
}

#[test]
fn an_input_that_is_run_again_is_done_once() {
    let _watchdog = watchdog();
    let directory = tempfile::tempdir().unwrap();
    let pool = checked(builder().processes(2).build());
    let call = pool
        .task(die_at_three)
        .partial((directory.path().join("marks"),));
    let (tell, told) = mpsc::channel();
    let call = call.retries(1).progress(move |progress| {
        let _ = tell.send(progress.clone());
    });
    assert!(call.map(0..8).is_err());
    check(&until_the_last(&told), 8, 1);
}
