//! Data that is too long for a message is kept in the object store of the run.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{self, Arc, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions, ObjectStore};
use async_nats::jetstream::stream::Stream;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures_util::future::join_all;
use pool_core::backend::{Attachment, Channel};
use serde::de::IgnoredAny;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;
use tokio::time;

use crate::link;
use crate::relay::Relays;
use crate::wire::{Body, Object, Reference};

/// Data longer than this, in bytes, goes into the object store.
const INLINE_MAX: usize = 256 << 10;

/// The length of the chunks of an object, in bytes.
const CHUNK_MAX: usize = 512 << 10;

/// How long a read waits for the next part of an object.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many chunks are in transit at once.
const CHUNKS_MAX: usize = 8;

/// How long to wait before trying again to store data.
const AGAIN: Duration = Duration::from_millis(250);

/// The most bytes of memory that are reserved because of the size that an object claims. Beyond that, memory grows as bytes
/// arrive.
const RESERVE_MAX: usize = 64 << 20;

/// The object store, as one process uses it.
#[derive(Clone)]
pub(crate) struct Store {
    client: Client,
    jetstream: Context,
    objects: ObjectStore,
    /// The stream that holds the objects.
    stream: Stream<()>,
    bucket: String,
    /// How long to keep trying.
    patience: Duration,
    attachments: Arc<Mutex<HashMap<u64, Kept>>>,
    /// The channels of this process, if it is the parent. Kept apart from `attachments`, whose lock is held while one
    /// is stored.
    channels: Arc<sync::Mutex<HashMap<u64, Arc<Channel>>>>,
    /// The epoch, and the number of connections when it began.
    epoch: Arc<sync::Mutex<(u64, u64)>>,
}

impl Store {
    pub(crate) async fn new(
        client: Client,
        jetstream: Context,
        bucket: String,
        patience: Duration,
        epoch: u64,
    ) -> Result<Store, String> {
        let no =
            |error: &dyn fmt::Display| format!("can't open the object store `{bucket}`: {error}");
        let objects = jetstream.get_object_store(&bucket).await;
        let objects = objects.map_err(|error| no(&error))?;
        let stream = jetstream.get_stream_no_info(format!("OBJ_{bucket}")).await;
        let stream = stream.map_err(|error| no(&error))?;
        let connects = link::connects(&client);
        Ok(Store {
            client,
            jetstream,
            objects,
            stream,
            bucket,
            patience,
            attachments: Arc::default(),
            channels: Arc::default(),
            epoch: Arc::new(sync::Mutex::new((epoch, connects))),
        })
    }

    fn failed(&self, what: &str, name: &str, error: impl fmt::Display) -> io::Error {
        let bucket = &self.bucket;
        io::Error::other(format!(
            "can't {what} `{name}` in the object store `{bucket}`: {error}"
        ))
    }

    /// How many bytes a message may carry outside the store. The server's limit (1 MiB by default) applies to the whole
    /// message.
    pub(crate) fn room(&self) -> usize {
        INLINE_MAX.min(self.client.max_payload() / 2)
    }

    /// Message numbers belong to this epoch as long as no further connection is made than the `connects`-th.
    pub(crate) fn set_epoch(&self, epoch: u64, connects: u64) {
        let mut current = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (epoch, connects);
    }

    /// The current epoch, or `None` if there was another connection since, so the server may have been restarted.
    fn epoch(&self) -> Option<u64> {
        let (epoch, connects) = *self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        (connects == link::connects(&self.client)).then_some(epoch)
    }

    /// Stores bytes under a unique name. Keeps trying while the server is unreachable or its disk is full.
    async fn put(&self, name: &str, bytes: &[u8]) -> io::Result<Object> {
        let mut began = Instant::now();
        loop {
            // A chunk of an earlier attempt may still be stored after it was given up: it must not get among these.
            let mut object = Object {
                name: name.to_owned(),
                nuid: nuid::next().to_string(),
                messages: Vec::new(),
                epoch: self.epoch(),
            };
            let stored = self.put_once(&mut object, bytes).await;
            if self.epoch() != object.epoch {
                object.epoch = None;
            }
            let Err(error) = stored else {
                return Ok(object);
            };
            self.delete(&object).await;
            // Parts that were not acknowledged may be stored as well.
            self.purge(&object).await;
            if self.client.connection_state() != State::Connected {
                began = Instant::now();
            }
            if began.elapsed() >= self.patience {
                return Err(self.failed("store", name, error));
            }
            time::sleep(AGAIN).await;
        }
    }

