//! One pool, one fault: starts the program under test, observes it, and ends everything that it leaves behind.
//!
//! A keeper is a process of its own, to which the kernel gives the orphans of its descendants. So no orphan gets lost,
//! and none is mistaken for one of another program.

use std::collections::HashMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use procfs::process::all_processes;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitOptions, getpid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, setrlimit, setsid, wait,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::fault::Fault;
use crate::report::{Line, REPORT};
use crate::{Contender, Outcome, name};

/// The program under test gives up long before.
const LIMIT: Duration = Duration::from_secs(40);

/// How long to wait for things to disappear.
const GRACE: Duration = Duration::from_secs(1);

/// How often to look.
const LOOK: Duration = Duration::from_millis(3);

/// A worker larger than this has kept the memory that a task took.
const LARGE: u64 = 512 << 20;

/// What was seen.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) lines: Vec<Line>,
    pub(crate) end: End,
    /// Workers that kept a task's memory, after a later batch.
    pub(crate) large: usize,
    /// Dead children that had not been reaped when the pool had ended.
    pub(crate) zombies: usize,
    /// Processes left after the pool, or after the program had ended.
    pub(crate) processes: usize,
    /// Files left after the program had ended.
    pub(crate) files: Vec<PathBuf>,
    /// What the program printed.
    pub(crate) printed: String,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Code(i32),
    Signal(i32),
    Hangs,
}

/// Runs the program under test.
pub(crate) fn keep(pool: Contender, fault: Fault, python: &Path) -> Outcome<Seen> {
    set_child_subreaper(Some(getpid()))?;
    let stopped = stop_when_told()?;
    // Crashes should write no core files.
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, nothing)?;
    // Without the permission for this, files that other programs leave there count as well.
    let _ = own_shared_memory();
    let place = Place::new()?;
    let shared_before = files(Path::new("/dev/shm"));
    let child = place.start(pool, fault, python)?;
    let mut keeper = Keeper::new(child, fault)?;
    keeper.watch(&place, &stopped)?;
    let left = || {
        let mut left = files(&place.temporary);
        let shared = files(Path::new("/dev/shm"));
        left.extend(
            shared
                .into_iter()
                .filter(|file| !shared_before.contains(file)),
        );
        left
    };
    keeper.settle(|keeper| keeper.left().is_empty() && left().is_empty());
    keeper.processes = keeper.processes.max(keeper.left().len());
    let files = left();
    keeper.end_all()?;
    for file in left() {
        // It may be a directory, or gone by now.
        let _ = fs::remove_file(file);
    }
    Ok(Seen {
        lines: place.lines()?,
        end: keeper.end.unwrap_or(End::Hangs),
        large: keeper.large,
        zombies: keeper.zombies,
        processes: keeper.processes,
        files,
        printed: String::from_utf8_lossy(&fs::read(&place.printed)?).into_owned(),
    })
}

/// Returns a flag that becomes true when the caller is gone or the run is interrupted.
fn stop_when_told() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal_hook::flag::register(signal.as_raw(), Arc::clone(&stopped))?;
    }
    set_parent_process_death_signal(Some(Signal::TERM))?;
    Ok(stopped)
}

/// Mounts an empty `/dev/shm` for this process and its descendants.
fn own_shared_memory() -> rustix::io::Result<()> {
    // SAFETY: this process has one thread, and no descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::empty(), None)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// The directory of one run.
#[derive(Debug)]
struct Place {
    _directory: TempDir,
    temporary: PathBuf,
    report: PathBuf,
    printed: PathBuf,
}

impl Place {
    fn new() -> Outcome<Place> {
        let directory = TempDir::with_prefix("faults")?;
        let place = Place {
            temporary: directory.path().join("tmp"),
            report: directory.path().join("report"),
            printed: directory.path().join("printed"),
            _directory: directory,
        };
        fs::create_dir(&place.temporary)?;
        File::create(&place.report)?;
        Ok(place)
    }

    fn start(&self, pool: Contender, fault: Fault, python: &Path) -> Outcome<Child> {
        let printed = File::create(&self.printed)?;
        let mut command = pool.program(fault, python);
        command
            .env("TMPDIR", &self.temporary)
            .env(REPORT, &self.report)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .current_dir(&self.temporary)
            .stdin(Stdio::piped())
            .stdout(printed.try_clone()?)
            .stderr(printed);
        // SAFETY: makes one system call.
        unsafe { command.pre_exec(|| Ok(_ = setsid()?)) };
        Ok(command.spawn()?)
    }

    /// Returns the complete lines written so far.
    fn lines(&self) -> Outcome<Vec<Line>> {
        let text = fs::read_to_string(&self.report)?;
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        Ok(lines
            .map(serde_json::from_str)
            .collect::<Result<_, serde_json::Error>>()?)
    }
}

#[derive(Debug)]
struct Keeper {
    me: Pid,
    program: Pid,
    stdin: ChildStdin,
    fault: Fault,
    end: Option<End>,
    large: usize,
    zombies: usize,
    processes: usize,
}

/// One process, as `/proc` shows it.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: Pid,
    is_zombie: bool,
    /// Its resident memory.
    bytes: u64,
    /// A helper that Python keeps until the program ends, by design.
    is_tracker: bool,
}

