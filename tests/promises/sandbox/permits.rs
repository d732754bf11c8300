//! What a sandbox permits works, and is no more than that.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::hint;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use pool_core::{Error, Event, Recycled, Sandbox, pool_task};
use tests::Told;

use crate::leaks;
use crate::support::{
    Checked, builder, checked, is_sandboxed, programs, square, watchdog, workers_are_elsewhere,
    works,
};

fn sandboxed(sandbox: Sandbox) -> Checked {
    checked(builder().processes(1).sandbox(sandbox).build())
}

fn errno(result: io::Result<()>) -> Result<(), i32> {
    result.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn is_refused<T: std::fmt::Debug>(outcome: &Result<Result<T, i32>, Error>) {
    assert!(
        matches!(outcome, Ok(Err(libc::EACCES | libc::EPERM))),
        "{outcome:?}"
    );
}

// ---- paths ----------------------------------------------------------------------------------------

#[pool_task]
fn read_file(path: &Path) -> Result<String, i32> {
    fs::read_to_string(path).map_err(|error| error.raw_os_error().unwrap_or(-1))
}

#[pool_task]
fn write_file(path: &Path, text: &str) -> Result<(), i32> {
    let opened = OpenOptions::new().write(true).truncate(true).open(path);
    errno(opened.and_then(|mut file| file.write_all(text.as_bytes())))
}

#[pool_task]
fn create_file(path: &Path) -> Result<(), i32> {
    let created = OpenOptions::new().write(true).create_new(true).open(path);
    errno(created.map(drop))
}

#[pool_task]
fn list_directory(path: &Path) -> Result<BTreeSet<String>, i32> {
    let listed = fs::read_dir(path).and_then(|entries| {
        let names = entries.map(|entry| Ok(entry?.file_name().display().to_string()));
        names.collect()
    });
    listed.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

#[pool_task]
fn move_file(from: &Path, to: &Path) -> Result<(), i32> {
    errno(fs::rename(from, to))
}

#[pool_task]
fn remove_file(path: &Path) -> Result<(), i32> {
    errno(fs::remove_file(path))
}

/// A directory with `in/file`, `in/deep/file`, `out/file`, and links between them; each file contains its name.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(tempfile::tempdir().expect("there is room"));
        for directory in ["in/deep", "out"] {
            fs::create_dir_all(tree.at(directory)).expect("there is room");
        }
        for file in ["in/file", "in/deep/file", "out/file", "in.file"] {
            fs::write(tree.at(file), file).expect("there is room");
        }
        symlink("../out/file", tree.at("in/to out")).expect("there is room");
        symlink("../in/file", tree.at("out/to in")).expect("there is room");
        symlink("in", tree.at("link")).expect("there is room");
        tree
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).expect("it is there")
    }
}

#[test]
fn a_directory_can_be_read_and_nothing_beside_it() {
    on_this_machine!();
    let tree = Tree::new();
    // Also if it is named by a link.
    for permitted in ["in", "link"] {
        let pool = sandboxed(Sandbox::new().read(tree.at(permitted)));
        let read = |name: &str| pool.apply(read_file, (tree.at(name),));
        for (name, text) in [
            ("in/file", "in/file"),
            ("in/deep/../file", "in/file"),
            ("in/deep/file", "in/deep/file"),
            ("link/file", "in/file"),
            // It is the file that counts, not the way to it.
            ("out/to in", "in/file"),
        ] {
            assert_eq!(read(name).expect("it runs").as_deref(), Ok(text), "{name}");
        }
        let names = pool
            .apply(list_directory, (tree.at("in"),))
            .expect("it runs");
        let expected = ["deep", "file", "to out"].map(str::to_owned);
        assert_eq!(names, Ok(BTreeSet::from(expected)));
        for name in ["out/file", "in/../out/file", "in/to out", "in.file"] {
            is_refused(&read(name));
        }
        is_refused(&pool.apply(list_directory, (tree.at(""),)));
        is_refused(&pool.apply(write_file, (tree.at("in/file"), "x".to_owned())));
        is_refused(&pool.apply(create_file, (tree.at("in/new"),)));
        is_refused(&pool.apply(remove_file, (tree.at("in/file"),)));
        is_refused(&pool.apply(move_file, (tree.at("in/file"), tree.at("in/new"))));
        assert_eq!(tree.text("in/file"), "in/file");
    }
}

#[test]
fn a_file_can_be_read_and_nothing_beside_it() {
    on_this_machine!();
    let tree = Tree::new();
    let pool = sandboxed(Sandbox::new().read(tree.at("in/file")));
    let text = pool
        .apply(read_file, (tree.at("in/file"),))
        .expect("it runs");
    assert_eq!(text.as_deref(), Ok("in/file"));
    is_refused(&pool.apply(read_file, (tree.at("in/deep/file"),)));
    is_refused(&pool.apply(list_directory, (tree.at("in"),)));
    is_refused(&pool.apply(write_file, (tree.at("in/file"), "x".to_owned())));
    assert_eq!(tree.text("in/file"), "in/file");
}

