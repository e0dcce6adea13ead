//! How long to wait before the next try: doubling, capped, never the same on two nodes.

use std::time::Duration;

/// Pauses that double from the shortest to the longest. Each is taken between its half and its whole by chance, so that
/// nodes that failed together do not come back together; so the longest is never exceeded, and none is zero.
///
/// For loops that must ask again after something that no breaker counts (a callee that declines); a breaker has its own.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// From the shortest pause (a millisecond at least) to the longest.
    #[must_use]
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        let shortest = shortest.max(Duration::from_millis(1));
        Self {
            shortest,
            longest: longest.max(shortest),
            next: shortest,
        }
    }

    /// The next pause; `chance` is any number, another one each time.
    #[must_use]
    pub fn pause(&mut self, chance: u32) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        let half = whole / 2;
        half + half.mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }

    /// It went well: the next pause is the shortest again.
    pub const fn reset(&mut self) {
        self.next = self.shortest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::new(50 * MS, 1000 * MS);
        let longest: Vec<_> = (0..7).map(|_| backoff.pause(u32::MAX)).collect();
        assert_eq!(
            longest,
            [50, 100, 200, 400, 800, 1000, 1000].map(|n| n * MS)
        );
        backoff.reset();
        let shortest: Vec<_> = (0..6).map(|_| backoff.pause(0)).collect();
        assert_eq!(shortest, [25, 50, 100, 200, 400, 500].map(|n| n * MS));
    }

    #[test]
    fn no_bounds_make_a_loop_hot() {
        let mut backoff = Backoff::new(Duration::ZERO, Duration::ZERO);
        assert_eq!(backoff.pause(0), MS / 2);
        assert_eq!(backoff.pause(u32::MAX), MS);
    }
}
