//! What is there of a partition, and clearing away what nobody needs: generations that were dropped, or that nobody goes on
//! writing. A dropped generation has no header any more, so whoever still writes to it is told so; its keys go piece by piece.

use std::{collections::BTreeMap, time::Duration};

use super::{
    RedisCache, RedisError, RedisFault,
    header::{Generation, Header},
    keys::{Keys, LAYOUT, partition_of},
    script::{not_ours, other_layout},
};

/// Channels whose keys one call of [`RedisCache::sweep`] deletes at most.
pub const SWEEP_CHANNELS: usize = 256;
/// Keys that one step of looking for partitions looks at.
const SCAN_KEYS: usize = 1_000;

/// What is there of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Home {
    /// The header of the current generation.
    pub current: Option<Header>,
    /// Generations beside it, that are being folded or were left.
    pub beside: Vec<Header>,
    /// Dropped generations of which keys are left.
    pub dropped: Vec<Generation>,
}

impl Home {
    /// The header of a generation, be it current or beside.
    #[must_use]
    pub fn of(&self, generation: &Generation) -> Option<&Header> {
        let all = self.current.iter().chain(&self.beside);
        all.into_iter()
            .find(|header| header.generation == *generation)
    }
}

/// What a call of [`RedisCache::sweep`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Channels whose keys were deleted.
    pub channels: usize,
    /// Whether there is more to delete: call again.
    pub more: bool,
}

impl RedisCache {
    /// What is there of a partition.
    ///
    /// # Errors
    /// When Redis does not answer, or with something else than a partition's home.
    pub async fn home(&self, partition: u32) -> Result<Home, RedisError> {
        let keys = self.keys(partition);
        let (at, key) = (self.link.at(), keys.home());
        let mut command = redis::cmd("HGETALL");
        command.arg(key);
        let fields: BTreeMap<String, String> = self.link.call(Some(key), &command).await?;
        let Some(layout) = fields.get("layout") else {
            return if fields.is_empty() {
                Ok(Home::default())
            } else {
                Err(not_ours(at, key))
            };
        };
        if *layout != LAYOUT.to_string() {
            return Err(other_layout(at, key, layout));
        }
        home_of(&fields).map_err(|what| RedisError::new(RedisFault::Damaged, at, Some(key), what))
    }

    /// The header of the current generation, if there is one.
    ///
    /// # Errors
    /// As [`RedisCache::home`].
    pub async fn header(&self, partition: u32) -> Result<Option<Header>, RedisError> {
        Ok(self.home(partition).await?.current)
    }

    /// Drops generations beside the current one to which nobody wrote for `quiet`, and deletes keys of those that are
    /// dropped, of [`SWEEP_CHANNELS`] channels at most.
    ///
    /// # Errors
    /// When Redis does not do it. Whatever was deleted is of no use to anybody; call again.
    pub async fn sweep(&self, partition: u32, quiet: Duration) -> Result<Swept, RedisError> {
        let dropped = self.drop_generations(partition, quiet, "beside").await?;
        let Some(generation) = dropped.first() else {
            return Ok(Swept::default());
        };
        let (channels, done) = self.delete_piece(&self.keys(partition), generation).await?;
        let more = !done || dropped.len() > 1;
        Ok(Swept { channels, more })
    }

    /// Drops every generation, the current one too: readers find nothing, and the materializer folds anew. The keys go by
    /// [`RedisCache::sweep`].
    ///
    /// # Errors
    /// When Redis does not do it.
    pub async fn drop_all(&self, partition: u32) -> Result<(), RedisError> {
        self.drop_generations(partition, Duration::ZERO, "all")
            .await
            .map(drop)
    }

    async fn drop_generations(
        &self,
        partition: u32,
        quiet: Duration,
        which: &str,
    ) -> Result<Vec<Generation>, RedisError> {
        let keys = [self.keys(partition).home().to_owned()];
        let quiet = quiet.as_secs().to_string();
        let arguments = [quiet.as_bytes(), which.as_bytes()];
        let mut answer = self.scripts.drop.run(&self.link, &keys, &arguments).await?;
        if answer.word != "dropped" {
            return Err(answer.unknown());
        }
        let mut names = Vec::new();
        while let Some(name) = answer.bytes() {
            let name = std::str::from_utf8(&name)
                .ok()
                .and_then(|name| name.parse().ok());
            names.push(name.ok_or_else(|| answer.damaged("a generation's name is none"))?);
        }
        Ok(names)
    }

    /// Deletes the keys of some channels of a dropped generation, then their entries: cut in between, the next call does it
    /// again. With the last of them goes its name.
    async fn delete_piece(
        &self,
        keys: &Keys,
        generation: &Generation,
    ) -> Result<(usize, bool), RedisError> {
        let (home, manifest) = (Some(keys.home()), keys.manifest(generation));
        let mut command = redis::cmd("ZRANGEBYLEX");
        command.arg(&manifest).arg("-").arg("+");
        command.arg("LIMIT").arg(0).arg(SWEEP_CHANNELS);
        let entries: Vec<String> = self.link.call(home, &command).await?;
        if entries.is_empty() {
            let mut command = redis::cmd("HDEL");
            command
                .arg(keys.home())
                .arg(format!("dropped:{generation}"));
            self.link.call::<()>(home, &command).await?;
            return Ok((0, true));
        }
        let mut unlink = redis::cmd("UNLINK");
        for entry in &entries {
            let name = entry
                .rsplit_once(' ')
                .map_or(entry.as_str(), |(name, _)| name);
            unlink
                .arg(keys.rows(generation, name))
                .arg(keys.ids(generation, name));
        }
        self.link.call::<()>(home, &unlink).await?;
        let mut forget = redis::cmd("ZREM");
        forget.arg(&manifest).arg(&entries);
        self.link.call::<()>(home, &forget).await?;
        Ok((entries.len(), false))
    }

    /// The partitions of the stream that have something in the cache, by looking at all keys of the server.
    ///
    /// # Errors
    /// When Redis does not answer; of a cluster, which has no such look.
    pub async fn partitions(&self) -> Result<Vec<u32>, RedisError> {
        if self.link.is_cluster() {
            let what =
                "the keys of a cluster can't be looked through: say how many partitions there are";
            return Err(RedisError::new(
                RedisFault::Refused,
                self.link.at(),
                None,
                what,
            ));
        }
        let (mut found, mut cursor) = (Vec::new(), 0_u64);
        let pattern = format!("{}:{{{}/*}}", self.prefix, self.stream);
        loop {
            let mut command = redis::cmd("SCAN");
            command
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(SCAN_KEYS);
            let (next, names): (u64, Vec<String>) = self.link.call(None, &command).await?;
            let ours = |name: &String| partition_of(name, &self.prefix, &self.stream);
            found.extend(names.iter().filter_map(ours));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn home_of(fields: &BTreeMap<String, String>) -> Result<Home, String> {
    let mut home = Home::default();
    let current = fields.get("current");
    for (field, value) in fields {
        if let Some(name) = field.strip_prefix("header:") {
            let header = Header::from_text(value);
            let header =
                header.map_err(|error| format!("the header of {name} is none: {error}"))?;
            if header.generation.as_str() != name {
                return Err(format!(
                    "the header of {name} is that of {}",
                    header.generation
                ));
            }
            if current.is_some_and(|current| current == name) {
                home.current = Some(header);
            } else {
                home.beside.push(header);
            }
        } else if let Some(name) = field.strip_prefix("dropped:") {
            let name = name
                .parse()
                .map_err(|_| format!("{name:?} is no generation"))?;
            home.dropped.push(name);
        }
    }
    Ok(home)
}
