//! Turns a panic in a task into a report that can be sent.
//!
//! The worker's panic hook (and that of a process that runs tasks itself) keeps the report instead of printing it: the caller
//! gets it as an error and decides what to show. A panic on a thread that the task has started goes to the hook that was
//! there before.
//!
//! A program may set a hook of its own in a worker, which replaces ours, and then the location of panics is lost. So ours is
//! wrapped around that hook: after each initializer, and when a panic came without a report. The current hook can be examined
//! only by removing it for a moment, so that is not done for each task.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::{Cell, RefCell};
use std::env;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::fault::Panic;

type Hook = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;
type LastWords = dyn Fn(Panic) + Send + Sync;

thread_local! {
    /// The serial number of the call of [`catch`] that runs on this thread; 0 if none does.
    static RUNNING: Cell<u64> = const { Cell::new(0) };
    static LAST: Cell<u64> = const { Cell::new(0) };
    /// The last report of the hook, and the serial number that was running.
    static REPORT: RefCell<Option<(u64, Panic)>> = const { RefCell::new(None) };
}

/// Whether our hook is installed; and what it calls for a panic that aborts the process.
static INSTALLED: RwLock<Installed> = RwLock::new(Installed::Nowhere);

enum Installed {
    Nowhere,
    /// In a process that is not a worker.
    Here,
    InWorker(Box<LastWords>),
}

/// The address of the hook of ours that was set last; 0 if it was dropped.
static TOP: AtomicUsize = AtomicUsize::new(0);

/// Installs the hook in a worker. In a build with `panic = "abort"` nothing runs after the hook, so it passes the report to
/// `last_words` at once.
pub(crate) fn install(last_words: impl Fn(Panic) + Send + Sync + 'static) {
    let mut installed = INSTALLED.write().unwrap_or_else(PoisonError::into_inner);
    *installed = Installed::InWorker(Box::new(last_words));
    drop(installed);
    put_on_top();
}

/// Installs the hook for tasks that run in a process that is not a worker. In a build with `panic = "abort"` the program's
/// own hook is called for them.
pub(crate) fn install_here() {
    let mut installed = INSTALLED.write().unwrap_or_else(PoisonError::into_inner);
    if matches!(*installed, Installed::Nowhere) {
        *installed = Installed::Here;
    }
    drop(installed);
    put_on_top();
}

/// Wraps the hook around one that the program may have set in the meantime.
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

/// Dropped together with a hook of ours, since another hook may then get the same address.
struct Mark;

impl Drop for Mark {
    fn drop(&mut self) {
        // If this was not the hook that was set last, that one will be wrapped once more, which does no harm.
        TOP.store(0, Ordering::Relaxed);
    }
}

/// Keeps the report of a panic; false if nothing would read it.
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
    // Calls may be nested: a task that runs in the process of its pool may use a pool itself.
    let outer = RUNNING.replace(number);
    let result = panic::catch_unwind(AssertUnwindSafe(task));
    RUNNING.set(outer);
    result.map_err(|payload| {
        let message = message(&*payload);
        // `resume_unwind` calls no hook, and a task may have set a hook of its own. Then a report that is here belongs to
        // another panic, which the task has caught.
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
        // A payload of another type may panic when it is dropped.
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
            .then(|| of_the_task(&backtrace.to_string(), wants_all()).into()),
        output: None,
    }
}

/// If backtraces are wanted, reads what they need, so that later ones need to open no files.
pub(crate) fn load_symbols() {
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        let _ = backtrace.to_string();
    }
}

/// Whether the variable that asks for a backtrace asks for all frames.
fn wants_all() -> bool {
    let value = env::var_os("RUST_LIB_BACKTRACE").or_else(|| env::var_os("RUST_BACKTRACE"));
    value.is_some_and(|value| value == "full")
}

/// The frames of a backtrace from the panic to the task, as `std` would print them: without those of this library and of the
/// hook. All frames if they can't be told apart, or if all are wanted.
fn of_the_task(backtrace: &str, wants_all: bool) -> &str {
    if wants_all {
        return backtrace;
    }
    // A frame begins with its number; a second line says where it is.
    let begins = |line: &str| {
        let number = line.trim_start().split_once(": ");
        number.is_some_and(|(number, _)| number.parse::<u32>().is_ok())
    };
    let (mut at, mut from, mut to) = (0, None, None);
    for line in backtrace.split_inclusive('\n') {
        if begins(line) && to.is_none() {
            if line.contains("rust_begin_unwind") {
                from = Some(at);
            } else if from.is_some() && line.contains("pool_worker::") {
                to = Some(at);
            }
        }
        at += line.len();
    }
    let from = from.unwrap_or(0);
    &backtrace[from..to.unwrap_or(backtrace.len())]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_begins_at_the_panic_and_ends_at_the_task() {
        let before = "   0: std::backtrace::Backtrace::create\n   1: pool_worker::unwind::report\n             at ./unwind.rs:1\n";
        let within = "   2: __rustc::rust_begin_unwind\n             at /rustc/1: 2/panicking.rs:1\n   3: program::task\n";
        let behind = "   4: pool_worker::serve::call\n   5: main\n";
        let all = [before, within, behind].concat();
        assert_eq!(of_the_task(&all, false), within);
        assert_eq!(of_the_task(&all, true), all);
        assert_eq!(
            of_the_task(&[within, "   4: main\n"].concat(), false),
            [within, "   4: main\n"].concat()
        );
        for unknown in [behind, "", "   0: <unknown>\n"] {
            assert_eq!(of_the_task(unknown, false), unknown);
        }
    }
}
