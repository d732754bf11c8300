//! Collects what a timeline is told. Its memory is bounded: if there would be too many bars, neighbors are merged; lanes are
//! used again after their pool has ended, and what would need too many is left out and noted.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::time::Duration;

use super::model::{Bar, Lane, Mark, Outcome, Waiting, What};
use crate::backend::{News, Span};
use crate::event::{Ended, Event, Recycled};

/// The most lanes, bars, marks and samples. Bars that are merged as far as possible are one for each lane, so there must be
/// room for more bars than lanes.
const LANES_MAX: usize = 10_000;
const BARS_MAX: usize = 100_000;
const _: () = assert!(LANES_MAX < BARS_MAX);
const MARKS_MAX: usize = 20_000;
const SAMPLES_MAX: usize = 20_000;

/// At first, an input that takes this long, in nanoseconds, has a bar of its own, and a bar of several inputs is at most this
/// long. Both double when there are too many bars.
const ALONE: u64 = 20_000;
const LENGTH: u64 = 1_000_000;

/// After this many doublings, neighbors are merged whatever they are.
const DOUBLINGS_STRICT: u32 = 10;

/// After this many doublings, however long they are.
const DOUBLINGS_MAX: u32 = 64;

/// Everything that one or several pools have reported.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) lanes: Vec<Lane>,
    /// The pools that have not ended, by their numbers.
    pools: HashMap<u32, Open>,
    /// The lanes of pools that have ended, and since when, in nanoseconds. Those that are free longest come first.
    free: HashMap<Place, VecDeque<(usize, u64)>>,
    /// How many inputs were left out because there were too many lanes.
    inputs_missed: usize,
    pub(super) tasks: Vec<String>,
    numbers: HashMap<String, u32>,
    /// By lane.
    bars: Vec<Vec<Bar>>,
    count: usize,
    doublings: u32,
    pub(super) marks: Vec<Mark>,
    marks_missed: usize,
    /// How many reports of other machines were dropped on the way.
    missed: usize,
    waiting: Vec<Waiting>,
    /// The minimum distance between two samples, in nanoseconds.
    sample_step: u64,
    /// How many inputs wait in all pools.
    waits: usize,
}

/// A worker in a pool: its position and its machine.
type Place = (usize, Option<String>);

/// A pool that has not ended.
#[derive(Debug, Default)]
struct Open {
    /// When it was built.
    began: Duration,
    lanes: HashMap<Place, usize>,
    /// How many inputs wait.
    waits: usize,
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
    /// A pool is being built at this time.
    pub(super) fn begin(&mut self, pool: u32, at: Duration) {
        let open = Open {
            began: at,
            ..Open::default()
        };
        self.pools.insert(pool, open);
    }

    /// The pool has ended, and nothing waits or runs in it any more. If it reports something later, that is ignored.
    pub(super) fn end(&mut self, pool: u32, at: Duration) {
        let Some(open) = self.pools.remove(&pool) else {
            return;
        };
        for (place, lane) in open.lanes {
            let free = self.free.entry(place).or_default();
            free.push_back((lane, ns(at)));
        }
        if open.waits > 0 {
            self.waits = self.waits.wrapping_sub(open.waits);
            self.sample(ns(at));
        }
    }

    /// Takes news of a pool.
    pub(super) fn take(&mut self, pool: u32, news: &[News]) {
        let Some(open) = self.pools.get(&pool) else {
            return;
        };
        let began = open.began;
        for news in news {
            match news {
                News::Span(span) => self.take_span(pool, began, span),
                News::Event(event) => self.take_event(pool, began, event),
                News::Waiting { at, inputs } => {
                    self.take_sample(pool, ns(began.saturating_add(*at)), *inputs);
                }
                News::Lines(_) | News::Log(_) => {}
            }
        }
    }

