//! [`Reporter`]: passes news of a backend to the functions of users.
//!
//! These functions run on the callback thread, so a slow one delays only other callbacks. The queue for them is bounded:
//! beyond that, the oldest news is dropped and counted. It is taken out piece by piece, so that nothing else piles up.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, Weak};

use crate::backend::{News, Observer};
use crate::callback::Callbacks;
use crate::event::Event;
use crate::output::{Lines, WorkerLine};
use crate::sync::lock;
use crate::timeline::Recorder;

/// How many lines and events, and how many bytes of lines, may be queued for a slow function.
const WAITING_MAX: usize = 1 << 16;
const BYTES_MAX: usize = 16 << 20;

/// A function that is called with events.
pub(crate) type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// Passes news to the functions that want it.
pub(crate) struct Reporter {
    this: Weak<Reporter>,
    callbacks: Arc<Callbacks>,
    lines: Option<Lines>,
    on_event: Option<OnEvent>,
    recorder: Option<Recorder>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    news: VecDeque<News>,
    /// How many lines and events these are, and how many bytes the lines have.
    count: usize,
    bytes: usize,
    /// How many were dropped before these.
    missed: usize,
    /// The callback thread has been asked to take them.
    announced: bool,
}

impl Waiting {
    /// Appends to the queue; if it is too long then, drops the oldest.
    fn push(&mut self, news: News) {
        let (count, bytes) = size(&news);
        self.count += count;
        self.bytes += bytes;
        self.news.push_back(news);
        while self.count > WAITING_MAX || self.bytes > BYTES_MAX {
            self.missed += self.pop().map_or(0, |oldest| size(&oldest).0);
        }
    }

    fn pop(&mut self) -> Option<News> {
        let news = self.news.pop_front()?;
        let (count, bytes) = size(&news);
        self.count -= count;
        self.bytes -= bytes;
        Some(news)
    }
}

/// How many lines and events this is, and how many bytes the lines have.
fn size(news: &News) -> (usize, usize) {
    match news {
        News::Lines(lines) => (lines.count(), lines.text.len()),
        _ => (1, 0),
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

impl Reporter {
    /// The thread of `callbacks` must have been started, unless news is only recorded.
    pub(crate) fn new(
        callbacks: Arc<Callbacks>,
        lines: Option<Lines>,
        on_event: Option<OnEvent>,
        recorder: Option<Recorder>,
    ) -> Arc<Reporter> {
        Arc::new_cyclic(|this| Reporter {
            this: Weak::clone(this),
            callbacks,
            lines,
            on_event,
            recorder,
            waiting: Mutex::default(),
        })
    }

    /// On the callback thread: passes on as much as is queued now. What comes meanwhile is announced anew.
    fn report(&self) {
        let queued = {
            let mut waiting = lock(&self.waiting);
            waiting.announced = false;
            waiting.news.len()
        };
        for _ in 0..queued {
            let (news, missed) = {
                let mut waiting = lock(&self.waiting);
                (waiting.pop(), mem::take(&mut waiting.missed))
            };
            if missed > 0 {
                self.tell_event(&Event::Missed { count: missed });
            }
            match news {
                Some(News::Event(event)) => self.tell_event(&event),
                Some(News::Lines(lines)) => lines.split().for_each(|line| self.tell_line(&line)),
                _ => {}
            }
        }
    }

    fn tell_event(&self, event: &Event) {
        if let Some(on_event) = &self.on_event {
            guard(|| on_event(event));
        }
    }

    fn tell_line(&self, line: &WorkerLine) {
        if let Some(lines) = &self.lines {
            guard(|| lines.tell(line));
        }
    }
}

/// If a function panics, only the news that it was called with is lost. The user's panic hook has already reported the panic.
fn guard(call: impl FnOnce()) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(call)) {
        // A payload may panic when it is dropped.
        mem::forget(payload);
    }
}

