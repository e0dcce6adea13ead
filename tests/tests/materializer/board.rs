//! A topic that tests write, what it comes to, and what the cache says that it comes to.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tidegate::{
    cache::redis::{CachedRow, Header, Page, RedisCache, RedisOptions, Walk},
    config::Config,
    gateway::Gateway,
    model::{Channel, partition_of},
};
use tidegate_tests::{
    binary::{self, command},
    http,
    services::{kafka::Kafka, redis::Redis},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    time::{Instant, sleep, timeout},
};

/// The longest that anything here may take: sessions end and partitions move meanwhile.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
pub(crate) const STREAM: &str = "board";

/// Rows by channel and id.
pub(crate) type Rows = BTreeMap<(String, String), Value>;

/// A topic, the cache that it is folded into, and what it comes to.
pub(crate) struct Board {
    pub(crate) kafka: &'static Kafka,
    pub(crate) redis: Redis,
    pub(crate) cache: RedisCache,
    pub(crate) partitions: u32,
    pub(crate) rows: Rows,
    topic: String,
    folder: PathBuf,
}

impl Board {
    pub(crate) async fn new(topic: &str, partitions: u32) -> anyhow::Result<Self> {
        let kafka = Kafka::shared().await?;
        let count = i32::try_from(partitions)?;
        kafka.create_topic(topic, count, &[]).await?;
        let redis = Redis::start(&[]).await?;
        let folder = std::env::temp_dir().join(format!("tidegate-{topic}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self {
            cache: RedisCache::new(&RedisOptions::single(&redis.url()), STREAM)?,
            kafka,
            redis,
            partitions,
            rows: Rows::new(),
            topic: topic.to_owned(),
            folder,
        })
    }

    fn partition_of(&self, channel: &str) -> i32 {
        i32::try_from(partition_of(channel, "", self.partitions)).unwrap_or(0)
    }

    /// Writes changes to the topic.
    pub(crate) async fn write(
        &mut self,
        changes: &[(String, String, Option<Value>)],
    ) -> anyhow::Result<()> {
        for partition in 0..i32::try_from(self.partitions)? {
            let here = changes
                .iter()
                .filter(|(channel, ..)| self.partition_of(channel) == partition);
            let records: Vec<_> = here
                .map(|(channel, row, value)| {
                    let key = serde_json::json!([channel, row]).to_string();
                    (key, value.as_ref().map(Value::to_string))
                })
                .collect();
            let records = records
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_deref()));
            self.kafka
                .produce(&self.topic, partition, records, &[])
                .await?;
        }
        for (channel, row, value) in changes.iter().cloned() {
            match value {
                Some(value) => drop(self.rows.insert((channel, row), value)),
                None => drop(self.rows.remove(&(channel, row))),
            }
        }
        Ok(())
    }

    /// The configuration of a process that folds it.
    pub(crate) fn config(&self, of_stream: &str) -> String {
        format!(
            "roles = [\"materializer\"]\n\
             [admin]\naddress = \"127.0.0.1:0\"\n\
             [listen]\nworkers = 2\n\
             [cache]\nredis = [\"{}\"]\ntimeout = \"1s\"\n\
             [materializer]\ngroup = \"{}\"\nsession_timeout = \"6s\"\n\
             [[streams]]\nname = \"{STREAM}\"\npartitions = {}\n{of_stream}\n\
             source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{}\" }}\n",
            self.redis.url(),
            self.topic,
            self.partitions,
            self.kafka.address(),
            self.topic,
        )
    }

    /// A materializer in this process.
    pub(crate) fn here(&self, of_stream: &str) -> anyhow::Result<Gateway> {
        let config = Config::from_toml(&self.config(of_stream), std::iter::empty())?;
        Ok(Gateway::start(&config, None)?)
    }

    /// A materializer that is a process of its own.
    pub(crate) async fn process(&self) -> anyhow::Result<Process> {
        let file = self.folder.join("tidegate.toml");
        fs::write(&file, self.config(""))?;
        let file = file.display().to_string();
        let mut child = command(&["materialize", "--config", &file]).spawn()?;
        let stdout = child.stdout.take().context("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let first = timeout(PATIENCE, lines.next_line()).await??;
        let admin = first.as_deref().and_then(|line| {
            let (_, admin) = line.split_once("(operators: http://")?;
            admin.trim_end_matches(')').parse().ok()
        });
        let admin = admin.with_context(|| format!("it does not run: {first:?}"))?;
        Ok(Process { child, admin })
    }

    /// Everything that the cache has; none where it can't be read in one piece just now.
    pub(crate) async fn cached(&self) -> anyhow::Result<Option<Rows>> {
        let mut rows = Rows::new();
        for partition in 0..self.partitions {
            let Ok(Some(header)) = self.cache.header(partition).await else {
                return Ok(None);
            };
            let Ok(Page::Page(manifest)) = self
                .cache
                .manifest(partition, &header.generation, None)
                .await
            else {
                return Ok(None);
            };
            for (name, _) in manifest.channels {
                let Some(found) = self.channel(partition, &header, &name).await? else {
                    return Ok(None);
                };
                for (row, cached) in found {
                    rows.insert((name.clone(), row), serde_json::from_slice(&cached.data)?);
                }
            }
        }
        Ok(Some(rows))
    }

    async fn channel(
        &self,
        partition: u32,
        header: &Header,
        name: &str,
    ) -> anyhow::Result<Option<BTreeMap<String, CachedRow>>> {
        let channel = Channel::new(STREAM, name)?;
        let (mut walk, mut rows) = (Walk::default(), BTreeMap::new());
        while !walk.is_whole() {
            let page = self
                .cache
                .page(partition, &header.generation, &channel, walk.after());
            let Ok(Page::Page(page)) = page.await else {
                return Ok(None);
            };
            if walk.take(&page).is_err() {
                return Ok(None);
            }
            let named = page.rows.into_iter();
            rows.extend(named.map(|(id, row)| (id.as_str().to_owned(), row)));
        }
        Ok(Some(rows))
    }

    /// Waits until the cache has what the topic comes to; then every key of it is whole.
    pub(crate) async fn is_folded(&self) -> anyhow::Result<()> {
        until("the cache is the fold of the topic", async || {
            Ok((self.cached().await? == Some(self.rows.clone())).then_some(()))
        })
        .await?;
        for partition in 0..self.partitions {
            let report = self.cache.verify(partition).await?;
            ensure!(report.found == 0, "partition {partition}: {report:?}");
        }
        Ok(())
    }

    /// The header of each partition.
    pub(crate) async fn headers(&self) -> anyhow::Result<Vec<Header>> {
        let mut headers = Vec::new();
        for partition in 0..self.partitions {
            headers.push(self.cache.header(partition).await?.context("no header")?);
        }
        Ok(headers)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).unwrap_or_default();
    }
}

