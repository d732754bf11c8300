//! What a timeline records, as the trace that it writes shows it.

use std::process;
use std::time::Duration;

use pool_core::{Timeline, pool_task};
use serde_json::Value;

use crate::support::{Gate, builder, checked, hang, square, wait_at, watchdog};

/// The trace, and the page, which must be there too.
fn trace(timeline: &Timeline) -> Vec<Value> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (trace, page) = (
        directory.path().join("trace.json"),
        directory.path().join("page.html"),
    );
    timeline.write_trace(&trace).expect("it can be written");
    timeline.write_html(&page).expect("it can be written");
    let page = std::fs::read_to_string(page).expect("it is there");
    assert!(page.contains("</html>"));
    let text = std::fs::read_to_string(trace).expect("it is there");
    let trace: Value = serde_json::from_str(&text).expect("it is JSON");
    let events = trace.get("traceEvents").unwrap_or(&trace);
    events.as_array().expect("it is a list").clone()
}

/// How many inputs the bars of a task hold.
fn inputs(trace: &[Value], task: &str) -> u64 {
    let bars = trace.iter().filter(|event| event["ph"] == "X");
    let of = bars.filter(|bar| bar.to_string().contains(task));
    of.map(|bar| bar["args"]["inputs"].as_u64().unwrap_or(1))
        .sum()
}

#[pool_task]
fn mixed(x: u64) -> u64 {
    match x % 50 {
        7 => panic!("seven"),
        13 => process::abort(),
        _ => x,
    }
}

#[test]
fn a_timeline_has_every_input_also_those_that_failed() {
    let _watchdog = watchdog();
    let timeline = Timeline::new();
    let pool = checked(builder().processes(2).timeline(&timeline).build());
    pool.task(mixed).map_results(0..200);
    pool.map(square, 0..5_000).expect("it is well");
    for x in 0..50 {
        pool.apply(square, (x,)).expect("it is well");
    }
    // What has its result is there at once.
    let now = trace(&timeline);
    assert_eq!(inputs(&now, "mixed"), 200);
    assert_eq!(inputs(&now, "square"), 5_050);
    drop(pool);
    let text = serde_json::to_string(&trace(&timeline)).expect("as before");
    assert!(text.contains("SIGABRT"));
}

#[test]
fn bars_and_statistics_agree_about_runs_that_are_killed() {
    let _watchdog = watchdog();
    let limit = Duration::from_millis(100);
    let timeline = Timeline::new();
    let pool = checked(builder().processes(2).timeline(&timeline).build());
    let limited = pool.task(hang).time_limit(limit);
    assert!(
        limited
            .starmap_results(vec![(); 4])
            .iter()
            .all(Result::is_err)
    );
    let stats = pool.stats();
    let task = &stats.tasks[0];
    assert_eq!(task.run_times.count, 4);
    let trace = trace(&timeline);
    let bars = trace.iter().filter(|event| event["ph"] == "X");
    let took: f64 = bars
        .filter_map(|bar| bar["args"]["busy in ms"].as_f64())
        .sum();
    let told = task.run_times.mean.as_secs_f64() * 4.0 * 1e3;
    assert!(
        told >= 400.0 && (told - took).abs() < 0.01,
        "{told} ms, {took} ms"
    );
}

#[test]
fn several_pools_share_one_and_what_runs_is_shown() {
    let _watchdog = watchdog();
    let gate = Gate::new();
    let timeline = Timeline::new();
    let one = checked(builder().processes(1).timeline(&timeline).build());
    let other = checked(
        builder()
            .processes(1)
            .timeline(&timeline)
            .on_event(|_| ())
            .build(),
    );
    one.map(square, 0..10).expect("it is well");
    other.map(square, 0..10).expect("it is well");
    let held = one.apply_async(wait_at, (gate.path(), 1));
    let first = gate.accept();
    let now = trace(&timeline);
    assert_eq!(inputs(&now, "square"), 20);
    assert_eq!(inputs(&now, "wait_at"), 1);
    first.release();
    held.get().expect("it is let through");
    assert_eq!(inputs(&trace(&timeline), "wait_at"), 1);
}
