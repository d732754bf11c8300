//! Carries the messages that tasks send into channels from a node to the parent.
//!
//! Each channel of a node has a tokio task here. It sends the parent one numbered batch after the other, repeating each
//! until the parent answers. So a server that fails loses nothing, and nothing arrives twice. Once the parent has taken
//! a batch, the workers of the node may send more; it takes none while too much is unread. The outcome of an input is
//! sent only after the parent has everything that the input sent. The parent takes that even when too much is unread,
//! but then the senders must wait until it is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use pool_core::backend::{Attachment, Batch, Channel};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;
use tokio::time;

use crate::store::Store;
use crate::wire::{Body, ToParent, Took, to_bytes};

/// How long to wait before sending again what the parent did not take.
const AGAIN: Duration = Duration::from_millis(20);

/// Messages are combined into batches of up to this many bytes.
const TOGETHER: usize = 128 << 10;

/// The channels of a node.
#[derive(Clone)]
pub(crate) struct Relays {
    client: Client,
    /// The subject of the parent.
    subject: String,
    node: String,
    open: Arc<Mutex<HashMap<u64, UnboundedSender<Word>>>>,
}

/// A notice to the tokio task of a channel.
enum Word {
    /// There are new messages.
    Look,
    /// Reply when everything has been sent so far.
    Flush(oneshot::Sender<()>),
    /// The channel has no holders.
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

    /// Opens the local end of the parent's channel with this id.
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
                heard,
                told: 0,
                packed: 0,
                flushes: Vec::new(),
                unpaid: Vec::new(),
                is_over: false,
            };
            tokio::spawn(way.go());
            self.lock().insert(id, words);
        }
        attachment
    }

    /// Waits until the parent has everything that was sent into these channels.
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

    /// Ends all channels, since the parent no longer listens: senders get an error.
    pub(crate) fn end(&self) {
        for (_, words) in self.lock().drain() {
            let _ = words.send(Word::End);
        }
    }

    /// Ends a channel that has no holders.
    pub(crate) fn forget(&self, id: u64) {
        if let Some(words) = self.lock().remove(&id) {
            let _ = words.send(Word::End);
        }
    }
}

/// Sends the messages of one channel to the parent.
struct Way {
    relays: Relays,
    store: Store,
    channel: Arc<Channel>,
    id: u64,
    heard: UnboundedReceiver<Word>,
    /// The number of batches that were sent, and how many times one was packed.
    told: u64,
    packed: u64,
    /// Outcomes that wait until everything has been sent. While there are any, the parent takes messages however much
    /// is unread.
    flushes: Vec<oneshot::Sender<()>>,
    /// Batches that were taken although too much was unread: their senders may not send more yet.
    unpaid: Vec<Batch>,
    /// The channel has no holders, or no receiver.
    is_over: bool,
}

impl Way {
    async fn go(mut self) {
        while !self.is_over {
            if self.unpaid.is_empty() {
                let word = self.heard.recv().await;
                self.hear(word);
                while let Ok(word) = self.heard.try_recv() {
                    self.hear(Some(word));
                }
            } else {
                self.pause().await;
                self.ask().await;
            }
            self.tell_all().await;
            for done in self.flushes.drain(..) {
                let _ = done.send(());
            }
        }
        drop(self.channel.close());
    }

    fn hear(&mut self, word: Option<Word>) {
        match word {
            Some(Word::Look) => {}
            Some(Word::Flush(done)) => self.flushes.push(done),
            Some(Word::End) | None => self.is_over = true,
        }
    }

    /// Waits a little, but returns early if an outcome waits or the channel ends.
    async fn pause(&mut self) {
        let until = time::Instant::now() + AGAIN;
        while let Ok(word) = time::timeout_at(until, self.heard.recv()).await {
            let is_look = matches!(word, Some(Word::Look));
            self.hear(word);
            if !is_look {
                return;
            }
        }
    }

    async fn tell_all(&mut self) {
        loop {
            let mut batches = self.channel.take_now();
            if batches.is_empty() || self.is_over {
                return;
            }
            while let Some(mut batch) = batches.pop_front() {
                while let Some(next) = batches.pop_front() {
                    if let Some(next) = batch.join(next, TOGETHER) {
                        batches.push_front(next);
                        break;
                    }
                }
                self.told += 1;
                match self.tell(batch.to_bytes()).await {
                    Took::All => {}
                    Took::Unpaid => self.unpaid.push(batch),
                    Took::Later | Took::Missing | Took::Nothing => {
                        self.is_over = true;
                        return;
                    }
                }
            }
        }
    }

    /// Sends a batch until the parent takes it or rejects it for good.
    async fn tell(&mut self, bytes: Vec<u8>) -> Took {
        // Later batches must not overtake this one, so keep trying until there is room.
        let mut packed = None;
        while !self.is_over {
            let Some(messages) = &packed else {
                packed = self.pack(&bytes).await;
                if packed.is_none() {
                    self.pause().await;
                }
                continue;
            };
            let messages = messages.clone();
            match self.request(messages).await {
                Some(Took::Missing) => packed = None,
                Some(Took::Later) | None => self.pause().await,
                Some(took) => return took,
            }
        }
        Took::Nothing
    }

    /// Packs messages into a body, or into the store if they are long; `None` if the store has no room.
    async fn pack(&mut self, bytes: &[u8]) -> Option<Body> {
        self.packed += 1;
        let name = format!("messages-{}-{}-{}", self.relays.node, self.id, self.packed);
        let mut room = self.store.room();
        let packed = self.store.pack(bytes.to_vec(), &mut room, || name);
        packed.await.ok()
    }

    /// Asks whether the unpaid batches have been read.
    async fn ask(&mut self) {
        match self.request(Body::Here(Vec::new())).await {
            Some(Took::All) => self.unpaid.clear(),
            Some(Took::Nothing) => self.is_over = true,
            _ => {}
        }
    }

    async fn request(&mut self, messages: Body) -> Option<Took> {
        let Relays {
            client,
            subject,
            node,
            ..
        } = &self.relays;
        let told = to_bytes(&ToParent::Messages {
            node: node.clone(),
            channel: self.id,
            number: self.told,
            must: !self.flushes.is_empty(),
            messages,
        });
        let answer = client.request(subject.clone(), told.into()).await;
        Took::of(&answer.ok()?.payload)
    }
}
