//! Whether a partition is read: as long as somebody needs it, and for a while after.
//!
//! Owns: since when nobody does. Never knows: who needs it, and how that is found out; moments come in as arguments (I9).

use std::time::Duration;

use crate::model::Moment;

/// How a partition is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reads {
    /// At least so often, so that proofs are young enough.
    pub prove_every: Duration,
    /// So long after the last who needed it has left; none: always.
    pub linger: Option<Duration>,
}

/// Whether a partition is read.
#[derive(Debug)]
pub(super) struct Need {
    linger: Option<Duration>,
    unneeded_since: Option<Moment>,
    resting_since: Option<Moment>,
    wakings: u64,
}

impl Need {
    /// Nobody has needed it yet.
    pub(super) const fn new(linger: Option<Duration>) -> Self {
        Self {
            linger,
            unneeded_since: None,
            resting_since: None,
            wakings: 0,
        }
    }

    /// It lingers so long from now on.
    pub(super) const fn bound(&mut self, linger: Option<Duration>) {
        self.linger = linger;
    }

    /// Whether it is read only while it is needed.
    pub(super) const fn is_by_need(&self) -> bool {
        self.linger.is_some()
    }

    /// Somebody asked it for something.
    pub(super) const fn asked(&mut self) {
        self.unneeded_since = None;
    }

    /// Whether it has gone unneeded for long enough, seen now.
    pub(super) fn is_over(&mut self, needed: bool, now: Moment) -> bool {
        let Some(linger) = self.linger.filter(|_| !needed) else {
            self.unneeded_since = None;
            return false;
        };
        now.since(*self.unneeded_since.get_or_insert(now)) >= linger
    }

    /// It is not read from now on.
    pub(super) const fn rest(&mut self, now: Moment) {
        self.resting_since = Some(now);
    }

    /// It is read again.
    pub(super) const fn wake(&mut self) {
        (self.resting_since, self.unneeded_since) = (None, None);
        self.wakings += 1;
    }

    /// For how long it has not been read, while it is not.
    pub(super) fn resting(&self, now: Moment) -> Option<Duration> {
        self.resting_since.map(|since| now.since(since))
    }

    /// Times that it was read again.
    pub(super) const fn wakings(&self) -> u64 {
        self.wakings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Moment::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn it_is_over_when_nobody_needed_it_for_long_enough_without_a_break() {
        let mut need = Need::new(Some(Duration::from_secs(10)));
        assert!(!need.is_over(true, at(0)));
        assert!(!need.is_over(false, at(20)), "only now it is not needed");
        assert!(!need.is_over(false, at(29)));
        assert!(need.is_over(false, at(30)));
        assert!(!need.is_over(true, at(31)));
        assert!(!need.is_over(false, at(32)));
        need.asked();
        assert!(!need.is_over(false, at(43)), "somebody had asked meanwhile");
        assert!(need.is_over(false, at(53)));
    }

    #[test]
    fn who_reads_always_never_rests() {
        let mut need = Need::new(None);
        assert!(!need.is_over(false, at(0)) && !need.is_over(false, at(1 << 30)));
        need.bound(Some(Duration::from_secs(1)));
        assert!(need.is_by_need() && !need.is_over(false, at(1 << 30)));
        assert!(need.is_over(false, at((1 << 30) + 1)));
    }
}
