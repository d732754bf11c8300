//! What happens to processes: none is left behind, whatever happens to the parent; nothing of the parent's leaks into a
//! worker; a program that must not have workers gets an error.
//!
//! Each test runs a program from `bin/`, because these things affect a whole process. Each program is linked under a
//! unique name, so that all processes that it started can be found.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Anything that takes this long hangs: the longest takes half a minute of two processors that have nothing else to do.
/// Tests fail on it, but do not otherwise depend on it.
const WATCHDOG: Duration = Duration::from_secs(300);

const HOLD: &str = env!("CARGO_BIN_EXE_hold");
const CHURN: &str = env!("CARGO_BIN_EXE_churn");
const MATRIX: &str = env!("CARGO_BIN_EXE_matrix");
const MISSED: &str = env!("CARGO_BIN_EXE_missed");
const FORKED: &str = env!("CARGO_BIN_EXE_forked");
const ODD: &str = env!("CARGO_BIN_EXE_odd");
const CHAOS: &str = env!("CARGO_BIN_EXE_chaos");
const MESSAGES: &str = env!("CARGO_BIN_EXE_messages");
/// The kinds of workers.
const KINDS: [&str; 6] = [
    "",
    "busy",
    "deaf",
    "preloaded",
    "preloaded-busy",
    "preloaded-deaf",
];

const CORNERS: &str = env!("CARGO_BIN_EXE_corners");
const FAILING: &str = env!("CARGO_BIN_EXE_failing");

// ---- the parent's end -----------------------------------------------------------------------------

#[test]
fn a_killed_parent_leaves_no_worker() {
    for what in KINDS {
        for _ in 0..10 {
            let mut held = Held::start(&["2", what]);
            held.signal(libc::SIGKILL);
            held.wait();
            held.home.await_nobody();
            held.home.assert_no_files();
        }
    }
}

/// Returns why workers can't be contained on this machine, if they can't.
fn nothing_is_contained() -> Option<String> {
    let home = Home::new(HOLD);
    let output = home.program(&["1", "daemons"]).output();
    let said = text(&output.stdout);
    let error = said.strip_prefix("error: Start: ")?;
    assert!(error.contains("it can't be contained"), "{error}");
    Some(error.to_owned())
}

#[test]
fn daemons_of_contained_workers_end_with_the_parent() {
    if nothing_is_contained().is_some() {
        return;
    }
    for _ in 0..10 {
        let mut held = Held::start(&["2", "daemons"]);
        // Guard, first process, worker and daemon, for two workers.
        assert!(processes_of(&held.home.program).len() > 2 * 4);
        held.signal(libc::SIGKILL);
        held.wait();
        held.home.await_nobody();
        held.home.assert_no_files();
    }
    for word in ["drop", "return", "exit", "panic"] {
        let mut held = Held::start(&["2", "daemons"]);
        held.say(word);
        if word == "drop" {
            held.hear("drop");
        } else {
            held.wait();
            held.home.await_nobody();
        }
        eventually("the daemons are gone", || {
            processes_of(&held.home.program).len() <= 1
        });
    }
}

/// Kills the parent at any moment, so in any state of the three processes of a worker.
#[test]
fn a_parent_killed_while_contained_workers_start_leaves_none() {
    if nothing_is_contained().is_some() {
        return;
    }
    for moment in 0..60 {
        let home = Home::new(HOLD);
        let mut program = home.program(&["2", "daemons"]).start();
        thread::sleep(Duration::from_micros(150 * moment));
        program.signal(libc::SIGKILL);
        program.wait();
        home.await_nobody();
    }
}

#[test]
fn a_parent_killed_while_its_pool_starts_leaves_no_worker() {
    // The moments grow later and later, from before `main` to after the last worker's start.
    for moment in 0..120 {
        let (moment, what) = (moment / 2, ["", "preloaded"][moment as usize % 2]);
        let home = Home::new(HOLD);
        let mut program = home.program(&["4", what]).start();
        thread::sleep(Duration::from_micros(150 * moment));
        program.signal(libc::SIGKILL);
        program.wait();
        home.await_nobody();
    }
}

