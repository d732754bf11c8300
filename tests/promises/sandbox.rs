//! Sandboxed workers: what hostile code in a worker tries fails, or ends that worker alone; and what a sandbox permits works.
//!
//! The attempts are in one [list](attempts). Each is made in workers without a sandbox, where it succeeds, and in sandboxes of
//! every kind: by the standard library, by a raw system call, by a thread that a task has started, by one that an initializer
//! has started, and by a forked child. The parent looks at what they aim at, which is a [`Scene`] of its own for each.

use std::io;
use std::path::Path;
use std::process;
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use pool_core::{Error, PoolBuilder, Sandbox, pool_task};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::leaks;
use crate::support::{
    Checked, builder, checked, is_sandboxed, watchdog, workers_are_elsewhere, works,
};

use attempts::{Attempt, Could, End, Permission};
use scene::{Aims, Scene};

/// All tests here must know the pids of workers, and have sandboxes of their own.
macro_rules! on_this_machine {
    () => {
        if workers_are_elsewhere() || is_sandboxed() {
            return;
        }
        let _watchdog = watchdog();
    };
}

mod attempts;
mod inside;
mod machines;
mod permits;
mod scene;

/// Who tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Way {
    /// A task, by the standard library.
    Std,
    /// A task, by a system call.
    Raw,
    /// A thread that the task starts.
    Thread,
    /// A thread that an initializer has started, before the sandbox was entered.
    EarlyThread,
    /// A copy of the worker.
    Child,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Found {
    Success,
    Errno(i32),
    /// The one who tried was killed by this signal.
    Signal(i32),
    Odd(String),
}

impl From<io::Result<()>> for Found {
    fn from(result: io::Result<()>) -> Found {
        match result {
            Ok(()) => Found::Success,
            Err(error) => match error.raw_os_error() {
                Some(number) => Found::Errno(number),
                None => Found::Odd(error.to_string()),
            },
        }
    }
}

// ---- the worker's end -----------------------------------------------------------------------------

#[pool_task]
fn try_it(name: &str, way: Way, mut aims: Aims) -> Found {
    aims.workers.retain(|pid| *pid != process::id());
    let attempt = attempts::find(name);
    let tried = match way {
        Way::Std => attempt.by_std.expect("it is known")(&aims),
        Way::Raw => (attempt.raw)(&aims),
        Way::Thread => match thread::Builder::new().spawn(move || (attempt.raw)(&aims)) {
            Ok(started) => started.join().expect("it does not panic"),
            Err(error) => return Found::Odd(format!("no thread: {error}")),
        },
        Way::EarlyThread => {
            let (answer, answered) = mpsc::channel();
            let asked = early().send((attempt, aims, answer));
            asked.expect("the thread runs");
            answered.recv().expect("the thread answers")
        }
        Way::Child => return in_child(|| (attempt.raw)(&aims)),
    };
    tried.into()
}

/// Tries it in a copy of this process, which has one thread.
fn in_child(attempt: impl FnOnce() -> io::Result<()>) -> Found {
    // SAFETY: the copy is complete.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Found::Odd(format!("no child: {}", io::Error::last_os_error()));
    }
    if child == 0 {
        let code = match Found::from(attempt()) {
            Found::Success => 0,
            Found::Errno(number) => number,
            Found::Signal(_) | Found::Odd(_) => 255,
        };
        // SAFETY: ends the copy.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: writes to a variable of ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    match libc::WIFSIGNALED(status) {
        true => Found::Signal(libc::WTERMSIG(status)),
        false => match libc::WEXITSTATUS(status) {
            0 => Found::Success,
            255 => Found::Odd("something else happened".to_owned()),
            number => Found::Errno(number),
        },
    }
}

