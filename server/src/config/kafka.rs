//! `[[streams]]` of Kafka: a topic, and how its brokers are spoken to.
//!
//! Does: reads the keys of `source` that are Kafka's. Owns: their defaults and bounds. Never knows: a connection.

mod security;

use std::time::Duration;

pub use security::{KafkaSasl, KafkaSecurity, KafkaTls, SaslMechanism};

use super::{
    stream::{AGES, SHORTEST},
    walk::Section,
};

/// A topic of Kafka, and how its log is kept there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// Brokers that are asked first, each `host:port`, at least one.
    pub brokers: Vec<String>,
    /// Encryption and credentials; default: neither.
    pub security: Box<KafkaSecurity>,
    /// The topic; default: the stream's name.
    pub topic: String,
    /// How long a broker may take to answer, 100 ms to 1 min; default 1 s.
    pub timeout: Duration,
    /// How long a record that is published here is tried, 100 ms to 5 min; default 10 s.
    pub publish_timeout: Duration,
    /// A record that is older may have been compacted away, 1 s to 3650 d; default 10 s. Not more than the topic's
    /// `min.compaction.lag.ms`.
    pub compacts_after: Duration,
    /// How long the topic keeps tombstones, its `delete.retention.ms`, 1 s to 3650 d; default 1 d, as Kafka's.
    pub tombstones_kept: Duration,
    /// Whether views of a topic that does not reach back to its birth may be live; default no.
    pub incomplete_history: bool,
    /// While the cache does not answer, a node folds what it needs from a partition of so many records at most; default 1,000,000.
    pub folds_alone: u32,
}

impl KafkaConfig {
    pub(super) fn read(section: &mut Section<'_>, stream: &str) -> Self {
        let broker = |text: &str| {
            let (host, port) = text.rsplit_once(':')?;
            (!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
                .then(|| text.to_owned())
        };
        let waits = SHORTEST..=Duration::from_secs(60);
        let brokers = "brokers as \"host:port\", at least one";
        // Kafka's own rule for topics.
        let legal = |text: &str| {
            let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            (1..=249).contains(&text.len())
                && text.bytes().all(is_legal)
                && text != "."
                && text != ".."
        };
        let topic = "1 to 249 of A-Z, a-z, 0-9, ., _ and -";
        let histories = [("whole", false), ("incomplete", true)];
        Self {
            brokers: section.some_texts("brokers", brokers, broker),
            security: Box::new(KafkaSecurity::read(section)),
            topic: section
                .text("topic", topic, |text| legal(text).then(|| text.to_owned()))
                .unwrap_or_else(|| stream.to_owned()),
            timeout: section
                .duration("timeout", waits)
                .unwrap_or(Duration::from_secs(1)),
            publish_timeout: section
                .duration("publish_timeout", SHORTEST..=Duration::from_secs(300))
                .unwrap_or(Duration::from_secs(10)),
            compacts_after: section
                .duration("compacts_after", AGES)
                .unwrap_or(Duration::from_secs(10)),
            tombstones_kept: section
                .duration("tombstones_kept", AGES)
                .unwrap_or(Duration::from_secs(24 * 3600)),
            incomplete_history: section.choice("history", &histories).unwrap_or(false),
            folds_alone: section
                .number("folds_alone", 0..=1_000_000_000)
                .unwrap_or(1_000_000),
        }
    }
}
