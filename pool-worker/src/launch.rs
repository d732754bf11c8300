//! The parent's end: start a worker, talk to it, learn of its death.
//!
//! A [`Worker`] is one process and the parent's end of its rings. One thread uses it at a time; nothing
//! here waits for the worker. [`Starting`] is the same before its first word: whoever polls
//! [`Starting::socket`] hears what it says.
//!
//! # End
//!
//! Death is seen through the pidfd ([`Process`]): [`Worker::reap`] kills what is left of the process group and reads the
//! exit status, without waiting, for a debugger may hold a dead process. What the worker has replied
//! stands in its ring, and can be received as before.

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
use crate::scarce::{check_descriptors, fill_randomly, no, no_process};
use crate::starve::Starved;
use crate::sync::Shared;
use crate::tally::Tallied;

/// This program.
const PROGRAM: &str = "/proc/self/exe";

const NO_MEMORY: Garbled = Garbled("it can't be handed memory that tasks have in common");

const NO_FAULT: Garbled = Garbled("what it says of an initializer can't be read");

/// What workers of a pool are like.
#[derive(Debug)]
pub struct Kind {
    /// What each runs before its first task, and after its last.
    pub setup: Option<Setup>,
    /// Each is to say after each input how much memory it has in use.
    pub tells_memory: bool,
    /// What they start shall end with them.
    pub contained: bool,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub decode_stack: usize,
    /// What each reports of the inputs that it runs.
    pub tells: Tells,
    /// What their environment has beside that of this process; of two of one name the last counts.
    pub env: Vec<(OsString, OsString)>,
    /// Where what they print goes.
    pub output: Output,
}

/// Where standard output and standard error of workers go.
#[derive(Debug)]
pub enum Output {
    /// Where those of this process go.
    Inherit,
    /// Nowhere.
    Null,
    /// Here: see [`Worker::capture`].
    Here {
        /// Whether lines are wanted, too.
        lines: bool,
    },
    /// Into these pipes, that of all workers, and nothing tells it apart: see [`Capture::of_all`].
    Common(Ends),
}

impl Output {
    /// How many descriptors that takes beside those of other pools: each worker while it starts, and the pool.
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
    /// By which workers get the bell.
    bell_fd: OwnedFd,
    introduction: Introduction,
    /// None, when there are no workers any more.
    setup: Mutex<Option<Arc<Setup>>>,
    contained: bool,
    env: Vec<(OsString, OsString)>,
    output: Output,
    freed: Arc<Freed>,
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
    /// This process guards the worker, and is not the worker itself.
    contained: bool,
    ring: ParentEnd,
    /// A bit for each task that it was given.
    tasks: Vec<u64>,
    attachments: Attachments,
    /// Nothing more is given to it.
    barred: bool,
    /// It has written what no worker writes.
    garbled: Option<&'static str>,
    /// It was to be asked to exit, and there was no room to.
    ask_later: bool,
    /// Into which channels it has sent something that is waited for.
    awaited: Vec<Arc<Channel>>,
    /// What it has reported.
    reports: Vec<Reports>,
    /// What it has written, if that comes here.
    capture: Option<Capture>,
    /// How many initializers it has, and of how many it has said that they are through.
    initializers: usize,
    initialized: usize,
    /// What it has said of them, and was not looked at; nothing, when it is set up.
    said: Option<VecDeque<Frames>>,
}

/// What a worker has of what inputs have in common.
#[derive(Debug)]
struct Attachments {
    /// Where it is told which are needed no more.
    freed: Arc<Freed>,
    handover: Handover,
    /// Those that it has, by their ids.
    sent: HashSet<u64>,
    /// Those of them that are channels, and the places that they have there.
    channels: HashMap<u64, (Arc<Channel>, u8)>,
    /// Whose memory was handed over, but was not told.
    handed: Option<u64>,
    /// What the inputs begin with that were sent last.
    bound: u64,
    /// It was to be told that these are needed no more, and there was no room to.
    freed_later: Vec<u64>,
    /// One could not be handed over, and nothing tells when it can.
    try_again: bool,
    /// How many of those that its initializer needs it was sent.
    before_setup: usize,
}

/// What a worker that is not ready has to say.
#[derive(Debug)]
pub struct Starting(Talk);

impl Starting {
    /// Readable when the worker has said something.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.socket()
    }

    /// Hears what the worker has said, if anything. Does not wait.
    pub fn hear(&mut self) -> Said {
        self.0.hear()
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
             not linked into the program, did not run, or could not read its call",
        ));
    }
    Ok(())
}

