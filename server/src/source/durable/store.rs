//! The files of one partition: its segments and its fold.
//!
//! Does: writes, syncs and rolls over, heals after a failure, lets go of whole segments once retention wants none of their
//! records, reads what memory no longer has. The writer's thread alone changes anything; readers only look.
//! Keeps: a write never follows one that failed before the failed one is cut off, durably; no segment goes before a fold
//! that holds its rows is durable.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    commit::Head,
    disk::{Disk, replace},
    fold::{self, Fold},
    segment::Segment,
};
use crate::{
    model::{Offset, Record},
    source::embedded::Retention,
};

/// A partition's log has about so many segments, so that what retention keeps too long is a small part.
const SEGMENTS: usize = 8;
/// Bounds of a segment's bytes.
const SEGMENT_BYTES: std::ops::RangeInclusive<usize> = 4 << 10..=64 << 20;

/// A stream's directory, made with its first record.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) dir: PathBuf,
    /// The file that says what the stream is: name and content.
    pub(super) about: (&'static str, String),
    pub(super) partitions: u32,
    pub(super) born: AtomicBool,
}

impl Home {
    /// Where a partition's files are.
    pub(super) fn of(&self, partition: u32) -> PathBuf {
        self.dir.join(partition.to_string())
    }

    /// Makes the directory, durably, unless it is there.
    pub(super) fn establish(&self, disk: &dyn Disk) -> io::Result<()> {
        if self.born.load(Ordering::Acquire) {
            return Ok(());
        }
        for partition in 0..self.partitions {
            disk.create_dir(&self.of(partition))?;
        }
        disk.sync_dir(&self.dir)?;
        // Last, since a directory without this file is one that was never finished.
        replace(disk, &self.dir.join(self.about.0), self.about.1.as_bytes())?;
        self.dir
            .parent()
            .map_or(Ok(()), |streams| disk.sync_dir(streams))?;
        self.born.store(true, Ordering::Release);
        Ok(())
    }
}

/// The files of one partition.
#[derive(Debug)]
pub(in crate::source) struct Store {
    home: Arc<Home>,
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    keep: Retention,
    /// Bytes of the newest records that stay in memory.
    pub(in crate::source) hot_bytes: usize,
    /// In the order of their offsets; the last one is written to.
    segments: Mutex<Vec<Arc<Segment>>>,
    pen: Mutex<Pen>,
}

/// Where a partition's files are, and what is kept of them.
pub(super) struct Place {
    pub(super) home: Arc<Home>,
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) keep: Retention,
    pub(super) hot_bytes: usize,
}

/// What the writer alone knows.
#[derive(Debug, Default)]
struct Pen {
    /// A write or sync failed: what it left must be cut off first.
    damaged: bool,
    /// Something was written since the last sync.
    dirty: bool,
    /// The fold on disk: up to where, and how large it is.
    fold: (Offset, u64),
    /// Bytes written since that fold.
    since_fold: u64,
}

impl Store {
    /// A partition's files, as far as they were found; `fold` is up to where the fold on disk goes, and its bytes.
    pub(super) fn new(files: Place, segments: Vec<Arc<Segment>>, fold: (Offset, u64)) -> Self {
        let Place {
            home,
            dir,
            disk,
            keep,
            hot_bytes,
        } = files;
        let since_fold = segments.iter().map(|segment| segment.extent().bytes).sum();
        let pen = Mutex::new(Pen {
            fold,
            since_fold,
            ..Pen::default()
        });
        Self {
            home,
            dir,
            disk,
            keep,
            hot_bytes,
            segments: Mutex::new(segments),
            pen,
        }
    }

    /// Where the files are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn segments(&self) -> MutexGuard<'_, Vec<Arc<Segment>>> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Just before the earliest record, if there are segments.
    pub(in crate::source) fn start(&self) -> Option<Offset> {
        let segments = self.segments();
        segments
            .first()
            .map(|segment| Offset::new(segment.first.number() - 1))
    }

    /// Records and bytes on disk, without the fold's.
    pub(in crate::source) fn size(&self) -> (usize, usize) {
        let segments = self.segments();
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let records = segments.iter().map(|segment| segment.records()).sum();
        let bytes = segments.iter().map(|segment| segment.extent().bytes).sum();
        (count(records), count(bytes))
    }

    /// Reads what follows `after`, about `bytes` of it: for readers behind what memory holds.
    pub(in crate::source) fn read(&self, after: Offset, bytes: usize) -> io::Result<Vec<Record>> {
        let segments: Vec<_> = {
            let all = self.segments();
            let from = all.partition_point(|segment| segment.extent().last <= after);
            all[from..].to_vec()
        };
        let (mut room, mut records) = (bytes, Vec::new());
        for segment in segments {
            room = room.saturating_sub(segment.read(after, room, &mut records)?);
            if room == 0 {
                break;
            }
        }
        Ok(records)
    }

    /// Writes a commit behind the others; it counts once it is [settled](Self::settle). Says whether a new segment began.
    pub(super) fn write(&self, bytes: &[u8], head: &Head) -> io::Result<bool> {
        let mut pen = self.pen();
        self.heal(&mut pen)?;
        let active = self.segments().last().cloned();
        let (active, rolled) = match active {
            Some(active) if !self.is_full(&active, head.at_ms) => (active, false),
            _ => (self.roll(&mut pen, head.first)?, true),
        };
        (pen.damaged, pen.dirty) = (true, true);
        active.write(&*self.disk, bytes)?;
        pen.damaged = false;
        pen.since_fold += bytes.len() as u64;
        Ok(rolled)
    }

