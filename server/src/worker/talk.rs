//! What a client says: how much of it asks for nothing but an answer, and how long a message takes.
//!
//! Pings and refused messages cost a connection its own allowance, and whoever uses it up is closed; subscribing has another,
//! and is refused beyond it. Both are remembered only of those who said something lately, so that a silent connection costs
//! nothing. A message that has begun must be whole in time.

use std::{collections::HashMap, time::Duration};

use super::{Key, Outside, Sockets, Worker};
use crate::{
    model::Moment,
    protocol::{CloseCode, ErrorCode, Refusal},
    session::Phase,
};

/// A message that can't be read costs this much more for each such piece of it.
const PIECE_BYTES: usize = 4096;

/// A rate: a bucket of `burst`, of which one comes back every `every`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// One each.
    pub every: Duration,
    /// So many at once.
    pub burst: u32,
}

impl Rate {
    /// A rate of so many a second.
    #[must_use]
    pub fn per_second(rate: std::num::NonZeroU32, burst: u32) -> Self {
        Self {
            every: Duration::from_secs(1) / rate.get(),
            burst: burst.max(rate.get()),
        }
    }

    /// Takes `cost` from the bucket that is full again at `full_at`; else tells how long until there is as much in it.
    fn take(self, full_at: &mut Moment, cost: u32, now: Moment) -> Result<(), Duration> {
        let after = (*full_at).max(now).plus(self.every * cost);
        let (owed, most) = (after.since(now), self.every * self.burst);
        if owed > most {
            return Err(owed - most);
        }
        *full_at = after;
        Ok(())
    }
}

/// So many refused messages of one array cost as much as one alone.
const ARRAY_REFUSALS: u64 = 32;

/// When a connection's buckets are full again.
#[derive(Clone, Copy, Debug, Default)]
struct Talker {
    messages: Moment,
    subscribes: Moment,
}

/// Those who said something lately.
#[derive(Debug, Default)]
pub(super) struct Talkers(HashMap<u64, Talker>);

impl Talkers {
    /// Forgets those whose buckets are full.
    fn forget(&mut self, now: Moment) {
        self.0
            .retain(|_, talker| talker.messages > now || talker.subscribes > now);
        if self.0.capacity() > 1024 + 4 * self.0.len() {
            self.0.shrink_to_fit();
        }
    }
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Takes from a connection's allowance of messages that ask for nothing but an answer, and closes whoever has used it
    /// up. Tells whether it may be answered.
    pub(super) fn charge(&mut self, key: Key, cost: u32, now: Moment) -> bool {
        let open = |phase| phase != Phase::Closing;
        let Some(connection) = self.connections.get(key) else {
            return false;
        };
        if !open(connection.phase) {
            return false;
        }
        let Some(rate) = self.settings.messages else {
            return true;
        };
        let talker = self.talkers.0.entry(key.number()).or_default();
        if rate.take(&mut talker.messages, cost, now).is_ok() {
            return true;
        }
        tracing::debug!(session = %self.session_name(key), "too many messages");
        let reason = "more pings and refused messages than limits.messages_per_second";
        self.close_with(key, CloseCode::RateLimited, reason, now);
        false
    }

    /// What a message that can't be read costs beside its answer: as much as it was.
    pub(super) fn charge_unread(&mut self, key: Key, bytes: usize, now: Moment) -> bool {
        let cost = u32::try_from(bytes / PIECE_BYTES).unwrap_or(u32::MAX);
        cost == 0 || self.charge(key, cost, now)
    }

    /// What an array costs of which so many messages were refused: it came as one, and the largest must not end the connection.
    pub(super) fn charge_array(&mut self, key: Key, refused: u64, now: Moment) {
        if refused > 0 {
            let cost = refused.div_ceil(ARRAY_REFUSALS);
            self.charge(key, u32::try_from(cost).unwrap_or(u32::MAX), now);
        }
    }

