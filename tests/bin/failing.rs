//! System calls that fail: each one that code of ours makes between the start and the end of a pool, with each of several
//! errors, one run for each. Says which promise was broken by which failure, and `fine` at the end.
//!
//!     cargo run --release -p tests --bin failing
//!     cargo run --release -p tests --bin failing -- --all
//!     cargo run --release -p tests --bin failing -- --only parent:epoll_ctl.add:ENOMEM:build:1
//!
//! # How
//!
//! This program runs itself again as a *scenario*, under a seccomp filter that hands the system calls of the scenario and
//! of its workers to us before they are made (user notification). We count them, let them pass, and answer the chosen one
//! ourselves, with an error. A first run in which nothing fails tells what there is to fail.
//!
//! # What does not fail here
//!
//! - What is not ours. Memory of malloc's, the locks of std and glibc (private futexes), the signal stacks of std's
//!   threads, the seed of std's hash maps: these abort or panic by themselves. A worker's calls count from the first that our
//!   entry makes (`close_range`), for what comes before it is the loader's; see [`name_of`].
//! - What can't. `getrlimit`, `getppid`, `fstat` of an open descriptor and the like know no errors for what we give them; a
//!   `close` or `munmap` that fails has done its work; and EAGAIN from a socket that has something to read is no failure
//!   but a lie.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use pool_core::{Error, Output, Pool, PoolBuilder, pool_task};
use tests::Possessions;

/// A run that takes so long hangs.
const HANGS: Duration = Duration::from_secs(100);

/// A step of the scenario that takes so long was held up. (A worker that does not start is waited for for
/// [`START_TIMEOUT`], and the end of a pool for five seconds. A busy machine holds up steps, too, but not the same ones
/// again: see [`try_one`].)
const LATE: Duration = Duration::from_secs(4);

const START_TIMEOUT: Duration = Duration::from_secs(3);

const ERRORS: [(&str, i32); 8] = [
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOMEM", libc::ENOMEM),
    ("EAGAIN", libc::EAGAIN),
    ("EINTR", libc::EINTR),
    ("ENOSPC", libc::ENOSPC),
    ("EPERM", libc::EPERM),
    ("ENOSYS", libc::ENOSYS),
];

#[derive(Parser, Debug)]
#[command(about = "System calls that fail")]
struct Arguments {
    /// Each error at several moments, and for several calls in a row; takes minutes
    #[arg(long)]
    all: bool,
    /// One failure: role:call:error:phase:occurrence[:how many]
    #[arg(long)]
    only: Option<Failure>,
    /// What each run said
    #[arg(long)]
    verbose: bool,
    /// So many runs at a time
    #[arg(long, default_value_t = 3)]
    jobs: usize,
    /// Be the program in which calls fail
    #[arg(long, hide = true)]
    scenario: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.scenario {
        return scenario();
    }
    match sweep(&arguments) {
        Ok(complaints) if complaints.is_empty() => {
            println!("fine");
            ExitCode::SUCCESS
        }
        Ok(complaints) => {
            for complaint in complaints {
                println!("{complaint}");
            }
            ExitCode::FAILURE
        }
        // A container may forbid it, or have a listener of its own.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            println!("skipped: nobody may answer system calls here: {error}\nfine");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("nothing could be run: {error}");
            ExitCode::FAILURE
        }
    }
}

// ---- the scenario ---------------------------------------------------------------------------------

/// What the scenario is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    /// Something of its own: nothing fails.
    Quiet,
    Build,
    Map,
    /// A worker is killed, and another takes its place.
    Kill,
    /// An input passes its time limit, and another is cancelled while it runs.
    Stop,
    Drop,
    /// A pool without an initializer, whose workers are replaced.
    Plain,
    /// A pool whose workers are forked, and replaced.
    Forked,
    /// A pool whose workers print here.
    Captured,
}

const PHASES: [(&str, Phase); 9] = [
    ("quiet", Phase::Quiet),
    ("build", Phase::Build),
    ("map", Phase::Map),
    ("kill", Phase::Kill),
    ("stop", Phase::Stop),
    ("drop", Phase::Drop),
    ("plain", Phase::Plain),
    ("forked", Phase::Forked),
    ("captured", Phase::Captured),
];

