//! The task that folds one partition: it asks the source and the cache what the fold wants to know.
//!
//! While a batch is on its way to the cache the next one is read, until it is full: so the slower of both sets the pace, and the
//! busier a partition is the more of its rows are folded away before they are written.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{
    fold::{Fold, PROOF_EVERY, Step, Writing},
    status::{PartitionStatus, Phase, StreamStatus},
};
use crate::{
    cache::redis::{GuardedCache, Patrolled, RedisCache, RedisError},
    clock::Clock,
    model::Offset,
    source::{ReadAt, Source},
    upstream::Backoff,
};

/// Bytes of one fetch, about.
const FETCH_BYTES: usize = 1 << 20;
/// After records came to a quiet partition, more are waited for so long, so that they are written together.
const GATHER: Duration = Duration::from_millis(20);
/// Between two writes of a partition that is behind and whose batch has room: what comes later takes the place of what is in it.
const CATCH_UP: Duration = Duration::from_millis(100);
/// After a failure that no breaker counts …
const AGAIN_MIN: Duration = Duration::from_millis(100);
/// … up to this; and the longest that a source which can't be read is let be.
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// Between two looks at whether there is something to clear away …
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// … and between two steps while there is.
const SWEEP_ON: Duration = Duration::from_millis(20);
/// Between two rounds through the channels, to see whether their keys are there …
const PATROL_EVERY: Duration = Duration::from_secs(10);
/// … and between two steps of a round.
const PATROL_ON: Duration = Duration::from_secs(1);
/// A generation beside the current one that nobody wrote to for so long was left.
const ABANDONED: Duration = Duration::from_secs(600);

/// A partition, and what its fold goes through.
pub(super) struct Task<S> {
    pub(super) number: u32,
    pub(super) fold: Fold,
    pub(super) source: S,
    pub(super) door: Door,
    pub(super) status: Arc<StreamStatus>,
    /// Why the last fetch failed, if it did.
    pub(super) unread: Option<String>,
}

/// The cache, behind its breaker.
pub(super) struct Door {
    pub(super) cache: Arc<GuardedCache>,
    pub(super) clock: Clock,
    backoff: Backoff,
    /// The servers were found fit since the last failure.
    checked: bool,
    sweep_at: Instant,
    patrol_at: Instant,
    /// The channels up to this one were looked at in this round.
    patrolled: Option<String>,
    /// When a batch was written last.
    wrote_at: Instant,
    /// What is wrong, while something is.
    wrong: Option<String>,
}

impl Door {
    pub(super) fn new(cache: Arc<GuardedCache>, clock: Clock) -> Self {
        Self {
            cache,
            clock,
            backoff: Backoff::new(AGAIN_MIN, AGAIN_MAX),
            checked: false,
            sweep_at: Instant::now(),
            patrol_at: Instant::now(),
            patrolled: None,
            wrote_at: Instant::now(),
            wrong: None,
        }
    }

    /// Takes a result; after a failure waits, a little longer each time. None: it failed.
    async fn settle<T>(&mut self, result: Result<T, RedisError>, number: u32) -> Option<T> {
        match result {
            Ok(done) => {
                if self.wrong.take().is_some() {
                    tracing::info!(partition = number, "the cache takes this partition again");
                }
                self.backoff.reset();
                Some(done)
            }
            Err(error) => {
                if self.wrong.replace(error.to_string()).is_none() {
                    tracing::warn!(%error, partition = number, "the cache does not take this partition");
                }
                self.checked = false;
                // Without random numbers tasks that failed together come back together.
                sleep(self.backoff.pause(getrandom::u32().unwrap_or(0))).await;
                None
            }
        }
    }
}

impl<S: Source> Task<S> {
    /// Folds until it is dropped.
    pub(super) async fn run(mut self) {
        loop {
            self.turn().await;
            self.tell();
        }
    }

