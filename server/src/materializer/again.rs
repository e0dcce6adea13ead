//! When a fold that was too slow is tried anew: after pauses that double, until one is quick enough.

use std::time::Duration;

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The pauses of one partition.
#[derive(Clone, Copy, Debug)]
pub(super) struct Again {
    shortest: Duration,
    pause: Duration,
    at_ms: i64,
}

impl Again {
    /// A first pause begins now.
    pub(super) fn new(shortest: Duration, now_ms: i64) -> Self {
        Self {
            shortest,
            pause: shortest,
            at_ms: after(now_ms, shortest),
        }
    }
    /// A fold has ended.
    pub(super) fn ended(&mut self, too_slow: bool, now_ms: i64) {
        self.at_ms = after(now_ms, self.pause);
        let doubled = self.pause.saturating_mul(2).min(LONGEST.max(self.shortest));
        self.pause = if too_slow { doubled } else { self.shortest };
    }
    /// Whether the pause is over.
    pub(super) const fn is_due(&self, now_ms: i64) -> bool {
        now_ms >= self.at_ms
    }
}

fn after(now_ms: i64, pause: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(pause.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_a_fold_is_quick_enough() {
        let mut again = Again::new(Duration::from_millis(10), 0);
        assert!(!again.is_due(9) && again.is_due(10));
        for (ended, pause) in [(100, 10), (200, 20), (300, 40)] {
            again.ended(true, ended);
            assert!(!again.is_due(ended + pause - 1) && again.is_due(ended + pause));
        }
        again.ended(false, 400);
        again.ended(true, 500);
        assert!(!again.is_due(509) && again.is_due(510));
        let mut long = Again::new(LONGEST, i64::MAX - 1);
        long.ended(true, i64::MAX);
        assert!(!long.is_due(i64::MAX - 1));
    }
}
