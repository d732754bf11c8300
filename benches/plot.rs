//! The plots, as SVG: grouped bars, and lines. The legend stands beside the plot, never on top of it.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Report, Series};
use crate::tools::Outcome;
use crate::{BANDWIDTH, DATA, EFFICIENCY, ROUND_TRIP, START_UP, THROUGHPUT};

const SIZE: (u32, u32) = (900, 520);
const LEGEND: u32 = 210;

/// The axis of payloads from 64 KiB to 64 MiB.
const PAYLOADS: Range<f64> = 48.0 * 1024.0..96.0 * 1024.0 * 1024.0;

const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The labels around a plot.
#[derive(Debug)]
struct Labels {
    title: &'static str,
    x: &'static str,
    y: &'static str,
}

/// Draws every plot that there are points for.
pub(crate) fn all(report: &Report, directory: &Path) -> Outcome<()> {
    let file = |name: &str| directory.join(name).with_extension("svg");
    let series = report.series(ROUND_TRIP);
    bars(
        &file(ROUND_TRIP),
        &Labels {
            title: "Round trip of one empty task (shorter is better)",
            x: "",
            y: "µs",
        },
        &[
            "one core",
            "two cores, back to back",
            "100 µs after the last",
        ],
        &series,
        &plain,
    )?;
    let series = report.series(THROUGHPUT);
    bars(
        &file(THROUGHPUT),
        &Labels {
            title: "Empty tasks, two workers (higher is better)",
            x: "",
            y: "tasks a second",
        },
        &[
            "apply_async|and get",
            "map|one by one",
            "imap|one by one",
            "imap_unordered|one by one",
            "map|in chunks",
        ],
        &series,
        &counted,
    )?;
    let series = report.series(EFFICIENCY);
    let labels = Labels {
        title: "Time spent in tasks, of two processors' (higher is better)",
        x: "duration of a task, µs",
        y: "%",
    };
    let x = (0.8..1250.0).log_scale();
    lines(&file(EFFICIENCY), &labels, x, 0.0..105.0, &series, &plain)?;
    let series = report.series(BANDWIDTH);
    if let Some((low, high)) = range(&series) {
        let labels = Labels {
            title: "Bytes through a task (higher is better)",
            x: "payload",
            y: "GB/s, there and back",
        };
        let y = (low..high).log_scale();
        lines(
            &file(BANDWIDTH),
            &labels,
            PAYLOADS.log_scale().base(2.0),
            y,
            &series,
            &bytes,
        )?;
    }
    let series = report.series(DATA);
    if let Some((low, high)) = range(&series) {
        let labels = Labels {
            title: "Each of 1000 tasks that read one table (lower is better)",
            x: "the table",
            y: "µs",
        };
        let y = (low..high).log_scale();
        lines(
            &file(DATA),
            &labels,
            PAYLOADS.log_scale().base(2.0),
            y,
            &series,
            &bytes,
        )?;
    }
    let series = report.series(START_UP);
    if let Some((low, high)) = range(&series) {
        let labels = Labels {
            title: "Until all workers are there (lower is better)",
            x: "workers",
            y: "ms",
        };
        let x = (1.8..36.0).log_scale().base(2.0);
        let y = (low..high).log_scale();
        lines(&file(START_UP), &labels, x, y, &series, &plain)?;
    }
    Ok(())
}

/// Returns the range of a logarithmic axis that holds all values; `None` if there are no values.
fn range(series: &[&Series]) -> Option<(f64, f64)> {
    let values = || {
        series
            .iter()
            .flat_map(|series| &series.points)
            .map(|(_, y)| *y)
    };
    let low = values().reduce(f64::min)?;
    let high = values().reduce(f64::max)?;
    let decade = |value: f64| 10_f64.powf(value);
    // A little below the decade, or rounding would lose its tick mark; and some room above for the values written
    // there.
    let floor = low.log10().floor();
    let ceiling = (high.log10() + 0.2).max(floor + 1.0);
    Some((decade(floor) * 0.999, decade(ceiling)))
}

fn plain(value: &f64) -> String {
    let decimals = match *value {
        value if value >= 10.0 || value == value.round() => 0,
        value if value >= 1.0 => 1,
        value if value >= 0.1 => 2,
        value if value >= 0.01 => 3,
        _ => 4,
    };
    format!("{value:.decimals$}")
}

fn bytes(value: &f64) -> String {
    let kib = value / 1024.0;
    if kib < 1024.0 {
        format!("{kib:.0} KiB")
    } else {
        format!("{:.0} MiB", kib / 1024.0)
    }
}

/// Formats counts with thousands and millions.
fn counted(value: &f64) -> String {
    match *value {
        value if value >= 1e6 => plain(&(value / 1e6)) + " M",
        value if value >= 1e3 => plain(&(value / 1e3)) + " k",
        value => plain(&value),
    }
}

