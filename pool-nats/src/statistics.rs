//! The parent's statistics: its own counts of outcomes, and what its nodes last told.
//!
//! A node tells when something has changed, at most once a second, and when the parent asks.

use std::time::{Duration, Instant};

use pool_core::backend::{Outcomes, Tallies};
use pool_core::{Stats, WorkerState};

/// Everything that is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Statistics {
    /// The outcomes that were delivered, and the runs of nodes that are gone.
    own: Tallies,
    /// The bytes to and from the workers of nodes that are gone.
    sent: u64,
    received: u64,
    /// How many inputs are in no load that has begun.
    queued: usize,
    /// In the order in which they joined.
    nodes: Vec<OfNode>,
    /// How often nodes were asked.
    asked: u64,
    /// The nodes are gone.
    is_over: bool,
}

#[derive(Debug, Clone)]
struct OfNode {
    id: String,
    host: String,
    /// The number of the question that it answered last.
    answered: u64,
    told: Option<Report>,
}

/// What a node told, and when.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) at: Instant,
    pub(crate) stats: Stats,
    pub(crate) tallies: Tallies,
}

impl Statistics {
    /// Counts outcomes of inputs of this task that are about to be delivered.
    pub(crate) fn count(&mut self, task: u32, outcomes: &Outcomes) {
        self.own.count(task, outcomes);
    }

    /// Sets how many inputs are in no load that has begun.
    pub(crate) fn set_queued(&mut self, inputs: usize) {
        self.queued = inputs;
    }

    pub(crate) fn joined(&mut self, id: &str, host: &str) {
        self.nodes.push(OfNode {
            id: id.to_owned(),
            host: host.to_owned(),
            answered: 0,
            told: None,
        });
    }

    /// A node has told, perhaps because it was asked.
    pub(crate) fn told(&mut self, id: &str, asked: u64, report: Report) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
            node.answered = node.answered.max(asked);
            node.told = Some(report);
        }
    }

    /// A node is gone, and what it has told is kept, but for its workers.
    pub(crate) fn left(&mut self, id: &str) {
        let Some(place) = self.nodes.iter().position(|node| node.id == id) else {
            return;
        };
        if let Some(report) = self.nodes.remove(place).told {
            self.own.add_runs(&report.tallies);
            self.sent = self.sent.saturating_add(report.stats.bytes_sent);
            self.received = self.received.saturating_add(report.stats.bytes_received);
        }
    }

    /// All nodes are gone, and their workers. Those are still shown.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
        for report in self.nodes.iter_mut().filter_map(|node| node.told.as_mut()) {
            report.stats.queued = 0;
            for worker in &mut report.stats.workers {
                worker.state = WorkerState::Absent;
                (worker.pid, worker.running, worker.resident) = (None, None, None);
            }
        }
    }

    /// Returns the number of a question to all nodes, unless there is nobody to ask.
    pub(crate) fn ask(&mut self) -> Option<u64> {
        if self.is_over || self.nodes.is_empty() {
            return None;
        }
        self.asked += 1;
        Some(self.asked)
    }

    /// Whether all nodes have answered this question or a later one.
    pub(crate) fn is_answered(&self, question: u64) -> bool {
        self.is_over || self.nodes.iter().all(|node| node.answered >= question)
    }

    /// Puts everything together.
    pub(crate) fn stats(&self, now: Instant, uptime: Duration) -> Stats {
        let mut tallies = self.own.clone();
        let mut stats = Stats::default();
        stats.uptime = uptime;
        stats.queued = self.queued;
        (stats.bytes_sent, stats.bytes_received) = (self.sent, self.received);
        for node in &self.nodes {
            let Some(report) = &node.told else {
                continue;
            };
            tallies.add_runs(&report.tallies);
            let told = &report.stats;
            stats.queued += told.queued;
            let parts = told.unenforced.iter();
            let parts = parts.map(|part| format!("{part} ({})", node.host));
            stats.unenforced.extend(parts);
            stats.bytes_sent = stats.bytes_sent.saturating_add(told.bytes_sent);
            stats.bytes_received = stats.bytes_received.saturating_add(told.bytes_received);
            let age = now.saturating_duration_since(report.at);
            let workers = told.workers.iter().cloned();
            stats.workers.extend(workers.map(|mut worker| {
                worker.host = Some(node.host.clone());
                // The node's pool is younger than this one.
                let mut busy = told.uptime.mul_f64(worker.busy);
                if let Some(running) = &mut worker.running {
                    running.since += age;
                    busy += age;
                }
                let share = busy.as_secs_f64() / uptime.as_secs_f64().max(1e-9);
                worker.busy = share.clamp(0.0, 1.0);
                worker
            }));
        }
        stats.tasks = tallies.tasks();
        stats
    }
}

