//! The newest updates of a partition, shared by the workers.
//!
//! The partition's task is its only writer (I3). Workers pull at their own pace with a cursor each, behind a lock that is
//! held for a few instructions a batch, so no worker stops a partition and no partition a worker (I2). A tail never
//! bridges a hole: when the log's epoch changes, or the log lost what follows, it is cleared and its `resets` moves on.

mod held;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use held::Held;
use tokio::sync::Notify;

use crate::{
    frame::Shared,
    model::{Channel, Epoch, Freshness, FreshnessState, Moment, Offset, StaleReason},
};

/// What a tail holds at most. Whichever limit is reached first.
#[derive(Clone, Copy, Debug)]
pub struct TailMax {
    /// Bytes, about.
    pub bytes: usize,
    /// Since an update was applied.
    pub age: Duration,
}

/// A successful fetch whose head has been applied: when it was sent, and that head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When the fetch was sent.
    pub asked_at: Moment,
    /// The head that it found.
    pub head: Offset,
}

/// What is shown was the log's end this long before a moment, says an earlier process. That is no proof: nothing becomes live by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastKnown {
    /// At this moment …
    pub at: Moment,
    /// … it was so old.
    pub age: Duration,
}

/// How a partition is doing, as far as freshness is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The newest proof.
    pub proof: Option<Proof>,
    /// Where there is none: of what age the last that is known is.
    pub last_known: Option<LastKnown>,
    /// Why there are no newer ones, where the source says why.
    pub trouble: Option<StaleReason>,
    /// Why its views are not whole, however new they are.
    pub flaw: Option<StaleReason>,
    /// When a record was last seen (or the log was opened).
    pub last_record_at: Moment,
}

impl Health {
    /// What a view with this health says of itself: live while its newest proof is younger than `slo`, and somebody still
    /// writes to its log where that is expected.
    #[must_use]
    pub fn freshness(
        &self,
        slo: Duration,
        expect_every: Option<Duration>,
        now: Moment,
    ) -> Freshness {
        let proven = self.proof.map(|proof| now.since(proof.asked_at));
        let last_known = self.last_known.map(|known| known.age + now.since(known.at));
        let silent = expect_every.is_some_and(|every| now.since(self.last_record_at) > every);
        let (state, reason) = match (proven, self.trouble) {
            (Some(age), _) if age <= slo && self.flaw.is_some() => {
                (FreshnessState::Stale, self.flaw)
            }
            (Some(age), _) if age <= slo && !silent => (FreshnessState::Live, None),
            (Some(_), None) if silent => (FreshnessState::Stale, Some(StaleReason::ProducerSilent)),
            (Some(_), trouble) => (
                FreshnessState::Stale,
                Some(trouble.unwrap_or(StaleReason::Lagging)),
            ),
            (None, Some(trouble)) if last_known.is_some() => (FreshnessState::Stale, Some(trouble)),
            (None, Some(trouble)) => (FreshnessState::Unavailable, Some(trouble)),
            (None, None) => (FreshnessState::CatchingUp, Some(StaleReason::Lagging)),
        };
        let age_ms = proven
            .or(last_known)
            .map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        Freshness {
            state,
            age_ms,
            reason,
        }
    }
}

/// Of several partitions' states the worst: a view is as fresh as the least fresh of them.
#[must_use]
pub fn least_fresh(states: impl IntoIterator<Item = Freshness>) -> Option<Freshness> {
    let rank = |state| match state {
        FreshnessState::Live => 0,
        FreshnessState::CatchingUp => 1,
        FreshnessState::Stale => 2,
        FreshnessState::Unavailable => 3,
    };
    states
        .into_iter()
        .max_by_key(|freshness| (rank(freshness.state), freshness.age_ms))
}

/// Where a worker is in a tail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Of which life of the tail.
    pub resets: u64,
    /// Everything up to here has been pulled.
    pub offset: Offset,
}

