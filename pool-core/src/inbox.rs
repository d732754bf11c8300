//! Holds outcomes until the one thread that wants them takes them, and puts them into order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use crate::backend::{JobId, Next, Outcomes, Sink, Waiter, Waiting, Want, Workers};
use crate::sync::{Parker, lock};

/// The sink of a call whose caller consumes outcomes as they arrive.
#[derive(Debug, Default)]
pub(crate) struct Inbox(Mutex<Arrived>);

#[derive(Debug, Default)]
struct Arrived {
    outcomes: Vec<Outcomes>,
    /// How many inputs these are the outcomes of.
    count: usize,
    /// The consumer waits for this many.
    enough: usize,
    follower: Option<Arc<Parker>>,
    /// A future that waits for any outcome.
    waker: Option<Waker>,
}

impl Inbox {
    /// Appends everything that has arrived to `outcomes`; returns how many inputs that is.
    pub(crate) fn take(&self, outcomes: &mut Vec<Outcomes>) -> usize {
        let mut arrived = lock(&self.0);
        outcomes.append(&mut arrived.outcomes);
        std::mem::take(&mut arrived.count)
    }

    /// Waits until outcomes of `enough` inputs have arrived; returns false if the deadline comes first.
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

    /// Sets the waker to wake when something arrives. Returns false if something already has.
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
    /// The position of the next outcome.
    next: usize,
    /// Outcomes that begin at that position.
    now: Option<Outcomes>,
    /// Outcomes that begin later, by their position.
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

    /// The next outcome, if it has arrived.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Next<'_>> {
        if self.now.as_ref().is_none_or(|now| now.count() == 0) {
            self.now = self.early.remove(&self.next);
        }
        let popped = self.now.as_mut()?.pop()?;
        self.next += 1;
        Some(popped)
    }

    /// All outcomes that are next and arrived together, if they have arrived.
    pub(crate) fn pop_many(&mut self) -> Option<Outcomes> {
        let many = self.now.take().or_else(|| self.early.remove(&self.next))?;
        self.next += many.count();
        Some(many)
    }
}

/// Outcomes in the order in which they arrived.
#[derive(Debug, Default)]
pub(crate) struct Unordered(VecDeque<Outcomes>);

impl Unordered {
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
    fn outcomes_in_any_order_are_put_in_order() {
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
