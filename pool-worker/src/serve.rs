//! The worker's end: from the first instruction to the exit.
//!
//! Everything happens on the main thread, one request after the other. Nothing is printed: what
//! goes wrong is told to the parent, or seen by it as the end of this process.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::process;
use std::ptr;
use std::sync::{Arc, OnceLock};

use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use serde_bytes::Bytes;

use crate::bootstrap;
use crate::clock;
use crate::codec::{self, Reader};
use crate::entry::Call;
use crate::ledger::Ledger;
use crate::link::channel;
use crate::protocol::{
    self, Assembly, Fault, Greeting, Hello, Initializer, Piece, Record, Reply, Request, Run,
};
use crate::registry::{self, Found, Registration, RunError};
use crate::unwind;

/// Results wait for others in the journal at most this long while tasks are short.
const FLUSH_AFTER_NS: u64 = 500_000;

/// A buffer larger than this is given back after use.
const KEEP: usize = 1 << 20;

static INDEX: OnceLock<usize> = OnceLock::new();

/// Which worker of its pool this process is; `None` if it is no worker.
pub fn index() -> Option<usize> {
    INDEX.get().copied()
}

/// The exit code of a worker that found no parent to work for.
const NO_PARENT: i32 = 113;

pub(crate) fn serve(call: Call) {
    let _ = INDEX.set(call.index);
    close_inherited();
    open_standard_streams();
    set_signals();
    let _ = rustix::thread::set_name(
        &CString::new(format!("pool-worker-{}", call.index)).unwrap_or_default(),
    );
    match connect(&call) {
        Ok(mut worker) => worker.run(),
        Err(_) => process::exit(NO_PARENT),
    }
}

/// The parent's descriptors are its own business; workers get 0, 1 and 2.
fn close_inherited() {
    // SAFETY: we are before `main`, so what is open beyond 2 was inherited, or opened by constructors
    // that ran before ours; those must not count on descriptors in a worker. Nothing of Rust's has
    // opened one.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    if closed == 0 {
        return;
    }
    // A kernel before 5.9, or a filter that does not know the call.
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: as above; closing the directory's own, closed by now, does no harm.
        unsafe { libc::close(fd) };
    }
}

/// What the parent has closed of 0, 1 and 2 must not become the number of a channel or of a file,
/// because tasks print. `std` does this before `main`, but we are earlier.
fn open_standard_streams() {
    // Descriptors are numbered from below. These are for this process's children as well.
    while let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            return;
        }
        let _ = null.into_raw_fd();
    }
}

/// `std` ignores SIGPIPE before `main`, but we are earlier: a parent that is gone must not kill us in
/// the middle of a write. And what the parent's thread had blocked is blocked here too, until it is
/// not: a worker that is deaf to SIGTERM would make every `terminate` wait.
fn set_signals() {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initializes the set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set is initialized; nobody asks for the old one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

fn connect(call: &Call) -> io::Result<Worker> {
    // The signal tells of the parent's death from now on, the comparison of any death before.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    if parent != Some(call.parent) {
        return Err(io::Error::other("the parent is gone"));
    }
    let bootstrap = bootstrap::connect_through_stdin()?;

    let (requests, from_parent) = channel::pair()?;
    let (to_parent, replies) = channel::pair()?;
    let memory = Ledger::memory();
    let ledger = Ledger::new(memory.clone()).ok_or(io::ErrorKind::OutOfMemory)?;
    let hello = Hello {
        token: call.token.clone(),
        version: protocol::VERSION,
        fingerprint: registry::fingerprint(),
        requests,
        replies,
        end: to_parent.clone(),
        ledger: memory,
    };
    bootstrap
        .send(Greeting::Hello(hello))
        .map_err(io::Error::other)?;
    Ok(Worker {
        from_parent,
        assembly: Assembly::default(),
        out: Out {
            to_parent,
            ledger: Arc::new(ledger),
            taken: 0,
            told: 0,
            epoch: 0,
            records: Vec::new(),
            busy_ns: 0,
            last_flush_ns: clock::now_ns(),
        },
    })
}

struct Worker {
    from_parent: IpcBytesReceiver,
    assembly: Assembly,
    out: Out,
}

impl Worker {
    /// Serves until the parent says so, or is gone.
    fn run(&mut self) {
        let ledger = Arc::clone(&self.out.ledger);
        unwind::install(move |panic| {
            let mut record = Vec::new();
            if codec::encode(&Record::Fault(Fault::Panicked(panic)), &mut record).is_ok() {
                ledger.append(&record);
            }
        });
        while let Some(message) = self.next_message() {
            // The parent is trusted: it is the same program, and it started us.
            let Ok(request) = Reader::new(&message).take() else {
                return;
            };
            match request {
                Request::Setup(initializer) => {
                    let result = initializer.map_or(Ok(()), |task| initialize(&task));
                    let (reply, go_on) = match result {
                        Ok(()) => (Reply::Ready, true),
                        Err(fault) => (Reply::Failed(fault), false),
                    };
                    self.out.reply(&reply);
                    if !go_on {
                        return;
                    }
                }
                Request::Run(run) => self.out.run(&run),
                Request::Exit => return,
            }
        }
    }