/// What a pull gives.
#[derive(Debug)]
pub struct Pulled {
    /// What follows the cursor, in order.
    pub updates: Vec<Arc<Shared>>,
    /// Where the worker is now.
    pub cursor: Cursor,
    /// The log's identity; none before the first fetch.
    pub epoch: Option<Epoch>,
    /// How the partition is doing.
    pub health: Health,
    /// Whether the tail no longer reached back to the cursor, or had another life: what the cursor's connections were
    /// owed in between is not in `updates`.
    pub fell_off: bool,
}

/// Wakes one worker, at most once until it looks.
#[derive(Debug, Default)]
pub struct Wake {
    raised: AtomicBool,
    notify: Notify,
}

impl Wake {
    /// Raises the flag; wakes the worker when it was down.
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }
    /// Takes the flag down and tells whether it was up.
    pub fn take(&self) -> bool {
        self.raised.swap(false, Ordering::AcqRel)
    }
    /// Returns once the flag has been raised. Cancel safe.
    pub async fn raised(&self) {
        self.notify.notified().await;
    }
}

/// The newest updates of one partition.
#[derive(Debug)]
pub struct Tail {
    max: Mutex<TailMax>,
    /// Bytes that the node's memory allows it, where that is less than its own bound.
    room: AtomicUsize,
    inner: Mutex<Inner>,
    wakes: Mutex<Vec<Arc<Wake>>>,
}

#[derive(Debug, Default)]
struct Inner {
    epoch: Option<Epoch>,
    resets: u64,
    floor: Offset,
    applied: Offset,
    held: Held,
    health: Health,
    /// Since when its partition is not read.
    resting: Option<Moment>,
}

