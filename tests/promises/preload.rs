//! Preloaded data is loaded once, and every worker has it, whatever happens to the process that forks them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Error, Pool, PoolBuilder, pool_task, worker};
use tempfile::TempDir;

use crate::leaks;
use crate::support::{
    Gate, append, builder, builder_with, checked, forever, hang, is_sandboxed, lines, own_pid,
    signal, stand, wait_at, watchdog, workers_are_elsewhere, works,
};

/// The file in which the preload task notes who has run it.
struct Runs {
    file: PathBuf,
    _directory: TempDir,
}

impl Runs {
    fn new() -> Runs {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Runs {
            file: directory.path().join("runs"),
            _directory: directory,
        }
    }

    fn pids(&self) -> Vec<u32> {
        let pids = lines(&self.file).into_iter();
        pids.map(|pid| u32::try_from(pid).expect("a pid")).collect()
    }

    fn count(&self) -> usize {
        self.pids().len()
    }

    /// Returns the process that forks the workers.
    fn zygote(&self) -> u32 {
        *self.pids().last().expect("it was preloaded")
    }

    /// Returns a builder of two preloaded workers.
    fn builder(&self) -> PoolBuilder {
        builder().processes(2).preload(load, (self.file.clone(), 7))
    }
}

static MODEL: OnceLock<Vec<u64>> = OnceLock::new();
static PREPARED: OnceLock<u32> = OnceLock::new();

#[pool_task]
fn load(runs: &Path, value: u64) {
    append(runs, process::id().into());
    assert_eq!(worker::index(), None);
    MODEL.set(vec![value; 1000]).expect("once");
}

/// Returns the sum of what was loaded, and the worker that computed it.
#[pool_task]
fn total() -> (u64, u32) {
    (model(), process::id())
}

fn model() -> u64 {
    MODEL.get().expect("it was preloaded").iter().sum()
}

#[pool_task]
fn sum_and_die_on(x: u64, last: u64) -> u64 {
    if x == last {
        process::abort();
    }
    x + model()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(120), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn proc(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// Fails unless every worker has what was loaded.
#[track_caller]
fn all_have_it(pool: &Pool) {
    let gate = Gate::new();
    let running: Vec<_> = (0..pool.processes() as u64)
        .map(|id| pool.apply_async(sum_at, (gate.path(), id)))
        .collect();
    let held: Vec<_> = running.iter().map(|_| gate.accept()).collect();
    let pids: BTreeSet<_> = held.iter().map(|held| held.pid).collect();
    assert_eq!(pids.len(), pool.processes());
    held.into_iter().for_each(crate::support::Held::release);
    for one in running {
        assert_eq!(one.get().expect("it runs"), 7000);
    }
}

#[pool_task]
fn sum_at(gate: &Path, id: u64) -> u64 {
    stand(gate, id);
    model()
}

#[test]
fn what_is_preloaded_is_loaded_once_for_all_workers() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().processes(4).build());
    all_have_it(&pool);
    works(&pool);
    assert_eq!(runs.count(), 1);
    assert!(!pool.worker_pids().contains(&runs.zygote()));
}

#[test]
fn replacements_have_it_too() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().build());
    for round in 0..20 {
        let outcome = pool.apply(sum_and_die_on, (round, round));
        assert!(matches!(outcome, Err(Error::WorkerLost(_))), "{outcome:?}");
        assert_eq!(pool.apply(sum_and_die_on, (1, 0)).expect("it runs"), 7001);
    }
    all_have_it(&pool);
    assert_eq!(runs.count(), 1);
}

#[test]
fn the_death_of_a_worker_is_told_as_it_was() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().build());
    match pool.apply(sum_and_die_on, (1, 1)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.signal(), Some("SIGABRT"), "{lost}"),
        other => panic!("{other:?}"),
    }
    match pool.apply(exit_with, (3,)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(3), "{lost}"),
        other => panic!("{other:?}"),
    }
}

#[pool_task]
fn exit_with(code: i32) {
    process::exit(code);
}

