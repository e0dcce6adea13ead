//! The fleet's cache: a Redis with a road to it from each process, one that sentinels watch, or a cluster.
//!
//! Does: starts it, says how a process is told of it, takes a primary away and has all find together again. Owns: the servers and
//! the roads. Never knows: what is kept there. Only to a single Redis there are roads: the others name each other by their own
//! addresses.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::sleep;

use super::{Cache, road::Road};
use crate::services::redis::{Cluster, Redis, Sentinel, Watched};

/// The servers.
enum Servers {
    One(Redis),
    Watched(Watched),
    Cluster(Cluster),
}

/// The servers, and the roads to them.
pub(super) struct Store {
    servers: Servers,
    /// From each process: the nodes, then the materializers.
    roads: Vec<Road>,
}

impl Store {
    /// Starts it, for so many processes.
    pub(super) async fn start(cache: Cache, processes: usize) -> anyhow::Result<Self> {
        let mut roads = Vec::new();
        let servers = match cache {
            Cache::One => {
                let redis = Redis::start(&["--maxmemory-policy", "noeviction"]).await?;
                for _ in 0..processes {
                    let road = Road::open().await?;
                    road.leads_to(redis.address().parse()?);
                    roads.push(road);
                }
                Servers::One(redis)
            }
            Cache::Sentinel => Servers::Watched(Watched::start().await?),
            Cache::Cluster => Servers::Cluster(Cluster::with_replicas().await?),
        };
        Ok(Self { servers, roads })
    }

    /// What a process is told of it.
    pub(super) fn section(&self, process: usize) -> String {
        let (urls, more) = match &self.servers {
            Servers::One(_) => {
                let port = self.roads[process].port;
                (vec![format!("redis://127.0.0.1:{port}")], String::new())
            }
            Servers::Watched(watched) => {
                let more = format!("sentinel = \"{}\"\n", Sentinel::NAME);
                (watched.urls(), more)
            }
            Servers::Cluster(cluster) => (cluster.urls(), "cluster = true\n".to_owned()),
        };
        format!("[cache]\nredis = {urls:?}\n{more}timeout = \"500ms\"\n")
    }

    /// The road of a process.
    pub(super) fn road(&self, process: usize) -> anyhow::Result<&Road> {
        self.roads.get(process).context("there is no road")
    }

    /// The only server.
    pub(super) fn one(&mut self) -> anyhow::Result<&mut Redis> {
        match &mut self.servers {
            Servers::One(redis) => Ok(redis),
            Servers::Watched(_) | Servers::Cluster(_) => bail!("there are several servers"),
        }
    }

    /// The server that may be written to, of a cluster one of them.
    pub(super) async fn primary(&mut self) -> anyhow::Result<&mut Redis> {
        match &mut self.servers {
            Servers::One(redis) => Ok(redis),
            Servers::Watched(watched) => Ok(watched.primary()),
            Servers::Cluster(cluster) => {
                let at = cluster.primary().await?;
                Ok(&mut cluster.servers[at])
            }
        }
    }

    /// Kills a primary; starts it again a while after its replica has taken its place.
    pub(super) async fn fail_over(&mut self, lasts: Duration) -> anyhow::Result<()> {
        match &mut self.servers {
            Servers::One(_) => bail!("nobody can take the place of a single server"),
            Servers::Watched(watched) => {
                watched.primary().kill()?;
                watched.until_another_leads().await?;
            }
            Servers::Cluster(cluster) => {
                let gone = cluster.primary().await?;
                cluster.servers[gone].kill()?;
                cluster.until_another_leads(gone).await?;
            }
        }
        sleep(lasts).await;
        self.settle().await
    }

    /// Waits until all know who leads, and the others follow.
    pub(super) async fn settle(&mut self) -> anyhow::Result<()> {
        match &mut self.servers {
            Servers::One(_) => Ok(()),
            Servers::Watched(watched) => watched.settle().await,
            Servers::Cluster(cluster) => cluster.settle().await,
        }
    }
}
