//! Figures side by side.
//!
//! Does: reads the JSON lines of a series of rounds, pairs servers within a round, prints medians, ratios and their
//! range. Owns: which figure a scenario is judged by. Never knows: how they were measured. Keeps: ratios are only formed
//! within a round, where the machine was the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::Write as _,
    path::Path,
};

use anyhow::Result;
use serde_json::{Map, Value};

use crate::report::{self, short};

/// A scenario's figures that are compared.
const COMPARED: [(&str, &[&str]); 10] = [
    (
        "idle",
        &[
            "rss_per_connection_bytes",
            "rss_per_connection_after_churn_bytes",
            "subscribe_ms",
            "server_cpu_us_per_subscribe",
        ],
    ),
    (
        "fanout",
        &["p50_ms", "p99_ms", "server_cpu_us_per_delivery", "lost"],
    ),
    (
        "run",
        &[
            "deliveries_per_second",
            "p99_ms",
            "server_cpu_us_per_delivery",
            "lost",
        ],
    ),
    (
        "stream",
        &[
            "deliveries_per_second",
            "p99_ms",
            "server_cpu_us_per_delivery",
            "lost",
            "driver_busy",
        ],
    ),
    ("sweep", &["deliveries_per_second", "p99_ms"]),
    (
        "publish",
        &[
            "records_per_second",
            "server_cpu_us_per_record",
            "driver_busy",
        ],
    ),
    (
        "slow",
        &[
            "p99_ratio",
            "rss_grown_without_kib",
            "rss_grown_with_kib",
            "stalled_that_got_the_newest",
            "newest_after_ms",
            "slow_reader_age_p50_ms",
            "slow_reader_age_max_ms",
        ],
    ),
    ("resume", &["subscribe_ms", "all_live_ms", "gaps"]),
    ("beside", &["p50_ms", "p99_ms", "lost"]),
    ("beside-big", &["p50_ms", "p99_ms", "lost"]),
];

/// What was measured, and the figure's name.
type Row = (String, &'static str);
/// By label and round.
type Values = BTreeMap<(String, u64), f64>;

/// Prints the table of a file.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn print(file: &Path, against: &[String]) -> Result<()> {
    let text = render(&report::read(file)?, against);
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn render(lines: &[Map<String, Value>], against: &[String]) -> String {
    let rows = rows(lines);
    let labels: BTreeSet<&str> = rows
        .iter()
        .flat_map(|(_, values)| values.keys().map(|(label, _)| label.as_str()))
        .collect();
    let measured: Vec<&str> = labels
        .iter()
        .copied()
        .filter(|label| !against.iter().any(|other| other == label))
        .collect();
    let mut out = String::from("| measured | figure |");
    labels.iter().for_each(|label| column(&mut out, label));
    let pairs: Vec<(&str, &str)> = measured
        .iter()
        .flat_map(|label| against.iter().map(|other| (*label, other.as_str())))
        .collect();
    let pairs: Vec<_> = pairs
        .into_iter()
        .filter(|(_, other)| labels.contains(other))
        .collect();
    pairs
        .iter()
        .for_each(|(label, other)| column(&mut out, &format!("{label} / {other} (range)")));
    out.push_str("\n|---|---|");
    out.push_str(&"---|".repeat(labels.len() + pairs.len()));
    out.push('\n');
    for ((what, figure), values) in &rows {
        let _written = write!(out, "| {what} | {figure} |");
        labels
            .iter()
            .for_each(|label| column(&mut out, &middle(&of_label(values, label))));
        pairs
            .iter()
            .for_each(|(label, other)| column(&mut out, &ratio(values, label, other)));
        out.push('\n');
    }
    transports(&rows, &labels, &mut out);
    out
}

/// What was measured over both: a server's SSE beside its own WebSocket, in the same rounds.
fn transports(rows: &[(Row, Values)], labels: &BTreeSet<&str>, out: &mut String) {
    for ((what, figure), sse) in rows.iter().filter(|((what, _), _)| what.contains(" sse ")) {
        let twin = (what.replacen(" sse ", " ws ", 1), *figure);
        let Some((_, ws)) = rows.iter().find(|(row, _)| *row == twin) else {
            continue;
        };
        let by_transport = |(from, to): (&Values, &str), both: &mut Values, label: &str| {
            let own = from.iter().filter(|((of, _), _)| of == label);
            both.extend(own.map(|((_, round), value)| ((to.to_owned(), *round), *value)));
        };
        for label in labels {
            let mut both = Values::new();
            by_transport((sse, "sse"), &mut both, label);
            by_transport((ws, "ws"), &mut both, label);
            let ratio = ratio(&both, "sse", "ws");
            if ratio != "–" {
                let _written = writeln!(
                    out,
                    "\n{label}, {figure} of {what}: {ratio} × over WebSocket"
                );
            }
        }
    }
}

fn column(out: &mut String, text: &str) {
    let _written = write!(out, " {text} |");
}

/// The rows in the order in which they were first measured.
fn rows(lines: &[Map<String, Value>]) -> Vec<(Row, Values)> {
    let mut rows: Vec<(Row, Values)> = Vec::new();
    for line in lines {
        let scenario = text(line, "scenario");
        let compared = COMPARED
            .iter()
            .find(|(name, _)| *name == scenario)
            .map_or(&[][..], |(_, figures)| figures);
        let what = what(line, &scenario);
        for &figure in compared {
            let Some(value) = line.get(figure).and_then(Value::as_f64) else {
                continue;
            };
            let round = line.get("round").and_then(Value::as_u64).unwrap_or(1);
            let row = (what.clone(), figure);
            let at = rows
                .iter()
                .position(|(known, _)| *known == row)
                .unwrap_or_else(|| {
                    rows.push((row, Values::new()));
                    rows.len() - 1
                });
            rows[at].1.insert((text(line, "label"), round), value);
        }
    }
    rows
}

fn text(line: &Map<String, Value>, name: &str) -> String {
    let value = line.get(name);
    value.map_or_else(String::new, |value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    })
}

