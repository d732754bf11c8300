//! Containment: all processes that a worker starts end with it, even daemons, which have left its process group.
//!
//! The kernel kills all processes of a PID namespace when the first of them ends. So a contained worker consists of three
//! processes:
//!
//! - the *guard*, which the parent has started, and which it signals and sees die;
//! - the *first* process of a new namespace, a child of the guard. Orphaned processes in the namespace become its children.
//!   (The worker can't be the first process itself: the kernel ignores every signal to it that it does not handle, even one
//!   that it sends to itself to end.)
//! - the worker, a child of the first.
//!
//! Guard and first process only pass signals down and the exit status up: the guard ends as the worker did. If the guard is
//! killed, the kernel kills the first process, and with it all others. That takes a moment, in which the worker may still
//! begin inputs, so the parent first takes back the inputs that were not begun when it sees a dead guard.
//!
//! A process without the right to make a PID namespace may still make one within a new user namespace, on most systems.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getegid, geteuid, getpid,
    kill_process, kill_process_group, pidfd_open, set_parent_process_death_signal, setrlimit,
    setsid, wait, waitpid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities, unshare_unsafe,
};

use crate::scarce::{no, no_process};
use crate::serve::{close_from, end_with};

/// The parent of a contained worker, as the worker sees it.
pub(crate) const FIRST: u32 = 1;

/// Turns this process into the guard, and starts the first process and the worker. Returns true in the worker; the other two
/// never return, except with an error, or with false if the parent is gone.
///
/// There must be no other thread, and the caller must set up signals afterwards.
pub(crate) fn enter(parent: u32, index: usize) -> io::Result<bool> {
    new_namespace()?;
    if !end_with(parent)? {
        return Ok(false);
    }
    let _ = setsid();
    let blocked = block_signals();
    // SAFETY: a disposition without a handler. While SIGCHLD is ignored, children can't be waited for.
    let on_child = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let guard = pidfd_open(getpid(), PidfdFlags::empty());
    let guard = guard.map_err(|error| no("descriptor for a guard")(error.into()))?;
    let pipe = pipe_with(PipeFlags::CLOEXEC);
    let (told, tell) = pipe.map_err(|error| no("pipe for a guard")(error.into()))?;
    if let Some(first) = fork()? {
        drop(tell);
        name("guard", index);
        keep_only(told);
        hand_down(&blocked, first);
    }
    drop(told);
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The signal covers a death of the guard from now on, this check an earlier one.
    if is_over(&guard) {
        return Ok(false);
    }
    drop(guard);
    let _ = setsid();
    if let Some(worker) = fork()? {
        name("first", index);
        keep_only(tell);
        look_after(&blocked, worker);
    }
    drop(tell);
    // SAFETY: restores the former disposition.
    unsafe { libc::signal(libc::SIGCHLD, on_child) };
    Ok(true)
}

/// The next child of this process will be the first of a new PID namespace.
fn new_namespace() -> io::Result<()> {
    // SAFETY: no descriptors are unshared.
    let alone = unsafe { unshare_unsafe(UnshareFlags::NEWPID) };
    if alone != Err(Errno::PERM) {
        return alone.map_err(|error| refused(error.into()));
    }
    let (user, group) = (geteuid(), getegid());
    // SAFETY: as above.
    let both = unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWPID) };
    both.map_err(|error| refused(error.into()))?;
    // A process may map its own group only after giving up `setgroups`. (Before Linux 3.19 there was no such file.)
    let _ = fs::write("/proc/self/setgroups", "deny");
    let itself = |id: u32| format!("{id} {id} 1");
    fs::write("/proc/self/uid_map", itself(user.as_raw())).map_err(refused)?;
    fs::write("/proc/self/gid_map", itself(group.as_raw())).map_err(refused)?;
    // The creator of a user namespace has all capabilities in it. The worker should have none that it did not have before.
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(|error| refused(error.into()))
}

fn refused(error: io::Error) -> io::Error {
    let why = format!(
        "it can't be contained, because no PID namespace could be made for it: {error}; that needs CAP_SYS_ADMIN, or a system \
         that lets every user make user namespaces (user.max_user_namespaces, \
         kernel.apparmor_restrict_unprivileged_userns, or the seccomp filter of a container may forbid it)"
    );
    io::Error::new(error.kind(), why)
}

