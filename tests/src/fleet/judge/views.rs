//! A snapshot is the view at its place, and so is what a heartbeat calls live, and what a poll is answered.

use std::collections::BTreeSet;

use tidegate::model::{Mode, Position, Token};

use super::{Judge, Kind, TRANSIT_MS};
use crate::fleet::{
    held::{Rows, is_after},
    message::Outcome,
    scene::{Ms, Row},
};

impl Judge<'_> {
    /// Whether a snapshot may be at this place, for the reason that was given.
    pub(super) fn snapshot_place(&mut self, at: usize, position: &Position) {
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
            // Of several partitions the outcome is that of the one which went worst: this one may have been resumed, and begun again.
            let alone = self.scene.partitions_of(seat.channel).len() == 1;
            let wrong = match outcome {
                Outcome::New => alone,
                Outcome::TooOld => alone && !same,
                Outcome::EpochChanged => alone && same,
                // It may begin again with a snapshot at any time, also because the log is another one by now.
                Outcome::Resumed | Outcome::Started | Outcome::CatchingUp | Outcome::Refused => {
                    false
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
    pub(super) fn snapshot_rows(&mut self, at: usize, position: &Position) {
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
    pub(super) fn heartbeat(&mut self, at: usize, token: &Token) {
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
    pub(super) fn view(
        &mut self,
        at: usize,
        token: &Token,
        rows: Option<&[(Row, u64)]>,
        age_ms: Option<Ms>,
    ) {
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
            trimmed |= life.is_trimmed();
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
}

/// Rows that are older than they should be, or missing, were lost; others are nobody's.
fn kind_of(shown: &Rows, expected: &Rows) -> Kind {
    let newer = shown
        .iter()
        .any(|(row, number)| expected.get(row).is_some_and(|right| number > right));
    if newer { Kind::Invented } else { Kind::Lost }
}

pub(super) fn difference(shown: &Rows, expected: &Rows) -> String {
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
