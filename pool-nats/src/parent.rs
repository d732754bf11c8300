//! The parent's side: a thread that owns the connection, and the [`Workers`] that callers of the pool see.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use async_nats::connection::State as Connection;
use async_nats::header::{self, HeaderMap};
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::object_store;
use async_nats::jetstream::stream::{self, RetentionPolicy, StorageType};
use async_nats::jetstream::{self};
use async_nats::{Client, Message, Request, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use pool_core::backend::{
    self, Attachment, Failure, Few, Frames, Job, JobId, LogRecords, News, Observer, Outcomes,
    Portion, Settings, Sink, Tallies, Waiter, Want, What, Workers,
};
use pool_core::{Error, Stats};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time;

use crate::alive::Alive;
use crate::book::{Action, Book};
use crate::link::{self, JETSTREAM, Link};
use crate::statistics::{Report, Statistics};
use crate::store::Store;
use crate::wire::{
    Answer, Body, Done, Join, Load, Object, PROTOCOL, Piece, Reference, Run, Sent, ToNodes,
    ToParent, Told, Took, Welcome, consumer, from_bytes, to_bytes,
};
use crate::{Nats, Url};

/// How often nodes are asked whether they are there.
const PING: Duration = Duration::from_millis(250);

/// If there is no answer after this time, the node is asked again. A later answer counts, too.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A node that was not heard for this long is declared lost.
const SILENCE: Duration = Duration::from_secs(3);

/// How often something is asked for once more if the server's answer is late.
const LATE_MAX: usize = 2;

/// How long nodes may take to reconnect after a lost connection.
const RECONNECT: Duration = Duration::from_secs(5);

/// The server gives a load to another node if the one that has it is silent for this long. Usually the parent notices
/// sooner.
const ACK_WAIT: Duration = Duration::from_secs(15);

/// How long a node that has joined but was not ready within the timeout may take to report the reason.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How long `stats` waits for the answers of nodes.
const STATS: Duration = Duration::from_millis(100);

/// The shortest time between two reports of how many inputs wait.
const SAMPLE: Duration = Duration::from_millis(2);

/// A channel takes no more from a node while this many bytes are unread.
const UNREAD_MAX: u64 = 1 << 20;

/// How long to wait for the nodes to end. If their workers run finalizers, it may be longer.
const GOODBYE: Duration = Duration::from_secs(3);

/// How long to wait for the end of the pool.
const END_MAX: Duration = Duration::from_secs(10);

/// Starts the connection, and waits until enough nodes have joined.
pub(crate) fn start(nats: Nats, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
    let (commands, received) = mpsc::unbounded_channel();
    let (tell, told) = std_mpsc::channel();
    let shared = Arc::new(Shared {
        began: Instant::now(),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let timeout = settings.start_timeout;
    let nodes = nats.nodes;
    let sender = commands.clone();
    let for_thread = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name("pool-nats".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    runtime.block_on(live(nats, settings, sender, received, &for_thread, &tell));
                }
                Err(error) => {
                    let _ = tell.send(Err(error.to_string()));
                }
            }
            for_thread.end();
        })
        .map_err(|error| {
            Error::start(format!(
                "can't start the thread for the connection: {error}"
            ))
        })?;
    let parent = Parent {
        owner: backend::lineage(),
        commands,
        shared,
        thread: Mutex::new(Some(thread)),
    };
    let mut seen = Joined::default();
    // A timeout that is too long to add means no deadline. Nodes have the same time to start their workers, and then
    // say what went wrong.
    let deadline = Instant::now().checked_add(timeout);
    let last = deadline.and_then(|deadline| deadline.checked_add(LAST_WORD));
    loop {
        let until = if seen.let_in > seen.ready {
            last
        } else {
            deadline
        };
        let left = until.map_or(timeout, |until| {
            until.saturating_duration_since(Instant::now())
        });
        match told.recv_timeout(left) {
            Ok(Ok(joined)) => {
                seen = joined;
                if seen.ready >= nodes {
                    return Ok(Arc::new(parent));
                }
            }
            Ok(Err(why)) => return Err(Error::start(why)),
            Err(_) => {
                let Joined { ready, let_in } = seen;
                let others = match let_in.saturating_sub(ready) {
                    0 => "start this program with POOL_NODE in its environment".to_owned(),
                    others => format!("{others} more joined, but their workers were not ready"),
                };
                return Err(Error::start(format!(
                    "{ready} of {nodes} nodes were ready within {timeout:?}: {others}"
                )));
            }
        }
    }
}

/// How many nodes were let in, and how many of them are ready, with their workers.
#[derive(Debug, Default, Clone, Copy)]
struct Joined {
    let_in: usize,
    ready: usize,
}

/// What callers and the thread share.
#[derive(Debug)]
struct Shared {
    /// When the pool was started.
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    mode: Mode,
    /// Jobs that may get more inputs, and the thread that last pushed some.
    feeding: HashMap<JobId, ThreadId>,
    next: u64,
    workers: usize,
    hints: HashMap<u32, usize>,
    over: bool,
    statistics: Statistics,
    /// How many inputs of a job nodes run, for jobs that somebody asked about.
    running: HashMap<u64, usize>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Mode {
    #[default]
    Open,
    Closed,
    Terminated,
    Broken(String),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        {
            let mut state = self.lock();
            state.over = true;
            state.statistics.end();
        }
        self.changed.notify_all();
    }
}

/// An instruction to the thread.
enum Command {
    Submit {
        job: u64,
        what: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    },
    Push {
        job: u64,
        inputs: Few<Portion>,
        more: bool,
    },
    Cancel {
        job: u64,
        running: bool,
    },
    Close,
    Terminate,
    /// The mode is [`Broken`](Mode::Broken), for this reason: everything that came before fails.
    BreakDown(String),
    /// A load encoded for publication, and the objects that hold parts of it.
    Packed(u64, Bytes, Vec<Object>),
    /// The load has been published, or will not be.
    Published(u64),
    /// The load is too long to be published.
    Refused(u64, Failure),
    /// The stream of this epoch does not exist.
    Vanished(u64),
    /// The stream was recreated, or could not be, over this connection.
    Renewed {
        epoch: u64,
        connects: u64,
        made: bool,
    },
    /// The server does not do what a pool needs.
    Broken(String),
    /// The outcomes from a node's report, fetched from the object of this name.
    Fetched {
        name: String,
        node: String,
        load: u64,
        outcomes: Outcomes,
        each_ns: u64,
    },
    /// Channel messages of a node, fetched from the store if necessary. `messages` says where to send the answer.
    Gathered {
        messages: Incoming,
        bytes: Option<Vec<u8>>,
    },
    /// The result of asking a node whether it is there.
    Pinged(String, Ping),
    /// This attachment has no holders.
    Dropped(u64),
    /// A node that was leaving is gone.
    Ended(String),
    /// Asks the nodes for their statistics; questions are numbered.
    AskStats(u64),
}

/// The origin of messages of a node for a channel.
struct Incoming {
    node: String,
    channel: u64,
    number: u64,
    must: bool,
    reply: Option<Subject>,
}