    /// Whether a connection may subscribe once more now.
    pub(super) fn may_subscribe(&mut self, key: Key, now: Moment) -> Result<(), Refusal> {
        let Some(rate) = self.settings.subscribes else {
            return Ok(());
        };
        let talker = self.talkers.0.entry(key.number()).or_default();
        rate.take(&mut talker.subscribes, 1, now).map_err(|wait| {
            Refusal::retry(
                ErrorCode::RateLimited,
                "limits.subscribes_per_second is reached",
                super::millis(wait).max(1),
            )
        })
    }

    /// Notes whether a message has begun that is not whole; `finished`: another one was, in the same bytes.
    pub(super) fn note_unfinished(&mut self, key: Key, finished: bool, now: Moment) {
        let Some(cold) = self
            .connections
            .get(key)
            .and_then(|connection| connection.cold.as_mut())
        else {
            return;
        };
        if cold.partial.is_none() {
            cold.message_since = None;
        } else if finished || cold.message_since.is_none() {
            cold.message_since = Some(now);
            self.unfinished.push(key);
        }
    }

    /// Closes those who hold most, until so many bytes are free; gives how many connections that were. They may resume.
    pub fn shed(&mut self, bytes: usize) -> usize {
        let mut keys = self.blocked.clone();
        keys.extend_from_slice(&self.unfinished);
        keys.sort_unstable();
        keys.dedup();
        let held = |key: Key| {
            let connection = self.connections.peek(key)?;
            let cold = connection.cold.as_ref()?;
            let partial = cold
                .partial
                .as_ref()
                .map_or(0, |partial| partial.held_bytes());
            Some((cold.waiting_bytes() + partial, key))
        };
        let mut largest: Vec<_> = keys.into_iter().filter_map(held).collect();
        largest.sort_unstable();
        let (mut freed, mut closed) = (0, 0);
        while freed < bytes
            && let Some((held, key)) = largest.pop()
        {
            freed += held;
            closed += 1;
            self.close(key, CloseCode::SlowConsumer);
        }
        closed
    }

    /// At every tick: forgets who is at rest, and closes whose message takes too long.
    pub(super) fn look_at_talk(&mut self, now: Moment) {
        self.talkers.forget(now);
        self.unfinished.sort_unstable();
        self.unfinished.dedup();
        let (mut late, patience) = (Vec::new(), self.settings.message_timeout);
        let mut bytes = 0;
        let connections = &mut self.connections;
        self.unfinished.retain(|&key| {
            let connection = connections
                .get(key)
                .filter(|connection| connection.phase != Phase::Closing);
            let cold = connection.and_then(|connection| connection.cold.as_ref());
            let Some((since, held)) = cold.and_then(|cold| {
                let held = cold
                    .partial
                    .as_ref()
                    .map_or(0, |partial| partial.held_bytes());
                cold.message_since.map(|since| (since, held))
            }) else {
                return false;
            };
            bytes += held;
            let over = now.since(since) >= patience;
            if over {
                late.push(key);
            }
            !over
        });
        self.counts.inbox_bytes.set(bytes as u64);
        for key in late {
            let reason = "a message was not whole within limits.message_timeout";
            self.close_with(key, CloseCode::TooSlow, reason, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::default().plus(Duration::from_millis(ms))
    }

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let rate = Rate::per_second(10.try_into().unwrap(), 20);
        let mut full_at = Moment::default();
        let mut take = |cost, ms| rate.take(&mut full_at, cost, at(ms));
        assert_eq!(take(20, 1000), Ok(()));
        assert_eq!(take(1, 1000), Err(Duration::from_millis(100)));
        assert_eq!(take(1, 1050), Err(Duration::from_millis(50)));
        assert_eq!(take(1, 1100), Ok(()));
        assert_eq!(take(20, 3099), Err(Duration::from_millis(1)));
        assert_eq!(take(20, 3100), Ok(()));
        assert_eq!(take(21, 60_000), Err(Duration::from_millis(100)));
    }

    #[test]
    fn who_is_at_rest_is_forgotten() {
        let mut talkers = Talkers::default();
        for key in 0..100 {
            talkers.0.entry(key).or_default().messages = at(key);
        }
        talkers.forget(at(50));
        assert_eq!(talkers.0.len(), 49);
    }
}
