//! Channels: what tasks send while they run.
//!
//! A channel is an [`Attachment`] without bytes: whoever holds that may send, or gives it to a task that may. So it is known
//! when nobody can any more: see [`Attachment::on_drop`]. What a worker sends stands in its ring of replies (`ring`, *Messages*);
//! whoever collects that puts it into the [`Channel`], where the receiver takes it.

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

/// Wakes a user's future. The waker may panic, and this may be a thread that others need.
pub fn wake(waker: Waker) {
    let woken = panic::catch_unwind(AssertUnwindSafe(|| waker.wake()));
    if let Err(payload) = woken {
        std::mem::forget(payload);
    }
}

/// In front of each message: the id of its channel, and the place of that.
const ID: usize = size_of::<u64>();

// ---- where messages arrive ------------------------------------------------------------------------

/// Where the messages of one channel wait for their receiver.
pub struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    /// A forked copy of this process gets no messages.
    owner: u32,
    /// Told of messages, if they are for another process.
    relay: Option<Relay>,
}

type Relay = Box<dyn Fn(&Channel) + Send + Sync>;

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    /// How many bytes that is.
    unread: u64,
    /// How many threads wait for one.
    waiting: usize,
    /// The future that does.
    waker: Option<Waker>,
    /// Nobody can send any more.
    is_over: bool,
    /// Nobody receives any more.
    is_closed: bool,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel")
    }
}

/// What became of messages that were put into a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// Nobody waits for them.
    Quietly,
    /// Somebody does, and is to be [woken](Channel::wake).
    Awaited,
    /// Nobody will ever read them.
    Closed,
}

/// What comes of waiting for messages.
#[derive(Debug)]
pub enum Taken {
    /// There are some.
    Some(Batch),
    /// There were none in time.
    Late,
    /// There are none, and nobody can send any more.
    Over,
}

impl Channel {
    /// A channel, and what may send into it.
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

