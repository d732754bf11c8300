//! Messages that tasks send while they run arrive in order, before the outcome, and once, whatever happens to the
//! worker.

use std::collections::BTreeMap;
use std::path::Path;
use std::process;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Sandbox, Sender, channel, pool_task};
use serde::{Deserialize, Serialize};

use crate::support::{
    Gate, builder, builder_with, checked, is_sandboxed, pool, pool_with, signal, square, stand,
    watchdog, workers_are_elsewhere, works,
};

/// More messages than a worker may have unread.
const TOO_MANY: u64 = 200_000;

#[pool_task]
fn count_to(last: u64, progress: Sender<u64>) -> u64 {
    (1..=last).for_each(|number| progress.send(number).expect("somebody listens"));
    last
}

#[test]
fn messages_come_in_order_and_then_no_more() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(count_to, (1000, sender));
    assert!(receiver.eq(1..=1000));
    assert_eq!(result.get().unwrap(), 1000);
}

#[pool_task]
fn say_who(id: u64, count: u64, to: Sender<(u64, u64)>) {
    (0..count).for_each(|number| to.send((id, number)).expect("somebody listens"));
}

#[test]
fn messages_are_there_before_the_outcome() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let inputs = (0..500).map(|id| (id, id % 7, sender.clone()));
    pool.starmap(say_who, inputs).unwrap();
    let mut next = BTreeMap::new();
    while let Ok((id, number)) = receiver.try_recv() {
        let expected: &mut u64 = next.entry(id).or_default();
        assert_eq!(number, *expected);
        *expected += 1;
    }
    for id in 0..500 {
        assert_eq!(next.get(&id).copied().unwrap_or(0), id % 7);
    }
    // There is still a sender: this one.
    assert!(matches!(receiver.try_recv(), Err(Error::Timeout)));
    let late = receiver.recv_timeout(Duration::from_millis(5));
    assert!(matches!(late, Err(Error::Timeout)));
    drop(sender);
    assert!(matches!(receiver.recv(), Err(Error::Disconnected)));
    assert!(matches!(receiver.try_recv(), Err(Error::Disconnected)));
}

#[test]
fn a_slow_reader_slows_down_the_sender_and_nobody_else() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(count_to, (TOO_MANY, sender));
    // The other worker runs all of these, and what it sends is read.
    for _ in 0..10 {
        works(&pool);
        let (sender, receiver) = channel().unwrap();
        pool.apply(count_to, (3, sender)).unwrap();
        assert!(receiver.eq(1..=3));
    }
    assert!(!result.ready());
    assert!(receiver.eq(1..=TOO_MANY));
    assert_eq!(result.get().unwrap(), TOO_MANY);
}

#[test]
fn one_that_waits_for_its_reader_can_be_stopped() {
    let _dog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(count_to, (TOO_MANY, sender));
    assert_eq!(receiver.recv().unwrap(), 1);
    assert!(result.cancel());
    let limit = Duration::from_millis(300);
    let (sender, second) = channel().unwrap();
    let limited = pool
        .task(count_to)
        .time_limit(limit)
        .apply((TOO_MANY, sender));
    assert!(matches!(limited, Err(Error::TimeLimit(_))));
    works(&pool);
    // Everything that was sent has arrived, and the channels have ended.
    for receiver in [receiver, second] {
        let numbers: Vec<u64> = receiver.collect();
        assert!(numbers.len() < TOO_MANY as usize);
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }
}

#[pool_task]
fn send_long(lens: Vec<usize>, to: Sender<Vec<u8>>) -> usize {
    for (number, len) in lens.iter().enumerate() {
        to.send(vec![number as u8; *len]).expect("somebody listens");
    }
    lens.len()
}

#[test]
fn messages_may_be_long() {
    let _dog = watchdog();
    let pool = pool(2);
    let lens = vec![
        0,
        40_000,
        1,
        3 << 20,
        100,
        1 << 20,
        32 << 20,
        7,
        32 * 1024,
        32 * 1024 - 8,
    ];
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(send_long, (lens.clone(), sender));
    for (number, (message, len)) in receiver.zip(&lens).enumerate() {
        assert_eq!(message.len(), *len);
        assert!(message.iter().all(|byte| *byte == number as u8));
    }
    assert_eq!(result.get().unwrap(), lens.len());
}

