//! What is known while tasks run: a long task tells how far it is, and what it has found so far; results come as they are finished,
//! behind a bar that knows how many are left; and a call that somebody waits for goes first.

use indicatif::{ProgressBar, ProgressIterator, ProgressStyle};
use pool_core::{Error, Pool, Sender, channel, pool_task};

/// Counts the primes up to a limit, and tells of each that ends in 777.
#[pool_task]
fn primes(limit: u64, found: Sender<u64>) -> Result<u64, Error> {
    let mut count = 0;
    for number in 2..limit {
        if is_prime(number) {
            count += 1;
            if number % 1000 == 777 {
                found.send(number)?;
            }
        }
    }
    Ok(count)
}

/// How often 3n + 1 and n / 2 go on until they come to 1.
#[pool_task]
fn collatz(start: u64) -> u32 {
    let next = |n: &u64| {
        (*n != 1).then(|| {
            if n.is_multiple_of(2) {
                n / 2
            } else {
                3 * n + 1
            }
        })
    };
    std::iter::successors(Some(start), next).skip(1).count() as u32
}

#[pool_task]
fn is_prime(number: u64) -> bool {
    number > 1 && !(2..=number.isqrt()).any(|divisor| number.is_multiple_of(divisor))
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;

    // What a task sends arrives while it runs. The channel ends with the task, which has the only sender.
    let (sender, found) = channel()?;
    let result = pool.apply_async(primes, (50_000, sender));
    for number in found {
        println!("found {number}");
    }
    println!("{} primes", result.get()??);

    // Results as they are finished, each with the place of its input. (Where there is no terminal, no bar is drawn.)
    let inputs: Vec<u64> = (1..=20_000).collect();
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len}, {eta} left");
    let bar = ProgressBar::new(0).with_style(style.expect("it is well-formed"));
    let results = pool.imap_unordered(collatz, inputs.clone()).indexed();
    bar.set_length(results.len() as u64);
    let mut longest = (0, 0);
    for (index, steps) in results.progress_with(bar) {
        longest = longest.max((steps?, inputs[index]));
    }
    println!("{} takes {} steps", longest.1, longest.0);

    // A call that nobody is in a hurry for, and one that somebody waits for.
    let (sender, _unread) = channel()?;
    let later = pool
        .task(primes)
        .priority(-1)
        .starmap_async((0..20).map(|_| (20_000, sender.clone())));
    println!("1000003 is prime: {}", pool.apply(is_prime, (1_000_003,))?);
    println!("{} counts later", later.get()?.len());
    Ok(())
}
