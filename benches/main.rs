//! Compares the pool with its peers, and with what the machine allows, in one run.
//!
//!     cargo bench -p benches                 # some minutes
//!     cargo bench -p benches -- --quick      # a minute, less precise
//!
//! Prints a table, and writes it and plots to `target/bench`. It is a report: nothing fails for being slow. The modules
//! `latency`, `throughput`, `futures`, `channel`, `efficiency`, `payload`, `data`, `processes`, `sandbox`,
//! `footprint` and `machines` measure; the peers are in `peers` and `raw`.

mod channel;
mod data;
mod efficiency;
mod footprint;
mod futures;
mod latency;
mod machines;
mod payload;
mod peers;
mod plot;
mod processes;
mod raw;
mod report;
mod sandbox;
mod tasks;
mod throughput;
mod tools;

use std::fs;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::footprint::modes;
use crate::peers::Python;
use crate::report::Report;
use crate::tools::Outcome;

/// The plots.
const ROUND_TRIP: &str = "round_trip";
const THROUGHPUT: &str = "throughput";
const EFFICIENCY: &str = "efficiency";
const BANDWIDTH: &str = "bandwidth";
const START_UP: &str = "start_up";
const DATA: &str = "data";

/// What round trips are compared with, in the table and in the plot.
const PING: &str = "futex ping-pong";

/// Measures the pool and its peers
#[derive(Debug, Parser)]
struct Arguments {
    /// Measure less, in a minute
    #[arg(long)]
    quick: bool,
    /// Where to write results and plots
    #[arg(long, value_name = "DIR", default_value_os_t = default_out())]
    out: PathBuf,
    /// Measure only this group; may be given more than once
    #[arg(long, value_name = "GROUP")]
    only: Vec<Group>,
    /// Passed by `cargo bench` to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Group {
    Latency,
    Throughput,
    Async,
    Channel,
    Efficiency,
    Payload,
    Data,
    Start,
    Sandbox,
    Footprint,
    Machines,
}

impl Group {
    /// Its name in the Python script.
    fn name(self) -> &'static str {
        match self {
            Group::Latency => "latency",
            Group::Throughput => "throughput",
            Group::Async => "async",
            Group::Channel => "channel",
            Group::Efficiency => "efficiency",
            Group::Payload => "payload",
            Group::Data => "data",
            Group::Start => "start",
            Group::Sandbox => "sandbox",
            Group::Footprint => "footprint",
            Group::Machines => "machines",
        }
    }

    fn measure(self, bench: &mut Bench) -> Outcome<()> {
        match self {
            Group::Latency => latency::measure(bench),
            Group::Throughput => throughput::measure(bench),
            Group::Async => futures::measure(bench),
            Group::Channel => channel::measure(bench),
            Group::Efficiency => efficiency::measure(bench),
            Group::Payload => payload::measure(bench),
            Group::Data => data::measure(bench),
            Group::Start => processes::measure(bench),
            Group::Sandbox => sandbox::measure(bench),
            Group::Footprint => footprint::measure(bench),
            Group::Machines => machines::measure(bench),
        }
    }
}

/// One run.
#[derive(Debug)]
struct Bench {
    quick: bool,
    /// How many runs each median is taken from.
    runs: usize,
    python: Python,
    report: Report,
}

impl Bench {
    /// Returns this count, or a tenth of it with `--quick`.
    fn scaled(&self, count: u64) -> u64 {
        if self.quick { count / 10 } else { count }
    }
}

fn main() -> Outcome<()> {
    // In a process that procspawn started, this does not return. Workers of the pool never get here.
    procspawn::init();
    match std::env::args().nth(1).as_deref() {
        Some(raw::SAYS_ONE_BYTE) => raw::say_one_byte(),
        Some(raw::ENDS) => Ok(()),
        Some(modes::MEMORY) => answer(&footprint::memory()?),
        Some(modes::MANY) => answer(&footprint::many()?),
        Some(modes::IDLE) => answer(&footprint::idle()?),
        Some(data::modes::LENT) => answer(&data::peak(false)?),
        Some(data::modes::CLONED) => answer(&data::peak(true)?),
        Some(data::modes::SHARED) => answer(&data::shared()?),
        Some(data::modes::PRELOADED) => answer(&data::preloaded()?),
        Some(data::modes::FORKS) => answer(&data::forks()?),
        _ => measure(&Arguments::parse()),
    }
}

/// Prints the figures that a process measured for another one.
fn answer(figures: &Value) -> Outcome<()> {
    println!("{figures}");
    Ok(())
}

fn measure(arguments: &Arguments) -> Outcome<()> {
    let start = Instant::now();
    let mut groups = arguments.only.clone();
    if groups.is_empty() {
        groups = Group::value_variants().to_vec();
    }
    let names: Vec<_> = groups.iter().map(|group| group.name()).collect();
    println!(
        "Python first, then the pool beside the others; medians, 2 workers unless it says otherwise."
    );
    let quick = arguments.quick;
    let mut bench = Bench {
        quick,
        runs: if quick { 3 } else { 7 },
        python: Python::measure(quick, &names),
        report: Report::default(),
    };
    if bench.python.is_missing() {
        println!("python3 is not installed, or its script failed: its figures are missing.");
    }
    for group in groups {
        println!();
        group.measure(&mut bench)?;
    }
    fs::create_dir_all(&arguments.out)?;
    bench.report.write(&arguments.out, &about(&bench))?;
    plot::all(&bench.report, &arguments.out)?;
    println!(
        "\n× of it: the pool's figure to the peer's. × better: how many times better the pool is."
    );
    println!(
        "{}; {:.0} s",
        bench.report.summary(),
        start.elapsed().as_secs_f64()
    );
    println!("written to {}", arguments.out.display());
    Ok(())
}

/// Describes the machine.
fn about(bench: &Bench) -> Value {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let processors = text("/proc/cpuinfo");
    let model = processors
        .lines()
        .find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    json!({
        "quick": bench.quick,
        "unix_time": now.map_or(0, |now| now.as_secs()),
        "processor": model,
        "processors": tools::cpus().len(),
        "linux": text("/proc/sys/kernel/osrelease").trim(),
        "python": bench.python.version(),
    })
}

/// Returns `bench` in the target directory; this program is in `release/deps`.
fn default_out() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe.ancestors().nth(3).filter(|path| path.is_dir());
    let target = target.map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join("bench")
}
