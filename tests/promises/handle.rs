//! `AsyncResult`: waiting, taking, cancelling, awaiting, callbacks.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};

use crate::leaks;
use crate::support::{
    Gate, builder, hang, own_pid, pool, square, stand, wait_at, watchdog, workers_are_elsewhere,
    works,
};

const SHORT: Duration = Duration::from_millis(20);

#[pool_task]
fn fail(why: &str) -> u64 {
    panic!("{why}")
}

// ---- waiting and taking ---------------------------------------------------------------------------

#[test]
fn a_result_on_its_way() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 7));
    let held = gate.accept();
    assert!(!result.ready());
    assert_eq!(result.successful(), None);
    assert!(!result.wait_timeout(SHORT));
    assert!(!result.wait_timeout(Duration::ZERO));
    assert!(matches!(result.get_timeout(SHORT), Err(Error::Timeout)));
    assert!(matches!(
        result.get_timeout(Duration::ZERO),
        Err(Error::Timeout)
    ));
    held.release();
    result.wait();
    result.wait();
    assert!(result.ready());
    assert!(result.wait_timeout(Duration::ZERO));
    assert_eq!(result.successful(), Some(true));
    assert_eq!(result.get_timeout(Duration::ZERO).unwrap(), 7);
}

#[test]
fn a_value_is_moved_out_once() {
    let _dog = watchdog();
    let pool = pool(1);
    let result = pool.apply_async(square, (3,));
    assert_eq!(result.get_timeout(Duration::MAX).unwrap(), 9);
    assert!(matches!(result.get_timeout(SHORT), Err(Error::Taken)));
    assert!(matches!(result.get_timeout(SHORT), Err(Error::Taken)));
    // The rest remains true.
    assert!(result.ready());
    assert_eq!(result.successful(), Some(true));
    assert!(!result.cancel());
    assert!(matches!(result.get(), Err(Error::Taken)));

    let result = pool.map_async(square, 0..5);
    assert_eq!(result.get_timeout(Duration::MAX).unwrap(), [0, 1, 4, 9, 16]);
    assert!(matches!(pollster::block_on(result), Err(Error::Taken)));
}

#[test]
fn a_failure() {
    let _dog = watchdog();
    let pool = pool(1);
    let result = pool.apply_async(fail, ("alas".to_owned(),));
    result.wait();
    assert_eq!(result.successful(), Some(false));
    assert!(matches!(
        result.get_timeout(SHORT),
        Err(Error::Panicked(panicked)) if panicked.message() == "alas"
    ));
}

#[test]
fn many_threads_wait_for_one_result() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 7));
    let takers = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| result.get_timeout(Duration::MAX)))
            .collect();
        gate.let_through(1);
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results
            .filter(|result| match result {
                Ok(value) => *value == 7,
                Err(Error::Taken) => false,
                Err(error) => panic!("{error:?}"),
            })
            .count()
    });
    assert_eq!(takers, 1);
}

#[test]
fn handles_may_be_sent_and_shared() {
    fn check<T: Send + Sync + std::fmt::Debug + Unpin>() {}
    check::<Pool>();
    check::<pool_core::AsyncResult<Vec<u64>>>();
    check::<Error>();
}

// ---- cancel ---------------------------------------------------------------------------------------

#[test]
fn cancel_of_what_has_not_begun() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let first = pool.apply_async(wait_at, (gate.path(), 1));
    let held = gate.accept();
    let pid = held.pid;
    let second = pool.apply_async(wait_at, (gate.path(), 2));
    let third = pool.apply_async(square, (3,));
    assert!(second.cancel());
    assert!(second.ready());
    assert_eq!(second.successful(), Some(false));
    assert!(!second.cancel(), "it is over");
    assert!(matches!(second.get(), Err(Error::Cancelled)));
    held.release();
    assert_eq!(first.get().unwrap(), 1);
    assert_eq!(third.get().unwrap(), 9);
    if !workers_are_elsewhere() {
        assert_eq!(pool.worker_pids(), [pid], "nobody had to die for it");
    }
    pool.close();
    pool.join().unwrap();
    assert!(gate.poll().is_none(), "it was run");
}

