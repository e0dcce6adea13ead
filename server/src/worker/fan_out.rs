//! From the tails into the lanes, and a sweep at a time from the lanes to the sockets.

use std::{io, rc::Rc};

use super::{
    Key, Outside, PULL_MAX, SWEEP_BUDGET, Sockets, Worker,
    connection::{Closing, Connection},
    lane::{Batch, Load, PENDING_MAX},
    outbox::{Line, OutboxMax, Owed, Phase},
};
use crate::{
    frame::Wire,
    model::{Epoch, Mode, Moment, Offset, Policy, Position},
    protocol::{CloseCode, write},
    session,
    telemetry::WorkerCounts,
};

/// What an outbox is told of its lane while it is owed something.
#[derive(Clone)]
struct LaneFacts {
    number: u32,
    partition: u32,
    mode: Mode,
    policy: Policy,
    epoch: Option<Epoch>,
    life: u64,
    max: OutboxMax,
}

/// What became of a connection that was offered a batch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offered {
    /// It has it.
    Written,
    /// It waits in its cold box.
    Owed,
    /// Its socket took only a part.
    Blocked,
    /// Its socket is broken.
    Broken,
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Pulls what is new in the tails of all partitions that somebody here follows.
    pub(super) fn pull(&mut self, now: Moment) {
        self.pull_again = false;
        for seat_no in 0..self.seats.len() {
            self.pull_seat(seat_no);
        }
        self.look_at_proofs(now);
    }

    fn pull_seat(&mut self, seat_no: usize) {
        let seat = &mut self.seats[seat_no];
        if seat.lanes.is_empty() || seat.fallen {
            return;
        }
        let pulled = seat.stream.partitions[seat.partition as usize]
            .tail
            .pull(seat.cursor, PULL_MAX);
        if pulled.fell_off {
            seat.fallen = true;
            return;
        }
        let before = seat.cursor.offset;
        (seat.cursor, seat.health) = (pulled.cursor, pulled.health);
        seat.epoch = pulled.epoch;
        seat.note_proof();
        self.pull_again |= pulled.updates.len() == PULL_MAX;
        for shared in pulled.updates {
            let Some(&lane_no) = self.seats[seat_no].lanes.get(&shared.update.change.channel)
            else {
                continue;
            };
            let Some(lane) = self.lanes.get_mut(lane_no) else {
                continue;
            };
            let offset = shared.update.position.offset;
            if lane.rejoining.is_some() || lane.behind_from.is_some() || offset <= lane.skip_to {
                continue;
            }
            if !lane.has_updates() {
                lane.swept = before.max(lane.skip_to);
            }
            if lane.pending.len() >= PENDING_MAX {
                lane.behind_from = lane.pending.back().map(|last| last.update.position.offset);
                continue;
            }
            lane.pending.push_back(shared);
            self.queue(lane_no);
        }
    }

    /// Puts a lane on the list of those to be swept.
    pub(super) fn queue(&mut self, lane_no: u32) {
        if let Some(lane) = self.lanes.get_mut(lane_no)
            && !lane.queued
            && lane.has_work()
        {
            lane.queued = true;
            self.busy.push_back(lane_no);
        }
    }

    /// Sweeps for one turn's budget, the lanes in turn: so a small one waits for one share of a big one, not for all of it.
    pub(super) fn sweep(&mut self, now: Moment) {
        let mut budget = SWEEP_BUDGET;
        for _ in 0..self.busy.len() {
            let Some(lane_no) = self.busy.pop_front() else {
                return;
            };
            let share = budget.min((SWEEP_BUDGET / 2).max(1));
            budget -= self.sweep_lane(lane_no, share, now).min(budget);
            if self.lanes.get(lane_no).is_some_and(|lane| lane.queued) {
                self.busy.push_back(lane_no);
            }
            if budget == 0 {
                return;
            }
        }
    }

    /// Writes to at most `budget` members of a lane; tells to how many.
    fn sweep_lane(&mut self, lane_no: u32, budget: usize, now: Moment) -> usize {
        let (facts, batch) = {
            let Some(lane) = self.lanes.get_mut(lane_no) else {
                return 0;
            };
            let seat = &self.seats[lane.seat as usize];
            let after = if lane.has_gap() {
                Offset::BEFORE_ALL
            } else if lane.has_updates() {
                lane.swept
            } else {
                seat.cursor.offset
            };
            if lane.sweep.is_none() && !lane.begin_sweep(lane_no, after) {
                lane.queued = false;
                return 0;
            }
            let Some(batch) = lane.sweep.as_ref().map(|sweep| sweep.batch.clone()) else {
                return 0;
            };
            (self.facts(lane_no), batch)
        };
        let Some(facts) = facts else { return 0 };
        let messages = batch.len() as u64;
        let (mut used, mut writes, mut bytes, mut blocked) = (0, 0u64, 0u64, 0u64);
        while used < budget {
            let Some((index, wire)) = self
                .lanes
                .get_mut(lane_no)
                .and_then(super::lane::Lane::next_member)
            else {
                self.end_sweep(lane_no, now);
                break;
            };
            let Some(connection) = self.connections.at(index) else {
                continue;
            };
            used += 1;
            let offered = match connection.cold {
                None => write_shared(&mut self.sockets, connection, &batch, wire, &facts, now),
                Some(_) => offer(connection, &batch, wire, &facts, &self.counts, now),
            };
            match offered {
                Offered::Written => {
                    writes += 1;
                    bytes += batch.encoded(wire).bytes.len() as u64;
                }
                Offered::Owed => {
                    let key = self.connections.key(index);
                    self.touch(key);
                }
                Offered::Blocked => {
                    blocked += 1;
                    let key = self.connections.key(index);
                    self.note_blocked(key, now);
                }
                Offered::Broken => {
                    let key = self.connections.key(index);
                    self.close(key, CloseCode::Normal);
                }
            }
        }
        self.counts.writes.add(writes);
        self.counts.sent_bytes.add(bytes);
        self.counts.blocked.add(blocked);
        match batch.load {
            Load::Updates(_) => {
                self.counts.deliveries.add(writes * messages);
                self.counts.offers_written.add(writes * messages);
                self.counts.offers_queued.add(blocked * messages);
            }
            Load::Beat(_) | Load::News(_) | Load::Gap(..) => self.counts.notices.add(used as u64),
        }
        used
    }

    fn facts(&self, lane_no: u32) -> Option<LaneFacts> {
        let lane = self.lanes.get(lane_no)?;
        let seat = &self.seats[lane.seat as usize];
        Some(LaneFacts {
            number: lane_no,
            partition: seat.partition,
            mode: lane.mode,
            policy: seat.stream.options().policy,
            epoch: lane.life.1.clone(),
            life: lane.life.0,
            max: self.settings.outbox,
        })
    }

    /// Owes a batch that was gathered, and that the socket did not take, to a line of its own.
    pub(super) fn offer_again(&mut self, key: Key, batch: &Rc<Batch>, now: Moment) {
        let Some(facts) = self.facts(batch.lane) else {
            return;
        };
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let wire = connection.wire;
        let cold = connection.cold();
        if cold.line(batch.lane).is_none() {
            cold.lines.push(streaming_line(&facts, batch.after));
        }
        offer(connection, batch, wire, &facts, &self.counts, now);
    }

    fn end_sweep(&mut self, lane_no: u32, now: Moment) {
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        let connections = &mut self.connections;
        let batch = lane.end_sweep(|member, place| {
            if let Some(connection) = connections.at(member) {
                Connection::moved(connection, lane_no, place);
            }
        });
        if let Some(Load::Updates(updates)) = batch.as_deref().map(|batch| &batch.load)
            && let (Some(first), Some(last)) = (updates.first(), updates.last())
        {
            self.swept.push((first.applied_at, last.applied_at));
        }
        let again = std::mem::take(&mut lane.recheck);
        let (channel_no, empty) = (lane.channel_no, lane.is_empty());
        for number in again {
            self.touch(Key::from_number(number));
        }
        if empty {
            return self.drop_lane(lane_no);
        }
        self.refill(lane_no);
        self.beat_if_due(channel_no, now);
        if let Some(lane) = self.lanes.get_mut(lane_no)
            && !lane.has_work()
        {
            lane.queued = false;
        }
    }

    /// A lane that had more than it may hold reads on from the tail.
    fn refill(&mut self, lane_no: u32) {
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        let Some(from) = lane.behind_from.filter(|_| lane.pending.is_empty()) else {
            return;
        };
        let seat = &self.seats[lane.seat as usize];
        if seat.fallen {
            return;
        }
        let tail = &seat.stream.partitions[seat.partition as usize].tail;
        match tail.between(&lane.channel, from, seat.cursor.offset, PENDING_MAX) {
            Some(more) if tail.cursor().resets == seat.cursor.resets => {
                lane.swept = from;
                lane.behind_from = more
                    .last()
                    .filter(|_| more.len() == PENDING_MAX)
                    .map(|last| last.update.position.offset);
                lane.pending.extend(more);
            }
            _ => {
                let at = seat.epoch.clone().map(|epoch| Position {
                    partition: seat.partition,
                    epoch,
                    offset: from,
                });
                self.rejoin_lane(lane_no, at);
            }
        }
    }

    /// A socket takes no more: its rate is watched from now on.
    pub(super) fn note_blocked(&mut self, key: Key, now: Moment) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let cold = connection.cold();
        cold.blocked_since.get_or_insert(now);
        let watched = std::mem::replace(&mut cold.watched, true);
        if !watched {
            (cold.drained, cold.caught_up) = (0, false);
            self.blocked.push(key);
            self.wheel
                .add(now.plus(self.settings.drain_over), super::Timer::Rate(key));
        }
    }
}

