//! How a fresh worker and its parent find each other.
//!
//! ipc-channel's one-shot server listens on a socket in a directory of its own below the temporary
//! directory. Files are what a killed process leaves behind, and names are what strangers can
//! connect to. So the parent keeps hold of the socket by an `O_PATH` descriptor, removes file and
//! directory at once, and gives the descriptor to its worker as standard input: the worker connects
//! to `/proc/self/fd/0`. (What is left is the moment between ipc-channel's `mkdir` and our `rmdir`.)

use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic;
use std::path::{self, Path};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use ipc_channel::ipc::{self, IpcOneShotServer, IpcSender};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat};

use crate::protocol::Greeting;

/// Where one worker is expected.
pub(crate) type Server = IpcOneShotServer<Greeting>;

/// The parent's hold of the socket.
#[derive(Debug)]
pub(crate) struct Door(OwnedFd);

impl Door {
    /// The door as the standard input of a process.
    pub(crate) fn to_stdin(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.0.try_clone()?))
    }

    /// Says, in the place of the worker, that nobody will come. If somebody has, this does nothing.
    pub(crate) fn give_up(&self) {
        if let Ok(connection) = connect(self.0.as_raw_fd()) {
            let _ = connection.send(Greeting::GiveUp);
        }
    }
}

/// Connects to the parent, in a worker.
pub(crate) fn connect_through_stdin() -> io::Result<IpcSender<Greeting>> {
    let connection = connect(0)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty())?;
    rustix::stdio::dup2_stdin(null)?;
    Ok(connection)
}

fn connect(door: i32) -> io::Result<IpcSender<Greeting>> {
    IpcSender::connect(format!("/proc/self/fd/{door}"))
}

/// Opens a server for one worker.
pub(crate) fn open() -> io::Result<(Server, Door)> {
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
    let made = panic::catch_unwind(Server::new)
        .map_err(|_| failed("no directory could be made in it".to_owned()))?;
    let (server, name) = made.map_err(|error| failed(error.to_string()))?;
    let door = rustix::fs::open(&name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let socket = Path::new(&name);
    let _ = fs::remove_file(socket);
    if let Some(directory) = socket.parent() {
        let _ = fs::remove_dir(directory);
    }
    let door = door.map_err(|error| failed(io::Error::from(error).to_string()))?;
    Ok((server, Door(door)))
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
