//! Copies of a node's views on its own disk: what it can still show when it begins while neither log nor cache answers.
//!
//! Does: writes the views of a partition into one file, and reads them back. Owns: the files in its directory. Never knows: when
//! that is done, and what for. Keeps: a file is one whole copy: it is written beside the one before, synced, and takes its place;
//! a sum behind it tells what the disk has spoilt. A copy of another log, or of rows that were folded otherwise, is none.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::CachedView;
use crate::model::{Channel, Epoch, NameError, Offset, Row, RowId, Rows};

/// What the first line says of the file.
const FORMAT: &str = "tidegate-views-1";
/// The last line's length at most.
const TRAILER_MAX: usize = 64;

/// The views of a partition at one position of its log.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The log, as clients know it.
    pub epoch: Epoch,
    /// Up to here.
    pub applied: Offset,
    /// When this was the log's end, in milliseconds since 1970.
    pub proven_ms: i64,
    /// Whether channels that are not among them have no rows; else nothing is known of them.
    pub whole: bool,
    /// By channel.
    pub views: Vec<(Channel, CachedView)>,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file system does not let us.
    #[error("{0}: {1}")]
    Disk(PathBuf, #[source] io::Error),
    /// It would be larger than it may be.
    #[error("{0}: a copy of {1} bytes is larger than copies.bytes")]
    TooLarge(PathBuf, u64),
    /// The file is not as it was written.
    #[error("{0}: {1}")]
    Spoilt(PathBuf, String),
}

/// Where a node keeps its copies.
#[derive(Clone, Debug)]
pub struct Copies {
    dir: Arc<Path>,
    bytes_max: u64,
}

/// Where the copy of one partition is.
#[derive(Clone, Debug)]
pub struct CopyOf {
    file: PathBuf,
    bytes_max: u64,
    stream: String,
    partition: u32,
    id: Arc<str>,
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    format: &'a str,
    stream: &'a str,
    partition: u32,
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
    epoch: &'a str,
    applied: u64,
    proven_ms: i64,
    whole: bool,
}

#[derive(Serialize, Deserialize)]
struct View<'a> {
    #[serde(borrow)]
    channel: std::borrow::Cow<'a, str>,
    last_change: u64,
    rows: Vec<Line<'a>>,
    /// Rows that were deleted where an older partition may still have them.
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    graves: Vec<Grave<'a>>,
}

/// Row id, offset, time.
#[derive(Serialize, Deserialize)]
struct Grave<'a>(#[serde(borrow)] std::borrow::Cow<'a, str>, u64, i64);

/// Row id, offset, time, data.
#[derive(Serialize, Deserialize)]
struct Line<'a>(
    #[serde(borrow)] std::borrow::Cow<'a, str>,
    u64,
    i64,
    #[serde(borrow)] &'a RawValue,
);

#[derive(Serialize, Deserialize)]
struct Trailer {
    views: usize,
    crc32c: u32,
}

impl Copies {
    /// In this directory, which is made for its owner alone where there is none; `bytes_max` for each partition.
    ///
    /// # Errors
    /// [`CopyError::Disk`].
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, CopyError> {
        make(dir)?;
        Ok(Self {
            dir: dir.into(),
            bytes_max,
        })
    }

    /// Where a partition's copy is. `id`: which log its rows are of, and what they depend on beside it: a copy under another one is none.
    #[must_use]
    pub fn of(&self, stream: &str, partition: u32, id: &str) -> CopyOf {
        CopyOf {
            file: self.dir.join(stream).join(format!("{partition}.views")),
            bytes_max: self.bytes_max,
            stream: stream.to_owned(),
            partition,
            id: id.into(),
        }
    }
}

impl CopyOf {
    /// Writes a copy in the place of the one before; tells its length. Blocks.
    ///
    /// # Errors
    /// [`CopyError`]; then the one before is still there.
    pub fn write(&self, copied: &Copied) -> Result<u64, CopyError> {
        let dir = self.file.parent().unwrap_or(Path::new("."));
        make(dir)?;
        let least = copied.views.iter().map(|(_, view)| view.bytes as u64).sum();
        if least > self.bytes_max {
            return Err(CopyError::TooLarge(self.file.clone(), least));
        }
        let name = format!("{}.unfinished", std::process::id());
        let unfinished = self.file.with_extension(name);
        let written = self.write_into(&unfinished, copied).and_then(|bytes| {
            fs::rename(&unfinished, &self.file).map_err(self.disk())?;
            // The name is on the device only when its directory is.
            let synced = File::open(dir).and_then(|dir| dir.sync_all());
            synced.map_err(self.disk()).map(|()| bytes)
        });
        if written.is_err() {
            // What is left of it is overwritten next time.
            drop(fs::remove_file(&unfinished));
        }
        written
    }

