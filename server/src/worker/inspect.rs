//! What an operator sees of a worker's connections.

use super::{Outside, Sockets, Worker};
use crate::{frame::Wire, model::Moment};

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

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// At most `most` connections.
    #[must_use]
    pub fn inspect(&self, most: usize, now: Moment) -> Vec<ConnectionInfo> {
        self.connections
            .keys()
            .take(most)
            .filter_map(|key| {
                let connection = self.connections.peek(key)?;
                let cold = connection.cold.as_deref();
                let lines = cold.map(|cold| cold.lines.as_slice()).unwrap_or_default();
                let mut channels: Vec<String> = connection
                    .lanes()
                    .iter()
                    .filter_map(|&(lane, _)| Some(self.lanes.get(lane)?.channel.to_string()))
                    .collect();
                channels.dedup();
                Some(ConnectionInfo {
                    id: self.session_name(key),
                    transport: if connection.wire == Wire::WebSocket {
                        "websocket"
                    } else {
                        "sse"
                    },
                    subject: self
                        .claims
                        .get(connection.claims)
                        .and_then(|claims| claims.subject.as_deref().map(str::to_owned)),
                    age_s: (now.millis() / 1000).saturating_sub(u64::from(connection.opened_s)),
                    channels,
                    blocked: cold.is_some_and(super::Cold::is_blocked),
                    outbox_bytes: cold.map_or(0, |cold| cold.rest.len() + cold.reply_bytes)
                        + lines.iter().map(super::Line::bytes).sum::<usize>(),
                    outbox_frames: cold.map_or(0, |cold| cold.replies.len())
                        + lines.iter().map(super::Line::frames).sum::<usize>(),
                    fast: cold.is_none(),
                })
            })
            .collect()
    }
}