    /// Does what async-nats does, except that chunks are acknowledged concurrently, that the message numbers of an
    /// object are known, so that they can be deleted even if it can't be stored in full, and that no digest is
    /// computed.
    async fn put_once(&self, object: &mut Object, bytes: &[u8]) -> Result<(), PublishError> {
        let chunk_size = CHUNK_MAX.min(self.client.max_payload());
        let mut unacknowledged = VecDeque::new();
        for chunk in bytes.chunks(chunk_size) {
            let subject = self.chunks(&object.nuid);
            let chunk = Bytes::copy_from_slice(chunk);
            unacknowledged.push_back(self.jetstream.publish(subject, chunk).await?);
            if unacknowledged.len() >= CHUNKS_MAX
                && let Some(oldest) = unacknowledged.pop_front()
            {
                object.messages.push(oldest.await?.sequence);
            }
        }
        for sent in unacknowledged {
            object.messages.push(sent.await?.sequence);
        }
        let info = ObjectInfo {
            name: object.name.clone(),
            bucket: self.bucket.clone(),
            nuid: object.nuid.clone(),
            size: bytes.len(),
            chunks: object.messages.len(),
            options: Some(ObjectOptions {
                link: None,
                max_chunk_size: Some(chunk_size),
            }),
            description: None,
            metadata: HashMap::new(),
            headers: None,
            modified: None,
            digest: None,
            deleted: false,
        };
        // Serializing plain data into a vector does not fail.
        let info = serde_json::to_vec(&info).unwrap_or_default();
        let subject = self.about(&object.name);
        let sent = self.jetstream.publish(subject, info.into()).await?;
        object.messages.push(sent.await?.sequence);
        Ok(())
    }

