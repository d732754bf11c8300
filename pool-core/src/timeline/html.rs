//! A recording as one self-contained page: `page.html`, with the recording inserted.
//!
//! The page contains the whole program that draws. It gets the recording as JSON in a script element that is not executed,
//! and puts text that comes from users (names of tasks, reasons) onto the page only as text, never as markup.

use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::model::{Bar, Lane, Mark, Recording, Table, Waiting};

const PAGE: &str = include_str!("page.html");

/// The part of a recording that is in the page. Bars are rows without field names, since there are many.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    started_unix_ms: u64,
    length_ns: u64,
    lanes: &'a [Lane],
    tasks: &'a [String],
    #[serde(serialize_with = "rows")]
    bars: &'a [Bar],
    marks: &'a [Mark],
    waiting: &'a [Waiting],
    tables: &'a [Table],
    notes: &'a [String],
}

/// In the order that is documented at the top of the page.
fn rows<S: Serializer>(bars: &[Bar], serializer: S) -> Result<S::Ok, S::Error> {
    let mut rows = serializer.serialize_seq(Some(bars.len()))?;
    for bar in bars {
        rows.serialize_element(&(
            bar.lane,
            bar.pid,
            bar.task,
            bar.job,
            bar.first,
            bar.count,
            bar.failed,
            bar.began_ns,
            bar.ended_ns,
            bar.busy_ns,
            bar.outcome,
        ))?;
    }
    rows.end()
}

/// # Errors
///
/// Those of `out`.
pub(super) fn write(recording: &Recording, mut out: impl Write) -> io::Result<()> {
    let title = if recording.title.is_empty() {
        "Timeline"
    } else {
        &recording.title
    };
    let page = Page {
        title,
        started_unix_ms: recording.started_unix_ms,
        length_ns: recording.length_ns,
        lanes: &recording.lanes,
        tasks: &recording.tasks,
        bars: &recording.bars,
        marks: &recording.marks,
        waiting: &recording.waiting,
        tables: &recording.tables,
        notes: &recording.notes,
    };
    let (head, rest) = split(PAGE, "{{TITLE}}");
    let (middle, tail) = split(rest, "{{RECORDING}}");
    out.write_all(head.as_bytes())?;
    out.write_all(escape(title).as_bytes())?;
    out.write_all(middle.as_bytes())?;
    serde_json::to_writer(InScript(&mut out), &page)?;
    out.write_all(tail.as_bytes())?;
    out.flush()
}

fn split<'a>(page: &'a str, at: &str) -> (&'a str, &'a str) {
    page.split_once(at).expect("the page has its places")
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;");
    text.replace('<', "&lt;").replace('>', "&gt;")
}

/// Writes JSON such that no part of it ends its script element, or begins a comment there.
struct InScript<W>(W);

