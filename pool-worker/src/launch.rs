//! The parent's end: start a worker, talk to it, learn of its death.
//!
//! A worker has two handles. [`Worker`] is shared: any thread sends through it, takes work back,
//! sends signals. [`Mailbox`] belongs to one thread, which waits in [`Mailbox::receive`] for all
//! that the worker says, and for its end. A third thread waits in [`Watch`](crate::Watch) for the
//! death of any worker.
//!
//! # Start
//!
//! The parent opens a [`bootstrap`] server, then starts its own binary with a token in the environment
//! and a way to the server as standard input. The worker connects and says hello: the token, the
//! protocol's version, a fingerprint of its tasks, its channels and its ledger. `accept` has no time
//! limit, so whoever finds that the worker died or takes too long kills it, and connects in its place
//! to say that nobody will come.
//!
//! # End
//!
//! Death is seen through the pidfd. End-of-file on a channel says nothing: a grandchild may hold it
//! open. [`Worker::bury`] kills what is left of the worker's process group, reads the exit status,
//! and puts an end mark into the worker's own channel, behind all that the worker has sent. So the
//! mailbox reads what is there, then the mark, then the ledger's leftovers, then tells of the death.

mod mailbox;

use std::env;
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipc_channel::ipc::IpcBytesSender;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde_bytes::Bytes;

use crate::bootstrap::{self, Door};
use crate::codec::{self, Reader};
use crate::entry::{self, Call, VARIABLE};
use crate::exit::Exit;
use crate::ledger::{Ledger, Progress};
use crate::link::channel::{self, Outbox};
use crate::protocol::{Fault, Message, OwnedRecord, Request, Run};

pub use mailbox::Mailbox;

/// What a worker runs before its first task: a task's id and its encoded arguments.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The id of the task.
    pub task: &'static str,
    /// Its encoded arguments.
    pub args: Vec<u8>,
}

/// What became of one input: the encoded result, or why there is none.
pub type Outcome = Result<Vec<u8>, Box<Fault>>;

/// What a worker's mailbox yields.
#[derive(Debug)]
pub enum Event {
    /// The initializer is through: the worker takes tasks.
    Ready,
    /// The initializer failed. The worker exits by itself.
    Failed(Fault),
    /// The next inputs of those that were given, in the order in which they were, are done: see
    /// [`Worker::accept`].
    Outcomes(Report),
    /// The worker said something that no worker of ours says. It should be killed.
    Garbled(String),
    /// The worker is dead; nothing comes after this.
    Died(Exit),
}

/// Outcomes as they came, some of which may have been read before they came.
#[derive(Debug)]
pub struct Report {
    /// The number of the message; `None` if it was read from the journal.
    epoch: Option<u32>,
    outcomes: Vec<Outcome>,
    /// How long the worker was busy with them.
    busy: Duration,
}

/// A worker process, as all threads of the parent share it.
#[derive(Debug, Clone)]
pub struct Worker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    index: usize,
    pid: u32,
    group: Pid,
    pidfd: OwnedFd,
    child: Mutex<Child>,
    state: Mutex<State>,
    exited: Condvar,
}

#[derive(Debug)]
struct State {
    /// How often the mailbox was nudged.
    nudges: u32,
    /// Until the worker has come through it.
    door: Option<Door>,
    link: Option<Arc<Link>>,
    exit: Option<Exit>,
}

/// What the parent holds of a worker that has said hello.
struct Link {
    outbox: Outbox,
    end: IpcBytesSender,
    ledger: Ledger,
    seen: Mutex<Seen>,
}

/// How far the parent has read what the worker has finished.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// The number of the next message with outcomes to be accepted.
    epoch: u32,
    /// How many of its records were read from the journal already.
    records: usize,
}

