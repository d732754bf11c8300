//! Counts the instructions of the hot path, where `valgrind` is installed.
//!
//!     cargo bench -p benches --bench instructions
//!     cargo bench -p benches --bench instructions -- --check    # fails if one takes more than its limit
//!
//! Unlike times, the counts do not depend on what else the machine does. Workers can't run under valgrind, because they
//! re-execute `/proc/self/exe`, which is valgrind itself there. So this counts what needs no worker: encoding values
//! into frames, and decoding them.

use std::error::Error;
use std::hint::black_box;
use std::process::Command;

use pool_worker::{CodecError, Frames, decode, encode};

/// What is counted, and the most instructions that each input may take: a fifth more than when this was written (Rust
/// 1.95, x86-64).
const CASES: [(&str, Case, f64); 4] = [
    ("encode a u64 and frame it", frame, 96.0),
    ("take a chunk of 64 off the front, each", take, 19.0),
    ("unframe a u64 and decode it", unframe, 96.0),
    ("encode and decode a text of 16 bytes", text, 590.0),
];

/// Prepares this many inputs, then runs the case on all of them.
type Case = fn(u64) -> Result<(), CodecError>;

fn frames(count: u64) -> Result<Frames, CodecError> {
    let mut frames = Frames::with_capacity(16 * count as usize);
    for x in 0..count {
        let long = frames.push(|bytes| encode(&(x + 1000), bytes).map(|()| None))?;
        black_box(long);
    }
    Ok(frames)
}

fn frame(count: u64) -> Result<(), CodecError> {
    frames(count).map(|frames| _ = black_box(frames))
}

fn take(count: u64) -> Result<(), CodecError> {
    let mut all = frames(count)?;
    while all.count() > 0 {
        black_box(all.take_front(64));
    }
    Ok(())
}

fn unframe(count: u64) -> Result<(), CodecError> {
    let mut all = frames(count)?;
    while let Some((_, bytes)) = all.pop() {
        black_box(decode::<u64>(&bytes)?);
    }
    Ok(())
}

fn text(count: u64) -> Result<(), CodecError> {
    let mut bytes = Vec::new();
    for _ in 0..count {
        bytes.clear();
        encode(black_box("sixteen letters."), &mut bytes)?;
        black_box(decode::<String>(&bytes)?);
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, case, count] = arguments.as_slice()
        && mode == "run"
    {
        let (_, case, _) = CASES.get(case.parse::<usize>()?).ok_or("no such case")?;
        return Ok(case(count.parse()?)?);
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("valgrind is not installed: no instructions are counted.");
        return Ok(());
    }
    println!(
        "{:44} {:>12} {:>8}",
        "instructions per input", "", "at most"
    );
    let mut framing = 0.0;
    let mut short = false;
    for (index, (name, _, most)) in CASES.iter().enumerate() {
        // The difference leaves out the cost of starting a process.
        let (few, many) = (6_400, 64_000);
        let all = counted(index, many)? - counted(index, few)?;
        let mut each = all / (many - few) as f64;
        match index {
            0 => framing = each,
            // These two cases made the frames first.
            1 | 2 => each -= framing,
            _ => {}
        }
        let ok = each <= *most;
        short |= !ok;
        let verdict = if ok { "ok" } else { "short" };
        println!("{name:44} {each:>12.1} {most:>8}  {verdict}");
    }
    if short && arguments.iter().any(|argument| argument == "--check") {
        return Err("the hot path takes more instructions than it may".into());
    }
    Ok(())
}

/// Returns how many instructions this program executes for one case.
fn counted(case: usize, count: u64) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["run", &case.to_string(), &count.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind: {}\n{said}", output.status).into());
    }
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = line.ok_or_else(|| format!("valgrind printed no count:\n{said}"))?;
    Ok(number.trim().parse()?)
}
