//! Runs every example, and checks what it prints.
//!
//! Process ids and the order in which workers print differ from run to run; what is checked holds in
//! all of them. No check is on time, but each example has to end within [`LIMIT`].

mod service;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use wait_timeout::ChildExt;

/// An example that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn quickstart() {
    let run = run("quickstart", &[]);
    assert_eq!(run.lines(), ["[0, 1, 4, 9, 16, 25, 36, 49, 64, 81]"]);
}

#[test]
fn process_ids() {
    let run = run("process_ids", &[]);
    let [line] = run.lines()[..] else {
        panic!("not one line: {run:?}");
    };
    let list = line
        .strip_prefix("[\"")
        .and_then(|it| it.strip_suffix("\"]"));
    let mut workers = BTreeSet::new();
    let mut inputs = Vec::new();
    for part in list.unwrap_or_default().split("\", \"") {
        let ["", input, worker, parent, ""] = part.split("++").collect::<Vec<_>>()[..] else {
            panic!("{part}");
        };
        inputs.push(input);
        workers.insert(worker);
        assert_eq!(parent, run.pid.to_string());
        assert_ne!(worker, parent);
    }
    assert_eq!(inputs, ["1", "2", "3", "4", "5"]);
    assert!(workers.len() <= 2, "{workers:?}");
}

#[test]
fn process_ids_of_one_process() {
    let inline = |value: &str| {
        let mut program = Command::new(example("process_ids"));
        let output = program.env("POOL_INLINE", value).output();
        let output = output.expect("the program starts");
        let text = [output.stdout, output.stderr].map(String::from_utf8);
        text.map(|text| text.expect("text")).concat()
    };
    let said = inline("1");
    let parts = said.trim().trim_matches(['[', ']', '"']).split("\", \"");
    let workers: BTreeSet<&str> = parts.filter_map(|part| part.split("++").nth(2)).collect();
    assert_eq!(workers.len(), 1, "{said}");
    // Their parent is not the program, but that of the program.
    assert!(
        said.contains(&format!("++{}++", std::process::id())),
        "{said}"
    );
    for off in ["", "0"] {
        assert!(!inline(off).contains(&format!("++{}++", std::process::id())));
    }
    let refused = inline("yes");
    assert!(
        refused.contains("POOL_INLINE") && refused.contains("yes"),
        "{refused}"
    );
}

#[test]
fn progress() {
    let run = run("progress", &[]);
    let found = [
        1777, 2777, 11777, 19777, 22777, 26777, 41777, 43777, 44777, 47777,
    ];
    let mut lines = vec!["17673 takes 278 steps".to_owned()];
    lines.extend(found.map(|number| format!("found {number}")));
    lines.extend(["5133 primes", "1000003 is prime: true", "20 counts later"].map(String::from));
    assert_eq!(run.lines(), lines);
}

#[test]
fn logging() {
    let run = run("logging", &[]);
    let lines = run.lines();
    let find = |text: &str| {
        let mut found = lines.iter().filter(|line| line.contains(text));
        let line = found.next().unwrap_or_else(|| panic!("no {text}: {run:?}"));
        line.to_string()
    };
    let warning = find("takes zero for it");
    assert!(
        warning
            .trim_start()
            .starts_with("WARN request{id=7}:parse{length=3 worker="),
        "{warning}"
    );
    assert!(
        warning.contains("error=invalid digit found in string"),
        "{warning}"
    );
    assert!(
        warning.contains("task=\"logging::parse\" input=1"),
        "{warning}"
    );
    for text in ["about to crash", "this library logs by another crate"] {
        let line = find(text);
        assert!(line.contains("INFO request{id=7}: logging: "), "{line}");
        assert!(line.contains("task=\"logging::crash\""), "{line}");
    }
    let looks = lines
        .iter()
        .filter(|line| line.contains("looks at the text"));
    assert_eq!(looks.count(), 3);
    assert!(find("parsed").contains("numbers=[1, 0, 3]"));
    assert!(find("goes on").contains("lost=true"));
}

