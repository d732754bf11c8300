//! A real NATS server, and nodes, which are this test program, started again.

use std::collections::HashMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pool_core::{Pool, PoolBuilder, pool_task};
use pool_nats::Nats;
use tempfile::TempDir;

pub(crate) fn server_binary() -> Option<PathBuf> {
    if let Some(named) = env::var_os("NATS_SERVER_BIN") {
        return Some(named.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join("nats-server"))
        .find(|file| file.is_file())
}

pub(crate) fn skipped<T>() -> Option<T> {
    let _ = writeln!(
        io::stderr(),
        "SKIPPED: there is no nats-server (NATS_SERVER_BIN, PATH, /usr/sbin)"
    );
    None
}

/// The server of one test.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) directory: TempDir,
    pub(crate) port: u16,
    options: Vec<String>,
}

impl Server {
    /// Returns `None`, after saying so, if no nats-server is installed.
    pub(crate) fn start(options: &[&str]) -> Option<Server> {
        let binary = server_binary().or_else(skipped)?;
        let directory = tempfile::tempdir().expect("there is room");
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Some(Server::begin(&binary, directory, options))
    }

    /// Starts one with this configuration.
    pub(crate) fn configured(text: &str) -> Option<Server> {
        let binary = server_binary().or_else(skipped)?;
        let directory = tempfile::tempdir().expect("there is room");
        let file = directory.path().join("server.conf");
        fs::write(&file, text).expect("it can be written");
        let options = vec!["-c".to_owned(), file.to_string_lossy().into_owned()];
        Some(Server::begin(&binary, directory, options))
    }

    /// Starts one with this configuration, which contains the address to listen on. Its files are in this directory.
    pub(crate) fn on(address: &str, port: u16, text: &str, directory: TempDir) -> Option<Server> {
        let binary = server_binary().or_else(skipped)?;
        let file = directory.path().join("server.conf");
        fs::write(&file, text).expect("it can be written");
        let child = Command::new(binary)
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Server {
            child,
            directory,
            port,
            options: Vec::new(),
        };
        eventually("the server listens", || {
            std::net::TcpStream::connect((address, port)).is_ok()
        });
        Some(server)
    }

    fn begin(binary: &Path, directory: TempDir, options: Vec<String>) -> Server {
        let child = run_server(binary, directory.path(), "-1", &options);
        let mut server = Server {
            child,
            directory,
            port: 0,
            options,
        };
        let file = server.ports_file();
        eventually("the server tells its port", || {
            let told = fs::read_to_string(&file).unwrap_or_default();
            let port = told.split("nats://127.0.0.1:").nth(1).and_then(|rest| {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().ok()
            });
            server.port = port.unwrap_or(0);
            server.port > 0
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }

    pub(crate) fn signal(&self, number: i32) {
        signal(&self.child, number);
    }

    /// Starts it again, with its stored data. Another test's server may have got its port, and then this one ends at
    /// once: it is started until it listens.
    pub(crate) fn restart(&mut self) {
        let binary = server_binary().expect("it was found before");
        let port = self.port.to_string();
        let start =
            |server: &Server| run_server(&binary, server.directory.path(), &port, &server.options);
        self.child = start(self);
        eventually("the server listens again", || {
            if self.child.try_wait().expect("it is ours").is_some() {
                thread::sleep(Duration::from_millis(100));
                self.child = start(self);
            }
            self.ports_file().exists()
        });
    }

    /// Where it writes its ports when it listens.
    fn ports_file(&self) -> PathBuf {
        let file = format!("nats-server_{}.ports", self.child.id());
        self.directory.path().join(file)
    }

    pub(crate) fn nats(&self, run: &str) -> Nats {
        pool_nats::connect(&self.url()).expect("a URL").run(run)
    }

    pub(crate) fn node(&self, run: &str, processes: usize) -> Node {
        let mut command = Command::new(env::current_exe().expect("this program"));
        Node::start(&mut command, &self.url(), run, processes)
    }

    /// Returns the names of the streams on it.
    pub(crate) fn streams(&self) -> Vec<String> {
        let kept = self.directory.path().join("jetstream/$G/streams");
        let Ok(entries) = fs::read_dir(kept) else {
            return Vec::new();
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.collect()
    }
}

fn run_server(binary: &Path, directory: &Path, port: &str, options: &[String]) -> Child {
    Command::new(binary)
        .args(["-a", "127.0.0.1", "-p", port, "--ports_file_dir"])
        .arg(directory)
        .arg("-sd")
        .arg(directory)
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Node {
    pub(crate) child: Child,
    said: BufReader<process::ChildStderr>,
}

impl Node {
    pub(crate) fn start(command: &mut Command, url: &str, run: &str, processes: usize) -> Node {
        let mut child = command
            .env("POOL_NODE", format!("{url}/{run}"))
            .env("POOL_NODE_PROCESSES", processes.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the node starts");
        let said = BufReader::new(child.stderr.take().expect("it is a pipe"));
        Node { child, said }
    }

    pub(crate) fn signal(&self, number: i32) {
        signal(&self.child, number);
    }

    /// Waits for the end; returns the exit code and everything that it has logged.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut all = String::new();
        let mut line = String::new();
        while self.said.read_line(&mut line).is_ok_and(|len| len > 0) {
            all.push_str(&line);
            line.clear();
        }
        let status = self.child.wait().expect("it is ours");
        (status.code(), all)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn signal(child: &Child, number: i32) {
    // SAFETY: sends a signal to a child of ours that was not waited for.
    let sent = unsafe { libc::kill(child.id().cast_signed(), number) };
    assert_eq!(sent, 0);
}

/// Ends the whole program if a test hangs.
pub(crate) fn watchdog() -> impl Drop {
    struct Dog(std::sync::mpsc::Sender<()>);
    impl Drop for Dog {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let test = thread::current().name().unwrap_or("?").to_owned();
    let (over, watch) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let ended = watch.recv_timeout(Duration::from_secs(300));
        if ended == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = writeln!(io::stderr(), "{test} hangs");
            process::abort();
        }
    });
    Dog(over)
}

pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn builder(nats: Nats) -> PoolBuilder {
    Pool::builder()
        .backend(nats)
        .start_timeout(Duration::from_secs(120))
}

/// Marks in a file that it has begun, then takes its time.
#[pool_task]
pub(crate) fn mark(file: &Path, x: u64, ms: u64) -> u64 {
    let file = OpenOptions::new().append(true).create(true).open(file);
    let mut file = file.expect("the file can be written");
    file.write_all(format!("{x}\n").as_bytes())
        .expect("the file can be written");
    thread::sleep(Duration::from_millis(ms));
    x
}

/// Returns how often each input has begun.
pub(crate) fn marks(file: &Path) -> HashMap<u64, usize> {
    let mut counts = HashMap::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        *counts.entry(line.parse().expect("a number")).or_insert(0) += 1;
    }
    counts
}

pub(crate) fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("there is a name");
    name.trim().to_owned()
}
