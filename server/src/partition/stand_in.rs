//! What stands in for views of which nothing can be known: a stream's default, until its log has been read for the first time.
//!
//! Owns: the default's rows, and whether they stand in. Never knows: why nothing can be known. Keeps: I1: who gets them is told
//! `unavailable` and why, under an epoch that no log has; so the first fetch that succeeds is another log, and everybody gets
//! its views. Whoever brings a token waits instead: what he has is better.

use std::time::Duration;

use super::Partition;
use crate::model::{Epoch, Moment, Offset, Row, RowId, Rows};

/// So long a node waits for its sources before a default stands in.
const PATIENCE: Duration = Duration::from_secs(2);
/// The epoch of defaults. No source's name for a log is so short.
const EPOCH: &str = "default";

/// A stream's default.
#[derive(Debug)]
pub(super) struct StandIn {
    rows: Rows,
    /// Since when nothing can be read.
    since: Option<Moment>,
    stands: bool,
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
    pub fn with_default(self, rows: &[(RowId, bytes::Bytes)]) -> Self {
        let row = |data: &bytes::Bytes| Row {
            data: data.clone(),
            ts_ms: 0,
            offset: Offset::BEFORE_ALL,
        };
        let rows = rows.iter().map(|(id, data)| (id.clone(), row(data)));
        let stand_in = StandIn {
            rows: rows.collect(),
            since: None,
            stands: false,
        };
        Self {
            stand_in: Some(stand_in),
            ..self
        }
    }

    /// The rows that stand in for every view, while they do.
    pub(super) fn standing(&self) -> Option<&Rows> {
        let stand_in = self.stand_in.as_ref().filter(|one| one.stands);
        stand_in.map(|one| &one.rows)
    }

    /// Nothing has been read yet, and something is wrong: after a while the default stands in.
    pub(super) fn let_stand_in(&mut self, now: Moment) {
        let nothing_known = self.epoch.is_none() && self.health.trouble.is_some();
        let (Some(stand_in), true) = (&mut self.stand_in, nothing_known) else {
            return;
        };
        let since = *stand_in.since.get_or_insert(now);
        let Ok(epoch) = Epoch::new(EPOCH) else { return };
        if now.since(since) >= PATIENCE {
            stand_in.stands = true;
            self.tail.reset(epoch.clone(), Offset::BEFORE_ALL, now);
            self.tail.set_health(self.health);
            self.epoch = Some(epoch);
        }
    }

    /// The log was read: it takes the default's place.
    pub(super) fn step_aside(&mut self) {
        if self.standing().is_some() {
            self.epoch = None;
        }
        self.stand_in = None;
    }
}
