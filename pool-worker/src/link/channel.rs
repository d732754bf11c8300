//! The link over ipc-channel's byte channels (on Linux: SEQPACKET socket pairs).
//!
//! `IpcBytesSender::send` blocks when the socket is full, without a time limit, and for ever if the
//! worker is stopped or if a grandchild keeps a dead worker's socket open. So the parent never fills
//! the socket: the worker says with every reply how many frames it has taken, and the parent sends
//! only while the rest is within [`WINDOW`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender};
use ipc_channel::{IpcError, ipc};

use crate::protocol::{self, Message, mark};

/// How many bytes of socket buffer the parent may have in use. The default buffer of Linux is
/// 212 992 bytes, in which a small message takes 768 and a large one about its own size; two frames
/// of the largest size fit with room to spare.
const WINDOW: usize = 140 * 1024;

/// What a frame costs in that buffer, rounded up.
fn cost(frame: &[u8]) -> usize {
    1024 + frame.len()
}

/// The parent's sending end.
pub(crate) struct Outbox {
    sender: IpcBytesSender,
    flow: Mutex<Flow>,
}

/// Frames that were sent and not yet taken (their costs), and frames that wait.
#[derive(Default)]
struct Flow {
    taken: u32,
    in_socket: VecDeque<usize>,
    used: usize,
    waiting: VecDeque<Vec<u8>>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(sender: IpcBytesSender) -> Self {
        Outbox {
            sender,
            flow: Mutex::default(),
        }
    }

    /// Sends a message, or keeps what does not fit until the worker has taken enough.
    ///
    /// # Errors
    ///
    /// If the worker is gone, or if the system refused: then the channel is of no use any more.
    pub(crate) fn send(&self, message: Message) -> io::Result<()> {
        let mut flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        let queued = protocol::each_frame(message, |frame| {
            flow.waiting.push_back(frame);
            Ok::<(), std::convert::Infallible>(())
        });
        match queued {
            Ok(()) => flow.pump(&self.sender),
        }
    }

    /// Notes how many frames the worker has taken since it began.
    ///
    /// # Errors
    ///
    /// If it claims more than it was sent; or as [`send`](Outbox::send).
    pub(crate) fn taken(&self, total: u32) -> io::Result<()> {
        let mut flow = self.flow.lock().unwrap_or_else(PoisonError::into_inner);
        let new = total.wrapping_sub(flow.taken) as usize;
        if new > flow.in_socket.len() {
            return Err(io::Error::other("it has taken more than it was sent"));
        }
        let freed: usize = flow.in_socket.drain(..new).sum();
        flow.used -= freed;
        flow.taken = total;
        flow.pump(&self.sender)
    }
}

impl Flow {
    fn pump(&mut self, sender: &IpcBytesSender) -> io::Result<()> {
        while let Some(frame) = self.waiting.front() {
            let cost = cost(frame);
            if self.used > 0 && self.used + cost > WINDOW {
                return Ok(());
            }
            if let Err(error) = send(sender, frame) {
                self.waiting.clear();
                return Err(error);
            }
            self.used += cost;
            self.in_socket.push_back(cost);
            self.waiting.pop_front();
        }
        Ok(())
    }
}

/// Sends one frame, through interruptions by signals.
pub(crate) fn send(sender: &IpcBytesSender, frame: &[u8]) -> io::Result<()> {
    loop {
        match sender.send(frame) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Receives one frame, through interruptions by signals.
///
/// ipc-channel puts a frame of its own around each of ours. If something else was written to the
/// socket (a task that writes to descriptors which are not its own can do that), it takes all that
/// follows for the rest of a broken frame, until a buffer of some 208 KiB is full, and then panics.
/// See [`nudge`].
pub(crate) fn receive(receiver: &IpcBytesReceiver) -> Result<Vec<u8>, IpcError> {
    loop {
        match panic::catch_unwind(AssertUnwindSafe(|| receiver.recv())) {
            Ok(Err(IpcError::Io(error))) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(other) => return other,
            Err(_) => return Err(IpcError::Disconnected),
        }
    }
}

/// How often [`nudge`] must be called to free a receiver that waits for the rest of a broken frame.
pub(crate) const NUDGES: u32 = 6;

/// Helps to fill the buffer of a receiver that waits for the rest of a broken frame: five fill it, and
/// the last is found too much. They would not all fit the socket if nobody received them; so each is
/// sent a good while after the other.
pub(crate) fn nudge(sender: &IpcBytesSender) {
    let _ = send(sender, &[mark::END; 43 * 1024]);
}

/// Writes the parent's end mark behind everything that the worker has sent.
pub(crate) fn mark_end(sender: &IpcBytesSender) {
    // The parent reads this channel until the mark, so the send does not block for long; it can
    // fail only if the reader is gone already.
    let _ = send(sender, &[mark::END]);
}

/// Makes the two channels, in the worker.
pub(crate) fn pair() -> io::Result<(IpcBytesSender, IpcBytesReceiver)> {
    ipc::bytes_channel()
}
