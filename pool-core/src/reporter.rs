//! [`Reporter`]: from what a backend tells to the functions of users that want to know it.
//!
//! They run on the callback thread, so a slow one holds up nobody but other callbacks. What waits for them is bounded: of more than
//! that the oldest is dropped, and counted.

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

/// So much may wait for a slow function.
const WAITING_MAX: usize = 1 << 16;

/// A function that is told of events.
pub(crate) type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// Hands news to whom they are for.
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
    /// How many were dropped before these.
    missed: usize,
    /// The callback thread is going to take them.
    announced: bool,
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

impl Reporter {
    /// The thread of `callbacks` must have been started, but for what is only recorded.
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

    /// On the callback thread: hands on what waits.
    fn report(&self) {
        let (news, missed) = {
            let mut waiting = lock(&self.waiting);
            waiting.announced = false;
            (mem::take(&mut waiting.news), mem::take(&mut waiting.missed))
        };
        if missed > 0 {
            self.tell_event(&Event::Missed { count: missed });
        }
        for news in &news {
            match news {
                News::Event(event) => self.tell_event(event),
                News::Line(line) => self.tell_line(line),
                News::Span(_) | News::Waiting { .. } | News::Log(_) => {}
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

/// A panic costs what the function was told, and nothing behind it. The user's panic hook has said what there is to say.
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
            News::Line(_) => self.lines.is_some(),
            News::Span(_) | News::Waiting { .. } | News::Log(_) => false,
        });
        if news.is_empty() {
            return;
        }
        let mut waiting = lock(&self.waiting);
        waiting.news.extend(news);
        let too_many = waiting.news.len().saturating_sub(WAITING_MAX);
        waiting.news.drain(..too_many);
        waiting.missed += too_many;
        if waiting.news.is_empty() || mem::replace(&mut waiting.announced, true) {
            return;
        }
        drop(waiting);
        if let Some(this) = self.this.upgrade() {
            self.callbacks.push(Box::new(move || this.report()));
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
        News::Line(WorkerLine {
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
                    .expect("nobody panics")
                    .recv()
                    .expect("it is sent");
            }
            assert_ne!(line.text, "panic");
            told.lock().expect("nobody panics").push(line.text.clone());
        });
        let on_event: OnEvent = Arc::new(move |event| {
            if let Event::Missed { count } = event {
                *counted.lock().expect("nobody panics") += count;
            }
        });
        let reporter = Reporter::new(Arc::clone(&callbacks), Some(lines), Some(on_event), None);
        reporter.observe(vec![line("first")]);
        begins.recv().expect("it begins");
        for number in 0..WAITING_MAX {
            reporter.observe(vec![line(&number.to_string())]);
        }
        reporter.observe(vec![line("panic"), line("last")]);
        go_on.send(()).expect("it waits");
        assert!(callbacks.wait(None));
        callbacks.end();
        assert!(callbacks.wait(Some(std::time::Instant::now() + Duration::from_secs(60))));
        let seen = seen.lock().expect("nobody panics");
        assert_eq!(*missed.lock().expect("nobody panics"), 2);
        assert_eq!((&*seen[0], &*seen[1]), ("first", "2"));
        assert_eq!(seen.len(), WAITING_MAX);
        assert_eq!(seen.last().map(String::as_str), Some("last"));
    }
}
