//! What came in: bytes → messages → actions.

use std::{io, ops::ControlFlow, sync::Arc, time::Duration};

use super::{
    Key, LINGER, Outside, READ_BYTES, Ready, Sockets, Timer, Worker,
    connection::{Closing, Cold, Life},
};
use crate::{
    auth::Claims,
    frame::Wire,
    model::Moment,
    protocol::{
        CloseCode, Refusal, parse_client,
        rfc6455::{self, Event, Violation},
        write,
    },
    session::{self, Action, Phase, Surroundings},
};

/// Who floods has so long to read why it is closed: until then it goes on, and costs what it did.
const FLOOD_LINGER: Duration = Duration::from_millis(250);

/// What a read found, in the order in which it was found.
enum Heard {
    Text(String),
    Ping(Vec<u8>),
    Close(u16),
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    pub(super) fn on_ready(&mut self, ready: Ready, now: Moment) {
        let key = Key::from_number(ready.key);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let read = ready.readable && !connection.unread;
        if ready.writable
            && let Some(cold) = &mut connection.cold
            && cold.blocked_since.take().is_some()
        {
            self.touch(key);
        }
        if ready.broken {
            return self.close(key, CloseCode::Normal);
        }
        if read {
            self.read(key, now);
        }
    }

    /// Reads on where the turn before left something.
    pub(super) fn read_on(&mut self, now: Moment) {
        for _ in 0..self.unread.len() {
            let Some(key) = self.unread.pop_front() else {
                return;
            };
            if let Some(connection) = self.connections.get(key) {
                connection.unread = false;
                self.read(key, now);
            }
        }
    }

    /// Reads one buffer; who has more comes again in the next turn, so that nobody is kept waiting by a flood.
    fn read(&mut self, key: Key, now: Moment) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        connection.life = Life::Heard;
        match self.sockets.read(&connection.socket, &mut self.input) {
            Ok(0) => self.close(key, CloseCode::Normal),
            Ok(len) => {
                let full = len == READ_BYTES;
                let mut input = std::mem::take(&mut self.input);
                self.feed(key, &mut input[..len], now);
                self.input = input;
                if full && let Some(connection) = self.connections.get(key) {
                    connection.unread = true;
                    self.unread.push_back(key);
                }
                // After a short read the socket is empty: what comes later is another edge.
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(key, CloseCode::Normal),
        }
    }

    /// What the HTTP side had read beyond the handshake.
    pub(super) fn feed_early(&mut self, key: Key, early: &[u8], now: Moment) {
        let mut bytes = early.to_vec();
        self.feed(key, &mut bytes, now);
    }

    fn feed(&mut self, key: Key, bytes: &mut [u8], now: Moment) {
        let limits = rfc6455::Limits {
            message_bytes: self.settings.message_bytes,
        };
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.wire != Wire::WebSocket {
            // An event stream's client has nothing more to say.
            return;
        }
        if connection
            .cold
            .as_ref()
            .is_some_and(|cold| cold.closing == Some(Closing::Lingering))
        {
            return self.hear_goodbye(key, bytes, limits);
        }
        let goes_on = connection
            .cold
            .as_ref()
            .is_some_and(|cold| cold.message_since.is_some());
        let mut partial = connection
            .cold
            .as_mut()
            .and_then(|cold| cold.partial.take());
        let (mut heard, mut pongs, mut finished) = (Vec::new(), 0, false);
        let result = rfc6455::feed(&mut partial, bytes, &limits, &mut |event| {
            match event {
                Event::Text(text) => {
                    finished = true;
                    heard.push(Heard::Text(text.to_owned()));
                }
                Event::Ping(payload) => heard.push(Heard::Ping(payload.to_vec())),
                Event::Pong(_) => pongs += 1,
                Event::Close { code, .. } => heard.push(Heard::Close(code.unwrap_or(1000))),
            }
            ControlFlow::Continue(())
        });
        if partial.is_some() {
            connection.cold().partial = partial;
        }
        self.note_unfinished(key, finished, now);
        self.listen_from(key, bytes.len(), goes_on && !finished);
        if pongs > 0 {
            self.charge(key, pongs, now);
        }
        for heard in heard {
            self.on_heard(key, heard, now);
        }
        if let Err(violation) = result {
            self.violated(key, violation, now);
        } else {
            self.touch_if_cold(key);
        }
    }