#[test]
fn a_parent_killed_while_its_worker_starts_leaves_no_file() {
    // From the moment when there is a process that can remove it. If the parent is killed before that, but after
    // ipc-channel has made the socket, it does leave the socket behind.
    for moment in 0..40 {
        let home = Home::new(HOLD);
        let mut program = home.program(&["1"]).start();
        eventually("there is a worker", || {
            !children(program.child.id()).is_empty()
        });
        thread::sleep(Duration::from_micros(50 * moment));
        program.signal(libc::SIGKILL);
        program.wait();
        home.await_nobody();
        home.assert_no_files();
    }
}

#[test]
fn a_terminated_parent_leaves_no_worker() {
    for (signal, what) in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP]
        .into_iter()
        .flat_map(|signal| ["busy", "preloaded-busy"].map(|what| (signal, what)))
    {
        let mut held = Held::start(&["2", what]);
        held.signal(signal);
        assert_eq!(held.wait().signal(), Some(signal));
        held.home.await_nobody();
        held.home.assert_no_files();
    }
}

#[test]
fn a_parent_that_ends_by_itself_leaves_no_worker() {
    for what in KINDS {
        for (word, code) in [("return", 0), ("exit", 7), ("panic", 101)] {
            let mut held = Held::start(&["2", what]);
            held.say(word);
            assert_eq!(held.wait().code(), Some(code), "{word} {what}");
            held.home.await_nobody();
            held.home.assert_no_files();
        }
    }
}

// ---- the pool's end -------------------------------------------------------------------------------

#[test]
fn a_dropped_pool_leaves_no_worker_and_no_zombie() {
    for what in KINDS {
        let mut held = Held::start(&["3", what]);
        held.ask("drop");
        // By then, not some time later.
        for pid in &held.pids {
            assert!(!exists(*pid), "{pid} of {what:?} is still there");
        }
        assert_eq!(children(held.pid()), []);
    }
}

#[test]
fn stopped_workers_do_not_hold_up_the_drop() {
    for what in KINDS {
        let mut held = Held::start(&["3", what]);
        for pid in &held.pids {
            signal(*pid, libc::SIGSTOP);
        }
        for pid in &held.pids {
            eventually("the worker stops", || state(*pid) == Some('T'));
        }
        held.ask("drop");
        assert_eq!(children(held.pid()), []);
    }
}

#[test]
fn a_worker_that_died_is_no_zombie_and_has_a_successor() {
    let mut held = Held::start(&["3"]);
    let victim = held.pids[1];
    signal(victim, libc::SIGKILL);
    eventually("the dead worker is buried", || !exists(victim));
    eventually("a successor comes", || {
        let pids = held.ask("pids");
        children(held.pid()).len() == 3 && pids.split(' ').count() == 3
    });
    assert_eq!(held.ask("work"), squares());
    held.ask("drop");
    assert_eq!(children(held.pid()), []);
}

#[test]
fn a_thousand_pools_leave_no_descriptor_thread_or_child() {
    Home::new(CHURN).program(&["1000"]).fine();
    Home::new(CHURN).program(&["100", "--sandbox"]).fine();
}

// ---- what a worker is -----------------------------------------------------------------------------

#[test]
fn workers_can_be_told_apart_from_outside() {
    let held = Held::start(&["3"]);
    let name = held.home.program.file_name().expect("it has one").display();
    for (index, pid) in held.pids.iter().enumerate() {
        let command = proc(*pid, "cmdline");
        // The arguments of the parent follow.
        assert_eq!(command, format!("pool-worker {index} of {name}\x003\0"));
        assert_eq!(proc(*pid, "comm").trim(), format!("pool-worker-{index}"));
    }
}