impl Launcher {
    /// For so many workers of this kind. `cpus`: how many the pool may use. `freed` tells what they need not keep.
    ///
    /// # Errors
    ///
    /// If this process must not start workers ([`may_launch`]), may not open the descriptors that so many need, or
    /// has no memory left.
    pub fn new(workers: usize, cpus: usize, kind: Kind, freed: Arc<Freed>) -> io::Result<Launcher> {
        may_launch()?;
        let Kind {
            setup,
            tells_memory,
            contained,
            decode_stack,
            tells,
            env,
            output,
        } = kind;
        check_descriptors(workers, output.needs())?;
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
            workers,
            started: AtomicU64::new(0),
        })
    }

    fn setup(&self) -> Option<Arc<Setup>> {
        let setup = self.setup.lock();
        setup.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There are no workers any more, nor will be: what initializers and finalizers were given is let go.
    pub fn end(&self) {
        let setup = self.setup.lock();
        let setup = setup.unwrap_or_else(PoisonError::into_inner).take();
        drop(setup);
    }

    /// The bell that the workers ring.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Starts a worker. It takes tasks when it has said that it is ready.
    ///
    /// The worker is killed when the calling *thread* ends: call this from one that lives long enough.
    ///
    /// # Errors
    ///
    /// If the process can't be started, or the way to talk to it can't be made.
    pub fn launch(&self, index: usize) -> io::Result<(Worker, Starting)> {
        let line = greeting::line()?;
        let (socket, stdin) = greeting::socket()?;
        let call = self.call(index)?;
        let mut child = self.spawn(&title(index), &call, stdin, None)?;
        // What it needs next is made while it starts.
        self.introduce(socket, line, call.token)
            .and_then(|introduced| {
                let process = Process::open(child.id(), "a worker")?;
                Ok(self.attend(process, introduced))
            })
            .inspect_err(|_| {
                // Without a pidfd nobody would see it die.
                let _ = child.kill();
                let _ = child.wait();
            })
    }

    /// What a worker is told first.
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

    /// What it is told next: all that it needs, by the socket that will be its standard input.
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
        .map_err(no("way to introduce a worker"))?;
        Ok(Introduced {
            ring: ParentEnd::new(memory),
            handover,
            talk,
            capture,
        })
    }

    /// The worker that was introduced runs.
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
            said: setup.is_some().then(VecDeque::new),
        };
        self.prepare_setup(&mut worker);
        (worker, Starting(talk))
    }

    /// Starts this program again, to fork workers, in a room for the longest of their titles.
    /// What its task prints comes here, too, if what workers print does.
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

    /// It has the arguments of this process, for whatever in it parses the command line.
    /// `ends`: into which it writes from the start.
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
            // What comes to this process goes through pipes that a worker is handed later.
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

    /// Sends a worker that starts what its initializer needs; false if there is no room for all of it yet.
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

fn resident(pid: u32, contained: bool) -> Option<u64> {
    if contained {
        resident::of_grandchild(pid)
    } else {
        resident::of(pid)
    }
}

/// Tells about a worker, for statistics.
#[derive(Debug)]
pub struct Witness {
    pid: u32,
    contained: bool,
    /// A bit for each task that it was given.
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
        resident(self.pid, self.contained)
    }

    /// When it last read the clock, by [`now`](crate::now()): what it runs has begun then, or a little later. (It may lie.)
    pub fn read_at(&self) -> Duration {
        self.tallies.read_at()
    }

    /// How long inputs ran and waited, by the number of the task. (It may lie.)
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

/// What the parent has of a worker before there is a process.
#[derive(Debug)]
pub(crate) struct Introduced {
    ring: ParentEnd,
    handover: Handover,
    talk: Talk,
    capture: Option<Capture>,
}

/// Whether a variable of this name tells a process of this library what it is to be.
pub fn is_own_variable(name: &OsStr) -> bool {
    let own = name.as_encoded_bytes();
    own.starts_with(VARIABLES.as_bytes()) || own == NODE.as_bytes()
}

/// What `ps` shows before the arguments: "pool-worker 3 of wordcount".
pub(crate) fn title(index: usize) -> String {
    format!("pool-worker {index} of {}", program())
}

/// The same of what forks them.
pub(crate) fn zygote_title() -> String {
    format!("pool-zygote of {}", program())
}

/// What a worker finds behind its title: what this program was given. One that has loaded this code as a library would do that once
/// more.
fn command_line() -> impl Iterator<Item = OsString> {
    let is_in_program = entry::is_in_program();
    env::args_os().skip(1).filter(move |_| is_in_program)
}

fn program() -> String {
    let program = env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    name.display().to_string()
}

/// What only the worker that we start can know.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    fill_randomly(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

impl Worker {
    /// Tells it from all others of its pool, also from those that are gone.
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

    /// What came of its initializers, if it has said so.
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

    /// How many of its initializers are through, as far as it has [said](Worker::set_up).
    pub fn initialized(&self) -> usize {
        self.initialized
    }

    /// Gives it a portion, as far as there is room; true if all of it is sent. Otherwise give the same
    /// portion again later, or [`recall`](Worker::recall) it.
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

    /// It was given inputs of this task.
    fn note_task(&mut self, task: u32) {
        let word = (task / u64::BITS) as usize;
        if word >= self.tasks.len() {
            self.tasks.resize(word + 1, 0);
        }
        self.tasks[word] |= 1 << (task % u64::BITS);
    }