impl Observer for Reporter {
    fn observe(&self, mut news: Vec<News>) {
        if let Some(recorder) = &self.recorder {
            recorder.take(&news);
        }
        news.retain(|news| match news {
            News::Event(_) => self.on_event.is_some(),
            News::Lines(_) => self.lines.is_some(),
            News::Span(_) | News::Waiting { .. } | News::Log(_) => false,
        });
        if news.is_empty() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        news.into_iter().for_each(|news| waiting.push(news));
        if mem::replace(&mut waiting.announced, true) {
            return;
        }
        drop(waiting);
        if let Some(this) = self.this.upgrade() {
            self.callbacks.push(Box::new(move || this.report()));
            // The thread may have ended, if a callback has dropped the pool.
            self.callbacks.rouse();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::output::Stream;

    fn line(text: &str) -> News {
        News::Lines(WorkerLine {
            worker: 0,
            pid: 1,
            host: None,
            task: None,
            index: None,
            stream: Stream::Stdout,
            text: text.to_owned(),
        })
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_lines() {
        let mut waiting = Waiting::default();
        let each = BYTES_MAX / 4;
        for _ in 0..6 {
            waiting.push(line(&"x".repeat(each)));
        }
        assert_eq!((waiting.count, waiting.bytes), (4, BYTES_MAX));
        assert_eq!(waiting.missed, 2);
        // They have no text, but they are lines.
        waiting.push(line(&"\n".repeat(WAITING_MAX - 1)));
        assert_eq!(
            (waiting.count, waiting.bytes),
            (WAITING_MAX, WAITING_MAX - 1)
        );
        assert_eq!(waiting.missed, 6);
        waiting.push(News::missed(1));
        assert_eq!((waiting.count, waiting.news.len()), (1, 1));
        assert_eq!(waiting.missed, 6 + WAITING_MAX);
        assert!(waiting.pop().is_some() && waiting.pop().is_none());
        assert_eq!((waiting.count, waiting.bytes), (0, 0));
    }

    #[test]
    fn lines_are_told_one_by_one() {
        let each = |text| -> Vec<String> {
            let News::Lines(lines) = line(text) else {
                panic!("lines");
            };
            assert_eq!(lines.count(), lines.clone().split().count());
            lines.split().map(|line| line.text).collect()
        };
        assert_eq!(each("one"), ["one"]);
        assert_eq!(each(""), [""]);
        assert_eq!(each("\none\n\ntwo\n"), ["", "one", "", "two", ""]);
    }

    #[test]
    fn a_slow_function_misses_the_oldest_and_a_panic_costs_one() {
        let callbacks = Arc::new(Callbacks::default());
        callbacks.start_thread().expect("a thread");
        let (begun, begins) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        let (goes_on, seen) = (Mutex::new(goes_on), Arc::new(Mutex::new(Vec::new())));
        let (told, missed) = (Arc::clone(&seen), Arc::new(Mutex::new(0)));
        let counted = Arc::clone(&missed);
        let lines = Lines::new(move |line| {
            if line.text == "first" {
                begun.send(()).expect("the test waits");
                goes_on
                    .lock()
                    .expect("no thread panics with the lock")
                    .recv()
                    .expect("it is sent");
            }
            assert_ne!(line.text, "panic");
            told.lock()
                .expect("no thread panics with the lock")
                .push(line.text.clone());
        });
        let on_event: OnEvent = Arc::new(move |event| {
            if let Event::Missed { count } = event {
                *counted.lock().expect("no thread panics with the lock") += count;
            }
        });
        let reporter = Reporter::new(Arc::clone(&callbacks), Some(lines), Some(on_event), None);
        reporter.observe(vec![line("first")]);
        begins.recv().expect("it begins");
        for number in 0..WAITING_MAX {
            reporter.observe(vec![line(&number.to_string())]);
        }
        reporter.observe(vec![line("panic\nlast")]);
        go_on.send(()).expect("it waits");
        assert!(callbacks.wait(None));
        callbacks.end();
        assert!(callbacks.wait(Some(std::time::Instant::now() + Duration::from_secs(60))));
        let seen = seen.lock().expect("no thread panics with the lock");
        assert_eq!(*missed.lock().expect("no thread panics with the lock"), 2);
        assert_eq!((&*seen[0], &*seen[1]), ("first", "2"));
        assert_eq!(seen.len(), WAITING_MAX);
        assert_eq!(seen.last().map(String::as_str), Some("last"));
    }
}
