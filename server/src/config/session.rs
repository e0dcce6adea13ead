//! `[session]` and `[limits]`: what every session, and the node, keep to.
//!
//! Does: reads the two sections. Owns: their defaults and bounds. Never knows: a clock or a queue; relations between
//! values are in `relations.rs`. Keeps: every value has an upper bound.

use std::{num::NonZeroU32, time::Duration};

use super::{
    units::{DURATION_MAX, GIB, KIB, MIB, SIZE_MAX},
    walk::Section,
};

/// What every session keeps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// How often a channel's proof of freshness is sent, 100 ms to 1 h; default 25 s.
    pub heartbeat: Duration,
    /// How long a client shows a view as live after a proof, longer than `heartbeat`; default: none, which means
    /// `heartbeat` and the stream's `freshness_slo` together.
    pub live_for: Option<Duration>,
    /// What a connection may be owed.
    pub outbox: OutboxConfig,
    /// What a connection that is owed something must take, or it is closed as a slow consumer.
    pub drain_rate_min: DrainRate,
    /// How the node shuts down.
    pub drain: DrainConfig,
}

/// What a connection may be owed while its socket takes no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Bytes, at least `limits.record_bytes`; default 1 MiB.
    pub bytes: usize,
    /// Frames, 1 to 1,000,000; default 4096.
    pub frames: usize,
}

/// A minimal rate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainRate {
    /// Bytes in that time, 1 B to 1 GiB; default 1 KiB.
    pub bytes: usize,
    /// The time, 100 ms to 1 h; default 30 s.
    pub over: Duration,
}

/// How the node shuts down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainConfig {
    /// Over which time clients are told to reconnect, 0 to 1 h; default 5 s.
    pub window: Duration,
    /// When whatever is left is closed, counted from the start of the drain, longer than `window`, 1 h at most; default
    /// 25 s.
    pub deadline: Duration,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(25),
            live_for: None,
            outbox: OutboxConfig {
                bytes: MIB,
                frames: 4096,
            },
            drain_rate_min: DrainRate {
                bytes: KIB,
                over: Duration::from_secs(30),
            },
            drain: DrainConfig {
                window: Duration::from_secs(5),
                deadline: Duration::from_secs(25),
            },
        }
    }
}

/// The longest of the short durations.
const HOUR: Duration = Duration::from_secs(3600);
/// The longest that a head may take.
const MINUTES: Duration = Duration::from_secs(300);
/// The shortest duration that makes sense for something that happens again and again.
const SHORTEST: Duration = Duration::from_millis(100);

impl SessionConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let mut outbox = section.table("outbox");
        let mut rate = section.table("drain_rate_min");
        let mut drain = section.table("drain");
        Self {
            heartbeat: section
                .duration("heartbeat", SHORTEST..=HOUR)
                .unwrap_or(default.heartbeat),
            live_for: section.duration("live_for", SHORTEST..=DURATION_MAX),
            outbox: OutboxConfig {
                bytes: outbox
                    .size("bytes", KIB..=GIB)
                    .unwrap_or(default.outbox.bytes),
                frames: outbox
                    .count("frames", 1..=1_000_000)
                    .unwrap_or(default.outbox.frames),
            },
            drain_rate_min: DrainRate {
                bytes: rate
                    .size("bytes", 1..=GIB)
                    .unwrap_or(default.drain_rate_min.bytes),
                over: rate
                    .duration("over", SHORTEST..=HOUR)
                    .unwrap_or(default.drain_rate_min.over),
            },
            drain: DrainConfig {
                window: drain
                    .duration("window", Duration::ZERO..=HOUR)
                    .unwrap_or(default.drain.window),
                deadline: drain
                    .duration("deadline", SHORTEST..=HOUR)
                    .unwrap_or(default.drain.deadline),
            },
        }
    }
}