#[test]
fn output() {
    let run = run("output", &[]);
    let lines = run.lines();
    let decoded = [
        "decoded: 5",
        "failed after: decoding broken.jpg ...",
        "decoded: 5",
    ];
    assert_eq!(lines[..3], decoded);
    let mut printed: Vec<String> = (1..=10)
        .map(|number| format!("  [input {}] checking {number}", number - 1))
        .collect();
    for number in [4, 8] {
        let index = number - 1;
        printed.push(format!("! [input {index}] {number} is a multiple of four"));
    }
    let mut told: Vec<&str> = lines[3..lines.len() - 1].to_vec();
    printed.sort();
    told.sort_unstable();
    assert_eq!(told, printed);
    assert_eq!(lines.last(), Some(&"sum of squares: 385"));
}

#[test]
fn timeline() {
    let directory = tempfile::tempdir().expect("a directory");
    let args = [OsStr::new("--directory"), directory.path().as_os_str()];
    let run = run("timeline", &args);
    assert_eq!(run.lines().len(), 2);
    for name in ["balanced", "chunks-of-20"] {
        let path = directory.path().join(format!("timeline-{name}"));
        let page = fs::read_to_string(path.with_extension("html")).expect("it was written");
        assert!(page.contains("render") && page.ends_with("</html>\n"));
        let trace = fs::read_to_string(path.with_extension("json")).expect("it was written");
        assert!(trace.contains("traceEvents") && trace.contains("render"));
    }
}

#[test]
fn tour() {
    let run = run("tour", &[]);
    let squares: Vec<u64> = (0..10).map(|x| x * x).collect();
    assert_eq!(run.after("map: "), [format!("{squares:?}")]);
    assert_eq!(run.after("imap: "), ["0", "1", "4"]);
    let mut unordered = run.numbers("imap_unordered: ");
    unordered.sort();
    assert_eq!(unordered, squares);
    assert_eq!(run.after("by_ref: "), ["[3, 3, 5]"]);
    assert_eq!(run.after("partial: "), ["[1, 3, 5, 7, 9]"]);
    assert_eq!(run.after("Shared: "), ["[30, 10]"]);
    assert_eq!(run.after("apply_async: "), ["400"]);

    let workers: BTreeSet<u64> = run.numbers("workers: ").into_iter().collect();
    assert_eq!(workers.len(), 4);
    let one = run.numbers("one process id: ");
    let four = run.numbers("four process ids: ");
    assert_eq!((one.len(), four.len()), (1, 4));
    assert!(one.iter().chain(&four).all(|id| workers.contains(id)));

    assert_eq!(
        run.after("we lacked patience: "),
        ["timed out waiting for the result"]
    );
    assert_eq!(run.lines().last(), Some(&"the pool is gone"));
    // The one that would have slept on, above all.
    for worker in workers {
        let program = fs::read_link(format!("/proc/{worker}/exe"));
        assert!(
            program.ok() != Some(example("tour")),
            "{worker} is still there"
        );
    }
}

#[test]
fn apply_and_callbacks() {
    let run = run("apply_and_callbacks", &[]);
    assert_eq!(run.after("callback: "), ["(222, 333)"; 3]);
    assert_eq!(run.after("apply: "), ["(222, 333)"; 3]);
    assert_eq!(run.deeds(), ["work(3, 4, 1)"; 6]);
    let over = run.only("--- the asynchronous calls are over ---");
    let lines = run.lines();
    let (before, after) = lines.split_at(over);
    let done = |lines: &[&str]| lines.iter().filter(|line| line.contains("work(")).count();
    assert_eq!((done(before), done(after)), (3, 3));

    let [error] = run.after("error callback: ")[..] else {
        panic!("not one error: {run:?}");
    };
    assert!(error.contains("`apply_and_callbacks::refuse`"), "{error}");
    assert!(error.ends_with(": 13 is no good"), "{error}");
}