    /// The same as one of another process, which has this id there: what workers of this process send into it is kept here, until it is
    /// [taken](Channel::take_now) to be [given](Channel::give) to that one. `tell` is called when there is something, in any
    /// thread, which it must not hold up.
    pub fn of_other(id: u64, tell: impl Fn(&Channel) + Send + Sync + 'static) -> Arc<Attachment> {
        Attachment::of_channel(id, &Arc::new(Channel::new(Some(Box::new(tell)))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts messages behind the others. Does not wait, and runs nothing of the user's.
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

    /// Wakes those who wait.
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

    /// Has this waker woken, instead of the one before, when there are messages, or nobody can send any more. False: that is so.
    pub fn wake_when_there_is_more(&self, waker: &Waker) -> bool {
        let mut state = self.lock();
        if !state.batches.is_empty() || state.is_over || lineage() != self.owner {
            return false;
        }
        state.waker = Some(waker.clone());
        true
    }

    /// All messages that are there.
    pub fn take_now(&self) -> VecDeque<Batch> {
        let mut state = self.lock();
        state.unread = 0;
        std::mem::take(&mut state.batches)
    }

    /// How many bytes wait here.
    pub(crate) fn unread(&self) -> u64 {
        self.lock().unread
    }

    /// This is to be paid when all is read that waits here now.
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

    /// Puts messages of [another process](Channel::of_other) behind the others, as [`Batch::to_bytes`] has written them. `read` is called
    /// when they are read, or nobody will ever read them. False: that is so.
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

    /// Nobody can send any more.
    fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        // Whoever has dropped the last sender may have a lock that the future wants.
        if let Some(waker) = waker {
            let woken = waker.clone();
            let name = "pool-channel-end".to_owned();
            let thread = thread::Builder::new().name(name).stack_size(STACK);
            if thread.spawn(move || wake(woken)).is_err() {
                wake(waker);
            }
        }
    }

    /// Nobody receives any more. Gives what was not received.
    pub fn close(&self) -> VecDeque<Batch> {
        let mut state = self.lock();
        state.is_closed = true;
        std::mem::take(&mut state.batches)
    }

    /// The next messages that came together; waits for some, but not beyond the deadline.
    pub fn take(&self, deadline: Option<Instant>) -> Taken {
        let mut state = self.lock();
        loop {
            if let Some(batch) = state.batches.pop_front() {
                state.unread = state.unread.saturating_sub(batch.size());
                return Taken::Some(batch);
            }
            if state.is_over || lineage() != self.owner {
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

/// Messages that came together.
#[derive(Debug)]
pub struct Batch {
    framed: Framed,
    /// How much of that was read.
    at: usize,
    /// Whoever has sent them may send more once all is read.
    paid: Paid,
    /// The same of those that were joined to them.
    also_paid: Vec<Paid>,
}

/// What is dropped when messages were read.
#[derive(Debug)]
enum Paid {
    Nobody,
    Worker(#[expect(dead_code, reason = "its drop is its use")] Credit),
    Other(#[expect(dead_code, reason = "its drop is its use")] Told),
}

/// Tells when it is dropped.
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

/// The last byte of what [`Batch::to_bytes`] writes.
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
    /// Puts others behind these, unless one of both is a single long message, or there would be more than so many bytes: then they are given
    /// back.
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

    /// All of them as one byte string, for another process.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.framed {
            Framed::Many(bytes) => [bytes, &[MANY][..]].concat(),
            Framed::Alone(bytes) => [bytes, &[ALONE][..]].concat(),
        }
    }

    /// How many bytes they are.
    fn size(&self) -> u64 {
        match &self.framed {
            Framed::Many(bytes) => bytes.len() as u64,
            Framed::Alone(bytes) => bytes.len() as u64,
        }
    }

    /// Shows the next message.
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

// ---- who sends ------------------------------------------------------------------------------------

/// What may send into a channel.
#[derive(Debug, Clone)]
pub enum Link {
    /// In the process of the channel.
    Here {
        /// The channel.
        channel: Arc<Channel>,
        /// By which workers get it; none, in a task that runs in this process: it was given the link for itself alone.
        attachment: Option<Arc<Attachment>>,
    },
    /// In a worker.
    There {
        /// The id of the channel.
        id: u64,
        /// Its place among those of the worker.
        place: u8,
    },
}

/// Why something was not sent.
#[derive(Debug)]
pub enum SendError {
    /// It can't be encoded.
    Encode(String),
    /// Nobody receives any more.
    Closed,
}

/// What a worker sends by.
static REPLIES: OnceLock<(Replies, u32)> = OnceLock::new();
static OUTLET: OnceLock<Outlet> = OnceLock::new();

/// This process is a worker, of this lineage.
pub(crate) fn install(replies: Replies, lineage: u32) {
    let _ = REPLIES.set((replies, lineage));
}

/// This worker has a channel: it has this place, and so much counts as sent there already.
pub(crate) fn has_come(place: u8, start: u64) {
    if let Some(outlet) = outlet() {
        outlet.begin(place, start);
    }
}

/// What the worker sends by, in the worker itself.
fn outlet() -> Option<&'static Outlet> {
    let (replies, owner) = REPLIES.get()?;
    // A copy of it that a task has made must not write into the same ring.
    (lineage() == *owner).then(|| OUTLET.get_or_init(|| Outlet::new(replies)))
}

impl Link {
    /// Sends what `encode` appends. In a worker it waits while the receiver has too much to read.
    ///
    /// # Errors
    ///
    /// If that can't be encoded, or nobody receives any more.
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
            SendError::Encode(why.replace(OTHER, "a channel does not carry it"))
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

    /// What travels in its place.
    ///
    /// # Errors
    ///
    /// If it does not travel to a worker, or came to this process as a task's argument itself.
    pub fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Link::Here {
            attachment: Some(attachment),
            ..
        } = self
        else {
            return Err(ser::Error::custom(
                "a `Sender` that a task was given can't be passed on to another process: make a channel of the task's own",
            ));
        };
        if !attach::is_collecting() {
            return Err(ser::Error::custom(
                "a `Sender` travels to workers of a pool only, as an argument of a task or in one",
            ));
        }
        attach::refer_to(attachment);
        to.serialize_u64(attachment.id())
    }

    /// What came in its place.
    ///
    /// # Errors
    ///
    /// If it is not a task's argument.
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
            _ => Err(de::Error::custom("a `Sender` came to what is no worker")),
        }
    }
}

impl Channel {
    /// One message, from this process.
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

/// A larger buffer is given back after use, in bytes.
const KEEP: usize = 64 << 10;

thread_local! {
    static BUFFER: std::cell::Cell<Vec<u8>> = const { std::cell::Cell::new(Vec::new()) };
}
