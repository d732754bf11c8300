//! Draws a picture of the Mandelbrot set: `mandelbrot out.png`.
//!
//! Each row is an input. Rows come back as they finish, with their numbers, so the order does not matter, and no worker waits
//! for another.

use std::error::Error;
use std::f64::consts::TAU;
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use clap::Parser;
use indicatif::ProgressIterator;
use pool_core::{Pool, pool_task};

const WIDTH: usize = 800;
const HEIGHT: usize = 600;
/// A point that has not escaped after this many steps is assumed to be in the set.
const STEPS: u32 = 600;
/// Each pixel is the mean of this many points in each direction.
const POINTS: usize = 2;

/// Draws a picture of the Mandelbrot set.
#[derive(Parser)]
struct Options {
    /// Where to write the picture
    out: PathBuf,
}

/// One row of pixels, three bytes each; and its number.
#[pool_task]
fn row(y: usize) -> (usize, Vec<u8>) {
    (y, (0..WIDTH).flat_map(|x| pixel(x, y)).collect())
}

fn pixel(x: usize, y: usize) -> [u8; 3] {
    let mut sum = [0.0; 3];
    for i in 0..POINTS * POINTS {
        let point = |at: usize, part: usize| at as f64 + (part as f64 + 0.5) / POINTS as f64;
        let colour = colour(point(x, i % POINTS), point(y, i / POINTS));
        sum = [0, 1, 2].map(|channel| sum[channel] + colour[channel]);
    }
    sum.map(|channel| (255.0 * channel / (POINTS * POINTS) as f64) as u8)
}

fn colour(x: f64, y: f64) -> [f64; 3] {
    let scale = 0.0078 / WIDTH as f64;
    let re = -0.7460 + (x - WIDTH as f64 / 2.0) * scale;
    let im = 0.1144 + (HEIGHT as f64 / 2.0 - y) * scale;
    match escape(re, im) {
        None => [0.0; 3],
        Some(steps) => {
            // The logarithm spreads the bands evenly, however deep they lie.
            let hue = steps.ln() * 0.62;
            [0.08, 0.18, 0.32].map(|phase| 0.5 - 0.5 * (TAU * (hue + phase)).cos())
        }
    }
}

/// After how many steps the point escapes, smoothed between whole numbers.
fn escape(re: f64, im: f64) -> Option<f64> {
    let (mut x, mut y) = (0.0_f64, 0.0_f64);
    for step in 0..STEPS {
        let (xx, yy) = (x * x, y * y);
        if xx + yy > 256.0 {
            return Some(f64::from(step) + 4.0 - (xx + yy).ln().log2());
        }
        (x, y) = (xx - yy + re, 2.0 * x * y + im);
    }
    None
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let pool = Pool::new()?;
    let mut picture = vec![0; WIDTH * HEIGHT * 3];
    let rows = pool.imap_unordered(row, 0..HEIGHT);
    for result in rows.progress_count(HEIGHT as u64) {
        let (y, pixels) = result?;
        picture[y * WIDTH * 3..][..WIDTH * 3].copy_from_slice(&pixels);
    }

    let file = BufWriter::new(File::create(&options.out)?);
    let mut encoder = png::Encoder::new(file, WIDTH as u32, HEIGHT as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture)?;
    writer.finish()?;
    let (out, processes) = (options.out.display(), pool.processes());
    println!("{out}: {WIDTH} x {HEIGHT} pixels, drawn by {processes} workers");
    Ok(())
}
