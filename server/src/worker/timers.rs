//! What the wheel fires.

use super::{Key, Outside, Pick, Sockets, TICK, Timer, Worker, connection::Closing};
use crate::{model::Moment, protocol::CloseCode, session::Phase};
use std::time::Duration;

/// Who is told goodbye comes back after so long at the earliest, in milliseconds.
pub(super) const RECONNECT_MS: u64 = 1000;

/// How a connection is closed on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// Why.
    pub code: CloseCode,
    /// When it may come back, where it may.
    pub reconnect_after_ms: Option<u64>,
    /// Whether many come back apart from each other.
    pub apart: bool,
}

impl Farewell {
    /// By an operator: not to come back.
    pub const FOR_GOOD: Self = Self {
        code: CloseCode::Closed,
        reconnect_after_ms: None,
        apart: false,
    };
    /// Its key no longer grants what it granted: to come back with a token that holds.
    pub const REVOKED: Self = Self {
        code: CloseCode::TokenExpired,
        reconnect_after_ms: Some(0),
        apart: true,
    };
}

/// Up to four seconds, by the golden ratio: neighbours come back far apart.
fn spread(key: Key) -> u64 {
    (u64::from(key.index()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 4000
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    pub(super) fn fire(&mut self, now: Moment) {
        self.now = now;
        let mut fired = Vec::new();
        self.wheel.fire(now, &mut fired);
        for timer in fired {
            self.on_timer(timer, now);
        }
    }

    fn on_timer(&mut self, timer: Timer, now: Moment) {
        match timer {
            Timer::Tick => {
                self.look_at_freshness(now);
                self.look_at_talk(now);
                self.go_round(now);
                self.wheel.add(now.plus(TICK), Timer::Tick);
            }
            Timer::Beat(number, life) => {
                if self
                    .channels
                    .get(number)
                    .is_some_and(|channel| channel.life == life)
                {
                    self.beat(number, now);
                    self.wheel
                        .add(now.plus(self.settings.heartbeat), Timer::Beat(number, life));
                }
            }
            Timer::Auth(key) => {
                if self
                    .connections
                    .get(key)
                    .is_some_and(|connection| connection.phase == Phase::Waiting)
                {
                    self.say_goodbye(key, CloseCode::AuthTimeout, None);
                }
            }
            Timer::Rate(key) => self.look_at_rate(key, now),
            Timer::Flush(key) => {
                if let Some(cold) = self.connections.cold(key) {
                    cold.flush_timer = None;
                    self.touch(key);
                }
            }
            Timer::Linger(key) => self.close(key, CloseCode::Normal),
            Timer::Bye(key, reconnect_after_ms) => {
                self.say_goodbye(key, CloseCode::Restart, Some(reconnect_after_ms))
            }
            Timer::RetryLane(lane_no) => self.retry_lane(lane_no),
            Timer::Retry(key) => {
                if let Some(cold) = self.connections.cold(key) {
                    cold.lines
                        .iter_mut()
                        .for_each(|line| line.retry_later = false);
                    self.touch(key);
                }
            }
        }
    }

    /// A connection for which something waits must drain a minimal rate; it is never closed for the size of what waits.
    fn look_at_rate(&mut self, key: Key, now: Moment) {
        let (minimum, over) = (self.settings.drain_bytes, self.settings.drain_over);
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        let (drained, caught_up) = (
            std::mem::take(&mut cold.drained),
            std::mem::take(&mut cold.caught_up),
        );
        cold.watched = false;
        if !cold.is_blocked() && cold.rest.is_empty() {
            return;
        }
        // Whoever had nothing waiting at any time in the window is no slow consumer.
        if drained < minimum && !caught_up {
            tracing::debug!(session = %self.session_name(key), drained, "slow consumer");
            return self.close(key, CloseCode::SlowConsumer);
        }
        cold.watched = true;
        self.wheel.add(now.plus(over), Timer::Rate(key));
    }

    /// Tells everybody to come back elsewhere, spread over `window`; whoever is left after it is told at once.
    pub fn drain(&mut self, now: Moment, window: Duration) {
        self.draining = true;
        let keys: Vec<Key> = self.connections.keys().collect();
        let count = u32::try_from(keys.len().max(1)).unwrap_or(u32::MAX);
        for (at, key) in (0u32..).zip(keys) {
            let due = now.plus(window * at / count);
            self.wheel
                .add(due, Timer::Bye(key, RECONNECT_MS + spread(key)));
        }
    }

    /// Closes what is picked; tells how many. Who is closing already is not counted.
    pub fn close_picked(&mut self, pick: &Pick, farewell: Farewell) -> usize {
        let keys: Vec<Key> = self.picked(pick).collect();
        let open = |worker: &Self, key: Key| {
            let connection = worker.connections.peek(key);
            connection.is_some_and(|connection| connection.phase != Phase::Closing)
        };
        let keys: Vec<Key> = keys.into_iter().filter(|&key| open(self, key)).collect();
        for &key in &keys {
            self.farewell(key, farewell);
        }
        keys.len()
    }

    /// Says goodbye so; many at once come back apart.
    pub(super) fn farewell(&mut self, key: Key, farewell: Farewell) {
        let after = farewell.reconnect_after_ms;
        let apart = u64::from(farewell.apart) * spread(key);
        self.say_goodbye(key, farewell.code, after.map(|after| after + apart));
    }

    /// Ends every connection that is still there, with what its socket takes at once.
    pub fn end_all(&mut self, now: Moment) {
        let keys: Vec<Key> = self.connections.keys().collect();
        for key in keys {
            let lingering = self.connections.get(key).is_some_and(|connection| {
                connection
                    .cold
                    .as_ref()
                    .is_some_and(|cold| cold.closing == Some(Closing::Lingering))
            });
            if !lingering {
                self.close_with(key, CloseCode::Restart, "draining", now);
            }
            self.close(key, CloseCode::Restart);
        }
    }
}
