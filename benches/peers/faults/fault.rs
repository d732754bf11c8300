//! What can go wrong in a task. `subject.py` does the same in Python, under the same names.

use std::env;
use std::hint::black_box;
use std::panic;
use std::process;
use std::ptr;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit, setsid};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::report::{Line, report};

/// How many inputs a batch has, which input of the first batch is faulty, and how long each takes at least.
pub(crate) const INPUTS: u64 = 20;
pub(crate) const FAULTY: u64 = 6;
const TASK: Duration = Duration::from_millis(10);

/// How long one input may take, in pools that have limits.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(3);
pub(crate) const MEMORY_LIMIT: u64 = 256 << 20;

/// Longer than anything here lasts.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    Nothing,
    Panic,
    PanicThatCantPass,
    Unwritable,
    Unreadable,
    ExitZero,
    ExitThree,
    ExitInDestructor,
    Abort,
    Segfault,
    StackOverflow,
    Kill,
    Term,
    OutOfMemory,
    Leak,
    Sleep,
    Stop,
    CloseStandardStreams,
    CloseAll,
    RubbishIntoAll,
    LowerLimits,
    SetSid,
    ChangeDirectory,
    LeaveThread,
    LeaveGrandchild,
    DieBesideGrandchild,
    ExitHandlerHangs,
    KilledWhileIdle,
    AllKilledWhileIdle,
    ProgramKilled,
}

/// What a good pool does with the faulty input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Value,
    /// Its caller gets an error.
    Error,
    /// Its caller gets an error when the time limit is reached.
    TimeLimit,
    /// Its caller gets an error because of its memory.
    MemoryLimit,
}

impl Fault {
    pub(crate) fn expected(self) -> Expected {
        use Fault::*;
        match self {
            Sleep | Stop => Expected::TimeLimit,
            Leak => Expected::MemoryLimit,
            Panic | PanicThatCantPass | Unwritable | Unreadable | ExitZero | ExitThree
            | ExitInDestructor | Abort | Segfault | StackOverflow | Kill | Term | OutOfMemory
            | DieBesideGrandchild => Expected::Error,
            Nothing | CloseStandardStreams | CloseAll | RubbishIntoAll | LowerLimits | SetSid
            | ChangeDirectory | LeaveThread | LeaveGrandchild | ExitHandlerHangs
            | KilledWhileIdle | AllKilledWhileIdle | ProgramKilled => Expected::Value,
        }
    }

    /// Returns the name of the row.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Fault::Nothing => "nothing, for comparison",
            Fault::Panic => "panic, exception",
            Fault::PanicThatCantPass => "panic or exception that can't be passed on",
            Fault::Unwritable => "result can't be serialized",
            Fault::Unreadable => "result can't be deserialized",
            Fault::ExitZero => "`exit(0)`",
            Fault::ExitThree => "`exit(3)`",
            Fault::ExitInDestructor => "`exit(5)` in a destructor",
            Fault::Abort => "`abort()`",
            Fault::Segfault => "segmentation fault",
            Fault::StackOverflow => "stack overflow",
            Fault::Kill => "SIGKILL to itself",
            Fault::Term => "SIGTERM to itself",
            Fault::OutOfMemory => "no memory left (`RLIMIT_AS`)",
            Fault::Leak => "takes 1 GiB, and keeps it",
            Fault::Sleep => "never ends",
            Fault::Stop => "SIGSTOP to itself",
            Fault::CloseStandardStreams => "closes descriptors 0 to 2",
            Fault::CloseAll => "closes all descriptors",
            Fault::RubbishIntoAll => "writes rubbish into all descriptors",
            Fault::LowerLimits => "lowers its limits (files, processes)",
            Fault::SetSid => "`setsid()`",
            Fault::ChangeDirectory => "changes the directory",
            Fault::LeaveThread => "leaves a thread that spins",
            Fault::LeaveGrandchild => "leaves a child process",
            Fault::DieBesideGrandchild => "dies, its child holds all descriptors",
            Fault::ExitHandlerHangs => "leaves an exit handler that hangs",
            Fault::KilledWhileIdle => "a worker is killed while idle",
            Fault::AllKilledWhileIdle => "both workers are killed while idle",
            Fault::ProgramKilled => "the program is killed while work runs",
        }
    }
}

/// The square of an input, or a value that can't be serialized or deserialized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Output(pub(crate) u64);

const UNWRITABLE: u64 = u64::MAX;
const UNREADABLE: u64 = u64::MAX - 1;

