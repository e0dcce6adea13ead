//! A node's reader of one partition of the embedded log.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    super::{Fetch, Source, SourceError, Wanted},
    EmbeddedLog,
};
use crate::{
    clock::Clock,
    model::{Epoch, Offset},
};

/// A node's reader of one partition.
pub struct EmbeddedSource {
    log: Arc<EmbeddedLog>,
    head: watch::Receiver<Offset>,
    clock: Clock,
}

impl EmbeddedSource {
    /// A reader; by the clock, rows expire whose time is over.
    #[must_use]
    pub fn new(log: Arc<EmbeddedLog>, clock: Clock) -> Self {
        Self {
            head: log.head.subscribe(),
            log,
            clock,
        }
    }
}

impl Source for EmbeddedSource {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        self.log.expire(self.clock.wall_ms());
        self.head.borrow_and_update();
        self.log.read(after, bytes)
    }

    /// It is here, and one and the same.
    fn resume(&mut self, _: &Epoch, _: Offset, _: Option<&str>) {}

    async fn begin(&mut self, _: Wanted) -> Result<Option<Offset>, SourceError> {
        Ok(None)
    }

    async fn look(&mut self) -> Result<(), SourceError> {
        Ok(())
    }

    fn rest(&mut self) {}

    fn failure(&self) -> Option<String> {
        None
    }

    fn another(&self) -> Option<Self> {
        None
    }

    async fn changed(&mut self) {
        if self.head.changed().await.is_err() {
            // The log is gone: the caller's own timer goes on.
            std::future::pending().await
        }
    }
}
