//! Everything that a pool does works in a sandbox that permits nothing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hint;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;
use std::sync::Mutex;
use std::time::Duration;

use pool_core::backend::Inline;
use pool_core::{Error, Output, PoolBuilder, Sandbox, Sender, Shared, channel, pool_task};

use crate::support::{
    builder, checked, forever, is_sandboxed, square, watchdog, workers_are_elsewhere, works,
};

fn strict() -> PoolBuilder {
    builder().processes(2).sandbox(Sandbox::new())
}

/// Whether this process can open no file.
fn is_confined() -> bool {
    let opened = File::open("/etc/passwd");
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

#[pool_task]
fn confined_in(_: u64) -> (u32, bool) {
    (process::id(), is_confined())
}

#[pool_task]
fn abort() {
    process::abort();
}

/// Kills the worker again and again, and checks that those in its place are sandboxed, too.
fn every_worker_is_confined(builder: PoolBuilder) {
    let pool = checked(builder.processes(1).build());
    let mut pids = BTreeSet::new();
    for _ in 0..4 {
        let found = pool.map(confined_in, 0..40).expect("it runs");
        assert!(
            found.iter().all(|(_, is_confined)| *is_confined),
            "{found:?}"
        );
        pids.extend(found.iter().map(|(pid, _)| *pid));
        let outcome = pool.apply(abort, ());
        assert!(matches!(outcome, Err(Error::WorkerLost(_))), "{outcome:?}");
    }
    assert!(pids.len() >= 4, "{pids:?}");
    works(&pool);
}

#[test]
fn each_replacement_is_confined() {
    on_this_machine!();
    every_worker_is_confined(strict());
    every_worker_is_confined(strict().max_tasks_per_child(3));
    every_worker_is_confined(strict().preload(crate::support::own_pid, ()));
    every_worker_is_confined(
        strict()
            .preload(crate::support::own_pid, ())
            .max_tasks_per_child(3),
    );
    if builder().processes(1).contain().build().is_ok() {
        // All have the same pid in their namespaces; so only whether they are confined can be seen.
        let pool = checked(strict().contain().max_tasks_per_child(3).build());
        let found = pool.map(confined_in, 0..40).expect("it runs");
        assert!(
            found.iter().all(|(_, is_confined)| *is_confined),
            "{found:?}"
        );
    }
    // Without a sandbox, it could have.
    let pool = checked(builder().processes(1).build());
    assert!(!pool.apply(confined_in, (0,)).expect("it runs").1);
}

// ---- initializers and finalizers ------------------------------------------------------------------

static OPENED: Mutex<Option<File>> = Mutex::new(None);

#[pool_task]
fn open(path: &Path) -> Result<(), String> {
    let file = File::options().read(true).append(true).open(path);
    *OPENED.lock().expect("nobody panicked") = Some(file.map_err(|error| error.to_string())?);
    Ok(())
}

/// What is in the file that the initializer has opened, and whether this process can open others.
#[pool_task]
fn read_opened() -> (String, bool) {
    let mut opened = OPENED.lock().expect("nobody panicked");
    let mut text = String::new();
    let file = opened.as_mut().expect("the initializer has run");
    file.read_to_string(&mut text).expect("it is open");
    (text, is_confined())
}

/// Changes permissions by the descriptor: not even that is permitted.
#[pool_task]
fn change_opened() -> Vec<Option<i32>> {
    let opened = OPENED.lock().expect("nobody panicked");
    let file = opened.as_ref().expect("the initializer has run");
    let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    vec![
        errno(file.set_permissions(mode)),
        errno(file.set_len(1)),
        errno(file.set_modified(std::time::SystemTime::UNIX_EPOCH)),
    ]
}

#[pool_task]
fn say_whether_confined() {
    let mut opened = OPENED.lock().expect("nobody panicked");
    let file = opened.as_mut().expect("the initializer has run");
    writeln!(file, "{}", is_confined()).expect("it is open");
}

#[test]
fn what_initializers_open_stays_open_and_finalizers_are_confined() {
    on_this_machine!();
    let directory = tempfile::tempdir().expect("there is room");
    let path = directory.path().join("file");
    for preloads in [false, true] {
        fs::write(&path, "text\n").expect("there is room");
        let mut builder = strict().processes(1);
        if preloads {
            builder = builder.preload(crate::support::own_pid, ());
        }
        let builder = builder.initializer(open, (path.clone(),));
        let pool = checked(builder.finalizer(say_whether_confined, ()).build());
        let (text, is_confined) = pool.apply(read_opened, ()).expect("it runs");
        assert_eq!((text.as_str(), is_confined), ("text\n", true));
        let refused = pool.apply(change_opened, ()).expect("it runs");
        assert_eq!(refused, [Some(libc::EPERM); 3]);
        pool.close();
        pool.join().expect("nobody hangs");
        drop(pool);
        let text = fs::read_to_string(&path).expect("it is there");
        assert_eq!(text, "text\ntrue\n");
    }
}

#[pool_task]
fn fail(why: &str) -> Result<(), String> {
    Err(why.to_owned())
}

#[test]
fn the_last_of_several_initializers_fails() {
    on_this_machine!();
    let directory = tempfile::tempdir().expect("there is room");
    let path = directory.path().join("file");
    fs::write(&path, "").expect("there is room");
    let first = strict()
        .initializer(open, (path,))
        .initializer(square, (3,));
    let pool = first
        .initializer(fail, ("it is Sunday".to_owned(),))
        .build();
    let text = pool.expect_err("an initializer fails").to_string();
    assert!(text.contains("it is Sunday"), "{text}");
    assert!(!text.contains("the sandbox"), "{text}");
}

#[pool_task]
fn start_a_thread() {
    let (start, started) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("left behind".to_owned())
        .spawn(move || {
            // It has its name by now.
            start.send(()).expect("somebody waits");
            forever();
        })
        .expect("there is room");
    started.recv().expect("it starts");
}

#[test]
fn initializers_that_leave_threads_can_not_be_confined_by_rules_for_paths() {
    on_this_machine!();
    let directory = tempfile::tempdir().expect("there is room");
    let sandbox = Sandbox::new().read(directory.path());
    let leaving = builder().processes(1).initializer(start_a_thread, ());
    match leaving.sandbox(sandbox).build() {
        // From Linux 7.0 on, the rules hold for all threads.
        Ok(pool) => works(&pool),
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("left behind") && text.contains("Linux 7.0"),
                "{text}"
            );
        }
    }
    // Filters hold for all threads.
    let leaving = builder().processes(1).initializer(start_a_thread, ());
    works(&checked(leaving.sandbox(Sandbox::new()).build()));
}

