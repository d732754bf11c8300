//! [`channel`]: what tasks send while they run.

use std::collections::VecDeque;
use std::fmt;
use std::iter::{self, FusedIterator};
use std::marker::PhantomData;
#[cfg(feature = "futures")]
use std::pin::Pin;
use std::sync::{Arc, Mutex};
#[cfg(feature = "futures")]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pool_worker::{Batch, Channel, CodecError, Link, SendError, Taken};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::error::{Codec, Error, Place, Side, Verb};
use crate::sync::lock;

/// A way for tasks to send something while they run: how far they are, parts of their results. What Python does with a
/// `Queue`.
///
/// The [`Sender`] is given to tasks like any other argument; the [`Receiver`] stays here, and is an iterator. It ends when
/// nobody can send any more: when the senders in this process are dropped, and all work that was given one has its outcome, be it
/// that its worker died. So drop the sender that you have kept before you wait for the end:
///
/// | who keeps a channel open | until |
/// |---|---|
/// | a [`Sender`] in this process, a clone of it, an iterator of inputs that clones it | it is dropped |
/// | a [`Call`](crate::Call) to which one is [bound](crate::Call::partial) | it is dropped |
/// | an input that was given one | it has its outcome |
/// | a pool whose initializer or finalizer was given one | its workers are gone: [`join`](crate::Pool::join) has returned |
///
/// What an input sends arrives in order, and before its outcome. What was sent before a worker died arrives, too; and an input that is
/// run again sends again. Messages of different inputs mix as they come.
///
/// # A slow reader
///
/// A worker may have one MiB of messages unread in each channel, encoded, with about 16 bytes more for each. Then
/// [`send`](Sender::send) waits, and with it the task; nothing else does. So do not wait for tasks in the thread that is to read what they
/// send, if that may be more: read in another thread, or use [`map_async`](crate::Pool::map_async) and the like.
///
/// ```no_run
/// # use pool_core::{Error, Pool, Sender, channel, pool_task};
/// # #[pool_task]
/// # fn search(part: u64, found: Sender<String>) {}
/// # fn main() -> Result<(), Error> {
/// # let pool = Pool::new()?;
/// let (sender, receiver) = channel()?;
/// let reader = std::thread::spawn(move || receiver.for_each(|found| println!("{found}")));
/// pool.starmap(search, (0..1000).map(|part| (part, sender.clone())))?;
/// drop(sender);
/// reader.join().expect("it does not panic");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// None at present: that it returns a `Result` leaves room for channels that need something of the system.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, Sender, channel, pool_task};
///
/// #[pool_task]
/// fn add_up(numbers: Vec<u64>, progress: Sender<usize>) -> Result<u64, Error> {
///     let mut sum = 0;
///     for (at, number) in numbers.iter().enumerate() {
///         sum += number;
///         progress.send(at + 1)?;
///     }
///     Ok(sum)
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// let (sender, receiver) = channel()?;
/// let result = pool.apply_async(add_up, (vec![10, 20, 30], sender));
/// assert_eq!(receiver.collect::<Vec<_>>(), [1, 2, 3]);
/// assert_eq!(result.get()??, 60);
/// # Ok(())
/// # }
/// ```
pub fn channel<T>() -> Result<(Sender<T>, Receiver<T>), Error> {
    let (channel, link) = Channel::open();
    let sender = Sender {
        link,
        value: PhantomData,
    };
    let receiver = Receiver {
        channel,
        batches: Mutex::default(),
        value: PhantomData,
    };
    Ok((sender, receiver))
}

/// The end of a [`channel`] that is given to tasks.
///
/// Clones send into the same channel. A task may send from any of its threads, as long as it runs: what a thread sends that a task has
/// left behind may be lost.
///
/// Given to an [initializer](crate::PoolBuilder::initializer), it may be kept for all tasks of the worker; then the channel ends with the
/// pool. A task can't pass it on to a pool of its own.
pub struct Sender<T> {
    link: Link,
    value: PhantomData<fn(T)>,
}

impl<T> Sender<T> {
    /// Sends a value. In a task it waits while the receiver has too much to read: see [`channel`]. In the process of the
    /// receiver it does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if the receiver was dropped. (A task learns of that some messages later.) [`Error::Encode`] if the
    /// value can't be encoded.
    pub fn send(&self, value: T) -> Result<(), Error>
    where
        T: Serialize,
    {
        let sent = self.link.send(|out| pool_worker::encode(&value, out));
        sent.map_err(|error| match error {
            SendError::Closed => Error::Disconnected,
            SendError::Encode(why) => Error::Encode(codec(Verb::Encode, why)),
        })
    }
}

