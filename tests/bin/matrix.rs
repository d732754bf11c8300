//! Every fault in every kind of call: what happens to the faulty input, to its neighbours, to the pool, and to the
//! resources that the program held before. Prints a table, and `fine` at the end.
//!
//!     cargo run --release -p tests --bin matrix [-- --sandbox]

use std::env;
use std::hint::black_box;
use std::io::{self, Write};
use std::panic;
use std::process;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, Sandbox, pool_task};
use serde::{Deserialize, Deserializer, Serialize};
use tests::Possessions;

const INPUTS: u64 = 8;
const FAULTY: u64 = 3;
const LIMIT: Duration = Duration::from_millis(400);

/// What a task may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Fault {
    Panic,
    PanicThatPanicsOnDrop,
    Undecodable,
    ExitZero,
    ExitThree,
    ExitInDestructor,
    Abort,
    Segfault,
    StackOverflow,
    Kill,
    Term,
    OutOfMemory,
    Hang,
    Stop,
    CloseStandardStreams,
    CloseAll,
    RubbishIntoAll,
    LeaveThread,
    SetSid,
    ChangeDirectory,
    LowerLimits,
    LeaveGrandchild,
}

/// The expected outcome of the faulty input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    Panicked,
    Undecodable,
    Signal(&'static str),
    /// It aborts, and the error names the limit.
    OutOfMemory,
    Code(i32),
    PastLimit,
}

const FAULTS: [(Fault, Expected); 22] = {
    use Expected::{Code, OutOfMemory, Panicked, PastLimit, Signal, Undecodable, Value};
    [
        (Fault::Panic, Panicked),
        (Fault::PanicThatPanicsOnDrop, Panicked),
        (Fault::Undecodable, Undecodable),
        (Fault::ExitZero, Code(0)),
        (Fault::ExitThree, Code(3)),
        (Fault::ExitInDestructor, Code(5)),
        (Fault::Abort, Signal("SIGABRT")),
        (Fault::Segfault, Signal("SIGSEGV")),
        (Fault::StackOverflow, Signal("SIGSEGV")),
        (Fault::Kill, Signal("SIGKILL")),
        (Fault::Term, Signal("SIGTERM")),
        (Fault::OutOfMemory, OutOfMemory),
        (Fault::Hang, PastLimit),
        (Fault::Stop, PastLimit),
        (Fault::CloseStandardStreams, Value),
        (Fault::CloseAll, Value),
        (Fault::RubbishIntoAll, Value),
        (Fault::LeaveThread, Value),
        (Fault::SetSid, Value),
        (Fault::ChangeDirectory, Value),
        (Fault::LowerLimits, Value),
        (Fault::LeaveGrandchild, Value),
    ]
};

/// A result that can always be encoded, but not always decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Output(u64);

const UNREADABLE: u64 = u64::MAX;

impl<'de> Deserialize<'de> for Output {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            UNREADABLE => Err(serde::de::Error::custom("on purpose")),
            value => Ok(Output(value)),
        }
    }
}

struct PanicsOnDrop;

impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
        panic::resume_unwind(Box::new("again"));
    }
}

struct ExitsOnDrop;

impl Drop for ExitsOnDrop {
    fn drop(&mut self) {
        process::exit(5);
    }
}

#[pool_task]
fn work(x: u64, fault: Fault) -> Output {
    if x == FAULTY {
        commit(fault);
        if fault == Fault::Undecodable {
            return Output(UNREADABLE);
        }
    }
    Output(x * x)
}

