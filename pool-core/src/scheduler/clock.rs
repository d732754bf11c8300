//! What happens as time passes: starts that take too long, limits that are exceeded, workers that don't exit.

use std::time::Duration;

use pool_worker::Progress;

use super::slot::{Phase, Reason};
use super::{
    Action, LOOK_AGAIN, LOOKS_TO_KILL, LOOKS_TO_SHUN, Mode, PROVED, STOPPED_MIN, STOPS_MAX,
    Scheduler, Time,
};

impl Scheduler {
    /// Does what is due, and returns when the next thing will be. All replies that workers have written by now have been
    /// processed; `progress` tells how far the worker of a slot is, and `memory` how much memory the worker has.
    pub(crate) fn tick(
        &mut self,
        now: Time,
        progress: impl Fn(usize) -> Progress,
        memory: impl Fn(usize) -> Option<u64>,
    ) -> Option<Time> {
        self.wants_tick = false;
        self.shortest_limit = None;
        self.note_stop(now);
        let mut next: Option<Time> = None;
        let mut soonest = |at: Time| next = Some(next.map_or(at, |next| next.min(at)));
        for slot in 0..self.slots.len() {
            match self.slots[slot].phase {
                Phase::Wanted { not_before } if not_before > now => soonest(not_before),
                Phase::Wanted { .. } => {
                    self.slots[slot].phase = Phase::Launching;
                    self.actions.push_back(Action::Start { slot });
                }
                Phase::Starting { until: Some(until) } if until > now => soonest(until),
                Phase::Starting { until: Some(_) } => self.kill(slot, Reason::Late),
                Phase::Leaving { until: None } => {
                    let until = now.saturating_add(self.rules.leave_max);
                    self.slots[slot].phase = Phase::Leaving { until: Some(until) };
                    soonest(until);
                }
                Phase::Leaving { until: Some(until) } if until > now => soonest(until),
                Phase::Leaving { .. } => self.kill(slot, Reason::Other),
                Phase::Ready => {
                    let proved = self.slots[slot].ready_since.map(|since| since + PROVED);
                    match proved {
                        Some(at) if at > now && self.slots[slot].failures > 0 => soonest(at),
                        _ => self.slots[slot].failures = 0,
                    }
                    self.look_for_life(slot, now, &progress);
                    if let Some(limit) = self.rules.memory_limit
                        && self.slots[slot].is_ready()
                        && self.slots[slot].open > 0
                        && let Some(used) = memory(slot)
                        && used > limit
                    {
                        let begun = progress(slot).begun;
                        let why = Reason::MemoryLimit(used);
                        self.slots[slot].phase = Phase::Overdue { begun, why };
                        self.recall(slot);
                        continue;
                    }
                    if let Some(left) = self.time_left(slot, now, &progress)
                        && let Some(at) = now.checked_add(left)
                    {
                        soonest(at);
                    }
                }
                _ => {}
            }
            match self.slots[slot].kill_at {
                Some(Some(at)) if at <= now => {
                    self.slots[slot].kill_at = None;
                    self.actions.push_back(Action::Kill { slot });
                }
                Some(known) => {
                    let at = known.unwrap_or_else(|| now.saturating_add(self.rules.grace));
                    self.slots[slot].kill_at = Some(Some(at));
                    soonest(at);
                }
                None => {}
            }
        }
        if let Some(at) = self.jobs.wake_up(now) {
            soonest(at);
        }
        if self.jobs.has_pending() {
            self.saturated = false;
            self.dispatch();
        }
        self.give_up_if_hopeless(now);
        if let Some(since) = self.hopeless_since
            && matches!(self.mode, Mode::Open | Mode::Closed)
            && let Some(at) = since.checked_add(self.rules.give_up_after)
        {
            soonest(at);
        }
        if let Some(at) = self.kill_at {
            if at > now {
                soonest(at);
            } else {
                for slot in 0..self.slots.len() {
                    if self.slots[slot].has_process() {
                        self.actions.push_back(Action::Kill { slot });
                    }
                }
            }
        }
        next
    }

