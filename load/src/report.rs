//! What a run found out, for people and for files.
//!
//! Does: turns counters into figures, a line of text and a line of JSON each. Owns: the names of the figures. Never
//! knows: how they were measured. Keeps: a figure that was not measured is absent, never zero.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::{process::Usage, publisher::Publisher, stats::Tally};

/// The figures of one group in one run, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Map<String, Value>);

impl Figures {
    /// Sets a figure.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// A figure, if it is there and a number.
    fn number(&self, name: &str) -> Option<f64> {
        self.0.get(name)?.as_f64()
    }

    fn word(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// How long it took to connect and subscribe.
    pub(crate) fn subscribed(&mut self, took: Duration) {
        self.set("subscribe_ms", round(took.as_secs_f64() * 1e3));
    }

    /// What the server's memory says: `before` any connection, `after` the last one subscribed.
    pub(crate) fn memory(&mut self, before: Usage, after: Usage, subscribers: u32) {
        let grown = after.resident.saturating_sub(before.resident);
        self.set("rss_before_kib", before.resident / 1024);
        self.set("rss_after_kib", after.resident / 1024);
        self.set(
            "rss_per_connection_bytes",
            grown / u64::from(subscribers.max(1)),
        );
    }

    /// What was delivered from `start` to `end` (nanoseconds, monotonic).
    #[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
    pub(crate) fn delivered(
        &mut self,
        tally: &Tally,
        publisher: &Publisher,
        expected: u64,
        start: u64,
        end: u64,
    ) {
        let seconds = end.saturating_sub(start).max(1) as f64 / 1e9;
        let unique = tally.deliveries - tally.repeated;
        let (refused, first_refusal) = publisher.refusals();
        self.set("deliveries", tally.deliveries);
        self.set(
            "deliveries_per_second",
            round(tally.deliveries as f64 / seconds),
        );
        self.set("publications", publisher.issued);
        self.set(
            "publications_per_second",
            round(publisher.issued as f64 / seconds),
        );
        self.set("behind", publisher.behind());
        self.set("refused", refused);
        if refused > 0 {
            self.set("first_refusal", first_refusal);
        }
        self.set("lost", expected.saturating_sub(unique));
        self.set("skipped", tally.skipped);
        self.set("repeated", tally.repeated);
        self.set("gaps", tally.gaps);
        self.set("others", tally.others);
        self.set("closed", tally.closed);
        for (name, quantile) in [
            ("p50_ms", 0.5),
            ("p90_ms", 0.9),
            ("p99_ms", 0.99),
            ("max_ms", 1.0),
        ] {
            self.set(name, tally.quantile_us(quantile) as f64 / 1e3);
        }
        if let Some(read_us) = &tally.read_us {
            let driver = [
                ("written_late_p99_ms", &publisher.late_us),
                ("read_p99_ms", read_us),
            ];
            for (name, times) in driver {
                self.set(name, times.value_at_quantile(0.99) as f64 / 1e3);
            }
        }
        self.set("frame_bytes", tally.frame_bytes);
        self.set("read_bytes", tally.bytes);
        self.set("reads", tally.reads);
    }

    /// What it cost the server, and whether the driver was at its end.
    #[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
    pub(crate) fn cost(
        &mut self,
        server: Option<u64>,
        driver: u64,
        deliveries: u64,
        wall: Duration,
    ) {
        let wall_us = wall.as_secs_f64() * 1e6;
        if let Some(server) = server {
            self.set(
                "server_cpu_us_per_delivery",
                round(server as f64 / deliveries.max(1) as f64),
            );
            self.set("server_busy", round(server as f64 / wall_us));
        }
        self.set("driver_busy", round(driver as f64 / wall_us));
    }

    /// A time.
    pub(crate) fn milliseconds(&mut self, name: &str, time: Duration) {
        self.set(name, round(time.as_secs_f64() * 1e3));
    }

    /// The others' p99, in microseconds, without and with some who do not read.
    #[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
    pub(crate) fn compared(&mut self, without_us: u64, with_us: u64) {
        self.milliseconds("p99_without_ms", Duration::from_micros(without_us));
        self.milliseconds("p99_with_ms", Duration::from_micros(with_us));
        self.set(
            "p99_ratio",
            round(with_us as f64 / without_us.max(1) as f64),
        );
    }

    /// Records that came in.
    #[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
    pub(crate) fn records(&mut self, records: u64, wall: Duration) {
        self.set("records", records);
        self.set(
            "records_per_second",
            round(records as f64 / wall.as_secs_f64().max(1e-9)),
        );
    }

    /// What they cost.
    #[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
    pub(crate) fn record_cost(
        &mut self,
        server: Option<u64>,
        driver: u64,
        records: u64,
        wall: Duration,
    ) {
        let wall_us = wall.as_secs_f64() * 1e6;
        if let Some(server) = server {
            self.set(
                "server_cpu_us_per_record",
                round(server as f64 / records.max(1) as f64),
            );
            self.set("server_busy", round(server as f64 / wall_us));
        }
        self.set("driver_busy", round(driver as f64 / wall_us));
    }

    /// One line for people.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{:<8} {:<3} {:<15} {:>6} × {:<4}",
            self.word("scenario"),
            self.word("transport"),
            self.word("label"),
            self.number("subscribers").unwrap_or(0.0),
            self.number("channels").unwrap_or(0.0)
        );
        for (name, unit) in [
            ("subscribe_ms", "ms to subscribe"),
            ("rss_per_connection_bytes", "B/connection"),
            (
                "rss_per_connection_after_churn_bytes",
                "B/connection after churn",
            ),
            ("server_cpu_us_per_subscribe", "µs CPU/subscribe"),
            ("records_per_second", "records/s"),
            ("server_cpu_us_per_record", "µs CPU/record"),
            ("p99_ratio", "× p99 with those who stopped"),
            ("p99_without_ms", "ms p99 without"),
            ("p99_with_ms", "ms p99 with"),
            ("rss_grown_without_kib", "KiB grown without"),
            ("rss_grown_with_kib", "KiB grown with"),
            ("stalled_that_got_the_newest", "got the newest"),
            ("newest_after_ms", "ms later"),
            ("slow_reader_age_p50_ms", "ms age p50 at the slow reader"),
            ("slow_reader_age_max_ms", "ms max"),
            ("server_was_down_ms", "ms down"),
            ("all_live_ms", "ms until all are live"),
            ("too_much_p99_ms", "ms p99 beyond it"),
            ("too_much_lost", "lost"),
            ("too_much_behind", "behind"),
            ("deliveries_per_second", "deliveries/s"),
            ("publications_per_second", "publications/s"),
            ("p50_ms", "ms p50"),
            ("p99_ms", "ms p99"),
            ("server_cpu_us_per_delivery", "µs CPU/delivery"),
            ("lost", "lost"),
            ("server_busy", "server busy"),
            ("driver_busy", "driver busy"),
            ("frame_bytes", "B/frame"),
        ] {
            if let Some(value) = self.number(name) {
                line.push_str(&format!(" | {} {unit}", short(value)));
            }
        }
        for name in ["behind", "refused", "repeated", "gaps", "closed"] {
            if let Some(value) = self.number(name).filter(|&value| value > 0.0) {
                line.push_str(&format!(" | {value} {name}"));
            }
        }
        for (name, called) in [
            ("first_refusal", "first refusal"),
            ("first_loss", "first loss"),
        ] {
            let words = self.word(name);
            if !words.is_empty() {
                line.push_str(&format!(" | {called}: {}", words.escape_debug()));
            }
        }
        line
    }
}

/// Three or four figures, as text.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1e6 => format!("{:.2}M", value / 1e6),
        middle if middle >= 1e4 => format!("{:.0}k", value / 1e3),
        small if small >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        small if small >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn round(value: f64) -> Value {
    json!((value * 1000.0).round() / 1000.0)
}

/// Where figures go: standard output, and a file of JSON lines if one is named.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    file: Option<PathBuf>,
}

impl Output {
    /// To standard output and, appended, to `file`.
    pub(crate) const fn new(file: Option<PathBuf>) -> Self {
        Self { file }
    }

    /// Writes a run's figures.
    ///
    /// # Errors
    /// When standard output or the file does not take them.
    pub(crate) fn write(&self, figures: &Figures) -> Result<()> {
        writeln!(std::io::stdout(), "{}", figures.line())?;
        let Some(path) = &self.file else {
            return Ok(());
        };
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        writeln!(file, "{}", Value::Object(figures.0.clone()))
            .with_context(|| path.display().to_string())
    }
}

/// Reads figures back.
///
/// # Errors
/// When the file is missing, or holds something else.
pub(crate) fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("{}: line {} holds no figures", path.display(), number + 1))
    };
    text.lines().enumerate().map(line).collect()
}
