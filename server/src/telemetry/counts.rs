//! What is counted: plain numbers, added to where things happen and read when somebody looks.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{frame::Wire, model::Moment, protocol::CloseCode};

/// A number that one thread adds to and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// Takes away what was added.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
    /// Sets, for what goes up and down.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    /// Reads.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the buckets of times, in microseconds; one more bucket takes what is longer.
pub const TIME_BOUNDS_US: [u64; 15] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000,
];

/// How long something took, counted by buckets.
#[derive(Debug, Default)]
pub struct Times {
    buckets: [Counter; TIME_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

/// What [`Times`] held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct TimesRead {
    /// The upper bound of each bucket in seconds, infinity last, and how many fell into it alone.
    pub buckets: Vec<(f64, u64)>,
    /// Seconds, all together.
    pub sum_s: f64,
    /// How many.
    pub count: u64,
}

impl Times {
    /// Counts one.
    pub fn note(&self, span: Duration) {
        let us = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let bucket = TIME_BOUNDS_US.partition_point(|&bound| bound < us);
        self.buckets[bucket].add(1);
        self.sum_us.add(us);
    }

    /// Reads all.
    #[must_use]
    pub fn read(&self) -> TimesRead {
        let bounds = TIME_BOUNDS_US
            .iter()
            .map(|&us| Duration::from_micros(us).as_secs_f64())
            .chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.buckets.iter().map(Counter::get)).collect();
        TimesRead {
            count: buckets.iter().map(|&(_, count)| count).sum(),
            sum_s: Duration::from_micros(self.sum_us.get()).as_secs_f64(),
            buckets,
        }
    }
}

/// Closed connections, by [`CloseCode`] in the order of `ALL`.
pub type Closed = [Counter; CloseCode::ALL.len()];

/// What one worker counts.
#[derive(Debug, Default)]
pub struct WorkerCounts {
    /// Connections over WebSocket now.
    pub websocket: Counter,
    /// Connections over SSE now.
    pub sse: Counter,
    /// Subscriptions (channels of connections) now.
    pub subscriptions: Counter,
    /// Channels that somebody here follows, as of the last tick.
    pub channels: Counter,
    /// Updates handed to sockets.
    pub deliveries: Counter,
    /// Offered updates that a socket took at once.
    pub offers_written: Counter,
    /// Offered updates that wait in an outbox, and took no older one's place.
    pub offers_queued: Counter,
    /// Offered updates that took the place of a waiting one of their row.
    pub conflated: Counter,
    /// Events that gave way and are a gap.
    pub dropped: Counter,
    /// Offered updates that found a view's outbox full: its line begins again from what was sent.
    pub offers_overflowed: Counter,
    /// Offered updates that found an outbox full whose policy is to disconnect.
    pub offers_closed: Counter,
    /// Between the applying of an update and the end of the turn in which its sweep ended: the first and the last update
    /// of each sweep.
    pub delivery: Times,
    /// Writes to sockets.
    pub writes: Counter,
    /// Bytes handed to sockets.
    pub sent_bytes: Counter,
    /// Times that a socket took no more.
    pub blocked: Counter,
    /// Connections whose socket took no more, and that have not caught up, as of the last tick.
    pub blocked_now: Counter,
    /// Bytes that wait for those, about.
    pub outbox_bytes: Counter,
    /// Bytes of messages that came in part, as of the last tick.
    pub inbox_bytes: Counter,
    /// Lines that began again since their outbox was full, or the worker fell off the tail.
    pub rejoined: Counter,
    /// Joins that were asked.
    pub joins: Counter,
    /// Heartbeats and states handed out.
    pub notices: Counter,
    /// Messages that were refused.
    pub refused: Counter,
    /// Turns.
    pub turns: Counter,
    /// Microseconds spent in turns.
    pub busy_us: Counter,
    /// WebSocket connections closed.
    pub closed_websocket: Closed,
    /// Event streams closed.
    pub closed_sse: Closed,
}

impl WorkerCounts {
    /// Connections of a wire format now.
    #[must_use]
    pub const fn active(&self, wire: Wire) -> &Counter {
        match wire {
            Wire::WebSocket => &self.websocket,
            Wire::Sse | Wire::SseBare | Wire::SsePlain | Wire::SsePlainBare => &self.sse,
        }
    }

    /// Notes that a connection was closed.
    pub fn note_closed(&self, wire: Wire, code: CloseCode) {
        let closed = match wire {
            Wire::WebSocket => &self.closed_websocket,
            Wire::Sse | Wire::SseBare | Wire::SsePlain | Wire::SsePlainBare => &self.closed_sse,
        };
        if let Some(place) = CloseCode::ALL.iter().position(|&other| other == code) {
            closed[place].add(1);
        }
    }
}