impl Batch {
    /// How many messages it carries.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.load {
            Load::Updates(updates) => updates.len(),
            Load::Beat(_) | Load::News(_) | Load::Gap(..) => 1,
        }
    }

    /// Whether it carries none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The fast path: the shared bytes, one write.
fn write_shared<S: Sockets>(
    sockets: &mut S,
    connection: &mut Connection<S::Socket>,
    batch: &Rc<Batch>,
    wire: Wire,
    lane: &LaneFacts,
    now: Moment,
) -> Offered {
    let encoded = batch.encoded(wire);
    let written = match sockets.write(&connection.socket, &encoded.bytes) {
        Ok(written) if written == encoded.bytes.len() => return Offered::Written,
        Ok(written) => written,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            0
        }
        Err(_) => return Offered::Broken,
    };
    cut(connection, batch, wire, written, lane, now);
    Offered::Blocked
}

/// The socket took `written` bytes: the rest of the message that it cut is copied, the messages behind it are owed.
fn cut<S>(
    connection: &mut Connection<S>,
    batch: &Rc<Batch>,
    wire: Wire,
    written: usize,
    lane: &LaneFacts,
    now: Moment,
) {
    let encoded = batch.encoded(wire);
    // The first message that has not left whole; one that has not even begun is owed, not copied.
    let at = encoded.ends.partition_point(|&end| end <= written);
    let begin = at.checked_sub(1).map_or(0, |before| encoded.ends[before]);
    let kept = if written > begin { at + 1 } else { at };
    let cold = connection.cold();
    if kept > at {
        cold.rest
            .extend_from_slice(&encoded.bytes[written..encoded.ends[at]]);
    }
    let mut line = streaming_line(lane, batch.after);
    match &batch.load {
        Load::Updates(updates) => {
            if let Some(last) = kept.checked_sub(1) {
                line.sent = Some(updates[last].update.position.clone());
                line.cursor = updates[last].update.position.offset;
            }
            for shared in &updates[kept..] {
                line.owe(shared, now, lane.max);
            }
        }
        Load::Beat(_) => line.beat_due = kept == at,
        Load::News(notice) | Load::Gap(notice, _) if kept == at => {
            let mut bytes = Vec::new();
            wire.append(
                &mut bytes,
                notice.op,
                notice.id.as_ref().map(|id| id as &dyn std::fmt::Display),
                &notice.json,
            );
            cold.reply(None, bytes);
        }
        Load::News(_) | Load::Gap(..) => {}
    }
    if let Load::Gap(_, gap) = &batch.load {
        (line.sent, line.cursor) = (Some(gap.to.clone()), gap.to.offset);
    }
    cold.lines.push(line);
}

