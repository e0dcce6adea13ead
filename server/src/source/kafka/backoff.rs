//! When to try again what failed: a little later each time, and never all at once.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// After the first failure; doubled by each that follows …
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// … up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// When to try again.
#[derive(Default)]
pub(super) struct Backoff {
    until: Option<Instant>,
    wait: Duration,
}

impl Backoff {
    /// Nothing has failed since the last success.
    pub(super) const fn is_clear(&self) -> bool {
        self.until.is_none()
    }
    /// Something failed: the next try is later.
    pub(super) fn fail(&mut self) {
        self.wait = (self.wait * 2).clamp(BACKOFF_MIN, BACKOFF_MAX);
        // Readers of many partitions that fail together must not come back together.
        let jitter = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        self.until = Some(Instant::now() + self.wait.mul_f64(0.5 + jitter / 2.0));
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
    async fn it_waits_longer_each_time_up_to_a_bound() {
        let mut backoff = Backoff::default();
        assert!(backoff.is_clear() && !backoff.waits());
        let mut longest = Duration::ZERO;
        for _ in 0..10 {
            backoff.fail();
            assert!(backoff.waits());
            let begun = Instant::now();
            backoff.over().await;
            longest = longest.max(begun.elapsed());
            assert!(!backoff.waits() && !backoff.is_clear());
        }
        assert!(longest >= BACKOFF_MAX / 2 && longest <= BACKOFF_MAX + Duration::from_millis(1));
    }
}