impl Keeper {
    fn new(mut child: Child, fault: Fault) -> Outcome<Keeper> {
        Ok(Keeper {
            me: getpid(),
            program: Pid::from_child(&child),
            stdin: child.stdin.take().ok_or("it is a pipe")?,
            fault,
            end: None,
            large: 0,
            zombies: 0,
            processes: 0,
        })
    }

    /// Watches until the program has ended.
    fn watch(&mut self, place: &Place, stopped: &AtomicBool) -> Outcome<()> {
        let began = Instant::now();
        let mut seen = 0;
        loop {
            self.reap();
            let lines = place.lines()?;
            for index in seen..lines.len() {
                self.answer(&lines[..=index]);
            }
            seen = lines.len();
            if self.end.is_some() {
                return Ok(());
            }
            if began.elapsed() > LIMIT || stopped.load(Ordering::Relaxed) {
                self.end = Some(End::Hangs);
                kill(self.program);
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }

    /// Does what the last of these lines calls for.
    fn answer(&mut self, lines: &[Line]) {
        match lines.last() {
            Some(Line::Began) => {
                let began = lines.iter().filter(|line| **line == Line::Began).count();
                if began == 2 {
                    kill(self.program);
                }
                return;
            }
            Some(Line::First(_)) => {
                let mut victims: Vec<_> = self.of_the_pool().iter().map(|it| it.pid).collect();
                victims.truncate(match self.fault {
                    Fault::KilledWhileIdle => 1,
                    Fault::AllKilledWhileIdle => victims.len(),
                    _ => 0,
                });
                victims.iter().for_each(|pid| kill(*pid));
                let lives = |it: &Process| !it.is_zombie && victims.contains(&it.pid);
                self.settle(|keeper| !keeper.of_the_pool().iter().any(lives));
            }
            Some(Line::Later(_)) if self.fault == Fault::Leak => {
                let is_large = |process: &Process| process.bytes > LARGE;
                self.settle(|keeper| !keeper.of_the_pool().iter().any(is_large));
                self.large = self.of_the_pool().into_iter().filter(is_large).count();
            }
            Some(Line::Closed(..)) => {
                self.settle(|keeper| keeper.of_the_pool().is_empty());
                let left = self.of_the_pool();
                self.zombies = left.iter().filter(|process| process.is_zombie).count();
                self.processes = left.len() - self.zombies;
            }
            _ => {}
        }
        // The program may be dead.
        let _ = self.stdin.write_all(b"go on\n");
    }

    /// Waits a short while for a condition.
    fn settle(&mut self, is_so: impl Fn(&Keeper) -> bool) {
        let began = Instant::now();
        while !is_so(self) && began.elapsed() < GRACE {
            thread::sleep(LOOK);
            self.reap();
        }
    }

    /// Returns the processes that the program under test has started and that still exist.
    fn of_the_pool(&self) -> Vec<Process> {
        let mut all = descendants(self.me);
        all.retain(|process| process.pid != self.program && !process.is_tracker);
        all
    }

    /// Returns all processes that still exist.
    fn left(&self) -> Vec<Process> {
        descendants(self.me)
    }

    /// Reaps dead children, its own and those that the kernel gave it.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == self.program && self.end.is_none() {
                let status = ExitStatus::from_raw(status.as_raw());
                let signal = status.signal().map(End::Signal);
                self.end = signal.or(status.code().map(End::Code));
            }
        }
    }

    fn end_all(&mut self) -> Outcome<()> {
        let began = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() {
                return Ok(());
            }
            if began.elapsed() > 5 * GRACE {
                return Err(format!("these do not end: {left:?}").into());
            }
            left.iter().for_each(|process| kill(process.pid));
            thread::sleep(LOOK);
            self.reap();
        }
    }
}

/// A descendant's pid can't be reused before this process, or the descendant's parent, has waited for it: at worst, the
/// parent has just done so.
fn kill(pid: Pid) {
    // It may be gone.
    let _ = kill_process(pid, Signal::KILL);
}

/// Returns all descendants, in the order of their start; a process that can't be read is gone.
fn descendants(of: Pid) -> Vec<Process> {
    let Ok(all) = all_processes() else {
        return Vec::new();
    };
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all.flatten() {
        let Ok(stat) = process.stat() else { continue };
        let Some(pid) = Pid::from_raw(stat.pid) else {
            continue;
        };
        let words = process.cmdline().unwrap_or_default();
        children.entry(stat.ppid).or_default().push(Process {
            pid,
            is_zombie: stat.state == 'Z',
            bytes: stat.rss * procfs::page_size(),
            is_tracker: words.iter().any(|word| word.contains("resource_tracker")),
        });
    }
    let mut found = Vec::new();
    let mut open = vec![of.as_raw_pid()];
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            open.push(child.pid.as_raw_pid());
            found.push(child);
        }
    }
    found.sort_by_key(|process| process.pid.as_raw_pid());
    found
}

impl Contender {
    /// Returns the command for the program under test.
    fn program(self, fault: Fault, python: &Path) -> Command {
        let mut command = match self {
            Contender::Pool | Contender::Procspawn => {
                let this = env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
                let mut command = Command::new(this);
                command.arg("subject");
                command
            }
            _ => {
                let mut command = Command::new(python);
                command.arg(concat!(
                    env!("CARGO_MANIFEST_DIR"),
                    "/peers/faults/subject.py"
                ));
                command
            }
        };
        command.args([name(self), name(fault)]);
        command
    }
}
