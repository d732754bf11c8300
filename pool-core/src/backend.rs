//! What runs the work of a pool; and how to write your own backend.
//!
//! A pool has two halves. The half that users call (encoding, decoding, iterators, handles) knows nothing about workers; the
//! half that runs their work (queues, workers, losses) knows nothing about types. A *job* crosses the seam between them as
//! the number of a task, bytes and options. Its *outcomes* come back through a [`Sink`], as bytes or as a [`Failure`].
//! Everything else in this crate works with any backend: [`map`](crate::Pool::map), [`imap`](crate::Pool::imap), handles,
//! callbacks, futures, errors.
//!
//! [`PoolBuilder::backend`](crate::PoolBuilder::backend) takes a [`Backend`]: a description of where work should run, which
//! makes the [`Workers`] of a pool when the pool is built. [`Local`] is the default. [`Inline`] runs everything in the thread
//! that waits for it; it is the shortest backend and a good starting point for your own.
//!
//! # What a backend promises
//!
//! - Each accepted input gets exactly one outcome, in any order, from any thread. The exception is
//!   [`cancel`](Workers::cancel) without `running`, after which inputs that are taken back get no outcome.
//! - An input runs at most once, unless [`Options::retries`] allows more. If it is unknown whether an input has run, it
//!   counts as having run.
//! - No method blocks, except [`wait`](Workers::wait), [`join`](Workers::join) and [`shut_down`](Workers::shut_down).
//! - After [`terminate`](Workers::terminate), or when no more workers can be had, all open inputs get their outcomes at once.
//!
//! # Other machines
//!
//! Both sides are the same program, so a task has the same number on both. Check this by comparing [`fingerprint`]s, and name
//! the differences with [`tasks`]. [`Settings`], [`Job`], [`Failure`] and their parts implement serde's traits. Inputs and
//! replies become bytes with [`Frames::to_bytes`] and [`Frames::from_bytes`]. Data that inputs share
//! ([`Call::partial`](crate::Call::partial), [`Shared`](crate::Shared)) is attached to them as [`Attachment`]s, which may be
//! large. Send each attachment to a machine once, before the inputs that [refer](Frames::attachments) to it; recreate it
//! there with [`Attachment::with_id`], and attach it to the inputs with [`Frames::attach`]. Release it there once nothing
//! holds it here any more: [`Attachment::on_drop`].
//!
//! An attachment may stand for a [`channel`](crate::channel()) instead of bytes: [`Attachment::channel`]. Recreate it on the
//! other machine with [`Channel::of_other`]. [Take](Channel::take_now) what is sent into it there, and [give](Channel::give)
//! it to the channel here before you deliver the outcomes of the inputs that sent it. The channel here ends when nothing
//! holds its attachment, so keep the attachment as long as inputs that refer to it have no outcomes, and that of an
//! initializer or a finalizer until the workers are gone. A backend that does all this says that it [carries
//! channels](Workers::carries_channels).
//!
//! What workers log there comes back as [`LogRecords`], which implement serde's traits: pass what a sink gets there to the
//! [`Sink`] of the job here, and what the observer gets there to the observer in the [`Settings`] here. If the way is too slow
//! for them, let a [`LogSieve`] choose what to drop. The same holds for other [`News`]; its times are relative to the start of
//! the pool there, and must be made relative to the start of the pool here ([`News::map_times`]).
//!
//! The other machine may run its inputs on a [`Local`] of its own, with the same [`Settings`]: it implements the same trait.
//! Then the workers there are also [confined](Workers::confines) by a sandbox.
//! To get a process there, start this same program with `POOL_NODE=scheme://…` in its environment: it then does not reach
//! `main`, but calls the function that [`node!`](crate::node) has registered for the scheme.

mod inline;
mod journal;
mod logged;
#[cfg(test)]
pub(crate) mod memory;
mod tallies;

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{Arrived, Fault, Panic};
use serde::{Deserialize, Serialize};

use crate::error::{
    Broken, Codec, Error, MemoryLimit, Panicked, Place, Side, TimeLimit, Verb, WorkerLost,
};
use crate::event::{Ended, Event, Recycled};
use crate::output::{Stream, WorkerLine};
use crate::sandbox::Sandbox;
use crate::scheduler::LEAVE_MAX;
use crate::stats::Stats;
use crate::sync::Parker;

pub use pool_worker::{
    Attachment, Batch, Bytes, Channel, Exit, Frames, LogLevel, NodeKind, Tag, fingerprint, lineage,
    tasks,
};