#[test]
fn what_can_be_written_can_not_be_read() {
    on_this_machine!();
    let tree = Tree::new();
    let sandbox = Sandbox::new()
        .write(tree.at("in"))
        .write(tree.at("out/file"));
    let pool = sandboxed(sandbox);
    let text = || "new".to_owned();
    for name in ["in/file", "out/file", "in/to out"] {
        let written = pool.apply(write_file, (tree.at(name), text()));
        assert_eq!(written.expect("it runs"), Ok(()), "{name}");
        assert_eq!(tree.text(name), "new");
        is_refused(&pool.apply(read_file, (tree.at(name),)));
    }
    is_refused(&pool.apply(list_directory, (tree.at("in"),)));
    assert_eq!(
        pool.apply(create_file, (tree.at("in/new"),))
            .expect("it runs"),
        Ok(())
    );
    // Into another directory, too.
    let moved = pool.apply(move_file, (tree.at("in/new"), tree.at("in/deep/new")));
    assert_eq!(moved.expect("it runs"), Ok(()));
    assert!(tree.at("in/deep/new").exists());
    assert_eq!(
        pool.apply(remove_file, (tree.at("in/deep/new"),))
            .expect("it runs"),
        Ok(())
    );
    assert!(!tree.at("in/deep/new").exists());
    // A file that may be written may not be removed, nor its neighbors be created.
    is_refused(&pool.apply(remove_file, (tree.at("out/file"),)));
    is_refused(&pool.apply(create_file, (tree.at("out/new"),)));
    is_refused(&pool.apply(write_file, (tree.at("in.file"), text())));
    let moved = pool.apply(move_file, (tree.at("in/file"), tree.at("out/new")));
    assert!(
        matches!(moved, Ok(Err(libc::EACCES | libc::EPERM | libc::EXDEV))),
        "{moved:?}"
    );
    assert!(tree.at("in/file").exists() && !tree.at("out/new").exists());
}

#[test]
fn no_file_becomes_readable_by_being_moved() {
    on_this_machine!();
    let tree = Tree::new();
    let sandbox = Sandbox::new().read(tree.at("in")).write(tree.at("in"));
    let pool = sandboxed(sandbox.write(tree.at("out")));
    let moved = pool.apply(move_file, (tree.at("out/file"), tree.at("in/new")));
    assert!(
        matches!(moved, Ok(Err(libc::EACCES | libc::EPERM | libc::EXDEV))),
        "{moved:?}"
    );
    assert!(tree.at("out/file").exists() && !tree.at("in/new").exists());
    // The other way, it loses something.
    let moved = pool.apply(move_file, (tree.at("in/file"), tree.at("out/new")));
    assert_eq!(moved.expect("it runs"), Ok(()));
    is_refused(&pool.apply(read_file, (tree.at("out/new"),)));
}

#[test]
fn the_user_may_do_no_more_than_before() {
    on_this_machine!();
    // SAFETY: asks about this process.
    if unsafe { libc::geteuid() } == 0 {
        println!("skipped: root may read everything");
        return;
    }
    let tree = Tree::new();
    let pool = sandboxed(Sandbox::new().read(tree.at("in")));
    let nobody = fs::Permissions::from_mode(0o000);
    fs::set_permissions(tree.at("in/file"), nobody).expect("it is ours");
    is_refused(&pool.apply(read_file, (tree.at("in/file"),)));
}

// ---- the network ----------------------------------------------------------------------------------

#[pool_task]
fn say_hello(port: u16) -> Result<(Vec<u8>, usize), i32> {
    let result = (|| {
        let addresses = ("localhost", port).to_socket_addrs()?.count();
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.write_all(b"hello")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok((answer, addresses))
    })();
    result.map_err(|error: io::Error| error.raw_os_error().unwrap_or(-1))
}

#[test]
fn a_worker_with_the_network_can_talk() {
    on_this_machine!();
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a network");
    let port = listener.local_addr().expect("it is bound").port();
    let pool = sandboxed(Sandbox::new().network());
    let talk = pool.apply_async(say_hello, (port,));
    let (mut stream, _) = listener.accept().expect("it connects");
    let mut heard = String::new();
    stream.read_to_string(&mut heard).expect("it speaks");
    assert_eq!(heard, "hello");
    stream.write_all(b"good bye").expect("it listens");
    drop(stream);
    let (answer, addresses) = talk.get().expect("it runs").expect("it may");
    assert_eq!(answer, b"good bye");
    assert!(addresses > 0);
}

// ---- threads and processes ------------------------------------------------------------------------

