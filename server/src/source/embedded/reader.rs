//! A node's reader of one partition of the embedded log.

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    super::{Fetch, Source, SourceError},
    EmbeddedLog,
};
use crate::{clock::Clock, model::Offset};

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

    async fn changed(&mut self) {
        if self.head.changed().await.is_err() {
            // The log is gone: the caller's own timer goes on.
            std::future::pending().await
        }
    }
}
