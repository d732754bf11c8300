//! The worker's end: from the first instruction to the exit.
//!
//! Everything happens on the main thread, one request after the other. Nothing is printed: errors are reported to the parent,
//! or the parent notices them when this process ends.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::process;
use std::ptr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, getppid, set_parent_process_death_signal, setsid};

use crate::attach::{self, Attached, Attachment};
use crate::bell::Bell;
use crate::buffer::{Arrived, Buffer};
use crate::capture::Marks;
use crate::channel;
use crate::clock;
use crate::codec::{Input, Rest};
use crate::contain;
use crate::decode;
use crate::entry::{Call, Role};
use crate::fault::{Fault, Panic};
use crate::flush::{Flusher, flush_stdout_in_time};
use crate::frames::{FRAME_MAX, Frames, Tag};
use crate::greeting::{self, Handed, Step, Voice};
use crate::leave;
use crate::lineage::lineage;
#[cfg(feature = "tracing")]
use crate::log::Logs;
use crate::memory::Constant;
use crate::meter::{Gauge, Meter};
use crate::registry::{self, Found, Registration, RunError};
use crate::report::{Ending, Teller};
use crate::resident;
use crate::ring::{self, Body, Came, Replies, Request, Requests, Run};
use crate::sandbox;
use crate::scarce::no;
use crate::starve;
use crate::sync::Shared;
use crate::unwind;
use crate::zygote;

/// A result buffer that has grown larger than this is not kept for further results but recycled for requests.
const KEEP: usize = 64 << 10;

/// While the worker is busy, it keeps up to this many attachments that are no longer needed.
const FORGOTTEN_MAX: usize = 16;

static INDEX: OnceLock<usize> = OnceLock::new();

/// The index of this worker in its pool; `None` if this process is not a worker.
pub fn index() -> Option<usize> {
    INDEX.get().copied()
}

/// The exit code of a worker whose parent is gone.
pub(crate) const NO_PARENT: i32 = 113;

pub(crate) fn serve(mut call: Call) {
    // Workers inherit only descriptors 0, 1 and 2 from the parent.
    close_from(3);
    if call.role == Role::Zygote {
        call = zygote::serve(&call);
    }
    let _ = INDEX.set(call.index);
    open_standard_streams();
    if call.role == Role::Contained {
        match contain::enter(call.parent, call.index) {
            Ok(true) => call.parent = contain::FIRST,
            Ok(false) => process::exit(NO_PARENT),
            Err(error) => {
                greeting::say_unfit(&error, rustix::stdio::stdin());
                process::exit(NO_PARENT);
            }
        }
    }
    set_signals();
    // A new session keeps terminal signals away from this process, and makes it the leader of a process group.
    let _ = setsid();
    let _ = rustix::thread::set_name(
        &CString::new(format!("pool-worker-{}", call.index)).unwrap_or_default(),
    );
    let stdin = rustix::stdio::stdin();
    let connected = match greeting::take_socket().map(Arc::new) {
        Ok(voice) => {
            connect(&call, &voice).inspect_err(|error| greeting::say_unfit(error, &*voice))
        }
        Err(error) => {
            greeting::say_unfit(&error, stdin);
            Err(error)
        }
    };
    match connected {
        Ok(mut worker) => {
            leave::watch();
            worker.run();
            leave::be_gone();
            worker.finalize();
            // The process ends now, so nothing needs to be dropped.
            mem::forget(worker);
        }
        Err(_) => process::exit(NO_PARENT),
    }
}

/// Closes all descriptors from `first` on.
pub(crate) fn close_from(first: i32) {
    // SAFETY: this runs before `main`, so open descriptors were inherited, or opened by constructors that ran before ours;
    // those must not rely on descriptors in a worker. A Rust owner of a descriptor opened by then is forgotten.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if closed == 0 {
        return;
    }
    // The kernel is older than 5.9, or a seccomp filter does not know the call.
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd >= first) {
        // SAFETY: as above. The list includes the descriptor of the directory itself, which is already closed; closing it
        // again does no harm.
        unsafe { libc::close(fd) };
    }
}

