//! What the readers of a stream in one role share about records that mean nothing: the rule, where they stopped, and what an
//! operator said of that.
//!
//! The verdict on a record is `decode`'s. Owns: at most one stop, and a bounded number of records that were passed over, for each
//! partition. Keeps: what an operator excuses is the very
//! record at which a partition stopped, in that log, and no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;
use tokio::sync::watch;

use crate::model::{Epoch, Offset, PoisonRule};

/// Records of a partition that operators passed over and that are remembered, in case the log is read anew; the oldest go.
const EXCUSED_MAX: usize = 1024;

/// Where a partition stopped, and why it does not go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stop {
    /// The log's identity.
    #[serde(skip)]
    pub epoch: Epoch,
    /// The record.
    #[serde(serialize_with = "number")]
    pub offset: Offset,
    /// Why, and what to do.
    pub message: String,
}

fn number<S: serde::Serializer>(offset: &Offset, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(offset.number())
}

/// What is known of one partition.
#[derive(Debug, Default)]
struct Known {
    stop: Option<Stop>,
    /// The records of a log that are passed over, since an operator said so.
    excused: Option<(Epoch, BTreeSet<Offset>)>,
    quarantined: u64,
}

/// The rule of a stream, and where its partitions stopped.
#[derive(Debug, Default)]
pub struct Poisons {
    /// Also tells those who stopped that something has changed.
    rule: watch::Sender<PoisonRule>,
    partitions: Mutex<BTreeMap<u32, Known>>,
    /// Bytes that wait for the dead-letter topic.
    waiting: Arc<AtomicUsize>,
}

impl Poisons {
    /// For all readers of a stream in one role.
    #[must_use]
    pub fn new(rule: PoisonRule) -> Arc<Self> {
        Arc::new(Self {
            rule: watch::Sender::new(rule),
            ..Self::default()
        })
    }

    /// Bytes that wait for the dead-letter topic to take them.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Where whoever writes to the dead-letter topic keeps that sum.
    #[must_use]
    pub fn scales(&self) -> Arc<AtomicUsize> {
        self.waiting.clone()
    }

    /// The rule that holds.
    #[must_use]
    pub fn rule(&self) -> PoisonRule {
        *self.rule.borrow()
    }

    /// Another rule from now on; who stopped looks again.
    pub fn set_rule(&self, rule: PoisonRule) {
        self.rule.send_replace(rule);
    }

    /// Tells when the rule, or what is excused, has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<PoisonRule> {
        self.rule.subscribe()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u32, Known>> {
        self.partitions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition stops here.
    pub fn stop(&self, partition: u32, stop: Stop) {
        self.known().entry(partition).or_default().stop = Some(stop);
    }

    /// A partition is read on.
    pub fn go_on(&self, partition: u32) {
        if let Some(known) = self.known().get_mut(&partition) {
            known.stop = None;
        }
    }

    /// Where a partition stopped, if it did.
    #[must_use]
    pub fn stopped(&self, partition: u32) -> Option<Stop> {
        self.known().get(&partition)?.stop.clone()
    }

    /// How many partitions stopped.
    #[must_use]
    pub fn stops(&self) -> usize {
        let known = self.known();
        known.values().filter(|known| known.stop.is_some()).count()
    }

    /// An operator says that this record is passed over. Whether a partition stopped there.
    #[must_use]
    pub fn excuse(&self, partition: u32, offset: Offset) -> bool {
        let mut all = self.known();
        let known = all.get_mut(&partition);
        let stopped = known.and_then(|known| {
            let stop = known.stop.as_ref().filter(|stop| stop.offset == offset)?;
            let kept = known.excused.take();
            let kept = kept.filter(|(epoch, _)| *epoch == stop.epoch);
            let (epoch, mut records) = kept.unwrap_or((stop.epoch.clone(), BTreeSet::new()));
            records.insert(offset);
            while records.len() > EXCUSED_MAX {
                records.pop_first();
            }
            known.excused = Some((epoch, records));
            Some(())
        });
        drop(all);
        if stopped.is_some() {
            self.rule.send_modify(|_| {});
        }
        stopped.is_some()
    }

    /// Whether an operator said that this record is passed over.
    #[must_use]
    pub fn is_excused(&self, partition: u32, epoch: &Epoch, offset: Offset) -> bool {
        let all = self.known();
        let excused = all.get(&partition).and_then(|known| known.excused.as_ref());
        excused.is_some_and(|(log, records)| log == epoch && records.contains(&offset))
    }

    /// So many more records are in the dead-letter topic.
    pub fn note_quarantined(&self, partition: u32, count: u64) {
        self.known().entry(partition).or_default().quarantined += count;
    }

    /// Records of a partition that were put into the dead-letter topic.
    #[must_use]
    pub fn quarantined(&self, partition: u32) -> u64 {
        let all = self.known();
        all.get(&partition).map_or(0, |known| known.quarantined)
    }

    /// The same of all partitions.
    #[must_use]
    pub fn all_quarantined(&self) -> u64 {
        self.known().values().map(|known| known.quarantined).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(epoch: &str, offset: u64) -> Stop {
        Stop {
            epoch: Epoch::new(epoch).unwrap(),
            offset: Offset::new(offset),
            message: "why".into(),
        }
    }

    #[test]
    fn only_the_record_at_which_a_partition_stopped_is_excused_and_only_in_that_log() {
        let poisons = Poisons::new(PoisonRule::Halt);
        let mut changes = poisons.changes();
        let (here, elsewhere) = (stop("e", 7), stop("f", 7));
        assert!(!poisons.excuse(0, here.offset));
        poisons.stop(0, here.clone());
        assert!(!poisons.excuse(0, Offset::new(8)) && !poisons.excuse(1, here.offset));
        assert!(!changes.has_changed().unwrap());
        assert!(poisons.excuse(0, here.offset));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(poisons.is_excused(0, &here.epoch, here.offset));
        assert!(!poisons.is_excused(0, &elsewhere.epoch, here.offset));
        assert!(!poisons.is_excused(0, &here.epoch, Offset::new(8)));
        assert_eq!((poisons.stops(), poisons.stopped(0)), (1, Some(here)));
        poisons.go_on(0);
        assert_eq!((poisons.stops(), poisons.stopped(0)), (0, None));
    }

    #[test]
    fn what_was_excused_is_remembered_up_to_a_bound_and_until_the_log_is_another() {
        let poisons = Poisons::new(PoisonRule::Halt);
        let epoch = Epoch::new("e").unwrap();
        let most = u64::try_from(EXCUSED_MAX).unwrap();
        for offset in 1..=most + 1 {
            poisons.stop(0, stop("e", offset));
            assert!(poisons.excuse(0, Offset::new(offset)));
        }
        let is = |offset| poisons.is_excused(0, &epoch, Offset::new(offset));
        assert!(!is(1) && is(2) && is(most + 1));
        poisons.stop(0, stop("f", 5));
        assert!(poisons.excuse(0, Offset::new(5)));
        assert!(!is(2) && poisons.is_excused(0, &Epoch::new("f").unwrap(), Offset::new(5)));
    }

    #[test]
    fn another_rule_wakes_who_stopped() {
        let poisons = Poisons::new(PoisonRule::Halt);
        let changes = poisons.changes();
        poisons.set_rule(PoisonRule::Skip);
        assert!(changes.has_changed().unwrap());
        assert_eq!(poisons.rule(), PoisonRule::Skip);
    }
}
