//! Both ends of the rings in one process: each reads what the other writes, and nothing that a worker may write harms the
//! parent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::bell::Bell;
use crate::buffer::{Arrived, Buffer};
use crate::channel::Batch;
use crate::frames::{self, FRAME_MAX, Frames, LONG, PIECE, Tag, WORD};
use crate::sync::{Ordering, Shared};

struct Ends {
    parent: ParentEnd,
    requests: Requests,
    replies: Replies,
}

fn ends() -> Ends {
    let (memory, fd) = Shared::create("test", 0).unwrap();
    let (bell, bell_fd) = Bell::create(2).unwrap();
    drop(bell_fd);
    let (requests, replies) = Replies::open(Shared::open(&fd, 0).unwrap(), bell, 0);
    Ends {
        parent: ParentEnd::new(memory),
        requests,
        replies,
    }
}

fn frames(texts: &[Vec<u8>]) -> Frames {
    let mut frames = Frames::default();
    for text in texts {
        let pushed = frames.push(|out| {
            out.extend_from_slice(text);
            Ok::<_, ()>(None)
        });
        match pushed.unwrap() {
            None => {}
            Some(alone) => return alone,
        }
    }
    frames
}

fn portion(inputs: &Frames) -> Portion<'_> {
    Portion {
        task: 7,
        limited: false,
        inputs,
        skip: 0,
        submitted: Duration::ZERO,
    }
}

/// Answers each input of a portion with its bytes reversed.
fn serve(ends: &mut Ends) {
    serve_one(&mut ends.requests, &ends.replies);
}

fn serve_one(requests: &mut Requests, replies: &Replies) {
    match requests.next(|| ()) {
        Request::Run(Run {
            task: 7,
            generation,
            body,
            ..
        }) => {
            let inputs: Vec<Vec<u8>> = match body {
                Body::Many(count, bytes) => {
                    let inputs = Frames::read(bytes, count);
                    inputs.map(|(_, input)| input.to_vec()).collect()
                }
                Body::Alone(input) => vec![std::mem::take(input).into_vec()],
                Body::TooLong(_) => panic!("there is memory"),
            };
            for mut input in inputs {
                if !replies.begin(generation) {
                    break;
                }
                input.reverse();
                replies.write(Tag::Value, &input.into());
            }
        }
        other => panic!("{other:?}"),
    }
}

fn received(parent: &mut ParentEnd) -> Vec<Vec<u8>> {
    let mut replies = VecDeque::new();
    parent.receive(&mut replies, &mut Vec::new()).unwrap();
    replies
        .iter()
        .flat_map(|frames| frames.iter().map(|(_, bytes)| bytes.to_vec()))
        .collect()
}

#[test]
fn portions_of_every_size_come_back_around_the_end_of_the_rings() {
    let mut ends = ends();
    for round in 0..500_usize {
        let texts: Vec<Vec<u8>> = (0..round % 7 + 1)
            .map(|number| vec![(round + number) as u8; (round * 37 + number * 501) % 5000])
            .collect();
        let inputs = frames(&texts);
        assert!(ends.parent.send(portion(&inputs)).unwrap(), "{round}");
        serve(&mut ends);
        assert_eq!(received(&mut ends.parent), texts, "{round}");
    }
}

#[test]
fn what_is_longer_than_the_rings_comes_in_pieces() {
    for len in [FRAME_MAX + 1, 100_000, REQUESTS, 3 * REQUESTS + 17, 5 << 20] {
        let mut ends = ends();
        let text: Vec<u8> = (0..len).map(|at| (at / 251) as u8).collect();
        let mut backwards = text.clone();
        backwards.reverse();
        let inputs = frames(std::slice::from_ref(&text));
        let (worker, all) = std::thread::scope(|scope| {
            let parent = &mut ends.parent;
            let (requests, replies) = (&mut ends.requests, &ends.replies);
            let worker = scope.spawn(move || {
                let Request::Run(run) = requests.next(|| ()) else {
                    panic!("there is one to run");
                };
                let Body::Alone(input) = run.body else {
                    panic!("it stands alone");
                };
                assert!(replies.begin(run.generation));
                let mut input = std::mem::take(input).into_vec::<u8>();
                input.reverse();
                replies.write(Tag::Value, &input.into());
            });
            let mut sent = false;
            let mut all = Vec::new();
            while all.is_empty() {
                sent = sent || parent.send(portion(&inputs)).unwrap();
                if let Some(sleeper) = parent.sleeper() {
                    sleeper.wake();
                }
                all = received(parent);
                if let Some(sleeper) = parent.sleeper_for_room() {
                    sleeper.wake();
                }
                std::thread::yield_now();
            }
            (worker.join(), all)
        });
        worker.unwrap();
        assert!(all == [backwards], "{len}");
    }
}

