//! What the tests have in common: a watchdog, pools that are checked for leaks, tasks, and a gate.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::iter;
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use pool_core::backend::Inline;
use pool_core::{Error, Pool, PoolBuilder, Sandbox, pool_task};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::far::{self, Far};
use crate::leaks;
use crate::nats::Nats;

/// How long a test may take, on a slow machine under load: so long that only one that hangs takes longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Ends the whole process if the test is not through in time. Declare it first: what is declared
/// later is dropped under its eyes.
#[track_caller]
pub(crate) fn watchdog() -> Watchdog {
    let test = thread::current().name().unwrap_or("?").to_owned();
    let place = Location::caller();
    let (over, watch) = mpsc::channel();
    thread::spawn(move || {
        if let Err(RecvTimeoutError::Timeout) = watch.recv_timeout(PATIENCE) {
            let _ = writeln!(io::stderr(), "{test} ({place}) hangs");
            process::abort();
        }
    });
    Watchdog(over)
}

/// See [`watchdog`].
#[derive(Debug)]
pub(crate) struct Watchdog(
    #[expect(dead_code, reason = "its drop ends the watch")] mpsc::Sender<()>,
);

/// A pool; when it is dropped, its workers must be gone.
#[derive(Debug)]
pub(crate) struct Checked(Option<Pool>);

/// Names the backend over which the promises are tested: `far`, `inline`, or the URL of a NATS server; not set: the local one.
pub(crate) const BACKEND: &str = "POOL_TEST_BACKEND";

/// If this is set, the workers are sandboxed, over any backend that has workers.
const SANDBOX: &str = "POOL_TEST_SANDBOX";

/// Whether the workers are sandboxed.
pub(crate) fn is_sandboxed() -> bool {
    env::var_os(SANDBOX).is_some()
}

/// The settings of a pool over that backend.
pub(crate) fn builder() -> PoolBuilder {
    builder_with(|sandbox| sandbox)
}

/// The same; if the workers are sandboxed, they may do this, too. By default they may do nothing but use temporary files, by
/// which the tests know what has run.
pub(crate) fn builder_with(permit: impl FnOnce(Sandbox) -> Sandbox) -> PoolBuilder {
    let builder = match env::var(BACKEND).as_deref() {
        Ok("far") => Pool::builder().backend(Far),
        Ok("inline") => Pool::builder().backend(Inline),
        Ok(url) if url.starts_with("nats://") => Pool::builder().backend(Nats(url.to_owned())),
        Ok(other) => panic!("no backend is called {other}"),
        Err(_) => Pool::builder(),
    };
    if !is_sandboxed() {
        return builder;
    }
    let temporary = env::temp_dir();
    builder.sandbox(permit(Sandbox::new().read(&temporary).write(&temporary)))
}

/// Whether the backend's workers are as good as on another machine: the pool does not know their pids. A test that must know them
/// tests nothing then.
pub(crate) fn workers_are_elsewhere() -> bool {
    env::var(BACKEND).is_ok_and(|name| name.starts_with("nats://"))
}

/// What the machine of the workers is called; `None` if that is this one.
pub(crate) fn host() -> Option<String> {
    match env::var(BACKEND).as_deref() {
        Ok("far") => Some(far::HOST.to_owned()),
        Ok(url) if url.starts_with("nats://") => {
            let uname = rustix::system::uname();
            Some(uname.nodename().to_string_lossy().into_owned())
        }
        _ => None,
    }
}

/// Permits running the programs of the system.
pub(crate) fn programs(sandbox: Sandbox) -> Sandbox {
    let places = ["/bin", "/lib", "/lib64", "/usr", "/etc/ld.so.cache"].map(Path::new);
    let there = places.into_iter().filter(|path| path.exists());
    there.fold(sandbox.processes(), Sandbox::read)
}

/// A pool of this many workers.
#[track_caller]
pub(crate) fn pool(processes: usize) -> Checked {
    checked(builder().processes(processes).build())
}

