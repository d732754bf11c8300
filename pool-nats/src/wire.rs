//! The messages between parent and nodes, and their subjects.
//!
//! | subject | from | what |
//! |---|---|---|
//! | `pool.RUN.parent` | nodes | [`ToParent`]; some are requests |
//! | `pool.RUN.nodes` | the parent | [`ToNodes`], for all nodes |
//! | `pool.RUN.node.ID` | the parent | an empty request: are you there? |
//! | `pool.RUN.work` | the parent | [`Load`]s, kept in the stream `pool_RUN` until they are done |
//!
//! Data that is too long for a message is in the object store `pool_RUN`.

use std::time::Duration;

use pool_core::Stats;
use pool_core::backend::{Attachment, Job, LogRecords, News, Tallies};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the protocol. Both sides must have the same.
pub(crate) const PROTOCOL: u32 = 7;

/// Returns the name of the consumer that all nodes pull from. It changes each time the stream is recreated, so that messages
/// of the previous stream are not acknowledged by mistake.
pub(crate) fn consumer(epoch: u64) -> String {
    format!("nodes-{epoch}")
}

/// The name of a run, which determines its subjects.
#[derive(Debug, Clone)]
pub(crate) struct Run(pub(crate) String);

impl Run {
    pub(crate) fn parent(&self) -> String {
        format!("pool.{}.parent", self.0)
    }

    pub(crate) fn nodes(&self) -> String {
        format!("pool.{}.nodes", self.0)
    }

    pub(crate) fn node(&self, id: &str) -> String {
        format!("pool.{}.node.{id}", self.0)
    }

    pub(crate) fn work(&self) -> String {
        format!("pool.{}.work", self.0)
    }

    /// The name of the stream, and of the object store.
    pub(crate) fn store(&self) -> String {
        format!("pool_{}", self.0)
    }
}

