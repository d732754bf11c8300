//! A cluster on this machine: a NATS server, two nodes, and a count of words that survives the death of one of them.
//! `cluster [PATH]`.
//!
//! The nodes are this same program, started with `POOL_NODE` in its environment: they never reach `main`. On real machines a server
//! runs already, and the nodes are started there by ssh, Slurm, Kubernetes or systemd: see `pool_nats::guide`.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use pool_core::{Pool, pool_task};
use tempfile::TempDir;
use walkdir::WalkDir;

/// Counts the words of all files below a directory on a cluster, of which a part dies.
#[derive(Parser)]
struct Options {
    /// The directory
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The program of the server
    #[arg(long, env = "NATS_SERVER_BIN", default_value = "nats-server")]
    server: PathBuf,
}

type Words = HashMap<String, u64>;

#[pool_task]
fn count_words(files: &[PathBuf]) -> Words {
    let mut words = Words::new();
    for file in files {
        // What is no text has no words.
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
    let backend = pool_nats::connect(&server.url)?.run("cluster").nodes(2);
    let pool = Pool::builder().backend(backend).build()?;
    println!("{} workers on {} nodes", pool.processes(), nodes.len());

    let start = Instant::now();
    let mut words = Words::new();
    // Counting twice does no harm, so what a lost node had begun may run again.
    let call = pool.task(count_words).by_ref().retries(2);
    for (done, counted) in call.imap_unordered(batches.iter().copied()).enumerate() {
        for (word, count) in counted? {
            *words.entry(word).or_default() += count;
        }
        if done == batches.len() / 3 {
            println!("a third is done: node {} is killed", nodes[0].0.id());
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

/// A server on a port of its own.
struct Server {
    _process: Process,
    url: String,
    _directory: TempDir,
}

impl Server {
    fn start(program: &Path) -> Result<Server, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command.args(["-js", "-a", "127.0.0.1", "-p", "-1", "-sd"]);
        command.arg(directory.path()).arg("--ports_file_dir");
        command.arg(directory.path()).stderr(Stdio::null());
        let process = match command.spawn() {
            Ok(process) => Process(process),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("there is no nats-server: install the package `nats-server`, or say where it is with --server".into());
            }
            Err(error) => return Err(error.into()),
        };
        let ports = format!("nats-server_{}.ports", process.0.id());
        let ports = directory.path().join(ports);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let told = fs::read_to_string(&ports).unwrap_or_default();
            if let Some(url) = told.split('"').find(|text| text.starts_with("nats://")) {
                return Ok(Server {
                    url: url.to_owned(),
                    _process: process,
                    _directory: directory,
                });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("the server does not start".into())
    }

    /// This program again, as a node.
    fn node(&self) -> io::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env("POOL_NODE", format!("{}/cluster", self.url));
        command.spawn().map(Process)
    }
}

/// A process that ends with this one's interest in it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
