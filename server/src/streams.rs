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
    model::{Channel, Mode, Placement, Policy, Token},
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

    /// The partitions in which a channel's records are.
    #[must_use]
    pub fn partitions_of(&self, channel: &Channel) -> std::ops::Range<u32> {
        let count = u32::try_from(self.partitions.len()).unwrap_or(u32::MAX);
        match self.placement {
            Placement::ByChannel => {
                let at = partition_of(channel.name(), "", count);
                at..at + 1
            }
            Placement::Spread => 0..count,
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
        let count = self.partitions.len();
        let mut positions = token.map(Token::positions).unwrap_or_default().iter();
        if positions.any(|position| position.partition as usize >= count) {
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
        let count = u32::try_from(self.partitions.len()).unwrap_or(u32::MAX);
        let row = if self.placement == Placement::Spread {
            row
        } else {
            ""
        };
        partition_of(channel.name(), row, count)
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
    /// Whether this very stream is one of the node's.
    #[must_use]
    pub fn has(&self, stream: &Stream) -> bool {
        let found = self.by_name.get(&stream.name);
        found.is_some_and(|found| std::ptr::eq(&raw const **found.value(), stream))
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
