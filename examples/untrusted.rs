//! Images from strangers, decoded in sandboxed workers. Some of the images are attacks that take over the decoder, and whoever
//! is in control then tries to read files, open connections, start processes, and kill this program. The table that is
//! printed shows how far each gets, without a sandbox and in one.
//!
//! (Without a sandbox, everything that is tried is harmless: see [`takeover`].)

use std::error::Error;
use std::io;
use std::iter;
use std::net::TcpListener;
use std::time::Duration;

use pool_core::{Pool, PoolBuilder, Sandbox, Shared, TaskError, pool_task};

/// What the decoder returns: one byte for each pixel.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// Decodes a grey PNG of 16 bits. `tones` says how bright each of the 65536 values is on a screen.
#[pool_task]
fn decode(tones: &Shared<[u8]>, image: &[u8]) -> Result<Picture, TaskError> {
    let mut reader = png::Decoder::new(io::Cursor::new(image)).read_info()?;
    let size = reader.output_buffer_size().ok_or("it is too large")?;
    let (width, height) = reader.info().size();
    let mut samples = vec![0; size];
    reader.next_frame(&mut samples)?;

    // Here is the hole through which the attack comes. In reality it would be a bug in this decoder: a missing check, say, that
    // lets an image overwrite memory. In this example the text of a "comment" is obeyed.
    let texts = &reader.info().uncompressed_latin1_text;
    if let Some(text) = texts.iter().find(|text| text.keyword == "Comment") {
        // Whoever controls a worker also controls its answer. This one tells us how it went.
        takeover::attempt(&text.text, tones)?;
        return Err("nothing stops it".into());
    }

    let samples = samples.chunks_exact(2);
    let samples = samples.map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let pixels = samples.map(|sample| tones[usize::from(sample)]).collect();
    Ok(Picture {
        width,
        height,
        pixels,
    })
}

/// How the table begins each row; and the comment in the image, of which `takeover` knows the meaning.
const ATTACKS: [(&str, &str); 12] = [
    ("read /etc/passwd", "read"),
    ("connect to this program", "connect"),
    ("run a command", "run"),
    ("fork", "fork"),
    ("start a thread", "thread"),
    ("kill this program", "kill-parent"),
    ("kill another worker", "kill-worker"),
    ("trace another worker", "trace-worker"),
    ("fill the disk", "fill-disk"),
    ("reserve 4 GiB of memory", "reserve"),
    ("change its own limits", "set-limits"),
    ("change what workers share", "share"),
];

/// What became of all images.
#[derive(Default)]
struct Report {
    /// The answers to the attacks.
    attacks: Vec<String>,
    good_images: usize,
    connections: usize,
    workers_lost: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let without = process(Pool::builder(), 0)?;
    // Workers may compute, with up to a gigabyte of memory, and do nothing else.
    let sandboxed = Pool::builder().sandbox(Sandbox::new().memory(1 << 30));
    let with = process(sandboxed, libc::SIGKILL)?;

    println!(
        "{:<26} {:<23} in a sandbox",
        "an image tries to", "without a sandbox"
    );
    let answers = without.attacks.iter().zip(&with.attacks);
    for ((name, _), (without, with)) in ATTACKS.iter().zip(answers) {
        println!("{name:<26} {without:<23} {with}");
    }
    println!();
    type Count = fn(&Report) -> usize;
    let counts: [(&str, Count); 3] = [
        ("connections from workers", |report| report.connections),
        ("workers that died", |report| report.workers_lost),
        ("good images decoded", |report| report.good_images),
    ];
    for (name, count) in counts {
        println!("{name:<26} {:<23} {}", count(&without), count(&with));
    }
    println!("this program and its other worker live, and what workers share is unchanged");
    Ok(())
}

/// Decodes good images, among which the attacks are hidden. `signal` is what they send to those whom they want to kill.
fn process(builder: PoolBuilder, signal: i32) -> Result<Report, Box<dyn Error>> {
    let pool = builder
        .processes(2)
        // A sandbox does not limit how long an image takes. This does.
        .time_limit(Duration::from_secs(10))
        // Whoever controls a worker sees the images that it gets later, and decides what they show. So there are none.
        .max_tasks_per_child(1)
        .build()?;
    let tones: Vec<u8> = (0..=u16::MAX).map(screen_tone).collect();
    let shared = Shared::copy_from(&tones[..])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let other = Pool::with_processes(1)?;
    let others = other.worker_pids();

    // An attacker would have to find these numbers out.
    let hints = format!("{} {} {signal}", listener.local_addr()?.port(), others[0]);
    let mut images = Vec::new();
    for (number, (_, attack)) in ATTACKS.iter().enumerate() {
        images.push(encode(&draw(number), None)?);
        images.push(encode(&draw(number), Some(&format!("{attack} {hints}")))?);
    }
    let call = pool.task(decode).partial((shared.clone(),)).chunksize(1);
    let outcomes = call.map_results(images);

    let mut report = Report::default();
    for (number, outcomes) in outcomes.chunks_exact(2).enumerate() {
        if let Ok(Ok(picture)) = &outcomes[0] {
            report.good_images += usize::from(*picture == expected(number, &tones));
        }
        report.attacks.push(match &outcomes[1] {
            Ok(Ok(_)) => "it was decoded".to_owned(),
            Ok(Err(error)) => error.message().to_owned(),
            Err(error) => error.to_string(),
        });
    }
    report.connections = iter::from_fn(|| listener.accept().ok()).count();
    report.workers_lost = pool.stats().workers.iter().map(|it| it.restarts.died).sum();
    assert_eq!(other.worker_pids(), others);
    assert_eq!(shared[..], tones[..]);
    Ok(report)
}