/// Opens those of descriptors 0, 1 and 2 that the parent has closed. Otherwise a channel or a file might get one of these
/// numbers, and what tasks print would be written to it. `std` does the same before `main`, but this code runs earlier.
pub(crate) fn open_standard_streams() {
    // The lowest free number is always used. Children of this process inherit these descriptors.
    while let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            return;
        }
        let _ = null.into_raw_fd();
    }
}

/// Does what `std` would do before `main`, as far as a node needs it.
pub(crate) fn prepare_for_node() {
    open_standard_streams();
    set_signals();
}

/// Ignores SIGPIPE, as `std` does before `main`, but this code runs earlier: the death of the parent must not kill this
/// process in the middle of a write. And unblocks all signals, since a worker inherits the signal mask of the parent's
/// thread, and a worker that blocks SIGTERM would delay every `terminate`.
pub(crate) fn set_signals() {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initializes the set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set is initialized; null: the old set is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// Connects to the parent and becomes a worker; fails if the parent is gone.
fn connect(call: &Call, voice: &Arc<Voice>) -> io::Result<Worker> {
    if !end_with(call.parent).map_err(no("signal on the death of its parent"))? {
        return Err(io::Error::other("the parent is gone"));
    }
    let Handed {
        introduction,
        rings,
        bell,
        line,
        attachments,
        args,
        marks,
    } = greeting::receive_introduction(voice)
        .map_err(no("descriptors for what the parent hands over"))?;
    let attachments = attach::Receiver::new(attachments);
    decode::set_stack(introduction.decode_stack);
    let memory = Shared::open(&rings, ring::tallies_len()).map_err(no("memory for its rings"))?;
    drop(rings);
    let rung = Bell::open(&bell, introduction.cpus).map_err(no("memory for its bell"))?;
    drop(bell);
    let args = args.map(|fd| Constant::open(&fd, introduction.setup.unwrap_or_default()));
    let args = args.transpose();
    let args = args.map_err(no("memory for the arguments of its initializers"))?;
    let (mut requests, replies) = Replies::open(memory, rung, call.index);
    // Where a panic aborts the process, nothing runs after the hook, so the hook itself reports the panic.
    let aborting = cfg!(panic = "abort").then(|| (Arc::clone(voice), replies.clone()));
    unwind::install(move |panic| {
        if let Some((voice, replies)) = &aborting {
            if FINALIZING.get().is_some() {
                return;
            }
            let fault = Fault::Panicked(panic);
            if INITIALIZED.get().is_some() {
                replies.write(Tag::Fault, &fault.to_bytes().into());
            } else {
                replies.write_aside(Tag::Fault, &fault.to_bytes_within(FRAME_MAX));
                let _ = voice.announce();
            }
        }
    });
    starve::watch(replies.clone());
    let _ = PARENT.set(call.parent);
    let this = lineage();
    channel::install(replies.clone(), this);
    #[cfg(feature = "tracing")]
    let mut logs = Logs::new(&replies);
    let steps = voice.greet(line, call.token.clone(), introduction.setup.is_some())?;
    let mut finalizers = Vec::new();
    let mut flusher = Flusher::new(replies.clone());
    if let Some(steps) = steps {
        for _ in 0..introduction.attachments {
            match requests.next(|| ()) {
                Request::Attach(id, came) => keep(&attachments, id, came),
                _ => process::abort(),
            }
        }
        let run = |step: &Step| {
            let run = || run_step(step, args.as_ref());
            #[cfg(feature = "tracing")]
            return logs.within(run);
            #[cfg(not(feature = "tracing"))]
            run()
        };
        let confine = || match &steps.sandbox {
            Some(sandbox) => sandbox::enter(sandbox, &mut flusher),
            None => Ok(()),
        };
        let is_ready = initialize(&steps.initializers, run, confine, |result| {
            match result {
                Ok(()) => replies.write_aside(Tag::Value, &[]),
                Err(fault) => replies.write_aside(Tag::Fault, &fault.to_bytes_within(FRAME_MAX)),
            }
            // An initializer may have closed the socket. The parent notices that as well.
            let _ = voice.announce();
        })?;
        if !is_ready {
            process::exit(0);
        }
        finalizers = steps.finalizers;
    }
    let _ = INITIALIZED.set(());
    #[cfg(feature = "tracing")]
    logs.begin();
    Ok(Worker {
        requests,
        runner: Runner {
            flusher,
            lineage: this,
            tells_memory: introduction.tells_memory,
            marks,
            result: Vec::new(),
            large: None,
            meter: Meter::default(),
            teller: Teller::new(introduction.tells),
            bound: (0, Ok(None)),
            forgotten: Vec::new(),
            #[cfg(feature = "tracing")]
            logs,
        },
        attachments,
        args: args.filter(|_| !finalizers.is_empty()),
        finalizers,
    })
}

/// Runs initializers and reports the result of each; without initializers, reports success once. Before the last report, with
/// which the worker is ready, calls `confine`. Returns false if an initializer has failed, and an error if `confine` has.
fn initialize(
    initializers: &[Step],
    mut run: impl FnMut(&Step) -> Result<(), Fault>,
    confine: impl FnOnce() -> io::Result<()>,
    mut say: impl FnMut(Result<(), Fault>),
) -> io::Result<bool> {
    let (last, others) = match initializers.split_last() {
        Some((last, others)) => (Some(last), others),
        None => (None, initializers),
    };
    for initializer in others {
        let result = run(initializer);
        let is_well = result.is_ok();
        say(result);
        if !is_well {
            return Ok(false);
        }
    }
    let result = last.map_or(Ok(()), run);
    let is_well = result.is_ok();
    if is_well {
        confine()?;
    }
    say(result);
    Ok(is_well)
}

/// Runs a task for its effect, and flushes what it has printed.
fn run_step(step: &Step, args: Option<&Constant>) -> Result<(), Fault> {
    let this = lineage();
    let input = Input::new(Rest::Shared(step.arguments(args)), None);
    let result = call_for_effect(step.task(), input);
    end_if_copy_of(this);
    flush_stdout_in_time();
    result
}

/// The parent of this worker.
static PARENT: OnceLock<u32> = OnceLock::new();

/// Makes sure that this process still ends with its parent: when a task changes the user of the process, the kernel clears
/// the parent-death signal.
pub(crate) fn stay_with_parent() {
    if let Some(parent) = PARENT.get()
        && matches!(end_with(*parent), Ok(false))
    {
        process::exit(NO_PARENT);
    }
}

/// Has this process killed when its parent dies. Returns false if the parent is already gone. (The signal covers its death
/// from now on, the comparison of pids covers an earlier one.)
pub(crate) fn end_with(parent: u32) -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let found = getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    Ok(found == Some(parent))
}

