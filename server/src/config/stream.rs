//! `[[streams]]`: what each stream is.
//!
//! Does: reads a stream's table. Owns: the defaults of a stream.
//! Never knows: how records are read, decoded or kept. Keeps: `channel` and `row` come from what tombstones have too.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{
    KafkaConfig, RedisConfig, Selector,
    kafka::read_topic,
    units::{DURATION_MAX, KIB, MIB, SIZE_MAX},
    walk::Section,
};
use crate::model::{
    Generations, Mode, Placement, Placing, PoisonRule, Policy, RowId, check_stream_name,
};

/// One stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// Its name, as [`check_stream_name`] has it.
    pub name: String,
    /// What its channels are; default `view`.
    pub mode: Mode,
    /// Its lanes, 1 to 1024, or 64 where rows are spread (so that a token fits); default 1.
    pub partitions: u32,
    /// How many it had before, and has; default: always as many.
    pub generations: Generations,
    /// How records are placed in them; default `by_channel`.
    pub placement: Placement,
    /// Where records come from; default: the embedded engine.
    pub source: SourceConfig,
    /// Where its views are folded, if it is a stream of Kafka or Redis and there is a cache; default `shared`.
    pub cache: CacheUse,
    /// How records are written; default `json`.
    pub format: Format,
    /// What names a record's channel; default `$key/0`.
    pub channel: Selector,
    /// What names a record's row; default `$key/1`; none: each channel is one row.
    pub row: Option<Selector>,
    /// What gives a record's event time, in milliseconds since 1970; default: none, so what the publisher gave as `ts`, else the append time.
    pub event_time: Option<Selector>,
    /// The newest updates of each partition that the node keeps.
    pub tail: TailConfig,
    /// Whether its partitions are read also while nobody needs them; default: those of Kafka only where each node folds the views by
    /// itself. Embedded ones always are.
    pub eager: Option<bool>,
    /// How long the others are read after the last who needed them has left, 1 s to 1 d; default 1 min.
    pub linger: Duration,
    /// How old the newest proof of a live view may be, 100 ms to 1 h; default 5 s.
    pub freshness_slo: Duration,
    /// What happens to a line whose socket takes no more; default `conflate` for views, `drop_oldest` for events.
    pub slow_consumer: Policy,
    /// How large a view may become.
    pub view_max: ViewMax,
    /// Rows of a view whose last change the log took so long ago are deleted, 1 s to 3650 d; default: none, so never.
    pub row_ttl: Option<Duration>,
    /// After which silence the producer counts as dead, 100 ms to 3650 d; default: none, so never.
    pub expect_every: Option<Duration>,
    /// JSON text that stands in for each of its views, marked, until its log has been read for the first time: the data of each row
    /// under its id, or of the only one; `limits.record_bytes` at most; default: none.
    pub default: Option<String>,
    /// What is done with records of Kafka that mean nothing; default `skip`.
    pub poison: PoisonRule,
    /// The topic, on the same brokers, where they are put with `quarantine`; default: none.
    pub dead_letter: Option<String>,
    /// How often a record of the node's own measures it, 100 ms to 1 h; default: none, so never.
    pub canary: Option<Duration>,
    /// A bug that it has on purpose; default: none.
    #[cfg(feature = "seeded-bugs")]
    pub seeded_bug: Option<crate::model::SeededBug>,
}

/// Where a stream's records come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceConfig {
    /// The embedded engine's log: in this process's memory, or in its data directory.
    Embedded {
        /// What each partition of the log keeps.
        retention: Retention,
    },
    /// A topic of Kafka, whose partitions are the stream's.
    Kafka(KafkaConfig),
    /// Streams of Redis, one for each partition.
    Redis(RedisConfig),
}

/// What each partition of a log keeps: what is within all bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Records, 1 to 2^32 − 1; default: none, so as many as the other bounds allow.
    pub records: Option<usize>,
    /// Bytes of records, at least `limits.record_bytes`; default 256 MiB.
    pub bytes: usize,
    /// Age of a record, 1 s to 3650 d; default 1 h.
    pub age: Duration,
}

