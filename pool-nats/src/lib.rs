//! A backend of [`pool_core`] that runs the pool on many machines, over [NATS](https://nats.io) JetStream.
//!
//! ```no_run
//! use pool_core::{Pool, pool_task};
//!
//! #[pool_task]
//! fn square(x: u64) -> u64 { x * x }
//!
//! fn main() -> Result<(), pool_core::Error> {
//!     let backend = pool_nats::connect("nats://head:4222")?.run("nightly");
//!     let pool = Pool::builder().backend(backend).build()?;
//!     assert_eq!(pool.map(square, 0..4)?, [0, 1, 4, 9]);
//!     Ok(())
//! }
//! ```
//!
//! The same program, started on any host as a *node*, runs the tasks:
//!
//! ```text
//! POOL_NODE=nats://head:4222/nightly ./app
//! ```
//!
//! A node never reaches `main`. It joins the run, waiting for it if necessary, and runs inputs in its own worker
//! processes, as a pool on that machine would. `POOL_NODE_PROCESSES` sets the number of workers (default: the pool's
//! [`processes`](pool_core::PoolBuilder::processes) setting, or else the number of CPUs that the node may use). Nodes
//! may come and go at any time. A node ends when the run ends, when it has not heard from the parent for 15 seconds, or
//! when it has lost the server for [`server_timeout`](Nats::server_timeout) plus 15 seconds. On SIGTERM it finishes the
//! running inputs, within the pool's [`grace`](pool_core::PoolBuilder::grace) period, and gives back the rest. It logs
//! to standard error, one line per event.
//!
//! The [`guide`] shows how to run nodes with ssh, Slurm, Kubernetes or systemd, and gives performance figures.
//!
//! # Guarantees
//!
//! - Each input gets exactly one outcome, whatever happens to the nodes. An input runs at most once, unless
//!   [`retries`](pool_core::Call::retries) allow more.
//! - When a node is lost, the inputs that it had begun fail with [`Error::WorkerLost`], which names the host, or are
//!   retried; the other inputs run elsewhere. A killed node is noticed within a second, a silent one within three.
//!   Inputs are sent to nodes in loads of a few milliseconds of work; once a load has begun, all of its inputs count as
//!   begun.
//! - `terminate` and cancellation give the inputs their outcomes promptly, but reach the nodes as messages: until then
//!   a node may still begin inputs that it has already received.
//! - Messages that tasks send into a [`channel`](pool_core::channel()) arrive in order, once, and before the outcome of
//!   the input that sent them. The parent stops taking messages from a node for a channel while 1 MiB or more is
//!   unread. Messages that finalizers send, and messages in transit at `terminate` or when the node is lost, are lost.
//! - A [`priority`](pool_core::Call::priority) affects only the inputs that no node has begun or is about to begin.
//! - The server may be restarted: the pool waits for it for up to [`server_timeout`](Nats::server_timeout). After that,
//!   all open calls fail with [`Error::Broken`].
//! - At the end of a run, its stream `pool_RUN` and its object store `OBJ_pool_RUN` are deleted; if the parent was
//!   killed, the nodes delete them.
//!
//! # Output, logs, events and statistics
//!
//! What the workers of nodes print (with [`Output::lines`](pool_core::Output::lines)), log and do reaches the parent as from
//! workers of its own, with the name of the node's host, and before the outcome of the input that it belongs to, unless the
//! parent is too slow for it.
//!
//! - Results never wait for it. It is sent once. If the parent or the connection is too slow, nodes drop lines and events,
//!   and count them ([`Event::Missed`](pool_core::Event::Missed)), and log records, of which the subscriber is warned. A
//!   server that is killed, and a node that is lost, may take some along.
//! - Times of events and timelines are those of the parent's clock. They are exact to half of the fastest round trip of a
//!   message between node and parent.
//! - If a node is lost, the parent tells at once that its workers died, and which inputs were lost with them.
//! - [`Pool::stats`](pool_core::Pool::stats) asks the nodes, and waits for their answers for up to 100 ms; from a node that
//!   does not answer, it shows what that node told last. The outcomes of inputs are counted in the parent. The number of
//!   runs and their times come from the nodes, so those of the last second before a node was lost are missing.
//!   `waiting_times` are those on the node. The workers of nodes that have left are not shown.
//! - [`Progress::running`](pool_core::Progress::running) counts one input for each worker of a node, as far as the loads of
//!   the call that the node has begun suffice.
//! - After `close`, [`join`](pool_core::Pool::join) waits until the workers of the nodes have ended: up to 3 seconds, or as
//!   long as [finalizers](pool_core::PoolBuilder::finalizer) may take.
//!
//! # Connections
//!
//! The URL may contain a user and password, or a token. Everything else comes from the environment variables of the
//! `nats` command-line tool: `NATS_USER` and `NATS_PASSWORD`, `NATS_TOKEN`, `NATS_CREDS` and `NATS_NKEY` (files),
//! `NATS_CA`, `NATS_CERT` and `NATS_KEY` (PEM files), `NATS_INBOX_PREFIX`. Nodes read them, and so does the parent,
//! unless it has been given [`options`](Nats::options).
//!
//! # Security
//!
//! **Anyone who may publish to the subjects of a run (`pool.RUN.>`) can run any task registered in the program, with
//! any arguments, on every node.** Require authentication on the server, give the users of a run permissions for
//! [its subjects only](guide#permissions), and use TLS between hosts.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod alive;
mod book;
mod clock;
pub mod guide;
mod link;
mod news;
mod node;
mod parent;
mod relay;
mod statistics;
mod store;
mod wire;

