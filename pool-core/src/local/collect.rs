//! Waiting for outcomes, and collecting replies meanwhile.
//!
//! The thread that waits reads the replies itself, so that a result needs no hand-over inside the parent.
//! Of several threads that wait, one is the leader. It spins while that may pay, then sleeps on the bell;
//! what it finds for others it delivers, and that wakes them. When it has what it wants it wakes a
//! follower to take over, or leaves the bell to the collector.
//!
//! Before anybody sleeps: `listen` tells the workers when to ring, the bell is told whom to wake, and the
//! rings are looked at once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::TICK;

use super::Shared;
use super::state::sooner;
use crate::backend::{JobId, Waiting, Want};
use crate::sync::{Parker, lock};

/// If work seems badly shared out, but not worth mending, it is mended after this time nevertheless.
const BALANCE: Duration = Duration::from_micros(300);

impl Shared {
    pub(super) fn wait(
        &self,
        job: JobId,
        want: Want,
        waiting: &dyn Waiting,
        deadline: Option<Instant>,
    ) -> bool {
        if waiting.is_over() {
            return true;
        }
        loop {
            let leads = self.update(|state| {
                state.collect();
                state.scheduler.want(job, want);
                let leads = !state.has_leader;
                if leads {
                    state.has_leader = true;
                    state.attend();
                }
                leads
            });
            if leads {
                let over = self.lead(waiting, deadline);
                self.resign(job);
                return over;
            }
            self.follow(waiting, deadline);
            self.update(|state| state.scheduler.forget_want(job));
            if waiting.is_over() {
                return true;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return false;
            }
        }
    }

    fn lead(&self, waiting: &dyn Waiting, deadline: Option<Instant>) -> bool {
        loop {
            if waiting.is_over() {
                return true;
            }
            if self.spin() {
                self.update(|state| state.collect());
                continue;
            }
            let sleeps = self.update(|state| {
                state.listen();
                self.launcher.bell().listen_as_leader();
                if state.collect_what_would_ring() {
                    state.attend();
                    return None;
                }
                Some(state.scheduler.balance(false))
            });
            let Some(unbalanced) = sleeps else {
                continue;
            };
            if !waiting.is_over() {
                let now = Instant::now();
                if deadline.is_some_and(|deadline| deadline <= now) {
                    return false;
                }
                let look = now + if unbalanced { BALANCE } else { TICK };
                let until = sooner(deadline, Some(look));
                let timeout = until.map(|until| until.saturating_duration_since(now));
                self.launcher.bell().sleep_as_leader(timeout);
                self.update(|state| {
                    state.attend();
                    state.collect();
                    if unbalanced && Instant::now() >= look {
                        state.scheduler.balance(true);
                    }
                });
            }
        }
    }

    /// Spins while replies may come at once. True: there are some.
    fn spin(&self) -> bool {
        // Where all CPUs are busy, spinning takes the CPU from whom one waits for.
        let glances = lock(&self.state).glances(self.cpus.saturating_sub(1));
        if glances.is_empty() {
            return false;
        }
        lock(&self.spin).until(
            || glances.iter().any(|worker| worker.has_replies()),
            || glances.iter().all(|worker| worker.is_elsewhere()),
        )
    }

    /// Leads no more: a follower does, or the collector is woken when it matters.
    fn resign(&self, job: JobId) {
        let next = self.update(|state| {
            state.has_leader = false;
            state.scheduler.forget_want(job);
            if let Some(next) = state.followers.pop() {
                return Some(next);
            }
            state.listen_as_collector();
            None
        });
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Sleeps until it is over, or until there is need for another leader.
    fn follow(&self, waiting: &dyn Waiting, deadline: Option<Instant>) {
        Parker::with_current(|parker| {
            waiting.tell(parker, true);
            let follows = self.update(|state| {
                // The leader may have resigned meanwhile.
                if state.has_leader {
                    state.followers.push(Arc::clone(parker));
                }
                state.has_leader
            });
            if follows {
                if !waiting.is_over() {
                    parker.park(deadline);
                }
                self.update(|state| state.unfollow(parker));
            }
            waiting.tell(parker, false);
        });
    }

    /// The collector's life.
    pub(super) fn collect_when_nobody_waits(&self) {
        let mut unbalanced = false;
        loop {
            let wakes = self.launcher.bell().collector_wakes();
            let over = self.update(|state| {
                if !state.has_leader {
                    state.attend();
                    state.collect();
                    if unbalanced {
                        state.scheduler.balance(true);
                    }
                }
                state.over
            });
            if over {
                return;
            }
            unbalanced = self.update(|state| {
                if !state.has_leader {
                    state.listen_as_collector();
                }
                !state.has_leader && state.scheduler.balance(false)
            });
            let timeout = unbalanced.then_some(BALANCE);
            self.launcher.bell().sleep_as_collector(wakes, timeout);
        }
    }
}

impl super::State {
    /// The collector is woken from now on.
    fn listen_as_collector(&mut self) {
        loop {
            self.listen();
            self.bell.listen_as_collector();
            if !self.collect_what_would_ring() {
                return;
            }
        }
    }
}
