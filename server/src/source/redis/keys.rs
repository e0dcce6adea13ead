//! What the keys of a partition's log are called. `docs/reference/redis-streams.md` is the contract.

/// The layout that this code reads and writes; another number is refused.
pub(super) const LAYOUT: &str = "1";

/// The keys of one partition. All have one hash tag, so a cluster keeps them together and one script sees them all.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// The stream.
    pub(super) log: String,
    /// The hash with the log's name.
    pub(super) epoch: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, stream: &str, partition: u32) -> Self {
        let home = format!("{prefix}:{{{stream}/{partition}}}");
        Self {
            log: format!("{home}:log"),
            epoch: format!("{home}:log:epoch"),
        }
    }

    /// What a writer wrote last.
    pub(super) fn writer(&self, name: &str) -> String {
        format!("{}:writer:{name}", self.log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_partition_has_its_hash_tag() {
        let keys = Keys::new("tg", "departures", 3);
        assert_eq!(keys.log, "tg:{departures/3}:log");
        assert_eq!(keys.epoch, "tg:{departures/3}:log:epoch");
        assert_eq!(keys.writer("w"), "tg:{departures/3}:log:writer:w");
    }
}