#[test]
fn a_worker_has_nothing_of_its_parent_but_the_three_streams() {
    let held = Held::start(&["2"]);
    for pid in &held.pids {
        let descriptors = descriptors(*pid);
        assert_eq!(descriptors[&0], "/dev/null");
        for stream in [1, 2] {
            assert_eq!(descriptors[&stream], self::descriptors(held.pid())[&stream]);
        }
        // The two channels have three ends here, since one end is for the parent to write to; and there may be
        // something left of the greeting's connection.
        let others: Vec<_> = descriptors.values().skip(3).collect();
        assert!(others.len() <= 6, "{descriptors:?}");
        let ours = |what: &str| what.starts_with("socket:") || what.starts_with("/memfd:");
        assert!(others.iter().all(|what| ours(what)), "{descriptors:?}");
    }
}

#[test]
fn a_parent_has_few_threads_and_descriptors_however_many_workers() {
    for (workers, what) in [(1, ""), (16, ""), (1, "preloaded"), (16, "preloaded")] {
        let mut held = Held::start(&[&workers.to_string(), what]);
        assert_eq!(held.ask("work"), squares());
        let threads = fs::read_dir(format!("/proc/{}/task", held.pid())).expect("it runs");
        assert!(threads.count() <= 4);
        let descriptors = descriptors(held.pid());
        // Cargo leaks descriptors too, into everything it starts.
        let of_pools = ["anon_inode:", "socket:", "/memfd:"];
        let ours = descriptors
            .values()
            .filter(|what| of_pools.iter().any(|kind| what.starts_with(kind)));
        assert!(3 + ours.count() <= 8 + 3 * workers, "{descriptors:?}");
    }
}

#[test]
fn a_descriptor_without_close_on_exec_is_not_inherited() {
    let home = Home::new(ODD);
    let said = home.program(&["leaky"]).fine();
    assert!(said.contains("0 -> /dev/null"), "{said}");
    assert!(!said.contains("77 ->"), "{said}");
    assert!(!said.contains("/proc/version"), "{said}");
}

#[test]
fn each_worker_leads_a_session_and_a_process_group() {
    let held = Held::start(&["2"]);
    for pid in &held.pids {
        // SAFETY: asks about a process.
        let group = unsafe { libc::getpgid(*pid as libc::pid_t) };
        assert_eq!(group, *pid as libc::pid_t);
        // SAFETY: as above.
        let session = unsafe { libc::getsid(*pid as libc::pid_t) };
        assert_eq!(session, group);
    }
}

#[test]
fn directory_and_environment_are_inherited_and_ours_is_not_seen() {
    let home = Home::new(HOLD);
    let mut program = home.program(&["1"]);
    program
        .0
        .env("HOLD_TEST", "a value")
        .current_dir("/usr/bin");
    let mut held = Held::of(program.start(), home);
    let directory = fs::canonicalize("/usr/bin").expect("it is there");
    assert_eq!(
        held.ask("look"),
        format!(
            "index: Some(0); is worker: true; variables: 0; inherited: a value; directory: {}",
            directory.display()
        )
    );
}

#[test]
fn output_and_complaints_of_workers_go_where_the_parents_go() {
    let home = Home::new(HOLD);
    let mut command = home.program(&["1"]);
    command.0.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.0.stderr(Stdio::piped());
    let mut program = command.0.spawn().expect("it can be run");
    let mut stdin = program.stdin.take().expect("it is piped");
    stdin.write_all(b"speak\nreturn\n").expect("it reads");
    let output = program.wait_with_output().expect("it can be waited for");
    assert!(
        text(&output.stdout)
            .lines()
            .any(|line| line == "a worker's output"),
        "{output:?}"
    );
    assert_eq!(text(&output.stderr), "a worker's complaint\n");
}

// ---- strange surroundings -------------------------------------------------------------------------

#[test]
fn closed_standard_streams_are_nobody_elses() {
    let home = Home::new(ODD);
    let result = home.directory.path().join("result");
    let path = result.to_str().expect("UTF-8");
    let output = home.program(&["closed", path]).output();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fs::read_to_string(&result).expect("it was written"),
        "/dev/null /dev/null /dev/null"
    );
}

