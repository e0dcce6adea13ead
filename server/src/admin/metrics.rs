//! `GET /metrics`: the counters with their labels, put together when somebody asks.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{Admin, Asked, inspect::freshness_of};
use crate::{
    frame::{PARTS_ENCODED, UPDATES_ENCODED},
    materializer::StreamStatus,
    model::{FreshnessState, Moment},
    partition::Way,
    protocol::CloseCode,
    telemetry::{self as names, Closed, Kind, Metric, TimesRead, WorkerCounts},
    upstream::BreakerReport,
};

/// The OpenMetrics text format.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A number that was read.
#[derive(Debug)]
enum Value {
    Count(u64),
    Seconds(f64),
    Times(TimesRead),
}

/// Everything that was read for one scrape, by metric in the order of [`names::ALL`].
#[derive(Debug)]
struct Scrape {
    families: Vec<(&'static Metric, Vec<Sample>)>,
}

#[derive(Debug)]
struct Sample {
    labels: Vec<String>,
    value: Value,
}

impl Scrape {
    fn new() -> Self {
        Self {
            families: names::ALL.map(|metric| (metric, Vec::new())).into(),
        }
    }

    fn put(&mut self, metric: &Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let family = self
            .families
            .iter_mut()
            .find(|(known, _)| known.name == metric.name);
        if let Some((_, samples)) = family {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            samples.push(Sample { labels, value });
        }
    }

    fn count(&mut self, metric: &Metric, labels: &[&str], count: u64) {
        self.put(metric, labels, Value::Count(count));
    }

    /// Numbers that one worker counts.
    fn worker(&mut self, number: usize, counts: &WorkerCounts) {
        let worker = number.to_string();
        let plain = [
            (&names::FANOUT_NOTICES, &counts.notices),
            (&names::FANOUT_JOINS, &counts.joins),
            (&names::FANOUT_REJOINS, &counts.rejoined),
            (&names::FANOUT_CHANNELS, &counts.channels),
            (&names::FANOUT_SUBSCRIPTIONS, &counts.subscriptions),
            (&names::SESSION_BLOCKED, &counts.blocked_now),
            (&names::SESSION_OUTBOX, &counts.outbox_bytes),
            (&names::SESSION_REFUSED, &counts.refused),
            (&names::TRANSPORT_BYTES, &counts.sent_bytes),
            (&names::TRANSPORT_UPDATES, &counts.deliveries),
            (&names::TRANSPORT_WRITES, &counts.writes),
            (&names::TRANSPORT_BLOCKED, &counts.blocked),
            (&names::WORKER_TURNS, &counts.turns),
        ];
        for (metric, counter) in plain {
            self.count(metric, &[&worker], counter.get());
        }
        let offers = [
            &counts.offers_written,
            &counts.offers_queued,
            &counts.conflated,
            &counts.dropped,
            &counts.offers_overflowed,
            &counts.offers_closed,
        ];
        for (outcome, counter) in names::OFFER_OUTCOMES.into_iter().zip(offers) {
            self.count(&names::FANOUT_OFFERS, &[&worker, outcome], counter.get());
        }
        let busy = std::time::Duration::from_micros(counts.busy_us.get()).as_secs_f64();
        self.put(&names::WORKER_BUSY, &[&worker], Value::Seconds(busy));
        let delivery = Value::Times(counts.delivery.read());
        self.put(&names::TRANSPORT_DELIVERY, &[&worker], delivery);
        let transports = [
            ("websocket", &counts.websocket, &counts.closed_websocket),
            ("sse", &counts.sse, &counts.closed_sse),
        ];
        for (transport, active, closed) in transports {
            self.count(&names::SESSION_ACTIVE, &[&worker, transport], active.get());
            self.closed(&worker, transport, closed);
        }
    }

    fn closed(&mut self, worker: &str, transport: &str, closed: &Closed) {
        for (code, count) in CloseCode::ALL.iter().zip(closed) {
            let labels = [worker, transport, code.as_str()];
            self.count(&names::SESSION_CLOSED, &labels, count.get());
        }
    }

