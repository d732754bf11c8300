//! [`Inline`]: no workers at all.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::journal::Journal;
use super::{
    Backend, Few, Job, JobId, Outcomes, Portion, Preparation, Settings, Sink, What, Workers,
    task_failed,
};
use crate::error::Error;
use crate::stats::Stats;
use crate::sync::lock;

/// A backend that runs tasks in the thread that calls the pool, before the call returns: for a debugger, a profiler, or a test
/// that is to see what a task does.
///
/// Arguments and results are encoded and decoded as ever, and panics are caught. What takes a process of its own is not there: a
/// task that crashes ends the program, limits of time and memory are not kept, nothing runs again, and nothing can be cancelled. Initializers
/// run once, in the thread that builds the pool; finalizers once, in the thread that joins or drops it.
/// [`PoolBuilder::env`](crate::PoolBuilder::env) does nothing: there is no environment but that of this program.
///
/// # Examples
///
/// ```
/// use pool_core::{Error, Pool, backend::Inline, pool_task};
///
/// #[pool_task]
/// fn pid() -> u32 { std::process::id() }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::builder().backend(Inline).build()?;
/// assert_eq!(pool.apply(pid, ())?, std::process::id());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Backend for Inline {
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
        let journal = Journal::new(&settings);
        if let Some(preload) = settings.preload {
            prepare("the preload task", preload)?;
        }
        for initializer in settings.initializers {
            prepare("the initializer", initializer)?;
        }
        Ok(Arc::new(Here {
            count: settings.workers.unwrap_or(1),
            finalizers: Mutex::new(settings.finalizers),
            next: AtomicU32::default(),
            closed: AtomicBool::default(),
            terminated: AtomicBool::default(),
            open: Mutex::default(),
            journal,
        }))
    }
}

/// Runs a task for what it leaves behind.
fn prepare(what: &str, preparation: Preparation) -> Result<(), Error> {
    let Preparation {
        task,
        name,
        arguments,
        attachments,
        ..
    } = preparation;
    pool_worker::prepare_here(task, &arguments, &attachments)
        .map_err(|fault| Error::start(task_failed(what, &name, &fault)))
}

/// The thread that calls.
#[derive(Debug)]
struct Here {
    count: usize,
    next: AtomicU32,
    closed: AtomicBool,
    terminated: AtomicBool,
    /// What is to run at the end.
    finalizers: Mutex<Vec<Preparation>>,
    /// Those that more inputs may come for.
    open: Mutex<HashMap<JobId, Open>>,
    journal: Journal,
}

#[derive(Debug, Clone)]
struct Open {
    job: Job,
    sink: Arc<dyn Sink>,
}

impl Open {
    fn run(&self, id: JobId, inputs: Few<Portion>, journal: &Journal) {
        for Portion { mut first, inputs } in inputs {
            let end = first + inputs.count();
            let begin = |index: usize| (index < end).then(|| journal.begin(id, self.job, index));
            let mut begun = begin(first);
            pool_worker::run_here(self.job.task, inputs, |reply| {
                if let Some(begun) = begun.take() {
                    journal.end(begun, &reply);
                }
                Arc::clone(&self.sink).deliver(Outcomes {
                    first,
                    what: What::Replies(reply),
                });
                first += 1;
                begun = begin(first);
            });
        }
    }
}

impl Here {
    /// Runs finalizers, once. What comes of them is told to nobody.
    fn finalize(&self) {
        let finalizers = mem::take(&mut *lock(&self.finalizers));
        for finalizer in finalizers {
            let _ = prepare("a finalizer", finalizer);
        }
    }
}

impl Workers for Here {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        let id = JobId {
            place: 0,
            serial: self.next.fetch_add(1, Ordering::Relaxed),
        };
        let open = Open { job, sink };
        if more {
            lock(&self.open).insert(id, open.clone());
        }
        open.run(id, inputs, &self.journal);
        Ok(id)
    }

    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error> {
        let mut open = lock(&self.open);
        let known = if more {
            open.get(&job).cloned()
        } else {
            open.remove(&job)
        };
        drop(open);
        let Some(open) = known else {
            return Err(if self.terminated.load(Ordering::SeqCst) {
                Error::Terminated
            } else {
                Error::Cancelled
            });
        };
        open.run(job, inputs, &self.journal);
        Ok(())
    }

    fn cancel(&self, job: JobId, _running: bool) {
        lock(&self.open).remove(&job);
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn terminate(&self) {
        self.close();
        self.terminated.store(true, Ordering::SeqCst);
        lock(&self.open).clear();
    }

    fn join(&self, _: Option<Instant>) -> Result<(), Error> {
        if !self.closed.load(Ordering::SeqCst) {
            return Err(Error::StillOpen);
        }
        self.finalize();
        Ok(())
    }

    fn shut_down(&self) {
        self.terminate();
        self.finalize();
    }

    fn count(&self) -> usize {
        self.count
    }

    fn carries_channels(&self) -> bool {
        true
    }

    fn stats(&self) -> Stats {
        self.journal.stats()
    }
}