#[test]
fn a_program_with_the_default_sigpipe_survives_its_workers() {
    Home::new(ODD).program(&["fragile"]).fine();
}

#[test]
fn a_program_that_ignores_sigchld_has_pools() {
    Home::new(ODD).program(&["childless"]).fine();
}

#[test]
fn interrupted_system_calls_are_repeated() {
    Home::new(ODD).program(&["interrupted"]).fine();
}

#[test]
fn other_children_of_the_parent_keep_nothing_alive() {
    Home::new(ODD).program(&["crowded"]).fine();
}

#[test]
fn zygotes_that_are_killed_leave_no_worker_unknown() {
    Home::new(ODD).program(&["hunted"]).fine();
}

#[test]
fn a_fork_of_the_parent_does_nothing_to_the_pool() {
    let home = Home::new(FORKED);
    for _ in 0..5 {
        let output = home.program(&[]).output();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            text(&output.stdout),
            "child: Some(42)\nunfinished: 20\nparent: 20\n"
        );
    }
    home.await_nobody();
}

#[test]
fn a_deleted_program_still_gets_workers() {
    let mut held = Held::start(&["2"]);
    fs::remove_file(&held.home.program).expect("it is there");
    replace_both_workers(&mut held);
}

#[test]
fn a_replaced_program_gets_workers_of_its_own_kind() {
    let mut held = Held::start(&["2"]);
    fs::remove_file(&held.home.program).expect("it is there");
    fs::write(&held.home.program, "#!/bin/sh\nexit 9\n").expect("there is room");
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&held.home.program, executable).expect("it is ours");
    replace_both_workers(&mut held);
}

fn replace_both_workers(held: &mut Held) {
    for pid in &held.pids {
        signal(*pid, libc::SIGKILL);
    }
    eventually("the dead are buried", || {
        held.pids.iter().all(|pid| !exists(*pid))
    });
    assert_eq!(held.ask("work"), squares());
    held.ask("drop");
}

// ---- corners --------------------------------------------------------------------------------------

#[test]
fn a_stopped_worker_holds_nothing_that_it_has_not_begun() {
    Home::new(CORNERS).program(&["stopped"]).fine();
}

#[test]
fn when_all_workers_are_stopped_they_are_replaced() {
    Home::new(CORNERS).program(&["all-stopped"]).fine();
}

#[test]
fn workers_that_go_on_are_used_again() {
    Home::new(CORNERS).program(&["continued"]).fine();
}

#[test]
fn an_argument_too_large_for_the_memory_of_a_worker_costs_itself() {
    Home::new(CORNERS).program(&["large"]).fine();
}

#[test]
fn an_abort_for_want_of_memory_is_told_from_another() {
    let home = Home::new(CORNERS);
    let mut program = home.program(&["starved"]);
    // Where there is no limit, a backtrace printed by the standard library would hide the reason.
    program.0.env("RUST_BACKTRACE", "0");
    program.fine();
}

#[test]
fn a_pool_that_runs_out_of_descriptors_recovers() {
    Home::new(CORNERS).program(&["scarce"]).fine();
}

#[test]
fn more_workers_than_there_are_descriptors_for_are_refused_beforehand() {
    Home::new(CORNERS).program(&["too-many"]).fine();
}

#[test]
fn workers_that_are_let_go_and_killed_leave_nothing() {
    Home::new(CORNERS).program(&["recycled"]).fine();
}

#[test]
fn workers_have_the_command_line_of_their_parent() {
    let long = "x".repeat(100 << 10);
    let arguments = ["arguments", "--flag", "", &long, "last one"];
    let home = Home::new(CORNERS);
    home.program(&arguments).fine();
    home.program(&["arguments"]).fine();
    let mut odd = home.program(&arguments);
    odd.0.arg(OsStr::from_bytes(b"not \xff UTF-8"));
    odd.fine();
}