impl Tail {
    /// An empty tail.
    #[must_use]
    pub fn new(max: TailMax) -> Arc<Self> {
        Arc::new(Self {
            max: Mutex::new(max),
            room: AtomicUsize::new(usize::MAX),
            inner: Mutex::default(),
            wakes: Mutex::default(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes this worker from now on whenever there is something to pull.
    pub fn wake_also(&self, wake: Arc<Wake>) {
        self.wakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(wake);
    }

    /// No longer wakes this worker.
    pub fn wake_no_more(&self, wake: &Arc<Wake>) {
        self.wakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| !Arc::ptr_eq(other, wake));
    }

    fn wake_all(&self) {
        for wake in self
            .wakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            wake.raise();
        }
    }

    // === the partition's side

    /// Begins another life: at `at` in `epoch`, with nothing before it.
    pub fn reset(&self, epoch: Epoch, at: Offset, now: Moment) {
        let mut inner = self.inner();
        inner.resets += 1;
        (inner.epoch, inner.floor, inner.applied) = (Some(epoch), at, at);
        inner.held = Held::default();
        inner.health = Health {
            last_record_at: now,
            ..Health::default()
        };
        drop(inner);
        self.wake_all();
    }

    /// Appends a batch, and what is known of freshness after it. Everything up to `applied` has been applied.
    pub fn push(&self, batch: Vec<Arc<Shared>>, applied: Offset, health: Health, now: Moment) {
        let mut inner = self.inner();
        inner.held.extend(batch);
        inner.applied = applied;
        inner.health = health;
        self.trim_inner(&mut inner, now);
        drop(inner);
        self.wake_all();
    }

    /// Lets the oldest go that are beyond its bounds, or beyond the room that it has.
    pub fn trim(&self, now: Moment) {
        self.trim_inner(&mut self.inner(), now);
    }

    fn trim_inner(&self, inner: &mut Inner, now: Moment) {
        let max = *self.max.lock().unwrap_or_else(PoisonError::into_inner);
        let most = max.bytes.min(self.room.load(Ordering::Relaxed));
        while inner.held.bytes() > most
            || inner
                .held
                .oldest()
                .is_some_and(|shared| now.since(shared.applied_at) > max.age)
        {
            let Some(oldest) = inner.held.pop() else {
                break;
            };
            inner.floor = oldest.update.position.offset;
        }
    }

    /// What the node's memory allows it from now on; its partition trims it.
    pub fn set_room(&self, bytes: usize) {
        self.room.store(bytes, Ordering::Relaxed);
    }

    /// Holds so much at most from the next batch on.
    pub fn bound(&self, max: TailMax) {
        *self.max.lock().unwrap_or_else(PoisonError::into_inner) = max;
    }

    /// Lets go of what it holds: nobody pulls from it any more.
    pub fn clear(&self) {
        let mut inner = self.inner();
        inner.floor = inner.applied;
        inner.held = Held::default();
    }

    /// Its partition is not read from now on: it holds nothing, and nothing is known of freshness.
    pub(super) fn rest(&self, now: Moment) {
        self.clear();
        let mut inner = self.inner();
        (inner.health, inner.resting) = (Health::default(), Some(now));
    }

    /// Its partition is read again.
    pub(super) fn wake(&self) {
        self.inner().resting = None;
    }

    /// Since when its partition is not read, while it is not.
    #[must_use]
    pub fn resting(&self) -> Option<Moment> {
        self.inner().resting
    }

    /// Whether some worker has a lane here. Who comes asks its partition for a join, whatever this says.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        let wakes = self.wakes.lock();
        !wakes.unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// How old an update may become here.
    pub(super) fn age(&self) -> Duration {
        let max = self.max.lock();
        max.unwrap_or_else(PoisonError::into_inner).age
    }

    /// Only the health has changed.
    pub fn set_health(&self, health: Health) {
        self.inner().health = health;
        self.wake_all();
    }

    /// Updates that it holds, the bytes that they pin, about, and the offset after which it begins.
    #[must_use]
    pub fn extent(&self) -> (usize, usize, Offset) {
        let inner = self.inner();
        (inner.held.len(), inner.held.bytes(), inner.floor)
    }

    // === the workers' side

    /// Which life this is, and how far it has come.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        let inner = self.inner();
        Cursor {
            resets: inner.resets,
            offset: inner.applied,
        }
    }

    /// Where the tail is now, without what is in it: where a worker begins that has had nobody here until now.
    #[must_use]
    pub fn here(&self) -> Pulled {
        let inner = self.inner();
        let cursor = Cursor {
            resets: inner.resets,
            offset: inner.applied,
        };
        Pulled {
            updates: Vec::new(),
            cursor,
            epoch: inner.epoch.clone(),
            health: inner.health,
            fell_off: false,
        }
    }

    /// Everything after the cursor, up to `max` updates. A worker that fell off goes on from the floor, not from applied.
    #[must_use]
    pub fn pull(&self, cursor: Cursor, max: usize) -> Pulled {
        let inner = self.inner();
        let reset = cursor.resets != inner.resets;
        let fell_off = reset || cursor.offset < inner.floor;
        let from = if fell_off { inner.floor } else { cursor.offset };
        let behind = inner.held.after(from);
        let all = behind.len() <= max;
        let updates: Vec<_> = behind.take(max).cloned().collect();
        let offset = match updates.last() {
            Some(last) if !all => last.update.position.offset,
            _ => inner.applied.max(from),
        };
        let cursor = Cursor {
            resets: inner.resets,
            offset,
        };
        Pulled {
            updates,
            cursor,
            epoch: inner.epoch.clone(),
            health: inner.health,
            fell_off,
        }
    }

    /// The updates of one channel after `after` and up to `upto`, the first `most` of them; none when the tail does not
    /// reach back so far.
    #[must_use]
    pub fn between(
        &self,
        channel: &Channel,
        after: Offset,
        upto: Offset,
        most: usize,
    ) -> Option<Vec<Arc<Shared>>> {
        let inner = self.inner();
        if after < inner.floor {
            return None;
        }
        let behind = inner.held.of_channel_after(channel, after);
        let found = behind.take_while(|shared| shared.update.position.offset <= upto);
        Some(found.take(most).cloned().collect())
    }

    /// The last `n` updates of a channel, in order, and the position before the first of them.
    #[must_use]
    pub fn last(&self, channel: &Channel, n: usize) -> Vec<Arc<Shared>> {
        let inner = self.inner();
        let all = inner.held.of_channel_after(channel, Offset::BEFORE_ALL);
        let mut found: Vec<_> = all.rev().take(n).cloned().collect();
        found.reverse();
        found
    }

    /// Just before the first update that it still has.
    #[must_use]
    pub fn floor(&self) -> Offset {
        self.inner().floor
    }

    /// Updates and bytes held.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.held.len(), inner.held.bytes())
    }