fn codec(verb: Verb, why: String) -> Codec {
    Codec {
        place: Place {
            task: "channel".into(),
            index: None,
        },
        verb,
        what: Side::Message,
        why,
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender {
            link: self.link.clone(),
            value: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Serialize for Sender<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.link.serialize(to)
    }
}

impl<'de, T> Deserialize<'de> for Sender<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Sender {
            link: Link::deserialize(from)?,
            value: PhantomData,
        })
    }
}

/// The end of a [`channel`] where messages arrive: an iterator over them, which waits for each, and ends when nobody can send any more.
///
/// A message that can't be decoded, because its type does not read what it has written, is left out by the iterator;
/// [`recv`](Receiver::recv) and the others tell of it.
///
/// Dropped, it ends the channel: [`Sender::send`] gives [`Error::Disconnected`].
pub struct Receiver<T> {
    channel: Arc<Channel>,
    batches: Mutex<VecDeque<Batch>>,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if all are read and nobody can send any more; [`Error::Decode`] if it can't be decoded: go on with the next.
    pub fn recv(&self) -> Result<T, Error> {
        self.receive(None)
    }

    /// The next message, if it is there.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if it is not there yet; otherwise as [`recv`](Receiver::recv).
    pub fn try_recv(&self) -> Result<T, Error> {
        self.receive(Some(Instant::now()))
    }

    /// Waits for the next message, but no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if it is not there in time; otherwise as [`recv`](Receiver::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.receive(Instant::now().checked_add(timeout))
    }

    /// The messages, as [`recv`](Receiver::recv) gives them, without those that can't be decoded: for those who have no more than a
    /// reference.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        iter::from_fn(|| self.next_decoded(None).ok())
    }

    /// The messages that are there; it does not wait for others.
    pub fn try_iter(&self) -> impl Iterator<Item = T> {
        iter::from_fn(|| self.next_decoded(Some(Instant::now())).ok())
    }

    fn next_decoded(&self, deadline: Option<Instant>) -> Result<T, Error> {
        loop {
            match self.receive(deadline) {
                Err(Error::Decode(_)) => {}
                other => return other,
            }
        }
    }

    fn receive(&self, deadline: Option<Instant>) -> Result<T, Error> {
        loop {
            if let Some(message) = self.next_here() {
                return message;
            }
            // Other threads may share it, and are not held up by this one.
            match self.channel.take(deadline) {
                Taken::Some(batch) => lock(&self.batches).push_back(batch),
                Taken::Late => return Err(Error::Timeout),
                Taken::Over => return Err(Error::Disconnected),
            }
        }
    }

    /// The next of the messages that were taken already.
    fn next_here(&self) -> Option<Result<T, Error>> {
        let mut batches = lock(&self.batches);
        loop {
            if let Some(message) = batches.front_mut()?.pop() {
                let decoded = pool_worker::decode(message);
                let failed = |error: CodecError| codec(Verb::Decode, error.to_string());
                return Some(decoded.map_err(|error| Error::Decode(failed(error))));
            }
            batches.pop_front();
        }
    }
}

impl<T: DeserializeOwned> Iterator for Receiver<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.next_decoded(None).ok()
    }
}

impl<T: DeserializeOwned> FusedIterator for Receiver<T> {}

#[cfg(feature = "futures")]
impl<T: DeserializeOwned> Receiver<T> {
    /// The same as a stream, for async programs. Needs the feature `futures` of this crate.
    pub fn stream(self) -> ReceiverStream<T> {
        ReceiverStream(self)
    }
}

/// What [`Receiver::stream`] gives: the messages, as a [`Stream`](futures_core::Stream).
#[cfg(feature = "futures")]
#[must_use = "dropped, it ends the channel"]
#[derive(Debug)]
pub struct ReceiverStream<T>(Receiver<T>);

#[cfg(feature = "futures")]
impl<T: DeserializeOwned> futures_core::Stream for ReceiverStream<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            match self.0.next_decoded(Some(Instant::now())) {
                Ok(message) => return Poll::Ready(Some(message)),
                // If something has come meanwhile, it is there at the next look.
                Err(Error::Timeout) if self.0.channel.wake_when_there_is_more(context.waker()) => {
                    return Poll::Pending;
                }
                Err(Error::Timeout) => {}
                Err(_) => return Poll::Ready(None),
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        drop(self.channel.close());
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
