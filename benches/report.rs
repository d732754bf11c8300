//! The measurements, with those of the peers and our goals: as a printed table, as Markdown, and as JSON; with the
//! points of the plots.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use crate::tools::Outcome;

/// A goal for a figure or a ratio.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

pub(crate) use Bound::{AtLeast, AtMost};

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            AtMost(most) => figure <= most,
            AtLeast(least) => figure >= least,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtMost(most) => write!(f, "≤ {most}"),
            AtLeast(least) => write!(f, "≥ {least}"),
        }
    }
}

/// The meaning of a ratio between the pool and a peer.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Ratio {
    /// The pool's figure divided by the peer's.
    OfIt,
    /// How many times better the pool is: for times and sizes, the peer's figure divided by its own.
    TimesBetter,
}

#[derive(Debug, Serialize)]
struct Peer {
    name: &'static str,
    figure: Option<f64>,
    ratio: Option<f64>,
    ratio_is: Ratio,
    wanted: Option<Bound>,
    ok: Option<bool>,
}

/// One figure of the pool, and those of its peers, in the same unit.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    pool: f64,
    wanted: Option<Bound>,
    peers: Vec<Peer>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, pool: f64, unit: &'static str) -> Row {
        Row {
            name: name.into(),
            unit,
            pool,
            wanted: None,
            peers: Vec::new(),
        }
    }

    /// Sets the goal for the pool's own figure.
    pub(crate) fn wanted(mut self, bound: Bound) -> Row {
        self.wanted = Some(bound);
        self
    }

    /// Adds a peer that shows what is possible: the ratio is the pool's figure divided by the peer's.
    pub(crate) fn limit(
        self,
        name: &'static str,
        figure: impl Into<Option<f64>>,
        wanted: impl Into<Option<Bound>>,
    ) -> Row {
        self.peer(name, figure.into(), Ratio::OfIt, wanted.into())
    }

    /// Adds a peer that does the same job: the ratio is how many times better the pool is.
    pub(crate) fn rival(
        self,
        name: &'static str,
        figure: impl Into<Option<f64>>,
        wanted: impl Into<Option<Bound>>,
    ) -> Row {
        self.peer(name, figure.into(), Ratio::TimesBetter, wanted.into())
    }

    fn peer(
        mut self,
        name: &'static str,
        figure: Option<f64>,
        ratio_is: Ratio,
        wanted: Option<Bound>,
    ) -> Row {
        let less_is_better = matches!(self.unit, "µs" | "ms" | "MiB" | "KiB" | "bytes");
        let ratio = figure.map(|figure| match ratio_is {
            Ratio::TimesBetter if less_is_better => figure / self.pool,
            Ratio::OfIt | Ratio::TimesBetter => self.pool / figure,
        });
        self.peers.push(Peer {
            name,
            figure,
            ratio,
            ratio_is,
            wanted,
            ok: ratio.zip(wanted).map(|(ratio, wanted)| wanted.holds(ratio)),
        });
        self
    }

    /// Whether every goal that could be measured was reached; `None` if there is none.
    fn ok(&self) -> Option<bool> {
        let own = self.wanted.map(|wanted| wanted.holds(self.pool));
        let all = own
            .into_iter()
            .chain(self.peers.iter().filter_map(|p| p.ok));
        all.reduce(|all, one| all && one)
    }

    fn wanted_words(&self) -> String {
        self.wanted
            .map(|bound| bound.to_string())
            .unwrap_or_default()
    }
}

impl Peer {
    fn words(&self, unit: &str) -> [String; 3] {
        let figure = self.figure.map_or("-".to_owned(), |x| with_unit(x, unit));
        let sense = match self.ratio_is {
            Ratio::OfIt => "× of it",
            Ratio::TimesBetter => "× better",
        };
        let ratio = self.ratio.map(|x| format!("{} {sense}", short(x)));
        let wanted = self.wanted.map(|bound| bound.to_string());
        [
            figure,
            ratio.unwrap_or_default(),
            wanted.unwrap_or_default(),
        ]
    }
}