/// Ends this process if it is a copy of the worker that a task made by `fork`, and that has returned from the task as well.
pub(crate) fn end_if_copy_of(worker: u32) {
    if lineage() != worker {
        // SAFETY: ends the copy without running exit handlers or flushing buffers, which are the worker's.
        unsafe { libc::_exit(0) };
    }
}

/// Set when the initializers have finished.
static INITIALIZED: OnceLock<()> = OnceLock::new();

/// Set when nothing but finalizers will run.
static FINALIZING: OnceLock<()> = OnceLock::new();

struct Worker {
    requests: Requests,
    runner: Runner,
    attachments: attach::Receiver,
    finalizers: Vec<Step>,
    /// The arguments of the finalizers.
    args: Option<Constant>,
}

impl Worker {
    /// Serves requests until the parent asks the worker to exit.
    fn run(&mut self) {
        loop {
            let Worker {
                requests, runner, ..
            } = self;
            match requests.next(|| runner.pause()) {
                Request::Run(run) => runner.run(run),
                Request::Attach(id, came) => keep(&self.attachments, id, came),
                Request::Detach(id) => {
                    runner.unbind(id);
                    runner.forgotten.extend(attach::forget(id));
                    if runner.forgotten.len() > FORGOTTEN_MAX {
                        runner.drop_forgotten();
                    }
                }
                Request::Bind(id) => runner.bind(id),
                Request::Exit => {
                    runner.pause();
                    return;
                }
            }
            if let Some(buffer) = runner.large.take() {
                requests.recycle(buffer);
            }
        }
    }

