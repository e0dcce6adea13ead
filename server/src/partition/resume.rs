//! The resume table: what a token gets, as a pure function of what this node knows.
//!
//! Each line of the table in `docs/explanation/design.md`, section 3, is one branch here, in the same order. An incomplete
//! fold has an epoch of its own here. The model in `tests/model` is where its sentences
//! were found.

use crate::{
    model::{Epoch, Mode, Moment, Offset, Position},
    protocol::SnapshotReason,
};

/// What stands between a log's epoch and the name of an incomplete fold of it.
pub(super) const FOLD_MARK: &str = "-i";

/// Where a subscriber begins in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum From {
    /// It has nothing of this partition.
    Now,
    /// Events: the last so many of the tail first.
    History(u32),
    /// Events: what the log has, bounded.
    Earliest,
    /// Behind this position.
    After(Position),
}

/// What a node knows about one channel of one partition.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// View or events.
    pub mode: Mode,
    /// The log's identity, as clients get it.
    pub epoch: &'a Epoch,
    /// The same without the name of the fold, which an incomplete view's epoch carries.
    pub log: &'a Epoch,
    /// Just before the first update in the tail.
    pub floor: Offset,
    /// Everything up to here has been applied.
    pub applied: Offset,
    /// The newest head that a fetch found, and when that fetch was sent.
    pub head: (Offset, Moment),
    /// The channel's last change, or an offset after which it has not changed; none when that is not known (which is not
    /// "never").
    pub last_change: Option<Offset>,
    /// The channel's view remembers every change after this; none where there is no view that may be served.
    pub remembered: Option<Offset>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing can be said before another fetch.
    Ask,
    /// This node is behind the client: hold the line until it is not.
    Behind,
    /// What follows the token is in the tail.
    Follow,
    /// Nothing was missed.
    Nothing,
    /// The rows of the view that changed after the token.
    Changes,
    /// The whole view.
    Snapshot(SnapshotReason),
    /// Events from now on.
    Start,
    /// Events: read the log from the token on.
    Replay,
    /// Events of another epoch: a gap up to here.
    EpochGap,
}

/// The table.
#[must_use]
pub fn verdict(known: &Known<'_>, from: &From, arrived: Moment) -> Verdict {
    let token = match (from, known.mode) {
        (From::After(token), _) => token,
        (_, Mode::View) => return Verdict::Snapshot(SnapshotReason::New),
        (From::Now | From::History(_), Mode::Events) => return Verdict::Start,
        (From::Earliest, Mode::Events) => return Verdict::Replay,
    };
    let (head, asked_at) = known.head;
    // Strictly later: a fetch sent in the same microsecond may have left first.
    let asked_since = asked_at > arrived;
    let mut foreign = token.epoch != *known.epoch;
    let other_fold = foreign && is_fold_of(&token.epoch, known.log);
    if (!foreign || other_fold) && token.offset > known.applied {
        if !asked_since {
            return Verdict::Behind;
        }
        if token.offset <= head {
            return Verdict::Behind;
        }
        foreign = true;
    } else if foreign && !other_fold && !asked_since {
        return Verdict::Ask;
    }
    if foreign {
        return match known.mode {
            Mode::View => Verdict::Snapshot(SnapshotReason::EpochChanged),
            // The gap reaches to a head fetched since; before it is applied, surviving events would come twice.
            Mode::Events if known.applied < head => Verdict::Ask,
            Mode::Events => Verdict::EpochGap,
        };
    }
    if token.offset >= known.floor {
        return Verdict::Follow;
    }
    if known.last_change.is_some_and(|last| last <= token.offset) {
        return Verdict::Nothing;
    }
    match known.mode {
        Mode::Events => Verdict::Replay,
        Mode::View if known.remembered.is_some_and(|since| since <= token.offset) => {
            Verdict::Changes
        }
        Mode::View => Verdict::Snapshot(SnapshotReason::TooOld),
    }
}

