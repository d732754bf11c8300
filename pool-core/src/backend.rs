//! The seam between what users call and what runs their work.
//!
//! Above it: encoding, decoding, iterators, handles. Below it: queues, workers, deaths. A job
//! crosses it as the number of a task, bytes, and options; its outcomes come back through a [`Sink`]
//! as bytes, or as the reason why there are none. Nothing above the seam knows what a process is:
//! another backend may run the same jobs on other machines. (The two methods that speak of
//! processes answer questions that users ask; a backend without processes of its own answers with
//! its best notion of a worker.)

#[cfg(test)]
pub(crate) mod memory;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{Arrived, Exit, Fault, Frames, Panic, Tag};

use crate::error::{
    Broken, Codec, Error, MemoryLimit, Panicked, Place, Side, TimeLimit, WorkerLost,
};
use crate::few::Few;
use crate::retries::Retries;
use crate::sync::Parker;

/// One accepted piece of work, for as long as it is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobId {
    /// Its place among those that are open.
    pub(crate) place: u32,
    /// Tells it from others that had the place before.
    pub(crate) serial: u32,
}

/// What to run, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// Finds the task in any process that runs the same program.
    pub(crate) task: u32,
    pub(crate) options: Options,
}

/// What a caller may ask of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// How many inputs one worker takes at once; `None`: the backend chooses.
    pub(crate) chunksize: Option<usize>,
    /// How long one input may run.
    pub(crate) time_limit: Option<Duration>,
    /// How often an input is run again.
    pub(crate) retries: Retries,
}

/// Encoded inputs of a job, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Portion {
    /// The position of the first among the job's inputs.
    pub(crate) first: usize,
    pub(crate) inputs: Frames,
}

/// What became of inputs that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcomes {
    /// The position of the first among the job's inputs.
    pub(crate) first: usize,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// Encoded results, and what workers say of those that there are none of.
    Replies(Frames),
    /// All of them came to the same end.
    Failed { count: usize, failure: Arc<Failure> },
}

/// The encoded result of an input, or the reason why there is none, with its position.
pub(crate) type Next<'a> = (usize, Encoded<'a>);

/// An encoded result, or the reason why there is none.
pub(crate) type Encoded<'a> = Result<Arrived<'a>, Arc<Failure>>;

impl Outcomes {
    pub(crate) fn failed(first: usize, count: usize, failure: Arc<Failure>) -> Outcomes {
        Outcomes {
            first,
            what: What::Failed { count, failure },
        }
    }

    #[inline]
    pub(crate) fn count(&self) -> usize {
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
        None => Failure::EncodeResult("the worker has written what is no reply".to_owned()),
    }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    Panicked(Panic),
    EncodeArguments(String),
    DecodeArguments(String),
    EncodeResult(String),
    Lost {
        pid: u32,
        exit: Exit,
        attempts: u32,
        /// Why it was killed, if it was for a reason.
        why: Option<String>,
    },
    TimeLimit {
        pid: u32,
        limit: Duration,
    },
    MemoryLimit {
        pid: u32,
        limit: u64,
        used: u64,
    },
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
                why,
            } => Error::WorkerLost(WorkerLost {
                place,
                pid: *pid,
                exit: *exit,
                attempts: *attempts,
                why: why.clone(),
            }),
            Failure::TimeLimit { pid, limit } => Error::TimeLimit(TimeLimit {
                place,
                pid: *pid,
                limit: *limit,
            }),
            Failure::MemoryLimit { pid, limit, used } => Error::MemoryLimit(MemoryLimit {
                place,
                pid: *pid,
                limit: *limit,
                used: *used,
            }),
            Failure::Cancelled => Error::Cancelled,
            Failure::Terminated => Error::Terminated,
            Failure::Broken(why) => Error::Broken(Broken(why.clone())),
        }
    }
}

/// Where outcomes go. Called from any thread, so it neither blocks nor runs code of users other than
/// the wakers of their futures.
pub(crate) trait Sink: Debug + Send + Sync {
    /// Takes outcomes: exactly one for each input, in any order.
    fn deliver(self: Arc<Self>, outcomes: Outcomes);
}

/// What of a job a thread waits for. A hint about when it is worth waking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// All outcomes, or as many as come together.
    All,
    /// Any.
    Any,
    /// That of this input.
    Index(usize),
}

/// A thread that waits for outcomes.
pub(crate) trait Waiting {
    /// Whether it need not wait any more.
    fn is_over(&self) -> bool;
    /// Whoever makes it so is to wake this parker; or is not to, any more.
    fn tell(&self, parker: &Arc<Parker>, wake: bool);
}

/// What a pool needs of whatever runs its work.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Accepts a job, with its first inputs. `more`: others follow by [`push`](Backend::push).
    /// With an explicit chunk size, inputs come in whole chunks, but for the last.
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error>;

    /// Adds inputs. Refused if the job was ended by [`cancel`](Backend::cancel), or by the end of
    /// the pool; then the sink has an outcome for everything that was accepted before.
    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error>;

    /// Takes back what has not begun; with `running`, stops what has. With `running`, everything
    /// that is open gets [`Failure::Cancelled`]; without, what is taken back gets no outcome.
    fn cancel(&self, job: JobId, running: bool);

    /// Waits until `waiting` is over; false if the deadline is before that. The calling thread works
    /// for the pool meanwhile: it delivers what arrives, to whomever.
    fn wait(
        &self,
        job: JobId,
        want: Want,
        waiting: &dyn Waiting,
        deadline: Option<Instant>,
    ) -> bool;

    /// Delivers the outcomes of this job as soon as they are all there, though nobody may wait.
    fn notify(&self, job: JobId);

    /// How many inputs of this task are worth giving to one worker at once.
    fn hint(&self, task: u32) -> usize;

    fn close(&self);
    fn terminate(&self);
    /// Waits until all is over, or until the deadline.
    fn join(&self, deadline: Option<Instant>) -> Result<(), Error>;

    /// Terminates, and waits until nothing is left, but not for ever.
    fn shut_down(&self);

    fn processes(&self) -> usize;
    fn worker_pids(&self) -> Vec<u32>;
}