    async fn turn(&mut self) {
        match self.fold.step() {
            Step::Look => self.look().await,
            Step::Flip => self.flip().await,
            Step::Fold => self.fold().await,
        }
    }

    async fn flip(&mut self) {
        let Some((base, built)) = self.fold.to_flip() else {
            return;
        };
        let (number, base, built) = (self.number, base.as_ref(), &built);
        let asking = (self.door.cache).ask_patiently(|cache| cache.flip(number, base, built));
        let flipped = asking.await;
        // One that failed is asked for again: it may have been done.
        if let Some(flipped) = self.door.settle(flipped, number).await {
            self.fold.flipped(&flipped, self.door.clock.wall_ms());
            self.door.sweep_at = Instant::now();
        }
    }

    async fn look(&mut self) {
        let (door, number) = (&mut self.door, self.number);
        if !door.checked {
            let checked = door.cache.ask_patiently(RedisCache::check).await;
            let Some(checked) = door.settle(checked, number).await else {
                return;
            };
            for unseen in checked.unseen {
                tracing::debug!(unseen, "the cache's servers can't be looked at");
            }
            door.checked = true;
        }
        let header = door.cache.ask_patiently(|cache| cache.header(number)).await;
        if let Some(header) = door.settle(header, number).await {
            self.fold.looked(header, door.clock.wall_ms());
        }
    }

    /// One step of folding.
    async fn fold(&mut self) {
        if Instant::now() >= self.door.sweep_at {
            self.sweep().await;
        }
        if Instant::now() >= self.door.patrol_at {
            self.patrol().await;
        }
        let now_ms = self.door.clock.wall_ms();
        let gathers = self.fold.is_behind()
            && self.fold.has_room()
            && self.door.wrote_at.elapsed() < CATCH_UP;
        if !gathers && let Some(writing) = self.fold.hand_out(now_ms) {
            return self.write(writing).await;
        }
        let read = read(&mut self.fold, &mut self.source, self.door.clock).await;
        self.unread = (!read).then(|| {
            let why = self.source.failure();
            why.unwrap_or_else(|| "the log can't be read".to_owned())
        });
        if self.unread.is_some() {
            // Which wakes when it is time to try again, and sometimes not at all.
            drop(timeout(AGAIN_MAX, self.source.changed()).await);
            return;
        }
        // Anything worth writing is written before anybody waits.
        let idle = self.fold.step() == Step::Fold
            && !self.fold.is_behind()
            && !self.fold.is_worth_writing();
        if idle {
            self.tell();
            let changed = timeout(PROOF_EVERY, self.source.changed()).await;
            if changed.is_ok() {
                sleep(GATHER).await;
            }
        }
    }

    /// Writes a batch, and reads on meanwhile.
    async fn write(&mut self, writing: Writing) {
        let (fold, source, door) = (&mut self.fold, &mut self.source, &self.door);
        let written = AtomicBool::new(false);
        let write = async {
            let Writing {
                expected,
                header,
                batch,
            } = &writing;
            let (number, expected) = (self.number, expected.as_ref());
            let asking =
                (door.cache).ask_patiently(|cache| cache.write(number, expected, header, batch));
            let wrote = asking.await;
            written.store(true, Ordering::Relaxed);
            wrote
        };
        let clock = door.clock;
        let read_on = async {
            while !written.load(Ordering::Relaxed) && fold.has_room() && fold.is_behind() {
                if !read(fold, source, clock).await {
                    break;
                }
            }
        };
        let (wrote, ()) = futures_util::future::join(pin!(write), pin!(read_on)).await;
        self.door.wrote_at = Instant::now();
        match self.door.settle(wrote, self.number).await {
            Some(wrote) => self.fold.wrote(wrote),
            None => self.fold.failed(),
        }
    }

