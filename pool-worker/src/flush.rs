//! Flushes standard output before each reply, so that what a task has printed is visible once its result is there.
//!
//! A thread that a task has left behind may hold the lock of standard output forever. So where there are other threads, a
//! guard watches: if flushing takes too long, it writes the reply itself, and ends the process, which is of no more use.
//! While standard output is full, because it is read slowly, flushing may take any time, as in a process with one thread.

use std::io::{self, Write};
use std::mem;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::buffer::Buffer;
use crate::frames::Tag;
use crate::ring::Replies;

/// Flushing may take at least this long while standard output is not full.
const PATIENCE: Duration = Duration::from_millis(100);

/// The guard looks every `LOOK`, and sleeps when there was nothing to flush for `AWAKE`.
const LOOK: Duration = Duration::from_millis(50);
const AWAKE: Duration = Duration::from_secs(1);

/// Writes out what a task has printed and Rust or C still buffer, since it would be lost if the worker were killed later.
pub(crate) fn flush_stdout() {
    let _ = io::stdout().flush();
    flush_c_stdout();
}

fn flush_c_stdout() {
    unsafe extern "C" {
        static stdout: *mut libc::FILE;
        fn __fpending(file: *mut libc::FILE) -> libc::size_t;
    }
    // SAFETY: set by the C library before this code runs. A program may set it to another stream only while nothing else
    // runs.
    let file = unsafe { stdout };
    // SAFETY: an open stream. `__fpending` takes no lock; if another thread prints at the same time, the number does not
    // matter.
    if !file.is_null() && unsafe { __fpending(file) } > 0 {
        // SAFETY: an open stream.
        unsafe { libc::fflush(file) };
    }
}

/// As [`flush_stdout`], but gives up if another thread holds the lock for too long.
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
    if flushing.is_err() {
        return;
    }
    let mut patience = Patience::new(Instant::now());
    while is_done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
        && !patience.is_over(Instant::now(), is_full)
    {}
}

/// Whether writing to standard output would block.
fn is_full() -> bool {
    let mut asked = [PollFd::from_borrowed_fd(
        rustix::stdio::stdout(),
        PollFlags::OUT,
    )];
    poll(&mut asked, Some(&Timespec::default())) == Ok(0)
}

/// Decides when flushing has taken too long.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// When flushing began, or standard output was last seen full.
    since: Instant,
}

impl Patience {
    fn new(now: Instant) -> Patience {
        Patience { since: now }
    }

    /// To be asked every [`LOOK`]. If standard output is full, the time begins anew: whoever writes now may only be slow.
    fn is_over(&mut self, now: Instant, is_full: impl FnOnce() -> bool) -> bool {
        if is_full() {
            self.since = now;
        }
        now.saturating_duration_since(self.since) > PATIENCE
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
    /// The reply to write when everything is flushed, and how long that may still take.
    pending: Option<(Tag, Buffer, Patience)>,
    /// When there was last something to flush.
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

    /// Starts the guard if there are other threads. To be called when no thread can be started later.
    pub(crate) fn prepare(&mut self) {
        if self.guard.is_none() && !is_alone() {
            self.guard = Guard::start(self.replies.clone());
        }
    }

    /// Flushes, then replies with these bytes, and returns them.
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
        state.pending = Some((tag, bytes, Patience::new(now)));
        state.active = now;
        if mem::take(&mut state.asleep) {
            self.changed.notify_one();
        }
    }

    /// To be called when everything is flushed. Returns the bytes of the reply, unless the guard has written it.
    fn end(&self) -> Buffer {
        let pending = self.lock().pending.take();
        match pending {
            Some((_, bytes, _)) => bytes,
            // The guard is about to end this process.
            None => loop {
                thread::park();
            },
        }
    }

    fn watch(&self) {
        let mut state = self.lock();
        loop {
            let late = |(_, _, patience): &mut (Tag, Buffer, Patience)| {
                patience.is_over(Instant::now(), is_full)
            };
            if let Some((tag, bytes, _)) = state.pending.take_if(late) {
                self.replies.write(tag, &bytes);
                // SAFETY: ends the process without running exit handlers, which would wait for the lock.
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

/// Whether this process has only one thread, as far as the C library knows; then no other can hold a lock.
#[inline]
fn is_alone() -> bool {
    static WORD: OnceLock<Option<&'static libc::c_char>> = OnceLock::new();
    let word = WORD.get_or_init(|| {
        // SAFETY: looks up a symbol among the loaded objects.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_only_if_nothing_is_full_for_long() {
        let began = Instant::now();
        let mut patience = Patience::new(began);
        let at = |looks: u32| began + LOOK * looks;
        let looks = PATIENCE.div_duration_f64(LOOK) as u32;
        assert!(!patience.is_over(at(looks), || false));
        for look in looks..100 {
            assert!(!patience.is_over(at(look), || true), "{look}");
        }
        // It is read now, and whoever writes has some time again.
        assert!(!patience.is_over(at(99 + looks), || false));
        assert!(patience.is_over(at(100 + looks), || false));
    }
}