/// A node asks to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) protocol: u32,
    pub(crate) fingerprint: u64,
    pub(crate) tasks: Vec<String>,
    pub(crate) node: NodeId,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct NodeId {
    /// Unique among all nodes.
    pub(crate) id: String,
    pub(crate) host: String,
    pub(crate) pid: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Welcome(Box<Welcome>),
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The [`Settings`](pool_core::backend::Settings) of the pool.
    pub(crate) settings: Body,
    pub(crate) epoch: u64,
    /// How long a node tries to store a result.
    pub(crate) patience: Duration,
    /// The time since the start of the pool, by the parent's clock.
    pub(crate) now: Duration,
    /// What the arguments of initializers and finalizers refer to.
    pub(crate) attachments: Vec<Reference>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToParent {
    Join(Join),
    /// A request: the workers of the node are ready. The answer says that the parent knows.
    Ready {
        node: NodeId,
        processes: usize,
    },
    /// The node can't start workers, or can't go on working with them.
    Unfit {
        node: NodeId,
        why: String,
    },
    /// The node has received this load. `ack` is the subject that acknowledges it to the server.
    Took {
        node: String,
        load: u64,
        ack: String,
    },
    /// A request: may these loads begin? The answer has one byte per load: 1 if it may.
    Begin {
        node: String,
        loads: Vec<(u64, String)>,
    },
    /// A request: the node returns these loads, which did not begin: they could not, or others may begin them sooner. The
    /// answer says that the parent knows. May be sent repeatedly.
    Returned {
        node: String,
        loads: Vec<(u64, String)>,
        could_not: bool,
    },
    /// A request: are these jobs still wanted? The answer has one byte per job: 1 if so.
    Wanted(Vec<u64>),
    /// A request: inputs of a load have outcomes. The answer says that the parent knows. May be sent repeatedly.
    Done(Done),
    /// A request: tasks have sent these messages into a channel. The answer is a [`Took`]. `number` counts the batches
    /// of this node for this channel; the same batch may be sent repeatedly.
    Messages {
        node: String,
        channel: u64,
        number: u64,
        /// An outcome waits for these messages.
        must: bool,
        messages: Body,
    },
    /// What the pool of the node tells, in order. The parent answers with the number of the message.
    News {
        node: String,
        number: u64,
        told: Vec<Told>,
    },
    /// A request, and a sign of life, sent regularly. The answer is the time since the start of the pool, by the parent's
    /// clock: a [`Duration`].
    Here {
        node: String,
    },
    /// The parent sends this to itself: if it comes back, the server works.
    Echo,
    /// The statistics of the node's pool, as an answer to this question of the parent; 0 if it was not asked.
    Stats {
        node: String,
        asked: u64,
        stats: Stats,
        tallies: Tallies,
    },
    /// The node takes no more loads.
    Left {
        node: String,
        why: String,
    },
    /// The workers of the node have ended. It sends nothing more.
    Ended {
        node: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// News of the node's pool, as the parent's observer gets it.
    News(News),
    /// Inputs of a job have logged this.
    Log { job: u64, records: LogRecords },
}

/// The parent's answer to channel messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    All = 1,
    /// Not taken: too much is unread.
    Later = 2,
    /// The receiver is gone.
    Nothing = 3,
    /// Taken, although too much is unread.
    Unpaid = 4,
    /// It can't be fetched from the store.
    Missing = 5,
}

impl Took {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        vec![self as u8]
    }

    pub(crate) fn of(bytes: &[u8]) -> Option<Took> {
        use Took::{All, Later, Missing, Nothing, Unpaid};
        [All, Later, Nothing, Unpaid, Missing]
            .into_iter()
            .find(|took| bytes == [*took as u8])
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) node: String,
    pub(crate) load: u64,
    /// The position of the first input within the job.
    pub(crate) first: usize,
    /// The number of inputs.
    pub(crate) count: usize,
    pub(crate) what: Sent,
    /// How long one input took, in nanoseconds, overhead included.
    pub(crate) each_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Sent {
    /// [`Frames`](pool_core::backend::Frames).
    Replies(Body),
    /// One [`Failure`](pool_core::backend::Failure) for all inputs.
    Failed(Body),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToNodes {
    /// The rest of this job is not wanted; with `running`, not even the inputs that have begun.
    Cancel { job: u64, running: bool },
    /// This attachment has no holders.
    Forget(u64),
    /// The parent is alive. `epoch` counts how often the stream has been recreated.
    Alive { epoch: u64 },
    /// What do the statistics of your pool say? Questions are numbered.
    AskStats(u64),
    /// The run is over.
    End,
}

/// The inputs that one node gets at once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) number: u64,
    /// The number of the job.
    pub(crate) job: u64,
    pub(crate) what: Job,
    pub(crate) pieces: Vec<Piece>,
}

/// Consecutive inputs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// The position of the first input within the job.
    pub(crate) first: usize,
    pub(crate) inputs: Body,
    pub(crate) bound: Option<Reference>,
    pub(crate) held: Vec<Reference>,
}

/// Bytes, or the object that holds them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Body {
    Here(#[serde(with = "serde_bytes")] Vec<u8>),
    Stored(Object),
}

/// An object in the store, and its location.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Object {
    pub(crate) name: String,
    /// Distinguishes the chunks of this object from those of failed attempts to store it.
    pub(crate) nuid: String,
    /// The numbers of its messages in the stream behind the store.
    pub(crate) messages: Vec<u64>,
    /// The epoch in which these numbers are valid. A server that was killed may assign them to other messages.
    pub(crate) epoch: Option<u64>,
}

/// A reference to an attachment in the object store, or to a channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) id: u64,
    /// It refers to a channel, not to an object.
    pub(crate) is_channel: bool,
    pub(crate) holds: Vec<Reference>,
}

impl Reference {
    pub(crate) fn to(attachment: &Attachment) -> Reference {
        Reference {
            id: attachment.id(),
            is_channel: attachment.channel().is_some(),
            holds: attachment
                .holds()
                .iter()
                .map(|held| Reference::to(held))
                .collect(),
        }
    }

    /// Adds the channels among this reference and those that it holds.
    pub(crate) fn add_channels(&self, channels: &mut Vec<u64>) {
        if self.is_channel && !channels.contains(&self.id) {
            channels.push(self.id);
        }
        self.holds
            .iter()
            .for_each(|held| held.add_channels(channels));
    }

    /// Returns the name of the object.
    pub(crate) fn object(&self) -> String {
        format!("attachment-{}", self.id)
    }
}

pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    // Serializing plain data into a vector does not fail.
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
