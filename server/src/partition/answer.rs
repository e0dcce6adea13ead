//! How a line begins: each verdict of the resume table, carried out with what this node holds.

use std::sync::Arc;

use super::{
    Backing, Begin, Gap, Join, Partition, ViewAt,
    backing::Found,
    resume::{From, Known, Verdict, is_fold_of, verdict},
    view::View,
};
use crate::{
    frame::{Shared, Snapshot},
    model::{Channel, Moment, Offset, Position, Rows, Update},
    protocol::{Outcome, SnapshotReason, write::GapReason},
};

/// What came of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The tail had what followed the token.
    Tail,
    /// Nothing had followed it.
    Unchanged,
    /// The rows of the view that changed after it.
    Changes,
    /// The view, since the client had nothing.
    New,
    /// The view, since nobody remembers what followed the token.
    TooOld,
    /// The view, since the token is of another log.
    EpochChanged,
    /// Events from now on.
    Started,
    /// Events read from the log again.
    Replayed,
    /// Events, some of which will not come.
    Gap,
    /// None in time, or too many at once.
    Refused,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Tail,
        Self::Unchanged,
        Self::Changes,
        Self::New,
        Self::TooOld,
        Self::EpochChanged,
        Self::Started,
        Self::Replayed,
        Self::Gap,
        Self::Refused,
    ];

    /// Its word in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::Unchanged => "unchanged",
            Self::Changes => "changes",
            Self::New => "snapshot_new",
            Self::TooOld => "snapshot_too_old",
            Self::EpochChanged => "snapshot_epoch_changed",
            Self::Started => "started",
            Self::Replayed => "replayed",
            Self::Gap => "gap",
            Self::Refused => "refused",
        }
    }

    /// What a verdict came to.
    const fn of(verdict: Verdict, begin: &Begin) -> Self {
        if begin.gap.is_some() {
            return Self::Gap;
        }
        match verdict {
            Verdict::Changes if begin.snapshot.is_none() => Self::Changes,
            Verdict::Snapshot(SnapshotReason::New) => Self::New,
            Verdict::Snapshot(SnapshotReason::EpochChanged) => Self::EpochChanged,
            Verdict::Snapshot(SnapshotReason::TooOld) | Verdict::Changes => Self::TooOld,
            Verdict::Nothing => Self::Unchanged,
            Verdict::Start => Self::Started,
            Verdict::Replay | Verdict::EpochGap => Self::Replayed,
            Verdict::Follow | Verdict::Ask | Verdict::Behind => Self::Tail,
        }
    }
}

/// Subscriptions that were answered, by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers([u64; Way::ALL.len()]);

impl Answers {
    /// Counts a join of so many members.
    pub(super) const fn count(&mut self, way: Way, members: usize) {
        self.0[way as usize] += members as u64;
    }
    /// Adds what another partition counted.
    pub fn add(&mut self, other: Self) {
        self.0
            .iter_mut()
            .zip(other.0)
            .for_each(|(sum, count)| *sum += count);
    }
    /// How many.
    #[must_use]
    pub const fn of(&self, way: Way) -> u64 {
        self.0[way as usize]
    }
}

impl serde::Serialize for Answers {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Way::ALL.map(|way| (way.word(), self.of(way))))
    }
}

impl Partition {
    /// How the line begins, if that can be said; and whether this node is known to be behind.
    pub(super) fn begin(&mut self, join: &Join, now: Moment) -> (Option<Begin>, bool) {
        #[cfg(feature = "seeded-bugs")]
        let join = &self.seeded.place(join, self.applied);
        let Some(epoch) = &self.epoch else {
            return (None, !self.readable && self.health.trouble.is_some());
        };
        if self.is_waking() {
            return (None, false);
        }
        let known = Known {
            mode: self.settings.mode,
            epoch,
            log: self.backing.log(epoch),
            floor: self.tail.floor().max(self.backing.since()),
            applied: self.applied,
            head: self.head,
            last_change: self.last_changed(&join.channel),
            remembered: self.remembered(&join.channel),
        };
        let verdict = verdict(&known, &join.from, join.arrived);
        let begin = match verdict {
            Verdict::Ask => None,
            Verdict::Behind => return (None, true),
            Verdict::Follow => self.follow(join),
            Verdict::Nothing => self.plain(Outcome::Resumed, Vec::new()),
            Verdict::Start => self.start(join),
            Verdict::Changes => self
                .changes(join, now)
                .or_else(|| self.whole(join, SnapshotReason::TooOld, now)),
            Verdict::Snapshot(reason) => self.whole(join, reason, now),
            Verdict::Replay => self.replay(join),
            Verdict::EpochGap => self.gap(join, GapReason::EpochChanged),
        };
        if let Some(begin) = &begin {
            self.answers
                .count(Way::of(verdict, begin), join.members.len());
        }
        (begin, false)
    }

