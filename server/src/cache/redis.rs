//! The fold of a stream's partitions in Redis: headers, manifests and rows, which many nodes read and one materializer writes.
//!
//! Does: writes a batch by compare-and-set, reads views and manifests by pages that each come with the header of their moment,
//! makes a new generation the current one in one step, and clears away those that nobody needs. Owns: the connection and the
//! keys under its prefix (`docs/reference/cache-layout.md`). Never knows: where changes come from, who reads the rows, what
//! time it is.
//! Keeps: the header is what its writer saw last, or nothing is written; a channel that the manifest names and whose keys are
//! gone is lost, never empty. Every call ends within the options' time-out; what it did if it did not answer, the header says.

mod batch;
mod error;
mod guarded;
mod header;
mod keys;
mod link;
mod patrol;
mod script;
mod servers;
mod sweep;
mod verify;
mod walk;

use bytes::Bytes;

pub(crate) use self::link::Link;
pub use self::{
    batch::{BATCH_BYTES_MAX, BATCH_ROWS_MAX, Batch, CachedRow},
    error::{RedisError, RedisFault},
    guarded::{AskError, GuardedCache},
    header::{DecimalOffset, Generation, Header, ValueError},
    keys::{LAYOUT, PREFIX},
    link::{CALLS_MAX, RedisOptions, TIMEOUT, Topology},
    patrol::{PATROL_CHANNELS, Patrolled},
    servers::Checked,
    sweep::{Home, SWEEP_CHANNELS, Swept},
    verify::{PROBLEMS_MAX, Report},
    walk::{Turned, Walk},
};
use self::{
    keys::{Keys, behind_channel, behind_row, field},
    script::{Answer, Scripts},
};
use crate::model::{Channel, RowId};

/// Most rows of a page.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Most bytes of a page's ids and rows; one row may be more.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Most channels of a page of the manifest.
pub const PAGE_CHANNELS_MAX: usize = 5_000;

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// All of it is written.
    Written,
    /// The header is not the expected one, but this, or none. Nothing is written: go on from it.
    Conflict(Option<Header>),
    /// Keys are gone. Nothing is written: fold anew.
    Lost(Lost),
}

/// What is gone of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The keys of a channel that the manifest names, by its name within the stream.
    Channel(String),
    /// The manifest, or a part of it.
    Manifest,
}

/// How a flip ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flipped {
    /// It is the current generation, and all others are dropped.
    Flipped,
    /// The current header is not the expected one, but this, or none; or the generation's own header is another. Nothing is done.
    Conflict(Option<Header>),
}

/// What a page's call found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page<T> {
    /// A page.
    Page(T),
    /// The generation is not the current one; that has this header, if there is one at all.
    Elsewhere(Option<Header>),
    /// Keys of the channel or of the manifest are gone: the channel must not be served from here.
    Lost(Header),
}

/// Rows of a range of ids, and the header of the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowsPage {
    /// The header.
    pub header: Header,
    /// The offset of the channel's newest change; none when nothing is known of the channel.
    pub last_change: Option<DecimalOffset>,
    /// Rows in the order of their ids.
    pub rows: Vec<(RowId, CachedRow)>,
    /// Whether there are rows behind the last one.
    pub more: bool,
}

/// Channels with their last changes, and the header of the same moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPage {
    /// The header. What it says of `since` holds for the last changes.
    pub header: Header,
    /// Names within the stream in order, each with the offset of the channel's newest change.
    pub channels: Vec<(String, DecimalOffset)>,
    /// Whether there are channels behind the last one.
    pub more: bool,
}

/// The cache of one stream.
pub struct RedisCache {
    link: Link,
    scripts: Scripts,
    prefix: String,
    stream: String,
}

