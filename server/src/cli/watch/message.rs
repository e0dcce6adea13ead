//! What the gateway says, as far as a watcher listens: `docs/protocol.md` has all of it.
//!
//! Does: names the fields. Owns: nothing. Never knows: what they mean together.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Any message: each has some of these.
#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) id: Option<u64>,
    pub(super) ok: Option<Answer>,
    pub(super) error: Option<Fault>,
    pub(super) op: Option<String>,
    pub(super) outcome: Option<String>,
    pub(super) position: Option<String>,
    pub(super) part: Option<u64>,
    #[serde(default)]
    pub(super) more: bool,
    pub(super) rows: Option<BTreeMap<String, SnapshotRow>>,
    pub(super) row: Option<String>,
    pub(super) ts: Option<i64>,
    pub(super) data: Option<Box<RawValue>>,
    #[serde(default)]
    pub(super) deleted: bool,
    pub(super) state: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) age_ms: Option<u64>,
    pub(super) proved_at_ms: Option<u64>,
    pub(super) now_ms: Option<u64>,
    pub(super) heartbeat_ms: Option<u64>,
    pub(super) live_for_ms: Option<u64>,
    pub(super) dropped: Option<u64>,
    pub(super) reconnect_after_ms: Option<u64>,
}

/// What was asked for begins.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) outcome: Option<String>,
}

/// What was asked for is refused.
#[derive(Deserialize)]
pub(super) struct Fault {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
    pub(super) retry_after_ms: Option<u64>,
}

/// One row of a snapshot.
#[derive(Deserialize)]
pub(super) struct SnapshotRow {
    pub(super) ts: i64,
    /// None where the partition has deleted it.
    pub(super) data: Option<Box<RawValue>>,
}
