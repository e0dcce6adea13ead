//! Proofs and states: what is live, who is told, and when.
//!
//! Only a proof renews `live`, and it leaves behind the data that makes it true; bad news leaves at once.

use super::{
    ChannelSeat, Key, Outside, Seat, Sockets, Worker,
    batch::{Load, Notice},
    lane::Lane,
    outbox::Phase,
};
use crate::{
    model::{Channel, Freshness, FreshnessState, Moment, Position, StaleReason, Token},
    partition::tail::{Proof, Pulled, least_fresh},
    protocol::write,
};

/// Proofs that a seat remembers.
const PROOFS: usize = 64;

impl Seat {
    /// Goes on from where this pull is, with nothing behind it.
    pub(super) fn begin(&mut self, pulled: Pulled) {
        (self.cursor, self.epoch, self.health, self.fallen) =
            (pulled.cursor, pulled.epoch, pulled.health, false);
        self.proofs.clear();
        self.note_proof();
    }

    /// Remembers the newest proof, and some of the older ones, spread over the time in which they hold.
    pub(super) fn note_proof(&mut self) {
        let Some(proof) = self
            .health
            .proof
            .filter(|proof| proof.head <= self.cursor.offset)
        else {
            return;
        };
        let apart = self.stream.options().freshness_slo / u32::try_from(PROOFS).unwrap_or(1);
        let mut newest_first = self.proofs.iter().rev();
        let (last, before) = (newest_first.next(), newest_first.next());
        let dense = |older: &Proof, newer: &Proof| newer.asked_at.since(older.asked_at) < apart;
        if last
            .zip(before)
            .is_some_and(|(last, before)| dense(before, last))
        {
            self.proofs.pop_back();
        }
        if self.proofs.len() == PROOFS {
            self.proofs.pop_front();
        }
        self.proofs.push_back(proof);
    }

    /// How fresh this partition is.
    pub(super) fn freshness(&self, now: Moment) -> Freshness {
        self.health.freshness(
            self.stream.options().freshness_slo,
            self.stream.options().expect_every,
            now,
        )
    }
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// A channel is as fresh as the least fresh of its partitions.
    pub(super) fn channel_freshness(
        &self,
        channel: &ChannelSeat,
        now: Moment,
    ) -> Option<Freshness> {
        let lanes = channel
            .lanes
            .iter()
            .filter_map(|&lane| self.lanes.get(lane));
        let seats = lanes.map(|lane| &self.seats[lane.seat as usize]);
        let states = seats.map(|seat| {
            let misplaced = &seat.stream.misplaced;
            misplaced.seen_in(seat.freshness(now), &channel.channel)
        });
        least_fresh(states)
    }

    /// Looks at all channels: who is no longer live is told so; who is again gets a heartbeat with the proof of it.
    pub(super) fn look_at_freshness(&mut self, now: Moment) {
        let changed: Vec<(u32, Freshness)> = self
            .channels
            .iter()
            .filter_map(|(number, channel)| {
                let freshness = self.channel_freshness(channel, now)?;
                ((freshness.state, freshness.reason) != channel.told).then_some((number, freshness))
            })
            .collect();
        for (number, freshness) in changed {
            if let Some(channel) = self.channels.get_mut(number) {
                channel.told = (freshness.state, freshness.reason);
            }
            if freshness.state == FreshnessState::Live {
                self.beat(number, now);
            } else {
                self.tell_all(number, freshness);
            }
        }
        self.look_at_lag(now);
    }

    /// Whether what a channel that has moved was in doubt for has been told to whoever is here: bad news may overtake data, this may
    /// not.
    fn is_whole_at(&self, lane_no: u32, here: &Position) -> bool {
        let lane = self.lanes.get(lane_no);
        lane.is_none_or(|lane| {
            let stream = &self.seats[lane.seat as usize].stream;
            stream.misplaced.is_whole_at(&lane.channel, here)
        })
    }

    /// News for everybody who has the channel.
    pub(super) fn tell_all(&mut self, number: u32, freshness: Freshness) {
        let Some(channel) = self.channels.get(number) else {
            return;
        };
        let Some(&lane_no) = channel.lanes.first() else {
            return;
        };
        let notice = news(&channel.channel, freshness);
        if let Some(lane) = self.lanes.get_mut(lane_no) {
            let cursor = self.seats[lane.seat as usize].cursor.offset;
            lane.put_notice(Load::News(notice), cursor);
            self.queue(lane_no);
        }
    }

    /// News for one connection, if its channel is not live.
    pub(super) fn tell_if_not_live(&mut self, key: Key, number: u32) {
        let Some(channel) = self.channels.get(number) else {
            return;
        };
        let name = channel.channel.clone();
        let Some(freshness) = self.channel_freshness(channel, self.now) else {
            return;
        };
        if freshness.state != FreshnessState::Live {
            self.reply(key, "freshness", &news(&name, freshness).json, Some(name));
        }
    }

