//! What the tests have in common: a watchdog, pools that are checked for leaks, tasks, and a gate.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use pool_core::backend::Inline;
use pool_core::{Error, Pool, PoolBuilder, pool_task};
use tempfile::TempDir;

use crate::far::Far;
use crate::leaks;
use crate::nats::Nats;

/// How long a test may take, on a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// The settings of a pool over that backend.
pub(crate) fn builder() -> PoolBuilder {
    match env::var(BACKEND).as_deref() {
        Ok("far") => Pool::builder().backend(Far),
        Ok("inline") => Pool::builder().backend(Inline),
        Ok(url) if url.starts_with("nats://") => Pool::builder().backend(Nats(url.to_owned())),
        Ok(other) => panic!("no backend is called {other}"),
        Err(_) => Pool::builder(),
    }
}

/// Whether the backend's workers are as good as on another machine: the pool does not know their pids. A test that must know them
/// tests nothing then.
pub(crate) fn workers_are_elsewhere() -> bool {
    env::var(BACKEND).is_ok_and(|name| name.starts_with("nats://"))
}

/// A pool of this many workers.
#[track_caller]
pub(crate) fn pool(processes: usize) -> Checked {
    checked(builder().processes(processes).build())
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
#[derive(Debug)]
pub(crate) struct Gate {
    listener: UnixListener,
    path: PathBuf,
    _directory: TempDir,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("gate");
        let listener = UnixListener::bind(&path).expect("a socket");
        Gate {
            listener,
            path,
            _directory: directory,
        }
    }

    /// What tasks are to be told.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Waits until one more task stands at the gate.
    pub(crate) fn accept(&self) -> Held {
        let (stream, _) = self.listener.accept().expect("a task comes");
        Held::new(stream)
    }

    /// A task that stands at the gate now, if there is one.
    pub(crate) fn poll(&self) -> Option<Held> {
        self.listener.set_nonblocking(true).expect("a socket");
        let next = self.listener.accept();
        self.listener.set_nonblocking(false).expect("a socket");
        match next {
            // On Linux what is accepted does not inherit the mode of the listener.
            Ok((stream, _)) => Some(Held::new(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("the gate is broken: {error}"),
        }
    }

    /// How many tasks have come since, those included who died at the gate.
    pub(crate) fn count_callers(&self) -> usize {
        self.listener.set_nonblocking(true).expect("a socket");
        self.listener.incoming().map_while(Result::ok).count()
    }

    /// Lets this many tasks through, whichever come.
    pub(crate) fn let_through(&self, tasks: usize) {
        for _ in 0..tasks {
            self.accept().release();
        }
    }
}

/// A task at the gate. It fails if it is dropped instead of being let through.
#[derive(Debug)]
pub(crate) struct Held {
    stream: UnixStream,
    pub(crate) id: u64,
    pub(crate) pid: u32,
}

impl Held {
    fn new(mut stream: UnixStream) -> Held {
        let mut id = [0; 8];
        stream
            .read_exact(&mut id)
            .expect("the task says its number");
        let mut pid = [0; 4];
        stream.read_exact(&mut pid).expect("the task says its pid");
        Held {
            stream,
            id: u64::from_ne_bytes(id),
            pid: u32::from_ne_bytes(pid),
        }
    }

    /// Waits until the process that stands there ends.
    pub(crate) fn wait_until_gone(mut self) {
        let read = self.stream.read(&mut [0]);
        assert!(!matches!(read, Ok(1..)), "{read:?}");
    }

    pub(crate) fn release(mut self) {
        self.stream.write_all(&[1]).expect("the task waits");
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
    let mut stream = UnixStream::connect(gate).expect("the gate is there");
    let mut hello = id.to_ne_bytes().to_vec();
    hello.extend(process::id().to_ne_bytes());
    stream.write_all(&hello).expect("the gate listens");
    stream.read_exact(&mut [0]).expect("the gate opens");
}

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a pid");
    assert!(pid > 1, "a single process");
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid, signal) };
}