/// What was measured, in words. The presets' names say how it was published, `run` does not.
fn what(line: &Map<String, Value>, scenario: &str) -> String {
    let rate = line.get("rate").and_then(Value::as_f64).unwrap_or(0.0);
    let mut what = format!(
        "{scenario} {} {} × {}",
        text(line, "transport"),
        text(line, "subscribers"),
        text(line, "channels")
    );
    match text(line, "publish").as_str() {
        "one" if scenario == "run" => what.push_str(", one at a time"),
        "stream" if scenario == "run" => what.push_str(", streamed"),
        _ => {}
    }
    if let Some(window) = line
        .get("window")
        .and_then(Value::as_u64)
        .filter(|_| scenario == "stream")
    {
        what.push_str(&format!(", {window} unanswered"));
    }
    if let Some(each) = line
        .get("each")
        .and_then(Value::as_u64)
        .filter(|&each| each > 1)
    {
        what.push_str(&format!(", {each} each"));
    }
    if rate > 0.0 && scenario != "sweep" {
        what.push_str(&format!(", {}/s", short(rate)));
    }
    what
}

fn of_label(values: &Values, label: &str) -> Vec<f64> {
    values
        .iter()
        .filter(|((of, _), _)| of == label)
        .map(|(_, value)| *value)
        .collect()
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn middle(values: &[f64]) -> String {
    median(values).map_or_else(|| "–".to_owned(), short)
}

fn ratio(values: &Values, label: &str, other: &str) -> String {
    let pair = |round: &u64| {
        let value = values.get(&(label.to_owned(), *round))?;
        let base = values
            .get(&(other.to_owned(), *round))
            .filter(|base| **base > 0.0)?;
        Some(value / base)
    };
    let rounds: BTreeSet<u64> = values.keys().map(|(_, round)| *round).collect();
    let mut ratios: Vec<f64> = rounds.iter().filter_map(pair).collect();
    ratios.sort_by(f64::total_cmp);
    match (median(&ratios), ratios.first(), ratios.last()) {
        (Some(median), Some(&least), Some(&most)) => {
            // What one round says and another denies is no difference.
            let tie = ratios.len() > 1 && (least..=most).contains(&1.0);
            let word = if tie { ", tie" } else { "" };
            format!("{median:.2} ({least:.2}–{most:.2}){word}")
        }
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, round: u64, per_second: f64) -> Map<String, Value> {
        let value = serde_json::json!({"scenario":"stream","transport":"ws","subscribers":1000,"channels":1,"window":32,"label":label,"round":round,"deliveries_per_second":per_second});
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn ratios_pair_rounds_and_show_their_range() {
        let lines = [
            line("tidegate", 1, 80.0),
            line("limit-write", 1, 100.0),
            line("tidegate", 2, 300.0),
            line("limit-write", 2, 200.0),
            line("tidegate", 3, 90.0),
            line("limit-write", 3, 100.0),
        ];
        let table = render(
            &lines,
            &["limit-write".to_owned(), "limit-coalesce".to_owned()],
        );
        let last = table.lines().last().unwrap();
        assert_eq!(
            last,
            "| stream ws 1000 × 1, 32 unanswered | deliveries_per_second | 100 | 90 | 0.90 (0.80–1.50), tie |"
        );
    }

    #[test]
    fn transports_of_one_server_are_paired_by_round() {
        let over = |transport: &str, round, value| {
            let mut line = line("tidegate", round, value);
            line.insert("transport".to_owned(), transport.into());
            line
        };
        let lines = [
            over("ws", 1, 100.0),
            over("sse", 1, 90.0),
            over("ws", 2, 200.0),
            over("sse", 2, 190.0),
        ];
        let table = render(&lines, &[]);
        assert_eq!(
            table.lines().last().unwrap(),
            "tidegate, deliveries_per_second of stream sse 1000 × 1, 32 unanswered: 0.93 (0.90–0.95) × over WebSocket"
        );
    }
}