    /// One step of clearing away what nobody needs; what fails is tried again later.
    async fn sweep(&mut self) {
        let door = &mut self.door;
        let number = self.number;
        let asking = (door.cache).ask_patiently(|cache| cache.sweep(number, ABANDONED));
        let swept = asking.await;
        let more = swept.is_ok_and(|swept| swept.more);
        door.sweep_at = Instant::now() + if more { SWEEP_ON } else { SWEEP_EVERY };
    }

    /// One step of a round through the channels; what fails is tried again later.
    async fn patrol(&mut self) {
        let (door, number) = (&mut self.door, self.number);
        door.patrol_at = Instant::now() + PATROL_EVERY;
        let Some(seen) = self.fold.seen().filter(|_| self.fold.building().is_none()) else {
            return;
        };
        let after = door.patrolled.take();
        let (generation, after) = (&seen.generation, after.as_deref());
        let asking = (door.cache).ask_patiently(|cache| cache.patrol(number, generation, after));
        match asking.await {
            Ok(Patrolled::Whole(Some(last))) => {
                door.patrolled = Some(last);
                door.patrol_at = Instant::now() + PATROL_ON;
            }
            Ok(Patrolled::Lost(lost)) => {
                tracing::error!(
                    partition = number,
                    ?lost,
                    "keys of the cache are gone: the partition is folded anew"
                );
                self.fold.missed();
            }
            Ok(Patrolled::Whole(None) | Patrolled::Elsewhere) | Err(_) => {}
        }
    }

    /// Tells who looks how it is doing.
    fn tell(&mut self) {
        let tally = self.fold.take_tally();
        let counts = &self.status.counts;
        for (counter, count) in [
            (&counts.records, tally.records),
            (&counts.poisoned, tally.poisoned),
            (&counts.misplaced, tally.misplaced),
            (&counts.untimed, tally.untimed),
            (&counts.rows, tally.rows),
            (&counts.batches, tally.batches),
            (&counts.conflicts, tally.conflicts),
            (&counts.lost, tally.lost),
            (&counts.refolds, tally.refolds),
            (&counts.flips, tally.flips),
        ] {
            counter.add(count);
        }
        let (seen, why) = (self.fold.seen(), self.fold.building());
        let phase = match self.fold.step() {
            Step::Look => Phase::Looking,
            Step::Flip => Phase::Flipping,
            Step::Fold if why.is_some() => Phase::Building,
            Step::Fold => Phase::Folding,
        };
        let applied = seen.and_then(|seen| Offset::try_from(&seen.applied).ok());
        let status = PartitionStatus {
            phase,
            why,
            epoch: seen.map(|seen| seen.epoch.to_string()),
            generation: seen.map(|seen| seen.generation.to_string()),
            applied: applied.unwrap_or_default().number(),
            head: self.fold.head().number(),
            proven_ms: seen.map(|seen| seen.proven_ms),
            complete: seen.map(|seen| seen.complete),
            wrong: self.wrong(),
        };
        self.status.note(self.number, status);
    }
}

impl<S> Task<S> {
    /// What is wrong, if something is.
    fn wrong(&self) -> Option<String> {
        let of_cache = self.door.wrong.clone();
        of_cache.or_else(|| self.unread.clone())
    }
}

/// One fetch; whether it succeeded.
async fn read<S: Source>(fold: &mut Fold, source: &mut S, clock: Clock) -> bool {
    if let Some(header) = fold.resume() {
        let at = Offset::try_from(&header.applied).unwrap_or_default();
        let lineage = Some(header.lineage.as_str()).filter(|word| !word.is_empty());
        source.resume(&header.epoch, at, lineage);
    }
    let sent_ms = clock.wall_ms();
    let Ok(fetch) = source.fetch(fold.after(), FETCH_BYTES).await else {
        return false;
    };
    let when = fetch.when.unwrap_or_else(|| ReadAt {
        sent_ms,
        answered_ms: clock.wall_ms(),
    });
    fold.took(fetch, when);
    true
}