/// Whether clients get this name for a fold of the log, or for the log itself.
pub(super) fn is_fold_of(epoch: &Epoch, log: &Epoch) -> bool {
    let rest = epoch.as_str().strip_prefix(log.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(FOLD_MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Floor 10, applied 20, head 25 (fetched at 100), last change 12.
    fn check(mode: Mode, epoch: &str, offset: u64, arrived: u64, expected: Verdict) {
        let ours = Epoch::new("e").unwrap();
        let known = Known {
            mode,
            epoch: &ours,
            log: &ours,
            floor: Offset::new(10),
            applied: Offset::new(20),
            head: (Offset::new(25), Moment::from_micros(100)),
            last_change: Some(Offset::new(12)),
            remembered: Some(Offset::new(8)),
        };
        let token = Position {
            partition: 0,
            epoch: Epoch::new(epoch).unwrap(),
            offset: Offset::new(offset),
        };
        let found = verdict(&known, &From::After(token), Moment::from_micros(arrived));
        assert_eq!(found, expected, "{mode:?} {epoch}:{offset} at {arrived}");
    }

    #[test]
    fn every_line_of_the_table() {
        use Mode::{Events, View};
        for mode in [View, Events] {
            check(mode, "e", 20, 50, Verdict::Follow);
            check(mode, "e", 10, 50, Verdict::Follow);
            check(mode, "e", 21, 50, Verdict::Behind);
            check(mode, "e", 25, 50, Verdict::Behind);
            check(mode, "e", 26, 150, Verdict::Behind);
            check(mode, "f", 5, 150, Verdict::Ask);
            check(mode, "f", 5, 100, Verdict::Ask);
        }
        check(
            View,
            "e",
            26,
            50,
            Verdict::Snapshot(SnapshotReason::EpochChanged),
        );
        check(
            View,
            "f",
            5,
            50,
            Verdict::Snapshot(SnapshotReason::EpochChanged),
        );
        check(Events, "f", 5, 50, Verdict::Ask); // until the head is applied
        check(View, "e", 9, 50, Verdict::Changes);
        check(View, "e", 8, 50, Verdict::Changes);
        check(View, "e", 7, 50, Verdict::Snapshot(SnapshotReason::TooOld));
        check(Events, "e", 9, 50, Verdict::Replay);
    }

    #[test]
    fn who_was_shown_another_fold_gets_this_one_and_nothing_older() {
        use Mode::View;
        let changed = Verdict::Snapshot(SnapshotReason::EpochChanged);
        for arrived in [50, 150] {
            check(View, "e-ig1", 5, arrived, changed);
            check(View, "e-ig1", 20, arrived, changed);
            check(View, "e-ig1", 21, arrived, Verdict::Behind);
        }
        check(View, "e-ig1", 26, 50, changed);
        check(View, "e-ig1", 26, 150, Verdict::Behind);
        check(View, "e-other", 5, 150, Verdict::Ask);
    }

    #[test]
    fn events_of_another_epoch_wait_for_the_head_and_then_are_a_gap() {
        let ours = Epoch::new("e").unwrap();
        let mut known = Known {
            mode: Mode::Events,
            epoch: &ours,
            log: &ours,
            floor: Offset::new(10),
            applied: Offset::new(20),
            head: (Offset::new(25), Moment::from_micros(100)),
            last_change: None,
            remembered: None,
        };
        let from = From::After(Position {
            partition: 0,
            epoch: Epoch::new("f").unwrap(),
            offset: Offset::new(3),
        });
        assert_eq!(verdict(&known, &from, Moment::from_micros(1)), Verdict::Ask);
        known.applied = Offset::new(25);
        assert_eq!(
            verdict(&known, &from, Moment::from_micros(1)),
            Verdict::EpochGap
        );
    }

    #[test]
    fn an_old_token_of_a_quiet_channel_missed_nothing_if_that_is_known() {
        let ours = Epoch::new("e").unwrap();
        let mut known = Known {
            mode: Mode::View,
            epoch: &ours,
            log: &ours,
            floor: Offset::new(10),
            applied: Offset::new(20),
            head: (Offset::new(20), Moment::from_micros(100)),
            last_change: Some(Offset::new(5)),
            remembered: None,
        };
        let from = From::After(Position {
            partition: 0,
            epoch: ours.clone(),
            offset: Offset::new(7),
        });
        assert_eq!(verdict(&known, &from, Moment::default()), Verdict::Nothing);
        known.last_change = None;
        assert_eq!(
            verdict(&known, &from, Moment::default()),
            Verdict::Snapshot(SnapshotReason::TooOld)
        );
    }

    #[test]
    fn without_a_token() {
        let ours = Epoch::new("e").unwrap();
        let mut known = Known {
            mode: Mode::Events,
            epoch: &ours,
            log: &ours,
            floor: Offset::BEFORE_ALL,
            applied: Offset::BEFORE_ALL,
            head: (Offset::BEFORE_ALL, Moment::default()),
            last_change: None,
            remembered: None,
        };
        assert_eq!(
            verdict(&known, &From::Now, Moment::default()),
            Verdict::Start
        );
        assert_eq!(
            verdict(&known, &From::History(3), Moment::default()),
            Verdict::Start
        );
        assert_eq!(
            verdict(&known, &From::Earliest, Moment::default()),
            Verdict::Replay
        );
        known.mode = Mode::View;
        assert_eq!(
            verdict(&known, &From::Now, Moment::default()),
            Verdict::Snapshot(SnapshotReason::New)
        );
    }
}
