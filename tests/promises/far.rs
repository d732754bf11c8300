//! A backend as one on another machine would be, by the public face only: nothing but bytes goes there and comes back. What is
//! there is the local one, so all promises can be tested over it: see [`builder`](crate::support::builder).

use std::collections::HashMap;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Instant;

use pool_core::backend::{
    Attachment, Backend, Channel, Failure, Few, Frames, Job, JobId, Local, LogRecords, News,
    Observer, Outcomes, Portion, Settings, Sink, Waiter, Want, What, Workers,
};
use pool_core::{Error, Stats};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Far;

impl Backend for Far {
    fn start(self: Box<Self>, settings: Settings) -> Result<Arc<dyn Workers>, Error> {
        let (forget, forgotten) = mpsc::channel();
        let store = Arc::new(Mutex::new(Store {
            kept: HashMap::new(),
            channels: HashMap::new(),
            forget,
        }));
        let keeper = Arc::downgrade(&store);
        thread::spawn(move || {
            // Until there are no workers, and nobody has what they had.
            for id in forgotten {
                let Some(store) = keeper.upgrade() else {
                    return;
                };
                let mut store = lock(&store);
                let gone = (store.kept.remove(&id), store.channels.remove(&id));
                drop(store);
                drop(gone);
            }
        });
        let mut there: Settings = travel(&settings);
        let observer = settings.observer.clone();
        there.observer = observer.map(|here| Arc::new(FarObserver(here)) as Arc<dyn Observer>);
        for (here, there) in settings.preparations().zip(there.preparations_mut()) {
            let attachments = here.attachments.iter();
            there.attachments = attachments.map(|one| lock(&store).fetch(one)).collect();
        }
        let held = settings
            .preparations()
            .flat_map(|task| task.attachments.clone());
        let held = Mutex::new(held.collect());
        Ok(Arc::new(FarWorkers {
            there: Box::new(Local).start(there)?,
            store,
            sinks: Mutex::default(),
            held,
        }))
    }
}

/// What happens there is told here.
#[derive(Debug)]
struct FarObserver(Arc<dyn Observer>);

impl Observer for FarObserver {
    fn observe(&self, news: Vec<News>) {
        let news = news.iter().map(|news| travel(news).on(HOST));
        self.0.observe(news.collect());
    }
}

/// What arrives at the other side.
fn travel<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let bytes = postcard::to_stdvec(value).expect("it can be sent");
    postcard::from_bytes(&bytes).expect("it can be received")
}

fn travel_as_bytes(frames: &Frames) -> Frames {
    Frames::from_bytes(frames.to_bytes()).expect("they can be received")
}

/// The attachments that are there.
#[derive(Debug)]
struct Store {
    /// By their ids.
    kept: HashMap<u64, Arc<Attachment>>,
    /// Those that are channels.
    channels: HashMap<u64, Arc<FarChannel>>,
    /// What nobody holds here any more.
    forget: Sender<u64>,
}

impl Store {
    /// The same attachment there; sent, if it was not before.
    fn fetch(&mut self, here: &Arc<Attachment>) -> Arc<Attachment> {
        if let Some(there) = self.kept.get(&here.id()) {
            return Arc::clone(there);
        }
        let there = match here.channel() {
            Some(channel) => self.open(here.id(), channel),
            None => {
                let holds = here.holds().iter().map(|one| self.fetch(one)).collect();
                let bytes = here.bytes().expect("there is memory").to_vec();
                Attachment::with_id(here.id(), &[&bytes], holds).expect("there is memory")
            }
        };
        let forget = self.forget.clone();
        here.on_drop(move |id| {
            let _ = forget.send(id);
        });
        self.kept.insert(here.id(), Arc::clone(&there));
        there
    }
}

impl Store {
    /// A channel whose messages come here.
    fn open(&mut self, id: u64, here: &Arc<Channel>) -> Arc<Attachment> {
        let way = Arc::new(Mutex::new(Arc::clone(here)));
        let moved = Arc::clone(&way);
        let there = Channel::of_other(id, move |there| move_all(there, &moved));
        let channel = Arc::clone(there.channel().expect("it is one"));
        self.channels.insert(
            id,
            Arc::new(FarChannel {
                there: channel,
                way,
            }),
        );
        there
    }
}

#[derive(Debug)]
struct FarChannel {
    there: Arc<Channel>,
    way: Arc<Mutex<Arc<Channel>>>,
}

fn move_everything(store: &Mutex<Store>) {
    let channels: Vec<_> = lock(store).channels.values().cloned().collect();
    for channel in channels {
        move_all(&channel.there, &channel.way);
    }
}

