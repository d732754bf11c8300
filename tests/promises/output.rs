//! What workers print, and who gets it.

use std::env;
use std::ffi::{CString, c_char};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{self, Command};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use pool_core::{Error, Output, Pool, Sandbox, Stream, WorkerLine, pool_task};

use crate::support::{
    BACKEND, builder, builder_with, checked, host, is_sandboxed, programs, square, watchdog,
    workers_are_elsewhere, works,
};

unsafe extern "C" {
    fn printf(format: *const c_char, ...) -> i32;
}

/// As C code prints: without a line end, and without a flush.
fn print_in_c(text: &str) {
    let text = CString::new(text).expect("no NUL");
    // SAFETY: a format that takes one string, and one string.
    unsafe { printf(c"%s".as_ptr(), text.as_ptr()) };
}

#[pool_task]
fn crashes_in_c(x: u64) -> u64 {
    print_in_c(&format!("before {x}"));
    match x % 5 {
        0 => process::abort(),
        1 => process::exit(3),
        2 => panic!("{x} is too much"),
        3 => {
            // SAFETY: none; this is the crash.
            unsafe { std::ptr::without_provenance_mut::<u64>(8).write_volatile(1) };
            0
        }
        _ => x,
    }
}

#[track_caller]
fn output(error: &Error) -> &str {
    let output = error.output();
    output.unwrap_or_else(|| panic!("not captured: {error:?}"))
}

#[track_caller]
fn has_its_own_output(pool: &Pool, inputs: u64) {
    let outcomes = pool.task(crashes_in_c).map_results(0..inputs);
    for (x, outcome) in (0..inputs).zip(outcomes) {
        match outcome {
            Ok(result) => assert_eq!((result, x % 5), (x, 4)),
            Err(error) => {
                assert_eq!(output(&error), format!("before {x}"), "{error}");
                if x % 5 != 2 {
                    let end = format!("; last line printed: \"before {x}\"");
                    assert!(error.to_string().ends_with(&end), "{error}");
                }
            }
        }
    }
}

#[test]
fn a_thousand_crashes_have_each_its_own_output() {
    let _watchdog = watchdog();
    let pool = checked(builder().processes(2).output(Output::Capture).build());
    has_its_own_output(&pool, 1250);
    works(&pool);
}

#[pool_task]
fn nothing() {}

#[test]
fn every_kind_of_worker_is_captured() {
    let _watchdog = watchdog();
    let captured = || builder().processes(2).output(Output::Capture);
    has_its_own_output(&checked(captured().preload(nothing, ()).build()), 20);
    has_its_own_output(&checked(captured().max_tasks_per_child(3).build()), 40);
    let pool = checked(captured().retries(1).build());
    has_its_own_output(&pool, 20);
    if let Ok(contained) = captured().contain().build() {
        has_its_own_output(&contained, 20);
    }
}

#[pool_task]
fn says_a_lot(what: u64) {
    let mut out = io::stdout();
    match what {
        0 => {
            for line in 0..1_000_000 {
                writeln!(out, "line {line}").expect("somebody reads");
            }
        }
        1 => out.write_all(&[0xFF; 1000]).expect("somebody reads"),
        2 => {
            let started = Command::new("echo").arg("from elsewhere").status();
            assert!(started.expect("there is echo").success());
        }
        3 => {
            let printed = thread::spawn(|| println!("on a thread")).join();
            printed.expect("it does not panic");
            eprintln!("and an error");
        }
        4 => out.write_all(&[0; 3000]).expect("somebody reads"),
        _ => {}
    }
    panic!("that was it");
}

