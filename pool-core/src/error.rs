//! All errors, as callers see them.

use std::borrow::Cow;
use std::error;
use std::fmt;
use std::time::Duration;

use pool_worker::{Exit, Panic, Task};
use serde::{Deserialize, Serialize};

use crate::backend::WorkerId;

/// Why a call gave no result.
///
/// An error about a task has the task's name ([`task`](Error::task)) and, if the call had several inputs, the position of the
/// one that failed ([`index`](Error::index)).
///
/// `Debug` prints the name of the variant and the text of `Display`, so a `main` that returns an error prints a readable
/// message. [`source`](error::Error::source) is always `None`: the text is complete.
///
/// It can be serialized, so a task that uses a pool of its own may return `Result<T, Error>` and use `?`, or `Result<T,
/// `[`TaskError`](crate::TaskError)`>` if it returns other errors as well.
///
/// [The guide](crate::guide::errors) says what each error means and what to do about it.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn fragile(x: i32) -> i32 {
///     match x {
///         1 => panic!("one is too much"),
///         2 => std::process::abort(),
///         _ => x,
///     }
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(2)?;
/// for outcome in pool.task(fragile).map_results(0..3) {
///     match outcome {
///         Ok(x) => assert_eq!(x, 0),
///         Err(Error::Panicked(panic)) => assert_eq!(panic.message(), "one is too much"),
///         Err(Error::WorkerLost(lost)) => assert_eq!(lost.signal(), Some("SIGABRT")),
///         // The enum may grow.
///         Err(other) => return Err(other),
///     }
/// }
/// // Each has the name of the task and the position of its input.
/// let error = pool.map(fragile, [0, 0, 1]).unwrap_err();
/// assert!(error.task().unwrap().ends_with("fragile"));
/// assert_eq!(error.index(), Some(2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Error {
    /// The task panicked. The worker lives on. In a program that is built with `panic = "abort"`, another worker takes its
    /// place, and whatever else ran in the old one, such as its threads, is gone.
    Panicked(Panicked),
    /// The worker died while it ran the task: a crash, `exit`, `abort`, or a signal from outside. Another worker has taken
    /// its place.
    WorkerLost(WorkerLost),
    /// The task exceeded its time limit, and its worker was killed.
    TimeLimit(TimeLimit),
    /// The task exceeded its memory limit, and its worker was killed.
    MemoryLimit(MemoryLimit),
    /// Timed out waiting for the result. You can ask for it again.
    Timeout,
    /// The work was cancelled.
    Cancelled,
    /// The pool was terminated or dropped before the result was ready.
    Terminated,
    /// The pool accepts no more work: it was closed or terminated.
    Closed,
    /// [`join`](crate::Pool::join) was called without [`close`](crate::Pool::close) or [`terminate`](crate::Pool::terminate)
    /// before it; or the calling thread holds an `imap` that it has not consumed to the end, so `join` would never return.
    StillOpen,
    /// The result was already taken.
    Taken,
    /// The other end of a [`channel`](crate::channel()) is gone: for a receiver, all senders; for a sender, the receiver.
    Disconnected,
    /// A setting is invalid.
    InvalidSetting(InvalidSetting),
    /// The arguments or the result can't be turned into bytes.
    Encode(Codec),
    /// The arguments or the result can't be read back from bytes.
    Decode(Codec),
    /// A worker could not be started, or its initializer or the preload task failed.
    Start(Start),
    /// Workers kept dying before they were ready, and the pool gave up.
    Broken(Broken),
}

impl Error {
    /// The name of the task that the error is about.
    pub fn task(&self) -> Option<&str> {
        self.place().map(|place| &*place.task)
    }

    /// The position among the inputs of the call, from 0, even if there is only one. `None` for [`apply`](crate::Pool::apply)
    /// and [`apply_async`](crate::Pool::apply_async), which take arguments instead of inputs, and for errors about all
    /// inputs, such as bound arguments that can't be encoded.
    pub fn index(&self) -> Option<usize> {
        self.place().and_then(|place| place.index)
    }

    /// The end of what the task wrote to standard output and standard error, at most 64 KiB, if output is captured
    /// ([`PoolBuilder::output`](crate::PoolBuilder::output)). Only [`Panicked`](Error::Panicked),
    /// [`WorkerLost`](Error::WorkerLost), [`TimeLimit`](Error::TimeLimit) and [`MemoryLimit`](Error::MemoryLimit) have it.
    /// `Some("")` means that the task wrote nothing.
    pub fn output(&self) -> Option<&str> {
        match self {
            Error::Panicked(error) => error.output(),
            Error::WorkerLost(error) => error.output(),
            Error::TimeLimit(error) => error.output(),
            Error::MemoryLimit(error) => error.output(),
            _ => None,
        }
    }