/// What the parent knows of the messages of one node for one channel.
#[derive(Debug, Default)]
struct FromNode {
    /// The number of the last batch that was taken.
    taken: u64,
    /// The number of the batch that is being fetched; and where to send the answer, if the node has repeated it since: it
    /// no longer listens where it wanted the answer before.
    fetching: u64,
    reply: Option<Subject>,
    /// How many bytes are unread.
    unread: Arc<AtomicU64>,
}

enum Ping {
    Answered,
    /// No connection subscribes to the node's subject.
    Gone,
    /// It has not answered yet.
    Silent,
    /// It has answered, but was asked again meanwhile.
    Late,
}

struct Parent {
    /// The process that started the thread. A forked copy of that process has no thread.
    owner: u32,
    commands: UnboundedSender<Command>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Parent {
    fn is_ours(&self) -> bool {
        backend::lineage() == self.owner
    }
}

impl fmt::Debug for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parent").finish_non_exhaustive()
    }
}

fn number(job: JobId) -> u64 {
    u64::from(job.place) << 32 | u64::from(job.serial)
}

impl Workers for Parent {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error> {
        if !self.is_ours() {
            return Err(Error::Closed);
        }
        let mut state = self.shared.lock();
        match &state.mode {
            Mode::Open => {}
            Mode::Broken(why) => return Err(Error::broken(why)),
            Mode::Closed | Mode::Terminated => return Err(Error::Closed),
        }
        let id = JobId {
            place: (state.next >> 32) as u32,
            serial: state.next as u32,
        };
        state.next += 1;
        if more {
            state.feeding.insert(id, thread::current().id());
        }
        // Sent under the lock, so that nothing is submitted after a `terminate`.
        let _ = self.commands.send(Command::Submit {
            job: number(id),
            what: job,
            sink,
            inputs,
            more,
        });
        Ok(id)
    }

    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error> {
        if !self.is_ours() {
            return Err(Error::Closed);
        }
        let mut state = self.shared.lock();
        if !state.feeding.contains_key(&job) {
            return Err(match &state.mode {
                Mode::Terminated => Error::Terminated,
                Mode::Broken(why) => Error::broken(why),
                Mode::Open | Mode::Closed => Error::Cancelled,
            });
        }
        if more {
            state.feeding.insert(job, thread::current().id());
        } else {
            state.feeding.remove(&job);
        }
        let job = number(job);
        let _ = self.commands.send(Command::Push { job, inputs, more });
        Ok(())
    }

    fn wait(
        &self,
        _job: JobId,
        _want: Want,
        waiter: Waiter<'_>,
        deadline: Option<Instant>,
    ) -> bool {
        if !self.is_ours() {
            return waiter.is_over();
        }
        waiter.sleep(deadline)
    }

    fn cancel(&self, job: JobId, running: bool) {
        if !self.is_ours() {
            return;
        }
        let mut state = self.shared.lock();
        state.feeding.remove(&job);
        let job = number(job);
        let _ = self.commands.send(Command::Cancel { job, running });
    }

    fn confines(&self) -> bool {
        true
    }

    fn carries_channels(&self) -> bool {
        true
    }

    fn hint(&self, task: u32) -> usize {
        self.shared.lock().hints.get(&task).copied().unwrap_or(1)
    }

    fn close(&self) {
        if !self.is_ours() {
            return;
        }
        let mut state = self.shared.lock();
        if state.mode == Mode::Open {
            state.mode = Mode::Closed;
            let _ = self.commands.send(Command::Close);
        }
    }

    fn terminate(&self) {
        if !self.is_ours() {
            return;
        }
        let mut state = self.shared.lock();
        if matches!(state.mode, Mode::Open | Mode::Closed) {
            state.mode = Mode::Terminated;
            state.feeding.clear();
            let _ = self.commands.send(Command::Terminate);
        }
    }

    fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        if !self.is_ours() {
            return Ok(());
        }
        let mut state = self.shared.lock();
        loop {
            if state.over {
                return Ok(());
            }
            let this = thread::current().id();
            if state.mode == Mode::Open || state.feeding.values().any(|thread| *thread == this) {
                return Err(Error::StillOpen);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return Err(Error::Timeout),
                Some(left) => {
                    let waited = self.shared.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.shared.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
    }

    fn shut_down(&self) {
        if !self.is_ours() {
            return;
        }
        self.terminate();
        let joined = self.join(Some(Instant::now() + END_MAX));
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && joined.is_ok()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }

    fn count(&self) -> usize {
        self.shared.lock().workers.max(1)
    }

    fn running(&self, job: JobId) -> usize {
        if !self.is_ours() {
            return 0;
        }
        let mut state = self.shared.lock();
        // The thread keeps the number up to date from now on.
        *state.running.entry(number(job)).or_default()
    }

    fn stats(&self) -> Stats {
        if !self.is_ours() {
            return Stats::default();
        }
        let mut state = self.shared.lock();
        if let Some(question) = state.statistics.ask() {
            let _ = self.commands.send(Command::AskStats(question));
            let deadline = Instant::now() + STATS;
            while !state.statistics.is_answered(question) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.shared.changed.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        let statistics = state.statistics.clone();
        drop(state);
        statistics.stats(Instant::now(), self.shared.began.elapsed())
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.shut_down();
    }
}

type Tell = std_mpsc::Sender<Result<Joined, String>>;

/// The main function of the thread.
async fn live(
    mut nats: Nats,
    settings: Settings,
    sender: UnboundedSender<Command>,
    commands: UnboundedReceiver<Command>,
    shared: &Shared,
    tell: &Tell,
) {
    let timeout = settings.start_timeout;
    let late = || format!("the server did not answer within {timeout:?}");
    let connected = link::connect(&nats.url, nats.options.take(), "pool");
    let link = match time::timeout(timeout, connected).await {
        Ok(Ok(link)) => link,
        Ok(Err(refused)) => return drop(tell.send(Err(refused.into_text()))),
        Err(_) => return drop(tell.send(Err(late()))),
    };
    let Link { client, mut denied } = link;
    let mut jetstream = jetstream::new(client.clone());
    jetstream.set_timeout(JETSTREAM);
    let (url, run) = (nats.url.clone(), Run(nats.run.clone()));
    let made = Cell::new(false);
    let set_up = Thread::set_up(
        client,
        jetstream.clone(),
        nats,
        settings,
        &made,
        sender,
        shared,
        tell,
    );
    let begun = tokio::select! {
        begun = time::timeout(timeout, set_up) => begun.unwrap_or_else(|_| Err(late())),
        Some(why) = denied.recv() => Err(link::not_allowed(&url, &why)),
    };
    match begun {
        Ok((mut thread, mut said)) => {
            let _ = tell.send(Ok(Joined::default()));
            thread.run(commands, denied, &mut said).await;
            let most = thread.goodbye + GOODBYE;
            let _ = time::timeout(most, thread.tidy_up(&mut said)).await;
        }
        Err(why) => {
            let _ = tell.send(Err(why));
            if made.get() {
                let _ = time::timeout(GOODBYE, delete(&jetstream, &run)).await;
            }
        }
    }
}

/// Creates something on the server's disk. The server removes its directory when the last stream in there is deleted, and what
/// is created at that moment, for another run, fails.
async fn retry<T, E>(mut create: impl AsyncFnMut() -> Result<T, E>) -> Result<T, E> {
    for pause in [20, 100].map(Duration::from_millis) {
        match create().await {
            Ok(created) => return Ok(created),
            Err(_) => time::sleep(pause).await,
        }
    }
    create().await
}

/// Deletes everything on the server that belongs to a run.
async fn delete(jetstream: &jetstream::Context, run: &Run) {
    let _ = jetstream.delete_stream(run.store()).await;
    let _ = jetstream.delete_object_store(run.store()).await;
}

/// What the thread knows of a node.
#[derive(Debug)]
struct Seen {
    /// When it was last heard, by the thread's own clock.
    last: Duration,
    gone: u32,
    asked: bool,
}

/// What a node has told.
#[derive(Debug, Default)]
struct Teller {
    /// The ends of what its workers log, in case it can't say so itself.
    log_ends: HashSet<LogRecords>,
    /// What ends if it is lost.
    alive: Alive,
    /// How many inputs wait in its pool.
    inputs: usize,
}

struct Thread<'a> {
    url: Url,
    client: Client,
    jetstream: jetstream::Context,
    run: Run,
    store: Store,
    /// What nodes are told when they join.
    settings: Body,
    attachments: Vec<Reference>,
    /// The attachments themselves, since a channel lives only while it has a holder.
    #[expect(dead_code, reason = "its drop is its use")]
    held: Vec<Arc<Attachment>>,
    /// How often the stream was recreated; and whether it must be again, because the server was unreachable or the stream was
    /// deleted.
    epoch: u64,
    is_old: bool,
    is_renewing: bool,
    book: Book,
    /// The task of each job, and the sink.
    sinks: HashMap<u64, (u32, Arc<dyn Sink>)>,
    seen: HashMap<String, Seen>,
    /// How long the thread has been watching its nodes. This clock stops while the process is stopped or the server is
    /// idle: nodes are not to blame for that.
    watched: Duration,
    looked: Instant,
    /// Whether the thread's message to itself came back through the server since the last look.
    echoed: bool,
    /// Loads with pieces in the store, and the objects that hold them; and such loads as encoded, in case they are
    /// published again.
    stored: HashMap<u64, Vec<Object>>,
    packed: HashMap<u64, Bytes>,
    /// Loads that are being published.
    publishing: HashSet<u64>,
    /// The names of results that are being fetched, and the nodes that sent them.
    fetching: HashMap<String, String>,
    /// What is known of channel messages, by node and channel.
    messages: HashMap<(String, u64), FromNode>,
    /// The nodes that have asked to join and are not lost.
    let_in: HashSet<String>,
    /// Receives news.
    observer: Option<Arc<dyn Observer>>,
    /// What was told by the nodes whose news is taken.
    tellers: HashMap<String, Teller>,
    /// Whether the observer wants to know how many inputs wait; when it was last told, and the number.
    samples: bool,
    sampled: (Duration, usize),
    /// When the pool was started.
    began: Instant,
    /// The nodes that take no more loads, but may still have workers.
    leaving: HashSet<String>,
    /// Nodes that were lost while their results were being fetched, and why.
    lost_later: HashMap<String, String>,
    sender: UnboundedSender<Command>,
    shared: &'a Shared,
    tell: &'a Tell,
    joined: Joined,
    server_timeout: Duration,
    /// `Ok`: since when there has been a connection again, if it was lost. `Err`: since when there has been none.
    connected: Result<Option<Instant>, Instant>,
    /// How many connections there have been.
    connects: u64,
    closing: bool,
    over: bool,
    /// How long to wait for the nodes to end after `close`.
    goodbye: Duration,
}

impl<'a> Thread<'a> {
    #[expect(clippy::too_many_arguments, reason = "one place calls it")]
    async fn set_up(
        client: Client,
        jetstream: jetstream::Context,
        nats: Nats,
        settings: Settings,
        made: &Cell<bool>,
        sender: UnboundedSender<Command>,
        shared: &'a Shared,
        tell: &'a Tell,
    ) -> Result<(Thread<'a>, Subscriber), String> {
        let server = nats.url.server.clone();
        let info = client.server_info();
        if !info.auth_required && !is_here(&info.host, &server) {
            tracing::warn!(
                server,
                "the NATS server requires no authentication: anyone who can reach it can run any task of this program"
            );
        }
        let run = Run(nats.run);
        let mut late = 0;
        let taken = loop {
            match client.request(run.parent(), Bytes::new()).await {
                Err(error) if error.kind() == RequestErrorKind::TimedOut && late < LATE_MAX => {
                    late += 1;
                }
                taken => break taken,
            }
        };
        match taken {
            Ok(_) => {
                return Err(format!(
                    "a pool named `{}` is already running on {server}",
                    run.0
                ));
            }
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {}
            Err(error) => {
                return Err(format!(
                    "{server}: can't tell whether a pool named `{}` is already running: {error}",
                    run.0
                ));
            }
        }
        let no = |what: &str, error: &dyn fmt::Display| {
            format!("{server}: {what} `{}`: {error}", run.store())
        };
        delete(&jetstream, &run).await;
        made.set(true);
        make_stream(&jetstream, &run, 0)
            .await
            .map_err(|error| format!("{server}: {error}"))?;
        let config = || object_store::Config {
            bucket: run.store(),
            ..object_store::Config::default()
        };
        retry(async || jetstream.create_object_store(config()).await)
            .await
            .map_err(|error| no("can't create the object store", &error))?;
        let store = Store::new(
            client.clone(),
            jetstream.clone(),
            run.store(),
            nats.server_timeout,
            0,
        );
        let store = store.await.map_err(|error| format!("{server}: {error}"))?;
        let said = client.subscribe(run.parent()).await;
        let said = said
            .map_err(|error| format!("{server}: can't subscribe to {}: {error}", run.parent()))?;
        let mut attachments = Vec::new();
        let mut held = Vec::new();
        let mut ids = HashSet::new();
        let preparations = settings.preparations();
        for attachment in preparations.flat_map(|preparation| &preparation.attachments) {
            if ids.insert(attachment.id()) {
                let shared = store.share(attachment, |_| ()).await;
                attachments.push(shared.map_err(|error| format!("{server}: {error}"))?);
                held.push(Arc::clone(attachment));
            }
        }
        let failed = |error: io::Error| format!("{server}: {error}");
        let observer = settings.observer.clone();
        let samples = settings.observe.spans;
        let goodbye = match settings.finalizers.is_empty() {
            true => GOODBYE,
            false => GOODBYE.max(settings.leave_max()),
        };
        let told = to_bytes(&settings);
        let mut room = store.room();
        let told = store.pack(told, &mut room, || "settings".to_owned());
        let settings = told.await.map_err(failed)?;
        let connects = link::connects(&client);
        let thread = Thread {
            url: nats.url,
            client,
            jetstream,
            run,
            store,
            settings,
            attachments,
            held,
            epoch: 0,
            is_old: false,
            is_renewing: false,
            book: Book::new(nats.max_bytes),
            sinks: HashMap::new(),
            seen: HashMap::new(),
            watched: Duration::ZERO,
            looked: Instant::now(),
            echoed: true,
            stored: HashMap::new(),
            packed: HashMap::new(),
            publishing: HashSet::new(),
            fetching: HashMap::new(),
            messages: HashMap::new(),
            let_in: HashSet::new(),
            observer,
            tellers: HashMap::new(),
            samples,
            sampled: (Duration::ZERO, 0),
            began: shared.began,
            leaving: HashSet::new(),
            lost_later: HashMap::new(),
            sender,
            shared,
            tell,
            joined: Joined::default(),
            server_timeout: nats.server_timeout,
            connected: Ok(None),
            connects,
            closing: false,
            over: false,
            goodbye,
        };
        Ok((thread, said))
    }

    async fn run(
        &mut self,
        mut commands: UnboundedReceiver<Command>,
        mut denied: UnboundedReceiver<String>,
        said: &mut Subscriber,
    ) {
        let mut tick = time::interval(PING);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut ticks = 0_u32;
        while !self.over {
            tokio::select! {
                Some(command) = commands.recv() => {
                    self.command(command).await;
                    // Handle commands that arrived together before acting on them.
                    for _ in 0..256 {
                        let Ok(command) = commands.try_recv() else { break };
                        self.command(command).await;
                    }
                }
                Some(message) = said.next() => self.hear(message).await,
                Some(why) = denied.recv() => {
                    let why = link::not_allowed(&self.url, &why);
                    self.break_down(&why);
                }
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.look(ticks).await;
                }
            }
            self.act().await;
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit {
                job,
                what,
                sink,
                inputs,
                more,
            } => {
                self.sinks.insert(job, (what.task, sink));
                self.book.submit(job, what);
                self.book.push(job, inputs.into_iter(), more);
            }
            Command::Push { job, inputs, more } => self.book.push(job, inputs.into_iter(), more),
            Command::Cancel { job, running } => {
                self.book.cancel(job, running.then_some(Failure::Cancelled));
                let (client, subject) = (self.client.clone(), self.run.nodes());
                let cancel = to_bytes(&ToNodes::Cancel { job, running });
                // This may wait for the server, and must not delay what comes before it.
                tokio::spawn(async move { client.publish(subject, cancel.into()).await });
            }
            Command::Close => self.closing = true,
            Command::Terminate => {
                self.book.end(&Failure::Terminated);
                self.closing = true;
            }
            Command::BreakDown(why) => {
                self.book.end(&Failure::Broken(why));
                self.closing = true;
            }
            Command::Packed(load, bytes, mut objects) if self.book.has_load(load) => {
                self.packed.insert(load, bytes);
                self.stored.entry(load).or_default().append(&mut objects);
            }
            Command::Packed(_, _, objects) => self.delete(objects),
            Command::Published(load) => {
                self.publishing.remove(&load);
            }
            Command::Refused(load, failure) => self.book.refused(load, failure),
            Command::Renewed {
                epoch,
                connects,
                made,
            } => self.renewed(epoch, connects, made).await,
            Command::Vanished(epoch) => self.is_old |= epoch == self.epoch,
            Command::Broken(why) => self.break_down(&why),
            Command::Fetched {
                name,
                node,
                load,
                outcomes,
                each_ns,
            } => {
                self.answered(&node, load, outcomes, each_ns);
                self.fetching.remove(&name);
                if !self.fetching.values().any(|other| *other == node)
                    && let Some(why) = self.lost_later.remove(&node)
                {
                    self.lose(&node, &why);
                }
            }
            Command::Gathered {
                mut messages,
                bytes,
            } => {
                let key = (messages.node.clone(), messages.channel);
                if let Some(known) = self.messages.get_mut(&key)
                    && known.fetching == messages.number
                    && let Some(latest) = known.reply.take()
                {
                    messages.reply = Some(latest);
                }
                self.gathered(messages, bytes).await;
            }
            Command::Ended(node) => self.ended(&node),
            Command::AskStats(question) => {
                let (client, subject) = (self.client.clone(), self.run.nodes());
                let ask = to_bytes(&ToNodes::AskStats(question));
                tokio::spawn(async move { client.publish(subject, ask.into()).await });
            }
            Command::Pinged(node, ping) => self.pinged(&node, &ping).await,
            Command::Dropped(id) => {
                self.messages.retain(|(_, channel), _| *channel != id);
                let (client, subject) = (self.client.clone(), self.run.nodes());
                let store = self.store.clone();
                tokio::spawn(async move {
                    store.forget(id).await;
                    let forget = to_bytes(&ToNodes::Forget(id));
                    let _ = client.publish(subject, forget.into()).await;
                });
            }
        }
    }

    async fn tell_nodes(&self, what: &ToNodes) {
        let _ = self
            .client
            .publish(self.run.nodes(), to_bytes(what).into())
            .await;
    }

    /// Carries out the decisions of the book.
    async fn act(&mut self) {
        let actions = self.book.actions();
        for action in actions {
            match action {
                Action::Publish {
                    load,
                    job,
                    what,
                    pieces,
                } => self.publish(load, job, what, pieces),
                Action::Deliver { job, outcomes } => {
                    if let Some((task, sink)) = self.sinks.get(&job) {
                        self.shared.lock().statistics.count(*task, &outcomes);
                        Arc::clone(sink).deliver(outcomes);
                    }
                }
                Action::Over(job) => {
                    self.sinks.remove(&job);
                }
                Action::Forget(load) => {
                    self.packed.remove(&load);
                    if let Some(objects) = self.stored.remove(&load) {
                        self.delete(objects);
                    }
                }
                // A server that is unreachable gets a new stream when it is back.
                Action::Acknowledge(_) if self.connected.is_err() => {}
                Action::Acknowledge(ack) => {
                    let _ = self.client.publish(ack, "+ACK".into()).await;
                }
            }
        }
        self.tell_what_waits();
        self.tell_what_runs();
        if self.closing && !self.book.has_jobs() && self.sinks.is_empty() {
            self.over = true;
        }
    }

    /// Tells callers how many inputs wait and run.
    fn tell_what_runs(&self) {
        let mut state = self.shared.lock();
        state.statistics.set_queued(self.book.queued());
        state.running.retain(|job, running| {
            *running = self.book.running(*job);
            self.book.is_wanted(*job)
        });
    }

    /// Deletes objects that are no longer needed.
    fn delete(&self, objects: Vec<Object>) {
        let store = self.store.clone();
        tokio::spawn(async move {
            for object in objects {
                store.delete(&object).await;
            }
        });
    }

    fn publish(&mut self, number: u64, job: u64, what: Job, portions: Vec<Portion>) {
        if !self.publishing.insert(number) {
            return;
        }
        let (store, jetstream) = (self.store.clone(), self.jetstream.clone());
        let (client, subject) = (self.client.clone(), self.run.work());
        let (sender, patience) = (self.sender.clone(), self.server_timeout);
        let epoch = self.epoch;
        let packed = self.packed.get(&number).cloned();
        tokio::spawn(async move {
            let vanished = || drop(sender.send(Command::Vanished(epoch)));
            let published = async {
                let load = match packed {
                    Some(load) => load,
                    None => pack(&store, &sender, number, job, what, portions).await?,
                };
                send(&client, &jetstream, &subject, load, patience, vanished).await
            };
            let failed = match published.await {
                Ok(()) => None,
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Some(
                    Command::Refused(number, Failure::EncodeArguments(error.to_string())),
                ),
                Err(error) => Some(Command::Broken(error.to_string())),
            };
            let _ = sender.send(Command::Published(number));
            if let Some(failed) = failed {
                let _ = sender.send(failed);
            }
        });
    }

    async fn hear(&mut self, message: Message) {
        let Some(said) = from_bytes::<ToParent>(&message.payload) else {
            if message.payload.is_empty() {
                // Another parent asks whether the name is taken.
                self.answer(&message, "here".into()).await;
            }
            return;
        };
        match said {
            ToParent::Join(join) => {
                let answer = match differs(&join) {
                    None => {
                        self.joined.let_in += 1;
                        self.tellers.entry(join.node.id.clone()).or_default();
                        self.let_in.insert(join.node.id);
                        let _ = self.tell.send(Ok(self.joined));
                        self.welcome()
                    }
                    Some(why) => {
                        tracing::warn!(
                            host = join.node.host,
                            pid = join.node.pid,
                            why,
                            "a node was refused"
                        );
                        to_bytes(&Answer::Refused(why)).into()
                    }
                };
                self.answer(&message, answer).await;
            }
            ToParent::Ready { node, .. } if self.seen.contains_key(&node.id) => {
                self.answer(&message, "known".into()).await;
            }
            ToParent::Ready { node, processes } => {
                let id = node.id.clone();
                tracing::info!(
                    host = node.host,
                    pid = node.pid,
                    processes,
                    "a node has joined"
                );
                self.shared.lock().statistics.joined(&id, &node.host);
                self.book.joined(node, processes);
                self.seen.insert(
                    id,
                    Seen {
                        last: self.watched,
                        gone: 0,
                        asked: false,
                    },
                );
                self.count();
                self.joined.ready = self.seen.len();
                let _ = self.tell.send(Ok(self.joined));
                self.answer(&message, "known".into()).await;
            }
            ToParent::Unfit { node, why } => {
                let why = format!("the node on {} (process {}): {why}", node.host, node.pid);
                tracing::warn!(why, "a node can't run tasks");
                let _ = self.tell.send(Err(why.clone()));
                self.lose(&node.id, &why);
                if self.seen.is_empty() {
                    // Other nodes would fail too, and there would be no other error to explain why nothing happens.
                    self.break_down(&why);
                }
            }
            ToParent::Took { node, load, ack } => {
                self.heard_of(&node).await;
                self.book.took(&node, load, ack);
            }
            ToParent::Begin { node, loads } => {
                self.heard_of(&node).await;
                let may = loads.into_iter();
                let may: Vec<u8> = may
                    .map(|(load, ack)| u8::from(self.book.begin(&node, load, ack)))
                    .collect();
                self.answer(&message, may.into()).await;
            }
            ToParent::Returned {
                node,
                loads,
                could_not,
            } => {
                self.heard_of(&node).await;
                for (load, ack) in loads {
                    if could_not {
                        // Store what it needs again.
                        self.packed.remove(&load);
                    }
                    self.book.returned(&node, load, ack, could_not);
                }
                self.answer(&message, "known".into()).await;
            }
            ToParent::Wanted(jobs) => {
                let wanted = jobs.into_iter();
                let wanted: Vec<u8> = wanted
                    .map(|job| u8::from(self.book.is_wanted(job)))
                    .collect();
                self.answer(&message, wanted.into()).await;
            }
            ToParent::Done(done) => {
                self.heard_of(&done.node).await;
                self.done(done);
                self.answer(&message, "known".into()).await;
            }
            ToParent::Messages {
                node,
                channel,
                number,
                must,
                messages,
            } => {
                // Initializers may send too, before the node is ready.
                if !self.let_in.contains(&node) {
                    self.heard_of(&node).await;
                    return;
                }
                self.note_alive(&node);
                let incoming = Incoming {
                    node,
                    channel,
                    number,
                    must,
                    reply: message.reply,
                };
                self.gather(incoming, messages).await;
            }
            ToParent::News { node, number, told } => {
                self.note_alive(&node);
                self.took_news(&message, &node, number, told).await;
            }
            ToParent::Stats {
                node,
                asked,
                stats,
                tallies,
            } => {
                self.note_alive(&node);
                self.take_stats(&node, asked, stats, tallies);
            }
            ToParent::Left { node, why } => {
                self.leaving.insert(node.clone());
                self.lose(&node, &why);
                // It may be killed before it can say that it has ended.
                let watched = self.watch(node, Instant::now() + self.goodbye);
                let sender = self.sender.clone();
                tokio::spawn(async move {
                    let _ = sender.send(Command::Ended(watched.await));
                });
            }
            ToParent::Ended { node } => self.ended(&node),
            ToParent::Here { node } => {
                self.heard_of(&node).await;
                self.answer(&message, to_bytes(&self.now()).into()).await;
            }
            ToParent::Echo => self.echoed = true,
        }
    }

    /// A node that was leaving has ended.
    fn ended(&mut self, node: &str) {
        if self.leaving.remove(node) {
            self.end_news(node, None);
            self.shared.lock().statistics.left(node);
        }
    }

    /// Waits until a node is gone, or until the deadline; returns its id.
    fn watch(&self, node: String, deadline: Instant) -> impl Future<Output = String> + use<> {
        let (client, subject) = (self.client.clone(), self.run.node(&node));
        async move {
            while Instant::now() < deadline {
                let asked = client.request(subject.clone(), Bytes::new());
                // A node that is gone does not answer.
                match time::timeout(PING / 2, asked).await {
                    Ok(Err(_)) => break,
                    _ => time::sleep(Duration::from_millis(10)).await,
                }
            }
            node
        }
    }

    fn take_stats(&self, node: &str, asked: u64, stats: Stats, tallies: Tallies) {
        let at = Instant::now();
        let report = Report { at, stats, tallies };
        self.shared.lock().statistics.told(node, asked, report);
        self.shared.changed.notify_all();
    }

    /// Passes news of a node on, and answers that it was taken.
    async fn took_news(&mut self, message: &Message, node: &str, number: u64, told: Vec<Told>) {
        self.take_news(node, told);
        let answer = Bytes::copy_from_slice(&number.to_le_bytes());
        self.answer(message, answer).await;
    }

    /// Passes news of a node on.
    fn take_news(&mut self, node: &str, told: Vec<Told>) {
        let (Some(teller), Some(observer)) = (self.tellers.get_mut(node), &self.observer) else {
            return;
        };
        let mut news = Vec::new();
        for told in told {
            let (job, records) = match told {
                Told::News(News::Log(records)) => (None, records),
                Told::Log { job, records } => (Some(job), records),
                // It is one of several nodes.
                Told::News(News::Waiting { inputs, .. }) => {
                    teller.inputs = inputs;
                    continue;
                }
                Told::News(other) => {
                    teller.alive.note(&other);
                    news.push(other);
                    continue;
                }
            };
            let end = records.end();
            match records.is_end() {
                true => teller.log_ends.remove(&end),
                false => teller.log_ends.insert(end),
            };
            match job.and_then(|job| self.sinks.get(&job)) {
                Some((_, sink)) => {
                    // Records refer to earlier ones.
                    if !news.is_empty() {
                        observer.observe(std::mem::take(&mut news));
                    }
                    sink.log(records);
                }
                None => news.push(News::Log(records)),
            }
        }
        if !news.is_empty() {
            observer.observe(news);
        }
    }

    /// Takes no more news of a node. `lost` says why, if its workers did not end by themselves.
    fn end_news(&mut self, node: &str, lost: Option<&str>) {
        let teller = self.tellers.remove(node).unwrap_or_default();
        let at = self.now();
        let Some(observer) = &self.observer else {
            return;
        };
        let lost = lost.map(|why| teller.alive.lost(at, why));
        let ends = teller.log_ends.into_iter().map(News::Log);
        let news: Vec<News> = lost.into_iter().flatten().chain(ends).collect();
        if !news.is_empty() {
            observer.observe(news);
        }
    }

    /// Tells the observer how many inputs wait, if that has changed.
    fn tell_what_waits(&mut self) {
        let now = self.now();
        let (last, before) = self.sampled;
        if !self.samples || now.saturating_sub(last) < SAMPLE {
            return;
        }
        let on_nodes = self.tellers.values().map(|teller| teller.inputs);
        let inputs = self.book.queued() + on_nodes.sum::<usize>();
        if inputs != before
            && let Some(observer) = &self.observer
        {
            self.sampled = (now, inputs);
            observer.observe(vec![News::Waiting { at: now, inputs }]);
        }
    }

    /// The time since the start of the pool.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn welcome(&self) -> Bytes {
        let welcome = Welcome {
            settings: self.settings.clone(),
            epoch: self.epoch,
            attachments: self.attachments.clone(),
            patience: self.server_timeout,
            now: self.now(),
        };
        to_bytes(&Answer::Welcome(Box::new(welcome))).into()
    }