/// What each partition's tail keeps: what is within both bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailConfig {
    /// Bytes of updates, at least `limits.record_bytes`; default 64 MiB.
    pub bytes: usize,
    /// Age of an update, 1 s to 3650 d; default 10 min.
    pub age: Duration,
}

/// How large one view may become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewMax {
    /// Rows, 1 to 100,000,000; default 100,000.
    pub rows: usize,
    /// Bytes of its rows, at least `limits.record_bytes`; default 16 MiB.
    pub bytes: usize,
}

/// Where views are folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheUse {
    /// By materializers into the cache, once for all nodes.
    Shared,
    /// By each node, in its own memory.
    None,
}

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON text.
    Json,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            mode: Mode::View,
            partitions: 1,
            generations: Generations::single(1),
            placement: Placement::ByChannel,
            source: SourceConfig::Embedded {
                retention: Retention::default(),
            },
            cache: CacheUse::Shared,
            format: Format::Json,
            channel: Selector::Key("/0".into()),
            row: Some(Selector::Key("/1".into())),
            event_time: None,
            tail: TailConfig {
                bytes: 64 * MIB,
                age: Duration::from_secs(600),
            },
            eager: None,
            linger: Duration::from_secs(60),
            freshness_slo: Duration::from_secs(5),
            slow_consumer: Policy::Conflate,
            view_max: ViewMax {
                rows: 100_000,
                bytes: 16 * MIB,
            },
            row_ttl: None,
            expect_every: None,
            default: None,
            poison: PoisonRule::Skip,
            dead_letter: None,
            canary: None,
            #[cfg(feature = "seeded-bugs")]
            seeded_bug: None,
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            records: None,
            bytes: 256 * MIB,
            age: Duration::from_secs(3600),
        }
    }
}

/// How rows come out of records: another number wherever the same records would give other rows than before.
const FOLDING: u32 = 2;

/// The words of the rules for records that mean nothing.
const POISON: [(&str, PoisonRule); 3] = [
    ("skip", PoisonRule::Skip),
    ("quarantine", PoisonRule::Quarantine),
    ("halt", PoisonRule::Halt),
];

/// The words of the bugs that a stream may have on purpose.
#[cfg(feature = "seeded-bugs")]
const SEEDED_BUGS: [(&str, crate::model::SeededBug); 5] = [
    ("lose", crate::model::SeededBug::Lose),
    ("double", crate::model::SeededBug::Double),
    ("swap", crate::model::SeededBug::Swap),
    ("hide", crate::model::SeededBug::Hide),
    ("misplace", crate::model::SeededBug::Misplace),
];
/// Bounds of how long something is kept.
pub(super) const AGES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=DURATION_MAX;
/// Why a channel or a row is in the key.
const WHY: &str = "tombstones have no value and embedded records no headers";
/// Bounds of how long partitions are read that nobody needs.
const LINGERS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);
/// The shortest duration that makes sense for freshness.
pub(super) const SHORTEST: Duration = Duration::from_millis(100);

impl StreamConfig {
    /// The same for a stream of another name, which the caller has checked.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    /// Whether a cache holds its views where there is one: those of Kafka and of Redis, unless it says otherwise.
    #[must_use]
    pub const fn is_cacheable(&self) -> bool {
        let elsewhere = !matches!(self.source, SourceConfig::Embedded { .. });
        elsewhere && matches!((self.mode, self.cache), (Mode::View, CacheUse::Shared))
    }

    /// How many records a partition may have that a node folds by itself while the cache does not answer. How many a stream of Redis has
    /// its offsets don't say.
    #[must_use]
    pub const fn folds_alone(&self) -> u32 {
        match &self.source {
            SourceConfig::Kafka(kafka) => kafka.folds_alone,
            SourceConfig::Embedded { .. } | SourceConfig::Redis(_) => 0,
        }
    }

