//! The demo: one stormy day of departures at New York's three airports, through the ordinary publish path.
//!
//! Does: replays the embedded file again and again, a day in twenty minutes, with the publish time as event time; sets a
//! simulated clock beside it; deletes what a pass leaves. Owns: nothing but its place in the file. Never knows: who looks.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    auth::Claims,
    publish::{Flow, Publisher},
};

/// The 6,782 events (US Bureau of Transportation Statistics, CC0).
const EVENTS: &str = include_str!("../../deploy/demo/departures.ndjson");
/// The demo's stream.
pub const STREAM: &str = "departures";
/// A day takes this long.
const DAY: Duration = Duration::from_secs(20 * 60);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// New York in July is four hours behind UTC.
const ZONE_MS: i64 = -4 * 60 * 60 * 1000;
const MINUTE_MS: i64 = 60_000;
/// The file begins in the small hours, at three; what happens until half past five is told at once, so that the board has
/// rows as soon as it is looked at.
const OPENS_AFTER_MS: i64 = 150 * MINUTE_MS;
const DATE: &str = "2013-07-10";

#[derive(Deserialize)]
struct Event<'a> {
    channel: &'a str,
    row: &'a str,
    ts: i64,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// Between two attempts to publish a record that was refused for a while.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Replays until the node stops.
pub async fn replay(publisher: Arc<Publisher>, claims: Arc<Claims>) {
    let events: Vec<Event<'static>> = EVENTS
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let Some(first) = events.first().map(|event| event.ts + OPENS_AFTER_MS) else {
        return;
    };
    let mut player = Player { publisher, claims };
    loop {
        let (start, mut rows) = (Instant::now(), HashSet::new());
        let mut minute = first / MINUTE_MS;
        player.set_clock(minute).await;
        for event in &events {
            while minute < event.ts / MINUTE_MS {
                minute += 1;
                sleep_until(start + scaled(minute * MINUTE_MS - first)).await;
                player.set_clock(minute).await;
            }
            sleep_until(start + scaled(event.ts - first)).await;
            player
                .publish(event.channel, event.row, event.data.get())
                .await;
            if event.data.get() == "null" {
                rows.remove(&(event.channel, event.row));
            } else {
                rows.insert((event.channel, event.row));
            }
        }
        for (channel, row) in rows {
            player.publish(channel, row, "null").await;
        }
    }
}

/// How long after the start something happens that happened so many milliseconds after the first event.
fn scaled(after_ms: i64) -> Duration {
    let parts = u32::try_from(after_ms.max(0) / 1000).unwrap_or(u32::MAX);
    DAY * parts / u32::try_from(DAY_MS / 1000).unwrap_or(u32::MAX)
}

struct Player {
    publisher: Arc<Publisher>,
    claims: Arc<Claims>,
}

impl Player {
    async fn publish(&mut self, channel: &str, row: &str, data: &str) {
        let line = format!(
            "{{\"channel\":{},\"row\":{},\"data\":{data}}}",
            quoted(channel),
            quoted(row)
        );
        let mut told = false;
        while let Some(pause) = self.refused(line.as_bytes(), &mut told).await {
            sleep(pause).await;
        }
    }

    /// Publishes a record; where it was refused, after which time it is to be sent again. While the log is away the day waits for it.
    async fn refused(&mut self, line: &[u8], told: &mut bool) -> Option<Duration> {
        let stream = self.publisher.stream(STREAM, &self.claims).ok()?;
        let record = self.publisher.read(&stream, line);
        // What was refused is sent again, before anything else: no later record has to wait for it.
        let flow = &mut Flow::default();
        let appending = self
            .publisher
            .append(&stream, &self.claims, flow, vec![record]);
        let refusal = appending.await.into_iter().find_map(Result::err)?;
        if !std::mem::replace(told, true) {
            tracing::warn!(refusal = refusal.message, "the demo's record was refused");
        }
        let pause = Duration::from_millis(refusal.retry_after_ms?);
        Some(pause.clamp(PAUSE_MIN, PAUSE_MAX))
    }

    async fn set_clock(&mut self, minute: i64) {
        let of_day = (minute + ZONE_MS / MINUTE_MS).rem_euclid(24 * 60);
        let clock = format!(
            "{{\"clock\":\"{:02}:{:02}\",\"day\":\"{DATE}\"}}",
            of_day / 60,
            of_day % 60
        );
        self.publish("clock", "clock", &clock).await;
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_event_and_they_are_in_order() {
        let events: Vec<Event<'_>> = EVENTS
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(events.len(), 6782);
        assert!(events.is_sorted_by_key(|event| event.ts));
        let cancelled = events
            .iter()
            .filter(|event| event.data.get().contains("\"status\":\"cancelled\""))
            .count();
        assert_eq!(cancelled, 121);
    }

    #[test]
    fn a_day_takes_twenty_minutes() {
        assert_eq!(scaled(DAY_MS), DAY);
        assert_eq!(scaled(DAY_MS / 2), DAY / 2);
    }
}
