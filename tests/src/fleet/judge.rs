//! The oracle: goes through what each client heard, and holds it against the truth.
//!
//! Does: plays a client's history to a second copy of what a client holds ([`Held`]), and checks every message before and
//! after. Owns: the verdicts. Never knows: nodes, sockets, faults. Keeps: nothing depends on how quick the machine is: what is
//! compared is what was heard, what was in the log, and what was proved; only the waiting for rest has a limit.
//!
//! After a verdict the channel goes on from the truth, so that one fault is one verdict.

mod age;
mod lines;
mod rest;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeSet;

use tidegate::model::{Mode, Position, Token};

use super::{
    held::{Held, Lease},
    history::{Happened, History, Manner, THE_END, What},
    message::{Message, Outcome},
    scene::{HEARTBEAT_MS, Ms, SLO_MS, Scene},
    truth::{Life, Truth},
};

pub(super) use rest::unsettled;

/// How long what a proof says is under way, at most.
const TRANSIT_MS: Ms = 500;
/// So much later than the log took it, nothing that is shown as live lacks a change: freshness_slo, live_for, transit.
pub(super) const BOUND_MS: Ms = SLO_MS + (HEARTBEAT_MS + SLO_MS) + TRANSIT_MS;
/// Of what happened before a violation so much is shown.
const STORY: usize = 30;
/// … and of each thing so many bytes.
const SHOWN: usize = 400;

/// What a client must never see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A change never came, in silence.
    Lost,
    /// A change came twice over one connection.
    Doubled,
    /// A change came after a later one, or a view went back.
    Reordered,
    /// A view was shown as live that was older than that may be.
    UnmarkedStale,
    /// A subscription did not go on where its token says.
    WrongResume,
    /// Something that no log holds.
    Invented,
    /// At rest a view is not what the log comes to, or is not live.
    NotConverged,
    /// A message that breaks the protocol.
    Garbled,
    /// The log itself does not have what it acknowledged: the run says nothing.
    LogContradicts,
}

/// A violation.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What it is.
    pub kind: Kind,
    /// At which client, by which manner.
    pub client: usize,
    /// The client, the channel, the place, what was seen and what should have been.
    pub text: String,
    /// What had happened to the client and that channel before.
    pub story: String,
}

/// Where a connection is in one partition of a channel.
#[derive(Debug, Default)]
struct Line {
    last: Option<Position>,
    delivered: BTreeSet<u64>,
    /// Nothing has come since the subscription went on from its token.
    is_fresh: bool,
}

/// What the judge keeps of one channel.
struct Seat {
    channel: usize,
    held: Held,
    asked: Option<Token>,
    outcome: Option<Outcome>,
    lines: Vec<Line>,
    /// Of these partitions the rows lack what had been deleted from the log.
    incomplete: BTreeSet<u32>,
    hushed: bool,
    /// It has been what the log comes to in the end, and live.
    has_rested: bool,
}

/// The judge of one client.
pub(super) struct Judge<'a> {
    scene: &'a Scene,
    truth: &'a Truth,
    history: &'a History,
    lease: Lease,
    began: Ms,
    seats: Vec<Seat>,
    verdicts: Vec<Verdict>,
    at: usize,
}

/// Goes through a client's history; at `rest` everything was calm.
pub(super) fn judge(scene: &Scene, truth: &Truth, history: &History, rest: Ms) -> Vec<Verdict> {
    let seat = |&channel: &usize| {
        let stream = scene.stream_of(channel);
        Seat {
            channel,
            held: Held::new(stream.mode),
            asked: None,
            outcome: None,
            lines: (0..stream.partitions).map(|_| Line::default()).collect(),
            incomplete: BTreeSet::new(),
            hushed: false,
            has_rested: false,
        }
    };
    let mut judge = Judge {
        scene,
        truth,
        history,
        lease: Lease::OF_POLLS,
        began: 0,
        seats: history.channels.iter().map(seat).collect(),
        verdicts: Vec::new(),
        at: 0,
    };
    for (at, happened) in history.happened.iter().enumerate() {
        judge.at = at;
        if matches!(happened.what, What::Ended(THE_END)) {
            break;
        }
        judge.happened(happened);
    }
    judge.at_rest(rest);
    judge.verdicts
}