pub use self::inline::Inline;
pub use self::logged::{LogRecords, Room};
#[cfg(feature = "tracing")]
pub(crate) use self::logged::{LogSource, each as each_record};
pub use self::tallies::Tallies;
pub use crate::few::Few;
pub use crate::local::Local;
pub use crate::log::LogSieve;
pub use crate::retries::Retries;

/// Registers a function to run instead of `main` when the program is started with `POOL_NODE=scheme://…` in its environment:
/// it gets the address and returns the exit code of the process. The variable is removed first. Use the macro in item position.
///
/// ```
/// pool_core::node!("carrier-pigeon", serve);
///
/// fn serve(address: &str) -> i32 {
///     i32::from(address.is_empty())
/// }
/// ```
#[macro_export]
macro_rules! node {
    ($scheme:expr, $run:expr) => {
        const _: () = {
            $crate::__private::inventory::submit! {
                $crate::backend::NodeKind::new($scheme, $run)
            }
        };
    };
}

/// Where the work of a pool should run.
pub trait Backend: Debug + Send {
    /// Makes the workers of one pool, and returns when they can take work.
    ///
    /// # Errors
    ///
    /// [`Error::start`] if the workers can't be started; [`Error::invalid_setting`] if a setting can't be met.
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error>;
}

/// The settings of a pool's builder that concern workers. All numbers and durations have been checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Settings {
    /// How many workers; `None`: as many as there are CPUs for them.
    pub workers: Option<usize>,
    /// A task that runs once for all workers of a machine, before there are any.
    pub preload: Option<Preparation>,
    /// Tasks that each worker runs before its first input, in order.
    pub initializers: Vec<Preparation>,
    /// Tasks that each worker runs when it exits normally, in order.
    pub finalizers: Vec<Preparation>,
    /// Environment variables for workers, in addition to those of the process that starts them; if a name occurs twice, the
    /// last value counts.
    pub env: Vec<(OsString, OsString)>,
    /// How many inputs a worker may run before a fresh one takes its place.
    pub max_tasks: Option<usize>,
    /// How long a worker may take until it is ready.
    pub start_timeout: Duration,
    /// How long a pool may be without a working worker.
    pub give_up_after: Duration,
    /// How long a worker that must stop is given after it was asked to, before it is killed.
    pub grace: Duration,
    /// How much memory a worker may use while it runs an input, in bytes.
    pub memory_limit: Option<u64>,
    /// How much memory a worker may have after an input, in bytes, before a fresh one takes its place.
    pub max_memory: Option<u64>,
    /// Whether everything that a worker starts must end with it.
    pub contained: bool,
    /// What workers are confined to once their initializers have run.
    pub sandbox: Option<Sandbox>,
    /// How much of the stack may be used to decode a value, in bytes.
    pub decode_stack: usize,
    /// Where descriptors 1 and 2 of workers go.
    pub streams: Streams,
    /// What the [observer](Settings::observer) wants to know, besides lines.
    pub observe: Observe,
    /// Which log records of workers are wanted before there are [jobs](Job::log_level), which may change that.
    pub log_level: LogLevel,
    /// Who is told what happens. Not serialized: another machine sends its [`News`] back.
    #[serde(skip)]
    pub observer: Option<Arc<dyn Observer>>,
}

/// Where the standard output and the standard error of workers go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Streams {
    /// To where those of the process that starts them go.
    #[default]
    Inherit,
    /// Nowhere.
    Null,
    /// Nowhere, but each [`Failure`] of an input that was begun contains the end of what the input wrote.
    Capture,
    /// The same, and lines are also reported as [news](News::Lines).
    Lines,
}

/// What an observer wants to know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Observe {
    /// Events of workers.
    pub workers: bool,
    /// Events of inputs: each one.
    pub inputs: bool,
    /// When inputs ran (short ones are combined), and how many wait.
    pub spans: bool,
}

