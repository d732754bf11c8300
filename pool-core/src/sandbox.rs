//! [`Sandbox`]: what workers may do to the rest of the system.

use std::ffi::OsString;
use std::path::{self, Path};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// What sandboxed workers may do: see [`PoolBuilder::sandbox`](crate::PoolBuilder::sandbox), and the
/// [chapter](crate::guide::sandbox) of the guide.
///
/// A new one lets a worker compute, use memory, tell the time, wait, draw random numbers, end itself, and read and write what
/// is already open: what its initializers have opened, and descriptors 0, 1 and 2. Each method permits something more, or sets
/// a limit. [`read`](Sandbox::read) and [`write`](Sandbox::write) may be called several times, for several paths.
///
/// Descriptors 1 and 2 are opened anew, only for writing, if they are a pipe, a terminal, or a file that is always appended
/// to, and the user of the program may open it. If they are anything else, what a worker does to them holds for the program
/// as well: it can move the position in a file, and read from a socket. A worker that is permitted paths or the network can
/// also read from a pipe, and so take what the program prints there. With [`Output::Capture`](crate::Output::Capture),
/// [`Output::lines`](crate::Output::lines) or [`Output::Null`](crate::Output::Null) it can do none of that.
///
/// A worker can open at most 256 descriptors besides those that initializers have left open, and 1024 if paths, the network or
/// processes are permitted. Of what all processes of its user may have together, it can have at most half: waiting signals and
/// timers; threads and processes, if these are permitted; descriptors on their way to other processes, if the network is.
///
/// # What is never permitted
///
/// - Signals to processes that the worker has not started.
/// - Changing the owner, the permissions, the times or the attributes of a file; creating links, named pipes, sockets and
///   devices, or files that run with the rights of their owner (setuid).
/// - Leaving the session or the process group, so what the worker starts ends with it; changing the user; starting a process
///   in a new namespace.
/// - Sockets of other families than IPv4 and IPv6, and raw ones (a pair of connected Unix sockets is permitted together with the
///   network, threads or processes); System V shared memory, semaphores and message queues; POSIX message queues;
///   `memfd_create`.
/// - Changing limits and priorities; opening the memory of other processes (`/proc/PID/mem`).
///
/// These fail with "permission denied" or "operation not permitted" (EACCES, EPERM), so a library that merely asks goes on.
///
/// `clone3` and `openat2` fail as if the kernel did not have them (ENOSYS), and libraries use older calls then. Moving a file
/// or a directory to another directory may fail as if that were on another file system (EXDEV): if more is permitted there.
///
/// A call that only an attacker would make ends the worker, and [`WorkerLost`](crate::error::WorkerLost) names it: `ptrace`,
/// `process_vm_readv`, `process_vm_writev`, `bpf`, `perf_event_open`, `userfaultfd`, `io_uring_setup`, `keyctl`, `mount`,
/// `chroot`, `unshare`, `setns`, `init_module`, `kexec_load` and their relatives.
///
/// # Examples
///
/// A decoder that only gets bytes and returns bytes:
///
/// ```
/// use std::time::Duration;
/// use pool_core::{Error, Pool, Sandbox, pool_task};
///
/// #[pool_task]
/// fn decode(bytes: &[u8]) -> Vec<u8> {
///     // Whatever hostile bytes make this code do, it can't read this file.
///     assert!(std::fs::read("/etc/hostname").is_err());
///     bytes.iter().map(|byte| byte ^ 0x55).collect()
/// }
///
/// # fn main() -> Result<(), Error> {
/// let pool = Pool::builder()
///     .processes(2)
///     .sandbox(Sandbox::new().memory(1 << 30).cpu_time(Duration::from_secs(60)))
///     .build()?;
/// assert_eq!(pool.apply(decode, (vec![1, 2],))?, [0x54, 0x57]);
/// # Ok(())
/// # }
/// ```
///
/// What a task needs in addition:
///
/// ```
/// use pool_core::Sandbox;
///
/// // Reads its fonts, writes its results, decodes with several threads.
/// let renderer = Sandbox::new().read("/usr/share/fonts").write("/tmp/rendered").threads();
/// // Runs a command, which needs its libraries.
/// let command = Sandbox::new().processes().read("/usr").read("/lib").read("/lib64");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "it does nothing until it is given to `PoolBuilder::sandbox`"]
pub struct Sandbox(pool_worker::Sandbox);

impl Sandbox {
    /// Permits nothing beyond what every worker may do.
    pub fn new() -> Sandbox {
        Sandbox::default()
    }

    /// Permits reading this file; or this directory and everything in it, without limit of depth. With
    /// [`processes`](Sandbox::processes), also running it.
    ///
    /// A relative path starts from the directory that is the program's current one when this is called. A symbolic link is
    /// followed when a worker starts, and what it points to then is permitted. If there is no such file when the pool is built,
    /// or the program can't reach it, [`build`](crate::PoolBuilder::build) fails. If it is gone later, replacements of workers
    /// fail to start.
    ///
    /// What the user of the program may not read, a worker may not read either.
    ///
    /// With this, `write` or `network`, a worker can find out which files exist anywhere, how long they are, and when they
    /// were changed: Linux does not restrict that. It may also read and write `/dev/null` then. Don't permit `/` or `/proc`, which
    /// shows the command lines of other processes.
    pub fn read(mut self, path: impl AsRef<Path>) -> Self {
        self.0.read.push(absolute(path.as_ref()));
        self
    }