#[pool_task]
fn send_until_gone(to: Sender<u64>) -> u64 {
    for number in 0.. {
        match to.send(number) {
            Ok(()) => {}
            Err(Error::Disconnected) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    0
}

#[test]
fn a_receiver_that_is_gone_is_told_to_senders() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let here = sender.clone();
    let result = pool.apply_async(send_until_gone, (sender,));
    assert_eq!(receiver.recv().unwrap(), 0);
    drop(receiver);
    assert!(result.get().unwrap() > 0);
    assert!(matches!(here.send(1), Err(Error::Disconnected)));
    // The same, while the task waits for the reader.
    let (sender, receiver) = channel::<u64>().unwrap();
    let result = pool.apply_async(count_then_die_slowly, (sender,));
    assert!(!result.wait_timeout(Duration::from_millis(200)));
    drop(receiver);
    assert!(result.get().unwrap());
    works(&pool);
}

/// Returns whether it was told that nobody reads.
#[pool_task]
fn count_then_die_slowly(to: Sender<u64>) -> bool {
    (0..TOO_MANY).any(|number| matches!(to.send(number), Err(Error::Disconnected)))
}

#[pool_task]
fn send_and_die(last: u64, to: Sender<u64>) {
    (1..=last).for_each(|number| to.send(number).expect("somebody listens"));
    process::abort();
}

#[test]
fn what_was_sent_before_a_death_arrives_and_the_channel_ends() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(send_and_die, (3000, sender));
    assert!(receiver.eq(1..=3000));
    assert!(matches!(result.get(), Err(Error::WorkerLost(_))));
    // Runs again, and sends again.
    let (sender, receiver) = channel().unwrap();
    let again = pool.task(send_and_die).retries(2);
    let result = again.apply_async((2, sender));
    assert!(receiver.eq([1, 2, 1, 2, 1, 2]));
    assert!(matches!(result.get(), Err(Error::WorkerLost(lost)) if lost.attempts() == 3));
}

#[pool_task]
fn send_from_threads(threads: u64, each: u64, to: Sender<(u64, u64)>) -> Vec<u8> {
    thread::scope(|scope| {
        for id in 0..threads {
            let to = to.clone();
            scope.spawn(move || {
                (0..each).for_each(|number| to.send((id, number)).expect("somebody listens"));
            });
        }
    });
    vec![1; 100_000]
}

#[test]
fn all_threads_of_a_task_may_send() {
    let _dog = watchdog();
    let pool = pool_with(Sandbox::threads, 2);
    let (sender, receiver) = channel().unwrap();
    let inputs = (0..4).map(|_| (4, 20_000, sender.clone()));
    let result = pool.starmap_async(send_from_threads, inputs.collect::<Vec<_>>());
    drop(sender);
    let mut last = BTreeMap::<u64, Vec<u64>>::new();
    for (id, number) in receiver {
        last.entry(id).or_default().push(number);
    }
    for numbers in last.values() {
        // The messages of four inputs, each in order.
        assert_eq!(numbers.len(), 4 * 20_000);
        let firsts = numbers.iter().filter(|number| **number == 0).count();
        assert_eq!(firsts, 4);
        let sum: u64 = numbers.iter().sum();
        assert_eq!(sum, 4 * (0..20_000).sum::<u64>());
    }
    assert!(
        result
            .get()
            .unwrap()
            .iter()
            .all(|bytes| bytes.len() == 100_000)
    );
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    count: u64,
    to: Option<Sender<String>>,
}

#[pool_task]
fn carry_out(order: Order) {
    let to = order.to.expect("there is one");
    (0..order.count).for_each(|number| to.send(number.to_string()).expect("somebody listens"));
}

#[pool_task]
fn bound(to: &Sender<u64>, number: u64) {
    to.send(number).expect("somebody listens");
}

