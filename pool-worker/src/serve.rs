//! The worker's end: from the first instruction to the exit.
//!
//! Everything happens on the main thread, one request after the other. Nothing is printed: what
//! goes wrong is told to the parent, or seen by it as the end of this process.

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
use crate::scarce::no;
use crate::starve;
use crate::sync::Shared;
use crate::unwind;
use crate::zygote;

/// A buffer for results that has become larger than this is used for something else.
const KEEP: usize = 64 << 10;

/// So many attachments that are needed no more are kept while there is something to do.
const FORGOTTEN_MAX: usize = 16;

static INDEX: OnceLock<usize> = OnceLock::new();

/// Which worker of its pool this process is; `None` if it is no worker.
pub fn index() -> Option<usize> {
    INDEX.get().copied()
}

/// The exit code of a worker that found no parent to work for.
pub(crate) const NO_PARENT: i32 = 113;

pub(crate) fn serve(mut call: Call) {
    // The parent's descriptors are its own business; workers get 0, 1 and 2.
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
    // No terminal stops this process, nor do its keys reach it; it leads a process group, too.
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
            // The process ends, and everything with it.
            mem::forget(worker);
        }
        Err(_) => process::exit(NO_PARENT),
    }
}

/// Closes all descriptors from this on.
pub(crate) fn close_from(first: i32) {
    // SAFETY: we are before `main`, so what is open was inherited, or opened by constructors that ran before ours;
    // those must not count on descriptors in a worker. What Rust has opened by then, its owner forgets.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if closed == 0 {
        return;
    }
    // A kernel before 5.9, or a filter that does not know the call.
    let Ok(open) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<i32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd >= first) {
        // SAFETY: as above; closing the directory's own, closed by now, does no harm.
        unsafe { libc::close(fd) };
    }
}

/// What the parent has closed of 0, 1 and 2 must not become the number of a channel or of a file,
/// because tasks print. `std` does this before `main`, but we are earlier.
pub(crate) fn open_standard_streams() {
    // Descriptors are numbered from below. These are for this process's children as well.
    while let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
        if null.as_raw_fd() > 2 {
            return;
        }
        let _ = null.into_raw_fd();
    }
}

/// What `std` would do before `main` and a node needs.
pub(crate) fn prepare_for_node() {
    open_standard_streams();
    set_signals();
}

