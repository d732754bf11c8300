//! How a fresh worker and its parent find each other, and what they say before the first task: the one
//! module that knows ipc-channel.
//!
//! # The conversation
//!
//! A worker's standard input is a socket, over which the parent hands it an [`Introduction`] and four to seven
//! descriptors: the memory of its rings, the bell, the line, where attachments come, the arguments of initializers and finalizers, and
//! the pipes for its output if the parent wants that. The *line* is the
//! sending end of a channel of ipc-channel's, on which the worker says [`Hello`]. If there are initializers, or finalizers, the parent
//! answers with [`Control::Setup`] over a channel that came with the hello; and the worker writes what came of each into
//! its ring of replies, as if it were the result of an input. What it is to run when it leaves comes with that. From then on everything goes through the rings.
//!
//! The arguments are memory of ours and not of ipc-channel's, whose own panics where a system call fails, and with it
//! the thread that starts workers would.
//!
//! ipc-channel's receiving calls have no time limit that covers all of a message, and don't survive a message
//! that is none. So the parent calls them only before the worker runs code of the user's, and when there is
//! something to receive: with each thing that it says the worker writes a byte to the socket, for which the
//! parent can poll.
//!
//! # The line
//!
//! ipc-channel's own way to a new process, the one-shot server, is a file in the temporary directory. Files
//! are what a killed process leaves behind, names are what strangers can connect to, and both take longer than
//! everything else here. So parent and worker each make a channel, the parent hands over the descriptor of its
//! sending end, and the worker puts it in the place of that of its own. Which number that is, ipc-channel tells
//! in the `Debug` of a sender alone: see [`descriptor_of`].

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
use rustix::io::{DupFlags, fcntl_dupfd_cloexec};
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
use crate::scarce::no;

/// Must be the same on both sides; they are the same binary, so a difference is a fault of ours.
const VERSION: u32 = 6;

/// What a worker is told first, besides its descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// Whether to wait for [`Control::Setup`] before the first task; how many bytes of arguments it has.
    pub(crate) setup: Option<usize>,
    /// How many attachments come before that.
    pub(crate) attachments: usize,
    /// How many CPUs the pool may use.
    pub(crate) cpus: usize,
    /// Whether to say after each input how much memory is in use.
    pub(crate) tells_memory: bool,
    /// How much of the stack a value may take while it is decoded, in bytes.
    pub(crate) decode_stack: usize,
    /// What marks its output, if that goes to the parent.
    pub(crate) marks: Option<Token>,
    /// What to report of the inputs that it runs.
    pub(crate) tells: Tells,
}

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    token: String,
    version: u32,
    fingerprint: u64,
    /// Where to say what to set up, if there is something.
    control: Option<IpcSender<Control>>,
}

/// The first byte of a packet on the socket: the worker has said something, or the rest is the reason
/// why it will not do.
const LOOK: u8 = 1;
const UNFIT: u8 = 2;

/// What the parent says.
#[derive(Debug, Serialize, Deserialize)]
enum Control {
    Setup(Steps),
}

/// What a worker runs beside tasks, in order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Steps {
    /// Before its first task.
    pub(crate) initializers: Vec<Step>,
    /// When it leaves in good order.
    pub(crate) finalizers: Vec<Step>,
}

/// A task that is run for its effect, and where its arguments lie among those of all.
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

/// Numbers among arguments are read in place if they are aligned so.
const ALIGN: usize = 16;

/// What every worker of a pool runs before its first task, and after its last.
pub struct Setup {
    steps: Steps,
    len: usize,
    /// The bytes, which all workers share; none, if there are none.
    args: Option<OwnedFd>,
    /// What they refer to.
    held: Vec<Arc<Attachment>>,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").finish_non_exhaustive()
    }
}