#[test]
fn what_a_finalizer_prints_is_printed() {
    for arguments in [&["finalizers"][..], &["finalizers", "--sandbox"]] {
        let output = Home::new(CORNERS).program(arguments).output();
        let said = text(&output.stdout);
        assert_eq!(said.matches("goodbye").count(), 2, "{said}");
    }
}

#[test]
fn initializers_that_do_what_they_should_not_break_no_pool() {
    Home::new(CORNERS).program(&["initializers"]).fine();
}

#[test]
fn a_worker_that_lies_about_the_time_is_ended_at_its_limit() {
    Home::new(CORNERS).program(&["lying-clock"]).fine();
}

#[test]
fn workers_can_not_pretend_that_they_have_not_begun() {
    Home::new(CORNERS).program(&["unbegun"]).fine();
}

#[test]
fn a_worker_that_was_another_user_ends_with_its_parent() {
    for arguments in [&["other-user"][..], &["other-user", "--sandbox"]] {
        let home = Home::new(CORNERS);
        let output = home.program(arguments).output();
        assert_eq!(output.status.signal(), Some(libc::SIGKILL), "{output:?}");
        assert!(text(&output.stdout).starts_with("worker "), "{output:?}");
        home.await_nobody();
    }
}

#[test]
fn time_in_which_the_whole_program_is_stopped_does_not_count() {
    Home::new(CORNERS).program(&["paused"]).fine();
}

#[test]
fn exit_handlers_that_hang_hold_nobody_up() {
    Home::new(CORNERS).program(&["exit-hangs"]).fine();
}

#[test]
fn the_dead_that_a_debugger_holds_hold_nobody_up() {
    Home::new(CORNERS).program(&["traced"]).fine();
}

#[test]
fn a_parent_may_bury_its_children_itself() {
    Home::new(CORNERS).program(&["reaped"]).fine();
}

#[test]
fn tasks_that_write_over_shared_memory_harm_nobody_else() {
    Home::new(CORNERS).program(&["scribbled"]).fine();
}

#[test]
fn a_task_reports_though_its_output_can_not_be_flushed() {
    Home::new(CORNERS).program(&["locked"]).fine();
}

#[test]
fn a_slow_reader_of_standard_output_loses_nothing() {
    Home::new(CORNERS).program(&["slow-reader"]).fine();
}

#[test]
fn a_copy_of_a_worker_that_a_task_makes_says_nothing() {
    Home::new(CORNERS).program(&["forked"]).fine();
}

#[test]
fn a_pool_that_can_not_be_started_says_what_ran_out() {
    Home::new(CORNERS).program(&["too-scarce"]).fine();
}

#[test]
fn each_fault_costs_its_own_input_in_every_kind_of_call() {
    Home::new(MATRIX).program(&[]).fine();
}

#[test]
fn each_fault_costs_its_own_input_where_workers_are_sandboxed() {
    Home::new(MATRIX).program(&["--sandbox"]).fine();
}

/// All corners but the two that do not end with `fine`: see above.
#[test]
fn sandboxed_workers_withstand_every_attack() {
    let corners = [
        "stopped",
        "all-stopped",
        "continued",
        "large",
        "scarce",
        "too-scarce",
        "too-many",
        "recycled",
        "initializers",
        "arguments",
        "lying-clock",
        "unbegun",
        "paused",
        "exit-hangs",
        "traced",
        "reaped",
        "scribbled",
        "locked",
        "slow-reader",
        "forked",
        "starved",
    ];
    // They mostly wait.
    thread::scope(|scope| {
        for some in corners.chunks(corners.len().div_ceil(3)) {
            scope.spawn(move || {
                for corner in some {
                    Home::new(CORNERS).program(&[corner, "--sandbox"]).fine();
                }
            });
        }
    });
}

#[test]
fn system_calls_that_fail_do_no_harm() {
    Home::new(FAILING).program(&[]).fine();
}

