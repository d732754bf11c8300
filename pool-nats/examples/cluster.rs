//! A cluster on this machine: a NATS server, two nodes, and a word count that survives the death of one node. `cluster
//! [PATH]`.
//!
//! Anyone who may publish to the subjects of a run can run any task of the program. So the server has a list of
//! permissions (see `pool_nats::guide`), and server and clients show each other certificates.
//!
//! The nodes are this same program, started with `POOL_NODE` in its environment: they never reach `main`. On real
//! machines a server is already running, and the nodes are started with ssh, Slurm, Kubernetes or systemd: see
//! `pool_nats::guide`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use pool_core::{Pool, pool_task};
use pool_nats::async_nats::ConnectOptions;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;
use walkdir::WalkDir;

/// Counts the words of all files below a directory, on a cluster that loses a node.
#[derive(Parser)]
struct Options {
    /// The directory to count
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The server program
    #[arg(long, env = "NATS_SERVER_BIN", default_value = "nats-server")]
    server: PathBuf,
}

type Words = HashMap<String, u64>;

#[pool_task]
fn count_words(files: &[PathBuf]) -> Words {
    let mut words = Words::new();
    for file in files {
        // A file that is not text has no words.
        let text = fs::read_to_string(file).unwrap_or_default().to_lowercase();
        for word in text.split(|c: char| !c.is_alphabetic()) {
            if !word.is_empty() {
                *words.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    words
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let files = WalkDir::new(&options.path).into_iter();
    let files = files.filter_map(|entry| Some(entry.ok()?.into_path()));
    let files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
    let batches: Vec<&[PathBuf]> = files.chunks(20).collect();
    println!("{} files in {} batches", files.len(), batches.len());

    let server = Server::start(&options.server)?;
    let mut nodes = [server.node()?, server.node()?];
    let backend = pool_nats::connect(&server.url)?.run("nightly").nodes(2);
    let backend = backend.options(server.options());
    let pool = Pool::builder().backend(backend).build()?;
    println!("{} workers on {} nodes", pool.processes(), nodes.len());

    let start = Instant::now();
    let mut words = Words::new();
    // Counting twice does no harm, so inputs that a lost node had begun may run again.
    let call = pool.task(count_words).by_ref().retries(2);
    for (done, counted) in call.imap_unordered(batches.iter().copied()).enumerate() {
        for (word, count) in counted? {
            *words.entry(word).or_default() += count;
        }
        if done == batches.len() / 3 {
            println!("a third is done: killing node {}", nodes[0].0.id());
            nodes[0].0.kill()?;
        }
    }
    println!("counted in {:.2?} on the cluster", start.elapsed());
    drop(pool);
    nodes[1].0.wait()?;

    let start = Instant::now();
    let expected = count_words(&files);
    println!("counted in {:.2?} in one thread", start.elapsed());
    let mut most: Vec<_> = words.iter().collect();
    most.sort_by_key(|&(word, count)| (Reverse(count), word));
    for (word, count) in most.iter().take(10) {
        println!("{count:>10} {word}");
    }
    if words != expected {
        return Err("THE COUNTS DIFFER".into());
    }
    println!("the counts are the same");
    Ok(())
}

/// The configuration of the guide; the passwords and the port are replaced.
const CONFIGURATION: &str = include_str!("../src/server.conf");

/// A server, and the directory with everything that it and its users need.
struct Server {
    _process: Process,
    directory: TempDir,
    url: String,
    password: String,
}

impl Server {
    fn start(program: &Path) -> Result<Server, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let at = |file: &str| directory.path().join(file);
        make_certificates(directory.path())?;
        let password = format!("{:032x}", fastrand::u128(..));
        let quoted = |file: &str| format!("\"{}\"", at(file).display());
        let configuration = CONFIGURATION
            .replace("0.0.0.0:4222", "127.0.0.1:-1")
            .replace("change me too", &password)
            .replace("change me", &password)
            .replace("\"/var/lib/nats\"", &quoted("jetstream"))
            .replace("\"server.pem\"", &quoted("server.pem"))
            .replace("\"server-key.pem\"", &quoted("server-key.pem"))
            .replace("\"ca.pem\"", &quoted("ca.pem"));
        fs::write(at("server.conf"), configuration)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(at("server.conf"));
        command.arg("--ports_file_dir").arg(directory.path());
        let process = match command.stderr(Stdio::null()).spawn() {
            Ok(process) => Process(process),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("there is no nats-server: install the package `nats-server`, or give its path with --server".into());
            }
            Err(error) => return Err(error.into()),
        };
        let ports = at(&format!("nats-server_{}.ports", process.0.id()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let told = fs::read_to_string(&ports).unwrap_or_default();
            let mut texts = told.split('"');
            if let Some(port) = texts.find_map(|text| text.strip_prefix("tls://127.0.0.1:")) {
                return Ok(Server {
                    url: format!("tls://127.0.0.1:{port}"),
                    _process: process,
                    directory,
                    password,
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("the server did not start".into())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The credentials of the parent.
    fn options(&self) -> ConnectOptions {
        ConnectOptions::new()
            .user_and_password("parent".to_owned(), self.password.clone())
            .add_root_certificates(self.file("ca.pem"))
            .add_client_certificate(self.file("client.pem"), self.file("client-key.pem"))
    }

    /// Starts this program again, as a node, which finds its credentials in its environment.
    fn node(&self) -> io::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env("POOL_NODE", format!("{}/nightly", self.url))
            .env("NATS_USER", "node")
            .env("NATS_PASSWORD", &self.password)
            .env("NATS_CA", self.file("ca.pem"))
            .env("NATS_CERT", self.file("client.pem"))
            .env("NATS_KEY", self.file("client-key.pem"));
        command.spawn().map(Process)
    }
}

/// Creates an authority that only this run trusts, and certificates for the server and its clients.
fn make_certificates(directory: &Path) -> Result<(), Box<dyn Error>> {
    let key = KeyPair::generate()?;
    let mut authority = CertificateParams::new([])?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(directory.join("ca.pem"), authority.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(authority, key);
    for name in ["server", "client"] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        let certificate = params.signed_by(&key, &issuer)?;
        fs::write(directory.join(format!("{name}.pem")), certificate.pem())?;
        let file = directory.join(format!("{name}-key.pem"));
        fs::write(file, key.serialize_pem())?;
    }
    Ok(())
}

/// A process that is killed on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
