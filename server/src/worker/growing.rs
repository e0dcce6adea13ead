//! What a worker does when a stream has grown: channels that moved to a partition which was added are followed there as well.
//!
//! Does: goes on with the partitions that there were as if nothing had been, and enters everybody who follows a channel that moved
//! into its new lane, where the channel begins as at any subscription. Owns: nothing. Keeps: I5: nobody is told anything of a channel
//! that its own lanes do not prove; an event stream whose ids stood in its frames has them in blocks of their own from then on.

use std::sync::Arc;

use super::{Key, Outside, Sockets, Worker, connection::Connection, lane::Lane, outbox::Line};
use crate::{
    frame::Wire,
    model::{Channel, Mode, Token},
    partition::resume::From,
    streams::Stream,
};

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Goes on with what a stream has grown into. Tells whether all of it is done: a channel that is just being swept is looked at
    /// again when this is asked again.
    pub fn take_up(&mut self, stream: &Arc<Stream>) -> bool {
        self.take_over_seats(stream);
        let growing: Vec<Channel> = self.growing.iter().cloned().collect();
        let of_stream = growing.iter().filter(|one| one.stream() == stream.name);
        for channel in of_stream {
            if self.enter_new_lanes(stream, channel) {
                self.growing.remove(channel);
            }
        }
        !self.growing.iter().any(|one| one.stream() == stream.name)
    }

    /// Whether its members are not all in all of its lanes yet.
    pub(super) fn is_growing(&self, channel: &Channel) -> bool {
        self.growing.contains(channel)
    }

    fn take_over_seats(&mut self, stream: &Arc<Stream>) {
        let mut grown = false;
        for seat in &mut self.seats {
            if !Arc::ptr_eq(&seat.stream, stream) && stream.is_or_was(&seat.stream) {
                (seat.stream, grown) = (stream.clone(), true);
            }
        }
        if grown {
            let followed = self.channel_numbers.keys();
            let of_stream = followed.filter(|channel| channel.stream() == stream.name);
            self.growing.extend(of_stream.cloned());
        }
    }

    /// Enters everybody who follows a channel into the lanes of it that are new; not while one of the others is swept, since its
    /// members would be at two places. Tells whether that is done.
    fn enter_new_lanes(&mut self, stream: &Arc<Stream>, channel: &Channel) -> bool {
        let Some(&number) = self.channel_numbers.get(channel) else {
            return true;
        };
        let lanes = self.channels.get(number).map(|seat| seat.lanes.clone());
        let lanes = lanes.unwrap_or_default();
        let known = |partition: &u32| {
            let mut lanes = lanes.iter().filter_map(|&lane| self.lanes.get(lane));
            lanes.any(|lane| self.seats[lane.seat as usize].partition == *partition)
        };
        let mut homes = stream.partitions_of(channel);
        homes.retain(|partition| !known(partition));
        if homes.is_empty() {
            return true;
        }
        let sweeping = |&lane: &u32| self.lanes.get(lane).is_some_and(Lane::is_sweeping);
        if lanes.iter().any(sweeping) {
            return false;
        }
        for key in self.followers(number) {
            self.take_ids_apart(key);
            let line = self.line_beside(key, &lanes, stream);
            for &partition in &homes {
                // What was written where the channel has moved to is all news to who follows it.
                let from = match stream.mode {
                    Mode::View => From::Now,
                    Mode::Events => From::Earliest,
                };
                let place = (stream, partition);
                self.enter(key, place, (number, channel), line.beside(), from);
            }
        }
        true
    }

    /// A line of that subscription; as the stream has them, where it is on the fast path.
    fn line_beside(&self, key: Key, lanes: &[u32], stream: &Stream) -> Line {
        let cold = self.connections.peek_cold(key);
        let mut lines = cold.iter().flat_map(|cold| &cold.lines);
        let known = lines.find(|line| lanes.contains(&line.lane));
        let plain = || {
            let mut line = Line::new(super::NONE, stream.mode, stream.options().policy, None);
            line.greeted = true;
            line
        };
        known.map_or_else(plain, Line::beside)
    }

    /// An event stream of one lane, with its ids in its frames, is about to have several: from now on they are vectors, in blocks of
    /// their own.
    pub(super) fn take_ids_apart(&mut self, key: Key) {
        let Some(connection) = self.connections.peek(key) else {
            return;
        };
        let before = connection.wire;
        let after = before.with_ids_apart();
        if before == after {
            return;
        }
        let entered: Vec<(u32, u32)> = connection.lanes().collect();
        let given = |&(lane, _): &(u32, u32)| {
            let sent = connection.cold.as_ref().and_then(|cold| {
                let line = cold.lines.iter().find(|line| line.lane == lane)?;
                Some(line.sent.clone())
            });
            sent.unwrap_or_else(|| self.position_at(lane, self.given(connection, lane)))
        };
        let sent = Token::of(entered.iter().filter_map(given));
        for &(lane_no, place) in &entered {
            self.change_wire(key, lane_no, place, (before, after));
        }
        if let Some(connection) = self.connections.get(key) {
            connection.wire = after;
            connection.cold().ids.sent = sent;
        }
    }

    /// Takes a member of a lane that is at rest from those of one wire to those of another.
    fn change_wire(&mut self, key: Key, lane_no: u32, place: u32, (before, after): (Wire, Wire)) {
        let Some(lane) = self.lanes.get_mut(lane_no) else {
            return;
        };
        let moved = lane.leave(before, place);
        let place = lane.enter(after, key.index());
        if let Some((index, place)) = moved
            && let Some(other) = self.connections.at(index)
        {
            Connection::moved(other, lane_no, place);
        }
        if let Some(connection) = self.connections.get(key) {
            Connection::moved(connection, lane_no, place);
        }
    }
}
