//! What can be known while tasks run: the progress of a call, as a bar; what a long task has found so far; and an urgent
//! call, which goes first.

use indicatif::{ProgressBar, ProgressStyle};
use pool_core::{Error, Pool, Progress, Sender, channel, pool_task};

/// Counts the primes up to a limit, and sends each that ends in 777.
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

/// How many steps of 3n + 1 and n / 2 it takes to get to 1.
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

/// Shows the progress of a call. (Without a terminal, no bar is drawn.)
fn bar() -> impl Fn(&Progress) + Send + Sync {
    let style = ProgressStyle::with_template("{bar:40} {msg}");
    let bar = ProgressBar::new(0).with_style(style.expect("it is well-formed"));
    move |progress| {
        bar.set_length(progress.total.unwrap_or(progress.done) as u64);
        bar.set_position(progress.done as u64);
        bar.set_message(progress.to_string());
        if progress.is_finished() {
            bar.finish();
        }
    }
}

fn main() -> Result<(), Error> {
    let pool = Pool::with_processes(2)?;

    // The pool counts the finished inputs, and the bar shows that.
    let inputs: Vec<u64> = (1..=20_000).collect();
    let steps = pool.task(collatz).progress(bar()).map(inputs.clone())?;
    let longest = steps.into_iter().zip(inputs).max();
    let (steps, start) = longest.expect("there are some");
    println!("{start} takes {steps} steps");

    // Messages of a task arrive while it runs. The channel ends with the task, which has the only sender.
    let (sender, found) = channel()?;
    let result = pool.apply_async(primes, (50_000, sender));
    for number in found {
        println!("found {number}");
    }
    println!("{} primes", result.get()??);

    // A call that is not urgent, and one that is.
    let (sender, _unread) = channel()?;
    let later = pool
        .task(primes)
        .priority(-1)
        .progress(bar())
        .starmap_async((0..20).map(|_| (20_000, sender.clone())));
    println!("1000003 is prime: {}", pool.apply(is_prime, (1_000_003,))?);
    println!("{} counts later", later.get()?.len());
    Ok(())
}