/// Not an option of `prctl`: by it the scenario says what it is doing.
const SAYS_PHASE: libc::c_int = 0x7068_6173;

fn enter(phase: Phase) {
    // SAFETY: the kernel knows no such option, and is not asked.
    let failed = unsafe { libc::prctl(SAYS_PHASE, phase as libc::c_ulong) };
    assert_eq!(failed, 0, "not under a filter");
}

/// The sum of the bytes that workers are prepared with.
const OFFSET_SET: u64 = 1000;

static OFFSET: OnceLock<u64> = OnceLock::new();

#[pool_task]
fn prepare(bytes: &[u8]) {
    OFFSET.get_or_init(|| bytes.iter().map(|byte| u64::from(*byte)).sum());
}

/// Knows what its worker was prepared with, if it was.
#[pool_task]
fn work(x: u64) -> u64 {
    x * x + OFFSET.get().copied().unwrap_or_default()
}

#[pool_task]
fn measure(bytes: &[u8]) -> usize {
    bytes.len()
}

#[pool_task]
fn print_and_panic() {
    print!("printed");
    panic!("panicked");
}

#[pool_task]
fn hang() {
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

const INPUTS: u64 = 20;

/// More than fits into a ring.
const LARGE: usize = 1 << 20;

fn plain() -> PoolBuilder {
    Pool::builder()
        .processes(1)
        .max_tasks_per_child(8)
        .start_timeout(START_TIMEOUT)
}

fn forked() -> PoolBuilder {
    plain().preload(prepare, (vec![1_u8; OFFSET_SET as usize],))
}

fn captured() -> PoolBuilder {
    plain().output(Output::lines(|_| ()))
}

fn prepared() -> PoolBuilder {
    // The limits are never met: with them, memory is looked at.
    Pool::builder()
        .processes(2)
        .initializer(prepare, (vec![1_u8; OFFSET_SET as usize],))
        .start_timeout(START_TIMEOUT)
        .memory_limit(1 << 40)
        .max_memory_per_child(1 << 40)
        .grace(Duration::from_millis(20))
}

/// What the scenario has seen, for the one that runs it. Nothing is printed before the end, for that is a call too.
#[derive(Default)]
struct Seen(String);

impl Seen {
    fn say(&mut self, what: &str, text: impl fmt::Display) {
        self.0 += &format!("{what}: {text}\n");
    }

    /// Does a step, and says so if that took too long.
    fn step<R>(&mut self, phase: Phase, step: impl FnOnce(&mut Seen) -> R) -> R {
        enter(phase);
        let began = Instant::now();
        let result = step(self);
        let took = began.elapsed();
        enter(Phase::Quiet);
        if took > LATE {
            self.say("late", format_args!("{phase:?} took {took:.1?}"));
        }
        result
    }

    fn build(&mut self, builder: fn() -> PoolBuilder) -> Pool {
        for _ in 0..20 {
            match builder().build() {
                Ok(pool) => return pool,
                Err(Error::Start(error)) => self.say("refused", error),
                Err(error) => self.say("wrong", format_args!("build: {error:?}")),
            }
        }
        panic!("no pool can be made: {}", self.0);
    }

    /// Each input has one outcome, and it is right.
    fn map(&mut self, pool: &Pool, offset: u64) {
        let inputs = 0..INPUTS;
        let results = pool.task(work).map_results(inputs.clone());
        if results.len() != INPUTS as usize {
            self.say("wrong", format_args!("{} outcomes", results.len()));
        }
        for (x, result) in inputs.zip(results) {
            self.check(x, result, x * x + offset);
        }
    }

    fn check<T: PartialEq + fmt::Debug>(&mut self, x: u64, result: Result<T, Error>, right: T) {
        match result {
            Ok(value) if value == right => {}
            Ok(value) => self.say("wrong", format_args!("input {x} gave {value:?}")),
            Err(error) => self.say("lost", format_args!("{error:?}")),
        }
    }
}

fn scenario() -> ExitCode {
    let held = Possessions::at_rest();
    let mut seen = Seen::default();
    let pool = seen.step(Phase::Build, |seen| seen.build(prepared));
    seen.step(Phase::Map, |seen| {
        seen.map(&pool, OFFSET_SET);
        let (sender, receiver) = mpsc::channel();
        let result = pool.apply_async(work, (3,));
        let result = result.callback(move |value| _ = sender.send(*value));
        seen.check(3, result.get(), 9 + OFFSET_SET);
        match receiver.recv_timeout(LATE) {
            Ok(value) if value == 9 + OFFSET_SET => {}
            other => seen.say("wrong", format_args!("the callback was given {other:?}")),
        }
        seen.check(0, pool.apply(measure, (vec![1; LARGE],)), LARGE);
    });
    seen.step(Phase::Kill, |seen| {
        let before = pool.worker_pids();
        // SAFETY: sends a signal to a child of ours.
        unsafe { libc::kill(before[0] as libc::pid_t, libc::SIGKILL) };
        seen.map(&pool, OFFSET_SET);
        let is_back = || {
            let now = pool.worker_pids();
            now.len() == 2 && now.iter().all(|pid| *pid != before[0])
        };
        let began = Instant::now();
        while !is_back() {
            if began.elapsed() > LATE {
                seen.say("wrong", "nobody has taken the place of the one killed");
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        seen.map(&pool, OFFSET_SET);
    });
    seen.step(Phase::Stop, |seen| {
        let limited = pool.task(hang).time_limit(Duration::from_millis(20));
        match limited.apply_async(()).get_timeout(LATE) {
            Err(Error::TimeLimit(_)) => {}
            other => seen.say("wrong", format_args!("past its time limit: {other:?}")),
        }
        let running = pool.apply_async(hang, ());
        running.wait_timeout(Duration::from_millis(5));
        running.cancel();
        match running.get_timeout(LATE) {
            Err(Error::Cancelled) => {}
            other => seen.say("wrong", format_args!("cancelled: {other:?}")),
        }
        seen.map(&pool, OFFSET_SET);
    });
    seen.step(Phase::Drop, |seen| {
        let running = pool.apply_async(hang, ());
        drop(pool);
        match running.get_timeout(LATE) {
            Err(Error::Terminated) => {}
            other => seen.say("wrong", format_args!("terminated: {other:?}")),
        }
    });
    seen.step(Phase::Plain, |seen| {
        let pool = seen.build(plain);
        seen.map(&pool, 0);
    });
    seen.step(Phase::Forked, |seen| {
        let pool = seen.build(forked);
        seen.map(&pool, OFFSET_SET);
    });
    seen.step(Phase::Captured, |seen| {
        let pool = seen.build(captured);
        seen.map(&pool, 0);
        match pool.apply(print_and_panic, ()) {
            // Where it can't be read, it may be less.
            Err(error) if error.output().is_some() => {}
            other => seen.say("wrong", format_args!("printed, and panicked: {other:?}")),
        }
    });
    // Nothing fails any more.
    match prepared().build() {
        Ok(pool) => seen.map(&pool, OFFSET_SET),
        Err(error) => seen.say("wrong", format_args!("the second pool: {error:?}")),
    }
    if let Err(left) = held.regained() {
        seen.say("wrong", left);
    }
    println!("{}done", seen.0);
    ExitCode::SUCCESS
}

// ---- failures -------------------------------------------------------------------------------------

/// Whose call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Role {
    Parent,
    /// A child of the parent, before it runs a program: std's code and glibc's. Or one that never does: a worker that was
    /// forked.
    Spawn,
    /// Between its program's first instruction and our first call.
    Loader,
    Worker,
}

const ROLES: [(&str, Role); 4] = [
    ("parent", Role::Parent),
    ("spawn", Role::Spawn),
    ("loader", Role::Loader),
    ("worker", Role::Worker),
];

/// A kind of calls: whose, which, and when.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Kind {
    role: Role,
    call: String,
    phase: Phase,
}

/// Calls that are to fail.
#[derive(Debug, Clone)]
struct Failure {
    kind: Kind,
    error: &'static str,
    number: i32,
    /// From this one on, counted from 1.
    first: usize,
    times: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind { role, call, phase } = &self.kind;
        let (role, phase) = (name(&ROLES, *role), name(&PHASES, *phase));
        let Failure {
            error,
            first,
            times,
            ..
        } = self;
        write!(f, "{role}:{call}:{error}:{phase}:{first}:{times}")
    }
}

