//! A node's reader of one partition.
//!
//! A fetch is one request to the server, sent when it is asked for: it proves that the log is the one that was read, and reads on. Waiting
//! for more is the ears' matter, which only wake: so a fetch never waits behind it. Who fails waits before the next try, a little
//! longer each time.

use std::sync::Arc;

use super::{
    Ears, RedisServer, before_time,
    ears::Ear,
    entries::Entries,
    error::LogError,
    id_of,
    keys::Keys,
    script::{Claim, Seen, no_offset},
};
use crate::{
    cache::redis::{RedisError, RedisFault},
    clock::Clock,
    model::{Epoch, Offset},
    source::{Fetch, Lineage, ReadAt, Recent, Source, SourceError, Wanted, backoff::Backoff},
    upstream::State,
};

/// Entries of a first fetch: nothing is known of their size.
const FIRST: usize = 64;
/// Most entries of one fetch.
const MOST: usize = 10_000;
/// Bytes that an entry takes beside its own, about.
const HEAD: usize = 64;
/// Entries of one look backwards for where to begin, and bytes of all of them.
const BACK: usize = 128;
const BACK_BYTES: usize = 16 << 20;

/// A reader of one partition of a stream.
pub struct RedisSource {
    server: Arc<RedisServer>,
    keys: Keys,
    partition: u32,
    clock: Clock,
    /// The log as the caller knows it, and how far it has been read.
    known: Option<Place>,
    ear: Option<Ear>,
    backoff: Backoff,
    /// Why the last fetch failed, if it did.
    failed: Option<String>,
    recent: Arc<Recent>,
    /// How many entries the next fetch asks for, by the size of the last ones.
    count: usize,
}

/// How far a log has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    epoch: Epoch,
    at: Offset,
    /// There is an entry at it, which was read.
    is_entry: bool,
    /// How many entries the log had ever had up to there, where that is known: so that what goes behind a reader is not missed by him.
    ordinal: Option<u64>,
}

impl RedisSource {
    /// A reader; nothing is asked yet.
    #[must_use]
    pub fn new(server: Arc<RedisServer>, stream: &str, partition: u32) -> Self {
        let keys = Keys::new(&server.prefix, stream, partition);
        Self::of(server, keys, partition)
    }

    fn of(server: Arc<RedisServer>, keys: Keys, partition: u32) -> Self {
        Self {
            server,
            keys,
            partition,
            clock: Clock::start(),
            known: None,
            ear: None,
            backoff: Backoff::default(),
            failed: None,
            recent: Arc::default(),
            count: FIRST,
        }
    }

    /// The same, which tells an appender what it reads, and is woken by these ears.
    #[must_use]
    pub fn beside(self, recent: Arc<Recent>, ears: &Arc<Ears>) -> Self {
        let ear = Some(ears.open(&self.keys.log));
        Self {
            recent,
            ear,
            ..self
        }
    }

    /// What is to be proven of a log that was read up to here.
    fn claim(&self, after: Option<Offset>) -> Claim {
        let known = self.known.as_ref();
        Claim {
            epoch: known.map(|known| known.epoch.clone()),
            at: after,
            is_entry: known.is_some_and(|known| known.is_entry && Some(known.at) == after),
        }
    }