    /// Recreates the stream. A server that was killed may have lost loads, deliver loads that are done, or deliver none
    /// at all.
    fn renew(&mut self) {
        self.is_renewing = true;
        let (jetstream, run, epoch) = (self.jetstream.clone(), self.run.clone(), self.epoch + 1);
        let (sender, connects) = (self.sender.clone(), self.connects);
        tokio::spawn(async move {
            let _ = jetstream.delete_stream(run.store()).await;
            let made = make_stream(&jetstream, &run, epoch).await.is_ok();
            let _ = sender.send(Command::Renewed {
                epoch,
                connects,
                made,
            });
        });
    }

    async fn renewed(&mut self, epoch: u64, connects: u64, made: bool) {
        self.is_renewing = false;
        self.notice_connection();
        // If the connection was lost again, this stream may be gone too.
        if made && connects == self.connects {
            self.epoch = epoch;
            self.is_old = false;
            self.store.set_epoch(epoch, connects);
            self.book.publish_all_again();
            self.tell_nodes(&ToNodes::Alive { epoch }).await;
        }
    }

    async fn answer(&self, message: &Message, answer: Bytes) {
        if let Some(reply) = &message.reply {
            let _ = self.client.publish(reply.clone(), answer).await;
        }
    }

    /// Notes that a node is alive; or tells it to leave, if it was declared lost.
    async fn heard_of(&mut self, node: &str) {
        if !self.note_alive(node) {
            let leave = Bytes::from_static(b"leave");
            let _ = self.client.publish(self.run.node(node), leave).await;
        }
    }

