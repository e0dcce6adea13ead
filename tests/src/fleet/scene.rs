//! What is written and read in a fleet's run: the streams, their channels and rows, and how a node is told of them.
//!
//! Does: names everything once, for the writer, the clients, the truth and the configuration. Owns: nothing that changes.

use std::ops::Range;

use tidegate::{
    model::{Mode, Placement},
    streams::partition_of,
};

/// Milliseconds since the run began.
pub(super) type Ms = i64;
/// A row's number in its channel.
pub(super) type Row = u16;
/// What a record says: each is another number.
pub(super) type Number = u64;

/// How old the newest proof of a live view may be.
pub(super) const SLO_MS: Ms = 1000;
/// Between two heartbeats.
pub(super) const HEARTBEAT_MS: Ms = 1000;
/// How long the log keeps a record that a newer one of its key has superseded, at least: longer than a broker needs to come
/// back, so that who reads along has read it before.
pub(super) const COMPACTS_AFTER_MS: Ms = 20_000;
/// How long the log keeps tombstones.
pub(super) const TOMBSTONES_KEPT_MS: Ms = 12_000;

/// One stream, and the topic that it is read from.
pub(super) struct StreamScene {
    pub(super) name: &'static str,
    pub(super) mode: Mode,
    pub(super) placement: Placement,
    pub(super) partitions: u32,
    /// Its channels among all.
    pub(super) channels: Range<usize>,
    /// Rows of a channel.
    pub(super) rows: Row,
    /// Between two records of it, in milliseconds.
    pub(super) pace_ms: u64,
    /// What a node's tail keeps of it.
    tail: &'static str,
}

impl StreamScene {
    /// Whether the topic keeps the newest record of each key alone.
    pub(super) fn is_compacted(&self) -> bool {
        self.mode == Mode::View
    }

    /// How the topic is made.
    pub(super) fn topic_settings(&self) -> Vec<(&'static str, String)> {
        if !self.is_compacted() {
            return vec![("cleanup.policy", "delete".to_owned())];
        }
        vec![
            // Records may be deleted by hand only where `delete` stands too.
            ("cleanup.policy", "compact,delete".to_owned()),
            ("retention.ms", "-1".to_owned()),
            ("segment.ms", "1500".to_owned()),
            ("min.cleanable.dirty.ratio", "0.01".to_owned()),
            ("min.compaction.lag.ms", COMPACTS_AFTER_MS.to_string()),
            (
                "max.compaction.lag.ms",
                (COMPACTS_AFTER_MS + 500).to_string(),
            ),
            ("delete.retention.ms", TOMBSTONES_KEPT_MS.to_string()),
        ]
    }
}

/// All of them.
pub(super) struct Scene {
    pub(super) streams: Vec<StreamScene>,
    /// `stream/name` of each channel, and its stream.
    pub(super) channels: Vec<(String, usize)>,
}

impl Scene {
    /// A view by channel, a view that is spread, and events.
    pub(super) fn new() -> Self {
        let mut scene = Self {
            streams: Vec::new(),
            channels: Vec::new(),
        };
        scene.add(
            "board",
            Mode::View,
            Placement::ByChannel,
            (2, 6, 12, 25),
            "{ bytes = \"16KiB\" }",
        );
        scene.add(
            "spread",
            Mode::View,
            Placement::Spread,
            (3, 3, 24, 40),
            "{ bytes = \"256KiB\" }",
        );
        scene.add(
            "trades",
            Mode::Events,
            Placement::ByChannel,
            (2, 4, 1, 35),
            "{ bytes = \"64KiB\" }",
        );
        scene
    }

    fn add(
        &mut self,
        name: &'static str,
        mode: Mode,
        placement: Placement,
        (partitions, channels, rows, pace_ms): (u32, usize, Row, u64),
        tail: &'static str,
    ) {
        let first = self.channels.len();
        let names = (0..channels).map(|n| (format!("{name}/c{n}"), self.streams.len()));
        self.channels.extend(names);
        self.streams.push(StreamScene {
            name,
            mode,
            placement,
            partitions,
            channels: first..first + channels,
            rows,
            pace_ms,
            tail,
        });
    }

    /// The number of a channel by its name.
    pub(super) fn channel(&self, name: &str) -> Option<usize> {
        self.channels.iter().position(|(known, _)| known == name)
    }

    /// The stream of a channel.
    pub(super) fn stream_of(&self, channel: usize) -> &StreamScene {
        &self.streams[self.channels[channel].1]
    }

    /// A channel's name within its stream.
    pub(super) fn inner_name(&self, channel: usize) -> &str {
        let name = &self.channels[channel].0;
        name.split_once('/').map_or(name, |(_, inner)| inner)
    }

    /// The partitions where a channel's rows are.
    pub(super) fn partitions_of(&self, channel: usize) -> Vec<u32> {
        let stream = self.stream_of(channel);
        match stream.placement {
            Placement::Spread => (0..stream.partitions).collect(),
            Placement::ByChannel => vec![self.partition_of(channel, 0)],
        }
    }

    /// Where a row is written.
    pub(super) fn partition_of(&self, channel: usize, row: Row) -> u32 {
        let stream = self.stream_of(channel);
        let row = match stream.placement {
            Placement::Spread => row_name(row),
            Placement::ByChannel => String::new(),
        };
        partition_of(self.inner_name(channel), &row, stream.partitions)
    }

    /// The key of a row's records.
    pub(super) fn key(&self, channel: usize, row: Row) -> String {
        format!("[\"{}\",\"{}\"]", self.inner_name(channel), row_name(row))
    }

    /// What a key names: a channel of this stream, and its row.
    pub(super) fn of_key(&self, stream: usize, key: &[u8]) -> Option<(usize, Row)> {
        let (name, row): (String, String) = serde_json::from_slice(key).ok()?;
        let channel = self.channel(&format!("{}/{name}", self.streams[stream].name))?;
        Some((channel, row_of(&row)?))
    }

    /// The streams of a node's configuration, as it reads them from these brokers.
    pub(super) fn streams_text(&self, brokers: &[String], bug: Option<&str>) -> String {
        let text = self.streams.iter().map(|stream| {
            let mode = if stream.mode == Mode::View { "view" } else { "events" };
            let placement = match stream.placement {
                Placement::ByChannel => "by_channel",
                Placement::Spread => "spread",
            };
            let (name, partitions, tail) = (stream.name, stream.partitions, stream.tail);
            let bug = bug.map_or(String::new(), |bug| format!("seeded_bug = \"{bug}\"\n"));
            format!(
                "[[streams]]\nname = \"{name}\"\nmode = \"{mode}\"\nplacement = \"{placement}\"\n\
                 partitions = {partitions}\ntail = {tail}\nfreshness_slo = \"{SLO_MS}ms\"\n\
                 source = {{ kind = \"kafka\", brokers = {brokers:?}, compacts_after = \"{COMPACTS_AFTER_MS}ms\", \
                 tombstones_kept = \"{TOMBSTONES_KEPT_MS}ms\" }}\n{bug}"
            )
        });
        text.collect()
    }
}

/// A row's name.
pub(super) fn row_name(row: Row) -> String {
    format!("r{row}")
}

/// A row by its name.
pub(super) fn row_of(name: &str) -> Option<Row> {
    name.strip_prefix('r')?.parse().ok()
}