    /// Runs the finalizers. Their results are not reported.
    fn finalize(&self) {
        let _ = FINALIZING.set(());
        if let Some(marks) = &self.runner.marks {
            marks.end();
        }
        for finalizer in &self.finalizers {
            let _ = run_step(finalizer, self.args.as_ref());
        }
    }
}

/// Keeps an attachment for the inputs that need it, which come later.
fn keep(attachments: &attach::Receiver, id: u64, came: Came<'_>) {
    attach::keep(
        id,
        match came {
            Came::Here(bytes) => Ok(Attached::short(bytes)),
            Came::AsDescriptor(len) => attachments.map(id, len),
            Came::Channel(place, start) => {
                channel::has_come(place, start);
                Ok(Attached::of_channel(place))
            }
        },
    );
}

pub(crate) fn find(number: u32) -> Result<&'static Registration, Fault> {
    match registry::find(number) {
        Found::Task(task) => Ok(task),
        Found::Nothing => Err(Fault::Unknown("no such task in this program".to_owned())),
        Found::Several(id) => Err(Fault::Unknown(format!(
            "several tasks `{id}`: tell them apart with `#[pool_task(name = \"…\")]`"
        ))),
    }
}

/// Runs a task and appends its encoded result to `out`; a long block is returned instead.
pub(crate) fn call_task(
    task: &Registration,
    args: Input<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Buffer>, Fault> {
    to_result(unwind::catch(|| task.run(args, out)))
}

/// Runs a task whose result is ignored unless it is an error.
pub(crate) fn call_for_effect(task: u32, args: Input<'_>) -> Result<(), Fault> {
    let task = find(task)?;
    let result = to_result(unwind::catch(|| task.run_for_effect(args)));
    // Such a task may have set a panic hook.
    unwind::stay_on_top();
    result
}

#[inline]
fn to_result<T>(result: Result<Result<T, RunError>, Panic>) -> Result<T, Fault> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(RunError::Decode(error))) => Err(Fault::Decode(error.to_string())),
        Ok(Err(RunError::Encode(error))) => Err(Fault::Encode(error.to_string())),
        Ok(Err(RunError::Returned(error))) => Err(Fault::Returned(error)),
        Err(panic) => Err(Fault::Panicked(panic)),
    }
}

/// From now on, panics of tasks that run [here](run_here) are reported with their locations, as in a worker, instead of being
/// passed on to the program's panic hook. Other panics still go to that hook.
pub fn report_panics_here() {
    unwind::install_here();
}

/// Runs inputs of a task in this process, whether it is a worker or not, and passes each reply to `reply`, in order, until
/// that returns false.
pub fn run_here(task: u32, mut inputs: Frames, mut reply: impl FnMut(Frames) -> bool) {
    let attachments: Vec<Arc<Attachment>> = inputs.attachments().map(Arc::clone).collect();
    let bound = inputs.bound().map(|bound| bound.id());
    attach::within(attachments.iter(), || {
        let terms = bound.map(attach::find).transpose().map_err(Fault::Decode);
        let terms = terms.and_then(|bound| Ok((find(task)?, bound)));
        while let Some((_, input)) = inputs.pop() {
            let goes_on = reply(match &terms {
                Ok((task, bound)) => run_one_here(task, bound.as_deref(), input),
                Err(fault) => Frames::alone(Tag::Fault, fault.to_bytes()),
            });
            if !goes_on {
                return;
            }
        }
    });
}

