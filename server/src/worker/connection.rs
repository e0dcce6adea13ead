//! A connection: a hot part that a sweep touches, and a cold box for what only some have, or only for a while.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use super::{
    batch::Batch,
    outbox::Line,
    slab::{Key, Slab},
    sweep::NONE,
};
use crate::{
    auth::Claims,
    frame::Wire,
    model::{Channel, Epoch, Moment, Token},
    protocol::{CloseCode, rfc6455::Partial},
    session::Phase,
};

/// Room for so many batches stays with a connection of several lanes: they come every turn.
const GATHERED_KEPT: usize = 16;
/// More than one lane: they are in the cold box.
pub const MANY: u32 = NONE - 1;

/// The part that every delivery touches. At most 64 bytes: a test holds it to that.
pub struct Connection<S> {
    /// Its socket.
    pub socket: S,
    /// Its lane, [`NONE`], or [`MANY`].
    pub lane: u32,
    /// Its place in that lane.
    pub place: u32,
    /// When it was opened, in seconds since the node started.
    pub opened_s: u32,
    /// When its token ends, in seconds since 1970: see [`ends_s`].
    pub ends_s: u32,
    /// How its messages are wrapped.
    pub wire: Wire,
    /// What its session waits for.
    pub phase: Phase,
    /// Whether its client lives.
    pub life: Life,
    /// More waits to be read: it is on the worker's list.
    pub unread: bool,
    /// What its token permits.
    pub claims: Option<Arc<Claims>>,
    /// All the rest; none on the fast path.
    pub cold: Option<Box<Cold>>,
}

/// What was heard of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Something, since the last look.
    Heard,
    /// Nothing since.
    Silent,
    /// Nothing since it was sent a ping.
    Asked,
}

/// It has no token, or one that does not end.
pub const ENDLESS: u32 = u32::MAX;

/// When claims end, in the 32 bits that a connection has for it. Beyond the year 2105 they do not.
#[must_use]
pub fn ends_s(claims: Option<&Claims>) -> u32 {
    let ends = claims.and_then(Claims::expires_at_s);
    ends.map_or(ENDLESS, |at| u32::try_from(at).unwrap_or(ENDLESS))
}

/// What waits in the lane of replies and bad news.
#[derive(Debug)]
pub struct Reply {
    /// Of a channel's state: the next one of that channel takes its place.
    pub news_of: Option<Channel>,
    /// The framed message.
    pub bytes: Vec<u8>,
}

/// Why and how a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// When all that waits has left: close with this code.
    AfterFlush(CloseCode),
    /// The close frame was handed over; the peer's own is awaited until then.
    Lingering,
}

/// The cold part.
#[derive(Debug, Default)]
pub struct Cold {
    /// Bytes that the socket cut: they go first.
    pub rest: Vec<u8>,
    /// How many of them have left.
    pub rest_sent: usize,
    /// Replies and bad news: they go before the lines.
    pub replies: VecDeque<Reply>,
    /// Bytes of them.
    pub reply_bytes: usize,
    /// What is owed, by lane. A lane without a line is on the fast path.
    pub lines: Vec<Line>,
    /// All lanes and places, where there are several.
    pub lanes: Vec<(u32, u32)>,
    /// Batches of this turn, for connections with several lanes.
    pub gathered: Vec<Rc<Batch>>,
    /// A message that came in part.
    pub partial: Option<Box<Partial>>,
    /// So many more bytes than one must come before its socket says so.
    pub mark: u16,
    /// Since when the message is not whole.
    pub message_since: Option<Moment>,
    /// Since when the socket takes nothing.
    pub blocked_since: Option<Moment>,
    /// Bytes that left since the last look at its rate.
    pub drained: usize,
    /// Nothing waited at some time since then.
    pub caught_up: bool,
    /// How it ends.
    pub closing: Option<Closing>,
    /// A timer for its next flush is set for this moment.
    pub flush_timer: Option<Moment>,
    /// A timer that looks at its rate is set.
    pub watched: bool,
    /// It is on this turn's list.
    pub touched: bool,
    /// Over SSE with several lanes: what the last id-only block said, and when the next may come.
    pub ids: Ids,
}

/// The id-only blocks of one connection.
#[derive(Debug, Default)]
pub struct Ids {
    /// The id that the client has: the vector that was sent last, or the one that it came with.
    pub sent: Token,
    /// The earliest moment of the next one.
    pub not_before: Moment,
    /// After a snapshot, gap or heartbeat the next one is due at once.
    pub at_once: bool,
}

impl Ids {
    /// A snapshot of this log, or fold, is about to leave: what the client has of the partition under another name no longer
    /// vouches for its rows. Tells whether the id is to be sent anew, without it.
    pub fn take_back(&mut self, (partition, epoch): &(u32, Epoch)) -> bool {
        let known = self.sent.position(*partition);
        known.is_some_and(|known| known.epoch != *epoch) && self.sent.forget(*partition)
    }
}