/// Returns the pid of the child in the parent, `None` in the child.
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: before `main` this process has only one thread, so its copy is complete.
    match unsafe { libc::fork() } {
        -1 => Err(no_process("process for a worker")(
            io::Error::last_os_error(),
        )),
        pid => Ok(Pid::from_raw(pid)),
    }
}

fn is_over(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    !matches!(poll(&mut fds, Some(&at_once)), Ok(0))
}

/// Sets the name that `ps` shows next to the program.
fn name(role: &str, index: usize) {
    let name = CString::new(format!("pool-{role}-{index}")).unwrap_or_default();
    let _ = rustix::thread::set_name(&name);
}

/// Closes all descriptors but this one, since other processes may wait for the end of pipes. It becomes standard input.
fn keep_only(fd: OwnedFd) {
    let _ = rustix::stdio::dup2_stdin(&fd);
    close_from(1);
    // It is closed by now.
    std::mem::forget(fd);
}

type Signals = MaybeUninit<libc::sigset_t>;

/// Blocks all signals, which are waited for from now on.
fn block_signals() -> Signals {
    let mut all = Signals::uninit();
    // SAFETY: initializes the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set is initialized; null: the old set is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut()) };
    all
}

fn next_signal(signals: &Signals) -> i32 {
    loop {
        // SAFETY: the set is initialized; null: no information about the signal is wanted.
        let signal = unsafe { libc::sigwaitinfo(signals.as_ptr(), ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

fn pass_on(signal: i32, to: impl FnOnce(Signal)) {
    // SAFETY: the kernel has delivered this number, so it is valid; this process handles no signal.
    to(unsafe { Signal::from_raw_unchecked(signal) });
}

/// What the guard does until it ends.
fn hand_down(signals: &Signals, first: Pid) -> ! {
    loop {
        match next_signal(signals) {
            libc::SIGCHLD => {
                if let Ok(Some((_, own))) = waitpid(Some(first), WaitOptions::NOHANG)
                    && (own.exited() || own.signaled())
                {
                    let mut status = [0; 4];
                    let told = rustix::io::read(rustix::stdio::stdin(), &mut status);
                    end_as(match told {
                        Ok(4) => i32::from_ne_bytes(status),
                        _ => own.as_raw(),
                    });
                }
            }
            signal => pass_on(signal, |signal| {
                let _ = kill_process(first, signal);
            }),
        }
    }
}

/// What the first process does until it ends.
fn look_after(signals: &Signals, worker: Pid) -> ! {
    loop {
        match next_signal(signals) {
            libc::SIGCHLD => {
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    if pid == worker {
                        tell_end(status);
                    }
                }
            }
            signal => pass_on(signal, |signal| {
                // The worker leads a process group, unless it has left it, or has not made it yet.
                if kill_process_group(worker, signal).is_err() {
                    let _ = kill_process(worker, signal);
                }
            }),
        }
    }
}

fn tell_end(status: WaitStatus) -> ! {
    let _ = rustix::io::write(rustix::stdio::stdin(), &status.as_raw().to_ne_bytes());
    // SAFETY: ends this process without running exit handlers, which are meant for the worker.
    unsafe { libc::_exit(0) }
}

/// Ends this process with the status with which another has ended.
fn end_as(status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let no_core = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        let _ = setrlimit(Resource::Core, no_core);
        let mut one = Signals::uninit();
        // SAFETY: initializes the set.
        unsafe { libc::sigemptyset(one.as_mut_ptr()) };
        // SAFETY: it is initialized.
        unsafe { libc::sigaddset(one.as_mut_ptr(), signal) };
        // SAFETY: a disposition without a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: sends a signal to this thread, where it is blocked.
        unsafe { libc::raise(signal) };
        // SAFETY: the set is initialized; null: the old set is not wanted.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, one.as_ptr(), ptr::null_mut()) };
    }
    // SAFETY: as in `tell_end`.
    unsafe { libc::_exit(libc::WEXITSTATUS(status)) }
}