#[test]
fn a_long_input_that_was_taken_back_is_not_mixed_with_the_next() {
    let mut ends = ends();
    let first = frames(&[vec![1; 2 * REQUESTS]]);
    assert!(!ends.parent.send(portion(&first)).unwrap());
    assert_eq!(ends.parent.recall(), 0);
    let second = frames(&[vec![2; FRAME_MAX + 5]]);
    std::thread::scope(|scope| {
        let (requests, replies) = (&mut ends.requests, &ends.replies);
        let parent = &mut ends.parent;
        scope.spawn(move || {
            while !parent.send(portion(&second)).unwrap() {
                std::thread::yield_now();
            }
            if let Some(sleeper) = parent.sleeper() {
                sleeper.wake();
            }
        });
        let Request::Run(run) = requests.next(|| ()) else {
            panic!("there is one to run");
        };
        let Body::Alone(input) = run.body else {
            panic!("it stands alone");
        };
        assert_eq!(**input, vec![2; FRAME_MAX + 5]);
        assert!(replies.begin(run.generation));
    });
}

#[test]
fn a_parent_that_waits_for_room_is_woken_only_when_there_is_enough() {
    let mut ends = ends();
    let inputs = frames(&[vec![1; 30_000], vec![2; 15_000]]);
    let mut sent = 0;
    while ends.parent.send(portion(&inputs)).unwrap() {
        sent += 1;
    }
    assert!(ends.parent.wants_room() && !ends.parent.has_reason_to_ring());
    for _ in 0..sent {
        serve(&mut ends);
        received(&mut ends.parent);
        // The room of a request is freed when the next one is asked for.
        let told = ends.parent.has_reason_to_ring();
        assert_eq!(told, ends.parent.send(portion(&inputs)).unwrap());
        if told {
            return;
        }
    }
    panic!("it never fits");
}

/// A thread uses a glance from a while ago. Since then more of a long input was sent and read, and it was not answered yet.
#[test]
fn an_old_glance_has_news() {
    let Ends {
        mut parent,
        mut requests,
        replies,
    } = ends();
    let long = frames(&[vec![1; 10 * REQUESTS]]);
    assert!(!parent.send(portion(&long)).unwrap());
    let glance = parent.glance();
    assert!(glance.is_in_pieces() && !glance.has_news());
    let worker = thread::spawn(move || serve_one(&mut requests, &replies));
    while !parent.send(portion(&long)).unwrap() {
        if let Some(sleeper) = parent.sleeper() {
            sleeper.wake();
        }
        glance.has_news();
        thread::yield_now();
    }
    assert!(glance.has_news());
    if let Some(sleeper) = parent.sleeper() {
        sleeper.wake();
    }
    while received(&mut parent).is_empty() {
        if let Some(sleeper) = parent.sleeper_for_room() {
            sleeper.wake();
        }
        thread::yield_now();
    }
    worker.join().unwrap();
}

/// A record and the unused bytes before it at the end of the ring may together be more than the whole ring holds.
#[test]
fn a_record_that_takes_most_of_the_ring_can_be_sent_at_any_position() {
    for before in (8..REQUESTS).step_by(4096) {
        let Ends {
            mut parent,
            mut requests,
            replies,
        } = ends();
        let filler = || frames(&[vec![1; before / 4]]);
        let most = frames(&[vec![2; 30_000], vec![3; 30_000], vec![4; 30_000]]);
        let portions = [filler(), filler(), filler(), filler(), most];
        thread::spawn(move || {
            for _ in 0..5 {
                serve_one(&mut requests, &replies);
            }
        });
        let start = Instant::now();
        let mut answers = 0;
        for inputs in &portions {
            while !parent.send(portion(inputs)).unwrap() {
                assert!(start.elapsed() < Duration::from_secs(120), "it never fits");
                if let Some(sleeper) = parent.sleeper() {
                    sleeper.wake();
                }
                thread::yield_now();
            }
            if let Some(sleeper) = parent.sleeper() {
                sleeper.wake();
            }
            answers += inputs.count();
            while answers > 0 {
                assert!(start.elapsed() < Duration::from_secs(120), "no answer");
                answers -= received(&mut parent).len();
                thread::yield_now();
            }
        }
    }
}