    /// The workers of a pool can't be started, for this reason. For [backends](crate::backend).
    pub fn start(why: impl Into<String>) -> Error {
        Error::Start(Start(why.into()))
    }

    /// The workers are gone and can't be replaced, for this reason. For [backends](crate::backend).
    pub fn broken(why: impl Into<String>) -> Error {
        Error::Broken(Broken(why.into()))
    }

    /// This setting of the builder is invalid, for this reason. A setting has the name of its method. For
    /// [backends](crate::backend).
    pub fn invalid_setting(setting: &'static str, why: impl Into<Cow<'static, str>>) -> Error {
        Error::InvalidSetting(InvalidSetting {
            setting: setting.into(),
            why: why.into(),
        })
    }

    /// The arguments of a call with one input, or those that all inputs have in common, can't be encoded.
    pub(crate) fn arguments(task: impl Into<Cow<'static, str>>, why: String) -> Error {
        Error::Encode(Codec {
            place: Place {
                task: task.into(),
                index: None,
            },
            verb: Verb::Encode,
            what: Side::Arguments,
            why,
        })
    }

    fn place(&self) -> Option<&Place> {
        match self {
            Error::Panicked(error) => Some(&error.place),
            Error::WorkerLost(error) => Some(&error.place),
            Error::TimeLimit(error) => Some(&error.place),
            Error::MemoryLimit(error) => Some(&error.place),
            Error::Encode(error) | Error::Decode(error)
                if !matches!(error.what, Side::Shared | Side::Message) =>
            {
                Some(&error.place)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Panicked(error) => error.fmt(f),
            Error::WorkerLost(error) => error.fmt(f),
            Error::TimeLimit(error) => error.fmt(f),
            Error::MemoryLimit(error) => error.fmt(f),
            Error::Timeout => f.write_str("timed out waiting for the result"),
            Error::Cancelled => f.write_str("the work was cancelled"),
            Error::Terminated => f.write_str("the pool was terminated before the result was ready"),
            Error::Closed => {
                f.write_str("the pool accepts no more work: it was closed or terminated")
            }
            Error::StillOpen => f.write_str(
                "join would never return: close or terminate the pool first, and consume or drop \
                 what `imap` gave to this thread",
            ),
            Error::Taken => f.write_str("the result was already taken"),
            Error::Disconnected => f.write_str("the other end of the channel is gone"),
            Error::InvalidSetting(error) => error.fmt(f),
            Error::Encode(error) | Error::Decode(error) => error.fmt(f),
            Error::Start(error) => error.fmt(f),
            Error::Broken(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = match self {
            Error::Panicked(_) => "Panicked",
            Error::WorkerLost(_) => "WorkerLost",
            Error::TimeLimit(_) => "TimeLimit",
            Error::MemoryLimit(_) => "MemoryLimit",
            Error::Timeout => "Timeout",
            Error::Cancelled => "Cancelled",
            Error::Terminated => "Terminated",
            Error::Closed => "Closed",
            Error::StillOpen => "StillOpen",
            Error::Taken => "Taken",
            Error::Disconnected => "Disconnected",
            Error::InvalidSetting(_) => "InvalidSetting",
            Error::Encode(_) => "Encode",
            Error::Decode(_) => "Decode",
            Error::Start(_) => "Start",
            Error::Broken(_) => "Broken",
        };
        write!(f, "{variant}: {self}")
    }
}

impl error::Error for Error {}
impl error::Error for Panicked {}
impl error::Error for WorkerLost {}
impl error::Error for TimeLimit {}
impl error::Error for MemoryLimit {}
impl error::Error for InvalidSetting {}
impl error::Error for Codec {}
impl error::Error for Start {}
impl error::Error for Broken {}

/// The task, and the position of the input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Owned if it came from another process.
    pub(crate) task: Cow<'static, str>,
    pub(crate) index: Option<usize>,
}

impl Place {
    pub(crate) fn of<T: Task>(index: Option<usize>) -> Place {
        Place {
            task: T::NAME.into(),
            index,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task `{}`", self.task)?;
        match self.index {
            Some(index) => write!(f, " (input {index})"),
            None => Ok(()),
        }
    }
}

/// Says how many attempts there were, if there were several.
fn write_attempts(f: &mut fmt::Formatter<'_>, attempts: u32) -> fmt::Result {
    match attempts {
        0 | 1 => Ok(()),
        attempts => write!(f, ", in the last of {attempts} attempts"),
    }
}

/// Appends the last line that the task printed.
fn write_last_line(f: &mut fmt::Formatter<'_>, output: Option<&str>) -> fmt::Result {
    match output.and_then(last_line) {
        Some(line) => write!(f, "; last line printed: {line:?}"),
        None => Ok(()),
    }
}

/// The last line that is not blank, or the end of it if it is long.
pub(crate) fn last_line(output: &str) -> Option<String> {
    let line = output
        .lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty())?;
    let too_many = line.chars().count().saturating_sub(LINE_SHOWN);
    let end: String = line.chars().skip(too_many).collect();
    Some(if too_many > 0 {
        format!("…{end}")
    } else {
        end
    })
}

/// How many characters of a line a message shows.
const LINE_SHOWN: usize = 200;

/// A panic in a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Panicked {
    pub(crate) place: Place,
    /// In a box, so that errors are short.
    pub(crate) panic: Box<Panic>,
    pub(crate) attempts: u32,
}

impl Panicked {
    /// The panic message; a fixed text if the payload was not a string.
    pub fn message(&self) -> &str {
        &self.panic.message
    }

