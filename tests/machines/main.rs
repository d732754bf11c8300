//! The pool on many machines: a real NATS server, and nodes, which are this test program, started again.
//!
//! If there is no `nats-server` (in `NATS_SERVER_BIN`, on the PATH, in /usr/sbin), each test says so and tests nothing.

mod anytime;
mod hosts;
mod support;
mod told;

use std::env;
use std::path::Path;
use std::process::{self, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use pool_core::{Error, PoolBuilder, Shared, pool_task};

use support::{Node, Server, builder, eventually, host, mark, marks, watchdog};

// ---- tasks ----------------------------------------------------------------------------------------

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

/// Takes a moment.
#[pool_task]
fn nap(_: u64) {
    thread::sleep(Duration::from_millis(1));
}

#[pool_task]
fn picky(x: u64) -> u64 {
    assert!(x != 3, "not {x}");
    x
}

#[pool_task]
fn die(x: u64) -> u64 {
    if x == 3 {
        process::abort();
    }
    x
}

#[pool_task]
fn total(table: &[f64], names: Shared<Vec<String>>, x: usize) -> f64 {
    table[x] + names[x].len() as f64
}

#[pool_task]
fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

static PREPARED: OnceLock<String> = OnceLock::new();

#[pool_task]
fn prepare(text: Shared<str>) {
    PREPARED.set(text.to_string()).expect("once in each worker");
}

#[pool_task]
fn prepared() -> String {
    PREPARED.get().cloned().unwrap_or_default()
}

#[pool_task]
fn refuse() {
    panic!("not on this host");
}

#[pool_task]
fn hang() {
    loop {
        thread::park();
    }
}

// ---- what stays -----------------------------------------------------------------------------------

#[test]
fn everything_is_as_on_one_machine() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let nodes = [server.node("stays", 1), server.node("stays", 2)];
    let text = Shared::<str>::copy_from("prepared").unwrap();
    let pool = builder(server.nats("stays").nodes(2)).initializer(prepare, (text,));
    let pool = pool.build().unwrap();
    assert_eq!(pool.processes(), 3);
    assert!(pool.worker_pids().is_empty());
    let squares: Vec<u64> = (0..10_000).map(|x| x * x).collect();
    assert_eq!(pool.map(square, 0..10_000).unwrap(), squares);
    assert_eq!(
        pool.task(square).chunksize(7).map(0..10_000).unwrap(),
        squares
    );
    let lazily: Result<Vec<u64>, Error> = pool.imap(square, 0..).take(100).collect();
    assert_eq!(lazily.unwrap(), squares[..100]);
    let mut unordered: Vec<u64> = pool.imap_unordered(square, 0..1000).flatten().collect();
    unordered.sort_unstable();
    assert_eq!(unordered, squares[..1000]);
    assert_eq!(pool.apply(prepared, ()).unwrap(), "prepared");

    let names = Shared::new(vec!["a".to_owned(), "bcd".to_owned()]).unwrap();
    let table = vec![0.5; 100_000];
    let call = pool
        .task(total)
        .by_ref()
        .partial((&table, &names))
        .by_value();
    for _ in 0..3 {
        assert_eq!(call.map([0, 1, 0]).unwrap(), [1.5, 3.5, 1.5]);
    }
    drop((call, names));
    let long: Vec<u8> = (0..3_000_000_u32).map(|x| x as u8).collect();
    let backwards: Vec<u8> = long.iter().rev().copied().collect();
    assert_eq!(pool.apply(reversed, (long.clone(),)).unwrap(), backwards);
    assert_eq!(
        pool.map(reversed, [long.clone(), long]).unwrap(),
        [backwards.clone(), backwards]
    );

    for (x, outcome) in (0..).zip(pool.task(picky).map_results(0..10)) {
        match outcome {
            Ok(y) => assert_eq!(x, y),
            Err(Error::Panicked(panic)) => assert_eq!((x, panic.message()), (3, "not 3")),
            Err(other) => panic!("{other}"),
        }
    }
    for (x, outcome) in (0..).zip(pool.task(die).map_results(0..10)) {
        match outcome {
            Ok(y) => assert_eq!(x, y),
            Err(Error::WorkerLost(lost)) => {
                assert_eq!((x, lost.signal()), (3, Some("SIGABRT")));
                assert_eq!(lost.host(), Some(&*host()));
            }
            Err(other) => panic!("{other}"),
        }
    }
    let limited = pool
        .task(hang)
        .time_limit(Duration::from_millis(100))
        .apply(());
    assert!(
        matches!(&limited, Err(Error::TimeLimit(limit)) if limit.host().is_some()),
        "{limited:?}"
    );
    let running = pool.apply_async(hang, ());
    assert!(running.get_timeout(Duration::from_millis(300)).is_err());
    assert!(running.cancel());
    assert!(matches!(running.get(), Err(Error::Cancelled)));
    assert_eq!(pool.map(square, 0..100).unwrap(), squares[..100]);

    pool.close();
    assert!(matches!(pool.apply(square, (1,)), Err(Error::Closed)));
    pool.join().unwrap();
    for node in nodes {
        let (code, said) = node.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(
            said.contains("joined stays") && said.contains("ended with the run"),
            "{said}"
        );
    }
    eventually("nothing is left on the server", || {
        server.streams().is_empty()
    });
}