    /// How long its partitions are read that nobody needs any more; none: always. Views that this node folds by itself it would have
    /// to fold while somebody waits; `cached` ones, and events, begin close to the log's end.
    #[must_use]
    pub fn lingers(&self, cached: bool) -> Option<Duration> {
        let folded_here = self.mode == Mode::View && !cached;
        let eager = match self.source {
            SourceConfig::Embedded { .. } => true,
            SourceConfig::Kafka(_) | SourceConfig::Redis(_) => self.eager.unwrap_or(folded_here),
        };
        (!eager).then_some(self.linger)
    }

    /// Whether what is published here reads back as what it was: by the keys that this program gives, and where it puts them.
    #[must_use]
    pub fn reads_own_keys(&self) -> bool {
        let is = |selector: &Selector, pointer: &str| *selector == Selector::Key(pointer.into());
        is(&self.channel, "/0") && self.row.as_ref().is_some_and(|row| is(row, "/1"))
    }

    /// Where others place its channels: what this program places is where it belongs.
    #[must_use]
    pub fn placing(&self) -> Placing {
        match (&self.source, self.placement) {
            (SourceConfig::Kafka(_) | SourceConfig::Redis(_), Placement::ByChannel) => {
                Placing::among(self.generations)
            }
            (SourceConfig::Kafka(_) | SourceConfig::Redis(_), Placement::Spread)
            | (SourceConfig::Embedded { .. }, _) => Placing::default(),
        }
    }

    /// What its rows depend on beside the records, as one word: rows that were folded under another one are of no use.
    #[must_use]
    pub fn fold_id(&self) -> String {
        let format = match self.format {
            Format::Json => "json",
        };
        let text = |selector: &Option<Selector>| selector.as_ref().map(ToString::to_string);
        let all = (
            FOLDING,
            format,
            self.channel.to_string(),
            text(&self.row),
            text(&self.event_time),
            self.placing().first(),
        );
        // As JSON, so that no two selectors are read as one; numbers and texts always have such a form.
        serde_json::to_string(&all).unwrap_or_default()
    }

    /// The rows of its default, as JSON text; none where it has no default, or one that is no view.
    #[must_use]
    pub fn default_rows(&self) -> Option<Vec<(RowId, Bytes)>> {
        let text = self.default.as_deref()?;
        if self.row.is_none() {
            return Some(vec![(RowId::default(), text.to_owned().into())]);
        }
        let rows: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
        let row = |(id, data): (String, Box<RawValue>)| {
            let id = RowId::new(&id).ok().filter(|id| !id.as_str().is_empty())?;
            Some((id, data.get().to_owned().into()))
        };
        rows.into_iter().map(row).collect()
    }