    /// Notes that a node is alive. Returns false if it is not ready, or was declared lost.
    fn note_alive(&mut self, node: &str) -> bool {
        let watched = self.watched;
        let seen = self.seen.get_mut(node);
        seen.map(|seen| seen.last = watched).is_some()
    }

    /// Handles messages for a channel; fetches them first if they are in the store.
    async fn gather(&mut self, incoming: Incoming, messages: Body) {
        let object = match messages {
            Body::Here(bytes) => return self.gathered(incoming, Some(bytes)).await,
            Body::Stored(object) => object,
        };
        let key = (incoming.node.clone(), incoming.channel);
        let known = self.messages.entry(key).or_default();
        // The node may send them again, during the fetch and after they were taken.
        if incoming.number <= known.taken {
            return self.gathered(incoming, None).await;
        }
        if std::mem::replace(&mut known.fetching, incoming.number) == incoming.number {
            known.reply = incoming.reply;
            return;
        }
        known.reply = None;
        let (store, sender) = (self.store.clone(), self.sender.clone());
        tokio::spawn(async move {
            let bytes = store.fetch_result(&object.name).await.ok();
            let _ = sender.send(Command::Gathered {
                messages: incoming,
                bytes,
            });
            store.delete(&object).await;
        });
    }

    /// Passes messages to their channel.
    async fn gathered(&mut self, incoming: Incoming, bytes: Option<Vec<u8>>) {
        let Incoming {
            node,
            channel,
            number,
            must,
            reply,
        } = incoming;
        let to = self.store.channel(channel);
        if to.is_none() {
            self.messages.remove(&(node, channel));
            return self.answer_to(reply, Took::Nothing).await;
        }
        let known = self.messages.entry((node, channel)).or_default();
        let is_full = known.unread.load(Ordering::Relaxed) >= UNREAD_MAX;
        let all = if is_full { Took::Unpaid } else { Took::All };
        let took = if number <= known.taken {
            all
        } else if is_full && !must && known.fetching != number {
            Took::Later
        } else if let Some(bytes) = bytes {
            known.taken = number;
            let (len, unread) = (bytes.len() as u64, Arc::clone(&known.unread));
            unread.fetch_add(len, Ordering::Relaxed);
            let read = move || {
                unread.fetch_sub(len, Ordering::Relaxed);
            };
            match to {
                Some(channel) if channel.give(bytes, read) => all,
                _ => Took::Nothing,
            }
        } else {
            known.fetching = 0;
            Took::Missing
        };
        self.answer_to(reply, took).await;
    }

