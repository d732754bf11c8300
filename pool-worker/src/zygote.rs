//! The zygote, from both ends: a process that runs one task, and then forks the workers, which share what it has loaded.
//!
//! It is this program, started again as a worker is. Nothing but that task runs in it, and it has only one thread, so a fork
//! of it is a complete copy.
//!
//! # The conversation
//!
//! Its standard input is a socket, as a worker's is. The parent first says what to run ([`Errand`]), and then asks for one
//! worker at a time: the socket that becomes the worker's own standard input comes with a [`Request`], and already holds what
//! the worker needs. The zygote answers each message with one packet: [`DONE`], [`NO`] or [`FAULT`].
//!
//! # Whose child a worker is
//!
//! The parent's, like any other: CLONE_PARENT makes the worker a sibling of the zygote. So the parent sees its death and its
//! exit status as those of other workers, it ends with the parent, and it does not depend on the zygote once it runs.
//!
//! A zygote may be killed at any moment, and the parent must still learn of each worker that it has forked. So the kernel
//! itself writes the worker's pid into memory that zygote and parent share, before the worker runs and before the zygote does
//! anything else (CLONE_PARENT_SETTID). At most one worker can be unknown to the parent when a zygote dies, and its pid is
//! there.
//!
//! # What a fork without the C library leaves undone
//!
//! Only the system call can make a sibling, so glibc's `fork` is not used. That would have stored the new thread's id where
//! glibc keeps it, which the kernel does here; registered the list of robust mutexes again, which is done here, too; and
//! called the handlers of `pthread_atfork`, which are not called here. (There is only one thread, so no other can hold a
//! lock.)

use std::fmt;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};
use rustix::process::setsid;
use serde::{Deserialize, Serialize};

use crate::capture::Capture;
use crate::codec::{Input, Rest};
use crate::entry::Call;
use crate::fault::Fault;
use crate::flush::flush_stdout;
use crate::greeting::{self, Voice};
use crate::launch::{self, Introduced, Launcher, Starting, Worker};
use crate::lineage::lineage;
use crate::memory::{Constant, Memory};
use crate::process::Process;
use crate::scarce::{no, no_process};
use crate::serve::{
    NO_PARENT, call_for_effect, end_if_copy_of, end_with, open_standard_streams, set_signals,
};
use crate::unwind;

/// What a zygote is told first. With it come the memory for the pid of a forked worker, and that of the arguments, if there
/// are any.
#[derive(Debug, Serialize, Deserialize)]
struct Errand {
    title: String,
    task: u32,
    len: usize,
    /// Whether its workers will be sandboxed.
    sandboxed: bool,
}

/// What it is told for each worker.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    title: String,
    /// The value of the environment variable that a worker would have if it were started.
    call: String,
}

/// The first byte of an answer. `DONE`: it is done. `NO`: it can't be done; the reason follows. `FAULT`: the task has failed;
/// the fault follows.
const DONE: u8 = 1;
const NO: u8 = 2;
const FAULT: u8 = 3;

/// No packet of either side is longer.
const PACKET_MAX: usize = 16 << 10;

/// How long to wait for threads to disappear: one that the task has joined stays in the kernel's list for another moment.
const THREADS_MAX: Duration = Duration::from_millis(500);
const THREADS_TICK: Duration = Duration::from_millis(1);

/// An error names this many of the threads that were left behind, and the last one.
const NAMES_MAX: usize = 4;

// ---- the parent's side ----------------------------------------------------------------------------

/// What a zygote runs before it forks workers.
pub struct Preload {
    task: u32,
    args: Vec<u8>,
}

impl fmt::Debug for Preload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preload").finish_non_exhaustive()
    }
}

impl Preload {
    /// A task's number, and its encoded arguments.
    pub fn new(task: u32, args: Vec<u8>) -> Preload {
        Preload { task, args }
    }
}

/// A zygote. Nothing here waits for it.
#[derive(Debug)]
pub struct Zygote {
    process: Process,
    socket: OwnedFd,
    /// Where the pid of the worker stands that it has forked last.
    birth: Memory,
    stage: Stage,
    capture: Option<Capture>,
}

#[derive(Debug)]
enum Stage {
    /// The task runs.
    Loading,
    Idle,
    /// It was asked for a worker.
    Forking(Box<Introduced>),
}

