//! The node's clocks, so that no other room asks the system for the time.
//!
//! Does: tells monotonic moments since the node started, and wall time for records and tokens. Owns: the node's start.
//! Never knows: what the time is for. The pure rooms get a [`Moment`] as an argument (I9).

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::model::Moment;

/// Cheap to copy; all copies tell the same time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }
    /// Monotonic time since the start. Never [`Moment::default`], so that a moment of zero is before everything.
    #[must_use]
    pub fn now(&self) -> Moment {
        let micros = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Moment::from_micros(micros.saturating_add(1))
    }
    /// The instant of a moment, for timers.
    #[must_use]
    pub fn instant(&self, moment: Moment) -> Instant {
        self.start + moment.since(Moment::default())
    }
    /// Milliseconds since 1970.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }
    /// Seconds since 1970.
    #[must_use]
    pub fn wall_s(&self) -> u64 {
        u64::try_from(self.wall_ms() / 1000).unwrap_or(0)
    }
}
