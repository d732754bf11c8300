//! [`Pool`]: the type that users hold.
//!
//! If inputs have another type than the task takes, the compiler shows the line of the bound on `I`, with the comment behind it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{STACK_DEFAULT, Task};

use crate::backend::{Options, Workers};
use crate::builder::PoolBuilder;
use crate::call::Call;
use crate::callback::Callbacks;
use crate::error::Error;
use crate::handle::AsyncResult;
use crate::iter::{Imap, ImapUnordered};
use crate::join::Join;
use crate::log::Logs;
use crate::open::UnaryTask;
use crate::stats::Stats;
use crate::timeline::Recorder;

/// A pool of worker processes.
///
/// The workers are this same program, started again. Each runs one task at a time, and a task that crashes fails alone. All
/// methods may be called from any thread; to share a pool among threads or requests, put it into an [`Arc`].
///
/// # Drop
///
/// Dropping a pool terminates it: running tasks are stopped, results that are not ready yet become [`Error::Terminated`], and
/// when `drop` returns, the workers are gone. That takes a fraction of a second, however busy or stuck they are. To let the
/// work finish first, use [`close`](Pool::close) and [`join`](Pool::join). If the program is killed, the system kills the
/// workers.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, pool_task};
///
/// #[pool_task]
/// fn square(x: u64) -> u64 { x * x }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::new()?;
/// assert_eq!(pool.map(square, 0..10)?, [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]);
/// # Ok(())
/// # }
/// ```
pub struct Pool {
    engine: Arc<Engine>,
    /// The process that built the pool. A forked copy has none of its threads.
    owner: u32,
    recorder: Option<Recorder>,
}

/// The part of a pool that the handles of its results share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) workers: Arc<dyn Workers>,
    pub(crate) callbacks: Arc<Callbacks>,
    /// Listeners to what workers log.
    pub(crate) logs: Logs,
    /// The options for calls and tasks that don't set their own.
    pub(crate) defaults: Options,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub(crate) decode_stack: usize,
    /// Tasks run in this process, because the program asked for it. Limits can't be enforced.
    pub(crate) inline: bool,
}

impl Engine {
    /// Waits until the workers are gone and every pending callback has run.
    pub(crate) fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        self.workers.join(deadline)?;
        if self.logs.wait(deadline) && self.callbacks.wait(deadline) {
            Ok(())
        } else {
            Err(Error::Timeout)
        }
    }

    /// Decodes results, within the limit of the stack.
    #[inline]
    pub(crate) fn decode<R>(&self, decode: impl FnOnce() -> R) -> R {
        if self.decode_stack == STACK_DEFAULT {
            return decode();
        }
        pool_worker::with_stack(self.decode_stack, decode)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("processes", &self.processes())
            .finish_non_exhaustive()
    }
}

impl Pool {
    pub(crate) fn over(engine: Engine) -> Pool {
        Pool {
            engine: Arc::new(engine),
            owner: pool_worker::lineage(),
            recorder: None,
        }
    }

    /// Lets a timeline record the pool, if there is a recorder.
    pub(crate) fn recorded_by(self, recorder: Option<Recorder>) -> Pool {
        let mut pool = self;
        pool.recorder = recorder;
        pool
    }

    /// Starts one worker for each CPU that this process may use according to its affinity and its cgroup; returns when all
    /// are ready.
    ///
    /// # Errors
    ///
    /// [`Error::Start`] if a worker can't be started.
    pub fn new() -> Result<Pool, Error> {
        Pool::builder().build()
    }

    /// Starts this many workers; returns when all are ready.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidSetting`] for 0; [`Error::Start`] if a worker can't be started.
    pub fn with_processes(processes: usize) -> Result<Pool, Error> {
        Pool::builder().processes(processes).build()
    }

    /// Starts a builder for a pool with more settings.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }

    /// The number of workers that the pool maintains.
    pub fn processes(&self) -> usize {
        self.engine.workers.count()
    }

