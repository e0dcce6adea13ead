//! The cache that a configuration asks for.

use crate::{
    cache::redis::{RedisOptions, Topology},
    config::CacheConfig,
};

impl From<&CacheConfig> for RedisOptions {
    fn from(config: &CacheConfig) -> Self {
        let topology = match &config.sentinel {
            Some(primary) => Topology::Sentinel {
                primary: primary.clone(),
            },
            None if config.cluster => Topology::Cluster,
            None => Topology::Single,
        };
        let login = |password: &String| (config.user.clone(), password.clone());
        Self {
            servers: config.redis.clone(),
            topology,
            login: config.password.as_ref().map(login),
            ca_pem: config.ca_pem.clone(),
            timeout: config.timeout,
            prefix: config.prefix.clone(),
        }
    }
}