impl Judge<'_> {
    fn happened(&mut self, happened: &Happened) {
        let now = happened.at;
        match &happened.what {
            What::Began { tokens, .. } => self.begin(tokens, now),
            What::Heard(Message::Hello {
                now_ms,
                live_for_ms,
            }) => {
                self.lease = Lease::new(self.began, *now_ms, *live_for_ms);
            }
            What::Heard(message) => self.heard(message, now),
            What::Garbled(text) => self.accuse(None, Kind::Garbled, text.clone()),
            What::Ended(_) => {
                for at in 0..self.seats.len() {
                    self.check_age(at, now);
                    if self.history.manner != Manner::Poll {
                        self.seats[at].held.cut();
                    }
                }
            }
        }
    }

    fn begin(&mut self, tokens: &[(usize, Option<Token>)], now: Ms) {
        self.began = now;
        for (channel, token) in tokens {
            let Some(seat) = self.seats.iter_mut().find(|seat| seat.channel == *channel) else {
                continue;
            };
            if self.history.manner != Manner::Poll {
                seat.held.cut();
            }
            (seat.asked, seat.outcome, seat.hushed) = (token.clone(), None, false);
            for (partition, line) in (0..).zip(&mut seat.lines) {
                let asked = token.as_ref().and_then(|token| token.position(partition));
                *line = Line {
                    last: asked.cloned(),
                    delivered: BTreeSet::new(),
                    is_fresh: asked.is_some(),
                };
            }
            if token.is_none() {
                seat.held.forget();
                seat.incomplete.clear();
            }
        }
    }

    fn heard(&mut self, message: &Message, now: Ms) {
        let found = message
            .channel()
            .and_then(|channel| self.seats.iter().position(|seat| seat.channel == channel));
        let Some(at) = found else {
            if message.channel().is_some() {
                self.accuse(None, Kind::Garbled, format!("not asked for: {message:?}"));
            }
            return;
        };
        self.check_age(at, now);
        let moves = matches!(
            message,
            Message::Update { .. } | Message::Snapshot { .. } | Message::Gap { .. }
        );
        self.seats[at].hushed &= !moves;
        let told = matches!(
            message,
            Message::Outcome { .. } | Message::Freshness { .. } | Message::View { .. }
        );
        if !self.seats[at].held.joined && !told {
            self.accuse(
                Some(at),
                Kind::Garbled,
                format!("before the outcome: {message:?}"),
            );
        }
        let snapshot = match message {
            Message::Update {
                at: position,
                row,
                value,
                ..
            } => {
                self.update(at, position, (*row, *value));
                None
            }
            Message::Gap {
                from,
                to,
                dropped,
                why,
                ..
            } => {
                self.gap(at, from, to, *dropped, *why);
                None
            }
            Message::Outcome { outcome, .. } => {
                self.seats[at].outcome = Some(*outcome);
                None
            }
            Message::Snapshot {
                at: Some(position), ..
            } => {
                self.snapshot_place(at, position);
                Some(position)
            }
            Message::View {
                token,
                rows,
                live,
                age_ms,
                ..
            } => {
                self.view(
                    at,
                    token,
                    rows.as_deref(),
                    live.then_some(*age_ms).flatten(),
                );
                None
            }
            _ => None,
        };
        let lease = self.lease;
        self.seats[at].held.take(message, now, lease);
        if let Some(position) = snapshot {
            self.snapshot_rows(at, position);
        }
        if let Message::Heartbeat { token, .. } = message {
            self.heartbeat(at, token);
        }
        if let Message::Heartbeat { .. } | Message::View { .. } = message {
            let seat = &self.seats[at];
            let unsettled = unsettled(self.scene, self.truth, seat.channel, &seat.held, now);
            self.seats[at].has_rested |= unsettled.is_none();
        }
    }

    fn life(&self, at: usize, position: &Position) -> Option<&Life> {
        self.truth.life(
            self.scene.channels[self.seats[at].channel].1,
            &position.epoch,
        )
    }

    fn mode(&self, at: usize) -> Mode {
        self.scene.stream_of(self.seats[at].channel).mode
    }

    fn at_rest(&mut self, rest: Ms) {
        for at in 0..self.seats.len() {
            self.check_age(at, rest);
            let seat = &self.seats[at];
            let lacks = rest::lacks(self.scene, self.truth, seat.channel, &seat.held);
            let never_live = || format!("was never live at {}", seat.held.token);
            if let Some(text) = lacks.or_else(|| (!seat.has_rested).then(never_live)) {
                self.accuse(Some(at), Kind::NotConverged, text);
            }
        }
    }

    fn accuse(&mut self, seat: Option<usize>, kind: Kind, mut text: String) {
        let now = self
            .history
            .happened
            .get(self.at)
            .map_or(0, |happened| happened.at);
        let channel = seat.map(|at| self.seats[at].channel);
        let name = channel.map_or("", |channel| &self.scene.channels[channel].0);
        let (client, manner) = (self.history.client, self.history.manner);
        let whose = format!("{kind:?}: client {client} ({manner:?}) {name} t={now}: ");
        text.insert_str(0, &whose);
        let story = self.story(channel);
        self.verdicts.push(Verdict {
            kind,
            client,
            text,
            story,
        });
    }

    /// What happened to the client and that channel before.
    fn story(&self, channel: Option<usize>) -> String {
        let concerns = |happened: &&Happened| match &happened.what {
            What::Heard(message) => message.channel().is_none() || message.channel() == channel,
            What::Began { .. } | What::Garbled(_) | What::Ended(_) => true,
        };
        let upto = (self.at + 1).min(self.history.happened.len());
        let mut last: Vec<_> = self.history.happened[..upto]
            .iter()
            .rev()
            .filter(concerns)
            .take(STORY)
            .collect();
        last.reverse();
        let lines = last.iter().map(|happened| {
            let mut text = format!("    t={} {:?}", happened.at, happened.what);
            text.truncate(text.floor_char_boundary(SHOWN));
            text + "\n"
        });
        lines.collect()
    }
}