#[test]
fn cancel_of_what_runs() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 1));
    let held = gate.accept();
    let behind = pool.apply_async(own_pid, ());
    assert!(result.cancel());
    assert!(matches!(result.get(), Err(Error::Cancelled)));
    let other = behind.get().unwrap();
    assert_ne!(other, held.pid);
    assert!(!leaks::is_alive(held.pid));
    if !workers_are_elsewhere() {
        assert_eq!(pool.worker_pids(), [other]);
    }
    works(&pool);
}

#[test]
fn cancel_of_what_is_done() {
    let _dog = watchdog();
    let pool = pool(1);
    let result = pool.apply_async(square, (3,));
    result.wait();
    assert!(!result.cancel());
    assert_eq!(result.get().unwrap(), 9);

    let failed = pool.apply_async(fail, ("alas".to_owned(),));
    failed.wait();
    assert!(!failed.cancel());
    assert!(matches!(failed.get(), Err(Error::Panicked(_))));
    works(&pool);
}

#[test]
fn cancel_of_a_map() {
    let _dog = watchdog();
    for size in [None, Some(1), Some(3), Some(100)] {
        let pool = pool(2);
        let gate = Gate::new();
        let mut call = pool.task(wait_at);
        if let Some(size) = size {
            call = call.chunksize(size);
        }
        let result = call.starmap_async((0..20).map(|id| (gate.path(), id)));
        let others = pool.map_async(square, 0..10);
        let first = gate.accept();
        assert!(result.cancel());
        assert!(result.ready());
        assert!(matches!(result.get(), Err(Error::Cancelled)));
        assert_eq!(others.get().unwrap().len(), 10);
        drop(first);
        pool.close();
        pool.join().unwrap();
        // Only inputs that were already on the way to the gate when they were cancelled still arrive.
        let late = gate.count_callers();
        assert!(late <= 1, "{late} were run");
    }
}

#[test]
fn cancel_of_a_map_keeps_what_was_done() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let result = pool
        .task(wait_at)
        .chunksize(1)
        .starmap_async((0..3).map(|id| (gate.path(), id)));
    gate.let_through(1);
    let _second = gate.accept();
    assert!(result.cancel());
    // A map reports the error of the lowest index: here 1.
    assert!(matches!(result.get(), Err(Error::Cancelled)));
    works(&pool);
}

#[test]
fn cancel_of_one_spares_the_chunks_of_others() {
    let _dog = watchdog();
    let pool = pool(2);
    for _ in 0..20 {
        let hanging = pool.apply_async(hang, ());
        let others = pool.map_async(square, 0..500);
        assert!(hanging.cancel());
        assert_eq!(others.get().unwrap().len(), 500);
    }
}

#[test]
fn cancel_races_with_completion() {
    let _dog = watchdog();
    let pool = pool(2);
    for x in 0..300 {
        let result = pool.apply_async(square, (x,));
        let cancelled = result.cancel();
        match result.get() {
            Ok(value) => assert_eq!((value, cancelled), (x * x, false)),
            Err(Error::Cancelled) => assert!(cancelled),
            Err(error) => panic!("{error:?}"),
        }
    }
    works(&pool);
}

#[test]
fn cancel_from_another_thread_wakes_who_waits() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 1));
    let _held = gate.accept();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| result.get_timeout(Duration::MAX));
        assert!(result.cancel());
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
}

// ---- futures --------------------------------------------------------------------------------------

/// Counts how often it is woken, and reports each time.
struct Alarm {
    rings: AtomicUsize,
    told: Mutex<Sender<()>>,
}

impl Alarm {
    fn new() -> (Arc<Alarm>, Receiver<()>) {
        let (told, rung) = mpsc::channel();
        let alarm = Alarm {
            rings: AtomicUsize::new(0),
            told: Mutex::new(told),
        };
        (Arc::new(alarm), rung)
    }

    fn rings(&self) -> usize {
        self.rings.load(Ordering::SeqCst)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        let _ = self.told.lock().unwrap().send(());
    }
}

