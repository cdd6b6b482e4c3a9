//! Plain SVG line charts.

use std::fmt::Write as _;

use super::curve::Curve;

/// Of the whole picture, and of the panel of one column.
const WIDTH: f64 = 760.0;
const PANEL: f64 = 220.0;
/// Around what is drawn.
const LEFT: f64 = 90.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Lines across a panel.
const LINES: u32 = 4;

/// A curve as SVG: one panel below the other for each column, x logarithmic, y linear from zero.
pub fn svg(curve: &Curve) -> String {
    let panels = curve.columns.len();
    let height = TOP + panels as f64 * PANEL + BOTTOM;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    text(&mut out, WIDTH / 2.0, 22.0, "middle", &curve.title);
    for column in 0..panels {
        panel(&mut out, curve, column, TOP + column as f64 * PANEL);
    }
    text(&mut out, WIDTH / 2.0, height - 12.0, "middle", curve.x);
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, curve: &Curve, column: usize, top: f64) {
    let (upper, lower) = (top + 26.0, top + PANEL - 24.0);
    let y_max = round_up(curve.points.iter().map(|(_, values)| values[column]).fold(0.0, f64::max));
    let logs = || curve.points.iter().map(|(x, _)| x.max(f64::MIN_POSITIVE).log10());
    let (first, last) = (logs().fold(f64::INFINITY, f64::min), logs().fold(f64::NEG_INFINITY, f64::max));
    let span = (last - first).max(f64::EPSILON);
    let at_x = |x: f64| LEFT + (x.max(f64::MIN_POSITIVE).log10() - first) / span * (WIDTH - LEFT - RIGHT);
    let at_y = |y: f64| lower - y / y_max * (lower - upper);
    text(out, LEFT, top + 16.0, "start", curve.columns[column]);
    for line in 0..=LINES {
        let value = y_max * f64::from(line) / f64::from(LINES);
        let y = at_y(value);
        let right = WIDTH - RIGHT;
        push(out, format_args!("<path d=\"M{LEFT:.1} {y:.1}H{right:.1}\" stroke=\"#ddd\"/>"));
        text(out, LEFT - 8.0, y + 4.0, "end", &short(value));
    }
    let mut path = String::new();
    for (index, (x, values)) in curve.points.iter().enumerate() {
        let (at_x, at_y) = (at_x(*x), at_y(values[column]));
        let step = if index == 0 { 'M' } else { 'L' };
        write!(path, "{step}{at_x:.1} {at_y:.1}").expect("a string takes everything");
        push(out, format_args!("<circle cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"3\" fill=\"#1f5fa8\"/>"));
        text(out, at_x, lower + 16.0, "middle", &short(*x));
    }
    push(out, format_args!("<path d=\"{path}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\"/>"));
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("a string takes everything");
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    push(out, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
}

/// The next of 1, 2, 4, 5, 10, 20...
fn round_up(value: f64) -> f64 {
    let power = 10.0_f64.powf(value.max(1e-9).log10().floor());
    [1.0, 2.0, 4.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(10.0 * power)
}

/// A number in few characters.
pub fn short(value: f64) -> String {
    let (value, suffix) = match value {
        large if large >= 1e6 => (large / 1e6, "M"),
        large if large >= 1e3 => (large / 1e3, "k"),
        small => (small, ""),
    };
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{suffix}")
}
