//! The parent's end: start a worker, talk to it, notice its death.
//!
//! A [`Worker`] is one process and the parent's end of its rings. One thread uses it at a time; nothing here waits for the
//! worker. [`Starting`] is the connection to a worker that is not ready yet: poll [`Starting::socket`] to learn when it has
//! said something.
//!
//! # End
//!
//! The pidfd ([`Process`]) tells when a worker has died. [`Worker::reap`] then kills what is left of the process group and
//! reads the exit status, without waiting, since a debugger may hold a dead process. The replies that the worker has written
//! stay in its ring, and can be received as before.

use std::collections::{HashMap, HashSet, VecDeque};
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::attach::{self, Attachment, Freed, Handover, Noted, Sent};
use crate::bell::Bell;
use crate::capture::{Capture, Ends};
use crate::channel::{Channel, Put};
use crate::entry::{self, Call, NODE, Role, VARIABLE, VARIABLES};
use crate::exit::Exit;
use crate::fault::Fault;
use crate::frames::{Frames, Tag};
use crate::greeting::{self, Introduction, Line, Said, Setup, Talk};
use crate::level::LogLevel;
use crate::process::Process;
use crate::report::Tells;
use crate::resident;
use crate::ring::{
    self, Garbled, Glance, Messages, ParentEnd, Portion, Progress, Reports, Sleeper, Tallies,
};
use crate::sandbox;
use crate::scarce::{check_descriptors, fill_randomly, no, no_process};
use crate::starve::Starved;
use crate::sync::Shared;
use crate::tally::Tallied;

/// This program.
const PROGRAM: &str = "/proc/self/exe";

const NO_MEMORY: Garbled = Garbled("it can't be handed the memory of an attachment");

const NO_FAULT: Garbled = Garbled("its report about an initializer can't be read");

/// The properties of the workers of a pool.
#[derive(Debug)]
pub struct Kind {
    /// What each runs before its first task, and after its last.
    pub setup: Option<Setup>,
    /// Whether each reports after each input how much memory it has in use.
    pub tells_memory: bool,
    /// Whether the processes that they start end with them.
    pub contained: bool,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub decode_stack: usize,
    /// What each reports about the inputs that it runs.
    pub tells: Tells,
    /// Variables that are added to their environment, which is otherwise that of this process; of several with the same name
    /// the last counts.
    pub env: Vec<(OsString, OsString)>,
    /// Where their standard output and standard error go.
    pub output: Output,
}

/// Where standard output and standard error of workers go.
#[derive(Debug)]
pub enum Output {
    /// To the same files as those of this process.
    Inherit,
    /// Nowhere.
    Null,
    /// To this process: see [`Worker::capture`].
    Here {
        /// Whether single lines are wanted, too.
        lines: bool,
    },
    /// Into these pipes, which all workers share, without marks that tell whose it is: see [`Capture::of_all`].
    Common(Ends),
}

impl Output {
    /// How many more descriptors are needed for that: by each worker while it starts, and by the pool.
    fn needs(&self) -> (u64, u64) {
        match self {
            Output::Inherit | Output::Null => (0, 0),
            Output::Here { .. } => (4, 2),
            Output::Common(_) => (0, 2),
        }
    }
}

/// What all workers of a pool have in common.
#[derive(Debug)]
pub struct Launcher {
    bell: Bell,
    /// The bell's memory, to be handed to workers.
    bell_fd: OwnedFd,
    introduction: Introduction,
    /// `None` after the end of all workers.
    setup: Mutex<Option<Arc<Setup>>>,
    contained: bool,
    env: Vec<(OsString, OsString)>,
    output: Output,
    freed: Arc<Freed>,
    unenforced: Vec<String>,
    /// How many workers there are at a time.
    workers: usize,
    /// How many workers were started.
    started: AtomicU64,
}

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    serial: u64,
    process: Process,
    /// `process` is the guard of the worker, not the worker itself.
    contained: bool,
    ring: ParentEnd,
    /// A bit for each task that it was given inputs of.
    tasks: Vec<u64>,
    attachments: Attachments,
    /// It gets no more inputs.
    barred: bool,
    /// Set when it has written something that no worker of ours would write.
    garbled: Option<&'static str>,
    /// It must still be asked to exit: there was no room in its ring for that.
    ask_later: bool,
    /// Channels into which it has sent messages, and whose receivers wait for them.
    awaited: Vec<Arc<Channel>>,
    /// Its reports that were not taken yet.
    reports: Vec<Reports>,
    /// Its output, if that is captured.
    capture: Option<Capture>,
    /// How many initializers it has, and how many of them it has reported as finished.
    initializers: usize,
    initialized: usize,
    /// How much processor time its start took.
    cpu_time_before: Option<Duration>,
    /// Its reports about them that were not read yet; `None` once it is set up.
    said: Option<VecDeque<Frames>>,
}

