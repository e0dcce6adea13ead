//! `tidegate cache`: looks whether what Redis holds of a stream is whole, and lets it be folded anew.

use std::time::Duration;

use super::{block_on, plain, say, text};
use crate::{
    cache::redis::{RedisCache, RedisFault, RedisOptions, Report, Topology},
    config,
};

/// The variable that holds the password where the URL has none, so that it stands in no list of processes.
const PASSWORD_VARIABLE: &str = "TIDEGATE_REDIS_PASSWORD";
/// The longest line of what a cache says, in characters.
const LINE_MAX: usize = 500;

#[derive(clap::Subcommand, Debug)]
pub(super) enum Cache {
    /// Reads all of a stream's views and says, a line for each partition, whether they are whole
    Verify(Which),
    /// Drops what there is of a stream, so that its materializer folds it anew from the log
    Rebuild {
        #[command(flatten)]
        which: Which,
        /// Yes, until it is folded anew nodes have no cache for this stream
        #[arg(long)]
        yes: bool,
    },
}

/// Which stream's cache, and where.
#[derive(clap::Args, Debug)]
pub(super) struct Which {
    /// redis://[user@]host[:port][/database], or rediss:// for TLS (SSL_CERT_FILE names an authority that the
    /// system does not trust); again for each node of a cluster and each sentinel. The password is read from the variable
    /// TIDEGATE_REDIS_PASSWORD
    #[arg(long, required = true)]
    redis: Vec<String>,
    /// The servers are a cluster
    #[arg(long, conflicts_with = "sentinel")]
    cluster: bool,
    /// The servers are sentinels, and this is the name of what they watch
    #[arg(long)]
    sentinel: Option<String>,
    /// The user, where the URL has none
    #[arg(long, default_value = "")]
    user: String,
    /// What the keys begin with
    #[arg(long, default_value = crate::cache::redis::PREFIX)]
    prefix: String,
    /// The stream
    #[arg(long)]
    stream: String,
    /// How many partitions it has; else those that are there
    #[arg(long)]
    partitions: Option<u32>,
}

impl Cache {
    pub(super) fn run(self) -> Result<(), String> {
        block_on(async {
            match self {
                Self::Verify(which) => verify(&which).await,
                Self::Rebuild { which, yes: true } => rebuild(&which).await,
                Self::Rebuild { .. } => Err("this drops the stream's views from the cache; nodes have none until they are folded anew. If that is meant, say --yes".to_owned()),
            }
        })
    }
}

impl Which {
    fn open(&self) -> Result<RedisCache, String> {
        crate::model::check_stream_name(&self.stream).map_err(text)?;
        let variable = config::environment().find(|(name, _)| name == PASSWORD_VARIABLE);
        let topology = match &self.sentinel {
            Some(primary) => Topology::Sentinel {
                primary: primary.clone(),
            },
            None if self.cluster => Topology::Cluster,
            None => Topology::Single,
        };
        let options = RedisOptions {
            servers: self.redis.clone(),
            topology,
            login: variable.map(|(_, password)| (self.user.clone(), password)),
            prefix: self.prefix.clone(),
            ..RedisOptions::single("")
        };
        RedisCache::new(&options, &self.stream).map_err(text)
    }
}

/// The partitions that are asked for, else those that are there.
async fn partitions(cache: &RedisCache, which: &Which) -> Result<Vec<u32>, String> {
    let found = match which.partitions {
        Some(count) => (0..count).collect(),
        None => cache.partitions().await.map_err(text)?,
    };
    if found.is_empty() {
        return Err(format!(
            "there is nothing of the stream {} in this cache",
            which.stream
        ));
    }
    Ok(found)
}

async fn verify(which: &Which) -> Result<(), String> {
    let cache = which.open()?;
    let mut bad = Vec::new();
    match cache.check().await {
        Ok(_) => {}
        Err(error) if error.fault() == RedisFault::Unavailable => return Err(text(error)),
        Err(error) => {
            say(&text(&error));
            bad.push("the server".to_owned());
        }
    }
    for partition in partitions(&cache, which).await? {
        let (line, good) = match cache.verify(partition).await {
            Ok(report) => (line(&report), report.found == 0),
            Err(error) if error.fault() == RedisFault::Unavailable => return Err(text(error)),
            Err(error) => (text(error), false),
        };
        say(&plain(&format!("partition {partition}: {line}"), LINE_MAX));
        if !good {
            bad.push(format!("partition {partition}"));
        }
    }
    if bad.is_empty() {
        Ok(())
    } else {
        Err(format!("not good: {}", bad.join(", ")))
    }
}

fn line(report: &Report) -> String {
    let Some(header) = &report.header else {
        return match report.problems.first() {
            Some(problem) => format!("BAD: {problem}"),
            None => format!(
                "nothing to read yet, {} generations being folded",
                report.beside
            ),
        };
    };
    let mut line = format!(
        "{}: {} channels, {} rows, {} bytes; epoch {}, applied {}, generation {}{}, {} beside, {} dropped",
        if report.found == 0 { "good" } else { "BAD" },
        report.channels,
        report.rows,
        report.bytes,
        header.epoch,
        header.applied,
        header.generation,
        if header.complete {
            ""
        } else {
            " (incomplete history)"
        },
        report.beside,
        report.dropped,
    );
    if report.found > 0 {
        line.push_str(&format!(
            "; {} wrong: {}",
            report.found,
            report.problems.join("; ")
        ));
    }
    line
}

async fn rebuild(which: &Which) -> Result<(), String> {
    let cache = which.open()?;
    for partition in partitions(&cache, which).await? {
        cache.drop_all(partition).await.map_err(text)?;
        let mut channels = 0;
        loop {
            let swept = cache.sweep(partition, Duration::ZERO).await.map_err(text)?;
            channels += swept.channels;
            if !swept.more {
                break;
            }
        }
        say(&format!(
            "partition {partition}: dropped, {channels} channels deleted"
        ));
    }
    Ok(())
}