    /// Where the task panicked, as `file:line:column`.
    pub fn location(&self) -> Option<&str> {
        self.panic.location.as_deref()
    }

    /// The worker's backtrace, if `RUST_BACKTRACE` was set for it. The text of the error does not contain it.
    pub fn backtrace(&self) -> Option<&str> {
        self.panic.backtrace.as_deref()
    }

    /// How many attempts there were: 1, and one more for each retry.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The end of what the task wrote to standard output and standard error, at most 64 KiB; `None` if output is not
    /// captured: see [`PoolBuilder::output`](crate::PoolBuilder::output).
    pub fn output(&self) -> Option<&str> {
        self.panic.output.as_deref()
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked", self.place)?;
        if let Some(location) = self.location() {
            write!(f, " at {location}")?;
        }
        write_attempts(f, self.attempts)?;
        write!(f, ": {}", self.message())
    }
}

/// The death of a worker while it ran a task.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn end(how: &str) {
///     match how {
///         "exit" => std::process::exit(3),
///         _ => std::process::abort(),
///     }
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::with_processes(1)?;
/// let worker = pool.worker_pids()[0];
/// let Err(Error::WorkerLost(lost)) = pool.apply(end, ("exit".to_owned(),)) else { panic!() };
/// assert_eq!((lost.exit_code(), lost.signal()), (Some(3), None));
/// assert_eq!(lost.pid(), worker);
///
/// // With `retries`, an input may cost several workers.
/// let Err(Error::WorkerLost(lost)) = pool.task(end).retries(2).apply(("abort".to_owned(),)) else { panic!() };
/// assert_eq!((lost.exit_code(), lost.signal()), (None, Some("SIGABRT")));
/// assert_eq!(lost.attempts(), 3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkerLost {
    pub(crate) place: Place,
    pub(crate) worker: WorkerId,
    pub(crate) exit: Exit,
    pub(crate) attempts: u32,
    pub(crate) why: Option<Box<str>>,
    pub(crate) output: Option<Box<str>>,
}

impl WorkerLost {
    /// The process id of the worker that died.
    pub fn pid(&self) -> u32 {
        self.worker.pid
    }

    /// The machine that the worker ran on; `None` for this one.
    pub fn host(&self) -> Option<&str> {
        self.worker.host.as_deref()
    }

    /// The name of the signal that killed the worker, such as `"SIGKILL"`, or `"SIGRTMIN+3"` for a signal without a name of
    /// its own. `"SIGSEGV"` may mean a stack overflow.
    pub fn signal(&self) -> Option<&str> {
        self.exit.signal_name()
    }

    /// The exit code of the worker, if it was not killed by a signal.
    pub fn exit_code(&self) -> Option<i32> {
        match self.exit {
            Exit::Code(code) => Some(code),
            Exit::Signal(_) | Exit::Unknown => None,
        }
    }

    /// How many attempts there were: 1, and one more for each retry.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The end of what the task wrote to standard output and standard error, at most 64 KiB; `None` if output is not
    /// captured: see [`PoolBuilder::output`](crate::PoolBuilder::output).
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }
}

impl fmt::Display for WorkerLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerLost {
            place,
            worker,
            exit,
            ..
        } = self;
        write!(f, "{place} lost its worker: {worker} {exit}")?;
        if let Some(why) = &self.why {
            write!(f, ", because {why}")?;
        }
        write_attempts(f, self.attempts)?;
        write_last_line(f, self.output())
    }
}