#[test]
fn a_future_is_woken_once() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let mut result = pool.apply_async(wait_at, (gate.path(), 7));
    let held = gate.accept();
    let (first, _) = Alarm::new();
    let (second, rung) = Alarm::new();
    let mut poll = |alarm: &Arc<Alarm>| {
        let waker = Waker::from(Arc::clone(alarm));
        Pin::new(&mut result).poll(&mut Context::from_waker(&waker))
    };
    assert!(poll(&first).is_pending());
    // It moves to another task, and is polled in vain now and then.
    assert!(poll(&second).is_pending());
    assert!(poll(&second).is_pending());
    held.release();
    rung.recv().unwrap();
    assert!(matches!(poll(&second), Poll::Ready(Ok(7))));
    assert!(matches!(poll(&second), Poll::Ready(Err(Error::Taken))));
    works(&pool);
    assert_eq!((first.rings(), second.rings()), (0, 1));
}

#[test]
fn a_future_that_is_ready_is_not_woken() {
    let _dog = watchdog();
    let pool = pool(1);
    let mut result = pin!(pool.map_async(square, 0..3));
    result.wait();
    let (alarm, _) = Alarm::new();
    let waker = Waker::from(Arc::clone(&alarm));
    let polled = result.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(matches!(polled, Poll::Ready(Ok(squares)) if squares == [0, 1, 4]));
    assert_eq!(alarm.rings(), 0);
}

#[test]
fn a_future_of_a_terminated_pool_is_woken() {
    let _dog = watchdog();
    let pool = pool(1);
    let result = pool.apply_async(hang, ());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pollster::block_on(result));
        pool.terminate();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Terminated)));
    });
    let refused = pool.apply_async(square, (1,));
    assert!(matches!(pollster::block_on(refused), Err(Error::Closed)));
}

#[test]
fn under_pollster() {
    let _dog = watchdog();
    let pool = pool(2);
    let sum = pollster::block_on(async {
        let nine = pool.apply_async(square, (3,)).await?;
        let many = pool.map_async(square, 0..5).await?;
        Ok::<u64, Error>(nine + many.into_iter().sum::<u64>())
    });
    assert_eq!(sum.unwrap(), 39);
}

#[test]
fn under_tokio() {
    let _dog = watchdog();
    let pool = Arc::new(builder().processes(2).build().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let inner = Arc::clone(&pool);
    let squares = runtime.block_on(async move {
        let spawned: Vec<_> = (0..20)
            .map(|x| tokio::spawn(inner.apply_async(square, (x,))))
            .collect();
        let mut squares = Vec::new();
        for handle in spawned {
            squares.push(handle.await.unwrap().unwrap());
        }
        squares
    });
    assert_eq!(squares, (0..20).map(|x| x * x).collect::<Vec<_>>());
    works(&pool);
}

#[test]
fn a_future_that_loses_a_race_may_be_dropped_or_asked_again() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let slow = pool.apply_async(wait_at, (gate.path(), 7));
        let quick = pool.apply_async(square, (3,));
        let slow = match futures::future::select(slow, quick).await {
            futures::future::Either::Right((nine, slow)) => {
                assert_eq!(nine.unwrap(), 9);
                slow
            }
            futures::future::Either::Left(_) => panic!("nobody opened the gate"),
        };
        let quick = pool.apply_async(square, (4,));
        drop(futures::future::select(slow, quick).await);
    });
    // What was dropped keeps running.
    gate.let_through(1);
    works(&pool);
    pool.close();
    pool.join().unwrap();
}

#[test]
fn join_all() {
    let _dog = watchdog();
    let pool = pool(2);
    let results = (0..200).map(|x| pool.apply_async(square, (x,)));
    let squares = futures::executor::block_on(futures::future::join_all(results));
    for (x, result) in (0..).zip(squares) {
        assert_eq!(result.unwrap(), x * x);
    }
}

// ---- callbacks ------------------------------------------------------------------------------------

