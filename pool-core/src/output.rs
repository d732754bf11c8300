//! Where what workers print goes: [`Output`], and the lines of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where the standard output and the standard error of workers go: for [`PoolBuilder::output`](crate::PoolBuilder::output).
///
/// This is about descriptors 1 and 2 of each worker, so it covers what C code and started programs write there, too.
///
/// ```
/// use pool_core::{Error, Output, Pool, pool_task};
///
/// #[pool_task]
/// fn parse(text: &str) -> usize {
///     println!("parsing {text}");
///     if text == "bad" {
///         std::process::abort();
///     }
///     text.len()
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::builder().processes(2).output(Output::Capture).build()?;
/// let outcomes = pool.task(parse).map_results(["good", "bad"].map(String::from));
/// let error = outcomes[1].as_ref().unwrap_err();
/// assert_eq!(error.output(), Some("parsing bad\n"));
/// assert!(error.to_string().ends_with(r#"; it printed last: "parsing bad""#));
/// # Ok(())
/// # }
/// ```
///
/// # Buffers
///
/// After each input a worker writes out what Rust and C hold in the buffer of standard output, so nothing is lost when it is killed
/// later. Of a task that crashes, what is still in a buffer is lost:
///
/// - C's `stdout` has none with `Capture` and `lines`: what `printf` was given is in the error, with or without the end of a line. (Code
///   that prints single characters is slower for it.) With `Inherit` it has one, as ever, unless it is a terminal.
/// - `print!` of Rust holds the beginning of a line until the line ends, or until it is flushed.
///
/// # Under `cargo test`
///
/// With `Inherit`, in a test whose output is captured, what workers print is captured with it: it is shown if the test fails. That holds
/// for pools that are built by the test itself, in its own thread. `cargo test -- --nocapture` shows everything.
///
/// # What is left behind
///
/// What threads and processes write that a task has left behind is in no error, once their worker has nothing to run; as
/// a [line](Output::lines) it has no task. A process that outlives its worker may go on writing until the pool is dropped; then it gets
/// SIGPIPE, or EPIPE if it ignores that.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Output {
    /// Where those of this program go.
    #[default]
    Inherit,
    /// Nowhere, but what a task wrote before it failed is in its error: the last 64 KiB, in the order in which it was read. (Two streams
    /// are read in turn, so a line of the one may come before an earlier one of the other.) What an initializer or a preload
    /// task printed last is in the error if it fails.
    ///
    /// Costs about a microsecond for each input of a `map`, and three for an `apply`, since its beginning is marked in both streams; a
    /// thread of the pool; and four descriptors for each worker, of which two stay open. A task that prints faster than the pool reads is slowed down, and nothing is lost
    /// but what does not fit.
    Capture,
    /// Nowhere.
    Null,
    /// To a function, line by line: see [`Output::lines`].
    #[doc(hidden)]
    Lines(Lines),
}

impl Output {
    /// Each line is given to this function, on the pool's callback thread. What a task wrote before it failed is in its error as
    /// well, as with [`Capture`](Output::Capture), and it costs the same.
    ///
    /// The lines of one stream of one worker come in order. A line ends with `\n` or `\r\n`, with the input, and with the worker; one
    /// that is longer than 64 KiB comes in parts. If the function is slow, 65 536 lines wait, and of more the oldest are dropped. A panic
    /// in it costs the line. All that was written is told before [`Pool::join`](crate::Pool::join) returns.
    ///
    /// ```
    /// use pool_core::{Error, Output, Pool, WorkerLine, pool_task};
    ///
    /// #[pool_task]
    /// fn greet(name: &str) {
    ///     println!("hello, {name}");
    /// }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let output = Output::lines(|line: &WorkerLine| {
    ///     println!("[worker {}] {}", line.worker, line.text);
    /// });
    /// let pool = Pool::builder().processes(2).output(output).build()?;
    /// pool.map(greet, ["Ada", "Bob"].map(String::from))?;
    /// # Ok(())
    /// # }
    /// ```
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
