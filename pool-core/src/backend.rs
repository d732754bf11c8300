//! The seam between what users call and what runs their work.
//!
//! Above it: encoding, decoding, iterators, handles. Below it: queues, workers, deaths. A job
//! crosses it as the name of a task, bytes, and options; its outcomes come back through a [`Sink`]
//! as bytes, or as the reason why there are none. Nothing above the seam knows what a process is:
//! another backend may run the same jobs on other machines. (The two methods that speak of
//! processes answer questions that users ask; a backend without processes of its own answers with
//! its best notion of a worker.)

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{Exit, Panic};

use crate::error::{Broken, Codec, Error, Panicked, Place, Side, TimeLimit, WorkerLost};

/// One accepted piece of work, for as long as it is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId(pub(crate) u64);

/// What to run, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Finds the task in any process that runs the same program.
    pub(crate) task: &'static str,
    pub(crate) options: Options,
}

/// What a caller may ask of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// How many inputs one worker takes at once; `None`: the backend chooses.
    pub(crate) chunksize: Option<usize>,
    /// How long one input may run.
    pub(crate) time_limit: Option<Duration>,
    /// How often an input is run again after its worker died.
    pub(crate) retries: u32,
}

/// One encoded input of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    pub(crate) index: usize,
    pub(crate) bytes: Vec<u8>,
}

/// What became of one input. Failures are rare and large, results are many: hence the box.
pub(crate) type Outcome = Result<Vec<u8>, Box<Failure>>;

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    Panicked(Panic),
    EncodeArguments(String),
    DecodeArguments(String),
    EncodeResult(String),
    Lost { pid: u32, exit: Exit, attempts: u32 },
    TimeLimit(Duration),
    Cancelled,
    Terminated,
    Broken(String),
}

impl Failure {
    pub(crate) fn at(&self, place: Place) -> Error {
        let codec = |what, why: &String| Codec {
            place,
            what,
            why: why.clone(),
        };
        match self {
            Failure::Panicked(panic) => Error::Panicked(Panicked {
                place,
                panic: panic.clone(),
            }),
            Failure::EncodeArguments(why) => Error::Encode(codec(Side::Arguments, why)),
            Failure::DecodeArguments(why) => Error::Decode(codec(Side::Arguments, why)),
            Failure::EncodeResult(why) => Error::Encode(codec(Side::Result, why)),
            Failure::Lost {
                pid,
                exit,
                attempts,
            } => Error::WorkerLost(WorkerLost {
                place,
                pid: *pid,
                exit: *exit,
                attempts: *attempts,
            }),
            Failure::TimeLimit(limit) => Error::TimeLimit(TimeLimit {
                place,
                limit: *limit,
            }),
            Failure::Cancelled => Error::Cancelled,
            Failure::Terminated => Error::Terminated,
            Failure::Broken(why) => Error::Broken(Broken(why.clone())),
        }
    }
}

/// Where outcomes go. Called from the backend's threads, so it neither blocks nor runs code of
/// users other than the wakers of their futures.
pub(crate) trait Sink: Debug + Send + Sync {
    /// Takes outcomes: exactly one for each input, in any order.
    fn deliver(&self, outcomes: Vec<(usize, Outcome)>);
}

/// What a pool needs of whatever runs its work.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Accepts a job, with its first inputs. `more`: others follow by [`push`](Backend::push).
    /// With an explicit chunk size, inputs come in whole chunks, but for the last.
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Vec<Input>,
        more: bool,
    ) -> Result<JobId, Error>;

    /// Adds inputs. Refused if the job was ended by [`cancel`](Backend::cancel), or by the end of
    /// the pool; then the sink has an outcome for everything that was accepted before.
    fn push(&self, job: JobId, inputs: Vec<Input>, more: bool) -> Result<(), Error>;

    /// Takes back what has not begun; with `running`, stops what has. With `running`, everything
    /// that is open gets [`Failure::Cancelled`]; without, what is taken back gets no outcome.
    fn cancel(&self, job: JobId, running: bool);

    /// Delivers what is finished but kept back to be sent with more. False: nothing is kept back, nor
    /// will be, as long as no inputs are added.
    fn look(&self) -> bool;

    /// How many inputs of this task are worth giving to one worker at once.
    fn hint(&self, task: &'static str) -> usize;

    fn close(&self);
    fn terminate(&self);
    /// Waits until all is over, or until the deadline.
    fn join(&self, deadline: Option<Instant>) -> Result<(), Error>;

    /// Terminates, and waits until nothing is left, but not for ever.
    fn shut_down(&self);

    fn processes(&self) -> usize;
    fn worker_pids(&self) -> Vec<u32>;
}