#[test]
fn a_sender_travels_as_any_argument_does() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let order = Order {
        count: 3,
        to: Some(sender),
    };
    pool.map(carry_out, [order]).unwrap();
    assert!(receiver.eq(["0", "1", "2"]));
    let (sender, receiver) = channel().unwrap();
    let call = pool.task(bound).partial((sender,));
    call.map(0..1000).unwrap();
    drop(call);
    let mut all: Vec<u64> = receiver.collect();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..1000));
}

static KEPT: OnceLock<Sender<u64>> = OnceLock::new();

#[pool_task]
fn keep(sender: Sender<u64>) {
    sender.send(0).expect("somebody listens");
    KEPT.set(sender).expect("once");
}

#[pool_task]
fn send_by_kept(number: u64) {
    let kept = KEPT.get().expect("it was kept");
    kept.send(number).expect("somebody listens");
}

#[test]
fn an_initializer_may_keep_a_sender_for_all_tasks() {
    let _dog = watchdog();
    let (sender, receiver) = channel().unwrap();
    let pool = checked(builder().processes(2).initializer(keep, (sender,)).build());
    pool.map(send_by_kept, 1..=100).unwrap();
    let mut all: Vec<u64> = (0..102).map(|_| receiver.recv().unwrap()).collect();
    all.sort_unstable();
    assert!(all[2..].iter().copied().eq(1..=100));
    assert!(matches!(receiver.try_recv(), Err(Error::Timeout)));
    drop(pool);
    assert_eq!(receiver.count(), 0);
}

#[pool_task]
fn pass_on(to: Sender<u64>) -> Result<u64, String> {
    let pool = pool_core::Pool::with_processes(1).map_err(|error| error.to_string())?;
    pool.apply(count_to, (3, to))
        .map_err(|error| error.to_string())
}

#[pool_task]
fn give_back(to: Sender<u64>) -> Sender<u64> {
    to
}

#[derive(Serialize, Deserialize)]
struct Flat {
    #[serde(flatten)]
    rest: BTreeMap<String, u64>,
}

#[test]
fn what_can_not_be_is_refused_with_a_reason() {
    let _dog = watchdog();
    let pool = pool(1);
    let (sender, receiver) = channel().unwrap();
    // A sandboxed task has nobody whom it could pass it on to.
    if !is_sandboxed() {
        let why = pool.apply(pass_on, (sender.clone(),)).unwrap().unwrap_err();
        assert!(why.contains("can't pass its `Sender` on"), "{why}");
    }
    let error = pool.apply(give_back, (sender.clone(),)).unwrap_err();
    assert!(matches!(error, Error::Encode(_)), "{error}");
    let error = postcard::to_stdvec(&sender).unwrap_err();
    assert!(!error.to_string().is_empty());
    drop((sender, receiver));
    let (sender, _receiver) = channel().unwrap();
    let error = sender
        .send(Flat {
            rest: BTreeMap::new(),
        })
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("channel: can't encode the message"),
        "{text}"
    );
    assert!(text.ends_with("a channel does not support it"), "{text}");
}

#[pool_task]
fn send_and_stand(gate: &Path, to: Sender<u64>) {
    to.send(1).expect("somebody listens");
    stand(gate, 1);
    to.send(2).expect("somebody listens");
}

#[test]
fn a_message_does_not_wait_for_the_outcome() {
    let _dog = watchdog();
    let pool = pool(1);
    let gate = Gate::new();
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(send_and_stand, (gate.path(), sender));
    // Nobody waits for the task.
    assert_eq!(receiver.recv().unwrap(), 1);
    let held = gate.accept();
    assert!(matches!(receiver.try_recv(), Err(Error::Timeout)));
    held.release();
    assert_eq!(receiver.recv().unwrap(), 2);
    result.get().unwrap();
    assert!(matches!(receiver.recv(), Err(Error::Disconnected)));
}

