//! How a fresh worker and its parent find each other, and what they say before the first task: the one
//! module that knows ipc-channel.
//!
//! # The conversation
//!
//! A worker's standard input is a socket, over which the parent hands it an [`Introduction`] and three
//! descriptors: the memory of its rings, the bell, and the door. The *door* is ipc-channel's one-shot
//! server. The worker connects and says [`Greeting::Hello`]; if there is an initializer, the parent
//! answers with [`Control::Setup`], its arguments in shared memory, and the worker says `Ready` or
//! `Failed`. From then on everything goes through the rings.
//!
//! ipc-channel's receiving calls have no time limit that covers all of a message, so the parent calls them
//! only when there is something to receive: with each message the worker writes a byte to the socket, for
//! which the parent can poll.
//!
//! # The door
//!
//! ipc-channel's server listens on a socket in a directory of its own below the temporary directory.
//! Files are what a killed process leaves behind, and names are what strangers can connect to. So the
//! parent keeps hold of the socket by an `O_PATH` descriptor, and removes file and directory at once; the
//! worker connects to `/proc/self/fd/N`. (What is left is the moment between ipc-channel's `mkdir` and
//! our `rmdir`.)

use std::env;
use std::fmt;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic;
use std::path::{self, Path};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recv, recvmsg, send,
    sendmsg, shutdown, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::registry;

/// Must be the same on both sides; they are the same binary, so a difference is a fault of ours.
const VERSION: u32 = 2;

/// A message that was announced is there. If it is not, the announcement was none.
const ANNOUNCED: Duration = Duration::from_millis(200);

/// What a worker is told first, besides its descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Introduction {
    /// Whether to wait for [`Control::Setup`] before the first task.
    pub(crate) initializer: bool,
    /// How many CPUs the pool may use.
    pub(crate) cpus: usize,
}

/// What a worker says.
#[derive(Serialize, Deserialize)]
enum Greeting {
    Hello(Hello),
    /// The initializer is through.
    Ready,
    /// The initializer failed.
    Failed(Fault),
}

#[derive(Serialize, Deserialize)]
struct Hello {
    token: String,
    version: u32,
    fingerprint: u64,
    /// Where to say what to set up, if there is something.
    control: Option<IpcSender<Control>>,
}

/// What the parent says.
#[derive(Serialize, Deserialize)]
enum Control {
    Setup {
        task: u32,
        args: Option<IpcSharedMemory>,
    },
}

/// What every worker of a pool runs before its first task.
#[derive(Clone)]
pub struct Setup {
    task: u32,
    /// `None`: no bytes, of which there is no shared memory.
    args: Option<IpcSharedMemory>,
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").finish_non_exhaustive()
    }
}

impl Setup {
    /// A task's number, and its encoded arguments, which all workers share.
    ///
    /// # Errors
    ///
    /// If there is no shared memory for the arguments.
    pub fn new(task: u32, args: &[u8]) -> io::Result<Setup> {
        let args = match args {
            [] => None,
            args => Some(
                // ipc-channel asserts where it maps memory.
                panic::catch_unwind(|| IpcSharedMemory::from_bytes(args)).map_err(|_| {
                    io::Error::other("no shared memory for the arguments of the initializer")
                })?,
            ),
        };
        Ok(Setup { task, args })
    }
}

// ---- the parent's side ----------------------------------------------------------------------------

/// The two ends of a worker's first socket: the parent's, and the worker's standard input.
pub(crate) fn socket() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The parent's part of the conversation.
pub(crate) struct Talk {
    socket: OwnedFd,
    token: String,
    stage: Stage,
    setup: Option<Arc<Setup>>,
}

enum Stage {
    Expected(IpcOneShotServer<Greeting>),
    Initializing(IpcReceiver<Greeting>),
    Over,
}

impl fmt::Debug for Talk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Talk")
    }
}

/// What a worker has said.
#[derive(Debug)]
pub enum Said {
    /// Nothing that matters yet.
    Nothing,
    /// Nothing, and it will not say anything any more.
    Gone,
    /// It takes tasks.
    Ready,
    /// Its initializer failed. It exits by itself.
    Failed(Fault),
    /// What no worker of ours says. It should be killed.
    Garbled(String),
}

