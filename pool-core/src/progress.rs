//! [`Progress`]: the progress of a call; and how the callback thread learns of it.
//!
//! The outcomes of a call with a handler are counted on their way ([`Counted`]). The callback thread looks at the counts from
//! time to time ([`ProgressReporter`]) and calls the handler. At most one report is pending, so a slow handler builds up no
//! queue. The handler is called and dropped on that thread only, so it may do whatever it likes.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use pool_worker::Tag;
use serde::Serialize;

use crate::backend::{JobId, Outcomes, Sink, What, Workers};
use crate::callback::{Callbacks, Tick};
use crate::sync::{self, lock};

/// How long a call that waits for its results also waits for the last report.
const LAST_REPORT_MAX: Duration = Duration::from_millis(100);

/// The progress of a call: what [`Call::progress`](crate::Call::progress) reports.
///
/// Its `Display` is one line: `37 of 100 done (2 failed), 4 running, 12.3/s, 5s left`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Progress {
    /// How many inputs have an outcome, failed ones included.
    pub done: usize,
    /// How many of them have an [`Error`](crate::Error) as their outcome: the task panicked, its worker died, it exceeded a
    /// limit, it was cancelled. An `Err` that a task returns is a result and is not counted here.
    pub failed: usize,
    /// How many inputs of this call are running. 0 if the backend can't tell.
    pub running: usize,
    /// How many inputs there are, if known: from the start if the iterator's [`size_hint`](Iterator::size_hint) is exact,
    /// otherwise once all inputs have been drawn.
    pub total: Option<usize>,
    /// How many inputs are done per second, averaged over the recent past: what was 15 seconds ago counts a tenth of what is
    /// now. 0 before the first is done.
    pub rate: f64,
    /// How long the call has been running.
    pub elapsed: Duration,
    /// How long it will take until all inputs are done, at that rate; `None` while the rate or the total is unknown.
    pub remaining: Option<Duration>,
}

impl Progress {
    /// Whether this is the last report: every input has an outcome.
    pub fn is_finished(&self) -> bool {
        self.remaining == Some(Duration::ZERO) && self.total == Some(self.done)
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.total {
            Some(total) => write!(f, "{} of {total} done", self.done)?,
            None => write!(f, "{} done", self.done)?,
        }
        if self.failed > 0 {
            write!(f, " ({} failed)", self.failed)?;
        }
        if self.is_finished() {
            return write!(f, " in {}", Short(self.elapsed));
        }
        if self.running > 0 {
            write!(f, ", {} running", self.running)?;
        }
        if self.rate > 0.0 {
            // Three digits, or all digits before the decimal point.
            let digits = match self.rate {
                rate if rate >= 100.0 => 0,
                rate if rate >= 10.0 => 1,
                _ => 2,
            };
            write!(f, ", {:.digits$}/s", self.rate)?;
        }
        match self.remaining {
            Some(remaining) => write!(f, ", {} left", Short(remaining)),
            None => Ok(()),
        }
    }
}

/// A duration in everyday notation: "0.3s", "12s", "3m 05s", "2h 07m".
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..10 => write!(f, "{:.1}s", self.0.as_secs_f64()),
            10..60 => write!(f, "{seconds}s"),
            60..3600 => write!(f, "{}m {:02}s", seconds / 60, seconds % 60),
            _ => write!(f, "{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        }
    }
}

/// The user's handler.
pub(crate) type Handler = Arc<dyn Fn(&Progress) + Send + Sync>;

/// What is known of one call, shared by those who feed it, deliver to it, and report on it.
#[derive(Debug)]
pub(crate) struct Counts {
    state: Mutex<State>,
    /// The last report has been made.
    reported: Condvar,
    job: OnceLock<JobId>,
    callbacks: Arc<Callbacks>,
}

#[derive(Debug, Default)]
struct State {
    done: usize,
    failed: usize,
    drawn: usize,
    /// The total that the iterator announced.
    announced: Option<usize>,
    /// No more inputs will come.
    ended: bool,
    /// No more outcomes will come.
    delivered: bool,
    /// Nobody draws inputs any more, and none will be refused.
    fed: bool,
    reported: bool,
}