impl Setup {
    /// The numbers of tasks, each with its encoded arguments, which all workers share; and what those refer to.
    ///
    /// # Errors
    ///
    /// If there is no shared memory for the arguments.
    pub fn new(
        initializers: &[(u32, &[u8])],
        finalizers: &[(u32, &[u8])],
        held: &[Arc<Attachment>],
    ) -> io::Result<Setup> {
        let mut all = Vec::new();
        add_all(held, &mut all);
        let (mut parts, mut len) = (Vec::new(), 0);
        let steps = Steps {
            initializers: lay_out(initializers, &mut parts, &mut len),
            finalizers: lay_out(finalizers, &mut parts, &mut len),
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

    /// How many initializers there are.
    pub(crate) fn initializers(&self) -> usize {
        self.steps.initializers.len()
    }

    /// How many bytes of arguments.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What the arguments refer to.
    pub(crate) fn held(&self) -> &[Arc<Attachment>] {
        &self.held
    }
}

/// Puts arguments behind the `len` bytes that there are, with gaps between them that keep them aligned.
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

/// Adds these and what they refer to, each once, and behind what it refers to.
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

/// What a worker has said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that matters yet.
    Nothing,
    /// Nothing, and it will not say anything any more.
    Gone,
    /// It takes tasks.
    Ready,
    /// An initializer has come to an end, unless it lies: its ring tells to which.
    SetUp,
    /// That it can't be a worker, or what no worker of ours says. It should be killed.
    Unfit(String),
}

/// Both ends of the line to a worker.
pub(crate) struct Line {
    theirs: IpcSender<Hello>,
    ours: IpcReceiver<Hello>,
}

impl Talk {
    /// Introduces a worker that has the other end of `socket`. `handed` is the memory of its rings and of the
    /// bell, and where attachments come.
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
        sendmsg(
            &socket,
            &[IoSlice::new(&text)],
            &mut ancillary,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        // A program that knows nothing of pools may read its standard input: let it come to the end.
        shutdown(&socket, Shutdown::Write)?;
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

    /// Hears what the worker has said, if anything. Does not wait.
    pub(crate) fn hear(&mut self) -> Said {
        loop {
            let mut packet = [0; 512];
            match recv(&self.socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((len @ 1.., _)) => {
                    if let Some(why) = unfit(&packet[..len.min(packet.len())]) {
                        return Said::Unfit(why);
                    }
                }
                // It is gone, and has not read all; what it has said comes next.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => continue,
                Err(rustix::io::Errno::AGAIN) => return Said::Nothing,
                Ok((0, _)) => return Said::Gone,
                Err(error) => {
                    let error = no("way to hear it")(error.into());
                    return Said::Unfit(error.to_string());
                }
            }
            match self.hear_one() {
                Ok(Said::Nothing) => {}
                Ok(said) => return said,
                Err(why) => return Said::Unfit(why),
            }
        }
    }

    /// Why it will not do, if that is what it says next.
    fn last_word(&self) -> Option<String> {
        let mut packet = [0; 512];
        let (len, _) = recv(&self.socket, &mut packet[..], RecvFlags::DONTWAIT).ok()?;
        unfit(&packet[..len.min(packet.len())])
    }

    fn hear_one(&mut self) -> Result<Said, String> {
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Expected(line) => {
                // ipc-channel asserts where it counts descriptors, and the supervisor must not be lost to that. One
                // comes with the greeting.
                if self.setup.is_some() {
                    let spare = fcntl_dupfd_cloexec(&self.socket, 0);
                    drop(spare.map_err(|error| no("way to greet it")(error.into()).to_string())?);
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
                    return Err("somebody else answered in its place".to_owned());
                }
                if hello.version != VERSION || hello.fingerprint != registry::fingerprint() {
                    return Err(
                        "it is another program: its protocol or its tasks differ".to_owned()
                    );
                }
                let Some(setup) = self.setup.take() else {
                    return Ok(Said::Ready);
                };
                let control = hello.control.ok_or("it has no ear for its initializer")?;
                control
                    .send(Control::Setup(setup.steps.clone()))
                    .map_err(|error| {
                        // It may be gone, and have said why.
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

/// Why a worker will not do, if it says so.
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

/// The descriptor behind the sending end of a channel. Its `Debug` is all that shows it, so whatever is found
/// there is looked at: it must be a socket of the kind that channels are made of.
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
    // SAFETY: the sender that shows it keeps it open for as long as it is borrowed.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    if socket_type(descriptor)? != SocketType::SEQPACKET {
        return Err(unknown());
    }
    Ok(descriptor)
}

/// The sending end of a channel whose descriptor came from another process.
fn sender_over(descriptor: OwnedFd) -> io::Result<IpcSender<Hello>> {
    let (sender, _receiver) = ipc::channel()?;
    let place = descriptor_of(&sender)?;
    // SAFETY: the sender's, and it keeps it: this one is not dropped.
    let place = unsafe { OwnedFd::from_raw_fd(place.as_raw_fd()) };
    rustix::io::dup3(descriptor, &mut ManuallyDrop::new(place), DupFlags::CLOEXEC)?;
    Ok(sender)
}

/// With its first message ipc-channel measures what a socket holds, once and for all; if it has no
/// descriptors for that, it never sends a message again. So it does that here, where descriptors
/// have just been seen.
fn measure_sockets() -> io::Result<()> {
    static MEASURED: AtomicBool = AtomicBool::new(false);
    if MEASURED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let (sender, _receiver) = ipc::bytes_channel()?;
    drop(ipc::bytes_channel()?);
    let sent = panic::catch_unwind(AssertUnwindSafe(|| sender.send(b"how much?")));
    sent.map_err(|_| {
        io::Error::other(
            "ipc-channel could not measure what a socket holds, and won't in this process",
        )
    })??;
    MEASURED.store(true, Ordering::Relaxed);
    Ok(())
}

// ---- the worker's side ----------------------------------------------------------------------------

/// What a worker was handed over its standard input.
pub(crate) struct Handed {
    pub(crate) introduction: Introduction,
    /// The memory of its rings.
    pub(crate) rings: OwnedFd,
    pub(crate) bell: OwnedFd,
    pub(crate) line: Speaker,
    /// Where attachments come.
    pub(crate) attachments: OwnedFd,
    /// The arguments of its initializers and finalizers.
    pub(crate) args: Option<OwnedFd>,
    /// What marks its output.
    pub(crate) marks: Option<Marks>,
}

/// The worker's end of the line.
pub(crate) struct Speaker(IpcSender<Hello>);

/// The worker's end of its first socket.
pub(crate) struct Voice {
    socket: Own,
}

/// A descriptor of ours in a process that runs code of the user's, which may close what is not its own, and open something
/// else in its place. So it is closed only if it is still the same.
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

    /// It, if it is still there.
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
    /// Whether it is still what it was.
    pub(crate) fn is_intact(&self) -> bool {
        self.socket.get().is_some()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if self.get().is_some() {
            // SAFETY: it is used no more.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// Tells the parent why this process will not do, if it hears.
pub(crate) fn say_unfit(error: &io::Error, socket: impl AsFd) {
    let mut packet = vec![UNFIT];
    packet.extend(error.to_string().bytes().take(500));
    let _ = send(socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// The socket that the parent has given as standard input, which becomes /dev/null.
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

/// Takes what the parent hands over.
pub(crate) fn receive_introduction(voice: &Voice) -> io::Result<Handed> {
    let broken = || io::Error::other("nobody introduces this worker");
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
            Err(rustix::io::Errno::INTR) => {}
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
    /// Says hello; then waits for what to set up, if the introduction has said that there is something.
    pub(crate) fn greet(
        &self,
        line: Speaker,
        token: String,
        has_setup: bool,
    ) -> io::Result<Option<Steps>> {
        let unheard = no("way to greet its parent");
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
        line.0
            .send(hello)
            .map_err(|error| unheard(io::Error::other(error)))?;
        // What ipc-channel holds is closed before code of the user's may close it, which ipc-channel would not survive.
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
                // Were it closed now, the parent would see that before it hears why.
                mem::forget(controls);
                Err(no("word of its initializer")(io::Error::other(error)))
            }
        }
    }

    /// Has the parent look for what was said.
    pub(crate) fn announce(&self) -> io::Result<()> {
        loop {
            match send(&self.socket, &[LOOK], SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
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
        // It was the last of them.
        drop(sender);
        assert!(receiver.recv().is_err());
    }
}
