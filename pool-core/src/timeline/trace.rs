//! A recording in Chrome's trace format, which <https://ui.perfetto.dev> and `chrome://tracing` open.
//!
//! In the trace, each machine is a process, and each lane a thread. Bars are complete events (`X`), and so is the start of a
//! worker; deaths and replacements are instants (`i`); the number of inputs that wait is a counter (`C`). Times are
//! microseconds. The format is described at
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>.

use std::borrow::Cow;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::model::{Bar, Recording, What};

/// The process that shows data about the whole pool.
const POOL: usize = 0;

#[derive(Serialize)]
struct Event<'a> {
    name: Cow<'a, str>,
    cat: &'static str,
    ph: &'static str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: usize,
    tid: usize,
    /// For an instant: it belongs to a thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    args: Map<String, Value>,
}

/// # Errors
///
/// Those of `out`.
pub(super) fn write(recording: &Recording, mut out: impl Write) -> io::Result<()> {
    let tracks = Tracks::of(recording);
    out.write_all(b"{\"displayTimeUnit\":\"ms\",\"otherData\":")?;
    let data = json!({
        "title": recording.title,
        "started_unix_ms": recording.started_unix_ms,
        "notes": recording.notes,
        "statistics": recording.tables,
    });
    serde_json::to_writer(&mut out, &data)?;
    out.write_all(b",\"traceEvents\":[\n")?;
    let events = tracks
        .names(recording)
        .chain(recording.bars.iter().map(|bar| tracks.bar(recording, bar)))
        .chain(tracks.starts(recording))
        .chain(tracks.instants(recording))
        .chain(waiting(recording));
    for (number, event) in events.enumerate() {
        if number > 0 {
            out.write_all(b",\n")?;
        }
        serde_json::to_writer(&mut out, &event)?;
    }
    out.write_all(b"\n]}\n")?;
    out.flush()
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

fn args<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    let pairs = pairs.into_iter();
    pairs
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The process and the thread of each lane.
struct Tracks<'a> {
    hosts: Vec<Option<&'a str>>,
    /// By lane.
    process: Vec<usize>,
}