/// `std` ignores SIGPIPE before `main`, but we are earlier: a parent that is gone must not kill us in
/// the middle of a write. And what the parent's thread had blocked is blocked here too, until it is
/// not: a worker that is deaf to SIGTERM would make every `terminate` wait.
pub(crate) fn set_signals() {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initializes the set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set is initialized; nobody asks for the old one.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

/// Becomes a worker; gives up without a parent.
fn connect(call: &Call, voice: &Arc<Voice>) -> io::Result<Worker> {
    if !end_with(call.parent).map_err(no("signal of its parent's death"))? {
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
    } = greeting::receive_introduction(voice).map_err(no("descriptors for what it was handed"))?;
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
    // Where a panic aborts, the hook has the last word.
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
        let is_ready = initialize(&steps.initializers, run, |result| {
            match result {
                Ok(()) => replies.write_aside(Tag::Value, &[]),
                Err(fault) => replies.write_aside(Tag::Fault, &fault.to_bytes_within(FRAME_MAX)),
            }
            // An initializer may have closed the socket. That it is closed tells the parent as much.
            let _ = voice.announce();
        });
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
            flusher: Flusher::new(replies),
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

/// Runs initializers, and says what came of each; at least once that all is well. False: one has failed.
fn initialize(
    initializers: &[Step],
    mut run: impl FnMut(&Step) -> Result<(), Fault>,
    mut say: impl FnMut(Result<(), Fault>),
) -> bool {
    if initializers.is_empty() {
        say(Ok(()));
    }
    initializers.iter().all(|initializer| {
        let result = run(initializer);
        let is_well = result.is_ok();
        say(result);
        is_well
    })
}

/// Runs a task for its effect. What it has printed is printed.
fn run_step(step: &Step, args: Option<&Constant>) -> Result<(), Fault> {
    let this = lineage();
    let input = Input::new(Rest::Shared(step.arguments(args)), None);
    let result = call_for_effect(step.task(), input);
    end_if_copy_of(this);
    flush_stdout_in_time();
    result
}

/// The process that this one is a worker of.
static PARENT: OnceLock<u32> = OnceLock::new();

/// Sees to it that this process ends with its parent: a task that changes its user loses the signal that says so.
pub(crate) fn stay_with_parent() {
    if let Some(parent) = PARENT.get()
        && matches!(end_with(*parent), Ok(false))
    {
        process::exit(NO_PARENT);
    }
}

/// Binds this process to its parent. False: that is gone. (The signal tells of its death from now on, the comparison of any
/// death before.)
pub(crate) fn end_with(parent: u32) -> io::Result<bool> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let found = getppid().map(|pid| pid.as_raw_nonzero().get() as u32);
    Ok(found == Some(parent))
}

/// Ends this process if it is a copy of the worker that a task has made by `fork`, and that has returned from it too.
pub(crate) fn end_if_copy_of(worker: u32) {
    if lineage() != worker {
        // SAFETY: ends the copy, and runs nothing of it: the worker's handlers and buffers are the worker's.
        unsafe { libc::_exit(0) };
    }
}

/// Set when the initializers are through.
static INITIALIZED: OnceLock<()> = OnceLock::new();

/// Set when nothing runs any more but finalizers.
static FINALIZING: OnceLock<()> = OnceLock::new();

struct Worker {
    requests: Requests,
    runner: Runner,
    attachments: attach::Receiver,
    finalizers: Vec<Step>,
    /// Their arguments are in there.
    args: Option<Constant>,
}

impl Worker {
    /// Serves until the parent says so.
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

    /// Runs what it is to run as it leaves. What comes of it is told to nobody.
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

/// Keeps what comes before those that need it.
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

/// Runs a task, and appends its encoded result to `out`; or gives it back, if it is a long block.
pub(crate) fn call_task(
    task: &Registration,
    args: Input<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Buffer>, Fault> {
    what_came(unwind::catch(|| task.run(args, out)))
}

/// Runs a task whose result nobody wants, unless it is an error.
pub(crate) fn call_for_effect(task: u32, args: Input<'_>) -> Result<(), Fault> {
    let task = find(task)?;
    let result = what_came(unwind::catch(|| task.run_for_effect(args)));
    // Such a task may have set a panic hook.
    unwind::stay_on_top();
    result
}

#[inline]
fn what_came<T>(result: Result<Result<T, RunError>, Panic>) -> Result<T, Fault> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(RunError::Decode(error))) => Err(Fault::Decode(error.to_string())),
        Ok(Err(RunError::Encode(error))) => Err(Fault::Encode(error.to_string())),
        Ok(Err(RunError::Returned(error))) => Err(Fault::Returned(error)),
        Err(panic) => Err(Fault::Panicked(panic)),
    }
}

/// Has panics in what runs [here](run_here) reported with their locations, as in a worker, instead of passed on to the panic hook of the
/// program. Other panics go there as ever.
pub fn report_panics_here() {
    unwind::install_here();
}

/// Runs inputs of a task in this process, whether it is a worker or not, and gives the reply to each, in order, until
/// that says false.
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

/// Runs a task for its effect in this process, as [`run_here`] does: with these arguments, which refer to what is held.
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
    /// That of this process, and of no copy of it.
    lineage: u32,
    tells_memory: bool,
    /// Tell the output of one input from that of others.
    marks: Option<Marks>,
    result: Vec<u8>,
    /// What a long reply was in.
    large: Option<Buffer>,
    meter: Meter,
    /// Reports inputs, if the parent wants to know.
    teller: Option<Teller>,
    /// The arguments that inputs begin with, and the attachment's id; or why they could not be had.
    bound: (u64, Result<Option<Rc<Attached>>, String>),
    /// What is needed no more. To drop what tasks have decoded may take a while, so that is done when there is nothing else
    /// to do.
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
            .take_up(number, submitted, waited, self.flusher.replies());
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
        self.meter.count(terms.limited, self.flusher.replies());
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

    /// The inputs that follow begin with what is in this attachment; or with nothing, if it is 0.
    fn bind(&mut self, id: u64) {
        let bound = if id == 0 {
            Ok(None)
        } else {
            attach::find(id).map(Some)
        };
        self.bound = (id, bound);
    }

    /// No more inputs begin with this.
    fn unbind(&mut self, id: u64) {
        if self.bound.0 == id {
            self.bind(0);
        }
    }

    fn drop_forgotten(&mut self) {
        while let Some(forgotten) = self.forgotten.pop() {
            // It is the user's. A panic there harms no input.
            let _ = unwind::catch(|| drop(forgotten));
            end_if_copy_of(self.lineage);
        }
    }

    /// There is nothing to do for a while.
    fn pause(&mut self) {
        // What threads write that a task has left behind belongs to no input.
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
