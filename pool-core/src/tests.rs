//! Tests of everything above the seam, with a backend that has no processes and delivers the last outcome first.

use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::backend::Options;
use crate::backend::memory::Memory;
use crate::log::Logs;
use crate::pool::Engine;
use crate::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

#[pool_task]
fn picky(x: u64) -> u64 {
    assert!(x % 10 != 3, "not {x}");
    x
}

#[pool_task]
fn join(one: &str, other: Vec<u8>) -> Vec<u8> {
    [one.as_bytes(), &other].concat()
}

fn pool() -> (Pool, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    (
        Pool::over(Engine {
            workers: Arc::clone(&memory) as _,
            callbacks: Arc::default(),
            logs: Logs::new(),
            defaults: Options::default(),
            decode_stack: pool_worker::STACK_DEFAULT,
            inline: false,
        }),
        memory,
    )
}

#[test]
fn results_come_in_the_order_of_the_inputs_whatever_the_order_of_their_arrival() {
    let (pool, _) = pool();
    let squares: Vec<u64> = (0..1000).map(|x| x * x).collect();
    assert_eq!(pool.map(square, 0..1000).unwrap(), squares);
    assert_eq!(pool.map_async(square, 0..1000).get().unwrap(), squares);
    let chunked = pool.task(square).chunksize(7).map(0..1000);
    assert_eq!(chunked.unwrap(), squares);
    let yielded: Result<Vec<u64>, Error> = pool.imap(square, 0..1000).collect();
    assert_eq!(yielded.unwrap(), squares);
    let mut unordered: Vec<u64> = pool.imap_unordered(square, 0..1000).flatten().collect();
    assert_ne!(unordered, squares);
    unordered.sort_unstable();
    assert_eq!(unordered, squares);
}

#[test]
fn the_error_is_that_of_the_lowest_index_and_each_outcome_can_be_kept() {
    let (pool, _) = pool();
    let errors = [
        pool.map(picky, 0..50).unwrap_err(),
        pool.map_async(picky, 0..50).get().unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.index(), Some(3), "{error}");
    }
    let outcomes = pool.task(picky).map_results(0..50);
    assert_eq!(outcomes.len(), 50);
    for (x, outcome) in (0..).zip(outcomes) {
        assert_eq!(outcome.is_err(), x % 10 == 3);
    }
}

#[test]
fn imap_draws_a_bounded_number_ahead() {
    let (pool, memory) = pool();
    let mut results = pool.imap(square, 0..);
    assert_eq!(results.next().unwrap().unwrap(), 0);
    // processes * (chunk + 2), with the backend's hint of four.
    assert!(
        memory.accepted() <= 1 + 2 * (4 + 2),
        "{}",
        memory.accepted()
    );
    for x in 1..100 {
        assert_eq!(results.next().unwrap().unwrap(), x * x);
    }
    assert!(memory.accepted() <= 100 + 2 * (4 + 2));
}

#[test]
fn an_iterator_panics_after_the_results_before_the_panic() {
    let (pool, _) = pool();
    let inputs = (0..10).inspect(|x| assert!(*x != 7, "no seven"));
    let mut results = pool.imap(square, inputs);
    for x in 0..7 {
        assert_eq!(results.next().unwrap().unwrap(), x * x);
    }
    assert!(panic::catch_unwind(AssertUnwindSafe(|| results.next())).is_err());
    assert!(results.next().is_none());
}

#[test]
fn bytes_of_any_length_come_back() {
    let (pool, _) = pool();
    for len in [0, 1, 40_000, 1_000_000] {
        let bytes = vec![7; len];
        let joined = pool
            .apply(join, ("head".to_owned(), bytes.clone()))
            .unwrap();
        assert!(joined == [&b"head"[..], &bytes].concat(), "{len}");
    }
}

#[test]
fn a_future_and_a_callback_need_no_waiting_thread() {
    let (pool, _) = pool();
    let mut future = pin!(pool.apply_async(square, (3,)));
    let mut context = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending());
    let Poll::Ready(result) = future.as_mut().poll(&mut context) else {
        panic!("it is there");
    };
    assert_eq!(result.unwrap(), 9);

    let (sender, receiver) = mpsc::channel();
    let result = pool
        .apply_async(square, (4,))
        .callback(move |sixteen| sender.send(*sixteen).unwrap());
    assert_eq!(receiver.recv_timeout(Duration::from_secs(60)).unwrap(), 16);
    assert_eq!(result.get().unwrap(), 16);
}

#[test]
fn a_result_that_is_late_can_be_asked_for_again_or_cancelled() {
    let (pool, _) = pool();
    let result = pool.apply_async(square, (5,));
    let soon = result.get_timeout(Duration::ZERO);
    assert!(matches!(soon, Err(Error::Timeout)), "{soon:?}");
    assert_eq!(result.get().unwrap(), 25);
    let result = pool.map_async(square, 0..9);
    assert!(result.cancel());
    assert!(matches!(result.get(), Err(Error::Cancelled)));
}

#[test]
fn a_closed_backend_refuses() {
    let (pool, _) = pool();
    pool.close();
    assert!(matches!(pool.apply(square, (1,)), Err(Error::Closed)));
    assert!(matches!(pool.map(square, 0..3), Err(Error::Closed)));
    let results = pool.task(square).map_results(0..3);
    assert_eq!(results.len(), 3);
    assert!(
        results
            .iter()
            .all(|result| matches!(result, Err(Error::Closed)))
    );
}

#[test]
fn a_sender_is_refused_if_the_backend_carries_no_channels() {
    #[pool_task]
    fn send(to: crate::Sender<u8>) {
        let _ = to.send(1);
    }
    let (pool, _) = pool();
    let (sender, receiver) = crate::channel::<u8>().unwrap();
    let refused = [
        pool.apply(send, (sender.clone(),)),
        pool.map(send, [sender.clone()]).map(drop),
        pool.apply_async(send, (sender.clone(),)).get(),
        pool.task(send).partial((sender.clone(),)).apply(()),
        pool.imap(send, [sender]).next().unwrap(),
    ];
    for result in refused {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Encode(_)), "{error}");
        assert!(error.to_string().contains("does not support channels"));
    }
    assert!(matches!(receiver.recv(), Err(Error::Disconnected)));
}
