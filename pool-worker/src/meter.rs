//! How long inputs take, with few readings of the clock, each of which may cost more than a short input.
//!
//! The clock is read when a portion is taken up, unless the last reading is hardly older, and after each input if they are long, or
//! after sixteen if they are short. Two want to know: the parent's scheduler gets the *pace*, a mean over some inputs that follow each
//! other; the statistics get all, in buckets.
//!
//! Of short inputs only the mean of some is known. If it is far above what is usual, it was one of them that took long, and that is
//! how they are counted.
//!
//! A worker that gets one short input after the other, and spins between them, would read the clock twice for each, while its parent
//! waits for it. There it is read once, after the reply: a time that ends there, and begins at the last such reading, is at least
//! known not to be long.

use std::mem;

/// The clock is read once for so many short inputs.
const INPUTS_PER_READING: u32 = 16;

/// An input that takes so long, in nanoseconds, is measured for itself.
const LONG: u64 = 2_000;

/// An input that comes soon after the last reading of the clock, and ends within this time of it, in nanoseconds, is not thought to have taken
/// longer than usual.
const SHORT: u64 = 8_000;

/// Of so many busy times of a task, only one is measured for the pace once that is known, if it comes soon after the last.
const BUSY_PER_MEASUREMENT: u32 = 8;

/// The clock, and who wants to know.
pub(crate) trait Gauge {
    /// What time it is, in nanoseconds.
    fn now(&self) -> u64;
    /// How long it was held up by its parent since this was last asked, in nanoseconds.
    fn stalled(&self) -> u64;
    /// The clock was read. What runs now has begun then, or a little later.
    fn was_read(&self, now: u64);
    /// An input of this task takes so long lately.
    fn pace(&self, task: u32, each_ns: u64);
    /// So many inputs ran, for so long each, and in all.
    fn ran(&self, task: u32, each_ns: u64, times: u64, sum_ns: u64);
    /// So many inputs have waited so long, in nanoseconds, if that is known.
    fn waited(&self, task: u32, waited: Option<u64>, times: u64);
}

/// Measures inputs.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    task: u32,
    /// How many times this worker has begun to be busy with the task.
    times: u32,
    /// There was nothing to do since the last reading.
    paused: bool,
    /// The last reading of the clock: what was before is accounted for.
    at: u64,
    /// How many inputs were run since.
    count: u32,
    /// Of how many of them it was told how long they had waited.
    told: u32,
    /// How long those of this portion had waited when it was taken up, if that is known.
    waited: Option<u64>,
    /// The first of these began a little later.
    roughly: bool,
    /// How long an input took when that was last measured.
    each: Option<u64>,
    /// Since when `pace_count` inputs were run, one right after the other.
    pace_since: Option<u64>,
    pace_count: u32,
}

impl Meter {
    /// Inputs of this task are taken up, which were accepted at that time; 0, if that is not known. `waited`: long enough to be worth a
    /// reading.
    #[inline]
    pub(crate) fn take_up(&mut self, task: u32, submitted: u64, waited: bool, gauge: &impl Gauge) {
        let mut is_read = false;
        if self.task != task || self.at == 0 {
            is_read = self.stop(gauge);
            self.task = task;
            self.times = 0;
            self.each = None;
        }
        if mem::take(&mut self.paused) {
            self.times = self.times.wrapping_add(1);
            let measured = self.times <= BUSY_PER_MEASUREMENT
                || self.times.is_multiple_of(BUSY_PER_MEASUREMENT);
            self.roughly = !measured && !waited;
            if !self.roughly {
                if !is_read {
                    self.at = gauge.now();
                    gauge.was_read(self.at);
                }
                // The parent looks up what it is told, so it is told no more than it needs.
                self.pace_since = measured.then_some(self.at);
            }
            // What held it up is over.
            gauge.stalled();
        }
        let waited = (submitted > 0).then(|| self.at.saturating_sub(submitted));
        if waited != self.waited {
            self.tell_waited(gauge);
            self.waited = waited;
        }
    }

