//! Frames: those that a worker reads from a ring, and those that a parent builds.

use std::borrow::Cow;
use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};

use crate::buffer::Buffer;
use crate::codec::Tail;
use crate::fault::{Fault, Panic};
use crate::frames::{FRAME_MAX, Frames, Tag};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// A worker reads frames that its own task may have overwritten.
    Read { count: u16, bytes: &'a [u8] },
    /// A parent reads a fault.
    Fault(&'a [u8]),
    /// A worker writes a fault in at most `most` bytes.
    Report {
        kind: u8,
        texts: [Cow<'a, str>; 3],
        are_known: [bool; 2],
        most: u16,
    },
    /// A parent appends and removes byte strings.
    Steps(Vec<Step>),
    /// A process reads frames from another machine.
    Travel(&'a [u8]),
}

#[derive(Debug, Arbitrary)]
enum Step {
    Push { len: u16, tail: Option<u8> },
    PushNothing,
    Pop,
    TakeFront(u8),
    TakeFrontAgain(u8),
    Fit { most: u8, bytes: u16 },
}

/// Fuzzes frames, and the faults in them.
pub fn frames(data: &[u8]) {
    match Input::arbitrary_take_rest(Unstructured::new(data)) {
        Ok(Input::Read { count, bytes }) => {
            let read = Frames::read(bytes, count.into());
            let len: usize = read.map(|(_, frame)| frame.len()).sum();
            assert!(len <= bytes.len());
        }
        Ok(Input::Fault(bytes)) => {
            if let Some(fault) = Fault::from_bytes(bytes) {
                assert_eq!(Fault::from_bytes(&fault.to_bytes()), Some(fault));
            }
        }
        Ok(Input::Report {
            kind,
            texts,
            are_known,
            most,
        }) => report(kind, texts.map(Cow::into_owned), are_known, most.into()),
        Ok(Input::Steps(steps)) => take(&steps),
        Ok(Input::Travel(bytes)) => {
            if let Some(mut frames) = Frames::from_bytes(bytes.to_vec()) {
                let again = Frames::from_bytes(frames.to_bytes());
                assert!(again.is_some_and(|again| again == frames));
                for _ in 0..frames.count() {
                    let (_, popped) = frames.pop().expect("as many as were counted");
                    assert!(popped.len() <= bytes.len());
                }
                assert!(frames.pop().is_none());
            }
        }
        Err(_) => {}
    }
}

fn report(kind: u8, [text, location, backtrace]: [String; 3], are_known: [bool; 2], most: usize) {
    // Room for a header and the start of each text.
    let most = most.max(64);
    let fault = match kind % 5 {
        0 => Fault::Panicked(Panic {
            message: text,
            location: are_known[0].then_some(location.into()),
            backtrace: are_known[1].then_some(backtrace.into()),
            output: None,
        }),
        1 => Fault::Decode(text),
        2 => Fault::Encode(text),
        3 => Fault::Unknown(text),
        _ => Fault::Returned(text),
    };
    assert_eq!(Fault::from_bytes(&fault.to_bytes()).as_ref(), Some(&fault));
    let short = fault.to_bytes_within(most);
    assert!(short.len() <= most);
    assert!(Fault::from_bytes(&short).is_some());
}

fn take(steps: &[Step]) {
    let mut frames = Frames::default();
    let mut expected = VecDeque::new();
    let mut used = Frames::default();
    for (number, step) in steps.iter().take(100).enumerate() {
        match step {
            Step::Push { len, tail } => {
                let bytes = vec![number as u8; usize::from(*len) % (FRAME_MAX + 1000)];
                let tail = tail.map(|len| vec![7_u8; len.into()]);
                let whole = [&bytes[..], tail.as_deref().unwrap_or_default()].concat();
                let pushed = frames.push(|out| {
                    out.extend_from_slice(&bytes);
                    Ok::<_, ()>(tail.map(|tail| Tail::from(Buffer::from(tail))))
                });
                match pushed.expect("nothing fails") {
                    None => expected.push_back(whole),
                    Some(mut alone) => {
                        assert_eq!(alone.as_alone().concat(), whole);
                        assert_eq!((alone.count(), alone.size()), (1, whole.len()));
                        let (tag, popped) = alone.pop().expect("it is there");
                        assert_eq!((tag, &*popped), (Tag::Value, &*whole));
                        assert_eq!((alone.count(), alone.size()), (0, 0));
                    }
                }
            }
            Step::PushNothing => {
                let failed = frames.push(|out| {
                    out.push(1);
                    Err(())
                });
                assert_eq!(failed, Err(()));
            }
            Step::Pop => {
                let popped = frames.pop().map(|(_, bytes)| bytes.to_vec());
                assert_eq!(popped, expected.pop_front());
            }
            Step::TakeFront(front) => {
                used = frames.take_front((*front).into());
                check_front(&used, *front, &mut expected);
            }
            Step::TakeFrontAgain(front) => {
                used = frames.take_front_into((*front).into(), used);
                check_front(&used, *front, &mut expected);
            }
            Step::Fit { most, bytes } => {
                let fitting = frames.fitting((*most).into(), (*bytes).into());
                assert!((1..=usize::from(*most).max(1)).contains(&fitting));
            }
        }
        assert_eq!(frames.count(), expected.len());
        assert_eq!(frames.iter().count(), expected.len());
    }
    assert!(frames.iter().map(|(_, bytes)| bytes).eq(&expected));
}

fn check_front(taken: &Frames, front: u8, expected: &mut VecDeque<Vec<u8>>) {
    let front = usize::from(front).min(expected.len());
    assert_eq!(taken.count(), front);
    assert!(
        taken
            .iter()
            .map(|(_, bytes)| bytes.to_vec())
            .eq(expected.drain(..front))
    );
}