/// Runs a task for its effect in this process, as [`run_here`] does: with these arguments, which refer to the attachments in
/// `held`.
///
/// # Errors
///
/// If it panics or returns an error, or if the arguments can't be decoded.
pub fn prepare_here(task: u32, arguments: &[u8], held: &[Arc<Attachment>]) -> Result<(), Fault> {
    attach::within(held.iter(), || {
        call_for_effect(task, Input::new(Rest::Shared(arguments), None))
    })
}

fn run_one_here(task: &Registration, bound: Option<&Attached>, input: Arrived<'_>) -> Frames {
    let mut result = Vec::new();
    let outcome = match input {
        Arrived::Lent(bytes) => {
            let input = Input::new(Rest::Shared(bytes), bound);
            call_task(task, input, &mut result)
        }
        Arrived::Own(mut buffer) => {
            let input = Input::new(Rest::Buffer(&mut buffer), bound);
            call_task(task, input, &mut result)
        }
    };
    match outcome {
        Ok(block) => Frames::alone(Tag::Value, block.unwrap_or(result.into())),
        Err(fault) => Frames::alone(Tag::Fault, fault.to_bytes()),
    }
}

/// What the inputs of a portion have in common.
struct Terms<'a> {
    task: &'a Result<&'static Registration, Fault>,
    generation: u32,
    limited: bool,
}

/// Runs inputs and replies to each.
struct Runner {
    flusher: Flusher,
    /// The [`lineage`] of this process; that of a forked copy differs.
    lineage: u32,
    tells_memory: bool,
    /// Separate the output of one input from that of others.
    marks: Option<Marks>,
    result: Vec<u8>,
    /// The buffer of the last long reply.
    large: Option<Buffer>,
    meter: Meter,
    /// Reports when inputs begin and end, if the parent wants that.
    teller: Option<Teller>,
    /// The attachment with the arguments that inputs begin with: its id, and its content, or why that can't be used.
    bound: (u64, Result<Option<Rc<Attached>>, String>),
    /// Attachments that are no longer needed. Dropping values that tasks have decoded may take a while, so this is done when
    /// there is nothing else to do.
    forgotten: Vec<Rc<Attached>>,
    #[cfg(feature = "tracing")]
    logs: Logs,
}

impl Runner {
    fn run(&mut self, run: Run<'_>) {
        let Run {
            task: number,
            generation,
            limited,
            submitted,
            waited,
            body,
        } = run;
        #[cfg(feature = "tracing")]
        self.logs.follow();
        let task = find(number);
        let terms = Terms {
            task: &task,
            generation,
            limited,
        };
        self.meter
            .take_up(number, submitted, waited, limited, self.flusher.replies());
        if let Some(teller) = &mut self.teller {
            teller.take_up(number);
        }
        match body {
            Body::Many(count, frames) => {
                let mut left = count;
                for (_, args) in Frames::read(frames, count) {
                    left -= 1;
                    if !self.one(&terms, Rest::Shared(args), left == 0) {
                        if let Some(teller) = &mut self.teller {
                            teller.cut(self.flusher.replies());
                        }
                        break;
                    }
                }
            }
            Body::Alone(args) => {
                self.one(&terms, Rest::Buffer(args), true);
            }
            Body::TooLong(len) => self.refuse(&terms, len),
        }
    }