#[test]
fn callbacks_are_called_once_with_the_value() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let (sender, calls) = mpsc::channel();
    let say = |what: &'static str| {
        let sender = sender.clone();
        move |value: &u64| sender.send((what, *value)).unwrap()
    };
    let result = pool
        .apply_async(wait_at, (gate.path(), 7))
        .callback(say("first"))
        .callback(say("second"))
        .error_callback(|error| panic!("{error:?}"));
    gate.let_through(1);
    result.wait();
    // Also when the result is already there, and has been taken.
    let result = result.callback(say("late"));
    assert_eq!(result.get_timeout(Duration::MAX).unwrap(), 7);
    let result = result.callback(say("too late"));
    drop(result);
    drop(sender);
    let all: Vec<_> = calls.iter().collect();
    assert_eq!(
        all,
        [("first", 7), ("second", 7), ("late", 7), ("too late", 7)]
    );
}

#[test]
fn callbacks_run_though_nobody_keeps_the_handle() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, calls) = mpsc::channel();
    for x in 0..20 {
        let sender = sender.clone();
        drop(
            pool.apply_async(square, (x,))
                .callback(move |value| sender.send(*value).unwrap()),
        );
    }
    drop(sender);
    let mut all: Vec<u64> = calls.iter().collect();
    all.sort_unstable();
    assert_eq!(all, (0..20).map(|x| x * x).collect::<Vec<_>>());
}

#[test]
fn error_callbacks_hear_of_every_kind_of_failure() {
    let _dog = watchdog();
    let pool = pool(1);
    let heard = |result: pool_core::AsyncResult<u64>| {
        let (sender, calls) = mpsc::channel();
        let result = result
            .callback(|value| panic!("{value}"))
            .error_callback(move |error| sender.send(error.clone()).unwrap());
        let call = calls.recv().unwrap();
        assert!(calls.recv().is_err(), "called twice");
        let error = result.get().unwrap_err();
        assert_eq!(error.to_string(), call.to_string());
        call
    };
    let panicked = heard(pool.apply_async(fail, ("alas".to_owned(),)));
    assert!(matches!(panicked, Error::Panicked(_)));

    let gate = Gate::new();
    let cancelled = pool.apply_async(wait_at, (gate.path(), 1));
    let _held = gate.accept();
    assert!(cancelled.cancel());
    assert!(matches!(heard(cancelled), Error::Cancelled));

    let refused = pool.task(square).chunksize(0).apply_async((1,));
    assert!(matches!(heard(refused), Error::InvalidSetting(_)));

    let running = pool.apply_async(wait_at, (gate.path(), 2));
    pool.terminate();
    assert!(matches!(heard(running), Error::Terminated));
    let refused = pool.apply_async(square, (1,));
    assert!(refused.ready());
    assert!(matches!(heard(refused), Error::Closed));
}

#[test]
fn callbacks_come_in_the_order_of_the_results() {
    let _dog = watchdog();
    let pool = pool(2);
    let gate = Gate::new();
    let (sender, calls) = mpsc::channel();
    let results: Vec<_> = (0..2)
        .map(|id| {
            let sender = sender.clone();
            pool.apply_async(wait_at, (gate.path(), id))
                .callback(move |value| sender.send(*value).unwrap())
        })
        .collect();
    let mut both = [gate.accept(), gate.accept()];
    both.sort_by_key(|held| held.id);
    let [first, second] = both;
    second.release();
    results[1].wait();
    first.release();
    results[0].wait();
    drop(sender);
    assert_eq!(calls.recv().unwrap(), 1);
    assert_eq!(calls.recv().unwrap(), 0);
}

#[test]
fn a_callback_that_panics_harms_nothing() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, calls) = mpsc::channel();
    for x in 0..10 {
        let sender = sender.clone();
        let result = pool
            .apply_async(square, (x,))
            .callback(|_| panic!("in a callback"))
            .callback(|_| std::panic::panic_any(Explosive))
            .callback(move |value| sender.send(*value).unwrap());
        assert_eq!(result.get().unwrap(), x * x);
    }
    drop(sender);
    assert_eq!(calls.iter().count(), 10);
    works(&pool);
    pool.close();
    pool.join().unwrap();
}

struct Explosive;

impl Drop for Explosive {
    fn drop(&mut self) {
        panic!("again");
    }
}

