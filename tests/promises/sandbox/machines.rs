//! Sandboxes for other users, in containers, and with kernels that lack something.

use std::collections::BTreeMap;
use std::env;
use std::env::consts::ARCH;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::thread;

use pool_core::{Pool, Sandbox, pool_task};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::support::{BACKEND, checked, is_sandboxed, watchdog, works};

const LACKING: &str = env!("CARGO_BIN_EXE_lacking");

/// Makes these system calls fail with an error: all of them, or where the first argument has one of these bits.
fn refuses(calls: &[(i64, Option<i32>)], error: i32) -> BpfProgram {
    let mut rules = BTreeMap::new();
    for (call, bits) in calls {
        let with = |bit: i32| {
            let bit = u64::from(bit as u32);
            let has = SeccompCmpOp::MaskedEq(bit);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, has, bit);
            let condition = condition.expect("there is such an argument");
            SeccompRule::new(vec![condition]).expect("it is valid")
        };
        let bits = bits.map_or(0, i32::cast_unsigned);
        let each = (0..32).map(|bit| 1 << bit).filter(|bit| bits & bit != 0);
        rules.insert(
            *call,
            each.map(|bit: u32| with(bit.cast_signed())).collect(),
        );
    }
    let arch = TargetArch::try_from(ARCH).expect("there are filters");
    let action = SeccompAction::Errno(error as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch);
    let program = filter.and_then(BpfProgram::try_from);
    program.expect("it is valid")
}

/// Runs a program under these filters.
fn under(mut command: Command, filters: Vec<BpfProgram>) -> Output {
    let enter = move || {
        for filter in &filters {
            apply_filter(filter).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        }
        Ok(())
    };
    // SAFETY: it makes only system calls.
    unsafe { command.pre_exec(enter) };
    loop {
        match command.output() {
            // Another thread's fork may briefly still hold the descriptor that the file was written through.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => thread::yield_now(),
            output => return output.expect("it can be run"),
        }
    }
}

/// What `lacking` prints with these arguments.
fn lacking(filters: Vec<BpfProgram>, arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().expect("there is room");
    let mut command = Command::new(LACKING);
    command.args(arguments).env("TMPDIR", directory.path());
    let output = under(command, filters);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("it is text")
}

const EPERM: &str = "Some(1)";
const EACCES: &str = "Some(13)";

#[test]
fn without_landlock_what_needs_it_is_named() {
    let _watchdog = watchdog();
    // Not there at all, and not enabled.
    for error in [libc::ENOSYS, libc::EOPNOTSUPP] {
        let lacking = |arguments: &[&str]| {
            let call = (libc::SYS_landlock_create_ruleset, None);
            lacking(vec![refuses(&[call], error)], arguments)
        };
        // Without permissions for paths, the filter refuses all.
        let said = lacking(&[]);
        assert_eq!(said, format!("found: [{}]\n", [EPERM; 5].join(", ")));
        assert_eq!(lacking(&["best-effort"]), said);
        for (permission, parts) in [
            ("read", &["rules for paths"][..]),
            ("write", &["rules for paths"]),
            ("network", &["rules for paths"]),
            ("processes", &["rules for paths", "refusal of signals"]),
        ] {
            let said = lacking(&[permission]);
            assert!(said.starts_with("error: "), "{said}");
            for part in parts {
                assert!(
                    said.contains(part) && said.contains("best_effort"),
                    "{said}"
                );
            }
            let said = lacking(&[permission, "best-effort"]);
            let lines: Vec<&str> = said.lines().collect();
            let [unenforced @ .., told, found] = &lines[..] else {
                panic!("{said}");
            };
            assert_eq!(*told, "told");
            assert_eq!(unenforced.len(), parts.len(), "{said}");
            for (line, part) in unenforced.iter().zip(parts) {
                assert!(line.starts_with(&format!("unenforced: {part}")), "{said}");
            }
            // The rest is enforced.
            let expected = match permission {
                "read" => format!("found: [None, None, {EPERM}, {EPERM}, {EPERM}]"),
                "write" => format!("found: [None, None, None, {EPERM}, {EPERM}]"),
                "network" => format!("found: [None, None, {EPERM}, Some(111), {EPERM}]"),
                _ => format!("found: [{EPERM}, {EPERM}, {EPERM}, {EPERM}, None]"),
            };
            assert_eq!(*found, expected, "{permission}");
        }
    }
}