// ---- what workers do for the pool -----------------------------------------------------------------

#[pool_task]
fn fall(depth: u64) -> u64 {
    fell_down(depth)
}

#[inline(never)]
fn fell_down(depth: u64) -> u64 {
    assert!(hint::black_box(depth) < 3, "{depth} is too deep");
    depth
}

#[test]
fn panics_have_backtraces_with_names_and_lines() {
    on_this_machine!();
    for preloads in [false, true] {
        let mut builder = strict().processes(1).env("RUST_BACKTRACE", "1");
        if preloads {
            builder = builder.preload(crate::support::own_pid, ());
        }
        let pool = checked(builder.build());
        for _ in 0..2 {
            let error = pool.apply(fall, (3,)).expect_err("it panics");
            let Error::Panicked(panicked) = &error else {
                panic!("{error:?}");
            };
            assert_eq!(panicked.message(), "3 is too deep");
            let backtrace = panicked.backtrace().expect("it was asked for");
            assert!(backtrace.contains("fell_down"), "{backtrace}");
            assert!(backtrace.contains("inside.rs:"), "{backtrace}");
        }
        works(&pool);
    }
}

#[pool_task]
fn print_and_fall(line: u64) {
    println!("line {line}");
    eprintln!("error {line}");
    panic!("{line}");
}

