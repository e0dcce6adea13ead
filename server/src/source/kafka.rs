//! Kafka: a partition of a topic as a source, and as the log that publishing appends to.
//!
//! Does: finds a partition's leader, reads it by fetches that go out when they are asked for, wakes who waits for more, appends
//! idempotently, and is a member of groups that share a topic's partitions. Owns: its connections to brokers, one for fetches and one
//! for waiting per reader, one per appender, one per membership. Never knows: committed offsets (a reader reads from where it is told
//! to), views, wire formats of clients.
//! Keeps: every fetch is a request of its own, sent after it was asked for, so its answer is a proof; records of aborted
//! transactions never come; a log that went back, or is another topic by the same name, is another epoch; nothing is skipped.
//!
//! The wire is spoken here and not by librdkafka, since that hides what a proof is made of: it prefetches, tells neither a
//! fetch's sending nor the leader epoch nor the topic's id, and needs three more round trips to prove what a fetch says at
//! once. `kafka-protocol` has the messages, generated from Kafka's own schemas. Brokers of 3.1 or newer are needed, since
//! fetches name topics by id (KIP-516): a topic that was made anew is refused by the broker, never read by mistake.
//!
//! **Offsets.** Kafka's offset k is [`Offset`] k + 1, so that Kafka's 0 is behind [`Offset::BEFORE_ALL`]. Seen from the other
//! side: an `Offset` of number n, where everything up to it has been read, is the n that Kafka is asked for next. So heads
//! and starts of logs, which Kafka gives as what comes next, keep their number, and only a record's own is one more.
//!
//! **Epochs.** A log's epoch is its topic's id, in the text that Kafka's tools print; when the log went back (an unclean
//! election lost what was acknowledged), the leader epoch in which that was noticed is added to it.

mod appender;
mod batch;
mod cluster;
mod error;
mod group;
mod letters;
mod reader;
mod secure;
mod sifted;
mod whole;
mod wire;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use uuid::Uuid;

use super::{backoff, recent};
use crate::model::Offset;

pub use appender::{
    AppendError, AppenderSettings, KafkaAppender, NewKafkaRecord, NotTaken, Results, Stored,
};
pub use cluster::{ClusterSettings, KafkaCluster};
pub use error::KafkaError;
pub use group::{GroupMember, GroupSettings};
pub use letters::DeadLetters;
pub use reader::KafkaSource;
pub use recent::Recent;
pub use secure::{Sasl, Scram, Security, Tls};
pub use sifted::{Sifted, Ward};
pub use whole::{Shape, Whole};

/// The name of a topic's log that never went back.
fn topic_name(topic: Uuid) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(topic.as_bytes())
}

/// The offset of a record that Kafka numbers so.
fn offset_of(kafka: i64) -> Offset {
    next_to(kafka.saturating_add(1))
}

/// The offset up to which everything has been read when Kafka is asked for this one next.
fn next_to(kafka: i64) -> Offset {
    Offset::new(u64::try_from(kafka).unwrap_or(0))
}

/// What Kafka is asked for when everything up to this has been read.
fn next_after(offset: Offset) -> i64 {
    i64::try_from(offset.number()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_first_offset_is_behind_the_beginning() {
        assert_eq!(next_after(Offset::BEFORE_ALL), 0);
        assert_eq!(offset_of(0), Offset::new(1));
        assert_eq!(next_after(offset_of(41)), 42);
        assert_eq!(next_to(42), offset_of(41));
        assert_eq!(next_to(-1), Offset::BEFORE_ALL);
    }
}
