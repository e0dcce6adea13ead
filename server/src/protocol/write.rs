//! What clients are sent: JSON objects, appended to a buffer. Whoever frames them for a socket is `frame.rs`.

use std::{fmt::Display, io::Write as _};

use super::{CloseCode, Outcome, Refusal};
use crate::model::{Channel, Freshness, FreshnessState, Moment, StaleReason, Update};

/// What `hello` says.
pub struct Hello<'a> {
    /// This session's name, for logs and support.
    pub session: &'a str,
    /// The node's name.
    pub node: &'a str,
    /// The node's monotonic clock now: proofs are told in it.
    pub now: Moment,
    /// Between two heartbeats of a channel.
    pub heartbeat_ms: u64,
    /// A proof keeps a view live for so long.
    pub live_for_ms: u64,
    /// Largest message that the client may send, in bytes.
    pub message_bytes: usize,
    /// Most channels of one connection.
    pub channels: usize,
}

/// Appends a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    // Writing into a Vec can't fail, and a str always has a JSON form.
    serde_json::to_writer(out, text).unwrap_or_default();
}

fn raw(out: &mut Vec<u8>, text: impl Display) {
    write!(out, "{text}").unwrap_or_default();
}

fn key(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn number(out: &mut Vec<u8>, name: &str, value: impl Display) {
    key(out, name);
    raw(out, value);
}

fn text(out: &mut Vec<u8>, name: &str, value: &str) {
    key(out, name);
    string(out, value);
}

/// A position or token: its characters need no escape.
fn position(out: &mut Vec<u8>, name: &str, value: impl Display) {
    key(out, name);
    raw(out, format_args!("\"{value}\""));
}

fn op(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b"{\"op\":\"");
    out.extend_from_slice(name.as_bytes());
    out.push(b'"');
}

/// The first message of a connection.
pub fn hello(out: &mut Vec<u8>, hello: &Hello<'_>) {
    op(out, "hello");
    text(out, "session", hello.session);
    text(out, "node", hello.node);
    number(out, "now_ms", hello.now.millis());
    number(out, "heartbeat_ms", hello.heartbeat_ms);
    number(out, "live_for_ms", hello.live_for_ms);
    raw(
        out,
        format_args!(
            ",\"limits\":{{\"message_bytes\":{},\"channels\":{}}}}}",
            hello.message_bytes, hello.channels
        ),
    );
}

/// `pong`.
pub fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"op\":\"pong\"}");
}

fn outcome_fields(out: &mut Vec<u8>, outcome: Outcome) {
    let word = match outcome {
        Outcome::Resumed => "resumed",
        Outcome::Started => "started",
        Outcome::CatchingUp => "catching_up",
        Outcome::Snapshot(reason) => {
            raw(
                out,
                format_args!(
                    "\"outcome\":\"snapshot\",\"reason\":\"{}\"",
                    reason.as_str()
                ),
            );
            return;
        }
    };
    raw(out, format_args!("\"outcome\":\"{word}\""));
}

/// The answer to `subscribe`.
pub fn subscribed(out: &mut Vec<u8>, id: u64, outcome: Outcome) {
    raw(out, format_args!("{{\"id\":{id},\"ok\":{{"));
    outcome_fields(out, outcome);
    out.extend_from_slice(b"}}");
}

/// The answer to what has no more to say: `auth`, `unsubscribe`.
pub fn ok(out: &mut Vec<u8>, id: u64) {
    raw(out, format_args!("{{\"id\":{id},\"ok\":{{}}}}"));
}

/// The answer to `publish`.
pub fn published(out: &mut Vec<u8>, id: u64, at: &str, duplicate: bool) {
    raw(
        out,
        format_args!("{{\"id\":{id},\"ok\":{{\"position\":\"{at}\""),
    );
    if duplicate {
        out.extend_from_slice(b",\"duplicate\":true");
    }
    out.extend_from_slice(b"}}");
}

/// What follows `catching_up`, exactly once; over SSE the beginning of each channel.
pub fn outcome(out: &mut Vec<u8>, channel: &Channel, outcome: Result<Outcome, &Refusal>) {
    op(out, "outcome");
    text(out, "channel", channel);
    out.push(b',');
    match outcome {
        Ok(outcome) => outcome_fields(out, outcome),
        Err(refusal) => error_field(out, refusal),
    }
    out.push(b'}');
}

fn error_field(out: &mut Vec<u8>, refusal: &Refusal) {
    out.extend_from_slice(b"\"error\":");
    error_object(out, refusal);
}

/// `{"code":…,"message":…}`.
pub fn error_object(out: &mut Vec<u8>, refusal: &Refusal) {
    raw(
        out,
        format_args!("{{\"code\":\"{}\"", refusal.code.as_str()),
    );
    text(out, "message", &refusal.message);
    if let Some(after) = refusal.retry_after_ms {
        number(out, "retry_after_ms", after);
    }
    out.push(b'}');
}

/// A refusal of the request with this id; of none, where the message had no readable id.
pub fn error(out: &mut Vec<u8>, id: Option<u64>, refusal: &Refusal) {
    out.push(b'{');
    if let Some(id) = id {
        raw(out, format_args!("\"id\":{id},"));
    }
    error_field(out, refusal);
    out.push(b'}');
}

