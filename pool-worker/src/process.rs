//! A child process, identified by its pidfd: signals it, and finds out how it ended. Nothing here waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, kill_process_group,
    pidfd_open, pidfd_send_signal, waitid,
};

use crate::exit::Exit;
use crate::scarce::no;

/// A child of this process, which leads a process group or soon will.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    group: Pid,
    pidfd: Arc<OwnedFd>,
    exit: Option<Exit>,
}

impl Process {
    /// A child whose status was not read yet: until then, its pid can't belong to another process.
    pub(crate) fn open(pid: u32, what: &str) -> io::Result<Process> {
        let group = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("invalid process id"))?;
        let pidfd = pidfd_open(group, PidfdFlags::empty());
        let pidfd = pidfd.map_err(|error| no(&format!("descriptor for {what}"))(error.into()))?;
        Ok(Process {
            pid,
            group,
            pidfd: Arc::new(pidfd),
            exit: None,
        })
    }

    /// As [`open`](Process::open), for a process that may not be a child of this one. If no descriptor can be opened
    /// for it, it is killed.
    pub(crate) fn adopt(pid: u32, what: &str) -> io::Result<Process> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let ask = |how| loop {
            match number.map(|number| waitid(WaitId::Pid(number), WaitIdOptions::EXITED | how)) {
                Some(Err(Errno::INTR)) => {}
                status => return status.unwrap_or(Err(Errno::CHILD)),
            }
        };
        // On other errors, assume that it is a child.
        if ask(WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG).err() == Some(Errno::CHILD) {
            return Err(io::Error::other(format!(
                "process {pid} is not a child of this process, or was already reaped"
            )));
        }
        Process::open(pid, what).inspect_err(|_| {
            if let Some(number) = number {
                let _ = kill_process(number, Signal::KILL);
            }
            let _ = ask(WaitIdOptions::empty());
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A descriptor that is readable once the process is dead.
    pub fn pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// Sends SIGTERM to its process group.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL to its process group.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.exit.is_none() {
            self.signal_group(signal);
            // A task may have left the group.
            let _ = pidfd_send_signal(&*self.pidfd, signal);
        }
    }

    /// Sends a signal to the process group that this process leads, by its pidfd. Its number could belong to another group
    /// once the status of the dead process was read, so the number is used only while that can't be the case.
    fn signal_group(&self, signal: Signal) {
        const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;
        // SAFETY: the call only sends a signal, and the pointer to its information may be null.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                signal.as_raw(),
                ptr::null::<libc::siginfo_t>(),
                PIDFD_SIGNAL_PROCESS_GROUP,
            )
        };
        // Before Linux 6.9, that flag is invalid.
        if sent != 0
            && Errno::from_io_error(&io::Error::last_os_error()) == Some(Errno::INVAL)
            && self.status(WaitIdOptions::NOWAIT).is_ok()
        {
            let _ = kill_process_group(self.group, signal);
        }
    }

    /// How it ended, if it has. Fails with ECHILD if its status was read elsewhere.
    fn status(&self, how: WaitIdOptions) -> rustix::io::Result<Option<WaitIdStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | how;
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Err(Errno::INTR) => {}
                status => return status,
            }
        }
    }

    /// How it ended, if it has; call this when the pidfd is readable. Kills the rest of its process group.
    pub fn reap(&mut self) -> Option<Exit> {
        if self.exit.is_none() {
            self.exit = match self.status(WaitIdOptions::NOWAIT) {
                Ok(None) => None,
                Ok(Some(_)) => {
                    self.signal_group(Signal::KILL);
                    match self.status(WaitIdOptions::empty()) {
                        Ok(status) => Some(status.map_or(Exit::Unknown, |status| {
                            match (status.exit_status(), status.terminating_signal()) {
                                (Some(code), _) => Exit::Code(code),
                                (None, Some(signal)) => Exit::Signal(signal),
                                (None, None) => Exit::Unknown,
                            }
                        })),
                        Err(Errno::CHILD) => Some(Exit::Unknown),
                        Err(_) => None,
                    }
                }
                Err(Errno::CHILD) => {
                    self.signal_group(Signal::KILL);
                    Some(Exit::Unknown)
                }
                // The status can't be read right now. Unless this is called again, the child stays a zombie.
                Err(_) => None,
            };
        }
        self.exit
    }
}
