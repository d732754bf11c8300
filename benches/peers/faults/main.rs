//! Causes the same faults in this pool and in others, and shows the consequences in one table.
//!
//!     cargo run --release -p benches --bin faults
//!
//! `fault` lists what can go wrong in a task; `subject` (for Python, `subject.py`) is the program that runs a pool with
//! a fault in it; `keeper` is a process around that program that observes it; `cell` puts what it saw into words.

mod cell;
mod fault;
mod keeper;
mod report;
mod subject;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand, ValueEnum};
use comfy_table::Table;
use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};
use serde_json::json;

use crate::fault::Fault;
use crate::keeper::Seen;

/// Any error here, other than in a pool, ends the run and is printed.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Causes the same faults in this pool and in others
#[derive(Debug, Parser)]
struct Arguments {
    /// Only this fault; may be given more than once
    #[arg(long, value_name = "FAULT")]
    only: Vec<Fault>,
    /// Only this pool; may be given more than once
    #[arg(long, value_name = "POOL")]
    pool: Vec<Contender>,
    /// How many programs run at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Also print everything that was seen
    #[arg(long)]
    details: bool,
    /// Where to write the table, the details, and the Python packages
    #[arg(long, value_name = "DIR", default_value_os_t = default_out())]
    out: PathBuf,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What this program is if it was started by itself
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Keeper {
        pool: Contender,
        fault: Fault,
        python: PathBuf,
    },
    #[command(hide = true)]
    Subject { pool: Contender, fault: Fault },
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    Pool,
    Multiprocessing,
    ConcurrentFutures,
    Loky,
    Pebble,
    Procspawn,
}

impl Contender {
    fn title(self) -> &'static str {
        match self {
            Contender::Pool => "**pool**",
            Contender::Multiprocessing => "multiprocessing.Pool",
            Contender::ConcurrentFutures => "concurrent.futures",
            Contender::Loky => "loky",
            Contender::Pebble => "Pebble",
            Contender::Procspawn => "procspawn",
        }
    }

    /// Whether an input that takes too long can be stopped.
    fn has_time_limit(self) -> bool {
        matches!(
            self,
            Contender::Pool | Contender::Pebble | Contender::Procspawn
        )
    }
}

/// One run.
#[derive(Debug)]
struct Run {
    pool: Contender,
    fault: Fault,
    seen: Seen,
    cell: String,
}

fn main() -> Outcome<()> {
    // In a process that procspawn started, this does not return. Workers of the pool never get here.
    procspawn::init();
    let arguments = Arguments::parse();
    match &arguments.role {
        None => compare(&arguments),
        Some(Role::Keeper {
            pool,
            fault,
            python,
        }) => answer(&keeper::keep(*pool, *fault, python)?),
        Some(Role::Subject {
            pool: Contender::Procspawn,
            fault,
        }) => Ok(subject::procspawn(*fault)?),
        Some(Role::Subject { fault, .. }) => Ok(subject::pool(*fault)?),
    }
}

/// Prints what a keeper has seen.
fn answer(seen: &Seen) -> Outcome<()> {
    println!("{}", serde_json::to_string(seen)?);
    Ok(())
}

fn compare(arguments: &Arguments) -> Outcome<()> {
    let began = Instant::now();
    let pools = all_unless(&arguments.pool);
    let faults = all_unless(&arguments.only);
    let python = install(&arguments.out)?;
    let pairs: Vec<(Fault, Contender)> = faults
        .iter()
        .flat_map(|fault| pools.iter().map(|pool| (*fault, *pool)))
        .collect();
    let threads = rayon::ThreadPoolBuilder::new().num_threads(arguments.jobs);
    let runs: Vec<Run> = threads.build()?.install(|| {
        let run = |(fault, pool): &(Fault, Contender)| {
            let began = Instant::now();
            let run = run(*pool, *fault, &python)?;
            let (title, took) = (fault.title(), began.elapsed());
            eprintln!("{title}, {}: {} ({took:.1?})", pool.title(), run.cell);
            Ok(run)
        };
        let runs = pairs.par_iter().with_max_len(1).map(run);
        runs.collect::<Outcome<_>>()
    })?;
    let table = table(&faults, &pools, &runs);
    let details: Vec<_> = runs.iter().map(details).collect();
    let details = serde_json::to_string_pretty(&details)?;
    if arguments.details {
        println!("{details}");
    }
    println!("{table}");
    fs::write(arguments.out.join("faults.md"), table + "\n")?;
    fs::write(arguments.out.join("faults.json"), details + "\n")?;
    let took = Duration::from_secs(began.elapsed().as_secs());
    eprintln!("{took:?}; written to {}", arguments.out.display());
    Ok(())
}

fn all_unless<T: ValueEnum + Clone>(chosen: &[T]) -> Vec<T> {
    let all = T::value_variants();
    if chosen.is_empty() { all } else { chosen }.to_vec()
}

/// Returns a Python with the packages of the peers, from a virtual environment, which is created if necessary.
fn install(out: &Path) -> Outcome<PathBuf> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let environment = out.join("venv");
    let python = environment.join("bin/python");
    succeed(Command::new("sh").arg(peers.join("install")))?;
    if !python.exists() {
        succeed(
            Command::new("python3")
                .args(["-m", "venv"])
                .arg(&environment),
        )?;
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet"]);
    pip.args(["--disable-pip-version-check", "--requirement"]);
    succeed(pip.arg(peers.join("faults/requirements.txt")))?;
    Ok(python)
}

fn succeed(command: &mut Command) -> Outcome<()> {
    let status = command.stdout(Stdio::null()).status()?;
    if status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {status}").into())
}

/// Starts a keeper, and puts what it has seen into words.
fn run(pool: Contender, fault: Fault, python: &Path) -> Outcome<Run> {
    let output = Command::new("/proc/self/exe")
        .args(["keeper", &name(pool), &name(fault)])
        .arg(python)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("{pool:?}, {fault:?}: its keeper: {}", output.status).into());
    }
    let seen = serde_json::from_slice(&output.stdout)?;
    let cell = cell::words(pool, fault, &seen);
    Ok(Run {
        pool,
        fault,
        seen,
        cell,
    })
}

/// Returns the name that `clap` uses.
fn name(value: impl ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Returns the table as Markdown that is readable as it is.
fn table(faults: &[Fault], pools: &[Contender], runs: &[Run]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    let titles = pools.iter().map(|pool| pool.title());
    table.set_header(["the task"].into_iter().chain(titles));
    for fault in faults {
        let cells = runs.iter().filter(|run| run.fault == *fault);
        let cells = cells.map(|run| run.cell.as_str());
        table.add_row([fault.title()].into_iter().chain(cells));
    }
    table.trim_fmt()
}

fn details(run: &Run) -> serde_json::Value {
    json!({
        "pool": name(run.pool),
        "fault": name(run.fault),
        "cell": run.cell,
        "seen": run.seen,
    })
}

/// Returns `faults` in the target directory; this program is in `release`.
fn default_out() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let target = exe.ancestors().nth(2).filter(|path| path.is_dir());
    let target = target.map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join("faults")
}