#[test]
fn workers_are_replaced_after_each_input() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().max_tasks_per_child(1).build());
    let task = pool.task(own_pid);
    let pids: BTreeSet<_> = (0..50).map(|_| task.apply(()).expect("it runs")).collect();
    assert_eq!(pids.len(), 50);
    assert_eq!(pool.apply(total, ()).expect("it runs").0, 7000);
    assert_eq!(runs.count(), 1);
}

#[test]
fn a_killed_zygote_is_replaced_and_no_worker_notices() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let gate = Gate::new();
    let pool = checked(runs.builder().build());
    let before = pool.worker_pids();
    let running = pool.apply_async(wait_at, (gate.path(), 1));
    let held = gate.accept();
    let zygote = runs.zygote();
    signal(zygote, libc::SIGKILL);
    eventually("another is started", || runs.count() == 2);
    leaks::none_left(&[zygote]);
    held.release();
    assert_eq!(running.get().expect("it lives on"), 1);
    assert_eq!(pool.worker_pids(), before);
    all_have_it(&pool);
    for _ in 0..4 {
        let outcome = pool.apply(sum_and_die_on, (1, 1));
        assert!(matches!(outcome, Err(Error::WorkerLost(_))), "{outcome:?}");
    }
    all_have_it(&pool);
    assert_eq!(runs.count(), 2);
}

/// Whenever it is killed, no child of it is forgotten: dropping the pool checks for children.
#[test]
fn a_zygote_may_be_killed_while_it_forks() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().max_tasks_per_child(1).build());
    for round in 0..20 {
        let count = runs.count();
        for x in 0..5 {
            assert_eq!(
                pool.apply(sum_and_die_on, (x, 9)).expect("it runs"),
                7000 + x
            );
            if x == 2 {
                thread::sleep(Duration::from_micros(100 * round));
                signal(runs.zygote(), libc::SIGKILL);
            }
        }
        eventually("another is started", || runs.count() > count);
    }
}

#[test]
fn a_stopped_zygote_is_replaced_when_a_worker_is_wanted() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().start_timeout(Duration::from_secs(5)).build());
    signal(runs.zygote(), libc::SIGSTOP);
    let pids = pool.worker_pids();
    signal(pids[0], libc::SIGKILL);
    // The other one keeps working.
    works(&pool);
    eventually("there are two again", || {
        let now = pool.worker_pids();
        now.len() == 2 && !now.contains(&pids[0])
    });
    all_have_it(&pool);
    assert_eq!(runs.count(), 2);
}

#[test]
fn a_stopped_zygote_holds_up_neither_drop_nor_join() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    for joins in [false, true] {
        let runs = Runs::new();
        let pool = checked(runs.builder().build());
        let zygote = runs.zygote();
        signal(zygote, libc::SIGSTOP);
        signal(pool.worker_pids()[0], libc::SIGKILL);
        works(&pool);
        if joins {
            pool.close();
            pool.join().expect("it ends");
            leaks::none_left(&[zygote]);
        }
        drop(pool);
        leaks::none_left(&[zygote]);
    }
}

#[test]
fn the_zygote_ends_with_the_pool() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    for end in [Pool::close as fn(&Pool), Pool::terminate] {
        let pool = checked(runs.builder().build());
        let zygote = runs.zygote();
        assert!(Path::new(&format!("/proc/{zygote}")).exists());
        end(&pool);
        pool.join().expect("it ends");
        leaks::none_left(&[zygote]);
    }
}

// ---- preload tasks that fail ----------------------------------------------------------------------