#[test]
fn a_parent_that_gives_up_sending_does_not_wait_for_room() {
    for give_up in [
        |parent: &mut ParentEnd| assert_eq!(parent.recall(), 0),
        ParentEnd::give_up_sending,
    ] {
        let mut ends = ends();
        let long = frames(&[vec![1; 3 * REQUESTS]]);
        assert!(!ends.parent.send(portion(&long)).unwrap());
        assert!(ends.parent.wants_room());
        give_up(&mut ends.parent);
        assert!(!ends.parent.wants_room() && !ends.parent.has_reason_to_ring());
    }
}

#[test]
fn numbers_arrive_in_memory_that_can_become_their_vector() {
    let numbers: Vec<u64> = (0..10_000).collect();
    let mut ends = ends();
    let mut inputs = Frames::default();
    let pushed = inputs.push(|_| Ok::<_, ()>(Some(Buffer::from(numbers.clone()).into())));
    let inputs = pushed.unwrap().expect("a tail makes it stand alone");
    assert!(ends.parent.send(portion(&inputs)).unwrap());
    let Request::Run(run) = ends.requests.next(|| ()) else {
        panic!("there is one to run");
    };
    let Body::Alone(input) = run.body else {
        panic!("it stands alone");
    };
    assert!(ends.replies.begin(run.generation));
    let at = input.as_ptr();
    let input = std::mem::take(input).into_vec::<u64>();
    assert_eq!((input.as_ptr().cast(), &input), (at, &numbers));
    ends.replies.write(Tag::Value, &input.into());
    let mut replies = VecDeque::new();
    ends.parent.receive(&mut replies, &mut Vec::new()).unwrap();
    let (_, reply) = replies[0].pop().expect("there is a reply");
    let Arrived::Own(reply) = reply else {
        panic!("it stands alone");
    };
    let at = reply.as_ptr();
    let reply = reply.into_vec::<u64>();
    assert_eq!((reply.as_ptr().cast(), &reply), (at, &numbers));
}

/// Wherever a worker dies, at most one input was begun and not answered.
#[test]
fn death_at_each_step_costs_at_most_the_input_that_was_begun() {
    for steps in 0..=7 {
        let mut ends = ends();
        let texts: Vec<Vec<u8>> = (0..3).map(|number| vec![number; 4]).collect();
        assert!(ends.parent.send(portion(&frames(&texts))).unwrap());
        let Request::Run(run) = ends.requests.next(|| ()) else {
            panic!("there is one to run");
        };
        for step in 0..steps {
            if step % 2 == 0 {
                let begun = ends.replies.begin(run.generation);
                assert_eq!(begun, step < 6 || ends.parent.progress().begun == 4);
            } else {
                let text = texts[step / 2].clone();
                ends.replies.write(Tag::Value, &text.into());
            }
        }
        let begun = ends.parent.progress().begun as usize;
        let answered = received(&mut ends.parent);
        assert_eq!(answered, texts[..(steps / 2).min(3)]);
        assert_eq!(begun - answered.len(), steps % 2);
    }
}

#[test]
fn false_words_are_detected() {
    type Lie = fn(&Words);
    let lies: [(&str, Lie); 4] = [
        ("more replies than fit", |words| {
            words.replies.0.0.store(u64::MAX, Ordering::Release);
        }),
        ("more replies than there is room", |words| {
            let end = REPLIES as u64 + 1;
            words.replies.0.0.store(end, Ordering::Release);
        }),
        ("half a word", |words| {
            words.replies.0.0.store(2, Ordering::Release);
        }),
        ("a frame of nothing but its word", |words| {
            words.replies.0.0.store(WORD as u64, Ordering::Release);
        }),
    ];
    for (what, lie) in lies {
        let mut ends = ends();
        ends.replies.write(Tag::Value, &vec![1_u8; 100].into());
        lie(ends.parent.segment().words());
        let mut replies = VecDeque::new();
        assert!(
            ends.parent.receive(&mut replies, &mut Vec::new()).is_err(),
            "{what}"
        );
    }
    for taken in [1, u64::MAX] {
        let mut ends = ends();
        let words = ends.parent.segment().words();
        words.requests_taken.0.store(taken, Ordering::Release);
        // The parent looks at this word only when the ring seems to be full.
        let inputs = frames(&[vec![1; 20_000]]);
        let found = (0..100).find_map(|_| match ends.parent.send(portion(&inputs)) {
            Ok(true) => None,
            other => Some(other),
        });
        let told = taken == 1 && found == Some(Ok(false));
        assert!(told || matches!(found, Some(Err(_))), "{taken}: {found:?}");
    }
}

