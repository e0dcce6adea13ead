//! Updates, events and gaps leave in order, each once, and go on where the token says.

use tidegate::model::{Mode, Position};

use super::{Judge, Kind};
use crate::fleet::{message::Why, scene::Row};

impl Judge<'_> {
    /// Where a line goes on, and whether that is in order.
    pub(super) fn update(
        &mut self,
        at: usize,
        position: &Position,
        (row, value): (Row, Option<u64>),
    ) {
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
    pub(super) fn nothing_between(
        &mut self,
        at: usize,
        last: &Position,
        upto: u64,
        seen: &Position,
    ) {
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

    pub(super) fn gap(
        &mut self,
        at: usize,
        from: &Position,
        to: &Position,
        dropped: Option<u64>,
        why: Why,
    ) {
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
}
