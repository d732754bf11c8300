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
use crate::timeline::Timeline;

/// The settings of a [`Pool`]; made by [`Pool::builder`].
///
/// # Logs
///
/// With the feature `tracing` of this crate, what tasks log reaches this program: spans and events of `tracing`, and records of
/// `log`. There is nothing to set up in workers. The subscriber of the thread that makes a call gets what its inputs log, in the span
/// that the thread is in then; each event and span has the fields `worker`, `pid`, `task` and `input` (the position of
/// the input; none for [`apply`](Pool::apply)), and `host` on another machine. Where a callsite has a field of one of these names, ours
/// is `pool.task`, and so on. If there is no subscriber but a logger of `log`, that gets the same in words.
///
/// - Workers make no record that is below the level of the subscriber when the call is made. All other filters are asked here.
/// - A subscriber is called by one thread of the pool, a moment later: no task waits for it, and its times are those of the delivery.
///   Of what comes faster than it takes it, 65,536 records or 16 MiB wait; what is more is dropped, and a warning of the target
///   `pool_core` says how much that was. Texts are cut at 4 KiB.
/// - What was logged before is there when [`join`](Pool::join) returns, unless the subscriber does nothing for five seconds. Dropping the
///   pool waits half a second.
/// - What a worker has logged arrives, though it crashes at the next instruction. Its open spans end then. Spans are made again here, but
///   are not entered.
/// - What threads log that a task has left behind counts for the input that runs, or for none: then the subscriber gets it that the
///   pool was built under, or the first call was made under.
/// - An initializer may install a subscriber or a logger; then that has what its worker logs, and this program nothing. Later, a
///   task can't: this crate has. As long as nobody listens here, nothing is installed there.
///   (`log` has no loggers for a while, so what an initializer logs by `log` is lost.)
///
/// The example `logging` shows it.
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
    /// [`inline`](PoolBuilder::inline) was asked for.
    inline: bool,
    settings: Settings,
    /// What can't be encoded.
    failed: Option<Error>,
    defaults: Options,
    output: Output,
    on_event: Option<Handler>,
    timeline: Option<Timeline>,
}