impl RedisCache {
    /// The cache of a stream. Connects when it is first asked for something.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn new(options: &RedisOptions, stream: &str) -> Result<Self, RedisError> {
        Ok(Self {
            link: Link::new(options)?,
            scripts: Scripts::new(),
            prefix: options.prefix.clone(),
            stream: stream.to_owned(),
        })
    }

    fn keys(&self, partition: u32) -> Keys {
        Keys::new(&self.prefix, &self.stream, partition)
    }

    /// Writes a batch and the header after it into the header's generation, if that still has the header `expected`; none
    /// begins the generation, beside the current one. The header's name is new for each fold ([`Generation::random`]).
    ///
    /// # Errors
    /// When Redis does not do it. After [`RedisFault::Unavailable`] it may have been written: read the header.
    pub async fn write(
        &self,
        partition: u32,
        expected: Option<&Header>,
        header: &Header,
        batch: &Batch,
    ) -> Result<Wrote, RedisError> {
        let keys = self.keys(partition);
        if let Some(why) = batch.misfit(expected, header) {
            return Err(self.refused(&keys, why));
        }
        let generation = &header.generation;
        let mut named = vec![keys.home().to_owned(), keys.manifest(generation)];
        let mut parts: Vec<Bytes> = vec![
            generation.to_string().into(),
            expected.map(Header::to_text).unwrap_or_default().into(),
            header.to_text().into(),
        ];
        for (name, changes) in batch.channels() {
            named.push(keys.rows(generation, name));
            named.push(keys.ids(generation, name));
            let deletes = changes.rows.values().filter(|row| row.is_none()).count();
            parts.push(name.clone().into());
            parts.push(changes.last_change.to_string().into());
            parts.push((changes.rows.len() - deletes).to_string().into());
            parts.push(deletes.to_string().into());
            for (id, row) in &changes.rows {
                if let Some(row) = row {
                    parts.push(field(id.as_str()).into());
                    parts.push(row.to_bytes().into());
                }
            }
            let gone = changes.rows.iter().filter(|(_, row)| row.is_none());
            parts.extend(gone.map(|(id, _)| Bytes::from(field(id.as_str()))));
        }
        let arguments: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
        let mut answer = self
            .scripts
            .write
            .run(&self.link, &named, &arguments)
            .await?;
        match answer.word.as_str() {
            "written" => Ok(Wrote::Written),
            "conflict" => Ok(Wrote::Conflict(answer.header()?)),
            "lost" => Ok(Wrote::Lost(match answer.text()? {
                name if name.is_empty() => Lost::Manifest,
                name => Lost::Channel(name),
            })),
            _ => Err(answer.unknown()),
        }
    }

    /// Makes the generation of `built` the current one, if the current one's header is still `expected` (none: there is no
    /// current one) and its own still `built`. All other generations are dropped; [`RedisCache::sweep`] deletes their keys.
    ///
    /// # Errors
    /// When Redis does not do it.
    pub async fn flip(
        &self,
        partition: u32,
        expected: Option<&Header>,
        built: &Header,
    ) -> Result<Flipped, RedisError> {
        let keys = [self.keys(partition).home().to_owned()];
        let (expected, text) = (
            expected.map(Header::to_text).unwrap_or_default(),
            built.to_text(),
        );
        let arguments = [
            expected.as_bytes(),
            built.generation.as_str().as_bytes(),
            text.as_bytes(),
        ];
        let mut answer = self.scripts.flip.run(&self.link, &keys, &arguments).await?;
        match answer.word.as_str() {
            "flipped" => Ok(Flipped::Flipped),
            "conflict" => Ok(Flipped::Conflict(answer.header()?)),
            _ => Err(answer.unknown()),
        }
    }

    /// The rows of a channel behind a row (none: from the first on), as long as the generation is the current one. A page has
    /// [`PAGE_ROWS_MAX`] rows and about [`PAGE_BYTES_MAX`] bytes at most; [`Walk`] says what several of them come to.
    ///
    /// # Errors
    /// When Redis does not answer, or with something else than rows.
    pub async fn page(
        &self,
        partition: u32,
        generation: &Generation,
        channel: &Channel,
        after: Option<&RowId>,
    ) -> Result<Page<RowsPage>, RedisError> {
        let (keys, name) = (self.keys(partition), channel.name());
        let named = [
            keys.home().to_owned(),
            keys.manifest(generation),
            keys.rows(generation, name),
            keys.ids(generation, name),
        ];
        let (rows, bytes) = (PAGE_ROWS_MAX.to_string(), PAGE_BYTES_MAX.to_string());
        let from = behind_row(after.map(RowId::as_str));
        let arguments = [generation.as_str(), name, &from, &rows, &bytes].map(str::as_bytes);
        let mut answer = self
            .scripts
            .page
            .run(&self.link, &named, &arguments)
            .await?;
        match answer.word.as_str() {
            "rows" => Ok(Page::Page(rows_page(&mut answer)?)),
            "elsewhere" => Ok(Page::Elsewhere(answer.header()?)),
            "lost" => Ok(Page::Lost(answer.some_header()?)),
            _ => Err(answer.unknown()),
        }
    }

    /// The channels behind a name (none: from the first on) with their last changes, as long as the generation is the
    /// current one; [`PAGE_CHANNELS_MAX`] at most.
    ///
    /// # Errors
    /// When Redis does not answer, or with something else than a manifest.
    pub async fn manifest(
        &self,
        partition: u32,
        generation: &Generation,
        after: Option<&str>,
    ) -> Result<Page<ManifestPage>, RedisError> {
        self.manifest_of(partition, generation, after, PAGE_CHANNELS_MAX)
            .await
    }

    async fn manifest_of(
        &self,
        partition: u32,
        generation: &Generation,
        after: Option<&str>,
        most: usize,
    ) -> Result<Page<ManifestPage>, RedisError> {
        let keys = self.keys(partition);
        let named = [keys.home().to_owned(), keys.manifest(generation)];
        let (from, most) = (behind_channel(after), most.to_string());
        let arguments = [generation.as_str(), &from, &most].map(str::as_bytes);
        let mut answer = self
            .scripts
            .manifest
            .run(&self.link, &named, &arguments)
            .await?;
        match answer.word.as_str() {
            "names" => Ok(Page::Page(manifest_page(&mut answer)?)),
            "elsewhere" => Ok(Page::Elsewhere(answer.header()?)),
            "lost" => Ok(Page::Lost(answer.some_header()?)),
            _ => Err(answer.unknown()),
        }
    }

    fn refused(&self, keys: &Keys, why: String) -> RedisError {
        RedisError::new(RedisFault::Refused, self.link.at(), Some(keys.home()), why)
    }
}

