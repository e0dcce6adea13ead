//! When a node folds channels from the log itself, since the cache that has their rows does not answer.
//!
//! Owns: since when the cache is silent, and when the log may be read for it again. Never knows: who reads, and what for. Keeps:
//! a log that is too long, or has lost its beginning, is not read again and again; a cache that stammers costs no fold.

use std::time::Duration;

use crate::{model::Moment, source::Fetch};

/// So long the cache may be silent before a log is read in its place: what a call may take, and its breaker's first probes.
const PATIENCE: Duration = Duration::from_secs(2);
/// After a fold that could not be ended the next one waits so long, and twice as long after each further one …
const PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Alone {
    /// Records of a log that are read at most; 0: none.
    records_max: u64,
    /// Whether views are good enough without the log's beginning.
    accepts_incomplete: bool,
    silent_since: Option<Moment>,
    not_before: Moment,
    pause: Duration,
    /// The log that is read is none for this.
    refused: bool,
    /// Channels that were folded.
    pub(super) folded: u64,
}

impl Alone {
    pub(super) fn new(records_max: u64, accepts_incomplete: bool) -> Self {
        Self {
            records_max,
            accepts_incomplete,
            silent_since: None,
            not_before: Moment::default(),
            pause: PAUSE,
            refused: false,
            folded: 0,
        }
    }

    /// The cache has answered.
    pub(super) const fn answered(&mut self) {
        self.silent_since = None;
    }

    /// The cache has not answered.
    pub(super) fn silent(&mut self, now: Moment) {
        self.silent_since.get_or_insert(now);
    }

    /// Another log is read.
    pub(super) const fn opened(&mut self) {
        self.refused = false;
    }

    /// Whether it is time to.
    pub(super) fn may(&self, now: Moment) -> bool {
        let silent = |since: Moment| now.since(since) >= PATIENCE;
        self.records_max > 0
            && !self.refused
            && now >= self.not_before
            && self.silent_since.is_some_and(silent)
    }

    /// Whether the log can be folded, says what a reading of it began with.
    pub(super) fn fits(&mut self, first: &Fetch) -> bool {
        let records = first.head.number().saturating_sub(first.start.number());
        let whole = self.accepts_incomplete || first.start.number() == 0;
        self.refused = !whole || records > self.records_max;
        if self.refused {
            tracing::warn!(
                records,
                whole,
                at_most = self.records_max,
                "the cache does not answer, and this log can't be folded in its place: channels that are not resident wait for it"
            );
        }
        !self.refused
    }

    /// A fold has ended.
    pub(super) const fn succeeded(&mut self, channels: u64) {
        self.pause = PAUSE;
        self.folded += channels;
    }

    /// A fold could not be ended.
    pub(super) fn failed(&mut self, now: Moment) {
        self.not_before = now.plus(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, Offset};

    fn at(seconds: u64) -> Moment {
        Moment::default().plus(Duration::from_secs(seconds))
    }

    fn first(start: u64, head: u64) -> Fetch {
        Fetch {
            epoch: Epoch::new("e").unwrap(),
            start: Offset::new(start),
            upto: Offset::new(start),
            head: Offset::new(head),
            records: Vec::new(),
            when: None,
            lineage: None,
        }
    }

    #[test]
    fn a_cache_that_is_silent_for_a_while_is_done_without() {
        let mut alone = Alone::new(10, false);
        assert!(!alone.may(at(0)));
        alone.silent(at(1));
        alone.silent(at(2));
        assert!(!alone.may(at(2)));
        assert!(alone.may(at(3)));
        alone.answered();
        assert!(!alone.may(at(3)));
    }

    #[test]
    fn a_log_that_is_too_long_or_lacks_its_beginning_is_left_until_there_is_another() {
        for (fetch, fits) in [
            (first(0, 10), true),
            (first(0, 11), false),
            (first(1, 5), false),
        ] {
            let mut alone = Alone::new(10, false);
            alone.silent(at(0));
            assert_eq!(alone.fits(&fetch), fits);
            assert_eq!(alone.may(at(9)), fits);
            alone.opened();
            assert!(alone.may(at(9)));
        }
        assert!(Alone::new(10, true).fits(&first(1, 5)));
    }

    #[test]
    fn who_could_not_end_waits_longer_each_time() {
        let mut alone = Alone::new(10, false);
        alone.silent(at(0));
        alone.failed(at(10));
        assert!(!alone.may(at(10)) && alone.may(at(11)));
        alone.failed(at(11));
        assert!(!alone.may(at(12)) && alone.may(at(13)));
        alone.succeeded(1);
        alone.failed(at(20));
        assert!(alone.may(at(21)));
    }

    #[test]
    fn who_is_told_never_to_does_not() {
        let mut alone = Alone::new(0, true);
        alone.silent(at(0));
        assert!(!alone.may(at(99)));
    }
}