#[test]
fn map_and_map_async() {
    let run = run("map_and_map_async", &[]);
    let results = format!("{:?}", [(222, 333); 5]);
    assert_eq!(run.after("map: "), [results.as_str()]);
    assert_eq!(run.after("map_async: "), [results.as_str()]);

    let lines = run.lines();
    let (first, second) = lines.split_at(run.only(&format!("map: {results}")));
    assert_chunks_of_two(first);
    assert_chunks_of_two(second);
    let returned = run.only("map_async has returned");
    assert!(first.len() < returned && returned < lines.len() - 1);
}

#[test]
fn imap_and_imap_unordered() {
    let run = run("imap_and_imap_unordered", &[]);
    let expected = ["(0, 333)", "(1, 333)", "(2, 333)", "(3, 333)", "(4, 333)"];
    assert_eq!(run.after("imap: "), expected);
    let mut unordered = run.after("imap_unordered: ");
    // Those of one chunk stay in order.
    let at = |wanted| unordered.iter().position(|result| *result == wanted);
    assert!(at(expected[0]) < at(expected[1]));
    assert!(at(expected[2]) < at(expected[3]));
    unordered.sort();
    assert_eq!(unordered, expected);

    let first_result = run.only("imap: (0, 333)");
    assert!(run.only("imap has returned") < first_result);
    assert!(run.only("imap_unordered has returned") < first_result);
    let mut deeds = run.deeds();
    deeds.sort();
    let twice = (0..5).flat_map(|i| [i, i]);
    assert_eq!(
        deeds,
        twice
            .map(|i| format!("work(1, 2, {i}, e=3)"))
            .collect::<Vec<_>>()
    );
}

#[test]
fn starmap() {
    let run = run("starmap", &[]);
    assert_eq!(run.after("starmap: "), ["[1024, 81, 1000]"]);
    assert_eq!(run.after("starmap_async: "), ["[1, 2, 4, 8, 16]"]);
    assert_eq!(run.after("istarmap: "), ["hahaha", "hoho"]);
    let mut deeds = run.deeds();
    deeds.sort();
    let expected = [
        "power(10, 3)",
        "power(2, 0)",
        "power(2, 1)",
        "power(2, 10)",
        "power(2, 2)",
        "power(2, 3)",
        "power(2, 4)",
        "power(3, 4)",
    ];
    assert_eq!(deeds, expected);
}

#[test]
fn wait_ready_successful() {
    let run = run("wait_ready_successful", &[]);
    assert_eq!(run.after("wait: "), ["true", "true"]);
    assert_eq!(
        run.after("ready: true, successful: "),
        ["Some(true)", "Some(false)"]
    );
    let [results, error] = run.after("get: ")[..] else {
        panic!("not two results: {run:?}");
    };
    assert_eq!(results, format!("{:?}", [(222, 333); 5]));
    assert!(
        error.starts_with("task `wait_ready_successful::work` (input 1) panicked"),
        "{error}"
    );
    assert!(error.ends_with(": 5 is too much"), "{error}");
    let mut deeds = run.deeds();
    deeds.sort();
    assert_eq!(
        deeds,
        [
            "work(0)", "work(1)", "work(2)", "work(3)", "work(4)", "work(4)"
        ]
    );
}

#[test]
fn max_tasks_per_child() {
    let run = run("max_tasks_per_child", &[]);
    let mut tasks_by_worker = BTreeMap::new();
    for (worker, deed) in run.workers() {
        match (deed, tasks_by_worker.get_mut(worker)) {
            ("prepare(1, 2)", None) => {
                tasks_by_worker.insert(worker, 0);
            }
            ("work(3, 4)", Some(tasks)) => *tasks += 1,
            // A second preparation, or work before it.
            _ => panic!("{worker}, {deed}: {run:?}"),
        }
    }
    assert_eq!(tasks_by_worker.values().sum::<u32>(), 5);
    assert!(
        tasks_by_worker.values().all(|tasks| *tasks <= 2),
        "{tasks_by_worker:?}"
    );
    assert!(tasks_by_worker.len() >= 3, "{tasks_by_worker:?}");
    assert_eq!(run.lines().last(), Some(&"all done"));
}