/// What the node keeps to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Bytes for tails, embedded logs, outboxes and unfinished messages together, 16 MiB to 16 TiB; default 1 GiB.
    pub memory: usize,
    /// Longest message from a client, in bytes, 1 KiB to 256 MiB; default 1 MiB.
    pub message_bytes: usize,
    /// Longest record, in bytes, 1 KiB to `message_bytes`; default 1 MiB.
    pub record_bytes: usize,
    /// Channels that a connection may have, 1 to 100,000; default 100.
    pub channels_per_connection: usize,
    /// Connections that the node may have, 1 to 100,000,000; default 1,000,000.
    pub connections: usize,
    /// Connections that one address may have, of IPv6 one /64; default: none, so no limit.
    pub connections_per_address: Option<NonZeroU32>,
    /// Connections a second that the node takes; default: none, so no limit.
    pub connects_per_second: Option<NonZeroU32>,
    /// Connections a second that one address may try, of IPv6 one /64; default: none, so no limit.
    pub connects_per_second_per_address: Option<NonZeroU32>,
    /// Channels a second that a connection may subscribe to, beyond those that it may have; default 100.
    pub subscribes_per_second: Option<NonZeroU32>,
    /// Pings and refused messages a second of one connection; default 20.
    pub messages_per_second: Option<NonZeroU32>,
    /// Records a second that one key or token may publish; default: none, so no limit.
    pub publishes_per_second: Option<NonZeroU32>,
    /// Longest head of a request, in bytes, 1 KiB to 1 MiB; default 16 KiB.
    pub header_bytes: usize,
    /// Within which a request's head must come, from the connection's begin or the last answer on, 100 ms to 5 min;
    /// default 10 s.
    pub head_timeout: Duration,
    /// Within which a body must come, or its next line, and an answer's reader must take something, 100 ms to 1 h;
    /// default 30 s.
    pub body_timeout: Duration,
    /// Within which a WebSocket message that has begun must be whole, 100 ms to 1 h; default 30 s.
    pub message_timeout: Duration,
    /// Most records that one subscription may be replayed, 1 to 10,000,000; default 10,000.
    pub replay_records: usize,
    /// How long a subscription may wait for the node to come as far as its token, 0 to 1 h; default 5 s.
    pub resume_hold: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            memory: GIB,
            message_bytes: MIB,
            record_bytes: MIB,
            channels_per_connection: 100,
            connections: 1_000_000,
            connections_per_address: None,
            connects_per_second: None,
            connects_per_second_per_address: None,
            subscribes_per_second: NonZeroU32::new(100),
            messages_per_second: NonZeroU32::new(20),
            publishes_per_second: None,
            header_bytes: 16 * KIB,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            message_timeout: Duration::from_secs(30),
            replay_records: 10_000,
            resume_hold: Duration::from_secs(5),
        }
    }
}

impl LimitsConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let channels = section.count("channels_per_connection", 1..=100_000);
        let replay = section.count("replay_records", 1..=10_000_000);
        let mut rate = |key, default: Option<NonZeroU32>| {
            let given = section.number(key, 0..=1_000_000_000);
            given.map_or(default, NonZeroU32::new)
        };
        Self {
            connections_per_address: rate("connections_per_address", None),
            connects_per_second: rate("connects_per_second", None),
            connects_per_second_per_address: rate("connects_per_second_per_address", None),
            subscribes_per_second: rate("subscribes_per_second", default.subscribes_per_second),
            messages_per_second: rate("messages_per_second", default.messages_per_second),
            publishes_per_second: rate("publishes_per_second", None),
            memory: section
                .size("memory", 16 * MIB..=SIZE_MAX)
                .unwrap_or(default.memory),
            message_bytes: section
                .size("message_bytes", KIB..=256 * MIB)
                .unwrap_or(default.message_bytes),
            record_bytes: section
                .size("record_bytes", KIB..=256 * MIB)
                .unwrap_or(default.record_bytes),
            channels_per_connection: channels.unwrap_or(default.channels_per_connection),
            connections: section
                .count("connections", 1..=100_000_000)
                .unwrap_or(default.connections),
            header_bytes: section
                .size("header_bytes", KIB..=MIB)
                .unwrap_or(default.header_bytes),
            head_timeout: section
                .duration("head_timeout", SHORTEST..=MINUTES)
                .unwrap_or(default.head_timeout),
            body_timeout: section
                .duration("body_timeout", SHORTEST..=HOUR)
                .unwrap_or(default.body_timeout),
            message_timeout: section
                .duration("message_timeout", SHORTEST..=HOUR)
                .unwrap_or(default.message_timeout),
            replay_records: replay.unwrap_or(default.replay_records),
            resume_hold: section
                .duration("resume_hold", Duration::ZERO..=HOUR)
                .unwrap_or(default.resume_hold),
        }
    }
}
