//! What runs the work of a pool: how to write a backend of your own.
//!
//! A pool has two halves. What users call (encoding, decoding, iterators, handles) knows no worker; what runs their work
//! (queues, workers, losses) knows no type. A *job* crosses the seam between them as the number of a task, bytes and
//! options; its *outcomes* come back through a [`Sink`], as bytes or as the [`Failure`] that there is instead. Everything
//! else in this crate works over any backend: [`map`](crate::Pool::map), [`imap`](crate::Pool::imap), handles, callbacks,
//! futures, errors.
//!
//! [`PoolBuilder::backend`](crate::PoolBuilder::backend) takes a [`Backend`]: a description of where work is to run, which makes
//! the [`Workers`] of one pool when that is built. [`Local`] is the one that a pool has if nobody says otherwise. [`Inline`]
//! runs everything in the thread that waits for it; it is the shortest one, to begin with when you write another.
//!
//! # What a backend promises
//!
//! - For each input that was accepted exactly one outcome, in any order, from any thread. The exception is
//!   [`cancel`](Workers::cancel) without `running`, after which nobody wants them.
//! - An input runs once at the most, unless [`Options::retries`] allows more. If it can't be known whether it has run, it has.
//! - No method waits, but for [`wait`](Workers::wait), [`join`](Workers::join) and [`shut_down`](Workers::shut_down).
//! - After [`terminate`](Workers::terminate), or when there is no hope for more workers, everything that is open gets its
//!   outcome at once.
//!
//! # Other machines
//!
//! Both sides are the same program, so a task has the same number on both: compare [`fingerprint`]s before you believe that, and
//! name what differs by [`tasks`]. [`Settings`], [`Job`], [`Failure`] and their parts go through serde. Inputs and replies
//! go as bytes by [`Frames::to_bytes`] and [`Frames::from_bytes`]. What inputs have in common ([`Call::partial`](crate::Call::partial),
//! [`Shared`](crate::Shared)) hangs on them as [`Attachment`]s, which may be large: send each to a machine once, before
//! what [refers](Frames::attachments) to it, make it anew there by [`Attachment::with_id`], and hang it on the inputs there by
//! [`Frames::attach`]. Let go of it there when nobody holds it here any more: [`Attachment::on_drop`].
//!
//! An attachment may stand for a [`channel`](crate::channel()) instead of bytes: [`Attachment::channel`]. There it is made anew by
//! [`Channel::of_other`], and what is sent into it is [taken](Channel::take_now) there and [given](Channel::give) to the channel here, before the
//! outcomes of the inputs that have sent it: what inputs send is in the channel before their outcomes are delivered. The channel here ends when
//! nobody holds its attachment, so keep that as long as inputs that refer to it have no outcomes, and that of an initializer or a
//! finalizer until the workers are gone. A backend that does all this says that it
//! [carries channels](Workers::carries_channels).
//!
//! What workers there log goes back as [`LogRecords`], which go through serde: give what a sink there gets to
//! the [`Sink`] of the job here, and what the observer there gets to that of the [`Settings`] here.
//!
//! The other machine may run what it gets on a [`Local`] of its own, with the same [`Settings`]: it has the same trait. How that
//! process gets there: started with `POOL_NODE=scheme://…` in its environment, this same program does not reach `main`, but
//! calls the function that [`node!`](crate::node) has registered for the scheme.

mod inline;
mod journal;
mod logged;
#[cfg(test)]
pub(crate) mod memory;

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
use crate::event::{Ended, Event};
use crate::output::WorkerLine;
use crate::scheduler::LEAVE_MAX;
use crate::stats::Stats;
use crate::sync::Parker;

pub use pool_worker::{
    Attachment, Batch, Bytes, Channel, Exit, Frames, LogLevel, NodeKind, Tag, fingerprint, lineage,
    tasks,
};

pub use self::inline::Inline;
pub use self::logged::LogRecords;
#[cfg(feature = "tracing")]
pub(crate) use self::logged::LogSource;
pub use crate::few::Few;
pub use crate::local::Local;
pub use crate::retries::Retries;

/// Registers, beside other items, what this program is to do instead of `main` when its environment says
/// `POOL_NODE=scheme://…`: a function from the address to the exit code of the process. The variable is taken away before.
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

