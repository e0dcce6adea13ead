//! The fleet's cache: a Redis, and a road to it from each process.
//!
//! Does: starts it, says how a process is told of it. Owns: the servers and the roads. Never knows: what is kept there.

use super::road::Road;
use crate::services::redis::Redis;

/// The servers, and the roads to them.
pub(super) struct Store {
    pub(super) redis: Redis,
    /// From each process: the nodes, then the materializers.
    pub(super) roads: Vec<Road>,
}

impl Store {
    /// Starts it, with roads for so many processes.
    pub(super) async fn start(processes: usize) -> anyhow::Result<Self> {
        let redis = Redis::start(&["--maxmemory-policy", "noeviction"]).await?;
        let mut roads = Vec::new();
        for _ in 0..processes {
            let road = Road::open().await?;
            road.leads_to(redis.address().parse()?);
            roads.push(road);
        }
        Ok(Self { redis, roads })
    }

    /// What a process is told of it.
    pub(super) fn section(&self, process: usize) -> String {
        let port = self.roads[process].port;
        format!("[cache]\nredis = [\"redis://127.0.0.1:{port}\"]\ntimeout = \"500ms\"\n")
    }
}
