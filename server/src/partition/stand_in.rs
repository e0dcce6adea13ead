//! What stands in for views of which nothing can be known, until their log has been read for the first time: the copy that an
//! earlier process of this node left on its disk, else the stream's default.
//!
//! Owns: the rows that stand in, and whether they do. Never knows: why nothing can be known, nor the disk. Keeps: I1: who gets a
//! copy is told that it is `stale`, why, and how old: it has a position of its own log, at which it was a state of it. Who gets a
//! default is told `unavailable`, under an epoch that no log has. I3: whoever brings a token that is newer, or of another
//! log, waits instead: what he has is better. The first fetch that succeeds takes their place, and everybody gets what the log has.

use std::{collections::HashMap, time::Duration};

use super::{
    Partition, View,
    tail::{Health, LastKnown},
};
use crate::{
    cache::{CachedView, copies::Copied},
    frame::held::Share,
    model::{Channel, Epoch, Mode, Moment, Offset, Row, RowId, Rows},
};

/// So long a node waits for its sources before anything stands in.
const PATIENCE: Duration = Duration::from_secs(2);
/// The epoch of defaults. No source's name for a log is so short.
const EPOCH: &str = "default";

/// What there is to stand in.
#[derive(Debug, Default)]
pub(super) struct StandIn {
    /// The stream's default.
    default: Option<Rows>,
    /// There may be a copy, at which nobody has looked yet.
    unread: bool,
    /// Since when nothing can be read.
    since: Option<Moment>,
    stands: Option<Standing>,
}

/// What stands in.
#[derive(Debug)]
pub(super) enum Standing {
    /// For every view.
    Default(Rows),
    /// Each for itself.
    Copy(Copy),
}

/// The views of a copy.
#[derive(Debug)]
pub(super) struct Copy {
    /// With the offset of the last change; none where that is not known.
    views: HashMap<Channel, (Rows, Option<Offset>)>,
    /// Others have no rows; else nothing is known of them.
    whole: bool,
    _held: Share,
}

impl Standing {
    /// The rows that stand in for a view.
    pub(super) fn rows(&self, channel: &Channel) -> Option<Rows> {
        match self {
            Self::Default(rows) => Some(rows.clone()),
            Self::Copy(copy) => match copy.views.get(channel) {
                Some((rows, _)) => Some(rows.clone()),
                None => copy.whole.then(Rows::new),
            },
        }
    }

    /// Where a view was changed last, as far as it is known.
    pub(super) fn last_change(&self, channel: &Channel) -> Option<Offset> {
        match self {
            Self::Default(_) => None,
            Self::Copy(copy) => copy.views.get(channel)?.1,
        }
    }
}

impl StandIn {
    /// What could not be read before is no reason to hurry now.
    pub(super) const fn wait(&mut self) {
        self.since = None;
    }
}

impl Partition {
    /// The same, of a stream of views with a default: the data of these rows.
    #[must_use]
    pub fn with_default(mut self, rows: &[(RowId, bytes::Bytes)]) -> Self {
        let row = |data: &bytes::Bytes| Row {
            data: data.clone(),
            ts_ms: 0,
            offset: Offset::BEFORE_ALL,
        };
        let rows = rows.iter().map(|(id, data)| (id.clone(), row(data)));
        self.stand_in.get_or_insert_default().default = Some(rows.collect());
        self
    }

    /// The same, of which there may be a copy: who drives it looks when it [wants](Self::wants_copy) it.
    #[must_use]
    pub fn with_copy(mut self) -> Self {
        self.stand_in.get_or_insert_default().unread = true;
        self
    }

    /// What stands in for views, while something does.
    pub(super) fn standing(&self) -> Option<&Standing> {
        self.stand_in.as_ref()?.stands.as_ref()
    }

    /// Whether nothing can be known for so long that its copy is wanted.
    #[must_use]
    pub fn wants_copy(&self, now: Moment) -> bool {
        let overdue = |one: &&StandIn| one.since.is_some_and(|at| now.since(at) >= PATIENCE);
        let unread = self.stand_in.as_ref().filter(|one| one.unread);
        unread.filter(overdue).is_some() && self.epoch.is_none()
    }