    /// Everything that was written is on the device when this returns. Says whether anything had to be synced.
    pub(super) fn sync(&self) -> io::Result<bool> {
        let mut pen = self.pen();
        self.sync_with(&mut pen)
    }

    fn sync_with(&self, pen: &mut Pen) -> io::Result<bool> {
        self.heal(pen)?;
        let active = self.segments().last().cloned();
        let Some(active) = active.filter(|_| pen.dirty) else {
            return Ok(false);
        };
        pen.damaged = true;
        active.sync(&*self.disk)?;
        (pen.damaged, pen.dirty) = (false, false);
        Ok(true)
    }

    /// The commit that was written counts from now on, and is read.
    pub(super) fn settle(&self, head: &Head) {
        if let Some(active) = self.segments().last() {
            active.settle(head);
        }
    }

    /// Whether all that was acknowledged is where the policy wants it.
    pub(super) fn is_sound(&self) -> bool {
        let pen = self.pen();
        !pen.damaged && !pen.dirty
    }

    /// Cuts off what a failed write or sync left. Nobody may have read it, and the offsets will be given again: so nothing
    /// else is written before this has succeeded.
    fn heal(&self, pen: &mut Pen) -> io::Result<()> {
        if pen.damaged {
            if let Some(active) = self.segments().last() {
                active.cut(&*self.disk)?;
            }
            (pen.damaged, pen.dirty) = (false, false);
        }
        Ok(())
    }

    fn is_full(&self, segment: &Segment, now_ms: i64) -> bool {
        let (extent, part) = (segment.extent().clone(), SEGMENTS as u64);
        let bytes =
            (self.keep.bytes / SEGMENTS).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end());
        let records = self
            .keep
            .records
            .map_or(u64::MAX, |records| (records as u64 / part).max(1));
        let age = i64::try_from(self.keep.age.as_millis()).unwrap_or(i64::MAX) / SEGMENTS as i64;
        let is_old = extent
            .times_ms
            .is_some_and(|(oldest, _)| now_ms.saturating_sub(oldest) > age);
        extent.bytes >= bytes as u64 || segment.records() >= records || is_old
    }

    /// Begins a segment, with the one before it durable whatever the policy: so only the last one can be torn.
    fn roll(&self, pen: &mut Pen, first: Offset) -> io::Result<Arc<Segment>> {
        self.sync_with(pen)?;
        self.home.establish(&*self.disk)?;
        let segment = Arc::new(Segment::create(&*self.disk, &self.dir, first)?);
        self.segments().push(segment.clone());
        Ok(segment)
    }

    /// Lets go of the segments of which retention wants no record; `fold` gives the fold of everything that is settled.
    pub(super) fn retire(&self, now_ms: i64, fold: impl FnOnce() -> Fold) -> io::Result<()> {
        let mut pen = self.pen();
        self.heal(&mut pen)?;
        self.close_expired(&mut pen, now_ms)?;
        let gone = self.expired(now_ms);
        let Some(last) = gone.last().map(|segment| segment.extent().last) else {
            return Ok(());
        };
        if pen.fold.0 < last {
            // A fold larger than what was logged since the last one would cost more than the log itself.
            if pen.since_fold < pen.fold.1 {
                return Ok(());
            }
            let fold = fold();
            let bytes = fold.encode();
            replace(&*self.disk, &self.dir.join(fold::NAME), &bytes)?;
            (pen.fold, pen.since_fold) = ((fold.upto, bytes.len() as u64), 0);
        }
        for segment in gone {
            self.segments().remove(0);
            self.disk.remove(&segment.path)?;
        }
        Ok(())
    }

    /// A quiet stream's last segment ends by age too: an empty one takes its place.
    fn close_expired(&self, pen: &mut Pen, now_ms: i64) -> io::Result<()> {
        let active = self.segments().last().cloned();
        if let Some(active) = active.filter(|active| self.is_too_old(active, now_ms)) {
            let next = active.extent().last.number() + 1;
            self.roll(pen, Offset::new(next))?;
        }
        Ok(())
    }

    fn is_too_old(&self, segment: &Segment, now_ms: i64) -> bool {
        let oldest =
            now_ms.saturating_sub(i64::try_from(self.keep.age.as_millis()).unwrap_or(i64::MAX));
        segment
            .extent()
            .times_ms
            .is_some_and(|(_, newest)| newest < oldest)
    }

    /// The oldest segments all of whose records lie beyond what retention keeps. Never the last one.
    fn expired(&self, now_ms: i64) -> Vec<Arc<Segment>> {
        let segments = self.segments().clone();
        let total =
            |size: fn(&Segment) -> u64| segments.iter().map(|segment| size(segment)).sum::<u64>();
        let (mut bytes, mut records) = (
            total(|segment| segment.extent().bytes),
            total(Segment::records),
        );
        let (bytes_kept, records_kept) = (
            self.keep.bytes as u64,
            self.keep.records.map_or(u64::MAX, |records| records as u64),
        );
        let older = segments.len().saturating_sub(1);
        let mut is_expired = |segment: &Segment| {
            bytes -= segment.extent().bytes;
            records -= segment.records();
            bytes >= bytes_kept || records >= records_kept || self.is_too_old(segment, now_ms)
        };
        segments[..older]
            .iter()
            .take_while(|segment| is_expired(segment))
            .cloned()
            .collect()
    }
}
