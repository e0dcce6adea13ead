//! One file of a partition's log: a head that names its first offset, then commits, one behind the other.
//!
//! Keeps: what [`Segment::extent`] covers is as durable as the policy asks, and nothing behind it is ever read. One writer;
//! readers read by position and share nothing with it but the extent, under a lock held for a few instructions.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::BufMut;

use super::{
    commit::{self, Entry, Flaw, Head},
    disk::Disk,
};
use crate::model::{Offset, Record};

/// What the name of a segment ends in.
pub(super) const SUFFIX: &str = ".log";
/// Bytes of a segment's head: mark, checksum of what follows, first offset.
const HEAD: usize = 24;
const MARK: [u8; 8] = *b"TGSEG001";
/// The index has an entry for each so many bytes.
const INDEX_EVERY: u64 = 64 << 10;

/// How far a segment goes.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Bytes of the file that count.
    pub(super) bytes: u64,
    /// The offset of the last record; the one before the first in an empty segment.
    pub(super) last: Offset,
    /// When the log took the first record and the last; none in an empty segment.
    pub(super) times_ms: Option<(i64, i64)>,
    /// Offsets of the first records of some commits, and where those begin; in order.
    index: Vec<(Offset, u64)>,
}

/// One file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) first: Offset,
    file: File,
    extent: Mutex<Extent>,
}

/// Where a segment that was looked through stops making sense.
#[derive(Debug)]
pub(super) struct Stop {
    /// From this byte on.
    pub(super) at: u64,
    /// Why.
    pub(super) flaw: Flaw,
    /// Whether a whole commit follows: then it is not the end of a write that was cut off.
    pub(super) more_follows: bool,
}

impl Segment {
    /// A new, empty segment in this directory, durable with its name.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, first: Offset) -> io::Result<Self> {
        let path = dir.join(format!("{:020}{SUFFIX}", first.number()));
        let file = disk.create(&path)?;
        disk.write(&file, 0, &head_of(first))?;
        disk.sync(&file)?;
        disk.sync_dir(dir)?;
        Ok(Self::new(path, first, file))
    }

    /// A segment that is there. Its extent is empty until [`Self::look_through`] has found what it holds.
    pub(super) fn open(path: PathBuf) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        let first = name
            .strip_suffix(SUFFIX)
            .and_then(|number| number.parse().ok())
            .map(Offset::new);
        let mut head = [0; HEAD];
        let is_one = file.read_exact_at(&mut head, 0).is_ok()
            && first.is_some_and(|first| head == head_of(first));
        Ok(first
            .filter(|_| is_one)
            .map(|first| Self::new(path, first, file)))
    }

    /// Whether a file without a proper head is one that was never written to.
    pub(super) fn holds_no_commit(path: &Path) -> bool {
        fs::read(path).is_ok_and(|bytes| !commit::any_in(&bytes))
    }

    fn new(path: PathBuf, first: Offset, file: File) -> Self {
        let extent = Mutex::new(Extent {
            bytes: HEAD as u64,
            last: Offset::new(first.number() - 1),
            times_ms: None,
            index: Vec::new(),
        });
        Self {
            path,
            first,
            file,
            extent,
        }
    }

    pub(super) fn extent(&self) -> MutexGuard<'_, Extent> {
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that it holds.
    pub(super) fn records(&self) -> u64 {
        self.extent().last.number() + 1 - self.first.number()
    }

    /// Writes behind what counts. It counts from [`Self::settle`] on.
    pub(super) fn write(&self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        let at = self.extent().bytes;
        disk.write(&self.file, at, bytes)
    }

    pub(super) fn sync(&self, disk: &dyn Disk) -> io::Result<()> {
        disk.sync(&self.file)
    }

    /// The commit that was written counts from now on.
    pub(super) fn settle(&self, head: &Head) {
        let mut extent = self.extent();
        let at = extent.bytes;
        if extent
            .index
            .last()
            .is_none_or(|&(_, indexed)| at - indexed >= INDEX_EVERY)
        {
            extent.index.push((head.first, at));
        }
        extent.bytes += head.length;
        extent.last = head.last;
        let oldest = extent.times_ms.map_or(head.at_ms, |(oldest, _)| oldest);
        extent.times_ms = Some((oldest, head.at_ms));
    }

    /// Cuts off what does not count, durably.
    pub(super) fn cut(&self, disk: &dyn Disk) -> io::Result<()> {
        let bytes = self.extent().bytes;
        disk.truncate(&self.file, bytes)?;
        disk.sync(&self.file)
    }

    /// Reads the file from its start, settles each commit and hands on its entries; says where sense ends before the file.
    pub(super) fn look_through(
        &self,
        mut each: impl FnMut(Vec<Entry>),
    ) -> io::Result<Option<Stop>> {
        let bytes = fs::read(&self.path)?;
        let mut at = HEAD;
        while at < bytes.len() {
            let expected = Offset::new(self.extent().last.number() + 1);
            let read = commit::decode(&bytes[at..]).and_then(|(head, entries)| {
                let follows = head.first == expected;
                if follows {
                    Ok((head, entries))
                } else {
                    Err(Flaw::Mark)
                }
            });
            match read {
                Ok((head, entries)) => {
                    self.settle(&head);
                    each(entries);
                    at += usize::try_from(head.length).unwrap_or(usize::MAX);
                }
                Err(flaw) => {
                    let more_follows = commit::any_in(&bytes[at + 1..]);
                    return Ok(Some(Stop {
                        at: at as u64,
                        flaw,
                        more_follows,
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Reads records after `after`, about `room` bytes of them, one commit at least.
    pub(super) fn read(
        &self,
        after: Offset,
        room: usize,
        records: &mut Vec<Record>,
    ) -> io::Result<usize> {
        let (mut at, end) = {
            let extent = self.extent();
            let next = extent
                .index
                .partition_point(|&(first, _)| first.number() <= after.number() + 1);
            let at = extent
                .index
                .get(next.saturating_sub(1))
                .map_or(HEAD as u64, |&(_, at)| at);
            (at, extent.bytes)
        };
        let mut taken = 0;
        while at < end && taken < room {
            let mut head = [0; commit::HEAD];
            self.file.read_exact_at(&mut head, at)?;
            let told = commit::head(&head).map_err(|flaw| self.corrupt(at, flaw))?;
            if told.last > after {
                let mut bytes = vec![0; usize::try_from(told.length.min(end - at)).unwrap_or(0)];
                self.file.read_exact_at(&mut bytes, at)?;
                let (_, entries) = commit::decode(&bytes).map_err(|flaw| self.corrupt(at, flaw))?;
                records.extend(
                    entries
                        .into_iter()
                        .map(|entry| entry.record)
                        .filter(|record| record.offset > after),
                );
                taken += bytes.len();
            }
            at += told.length;
        }
        Ok(taken)
    }

    fn corrupt(&self, at: u64, flaw: Flaw) -> io::Error {
        let path = self.path.display();
        io::Error::other(format!(
            "the commit at byte {at} of {path} can't be read: {flaw}"
        ))
    }
}

fn head_of(first: Offset) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let mut rest = &mut head[..];
    rest.put_slice(&MARK);
    rest.put_u64_le(u64::from(crc32c::crc32c(&first.number().to_le_bytes())));
    rest.put_u64_le(first.number());
    head
}