#[test]
fn a_channel_ends_with_its_pool() {
    let _dog = watchdog();
    let busy = pool(1);
    let (sender, receiver) = channel().unwrap();
    let gate = Gate::new();
    let results: Vec<_> = (0..5)
        .map(|_| busy.apply_async(send_and_stand, (gate.path(), sender.clone())))
        .collect();
    drop(sender);
    let held = gate.accept();
    busy.terminate();
    let received: Vec<u64> = receiver.collect();
    // Sent from another machine, it may not have arrived.
    assert!(received == [1] || received.is_empty() && workers_are_elsewhere());
    held.wait_until_gone();
    for result in results {
        assert!(matches!(result.get(), Err(Error::Terminated)));
    }
}

/// Workers are killed while they send. The messages of each input are a prefix of what it would have sent.
#[test]
fn killed_workers_lose_nothing_that_stood_and_send_nothing_twice() {
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let inputs: Vec<_> = (0..400).map(|id| (id, 300, sender.clone())).collect();
    let results = pool.starmap_async(say_who, inputs);
    drop(sender);
    let mut next = BTreeMap::<u64, u64>::new();
    for (at, (id, number)) in receiver.enumerate() {
        let expected = next.entry(id).or_default();
        assert_eq!(number, *expected, "of input {id}");
        *expected += 1;
        if at % 10_000 == 5000
            && let Some(pid) = pool.worker_pids().get(at / 10_000 % 2)
        {
            signal(*pid, libc::SIGKILL);
        }
    }
    results.wait();
    assert!(next.values().filter(|count| **count == 300).count() > 380);
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
}

// ---- when somebody is idle -------------------------------------------------------------------------

/// More than a worker's ring holds.
const MUCH: u64 = 50_000;

#[pool_task]
fn send_much(to: Sender<u64>) {
    (0..MUCH).for_each(|number| to.send(number).expect("somebody listens"));
}

#[pool_task]
fn keep_and_send_later(to: Sender<u64>) {
    thread::spawn(move || {
        (0..MUCH).for_each(|number| to.send(number).expect("somebody listens"));
    });
}

#[test]
fn initializers_and_finalizers_and_idle_workers_may_send_as_much_as_they_like() {
    let _dog = watchdog();
    let (sender, receiver) = channel().unwrap();
    let reader = thread::spawn(move || receiver.count());
    let pool = checked(
        builder()
            .processes(1)
            .initializer(send_much, (sender.clone(),))
            .build(),
    );
    drop(sender);
    works(&pool);
    pool.close();
    pool.join().unwrap();
    // The channel ends with the workers, not with the handle of the pool.
    assert_eq!(reader.join().unwrap(), MUCH as usize);

    let (sender, receiver) = channel().unwrap();
    // (Rules for paths would restrict the thread that the initializer starts only from Linux 7.0 on.)
    let pool = checked(
        builder_with(|_| Sandbox::new())
            .processes(1)
            .initializer(keep_and_send_later, (sender,))
            .build(),
    );
    // Nobody asks the worker for anything.
    assert!(receiver.take(MUCH as usize).eq(0..MUCH));
    if workers_are_elsewhere() {
        return;
    }
    drop(pool);
    let (sender, receiver) = channel().unwrap();
    let reader = thread::spawn(move || receiver.count());
    let pool = checked(
        builder()
            .processes(1)
            .finalizer(send_much, (sender,))
            .build(),
    );
    works(&pool);
    pool.close();
    pool.join().unwrap();
    assert_eq!(reader.join().unwrap(), MUCH as usize);
}

// ---- many -----------------------------------------------------------------------------------------

#[pool_task]
fn send_into_both(few: Sender<u64>, many: Sender<u64>) {
    few.send(1).expect("somebody listens");
    (0..TOO_MANY).for_each(|number| many.send(number).expect("somebody listens"));
}