use std::sync::Arc;
use std::time::Duration;

pub use async_nats;
use async_nats::ConnectOptions;
use pool_core::Error;
use pool_core::backend::{Backend, Settings, Workers};

pool_core::node!("nats", node::run);
pool_core::node!("tls", node::run);

/// A backend whose workers run on nodes, found through a NATS server. Made by [`connect`]. It does not connect before
/// [`build`](pool_core::PoolBuilder::build).
#[derive(Debug)]
#[must_use = "a backend does nothing until a pool is built with it"]
pub struct Nats {
    url: Url,
    run: String,
    nodes: usize,
    options: Option<ConnectOptions>,
    server_timeout: Duration,
    max_bytes: usize,
}

/// Returns a backend that uses the NATS server at this URL: `nats://host:4222`, `nats://user:password@host` or
/// `tls://host`.
///
/// # Errors
///
/// [`Error::InvalidSetting`] if the URL is malformed or has another scheme.
pub fn connect(url: &str) -> Result<Nats, Error> {
    let (url, _) = Url::parse(url).ok_or_else(|| {
        Error::invalid_setting("connect", "must be a URL such as `nats://host:4222`")
    })?;
    Ok(Nats {
        url,
        run: format!("run-{}", nuid::next()),
        nodes: 1,
        options: None,
        server_timeout: Duration::from_secs(60),
        max_bytes: 1 << 30,
    })
}

impl Nats {
    /// Sets the name of the run, by which nodes find it. It may contain ASCII letters, digits, `-` and `_`.
    ///
    /// Default: a random name, which [`run_name`](Nats::run_name) returns.
    pub fn run(mut self, name: &str) -> Nats {
        name.clone_into(&mut self.run);
        self
    }

    /// Returns the name of the run.
    pub fn run_name(&self) -> &str {
        &self.run
    }

    /// Sets how many nodes must have joined before [`build`](pool_core::PoolBuilder::build) returns. It waits for
    /// [`start_timeout`](pool_core::PoolBuilder::start_timeout) at most, and then fails.
    ///
    /// Default: 1. With 0, `build` waits for no node.
    pub fn nodes(mut self, nodes: usize) -> Nats {
        self.nodes = nodes;
        self
    }

    /// Sets how to connect: credentials, NKeys, TLS, as in async-nats. Credentials in the URL are added. The pool
    /// itself sets the connection name, request timeout, ping interval, reconnect delay and event callback; yours are
    /// replaced.
    ///
    /// Default: the environment variables of the `nats` command-line tool, as for [nodes](crate#connections).
    pub fn options(mut self, options: ConnectOptions) -> Nats {
        self.options = Some(options);
        self
    }

