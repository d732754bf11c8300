//! Sandboxed workers: what a worker may do once its initializers have run.
//!
//! Three things of Linux together: a *seccomp* filter, which decides about each system call by its number and its arguments
//! ([`filter`]); *Landlock*, which decides about paths, and about signals to other processes ([`landlock`]); and resource
//! limits. None can be undone by the process, and all that it starts inherits them.
//!
//! The parent checks what the kernel offers ([`check`]), and the worker enters the sandbox ([`enter`]).
//!
//! Besides, the process gives up capabilities, and opens its standard streams for itself ([`streams`]).
//!
//! A forbidden call fails with EPERM, or with EACCES if it is Landlock that forbids it. Some calls end the worker: those that
//! are of no use to a program that reads data. For these the filter makes the kernel send SIGSYS, whose handler notes the
//! number of the call where the parent can read it.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::process;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, gettid, set_capabilities};
use serde::{Deserialize, Serialize};

use crate::flush::Flusher;
use crate::lineage::lineage;
use crate::resident;
use crate::ring::Replies;
use crate::scarce::no;
use crate::unwind;
use crate::zygote;

#[cfg_attr(
    not(all(
        target_pointer_width = "64",
        any(
            target_arch = "x86_64",
            target_arch = "aarch64",
            target_arch = "riscv64"
        )
    )),
    path = "sandbox/no_filter.rs"
)]
mod filter;
mod landlock;
mod streams;

pub(crate) use filter::name_of as name_of_call;

/// What sandboxed workers may do, besides computing, using memory, telling the time, and reading and writing what is open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Files that they may read; and directories, with everything in them.
    pub read: Vec<OsString>,
    /// Files that they may write; and directories, in which they may also create and remove files and directories.
    pub write: Vec<OsString>,
    /// Use the network.
    pub network: bool,
    /// Start threads.
    pub threads: bool,
    /// Start processes.
    pub processes: bool,
    /// By how many bytes their address space may grow.
    pub memory: Option<u64>,
    /// How much processor time each may use.
    pub cpu_time: Option<Duration>,
    /// Whether to go on if the kernel lacks something.
    pub best_effort: bool,
}

/// Something that a sandbox needs and the kernel lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Filters of system calls.
    Filter,
    /// Rules for paths.
    Paths,
    /// The same for truncating files.
    Truncate,
    /// Refusal of signals to processes outside.
    Signals,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Filter => {
                "filters of system calls: this kernel or container has no seccomp filters, or they are not known for this \
                 processor"
            }
            Part::Paths => {
                "rules for paths: this kernel has no Landlock, or it is not enabled (Linux 5.13 has it; see the `lsm=` \
                 parameter of the kernel; a container may forbid it)"
            }
            Part::Truncate => "rules for truncating files: this kernel's Landlock is older than Linux 6.2",
            Part::Signals => {
                "refusal of signals to other processes: this kernel's Landlock is older than Linux 6.12"
            }
        })
    }
}

/// What the kernel offers.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    filter: bool,
    paths: bool,
    truncate: bool,
    signals: bool,
}

impl Kernel {
    fn of_this_machine() -> Kernel {
        Kernel {
            filter: filter::is_supported(),
            paths: landlock::has_paths(),
            truncate: landlock::has_truncate(),
            signals: landlock::has_signals(),
        }
    }
}

impl Sandbox {
    /// Whether calls that take a path are let through, so that only Landlock decides about them.
    fn opens(&self) -> bool {
        self.network || !self.read.is_empty() || !self.write.is_empty()
    }

    /// Whether Landlock must decide about paths: those of files, or of programs.
    fn needs_paths(&self) -> bool {
        self.opens() || self.processes
    }

    /// Whether it depends on Landlock, as far as that is not missing.
    fn needs_rules(&self, missing: &[Part]) -> bool {
        (self.needs_paths() && !missing.contains(&Part::Paths))
            || (self.processes && !missing.contains(&Part::Signals))
    }