    /// After our close frame, the peer's own ends the connection.
    fn hear_goodbye(&mut self, key: Key, bytes: &mut [u8], limits: rfc6455::Limits) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let partial = &mut connection.cold().partial;
        let mut closed = false;
        let result = rfc6455::feed(partial, bytes, &limits, &mut |event| {
            closed |= matches!(event, Event::Close { .. });
            ControlFlow::Continue(())
        });
        if closed || result.is_err() {
            self.close(key, CloseCode::Normal);
        }
    }

    fn touch_if_cold(&mut self, key: Key) {
        if self.connections.peek_cold(key).is_some() {
            self.touch(key);
        }
    }

    fn violated(&mut self, key: Key, violation: Violation, now: Moment) {
        let code = match violation.close_code() {
            1003 => CloseCode::Unsupported,
            1007 => CloseCode::InvalidText,
            1009 => CloseCode::TooBig,
            _ => CloseCode::Protocol,
        };
        self.close_with(key, code, &violation.to_string(), now);
    }

    fn on_heard(&mut self, key: Key, heard: Heard, now: Moment) {
        match heard {
            Heard::Text(text) => {
                let messages = parse_client(&text);
                if messages.iter().any(Result::is_err) && !self.charge_unread(key, text.len(), now)
                {
                    return;
                }
                let refused = self.counts.refused.get();
                self.in_array = messages.len() > 1;
                for message in messages {
                    self.on_message(key, message, now);
                }
                if std::mem::take(&mut self.in_array) {
                    self.charge_array(key, self.counts.refused.get() - refused, now);
                }
            }
            Heard::Ping(payload) => {
                if !self.charge(key, 1, now) {
                    return;
                }
                let Some(connection) = self.connections.get(key) else {
                    return;
                };
                let mut bytes = Vec::new();
                rfc6455::frame_header(rfc6455::Opcode::Pong, payload.len(), &mut bytes);
                bytes.extend_from_slice(&payload);
                let cold = connection.cold();
                cold.reply(None, bytes);
                if cold.reply_bytes > super::REPLIES_MAX {
                    return self.close(key, CloseCode::SlowConsumer);
                }
                self.touch(key);
            }
            Heard::Close(code) => {
                // RFC 6455, section 5.5.1: answered in kind, then the server closes first.
                if let Some(connection) = self.connections.get(key) {
                    let mut bytes = last_words(connection.cold());
                    rfc6455::close_frame(code, "", &mut bytes);
                    connection.phase = Phase::Closing;
                    drop(self.sockets.write(&connection.socket, &bytes));
                }
                self.close(key, CloseCode::Normal);
            }
        }
    }

    fn on_message(
        &mut self,
        key: Key,
        message: Result<crate::protocol::Envelope, crate::protocol::BadMessage>,
        now: Moment,
    ) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let (phase, claims) = (connection.phase, connection.claims.clone());
        let around = Surroundings {
            claims: claims.as_deref(),
            channels: self.channels_of(key),
            channels_max: self.settings.channels_max,
        };
        match session::on_message(phase, around, message) {
            Action::Ignore => {}
            Action::Pong => {
                if !self.charge(key, 1, now) {
                    return;
                }
                let mut json = Vec::new();
                write::pong(&mut json);
                self.reply(key, "pong", &json, None);
            }
            Action::Refuse(id, refusal) => self.refuse(key, id, &refusal),
            Action::Verify { id, token } => self.verify(key, id, &token, now),
            Action::Subscribe { id, wish } => {
                let may = self.may_subscribe(key, now);
                if let Err(refusal) = may.and_then(|()| self.subscribe(key, id, &wish, now)) {
                    self.refuse(key, Some(id), &refusal);
                }
            }
            Action::Unsubscribe { id, channel } => match self.unsubscribe(key, &channel) {
                Ok(()) => {
                    let mut json = Vec::new();
                    write::ok(&mut json, id);
                    self.reply(key, "ok", &json, None);
                }
                Err(refusal) => self.refuse(key, Some(id), &refusal),
            },
            Action::Publish { id, record } => {
                if let Some(claims) = claims {
                    self.outside.publish(key.number(), id, *record, claims);
                }
            }
        }
    }

    fn verify(&mut self, key: Key, id: u64, token: &str, now: Moment) {
        let verified: Result<Arc<Claims>, Refusal> = self.outside.verify(token);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let (phase, close) = session::on_verified(connection.phase, verified.is_ok());
        match verified {
            Ok(claims) => {
                // One that does not hold is charged as a refusal.
                if !self.charge(key, 1, now) {
                    return;
                }
                self.take_claims(key, claims);
                let mut json = Vec::new();
                write::ok(&mut json, id);
                self.reply(key, "ok", &json, None);
                self.drop_forbidden(key);
            }
            Err(refusal) => self.refuse(key, Some(id), &refusal),
        }
        if let Some(code) = close {
            self.say_goodbye(key, code, None);
        } else if let Some(connection) = self.connections.get(key) {
            connection.phase = phase;
        }
    }

    /// The answer of a publish that came over a WebSocket.
    pub fn published(&mut self, key: u64, id: u64, answer: Result<(String, bool), Refusal>) {
        let key = Key::from_number(key);
        match answer {
            Ok((position, duplicate)) => {
                let mut json = Vec::new();
                write::published(&mut json, id, &position, duplicate);
                self.reply(key, "ok", &json, None);
            }
            Err(refusal) => self.refuse(key, Some(id), &refusal),
        }
    }

    /// Sends a close frame (or ends the body) behind what has been cut, and waits a little for the peer's own.
    pub(super) fn close_with(&mut self, key: Key, code: CloseCode, reason: &str, now: Moment) {
        self.leave_all(key);
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        connection.phase = Phase::Closing;
        if !connection.is_lingering() {
            self.counts.note_closed(connection.wire, code);
        }
        let wire = connection.wire;
        let (socket, cold) = super::parts(connection);
        let mut last = last_words(cold);
        match wire {
            Wire::WebSocket => rfc6455::close_frame(code.number(), reason, &mut last),
            Wire::Sse | Wire::SseBare | Wire::SsePlain | Wire::SsePlainBare => {
                last.extend_from_slice(wire.last_chunk());
            }
        }
        cold.closing = Some(Closing::Lingering);
        if std::mem::take(&mut cold.mark) > 0 {
            // Who closes over bytes that were not read resets the connection, and the close frame with it.
            self.sockets.tell_from(socket, 1);
        }
        let written = self.sockets.write(socket, &last);
        self.sockets.finish(socket);
        if written.is_ok_and(|len| len == last.len()) {
            let linger = match code {
                CloseCode::RateLimited => FLOOD_LINGER,
                _ => LINGER,
            };
            self.wheel.add(now.plus(linger), Timer::Linger(key));
        } else {
            self.close(key, code);
        }
    }
}

/// What must leave before a close frame may: the rest of a frame that was cut, and replies.
fn last_words(cold: &mut Cold) -> Vec<u8> {
    let mut last = cold.rest.split_off(cold.rest_sent.min(cold.rest.len()));
    for reply in cold.replies.drain(..) {
        last.extend_from_slice(&reply.bytes);
    }
    (cold.rest, cold.rest_sent, cold.reply_bytes) = (Vec::new(), 0, 0);
    last
}