/// The attachments that a worker has.
#[derive(Debug)]
struct Attachments {
    /// Tells which attachments are no longer needed.
    freed: Arc<Freed>,
    handover: Handover,
    /// The ids of those that it has.
    sent: HashSet<u64>,
    /// Those of them that are channels, and their places in the worker.
    channels: HashMap<u64, (Arc<Channel>, u8)>,
    /// The one whose memory was handed over, but not announced in the ring yet.
    handed: Option<u64>,
    /// The one with which the inputs begin that were sent last; 0 if none.
    bound: u64,
    /// The worker must still be told that these are no longer needed: there was no room in its ring for that.
    freed_later: Vec<u64>,
    /// One could not be handed over, and nothing will tell when it can be.
    try_again: bool,
    /// How many of the attachments that its initializers and finalizers need were sent.
    before_setup: usize,
}

/// The connection to a worker that is not ready yet.
#[derive(Debug)]
pub struct Starting(Talk);

impl Starting {
    /// Readable when the worker has said something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.socket()
    }

    /// Receives what the worker has said, if anything. Does not wait.
    pub fn hear(&mut self) -> Said {
        self.0.hear()
    }
}

/// Checks whether this process may start workers.
///
/// # Errors
///
/// If it was itself called as a worker and has not become one, or if it runs setuid.
pub fn may_launch() -> io::Result<()> {
    if entry::secure() {
        return Err(io::Error::other(
            "this program runs setuid or setgid, and such a program can't have workers",
        ));
    }
    let exists = Path::new(PROGRAM).try_exists();
    if !exists.map_err(no(
        "/proc/self/exe, by which this program starts itself again",
    ))? {
        return Err(io::Error::other(
            "there is no /proc/self/exe, by which this program starts itself again: /proc is not mounted",
        ));
    }
    if entry::missed() {
        return Err(io::Error::other(
            "this process was started as a worker but runs `main`: the entry of pool-worker was \
             not linked into the program, did not run, or could not read the environment variable",
        ));
    }
    Ok(())
}

impl Launcher {
    /// For `workers` workers of this kind. `cpus`: how many CPUs the pool may use. `freed` tells which attachments are no
    /// longer needed.
    ///
    /// # Errors
    ///
    /// If this process must not start workers ([`may_launch`]), may not open as many descriptors as they need, or has no
    /// memory left; or if the workers can't be sandboxed as they should be.
    pub fn new(workers: usize, cpus: usize, kind: Kind, freed: Arc<Freed>) -> io::Result<Launcher> {
        may_launch()?;
        let Kind {
            mut setup,
            tells_memory,
            contained,
            decode_stack,
            tells,
            env,
            output,
        } = kind;
        check_descriptors(workers, output.needs())?;
        let sandbox = setup.as_ref().and_then(Setup::sandbox);
        let unenforced = sandbox.map_or(Ok(Vec::new()), sandbox::check)?;
        if unenforced.is_empty() {
            // If a worker lacks something all the same, nobody would be told.
            setup.iter_mut().for_each(Setup::need_whole_sandbox);
        }
        let (bell, bell_fd) = Bell::create(cpus).map_err(no("memory for the bell of a pool"))?;
        Ok(Launcher {
            bell,
            bell_fd,
            introduction: Introduction {
                setup: setup.as_ref().map(Setup::len),
                attachments: setup.as_ref().map_or(0, |setup| setup.held().len()),
                cpus,
                tells_memory,
                decode_stack,
                marks: None,
                tells,
            },
            setup: Mutex::new(setup.map(Arc::new)),
            contained,
            env,
            output,
            freed,
            unenforced,
            workers,
            started: AtomicU64::new(0),
        })
    }