#[test]
fn terminating_answers_all_and_leaves_nothing() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let node = server.node("ends", 2);
    let pool = builder(server.nats("ends")).build().unwrap();
    let hanging: Vec<_> = (0..10).map(|_| pool.apply_async(hang, ())).collect();
    assert!(hanging[0].get_timeout(Duration::from_millis(200)).is_err());
    drop(pool);
    for result in hanging {
        assert!(matches!(result.get(), Err(Error::Terminated)));
    }
    assert_eq!(node.end().0, Some(0));
    eventually("nothing is left on the server", || {
        server.streams().is_empty()
    });
}

// ---- nodes that go --------------------------------------------------------------------------------

/// Makes marks on two nodes, does something to one of them midway, and checks each input.
fn disturb(run: &str, retries: u32, disturb: impl FnOnce(&mut Node)) -> usize {
    let Some(server) = Server::start(&["-js"]) else {
        return 0;
    };
    let mut nodes = [server.node(run, 2), server.node(run, 2)];
    let pool = builder(server.nats(run).nodes(2)).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let inputs = (0..400).map(|x| (file.clone(), x, 10));
    let call = pool.task(mark).retries(retries);
    let mut outcomes = call.istarmap_unordered(inputs);
    let mut disturb = Some(disturb);
    let (mut well, mut lost) = (0, 0);
    for number in 0.. {
        if number == 100
            && let Some(disturb) = disturb.take()
        {
            disturb(&mut nodes[0]);
        }
        match outcomes.next() {
            None => break,
            Some(Ok(_)) => well += 1,
            Some(Err(Error::WorkerLost(error))) => {
                assert_eq!(error.host(), Some(&*host()), "{error}");
                lost += 1;
            }
            Some(Err(error)) => panic!("{error}"),
        }
    }
    drop(outcomes);
    assert_eq!(well + lost, 400);
    let marks = marks(&file);
    let twice = marks.values().filter(|count| **count > 1).count();
    assert!(marks.len() >= well, "{} began", marks.len());
    assert!(
        twice <= if retries > 0 { 16 } else { 0 },
        "{twice} have run twice"
    );
    // The other node keeps working.
    assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
    assert_eq!(pool.processes(), 2);
    lost
}

#[test]
fn a_node_that_is_killed_costs_what_it_had_begun() {
    let _dog = watchdog();
    let lost = disturb("killed", 0, |node| node.child.kill().unwrap());
    assert!(lost <= 16, "{lost}");
}

#[test]
fn what_a_killed_node_had_begun_runs_again_if_that_is_allowed() {
    let _dog = watchdog();
    let lost = disturb("again", 2, |node| node.child.kill().unwrap());
    assert_eq!(lost, 0);
}

#[test]
fn a_node_that_is_stopped_is_given_up() {
    let _dog = watchdog();
    let lost = disturb("stopped", 0, |node| node.signal(libc::SIGSTOP));
    assert!(lost <= 16, "{lost}");
}

