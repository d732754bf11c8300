//! What a timeline keeps of what it is told. Its memory is bounded: where there would be too many bars, neighbours become one.

use std::collections::HashMap;
use std::mem;
use std::time::Duration;

use super::model::{Bar, Lane, Mark, Outcome, Waiting, What};
use crate::backend::{News, Span};
use crate::event::{Ended, Event, Recycled};

/// There are never more bars than this, nor more marks and samples than that.
const BARS_MAX: usize = 100_000;
const MARKS_MAX: usize = 20_000;
const SAMPLES_MAX: usize = 20_000;

/// At first an input that takes so long, in nanoseconds, has a bar of its own, and a bar of several is no longer than this. Both double
/// where there are too many bars.
const ALONE: u64 = 20_000;
const LENGTH: u64 = 1_000_000;

/// After so many doublings neighbours become one, whatever they are.
const DOUBLINGS_STRICT: u32 = 10;

/// All that was told, by several pools perhaps.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) lanes: Vec<Lane>,
    /// Where the lane of a worker is: of which pool, which position, which machine.
    places: HashMap<(u32, usize, Option<String>), usize>,
    pub(super) tasks: Vec<String>,
    numbers: HashMap<String, u32>,
    /// By the lane.
    bars: Vec<Vec<Bar>>,
    count: usize,
    doublings: u32,
    pub(super) marks: Vec<Mark>,
    marks_missed: usize,
    waiting: Vec<Waiting>,
    /// Two samples are so far apart at the least, in nanoseconds.
    sample_step: u64,
    /// How many inputs wait in each pool.
    waits: HashMap<u32, usize>,
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Outcome {
        match ended {
            Ended::Done => Outcome::Done,
            Ended::Panicked => Outcome::Panicked,
            Ended::Unreadable => Outcome::Codec,
            Ended::WorkerLost => Outcome::Lost,
            Ended::TimeLimit => Outcome::TimeLimit,
            Ended::MemoryLimit => Outcome::MemoryLimit,
            Ended::Stopped => Outcome::Cancelled,
        }
    }
}

impl Collected {
    /// Takes news of a pool that began at this time.
    pub(super) fn take(&mut self, pool: u32, began: Duration, news: &[News]) {
        for news in news {
            match news {
                News::Span(span) => self.take_span(pool, began, span),
                News::Event(event) => self.take_event(pool, began, event),
                News::Waiting { at, inputs } => self.take_sample(pool, ns(began + *at), *inputs),
                News::Line(_) | News::Log(_) => {}
            }
        }
    }

    pub(super) fn lane(&mut self, pool: u32, worker: usize, host: Option<&String>) -> usize {
        let key = (pool, worker, host.cloned());
        let next = self.lanes.len();
        let lane = *self.places.entry(key).or_insert(next);
        if lane == next {
            self.lanes.push(Lane {
                worker,
                host: host.cloned(),
            });
            self.bars.push(Vec::new());
        }
        lane
    }