/// The same; if they are sandboxed, they may do this, too.
#[track_caller]
pub(crate) fn pool_with(permit: impl FnOnce(Sandbox) -> Sandbox, processes: usize) -> Checked {
    checked(builder_with(permit).processes(processes).build())
}

#[track_caller]
pub(crate) fn checked(pool: Result<Pool, Error>) -> Checked {
    Checked(Some(pool.expect("the pool starts")))
}

impl Deref for Checked {
    type Target = Pool;

    fn deref(&self) -> &Pool {
        self.0.as_ref().expect("taken by drop only")
    }
}

impl Drop for Checked {
    fn drop(&mut self) {
        let pids = self.worker_pids();
        drop(self.0.take());
        if !thread::panicking() {
            leaks::none_left(&pids);
        }
    }
}

/// Fails unless the pool still does its work.
#[track_caller]
pub(crate) fn works(pool: &Pool) {
    let squares: Vec<u64> = (0..50).map(|x| x * x).collect();
    assert_eq!(pool.map(square, 0..50).expect("the pool works"), squares);
    assert_eq!(pool.apply(square, (9,)).expect("the pool works"), 81);
}

#[pool_task]
pub(crate) fn square(x: u64) -> u64 {
    x * x
}

#[pool_task]
pub(crate) fn multiply(x: u64, y: u64) -> u64 {
    x * y
}

#[pool_task]
pub(crate) fn own_pid() -> u32 {
    process::id()
}

/// The process that ran it, and how many of this task that process had run before.
#[pool_task]
pub(crate) fn who(_: u64) -> (u32, u64) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    (process::id(), CALLS.fetch_add(1, Ordering::Relaxed))
}

/// Never ends by itself.
#[pool_task]
pub(crate) fn hang() {
    forever();
}

/// Never returns.
pub(crate) fn forever() -> ! {
    loop {
        thread::park();
    }
}

/// Adds a line to a file.
#[pool_task]
pub(crate) fn mark(file: &Path, line: u64) -> u64 {
    append(file, line);
    line
}

/// One write, so lines of several processes do not mix.
pub(crate) fn append(file: &Path, line: u64) {
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .expect("the file can be written");
    file.write_all(format!("{line}\n").as_bytes())
        .expect("the file can be written");
}

/// The lines that [`append`] wrote.
pub(crate) fn lines(file: &Path) -> Vec<u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| line.parse().expect("a number"))
        .collect()
}

/// Where tasks say that they have begun, and wait until they may go on.
///
/// It consists of named pipes, since sandboxed tasks may open these, but no sockets. A task takes a number, which is the name of
/// a pipe of its own, says through the common pipe that it is there, and waits until there is something in its own pipe.
#[derive(Debug)]
pub(crate) struct Gate {
    // Removed first, so nobody opens a pipe when its other end is closed, and waits.
    directory: TempDir,
    /// Where tasks say that they are there.
    arrivals: File,
    /// From where they take numbers.
    numbers: File,
    next: AtomicU32,
}

/// What a task says: the number of its pipe, its pid, and its id.
const ARRIVAL: usize = 4 + 4 + 8;

/// So many tasks may be at a gate and not yet seen by the test; others wait for a number.
const UNSEEN: usize = 64;

impl Gate {
    pub(crate) fn new() -> Gate {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pipe = |name| {
            let path = directory.path().join(name);
            make_pipe(&path);
            // Both ends, so that this neither waits for a task, nor sees an end when there is none.
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.expect("a pipe")
        };
        let gate = Gate {
            arrivals: pipe("arrivals"),
            numbers: pipe("numbers"),
            next: AtomicU32::new(0),
            directory,
        };
        (0..UNSEEN).for_each(|_| gate.offer_number());
        gate
    }

    /// What tasks are to be told.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Waits until one more task stands at the gate.
    pub(crate) fn accept(&self) -> Held {
        let mut said = [0; ARRIVAL];
        let read = (&self.arrivals).read_exact(&mut said);
        read.expect("a task comes");
        self.offer_number();
        Held::new(self.directory.path(), said)
    }

