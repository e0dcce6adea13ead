//! Joins: the wishes of a turn, and what comes back from partitions.

use super::{
    Key, Outside, Sockets, Timer, Worker,
    batch::{Load, Notice},
    lane::Lane,
    outbox::{Line, Phase},
};
use crate::{
    frame::Wire,
    model::{Channel, Moment, Offset, Position},
    partition::{Answer, Begin, Gap, Join, Joined, resume::From, tail::Tail, task::Request},
    protocol::{CloseCode, ErrorCode, Outcome, Refusal, write},
};
use std::{collections::HashMap, time::Duration};

/// A member that is a whole lane, not a connection: its fast members, who are all at the same position.
const WHOLE_LANE: u64 = 1 << 63;
/// After a rejoin was refused, it is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Joins of one turn, those alike together, in the order in which they were first wished.
#[derive(Default)]
pub(super) struct Wishes {
    places: HashMap<(u32, Channel, From), usize>,
    wishes: Vec<((u32, Channel, From), Vec<u64>)>,
}

impl Wishes {
    pub(super) fn add(&mut self, seat: u32, channel: Channel, from: From, member: u64) {
        let wish = (seat, channel, from);
        let place = *self.places.entry(wish.clone()).or_insert_with(|| {
            self.wishes.push((wish, Vec::new()));
            self.wishes.len() - 1
        });
        self.wishes[place].1.push(member);
    }

    pub(super) fn take(&mut self) -> Vec<((u32, Channel, From), Vec<u64>)> {
        self.places.clear();
        std::mem::take(&mut self.wishes)
    }
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Sends the wishes of this turn to their partitions, those alike together.
    pub(super) fn send_wishes(&mut self, now: Moment) {
        for ((seat_no, channel, from), members) in self.wishes.take() {
            self.counts.joins.add(members.len() as u64);
            let seat = &self.seats[seat_no as usize];
            let join = Join {
                seat: seat_no,
                channel: channel.clone(),
                from: from.clone(),
                arrived: now,
                members,
                reply: self.mailbox.clone(),
                told: false,
            };
            let requests = &seat.stream.partitions[seat.partition as usize].requests;
            if let Err(error) = requests.try_send(Request::Join(join)) {
                let (tokio::sync::mpsc::error::TrySendError::Full(request)
                | tokio::sync::mpsc::error::TrySendError::Closed(request)) = error;
                let Request::Join(join) = request else {
                    continue;
                };
                let refusal = Refusal::retry(
                    ErrorCode::Overloaded,
                    "too many joins wait for this stream",
                    1000,
                );
                let answer = Answer::Refused(refusal);
                self.on_joined(
                    &Joined {
                        seat: seat_no,
                        channel,
                        from,
                        members: join.members,
                        arrived: now,
                        answer,
                    },
                    now,
                );
            }
        }
    }

    pub(super) fn on_joined(&mut self, joined: &Joined, now: Moment) {
        let Some(seat) = self.seats.get(joined.seat as usize) else {
            return;
        };
        let Some(&lane_no) = seat.lanes.get(&joined.channel) else {
            return;
        };
        for &member in &joined.members {
            if member & WHOLE_LANE != 0 {
                self.lane_joined(lane_no, joined, now);
            } else {
                self.line_joined(Key::from_number(member), lane_no, joined, now);
            }
        }
    }

