//! Channels: messages that tasks send while they run.
//!
//! A channel is an [`Attachment`] without bytes: its holder may send messages, or pass it to a task, which may then
//! send them. So the channel ends when the attachment is dropped: see [`Attachment::on_drop`]. A worker writes its
//! messages to its ring of replies (`ring`, *Messages*); the thread that collects them puts them into the [`Channel`],
//! from which the receiver takes them.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Instant;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{self, Serializer};

use crate::attach::{self, Attachment};
use crate::codec::CodecError;
use crate::encode::OTHER;
use crate::frames::{MESSAGE, WORD, read_word};
use crate::lineage::lineage;
use crate::ring::{Credit, Framed, Gone, Messages, Outlet, Replies, mark};

/// A thread that wakes a future needs little stack.
const STACK: usize = 128 << 10;

/// Wakes a user's future. The waker may panic, which must not end a thread that others need.
pub fn wake(waker: Waker) {
    let woken = panic::catch_unwind(AssertUnwindSafe(|| waker.wake()));
    if let Err(payload) = woken {
        std::mem::forget(payload);
    }
}

/// The size of what precedes each message: the id of its channel, and the channel's place in the worker.
const ID: usize = size_of::<u64>();

// ---- receiving ------------------------------------------------------------------------------------

/// The queue in which the messages of one channel wait for their receiver.
pub struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    /// The process that receives; a forked copy of it gets no messages.
    owner: u32,
    /// Called when there are messages, if they are for another process.
    relay: Option<Relay>,
}

type Relay = Box<dyn Fn(&Channel) + Send + Sync>;

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    /// The number of bytes in `batches`.
    unread: u64,
    /// The number of threads that wait for a message.
    waiting: usize,
    /// The future that waits for a message.
    waker: Option<Waker>,
    /// The last sender is gone.
    is_over: bool,
    /// The receiver is gone.
    is_closed: bool,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel")
    }
}

/// What happened to messages that were put into a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The receiver is not waiting.
    Quietly,
    /// The receiver is waiting and must be [woken](Channel::wake).
    Awaited,
    /// The receiver is gone, so they will not be read.
    Closed,
}

/// The result of waiting for messages.
#[derive(Debug)]
pub enum Taken {
    /// Messages.
    Some(Batch),
    /// The deadline passed first.
    Late,
    /// All messages have been received, and the last sender is gone.
    Over,
}

impl Channel {
    /// Opens a channel; returns it and a link for sending messages.
    pub fn open() -> (Arc<Channel>, Link) {
        let channel = Arc::new(Channel::new(None));
        let attachment = Attachment::of_channel(attach::next_id(), &channel);
        let ending = Arc::clone(&channel);
        attachment.on_drop(move |_| ending.end());
        let link = Link::Here {
            channel: Arc::clone(&channel),
            attachment: Some(attachment),
        };
        (channel, link)
    }

    fn new(relay: Option<Relay>) -> Channel {
        Channel {
            state: Mutex::default(),
            changed: Condvar::new(),
            owner: lineage(),
            relay,
        }
    }