    /// Takes the copy that was wanted, at `now`, which is `now_ms` since 1970; none where there is none.
    pub fn take_copy(&mut self, copied: Option<Copied>, now: Moment, now_ms: i64) {
        let Some(stand_in) = &mut self.stand_in else {
            return;
        };
        stand_in.unread = false;
        let Some(copied) = copied.filter(|_| self.epoch.is_none()) else {
            return;
        };
        let age = u64::try_from(now_ms.saturating_sub(copied.proven_ms)).ok();
        self.health.last_known = Some(LastKnown {
            at: now,
            age: age.map(Duration::from_millis),
        });
        let mut held = self.held.views.share();
        held.set(copied.views.iter().map(|(_, view)| view.bytes).sum());
        let known = |at: &Offset| *at > Offset::BEFORE_ALL;
        let view = |(channel, view): (Channel, CachedView)| {
            (channel, (view.rows, Some(view.last_change).filter(known)))
        };
        let copy = Copy {
            views: copied.views.into_iter().map(view).collect(),
            whole: copied.whole,
            _held: held,
        };
        self.let_stand(Standing::Copy(copy), copied.epoch, copied.applied, now);
    }

    /// Nothing has been read yet, and something is wrong: after a while the default stands in, if there is no copy.
    pub(super) fn let_stand_in(&mut self, now: Moment) {
        let nothing_known = self.epoch.is_none() && self.health.trouble.is_some();
        let (Some(stand_in), true) = (&mut self.stand_in, nothing_known) else {
            return;
        };
        let since = *stand_in.since.get_or_insert(now);
        if now.since(since) < PATIENCE || stand_in.unread {
            return;
        }
        if let (Some(rows), Ok(epoch)) = (stand_in.default.take(), Epoch::new(EPOCH)) {
            self.let_stand(Standing::Default(rows), epoch, Offset::BEFORE_ALL, now);
        }
    }

    fn let_stand(&mut self, what: Standing, epoch: Epoch, at: Offset, now: Moment) {
        if let Some(stand_in) = &mut self.stand_in {
            stand_in.stands = Some(what);
        }
        self.applied = at;
        self.tail.reset(epoch.clone(), at, now);
        self.tail.set_health(self.health);
        self.epoch = Some(epoch);
    }

    /// The log was read: it takes the place of what stood in.
    pub(super) fn step_aside(&mut self) {
        if self.standing().is_some() {
            (self.epoch, self.applied) = (None, Offset::BEFORE_ALL);
            self.health = Health {
                last_known: None,
                ..self.health
            };
        }
        self.stand_in = None;
    }

    /// What a copy would be of now; none where there is nothing that should take the place of an earlier one: views that are no state of
    /// the log, or were never proven to be one, or none at all, or what is resident before the cache that has the rest was heard of.
    #[must_use]
    pub fn copyable(&self) -> Option<(Epoch, Offset, usize)> {
        let is_state = self.applied >= self.backing.settled() && self.health.proof.is_some();
        let is_read = self.standing().is_none() && self.settings.mode == Mode::View;
        let has_all = !self.views.is_empty() && !self.backing.is_cut_off();
        let epoch = self
            .epoch
            .clone()
            .filter(|_| is_state && is_read && has_all)?;
        Some((epoch, self.applied, self.views.len()))
    }

