//! Every message between the two ends, and how a message becomes frames.
//!
//! A *message* is a postcard value. A *frame* is what travels at once: one byte that says what
//! follows, and at most [`FRAME_MAX`] bytes in all, because a larger message over ipc-channel opens
//! a socket of its own and its sender hangs if the receiver dies in the middle. The pieces of a
//! message come one after the other, so the receiver only appends; it never allocates by a length
//! that it was told.
//!
//! Parent to worker: [`Request`]. Worker to parent: [`Reply`], with the number of frames that the
//! worker has taken so far in front of it: the parent never sends more than fits the socket.

use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcSharedMemory};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

/// Must be the same on both sides; they are the same binary, so a difference is a fault of ours.
pub(crate) const VERSION: u32 = 1;

/// The largest frame, in bytes.
pub(crate) const FRAME_MAX: usize = 64 * 1024;

/// The first byte of a frame.
pub(crate) mod mark {
    /// The last or only piece of a message.
    pub(crate) const LAST: u8 = 0;
    /// A piece of a message that goes on in the next frame.
    pub(crate) const MORE: u8 = 1;
    /// Sent by the parent to itself once the worker is dead: nothing true comes after it.
    pub(crate) const END: u8 = 2;
}

/// The first thing a worker says, over the bootstrap channel.
#[derive(Serialize, Deserialize)]
pub(crate) enum Greeting {
    Hello(Hello),
    /// The parent's own: the worker will not come any more.
    GiveUp,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) token: String,
    pub(crate) version: u32,
    pub(crate) fingerprint: u64,
    /// Where the parent sends frames.
    pub(crate) requests: IpcBytesSender,
    /// Where the parent receives frames.
    pub(crate) replies: IpcBytesReceiver,
    /// The worker's end of `replies`, so that the parent can mark the end of it.
    pub(crate) end: IpcBytesSender,
    pub(crate) ledger: IpcSharedMemory,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Request<'a> {
    /// The first one: what to run before the first task.
    #[serde(borrow)]
    Setup(Option<Initializer<'a>>),
    /// Run this task on each of these inputs, in order.
    Run(Run<'a>),
    /// Finish what was given, then exit.
    Exit,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Initializer<'a> {
    pub(crate) task: &'a str,
    #[serde(borrow)]
    pub(crate) args: &'a Bytes,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Run<'a> {
    pub(crate) task: &'a str,
    /// The claim generation under which these inputs may be begun; see `ledger.rs`.
    pub(crate) generation: u32,
    #[serde(borrow)]
    pub(crate) inputs: Vec<&'a Bytes>,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The initializer is through.
    Ready,
    /// The initializer failed; the worker exits.
    Failed(Fault),
    /// A frame was taken; says nothing else.
    Taken,
    /// Records follow until the end of the message, one for each input that was begun, in order.
    Outcomes { epoch: u32, busy_ns: u64 },
}

/// What became of one input, as the worker writes it.
#[derive(Serialize)]
pub(crate) enum Record<'a> {
    Done(&'a Bytes),
    Fault(Fault),
}

/// The same, as the parent reads it.
#[derive(Deserialize)]
pub(crate) enum OwnedRecord {
    Done(ByteBuf),
    Fault(Fault),
}

/// Why a task that its worker survived gave no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// It panicked.
    Panicked(Panic),
    /// The worker could not decode the arguments.
    Decode(String),
    /// The worker could not encode the result.
    Encode(String),
    /// The worker does not know the task.
    Unknown(String),
}

/// A panic, as the worker's panic hook saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Panic {
    /// The panic message; a fixed text if the payload is no string.
    pub message: String,
    /// `file:line:column`, if known.
    pub location: Option<String>,
    /// The worker's backtrace, if `RUST_BACKTRACE` asks for it.
    pub backtrace: Option<String>,
}

/// What a whole message looks like before it is cut: a free byte for the mark, then the message.
pub(crate) type Message = Vec<u8>;

/// Cuts a message into frames and hands each to `send`; stops at the first error.
pub(crate) fn each_frame<E>(
    mut message: Message,
    mut send: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    if message.len() <= FRAME_MAX {
        message[0] = mark::LAST;
        return send(message);
    }
    let mut pieces = message[1..].chunks(FRAME_MAX - 1).peekable();
    while let Some(piece) = pieces.next() {
        let mut frame = Vec::with_capacity(1 + piece.len());
        frame.push(if pieces.peek().is_some() {
            mark::MORE
        } else {
            mark::LAST
        });
        frame.extend_from_slice(piece);
        send(frame)?;
    }
    Ok(())
}

/// Puts messages together from frames.
#[derive(Debug, Default)]
pub(crate) struct Assembly(Vec<u8>);

/// What a frame meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// More is to come.
    Part,
    /// A whole message.
    Whole(Vec<u8>),
    /// The parent's own mark.
    End,
    /// Not a frame of ours.
    Bad,
}

impl Assembly {
    pub(crate) fn add(&mut self, frame: &[u8]) -> Piece {
        let Some((&mark, piece)) = frame.split_first() else {
            return Piece::Bad;
        };
        match mark {
            mark::MORE => {
                self.0.extend_from_slice(piece);
                Piece::Part
            }
            mark::LAST => {
                self.0.extend_from_slice(piece);
                Piece::Whole(std::mem::take(&mut self.0))
            }
            mark::END => Piece::End,
            _ => Piece::Bad,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through_frames(message: Vec<u8>) -> (usize, Vec<u8>) {
        let mut assembly = Assembly::default();
        let mut frames = 0;
        let mut whole = None;
        each_frame::<()>(message, |frame| {
            assert!(frame.len() <= FRAME_MAX);
            frames += 1;
            match assembly.add(&frame) {
                Piece::Whole(message) => whole = Some(message),
                Piece::Part => assert!(whole.is_none()),
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .unwrap();
        (frames, whole.unwrap())
    }

    #[test]
    fn a_message_survives_its_frames_at_every_edge() {
        for len in [0, 1, FRAME_MAX - 1, FRAME_MAX, FRAME_MAX + 1, 3 * FRAME_MAX] {
            let body: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut message = vec![0];
            message.extend_from_slice(&body);
            let (frames, back) = through_frames(message);
            assert_eq!(back, body);
            assert_eq!(frames, len.div_ceil(FRAME_MAX - 1).max(1));
        }
    }

    #[test]
    fn what_is_no_frame_is_called_bad() {
        assert_eq!(Assembly::default().add(&[]), Piece::Bad);
        assert_eq!(Assembly::default().add(&[7, 1, 2]), Piece::Bad);
    }
}
