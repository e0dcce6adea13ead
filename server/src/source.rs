//! Where records come from.
//!
//! Does: yields the ordered records of one partition from a position, and the head, and whether a fetch succeeded; proves
//! continuity at every start. Owns: the connection to the stream's engine. Never knows: views, sockets, wire formats.
//! Keeps: I2 (a worker never reads a source) and, with the epoch it reports, I5.

mod assignment;
mod backoff;
pub mod compaction;
pub mod durable;
pub mod embedded;
pub mod hindered;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod log;
pub mod poisons;
mod recent;
pub mod redis;

use std::{future::Future, sync::Arc, time::Duration};

pub use assignment::Assignment;
pub use recent::Recent;

use crate::model::{Epoch, Offset, Record, StaleReason};

/// When a fetch was sent and answered, in milliseconds since 1970 by the node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAt {
    /// Its request left.
    pub sent_ms: i64,
    /// Its answer was here.
    pub answered_ms: i64,
}

/// What one successful fetch says.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The log's identity.
    pub epoch: Epoch,
    /// Just before the earliest record that the log still has.
    pub start: Offset,
    /// The records, in order.
    pub records: Vec<Record>,
    /// Everything up to here has been read, holes included.
    pub upto: Offset,
    /// The newest offset of the log when it answered.
    pub head: Offset,
    /// When that was; none of a log that is never compacted.
    pub when: Option<ReadAt>,
    /// What proves to whoever goes on from `upto` that the log still is the one in which it was read: the source's own word, for
    /// [`Source::resume`]. None where it needs none, or has read nothing yet.
    pub lineage: Option<Lineage>,
}

/// A source's own word for where in a log's history something was read.
pub type Lineage = Arc<str>;

/// From where on a log is wanted by somebody who does not need all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What the log took within this time …
    pub age: Duration,
    /// … and, though it is older, what follows this …
    pub behind: Option<Offset>,
    /// … among so many of the newest offsets.
    pub newest: u64,
}

/// Why a fetch did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The engine does not answer.
    #[error("the source does not answer")]
    Unavailable,
    /// An operator paused it.
    #[error("the source is paused by an operator")]
    Paused,
    /// The stream's rule is to stop at a record that means nothing, and this is one.
    #[error("the partition stops at a record that means nothing")]
    Halted,
    /// A record that means nothing is to be in the dead-letter topic before it is passed over, and is not yet.
    #[error("a record that means nothing is not in the dead-letter topic yet")]
    Unquarantined,
}

impl SourceError {
    /// What subscribers are told.
    #[must_use]
    pub const fn reason(self) -> StaleReason {
        match self {
            Self::Unavailable | Self::Unquarantined => StaleReason::SourceUnavailable,
            Self::Paused | Self::Halted => StaleReason::Paused,
        }
    }
}

/// One partition of a stream, as a partition's task reads it. Nothing has a default: whoever reads through another one must pass
/// everything on.
pub trait Source: Send + 'static {
    /// Fetches what follows `after`, or, without it, from the earliest record on; at most about `bytes`.
    ///
    /// # Errors
    /// [`SourceError`], all of them transient: the caller asks again.
    fn fetch(
        &mut self,
        after: Option<Offset>,
        bytes: usize,
    ) -> impl Future<Output = Result<Fetch, SourceError>> + Send;

    /// The next fetch is asked for what follows `at`, up to where somebody else has read this log. It proves that the log still
    /// holds what was read up to there; where it does not, its answer has another epoch.
    fn resume(&mut self, epoch: &Epoch, at: Offset, lineage: Option<&str>);

    /// Where a reader begins that wants no more than this: behind this offset. None: at the earliest record. What was read before
    /// is proven to be still in the log, or the next fetch's answer has another epoch.
    ///
    /// # Errors
    /// The same as those of a fetch.
    fn begin(
        &mut self,
        wanted: Wanted,
    ) -> impl Future<Output = Result<Option<Offset>, SourceError>> + Send;

    /// Whether it can be read, as far as that is known without reading.
    ///
    /// # Errors
    /// The same as those of a fetch.
    fn look(&mut self) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Nobody reads it for now: it lets go of its connections, and of nothing that proves continuity.
    fn rest(&mut self);

    /// Why the last fetch failed, in words for operators; none where the error says it all.
    fn failure(&self) -> Option<String>;

    /// Another reader of the same log, for what was missed; none where nothing is ever missed.
    fn another(&self) -> Option<Self>
    where
        Self: Sized;

    /// Returns when there may be more than the last fetch saw. Cancel safe.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}