/// The guard of a worker is killed, and the worker lives on for a moment: nothing runs twice.
#[test]
fn chaos_costs_no_more_where_workers_are_contained() {
    if nothing_is_contained().is_some() {
        return;
    }
    let home = Home::new(CHAOS);
    let arguments = ["--contain", "--tasks", "300000", "--kill-every-ms", "10"];
    let output = home.program(&arguments).output();
    assert!(output.status.success(), "{}", text(&output.stdout));
    home.await_nobody();
    home.assert_no_files();
}

#[test]
fn chaos_costs_what_it_hits_and_nothing_else() {
    for arguments in [
        &["--tasks", "200000", "--kill-every-ms", "20"][..],
        &["--tasks", "200000", "--mixed", "--threads", "3"],
        &["--tasks", "100000", "--mixed", "--sandbox"],
    ] {
        let home = Home::new(CHAOS);
        let output = home.program(arguments).output();
        assert!(output.status.success(), "{}", text(&output.stdout));
        home.await_nobody();
        home.assert_no_files();
    }
}

#[test]
fn messages_that_stand_arrive_whatever_becomes_of_their_senders() {
    for arguments in [
        &["--messages", "200000", "--kill-every-ms", "20"][..],
        &[
            "--messages",
            "100000",
            "--kill-every-ms",
            "5",
            "--retries",
            "3",
        ],
        &["--messages", "100000", "--sandbox"],
    ] {
        let home = Home::new(MESSAGES);
        let output = home.program(arguments).output();
        assert!(output.status.success(), "{}", text(&output.stderr));
        home.await_nobody();
        home.assert_no_files();
    }
}

// ---- errors at the start --------------------------------------------------------------------------

#[test]
fn no_temporary_directory_is_needed() {
    let long = format!("/tmp/{}", "x".repeat(100));
    let not_text = OsStr::from_bytes(b"/tmp/\xff\xfe");
    for directory in [OsStr::new("/nowhere/at/all"), OsStr::new(&long), not_text] {
        let home = Home::new(HOLD);
        let mut program = home.program(&["2"]);
        program.0.env("TMPDIR", directory);
        let mut held = Held::of(program.start(), home);
        assert_eq!(held.ask("work"), squares());
        held.ask("drop");
    }
}

#[test]
fn a_program_that_should_have_become_a_worker_starts_none() {
    for value in ["", "garbage", "1:2", "1:x:token", "-1:0:token"] {
        let home = Home::new(MISSED);
        let mut program = home.program(&[]);
        program.0.env(variable(), value);
        let output = program.output();
        let said = text(&output.stdout);
        assert!(said.starts_with("Start: "), "{value:?}: {output:?}");
        assert!(said.contains("was started as a worker"), "{said}");
        assert!(said.ends_with("largest child: 0 KiB\n"), "{said}");
        home.await_nobody();
    }
}

#[test]
fn a_call_from_nobody_ends_at_once() {
    let home = Home::new(MISSED);
    let mut program = home.program(&[]);
    program.0.env(variable(), "1:0:token");
    let output = program.output();
    // It becomes a worker, never runs `main`, and finds no parent.
    assert_eq!(text(&output.stdout), "");
    assert_eq!(output.status.code(), Some(113), "{output:?}");
}

