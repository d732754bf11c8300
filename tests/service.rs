//! Runs the example `service`, and requests everything from it at once, over our own connections.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use wait_timeout::ChildExt;

use super::{LIMIT, example};

/// Keeps a worker, and a CPU, busy forever.
const ENDLESS: &str = "/primes/18446744073709551615";

#[test]
fn two_hundred_requests_of_which_twenty_abort_twenty_panic_and_twenty_clients_go_away() {
    let mut service = Service::start(&["--processes", "2", "--time-limit", "1h"]);
    // Both workers work for clients that will go away.
    let first = service.pids();
    let mut gone = vec![service.ask(ENDLESS), service.ask(ENDLESS)];
    eventually("both work", || first.iter().all(|pid| works(*pid)));
    gone.extend((2..20).map(|_| service.ask("/sleep/3600000")));
    let asked: Vec<_> = (0..180)
        .map(|x| match x % 9 {
            4 => service.ask("/abort"),
            8 => service.ask(&format!("/panic/no%20{x}")),
            _ => service.ask(&format!("/square/{x}")),
        })
        .collect();
    drop(gone);

    for (x, request) in asked.into_iter().enumerate() {
        let (status, body) = answer(request);
        match x % 9 {
            4 => {
                assert_eq!(status, 502, "{body}");
                assert!(body.starts_with("task `service::abort` lost its worker: "));
                assert!(body.ends_with(" was killed by SIGABRT"), "{body}");
            }
            8 => {
                assert_eq!(status, 500, "{body}");
                assert!(body.starts_with("task `service::give_up` panicked at "));
                assert!(body.ends_with(&format!(": no {x}")), "{body}");
            }
            _ => assert_eq!((status, body), (200, (x * x).to_string())),
        }
    }
    // Their work was stopped, not just forgotten.
    let replaced = || service.pids().is_disjoint(&first);
    eventually("their workers are gone", replaced);

    let request = service.ask("/primes/2000000");
    eventually("it is at work", || service.pids().into_iter().any(works));
    service.signal(libc::SIGTERM);
    assert_eq!(answer(request), (200, "148933".to_owned()));
    service.ends_well();
}

#[test]
fn a_request_that_takes_too_long_and_an_end_by_ctrl_c() {
    let mut service = Service::start(&["--processes", "1", "--time-limit", "100ms"]);
    let (status, body) = answer(service.ask("/sleep/3600000"));
    assert_eq!(status, 504, "{body}");
    assert!(body.ends_with("ran past its time limit of 100ms"), "{body}");
    assert_eq!(answer(service.ask("/square/3")), (200, "9".to_owned()));
    service.signal(libc::SIGINT);
    service.ends_well();
}

/// Clients that still wait when the grace period is over get no answer either.
#[test]
fn clients_that_never_finish_do_not_keep_it_from_ending() {
    let args = ["--processes", "1", "--time-limit", "1h", "--grace", "100ms"];
    let mut service = Service::start(&args);
    let _waits = service.ask("/sleep/3600000");
    let mut slow = service.connect();
    slow.write_all(b"GET /squ").expect("it listens");
    service.signal(libc::SIGTERM);
    service.ends_well();
}

/// The service, which is killed if a test fails.
struct Service {
    /// Linked under a unique name, so that all its processes can be found.
    program: PathBuf,
    _home: TempDir,
    child: Child,
    address: String,
}

impl Service {
    fn start(args: &[&str]) -> Service {
        let original = example("service");
        let home = original.parent().expect("a directory");
        let home = TempDir::new_in(home).expect("a directory");
        let program = home.path().join("service");
        fs::hard_link(original, &program).expect("it is the same file system");
        let mut child = Command::new(&program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut line).expect("it says where it is");
        let address = line.trim().strip_prefix("http://").unwrap_or_default();
        Service {
            program,
            _home: home,
            child,
            address: address.to_owned(),
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("it listens");
        let limit = Some(LIMIT);
        stream.set_read_timeout(limit).expect("there is a limit");
        stream
    }

    /// Sends a request, and does not wait for the answer.
    fn ask(&self, path: &str) -> TcpStream {
        let mut stream = self.connect();
        let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it listens");
        stream
    }

    /// Returns the pids of its workers.
    fn pids(&self) -> BTreeSet<u32> {
        let (status, body) = answer(self.ask("/pids"));
        assert_eq!(status, 200, "{body}");
        let list = body.trim_matches(['[', ']']).split(',');
        list.filter_map(|pid| pid.parse().ok()).collect()
    }

    fn signal(&self, signal: i32) {
        let pid = self.child.id().cast_signed();
        // SAFETY: sends a signal to our child, which was not waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Checks that it ends with code 0, and leaves no process behind.
    fn ends_well(&mut self) {
        let status = self.child.wait_timeout(LIMIT).expect("the status");
        assert_eq!(status.and_then(|it: ExitStatus| it.code()), Some(0));
        assert_eq!(processes_of(&self.program), []);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the whole answer; returns its status and its body.
fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// Whether a process has used more CPU time than one that merely waits.
fn works(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').nth(11).and_then(|it| it.parse().ok());
    ticks.unwrap_or(0) >= 5
}

fn processes_of(program: &Path) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("there is /proc");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let runs = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe"));
    pids.filter(|pid| runs(pid).is_ok_and(|it| it == program))
        .collect()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "timed out: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