#[test]
fn one_that_is_not_read_holds_up_no_other_however_many_there_are() {
    let _dog = watchdog();
    let pool = pool(1);
    let mut unread = Vec::new();
    for _ in 0..130 {
        let (few, kept) = channel().unwrap();
        let (many, receiver) = channel().unwrap();
        let result = pool.apply_async(send_into_both, (few, many));
        if unread.len() % 60 == 3 {
            assert!(receiver.eq(0..TOO_MANY));
            result.get().unwrap();
        } else {
            assert_eq!(receiver.recv().unwrap(), 0);
            drop(receiver);
            assert!(matches!(result.get(), Err(Error::Panicked(_))));
        }
        unread.push(kept);
    }
    for receiver in unread {
        assert!(receiver.eq([1]));
    }
}

#[pool_task]
fn send_bytes(len: usize, to: Sender<Vec<u8>>) {
    to.send(vec![1; len]).expect("somebody listens");
}

#[test]
fn what_is_unread_is_bounded_though_workers_come_and_go() {
    let _dog = watchdog();
    let pool = checked(builder().processes(2).max_tasks_per_child(1).build());
    let (sender, receiver) = channel().unwrap();
    let inputs = (0..40).map(|_| (900_000, sender.clone()));
    let results = pool.starmap_async(send_bytes, inputs.collect::<Vec<_>>());
    drop(sender);
    // Nobody reads yet.
    assert!(!results.wait_timeout(Duration::from_millis(1500)));
    assert_eq!(receiver.count(), 40);
    assert_eq!(results.get().unwrap().len(), 40);
}

#[test]
fn one_thread_that_waits_for_messages_does_not_hold_up_another() {
    let _dog = watchdog();
    let (sender, receiver) = channel::<u64>().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| receiver.recv());
        for _ in 0..20 {
            assert!(matches!(receiver.try_recv(), Err(Error::Timeout)));
            let late = receiver.recv_timeout(Duration::from_millis(1));
            assert!(matches!(late, Err(Error::Timeout)));
        }
        sender.send(7).unwrap();
        assert_eq!(waits.join().unwrap().unwrap(), 7);
    });
}

#[test]
fn threads_that_share_a_receiver_share_what_arrives_together() {
    let _dog = watchdog();
    let pool = pool(1);
    for _ in 0..50 {
        let (sender, receiver) = channel::<u64>().unwrap();
        let gate = Gate::new();
        thread::scope(|scope| {
            let waiting = [(); 2].map(|()| scope.spawn(|| receiver.recv()));
            // The task does not end, and so the channel does not, before both have theirs.
            let result = pool.apply_async(send_two_and_stand, (sender, gate.path()));
            let mut got = waiting.map(|thread| thread.join().unwrap().unwrap());
            got.sort_unstable();
            assert_eq!(got, [1, 2]);
            gate.accept().release();
            result.get().unwrap();
        });
        assert!(matches!(receiver.recv(), Err(Error::Disconnected)));
    }
}

#[pool_task]
fn send_two_and_stand(to: Sender<u64>, gate: &Path) {
    to.send(1).expect("somebody listens");
    to.send(2).expect("somebody listens");
    stand(gate, 0);
}

#[test]
fn messages_as_a_stream() {
    use futures::StreamExt;
    let _dog = watchdog();
    let pool = pool(2);
    let (sender, receiver) = channel().unwrap();
    let result = pool.apply_async(count_to, (10_000, sender));
    let all: Vec<u64> = pollster::block_on(receiver.stream().collect());
    assert!(all.into_iter().eq(1..=10_000));
    assert_eq!(result.get().unwrap(), 10_000);
    // The channel ends while somebody waits for it.
    let (sender, receiver) = channel::<u64>().unwrap();
    let ender = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        drop(sender);
    });
    assert_eq!(pollster::block_on(receiver.stream().count()), 0);
    ender.join().unwrap();
}

#[test]
fn messages_by_reference() {
    let _dog = watchdog();
    let (sender, receiver) = channel::<u64>().unwrap();
    (0..5).for_each(|number| sender.send(number).unwrap());
    assert!(receiver.try_iter().take(2).eq([0, 1]));
    assert!(receiver.try_iter().eq([2, 3, 4]));
    sender.send(5).unwrap();
    drop(sender);
    assert!(receiver.iter().eq([5]));
}
