//! Going through a generation's channels, a few at a time, to see whether their keys are there: of a channel that nobody writes to
//! and nobody reads, nobody else would notice.

use super::{
    Lost, Page, RedisCache, RedisError,
    header::{DecimalOffset, Generation},
};

/// Channels that one call looks at, at most.
pub const PATROL_CHANNELS: usize = 256;

/// What a call found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patrolled {
    /// All are whole, up to this one; none: they were the last.
    Whole(Option<String>),
    /// The generation is not the current one.
    Elsewhere,
    /// Keys are gone: fold anew.
    Lost(Lost),
}

impl RedisCache {
    /// Looks whether the keys of the channels behind a name (none: from the first on) are there.
    ///
    /// # Errors
    /// When Redis does not answer, or with something else.
    pub async fn patrol(
        &self,
        partition: u32,
        generation: &Generation,
        after: Option<&str>,
    ) -> Result<Patrolled, RedisError> {
        let page = self
            .manifest_of(partition, generation, after, PATROL_CHANNELS)
            .await?;
        let page = match page {
            Page::Page(page) => page,
            Page::Elsewhere(_) => return Ok(Patrolled::Elsewhere),
            Page::Lost(_) => return Ok(Patrolled::Lost(Lost::Manifest)),
        };
        let last = page.channels.last().map(|(name, _)| name.clone());
        if let Some(lost) = self
            .check_channels(partition, generation, &page.channels)
            .await?
        {
            return Ok(lost);
        }
        Ok(Patrolled::Whole(last.filter(|_| page.more)))
    }

    async fn check_channels(
        &self,
        partition: u32,
        generation: &Generation,
        channels: &[(String, DecimalOffset)],
    ) -> Result<Option<Patrolled>, RedisError> {
        let keys = self.keys(partition);
        let mut named = vec![keys.home().to_owned(), keys.manifest(generation)];
        let mut arguments = vec![generation.as_str().as_bytes()];
        for (name, _) in channels {
            named.push(keys.rows(generation, name));
            named.push(keys.ids(generation, name));
            arguments.push(name.as_bytes());
        }
        let mut answer = self
            .scripts
            .check
            .run(&self.link, &named, &arguments)
            .await?;
        match answer.word.as_str() {
            "whole" => Ok(None),
            "elsewhere" => Ok(Some(Patrolled::Elsewhere)),
            "lost" => Ok(Some(Patrolled::Lost(Lost::Manifest))),
            "missing" => Ok(Some(Patrolled::Lost(Lost::Channel(answer.text()?)))),
            _ => Err(answer.unknown()),
        }
    }
}
