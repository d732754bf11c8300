//! What parent and nodes say to each other, and where.
//!
//! | subject | from | what |
//! |---|---|---|
//! | `pool.RUN.parent` | nodes | [`ToParent`]; some are requests |
//! | `pool.RUN.nodes` | the parent | [`ToNodes`], for all |
//! | `pool.RUN.node.ID` | the parent | a request without content: are you there? |
//! | `pool.RUN.work` | the parent | [`Load`]s, kept by the stream `pool_RUN` until they are done |
//!
//! What is too long for a message is in the object store `pool_RUN`.

use std::time::Duration;

use pool_core::backend::{Attachment, Job};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Both sides must have the same.
pub(crate) const PROTOCOL: u32 = 3;

/// The consumer of the stream that all nodes pull from. Each time that the stream is made anew it has another name, so that
/// nobody acknowledges what was in the one before.
pub(crate) fn consumer(epoch: u64) -> String {
    format!("nodes-{epoch}")
}

/// The subjects of a run.
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

/// A node wants to work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) protocol: u32,
    pub(crate) fingerprint: u64,
    pub(crate) tasks: Vec<String>,
    pub(crate) node: NodeId,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct NodeId {
    /// Tells it from all others.
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
    /// [`Settings`](pool_core::backend::Settings).
    pub(crate) settings: Body,
    pub(crate) epoch: u64,
    /// How long a node tries to store a result.
    pub(crate) patience: Duration,
    /// What the arguments of initializers and finalizers refer to.
    pub(crate) attachments: Vec<Reference>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToParent {
    Join(Join),
    /// A request: its workers are ready. The answer says that the parent knows.
    Ready {
        node: NodeId,
        processes: usize,
    },
    /// They can't be had, or the node can't work with them any more.
    Unfit {
        node: NodeId,
        why: String,
    },
    /// A load, by its number, is here. By this subject the server takes it for done.
    Took {
        node: String,
        load: u64,
        ack: String,
    },
    /// A request: may these loads begin? The answer is one byte for each, 1 if it may.
    Begin {
        node: String,
        loads: Vec<(u64, String)>,
    },
    /// These are not to begin here: since they could not, or since others may do so sooner.
    Returned {
        node: String,
        loads: Vec<(u64, String)>,
        could_not: bool,
    },
    /// A request: does somebody wait for these jobs? The answer is one byte for each, 1 if so.
    Wanted(Vec<u64>),
    /// A request: inputs of a load have their outcomes. The answer says that the parent knows; it may be told again.
    Done(Done),
    /// A request: tasks have sent this into a channel; the answer is a [`Took`]. It has the next number of those from this node for this
    /// channel, and may be told again.
    Messages {
        node: String,
        channel: u64,
        number: u64,
        /// An outcome waits for it.
        must: bool,
        messages: Body,
    },
    /// Now and then, whatever happens.
    Here {
        node: String,
    },
    /// From the parent: it hears this if the server is well.
    Echo,
    /// The node takes nothing more.
    Left {
        node: String,
        why: String,
    },
}

/// What the parent says to messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    All = 1,
    /// Too much is unread.
    Later = 2,
    /// Nobody will read it.
    Nothing = 3,
    /// It was taken, though too much is unread.
    Unpaid = 4,
    /// It can't be had from the store.
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
    /// The position of the first among the inputs of the job.
    pub(crate) first: usize,
    /// Of so many inputs.
    pub(crate) count: usize,
    pub(crate) what: Sent,
    /// How long an input took, in nanoseconds, with all that belongs to it.
    pub(crate) each_ns: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Sent {
    /// [`Frames`](pool_core::backend::Frames).
    Replies(Body),
    /// One [`Failure`](pool_core::backend::Failure) for all.
    Failed(Body),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToNodes {
    /// Nobody wants what is left of this job.
    Cancel { job: u64, running: bool },
    /// Nobody holds this attachment.
    Forget(u64),
    /// The parent is there, and the stream was made anew so often.
    Alive { epoch: u64 },
    /// The run is over.
    End,
}

/// Inputs that one node gets together.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) number: u64,
    /// The number of the job.
    pub(crate) job: u64,
    pub(crate) what: Job,
    pub(crate) pieces: Vec<Piece>,
}

/// Inputs that follow each other.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// The position of the first among the inputs of the job.
    pub(crate) first: usize,
    pub(crate) inputs: Body,
    pub(crate) bound: Option<Reference>,
    pub(crate) held: Vec<Reference>,
}

/// Bytes, or the object that has them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Body {
    Here(#[serde(with = "serde_bytes")] Vec<u8>),
    Stored(Object),
}

/// What the object store has, and where.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Object {
    pub(crate) name: String,
    /// The numbers of its messages in the stream behind the store.
    pub(crate) messages: Vec<u64>,
    /// The epoch in which they have these numbers. A server that was killed may give them to others.
    pub(crate) epoch: Option<u64>,
}

/// An attachment that is in the object store; or a channel.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) id: u64,
    /// It is no object, but a channel.
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

    /// Adds the channels among this and what it holds.
    pub(crate) fn add_channels(&self, channels: &mut Vec<u64>) {
        if self.is_channel && !channels.contains(&self.id) {
            channels.push(self.id);
        }
        self.holds
            .iter()
            .for_each(|held| held.add_channels(channels));
    }

    /// The name of its object.
    pub(crate) fn object(&self) -> String {
        format!("attachment-{}", self.id)
    }
}

pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    // Plain data into a vector: does not fail.
    postcard::to_stdvec(value).unwrap_or_default()
}

pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
