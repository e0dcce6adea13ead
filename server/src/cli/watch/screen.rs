//! The view as a terminal shows it.
//!
//! Does: turns what is known, a time and a size into the text of one whole frame. Owns: nothing. Never knows: a terminal.
//! Keeps: the first line tells the freshness; no line is wider than the terminal; nothing of the data steers it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, value::RawValue};
use tokio::time::Instant;

use super::{
    super::plain,
    view::{Entry, View},
};

/// Widest column, in characters.
const COLUMN_MAX: usize = 40;
/// Most columns.
const COLUMNS_MAX: usize = 24;
/// Between two columns.
const GAP: &str = "  ";
const BOLD: &str = "\x1b[1m";
const INVERSE: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[0m";

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) columns: usize,
    pub(super) lines: usize,
}

/// One frame: from the upper left corner on, and clearing what was there.
pub(super) fn draw(view: &View, now: Instant, size: Size) -> String {
    let mut frame = "\x1b[H".to_owned();
    let width = size.columns.max(20);
    let head = format!("{:<width$}", plain(&headline(view, now), width));
    frame += &format!("{INVERSE}{head}{PLAIN}");
    let room = size.lines.max(4) - 2;
    let (lines, rest) = if view.is_events {
        (event_lines(view, room), None)
    } else {
        table(view, room)
    };
    for (number, line) in lines.iter().enumerate() {
        let line = plain(line, width);
        let style = if number == 0 && !view.is_events {
            BOLD
        } else {
            ""
        };
        frame += &format!("\r\n{style}{line}{PLAIN}\x1b[K");
    }
    if let Some(rest) = rest {
        frame += &format!("\r\n{}\x1b[K", plain(&rest, width));
    }
    frame + "\x1b[J"
}

/// The state first, in capitals unless live; then the age of its proof.
fn headline(view: &View, now: Instant) -> String {
    let verdict = view.verdict(now);
    let age = verdict.age.map_or_else(
        || "never proven".to_owned(),
        |age| format!("proven {} ago", span(age)),
    );
    let state = if verdict.live {
        format!(
            "live, {age} (holds for {})",
            span(
                view.live_for()
                    .saturating_sub(verdict.age.unwrap_or_default())
            )
        )
    } else {
        format!(
            "{} ({}), {age}",
            verdict.state.to_uppercase().replace('_', " "),
            verdict.why
        )
    };
    let what = if view.is_events {
        format!("{} events", view.updates)
    } else {
        format!("{} rows, {} updates", view.row_count(), view.updates)
    };
    let gap = view
        .gap
        .as_ref()
        .map(|gap| format!(" · {gap}"))
        .unwrap_or_default();
    format!("{} · {state} · {what}{gap}", view.channel)
}

fn span(span: Duration) -> String {
    match span.as_secs() {
        0..60 => format!("{:.1} s", span.as_secs_f32()),
        60..3600 => format!("{} min", span.as_secs() / 60),
        _ => format!("{} h", span.as_secs() / 3600),
    }
}

/// The newest events, newest last.
fn event_lines(view: &View, room: usize) -> Vec<String> {
    let skipped = view.events.len().saturating_sub(room + 1);
    let line = |(row, entry): &(String, Entry)| {
        let data = entry.data.as_ref().map_or("deleted", |data| data.get());
        format!("{}  {row}  {data}", time_of_day(entry.ts_ms))
    };
    view.events.iter().skip(skipped).map(line).collect()
}

fn time_of_day(ts_ms: i64) -> String {
    let seconds = ts_ms.div_euclid(1000).rem_euclid(86_400);
    format!(
        "{:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// The first rows by id, a column for each field of their data; and how many did not fit.
fn table(view: &View, room: usize) -> (Vec<String>, Option<String>) {
    let shown = room.saturating_sub(1);
    let rows: Vec<(&str, BTreeMap<String, String>)> = view
        .rows()
        .take(shown)
        .map(|(row, entry)| (row, fields(entry.data.as_deref())))
        .collect();
    let mut names: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(|(_, fields)| fields.keys()) {
        if !names.contains(&name.as_str()) && names.len() < COLUMNS_MAX {
            names.push(name);
        }
    }
    names.sort_unstable();
    let mut grid = vec![
        std::iter::once("row")
            .chain(names.iter().copied())
            .map(|name| plain(name, COLUMN_MAX))
            .collect::<Vec<_>>(),
    ];
    for (row, fields) in &rows {
        let cells = names
            .iter()
            .map(|name| fields.get(*name).map_or("", String::as_str));
        grid.push(
            std::iter::once(*row)
                .chain(cells)
                .map(|cell| plain(cell, COLUMN_MAX))
                .collect(),
        );
    }
    let hidden = view.row_count().saturating_sub(rows.len());
    let rest = (hidden > 0).then(|| format!("… and {hidden} more"));
    (aligned(&grid), rest)
}

/// The top-level fields of an object; anything else is one field.
fn fields(data: Option<&RawValue>) -> BTreeMap<String, String> {
    let text = data.map_or("", RawValue::get);
    let show = |value: Value| match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        other => other.to_string(),
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => fields
            .into_iter()
            .map(|(name, value)| (name, show(value)))
            .collect(),
        Ok(value) => BTreeMap::from([("data".to_owned(), show(value))]),
        Err(_) => BTreeMap::from([("data".to_owned(), text.to_owned())]),
    }
}

fn aligned(grid: &[Vec<String>]) -> Vec<String> {
    let columns = grid.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let width = |cells: &Vec<String>| cells[column].chars().count();
            grid.iter().map(width).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &Vec<String>| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    grid.iter().map(line).collect()
}
