//! The results as a Markdown table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    args::Args,
    harness::{EntryResult, RowResult},
    machine,
    rows::Row,
};

pub fn list(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let names: Vec<_> = row.entries.iter().map(|e| e.contestant.name).collect();
        let _ = writeln!(text, "{:<16}{}", row.name, row.about);
        let _ = writeln!(text, "{:<16}{}", "", names.join(", "));
    }
    text
}

pub fn table(result: &RowResult) -> String {
    let row = result.row;
    let mut text = format!("\n## {}\n\n", row.name);
    let _ = writeln!(text, "{}; {} messages a run.\n", row.about, result.messages);
    text += "| contestant | median ns | min | max | ratio | note |\n";
    text += "|---|---:|---:|---:|---:|---|\n";
    for entry in &result.entries {
        let _ = writeln!(text, "{}", line(result, entry));
    }
    text
}

fn line(result: &RowResult, entry: &EntryResult) -> String {
    let name = entry.entry.contestant.name;
    if let Some(failure) = &entry.failure {
        return format!("| {name} | FAILED | | | | {failure} |");
    }
    let Some(summary) = entry.summary() else {
        return format!("| {name} | | | | | not run |");
    };
    let ratio = result.ratio(entry).map_or(String::new(), |r| format!("{r:.2}"));
    format!(
        "| {name} | {:.1} | {:.1} | {:.1} | {ratio} | {} |",
        summary.median, summary.min, summary.max, entry.entry.note
    )
}

pub fn json(results: &[RowResult], args: &Args) -> String {
    let report = json!({
        "machine": { "cpu": machine::cpu(), "cores": machine::cores() },
        "compiler": machine::rustc(),
        "profile": machine::profile(),
        "repetitions": args.repetitions,
        "unit": "ns per message",
        "rows": results.iter().map(row_json).collect::<Vec<_>>(),
    });
    format!("{report:#}\n")
}

fn row_json(result: &RowResult) -> Value {
    let entries = result.entries.iter().map(|entry| entry_json(result, entry));
    json!({
        "name": result.row.name,
        "about": result.row.about,
        "messages": result.messages,
        "reference": result.row.reference.name,
        "contestants": entries.collect::<Vec<_>>(),
    })
}

fn entry_json(result: &RowResult, entry: &EntryResult) -> Value {
    let summary = entry.summary();
    json!({
        "name": entry.entry.contestant.name,
        "version": machine::version(entry.entry.contestant),
        "median": summary.map(|s| s.median),
        "min": summary.map(|s| s.min),
        "max": summary.map(|s| s.max),
        "ratio": result.ratio(entry),
        "samples": entry.samples,
        "failure": entry.failure,
        "note": entry.entry.note,
    })
}