fn name<T: PartialEq>(names: &[(&'static str, T)], of: T) -> &'static str {
    let found = names.iter().find(|(_, other)| *other == of);
    found.map_or("?", |(name, _)| name)
}

impl FromStr for Failure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(':').collect();
        let (&[role, call, error, phase, first], rest) =
            fields.split_first_chunk().ok_or("too few fields")?;
        fn find<T: Copy>(
            names: &[(&'static str, T)],
            text: &str,
        ) -> Result<(&'static str, T), String> {
            let found = names.iter().find(|(name, _)| *name == text);
            found.copied().ok_or_else(|| format!("what is {text}?"))
        }
        let number = |text: &str| text.parse().map_err(|_| format!("no number: {text}"));
        let (error, errno) = find(&ERRORS, error)?;
        Ok(Failure {
            kind: Kind {
                role: find(&ROLES, role)?.1,
                call: call.to_owned(),
                phase: find(&PHASES, phase)?.1,
            },
            error,
            number: errno,
            first: number(first)?,
            times: rest.first().map_or(Ok(1), |text| number(text))?,
        })
    }
}

/// The calls that are told to us; the rest pass unseen.
const CALLS: &[(&str, libc::c_long)] = &[
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("execve", libc::SYS_execve),
    ("close_range", libc::SYS_close_range),
    ("dup", libc::SYS_dup),
    #[cfg(target_arch = "x86_64")]
    ("dup2", libc::SYS_dup2),
    ("dup3", libc::SYS_dup3),
    ("epoll_create1", libc::SYS_epoll_create1),
    ("epoll_ctl", libc::SYS_epoll_ctl),
    ("epoll_pwait", libc::SYS_epoll_pwait),
    ("epoll_pwait2", libc::SYS_epoll_pwait2),
    #[cfg(target_arch = "x86_64")]
    ("epoll_wait", libc::SYS_epoll_wait),
    ("eventfd2", libc::SYS_eventfd2),
    ("fcntl", libc::SYS_fcntl),
    #[cfg(target_arch = "x86_64")]
    ("fork", libc::SYS_fork),
    ("ftruncate", libc::SYS_ftruncate),
    ("futex", libc::SYS_futex),
    ("getdents64", libc::SYS_getdents64),
    ("getrandom", libc::SYS_getrandom),
    ("getsockopt", libc::SYS_getsockopt),
    ("madvise", libc::SYS_madvise),
    ("memfd_create", libc::SYS_memfd_create),
    ("mmap", libc::SYS_mmap),
    ("newfstatat", libc::SYS_newfstatat),
    #[cfg(target_arch = "x86_64")]
    ("open", libc::SYS_open),
    ("openat", libc::SYS_openat),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    #[cfg(target_arch = "x86_64")]
    ("poll", libc::SYS_poll),
    ("pipe2", libc::SYS_pipe2),
    ("ppoll", libc::SYS_ppoll),
    ("prctl", libc::SYS_prctl),
    ("read", libc::SYS_read),
    ("recvfrom", libc::SYS_recvfrom),
    ("recvmsg", libc::SYS_recvmsg),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sendmsg", libc::SYS_sendmsg),
    ("sendto", libc::SYS_sendto),
    ("setsid", libc::SYS_setsid),
    ("shutdown", libc::SYS_shutdown),
    ("socket", libc::SYS_socket),
    ("socketpair", libc::SYS_socketpair),
    ("statx", libc::SYS_statx),
    #[cfg(target_arch = "x86_64")]
    ("vfork", libc::SYS_vfork),
    ("wait4", libc::SYS_wait4),
    ("waitid", libc::SYS_waitid),
    ("write", libc::SYS_write),
];

/// What we call a system call, if it may fail.
fn name_of(number: libc::c_long, arguments: [u64; 6]) -> Option<String> {
    const SHARED: u64 = libc::MAP_SHARED as u64;
    const STACK: u64 = libc::MAP_STACK as u64;
    /// The stack of a process that is being started is larger, and a signal stack of std's is smaller.
    const SMALL: u64 = 32 << 10;

    let (name, _) = CALLS.iter().find(|(_, other)| *other == number)?;
    let [_, second, third, fourth, ..] = arguments;
    let detail = match *name {
        "fcntl" => match second as i32 {
            libc::F_ADD_SEALS => "seals",
            libc::F_DUPFD_CLOEXEC => "dupfd",
            // In debug builds std asks before each `close`; and that a socket is not to block can always be set.
            _ => return None,
        },
        "futex" => match second as i32 {
            libc::FUTEX_WAIT => "wait",
            libc::FUTEX_WAKE => "wake",
            // `pthread_join`'s.
            _ => return None,
        },
        "mmap" => {
            let writable = third & libc::PROT_WRITE as u64 != 0;
            match fourth {
                flags if flags & 3 == SHARED => "shared",
                flags if flags & STACK != 0 && !writable => "thread",
                flags if flags & STACK != 0 && second >= SMALL => "spawn",
                // malloc asks for more, and the loader was before us.
                flags if flags & STACK == 0 && second == page_size() => "page",
                _ => return None,
            }
        }
        "madvise" => match third as i32 {
            libc::MADV_WIPEONFORK => "wipe",
            _ => return None,
        },
        "epoll_ctl" => match second as i32 {
            libc::EPOLL_CTL_ADD => "add",
            libc::EPOLL_CTL_DEL => "del",
            _ => "mod",
        },
        "prctl" => match arguments[0] as i32 {
            libc::PR_SET_NAME => "name",
            libc::PR_SET_PDEATHSIG => "deathsig",
            _ => "other",
        },
        "pidfd_send_signal" => match fourth {
            0 => "one",
            _ => "group",
        },
        "getsockopt" => match third as i32 {
            libc::SO_TYPE => "type",
            // ipc-channel's, of a socket that it has just made.
            _ => return None,
        },
        "newfstatat" => match fourth as i32 & libc::AT_EMPTY_PATH {
            0 => "path",
            _ => return None,
        },
        "getrandom" => match third as u32 {
            0 => "token",
            _ => return None,
        },
        "waitid" => match fourth as i32 & libc::WNOWAIT {
            0 => "read",
            _ => "look",
        },
        _ => return Some((*name).to_owned()),
    };
    Some(format!("{name}.{detail}"))
}

fn page_size() -> u64 {
    // SAFETY: asks for a constant.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}

// ---- who answers system calls ---------------------------------------------------------------------

/// From now on the calls of this thread, and of all processes that come of it, are told to who has what this gives.
fn install_filter() -> io::Result<OwnedFd> {
    const NUMBER: u32 = mem::offset_of!(libc::seccomp_data, nr) as u32;
    const SECOND: u32 = mem::offset_of!(libc::seccomp_data, args) as u32 + 8;
    let load = |at| libc::sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: at,
    };
    let jump = |how: u32, value, jt: usize, jf: usize| libc::sock_filter {
        code: (libc::BPF_JMP | how | libc::BPF_K) as u16,
        jt: jt as u8,
        jf: jf as u8,
        k: value,
    };
    let give = |action| libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: action,
    };
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let tell = give(libc::SECCOMP_RET_USER_NOTIF);
    // Private futexes are not ours, and we need some ourselves before anybody answers.
    let mut program = vec![
        load(NUMBER),
        jump(libc::BPF_JEQ, libc::SYS_futex as u32, 0, 4),
        load(SECOND),
        jump(libc::BPF_JSET, libc::FUTEX_PRIVATE_FLAG as u32, 0, 1),
        allow,
        tell,
    ];
    for (index, (_, number)) in CALLS.iter().enumerate() {
        let to_the_end = CALLS.len() - index;
        program.push(jump(libc::BPF_JEQ, *number as u32, to_the_end, 0));
    }
    program.extend([allow, tell]);
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: takes no pointers. Only this thread is concerned.
    let failed = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the program lives, and is as long as it says.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            // A signal must not make a call that was told be told again.
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
            &raw const filter,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as i32) })
}