#[test]
fn fragile() {
    let run = run("fragile", &[]);
    let expected = [
        ("Square(1)", "1"),
        ("Segfault", "was killed by SIGSEGV"),
        ("Square(2)", "4"),
        ("Abort", "was killed by SIGABRT"),
        ("Square(3)", "9"),
        ("Exit", "exited with code 3"),
        ("Square(4)", "16"),
        ("Panic", ": I give up"),
        ("Square(5)", "25"),
        ("OverflowStack", "was killed by SIGSEGV"),
        ("Square(6)", "36"),
        ("SleepForever", "ran past its time limit of 2s"),
        ("Square(7)", "49"),
    ];
    let lines = run.lines();
    let [_, rows @ .., last] = &lines[..] else {
        panic!("too short: {run:?}");
    };
    assert_eq!(rows.len(), expected.len(), "{rows:?}");
    for (index, (row, (deed, outcome))) in rows.iter().zip(expected).enumerate() {
        let (row_deed, row_outcome) = row.split_once(' ').expect("two columns");
        assert_eq!(row_deed, deed);
        assert!(row_outcome.ends_with(outcome), "{row}");
        let place = format!("task `fragile::attempt` (input {index})");
        let good = deed.starts_with("Square");
        assert_eq!(row_outcome.contains(&place), !good, "{row}");
    }
    assert_eq!(*last, "the pool still works: 64");
    // A backtrace was asked for; it goes into the error, not onto the terminal.
    assert_eq!(run.stderr, "");
    assert_pictured(&run, "fragile");
}

#[test]
fn untrusted() {
    let run = run("untrusted", &[]);
    let refused = "Operation not permitted (os error 1)";
    let expected = [
        ("read /etc/passwd", refused),
        ("connect to this program", refused),
        ("run a command", refused),
        ("fork", refused),
        ("start a thread", refused),
        ("kill this program", refused),
        ("kill another worker", refused),
        (
            "trace another worker",
            "was killed by SIGSYS, because it called `ptrace`, which no sandbox permits",
        ),
        ("fill the disk", refused),
        ("reserve 4 GiB of memory", "memory allocation failed"),
        ("change its own limits", refused),
        ("change what workers share", "only a copy of its own"),
        ("", ""),
        ("connections from workers", "0"),
        ("workers that died", "1"),
        ("good images decoded", "12"),
    ];
    let lines = run.lines();
    let [_, rows @ .., last] = &lines[..] else {
        panic!("too short: {run:?}");
    };
    assert_eq!(rows.len(), expected.len(), "{rows:?}");
    for (row, (name, with)) in rows.iter().zip(expected) {
        let (row_name, answers) = row.split_at_checked(27).unwrap_or((row, ""));
        let (row_without, row_with) = answers.split_at_checked(24).unwrap_or((answers, ""));
        assert_eq!(row_name.trim(), name, "{row}");
        assert!(row_with.contains(with), "{row}");
        let without = match name {
            // The system may forbid it anyway.
            "trace another worker" if row_without.contains("not permitted") => continue,
            "change what workers share" | "" | "good images decoded" => with,
            "connections from workers" => "1",
            "workers that died" => "0",
            _ => "nothing stops it",
        };
        assert_eq!(row_without.trim(), without, "{row}");
    }
    assert_eq!(
        *last,
        "this program and its other worker live, and what workers share is unchanged"
    );
    assert_eq!(run.stderr, "");
}