    async fn answer_to(&self, reply: Option<Subject>, took: Took) {
        if let Some(reply) = reply {
            let _ = self.client.publish(reply, took.to_bytes().into()).await;
        }
    }

    fn done(&mut self, done: Done) {
        let Done {
            node,
            load,
            first,
            count,
            what,
            each_ns,
        } = done;
        let host = self.book.node(&node).map(|node| node.host.clone());
        let host = host.unwrap_or_default();
        let (body, is_failure) = match what {
            Sent::Replies(body) => (body, false),
            Sent::Failed(body) => (body, true),
        };
        let what = move |bytes| match is_failure {
            false => replies(count, bytes),
            true => failure(count, &bytes, &host),
        };
        let object = match body {
            Body::Here(bytes) => {
                let what = what(bytes);
                self.answered(&node, load, Outcomes { first, what }, each_ns);
                return;
            }
            Body::Stored(object) => object,
        };
        // A node that did not get the answer reports again.
        if self.fetching.contains_key(&object.name) {
            return;
        }
        if !self.book.waits_for(&node, load, first) {
            self.delete(vec![object]);
            return;
        }
        self.fetching.insert(object.name.clone(), node.clone());
        let (store, sender) = (self.store.clone(), self.sender.clone());
        tokio::spawn(async move {
            let what = match store.fetch_result(&object.name).await {
                Ok(bytes) => what(bytes),
                Err(error) => What::Failed {
                    count,
                    failure: Arc::new(Failure::EncodeResult(error.to_string())),
                },
            };
            let _ = sender.send(Command::Fetched {
                name: object.name.clone(),
                node,
                load,
                outcomes: Outcomes { first, what },
                each_ns,
            });
            store.delete(&object).await;
        });
    }