    pub(super) fn task(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.tasks.len() as u32;
        self.tasks.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    fn take_span(&mut self, pool: u32, began: Duration, span: &Span) {
        let lane = self.lane(pool, span.worker, span.host.as_ref());
        let bar = Bar {
            lane: lane as u32,
            pid: span.pid,
            task: self.task(&span.task),
            // Jobs of different pools have the same numbers.
            job: span.job ^ pool.rotate_right(8),
            first: span.first,
            count: span.count,
            failed: span.failed,
            began_ns: ns(began + span.began),
            ended_ns: ns(began + span.ended),
            busy_ns: ns(span.busy),
            outcome: span.outcome.into(),
        };
        let bars = &mut self.bars[lane];
        let merged = bars
            .last_mut()
            .is_some_and(|last| join(last, &bar, self.doublings));
        if !merged {
            bars.push(bar);
            self.count += 1;
        }
        while self.count > BARS_MAX {
            self.make_coarse();
        }
    }

    /// Halves the resolution.
    fn make_coarse(&mut self) {
        self.doublings += 1;
        for bars in &mut self.bars {
            let mut kept: Vec<Bar> = Vec::new();
            for bar in mem::take(bars) {
                let merged = kept
                    .last_mut()
                    .is_some_and(|last| join(last, &bar, self.doublings));
                if !merged {
                    kept.push(bar);
                }
            }
            *bars = kept;
        }
        self.count = self.bars.iter().map(Vec::len).sum();
    }

    fn mark(&mut self, pool: u32, who: (usize, u32, Option<&String>), at: Duration, what: What) {
        let (worker, pid, host) = who;
        let lane = self.lane(pool, worker, host) as u32;
        if self.marks.len() >= MARKS_MAX {
            self.marks_missed += 1;
            return;
        }
        self.marks.push(Mark {
            lane,
            pid,
            at_ns: ns(at),
            what,
        });
    }

    fn take_event(&mut self, pool: u32, began: Duration, event: &Event) {
        let (who, at, what) = match event {
            Event::WorkerStarted {
                worker,
                pid,
                host,
                at,
            } => ((*worker, *pid, host), at, What::Started),
            Event::WorkerReady {
                worker,
                pid,
                host,
                at,
            } => ((*worker, *pid, host), at, What::Ready),
            Event::WorkerDied {
                worker,
                pid,
                host,
                how,
                why,
                at,
            } => {
                let how = match why {
                    Some(why) => format!("{how}: {why}"),
                    None => how.to_string(),
                };
                ((*worker, *pid, host), at, What::Died(how))
            }
            Event::WorkerRecycled {
                worker,
                pid,
                host,
                why,
                at,
            } => {
                let why = match why {
                    Recycled::MaxTasks => "max_tasks_per_child",
                    Recycled::MaxMemory => "max_memory_per_child",
                };
                ((*worker, *pid, host), at, What::Recycled(why.to_owned()))
            }
            Event::InputBegan { .. } | Event::InputEnded { .. } | Event::Missed { .. } => return,
        };
        let who = (who.0, who.1, who.2.as_ref());
        self.mark(pool, who, began + *at, what);
    }

    fn take_sample(&mut self, pool: u32, at_ns: u64, inputs: usize) {
        self.waits.insert(pool, inputs);
        let inputs = self.waits.values().sum();
        if let Some(last) = self.waiting.last_mut() {
            if last.inputs == inputs {
                return;
            }
            if at_ns < last.at_ns.saturating_add(self.sample_step) {
                // What it was for a moment is forgotten, and what it became is kept.
                last.inputs = inputs;
                return;
            }
        }
        self.waiting.push(Waiting { at_ns, inputs });
        if self.waiting.len() > SAMPLES_MAX {
            let all = self.waiting.last().map_or(0, |last| last.at_ns);
            let first = self.waiting.first().map_or(0, |first| first.at_ns);
            let step = all.saturating_sub(first) / (SAMPLES_MAX as u64 / 2);
            self.sample_step = step.max(2 * self.sample_step).max(1);
            let mut next = 0;
            let step = self.sample_step;
            self.waiting.retain(|sample| {
                let keep = sample.at_ns >= next;
                if keep {
                    next = sample.at_ns + step;
                }
                keep
            });
        }
    }

    /// The bars, in each lane in order of time.
    pub(super) fn bars(&self) -> Vec<Bar> {
        let mut all: Vec<Bar> = self.bars.iter().flatten().cloned().collect();
        all.sort_by_key(|bar| (bar.lane, bar.began_ns));
        all
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let mut all = self.waiting.clone();
        all.dedup_by_key(|sample| sample.inputs);
        all
    }

    /// When the last thing happened that was told, in nanoseconds.
    pub(super) fn last(&self) -> u64 {
        let bars = self.bars.iter().filter_map(|bars| bars.last());
        let bars = bars.map(|bar| bar.ended_ns);
        let marks = self.marks.iter().map(|mark| mark.at_ns);
        bars.chain(marks).max().unwrap_or(0)
    }

    /// What was left out, as sentences.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.doublings > 0 {
            let length = Duration::from_nanos(LENGTH.saturating_mul(1 << self.doublings.min(63)));
            notes.push(format!(
                "there were so many inputs that neighbouring bars were merged, up to {length:?} each"
            ));
        }
        if self.marks_missed > 0 {
            let missed = self.marks_missed;
            notes.push(format!(
                "{missed} more starts and ends of workers were left out"
            ));
        }
        notes
    }
}

