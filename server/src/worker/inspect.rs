//! What an operator sees of a worker: its connections, and the channels that they follow.

use std::{collections::HashSet, sync::Arc};

use super::{ChannelSeat, Key, Outside, Sockets, Worker};
use crate::{
    auth::Claims,
    frame::Wire,
    model::{Channel, Freshness, Moment, Token},
};

/// Which connections are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// All.
    All,
    /// The one session of this name.
    Id(String),
    /// Those whose token has this subject.
    Subject(String),
    /// Those that one of these keys vouches for.
    Keys(Arc<HashSet<Arc<str>>>),
}

/// One connection, for operators.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ConnectionInfo {
    /// Its session's name.
    pub id: String,
    /// The transport.
    pub transport: &'static str,
    /// Its token's subject.
    pub subject: Option<String>,
    /// Seconds since it was opened.
    pub age_s: u64,
    /// Its channels.
    pub channels: Vec<String>,
    /// Whether its socket takes no more.
    pub blocked: bool,
    /// Bytes that wait for it, about.
    pub outbox_bytes: usize,
    /// Frames that wait for it.
    pub outbox_frames: usize,
    /// Whether sweeps write to it directly.
    pub fast: bool,
}

/// One channel that somebody here follows, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The channel.
    pub channel: Channel,
    /// Connections of this worker that follow it.
    pub subscribers: usize,
    /// How fresh it is here; none while it has no lane.
    pub freshness: Option<Freshness>,
    /// Everybody here who is not behind has it up to here.
    pub position: Token,
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// At most `most` of the connections that are meant.
    #[must_use]
    pub fn inspect(&self, pick: &Pick, most: usize, now: Moment) -> Vec<ConnectionInfo> {
        self.picked(pick)
            .take(most)
            .filter_map(|key| self.connection_info(key, now))
            .collect()
    }

    /// The connections that are meant.
    pub(super) fn picked(&self, pick: &Pick) -> impl Iterator<Item = Key> {
        let all = match pick {
            Pick::All | Pick::Subject(_) | Pick::Keys(_) => Some(self.connections.keys()),
            Pick::Id(_) => None,
        };
        let one = match pick {
            Pick::Id(name) => self.key_of(name),
            Pick::All | Pick::Subject(_) | Pick::Keys(_) => None,
        };
        let meant = move |key: &Key| match pick {
            Pick::Subject(subject) => self.subject(*key) == Some(subject),
            Pick::Keys(ids) => self
                .claims_of(*key)
                .is_some_and(|claims| ids.contains(claims.key_id())),
            Pick::All | Pick::Id(_) => true,
        };
        all.into_iter().flatten().filter(meant).chain(one)
    }

    /// The connection of this session's name, if it is here.
    fn key_of(&self, name: &str) -> Option<Key> {
        let (_, number) = name.rsplit_once('-')?;
        let key = Key::from_number(u64::from_str_radix(number, 16).ok()?);
        (self.connections.peek(key).is_some() && self.session_name(key) == name).then_some(key)
    }

    fn subject(&self, key: Key) -> Option<&str> {
        self.claims_of(key)?.subject()
    }

    fn claims_of(&self, key: Key) -> Option<&Arc<Claims>> {
        self.connections.peek(key)?.claims.as_ref()
    }

    fn connection_info(&self, key: Key, now: Moment) -> Option<ConnectionInfo> {
        let connection = self.connections.peek(key)?;
        let cold = connection.cold.as_deref();
        let lines = cold.map(|cold| cold.lines.as_slice()).unwrap_or_default();
        let mut channels: Vec<String> = connection
            .lanes()
            .filter_map(|(lane, _)| Some(self.lanes.get(lane)?.channel.to_string()))
            .collect();
        channels.sort_unstable();
        channels.dedup();
        let transport = match connection.wire {
            Wire::WebSocket => "websocket",
            Wire::Sse | Wire::SseBare | Wire::SsePlain | Wire::SsePlainBare => "sse",
        };
        Some(ConnectionInfo {
            id: self.session_name(key),
            transport,
            subject: self.subject(key).map(str::to_owned),
            age_s: (now.millis() / 1000).saturating_sub(u64::from(connection.opened_s)),
            channels,
            blocked: cold.is_some_and(super::Cold::is_blocked),
            outbox_bytes: cold.map_or(0, super::Cold::waiting_bytes),
            outbox_frames: cold.map_or(0, |cold| cold.replies.len())
                + lines.iter().map(super::Line::frames).sum::<usize>(),
            fast: cold.is_none(),
        })
    }

    /// At most `most` of the channels that somebody here follows, in no order.
    #[must_use]
    pub fn inspect_channels(&self, most: usize, now: Moment) -> Vec<ChannelInfo> {
        self.channels
            .iter()
            .take(most)
            .map(|(_, channel)| self.channel_info(channel, now))
            .collect()
    }

    /// Those of these channels that somebody here follows.
    #[must_use]
    pub fn inspect_named(&self, channels: &[Channel], now: Moment) -> Vec<ChannelInfo> {
        let numbers = channels
            .iter()
            .filter_map(|channel| self.channel_numbers.get(channel));
        numbers
            .filter_map(|&number| self.channels.get(number))
            .map(|channel| self.channel_info(channel, now))
            .collect()
    }

    fn channel_info(&self, channel: &ChannelSeat, now: Moment) -> ChannelInfo {
        // Whoever follows a channel is in the lane of each of its partitions.
        let first = channel.lanes.first().and_then(|&lane| self.lanes.get(lane));
        let positions = channel
            .lanes
            .iter()
            .filter_map(|&lane| self.lane_position(lane));
        ChannelInfo {
            channel: channel.channel.clone(),
            subscribers: first.map_or(0, super::Lane::len),
            freshness: self.channel_freshness(channel, now),
            position: Token::of(positions),
        }
    }
}
