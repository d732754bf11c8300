//! Very many orders of the accesses of both ends, tried by shuttle: see `sync.rs`. (loom, which would also try delayed writes
//! of a processor, reports a false deadlock in the second round of a request and a sleeper.)

use std::collections::VecDeque;
use std::sync::Arc;

use shuttle::thread;

use super::*;
use crate::bell::Bell;
use crate::channel::Batch;
use crate::frames::{Frames, Tag};
use crate::sync::Shared;

struct Ends {
    parent: ParentEnd,
    requests: Requests,
    replies: Replies,
    bell: Bell,
}

fn ends() -> Ends {
    let bell = Bell::of(Shared::in_this_process(), 1);
    let parent = ParentEnd::new(Shared::in_this_process());
    let (requests, replies) = Replies::of(parent.segment().clone(), bell.clone(), 0);
    Ends {
        parent,
        requests,
        replies,
        bell,
    }
}

/// Tries random orders, orders with few preemptions, and as many systematic ones as time allows. An order in which a sleeper
/// is never woken is found as a deadlock.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let test = Arc::new(test);
    let [random, few, ordered] = [0; 3].map(|_| Arc::clone(&test));
    shuttle::check_random(move || random(), 20_000);
    shuttle::check_pct(move || few(), 20_000, 4);
    shuttle::check_dfs(move || ordered(), Some(100_000));
}

fn inputs(count: u8, len: usize) -> Frames {
    let mut frames = Frames::default();
    for number in 0..count {
        let pushed = frames.push(|out| {
            out.extend(vec![number; len]);
            Ok::<_, ()>(None)
        });
        assert_eq!(pushed, Ok(None));
    }
    frames
}

/// A worker that answers each input with its own bytes, until it is told to exit.
fn serve(mut requests: Requests, replies: Replies) -> usize {
    let mut ran = 0;
    while let Request::Run(run) = requests.next(|| ()) {
        let Body::Many(count, bytes) = run.body else {
            panic!("nothing stands alone here");
        };
        for (_, input) in Frames::read(bytes, count) {
            if !replies.begin(run.generation) {
                break;
            }
            ran += 1;
            replies.write(Tag::Value, &input.to_vec().into());
        }
    }
    ran
}

fn send(parent: &mut ParentEnd, inputs: &Frames) -> bool {
    let sent = parent.send(Portion {
        task: 0,
        limited: false,
        inputs,
        skip: 0,
        submitted: std::time::Duration::ZERO,
    });
    if let Some(sleeper) = parent.sleeper() {
        sleeper.wake();
    }
    sent.unwrap()
}

fn exit(parent: &mut ParentEnd) {
    assert!(parent.send_exit().unwrap());
    if let Some(sleeper) = parent.sleeper() {
        sleeper.wake();
    }
}

fn receive(parent: &mut ParentEnd) -> usize {
    let mut replies = VecDeque::new();
    parent.receive(&mut replies, &mut Vec::new()).unwrap();
    if let Some(sleeper) = parent.sleeper_for_room() {
        sleeper.wake();
    }
    replies.iter().map(Frames::count).sum()
}

/// Waits for `count` replies as a leader does; the last of them has this number.
fn wait_for(parent: &mut ParentEnd, bell: &Bell, count: usize, number: u32) {
    let mut received = 0;
    loop {
        received += receive(parent);
        if received == count {
            return;
        }
        parent.set_wake_at(number);
        bell.listen_as_leader();
        if !parent.has_reason_to_ring() {
            bell.sleep_as_leader(None);
        }
        bell.attend();
    }
}

#[test]
fn replies_and_requests_wake_those_who_sleep_for_them() {
    model(|| {
        let Ends {
            mut parent,
            requests,
            replies,
            bell,
        } = ends();
        let worker = thread::spawn(move || serve(requests, replies));
        assert!(send(&mut parent, &inputs(1, 1)));
        wait_for(&mut parent, &bell, 1, 1);
        exit(&mut parent);
        assert_eq!(worker.join().unwrap(), 1);
    });
}

#[test]
fn inputs_that_were_taken_back_are_not_run_and_those_that_ran_are_counted() {
    model(|| {
        let Ends {
            mut parent,
            requests,
            replies,
            ..
        } = ends();
        let worker = thread::spawn(move || serve(requests, replies));
        assert!(send(&mut parent, &inputs(2, 1)));
        let begun = parent.recall() as usize;
        exit(&mut parent);
        let ran = worker.join().unwrap();
        assert_eq!(ran, begun);
        assert_eq!(receive(&mut parent), begun);
        assert_eq!(parent.progress().begun as usize, begun);
    });
}

#[test]
fn a_full_ring_of_replies_blocks_no_one_forever() {
    model(|| {
        let Ends {
            mut parent,
            requests,
            replies,
            bell,
        } = ends();
        let worker = thread::spawn(move || serve(requests, replies));
        // The ring holds two of them.
        assert!(send(&mut parent, &inputs(3, 9)));
        wait_for(&mut parent, &bell, 3, 3);
        exit(&mut parent);
        assert_eq!(worker.join().unwrap(), 3);
    });
}

