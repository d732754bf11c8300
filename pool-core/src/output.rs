//! [`Output`]: where workers print to; and the lines that they print.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where the standard output and the standard error of workers go: for [`PoolBuilder::output`](crate::PoolBuilder::output).
///
/// This applies to descriptors 1 and 2 of each worker, so it covers what C code and child processes write there as well.
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
/// assert!(error.to_string().ends_with(r#"; last line printed: "parsing bad""#));
/// # Ok(())
/// # }
/// ```
///
/// # Buffers
///
/// After each input, a worker flushes the buffers that Rust and C have for standard output, so nothing is lost if the worker
/// is killed later. If a task crashes, what is still in a buffer is lost:
///
/// - C's `stdout` has no buffer with `Capture` and `lines`: everything that was passed to `printf` is in the error, with or
///   without the end of a line. (Code that prints single characters is slower because of that.) With `Inherit`, it has one as
///   usual, unless it is a terminal.
/// - Rust's `print!` holds the beginning of a line until the line ends or is flushed.
///
/// # Under `cargo test`
///
/// With `Inherit`, in a test whose output is captured, the output of workers is captured as well: it is shown if the test
/// fails. That works for pools that are built by the test itself, in its own thread. `cargo test -- --nocapture` shows
/// everything.
///
/// # What tasks leave running
///
/// What threads and processes print that a task left running is in no error if their worker has no input to run at that time;
/// as a [line](Output::lines) it has no task. A process that outlives its worker may go on printing until the pool is
/// dropped; then it gets SIGPIPE, or EPIPE if it ignores that signal.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Output {
    /// To where this program's own output goes.
    #[default]
    Inherit,
    /// Nowhere, but if a task fails, its error contains what it printed before: the last 64 KiB, in the order in which it was
    /// read. (Two streams are read in turn, so a line of one may come before an earlier line of the other.) If an initializer
    /// or a preload task fails, the last line that it printed is in the error.
    ///
    /// This costs about a microsecond for each input of a `map` and three for an `apply`, since the beginning of each input
    /// is marked in both streams; a thread of the pool; and four descriptors for each worker, of which two stay open. A task
    /// that prints faster than the pool reads is slowed down; nothing is lost except what exceeds 64 KiB.
    Capture,
    /// Nowhere.
    Null,
    /// To a function, line by line: see [`Output::lines`].
    #[doc(hidden)]
    Lines(Lines),
}

impl Output {
    /// Passes each line to this function, on the pool's callback thread. If a task fails, its error contains what it printed
    /// before, as with [`Capture`](Output::Capture); the costs are the same.
    ///
    /// The lines of one stream of one worker come in order. A line ends with `\n` or `\r\n`, at the end of the input, and at
    /// the end of the worker; lines longer than 64 KiB come in parts. If the function is slow, up to 65,536 lines or 16 MiB of
    /// them are queued; beyond that, the oldest are dropped. If the function panics, that line is lost. [`Pool::join`](crate::Pool::join)
    /// returns after all lines have been passed on.
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

/// The function that was given to [`Output::lines`].
#[derive(Clone)]
pub struct Lines(Arc<dyn Fn(&WorkerLine) + Send + Sync>);

impl Lines {
    pub(crate) fn new(each: impl Fn(&WorkerLine) + Send + Sync + 'static) -> Lines {
        Lines(Arc::new(each))
    }

    /// Passes a line to the function.
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
    /// The machine that it runs on; `None` for this one.
    pub host: Option<String>,
    /// The task that was running; `None` if none was: an initializer may print, or a thread that a task left running.
    pub task: Option<Cow<'static, str>>,
    /// The position of the task's input among those of the call; `None` for `apply` and `apply_async`, which have one input only,
    /// and while no input runs.
    pub index: Option<usize>,
    /// The stream that it was written to.
    pub stream: Stream,
    /// The line, without its end. Bytes that are not UTF-8 are replaced.
    pub text: String,
}

impl WorkerLine {
    /// How many lines these are: see [`News::Lines`](crate::backend::News::Lines).
    #[doc(hidden)]
    pub fn count(&self) -> usize {
        1 + self.text.bytes().filter(|byte| *byte == b'\n').count()
    }

    /// Each of these lines.
    pub(crate) fn split(mut self) -> impl Iterator<Item = WorkerLine> {
        let text = std::mem::take(&mut self.text);
        let mut from = Some(0);
        std::iter::from_fn(move || {
            let rest = &text[from?..];
            let end = rest.find('\n');
            let line = &rest[..end.unwrap_or(rest.len())];
            from = end.and_then(|end| Some(from? + end + 1));
            Some(WorkerLine {
                text: line.to_owned(),
                ..self.clone()
            })
        })
    }
}

/// The stream that a worker wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output, descriptor 1.
    Stdout,
    /// Standard error, descriptor 2.
    Stderr,
}
