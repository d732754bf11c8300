//! [`PoolBuilder`]: a pool with settings.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pool_worker::Task;

use crate::backend::{Backend, Inline, Local, Options, Preparation, Settings, Streams};
use crate::callback::Callbacks;
use crate::error::Error;
use crate::event::Event;
use crate::feed;
use crate::log::Logs;
use crate::output::Output;
use crate::pool::{Engine, Pool};
use crate::reporter::{OnEvent, Reporter};
use crate::retries::Retries;
use crate::sandbox::Sandbox;
use crate::timeline::Timeline;

/// The settings of a [`Pool`]; made by [`Pool::builder`].
///
/// # Logs
///
/// With the feature `tracing` of this crate, what tasks log reaches this program: spans and events of `tracing`, and records
/// of `log`. Workers need no setup. What the inputs of a call log goes to the subscriber of the thread that made the call,
/// inside the span that the thread was in. Each event and span has the fields `worker`, `pid`, `task` and `input` (the
/// position of the input; missing for [`apply`](Pool::apply)), and `host` on another machine. If a callsite already has a
/// field of that name, the added field is `pool.task` and so on. If there is no subscriber but a logger of `log`, the logger
/// gets the same information as text.
///
/// - Workers create no records below the level that the subscriber had when the call was made. All other filters are applied
///   here.
/// - One thread of the pool calls the subscriber, a moment later. No task waits for it, and the times that it sees are those
///   of the delivery. If the subscriber is too slow, 65,536 records or 16 MiB are queued; the rest is dropped, and a warning
///   with the target `pool_core` says how much. Texts are cut at 4 KiB.
/// - [`join`](Pool::join) waits until everything that was logged before has been delivered, unless the subscriber makes no
///   progress for five seconds. Dropping the pool waits half a second.
/// - What a worker has logged is delivered even if the worker crashes at the next instruction; its open spans are closed
///   then. Spans are created anew here, but are not entered.
/// - What threads log that a task left running is attributed to the input that runs in the worker. If none runs, it goes to
///   the subscriber under which the pool was built, or else to that of the first call.
/// - An initializer may install a subscriber or a logger. That one then gets what its worker logs, and this program gets
///   nothing. A task can't install one, because this crate has installed its own by then, unless nothing in this program
///   listens. (While initializers run, `log` has no logger, so what they log through `log` is lost.)
///
/// See the example `logging`.
///
/// # Examples
///
/// ```
/// use std::sync::OnceLock;
/// use pool_core::{Error, Pool, pool_task};
///
/// static GREETING: OnceLock<String> = OnceLock::new();
///
/// #[pool_task]
/// fn prepare(greeting: &str) {
///     GREETING.set(greeting.to_owned()).expect("once in each worker");
/// }
///
/// #[pool_task]
/// fn greet(name: &str) -> String {
///     format!("{}, {name}!", GREETING.get().expect("prepare ran first"))
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::builder()
///     .processes(2)
///     .initializer(prepare, ("Hello".to_owned(),))
///     .max_tasks_per_child(100)
///     .build()?;
/// assert_eq!(pool.apply(greet, ("world".to_owned(),))?, "Hello, world!");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "settings do nothing until `build`"]
pub struct PoolBuilder {
    backend: Box<dyn Backend>,
    /// [`inline`](PoolBuilder::inline) was called.
    inline: bool,
    settings: Settings,
    /// An argument that could not be encoded.
    failed: Option<Error>,
    defaults: Options,
    output: Output,
    on_event: Option<Handler>,
    timeline: Option<Timeline>,
}

/// The function that was given to [`PoolBuilder::on_event`].
struct Handler(OnEvent);

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

impl PoolBuilder {
    pub(crate) fn new() -> PoolBuilder {
        PoolBuilder {
            backend: Box::new(Local),
            inline: false,
            settings: Settings::default(),
            failed: None,
            defaults: Options::default(),
            output: Output::default(),
            on_event: None,
            timeline: None,
        }
    }

    /// Where the work runs.
    ///
    /// Default: [`Local`], processes on this machine. A pool behaves the same with every backend, except for what the
    /// backend's documentation says.
    pub fn backend(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Box::new(backend);
        self.inline = false;
        self
    }