/// Messages come here, one thread after the other.
fn move_all(there: &Channel, way: &Mutex<Arc<Channel>>) {
    let here = lock(way);
    for batch in there.take_now() {
        let bytes = travel(&batch.to_bytes());
        if !here.give(bytes, move || drop(batch)) {
            there.close();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct FarWorkers {
    there: Arc<dyn Workers>,
    store: Arc<Mutex<Store>>,
    sinks: Mutex<HashMap<JobId, Weak<FarSink>>>,
    /// What workers have as long as there are any.
    held: Mutex<Vec<Arc<Attachment>>>,
}

impl FarWorkers {
    /// Inputs as they are there. What they refer to is held here as long as they have no outcomes.
    fn send(&self, inputs: Few<Portion>, sink: &FarSink) -> Few<Portion> {
        let mut store = lock(&self.store);
        let send = |Portion { first, inputs }: Portion| {
            lock(&sink.held).extend(inputs.attachments().cloned());
            let mut there = travel_as_bytes(&inputs);
            let bound = inputs.bound().map(|bound| store.fetch(bound));
            let held: Vec<_> = inputs.held().iter().map(|one| store.fetch(one)).collect();
            there.attach(bound.as_ref(), &held);
            Portion {
                first,
                inputs: there,
            }
        };
        inputs.into_iter().map(send).collect()
    }
}

/// Gives outcomes back to the sink here.
#[derive(Debug)]
struct FarSink {
    here: Arc<dyn Sink>,
    store: Arc<Mutex<Store>>,
    held: Mutex<Vec<Arc<Attachment>>>,
}

#[derive(Serialize, Deserialize)]
enum Sent {
    Replies(Vec<u8>),
    Failed(usize, Failure),
}

impl Sink for FarSink {
    fn deliver(self: Arc<Self>, outcomes: Outcomes) {
        // What was sent before is there before.
        move_everything(&self.store);
        let sent = travel(&match &outcomes.what {
            What::Replies(replies) => Sent::Replies(replies.to_bytes()),
            What::Failed { count, failure } => Sent::Failed(*count, (**failure).clone()),
        });
        let what = match sent {
            Sent::Replies(bytes) => {
                What::Replies(Frames::from_bytes(bytes).expect("they can be received"))
            }
            Sent::Failed(count, failure) => What::Failed {
                count,
                failure: Arc::new(failure),
            },
        };
        let first = outcomes.first;
        Arc::clone(&self.here).deliver(Outcomes { first, what });
    }

    fn log(&self, records: LogRecords) {
        self.here.log(travel(&records).on(HOST));
    }
}

/// What this machine is called there.
pub(crate) const HOST: &str = "far";

impl Workers for FarWorkers {
    fn submit(
        &self,
        job: Job,
        sink: Arc<dyn Sink>,
        inputs: Few<Portion>,
        more: bool,
    ) -> Result<JobId, Error> {
        let sink = Arc::new(FarSink {
            here: sink,
            store: Arc::clone(&self.store),
            held: Mutex::default(),
        });
        let inputs = self.send(inputs, &sink);
        let known = Arc::downgrade(&sink);
        let job = self.there.submit(travel(&job), sink, inputs, more)?;
        let mut sinks = lock(&self.sinks);
        sinks.retain(|_, sink| sink.strong_count() > 0);
        sinks.insert(job, known);
        Ok(job)
    }

    fn push(&self, job: JobId, inputs: Few<Portion>, more: bool) -> Result<(), Error> {
        let sink = lock(&self.sinks).get(&job).and_then(Weak::upgrade);
        match sink {
            Some(sink) => self.there.push(job, self.send(inputs, &sink), more),
            // It has ended. That is said there.
            None => self.there.push(job, Few::default(), more),
        }
    }

    fn cancel(&self, job: JobId, running: bool) {
        self.there.cancel(job, running);
    }

    fn wait(&self, job: JobId, want: Want, waiter: Waiter<'_>, deadline: Option<Instant>) -> bool {
        self.there.wait(job, want, waiter, deadline)
    }

    fn notify(&self, job: JobId) {
        self.there.notify(job);
    }

    fn notify_of(&self, job: JobId, want: Want) {
        self.there.notify_of(job, want);
    }

    fn running(&self, job: JobId) -> usize {
        self.there.running(job)
    }

    fn hint(&self, task: u32) -> usize {
        self.there.hint(task)
    }

    fn confines(&self) -> bool {
        true
    }

    fn carries_channels(&self) -> bool {
        true
    }

    fn stats(&self) -> Stats {
        let mut stats: Stats = travel(&self.there.stats());
        for worker in &mut stats.workers {
            worker.host = Some(HOST.to_owned());
        }
        stats
    }

    fn close(&self) {
        self.there.close();
    }

    fn terminate(&self) {
        self.there.terminate();
    }

    fn join(&self, deadline: Option<Instant>) -> Result<(), Error> {
        self.there.join(deadline)?;
        move_everything(&self.store);
        lock(&self.held).clear();
        Ok(())
    }

    fn shut_down(&self) {
        self.there.shut_down();
    }

    fn count(&self) -> usize {
        self.there.count()
    }

    fn pids(&self) -> Vec<u32> {
        self.there.pids()
    }
}
