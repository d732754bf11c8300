//! Counts the words of every text file below a directory: `wordcount PATH [--compare]`.
//!
//! An input is a batch of files, about a megabyte together: a worker returns one tally for all of them, so that merging the
//! tallies remains a small part of the work.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, mem};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use pool_core::{Pool, pool_task};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

/// Counts the words of every text file below a directory.
#[derive(Parser)]
struct Options {
    /// The directory, or a single file
    path: PathBuf,
    /// Count again in one thread, with rayon and with the pool, and compare
    #[arg(long)]
    compare: bool,
}

/// The names of some files.
type Batch = Vec<PathBuf>;
const BATCH_BYTES: u64 = 1 << 20;
const BATCH_FILES: usize = 256;

#[derive(Default, Serialize, Deserialize)]
struct Tally {
    words: HashMap<String, u64>,
    files: u64,
    bytes: u64,
    not_text: Vec<String>,
    unreadable: Vec<String>,
}

#[pool_task]
fn count_words(batch: &[PathBuf]) -> Tally {
    let mut tally = Tally::default();
    for file in batch {
        let name = file.display();
        match fs::read(file).map(String::from_utf8) {
            Ok(Ok(text)) if !text.contains('\0') => tally.add(&text),
            Ok(_) => tally.not_text.push(name.to_string()),
            Err(error) => tally.unreadable.push(format!("{name}: {error}")),
        }
    }
    tally
}

impl Tally {
    fn add(&mut self, text: &str) {
        self.files += 1;
        self.bytes += text.len() as u64;
        let text = text.to_lowercase();
        let words = text.split(|c: char| !c.is_alphabetic());
        for word in words.filter(|word| !word.is_empty()) {
            match self.words.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    self.words.insert(word.to_owned(), 1);
                }
            }
        }
    }

    fn merge(mut self, mut other: Tally) -> Tally {
        if self.words.len() < other.words.len() {
            mem::swap(&mut self, &mut other);
        }
        for (word, count) in other.words {
            *self.words.entry(word).or_default() += count;
        }
        self.files += other.files;
        self.bytes += other.bytes;
        self.not_text.extend(other.not_text);
        self.unreadable.extend(other.unreadable);
        self
    }

    fn report(&mut self, time: Duration) {
        self.not_text.sort();
        self.unreadable.sort();
        name_some("skipped, not text", &self.not_text);
        name_some("could not read", &self.unreadable);

        let mut top: Vec<_> = self.words.iter().collect();
        top.sort_by_key(|&(word, count)| (Reverse(count), word));
        for (word, count) in top.iter().take(20) {
            println!("{count:>10} {word}");
        }
        let (files, megabytes) = (self.files, self.bytes as f64 / 1e6);
        let (skipped, lost) = (self.not_text.len(), self.unreadable.len());
        let (total, seconds) = (self.words.values().sum::<u64>(), time.as_secs_f64());
        println!("{total} words, {} different", self.words.len());
        println!("{files} files, {megabytes:.1} MB; {skipped} not text, {lost} not readable");
        let (files_rate, rate) = (files as f64 / seconds, megabytes / seconds);
        println!("{seconds:.2} s, {files_rate:.0} files/s, {rate:.1} MB/s");
    }
}

fn name_some(what: &str, names: &[String]) {
    for name in names.iter().take(10) {
        eprintln!("{what}: {name}");
    }
    if names.len() > 10 {
        eprintln!("{what}: … and {} more", names.len() - 10);
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = Options::parse();
    let (batches, unreadable) = find(&options.path);

    let files = batches.iter().map(Vec::len).sum::<usize>();
    let style = "{wide_bar} {pos}/{len} files, {per_sec}, {eta} left";
    let bar = ProgressBar::new(files as u64).with_style(ProgressStyle::with_template(style)?);
    let start = Instant::now();
    let mut tally = in_pool(&batches, &bar)?;
    let time = start.elapsed();
    bar.finish_and_clear();

    tally.unreadable.extend(unreadable);
    tally.report(time);
    if options.compare && !compare(&batches)? {
        return Ok(ExitCode::FAILURE);
    }
    // Counting nothing at all is a failure: the path may be mistyped, for example.
    Ok(ExitCode::from(u8::from(tally.files == 0)))
}

/// All regular files at or below `path`, in batches; and what can't be read. Links are followed to files but not to
/// directories, so there are no loops.
fn find(path: &Path) -> (Vec<Batch>, Vec<String>) {
    let (mut batches, mut unreadable) = (Vec::new(), Vec::new());
    let (mut batch, mut bytes) = (Batch::new(), 0);
    for entry in WalkDir::new(path) {
        let file = match entry {
            Ok(entry) => entry.into_path(),
            Err(error) => {
                unreadable.push(error.to_string());
                continue;
            }
        };
        match fs::metadata(&file) {
            Ok(data) if data.is_file() => {
                batch.push(file);
                bytes += data.len();
            }
            // A directory, a pipe, a device.
            Ok(_) => {}
            Err(error) => unreadable.push(format!("{}: {error}", file.display())),
        }
        if bytes >= BATCH_BYTES || batch.len() >= BATCH_FILES {
            batches.push(mem::take(&mut batch));
            bytes = 0;
        }
    }
    batches.push(batch);
    (batches, unreadable)
}

fn in_pool(batches: &[Batch], bar: &ProgressBar) -> Result<Tally, pool_core::Error> {
    let pool = Pool::new()?;
    let mut sum = Tally::default();
    // Each batch is a chunk of its own.
    let tallies = pool
        .task(count_words)
        .chunksize(1)
        .imap_unordered(batches.iter().cloned());
    for tally in tallies {
        let tally = tally?;
        bar.inc(tally.files + (tally.not_text.len() + tally.unreadable.len()) as u64);
        sum = sum.merge(tally);
    }
    Ok(sum)
}

/// Whether one thread, rayon and the pool count the same.
fn compare(batches: &[Batch]) -> Result<bool, Box<dyn Error>> {
    let start = Instant::now();
    let serial = count_words(&batches.concat());
    let serial_time = start.elapsed();

    let start = Instant::now();
    let counted = batches.par_iter().map(|batch| count_words(batch));
    let rayon = counted.reduce(Tally::default, Tally::merge);
    let rayon_time = start.elapsed();

    let start = Instant::now();
    let pool = in_pool(batches, &ProgressBar::hidden())?;
    let pool_time = start.elapsed();

    println!("{:<12} {:>10} {:>9}", "", "seconds", "speedup");
    for (name, time) in [
        ("one thread", serial_time),
        ("rayon", rayon_time),
        ("pool", pool_time),
    ] {
        let (seconds, speedup) = (time.as_secs_f64(), serial_time.div_duration_f64(time));
        println!("{name:<12} {seconds:>10.3} {speedup:>9.2}");
    }
    let key = |tally: &Tally| (tally.words.clone(), tally.files, tally.bytes);
    let same = key(&serial) == key(&rayon) && key(&serial) == key(&pool);
    println!(
        "{}",
        if same {
            "the same counts from all three"
        } else {
            "THE COUNTS DIFFER"
        }
    );
    Ok(same)
}