    /// A connection whose line is older than the stream's objective is told so, once.
    fn look_at_lag(&mut self, now: Moment) {
        let (mut lagging, mut waiting) = (Vec::new(), 0);
        let connections = &mut self.connections;
        let (lanes, seats) = (&self.lanes, &self.seats);
        self.blocked.sort_unstable();
        self.blocked.dedup();
        let mut blocked_now = 0;
        self.blocked.retain(|&key| {
            let Some(cold) = connections.cold(key) else {
                return false;
            };
            waiting += cold.waiting_bytes();
            for line in &mut cold.lines {
                let (Some(since), Some(lane)) = (line.waiting_since, lanes.get(line.lane)) else {
                    continue;
                };
                let age = now.since(since);
                if !line.told_lagging
                    && age > seats[lane.seat as usize].stream.options().freshness_slo
                {
                    line.told_lagging = true;
                    lagging.push((key, lane.channel.clone(), super::millis(age)));
                }
            }
            blocked_now += u64::from(cold.is_blocked());
            cold.is_blocked() || !cold.lines.is_empty()
        });
        self.counts.blocked_now.set(blocked_now);
        self.counts.outbox_bytes.set(waiting as u64);
        self.counts.channels.set(self.channel_numbers.len() as u64);
        for (key, channel, age_ms) in lagging {
            let freshness = Freshness {
                state: FreshnessState::Stale,
                age_ms: Some(age_ms),
                reason: Some(StaleReason::Lagging),
            };
            self.reply(
                key,
                "freshness",
                &news(&channel, freshness).json,
                Some(channel),
            );
        }
    }

    /// After a pull: heartbeats that were waiting for a proof, and lines that wait for their first.
    pub(super) fn look_at_proofs(&mut self, now: Moment) {
        for number in std::mem::take(&mut self.beats_due) {
            self.beat_if_due(number, now);
        }
        self.unproven.sort_unstable();
        self.unproven.dedup();
        for key in std::mem::take(&mut self.unproven) {
            let cold = self.connections.peek_cold(key);
            if cold.is_some_and(|cold| {
                cold.lines
                    .iter()
                    .any(|line| line.unproven_since.is_some() || line.told_lagging)
            }) {
                self.unproven.push(key);
                self.touch(key);
            }
        }
    }

    /// A heartbeat of this channel is due: it goes behind the data of all its lanes. Without a proof that holds, everybody
    /// is told the state instead.
    pub(super) fn beat(&mut self, number: u32, now: Moment) {
        let Some(channel) = self.channels.get(number) else {
            return;
        };
        let Some(freshness) = self.channel_freshness(channel, now) else {
            return;
        };
        if freshness.state == FreshnessState::Live {
            if let Some(channel) = self.channels.get_mut(number) {
                channel.beat_due = true;
            }
            self.beat_if_due(number, now);
        } else {
            self.tell_all(number, freshness);
        }
    }

    /// Puts the heartbeat into the channel's first lane, once every lane is at a position that its proof makes true.
    pub(super) fn beat_if_due(&mut self, number: u32, now: Moment) {
        let Some(channel) = self.channels.get(number).filter(|channel| channel.beat_due) else {
            return;
        };
        let lanes = channel.lanes.clone();
        let name = channel.channel.clone();
        let proved: Option<Vec<(Position, Moment)>> = lanes
            .iter()
            .map(|&lane| {
                let (given, whole_from) = {
                    let lane = self.lanes.get(lane)?;
                    (lane.newest(), lane.whole_from)
                };
                let position = self.position_at(lane, given)?;
                if !self.is_whole_at(lane, &position) {
                    return None;
                }
                let proof = self.proof_for(lane, given, None)?;
                (position.offset >= whole_from).then_some((position, proof.asked_at))
            })
            .collect();
        // In one lane it goes where everybody has just what it names; of several lanes all must be at rest.
        let sweeping = |&lane: &u32| self.lanes.get(lane).is_some_and(Lane::is_sweeping);
        let swept_now = lanes.len() > 1 && lanes.iter().any(sweeping);
        let Some(proved) = proved.filter(|_| !swept_now) else {
            if !self.beats_due.contains(&number) {
                self.beats_due.push(number);
            }
            return;
        };
        let Some(proved_at) = proved.iter().map(|(_, at)| *at).min() else {
            return;
        };
        let slo = lanes
            .first()
            .and_then(|&lane| self.lanes.get(lane))
            .map(|lane| {
                self.seats[lane.seat as usize]
                    .stream
                    .options()
                    .freshness_slo
            });
        let state = self
            .channels
            .get(number)
            .and_then(|channel| self.channel_freshness(channel, now));
        let live = state.is_some_and(|freshness| freshness.state == FreshnessState::Live);
        if !live || slo.is_some_and(|slo| now.since(proved_at) > slo) {
            return;
        }
        let token = Token::of(proved.into_iter().map(|(position, _)| position));
        let mut json = Vec::new();
        write::heartbeat(&mut json, &name, &token, Some(proved_at));
        let notice = Notice {
            channel: name,
            op: "heartbeat",
            json,
            id: Some(token.to_string()),
        };
        if let Some(channel) = self.channels.get_mut(number) {
            channel.beat_due = false;
        }
        let Some(&first) = lanes.first() else { return };
        if let Some(lane) = self.lanes.get_mut(first) {
            let cursor = self.seats[lane.seat as usize].cursor.offset;
            lane.put_notice(Load::Beat(notice), cursor);
            self.queue(first);
        }
    }