    /// What the sandbox of the workers should do and the kernel can't, if it is to be entered as far as possible.
    pub fn unenforced(&self) -> &[String] {
        &self.unenforced
    }

    pub(crate) fn is_sandboxed(&self) -> bool {
        let setup = self.setup();
        setup.is_some_and(|setup| setup.sandbox().is_some())
    }

    fn setup(&self) -> Option<Arc<Setup>> {
        let setup = self.setup.lock();
        setup.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// To be called when all workers have ended and none will be started: drops the arguments of initializers and finalizers.
    pub fn end(&self) {
        let setup = self.setup.lock();
        let setup = setup.unwrap_or_else(PoisonError::into_inner).take();
        drop(setup);
    }

    /// The bell that the workers ring.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Starts a worker. It takes inputs once it has said that it is ready.
    ///
    /// The worker is killed when the calling *thread* ends: call this from one that lives long enough.
    ///
    /// # Errors
    ///
    /// If the process can't be started, or the connection to it can't be made.
    pub fn launch(&self, index: usize) -> io::Result<(Worker, Starting)> {
        let line = greeting::line()?;
        let (socket, stdin) = greeting::socket()?;
        let call = self.call(index)?;
        let mut child = self.spawn(&title(index), &call, stdin, None)?;
        // The rest is prepared while it starts.
        self.introduce(socket, line, call.token)
            .and_then(|introduced| {
                let process = Process::open(child.id(), "a worker")?;
                Ok(self.attend(process, introduced))
            })
            .inspect_err(|_| {
                // Without a pidfd its death would go unnoticed.
                let _ = child.kill();
                let _ = child.wait();
            })
    }

    /// What a worker is told in its environment.
    pub(crate) fn call(&self, index: usize) -> io::Result<Call> {
        Ok(Call {
            parent: process::id(),
            index,
            token: token()?,
            role: if self.contained {
                Role::Contained
            } else {
                Role::Worker
            },
        })
    }

    /// Sends a worker all that it needs, over the socket that will be its standard input.
    pub(crate) fn introduce(
        &self,
        socket: OwnedFd,
        line: Line,
        token: String,
    ) -> io::Result<Introduced> {
        let (memory, rings) = Shared::create("pool-rings", ring::tallies_len())
            .map_err(no("memory for the rings of a worker"))?;
        let (handover, attachments) = attach::handover()?;
        let fds = [rings.as_fd(), self.bell_fd.as_fd(), attachments.as_fd()];
        let setup = self.setup();
        let captured = match &self.output {
            Output::Here { lines } => Some(Capture::create(*lines)?),
            Output::Inherit | Output::Null | Output::Common(_) => None,
        };
        let (capture, ends) = captured.unzip();
        let introduction = Introduction {
            marks: ends.as_ref().map(|ends| ends.token),
            ..self.introduction.clone()
        };
        let talk = Talk::begin(
            socket,
            line,
            token,
            &introduction,
            setup,
            fds,
            ends.as_ref(),
        )
        .map_err(no("connection to introduce a worker"))?;
        Ok(Introduced {
            ring: ParentEnd::new(memory),
            handover,
            talk,
            capture,
        })
    }

    /// Puts together the [`Worker`], once its process runs.
    pub(crate) fn attend(&self, process: Process, introduced: Introduced) -> (Worker, Starting) {
        let Introduced {
            ring,
            handover,
            talk,
            capture,
        } = introduced;
        let setup = self.setup();
        let mut worker = Worker {
            serial: self.started.fetch_add(1, Ordering::Relaxed),
            process,
            contained: self.contained,
            ring,
            tasks: Vec::new(),
            attachments: Attachments {
                freed: Arc::clone(&self.freed),
                handover,
                sent: HashSet::new(),
                channels: HashMap::new(),
                handed: None,
                bound: 0,
                freed_later: Vec::new(),
                try_again: false,
                before_setup: 0,
            },
            barred: false,
            garbled: None,
            ask_later: false,
            awaited: Vec::new(),
            reports: Vec::new(),
            capture,
            initializers: setup.as_ref().map_or(0, |setup| setup.initializers()),
            initialized: 0,
            cpu_time_before: None,
            said: setup.is_some().then(VecDeque::new),
        };
        self.prepare_setup(&mut worker);
        (worker, Starting(talk))
    }

    /// Starts this program again, as a zygote, with a title long enough to be overwritten by the longest title of a worker.
    /// If workers' output is captured, that of the preload task is, too.
    pub(crate) fn spawn_zygote(&self, stdin: OwnedFd) -> io::Result<(Child, Option<Capture>)> {
        let captured = match self.output {
            Output::Here { .. } => Some(Capture::create(false)?),
            Output::Inherit | Output::Null | Output::Common(_) => None,
        };
        let (capture, ends) = captured.unzip();
        let call = Call {
            role: Role::Zygote,
            ..self.call(0)?
        };
        let longest = title(self.workers.saturating_sub(1)).chars().count();
        let title = format!("{:<longest$}", zygote_title());
        let child = self.spawn(&title, &call, stdin, ends.as_ref())?;
        Ok((child, capture))
    }

    /// Starts this program again, with the arguments of this process, since code that runs in it may parse the command line.
    /// `ends`: the pipes into which it writes from the start.
    fn spawn(
        &self,
        title: &str,
        call: &Call,
        stdin: OwnedFd,
        ends: Option<&Ends>,
    ) -> io::Result<Child> {
        let env = self.env.iter().map(|(name, value)| (name, value));
        let (out, err) = match (&self.output, ends) {
            (_, Some(ends)) | (Output::Common(ends), None) => ends.to_stdio()?,
            (Output::Inherit, None) => (Stdio::inherit(), Stdio::inherit()),
            // If output is captured, a worker receives its pipes later, with the introduction.
            (Output::Null | Output::Here { .. }, None) => (Stdio::null(), Stdio::null()),
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that starts processes"
        )]
        Command::new(PROGRAM)
            .arg0(title)
            .args(command_line())
            .envs(env)
            .env(VARIABLE, call.to_variable())
            .stdin(Stdio::from(stdin))
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(no_process("process for a worker"))
    }