impl Cold {
    /// Whether the socket cut something, or takes nothing.
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Nothing but what idle connections have.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.rest.is_empty()
            && self.replies.is_empty()
            && self.lines.is_empty()
            && self.gathered.is_empty()
            && self.partial.is_none()
            && self.blocked_since.is_none()
            && self.closing.is_none()
            && self.lanes.is_empty()
    }

    /// Gives back what a burst needed, once it has passed.
    pub fn shrink(&mut self) {
        if self.lines.is_empty() {
            self.lines = Vec::new();
        }
        if self.replies.is_empty() {
            self.replies = VecDeque::new();
        }
        if self.lanes.capacity() > self.lanes.len() {
            self.lanes.shrink_to_fit();
        }
        if self.gathered.is_empty() && self.gathered.capacity() > GATHERED_KEPT {
            self.gathered = Vec::new();
        }
    }

    /// Puts a message into the lane of replies. News of a channel take the place of older news of it.
    pub fn reply(&mut self, news_of: Option<Channel>, bytes: Vec<u8>) {
        if let Some(channel) = &news_of
            && let Some(old) = self
                .replies
                .iter_mut()
                .find(|reply| reply.news_of.as_ref() == Some(channel))
        {
            self.reply_bytes = self.reply_bytes - old.bytes.len() + bytes.len();
            old.bytes = bytes;
            return;
        }
        self.reply_bytes += bytes.len();
        self.replies.push_back(Reply { news_of, bytes });
    }

    /// Bytes that wait here, about.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        let lines: usize = self.lines.iter().map(Line::bytes).sum();
        self.rest.len().saturating_sub(self.rest_sent) + self.reply_bytes + lines
    }

    /// The line of a lane, if it is on the slow path.
    pub fn line(&mut self, lane: u32) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.lane == lane)
    }
}

impl<S> Slab<Connection<S>> {
    /// The cold box of a connection that has one.
    pub fn cold(&mut self, key: Key) -> Option<&mut Cold> {
        self.get(key)?.cold.as_deref_mut()
    }

    /// The same, to look at.
    #[must_use]
    pub fn peek_cold(&self, key: Key) -> Option<&Cold> {
        self.peek(key)?.cold.as_deref()
    }
}

impl<S> Connection<S> {
    /// Whether it has been told why it ends: that has been counted.
    #[must_use]
    pub fn is_lingering(&self) -> bool {
        self.cold
            .as_ref()
            .is_some_and(|cold| cold.closing == Some(Closing::Lingering))
    }

    /// Its cold part, made where there is none.
    pub fn cold(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Its lanes and places.
    pub fn lanes(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let only = (self.lane < MANY).then_some((self.lane, self.place));
        let many = self.cold.as_ref().map_or(&[][..], |cold| &cold.lanes);
        only.into_iter().chain(many.iter().copied())
    }

    /// Notes that it is a member of one more lane.
    pub fn enter(&mut self, lane: u32, place: u32) {
        match self.lane {
            NONE => (self.lane, self.place) = (lane, place),
            MANY => self.cold().lanes.push((lane, place)),
            first => {
                let first_place = self.place;
                self.cold()
                    .lanes
                    .extend([(first, first_place), (lane, place)]);
                self.lane = MANY;
            }
        }
    }

    /// Notes that it left a lane; gives its place there.
    pub fn leave(&mut self, lane: u32) -> Option<u32> {
        if self.lane == lane {
            self.lane = NONE;
            return Some(self.place);
        }
        let cold = self.cold.as_mut()?;
        let at = cold.lanes.iter().position(|&(other, _)| other == lane)?;
        let (_, place) = cold.lanes.swap_remove(at);
        if let [(last, last_place)] = cold.lanes[..] {
            cold.lanes = Vec::new();
            (self.lane, self.place) = (last, last_place);
        }
        Some(place)
    }

    /// Notes its new place in a lane.
    pub fn moved(&mut self, lane: u32, place: u32) {
        if self.lane == lane {
            self.place = place;
        } else if let Some(cold) = &mut self.cold
            && let Some(entry) = cold.lanes.iter_mut().find(|(other, _)| *other == lane)
        {
            entry.1 = place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hot_part_fits_a_cache_line() {
        assert!(
            size_of::<Connection<std::os::fd::OwnedFd>>() <= 64,
            "{}",
            size_of::<Connection<std::os::fd::OwnedFd>>()
        );
    }

    #[test]
    fn lanes_come_and_go() {
        let mut connection = Connection {
            socket: (),
            lane: NONE,
            place: 0,
            opened_s: 0,
            ends_s: ENDLESS,
            wire: Wire::WebSocket,
            phase: Phase::Open,
            life: Life::Silent,
            unread: false,
            claims: None,
            cold: None,
        };
        let lanes = |connection: &Connection<()>| connection.lanes().collect::<Vec<_>>();
        connection.enter(5, 50);
        assert_eq!(
            (lanes(&connection), connection.cold.is_none()),
            (vec![(5, 50)], true)
        );
        connection.enter(6, 60);
        connection.enter(7, 70);
        connection.moved(6, 61);
        assert_eq!(lanes(&connection), [(5, 50), (6, 61), (7, 70)]);
        assert_eq!(connection.leave(5), Some(50));
        assert_eq!(connection.leave(8), None);
        assert_eq!(connection.leave(7), Some(70));
        assert_eq!((lanes(&connection), connection.lane), (vec![(6, 61)], 6));
        assert_eq!(connection.leave(6), Some(61));
        assert_eq!(connection.lane, NONE);
    }
}