/// What happened in a backend, besides outcomes.
///
/// A backend that starts workers of its own makes news with the functions below. It happened on this machine, unless
/// [`on`](News::on) says otherwise. In all of them, `worker` is the worker's position in its pool, from 0, `pid` is its process
/// id, `index` is as [`Error::index`] has it, and `at` is the time since the start of the pool.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use pool_core::backend::{Exit, News, Span};
/// use pool_core::{Ended, Stream};
///
/// let ms = Duration::from_millis;
/// let (worker, pid) = (0, 4711);
/// let mut span = Span::new(worker, pid, "examples::render", 1, ms(30), ms(50));
/// (span.first, span.failed, span.outcome) = (Some(2), 1, Ended::WorkerLost);
/// let why = "it did not answer".to_owned();
/// let news = [
///     News::worker_started(worker, pid, ms(1)),
///     News::worker_ready(worker, pid, ms(20)),
///     News::input_began(worker, pid, "examples::render", Some(2), ms(30)),
///     News::lines(worker, pid, Some("examples::render".into()), Some(2), Stream::Stdout, "hello"),
///     News::input_ended(worker, pid, "examples::render", Some(2), Ended::WorkerLost, ms(20), ms(50)),
///     News::Span(span),
///     News::worker_died(worker, pid, Exit::Signal(9), Some(why), ms(50)),
/// ];
/// // For Settings::observer:
/// let news = news.map(|news| news.on("another machine"));
/// # let text = format!("{news:?}");
/// # assert_eq!(text.matches("host: Some(\"another machine\")").count(), news.len(), "{text}");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum News {
    /// An event of a worker or of an input.
    Event(Event),
    /// A worker wrote one or more lines to one stream, one right after the other, while it ran one input: `text` has `\n`
    /// between them.
    Lines(WorkerLine),
    /// A worker logged something that belongs to no open job. Records that belong to a job go to its [`Sink`].
    Log(LogRecords),
    /// Inputs ran.
    Span(Span),
    /// This many accepted inputs wait that no worker has begun.
    Waiting {
        /// Since when, from the start of the pool.
        at: Duration,
        /// How many.
        inputs: usize,
    },
}

impl News {
    /// Notes that it comes from another machine.
    #[must_use]
    pub fn on(mut self, name: &str) -> News {
        match &mut self {
            News::Event(event) => event.place(name),
            News::Lines(lines) => lines.host = Some(name.to_owned()),
            News::Log(records) => records.place(name),
            News::Span(span) => span.host = Some(name.to_owned()),
            News::Waiting { .. } => {}
        }
        self
    }

    /// Converts its times with this function.
    #[must_use]
    pub fn map_times(mut self, mut convert: impl FnMut(Duration) -> Duration) -> News {
        match &mut self {
            News::Event(event) => {
                if let Some(at) = event.at() {
                    *at = convert(*at);
                }
            }
            News::Lines(_) | News::Log(_) => {}
            News::Span(span) => {
                span.began = convert(span.began);
                span.ended = convert(span.ended);
            }
            News::Waiting { at, .. } => *at = convert(*at),
        }
        self
    }

    /// Returns what to tell after this event if the machine where it happened is lost: a worker that was started has died, an
    /// input that began was lost with its worker. `None` if nothing follows from it.
    #[must_use]
    pub fn lost(&self, at: Duration, why: &str) -> Option<News> {
        match self {
            News::Event(event) => event.lost(at, why).map(News::Event),
            _ => None,
        }
    }

    /// A worker process was started: [`Event::WorkerStarted`].
    #[must_use]
    pub fn worker_started(worker: usize, pid: u32, at: Duration) -> News {
        News::Event(Event::WorkerStarted {
            worker,
            pid,
            host: None,
            at,
        })
    }

    /// A worker takes inputs: [`Event::WorkerReady`].
    #[must_use]
    pub fn worker_ready(worker: usize, pid: u32, at: Duration) -> News {
        News::Event(Event::WorkerReady {
            worker,
            pid,
            host: None,
            at,
        })
    }

    /// A worker has ended without having been asked to, in this way: [`Event::WorkerDied`]. `why` says why the backend killed
    /// it, if it did.
    #[must_use]
    pub fn worker_died(
        worker: usize,
        pid: u32,
        how: Exit,
        why: Option<String>,
        at: Duration,
    ) -> News {
        News::Event(Event::WorkerDied {
            worker,
            pid,
            host: None,
            how,
            why,
            at,
        })
    }

    /// A healthy worker is being replaced by a fresh one: [`Event::WorkerRecycled`].
    #[must_use]
    pub fn worker_recycled(worker: usize, pid: u32, why: Recycled, at: Duration) -> News {
        News::Event(Event::WorkerRecycled {
            worker,
            pid,
            host: None,
            why,
            at,
        })
    }

    /// A worker has begun to run an input of the task with this name: [`Event::InputBegan`].
    #[must_use]
    pub fn input_began(
        worker: usize,
        pid: u32,
        task: impl Into<Cow<'static, str>>,
        index: Option<usize>,
        at: Duration,
    ) -> News {
        News::Event(Event::InputBegan {
            worker,
            pid,
            host: None,
            task: task.into(),
            index,
            at,
        })
    }