#[test]
fn whatever_is_written_is_kept_as_far_as_there_is_room() {
    let _watchdog = watchdog();
    let pool = checked(
        builder_with(|sandbox| programs(sandbox.threads()))
            .processes(1)
            .output(Output::Capture)
            .build(),
    );
    let outputs = pool.task(says_a_lot).map_results(0..6);
    let outputs: Vec<String> = outputs
        .into_iter()
        .map(|outcome| output(&outcome.unwrap_err()).to_owned())
        .collect();
    assert_eq!(outputs[0].len(), 64 << 10);
    assert!(outputs[0].ends_with("line 999998\nline 999999\n"));
    assert_eq!(outputs[1], "\u{FFFD}".repeat(1000));
    assert_eq!(outputs[2], "from elsewhere\n");
    let mut lines: Vec<&str> = outputs[3].lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["and an error", "on a thread"]);
    assert_eq!(outputs[4], "\0".repeat(3000));
    assert_eq!(outputs[5], "");
}

#[pool_task]
fn hangs_after(text: &str) {
    println!("{text}");
    loop {
        thread::park();
    }
}

#[pool_task]
fn takes_too_much(bytes: usize) {
    println!("much");
    let much = vec![1_u8; bytes];
    std::hint::black_box(&much);
    loop {
        thread::park();
    }
}

#[test]
fn limits_tell_what_was_printed() {
    let _watchdog = watchdog();
    let limited = builder().processes(1).memory_limit(256 << 20);
    let pool = checked(limited.output(Output::Capture).build());
    // It prints long before that, under any load.
    let call = pool.task(hangs_after).time_limit(Duration::from_secs(2));
    let error = call.apply(("here".to_owned(),)).unwrap_err();
    assert!(matches!(error, Error::TimeLimit(_)), "{error:?}");
    assert_eq!(output(&error), "here\n");
    let error = pool.apply(takes_too_much, (1 << 30,)).unwrap_err();
    assert!(matches!(error, Error::MemoryLimit(_)), "{error:?}");
    assert_eq!(output(&error), "much\n");
}

#[pool_task]
fn fails_at_first(text: &str) {
    println!("{text}");
    if text == "exit" {
        process::exit(5);
    }
    panic!("no");
}

#[test]
fn a_failed_start_tells_what_was_printed() {
    let _watchdog = watchdog();
    for text in ["exit", "panic"] {
        let first = builder().processes(1).output(Output::Capture);
        let error = first.initializer(fails_at_first, (text.to_owned(),));
        let error = error.build().unwrap_err().to_string();
        let end = format!("last line printed: {text:?}");
        assert!(error.contains(&end), "{error}");
    }
}

#[test]
fn a_failed_preload_tells_what_was_printed() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    for text in ["exit", "panic"] {
        let first = builder().processes(1).output(Output::Capture);
        let error = first.preload(fails_at_first, (text.to_owned(),));
        let error = error.build().unwrap_err().to_string();
        let end = format!("last line printed: {text:?}");
        assert!(error.contains(&end), "{error}");
    }
}

#[pool_task]
fn prints_a_lot_at_first() {
    for line in 0..100_000 {
        println!("line {line}");
    }
}

#[test]
fn a_preload_task_may_print_a_lot() {
    let _watchdog = watchdog();
    let loud = builder().processes(2).output(Output::Capture);
    let pool = checked(loud.preload(prints_a_lot_at_first, ()).build());
    has_its_own_output(&pool, 10);
}

#[test]
fn without_capture_there_is_no_output() {
    let _watchdog = watchdog();
    let pool = checked(builder().processes(1).output(Output::Null).build());
    let error = pool.apply(crashes_in_c, (0,)).unwrap_err();
    let Error::WorkerLost(lost) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(lost.output(), None);
    works(&pool);
}

#[pool_task]
fn prints_lines(x: u64) {
    print!("{x}: one\n{x}: ");
    io::stdout().flush().expect("somebody reads");
    print_in_c("two\r\n");
    eprintln!("{x}: three");
    print!("{x}: no end");
    if x == 3 {
        io::stdout().flush().expect("somebody reads");
        process::abort();
    }
}

