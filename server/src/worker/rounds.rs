//! Rounds: every connection is looked at once in a while, a part of them at each tick.
//!
//! A timer for each of them would be memory for each of them, and would stay in the wheel when its connection has gone. So
//! an idle connection has none: its end, and whether its client was heard, are in its hot part, where a round finds them.

use super::{
    CloseCode, Key, NONE, Outside, Phase, Sockets, TICK, Worker,
    connection::{Connection, ENDLESS, Life},
};
use crate::{frame::Wire, model::Moment, protocol::rfc6455};

/// In so many ticks, a second, every token's end is looked at.
const ENDS_TICKS: usize = 4;

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// Goes on with the rounds, by as many parts as ticks have passed; after a long pause by all parts once.
    pub(super) fn go_round(&mut self, now: Moment) {
        let (until, lives_ticks) = (ticks_of(now), self.lives_ticks());
        let first = self.rounded.max(until.saturating_sub(lives_ticks));
        self.rounded = until;
        for tick in first..until {
            for key in self.ended(tick % ENDS_TICKS) {
                self.say_goodbye(key, CloseCode::TokenExpired, None);
            }
            let due = self.connections.every(tick % lives_ticks, lives_ticks);
            for key in due.collect::<Vec<_>>() {
                self.look_whether_it_lives(key);
            }
        }
    }

    /// Whose token has ended, in this part of the slab.
    fn ended(&self, part: usize) -> Vec<Key> {
        let now_s = self.outside.wall_s();
        let has_ended = |connection: &Connection<S::Socket>| {
            connection.ends_s != ENDLESS && u64::from(connection.ends_s) <= now_s
        };
        let ended = self.connections.part(part, ENDS_TICKS, has_ended);
        ended.collect()
    }

    /// Two heartbeats, in ticks: everybody is looked at once in that time.
    fn lives_ticks(&self) -> usize {
        let millis = (self.settings.heartbeat * 2).as_millis();
        usize::try_from(millis.div_ceil(TICK.as_millis()).max(1)).unwrap_or(usize::MAX)
    }

    /// Who has channels is kept alive by their heartbeats: `TCP_USER_TIMEOUT` finds its dead peer. Who has none is asked.
    fn look_whether_it_lives(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.wire != Wire::WebSocket || connection.phase == Phase::Closing {
            return;
        }
        match connection.life {
            Life::Heard => connection.life = Life::Silent,
            Life::Silent | Life::Asked if connection.lane != NONE => {}
            Life::Silent => {
                connection.life = Life::Asked;
                let mut ping = Vec::new();
                rfc6455::frame_header(rfc6455::Opcode::Ping, 0, &mut ping);
                connection.cold().reply(None, ping);
                self.touch(key);
            }
            Life::Asked => self.say_goodbye(key, CloseCode::IdleTimeout, None),
        }
    }
}

/// Ticks since the node started.
pub(super) fn ticks_of(now: Moment) -> usize {
    usize::try_from(u128::from(now.millis()) / TICK.as_millis()).unwrap_or(usize::MAX)
}