    fn next_message(&mut self) -> Option<Vec<u8>> {
        loop {
            let frame = channel::receive(&self.from_parent).ok()?;
            self.out.taken = self.out.taken.wrapping_add(1);
            match self.assembly.add(&frame) {
                Piece::Whole(message) => return Some(message),
                // The parent may be waiting for room to send the rest.
                Piece::Part => self.out.reply(&Reply::Taken),
                Piece::End | Piece::Bad => return None,
            }
        }
    }
}

fn initialize(initializer: &Initializer<'_>) -> Result<(), Fault> {
    let mut ignored = Vec::new();
    call(find(initializer.task)?, initializer.args, &mut ignored)
}

fn find(id: &str) -> Result<&'static Registration, Fault> {
    match registry::find(id) {
        Found::Task(task) => Ok(task),
        Found::Nothing => Err(Fault::Unknown(format!("no task `{id}` in this program"))),
        Found::Several => Err(Fault::Unknown(format!(
            "several tasks `{id}`: tell them apart with `#[pool_task(name = \"…\")]`"
        ))),
    }
}

/// Runs a task and appends its encoded result to `out`.
fn call(task: &Registration, args: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    match unwind::catch(|| task.run(args, out)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(RunError::Decode(error))) => Err(Fault::Decode(error.to_string())),
        Ok(Err(RunError::Encode(error))) => Err(Fault::Encode(error.to_string())),
        Err(panic) => Err(Fault::Panicked(panic)),
    }
}

/// Who has a result should see what its task printed, with or without a line end.
fn flush_stdout() {
    let _ = io::stdout().flush();
}

/// The way back to the parent: records wait here, mirrored in the journal, until they are sent.
struct Out {
    to_parent: IpcBytesSender,
    ledger: Arc<Ledger>,
    /// How many frames were taken.
    taken: u32,
    /// How many of them the parent knows of.
    told: u32,
    epoch: u32,
    records: Vec<u8>,
    busy_ns: u64,
    last_flush_ns: u64,
}

impl Out {
    fn run(&mut self, run: &Run<'_>) {
        let mut result = Vec::new();
        let mut record = Vec::new();
        let last = run.inputs.len().saturating_sub(1);
        let task = find(run.task);
        let mut now = clock::now_ns();
        for (at, args) in run.inputs.iter().enumerate() {
            if !self.ledger.begin(run.generation, now) {
                break;
            }
            result.clear();
            let outcome = match &task {
                Ok(task) => call(task, args, &mut result),
                Err(unknown) => Err(unknown.clone()),
            };
            let done = clock::now_ns();
            self.busy_ns += done.saturating_sub(now);
            now = done;

            record.clear();
            let value = match outcome {
                Ok(()) => Record::Done(Bytes::new(&result)),
                Err(fault) => Record::Fault(fault),
            };
            // Encoding bytes and strings into a vector does not fail.
            let _ = codec::encode(&value, &mut record);
            self.put(&record, at == last, now);
            result.shrink_to(KEEP);
            record.shrink_to(KEEP);
        }
        self.flush(now);
        // Inputs that were taken back have no outcomes. The parent must learn of the room that they
        // leave in the socket, or it would wait for ever.
        if self.told != self.taken {
            self.reply(&Reply::Taken);
        }
    }

    /// Adds a record; sends all if it is the last one, if it is time, or if no more will fit.
    fn put(&mut self, record: &[u8], last: bool, now_ns: u64) {
        let soon = last || now_ns.saturating_sub(self.last_flush_ns) >= FLUSH_AFTER_NS;
        // A record that is sent at once needs no copy.
        if !soon && self.ledger.append(record) {
            self.records.extend_from_slice(record);
            return;
        }
        if record.len() + self.records.len() > protocol::FRAME_MAX / 2 {
            // What was finished before must not be lost should we die while a long message is
            // still on its way.
            self.flush(now_ns);
        }
        self.records.extend_from_slice(record);
        self.flush(now_ns);
    }

    fn flush(&mut self, now_ns: u64) {
        self.last_flush_ns = now_ns;
        if self.records.is_empty() {
            return;
        }
        let reply = Reply::Outcomes {
            epoch: self.epoch,
            busy_ns: std::mem::take(&mut self.busy_ns),
        };
        let records = std::mem::take(&mut self.records);
        if self.send(&reply, &records).is_err() {
            // The parent is gone, or a task has closed our descriptors. In the latter case the
            // parent still finds in the journal what could not be sent.
            self.ledger.clear(self.epoch);
            self.ledger.append(&records);
            process::exit(NO_PARENT);
        }
        self.records = records;
        self.records.clear();
        self.records.shrink_to(KEEP);
        self.epoch = self.epoch.wrapping_add(1);
        self.ledger.clear(self.epoch);
    }

    fn reply(&mut self, reply: &Reply) {
        if self.send(reply, &[]).is_err() {
            process::exit(NO_PARENT);
        }
    }

    fn send(&mut self, reply: &Reply, records: &[u8]) -> io::Result<()> {
        flush_stdout();
        let mut message = Vec::with_capacity(32 + records.len());
        message.push(0);
        self.told = self.taken;
        message.extend_from_slice(&self.taken.to_le_bytes());
        // Numbers and strings into a vector: does not fail.
        let _ = codec::encode(reply, &mut message);
        message.extend_from_slice(records);
        protocol::each_frame(message, |frame| channel::send(&self.to_parent, &frame))
    }
}
