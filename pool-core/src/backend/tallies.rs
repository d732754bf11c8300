//! [`Tallies`]: statistics of tasks in a form that can be added up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Outcomes;
use crate::scheduler::Counts;
use crate::stats::{self, TalliedTasks, TaskStats};

/// The outcomes of the inputs of each task, and how long runs took and inputs waited, in a form that can be added up: for
/// statistics of several machines. The quantiles in [`TaskStats`] can't be added up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tallies {
    /// By the number of the task.
    counts: BTreeMap<u32, Counts>,
    times: TalliedTasks,
}

impl Tallies {
    pub(crate) fn new(counts: &[Counts], times: TalliedTasks) -> Tallies {
        let counts = (0..).zip(counts.iter().copied());
        let counts = counts.filter(|(_, counts)| *counts != Counts::default());
        Tallies {
            counts: counts.collect(),
            times,
        }
    }

    /// Counts outcomes of inputs of this task that are being delivered.
    pub fn count(&mut self, task: u32, outcomes: &Outcomes) {
        self.counts.entry(task).or_default().count(outcomes);
    }

    /// Adds the runs that another machine has counted: their number and their times, but not the outcomes of inputs, which
    /// are [counted](Tallies::count) where they are delivered.
    pub fn add_runs(&mut self, other: &Tallies) {
        for (task, counts) in &other.counts {
            let attempts = &mut self.counts.entry(*task).or_default().attempts;
            *attempts = attempts.saturating_add(counts.attempts);
        }
        for (task, times) in &other.times {
            self.times.entry(*task).or_default().merge(times);
        }
    }

    /// What [`Stats::tasks`](crate::Stats::tasks) shows of them.
    pub fn tasks(&self) -> Vec<TaskStats> {
        let tasks = self.counts.keys().chain(self.times.keys());
        let len = tasks.max().map_or(0, |last| *last as usize + 1);
        let mut counts = vec![Counts::default(); len];
        for (task, known) in &self.counts {
            counts[*task as usize] = *known;
        }
        stats::tasks(&counts, &self.times)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use pool_worker::Tallied;

    use super::*;
    use crate::backend::Failure;

    fn of_machine(attempts: u64, took: &[u64]) -> Tallies {
        let counts = Counts {
            done: 1,
            attempts,
            ..Counts::default()
        };
        let mut tallied = Tallied::default();
        took.iter()
            .for_each(|ms| tallied.ran.record(ms * 1_000_000));
        Tallies::new(&[counts], TalliedTasks::from([(0, tallied)]))
    }

    #[test]
    fn runs_of_machines_add_up_and_outcomes_are_counted_here() {
        let mut all = Tallies::default();
        let failure = Arc::new(Failure::Cancelled);
        all.count(0, &Outcomes::failed(0, 3, failure));
        for machine in [of_machine(2, &[1, 1, 1]), of_machine(5, &[100, 100])] {
            // As they arrive from there.
            let sent = serde_json::to_string(&machine).expect("it can be sent");
            assert!(sent.len() < 500, "empty buckets are not sent: {sent}");
            all.add_runs(&serde_json::from_str(&sent).expect("it can be received"));
        }
        let tasks = all.tasks();
        let [task] = &tasks[..] else {
            panic!("{tasks:?}");
        };
        assert_eq!((task.done, task.cancelled, task.attempts), (0, 3, 7));
        let ms = Duration::from_millis;
        let times = &task.run_times;
        assert_eq!((times.count, times.max), (5, ms(100)));
        assert!((ms(1)..ms(2)).contains(&times.p50), "{times:?}");
        assert!(times.p90 > ms(90), "{times:?}");
    }
}