#[test]
fn requests_go_around_the_end_of_the_ring() {
    model(|| {
        let Ends {
            mut parent,
            requests,
            replies,
            bell,
        } = ends();
        let worker = thread::spawn(move || serve(requests, replies));
        // Two of three fit.
        for round in 1..=3 {
            assert!(send(&mut parent, &inputs(1, 10)));
            wait_for(&mut parent, &bell, 1, round);
        }
        exit(&mut parent);
        assert_eq!(worker.join().unwrap(), 3);
    });
}

/// The collector goes to sleep for one worker while another rings the bell.
#[test]
fn the_collector_is_woken_once_and_not_missed() {
    model(|| {
        let bell = Arc::new(Bell::of(Shared::in_this_process(), 1));
        let ringing = Arc::clone(&bell);
        let flag = Arc::new(shuttle::sync::atomic::AtomicU32::new(0));
        let raised = Arc::clone(&flag);
        let worker = thread::spawn(move || {
            raised.store(1, crate::sync::Ordering::Release);
            crate::sync::fence(crate::sync::Ordering::SeqCst);
            ringing.ring();
        });
        loop {
            let wakes = bell.collector_wakes();
            bell.attend();
            if flag.load(crate::sync::Ordering::Acquire) == 1 {
                break;
            }
            bell.listen_as_collector();
            if flag.load(crate::sync::Ordering::Acquire) == 1 {
                break;
            }
            bell.sleep_as_collector(wakes, None);
        }
        worker.join().unwrap();
    });
}

/// Returns how many messages for this channel have come, and how many replies.
fn receive_all(parent: &mut ParentEnd, channel: u64) -> (usize, usize) {
    let (mut replies, mut messages) = (VecDeque::new(), Vec::new());
    parent.receive(&mut replies, &mut messages).unwrap();
    if let Some(sleeper) = parent.sleeper_for_room() {
        sleeper.wake();
    }
    let mut sent = 0;
    for some in messages {
        assert_eq!(some.channel, channel);
        let mut batch = Batch::from(some);
        while batch.pop().is_some() {
            sent += 1;
        }
    }
    (sent, replies.iter().map(Frames::count).sum())
}

/// A thread of a task sends more than its window and the ring hold, while the worker replies.
#[test]
fn a_sender_of_messages_is_woken_for_room_and_when_they_were_read() {
    const MESSAGES: usize = 4;
    model(|| {
        let Ends {
            mut parent,
            requests,
            replies,
            bell,
        } = ends();
        parent.expect_messages(true);
        let outlet = Outlet::new(&replies);
        let worker = thread::spawn(move || serve(requests, replies));
        let sender = thread::spawn(move || {
            let mut message = 7_u64.to_le_bytes().to_vec();
            message.extend([1, 2, 3, 4]);
            for _ in 0..MESSAGES {
                assert_eq!(outlet.send(7, 0, &message), Ok(()));
            }
        });
        assert!(send(&mut parent, &inputs(2, 4)));
        let mut received = (0, 0);
        while received != (MESSAGES, 2) {
            let (messages, replies) = receive_all(&mut parent, 7);
            received = (received.0 + messages, received.1 + replies);
            if received == (MESSAGES, 2) {
                break;
            }
            parent.set_wake_at(2);
            bell.listen_as_leader();
            if !parent.has_reason_to_ring() {
                bell.sleep_as_leader(None);
            }
            bell.attend();
        }
        sender.join().unwrap();
        exit(&mut parent);
        assert_eq!(worker.join().unwrap(), 2);
    });
}

/// A sender waits for a receiver that goes away.
#[test]
fn a_sender_that_waits_is_told_that_the_receiver_is_gone() {
    model(|| {
        let Ends {
            mut parent,
            replies,
            bell,
            ..
        } = ends();
        parent.expect_messages(true);
        let outlet = Outlet::new(&replies);
        let sender = thread::spawn(move || {
            let mut message = 7_u64.to_le_bytes().to_vec();
            message.extend([1, 2, 3, 4]);
            while outlet.send(7, 0, &message) == Ok(()) {}
        });
        let mut kept = Vec::new();
        loop {
            parent.receive(&mut VecDeque::new(), &mut kept).unwrap();
            if !kept.is_empty() {
                break;
            }
            bell.listen_as_leader();
            if !parent.has_reason_to_ring() {
                bell.sleep_as_leader(None);
            }
            bell.attend();
        }
        parent.close_channel(7, 0);
        // Messages that have arrived are dropped unread.
        drop(kept);
        loop {
            let (messages, _) = receive_all(&mut parent, 7);
            if messages == 0 {
                break;
            }
        }
        sender.join().unwrap();
    });
}