/// What a zygote has said.
#[derive(Debug)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// Nothing, and it will not say anything more. It should be killed, if it is not dead.
    Gone,
    /// The task has finished; it can be asked for workers.
    Loaded,
    /// The task has failed. It should be killed.
    Failed(Fault),
    /// It can't fork workers, for this reason; or it said something that no zygote of ours would say. It should be killed.
    Unfit(String),
    /// The worker that it was asked for, or why there is none. It can be asked for another.
    Forked(Box<io::Result<(Worker, Starting)>>),
}

impl Zygote {
    /// Starts one. It can be asked for workers when it is [`Loaded`](Heard::Loaded). It is killed when the calling *thread*
    /// ends, and so are its workers.
    ///
    /// # Errors
    ///
    /// If the process can't be started, or the connection to it can't be made.
    pub fn start(launcher: &Launcher, preload: &Preload) -> io::Result<Zygote> {
        let (socket, stdin) = greeting::socket()?;
        let (birth, number) = Memory::create("pool-birth", size_of::<AtomicU32>())
            .map_err(no("memory for the number of a worker"))?;
        let Preload { task, args } = preload;
        let given = (!args.is_empty()).then(|| Constant::create("pool-arguments", &[args]));
        let given = given
            .transpose()
            .map_err(no("shared memory for the arguments of the preload task"))?;
        let errand = Errand {
            title: launch::zygote_title(),
            task: *task,
            len: args.len(),
            sandboxed: launcher.is_sandboxed(),
        };
        let fds: Vec<_> = [Some(&number), given.as_ref()]
            .into_iter()
            .flatten()
            .map(AsFd::as_fd)
            .collect();
        hand_over(&socket, &errand, &fds).map_err(no("connection to send what to preload"))?;
        let (mut child, capture) = launcher.spawn_zygote(stdin)?;
        let process = Process::open(child.id(), "a zygote").inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Zygote {
            process,
            socket,
            birth,
            stage: Stage::Loading,
            capture,
        })
    }

    /// The output of its task, if output is captured.
    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.capture.as_mut()
    }

    /// Readable when it has said something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether its task still runs.
    pub fn is_loading(&self) -> bool {
        matches!(self.stage, Stage::Loading)
    }

    /// Whether it can be asked for a worker.
    pub fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Idle)
    }

    /// Asks an idle one for a worker.
    ///
    /// # Errors
    ///
    /// If the connection to the worker can't be made.
    pub fn ask(&mut self, launcher: &Launcher, index: usize) -> io::Result<()> {
        let line = greeting::line()?;
        let (socket, stdin) = greeting::socket()?;
        let call = launcher.call(index)?;
        let request = Request {
            title: launch::title(index),
            call: call.to_variable(),
        };
        let introduced = launcher.introduce(socket, line, call.token)?;
        self.number().store(0, Ordering::Relaxed);
        match hand_over(&self.socket, &request, &[stdin.as_fd()]) {
            Ok(()) => {}
            // It is gone, which the caller will notice by its pidfd.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(no("connection to ask for a worker")(error)),
        }
        self.stage = Stage::Forking(Box::new(introduced));
        Ok(())
    }

    /// Receives what it has said, if anything. Does not wait.
    pub fn hear(&mut self, launcher: &Launcher) -> Heard {
        let mut packet = vec![0; PACKET_MAX];
        let len = match greeting::next_packet(&self.socket, &mut packet) {
            Ok(None) => return Heard::Nothing,
            Ok(Some(0)) => return Heard::Gone,
            Ok(Some(len)) => len,
            Err(error) => return Heard::Unfit(no("message from it")(error).to_string()),
        };
        let more = &packet[1..len];
        let text = || String::from_utf8_lossy(more).into_owned();
        let nonsense = || Heard::Unfit("it sent an unexpected answer".to_owned());
        match (packet[0], &self.stage) {
            (DONE, Stage::Loading) => {
                self.stage = Stage::Idle;
                Heard::Loaded
            }
            (NO, Stage::Loading | Stage::Idle) => Heard::Unfit(text()),
            (FAULT, Stage::Loading) => Fault::from_bytes(more).map_or_else(nonsense, Heard::Failed),
            (DONE, Stage::Forking(_)) => {
                let inherited = self.inherit(launcher).map(Box::new);
                inherited.map_or_else(nonsense, Heard::Forked)
            }
            (NO, Stage::Forking(_)) => {
                self.stage = Stage::Idle;
                Heard::Forked(Box::new(Err(io::Error::other(text()))))
            }
            _ => nonsense(),
        }
    }

    /// Takes over the worker that it was asked for, if there is one. To be called when the zygote has answered, or is dead.
    pub fn inherit(&mut self, launcher: &Launcher) -> Option<io::Result<(Worker, Starting)>> {
        let Stage::Forking(introduced) = mem::replace(&mut self.stage, Stage::Idle) else {
            return None;
        };
        match self.number().swap(0, Ordering::Relaxed) {
            0 => None,
            pid => {
                let process = Process::adopt(pid, "a worker");
                Some(process.map(|process| launcher.attend(process, *introduced)))
            }
        }
    }

    fn number(&self) -> &AtomicU32 {
        // SAFETY: the mapping is aligned to a page, has room for the number, and lives as long as `self`; every other access
        // is atomic, or the kernel's.
        unsafe { AtomicU32::from_ptr(self.birth.base().cast()) }
    }

    /// The process. Killing it affects no worker, except one that is just being forked.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The same, to be reaped.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process, which still must be reaped.
    pub fn into_process(self) -> Process {
        self.process
    }
}