    fn answered(&mut self, node: &str, load: u64, outcomes: Outcomes, each_ns: u64) {
        if let Some(task) = self.book.done(node, load, outcomes, each_ns) {
            let hint = self.book.hint(task);
            self.shared.lock().hints.insert(task, hint);
        }
    }

    /// Checks the connection, and asks nodes whether they are there.
    async fn look(&mut self, ticks: u32) {
        self.notice_connection();
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.looked, now);
        if std::mem::take(&mut self.echoed) {
            self.watched += passed.min(2 * PING);
        }
        if let Err(since) = self.connected {
            if now - since >= self.server_timeout {
                let why = format!(
                    "the NATS server has been unreachable for {:?}",
                    self.server_timeout
                );
                self.break_down(&why);
            }
            return;
        }
        if self.is_old && !self.is_renewing {
            self.renew();
        }
        let (client, subject) = (self.client.clone(), self.run.parent());
        let echo = to_bytes(&ToParent::Echo);
        tokio::spawn(async move { client.publish(subject, echo.into()).await });
        if ticks.is_multiple_of(4) {
            let publishing = &self.publishing;
            self.is_old |= self.book.tick(|load| publishing.contains(&load));
            self.tell_nodes(&ToNodes::Alive { epoch: self.epoch }).await;
        }
        let silent: Vec<String> = self
            .seen
            .iter()
            .filter(|(_, seen)| self.watched - seen.last >= SILENCE && self.is_settled())
            .map(|(node, _)| node.clone())
            .collect();
        for node in silent {
            self.lose(&node, &format!("its node said nothing for {SILENCE:?}"));
        }
        for (node, seen) in &mut self.seen {
            if std::mem::replace(&mut seen.asked, true) {
                continue;
            }
            let (client, subject) = (self.client.clone(), self.run.node(node));
            let (sender, node) = (self.sender.clone(), node.clone());
            tokio::spawn(async move {
                let request = Request::new().timeout(Some(SILENCE));
                let mut asked = pin!(client.send_request(subject, request));
                let ping = match time::timeout(ASK_AGAIN, &mut asked).await {
                    Ok(Ok(_)) => Ping::Answered,
                    Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Ping::Gone,
                    Ok(Err(_)) => Ping::Silent,
                    Err(_) => {
                        let _ = sender.send(Command::Pinged(node.clone(), Ping::Silent));
                        match asked.await {
                            Ok(_) => Ping::Late,
                            Err(_) => return,
                        }
                    }
                };
                let _ = sender.send(Command::Pinged(node, ping));
            });
        }
    }

    /// Notices a connection that was lost and made again, however short the interruption.
    fn notice_connection(&mut self) {
        let connects = link::connects(&self.client);
        if std::mem::replace(&mut self.connects, connects) != connects {
            self.connected = Ok(Some(Instant::now()));
            self.is_old = true;
        }
        let is_connected = self.client.connection_state() == Connection::Connected;
        if !is_connected && self.connected.is_ok() {
            self.connected = Err(Instant::now());
        } else if is_connected && self.connected.is_err() {
            self.connected = Ok(Some(Instant::now()));
            self.is_old = true;
        }
    }

    /// Whether the connection is old enough for nodes to have reconnected too.
    fn is_settled(&self) -> bool {
        match self.connected {
            Ok(since) => since.is_none_or(|since| since.elapsed() >= RECONNECT),
            Err(_) => false,
        }
    }

    async fn pinged(&mut self, node: &str, ping: &Ping) {
        self.notice_connection();
        let settled = self.is_settled();
        let Some(seen) = self.seen.get_mut(node) else {
            return;
        };
        if !matches!(ping, Ping::Late) {
            seen.asked = false;
        }
        match ping {
            Ping::Answered | Ping::Late => {
                seen.last = self.watched;
                seen.gone = 0;
            }
            Ping::Gone if settled => {
                seen.gone += 1;
                // It may be about to reconnect.
                if seen.gone >= 2 {
                    self.lose(node, "its node is gone");
                }
            }
            Ping::Gone | Ping::Silent => {}
        }
    }

    /// Declares a node lost. What it reported before still counts.
    fn lose(&mut self, node: &str, why: &str) {
        if self.fetching.values().any(|other| other == node) {
            self.lost_later.insert(node.to_owned(), why.to_owned());
            return;
        }
        self.messages.retain(|(of, _), _| of != node);
        self.let_in.remove(node);
        if !self.leaving.contains(node) {
            self.end_news(node, Some(why));
            self.shared.lock().statistics.left(node);
        }
        if self.seen.remove(node).is_some() {
            if let Some(node) = self.book.node(node) {
                tracing::info!(host = node.host, pid = node.pid, why, "a node has left");
            }
            self.book.lost(node, why);
            self.book.publish_all_again();
            self.count();
        }
    }

    fn count(&self) {
        let mut state = self.shared.lock();
        state.workers = self.book.workers();
    }

    fn break_down(&self, why: &str) {
        {
            let mut state = self.shared.lock();
            if matches!(state.mode, Mode::Open | Mode::Closed) {
                state.mode = Mode::Broken(why.to_owned());
                state.feeding.clear();
                // Not done at once: what was submitted or pushed before may still wait behind it, and must fail too. Sent
                // under the lock, so that nothing comes after it.
                let _ = self.sender.send(Command::BreakDown(why.to_owned()));
            }
        }
        let _ = self.tell.send(Err(why.to_owned()));
    }

    /// Sends the nodes home, listens to what they still tell, and removes everything from the server.
    async fn tidy_up(&mut self, said: &mut Subscriber) {
        if self.connected.is_err() {
            return;
        }
        let is_terminated = self.shared.lock().mode != Mode::Closed;
        self.tell_nodes(&ToNodes::End).await;
        let _ = self.client.flush().await;
        // Finalizers run only after `close`.
        let most = if is_terminated { GOODBYE } else { self.goodbye };
        let deadline = Instant::now() + most;
        let nodes = self.book.nodes().map(|node| &node.id);
        let mut there: HashSet<String> = nodes.chain(&self.leaving).cloned().collect();
        let (gone, mut goes) = mpsc::unbounded_channel();
        for node in &there {
            let watched = self.watch(node.clone(), deadline);
            let gone = gone.clone();
            tokio::spawn(async move { gone.send(watched.await) });
        }
        while !there.is_empty() {
            tokio::select! {
                Some(message) = said.next() => {
                    let over = self.hear_last(&message).await;
                    over.map(|node| there.remove(&node));
                }
                Some(node) = goes.recv() => {
                    there.remove(&node);
                }
                () = time::sleep_until(deadline.into()) => break,
            }
        }
        while let Some(Some(message)) = said.next().now_or_never() {
            self.hear_last(&message).await;
        }
        let rest: Vec<String> = self.tellers.keys().cloned().collect();
        rest.iter().for_each(|node| self.end_news(node, None));
        delete(&self.jetstream, &self.run).await;
    }

    /// Hears what nodes tell after the end of the run. Returns the node that has ended.
    async fn hear_last(&mut self, message: &Message) -> Option<String> {
        match from_bytes(&message.payload)? {
            ToParent::News { node, number, told } => {
                self.took_news(message, &node, number, told).await;
                None
            }
            ToParent::Stats {
                node,
                asked,
                stats,
                tallies,
            } => {
                self.take_stats(&node, asked, stats, tallies);
                None
            }
            ToParent::Ended { node } => {
                self.end_news(&node, None);
                Some(node)
            }
            _ => None,
        }
    }
}