/// The node's memory budget, as of its last look.
#[derive(Debug, Default)]
pub struct MemoryCounts {
    /// The budget, in bytes.
    pub limit: Counter,
    /// Bytes that tails hold.
    pub tails: Counter,
    /// Bytes that embedded logs hold.
    pub logs: Counter,
    /// Bytes of outboxes, and of messages that came in part.
    pub outboxes: Counter,
    /// Bytes of the rows that embedded logs have folded.
    pub rows: Counter,
    /// Bytes that resident views hold beside those.
    pub views: Counter,
    /// Bytes that readers of views share.
    pub encodings: Counter,
    /// Bytes that wait for logs elsewhere to take them.
    pub appends: Counter,
    /// 1 while tails or logs are held to less than their own bounds.
    pub shedding: Counter,
    /// 1 while publishers may only delete.
    pub full: Counter,
    /// 1 while nobody new joins.
    pub short: Counter,
    /// Views evicted, since nobody followed them.
    pub evicted: Counter,
    /// Looks after which tails shrank.
    pub shed_tails: Counter,
    /// Looks after which logs shrank.
    pub shed_logs: Counter,
    /// Joins refused.
    pub refused_joins: Counter,
    /// Records refused.
    pub refused_publishes: Counter,
    /// Connections closed for what they held.
    pub closed: Counter,
}

