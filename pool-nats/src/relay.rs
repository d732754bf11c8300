//! What tasks send into channels, on its way from a node to the parent.
//!
//! Each channel of a node has a task here, which tells the parent one batch after the other, each with a number, until the parent answers.
//! So nothing is lost with a server, and nothing comes twice. The workers of the node may send more when the parent has taken a batch; and
//! that takes no more than a channel may have unread. Outcomes of inputs are told when what they have sent is with the parent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use pool_core::backend::{Attachment, Channel};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time;

use crate::store::Store;
use crate::wire::{ToParent, Took, to_bytes};

/// What the parent did not take is told again after this.
const AGAIN: Duration = Duration::from_millis(20);

/// The channels of a node.
#[derive(Clone)]
pub(crate) struct Relays {
    client: Client,
    /// That of the parent.
    subject: String,
    node: String,
    open: Arc<Mutex<HashMap<u64, UnboundedSender<Word>>>>,
}

/// What the task of a channel is told.
enum Word {
    /// There is something.
    Look,
    /// Say when all is told that is there.
    Flush(oneshot::Sender<()>),
    /// Nobody holds the channel.
    End,
}

impl Relays {
    pub(crate) fn new(client: Client, subject: String, node: String) -> Relays {
        Relays {
            client,
            subject,
            node,
            open: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, UnboundedSender<Word>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel that has this id at the parent.
    pub(crate) fn open(&self, store: &Store, id: u64) -> Arc<Attachment> {
        let (words, heard) = mpsc::unbounded_channel();
        let look = words.clone();
        let attachment = Channel::of_other(id, move |_| {
            let _ = look.send(Word::Look);
        });
        if let Some(channel) = attachment.channel() {
            let way = Way {
                relays: self.clone(),
                store: store.clone(),
                channel: Arc::clone(channel),
                id,
                told: 0,
            };
            tokio::spawn(way.go(heard));
            self.lock().insert(id, words);
        }
        attachment
    }

    /// Waits until the parent has what was sent into these channels.
    pub(crate) async fn flush(&self, channels: &[u64]) {
        for id in channels {
            let (done, is_done) = oneshot::channel();
            let sent = match self.lock().get(id) {
                Some(words) => words.send(Word::Flush(done)).is_ok(),
                None => false,
            };
            if sent {
                let _ = is_done.await;
            }
        }
    }

    /// Nobody holds this channel.
    pub(crate) fn forget(&self, id: u64) {
        if let Some(words) = self.lock().remove(&id) {
            let _ = words.send(Word::End);
        }
    }
}

/// The way of one channel to the parent.
struct Way {
    relays: Relays,
    store: Store,
    channel: Arc<Channel>,
    id: u64,
    /// How many batches were told.
    told: u64,
}

impl Way {
    async fn go(mut self, mut heard: UnboundedReceiver<Word>) {
        while let Some(word) = heard.recv().await {
            self.tell_all().await;
            match word {
                Word::Look => {}
                Word::Flush(done) => drop(done.send(())),
                Word::End => return,
            }
        }
    }

    async fn tell_all(&mut self) {
        loop {
            let batches = self.channel.take_now();
            if batches.is_empty() {
                return;
            }
            for batch in batches {
                self.told += 1;
                // It is dropped once it is told, and the worker may send more.
                if !self.tell(batch.to_bytes()).await {
                    drop(self.channel.close());
                    return;
                }
            }
        }
    }

    /// Tells a batch until the parent takes it. False: nobody reads it.
    async fn tell(&self, bytes: Vec<u8>) -> bool {
        let Relays {
            client,
            subject,
            node,
            ..
        } = &self.relays;
        let name = format!("messages-{node}-{}-{}", self.id, self.told);
        let store = &self.store;
        // Nothing that is sent later may pass it, so it is tried until there is room.
        let messages = loop {
            let mut room = store.room();
            let packed = store.pack(bytes.clone(), &mut room, || name.clone());
            match packed.await {
                Ok(packed) => break packed,
                Err(_) => time::sleep(AGAIN).await,
            }
        };
        let told = Bytes::from(to_bytes(&ToParent::Messages {
            node: node.clone(),
            channel: self.id,
            number: self.told,
            messages,
        }));
        loop {
            let answer = client.request(subject.clone(), told.clone()).await;
            match answer.ok().and_then(|answer| Took::of(&answer.payload)) {
                Some(Took::All) => return true,
                Some(Took::Nothing) => return false,
                Some(Took::Later) | None => time::sleep(AGAIN).await,
            }
        }
    }
}
