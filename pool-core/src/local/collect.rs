//! Waiting for outcomes, and collecting replies meanwhile.
//!
//! The thread that waits reads the replies itself, so that a result need not be handed from thread to thread. If several
//! threads wait, one is the leader. It spins while that may pay off, then sleeps on the bell. What it finds for other threads
//! it delivers, which wakes them. When it has what it waits for, it wakes a follower to take over, or leaves the bell to the
//! collector, as long as any worker is busy.
//!
//! Before a thread sleeps, `listen` tells the workers when to ring, the bell is told which thread to wake, and the rings are
//! looked at once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool_worker::{Glance, Spin, TICK, spin_for_piece};

use super::Shared;
use super::state::State;
use crate::backend::{JobId, Waiting, Want};
use crate::few::Few;
use crate::sync::Parker;

/// If work seems unevenly distributed, but not enough to justify redistributing it, it is redistributed after this time
/// nevertheless.
const BALANCE: Duration = Duration::from_micros(300);

/// While another thread delivers, a leader looks this often whether it has what it waits for: that thread may have collected it
/// when there was no leader to wake.
const DELIVERY: Duration = Duration::from_millis(1);

/// What a waiting thread does for the others.
enum Role {
    /// It found something, and has no role yet.
    Found,
    /// It looks at the rings, and sleeps on the bell.
    Leader(Lookout),
    Follower,
}

/// What a leader needs to spin.
struct Lookout {
    /// The rings of the busy workers; empty if the leader should not spin.
    glances: Few<Glance>,
    /// After what time a reply is expected, if known.
    expected: Option<Duration>,
    spin: Spin,
}

impl Shared {
    pub(super) fn wait(
        &self,
        job: JobId,
        want: Want,
        waiting: &dyn Waiting,
        deadline: Option<Instant>,
    ) -> bool {
        while !waiting.is_over() {
            match self.update(|state| self.enter(state)) {
                // The wait may be over now.
                Role::Found => {}
                Role::Leader(lookout) => self.lead(lookout, job, want, waiting, deadline),
                Role::Follower => self.follow(job, want, waiting, deadline),
            }
            // Whatever it found: others' replies may keep coming for ever.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return waiting.is_over();
            }
        }
        true
    }

    /// Processes what has arrived; if nothing has, takes a role.
    fn enter(&self, state: &mut State) -> Role {
        if state.collect() {
            return Role::Found;
        }
        if state.has_leader {
            return Role::Follower;
        }
        state.has_leader = true;
        state.attend();
        // If all CPUs are busy, spinning takes the CPU away from the worker that is waited for.
        let (glances, expected) = state.glances(self.cpus.saturating_sub(1));
        Role::Leader(Lookout {
            glances,
            expected,
            spin: state.spin,
        })
    }

    /// Spins while replies may come soon, then sleeps; processes what has arrived, and resigns.
    fn lead(
        &self,
        mut lookout: Lookout,
        job: JobId,
        want: Want,
        waiting: &dyn Waiting,
        deadline: Option<Instant>,
    ) {
        if !lookout.spin() {
            self.sleep_as_leader(job, want, waiting, deadline);
        }
        self.resign(lookout.spin);
    }

    /// Sleeps until something has arrived, or until the deadline.
    fn sleep_as_leader(
        &self,
        job: JobId,
        want: Want,
        waiting: &dyn Waiting,
        deadline: Option<Instant>,
    ) {
        let unbalanced = self.update(|state| {
            state.scheduler.want(job, want);
            state.listen();
            self.launcher.bell().listen_as_leader();
            if state.collect_what_would_ring() {
                return None;
            }
            Some(state.scheduler.balance(false))
        });
        if let Some(unbalanced) = unbalanced
            && !waiting.is_over()
        {
            let now = Instant::now();
            let look = now
                + match unbalanced {
                    true => BALANCE,
                    false if self.is_delivered_elsewhere() => DELIVERY,
                    false => TICK,
                };
            let until = deadline.map_or(look, |deadline| deadline.min(look));
            let timeout = until.saturating_duration_since(now);
            self.launcher.bell().sleep_as_leader(Some(timeout));
            if unbalanced && Instant::now() >= look {
                self.update(|state| state.scheduler.balance(true));
            }
        }
        self.update(|state| state.scheduler.forget_want(job));
    }

    /// Processes what has arrived, and stops leading: a follower takes over, or the collector is woken when needed.
    fn resign(&self, spin: Spin) {
        let next = self.update(|state| {
            state.attend();
            state.collect();
            state.has_leader = false;
            state.spin = spin;
            state.followers.pop()
        });
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Sleeps until the wait is over, or until another leader is needed.
    fn follow(&self, job: JobId, want: Want, waiting: &dyn Waiting, deadline: Option<Instant>) {
        Parker::with_current(|parker| {
            waiting.tell(parker, true);
            let follows = self.update(|state| {
                // The leader may have resigned meanwhile.
                if state.has_leader {
                    state.scheduler.want(job, want);
                    state.followers.push(Arc::clone(parker));
                }
                state.has_leader
            });
            if follows {
                if !waiting.is_over() {
                    parker.park(deadline);
                }
                self.update(|state| {
                    state.scheduler.forget_want(job);
                    state.unfollow(parker);
                });
            }
            waiting.tell(parker, false);
        });
    }

    /// The main loop of the collector.
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
            unbalanced = self.update(|state| !state.has_leader && state.scheduler.balance(false));
            let timeout = unbalanced.then_some(BALANCE);
            self.launcher.bell().sleep_as_collector(wakes, timeout);
        }
    }
}

impl Lookout {
    /// Spins while replies may come soon. Returns false if none came.
    fn spin(&mut self) -> bool {
        let glances = &self.glances;
        if glances.is_empty() {
            return false;
        }
        let come = || glances.iter().any(Glance::has_news);
        let apart = || glances.iter().all(Glance::is_elsewhere);
        if glances.iter().any(Glance::is_in_pieces) {
            spin_for_piece(come, apart)
        } else {
            self.spin.until(self.expected, come, apart)
        }
    }
}
