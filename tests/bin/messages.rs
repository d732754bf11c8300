//! Tasks send messages while their workers are killed. What was sent before a death arrives, in order, and nothing
//! twice; and nothing is missing from an input whose outcome says that it ran to its end.
//!
//!     cargo run --release -p tests --bin messages -- --messages 1000000 --kill-every-ms 20

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use pool_core::{Error, Pool, Sender, channel, pool_task};
use tests::Possessions;

#[derive(Debug, Parser)]
struct Options {
    /// How many messages the tasks send in all
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// How many messages each input sends
    #[arg(long, default_value_t = 1000)]
    each: u64,
    #[arg(long, default_value_t = 2)]
    processes: usize,
    /// How often a worker is killed, in milliseconds
    #[arg(long, default_value_t = 20)]
    kill_every_ms: u64,
    /// How often an input may be run again
    #[arg(long, default_value_t = 0)]
    retries: u32,
    /// Sandbox the workers
    #[arg(long)]
    sandbox: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// An input, a number that distinguishes its attempts, and the number of the message.
type Message = (u64, u64, u64);

#[pool_task]
fn send(input: u64, count: u64, to: Sender<Message>) -> Result<u64, Error> {
    let attempt = fastrand::u64(..);
    for number in 0..count {
        to.send((input, attempt, number))?;
    }
    Ok(attempt)
}

fn main() -> Result<(), Error> {
    let options = Options::parse();
    let before = Possessions::at_rest();
    run(&options)?;
    // Nothing is left behind.
    before.regained().map_err(Error::start)
}

fn run(options: &Options) -> Result<(), Error> {
    let pool = tests::pool(options.processes)?;
    let (sender, receiver) = channel::<Message>()?;
    let inputs = options.messages / options.each;
    let began = Instant::now();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let killer = scope.spawn(|| kill(&pool, options, &over));
        let arguments = (0..inputs).map(|input| (input, options.each, sender.clone()));
        let call = pool.task(send).retries(options.retries);
        let results = call.starmap_results_async(arguments);
        drop(sender);
        // For each attempt: the input, and how many messages arrived.
        let mut attempts: HashMap<u64, (u64, u64)> = HashMap::new();
        let mut received = 0_u64;
        for (input, attempt, number) in receiver {
            let (of, next) = attempts.entry(attempt).or_insert((input, 0));
            assert_eq!((*of, *next), (input, number), "in order, and once");
            *next += 1;
            received += 1;
        }
        over.store(true, Ordering::Relaxed);
        let killed = killer.join().expect("it does not panic");
        let mut lost = 0;
        for (input, result) in (0..).zip(results.get()?) {
            match result {
                Ok(attempt) => {
                    let found = attempts.get(&attempt?);
                    assert_eq!(
                        found,
                        Some(&(input, options.each)),
                        "some messages are missing"
                    );
                }
                Err(Error::WorkerLost(_)) => lost += 1,
                Err(error) => return Err(error),
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{received} messages of {inputs} inputs in {seconds:.1} s ({:.2} M/s), {killed} workers killed, \
             {lost} inputs lost; all in order, none twice, none missing",
            received as f64 / seconds / 1e6
        );
        Ok(())
    })
}

/// Kills workers until it is over; returns how many.
fn kill(pool: &Pool, options: &Options, over: &AtomicBool) -> u64 {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut killed = 0;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(options.kill_every_ms));
        let pids = pool.worker_pids();
        if let Some(pid) = random.choice(pids) {
            // SAFETY: sends a signal to a worker of this process.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
            killed += 1;
        }
    }
    killed
}
