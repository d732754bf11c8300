//! Makes a pool and holds it, so that a test can do things to it that happen to programs.
//!
//! `hold WORKERS [busy|deaf|daemons|preloaded|sandboxed|…]`. With `busy`, every worker runs a task that never ends; with `deaf`,
//! the task also ignores SIGTERM; with `daemons`, it has also left a daemon behind, and the workers are contained. With
//! `preloaded`, the workers are forked; with `preloaded-busy` and `preloaded-deaf`, they are forked and run such tasks.
//! With `sandboxed`, they may do nothing but start threads.
//! When everything is in place, prints `pids: …`, or `error: …` if there is no pool. Then obeys what it reads from
//! standard input, one word per line: see [`obey`].

use std::env;
use std::fmt::Debug;
use std::io;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use pool_core::{AsyncResult, Error, Pool, Sandbox, pool_task, worker};

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

/// Never returns. The file tells the parent that it has begun.
#[pool_task]
fn spin(begun: String) {
    std::fs::write(begun, "").expect("the directory is there");
    loop {
        std::hint::spin_loop();
    }
}

/// Like [`spin`], but ignores SIGTERM.
#[pool_task]
fn ignore(begun: String) {
    deaf(begun);
}

fn deaf(begun: String) -> ! {
    // SAFETY: sets a disposition that has no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    std::fs::write(begun, "").expect("the directory is there");
    loop {
        thread::park();
    }
}

/// Like [`ignore`], but leaves behind a process that has left the session and the process group.
#[pool_task]
fn leave_a_daemon(begun: String) {
    // SAFETY: a worker of this program has one thread, so the copy is complete.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: touches no memory.
        unsafe { libc::setsid() };
        // SAFETY: as above.
        if unsafe { libc::fork() } == 0 {
            deaf(begun);
        }
        process::exit(0);
    }
    loop {
        thread::park();
    }
}

/// Reports what only the worker itself can see.
#[pool_task]
fn look() -> Vec<String> {
    let ours = env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"POOL_"));
    vec![
        format!("index: {:?}", worker::index()),
        format!("is worker: {}", worker::is_worker()),
        format!("variables: {}", ours.count()),
        format!("inherited: {}", env::var("HOLD_TEST").unwrap_or_default()),
        format!(
            "directory: {}",
            env::current_dir().unwrap_or_default().display()
        ),
    ]
}

/// Prints to standard output and standard error.
#[pool_task]
fn speak() {
    println!("a worker's output");
    {
        eprintln!("a worker's complaint");
    }
}

/// Reads from standard output, which in a terminal gives what the user types.
#[pool_task]
fn steal() -> Result<String, i32> {
    let mut bytes = [0; 100];
    // SAFETY: there is room for what is read.
    let len = unsafe { libc::read(1, bytes.as_mut_ptr().cast(), bytes.len()) };
    let len = usize::try_from(len).map_err(|_| last_error())?;
    Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

/// Makes writes to standard output return at once if they would wait.
#[pool_task]
fn hurry() -> Result<(), i32> {
    // SAFETY: no memory is involved.
    match unsafe { libc::fcntl(1, libc::F_SETFL, libc::O_NONBLOCK) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

fn last_error() -> i32 {
    let error = io::Error::last_os_error();
    error.raw_os_error().unwrap_or_default()
}

/// Whether writes to standard output wait if there is no room.
fn waits() -> bool {
    // SAFETY: no memory is involved.
    let flags = unsafe { libc::fcntl(1, libc::F_GETFL) };
    flags & libc::O_NONBLOCK == 0
}

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let workers = arguments.next().map_or(Ok(1), |n| n.parse());
    let mut what = arguments.next().unwrap_or_default();
    let mut builder = Pool::builder().processes(workers.expect("a number"));
    if what == "daemons" {
        builder = builder.contain();
    }
    if what == "sandboxed" {
        builder = builder.sandbox(Sandbox::new().threads());
        what.clear();
    }
    if let Some(rest) = what.strip_prefix("preloaded") {
        builder = builder.preload(square, (1,));
        what = rest.trim_start_matches('-').to_owned();
    }
    let pool = match builder.build() {
        Ok(pool) => pool,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(3);
        }
    };
    // Kept, though nobody asks for these results.
    let _endless = occupy(&pool, &what);
    print_pids(&pool);

    let mut pool = Some(pool);
    for line in io::stdin().lines() {
        let line = line.expect("standard input can be read");
        if obey(&line, &mut pool) {
            break;
        }
    }
    ExitCode::SUCCESS
}

/// Returns true to return from `main`, with the pool if it still exists.
fn obey(word: &str, pool: &mut Option<Pool>) -> bool {
    match word {
        "drop" => {
            *pool = None;
            println!("drop: done");
        }
        "return" => return true,
        "exit" => process::exit(7),
        "panic" => panic!("as asked"),
        "pids" => print_pids(held(pool)),
        "work" => print("work", held(pool).map(square, 0..20)),
        "look" => match held(pool).apply(look, ()) {
            Ok(lines) => println!("look: {}", lines.join("; ")),
            Err(error) => print_error(&error),
        },
        "steal" => print("steal", held(pool).apply(steal, ())),
        "hurry" => {
            print("hurry", held(pool).apply(hurry, ()));
            println!("waits: {}", waits());
        }
        "speak" => print("speak", held(pool).apply(speak, ())),
        _ => panic!("no such word: {word}"),
    }
    false
}

fn held(pool: &Option<Pool>) -> &Pool {
    pool.as_ref().expect("the pool was not dropped")
}

/// Gives every worker its task, and waits until all have begun.
fn occupy(pool: &Pool, what: &str) -> Vec<AsyncResult<()>> {
    if what.is_empty() {
        return Vec::new();
    }
    let names: Vec<_> = (0..pool.processes())
        .map(|number| env::temp_dir().join(format!("hold-{}-{number}", process::id())))
        .collect();
    let results = names
        .iter()
        .map(|name| {
            let name = name.to_str().expect("UTF-8").to_owned();
            match what {
                "busy" => pool.apply_async(spin, (name,)),
                "deaf" => pool.apply_async(ignore, (name,)),
                "daemons" => pool.apply_async(leave_a_daemon, (name,)),
                _ => panic!("workers can't be {what}"),
            }
        })
        .collect();
    for name in names {
        while std::fs::remove_file(&name).is_err() {
            thread::sleep(Duration::from_millis(1));
        }
    }
    results
}

fn print_pids(pool: &Pool) {
    let pids: Vec<_> = pool.worker_pids().iter().map(u32::to_string).collect();
    println!("pids: {}", pids.join(" "));
}

fn print<T: Debug>(word: &str, result: Result<T, Error>) {
    match result {
        Ok(value) => println!("{word}: {value:?}"),
        Err(error) => print_error(&error),
    }
}

/// The name of the variant is part of the promise, so it is printed too.
fn print_error(error: &Error) {
    let debug = format!("{error:?}");
    let variant = debug.split('(').next().unwrap_or_default();
    println!("error: {variant}: {error}");
}