#[test]
fn a_callback_that_blocks_harms_nothing() {
    let _dog = watchdog();
    let pool = pool(2);
    let (go, wait) = mpsc::channel::<()>();
    let (sender, calls) = mpsc::channel();
    let blocked = pool.apply_async(square, (3,)).callback(move |_| {
        // Ends when `go` is dropped.
        let _ = wait.recv();
        sender.send(()).unwrap();
    });
    assert_eq!(blocked.get().unwrap(), 9);
    works(&pool);
    assert_eq!(pool.imap(square, 0..100).count(), 100);
    assert!(calls.try_recv().is_err());
    // Dropping the pool does not wait for it forever either.
    drop(pool);
    drop(go);
    calls.recv().unwrap();
}

#[test]
fn a_callback_may_submit_work_and_wait_for_it() {
    let _dog = watchdog();
    let pool = Arc::new(builder().processes(1).build().unwrap());
    let (sender, calls) = mpsc::channel();
    let inner = Arc::clone(&pool);
    let result = pool.apply_async(square, (3,)).callback(move |value| {
        let chained = inner.apply(square, (*value,));
        let more = inner.map(square, 0..*value);
        sender
            .send((chained.unwrap(), more.unwrap().len()))
            .unwrap();
    });
    assert_eq!(calls.recv().unwrap(), (81, 9));
    assert_eq!(result.get().unwrap(), 9);
}

#[test]
fn a_callback_may_terminate_the_pool() {
    let _dog = watchdog();
    let pool = Arc::new(builder().processes(2).build().unwrap());
    let pids = pool.worker_pids();
    let inner = Arc::clone(&pool);
    let hanging = pool.apply_async(hang, ());
    let _ = pool
        .apply_async(square, (3,))
        .callback(move |_| inner.terminate())
        .get();
    assert!(matches!(hanging.get(), Err(Error::Terminated)));
    pool.join().unwrap();
    leaks::none_left(&pids);
}

#[test]
fn a_callback_may_drop_the_last_pool() {
    let _dog = watchdog();
    let pool = Arc::new(builder().processes(2).build().unwrap());
    let pids = pool.worker_pids();
    let gate = Gate::new();
    let (sender, dropped) = mpsc::channel();
    let inner = Arc::clone(&pool);
    let result = pool
        .apply_async(wait_at, (gate.path(), 7))
        .callback(move |_| {
            drop(inner);
            sender.send(()).unwrap();
        });
    drop(pool);
    gate.let_through(1);
    dropped.recv().unwrap();
    leaks::none_left(&pids);
    assert_eq!(result.get().unwrap(), 7);
}

#[test]
fn a_callback_after_the_pool_is_gone() {
    let _dog = watchdog();
    let (done, lost) = {
        let pool = pool(1);
        let done = pool.apply_async(square, (3,));
        done.wait();
        (done, pool.apply_async(hang, ()))
    };
    let (sender, calls) = mpsc::channel();
    let errors = sender.clone();
    let done = done.callback(move |value| sender.send(*value).unwrap());
    assert_eq!(calls.recv().unwrap(), 9);
    let lost = lost.error_callback(move |error| {
        assert!(matches!(error, Error::Terminated));
        errors.send(0).unwrap();
    });
    assert_eq!(calls.recv().unwrap(), 0);
    assert_eq!(done.get().unwrap(), 9);
    assert!(lost.get().is_err());
}

#[test]
fn handles_outlive_their_pool() {
    let _dog = watchdog();
    let gate = Gate::new();
    let (done, open, queued, _held) = {
        let pool = pool(1);
        let done = pool.map_async(square, 0..5);
        done.wait();
        let open = pool.apply_async(wait_at, (gate.path(), 1));
        let held = gate.accept();
        (done, open, pool.map_async(square, 0..5), held)
    };
    assert_eq!(done.get().unwrap(), [0, 1, 4, 9, 16]);
    assert!(!open.cancel(), "it is over");
    assert!(matches!(open.get(), Err(Error::Terminated)));
    assert!(matches!(queued.get(), Err(Error::Terminated)));
}

/// Dies at the gate, with its worker, if the pool is dropped.
#[pool_task]
fn at_the_gate(gate: &std::path::Path) {
    stand(gate, 0);
}