/// A line for who leaves the fast path: it has everything up to `after`.
fn streaming_line(lane: &LaneFacts, after: Offset) -> Line {
    let mut line = Line::new(lane.number, lane.mode, lane.policy, None);
    (line.phase, line.greeted, line.life) = (Phase::Streaming, true, lane.life);
    line.cursor = after;
    line.sent = lane.epoch.clone().map(|epoch| Position {
        partition: lane.partition,
        epoch,
        offset: after,
    });
    line
}

/// The slow path: what the batch says goes into the connection's own line of this lane; without one it is gathered.
fn offer<S>(
    connection: &mut Connection<S>,
    batch: &Rc<Batch>,
    wire: Wire,
    lane: &LaneFacts,
    counts: &WorkerCounts,
    now: Moment,
) -> Offered {
    let cold = connection.cold();
    if cold.closing.is_some() {
        // Nothing more is sent to it: what it would be owed would only grow.
        return Offered::Owed;
    }
    if cold.line(lane.number).is_none() {
        if !cold.is_blocked() {
            cold.gathered.push(batch.clone());
            return Offered::Owed;
        }
        cold.lines.push(streaming_line(lane, batch.after));
    }
    let mut disconnect = false;
    match &batch.load {
        Load::Updates(updates) => {
            let Some(line) = cold.line(lane.number).filter(|line| line.life == lane.life) else {
                return Offered::Owed;
            };
            for shared in updates {
                match line.owe(shared, now, lane.max) {
                    Owed::Kept => counts.offers_queued.add(1),
                    Owed::Conflated => counts.conflated.add(1),
                    Owed::Dropped(count) => {
                        counts.offers_queued.add(1);
                        counts.dropped.add(count);
                    }
                    Owed::Overflow => {
                        counts.offers_overflowed.add(1);
                        counts.rejoined.add(1);
                    }
                    Owed::Disconnect => {
                        counts.offers_closed.add(1);
                        disconnect = true;
                    }
                }
            }
        }
        Load::Beat(_) => {
            if let Some(line) = cold.line(lane.number) {
                line.beat_due = true;
            }
        }
        Load::News(notice) => {
            let mut bytes = Vec::new();
            wire.append(&mut bytes, notice.op, None, &notice.json);
            cold.reply(Some(notice.channel.clone()), bytes);
        }
        Load::Gap(_, gap) => {
            if let Some(line) = cold.line(lane.number).filter(|line| line.life == lane.life) {
                line.owe_gap(gap, now);
            }
        }
    }
    if disconnect && cold.closing.is_none() {
        let (mut json, mut bytes) = (Vec::new(), Vec::new());
        write::bye(&mut json, CloseCode::SlowConsumer, None);
        wire.append(&mut bytes, "bye", None, &json);
        cold.reply(None, bytes);
        cold.closing = Some(Closing::AfterFlush(CloseCode::SlowConsumer));
        cold.lines.clear();
        connection.phase = session::Phase::Closing;
    }
    Offered::Owed
}
