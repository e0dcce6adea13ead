//! What an operator may do to a node's reading of a stream, whatever its source.

use std::time::Duration;

use tokio::sync::watch;

use super::{Fetch, Source, SourceError, Wanted};
use crate::{
    clock::Clock,
    model::{Epoch, Offset},
};

/// What an operator may do to a node's reading of a stream, to see `stale`, `catching_up` and healing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hindrance {
    /// Fetches fail.
    pub paused: bool,
    /// Records are handed out only this long after the log took them.
    pub delay: Duration,
}

/// A source, and the operator's hand on it.
pub struct Hindered<S> {
    source: S,
    hindrance: watch::Receiver<Hindrance>,
    clock: Clock,
}

impl<S: Source> Hindered<S> {
    /// Puts the hand on a source; by the clock a delay is measured.
    pub const fn new(source: S, hindrance: watch::Receiver<Hindrance>, clock: Clock) -> Self {
        Self {
            source,
            hindrance,
            clock,
        }
    }
}

impl<S: Source> Source for Hindered<S> {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        let hindrance = *self.hindrance.borrow_and_update();
        if hindrance.paused {
            return Err(SourceError::Paused);
        }
        let fetch = self.source.fetch(after, bytes).await?;
        Ok(if hindrance.delay.is_zero() {
            fetch
        } else {
            delayed(fetch, after, hindrance.delay, self.clock.wall_ms())
        })
    }

    fn resume(&mut self, epoch: &Epoch, at: Offset, lineage: Option<&str>) {
        self.source.resume(epoch, at, lineage);
    }

    async fn begin(&mut self, wanted: Wanted) -> Result<Option<Offset>, SourceError> {
        if self.hindrance.borrow_and_update().paused {
            return Err(SourceError::Paused);
        }
        self.source.begin(wanted).await
    }

    async fn look(&mut self) -> Result<(), SourceError> {
        self.source.look().await
    }

    fn rest(&mut self) {
        self.source.rest();
    }

    fn failure(&self) -> Option<String> {
        let paused = self.hindrance.borrow().paused;
        (!paused).then(|| self.source.failure()).flatten()
    }

    fn another(&self) -> Option<Self> {
        Some(Self {
            source: self.source.another()?,
            hindrance: self.hindrance.clone(),
            clock: self.clock,
        })
    }

    async fn changed(&mut self) {
        let delay = self.hindrance.borrow().delay;
        // An error means that the operator's end is gone: the caller's own timer goes on.
        tokio::select! {
            biased;
            changed = self.hindrance.changed() => if changed.is_err() { std::future::pending().await },
            () = self.source.changed(), if delay.is_zero() => {}
            () = tokio::time::sleep(delay.min(Duration::from_millis(50))), if !delay.is_zero() => {}
        }
    }
}

/// Takes from a fetch what a delayed reader may not see yet. The head stays: so the reader knows that it is behind.
pub(super) fn delayed(
    mut fetch: Fetch,
    after: Option<Offset>,
    delay: Duration,
    now_ms: i64,
) -> Fetch {
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
        fetch.lineage = None;
    }
    fetch
}