fn commit(fault: Fault) {
    let me = process::id() as libc::pid_t;
    match fault {
        Fault::Panic => panic::resume_unwind(Box::new("on purpose")),
        Fault::PanicThatPanicsOnDrop => panic::panic_any(PanicsOnDrop),
        Fault::Undecodable => {}
        Fault::ExitZero => process::exit(0),
        Fault::ExitThree => process::exit(3),
        Fault::ExitInDestructor => drop(ExitsOnDrop),
        Fault::Abort => process::abort(),
        // SAFETY: none, that is the fault.
        Fault::Segfault => unsafe { black_box(ptr::null_mut::<u8>()).write_volatile(1) },
        Fault::StackOverflow => _ = black_box(overflow(1)),
        // SAFETY: sends a signal to this process.
        Fault::Kill => _ = unsafe { libc::kill(me, libc::SIGKILL) },
        // SAFETY: as above.
        Fault::Term => _ = unsafe { libc::kill(me, libc::SIGTERM) },
        // SAFETY: as above.
        Fault::Stop => _ = unsafe { libc::kill(me, libc::SIGSTOP) },
        Fault::OutOfMemory => {
            limit(libc::RLIMIT_AS, 1 << 30);
            black_box(vec![1_u8; 2 << 30]);
        }
        Fault::Hang => loop {
            thread::sleep(Duration::from_secs(1));
        },
        // SAFETY: this program does not use them.
        Fault::CloseStandardStreams => (0..3).for_each(|fd| _ = unsafe { libc::close(fd) }),
        // SAFETY: as above, and the other open descriptors are the pool's.
        Fault::CloseAll => (0..1024).for_each(|fd| _ = unsafe { libc::close(fd) }),
        Fault::RubbishIntoAll => {
            let rubbish = [0xa5_u8; 4096];
            // Lower descriptors include those that the test reads.
            for fd in 3..1024 {
                // SAFETY: the bytes are ours.
                unsafe { libc::write(fd, rubbish.as_ptr().cast(), rubbish.len()) };
            }
        }
        Fault::LeaveThread => {
            thread::spawn(|| {
                loop {
                    thread::sleep(Duration::from_millis(1));
                    black_box(vec![1_u8; 1000]);
                }
            });
        }
        // SAFETY: takes no pointers.
        Fault::SetSid => _ = unsafe { libc::setsid() },
        Fault::ChangeDirectory => env::set_current_dir("/proc").expect("it is there"),
        Fault::LowerLimits => {
            limit(libc::RLIMIT_NOFILE, 3);
            limit(libc::RLIMIT_FSIZE, 0);
            limit(libc::RLIMIT_NPROC, 0);
        }
        Fault::LeaveGrandchild => {
            // SAFETY: the child makes system calls only.
            if unsafe { libc::fork() } == 0 {
                for _ in 0..5 {
                    // SAFETY: takes no pointers.
                    unsafe { libc::sleep(1) };
                }
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
        }
    }
}

fn overflow(depth: u64) -> u64 {
    let here = black_box([depth; 512]);
    if depth == u64::MAX {
        return 0;
    }
    here[depth as usize % 512] + overflow(black_box(depth + 1))
}

fn limit(resource: libc::__rlimit_resource_t, to: u64) {
    let limit = libc::rlimit {
        rlim_cur: to,
        rlim_max: to,
    };
    // SAFETY: the pointer is valid.
    unsafe { libc::setrlimit(resource, &raw const limit) };
}

/// What sandboxed workers must be permitted so that the task can do this. (Nothing permits it to leave its session, or to set
/// limits. It tries.)
fn permitted(fault: Fault, sandbox: Sandbox) -> Sandbox {
    match fault {
        Fault::LeaveThread => sandbox.threads(),
        Fault::LeaveGrandchild => sandbox.processes(),
        Fault::ChangeDirectory => sandbox.read("/proc"),
        Fault::OutOfMemory => sandbox.memory(1 << 30),
        _ => sandbox,
    }
}

/// Only what never ends is short of time: a backtrace, on a busy machine, is not.
fn limit_of(fault: Fault) -> Duration {
    match fault {
        Fault::Hang | Fault::Stop => LIMIT,
        _ => 100 * LIMIT,
    }
}

/// A way to run all inputs. Returns the outcome of each input, where the call tells it.
type Call = fn(&Pool, Option<usize>, Fault) -> Vec<Option<Result<Output, Error>>>;

const CALLS: [(&str, Call); 4] = [
    ("apply", |pool, _, fault| {
        let call = pool.task(work).time_limit(limit_of(fault));
        (0..INPUTS).map(|x| Some(call.apply((x, fault)))).collect()
    }),
    ("map", |pool, chunk, fault| {
        let mut call = pool.task(work).time_limit(limit_of(fault));
        if let Some(chunk) = chunk {
            call = call.chunksize(chunk);
        }
        let results = call.starmap_results((0..INPUTS).map(|x| (x, fault)));
        results.into_iter().map(Some).collect()
    }),
    ("imap", |pool, chunk, fault| {
        let mut call = pool.task(work).time_limit(limit_of(fault));
        if let Some(chunk) = chunk {
            call = call.chunksize(chunk);
        }
        call.istarmap((0..INPUTS).map(|x| (x, fault)))
            .map(Some)
            .collect()
    }),
    ("starmap_async", |pool, chunk, fault| {
        let mut call = pool.task(work).time_limit(limit_of(fault));
        if let Some(chunk) = chunk {
            call = call.chunksize(chunk);
        }
        // One error stands for all inputs.
        match call.starmap_async((0..INPUTS).map(|x| (x, fault))).get() {
            Ok(all) => all.into_iter().map(|value| Some(Ok(value))).collect(),
            Err(error) => {
                let mut error = Some(Err(error));
                let mut outcome = |x| if x == FAULTY { error.take() } else { None };
                (0..INPUTS).map(&mut outcome).collect()
            }
        }
    }),
];

/// Describes the outcome of an input, unless it is the expected one.
fn wrong(x: u64, outcome: &Result<Output, Error>, expected: Expected) -> Option<String> {
    let is_right = match (outcome, expected) {
        (Ok(value), Expected::Value) => *value == Output(x * x),
        (Err(Error::Panicked(_)), Expected::Panicked)
        | (Err(Error::Decode(_)), Expected::Undecodable)
        | (Err(Error::TimeLimit(_)), Expected::PastLimit) => true,
        (Err(Error::WorkerLost(lost)), Expected::Signal(name)) => lost.signal() == Some(name),
        (Err(Error::MemoryLimit(_)), Expected::OutOfMemory) => true,
        (Err(Error::WorkerLost(lost)), Expected::Code(code)) => lost.exit_code() == Some(code),
        _ => false,
    };
    (!is_right).then(|| format!("input {x}: {outcome:?}"))
}

fn main() -> Result<(), Error> {
    // A program may keep what it opens only once.
    drop(tests::pool(1)?);
    let held = Possessions::at_rest();
    let mut broken = Vec::new();
    println!(
        "{:<24} {:<14} {:<8} {:>9}  outcome",
        "fault", "call", "chunks", "took"
    );
    for (fault, expected) in FAULTS {
        for (name, call) in CALLS {
            for chunk in [None, Some(1), Some(4)] {
                if name == "apply" && chunk.is_some() {
                    continue;
                }
                let began = Instant::now();
                let pool = tests::pool_with(|sandbox| permitted(fault, sandbox), 2)?;
                let mut complaints: Vec<String> = (0..)
                    .zip(call(&pool, chunk, fault))
                    .filter_map(|(x, outcome)| {
                        let value = Expected::Value;
                        wrong(x, &outcome?, if x == FAULTY { expected } else { value })
                    })
                    .collect();
                let again = pool.task(work).starmap((10..30).map(|x| (x, Fault::Panic)));
                match again {
                    Ok(all) if all.len() == 20 => {}
                    other => complaints.push(format!("afterwards: {other:?}")),
                }
                drop(pool);
                complaints.extend(held.regained().err());
                let took = format!("{:.0?}", began.elapsed());
                let chunks = chunk.map_or("default".to_owned(), |size| size.to_string());
                let outcome = if complaints.is_empty() {
                    "as promised"
                } else {
                    "BROKEN"
                };
                println!(
                    "{:<24} {name:<14} {chunks:<8} {took:>9}  {outcome}",
                    format!("{fault:?}")
                );
                let _ = io::stdout().flush();
                broken.extend(
                    complaints
                        .into_iter()
                        .map(|why| format!("{fault:?}, {name}: {why}")),
                );
            }
        }
    }
    for why in &broken {
        println!("{why}");
    }
    if broken.is_empty() {
        println!("fine");
        Ok(())
    } else {
        process::exit(1)
    }
}