/// What became of a run.
#[derive(Debug, Default)]
struct Ran {
    /// How many calls of each kind there were.
    calls: BTreeMap<Kind, usize>,
    /// How many failed.
    failed: usize,
    said: String,
    complained: String,
    status: String,
    hung: Option<String>,
    took: Duration,
}

/// Answers the calls of one scenario.
struct Answerer<'f> {
    listener: OwnedFd,
    failure: Option<&'f Failure>,
    phase: Phase,
    processes_of_tasks: HashMap<u32, u32>,
    roles: HashMap<u32, Role>,
    ran: Ran,
}

impl Answerer<'_> {
    /// Answers until all who might ask are gone; or until the scenario hangs, of which we say how.
    fn answer(&mut self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            let mut poll = libc::pollfd {
                fd: self.listener.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let left = HANGS.saturating_sub(began.elapsed());
            // SAFETY: one element, which is there.
            let ready = unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) };
            if ready == 0 {
                self.ran.hung = Some(self.state());
                return Ok(());
            }
            if poll.revents & libc::POLLIN != 0 {
                self.answer_one()?;
            } else if poll.revents != 0 {
                return Ok(());
            }
        }
    }

    fn answer_one(&mut self) -> io::Result<()> {
        // SAFETY: numbers, for which zero is a value; the kernel wants zeros.
        let mut told: libc::seccomp_notif = unsafe { mem::zeroed() };
        let listener = self.listener.as_raw_fd();
        // SAFETY: there is room for what the kernel writes.
        let failed =
            unsafe { libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV as _, &raw mut told) };
        if failed != 0 {
            return match io::Error::last_os_error() {
                // Who asked is dead.
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            };
        }
        let mut answer = libc::seccomp_notif_resp {
            id: told.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match self.decide(&told) {
            Decision::Done => {}
            Decision::Pass => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Decision::Fail(number) => answer.error = -number,
        }
        // SAFETY: the answer lives. It fails if who asked is dead.
        unsafe {
            libc::ioctl(
                listener,
                libc::SECCOMP_IOCTL_NOTIF_SEND as _,
                &raw mut answer,
            )
        };
        Ok(())
    }

    fn decide(&mut self, told: &libc::seccomp_notif) -> Decision {
        let number = libc::c_long::from(told.data.nr);
        let arguments = told.data.args;
        let task = told.pid;
        let process = *self
            .processes_of_tasks
            .entry(task)
            .or_insert_with(|| process_of(task));
        if process == std::process::id() {
            return Decision::Pass;
        }
        let is_first = self.roles.is_empty();
        let role = self.roles.entry(process).or_insert(Role::Spawn);
        if is_first {
            *role = Role::Parent;
        }
        if number == libc::SYS_prctl && arguments[0] == SAYS_PHASE as u64 {
            self.phase = PHASES[arguments[1] as usize % PHASES.len()].1;
            return Decision::Done;
        }
        if *role == Role::Loader && number == libc::SYS_close_range {
            *role = Role::Worker;
        }
        let mut decision = Decision::Pass;
        if self.phase != Phase::Quiet
            && *role != Role::Loader
            && let Some(call) = name_of(number, arguments)
        {
            let kind = Kind {
                role: *role,
                call,
                phase: self.phase,
            };
            let is_chosen = self.failure.filter(|failure| failure.kind == kind);
            let count = self.ran.calls.entry(kind).or_insert(0);
            *count += 1;
            if let Some(failure) = is_chosen
                && (failure.first..failure.first + failure.times).contains(count)
            {
                self.ran.failed += 1;
                decision = Decision::Fail(failure.number);
            }
        }
        if *role == Role::Spawn && number == libc::SYS_execve && matches!(decision, Decision::Pass)
        {
            *role = Role::Loader;
        }
        decision
    }

    /// What all threads are doing.
    fn state(&self) -> String {
        let mut state = format!("it hangs in {:?}:", self.phase);
        for (process, role) in &self.roles {
            let tasks = fs::read_dir(format!("/proc/{process}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                let read = |file: &str| {
                    let text = fs::read_to_string(task.path().join(file)).unwrap_or_default();
                    text.trim().to_owned()
                };
                state += &format!(
                    "\n    {role:?} {process} {}: {} ({})",
                    read("comm"),
                    read("wchan"),
                    read("syscall")
                );
            }
        }
        state
    }
}