impl State {
    fn total(&self) -> Option<usize> {
        match self.ended {
            true => Some(self.drawn),
            // If an iterator yields more than it announced, the announcement is ignored.
            false => self.announced.filter(|announced| *announced >= self.drawn),
        }
    }

    fn is_finished(&self) -> bool {
        self.ended && self.done >= self.drawn
    }

    /// The call was abandoned: outcomes are missing, and will not come. (A call that is refused has no sink for a moment, but
    /// whoever feeds it is about to say so.)
    fn is_abandoned(&self) -> bool {
        self.delivered && self.fed && !self.is_finished()
    }
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// This many more inputs are about to be handed over; `more` follow.
    pub(crate) fn draw(&self, count: usize, more: bool) {
        let mut state = self.lock();
        state.drawn += count;
        state.ended = !more;
        self.finish(state);
    }

    /// The backend has accepted the call as this job.
    pub(crate) fn accepted(&self, job: JobId) {
        // One call is one job.
        let _ = self.job.set(job);
    }

    /// The last inputs that were drawn, this many, were refused, and so are all that remain. They have failed.
    pub(crate) fn refuse(&self, count: usize) {
        let mut state = self.lock();
        let announced = state.announced.filter(|_| !state.ended);
        let rest = announced.map_or(0, |all| all.saturating_sub(state.drawn));
        state.drawn += rest;
        state.done += count + rest;
        state.failed += count + rest;
        state.ended = true;
        self.finish(state);
    }

    fn count(&self, done: usize, failed: usize) {
        let mut state = self.lock();
        state.done += done;
        state.failed += failed;
        self.finish(state);
    }

    /// Requests the last report if all inputs are done.
    fn finish(&self, state: MutexGuard<'_, State>) {
        let is_finished = state.is_finished();
        drop(state);
        if is_finished {
            self.callbacks.start();
        }
    }

    /// If the call is abandoned, has the thread drop the handler. (This may run under the lock of a pool.)
    fn abandon(&self, state: MutexGuard<'_, State>) {
        let is_abandoned = state.is_abandoned();
        drop(state);
        if is_abandoned && self.callbacks.is_ours() {
            self.callbacks.rouse();
        }
    }

    /// Waits for the last report, but not long for a slow handler. To be called when all outcomes have come.
    pub(crate) fn wait_for_report(&self) {
        if self.callbacks.is_here() {
            return;
        }
        let deadline = Instant::now() + LAST_REPORT_MAX;
        let mut state = self.lock();
        // All outcomes have come, but the last may not have been counted yet.
        while !state.reported && (state.is_finished() || !state.delivered) {
            let (guard, in_time) = sync::wait(&self.reported, state, Some(deadline));
            state = guard;
            if !in_time {
                return;
            }
        }
    }
}

/// Counts outcomes, and passes them on.
#[derive(Debug)]
struct Counted {
    sink: Arc<dyn Sink>,
    counts: Arc<Counts>,
}

impl Sink for Counted {
    fn deliver(self: Arc<Self>, outcomes: Outcomes) {
        let count = outcomes.count();
        let failed = match &outcomes.what {
            What::Failed { count, .. } => *count,
            What::Replies(frames) => frames.iter().filter(|(tag, _)| *tag == Tag::Fault).count(),
        };
        Arc::clone(&self.sink).deliver(outcomes);
        // The last report comes after the last outcome.
        self.counts.count(count, failed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut state = self.counts.lock();
        state.delivered = true;
        self.counts.abandon(state);
    }
}

/// Sets up the reports of a call: returns the sink for its outcomes.
pub(crate) fn report(
    handler: &Handler,
    announced: (usize, Option<usize>),
    workers: &Arc<dyn Workers>,
    callbacks: &Arc<Callbacks>,
    sink: Arc<dyn Sink>,
) -> (Arc<dyn Sink>, Reporting) {
    let announced = announced.1.filter(|most| *most == announced.0);
    let counts = Arc::new(Counts {
        state: Mutex::new(State {
            announced,
            ..State::default()
        }),
        reported: Condvar::new(),
        job: OnceLock::new(),
        callbacks: Arc::clone(callbacks),
    });
    let reporter = ProgressReporter {
        handler: Arc::clone(handler),
        counts: Arc::clone(&counts),
        workers: Arc::downgrade(workers),
        began: Instant::now(),
        pace: Pace::default(),
        last: None,
    };
    let sink = Arc::new(Counted {
        sink,
        counts: Arc::clone(&counts),
    });
    let start = Some(Box::new(reporter));
    (sink, Reporting { counts, start })
}

/// Tells the reporter what the feed of a call does.
#[derive(Debug)]
pub(crate) struct Reporting {
    counts: Arc<Counts>,
    /// The reporter, until it has been handed to the callback thread.
    start: Option<Box<ProgressReporter>>,
}

impl Reporting {
    /// This many more inputs are about to be handed over; `more` follow. The first time, reports begin.
    pub(crate) fn draw(&mut self, count: usize, more: bool) {
        self.counts.draw(count, more);
        if let Some(reporter) = self.start.take() {
            self.counts.callbacks.look_at(reporter);
        }
    }

    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }
}