#[test]
fn lines_are_told_with_who_wrote_them() {
    let _watchdog = watchdog();
    let lines: Arc<Mutex<Vec<WorkerLine>>> = Arc::default();
    let told = Arc::clone(&lines);
    let each = move |line: &WorkerLine| told.lock().expect("no panic").push(line.clone());
    let pool = checked(builder().processes(2).output(Output::lines(each)).build());
    let outcomes = pool.task(prints_lines).map_results(0..20);
    assert_eq!(
        outcomes.iter().filter(|outcome| outcome.is_err()).count(),
        1
    );
    let crashed = output(outcomes[3].as_ref().unwrap_err());
    assert!(crashed.contains("3: one\n3: two\r\n3: no end"), "{crashed}");
    assert!(crashed.contains("3: three\n"), "{crashed}");
    pool.apply(square, (1,)).expect("it works");
    pool.close();
    pool.join().expect("it ends");
    let lines = lines.lock().expect("no panic");
    for x in 0..20 {
        let of = |stream| -> Vec<&str> {
            let lines = lines.iter();
            let its = lines.filter(|line| line.index == Some(x) && line.stream == stream);
            its.map(|line| line.text.as_str()).collect()
        };
        let expected = [
            format!("{x}: one"),
            format!("{x}: two"),
            format!("{x}: no end"),
        ];
        assert_eq!(of(Stream::Stdout), expected);
        assert_eq!(of(Stream::Stderr), [format!("{x}: three")]);
    }
    assert_eq!(lines.len(), 80);
    for line in &*lines {
        assert!(line.worker < 2 && line.pid > 0, "{line:?}");
        assert_eq!(line.host, host(), "{line:?}");
        assert!(
            line.task
                .as_deref()
                .is_some_and(|task| task.ends_with("prints_lines"))
        );
    }
}

#[test]
fn a_worker_that_prints_without_end_is_heard_and_can_be_stopped() {
    let _watchdog = watchdog();
    let (output, hears) = channel_of_lines();
    let pool = checked(builder().processes(1).output(output).build());
    let endless = pool.apply_async(prints_for_ever, ());
    for _ in 0..1000 {
        assert_eq!(hears.recv().expect("it prints").text.len(), 79);
    }
    assert!(endless.cancel());
    assert!(matches!(endless.get(), Err(Error::Cancelled)));
}

/// If this variable is set, [`is_run_again`] prints: to whatever text it is set to.
const PRINTS: &str = "POOL_TEST_PRINTS";

#[pool_task]
fn prints_and_starts_what_prints(text: &str) {
    println!("{text} in Rust");
    eprintln!("{text} in error");
    print_in_c(&format!("{text} in C\n"));
    let started = Command::new("echo")
        .arg(format!("{text} elsewhere"))
        .status();
    assert!(started.expect("there is echo").success());
    print_in_c(&format!("{text} without an end"));
}

/// Does nothing unless it is started by [`what_workers_print_is_captured_with_their_test`].
#[test]
fn is_run_again() {
    let Ok(text) = env::var(PRINTS) else {
        return;
    };
    let _watchdog = watchdog();
    let plain = || builder_with(programs).processes(1);
    let pools = [
        plain().build().expect("it starts"),
        plain().preload(nothing, ()).build().expect("it starts"),
    ];
    // Not everywhere can workers be contained.
    let pools: Vec<Pool> = pools.into_iter().chain(plain().contain().build()).collect();
    println!("\n{} pools", pools.len());
    for pool in pools {
        pool.apply(prints_and_starts_what_prints, (text.clone(),))
            .expect("it runs");
        pool.close();
        pool.join().expect("it ends");
    }
    assert_ne!(text, "failing", "so that it is shown");
}

fn run_again(text: &str, option: Option<&str>) -> (bool, String) {
    run_tests(text, &["--exact", "output::is_run_again"], option)
}