impl Serialize for Output {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == UNWRITABLE {
            return Err(serde::ser::Error::custom("on purpose"));
        }
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            UNREADABLE => Err(serde::de::Error::custom("on purpose")),
            value => Ok(Output(value)),
        }
    }
}

/// The task.
pub(crate) fn work(x: u64, fault: Fault) -> Output {
    if fault == Fault::ProgramKilled {
        report(&Line::Began);
        thread::sleep(FOR_EVER);
    }
    thread::sleep(TASK);
    match fault {
        Fault::Unwritable if x == FAULTY => return Output(UNWRITABLE),
        Fault::Unreadable if x == FAULTY => return Output(UNREADABLE),
        _ if x == FAULTY => commit(fault),
        _ => {}
    }
    Output(x * x)
}

fn commit(fault: Fault) {
    match fault {
        Fault::Nothing
        | Fault::Unwritable
        | Fault::Unreadable
        | Fault::KilledWhileIdle
        | Fault::AllKilledWhileIdle
        | Fault::ProgramKilled => {}
        Fault::Panic => panic::panic_any("on purpose"),
        Fault::PanicThatCantPass => panic::panic_any(PanicsOnDrop),
        Fault::ExitZero => process::exit(0),
        Fault::ExitThree => process::exit(3),
        Fault::ExitInDestructor => drop(ExitsOnDrop),
        Fault::Abort => process::abort(),
        // SAFETY: none, that is the fault.
        Fault::Segfault => unsafe { black_box(ptr::null_mut::<u8>()).write_volatile(1) },
        Fault::StackOverflow => _ = black_box(overflow(1)),
        Fault::Kill => send(Signal::KILL),
        Fault::Term => send(Signal::TERM),
        Fault::Stop => send(Signal::STOP),
        Fault::OutOfMemory => {
            limit(Resource::As, 1 << 30);
            black_box(vec![1_u8; 2 << 30]);
        }
        Fault::Leak => {
            // Slow enough for a pool that checks periodically.
            for _ in 0..32 {
                black_box(vec![1_u8; 32 << 20].leak());
                thread::sleep(Duration::from_millis(35));
            }
        }
        Fault::Sleep => thread::sleep(FOR_EVER),
        Fault::CloseStandardStreams => close(0..3),
        Fault::CloseAll => close(0..1024),
        Fault::RubbishIntoAll => {
            let rubbish = [0xa5_u8; 4096];
            // Lower descriptors belong to the program's own output.
            for fd in 3..1024 {
                // SAFETY: the bytes are ours.
                unsafe { libc::write(fd, rubbish.as_ptr().cast(), rubbish.len()) };
            }
        }
        Fault::LowerLimits => {
            limit(Resource::Nofile, 3);
            limit(Resource::Fsize, 0);
            limit(Resource::Nproc, 0);
        }
        Fault::SetSid => _ = setsid(),
        Fault::ChangeDirectory => env::set_current_dir("/proc").expect("it is there"),
        Fault::LeaveThread => {
            thread::spawn(|| {
                loop {
                    black_box(());
                }
            });
        }
        Fault::LeaveGrandchild => leave_grandchild(),
        Fault::DieBesideGrandchild => {
            leave_grandchild();
            send(Signal::KILL);
        }
        Fault::ExitHandlerHangs => {
            // SAFETY: the function lives as long as the program.
            unsafe { libc::atexit(hang) };
        }
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic::panic_any("again");
    }
}

struct ExitsOnDrop;

impl Drop for ExitsOnDrop {
    fn drop(&mut self) {
        process::exit(5);
    }
}

extern "C" fn hang() {
    thread::sleep(FOR_EVER);
}

fn overflow(depth: u64) -> u64 {
    let here = black_box([depth; 512]);
    if depth == u64::MAX {
        return 0;
    }
    here[depth as usize % 512] + overflow(black_box(depth + 1))
}

fn send(signal: Signal) {
    kill_process(getpid(), signal).expect("it is this process");
}

fn limit(resource: Resource, to: u64) {
    let limit = Rlimit {
        current: Some(to),
        maximum: Some(to),
    };
    setrlimit(resource, limit).expect("lower is allowed");
}

fn close(fds: std::ops::Range<i32>) {
    // SAFETY: none for the owners of the descriptors, that is the fault.
    fds.for_each(|fd| _ = unsafe { libc::close(fd) });
}

fn leave_grandchild() {
    // SAFETY: the child only makes system calls.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: takes no pointers.
        unsafe { libc::sleep(3600) };
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
}