fn hand_over(socket: &OwnedFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(fds));
    let how = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(socket, &[IoSlice::new(&text)], &mut ancillary, how) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

// ---- the zygote's side ----------------------------------------------------------------------------

/// Runs the zygote. Returns only in the workers that it forks, with the [`Call`] of that worker.
pub(crate) fn serve(zygote: &Call) -> Call {
    open_standard_streams();
    set_signals();
    let _ = setsid();
    let _ = rustix::thread::set_name(c"pool-zygote");
    let voice = match greeting::take_socket() {
        Ok(voice) => Arc::new(voice),
        Err(error) => {
            let _ = say(rustix::stdio::stdin(), NO, error.to_string().as_bytes());
            process::exit(NO_PARENT);
        }
    };
    let title = Title::find();
    let birth = match load(zygote, &voice, &title) {
        Ok(birth) => birth,
        Err(refusal) => {
            let _ = match refusal {
                Refusal::Fault(fault) => {
                    say(&*voice, FAULT, &fault.to_bytes_within(PACKET_MAX - 1))
                }
                Refusal::Other(error) => say(&*voice, NO, error.to_string().as_bytes()),
            };
            // SAFETY: ends the process without running the exit handlers that the task has registered, which are meant for
            // workers.
            unsafe { libc::_exit(NO_PARENT) };
        }
    };
    let refuse = |error: io::Error| say(&*voice, NO, error.to_string().as_bytes());
    let mut said = say(&*voice, DONE, &[])
        .map_err(no("connection to report that it is loaded"))
        .or_else(|error| refuse(error).and(Err(io::ErrorKind::Other.into())));
    while said.is_ok() {
        let (request, mut fds) = match receive::<Request>(&voice) {
            Ok(received) => received,
            Err(error) => {
                // If the parent has ended, this fails, too.
                let _ = refuse(no("request for a worker")(error));
                break;
            }
        };
        let Some(stdin) = fds.pop() else {
            said = refuse(no("descriptor for a worker")(Errno::MFILE.into()));
            continue;
        };
        let Some(call) = Call::from_variable(&request.call) else {
            break;
        };
        said = match fork(&birth) {
            Ok(false) => say(&*voice, DONE, &[]),
            Ok(true) => {
                // From now on the worker no longer dies with the process group of the zygote.
                let _ = setsid();
                // This mapping does not exist in the worker.
                mem::forget(birth);
                title.set(&request.title);
                if let Err(error) = rustix::stdio::dup2_stdin(&stdin) {
                    let error = no("standard input for a worker")(error.into());
                    greeting::say_unfit(&error, &stdin);
                    // SAFETY: as above.
                    unsafe { libc::_exit(NO_PARENT) };
                }
                return call;
            }
            Err(error) => refuse(no_process("process for a worker")(error)),
        };
    }
    // The parent is gone, or wants no more workers, or can't be told something: it will notice that this process is gone.
    // SAFETY: as above.
    unsafe { libc::_exit(NO_PARENT) };
}

enum Refusal {
    Fault(Fault),
    Other(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Other(error)
    }
}