/// Returns the colour of a series, the same in all plots: the pool is blue, its variants are shades of blue.
fn colour(name: &str) -> RGBColor {
    match name {
        "pool" | "pool, default chunks" | "pool, Vec<u8> echo" => RGBColor(0x1f, 0x5f, 0xbf),
        "pool, Shared" => RGBColor(0x1f, 0x5f, 0xbf),
        "pool, partial" => RGBColor(0x4f, 0xb3, 0xe8),
        "pool, sent with each task" => RGBColor(0x8a, 0x9f, 0xb8),
        "pool, chunksize(1)" | "pool, &[u8] read in place" => RGBColor(0x4f, 0xb3, 0xe8),
        name if name.starts_with("Python, chunksize=1") => RGBColor(0xc8, 0xa0, 0x20),
        name if name.starts_with("Python") => RGBColor(0xe0, 0x7b, 0x1f),
        name if name.starts_with("procspawn") => RGBColor(0x8e, 0x44, 0xad),
        name if name.starts_with("concurrent") => RGBColor(0xb8, 0x3b, 0x3b),
        name if name.starts_with("rayon") => RGBColor(0x2e, 0x8b, 0x57),
        _ => RGBColor(0x60, 0x60, 0x60),
    }
}

/// Splits the page into the plot, under its title, and the legend.
fn page<'a>(root: &Area<'a>, labels: &Labels, series: &[&Series]) -> Outcome<Area<'a>> {
    root.fill(&WHITE)?;
    let root = root.margin(8, 0, 0, 0).titled(labels.title, (FONT, 20))?;
    let (plot, legend) = root.split_horizontally(SIZE.0 - LEGEND);
    let style = (FONT, 14)
        .into_text_style(&legend)
        .pos(Pos::new(HPos::Left, VPos::Center));
    for (series, y) in series.iter().zip((40..).step_by(26)) {
        let colour = colour(series.name).filled();
        legend.draw(&Rectangle::new([(6, y - 6), (18, y + 6)], colour))?;
        legend.draw(&Text::new(series.name, (26, y), style.clone()))?;
    }
    Ok(plot)
}

/// Draws one line for each series.
fn lines<X, Y>(
    file: &Path,
    labels: &Labels,
    x: X,
    y: Y,
    series: &[&Series],
    x_label: &dyn Fn(&f64) -> String,
) -> Outcome<()>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    if series.is_empty() {
        return Ok(());
    }
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let plot = page(&root, labels, series)?;
    let mut chart = ChartBuilder::on(&plot)
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(x_label)
        .y_label_formatter(&plain)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(RGBColor(0xf2, 0xf2, 0xf2))
        .bold_line_style(RGBColor(0xd8, 0xd8, 0xd8))
        .draw()?;
    for series in series {
        let colour = colour(series.name);
        let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2));
        chart.draw_series(line)?;
        let dots = series
            .points
            .iter()
            .map(|point| Circle::new(*point, 4, colour.filled()));
        chart.draw_series(dots)?;
    }
    root.present()?;
    Ok(())
}

/// Draws one group of bars for each name; the points of the series say which group they belong to. The axis is
/// logarithmic, so the lengths of bars mean little, and their values are written above them.
fn bars(
    file: &Path,
    labels: &Labels,
    names: &[&str],
    series: &[&Series],
    written: &dyn Fn(&f64) -> String,
) -> Outcome<()> {
    let Some((low, high)) = range(series) else {
        return Ok(());
    };
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    let plot = page(&root, labels, series)?;
    let groups = names.len() as f64;
    let mut chart = ChartBuilder::on(&plot)
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..groups, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .x_desc(labels.x)
        .y_desc(labels.y)
        .y_label_formatter(written)
        .axis_desc_style((FONT, 15))
        .label_style((FONT, 13))
        .light_line_style(RGBColor(0xf2, 0xf2, 0xf2))
        .bold_line_style(RGBColor(0xd8, 0xd8, 0xd8))
        .draw()?;
    let centre = |size| {
        let style = (FONT, size).into_text_style(&root);
        style.pos(Pos::new(HPos::Center, VPos::Bottom))
    };
    for (group, name) in names.iter().enumerate() {
        // Only series with a bar in this group take space in it.
        let bars: Vec<_> = series
            .iter()
            .filter_map(|series| {
                let at = |point: &&(f64, f64)| point.0 as usize == group;
                Some((series.name, series.points.iter().find(at)?.1))
            })
            .collect();
        let width = 0.8 / bars.len().max(3) as f64;
        let left = group as f64 + 0.5 - width * bars.len() as f64 / 2.0;
        for (index, (name, value)) in bars.iter().enumerate() {
            let from = left + width * index as f64;
            let corners = [(from, low), (from + width * 0.92, *value)];
            chart
                .plotting_area()
                .draw(&Rectangle::new(corners, colour(name).filled()))?;
            let (x, y) = chart.backend_coord(&(from + width * 0.46, *value));
            root.draw(&Text::new(written(value), (x, y - 3), centre(12)))?;
        }
        let (x, y) = chart.backend_coord(&(group as f64 + 0.5, low));
        for (line, y) in name.split('|').zip((y + 22..).step_by(16)) {
            root.draw(&Text::new(line, (x, y), centre(13)))?;
        }
    }
    root.present()?;
    Ok(())
}
