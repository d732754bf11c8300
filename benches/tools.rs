//! What every measurement needs: clocks, medians, pinning, and figures from `/proc`.

use std::error::Error;
use std::fs;
use std::mem;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Any error ends the run and is printed.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// One measurement, in seconds.
pub(crate) type Measure<'a> = &'a mut dyn FnMut() -> Outcome<f64>;

/// Returns the seconds that `work` takes.
pub(crate) fn time<E: Into<Box<dyn Error>>>(work: impl FnOnce() -> Result<(), E>) -> Outcome<f64> {
    let start = Instant::now();
    work().map_err(Into::into)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Returns the medians of several measurements, taken in turns, so that disturbances from other programs affect all of
/// them alike.
pub(crate) fn side_by_side<const N: usize>(
    runs: usize,
    mut measures: [Measure<'_>; N],
) -> Outcome<[f64; N]> {
    let mut all = [const { Vec::new() }; N];
    for _ in 0..runs {
        for (figures, measure) in all.iter_mut().zip(&mut measures) {
            figures.push(measure()?);
        }
    }
    Ok(all.map(middle))
}

/// Returns the median of several runs of one measurement.
pub(crate) fn median(runs: usize, mut measure: impl FnMut() -> Outcome<f64>) -> Outcome<f64> {
    side_by_side(runs, [&mut measure]).map(|[figure]| figure)
}

fn middle(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Keeps the CPU busy, like a program that works between two calls.
pub(crate) fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Returns the CPUs that this program may use.
pub(crate) fn cpus() -> Vec<usize> {
    let mut set = no_cpus();
    let size = size_of_val(&set);
    // SAFETY: the kernel writes at most `size` bytes of the set, which outlives the call.
    let failed = unsafe { libc::sched_getaffinity(0, size, &raw mut set) };
    if failed != 0 {
        return vec![0];
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: reads one bit of a whole set; the number is below its size.
        .filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) })
        .collect()
}

/// Restricts a process, or this thread if `pid` is 0, to these CPUs. A process that refuses is measured where it is.
/// Safe to call between `fork` and `exec`: it allocates nothing.
pub(crate) fn pin(pid: u32, cpus: &[usize]) {
    let mut set = no_cpus();
    for cpu in cpus {
        // SAFETY: sets one bit of a whole set; the number came from such a set.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the kernel only reads the set.
    unsafe { libc::sched_setaffinity(pid.cast_signed(), size_of_val(&set), &raw const set) };
}

fn no_cpus() -> libc::cpu_set_t {
    // SAFETY: a set of processors is an array of integers, for which zeros are valid.
    unsafe { mem::zeroed() }
}

/// Gets figures that must come from a process that has done nothing else: runs this program again, in one of its modes,
/// and reads what it prints.
pub(crate) fn fresh(mode: &str) -> Outcome<serde_json::Value> {
    let output = Command::new("/proc/self/exe")
        .arg(mode)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("`{mode}` in its own process: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Returns the first number after `key` in a file of lines such as `Pss:  123 kB`.
pub(crate) fn field(path: &str, key: &str) -> Outcome<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find(|line| line.starts_with(key));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(word.ok_or_else(|| format!("no {key} in {path}"))?.parse()?)
}

/// Returns how many entries a directory has: `/proc/self/task` or `/proc/self/fd`.
pub(crate) fn entries(path: &str) -> Outcome<usize> {
    Ok(fs::read_dir(path)?.count())
}

/// Returns how often the threads of a process were switched off a CPU.
pub(crate) fn switches(pid: u32) -> Outcome<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("status");
        let path = path.to_string_lossy();
        sum += field(&path, "voluntary_ctxt_switches:")?;
        sum += field(&path, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(sum)
}