/// Where the work of a pool is to run.
pub trait Backend: Debug + Send {
    /// Makes the workers of one pool, and returns when they can take work.
    ///
    /// # Errors
    ///
    /// [`Error::start`] if that can't be; [`Error::invalid_setting`] for a setting that can't be met.
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error>;
}

/// What was asked of the builder of a pool, as far as it is about workers. All numbers and durations were checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Settings {
    /// How many workers; `None`: as many as there are CPUs for them.
    pub workers: Option<usize>,
    /// What is run once for all workers of a machine, before there are any.
    pub preload: Option<Preparation>,
    /// What each worker runs before its first input, in order.
    pub initializers: Vec<Preparation>,
    /// What each worker runs when it leaves in good order, in order.
    pub finalizers: Vec<Preparation>,
    /// What the environment of workers has beside that of the process that starts them; of two of one name the last counts.
    pub env: Vec<(OsString, OsString)>,
    /// How many inputs a worker may take before a fresh one takes its place.
    pub max_tasks: Option<usize>,
    /// How long a worker may take until it is ready.
    pub start_timeout: Duration,
    /// How long a pool may be without any worker that is good for something.
    pub give_up_after: Duration,
    /// How long a worker that is to be stopped is asked to, before it is.
    pub grace: Duration,
    /// How much memory a worker may use while it runs an input, in bytes.
    pub memory_limit: Option<u64>,
    /// How much memory a worker may have after an input, in bytes, before a fresh one takes its place.
    pub max_memory: Option<u64>,
    /// Whether what a worker starts must end with it.
    pub contained: bool,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub decode_stack: usize,
    /// Where descriptors 1 and 2 of workers go.
    pub streams: Streams,
    /// What the [observer](Settings::observer) wants to know, beside lines.
    pub observe: Observe,
    /// Which log records of workers somebody wants to have before there are [jobs](Job::log_level), which may say otherwise.
    pub log_level: LogLevel,
    /// Who is told of what happens. Not serialized: another machine sends its [`News`] back.
    #[serde(skip)]
    pub observer: Option<Arc<dyn Observer>>,
}

/// Where the standard output and the standard error of workers go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Streams {
    /// Where those of the process that starts them go.
    #[default]
    Inherit,
    /// Nowhere.
    Null,
    /// Nowhere, but each [`Failure`] of an input that was begun has the end of what that input wrote.
    Capture,
    /// The same, and each line is [news](News::Line).
    Lines,
}

/// What is observed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Observe {
    /// Events of workers.
    pub workers: bool,
    /// Events of inputs: each one.
    pub inputs: bool,
    /// When inputs ran, several together if they are short; and how many wait.
    pub spans: bool,
}

/// What happened in a backend, beside outcomes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum News {
    /// To a worker, or to an input.
    Event(Event),
    /// A worker wrote a line.
    Line(WorkerLine),
    /// A worker logged something that belongs to no open job. What belongs to one goes to its [`Sink`].
    Log(LogRecords),
    /// Inputs ran.
    Span(Span),
    /// So many inputs wait, that were accepted and no worker has begun.
    Waiting {
        /// Since when, from the start of the pool.
        at: Duration,
        /// How many.
        inputs: usize,
    },
}

/// Inputs of one call that a worker ran one after the other, or one that it did not end. Times are from the start of the pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// The worker's position.
    pub worker: usize,
    /// Its process id.
    pub pid: u32,
    /// Its machine; `None`: this one.
    pub host: Option<String>,
    /// The name of the task.
    pub task: Cow<'static, str>,
    /// Tells calls apart.
    pub job: u32,
    /// The position of the first among those of the call; `None` as for [`Error::index`].
    pub first: Option<usize>,
    /// How many inputs.
    pub count: usize,
    /// How many of them failed.
    pub failed: usize,
    /// When the first began.
    pub began: Duration,
    /// When the last ended.
    pub ended: Duration,
    /// How long they ran, all together.
    pub busy: Duration,
    /// The worst that became of any.
    pub outcome: Ended,
}

/// Who is told of what happens in a backend.
pub trait Observer: Debug + Send + Sync {
    /// Takes news, in the order in which they happened to a worker. May be called from any thread, under locks: it does not block, does not
    /// panic, and runs no code of users.
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
            decode_stack: pool_worker::STACK_DEFAULT,
            streams: Streams::default(),
            observe: Observe::default(),
            log_level: LogLevel::default(),
            observer: None,
        }
    }
}