/// The door: where a worker is expected, and the descriptor by which it comes.
pub(crate) struct Door(IpcOneShotServer<Greeting>, OwnedFd);

impl Talk {
    /// Introduces a worker that has the other end of `socket`. `memory` is that of its rings and of the
    /// bell.
    pub(crate) fn begin(
        socket: OwnedFd,
        door: Door,
        token: String,
        cpus: usize,
        setup: Option<Arc<Setup>>,
        memory: [BorrowedFd<'_>; 2],
    ) -> io::Result<Talk> {
        let Door(server, door) = door;
        let introduction = Introduction {
            initializer: setup.is_some(),
            cpus,
        };
        let text = postcard::to_stdvec(&introduction).map_err(io::Error::other)?;
        let fds = [memory[0], memory[1], door.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
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
            stage: Stage::Expected(server),
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
            let mut byte = [0; 1];
            match recv(&self.socket, &mut byte[..], RecvFlags::DONTWAIT) {
                Ok((_, 1..)) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Said::Nothing,
                Ok((_, 0)) | Err(_) => return Said::Gone,
            }
            match self.hear_one() {
                Ok(Said::Nothing) => {}
                Ok(said) => return said,
                Err(why) => return Said::Garbled(why),
            }
        }
    }

    fn hear_one(&mut self) -> Result<Said, String> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Expected(server) => {
                // ipc-channel asserts where it maps memory and counts descriptors: a process that runs
                // out of either must not lose a thread to that.
                let accepted = panic::catch_unwind(panic::AssertUnwindSafe(|| server.accept()))
                    .map_err(|_| "no memory or no descriptor left for its channel".to_owned())?;
                let (receiver, greeting) =
                    accepted.map_err(|error| format!("its greeting can't be read: {error}"))?;
                let Greeting::Hello(hello) = greeting else {
                    return Err("it does not say hello".to_owned());
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
                let what = Control::Setup {
                    task: setup.task,
                    args: setup.args.clone(),
                };
                control
                    .send(what)
                    .map_err(|error| format!("it can't be set up: {error}"))?;
                self.stage = Stage::Initializing(receiver);
                Ok(Said::Nothing)
            }
            Stage::Initializing(receiver) => match receiver.try_recv_timeout(ANNOUNCED) {
                Ok(Greeting::Ready) => Ok(Said::Ready),
                Ok(Greeting::Failed(fault)) => Ok(Said::Failed(fault)),
                Ok(Greeting::Hello(_)) => Err("it says hello twice".to_owned()),
                Err(error) => Err(format!("what it says can't be read: {error}")),
            },
            Stage::Over => Ok(Said::Nothing),
        }
    }
}