/// The README has a picture of what the example prints.
fn assert_pictured(run: &Run, name: &str) {
    let picture = examples_dir().join(format!("pictures/{name}.svg"));
    let picture = fs::read_to_string(picture).expect("the picture");
    // The first line is the command.
    let texts = picture
        .lines()
        .filter(|line| line.starts_with("<text "))
        .skip(1);
    let pictured: Vec<String> = texts
        .map(|text| without_pids(&without_tags(text)))
        .collect();
    let printed: Vec<String> = run.lines().into_iter().map(without_pids).collect();
    assert_eq!(
        pictured, printed,
        "the picture is an old one: examples/README.md says how it is drawn"
    );
}

fn without_tags(line: &str) -> String {
    let pieces = line.split('<').filter_map(|piece| piece.split_once('>'));
    pieces.map(|(_, text)| text).collect()
}

/// Process ids differ from run to run.
fn without_pids(line: &str) -> String {
    let mut parts = line.split("process ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, part| {
        line + "process " + part.trim_start_matches(|c: char| c.is_ascii_digit())
    })
}

#[test]
fn shared_data() {
    let args = ["--mib", "2", "--searches", "5"].map(OsStr::new);
    let run = run("shared_data", &args);
    let ways = [
        "sent with each task",
        "partial",
        "Shared",
        "initializer",
        "preload",
    ];
    for way in ways {
        let [row] = run.after(way)[..] else {
            panic!("no row for {way}: {run:?}");
        };
        let numbers: Result<Vec<f64>, _> = row.split_whitespace().map(str::parse).collect();
        let [seconds, mib] = numbers.expect("numbers")[..] else {
            panic!("not two numbers: {row}");
        };
        // Each holds the table at least once.
        assert!(seconds > 0.0 && mib >= 1.0, "{row}");
    }
    run.only("each way has found the same rows");
    assert_eq!(run.lines().len(), 7);
}

#[test]
fn mandelbrot() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.png");
    let run = run("mandelbrot", &[path.as_os_str()]);
    assert!(
        run.lines()[0].contains(": 800 x 600 pixels, drawn by "),
        "{run:?}"
    );

    let file = BufReader::new(File::open(path).expect("the picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a header");
    let mut picture = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut picture).expect("pixels");
    assert_eq!((info.width, info.height), (800, 600));
    assert_eq!(
        (info.color_type, info.bit_depth),
        (png::ColorType::Rgb, png::BitDepth::Eight)
    );
    let rows: BTreeSet<&[u8]> = picture.chunks_exact(800 * 3).collect();
    assert_eq!(rows.len(), 600, "every row is there, and no two are alike");
    let colours: BTreeSet<&[u8]> = picture.chunks_exact(3).collect();
    assert!(colours.len() > 10_000, "{}", colours.len());
    assert!(colours.contains(&[0, 0, 0][..]), "the set itself");
}

#[test]
fn wordcount() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &OsStr, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    };
    let texts = [
        "The cat, the dog; THE END",
        "Straße Ärger straße 42 don't",
        "the\nend",
    ];
    write("a.txt".as_ref(), texts[0].as_bytes());
    write("sub/deep/b".as_ref(), texts[1].as_bytes());
    write(
        &OsString::from_vec(b"sub/n\xe4me.md".to_vec()),
        texts[2].as_bytes(),
    );
    write("empty".as_ref(), b"");
    write("latin1.txt".as_ref(), b"caf\xe9 the the the");
    for i in 0..11 {
        write(format!("binary{i:02}").as_ref(), b"the\0the");
    }
    symlink("nowhere", dir.path().join("dangling")).expect("a link");
    symlink("..", dir.path().join("sub/up")).expect("a link");
    symlink("itself", dir.path().join("itself")).expect("a link");
    let _socket = UnixListener::bind(dir.path().join("socket")).expect("a socket");

    let run = run("wordcount", &[dir.path().as_os_str(), "--compare".as_ref()]);
    assert_counts(&run, &texts.map(str::to_owned));
    assert!(run.stdout.contains("4 files, "), "{run:?}");
    assert!(
        run.stdout.contains("12 not text, 2 not readable"),
        "{run:?}"
    );
    assert_compared(&run);

    // The first ten, in order, and how many more.
    let skipped = run
        .stderr
        .lines()
        .filter(|line| line.starts_with("skipped, not text: "));
    let skipped: Vec<_> = skipped.collect();
    assert_eq!(skipped.len(), 11, "{skipped:?}");
    assert!(skipped[9].ends_with("/binary09"), "{skipped:?}");
    assert_eq!(skipped[10], "skipped, not text: … and 2 more");
    let lost = run
        .stderr
        .lines()
        .filter(|line| line.starts_with("could not read: "));
    let lost: Vec<_> = lost.collect();
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert!(lost[0].contains("/dangling: No such file"), "{lost:?}");
    assert!(lost[1].contains("/itself: Too many levels"), "{lost:?}");
}

