//! Measures what logging in tasks costs: `cargo bench -p benches --bench log --features tracing`. Run it without the feature,
//! too, to compare `apply` and `map` when no log records are wanted.

use std::time::{Duration, Instant};

use pool_core::{Error, Pool, pool_task};

/// How many times each is measured; the median is printed.
const RUNS: usize = 15;

#[pool_task]
fn nothing(x: u64) -> u64 {
    x
}

fn median(mut measure: impl FnMut() -> Result<Duration, Error>) -> Result<Duration, Error> {
    let runs = (0..RUNS).map(|_| measure());
    let mut times: Vec<Duration> = runs.collect::<Result<_, _>>()?;
    times.sort_unstable();
    Ok(times[RUNS / 2])
}

fn print(what: &str, time: Duration, count: u32) {
    println!("{what:60} {:>8} ns", (time / count).as_nanos());
}

fn calls(pool: &Pool, when: &str) -> Result<(), Error> {
    let apply = median(|| {
        let began = Instant::now();
        for x in 0..2000 {
            pool.apply(nothing, (x,))?;
        }
        Ok(began.elapsed())
    })?;
    print(&format!("apply, {when}"), apply, 2000);
    let map = median(|| {
        let began = Instant::now();
        pool.map(nothing, 0..200_000)?;
        Ok(began.elapsed())
    })?;
    print(&format!("map, one input, {when}"), map, 200_000);
    Ok(())
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;
    calls(&pool, "no subscriber")?;
    drop(pool);
    #[cfg(feature = "tracing")]
    events::measure()?;
    Ok(())
}

#[cfg(feature = "tracing")]
mod events {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use rustix::time::{ClockId, clock_gettime};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// How many events each worker logs at a time: fewer than may wait for the subscriber.
    const EVENTS: usize = 20_000;

    /// Counts events, and does nothing else.
    struct Count(Arc<AtomicUsize>);

    impl Subscriber for Count {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
        }
        fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
            Some(tracing::level_filters::LevelFilter::INFO)
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    fn cpu() -> Duration {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// How long that took, and how much CPU time, in nanoseconds.
    #[pool_task]
    fn say(count: usize) -> (u64, u64) {
        let (began, before) = (Instant::now(), cpu());
        for number in 0..count {
            tracing::info!(number, text = "text", "something happens");
        }
        (
            began.elapsed().as_nanos() as u64,
            (cpu() - before).as_nanos() as u64,
        )
    }

    #[pool_task]
    fn say_what_nobody_wants(count: usize) -> u64 {
        let began = Instant::now();
        for number in 0..count {
            tracing::debug!(number, text = "text", "something happens");
        }
        began.elapsed().as_nanos() as u64
    }

    pub(super) fn measure() -> Result<(), Error> {
        let counted = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::set_global_default(Count(Arc::clone(&counted)))
            .expect("there is none");
        let pool = Pool::with_processes(2)?;
        let both = [EVENTS; 2];
        let all = 2 * EVENTS;
        let (mut in_tasks, mut worker, mut parent) = (Vec::new(), Vec::new(), Vec::new());
        let wall = median(|| {
            let (before, used) = (counted.load(Ordering::Relaxed), cpu());
            let began = Instant::now();
            let times = pool.task(say).chunksize(1).map(both)?;
            while counted.load(Ordering::Relaxed) - before < all {
                thread::yield_now();
            }
            let wall = began.elapsed();
            parent.push(cpu() - used);
            in_tasks.push(Duration::from_nanos(times.iter().map(|time| time.0).sum()));
            worker.push(Duration::from_nanos(times.iter().map(|time| time.1).sum()));
            Ok(wall)
        })?;
        let middle = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[RUNS / 2]
        };
        print(
            "an event, until it is counted, two workers at once",
            wall,
            all as u32,
        );
        print("an event, in its task", middle(in_tasks), all as u32);
        print(
            "an event, CPU time of its worker",
            middle(worker),
            all as u32,
        );
        print(
            "an event, CPU time of the parent",
            middle(parent),
            all as u32,
        );
        let unwanted = median(|| {
            let times = pool.task(say_what_nobody_wants).chunksize(1).map(both)?;
            Ok(Duration::from_nanos(times.iter().sum()))
        })?;
        print(
            "an event below the level, in its task",
            unwanted,
            all as u32,
        );
        calls(&pool, "with a subscriber")
    }
}