/// Opens a door for one worker. To be done before there is a worker: a parent that is killed in here may
/// leave a file behind.
pub(crate) fn open_door() -> io::Result<Door> {
    let failed = |why: String| {
        let directory = env::temp_dir();
        io::Error::other(format!(
            "no bootstrap socket in the temporary directory {}: {why}",
            directory.display()
        ))
    };
    check_temporary_directory()?;
    measure_sockets()?;
    // ipc-channel asserts that an error in making the directory has no number, and tempfile gives
    // it one without.
    let made = panic::catch_unwind(IpcOneShotServer::new)
        .map_err(|_| failed("no directory could be made in it".to_owned()))?;
    let (server, name) = made.map_err(|error| failed(error.to_string()))?;
    let door = rustix::fs::open(&name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let socket = Path::new(&name);
    let _ = fs::remove_file(socket);
    if let Some(directory) = socket.parent() {
        let _ = fs::remove_dir(directory);
    }
    let door = door.map_err(|error| failed(io::Error::from(error).to_string()))?;
    Ok(Door(server, door))
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
    sender.send(b"how much?")?;
    MEASURED.store(true, Ordering::Relaxed);
    Ok(())
}

/// ipc-channel cuts a socket name that is too long, and panics where it can't make the file.
fn check_temporary_directory() -> io::Result<()> {
    /// The field for the name is 108 bytes long; the rest is "/.tmpXXXXXX/socket" and a zero.
    const MAX: usize = 108 - 19;
    // The socket's name begins at the root, whatever this one begins at.
    let directory = path::absolute(env::temp_dir())?;
    let may_make_files = || {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        accessat(CWD, &directory, wanted, AtFlags::EACCESS)
    };
    let why = match directory.to_str() {
        None => "is not UTF-8".to_owned(),
        Some(name) if name.len() > MAX => "is too long for the name of a socket".to_owned(),
        Some(_) => match may_make_files() {
            Ok(()) => return Ok(()),
            Err(error) => format!("will not do: {}", io::Error::from(error)),
        },
    };
    Err(io::Error::other(format!(
        "the temporary directory {} {why}; set TMPDIR to another",
        directory.display()
    )))
}

// ---- the worker's side ----------------------------------------------------------------------------

/// What a worker was handed over its standard input.
pub(crate) struct Handed {
    pub(crate) introduction: Introduction,
    /// The memory of its rings.
    pub(crate) rings: OwnedFd,
    pub(crate) bell: OwnedFd,
    pub(crate) voice: Voice,
}

/// The worker's part of the conversation.
pub(crate) struct Voice {
    socket: OwnedFd,
    /// Until it has gone through.
    door: Mutex<Option<OwnedFd>>,
    connection: OnceLock<IpcSender<Greeting>>,
}

/// Takes what the parent hands over standard input, which becomes /dev/null.
pub(crate) fn receive_introduction() -> io::Result<Handed> {
    let broken = || io::Error::other("nobody introduces this worker");
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty())?;
    rustix::stdio::dup2_stdin(null)?;
    let mut text = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        let received = recvmsg(
            &socket,
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
        RecvAncillaryMessage::ScmRights(fds) => {
            <[OwnedFd; 3]>::try_from(fds.collect::<Vec<_>>()).ok()
        }
        _ => None,
    });
    let [rings, bell, door] = fds.ok_or_else(broken)?;
    Ok(Handed {
        introduction: postcard::from_bytes(&text[..len]).map_err(|_| broken())?,
        rings,
        bell,
        voice: Voice {
            socket,
            door: Mutex::new(Some(door)),
            connection: OnceLock::new(),
        },
    })
}

impl Voice {
    /// Says hello; then waits for what to set up, if the introduction has said so, and does it.
    pub(crate) fn greet(
        &self,
        token: String,
        initializer: bool,
        initialize: impl FnOnce(u32, &[u8]) -> Result<(), Fault>,
    ) -> io::Result<bool> {
        let door = self.door.lock().ok().and_then(|mut door| door.take());
        let door = door.ok_or(io::ErrorKind::NotConnected)?;
        let path = format!("/proc/self/fd/{}", door.as_raw_fd());
        let _ = self.connection.set(IpcSender::connect(path)?);
        // Who hears us may look at what we have open.
        drop(door);
        let (control, controls) = if initializer {
            let (control, controls) = ipc::channel()?;
            (Some(control), Some(controls))
        } else {
            (None, None)
        };
        self.say(Greeting::Hello(Hello {
            token,
            version: VERSION,
            fingerprint: registry::fingerprint(),
            control,
        }))?;
        let Some(controls) = controls else {
            return Ok(true);
        };
        let Control::Setup { task, args } = controls.recv().map_err(io::Error::other)?;
        let result = initialize(task, args.as_deref().unwrap_or_default());
        let ready = result.is_ok();
        self.say(match result {
            Ok(()) => Greeting::Ready,
            Err(fault) => Greeting::Failed(fault),
        })?;
        Ok(ready)
    }

    fn say(&self, greeting: Greeting) -> io::Result<()> {
        let connection = self.connection.get().ok_or(io::ErrorKind::NotConnected)?;
        connection.send(greeting).map_err(io::Error::other)?;
        send(&self.socket, &[1], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// What a process says of its initializer that ends with it.
    pub(crate) fn say_failed(&self, fault: Fault) {
        let _ = self.say(Greeting::Failed(fault));
    }
}