/// Creates the stream of a run, and the consumer that nodes pull from. The parent knows everything in the stream, so it
/// may be in the server's memory, which is faster; if there is no room there, it is on disk.
async fn make_stream(jetstream: &jetstream::Context, run: &Run, epoch: u64) -> Result<(), String> {
    let name = run.store();
    let config = |storage| stream::Config {
        name: name.clone(),
        subjects: vec![run.work()],
        retention: RetentionPolicy::WorkQueue,
        storage,
        ..stream::Config::default()
    };
    let (mut storage, mut late) = (StorageType::Memory, 0);
    let stream = loop {
        let created = jetstream.create_stream(config(storage)).await;
        match created.as_ref().map_err(|error| error.kind()) {
            // It may exist by now, and then creating the same one succeeds; but one on disk would have its name.
            Err(CreateStreamErrorKind::TimedOut) if late < LATE_MAX => late += 1,
            Err(CreateStreamErrorKind::JetStream(_)) if storage == StorageType::Memory => {
                storage = StorageType::File;
            }
            _ => break created,
        }
    };
    let consumer = stream
        .map_err(|error| format!("can't create the stream `{name}`: {error}"))?
        .create_consumer(pull::Config {
            durable_name: Some(consumer(epoch)),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: -1,
            ..pull::Config::default()
        })
        .await;
    consumer
        .map(drop)
        .map_err(|error| format!("can't create the consumer of the stream `{name}`: {error}"))
}

/// Decodes the outcomes of `count` inputs.
fn replies(count: usize, bytes: Vec<u8>) -> What {
    match Frames::from_bytes(bytes).filter(|replies| replies.count() == count) {
        Some(replies) => What::Replies(replies),
        None => What::Failed {
            count,
            failure: Arc::new(Failure::EncodeResult(
                "the node sent an unreadable reply".to_owned(),
            )),
        },
    }
}

/// Decodes a failure that a node reported.
fn failure(count: usize, bytes: &[u8], host: &str) -> What {
    let failure = match from_bytes::<Failure>(bytes) {
        Some(failure) => failure.on(host),
        None => Failure::EncodeResult("the node sent an unreadable failure".to_owned()),
    };
    What::Failed {
        count,
        failure: Arc::new(failure),
    }
}

/// Encodes a load for nodes. Long or shared data goes into the store.
async fn pack(
    store: &Store,
    sender: &UnboundedSender<Command>,
    number: u64,
    job: u64,
    what: Job,
    portions: Vec<Portion>,
) -> io::Result<Bytes> {
    let mut pieces = Vec::new();
    let mut room = store.room();
    // A previous version is still on the server, and may be being read.
    let version = nuid::next();
    for (at, Portion { first, inputs }) in portions.into_iter().enumerate() {
        let sender = sender.clone();
        let dropped = move |id| {
            let _ = sender.send(Command::Dropped(id));
        };
        let bound = match inputs.bound() {
            Some(bound) => Some(store.share(bound, dropped.clone()).await?),
            None => None,
        };
        let mut held = Vec::new();
        for attachment in inputs.held() {
            held.push(store.share(attachment, dropped.clone()).await?);
        }
        let bytes = inputs.to_bytes();
        let inputs = store
            .pack(bytes, &mut room, || format!("load-{number}-{at}-{version}"))
            .await?;
        pieces.push(Piece {
            first,
            inputs,
            bound,
            held,
        });
    }
    let objects = pieces.iter().filter_map(|piece| match &piece.inputs {
        Body::Stored(object) => Some(object.clone()),
        Body::Here(_) => None,
    });
    let objects: Vec<Object> = objects.collect();
    let load = Load {
        number,
        job,
        what,
        pieces,
    };
    let load = Bytes::from(to_bytes(&load));
    if !objects.is_empty() {
        let _ = sender.send(Command::Packed(number, load.clone(), objects));
    }
    Ok(load)
}

/// Publishes a load, and tries again while the server does not accept it: it may be unreachable, its disk full, or the
/// stream about to be recreated. The server drops duplicates.
async fn send(
    client: &Client,
    jetstream: &jetstream::Context,
    subject: &str,
    load: Bytes,
    patience: Duration,
    vanished: impl Fn(),
) -> io::Result<()> {
    let message = nuid::next();
    let mut since = None;
    loop {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, message.as_str());
        let sent = jetstream
            .publish_with_headers(subject.to_owned(), headers, load.clone())
            .await;
        let error = match sent {
            Ok(acknowledged) => match acknowledged.await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let why = format!("the NATS server rejects messages published to {subject}: {error}");
        if error.kind() == PublishErrorKind::MaxPayloadExceeded {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        if error.kind() == PublishErrorKind::StreamNotFound {
            vanished();
        }
        if client.connection_state() != Connection::Connected {
            // How long the server may be unreachable is decided elsewhere.
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= patience {
            return Err(io::Error::other(why));
        }
        tracing::debug!(why, "a load is published again");
        time::sleep(PING).await;
    }
}

/// Says how a node's program differs from this one, if it does.
fn differs(join: &Join) -> Option<String> {
    if join.protocol != PROTOCOL {
        return Some(format!(
            "the node speaks protocol {} and the parent {PROTOCOL}: they were built with different versions of pool-nats",
            join.protocol
        ));
    }
    if join.fingerprint == backend::fingerprint() {
        return None;
    }
    let ours: HashSet<&str> = backend::tasks().collect();
    let theirs: HashSet<&str> = join.tasks.iter().map(String::as_str).collect();
    let name = |some: Vec<&&str>| some.first().map_or("none", |task| **task).to_owned();
    let mut only_ours: Vec<_> = ours.difference(&theirs).collect();
    let mut only_theirs: Vec<_> = theirs.difference(&ours).collect();
    only_ours.sort_unstable();
    only_theirs.sort_unstable();
    Some(format!(
        "the node runs another build of the program: {} tasks exist only in the node (the first is `{}`), and {} only in the \
         parent (the first is `{}`)",
        only_theirs.len(),
        name(only_theirs.clone()),
        only_ours.len(),
        name(only_ours.clone()),
    ))
}

/// Whether the server is on this machine.
fn is_here(host: &str, url: &str) -> bool {
    let names = ["localhost", "127.", "[::1]"];
    host.starts_with("127.") || names.iter().any(|name| url.contains(&format!("//{name}")))
}