#[test]
fn a_node_that_is_told_to_end_finishes_what_runs() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let (first, second) = (server.node("told", 2), server.node("told", 1));
    let pool = builder(server.nats("told").nodes(2)).grace(Duration::from_secs(20));
    let pool = pool.build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let results = pool.starmap_async(mark, (0..200).map(|x| (file.clone(), x, 10)));
    eventually("some have begun", || marks(&file).len() > 20);
    first.signal(libc::SIGTERM);
    let (code, said) = first.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("SIGTERM"), "{said}");
    assert_eq!(results.get().unwrap(), Vec::from_iter(0..200));
    assert!(marks(&file).values().all(|count| *count == 1));
    drop((pool, second));
}

#[test]
fn nodes_may_come_later() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let pool = builder(server.nats("later").nodes(0)).processes(3);
    let pool = pool.build().unwrap();
    let result = pool.map_async(square, 0..100);
    assert!(result.get_timeout(Duration::from_millis(300)).is_err());
    let _node = server.node("later", 1);
    assert_eq!(result.get().unwrap().len(), 100);
    // A node that is not told has as many processes as the pool asks for.
    let mut node = Command::new(env::current_exe().unwrap());
    let node = node.env("POOL_NODE", format!("{}/later", server.url()));
    let node = node.env_remove("POOL_NODE_PROCESSES").stderr(Stdio::null());
    let mut node = node.spawn().unwrap();
    eventually("it has joined", || pool.processes() == 4);
    drop(pool);
    assert!(node.wait().unwrap().success());
}

#[test]
fn a_forked_copy_of_the_parent_has_no_pool() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let program = env!("CARGO_BIN_EXE_far_parent");
    let node = Node::start(&mut Command::new(program), &server.url(), "forked", 1);
    let parent = Command::new(program)
        .args([&server.url(), "forked", "fork"])
        .output();
    let parent = parent.unwrap();
    assert!(parent.status.success(), "{parent:?}");
    assert_eq!(parent.stdout, b"child: Some(42)\n");
    assert_eq!(node.end().0, Some(0));
}

// ---- a server that goes ---------------------------------------------------------------------------

#[test]
fn a_server_that_comes_back_costs_nothing() {
    let _dog = watchdog();
    let Some(mut server) = Server::start(&["-js"]) else {
        return;
    };
    let _nodes = [server.node("back", 1), server.node("back", 1)];
    let pool = builder(server.nats("back").nodes(2)).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let results = pool.starmap_async(mark, (0..300).map(|x| (file.clone(), x, 5)));
    for round in 1..3 {
        eventually("some have begun", || marks(&file).len() > round * 60);
        server.kill();
        thread::sleep(Duration::from_millis(300));
        server.restart();
    }
    assert_eq!(results.get().unwrap(), Vec::from_iter(0..300));
    assert!(marks(&file).values().all(|count| *count == 1));
    assert_eq!(pool.map(square, 0..10).unwrap().len(), 10);
}

/// Returns the parent of the worker that runs this.
#[pool_task]
fn node_of(_: u64) -> u32 {
    std::os::unix::process::parent_id()
}

#[test]
fn a_node_that_was_stopped_for_long_harms_nobody() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let sleeper = server.node("sleeper", 1);
    let _other = server.node("sleeper", 1);
    let pool = builder(server.nats("sleeper").nodes(2)).build().unwrap();
    // If stopped before it knows that it has joined, it would ask again and be let in.
    eventually("it has work", || {
        let nodes = pool.map(node_of, 0..8).unwrap();
        nodes.contains(&sleeper.child.id())
    });
    sleeper.signal(libc::SIGSTOP);
    // Longer than a parent may be silent.
    thread::sleep(Duration::from_secs(17));
    sleeper.signal(libc::SIGCONT);
    let (code, said) = sleeper.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("was declared lost"), "{said}");
    // The object store still exists.
    let long = vec![1; 1_000_000];
    assert_eq!(pool.apply(reversed, (long.clone(),)).unwrap(), long);
}

#[test]
fn what_is_cancelled_while_the_server_is_away_does_not_go_on() {
    let _dog = watchdog();
    let Some(mut server) = Server::start(&["-js"]) else {
        return;
    };
    let _node = server.node("deaf", 1);
    let pool = builder(server.nats("deaf")).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let endless = pool.apply_async(mark, (file.clone(), 1, u64::MAX));
    eventually("it has begun", || marks(&file).len() == 1);
    server.kill();
    assert!(endless.cancel());
    assert!(matches!(endless.get(), Err(Error::Cancelled)));
    server.restart();
    // The only process of the only node is free.
    assert_eq!(pool.apply(square, (7,)).unwrap(), 49);
}