#[track_caller]
fn does_not_start(builder: PoolBuilder) -> String {
    match builder.build() {
        Err(Error::Start(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[pool_task]
fn panic_in(runs: &Path) {
    append(runs, process::id().into());
    panic!("no model here");
}

#[pool_task]
fn exit_in(runs: &Path) {
    append(runs, process::id().into());
    process::exit(4);
}

#[pool_task]
fn abort_in(runs: &Path) {
    append(runs, process::id().into());
    process::abort();
}

#[pool_task]
fn hang_in(runs: &Path) {
    append(runs, process::id().into());
    forever();
}

#[pool_task]
fn leave_threads(runs: &Path) {
    append(runs, process::id().into());
    for name in ["left-1", "left-2"] {
        let builder = thread::Builder::new().name(name.to_owned());
        builder.spawn(|| forever()).expect("a thread");
    }
}

#[pool_task]
fn join_threads(runs: &Path) {
    append(runs, process::id().into());
    let threads: Vec<_> = (0..8).map(|x| thread::spawn(move || vec![x; 10])).collect();
    let values = threads
        .into_iter()
        .map(|thread| thread.join().expect("it ends"));
    MODEL.set(values.flatten().collect()).expect("once");
}

#[test]
fn a_preload_task_that_fails_is_told_and_runs_once() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let base = || builder().processes(3);
    let text = does_not_start(base().preload(panic_in, (runs.file.clone(),)));
    assert!(text.contains("panic_in` panicked at"), "{text}");
    assert!(text.contains("no model here"), "{text}");
    let text = does_not_start(base().preload(exit_in, (runs.file.clone(),)));
    assert!(text.contains("exited with code 4"), "{text}");
    assert!(text.contains("preload task `"), "{text}");
    assert!(text.contains("exit_in`"), "{text}");
    let text = does_not_start(base().preload(abort_in, (runs.file.clone(),)));
    assert!(text.contains("was killed by SIGABRT"), "{text}");
    assert!(text.contains("abort_in`"), "{text}");
    let late = base().start_timeout(Duration::from_secs(10));
    let text = does_not_start(late.preload(hang_in, (runs.file.clone(),)));
    assert!(text.contains("hang_in`"), "{text}");
    assert!(text.contains("did not finish within 10s"), "{text}");
    let text = does_not_start(base().preload(leave_threads, (runs.file.clone(),)));
    assert!(text.contains("leave_threads`"), "{text}");
    assert!(text.contains("left 2 threads behind"), "{text}");
    assert!(text.contains("left-1") && text.contains("left-2"), "{text}");
    assert_eq!(runs.count(), 5);
    leaks::none_left(&runs.pids());
}

#[test]
fn threads_that_were_joined_do_no_harm() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let builder = builder().processes(2);
    let pool = checked(builder.preload(join_threads, (runs.file.clone(),)).build());
    assert_eq!(pool.apply(total, ()).expect("it runs").0, 280);
    works(&pool);
}

/// Fails the second time it runs.
#[pool_task]
fn fail_later(runs: &Path) {
    append(runs, process::id().into());
    assert_eq!(lines(runs).len(), 1, "not again");
}

#[test]
fn a_pool_whose_zygote_does_not_come_again_gives_up() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(
        builder()
            .processes(2)
            .preload(fail_later, (runs.file.clone(),))
            .give_up_after(Duration::from_millis(300))
            .build(),
    );
    signal(runs.zygote(), libc::SIGKILL);
    eventually("another is started", || runs.count() == 2);
    // The existing workers do their work.
    works(&pool);
    for pid in pool.worker_pids() {
        signal(pid, libc::SIGKILL);
    }
    let outcome = pool.apply(hang, ());
    match outcome {
        Err(Error::Broken(broken)) => {
            let text = broken.to_string();
            assert!(text.contains("fail_later` panicked"), "{text}");
            assert!(text.contains("not again"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(runs.count() < 40, "{}", runs.count());
}

#[test]
fn arguments_that_cannot_be_encoded_are_told() {
    let _watchdog = watchdog();
    let outcome = builder().preload(odd, (Odd,)).build();
    match outcome {
        Err(error @ Error::Encode(_)) => {
            assert!(
                error.task().is_some_and(|task| task.ends_with("odd")),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[derive(serde::Deserialize)]
struct Odd;

impl serde::Serialize for Odd {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("never"))
    }
}

#[pool_task]
fn odd(_: Odd) {}

#[pool_task]
fn keep_bytes(bytes: Vec<u8>) {
    let sum = bytes.iter().map(|byte| u64::from(*byte)).sum();
    MODEL.set(vec![sum]).expect("once");
}

#[test]
fn arguments_may_be_large() {
    let _watchdog = watchdog();
    let bytes = vec![1; 16 << 20];
    let pool = checked(builder().processes(2).preload(keep_bytes, (bytes,)).build());
    assert_eq!(pool.apply(total, ()).expect("it runs").0, 16 << 20);
}

// ---- what a worker is -----------------------------------------------------------------------------

#[test]
fn names_show_who_is_who() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().processes(11).build());
    let program = std::env::args().next().expect("it has a name");
    let program = Path::new(&program).file_name().expect("a file").display();
    // The arguments of the parent follow.
    let named = |pid: u32| {
        let line = proc(pid, "cmdline");
        line.split('\0').next().unwrap_or_default().to_owned()
    };
    for (index, pid) in pool.worker_pids().into_iter().enumerate() {
        assert_eq!(named(pid), format!("pool-worker {index} of {program}"));
        assert_eq!(proc(pid, "comm").trim(), format!("pool-worker-{index}"));
    }
    assert_eq!(named(runs.zygote()), format!("pool-zygote of {program}"));
    assert_eq!(proc(runs.zygote(), "comm").trim(), "pool-zygote");
    let seen = pool.apply(own_title, ()).expect("it runs");
    assert!(seen.ends_with(&format!(" of {program}")), "{seen}");
    assert!(seen.starts_with("pool-worker "), "{seen}");
}

#[pool_task]
fn own_title() -> String {
    std::env::args().next().unwrap_or_default()
}

/// What a worker is to itself and to the system.
#[pool_task]
fn identity() -> [i64; 7] {
    let index = worker::index().map_or(-1, |index| i64::try_from(index).expect("small"));
    // SAFETY: asks about this process.
    let session = unsafe { libc::getsid(0) };
    // SAFETY: as above.
    let group = unsafe { libc::getpgid(0) };
    // SAFETY: asks about this thread.
    let thread = unsafe { libc::gettid() };
    // SAFETY: asks about this process.
    let parent = unsafe { libc::getppid() };
    let own = [parent, session, group, thread, affinity_error()];
    let [parent, session, group, thread, error] = own.map(i64::from);
    let pid = process::id().into();
    [pid, parent, session, group, thread, error, index]
}

/// The C library looks up the thread by the number that it has stored. The number of a process that is gone gives an
/// error.
fn affinity_error() -> i32 {
    // SAFETY: an empty set of bits.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: this thread.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: writes to a variable of ours.
    unsafe { libc::pthread_getaffinity_np(this, size_of::<libc::cpu_set_t>(), &raw mut set) }
}

#[test]
fn a_forked_worker_is_a_child_of_the_pools_process() {
    if workers_are_elsewhere() {
        return;
    }
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().processes(1).build());
    let pid = i64::from(pool.worker_pids()[0]);
    let parent = i64::from(process::id());
    // Its zygote is gone, and the zygote's pid may have been reused.
    signal(runs.zygote(), libc::SIGKILL);
    eventually("another is started", || runs.count() == 2);
    let seen = pool.apply(identity, ()).expect("it runs");
    assert_eq!(seen, [pid, parent, pid, pid, pid, 0, 0]);
}

/// Lists what a worker has open besides the three standard streams.
#[pool_task]
fn descriptors() -> Vec<String> {
    let open = fs::read_dir("/proc/self/fd").expect("there is /proc");
    let open = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    open.map(|what| what.display().to_string()).collect()
}

#[pool_task]
fn stdin_is_empty() -> bool {
    let mut text = String::new();
    matches!(std::io::stdin().read_to_string(&mut text), Ok(0))
}

static FILE: Mutex<Option<File>> = Mutex::new(None);

#[pool_task]
fn open_file(path: &Path) {
    *FILE.lock().expect("nobody panics") = Some(File::open(path).expect("it is there"));
}

#[pool_task]
fn read_file() -> String {
    let mut file = FILE.lock().expect("nobody panics");
    let file = file.as_mut().expect("it is open");
    file.seek(SeekFrom::Start(0)).expect("a file");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("a file");
    text
}

#[test]
fn workers_have_what_the_task_has_opened_and_nothing_of_the_zygotes() {
    let _watchdog = watchdog();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"some text").expect("there is room");
    let settings = || {
        builder_with(|sandbox| sandbox.read("/proc"))
            .processes(1)
            .max_tasks_per_child(1)
    };
    let plain = checked(settings().build());
    let expected = plain.apply(descriptors, ()).expect("it runs").len();
    let pool = checked(
        settings()
            .preload(open_file, (file.path().to_owned(),))
            .build(),
    );
    let open = pool.apply(descriptors, ()).expect("it runs");
    assert_eq!(open.len(), expected + 1, "{open:?}");
    assert!(
        open.contains(&file.path().display().to_string()),
        "{open:?}"
    );
    assert_eq!(pool.apply(read_file, ()).expect("it runs"), "some text");
    assert!(pool.apply(stdin_is_empty, ()).expect("it runs"));
}

#[pool_task]
fn close_streams() {
    for fd in 0..3 {
        // SAFETY: nobody prints.
        unsafe { libc::close(fd) };
    }
}

#[test]
fn a_task_that_closes_its_streams_gives_workers_empty_ones() {
    let _watchdog = watchdog();
    let pool = checked(
        builder_with(|sandbox| sandbox.read("/proc"))
            .processes(2)
            .preload(close_streams, ())
            .build(),
    );
    for _ in 0..4 {
        assert!(pool.apply(stdin_is_empty, ()).expect("it runs"));
        let open = pool.apply(descriptors, ()).expect("it runs");
        assert!(
            open.iter().filter(|what| *what == "/dev/null").count() >= 3,
            "{open:?}"
        );
    }
    works(&pool);
}

#[pool_task]
fn close_everything() {
    for fd in 3..100 {
        // SAFETY: this task does not use what is open there; harming others is intended.
        unsafe { libc::close(fd) };
    }
}

#[test]
fn a_task_that_closes_what_is_not_its_own_fails_the_start() {
    let _watchdog = watchdog();
    let text = does_not_start(builder().processes(2).preload(close_everything, ()));
    assert!(text.contains("close_everything`"), "{text}");
}

#[pool_task]
fn print_without_line_end() {
    print_to_stdout("once ");
}

fn print_to_stdout(text: &str) {
    // (Tests capture `print!`, but not in a worker.)
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).expect("it is open");
}

/// Redirects standard output to a file.
#[pool_task]
fn print_to(path: &Path) {
    let file = File::create(path).expect("there is room");
    // SAFETY: both are open.
    unsafe { libc::dup2(file.as_raw_fd(), 1) };
    print_to_stdout("once ");
}

#[test]
fn what_the_task_prints_is_printed_once() {
    let _watchdog = watchdog();
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("printed");
    let pool = checked(
        builder()
            .processes(3)
            .preload(print_to, (path.clone(),))
            .build(),
    );
    for _ in 0..3 {
        pool.apply(print_without_line_end, ()).expect("it runs");
    }
    drop(pool);
    let printed = fs::read_to_string(&path).expect("it is there");
    assert_eq!(printed, "once once once once ");
}

// ---- together with other settings -----------------------------------------------------------------

#[pool_task]
fn prepare(seen: u64) {
    assert_eq!(seen, model());
    PREPARED.set(process::id()).expect("once in each worker");
}

#[pool_task]
fn prepared() -> bool {
    PREPARED.get() == Some(&process::id())
}

#[test]
fn the_initializer_runs_in_each_worker_after_it() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let builder = runs.builder().initializer(prepare, (7000,));
    let pool = checked(builder.max_tasks_per_child(2).build());
    for _ in 0..20 {
        assert!(pool.apply(prepared, ()).expect("it runs"));
    }
    assert_eq!(runs.count(), 1);
    let text = does_not_start(runs.builder().initializer(prepare, (1,)));
    assert!(text.contains("its initializer"), "{text}");
    assert!(text.contains("prepare` panicked"), "{text}");
}

#[test]
fn time_limits_hold() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().build());
    let call = pool.task(hang).time_limit(Duration::from_millis(50));
    for _ in 0..3 {
        let outcome = call.apply(());
        assert!(matches!(outcome, Err(Error::TimeLimit(_))), "{outcome:?}");
    }
    all_have_it(&pool);
    assert_eq!(runs.count(), 1);
}

