//! What an attempt aims at: files, sockets and a process that the test has made for it alone.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// What is in the file that may not be read.
pub(super) const SECRET: &str = "only for those who may read this";

/// A number in the memory of this process, which nobody else may read.
static NUMBER: u64 = NUMBER_THERE;
pub(super) const NUMBER_THERE: u64 = 0x5eed_5eed_5eed_5eed;

/// What the one who makes the attempt is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Aims {
    /// With `file`, `link` to it, `empty`, `full/inner`, and the sockets `stream` and `datagram`.
    pub(super) directory: PathBuf,
    /// Ports on 127.0.0.1.
    pub(super) tcp: u16,
    pub(super) udp: u16,
    /// A process that can be killed, and an address in its memory.
    pub(super) victim: u32,
    pub(super) address: u64,
    /// The test itself, and the address of [`NUMBER_THERE`] in its memory.
    pub(super) parent: u32,
    pub(super) number: u64,
    /// The other workers.
    pub(super) workers: Vec<u32>,
}

impl Aims {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The name of an abstract socket.
    pub(super) fn name(&self) -> Vec<u8> {
        name_in(&self.directory)
    }

    pub(super) fn sibling(&self) -> u32 {
        *self.workers.first().expect("there are two")
    }
}

fn name_in(directory: &Path) -> Vec<u8> {
    directory.as_os_str().as_encoded_bytes().to_vec()
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) aims: Aims,
    tcp: TcpListener,
    udp: UdpSocket,
    streams: [UnixListener; 2],
    datagram: UnixDatagram,
    victim: Child,
    before: BTreeMap<String, String>,
    /// Kept to the end.
    _directory: TempDir,
}

impl Scene {
    /// Makes one below this directory.
    pub(super) fn new_in(parent: &Path, workers: Vec<u32>) -> Scene {
        Scene::make(parent, workers).expect("a directory, sockets, and a process")
    }

    fn make(parent: &Path, workers: Vec<u32>) -> io::Result<Scene> {
        let made = tempfile::tempdir_in(parent)?;
        let directory = made.path().to_owned();
        let path = |name: &str| directory.join(name);
        fs::write(path("file"), SECRET)?;
        fs::set_permissions(path("file"), fs::Permissions::from_mode(0o644))?;
        symlink("file", path("link"))?;
        fs::create_dir(path("empty"))?;
        fs::create_dir(path("full"))?;
        fs::write(path("full/inner"), "inner")?;
        let abstract_name = SocketAddr::from_abstract_name(name_in(&directory))?;
        let streams = [
            UnixListener::bind(path("stream"))?,
            UnixListener::bind_addr(&abstract_name)?,
        ];
        let datagram = UnixDatagram::bind(path("datagram"))?;
        let (tcp, udp) = (
            TcpListener::bind("127.0.0.1:0")?,
            UdpSocket::bind("127.0.0.1:0")?,
        );
        for stream in &streams {
            stream.set_nonblocking(true)?;
        }
        datagram.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        // In a group of its own, so that a signal to its group reaches nobody else.
        let victim = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let aims = Aims {
            tcp: tcp.local_addr()?.port(),
            udp: udp.local_addr()?.port(),
            victim: victim.id(),
            address: stack_of(victim.id())?,
            parent: process::id(),
            number: (&raw const NUMBER).addr() as u64,
            directory,
            workers,
        };
        let mut scene = Scene {
            aims,
            tcp,
            udp,
            streams,
            datagram,
            victim,
            before: BTreeMap::new(),
            _directory: made,
        };
        scene.before = scene.look();
        Ok(scene)
    }

    /// What has changed since the beginning.
    pub(super) fn touched(&mut self) -> Vec<String> {
        let now = self.look();
        let names = self.before.keys().chain(now.keys());
        let mut changes: Vec<String> = names
            .filter(|name| self.before.get(*name) != now.get(*name))
            .map(|name| {
                format!(
                    "{name}: {:?} became {:?}",
                    self.before.get(name),
                    now.get(name)
                )
            })
            .collect();
        changes.dedup();
        self.before = now;
        changes
    }

    fn look(&mut self) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        look_at(&self.aims.directory, &mut seen);
        let mut see = |what: &str, text: String| drop(seen.insert(what.to_owned(), text));
        see("tcp", format!("{}", self.tcp.accept().is_ok()));
        see("udp", format!("{:?}", self.udp.recv(&mut [0]).is_ok()));
        for (name, stream) in ["stream", "abstract"].iter().zip(&self.streams) {
            see(name, format!("{}", stream.accept().is_ok()));
        }
        see(
            "datagram",
            format!("{}", self.datagram.recv(&mut [0]).is_ok()),
        );
        let pid = self.victim.id();
        let exists = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let rest = stat
                .rsplit_once(')')
                .map(|(_, rest)| rest.trim_start().to_owned());
            rest.is_some_and(|rest| !rest.starts_with(['Z', 'X']))
        };
        see("victim", format!("{}", exists(pid)));
        for (name, pid) in [("victim", pid), ("parent", process::id())] {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits"));
            see(
                &format!("limits of the {name}"),
                limits.unwrap_or_else(|_| "none".to_owned()),
            );
            see(&format!("scheduling of the {name}"), scheduling(pid));
        }
        let mut word = [0; 8];
        let read = fs::File::open(format!("/proc/{pid}/mem")).and_then(|memory| {
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut word, self.aims.address)
        });
        see("memory", format!("{:?} {word:?}", read.is_ok()));
        seen
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

/// Everything about the files in a directory, except when they were last read.
fn look_at(directory: &Path, seen: &mut BTreeMap<String, String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(data) = fs::symlink_metadata(&path) else {
            continue;
        };
        let text = format!(
            "{:o} {}:{} {} {} {}.{} {:?} {:?}",
            data.mode(),
            data.uid(),
            data.gid(),
            data.nlink(),
            data.len(),
            data.mtime(),
            data.mtime_nsec(),
            data.is_file()
                .then(|| fs::read(&path).ok().map(|it| it.escape_ascii().to_string())),
            attributes(&path),
        );
        seen.insert(path.display().to_string(), text);
        if data.is_dir() {
            look_at(&path, seen);
        }
    }
}

/// The names of its extended attributes.
fn attributes(path: &Path) -> Vec<u8> {
    let mut names = vec![0; 1024];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    names.truncate(len);
    names
}

fn scheduling(pid: u32) -> String {
    let pid = pid as libc::pid_t;
    // SAFETY: asks about a process.
    let policy = unsafe { libc::sched_getscheduler(pid) };
    // SAFETY: as above.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, pid as libc::id_t) };
    // SAFETY: all zeros is an empty set.
    let mut cpus: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: writes to a variable of ours.
    unsafe { libc::sched_getaffinity(pid, mem::size_of_val(&cpus), &raw mut cpus) };
    format!("{policy} {nice} {cpus:?}")
}

/// Where the stack of a process ends: there is the name of its program, which nobody needs.
fn stack_of(pid: u32) -> io::Result<u64> {
    loop {
        // `spawn` returns when the program has been loaded.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let stack = maps.lines().find(|line| line.ends_with("[stack]"));
        let end = stack.and_then(|line| line.split(['-', ' ']).nth(1));
        if let Some(end) = end.and_then(|end| u64::from_str_radix(end, 16).ok()) {
            return Ok(end - 16);
        }
    }
}