    /// What happens by default to a line of such a stream whose socket takes no more.
    #[must_use]
    pub const fn slow_consumer_of(mode: Mode) -> Policy {
        match mode {
            Mode::View => Policy::Conflate,
            Mode::Events => Policy::DropOldest,
        }
    }

    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let name = read_name(section);
        let given = section.has("mode");
        let mode = section.choice("mode", &[("view", Mode::View), ("events", Mode::Events)]);
        let slow_consumer = match mode {
            None if given => read_any_policy(section),
            _ => read_policy(section, mode.unwrap_or(default.mode)),
        };
        let generations = read_partitions(section).unwrap_or(default.generations);
        let (mut tail, mut view_max) = (section.table("tail"), section.table("view_max"));
        Self {
            name: name.clone(),
            mode: mode.unwrap_or(default.mode),
            partitions: generations.newest(),
            generations,
            placement: section
                .choice(
                    "placement",
                    &[
                        ("by_channel", Placement::ByChannel),
                        ("spread", Placement::Spread),
                    ],
                )
                .unwrap_or(default.placement),
            source: section.within("source", |source| read_source(source, &name)),
            cache: section
                .choice(
                    "cache",
                    &[("shared", CacheUse::Shared), ("none", CacheUse::None)],
                )
                .unwrap_or(default.cache),
            format: section
                .choice("format", &[("json", Format::Json)])
                .unwrap_or(default.format),
            channel: read_channel(section).unwrap_or(default.channel),
            row: read_row(section).unwrap_or(default.row),
            event_time: read_event_time(section),
            tail: TailConfig {
                bytes: tail
                    .size("bytes", KIB..=SIZE_MAX)
                    .unwrap_or(default.tail.bytes),
                age: tail.duration("age", AGES).unwrap_or(default.tail.age),
            },
            eager: section.flag("eager"),
            linger: section
                .duration("linger", LINGERS)
                .unwrap_or(default.linger),
            freshness_slo: section
                .duration("freshness_slo", SHORTEST..=Duration::from_secs(3600))
                .unwrap_or(default.freshness_slo),
            slow_consumer,
            view_max: ViewMax {
                rows: view_max
                    .count("rows", 1..=100_000_000)
                    .unwrap_or(default.view_max.rows),
                bytes: view_max
                    .size("bytes", KIB..=SIZE_MAX)
                    .unwrap_or(default.view_max.bytes),
            },
            row_ttl: section.duration("row_ttl", AGES),
            expect_every: section.duration("expect_every", SHORTEST..=DURATION_MAX),
            default: section.json("default"),
            poison: section.choice("poison", &POISON).unwrap_or_default(),
            dead_letter: read_topic(section, "dead_letter"),
            canary: section.duration("canary", SHORTEST..=Duration::from_secs(3600)),
            #[cfg(feature = "seeded-bugs")]
            seeded_bug: section.choice("seeded_bug", &SEEDED_BUGS),
        }
    }
}

fn read_name(section: &mut Section<'_>) -> String {
    let expected = "1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit";
    section.need("name", expected);
    let name = section.text("name", expected, |text| {
        check_stream_name(text).is_ok().then(|| text.to_owned())
    });
    if let Some(name) = &name {
        section.unique("name", name);
    }
    name.unwrap_or_default()
}

/// A number, or the numbers that there were, oldest first.
fn read_partitions(section: &mut Section<'_>) -> Option<Generations> {
    let expected = "an integer from 1 to 1024, or a list of them, oldest first, each a multiple of the one before, since a channel that moves must never come back";
    section.numbers("partitions", expected, |counts| {
        let in_bounds = counts.iter().all(|count| (1..=1024).contains(count));
        Generations::of(counts).filter(|_| in_bounds)
    })
}

