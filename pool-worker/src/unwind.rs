//! From a panic in a task to a report that can be sent.
//!
//! The worker's panic hook writes the report instead of printing it: the caller gets it as an error
//! and decides what to show. A panic on a thread that the task started itself is none of ours, and
//! goes to the hook that was there before.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

use crate::fault::Panic;

thread_local! {
    /// The number of the task that runs on this thread; 0 if none does.
    static RUNNING: Cell<u64> = const { Cell::new(0) };
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// What the hook has written last, in which task.
    static REPORT: RefCell<Option<(u64, Panic)>> = const { RefCell::new(None) };
}

/// Installs the hook. In a build with `panic = "abort"` nothing runs after it, so the report is
/// handed to `last_words` at once.
pub(crate) fn install(last_words: impl Fn(Panic) + Send + Sync + 'static) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let task = RUNNING.get();
        if task == 0 {
            return before(info);
        }
        let report = report(info);
        if cfg!(panic = "abort") {
            last_words(report);
        } else {
            REPORT.set(Some((task, report)));
        }
    }));
}

/// Runs `task`, and turns a panic into its report.
#[inline]
pub(crate) fn catch<R>(task: impl FnOnce() -> R) -> Result<R, Panic> {
    let number = LAST.get() + 1;
    LAST.set(number);
    RUNNING.set(number);
    let result = panic::catch_unwind(AssertUnwindSafe(task));
    RUNNING.set(0);
    result.map_err(|payload| {
        let message = message(&*payload);
        // `resume_unwind` calls no hook, and a task may have put a hook of its own in place. Then
        // what is here, if anything, tells of another panic, which the task has caught.
        let report = REPORT
            .take()
            .filter(|(of, report)| *of == number && report.message == message)
            .map(|(_, report)| report);
        let report = report.unwrap_or(Panic {
            message,
            location: None,
            backtrace: None,
        });
        // A payload may panic when it is dropped.
        std::mem::forget(payload);
        report
    })
}

fn report(info: &PanicHookInfo<'_>) -> Panic {
    let backtrace = Backtrace::capture();
    Panic {
        message: message(info.payload()),
        location: info.location().map(ToString::to_string),
        backtrace: (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
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
