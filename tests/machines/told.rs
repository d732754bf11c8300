//! What the parent is told about its nodes: events, log records, statistics. (For log records, see also `promises/log.rs`.)

use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use pool_core::{Ended, Error, Event, Pool, Stats, WorkerState};
use tests::Told;
use tracing::span::Id;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use super::*;

#[test]
fn events_of_nodes_have_the_time_of_the_parent_and_end_with_their_node() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let told = Told::default();
    let tells = told.clone();
    let builder = builder(server.nats("events").nodes(0));
    let before = Instant::now();
    let pool = builder.on_event(move |event| tells.tell(event)).build();
    let pool = pool.unwrap();
    let built = Instant::now();
    // The node is younger than the pool by at least this.
    thread::sleep(Duration::from_secs(3));
    let mut node = server.node("events", 1);
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
    // Events may come after the result that they are about.
    told.wait_for(0, |event| {
        matches!(event, Event::InputEnded { .. }).then_some(())
    });
    let seen = told.all().len();
    let submitted = Instant::now();
    assert_eq!(pool.apply(square, (4,)).unwrap(), 16);
    let done = Instant::now();
    let began = told.wait_for(seen, |event| match event {
        Event::InputBegan { at, host, .. } => Some((*at, host.clone())),
        _ => None,
    });
    let ended = told.wait_for(seen, |event| match event {
        Event::InputEnded { at, .. } => Some(*at),
        _ => None,
    });
    assert_eq!(began.1, Some(host()));
    // It knows the time to half of the faster of two round trips, which take long on a busy machine.
    let error = Duration::from_secs(1);
    assert!(began.0 + error >= submitted - built, "{began:?}");
    assert!(
        began.0 <= ended && ended <= done - before + error,
        "{ended:?}"
    );

    let seen = told.all().len();
    let lost = pool.apply_async(hang, ());
    told.wait_for(seen, |event| {
        matches!(event, Event::InputBegan { .. }).then_some(())
    });
    node.child.kill().unwrap();
    assert!(matches!(lost.get(), Err(Error::WorkerLost(_))));
    let outcome = told.wait_for(seen, |event| match event {
        Event::InputEnded { outcome, task, .. } => Some((*outcome, task.clone())),
        _ => None,
    });
    assert_eq!(outcome.0, Ended::WorkerLost);
    assert!(outcome.1.ends_with("hang"), "{outcome:?}");
    let why = told.wait_for(seen, |event| match event {
        Event::WorkerDied { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert!(why.is_some_and(|why| why.contains("node")));
}

fn done(stats: &Stats) -> u64 {
    stats.workers.iter().map(|worker| worker.done).sum()
}

/// Asks until the answer is as expected: nodes that are too slow to answer are not waited for.
fn stats_when(pool: &Pool, what: &str, is_so: impl Fn(&Stats) -> bool) -> Stats {
    let mut stats = pool.stats();
    eventually(what, || {
        stats = pool.stats();
        is_so(&stats)
    });
    stats
}

/// How often inputs of the first task have run, as the nodes tell.
fn attempts(stats: &Stats) -> u64 {
    stats.tasks.first().map_or(0, |task| task.attempts)
}

fn close(pool: &Pool) -> Stats {
    pool.close();
    pool.join().unwrap();
    pool.stats()
}

#[test]
fn statistics_of_nodes_add_up_also_of_those_that_have_left() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let (first, second) = (server.node("stats", 1), server.node("stats", 2));
    let pool = builder(server.nats("stats").nodes(2)).build().unwrap();
    pool.task(nap).chunksize(1).map(0..60).unwrap();
    let stats = stats_when(&pool, "both have told everything", |stats| {
        stats.workers.len() == 3 && attempts(stats) == 60 && done(stats) == 60
    });
    let here = Some(host());
    assert!(stats.workers.iter().all(|worker| worker.host == here));
    let [task] = &stats.tasks[..] else {
        panic!("{stats}");
    };
    assert_eq!(
        (task.done, task.attempts, task.run_times.count),
        (60, 60, 60)
    );
    assert!(task.run_times.p50 >= Duration::from_millis(1), "{stats}");

    // Which of the two did how many is not known, but what was done remains.
    first.signal(libc::SIGTERM);
    let (code, said) = first.end();
    assert_eq!(code, Some(0), "{said}");
    eventually("the node is gone", || pool.stats().workers.len() == 2);
    pool.task(nap).chunksize(1).map(0..10).unwrap();
    // `join` does not wait long for the last report.
    stats_when(&pool, "the second has told everything", |stats| {
        attempts(stats) == 70
    });
    let last = close(&pool);
    let [task] = &last.tasks[..] else {
        panic!("{last}");
    };
    assert_eq!(
        (task.done, task.attempts, task.run_times.count),
        (70, 70, 70)
    );
    let workers = last.workers.iter();
    assert!(
        workers
            .clone()
            .all(|worker| worker.state == WorkerState::Absent)
    );
    assert_eq!(workers.count(), 2);
    drop((pool, second));
}

/// A node that does not answer holds nobody up for long.
#[test]
fn statistics_are_told_although_a_node_is_stopped() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let node = server.node("silent", 1);
    let pool = builder(server.nats("silent").nodes(1)).build().unwrap();
    pool.map(square, 0..10).unwrap();
    stats_when(&pool, "it has told everything", |stats| done(stats) == 10);
    node.signal(libc::SIGSTOP);
    let asked = Instant::now();
    let stats = pool.stats();
    assert!(asked.elapsed() < Duration::from_secs(20), "{asked:?}");
    // What was told last.
    assert_eq!(done(&stats), 10);
    node.signal(libc::SIGCONT);
    pool.map(square, 0..10).unwrap();
    eventually("it answers again", || done(&pool.stats()) == 20);
}

