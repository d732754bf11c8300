//! What `on_event` tells.

use std::collections::HashMap;
use std::process;
use std::time::Duration;

use pool_core::backend::Inline;
use pool_core::{Ended, Error, Event, Pool, PoolBuilder, Recycled, Retries, pool_task};
use tests::Told;

use crate::support::{Checked, Gate, builder, checked, host, square, wait_at, watchdog};

fn count(told: &Told, is_it: impl Fn(&Event) -> bool) -> usize {
    told.all().iter().filter(|event| is_it(event)).count()
}

fn ended(told: &Told, how: Ended) -> usize {
    count(
        told,
        |event| matches!(event, Event::InputEnded { outcome, .. } if *outcome == how),
    )
}

/// A pool whose events are kept.
fn watched(builder: PoolBuilder) -> (Checked, Told) {
    let told = Told::default();
    let tells = told.clone();
    let pool = checked(builder.on_event(move |event| tells.tell(event)).build());
    (pool, told)
}

/// Each input that begins ends, in the same worker, and before the next begins there; and each worker is started, then ready, then gone.
#[track_caller]
fn is_in_order(events: &[Event]) {
    let mut workers: HashMap<u32, (bool, Option<Option<usize>>)> = HashMap::new();
    for event in events {
        match event {
            Event::WorkerStarted { pid, .. } => {
                assert!(workers.insert(*pid, (false, None)).is_none());
            }
            Event::WorkerReady { pid, .. } => {
                let worker = workers.get_mut(pid).expect("it was started");
                assert!(!worker.0, "ready twice");
                worker.0 = true;
            }
            Event::InputBegan { pid, index, .. } => {
                let worker = workers.get_mut(pid).expect("it was started");
                assert!(worker.0, "not ready");
                assert!(worker.1.replace(*index).is_none(), "two at once");
            }
            Event::InputEnded { pid, index, .. } => {
                let worker = workers.get_mut(pid).expect("it was started");
                assert_eq!(worker.1.take(), Some(*index), "ended, not begun");
            }
            Event::WorkerDied { pid, .. } => {
                let worker = workers.remove(pid).expect("it was started");
                assert_eq!(worker.1, None, "died in what has not ended");
            }
            Event::WorkerRecycled { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(
        workers.values().all(|worker| worker.1.is_none()),
        "not ended"
    );
}

#[pool_task]
fn mixed(x: u64) -> u64 {
    match x % 50 {
        7 => panic!("seven"),
        13 => process::abort(),
        _ => x,
    }
}

#[test]
fn each_input_begins_and_ends_once() {
    let _watchdog = watchdog();
    let (pool, told) = watched(builder().processes(2));
    let results = pool.task(mixed).map_results(0..200);
    assert_eq!(results.iter().filter(|one| one.is_err()).count(), 8);
    pool.close();
    pool.join().expect("it ends");
    let events = told.all();
    is_in_order(&events);
    let mut ended: Vec<(usize, Ended)> = events
        .iter()
        .filter_map(|event| match event {
            Event::InputEnded {
                index,
                outcome,
                task,
                host: there,
                ..
            } => {
                assert!(task.ends_with("::mixed"));
                assert_eq!(*there, host());
                Some((index.expect("it is one of many"), *outcome))
            }
            _ => None,
        })
        .collect();
    ended.sort_by_key(|(index, _)| *index);
    let expected: Vec<(usize, Ended)> = (0..200)
        .map(|index| match index % 50 {
            7 => (index, Ended::Panicked),
            13 => (index, Ended::WorkerLost),
            _ => (index, Ended::Done),
        })
        .collect();
    assert_eq!(ended, expected);
    let died = |event: &Event| matches!(event, Event::WorkerDied { how, .. } if how.signal_name() == Some("SIGABRT"));
    assert_eq!(count(&told, died), 4);
    let ready = count(&told, |event| matches!(event, Event::WorkerReady { .. }));
    assert!((2..=6).contains(&ready));
    assert_eq!(
        count(&told, |event| matches!(event, Event::InputBegan { .. })),
        200
    );
}

#[test]
fn what_hangs_is_told_while_it_hangs_and_every_end_has_its_reason() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let (pool, told) = watched(builder().processes(1).grace(Duration::ZERO));
    let hangs = pool.apply_async(wait_at, (gate.path(), 1));
    told.wait_for(0, |event| {
        matches!(event, Event::InputBegan { index: None, .. }).then_some(())
    });
    let held = gate.accept();
    assert!(hangs.cancel());
    told.wait_for(0, |event| {
        let Event::InputEnded { outcome, .. } = event else {
            return None;
        };
        (*outcome == Ended::Stopped).then_some(())
    });
    held.wait_until_gone();
    let other = Gate::new();
    let limited = pool.task(wait_at).time_limit(Duration::from_millis(30));
    assert!(matches!(
        limited.apply((other.path(), 1)),
        Err(Error::TimeLimit(_))
    ));
    let open = pool.task(wait_at).partial((gate.path(),)).map_async(0..3);
    let _held = gate.accept();
    pool.terminate();
    assert!(matches!(open.get(), Err(Error::Terminated)));
    pool.join().expect("it ends");
    is_in_order(&told.all());
    assert_eq!(ended(&told, Ended::Stopped), 2);
    assert_eq!(ended(&told, Ended::TimeLimit), 1);
    let died = count(&told, |event| {
        matches!(event, Event::WorkerDied { why: Some(_), .. })
    });
    assert_eq!(died, 2, "that all ends is no death");
}

#[pool_task]
fn panics() {
    panic!("always");
}

#[test]
fn what_runs_again_begins_again_and_fresh_workers_are_told() {
    let _watchdog = watchdog();
    let (pool, told) = watched(builder().processes(1).max_tasks_per_child(4));
    let again = pool.task(panics).retries(Retries::new(2).on_panic());
    assert!(matches!(again.apply(()), Err(Error::Panicked(_))));
    assert_eq!(pool.map(square, 0..20).expect("it is well").len(), 20);
    pool.close();
    pool.join().expect("it ends");
    is_in_order(&told.all());
    assert_eq!(ended(&told, Ended::Panicked), 3);
    assert_eq!(ended(&told, Ended::Done), 20);
    let recycled = |event: &Event| matches!(event, Event::WorkerRecycled { why: Recycled::MaxTasks, pid, .. } if *pid > 0);
    assert!(count(&told, recycled) >= 4);
    assert_eq!(
        count(&told, |event| matches!(event, Event::WorkerDied { .. })),
        0
    );
}

#[test]
fn a_handler_that_panics_or_asks_harms_nobody() {
    let _watchdog = watchdog();
    let pool = checked(
        builder()
            .processes(1)
            .on_event(|_| panic!("it is no good"))
            .build(),
    );
    assert_eq!(
        pool.map(square, 0..5).expect("it is well"),
        [0, 1, 4, 9, 16]
    );
    pool.close();
    pool.join().expect("it ends");
}

#[test]
fn without_workers_inputs_are_told() {
    let told = Told::default();
    let tells = told.clone();
    let builder = Pool::builder().backend(Inline);
    let pool = builder
        .on_event(move |event| tells.tell(event))
        .build()
        .expect("it starts");
    pool.map(square, 0..5).expect("it is well");
    assert!(pool.apply(panics, ()).is_err());
    pool.close();
    pool.join().expect("it ends");
    assert_eq!(
        (ended(&told, Ended::Done), ended(&told, Ended::Panicked)),
        (5, 1)
    );
    assert_eq!(
        count(&told, |event| matches!(event, Event::InputBegan { .. })),
        6
    );
}
