//! Programs in a terminal: the terminal does not stop their workers, and its keys do what people expect.

#![cfg(test)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use std::ptr;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const HOLD: &str = env!("CARGO_BIN_EXE_hold");

/// How long anything may take, on a machine under load.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn a_terminal_that_stops_background_output_stops_no_worker() {
    let mut terminal = Terminal::start(HOLD, &["2"], libc::TOSTOP);
    terminal.wait_for("pids: ");
    terminal.type_in("speak\n");
    terminal.wait_for("speak: ()");
    terminal.wait_for("a worker's output");
    terminal.wait_for("a worker's complaint");
}

/// A terminal is open for reading, too, and what is set on it holds for all that have it open.
#[test]
fn a_sandboxed_worker_takes_neither_keys_nor_the_patience_of_others() {
    let mut terminal = Terminal::start(HOLD, &["2"], 0);
    terminal.wait_for("pids: ");
    terminal.type_in("steal\nhunter2\n");
    terminal.wait_for("steal: Ok(\"hunter2\\n\")");
    terminal.type_in("hurry\n");
    terminal.wait_for("waits: false");

    let mut terminal = Terminal::start(HOLD, &["2", "sandboxed"], 0);
    terminal.wait_for("pids: ");
    terminal.type_in("steal\n");
    terminal.wait_for(&format!("steal: Err({})", libc::EBADF));
    terminal.type_in("hurry\n");
    terminal.wait_for("hurry: Ok(())");
    terminal.wait_for("waits: true");
    terminal.type_in("speak\n");
    terminal.wait_for("a worker's output");
    terminal.wait_for("a worker's complaint");
}

#[test]
fn ctrl_c_ends_the_program_and_its_workers_without_noise() {
    let mut terminal = Terminal::start(HOLD, &["2", "busy"], 0);
    let pids = terminal.pids();
    terminal.type_in("\x03");
    let status = terminal.child.wait().expect("it is our child");
    assert_eq!(status.signal(), Some(libc::SIGINT));
    for pid in pids {
        eventually(
            || !Path::new(&format!("/proc/{pid}")).exists(),
            "it is gone",
        );
    }
    let text = terminal.text();
    let (_, after) = text.split_once("pids: ").expect("it was said");
    let (_, after) = after.split_once('\n').expect("it was a line");
    assert_eq!(after.replace("^C", "").trim(), "");
}

/// A shell starts the program, and resumes it after it was stopped: without a shell, a terminal stops no program.
#[test]
fn ctrl_z_stops_the_program_which_goes_on_later() {
    let script = format!("'{HOLD}' 2; echo stopped: $?; fg");
    let mut terminal = Terminal::start("sh", &["-mc", &script], 0);
    terminal.pids();
    terminal.type_in("\x1a");
    // 128 plus the number of SIGTSTP.
    terminal.wait_for("stopped: 148");
    terminal.type_in("work\n");
    terminal.wait_for("work: [0, 1, 4, 9");
}

/// A program with a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn start(program: &str, arguments: &[&str], modes: libc::tcflag_t) -> Terminal {
        let (master, slave) = open_terminal(modes);
        let stream = || slave.try_clone().expect("there are descriptors");
        let mut command = Command::new(program);
        command.args(arguments);
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let take_terminal = || {
            // A program that a shell starts in the background ignores SIGINT, and so would everything that it starts.
            // SAFETY: a disposition without a handler.
            unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
            // SAFETY: touches no memory.
            let led = unsafe { libc::setsid() };
            // SAFETY: standard input is the terminal.
            let taken = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
            if led < 0 || taken < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: it makes only calls that are allowed between fork and exec.
        unsafe { command.pre_exec(take_terminal) };
        let child = command.spawn().expect("it can be run");
        let keys = File::from(master);
        let mut screen = keys.try_clone().expect("there are descriptors");
        let shown = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&shown);
        thread::spawn(move || {
            let mut bytes = [0; 1024];
            // An error means that nobody has it open any more.
            while let Ok(len @ 1..) = screen.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..len]);
                seen.lock().expect("nobody panics").push_str(&text);
            }
        });
        Terminal { child, keys, shown }
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it is open");
    }

    fn text(&self) -> String {
        self.shown.lock().expect("nobody panics").clone()
    }

    fn wait_for(&self, text: &str) {
        eventually(|| self.text().contains(text), text);
    }

    fn pids(&self) -> Vec<u32> {
        let line = || {
            let text = self.text();
            let (_, rest) = text.split_once("pids: ")?;
            Some(rest.split_once('\n')?.0.to_owned())
        };
        eventually(|| line().is_some(), "pids");
        let line = line().unwrap_or_default();
        let numbers = line.split_whitespace().map(str::parse);
        numbers.map(|pid| pid.expect("a number")).collect()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a terminal with these modes besides the usual ones: returns the user's end, and the program's.
fn open_terminal(modes: libc::tcflag_t) -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: writes two descriptors; the rest may be null.
    let opened = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            ptr::null_mut(),
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
    assert_eq!(opened, 0, "{}", io::Error::last_os_error());
    let [master, slave] = [master, slave].map(|end| {
        // SAFETY: touches no memory.
        unsafe { libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC) };
        // SAFETY: nobody else has it.
        unsafe { OwnedFd::from_raw_fd(end) }
    });
    // SAFETY: all zeros is a valid value, which is then overwritten.
    let mut all: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: writes to `all`.
    let read = unsafe { libc::tcgetattr(slave.as_raw_fd(), &raw mut all) };
    all.c_lflag |= modes;
    // SAFETY: reads `all`.
    let written = unsafe { libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &all) };
    assert_eq!((read, written), (0, 0));
    (master, slave)
}

fn eventually(condition: impl Fn() -> bool, what: &str) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "timed out: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
