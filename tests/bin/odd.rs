//! Pools in programs with unusual surroundings: `odd WHAT`, see `main`.
//!
//! Prints `fine` at the end, to whatever is left to print to.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use pool_core::{Error, Pool, pool_task};
use tests::Possessions;

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

/// Lists what is open in the worker, as `number -> what`.
#[pool_task]
fn open() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").expect("there is /proc");
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let what = fs::read_link(entry.path()).ok()?;
            Some(format!(
                "{} -> {}",
                entry.file_name().display(),
                what.display()
            ))
        })
        .collect()
}

fn main() -> Result<(), Error> {
    let what = env::args().nth(1).unwrap_or_default();
    match what.as_str() {
        "leaky" => leaky(),
        "closed" => closed(),
        "fragile" => fragile(),
        "childless" => childless(),
        "interrupted" => interrupted(),
        "crowded" => crowded(),
        "hunted" => hunted(),
        _ => panic!("no such surroundings: {what:?}"),
    }
}

fn works(pool: &Pool) -> Result<(), Error> {
    assert_eq!(
        pool.map(square, 0..20)?,
        (0..20).map(|x| x * x).collect::<Vec<_>>()
    );
    Ok(())
}

/// A descriptor without CLOEXEC, such as C libraries make.
fn leaky() -> Result<(), Error> {
    let file = File::open("/proc/version").expect("there is /proc");
    // SAFETY: duplicates a descriptor that is open.
    let copy = unsafe { libc::dup2(file.as_raw_fd(), 77) };
    assert_eq!(copy, 77, "{}", io::Error::last_os_error());
    let pool = Pool::with_processes(1)?;
    for line in pool.apply(open, ())? {
        println!("{line}");
    }
    println!("fine");
    Ok(())
}

/// Standard streams are closed, as daemons do. The second argument names the file for the result, since there is
/// nowhere else to print it.
fn closed() -> Result<(), Error> {
    let result = env::args().nth(2).expect("a path");
    for fd in 0..3 {
        // SAFETY: nobody in this program uses them.
        unsafe { libc::close(fd) };
    }
    // The parent's next descriptors get these numbers. In a worker they must not, because tasks print.
    let pool = Pool::with_processes(2)?;
    let streams = pool.apply(look_at_streams, ())?.join(" ");
    works(&pool)?;
    fs::write(result, streams).expect("the directory is there");
    Ok(())
}

#[pool_task]
fn look_at_streams() -> Vec<String> {
    println!("to nobody");
    let streams = (0..3).map(|fd| fs::read_link(format!("/proc/self/fd/{fd}")));
    streams
        .map(|stream| stream.map_or("closed".to_owned(), |path| path.display().to_string()))
        .collect()
}

/// SIGPIPE as in C, and as command-line tools set it: a write to a closed pipe kills.
fn fragile() -> Result<(), Error> {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let pool = Pool::with_processes(1)?;
    for round in 0..300 {
        while pool.worker_pids().is_empty() {
            thread::yield_now();
        }
        works(&pool)?;
        for pid in pool.worker_pids() {
            kill(pid);
        }
        // Some of this work is sent to the worker after its death and before the pool notices.
        for _ in 0..round * 100 {
            std::hint::spin_loop();
        }
        // The input may be lost. This program must not be.
        let _ = pool.apply(square, (round,));
    }
    drop(pool);
    println!("fine");
    Ok(())
}

/// SIGCHLD is ignored: the system reaps dead children itself, and keeps no exit status.
fn childless() -> Result<(), Error> {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let builder = || Pool::builder().processes(2);
    buried_by_the_system(builder().build()?)?;
    buried_by_the_system(builder().preload(square, (1,)).build()?)?;
    println!("fine");
    Ok(())
}

fn buried_by_the_system(pool: Pool) -> Result<(), Error> {
    works(&pool)?;
    for pid in pool.worker_pids() {
        kill(pid);
    }
    // Replacements are started, and an input that was lost with its worker gets its result on a later attempt.
    let outcomes = pool.task(square).retries(5).map(0..20)?;
    assert_eq!(outcomes.len(), 20);
    works(&pool)
}