#[test]
fn wordcount_of_one_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("only.txt");
    fs::write(&path, "one two two").expect("a file");
    let run = run("wordcount", &[path.as_os_str()]);
    assert_counts(&run, &["one two two".to_owned()]);
}

#[test]
fn wordcount_of_nothing() {
    let run = run("wordcount", &["/no/such/path".as_ref()]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stderr.contains("/no/such/path"), "{run:?}");
}

/// Links to real files: what cargo has unpacked.
#[test]
fn wordcount_of_real_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut texts = Vec::new();
    let mut files = Vec::new();
    sources(&cargo_home().join("registry/src"), &mut files);
    sources(&examples_dir(), &mut files);
    assert!(!files.is_empty());
    for (i, file) in files.iter().enumerate() {
        texts.push(fs::read_to_string(file).expect("a text"));
        symlink(file, dir.path().join(format!("{i}"))).expect("a link");
    }
    let run = run("wordcount", &[dir.path().as_os_str(), "--compare".as_ref()]);
    assert_counts(&run, &texts);
    assert_compared(&run);
}

/// The list, the manifest and the files agree, and every example is run here.
#[test]
fn cluster() {
    let run = run("cluster", &[examples_dir().as_os_str()]);
    if run.stderr.contains("there is no nats-server") {
        let _ = writeln!(io::stderr(), "SKIPPED: there is no nats-server");
        return;
    }
    assert_eq!(run.lines().last(), Some(&"the counts are the same"));
}