    /// Numbers of one partition.
    fn partition(&mut self, asked: &Asked, now: Moment) {
        let (handle, number) = (asked.handle(), asked.number.to_string());
        let labels = [asked.stream.name.as_str(), &number];
        let (updates, tail_bytes, _) = handle.tail.extent();
        let queued = handle.requests.max_capacity() - handle.requests.capacity();
        self.count(&names::TAIL_UPDATES, &labels, updates as u64);
        self.count(&names::TAIL_BYTES, &labels, tail_bytes as u64);
        if let Some(log) = handle.log.embedded() {
            let ((_, _, records, log_bytes), (rows, row_bytes)) = (log.extent(), log.rows());
            self.count(&names::LOG_RECORDS, &labels, records as u64);
            self.count(&names::LOG_BYTES, &labels, log_bytes as u64);
            self.count(&names::LOG_EXPIRED, &labels, log.expired());
            self.count(&names::LOG_ROWS, &labels, rows as u64);
            self.count(&names::LOG_ROW_BYTES, &labels, row_bytes as u64);
        }
        let poisons = &asked.stream.poisons;
        let stopped = u64::from(poisons.stopped(asked.number).is_some());
        let quarantined = poisons.quarantined(asked.number);
        self.count(&names::SOURCE_QUARANTINED, &labels, quarantined);
        self.count(&names::SOURCE_STOPPED, &labels, stopped);
        let (views, encodings) = (handle.held.views.bytes(), handle.held.encodings.bytes());
        self.count(&names::VIEW_BYTES, &labels, views as u64);
        self.count(&names::VIEW_ENCODED, &labels, encodings as u64);
        self.count(&names::PARTITION_QUEUED, &labels, queued as u64);
        if let Some(proof) = handle.tail.here().health.proof {
            let age = now.since(proof.asked_at).as_secs_f64();
            self.put(&names::VIEW_AGE, &labels, Value::Seconds(age));
        }
        let Some(task) = &asked.inspection else {
            return;
        };
        if task.resting_ms.is_none() {
            let lag = task.head.saturating_sub(task.applied);
            self.count(&names::SOURCE_LAG, &labels, lag);
            self.count(&names::SOURCE_HEAD, &labels, task.head);
        }
        let resting = u64::from(task.resting_ms.is_some());
        self.count(&names::PARTITION_RESTING, &labels, resting);
        self.count(&names::PARTITION_WAKINGS, &labels, task.wakings);
        self.count(&names::SOURCE_RECORDS, &labels, task.records);
        self.count(&names::SOURCE_POISONED, &labels, task.poisoned);
        self.count(&names::SOURCE_MISPLACED, &labels, task.misplaced);
        self.count(&names::SOURCE_UNTIMED, &labels, task.untimed);
        self.count(&names::VIEW_RESIDENT, &labels, task.views as u64);
        self.count(&names::VIEW_ROWS, &labels, task.rows as u64);
        self.count(&names::VIEW_EVICTED, &labels, task.evicted);
        self.count(&names::PARTITION_WAITING, &labels, task.waiting as u64);
        let [stream, number] = labels;
        for (outcome, count) in [("ok", task.fetches), ("failed", task.failed_fetches)] {
            self.count(&names::SOURCE_FETCHES, &[stream, number, outcome], count);
        }
        for way in Way::ALL {
            let labels = [stream, number, way.word()];
            self.count(&names::PARTITION_ANSWERS, &labels, task.answers.of(way));
        }
    }

    /// Numbers of the folding of one stream into the cache.
    fn materializer(&mut self, status: &StreamStatus, now_ms: i64) {
        let (stream, counts) = (status.stream.as_str(), &status.counts);
        for (metric, counter) in [
            (&names::MATERIALIZER_RECORDS, &counts.records),
            (&names::MATERIALIZER_POISONED, &counts.poisoned),
            (&names::MATERIALIZER_MISPLACED, &counts.misplaced),
            (&names::MATERIALIZER_UNTIMED, &counts.untimed),
            (&names::MATERIALIZER_ROWS, &counts.rows),
            (&names::MATERIALIZER_BATCHES, &counts.batches),
            (&names::MATERIALIZER_CONFLICTS, &counts.conflicts),
            (&names::MATERIALIZER_LOST, &counts.lost),
            (&names::MATERIALIZER_REFOLDS, &counts.refolds),
            (&names::MATERIALIZER_FLIPS, &counts.flips),
        ] {
            self.count(metric, &[stream], counter.get());
        }
        let quarantined = status.poisons.all_quarantined();
        self.count(&names::MATERIALIZER_QUARANTINED, &[stream], quarantined);
        let stops = status.poisons.stops() as u64;
        self.count(&names::MATERIALIZER_STOPPED, &[stream], stops);
        let given = status.share().partitions.len() as u64;
        self.count(&names::MATERIALIZER_PARTITIONS, &[stream], given);
        for (number, partition) in status.partitions() {
            let number = number.to_string();
            let labels = [stream, number.as_str()];
            let lag = partition.head.saturating_sub(partition.applied);
            self.count(&names::MATERIALIZER_LAG, &labels, lag);
            self.count(&names::MATERIALIZER_APPLIED, &labels, partition.applied);
            if let Some(proven_ms) = partition.proven_ms {
                let age_ms = u64::try_from(now_ms.saturating_sub(proven_ms)).unwrap_or(0);
                let age = std::time::Duration::from_millis(age_ms).as_secs_f64();
                self.put(&names::MATERIALIZER_PROOF, &labels, Value::Seconds(age));
            }
        }
    }