impl<'a> Tracks<'a> {
    fn of(recording: &'a Recording) -> Tracks<'a> {
        let mut hosts = Vec::new();
        let mut process = Vec::new();
        for lane in &recording.lanes {
            let host = lane.host.as_deref();
            let known = hosts.iter().position(|other| *other == host);
            let at = known.unwrap_or_else(|| {
                hosts.push(host);
                hosts.len() - 1
            });
            process.push(at + 1);
        }
        Tracks { hosts, process }
    }

    fn event(&self, name: impl Into<Cow<'a, str>>, lane: u32, from_ns: u64) -> Event<'a> {
        let process = self.process.get(lane as usize);
        Event {
            name: name.into(),
            cat: "worker",
            ph: "X",
            ts: micros(from_ns),
            dur: None,
            pid: process.copied().unwrap_or(POOL),
            tid: lane as usize + 1,
            s: None,
            args: Map::new(),
        }
    }

    /// The names of processes and threads, and their order.
    fn names(&self, recording: &'a Recording) -> impl Iterator<Item = Event<'a>> {
        let meta = |name, pid, tid, args| Event {
            name: Cow::Borrowed(name),
            cat: "__metadata",
            ph: "M",
            ts: 0.0,
            dur: None,
            pid,
            tid,
            s: None,
            args,
        };
        let title = args([("name", json!(recording.title))]);
        let pool = meta("process_name", POOL, 0, title);
        let hosts = self.hosts.iter().enumerate().map(move |(at, host)| {
            let name = host.map_or("workers".to_owned(), |host| format!("workers on {host}"));
            meta("process_name", at + 1, 0, args([("name", json!(name))]))
        });
        let lanes = recording.lanes.iter().enumerate();
        let lanes = lanes.flat_map(move |(at, lane)| {
            let (pid, tid) = (self.process[at], at + 1);
            let name = format!("worker {}", lane.worker);
            [
                meta("thread_name", pid, tid, args([("name", json!(name))])),
                meta(
                    "thread_sort_index",
                    pid,
                    tid,
                    args([("sort_index", json!(at))]),
                ),
            ]
        });
        [pool].into_iter().chain(hosts).chain(lanes)
    }

    fn bar(&self, recording: &'a Recording, bar: &Bar) -> Event<'a> {
        let task = recording.tasks.get(bar.task as usize);
        let task = task.map_or("?", String::as_str);
        let name: Cow<'_, str> = if bar.count > 1 {
            format!("{task} × {}", bar.count).into()
        } else {
            task.into()
        };
        Event {
            cat: "task",
            dur: Some(micros(bar.ended_ns.saturating_sub(bar.began_ns))),
            args: args([
                ("process", json!(bar.pid)),
                ("call", json!(bar.job)),
                ("first input", json!(bar.first)),
                ("inputs", json!(bar.count)),
                ("failed", json!(bar.failed)),
                ("busy in ms", json!(bar.busy_ns as f64 / 1e6)),
                ("outcome", json!(bar.outcome)),
            ]),
            ..self.event(name, bar.lane, bar.began_ns)
        }
    }

    /// From the start of each worker until it was ready or gone.
    fn starts(&self, recording: &'a Recording) -> impl Iterator<Item = Event<'a>> {
        let marks = recording.marks.iter().enumerate();
        marks
            .filter(|(_, mark)| mark.what == What::Started)
            .map(|(at, mark)| {
                let mut later = recording.marks[at + 1..].iter();
                let next = later.find(|next| (next.lane, next.pid) == (mark.lane, mark.pid));
                let end = next.map_or(recording.length_ns, |next| next.at_ns);
                Event {
                    dur: Some(micros(end.saturating_sub(mark.at_ns))),
                    args: args([("process", json!(mark.pid))]),
                    ..self.event("starting", mark.lane, mark.at_ns)
                }
            })
    }

    fn instants(&self, recording: &'a Recording) -> impl Iterator<Item = Event<'a>> {
        recording.marks.iter().filter_map(|mark| {
            let name = match &mark.what {
                What::Started | What::Ready => return None,
                What::Died(how) => format!("died: {how}"),
                What::Recycled(why) => format!("replaced: {why}"),
            };
            Some(Event {
                ph: "i",
                s: Some("t"),
                args: args([("process", json!(mark.pid))]),
                ..self.event(name, mark.lane, mark.at_ns)
            })
        })
    }
}

fn waiting<'a>(recording: &'a Recording) -> impl Iterator<Item = Event<'a>> {
    recording.waiting.iter().map(|waiting| Event {
        name: Cow::Borrowed("waiting"),
        cat: "pool",
        ph: "C",
        ts: micros(waiting.at_ns),
        dur: None,
        pid: POOL,
        tid: 0,
        s: None,
        args: args([("inputs", json!(waiting.inputs))]),
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::sample;
    use super::*;

    fn parse(recording: &Recording) -> Value {
        let mut out = Vec::new();
        write(recording, &mut out).expect("memory takes it");
        serde_json::from_slice(&out).expect("it is JSON")
    }

    #[test]
    fn it_can_be_parsed_and_has_all_that_was_recorded() {
        let recording = sample::heavy_tail(3);
        let trace = parse(&recording);
        let events = trace["traceEvents"].as_array().expect("a list");
        let of = |ph: &str| events.iter().filter(|event| event["ph"] == ph).count();
        // One for each bar, and a start for each of the three workers and for the replacement of the dead one.
        assert_eq!(of("X"), recording.bars.len() + 4);
        assert_eq!(of("i"), 2);
        assert_eq!(of("C"), recording.waiting.len());
        assert_eq!(of("M"), 1 + 1 + 2 * 3);
        for event in events {
            assert!(event["ts"].as_f64().is_some_and(|ts| ts >= 0.0), "{event}");
            assert!(event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
            assert_eq!(event["ph"] == "X", event["dur"].is_number(), "{event}");
        }
        let bar = events.iter().find(|event| event["cat"] == "task");
        let bar = bar.expect("there is one");
        let args = &bar["args"];
        assert_eq!(bar["name"], "examples::render");
        assert_eq!(bar["ts"], recording.bars[0].began_ns as f64 / 1000.0);
        assert_eq!(
            (&args["inputs"], &args["outcome"]),
            (&json!(1), &json!("done"))
        );
    }

    #[test]
    fn each_machine_is_a_process_of_its_own() {
        let mut recording = sample::heavy_tail(3);
        recording.lanes[2].host = Some("other \"machine\"".to_owned());
        let trace = parse(&recording);
        let events = trace["traceEvents"].as_array().expect("a list");
        let pids: Vec<&Value> = events
            .iter()
            .filter(|event| event["name"] == "thread_name")
            .map(|event| &event["pid"])
            .collect();
        assert_eq!(pids, [1, 1, 2]);
    }

    #[test]
    fn nothing_recorded_is_a_trace_too() {
        let trace = parse(&Recording::default());
        assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(1));
    }
}