    /// Permits writing to this file; or to files in this directory, and creating, renaming and removing files and directories
    /// in it. It does not permit reading: for that, call [`read`](Sandbox::read) as well. What is said there about paths holds
    /// here, too.
    ///
    /// Don't permit a path that lies in a directory that may be written: a worker can put another directory in its place, and
    /// the next worker is then permitted that.
    pub fn write(mut self, path: impl AsRef<Path>) -> Self {
        self.0.write.push(absolute(path.as_ref()));
        self
    }

    /// Permits TCP and UDP over IPv4 and IPv6, to and from any address, and reading the files with which the C library looks
    /// up the names of hosts (`/etc/resolv.conf`, `/etc/hosts` and the like). That includes services on this machine.
    ///
    /// A worker can then have at most half as many descriptors as the program may: all that processes of one user send to each
    /// other over sockets have one limit together.
    pub fn network(mut self) -> Self {
        self.0.network = true;
        self
    }

    /// Permits starting threads.
    ///
    /// Threads that an initializer has started go on without it. But where paths, the network or processes are permitted, a
    /// worker whose initializers have left threads fails to start: before Linux 7.0, and as root always.
    ///
    /// A worker can then start only half as many threads and processes as its user may have. (Linux does not limit root.)
    pub fn threads(mut self) -> Self {
        self.0.threads = true;
        self
    }

    /// Permits starting processes, which are confined like the worker, and signals to them. To run a program, a worker must
    /// also be permitted to [`read`](Sandbox::read) its file and its libraries.
    ///
    /// They end with the worker, since they can't leave its process group. (If the program is killed, they only do so with
    /// [`contain`](crate::PoolBuilder::contain).) As to their number, see [`threads`](Sandbox::threads).
    pub fn processes(mut self) -> Self {
        self.0.processes = true;
        self
    }

    /// Sets by how many bytes the address space of a worker may grow beyond what it is after the initializers. (Each process
    /// that the worker starts may use as much.) An allocation that exceeds it fails; if the task then aborts, as Rust's
    /// standard library does, the outcome is [`Error::MemoryLimit`].
    ///
    /// [`memory_limit`](crate::PoolBuilder::memory_limit) counts memory that is really used, but is checked only from time to
    /// time, and whoever has taken over a worker can evade it; this limit can't be exceeded at all. What the kernel itself
    /// keeps for a worker, as the contents of pipes and sockets, is not part of the address space; the number of descriptors
    /// bounds that.
    ///
    /// Default: no limit. 0 is refused.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.0.memory = Some(bytes);
        self
    }

    /// Sets how much processor time a worker may use, all its threads together. (Each process that it starts may use as much.)
    /// One that uses more is killed (SIGXCPU), and the outcome of its input is [`Error::WorkerLost`].
    ///
    /// This is the time of the worker's whole life. So that no input pays for those before it, a worker that is seen to have
    /// used half of it is replaced by a fresh one after the chunk that it has begun: each chunk can use nearly half. (Without
    /// [`chunksize`](crate::Call::chunksize), each input counts as a chunk.) The kernel counts whole seconds. What the worker
    /// has used for its start is added to the limit, and the sum is rounded up: one second may become almost two. For the time
    /// of one input, see [`time_limit`](crate::PoolBuilder::time_limit).
    ///
    /// Default: no limit. Zero is refused.
    pub fn cpu_time(mut self, time: Duration) -> Self {
        self.0.cpu_time = Some(time);
        self
    }

    /// Does without what the sandbox needs and the machine lacks. [`Stats::unenforced`](crate::Stats::unenforced) and
    /// [`Event::SandboxIncomplete`](crate::Event::SandboxIncomplete) say what that is.
    ///
    /// Default: [`build`](crate::PoolBuilder::build) fails and says what is missing. Every sandbox needs seccomp filters of
    /// system calls (x86-64, aarch64 or riscv64); one that permits paths or the network needs Landlock (Linux 6.2), and one
    /// that permits processes needs Linux 6.12.
    pub fn best_effort(mut self) -> Self {
        self.0.best_effort = true;
        self
    }

    /// What the worker's end needs to know.
    pub(crate) fn inner(&self) -> &pool_worker::Sandbox {
        &self.0
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |why| Err(Error::invalid_setting("sandbox", why));
        if self.0.memory == Some(0) {
            return invalid("`memory` must be greater than zero");
        }
        if self.0.cpu_time.is_some_and(|time| time.is_zero()) {
            return invalid("`cpu_time` must be greater than zero");
        }
        let mut paths = self.0.read.iter().chain(&self.0.write);
        if paths.any(|path| path.is_empty()) {
            return invalid("a path must not be empty");
        }
        Ok(())
    }
}

/// Workers may have another current directory.
fn absolute(path: &Path) -> OsString {
    let absolute = path::absolute(path);
    absolute.map_or_else(|_| path.into(), OsString::from)
}
