//! The pool on many machines, which are all this one: a NATS server, and two nodes with one worker each, which are this
//! program. For comparison, where they are installed: Ray's Pool and dask.distributed with two workers.

use std::env;
use std::fs;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::Pool;
use serde_json::Value;
use tempfile::TempDir;

use crate::Bench;
use crate::report::{AtLeast, AtMost, Row};
use crate::tasks::{length, square, work};
use crate::tools::{Outcome, median, time};

pub(crate) fn measure(bench: &mut Bench) -> Outcome<()> {
    let Some(server) = Server::start()? else {
        println!("many machines: there is no nats-server");
        return Ok(());
    };
    let _nodes = [server.node()?, server.node()?];
    let backend = pool_nats::connect(&server.url)?.run("bench").nodes(2);
    let pool = Pool::builder().backend(backend).build()?;
    pool.map(square, 0..100_000)?;

    let mut trips = Vec::new();
    for x in 0..bench.scaled(5_000) {
        trips.push(time(|| pool.apply(square, (x,)).map(|x| _ = black_box(x)))?);
    }
    trips.sort_by(f64::total_cmp);
    let apply = trips[trips.len() / 2];
    let worst = trips[trips.len() * 99 / 100];

    let many = bench.scaled(2_000_000);
    let chunks = median(bench.runs, || time(|| pool.map(square, 0..many).map(drop)))?;
    let singly = bench.scaled(500_000);
    let call = pool.task(square).chunksize(1);
    let singles = median(bench.runs, || time(|| call.map(0..singly).map(drop)))?;
    let busy = |milliseconds: usize| {
        let tasks = vec![milliseconds as u64 * 1_000_000; 2000 / milliseconds];
        let seconds = median(bench.runs, || {
            time(|| pool.map(work, tasks.iter().copied()).map(drop))
        })?;
        Outcome::Ok(seconds / tasks.len() as f64)
    };
    let (work_1, work_10) = (busy(1)?, busy(10)?);
    let data = vec![1_u8; 64 << 20];
    let call = pool.task(length).by_ref();
    let argument = median(bench.runs, || time(|| call.apply((&data,)).map(drop)))?;
    drop(pool);

    let peers = Peers::measure(bench.quick);
    let rows = [
        (
            Row::new("many machines, apply, p50", apply * 1e6, "µs").wanted(AtMost(400.0)),
            "apply",
            Unit::Microseconds,
            Some(AtLeast(4.0)),
        ),
        (
            Row::new(
                "many machines, map, empty tasks, default chunks",
                many as f64 / chunks / 1e3,
                "k/s",
            )
            .wanted(AtLeast(1000.0)),
            "chunks",
            Unit::Rate,
            Some(AtLeast(10.0)),
        ),
        (
            Row::new(
                "many machines, map, empty tasks, chunksize(1)",
                singly as f64 / singles / 1e3,
                "k/s",
            )
            .wanted(AtLeast(20.0)),
            "singles",
            Unit::Rate,
            Some(AtLeast(10.0)),
        ),
        (
            Row::new(
                "many machines, efficiency, 1 ms tasks, default chunks",
                percent(1.0, work_1),
                "%",
            )
            .wanted(AtLeast(85.0)),
            "work_1",
            Unit::Efficiency(1.0),
            None,
        ),
        (
            Row::new(
                "many machines, efficiency, 10 ms tasks, default chunks",
                percent(10.0, work_10),
                "%",
            )
            .wanted(AtLeast(95.0)),
            "work_10",
            Unit::Efficiency(10.0),
            None,
        ),
        (
            Row::new(
                "many machines, an argument of 64 MiB",
                64.0 / argument,
                "MiB/s",
            )
            .wanted(AtLeast(100.0)),
            "argument",
            Unit::Mebibytes,
            None,
        ),
    ];
    let row = Row::new("many machines, apply, p99", worst * 1e6, "µs");
    bench.report.row(row);
    for (row, key, unit, wanted) in rows {
        let figure = |peer| peers.get(peer, key).map(|seconds| unit.of(seconds));
        let row = row.rival("Ray's Pool", figure("ray"), wanted);
        bench
            .report
            .row(row.rival("dask.distributed", figure("dask"), None));
    }
    Ok(())
}

/// Returns the useful time as a percentage of the time of two CPUs.
fn percent(milliseconds: f64, each: f64) -> f64 {
    milliseconds * 1e-3 / (2.0 * each) * 100.0
}

/// How to convert a peer's seconds.
#[derive(Clone, Copy)]
enum Unit {
    Microseconds,
    Rate,
    Efficiency(f64),
    Mebibytes,
}

impl Unit {
    fn of(self, seconds: f64) -> f64 {
        match self {
            Unit::Microseconds => seconds * 1e6,
            Unit::Rate => 1e-3 / seconds,
            Unit::Efficiency(milliseconds) => percent(milliseconds, seconds),
            Unit::Mebibytes => 64.0 / seconds,
        }
    }
}

/// The script's figures. Empty if neither peer is installed for the Python of `POOL_BENCH_PYTHON`, or `python3`.
struct Peers(Value);

impl Peers {
    fn measure(quick: bool) -> Peers {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/cluster.py");
        let python = env::var_os("POOL_BENCH_PYTHON").unwrap_or_else(|| "python3".into());
        let output = Command::new(python)
            .args([script, if quick { "1" } else { "0" }])
            .stderr(Stdio::null())
            .output();
        let output = output.ok().filter(|output| output.status.success());
        let told = output.and_then(|output| serde_json::from_slice(&output.stdout).ok());
        Peers(told.unwrap_or_default())
    }

    fn get(&self, peer: &str, key: &str) -> Option<f64> {
        self.0.get(peer)?.get(key)?.as_f64()
    }
}

/// A NATS server on its own port.
struct Server {
    _process: Process,
    url: String,
    _directory: TempDir,
}

impl Server {
    fn start() -> Outcome<Option<Server>> {
        let Some(program) = find() else {
            return Ok(None);
        };
        let directory = tempfile::tempdir()?;
        let process = Command::new(program)
            .args(["-js", "-a", "127.0.0.1", "-p", "-1", "-sd"])
            .arg(directory.path())
            .arg("--ports_file_dir")
            .arg(directory.path())
            .stderr(Stdio::null())
            .spawn()?;
        let process = Process(process);
        let ports = format!("nats-server_{}.ports", process.0.id());
        let ports = directory.path().join(ports);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let told = fs::read_to_string(&ports).unwrap_or_default();
            if let Some(url) = told.split('"').find(|text| text.starts_with("nats://")) {
                return Ok(Some(Server {
                    url: url.to_owned(),
                    _process: process,
                    _directory: directory,
                }));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("nats-server did not start".into())
    }

    fn node(&self) -> Outcome<Process> {
        let node = Command::new(env::current_exe()?)
            .env("POOL_NODE", format!("{}/bench", self.url))
            .env("POOL_NODE_PROCESSES", "1")
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Process(node))
    }
}

fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os("NATS_SERVER_BIN") {
        return Some(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join("nats-server"))
        .find(|file| file.is_file())
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