    /// Runs tasks in this process, in the thread that makes the call, one after the other: for debuggers, profilers and Miri.
    /// Results, errors, their order, retries after panics and laziness stay the same; [`Inline`] says what differs.
    ///
    /// `POOL_INLINE=1` in the environment does the same to every pool of the program without changing it: `POOL_INLINE=1 gdb
    /// ./program`. Empty or `0` means no; any other value is an error. Workers ignore the variable.
    ///
    /// Limits, containment and sandboxes need a process. Together with `inline`, [`time_limit`](PoolBuilder::time_limit),
    /// [`memory_limit`](PoolBuilder::memory_limit), [`contain`](PoolBuilder::contain), [`sandbox`](PoolBuilder::sandbox) and the
    /// [`time_limit`](crate::Call::time_limit) of a call are refused with [`Error::InvalidSetting`]. Time limits that tasks
    /// declare (`#[pool_task(time_limit = "5s")]`) are ignored, and so are settings about workers
    /// ([`max_tasks_per_child`](PoolBuilder::max_tasks_per_child), [`grace`](PoolBuilder::grace) and the like). With
    /// `POOL_INLINE=1`, all of these are ignored and none is refused.
    ///
    /// Whatever [`output`](PoolBuilder::output) says, tasks print to where the program prints.
    ///
    /// Default: each worker is a process.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn half(x: u32) -> u32 {
    ///     assert!(x % 2 == 0, "{x} is odd");
    ///     x / 2
    /// }
    ///
    /// # fn main() -> Result<(), Error> {
    /// // A breakpoint in `half` stops this process.
    /// let pool = Pool::builder().inline().build()?;
    /// assert_eq!(pool.map(half, [2, 4])?, [1, 2]);
    /// let error = pool.apply(half, (3,)).unwrap_err();
    /// assert!(error.to_string().contains("3 is odd"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn inline(mut self) -> Self {
        self.backend = Box::new(Inline);
        self.inline = true;
        self
    }

    /// Sets the number of workers.
    ///
    /// Default: one for each CPU that this process may use according to its affinity and its cgroup; see
    /// [`std::thread::available_parallelism`]. 0 is refused.
    pub fn processes(mut self, processes: usize) -> Self {
        self.settings.workers = Some(processes);
        self
    }

    /// Sets a task that runs once, before there are any workers. Every worker has what it leaves in `static` variables. Use
    /// it for data that takes long to load, or much memory: a model, a dictionary, an index.
    ///
    /// One process runs the task and then forks the workers. They share its memory, which is copied only where one of them
    /// writes: 2 GiB are loaded once and exist once, however many workers there are. A worker, also a replacement, starts as
    /// fast as a fork. The [`initializer`](PoolBuilder::initializer) runs in each worker after the fork.
    ///
    /// Default: none; each worker is this program, started again.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::OnceLock;
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    ///
    /// #[pool_task]
    /// fn load(text: &str) {
    ///     WORDS.set(text.split(' ').map(str::to_owned).collect()).expect("this runs once");
    /// }
    ///
    /// #[pool_task]
    /// fn word(number: usize) -> Option<String> {
    ///     WORDS.get().expect("load ran first").get(number).cloned()
    /// }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder().processes(2).preload(load, ("some words".to_owned(),)).build()?;
    /// assert_eq!(pool.apply(word, (1,))?.as_deref(), Some("words"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # What a fork means
    ///
    /// - Threads are not copied, and whatever they were doing is left half-done. So the task must end the threads that it
    ///   starts: if any are left (a thread pool of rayon, a runtime), [`build`](PoolBuilder::build) fails and says how many.
    ///   Start those in the initializer.
    /// - Files and connections that the task opened are shared by all workers: a file has one position, and what several
    ///   workers write to a connection gets mixed. Open such things in the initializer, or read with
    ///   [`read_at`](std::os::unix::fs::FileExt::read_at).
    /// - A random number generator that the task seeded yields the same numbers in every worker.
    /// - Handlers of C's `pthread_atfork` are not called. C exit handlers run in each worker that exits normally.
    /// - For each worker, [`memory_limit`](PoolBuilder::memory_limit) and
    ///   [`max_memory_per_child`](PoolBuilder::max_memory_per_child) count the preloaded memory.
    ///
    /// # What can go wrong
    ///
    /// If the task returns `Err`, panics, exits, or does not finish within [`start_timeout`](PoolBuilder::start_timeout),
    /// `build` fails and says why. If the process that forks is killed later, or stops responding, the workers live on.
    /// Another process takes its place and runs the task again; the workers that it forks share memory with each other only.
    /// If the task fails then, that counts as workers that failed to start ([`give_up_after`](PoolBuilder::give_up_after)).
    ///
    /// The process ends when the pool ends or is dropped, and when this program ends, however that happens. It does not count
    /// as one of the [`processes`](PoolBuilder::processes). In `ps` it is `pool-zygote of` this program. In the task,
    /// [`worker::index`](crate::worker::index) is `None`.
    pub fn preload<T: Task>(mut self, _task: T, args: T::Args) -> Self {
        match prepare::<T>(args) {
            // An attachment would have to be there before the first worker is.
            Ok(task) if !task.attachments.is_empty() => {
                let why = "the arguments of a preload task can't contain a `Shared` or a `Sender`: pass the value itself, which \
                           all workers share anyway, and pass the `Sender` to an initializer";
                self.failed = Some(Error::arguments(T::NAME, why.to_owned()));
            }
            Ok(task) => self.settings.preload = Some(task),
            Err(error) => self.failed = Some(error),
        }
        self
    }

    /// Adds a task that every worker, also a replacement, runs once before its first input. Later tasks find what it leaves
    /// in `static` variables.
    ///
    /// Several initializers run in the order in which they were added.
    ///
    /// Default: none. If one returns `Err`, panics, exits, or does not finish in [time](PoolBuilder::start_timeout),
    /// [`build`](PoolBuilder::build) fails with the text of the error: that of its `Display`, or else of its `Debug`. (`?`
    /// turns any error into a [`TaskError`](crate::TaskError).) In a replacement, it counts as a failed start
    /// ([`give_up_after`](PoolBuilder::give_up_after)). Anything else that an initializer returns is ignored.
    ///
    /// A panic hook that an initializer sets ([`std::panic::set_hook`]) is called for panics on threads that tasks start.
    /// Panics of tasks go to the caller instead, as [`Error::Panicked`] with their location, as they do without a hook. The
    /// same holds for [`preload`](PoolBuilder::preload). (A hook that is set by a task is called for the next panic, which is
    /// then reported without its location.)
    ///
    /// # Examples
    ///
    /// ```
    /// use std::path::Path;
    /// use pool_core::{Pool, TaskError, pool_task};
    ///
    /// #[pool_task]
    /// fn load(words: &Path) -> Result<(), TaskError> {
    ///     let _words = std::fs::read_to_string(words)?;
    ///     Ok(())
    /// }
    ///
    /// let pool = Pool::builder().initializer(load, ("/no/such/words".into(),)).build();
    /// let why = pool.unwrap_err().to_string();
    /// assert!(why.ends_with("load` failed: No such file or directory (os error 2)"), "{why}");
    /// ```
    pub fn initializer<T: Task>(mut self, _task: T, args: T::Args) -> Self {
        match prepare::<T>(args) {
            Ok(task) => self.settings.initializers.push(task),
            Err(error) => self.failed = Some(error),
        }
        self
    }

    /// Adds a task that every worker runs once when it exits normally, to write what it has gathered, or to sign off from a
    /// server. It runs before the exit handlers of the process, and what it prints is not lost.
    ///
    /// A worker exits normally
    ///
    /// - after [`close`](Pool::close), when there is no more work; [`join`](Pool::join) waits for that;
    /// - when another worker takes its place ([`max_tasks_per_child`](PoolBuilder::max_tasks_per_child),
    ///   [`max_memory_per_child`](PoolBuilder::max_memory_per_child));
    /// - if it is idle when the pool is terminated or dropped. Then it is killed after 200 ms, finished or not.
    ///
    /// Otherwise the finalizer does not run: in a worker that dies, is killed, or runs an input when the pool is terminated.
    /// So don't use it for work that must be done.
    ///
    /// Several finalizers run in the order in which they were added. Together with the exit handlers they may take as long as
    /// the sum of their time limits (`#[pool_task(time_limit = "30s")]`; 10 seconds for a task without one); then the worker
    /// is killed. Other workers go on meanwhile, but a pool that replaces its workers faster than they exit waits for them.
    ///
    /// Its arguments may contain a [`Shared`](crate::Shared). A panic or an `Err` is ignored, and the next finalizer runs.
    ///
    /// Default: none.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::fs;
    /// use std::path::Path;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// static SEEN: AtomicU64 = AtomicU64::new(0);
    ///
    /// #[pool_task]
    /// fn look(_: u64) {
    ///     SEEN.fetch_add(1, Ordering::Relaxed);
    /// }
    ///
    /// #[pool_task]
    /// fn write_report(directory: &Path) {
    ///     let report = directory.join(std::process::id().to_string());
    ///     fs::write(report, SEEN.load(Ordering::Relaxed).to_string()).expect("there is room");
    /// }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = std::env::temp_dir().join(format!("finalizer-{}", std::process::id()));
    /// # fs::create_dir_all(&directory)?;
    ///
    /// let pool = Pool::builder().processes(2).finalizer(write_report, (directory.clone(),)).build()?;
    /// pool.map(look, 0..100)?;
    /// pool.close();
    /// pool.join()?;
    ///
    /// let mut seen = 0;
    /// for report in fs::read_dir(&directory)? {
    ///     seen += fs::read_to_string(report?.path())?.parse::<u64>()?;
    /// }
    /// assert_eq!(seen, 100);
    /// # fs::remove_dir_all(&directory)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn finalizer<T: Task>(mut self, _task: T, args: T::Args) -> Self {
        match prepare::<T>(args) {
            Ok(task) => self.settings.finalizers.push(task),
            Err(error) => self.failed = Some(error),
        }
        self
    }

    /// Sets an environment variable for workers; it need not be set in this program. Workers have it from the start, so
    /// libraries that read it when they are loaded see it as well. So do the preload task and pools that tasks create.
    ///
    /// May be called several times; if a name is given twice, the last value counts. Workers inherit the rest of their
    /// environment from this program.
    ///
    /// # Threads of libraries
    ///
    /// There are as many workers as CPUs, and many libraries start as many threads as there are CPUs: 64 workers with 64
    /// threads each compete for 64 CPUs. So let such a library use one thread:
    ///
    /// | variable | used by |
    /// |---|---|
    /// | `RAYON_NUM_THREADS` | rayon, and whatever uses its global pool; polars has its own `POLARS_MAX_THREADS` |
    /// | `OMP_NUM_THREADS` | OpenMP, and thus many C and Fortran libraries |
    /// | `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS` | the linear algebra of OpenBLAS, of Intel's MKL |
    ///
    /// Default: only the environment of this program. Refused are names that are empty or contain `=` or NUL, values that
    /// contain NUL, and the library's own variables: `POOL_NODE` and all that begin with `POOL_WORKER_`.
    ///
    /// # Examples
    ///
    /// ```
    /// use pool_core::{Error, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn threads() -> Option<String> {
    ///     std::env::var("RAYON_NUM_THREADS").ok()
    /// }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder().env("RAYON_NUM_THREADS", "1").env("OMP_NUM_THREADS", "1").build()?;
    /// assert_eq!(pool.apply(threads, ())?.as_deref(), Some("1"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let variable = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.settings.env.push(variable);
        self
    }

    /// Sets how many inputs a worker may run before a fresh one takes its place, so that memory that tasks leak is given
    /// back. A chunk that has begun is finished first.
    ///
    /// The fresh worker is started when the old one has few inputs left (an eighth of the limit), so there may be up to twice
    /// as many processes; no more than [`processes`](PoolBuilder::processes) of them run tasks at once.
    ///
    /// Default: no limit. 0 is refused.
    pub fn max_tasks_per_child(mut self, tasks: usize) -> Self {
        self.settings.max_tasks = Some(tasks);
        self
    }

    /// Sets how long a worker may take until it is ready, including its initializers. After that it is killed, and its start
    /// counts as failed. A [`preload`](PoolBuilder::preload) task has the same limit.
    ///
    /// Default: 30 seconds. Zero is refused.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.settings.start_timeout = timeout;
        self
    }

    /// Sets how long a pool may be without a working worker. After that it is [`Error::Broken`], which is then the outcome of
    /// all open inputs.
    ///
    /// If a worker can't be replaced at once, because the system is out of processes, descriptors or memory, or because
    /// workers die before they have done anything, the pool tries again after pauses that grow from 10 ms to one second. The
    /// other workers go on meanwhile.
    ///
    /// Default: 30 seconds. Zero is refused. ([`build`](PoolBuilder::build) itself fails as soon as one worker fails to
    /// start.)
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.settings.give_up_after = time;
        self
    }

    /// Sets how long each input may run, unless the call ([`Call::time_limit`](crate::Call::time_limit)) or the task says
    /// otherwise.
    ///
    /// Default: no limit. Zero is refused.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.defaults.time_limit = Some(limit);
        self
    }

    /// Sets how often an input is run again, unless the call ([`Call::retries`](crate::Call::retries)) or the task says
    /// otherwise.
    ///
    /// Default: 0, nothing runs twice.
    pub fn retries(mut self, retries: impl Into<Retries>) -> Self {
        self.defaults.retries = retries.into();
        self
    }

    /// Sets the time between SIGTERM and SIGKILL for a worker whose input has exceeded its time limit.
    ///
    /// Default: 100 ms. Zero: the worker is killed at once.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// Sets how much memory a worker may use while it runs an input, in bytes. A worker that uses more is killed, and the
    /// outcome of that input is [`Error::MemoryLimit`].
    ///
    /// This is the resident memory of the process, including the program itself (some megabytes). It is checked fifty times a
    /// second, so a task may exceed the limit for a moment without being noticed.
    ///
    /// If the process has a limit on its address space (RLIMIT_AS, `ulimit -v`) and aborts because an allocation failed, as
    /// Rust's standard library does, the outcome is the same.
    ///
    /// Default: no limit. 0 is refused. Such an input is not run again, whatever [`retries`](PoolBuilder::retries) says.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// Sets how much memory a worker may have after an input, in bytes, before a fresh one takes its place. The chunk that it
    /// has begun is finished first. The other inputs that it was given run elsewhere, except those that it begins before the
    /// pool notices.
    ///
    /// This is the resident memory of the process, including the program itself. Reading it after each input takes some
    /// microseconds.
    ///
    /// Default: no limit. 0 is refused.
    pub fn max_memory_per_child(mut self, bytes: u64) -> Self {
        self.settings.max_memory = Some(bytes);
        self
    }

    /// Lets everything that a worker starts end with the worker, however the worker, the pool or this program ends: commands,
    /// and also daemons that have left its session.
    ///
    /// Each worker gets a PID namespace of its own. In a task, the worker's process id is a small number, different from the
    /// one that [`Pool::worker_pids`] and errors report. The latter is that of a guard process, which exits as the worker
    /// does; a signal sent to it reaches the worker's process group. A contained worker takes two more processes and starts
    /// somewhat more slowly. If this program lacks CAP_SYS_ADMIN, the worker gets a user namespace as well, so setuid
    /// programs, `sudo` for instance, gain no rights in a task.
    ///
    /// Default: not contained. Commands that a task leaves behind in its process group still end with their worker; daemons
    /// don't. If the system refuses the namespace, [`build`](PoolBuilder::build) fails and says why.
    pub fn contain(mut self) -> Self {
        self.settings.contained = true;
        self
    }

    /// Confines workers: once its initializers have run, a worker can compute and answer, and nothing else, unless the
    /// [`Sandbox`] permits it. For code that reads hostile data: whoever takes over such a worker through its input can't read
    /// files, open connections, start processes, or reach this program and the other workers. The
    /// [chapter](crate::guide::sandbox) of the guide shows how to use it, and
    /// [SECURITY.md](https://github.com/pool-rs/pool/blob/main/SECURITY.md) says precisely what remains.
    ///
    /// Initializers and the [`preload`](PoolBuilder::preload) task run before a worker enters the sandbox, so they can load and
    /// open what tasks need. Tasks and finalizers run in the sandbox, and so does everything that they start. There is no way
    /// out of it. Each replacement of a worker enters it, too.
    ///
    /// Alone, a sandbox limits neither time nor memory: set [`time_limit`](PoolBuilder::time_limit) and [`Sandbox::memory`], too.
    /// A worker that was taken over sees the inputs that it is given later, and decides what their results are, until it is
    /// replaced ([`max_tasks_per_child`](PoolBuilder::max_tasks_per_child)).
    ///
    /// Everything that tasks use of this library works in there: results, errors, panics, [`Shared`](crate::Shared),
    /// [`channel`](crate::channel()), [`Output`], logs, time limits. But a task can't start a pool of its own, nor create a
    /// `Shared`. If backtraces are wanted (`RUST_BACKTRACE`), a worker reads the program's debug information when it starts,
    /// since it can't later: tens of milliseconds and of megabytes for each worker. Frames in shared libraries may lack names. A
    /// debugger of the same user can't attach to workers, and a crash writes no core file.
    ///
    /// Default: not confined. If the machine lacks what the sandbox needs, or a path can't be opened,
    /// [`build`](PoolBuilder::build) fails and says so ([`Sandbox::best_effort`]). An [`inline`](PoolBuilder::inline) pool
    /// refuses a sandbox.
    pub fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.settings.sandbox = Some(sandbox);
        self
    }

    /// Sets how much of the stack may be used to decode a value, in bytes: an argument in a worker, a result in the thread
    /// that asks for it. A value that is nested too deep for that is [`Error::Decode`]; without a limit it would overflow the
    /// stack and kill the process.
    ///
    /// Raise it for deeply nested values, such as linked lists, and ask for their results in threads with enough stack. (Rust
    /// gives a thread 2 MiB; the main thread of a worker has what `ulimit -s` says, mostly 8 MiB.)
    ///
    /// Default: 1 MiB, some thousand levels. 0 is refused.
    pub fn decode_stack(mut self, bytes: usize) -> Self {
        self.settings.decode_stack = bytes;
        self
    }

    /// Sets where the standard output and standard error of workers go: see [`Output`].
    ///
    /// Default: [`Output::Inherit`], to those of this program.
    pub fn output(mut self, output: Output) -> Self {
        self.settings.streams = match output {
            Output::Inherit => Streams::Inherit,
            Output::Capture => Streams::Capture,
            Output::Null => Streams::Null,
            Output::Lines(_) => Streams::Lines,
        };
        self.output = output;
        self
    }

    /// Sets a function that is called with each [`Event`]: workers start, die, and are replaced; inputs begin and end.
    ///
    /// It runs on the pool's callback thread. If it is too slow, or the connection to another machine is, the oldest events are
    /// dropped ([`Event::Missed`]).
    ///
    /// Default: none, and then it costs nothing.
    pub fn on_event(mut self, each: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.settings.observe.workers = true;
        self.settings.observe.inputs = true;
        self.on_event = Some(Handler(Arc::new(each)));
        self
    }

    /// Records what workers do in this [`Timeline`], for viewing later. Several pools may share one. If called twice, the
    /// last one counts. Default: nothing is recorded.
    pub fn timeline(mut self, timeline: &Timeline) -> Self {
        self.settings.observe.workers = true;
        self.settings.observe.spans = true;
        self.timeline = Some(timeline.clone());
        self
    }

    /// Starts the workers, and returns when all are ready.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] if a setting is invalid; [`Error::Encode`] if the arguments of an initializer, a finalizer
    /// or the preload task can't be encoded; [`Error::Start`] if a worker could not be started, or an initializer or the
    /// preload task failed.
    pub fn build(mut self) -> Result<Pool, Error> {
        if !self.inline && !crate::worker::is_worker() && is_asked_for(env::var_os(INLINE))? {
            self.backend = Box::new(Inline);
            self.settings.sandbox = None;
        }
        let mut settings = self.settings;
        let invalid = |setting, why| Err(Error::invalid_setting(setting, why));
        if settings.workers == Some(0) {
            return invalid("processes", "must be at least 1");
        }
        if settings.max_tasks == Some(0) {
            return invalid("max_tasks_per_child", "must be at least 1");
        }
        if settings.start_timeout.is_zero() {
            return invalid("start_timeout", "must be greater than zero");
        }
        if settings.memory_limit == Some(0) {
            return invalid("memory_limit", "must be greater than zero");
        }
        if settings.max_memory == Some(0) {
            return invalid("max_memory_per_child", "must be greater than zero");
        }
        if settings.decode_stack == 0 {
            return invalid("decode_stack", "must be greater than zero");
        }
        if settings.give_up_after.is_zero() {
            return invalid("give_up_after", "must be greater than zero");
        }
        for (name, value) in &settings.env {
            check_variable(name, value)?;
        }
        if let Some(sandbox) = &settings.sandbox {
            sandbox.check()?;
        }
        feed::check(&self.defaults, false)?;
        if self.inline {
            check_inline(&settings, &self.defaults)?;
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        let decode_stack = settings.decode_stack;
        let mut preparations = settings.preparations();
        let sends = preparations.find(|task| task.attachments.iter().any(|one| one.has_channel()));
        let sends = sends.map(|task| task.name.clone());
        drop(preparations);
        let callbacks = Arc::new(Callbacks::default());
        let lines = match self.output {
            Output::Lines(lines) => Some(lines),
            _ => None,
        };
        let tells = lines.is_some() || self.on_event.is_some();
        if tells {
            let started = callbacks.start_thread();
            started.map_err(|error| Error::start(error.to_string()))?;
        }
        let recorder = self.timeline.as_ref().map(Timeline::record);
        if tells || recorder.is_some() {
            settings.observer = Some(Reporter::new(
                Arc::clone(&callbacks),
                lines,
                self.on_event.map(|handler| handler.0),
                recorder.clone(),
            ));
        }
        let logs = Logs::new();
        settings.log_level = logs.level();
        settings.observer = logs.observer(settings.observer);
        let is_sandboxed = settings.sandbox.is_some();
        let started = self
            .backend
            .start(settings)
            .and_then(|workers| match sends {
                Some(task) if !workers.carries_channels() => {
                    Err(Error::arguments(task, feed::NO_CHANNELS.to_owned()))
                }
                _ if is_sandboxed && !workers.confines() => {
                    let why = "this backend has no workers that could be sandboxed";
                    Err(Error::invalid_setting("sandbox", why))
                }
                _ => Ok(workers),
            });
        // Without a pool, nothing else would end these threads.
        let workers = started.inspect_err(|_| {
            callbacks.end();
            logs.end();
            if let Some(recorder) = &recorder {
                recorder.fail();
            }
        })?;
        if let Some(recorder) = &recorder {
            recorder.begin(&workers);
        }
        let pool = Pool::over(Engine {
            workers,
            callbacks,
            logs,
            defaults: self.defaults,
            decode_stack,
            inline: self.inline,
        });
        Ok(pool.recorded_by(recorder))
    }
}