/// A timer interrupts system calls all the time, in any thread.
fn interrupted() -> Result<(), Error> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: zeroes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // No SA_RESTART: calls return EINTR.
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler does nothing, which is safe at any time.
    let failed = unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) };
    assert_eq!(failed, 0);
    let every = libc::timeval {
        tv_sec: 0,
        tv_usec: 300,
    };
    let timer = libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: `timer` is valid; the signal has a handler.
    let failed = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) };
    assert_eq!(failed, 0);
    // The system delivers the signal to the main thread unless that blocks it; other threads pass their blocked signals
    // on to the threads that they start.
    let (go_on, blocked) = mpsc::channel::<()>();
    let pools = thread::spawn(move || {
        let _ = blocked.recv();
        (0..50).try_for_each(|round| {
            let builder = Pool::builder().processes(2);
            works(&match round % 2 {
                0 => builder.build()?,
                _ => builder.preload(square, (1,)).build()?,
            })
        })
    });
    block(libc::SIGALRM);
    drop(go_on);
    pools.join().expect("nothing in it panics")?;
    println!("fine");
    Ok(())
}

/// The zygote is killed again and again, at any moment. Each worker that it has made is known, and reaped.
fn hunted() -> Result<(), Error> {
    let held = Possessions::at_rest();
    for round in 0..6 {
        let over = AtomicBool::new(false);
        let builder = Pool::builder().processes(2).max_tasks_per_child(1);
        let pool = builder.preload(square, (1,)).build()?;
        thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..30 {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    zygotes().into_iter().for_each(kill);
                    thread::sleep(Duration::from_micros(900 * turn));
                }
            });
            let result = (0..20).try_for_each(|_| works(&pool));
            over.store(round % 2 == 0, Ordering::Relaxed);
            // Or it is killed while the pool ends.
            drop(pool);
            result
        })?;
    }
    if let Err(left) = held.regained() {
        println!("{left}");
        return Ok(());
    }
    println!("fine");
    Ok(())
}

/// Returns the children that fork workers.
fn zygotes() -> Vec<u32> {
    let threads = fs::read_dir("/proc/self/task").expect("there is /proc");
    let children = threads.filter_map(|thread| {
        let path = thread.ok()?.path().join("children");
        fs::read_to_string(path).ok()
    });
    let children: Vec<String> = children.collect();
    let pids = children.iter().flat_map(|pids| pids.split_whitespace());
    pids.filter_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        name.starts_with("pool-zygote").then(|| pid.parse().ok())?
    })
    .collect()
}

/// Other threads start processes of their own, which may briefly inherit open descriptors, and which outlive the pools.
fn crowded() -> Result<(), Error> {
    let over = AtomicBool::new(false);
    let sleepers = thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            let mut sleepers: Vec<Child> = Vec::new();
            while !over.load(Ordering::Relaxed) && sleepers.len() < 400 {
                let sleeper = Command::new("sleep")
                    .arg("1000")
                    .stdout(Stdio::null())
                    .spawn();
                sleepers.push(sleeper.expect("`sleep` can be run"));
            }
            sleepers
        });
        let result = (0..40).try_for_each(|_| works(&Pool::with_processes(2)?));
        over.store(true, Ordering::Relaxed);
        (crowd.join().expect("nothing in it panics"), result)
    });
    let (mut sleepers, result) = sleepers;
    for sleeper in &mut sleepers {
        let _ = sleeper.kill();
        let _ = sleeper.wait();
    }
    result?;
    println!("fine");
    Ok(())
}

fn kill(pid: u32) {
    // SAFETY: sends a signal to a child of ours; at worst it is gone.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
}

fn block(signal: libc::c_int) {
    // SAFETY: zeroes are a valid set; the calls get valid pointers.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: as above.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
}