    /// Sends a starting worker the attachments that its initializers and finalizers need; false if there is no room for all
    /// of them yet.
    pub fn prepare_setup(&self, worker: &mut Worker) -> bool {
        let setup = self.setup();
        let held = setup.as_ref().map_or(&[][..], |setup| setup.held());
        while let Some(next) = held.get(worker.attachments.before_setup) {
            let sent = worker.attach(next);
            if !worker.believe(sent).unwrap_or(true) {
                return false;
            }
            worker.attachments.before_setup += 1;
        }
        true
    }
}

/// A view of a worker, for statistics.
#[derive(Debug)]
pub struct Witness {
    pid: u32,
    contained: bool,
    /// A bit for each task that it was given inputs of.
    tasks: Vec<u64>,
    tallies: Tallies,
}

impl Witness {
    /// The worker's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How much memory it has in use now, in bytes, if the system tells.
    pub fn resident(&self) -> Option<u64> {
        resident::of(self.pid, self.contained)
    }

    /// When it last read the clock, by [`now`](crate::now()): the input that it runs began then, or a little later. (The
    /// worker may have written anything there.)
    pub fn read_at(&self) -> Duration {
        self.tallies.read_at()
    }

    /// How long inputs ran and waited, by the number of the task. (The worker may have written anything there.)
    pub fn tallied(&self) -> impl Iterator<Item = (u32, Tallied)> {
        let words = (0..).zip(&self.tasks);
        let tasks = words.flat_map(|(word, bits)| {
            let bits = *bits;
            (0..u64::BITS)
                .filter(move |bit| bits >> bit & 1 != 0)
                .map(move |bit| word * u64::BITS + bit)
        });
        tasks.filter_map(|task| Some((task, self.tallies.of(task)?)))
    }
}

/// The parent's end of a worker whose process is not known yet.
#[derive(Debug)]
pub(crate) struct Introduced {
    ring: ParentEnd,
    handover: Handover,
    talk: Talk,
    capture: Option<Capture>,
}

/// Whether an environment variable of this name makes a process a worker, a zygote or a node.
pub fn is_own_variable(name: &OsStr) -> bool {
    let own = name.as_encoded_bytes();
    own.starts_with(VARIABLES.as_bytes()) || own == NODE.as_bytes()
}