/// What follows an announcement is copied once more, so a ring full of announcements would keep the parent busy.
#[test]
fn a_long_reply_is_as_long_as_it_says() {
    let (most, rest) = (FRAME_MAX as u64, FRAME_MAX - 1);
    for (announced, is_good) in [
        (2 * most - 1, true),
        ((2 * most - 1) | 4 << ANNOUNCED_ALIGN_AT, true),
        ((2 * most - 1) | 5 << ANNOUNCED_ALIGN_AT, false),
        (2 * most - 2, false),
        (2 * most, false),
        (most, false),
        (0, false),
        (u64::MAX, false),
    ] {
        let mut ends = ends();
        let bytes = [
            &frames::word(size_of::<u64>(), LONG)[..],
            &announced.to_le_bytes(),
            &frames::word(FRAME_MAX, PIECE),
            &[1; FRAME_MAX],
            &frames::word(rest, Tag::Value.bits()),
            &vec![2; rest],
        ]
        .concat();
        let segment = ends.parent.segment();
        let (start, _) = segment.reply_at(0);
        // SAFETY: they are fewer bytes than the ring has, and nothing else uses it.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        let end = &segment.words().replies.0.0;
        end.store(bytes.len() as u64, Ordering::Release);
        let mut replies = VecDeque::new();
        let received = ends.parent.receive(&mut replies, &mut Vec::new());
        assert_eq!(received.is_ok(), is_good, "{announced}");
        assert_eq!(replies.len(), usize::from(is_good), "{announced}");
    }
}

#[test]
fn the_parent_reads_or_rejects_whatever_lies_in_the_ring_of_replies() {
    let mut seed = 12345_u32;
    for _ in 0..2000 {
        let mut ends = ends();
        let end = seed as usize % 300;
        for at in 0..end {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Small numbers are more often valid.
            let byte = if seed >> 28 < 12 {
                0
            } else {
                (seed >> 16) as u8 % 32
            };
            let (place, _) = ends.parent.segment().reply_at(at as u64);
            // SAFETY: a byte of the ring, which nothing else uses.
            unsafe { place.write(byte) };
        }
        let words = ends.parent.segment().words();
        words.replies.0.0.store(end as u64, Ordering::Release);
        let mut replies = VecDeque::new();
        let _ = ends.parent.receive(&mut replies, &mut Vec::new());
    }
}

// ---- messages -------------------------------------------------------------------------------------

fn message(channel: u64, text: &[u8]) -> Vec<u8> {
    [&mark(channel, channel as u8).to_le_bytes()[..], text].concat()
}

/// A channel, and a message that was sent there.
type Sent = (u64, Vec<u8>);

/// The replies and messages that have come, each in order.
fn received_all(parent: &mut ParentEnd) -> (Vec<Vec<u8>>, Vec<Sent>) {
    let (mut replies, mut messages) = (VecDeque::new(), Vec::new());
    parent.receive(&mut replies, &mut messages).unwrap();
    let replies = replies.iter().flat_map(Frames::iter);
    let replies = replies.map(|(_, bytes)| bytes.to_vec()).collect();
    let mut texts = Vec::new();
    for some in messages {
        let channel = some.channel;
        let mut batch = Batch::from(some);
        while let Some(text) = batch.pop() {
            texts.push((channel, text.to_vec()));
        }
    }
    (replies, texts)
}

#[test]
fn reports_stand_between_replies_and_are_not_limited_by_a_window() {
    let mut ends = ends();
    let (mut reports, mut total) = (Vec::new(), 0);
    for round in 0..300_usize {
        let inputs = frames(&[vec![1; round], vec![2; 3]]);
        assert!(ends.parent.send(portion(&inputs)).unwrap());
        for number in 0..round % 9 {
            ends.replies.report(number as u8, &vec![7; number * 100]);
            total += 1;
        }
        serve(&mut ends);
        let (mut replies, mut messages) = (VecDeque::new(), Vec::new());
        ends.parent.receive(&mut replies, &mut messages).unwrap();
        assert_eq!(replies.iter().map(Frames::count).sum::<usize>(), 2);
        reports.extend(messages.into_iter().map(|some| some.reports().unwrap()));
    }
    let mut seen = 0;
    for some in &reports {
        for bytes in some.iter() {
            assert_eq!(bytes, vec![7; usize::from(some.kind) * 100]);
            seen += 1;
        }
    }
    assert_eq!(seen, total);
}