impl Settings {
    /// What workers run that may have [attachments](Preparation::attachments). All of these are for each worker, whichever they
    /// hang on.
    pub fn preparations(&self) -> impl Iterator<Item = &Preparation> {
        self.initializers.iter().chain(&self.finalizers)
    }

    /// The same, to hang attachments on.
    pub fn preparations_mut(&mut self) -> impl Iterator<Item = &mut Preparation> {
        self.initializers.iter_mut().chain(&mut self.finalizers)
    }

    /// How long a worker that leaves may take for its finalizers and exit handlers.
    pub fn leave_max(&self) -> Duration {
        let each = self.finalizers.iter();
        each.map(|task| task.time_limit.unwrap_or(LEAVE_MAX))
            .reduce(Duration::saturating_add)
            .unwrap_or(LEAVE_MAX)
    }
}

/// A task that is run for what it leaves behind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Preparation {
    /// The number of the task.
    pub task: u32,
    /// Its name, for messages.
    pub name: String,
    /// Its encoded arguments.
    pub arguments: Vec<u8>,
    /// What they refer to. Not serialized: see [Other machines](self#other-machines).
    #[serde(skip)]
    pub attachments: Vec<Arc<Attachment>>,
    /// How long it may run, if the task says so. This is for finalizers.
    pub time_limit: Option<Duration>,
}

/// One accepted piece of work, for as long as it is not finished. A backend numbers its jobs as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// Its place among those that are open.
    pub place: u32,
    /// Tells it from others that had the place before.
    pub serial: u32,
}

/// What to run, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Finds the task wherever the same program runs.
    pub task: u32,
    /// It has one input, which is no element of a sequence: [`apply`](crate::Pool::apply).
    pub single: bool,
    /// What the caller asked for, or the task, or the builder.
    pub options: Options,
    /// Which log records of workers somebody wants to have: from now on, of all that they run.
    pub log_level: LogLevel,
}

/// What a caller may ask of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How many inputs one worker takes at once; `None`: the backend chooses.
    pub chunksize: Option<usize>,
    /// How long one input may run.
    pub time_limit: Option<Duration>,
    /// How often an input is run again.
    pub retries: Retries,
    /// Jobs of higher priority go first; those that came first, among equals.
    pub priority: i32,
}

/// Encoded inputs of a job, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// The position of the first among the job's inputs.
    pub first: usize,
    /// The inputs.
    pub inputs: Frames,
}

/// What became of inputs that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcomes {
    /// The position of the first among the job's inputs.
    pub first: usize,
    /// What it is.
    pub what: What,
}

/// Results, or the reason why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Encoded results, and what workers say of those that there are none of.
    Replies(Frames),
    /// All of them came to the same end.
    Failed {
        /// How many.
        count: usize,
        /// Why.
        failure: Arc<Failure>,
    },
}

/// The encoded result of an input, or the reason why there is none, with its position.
pub(crate) type Next<'a> = (usize, Encoded<'a>);

/// An encoded result, or the reason why there is none.
pub(crate) type Encoded<'a> = Result<Arrived<'a>, Arc<Failure>>;

impl Outcomes {
    /// So many inputs, from this position on, have no results.
    pub fn failed(first: usize, count: usize, failure: Arc<Failure>) -> Outcomes {
        Outcomes {
            first,
            what: What::Failed { count, failure },
        }
    }

    /// Of how many inputs they are.
    #[inline]
    pub fn count(&self) -> usize {
        match &self.what {
            What::Replies(frames) => frames.count(),
            What::Failed { count, .. } => *count,
        }
    }

    /// Takes the first away: its position, and its encoded result or the reason why there is none.
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

    /// Shows each, with its position, and lets go of it.
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

