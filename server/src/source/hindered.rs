//! What an operator may do to a node's reading of a stream, for sources that know nothing of operators.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    Fetch, Source, SourceError,
    embedded::{Hindrance, delayed},
};
use crate::{clock::Clock, model::Offset};

/// A source, and the operator's hand on it.
pub struct Hindered<S> {
    source: S,
    hindrance: watch::Receiver<Hindrance>,
    clock: Clock,
}

impl<S: Source> Hindered<S> {
    /// Puts the hand on a source.
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