#[test]
fn a_grace_without_end_is_no_harm() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let node = server.node("patient", 1);
    let pool = builder(server.nats("patient")).grace(Duration::MAX);
    let pool = pool.build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let result = pool.apply_async(mark, (file.clone(), 1, 500));
    eventually("it has begun", || marks(&file).len() == 1);
    node.signal(libc::SIGTERM);
    let (code, said) = node.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(result.get().unwrap(), 1);
}

#[test]
fn long_tasks_wait_for_nobody() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let _nodes = [server.node("long", 1), server.node("long", 1)];
    let pool = builder(server.nats("long").nodes(2)).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5 {
        // Nodes believe that every load is quick, and take more than they can run at once.
        assert_eq!(
            pool.task(square).chunksize(1).map(0..10_000).unwrap().len(),
            10_000
        );
        let file = directory.path().join(format!("marks-{round}"));
        let forever = |x| pool.apply_async(mark, (file.clone(), x, u64::MAX));
        let first = forever(1);
        let quick = pool.map_async(square, 0..10);
        assert_eq!(quick.get().unwrap().len(), 10);
        let second = forever(2);
        eventually("both have begun", || marks(&file).len() == 2);
        assert!(first.cancel() && second.cancel());
    }
}

#[test]
fn a_stream_that_somebody_deletes_is_made_anew() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let _node = server.node("deleted", 2);
    let pool = builder(server.nats("deleted")).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let results = pool.starmap_async(mark, (0..300).map(|x| (file.clone(), x, 5)));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap().block_on(async {
        let client = pool_nats::async_nats::connect(server.url()).await.unwrap();
        let jetstream = pool_nats::async_nats::jetstream::new(client);
        eventually("some have begun", || marks(&file).len() > 60);
        jetstream.delete_stream("pool_deleted").await.unwrap();
        eventually("more have begun", || marks(&file).len() > 150);
        let stream = jetstream.get_stream("pool_deleted").await.unwrap();
        stream.delete_consumer("nodes-1").await.unwrap();
    });
    assert_eq!(results.get().unwrap(), Vec::from_iter(0..300));
    assert!(marks(&file).values().all(|count| *count == 1));
}

#[test]
fn a_server_that_stays_away_breaks_the_pool() {
    let _dog = watchdog();
    let Some(mut server) = Server::start(&["-js"]) else {
        return;
    };
    let node = server.node("away", 1);
    let nats = server.nats("away").server_timeout(Duration::from_secs(4));
    let pool = builder(nats).build().unwrap();
    let hanging = pool.apply_async(hang, ());
    server.kill();
    let error = hanging.get().unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    assert!(error.to_string().contains("NATS server"), "{error}");
    let error = pool.apply(square, (1,)).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    // Its nodes give up too.
    let (code, said) = node.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("could not reconnect to the server"), "{said}");
}

/// Whatever is submitted at the moment when the pool breaks down gets an outcome.
#[test]
fn calls_that_are_made_while_the_pool_breaks_down_end() {
    let _dog = watchdog();
    let Some(mut server) = Server::start(&["-js"]) else {
        return;
    };
    let _node = server.node("flood", 1);
    let nats = server.nats("flood").server_timeout(Duration::from_secs(1));
    let pool = builder(nats).build().unwrap();
    let hanging = pool.apply_async(hang, ());
    server.kill();
    let mut calls = Vec::new();
    while !hanging.ready() {
        calls.push(pool.apply_async(square, (calls.len() as u64,)));
    }
    assert!(!calls.is_empty());
    for call in calls {
        let error = call.get().unwrap_err();
        assert!(matches!(error, Error::Broken(_)), "{error:?}");
    }
}

// ---- errors ---------------------------------------------------------------------------------------