impl Drop for Reporting {
    fn drop(&mut self) {
        let mut state = self.counts.lock();
        state.fed = true;
        self.counts.abandon(state);
    }
}

/// Reports on one call.
struct ProgressReporter {
    handler: Handler,
    counts: Arc<Counts>,
    /// Weak, since the workers have the sink of the call, and with it the counts.
    workers: Weak<dyn Workers>,
    began: Instant,
    pace: Pace,
    last: Option<Progress>,
}

impl fmt::Debug for ProgressReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProgressReporter")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Tick for ProgressReporter {
    fn is_urgent(&self) -> bool {
        let state = self.counts.lock();
        state.is_finished() || state.is_abandoned()
    }

    fn tick(&mut self) -> bool {
        if self.last.is_none() && self.begin() {
            // The first report shows nothing done, even if some inputs already are.
            let total = self.counts.lock().total();
            self.tell(Progress {
                done: 0,
                failed: 0,
                running: 0,
                total,
                rate: 0.0,
                elapsed: Duration::ZERO,
                remaining: None,
            });
        }
        // This collects replies that workers have written, so it comes before reading the counts.
        let running = self.running();
        let state = self.counts.lock();
        let (is_finished, is_abandoned) = (state.is_finished(), state.is_abandoned());
        let (done, failed, total) = (state.done, state.failed, state.total());
        drop(state);
        let elapsed = self.began.elapsed();
        let rate = self.pace.observe(elapsed, done);
        if is_abandoned {
            return false;
        }
        let remaining = if is_finished {
            Some(Duration::ZERO)
        } else {
            total.and_then(|total| time_left(total.saturating_sub(done), rate))
        };
        let is_news = self.last.as_ref().is_none_or(|last| {
            (last.done, last.failed, last.running, last.total) != (done, failed, running, total)
        });
        if is_finished || is_news {
            self.tell(Progress {
                done,
                failed,
                running: if is_finished { 0 } else { running },
                total,
                rate,
                elapsed,
                remaining,
            });
        }
        if is_finished {
            self.counts.lock().reported = true;
            self.counts.reported.notify_all();
        }
        !is_finished
    }
}

impl ProgressReporter {
    /// Whether there is a first report: a call without inputs has only a last one.
    fn begin(&self) -> bool {
        let state = self.counts.lock();
        state.drawn > 0 || !state.ended
    }

    fn running(&self) -> usize {
        match (self.counts.job.get(), self.workers.upgrade()) {
            (Some(job), Some(workers)) => workers.running(*job),
            _ => 0,
        }
    }

    fn tell(&mut self, progress: Progress) {
        // A handler that panics is called again: each report stands alone.
        crate::callback::call(|| (self.handler)(&progress));
        self.last = Some(progress);
    }
}

fn time_left(inputs: usize, rate: f64) -> Option<Duration> {
    if inputs == 0 || rate <= 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(inputs as f64 / rate).ok()
}

/// How many inputs are done per second: an average in which the past counts less the longer ago it is, like the estimator of
/// indicatif (`indicatif/src/state.rs`): after 15 seconds, a tenth. The average starts from zero; the weight of that zero is
/// divided out.
#[derive(Debug, Default)]
struct Pace {
    at: Duration,
    done: usize,
    /// The weighted rate, including the zero from before the beginning.
    rate: f64,
}