    /// The run of an input of the task with this name has ended, after this time: [`Event::InputEnded`].
    #[must_use]
    pub fn input_ended(
        worker: usize,
        pid: u32,
        task: impl Into<Cow<'static, str>>,
        index: Option<usize>,
        outcome: Ended,
        took: Duration,
        at: Duration,
    ) -> News {
        News::Event(Event::InputEnded {
            worker,
            pid,
            host: None,
            task: task.into(),
            index,
            outcome,
            took,
            at,
        })
    }

    /// A worker wrote these lines to one stream, one right after the other, while it ran an input of the task with this name,
    /// or none: see [`News::Lines`] and [`WorkerLine`].
    #[must_use]
    pub fn lines(
        worker: usize,
        pid: u32,
        task: Option<Cow<'static, str>>,
        index: Option<usize>,
        stream: Stream,
        text: impl Into<String>,
    ) -> News {
        News::Lines(WorkerLine {
            worker,
            pid,
            host: None,
            task,
            index,
            stream,
            text: text.into(),
        })
    }

    /// Says that this many events, spans and lines were dropped here, because the way was too slow for them:
    /// [`Event::Missed`].
    #[must_use]
    pub fn missed(count: usize) -> News {
        News::Event(Event::Missed { count })
    }
}

/// Inputs of one call that a worker ran one after the other, or one input that it did not finish. Times are relative to the
/// start of the pool.
///
/// [`Span::new`] makes one; then set the fields that differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Span {
    /// The worker's position.
    pub worker: usize,
    /// Its process id.
    pub pid: u32,
    /// The machine that it runs on; `None` for this one.
    pub host: Option<String>,
    /// The name of the task.
    pub task: Cow<'static, str>,
    /// Distinguishes calls.
    pub job: u32,
    /// The position of the first input among those of the call; `None` as for [`Error::index`].
    pub first: Option<usize>,
    /// How many inputs.
    pub count: usize,
    /// How many of them failed.
    pub failed: usize,
    /// When the first input began.
    pub began: Duration,
    /// When the last input ended.
    pub ended: Duration,
    /// How long they ran in total.
    pub busy: Duration,
    /// The worst outcome among them.
    pub outcome: Ended,
}

impl Span {
    /// One input of the task with this name, of a call that has one input, which a worker of this machine ran all the time and
    /// which is [done](Ended::Done).
    #[must_use]
    pub fn new(
        worker: usize,
        pid: u32,
        task: impl Into<Cow<'static, str>>,
        job: u32,
        began: Duration,
        ended: Duration,
    ) -> Span {
        Span {
            worker,
            pid,
            host: None,
            task: task.into(),
            job,
            first: None,
            count: 1,
            failed: 0,
            began,
            ended,
            busy: ended.saturating_sub(began),
            outcome: Ended::Done,
        }
    }
}

/// Receives what happens in a backend.
pub trait Observer: Debug + Send + Sync {
    /// Takes news. For each worker, they come in the order in which they happened. May be called from any thread, also under
    /// locks: it must not block or panic, and runs no code of users.
    fn observe(&self, news: Vec<News>);
}

impl Default for Settings {
    /// The defaults of [`Pool::builder`](crate::Pool::builder).
    fn default() -> Settings {
        Settings {
            workers: None,
            preload: None,
            initializers: Vec::new(),
            finalizers: Vec::new(),
            env: Vec::new(),
            max_tasks: None,
            start_timeout: Duration::from_secs(30),
            give_up_after: Duration::from_secs(30),
            grace: Duration::from_millis(100),
            memory_limit: None,
            max_memory: None,
            contained: false,
            sandbox: None,
            decode_stack: pool_worker::STACK_DEFAULT,
            streams: Streams::default(),
            observe: Observe::default(),
            log_level: LogLevel::default(),
            observer: None,
        }
    }
}

impl Settings {
    /// All tasks that workers run besides inputs and that may have [attachments](Preparation::attachments). Each of these
    /// attachments must go to every worker.
    pub fn preparations(&self) -> impl Iterator<Item = &Preparation> {
        self.initializers.iter().chain(&self.finalizers)
    }

    /// The same, mutably, to add attachments.
    pub fn preparations_mut(&mut self) -> impl Iterator<Item = &mut Preparation> {
        self.initializers.iter_mut().chain(&mut self.finalizers)
    }

