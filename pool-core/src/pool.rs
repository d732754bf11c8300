//! [`Pool`]: what users hold.

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
/// The workers are this same program, started again; each runs tasks one at a time, and a task that
/// crashes costs itself and nothing else. All methods may be called from any thread; to share a pool among threads or
/// requests, put it into an [`Arc`].
///
/// # Drop
///
/// Dropping a pool terminates it: what runs is stopped, results that are not there yet are
/// [`Error::Terminated`], and when `drop` returns the workers are gone. That takes a fraction of a
/// second, however busy or stuck they are. To let the work finish first, use
/// [`close`](Pool::close) and [`join`](Pool::join). If the program is killed, the system kills the
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
    /// A forked copy of this process has none of its threads.
    owner: u32,
    recorder: Option<Recorder>,
}

/// What a pool has in common with the handles of its results.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) workers: Arc<dyn Workers>,
    pub(crate) callbacks: Arc<Callbacks>,
    /// Who listens to what workers log.
    pub(crate) logs: Logs,
    /// What calls and tasks don't say.
    pub(crate) defaults: Options,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub(crate) decode_stack: usize,
    /// Tasks run in this process, as the program wants it: limits can't be kept.
    pub(crate) inline: bool,
}

impl Engine {
    /// Waits until the workers are gone and every callback that was due has run.
    pub(crate) fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        self.workers.join(deadline)?;
        if self.logs.wait(deadline) && self.callbacks.wait(deadline) {
            Ok(())
        } else {
            Err(Error::Timeout)
        }
    }

    /// Decodes results, within the limit.
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

    /// It is recorded in a timeline, perhaps.
    pub(crate) fn recorded_by(self, recorder: Option<Recorder>) -> Pool {
        let mut pool = self;
        pool.recorder = recorder;
        pool
    }

    /// Starts as many workers as there are CPUs for this process, by its affinity and its cgroup;
    /// returns when all are ready.
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

    /// A pool with more settings.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::new()
    }

    /// How many workers the pool has when all are well.
    pub fn processes(&self) -> usize {
        self.engine.workers.count()
    }

    /// The process ids of the workers that there are now, starting ones included. A worker that
    /// died is replaced by another, with another id; for a moment in between there are fewer.
    pub fn worker_pids(&self) -> Vec<u32> {
        self.engine.workers.pids()
    }

    /// What the pool is doing, and has done since it was built: each worker, and each task. It prints as a table; see [`Stats`].
    ///
    /// Asking takes some microseconds for each worker, and costs nothing else: workers count in any case, in memory that the pool reads
    /// when it is asked. It may be asked after [`close`](Pool::close) and [`terminate`](Pool::terminate), too. In a forked copy of this
    /// process nothing is known, and all is zero or empty.
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
    /// Any [`Error`] about the task; [`Error::Closed`] if the pool takes no more work.
    pub fn apply<T: Task>(&self, task: T, args: T::Args) -> Result<T::Output, Error> {
        self.task(task).apply(args)
    }

    /// Runs `task` once; the result is there later. If the pool takes no more work, the result is
    /// [`Error::Closed`].
    pub fn apply_async<T: Task>(&self, task: T, args: T::Args) -> AsyncResult<T::Output> {
        self.task(task).apply_async(args)
    }

    /// Runs `task` on every input, and waits for all results, in the order of the inputs.
    ///
    /// Inputs are drawn as the work proceeds.
    ///
    /// # Errors
    ///
    /// If inputs fail, the error of the one with the lowest index; all others are run nevertheless.
    /// [`Call::map_results`] keeps every outcome. [`Error::Closed`] if the pool takes no more work.
    pub fn map<T, I>(&self, task: T, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>,
    {
        self.task(task).map(inputs)
    }

    /// Like [`map`](Pool::map), but the results are there later. All inputs are drawn at once.
    pub fn map_async<T, I>(&self, task: T, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>,
    {
        self.task(task).map_async(inputs)
    }

    /// Runs `task` on every input, and yields the results in the order of the inputs. Work begins
    /// at once; inputs are drawn as results are consumed.
    pub fn imap<T, I>(&self, task: T, inputs: I) -> Imap<T, I::IntoIter>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>,
    {
        self.task(task).imap(inputs)
    }

    /// Like [`imap`](Pool::imap), but yields the results as they are finished.
    pub fn imap_unordered<T, I>(&self, task: T, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        T: Task + UnaryTask,
        I: IntoIterator<Item = T::Argument>,
    {
        self.task(task).imap_unordered(inputs)
    }

    /// Like [`map`](Pool::map), for a task of any number of arguments: each input is a tuple of
    /// them.
    ///
    /// # Errors
    ///
    /// As [`map`](Pool::map).
    pub fn starmap<T, I>(&self, task: T, inputs: I) -> Result<Vec<T::Output>, Error>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>,
    {
        self.task(task).starmap(inputs)
    }

    /// Like [`map_async`](Pool::map_async), with tuples of arguments.
    pub fn starmap_async<T, I>(&self, task: T, inputs: I) -> AsyncResult<Vec<T::Output>>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>,
    {
        self.task(task).starmap_async(inputs)
    }

    /// Like [`imap`](Pool::imap), with tuples of arguments.
    pub fn istarmap<T, I>(&self, task: T, inputs: I) -> Imap<T, I::IntoIter>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>,
    {
        self.task(task).istarmap(inputs)
    }

    /// Like [`imap_unordered`](Pool::imap_unordered), with tuples of arguments.
    pub fn istarmap_unordered<T, I>(&self, task: T, inputs: I) -> ImapUnordered<T, I::IntoIter>
    where
        T: Task,
        I: IntoIterator<Item = T::Args>,
    {
        self.task(task).istarmap_unordered(inputs)
    }

    /// `task` with options for one call: chunk size, time limit, retries.
    pub fn task<T: Task>(&self, _task: T) -> Call<'_, T> {
        Call::new(self)
    }

    /// Takes no more work. What was accepted still runs, and so do the inputs that an
    /// [`imap`](Pool::imap) has yet to draw; then the workers exit. Each runs its exit handlers (C's `atexit`,
    /// destructors of libraries), and is killed if it is not through after 10 seconds. A second call does nothing.
    pub fn close(&self) {
        self.engine.workers.close();
    }

    /// Stops now. Every result that is not there yet is [`Error::Terminated`]; idle workers are
    /// asked to exit, the others get SIGTERM, and SIGKILL a moment later. Does not wait for that:
    /// see [`join`](Pool::join). A second call does nothing.
    pub fn terminate(&self) {
        self.engine.workers.terminate();
    }

    /// Waits until every worker has exited, and every callback that was due has run. (Called from a
    /// callback, it does not wait for callbacks.)
    ///
    /// # Errors
    ///
    /// [`Error::StillOpen`] without [`close`](Pool::close) or [`terminate`](Pool::terminate) before;
    /// or if, after `close`, there is an [`Imap`] with inputs still to be drawn that was last drawn from
    /// by this same thread: the workers would wait for them for ever. (One that was handed to another
    /// thread counts as that one's from when it draws there.)
    pub fn join(&self) -> Result<(), Error> {
        self.join_until(None)
    }

    /// As [`join`](Pool::join), but waits no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As [`join`](Pool::join), and [`Error::Timeout`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.join_until(Instant::now().checked_add(timeout))
    }

    /// As [`join`](Pool::join), for async programs: no thread of the executor is held up. It does not borrow the pool.
    ///
    /// One thread waits meanwhile, from the first time that the future is polled until the workers are gone. It does not notice an
    /// [`Imap`] that only this thread could consume.
    ///
    /// # Errors
    ///
    /// As [`join`](Pool::join); [`Error::Start`] if there can be no such thread.
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