#[test]
fn a_pool_may_be_dropped_while_others_wait() {
    let _dog = watchdog();
    let pool = builder().processes(1).build().unwrap();
    let gate = Gate::new();
    let result = pool.apply_async(at_the_gate, (gate.path(),));
    let _held = gate.accept();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| result.get());
        let awaiting = pool.apply_async(square, (1,));
        let awaiting = scope.spawn(|| pollster::block_on(awaiting));
        drop(pool);
        assert!(matches!(waiting.join().unwrap(), Err(Error::Terminated)));
        assert!(matches!(awaiting.join().unwrap(), Err(Error::Terminated)));
    });
}

struct Panics;

impl std::task::Wake for Panics {
    fn wake(self: std::sync::Arc<Self>) {
        panic!("a waker that panics");
    }
}

#[test]
fn a_waker_that_panics_harms_nothing_else() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let mut result = pool.apply_async(wait_at, (gate.path(), 7));
    let waker = std::task::Waker::from(std::sync::Arc::new(Panics));
    let mut context = std::task::Context::from_waker(&waker);
    assert!(
        std::pin::Pin::new(&mut result)
            .poll(&mut context)
            .is_pending()
    );
    gate.accept().release();
    result.wait();
    assert_eq!(result.get().unwrap(), 7);
    works(&pool);
}

// ---- at home in async programs ---------------------------------------------------------------------

#[test]
fn a_handle_that_is_dropped_stops_its_work_if_it_was_told_to() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let running = pool.apply_async(wait_at, (gate.path(), 0)).cancel_on_drop();
    let waiting = pool.apply_async(wait_at, (gate.path(), 1)).cancel_on_drop();
    let held = gate.accept();
    drop(waiting);
    drop(running);
    held.wait_until_gone();
    works(&pool);
    // Neither is running any more, nor ever will.
    assert_eq!(gate.count_callers(), 0);
    // A call whose result is there is not affected.
    let done = pool.apply_async(square, (3,)).cancel_on_drop();
    done.wait();
    assert_eq!(done.get().unwrap(), 9);
    let done = pool.apply_async(square, (4,)).cancel_on_drop();
    assert_eq!(pollster::block_on(done).unwrap(), 16);
    let twice = pool
        .apply_async(square, (5,))
        .cancel_on_drop()
        .cancel_on_drop();
    assert_eq!(twice.get().unwrap(), 25);
    drop(pool.map_async(square, 0..100).cancel_on_drop());
    drop(pool.map_async(square, Vec::<u64>::new()).cancel_on_drop());
    works(&pool);
}

#[test]
fn results_as_they_are_completed() {
    let _dog = watchdog();
    let (one, other) = (pool(2), pool(1));
    let gate = Gate::new();
    let mut calls = vec![one.apply_async(wait_at, (gate.path(), 100))];
    let held = gate.accept();
    calls.extend((0..50).map(|x| one.apply_async(square, (x,))));
    calls.extend((0..50).map(|x| other.apply_async(square, (x,))));
    calls.push(other.apply_async(fail, ("on purpose".to_owned(),)));
    other.close();
    calls.push(other.apply_async(square, (1,)));
    let mut seen = vec![0; calls.len()];
    let mut completed = pool_core::as_completed(calls);
    for left in (1..103).rev() {
        let (index, result) = completed.next().unwrap();
        assert_eq!(completed.len(), left);
        seen[index] += 1;
        match index {
            1..=100 => assert_eq!(result.unwrap(), ((index - 1) % 50).pow(2) as u64),
            101 => assert!(matches!(result, Err(Error::Panicked(_)))),
            102 => assert!(matches!(result, Err(Error::Closed))),
            _ => panic!("{index} is held"),
        }
    }
    let late = completed.next_timeout(SHORT).unwrap();
    assert!(matches!(late, Err(Error::Timeout)));
    held.release();
    let (index, result) = completed.next_timeout(Duration::MAX).unwrap().unwrap();
    assert_eq!((index, result.unwrap()), (0, 100));
    assert!(completed.next().is_none());
    assert!(completed.next_timeout(SHORT).is_none());
    seen[index] += 1;
    assert!(seen.into_iter().all(|times| times == 1));
    assert!(
        pool_core::as_completed(Vec::<pool_core::AsyncResult<u64>>::new())
            .next()
            .is_none()
    );
}

