//! Measures how long inputs take, with few readings of the clock, since one may cost more than a short input.
//!
//! The clock is read when a portion is begun, unless the last reading is recent; and after each input if they are long, or
//! after sixteen if they are short. The measurements have two uses: the parent's scheduler gets the *pace*, a mean over
//! several consecutive inputs; the statistics get all times, in buckets.
//!
//! Of short inputs, only the mean of several is known. If it is far above the usual time, one of them is assumed to have
//! taken long, and they are counted that way.
//!
//! A worker that gets short inputs one at a time, and spins between them, would read the clock twice for each, while its
//! parent waits for the reply. So it reads the clock only once, after the reply: the time since the previous such reading is
//! an upper bound, which shows at least that the input was not long.

use std::mem;

/// The clock is read once for this many short inputs.
const INPUTS_PER_READING: u32 = 16;

/// An input that takes at least this long, in nanoseconds, is measured alone.
const LONG: u64 = 2_000;

/// An input that comes soon after the last reading of the clock, and ends within this time after it, in nanoseconds, is
/// assumed to have taken no longer than usual.
const SHORT: u64 = 8_000;

/// Once the pace of a task is known, only one in this many busy times is measured for it, if they follow each other quickly.
const BUSY_PER_MEASUREMENT: u32 = 8;

/// The clock, and the receiver of the measurements.
pub(crate) trait Gauge {
    /// The current time, in nanoseconds.
    fn now(&self) -> u64;
    /// How long the worker had to wait for its parent since the last call, in nanoseconds.
    fn stalled(&self) -> u64;
    /// Notes a reading of the clock. The input that runs next begins at that time, or a little later.
    fn was_read(&self, now: u64);
    /// Receives how long inputs of this task have taken lately.
    fn pace(&self, task: u32, each_ns: u64);
    /// Receives that `times` inputs ran, for `each_ns` each, and for `sum_ns` in all.
    fn ran(&self, task: u32, each_ns: u64, times: u64, sum_ns: u64);
    /// Receives how long `times` inputs have waited, in nanoseconds, if that is known.
    fn waited(&self, task: u32, waited: Option<u64>, times: u64);
}

/// Measures inputs.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    task: u32,
    /// How many times this worker has begun to be busy with the task.
    times: u32,
    /// Whether the clock is read before each input of the portion, because their time is limited.
    limited: bool,
    /// Whether the worker has been idle since the last reading.
    paused: bool,
    /// The last reading of the clock: all time before it is accounted for.
    at: u64,
    /// How many inputs were run since that reading.
    count: u32,
    /// For how many of them the waiting time was reported.
    told: u32,
    /// How long the inputs of this portion had waited when it was begun, if that is known.
    waited: Option<u64>,
    /// Whether the first of these inputs may have begun some time after that reading.
    roughly: bool,
    /// How long an input took by the last measurement.
    each: Option<u64>,
    /// The time since which `pace_count` inputs were run, one right after the other.
    pace_since: Option<u64>,
    pace_count: u32,
}

impl Meter {
    /// A portion of this task is begun, whose inputs were accepted at the time `submitted`; 0 if that is not known. `waited`:
    /// whether they have waited long enough to be worth a reading of the clock. `limited`: whether their time is limited, so
    /// that `read_before` is called for each.
    #[inline]
    pub(crate) fn take_up(
        &mut self,
        task: u32,
        submitted: u64,
        waited: bool,
        limited: bool,
        gauge: &impl Gauge,
    ) {
        let mut is_read = false;
        if mem::replace(&mut self.limited, limited) && !limited && self.count > 0 {
            // The last input was to be measured by the reading before the next one.
            self.account(gauge.now(), gauge);
            is_read = true;
        }
        if self.task != task || self.at == 0 {
            is_read |= self.stop(gauge);
            self.task = task;
            self.times = 0;
            self.each = None;
        }
        if mem::take(&mut self.paused) {
            self.times = self.times.wrapping_add(1);
            let measured = self.times <= BUSY_PER_MEASUREMENT
                || self.times.is_multiple_of(BUSY_PER_MEASUREMENT);
            let is_short = self.each.is_some_and(|each| each < LONG);
            self.roughly = !measured && !waited && is_short;
            if !self.roughly {
                if !is_read {
                    self.at = gauge.now();
                    gauge.was_read(self.at);
                }
                // Each report costs the parent time, so it gets no more than it needs.
                self.pace_since = measured.then_some(self.at);
            }
            // Discards waiting times from before.
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

    /// An input was run.
    #[inline]
    pub(crate) fn count(&mut self, gauge: &impl Gauge) {
        self.count += 1;
        self.pace_count += 1;
        let is_long = self.each.is_none_or(|each| each >= LONG);
        if self.count >= INPUTS_PER_READING || is_long && !self.limited {
            self.account(gauge.now(), gauge);
        }
    }

    /// There is nothing to do for a while. Returns whether the clock was read for that.
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
            // A long busy time is measured in any case.
            self.tell_pace(gauge);
            self.pace_since = Some(now);
            self.pace_count = 0;
        }
    }

