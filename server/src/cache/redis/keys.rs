//! What the keys of a partition are called, and how a row stands in them. `docs/reference/cache-layout.md` is the contract.

use super::header::Generation;

/// The layout that this code reads and writes; another number is refused.
pub const LAYOUT: u32 = 1;
/// What keys begin with, unless the options say otherwise.
pub const PREFIX: &str = "tg";

/// The keys of one partition. All have one hash tag, so a cluster keeps them together and one script sees them all.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    home: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, stream: &str, partition: u32) -> Self {
        Self {
            home: format!("{prefix}:{{{stream}/{partition}}}"),
        }
    }
    /// The hash with the layout's number, the current generation's name, and every generation's header.
    pub(super) fn home(&self) -> &str {
        &self.home
    }
    /// The sorted set of a generation's channels, `name last-change` each.
    pub(super) fn manifest(&self, generation: &Generation) -> String {
        format!("{}:{generation}:manifest", self.home)
    }
    /// The hash of a channel's rows, and of the sentinel that says it is whole.
    pub(super) fn rows(&self, generation: &Generation, channel: &str) -> String {
        format!("{}:{generation}:rows:{channel}", self.home)
    }
    /// The sorted set of a channel's row ids: what pages are cut from.
    pub(super) fn ids(&self, generation: &Generation, channel: &str) -> String {
        format!("{}:{generation}:ids:{channel}", self.home)
    }
}

/// The partition of a home key with this prefix and stream, if it is one.
pub(super) fn partition_of(home: &str, prefix: &str, stream: &str) -> Option<u32> {
    home.strip_prefix(prefix)?
        .strip_prefix(":{")?
        .strip_prefix(stream)?
        .strip_prefix('/')?
        .strip_suffix('}')?
        .parse()
        .ok()
}

/// A row's field in the hash, and its member in the set of ids: behind `=`, since a row id may be any text, the sentinel's too.
pub(super) fn field(row: &str) -> String {
    format!("={row}")
}

/// Where a page behind this row begins in the set of ids.
pub(super) fn behind_row(row: Option<&str>) -> String {
    row.map_or_else(|| "-".to_owned(), |row| format!("(={row}"))
}

/// Where a page of the manifest behind this channel begins: an entry is the name, a space and digits.
pub(super) fn behind_channel(name: Option<&str>) -> String {
    name.map_or_else(|| "-".to_owned(), |name| format!("({name}!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_partition_has_its_hash_tag() {
        let keys = Keys::new(PREFIX, "departures", 3);
        let generation: Generation = "g1".parse().unwrap();
        assert_eq!(keys.home(), "tg:{departures/3}");
        assert_eq!(keys.manifest(&generation), "tg:{departures/3}:g1:manifest");
        assert_eq!(
            keys.rows(&generation, "{JFK}"),
            "tg:{departures/3}:g1:rows:{JFK}"
        );
        assert_eq!(keys.ids(&generation, "JFK"), "tg:{departures/3}:g1:ids:JFK");
    }

    #[test]
    fn partitions_are_found_by_their_home() {
        let of = |home| partition_of(home, "tg", "departures");
        assert_eq!(of("tg:{departures/12}"), Some(12));
        for other in [
            "tg:{departures2/1}",
            "tg:{departures/1}:g:manifest",
            "xy:{departures/1}",
            "tg:{departures/-1}",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
