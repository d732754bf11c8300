//! Each pool is its own run on a NATS server, with one node, which is this test program, started again.

use std::env;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use pool_core::Error;
use pool_core::backend::{Backend, Settings, Workers};

/// The URL of the server.
#[derive(Debug)]
pub(crate) struct Nats(pub(crate) String);

impl Backend for Nats {
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
        let nats = pool_nats::connect(&self.0)?;
        let processes = settings.workers.unwrap_or(2);
        let mut node = Command::new(env::current_exe().expect("this program"))
            .env("POOL_NODE", format!("{}/{}", self.0, nats.run_name()))
            .env("POOL_NODE_PROCESSES", processes.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the node starts");
        let started = Box::new(nats).start(settings);
        if started.is_err() {
            node.kill().expect("it is ours");
        }
        // It ends with the run.
        thread::spawn(move || node.wait());
        started
    }
}
