//! Builds a sandboxed pool on a machine that may lack what the sandbox needs, and prints what comes of it.

use std::env;
use std::fs::{self, File};
use std::io;

use pool_core::{Event, Pool, Sandbox, pool_task};
use tests::Told;

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap_or(-1))
}

/// The error numbers of reading a file that is permitted by none of the sandboxes, of reading their directory, of creating a
/// file there, of connecting, and of running a program.
#[pool_task]
fn look(directory: &str) -> [Option<i32>; 5] {
    [
        errno(File::open("/etc/passwd")),
        errno(fs::read_dir(directory)),
        errno(File::create(format!("{directory}/new"))),
        errno(std::net::TcpStream::connect("127.0.0.1:1")),
        errno(std::process::Command::new("/bin/true").status()),
    ]
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let directory = env::temp_dir().display().to_string();
    let mut sandbox = Sandbox::new();
    for argument in &arguments {
        sandbox = match argument.as_str() {
            "read" => sandbox.read(&directory),
            "write" => sandbox.write(&directory),
            "network" => sandbox.network(),
            "processes" => sandbox.processes(),
            "best-effort" => sandbox.best_effort(),
            other => panic!("what is {other}?"),
        };
    }
    let told = Told::default();
    let tells = told.clone();
    let builder = Pool::builder().processes(1).sandbox(sandbox);
    match builder.on_event(move |event| tells.tell(event)).build() {
        Err(error) => println!("error: {error}"),
        Ok(pool) => {
            let unenforced = pool.stats().unenforced;
            for part in &unenforced {
                println!("unenforced: {part}");
            }
            let shown = pool.stats().to_string();
            assert_eq!(shown.contains("sandbox without"), !unenforced.is_empty());
            // The events that come at the beginning come before those of this input.
            let looked = pool.apply(look, (directory,)).expect("it runs");
            told.wait_for(0, |event| {
                matches!(event, Event::InputEnded { .. }).then_some(())
            });
            for event in told.all() {
                if let Event::SandboxIncomplete { missing, .. } = event {
                    assert_eq!(missing, unenforced);
                    println!("told");
                }
            }
            println!("found: {looked:?}");
        }
    }
}
