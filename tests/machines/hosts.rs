//! Two hosts: network namespaces of this machine, with a cable between them. The server asks for certificates, and its
//! users have only the permissions that they need.
//!
//! Only root can create namespaces; the tests are skipped without root or without the command `ip`.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pool_core::{Error, Pool, Shared, pool_task};
use pool_nats::Nats;
use pool_nats::async_nats::ConnectOptions;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::support::{Node, Server, eventually, mark, marks, watchdog};

/// The addresses of the server's host and of the other host.
const HEAD: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// The configuration that the guide shows.
const CONFIGURATION: &str = include_str!("../../pool-nats/src/server.conf");

fn ip(arguments: &str) -> bool {
    let command = Command::new("ip").args(arguments.split(' ')).output();
    command.is_ok_and(|output| output.status.success())
}

/// Two hosts with a cable. The calling thread, and what it starts, is on the first.
struct Hosts {
    names: [String; 2],
}

impl Hosts {
    fn new(test: &str) -> Option<Hosts> {
        let names = [1, 2].map(|number| format!("pool-{test}-{number}-{}", process::id()));
        let made = names.iter().all(|name| ip(&format!("netns add {name}")));
        let hosts = Hosts { names };
        if !made {
            let _ = writeln!(
                io::stderr(),
                "SKIPPED: two hosts need root, and the command `ip`"
            );
            return None;
        }
        let [first, second] = &hosts.names;
        let cable = format!("-n {first} link add cable type veth peer name cable netns {second}");
        assert!(ip(&cable), "{cable}");
        for (name, address) in hosts.names.iter().zip(HEAD) {
            assert!(ip(&format!("-n {name} addr add {address}/24 dev cable")));
            assert!(ip(&format!("-n {name} link set cable up")));
            assert!(ip(&format!("-n {name} link set lo up")));
        }
        enter(first).unwrap();
        Some(hosts)
    }

    /// Returns a command that runs on the second host.
    fn there(&self, program: &Path) -> Command {
        let name = self.names[1].clone();
        let mut command = Command::new(program);
        let move_there = move || {
            enter(&name)?;
            // SAFETY: only the host name of this process becomes separate.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUTS) }?;
            rustix::system::sethostname(b"second-host")?;
            Ok(())
        };
        // SAFETY: opens a file and makes system calls. Takes no lock of another thread except the allocator's, which is
        // usable after a fork.
        unsafe { command.pre_exec(move_there) };
        command
    }