    /// Shows each, with its position.
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

/// What a worker has replied to one input.
#[inline]
fn read((tag, bytes): (Tag, Arrived<'_>)) -> Encoded<'_> {
    match tag {
        Tag::Value => Ok(bytes),
        Tag::Fault => Err(Arc::new(read_fault(&bytes))),
    }
}

#[cold]
fn read_fault(bytes: &[u8]) -> Failure {
    match Fault::from_bytes(bytes) {
        Some(Fault::Panicked(panic)) => Failure::Panicked(panic),
        Some(Fault::Decode(why) | Fault::Unknown(why)) => Failure::DecodeArguments(why),
        Some(Fault::Encode(why)) => Failure::EncodeResult(why),
        // An input is not run for its effect.
        Some(Fault::Returned(_)) | None => {
            Failure::EncodeResult("the worker has written what is no reply".to_owned())
        }
    }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Failure {
    /// The task panicked.
    Panicked(Panic),
    /// The arguments can't be encoded, for this reason.
    EncodeArguments(String),
    /// The arguments can't be decoded.
    DecodeArguments(String),
    /// The result can't be encoded.
    EncodeResult(String),
    /// The worker was lost.
    Lost {
        /// Which.
        worker: WorkerId,
        /// How it ended.
        exit: Exit,
        /// How many workers were lost under this input.
        attempts: u32,
        /// Why it was ended, if it was for a reason.
        why: Option<String>,
        /// What the input wrote, the end of it, if that is captured.
        output: Option<String>,
    },
    /// It ran too long.
    TimeLimit {
        /// In this worker.
        worker: WorkerId,
        /// It might run so long.
        limit: Duration,
        /// What the input wrote, the end of it, if that is captured.
        output: Option<String>,
    },
    /// It used too much memory.
    MemoryLimit {
        /// In this worker.
        worker: WorkerId,
        /// It might use so many bytes.
        limit: u64,
        /// It used so many.
        used: u64,
        /// What the input wrote, the end of it, if that is captured.
        output: Option<String>,
    },
    /// [`Workers::cancel`].
    Cancelled,
    /// [`Workers::terminate`].
    Terminated,
    /// There are no workers any more, and there is no hope for others: a sentence that says why.
    Broken(String),
}

/// Tells a worker from others, in messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerId {
    /// Its number on its machine.
    pub pid: u32,
    /// That machine, if it is not this one.
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
    /// One of this machine.
    fn from(pid: u32) -> WorkerId {
        WorkerId { pid, host: None }
    }
}

impl Failure {
    /// It happened on another machine.
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
            Failure::Panicked(panic) => Error::Panicked(Panicked {
                place,
                panic: panic.clone(),
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
                output,
            } => Error::TimeLimit(TimeLimit {
                place,
                worker: worker.clone(),
                limit: *limit,
                output: output.as_deref().map(Box::from),
            }),
            Failure::MemoryLimit {
                worker,
                limit,
                used,
                output,
            } => Error::MemoryLimit(MemoryLimit {
                place,
                worker: worker.clone(),
                limit: *limit,
                used: *used,
                output: output.as_deref().map(Box::from),
            }),
            Failure::Cancelled => Error::Cancelled,
            Failure::Terminated => Error::Terminated,
            Failure::Broken(why) => Error::Broken(Broken(why.clone())),
        }
    }
}

/// What came of a task that is none of a job's: `what` says which it is.
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

/// Where outcomes go.
pub trait Sink: Debug + Send + Sync {
    /// Takes outcomes: exactly one for each input, in any order. May be called from any thread: it does not block, does not panic,
    /// and runs no code of users other than the wakers of their futures. Hold no lock that they might want.
    fn deliver(self: Arc<Self>, outcomes: Outcomes);

    /// Takes what inputs of the job have logged, before their outcomes are [delivered](Sink::deliver). May be called from any thread,
    /// also under locks: it does not block, does not panic, and runs no code of users.
    ///
    /// By default nothing.
    fn log(&self, records: LogRecords) {
        let _ = records;
    }
}

/// What of a job a thread waits for. A hint about when it is worth waking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// All outcomes, or as many as come together.
    All,
    /// Any.
    Any,
    /// That of this input.
    Index(usize),
}

/// What a thread waits for, with which it [waits](Workers::wait).
#[derive(Debug, Clone, Copy)]
pub struct Waiter<'a>(pub(crate) &'a dyn Waiting);

impl Waiter<'_> {
    /// Whether it need not wait any more: a [`Sink`] has got what it waits for.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }

    /// Sleeps until it is over; false if the deadline is before that.
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

/// A thread that waits for outcomes.
pub(crate) trait Waiting: Debug {
    /// Whether it need not wait any more.
    fn is_over(&self) -> bool;
    /// Whoever makes it so is to wake this parker; or is not to, any more.
    fn tell(&self, parker: &Arc<Parker>, wake: bool);
}