impl MemoryCounts {
    /// What is held, with the words of metrics.
    #[must_use]
    pub const fn held(&self) -> [(&'static str, &Counter); 7] {
        [
            ("tails", &self.tails),
            ("logs", &self.logs),
            ("outboxes", &self.outboxes),
            ("rows", &self.rows),
            ("views", &self.views),
            ("encodings", &self.encodings),
            ("appends", &self.appends),
        ]
    }

    /// How often each step of shedding was taken, in their order, with the words of metrics.
    #[must_use]
    pub const fn steps(&self) -> [(&'static str, &Counter); 6] {
        [
            ("views", &self.evicted),
            ("tails", &self.shed_tails),
            ("logs", &self.shed_logs),
            ("joins", &self.refused_joins),
            ("publishes", &self.refused_publishes),
            ("connections", &self.closed),
        ]
    }
}

/// What the whole node counts.
#[derive(Debug, Default)]
pub struct NodeCounts {
    /// Records that the log took.
    pub published: Counter,
    /// Records that were refused, but for those of full views.
    pub publish_refused: Counter,
    /// Records that were refused since their view has as much as it may.
    pub view_full: Counter,
    /// Records dropped as repeats.
    pub duplicates: Counter,
    /// HTTP requests answered.
    pub requests: Counter,
    /// HTTP connections now, without those that sessions have taken over.
    pub http: Counter,
    /// Connections turned away.
    pub turned: TurnedAway,
    /// The memory budget.
    pub memory: MemoryCounts,
    /// Reloads of the configuration that were applied.
    pub reloads_applied: Counter,
    /// Reloads that were refused.
    pub reloads_refused: Counter,
    /// When the configuration that holds was read, in seconds since 1970.
    pub reload_succeeded_s: Counter,
}

/// Connections turned away, by what was full.
#[derive(Debug, Default)]
pub struct TurnedAway {
    /// `limits.connections`.
    pub connections: Counter,
    /// `limits.connections_per_address`.
    pub address_connections: Counter,
    /// `limits.connects_per_second`.
    pub node_rate: Counter,
    /// `limits.connects_per_second_per_address`.
    pub address_rate: Counter,
    /// The HTTP connections of a worker, all of which were busy.
    pub http: Counter,
    /// The same, and this one had said nothing yet while others came.
    pub unheard: Counter,
}

impl TurnedAway {
    /// All of them, with their words in metrics.
    #[must_use]
    pub const fn all(&self) -> [(&'static str, &Counter); 6] {
        [
            ("connections", &self.connections),
            ("address_connections", &self.address_connections),
            ("node_rate", &self.node_rate),
            ("address_rate", &self.address_rate),
            ("http", &self.http),
            ("unheard", &self.unheard),
        ]
    }
}

/// What the writer of a data directory counts.
#[derive(Debug, Default)]
pub struct LogCounts {
    /// Commits that were stored.
    pub commits: Counter,
    /// Commits, syncs and removals that failed.
    pub failures: Counter,
    /// How long syncs took.
    pub syncs: Times,
}

/// What one upstream counts.
#[derive(Debug, Default)]
pub struct UpstreamCounts {
    /// Calls that the callee answered.
    pub answered: Counter,
    /// Calls that the callee declined.
    pub declined: Counter,
    /// Calls that failed.
    pub failed: Counter,
    /// Calls without an answer in time.
    pub timed_out: Counter,
    /// Calls that their callers dropped.
    pub abandoned: Counter,
    /// Calls that were not let out, since the breaker was open.
    pub shed: Counter,
    /// Calls that were not let out for want of a place.
    pub busy: Counter,
    /// Calls that are out now.
    pub active: Counter,
    /// Calls that wait for a place now.
    pub waiting: Counter,
}

impl UpstreamCounts {
    /// Calls by what came of them, with the words of metrics.
    #[must_use]
    pub const fn outcomes(&self) -> [(&'static str, &Counter); 7] {
        [
            ("answered", &self.answered),
            ("declined", &self.declined),
            ("failed", &self.failed),
            ("timed_out", &self.timed_out),
            ("abandoned", &self.abandoned),
            ("shed", &self.shed),
            ("busy", &self.busy),
        ]
    }
}

/// What a node measures of a stream by records of its own.
#[derive(Debug, Default)]
pub struct CanaryCounts {
    /// From before they were published until they came out of a socket.
    pub times: Times,
    /// When the newest one that came was published, in microseconds of the node's clock; 0: none has.
    came_us: Counter,
}

impl CanaryCounts {
    /// One that was published `at` has come `now`.
    pub fn came(&self, at: Moment, now: Moment) {
        self.times.note(now.since(at));
        self.came_us.set(self.came_us.get().max(at.micros()));
    }

    /// How long ago the newest one that came was published; none before the first.
    #[must_use]
    pub fn age(&self, now: Moment) -> Option<Duration> {
        let came_us = self.came_us.get();
        (came_us > 0).then(|| now.since(Moment::from_micros(came_us)))
    }
}

/// What is counted of the folding of one stream into the cache.
#[derive(Debug, Default)]
pub struct MaterializerCounts {
    /// Records read, those that meant nothing included.
    pub records: Counter,
    /// Records that meant nothing.
    pub poisoned: Counter,
    /// Records of channels that belong into another partition.
    pub misplaced: Counter,
    /// Records whose event time was not where it should be.
    pub untimed: Counter,
    /// Rows written or deleted.
    pub rows: Counter,
    /// Batches written.
    pub batches: Counter,
    /// Batches and flips that were not done since somebody else had written.
    pub conflicts: Counter,
    /// Batches that were not written since keys were gone.
    pub lost: Counter,
    /// Folds from a log's start that were begun.
    pub refolds: Counter,
    /// Folds from a log's start that took the current one's place.
    pub flips: Counter,
}

/// Lets one warning through in a while, and says how many it kept back.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Option<Moment>,
    kept_back: u64,
}

impl Throttle {
    /// Between two warnings of a kind.
    pub const EVERY: Duration = Duration::from_secs(10);

    /// How many were kept back since the last one, if this one may pass.
    pub fn pass(&mut self, now: Moment) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < Self::EVERY) {
            self.kept_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let times = Times::default();
        for us in [0, 100, 101, 5_000_000, 5_000_001] {
            times.note(Duration::from_micros(us));
        }
        let read = times.read();
        let counts: Vec<u64> = read.buckets.iter().map(|&(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(read.count, 5);
        assert!((read.sum_s - 10.000_202).abs() < 1e-9);
    }

    #[test]
    fn a_throttle_counts_what_it_keeps_back() {
        let at = |seconds: u64| Moment::default().plus(Duration::from_secs(seconds));
        let mut throttle = Throttle::default();
        let passed: Vec<_> = [1, 2, 10, 11, 12, 21]
            .map(|seconds| throttle.pass(at(seconds)))
            .into();
        assert_eq!(passed, [Some(0), None, None, Some(2), None, Some(1)]);
    }

    #[test]
    fn closed_connections_are_counted_by_transport_and_code() {
        let counts = WorkerCounts::default();
        counts.note_closed(Wire::SseBare, CloseCode::ALL[3]);
        counts.note_closed(Wire::WebSocket, CloseCode::ALL[3]);
        counts.note_closed(Wire::WebSocket, CloseCode::ALL[3]);
        assert_eq!(counts.closed_sse[3].get(), 1);
        assert_eq!(counts.closed_websocket[3].get(), 2);
    }
}