/// Eyes see small differences better where it is dark.
fn screen_tone(sample: u16) -> u8 {
    let light = f64::from(sample) / f64::from(u16::MAX);
    (light.powf(1.0 / 2.2) * 255.0).round() as u8
}

const SIZE: u32 = 128;

/// A pattern, as samples of 16 bits. Each number has another one.
fn draw(number: usize) -> Vec<u16> {
    let pixels = (0..SIZE).flat_map(|y| (0..SIZE).map(move |x| (x, y)));
    let step = 2 * number as u32 + 3;
    pixels.map(|(x, y)| (x * y * step) as u16).collect()
}

fn expected(number: usize, tones: &[u8]) -> Picture {
    let samples = draw(number).into_iter();
    Picture {
        width: SIZE,
        height: SIZE,
        pixels: samples.map(|sample| tones[usize::from(sample)]).collect(),
    }
}

fn encode(samples: &[u16], comment: Option<&str>) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIZE, SIZE);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    if let Some(comment) = comment {
        encoder.add_text_chunk("Comment".to_owned(), comment.to_owned())?;
    }
    let bytes: Vec<u8> = samples.iter().flat_map(|it| it.to_be_bytes()).collect();
    encoder.write_header()?.write_image_data(&bytes)?;
    Ok(file)
}

/// What somebody tries who has taken over a worker. Without a sandbox it does no harm: the signals are signal 0, which only asks
/// whether one could be sent; what is traced is let go, and the file is short and removed again.
mod takeover {
    use std::env;
    use std::fs::{self, File};
    use std::io::{self, Write};
    use std::net::TcpStream;
    use std::os::unix::process::parent_id;
    use std::process::{self, Command};
    use std::ptr;
    use std::thread;

    pub(super) fn attempt(comment: &str, shared: &[u8]) -> io::Result<()> {
        let (attack, numbers) = comment.split_once(' ').unwrap_or_default();
        let numbers: Result<Vec<i32>, _> = numbers.split(' ').map(str::parse).collect();
        let numbers = numbers.map_err(io::Error::other)?;
        let [port, worker, signal] = numbers[..] else {
            return Err(io::Error::other("these are not all hints"));
        };
        match attack {
            "read" => fs::read("/etc/passwd").map(drop),
            "connect" => TcpStream::connect(("127.0.0.1", port as u16)).map(drop),
            "run" => Command::new("true").status().map(drop),
            "fork" => fork(),
            "thread" => thread::Builder::new().spawn(|| ()).map(drop),
            "kill-parent" => kill(parent_id() as i32, signal),
            "kill-worker" => kill(worker, signal),
            "trace-worker" => trace(worker),
            "fill-disk" => fill_disk(),
            "reserve" => {
                let reserved = Vec::<u8>::new().try_reserve_exact(4 << 30);
                reserved.map_err(io::Error::other)
            }
            "set-limits" => set_limits(),
            "share" => overwrite(shared),
            _ => Err(io::Error::other("this is no attack")),
        }
    }

    fn kill(pid: i32, signal: i32) -> io::Result<()> {
        // SAFETY: this has no requirements.
        check(unsafe { libc::kill(pid, signal) })
    }

    fn fork() -> io::Result<()> {
        // SAFETY: the copy does nothing but end.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: this has no requirements.
            unsafe { libc::_exit(0) };
        }
        check(pid)?;
        // SAFETY: no status is asked for.
        check(unsafe { libc::waitpid(pid, ptr::null_mut(), 0) })
    }

    fn trace(pid: i32) -> io::Result<()> {
        let request = |request| {
            // SAFETY: these requests write nothing into our memory.
            check(unsafe { libc::ptrace(request, pid, 0, 0) } as i32)
        };
        request(libc::PTRACE_SEIZE)?;
        request(libc::PTRACE_INTERRUPT)?;
        // SAFETY: no status is asked for.
        check(unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) })?;
        request(libc::PTRACE_DETACH)
    }

    /// Only 16 MiB of it.
    fn fill_disk() -> io::Result<()> {
        let path = env::temp_dir().join(format!("untrusted-{}", process::id()));
        let mut file = File::create_new(&path)?;
        let block = vec![0; 1 << 20];
        let written = (0..16).try_for_each(|_| file.write_all(&block));
        fs::remove_file(&path)?;
        written
    }

    fn set_limits() -> io::Result<()> {
        let none = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: the pointer is to a limit.
        check(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const none) })
    }

    /// That worker's view of the table becomes a copy of its own, so no other process sees the change.
    fn overwrite(shared: &[u8]) -> io::Result<()> {
        let address = shared.as_ptr().cast_mut();
        let start = address.map_addr(|address| address & !0xfff);
        // SAFETY: if this were possible, it would be in order to break the rules.
        check(unsafe { libc::mprotect(start.cast(), 1, libc::PROT_READ | libc::PROT_WRITE) })?;
        // SAFETY: see above.
        unsafe { address.write_volatile(255) };
        Err(io::Error::other("only a copy of its own"))
    }

    fn check(result: i32) -> io::Result<()> {
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
