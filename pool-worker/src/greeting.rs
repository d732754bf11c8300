//! How a new worker and its parent connect, and what they tell each other before the first task. This is the only module that
//! uses ipc-channel.
//!
//! # The conversation
//!
//! A worker's standard input is a socket, over which the parent hands it an [`Introduction`] and four to seven descriptors:
//! the memory of its rings, the bell, the line, the socket for attachments, the arguments of initializers and finalizers, and
//! the pipes for its output if the parent captures that. The *line* is the sending end of an ipc-channel channel, on which
//! the worker sends [`Hello`]. If there are initializers, finalizers or a sandbox, the parent answers with [`Control::Setup`],
//! which has them, over a channel that came with the hello; and the worker writes the result of each initializer into its ring of
//! replies, as if it were the result of an input. From then on everything goes through the rings.
//!
//! The arguments lie in shared memory of our own. ipc-channel's shared memory panics when a system call fails, which would
//! take down the thread that starts workers.
//!
//! ipc-channel's receiving calls have no time limit that covers a whole message, and panic at malformed messages. So the
//! parent calls them only before the worker runs code of the user's, and only when there is something to receive: with each
//! message the worker writes a byte to the socket, for which the parent can poll.
//!
//! # The line
//!
//! ipc-channel's own way to connect to a new process, the one-shot server, is a file in the temporary directory. A killed
//! process would leave that file behind, strangers could connect to its name, and creating it takes longer than everything
//! else here. So parent and worker each make a channel, the parent hands over the descriptor of its sending end, and the
//! worker replaces the descriptor of its own sending end with it. ipc-channel shows the number of that descriptor only in the
//! `Debug` output of a sender: see [`descriptor_of`].

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ipc_channel::ipc::{self, IpcReceiver, IpcSender};
use ipc_channel::{IpcError, TryRecvError};
use rustix::fs::{Mode, OFlags, fstat};
use rustix::io::{DupFlags, Errno, fcntl_dupfd_cloexec};
use rustix::net::sockopt::socket_type;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recv, recvmsg, send,
    sendmsg, shutdown, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::attach::Attachment;
use crate::capture::{Ends, Marks, Token};
use crate::memory::Constant;
use crate::registry;
use crate::report::Tells;
use crate::sandbox::Sandbox;
use crate::scarce::no;

/// Must be the same on both sides; they are the same binary, so a difference is a bug of ours.
const VERSION: u32 = 7;

/// What a worker is told first, along with its descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// If the worker must wait for [`Control::Setup`] before the first task: how many bytes of arguments that has.
    pub(crate) setup: Option<usize>,
    /// How many attachments come before the initializers run.
    pub(crate) attachments: usize,
    /// How many CPUs the pool may use.
    pub(crate) cpus: usize,
    /// Whether to report after each input how much memory is in use.
    pub(crate) tells_memory: bool,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub(crate) decode_stack: usize,
    /// The token for marks in the worker's output, if the parent captures that.
    pub(crate) marks: Option<Token>,
    /// What to report about the inputs that it runs.
    pub(crate) tells: Tells,
}

/// A worker's first message.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    token: String,
    version: u32,
    fingerprint: u64,
    /// Where to send [`Control::Setup`], if there is anything in it.
    control: Option<IpcSender<Control>>,
}

/// The first byte of a packet on the socket. `LOOK`: the worker has sent something. `UNFIT`: this process can't be a worker;
/// the rest is the reason.
const LOOK: u8 = 1;
const UNFIT: u8 = 2;

/// The parent's answer.
#[derive(Debug, Serialize, Deserialize)]
enum Control {
    Setup(Steps),
}

/// What a worker does besides running inputs, in order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Steps {
    /// Before its first task.
    pub(crate) initializers: Vec<Step>,
    /// When it exits normally.
    pub(crate) finalizers: Vec<Step>,
    /// What it is confined to after the initializers.
    pub(crate) sandbox: Option<Sandbox>,
}

/// A task that is run for its effect, and the place of its arguments among those of all steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Step {
    task: u32,
    at: usize,
    len: usize,
}

