//! A cluster.

use std::time::Duration;

use anyhow::{bail, ensure};
use tokio::time::{Instant, sleep};

use super::{LOOK_EVERY, Redis, free_port, sentinel::is_primary};

/// How long it may take until all agree.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many lead.
const PRIMARIES: usize = 3;
/// Who is silent for so long, in milliseconds, has failed.
const SILENT_MS: &str = "2000";
/// Where the port of a server's bus is among its options.
const BUS: usize = 3;

/// Three primaries that share the slots of a cluster; with a replica each, or without.
pub struct Cluster {
    /// Its servers.
    pub servers: Vec<Redis>,
}

impl Cluster {
    /// Starts them without replicas, and waits until each of them says that the cluster is whole.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn start() -> anyhow::Result<Self> {
        Self::of(PRIMARIES).await
    }

    /// Starts them, each with a replica, and waits until all is whole.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn with_replicas() -> anyhow::Result<Self> {
        let mut cluster = Self::of(2 * PRIMARIES).await?;
        for (at, replica) in cluster.servers[PRIMARIES..].iter().enumerate() {
            let id = cluster.servers[at].cli(&["cluster", "myid"]).await?;
            // It can't follow whom it has not heard of yet.
            let known = replica.until_said(&["cluster", "nodes"], &id);
            known.await?;
            replica.cli(&["cluster", "replicate", &id]).await?;
        }
        cluster.settle().await?;
        Ok(cluster)
    }

    async fn of(count: usize) -> anyhow::Result<Self> {
        let mut servers = Vec::new();
        for _ in 0..count {
            // The nodes' own bus would take the port and 10,000, which may be beyond the last one.
            let bus = free_port()?.to_string();
            let options = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                SILENT_MS,
            ];
            servers.push(Redis::start(&options).await?);
        }
        Self::meet(&servers).await?;
        for server in &servers {
            server
                .until(&["cluster", "info"], "cluster_state:ok")
                .await?;
        }
        Ok(Self { servers })
    }

    /// `redis-cli --cluster create`, which knows no ports of the bus, by hand: each its slots, then all know each other.
    async fn meet(servers: &[Redis]) -> anyhow::Result<()> {
        let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        for (server, (first, last)) in servers.iter().zip(slots) {
            server
                .cli(&["cluster", "addslotsrange", first, last])
                .await?;
        }
        for (epoch, server) in servers.iter().enumerate() {
            server
                .cli(&["cluster", "set-config-epoch", &(epoch + 1).to_string()])
                .await?;
        }
        for other in &servers[1..] {
            let port = other.port.to_string();
            let bus = &other.options[BUS];
            servers[0]
                .cli(&["cluster", "meet", "127.0.0.1", &port, bus])
                .await?;
        }
        Ok(())
    }

    /// A primary, whose replica will take its place when it is gone.
    ///
    /// # Errors
    /// When nobody says that he is one.
    pub async fn primary(&mut self) -> anyhow::Result<usize> {
        for (at, server) in self.servers.iter().enumerate() {
            if is_primary(server).await? {
                return Ok(at);
            }
        }
        bail!("a cluster without a primary")
    }

    /// Waits until the others say that all is whole without this one, and that it has failed.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn until_another_leads(&self, gone: usize) -> anyhow::Result<()> {
        for (_, server) in self.others(gone) {
            server
                .until_said(
                    &["cluster", "nodes"],
                    &format!(":{}@", self.servers[gone].port),
                )
                .await?;
            let deadline = Instant::now() + PATIENCE;
            while !self.knows_gone(server, gone).await? {
                ensure!(
                    Instant::now() < deadline,
                    "nobody takes the place of a primary that is gone"
                );
                sleep(LOOK_EVERY * 10).await;
            }
        }
        Ok(())
    }

    fn others(&self, than: usize) -> impl Iterator<Item = (usize, &Redis)> {
        let all = self.servers.iter().enumerate();
        all.filter(move |(at, _)| *at != than)
    }

    /// Whether a server says that this one has failed and leads nothing, and that the cluster is whole.
    async fn knows_gone(&self, server: &Redis, gone: usize) -> anyhow::Result<bool> {
        let nodes = server.cli(&["cluster", "nodes"]).await?;
        let place = format!(":{}@", self.servers[gone].port);
        let line = nodes.lines().find(|line| line.contains(&place));
        let line = line.unwrap_or_default();
        // A primary's line ends with its slots, behind "connected" or "disconnected".
        let leads = line.contains("master") && line.split(' ').count() > 8;
        let whole = server.cli(&["cluster", "info"]).await?;
        Ok(line.contains("fail") && !leads && whole.contains("cluster_state:ok"))
    }

    /// Starts again who does not run, and waits until all say that the cluster is whole, and who leads nothing follows another.
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
        while !self.is_settled().await? {
            ensure!(Instant::now() < deadline, "a cluster does not become whole");
            sleep(LOOK_EVERY * 10).await;
        }
        Ok(())
    }

    async fn is_settled(&self) -> anyhow::Result<bool> {
        let (mut primaries, mut replicas) = (0, 0);
        for server in &self.servers {
            let whole = server.cli(&["cluster", "info"]).await?;
            if !whole.contains("cluster_state:ok") {
                return Ok(false);
            }
            let told = server.cli(&["info", "replication"]).await?;
            primaries += usize::from(told.contains("role:master"));
            replicas += usize::from(told.contains("master_link_status:up"));
        }
        Ok(primaries == PRIMARIES && primaries + replicas == self.servers.len())
    }

    /// Their addresses.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(Redis::url).collect()
    }
}
