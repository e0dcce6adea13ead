//! Lanes and who is in them: subscribing, unsubscribing, leaving.

use super::{
    ChannelSeat, Key, NONE, Outside, Seat, Sockets, Timer, Worker,
    connection::Connection,
    lane::Lane,
    outbox::{Line, Phase},
};
use crate::{
    auth::Permission,
    model::{Channel, FreshnessState, Moment, Policy, Token},
    partition::{
        resume::From,
        tail::{Cursor, Health},
        task::has_room,
    },
    protocol::{CloseCode, ErrorCode, Refusal, StartFrom, Subscribe},
    streams::Stream,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Everything a subscription asks for, over WebSocket or SSE.
struct Wish<'a> {
    channel: &'a Channel,
    token: Option<&'a Token>,
    without_token: From,
    max_rate: Option<f64>,
    policy: Option<Policy>,
    request: Option<u64>,
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    pub(super) fn subscribe(
        &mut self,
        key: Key,
        id: u64,
        wish: &Subscribe,
        now: Moment,
    ) -> Result<(), Refusal> {
        let (token, without_token) = match (&wish.from, wish.history) {
            (Some(StartFrom::Token(token)), None) => (Some(token), From::Now),
            (Some(StartFrom::Earliest), None) => (None, From::Earliest),
            (None, Some(n)) => (None, From::History(n)),
            (None, None) => (None, From::Now),
            (Some(_), Some(_)) => {
                return Err(Refusal::new(
                    ErrorCode::BadOption,
                    "history and from exclude each other",
                ));
            }
        };
        let wish = Wish {
            channel: &wish.channel,
            token,
            without_token,
            max_rate: wish.max_rate,
            policy: wish.policy,
            request: Some(id),
        };
        self.follow(key, &wish, now)
    }

    /// One channel of an event stream: a refusal is told in the stream.
    pub(super) fn follow_sse(
        &mut self,
        key: Key,
        channel: &Channel,
        token: Option<&Token>,
        max_rate: Option<f64>,
        policy: Option<Policy>,
        now: Moment,
    ) {
        let wish = Wish {
            channel,
            token,
            without_token: From::Now,
            max_rate,
            policy,
            request: None,
        };
        if let Err(refusal) = self.follow(key, &wish, now) {
            self.tell_outcome(key, channel, Err(&refusal));
            if self
                .connections
                .peek(key)
                .is_some_and(|connection| connection.lane == super::NONE)
            {
                self.say_goodbye(key, CloseCode::Overloaded, refusal.retry_after_ms);
            }
        }
    }

    fn follow(&mut self, key: Key, wish: &Wish<'_>, now: Moment) -> Result<(), Refusal> {
        let stream = self.outside.stream(wish.channel.stream());
        let stream = stream.ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownStream,
                format!("there is no stream {}", wish.channel.stream()),
            )
        })?;
        stream.check(wish.policy, wish.max_rate, wish.token, &wish.without_token)?;
        self.take_up(&stream);
        if self.is_growing(wish.channel) {
            return Err(Refusal::retry(
                ErrorCode::RetryLater,
                "this channel is just moving to another partition",
                1000,
            ));
        }
        if let Some(&number) = self.channel_numbers.get(wish.channel)
            && self.has_channel(key, number)
        {
            return Err(Refusal::new(
                ErrorCode::AlreadySubscribed,
                format!("this connection has {} already", wish.channel),
            ));
        }
        let partitions = stream.partitions_of(wish.channel);
        let has_room = |at: u32| {
            let requests = &stream.partitions[at as usize].requests;
            has_room(requests, wish.token.is_some())
        };
        if !partitions.iter().copied().all(has_room) {
            return Err(Refusal::retry(
                ErrorCode::Overloaded,
                "too many joins wait for this stream",
                1000,
            ));
        }
        if wish.token.is_none() && self.outside.is_short_of_memory() {
            return Err(Refusal::retry(
                ErrorCode::RetryLater,
                "limits.memory is reached: this node takes only those who resume; another may take more",
                2000,
            ));
        }
        let channel_no = self.channel_seat(wish.channel, now);
        if partitions.len() > 1 {
            // The stream may have grown since the connection was opened.
            self.take_ids_apart(key);
        }
        for partition in partitions {
            let from = match wish.token {
                None => wish.without_token.clone(),
                Some(token) => {
                    let known = token.position(partition).cloned();
                    known.map_or_else(|| stream.beginning(partition, token), From::After)
                }
            };
            let policy = wish.policy.unwrap_or(stream.options().policy);
            let mut line = Line::new(NONE, stream.mode, policy, wish.max_rate);
            line.request = wish.request;
            self.enter(
                key,
                (&stream, partition),
                (channel_no, wish.channel),
                line,
                from,
            );
        }
        self.counts.subscriptions.add(1);
        Ok(())
    }

    /// Makes a connection a member of a channel's lane in one partition, with this line, which asks to begin there.
    pub(super) fn enter(
        &mut self,
        key: Key,
        (stream, partition): (&Arc<Stream>, u32),
        (channel_no, channel): (u32, &Channel),
        mut line: Line,
        from: From,
    ) {
        let lane_no = self.lane(stream, channel_no, partition, channel);
        let (Some(connection), Some(lane)) =
            (self.connections.get(key), self.lanes.get_mut(lane_no))
        else {
            return;
        };
        let place = lane.enter(connection.wire, key.index());
        connection.enter(lane_no, place);
        (line.lane, line.phase) = (lane_no, Phase::Joining(from.clone()));
        connection.cold().lines.push(line);
        self.ask(lane_no, from, key.number());
    }

    /// A wish goes to its partition at the end of the turn, together with those like it: one load serves all.
    pub(super) fn ask(&mut self, lane_no: u32, from: From, member: u64) {
        let Some(lane) = self.lanes.get(lane_no) else {
            return;
        };
        let (seat, channel) = (lane.seat, lane.channel.clone());
        self.wishes.add(seat, channel, from, member);
    }

    fn channel_seat(&mut self, channel: &Channel, now: Moment) -> u32 {
        if let Some(&number) = self.channel_numbers.get(channel) {
            return number;
        }
        self.channel_lives += 1;
        let seat = ChannelSeat {
            channel: channel.clone(),
            lanes: Vec::new(),
            told: (FreshnessState::Live, None),
            beat_due: false,
            life: self.channel_lives,
        };
        let number = self.channels.insert(seat);
        self.channel_numbers.insert(channel.clone(), number);
        self.wheel.add(
            now.plus(self.settings.heartbeat),
            Timer::Beat(number, self.channel_lives),
        );
        number
    }

    fn lane(
        &mut self,
        stream: &Arc<Stream>,
        channel_no: u32,
        partition: u32,
        channel: &Channel,
    ) -> u32 {
        let seat_no = self.seat(stream, partition);
        let seat = &mut self.seats[seat_no as usize];
        if let Some(&lane_no) = seat.lanes.get(channel) {
            return lane_no;
        }
        if seat.lanes.is_empty() {
            let tail = &seat.stream.partitions[partition as usize].tail;
            tail.wake_also(self.wake.clone());
            let pulled = tail.here();
            seat.begin(pulled);
        }
        let lane = Lane::new(
            channel.clone(),
            channel_no,
            seat_no,
            stream.mode,
            seat.cursor.offset,
            (seat.cursor.resets, seat.epoch.clone()),
        );
        let lane_no = self.lanes.insert(lane);
        if let Some(lane) = self.lanes.get_mut(lane_no) {
            lane.number = lane_no;
        }
        seat.lanes.insert(channel.clone(), lane_no);
        if let Some(channel) = self.channels.get_mut(channel_no) {
            channel.lanes.push(lane_no);
        }
        lane_no
    }

    fn seat(&mut self, stream: &Arc<Stream>, partition: u32) -> u32 {
        let known = self
            .seats
            .iter()
            .position(|seat| Arc::ptr_eq(&seat.stream, stream) && seat.partition == partition);
        let at = known.unwrap_or_else(|| {
            self.seats.push(Seat {
                stream: stream.clone(),
                partition,
                cursor: Cursor::default(),
                epoch: None,
                health: Health::default(),
                proofs: VecDeque::new(),
                lanes: HashMap::new(),
                fallen: false,
            });
            self.seats.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    fn has_channel(&self, key: Key, number: u32) -> bool {
        self.connections.peek(key).is_some_and(|connection| {
            let mut lanes = connection.lanes();
            lanes.any(|(lane, _)| self.channel_of(lane) == Some(number))
        })
    }

    pub(super) fn channel_of(&self, lane_no: u32) -> Option<u32> {
        self.lanes.get(lane_no).map(|lane| lane.channel_no)
    }

    /// How many channels a connection has: who has a channel is in all of its lanes, so its first one is counted.
    pub(super) fn channels_of(&self, key: Key) -> usize {
        let Some(connection) = self.connections.peek(key) else {
            return 0;
        };
        let is_first = |&(lane, _): &(u32, u32)| {
            let number = self.channel_of(lane);
            let channel = number.and_then(|number| self.channels.get(number));
            channel.is_some_and(|channel| channel.lanes.first() == Some(&lane))
        };
        connection.lanes().filter(is_first).count()
    }

    fn lanes_of(&self, key: Key) -> Vec<(u32, u32)> {
        let connection = self.connections.peek(key);
        connection.map_or_else(Vec::new, |connection| connection.lanes().collect())
    }

    pub(super) fn unsubscribe(&mut self, key: Key, channel: &Channel) -> Result<(), Refusal> {
        let number = self.channel_numbers.get(channel).copied();
        let Some(number) = number.filter(|&number| self.has_channel(key, number)) else {
            return Err(Refusal::new(
                ErrorCode::NotSubscribed,
                format!("this connection does not have {channel}"),
            ));
        };
        self.leave_channel(key, number);
        Ok(())
    }

    pub(super) fn leave_channel(&mut self, key: Key, number: u32) {
        for (lane_no, _) in self.lanes_of(key) {
            if self.channel_of(lane_no) == Some(number) {
                self.leave(key, lane_no);
            }
        }
        self.counts
            .subscriptions
            .set(self.counts.subscriptions.get().saturating_sub(1));
    }

    /// Leaves every lane.
    pub(super) fn leave_all(&mut self, key: Key) {
        let channels = self.channels_of(key) as u64;
        for (lane_no, _) in self.lanes_of(key) {
            self.leave(key, lane_no);
        }
        self.counts
            .subscriptions
            .set(self.counts.subscriptions.get().saturating_sub(channels));
    }

    fn leave(&mut self, key: Key, lane_no: u32) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let wire = connection.wire;
        let Some(place) = connection.leave(lane_no) else {
            return;
        };
        if let Some(cold) = &mut connection.cold {
            cold.lines.retain(|line| line.lane != lane_no);
            cold.gathered.retain(|batch| batch.lane != lane_no);
        }
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        if let Some((moved, place)) = lane.leave(wire, place)
            && let Some(other) = self.connections.at(moved)
        {
            Connection::moved(other, lane_no, place);
        }
        if lane.is_empty() {
            self.drop_lane(lane_no);
        }
    }

    pub(super) fn drop_lane(&mut self, lane_no: u32) {
        let Some(lane) = self.lanes.take(lane_no) else {
            return;
        };
        if let Some(channel) = self.channels.get_mut(lane.channel_no) {
            channel.lanes.retain(|&other| other != lane_no);
            if channel.lanes.is_empty() {
                self.channels.take(lane.channel_no);
                self.channel_numbers.remove(&lane.channel);
            }
        }
        let seat = &mut self.seats[lane.seat as usize];
        seat.lanes.remove(&lane.channel);
        if seat.lanes.is_empty() {
            seat.stream.partitions[seat.partition as usize]
                .tail
                .wake_no_more(&self.wake);
        }
    }

    /// After a fresh token: channels that it no longer permits end, and the client is told.
    pub(super) fn drop_forbidden(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some(claims) = connection.claims.clone() else {
            return;
        };
        for (lane_no, _) in self.lanes_of(key) {
            let Some(lane) = self.lanes.get(lane_no) else {
                continue;
            };
            if !claims.may(Permission::Subscribe, &lane.channel) {
                let (channel, channel_no) = (lane.channel.clone(), lane.channel_no);
                if !self.has_channel(key, channel_no) {
                    // Another of its partitions took it along.
                    continue;
                }
                self.leave_channel(key, channel_no);
                let refusal = Refusal::new(
                    ErrorCode::Forbidden,
                    "the fresh token does not permit this channel: it has ended",
                );
                self.tell_outcome(key, &channel, Err(&refusal));
            }
        }
    }
}