    fn line_joined(&mut self, key: Key, lane_no: u32, joined: &Joined, now: Moment) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(line) = connection.cold.as_mut().and_then(|cold| cold.line(lane_no)) else {
            return;
        };
        let Phase::Joining(from) = &line.phase else {
            return;
        };
        if *from != joined.from {
            // The answer to an earlier wish: the client has left since, and come again.
            return;
        }
        match &joined.answer {
            Answer::Held => self.held(key, lane_no),
            Answer::Refused(refusal) if !line.greeted => self.refused(key, lane_no, refusal),
            Answer::Refused(_) => {
                (line.phase, line.retry_later) = (Phase::Behind(from.clone()), true);
                self.wheel.add(now.plus(RETRY), Timer::Retry(key));
            }
            Answer::Begin(begin) => self.begin_line(key, lane_no, begin, joined.arrived, now),
        }
    }

    fn begin_line(&mut self, key: Key, lane_no: u32, begin: &Begin, arrived: Moment, now: Moment) {
        let Some(lane) = self.lanes.get(lane_no) else {
            return;
        };
        let seat = &self.seats[lane.seat as usize];
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(line) = connection.cold.as_mut().and_then(|cold| cold.line(lane_no)) else {
            return;
        };
        if begin.life != seat.cursor.resets || seat.fallen {
            // An answer of an earlier life of the log, or one that this worker can't join to what it has: ask again.
            if let Phase::Joining(from) = &line.phase {
                line.phase = Phase::Behind(from.clone());
            }
            return self.touch(key);
        }
        line.begin(begin, arrived, now);
        line.outcome = Some(begin.outcome);
        if begin.at.offset < seat.cursor.offset {
            // This worker has pulled further than the answer reaches.
            let tail = &seat.stream.partitions[seat.partition as usize].tail;
            match tail.between(
                &lane.channel,
                begin.at.offset,
                seat.cursor.offset,
                usize::MAX,
            ) {
                Some(missing) => {
                    for shared in &missing {
                        line.owe(shared, now, self.settings.outbox);
                    }
                    line.cursor = line.cursor.max(seat.cursor.offset);
                }
                None => line.phase = Phase::Behind(From::After(begin.at.clone())),
            }
        }
        self.unproven.push(key);
        self.greet_channel(key, lane_no);
        self.touch(key);
    }

    /// Says how a subscription begins, once all its partitions have.
    fn greet_channel(&mut self, key: Key, lane_no: u32) {
        let Some(number) = self.channel_of(lane_no) else {
            return;
        };
        let Some(channel) = self.channels.get(number) else {
            return;
        };
        let (name, lanes) = (channel.channel.clone(), channel.lanes.clone());
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        let (mut outcome, mut waiting) = (None, false);
        for line in cold.lines.iter().filter(|line| lanes.contains(&line.lane)) {
            if line.greeted {
                continue;
            }
            waiting |= line.outcome.is_none();
            outcome = worst(outcome, line.outcome);
        }
        let Some(outcome) = outcome else { return };
        if waiting {
            return;
        }
        let (mut request, mut held) = (None, false);
        for line in cold
            .lines
            .iter_mut()
            .filter(|line| lanes.contains(&line.lane))
        {
            held |= line.held;
            request = line.request.take().or(request);
            (line.greeted, line.outcome) = (true, None);
        }
        match request.filter(|_| !held) {
            Some(id) => {
                let mut json = Vec::new();
                write::subscribed(&mut json, id, outcome);
                self.reply(key, "ok", &json, None);
            }
            None => self.tell_outcome(key, &name, Ok(outcome)),
        }
        self.tell_if_not_live(key, number);
    }

    pub(super) fn tell_outcome(
        &mut self,
        key: Key,
        channel: &Channel,
        outcome: Result<Outcome, &Refusal>,
    ) {
        let mut json = Vec::new();
        write::outcome(&mut json, channel, outcome);
        self.reply(key, "outcome", &json, None);
    }

    /// The node is behind: the client is told once, and its outcome follows.
    fn held(&mut self, key: Key, lane_no: u32) {
        let Some(number) = self.channel_of(lane_no) else {
            return;
        };
        let Some(channel) = self.channels.get(number) else {
            return;
        };
        let (name, lanes) = (channel.channel.clone(), channel.lanes.clone());
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        let mut lines = cold
            .lines
            .iter_mut()
            .filter(|line| lanes.contains(&line.lane) && !line.greeted);
        let (mut request, mut told) = (None, true);
        lines.by_ref().for_each(|line| {
            told &= line.held;
            request = line.request.or(request);
            line.held = true;
        });
        // Nothing is said of a line that only begins again: its freshness says it.
        if told {
            return;
        }
        match request {
            Some(id) => {
                let mut json = Vec::new();
                write::subscribed(&mut json, id, Outcome::CatchingUp);
                self.reply(key, "ok", &json, None);
            }
            None => self.tell_outcome(key, &name, Ok(Outcome::CatchingUp)),
        }
    }

    fn refused(&mut self, key: Key, lane_no: u32, refusal: &Refusal) {
        let Some(number) = self.channel_of(lane_no) else {
            return;
        };
        let Some(channel) = self.channels.get(number) else {
            return;
        };
        let name = channel.channel.clone();
        let Some(cold) = self.connections.cold(key) else {
            return;
        };
        let Some(line) = cold.line(lane_no) else {
            return;
        };
        let request = line.request.filter(|_| !line.held);
        match request {
            Some(id) => self.refuse(key, Some(id), refusal),
            None => self.tell_outcome(key, &name, Err(refusal)),
        }
        self.leave_channel(key, number);
        let events = self
            .connections
            .peek(key)
            .is_some_and(|connection| connection.wire != Wire::WebSocket);
        if events {
            // A plain reader has no other way to ask again than to come again.
            self.say_goodbye(key, CloseCode::Overloaded, refusal.retry_after_ms);
        }
    }

    /// The worker fell off the tail, or the tail has another life: once what was pulled has been swept, every lane of the
    /// seat goes through the resume table with its last position.
    pub(super) fn rejoin_fallen(&mut self) {
        for seat_no in 0..self.seats.len() {
            let seat = &self.seats[seat_no];
            if !seat.fallen {
                continue;
            }
            let mut lanes: Vec<u32> = seat.lanes.values().copied().collect();
            lanes.sort_unstable();
            let busy = |lane_no: &u32| self.lanes.get(*lane_no).is_some_and(Lane::has_work);
            if lanes.iter().any(busy) {
                continue;
            }
            let (old_epoch, old, partition) =
                (seat.epoch.clone(), seat.cursor.offset, seat.partition);
            let tail = seat.stream.partitions[partition as usize].tail.clone();
            let pulled = tail.here();
            let seat = &mut self.seats[seat_no];
            seat.begin(pulled);
            for lane_no in lanes {
                let Some(lane) = self.lanes.get_mut(lane_no) else {
                    continue;
                };
                let at = lane.behind_from.take().unwrap_or(old);
                let position = old_epoch.clone().map(|epoch| Position {
                    partition,
                    epoch,
                    offset: at,
                });
                self.rejoin_lane(lane_no, position);
            }
        }
    }

    /// Asks for a whole lane, and for each of its lines. A rejoin that is under way already goes on from where it began.
    pub(super) fn rejoin_lane(&mut self, lane_no: u32, at: Option<Position>) {
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        lane.behind_from = None;
        if let (None, Some(position)) = (&lane.rejoining, &at) {
            lane.swept = position.offset;
        }
        let asked = lane.rejoining.is_some();
        let from = lane
            .rejoining
            .get_or_insert_with(|| at.map_or(From::Now, From::After))
            .clone();
        let members: Vec<u32> = lane.members().collect();
        self.counts.rejoined.add(members.len() as u64);
        for index in members {
            let key = self.connections.key(index);
            if let Some(line) = self
                .connections
                .cold(key)
                .and_then(|cold| cold.line(lane_no))
            {
                line.restart();
                self.touch(key);
            }
        }
        if !asked {
            self.ask_for_lane(lane_no, from);
        }
    }

    fn ask_for_lane(&mut self, lane_no: u32, from: From) {
        if let Some(lane) = self.lanes.get_mut(lane_no) {
            lane.refused = false;
            self.ask(lane_no, from, WHOLE_LANE | u64::from(lane_no));
        }
    }

    /// A lane whose rejoin was refused asks again, from where its members still are.
    pub(super) fn retry_lane(&mut self, lane_no: u32) {
        if let Some(lane) = self.lanes.get(lane_no).filter(|lane| lane.refused)
            && let Some(from) = lane.rejoining.clone()
        {
            self.ask_for_lane(lane_no, from);
        }
    }

    /// The answer for the fast members of a lane. It waits for a sweep under way, whose members would be at two places.
    fn lane_joined(&mut self, lane_no: u32, joined: &Joined, now: Moment) {
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        if lane.rejoining.as_ref() != Some(&joined.from) {
            // The answer to an earlier question, or to an earlier lane of this channel.
            return;
        }
        if lane.has_work() {
            let members = vec![WHOLE_LANE | u64::from(lane_no)];
            return self.deferred.push(Joined {
                members,
                ..joined.clone()
            });
        }
        let begin = match &joined.answer {
            Answer::Held => return,
            Answer::Refused(_) => {
                // Until it is answered the clients' leases lapse by themselves.
                lane.refused = true;
                self.wheel.add(now.plus(RETRY), Timer::RetryLane(lane_no));
                return;
            }
            Answer::Begin(begin) => begin,
        };
        let seat = &self.seats[lane.seat as usize];
        let tail = seat.stream.partitions[seat.partition as usize].tail.clone();
        let upto = seat.cursor.offset;
        let missing = tail.between(&lane.channel, begin.at.offset, upto, usize::MAX);
        let holds = begin.life == seat.cursor.resets && !seat.fallen;
        let Some(missing) = missing.filter(|_| holds) else {
            // Of an earlier life of the log, or it can't be joined to what this worker has: nothing of it has been sent.
            return self.ask_for_lane(lane_no, joined.from.clone());
        };
        (lane.rejoining, lane.life) = (None, (begin.life, seat.epoch.clone()));
        (lane.swept, lane.skip_to) = (begin.at.offset, begin.at.offset);
        if let Some(gap) = &begin.gap {
            lane.push_gap(gap_load(&lane.channel, gap));
        }
        lane.whole_from = begin.at.offset;
        if begin.snapshot.is_none() {
            if let Some(first) = begin.updates.first() {
                lane.swept = Offset::new(first.update.position.offset.number() - 1);
            }
            let updates = begin.updates.iter().cloned();
            updates.for_each(|shared| lane.push(shared));
        }
        missing.into_iter().for_each(|shared| lane.push(shared));
        lane.skip_to = lane.skip_to.max(upto);
        let (upto, members): (Offset, Vec<u32>) = (lane.skip_to, lane.members().collect());
        for &index in &members {
            self.catch_up_line(lane_no, index, upto, &tail, now);
        }
        if begin.snapshot.is_some() {
            self.snapshot_for_fast(lane_no, &members, begin, joined.arrived, now);
        }
        self.queue(lane_no);
    }

    /// While a lane rejoined, nothing came through it: a line that follows already gets what it missed from the tail; one of
    /// the life before goes through the resume table.
    fn catch_up_line(&mut self, lane_no: u32, index: u32, upto: Offset, tail: &Tail, now: Moment) {
        let Some(lane) = self.lanes.get(lane_no) else {
            return;
        };
        let key = self.connections.key(index);
        let Some(line) = self
            .connections
            .cold(key)
            .and_then(|cold| cold.line(lane_no))
        else {
            return;
        };
        if line.phase != Phase::Streaming {
            return;
        }
        if line.life != lane.life.0 {
            line.restart();
        } else {
            match tail.between(&lane.channel, line.cursor, upto, usize::MAX) {
                Some(missing) => {
                    for shared in &missing {
                        line.owe(shared, now, self.settings.outbox);
                    }
                    line.cursor = line.cursor.max(upto);
                }
                None => line.restart(),
            }
        }
        self.touch(key);
    }

    /// Fast members get a line each: the snapshot's bytes are shared, what is left of them is not.
    fn snapshot_for_fast(
        &mut self,
        lane_no: u32,
        members: &[u32],
        begin: &Begin,
        arrived: Moment,
        now: Moment,
    ) {
        let Some(lane) = self.lanes.get(lane_no) else {
            return;
        };
        let policy = self.seats[lane.seat as usize].stream.options().policy;
        let mode = lane.mode;
        for &index in members {
            let key = self.connections.key(index);
            let Some(connection) = self.connections.get(key) else {
                continue;
            };
            if connection.cold().line(lane_no).is_some() {
                continue;
            }
            let mut line = Line::new(lane_no, mode, policy, None);
            line.greeted = true;
            line.phase = Phase::Joining(From::Now);
            line.begin(begin, arrived, now);
            connection.cold().lines.push(line);
            self.unproven.push(key);
            self.touch(key);
        }
    }
}

pub(super) fn gap_json(channel: &Channel, gap: &Gap) -> Vec<u8> {
    let mut json = Vec::new();
    write::gap(
        &mut json,
        channel,
        &gap.from,
        &gap.to,
        gap.dropped,
        gap.reason,
    );
    json
}

fn gap_load(channel: &Channel, gap: &Gap) -> Load {
    Load::Gap(
        Notice {
            channel: channel.clone(),
            op: "gap",
            json: gap_json(channel, gap),
            id: Some(gap.to.to_string()),
        },
        gap.clone(),
    )
}

/// Of several partitions' outcomes the one that says most about what the client is to expect.
fn worst(a: Option<Outcome>, b: Option<Outcome>) -> Option<Outcome> {
    match (a, b) {
        (Some(Outcome::Snapshot(x)), Some(Outcome::Snapshot(y))) => {
            Some(Outcome::Snapshot(x.max(y)))
        }
        (Some(Outcome::Snapshot(reason)), _) | (_, Some(Outcome::Snapshot(reason))) => {
            Some(Outcome::Snapshot(reason))
        }
        (a, b) => a.or(b),
    }
}