fn verdict(ok: Option<bool>) -> &'static str {
    match ok {
        Some(true) => "ok",
        Some(false) => "short",
        None => "",
    }
}

fn with_unit(figure: f64, unit: &str) -> String {
    if unit.is_empty() {
        // A count.
        return format!("{figure}");
    }
    format!("{} {unit}", short(figure))
}

/// Rounds to three significant digits.
fn short(x: f64) -> String {
    let decimals = match x.abs() {
        x if x >= 100.0 || x == 0.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        x if x >= 0.1 => 3,
        _ => 4,
    };
    format!("{x:.decimals$}")
}

/// A line, or the bars of one colour, in a plot.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    plot: &'static str,
    pub(crate) name: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// The results of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    series: Vec<Series>,
}

impl Report {
    /// Prints a row, and keeps it.
    pub(crate) fn row(&mut self, row: Row) {
        let (pool, ok) = (with_unit(row.pool, row.unit), verdict(row.ok()));
        let wanted = row.wanted_words();
        println!("{:44} {pool:>12} {:>16} {wanted:>8}  {ok}", row.name, "");
        for peer in &row.peers {
            let [figure, ratio, wanted] = peer.words(row.unit);
            let ok = verdict(peer.ok);
            println!(
                "    {:40} {figure:>12} {ratio:>16} {wanted:>8}  {ok}",
                peer.name
            );
        }
        self.rows.push(row);
    }

    /// Adds a point to a series of a plot; ignores what could not be measured.
    pub(crate) fn point(
        &mut self,
        plot: &'static str,
        name: &'static str,
        x: f64,
        y: impl Into<Option<f64>>,
    ) {
        let Some(y) = y.into() else { return };
        let known = |series: &&mut Series| series.plot == plot && series.name == name;
        match self.series.iter_mut().find(known) {
            Some(series) => series.points.push((x, y)),
            None => self.series.push(Series {
                plot,
                name,
                points: vec![(x, y)],
            }),
        }
    }

    pub(crate) fn series(&self, plot: &str) -> Vec<&Series> {
        let series = self.series.iter();
        series.filter(|series| series.plot == plot).collect()
    }

    /// Says how many rows reached their goals, and how many did not.
    pub(crate) fn summary(&self) -> String {
        let count = |wanted| {
            self.rows
                .iter()
                .filter(|row| row.ok() == Some(wanted))
                .count()
        };
        format!("{} rows ok, {} short", count(true), count(false))
    }

    /// Writes `results.json` and `results.md`.
    pub(crate) fn write(&self, directory: &Path, about: &serde_json::Value) -> Outcome<()> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| json!({ "row": row, "ok": row.ok() }))
            .collect();
        let all = json!({ "about": about, "rows": rows, "plots": self.series });
        let file = directory.join("results.json");
        fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?;
        fs::write(directory.join("results.md"), self.markdown())?;
        Ok(())
    }

    fn markdown(&self) -> String {
        let mut text =
            String::from("| | pool | peer | ratio | wanted | |\n|---|---|---|---|---|---|\n");
        let mut line = |cells: [&str; 6]| {
            text += &format!("| {} |\n", cells.join(" | "));
        };
        for row in &self.rows {
            let (pool, wanted) = (with_unit(row.pool, row.unit), row.wanted_words());
            let own = row.wanted.map(|wanted| wanted.holds(row.pool));
            // A row without a goal for its own figure shares the line of its first peer.
            let alone = own.is_some() || row.peers.is_empty();
            if alone {
                line([&row.name, &pool, "", "", &wanted, verdict(own)]);
            }
            for (index, peer) in row.peers.iter().enumerate() {
                let [figure, ratio, wanted] = peer.words(row.unit);
                let first = index == 0 && !alone;
                let (name, pool) = if first {
                    (&*row.name, &*pool)
                } else {
                    ("", "")
                };
                let peers = format!("{} {figure}", peer.name);
                line([name, pool, &peers, &ratio, &wanted, verdict(peer.ok)]);
            }
        }
        text
    }
}