#[test]
fn what_can_be_wrong_is_said() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let why = |builder: PoolBuilder| builder.build().unwrap_err().to_string();
    let soon = Duration::from_secs(3);

    let nobody = pool_nats::connect("nats://127.0.0.1:1").unwrap();
    let text = why(builder(nobody));
    assert!(
        text.contains("127.0.0.1:1") && text.contains("refused"),
        "{text}"
    );

    let text = why(builder(server.nats("few").nodes(2)).start_timeout(soon));
    assert!(
        text.contains("0 of 2 nodes") && text.contains("POOL_NODE"),
        "{text}"
    );

    let first = builder(server.nats("taken").nodes(0)).build().unwrap();
    let text = why(builder(server.nats("taken").nodes(0)));
    assert!(
        text.contains("a pool named `taken` is already running"),
        "{text}"
    );
    drop(first);
    // A run that failed to start leaves nothing behind.
    let text = why(builder(server.nats("unready")).start_timeout(soon));
    assert!(text.contains("0 of 1 nodes"), "{text}");
    eventually("nothing is left on the server", || {
        server.streams().is_empty()
    });

    let node = server.node("unfit", 1);
    let text = why(builder(server.nats("unfit")).initializer(refuse, ()));
    assert!(
        text.contains(&host()) && text.contains("not on this host"),
        "{text}"
    );
    assert_eq!(node.end().0, Some(1));

    // The pool does not wait for the node, but reports what is wrong with it.
    let pool = builder(server.nats("unready").nodes(0)).initializer(refuse, ());
    let pool = pool.build().unwrap();
    let result = pool.apply_async(square, (1,));
    let _node = server.node("unready", 1);
    let error = result.get().unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    assert!(error.to_string().contains("not on this host"), "{error}");

    // Another program has other tasks.
    let pool = builder(server.nats("other").nodes(0)).build().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_far_parent"));
    let (code, said) = Node::start(&mut program, &server.url(), "other", 1).end();
    assert_eq!(code, Some(1));
    assert!(
        said.contains("another build") && said.contains("far_parent::append"),
        "{said}"
    );
    drop(pool);

    // A program without this backend.
    let mut program = Command::new(env!("CARGO_BIN_EXE_hold"));
    let (code, said) = Node::start(&mut program, &server.url(), "other", 1).end();
    assert_eq!(code, Some(2));
    assert!(said.contains("no backend"), "{said}");

    let Some(plain) = Server::start(&[]) else {
        return;
    };
    let text = why(builder(plain.nats("plain")));
    assert!(text.to_lowercase().contains("jetstream"), "{text}");

    let options = ["-js", "--user", "me", "--pass", "secret"];
    let Some(locked) = Server::start(&options) else {
        return;
    };
    let text = why(builder(locked.nats("locked")));
    assert!(text.contains("authorization violation"), "{text}");
    let url = format!("nats://me:secret@127.0.0.1:{}", locked.port);
    let program = env::current_exe().unwrap();
    let node = Node::start(&mut Command::new(program), &url, "locked", 1);
    let pool = builder(pool_nats::connect(&url).unwrap().run("locked")).build();
    assert_eq!(pool.unwrap().apply(square, (4,)).unwrap(), 16);
    assert_eq!(node.end().0, Some(0));
}

#[pool_task]
fn keep(bytes: Vec<u8>) {
    let text = bytes.len().to_string();
    PREPARED.set(text).expect("once in each worker");
}

#[pool_task]
fn shout(len: usize) {
    panic!("{}", "long ".repeat(len / 5));
}

#[pool_task]
fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

#[pool_task]
fn leave(file: &Path, text: Shared<str>) {
    let number: u64 = text.parse().expect("a number");
    // Longer than idle workers get when a pool is simply dropped.
    assert_eq!(mark(file, number, 400), number);
}

#[test]
fn nodes_have_finalizers_and_variables_too() {
    let _dog = watchdog();
    let Some(server) = Server::start(&["-js"]) else {
        return;
    };
    let node = server.node("leaving", 2);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("left");
    let (one, two) = ("1".to_owned(), Shared::<str>::copy_from("2").unwrap());
    let pool = builder(server.nats("leaving"))
        .env("POOL_TEST_NODE", &one)
        .finalizer(mark, (file.clone(), 1, 0))
        .finalizer(leave, (file.clone(), two))
        .build()
        .unwrap();
    assert_eq!(pool.apply(square, (3,)).unwrap(), 9);
    let seen = pool.apply(variable, ("POOL_TEST_NODE".to_owned(),));
    assert_eq!(seen.unwrap(), Some(one));
    pool.close();
    pool.join().unwrap();
    assert_eq!(node.end().0, Some(0));
    assert_eq!(marks(&file), [(1, 2), (2, 2)].into());
}

