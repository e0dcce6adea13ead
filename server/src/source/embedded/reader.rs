//! A node's reader of one partition of the embedded log, and what an operator may do to it.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    super::{Fetch, Source, SourceError},
    EmbeddedLog,
};
use crate::model::Offset;

/// What an operator may do to a node's reading of a stream, to see `stale`, `catching_up` and healing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hindrance {
    /// Fetches fail.
    pub paused: bool,
    /// Records are handed out only this long after the log took them.
    pub delay: Duration,
}

/// A node's reader of one partition.
pub struct EmbeddedSource {
    log: Arc<EmbeddedLog>,
    head: watch::Receiver<Offset>,
    hindrance: watch::Receiver<Hindrance>,
    wall_ms: Box<dyn Fn() -> i64 + Send + Sync>,
}

impl EmbeddedSource {
    /// A reader; `wall_ms` tells the time, by which a delay is measured.
    #[must_use]
    pub fn new(
        log: Arc<EmbeddedLog>,
        hindrance: watch::Receiver<Hindrance>,
        wall_ms: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            head: log.head.subscribe(),
            log,
            hindrance,
            wall_ms: Box::new(wall_ms),
        }
    }
}

/// Takes from a fetch what a delayed reader may not see yet. The head stays: so the reader knows that it is behind.
#[must_use]
pub fn delayed(mut fetch: Fetch, after: Option<Offset>, delay: Duration, now_ms: i64) -> Fetch {
    let newest = now_ms.saturating_sub(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX));
    let seen = fetch
        .records
        .partition_point(|record| record.append_time_ms <= newest);
    if seen < fetch.records.len() {
        fetch.records.truncate(seen);
        fetch.upto = fetch
            .records
            .last()
            .map_or(after.unwrap_or(fetch.start), |record| record.offset);
    }
    fetch
}

impl Source for EmbeddedSource {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        let hindrance = *self.hindrance.borrow_and_update();
        if hindrance.paused {
            return Err(SourceError::Paused);
        }
        self.log.expire((self.wall_ms)());
        self.head.borrow_and_update();
        let fetch = self.log.read(after, bytes)?;
        Ok(if hindrance.delay.is_zero() {
            fetch
        } else {
            delayed(fetch, after, hindrance.delay, (self.wall_ms)())
        })
    }

    async fn changed(&mut self) {
        let delay = self.hindrance.borrow().delay;
        // An error means that the log or the operator's end is gone: the caller's own timer goes on.
        tokio::select! {
            biased;
            changed = self.hindrance.changed() => if changed.is_err() { std::future::pending().await },
            changed = self.head.changed(), if delay.is_zero() => if changed.is_err() { std::future::pending().await },
            () = tokio::time::sleep(delay.min(Duration::from_millis(50))), if !delay.is_zero() => {}
        }
    }
}