    /// How the partition is doing.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner().health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::samples;

    pub(super) fn shared(offset: u64, channel: &str) -> Arc<Shared> {
        samples::shared(offset, channel, "", "1")
    }

    fn tail(updates: usize) -> Arc<Tail> {
        let tail = Tail::new(TailMax {
            bytes: updates * shared(1, "s/c").weight(),
            age: Duration::from_secs(1),
        });
        tail.reset(
            Epoch::new("e").unwrap(),
            Offset::BEFORE_ALL,
            Moment::default(),
        );
        tail
    }

    fn push(tail: &Tail, offset: u64) {
        tail.push(
            vec![shared(offset, "s/c")],
            Offset::new(offset),
            Health::default(),
            Moment::default(),
        );
    }

    #[test]
    fn a_cursor_gets_everything_once_and_in_order() {
        let tail = tail(100);
        let (mut cursor, mut seen) = (tail.cursor(), Vec::new());
        for offset in [2, 3, 7, 8, 20] {
            push(&tail, offset);
            if offset % 2 == 0 {
                continue;
            }
            while cursor.offset < Offset::new(offset) {
                let pulled = tail.pull(cursor, 1);
                assert!(!pulled.fell_off);
                seen.extend(
                    pulled
                        .updates
                        .iter()
                        .map(|shared| shared.update.position.offset.number()),
                );
                cursor = pulled.cursor;
            }
        }
        assert_eq!(seen, [2, 3, 7]);
    }

    #[test]
    fn who_falls_off_is_told_and_goes_on_from_the_floor() {
        let tail = tail(2);
        let cursor = tail.cursor();
        (1..=5).for_each(|offset| push(&tail, offset));
        let pulled = tail.pull(cursor, 10);
        assert!(pulled.fell_off);
        assert_eq!(pulled.updates.len(), 2);
        assert_eq!(tail.floor(), Offset::new(3));
        assert!(
            tail.between(&"s/c".parse().unwrap(), Offset::new(2), Offset::new(5), 9)
                .is_none()
        );
        assert_eq!(
            tail.between(&"s/c".parse().unwrap(), Offset::new(3), Offset::new(4), 9)
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn with_less_room_the_oldest_go_and_with_more_it_grows_again() {
        let tail = tail(100);
        (1..=10).for_each(|offset| push(&tail, offset));
        tail.set_room(4 * shared(1, "s/c").weight());
        assert_eq!(tail.size().0, 10, "only its partition trims it");
        tail.trim(Moment::default());
        assert_eq!((tail.size().0, tail.floor()), (4, Offset::new(6)));
        tail.set_room(usize::MAX);
        (11..=20).for_each(|offset| push(&tail, offset));
        assert_eq!((tail.size().0, tail.floor()), (14, Offset::new(6)));
    }

    #[test]
    fn another_life_is_noticed_even_at_the_same_offset() {
        let tail = tail(10);
        push(&tail, 1);
        let cursor = tail.cursor();
        tail.reset(Epoch::new("f").unwrap(), Offset::new(1), Moment::default());
        assert!(tail.pull(cursor, 10).fell_off);
    }

    #[test]
    fn a_wake_is_raised_once_until_it_is_taken() {
        let wake = Wake::default();
        wake.raise();
        wake.raise();
        assert!(wake.take());
        assert!(!wake.take());
    }
}
