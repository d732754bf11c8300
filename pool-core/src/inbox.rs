//! Where outcomes wait for the one thread that takes them, and how they get into order there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use crate::backend::{JobId, Next, Outcomes, Sink, Waiter, Waiting, Want, Workers};
use crate::sync::{Parker, lock};

/// The sink of a call whose caller consumes outcomes as they come.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<Arrived>);

#[derive(Debug, Default)]
struct Arrived {
    outcomes: Vec<Outcomes>,
    /// How many inputs they are of.
    count: usize,
    /// The consumer waits for so many.
    enough: usize,
    follower: Option<Arc<Parker>>,
    /// A future that waits for any.
    waker: Option<Waker>,
}

impl Inbox {
    /// Moves what has arrived behind `outcomes`; says how many inputs that is.
    pub(crate) fn take(&self, outcomes: &mut Vec<Outcomes>) -> usize {
        let mut arrived = lock(&self.0);
        outcomes.append(&mut arrived.outcomes);
        std::mem::take(&mut arrived.count)
    }

    /// Waits until outcomes of `enough` inputs are here; false if the deadline is before that.
    pub(crate) fn wait(
        &self,
        enough: usize,
        workers: &dyn Workers,
        job: JobId,
        want: Want,
        deadline: Option<Instant>,
    ) -> bool {
        lock(&self.0).enough = enough;
        workers.wait(job, want, Waiter(self), deadline)
    }

    /// Has this waker woken when something arrives. False: something has.
    #[cfg(feature = "futures")]
    pub(crate) fn wake(&self, waker: &Waker) -> bool {
        let mut arrived = lock(&self.0);
        if arrived.count > 0 {
            return false;
        }
        arrived.waker = Some(waker.clone());
        true
    }

    /// Whether anything has arrived.
    pub(crate) fn has_some(&self) -> bool {
        lock(&self.0).count > 0
    }
}

impl Sink for Inbox {
    fn deliver(self: Arc<Self>, outcomes: Outcomes) {
        let mut arrived = lock(&self.0);
        arrived.count += outcomes.count();
        arrived.outcomes.push(outcomes);
        let waker = arrived.waker.take();
        let follower = if arrived.count >= arrived.enough {
            arrived.follower.clone()
        } else {
            None
        };
        drop(arrived);
        if let Some(follower) = follower {
            follower.wake();
        }
        if let Some(waker) = waker {
            pool_worker::wake(waker);
        }
    }
}

impl Waiting for Inbox {
    fn is_over(&self) -> bool {
        let arrived = lock(&self.0);
        arrived.count >= arrived.enough
    }

    fn tell(&self, parker: &Arc<Parker>, wake: bool) {
        lock(&self.0).follower = wake.then(|| Arc::clone(parker));
    }
}

/// Outcomes in the order of the inputs.
#[derive(Debug, Default)]
pub(crate) struct InOrder {
    /// The position of the next.
    next: usize,
    /// Those that begin there.
    now: Option<Outcomes>,
    /// Those that begin later, by where.
    early: BTreeMap<usize, Outcomes>,
}

impl InOrder {
    pub(crate) fn add(&mut self, outcomes: Outcomes) {
        if outcomes.first == self.next && self.now.is_none() {
            self.now = Some(outcomes);
        } else {
            self.early.insert(outcomes.first, outcomes);
        }
    }

    /// The next one, if it is here.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Next<'_>> {
        if self.now.as_ref().is_none_or(|now| now.count() == 0) {
            self.now = self.early.remove(&self.next);
        }
        let popped = self.now.as_mut()?.pop()?;
        self.next += 1;
        Some(popped)
    }

    /// All that follow each other and came together, if they are here.
    pub(crate) fn pop_many(&mut self) -> Option<Outcomes> {
        let many = self.now.take().or_else(|| self.early.remove(&self.next))?;
        self.next += many.count();
        Some(many)
    }
}

/// Outcomes in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct AsTheyCome(VecDeque<Outcomes>);

impl AsTheyCome {
    pub(crate) fn add(&mut self, outcomes: Outcomes) {
        self.0.push_back(outcomes);
    }

    pub(crate) fn pop(&mut self) -> Option<Next<'_>> {
        while self.0.front()?.count() == 0 {
            self.0.pop_front();
        }
        self.0.front_mut()?.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Failure;

    fn failed(first: usize, count: usize) -> Outcomes {
        Outcomes::failed(first, count, Arc::new(Failure::Cancelled))
    }

    #[test]
    fn order_is_made_of_any_order() {
        let mut order = InOrder::default();
        let mut seen = Vec::new();
        for (first, count) in [(5, 2), (0, 1), (3, 2), (1, 2), (7, 1)] {
            order.add(failed(first, count));
            while let Some((index, _)) = order.pop() {
                seen.push(index);
            }
        }
        assert_eq!(seen, (0..8).collect::<Vec<_>>());
    }
}