#[test]
fn without_filters_that_is_named() {
    let _watchdog = watchdog();
    for error in [libc::ENOSYS, libc::EPERM] {
        let lacking = |arguments: &[&str]| {
            // No filter can be installed that forbids the installation of the next: so this one is the last.
            let call = (libc::SYS_seccomp, None);
            lacking(vec![refuses(&[call], error)], arguments)
        };
        for arguments in [&[][..], &["read"], &["processes"]] {
            let said = lacking(arguments);
            let start = said.starts_with("error: ");
            assert!(start && said.contains("filters of system calls"), "{said}");
        }
        let said = lacking(&["read", "best-effort"]);
        let lines: Vec<&str> = said.lines().collect();
        let [unenforced, told, found] = &lines[..] else {
            panic!("{said}");
        };
        assert!(
            unenforced.starts_with("unenforced: filters of system calls"),
            "{said}"
        );
        assert_eq!(*told, "told");
        // Landlock goes on: files and programs, and TCP.
        let expected = format!("found: [{EACCES}, None, {EACCES}, {EACCES}, {EACCES}]");
        assert_eq!(*found, expected);
    }
}

#[test]
fn on_a_machine_that_lacks_nothing_nothing_is_missing() {
    let _watchdog = watchdog();
    for arguments in [&["read", "best-effort"][..], &["read"]] {
        let said = lacking(Vec::new(), arguments);
        let expected = format!("found: [{EACCES}, None, {EACCES}, {EPERM}, {EPERM}]\n");
        assert_eq!(said, expected);
    }
}

/// As a library might that confines itself.
#[pool_task]
fn give_up_landlock() {
    let filter = refuses(&[(libc::SYS_landlock_create_ruleset, None)], libc::ENOSYS);
    apply_filter(&filter).expect("there are filters");
}

#[test]
fn a_worker_that_lacks_more_than_the_program_does_not_start() {
    let _watchdog = watchdog();
    let directory = env::temp_dir();
    for sandbox in [Sandbox::new(), Sandbox::new().best_effort()] {
        // What does not need it works without it.
        let builder = || {
            Pool::builder()
                .processes(1)
                .initializer(give_up_landlock, ())
        };
        let pool = checked(builder().sandbox(sandbox.clone()).build());
        works(&pool);
        let error = builder().sandbox(sandbox.read(&directory)).build();
        let text = error.expect_err("it can't start").to_string();
        assert!(text.contains("rules for paths"), "{text}");
    }
}

/// Runs the other tests of sandboxes again, in a copy of this program that everybody can run.
fn again(prepare: impl FnOnce(&mut Command), filters: Vec<BpfProgram>) -> String {
    let directory = tempfile::tempdir().expect("there is room");
    let everybody = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(directory.path(), everybody).expect("it is ours");
    let program = directory.path().join("promises");
    let own = env::current_exe().expect("it is known");
    fs::copy(own, &program).expect("there is room");
    let mut command = Command::new(&program);
    command
        .args(["sandbox::", "--test-threads", "2", "--nocapture"])
        .args(["--skip", "sandbox::machines"])
        // This takes long, and is the same everywhere.
        .args(["--skip", "processor_time_is_limited"])
        .env("TMPDIR", directory.path())
        .current_dir("/");
    prepare(&mut command);
    let output = under(command, filters);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
    let ran = said.contains("test result: ok") && !said.contains(" 0 passed");
    assert!(ran, "{said}");
    said
}

// Each test that runs there has a watchdog.

#[test]
fn sandboxes_need_no_privileges() {
    // SAFETY: asks about this process.
    let is_root = unsafe { libc::geteuid() } == 0;
    if env::var_os(BACKEND).is_some() || is_sandboxed() || !is_root {
        println!(
            "skipped: only root can become somebody else; tests of anybody else run without privileges anyway"
        );
        return;
    }
    const NOBODY: u32 = 65534;
    let as_nobody = |command: &mut Command| {
        command.uid(NOBODY).gid(NOBODY);
    };
    again(as_nobody, Vec::new());
}

#[test]
fn sandboxes_need_no_user_namespaces() {
    if env::var_os(BACKEND).is_some() || is_sandboxed() {
        println!("skipped: this does not depend on the backend");
        return;
    }
    const NAMESPACES: i32 = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // As the usual filter of containers.
    let forbidden = [
        (libc::SYS_unshare, Some(NAMESPACES)),
        (libc::SYS_clone, Some(NAMESPACES)),
        (libc::SYS_setns, None),
        (libc::SYS_mount, None),
        (libc::SYS_bpf, None),
        (libc::SYS_keyctl, None),
        (libc::SYS_io_uring_setup, None),
    ];
    let filters = vec![
        refuses(&forbidden, libc::EPERM),
        refuses(&[(libc::SYS_clone3, None)], libc::ENOSYS),
    ];
    // What they could do elsewhere, they can't do there.
    let run = |command: &mut Command| {
        command.args(["--skip", "it_could_have"]);
    };
    let said = again(run, filters);
    assert!(said.contains("skipped: "), "{said}");
}
