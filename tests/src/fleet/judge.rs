//! The oracle: goes through what each client heard, and holds it against the truth.
//!
//! Does: plays a client's history to a second copy of what a client holds ([`Held`]), and checks every message before and
//! after. Owns: the verdicts. Never knows: nodes, sockets, faults. Keeps: nothing depends on how quick the machine is: what is
//! compared is what was heard, what was in the log, and what was proved; only the waiting for rest has a limit.
//!
//! After a verdict the channel goes on from the truth, so that one fault is one verdict.

use std::collections::BTreeSet;

use tidegate::model::{Mode, Position, Token};

use super::{
    held::{Held, Lease, Rows, is_after},
    history::{Happened, History, Manner, THE_END, What},
    message::{Message, Outcome, Why},
    scene::{HEARTBEAT_MS, Ms, Row, SLO_MS, Scene},
    truth::{Life, Truth},
};

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

/// Why a channel is not what it should be when all is calm.
pub(super) fn unsettled(
    scene: &Scene,
    truth: &Truth,
    channel: usize,
    held: &Held,
    now: Ms,
) -> Option<String> {
    let (stream_no, mode) = (scene.channels[channel].1, scene.stream_of(channel).mode);
    let life = truth.current(stream_no)?;
    if truth.is_trimmed(stream_no) && mode == Mode::View {
        // Nobody knows it as a whole any more, and nobody says so.
        return held
            .is_live(now)
            .then(|| "is shown live although its log has lost its beginning".to_owned());
    }
    let mut expected = Rows::new();
    for partition in scene.partitions_of(channel) {
        let Some(here) = held.token.position(partition) else {
            return Some(format!("has no position in partition {partition}"));
        };
        if here.epoch != life.epoch {
            return Some(format!("is at {here}, of a log that is no more"));
        }
        let missing = life.between(partition, channel, here.offset.number(), u64::MAX);
        if let (Mode::Events, Some(first)) = (mode, missing.first()) {
            return Some(format!("is at {here} and lacks {first:?}"));
        }
        expected.extend(life.fold(partition, channel, u64::MAX));
    }
    if mode == Mode::View && held.all_rows() != expected {
        return Some(format!(
            "at {}: {}",
            held.token,
            difference(&held.all_rows(), &expected)
        ));
    }
    (!held.is_live(now)).then(|| format!("is not live at {}", held.token))
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
    }

    /// Nothing has been shown as live, since the last look, that lacks a change older than the bound.
    fn check_age(&mut self, at: usize, now: Ms) {
        let seat = &self.seats[at];
        let until = seat.held.live_until.min(now);
        // What a poll was told is held against its own age.
        if self.history.manner == Manner::Poll
            || !seat.held.joined
            || seat.held.live_until == Ms::MIN
            || seat.hushed
        {
            return;
        }
        let stream = self.scene.channels[seat.channel].1;
        let mut found = None;
        for here in seat.held.token.positions() {
            let Some(life) = self.truth.life(stream, &here.epoch) else {
                continue;
            };
            if let Some(ended) = life.ended.filter(|ended| ended + BOUND_MS < until) {
                found = Some(format!(
                    "shown live at t={until} at {here}, of a log that was gone at t={ended}"
                ));
            }
            let missing =
                life.between(here.partition, seat.channel, here.offset.number(), u64::MAX);
            if let Some(first) = missing
                .first()
                .filter(|first| first.known_at + BOUND_MS < until)
            {
                found = Some(format!(
                    "shown live at t={until} at {here}, and lacks {first:?}"
                ));
            }
        }
        if let Some(text) = found {
            self.seats[at].hushed = true;
            self.accuse(Some(at), Kind::UnmarkedStale, text);
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

    /// Where a line goes on, and whether that is in order.
    fn update(&mut self, at: usize, position: &Position, (row, value): (Row, Option<u64>)) {
        let channel = self.seats[at].channel;
        let Some(life) = self.life(at, position) else {
            return self.accuse(
                Some(at),
                Kind::Invented,
                format!("an update at {position}, of no log"),
            );
        };
        let written = life.at(position);
        if written != Some((channel, row, value)) {
            let text = format!(
                "an update at {position} of row {row} to {value:?}; the log has {written:?} there"
            );
            return self.accuse(Some(at), Kind::Invented, text);
        }
        let number = position.offset.number();
        let line = &self.seats[at].lines[position.partition as usize];
        if let Some(last) = line.last.clone() {
            if last.epoch != position.epoch {
                let text = format!(
                    "an update at {position} right behind {last}: another log without a word"
                );
                self.accuse(Some(at), Kind::WrongResume, text);
            } else if position.offset <= last.offset {
                let (kind, why) = match (line.delivered.contains(&number), line.is_fresh) {
                    (true, _) => (Kind::Doubled, "it came before"),
                    (false, true) => (
                        Kind::WrongResume,
                        "the client handed that over as its place",
                    ),
                    (false, false) => (Kind::Reordered, "what came last"),
                };
                self.accuse(
                    Some(at),
                    kind,
                    format!("an update at {position} behind {last}: {why}"),
                );
                return;
            } else if self.mode(at) == Mode::Events {
                self.nothing_between(at, &last, position.offset.number() - 1, position);
            }
        }
        let line = &mut self.seats[at].lines[position.partition as usize];
        line.last = Some(position.clone());
        line.is_fresh = false;
        line.delivered.insert(number);
    }

    /// Every event behind `last` and up to `upto` has come.
    fn nothing_between(&mut self, at: usize, last: &Position, upto: u64, seen: &Position) {
        let channel = self.seats[at].channel;
        let Some(life) = self.life(at, last) else {
            return;
        };
        let missing = life.between(last.partition, channel, last.offset.number(), upto);
        if let Some(first) = missing.first() {
            let fresh = self.seats[at].lines[last.partition as usize].is_fresh;
            let kind = if fresh { Kind::WrongResume } else { Kind::Lost };
            let text = format!(
                "behind {last} came {seen}, and {} never did, the first {first:?}",
                missing.len()
            );
            self.accuse(Some(at), kind, text);
        }
    }

    fn gap(&mut self, at: usize, from: &Position, to: &Position, dropped: Option<u64>, why: Why) {
        let channel = self.seats[at].channel;
        if self.mode(at) == Mode::View {
            return self.accuse(
                Some(at),
                Kind::Garbled,
                format!("a view has a gap: {from} to {to}"),
            );
        }
        let changed = from.epoch != to.epoch;
        if changed != (why == Why::EpochChanged) || (!changed && to.offset <= from.offset) {
            self.accuse(
                Some(at),
                Kind::Garbled,
                format!("a gap from {from} to {to}: {why:?}"),
            );
        }
        let last = self.seats[at].lines[to.partition as usize].last.clone();
        if let Some(last) = last {
            if last.epoch == from.epoch && from.offset >= last.offset {
                self.nothing_between(at, &last, from.offset.number(), from);
            } else {
                let text = format!("a gap begins at {from}; the client was at {last}");
                self.accuse(Some(at), Kind::WrongResume, text);
            }
        }
        if let (Some(said), Some(life), false) = (dropped, self.life(at, from), changed) {
            let gone = life
                .between(
                    to.partition,
                    channel,
                    from.offset.number(),
                    to.offset.number(),
                )
                .len();
            if said != gone as u64 {
                self.accuse(
                    Some(at),
                    Kind::Garbled,
                    format!("a gap from {from} to {to} of {said}, which are {gone}"),
                );
            }
        }
        let line = &mut self.seats[at].lines[to.partition as usize];
        (line.last, line.is_fresh) = (Some(to.clone()), false);
    }

    /// Whether a snapshot may be at this place, for the reason that was given.
    fn snapshot_place(&mut self, at: usize, position: &Position) {
        let seat = &self.seats[at];
        let before = seat.lines[position.partition as usize].last.clone();
        let asked = seat
            .asked
            .as_ref()
            .and_then(|token| token.position(position.partition))
            .cloned();
        if let Some(before) = before.filter(|before| is_after(before, position)) {
            self.accuse(
                Some(at),
                Kind::Reordered,
                format!("a snapshot at {position} goes back from {before}"),
            );
        }
        let seat = &self.seats[at];
        let first = seat.lines[position.partition as usize].is_fresh;
        if let (Some(asked), Some(outcome), true) = (asked, seat.outcome, first) {
            let same = asked.epoch == position.epoch;
            let wrong = match outcome {
                Outcome::New => true,
                Outcome::TooOld => !same,
                Outcome::EpochChanged => same && self.scene.partitions_of(seat.channel).len() == 1,
                Outcome::Resumed | Outcome::Started | Outcome::CatchingUp | Outcome::Refused => {
                    !same
                }
            };
            if wrong {
                let text = format!(
                    "asked to go on behind {asked}: {outcome:?}, and a snapshot at {position}"
                );
                self.accuse(Some(at), Kind::WrongResume, text);
            }
        }
        let line = &mut self.seats[at].lines[position.partition as usize];
        (line.last, line.is_fresh) = (Some(position.clone()), false);
        line.delivered.clear();
    }

    /// Whether a snapshot is the view at its place.
    fn snapshot_rows(&mut self, at: usize, position: &Position) {
        let seat = &self.seats[at];
        let (channel, partition) = (seat.channel, position.partition);
        let Some(life) = self.life(at, position) else {
            return self.accuse(
                Some(at),
                Kind::Invented,
                format!("a snapshot at {position}, of no log"),
            );
        };
        let upto = position.offset.number();
        let shown = seat.held.rows.get(&partition).cloned().unwrap_or_default();
        let expected = life.fold(partition, channel, upto);
        if shown == expected {
            self.seats[at].incomplete.remove(&partition);
        } else if life
            .folds_without_beginning(partition, channel, upto)
            .any(|rows| rows == shown)
        {
            self.seats[at].incomplete.insert(partition);
        } else {
            let text = format!(
                "a snapshot at {position}: {}",
                difference(&shown, &expected)
            );
            self.accuse(Some(at), kind_of(&shown, &expected), text);
            self.seats[at].held.rows.insert(partition, expected);
        }
    }

    /// A view that is called live is the view at its place; of events all that was before have come.
    fn heartbeat(&mut self, at: usize, token: &Token) {
        self.seats[at].hushed = false;
        for named in token.positions() {
            let partition = named.partition;
            let channel = self.seats[at].channel;
            let Some(life) = self.life(at, named) else {
                self.accuse(
                    Some(at),
                    Kind::Invented,
                    format!("a heartbeat at {named}, of no log"),
                );
                continue;
            };
            let line = &self.seats[at].lines[partition as usize];
            let last = line.last.clone();
            if let Some(last) = last.as_ref().filter(|last| last.epoch != named.epoch) {
                let text = format!(
                    "a heartbeat at {named} right behind {last}: another log without a word"
                );
                self.accuse(Some(at), Kind::WrongResume, text);
                continue;
            }
            let here = self.seats[at].held.token.position(partition).cloned();
            let here = here.unwrap_or_else(|| named.clone());
            if self.mode(at) == Mode::Events {
                if let Some(last) = last {
                    self.nothing_between(at, &last, named.offset.number(), named);
                }
            } else if !is_after(&here, named) {
                let shown = self.seats[at]
                    .held
                    .rows
                    .get(&partition)
                    .cloned()
                    .unwrap_or_default();
                let expected = life.fold(partition, channel, here.offset.number());
                if shown != expected {
                    let fresh = line.is_fresh || self.missed_at_first(at, &here, &shown, &expected);
                    let kind = match fresh {
                        _ if self.seats[at].incomplete.contains(&partition) => Kind::UnmarkedStale,
                        true => Kind::WrongResume,
                        false => kind_of(&shown, &expected),
                    };
                    let text = format!("called live at {here}: {}", difference(&shown, &expected));
                    self.accuse(Some(at), kind, text);
                    self.seats[at].held.rows.insert(partition, expected);
                }
            }
            let line = &mut self.seats[at].lines[partition as usize];
            if line
                .last
                .as_ref()
                .is_none_or(|last| named.offset > last.offset)
            {
                line.last = Some(named.clone());
            }
            line.is_fresh = false;
        }
    }

    /// Whether what a view lacks came right behind the token that it went on from, before anything else of that connection.
    fn missed_at_first(&self, at: usize, here: &Position, shown: &Rows, expected: &Rows) -> bool {
        let seat = &self.seats[at];
        let asked = seat
            .asked
            .as_ref()
            .and_then(|token| token.position(here.partition));
        let (Some(asked), Some(Outcome::Resumed), Some(life)) =
            (asked, seat.outcome, self.life(at, here))
        else {
            return false;
        };
        let line = &seat.lines[here.partition as usize];
        let behind = life.between(
            here.partition,
            seat.channel,
            asked.offset.number(),
            here.offset.number(),
        );
        let is_wrong = |row: &Row| shown.get(row) != expected.get(row);
        let lacks = behind
            .iter()
            .find(|fact| is_wrong(&fact.row) && !line.delivered.contains(&fact.offset));
        let first_came = line.delivered.first().copied().unwrap_or(u64::MAX);
        lacks.is_some_and(|fact| fact.offset < first_came)
    }

    /// The answer to a poll, which handed over what the client had.
    fn view(&mut self, at: usize, token: &Token, rows: Option<&[(Row, u64)]>, age_ms: Option<Ms>) {
        let channel = self.seats[at].channel;
        let mut expected = Rows::new();
        let mut trimmed = false;
        for position in token.positions() {
            let before = self.seats[at]
                .asked
                .as_ref()
                .and_then(|token| token.position(position.partition))
                .cloned();
            if let Some(before) = before.filter(|before| is_after(before, position)) {
                self.accuse(
                    Some(at),
                    Kind::Reordered,
                    format!("a poll with {before} was answered at {position}"),
                );
            }
            let Some(life) = self.life(at, position) else {
                return self.accuse(
                    Some(at),
                    Kind::Invented,
                    format!("a view at {position}, of no log"),
                );
            };
            expected.extend(life.fold(position.partition, channel, position.offset.number()));
            trimmed |= self.truth.is_trimmed(self.scene.channels[channel].1);
            let proved = age_ms.map(|age| self.began - age);
            let missing = life.between(
                position.partition,
                channel,
                position.offset.number(),
                u64::MAX,
            );
            if let (Some(first), Some(proved)) = (missing.first().copied(), proved)
                && first.known_at + TRANSIT_MS < proved
            {
                let text = format!("a poll was answered live at {position}, and lacks {first:?}");
                self.accuse(Some(at), Kind::UnmarkedStale, text);
            }
        }
        if let Some(rows) = rows {
            let shown: Rows = rows.iter().copied().collect();
            // Of a log that lost its beginning a view may lack rows, and says that it is not live.
            if shown != expected && !(trimmed && age_ms.is_none()) {
                let text = format!(
                    "a poll was answered at {token}: {}",
                    difference(&shown, &expected)
                );
                self.accuse(Some(at), kind_of(&shown, &expected), text);
            }
        }
    }

    fn at_rest(&mut self, rest: Ms) {
        for at in 0..self.seats.len() {
            self.check_age(at, rest);
            let seat = &self.seats[at];
            if let Some(text) = unsettled(self.scene, self.truth, seat.channel, &seat.held, rest) {
                self.accuse(Some(at), Kind::NotConverged, text);
            }
        }
    }

    fn accuse(&mut self, seat: Option<usize>, kind: Kind, text: String) {
        let now = self
            .history
            .happened
            .get(self.at)
            .map_or(0, |happened| happened.at);
        let channel = seat.map(|at| self.seats[at].channel);
        let name = channel.map_or("", |channel| &self.scene.channels[channel].0);
        let (client, manner) = (self.history.client, self.history.manner);
        self.verdicts.push(Verdict {
            kind,
            client,
            text: format!("{kind:?}: client {client} ({manner:?}) {name} t={now}: {text}"),
            story: self.story(channel),
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

/// Rows that are older than they should be, or missing, were lost; others are nobody's.
fn kind_of(shown: &Rows, expected: &Rows) -> Kind {
    let newer = shown
        .iter()
        .any(|(row, number)| expected.get(row).is_some_and(|right| number > right));
    if newer { Kind::Invented } else { Kind::Lost }
}

fn difference(shown: &Rows, expected: &Rows) -> String {
    let rows: BTreeSet<_> = shown.keys().chain(expected.keys()).collect();
    let wrong = rows
        .into_iter()
        .filter(|row| shown.get(row) != expected.get(row));
    let texts = wrong.take(5).map(|row| {
        format!(
            "row {row} is {:?}, in the log {:?}",
            shown.get(row),
            expected.get(row)
        )
    });
    texts.collect::<Vec<_>>().join("; ")
}