    /// Reports how long each of `count` inputs took, which took `total` together.
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

    /// Reports how long those inputs had waited that were run since the last such report.
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

    /// A clock that stands still unless something is run or waited for, and a record of how it was used.
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
        /// At 0, no time would be known.
        fn new() -> World {
            World {
                now: Cell::new(1),
                ..World::default()
            }
        }

        fn pass(&self, ns: u64) {
            self.now.set(self.now.get() + ns);
        }
    }

    /// A portion: how long the worker waited before it, whether the worker noticed that, its task, whether the inputs have
    /// waited, and how long each input runs.
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
            let world = World::new();
            let mut meter = Meter::default();
            let mut real = [(0, 0, 0); 2];
            let mut rough = 0;
            for (gap, pause, task, limited, inputs) in steps {
                if pause {
                    meter.stop(&world);
                    world.pass(gap);
                    rough += if gap < 4_000 { gap } else { 0 };
                }
                meter.take_up(task, 0, gap >= 4_000, limited, &world);
                for ns in inputs {
                    if limited {
                        meter.read_before(world.now.get(), &world);
                    }
                    world.pass(ns);
                    world.stalled.set(world.stalled.get() + 7);
                    world.pass(7);
                    meter.count(&world);
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
                // Roughly measured times may be off: by the gaps before them, or by up to `SHORT`.
                let off = rough + 2 * SHORT * 60;
                prop_assert!(ran[task].1.abs_diff(real[task].1) <= off, "{:?} {:?}", ran, real);
                // The longest is found, unless there were several among sixteen that were assumed to be short.
                prop_assert!(ran[task].2 <= 16 * real[task].2 + rough);
                if real[task].2 > 400_000 {
                    prop_assert!(ran[task].2 * 10 >= real[task].2 * 9);
                }
            }
        }
    }

    #[test]
    fn short_inputs_cost_a_reading_for_sixteen_and_one_that_is_long_is_found() {
        let world = World::new();
        let mut meter = Meter::default();
        meter.take_up(0, 1, true, false, &world);
        for input in 0..4000 {
            world.pass(if input == 2000 { 50_000 } else { 50 });
            meter.count(&world);
        }
        meter.stop(&world);
        assert!(world.readings.get() < 4000 / 16 + 10);
        let (count, sum, most) = world.ran.borrow()[0];
        assert_eq!((count, sum), (4000, 3999 * 50 + 50_000));
        assert_eq!(most, 50_000);
        assert!(world.paces.borrow().contains(&(0, 50)));
    }

    #[test]
    fn limited_inputs_are_told_from_those_without_a_limit_that_follow() {
        let world = World::new();
        let mut meter = Meter::default();
        for (limited, ns) in [(true, 400_000), (false, 10), (true, 10), (false, 400_000)] {
            meter.take_up(0, 0, false, limited, &world);
            if limited {
                meter.read_before(world.now.get(), &world);
            }
            world.pass(ns);
            meter.count(&world);
        }
        meter.stop(&world);
        assert_eq!(world.ran.borrow()[0], (4, 800_020, 400_000));
    }

    #[test]
    fn long_inputs_are_measured_each_time() {
        let world = World::new();
        let mut meter = Meter::default();
        for input in 0..20 {
            meter.take_up(0, 0, false, false, &world);
            world.pass(5_000 + input);
            meter.count(&world);
            meter.stop(&world);
        }
        assert_eq!(world.ran.borrow()[0], (20, 20 * 5_000 + 190, 5_019));
    }

    #[test]
    fn one_short_input_after_the_other_costs_a_reading_each() {
        let world = World::new();
        let mut meter = Meter::default();
        for _ in 0..1000 {
            meter.take_up(0, 0, false, false, &world);
            world.pass(100);
            meter.count(&world);
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
