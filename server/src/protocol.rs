//! The wire contract: messages, codes, encode, decode.
//!
//! Does: reads what clients send ([`parse_client`]), writes what they are sent ([`mod@write`]), and names every code.
//! Owns: nothing. Never knows: sockets, clocks, who is connected. Keeps: I9. `docs/protocol.md` is its page, and
//! `tests/vectors` the examples that the server's and the client's tests both read.

mod client;
mod codes;
pub mod rfc6455;
pub mod write;

pub use client::{
    BadMessage, ClientMessage, Envelope, PublishMessage, StartFrom, Subscribe, parse_client,
};
pub use codes::{CloseCode, ErrorCode};

/// The WebSocket subprotocol, spoken also when none is asked for.
pub const SUBPROTOCOL: &str = "tidegate.v1.json";
/// Beside [`SUBPROTOCOL`], this prefix carries a token for clients that can't set a header.
pub const BEARER_SUBPROTOCOL: &str = "tidegate.bearer.";

/// How a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was missed follows.
    Resumed,
    /// The whole view follows, for this reason.
    Snapshot(SnapshotReason),
    /// Events from now on (or from the history that was asked for).
    Started,
    /// This node is not yet as far as the client; one `outcome` message will follow.
    CatchingUp,
}

/// Why a snapshot and not the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotReason {
    /// The client had nothing of it.
    New,
    /// Nobody remembers what followed the token.
    TooOld,
    /// The token is of a log that is no more.
    EpochChanged,
}

impl SnapshotReason {
    /// Its word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::TooOld => "too_old",
            Self::EpochChanged => "epoch_changed",
        }
    }
}

/// An error as a client is told of it. The log keeps the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable code.
    pub code: ErrorCode,
    /// Short text for people.
    pub message: String,
    /// When to try again; none when trying again is of no use.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal that trying again does not mend.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_ms: None,
        }
    }
    /// A refusal that passes.
    #[must_use]
    pub fn retry(code: ErrorCode, message: impl Into<String>, after_ms: u64) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_ms: Some(after_ms),
        }
    }
}