    fn cable(&self, state: &str) {
        let [_, second] = &self.names;
        assert!(ip(&format!("-n {second} link set cable {state}")));
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

fn enter(name: &str) -> io::Result<()> {
    let file = fs::File::open(format!("/run/netns/{name}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Creates an authority, and certificates for the server and for a client.
fn make_certificates(directory: &Path) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap();
    fs::write(directory.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        let address: IpAddr = HEAD[0].parse().unwrap();
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let file = directory.join(format!("{name}-key.pem"));
        fs::write(file, key.serialize_pem()).unwrap();
    }
}

struct Secured {
    server: Server,
    hosts: Hosts,
}

impl Secured {
    fn start(test: &str) -> Option<Secured> {
        let hosts = Hosts::new(test)?;
        let certificates = tempfile::tempdir().unwrap();
        make_certificates(certificates.path());
        let place = |file: &str| format!("\"{}\"", certificates.path().join(file).display());
        let configuration = CONFIGURATION
            .replace("nightly", test)
            .replace("\"/var/lib/nats\"", &place("jetstream"))
            .replace("\"server.pem\"", &place("server.pem"))
            .replace("\"server-key.pem\"", &place("server-key.pem"))
            .replace("\"ca.pem\"", &place("ca.pem"));
        let server = Server::on(HEAD[0], 4222, &configuration, certificates)?;
        Some(Secured { server, hosts })
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.server.directory.path().join(name)
    }

    fn nats(&self, run: &str) -> Nats {
        let options = ConnectOptions::new()
            .user_and_password("parent".to_owned(), "change me".to_owned())
            .add_root_certificates(self.file("ca.pem"))
            .add_client_certificate(self.file("client.pem"), self.file("client-key.pem"));
        let url = format!("tls://{}", HEAD[0]);
        pool_nats::connect(&url).unwrap().run(run).options(options)
    }

    fn node(&self, run: &str, command: &mut Command, with_certificate: bool) -> Node {
        command
            .env("NATS_USER", "node")
            .env("NATS_PASSWORD", "change me too")
            .env("NATS_CA", self.file("ca.pem"));
        if with_certificate {
            command
                .env("NATS_CERT", self.file("client.pem"))
                .env("NATS_KEY", self.file("client-key.pem"));
        }
        Node::start(command, &format!("tls://{}", HEAD[0]), run, 2)
    }
}

fn this_program() -> std::path::PathBuf {
    env::current_exe().unwrap()
}

#[pool_task]
fn total(table: &[f64], more: Shared<[f64]>, x: usize) -> f64 {
    table[x] + more[x]
}

#[pool_task]
fn reversed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    bytes
}

#[pool_task]
fn hold() {
    loop {
        std::thread::park();
    }
}

#[test]
fn two_hosts_with_certificates_and_no_more_permissions_than_needed() {
    let _dog = watchdog();
    let Some(net) = Secured::start("secured") else {
        return;
    };
    let here = net.node("secured", &mut Command::new(this_program()), true);
    let there = net.node("secured", &mut net.hosts.there(&this_program()), true);
    let bare = net.node("secured", &mut net.hosts.there(&this_program()), false);
    let (code, said) = bare.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("Certificate") && said.contains("NATS_CERT"),
        "{said}"
    );

    let pool = Pool::builder()
        .backend(net.nats("secured").nodes(2))
        .start_timeout(Duration::from_secs(120))
        .build()
        .unwrap();
    let table = vec![0.5; 100_000];
    let more = Shared::copy_from(&table[..]).unwrap();
    let call = pool.task(total).partial((table, more));
    assert_eq!(call.map(0..1000).unwrap(), vec![1.0; 1000]);
    let long: Vec<u8> = (0..3_000_000_u32).map(|x| x as u8).collect();
    let backwards: Vec<u8> = long.iter().rev().copied().collect();
    assert_eq!(pool.apply(reversed, (long,)).unwrap(), backwards);

    // The second host dies.
    let holding: Vec<_> = (0..4).map(|_| pool.apply_async(hold, ())).collect();
    assert!(holding[0].get_timeout(Duration::from_millis(500)).is_err());
    drop(there);
    eventually("the host is lost", || pool.processes() == 2);
    let ready = || holding.iter().filter(|result| result.ready()).count();
    eventually("what it had begun is lost", || ready() == 2);
    drop(call);
    pool.terminate();
    for result in holding {
        match result.get() {
            Err(Error::WorkerLost(lost)) => assert_eq!(lost.host(), Some("second-host")),
            Err(Error::Terminated) => {}
            other => panic!("{other:?}"),
        }
    }
    drop(pool);
    let (code, said) = here.end();
    assert_eq!(code, Some(0), "{said}");
    eventually("nothing is left on the server", || {
        net.server.streams().is_empty()
    });
}

#[test]
fn a_cable_that_is_pulled_costs_what_had_begun_there() {
    let _dog = watchdog();
    let Some(net) = Secured::start("cut") else {
        return;
    };
    let _here = net.node("cut", &mut Command::new(this_program()), true);
    let there = net.node("cut", &mut net.hosts.there(&this_program()), true);
    let pool = Pool::builder()
        .backend(net.nats("cut").nodes(2))
        .start_timeout(Duration::from_secs(120))
        .build()
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("marks");
    let inputs = (0..300).map(|x| (file.clone(), x, 20));
    let results = pool.task(mark).starmap_async(inputs);
    eventually("some have begun", || marks(&file).len() > 60);
    net.hosts.cable("down");
    let error = results.get().unwrap_err();
    match &error {
        Error::WorkerLost(lost) => assert_eq!(lost.host(), Some("second-host")),
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("said nothing for 3s"), "{error}");
    assert_eq!(pool.processes(), 2);
    assert!(marks(&file).values().all(|count| *count == 1));

    // It was declared lost, and now learns of it.
    net.hosts.cable("up");
    let (code, said) = there.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("was declared lost"), "{said}");
    let _there = net.node("cut", &mut net.hosts.there(&this_program()), true);
    eventually("another one has joined", || pool.processes() == 4);
    let inputs = (1000..1100).map(|x| (file.clone(), x, 1));
    assert_eq!(pool.starmap(mark, inputs).unwrap().len(), 100);
}

/// What was reported to `tracing`.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<u8>>>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_server_that_anybody_may_use_is_warned_of() {
    let _dog = watchdog();
    let Some(_hosts) = Hosts::new("open") else {
        return;
    };
    let told = Told::default();
    let writer = told.clone();
    tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .init();
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().display();
    let open = format!("jetstream {{ store_dir: \"{store}\" }}\nlisten: \"0.0.0.0:4222\"");
    let Some(_server) = Server::on(HEAD[0], 4222, &open, directory) else {
        return;
    };
    let warned = |url: &str| {
        told.0.lock().unwrap().clear();
        let nats = pool_nats::connect(url).unwrap().run("open").nodes(0);
        drop(Pool::builder().backend(nats).build().unwrap());
        let text = String::from_utf8(told.0.lock().unwrap().clone()).unwrap();
        text.contains("requires no authentication")
    };
    assert!(warned("nats://10.77.0.1"));
    assert!(!warned("nats://127.0.0.1"));
}