    /// How long a worker that exits may take for its finalizers and exit handlers.
    pub fn leave_max(&self) -> Duration {
        let each = self.finalizers.iter();
        each.map(|task| task.time_limit.unwrap_or(LEAVE_MAX))
            .reduce(Duration::saturating_add)
            .unwrap_or(LEAVE_MAX)
    }
}

/// A task that is run for its side effects, with its arguments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preparation {
    /// The number of the task.
    pub task: u32,
    /// The name of the task, for messages.
    pub name: String,
    /// The encoded arguments.
    pub arguments: Vec<u8>,
    /// The attachments that the arguments refer to. Not serialized: see [Other machines](self#other-machines).
    #[serde(skip)]
    pub attachments: Vec<Arc<Attachment>>,
    /// The time limit of the task, if it has one. Used for finalizers.
    pub time_limit: Option<Duration>,
}

/// Identifies a job until it has finished. A backend numbers its jobs as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// Its place among the open jobs.
    pub place: u32,
    /// Distinguishes it from earlier jobs in the same place.
    pub serial: u32,
}

/// What to run, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The number of the task, which is the same wherever the same program runs.
    pub task: u32,
    /// The job has one input, which is not an element of a sequence: [`apply`](crate::Pool::apply).
    pub single: bool,
    /// The options of the caller, or else of the task, or else of the builder.
    pub options: Options,
    /// Which log records of workers are wanted: from now on, for everything that they run.
    pub log_level: LogLevel,
}

/// The options of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How many inputs one worker takes at once; `None`: the backend chooses.
    pub chunksize: Option<usize>,
    /// How long one input may run.
    pub time_limit: Option<Duration>,
    /// How often an input is run again.
    pub retries: Retries,
    /// Jobs of higher priority go first; among equal priorities, those that came first.
    pub priority: i32,
}

/// Encoded inputs of a job, stored one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// The position of the first input among those of the job.
    pub first: usize,
    /// The inputs.
    pub inputs: Frames,
}

/// The outcomes of consecutive inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// The position of the first input among those of the job.
    pub first: usize,
    /// The outcomes.
    pub what: What,
}

/// Results, or the reason why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Encoded replies of workers: results, and errors that workers report instead.
    Replies(Frames),
    /// All of them failed for the same reason.
    Failed {
        /// How many.
        count: usize,
        /// Why.
        failure: Arc<Failure>,
    },
}

/// The outcome of an input with its position: the encoded result, or the reason why there is none.
pub(crate) type Next<'a> = (usize, Encoded<'a>);

/// The encoded result of an input, or the reason why there is none.
pub(crate) type Encoded<'a> = Result<Arrived<'a>, Arc<Failure>>;

impl Outcomes {
    /// This many inputs, from this position on, have failed.
    pub fn failed(first: usize, count: usize, failure: Arc<Failure>) -> Outcomes {
        Outcomes {
            first,
            what: What::Failed { count, failure },
        }
    }

    /// How many inputs these are the outcomes of.
    #[inline]
    pub fn count(&self) -> usize {
        match &self.what {
            What::Replies(frames) => frames.count(),
            What::Failed { count, .. } => *count,
        }
    }