impl Step {
    /// The number of the task.
    pub(crate) fn task(&self) -> u32 {
        self.task
    }

    /// Its arguments.
    pub(crate) fn arguments<'a>(&self, all: Option<&'a Constant>) -> &'a [u8] {
        let all = all.map_or(&[][..], Constant::bytes);
        all.get(self.at..self.at + self.len).unwrap_or_default()
    }
}

/// Arguments are aligned to this, so that blocks of numbers in them can be read in place.
const ALIGN: usize = 16;

/// What every worker of a pool runs before its first task, and after its last.
pub struct Setup {
    steps: Steps,
    len: usize,
    /// The bytes of the arguments, in memory that all workers share; `None` if there are none.
    args: Option<OwnedFd>,
    /// The attachments that the arguments refer to.
    held: Vec<Arc<Attachment>>,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").finish_non_exhaustive()
    }
}

impl Setup {
    /// Takes the numbers of tasks, each with its encoded arguments, and the attachments that these refer to; and what workers
    /// are confined to once the initializers have run. All workers share the arguments.
    ///
    /// # Errors
    ///
    /// If there is no shared memory for the arguments.
    pub fn new(
        initializers: &[(u32, &[u8])],
        finalizers: &[(u32, &[u8])],
        held: &[Arc<Attachment>],
        sandbox: Option<Sandbox>,
    ) -> io::Result<Setup> {
        let mut all = Vec::new();
        add_all(held, &mut all);
        let (mut parts, mut len) = (Vec::new(), 0);
        let steps = Steps {
            initializers: lay_out(initializers, &mut parts, &mut len),
            finalizers: lay_out(finalizers, &mut parts, &mut len),
            sandbox,
        };
        let made = (len > 0).then(|| Constant::create("pool-arguments", &parts));
        let made = made.transpose();
        Ok(Setup {
            steps,
            len,
            args: made.map_err(no("shared memory for the arguments of initializers"))?,
            held: all,
        })
    }

    /// What workers are confined to after that.
    pub(crate) fn sandbox(&self) -> Option<&Sandbox> {
        self.steps.sandbox.as_ref()
    }

    /// From now on, a worker that can't enter all of its sandbox is no worker.
    pub(crate) fn need_whole_sandbox(&mut self) {
        if let Some(sandbox) = &mut self.steps.sandbox {
            sandbox.best_effort = false;
        }
    }

    /// How many initializers there are.
    pub(crate) fn initializers(&self) -> usize {
        self.steps.initializers.len()
    }

    /// How many bytes of arguments.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The attachments that the arguments refer to, each behind those that it refers to itself.
    pub(crate) fn held(&self) -> &[Arc<Attachment>] {
        &self.held
    }
}

/// Lays out arguments behind the first `len` bytes, with gaps that keep them aligned.
fn lay_out<'a>(tasks: &[(u32, &'a [u8])], parts: &mut Vec<&'a [u8]>, len: &mut usize) -> Vec<Step> {
    let lay = |(task, args): &(u32, &'a [u8])| {
        let gap = len.wrapping_neg() % ALIGN;
        parts.extend([&[0; ALIGN][..gap], args]);
        let at = *len + gap;
        *len = at + args.len();
        Step {
            task: *task,
            at,
            len: args.len(),
        }
    };
    tasks.iter().map(lay).collect()
}

/// Adds these attachments and those that they refer to: each once, and behind those that it refers to.
fn add_all(these: &[Arc<Attachment>], all: &mut Vec<Arc<Attachment>>) {
    for one in these {
        if !all.iter().any(|known| Arc::ptr_eq(known, one)) {
            add_all(one.holds(), all);
            all.push(Arc::clone(one));
        }
    }
}

// ---- the parent's side ----------------------------------------------------------------------------

/// The two ends of a worker's first socket: the parent's, and the worker's standard input.
pub(crate) fn socket() -> io::Result<(OwnedFd, OwnedFd)> {
    let both = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    both.map_err(|error| no("socket for a worker")(error.into()))
}

