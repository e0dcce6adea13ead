//! The node's streams: what a room that has a channel's name needs to reach its partitions.
//!
//! Does: finds a stream by name, and a channel's partitions in it. Owns: the handles, not the tasks behind them. Never
//! knows: connections. The map is small and read at subscribing and publishing, never per update.

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use dashmap::DashMap;
use tokio::sync::{mpsc, watch};

use crate::{
    decode::{Said, TimePart},
    model::{Channel, Generations, Mode, Placement, Policy, Token},
    partition::{Misplaced, ViewsHeld, resume::From, tail::Tail, task::Request},
    protocol::{ErrorCode, Refusal},
    source::{hindered::Hindrance, log::Log, poisons::Poisons},
    telemetry::CanaryCounts,
};

pub use crate::model::partition_of;

/// One partition, as workers reach it.
#[derive(Clone, Debug)]
pub struct PartitionHandle {
    /// Its newest updates.
    pub tail: Arc<Tail>,
    /// What its task is asked. Bounded: when it is full, the asker is told to come back.
    pub requests: mpsc::Sender<Request>,
    /// Where records of this partition are appended.
    pub log: Log,
    /// What its views hold.
    pub held: ViewsHeld,
}

/// What of a stream may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// A proof older than this is no longer live.
    pub freshness_slo: Duration,
    /// A healthy log is stale without a record for so long.
    pub expect_every: Option<Duration>,
    /// What a line does whose socket takes no more, unless its subscription says otherwise.
    pub policy: Policy,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// Its name.
    pub name: String,
    /// View or events.
    pub mode: Mode,
    /// How records are placed.
    pub placement: Placement,
    /// How many partitions it has had, and has.
    pub generations: Generations,
    /// Whether others may give it more partitions than this node knows.
    pub may_grow: bool,
    /// What may change while it runs.
    pub options: ArcSwap<StreamOptions>,
    /// Its partitions.
    pub partitions: Vec<PartitionHandle>,
    /// Channels whose records were found in partitions where they do not belong.
    pub misplaced: Arc<Misplaced>,
    /// What an operator does to this node's reading.
    pub hindrance: watch::Sender<Hindrance>,
    /// What this node's readers do with records that mean nothing.
    pub poisons: Arc<Poisons>,
    /// Where its records say when it happened; none: nowhere.
    pub event_time: Option<TimePart>,
    /// What is measured by records of the node's own.
    pub canary: Arc<CanaryCounts>,
}

impl Stream {
    /// What holds now.
    #[must_use]
    pub fn options(&self) -> Guard<Arc<StreamOptions>> {
        self.options.load()
    }

    /// The same, grown: with these partitions behind those that it has, which go on as they are.
    #[must_use]
    pub fn grown(&self, generations: Generations, later: Vec<PartitionHandle>) -> Self {
        Self {
            name: self.name.clone(),
            mode: self.mode,
            placement: self.placement,
            generations,
            may_grow: self.may_grow,
            options: ArcSwap::new(self.options.load_full()),
            partitions: self.partitions.iter().cloned().chain(later).collect(),
            misplaced: self.misplaced.clone(),
            hindrance: self.hindrance.clone(),
            poisons: self.poisons.clone(),
            event_time: self.event_time.clone(),
            canary: self.canary.clone(),
        }
    }