    /// What this sandbox needs and the kernel lacks. Where the filter refuses all calls of a kind, Landlock is a second wall,
    /// which is not needed.
    fn missing_in(&self, kernel: Kernel) -> Vec<Part> {
        let needs = [
            (Part::Filter, true, kernel.filter),
            (Part::Paths, self.needs_paths(), kernel.paths),
            (
                Part::Truncate,
                self.opens(),
                kernel.truncate || !kernel.paths,
            ),
            // Without this permission the filter lets a process send signals only to itself.
            (Part::Signals, self.processes, kernel.signals),
        ];
        let lacks = needs.into_iter().filter(|(_, needed, has)| *needed && !has);
        lacks.map(|(part, ..)| part).collect()
    }
}

/// Checks a sandbox in the parent. Returns what is missing; something only can be if it is to be entered as far as possible.
///
/// # Errors
///
/// If a path can't be opened, or if the kernel lacks something that is needed.
pub(crate) fn check(sandbox: &Sandbox) -> io::Result<Vec<String>> {
    for path in sandbox.read.iter().chain(&sandbox.write) {
        landlock::check(path)?;
    }
    let missing = texts(&sandbox.missing_in(Kernel::of_this_machine()));
    if missing.is_empty() || sandbox.best_effort {
        return Ok(missing);
    }
    Err(io::Error::other(format!(
        "the sandbox needs what this machine lacks: {} (`Sandbox::best_effort` goes on without)",
        missing.join("; ")
    )))
}

fn texts(missing: &[Part]) -> Vec<String> {
    missing.iter().map(Part::to_string).collect()
}

fn not_entered(why: impl fmt::Display) -> io::Error {
    io::Error::other(format!("the sandbox can't be entered: {why}"))
}

/// Makes this process a sandboxed worker. Whatever needs to be open must be open by now.
///
/// # Errors
///
/// If the kernel refuses something, or a path can't be opened. The process may be restricted in part by then, and must end.
pub(crate) fn enter(sandbox: &Sandbox, flusher: &mut Flusher) -> io::Result<()> {
    // This reads files, and `std` keeps what it has read.
    unwind::load_symbols();
    resident::keep_open();
    streams::reopen();
    limit(sandbox).map_err(no("resource limit for the sandbox"))?;
    let kernel = Kernel::of_this_machine();
    let missing = sandbox.missing_in(kernel);
    // An initializer may have made the process lack more than its parent does.
    if !missing.is_empty() && !sandbox.best_effort {
        let missing = texts(&missing).join("; ");
        return Err(not_entered(format!("this process lacks {missing}")));
    }
    check_threads(sandbox, &missing)?;
    landlock::restrict(sandbox, &missing)?;
    drop_capabilities(sandbox).map_err(|error| not_entered(format!("capabilities: {error}")))?;
    // Other processes of this user can't read the memory of this one, and no crash writes it to a file.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| not_entered(format!("its memory can't be closed to others: {error}")))?;
    watch(flusher.replies().clone());
    if !sandbox.threads {
        // Not earlier: before Linux 7.0, rules for paths do not hold for threads that exist.
        flusher.prepare();
    }
    // What entering takes does not count.
    limit_memory(sandbox).map_err(no("limit of memory for the sandbox"))?;
    if kernel.filter {
        filter::install(sandbox, kernel.paths)?;
    }
    Ok(())
}

