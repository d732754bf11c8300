//! One table: the pool, Python's `multiprocessing.Pool`, and what the machine allows, in one run.
//!
//!     cargo bench -p benches                 # a minute or two
//!     cargo bench -p benches -- --quick      # a few seconds, rougher
//!
//! Figures are medians of several runs. Trust the ratios: they were measured side by side.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

/// How much is measured.
struct Scale {
    quick: bool,
    runs: usize,
    applies: u64,
    singles: u64,
    many: u64,
}

/// One line of the table, in seconds.
struct Row {
    what: &'static str,
    pool: f64,
    python: Option<f64>,
    raw: Option<(&'static str, f64)>,
}

fn main() -> Result<(), Error> {
    if std::env::args().any(|argument| argument == "bare") {
        return bare();
    }
    let quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if quick { 10 } else { 1 };
    let scale = Scale {
        quick,
        runs: if quick { 3 } else { 7 },
        applies: 20_000 / scale,
        singles: 50_000 / scale,
        many: 1_000_000 / scale,
    };
    let python = python(&scale);
    let python = |key: &str| python.as_ref()?.get(key)?.as_f64();
    let mut rows = Vec::new();

    let pool = Pool::with_processes(1)?;
    pool.map(square, 0..1000)?;
    rows.push(Row {
        what: "apply, 1 worker, each",
        pool: median(&scale, || {
            per_task(scale.applies, || {
                for x in 0..scale.applies {
                    pool.apply(square, (x,))?;
                }
                Ok(())
            })
        })?,
        python: python("apply"),
        raw: Some(("futex ping-pong", futex_ping_pong(scale.applies))),
    });
    drop(pool);

    let pool = Pool::with_processes(2)?;
    pool.map(square, 0..1000)?;
    rows.push(Row {
        what: "map, chunksize(1), each",
        pool: median(&scale, || {
            per_task(scale.singles, || {
                pool.task(square)
                    .chunksize(1)
                    .map(0..scale.singles)
                    .map(drop)
            })
        })?,
        python: python("map_single"),
        raw: None,
    });
    rows.push(Row {
        what: "map, default chunks, each",
        pool: median(&scale, || {
            per_task(scale.many, || pool.map(square, 0..scale.many).map(drop))
        })?,
        python: python("map"),
        raw: None,
    });
    rows.push(Row {
        what: "imap (Python: chunksize 1), each",
        pool: median(&scale, || {
            per_task(scale.singles, || {
                pool.imap(square, 0..scale.singles)
                    .try_for_each(|result| result.map(drop))
            })
        })?,
        python: python("imap"),
        raw: None,
    });
    rows.push(Row {
        what: "imap, chunksize(1), each",
        pool: median(&scale, || {
            per_task(scale.singles, || {
                pool.task(square)
                    .chunksize(1)
                    .imap(0..scale.singles)
                    .try_for_each(|result| result.map(drop))
            })
        })?,
        python: python("imap"),
        raw: None,
    });
    drop(pool);

    for (what, processes, key) in [
        ("ready, 2 workers", 2, "ready_2"),
        ("ready, 8 workers", 8, "ready_8"),
    ] {
        rows.push(Row {
            what,
            pool: median(&scale, || {
                let start = Instant::now();
                let pool = Pool::with_processes(processes)?;
                let elapsed = start.elapsed();
                drop(pool);
                Ok(elapsed)
            })?,
            python: python(key),
            raw: Some((
                "bare Command",
                median(&scale, || Ok(bare_processes(processes)))?,
            )),
        });
    }
    print(&rows);
    Ok(())
}

fn median(
    scale: &Scale,
    mut measure: impl FnMut() -> Result<Duration, Error>,
) -> Result<f64, Error> {
    let mut runs = (0..scale.runs)
        .map(|_| measure())
        .collect::<Result<Vec<_>, _>>()?;
    runs.sort();
    Ok(runs[runs.len() / 2].as_secs_f64())
}

fn per_task(count: u64, work: impl FnOnce() -> Result<(), Error>) -> Result<Duration, Error> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().div_f64(count as f64))
}

fn print(rows: &[Row]) {
    println!(
        "{:34} {:>10} {:>10} {:>10} {:>26} {:>9}",
        "", "pool", "Python", "times", "the machine's limit", "times"
    );
    for row in rows {
        let (python, faster) = match row.python {
            Some(python) => (time(python), format!("{:.1}", python / row.pool)),
            None => ("-".into(), "-".into()),
        };
        let (raw, slower) = match row.raw {
            Some((what, raw)) => (
                format!("{what} {}", time(raw)),
                format!("{:.1}", row.pool / raw),
            ),
            None => ("-".into(), "-".into()),
        };
        let Row { what, pool, .. } = row;
        println!(
            "{what:34} {:>10} {python:>10} {faster:>10} {raw:>26} {slower:>9}",
            time(*pool)
        );
    }
    println!("\ntimes: how often ours fits into Python's; how often the limit fits into ours");
}

fn time(seconds: f64) -> String {
    if seconds >= 1e-3 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.2} µs", seconds * 1e6)
    }
}

/// The peer's figures; `None`, and a word, if there is no Python.
fn python(scale: &Scale) -> Option<serde_json::Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/python.py");
    let output = Command::new("python3")
        .args([script, if scale.quick { "1" } else { "0" }])
        .stderr(Stdio::inherit())
        .output();
    let figures = output
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| serde_json::from_slice(&output.stdout).ok());
    if figures.is_none() {
        println!("python3 is missing, or its script failed: its column is empty");
    }
    figures
}

/// What a process is that is nothing but a process: says one byte, waits for the end of its input.
fn bare() -> Result<(), Error> {
    let _ = std::io::stdout().write_all(b"x");
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}

fn bare_processes(count: usize) -> Duration {
    let start = Instant::now();
    let mut children: Vec<_> = (0..count)
        .map(|_| {
            Command::new("/proc/self/exe")
                .arg("bare")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this binary runs")
        })
        .collect();
    for child in &mut children {
        let stdout = child.stdout.as_mut().expect("it is piped");
        stdout.read_exact(&mut [0]).expect("it says one byte");
    }
    let elapsed = start.elapsed();
    for mut child in children {
        drop(child.stdin.take());
        let _ = child.wait();
    }
    elapsed
}

/// Two processes wake each other through one word of shared memory: seconds for each round trip.
fn futex_ping_pong(rounds: u64) -> f64 {
    let word = shared_word();
    // SAFETY: the child touches nothing but the shared word, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork failed");
    let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
    if child == 0 {
        for round in 0..rounds {
            wait_while(word, 2 * round);
            wake(word, 2 * round + 2);
        }
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    let start = Instant::now();
    for round in 0..rounds {
        wake(word, 2 * round + 1);
        wait_while(word, 2 * round + 1);
    }
    let elapsed = start.elapsed();
    // SAFETY: reaps the child that was just made.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    elapsed.as_secs_f64() / f64::from(rounds)
}

fn shared_word() -> &'static AtomicU32 {
    // SAFETY: a fresh shared mapping of one page, never unmapped.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: the page is zeroed, aligned, and lives as long as the process.
    unsafe { &*page.cast::<AtomicU32>() }
}

fn wait_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        // SAFETY: waits on a word that stays mapped; returns at once if it has changed.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT,
                value,
                std::ptr::null::<libc::timespec>(),
            )
        };
    }
}

fn wake(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    // SAFETY: wakes whoever waits on a word that stays mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1) };
}