fn run_tests(text: &str, which: &[&str], option: Option<&str>) -> (bool, String) {
    let mut again = Command::new(env::current_exe().expect("there is /proc"));
    again.args(which).args(option);
    again.env_remove("RUST_TEST_NOCAPTURE").env_remove(BACKEND);
    let output = again.env(PRINTS, text).output().expect("it starts");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(said).expect("text"),
    )
}

#[test]
fn what_workers_print_is_captured_with_their_test() {
    let _watchdog = watchdog();
    let everything = |text| {
        let what = ["in Rust", "in error", "in C", "elsewhere", "without an end"];
        what.map(|what| format!("{text} {what}"))
    };
    let (is_well, said) = run_again("passing", None);
    assert!(is_well && !said.contains("passing"), "{said}");
    for (text, option) in [
        ("failing", None),
        ("shown", Some("--show-output")),
        ("live", Some("--nocapture")),
    ] {
        let (is_well, said) = run_again(text, option);
        assert_eq!(is_well, text != "failing", "{said}");
        let (before, _) = said.split_once(" pools").expect(&said);
        let pools: usize = before
            .lines()
            .last()
            .map_or("", str::trim)
            .parse()
            .expect(&said);
        for line in everything(text) {
            assert_eq!(said.matches(&line).count(), pools, "{line}: {said}");
        }
        if text != "live" {
            let (before, captured) = said.split_once("is_run_again stdout").expect(&said);
            assert!(!before.contains(text), "{said}");
            assert!(captured.contains(&everything(text)[3]), "{said}");
        }
    }
}

/// A pool for all tests of a program.
static SHARED: LazyLock<Pool> =
    LazyLock::new(|| builder().processes(2).build().expect("it starts"));

/// Do nothing unless they are started by [`tests_that_share_a_pool_capture_what_their_own_calls_print`].
#[test]
fn shares_a_pool_and_passes() {
    if env::var_os(PRINTS).is_some() {
        let _watchdog = watchdog();
        let texts = (0..20).map(|n| format!("passing {n}"));
        SHARED.map(say, texts).expect("it runs");
    }
}

#[test]
fn then_shares_it_and_fails() {
    if env::var_os(PRINTS).is_some() {
        let _watchdog = watchdog();
        let texts = (0..20).map(|n| format!("failing {n}."));
        SHARED.map(say, texts).expect("it runs");
        panic!("so that it is shown");
    }
}

#[pool_task]
fn say(text: &str) {
    println!("{text}");
}

#[test]
fn tests_that_share_a_pool_capture_what_their_own_calls_print() {
    let _watchdog = watchdog();
    let which = ["shares_a_pool_and_passes", "then_shares_it_and_fails"];
    let (is_well, said) = run_tests("shared", &which, Some("--test-threads=1"));
    assert!(!is_well, "{said}");
    assert!(!said.contains("passing 0"), "{said}");
    let (_, captured) = said
        .split_once("then_shares_it_and_fails stdout")
        .expect(&said);
    for n in 0..20 {
        let line = format!("failing {n}.");
        assert_eq!(captured.matches(&line).count(), 1, "{line}: {said}");
    }
}

#[pool_task]
fn leaves_a_thread_that_prints() {
    println!("within");
    thread::spawn(|| {
        loop {
            println!("after");
            thread::sleep(Duration::from_millis(1));
        }
    });
}

fn channel_of_lines() -> (Output, mpsc::Receiver<WorkerLine>) {
    let (heard, hears) = mpsc::channel();
    let each = move |line: &WorkerLine| {
        let _ = heard.send(line.clone());
    };
    (Output::lines(each), hears)
}

#[test]
fn what_is_left_behind_prints_for_no_task() {
    let _watchdog = watchdog();
    let (output, hears) = channel_of_lines();
    let pool = checked(
        builder_with(Sandbox::threads)
            .processes(1)
            .output(output)
            .build(),
    );
    pool.apply(leaves_a_thread_that_prints, ())
        .expect("it runs");
    let mut lines = hears.iter().filter(|line| line.text == "within");
    assert!(lines.next().expect("it was printed").task.is_some());
    let mut lines = hears.iter().filter(|line| line.text == "after");
    assert!(lines.any(|line| line.task.is_none()));
}