    fn write_into(&self, file: &Path, copied: &Copied) -> Result<u64, CopyError> {
        let file = File::create(file).map_err(self.disk())?;
        let mut out = Summed {
            inner: io::BufWriter::new(file),
            crc: 0,
            bytes: 0,
        };
        let head = Head {
            format: FORMAT,
            stream: &self.stream,
            partition: self.partition,
            id: self.id.as_ref().into(),
            epoch: copied.epoch.as_str(),
            applied: copied.applied.number(),
            proven_ms: copied.proven_ms,
            whole: copied.whole,
        };
        self.line(&mut out, &head)?;
        for (channel, view) in &copied.views {
            let view = View {
                channel: channel.to_string().into(),
                last_change: view.last_change.number(),
                rows: view.rows.iter().filter_map(line_of).collect(),
                graves: view.rows.iter().filter_map(grave_of).collect(),
            };
            self.line(&mut out, &view)?;
            if out.bytes > self.bytes_max {
                return Err(CopyError::TooLarge(self.file.clone(), out.bytes));
            }
        }
        let trailer = Trailer {
            views: copied.views.len(),
            crc32c: out.crc,
        };
        self.line(&mut out, &trailer)?;
        let file = out.inner.into_inner().map_err(|error| error.into_error());
        let synced = file.and_then(|file| file.sync_data());
        synced.map_err(self.disk()).map(|()| out.bytes)
    }

    fn line(&self, out: &mut impl Write, value: &impl Serialize) -> Result<(), CopyError> {
        let written = serde_json::to_writer(&mut *out, value).map_err(io::Error::from);
        written
            .and_then(|()| out.write_all(b"\n"))
            .map_err(self.disk())
    }

    /// The copy; none where there is none, or one under another id. Blocks.
    ///
    /// # Errors
    /// [`CopyError`].
    pub fn read(&self) -> Result<Option<Copied>, CopyError> {
        let length = match fs::metadata(&self.file) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.disk()(error)),
        };
        if length > self.bytes_max.saturating_mul(2) {
            return Err(CopyError::TooLarge(self.file.clone(), length));
        }
        let bytes = fs::read(&self.file).map_err(self.disk())?;
        let spoilt = |what: String| CopyError::Spoilt(self.file.clone(), what);
        let (body, views) = checked(&bytes).ok_or_else(|| spoilt("it is not whole".to_owned()))?;
        let copied = self.parse(body).map_err(|what| spoilt(what.to_string()))?;
        if copied.as_ref().is_some_and(|one| one.views.len() != views) {
            return Err(spoilt("it lacks views".to_owned()));
        }
        Ok(copied)
    }

    fn parse(&self, body: &[u8]) -> Result<Option<Copied>, Unreadable> {
        // Rows' data is as its producers wrote it, line feeds included.
        let mut values = serde_json::Deserializer::from_slice(body);
        let head = Head::deserialize(&mut values)?;
        let is_ours = head.format == FORMAT
            && (head.stream, head.partition) == (&self.stream, self.partition)
            && head.id == *self.id;
        if !is_ours {
            return Ok(None);
        }
        let mut views = Vec::new();
        while values.end().is_err() {
            views.push(view_of(View::deserialize(&mut values)?)?);
        }
        Ok(Some(Copied {
            epoch: Epoch::new(head.epoch)?,
            applied: Offset::new(head.applied),
            proven_ms: head.proven_ms,
            whole: head.whole,
            views,
        }))
    }

    fn disk(&self) -> impl Fn(io::Error) -> CopyError + '_ {
        |error| CopyError::Disk(self.file.clone(), error)
    }
}

/// What can't be read in a copy whose sum is right: another version wrote it.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Name(#[from] NameError),
}

fn make(dir: &Path) -> Result<(), CopyError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| CopyError::Disk(dir.to_owned(), error))
}

/// A row whose data is no JSON would be nobody's; the decoder lets none pass.
fn line_of<'a>((id, row): (&'a RowId, &'a Row)) -> Option<Line<'a>> {
    let data = serde_json::from_slice(&row.data).ok()?;
    Some(Line(
        id.as_str().into(),
        row.offset.number(),
        row.ts_ms,
        data,
    ))
}

fn grave_of<'a>((id, row): (&'a RowId, &'a Row)) -> Option<Grave<'a>> {
    let grave = || Grave(id.as_str().into(), row.offset.number(), row.ts_ms);
    row.is_grave().then(grave)
}

