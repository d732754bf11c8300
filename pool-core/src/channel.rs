//! [`channel`]: messages that tasks send while they run.

use std::collections::VecDeque;
use std::fmt;
use std::iter::{self, FusedIterator};
use std::marker::PhantomData;
#[cfg(feature = "futures")]
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex};
#[cfg(feature = "futures")]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pool_worker::{Batch, Channel, CodecError, Link, SendError, Taken};
use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde::ser::{Serialize, Serializer};

use crate::error::{Codec, Error, Place, Side, Verb};
use crate::sync::{self, lock};

/// Creates a channel through which tasks send values while they run: their progress, or parts of their results. It does what
/// Python's `Queue` does.
///
/// Pass the [`Sender`] to tasks like any other argument. The [`Receiver`] stays in this process and is an iterator. It ends when
/// nothing can send any more: all senders in this process have been dropped, and every input that was given one has its outcome,
/// even if its worker died. So drop your own sender before you wait for the end:
///
/// | what keeps a channel open | until |
/// |---|---|
/// | a [`Sender`] in this process, a clone of it, an iterator of inputs that clones it | it is dropped |
/// | a [`Call`](crate::Call) to which one is [bound](crate::Call::partial) | it is dropped |
/// | an input that was given one | it has its outcome |
/// | a pool whose initializer or finalizer was given one | its workers are gone: [`join`](crate::Pool::join) has returned |
///
/// The messages of one input arrive in order, and before its outcome. Messages that were sent before a worker died arrive as well,
/// and an input that is run again sends again. Messages of different inputs are interleaved.
///
/// # A slow reader
///
/// Each worker may have 1 MiB of unread messages in a channel, counted encoded, plus about 16 bytes for each message. Beyond that,
/// [`send`](Sender::send) blocks and holds up its task, but nothing else. If tasks may send more than that, do not wait for them in
/// the thread that reads their messages: read in another thread, or use [`map_async`](crate::Pool::map_async) and its relatives.
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
/// None at present. The `Result` leaves room for channels that need resources of the operating system.
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
        here: Mutex::default(),
        changed: Condvar::new(),
        value: PhantomData,
    };
    Ok((sender, receiver))
}

/// The sending end of a [`channel`], which is passed to tasks.
///
/// Clones send into the same channel. A task may send from any of its threads while it runs. Messages from a thread that outlives its
/// task may be lost.
///
/// An [initializer](crate::PoolBuilder::initializer) may keep one for all tasks of its worker; then the channel ends with the
/// pool. A task can't pass it on to a pool of its own.
pub struct Sender<T> {
    link: Link,
    value: PhantomData<fn(T)>,
}

impl<T> Sender<T> {
    /// Sends a value. In a task, this blocks while the receiver has too much to read: see [`channel`]. In the receiver's own process
    /// it never blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if the receiver was dropped (a task may notice this a few messages later); [`Error::Encode`] if the
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

/// The receiving end of a [`channel`]: an iterator that blocks until the next message arrives, and ends when nothing can send any more.
///
/// The iterator skips messages that can't be decoded, which happens if a type does not read what it has written;
/// [`recv`](Receiver::recv) and its relatives return an error for them.
///
/// Dropping it closes the channel: [`Sender::send`] then returns [`Error::Disconnected`].
pub struct Receiver<T> {
    channel: Arc<Channel>,
    here: Mutex<Here>,
    /// There are messages here, or nobody fetches any.
    changed: Condvar,
    value: PhantomData<fn() -> T>,
}

/// What was taken from the channel. Threads that share a receiver share this: they arrive in batches.
#[derive(Default)]
struct Here {
    batches: VecDeque<Batch>,
    /// A thread waits for the channel; others wait for that thread.
    fetching: bool,
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// [`Error::Disconnected`] if all messages have been read and nothing can send any more; [`Error::Decode`] if this message can't be
    /// decoded (the next one may be fine).
    pub fn recv(&self) -> Result<T, Error> {
        self.receive(None)
    }

    /// Returns the next message if it has arrived, without waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if there is no message yet; otherwise as [`recv`](Receiver::recv).
    pub fn try_recv(&self) -> Result<T, Error> {
        self.receive(Some(Instant::now()))
    }

    /// Waits for the next message, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if none arrives in time; otherwise as [`recv`](Receiver::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.receive(Instant::now().checked_add(timeout))
    }

    /// Iterates over the messages by reference. Like the receiver itself, it waits for each message, and skips those that can't be
    /// decoded.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        iter::from_fn(|| self.next_decoded(None).ok())
    }

    /// Iterates over the messages that have already arrived, without waiting for more.
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
        let mut here = lock(&self.here);
        loop {
            if let Some(message) = here.next() {
                return message;
            }
            if here.fetching {
                // In a forked copy of the process, nobody does.
                if !self.channel.is_ours() {
                    return Err(Error::Disconnected);
                }
                let (guard, in_time) = sync::wait(&self.changed, here, deadline);
                here = guard;
                if !in_time {
                    return Err(Error::Timeout);
                }
                continue;
            }
            here.fetching = true;
            drop(here);
            let taken = self.channel.take(deadline);
            here = lock(&self.here);
            here.fetching = false;
            // If this thread leaves without messages, another one fetches.
            self.changed.notify_all();
            match taken {
                Taken::Some(batch) => here.batches.push_back(batch),
                Taken::Late => return Err(Error::Timeout),
                Taken::Over => return Err(Error::Disconnected),
            }
        }
    }
}

impl Here {
    fn next<T: DeserializeOwned>(&mut self) -> Option<Result<T, Error>> {
        loop {
            if let Some(message) = self.batches.front_mut()?.pop() {
                let decoded = pool_worker::decode(message);
                let failed = |error: CodecError| codec(Verb::Decode, error.to_string());
                return Some(decoded.map_err(|error| Error::Decode(failed(error))));
            }
            self.batches.pop_front();
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
    /// Turns the receiver into a stream, for async programs. Needs the feature `futures` of this crate.
    pub fn stream(self) -> ReceiverStream<T> {
        ReceiverStream(self)
    }
}

/// The messages of a channel as a [`Stream`](futures_core::Stream): see [`Receiver::stream`].
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
                // If a message has arrived meanwhile, the next look finds it.
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