/// Starts a process that waits, in a session of its own, until it may print. Then crashes.
#[pool_task]
fn leaves_a_process(directory: &Path) {
    let script = "echo ready > ready; read word < go; echo still here";
    let mut daemon = Command::new("setsid");
    daemon.args(["sh", "-c", script]).current_dir(directory);
    daemon.spawn().expect("there is setsid");
    fs::read(directory.join("ready")).expect("it begins");
    process::abort();
}

#[test]
fn what_outlives_a_worker_may_go_on_printing() {
    // Nothing can leave the process group of a sandboxed worker, so nothing outlives it.
    if workers_are_elsewhere() || is_sandboxed() {
        return;
    }
    let _watchdog = watchdog();
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name| directory.path().join(name);
    let mut make = Command::new("mkfifo");
    let made = make.args([path("ready"), path("go")]).status();
    assert!(made.expect("there is mkfifo").success());
    let (output, hears) = channel_of_lines();
    let pool = checked(builder().processes(1).output(output).build());
    let crashed = pool.apply(leaves_a_process, (directory.path().to_owned(),));
    let error = crashed.unwrap_err();
    let Error::WorkerLost(lost) = &error else {
        panic!("{error:?}");
    };
    fs::write(path("go"), "on\n").expect("it waits");
    let line = hears.iter().next().expect("it goes on");
    assert_eq!((&*line.text, line.pid), ("still here", lost.pid()));
    assert_eq!((line.worker, line.task), (0, None));
    works(&pool);
}

/// Starts a process that writes empty lines for ever to both streams, in a session of its own. Then crashes.
#[pool_task]
fn leaves_a_process_that_prints_for_ever(file: &Path) {
    let script = "yes '' & yes '' >&2 & echo > \"$0\"; wait";
    let mut daemon = Command::new("setsid");
    let daemon = daemon.args(["sh", "-c", script]).arg(file).spawn();
    daemon.expect("there is setsid");
    fs::read(file).expect("it begins");
    process::abort();
}

/// The memory that this process uses, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("there is /proc");
    let pages = statm.split(' ').nth(1).expect("a number");
    pages.parse::<usize>().expect("a number") * 4096
}

#[test]
fn what_a_crash_leaves_behind_can_not_fill_the_memory_with_short_lines() {
    // Nothing can leave the process group of a sandboxed worker, so nothing outlives it.
    if workers_are_elsewhere() || is_sandboxed() {
        return;
    }
    let _watchdog = watchdog();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("begun");
    let made = Command::new("mkfifo").arg(&file).status();
    assert!(made.expect("there is mkfifo").success());
    let (heard, hears) = mpsc::channel();
    // The parent reads far faster than this function returns.
    let slow = move |line: &WorkerLine| {
        if line.text.is_empty() && line.task.is_none() {
            let _ = heard.send(());
            thread::sleep(Duration::from_micros(10));
        }
    };
    let pool = checked(builder().processes(2).output(Output::lines(slow)).build());
    let before = resident();
    let crashed = pool.apply(leaves_a_process_that_prints_for_ever, (file,));
    assert!(matches!(crashed, Err(Error::WorkerLost(_))), "{crashed:?}");
    for _ in 0..100 {
        hears.recv().expect("it prints");
        works(&pool);
    }
    // Without a bound, it would be gigabytes; other tests need some memory, too.
    let grown = resident().saturating_sub(before);
    assert!(grown < 1 << 30, "{} MiB", grown >> 20);
}

#[pool_task]
fn prints_for_ever() {
    loop {
        println!("{}", "x".repeat(79));
    }
}