    async fn read(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, LogError> {
        let claim = self.claim(after);
        let from = match after {
            Some(at) if at > Offset::BEFORE_ALL => format!("({}", id_of(at)),
            _ => "-".to_owned(),
        };
        let count = self.count;
        let (seen, entries) = self.server.read(&self.keys, &claim, &from, count).await?;
        if claim
            .epoch
            .as_ref()
            .is_some_and(|epoch| *epoch != seen.epoch)
        {
            return Ok(self.begin_anew(&seen));
        }
        let known = self.known.clone().filter(|known| Some(known.at) == after);
        let from = known.unwrap_or_else(|| Place {
            epoch: seen.epoch.clone(),
            at: after.unwrap_or(seen.start),
            is_entry: false,
            ordinal: after.is_none().then_some(seen.gone),
        });
        let missed_nothing = from.ordinal.is_some_and(|read| seen.gone <= read);
        if from.at < seen.start && !missed_nothing {
            return Ok(self.empty(&seen, seen.start));
        }
        let full = entries.records.len() >= count;
        self.learn_size(&entries, bytes);
        self.take(&seen, entries, &from, full)
    }

    /// The next fetch asks for as many as are in so many bytes.
    fn learn_size(&mut self, entries: &Entries, bytes: usize) {
        if let Some(size) = entries.bytes.checked_div(entries.records.len()) {
            let fitting = bytes / (size + HEAD);
            // From what few tell nothing is concluded for very many.
            self.count = fitting.clamp(1, MOST).min(self.count.saturating_mul(8));
        }
    }

    fn take(
        &mut self,
        seen: &Seen,
        entries: Entries,
        from: &Place,
        full: bool,
    ) -> Result<Fetch, LogError> {
        let Entries {
            mut records,
            ids,
            misfit,
            ..
        } = entries;
        let last = records.last().map(|record| record.offset);
        if let Some(id) = misfit.as_ref().filter(|_| last.is_none()) {
            let (at, key) = (self.server.servers.at(), Some(self.keys.log.as_str()));
            return Err(RedisError::new(RedisFault::Damaged, at, key, no_offset(id)).into());
        }
        let read = last.unwrap_or(from.at);
        // More may have come before the look.
        let ended = !full && misfit.is_none() && seen.newest.is_none_or(|newest| newest <= read);
        let at = if ended { seen.head.max(read) } else { read };
        let ordinal = from.ordinal.map(|before| before + records.len() as u64);
        let place = Place {
            epoch: seen.epoch.clone(),
            at,
            is_entry: last == Some(at) || (at == from.at && from.is_entry),
            ordinal: if ended { Some(seen.added) } else { ordinal },
        };
        self.recent.read(&seen.epoch, ids, &mut records);
        let upto = place.at;
        let fetch = Fetch {
            epoch: seen.epoch.clone(),
            start: seen.start.min(from.at),
            records,
            upto,
            head: seen.head.max(upto),
            when: None,
            lineage: place.lineage(),
        };
        self.known = Some(place);
        Ok(fetch)
    }

    /// The log is another one: what the caller knows of the old one means nothing in it.
    fn begin_anew(&mut self, seen: &Seen) -> Fetch {
        tracing::warn!(
            key = self.keys.log,
            partition = self.partition,
            epoch = %seen.epoch,
            "the log is another one, or may have gone back"
        );
        self.empty(seen, seen.head)
    }

    /// An answer without records, at this place.
    fn empty(&mut self, seen: &Seen, at: Offset) -> Fetch {
        self.known = Some(Place {
            epoch: seen.epoch.clone(),
            at,
            is_entry: false,
            ordinal: None,
        });
        Fetch {
            epoch: seen.epoch.clone(),
            start: seen.start,
            records: Vec::new(),
            upto: at,
            head: seen.head,
            when: None,
            lineage: None,
        }
    }

    /// Where what is wanted begins.
    async fn find(&mut self, wanted: Wanted) -> Result<Offset, LogError> {
        let claim = self.claim(self.known.as_ref().map(|known| known.at));
        let seen = self.server.look(&self.keys, &claim).await?;
        let age_ms = i64::try_from(wanted.age.as_millis()).unwrap_or(i64::MAX);
        let since_ms = self.clock.wall_ms().saturating_sub(age_ms);
        let by_time = before_time(since_ms).min(seen.head);
        let found = match wanted.behind.filter(|behind| *behind < by_time) {
            None => by_time,
            Some(behind) => self
                .newest(behind, wanted.newest, &seen)
                .await?
                .min(by_time),
        };
        if self
            .known
            .as_ref()
            .is_none_or(|known| known.epoch == seen.epoch)
        {
            self.known = Some(Place {
                epoch: seen.epoch,
                at: found.max(seen.start),
                is_entry: false,
                ordinal: None,
            });
        }
        Ok(found.max(seen.start))
    }

    /// Behind which offset there are no more than so many entries, nor many bytes; not before `behind`.
    async fn newest(&self, behind: Offset, newest: u64, seen: &Seen) -> Result<Offset, LogError> {
        let (mut at, mut left, mut bytes) = (seen.head, newest, 0);
        while left > 0 && bytes < BACK_BYTES {
            let count = usize::try_from(left).unwrap_or(BACK).min(BACK);
            let part = self.server.read_back(&self.keys, at, behind, count).await?;
            let read = part.records.len();
            (left, bytes) = (left.saturating_sub(read as u64), bytes + part.bytes);
            match part.records.last() {
                Some(first) if read == count => at = super::before(first.offset),
                _ => return Ok(behind),
            }
        }
        Ok(at)
    }

    /// A fetch has failed. One back-off holds at a time: the breaker's where it is open, else that of this partition.
    fn fail(&mut self, error: &LogError) {
        if self.server.upstream.state() == State::Closed {
            if self.backoff.is_clear() {
                tracing::warn!(%error, key = self.keys.log, "the partition can't be read");
            }
            self.backoff.fail();
        } else {
            self.backoff = Backoff::default();
        }
        // That nobody was asked says less than why.
        let shed = matches!(error, LogError::Shed(_));
        if !shed || self.failed.is_none() {
            self.failed = Some(error.to_string());
        }
    }

    fn failed<T>(&mut self, error: &LogError) -> Result<T, SourceError> {
        self.fail(error);
        Err(SourceError::Unavailable)
    }
}

impl Place {
    /// The id of the entry that must still be there, where there is one, and how many there had been up to it.
    fn lineage(&self) -> Option<Lineage> {
        let ordinal = self.ordinal.map(|ordinal| format!(" {ordinal}"));
        let lineage = || id_of(self.at) + &ordinal.unwrap_or_default();
        self.is_entry.then(|| lineage().into())
    }

