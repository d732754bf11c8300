//! Things go wrong at random moments. `POOL_TEST_TIMES=50` repeats each test that often. Each run prints its seed, and
//! `POOL_TEST_SEED` runs it again.

use std::env;
use std::fmt::Display;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use pool_core::Error;

use crate::support::{Node, Server, builder, eventually, host, mark, marks, signal, watchdog};

const INPUTS: u64 = 300;
const PROCESSES: usize = 2;

fn variable<T: FromStr>(name: &str) -> Option<T> {
    env::var(name).ok()?.parse().ok()
}

/// Runs a test at random moments.
fn at_random(name: &str, mut test: impl FnMut(&str, &mut Rng)) {
    for round in 0..variable("POOL_TEST_TIMES").unwrap_or(1) {
        let _dog = watchdog();
        let seed = variable("POOL_TEST_SEED").unwrap_or_else(|| fastrand::u64(..));
        say(format_args!("{name} {round}: POOL_TEST_SEED={seed}"));
        test(&format!("{name}-{round}"), &mut Rng::with_seed(seed));
    }
}

fn say(what: impl Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// A server and two nodes.
struct Scene {
    server: Server,
    nodes: Vec<Node>,
}

/// Makes marks, does something midway, and returns how many inputs were lost. Checks that each has one outcome.
fn play(run: &str, rng: &mut Rng, retries: u32, disturb: impl FnOnce(&mut Scene)) -> usize {
    let Some(server) = Server::start(&["-js"]) else {
        return 0;
    };
    let nodes = (0..2).map(|_| server.node(run, PROCESSES)).collect();
    let mut scene = Scene { server, nodes };
    // A node that is told to end has this long to finish what it runs, and to report it.
    let pool = builder(scene.server.nats(run).nodes(2)).grace(Duration::from_secs(20));
    let pool = pool.build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let longest = rng.u64(0..12);
    let inputs: Vec<_> = (0..INPUTS)
        .map(|x| (file.clone(), x, rng.u64(0..=longest)))
        .collect();
    let one_by_one = rng.bool();
    let call = pool.task(mark).retries(retries);
    let call = call.chunksize(rng.usize(1..8));
    let moment = Duration::from_millis(rng.u64(0..700));
    let outcomes: Vec<Result<u64, Error>> = thread::scope(|scope| {
        let working = scope.spawn(|| {
            if one_by_one {
                let results = inputs.into_iter().map(|input| call.apply_async(input));
                let results: Vec<_> = results.collect();
                results.into_iter().map(|result| result.get()).collect()
            } else {
                call.istarmap(inputs).collect()
            }
        });
        thread::sleep(moment);
        let since = Instant::now();
        disturb(&mut scene);
        let outcomes = working.join().unwrap();
        say(format_args!("  finished {:.2?} later", since.elapsed()));
        outcomes
    });

    assert_eq!(outcomes.len(), INPUTS as usize);
    let mut lost = 0;
    for (x, outcome) in (0..).zip(outcomes) {
        match outcome {
            Ok(y) => assert_eq!(x, y),
            Err(Error::WorkerLost(error)) => {
                assert_eq!(error.host(), Some(&*host()), "{error}");
                lost += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    say(format_args!("  {lost} are lost"));
    let marks = marks(&file);
    assert!(marks.len() + lost >= INPUTS as usize, "{}", marks.len());
    if retries == 0 {
        assert!(marks.values().all(|count| *count == 1), "{marks:?}");
    }
    if one_by_one {
        // Inputs that had begun, and outcomes that the node could not report any more.
        assert!(lost <= 16, "{lost}");
    }

    // The pool still works, and leaves nothing behind.
    assert_eq!(pool.apply(mark, (file, INPUTS, 0)).unwrap(), INPUTS);
    drop(pool);
    eventually("nothing is left on the server", || {
        scene.server.streams().is_empty()
    });
    lost
}

#[test]
fn a_node_is_killed() {
    at_random("kill", |run, rng| {
        play(run, rng, 0, |scene| scene.nodes[0].child.kill().unwrap());
    });
}

#[test]
fn a_node_is_killed_and_what_it_had_begun_runs_again() {
    at_random("again", |run, rng| {
        let lost = play(run, rng, 2, |scene| scene.nodes[0].child.kill().unwrap());
        assert_eq!(lost, 0);
    });
}

#[test]
fn a_node_is_stopped_and_goes_on() {
    at_random("stop", |run, rng| {
        let pause = Duration::from_millis(rng.u64(0..6000));
        play(run, rng, 0, |scene| {
            scene.nodes[0].signal(libc::SIGSTOP);
            thread::sleep(pause);
            scene.nodes[0].signal(libc::SIGCONT);
        });
    });
}

#[test]
fn a_node_is_told_to_end() {
    at_random("term", |run, rng| {
        let lost = play(run, rng, 0, |scene| scene.nodes[0].signal(libc::SIGTERM));
        assert_eq!(lost, 0);
    });
}

#[test]
fn the_server_is_killed_and_started_again() {
    at_random("server", |run, rng| {
        let pauses = [0; 4].map(|_| Duration::from_millis(rng.u64(0..1000)));
        let lost = play(run, rng, 0, |scene| {
            for pauses in pauses.chunks(2) {
                scene.server.kill();
                thread::sleep(pauses[0]);
                scene.server.restart();
                thread::sleep(pauses[1]);
            }
        });
        assert_eq!(lost, 0);
    });
}

#[test]
fn the_server_is_stopped_for_a_while() {
    at_random("frozen", |run, rng| {
        let pause = Duration::from_millis(rng.u64(0..8000));
        let lost = play(run, rng, 0, |scene| {
            scene.server.signal(libc::SIGSTOP);
            thread::sleep(pause);
            scene.server.signal(libc::SIGCONT);
        });
        assert_eq!(lost, 0);
    });
}

#[test]
fn the_server_is_away_longer_than_a_parent_may_be_silent() {
    let _dog = watchdog();
    let lost = play("long", &mut Rng::new(), 0, |scene| {
        scene.server.kill();
        thread::sleep(Duration::from_secs(17));
        scene.server.restart();
    });
    assert_eq!(lost, 0);
}

#[test]
fn the_parent_is_killed() {
    at_random("parent", |run, rng| {
        let Some(server) = Server::start(&["-js"]) else {
            return;
        };
        let program = env!("CARGO_BIN_EXE_far_parent");
        let node = Node::start(&mut Command::new(program), &server.url(), run, 2);
        let mut parent = Command::new(program);
        let parent = parent.args([&server.url(), run]).stdout(Stdio::piped());
        let mut parent = parent.spawn().unwrap();
        let mut line = String::new();
        let out = parent.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        thread::sleep(Duration::from_millis(rng.u64(0..1500)));
        parent.kill().unwrap();
        parent.wait().unwrap();
        let (code, said) = node.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("has not heard from the parent"), "{said}");
        eventually("nothing is left on the server", || {
            server.streams().is_empty()
        });
    });
}

#[test]
fn the_parent_is_stopped_for_a_while() {
    at_random("asleep", |run, rng| {
        let Some(server) = Server::start(&["-js"]) else {
            return;
        };
        let program = env!("CARGO_BIN_EXE_far_parent");
        let node = Node::start(&mut Command::new(program), &server.url(), run, 2);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("marks");
        let mut parent = Command::new(program);
        let parent = parent.args([&server.url(), run, "work"]).arg(&file);
        let mut parent = parent.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = parent.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        thread::sleep(Duration::from_millis(rng.u64(0..900)));
        signal(&parent, libc::SIGSTOP);
        thread::sleep(Duration::from_millis(rng.u64(0..9000)));
        signal(&parent, libc::SIGCONT);
        assert!(parent.wait().unwrap().success());
        let marks = marks(&file);
        assert_eq!(marks.len(), 300);
        assert!(marks.values().all(|count| *count == 1), "{marks:?}");
        assert_eq!(node.end().0, Some(0));
    });
}