fn rows_page(answer: &mut Answer) -> Result<RowsPage, RedisError> {
    let header = answer.some_header()?;
    let last_change = match answer.text()? {
        text if text.is_empty() => None,
        text => Some(
            text.parse()
                .map_err(|_| answer.damaged("a last change is no offset"))?,
        ),
    };
    let more = answer.text()? == "1";
    let mut rows = Vec::new();
    while let Some(id) = answer.bytes() {
        let id = id
            .strip_prefix(b"=")
            .and_then(|id| std::str::from_utf8(id).ok());
        let id = id.and_then(|id| RowId::new(id).ok());
        let row = answer.bytes().as_ref().and_then(CachedRow::from_bytes);
        let (Some(id), Some(row)) = (id, row) else {
            return Err(answer.damaged("a row of a view is none"));
        };
        rows.push((id, row));
    }
    Ok(RowsPage {
        header,
        last_change,
        rows,
        more,
    })
}

fn manifest_page(answer: &mut Answer) -> Result<ManifestPage, RedisError> {
    let header = answer.some_header()?;
    let more = answer.text()? == "1";
    let mut channels = Vec::new();
    while let Some(entry) = answer.bytes() {
        let text = std::str::from_utf8(&entry).ok();
        let parts = text.and_then(|text| text.rsplit_once(' '));
        let read = parts.and_then(|(name, last)| Some((name.to_owned(), last.parse().ok()?)));
        channels.push(read.ok_or_else(|| answer.damaged("an entry of the manifest is none"))?);
    }
    Ok(ManifestPage {
        header,
        channels,
        more,
    })
}