/// A task that ran too long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TimeLimit {
    pub(crate) place: Place,
    pub(crate) worker: WorkerId,
    pub(crate) limit: Duration,
    pub(crate) attempts: u32,
    pub(crate) output: Option<Box<str>>,
}

impl TimeLimit {
    /// The process id of the worker that was killed.
    pub fn pid(&self) -> u32 {
        self.worker.pid
    }

    /// The machine that the worker ran on; `None` for this one.
    pub fn host(&self) -> Option<&str> {
        self.worker.host.as_deref()
    }

    /// The limit.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// How many attempts there were: 1, and one more for each retry.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The end of what the task wrote to standard output and standard error, at most 64 KiB; `None` if output is not
    /// captured: see [`PoolBuilder::output`](crate::PoolBuilder::output).
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, in {}, ran past its time limit of {:?}",
            self.place, self.worker, self.limit
        )?;
        write_attempts(f, self.attempts)?;
        write_last_line(f, self.output())
    }
}

/// A task that used too much memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemoryLimit {
    pub(crate) place: Place,
    pub(crate) worker: WorkerId,
    pub(crate) limit: u64,
    pub(crate) used: u64,
    pub(crate) attempts: u32,
    pub(crate) output: Option<Box<str>>,
}

impl MemoryLimit {
    /// The process id of the worker that was killed.
    pub fn pid(&self) -> u32 {
        self.worker.pid
    }

    /// The machine that the worker ran on; `None` for this one.
    pub fn host(&self) -> Option<&str> {
        self.worker.host.as_deref()
    }

    /// The limit, in bytes: [`memory_limit`](crate::PoolBuilder::memory_limit), or RLIMIT_AS.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How much memory the worker had when the pool saw it, in bytes: resident memory; or address space, if an allocation
    /// failed because the process has a limit on that.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// How many attempts there were: 1, and one more for each retry.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The end of what the task wrote to standard output and standard error, at most 64 KiB; `None` if output is not
    /// captured: see [`PoolBuilder::output`](crate::PoolBuilder::output).
    pub fn output(&self) -> Option<&str> {
        self.output.as_deref()
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryLimit {
            place,
            worker,
            limit,
            used,
            attempts,
            output,
        } = self;
        write!(f, "{place}, in {worker}, ")?;
        if used > limit {
            write!(
                f,
                "used {used} bytes of memory, exceeding its limit of {limit}"
            )?;
        } else {
            write!(
                f,
                "asked for more memory than its limit of {limit} bytes allows, when it had {used}"
            )?;
        }
        write_attempts(f, *attempts)?;
        write_last_line(f, output.as_deref())
    }
}

/// An invalid setting.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InvalidSetting {
    pub(crate) setting: Cow<'static, str>,
    pub(crate) why: Cow<'static, str>,
}

impl InvalidSetting {
    /// The name of the setting, which is that of the method that sets it.
    pub fn setting(&self) -> &str {
        &self.setting
    }
}

impl fmt::Display for InvalidSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid setting `{}`: {}", self.setting, self.why)
    }
}

/// Arguments or a result that can't be turned into bytes, or read back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Codec {
    pub(crate) place: Place,
    pub(crate) verb: Verb,
    pub(crate) what: Side,
    pub(crate) why: String,
}

/// Which of the two failed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Verb {
    Encode,
    Decode,
}

/// What could not be encoded or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Side {
    /// The arguments: encoded by the caller, decoded by the worker.
    Arguments,
    /// The result: encoded by the worker, decoded by the caller.
    Result,
    /// The value of a [`Shared`](crate::Shared).
    Shared,
    /// A message that was sent into a [`channel`](crate::channel()).
    Message,
}

impl Codec {
    /// What could not be encoded or decoded.
    pub fn side(&self) -> Side {
        self.what
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Encode => "encode",
            Verb::Decode => "decode",
        };
        let what = match self.what {
            Side::Arguments => "the arguments",
            Side::Result => "the result",
            Side::Shared => return write!(f, "`Shared`: can't {verb} the value: {}", self.why),
            Side::Message => return write!(f, "channel: can't {verb} the message: {}", self.why),
        };
        write!(f, "{}: can't {verb} {what}: {}", self.place, self.why)
    }
}

/// A worker that could not be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start(pub(crate) String);

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a worker failed to start: {}", self.0)
    }
}