/// What `ps` shows before the arguments of a worker: "pool-worker 3 of wordcount".
pub(crate) fn title(index: usize) -> String {
    format!("pool-worker {index} of {}", program())
}

/// The same for a zygote.
pub(crate) fn zygote_title() -> String {
    format!("pool-zygote of {}", program())
}

/// The arguments of a worker: those of this process. If this code was loaded as a library, there are none, since the program
/// would do once more what its arguments say.
fn command_line() -> impl Iterator<Item = OsString> {
    let is_in_program = entry::is_in_program();
    env::args_os().skip(1).filter(move |_| is_in_program)
}

fn program() -> String {
    let program = env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    name.display().to_string()
}

/// A secret by which a worker proves that it is the one that was started.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    fill_randomly(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

impl Worker {
    /// A number that no other worker of this pool has, or had.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Readable when it is dead.
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        self.process.pidfd()
    }

    /// The outcome of its initializers, if it has reported that: success of all of them, or the first error.
    pub fn set_up(&mut self) -> Option<Result<(), Fault>> {
        if let Some(sleeper) = self.receive(&mut VecDeque::new()) {
            sleeper.wake();
        }
        while let Some(mut reply) = self.said.as_mut()?.pop_front() {
            while let Some((tag, bytes)) = reply.pop() {
                if tag == Tag::Fault {
                    return match Fault::from_bytes(&bytes) {
                        Some(fault) => Some(Err(fault)),
                        None => self.believe(Err(NO_FAULT)),
                    };
                }
                self.initialized += 1;
                if self.initialized >= self.initializers {
                    self.said = None;
                    return Some(Ok(()));
                }
            }
        }
        None
    }

    /// How many of its initializers it has [reported](Worker::set_up) as finished.
    pub fn initialized(&self) -> usize {
        self.initialized
    }

    /// Sends it a portion, as far as there is room; true if all of it was sent. Otherwise pass the same portion again later,
    /// or [`recall`](Worker::recall) it.
    pub fn send(&mut self, portion: Portion<'_>) -> bool {
        if self.barred {
            return false;
        }
        self.attachments.try_again = false;
        self.note_task(portion.task);
        let sent = match self.prepare(portion.inputs) {
            Ok(true) => self.ring.send(portion),
            prepared => prepared,
        };
        let sent = self.believe(sent).unwrap_or(false);
        if sent {
            self.detach_later();
        }
        sent
    }

    /// Notes that it was given inputs of this task.
    fn note_task(&mut self, task: u32) {
        let word = (task / u64::BITS) as usize;
        if word >= self.tasks.len() {
            self.tasks.resize(word + 1, 0);
        }
        self.tasks[word] |= 1 << (task % u64::BITS);
    }

    /// Sends the attachments that these inputs need; false if there is no room for that yet.
    fn prepare(&mut self, inputs: &Frames) -> Result<bool, Garbled> {
        let bound = inputs.bound();
        for attachment in bound.into_iter().chain(inputs.held()) {
            if !self.attach(attachment)? {
                return Ok(false);
            }
        }
        let id = bound.map_or(0, |bound| bound.id());
        if id != self.attachments.bound {
            if !self.ring.send_bind(id)? {
                return Ok(false);
            }
            self.attachments.bound = id;
        }
        Ok(true)
    }

    /// Sends an attachment, and those that it refers to, unless the worker has them already.
    fn attach(&mut self, attachment: &Attachment) -> Result<bool, Garbled> {
        let id = attachment.id();
        if self.attachments.sent.contains(&id) {
            return Ok(true);
        }
        for other in attachment.holds() {
            if !self.attach(other)? {
                return Ok(false);
            }
        }
        let Attachments {
            freed,
            handover,
            sent,
            channels,
            handed,
            ..
        } = &mut self.attachments;
        if let Some(channel) = attachment.channel() {
            let place = self.ring.open_channel();
            let sent_now = self.ring.send_channel(id, place, channel.unread());
            let Some(credit) = sent_now? else {
                self.ring.give_up_channel(place);
                return Ok(false);
            };
            channel.owe(credit);
            channels.insert(id, (Arc::clone(channel), place));
            sent.insert(id);
            attachment.is_sent_for(freed);
            return Ok(true);
        }
        let content = attachment.sent();
        if let Sent::Long(memory, _) = &content
            && *handed != Some(id)
        {
            match handover.give(id, *memory) {
                Ok(true) => *handed = Some(id),
                Ok(false) => {
                    // There will be room when the worker has taken everything that it was sent before; or at some unknown
                    // time, if other processes take up the room.
                    self.attachments.try_again = !self.ring.wait_until_empty()?;
                    return Ok(false);
                }
                Err(_) => return Err(NO_MEMORY),
            }
        }
        if !self.ring.send_attachment(id, &content)? {
            return Ok(false);
        }
        *handed = None;
        sent.insert(id);
        attachment.is_sent_for(freed);
        Ok(true)
    }

    /// Notes that this attachment is no longer needed, which the worker will be told [later](Worker::detach_later). False if
    /// the worker does not have it.
    pub fn detach(&mut self, freed: &Noted) -> bool {
        let had = self.attachments.sent.remove(&freed.id());
        if had {
            self.attachments.freed_later.push(freed.id());
            if let Some((_, place)) = self.attachments.channels.remove(&freed.id()) {
                self.ring.give_up_channel(place);
            }
        }
        had
    }

    /// Tells it which attachments are no longer needed, as far as there is room; false if there is not enough.
    pub fn detach_later(&mut self) -> bool {
        while let Some(id) = self.attachments.freed_later.last() {
            let sent = self.ring.send_detach(*id);
            if !self.believe(sent).unwrap_or(true) {
                return false;
            }
            self.attachments.freed_later.pop();
        }
        true
    }

    /// How many bytes of requests were sent to it, in all.
    pub fn sent(&self) -> u64 {
        self.ring.sent()
    }

    /// Nothing more will be sent: the worker is going to die.
    pub fn give_up_sending(&mut self) {
        self.ring.give_up_sending();
    }

    /// Whether the last portion could not be sent whole.
    pub fn wants_room(&self) -> bool {
        self.ring.wants_room() || self.attachments.try_again
    }

    /// Asks it to exit once it has done what it was given.
    pub fn ask_to_exit(&mut self) {
        let sent = self.ring.send_exit();
        self.ask_later = !self.believe(sent).unwrap_or(true);
    }

    /// The worker, if it must be woken for what was sent. To be called after the last request.
    pub fn sleeper(&self) -> Option<Sleeper> {
        self.ring.sleeper()
    }

    /// Takes back every input that it has not begun. Returns how many inputs it has begun since it started, wrapping around.
    pub fn recall(&mut self) -> u32 {
        self.ring.recall()
    }

    /// Makes sure that it begins nothing more, even if it is still alive: its inputs are taken back, and nothing more is
    /// sent. (The guard of a contained worker ends a moment before the worker does.)
    pub fn bar(&mut self) {
        self.barred = true;
        self.recall();
    }

    /// How far it has got.
    pub fn progress(&self) -> Progress {
        self.ring.progress()
    }

    /// How much memory it had in use after its last input, in bytes, if it reports that.
    pub fn told_memory(&self) -> u64 {
        self.ring.told_memory()
    }

    /// What it reported about a failed allocation before it aborted.
    pub fn starved(&self) -> Option<Starved> {
        self.ring.starved()
    }

    /// The system call because of which the sandbox ended it, if it says so.
    pub fn forbidden_call(&self) -> Option<String> {
        let number = self.ring.forbidden()?;
        Some(match sandbox::name_of_call(number) {
            Some(name) => format!("`{name}`"),
            None => format!("system call {number}"),
        })
    }

    /// How many bytes were received from it: replies, messages and reports.
    pub fn received(&self) -> u64 {
        self.ring.received()
    }

    /// A view of it that any thread may use, also after its end.
    pub fn witness(&self) -> Witness {
        Witness {
            pid: self.pid(),
            contained: self.contained,
            tasks: self.tasks.clone(),
            tallies: self.ring.tallies(),
        }
    }

    /// How much memory it has in use now, in bytes, if the system tells.
    pub fn resident(&self) -> Option<u64> {
        resident::of(self.pid(), self.contained)
    }

    /// How much processor time it has used since this was first called after its initializers, if the system tells.
    pub fn cpu_time(&mut self) -> Option<Duration> {
        if self.said.is_some() {
            return None;
        }
        let used = resident::cpu_time(self.pid(), self.contained)?;
        Some(used.saturating_sub(*self.cpu_time_before.get_or_insert(used)))
    }

    /// Whether it has written replies that were not received yet.
    pub fn has_replies(&self) -> bool {
        self.ring.has_replies()
    }

    /// Whether it has, or had, a reason to ring the bell: to be checked after a fence, before sleeping.
    pub fn has_reason_to_ring(&self) -> bool {
        self.ring.has_reason_to_ring()
    }

    /// A handle by which any thread can see whether it has replied.
    pub fn glance(&self) -> Glance {
        self.ring.glance()
    }

    /// Appends its replies: one byte string for each input that it has begun, in order. Returns the worker if it must be
    /// woken for the room that this has made.
    pub fn receive(&mut self, replies: &mut VecDeque<Frames>) -> Option<Sleeper> {
        self.receive_all(replies)?;
        self.detach_later();
        if self.ask_later {
            self.ask_to_exit();
        }
        self.ring.sleeper_for_room()
    }

    /// The same, without waking; and puts its messages into their channels.
    fn receive_all(&mut self, replies: &mut VecDeque<Frames>) -> Option<()> {
        // Otherwise what was received before the nonsense would be received once more.
        if self.garbled.is_some() {
            return None;
        }
        let mut messages = Vec::new();
        let replies = self.said.as_mut().unwrap_or(replies);
        let received = self.ring.receive(replies, &mut messages);
        messages.into_iter().for_each(|some| self.pass_on(some));
        self.believe(received)
    }

    fn pass_on(&mut self, messages: Messages) {
        let messages = match messages.reports() {
            Ok(reports) => return self.reports.push(reports),
            Err(messages) => messages,
        };
        let (id, place) = (messages.channel, messages.credit.place());
        // If the channel is not found, it was detached, since it is no longer needed.
        let channel = self.attachments.channels.get(&id);
        let put = channel.map(|(channel, _)| (channel, channel.put(messages.into())));
        match put {
            Some((_, Put::Quietly)) => {}
            Some((channel, Put::Awaited)) => self.awaited.push(Arc::clone(channel)),
            Some((_, Put::Closed)) | None => self.ring.close_channel(id, place),
        }
    }

    /// Whether it may send messages, even while it has no inputs.
    pub fn sends_messages(&self) -> bool {
        self.ring.sends_messages()
    }

    /// Has it report log records of this level from now on, if it has the feature `tracing`.
    pub fn set_log_level(&mut self, level: LogLevel) {
        self.ring.set_log_level(level);
    }

    /// Whether it may report log records, even while it has no inputs.
    pub fn logs(&self) -> bool {
        self.ring.logs()
    }

    /// Takes the channels whose receivers must be woken.
    pub fn awaited(&mut self) -> Vec<Arc<Channel>> {
        mem::take(&mut self.awaited)
    }

    /// Its output, if that is captured.
    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.capture.as_mut()
    }

    /// Takes the capture of its output, to be kept when the worker is dropped.
    pub fn take_capture(&mut self) -> Option<Capture> {
        self.capture.take()
    }

    /// Takes its reports, in order.
    pub fn reports(&mut self) -> Vec<Reports> {
        mem::take(&mut self.reports)
    }

    /// The number of a task, and how long an input of it took, if the worker has written that since the last call.
    pub fn new_pace(&mut self) -> Option<(u32, Duration)> {
        self.ring.new_pace()
    }

    /// Has it ring the bell when reply number `at` stands, counted from its start, wrapping around.
    pub fn set_wake_at(&mut self, at: u32) {
        self.ring.set_wake_at(at);
    }

    /// What is wrong with what it has written, if no worker of ours would write that. It should be killed.
    pub fn garbled(&self) -> Option<&'static str> {
        self.garbled
    }

    fn believe<T>(&mut self, result: Result<T, Garbled>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Garbled(why)) => {
                self.garbled.get_or_insert(why);
                None
            }
        }
    }

    /// Sends SIGTERM to its process group.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Sends SIGKILL to its process group.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// How it ended, if it has; to be called when the pidfd is readable. Kills what is left of its process group.
    pub fn reap(&mut self) -> Option<Exit> {
        self.process.reap()
    }

    /// Its process, which still must be reaped.
    pub fn into_process(self) -> Process {
        self.process
    }
}