#[pool_task]
fn sum_with_threads(numbers: Vec<u64>) -> u64 {
    thread::scope(|scope| {
        let parts = numbers.chunks(10);
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(|| part.iter().sum::<u64>()))
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().expect("it adds up"))
            .sum()
    })
}

#[test]
fn a_worker_with_threads_can_start_them() {
    on_this_machine!();
    let pool = sandboxed(Sandbox::new().threads());
    for _ in 0..20 {
        let sum = pool.apply(sum_with_threads, ((0..100).collect::<Vec<_>>(),));
        assert_eq!(sum.expect("it runs"), 4950);
    }
}

/// Runs it in a shell. Returns its status, and what it prints.
#[pool_task]
fn run_line(line: &str) -> Result<(Option<i32>, String), String> {
    let output = Command::new("/bin/sh").args(["-c", line]).output();
    let output = output.map_err(|error| error.to_string())?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn a_program_that_a_worker_runs_is_confined_like_the_worker() {
    on_this_machine!();
    let tree = Tree::new();
    let pool = sandboxed(programs(Sandbox::new()).read(tree.at("in")));
    let run = |line: String| {
        pool.apply(run_line, (line,))
            .expect("it runs")
            .expect("it can be run")
    };
    assert_eq!(
        run("echo good; exit 3".to_owned()),
        (Some(3), "good\n".to_owned())
    );
    let at = |name: &str| tree.at(name).display().to_string();
    assert_eq!(
        run(format!("cat '{}'", at("in/file"))),
        (Some(0), "in/file".to_owned())
    );
    let own = std::process::id();
    for line in [
        format!("cat '{}'", at("out/file")),
        format!("cat '{}/in/to out'", at("")),
        format!("echo x > '{}'", at("in/file")),
        format!("touch '{}'", at("in/new")),
        format!("rm -f '{}'", at("out/file")),
        format!("ln -s x '{}'", at("in/new")),
        format!("kill -0 {own}"),
        "cat /etc/passwd".to_owned(),
        "setsid true".to_owned(),
        "nice -n -5 true 2>&1 | grep -q .  && exit 1".to_owned(),
    ] {
        let (status, text) = run(line.clone());
        assert_ne!(status, Some(0), "{line}: {text}");
    }
    assert_eq!(tree.text("out/file"), "out/file");
    assert_eq!(tree.text("in/file"), "in/file");
    works(&pool);
}

#[test]
fn the_same_program_could_have() {
    on_this_machine!();
    let tree = Tree::new();
    let pool = checked(builder().processes(1).build());
    let run = |line: String| {
        pool.apply(run_line, (line,))
            .expect("it runs")
            .expect("it can be run")
    };
    let at = |name: &str| tree.at(name).display().to_string();
    for line in [
        format!("cat '{}'", at("out/file")),
        format!("cat '{}/in/to out'", at("")),
        format!("echo x > '{}'", at("in/file")),
        format!("touch '{}'", at("in/new")),
        format!("rm -f '{}'", at("in/new")),
        format!("ln -s x '{}'", at("in/new")),
        format!("kill -0 {}", std::process::id()),
        "cat /etc/passwd".to_owned(),
        "setsid true".to_owned(),
    ] {
        let (status, text) = run(line.clone());
        assert_eq!(status, Some(0), "{line}: {text}");
    }
}

#[pool_task]
fn run_what_may_not_be_run(path: &Path) -> Result<(), i32> {
    errno(Command::new(path).status().map(drop))
}

#[test]
fn only_what_can_be_read_can_be_run() {
    on_this_machine!();
    let pool = sandboxed(Sandbox::new().processes());
    is_refused(&pool.apply(run_what_may_not_be_run, (PathBuf::from("/bin/sh"),)));
    let pool = sandboxed(Sandbox::new().read("/usr").read("/bin").read("/lib"));
    is_refused(&pool.apply(run_what_may_not_be_run, (PathBuf::from("/bin/sh"),)));
}

/// Starts a process that does not end by itself, and returns its pid.
#[pool_task]
fn leave_a_process() -> u32 {
    start_one()
}

fn start_one() -> u32 {
    let started = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn();
    started.expect("it may").id()
}

/// Does what a sandbox never permits, after it has started a process, whose pid it writes to a pipe that an initializer keeps.
#[pool_task]
fn leave_a_process_and_die(to: pool_core::Sender<u32>) {
    to.send(start_one()).expect("somebody listens");
    // SAFETY: never returns here.
    unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, -1, 0, 0) };
}