/// The capabilities without which root could not use what it is permitted.
fn needed(sandbox: &Sandbox) -> CapabilitySet {
    let mut needed = CapabilitySet::empty();
    if !sandbox.read.is_empty() || !sandbox.write.is_empty() {
        needed |= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    }
    if sandbox.network {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    needed
}

/// Gives up the other capabilities that root has.
fn drop_capabilities(sandbox: &Sandbox) -> io::Result<()> {
    let kept = needed(sandbox);
    let has = capabilities(None)?;
    let kept = CapabilitySets {
        effective: has.effective & kept,
        permitted: has.permitted & kept,
        inheritable: has.inheritable & kept,
    };
    if kept != has {
        set_capabilities(None, kept)?;
    }
    Ok(())
}

/// Checks that there are no other threads, if these could do more than this one.
fn check_threads(sandbox: &Sandbox, missing: &[Part]) -> io::Result<()> {
    let escape_rules = sandbox.needs_rules(missing) && !landlock::has_all_threads();
    // A thread can give up only its own capabilities. Where no calls need them, they are of little use.
    let has = capabilities(None);
    let has = has.map_err(|error| not_entered(format!("capabilities: {error}")))?;
    let is_powerful = !needed(sandbox).contains(has.permitted);
    let keep_powers = is_powerful && (sandbox.opens() || sandbox.processes);
    if !escape_rules && !keep_powers {
        return Ok(());
    }
    let others = zygote::threads_left().map_err(no("list of its threads"))?;
    if others.is_empty() {
        return Ok(());
    }
    let why = match escape_rules {
        true => "rules for paths and signals restrict only from Linux 7.0 on",
        false => "would keep the capabilities of root",
    };
    Err(not_entered(format!(
        "initializers have left threads (`{}`), which {why}; let a task start them",
        others.join("`, `")
    )))
}

fn limit_memory(sandbox: &Sandbox) -> io::Result<()> {
    if let Some(bytes) = sandbox.memory {
        let used = resident::address_space()
            .ok_or_else(|| io::Error::other("the size of the address space is unknown"))?;
        lower(Resource::As, used.saturating_add(bytes), 0)?;
    }
    Ok(())
}

/// Sets the other resource limits.
fn limit(sandbox: &Sandbox) -> io::Result<()> {
    // The programs that it runs could leave their memory to others otherwise. (Unlike 0, 1 also holds where the kernel passes
    // it to a program.)
    let core = getrlimit(Resource::Core)
        .maximum
        .map_or(1, |most| most.min(1));
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(core),
            maximum: Some(core),
        },
    )?;
    if let Some(time) = sandbox.cpu_time {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let used = Duration::new(used.tv_sec as u64, used.tv_nsec as u32);
        // SIGXCPU, and a second later SIGKILL, for those that ignore it.
        lower(Resource::Cpu, seconds(used.saturating_add(time)), 1)?;
    }
    leave_others_half(sandbox)?;
    limit_descriptors(sandbox)
}

/// How many descriptors a worker may open.
const DESCRIPTORS: u64 = 1024;
/// The same if it has no use for many: nothing is permitted that has to be opened.
const DESCRIPTORS_WITHOUT_FILES: u64 = 256;

/// The kernel keeps data for each descriptor, and for each that an epoll watches, which no limit for memory counts. What epolls
/// watch is the product of two numbers, and all processes of a user have one limit together.
fn limit_descriptors(sandbox: &Sandbox) -> io::Result<()> {
    let most = match sandbox.opens() || sandbox.processes {
        true => DESCRIPTORS,
        false => DESCRIPTORS_WITHOUT_FILES,
    };
    // It has the lowest number that is free: so many are open at least.
    let next = eventfd(0, EventfdFlags::CLOEXEC)?;
    lower(Resource::Nofile, most + next.as_raw_fd() as u64, 0)?;
    Ok(())
}

/// Of some things all processes of a user may have so many together, and each process is told the limit for itself. Half of
/// it for a worker leaves the other half to processes that are not sandboxed.
fn leave_others_half(sandbox: &Sandbox) -> io::Result<()> {
    let starts = sandbox.threads || sandbox.processes;
    let shared = [
        // Signals that wait, and timers.
        (Resource::Sigpending, true),
        // Threads and processes.
        (Resource::Nproc, starts),
        // Descriptors that are sent to another process and have not arrived. (And those that each process has open.)
        (Resource::Nofile, sandbox.network),
    ];
    for (resource, is_permitted) in shared {
        if let (true, Some(limit)) = (is_permitted, getrlimit(resource).current) {
            lower(resource, limit / 2, 0)?;
        }
    }
    Ok(())
}