    fn plain(&self, outcome: Outcome, updates: Vec<Arc<Shared>>) -> Option<Begin> {
        Some(Begin {
            outcome,
            snapshot: None,
            gap: None,
            updates,
            at: self.at(self.applied)?,
            life: self.tail.cursor().resets,
        })
    }

    fn follow(&self, join: &Join) -> Option<Begin> {
        let From::After(token) = &join.from else {
            return None;
        };
        let updates = self
            .tail
            .between(&join.channel, token.offset, self.applied, usize::MAX)?;
        self.plain(Outcome::Resumed, updates)
    }

    /// From where on the changes of a channel's view are remembered, if it is resident and may be served.
    fn remembered(&self, channel: &Channel) -> Option<Offset> {
        let view = self.views.get(channel)?;
        let served = self.applied >= view.fence().max(self.backing.settled());
        served.then(|| view.deletes().floor().max(self.backing.since()))
    }

    /// The rows of a view that changed after the token, from a list that others use already, and what followed it.
    fn changes(&mut self, join: &Join, now: Moment) -> Option<Begin> {
        let From::After(token) = &join.from else {
            return None;
        };
        let (here, floor) = (self.at(self.applied)?, self.tail.floor());
        self.sharing.insert(join.channel.clone());
        let view = self.views.get_mut(&join.channel)?;
        let (mut updates, at) =
            view.changed_after(token.offset, &join.channel, &here, floor, now)?;
        updates.extend(
            self.tail
                .between(&join.channel, at, self.applied, usize::MAX)?,
        );
        self.plain(Outcome::Resumed, updates)
    }

    fn start(&self, join: &Join) -> Option<Begin> {
        if self.applied < self.backing.settled() {
            return None;
        }
        let updates = match join.from {
            From::History(n) => self.tail.last(&join.channel, n as usize),
            _ => Vec::new(),
        };
        self.plain(Outcome::Started, updates)
    }

    fn gap(&self, join: &Join, reason: GapReason) -> Option<Begin> {
        let From::After(from) = &join.from else {
            return None;
        };
        let to = self.at(self.applied)?;
        let gap = Some(Gap {
            from: from.clone(),
            to,
            dropped: None,
            reason,
        });
        Some(Begin {
            gap,
            ..self.plain(Outcome::Resumed, Vec::new())?
        })
    }

    /// The whole view: an encoding that others use already, and what followed it, or a new one.
    fn whole(&mut self, join: &Join, reason: SnapshotReason, now: Moment) -> Option<Begin> {
        let channel = &join.channel;
        let snapshot = self.view(channel, self.seen_of_log(&join.from), now)?;
        let updates = self.tail.between(
            channel,
            snapshot.position().offset,
            self.applied,
            usize::MAX,
        )?;
        Some(Begin {
            snapshot: Some(snapshot),
            ..self.plain(Outcome::Snapshot(reason), updates)?
        })
    }

    /// How much of this log who joins has seen, in whichever fold.
    fn seen_of_log(&self, from: &From) -> Offset {
        match (from, &self.epoch) {
            (From::After(token), Some(epoch))
                if is_fold_of(&token.epoch, self.backing.log(epoch)) =>
            {
                token.offset.min(self.applied)
            }
            _ => Offset::BEFORE_ALL,
        }
    }

    /// The snapshot of a channel, made resident where it was not; none until this node has applied what the cache had.
    /// The encoding that others use already is good enough where it is not behind `seen`.
    fn view(&mut self, channel: &Channel, seen: Offset, now: Moment) -> Option<Arc<Snapshot>> {
        let here = self.at(self.applied)?;
        if let Some(standing) = self.standing() {
            let (rows, encodings) = (standing.rows(channel)?, &self.held.encodings);
            return Some(Snapshot::new(channel.clone(), here, rows, encodings));
        }
        if self.applied < self.backing.settled() {
            return None;
        }
        if !self.views.contains_key(channel) {
            let awaited = self.awaited.has(channel);
            match self.backing.find(channel, &here.epoch, awaited) {
                Found::NotYet => return None,
                Found::Nothing => {
                    // A name that anybody may invent takes little room, and bounded.
                    self.awaited.add(channel);
                    let encodings = &self.held.encodings;
                    return Some(Snapshot::new(channel.clone(), here, Rows::new(), encodings));
                }
                Found::Rows(cached, fence) => {
                    let view = View::new(cached, fence, &self.held, now);
                    let view = view.burying(self.settings.is_later);
                    self.views.insert(channel.clone(), view);
                }
            }
        }
        let floor = self.tail.floor().max(seen);
        let view = self.views.get_mut(channel)?;
        if self.applied < view.fence() {
            return None;
        }
        if !self.sharing.contains(channel) {
            self.sharing.insert(channel.clone());
        }
        Some(view.snapshot(channel, here, floor, now))
    }