enum Decision {
    Pass,
    Done,
    Fail(i32),
}

/// The process of a thread, as long as it waits for our answer.
fn process_of(task: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{task}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|number| number.trim().parse().ok())
        .unwrap_or(task)
}

/// Runs the scenario once.
fn run(failure: Option<&Failure>, temporary: &Path) -> io::Result<Ran> {
    let (sender, receiver) = mpsc::channel();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("--scenario")
        .env("TMPDIR", temporary)
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let began = Instant::now();
    // Its thread, and what comes of it, is filtered; this one answers.
    let launcher = thread::spawn(move || -> io::Result<Child> {
        let listener = install_filter()?;
        let _ = sender.send(listener);
        command.spawn()
    });
    let Ok(listener) = receiver.recv() else {
        let launched = launcher.join().expect("it does not panic");
        let why = launched.err().map(|error| error.to_string());
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            why.unwrap_or_default(),
        ));
    };
    let mut answerer = Answerer {
        listener,
        failure,
        phase: Phase::Quiet,
        processes_of_tasks: HashMap::new(),
        roles: HashMap::new(),
        ran: Ran::default(),
    };
    answerer.answer()?;
    let mut child = launcher.join().expect("it does not panic")?;
    if answerer.ran.hung.is_some() {
        // Its workers end with it.
        child.kill()?;
        answerer.answer()?;
    }
    let mut ran = answerer.ran;
    ran.status = child.wait()?.to_string();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut ran.said)?;
    }
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut ran.complained)?;
    }
    ran.took = began.elapsed();
    Ok(ran)
}

