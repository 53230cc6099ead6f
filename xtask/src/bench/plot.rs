//! Results as plots: bars of requests per CPU-second with their spread, a group a case, and ranges. Writes SVG by itself.

use std::fmt::Write as _;

use crate::bench::{page::Results, summary::Spread};

const WIDTH: f64 = 960.0;
const LABELS: f64 = 330.0;
const BAR: f64 = 16.0;
const GAP: f64 = 14.0;
const TOP: f64 = 64.0;
/// Told apart by people who see no red or no green.
const COLOURS: [&str; 5] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"];

/// The SVG.
pub(crate) fn svg(results: &Results) -> String {
    let bars: Vec<Vec<(usize, Spread)>> =
        results.cases.iter().map(|(_, samples, _)| spreads(results, samples)).collect();
    let greatest = bars.iter().flatten().map(|(_, spread)| spread.max).fold(1.0, f64::max);
    let scale = (WIDTH - LABELS - 90.0) / greatest;
    let mut body = String::new();
    let mut y = TOP;
    for ((case, _, _), bars) in results.cases.iter().zip(&bars) {
        text(&mut body, LABELS - 10.0, y + BAR, "end", case.title);
        for (name, spread) in bars {
            bar(&mut body, y, *spread, scale, COLOURS[name % COLOURS.len()]);
            y += BAR + 2.0;
        }
        y += GAP;
    }
    let mut legend = String::new();
    text(&mut legend, 12.0, 22.0, "start", "Requests per CPU-second of the proxy: median, least and greatest");
    for (number, name) in results.names.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "a handful of names")]
        let x = LABELS + number as f64 * 140.0;
        rect(&mut legend, x, 34.0, 12.0, COLOURS[number % COLOURS.len()]);
        text(&mut legend, x + 18.0, 45.0, "start", name);
    }
    drawing(&(legend + &body), y + 8.0)
}

/// A bar from the least to the greatest for each row, its median marked.
pub(crate) fn ranges(title: &str, unit: &str, rows: &[(String, Spread)]) -> String {
    let greatest = rows.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - 90.0) / greatest;
    let (mut body, mut y) = (String::new(), TOP - BAR);
    text(&mut body, 12.0, 22.0, "start", title);
    for (name, Spread { median, min, max }) in rows {
        let (left, right, middle) = (LABELS + min * scale, LABELS + max * scale, LABELS + median * scale);
        text(&mut body, LABELS - 10.0, y + 12.0, "end", name);
        let _ = writeln!(
            body,
            "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>\n\
             <rect x=\"{middle:.1}\" y=\"{y:.1}\" width=\"2\" height=\"14\" fill=\"black\"/>",
            width = (right - left).max(1.0),
            colour = COLOURS[4],
        );
        text(&mut body, right + 6.0, y + 12.0, "start", &format!("{} {unit}", rounded(*median)));
        y += BAR + 10.0;
    }
    drawing(&body, y)
}

/// To three digits, and no more than there are.
pub(crate) fn rounded(value: f64) -> String {
    match value.abs() {
        less if less < 10.0 => format!("{value:.2}"),
        less if less < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn drawing(body: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// The contenders of a case, by their number in the legend.
fn spreads(results: &Results, samples: &crate::bench::summary::Samples) -> Vec<(usize, Spread)> {
    let spread = |name: &String| Spread::of(samples.get(name)?.iter().map(|sample| sample.per_cpu_second));
    results.names.iter().enumerate().filter_map(|(number, name)| Some((number, spread(name)?))).collect()
}

fn bar(out: &mut String, y: f64, spread: Spread, scale: f64, colour: &str) {
    let Spread { median, min, max } = spread;
    rect(out, LABELS, y, median * scale, colour);
    let (left, right, middle) = (LABELS + min * scale, LABELS + max * scale, y + BAR / 2.0);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "<path d=\"M{left:.1} {middle:.1}H{right:.1}\" stroke=\"black\" stroke-width=\"1.5\"/>");
    text(out, right + 6.0, y + BAR - 4.0, "start", &format!("{median:.0}"));
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, colour: &str) {
    let height = BAR.min(if y < TOP { 12.0 } else { BAR });
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}
