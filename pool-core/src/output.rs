//! Where what workers print goes: [`Output`], and the lines of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where the standard output and the standard error of workers go: for [`PoolBuilder::output`](crate::PoolBuilder::output).
///
/// This is about descriptors 1 and 2 of each worker, so it covers what C code and started programs write there, too.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Output {
    /// Where those of this program go.
    #[default]
    Inherit,
    /// Nowhere, but what a task wrote before it failed is in its error: the last 64 KiB.
    Capture,
    /// Nowhere.
    Null,
    /// To a function, line by line: see [`Output::lines`].
    #[doc(hidden)]
    Lines(Lines),
}

impl Output {
    /// Each line is given to this function, on the pool's callback thread. What a task wrote before it failed is in its error as
    /// well, as with [`Capture`](Output::Capture).
    pub fn lines(each: impl Fn(&WorkerLine) + Send + Sync + 'static) -> Output {
        Output::Lines(Lines::new(each))
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Output::Inherit => "Inherit",
            Output::Capture => "Capture",
            Output::Null => "Null",
            Output::Lines(_) => "Lines",
        })
    }
}

/// What [`Output::lines`] was given.
#[derive(Clone)]
pub struct Lines(Arc<dyn Fn(&WorkerLine) + Send + Sync>);

impl Lines {
    pub(crate) fn new(each: impl Fn(&WorkerLine) + Send + Sync + 'static) -> Lines {
        Lines(Arc::new(each))
    }

    /// Tells the function of a line.
    pub(crate) fn tell(&self, line: &WorkerLine) {
        (self.0)(line);
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

/// A line that a worker wrote: see [`Output::lines`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerLine {
    /// The worker's position in its pool, from 0: [`worker::index`](crate::worker::index) there.
    pub worker: usize,
    /// Its process id.
    pub pid: u32,
    /// The machine that it is on; `None`: this one.
    pub host: Option<String>,
    /// The task that ran; `None` if none did: an initializer may write, or a thread that a task has left behind.
    pub task: Option<Cow<'static, str>>,
    /// The position of the task's input among those of the call; `None` as for [`Error::index`](crate::Error::index).
    pub index: Option<usize>,
    /// Where it was written.
    pub stream: Stream,
    /// The line, without its end. What is not UTF-8 is replaced.
    pub text: String,
}

/// Where a worker wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output, descriptor 1.
    Stdout,
    /// Standard error, descriptor 2.
    Stderr,
}