#[test]
fn a_setuid_program_gets_no_worker_and_obeys_no_variable() {
    // SAFETY: asks about this process.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can make a setuid program of somebody else's");
        return;
    }
    const OWNER: u32 = 1;
    const CALLER: u32 = 65534;
    // A place that the caller can reach, which the target directory may not be.
    let directory = tempfile::tempdir().expect("there is room");
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), everybody).expect("it is ours");
    let program = directory.path().join("setuid");
    fs::copy(MISSED, &program).expect("there is room");
    std::os::unix::fs::chown(&program, Some(OWNER), Some(OWNER)).expect("we are root");
    let setuid = fs::Permissions::from_mode(0o4755);
    fs::set_permissions(&program, setuid).expect("we are root");

    for value in [None, Some("garbage"), Some("1:0:token")] {
        let output = run_file_just_written(|| {
            let mut command = command(&program);
            command.uid(CALLER).gid(CALLER).current_dir("/");
            if let Some(value) = value {
                command.env(variable(), value);
            }
            command.output()
        });
        let said = text(&output.stdout);
        if said.starts_with("a pool") && value.is_none() {
            println!("skipped: the temporary directory is mounted nosuid");
            return;
        }
        assert!(said.starts_with("Start: "), "{value:?}: {output:?}");
        assert!(said.contains("setuid"), "{value:?}: {said}");
        assert!(said.ends_with("largest child: 0 KiB\n"), "{said}");
    }
}

/// Another thread's fork may briefly still hold the descriptor that the file was written through.
fn run_file_just_written(mut run: impl FnMut() -> io::Result<Output>) -> Output {
    loop {
        match run() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
            other => return other.expect("it can be run"),
        }
    }
}

/// The variable that makes a process a worker. All crates of the workspace have one version.
fn variable() -> String {
    let [major, minor] = [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
    ];
    format!("POOL_WORKER_{major}_{minor}")
}

fn squares() -> String {
    format!("{:?}", (0..20).map(|x| x * x).collect::<Vec<u64>>())
}

// ---- programs -------------------------------------------------------------------------------------

/// A program under a unique name, with its own temporary directory.
struct Home {
    directory: TempDir,
    temporary: TempDir,
    program: PathBuf,
}

/// A program that has not been started yet.
struct Ready<'h>(Command, &'h Home);

/// A running program, controlled line by line. It is killed when this is dropped.
struct Program {
    child: Child,
    stdin: ChildStdin,
    lines: io::Lines<BufReader<ChildStdout>>,
    _watchdog: Watchdog,
}

/// A `hold` that holds its pool.
struct Held {
    program: Program,
    pids: Vec<u32>,
    home: Home,
}

/// Kills a program, and every process that it started, unless it is dropped in time.
struct Watchdog(#[expect(dead_code, reason = "its drop is the message")] Sender<()>);

impl Home {
    fn new(program: &str) -> Home {
        // In the same directory tree as the program, so that it can be linked. (A copy would have to be written, and a
        // file that some thread's fork still holds open for writing can't be run.)
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("there is room");
        let linked = directory.path().join("program");
        fs::hard_link(program, &linked).expect("it is the same file system");
        Home {
            program: linked,
            directory,
            // Elsewhere, because names of sockets must be short.
            temporary: TempDir::new().expect("there is room"),
        }
    }

    fn program(&self, arguments: &[&str]) -> Ready<'_> {
        let mut command = command(&self.program);
        command.args(arguments).env("TMPDIR", self.temporary.path());
        if arguments.contains(&"--sandbox") {
            // If backtraces are wanted, each sandboxed worker first reads the debugging information of the program.
            command.env("RUST_BACKTRACE", "0");
        }
        Ready(command, self)
    }

    /// Waits until no process of this program is left.
    fn await_nobody(&self) {
        eventually("all processes are gone", || {
            processes_of(&self.program).is_empty()
        });
    }

    fn assert_no_files(&self) {
        let left: Vec<_> = fs::read_dir(self.temporary.path())
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").path())
            .collect();
        assert_eq!(left, [] as [PathBuf; 0]);
    }
}

impl Ready<'_> {
    fn start(mut self) -> Program {
        self.0.stdin(Stdio::piped()).stdout(Stdio::piped());
        // `hold` may be asked to panic.
        let child = self.0.stderr(Stdio::null()).spawn();
        let mut child = child.expect("it can be run");
        let stdin = child.stdin.take().expect("it is piped");
        let stdout = child.stdout.take().expect("it is piped");
        Program {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
            _watchdog: Watchdog::new(self.1),
        }
    }

    fn output(mut self) -> Output {
        let _watchdog = Watchdog::new(self.1);
        self.0.output().expect("it can be run")
    }

    /// Returns what it prints, if it succeeds.
    fn fine(self) -> String {
        let home = self.1;
        let output = self.output();
        assert!(output.status.success(), "{output:?}");
        let said = text(&output.stdout);
        assert!(said.ends_with("fine\n"), "{output:?}");
        home.await_nobody();
        home.assert_no_files();
        said
    }
}

