//! What a reload of the configuration asks of a worker.

use std::{collections::BTreeSet, time::Duration};

use super::{Farewell, Key, NONE, Outside, Sockets, Worker};
use crate::{
    model::Channel,
    protocol::{CloseCode, ErrorCode, Refusal},
};

/// What of the settings may change while the worker runs. Connections that are there keep what they were told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retold {
    /// How long a session may wait for its token.
    pub auth_timeout: Duration,
    /// A proof keeps a view live for so long.
    pub live_for: Duration,
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// New connections are told this.
    pub fn retell(&mut self, retold: Retold) {
        self.settings.auth_timeout = retold.auth_timeout;
        self.settings.live_for = retold.live_for;
    }

    /// Ends every subscription to a channel of this stream, which is no more; tells how many. An event stream, whose
    /// channels are all of one stream, ends as a whole.
    pub fn end_stream(&mut self, stream: &str) -> usize {
        let gone: Vec<(Channel, u32)> = self
            .channel_numbers
            .iter()
            .filter(|(channel, _)| channel.stream() == stream)
            .map(|(channel, &number)| (channel.clone(), number))
            .collect();
        let refusal = Refusal::new(
            ErrorCode::UnknownStream,
            "the stream was taken out of the configuration: the subscription has ended",
        );
        let mut ended = 0;
        for (channel, number) in gone {
            for key in self.followers(number) {
                self.leave_channel(key, number);
                self.tell_outcome(key, &channel, Err(&refusal));
                self.end_if_bare(key);
                ended += 1;
            }
        }
        ended
    }

    /// Who follows a channel.
    pub(super) fn followers(&self, number: u32) -> BTreeSet<Key> {
        let follows = |key: &Key| {
            let connection = self.connections.peek(*key);
            connection.is_some_and(|connection| {
                let mut lanes = connection.lanes();
                lanes.any(|(lane, _)| self.channel_of(lane) == Some(number))
            })
        };
        self.connections.keys().filter(follows).collect()
    }

    /// An event stream without a channel has nothing left to say.
    fn end_if_bare(&mut self, key: Key) {
        let bare = self.connections.peek(key).is_some_and(|connection| {
            connection.lane == NONE && connection.wire != crate::frame::Wire::WebSocket
        });
        if bare {
            self.say_goodbye(key, CloseCode::Closed, None);
        }
    }

    /// Closes a connection whose key was revoked while it was being handed over.
    pub fn close_if(&mut self, key: Key, revoked: impl Fn(&str) -> bool) {
        let claims = self.connections.peek(key);
        let claims = claims.and_then(|connection| connection.claims.as_ref());
        if claims.is_some_and(|claims| revoked(claims.key_id())) {
            self.farewell(key, Farewell::REVOKED);
        }
    }
}