    /// A view for a single answer.
    pub fn view_now(&mut self, channel: &Channel, now: Moment) -> Option<ViewAt> {
        let here = self.at(self.applied).filter(|_| !self.is_waking())?;
        self.view(channel, Offset::BEFORE_ALL, now)?;
        let standing = self.standing();
        let rows = match (self.views.get(channel), standing) {
            (Some(view), _) => view.rows().clone(),
            (None, Some(standing)) => standing.rows(channel)?,
            (None, None) => Rows::new(),
        };
        Some(ViewAt {
            snapshot: Snapshot::new(channel.clone(), here, rows, &self.held.encodings),
            last_change: self.last_change(channel),
            health: self.health,
            stands_in: standing.is_some(),
        })
    }

    /// A channel's last change on this node, as far as it is known.
    #[must_use]
    pub fn last_change(&self, channel: &Channel) -> Option<Position> {
        self.at(self
            .last_changed(channel)
            .filter(|&at| at > Offset::BEFORE_ALL && at <= self.applied)?)
    }

    /// The offset of a channel's last change; of one that was forgotten, an offset after which it has not changed.
    fn last_changed(&self, channel: &Channel) -> Option<Offset> {
        if let Some(standing) = self.standing() {
            return standing.last_change(channel);
        }
        let known = self.last_change.get(channel).copied().or(self.forgotten);
        known.map(|last| last.max(self.backing.since()))
    }

    /// Events from the log: all that follow the token, or a gap where the log does not reach back, or too far.
    fn replay(&mut self, join: &Join) -> Option<Begin> {
        if !self.readable {
            return None;
        }
        let log_start = match &self.backing {
            Backing::Log(log) if self.epoch.as_ref() == Some(log.epoch()) => log.extent().1,
            Backing::Log(_) => return None,
            // The log elsewhere may reach back further: what follows a token that the tail has passed is said to be missing.
            Backing::Fold(_) | Backing::Cache(_) => self.tail.floor(),
        };
        let bound = Offset::new(
            self.applied
                .number()
                .saturating_sub(self.settings.replay_records as u64),
        );
        let (after, gap) = match &join.from {
            From::After(token) if token.offset < log_start || token.offset < bound => {
                return self.gap(join, GapReason::TooOld);
            }
            From::After(token) => (token.offset, None),
            _ => {
                let after = log_start.max(bound);
                let gap = (log_start < bound).then_some((log_start, after));
                (after, gap)
            }
        };
        let updates = self.read(&join.channel, after)?;
        let outcome = if join.from == From::Earliest {
            Outcome::Started
        } else {
            Outcome::Resumed
        };
        let mut begin = self.plain(outcome, updates)?;
        if let Some((from, to)) = gap {
            let (from, to) = (self.at(from)?, self.at(to)?);
            begin.gap = Some(Gap {
                from,
                to,
                dropped: None,
                reason: GapReason::TooOld,
            });
        }
        Some(begin)
    }

    /// The channel's updates after `after`, up to what this node has applied, from the log.
    fn read(&mut self, channel: &Channel, mut after: Offset) -> Option<Vec<Arc<Shared>>> {
        let Backing::Log(log) = &self.backing else {
            return self.tail.between(channel, after, self.applied, usize::MAX);
        };
        let log = log.clone();
        let mut updates = Vec::new();
        while after < self.applied {
            // Held until its files can be read again.
            let fetch = log.read(Some(after), 4 << 20).ok()?;
            if fetch.start > after {
                return None;
            }
            for record in fetch
                .records
                .iter()
                .filter(|record| record.offset <= self.applied)
            {
                let Ok(change) = self.decoder.decode(record) else {
                    continue;
                };
                if change.channel == *channel {
                    updates.push(Shared::new(
                        Update {
                            position: self.at(record.offset)?,
                            change,
                        },
                        Moment::default(),
                    ));
                }
            }
            if fetch.upto <= after {
                break;
            }
            after = fetch.upto;
        }
        Some(updates)
    }
}