/// A node that is told to end, and is killed while its worker runs a finalizer.
#[test]
fn a_node_that_is_killed_while_it_leaves_is_forgotten() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let (mut first, second) = (server.node("leaves", 1), server.node("leaves", 1));
    let pool = builder(server.nats("leaves").nodes(2)).finalizer(hang, ());
    let pool = pool.build().unwrap();
    stats_when(&pool, "both have told", |stats| stats.workers.len() == 2);
    first.signal(libc::SIGTERM);
    eventually("it takes no more loads", || pool.processes() == 1);
    assert_eq!(pool.stats().workers.len(), 2, "its worker is still there");
    first.child.kill().unwrap();
    eventually("it is forgotten", || pool.stats().workers.len() == 1);
    pool.terminate();
    drop((pool, second));
}

/// Says what happens to spans and events.
struct Says(Sender<&'static str>);

impl Layer<Registry> for Says {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, Registry>) {
        if event.metadata().target() == "hangs" {
            let _ = self.0.send("event");
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, Registry>) {
        if context
            .span(&id)
            .is_some_and(|span| span.name() == "hanging")
        {
            let _ = self.0.send("close");
        }
    }
}

#[pool_task]
fn hang_in_span() {
    let _span = tracing::info_span!("hanging").entered();
    tracing::info!(target: "hangs", "here");
    loop {
        thread::park();
    }
}

#[test]
fn spans_end_when_their_node_is_lost() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let mut node = server.node("spans", 1);
    let pool = builder(server.nats("spans").nodes(1)).build().unwrap();
    let (says, said) = mpsc::channel();
    let subscriber = Registry::default().with(Says(says));
    let lost = tracing::subscriber::with_default(subscriber, || pool.apply_async(hang_in_span, ()));
    assert_eq!(said.recv(), Ok("event"));
    node.child.kill().unwrap();
    assert!(matches!(lost.get(), Err(Error::WorkerLost(_))));
    assert_eq!(said.recv(), Ok("close"));
}