/// Runs the preload task. Returns the memory for the pid of a forked worker.
fn load(zygote: &Call, voice: &Arc<Voice>, title: &Title) -> Result<Memory, Refusal> {
    let is_with_parent = || match end_with(zygote.parent) {
        Ok(true) => Ok(()),
        Ok(false) => Err(io::Error::other("the parent is gone")),
        Err(error) => Err(no("signal on the death of its parent")(error)),
    };
    is_with_parent()?;
    let errand = receive::<Errand>(voice);
    let (errand, fds) = errand.map_err(no("message about what to preload"))?;
    let Errand {
        title: own,
        task,
        len,
        sandboxed,
    } = errand;
    title.set(&own);
    let mut fds = fds.into_iter();
    let number = fds.next().ok_or_else(unreadable)?;
    let birth = Memory::open(&number, size_of::<AtomicU32>())
        .map_err(no("memory for the number of a worker"))?;
    drop(number);
    // SAFETY: the mapping is ours; forked workers do not use it.
    let apart = unsafe {
        madvise(
            birth.base().cast(),
            size_of::<AtomicU32>(),
            Advice::LinuxDontFork,
        )
    };
    apart.map_err(|error| no("memory that workers don't share")(error.into()))?;
    let args = fds.next().map(|fd| Constant::open(&fd, len)).transpose();
    let args = args.map_err(no("memory for the arguments of the preload task"))?;
    // Where a panic aborts the process, nothing runs after the hook, so the hook itself reports the panic.
    let listener = cfg!(panic = "abort").then(|| Arc::downgrade(voice));
    unwind::install(move |panic| {
        if let Some(voice) = listener.as_ref().and_then(|voice| voice.upgrade()) {
            let fault = Fault::Panicked(panic).to_bytes_within(PACKET_MAX - 1);
            let _ = say(&*voice, FAULT, &fault);
        }
    });
    let this = lineage();
    let bytes = args.as_ref().map_or(&[][..], Constant::bytes);
    let input = Input::new(Rest::Shared(bytes), None);
    let result = call_for_effect(task, input);
    end_if_copy_of(this);
    drop(args);
    result.map_err(Refusal::Fault)?;
    if !voice.is_intact() {
        // The task has closed the socket, so nothing can be sent or received. SAFETY: ends the process without running exit
        // handlers of the task's.
        unsafe { libc::_exit(NO_PARENT) };
    }
    if sandboxed {
        // Each worker would have to do it for itself.
        unwind::load_symbols();
    }
    be_alone()?;
    // The task may have closed standard streams: no descriptor that the parent hands over must get the number of one.
    open_standard_streams();
    // What is still in buffers must be printed only once, and not by each worker.
    flush_stdout();
    // SAFETY: null stands for all streams, and there is no other thread.
    unsafe { libc::fflush(ptr::null_mut()) };
    // When the task changes the user of the process, the kernel clears the parent-death signal.
    is_with_parent()?;
    Ok(birth)
}

fn unreadable() -> io::Error {
    io::Error::other("the parent's instructions can't be read")
}

/// Checks that this is the only thread.
///
/// # Errors
///
/// If there are others, which a fork of the process would lack.
fn be_alone() -> io::Result<()> {
    let others = threads_left().map_err(no("list of its threads"))?;
    let count = others.len();
    if count == 0 {
        return Ok(());
    }
    let threads = if count == 1 { "thread" } else { "threads" };
    let mut names = others[..count.min(NAMES_MAX)].join("`, `");
    if count > NAMES_MAX {
        names += "`, …, `";
        names += &others[count - 1];
    }
    Err(io::Error::other(format!(
        "it has left {count} {threads} behind (`{names}`), and a process with several threads can't be forked safely: end and \
         join the threads that it starts, or start them in an initializer"
    )))
}

/// Waits a moment for the other threads of this process to end. (One that was joined is listed for a little longer.) Returns
/// the names of those that do not.
pub(crate) fn threads_left() -> io::Result<Vec<String>> {
    let until = Instant::now() + THREADS_MAX;
    loop {
        let others = other_threads()?;
        if others.is_empty() || Instant::now() >= until {
            return Ok(others);
        }
        thread::sleep(THREADS_TICK);
    }
}

/// The names of all threads of this process but the main one.
fn other_threads() -> io::Result<Vec<String>> {
    // Not `process::id`: a contained worker has another number in its own PID namespace than in the one of `/proc`.
    let own = fs::read_link("/proc/self")?;
    let mut names = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let thread = thread?;
        if thread.file_name() != own {
            let name = fs::read_to_string(thread.path().join("comm"));
            names.push(name.unwrap_or_default().trim_end().to_owned());
        }
    }
    Ok(names)
}

