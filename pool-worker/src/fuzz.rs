//! What a process believes of another, against anything that the other may say.
//!
//! `PROPTEST_CASES=10000000 cargo test --release -p pool-worker fuzz` tries for some minutes.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use crate::codec::{decode, encode};
use crate::entry::Call;
use crate::fault::Fault;
use crate::frames::{Frames, Tag};
use crate::ring::fuzzed::Fuzzed;

/// What a parent does, and what a worker does meanwhile.
#[derive(Debug, Clone)]
enum Step {
    Send {
        len: u16,
        count: u8,
    },
    SendLong {
        len: u32,
    },
    Receive,
    Recall,
    Look,
    Exit,
    /// The worker writes this into one of its words.
    Word {
        which: u8,
        value: u64,
    },
    /// It moves the end of its replies on by so much.
    Reply {
        by: u32,
    },
    /// It writes these bytes somewhere into the ring of replies.
    Bytes {
        at: u32,
        bytes: [u8; 24],
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(len, count)| Step::Send { len, count }),
        1 => any::<u32>().prop_map(|len| Step::SendLong { len }),
        6 => Just(Step::Receive),
        1 => Just(Step::Recall),
        2 => Just(Step::Look),
        1 => Just(Step::Exit),
        2 => (any::<u8>(), word()).prop_map(|(which, value)| Step::Word { which, value }),
        4 => prop_oneof![0..64_u32, any::<u32>()].prop_map(|by| Step::Reply { by }),
        6 => (prop_oneof![0..256_u32, any::<u32>()], bytes()).prop_map(|(at, bytes)| Step::Bytes { at, bytes }),
    ]
}

/// Positions in a ring are small at first.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![0..1_000_u64, 0..2_000_000_u64, any::<u64>()]
}

/// Small numbers make more sense to a reader of lengths.
fn bytes() -> impl Strategy<Value = [u8; 24]> {
    let byte = prop_oneof![4 => Just(0), 2 => 0..32_u8, 1 => any::<u8>()];
    proptest::collection::vec(byte, 24).prop_map(|bytes| std::array::from_fn(|at| bytes[at]))
}

type Nested = Vec<(
    Option<String>,
    BTreeMap<u8, Vec<u64>>,
    Result<i32, char>,
    f64,
    [bool; 3],
)>;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replies(steps in proptest::collection::vec(step(), 0..60)) {
        replies_to(&steps);
    }

    #[test]
    fn frames(count in any::<u16>(), bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (tag, frame) in Frames::read(&bytes, count.into()) {
            if tag == Tag::Fault {
                let _ = Fault::from_bytes(frame);
            }
        }
    }

    #[test]
    fn values(bytes in proptest::collection::vec(prop_oneof![0..4_u8, any::<u8>()], 0..400)) {
        if let Ok(value) = decode::<Nested>(&bytes) {
            let mut again = Vec::new();
            encode(&value, &mut again).expect("what was decoded can be encoded");
            // (Not the same bytes, where a number was written longer than it must be.)
            let read = decode::<Nested>(&again).expect("what was encoded can be decoded");
            prop_assert_eq!(format!("{read:?}"), format!("{value:?}"));
        }
    }

    #[test]
    fn calls(text in "[0-9]{1,3}:[0-9]{1,3}:[a-f]*(:contained|.*)|[0-9a-f:-]{0,40}|.*") {
        if let Some(call) = Call::from_variable(&text) {
            prop_assert_eq!(Call::from_variable(&call.to_variable()), Some(call));
        }
    }
}

fn replies_to(steps: &[Step]) {
    let mut ends = Fuzzed::new();
    // A portion that was sent in part is sent to its end, or taken back.
    let mut pending: Option<Frames> = None;
    let mut received = VecDeque::new();
    // Threads look at what was so a while ago.
    let mut glance = ends.parent.glance();
    for step in steps {
        match step {
            Step::Send { len, count } if pending.is_none() => {
                let mut frames = Frames::default();
                for _ in 0..*count {
                    let pushed = frames.push(|out| {
                        out.extend(std::iter::repeat_n(7, usize::from(*len) / 64));
                        Ok::<_, ()>(None)
                    });
                    assert!(pushed.is_ok());
                }
                pending = (frames.count() > 0).then_some(frames);
            }
            Step::SendLong { len } if pending.is_none() => {
                let bytes = vec![7; *len as usize % 200_000];
                pending = Some(Frames::alone(Tag::Value, bytes));
            }
            Step::Send { .. } | Step::SendLong { .. } => {}
            Step::Receive => {
                received.clear();
                if ends.parent.receive(&mut received).is_err() {
                    // It is killed.
                    return;
                }
                for frames in &mut received {
                    while let Some((tag, bytes)) = frames.pop() {
                        if tag == Tag::Fault {
                            let _ = Fault::from_bytes(&bytes);
                        }
                    }
                }
                let _ = ends.parent.sleeper_for_room();
            }
            Step::Recall => {
                ends.parent.recall();
                pending = None;
            }
            Step::Look => {
                let _ = (
                    glance.has_news(),
                    glance.is_in_pieces(),
                    glance.is_elsewhere(),
                );
                glance = ends.parent.glance();
                let _ = (ends.parent.progress(), ends.parent.new_pace());
                let _ = (ends.parent.has_reason_to_ring(), ends.parent.told_memory());
                let _ = ends.parent.starved();
                drop(ends.parent.sleeper());
            }
            Step::Exit if pending.is_none() => {
                if ends.parent.send_exit().is_err() {
                    return;
                }
            }
            Step::Exit => {}
            Step::Word { which, value } => ends.write_word(*which, *value),
            Step::Reply { by } => ends.reply(u64::from(*by % 70_000)),
            Step::Bytes { at, bytes } => ends.write_bytes(u64::from(*at), bytes),
        }
        match pending.as_ref().map(|frames| ends.send(frames)) {
            Some(Ok(true)) => pending = None,
            Some(Ok(false)) | None => {}
            Some(Err(_)) => return,
        }
    }
}