    /// Removes the first outcome: its position, and the encoded result or the reason why there is none.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Next<'_>> {
        let index = self.first;
        self.first += 1;
        match &mut self.what {
            What::Replies(frames) => frames.pop().map(|reply| (index, read(reply))),
            What::Failed { count, failure } => {
                *count = count.checked_sub(1)?;
                Some((index, Err(Arc::clone(failure))))
            }
        }
    }

    /// Passes on each outcome with its position, and releases it.
    #[inline]
    pub(crate) fn consume(mut self, mut each: impl FnMut(usize, Encoded<'_>)) {
        if self.count() == 1 {
            if let Some((index, outcome)) = self.pop() {
                each(index, outcome);
            }
        } else {
            self.for_each(each);
        }
    }

    /// Passes on each outcome with its position.
    #[inline]
    pub(crate) fn for_each(&self, mut each: impl FnMut(usize, Encoded<'_>)) {
        match &self.what {
            What::Replies(frames) => {
                for (index, (tag, bytes)) in (self.first..).zip(frames.iter()) {
                    each(index, read((tag, bytes.into())));
                }
            }
            What::Failed { count, failure } => {
                for index in self.first..self.first + count {
                    each(index, Err(Arc::clone(failure)));
                }
            }
        }
    }
}

/// Reads a worker's reply to one input.
#[inline]
fn read((tag, bytes): (Tag, Arrived<'_>)) -> Encoded<'_> {
    match tag {
        Tag::Value => Ok(bytes),
        Tag::Fault => Err(Arc::new(read_fault(&bytes))),
    }
}

/// The panic, if a worker's reply to an input tells of one.
pub(crate) fn read_panic(tag: Tag, bytes: &[u8]) -> Option<Panic> {
    match tag {
        Tag::Value => None,
        Tag::Fault => match Fault::from_bytes(bytes) {
            Some(Fault::Panicked(panic)) => Some(panic),
            _ => None,
        },
    }
}

#[cold]
fn read_fault(bytes: &[u8]) -> Failure {
    match Fault::from_bytes(bytes) {
        Some(Fault::Panicked(panic)) => Failure::Panicked { panic, attempts: 1 },
        Some(Fault::Decode(why) | Fault::Unknown(why)) => Failure::DecodeArguments(why),
        Some(Fault::Encode(why)) => Failure::EncodeResult(why),
        // `Returned` is only used for tasks that are run for their side effects.
        Some(Fault::Returned(_)) | None => {
            Failure::EncodeResult("the worker wrote an invalid reply".to_owned())
        }
    }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Failure {
    /// The task panicked.
    Panicked {
        /// The panic.
        panic: Panic,
        /// How many attempts there were: 1, and one more for each retry.
        attempts: u32,
    },
    /// The arguments can't be encoded, for this reason.
    EncodeArguments(String),
    /// The arguments can't be decoded.
    DecodeArguments(String),
    /// The result can't be encoded.
    EncodeResult(String),
    /// The worker was lost.
    Lost {
        /// The worker.
        worker: WorkerId,
        /// How the worker ended.
        exit: Exit,
        /// How many attempts there were: 1, and one more for each retry.
        attempts: u32,
        /// Why the pool killed the worker, if it did.
        why: Option<String>,
        /// The end of what the input wrote, if output is captured.
        output: Option<String>,
    },
    /// It exceeded its time limit.
    TimeLimit {
        /// The worker that ran it.
        worker: WorkerId,
        /// The limit.
        limit: Duration,
        /// How many attempts there were: 1, and one more for each retry.
        attempts: u32,
        /// The end of what the input wrote, if output is captured.
        output: Option<String>,
    },
    /// It exceeded its memory limit.
    MemoryLimit {
        /// The worker that ran it.
        worker: WorkerId,
        /// The limit, in bytes.
        limit: u64,
        /// How much it used, in bytes.
        used: u64,
        /// How many attempts there were: 1, and one more for each retry.
        attempts: u32,
        /// The end of what the input wrote, if output is captured.
        output: Option<String>,
    },
    /// It was cancelled: [`Workers::cancel`].
    Cancelled,
    /// The pool was terminated: [`Workers::terminate`].
    Terminated,
    /// All workers are gone and can't be replaced; the text says why, as a sentence.
    Broken(String),
}

/// Identifies a worker in messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerId {
    /// Its process id on its machine.
    pub pid: u32,
    /// The machine that it runs on; `None` for this one.
    pub host: Option<String>,
}

/// "process 7", or "process 7 on head".
impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        match &self.host {
            Some(host) => write!(f, " on {host}"),
            None => Ok(()),
        }
    }
}

impl From<u32> for WorkerId {
    /// A worker on this machine.
    fn from(pid: u32) -> WorkerId {
        WorkerId { pid, host: None }
    }
}

impl Failure {
    /// Notes that the failure happened on another machine.
    #[must_use]
    pub fn on(mut self, name: &str) -> Failure {
        if let Failure::Lost { worker, .. }
        | Failure::TimeLimit { worker, .. }
        | Failure::MemoryLimit { worker, .. } = &mut self
        {
            worker.host = Some(name.to_owned());
        }
        self
    }

    pub(crate) fn at(&self, place: Place) -> Error {
        let codec = |place, verb, what, why: &String| Codec {
            place,
            verb,
            what,
            why: why.clone(),
        };
        match self {
            Failure::Panicked { panic, attempts } => Error::Panicked(Panicked {
                place,
                panic: Box::new(panic.clone()),
                attempts: *attempts,
            }),
            Failure::EncodeArguments(why) => {
                Error::Encode(codec(place, Verb::Encode, Side::Arguments, why))
            }
            Failure::DecodeArguments(why) => {
                Error::Decode(codec(place, Verb::Decode, Side::Arguments, why))
            }
            Failure::EncodeResult(why) => {
                Error::Encode(codec(place, Verb::Encode, Side::Result, why))
            }
            Failure::Lost {
                worker,
                exit,
                attempts,
                why,
                output,
            } => Error::WorkerLost(WorkerLost {
                place,
                worker: worker.clone(),
                exit: *exit,
                attempts: *attempts,
                why: why.as_deref().map(Box::from),
                output: output.as_deref().map(Box::from),
            }),
            Failure::TimeLimit {
                worker,
                limit,
                attempts,
                output,
            } => Error::TimeLimit(TimeLimit {
                place,
                worker: worker.clone(),
                limit: *limit,
                attempts: *attempts,
                output: output.as_deref().map(Box::from),
            }),
            Failure::MemoryLimit {
                worker,
                limit,
                used,
                attempts,
                output,
            } => Error::MemoryLimit(MemoryLimit {
                place,
                worker: worker.clone(),
                limit: *limit,
                used: *used,
                attempts: *attempts,
                output: output.as_deref().map(Box::from),
            }),
            Failure::Cancelled => Error::Cancelled,
            Failure::Terminated => Error::Terminated,
            Failure::Broken(why) => Error::Broken(Broken(why.clone())),
        }
    }
}

/// Describes the failure of a task that belongs to no job: `what` says what kind of task it is.
pub(crate) fn task_failed(what: &str, name: &str, fault: &Fault) -> String {
    match fault {
        Fault::Panicked(panic) => {
            let at = match &panic.location {
                Some(location) => format!(" at {location}"),
                None => String::new(),
            };
            format!("{what} `{name}` panicked{at}: {}", panic.message)
        }
        Fault::Decode(why) => format!("the arguments of {what} `{name}` can't be decoded: {why}"),
        Fault::Encode(why) => format!("the result of {what} `{name}` can't be encoded: {why}"),
        Fault::Unknown(why) => why.clone(),
        Fault::Returned(why) => format!("{what} `{name}` failed: {why}"),
    }
}

/// Receives the outcomes of a job.
pub trait Sink: Debug + Send + Sync {
    /// Takes outcomes: exactly one for each input, in any order. May be called from any thread: it does not block or panic,
    /// and runs no code of users other than the wakers of their futures. Don't call it while holding a lock that a waker
    /// might need.
    fn deliver(self: Arc<Self>, outcomes: Outcomes);

    /// Takes what inputs of the job have logged, before their outcomes are [delivered](Sink::deliver). May be called from any
    /// thread, also under locks: it does not block or panic, and runs no code of users.
    ///
    /// Does nothing by default.
    fn log(&self, records: LogRecords) {
        let _ = records;
    }
}

/// Which outcomes of a job a thread waits for. A hint about when waking it is worthwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All outcomes, or as many as arrive together.
    All,
    /// Any outcome.
    Any,
    /// The outcome of this input.
    Index(usize),
}