#[test]
fn output_is_captured() {
    on_this_machine!();
    let pool = checked(strict().output(Output::Capture).build());
    for line in 0..5 {
        let error = pool.apply(print_and_fall, (line,)).expect_err("it panics");
        let output = error.output().expect("it prints");
        assert!(output.contains(&format!("line {line}\n")), "{output}");
        assert!(output.contains(&format!("error {line}\n")), "{output}");
    }
}

#[pool_task]
fn add_up(shared: Shared<[u8]>, to: Sender<u64>, times: u64) -> u64 {
    let sum = shared.iter().map(|byte| u64::from(*byte)).sum();
    for time in 0..times {
        to.send(time).expect("somebody listens");
    }
    sum
}

#[pool_task]
fn double(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend_from_within(..);
    bytes
}

#[test]
fn shared_data_channels_and_long_values_work() {
    on_this_machine!();
    let pool = checked(strict().build());
    for len in [10, 1_000_000] {
        let shared: Shared<[u8]> = Shared::copy_from(&vec![1; len][..]).expect("there is room");
        let (sender, receiver) = channel().expect("there is room");
        let inputs = (0..10).map(|_| (shared.clone(), sender.clone(), 1000));
        let sums = pool.starmap_async(add_up, inputs);
        drop(sender);
        assert_eq!(receiver.count(), 10_000);
        assert_eq!(sums.get().expect("it runs"), [len as u64; 10]);
        let long = pool.apply(double, (vec![7; len],)).expect("it runs");
        assert!(long.len() == 2 * len && long.iter().all(|byte| *byte == 7));
    }
}

/// Makes the memory of a `Shared` writable, and writes into it. Returns what is there then; an error number if it can't.
#[pool_task]
fn overwrite(shared: &Shared<[u8]>) -> Result<u8, i32> {
    let address = shared.as_ptr().addr();
    let page = address & !4095;
    let len = shared.len() + address - page;
    let page = ptr::without_provenance_mut(page);
    // SAFETY: this is what an attacker does.
    if unsafe { libc::mprotect(page, len, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        return Err(io::Error::last_os_error().raw_os_error().unwrap_or(-1));
    }
    let first: *mut u8 = ptr::with_exposed_provenance_mut(address);
    // SAFETY: as above.
    unsafe { first.write_volatile(99) };
    // SAFETY: as above.
    Ok(unsafe { first.read_volatile() })
}

#[pool_task]
fn first_of(shared: &Shared<[u8]>, _: u64) -> (u32, u8) {
    (process::id(), shared[0])
}

#[test]
fn nobody_else_sees_what_is_written_into_shared_data() {
    on_this_machine!();
    for is_confined in [false, true] {
        let builder = builder().processes(2);
        let pool = match is_confined {
            true => checked(builder.sandbox(Sandbox::new()).build()),
            false => checked(builder.build()),
        };
        let shared: Shared<[u8]> = Shared::copy_from(&[1; 100_000][..]).expect("there is room");
        for _ in 0..10 {
            let written = pool.apply(overwrite, (shared.clone(),)).expect("it runs");
            assert!(matches!(written, Ok(99) | Err(libc::EACCES)), "{written:?}");
        }
        assert!(shared.iter().all(|byte| *byte == 1));
        // A fresh worker gets what was shared.
        let outcome = pool.apply(abort, ());
        assert!(matches!(outcome, Err(Error::WorkerLost(_))), "{outcome:?}");
        let outcome = pool.apply(abort, ());
        assert!(matches!(outcome, Err(Error::WorkerLost(_))), "{outcome:?}");
        let found = pool.starmap(first_of, (0..40).map(|input| (shared.clone(), input)));
        let found = found.expect("it runs");
        let has_seen_own: BTreeSet<u32> = found
            .iter()
            .filter(|(_, byte)| *byte != 1)
            .map(|(pid, _)| *pid)
            .collect();
        assert!(has_seen_own.len() <= 1, "{found:?}");
    }
}

#[pool_task]
fn wait_forever() {
    forever();
}

#[pool_task]
fn keep(bytes: usize) -> usize {
    static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
    let filled = hint::black_box(vec![1; bytes]);
    let mut kept = KEPT.lock().expect("nobody panicked");
    kept.push(filled);
    kept.len()
}

#[pool_task]
fn fill_and_wait(bytes: usize) {
    let _filled = hint::black_box(vec![1_u8; bytes]);
    forever();
}

#[pool_task]
fn exit_with(code: i32) {
    process::exit(code);
}

#[test]
fn limits_and_ends_are_as_without() {
    on_this_machine!();
    let pool = checked(
        strict()
            .memory_limit(256 << 20)
            .max_memory_per_child(100 << 20)
            .build(),
    );
    let call = pool
        .task(wait_forever)
        .time_limit(Duration::from_millis(50));
    let outcome = call.apply(());
    assert!(matches!(outcome, Err(Error::TimeLimit(_))), "{outcome:?}");
    let outcome = pool.apply(fill_and_wait, (512 << 20,));
    assert!(matches!(outcome, Err(Error::MemoryLimit(_))), "{outcome:?}");
    // Each is replaced before it keeps a second one; were it not, they would keep ever more.
    let kept = pool.map(keep, [120 << 20; 6]).expect("none is lost");
    assert!(kept.iter().all(|count| *count <= 2), "{kept:?}");
    match pool.apply(exit_with, (3,)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(3), "{lost}"),
        other => panic!("{other:?}"),
    }
    let retried = pool.task(abort).retries(2).apply(());
    match retried {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.attempts(), 3, "{lost}"),
        other => panic!("{other:?}"),
    }
    let waiting = pool.apply_async(wait_forever, ());
    waiting.cancel();
    let outcome = waiting.get();
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    works(&pool);
    let waiting = pool.apply_async(wait_forever, ());
    pool.terminate();
    assert!(waiting.get().is_err());
}