    /// Numbers of one upstream.
    fn upstream(&mut self, report: &BreakerReport) {
        let name = report.name.as_str();
        for (outcome, &count) in &report.calls {
            self.count(&names::UPSTREAM_CALLS, &[name, outcome], count);
        }
        let plain = [
            (&names::UPSTREAM_STATE, report.state.number()),
            (&names::UPSTREAM_OPENINGS, report.openings),
            (&names::UPSTREAM_ACTIVE, report.active),
            (&names::UPSTREAM_WAITING, report.waiting),
        ];
        for (metric, count) in plain {
            self.count(metric, &[name], count);
        }
        let open = std::time::Duration::from_millis(report.open_ms).as_secs_f64();
        self.put(&names::UPSTREAM_OPEN, &[name], Value::Seconds(open));
    }

    /// Numbers of the whole node.
    fn node(&mut self, admin: &Admin, now: Moment) {
        let (app, relaxed) = (&admin.app, std::sync::atomic::Ordering::Relaxed);
        for stream in app.streams.all() {
            let live = freshness_of(&stream, now)
                .is_none_or(|freshness| freshness.state == FreshnessState::Live);
            self.count(&names::VIEW_LIVE, &[&stream.name], u64::from(live));
            if let Some(age) = stream.canary.age(now) {
                let times = Value::Times(stream.canary.times.read());
                self.put(&names::CANARY_FRESHNESS, &[&stream.name], times);
                let age = Value::Seconds(age.as_secs_f64());
                self.put(&names::CANARY_AGE, &[&stream.name], age);
            }
        }
        let published = [
            ("appended", &app.counts.published),
            ("duplicate", &app.counts.duplicates),
            ("refused", &app.counts.publish_refused),
            ("view_full", &app.counts.view_full),
        ];
        for (outcome, counter) in published {
            self.count(&names::PUBLISH_RECORDS, &[outcome], counter.get());
        }
        for (limit, counter) in app.counts.turned.all() {
            self.count(&names::TRANSPORT_REFUSED, &[limit], counter.get());
        }
        for (what, counter) in app.counts.memory.held() {
            self.count(&names::MEMORY_HELD, &[what], counter.get());
        }
        for (step, counter) in app.counts.memory.steps() {
            self.count(&names::MEMORY_SHED, &[step], counter.get());
        }
        let reloads = [
            ("applied", &app.counts.reloads_applied),
            ("refused", &app.counts.reloads_refused),
        ];
        for (outcome, counter) in reloads {
            self.count(&names::CONFIG_RELOADS, &[outcome], counter.get());
        }
        let plain = [
            (&names::MEMORY_LIMIT, app.counts.memory.limit.get()),
            (&names::TRANSPORT_REQUESTS, app.counts.requests.get()),
            (&names::TRANSPORT_HTTP, app.counts.http.get()),
            (&names::LOG_COMMITS, app.log_counts.commits.get()),
            (&names::LOG_FAILURES, app.log_counts.failures.get()),
            (&names::FRAME_UPDATES, UPDATES_ENCODED.load(relaxed)),
            (&names::FRAME_PARTS, PARTS_ENCODED.load(relaxed)),
            (&names::NODE_READY, u64::from(!app.is_draining())),
            (&names::CONFIG_LOADED, app.counts.reload_succeeded_s.get()),
        ];
        for (metric, count) in plain {
            self.count(metric, &[], count);
        }
        let syncs = Value::Times(app.log_counts.syncs.read());
        self.put(&names::LOG_SYNC, &[], syncs);
        let uptime = now.since(Moment::default()).as_secs_f64();
        self.put(&names::NODE_UPTIME, &[], Value::Seconds(uptime));
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (metric, samples) in &self.families {
            if samples.is_empty() {
                continue;
            }
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let name = format!("{}{}", names::PREFIX, metric.name);
            let mut family = encoder.encode_descriptor(&name, metric.help, None, kind)?;
            for sample in samples {
                let labels: Vec<(&str, &str)> = metric
                    .labels
                    .iter()
                    .copied()
                    .zip(sample.labels.iter().map(String::as_str))
                    .collect();
                let one = if labels.is_empty() {
                    encode_value(&mut family, metric.kind, &sample.value)
                } else {
                    encode_value(
                        &mut family.encode_family(&labels)?,
                        metric.kind,
                        &sample.value,
                    )
                };
                one?;
            }
        }
        Ok(())
    }
}

fn encode_value(
    encoder: &mut MetricEncoder<'_>,
    kind: Kind,
    value: &Value,
) -> Result<(), std::fmt::Error> {
    match (kind, value) {
        (Kind::Counter, Value::Count(count)) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(count, None)
        }
        (Kind::Counter, Value::Seconds(seconds)) => {
            encoder.encode_counter::<NoLabelSet, _, f64>(seconds, None)
        }
        (_, Value::Count(count)) => encoder.encode_gauge(count),
        (_, Value::Seconds(seconds)) => encoder.encode_gauge(seconds),
        (_, Value::Times(times)) => {
            encoder.encode_histogram::<NoLabelSet>(times.sum_s, times.count, &times.buckets, None)
        }
    }
}

