//! Workers without processes, for tests of everything above the seam: they run tasks in the thread that waits, and deliver
//! outcomes one by one, the last first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::{Failure, Job, JobId, Outcomes, Portion, Sink, Waiter, Want, What, Workers};
use crate::error::Error;
use crate::few::Few;
use crate::sync::lock;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Memory {
    next: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<JobId, Open>,
    closed: bool,
    /// How many inputs were submitted.
    accepted: usize,
}

#[derive(Debug)]
struct Open {
    job: Job,
    sink: Arc<dyn Sink>,
    pending: Vec<Portion>,
    more: bool,
}

impl Memory {
    /// How many inputs were submitted so far.
    pub(crate) fn accepted(&self) -> usize {
        lock(&self.state).accepted
    }

    /// Runs everything that was submitted for a job.
    fn run(&self, id: JobId) {
        let (task, sink, pending) = {
            let mut state = lock(&self.state);
            let Some(open) = state.jobs.get_mut(&id) else {
                return;
            };
            let found = (
                open.job.task,
                Arc::clone(&open.sink),
                std::mem::take(&mut open.pending),
            );
            if !open.more {
                state.jobs.remove(&id);
            }
            found
        };
        for Portion { first, inputs } in pending.into_iter().rev() {
            let mut replies = Vec::new();
            pool_worker::run_here(task, inputs, |reply| {
                replies.push(reply);
                true
            });
            for (at, reply) in replies.into_iter().enumerate().rev() {
                Arc::clone(&sink).deliver(Outcomes {
                    first: first + at,
                    what: What::Replies(reply),
                });
            }
        }
    }
}

impl Workers for Memory {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error> {
        let id = JobId {
            place: 0,
            serial: self.next.fetch_add(1, Ordering::Relaxed),
        };
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Error::Closed);
        }
        let open = Open {
            job,
            sink,
            pending: Vec::new(),
            more: true,
        };
        state.jobs.insert(id, open);
        drop(state);
        self.push(id, inputs, more)?;
        Ok(id)
    }

    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error> {
        let mut state = lock(&self.state);
        let count: usize = inputs.iter().map(|portion| portion.inputs.count()).sum();
        state.accepted += count;
        let open = state.jobs.get_mut(&job).ok_or(Error::Cancelled)?;
        open.pending.extend(inputs);
        open.more = more;
        Ok(())
    }

    fn cancel(&self, job: JobId, running: bool) {
        let Some(open) = lock(&self.state).jobs.remove(&job) else {
            return;
        };
        for portion in open.pending.into_iter().filter(|_| running) {
            let count = portion.inputs.count();
            let outcomes = Outcomes::failed(portion.first, count, Arc::new(Failure::Cancelled));
            Arc::clone(&open.sink).deliver(outcomes);
        }
    }

    fn wait(&self, job: JobId, _: Want, waiter: Waiter<'_>, deadline: Option<Instant>) -> bool {
        // A deadline means that the work takes time.
        if deadline.is_none() {
            self.run(job);
        }
        waiter.is_over()
    }

    fn notify(&self, job: JobId) {
        self.run(job);
    }

    fn hint(&self, _: u32) -> usize {
        4
    }

    fn close(&self) {
        lock(&self.state).closed = true;
    }

    fn terminate(&self) {
        self.close();
    }

    fn join(&self, _: Option<Instant>) -> Result<(), Error> {
        Ok(())
    }

    fn shut_down(&self) {
        self.close();
    }

    fn count(&self) -> usize {
        2
    }
}
