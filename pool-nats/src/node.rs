//! A node: this same program, which does not reach `main` but runs the inputs of a pool that lives elsewhere.
//!
//! It pulls only as many loads as it has room for. Before it gives the inputs of a load to the local workers, it asks
//! the parent whether they may begin.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::env;
use std::io::{self, Write};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::client::RequestErrorKind;
use async_nats::connection::State as Connection;
use async_nats::jetstream::{self, Context};
use async_nats::{Client, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use pool_core::backend::{
    self, Backend, Failure, Few, Frames, Job, JobId, Local, LogRecords, Observer, Outcomes,
    Portion, Settings, Sink, Tallies, What, Workers,
};
use pool_core::{Error, Stats};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time;

use crate::Url;
use crate::clock::Clock;
use crate::link::{self, JETSTREAM, Link, Refused};
use crate::news::Outbox;
use crate::relay::Relays;
use crate::statistics::differ;
use crate::store::Store;
use crate::wire::{
    Answer, Body, Done, Join, Load, NodeId, PROTOCOL, Piece, Run, Sent, ToNodes, ToParent, Welcome,
    consumer, from_bytes, to_bytes,
};

/// The variable that sets how many workers the node has; by default, as many as the pool asks for.
const PROCESSES: &str = "POOL_NODE_PROCESSES";

/// A node ends when it has not heard from the parent for this long.
const PARENT_GONE: Duration = Duration::from_secs(15);

/// The longest pause between two looks for a server or a run. Pauses are shorter at first.
const AGAIN: Duration = Duration::from_millis(500);

/// How often the node checks the connection and the parent.
const LOOK: Duration = Duration::from_millis(200);

/// How often the node tells the server that it still has its loads.
const PROGRESS: Duration = Duration::from_secs(4);

/// How often the parent is told what the statistics say, at most, unless it asks.
const STATS: Duration = Duration::from_secs(1);

/// How long the server keeps a pull request. If the node is stopped, loads may be delivered to it in vain until then.
const PULL: Duration = Duration::from_secs(2);

/// How many loads are held per worker, running ones included, if loads are quick. Otherwise one.
const HELD: usize = 3;

/// A load that takes no longer than this is quick: the next one is requested while it runs. Longer loads are better
/// left to any worker that is free.
const QUICK: Duration = Duration::from_millis(50);

/// Writes one line to standard error.
fn log(what: &str) {
    let line = format!("pool-node {}: {what}\n", process::id());
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Runs instead of `main`; returns the exit code.
pub(crate) fn run(address: &str) -> i32 {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("can't start the runtime: {error}"))
        .and_then(|runtime| runtime.block_on(live(address)));
    match outcome {
        Ok(why) => {
            log(&why);
            0
        }
        Err(why) => {
            log(&why);
            1
        }
    }
}

fn processes() -> Result<Option<usize>, String> {
    match env::var(PROCESSES) {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => Err(format!(
                "{PROCESSES}={text}: must be a whole number greater than zero"
            )),
        },
    }
}

/// Returns the number of CPUs that this process may use.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

async fn live(address: &str) -> Result<Cow<'static, str>, String> {
    let (url, run) = Url::parse(address)
        .filter(|(_, run)| crate::is_name(run))
        .ok_or_else(|| {
            format!(
                "POOL_NODE={address}: must be like `nats://host:4222/run`, where `run` is the name of a run"
            )
        })?;
    let run = Run(run.to_owned());
    let processes = processes()?;
    let Link { client, mut denied } = connect(&url).await?;
    let node = NodeId {
        id: nuid::next().to_string(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        pid: process::id(),
    };
    tokio::select! {
        outcome = work(&client, &url, &run, &node, processes) => outcome,
        Some(why) = denied.recv() => {
            let why = link::not_allowed(&url, &why);
            // This works only if the node is allowed to publish to the parent.
            say_unfit(&client, &run, &node, &why).await;
            Err(why)
        }
    }
}