impl Pace {
    fn observe(&mut self, at: Duration, done: usize) -> f64 {
        let passed = at.saturating_sub(self.at).as_secs_f64();
        if passed > 0.0 {
            let rate = (done - self.done) as f64 / passed;
            let keep = weight(passed);
            self.rate = self.rate * keep + rate * (1.0 - keep);
            (self.at, self.done) = (at, done);
        }
        let known = 1.0 - weight(self.at.as_secs_f64());
        if known > 0.0 { self.rate / known } else { 0.0 }
    }
}

fn weight(seconds: f64) -> f64 {
    0.1_f64.powf(seconds / 15.0)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::backend::memory::Memory;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_pace_is_known_at_once_and_a_new_one_soon() {
        let mut pace = Pace::default();
        for step in 1..=100_u32 {
            let rate = pace.observe(seconds(f64::from(step) * 0.1), 5 * step as usize);
            assert!((rate - 50.0).abs() < 1e-6, "{rate}");
        }
        let mut rate = 0.0;
        for step in 1..=450_u32 {
            let at = seconds(10.0 + f64::from(step) * 0.1);
            rate = pace.observe(at, 500 + step as usize);
        }
        assert!((rate - 10.0).abs() < 0.1, "{rate}");
        assert_eq!(pace.observe(seconds(55.0), 950), rate);
    }

    #[derive(Debug)]
    struct Nobody;

    impl Sink for Nobody {
        fn deliver(self: Arc<Self>, _: Outcomes) {}
    }

    /// A call with one input, which is about to be handed over: its sink, its feed and its reporter; and its reports.
    fn call() -> (
        Arc<dyn Sink>,
        Reporting,
        Box<ProgressReporter>,
        Receiver<Progress>,
    ) {
        let (tell, reports) = mpsc::channel();
        let handler: Handler = Arc::new(move |progress: &Progress| {
            tell.send(progress.clone()).expect("the test reads them");
        });
        let workers: Arc<dyn Workers> = Arc::new(Memory::default());
        let callbacks = Arc::default();
        let sink = Arc::new(Nobody);
        let (sink, mut reporting) = report(&handler, (1, Some(1)), &workers, &callbacks, sink);
        let reporter = reporting.start.take().expect("it has not begun");
        reporting.draw(1, false);
        (sink, reporting, reporter, reports)
    }

    #[test]
    fn a_refused_call_is_reported_though_its_sink_went_first() {
        let (sink, reporting, mut reporter, reports) = call();
        drop(sink);
        assert!(reporter.tick(), "whoever feeds it has not said so yet");
        reporting.counts().refuse(1);
        assert!(!reporter.tick());
        let last = reports.try_iter().last().expect("there is one");
        assert!(last.is_finished() && last.failed == 1, "{last:?}");
    }

    #[test]
    fn an_abandoned_call_is_reported_no_more() {
        let (sink, reporting, mut reporter, reports) = call();
        drop(reporting);
        assert!(reporter.tick(), "outcomes may still come");
        drop(sink);
        assert!(!reporter.tick());
        assert!(reports.try_iter().all(|report| !report.is_finished()));
    }

    #[test]
    fn display_is_one_line() {
        let mut progress = Progress {
            done: 37,
            failed: 2,
            running: 4,
            total: Some(100),
            rate: 12.34,
            elapsed: seconds(3.0),
            remaining: Some(seconds(5.1)),
        };
        let line = "37 of 100 done (2 failed), 4 running, 12.3/s, 5.1s left";
        assert_eq!(progress.to_string(), line);
        progress.total = None;
        progress.remaining = None;
        progress.failed = 0;
        assert_eq!(progress.to_string(), "37 done, 4 running, 12.3/s");
        progress.total = Some(37);
        progress.remaining = Some(Duration::ZERO);
        progress.elapsed = seconds(185.0);
        assert_eq!(progress.to_string(), "37 of 37 done in 3m 05s");
        assert_eq!(Short(seconds(7_620.0)).to_string(), "2h 07m");
    }
}