/// The workers of one pool.
///
/// A program may fork, and its copy has none of the backend's threads. There, all is refused ([`Error::Closed`]), nothing is waited
/// for, and nothing is sent: [`lineage`] tells the copy from the process that the workers were made in.
pub trait Workers: Debug + Send + Sync {
    /// Accepts a job, with its first inputs. `more`: others follow by [`push`](Workers::push).
    /// With an explicit chunk size, inputs come in whole chunks, but for the last.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after [`close`](Workers::close) or [`terminate`](Workers::terminate); [`Error::broken`] if there is no
    /// hope for workers. Then nothing was accepted.
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error>;

    /// Adds inputs, also after [`close`](Workers::close).
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`], [`Error::Terminated`] or [`Error::broken`] if the job was ended by [`cancel`](Workers::cancel), or
    /// by the end of the pool; then the sink has an outcome for everything that was accepted before.
    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error>;

    /// Takes back what has not begun; with `running`, stops what has. With `running`, everything
    /// that is open gets [`Failure::Cancelled`]; without, what is taken back gets no outcome. A job that is over is
    /// not known any more, and nothing happens.
    fn cancel(&self, job: JobId, running: bool);

    /// Waits until `waiter` is over; false if the deadline is before that. The calling thread may work
    /// for the pool meanwhile: deliver what arrives, to whomever.
    ///
    /// By default it sleeps: other threads deliver.
    fn wait(&self, job: JobId, want: Want, waiter: Waiter<'_>, deadline: Option<Instant>) -> bool {
        let _ = (job, want);
        waiter.sleep(deadline)
    }

    /// How many inputs of this job run now. Where outcomes wait until somebody looks for them, this looks: it is called up to thirty
    /// times a second while a call reports its [progress](crate::Call::progress), and what has come is delivered before it returns.
    ///
    /// By default 0: it is not known.
    fn running(&self, job: JobId) -> usize {
        let _ = job;
        0
    }

    /// From now on outcomes of this job are to be delivered as soon as they are all there, though nobody may wait: there is a
    /// callback, or a future.
    ///
    /// By default nothing: they are delivered by other threads anyway.
    fn notify(&self, job: JobId) {
        let _ = job;
    }

    /// The same of a part of the outcomes: from now on, and until it is called again, the job's outcomes are to be delivered as soon
    /// as what is wanted is there, though nobody may wait. (There is a stream of them.)
    ///
    /// By default nothing, as [`notify`](Workers::notify).
    fn notify_of(&self, job: JobId, want: Want) {
        let _ = (job, want);
    }

    /// How many inputs of this task are worth giving to one worker at once. So many and some more are drawn ahead for
    /// each worker.
    ///
    /// By default one.
    fn hint(&self, task: u32) -> usize {
        let _ = task;
        1
    }

    /// Takes no more jobs. Those that were accepted go on, and take more inputs; then the workers leave.
    fn close(&self);

    /// Stops now. Everything that is open gets [`Failure::Terminated`]. Does not wait for that.
    fn terminate(&self);

    /// Waits until the workers are gone and all outcomes are delivered, or until the deadline.
    ///
    /// # Errors
    ///
    /// [`Error::StillOpen`] without [`close`](Workers::close) or [`terminate`](Workers::terminate) before, or if a job waits for
    /// inputs that only this thread can push, as it was the last to do so; [`Error::Timeout`].
    fn join(&self, deadline: Option<Instant>) -> Result<(), Error>;

    /// Terminates, and waits until nothing is left, but not for ever. Called when the pool is dropped.
    fn shut_down(&self);

    /// How many workers there are when all is well.
    fn count(&self) -> usize;

    /// What the pool is doing, and has done. Does not wait for workers.
    ///
    /// By default nothing is known.
    fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Whether what tasks send into a [`channel`](crate::channel()) arrives. If not, a [`Sender`](crate::Sender) is refused as an
    /// argument.
    ///
    /// By default not.
    fn carries_channels(&self) -> bool {
        false
    }

    /// The numbers, as in [`WorkerId::pid`], of those that are on this machine.
    ///
    /// By default none.
    fn pids(&self) -> Vec<u32> {
        Vec::new()
    }
}