    /// Sets how long the server may be unreachable, or refuse to store data, before the pool is [`Error::Broken`].
    ///
    /// Default: 60 seconds.
    pub fn server_timeout(mut self, timeout: Duration) -> Nats {
        self.server_timeout = timeout;
        self
    }

    /// Limits how many bytes of inputs are on the server at once, in its stream and its object store. When the limit is
    /// reached, no more are sent until nodes have finished some; the others wait in the parent. The last load sent may
    /// exceed the limit. Neither shared data nor results count; the parent takes results from the server as they
    /// arrive.
    ///
    /// Default: 1 GiB. (In any case, no more than three loads per worker are on the server, of a few milliseconds of
    /// work each.)
    pub fn max_bytes(mut self, bytes: usize) -> Nats {
        self.max_bytes = bytes;
        self
    }
}

impl Backend for Nats {
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
        if !is_name(&self.run) {
            return Err(Error::invalid_setting(
                "run",
                "must consist of letters, digits, `-` and `_`",
            ));
        }
        if self.server_timeout.is_zero() {
            return Err(Error::invalid_setting(
                "server_timeout",
                "must be greater than zero",
            ));
        }
        parent::start(*self, settings)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_')
}

/// Where the server is, and who connects.
#[derive(Clone)]
struct Url {
    /// `nats://host:port`.
    server: String,
    user: Option<(String, Option<String>)>,
}

impl std::fmt::Debug for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.server)
    }
}

impl Url {
    /// Parses a URL into the server and the path behind it.
    fn parse(url: &str) -> Option<(Url, &str)> {
        let (scheme, rest) = url.split_once("://")?;
        if !["nats", "tls"].contains(&scheme) {
            return None;
        }
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, host) = match place.rsplit_once('@') {
            None => (None, place),
            Some((user, host)) => {
                let user = match user.split_once(':') {
                    None => (user.to_owned(), None),
                    Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
                };
                (Some(user), host)
            }
        };
        if host.is_empty() {
            return None;
        }
        let server = format!("{scheme}://{host}");
        Some((Url { server, user }, path))
    }

    /// Adds the user in the URL to these options.
    fn options(&self, options: ConnectOptions) -> ConnectOptions {
        match &self.user {
            None => options,
            Some((token, None)) => options.token(token.clone()),
            Some((user, Some(password))) => {
                options.user_and_password(user.clone(), password.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let (url, path) = Url::parse("nats://head:4222/nightly").unwrap();
        assert_eq!((&*url.server, path), ("nats://head:4222", "nightly"));
        assert!(url.user.is_none());
        let (url, path) = Url::parse("tls://me:secret@head").unwrap();
        assert_eq!((&*url.server, path), ("tls://head", ""));
        assert_eq!(url.user, Some(("me".to_owned(), Some("secret".to_owned()))));
        let (url, _) = Url::parse("nats://token@[::1]:4222").unwrap();
        assert_eq!(url.server, "nats://[::1]:4222");
        assert_eq!(url.user, Some(("token".to_owned(), None)));
        for wrong in ["head:4222", "http://head", "nats://", "nats:///nightly"] {
            assert!(Url::parse(wrong).is_none(), "{wrong}");
            assert!(matches!(connect(wrong), Err(Error::InvalidSetting(_))));
        }
        // Passwords must not appear in logs.
        let (url, _) = Url::parse("nats://me:secret@head").unwrap();
        assert!(!format!("{url:?}").contains("secret"));
    }

    #[test]
    fn names_of_runs_are_checked() {
        for name in ["", "a.b", "a b", "*", "a>"] {
            let backend = connect("nats://127.0.0.1:1").unwrap().run(name);
            let built = pool_core::Pool::builder().backend(backend).build();
            let error = built.unwrap_err().to_string();
            assert!(error.contains("run"), "{error}");
        }
    }
}