#[test]
fn messages_are_distinguished_from_replies_and_keep_their_order() {
    let mut ends = ends();
    ends.parent.expect_messages(true);
    let outlet = Outlet::new(&ends.replies);
    for round in 0..300_usize {
        let inputs = frames(&[vec![1; round], vec![2; 3]]);
        assert!(ends.parent.send(portion(&inputs)).unwrap());
        let texts: Vec<Sent> = (0..round % 9)
            .map(|number| (1 + number as u64 / 3, vec![number as u8; round * number]))
            .collect();
        for (channel, text) in &texts {
            assert_eq!(
                outlet.send(*channel, *channel as u8, &message(*channel, text)),
                Ok(())
            );
        }
        serve(&mut ends);
        let (replies, messages) = received_all(&mut ends.parent);
        assert_eq!(replies, [vec![1; round], vec![2; 3]], "{round}");
        assert_eq!(messages, texts, "{round}");
    }
}

#[test]
fn a_sender_waits_only_for_unread_messages_of_its_own_channel() {
    let mut ends = ends();
    ends.parent.expect_messages(true);
    let outlet = Arc::new(Outlet::new(&ends.replies));
    let text = vec![7; 1000];
    let count = 3 * WINDOW as usize / text.len();
    let sending = Arc::clone(&outlet);
    let long = message(1, &text);
    let sender = thread::spawn(move || {
        for _ in 0..count {
            assert_eq!(sending.send(1, 1, &long), Ok(()));
        }
    });
    let (mut unread, mut bytes) = (Vec::new(), 0);
    let full = WINDOW - cost(8 + text.len());
    while bytes < full {
        let mut messages = Vec::new();
        ends.parent
            .receive(&mut VecDeque::new(), &mut messages)
            .unwrap();
        if let Some(sleeper) = ends.parent.sleeper_for_room() {
            sleeper.wake();
        }
        bytes += messages.iter().map(Messages::size).sum::<u64>();
        unread.extend(messages);
    }
    assert!(bytes <= WINDOW);
    assert!(!sender.is_finished());
    assert_eq!(outlet.send(2, 2, &message(2, b"other")), Ok(()));
    // A message that is longer than the window is sent when nothing is unread.
    let longest = message(3, &vec![1; 2 * WINDOW as usize]);
    let also = Arc::clone(&outlet);
    let longest = thread::spawn(move || also.send(3, 3, &longest));
    drop(unread);
    let mut seen = bytes / cost(8 + text.len());
    let mut others = Vec::new();
    while seen < count as u64 || others.len() < 2 {
        for (channel, text) in received_all(&mut ends.parent).1 {
            match channel {
                1 => seen += 1,
                _ => others.push((channel, text.len())),
            }
        }
        if let Some(sleeper) = ends.parent.sleeper_for_room() {
            sleeper.wake();
        }
    }
    sender.join().unwrap();
    assert_eq!(longest.join().unwrap(), Ok(()));
    others.sort_unstable();
    assert_eq!(others, [(2, 5), (3, 2 * WINDOW as usize)]);
    ends.parent.close_channel(1, 1);
    assert_eq!(outlet.send(1, 1, &message(1, b"gone")), Err(Gone));
}

#[test]
fn a_worker_that_sends_more_than_it_may_is_given_up() {
    let mut ends = ends();
    let text = message(1, &[7; 30_000]);
    let mut kept = Vec::new();
    let refused = (0..WINDOW as usize / 30_000 + 2).find_map(|_| {
        // The worker does not check its window.
        ends.replies.write_message(&text);
        let received = ends.parent.receive(&mut VecDeque::new(), &mut kept);
        ends.parent.sleeper_for_room();
        received.err()
    });
    assert_eq!(
        refused,
        Some(Garbled("it has sent more messages than it may"))
    );
    let sizes = kept.iter().map(Messages::size).sum::<u64>();
    assert!(sizes <= WINDOW);
}