// ---- errors ---------------------------------------------------------------------------------------

#[test]
fn settings_that_make_no_sense_are_refused() {
    on_this_machine!();
    let refused = |sandbox: Sandbox| {
        let built = builder().processes(1).sandbox(sandbox).build();
        built.expect_err("it is refused")
    };
    for (sandbox, why) in [
        (Sandbox::new().memory(0), "`memory`"),
        (Sandbox::new().cpu_time(Duration::ZERO), "`cpu_time`"),
        (Sandbox::new().read(""), "path"),
        (Sandbox::new().write(""), "path"),
    ] {
        let error = refused(sandbox);
        assert!(matches!(error, Error::InvalidSetting(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("sandbox") && text.contains(why), "{text}");
    }
    // Nothing would be confined.
    for builder in [builder().inline(), builder().backend(Inline)] {
        let error = builder.sandbox(Sandbox::new()).build();
        let error = error.expect_err("it is refused");
        assert!(matches!(error, Error::InvalidSetting(_)), "{error:?}");
        assert!(error.to_string().contains("sandbox"), "{error}");
    }
}

#[test]
fn a_path_that_does_not_exist_is_an_error_that_names_it() {
    on_this_machine!();
    let missing = PathBuf::from("/no such directory/at all");
    for sandbox in [
        Sandbox::new().read(&missing),
        Sandbox::new().write(&missing),
        Sandbox::new().write(&missing).best_effort(),
    ] {
        let error = builder().processes(1).sandbox(sandbox).build();
        let error = error.expect_err("there is no such file");
        assert!(matches!(error, Error::Start(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("/no such directory/at all"), "{text}");
        assert!(text.contains("No such file"), "{text}");
    }
}

#[test]
fn a_relative_path_begins_where_the_program_is() {
    on_this_machine!();
    let here = std::env::current_dir().expect("it is known");
    let entry = fs::read_dir(&here)
        .expect("it can be read")
        .find_map(Result::ok);
    let name = entry.expect("there is something").file_name();
    let sandbox = Sandbox::new().read(Path::new(&name));
    assert_eq!(sandbox, Sandbox::new().read(here.join(&name)));
}
