//! What the soak came to.
//!
//! Does: prints a line of the table every ten seconds and the bars at the end. Owns: the bars. Never knows: how anything was
//! done. Keeps: a bar that was missed is named, and so is what was to be done and was not: a soak of nothing proves nothing.

use std::io::Write as _;

use super::operator::Sample;

/// Memory may grow by so many MB a minute once it is warm.
const SLOPE_MAX: f64 = 1.0;
const MB: f64 = 1e6;

/// One line of the verdict.
#[derive(Debug)]
pub(super) struct Bar {
    /// What it is about.
    pub(super) name: &'static str,
    /// What was found.
    pub(super) found: String,
    /// Whether it is as it should be.
    pub(super) is_met: bool,
}

impl Bar {
    /// Something that must hold.
    pub(super) fn new(name: &'static str, found: impl Into<String>, is_met: bool) -> Self {
        Self {
            name,
            found: found.into(),
            is_met,
        }
    }

    /// These two must be equal.
    pub(super) fn equal(name: &'static str, found: u64, expected: u64) -> Self {
        Self::new(
            name,
            format!("{found}, expected {expected}"),
            found == expected,
        )
    }

    /// This must not be.
    pub(super) fn none(name: &'static str, found: u64) -> Self {
        Self::equal(name, found, 0)
    }

    /// This must have been done.
    pub(super) fn some(name: &'static str, found: u64) -> Self {
        Self::new(name, found.to_string(), found > 0)
    }
}

/// At once, also into a file.
pub(super) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .unwrap_or_default();
}

/// The table's head.
pub(super) fn say_head() {
    say(
        "seconds  RSS MB  fds  threads  sessions  channels  views   rows  tail KB  log KB  outbox KB  blocked  joined    left",
    );
}

/// A line of the table.
#[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
pub(super) fn say_sample(sample: &Sample, joined: u64, left: u64) {
    let counter = |name| sample.counter(name);
    say(&format!(
        "{:>7.0} {:>7.2} {:>4} {:>8} {:>9.0} {:>9.0} {:>6.0} {:>6.0} {:>8.0} {:>7.0} {:>10.0} {:>8.0} {joined:>7} {left:>7}",
        sample.at,
        sample.holdings.resident as f64 / MB,
        sample.holdings.descriptors,
        sample.holdings.threads,
        counter("tidegate_session_active"),
        counter("tidegate_fanout_followed_channels"),
        counter("tidegate_view_resident_channels"),
        counter("tidegate_view_resident_rows"),
        counter("tidegate_tail_held_bytes") / 1e3,
        counter("tidegate_log_held_bytes") / 1e3,
        counter("tidegate_session_outbox_bytes") / 1e3,
        counter("tidegate_session_blocked"),
    ));
}

/// Whether memory has stayed: its slope by least squares over all samples that are not of the warm-up.
#[expect(clippy::cast_precision_loss, reason = "figures are for reading")]
pub(super) fn memory(samples: &[Sample], warm_up: f64) -> Bar {
    let warm: Vec<_> = samples
        .iter()
        .filter(|sample| sample.at >= warm_up)
        .map(|sample| (sample.at / 60.0, sample.holdings.resident as f64 / MB))
        .collect();
    let Some(slope) = slope(&warm) else {
        return Bar::new("memory", "too few samples", false);
    };
    let (least, most) = warm
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), (_, mb)| {
            (least.min(*mb), most.max(*mb))
        });
    let found = format!(
        "{slope:+.3} MB/min over {} samples from {warm_up:.0} s on, {least:.2} to {most:.2} MB (bar {SLOPE_MAX} MB/min)",
        warm.len()
    );
    Bar::new("memory", found, slope < SLOPE_MAX)
}

/// The slope of the line with the least squares; none for fewer than three points, or all at one place.
#[expect(clippy::cast_precision_loss, reason = "few samples")]
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let together: f64 = points
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    (points.len() > 2 && spread > 0.0).then(|| together / spread)
}

/// Prints the bars; tells whether all are met.
pub(super) fn judge(bars: &[Bar]) -> bool {
    for bar in bars {
        let word = if bar.is_met { "ok    " } else { "MISSED" };
        say(&format!("{word} {}: {}", bar.name, bar.found));
    }
    bars.iter().all(|bar| bar.is_met)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Holdings;

    fn sample(at: f64, resident: u64) -> Sample {
        let holdings = Holdings {
            resident,
            ..Holdings::default()
        };
        Sample {
            at,
            holdings,
            ..Sample::default()
        }
    }

    #[test]
    fn growth_is_seen_through_noise_and_the_warm_up_is_not() {
        let noise = |second: u64| second % 7 * 300_000;
        let grows = |bytes_a_second: u64| -> Vec<_> {
            let cold = (0..40).map(|second| sample(second as f64, second * 1_000_000));
            let warm = (40..120).map(|second| {
                sample(
                    second as f64,
                    40_000_000 + (second - 40) * bytes_a_second + noise(second),
                )
            });
            cold.chain(warm).collect()
        };
        assert!(
            memory(&grows(0), 40.0).is_met,
            "{:?}",
            memory(&grows(0), 40.0)
        );
        assert!(
            !memory(&grows(18_000), 40.0).is_met,
            "{:?}",
            memory(&grows(18_000), 40.0)
        );
        assert!(!memory(&grows(0)[..41], 40.0).is_met);
    }

    #[test]
    fn one_missed_bar_is_enough() {
        assert!(judge(&[Bar::none("a", 0), Bar::some("b", 1)]));
        assert!(!judge(&[Bar::none("a", 0), Bar::some("b", 0)]));
    }
}
