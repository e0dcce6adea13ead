//! `[[streams]]` of Redis: how its servers are reached, and what its logs keep.
//!
//! Does: reads the keys of `source` that are Redis's; those of the servers are read as in `[cache]`. Owns: their defaults and bounds.
//! Never knows: a connection.

use std::time::Duration;

use super::{
    CacheConfig,
    stream::{AGES, SHORTEST},
    walk::Section,
};

/// The servers of a stream, and how its logs are kept there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// The servers, at least one, and what its keys begin with.
    pub servers: Box<CacheConfig>,
    /// How long a record that is published here is tried, 100 ms to 5 min; default 10 s.
    pub publish_timeout: Duration,
    /// Entries that each log keeps, about, 0 to 4,294,967,295; default: none, so all.
    pub records: Option<u64>,
    /// How old they become, about, 1 s to 3650 d; default: none, so of any age.
    pub age: Option<Duration>,
    /// Whether views of a log that does not reach back to its birth may be live; default no.
    pub incomplete_history: bool,
}

impl RedisConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        section.need("redis", "one server, or those of a cluster, or sentinels");
        let servers = Box::new(CacheConfig::read(section));
        let mut retention = section.table("retention");
        let records = retention.count("records", 0..=u32::MAX);
        let histories = [("whole", false), ("incomplete", true)];
        Self {
            servers,
            records: records
                .filter(|&records| records > 0)
                .map(|records| records as u64),
            age: retention.duration("age", AGES),
            publish_timeout: section
                .duration("publish_timeout", SHORTEST..=Duration::from_secs(300))
                .unwrap_or(Duration::from_secs(10)),
            incomplete_history: section.choice("history", &histories).unwrap_or(false),
        }
    }
}