/// Waits for a message from the parent.
fn receive<T: for<'a> Deserialize<'a>>(voice: &Voice) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut text = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        let mut into = [IoSliceMut::new(&mut text)];
        match recvmsg(voice, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?.bytes,
        }
    };
    let fds = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
        _ => None,
    });
    let message = postcard::from_bytes(&text[..len]).map_err(|_| unreadable())?;
    Ok((message, fds.unwrap_or_default()))
}

/// Sends an answer to the parent.
fn say(socket: impl AsFd, what: u8, more: &[u8]) -> io::Result<()> {
    let mut packet = vec![what];
    packet.extend(more.iter().take(PACKET_MAX - 1));
    loop {
        match send(&socket, &packet, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

/// Forks this process: returns true in the child, whose pid stands in `birth` before it runs.
fn fork(birth: &Memory) -> io::Result<bool> {
    let mut flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
    let own_number = where_own_number_is_kept();
    if !own_number.is_null() {
        flags |= libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    }
    let (mut robust, mut len) = (ptr::null_mut::<libc::c_void>(), 0_usize);
    // SAFETY: writes to two variables of ours.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust, &raw mut len) };
    // Not `clone3`, which seccomp filters of containers often don't know. The order of the last two arguments differs between
    // processors, but both are the same here.
    let stack = ptr::null_mut::<libc::c_void>();
    let [first, second] = [flags as usize, stack.addr()];
    #[cfg(target_arch = "s390x")]
    let [first, second] = [second, first];
    // SAFETY: there is only one thread, so the copy is complete, and the child continues on a copy of this stack. The kernel
    // writes only to words that are meant for that.
    let made = unsafe {
        libc::syscall(
            libc::SYS_clone,
            first,
            second,
            birth.base(),
            own_number,
            own_number,
        )
    };
    match made {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: sets the same list as before.
            unsafe { libc::syscall(libc::SYS_set_robust_list, robust, len) };
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// The word in which the C library keeps the id of this thread; null if it is not known. (With glibc it is the word that the
/// kernel clears when the thread ends; with musl that is a different one.)
fn where_own_number_is_kept() -> *mut libc::pid_t {
    let mut word = ptr::null_mut::<libc::pid_t>();
    // SAFETY: writes to a variable of ours.
    let told = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut word) };
    let own = rustix::thread::gettid().as_raw_nonzero().get();
    // SAFETY: the word that the C library has registered with the kernel for this thread lives as long as the thread.
    let is_it = told == 0 && !word.is_null() && unsafe { word.read_volatile() } == own;
    if is_it { word } else { ptr::null_mut() }
}

/// The memory of the program's name, which `ps` shows before the arguments of this process. The arguments stay unchanged.
struct Title {
    at: usize,
    len: usize,
    /// Whether no arguments follow it.
    is_last: bool,
}

impl Title {
    fn find() -> Title {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The second field is a name in parentheses, which may contain any characters.
        let fields = stat
            .rsplit_once(')')
            .map_or("", |(_, fields)| fields)
            .split_whitespace();
        let mut ends = fields.skip(45).map(|end| end.parse().unwrap_or(0));
        let (at, end): (usize, usize) = (ends.next().unwrap_or(0), ends.next().unwrap_or(0));
        let all = end.saturating_sub(at);
        let line = fs::read("/proc/self/cmdline").unwrap_or_default();
        let len = line.iter().position(|byte| *byte == 0);
        let len = len.map_or(0, |len| len + 1).min(all);
        Title {
            at,
            len,
            is_last: len == all,
        }
    }

    /// Sets the title, if there is room.
    fn set(&self, title: &str) {
        if title.len() >= self.len {
            return;
        }
        let place = ptr::with_exposed_provenance_mut::<u8>(self.at);
        // SAFETY: the kernel has put the name there for the program, which has only one thread.
        let place = unsafe { std::slice::from_raw_parts_mut(place, self.len) };
        place.fill(0);
        place[..title.len()].copy_from_slice(title.as_bytes());
        // A last byte that is not zero tells the kernel that the title ends before its memory does. Where arguments follow,
        // readers of the command line see empty arguments between the title and them.
        if self.is_last && title.len() + 1 < self.len {
            place[self.len - 1] = b' ';
        }
    }
}
