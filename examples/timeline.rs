//! Looks at how work spreads over workers: `timeline --directory out`.
//!
//! Frames of a film, of which some take twenty times as long as others, and most of these come together, near the end. Where the pool
//! chooses the chunk size, whoever is free takes the next frame, so all workers are busy until the frames run out. In chunks of 20 one
//! worker gets nearly all of the slow ones, and the others wait for it. Open the pages and compare.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;
use pool_core::{Pool, Timeline, pool_task};

/// Writes what happens in two pools as pages to look at, and as traces for Perfetto.
#[derive(Parser)]
struct Options {
    /// Where to write them [default: a directory of its own among the temporary files]
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// One frame. (It takes its time, but does nothing with it.)
#[pool_task]
fn render(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

/// How long each frame takes, in milliseconds.
fn frames() -> impl Iterator<Item = u64> {
    (0..160).map(|frame| {
        let usual = 6 + frame * 7 % 11;
        match frame {
            121 | 124 | 127 | 131 | 134 | 137 | 139 => usual + 150,
            _ if frame % 23 == 11 => usual + 90,
            _ => usual,
        }
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = Options::parse().directory.unwrap_or_else(|| {
        let name = format!("pool-timeline-{}", std::process::id());
        std::env::temp_dir().join(name)
    });
    fs::create_dir_all(&directory)?;
    for (name, chunksize) in [("balanced", None), ("chunks-of-20", Some(20))] {
        let timeline = Timeline::new();
        let pool = Pool::builder().processes(8).timeline(&timeline).build()?;
        let mut call = pool.task(render);
        if let Some(size) = chunksize {
            call = call.chunksize(size);
        }
        call.map(frames())?;
        pool.close();
        pool.join()?;
        let path = directory.join(format!("timeline-{name}"));
        timeline.write_html(path.with_extension("html"))?;
        timeline.write_trace(path.with_extension("json"))?;
        println!("{}", path.with_extension("html").display());
    }
    Ok(())
}