/// Joins the run, and works until there is a reason to end.
async fn work(
    client: &Client,
    url: &Url,
    run: &Run,
    node: &NodeId,
    processes: Option<usize>,
) -> Result<Cow<'static, str>, String> {
    let no = |what: &str, error: &dyn std::fmt::Display| {
        format!("{}: can't subscribe to {what}: {error}", url.server)
    };
    let asked = client.subscribe(run.node(&node.id)).await;
    // While this subscription exists, the parent knows that there is this node.
    let mut asked = asked.map_err(|error| no(&run.node(&node.id), &error))?;
    let told = client.subscribe(run.nodes()).await;
    let told = told.map_err(|error| no(&run.nodes(), &error))?;
    let join = Join {
        protocol: PROTOCOL,
        fingerprint: backend::fingerprint(),
        tasks: backend::tasks().map(str::to_owned).collect(),
        node: node.clone(),
    };
    let (welcome, clock) = enter(client, run, &join).await?;
    let (epoch, patience) = (welcome.epoch, welcome.patience);
    let mut jetstream = jetstream::new(client.clone());
    jetstream.set_timeout(JETSTREAM);
    let relays = Relays::new(client.clone(), run.parent(), node.id.clone());
    let since = Instant::now();
    let (store, mut settings) = loop {
        match fetch_settings(client, &jetstream, run, &relays, &welcome).await {
            Ok(fetched) => break fetched,
            // The server may be slow, or about to start again.
            Err(why) if since.elapsed() < patience && !is_gone(client, run).await => {
                log(&format!("trying again: {why}"));
                time::sleep(AGAIN).await;
            }
            Err(why) => {
                say_unfit(client, run, node, &why).await;
                return Err(why);
            }
        }
    };
    let mut setup_channels = Vec::new();
    let attachments = welcome.attachments.iter();
    attachments.for_each(|reference| reference.add_channels(&mut setup_channels));
    let processes = processes.or(settings.workers).unwrap_or_else(cpus);
    settings.workers = Some(processes);
    let outbox = Arc::new(Outbox::new(client, run, node, clock));
    settings.observer = Some(Arc::clone(&outbox) as Arc<dyn Observer>);
    let answers = client.subscribe(outbox.inbox().to_owned()).await;
    let answers = answers.map_err(|error| no(outbox.inbox(), &error))?;
    // Ends when this function does.
    let mut sending = JoinSet::new();
    sending.spawn(Arc::clone(&outbox).send_all());
    sending.spawn(Arc::clone(&outbox).listen(answers));
    let grace = settings.grace;
    let leave_max = (!settings.finalizers.is_empty()).then(|| settings.leave_max());
    let workers = match start(settings).await {
        Ok(workers) => workers,
        Err(error) => {
            let why = error.to_string();
            outbox.flush().await;
            say_unfit(client, run, node, &why).await;
            return Err(why);
        }
    };
    let uptime = workers.stats().uptime;
    let now = Instant::now();
    outbox.begin(now.checked_sub(uptime).unwrap_or(now));
    let inbox = client.new_inbox();
    let pulled = client.subscribe(inbox.clone()).await;
    let pulled = pulled.map_err(|error| no(&inbox, &error))?;
    let (events, received) = mpsc::unbounded_channel();
    let mut serving = Node {
        server: url.server.clone(),
        client: client.clone(),
        jetstream,
        run: run.clone(),
        node: node.id.clone(),
        store,
        relays,
        outbox: Arc::clone(&outbox),
        setup_channels,
        workers: Arc::clone(&workers),
        processes,
        inbox,
        events,
        held: HashMap::new(),
        queue: VecDeque::new(),
        ready: VecDeque::new(),
        running: 0,
        questions: 0,
        asked: 0,
        untold: 0,
        asked_until: Instant::now(),
        epoch,
        silence: Duration::ZERO,
        looked: Instant::now(),
        away: Duration::ZERO,
        away_max: patience.saturating_add(PARENT_GONE),
        connected: true,
        connects: link::connects(client),
        leaving: None,
        results: 0,
        pace: None,
        done: Instant::now(),
        joined: false,
        stats: None,
        stats_at: Instant::now(),
    };
    let ready = ToParent::Ready {
        node: node.clone(),
        processes,
    };
    let (teller, subject) = (client.clone(), run.parent());
    let events = serving.events.clone();
    tokio::spawn(async move {
        tell(&teller, subject, &ready).await;
        let _ = events.send(Event::Joined);
    });
    let why = serving
        .serve(received, &mut asked, told, pulled, grace)
        .await;
    // Messages that finalizers send are not received.
    serving.relays.end();
    serving.say_goodbye(&why).await;
    let is_idle = serving.running == 0;
    let last = Arc::clone(&workers);
    let ended = tokio::task::spawn_blocking(move || {
        if let Some(leave_max) = leave_max.filter(|_| is_idle) {
            workers.close();
            let _ = workers.join(std::time::Instant::now().checked_add(leave_max));
        }
        workers.shut_down();
    });
    let ended = ended.await;
    ended.map_err(text)?;
    outbox.finish().await;
    let (stats, tallies) = last.tallied_stats();
    serving.tell_stats(0, stats, tallies).await;
    let ended = ToParent::Ended {
        node: node.id.clone(),
    };
    let _ = client.publish(run.parent(), to_bytes(&ended).into()).await;
    let _ = time::timeout(Duration::from_secs(1), client.flush()).await;
    Ok(why)
}

