//! Curves as SVG: a line for each contestant, its median at each point of the row's axis, both axes
//! logarithmic.

use std::{fmt::Write, fs, io, path::Path};

use crate::harness::{EntryResult, RowResult};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 240.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 6] = ["#c0392b", "#2c3e50", "#2980b9", "#27ae60", "#8e44ad", "#d68910"];

/// A file for each row that is a curve.
pub fn write(results: &[RowResult], directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for result in results {
        if let Some(axis) = result.row.axis {
            fs::write(directory.join(format!("{}.svg", result.row.name)), plot(result, axis))?;
        }
    }
    Ok(())
}

/// A contestant's points, left to right.
struct Curve<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

/// Maps a value to its place; equal factors are equal distances.
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Covers all values, rounded outward to powers of ten.
    fn decades(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Scale {
        let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
        let high = values.fold(0.0, f64::max).log10().ceil();
        Scale { low, high: high.max(low + 1.0), from, to }
    }

    /// Covers all values exactly.
    fn exact(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Scale {
        let low = values.clone().fold(f64::INFINITY, f64::min).log10();
        let high = values.fold(0.0, f64::max).log10();
        Scale { low, high, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value.log10() - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

fn plot(result: &RowResult, axis: &str) -> String {
    let points: Vec<f64> = result.row.figures.iter().filter_map(|figure| figure.name.parse().ok()).collect();
    let curves: Vec<_> = result.entries.iter().filter_map(|entry| curve(entry, &points)).collect();
    let costs = curves.iter().flat_map(|curve| curve.points.iter().map(|(_, cost)| *cost));
    if curves.is_empty() {
        return frame(result.row.about);
    }
    let across = Scale::exact(points.iter().copied(), LEFT, WIDTH - RIGHT);
    let up = Scale::decades(costs, HEIGHT - BOTTOM, TOP);
    let mut svg = frame(result.row.about);
    grid(&mut svg, &across, &up, &points, axis);
    for (index, curve) in curves.iter().enumerate() {
        line(&mut svg, curve, &across, &up, index);
    }
    svg + "</svg>\n"
}

fn curve<'a>(entry: &EntryResult<'a>, points: &[f64]) -> Option<Curve<'a>> {
    let costs: Option<Vec<_>> = (0..points.len()).map(|figure| entry.summary(figure)).collect();
    let points = points.iter().copied().zip(costs?.into_iter().map(|summary| summary.median)).collect();
    Some(Curve { name: entry.entry.contestant.name, points })
}

fn frame(title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"13\">{title}</text>\n"
    )
}

fn grid(svg: &mut String, across: &Scale, up: &Scale, points: &[f64], axis: &str) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for decade in up.low as i32..=up.high as i32 {
        for step in 1..10 {
            let value = f64::from(step) * 10f64.powi(decade);
            if value.log10() > up.high {
                break;
            }
            let y = up.place(value);
            let colour = if step == 1 { "#aaa" } else { "#eee" };
            let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"{colour}\"/>");
            if matches!(step, 1 | 2 | 5) {
                let x = LEFT - 6.0;
                let _ = writeln!(svg, "<text x=\"{x}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", y + 4.0);
            }
        }
    }
    for point in points {
        let x = across.place(*point);
        let _ = writeln!(svg, "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/>");
        let y = bottom + 18.0;
        let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{}</text>", thousands(*point));
    }
    let (middle, y) = ((LEFT + right) / 2.0, HEIGHT - 16.0);
    let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{y}\" text-anchor=\"middle\">{axis}</text>");
    let y = (TOP + bottom) / 2.0;
    let turn = format!("transform=\"rotate(-90 18 {y})\"");
    let _ = writeln!(svg, "<text x=\"18\" y=\"{y}\" text-anchor=\"middle\" {turn}>ns for each message</text>");
}

fn line(svg: &mut String, curve: &Curve, across: &Scale, up: &Scale, index: usize) {
    let colour = COLOURS[index % COLOURS.len()];
    let places: Vec<_> = curve.points.iter().map(|(x, y)| (across.place(*x), up.place(*y))).collect();
    let path: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ =
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" "));
    for (x, y) in &places {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
    }
    let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 14.0 + 20.0 * index as f64);
    let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{:.1}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>", y - 10.0);
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">{}</text>", x + 18.0, curve.name);
}

/// 10000 as 10,000.
fn thousands(value: f64) -> String {
    let digits = format!("{value}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Scale, thousands};

    #[test]
    fn equal_factors_are_equal_distances() {
        let scale = Scale::exact([1.0, 100.0].into_iter(), 0.0, 200.0);
        assert_eq!([1.0, 10.0, 100.0].map(|value| scale.place(value)), [0.0, 100.0, 200.0]);
    }

    #[test]
    fn costs_are_framed_by_powers_of_ten() {
        let scale = Scale::decades([23.0, 450.0].into_iter(), 0.0, 1.0);
        assert_eq!((scale.low, scale.high), (1.0, 3.0));
    }

    #[test]
    fn long_numbers_have_separators() {
        assert_eq!([1.0, 256.0, 1000.0, 10_000_000.0].map(thousands), ["1", "256", "1,000", "10,000,000"]);
    }
}