/// One update.
pub fn update(out: &mut Vec<u8>, update: &Update) {
    op(out, "update");
    text(out, "channel", &update.change.channel);
    position(out, "position", &update.position);
    number(out, "ts", update.change.ts_ms);
    text(out, "row", update.change.row.as_str());
    match &update.change.data {
        Some(data) => {
            key(out, "data");
            out.extend_from_slice(data);
        }
        None => out.extend_from_slice(b",\"deleted\":true"),
    }
    out.push(b'}');
}

/// Begins part `part` of a snapshot; [`snapshot_row`] follows for each row, then [`snapshot_end`].
pub fn snapshot_begin(out: &mut Vec<u8>, channel: &Channel, part: usize) {
    op(out, "snapshot");
    text(out, "channel", channel);
    number(out, "part", part);
    out.extend_from_slice(b",\"rows\":{");
}

/// One row of a snapshot.
pub fn snapshot_row(out: &mut Vec<u8>, first: bool, row: &str, ts_ms: i64, data: Option<&[u8]>) {
    if !first {
        out.push(b',');
    }
    string(out, row);
    match data {
        Some(data) => {
            raw(out, format_args!(":{{\"ts\":{ts_ms},\"data\":"));
            out.extend_from_slice(data);
            out.push(b'}');
        }
        None => raw(out, format_args!(":{{\"ts\":{ts_ms},\"deleted\":true}}")),
    }
}

/// Ends a part: the last one carries the position, the others say that there is more.
pub fn snapshot_end(out: &mut Vec<u8>, at: Option<&dyn Display>) {
    out.push(b'}');
    match at {
        Some(at) => position(out, "position", at),
        None => out.extend_from_slice(b",\"more\":true"),
    }
    out.push(b'}');
}

/// The only thing that renews `live`.
pub fn heartbeat(
    out: &mut Vec<u8>,
    channel: &Channel,
    at: &dyn Display,
    proved_at: Option<Moment>,
) {
    op(out, "heartbeat");
    text(out, "channel", channel);
    position(out, "position", at);
    if let Some(proved_at) = proved_at {
        number(out, "proved_at_ms", proved_at.millis());
    }
    out.push(b'}');
}

/// A state other than live, with its age and reason.
pub fn freshness(out: &mut Vec<u8>, channel: &Channel, freshness: Freshness) {
    op(out, "freshness");
    text(out, "channel", channel);
    freshness_fields(out, freshness);
    out.push(b'}');
}

/// `,"state":…,"reason":…,"age_ms":…`.
pub fn freshness_fields(out: &mut Vec<u8>, freshness: Freshness) {
    text(out, "state", state_word(freshness.state));
    if let Some(reason) = freshness.reason {
        text(out, "reason", reason_word(reason));
    }
    if let Some(age) = freshness.age_ms {
        number(out, "age_ms", age);
    }
}

/// A state's word on the wire.
#[must_use]
pub const fn state_word(state: FreshnessState) -> &'static str {
    match state {
        FreshnessState::Live => "live",
        FreshnessState::CatchingUp => "catching_up",
        FreshnessState::Stale => "stale",
        FreshnessState::Unavailable => "unavailable",
    }
}

/// A reason's word on the wire.
#[must_use]
pub const fn reason_word(reason: StaleReason) -> &'static str {
    match reason {
        StaleReason::SourceUnavailable => "source_unavailable",
        StaleReason::CacheUnavailable => "cache_unavailable",
        StaleReason::ProducerSilent => "producer_silent",
        StaleReason::Lagging => "lagging",
        StaleReason::Misplaced => "misplaced",
        StaleReason::HistoryLost => "history_lost",
        StaleReason::IncompleteHistory => "incomplete_history",
        StaleReason::Paused => "paused",
    }
}

/// Why events are missing between two positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// This connection drained too slowly.
    SlowConsumer,
    /// The log no longer has them.
    TooOld,
    /// They belong to a log that is no more.
    EpochChanged,
}

impl GapReason {
    /// Its word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SlowConsumer => "slow_consumer",
            Self::TooOld => "too_old",
            Self::EpochChanged => "epoch_changed",
        }
    }
}

/// Events that were not, and will not be, delivered. `dropped` where it is known.
pub fn gap(
    out: &mut Vec<u8>,
    channel: &Channel,
    from: &dyn Display,
    to: &dyn Display,
    dropped: Option<u64>,
    reason: GapReason,
) {
    op(out, "gap");
    text(out, "channel", channel);
    position(out, "from", from);
    position(out, "to", to);
    if let Some(dropped) = dropped {
        number(out, "dropped", dropped);
    }
    text(out, "reason", reason.as_str());
    out.push(b'}');
}

/// The last message of a connection.
pub fn bye(out: &mut Vec<u8>, code: CloseCode, reconnect_after_ms: Option<u64>) {
    op(out, "bye");
    text(out, "code", code.as_str());
    if let Some(after) = reconnect_after_ms {
        number(out, "reconnect_after_ms", after);
    }
    out.push(b'}');
}