    /// The process ids of the current workers, including those that are starting. A worker that died is replaced by another,
    /// with another id; for a moment in between there are fewer.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.engine.workers.pids()
    }

    /// What the pool is doing, and has done since it was built: each worker, and each task. [`Stats`] prints as a table.
    ///
    /// A call takes some microseconds for each worker and costs nothing else: workers always count, in memory that the pool
    /// reads when it is asked. If workers are on other machines, it may take a tenth of a second. It works after [`close`](Pool::close) and [`terminate`](Pool::terminate) as well. In a forked
    /// copy of this process, nothing is known: everything is zero or empty.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pool_core::{Error, Pool, pool_task};
    /// # #[pool_task]
    /// # fn square(x: u64) -> u64 { x * x }
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::with_processes(2)?;
    /// pool.map(square, 0..100)?;
    /// for task in &pool.stats().tasks {
    ///     println!("{}: {} done, half of them in {:?}", task.task, task.done, task.run_times.p50);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.engine.workers.stats()
    }

    /// Runs `task` once and waits for the result.
    ///
    /// # Errors
    ///
    /// Any [`Error`] about the task; [`Error::Closed`] if the pool accepts no more work.
    pub fn apply<T: Task>(&self, task: T, args: T::Args) -> Result<T::Output, Error> {
        self.task(task).apply(args)
    }

    /// Runs `task` once, without waiting for the result. If the pool accepts no more work, the result is [`Error::Closed`].
    pub fn apply_async<T: Task>(&self, task: T, args: T::Args) -> AsyncResult<T::Output> {
        self.task(task).apply_async(args)
    }

    /// Runs `task` on every input, and waits for all results, in the order of the inputs.
    ///
    /// Inputs are drawn as the work proceeds.
    ///
    /// # Errors
    ///
    /// If inputs fail, the error of the one with the lowest index; all others still run. [`Call::map_results`] returns every
    /// outcome. [`Error::Closed`] if the pool accepts no more work.
    pub fn map<T, I>(&self, task: T, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).map(inputs)
    }

    /// Like [`map`](Pool::map), but does not wait for the results. All inputs are drawn at once.
    pub fn map_async<T, I>(&self, task: T, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).map_async(inputs)
    }

    /// Runs `task` on every input, and yields the results in the order of the inputs. Work begins
    /// at once; inputs are drawn as results are consumed.
    pub fn imap<T, I>(&self, task: T, inputs: I) -> Imap<T, I::IntoIter>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).imap(inputs)
    }

    /// Like [`imap`](Pool::imap), but yields the results in the order in which they finish.
    pub fn imap_unordered<T, I>(&self, task: T, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).imap_unordered(inputs)
    }

    /// Like [`map`](Pool::map), for a task with any number of arguments: each input is a tuple of them.
    ///
    /// # Errors
    ///
    /// As [`map`](Pool::map).
    pub fn starmap<T, I>(&self, task: T, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).starmap(inputs)
    }

    /// Like [`map_async`](Pool::map_async), with tuples of arguments.
    pub fn starmap_async<T, I>(&self, task: T, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).starmap_async(inputs)
    }

    /// Like [`imap`](Pool::imap), with tuples of arguments.
    pub fn istarmap<T, I>(&self, task: T, inputs: I) -> Imap<T, I::IntoIter>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).istarmap(inputs)
    }

    /// Like [`imap_unordered`](Pool::imap_unordered), with tuples of arguments.
    pub fn istarmap_unordered<T, I>(&self, task: T, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>, // for references: `pool.task(f).by_ref()`
    {
        self.task(task).istarmap_unordered(inputs)
    }

    /// `task` with options for one call: chunk size, time limit, retries.
    pub fn task<T: Task>(&self, _task: T) -> Call<'_, T> {
        Call::new(self)
    }

    /// Accepts no more work. Everything that was accepted still runs, and so do the inputs that an [`imap`](Pool::imap) has
    /// yet to draw; then the workers exit. Each runs its exit handlers (C's `atexit`, destructors of libraries), and is
    /// killed if it takes longer than 10 seconds. A second call does nothing.
    pub fn close(&self) {
        self.engine.workers.close();
    }

    /// Stops all work now. Every result that is not ready yet becomes [`Error::Terminated`]. Idle workers are asked to exit;
    /// the others get SIGTERM, and SIGKILL a moment later. Does not wait until they have exited: see [`join`](Pool::join). A
    /// second call does nothing.
    pub fn terminate(&self) {
        self.engine.workers.terminate();
    }

    /// Waits until every worker has exited and every pending callback has run. (Called from a callback, it does not wait for
    /// callbacks.)
    ///
    /// # Errors
    ///
    /// [`Error::StillOpen`] if neither [`close`](Pool::close) nor [`terminate`](Pool::terminate) was called before; or if,
    /// after `close`, there is an [`Imap`] with inputs left that was last drawn from by this same thread, since the workers
    /// would wait for them forever. (An [`Imap`] that was handed to another thread counts as that thread's once that thread
    /// draws from it.)
    pub fn join(&self) -> Result<(), Error> {
        self.join_until(None)
    }

    /// Like [`join`](Pool::join), but waits no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`join`](Pool::join), and [`Error::Timeout`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.join_until(Instant::now().checked_add(timeout))
    }

    /// Waits until what workers have printed and logged for results that are ready has been passed on: to the function of
    /// [`Output::lines`](crate::Output::lines), to the subscriber of this program, and to callbacks. The pool stays open.
    ///
    /// For tests that check what was logged, and for a pool in a `static`, which is never dropped, at the end of a program. A
    /// function or subscriber that makes no progress for 5 seconds is no longer waited for. Called from one of these, this
    /// does not wait for it.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use pool_core::{Error, Output, Pool, pool_task};
    ///
    /// #[pool_task]
    /// fn greet(name: &str) { println!("hello, {name}") }
    ///
    /// # fn main() -> Result<(), Error> {
    /// let (sender, lines) = mpsc::channel();
    /// let output = Output::lines(move |line| sender.send(line.text.clone()).unwrap());
    /// let pool = Pool::builder().processes(1).output(output).build()?;
    /// pool.apply(greet, ("Ada".to_owned(),))?;
    /// pool.flush();
    /// assert_eq!(lines.try_recv().unwrap(), "hello, Ada");
    /// # Ok(())
    /// # }
    /// ```
    pub fn flush(&self) {
        self.engine.workers.settle();
        self.engine.logs.wait(None);
        self.engine.callbacks.flush();
    }

    /// Like [`join`](Pool::join), for async programs: it does not block a thread of the executor, and does not borrow the
    /// pool.
    ///
    /// A thread waits meanwhile, from the first poll of the future until the workers are gone. It does not notice an [`Imap`]
    /// that only this thread could consume.
    ///
    /// # Errors
    ///
    /// As [`join`](Pool::join); [`Error::Start`] if that thread can't be started.
    ///
    /// # Examples
    ///
    /// ```
    /// # use pool_core::{Error, Pool};
    /// async fn shut_down(pool: &Pool) -> Result<(), Error> {
    ///     pool.close();
    ///     pool.join_async().await
    /// }
    /// ```
    pub fn join_async(&self) -> Join {
        Join::new(&self.engine)
    }

    fn join_until(&self, deadline: Option<Instant>) -> Result<(), Error> {
        self.engine.join(deadline)
    }

    pub(crate) fn workers(&self) -> &Arc<dyn Workers> {
        &self.engine.workers
    }

    pub(crate) fn defaults(&self) -> &Options {
        &self.engine.defaults
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if pool_worker::lineage() == self.owner {
            self.engine.workers.shut_down();
            self.engine.logs.end();
            if let Some(recorder) = &self.recorder {
                recorder.end(self.engine.workers.stats());
            }
            self.engine.callbacks.end();
        }
    }
}