    /// The lane of a worker. `None` if there are too many, or if the pool has ended.
    pub(super) fn lane(
        &mut self,
        pool: u32,
        worker: usize,
        host: Option<&String>,
    ) -> Option<usize> {
        let open = self.pools.get_mut(&pool)?;
        let place = (worker, host.cloned());
        if let Some(lane) = open.lanes.get(&place) {
            return Some(*lane);
        }
        // What two pools did at the same time must not be in one lane.
        let began = ns(open.began);
        let free = self.free.get_mut(&place);
        let free = free.filter(|free| free.front().is_some_and(|(_, since)| *since <= began));
        let lane = match free.and_then(VecDeque::pop_front) {
            Some((lane, _)) => lane,
            None if self.lanes.len() < LANES_MAX => {
                self.lanes.push(Lane {
                    worker,
                    host: host.cloned(),
                });
                self.bars.push(Vec::new());
                self.lanes.len() - 1
            }
            None => return None,
        };
        open.lanes.insert(place, lane);
        Some(lane)
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
        let Some(lane) = self.lane(pool, span.worker, span.host.as_ref()) else {
            self.inputs_missed = self.inputs_missed.saturating_add(span.count);
            return;
        };
        let bar = Bar {
            lane: lane as u32,
            pid: span.pid,
            task: self.task(&span.task),
            // Jobs of different pools have the same numbers.
            job: span.job ^ pool.rotate_right(8),
            first: span.first,
            count: span.count,
            failed: span.failed,
            began_ns: ns(began.saturating_add(span.began)),
            ended_ns: ns(began.saturating_add(span.ended)),
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
        let lane = self.lane(pool, worker, host);
        let Some(lane) = lane.filter(|_| self.marks.len() < MARKS_MAX) else {
            self.marks_missed += 1;
            return;
        };
        self.marks.push(Mark {
            lane: lane as u32,
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
                    Recycled::CpuTime => "cpu_time",
                };
                ((*worker, *pid, host), at, What::Recycled(why.to_owned()))
            }
            Event::Missed { count } => {
                self.missed += *count;
                return;
            }
            Event::InputBegan { .. }
            | Event::InputEnded { .. }
            | Event::SandboxIncomplete { .. } => return,
        };
        let who = (who.0, who.1, who.2.as_ref());
        self.mark(pool, who, began.saturating_add(*at), what);
    }

    fn take_sample(&mut self, pool: u32, at_ns: u64, inputs: usize) {
        let Some(open) = self.pools.get_mut(&pool) else {
            return;
        };
        let before = mem::replace(&mut open.waits, inputs);
        self.waits = self.waits.wrapping_sub(before).wrapping_add(inputs);
        self.sample(at_ns);
    }

    /// Notes how many inputs wait since this time.
    fn sample(&mut self, at_ns: u64) {
        let inputs = self.waits;
        if let Some(last) = self.waiting.last_mut() {
            if last.inputs == inputs {
                return;
            }
            if at_ns < last.at_ns.saturating_add(self.sample_step) {
                // Only the last of several values at nearly the same time is kept.
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

    /// The bars, ordered by time in each lane.
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

    /// When the last event that was reported happened, in nanoseconds.
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
                "there were so many inputs that neighboring bars were merged, up to {length:?} each"
            ));
        }
        if self.inputs_missed > 0 {
            let missed = self.inputs_missed;
            notes.push(format!(
                "there were more than {LANES_MAX} workers; {missed} inputs that others ran were left out"
            ));
        }
        if self.marks_missed > 0 {
            let missed = self.marks_missed;
            notes.push(format!(
                "{missed} more starts and ends of workers were left out"
            ));
        }
        if self.missed > 0 {
            let missed = self.missed;
            notes.push(format!(
                "{missed} reports of other machines were dropped, because the connection was too slow for them"
            ));
        }
        notes
    }
}

