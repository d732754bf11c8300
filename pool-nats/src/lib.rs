//! The pool on many machines: a backend of [`pool_core`] over [NATS](https://nats.io) JetStream.
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
//! It never reaches `main`. It joins the run, or waits for it, and runs its inputs in worker processes of its own, as a pool
//! of that machine would: `POOL_NODE_PROCESSES` of them (default: what [`processes`](pool_core::PoolBuilder::processes) says, or as
//! many as there are CPUs for it). Nodes may come and go at any time. A node ends when the run ends, 15 seconds after the parent was
//! heard last, or when the server has been away 15 seconds longer than the pool waits for it; at SIGTERM it finishes what runs
//! within the pool's [`grace`](pool_core::PoolBuilder::grace), and gives back the rest. What it has to say goes to its standard error,
//! one line for each event.
//!
//! [`guide`] says how to run it by ssh, Slurm, Kubernetes or systemd, and what it costs.
//!
//! # What is promised
//!
//! - One outcome for each input, whatever becomes of nodes. An input is run once at the most, unless
//!   [`retries`](pool_core::Call::retries) allow more.
//! - When a node is lost, what it had begun is [`Error::WorkerLost`] with the name of its host, or is run
//!   again; the rest runs elsewhere. A node that was killed is seen within a second, one that is silent within three. Inputs go to
//!   nodes in loads of some milliseconds, and a load that was begun counts as begun as a whole.
//! - `terminate` and a cancellation are messages: their outcomes are there soon, and until a node hears of it, it begins what it has.
//! - What tasks send into a [`channel`](pool_core::channel()) arrives in order, once, and before their outcome. The parent takes it from a node
//!   while less than a MiB of that is unread. What finalizers send, and what was on its way at `terminate` or when its node was lost, is
//!   lost.
//! - A [`priority`](pool_core::Call::priority) counts among the inputs that no node has begun, or is about to begin.
//! - The server may be restarted: the pool waits for it, [`server_timeout`](Nats::server_timeout) long. After that everything
//!   open is [`Error::Broken`].
//! - At the end of a run the stream and the object store, `pool_RUN` and `OBJ_pool_RUN`, are deleted; by the nodes, if the
//!   parent was killed.
//!
//! # Connections
//!
//! A user and password, or a token, may stand in the URL. Everything else is said by the variables of the environment that the
//! command `nats` knows, for nodes and, if it has no [`options`](Nats::options), for the parent: `NATS_USER` and
//! `NATS_PASSWORD`, `NATS_TOKEN`, `NATS_CREDS` and `NATS_NKEY` (files), `NATS_CA`, `NATS_CERT` and `NATS_KEY` (files in PEM
//! format), `NATS_INBOX_PREFIX`.
//!
//! # Security
//!
//! **Who may publish to the subjects of a run (`pool.RUN.>`) may run any task that is registered in the program, with any
//! arguments, on every node.** Ask for authentication on the server, give the users of a run permissions for
//! [its subjects alone](guide#who-may-do-what), and use TLS between hosts.

mod book;
pub mod guide;
mod link;
mod node;
mod parent;
mod relay;
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

/// A pool whose workers are nodes, found through a NATS server; made by [`connect`]. Nothing is connected before
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

/// A pool over the server at this URL: `nats://host:4222`, `nats://user:password@host`, `tls://host`.
///
/// # Errors
///
/// [`Error::InvalidSetting`] if it is no such URL.
pub fn connect(url: &str) -> Result<Nats, Error> {
    let (url, _) = Url::parse(url).ok_or_else(|| {
        Error::invalid_setting("connect", "a URL is expected, such as `nats://host:4222`")
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
    /// The name of the run, by which nodes find it: letters, digits, `-` and `_`.
    ///
    /// Default: a random one; see [`run_name`](Nats::run_name).
    pub fn run(mut self, name: &str) -> Nats {
        name.clone_into(&mut self.run);
        self
    }

    /// The name of the run.
    pub fn run_name(&self) -> &str {
        &self.run
    }

    /// [`build`](pool_core::PoolBuilder::build) waits until so many nodes have joined, no longer than
    /// [`start_timeout`](pool_core::PoolBuilder::start_timeout).
    ///
    /// Default: 1. 0: it waits for none.
    pub fn nodes(mut self, nodes: usize) -> Nats {
        self.nodes = nodes;
        self
    }

    /// How to connect: credentials, NKeys, TLS, as async-nats has them. What is in the URL is used as well. Of these options the
    /// name, the timeout of requests, the interval of pings, the delay of reconnects and the callback for events are the pool's own.
    ///
    /// Default: what the variables of the environment say that the command `nats` knows, as [nodes](crate#connections) do.
    pub fn options(mut self, options: ConnectOptions) -> Nats {
        self.options = Some(options);
        self
    }

    /// How long the server may be away, or take nothing, until the pool is [`Error::Broken`].
    ///
    /// Default: 60 seconds.
    pub fn server_timeout(mut self, timeout: Duration) -> Nats {
        self.server_timeout = timeout;
        self
    }

    /// As soon as inputs that are on the server, in its stream and its object store, have so many bytes together, no more are sent until
    /// nodes have done some; the others wait in the parent. The load that reaches it may pass it. What tasks share is not counted, nor
    /// are results, which the parent takes from the server as they come.
    ///
    /// Default: 1 GiB. (No more than three loads for each worker are there in any case: some milliseconds of work each.)
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
                "a name consists of letters, digits, `-` and `_`",
            ));
        }
        if self.server_timeout.is_zero() {
            return Err(Error::invalid_setting(
                "server_timeout",
                "every server is away for a moment",
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

/// Where the server is, and who asks.
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
    /// The server, and the path behind it.
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

    /// These options, with what is in the URL.
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
        // A password is not for logs.
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