/// Makes one bar of two that follow each other in a lane, if the resolution is so coarse. False: they stay two.
fn join(last: &mut Bar, next: &Bar, doublings: u32) -> bool {
    let times =
        |length: u64| length.saturating_mul(1_u64.checked_shl(doublings).unwrap_or(u64::MAX));
    let is_short = |bar: &Bar| bar.busy_ns / (bar.count as u64).max(1) < times(ALONE);
    let length = next.ended_ns.saturating_sub(last.began_ns);
    let is_alike = last.pid == next.pid && last.task == next.task;
    let is_well = last.failed == 0 && next.failed == 0;
    let is_strict = doublings < DOUBLINGS_STRICT;
    if is_strict && !(is_alike && is_well) {
        return false;
    }
    if !is_short(last) || !is_short(next) || length > times(LENGTH) {
        return false;
    }
    if last.job != next.job {
        last.first = None;
    }
    if next.busy_ns > last.busy_ns {
        (last.task, last.pid, last.job) = (next.task, next.pid, next.job);
    }
    last.first = last
        .first
        .zip(next.first)
        .map(|(one, other)| one.min(other));
    last.count += next.count;
    last.failed += next.failed;
    last.ended_ns = last.ended_ns.max(next.ended_ns);
    last.busy_ns += next.busy_ns;
    last.outcome = last.outcome.max(next.outcome);
    true
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn span(worker: usize, job: u32, first: usize, began: u64, took: u64) -> News {
        let began = Duration::from_nanos(began);
        let busy = Duration::from_nanos(took);
        News::Span(Span {
            worker,
            pid: 100 + worker as u32,
            host: None,
            task: Cow::Borrowed("square"),
            job,
            first: Some(first),
            count: 1,
            failed: 0,
            began,
            ended: began + busy,
            busy,
            outcome: Ended::Done,
        })
    }

    #[test]
    fn short_neighbours_become_one_and_long_ones_stay() {
        let mut all = Collected::default();
        let short = (0..10).map(|n| span(0, 7, n, 1_000 * n as u64, 900));
        let long = (0..3).map(|n| span(0, 7, 10 + n, 100_000 * (n as u64 + 1), 50_000));
        let news: Vec<News> = short.chain(long).collect();
        all.take(0, Duration::ZERO, &news);
        let bars = all.bars();
        assert_eq!(bars.len(), 4);
        assert_eq!((bars[0].count, bars[0].first), (10, Some(0)));
        assert_eq!((bars[0].busy_ns, bars[0].ended_ns), (9_000, 9_900));
    }

    #[test]
    fn a_million_bars_are_few_and_none_is_forgotten() {
        let mut all = Collected::default();
        let mut busy = 0;
        for n in 0..1_000_000_u64 {
            // Each a job of its own, long enough for a bar of its own, and one in a thousand fails.
            let took = 30_000 + n % 50_000;
            busy += took;
            let News::Span(mut span) = span((n % 3) as usize, n as u32, 0, 100_000 * n, took)
            else {
                unreachable!("it is one");
            };
            if n % 1000 == 0 {
                (span.failed, span.outcome) = (1, Ended::Panicked);
            }
            all.take(0, Duration::ZERO, &[News::Span(span)]);
        }
        let bars = all.bars();
        assert!(bars.len() <= BARS_MAX);
        assert_eq!(bars.iter().map(|bar| bar.count).sum::<usize>(), 1_000_000);
        assert_eq!(bars.iter().map(|bar| bar.failed).sum::<usize>(), 1_000);
        assert_eq!(bars.iter().map(|bar| bar.busy_ns).sum::<u64>(), busy);
        assert_eq!(all.notes().len(), 1);
        for lane in bars.chunk_by(|one, other| one.lane == other.lane) {
            assert!(lane.is_sorted_by(|one, other| one.ended_ns <= other.began_ns));
        }
    }

    #[test]
    fn the_worst_case_is_bounded_too() {
        let mut all = Collected::default();
        for n in 0..300_000_u64 {
            let News::Span(mut span) = span(0, n as u32, 0, 10_000_000 * n, 9_000_000) else {
                unreachable!("it is one");
            };
            span.pid = n as u32;
            span.failed = 1;
            all.take(0, Duration::ZERO, &[News::Span(span)]);
        }
        assert!(all.bars().len() <= BARS_MAX);
        assert_eq!(
            all.bars().iter().map(|bar| bar.failed).sum::<usize>(),
            300_000
        );
    }

    #[test]
    fn samples_are_bounded_and_differ() {
        let mut all = Collected::default();
        for n in 0..200_000_u64 {
            let at = Duration::from_micros(n);
            let inputs = (n / 3) as usize;
            all.take(0, Duration::ZERO, &[News::Waiting { at, inputs }]);
        }
        let waiting = all.waiting();
        assert!((1_000..=SAMPLES_MAX).contains(&waiting.len()));
        assert!(waiting.is_sorted_by(|one, other| one.inputs < other.inputs));
        assert_eq!(waiting.last().unwrap().inputs, 199_999 / 3);
    }
}