type Request = (&'static Attempt, Aims, Sender<io::Result<()>>);

/// How the thread that an initializer has started is asked.
static EARLY: OnceLock<Mutex<Sender<Request>>> = OnceLock::new();

fn early() -> Sender<Request> {
    let sender = EARLY.get().expect("the initializer has run");
    let sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
    sender.clone()
}

#[pool_task]
fn start_early() {
    let (ask, asked) = mpsc::channel::<Request>();
    EARLY.get_or_init(|| Mutex::new(ask));
    thread::spawn(move || {
        for (attempt, aims, answer) in asked {
            let _ = answer.send((attempt.raw)(&aims));
        }
    });
}

// ---- the test's end -------------------------------------------------------------------------------

/// A pool of two workers, and a directory for its scenes.
struct Theater {
    pool: Checked,
    directory: TempDir,
}

impl Theater {
    fn new(builder: PoolBuilder) -> Theater {
        Theater::with(|_| builder)
    }

    fn with(make: impl FnOnce(&TempDir) -> PoolBuilder) -> Theater {
        let directory = tempfile::tempdir().expect("there is room");
        let pool = checked(make(&directory).processes(2).build());
        Theater { pool, directory }
    }

    /// Makes an attempt. Returns what the one who tried has found, and what has changed.
    fn play(&self, attempt: &Attempt, way: Way) -> (Result<Found, Error>, Vec<String>) {
        let workers = loop {
            let pids = self.pool.worker_pids();
            // The one that has died may not have been replaced yet.
            if pids.len() == 2 {
                break pids;
            }
            thread::yield_now();
        };
        let mut scene = Scene::new_in(self.directory.path(), workers.clone());
        let arguments = (attempt.name.to_owned(), way, scene.aims.clone());
        let found = self.pool.apply(try_it, arguments);
        if let Err(Error::WorkerLost(lost)) = &found {
            for other in workers.iter().filter(|pid| **pid != lost.pid()) {
                assert!(leaks::is_alive(*other), "{}: a sibling died", attempt.name);
            }
        }
        (found, scene.touched())
    }

    /// Makes all attempts, of which none may succeed that needs other permissions than these, and all others must.
    fn all(&self, ways: &[Way], permissions: &[Permission]) {
        let mut wrong = Vec::new();
        for attempt in attempts::all() {
            let is_permitted = attempt.needs.iter().any(|need| permissions.contains(need));
            for way in ways {
                if *way == Way::Std && attempt.by_std.is_none() {
                    continue;
                }
                let (found, touched) = self.play(attempt, *way);
                let complaint = match is_permitted {
                    true => is_as_without(attempt, *way, &found, &touched),
                    false => is_confined(attempt, *way, &found, &touched),
                };
                if let Err(why) = complaint {
                    wrong.push(format!(
                        "{} ({way:?}): {why}: {found:?}, {touched:?}",
                        attempt.name
                    ));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        works(&self.pool);
    }
}

/// Checks what happens where nothing forbids it.
fn is_as_without(
    attempt: &Attempt,
    way: Way,
    found: &Result<Found, Error>,
    touched: &[String],
) -> Result<(), &'static str> {
    let is_well = match (attempt.could, found) {
        (Could::Succeed, Ok(Found::Success)) => true,
        (Could::Change, Ok(Found::Success)) if touched.is_empty() => {
            return Err("nothing has changed");
        }
        (Could::Change, Ok(Found::Success)) => true,
        (Could::Be(errors), Ok(Found::Errno(error))) => errors.contains(error),
        (Could::SucceedAsRoot, Ok(Found::Success)) => true,
        (Could::SucceedAsRoot, Ok(Found::Errno(_))) => !is_privileged(),
        (Could::BeAnswered, Ok(Found::Success | Found::Errno(_))) => true,
        // System calls of i386.
        (Could::BeAnswered, Err(Error::WorkerLost(lost))) => lost.signal() == Some("SIGSEGV"),
        (Could::SucceedInChild, Ok(Found::Errno(error))) => {
            way != Way::Child && *error == libc::EPERM
        }
        (Could::SucceedInChild, Ok(Found::Success)) => way == Way::Child,
        _ => false,
    };
    is_well.then_some(()).ok_or("it could not")
}

/// Checks what happens where it is forbidden.
fn is_confined(
    attempt: &Attempt,
    way: Way,
    found: &Result<Found, Error>,
    touched: &[String],
) -> Result<(), &'static str> {
    if !touched.is_empty() {
        return Err("it has changed something");
    }
    let is_well = match (attempt.end, found) {
        (End::Refused, Ok(Found::Errno(error))) => [libc::EPERM, libc::EACCES].contains(error),
        (End::Unknown, Ok(Found::Errno(error))) => *error == libc::ENOSYS,
        // A copy ends alone.
        (End::Death(_) | End::NamelessDeath, Ok(Found::Signal(signal))) => {
            way == Way::Child && *signal == libc::SIGSYS
        }
        (End::Death(_) | End::NamelessDeath, Err(Error::WorkerLost(_))) if way == Way::Child => {
            false
        }
        (End::Death(call), Err(Error::WorkerLost(lost))) => {
            let text = lost.to_string();
            lost.signal() == Some("SIGSYS") && text.contains(&format!("`{call}`"))
        }
        (End::NamelessDeath, Err(Error::WorkerLost(lost))) => lost.signal() == Some("SIGSYS"),
        _ => false,
    };
    is_well.then_some(()).ok_or("it is not confined")
}

/// Whether this process may do everything.
fn is_privileged() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits & 0x1ff_ffff_ffff == 0x1ff_ffff_ffff)
}