/// Whether there is something new, apart from what always changes.
pub(crate) fn differ(one: &Stats, other: &Stats) -> bool {
    let settled = |stats: &Stats| {
        let mut stats = stats.clone();
        stats.uptime = Duration::ZERO;
        for worker in &mut stats.workers {
            (worker.busy, worker.resident) = (0.0, None);
            if let Some(running) = &mut worker.running {
                running.since = Duration::ZERO;
            }
        }
        stats
    };
    settled(one) != settled(other)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pool_core::WorkerStats;
    use pool_core::backend::Failure;

    use super::*;
    use crate::wire::{from_bytes, to_bytes};

    fn worker(worker: usize, done: u64) -> WorkerStats {
        let mut stats = WorkerStats::default();
        (stats.worker, stats.pid, stats.done) = (worker, Some(7), done);
        stats.state = WorkerState::Idle;
        stats
    }

    fn report(at: Instant, queued: usize, workers: Vec<WorkerStats>) -> Report {
        let mut stats = Stats::default();
        (stats.queued, stats.bytes_sent, stats.bytes_received) = (queued, 10, 1);
        stats.workers = workers;
        let tallies = Tallies::default();
        Report { at, stats, tallies }
    }

    #[test]
    fn nodes_add_up_and_what_they_have_sent_remains() {
        let now = Instant::now();
        let mut all = Statistics::default();
        assert_eq!(all.ask(), None);
        all.joined("z", "first");
        all.joined("a", "second");
        all.joined("b", "third");
        all.set_queued(3);
        all.told("z", 0, report(now, 1, vec![worker(0, 4), worker(1, 5)]));
        all.told("a", 0, report(now, 2, vec![worker(0, 6)]));
        all.told("unknown", 9, report(now, 9, vec![worker(9, 9)]));
        let cancelled = Outcomes::failed(0, 2, Arc::new(Failure::Cancelled));
        all.count(0, &cancelled);
        let stats = all.stats(now, Duration::from_secs(1));
        assert_eq!(
            (stats.queued, stats.bytes_sent, stats.bytes_received),
            (6, 20, 2)
        );
        let shown = |stats: &Stats| -> Vec<(String, usize, u64)> {
            let workers = stats.workers.iter();
            let host = |worker: &WorkerStats| worker.host.clone().unwrap_or_default();
            workers
                .map(|one| (host(one), one.worker, one.done))
                .collect()
        };
        let (first, second) = ("first".to_owned(), "second".to_owned());
        let expected = [(first.clone(), 0, 4), (first, 1, 5), (second.clone(), 0, 6)];
        assert_eq!(shown(&stats), expected);
        assert_eq!(stats.tasks[0].cancelled, 2);
        all.left("z");
        let stats = all.stats(now, Duration::from_secs(1));
        assert_eq!(
            (stats.queued, stats.bytes_sent, stats.bytes_received),
            (5, 20, 2)
        );
        assert_eq!(shown(&stats), [(second.clone(), 0, 6)]);
        all.set_queued(0);
        all.end();
        let stats = all.stats(now, Duration::from_secs(1));
        assert_eq!(stats.queued, 0);
        assert_eq!(shown(&stats), [(second, 0, 6)]);
        assert_eq!(stats.workers[0].state, WorkerState::Absent);
        assert_eq!((stats.workers[0].pid, all.ask()), (None, None));
    }

    #[test]
    fn what_a_worker_did_when_it_was_told_of_it_does_still() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let mut all = Statistics::default();
        all.joined("a", "here");
        let mut report = report(now, 0, vec![worker(0, 1), worker(1, 2)]);
        // The node's pool was built 6 s after this one.
        report.stats.uptime = seconds(4);
        for worker in &mut report.stats.workers {
            worker.busy = 0.5;
        }
        let running = to_bytes(&("task", None::<usize>, seconds(1)));
        report.stats.workers[1].running = from_bytes(&running);
        all.told("a", 0, report);
        let stats = all.stats(now + seconds(10), seconds(20));
        let [idle, busy] = &stats.workers[..] else {
            panic!("{stats:?}");
        };
        assert!((idle.busy - 0.1).abs() < 1e-6, "{stats}");
        assert!((busy.busy - 0.6).abs() < 1e-6, "{stats}");
        assert_eq!(busy.running.as_ref().unwrap().since, seconds(11));
    }

    #[test]
    fn a_question_is_answered_by_all_or_by_the_end() {
        let now = Instant::now();
        let mut all = Statistics::default();
        all.joined("a", "here");
        all.joined("b", "here");
        let (first, second) = (all.ask().unwrap(), all.ask().unwrap());
        all.told("a", second, report(now, 0, Vec::new()));
        assert!(!all.is_answered(first));
        // It tells something unasked.
        all.told("b", 0, report(now, 0, Vec::new()));
        assert!(!all.is_answered(first));
        all.told("b", first, report(now, 0, Vec::new()));
        assert!(all.is_answered(first) && !all.is_answered(second));
        all.left("b");
        assert!(all.is_answered(second));
        let third = all.ask().unwrap();
        assert!(!all.is_answered(third));
        all.end();
        assert!(all.is_answered(third));
    }

    #[test]
    fn what_always_changes_is_no_news() {
        let now = Instant::now();
        let before = report(now, 0, vec![worker(0, 1)]).stats;
        let mut after = before.clone();
        after.uptime = Duration::from_secs(1);
        (after.workers[0].busy, after.workers[0].resident) = (0.5, Some(1));
        assert!(!differ(&before, &after));
        after.workers[0].done = 2;
        assert!(differ(&before, &after));
    }
}
