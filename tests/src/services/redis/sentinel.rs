//! A primary that sentinels watch, and its replica.

use std::fs;

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::{Folder, LOOK_EVERY, Redis};

/// How long it may take until all agree.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// One who watches a primary and its replicas.
pub struct Sentinel {
    server: Redis,
}

impl Sentinel {
    /// What it calls the primary.
    pub const NAME: &str = "views";

    /// Starts one that decides alone, and waits until it knows the primary and a replica.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn of(primary: &Redis) -> anyhow::Result<Self> {
        Self::among(primary, 1).await
    }

    /// One of several, of whom so many must agree.
    async fn among(primary: &Redis, quorum: usize) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let name = Self::NAME;
        let rules = format!(
            "sentinel monitor {name} 127.0.0.1 {} {quorum}\nsentinel down-after-milliseconds {name} 500\n\
             sentinel failover-timeout {name} 5000\n",
            primary.port
        );
        // It writes into its file what it learns.
        let file = folder.0.join("sentinel.conf");
        fs::write(&file, rules)?;
        let options = vec![file.display().to_string(), "--sentinel".to_owned()];
        let server = Redis::in_folder(folder, options, false).await?;
        server
            .until(&["sentinel", "replicas", name], "slave")
            .await?;
        Ok(Self { server })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Waits until it says that this server is the primary.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until_primary_is(&self, server: &Redis) -> anyhow::Result<()> {
        let question = ["sentinel", "get-master-addr-by-name", Self::NAME];
        self.server.until(&question, &server.port.to_string()).await
    }

    /// Whether it says so now.
    async fn says(&self, server: &Redis) -> anyhow::Result<bool> {
        let question = ["sentinel", "get-master-addr-by-name", Self::NAME];
        let answer = self.server.cli(&question).await?;
        Ok(answer.lines().any(|line| line == server.port.to_string()))
    }
}

/// A primary, its replica, and three sentinels of whom two decide.
pub struct Watched {
    servers: Vec<Redis>,
    sentinels: Vec<Sentinel>,
    primary: usize,
}

impl Watched {
    /// Starts all, and waits until they know each other.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start() -> anyhow::Result<Self> {
        let primary = Redis::start(&[]).await?;
        let replica = Redis::replica_of(&primary).await?;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Sentinel::among(&primary, 2).await?);
        }
        for sentinel in &sentinels {
            let question = ["sentinel", "ckquorum", Sentinel::NAME];
            sentinel.server.until_said(&question, "OK 3 usable").await?;
        }
        Ok(Self {
            servers: vec![primary, replica],
            sentinels,
            primary: 0,
        })
    }

    /// Where the sentinels are.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Sentinel::url).collect()
    }

    /// The primary, as it was when all had [settled](Watched::settle).
    pub fn primary(&mut self) -> &mut Redis {
        &mut self.servers[self.primary]
    }

    /// Waits until the sentinels say that the replica is the primary.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until_another_leads(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let another = &self.servers[1 - self.primary];
        for sentinel in &self.sentinels {
            while !sentinel.says(another).await? {
                ensure!(Instant::now() < deadline, "no sentinel names the replica");
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Starts again who does not run, and waits until the sentinels agree on a primary and the other has all that it has.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        for server in &mut self.servers {
            if !server.is_running() {
                server.restart().await?;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(primary) = self.agreed().await? {
                self.primary = primary;
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "a primary and its replica do not find together"
            );
            sleep(LOOK_EVERY * 10).await;
        }
    }

    /// The primary on which all agree, if they do.
    async fn agreed(&self) -> anyhow::Result<Option<usize>> {
        for (at, server) in self.servers.iter().enumerate() {
            let other = self.servers.get(1 - at).context("the other server")?;
            let mut agreed = is_primary(server).await? && follows(other, server).await?;
            for sentinel in &self.sentinels {
                agreed = agreed && sentinel.says(server).await?;
            }
            if agreed {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

pub(super) async fn is_primary(server: &Redis) -> anyhow::Result<bool> {
    Ok(server
        .cli(&["info", "replication"])
        .await?
        .contains("role:master"))
}

/// Whether it is the other's replica, and has all that it has.
pub(super) async fn follows(server: &Redis, primary: &Redis) -> anyhow::Result<bool> {
    let told = server.cli(&["info", "replication"]).await?;
    let port = format!("master_port:{}", primary.port);
    let lines = ["role:slave", &port, "master_link_status:up"];
    let has = |wanted: &&str| told.lines().any(|line| line.trim() == *wanted);
    Ok(lines.iter().all(has))
}