    /// The clock was read for another purpose, when the next input was about to begin.
    pub(crate) fn read_before(&mut self, now: u64, gauge: &impl Gauge) {
        self.account(now, gauge);
        if mem::take(&mut self.roughly) {
            self.pace_since = Some(now);
            self.pace_count = 0;
        }
    }

    /// An input was run. `again`: the clock will be read before the next one.
    #[inline]
    pub(crate) fn count(&mut self, again: bool, gauge: &impl Gauge) {
        self.count += 1;
        self.pace_count += 1;
        let is_long = self.each.is_none_or(|each| each >= LONG);
        if self.count >= INPUTS_PER_READING || is_long && !again {
            self.account(gauge.now(), gauge);
        }
    }

    /// There is nothing to do for a while. Whether the clock was read for that.
    pub(crate) fn stop(&mut self, gauge: &impl Gauge) -> bool {
        let is_due = self.count > 0;
        if is_due {
            self.account(gauge.now(), gauge);
        }
        self.tell_pace(gauge);
        self.pace_since = None;
        self.pace_count = 0;
        self.paused = true;
        is_due
    }

    /// The clock was read.
    fn account(&mut self, now: u64, gauge: &impl Gauge) {
        let total = now.saturating_sub(self.at).saturating_sub(gauge.stalled());
        self.tell_waited(gauge);
        self.told = 0;
        let count = u64::from(mem::take(&mut self.count));
        self.at = now;
        gauge.was_read(now);
        if count > 0 {
            self.divide(total, count, gauge);
        }
        if self.pace_count >= INPUTS_PER_READING {
            // A busy time that lasts is measured in any case.
            self.tell_pace(gauge);
            self.pace_since = Some(now);
            self.pace_count = 0;
        }
    }

    /// Tells how long so many inputs took, which took so long together.
    fn divide(&mut self, total: u64, count: u64, gauge: &impl Gauge) {
        let mean = total / count;
        let usual = self.each.unwrap_or(mean);
        let usually = usual.saturating_mul(count);
        if mem::take(&mut self.roughly) && total <= (2 * usually).max(SHORT) {
            let each = usual.min(mean);
            gauge.ran(self.task, each, count, each * count);
            return;
        }
        self.each = Some(mean);
        if count > 1 && total > 4 * usually + LONG {
            let others = usual * (count - 1);
            gauge.ran(self.task, usual, count - 1, others);
            gauge.ran(self.task, total - others, 1, total - others);
        } else {
            gauge.ran(self.task, mean, count, total);
        }
    }

    /// Tells how long those had waited that were run since this was told last.
    fn tell_waited(&mut self, gauge: &impl Gauge) {
        let times = self.count - self.told;
        if times > 0 {
            self.told = self.count;
            gauge.waited(self.task, self.waited, times.into());
        }
    }

