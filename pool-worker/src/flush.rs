//! Whoever has a result should see what its task printed, so standard output is flushed before the reply.
//!
//! A thread that a task has left behind may hold the lock of standard output for ever. Where there are other
//! threads, a guard replies in the place of one that waits too long, and ends the process: it is of no more
//! use.

use std::io::{self, Write};
use std::mem;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::buffer::Buffer;
use crate::frames::Tag;
use crate::ring::Replies;

/// Flushing may take so long, at least.
const PATIENCE: Duration = Duration::from_millis(100);

/// The guard looks so often, and sleeps when there was nothing to look at for so long.
const LOOK: Duration = Duration::from_millis(50);
const AWAKE: Duration = Duration::from_secs(1);

/// Writes out what a task has printed and Rust or C still hold in a buffer, since a worker that is killed later would lose it.
pub(crate) fn flush_stdout() {
    let _ = io::stdout().flush();
    flush_c_stdout();
}

fn flush_c_stdout() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
        fn __fpending(file: *mut libc::FILE) -> libc::size_t;
    }
    // SAFETY: set by the C library before this code runs. A program may set it to another stream, when nothing else runs.
    let file = unsafe { stdout };
    // SAFETY: an open stream. It takes no lock; if another thread prints meanwhile, the number is of no importance.
    if !file.is_null() && unsafe { __fpending(file) } > 0 {
        // SAFETY: an open stream.
        unsafe { libc::fflush(file) };
    }
}

/// As [`flush_stdout`], but not for ever if another thread holds the lock.
pub(crate) fn flush_stdout_in_time() {
    if is_alone() {
        flush_stdout();
        return;
    }
    let (done, is_done) = mpsc::channel::<()>();
    let flushing = thread::Builder::new().spawn(move || {
        flush_stdout();
        drop(done);
    });
    if flushing.is_ok() {
        let _ = is_done.recv_timeout(PATIENCE);
    }
}

/// Flushes, then replies.
pub(crate) struct Flusher {
    replies: Replies,
    guard: Option<Arc<Guard>>,
}

struct Guard {
    replies: Replies,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What is to be replied when all is flushed, and since when.
    pending: Option<(Tag, Buffer, Instant)>,
    /// When there was something last.
    active: Instant,
    /// The guard sleeps until it is woken.
    asleep: bool,
}

impl Flusher {
    pub(crate) fn new(replies: Replies) -> Flusher {
        Flusher {
            replies,
            guard: None,
        }
    }

    pub(crate) fn replies(&self) -> &Replies {
        &self.replies
    }

    /// Flushes, then replies with these bytes, which are given back.
    #[inline]
    pub(crate) fn reply(&mut self, tag: Tag, bytes: Buffer) -> Buffer {
        let bytes = if is_alone() {
            flush_stdout();
            bytes
        } else {
            self.flush_guarded(tag, bytes)
        };
        self.replies.write(tag, &bytes);
        bytes
    }

    #[cold]
    fn flush_guarded(&mut self, tag: Tag, bytes: Buffer) -> Buffer {
        if self.guard.is_none() {
            self.guard = Guard::start(self.replies.clone());
        }
        let Some(guard) = &self.guard else {
            flush_stdout();
            return bytes;
        };
        guard.begin(tag, bytes);
        flush_stdout();
        guard.end()
    }
}

impl Guard {
    fn start(replies: Replies) -> Option<Arc<Guard>> {
        let guard = Arc::new(Guard {
            replies,
            state: Mutex::new(State {
                pending: None,
                active: Instant::now(),
                asleep: false,
            }),
            changed: Condvar::new(),
        });
        let watching = Arc::clone(&guard);
        thread::Builder::new()
            .name("pool-flush".to_owned())
            .stack_size(64 << 10)
            .spawn(move || watching.watch())
            .ok()?;
        Some(guard)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, tag: Tag, bytes: Buffer) {
        let mut state = self.lock();
        let now = Instant::now();
        state.pending = Some((tag, bytes, now));
        state.active = now;
        if mem::take(&mut state.asleep) {
            self.changed.notify_one();
        }
    }

    /// All is flushed. Gives the bytes back, unless the guard has replied.
    fn end(&self) -> Buffer {
        let pending = self.lock().pending.take();
        match pending {
            Some((_, bytes, _)) => bytes,
            // It is about to end this process.
            None => loop {
                thread::park();
            },
        }
    }

    fn watch(&self) {
        let mut state = self.lock();
        loop {
            let late = |(_, _, since): &mut (Tag, Buffer, Instant)| since.elapsed() > PATIENCE;
            if let Some((tag, bytes, _)) = state.pending.take_if(late) {
                self.replies.write(tag, &bytes);
                // SAFETY: ends the process without running anything of it: the lock is held for ever.
                unsafe { libc::_exit(0) };
            }
            state = if state.active.elapsed() > AWAKE && state.pending.is_none() {
                state.asleep = true;
                let woken = self.changed.wait_while(state, |state| state.asleep);
                woken.unwrap_or_else(PoisonError::into_inner)
            } else {
                let woken = self.changed.wait_timeout(state, LOOK);
                woken.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

/// Whether this process has one thread only, as far as the C library knows; then nobody else can hold a lock.
#[inline]
fn is_alone() -> bool {
    static WORD: OnceLock<Option<&'static libc::c_char>> = OnceLock::new();
    let word = WORD.get_or_init(|| {
        // SAFETY: looks a name up among what is loaded.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
        // SAFETY: glibc says that it is a `char` that lives as long as the process; null where it does not exist.
        unsafe { found.cast::<libc::c_char>().as_ref() }
    });
    match word {
        // SAFETY: as above. Other threads write it, so it is read anew each time.
        Some(word) => unsafe { std::ptr::from_ref(*word).read_volatile() != 0 },
        None => true,
    }
}