/// The environment variable that makes all pools of a program inline: see [`PoolBuilder::inline`].
const INLINE: &str = "POOL_INLINE";

/// Whether the variable, with this value, asks for inline pools.
fn is_asked_for(value: Option<OsString>) -> Result<bool, Error> {
    match value.unwrap_or_default().to_string_lossy().as_ref() {
        "" | "0" => Ok(false),
        "1" => Ok(true),
        other => Err(Error::invalid_setting(
            INLINE,
            format!("must be 1, 0 or empty, not `{other}`"),
        )),
    }
}

/// Refuses the settings that need a process to stop.
fn check_inline(settings: &Settings, defaults: &Options) -> Result<(), Error> {
    let wanted = [
        ("time_limit", defaults.time_limit.is_some()),
        ("memory_limit", settings.memory_limit.is_some()),
        ("contain", settings.contained),
        ("sandbox", settings.sandbox.is_some()),
    ];
    match wanted.into_iter().find(|(_, is_wanted)| *is_wanted) {
        Some((setting, _)) => Err(Error::invalid_setting(setting, feed::NEEDS_PROCESS)),
        None => Ok(()),
    }
}

/// Refuses names and values that would make `std` panic, or set another variable than was meant.
fn check_variable(name: &OsStr, value: &OsStr) -> Result<(), Error> {
    let invalid = |why| Err(Error::invalid_setting("env", why));
    let (name_bytes, value_bytes) = (name.as_encoded_bytes(), value.as_encoded_bytes());
    if name_bytes.is_empty() || name_bytes.contains(&b'=') || name_bytes.contains(&0) {
        return invalid("the name of a variable must not be empty or contain `=` or NUL");
    }
    if value_bytes.contains(&0) {
        return invalid("the value of a variable must not contain NUL");
    }
    if pool_worker::is_own_variable(name) {
        return invalid("`POOL_NODE` and `POOL_WORKER_…` are reserved for this library");
    }
    Ok(())
}

/// Encodes the call of a task that is run for its side effects.
fn prepare<T: Task>(args: T::Args) -> Result<Preparation, Error> {
    let mut arguments = Vec::new();
    let (tail, attachments) = pool_worker::collect(|| T::encode_args(args, &mut arguments));
    let tail = tail.map_err(|error| Error::arguments(T::NAME, error.to_string()))?;
    arguments.extend_from_slice(tail.as_deref().map_or(&[], |tail| tail));
    Ok(Preparation {
        task: T::number(),
        name: T::NAME.to_owned(),
        arguments,
        attachments,
        time_limit: T::TIME_LIMIT,
    })
}