/// A pool that gave up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Broken(pub(crate) String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the pool is broken: {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<Error> {
        let place = || Place {
            task: "tests::square".into(),
            index: Some(3),
        };
        let worker = || WorkerId {
            pid: 7,
            host: Some("head".to_owned()),
        };
        let codec = |verb, what| Codec {
            place: place(),
            verb,
            what,
            why: "why".to_owned(),
        };
        vec![
            Error::Panicked(Panicked {
                place: place(),
                panic: Box::new(Panic {
                    message: "oh".to_owned(),
                    location: Some("a.rs:1:2".into()),
                    backtrace: None,
                    output: Some("text".into()),
                }),
                attempts: 2,
            }),
            Error::WorkerLost(WorkerLost {
                place: place(),
                worker: worker(),
                exit: Exit::Signal(9),
                attempts: 2,
                why: Some("of that".into()),
                output: Some("first\nlast\n".into()),
            }),
            Error::TimeLimit(TimeLimit {
                place: place(),
                worker: worker(),
                limit: Duration::from_millis(5),
                attempts: 3,
                output: None,
            }),
            Error::MemoryLimit(MemoryLimit {
                place: place(),
                worker: worker(),
                limit: 5,
                used: 6,
                attempts: 1,
                output: None,
            }),
            Error::Timeout,
            Error::Cancelled,
            Error::Terminated,
            Error::Closed,
            Error::StillOpen,
            Error::Taken,
            Error::invalid_setting("processes", "there are none"),
            Error::Encode(codec(Verb::Encode, Side::Arguments)),
            Error::Encode(codec(Verb::Encode, Side::Shared)),
            Error::Decode(codec(Verb::Decode, Side::Result)),
            Error::start("it is late"),
            Error::broken("all are dead"),
        ]
    }

    #[test]
    fn errors_survive_serialization() {
        for error in everything() {
            let mut bytes = Vec::new();
            pool_worker::encode(&error, &mut bytes).expect("it can be encoded");
            let arrived: Error = pool_worker::decode(&bytes).expect("it can be decoded");
            assert_eq!(format!("{arrived:?}"), format!("{error:?}"));
            assert_eq!(
                (arrived.task(), arrived.index()),
                (error.task(), error.index())
            );
            pool_worker::encode_msgpack(&error, &mut Vec::new()).expect("it can be encoded");
        }
    }

    #[test]
    fn several_attempts_are_told_in_the_same_words() {
        let place = || Place {
            task: "square".into(),
            index: None,
        };
        let all = |attempts| {
            [
                Error::Panicked(Panicked {
                    place: place(),
                    panic: Box::new(Panic {
                        message: "oh".to_owned(),
                        location: Some("a.rs:1:2".into()),
                        backtrace: None,
                        output: None,
                    }),
                    attempts,
                }),
                Error::WorkerLost(WorkerLost {
                    place: place(),
                    worker: 7.into(),
                    exit: Exit::Code(3),
                    attempts,
                    why: None,
                    output: Some("last".into()),
                }),
                Error::TimeLimit(TimeLimit {
                    place: place(),
                    worker: 7.into(),
                    limit: Duration::from_millis(5),
                    attempts,
                    output: Some("last".into()),
                }),
                Error::MemoryLimit(MemoryLimit {
                    place: place(),
                    worker: 7.into(),
                    limit: 5,
                    used: 6,
                    attempts,
                    output: Some("last".into()),
                }),
            ]
            .map(|error| error.to_string())
        };
        assert_eq!(
            all(2),
            [
                "task `square` panicked at a.rs:1:2, in the last of 2 attempts: oh",
                "task `square` lost its worker: process 7 exited with code 3, in the last of 2 attempts; last line printed: \"last\"",
                "task `square`, in process 7, ran past its time limit of 5ms, in the last of 2 attempts; last line printed: \"last\"",
                "task `square`, in process 7, used 6 bytes of memory, exceeding its limit of 5, in the last of 2 attempts; last line printed: \"last\"",
            ]
        );
        for (one, two) in all(1).iter().zip(all(2)) {
            assert_eq!(*one, two.replace(", in the last of 2 attempts", ""));
        }
    }

    #[test]
    fn the_inner_error_has_the_same_text() {
        for error in everything() {
            let inner: Option<&dyn error::Error> = match &error {
                Error::Panicked(inner) => Some(inner),
                Error::WorkerLost(inner) => Some(inner),
                Error::TimeLimit(inner) => Some(inner),
                Error::MemoryLimit(inner) => Some(inner),
                Error::InvalidSetting(inner) => Some(inner),
                Error::Encode(inner) | Error::Decode(inner) => Some(inner),
                Error::Start(inner) => Some(inner),
                Error::Broken(inner) => Some(inner),
                _ => None,
            };
            if let Some(inner) = inner {
                assert_eq!(inner.to_string(), error.to_string());
            }
        }
    }
}
