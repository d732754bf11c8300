//! What is too long for a message: in the object store of the run.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use async_nats::jetstream::object_store::{ObjectMetadata, ObjectStore};
use pool_core::backend::Attachment;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;

use crate::wire::{Body, Reference};

/// The length of what an object is cut into, in bytes: below the server's limit of a message, of 1 MiB by default.
const CHUNK: usize = 512 << 10;

/// Room for so many bytes is made because an object says that it is so long; then as they come.
const RESERVE_MAX: usize = 64 << 20;

/// The object store, as one process uses it.
#[derive(Clone)]
pub(crate) struct Store {
    objects: ObjectStore,
    /// The attachments that are there, in the parent; those that are here, in a node.
    attachments: Arc<Mutex<HashMap<u64, Option<Arc<Attachment>>>>>,
}

fn failed(what: &str, name: &str, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("the object store can't {what} `{name}`: {error}"))
}

impl Store {
    pub(crate) fn new(objects: ObjectStore) -> Store {
        Store {
            objects,
            attachments: Arc::default(),
        }
    }

    async fn put(&self, name: &str, mut bytes: &[u8]) -> io::Result<()> {
        let object = ObjectMetadata {
            name: name.to_owned(),
            chunk_size: Some(CHUNK),
            ..ObjectMetadata::default()
        };
        let put = self.objects.put(object, &mut bytes).await;
        put.map(drop).map_err(|error| failed("take", name, error))
    }

    async fn get(&self, name: &str) -> io::Result<Vec<u8>> {
        let object = self.objects.get(name).await;
        let mut object = object.map_err(|error| failed("give", name, error))?;
        let mut bytes = Vec::with_capacity(object.info.size.min(RESERVE_MAX));
        let read = object.read_to_end(&mut bytes).await;
        read.map_err(|error| failed("give", name, error))?;
        Ok(bytes)
    }

    /// Forgets an object. If that can't be, it goes with the run.
    pub(crate) async fn delete(&self, name: &str) {
        let _ = self.objects.delete(name).await;
    }

    /// Bytes as they go into a message that has `room`; in the store under this name, if there is not enough.
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
        self.put(&name, &bytes).await?;
        Ok(Body::Stored(name))
    }

    /// The bytes of a message.
    pub(crate) async fn unpack(&self, body: Body) -> io::Result<Vec<u8>> {
        match body {
            Body::Here(bytes) => Ok(bytes),
            Body::Stored(name) => self.get(&name).await,
        }
    }

    /// Sees to it that an attachment, and what it holds, is in the store. `dropped` is called when nobody holds it.
    pub(crate) async fn share(
        &self,
        attachment: &Arc<Attachment>,
        dropped: impl Fn(u64) + Clone + Send + 'static,
    ) -> io::Result<Reference> {
        // One after the other: each is stored once.
        let mut known = self.attachments.lock().await;
        let mut todo = vec![Arc::clone(attachment)];
        while let Some(next) = todo.pop() {
            if known.contains_key(&next.id()) {
                continue;
            }
            let bytes = next.bytes()?;
            self.put(&Reference::to(&next).object(), &bytes).await?;
            next.on_drop(dropped.clone());
            known.insert(next.id(), None);
            todo.extend(next.holds().iter().map(Arc::clone));
        }
        Ok(Reference::to(attachment))
    }

    /// The attachment, in memory of this machine.
    pub(crate) async fn fetch(&self, reference: &Reference) -> io::Result<Arc<Attachment>> {
        let mut here = self.attachments.lock().await;
        // What is held comes before what holds it.
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
            let bytes = self.get(&next.object()).await?;
            let holds = next.holds.iter();
            let holds = holds.filter_map(|held| here.get(&held.id).cloned().flatten());
            let made = Attachment::with_id(next.id, &[&bytes], holds.collect())?;
            here.insert(next.id, Some(made));
        }
        let found = here.get(&reference.id).cloned().flatten();
        found.ok_or_else(|| io::Error::other("an attachment is missing"))
    }

    /// Nobody holds these any more.
    pub(crate) async fn forget(&self, ids: &[u64]) {
        let mut all = self.attachments.lock().await;
        for id in ids {
            all.remove(id);
        }
    }
}