/// Merges two bars that follow each other in a lane, if the resolution is coarse enough. Returns false if they stay separate.
fn join(last: &mut Bar, next: &Bar, doublings: u32) -> bool {
    let times =
        |length: u64| length.saturating_mul(1_u64.checked_shl(doublings).unwrap_or(u64::MAX));
    let is_any = doublings >= DOUBLINGS_MAX;
    let is_short = |bar: &Bar| is_any || bar.busy_ns / (bar.count as u64).max(1) < times(ALONE);
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
    last.count = last.count.saturating_add(next.count);
    last.failed = last.failed.saturating_add(next.failed);
    last.ended_ns = last.ended_ns.max(next.ended_ns);
    last.busy_ns = last.busy_ns.saturating_add(next.busy_ns);
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

    /// With one pool.
    fn collected() -> Collected {
        let mut all = Collected::default();
        all.begin(0, Duration::ZERO);
        all
    }

    #[test]
    fn short_neighbors_are_merged_and_long_ones_stay() {
        let mut all = collected();
        let short = (0..10).map(|n| span(0, 7, n, 1_000 * n as u64, 900));
        let long = (0..3).map(|n| span(0, 7, 10 + n, 100_000 * (n as u64 + 1), 50_000));
        let news: Vec<News> = short.chain(long).collect();
        all.take(0, &news);
        let bars = all.bars();
        assert_eq!(bars.len(), 4);
        assert_eq!((bars[0].count, bars[0].first), (10, Some(0)));
        assert_eq!((bars[0].busy_ns, bars[0].ended_ns), (9_000, 9_900));
    }

    #[test]
    fn a_million_bars_are_few_and_none_is_forgotten() {
        let mut all = collected();
        let mut busy = 0;
        for n in 0..1_000_000_u64 {
            // Each of these is a job of its own and long enough for a bar of its own, and one in a thousand fails.
            let took = 30_000 + n % 50_000;
            busy += took;
            let News::Span(mut span) = span((n % 3) as usize, n as u32, 0, 100_000 * n, took)
            else {
                unreachable!("it is one");
            };
            if n % 1000 == 0 {
                (span.failed, span.outcome) = (1, Ended::Panicked);
            }
            all.take(0, &[News::Span(span)]);
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
        let mut all = collected();
        for n in 0..300_000_u64 {
            let News::Span(mut span) = span(0, n as u32, 0, 10_000_000 * n, 9_000_000) else {
                unreachable!("it is one");
            };
            span.pid = n as u32;
            span.failed = 1;
            all.take(0, &[News::Span(span)]);
        }
        assert!(all.bars().len() <= BARS_MAX);
        assert_eq!(
            all.bars().iter().map(|bar| bar.failed).sum::<usize>(),
            300_000
        );
    }

    #[test]
    fn what_was_dropped_on_the_way_is_noted() {
        let mut all = collected();
        assert!(all.notes().is_empty());
        all.take(0, &[News::missed(2), News::missed(3)]);
        let notes = all.notes();
        assert!(
            notes.len() == 1 && notes[0].starts_with("5 reports"),
            "{notes:?}"
        );
    }

    #[test]
    fn samples_are_bounded_and_differ() {
        let mut all = collected();
        for n in 0..200_000_u64 {
            let at = Duration::from_micros(n);
            let inputs = (n / 3) as usize;
            all.take(0, &[News::Waiting { at, inputs }]);
        }
        let waiting = all.waiting();
        assert!((1_000..=SAMPLES_MAX).contains(&waiting.len()));
        assert!(waiting.is_sorted_by(|one, other| one.inputs < other.inputs));
        assert_eq!(waiting.last().unwrap().inputs, 199_999 / 3);
    }

    #[test]
    fn pools_that_follow_each_other_share_lanes() {
        let ms = Duration::from_millis;
        let mut all = Collected::default();
        for pool in 0..200_000 {
            let at = ms(2 * u64::from(pool));
            all.begin(pool, at);
            all.take(pool, &[span(0, 1, 0, 0, 50_000), span(1, 1, 1, 0, 50_000)]);
            all.end(pool, at + ms(1));
        }
        assert_eq!(all.lanes.len(), 2);
        assert!(all.pools.is_empty());
        let bars = all.bars();
        assert!(bars.len() <= BARS_MAX);
        assert_eq!(bars.iter().map(|bar| bar.count).sum::<usize>(), 400_000);
    }

    #[test]
    fn pools_at_the_same_time_have_lanes_of_their_own() {
        let ms = Duration::from_millis;
        let mut all = Collected::default();
        let mut lane_of = |pool, began, ended| {
            all.begin(pool, ms(began));
            let lane = all.lane(pool, 0, None);
            all.end(pool, ms(ended));
            lane
        };
        assert_eq!(lane_of(0, 0, 10), Some(0));
        // It began before the other ended, and reports later.
        assert_eq!(lane_of(1, 5, 20), Some(1));
        assert_eq!(lane_of(2, 12, 30), Some(0));
        assert_eq!(lane_of(3, 20, 40), Some(1));
    }

    #[test]
    fn lanes_are_bounded_and_what_has_none_is_noted() {
        let mut all = Collected::default();
        let pools = BARS_MAX as u32 + 10;
        for pool in 0..pools {
            all.begin(pool, Duration::ZERO);
            all.take(pool, &[span(0, 1, 0, 0, 50_000)]);
        }
        assert_eq!((all.lanes.len(), all.bars().len()), (LANES_MAX, LANES_MAX));
        let notes = all.notes();
        let missed = pools as usize - LANES_MAX;
        assert!(
            notes.len() == 1 && notes[0].contains(&format!(" {missed} inputs")),
            "{notes:?}"
        );
        // There are as many lanes as may be, with more bars than may be, of the longest times that there are.
        for pool in 0..LANES_MAX as u32 {
            for job in 0..12 {
                let took = u64::MAX / 2;
                all.take(pool, &[span(0, job, 0, took, took)]);
            }
        }
        let bars = all.bars();
        assert!(bars.len() <= BARS_MAX);
        let inputs: usize = bars.iter().map(|bar| bar.count).sum();
        assert_eq!(inputs, 13 * LANES_MAX);
    }

    #[test]
    fn nothing_waits_in_a_pool_that_has_ended() {
        let us = Duration::from_micros;
        let mut all = Collected::default();
        all.begin(0, Duration::ZERO);
        all.begin(1, Duration::ZERO);
        let waits = |at, inputs| News::Waiting { at: us(at), inputs };
        all.take(0, &[waits(1, 5)]);
        all.take(1, &[waits(2, 7)]);
        all.end(0, us(3));
        all.take(0, &[waits(4, 100), span(0, 1, 0, 0, 50_000)]);
        let waiting = all.waiting();
        let inputs: Vec<usize> = waiting.iter().map(|sample| sample.inputs).collect();
        assert_eq!(inputs, [5, 12, 7]);
        assert!(all.bars().is_empty());
    }
}