#[test]
fn panics_are_told_as_ever() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(runs.builder().processes(1).build());
    match pool.apply(prepare, (1,)) {
        Err(Error::Panicked(panicked)) => {
            assert!(panicked.message().contains("7000"), "{panicked}");
            assert!(
                panicked
                    .location()
                    .is_some_and(|at| at.contains("preload.rs"))
            );
        }
        other => panic!("{other:?}"),
    }
    works(&pool);
}

#[pool_task]
fn pool_inside(x: u64) -> u64 {
    let runs = Runs::new();
    let pool = checked(runs.builder().build());
    let inner = pool.apply(sum_and_die_on, (x, x + 1)).expect("it runs");
    assert_eq!(runs.count(), 1);
    inner + model()
}

#[test]
fn a_preloaded_worker_may_have_such_a_pool_itself() {
    let _watchdog = watchdog();
    // A sandboxed task can't start a pool: see `pools_nest`.
    if is_sandboxed() {
        return;
    }
    let pool = checked(builder().processes(2).preload(small, ()).build());
    assert_eq!(pool.apply(pool_inside, (1,)).expect("it runs"), 7002);
}

#[pool_task]
fn small() {
    // Different from the one of the inner pool.
    MODEL.set(vec![1]).expect("once");
}

/// A pool in the preload task, gone when the task returns.
#[pool_task]
fn load_with_a_pool() {
    let pool = Pool::with_processes(2).expect("it starts");
    let values = pool.map(crate::support::square, 0..10).expect("it works");
    drop(pool);
    MODEL.set(values).expect("once");
}