fn read_source(section: &mut Section<'_>, stream: &str) -> SourceConfig {
    let given = section.has("kind");
    match section.choice(
        "kind",
        &[
            ("embedded", Kind::Embedded),
            ("kafka", Kind::Kafka),
            ("redis", Kind::Redis),
        ],
    ) {
        Some(Kind::Kafka) => return SourceConfig::Kafka(KafkaConfig::read(section, stream)),
        Some(Kind::Redis) => return SourceConfig::Redis(RedisConfig::read(section)),
        // The keys of another kind are no mistakes of their own.
        None if given => section.forget(),
        Some(Kind::Embedded) | None => {}
    }
    let default = Retention::default();
    let mut retention = section.table("retention");
    let bytes = retention
        .size("bytes", KIB..=SIZE_MAX)
        .unwrap_or(default.bytes);
    let age = retention.duration("age", AGES).unwrap_or(default.age);
    let records = retention
        .count("records", 0..=u32::MAX)
        .filter(|&records| records > 0);
    SourceConfig::Embedded {
        retention: Retention {
            records,
            bytes,
            age,
        },
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Embedded,
    Kafka,
    Redis,
}

/// Views keep each row's last value, which `drop_oldest` may drop; events keep each record, which `conflate` drops.
fn read_policy(section: &mut Section<'_>, mode: Mode) -> Policy {
    let default = StreamConfig::slow_consumer_of(mode);
    let (word, name) = match mode {
        Mode::View => ("conflate", "view"),
        Mode::Events => ("drop_oldest", "events"),
    };
    let expected = format!("{word:?} or \"disconnect\", since mode is {name:?}");
    let policy = section.text("slow_consumer", &expected, |text| match text {
        "disconnect" => Some(Policy::Disconnect),
        _ => (text == word).then_some(default),
    });
    policy.unwrap_or(default)
}

/// Where the mode is wrong, any policy may be right.
fn read_any_policy(section: &mut Section<'_>) -> Policy {
    let words = [
        ("conflate", Policy::Conflate),
        ("drop_oldest", Policy::DropOldest),
        ("disconnect", Policy::Disconnect),
    ];
    section
        .choice("slow_consumer", &words)
        .unwrap_or(Policy::Conflate)
}

/// A selector into what every record has, tombstones too; the embedded engine's records have no headers.
fn key_selector(text: &str) -> Option<Selector> {
    Selector::parse(text).filter(|selector| matches!(selector, Selector::Key(_)))
}

fn read_channel(section: &mut Section<'_>) -> Option<Selector> {
    section.text(
        "channel",
        &format!("$key or $key/pointer, since {WHY}"),
        key_selector,
    )
}

fn read_row(section: &mut Section<'_>) -> Option<Option<Selector>> {
    let expected = format!("\"none\", $key or $key/pointer, since {WHY}");
    section.text("row", &expected, |text| {
        if text == "none" {
            Some(None)
        } else {
            key_selector(text).map(Some)
        }
    })
}

fn read_event_time(section: &mut Section<'_>) -> Option<Selector> {
    let expected = "$key, $key/pointer or $value/pointer, since embedded records have no headers";
    let fits = |selector: &Selector| !matches!(selector, Selector::Header(_));
    section.text("event_time", expected, |text| {
        Selector::parse(text).filter(fits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_need_is_read_what_can_be_begun_anew_in_no_time() {
        let stream = |kafka: bool, mode, eager| {
            let source = if kafka {
                SourceConfig::Kafka(KafkaConfig {
                    brokers: Vec::new(),
                    security: Box::default(),
                    topic: String::new(),
                    timeout: Duration::ZERO,
                    publish_timeout: Duration::ZERO,
                    compacts_after: Duration::ZERO,
                    tombstones_kept: Duration::ZERO,
                    incomplete_history: false,
                    folds_alone: 0,
                })
            } else {
                StreamConfig::default().source
            };
            StreamConfig {
                source,
                mode,
                eager,
                ..StreamConfig::default()
            }
        };
        let linger = Some(Duration::from_secs(60));
        let check = |kafka, mode, eager, cached, expected| {
            let lingers = stream(kafka, mode, eager).lingers(cached);
            assert_eq!(lingers, expected, "{kafka} {mode:?} {eager:?} {cached}");
        };
        check(true, Mode::View, None, true, linger);
        check(true, Mode::Events, None, false, linger);
        check(true, Mode::View, None, false, None);
        check(true, Mode::View, Some(false), false, linger);
        check(true, Mode::View, Some(true), true, None);
        check(true, Mode::Events, Some(true), false, None);
        check(false, Mode::View, Some(false), false, None);
    }

    #[test]
    fn a_fold_is_named_by_what_its_rows_depend_on() {
        let stream = StreamConfig::default();
        assert_eq!(
            stream.fold_id(),
            r#"[2,"json","$key/0","$key/1",null,null]"#
        );
        let key = |pointer: &str| Selector::Key(pointer.into());
        let others = [
            StreamConfig {
                channel: key("/2"),
                ..stream.clone()
            },
            StreamConfig {
                row: None,
                ..stream.clone()
            },
            StreamConfig {
                row: Some(key("/2")),
                ..stream.clone()
            },
            StreamConfig {
                event_time: Some(Selector::Value("/ts".into())),
                ..stream.clone()
            },
        ];
        let ids: std::collections::BTreeSet<_> = others.iter().map(StreamConfig::fold_id).collect();
        assert!(
            ids.len() == 4 && !ids.contains(&stream.fold_id()),
            "{ids:?}"
        );
        assert_eq!(stream.named("another").fold_id(), stream.fold_id());
    }
}