    fn tell_pace(&mut self, gauge: &impl Gauge) {
        if let Some(since) = self.pace_since
            && self.pace_count > 0
        {
            let each = self.at.saturating_sub(since) / u64::from(self.pace_count);
            gauge.pace(self.task, each);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use proptest::prelude::*;

    use super::*;

    /// A clock that stands still unless something is run or waited for, and what it was asked.
    #[derive(Debug, Default)]
    struct World {
        now: Cell<u64>,
        stalled: Cell<u64>,
        readings: Cell<u32>,
        /// By task: how many inputs, how long in all, the longest.
        ran: RefCell<[(u64, u64, u64); 2]>,
        waited: RefCell<[u64; 2]>,
        paces: RefCell<Vec<(u32, u64)>>,
    }

    impl Gauge for World {
        fn now(&self) -> u64 {
            self.readings.set(self.readings.get() + 1);
            self.now.get()
        }

        fn stalled(&self) -> u64 {
            self.stalled.take()
        }

        fn was_read(&self, now: u64) {
            assert_eq!(now, self.now.get());
        }

        fn pace(&self, task: u32, each_ns: u64) {
            self.paces.borrow_mut().push((task, each_ns));
        }

        fn ran(&self, task: u32, each_ns: u64, times: u64, sum_ns: u64) {
            assert!(each_ns * times <= sum_ns && sum_ns < (each_ns + 1) * times);
            let (count, sum, most) = &mut self.ran.borrow_mut()[task as usize];
            *count += times;
            *sum += sum_ns;
            *most = each_ns.max(*most);
        }

        fn waited(&self, task: u32, _: Option<u64>, times: u64) {
            self.waited.borrow_mut()[task as usize] += times;
        }
    }

    impl World {
        fn pass(&self, ns: u64) {
            self.now.set(self.now.get() + ns);
        }
    }

    /// A portion: what was waited for before it, whether that was noticed, its task, and how long each input runs.
    type Step = (u64, bool, u32, bool, Vec<u64>);

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let time = prop_oneof![
            8 => 10..300_u64,
            1 => 1_000..5_000_u64,
            1 => 10_000..10_000_000_u64,
        ];
        let inputs = prop::collection::vec(time, 1..40);
        let gap = prop_oneof![Just(0_u64), 1..4_000_u64, 4_000..100_000_u64];
        prop::collection::vec((gap, any::<bool>(), 0..2_u32, any::<bool>(), inputs), 1..60)
    }

    proptest! {
        #[test]
        fn each_input_is_counted_and_the_times_add_up(steps in steps()) {
            let world = World { now: Cell::new(1), ..World::default() };
            let mut meter = Meter::default();
            let mut real = [(0, 0, 0); 2];
            let mut rough = 0;
            for (gap, pause, task, limited, inputs) in steps {
                if pause {
                    meter.stop(&world);
                    world.pass(gap);
                    rough += if gap < 4_000 { gap } else { 0 };
                }
                meter.take_up(task, 0, gap >= 4_000, &world);
                for ns in inputs {
                    if limited {
                        meter.read_before(world.now.get(), &world);
                    }
                    world.pass(ns);
                    world.stalled.set(world.stalled.get() + 7);
                    world.pass(7);
                    meter.count(limited, &world);
                    let (count, sum, most) = &mut real[task as usize];
                    *count += 1;
                    *sum += ns;
                    *most = ns.max(*most);
                }
            }
            meter.stop(&world);
            let ran = world.ran.into_inner();
            for task in 0..2 {
                prop_assert_eq!(ran[task].0, real[task].0);
                prop_assert_eq!(world.waited.borrow()[task], real[task].0);
                // What is only known roughly is not known to be long.
                let off = rough + 2 * SHORT * 60;
                prop_assert!(ran[task].1.abs_diff(real[task].1) <= off, "{:?} {:?}", ran, real);
                // The longest is found, unless there were several in sixteen that were thought to be short.
                prop_assert!(ran[task].2 <= 16 * real[task].2 + rough);
                if real[task].2 > 400_000 {
                    prop_assert!(ran[task].2 * 10 >= real[task].2 * 9);
                }
            }
        }
    }

    #[test]
    fn short_inputs_cost_a_reading_for_sixteen_and_one_that_is_long_is_found() {
        let world = World {
            now: Cell::new(1),
            ..World::default()
        };
        let mut meter = Meter::default();
        meter.take_up(0, 1, true, &world);
        for input in 0..4000 {
            world.pass(if input == 2000 { 50_000 } else { 50 });
            meter.count(false, &world);
        }
        meter.stop(&world);
        assert!(world.readings.get() < 4000 / 16 + 10);
        let (count, sum, most) = world.ran.borrow()[0];
        assert_eq!((count, sum), (4000, 3999 * 50 + 50_000));
        assert_eq!(most, 50_000);
        assert!(world.paces.borrow().contains(&(0, 50)));
    }

    #[test]
    fn one_short_input_after_the_other_costs_a_reading_each() {
        let world = World {
            now: Cell::new(1),
            ..World::default()
        };
        let mut meter = Meter::default();
        for _ in 0..1000 {
            meter.take_up(0, 0, false, &world);
            world.pass(100);
            meter.count(false, &world);
            meter.stop(&world);
            world.pass(150);
        }
        assert!(world.readings.get() < 1000 + 1000 / 8 + 10);
        let (count, sum, _) = world.ran.borrow()[0];
        assert_eq!(count, 1000);
        assert!(sum < 1000 * 150, "the time between them does not count");
        assert!(world.paces.borrow().iter().all(|pace| *pace == (0, 100)));
    }
}