async fn connect(url: &Url) -> Result<Link, String> {
    let mut waits = false;
    let mut pause = AGAIN / 50;
    loop {
        match link::connect(url, None, "pool-node").await {
            Ok(link) => return Ok(link),
            Err(Refused::Unreachable(why)) => {
                if !std::mem::replace(&mut waits, true) {
                    log(&format!("waiting: {why}"));
                }
                time::sleep(pause).await;
                pause = AGAIN.min(2 * pause);
            }
            Err(Refused::Wrong(why)) => return Err(why),
        }
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Asks the parent to let this node join. Keeps asking while there is no parent.
async fn enter(client: &Client, run: &Run, join: &Join) -> Result<(Welcome, Clock), String> {
    let mut waits = false;
    let mut pause = AGAIN / 50;
    let request: Bytes = to_bytes(&ToParent::Join(join.clone())).into();
    loop {
        let asked = Instant::now();
        if let Ok(answer) = client.request(run.parent(), request.clone()).await {
            return match from_bytes(&answer.payload) {
                Some(Answer::Welcome(welcome)) => {
                    let clock = Clock::new(asked, Instant::now(), welcome.now);
                    Ok((*welcome, clock))
                }
                Some(Answer::Refused(why)) => {
                    Err(format!("the run {} refused this node: {why}", run.0))
                }
                None => Err(format!(
                    "the run {} sent an answer that this node can't read: it was built with another version of pool-nats",
                    run.0
                )),
            };
        }
        if !std::mem::replace(&mut waits, true) {
            log(&format!("waiting for the run {}", run.0));
        }
        time::sleep(pause).await;
        pause = AGAIN.min(2 * pause);
    }
}

/// Opens the object store, and fetches from there what the pool is like.
async fn fetch_settings(
    client: &Client,
    jetstream: &Context,
    run: &Run,
    relays: &Relays,
    welcome: &Welcome,
) -> Result<(Store, Settings), String> {
    let store = Store::new(
        client.clone(),
        jetstream.clone(),
        run.store(),
        welcome.patience,
        welcome.epoch,
    )
    .await?;
    let settings = store.unpack(welcome.settings.clone()).await.map_err(text)?;
    let settings = from_bytes::<Settings>(&settings);
    let mut settings = settings.ok_or("can't read the settings of the pool")?;
    if let Some(first) = settings.preparations_mut().next() {
        for reference in &welcome.attachments {
            let fetched = store.fetch(reference, relays).await;
            first.attachments.push(fetched.map_err(text)?);
        }
    }
    Ok((store, settings))
}

/// Whether the server says that there is no parent.
async fn is_gone(client: &Client, run: &Run) -> bool {
    let asked = client.request(run.parent(), Bytes::new()).await;
    asked.is_err_and(|error| error.kind() == RequestErrorKind::NoResponders)
}

/// Tells the parent why this node can't work.
async fn say_unfit(client: &Client, run: &Run, node: &NodeId, why: &str) {
    let unfit = ToParent::Unfit {
        node: node.clone(),
        why: why.to_owned(),
    };
    let _ = client.publish(run.parent(), to_bytes(&unfit).into()).await;
    let _ = time::timeout(Duration::from_secs(1), client.flush()).await;
}

async fn start(settings: Settings) -> Result<Arc<dyn Workers>, Error> {
    // The thread that starts workers must live as long as they do; the local backend ensures that.
    let started = tokio::task::spawn_blocking(|| Box::new(Local).start(settings)).await;
    started.unwrap_or_else(|error| Err(Error::start(text(error))))
}

/// What happens in a node, other than messages from outside.
enum Event {
    /// A load has arrived in full.
    Prepared(Box<Prepared>),
    /// A load could not be fetched.
    Unprepared(u64, String),
    /// The parent has acknowledged outcomes of this load.
    Known(u64),
    /// The parent has acknowledged that loads were returned.
    GaveBack,
    /// The parent's answer on whether these loads may begin; `None` if there was no answer.
    May(Vec<Prepared>, Option<Vec<u8>>),
    Outcomes(u64, Outcomes),
    /// The parent knows that the workers are ready.
    Joined,
    /// This job is no longer wanted.
    Unwanted(u64),
}

struct Prepared {
    number: u64,
    job: u64,
    what: Job,
    portions: Vec<Portion>,
    /// The channels into which its inputs may send.
    channels: Vec<u64>,
}

/// A load that was pulled.
struct Held {
    ack: String,
    job: u64,
    /// The load's job in the local pool, once it has begun.
    local: Option<JobId>,
    missing: usize,
    count: usize,
    channels: Vec<u64>,
    /// How many reports of outcomes the parent has not acknowledged.
    untold: usize,
    began: Instant,
}

impl Held {
    /// All its outcomes are known, and the parent is being told.
    fn is_done(&self) -> bool {
        self.local.is_some() && self.missing == 0
    }
}

struct Node {
    /// The URL of the server.
    server: String,
    client: Client,
    jetstream: Context,
    run: Run,
    node: String,
    store: Store,
    relays: Relays,
    outbox: Arc<Outbox>,
    /// The channels into which all tasks may send, because initializers were given them.
    setup_channels: Vec<u64>,
    workers: Arc<dyn Workers>,
    processes: usize,
    inbox: String,
    events: UnboundedSender<Event>,
    held: HashMap<u64, Held>,
    /// Loads that have not begun.
    queue: VecDeque<Prepared>,
    /// Loads that may begin as soon as a worker is free.
    ready: VecDeque<Prepared>,
    /// How many loads the workers have.
    running: usize,
    /// How many loads the parent was asked about and has not answered.
    questions: usize,
    /// How many loads the node has requested from the server.
    asked: usize,
    /// How many reports of outcomes, or of returned loads, the parent has not acknowledged.
    untold: usize,
    /// When the request for loads expires, even without an answer from the server.
    asked_until: Instant,
    epoch: u64,
    /// How long the parent has been silent while this node listened. Time when the node was stopped or had no
    /// connection does not count.
    silence: Duration,
    looked: Instant,
    /// How long there has been no connection; and after how long the parent must have given up too.
    away: Duration,
    away_max: Duration,
    connected: bool,
    /// How many connections there have been.
    connects: u64,
    leaving: Option<&'static str>,
    /// How many results have been named, for storing those that are too long for a message.
    results: u64,
    /// About how long a load takes; and when the last one was done.
    pace: Option<Duration>,
    done: Instant,
    /// The parent knows that the workers are ready.
    joined: bool,
    /// The statistics that the parent was told last, and when they were looked at.
    stats: Option<Stats>,
    stats_at: Instant,
}

/// Passes outcomes of the local pool to the node.
#[derive(Debug)]
struct ToNode {
    load: u64,
    /// The number of the parent's job.
    job: u64,
    events: UnboundedSender<Event>,
    outbox: Arc<Outbox>,
}

impl Sink for ToNode {
    fn deliver(self: Arc<Self>, outcomes: Outcomes) {
        let _ = self.events.send(Event::Outcomes(self.load, outcomes));
    }

    fn log(&self, records: LogRecords) {
        self.outbox.log(self.job, records);
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Event")
    }
}

impl Node {
    /// Works until there is a reason to end.
    async fn serve(
        &mut self,
        mut events: UnboundedReceiver<Event>,
        asked: &mut Subscriber,
        mut told: Subscriber,
        mut pulled: Subscriber,
        grace: Duration,
    ) -> Cow<'static, str> {
        let mut tick = time::interval(PROGRESS);
        let mut look = time::interval(LOOK);
        let Ok(mut terminated) = signal(SignalKind::terminate()) else {
            return "can't handle SIGTERM".into();
        };
        let mut until = None;
        while self.leaving.is_none() {
            if until.is_none() {
                self.pull().await;
            }
            tokio::select! {
                Some(message) = asked.next() => self.answer(message).await,
                Some(message) = told.next() => self.hear(&message).await,
                Some(message) = pulled.next() => self.take(message).await,
                Some(event) = events.recv() => {
                    self.event(event).await;
                    for _ in 0..256 {
                        let Ok(event) = events.try_recv() else { break };
                        self.event(event).await;
                    }
                }
                _ = tick.tick() => self.tell_progress().await,
                _ = look.tick() => {
                    self.look();
                    self.give_back_what_waits();
                    self.tell_changed_stats().await;
                }
                _ = terminated.recv(), if until.is_none() => {
                    log("received SIGTERM: finishing the running inputs");
                    // A grace period that is too long to add means no deadline.
                    until = Some(Instant::now().checked_add(grace));
                    self.give_back();
                }
            }
            if until.is_some() {
                self.give_back();
            } else {
                self.begin();
            }
            let is_late =
                |until: Option<Instant>| until.is_some_and(|until| Instant::now() >= until);
            if let Some(until) = until
                && (self.running + self.questions + self.untold == 0 || is_late(until))
            {
                return "ended on SIGTERM".into();
            }
        }
        self.leaving.unwrap_or_default().into()
    }

    async fn say(&self, what: &ToParent) {
        let _ = self
            .client
            .publish(self.run.parent(), to_bytes(what).into())
            .await;
    }

    async fn say_goodbye(&mut self, why: &str) {
        let node = self.node.clone();
        let why = format!("its node {why}");
        self.say(&ToParent::Left { node, why }).await;
        let _ = time::timeout(Duration::from_secs(1), self.client.flush()).await;
        if self.silence < PARENT_GONE || !self.connected {
            return;
        }
        // If the parent is dead, only nodes can clean up. But a parent that was merely stopped may continue.
        if is_gone(&self.client, &self.run).await {
            let _ = self.jetstream.delete_stream(self.run.store()).await;
            let _ = self.jetstream.delete_object_store(self.run.store()).await;
        }
    }

    /// The parent asks whether this node is there, or tells it to leave.
    async fn answer(&mut self, message: Message) {
        self.silence = Duration::ZERO;
        if message.payload.as_ref() == b"leave" {
            self.leaving = Some("was declared lost by the parent");
        }
        if let Some(reply) = message.reply {
            let _ = self.client.publish(reply, "here".into()).await;
        }
    }

    async fn hear(&mut self, message: &Message) {
        self.silence = Duration::ZERO;
        match from_bytes(&message.payload) {
            Some(ToNodes::Cancel { job, running }) => self.cancel(job, running),
            Some(ToNodes::Forget(id)) => {
                self.relays.forget(id);
                let store = self.store.clone();
                tokio::spawn(async move { store.forget(id).await });
            }
            Some(ToNodes::AskStats(number)) => {
                let (stats, tallies) = self.workers.tallied_stats();
                self.tell_stats(number, stats, tallies).await;
            }
            Some(ToNodes::End) => self.leaving = Some("ended with the run"),
            Some(ToNodes::Alive { epoch }) if epoch != self.epoch => {
                // Requests to the previous stream won't be answered.
                self.epoch = epoch;
                self.asked = 0;
                self.store.set_epoch(epoch, link::connects(&self.client));
                // The parent may have lost a connection that this node has not, and what it said last with it.
                self.ask_what_is_wanted();
            }
            Some(ToNodes::Alive { .. }) | None => {}
        }
    }

    /// Drops what is left of a job; with `running`, even what has begun.
    fn cancel(&mut self, job: u64, running: bool) {
        self.queue.retain(|load| load.job != job);
        let (workers, ended) = (&self.workers, &mut self.running);
        self.held.retain(|_, held| {
            if held.job != job {
                return true;
            }
            if let Some(local) = held.local {
                workers.cancel(local, running);
                if held.missing > 0 {
                    // The other inputs get no outcomes.
                    *ended -= 1;
                    return false;
                }
                return true;
            }
            // If it waits in a queue, it is skipped there.
            false
        });
    }

    /// Requests as many loads as there is room for.
    async fn pull(&mut self) {
        let each = if self.is_quick() { HELD } else { 1 };
        let open = self.held.values().filter(|held| !held.is_done()).count();
        let room = (self.processes * each).saturating_sub(open + self.asked);
        if room == 0 || !self.joined || !self.connected || self.leaving.is_some() {
            return;
        }
        let (stream, consumer) = (self.run.store(), consumer(self.epoch));
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let request = format!("{{\"batch\":{room},\"expires\":{}}}", PULL.as_nanos());
        let inbox = self.inbox.clone();
        let asked = self
            .client
            .publish_with_reply(subject, inbox, request.into())
            .await;
        if asked.is_ok() {
            self.asked += room;
            self.asked_until = Instant::now() + PULL + Duration::from_secs(1);
        }
    }

    /// Handles a load, or the end of a pull.
    async fn take(&mut self, message: Message) {
        match message.status {
            Some(StatusCode::IDLE_HEARTBEAT) => return,
            Some(_) => {
                let left = message.headers.as_ref().and_then(|headers| {
                    headers.get("Nats-Pending-Messages")?.as_str().parse().ok()
                });
                self.asked = self.asked.saturating_sub(left.unwrap_or(self.asked));
                if message.status != Some(StatusCode::TIMEOUT) {
                    // There is no stream: the parent is about to create a new one, or is gone.
                    time::sleep(Duration::from_millis(50)).await;
                }
                return;
            }
            None => self.asked = self.asked.saturating_sub(1),
        }
        let Some(ack) = message.reply.as_ref().map(ToString::to_string) else {
            return;
        };
        let Some(load) = from_bytes::<Load>(&message.payload) else {
            log("received a load that it can't read");
            return;
        };
        if self.held.contains_key(&load.number) {
            // The server has delivered it twice.
            let _ = self.client.publish(ack, "+ACK".into()).await;
            return;
        }
        let took = ToParent::Took {
            node: self.node.clone(),
            load: load.number,
            ack: ack.clone(),
        };
        // If the load can begin at once, the question whether it may tells the parent as much.
        let is_stored = |piece: &Piece| matches!(piece.inputs, Body::Stored(_));
        if self.held.len() > self.processes || load.pieces.iter().any(is_stored) {
            self.say(&took).await;
        }
        self.held.insert(
            load.number,
            Held {
                ack,
                job: load.job,
                local: None,
                missing: 0,
                count: 0,
                channels: Vec::new(),
                untold: 0,
                began: Instant::now(),
            },
        );
        let (store, events) = (self.store.clone(), self.events.clone());
        let relays = self.relays.clone();
        tokio::spawn(async move {
            let number = load.number;
            let event = match prepare(&store, &relays, load).await {
                Ok(prepared) => Event::Prepared(Box::new(prepared)),
                Err(error) => {
                    time::sleep(AGAIN).await;
                    Event::Unprepared(number, text(error))
                }
            };
            let _ = events.send(event);
        });
    }

    async fn event(&mut self, event: Event) {
        match event {
            Event::Prepared(prepared) => {
                if self.held.contains_key(&prepared.number) {
                    self.queue.push_back(*prepared);
                }
            }
            Event::Unprepared(number, why) => {
                if let Some(held) = self.held.remove(&number) {
                    log(&format!("returned a load: {why}"));
                    self.return_loads(vec![(number, held.ack)], true);
                }
            }
            Event::May(loads, answer) => {
                let Some(answer) = answer else {
                    // The question was not answered: ask again.
                    self.ask(loads);
                    return;
                };
                self.questions -= loads.len();
                for (at, load) in loads.into_iter().enumerate() {
                    if answer.get(at) == Some(&1) {
                        self.ready.push_back(load);
                    } else {
                        self.held.remove(&load.number);
                    }
                }
            }
            Event::Known(load) => {
                self.untold -= 1;
                if let Some(held) = self.held.get_mut(&load) {
                    held.untold -= 1;
                    if held.untold == 0 && held.missing == 0 {
                        self.held.remove(&load);
                    }
                }
            }
            Event::GaveBack => self.untold -= 1,
            Event::Outcomes(_, outcomes) if is_broken(&outcomes) => {
                // That is not an outcome of the inputs: other nodes may do better.
                self.leaving = Some("has no workers left");
            }
            Event::Outcomes(load, outcomes) => self.tell_outcomes(load, outcomes),
            Event::Unwanted(job) => self.cancel(job, true),
            Event::Joined => {
                self.joined = true;
                self.ask_for_time();
                log(&format!(
                    "joined {} on {} with {} processes",
                    self.run.0, self.server, self.processes
                ));
            }
        }
    }

    fn is_quick(&self) -> bool {
        self.pace.is_some_and(|pace| pace <= QUICK)
    }

    /// Gives loads to the workers if they have too little to do.
    fn begin(&mut self) {
        self.start();
        let ahead = usize::from(self.is_quick());
        let mut next = Vec::new();
        while self.running + self.ready.len() + self.questions + next.len() < self.processes + ahead
            && let Some(load) = self.queue.pop_front()
        {
            if self.held.contains_key(&load.number) {
                next.push(load);
            }
        }
        if !next.is_empty() {
            self.questions += next.len();
            self.ask(next);
        }
    }

    /// Gives loads that may begin to free workers.
    fn start(&mut self) {
        while self.running < self.processes
            && let Some(load) = self.ready.pop_front()
        {
            self.submit(load);
        }
    }

    /// Asks the parent whether these loads may begin.
    fn ask(&self, loads: Vec<Prepared>) {
        let ack = |number: u64| self.held.get(&number).map(|held| held.ack.clone());
        let numbers = loads.iter().map(|load| load.number);
        let begin = to_bytes(&ToParent::Begin {
            node: self.node.clone(),
            loads: numbers
                .map(|number| (number, ack(number).unwrap_or_default()))
                .collect(),
        });
        let (client, subject) = (self.client.clone(), self.run.parent());
        let events = self.events.clone();
        tokio::spawn(async move {
            let answer = match client.request(subject, begin.into()).await {
                Ok(answer) => Some(answer.payload.to_vec()),
                Err(_) => {
                    time::sleep(AGAIN / 10).await;
                    None
                }
            };
            let _ = events.send(Event::May(loads, answer));
        });
    }

    fn submit(&mut self, load: Prepared) {
        let Prepared {
            number,
            job,
            what,
            portions,
            channels,
        } = load;
        // The load may have been cancelled meanwhile.
        let Some(held) = self.held.get_mut(&number) else {
            return;
        };
        held.count = portions.iter().map(|some| some.inputs.count()).sum();
        held.missing = held.count;
        held.channels = channels;
        held.began = Instant::now();
        let sink = Arc::new(ToNode {
            load: number,
            job,
            events: self.events.clone(),
            outbox: Arc::clone(&self.outbox),
        });
        let portions: Few<Portion> = portions.into_iter().collect();
        match self.workers.submit(what, sink, portions, false) {
            Ok(local) => {
                held.local = Some(local);
                self.outbox.accepted(local.serial, job);
                self.running += 1;
                self.workers.notify(local);
            }
            Err(error) => {
                log(&format!("the local pool rejected a load: {error}"));
                self.leaving = Some("has no workers left");
            }
        }
    }

    fn tell_outcomes(&mut self, load: u64, outcomes: Outcomes) {
        let Some(held) = self.held.get_mut(&load) else {
            return;
        };
        let count = outcomes.count();
        held.missing = held.missing.saturating_sub(count);
        let is_over = held.missing == 0;
        let together = self.running.clamp(1, self.processes) as u64;
        let each_ns = held.began.elapsed().as_nanos() as u64 / held.count.max(1) as u64;
        let each_ns = each_ns * (self.processes as u64).min(held.count as u64) / together;
        held.untold += 1;
        self.untold += 1;
        if is_over {
            self.running -= 1;
            self.done = Instant::now();
            let took = held.began.elapsed();
            self.pace = Some(self.pace.map_or(took, |pace| (3 * pace + took) / 4));
        }
        self.results += 1;
        let name = format!("result-{}-{}", self.node, self.results);
        let (store, relays) = (self.store.clone(), self.relays.clone());
        let mut channels = self.setup_channels.clone();
        channels.extend(&held.channels);
        let (node, first) = (self.node.clone(), outcomes.first);
        let (client, subject) = (self.client.clone(), self.run.parent());
        let (outbox, events) = (Arc::clone(&self.outbox), self.events.clone());
        tokio::spawn(async move {
            relays.flush(&channels).await;
            let what = pack(&store, outcomes.what, name).await;
            outbox.flush().await;
            let done = ToParent::Done(Done {
                node,
                load,
                first,
                count,
                what,
                each_ns,
            });
            tell(&client, subject, &done).await;
            let _ = events.send(Event::Known(load));
        });
    }

    /// Returns waiting loads if those that run take longer than expected.
    fn give_back_what_waits(&mut self) {
        let waits = self.queue.len() + self.ready.len();
        // Without a connection, they can't get anywhere else.
        if waits > 0
            && self.connected
            && self.running >= self.processes
            && self.done.elapsed() >= LOOK
        {
            self.pace = Some(LOOK);
            self.give_back();
        }
    }

    /// Returns all loads that have not begun, so that they can run elsewhere.
    fn give_back(&mut self) {
        let waiting = self.ready.drain(..).chain(self.queue.drain(..));
        let numbers = waiting.map(|load| load.number);
        let held = &mut self.held;
        let loads = numbers.filter_map(|number| Some((number, held.remove(&number)?.ack)));
        let loads: Vec<_> = loads.collect();
        if !loads.is_empty() {
            self.return_loads(loads, false);
        }
    }

    /// Tells the parent until it knows: it leaves these loads to this node as long as the node lives.
    fn return_loads(&mut self, loads: Vec<(u64, String)>, could_not: bool) {
        self.untold += 1;
        let returned = ToParent::Returned {
            node: self.node.clone(),
            loads,
            could_not,
        };
        let (client, subject) = (self.client.clone(), self.run.parent());
        let events = self.events.clone();
        let mut telling = Box::pin(async move {
            tell(&client, subject, &returned).await;
            let _ = events.send(Event::GaveBack);
        });
        // It is on its way before whatever the node says next: if that is `Left`, these loads would count as lost.
        if telling.as_mut().now_or_never().is_none() {
            tokio::spawn(telling);
        }
    }

    /// Tells the parent that the node is there, and asks what time it is there.
    fn ask_for_time(&self) {
        let here = to_bytes(&ToParent::Here {
            node: self.node.clone(),
        });
        let (client, subject) = (self.client.clone(), self.run.parent());
        let outbox = Arc::clone(&self.outbox);
        tokio::spawn(async move {
            let asked = Instant::now();
            if let Ok(answer) = client.request(subject, here.into()).await
                && let Some(parent) = from_bytes(&answer.payload)
            {
                outbox.improve_clock(Clock::new(asked, Instant::now(), parent));
            }
        });
    }

    async fn tell_progress(&self) {
        if !self.connected {
            return;
        }
        // If the parent has declared this node lost, this is how the node learns of it.
        if self.joined {
            self.ask_for_time();
        }
        for held in self.held.values() {
            let _ = self.client.publish(held.ack.clone(), "+WPI".into()).await;
        }
    }

    /// Tells the parent what the statistics say, if something has changed and the parent was not told lately.
    async fn tell_changed_stats(&mut self) {
        if !self.connected || !self.joined || self.stats_at.elapsed() < STATS {
            return;
        }
        self.stats_at = Instant::now();
        let (stats, tallies) = self.workers.tallied_stats();
        if self.stats.as_ref().is_none_or(|last| differ(last, &stats)) {
            self.tell_stats(0, stats, tallies).await;
        }
    }

    /// Tells the parent what the statistics say, as an answer to this question.
    async fn tell_stats(&mut self, asked: u64, stats: Stats, tallies: Tallies) {
        self.stats_at = Instant::now();
        self.stats = Some(stats.clone());
        self.say(&ToParent::Stats {
            node: self.node.clone(),
            asked,
            stats,
            tallies,
        })
        .await;
    }

    /// Checks the connection and the parent.
    fn look(&mut self) {
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut self.looked, now);
        let connected = self.client.connection_state() == Connection::Connected;
        let connects = link::connects(&self.client);
        let is_new = std::mem::replace(&mut self.connects, connects) != connects;
        // Pull requests don't outlive a connection; and if the stream is gone, they are not answered.
        if is_new || now >= self.asked_until {
            self.asked = 0;
        }
        if is_new {
            // What the parent said in the meantime could not be heard.
            self.silence = Duration::ZERO;
            self.ask_what_is_wanted();
        }
        self.connected = connected;
        if connected {
            self.silence += passed.min(2 * LOOK);
            self.away = Duration::ZERO;
        } else {
            self.away += passed.min(2 * LOOK);
        }
        if self.away >= self.away_max {
            self.leaving = Some("could not reconnect to the server");
        }
        if self.silence >= PARENT_GONE {
            self.leaving = Some("has not heard from the parent for 15 s");
        }
    }

    /// Asks which jobs are still wanted: a cancellation may have been missed while this node, or the parent, had no
    /// connection.
    fn ask_what_is_wanted(&self) {
        let mut jobs: Vec<u64> = self.held.values().map(|held| held.job).collect();
        jobs.sort_unstable();
        jobs.dedup();
        if jobs.is_empty() {
            return;
        }
        let (client, subject) = (self.client.clone(), self.run.parent());
        let events = self.events.clone();
        tokio::spawn(async move {
            let wanted = tell(&client, subject, &ToParent::Wanted(jobs.clone())).await;
            let wanted = jobs.into_iter().zip(wanted);
            let unwanted = wanted.filter(|(_, is_wanted)| *is_wanted == 0);
            for (job, _) in unwanted {
                let _ = events.send(Event::Unwanted(job));
            }
        });
    }
}