    /// Notes if [`tick`](Scheduler::tick) was not called in time: then the whole program was stopped.
    fn note_stop(&mut self, now: Time) {
        let before = self.ticked_at.take();
        if self.wants_patrol() {
            self.ticked_at = Some(now);
            let late = before.map_or(Duration::ZERO, |before| now.saturating_sub(before));
            if late > STOPPED_MIN {
                // Only inputs that began before the stop are affected, and there are few.
                if self.stops.len() == STOPS_MAX {
                    self.stops.pop_front();
                }
                self.stops.push_back((now, late));
            }
        }
    }

    /// How long the whole program was stopped since then.
    fn stopped_since(&self, then: Time) -> Duration {
        let after = self.stops.iter().filter(|(end, _)| *end > then);
        after.map(|(end, late)| (*end - then).min(*late)).sum()
    }

    /// Takes back inputs that a worker does not begin: the worker may be stopped, or starved, or may have lost its request.
    fn look_for_life(&mut self, slot: usize, now: Time, progress: impl Fn(usize) -> Progress) {
        let progress = progress(slot);
        let state = &mut self.slots[slot];
        if state.open == 0 && !state.shunned {
            state.silent = 0;
            state.dawdles_since = None;
            state.begun = progress.begun;
            return;
        }
        let ahead = progress.begun.wrapping_sub(state.answered) as usize;
        // A worker that is under an attacker's control might pretend that it has not begun what it runs, without a time limit.
        let begun_since = progress.begun.wrapping_sub(state.begun) as i32;
        if progress.overwritten || ahead > state.open || begun_since < 0 {
            let why = "it overwrote memory that it shares with the pool".to_owned();
            self.refuse(slot, why);
            return;
        }
        state.begun = progress.begun;
        let works = ahead > 0;
        if works || begun_since > 0 {
            state.dawdles_since = None;
        }
        if !works && let Some(most) = state.may_dawdle() {
            let since = *state.dawdles_since.get_or_insert(now);
            let dawdled = now.saturating_sub(since);
            if dawdled.saturating_sub(self.stopped_since(since)) > most {
                let why = "it did not begin the inputs that it was given".to_owned();
                self.refuse(slot, why);
                return;
            }
        }
        let state = &mut self.slots[slot];
        if works || std::mem::replace(&mut state.pulse, progress.pulse) != progress.pulse {
            state.silent = 0;
            state.looked_at = now;
            if std::mem::take(&mut state.shunned) {
                self.saturated = false;
                self.note_idle(slot);
                self.dispatch();
            }
            return;
        }
        if state.silent > 0 && now.saturating_sub(state.looked_at) < LOOK_AGAIN {
            return;
        }
        state.silent += 1;
        state.looked_at = now;
        if state.silent >= LOOKS_TO_KILL {
            let why = "it did not begin the inputs that it was given".to_owned();
            self.refuse(slot, why);
        } else if state.silent >= LOOKS_TO_SHUN && !state.shunned && !state.keeps_next() {
            state.shunned = true;
            self.recall(slot);
        }
    }

    /// Ends an input that has exceeded its limit; otherwise returns how much time it has left, or the least that the next one
    /// will have.
    fn time_left(
        &mut self,
        slot: usize,
        now: Time,
        progress: impl Fn(usize) -> Progress,
    ) -> Option<Duration> {
        let state = &self.slots[slot];
        let limits = state
            .given
            .iter()
            .filter_map(|given| given.options.time_limit);
        let shortest = limits.min()?;
        let known = self.shortest_limit.get_or_insert(shortest);
        *known = shortest.min(*known);
        let progress = progress(slot);
        let Some(limit) = state
            .running_now(progress.begun)
            .and_then(|given| given.options.time_limit)
        else {
            return Some(shortest);
        };
        // The worker reports when the input began, and that may be wrong; but the input began no later than it was first
        // seen.
        let state = &mut self.slots[slot];
        if state
            .seen_begun
            .is_none_or(|(begun, _)| begun != progress.begun)
        {
            state.seen_begun = Some((progress.begun, now));
        }
        let seen = state.seen_begun.map_or(now, |(_, since)| since);
        let ran = now.saturating_sub(progress.begun_at.min(seen));
        let ran = ran.saturating_sub(self.stopped_since(progress.begun_at.min(seen)));
        let left = limit.saturating_sub(ran);
        if left.is_zero() {
            self.slots[slot].phase = Phase::Overdue {
                begun: progress.begun,
                why: Reason::TimeLimit,
            };
            self.recall(slot);
            return None;
        }
        Some(left.min(shortest))
    }
}
