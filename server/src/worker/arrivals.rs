//! Who comes and who goes.

use std::sync::Arc;

use super::{
    Closing, Connection, ENDLESS, Key, Life, NONE, Opening, Outside, Phase, Sockets, Timer, Worker,
    ends_s, millis, timers,
};
use crate::{
    auth::Claims,
    frame::Wire,
    model::{Channel, Moment},
    protocol::{CloseCode, write},
};

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Takes a socket over, with the head that is still to be sent on it, and what was read from it beyond the handshake.
    ///
    /// # Errors
    /// What the operating system says when the socket can't be watched.
    pub fn adopt(
        &mut self,
        socket: S::Socket,
        (head, early): (&[u8], &[u8]),
        opening: Opening,
        now: Moment,
    ) -> std::io::Result<Key> {
        let (claims, phase, wire) = match &opening {
            Opening::WebSocket { claims: None } => (None, Phase::Waiting, Wire::WebSocket),
            Opening::WebSocket { claims } => (claims.clone(), Phase::Open, Wire::WebSocket),
            Opening::Sse {
                claims,
                channels,
                chunked,
                ..
            } => {
                let wire = Wire::of_sse(*chunked, self.has_ids_apart(channels));
                (Some(claims.clone()), Phase::Open, wire)
            }
        };
        let key = self.enlist(socket, wire, phase, now)?;
        self.greet(key, head, &opening, now);
        match claims {
            Some(claims) => self.take_claims(key, claims),
            None => self
                .wheel
                .add(now.plus(self.settings.auth_timeout), Timer::Auth(key)),
        }
        match opening {
            Opening::WebSocket { .. } => {}
            Opening::Sse {
                channels,
                token,
                max_rate,
                policy,
                ..
            } => {
                for channel in channels {
                    self.follow_sse(key, &channel, token.as_ref(), max_rate, policy, now);
                }
                if wire.has_ids_apart()
                    && let (Some(cold), Some(token)) = (self.connections.cold(key), token)
                {
                    cold.ids.sent = token;
                }
            }
        }
        if self.draining {
            // It was admitted just before the drain began.
            self.wheel.add(now, Timer::Bye(key, timers::RECONNECT_MS));
        }
        if !early.is_empty() {
            self.feed_early(key, early, now);
        }
        self.touch(key);
        Ok(key)
    }

    /// A connection that has nothing yet, watched from now on.
    fn enlist(
        &mut self,
        socket: S::Socket,
        wire: Wire,
        phase: Phase,
        now: Moment,
    ) -> std::io::Result<Key> {
        let connection = Connection {
            socket,
            lane: NONE,
            place: 0,
            opened_s: u32::try_from(now.millis() / 1000).unwrap_or(u32::MAX),
            ends_s: ENDLESS,
            wire,
            phase,
            life: Life::Heard,
            unread: false,
            claims: None,
            cold: None,
        };
        let key = self.connections.insert(connection);
        if let Some(connection) = self.connections.get(key)
            && let Err(error) = self.sockets.watch(&connection.socket, key.number())
        {
            self.connections.remove(key);
            return Err(error);
        }
        self.counts.active(wire).add(1);
        Ok(key)
    }

    /// Over SSE one lane has its ids in its frames; several have them in blocks of their own.
    fn has_ids_apart(&self, channels: &[Channel]) -> bool {
        let spread = channels.first().and_then(|channel| {
            self.outside
                .stream(channel.stream())
                .map(|stream| stream.partitions_of(channel).len())
        });
        channels.len() != 1 || spread.unwrap_or(1) != 1
    }

    fn greet(&mut self, key: Key, head: &[u8], opening: &Opening, now: Moment) {
        let settings = &self.settings;
        let hello = write::Hello {
            session: &self.session_name(key),
            node: &settings.node,
            now,
            heartbeat_ms: millis(settings.heartbeat),
            live_for_ms: millis(settings.live_for),
            message_bytes: settings.message_bytes,
            channels: settings.channels_max,
        };
        let (mut json, mut bytes) = (Vec::new(), head.to_vec());
        write::hello(&mut json, &hello);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        match opening {
            Opening::Sse { retry_ms, .. } => {
                crate::frame::sse_hello(connection.wire, &mut bytes, *retry_ms, &json);
            }
            Opening::WebSocket { .. } => connection.wire.append(&mut bytes, "hello", None, &json),
        }
        connection.cold().reply(None, bytes);
    }

    /// Says goodbye and closes once that has left.
    pub(super) fn say_goodbye(
        &mut self,
        key: Key,
        code: CloseCode,
        reconnect_after_ms: Option<u64>,
    ) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.phase == Phase::Closing {
            return;
        }
        connection.phase = Phase::Closing;
        let mut json = Vec::new();
        write::bye(&mut json, code, reconnect_after_ms);
        self.reply(key, "bye", &json, None);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        connection.cold().closing = Some(Closing::AfterFlush(code));
    }

    /// Closes at once.
    pub(super) fn close(&mut self, key: Key, code: CloseCode) {
        self.leave_all(key);
        let Some(connection) = self.connections.remove(key) else {
            return;
        };
        self.outside.closed(key.number());
        let active = self.counts.active(connection.wire);
        active.set(active.get().saturating_sub(1));
        if !connection.is_lingering() {
            self.counts.note_closed(connection.wire, code);
        }
        tracing::debug!(session = %self.session_name(key), code = code.as_str(), "connection closed");
    }

    pub(super) fn take_claims(&mut self, key: Key, claims: Arc<Claims>) {
        if let Some(connection) = self.connections.get(key) {
            connection.ends_s = ends_s(Some(&claims));
            connection.claims = Some(claims);
            connection.phase = Phase::Open;
        }
    }
}
