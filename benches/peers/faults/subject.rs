//! The program under test, for Rust pools: runs a batch with a fault in it, then a batch without, and ends the pool.
//! `subject.py` is the same for Python pools.
//!
//! Each input is a call of its own, so that each pool can report the outcome of each.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{AsyncResult, Error, pool_task};
use procspawn::{JoinHandle, SpawnError};

use crate::fault::{Fault, INPUTS, MEMORY_LIMIT, Output, TIME_LIMIT, work};
use crate::report::{Closing, Line, Outcome, report_and_wait};

/// A result that takes longer than this is assumed never to come.
const BATCH: Duration = Duration::from_secs(8);
const CLOSE: Duration = Duration::from_secs(12);
const FORCE: Duration = Duration::from_secs(3);

/// Where the inputs of the later batches begin.
const LATER: u64 = 100;

/// A pool of two workers, with the settings that its documentation recommends.
trait Subject {
    type Handle;
    fn submit(&self, x: u64, fault: Fault) -> Self::Handle;
    /// Returns the outcome of a call; `left` is the time until the batch is assumed to hang.
    fn outcome(&self, x: u64, handle: &mut Self::Handle, left: Duration) -> Outcome;
    fn close(self) -> Closing;

    fn run(self, fault: Fault)
    where
        Self: Sized,
    {
        report_and_wait(&Line::First(self.batch(0, fault)));
        // A second time if none came back: a pool may notice only then that it has to recover.
        for _ in 0..2 {
            let outcomes = self.batch(LATER, fault);
            let is_good = outcomes.contains(&Outcome::Right);
            report_and_wait(&Line::Later(outcomes));
            if is_good {
                break;
            }
        }
        let began = Instant::now();
        let closing = self.close();
        report_and_wait(&Line::Closed(closing, began.elapsed().as_secs()));
    }

    fn batch(&self, first: u64, fault: Fault) -> Vec<Outcome> {
        let end = Instant::now() + BATCH;
        let inputs = first..first + INPUTS;
        let submit = |x| catch_unwind(AssertUnwindSafe(|| self.submit(x, fault)));
        let handles: Vec<_> = inputs.clone().map(submit).collect();
        let outcome = |(x, handle): (u64, thread::Result<Self::Handle>)| {
            let left = end.saturating_duration_since(Instant::now());
            let outcome = handle.and_then(|mut handle| {
                catch_unwind(AssertUnwindSafe(|| self.outcome(x, &mut handle, left)))
            });
            outcome.unwrap_or_else(|panic| Outcome::Error(words(&*panic)))
        };
        inputs.zip(handles).map(outcome).collect()
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic in the program: {}", text.unwrap_or("?"))
}

fn right_or_wrong(x: u64, output: Output) -> Outcome {
    if output == Output(x * x) {
        Outcome::Right
    } else {
        Outcome::Wrong
    }
}

#[pool_task]
fn pool_work(x: u64, fault: Fault) -> Output {
    work(x, fault)
}

impl Subject for pool_core::Pool {
    type Handle = AsyncResult<Output>;

    fn submit(&self, x: u64, fault: Fault) -> Self::Handle {
        self.apply_async(pool_work, (x, fault))
    }

    fn outcome(&self, x: u64, handle: &mut Self::Handle, left: Duration) -> Outcome {
        match handle.get_timeout(left) {
            Ok(output) => right_or_wrong(x, output),
            Err(Error::Timeout) => Outcome::NoAnswer,
            Err(error @ Error::TimeLimit(_)) => Outcome::TimeLimit(error.to_string()),
            Err(error @ Error::MemoryLimit(_)) => Outcome::MemoryLimit(error.to_string()),
            Err(error) => Outcome::Error(error.to_string()),
        }
    }

    fn close(self) -> Closing {
        pool_core::Pool::close(&self);
        if self.join_timeout(CLOSE).is_ok() {
            return Closing::Orderly;
        }
        self.terminate();
        match self.join_timeout(FORCE) {
            Ok(()) => Closing::Forced,
            Err(_) => Closing::Hangs,
        }
    }
}

impl Subject for Arc<procspawn::Pool> {
    type Handle = JoinHandle<Output>;

    fn submit(&self, x: u64, fault: Fault) -> Self::Handle {
        self.spawn((x, fault), |(x, fault)| work(x, fault))
    }

    /// procspawn's documentation builds a time limit this way. Inputs run in order, so this one is next by the time it
    /// is waited for.
    fn outcome(&self, x: u64, handle: &mut Self::Handle, left: Duration) -> Outcome {
        match handle.join_timeout(TIME_LIMIT.min(left)) {
            Ok(output) => right_or_wrong(x, output),
            Err(error) if error.is_timeout() && left < TIME_LIMIT => Outcome::NoAnswer,
            Err(error) if error.is_timeout() => {
                let killed: Result<(), SpawnError> = handle.kill();
                killed.map_or_else(
                    |error| Outcome::Error(error.to_string()),
                    |()| Outcome::TimeLimit(error.to_string()),
                )
            }
            Err(error) => Outcome::Error(error.to_string()),
        }
    }

    fn close(self) -> Closing {
        let ends = |end: fn(&procspawn::Pool), limit| {
            let (ended, has_ended) = mpsc::channel();
            let pool = Arc::clone(&self);
            thread::spawn(move || {
                end(&pool);
                // If it took too long, it is no longer waited for.
                let _ = ended.send(());
            });
            has_ended.recv_timeout(limit).is_ok()
        };
        if ends(procspawn::Pool::shutdown, CLOSE) {
            Closing::Orderly
        } else if ends(procspawn::Pool::kill, FORCE) {
            Closing::Forced
        } else {
            Closing::Hangs
        }
    }
}

/// Runs this project's pool.
pub(crate) fn pool(fault: Fault) -> Result<(), Error> {
    let pool = pool_core::Pool::builder()
        .processes(2)
        .time_limit(TIME_LIMIT)
        .memory_limit(MEMORY_LIMIT)
        .build()?;
    pool.run(fault);
    Ok(())
}

/// Runs procspawn's pool.
pub(crate) fn procspawn(fault: Fault) -> Result<(), SpawnError> {
    Arc::new(procspawn::Pool::new(2)?).run(fault);
    Ok(())
}