/// The parent's part of the conversation.
pub(crate) struct Talk {
    socket: OwnedFd,
    token: String,
    stage: Stage,
    setup: Option<Arc<Setup>>,
}

enum Stage {
    Expected(IpcReceiver<Hello>),
    Initializing,
    Over,
}

impl fmt::Debug for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Talk")
    }
}

/// What a worker said during its start.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that matters yet.
    Nothing,
    /// Nothing, and it will not say anything more.
    Gone,
    /// It is ready for inputs.
    Ready,
    /// An initializer has ended, or so the worker claims: its result is in the ring.
    SetUp,
    /// That it can't be a worker, or something that no worker of ours would say. It should be killed.
    Unfit(String),
}

/// Both ends of the line to a worker.
pub(crate) struct Line {
    theirs: IpcSender<Hello>,
    ours: IpcReceiver<Hello>,
}

impl Talk {
    /// Introduces a worker that has the other end of `socket`. `handed`: the memory of its rings, that of the bell, and the
    /// socket for attachments.
    pub(crate) fn begin(
        socket: OwnedFd,
        line: Line,
        token: String,
        introduction: &Introduction,
        setup: Option<Arc<Setup>>,
        handed: [BorrowedFd<'_>; 3],
        output: Option<&Ends>,
    ) -> io::Result<Talk> {
        let Line { theirs, ours } = line;
        let text = postcard::to_stdvec(introduction).map_err(io::Error::other)?;
        let theirs = descriptor_of(&theirs)?;
        let [rings, bell, attachments] = handed;
        let mut fds = vec![rings, bell, theirs, attachments];
        fds.extend(
            setup
                .iter()
                .filter_map(|setup| Some(setup.args.as_ref()?.as_fd())),
        );
        fds.extend(
            output
                .iter()
                .flat_map(|ends| [ends.out.as_fd(), ends.err.as_fd()]),
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(7))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(
            &socket,
            &[IoSlice::new(&text)],
            &mut ancillary,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
        match sent {
            // If the process does not become a worker, its program may read standard input: let it find the end of file
            // there.
            Ok(_) => shutdown(&socket, Shutdown::Write)?,
            // It has already ended. What it said before, or how it ended, is what the user must be told: `hear` finds it.
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Talk {
            socket,
            token,
            stage: Stage::Expected(ours),
            setup,
        })
    }

    /// Readable when the worker has said something, or is gone.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Receives what the worker has said, if anything. Does not wait.
    pub(crate) fn hear(&mut self) -> Said {
        loop {
            let mut packet = [0; 512];
            match next_packet(&self.socket, &mut packet) {
                Ok(None) => return Said::Nothing,
                Ok(Some(0)) => return Said::Gone,
                Ok(Some(len)) => {
                    if let Some(why) = unfit(&packet[..len]) {
                        return Said::Unfit(why);
                    }
                }
                Err(error) => return Said::Unfit(no("message from it")(error).to_string()),
            }
            match self.hear_one() {
                Ok(Said::Nothing) => {}
                Ok(said) => return said,
                Err(why) => return Said::Unfit(why),
            }
        }
    }

    /// The reason why it can't be a worker, if its next packet is that.
    fn last_word(&self) -> Option<String> {
        let mut packet = [0; 512];
        let len = next_packet(&self.socket, &mut packet).ok()??;
        unfit(&packet[..len])
    }

    fn hear_one(&mut self) -> Result<Said, String> {
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Expected(line) => {
                // The greeting brings a descriptor. If there were none left for that, ipc-channel would panic, which must not
                // end the supervisor.
                if self.setup.is_some() {
                    let spare = fcntl_dupfd_cloexec(&self.socket, 0);
                    drop(spare.map_err(|error| {
                        no("descriptor for its greeting")(error.into()).to_string()
                    })?);
                }
                let received = panic::catch_unwind(AssertUnwindSafe(|| line.try_recv()));
                let received = received.map_err(|_| "its greeting can't be received".to_owned())?;
                let hello = match received {
                    Ok(hello) => hello,
                    Err(TryRecvError::Empty) => {
                        self.stage = Stage::Expected(line);
                        return Ok(Said::Nothing);
                    }
                    Err(error) => return Err(format!("its greeting can't be read: {error}")),
                };
                if hello.token != self.token {
                    return Err("another process answered in its place".to_owned());
                }
                if hello.version != VERSION || hello.fingerprint != registry::fingerprint() {
                    return Err(
                        "it is a different program: its protocol or its tasks differ".to_owned(),
                    );
                }
                let Some(setup) = self.setup.take() else {
                    return Ok(Said::Ready);
                };
                let control = hello
                    .control
                    .ok_or("it sent no channel for its initializers")?;
                control
                    .send(Control::Setup(setup.steps.clone()))
                    .map_err(|error| {
                        // It may be gone, and may have sent the reason before.
                        let why = self.last_word();
                        why.unwrap_or_else(|| format!("it can't be set up: {error}"))
                    })?;
                self.stage = Stage::Initializing;
                Ok(Said::Nothing)
            }
            Stage::Initializing => {
                self.stage = Stage::Initializing;
                Ok(Said::SetUp)
            }
            Stage::Over => Ok(Said::Nothing),
        }
    }
}

/// Receives the next packet, and returns its length, which is 0 if the other process is gone; `None` if nothing has come yet.
/// Does not wait. (What is longer than the buffer is cut.)
pub(crate) fn next_packet(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let most = buffer.len();
    loop {
        match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((len, _)) => return Ok(Some(len.min(most))),
            Err(Errno::AGAIN) => return Ok(None),
            // On CONNRESET, it is gone without having read everything; what it sent comes next.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The reason why a process can't be a worker, if the packet holds that.
fn unfit(packet: &[u8]) -> Option<String> {
    let why = String::from_utf8_lossy(packet.strip_prefix(&[UNFIT])?);
    Some(format!("it can't be a worker: {why}"))
}

/// A line for one worker.
pub(crate) fn line() -> io::Result<Line> {
    measure_sockets().map_err(no("channel to a worker"))?;
    let (theirs, ours) = ipc::channel().map_err(no("channel to a worker"))?;
    Ok(Line { theirs, ours })
}

/// The descriptor behind the sending end of a channel. Only the sender's `Debug` output shows it, so the number found there
/// is checked: it must be a socket of the kind that channels are made of.
fn descriptor_of<T: fmt::Debug>(sender: &IpcSender<T>) -> io::Result<BorrowedFd<'_>> {
    let unknown = || io::Error::other("this version of ipc-channel hides its descriptors");
    let shown = format!("{sender:?}");
    let (_, rest) = shown
        .split_once("SharedFileDescriptor(")
        .ok_or_else(unknown)?;
    let (number, _) = rest.split_once(')').ok_or_else(unknown)?;
    let number: RawFd = number.parse().map_err(|_| unknown())?;
    if number < 0 {
        return Err(unknown());
    }
    // SAFETY: the sender keeps the descriptor open for as long as it is borrowed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    if socket_type(descriptor)? != SocketType::SEQPACKET {
        return Err(unknown());
    }
    Ok(descriptor)
}

/// Makes the sending end of a channel from a descriptor that came from another process.
fn sender_over(descriptor: OwnedFd) -> io::Result<IpcSender<Hello>> {
    let (sender, _receiver) = ipc::channel()?;
    let place = descriptor_of(&sender)?;
    // SAFETY: the descriptor is the sender's, which keeps it: this `OwnedFd` is not dropped.
    let place = unsafe { OwnedFd::from_raw_fd(place.as_raw_fd()) };
    rustix::io::dup3(descriptor, &mut ManuallyDrop::new(place), DupFlags::CLOEXEC)?;
    Ok(sender)
}

/// With its first message ipc-channel measures, once per process, how much a socket holds. If it has no descriptors for that,
/// it can never send a message again. So this is done early, before descriptors can have run out.
fn measure_sockets() -> io::Result<()> {
    static MEASURED: AtomicBool = AtomicBool::new(false);
    if MEASURED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let (sender, _receiver) = ipc::bytes_channel()?;
    drop(ipc::bytes_channel()?);
    send_first(|| sender.send(b"how much?"))??;
    MEASURED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Sends what may be the first message of this process, for which ipc-channel panics if it can't measure.
fn send_first<T>(send: impl FnOnce() -> T) -> io::Result<T> {
    panic::catch_unwind(AssertUnwindSafe(send)).map_err(|_| {
        io::Error::other(
            "ipc-channel could not measure how much a socket holds, and can't try again in this process",
        )
    })
}

// ---- the worker's side ----------------------------------------------------------------------------

/// What a worker received over its standard input.
pub(crate) struct Handed {
    pub(crate) introduction: Introduction,
    /// The memory of its rings.
    pub(crate) rings: OwnedFd,
    pub(crate) bell: OwnedFd,
    pub(crate) line: Speaker,
    /// The socket for attachments.
    pub(crate) attachments: OwnedFd,
    /// The arguments of its initializers and finalizers.
    pub(crate) args: Option<OwnedFd>,
    /// For marks in its output.
    pub(crate) marks: Option<Marks>,
}

/// The worker's end of the line.
pub(crate) struct Speaker(IpcSender<Hello>);

/// The worker's end of its first socket.
pub(crate) struct Voice {
    socket: Own,
}

/// A descriptor of ours in a process that runs code of the user's. That code may close it and open something else under its
/// number, so it is closed only if it still refers to the same file.
pub(crate) struct Own {
    fd: ManuallyDrop<OwnedFd>,
    identity: Option<(u64, u64)>,
}

impl Own {
    pub(crate) fn new(fd: OwnedFd) -> Own {
        Own {
            identity: identity_of(&fd),
            fd: ManuallyDrop::new(fd),
        }
    }

    /// The descriptor, if it still refers to the same file.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        (identity_of(&self.fd) == self.identity).then(|| self.fd.as_fd())
    }
}

impl AsFd for Own {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn identity_of(fd: &OwnedFd) -> Option<(u64, u64)> {
    let stat = fstat(fd).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

impl Voice {
    /// Whether the socket is still open under its number.
    pub(crate) fn is_intact(&self) -> bool {
        self.socket.get().is_some()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.get().is_some() {
            // SAFETY: it is not used again.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// Tells the parent why this process can't be a worker, if the parent still listens.
pub(crate) fn say_unfit(error: &io::Error, socket: impl AsFd) {
    let mut packet = vec![UNFIT];
    packet.extend(error.to_string().bytes().take(500));
    let _ = send(socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Takes the socket that the parent has passed as standard input, and replaces that by /dev/null.
pub(crate) fn take_socket() -> io::Result<Voice> {
    let socket = fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
    let socket = socket.map_err(|error| no("descriptor for its socket")(error.into()))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty());
    let null = null.map_err(|error| no("/dev/null for its standard input")(error.into()))?;
    rustix::stdio::dup2_stdin(null)
        .map_err(|error| no("/dev/null for its standard input")(error.into()))?;
    let socket = Own::new(socket);
    Ok(Voice { socket })
}

/// Receives what the parent hands over.
pub(crate) fn receive_introduction(voice: &Voice) -> io::Result<Handed> {
    let broken = || io::Error::other("this worker received no introduction");
    let mut text = [0; 128];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(7))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        let received = recvmsg(
            &voice.socket,
            &mut [IoSliceMut::new(&mut text)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Err(Errno::INTR) => {}
            received => break received?.bytes,
        }
    };
    let fds = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
        _ => None,
    });
    let introduction: Introduction = postcard::from_bytes(&text[..len]).map_err(|_| broken())?;
    let mut fds = fds.into_iter().flatten();
    let mut next = || fds.next().ok_or_else(broken);
    let (rings, bell, line, attachments) = (next()?, next()?, next()?, next()?);
    let args = match introduction.setup {
        None | Some(0) => None,
        Some(_) => Some(next()?),
    };
    let marks = match introduction.marks {
        Some(token) => Some(Marks::begin(token, next()?, next()?)?),
        None => None,
    };
    Ok(Handed {
        introduction,
        rings,
        bell,
        line: Speaker(sender_over(line)?),
        attachments,
        args,
        marks,
    })
}

impl AsFd for Voice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Voice {
    /// Sends the hello; then waits for the initializers and finalizers, if the introduction has announced them.
    pub(crate) fn greet(
        &self,
        line: Speaker,
        token: String,
        has_setup: bool,
    ) -> io::Result<Option<Steps>> {
        let unheard = no("channel to greet its parent");
        let (control, controls) = if has_setup {
            let (control, controls) = ipc::channel().map_err(&unheard)?;
            (Some(control), Some(controls))
        } else {
            (None, None)
        };
        let hello = Hello {
            token,
            version: VERSION,
            fingerprint: registry::fingerprint(),
            control,
        };
        send_first(|| line.0.send(hello))
            .and_then(|sent| sent.map_err(io::Error::other))
            .map_err(&unheard)?;
        // ipc-channel's descriptors are closed before code of the user's might close them: ipc-channel would panic then.
        drop(line);
        self.announce().map_err(unheard)?;
        let Some(controls) = controls else {
            return Ok(None);
        };
        let setup = loop {
            match controls.recv() {
                Err(IpcError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                setup => break setup,
            }
        };
        match setup {
            Ok(Control::Setup(steps)) => Ok(Some(steps)),
            Err(error) => {
                // If this were closed now, the parent would notice that before it receives the reason.
                mem::forget(controls);
                Err(no("message about its initializers")(io::Error::other(
                    error,
                )))
            }
        }
    }

    /// Tells the parent that a message was sent.
    pub(crate) fn announce(&self) -> io::Result<()> {
        loop {
            match send(&self.socket, &[LOOK], SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipc_channel_shows_the_descriptor_of_a_sender() {
        let (sender, receiver) = ipc::channel::<Hello>().expect("there are descriptors");
        let theirs = descriptor_of(&sender).expect("it is shown");
        let theirs = theirs.try_clone_to_owned().expect("there are descriptors");
        drop(sender);
        let hello = Hello {
            token: "token".to_owned(),
            version: VERSION,
            fingerprint: 1,
            control: None,
        };
        let sender = sender_over(theirs).expect("it is shown");
        sender.send(hello).expect("there is room");
        assert_eq!(receiver.recv().expect("it was sent").token, "token");
        // This was the last sender.
        drop(sender);
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn what_was_said_by_who_ended_without_reading_is_heard() {
        let (ours, theirs) = socket().expect("there are descriptors");
        send(&ours, b"ignored", SendFlags::DONTWAIT).expect("there is room");
        send(&theirs, b"word", SendFlags::DONTWAIT).expect("there is room");
        drop(theirs);
        let mut buffer = [0; 16];
        let mut next = || next_packet(&ours, &mut buffer).expect("that is no failure");
        assert_eq!(next(), Some(4));
        assert_eq!(next(), Some(0));
    }

    #[test]
    fn what_a_worker_said_before_it_was_introduced_is_heard() {
        for unfit in [true, false] {
            let (ours, theirs) = socket().expect("there are descriptors");
            if unfit {
                say_unfit(&io::Error::other("it is ill"), &theirs);
            }
            drop(theirs);
            let introduction = Introduction {
                setup: None,
                attachments: 0,
                cpus: 1,
                tells_memory: false,
                decode_stack: 0,
                marks: None,
                tells: Tells::default(),
            };
            let line = line().expect("there are descriptors");
            let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty());
            let null = null.expect("it is there");
            let handed = [null.as_fd(); 3];
            let token = String::new();
            let mut talk = Talk::begin(ours, line, token, &introduction, None, handed, None)
                .expect("the end of a worker is no failure of the introduction");
            let expected = if unfit {
                Said::Unfit("it can't be a worker: it is ill".to_owned())
            } else {
                Said::Gone
            };
            assert_eq!(talk.hear(), expected);
        }
    }
}