    /// Sends what these inputs need besides themselves; false if there is no room for that yet.
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

    /// Sends an attachment, and what it refers to, if the worker does not have them.
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
                    // There is when it has taken what it was sent before; or some time, if others take up the room.
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

    /// Nobody holds this any more: it need not keep it, and is to be told [later](Worker::detach_later). False: it does not
    /// have it.
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

    /// Says what it need not keep, as far as there is room. False: there was not enough.
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

    /// How far requests were sent: a number that grows.
    pub fn sent(&self) -> u64 {
        self.ring.sent()
    }

    /// Nothing more is to be sent: it is going to die.
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

    /// Who is to be woken for what was sent, after the last of it.
    pub fn sleeper(&self) -> Option<Sleeper> {
        self.ring.sleeper()
    }

    /// Takes back every input that it has not begun. Gives how many inputs it has begun since it
    /// started, wrapping around.
    pub fn recall(&mut self) -> u32 {
        self.ring.recall()
    }

    /// From now on it begins nothing more, even if it should be alive: what was given to it is taken back, and nothing is
    /// sent any more. (What guards a worker ends a moment before it.)
    pub fn bar(&mut self) {
        self.barred = true;
        self.recall();
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.ring.progress()
    }

    /// How much memory it had in use after its last input, in bytes, if it tells.
    pub fn told_memory(&self) -> u64 {
        self.ring.told_memory()
    }

    /// What it has said of a failed allocation before it aborted.
    pub fn starved(&self) -> Option<Starved> {
        self.ring.starved()
    }

    /// How many bytes of replies, and what else it sends, were received.
    pub fn received(&self) -> u64 {
        self.ring.received()
    }

    /// What tells about it from any thread, also after its end.
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
        resident(self.pid(), self.contained)
    }

    /// Whether it has replied what was not received.
    pub fn has_replies(&self) -> bool {
        self.ring.has_replies()
    }

    /// Whether it has, or had, reason to ring: to be asked after a fence, before sleeping.
    pub fn has_reason_to_ring(&self) -> bool {
        self.ring.has_reason_to_ring()
    }

    /// What tells from any thread whether it has replied.
    pub fn glance(&self) -> Glance {
        self.ring.glance()
    }

    /// Appends what it has replied: one byte string for each input that it has begun, in order. Gives who
    /// is to be woken for the room that this made.
    pub fn receive(&mut self, replies: &mut VecDeque<Frames>) -> Option<Sleeper> {
        self.receive_all(replies)?;
        self.detach_later();
        if self.ask_later {
            self.ask_to_exit();
        }
        self.ring.sleeper_for_room()
    }

    /// The same; and what it has sent arrives in its channels.
    fn receive_all(&mut self, replies: &mut VecDeque<Frames>) -> Option<()> {
        // What was received before it was found out would be received once more.
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
        // One that was taken away was needed by nobody any more.
        let channel = self.attachments.channels.get(&id);
        let put = channel.map(|(channel, _)| (channel, channel.put(messages.into())));
        match put {
            Some((_, Put::Quietly)) => {}
            Some((channel, Put::Awaited)) => self.awaited.push(Arc::clone(channel)),
            Some((_, Put::Closed)) | None => self.ring.close_channel(id, place),
        }
    }

    /// Whether it may send messages, though it may have nothing to do.
    pub fn sends_messages(&self) -> bool {
        self.ring.sends_messages()
    }

    /// From now on it is to report log records of this level, if it has the feature `tracing`.
    pub fn set_log_level(&mut self, level: LogLevel) {
        self.ring.set_log_level(level);
    }

    /// Whether it may report log records, though it may have nothing to do.
    pub fn logs(&self) -> bool {
        self.ring.logs()
    }

    /// The channels whose receivers are to be woken.
    pub fn awaited(&mut self) -> Vec<Arc<Channel>> {
        mem::take(&mut self.awaited)
    }

    /// What it has written, if that comes here.
    pub fn capture(&mut self) -> Option<&mut Capture> {
        self.capture.as_mut()
    }

    /// Nothing more is asked of the worker.
    pub fn take_capture(&mut self) -> Option<Capture> {
        self.capture.take()
    }

    /// What it has reported, in order.
    pub fn reports(&mut self) -> Vec<Reports> {
        mem::take(&mut self.reports)
    }

    /// A task by its number, and how long an input of it took, if that is news.
    pub fn new_pace(&mut self) -> Option<(u32, Duration)> {
        self.ring.new_pace()
    }

    /// It shall ring when reply number `at` stands, counted from its start, wrapping around.
    pub fn set_wake_at(&mut self, at: u32) {
        self.ring.set_wake_at(at);
    }

    /// What it has written that no worker of ours writes. It should be killed.
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

    /// How it ended, if it has; call when the pidfd says so. Kills what is left of its process group.
    pub fn reap(&mut self) -> Option<Exit> {
        self.process.reap()
    }

    /// What is left to bury when nobody is interested in it any more.
    pub fn into_process(self) -> Process {
        self.process
    }
}