#[test]
fn processes_end_with_their_worker() {
    on_this_machine!();
    let pool = sandboxed(programs(Sandbox::new()));
    let child = pool.apply(leave_a_process, ()).expect("it runs");
    assert!(leaks::is_alive(child));
    let (sender, receiver) = pool_core::channel().expect("there is room");
    let outcome = pool.apply(leave_a_process_and_die, (sender,));
    let Err(Error::WorkerLost(lost)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(lost.signal(), Some("SIGSYS"), "{lost}");
    let other = receiver.recv().expect("it was sent");
    // Both belonged to the worker that has died.
    leaks::wait_until_dead(child);
    leaks::wait_until_dead(other);
    let child = pool.apply(leave_a_process, ()).expect("it runs");
    drop(pool);
    leaks::wait_until_dead(child);
}

// ---- limits ---------------------------------------------------------------------------------------

/// Whether there was room for so many bytes, if one asks; otherwise the process aborts.
#[pool_task]
fn allocate(bytes: usize, asks: bool) -> bool {
    let mut memory: Vec<u8> = Vec::new();
    if asks {
        return memory.try_reserve_exact(bytes).is_ok();
    }
    memory.reserve_exact(bytes);
    hint::black_box(&memory).capacity() >= bytes
}

#[test]
fn memory_is_limited() {
    on_this_machine!();
    const LIMIT: u64 = 256 << 20;
    let pool = sandboxed(Sandbox::new().memory(LIMIT));
    let (few, many) = (128 << 20, 512 << 20);
    assert!(pool.apply(allocate, (few, false)).expect("there is room"));
    assert!(!pool.apply(allocate, (many, true)).expect("it is told"));
    let pids = pool.worker_pids();
    let outcome = pool.apply(allocate, (many, false));
    let Err(Error::MemoryLimit(limited)) = &outcome else {
        panic!("{outcome:?}");
    };
    assert!(limited.limit() >= LIMIT, "{limited}");
    assert_eq!(limited.pid(), pids[0]);
    // The replacement has the same limit.
    assert!(pool.apply(allocate, (few, false)).expect("there is room"));
    assert!(!pool.apply(allocate, (many, true)).expect("it is told"));
    // Without it, there would have been room.
    let free = checked(builder().processes(1).build());
    assert!(free.apply(allocate, (many, true)).expect("there is room"));
}

/// Uses this much processor time.
fn burn(time: Duration) {
    let used = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let began = used();
    let now = || {
        let now = used();
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
            .saturating_sub(Duration::new(began.tv_sec as u64, began.tv_nsec as u32))
    };
    while now() < time {
        hint::spin_loop();
    }
}

#[pool_task]
fn work_for(milliseconds: u64, input: u64) -> u64 {
    burn(Duration::from_millis(milliseconds));
    input
}

#[pool_task]
fn work_deaf(blocks: bool) {
    // SAFETY: all zeros is an empty set.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: a set of ours.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGXCPU) };
    match blocks {
        // SAFETY: as above.
        true => drop(unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        }),
        // SAFETY: a disposition without a handler.
        false => drop(unsafe { libc::signal(libc::SIGXCPU, libc::SIG_IGN) }),
    }
    burn(Duration::MAX);
}

#[test]
fn processor_time_is_limited() {
    on_this_machine!();
    let pool = sandboxed(Sandbox::new().cpu_time(Duration::from_secs(1)));
    let signal_of = |outcome: Result<(), Error>| match outcome {
        Err(Error::WorkerLost(lost)) => lost.signal().map(str::to_owned),
        other => panic!("{other:?}"),
    };
    let outcome = pool.apply(work_for, (3_600_000, 0)).map(drop);
    assert_eq!(signal_of(outcome).as_deref(), Some("SIGXCPU"));
    for blocks in [true, false] {
        let outcome = pool.apply(work_deaf, (blocks,));
        assert_eq!(signal_of(outcome).as_deref(), Some("SIGKILL"));
    }
    works(&pool);
}

#[test]
fn no_input_pays_for_the_time_of_others() {
    on_this_machine!();
    let told = Told::default();
    let tells = told.clone();
    let sandbox = Sandbox::new().cpu_time(Duration::from_secs(1));
    let watched = builder().on_event(move |event| tells.tell(event));
    let pool = checked(watched.processes(2).sandbox(sandbox).build());
    // Together, they take four times what one worker may use.
    let results = pool.starmap(work_for, (0..200).map(|input| (20, input)));
    assert!(results.expect("none is lost").into_iter().eq(0..200));
    let workers = pool.stats().workers;
    let restarts = || workers.iter().map(|worker| &worker.restarts);
    assert!(
        restarts().all(|why| why.died + why.failed_starts == 0),
        "{workers:?}"
    );
    assert!(restarts().any(|why| why.cpu_time > 0), "{workers:?}");
    told.wait_for(0, |event| match event {
        Event::WorkerRecycled { why, .. } => (*why == Recycled::CpuTime).then_some(()),
        _ => None,
    });
    assert_eq!(pool.apply(square, (3,)).expect("it works"), 9);
}