    /// The heartbeats of a connection on the slow path: of each channel that waits for one and of which nothing waits.
    pub(super) fn fill_beats(&mut self, key: Key, out: &mut Vec<u8>, now: Moment) {
        let Some(connection) = self.connections.peek(key) else {
            return;
        };
        let wire = connection.wire;
        let Some(cold) = connection.cold.as_ref() else {
            return;
        };
        let wants = |line: &&super::Line| {
            line.beat_due || line.unproven_since.is_some() || line.told_lagging
        };
        let mut numbers: Vec<u32> = cold
            .lines
            .iter()
            .filter(wants)
            .filter_map(|line| self.channel_of(line.lane))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let Some((name, token, proved_at)) = beat_of(self, key, number, now) else {
                continue;
            };
            let mut json = Vec::new();
            write::heartbeat(&mut json, &name, &token, Some(proved_at));
            wire.append(out, "heartbeat", Some(&token), &json);
            let lanes = self
                .channels
                .get(number)
                .map(|channel| channel.lanes.clone())
                .unwrap_or_default();
            let Some(cold) = self.connections.cold(key) else {
                return;
            };
            cold.ids.at_once = true;
            for line in cold
                .lines
                .iter_mut()
                .filter(|line| lanes.contains(&line.lane))
            {
                (line.beat_due, line.unproven_since, line.told_lagging) = (false, None, false);
                if let Some(sent) = line.sent.as_mut()
                    && let Some(position) = token.position(sent.partition)
                {
                    *sent = position.clone();
                } else {
                    line.sent = line
                        .sent
                        .take()
                        .or_else(|| token.positions().first().cloned());
                }
            }
        }
    }
}

/// What a connection's lines of one channel prove: the positions that were sent, and the oldest of their proofs.
fn beat_of<S: Sockets, O: Outside>(
    worker: &Worker<S, O>,
    key: Key,
    number: u32,
    now: Moment,
) -> Option<(Channel, Token, Moment)> {
    let connection = worker.connections.peek(key)?;
    let cold = connection.cold.as_deref()?;
    let channel = worker.channels.get(number)?;
    let (mut token, mut proved_at) = (Token::default(), None::<Moment>);
    for &lane_no in &channel.lanes {
        let given = worker.given(connection, lane_no);
        let mut position = worker.position_at(lane_no, given)?;
        let mut proof = worker.proof_for(lane_no, given, None);
        if let Some(line) = cold.lines.iter().find(|line| line.lane == lane_no) {
            if line.phase != Phase::Streaming || !line.greeted || !line.is_drained() {
                return None;
            }
            if line.is_empty() {
                position.offset = position.offset.max(line.cursor);
                proof = worker.proof_for(lane_no, given, Some(line.cursor));
            } else {
                position = line.sent.clone()?;
                proof = line.proof;
            }
            let asked = proof?.asked_at;
            if line.unproven_since.is_some_and(|since| asked <= since) {
                return None;
            }
        }
        let lane = worker.lanes.get(lane_no)?;
        let seat = &worker.seats[lane.seat as usize];
        let asked = proof?.asked_at;
        if position.offset < lane.whole_from || !worker.is_whole_at(lane_no, &position) {
            return None;
        }
        if seat.freshness(now).state != FreshnessState::Live
            || seat.stream.misplaced.flaw(&channel.channel).is_some()
            || now.since(asked) > seat.stream.options().freshness_slo
        {
            return None;
        }
        proved_at = Some(proved_at.map_or(asked, |at| at.min(asked)));
        token.advance(position);
    }
    Some((channel.channel.clone(), token, proved_at?))
}

fn news(channel: &Channel, freshness: Freshness) -> Notice {
    let mut json = Vec::new();
    write::freshness(&mut json, channel, freshness);
    Notice {
        channel: channel.clone(),
        op: "freshness",
        json,
        id: None,
    }
}