impl Link {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The records in the journal that were not read yet.
    fn peek(&self) -> Vec<Outcome> {
        let mut seen = self.seen();
        let mut outcomes = read_records(Reader::new(&self.ledger.peek(seen.epoch)));
        outcomes.drain(..seen.records.min(outcomes.len()));
        seen.records += outcomes.len();
        outcomes
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

/// Says why this process must not start workers, if that is so.
///
/// # Errors
///
/// If it was itself called as a worker and has not become one, or if it runs setuid.
pub fn may_launch() -> io::Result<()> {
    if entry::secure() {
        return Err(io::Error::other(
            "this program runs setuid or setgid, and workers are refused to such a program",
        ));
    }
    if entry::missed() {
        return Err(io::Error::other(
            "this process was started as a worker but runs `main`: the entry of pool-worker was \
             not linked into the program, did not run, or could not read its call",
        ));
    }
    Ok(())
}

/// Starts a worker. It is ready when its mailbox says so.
///
/// The worker is killed when the calling *thread* ends: call this from one that lives long enough.
///
/// # Errors
///
/// If the process can't be started, or the bootstrap server can't be made.
pub fn launch(index: usize, setup: Option<Setup>) -> io::Result<(Worker, Mailbox)> {
    may_launch()?;
    let (server, door) = bootstrap::open()?;
    let call = Call {
        parent: process::id(),
        index,
        token: token()?,
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that starts processes"
    )]
    let mut child = Command::new("/proc/self/exe")
        .arg0(title(index))
        .env(VARIABLE, call.to_variable())
        .stdin(door.to_stdin()?)
        .process_group(0)
        .spawn()?;
    let pid = child.id();
    let opened = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("a process without a pid"))
        .and_then(|group| Ok((group, pidfd_open(group, PidfdFlags::empty())?)));
    let (group, pidfd) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            // Without a pidfd nobody would see it die.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let worker = Worker(Arc::new(Shared {
        index,
        pid,
        group,
        pidfd,
        child: Mutex::new(child),
        state: Mutex::new(State {
            nudges: 0,
            door: Some(door),
            link: None,
            exit: None,
        }),
        exited: Condvar::new(),
    }));
    let mailbox = Mailbox::new(worker.clone(), server, call.token, setup);
    Ok((worker, mailbox))
}

/// What `ps` shows: "pool-worker 3 of wordcount".
fn title(index: usize) -> String {
    let program = env::args_os().next().unwrap_or_default();
    let program = std::path::Path::new(&program)
        .file_name()
        .unwrap_or_default()
        .display();
    format!("pool-worker {index} of {program}")
}

/// What only the worker that we start can know.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

