//! From files to a state: what a partition knew when its last commit was acknowledged.
//!
//! The fold first, if there is one, then every segment from the first to the last, each commit checked. Only the end of the
//! last segment may make no sense: it is a write that was cut off, never acknowledged and never read, and is cut off for good.
//! Anything else that makes no sense is an error that names its place; nothing is passed over, and nothing is changed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    DataError,
    commit::Entry,
    disk::{Disk, UNFINISHED},
    fold::{self, Fold},
    segment::{SUFFIX, Segment},
    store::{Place, Store},
};
use crate::{
    model::{Change, Channel, Mode, NameError, Offset, RowId},
    source::embedded::State,
};

/// Reads a partition's files.
pub(super) fn recover(place: Place, stream: &str, mode: Mode) -> Result<(Store, State), DataError> {
    let disk = place.disk.clone();
    let (fold, fold_bytes) = read_fold(&place.dir)?;
    let from = fold.upto;
    let mut recovery = Recovery {
        stream,
        mode,
        from,
        hot_bytes: place.hot_bytes,
        state: State::folded(fold.cache, from),
        flaw: None,
    };
    for (at_ms, id, offset) in fold.ids {
        recovery.state.ids.insert(id, offset, at_ms);
    }
    let segments = segments(&*disk, &place.dir)?;
    let mut next = segments
        .first()
        .map_or(Offset::new(1), |segment| segment.first);
    if next.number() > from.number() + 1 || (segments.is_empty() && from > Offset::BEFORE_ALL) {
        return Err(DataError::missing(
            &place.dir,
            Offset::new(from.number() + 1),
        ));
    }
    recovery.state.begin_at(Offset::new(next.number() - 1));
    let last = segments.len().saturating_sub(1);
    for (number, segment) in segments.iter().enumerate() {
        if segment.first != next {
            return Err(DataError::missing(&place.dir, next));
        }
        recovery.take(segment, &*disk, number == last)?;
        next = Offset::new(segment.extent().last.number() + 1);
    }
    let state = recovery.state;
    Ok((Store::new(place, segments, (from, fold_bytes)), state))
}

/// Cuts the last segment of a partition where it stops making sense: for a directory whose policy promised no more.
pub(super) fn cut_last(disk: &dyn Disk, dir: &Path) -> Result<(), DataError> {
    let Some(last) = segments(disk, dir)?.pop() else {
        return Ok(());
    };
    let failed = |error| DataError::io("cut", &last.path, error);
    last.look_through(|_| {}).map_err(failed)?;
    last.cut(disk).map_err(failed)
}

struct Recovery<'a> {
    stream: &'a str,
    mode: Mode,
    /// The fold holds everything up to here.
    from: Offset,
    hot_bytes: usize,
    state: State,
    /// What the log itself would never have written.
    flaw: Option<NameError>,
}

impl Recovery<'_> {
    fn take(&mut self, segment: &Segment, disk: &dyn Disk, is_last: bool) -> Result<(), DataError> {
        let failed = |error| DataError::io("read", &segment.path, error);
        let stop = segment
            .look_through(|entries| self.fold(entries))
            .map_err(failed)?;
        if let Some(flaw) = self.flaw.take() {
            return Err(failed(io::Error::other(flaw)));
        }
        let Some(stop) = stop else {
            return Ok(());
        };
        if !is_last || stop.more_follows {
            return Err(DataError::Corrupt {
                path: segment.path.clone(),
                at: stop.at,
                flaw: stop.flaw.to_string(),
            });
        }
        tracing::warn!(path = %segment.path.display(), at = stop.at, flaw = %stop.flaw, "a write that was cut off goes; nothing of it was acknowledged");
        segment
            .cut(disk)
            .map_err(|error| DataError::io("cut", &segment.path, error))
    }

    fn fold(&mut self, entries: Vec<Entry>) {
        for Entry { record, id } in entries {
            let offset = record.offset;
            if offset > self.from {
                match change_of(self.stream, &record) {
                    Ok(change) if self.mode == Mode::View => {
                        self.state.cache.apply(&change, offset);
                    }
                    Ok(change) => self.state.cache.touch(&change.channel, offset),
                    Err(flaw) => self.flaw = Some(flaw),
                }
                if let Some(id) = id {
                    self.state.ids.insert(id, offset, record.append_time_ms);
                }
                self.state.head = offset;
            }
            self.state.push(record);
            self.state.keep_newest(self.hot_bytes);
        }
    }
}

/// What a record said when it was published: its key is `["channel","row"]`.
fn change_of(stream: &str, record: &crate::model::Record) -> Result<Change, NameError> {
    let (channel, row): (String, String) =
        serde_json::from_slice(&record.key).map_err(|_| NameError::Channel)?;
    Ok(Change {
        channel: Channel::new(stream, &channel)?,
        row: RowId::new(&row)?,
        data: record.value.clone(),
        ts_ms: record.event_time_ms.unwrap_or(record.append_time_ms),
    })
}

fn read_fold(dir: &Path) -> Result<(Fold, u64), DataError> {
    let path = dir.join(fold::NAME);
    match fs::read(&path) {
        Ok(bytes) => {
            let flaw = "its checksum is wrong".to_owned();
            let fold = Fold::decode(&bytes).ok_or(DataError::Corrupt { path, at: 0, flaw })?;
            Ok((fold, bytes.len() as u64))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Fold::default(), 0)),
        Err(error) => Err(DataError::io("read", &path, error)),
    }
}

/// The segments of a directory in order, without what an unfinished write left behind.
fn segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<Arc<Segment>>, DataError> {
    let mut paths = paths_in(dir)?;
    let remove = |path: &PathBuf| {
        disk.remove(path)
            .map_err(|error| DataError::io("remove", path, error))
    };
    for unfinished in paths.iter().filter(|path| has_suffix(path, UNFINISHED)) {
        remove(unfinished)?;
    }
    paths.retain(|path| has_suffix(path, SUFFIX));
    paths.sort();
    let mut segments = Vec::new();
    let last = paths.len().saturating_sub(1);
    for (number, path) in paths.into_iter().enumerate() {
        match Segment::open(path.clone()).map_err(|error| DataError::io("open", &path, error))? {
            Some(segment) => segments.push(Arc::new(segment)),
            // Its head is durable before anything is written behind it: so nothing ever was.
            None if number == last && Segment::holds_no_commit(&path) => remove(&path)?,
            None => {
                return Err(DataError::Corrupt {
                    path,
                    at: 0,
                    flaw: "its head is not one".into(),
                });
            }
        }
    }
    Ok(segments)
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().ends_with(suffix.as_bytes()))
}

/// What is in a directory; nothing where there is none.
pub(super) fn paths_in(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::io("read", dir, error);
    match fs::read_dir(dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}
