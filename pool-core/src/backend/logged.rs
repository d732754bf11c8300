//! [`LogRecords`]: what workers have logged, on its way to who listens.

use serde::{Deserialize, Serialize};

/// What one worker has logged while it ran one input, or while it ran none: for [`Sink::log`](super::Sink::log) and
/// [`News::Log`](super::News::Log), to be handed on in the order in which they come. Without the feature `tracing` of this crate there
/// are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecords {
    pub(crate) source: LogSource,
    /// The number of the task, and the position of the input as [`Error::index`](crate::Error::index) has it.
    pub(crate) task: Option<u32>,
    pub(crate) index: Option<usize>,
    /// Nothing comes from this worker any more.
    pub(crate) ended: bool,
    /// Each behind its length in four bytes, as the worker has written it.
    pub(crate) records: Vec<u8>,
}

/// The worker that has logged something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct LogSource {
    pub(crate) worker: usize,
    pub(crate) pid: u32,
    pub(crate) host: Option<String>,
    /// Tells it from others that had this number before.
    pub(crate) serial: u64,
}

impl LogRecords {
    /// They were made on another machine.
    #[must_use]
    pub fn on(mut self, name: &str) -> LogRecords {
        self.source.host = Some(name.to_owned());
        self
    }
}