#[test]
fn it_could_have() {
    on_this_machine!();
    let theater = Theater::new(builder());
    let mut wrong = Vec::new();
    for attempt in attempts::all() {
        for way in [Way::Std, Way::Raw, Way::Thread, Way::Child] {
            if way == Way::Std && attempt.by_std.is_none() {
                continue;
            }
            let (found, touched) = theater.play(attempt, way);
            if way == Way::Child && matches!(found, Ok(Found::Signal(libc::SIGSEGV))) {
                continue;
            }
            if let Err(why) = is_as_without(attempt, way, &found, &touched) {
                wrong.push(format!(
                    "{} ({way:?}): {why}: {found:?}, {touched:?}",
                    attempt.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_task_can_only_compute() {
    on_this_machine!();
    let theater = Theater::new(builder().sandbox(Sandbox::new()));
    theater.all(&[Way::Std, Way::Raw], &[]);
}

#[test]
fn a_thread_of_an_initializer_can_only_compute() {
    on_this_machine!();
    let builder = builder().initializer(start_early, ());
    let theater = Theater::new(builder.sandbox(Sandbox::new()));
    theater.all(&[Way::EarlyThread], &[]);
}

#[test]
fn a_thread_of_a_task_is_confined_like_the_task() {
    on_this_machine!();
    let theater = Theater::new(builder().sandbox(Sandbox::new().threads()));
    theater.all(&[Way::Thread], &[Permission::Threads]);
}

#[test]
fn a_process_of_a_task_is_confined_like_the_task() {
    on_this_machine!();
    let theater = Theater::new(builder().sandbox(Sandbox::new().processes()));
    theater.all(&[Way::Raw, Way::Child], &[Permission::Processes]);
}

#[test]
fn the_network_is_no_more_than_the_network() {
    on_this_machine!();
    let theater = Theater::new(builder().sandbox(Sandbox::new().network()));
    theater.all(&[Way::Std, Way::Raw], &[Permission::Network]);
}

/// Permits reading and writing there.
fn within(directory: &Path) -> Sandbox {
    Sandbox::new().read(directory).write(directory)
}

#[test]
fn paths_are_no_more_than_paths() {
    on_this_machine!();
    let theater = Theater::with(|directory| builder().sandbox(within(directory.path())));
    theater.all(&[Way::Std, Way::Raw], &[Permission::Paths]);
}

/// What is in `/proc` of others is not only a question of paths.
#[test]
fn who_may_read_all_files_reads_no_memory_of_others() {
    on_this_machine!();
    let sandbox = Sandbox::new().read("/").write("/").processes();
    let theater = Theater::new(builder().sandbox(sandbox));
    for name in [
        "read the memory of the parent",
        "read the environment of a sibling",
        "open a descriptor of another process",
        "enter the directory of the parent",
        "write into memory of the parent",
        "signal to the parent",
    ] {
        for way in [Way::Raw, Way::Child] {
            let attempt = attempts::find(name);
            let (found, touched) = theater.play(attempt, way);
            let confined = is_confined(attempt, way, &found, &touched);
            assert_eq!(confined, Ok(()), "{name} ({way:?}): {found:?}");
        }
    }
    // It is not that it could read nothing.
    let (found, _) = theater.play(attempts::find("read /etc/passwd"), Way::Raw);
    assert_eq!(found.ok(), Some(Found::Success));
}

#[test]
fn all_permissions_together_are_no_more_than_each() {
    on_this_machine!();
    let theater = Theater::with(|directory| {
        let sandbox = within(directory.path());
        builder().sandbox(sandbox.network().threads().processes())
    });
    let permissions = [
        Permission::Threads,
        Permission::Processes,
        Permission::Network,
        Permission::Paths,
    ];
    theater.all(&[Way::Raw, Way::Thread, Way::Child], &permissions);
}

#[test]
fn forked_workers_are_confined() {
    on_this_machine!();
    let builder = builder().preload(crate::support::own_pid, ());
    let theater = Theater::new(builder.sandbox(Sandbox::new()));
    theater.all(&[Way::Raw], &[]);
}

#[test]
fn contained_workers_are_confined() {
    on_this_machine!();
    if let Err(error) = builder().processes(1).contain().build() {
        println!("skipped: {error}");
        return;
    }
    let theater = Theater::new(builder().contain().sandbox(Sandbox::new()));
    theater.all(&[Way::Raw], &[]);
}
