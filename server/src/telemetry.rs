//! Every metric's name, and what is counted.
//!
//! Does: names each metric once, with its labels and meaning; holds the counters. Owns: the counters. Never knows: what
//! they mean to anybody, and who reads them. Keeps: no label is looked up per delivery, since a worker adds to its own
//! numbers, and labels are put to them only when somebody looks; labels come from closed sets, never from channels,
//! rows, subjects or addresses. `docs/reference/metrics.md` lists the same names: a test compares them.

mod counts;

pub use counts::{
    CanaryCounts, Closed, Counter, LogCounts, MaterializerCounts, NodeCounts, TIME_BOUNDS_US,
    Throttle, Times, TimesRead, UpstreamCounts, WorkerCounts,
};

/// What begins every metric's name.
pub const PREFIX: &str = "tidegate_";

/// What a metric's number does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; its name ends in `_total` where it is read.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Counts by upper bounds.
    Histogram,
}

impl Kind {
    /// Its word on the page.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, without [`PREFIX`] and without `_total`.
    pub name: &'static str,
    /// What its number does.
    pub kind: Kind,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

impl Metric {
    /// Its name as it is read: with the prefix, and a counter's with `_total`.
    #[must_use]
    pub fn full_name(&self) -> String {
        let total = if self.kind == Kind::Counter {
            "_total"
        } else {
            ""
        };
        format!("{PREFIX}{}{total}", self.name)
    }
}

const STREAM: &[&str] = &["stream"];
const PARTITION: &[&str] = &["stream", "partition"];
const WORKER: &[&str] = &["worker"];
const UPSTREAM: &[&str] = &["upstream"];

/// Records that this node has read from the log, those that meant nothing included.
pub const SOURCE_RECORDS: Metric = Metric {
    name: "source_records",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Records that this node has read from the log, those that meant nothing included",
};
/// Records that could not be understood and were passed over.
pub const SOURCE_POISONED: Metric = Metric {
    name: "source_poisoned_records",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Records that could not be understood and were passed over",
};
/// Records of channels that belong into another partition, which were passed over.
pub const SOURCE_MISPLACED: Metric = Metric {
    name: "source_misplaced_records",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Records of channels that belong into another partition, which were passed over",
};
/// Records that could not be understood and were put into the dead-letter topic by this node.
pub const SOURCE_QUARANTINED: Metric = Metric {
    name: "source_quarantined_records",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Records that could not be understood and were put into the dead-letter topic by this node",
};
/// 1 while this node reads no further, since a record could not be understood.
pub const SOURCE_STOPPED: Metric = Metric {
    name: "source_stopped",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "1 while this node reads no further, since a record could not be understood and is not done with (streams[].poison); else 0",
};
/// Records whose event time is not where `streams[].event_time` says, or is no time.
pub const SOURCE_UNTIMED: Metric = Metric {
    name: "source_untimed_records",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Records whose event time is not where streams[].event_time says, or is no time: they have that of their publisher, or of the log",
};
/// Fetches from the log.
pub const SOURCE_FETCHES: Metric = Metric {
    name: "source_fetches",
    kind: Kind::Counter,
    labels: &["stream", "partition", "outcome"],
    help: "Fetches from the log",
};
/// Offsets between the newest head seen and what this node has applied; absent while the partition rests.
pub const SOURCE_LAG: Metric = Metric {
    name: "source_lag_records",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Offsets between the newest head seen and what this node has applied; absent while the partition rests",
};
/// The newest offset of the log that this node has seen; absent while the partition rests.
pub const SOURCE_HEAD: Metric = Metric {
    name: "source_head_offset",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "The newest offset of the log that this node has seen; absent while the partition rests",
};
/// The breaker of a dependency: 0 closed, 1 half-open, 2 open.
pub const UPSTREAM_STATE: Metric = Metric {
    name: "upstream_state",
    kind: Kind::Gauge,
    labels: UPSTREAM,
    help: "The breaker of a dependency: 0 closed, 1 half-open, 2 open",
};
/// Calls to a dependency, by what came of them.
pub const UPSTREAM_CALLS: Metric = Metric {
    name: "upstream_calls",
    kind: Kind::Counter,
    labels: &["upstream", "outcome"],
    help: "Calls to a dependency, by what came of them",
};
/// Times that the breaker of a dependency opened, probes that failed not counted.
pub const UPSTREAM_OPENINGS: Metric = Metric {
    name: "upstream_openings",
    kind: Kind::Counter,
    labels: UPSTREAM,
    help: "Times that the breaker of a dependency opened, probes that failed not counted",
};
/// Time during which the breaker of a dependency was not closed.
pub const UPSTREAM_OPEN: Metric = Metric {
    name: "upstream_open_seconds",
    kind: Kind::Counter,
    labels: UPSTREAM,
    help: "Time during which the breaker of a dependency was not closed",
};
/// Calls to a dependency that are out now.
pub const UPSTREAM_ACTIVE: Metric = Metric {
    name: "upstream_active_calls",
    kind: Kind::Gauge,
    labels: UPSTREAM,
    help: "Calls to a dependency that are out now",
};
/// Calls to a dependency that wait for a place now.
pub const UPSTREAM_WAITING: Metric = Metric {
    name: "upstream_waiting_calls",
    kind: Kind::Gauge,
    labels: UPSTREAM,
    help: "Calls to a dependency that wait for a place now",
};
/// Records that the embedded log holds.
pub const LOG_RECORDS: Metric = Metric {
    name: "log_held_records",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Records that the embedded log holds",
};
/// Bytes that the embedded log holds, in memory or on disk.
pub const LOG_BYTES: Metric = Metric {
    name: "log_held_bytes",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Bytes that the embedded log holds, in memory or on disk",
};
/// Rows that the embedded log has folded.
pub const LOG_ROWS: Metric = Metric {
    name: "log_held_rows",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Rows that the embedded log has folded, of all its views",
};
/// Bytes that those rows hold.
pub const LOG_ROW_BYTES: Metric = Metric {
    name: "log_row_bytes",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Bytes that those rows hold in memory, about",
};
/// Commits that the data directory took: the records of one partition that were written and made durable together.
pub const LOG_COMMITS: Metric = Metric {
    name: "log_commits",
    kind: Kind::Counter,
    labels: &[],
    help: "Commits that the data directory took: the records of one partition that were written and made durable together",
};
/// Commits, syncs and removals of old segments that the data directory's disk refused.
pub const LOG_FAILURES: Metric = Metric {
    name: "log_failures",
    kind: Kind::Counter,
    labels: &[],
    help: "Commits, syncs and removals of old segments that the data directory's disk refused",
};
/// How long the data directory's disk took to sync.
pub const LOG_SYNC: Metric = Metric {
    name: "log_sync_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "How long the data directory's disk took to sync",
};
/// Rows that the embedded log deleted, since nobody had changed them for row_ttl.
pub const LOG_EXPIRED: Metric = Metric {
    name: "log_expired_rows",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Rows that the embedded log deleted, since nobody had changed them for row_ttl",
};
/// Age of the newest proof that this node has what the log has; absent before the first, and while the partition rests.
pub const VIEW_AGE: Metric = Metric {
    name: "view_age_seconds",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Age of the newest proof that this node has what the log has; absent before the first, and while the partition rests",
};
/// 1 while every partition of the stream that is read is live, else 0.
pub const VIEW_LIVE: Metric = Metric {
    name: "view_live_streams",
    kind: Kind::Gauge,
    labels: STREAM,
    help: "1 while every partition of the stream that is read is live, else 0",
};
/// Views that this node holds folded.
pub const VIEW_RESIDENT: Metric = Metric {
    name: "view_resident_channels",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Views that this node holds folded",
};
/// Rows of those views.
pub const VIEW_ROWS: Metric = Metric {
    name: "view_resident_rows",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Rows of those views",
};
/// Bytes of resident views.
pub const VIEW_BYTES: Metric = Metric {
    name: "view_resident_bytes",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Bytes that resident views hold beside the rows of the log, about",
};
/// Bytes that readers of views share.
pub const VIEW_ENCODED: Metric = Metric {
    name: "view_encoded_bytes",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Bytes of encoded snapshots and of lists of changes, which readers of views share, about",
};
/// Views evicted.
pub const VIEW_EVICTED: Metric = Metric {
    name: "view_evicted",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Views that were evicted, since memory was short and nobody followed them",
};
/// Updates that the tail holds.
pub const TAIL_UPDATES: Metric = Metric {
    name: "tail_held_updates",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Updates that the tail holds",
};
/// Bytes that the tail pins, about.
pub const TAIL_BYTES: Metric = Metric {
    name: "tail_held_bytes",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Bytes that the tail pins, about",
};
/// Requests in the partition's queue, not yet looked at.
pub const PARTITION_QUEUED: Metric = Metric {
    name: "partition_queued_requests",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Requests in the partition's queue, not yet looked at",
};
/// Whether the partition is not read, since nobody needs it.
pub const PARTITION_RESTING: Metric = Metric {
    name: "partition_resting",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "1 while the partition is not read since nobody needs it, else 0",
};
/// Times that somebody needed a partition that was not read.
pub const PARTITION_WAKINGS: Metric = Metric {
    name: "partition_wakings",
    kind: Kind::Counter,
    labels: PARTITION,
    help: "Times that the partition was read again since somebody needed it",
};
/// Subscriptions that the partition answered, by what came of them.
pub const PARTITION_ANSWERS: Metric = Metric {
    name: "partition_answered_joins",
    kind: Kind::Counter,
    labels: &["stream", "partition", "outcome"],
    help: "Subscriptions that the partition answered, by what came of them",
};
/// Joins and long-polls that the partition holds until it can answer them.
pub const PARTITION_WAITING: Metric = Metric {
    name: "partition_waiting_requests",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Joins and long-polls that the partition holds until it can answer them",
};
/// Updates offered to connections, by what became of them.
pub const FANOUT_OFFERS: Metric = Metric {
    name: "fanout_offers",
    kind: Kind::Counter,
    labels: &["worker", "outcome"],
    help: "Updates offered to connections, by what became of them",
};
/// Heartbeats and states handed out.
pub const FANOUT_NOTICES: Metric = Metric {
    name: "fanout_notices",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Heartbeats and states handed out",
};
/// Joins asked of partitions.
pub const FANOUT_JOINS: Metric = Metric {
    name: "fanout_joins",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Joins asked of partitions",
};
/// Lines that began again: their outbox was full, or the worker fell off the tail.
pub const FANOUT_REJOINS: Metric = Metric {
    name: "fanout_rejoins",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Lines that began again: their outbox was full, or the worker fell off the tail",
};
/// Channels that some connection of the worker follows.
pub const FANOUT_CHANNELS: Metric = Metric {
    name: "fanout_followed_channels",
    kind: Kind::Gauge,
    labels: WORKER,
    help: "Channels that some connection of the worker follows",
};
/// Channels of connections, summed over the connections.
pub const FANOUT_SUBSCRIPTIONS: Metric = Metric {
    name: "fanout_active_subscriptions",
    kind: Kind::Gauge,
    labels: WORKER,
    help: "Channels of connections, summed over the connections",
};
/// Connections now.
pub const SESSION_ACTIVE: Metric = Metric {
    name: "session_active",
    kind: Kind::Gauge,
    labels: &["worker", "transport"],
    help: "Connections now",
};
/// Connections closed, by the reason that this node gave or saw.
pub const SESSION_CLOSED: Metric = Metric {
    name: "session_closed",
    kind: Kind::Counter,
    labels: &["worker", "transport", "code"],
    help: "Connections closed, by the reason that this node gave or saw",
};
/// Connections whose socket took no more, and that have not caught up yet.
pub const SESSION_BLOCKED: Metric = Metric {
    name: "session_blocked",
    kind: Kind::Gauge,
    labels: WORKER,
    help: "Connections whose socket took no more, and that have not caught up yet",
};
/// Bytes that wait for those connections, about.
pub const SESSION_OUTBOX: Metric = Metric {
    name: "session_outbox_bytes",
    kind: Kind::Gauge,
    labels: WORKER,
    help: "Bytes that wait for those connections, about",
};
/// Messages of clients that were refused.
pub const SESSION_REFUSED: Metric = Metric {
    name: "session_refused_messages",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Messages of clients that were refused",
};
/// HTTP requests to the public listener's routes, handshakes included.
pub const TRANSPORT_REQUESTS: Metric = Metric {
    name: "transport_requests",
    kind: Kind::Counter,
    labels: &[],
    help: "HTTP requests to the public listener's routes, handshakes included",
};
/// HTTP connections now, without those that sessions have taken over.
pub const TRANSPORT_HTTP: Metric = Metric {
    name: "transport_http_connections",
    kind: Kind::Gauge,
    labels: &[],
    help: "HTTP connections now, without those that sessions have taken over",
};
/// Connections turned away, by the limit that was reached.
pub const TRANSPORT_REFUSED: Metric = Metric {
    name: "transport_refused_connections",
    kind: Kind::Counter,
    labels: &["limit"],
    help: "Connections turned away, by the limit that was reached",
};
/// Bytes handed to sockets of sessions.
pub const TRANSPORT_BYTES: Metric = Metric {
    name: "transport_sent_bytes",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Bytes handed to sockets of sessions",
};
/// Updates handed to sockets of sessions.
pub const TRANSPORT_UPDATES: Metric = Metric {
    name: "transport_sent_updates",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Updates handed to sockets of sessions",
};
/// Writes to sockets of sessions.
pub const TRANSPORT_WRITES: Metric = Metric {
    name: "transport_writes",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Writes to sockets of sessions",
};
/// Sweeps' writes that a socket took only in part, or not at all.
pub const TRANSPORT_BLOCKED: Metric = Metric {
    name: "transport_blocked_writes",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Sweeps' writes that a socket took only in part, or not at all",
};
/// From the applying of an update to the end of the turn in which the last of its channel's sockets got it; measured for the first and the last update of each sweep.
pub const TRANSPORT_DELIVERY: Metric = Metric {
    name: "transport_delivery_seconds",
    kind: Kind::Histogram,
    labels: WORKER,
    help: "From the applying of an update to the end of the turn in which the last of its channel's sockets got it; measured for the first and the last update of each sweep",
};
/// From before a canary's record was published until it came out of a socket.
pub const CANARY_FRESHNESS: Metric = Metric {
    name: "canary_freshness_seconds",
    kind: Kind::Histogram,
    labels: STREAM,
    help: "From before a record of this node's own (streams[].canary) was published until it came out of a socket that a worker serves",
};
/// How old the newest record is that a canary has got back.
pub const CANARY_AGE: Metric = Metric {
    name: "canary_age_seconds",
    kind: Kind::Gauge,
    labels: STREAM,
    help: "Since the newest record of this node's own that came out of its socket was published: much more than streams[].canary where none comes",
};
/// Records that publishers sent.
pub const PUBLISH_RECORDS: Metric = Metric {
    name: "publish_records",
    kind: Kind::Counter,
    labels: &["outcome"],
    help: "Records that publishers sent",
};
/// The memory budget, limits.memory.
pub const MEMORY_LIMIT: Metric = Metric {
    name: "memory_limit_bytes",
    kind: Kind::Gauge,
    labels: &[],
    help: "The memory budget, limits.memory",
};
/// Bytes that count towards the memory budget, by use.
pub const MEMORY_HELD: Metric = Metric {
    name: "memory_held_bytes",
    kind: Kind::Gauge,
    labels: &["use"],
    help: "Bytes that count towards the memory budget, by use",
};
/// What was shed to keep the memory budget, by step.
pub const MEMORY_SHED: Metric = Metric {
    name: "memory_shed",
    kind: Kind::Counter,
    labels: &["step"],
    help: "What was shed to keep the memory budget, by step",
};
/// Updates encoded by this process: one for each update that anybody received.
pub const FRAME_UPDATES: Metric = Metric {
    name: "frame_encoded_updates",
    kind: Kind::Counter,
    labels: &[],
    help: "Updates encoded by this process: one for each update that anybody received",
};
/// Parts of snapshots encoded by this process.
pub const FRAME_PARTS: Metric = Metric {
    name: "frame_encoded_parts",
    kind: Kind::Counter,
    labels: &[],
    help: "Parts of snapshots encoded by this process",
};
/// Turns of the worker.
pub const WORKER_TURNS: Metric = Metric {
    name: "worker_turns",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Turns of the worker",
};
/// Time spent in turns: its rate is the worker's busy share.
pub const WORKER_BUSY: Metric = Metric {
    name: "worker_busy_seconds",
    kind: Kind::Counter,
    labels: WORKER,
    help: "Time spent in turns: its rate is the worker's busy share",
};
/// 1 until the node begins to drain, then 0.
pub const NODE_READY: Metric = Metric {
    name: "node_ready",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 until the node begins to drain, then 0",
};
/// Since the node started.
pub const NODE_UPTIME: Metric = Metric {
    name: "node_uptime_seconds",
    kind: Kind::Gauge,
    labels: &[],
    help: "Since the node started",
};

/// Reloads of the configuration.
pub const CONFIG_RELOADS: Metric = Metric {
    name: "config_reloads",
    kind: Kind::Counter,
    labels: &["outcome"],
    help: "Reloads of the configuration",
};
/// When the configuration that holds was read, since 1970.
pub const CONFIG_LOADED: Metric = Metric {
    name: "config_loaded_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[],
    help: "When the configuration that holds was read, since 1970",
};

/// Records that this process has read to fold them into the cache, those that meant nothing included.
pub const MATERIALIZER_RECORDS: Metric = Metric {
    name: "materializer_records",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Records that this process has read to fold them into the cache, those that meant nothing included",
};
/// Of those, the ones that could not be understood and were passed over.
pub const MATERIALIZER_POISONED: Metric = Metric {
    name: "materializer_poisoned_records",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Of those, the ones that could not be understood and were passed over",
};
/// Records of channels that belong into another partition, which were passed over.
pub const MATERIALIZER_MISPLACED: Metric = Metric {
    name: "materializer_misplaced_records",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Records of channels that belong into another partition, which were passed over",
};
/// Records whose event time is not where `streams[].event_time` says, or is no time.
pub const MATERIALIZER_UNTIMED: Metric = Metric {
    name: "materializer_untimed_records",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Records whose event time is not where streams[].event_time says, or is no time: they have that of their publisher, or of the log",
};
/// Records that could not be understood and were put into the dead-letter topic by this process.
pub const MATERIALIZER_QUARANTINED: Metric = Metric {
    name: "materializer_quarantined_records",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Records that could not be understood and were put into the dead-letter topic by this process",
};
/// Partitions that this process folds no further, since a record could not be understood.
pub const MATERIALIZER_STOPPED: Metric = Metric {
    name: "materializer_stopped_partitions",
    kind: Kind::Gauge,
    labels: STREAM,
    help: "Partitions that this process folds no further, since a record could not be understood and is not done with (streams[].poison)",
};
/// Rows that this process has written to the cache or deleted there: what is left of the records of a batch.
pub const MATERIALIZER_ROWS: Metric = Metric {
    name: "materializer_rows",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Rows that this process has written to the cache or deleted there: what is left of the records of a batch",
};
/// Batches that the cache took.
pub const MATERIALIZER_BATCHES: Metric = Metric {
    name: "materializer_batches",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Batches that the cache took",
};
/// Batches and flips that were not done since another one had written.
pub const MATERIALIZER_CONFLICTS: Metric = Metric {
    name: "materializer_conflicts",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Batches and flips that were not done since another one had written",
};
/// Batches that were not written since keys of the cache were gone.
pub const MATERIALIZER_LOST: Metric = Metric {
    name: "materializer_lost_batches",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Batches that were not written since keys of the cache were gone",
};
/// Folds from a log's start that were begun.
pub const MATERIALIZER_REFOLDS: Metric = Metric {
    name: "materializer_refolds",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Folds from a log's start that were begun",
};
/// Folds from a log's start that took the place of what was there.
pub const MATERIALIZER_FLIPS: Metric = Metric {
    name: "materializer_flips",
    kind: Kind::Counter,
    labels: STREAM,
    help: "Folds from a log's start that took the place of what was there",
};
/// Partitions that this process was given to fold.
pub const MATERIALIZER_PARTITIONS: Metric = Metric {
    name: "materializer_given_partitions",
    kind: Kind::Gauge,
    labels: STREAM,
    help: "Partitions that this process was given to fold",
};
/// Offsets between the newest head seen and what the cache has.
pub const MATERIALIZER_LAG: Metric = Metric {
    name: "materializer_lag_records",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Offsets between the newest head seen and what the cache has",
};
/// Offset up to which everything is in the cache.
pub const MATERIALIZER_APPLIED: Metric = Metric {
    name: "materializer_applied_offset",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Offset up to which everything is in the cache",
};
/// Since everything that a reader going on from there needs was surely in the log.
pub const MATERIALIZER_PROOF: Metric = Metric {
    name: "materializer_proof_age_seconds",
    kind: Kind::Gauge,
    labels: PARTITION,
    help: "Since everything that a reader going on from there needs was surely in the log",
};

/// All of them, as the page lists them.
pub const ALL: [&Metric; 86] = [
    &SOURCE_RECORDS,
    &SOURCE_POISONED,
    &SOURCE_MISPLACED,
    &SOURCE_QUARANTINED,
    &SOURCE_STOPPED,
    &SOURCE_UNTIMED,
    &SOURCE_FETCHES,
    &SOURCE_LAG,
    &SOURCE_HEAD,
    &UPSTREAM_STATE,
    &UPSTREAM_CALLS,
    &UPSTREAM_OPENINGS,
    &UPSTREAM_OPEN,
    &UPSTREAM_ACTIVE,
    &UPSTREAM_WAITING,
    &LOG_RECORDS,
    &LOG_BYTES,
    &LOG_ROWS,
    &LOG_ROW_BYTES,
    &LOG_COMMITS,
    &LOG_FAILURES,
    &LOG_SYNC,
    &LOG_EXPIRED,
    &VIEW_AGE,
    &VIEW_LIVE,
    &VIEW_RESIDENT,
    &VIEW_ROWS,
    &VIEW_BYTES,
    &VIEW_ENCODED,
    &VIEW_EVICTED,
    &TAIL_UPDATES,
    &TAIL_BYTES,
    &PARTITION_QUEUED,
    &PARTITION_WAITING,
    &PARTITION_ANSWERS,
    &PARTITION_RESTING,
    &PARTITION_WAKINGS,
    &FANOUT_OFFERS,
    &FANOUT_NOTICES,
    &FANOUT_JOINS,
    &FANOUT_REJOINS,
    &FANOUT_CHANNELS,
    &FANOUT_SUBSCRIPTIONS,
    &SESSION_ACTIVE,
    &SESSION_CLOSED,
    &SESSION_BLOCKED,
    &SESSION_OUTBOX,
    &SESSION_REFUSED,
    &TRANSPORT_REQUESTS,
    &TRANSPORT_HTTP,
    &TRANSPORT_REFUSED,
    &TRANSPORT_BYTES,
    &TRANSPORT_UPDATES,
    &TRANSPORT_WRITES,
    &TRANSPORT_BLOCKED,
    &TRANSPORT_DELIVERY,
    &CANARY_FRESHNESS,
    &CANARY_AGE,
    &PUBLISH_RECORDS,
    &MEMORY_LIMIT,
    &MEMORY_HELD,
    &MEMORY_SHED,
    &FRAME_UPDATES,
    &FRAME_PARTS,
    &WORKER_TURNS,
    &WORKER_BUSY,
    &NODE_READY,
    &NODE_UPTIME,
    &CONFIG_RELOADS,
    &CONFIG_LOADED,
    &MATERIALIZER_RECORDS,
    &MATERIALIZER_POISONED,
    &MATERIALIZER_MISPLACED,
    &MATERIALIZER_UNTIMED,
    &MATERIALIZER_QUARANTINED,
    &MATERIALIZER_STOPPED,
    &MATERIALIZER_ROWS,
    &MATERIALIZER_BATCHES,
    &MATERIALIZER_CONFLICTS,
    &MATERIALIZER_LOST,
    &MATERIALIZER_REFOLDS,
    &MATERIALIZER_FLIPS,
    &MATERIALIZER_PARTITIONS,
    &MATERIALIZER_LAG,
    &MATERIALIZER_APPLIED,
    &MATERIALIZER_PROOF,
];

/// What becomes of an offered update: the values of `outcome` of [`FANOUT_OFFERS`].
pub const OFFER_OUTCOMES: [&str; 6] = [
    "written",
    "queued",
    "conflated",
    "dropped",
    "overflowed",
    "closed",
];

#[cfg(test)]
mod tests;