    /// Whether it is this one, or what this one has grown into.
    #[must_use]
    pub fn is_or_was(&self, before: &Self) -> bool {
        let first = |stream: &Self| stream.partitions.first().map(|one| one.tail.clone());
        let (here, there) = (first(self), first(before));
        let same = here.zip(there).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b));
        same && self.partitions.len() >= before.partitions.len()
    }

    /// The partitions in which a channel's records are: of one that has moved, where it was before, oldest first, and where it is.
    #[must_use]
    pub fn partitions_of(&self, channel: &Channel) -> Vec<u32> {
        match self.placement {
            Placement::ByChannel => self.generations.homes(channel).collect(),
            Placement::Spread => (0..self.count()).collect(),
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.partitions.len()).unwrap_or(u32::MAX)
    }

    /// Whether a token names a partition that this node does not know, and others may.
    #[must_use]
    pub fn is_behind(&self, token: &Token) -> bool {
        let mut positions = token.positions().iter();
        self.may_grow && positions.any(|position| position.partition >= self.count())
    }

    /// Where a subscriber begins in a partition of which it brings no position, but a token of others: rows come whole. Events that
    /// were written where the channel has moved to, while he was away, are not passed over.
    #[must_use]
    pub fn beginning(&self, partition: u32, token: &Token) -> From {
        let moved = self.placement == Placement::ByChannel && self.generations.is_later(partition);
        let knows_others = !token.positions().is_empty();
        if self.mode == Mode::Events && moved && knows_others {
            From::Earliest
        } else {
            From::Now
        }
    }

    /// When it happened, as a record says that goes into a log of this process, whose rows are folded as they come; none where
    /// that is not said by records, or where whoever reads them finds it.
    #[must_use]
    pub fn own_time(&self, key: &[u8], value: Option<&[u8]>) -> Option<Said> {
        let is_own = self.partitions.first()?.log.embedded().is_some();
        let time = self.event_time.as_ref().filter(|_| is_own)?;
        Some(time.read(key, value))
    }

    /// Whether a subscription may be begun so.
    ///
    /// # Errors
    /// `bad_option`, or `bad_token` for a token that names partitions which this stream does not have.
    pub fn check(
        &self,
        policy: Option<Policy>,
        max_rate: Option<f64>,
        token: Option<&Token>,
        from: &From,
    ) -> Result<(), Refusal> {
        let bad = |message: &str| Err(Refusal::new(ErrorCode::BadOption, message));
        match (self.mode, policy, from) {
            (Mode::View, Some(Policy::DropOldest), _) => {
                return bad("drop_oldest is for events: of a view it would lose rows");
            }
            (Mode::View, _, From::Earliest | From::History(_)) => {
                return bad("earliest and history are for events: a view comes whole");
            }
            (Mode::Events, Some(Policy::Conflate), _) => {
                return bad("conflate is for views: events are never conflated");
            }
            (Mode::Events, _, _) if max_rate.is_some() => {
                return bad("max_rate is for views: events are never conflated");
            }
            _ => {}
        }
        let count = self.count();
        let mut positions = token.map(Token::positions).unwrap_or_default().iter();
        if token.is_some_and(|token| self.is_behind(token)) {
            let message = format!(
                "the token names a partition beyond the {count} of {} that this node knows: it looks again",
                self.name
            );
            return Err(Refusal::retry(ErrorCode::RetryLater, message, 1000));
        }
        if positions.any(|position| position.partition >= count) {
            let message = format!(
                "the token names a partition beyond the {count} of {}: it is of another stream",
                self.name
            );
            return Err(Refusal::new(ErrorCode::BadToken, message));
        }
        Ok(())
    }

    /// The partition of a record that is published through Tidegate.
    #[must_use]
    pub fn partition_for(&self, channel: &Channel, row: &str) -> u32 {
        let row = if self.placement == Placement::Spread {
            row
        } else {
            ""
        };
        partition_of(channel.name(), row, self.count())
    }
}

/// All streams of the node.
#[derive(Debug, Default)]
pub struct Streams {
    by_name: DashMap<String, Arc<Stream>>,
}

impl Streams {
    /// A stream by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Stream>> {
        self.by_name.get(name).map(|stream| stream.clone())
    }
    /// Adds a stream; gives back the one that is there already, if there is one.
    #[must_use]
    pub fn add(&self, stream: Arc<Stream>) -> Arc<Stream> {
        self.by_name
            .entry(stream.name.clone())
            .or_insert(stream)
            .clone()
    }
    /// Takes a stream away: whoever has it still has it, and nobody finds it any more.
    pub fn remove(&self, name: &str) -> Option<Arc<Stream>> {
        self.by_name.remove(name).map(|(_, stream)| stream)
    }
    /// Puts what a stream has grown into in its place, if it still is one of the node's.
    pub fn replace(&self, grown: Arc<Stream>) -> bool {
        let Some(mut found) = self.by_name.get_mut(&grown.name) else {
            return false;
        };
        let follows = grown.is_or_was(&found);
        if follows {
            *found = grown;
        }
        follows
    }
    /// This very stream, or what it has grown into, if that is one of the node's.
    #[must_use]
    pub fn current(&self, stream: &Stream) -> Option<Arc<Stream>> {
        let found = self.by_name.get(&stream.name)?;
        found.is_or_was(stream).then(|| found.clone())
    }
    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Stream>> {
        let mut all: Vec<_> = self
            .by_name
            .iter()
            .map(|entry| entry.value().clone())
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_is_stable() {
        let found: Vec<u32> = ["JFK", "LGA", "EWR"]
            .iter()
            .map(|name| partition_of(name, "", 16))
            .collect();
        assert_eq!(found, [3, 0, 14]);
        assert_ne!(
            partition_of("JFK", "a", 1 << 20),
            partition_of("JFK", "b", 1 << 20)
        );
        assert_eq!(partition_of("JFK", "", 0), 0);
    }
}