/// Changes of some channels: `rows` rows each, with this value.
pub(crate) fn changes(
    channels: std::ops::Range<u32>,
    rows: u32,
    value: u32,
) -> Vec<(String, String, Option<Value>)> {
    let all = channels.flat_map(|channel| (0..rows).map(move |row| (channel, row)));
    all.map(|(channel, row)| (format!("C{channel}"), format!("r{row}"), Some(value.into())))
        .collect()
}

/// A running `tidegate materialize`. It ends with its owner.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) admin: SocketAddr,
}

impl Process {
    /// The partitions that it was given.
    pub(crate) async fn given(&self) -> anyhow::Result<BTreeSet<u64>> {
        given(self.admin).await
    }

    /// Waits until it has so many partitions.
    pub(crate) async fn has(&self, count: usize) -> anyhow::Result<BTreeSet<u64>> {
        until(&format!("it has {count} partitions"), async || {
            let given = self.given().await?;
            Ok((given.len() == count).then_some(given))
        })
        .await
    }

    pub(crate) async fn signal(&self, name: &str) -> anyhow::Result<()> {
        binary::signal(&self.child, name).await
    }

    /// What it counted so.
    pub(crate) async fn count(&self, metric: &str) -> anyhow::Result<u64> {
        count(self.admin, metric).await
    }
}

/// The partitions that a materializer was given.
pub(crate) async fn given(admin: SocketAddr) -> anyhow::Result<BTreeSet<u64>> {
    let page = http::get(admin, "/inspect/materializer").await?.json()?;
    let given = page["streams"][0]["given"].as_array();
    let given = given.with_context(|| page.to_string())?;
    Ok(given.iter().filter_map(Value::as_u64).collect())
}

/// The stream's number of this metric.
pub(crate) async fn count(admin: SocketAddr, metric: &str) -> anyhow::Result<u64> {
    let page = http::get(admin, "/metrics").await?.body;
    let name = format!("tidegate_materializer_{metric}{{stream=\"{STREAM}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.with_context(|| format!("{name} in {page}"))?.parse()?)
}

/// Looks until there is something.
pub(crate) async fn until<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} in vain: {what}");
        }
        sleep(LOOK).await;
    }
}