/// What [`PoolBuilder::on_event`] was given.
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
    /// Default: [`Local`], processes on this machine. Everything else about a pool is the same over
    /// any backend, but for what its own documentation says.
    pub fn backend(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Box::new(backend);
        self.inline = false;
        self
    }

    /// Tasks run in this process, in the thread that calls, one after the other: for debuggers, profilers and Miri. Results, errors, their
    /// order, retries after panics and laziness are the same; [`Inline`] says what differs.
    ///
    /// `POOL_INLINE=1` in the environment does it to every pool of the program, without a change: `POOL_INLINE=1 gdb ./program`.
    /// Empty or `0` means nothing; another value is refused. In workers the variable means nothing.
    ///
    /// What protects a program needs a process: together with this, [`time_limit`](PoolBuilder::time_limit),
    /// [`memory_limit`](PoolBuilder::memory_limit) and [`contain`](PoolBuilder::contain) are refused with [`Error::InvalidSetting`], and so is the
    /// [`time_limit`](crate::Call::time_limit) of a call. Those that tasks declare (`#[pool_task(time_limit = "5s")]`) don't apply, nor do settings
    /// about workers ([`max_tasks_per_child`](PoolBuilder::max_tasks_per_child), [`grace`](PoolBuilder::grace) and the like). With `POOL_INLINE=1` no
    /// limit applies, and none is refused.
    ///
    /// What tasks print goes where the program prints, whatever [`output`](PoolBuilder::output) says.
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
    /// // A breakpoint in `half` stops this very process.
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

    /// How many workers.
    ///
    /// Default: one for each CPU that this process may use, by its affinity and its cgroup; see
    /// [`std::thread::available_parallelism`]. 0 is refused.
    pub fn processes(mut self, processes: usize) -> Self {
        self.settings.workers = Some(processes);
        self
    }

    /// A task that runs once for all workers, before there are any: what it leaves behind in `static` variables, every
    /// worker has. For what takes long to load, or much memory: a model, a dictionary, an index.
    ///
    /// One process runs the task and then forks the workers. They share its memory, which is copied only where one of
    /// them writes: 2 GiB are loaded once and are there once, however many workers there are. And a worker is there in the
    /// time of a fork, also one that takes another's place. The [`initializer`](PoolBuilder::initializer) runs in each
    /// worker, after the fork.
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
    /// - Threads are not copied, and what they were about to do is left undone. So the task must end what it starts: if it
    ///   leaves threads behind (a pool of rayon's, a runtime), [`build`](PoolBuilder::build) fails and says how many. Start
    ///   those in the initializer.
    /// - What it has opened is one and the same in all workers: a file has one position, and what several write to a connection
    ///   mixes. Open such things in the initializer, or read with
    ///   [`read_at`](std::os::unix::fs::FileExt::read_at).
    /// - A random number generator that it has seeded gives every worker the same numbers.
    /// - Handlers of C's `pthread_atfork` are not called. Its exit handlers run in each worker that ends in good order.
    /// - [`memory_limit`](PoolBuilder::memory_limit) and [`max_memory_per_child`](PoolBuilder::max_memory_per_child) count
    ///   for each worker what was preloaded.
    ///
    /// # What can go wrong
    ///
    /// If the task returns `Err`, panics, exits, or is not through in [`start_timeout`](PoolBuilder::start_timeout), `build` fails and says
    /// why. If the process that forks is killed later, or does not answer, workers live on; another takes its place and runs
    /// the task again, and workers that it forks share memory with each other. If the task fails then, that counts as workers that do
    /// not start ([`give_up_after`](PoolBuilder::give_up_after)).
    ///
    /// The process ends with the pool, so when that is dropped, and with this program, whatever becomes of it. It is not
    /// one of [`processes`](PoolBuilder::processes); in `ps` it is `pool-zygote of` this program. In the task
    /// [`worker::index`](crate::worker::index) is `None`.
    pub fn preload<T: Task>(mut self, _task: T, args: T::Args) -> Self {
        match prepare::<T>(args) {
            // It would have to be there before the first worker is.
            Ok(task) if !task.attachments.is_empty() => {
                let why = "neither a `Shared` nor a `Sender` can be an argument of a preload task, or in one: give it the value \
                           itself, which all workers will share anyway, and the `Sender` to an initializer";
                self.failed = Some(Error::arguments(T::NAME, why.to_owned()));
            }
            Ok(task) => self.settings.preload = Some(task),
            Err(error) => self.failed = Some(error),
        }
        self
    }

    /// A task that every worker runs once, before its first task; one that takes another's place
    /// does so too. What it leaves behind in `static` variables is there for the tasks.
    ///
    /// Several add up: they run in the order in which they are given here.
    ///
    /// Default: none. If one returns `Err`, panics, exits, or is not through in
    /// [time](PoolBuilder::start_timeout), [`build`](PoolBuilder::build) fails and says why: with the text of the error,
    /// which is that of its `Display`, or else of its `Debug`. ([`TaskError`](crate::TaskError) is made of any error by `?`.) In a worker that takes another's place that is a start that has
    /// failed ([`give_up_after`](PoolBuilder::give_up_after)). What else a task returns is ignored.
    ///
    /// A panic hook that it sets ([`std::panic::set_hook`]) is called for panics on threads that tasks start themselves. A panic
    /// of a task goes to the caller instead, as [`Error::Panicked`] with its location, as it does without a hook. The same is true of
    /// [`preload`](PoolBuilder::preload). (A hook that a task sets is called for the first panic after that, which is
    /// reported without its location.)
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

    /// A task that every worker runs once, when it leaves in good order: it writes what it has gathered, or says goodbye to a
    /// server. It runs before the exit handlers of the process, and what it prints is printed.
    ///
    /// A worker leaves in good order
    ///
    /// - after [`close`](Pool::close), when there is no more work; [`join`](Pool::join) waits for that;
    /// - when another takes its place ([`max_tasks_per_child`](PoolBuilder::max_tasks_per_child),
    ///   [`max_memory_per_child`](PoolBuilder::max_memory_per_child));
    /// - if it has nothing to do when the pool is terminated or dropped. Then it is killed after 200 ms, whatever it is at.
    ///
    /// Otherwise the finalizer does not run: in a worker that dies, is killed, or runs an input when it is stopped. So put
    /// nothing there that must happen.
    ///
    /// Several add up: they run in the order in which they are given here. Together with the exit handlers they may take as
    /// long as `#[pool_task(time_limit = "30s")]` of each says, where 10 seconds stand for one that says nothing; then the
    /// worker is killed. Meanwhile others work, but a pool whose workers are replaced faster than they leave waits for them.
    ///
    /// Its arguments may hold a [`Shared`](crate::Shared). What comes of it, a panic or an `Err`, is told to nobody, and harms
    /// nothing; the others run nevertheless.
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

    /// An environment variable that workers have, and this program need not. It is there from their first instruction on,
    /// so for libraries that look at it when they are loaded, too; also in the preload task and in pools that tasks have.
    ///
    /// May be called several times; the last value of a name counts. Workers inherit the rest of their environment from this
    /// program.
    ///
    /// # Threads of libraries
    ///
    /// There are as many workers as CPUs, and many a library starts as many threads as CPUs in each: 64 workers with
    /// 64 threads each fight for 64 CPUs. So have such a library use one thread:
    ///
    /// | variable | of |
    /// |---|---|
    /// | `RAYON_NUM_THREADS` | rayon, and what uses its global pool: polars has `POLARS_MAX_THREADS` of its own |
    /// | `OMP_NUM_THREADS` | OpenMP, thus many C and Fortran libraries |
    /// | `OPENBLAS_NUM_THREADS`, `MKL_NUM_THREADS` | the linear algebra of OpenBLAS, of Intel's MKL |
    ///
    /// Default: nothing but what this program has. A name that is empty or holds `=` or NUL is refused, and so is a value that
    /// holds NUL; and the library's own variables, `POOL_NODE` and those that begin with `POOL_WORKER_`.
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

    /// How many inputs a worker may take before a fresh one takes its place, so that what tasks
    /// leak is given back. A chunk that was begun is finished first.
    ///
    /// The fresh one is started when the other has few inputs left (an eighth of them), so there are up to
    /// twice as many processes; no more than [`processes`](PoolBuilder::processes) of them run tasks.
    ///
    /// Default: no limit. 0 is refused.
    pub fn max_tasks_per_child(mut self, tasks: usize) -> Self {
        self.settings.max_tasks = Some(tasks);
        self
    }

    /// How long a worker may take until it is ready, its initializer included; then it is killed,
    /// and its start counts as failed. A [`preload`](PoolBuilder::preload) task may take as long.
    ///
    /// Default: 30 seconds. Zero is refused.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.settings.start_timeout = timeout;
        self
    }

    /// How long a pool may be without a worker that is good for something until it is
    /// [`Error::Broken`], and answers all that is open.
    ///
    /// A worker that can't be replaced at once, because the system has no process, descriptor or memory
    /// left, or because workers die before they have done anything, is tried again after pauses that grow
    /// from 10 ms to one second; meanwhile the others go on.
    ///
    /// Default: 30 seconds. Zero is refused. ([`build`](PoolBuilder::build) itself fails with the first start
    /// that does.)
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.settings.give_up_after = time;
        self
    }

    /// How long each input may run, where neither the call
    /// ([`Call::time_limit`](crate::Call::time_limit)) nor the task says.
    ///
    /// Default: for ever. Zero is refused.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.defaults.time_limit = Some(limit);
        self
    }

    /// How often an input is run again, where neither the call ([`Call::retries`](crate::Call::retries)) nor
    /// the task says.
    ///
    /// Default: 0, nothing runs twice.
    pub fn retries(mut self, retries: impl Into<Retries>) -> Self {
        self.defaults.retries = retries.into();
        self
    }

    /// A worker whose input has passed its time limit is sent SIGTERM, and SIGKILL so long after it.
    ///
    /// Default: 100 ms. Zero: it is killed at once.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// How much memory a worker may use while it runs an input, in bytes. One that uses more is killed, and the
    /// outcome of that input is [`Error::MemoryLimit`].
    ///
    /// What counts is the resident memory of the process, the program itself included (some megabytes). It is looked at
    /// fifty times a second, so a task may go past the limit for a moment, and see nothing of it.
    ///
    /// A limit of the process on its address space (RLIMIT_AS, `ulimit -v`) has the same outcome when an allocation
    /// fails and the process aborts for it, as Rust's standard library does; unless that prints a backtrace first
    /// (`RUST_BACKTRACE`), which hides the reason: then the outcome is [`Error::WorkerLost`] with SIGABRT.
    ///
    /// Default: no limit. 0 is refused. Such an input is not run again, whatever
    /// [`retries`](PoolBuilder::retries) says.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// How much memory a worker may have after an input, in bytes, before a fresh one takes its place. The chunk
    /// that it has begun is finished first; what else it was given runs elsewhere, but for what it begins before
    /// the pool knows.
    ///
    /// What counts is the resident memory of the process, the program itself included. It is read after each input,
    /// which takes some microseconds.
    ///
    /// Default: no limit. 0 is refused.
    pub fn max_memory_per_child(mut self, bytes: u64) -> Self {
        self.settings.max_memory = Some(bytes);
        self
    }

    /// What a worker starts ends with it, whatever becomes of the worker, of the pool or of this program: commands, and
    /// daemons too, which have left its session.
    ///
    /// Each worker gets a PID namespace of its own for that. Seen from a task the worker has another process id
    /// than [`Pool::worker_pids`] and errors tell, a small one; the process that they tell guards it, and ends as it does, and a
    /// signal sent to it reaches the worker's process group. A worker is two processes more, and takes somewhat longer to
    /// start. Where this program lacks CAP_SYS_ADMIN, a user namespace comes with it, so programs that run setuid, `sudo`
    /// for instance, gain no rights in a task.
    ///
    /// Default: not contained. Commands that a task leaves behind in its process group end with their worker nevertheless;
    /// daemons don't. Where no namespace is to be had, [`build`](PoolBuilder::build) says why.
    pub fn contain(mut self) -> Self {
        self.settings.contained = true;
        self
    }

    /// How much of the stack a value may take while it is decoded, in bytes: an argument in a worker, a result in the
    /// thread that asks for it. One that is nested deeper is [`Error::Decode`]; without a limit it would overflow the
    /// stack and end the process.
    ///
    /// Raise it for values that are nested very deep, such as linked lists, and ask for their results in threads that
    /// have the stack. (Rust gives 2 MiB to a thread; the main thread of a worker has what `ulimit -s` says, 8 MiB mostly.)
    ///
    /// Default: 1 MiB, some thousand levels. 0 is refused.
    pub fn decode_stack(mut self, bytes: usize) -> Self {
        self.settings.decode_stack = bytes;
        self
    }

    /// Where what workers write to standard output and standard error goes: see [`Output`].
    ///
    /// Default: [`Output::Inherit`], where those of this program go.
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

    /// A function that is told of each [`Event`]: that workers start, die, and are replaced, and that inputs begin and end.
    ///
    /// It runs on the pool's callback thread. If it is too slow, the oldest events are dropped ([`Event::Missed`]).
    ///
    /// Default: none, and then inputs cost nothing for it.
    pub fn on_event(mut self, each: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.settings.observe.workers = true;
        self.settings.observe.inputs = true;
        self.on_event = Some(Handler(Arc::new(each)));
        self
    }

    /// Records what workers do in this [`Timeline`], to be looked at later; by default nothing is recorded. Several pools may share one.
    /// Given twice, the last counts.
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
    /// [`Error::InvalidSetting`] names a setting that can't be met; [`Error::Encode`] tells that the
    /// arguments of an initializer, a finalizer or the preload task can't be encoded; [`Error::Start`] tells why a worker did not
    /// start, or how an initializer or the preload task failed.
    pub fn build(mut self) -> Result<Pool, Error> {
        if !self.inline && !crate::worker::is_worker() && is_asked_for(env::var_os(INLINE))? {
            self.backend = Box::new(Inline);
        }
        let mut settings = self.settings;
        let invalid = |setting, why| Err(Error::invalid_setting(setting, why));
        if settings.workers == Some(0) {
            return invalid("processes", "a pool has at least one worker");
        }
        if settings.max_tasks == Some(0) {
            return invalid("max_tasks_per_child", "a worker runs at least one task");
        }
        if settings.start_timeout.is_zero() {
            return invalid("start_timeout", "no worker starts in no time");
        }
        if settings.memory_limit == Some(0) {
            return invalid("memory_limit", "every process uses memory");
        }
        if settings.max_memory == Some(0) {
            return invalid("max_memory_per_child", "every process uses memory");
        }
        if settings.decode_stack == 0 {
            return invalid("decode_stack", "every value takes some of the stack");
        }
        if settings.give_up_after.is_zero() {
            return invalid(
                "give_up_after",
                "every pool is without a worker for a moment",
            );
        }
        for (name, value) in &settings.env {
            check_variable(name, value)?;
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
        let started = self
            .backend
            .start(settings)
            .and_then(|workers| match sends {
                Some(task) if !workers.carries_channels() => {
                    Err(Error::arguments(task, feed::NO_CHANNELS.to_owned()))
                }
                _ => Ok(workers),
            });
        // Without a pool nobody else would end their threads.
        let workers = started.inspect_err(|_| {
            callbacks.end();
            logs.end();
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

/// Runs all tasks of a program in its own process: see [`PoolBuilder::inline`].
const INLINE: &str = "POOL_INLINE";

/// Whether a variable of this value asks for what it is about.
fn is_asked_for(value: Option<OsString>) -> Result<bool, Error> {
    match value.unwrap_or_default().to_string_lossy().as_ref() {
        "" | "0" => Ok(false),
        "1" => Ok(true),
        other => Err(Error::invalid_setting(
            INLINE,
            format!("it is 1, 0 or empty, not `{other}`"),
        )),
    }
}

/// Refuses what is there to protect the program, and takes a process.
fn check_inline(settings: &Settings, defaults: &Options) -> Result<(), Error> {
    let wanted = [
        ("time_limit", defaults.time_limit.is_some()),
        ("memory_limit", settings.memory_limit.is_some()),
        ("contain", settings.contained),
    ];
    match wanted.into_iter().find(|(_, is_wanted)| *is_wanted) {
        Some((setting, _)) => Err(Error::invalid_setting(setting, feed::NEEDS_PROCESS)),
        None => Ok(()),
    }
}

/// What no environment can hold would end in a panic of `std`, or be another variable than was meant.
fn check_variable(name: &OsStr, value: &OsStr) -> Result<(), Error> {
    let invalid = |why| Err(Error::invalid_setting("env", why));
    let (name_bytes, value_bytes) = (name.as_encoded_bytes(), value.as_encoded_bytes());
    if name_bytes.is_empty() || name_bytes.contains(&b'=') || name_bytes.contains(&0) {
        return invalid("the name of a variable is not empty, and holds neither `=` nor NUL");
    }
    if value_bytes.contains(&0) {
        return invalid("the value of a variable holds no NUL");
    }
    if pool_worker::is_own_variable(name) {
        return invalid("`POOL_NODE` and `POOL_WORKER_…` are variables of this library");
    }
    Ok(())
}

/// A task that is run for what it leaves behind.
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
