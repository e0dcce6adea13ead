//! The slow path's way out: what was cut, replies, lines, batches gathered in this turn; then back to the fast path.

use std::{io, mem};

use super::{
    FLUSH_BYTES, Key, Outside, Sockets, Timer, Worker,
    batch::{Batch, Load},
    connection::{Closing, Cold, Connection},
    joins::gap_json,
    lane::Lane,
    outbox::{Line, Next, Phase},
    slab::Places,
};
use crate::{
    frame::{Wire, sse_id},
    model::{Moment, Offset, Position, Token},
    partition::tail::Proof,
    protocol::CloseCode,
    session,
};
use std::time::Duration;

/// Between two id-only blocks of an event stream.
const IDS_EVERY: Duration = Duration::from_secs(1);
/// Writes of one connection in one turn; who could take more comes again in the next.
const WRITES_MAX: usize = 8;

/// What a write came to.
enum Written {
    All,
    Blocked,
    Broken,
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Writes what the connections on this turn's list are owed.
    pub(super) fn flush_touched(&mut self, now: Moment) {
        let mut touched = mem::take(&mut self.touched);
        for key in touched.drain(..) {
            if let Some(cold) = self.connections.cold(key) {
                cold.touched = false;
                self.flush(key, now);
            }
        }
        // Who has more to write has been put on the list again; both keep their room.
        touched.append(&mut self.touched);
        self.touched = touched;
    }

    fn flush(&mut self, key: Key, now: Moment) {
        for _ in 0..WRITES_MAX {
            let Some(connection) = self.connections.get(key) else {
                return;
            };
            if connection
                .cold
                .as_ref()
                .is_some_and(|cold| cold.is_blocked() || cold.closing == Some(Closing::Lingering))
            {
                return self.settle_gathered(key, now);
            }
            match self.send_rest(key) {
                Written::All => {}
                Written::Blocked => {
                    self.note_blocked(key, now);
                    return self.settle_gathered(key, now);
                }
                Written::Broken => return self.close(key, CloseCode::Normal),
            }
            let mut scratch = mem::take(&mut self.scratch);
            scratch.clear();
            self.fill(key, &mut scratch, now);
            if scratch.is_empty() {
                self.scratch = scratch;
                return self.drained(key, now);
            }
            if let Some(cold) = self.connections.cold(key) {
                // Copied only where the socket cuts it: see `send_rest`.
                mem::swap(&mut cold.rest, &mut scratch);
                cold.rest_sent = 0;
            }
        }
        self.touch(key);
    }

    /// Writes the bytes at hand; keeps those that the socket does not take.
    fn send_rest(&mut self, key: Key) -> Written {
        let Some(connection) = self.connections.get(key) else {
            return Written::Broken;
        };
        let (socket, cold) = super::parts(connection);
        if cold.rest_sent == cold.rest.len() {
            cold.rest.clear();
            cold.rest_sent = 0;
            return Written::All;
        }
        self.counts.writes.add(1);
        match self.sockets.write(socket, &cold.rest[cold.rest_sent..]) {
            Ok(written) => {
                cold.rest_sent += written;
                cold.drained += written;
                self.counts.sent_bytes.add(written as u64);
                if cold.rest_sent < cold.rest.len() {
                    let left = cold.rest.split_off(cold.rest_sent);
                    (cold.rest, cold.rest_sent) = (left, 0);
                    return Written::Blocked;
                }
                // The buffer goes back to the worker: an idle connection holds none.
                let mut buffer = mem::take(&mut cold.rest);
                cold.rest_sent = 0;
                if self.scratch.capacity() < buffer.capacity()
                    && buffer.capacity() <= 4 * FLUSH_BYTES
                {
                    buffer.clear();
                    self.scratch = buffer;
                }
                Written::All
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Written::Blocked,
            Err(_) => Written::Broken,
        }
    }

    /// Puts together what leaves next, about [`FLUSH_BYTES`] of it.
    fn fill(&mut self, key: Key, out: &mut Vec<u8>, now: Moment) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let wire = connection.wire;
        let Some(cold) = connection.cold.as_mut() else {
            return;
        };
        while let Some(reply) = cold.replies.pop_front() {
            cold.reply_bytes -= reply.bytes.len();
            out.extend_from_slice(&reply.bytes);
            if out.len() >= FLUSH_BYTES {
                return;
            }
        }
        if matches!(cold.closing, Some(Closing::AfterFlush(_))) {
            return;
        }
        // Parts do not name their partition: of a channel that is spread, one snapshot is finished before another begins.
        let between_parts = cold.lines.iter().position(super::Line::is_between_parts);
        for at in between_parts.into_iter().chain(0..cold.lines.len()) {
            self.fill_from_line(key, at, wire, out, now);
            if out.len() >= FLUSH_BYTES {
                return;
            }
        }
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        let room = |out: &Vec<u8>| out.len() < FLUSH_BYTES;
        let mut taken = 0;
        while taken < cold.gathered.len() && room(out) {
            let batch = cold.gathered[taken].clone();
            taken += 1;
            if is_early(cold, &batch, &self.lanes) {
                continue;
            }
            out.extend_from_slice(&batch.encoded(wire).bytes);
            cold.ids.at_once |= matches!(batch.load, Load::Beat(_) | Load::Gap(..));
            if let Load::Updates(updates) = &batch.load {
                self.counts.deliveries.add(updates.len() as u64);
                self.counts.offers_written.add(updates.len() as u64);
            }
        }
        cold.gathered.drain(..taken);
        if out.len() >= FLUSH_BYTES {
            return;
        }
        self.fill_beats(key, out, now);
        if wire.has_ids_apart() && out.is_empty() {
            self.fill_ids(key, out, now);
        }
    }

