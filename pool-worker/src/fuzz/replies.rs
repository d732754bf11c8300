//! The parent's end of the rings, against a worker that writes arbitrary data.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};

use crate::channel::Batch;
use crate::fault::Fault;
use crate::frames::{Frames, Tag};
use crate::ring::fuzzed::{Fuzzed, Write};

/// A step of the parent or of the worker.
#[derive(Debug, Arbitrary)]
enum Step {
    Send {
        len: u16,
        count: u8,
        skip: u8,
    },
    SendLong {
        len: u32,
    },
    Receive,
    Recall,
    Look,
    Exit,
    Write(Write),
    /// The worker writes during the parent's next steps, after this many looks.
    WriteLater {
        looks: u8,
        write: Write,
    },
    /// The worker alternates two writes, so that the parent reads different data each time.
    WriteByTurns(Write, Write),
}

/// Runs some steps, deterministically: writes during a step of the parent happen at a fixed look.
pub fn replies(data: &[u8]) {
    let Ok(steps) = Vec::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    take(&mut Fuzzed::new(), steps);
}

/// The same, while another thread writes all the time.
pub fn racing(data: &[u8]) {
    let Ok((writes, steps)) = Arbitrary::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    Fuzzed::new().beside(writes, |ends| take(ends, steps));
}

fn take(ends: &mut Fuzzed, steps: Vec<Step>) {
    // A partly sent portion must be sent completely or taken back.
    let mut pending: Option<(Frames, usize)> = None;
    let mut received = VecDeque::new();
    let mut messages = Vec::new();
    // Real threads also use a glance that is out of date.
    let mut glance = ends.parent.glance();
    for step in steps {
        match step {
            Step::Send { len, count, skip } if pending.is_none() => {
                let mut frames = Frames::default();
                for _ in 0..count {
                    let pushed = frames.push(|out| {
                        out.resize(out.len() + usize::from(len) / 64, 7);
                        Ok::<_, ()>(None)
                    });
                    assert!(pushed.is_ok());
                }
                let skip = usize::from(skip) % frames.count().max(1);
                pending = (frames.count() > 0).then_some((frames, skip));
            }
            Step::SendLong { len } if pending.is_none() => {
                let bytes = vec![7; len as usize % 200_000];
                pending = Some((Frames::alone(Tag::Value, bytes), 0));
            }
            Step::Send { .. } | Step::SendLong { .. } => {}
            Step::Receive => {
                if ends.parent.receive(&mut received, &mut messages).is_err() {
                    // The worker would be killed.
                    return;
                }
                for mut batch in messages.drain(..).map(Batch::from) {
                    while batch.pop().is_some() {}
                }
                for mut frames in received.drain(..) {
                    for _ in 0..frames.count() {
                        let (tag, bytes) = frames.pop().expect("as many as were counted");
                        if tag == Tag::Fault {
                            let _ = Fault::from_bytes(&bytes);
                        }
                    }
                    assert_eq!(frames.size(), 0);
                }
                if let Some(sleeper) = ends.parent.sleeper_for_room() {
                    sleeper.wake();
                }
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
                let progress = ends.parent.progress();
                ends.parent.set_wake_at(progress.begun);
                let _ = (ends.parent.has_replies(), ends.parent.new_pace());
                let _ = (ends.parent.has_reason_to_ring(), ends.parent.told_memory());
                let _ = ends.parent.starved();
                if let Some(sleeper) = ends.parent.sleeper() {
                    sleeper.wake();
                }
            }
            Step::Exit if pending.is_none() => {
                if ends.parent.send_exit().is_err() {
                    return;
                }
            }
            Step::Exit => {}
            Step::Write(write) => ends.write(&write),
            Step::WriteLater { looks, write } => ends.write_later(looks, write),
            Step::WriteByTurns(next, then) => ends.write_by_turns(next, then),
        }
        let sent = pending
            .as_ref()
            .map(|(frames, skip)| ends.send(frames, *skip));
        match sent {
            Some(Ok(true)) => pending = None,
            Some(Ok(false)) | None => {}
            Some(Err(_)) => return,
        }
    }
}