// ---- what must hold -------------------------------------------------------------------------------

/// Which promises a run has broken.
fn judge(failure: Option<&Failure>, ran: &Ran) -> Vec<String> {
    let is_unmeasured = ran.complained.contains(LAST_SOCKET);
    if is_unmeasured && failure.is_some_and(|failure| failure.kind.role == Role::Parent) {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    complaints.extend(ran.hung.clone());
    if ran.hung.is_none() && ran.status != "exit status: 0" {
        complaints.push(ran.status.clone());
    }
    if !ran.complained.is_empty() && !is_unmeasured {
        complaints.push(format!("it printed: {}", ran.complained.trim()));
    }
    let mut refused = 0;
    for line in ran.said.lines() {
        match line.split_once(": ") {
            Some(("refused", text)) => {
                refused += 1;
                if !failure.is_some_and(|failure| is_honest(failure, text)) {
                    complaints.push(format!("it says: {text}"));
                }
            }
            Some(_) => complaints.push(line.to_owned()),
            None => {}
        }
    }
    if refused > ran.failed {
        complaints.push(format!("{refused} refusals of {} failures", ran.failed));
    }
    complaints
}

/// What may be said of a failure that ipc-channel does not survive: with its first message it measures what a socket
/// holds, and if it has no socket for that, it never sends a message again. There were two just before. (ipc-channel prints
/// the first of these, which may be captured. A parent can start no worker after that; a worker can be replaced.)
const LAST_SOCKET: &str = "Failed to obtain a socket for checking maximum send size";
const NOT_MEASURED: &str = "ipc-channel could not measure how much a socket holds";

/// Whether a text names what there is no more of, and what the system said.
fn is_honest(failure: &Failure, text: &str) -> bool {
    // A worker that can't say what is wrong says nothing; and of a thread the C library says EAGAIN where it has no memory.
    let names = |number| text.contains(&io::Error::from_raw_os_error(number).to_string());
    let call = failure.kind.call.as_str();
    let is_forked = failure.kind.phase == Phase::Forked;
    let is_mute = call == "sendto"
        && match failure.kind.role {
            Role::Worker => is_forked || failure.times > 1,
            Role::Spawn => is_forked,
            Role::Parent | Role::Loader => false,
        };
    if is_mute && text.contains("exited with code 113") {
        return true;
    }
    // What forks workers and can't say so ends, and its process group with it; a worker that was just made is part of that.
    if is_mute && is_forked && text.contains("was killed by SIGKILL before it was ready") {
        return true;
    }
    if call == "socketpair" && text.contains(NOT_MEASURED) {
        return true;
    }
    let of_thread = ["clone3", "clone", "mmap.thread"].contains(&call);
    (text.contains(": no ") || text.contains("can't be"))
        && (names(failure.number) || of_thread && names(libc::EAGAIN))
}

// ---- all of them ----------------------------------------------------------------------------------

/// Which failures are tried, given how often each kind of call was seen.
fn plan(calls: &BTreeMap<Kind, usize>, all: bool) -> Vec<Failure> {
    let mut failures = Vec::new();
    for (turn, (kind, count)) in calls.iter().enumerate() {
        let mut moments = vec![1];
        if all {
            moments.extend([2, count / 2, *count]);
            moments.retain(|moment| (1..=*count).contains(moment));
            moments.sort_unstable();
            moments.dedup();
        }
        for (place, (error, number)) in ERRORS.iter().enumerate() {
            // Each kind of call meets one error, and a call in several phases several.
            if !all && (place + turn) % ERRORS.len() != 0 {
                continue;
            }
            let receives = ["recvmsg", "recvfrom"].contains(&kind.call.as_str());
            if receives && *number == libc::EAGAIN {
                continue;
            }
            for first in &moments {
                for times in [1, 4] {
                    if times > 1 && (!all || *first > 1) {
                        continue;
                    }
                    failures.push(Failure {
                        kind: kind.clone(),
                        error,
                        number: *number,
                        first: *first,
                        times,
                    });
                }
            }
        }
    }
    failures
}

/// Runs the scenario with a failure, and judges it. What was broken in a run that was slow may be the fault of a busy
/// machine, so such a run is repeated: what the failure is to blame for is broken each time. A hang is never excused.
fn try_one(failure: &Failure, temporary: &Path) -> io::Result<(Ran, Vec<String>)> {
    let mut tries = 0;
    loop {
        let ran = run(Some(failure), temporary)?;
        let complaints = judge(Some(failure), &ran);
        tries += 1;
        let may_be_load = ran.took > START_TIMEOUT && ran.hung.is_none();
        if complaints.is_empty() || !may_be_load || tries == 3 {
            return Ok((ran, complaints));
        }
    }
}

/// Gives what was broken.
///
/// # Errors
///
/// The first run can't be made.
fn sweep(arguments: &Arguments) -> io::Result<Vec<String>> {
    let temporary = tempfile::tempdir()?;
    let dry = run(None, temporary.path())?;
    let mut complaints = judge(None, &dry);
    complaints.retain(|complaint| !complaint.starts_with("late: "));
    for complaint in &mut complaints {
        *complaint = format!("without any failure: {complaint}");
    }
    if arguments.verbose {
        for (kind, count) in &dry.calls {
            println!("{count:>6} {:?} {} {:?}", kind.role, kind.call, kind.phase);
        }
    }
    let failures = match &arguments.only {
        Some(only) => vec![only.clone()],
        None => plan(&dry.calls, arguments.all),
    };
    println!(
        "{} kinds of calls, {} runs",
        dry.calls.len(),
        failures.len()
    );
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let (hit, longest) = (AtomicUsize::new(0), Mutex::new(Duration::ZERO));
    let broken = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                let temporary = tempfile::tempdir().expect("there is room");
                while let Some(failure) = failures.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (ran, complaints) = match try_one(failure, temporary.path()) {
                        Ok(tried) => tried,
                        Err(error) => {
                            let mut broken = broken.lock().expect("nobody panics");
                            broken.push(format!("{failure}: no run: {error}"));
                            continue;
                        }
                    };
                    hit.fetch_add(usize::from(ran.failed > 0), Ordering::Relaxed);
                    let mut longest = longest.lock().expect("nobody panics");
                    *longest = ran.took.max(*longest);
                    drop(longest);
                    if arguments.verbose {
                        let said = ran.said.trim();
                        println!("{failure}: {} failed, {:.0?}: {said}", ran.failed, ran.took);
                    }
                    let complaints = complaints
                        .into_iter()
                        .map(|why| format!("{failure}: {why}"));
                    broken.lock().expect("nobody panics").extend(complaints);
                }
            });
        }
    });
    let longest = longest.into_inner().expect("nobody panics");
    println!(
        "{} of them met their call, {:.0?}, the longest {longest:.1?}",
        hit.into_inner(),
        began.elapsed()
    );
    let _ = io::stdout().flush();
    complaints.extend(broken.into_inner().expect("nobody panics"));
    Ok(complaints)
}