    fn fill_from_line(&mut self, key: Key, at: usize, wire: Wire, out: &mut Vec<u8>, now: Moment) {
        let Some(connection) = self.connections.peek(key) else {
            return;
        };
        let Some(line) = connection.cold.as_ref().and_then(|cold| cold.lines.get(at)) else {
            return;
        };
        if !line.greeted || line.phase != Phase::Streaming && line.is_empty() {
            return;
        }
        let Some(lane) = self.lanes.get(line.lane) else {
            return;
        };
        let given = self.given(connection, line.lane);
        let (proof, channel) = (
            self.proof_for(line.lane, given, Some(line.cursor)),
            lane.channel.clone(),
        );
        let seat = &self.seats[lane.seat as usize];
        let log = wire.has_ids_apart().then(|| seat.epoch.clone()).flatten();
        let log = log.map(|epoch| (seat.partition, epoch));
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        let (mut ids_at_once, mut deliveries) = (false, 0);
        while out.len() < FLUSH_BYTES {
            let Some(next) = cold.lines[at].next(now, proof) else {
                break;
            };
            match next {
                Next::Part(json, position) => {
                    if log.as_ref().is_some_and(|log| cold.ids.take_back(log)) {
                        sse_id(wire, out, &cold.ids.sent);
                    }
                    ids_at_once |= position.is_some();
                    let id = position
                        .as_ref()
                        .map(|position| position as &dyn std::fmt::Display);
                    wire.append(out, "snapshot", id, &json);
                }
                Next::Update(shared) => {
                    shared.append(wire, out);
                    deliveries += 1;
                }
                Next::Gap(gap) => {
                    ids_at_once = true;
                    wire.append(out, "gap", Some(&gap.to), &gap_json(&channel, &gap));
                }
            }
        }
        cold.ids.at_once |= ids_at_once;
        self.counts.deliveries.add(deliveries);
    }

    /// The socket takes no more: what was gathered in this turn is owed by line, where it can be conflated.
    fn settle_gathered(&mut self, key: Key, now: Moment) {
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        for batch in mem::take(&mut cold.gathered) {
            self.offer_again(key, &batch, now);
        }
    }

    /// Nothing is left to write: asks for what is behind, sets timers, closes, or leaves the slow path.
    fn drained(&mut self, key: Key, now: Moment) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(cold) = connection.cold.as_mut() else {
            return;
        };
        cold.caught_up = true;
        if let Some(Closing::AfterFlush(code)) = cold.closing {
            return self.close_with(key, code, code.as_str(), now);
        }
        let mut asks = Vec::new();
        for line in &mut cold.lines {
            if let Phase::Behind(from) = &line.phase
                && line.is_empty()
                && !line.retry_later
            {
                let from = line.join_from(from);
                asks.push((line.lane, from.clone()));
                line.phase = Phase::Joining(from);
            }
        }
        let flush_at = cold
            .lines
            .iter()
            .filter_map(|line| line.flush_at(now))
            .min();
        let ids_at = (connection.wire.has_ids_apart() && !cold.ids.sent.positions().is_empty())
            .then_some(cold.ids.not_before)
            .filter(|&at| at > now);
        let timer = match (flush_at, ids_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if let Some(at) = timer
            && cold.flush_timer.is_none_or(|set| set > at)
        {
            cold.flush_timer = Some(at);
            self.wheel.add(at, Timer::Flush(key));
        }
        for (lane, from) in asks {
            self.ask(lane, from, key.number());
        }
        self.leave_slow_path(key);
    }

    /// Lines that are where their place in the lane is go; a box in which nothing is left goes too.
    fn leave_slow_path(&mut self, key: Key) {
        let mut at = 0;
        while let Some(rejoins) = self.may_rejoin(key, at) {
            match self.connections.cold(key) {
                Some(cold) if rejoins => drop(cold.lines.swap_remove(at)),
                _ => at += 1,
            }
        }
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(cold) = connection.cold.as_mut() else {
            return;
        };
        if cold.is_idle() && connection.phase != session::Phase::Closing {
            connection.cold = None;
        } else {
            cold.shrink();
        }
    }