impl Program {
    fn signal(&self, number: libc::c_int) {
        signal(self.child.id(), number);
    }

    fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("it is our child")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Held {
    fn start(arguments: &[&str]) -> Held {
        let home = Home::new(HOLD);
        let program = home.program(arguments).start();
        Held::of(program, home)
    }

    fn of(program: Program, home: Home) -> Held {
        let mut held = Held {
            program,
            pids: Vec::new(),
            home,
        };
        let pids = held.hear("pids");
        held.pids = pids
            .split(' ')
            .map(|pid| pid.parse().expect("a number"))
            .collect();
        held
    }

    fn pid(&self) -> u32 {
        self.program.child.id()
    }

    fn signal(&self, number: libc::c_int) {
        self.program.signal(number);
    }

    fn wait(&mut self) -> ExitStatus {
        self.program.wait()
    }

    fn say(&mut self, word: &str) {
        writeln!(self.program.stdin, "{word}").expect("it reads");
    }

    /// Sends it a word, and returns the answer, which starts with the same word.
    fn ask(&mut self, word: &str) -> String {
        self.say(word);
        self.hear(word)
    }

    fn hear(&mut self, word: &str) -> String {
        let line = self
            .program
            .lines
            .next()
            .expect("it has not ended, or was killed by the watchdog");
        let line = line.expect("it is text");
        let answer = line
            .strip_prefix(word)
            .and_then(|rest| rest.strip_prefix(": "));
        answer
            .unwrap_or_else(|| panic!("{word}: {line}"))
            .to_owned()
    }
}

impl Watchdog {
    fn new(home: &Home) -> Watchdog {
        let program = home.program.clone();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            if receiver.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
                for pid in processes_of(&program) {
                    signal(pid, libc::SIGKILL);
                }
            }
        });
        Watchdog(sender)
    }
}

/// A program that a shell starts in the background ignores SIGINT, and so would everything that it starts.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    let deafness_ends = || {
        for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: a disposition without a handler.
            unsafe { libc::signal(number, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: it makes only calls that are allowed between fork and exec.
    unsafe { command.pre_exec(deafness_ends) };
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

// ---- processes ------------------------------------------------------------------------------------

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WATCHDOG, "timed out: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn signal(pid: u32, number: libc::c_int) {
    // SAFETY: sends a signal to a process that a test started; at worst it is gone.
    unsafe { libc::kill(pid as libc::pid_t, number) };
}

/// Whether it exists, even as a zombie.
fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn proc(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// Returns 'R' for running, 'T' for stopped, 'Z' for a zombie.
fn state(pid: u32) -> Option<char> {
    // The name before the state is in parentheses, and may contain any character.
    proc(pid, "stat").rsplit_once(") ")?.1.chars().next()
}

/// Returns all of its children, zombies included.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok())
        .flat_map(|children| {
            let pids = children
                .split_whitespace()
                .map(|pid| pid.parse().expect("a number"));
            pids.collect::<Vec<_>>()
        })
        .collect()
}

/// Returns the processes that run this file, under whatever name. A zombie runs nothing.
fn processes_of(program: &Path) -> Vec<u32> {
    let deleted = PathBuf::from(format!("{} (deleted)", program.display()));
    fs::read_dir("/proc")
        .expect("there is /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|runs| runs == program || runs == deleted)
        })
        .collect()
}

fn descriptors(pid: u32) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let what = fs::read_link(entry.path()).ok()?;
            Some((number, what.display().to_string()))
        })
        .collect()
}