impl<W: Write> Write for InScript<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // These characters occur only in strings, where an escape means the same.
        for part in bytes.split_inclusive(|byte| *byte == b'<') {
            match part.strip_suffix(b"<") {
                Some(before) => {
                    self.0.write_all(before)?;
                    self.0.write_all(b"\\u003c")?;
                }
                None => self.0.write_all(part)?,
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test starts a browser")]
mod tests {
    use std::fs::{self, File};
    use std::io::BufWriter;
    use std::path::Path;
    use std::process::{Command, Stdio};

    use serde_json::Value;

    use super::super::model::{What, sample};
    use super::*;

    fn page(recording: &Recording) -> String {
        let mut out = Vec::new();
        write(recording, &mut out).expect("memory takes it");
        String::from_utf8(out).expect("text")
    }

    fn data(page: &str) -> Value {
        let (_, rest) = page
            .split_once("id=\"recording\">")
            .expect("it begins there");
        let (data, _) = rest.split_once("</script>").expect("it ends there");
        serde_json::from_str(data).expect("it is JSON")
    }

    #[test]
    fn what_users_write_is_text_and_nothing_else() {
        let mut recording = sample::heavy_tail(2);
        let evil = "</script><script>alert(1)</script><!-- & {{RECORDING}}";
        recording.title = evil.to_owned();
        recording.tasks[0] = evil.to_owned();
        recording.marks[0].what = What::Died(evil.to_owned());
        let page = page(&recording);
        assert_eq!(page.matches("<script").count(), 2);
        assert_eq!(page.matches("<!--").count(), 0);
        let data = data(&page);
        assert_eq!(data["title"], evil);
        assert_eq!(data["tasks"][0], evil);
        assert_eq!(data["marks"][0]["what"]["why"], evil);
        assert_eq!(
            data["bars"].as_array().map(Vec::len),
            Some(recording.bars.len())
        );
    }

    #[test]
    fn the_page_is_self_contained() {
        let page = page(&sample::heavy_tail(2));
        for outside in ["src=", "href=", "url(", "import ", "http://", "https://"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    /// Chromium, if it is installed.
    fn browser() -> Option<&'static str> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        names.into_iter().find(|name| {
            let mut version = Command::new(name);
            let version = version.arg("--version").stdout(Stdio::null());
            version
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
    }

    /// Opens a page, and returns what it says about itself.
    fn open(browser: &str, recording: &Recording) -> String {
        // Each time with a new profile: processes of the last browser may still use theirs.
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("page.html");
        fs::write(&path, page(recording)).expect("it can be written");
        let output = Command::new("timeout")
            .args(["240", browser])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"])
            // It shall look for nothing on the network.
            .args(["--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync"])
            .arg(format!(
                "--user-data-dir={}",
                directory.path().join("profile").display()
            ))
            .arg(format!("file://{}", path.display()))
            .output()
            .expect("it starts");
        let dom = String::from_utf8_lossy(&output.stdout);
        let end = dom
            .find("<head")
            .unwrap_or_else(|| panic!("no page: {output:?}"));
        dom[..end].to_owned()
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that skips says so")]
    fn a_browser_draws_it() {
        let Some(browser) = browser() else {
            eprintln!("skipped: chromium is not installed");
            return;
        };
        let mut evil = sample::heavy_tail(2);
        evil.tasks[0] = "</script><img src=x onerror=alert(1)>".to_owned();
        let all = [
            sample::heavy_tail(2),
            sample::heavy_tail(200),
            sample::merged(8),
            evil,
            Recording::default(),
        ];
        for recording in &all {
            let said = open(browser, recording);
            let says = |name: &str, count: usize| {
                let wanted = format!("data-{name}=\"{count}\"");
                assert!(said.contains(&wanted), "{wanted} in {said}");
            };
            says("errors", 0);
            says("lanes", recording.lanes.len());
            says("bars", recording.bars.len());
            says("marks", recording.marks.len());
        }
    }

    /// For work on the page: writes samples to a directory, and draws the recordings that are there as JSON.
    #[test]
    fn samples_to_look_at() {
        let Some(directory) = std::env::var_os("POOL_TIMELINE_SAMPLES") else {
            return;
        };
        let samples = [
            ("two", sample::heavy_tail(2)),
            ("eight", sample::heavy_tail(8)),
            ("many", sample::heavy_tail(64)),
            ("most", sample::heavy_tail(200)),
            ("merged", sample::merged(8)),
            ("empty", Recording::default()),
        ];
        for (name, recording) in samples {
            let path = Path::new(&directory).join(format!("{name}.html"));
            let file = File::create(path).expect("the directory is there");
            write(&recording, BufWriter::new(file)).expect("it can be written");
        }
        for entry in fs::read_dir(directory).expect("as above") {
            let path = entry.expect("it can be read").path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let text = fs::read(&path).expect("it can be read");
                let recording: Recording = serde_json::from_slice(&text).expect("a recording");
                let file = File::create(path.with_extension("html")).expect("as above");
                write(&recording, BufWriter::new(file)).expect("it can be written");
            }
        }
    }
}