    /// The same read again.
    fn named(epoch: &Epoch, at: Offset, lineage: Option<&str>) -> Self {
        let (id, ordinal) = lineage.map_or(("", ""), |lineage| {
            lineage.split_once(' ').unwrap_or((lineage, ""))
        });
        let is_entry = *id == id_of(at);
        Self {
            epoch: epoch.clone(),
            at,
            is_entry,
            ordinal: ordinal.parse().ok().filter(|_| is_entry),
        }
    }
}

impl Source for RedisSource {
    async fn fetch(&mut self, after: Option<Offset>, bytes: usize) -> Result<Fetch, SourceError> {
        if self.backoff.waits() {
            return Err(SourceError::Unavailable);
        }
        let sent_ms = self.clock.wall_ms();
        match self.read(after, bytes).await {
            Ok(mut fetch) => {
                (self.backoff, self.failed) = (Backoff::default(), None);
                fetch.when = Some(ReadAt {
                    sent_ms,
                    answered_ms: self.clock.wall_ms(),
                });
                Ok(fetch)
            }
            Err(error) => self.failed(&error),
        }
    }

    fn resume(&mut self, epoch: &Epoch, at: Offset, lineage: Option<&str>) {
        self.known = Some(Place::named(epoch, at, lineage));
    }

    async fn begin(&mut self, wanted: Wanted) -> Result<Option<Offset>, SourceError> {
        if self.backoff.waits() {
            return Err(SourceError::Unavailable);
        }
        match self.find(wanted).await {
            Ok(at) => Ok(Some(at)),
            Err(error) => self.failed(&error),
        }
    }

    async fn look(&mut self) -> Result<(), SourceError> {
        match self.server.look(&self.keys, &Claim::default()).await {
            Ok(_) => Ok(()),
            Err(error) => self.failed(&error),
        }
    }

    fn rest(&mut self) {
        if let Some(ear) = &mut self.ear {
            ear.rest();
        }
    }

    fn failure(&self) -> Option<String> {
        self.failed.clone()
    }

    fn another(&self) -> Option<Self> {
        Some(Self::of(
            self.server.clone(),
            self.keys.clone(),
            self.partition,
        ))
    }

    async fn changed(&mut self) {
        if self.failed.is_some() {
            self.backoff.over().await;
            return self.server.upstream.passable().await;
        }
        match (&mut self.ear, &self.known) {
            (Some(ear), Some(known)) => ear.hear(known.at).await,
            // The caller's own timer goes on.
            _ => std::future::pending().await,
        }
    }
}