async fn prepare(store: &Store, relays: &Relays, load: Load) -> io::Result<Prepared> {
    let mut portions = Vec::new();
    let mut channels = Vec::new();
    for piece in load.pieces {
        let Piece {
            first,
            inputs,
            bound,
            held,
        } = piece;
        let bytes = store.unpack(inputs).await?;
        let mut inputs = Frames::from_bytes(bytes)
            .ok_or_else(|| io::Error::other("its inputs can't be read"))?;
        let piece_bound = bound;
        let bound = match &piece_bound {
            Some(bound) => Some(store.fetch(bound, relays).await?),
            None => None,
        };
        let mut fetched = Vec::new();
        for reference in &held {
            fetched.push(store.fetch(reference, relays).await?);
        }
        inputs.attach(bound.as_ref(), &fetched);
        let references = piece_bound.iter().chain(&held);
        references.for_each(|reference| reference.add_channels(&mut channels));
        portions.push(Portion { first, inputs });
    }
    Ok(Prepared {
        number: load.number,
        job: load.job,
        what: load.what,
        portions,
        channels,
    })
}

/// Whether these inputs failed only because there are no workers.
fn is_broken(outcomes: &Outcomes) -> bool {
    matches!(&outcomes.what, What::Failed { failure, .. } if matches!(**failure, Failure::Broken(_)))
}

/// Encodes outcomes for the parent.
async fn pack(store: &Store, what: What, name: String) -> Sent {
    let (kind, bytes): (fn(Body) -> Sent, _) = match what {
        What::Replies(replies) => (Sent::Replies, replies.to_bytes()),
        What::Failed { failure, .. } => (Sent::Failed, to_bytes(&*failure)),
    };
    match store.pack(bytes, &mut store.room(), || name).await {
        Ok(body) => kind(body),
        Err(error) => {
            let failure = Failure::EncodeResult(text(error));
            Sent::Failed(Body::Here(to_bytes(&failure)))
        }
    }
}

/// Sends the parent a request, repeatedly until it answers, since messages are lost when a server is killed.
async fn tell(client: &Client, subject: String, what: &ToParent) -> Bytes {
    let what = Bytes::from(to_bytes(what));
    loop {
        if let Ok(answer) = client.request(subject.clone(), what.clone()).await {
            return answer.payload;
        }
        time::sleep(AGAIN / 10).await;
    }
}