#[test]
fn every_outcome_later() {
    let _dog = watchdog();
    let pool = pool(2);
    let results = pool.task(odd_only).map_results_async(0..100).get().unwrap();
    assert_eq!(results.len(), 100);
    for (index, result) in results.iter().enumerate() {
        match result {
            Ok(value) => assert_eq!((*value, index % 2), (index as u64, 1)),
            Err(error) => assert_eq!((error.index(), index % 2), (Some(index), 0)),
        }
    }
    let inputs = [(1_u64,), (2,)];
    let results = pool
        .task(odd_only)
        .starmap_results_async(inputs)
        .get()
        .unwrap();
    assert!(results[0].is_ok() && results[1].is_err());
    let results = pool.task(odd_only).by_ref().map_results_async(&[3, 4]);
    assert_eq!(
        results
            .get()
            .unwrap()
            .iter()
            .filter(|result| result.is_ok())
            .count(),
        1
    );
    let empty = pool.task(odd_only).map_results_async(0..0);
    assert!(empty.get().unwrap().is_empty());
    pool.close();
    let refused = pool.task(odd_only).map_results_async(0..3);
    assert!(matches!(refused.get(), Err(Error::Closed)));
}

#[pool_task]
fn odd_only(x: u64) -> u64 {
    assert!(x % 2 == 1, "{x} is even");
    x
}

#[test]
fn a_pool_is_joined_by_a_future() {
    let _dog = watchdog();
    let pool = pool(2);
    assert!(matches!(
        pollster::block_on(pool.join_async()),
        Err(Error::StillOpen)
    ));
    let gate = Gate::new();
    let result = pool.apply_async(wait_at, (gate.path(), 5));
    let held = gate.accept();
    pool.close();
    let mut joined = pin!(pool.join_async());
    let mut context = Context::from_waker(Waker::noop());
    assert!(joined.as_mut().poll(&mut context).is_pending());
    assert!(joined.as_mut().poll(&mut context).is_pending());
    held.release();
    pollster::block_on(joined).unwrap();
    assert_eq!(result.get().unwrap(), 5);
    assert!(pool.worker_pids().is_empty());
    // It does not need the pool.
    pollster::block_on(pool.join_async()).unwrap();
    let later = pool.join_async();
    drop(pool);
    pollster::block_on(later).unwrap();
}

#[test]
fn results_as_a_stream() {
    use futures::{Stream, StreamExt};
    let _dog = watchdog();
    let pool = pool(2);
    for chunk in [1, 7] {
        let stream = pool.task(square).chunksize(chunk).imap(0..500).stream();
        let all: Vec<u64> = pollster::block_on(stream.map(Result::unwrap).collect());
        assert!(all.into_iter().eq((0..500).map(|x| x * x)));
        let call = pool.task(square).chunksize(chunk);
        let stream = call.imap_unordered(0..500).stream();
        assert_eq!(stream.size_hint(), (500, Some(500)));
        let mut all: Vec<u64> = pollster::block_on(stream.map(Result::unwrap).collect());
        all.sort_unstable();
        assert!(all.into_iter().eq((0..500).map(|x| x * x)));
    }
    // Endless inputs are drawn as they are needed; the rest are taken back.
    let stream = pool.imap(square, 0..).stream();
    let some: Vec<u64> = pollster::block_on(stream.take(10).map(Result::unwrap).collect());
    assert!(some.into_iter().eq((0..10).map(|x| x * x)));
    // It waits without a thread.
    let gate = Gate::new();
    let mut stream = pool
        .istarmap(wait_at, [(gate.path(), 1), (gate.path(), 2)])
        .stream();
    let mut context = Context::from_waker(Waker::noop());
    assert!(stream.poll_next_unpin(&mut context).is_pending());
    let (first, second) = (gate.accept(), gate.accept());
    let (first, second) = if first.id == 1 {
        (first, second)
    } else {
        (second, first)
    };
    second.release();
    assert!(stream.poll_next_unpin(&mut context).is_pending());
    first.release();
    let both: Vec<u64> = pollster::block_on(stream.map(Result::unwrap).collect());
    assert_eq!(both, [1, 2]);
    works(&pool);
}