/// The condition that a thread waits for: see [`Workers::wait`].
#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a>(pub(crate) &'a dyn Waiting);

impl Waiter<'_> {
    /// Whether the wait is over: a [`Sink`] has received what the thread waits for.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }

    /// Sleeps until the wait is over; returns false if the deadline comes first.
    pub fn sleep(&self, deadline: Option<Instant>) -> bool {
        if self.is_over() {
            return true;
        }
        Parker::with_current(|parker| {
            self.0.tell(parker, true);
            while !self.0.is_over() && deadline.is_none_or(|deadline| deadline > Instant::now()) {
                parker.park(deadline);
            }
            self.0.tell(parker, false);
        });
        self.0.is_over()
    }
}

/// The condition that a thread waits for.
pub(crate) trait Waiting: Debug {
    /// Whether the wait is over.
    fn is_over(&self) -> bool;
    /// Sets whether the thread that ends the wait must wake this parker.
    fn tell(&self, parker: &Arc<Parker>, wake: bool);
}

/// The workers of one pool.
///
/// A program may fork, and the copy has none of the backend's threads. In the copy, all work is refused ([`Error::Closed`]),
/// no method waits, and nothing is sent: [`lineage`] tells the copy from the process in which the workers were made.
pub trait Workers: Debug + Send + Sync {
    /// Accepts a job, with its first inputs. `more`: others follow through [`push`](Workers::push). With an explicit chunk
    /// size, inputs come in whole chunks, except for the last.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after [`close`](Workers::close) or [`terminate`](Workers::terminate); [`Error::broken`] if no
    /// workers can be had. In case of an error, nothing was accepted.
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error>;

