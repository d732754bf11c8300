//! From a panic in a task to a report that can be sent.
//!
//! The worker's panic hook (and that of a process that runs tasks itself) writes the report instead of printing it: the caller gets it as an error
//! and decides what to show. A panic on a thread that the task started itself is none of ours, and
//! goes to the hook that was there before.
//!
//! The program may set a hook of its own in a worker, which takes the place of ours, and with it the location of panics.
//! So ours is put around it, as if it had been there before: after an initializer, and when a panic has come without a
//! report. There is no way to see what hook there is without taking it away for a moment, so that is not done for each task.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::fault::Panic;

type Hook = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;
type LastWords = dyn Fn(Panic) + Send + Sync;

thread_local! {
    /// The number of the task that runs on this thread; 0 if none does.
    static RUNNING: Cell<u64> = const { Cell::new(0) };
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// What the hook has written last, in which task.
    static REPORT: RefCell<Option<(u64, Panic)>> = const { RefCell::new(None) };
}

/// Whether there is a hook of ours, and who hears of a panic after which nothing runs.
static INSTALLED: RwLock<Installed> = RwLock::new(Installed::Nowhere);

enum Installed {
    Nowhere,
    /// In a process that is no worker.
    Here,
    InWorker(Box<LastWords>),
}

/// Where the hook lies that was put on top last; 0 if it was dropped.
static TOP: AtomicUsize = AtomicUsize::new(0);

/// Installs the hook. In a build with `panic = "abort"` nothing runs after it, so the report is
/// handed to `last_words` at once.
pub(crate) fn install(last_words: impl Fn(Panic) + Send + Sync + 'static) {
    let mut installed = INSTALLED.write().unwrap_or_else(PoisonError::into_inner);
    *installed = Installed::InWorker(Box::new(last_words));
    drop(installed);
    put_on_top();
}

/// Installs the hook for tasks that run in a process that is no worker. In a build with `panic = "abort"` the program's
/// own hook is called for them.
pub(crate) fn install_here() {
    let mut installed = INSTALLED.write().unwrap_or_else(PoisonError::into_inner);
    if matches!(*installed, Installed::Nowhere) {
        *installed = Installed::Here;
    }
    drop(installed);
    put_on_top();
}

/// Puts the hook around the one that the program may have set since it was installed.
#[cold]
pub(crate) fn stay_on_top() {
    let installed = INSTALLED.read().unwrap_or_else(PoisonError::into_inner);
    let is_installed = !matches!(*installed, Installed::Nowhere);
    drop(installed);
    if is_installed {
        put_on_top();
    }
}

fn put_on_top() {
    let top = panic::take_hook();
    if address(&*top) == TOP.load(Ordering::Relaxed) {
        return panic::set_hook(top);
    }
    let mark = Mark;
    let hook: Box<Hook> = Box::new(move |info| {
        let _ = &mark;
        match RUNNING.get() {
            0 => top(info),
            task if !keep(task, info) => top(info),
            _ => {}
        }
    });
    TOP.store(address(&*hook), Ordering::Relaxed);
    panic::set_hook(hook);
}

fn address(hook: &Hook) -> usize {
    ptr::from_ref(hook).addr()
}

/// Dropped with a hook of ours, whose place in memory another one may get.
struct Mark;

impl Drop for Mark {
    fn drop(&mut self) {
        // If this was not the one on top, that gets another one around it, which does no harm.
        TOP.store(0, Ordering::Relaxed);
    }
}

/// Keeps what there is to report. False: nobody would read it.
fn keep(task: u64, info: &PanicHookInfo<'_>) -> bool {
    if !cfg!(panic = "abort") {
        REPORT.set(Some((task, report(info))));
        return true;
    }
    let installed = INSTALLED.read().unwrap_or_else(PoisonError::into_inner);
    if let Installed::InWorker(last_words) = &*installed {
        last_words(report(info));
        return true;
    }
    false
}

/// Runs `task`, and turns a panic into its report.
#[inline]
pub(crate) fn catch<R>(task: impl FnOnce() -> R) -> Result<R, Panic> {
    let number = LAST.get() + 1;
    LAST.set(number);
    // A task that runs in the process of its pool may use a pool itself.
    let outer = RUNNING.replace(number);
    let result = panic::catch_unwind(AssertUnwindSafe(task));
    RUNNING.set(outer);
    result.map_err(|payload| {
        let message = message(&*payload);
        // `resume_unwind` calls no hook, and a task may have put a hook of its own in place. Then
        // what is here, if anything, tells of another panic, which the task has caught.
        let report = REPORT
            .take()
            .filter(|(of, report)| *of == number && report.message == message)
            .map(|(_, report)| report);
        let report = report.unwrap_or_else(|| {
            stay_on_top();
            Panic {
                message,
                location: None,
                backtrace: None,
                output: None,
            }
        });
        // Another payload may panic when it is dropped.
        if !payload.is::<String>() {
            std::mem::forget(payload);
        }
        report
    })
}

fn report(info: &PanicHookInfo<'_>) -> Panic {
    let backtrace = Backtrace::capture();
    Panic {
        message: message(info.payload()),
        location: info.location().map(|at| at.to_string().into()),
        backtrace: (backtrace.status() == BacktraceStatus::Captured)
            .then(|| backtrace.to_string().into()),
        output: None,
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic whose payload is not a string".to_owned()
    }
}