#[test]
fn nothing_is_too_long_for_a_server_with_short_messages() {
    let _dog = watchdog();
    let Some(server) = Server::configured("jetstream {}\nmax_payload: 16KB") else {
        return;
    };
    let node = server.node("short", 2);
    let long: Vec<u8> = (0..1_000_000_u32).map(|x| x as u8).collect();
    let pool = builder(server.nats("short")).initializer(keep, (long.clone(),));
    let pool = pool.build().unwrap();
    assert_eq!(pool.apply(prepared, ()).unwrap(), "1000000");
    let backwards: Vec<u8> = long.iter().rev().copied().collect();
    for len in [7_000, 9_000, 1_000_000] {
        let result = pool.apply(reversed, (long[..len].to_vec(),)).unwrap();
        assert_eq!(result, backwards[1_000_000 - len..]);
    }
    let error = pool.apply(shout, (1_000_000,)).unwrap_err();
    assert!(
        matches!(&error, Error::Panicked(panic) if panic.message().len() == 1_000_000),
        "{}",
        error.to_string().len()
    );
    drop(pool);
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn a_full_disk_is_waited_for_and_then_an_error() {
    let _dog = watchdog();
    let config = "jetstream { max_file_store: 8MB, max_memory_store: 0 }";
    let Some(server) = Server::configured(config) else {
        return;
    };
    let _node = server.node("full", 1);
    let inputs = || (0..40_u8).map(|x| vec![x; 1_000_000]);
    let bounded = server.nats("full").max_bytes(1 << 20);
    let pool = builder(bounded).build().unwrap();
    let results = pool.task(reversed).chunksize(1).map(inputs()).unwrap();
    assert_eq!(results, inputs().collect::<Vec<_>>());
    drop(pool);

    let _node = server.node("fuller", 8);
    // Longer than it takes to give up one answer of the server: a slow disk is no full one.
    let unbounded = server
        .nats("fuller")
        .server_timeout(Duration::from_secs(12));
    let pool = builder(unbounded).build().unwrap();
    let _hanging: Vec<_> = (0..8).map(|_| pool.apply_async(hang, ())).collect();
    let error = pool.task(reversed).chunksize(1).map(inputs()).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("fuller") && text.contains("resources"),
        "{text}"
    );
}

#[test]
fn what_a_user_may_not_do_is_said() {
    let _dog = watchdog();
    let config = r#"
        jetstream {}
        authorization { users: [
            { user: all, password: secret }
            { user: silent, password: secret, permissions: { publish: { deny: "pool.*.work" } } }
            { user: deaf, password: secret, permissions: { subscribe: { deny: "pool.*.parent" } } }
            { user: lazy, password: secret, permissions: { publish: { deny: "$JS.API.CONSUMER.MSG.NEXT.>" } } }
        ] }"#;
    let Some(server) = Server::configured(config) else {
        return;
    };
    let url = |user: &str| format!("nats://{user}:secret@127.0.0.1:{}", server.port);
    let nats = |user: &str, run: &str| pool_nats::connect(&url(user)).unwrap().run(run);
    let node = |user: &str, run: &str| {
        let program = env::current_exe().unwrap();
        Node::start(&mut Command::new(program), &url(user), run, 1)
    };

    let text = builder(nats("deaf", "deaf"))
        .build()
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("Subscription to \"pool.deaf.parent\""),
        "{text}"
    );

    let _willing = node("all", "silent");
    let pool = builder(nats("silent", "silent")).build().unwrap();
    let error = pool.apply(square, (1,)).unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("Publish to \"pool.silent.work\""),
        "{error}"
    );

    let lazy = node("lazy", "lazy");
    // It may have joined before that.
    let pool = builder(nats("all", "lazy")).build();
    let (code, said) = lazy.end();
    assert_eq!(code, Some(1), "{said}");
    let denied = "$JS.API.CONSUMER.MSG.NEXT.pool_lazy";
    assert!(said.contains(denied), "{said}");
    if let Err(error) = pool {
        assert!(error.to_string().contains(denied), "{error}");
    }
}