    /// Adds inputs to a job, also after [`close`](Workers::close).
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`], [`Error::Terminated`] or [`Error::broken`] if the job was ended by [`cancel`](Workers::cancel),
    /// or by the end of the pool; then the sink has an outcome for everything that was accepted before.
    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error>;

    /// Takes back inputs that have not begun; with `running`, also stops those that have. With `running`, all open inputs get
    /// [`Failure::Cancelled`]; without it, inputs that are taken back get no outcome. Does nothing if the job has finished.
    fn cancel(&self, job: JobId, running: bool);

    /// Waits until `waiter` is over; returns false if the deadline comes first. Meanwhile the calling thread may work for the
    /// pool: deliver outcomes that arrive, to any job.
    ///
    /// By default, it sleeps: other threads deliver.
    fn wait(&self, job: JobId, want: Want, waiter: Waiter<'_>, deadline: Option<Instant>) -> bool {
        let _ = (job, want);
        waiter.sleep(deadline)
    }

    /// How many inputs of this job are running. This is called up to thirty times a second while a call reports its
    /// [progress](crate::Call::progress). If the backend delivers outcomes only when a thread looks for them, this looks, and
    /// delivers what has arrived before it returns.
    ///
    /// By default 0: not known.
    fn running(&self, job: JobId) -> usize {
        let _ = job;
        0
    }

    /// From now on, deliver the outcomes of this job as soon as all have arrived, even if no thread waits: there is a
    /// callback or a future.
    ///
    /// Does nothing by default: other threads deliver anyway.
    fn notify(&self, job: JobId) {
        let _ = job;
    }

    /// The same for some of the outcomes: until this is called again, deliver the job's outcomes as soon as those that are
    /// wanted have arrived, even if no thread waits: there is a stream of them.
    ///
    /// Does nothing by default, like [`notify`](Workers::notify).
    fn notify_of(&self, job: JobId, want: Want) {
        let _ = (job, want);
    }

    /// How many inputs of this task are worth giving to one worker at once. At least that many are drawn ahead for each
    /// worker.
    ///
    /// By default one.
    fn hint(&self, task: u32) -> usize {
        let _ = task;
        1
    }

    /// Accepts no more jobs. Those that were accepted go on, and accept more inputs; then the workers exit.
    fn close(&self);

    /// Stops all work now. All open inputs get [`Failure::Terminated`]. Does not wait for the workers to exit.
    fn terminate(&self);

    /// Waits until the workers are gone and all outcomes are delivered, or until the deadline.
    ///
    /// # Errors
    ///
    /// [`Error::StillOpen`] if neither [`close`](Workers::close) nor [`terminate`](Workers::terminate) was called before, or
    /// if a job waits for inputs that only this thread can push, since it was the last that did; [`Error::Timeout`].
    fn join(&self, deadline: Option<Instant>) -> Result<(), Error>;

    /// Terminates, and waits until nothing is left, but not forever. Called when the pool is dropped.
    fn shut_down(&self);

    /// The number of workers that the pool maintains.
    fn count(&self) -> usize;

    /// What the pool is doing, and has done. Does not wait for workers, but may wait for an answer of another machine, up to
    /// a tenth of a second.
    ///
    /// By default, nothing is known.
    fn stats(&self) -> Stats {
        Stats::default()
    }

    /// The same, and the numbers behind [`Stats::tasks`] in a form that can be added up, for statistics of several machines.
    ///
    /// By default, there are no such numbers.
    fn tallied_stats(&self) -> (Stats, Tallies) {
        (self.stats(), Tallies::default())
    }

    /// Results are about to be returned on this thread. If what workers print goes through this process, as under a test
    /// harness that captures output, print now what they have written.
    ///
    /// By default, does nothing.
    fn settle(&self) {}

    /// Whether messages that tasks send into a [`channel`](crate::channel()) arrive. If not, a [`Sender`](crate::Sender) is
    /// refused as an argument.
    ///
    /// By default false.
    fn carries_channels(&self) -> bool {
        false
    }

    /// Whether workers are confined as [`Settings::sandbox`] says. If not, a pool with a sandbox is refused.
    ///
    /// By default false.
    fn confines(&self) -> bool {
        false
    }

    /// The process ids, as in [`WorkerId::pid`], of the workers on this machine.
    ///
    /// By default none.
    fn pids(&self) -> Vec<u32> {
        Vec::new()
    }
}