#[test]
fn every_example_is_listed() {
    let files: BTreeSet<String> = fs::read_dir(examples_dir())
        .expect("the examples")
        .map(|entry| entry.expect("an entry").file_name())
        .filter_map(|name| Some(name.to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    let read = |name| fs::read_to_string(examples_dir().join(name)).expect("a file");
    let (readme, manifest) = (read("README.md"), read("Cargo.toml"));
    let manifest_of_pool_core = read("../pool-core/Cargo.toml");
    for name in &files {
        let rows = readme
            .lines()
            .filter(|line| line.starts_with(&format!("| [`{name}`]({name}.rs) | ")));
        let [row] = rows.collect::<Vec<_>>()[..] else {
            panic!("README.md does not list {name} once");
        };
        assert!(
            row.contains(&format!("`cargo run --release --example {name}")),
            "{row}"
        );
        let entry =
            |path: &str| format!("[[example]]\nname = \"{name}\"\npath = \"{path}{name}.rs\"\n");
        assert!(
            manifest.contains(&entry("")) || manifest_of_pool_core.contains(&entry("../examples/")),
            "no Cargo.toml lists {name}"
        );
        let called = match name.as_str() {
            // It does not end by itself.
            "service" => include_str!("service.rs").contains("example(\"service\")"),
            _ => include_str!("examples.rs").contains(&format!("run(\"{name}\", ")),
        };
        assert!(called, "nothing runs {name}");
    }
    // Those of other crates stand there.
    let (elsewhere, here) = readme
        .lines()
        .filter(|line| line.starts_with("| ["))
        .partition::<Vec<_>, _>(|line| line.contains("](../"));
    assert!(elsewhere[0].contains("`cluster`") && elsewhere.len() == 1);
    let listed = here.len();
    assert_eq!(listed, files.len(), "README.md lists what is not there");
    assert_eq!(names(), files.into_iter().collect::<Vec<_>>());
}

// What an example did.

#[derive(Debug)]
struct Run {
    pid: u32,
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Runs an example to its end. What it prints goes to files, which hold any amount of it, and which
/// nobody can keep open on us.
fn run(name: &str, args: &[&OsStr]) -> Run {
    let mut stdout = tempfile::tempfile().expect("a file");
    let mut stderr = tempfile::tempfile().expect("a file");
    let mut child = Command::new(example(name))
        .args(args)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().expect("a handle"))
        .stderr(stderr.try_clone().expect("a handle"))
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let status = child.wait_timeout(LIMIT).expect("the status");
    if status.is_none() {
        child.kill().expect("a child to kill");
        child.wait().expect("the status");
    }
    let read = |file: &mut File| {
        let mut text = String::new();
        file.rewind().expect("a file");
        file.read_to_string(&mut text).expect("UTF-8");
        text
    };
    let (stdout, stderr) = (read(&mut stdout), read(&mut stderr));
    let Some(status) = status else {
        panic!("{name} hangs; so far:\n{stdout}\n{stderr}");
    };
    Run {
        pid: child.id(),
        status,
        stdout,
        stderr,
    }
}

impl Run {
    /// What it printed, if it succeeded.
    fn lines(&self) -> Vec<&str> {
        assert!(self.status.success(), "{self:?}");
        self.stdout.lines().collect()
    }

    /// The rest of each line that begins so.
    fn after(&self, prefix: &str) -> Vec<&str> {
        let lines = self.lines().into_iter();
        lines.filter_map(|line| line.strip_prefix(prefix)).collect()
    }

    /// All numbers in these.
    fn numbers(&self, prefix: &str) -> Vec<u64> {
        let lines = self.after(prefix).into_iter();
        let words = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_digit()));
        words.filter_map(|word| word.parse().ok()).collect()
    }

    /// Where this line is; it is there once.
    fn only(&self, line: &str) -> usize {
        let lines = self.lines();
        let found: Vec<_> = (0..lines.len()).filter(|at| lines[*at] == line).collect();
        let [at] = found[..] else {
            panic!("`{line}` is there {} times: {self:?}", found.len());
        };
        at
    }

    /// What workers printed: who, and what.
    fn workers(&self) -> Vec<(&str, &str)> {
        let lines = self.after("worker ").into_iter();
        lines
            .map(|line| line.split_once(": ").expect("who and what"))
            .collect()
    }

    fn deeds(&self) -> Vec<&str> {
        self.workers().into_iter().map(|(_, deed)| deed).collect()
    }
}

/// Five inputs in chunks of two: those of one chunk run in one worker, in order.
fn assert_chunks_of_two(lines: &[&str]) {
    let deeds: Vec<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("worker ")?.split_once(": "))
        .collect();
    assert_eq!(deeds.len(), 5, "{lines:?}");
    let find = |i: u32| {
        let wanted = format!("work(1, 2, {i}, e=3)");
        let at = deeds.iter().position(|(_, deed)| *deed == wanted);
        let at = at.unwrap_or_else(|| panic!("no {wanted} in {lines:?}"));
        (at, deeds[at].0)
    };
    for first in [0, 2] {
        let ((at, worker), (next_at, next_worker)) = (find(first), find(first + 1));
        assert!(at < next_at && worker == next_worker, "{lines:?}");
    }
    find(4);
}