    /// Returns the subject of an object's chunks, by the layout of NATS object stores.
    fn chunks(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.bucket)
    }

    /// Returns the subject of an object's name and length.
    fn about(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name))
    }

    async fn get(&self, name: &str) -> io::Result<Vec<u8>> {
        let object = self.objects.get(name).await;
        let mut object = object.map_err(|error| self.failed("read", name, error))?;
        let size = object.info.size;
        let mut bytes = Vec::with_capacity(size.min(RESERVE_MAX));
        // Without the timeout, reading a deleted object would wait forever.
        while bytes.len() < size {
            let read = time::timeout(PATIENCE, object.read_buf(&mut bytes)).await;
            let read = read.map_err(|late| self.failed("read", name, late))?;
            if read.map_err(|error| self.failed("read", name, error))? == 0 {
                break;
            }
        }
        if bytes.len() != size {
            return Err(self.failed("read", name, "it has the wrong length"));
        }
        Ok(bytes)
    }

    /// Fetches a result. It is known to be stored, so this keeps trying while the server is unreachable.
    pub(crate) async fn fetch_result(&self, name: &str) -> io::Result<Vec<u8>> {
        let began = Instant::now();
        loop {
            match self.get(name).await {
                Err(_) if began.elapsed() < self.patience => time::sleep(AGAIN).await,
                fetched => return fetched,
            }
        }
    }

    /// Deletes an object. If that fails, the object is deleted with the run.
    pub(crate) async fn delete(&self, object: &Object) {
        if object.epoch.is_none() || object.epoch != self.epoch() {
            return self.purge(object).await;
        }
        // Message by message, since nats-server 2.9 counts purged messages as used storage forever.
        let subject = format!("STREAM.MSG.DELETE.OBJ_{}", self.bucket);
        let deleted = object.messages.iter().map(async |number| {
            let message = serde_json::json!({ "seq": number, "no_erase": true });
            let deleted = self.jetstream.request(subject.clone(), &message).await;
            let _: Result<IgnoredAny, _> = deleted;
        });
        join_all(deleted).await;
    }

    async fn purge(&self, object: &Object) {
        for subject in [self.about(&object.name), self.chunks(&object.nuid)] {
            let _ = self.stream.purge().filter(subject).await;
        }
    }

    /// Puts bytes into a message that has `room` left, or else into the store under this name.
    pub(crate) async fn pack(
        &self,
        bytes: Vec<u8>,
        room: &mut usize,
        name: impl FnOnce() -> String,
    ) -> io::Result<Body> {
        if let Some(left) = room.checked_sub(bytes.len()) {
            *room = left;
            return Ok(Body::Here(bytes));
        }
        let name = name();
        Ok(Body::Stored(self.put(&name, &bytes).await?))
    }

    /// Returns the bytes of a message.
    pub(crate) async fn unpack(&self, body: Body) -> io::Result<Vec<u8>> {
        match body {
            Body::Here(bytes) => Ok(bytes),
            Body::Stored(object) => self.get(&object.name).await,
        }
    }

    /// Makes sure that an attachment, and everything it holds, is in the store. Calls `dropped` once it has no holders.
    pub(crate) async fn share(
        &self,
        attachment: &Arc<Attachment>,
        dropped: impl Fn(u64) + Clone + Send + 'static,
    ) -> io::Result<Reference> {
        // The lock is held throughout, so that each is stored only once.
        let mut known = self.attachments.lock().await;
        let mut todo = vec![Arc::clone(attachment)];
        while let Some(next) = todo.pop() {
            if known.contains_key(&next.id()) {
                continue;
            }
            let kept = match next.channel() {
                Some(channel) => {
                    self.channels().insert(next.id(), Arc::clone(channel));
                    Kept::Channel
                }
                None => {
                    let bytes = next.bytes()?;
                    Kept::There(self.put(&Reference::to(&next).object(), &bytes).await?)
                }
            };
            next.on_drop(dropped.clone());
            known.insert(next.id(), kept);
            todo.extend(next.holds().iter().map(Arc::clone));
        }
        Ok(Reference::to(attachment))
    }

    /// Returns the channel of this process with this id.
    pub(crate) fn channel(&self, id: u64) -> Option<Arc<Channel>> {
        self.channels().get(&id).cloned()
    }

    fn channels(&self) -> sync::MutexGuard<'_, HashMap<u64, Arc<Channel>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the attachment, in this machine's memory.
    pub(crate) async fn fetch(
        &self,
        reference: &Reference,
        relays: &Relays,
    ) -> io::Result<Arc<Attachment>> {
        let mut here = self.attachments.lock().await;
        // What an attachment holds comes before the attachment.
        let mut todo = vec![(reference, false)];
        while let Some((next, is_complete)) = todo.pop() {
            if here.contains_key(&next.id) {
                continue;
            }
            if !is_complete {
                todo.push((next, true));
                todo.extend(next.holds.iter().map(|held| (held, false)));
                continue;
            }
            if next.is_channel {
                here.insert(next.id, Kept::Here(relays.open(self, next.id)));
                continue;
            }
            let bytes = self.get(&next.object()).await?;
            let holds = next.holds.iter();
            let holds = holds.filter_map(|held| here.get(&held.id)?.attachment());
            let made = Attachment::with_id(next.id, &[&bytes], holds.collect())?;
            here.insert(next.id, Kept::Here(made));
        }
        let found = here.get(&reference.id).and_then(Kept::attachment);
        found.ok_or_else(|| io::Error::other("an attachment is missing"))
    }

    /// Forgets an attachment that has no holders.
    pub(crate) async fn forget(&self, id: u64) {
        self.channels().remove(&id);
        let kept = self.attachments.lock().await.remove(&id);
        if let Some(Kept::There(object)) = kept {
            self.delete(&object).await;
        }
    }
}

/// Where an attachment is.
enum Kept {
    /// In the store: this process is the parent.
    There(Object),
    /// In memory: this process is a node.
    Here(Arc<Attachment>),
    /// A channel of this process, which is the parent.
    Channel,
}

impl Kept {
    fn attachment(&self) -> Option<Arc<Attachment>> {
        match self {
            Kept::There(_) | Kept::Channel => None,
            Kept::Here(attachment) => Some(Arc::clone(attachment)),
        }
    }
}