impl Worker {
    /// Which worker of the pool it is.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Gives it inputs of one task, to be run in order. `generation` is that of the last
    /// [`recall`](Worker::recall), 0 before the first. Never blocks.
    pub fn run<'a>(&self, task: &str, generation: u32, inputs: impl Iterator<Item = &'a [u8]>) {
        let inputs = inputs.map(Bytes::new).collect();
        self.request(&Request::Run(Run {
            task,
            generation,
            inputs,
        }));
    }

    /// Asks it to exit once it has done what it was given. Never blocks.
    pub fn ask_to_exit(&self) {
        self.request(&Request::Exit);
    }

    /// Takes back every input that it has not begun. Gives the generation for what is sent from now
    /// on, and how many inputs it has begun since it started, wrapping around.
    pub fn recall(&self) -> (u32, u32) {
        self.link().map_or((0, 0), |link| link.ledger.recall())
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.link().map_or(
            Progress {
                begun: 0,
                begun_at_ns: 0,
            },
            |link| link.ledger.progress(),
        )
    }

    /// Whether it has sent outcomes that its mailbox has not understood yet; and how many messages it
    /// has understood. If that stays so, the channel is broken.
    pub fn unheard(&self) -> Option<u32> {
        let link = self.link()?;
        let heard = link.seen().epoch;
        (link.ledger.epoch() != heard).then_some(heard)
    }

    /// The outcomes of a report that were not [`peek`](Worker::peek)ed at before, and how long the
    /// worker was busy with them. To be called for one report after the other, and under a lock that
    /// is also held for `peek`: only so does each outcome come once, and in its turn.
    pub fn accept(&self, report: Report) -> (Vec<Outcome>, Duration) {
        let Report {
            epoch,
            mut outcomes,
            busy,
        } = report;
        let (Some(epoch), Some(link)) = (epoch, self.link()) else {
            return (outcomes, busy);
        };
        let mut seen = link.seen();
        let count = outcomes.len();
        outcomes.drain(..seen.records.min(count));
        *seen = Seen {
            epoch: epoch.wrapping_add(1),
            records: 0,
        };
        let share = outcomes.len() as f64 / count.max(1) as f64;
        (outcomes, busy.mul_f64(share))
    }

    /// The outcomes that it has finished and not sent yet; see [`accept`](Worker::accept). While a
    /// report waits to be accepted there are none.
    pub fn peek(&self) -> Vec<Outcome> {
        self.link().map_or_else(Vec::new, |link| link.peek())
    }

    /// For a worker that is dead, and whose mailbox has not said so after a while: frees it, after a
    /// few calls, from a channel that is broken.
    pub fn nudge(&self) {
        let mut state = self.state();
        if state.exit.is_none() || state.nudges >= channel::NUDGES {
            return;
        }
        state.nudges += 1;
        let link = state.link.clone();
        drop(state);
        if let Some(link) = link {
            channel::nudge(&link.end);
        }
    }

    /// Whether it is dead, and its status read.
    pub fn is_dead(&self) -> bool {
        self.state().exit.is_some()
    }

    /// Kills it and reads its status at once: for a worker that nobody will watch.
    pub fn discard(&self) {
        // Nobody waits behind the door.
        self.state().door = None;
        self.kill();
        self.bury();
    }

    /// Sends SIGTERM to its process group.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL to its process group.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let state = self.state();
        // After the burial the number may belong to others.
        if state.exit.is_none() {
            let _ = kill_process_group(self.0.group, signal);
            // A task may have left the group.
            let _ = pidfd_send_signal(&self.0.pidfd, signal);
        }
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.0.pidfd.as_fd()
    }

    /// Call when the pidfd says that it is dead; a second time does nothing.
    pub(crate) fn bury(&self) {
        let mut state = self.state();
        if state.exit.is_some() {
            return;
        }
        // Until its status is read the number of the group stays its own.
        let _ = kill_process_group(self.0.group, Signal::KILL);
        let status = self
            .0
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .wait();
        state.exit = Some(status.map_or(Exit::Unknown, Exit::from));
        self.0.exited.notify_all();
        let link = state.link.clone();
        let door = state.door.take();
        // Marking the end waits for room in the channel, and whoever reads it may want the lock.
        drop(state);
        match link {
            Some(link) => channel::mark_end(&link.end),
            // Its mailbox may wait for a connection that nobody else will make.
            None => {
                if let Some(door) = door {
                    door.give_up();
                }
            }
        }
    }

    fn request(&self, request: &Request<'_>) {
        let mut message: Message = vec![0];
        // Bytes and strings into a vector: does not fail.
        if codec::encode(request, &mut message).is_ok()
            && let Some(link) = self.link()
            && link.outbox.send(message).is_err()
        {
            // It is dead already, or will never get what it must have.
            self.kill();
        }
    }

    fn link(&self) -> Option<Arc<Link>> {
        self.state().link.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_exit(&self) -> Exit {
        let mut state = self.state();
        loop {
            if let Some(exit) = state.exit {
                return exit;
            }
            state = self
                .0
                .exited
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Reads records up to the end, or up to the first that is none: what was not reported counts as
/// not done.
fn read_records(mut reader: Reader<'_>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    while let Ok(record) = reader.take_owned() {
        outcomes.push(match record {
            OwnedRecord::Done(bytes) => Ok(bytes.into_vec()),
            OwnedRecord::Fault(fault) => Err(Box::new(fault)),
        });
    }
    outcomes
}