    /// Its resident views as they are at `now`, which is `now_ms` since 1970, where they are [copyable](Self::copyable).
    #[must_use]
    pub fn copied(&self, now: Moment, now_ms: i64) -> Option<Copied> {
        let (epoch, applied, _) = self.copyable()?;
        let proven = now.since(self.health.proof?.asked_at).as_millis();
        let served = self
            .views
            .iter()
            .filter(|(channel, view)| applied >= view.fence() && !channel.is_canary());
        let copy = |(channel, view): (&Channel, &View)| {
            let last_change = self.last_change.get(channel).copied();
            let view = CachedView {
                rows: view.rows().clone(),
                bytes: view.bytes(),
                last_change: last_change.unwrap_or_default(),
            };
            (channel.clone(), view)
        };
        let empty = |channel: &Channel| (channel.clone(), CachedView::default());
        Some(Copied {
            epoch,
            applied,
            proven_ms: now_ms.saturating_sub(i64::try_from(proven).unwrap_or(i64::MAX)),
            whole: self.backing.is_fold(),
            views: served
                .map(copy)
                .chain(self.awaited.names().map(empty))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        decode::{Decoder, KeyPart, own_key},
        model::{Freshness, FreshnessState, Position, Record, StaleReason},
        partition::{
            Answer, Begin, FoldSettings, Join, Mailbox, Settings,
            resume::From,
            tail::{Tail, TailMax},
        },
        protocol::{Outcome, SnapshotReason},
        source::{Fetch, ReadAt, SourceError, compaction::Compaction},
    };

    const SLO: Duration = Duration::from_secs(5);
    /// When all of this begins, in milliseconds since 1970.
    const WALL_MS: i64 = 1_000_000;

    fn at(ms: u64) -> Moment {
        Moment::from_micros(ms * 1000)
    }

    fn partition() -> Partition {
        let settings = Settings {
            stream: "s".into(),
            partition: 0,
            mode: Mode::View,
            is_later: false,
            replay_records: 10,
            hold: Duration::from_secs(60),
        };
        let part = |pointer: &str| KeyPart::Pointer(pointer.into());
        let decoder = Decoder::new("s", part("/0"), Some(part("/1")), true);
        let hour = Duration::from_secs(3600);
        let fold = FoldSettings {
            needs_tombstones: false,
            compaction: Compaction {
                after: hour,
                tombstones_kept: hour,
            },
            accepts_incomplete: false,
        };
        let tail = Tail::new(TailMax {
            bytes: 1 << 20,
            age: hour,
        });
        Partition::new(settings, decoder, fold, tail)
    }

    /// All of a log of one row of `s/c`, which says how many records there are.
    fn all_of(epoch: &str, records: u64) -> Fetch {
        let record = |number: u64| Record {
            offset: Offset::new(number),
            key: own_key("c", "row"),
            value: Some(number.to_string().into()),
            event_time_ms: None,
            append_time_ms: WALL_MS,
            expired: false,
        };
        Fetch {
            epoch: Epoch::new(epoch).unwrap(),
            start: Offset::BEFORE_ALL,
            upto: Offset::new(records),
            head: Offset::new(records),
            records: (1..=records).map(record).collect(),
            when: Some(ReadAt {
                sent_ms: WALL_MS,
                answered_ms: WALL_MS,
            }),
            lineage: None,
        }
    }

    /// What a process copied that had read five records, and proven that, two seconds before.
    fn copied() -> Copied {
        let mut partition = partition();
        assert!(
            partition.copied(at(1), WALL_MS).is_none(),
            "nothing is known"
        );
        partition.take(&all_of("log", 5), at(1), at(1));
        partition.copied(at(2001), WALL_MS + 2000).unwrap()
    }

    /// A partition that can't read anything for so long that it looked for its copy, ten seconds after that was proven.
    fn in_an_outage(copy: Option<Copied>) -> Partition {
        let mut partition = partition()
            .with_default(&[(RowId::default(), "0".into())])
            .with_copy();
        partition.fail(SourceError::Unavailable);
        partition.step(at(10));
        assert!(!partition.wants_copy(at(10)), "it may be back at once");
        let now = at(2010);
        partition.step(now);
        assert!(partition.wants_copy(now) && partition.epoch().is_none());
        partition.take_copy(copy, now, WALL_MS + 10_000);
        partition.step(now);
        assert!(!partition.wants_copy(now));
        partition
    }

    fn join(partition: &mut Partition, channel: &str, from: From) -> Option<Begin> {
        let reply: Arc<Mailbox> = Arc::default();
        let join = Join {
            seat: 0,
            channel: channel.parse().unwrap(),
            from,
            arrived: at(2020),
            members: vec![0],
            reply: reply.clone(),
            told: false,
        };
        partition.join(join, at(2020));
        match reply.take().pop()?.answer {
            Answer::Begin(begin) => Some(begin),
            Answer::Held | Answer::Refused(_) => None,
        }
    }

    fn token(epoch: &str, offset: u64) -> From {
        From::After(Position {
            partition: 0,
            epoch: Epoch::new(epoch).unwrap(),
            offset: Offset::new(offset),
        })
    }

    fn rows(begin: &Begin) -> Vec<String> {
        let rows = begin.snapshot.as_ref().unwrap().rows();
        let data = |row: &Row| String::from_utf8(row.data.to_vec()).unwrap();
        rows.values().map(data).collect()
    }

    fn freshness(partition: &Partition, now: Moment) -> Freshness {
        partition.tail.health().freshness(SLO, None, now)
    }

    #[test]
    fn a_copy_is_shown_as_old_as_it_is_and_never_as_live() {
        let mut partition = in_an_outage(Some(copied()));
        let begin = join(&mut partition, "s/c", From::Now).unwrap();
        assert_eq!(rows(&begin), ["5"]);
        assert_eq!(
            (begin.at.epoch.as_str(), begin.at.offset),
            ("log", Offset::new(5))
        );
        for (ms, age) in [(2010, 10_000), (5010, 13_000)] {
            let told = freshness(&partition, at(ms));
            assert_eq!(told.state, FreshnessState::Stale);
            assert_eq!(told.reason, Some(StaleReason::SourceUnavailable));
            assert_eq!(told.age_ms, Some(age));
        }
        // Not even one that was just made.
        let mut fresh = copied();
        fresh.proven_ms = WALL_MS + 10_000;
        let partition = in_an_outage(Some(fresh));
        assert_eq!(freshness(&partition, at(2010)).state, FreshnessState::Stale);
        assert!(
            partition.copied(at(2010), WALL_MS).is_none(),
            "a copy is not copied"
        );
    }

    #[test]
    fn nobody_goes_back_to_a_copy_and_what_is_not_in_it_is_not_known() {
        let mut partition = in_an_outage(Some(copied()));
        let older = join(&mut partition, "s/c", token("log", 3)).unwrap();
        assert_eq!(older.outcome, Outcome::Snapshot(SnapshotReason::TooOld));
        let same = join(&mut partition, "s/c", token("log", 5)).unwrap();
        assert_eq!(same.outcome, Outcome::Resumed);
        for newer in [token("log", 6), token("another", 1)] {
            assert!(join(&mut partition, "s/c", newer).is_none());
        }
        // All of the log was folded, so what is not there is empty; of a cache only some was read.
        let never = join(&mut partition, "s/never", From::Now).unwrap();
        assert!(rows(&never).is_empty());
        let some = Copied {
            whole: false,
            ..copied()
        };
        let mut partition = in_an_outage(Some(some));
        assert!(join(&mut partition, "s/c", From::Now).is_some());
        assert!(join(&mut partition, "s/never", From::Now).is_none());
    }

    #[test]
    fn whoever_asks_for_a_view_once_does_not_go_back_either() {
        let mut partition = in_an_outage(Some(copied()));
        let channel = "s/c".parse().unwrap();
        let view = partition.view_now(&channel, at(2020)).unwrap();
        let position = |epoch: &str, offset| {
            let From::After(position) = token(epoch, offset) else {
                unreachable!("a token is a position")
            };
            position
        };
        assert!(view.is_newer_than(Some(&position("log", 4))));
        assert!(!view.is_newer_than(Some(&position("log", 5))));
        for (epoch, offset, behind) in [("log", 5, false), ("log", 6, true), ("another", 1, true)] {
            let seen = position(epoch, offset);
            assert_eq!(view.is_behind(Some(&seen)), behind, "{seen:?}");
        }
        partition.take(&all_of("log", 7), at(3000), at(3001));
        let view = partition.view_now(&channel, at(3001)).unwrap();
        assert!(
            !view.is_behind(Some(&position("another", 1))),
            "the log says which is the newer one"
        );
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_age() {
        let mut ahead = copied();
        ahead.proven_ms = WALL_MS + 10_001;
        let partition = in_an_outage(Some(ahead));
        let told = freshness(&partition, at(2010));
        assert_eq!((told.state, told.age_ms), (FreshnessState::Stale, None));
    }

    #[test]
    fn nothing_is_no_copy() {
        let mut partition = partition();
        partition.take(&all_of("log", 0), at(1), at(1));
        assert!(partition.copied(at(2), WALL_MS).is_none());
    }

    #[test]
    fn the_log_takes_the_place_of_its_copy() {
        for (epoch, outcome) in [
            ("log", SnapshotReason::TooOld),
            ("another", SnapshotReason::EpochChanged),
        ] {
            let mut partition = in_an_outage(Some(copied()));
            assert_eq!(
                partition.next_after(),
                None,
                "the log is read from its start"
            );
            partition.take(&all_of(epoch, 7), at(3000), at(3001));
            let begin = join(&mut partition, "s/c", token("log", 5)).unwrap();
            assert_eq!(begin.outcome, Outcome::Snapshot(outcome));
            assert_eq!(rows(&begin), ["7"]);
            assert_eq!(freshness(&partition, at(3001)).state, FreshnessState::Live);
            partition.fail(SourceError::Unavailable);
            let told = freshness(&partition, at(13_000));
            assert_eq!(told.age_ms, Some(10_000), "of the log's own proof");
        }
    }

    #[test]
    fn without_a_copy_the_default_stands_in() {
        let mut partition = in_an_outage(None);
        let begin = join(&mut partition, "s/c", From::Now).unwrap();
        assert_eq!(
            (rows(&begin), begin.at.epoch.as_str()),
            (vec!["0".to_owned()], EPOCH)
        );
        assert_eq!(
            freshness(&partition, at(2020)).state,
            FreshnessState::Unavailable
        );
    }
}