    /// Runs one input, which may be the last of its portion; false if it was taken back.
    #[inline]
    fn one(&mut self, terms: &Terms<'_>, args: Rest<'_>, is_last: bool) -> bool {
        if terms.limited {
            let now = clock::now_ns();
            self.meter.read_before(now, self.flusher.replies());
            self.flusher.replies().begins_at(now);
        }
        if !self.flusher.replies().begin(terms.generation) {
            return false;
        }
        if let Some(marks) = &self.marks {
            marks.begin_input(self.flusher.replies().begun());
        }
        if let Some(teller) = &mut self.teller {
            teller.begin(self.flusher.replies());
        }
        self.result.clear();
        let outcome = match (terms.task, &self.bound.1) {
            (Ok(task), Ok(bound)) => {
                let input = Input::new(args, bound.as_deref());
                call_task(task, input, &mut self.result)
            }
            (Err(unknown), _) => Err(unknown.clone()),
            (_, Err(why)) => Err(Fault::Decode(why.clone())),
        };
        end_if_copy_of(self.lineage);
        if self.tells_memory {
            let memory = resident::of_this_process().unwrap_or_default();
            self.flusher.replies().set_memory(memory);
        }
        if let Some(teller) = &mut self.teller {
            teller.end(Ending::of(&outcome), is_last, self.flusher.replies());
        }
        let (tag, reply) = match outcome {
            Ok(Some(block)) => (Tag::Value, block),
            Ok(None) => (Tag::Value, mem::take(&mut self.result).into()),
            Err(fault) => (Tag::Fault, fault.to_bytes().into()),
        };
        let reply = self.flusher.reply(tag, reply);
        if reply.capacity() > KEEP {
            self.large = Some(reply);
        } else {
            self.result = reply.into_vec();
        }
        self.meter.count(self.flusher.replies());
        true
    }

    /// Replies to an input for which there is no memory.
    fn refuse(&mut self, terms: &Terms<'_>, len: u64) {
        let replies = self.flusher.replies();
        if replies.begin(terms.generation) {
            let why = format!("the worker has no memory for {len} bytes of arguments");
            replies.write(Tag::Fault, &Fault::Decode(why).to_bytes().into());
        }
    }

    /// From now on, inputs begin with the arguments in this attachment; with none, if `id` is 0.
    fn bind(&mut self, id: u64) {
        let bound = if id == 0 {
            Ok(None)
        } else {
            attach::find(id).map(Some)
        };
        self.bound = (id, bound);
    }

    /// From now on, no inputs begin with the arguments in this attachment.
    fn unbind(&mut self, id: u64) {
        if self.bound.0 == id {
            self.bind(0);
        }
    }

    fn drop_forgotten(&mut self) {
        while let Some(forgotten) = self.forgotten.pop() {
            // This runs code of the user's. A panic there affects no input.
            let _ = unwind::catch(|| drop(forgotten));
            end_if_copy_of(self.lineage);
        }
    }

    /// There is nothing to do for a while.
    fn pause(&mut self) {
        // What is written from now on, by threads that a task has left behind, belongs to no input.
        if let Some(marks) = &self.marks {
            marks.end();
        }
        self.drop_forgotten();
        self.meter.stop(self.flusher.replies());
    }
}

impl Gauge for Replies {
    #[inline]
    fn now(&self) -> u64 {
        clock::now_ns()
    }

    #[inline]
    fn stalled(&self) -> u64 {
        Replies::stalled(self)
    }

    #[inline]
    fn was_read(&self, now: u64) {
        self.set_read_at(now);
    }

    fn pace(&self, task: u32, each_ns: u64) {
        self.set_pace(task, each_ns);
    }

    #[inline]
    fn ran(&self, task: u32, each_ns: u64, times: u64, sum_ns: u64) {
        if let Some(tally) = self.tally(task) {
            tally.ran.record(each_ns, times, sum_ns);
        }
    }

    #[inline]
    fn waited(&self, task: u32, waited: Option<u64>, times: u64) {
        if let Some(tally) = self.tally(task) {
            match waited {
                Some(waited) => tally.waited.record_for_skipped(waited, times),
                None => tally.waited.skip(times),
            }
        }
    }
}
