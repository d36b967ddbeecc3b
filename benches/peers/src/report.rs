//! The results as Markdown tables and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    args::Args,
    harness::{EntryResult, RowResult},
    machine,
    rows::{Figure, Row, Target},
};

pub fn list(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let names: Vec<_> = row.entries.iter().map(|e| e.contestant.name).collect();
        let _ = writeln!(text, "{:<22}{}", row.name, row.about);
        let _ = writeln!(text, "{:<22}{}", "", names.join(", "));
    }
    text
}

/// A row that cannot be run here.
pub fn skipped(row: &Row, reason: &str) -> String {
    format!("\n## {}\n\n{}.\n\nSkipped: {reason}.\n", row.name, row.about)
}

/// A row's results: one line for each figure of each contestant.
pub fn table(result: &RowResult) -> String {
    let row = result.row;
    let mut text = format!("\n## {}\n\n", row.name);
    let _ = writeln!(text, "{}; {} messages a run.\n", row.about, result.messages);
    for (index, figure) in row.figures.iter().enumerate() {
        let _ = writeln!(text, "| contestant | {} | min | max | ratio | note |", heading(figure));
        text += "|---|---:|---:|---:|---:|---|\n";
        for entry in &result.entries {
            let _ = writeln!(text, "{}", line(result, entry, index));
        }
        text += "\n";
    }
    text
}

/// All targets of the rows that ran, and what came of them.
pub fn targets(results: &[RowResult]) -> String {
    let mut text =
        String::from("\n## Targets\n\n| row | what | of | target | measured | |\n|---|---|---|---:|---:|---|\n");
    for result in results {
        for target in &result.row.targets {
            let _ = writeln!(text, "{}", verdict(result, target));
        }
    }
    text
}

fn heading(figure: &Figure) -> String {
    match figure.name {
        "" => format!("median {}", figure.unit),
        name => format!("{name}, median {}", figure.unit),
    }
}

fn line(result: &RowResult, entry: &EntryResult, figure: usize) -> String {
    let name = entry.entry.contestant.name;
    if let Some(failure) = &entry.failure {
        return format!("| {name} | FAILED | | | | {failure} |");
    }
    let Some(summary) = entry.summary(figure) else {
        return format!("| {name} | | | | | not run |");
    };
    if summary.median.is_nan() {
        return format!("| {name} | - | | | | {} |", entry.entry.note);
    }
    let ratio = result.ratio(entry, figure).map_or(String::new(), |r| format!("{r:.2}"));
    format!(
        "| {name} | {:.1} | {:.1} | {:.1} | {ratio} | {} |",
        summary.median, summary.min, summary.max, entry.entry.note
    )
}

fn verdict(result: &RowResult, target: &Target) -> String {
    let figure = &result.row.figures[target.figure];
    let of = target.of.map_or(String::new(), |(of, figure)| named(result.row, of, figure));
    let unit = target.of.map_or(figure.unit, |_| "x");
    let what = named(result.row, target.who, target.figure);
    let measured = result.measured(target);
    let shown = measured.map_or("none".into(), |value| format!("{value:.3} {unit}"));
    let verdict = match measured {
        Some(value) if value <= target.at_most => "met",
        _ => "MISSED",
    };
    let limit = (target.at_most * 1000.0).round() / 1000.0;
    format!("| {} | {what} | {of} | <= {limit} {unit} | {shown} | {verdict} |", result.row.name)
}

fn named(row: &Row, contestant: &str, figure: usize) -> String {
    match row.figures[figure].name {
        "" => contestant.into(),
        name => format!("{contestant}: {name}"),
    }
}

pub fn json(results: &[RowResult], args: &Args, load: &str) -> String {
    let report = json!({
        "machine": { "cpu": machine::cpu(), "cores": machine::cores(), "load": load },
        "compiler": machine::rustc(),
        "profile": machine::profile(),
        "repetitions": args.repetitions,
        "rows": results.iter().map(row_json).collect::<Vec<_>>(),
    });
    format!("{report:#}\n")
}

fn row_json(result: &RowResult) -> Value {
    let row = result.row;
    let figures = row.figures.iter().enumerate().map(|(index, figure)| {
        let entries = result.entries.iter().map(|entry| entry_json(result, entry, index));
        json!({ "name": figure.name, "unit": figure.unit, "contestants": entries.collect::<Vec<_>>() })
    });
    let targets = row.targets.iter().map(|target| {
        json!({
            "contestant": target.who,
            "figure": row.figures[target.figure].name,
            "of": target.of.map(|(of, figure)| named(row, of, figure)),
            "at_most": target.at_most,
            "measured": result.measured(target),
        })
    });
    json!({
        "name": row.name,
        "about": row.about,
        "messages": result.messages,
        "reference": row.reference.map(|reference| reference.name),
        "targets": targets.collect::<Vec<_>>(),
        "axis": row.axis,
        "figures": figures.collect::<Vec<_>>(),
    })
}

fn entry_json(result: &RowResult, entry: &EntryResult, figure: usize) -> Value {
    let summary = entry.summary(figure);
    json!({
        "name": entry.entry.contestant.name,
        "version": machine::version(entry.entry.contestant),
        "median": summary.map(|s| s.median),
        "min": summary.map(|s| s.min),
        "max": summary.map(|s| s.max),
        "ratio": result.ratio(entry, figure),
        "samples": entry.samples.iter().map(|figures| figures[figure]).collect::<Vec<_>>(),
        "failure": entry.failure,
        "note": entry.entry.note,
    })
}