#[test]
fn the_task_may_use_a_pool() {
    let _watchdog = watchdog();
    let pool = checked(builder().processes(2).preload(load_with_a_pool, ()).build());
    assert_eq!(pool.apply(total, ()).expect("it runs").0, 285);
}

#[test]
fn contained_workers_are_forked_too() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = match runs.builder().contain().max_tasks_per_child(3).build() {
        Ok(pool) => checked(Ok(pool)),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("it can't be contained"), "{text}");
            return;
        }
    };
    for x in 0..20 {
        assert_eq!(
            pool.apply(sum_and_die_on, (x, 90)).expect("it runs"),
            7000 + x
        );
    }
    match pool.apply(exit_with, (3,)) {
        Err(Error::WorkerLost(lost)) => assert_eq!(lost.exit_code(), Some(3), "{lost}"),
        other => panic!("{other:?}"),
    }
    works(&pool);
    assert_eq!(runs.count(), 1);
}

/// A task makes a copy of the zygote, and the copy returns from it: it belongs to nobody.
#[pool_task]
fn fork_in(runs: &Path) {
    append(runs, process::id().into());
    // SAFETY: there is one thread, so the copy is complete.
    unsafe { libc::fork() };
}

#[test]
fn a_copy_of_the_zygote_forks_nothing() {
    let _watchdog = watchdog();
    let runs = Runs::new();
    let pool = checked(
        builder()
            .processes(2)
            .preload(fork_in, (runs.file.clone(),))
            .build(),
    );
    works(&pool);
    assert_eq!(runs.count(), 1);
}