/// In whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// Lowers a limit, and does not raise it; the hard one is that much higher than the soft one.
fn lower(resource: Resource, limit: u64, more: u64) -> rustix::io::Result<()> {
    let now = getrlimit(resource);
    let least = |now: Option<u64>, new: u64| Some(now.map_or(new, |now| now.min(new)));
    let maximum = least(now.maximum, limit.saturating_add(more));
    setrlimit(
        resource,
        Rlimit {
            current: least(now.current, limit),
            maximum,
        },
    )
}

// ---- calls that end the worker --------------------------------------------------------------------

static REPLIES: OnceLock<Replies> = OnceLock::new();

/// The [`lineage`] of the worker.
static WORKER: OnceLock<u32> = OnceLock::new();

/// Installs the handler of SIGSYS. (The filter does not let anyone replace it.)
fn watch(replies: Replies) {
    let _ = REPLIES.set(replies);
    let _ = WORKER.set(lineage());
    // SAFETY: all zeros means an empty signal set, no flags, and no handler.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_forbidden_call as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: the handler does only what is allowed in a signal handler.
    unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) };
}

/// What the kernel says about a SIGSYS, which `libc` does not describe.
#[repr(C)]
struct ForbiddenCall {
    signal: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    address: *const libc::c_void,
    number: libc::c_int,
    arch: libc::c_uint,
}

/// The code of a SIGSYS that comes from a filter.
const SYS_SECCOMP: libc::c_int = 1;

/// Notes which call it was, and sends the signal again, which then ends the process.
extern "C" fn on_forbidden_call(
    signal: libc::c_int,
    info: *const libc::siginfo_t,
    _: *const libc::c_void,
) {
    // SAFETY: the kernel passes this to a handler with SA_SIGINFO, and for SIGSYS it has this form.
    let info = unsafe { &*info.cast::<ForbiddenCall>() };
    // A copy that a task has made by `fork` ends alone.
    if info.code == SYS_SECCOMP
        && WORKER.get() == Some(&lineage())
        && let Some(replies) = REPLIES.get()
    {
        replies.set_forbidden(info.number.unsigned_abs());
    }
    // Not `raise`, which may use a call that the filter permits only in the main thread.
    let (own, thread) = (process::id(), gettid().as_raw_nonzero().get());
    // SAFETY: this sends a signal to this thread, where it is blocked until the handler returns.
    unsafe { libc::syscall(libc::SYS_tgkill, own, thread, signal) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Kernel = Kernel {
        filter: true,
        paths: true,
        truncate: true,
        signals: true,
    };

    #[test]
    fn what_is_missing_depends_on_what_is_permitted() {
        let strict = Sandbox::default();
        let reads = Sandbox {
            read: vec!["/usr".into()],
            ..Sandbox::default()
        };
        let starts = Sandbox {
            processes: true,
            ..Sandbox::default()
        };
        for sandbox in [&strict, &reads, &starts] {
            assert_eq!(sandbox.missing_in(ALL), []);
        }
        let old = Kernel {
            paths: false,
            truncate: false,
            signals: false,
            ..ALL
        };
        assert_eq!(strict.missing_in(old), []);
        assert_eq!(reads.missing_in(old), [Part::Paths]);
        assert_eq!(starts.missing_in(old), [Part::Paths, Part::Signals]);
        let older = Kernel {
            truncate: false,
            signals: false,
            ..ALL
        };
        assert_eq!(reads.missing_in(older), [Part::Truncate]);
        assert_eq!(starts.missing_in(older), [Part::Signals]);
        let none = Kernel {
            filter: false,
            ..ALL
        };
        assert_eq!(strict.missing_in(none), [Part::Filter]);
    }

    #[test]
    fn processor_time_is_rounded_up() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!(seconds(Duration::from_secs(2)), 2);
        assert_eq!(seconds(Duration::MAX), u64::MAX);
    }
}
