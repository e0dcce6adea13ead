//! When to try again what failed.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::upstream;

/// After the first failure …
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// … up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Until when nothing is tried, with the pauses of `upstream`. For what is no breaker's matter: a partition that can't be read while
/// its cluster answers others, or declines. While the cluster's breaker is open, its pauses hold and these do not.
pub(super) struct Backoff {
    until: Option<Instant>,
    pauses: upstream::Backoff,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            until: None,
            pauses: upstream::Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
        }
    }
}

impl Backoff {
    /// Nothing has failed since the last success.
    pub(super) const fn is_clear(&self) -> bool {
        self.until.is_none()
    }
    /// Something failed: the next try is later.
    pub(super) fn fail(&mut self) {
        // Without random numbers readers that failed together come back together, which is no reason to stop.
        let pause = self.pauses.pause(getrandom::u32().unwrap_or(0));
        self.until = Some(Instant::now() + pause);
    }
    /// Whether it is too early to try again.
    pub(super) fn waits(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now())
    }
    /// Returns when it is over.
    pub(super) async fn over(&self) {
        if let Some(until) = self.until {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_waits_after_a_failure_and_no_longer_than_it_should() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_clear() && !backoff.waits());
        for _ in 0..10 {
            backoff.fail();
            assert!(backoff.waits());
            let begun = Instant::now();
            backoff.over().await;
            assert!(begun.elapsed() <= BACKOFF_MAX + Duration::from_millis(1));
            assert!(!backoff.waits() && !backoff.is_clear());
        }
    }
}