    /// Whether the line at this place in a connection's box may give way to the fast path; none behind the last.
    fn may_rejoin(&self, key: Key, at: usize) -> Option<bool> {
        let connection = self.connections.peek(key)?;
        let line = connection.cold.as_ref()?.lines.get(at)?;
        let Some(lane) = self.lanes.get(line.lane) else {
            return Some(true);
        };
        let plain =
            line.phase == Phase::Streaming && line.greeted && line.is_empty() && !line.has_rate();
        let told = !line.beat_due && line.unproven_since.is_none() && !line.told_lagging;
        if !plain || !told || lane.rejoining.is_some() || line.life != lane.life.0 {
            return Some(false);
        }
        let seat = &self.seats[lane.seat as usize];
        // What the sweep would give it a second time keeps it on the slow path until its next turn.
        let waiting = lane.first_waiting(self.given(connection, line.lane));
        let ahead = waiting.is_some_and(|first| first <= line.cursor);
        let same_policy = seat.stream.options().policy == line.policy();
        Some(same_policy && !ahead && line.cursor <= seat.cursor.offset)
    }

    /// Where everybody on the fast path of a lane is at least; none while the lane rejoins.
    pub(super) fn lane_position(&self, lane_no: u32) -> Option<Position> {
        self.position_at(lane_no, self.lanes.get(lane_no)?.oldest())
    }

    /// Where those on the fast path are who have been given so much of a lane; none while it rejoins.
    pub(super) fn position_at(&self, lane_no: u32, given: u64) -> Option<Position> {
        let lane = self.lanes.get(lane_no)?;
        let seat = &self.seats[lane.seat as usize];
        if lane.rejoining.is_some() || lane.has_gap() || lane.life.0 != seat.cursor.resets {
            return None;
        }
        Some(Position {
            partition: seat.partition,
            epoch: seat.epoch.clone()?,
            offset: lane.offset_at(given, seat.cursor.offset),
        })
    }

    /// How much of a lane this member of it has been given.
    pub(super) fn given(&self, connection: &Connection<S::Socket>, lane_no: u32) -> u64 {
        let Some(lane) = self.lanes.get(lane_no) else {
            return 0;
        };
        if !lane.is_sweeping() {
            // All members have been given the same: their places need not be looked for.
            return lane.oldest();
        }
        let place = connection.lanes().find(|(lane, _)| *lane == lane_no);
        place.map_or(lane.oldest(), |(_, place)| {
            lane.given_at(connection.wire, place)
        })
    }

    /// The newest proof of a lane that everything up to the position at `given`, or up to `cursor`, makes true.
    pub(super) fn proof_for(
        &self,
        lane_no: u32,
        given: u64,
        cursor: Option<Offset>,
    ) -> Option<Proof> {
        let lane = self.lanes.get(lane_no)?;
        let position = self.position_at(lane_no, given)?.offset;
        let position = position.max(cursor.unwrap_or_default());
        let proofs = self.seats[lane.seat as usize].proofs.iter().rev();
        proofs.copied().find(|proof| proof.head <= position)
    }

    /// The id-only block: the newest position of each partition, once nothing of it waits.
    fn fill_ids(&mut self, key: Key, out: &mut Vec<u8>, now: Moment) {
        let Some(connection) = self.connections.peek(key) else {
            return;
        };
        let wire = connection.wire;
        let Some(cold) = connection.cold.as_ref() else {
            return;
        };
        if now < cold.ids.not_before && !cold.ids.at_once {
            return;
        }
        let Some(vector) = self.vector(connection, cold) else {
            return;
        };
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        cold.ids.at_once = false;
        if vector != cold.ids.sent {
            sse_id(wire, out, &vector);
            (cold.ids.sent, cold.ids.not_before) = (vector, now.plus(IDS_EVERY));
        }
    }

    /// Of each partition the position up to which all of this connection's channels have been sent; none before all joins
    /// are done.
    fn vector(&self, connection: &Connection<S::Socket>, cold: &Cold) -> Option<Token> {
        let mut token = Token::default();
        for (lane_no, place) in connection.lanes() {
            let given = self.lanes.get(lane_no)?.given_at(connection.wire, place);
            let mut position = self.position_at(lane_no, given)?;
            if let Some(line) = cold.lines.iter().find(|line| line.lane == lane_no) {
                if line.phase != Phase::Streaming || !line.greeted {
                    return None;
                }
                if line.is_empty() {
                    position.offset = position.offset.max(line.cursor);
                } else {
                    position = line.sent.clone()?;
                }
            }
            let known = token
                .position(position.partition)
                .is_some_and(|known| known.offset <= position.offset);
            if !known {
                token.advance(position);
            }
        }
        Some(token)
    }
}

/// A channel's heartbeat vouches for all its partitions: while one of them is behind on this connection it would be early,
/// and is left to [`Worker::fill_beats`].
fn is_early(cold: &mut Cold, batch: &Batch, lanes: &Places<Lane>) -> bool {
    let Load::Beat(notice) = &batch.load else {
        return false;
    };
    let of_channel = |line: &&mut Line| {
        let lane = lanes.get(line.lane);
        lane.is_some_and(|lane| lane.channel == notice.channel)
    };
    let mut early = false;
    for line in cold.lines.iter_mut().filter(of_channel) {
        line.beat_due = true;
        early = true;
    }
    early
}