    /// A stand-in for a channel of another process, where it has this id. Messages from this process's workers are kept
    /// here until they are [taken](Channel::take_now) and [given](Channel::give) to that channel. `tell` is called when
    /// there are messages. It may be called in any thread and must not block.
    pub fn of_other(id: u64, tell: impl Fn(&Channel) + Send + Sync + 'static) -> Arc<Attachment> {
        Attachment::of_channel(id, &Arc::new(Channel::new(Some(Box::new(tell)))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends messages. Does not block, and runs no code of the user's.
    pub(crate) fn put(&self, batch: Batch) -> Put {
        let mut state = self.lock();
        if state.is_closed || state.is_over {
            return Put::Closed;
        }
        state.unread += batch.size();
        state.batches.push_back(batch);
        if state.waiting > 0 || state.waker.is_some() || self.relay.is_some() {
            Put::Awaited
        } else {
            Put::Quietly
        }
    }

    /// Wakes waiting threads and the waiting future.
    pub fn wake(&self) {
        match &self.relay {
            Some(tell) => tell(self),
            None => {
                self.changed.notify_all();
                let waker = self.lock().waker.take();
                waker.into_iter().for_each(wake);
            }
        }
    }

    /// Arranges for `waker`, instead of the one before, to be woken when there are messages or the last sender is gone.
    /// Returns false if that is already the case.
    pub fn wake_when_there_is_more(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        if !state.batches.is_empty() || state.is_over || !self.is_ours() {
            return false;
        }
        state.waker = Some(waker.clone());
        true
    }

    /// Takes all messages in the queue.
    pub fn take_now(&self) -> VecDeque<Batch> {
        let mut state = self.lock();
        state.unread = 0;
        std::mem::take(&mut state.batches)
    }

    /// The number of bytes in the queue.
    pub(crate) fn unread(&self) -> u64 {
        self.lock().unread
    }

    /// Drops `credit` once everything now in the queue has been read.
    pub(crate) fn owe(&self, credit: Credit) {
        let mut state = self.lock();
        let owed = Paid::Worker(credit);
        match state.batches.back_mut() {
            Some(last) => last.also_paid.push(owed),
            None => {
                drop(state);
                drop(owed);
            }
        }
    }

    /// Appends messages from [another process](Channel::of_other), encoded by [`Batch::to_bytes`]. `read` is called when they
    /// have been read, or will not be read. Returns false if the receiver is gone.
    pub fn give(&self, mut bytes: Vec<u8>, read: impl FnOnce() + Send + 'static) -> bool {
        let is_alone = bytes.pop() == Some(ALONE);
        let put = self.put(Batch {
            framed: if is_alone {
                Framed::Alone(bytes.into())
            } else {
                Framed::Many(bytes)
            },
            at: 0,
            paid: Paid::Other(Told(Some(Box::new(read)))),
            also_paid: Vec::new(),
        });
        if put == Put::Awaited {
            self.wake();
        }
        put != Put::Closed
    }

    /// Ends the channel: the last sender is gone.
    fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        // The thread that dropped the last sender may hold a lock that the future needs.
        if let Some(waker) = waker {
            let woken = waker.clone();
            let name = "pool-channel-end".to_owned();
            let thread = thread::Builder::new().name(name).stack_size(STACK);
            if thread.spawn(move || wake(woken)).is_err() {
                wake(waker);
            }
        }
    }

    /// Closes the channel: the receiver is gone. Returns the messages that were not received.
    pub fn close(&self) -> VecDeque<Batch> {
        let mut state = self.lock();
        state.is_closed = true;
        std::mem::take(&mut state.batches)
    }

    /// Whether this is the process of the channel, and no forked copy of it.
    pub fn is_ours(&self) -> bool {
        lineage() == self.owner
    }

    /// Takes the next batch of messages; waits for one until the deadline.
    pub fn take(&self, deadline: Option<Instant>) -> Taken {
        let mut state = self.lock();
        loop {
            if let Some(batch) = state.batches.pop_front() {
                state.unread = state.unread.saturating_sub(batch.size());
                return Taken::Some(batch);
            }
            if state.is_over || !self.is_ours() {
                return Taken::Over;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state.waiting += 1;
            state = match left {
                Some(left) if left.is_zero() => {
                    state.waiting -= 1;
                    return Taken::Late;
                }
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
            state.waiting -= 1;
        }
    }
}

/// Messages that arrived together.
#[derive(Debug)]
pub struct Batch {
    framed: Framed,
    /// The number of bytes that were read.
    at: usize,
    /// Lets the sender send more once all is read.
    paid: Paid,
    /// The same for batches that were joined to this one.
    also_paid: Vec<Paid>,
}

/// Dropped when messages have been read.
#[derive(Debug)]
enum Paid {
    Nobody,
    Worker(#[expect(dead_code, reason = "its drop is its use")] Credit),
    Other(#[expect(dead_code, reason = "its drop is its use")] Told),
}

/// Calls the function when it is dropped.
struct Told(Option<Box<dyn FnOnce() + Send>>);

impl Drop for Told {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            tell();
        }
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

/// The last byte of the result of [`Batch::to_bytes`].
const MANY: u8 = 0;
const ALONE: u8 = 1;

impl From<Messages> for Batch {
    fn from(messages: Messages) -> Batch {
        Batch {
            framed: messages.bytes,
            at: 0,
            paid: Paid::Worker(messages.credit),
            also_paid: Vec::new(),
        }
    }
}

impl Batch {
    /// Appends another batch. Returns it instead if one of the two is a single long message, or if together they would
    /// have more than `most` bytes.
    pub fn join(&mut self, other: Batch, most: usize) -> Option<Batch> {
        match (&mut self.framed, &other.framed) {
            (Framed::Many(bytes), Framed::Many(others)) if bytes.len() + others.len() <= most => {
                bytes.extend_from_slice(others);
                self.also_paid.push(other.paid);
                self.also_paid.extend(other.also_paid);
                None
            }
            _ => Some(other),
        }
    }

    /// The messages as one byte string, for another process.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.framed {
            Framed::Many(bytes) => [bytes, &[MANY][..]].concat(),
            Framed::Alone(bytes) => [bytes, &[ALONE][..]].concat(),
        }
    }

    /// The size in bytes.
    fn size(&self) -> u64 {
        match &self.framed {
            Framed::Many(bytes) => bytes.len() as u64,
            Framed::Alone(bytes) => bytes.len() as u64,
        }
    }

    /// Returns the next message.
    #[inline]
    pub fn pop(&mut self) -> Option<&[u8]> {
        match &self.framed {
            Framed::Many(bytes) => {
                let rest = bytes.get(self.at..)?;
                let (word, rest) = rest.split_first_chunk::<WORD>()?;
                let word = u32::from_le_bytes(*word) & !MESSAGE;
                let (len, _) = read_word(word.to_le_bytes());
                self.at += WORD + len;
                rest.get(ID..len)
            }
            Framed::Alone(bytes) if self.at == 0 => {
                self.at = bytes.len();
                bytes.get(ID..)
            }
            Framed::Alone(_) => None,
        }
    }
}

// ---- sending --------------------------------------------------------------------------------------

/// The sending end of a channel.
#[derive(Debug, Clone)]
pub enum Link {
    /// In the process of the channel.
    Here {
        /// The channel.
        channel: Arc<Channel>,
        /// Passes the channel on to workers. `None` in a task that runs in this process: it must not pass the link on.
        attachment: Option<Arc<Attachment>>,
    },
    /// In a worker.
    There {
        /// The id of the channel.
        id: u64,
        /// Its place among the worker's channels.
        place: u8,
    },
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum SendError {
    /// It can't be encoded.
    Encode(String),
    /// The receiver is gone.
    Closed,
}

/// The ring of replies, through which a worker sends messages, and the worker's lineage.
static REPLIES: OnceLock<(Replies, u32)> = OnceLock::new();
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// Called once in a worker, before it runs tasks.
pub(crate) fn install(replies: Replies, lineage: u32) {
    let _ = REPLIES.set((replies, lineage));
}

/// Called when a worker has received a channel: the channel's place, and the number of bytes that count as already
/// sent.
pub(crate) fn has_come(place: u8, start: u64) {
    if let Some(outlet) = outlet() {
        outlet.begin(place, start);
    }
}

/// The outlet of this worker; `None` if this process is no worker.
fn outlet() -> Option<&'static Outlet> {
    let (replies, owner) = REPLIES.get()?;
    // A process that a task has forked must not write into the worker's ring.
    (lineage() == *owner).then(|| OUTLET.get_or_init(|| Outlet::new(replies)))
}

impl Link {
    /// Sends the message that `encode` appends. In a worker, it blocks while too many bytes are unread.
    ///
    /// # Errors
    ///
    /// If the message can't be encoded, or the receiver is gone.
    pub fn send(
        &self,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
    ) -> Result<(), SendError> {
        let mut bytes = BUFFER.take();
        bytes.clear();
        let mark = match self {
            Link::Here { .. } => 0,
            Link::There { id, place } => mark(*id, *place),
        };
        bytes.extend_from_slice(&mark.to_le_bytes());
        let encoded = encode(&mut bytes).map_err(|error| {
            let why = error.to_string();
            SendError::Encode(why.replace(OTHER, "a channel does not support it"))
        });
        let sent = encoded.and_then(|()| match self {
            Link::Here { channel, .. } => channel.put_one(std::mem::take(&mut bytes)),
            Link::There { id, place } => match outlet() {
                Some(outlet) => outlet
                    .send(*id, *place, &bytes)
                    .map_err(|Gone| SendError::Closed),
                None => Err(SendError::Closed),
            },
        });
        if bytes.capacity() <= KEEP {
            BUFFER.set(bytes);
        }
        sent
    }

    /// Serializes the id of the channel, and attaches the channel to what is being encoded.
    ///
    /// # Errors
    ///
    /// If the data is not for a worker, or if this process itself got the link as a task's argument.
    pub fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Link::Here {
            attachment: Some(attachment),
            ..
        } = self
        else {
            return Err(ser::Error::custom(
                "a task can't pass its `Sender` on to another process: create a new channel in the task",
            ));
        };
        if !attach::is_collecting() {
            return Err(ser::Error::custom(
                "a `Sender` can only be sent to the workers of a pool, as an argument of a task or inside one",
            ));
        }
        attach::refer_to(attachment);
        to.serialize_u64(attachment.id())
    }

    /// Finds the channel by the id that was serialized.
    ///
    /// # Errors
    ///
    /// If it is not deserialized as a task's argument.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Link, D::Error> {
        let id = u64::deserialize(from)?;
        let attached = attach::find(id).map_err(de::Error::custom)?;
        if let Some(channel) = attached.channel() {
            return Ok(Link::Here {
                channel: Arc::clone(channel),
                attachment: None,
            });
        }
        match (outlet(), attached.place()) {
            (Some(_), Some(place)) => Ok(Link::There { id, place }),
            _ => Err(de::Error::custom(
                "a `Sender` can only be received in a worker",
            )),
        }
    }
}

impl Channel {
    /// Puts one message from this process into the channel.
    fn put_one(&self, bytes: Vec<u8>) -> Result<(), SendError> {
        let put = self.put(Batch {
            framed: Framed::Alone(bytes.into()),
            at: 0,
            paid: Paid::Nobody,
            also_paid: Vec::new(),
        });
        match put {
            Put::Quietly => Ok(()),
            Put::Awaited => {
                self.wake();
                Ok(())
            }
            Put::Closed => Err(SendError::Closed),
        }
    }
}

/// Buffers larger than this, in bytes, are freed after use.
const KEEP: usize = 64 << 10;

thread_local! {
    static BUFFER: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}