    /// A task that stands at the gate now, if there is one.
    pub(crate) fn poll(&self) -> Option<Held> {
        let mut asked = [PollFd::new(&self.arrivals, PollFlags::IN)];
        let found = poll(&mut asked, Some(&Timespec::default())).expect("a pipe");
        (found > 0).then(|| self.accept())
    }

    /// How many tasks have come since, those included who died at the gate.
    pub(crate) fn count_callers(&self) -> usize {
        iter::from_fn(|| self.poll()).count()
    }

    /// Lets this many tasks through, whichever come.
    pub(crate) fn let_through(&self, tasks: usize) {
        for _ in 0..tasks {
            self.accept().release();
        }
    }

    fn offer_number(&self) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        make_pipe(&own_pipe(self.directory.path(), number));
        let written = (&self.numbers).write_all(&number.to_ne_bytes());
        written.expect("a pipe");
    }
}

fn make_pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).expect("a named pipe");
}

fn own_pipe(gate: &Path, number: u32) -> PathBuf {
    gate.join(number.to_string())
}

/// A task at the gate. It fails if it is dropped instead of being let through.
#[derive(Debug)]
pub(crate) struct Held {
    /// The task's own pipe, unless it is dead.
    pipe: Option<File>,
    pub(crate) id: u64,
    pub(crate) pid: u32,
}

impl Held {
    fn new(gate: &Path, said: [u8; ARRIVAL]) -> Held {
        let [a, b, c, d, e, f, g, h, id @ ..] = said;
        let path = own_pipe(gate, u32::from_ne_bytes([a, b, c, d]));
        // This fails if nobody has the other end.
        let flags = libc::O_NONBLOCK;
        let pipe = OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(path);
        Held {
            pipe: pipe.ok(),
            id: u64::from_ne_bytes(id),
            pid: u32::from_ne_bytes([e, f, g, h]),
        }
    }

    /// Waits until the process that stands there ends.
    pub(crate) fn wait_until_gone(self) {
        if let Some(pipe) = &self.pipe {
            // Nothing is asked for, so only the loss of the other end ends this.
            poll(&mut [PollFd::new(pipe, PollFlags::empty())], None).expect("a pipe");
        }
    }

    pub(crate) fn release(self) {
        let mut pipe = self.pipe.expect("the task waits");
        pipe.write_all(&[1]).expect("the task waits");
    }
}

/// Stands at the gate until it is let through.
#[pool_task]
pub(crate) fn wait_at(gate: &Path, id: u64) -> u64 {
    stand(gate, id);
    id
}

/// See [`wait_at`].
pub(crate) fn stand(gate: &Path, id: u64) {
    let mut number = [0; 4];
    let numbers = File::open(gate.join("numbers"));
    let taken = numbers.and_then(|mut numbers| numbers.read_exact(&mut number));
    taken.expect("the gate is there");
    let number = u32::from_ne_bytes(number);
    // Now, without waiting for the other end, which the gate opens when it knows of this task.
    let own = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(own_pipe(gate, number));
    let mut own = own.expect("the gate is there");
    let arrivals = OpenOptions::new().write(true).open(gate.join("arrivals"));
    let mut arrivals = arrivals.expect("the gate is there");
    let mut said = [number, process::id()].map(u32::to_ne_bytes).concat();
    said.extend(id.to_ne_bytes());
    arrivals.write_all(&said).expect("the gate listens");
    // The first says that it may go on, or that it has been dropped; the second that there is no gate any more.
    let mut changes = [
        PollFd::new(&own, PollFlags::IN),
        PollFd::new(&arrivals, PollFlags::empty()),
    ];
    while poll(&mut changes, None) == Err(Errno::INTR) {}
    own.read_exact(&mut [0]).expect("the gate opens");
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a pid");
    assert!(pid > 1, "a single process");
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}
