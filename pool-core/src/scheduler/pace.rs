//! How long the inputs of each task take, as far as is known, and the sizes of portions that follow from that.

use std::time::Duration;

/// How long a portion should keep a worker busy: long compared to the cost of a message, short compared to the time that a
/// caller accepts for the first result.
const PORTION_TIME: Duration = Duration::from_millis(1);

/// The most inputs in a portion, unless one chunk is larger.
const PORTION_MAX: usize = 4096;

/// Limits the first portion of a job, if its task's pace is known, to four times as many inputs.
const FIRST_PORTION: usize = 64;

/// Paces by the number of the task.
#[derive(Debug, Default)]
pub(super) struct Paces(Vec<Option<Duration>>);

impl Paces {
    #[inline]
    pub(super) fn of(&self, task: u32) -> Option<Duration> {
        self.0.get(task as usize).copied().flatten()
    }

    /// Takes a measurement into account. A worker that was preempted looks slow, and believing that at once would wake other
    /// workers, which would preempt it even more. So slower measurements are adopted in steps, faster ones soon.
    pub(super) fn observe(&mut self, task: u32, each: Duration) {
        // Numbers of tasks are small; a large one is invalid.
        let task = task as usize;
        if task >= 1 << 20 {
            return;
        }
        if self.0.len() <= task {
            self.0.resize(task + 1, None);
        }
        let pace = &mut self.0[task];
        *pace = Some(match *pace {
            None => each,
            Some(pace) if each > pace => each.min(pace.max(Duration::from_nanos(20)) * 3 / 2),
            Some(pace) => (pace + each) / 2,
        });
    }

    /// How many inputs of this task make a portion.
    pub(super) fn portion(&self, task: u32) -> usize {
        self.of(task).map_or(1, by_time)
    }

    /// The assumed size of the portion before the first one.
    pub(super) fn first_portion(&self, task: u32) -> usize {
        self.of(task).map_or(0, |_| FIRST_PORTION)
    }
}

/// How many inputs of this pace make a portion.
fn by_time(pace: Duration) -> usize {
    inputs_in(PORTION_TIME, pace).clamp(1, PORTION_MAX)
}

/// How many inputs of this pace fit into a time.
pub(super) fn inputs_in(time: Duration, pace: Duration) -> usize {
    let inputs = time.as_nanos() / pace.as_nanos().max(1);
    usize::try_from(inputs).unwrap_or(usize::MAX)
}
