//! The pool on many machines under constant change: nodes are killed, and the server is killed and restarted. Each
//! input must get exactly one outcome, and run no more often than it may. Prints how much memory each part uses.
//!
//! `cargo run --release -p tests --bin far_chaos -- --seconds 300`

#[path = "../machines/support.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod support;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use pool_core::{Error, Pool, Shared, pool_task};

use support::{Node, Server, builder};

#[derive(Debug, Parser)]
struct Options {
    /// How long to run, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How often a node is killed and another one started, in seconds
    #[arg(long, default_value_t = 2.0)]
    kill_every: f64,
    /// How often the server is killed and restarted, in seconds
    #[arg(long, default_value_t = 30.0)]
    restart_every: f64,
    /// How many nodes there are, with one worker each
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many threads use the pool
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Print what the nodes have logged, at the end
    #[arg(long)]
    verbose: bool,
}

const RUN: &str = "chaos";

/// Notes that it has begun, and works.
#[pool_task]
fn work(file: &Path, x: u64, micros: u64) -> u64 {
    let file = OpenOptions::new().append(true).create(true).open(file);
    let written = file.and_then(|mut file| file.write_all(&x.to_le_bytes()));
    written.expect("the file can be written");
    let start = Instant::now();
    while start.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
    x.wrapping_mul(3)
}

/// Needs data that is too long for a message.
#[pool_task]
fn weigh(bound: &[u64], shared: Shared<[u64]>, own: Vec<u8>, x: u64) -> u64 {
    bound[x as usize % bound.len()] + shared[x as usize % shared.len()] + own.len() as u64
}

#[derive(Default)]
struct Tally {
    inputs: AtomicU64,
    lost: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn add(&self, expected: u64, outcome: Result<u64, Error>, may_be_lost: bool) {
        self.inputs.fetch_add(1, Ordering::Relaxed);
        let wrong = match outcome {
            Ok(result) if result == expected => return,
            Err(Error::WorkerLost(_)) if may_be_lost => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(result) => format!("{result} instead of {expected}"),
            Err(error) => error.to_string(),
        };
        self.wrong.lock().expect("nobody panics").push(wrong);
    }
}

/// Uses the pool until it is told to stop.
fn load(pool: &Pool, file: &Path, thread: u64, tally: &Tally, is_over: &AtomicBool) {
    let mut rng = fastrand::Rng::with_seed(thread);
    let shared = Shared::copy_from(&(0..100_000).collect::<Vec<u64>>()[..]);
    let shared = shared.expect("there is memory");
    let bound: Vec<u64> = (0..100_000).collect();
    let mut next = thread << 32;
    while !is_over.load(Ordering::Relaxed) {
        let count = rng.u64(1..2000);
        let first = next;
        next += count;
        match rng.u8(0..4) {
            0 => {
                let call = pool.task(weigh).retries(20);
                let call = call.partial((bound.clone(), shared.clone()));
                let len = rng.usize(0..400_000);
                let inputs = (0..count % 10).map(|x| (vec![1; len], x));
                for (x, outcome) in (0..).zip(call.istarmap(inputs)) {
                    tally.add(2 * x + len as u64, outcome, false);
                }
            }
            1 => {
                // These may begin more than once, so they have their own range of numbers.
                let call = pool.task(work).retries(20);
                let inputs = (first..next).map(|x| (file.with_extension("again"), x, x % 1000));
                for (x, outcome) in (first..).zip(call.istarmap(inputs)) {
                    tally.add(x.wrapping_mul(3), outcome, false);
                }
            }
            2 => {
                let inputs = (first..next).map(|x| (file.to_owned(), x, x % 1000));
                for (x, outcome) in (first..).zip(pool.task(work).istarmap(inputs)) {
                    tally.add(x.wrapping_mul(3), outcome, true);
                }
            }
            _ => {
                let few = first..first + count / 50;
                let results: Vec<_> = few
                    .clone()
                    .map(|x| pool.apply_async(work, (file.to_owned(), x, x % 1000)))
                    .collect();
                for (x, result) in few.zip(results) {
                    tally.add(x.wrapping_mul(3), result.get(), true);
                }
            }
        }
    }
}

/// Returns the memory of a process in MiB.
fn memory(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    (pages.unwrap_or(0_u64) * 4096) >> 20
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let Some(mut server) = Server::start(&["-js"]) else {
        return Err("there is no nats-server".into());
    };
    let mut nodes: Vec<Node> = (0..options.nodes).map(|_| server.node(RUN, 1)).collect();
    let pool = builder(server.nats(RUN).nodes(options.nodes)).build()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("begun");
    File::create(&file)?;
    let (tally, is_over) = (Tally::default(), AtomicBool::new(false));
    let start = Instant::now();
    let (mut kills, mut restarts) = (0, 0);
    thread::scope(|scope| {
        for thread in 0..options.threads {
            let (pool, file, tally, is_over) = (&pool, &file, &tally, &is_over);
            scope.spawn(move || load(pool, file, thread, tally, is_over));
        }
        let every = |seconds: f64| Duration::from_secs_f64(seconds);
        let mut kill_at = every(options.kill_every);
        let mut restart_at = every(options.restart_every);
        let mut say_at = Duration::from_secs(10);
        while start.elapsed() < Duration::from_secs(options.seconds) {
            thread::sleep(Duration::from_millis(20));
            let now = start.elapsed();
            if now >= kill_at {
                kill_at += every(options.kill_every);
                let at = fastrand::usize(..nodes.len());
                let mut node = std::mem::replace(&mut nodes[at], server.node(RUN, 1));
                node.child.kill().expect("it runs");
                kills += 1;
                if options.verbose {
                    println!("{}", node.end().1);
                }
            }
            if now >= restart_at {
                restart_at += every(options.restart_every);
                server.kill();
                thread::sleep(Duration::from_millis(fastrand::u64(0..1000)));
                server.restart();
                restarts += 1;
            }
            if now >= say_at {
                say_at += Duration::from_secs(10);
                let of_nodes: Vec<u64> = nodes.iter().map(|node| memory(node.child.id())).collect();
                println!(
                    "{:>4} s: {} inputs, {} lost with their nodes; MiB: parent {}, server {}, nodes {of_nodes:?}",
                    now.as_secs(),
                    tally.inputs.load(Ordering::Relaxed),
                    tally.lost.load(Ordering::Relaxed),
                    memory(process::id()),
                    memory(server.child.id()),
                );
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    drop(pool);
    let wrong = tally.wrong.into_inner()?;
    for what in wrong.iter().take(20) {
        println!("WRONG: {what}");
    }
    let begun = fs::read(&file)?;
    let mut often: HashMap<&[u8], u32> = HashMap::new();
    for x in begun.chunks(8) {
        *often.entry(x).or_default() += 1;
    }
    let twice = often.values().filter(|count| **count > 1).count();
    println!(
        "{} inputs, {} lost, {} wrong, {twice} have begun twice; {kills} nodes killed, {restarts} restarts of the server",
        tally.inputs.into_inner(),
        tally.lost.into_inner(),
        wrong.len(),
    );
    support::eventually("nothing is left on the server", || {
        server.streams().is_empty()
    });
    if twice > 0 || !wrong.is_empty() {
        return Err("a promise was broken".into());
    }
    Ok(())
}