/// The top words and the totals are those of `texts`, by a count of our own.
fn assert_counts(run: &Run, texts: &[String]) {
    let mut counts = BTreeMap::<String, u64>::new();
    for text in texts {
        let mut word = String::new();
        for c in text.to_lowercase().chars().chain(['\n']) {
            if c.is_alphabetic() {
                word.push(c);
            } else if !word.is_empty() {
                *counts.entry(std::mem::take(&mut word)).or_default() += 1;
            }
        }
    }
    let total: u64 = counts.values().sum();
    let different = counts.len();
    // The sort is stable, so words that are equally frequent stay in alphabetical order.
    let mut top: Vec<_> = counts.into_iter().collect();
    top.sort_by_key(|(_, count)| Reverse(*count));
    top.truncate(20);

    let lines = run.lines();
    let row = |line: &str| {
        let (count, word) = line.trim().split_once(' ').expect("a count and a word");
        (word.to_owned(), count.parse().expect("a count"))
    };
    let printed: Vec<(String, u64)> = lines[..top.len()].iter().map(|line| row(line)).collect();
    assert_eq!(printed, top);
    assert_eq!(
        lines[top.len()],
        format!("{total} words, {different} different")
    );
    assert!(lines[top.len() + 2].contains(" files/s, ") && lines[top.len() + 2].ends_with(" MB/s"));
}

/// All three ways were timed, and count the same.
fn assert_compared(run: &Run) {
    for way in ["one thread ", "rayon ", "pool "] {
        let [row] = run.after(way)[..] else {
            panic!("no row for {way}: {run:?}");
        };
        let numbers: Result<Vec<f64>, _> = row.split_whitespace().map(str::parse).collect();
        assert_eq!(numbers.expect("numbers").len(), 2, "seconds and speedup");
    }
    run.only("the same counts from all three");
}

/// Small text files below `dir`, up to 3000 of them altogether.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(data) = entry.metadata() else { continue };
        if files.len() >= 3000 {
            return;
        }
        if data.is_dir() {
            sources(&path, files);
        } else if data.is_file()
            && data.len() < 8192
            && path.extension().is_some_and(|extension| extension == "rs")
            && fs::read_to_string(&path).is_ok_and(|text| !text.contains('\0'))
        {
            files.push(path);
        }
    }
}

fn cargo_home() -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

// Where the examples are.

fn examples_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples")
}

/// The program of an example. `cargo test --workspace` has built it; if it was not that which runs
/// us, build it now.
fn example(name: &str) -> PathBuf {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        let this = std::env::current_exe().expect("this program");
        // From target/debug/deps/examples-0123456789abcdef to target/debug/examples.
        let profile = this.ancestors().nth(2).expect("two directories");
        let programs = profile.join("examples");
        let mut names = names();
        names.push("cluster".to_owned());
        if !names.iter().all(|name| is_fresh(&programs.join(name))) {
            build(profile);
        }
        programs
    });
    programs.join(name)
}

/// Whether the program is newer than all sources that cargo lists for it.
fn is_fresh(program: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let sources = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let (Some(built), Some((_, sources))) = (changed(program), sources.split_once(": ")) else {
        return false;
    };
    let mut sources = sources.split_whitespace().map(Path::new);
    sources.all(|source| changed(source).is_some_and(|time| time <= built))
}

fn build(profile: &Path) {
    let name = match profile.file_name() {
        Some(name) if name != "debug" => name,
        _ => OsStr::new("dev"),
    };
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "examples",
            "--package",
            "pool-core",
            "--package",
            "pool-nats",
            "--examples",
            "--profile",
        ])
        .arg(name)
        .arg("--target-dir")
        .arg(profile.parent().expect("a target directory"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo");
    assert!(status.success(), "the examples do not compile");
}

/// All examples in the directory, by name: those of `examples`, and one of pool-core.
fn names() -> Vec<String> {
    let manifests = ["Cargo.toml", "../pool-core/Cargo.toml"]
        .map(|path| fs::read_to_string(examples_dir().join(path)).expect("the manifest"));
    let examples = manifests
        .iter()
        .flat_map(|manifest| manifest.split("[[example]]\nname = \"").skip(1));
    let names = examples.filter_map(|example| Some(example.split_once('"')?.0.to_owned()));
    names.collect::<BTreeSet<_>>().into_iter().collect()
}