pub(super) async fn scrape(State(admin): State<Arc<Admin>>) -> Response {
    let streams = admin.app.streams.all();
    let asked = admin.ask_partitions(&streams).await;
    let mut scrape = Scrape::new();
    let now = admin.app.clock.now();
    for (number, counts) in admin.app.workers.iter().enumerate() {
        scrape.worker(number, counts);
    }
    for asked in &asked {
        scrape.partition(asked, now);
    }
    for report in admin.upstreams.reports() {
        scrape.upstream(&report);
    }
    for status in admin.materializers.all() {
        scrape.materializer(&status, admin.app.clock.wall_ms());
    }
    scrape.node(&admin, now);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(scrape));
    let mut out = String::new();
    match text::encode(&mut out, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], out).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics can't be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        upstream::{Limits, Upstreams},
    };

    fn written(scrape: Scrape) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(scrape));
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();
        out
    }

    #[test]
    fn counters_gauges_and_times_are_written_with_their_labels() {
        let counts = WorkerCounts::default();
        counts.sent_bytes.add(12);
        counts.websocket.set(3);
        counts.busy_us.add(1_500_000);
        counts.delivery.note(std::time::Duration::from_micros(300));
        let mut scrape = Scrape::new();
        scrape.worker(1, &counts);
        let out = written(scrape);
        for line in [
            "# TYPE tidegate_transport_sent_bytes counter",
            "tidegate_transport_sent_bytes_total{worker=\"1\"} 12",
            "tidegate_session_active{worker=\"1\",transport=\"websocket\"} 3",
            "tidegate_worker_busy_seconds_total{worker=\"1\"} 1.5",
            "tidegate_transport_delivery_seconds_count{worker=\"1\"} 1",
            "tidegate_transport_delivery_seconds_bucket{le=\"0.00025\",worker=\"1\"} 0",
            "tidegate_transport_delivery_seconds_bucket{le=\"0.0005\",worker=\"1\"} 1",
            "tidegate_transport_delivery_seconds_bucket{le=\"+Inf\",worker=\"1\"} 1",
            "# EOF",
        ] {
            assert!(out.lines().any(|found| found == line), "{line}\n{out}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_upstream_is_written_with_its_state_and_what_came_of_its_calls() {
        let upstreams = Upstreams::new(Clock::start());
        let redis = upstreams.open("redis:cache", Limits::default());
        let written = |upstreams: &Upstreams| {
            let mut scrape = Scrape::new();
            for report in upstreams.reports() {
                scrape.upstream(&report);
            }
            written(scrape)
        };
        let has = |out: &str, line: &str| {
            let full = line.replace('{', "{upstream=\"redis:cache\"");
            assert!(out.lines().any(|found| found == full), "{full}\n{out}");
        };
        let before = written(&upstreams);
        has(&before, "tidegate_upstream_state{} 0");
        has(
            &before,
            "tidegate_upstream_calls_total{,outcome=\"failed\"} 0",
        );
        for _ in 0..3 {
            redis.try_acquire().unwrap().failed("connection refused");
        }
        assert!(redis.try_acquire().is_err());
        tokio::time::advance(std::time::Duration::from_millis(1500)).await;
        let after = written(&upstreams);
        has(&after, "tidegate_upstream_state{} 2");
        has(
            &after,
            "tidegate_upstream_calls_total{,outcome=\"failed\"} 3",
        );
        has(&after, "tidegate_upstream_calls_total{,outcome=\"shed\"} 1");
        has(&after, "tidegate_upstream_openings_total{} 1");
        has(&after, "tidegate_upstream_open_seconds_total{} 1.5");
        has(&after, "tidegate_upstream_active_calls{} 0");
        let probe = redis.try_acquire().unwrap();
        let during = written(&upstreams);
        has(&during, "tidegate_upstream_state{} 1");
        has(&during, "tidegate_upstream_active_calls{} 1");
        probe.answered();
        let healed = written(&upstreams);
        has(&healed, "tidegate_upstream_state{} 0");
        has(
            &healed,
            "tidegate_upstream_calls_total{,outcome=\"answered\"} 1",
        );
    }
}
