//! From the tails into the lanes, and a sweep at a time from the lanes to the sockets.

use std::rc::Rc;

use super::{
    Key, Outside, PULL_MAX, Sockets, Worker,
    batch::{Batch, Load},
    connection::Connection,
    lane::{PENDING_MAX, Slice},
    offer::{LaneFacts, Offered, offer, streaming_line, write_shared},
};
use crate::{
    frame::Wire,
    model::{Moment, Position},
    protocol::CloseCode,
};

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
            if lane.room() == 0 {
                lane.behind_from = lane.last_offset();
                continue;
            }
            lane.push(shared);
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
        let mut budget = self.settings.sweep_sockets;
        let most = (budget / 2).max(1);
        for _ in 0..self.busy.len() {
            let Some(lane_no) = self.busy.pop_front() else {
                return;
            };
            let share = budget.min(most);
            budget -= self.sweep_lane(lane_no, share, now).min(budget);
            if self.lanes.get(lane_no).is_some_and(|lane| lane.queued) {
                self.busy.push_back(lane_no);
            }
            if budget == 0 {
                return;
            }
        }
    }

    /// Writes to about `budget` members of a lane; tells to how many.
    fn sweep_lane(&mut self, lane_no: u32, budget: usize, now: Moment) -> usize {
        let Some((facts, rolling)) = self.facts(lane_no).zip(self.may_roll(lane_no)) else {
            return 0;
        };
        let mut offered = 0;
        while offered < budget {
            let Some(lane) = self.lanes.get_mut(lane_no) else {
                return offered;
            };
            let cursor = self.seats[lane.seat as usize].cursor.offset;
            let Some(slice) = lane.slice(cursor, rolling) else {
                self.end_sweep(lane_no, now);
                break;
            };
            offered += self.sweep_slice(&slice, &facts, budget - offered, now);
            let lane = self.lanes.get_mut(lane_no);
            self.swept.extend(lane.and_then(|lane| lane.settle(&slice)));
        }
        self.refill(lane_no);
        if let Some(lane) = self.lanes.get_mut(lane_no) {
            lane.queued = lane.has_work();
        }
        offered
    }

    /// A sweep takes in what comes while it is under way, but where a heartbeat must find all of a channel's lanes at rest.
    fn may_roll(&self, lane_no: u32) -> Option<bool> {
        let channel = self.channels.get(self.channel_of(lane_no)?)?;
        Some(channel.lanes.len() == 1)
    }

    /// Gives a slice to those who are at its beginning, at most `budget` of them.
    fn sweep_slice(
        &mut self,
        slice: &Slice,
        facts: &LaneFacts,
        budget: usize,
        now: Moment,
    ) -> usize {
        let (lanes, connections) = (&mut self.lanes, &mut self.connections);
        let mut turn = std::mem::take(&mut self.turn);
        let lane = lanes.get_mut(facts.number);
        let wire = lane.and_then(|lane| {
            lane.next_members(budget, &mut turn, |member, place| {
                if let Some(connection) = connections.at(member) {
                    connection.moved(facts.number, place);
                }
            })
        });
        if let Some(wire) = wire {
            for batch in &slice.batches {
                self.give(&turn, batch, wire, facts, now);
            }
        }
        let offered = turn.len();
        turn.clear();
        self.turn = turn;
        offered
    }

    /// Gives a batch to some members: the shared bytes, one write each.
    fn give(
        &mut self,
        members: &[u32],
        batch: &Rc<Batch>,
        wire: Wire,
        facts: &LaneFacts,
        now: Moment,
    ) {
        let encoded = batch.encoded(wire);
        let (mut written, mut blocked) = (0, 0);
        for &member in members {
            let Some(connection) = self.connections.at(member) else {
                continue;
            };
            let offered = match connection.cold {
                None => write_shared(
                    &mut self.sockets,
                    connection,
                    (batch, encoded),
                    wire,
                    facts,
                    now,
                ),
                Some(_) => offer(connection, batch, wire, facts, &self.counts, now),
            };
            if offered == Offered::Written {
                written += 1;
            } else {
                blocked += u64::from(offered == Offered::Blocked);
                self.not_written(member, offered, now);
            }
        }
        self.counts.writes.add(written);
        self.counts
            .sent_bytes
            .add(written * encoded.bytes.len() as u64);
        self.counts.blocked.add(blocked);
        match batch.load {
            Load::Updates(_) => {
                let messages = batch.len() as u64;
                self.counts.deliveries.add(written * messages);
                self.counts.offers_written.add(written * messages);
                self.counts.offers_queued.add(blocked * messages);
            }
            Load::Beat(_) | Load::News(_) | Load::Gap(..) => {
                self.counts.notices.add(members.len() as u64);
            }
        }
    }

    /// A member that does not have the whole batch now: it is owed it, or it is gone.
    fn not_written(&mut self, index: u32, offered: Offered, now: Moment) {
        let key = self.connections.key(index);
        match offered {
            Offered::Written => {}
            Offered::Owed => self.touch(key),
            Offered::Blocked => self.note_blocked(key, now),
            Offered::Broken => self.close(key, CloseCode::Normal),
        }
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
        lane.end_sweep(|member, place| {
            if let Some(connection) = connections.at(member) {
                Connection::moved(connection, lane_no, place);
            }
        });
        let channel_no = lane.channel_no;
        if lane.is_empty() {
            return self.drop_lane(lane_no);
        }
        self.beat_if_due(channel_no, now);
    }

    /// A lane that had more than it may hold reads on from the tail, once there is room.
    fn refill(&mut self, lane_no: u32) {
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        let room = lane.room();
        let Some(from) = lane.behind_from.filter(|_| room >= PENDING_MAX / 2) else {
            return;
        };
        let seat = &self.seats[lane.seat as usize];
        if seat.fallen {
            return;
        }
        let tail = &seat.stream.partitions[seat.partition as usize].tail;
        match tail.between(&lane.channel, from, seat.cursor.offset, room) {
            Some(more) if tail.cursor().resets == seat.cursor.resets => {
                if !lane.has_data() {
                    lane.swept = from;
                }
                let last = more.last().filter(|_| more.len() == room);
                lane.behind_from = last.map(|last| last.update.position.offset);
                more.into_iter().for_each(|shared| lane.push(shared));
                self.queue(lane_no);
            }
            // First everybody gets what is here: then all are at one place.
            _ if lane.has_data() => {}
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