fn view_of(view: View<'_>) -> Result<(Channel, CachedView), NameError> {
    let grave = |Grave(id, offset, ts_ms): Grave<'_>| {
        let row = Row {
            data: bytes::Bytes::new(),
            ts_ms,
            offset: Offset::new(offset),
        };
        Ok((RowId::new(&id)?, row))
    };
    let row = |Line(id, offset, ts_ms, data): Line<'_>| {
        let row = Row {
            data: data.get().to_owned().into(),
            ts_ms,
            offset: Offset::new(offset),
        };
        Ok((RowId::new(&id)?, row))
    };
    let rows: Rows = view
        .rows
        .into_iter()
        .map(row)
        .chain(view.graves.into_iter().map(grave))
        .collect::<Result<_, NameError>>()?;
    let last_change = Offset::new(view.last_change);
    Ok((view.channel.parse()?, CachedView::of(rows, last_change)))
}

/// What the trailer is behind, and how many views that has, if it is as it was written.
fn checked(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let whole = bytes.strip_suffix(b"\n")?;
    let from = whole.len().saturating_sub(TRAILER_MAX);
    let feed = from + whole[from..].iter().rposition(|byte| *byte == b'\n')?;
    let (body, trailer) = whole.split_at(feed + 1);
    let trailer: Trailer = serde_json::from_slice(trailer).ok()?;
    (crc32c::crc32c(body) == trailer.crc32c).then_some((body, trailer.views))
}

/// Counts and sums what is written.
struct Summed<W> {
    inner: W,
    crc: u32,
    bytes: u64,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied() -> Copied {
        let row = |data: &'static str, offset| Row {
            data: data.into(),
            ts_ms: 5,
            offset: Offset::new(offset),
        };
        let rows = Rows::from_iter([
            (RowId::new("B6\n\"1\"").unwrap(), row("{\"gate\":\n 1}", 7)),
            (RowId::default(), row("null", 9)),
            (RowId::new("gone").unwrap(), row("", 8)),
        ]);
        Copied {
            epoch: Epoch::new("e7").unwrap(),
            applied: Offset::new(12),
            proven_ms: 1_000,
            whole: true,
            views: vec![
                (
                    "s/JFK".parse().unwrap(),
                    CachedView::of(rows, Offset::new(9)),
                ),
                ("s/LAX".parse().unwrap(), CachedView::default()),
            ],
        }
    }

    fn place(dir: &Path) -> CopyOf {
        Copies::open(dir, 1 << 20).unwrap().of("s", 3, "f\"1\"")
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir.path().join("made"));
        assert!(place.read().unwrap().is_none());
        let bytes = place.write(&copied()).unwrap();
        assert_eq!(fs::metadata(&place.file).unwrap().len(), bytes);
        let (found, was) = (place.read().unwrap().unwrap(), copied());
        assert_eq!((found.epoch, found.applied), (was.epoch, was.applied));
        assert_eq!((found.proven_ms, found.whole), (was.proven_ms, was.whole));
        for ((channel, view), (other, its)) in found.views.iter().zip(&was.views) {
            assert_eq!((channel, &view.rows), (other, &its.rows));
            assert_eq!((view.bytes, view.last_change), (its.bytes, its.last_change));
        }
        assert_eq!(found.views.len(), 2);
    }

    #[test]
    fn a_copy_of_something_else_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        place.write(&copied()).unwrap();
        let folded_otherwise = CopyOf {
            id: "another".into(),
            ..place.clone()
        };
        assert!(folded_otherwise.read().unwrap().is_none());
        let moved = CopyOf {
            partition: 4,
            ..place
        };
        assert!(moved.read().unwrap().is_none());
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        place.write(&copied()).unwrap();
        let whole = fs::read(&place.file).unwrap();
        for at in 0..whole.len() {
            fs::write(&place.file, &whole[..at]).unwrap();
            assert!(matches!(place.read(), Err(CopyError::Spoilt(..))), "{at}");
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&place.file, &changed).unwrap();
            assert!(matches!(place.read(), Err(CopyError::Spoilt(..))), "{at}");
        }
    }

    #[test]
    fn what_is_too_large_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        place.write(&copied()).unwrap();
        let small = CopyOf {
            bytes_max: 100,
            ..place.clone()
        };
        assert!(matches!(
            small.write(&copied()),
            Err(CopyError::TooLarge(..))
        ));
        assert!(place.read().unwrap().is_some());
        assert_eq!(fs::read_dir(dir.path().join("s")).unwrap().count(), 1);
    }
}
