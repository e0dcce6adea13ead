//! What must hold between two values.
//!
//! Does: checks relations, once every value is good by itself, and warns of what is allowed but unwise.
//! Owns: nothing. Never knows: the text that was read. Keeps: a value that is wrong by itself is in no relation, so one
//! mistake is reported once.

use std::time::Duration;

use super::{
    CacheConfig, Config, Permission, RedisConfig, Role, SourceConfig, StreamConfig,
    units::{show_duration, show_size},
    walk::Walk,
};
use crate::model::{Mode, Placement, PoisonRule};

/// Most partitions of a stream whose rows are spread: so many positions fit in a token.
const SPREAD_PARTITIONS_MAX: u32 = 64;

/// Notes every relation that does not hold; `paths` are those of the streams.
pub(super) fn check(config: &Config, paths: &[String], walk: &Walk) {
    check_access(config, walk);
    check_session(config, walk);
    check_records(config, walk);
    check_servers("cache", &config.cache, walk);
    check_roles(config, walk);
    for (stream, path) in config.streams.iter().zip(paths) {
        check_stream(config, walk, path, stream);
    }
}

fn check_access(config: &Config, walk: &Walk) {
    let (public, private) = (config.listen.address, config.admin.address);
    if public == private && public.port() != 0 && walk.clean(&["listen.address", "admin.address"]) {
        walk.note(
            "admin.address",
            format!("{private}, which listen.address is too"),
            "an address of its own".into(),
        );
    }
    if config.access.cookie.is_some() && config.listen.origins.iter().any(|origin| origin == "*") {
        let expected = "the origins that may use access.cookie: with \"*\" any page could act for its visitors";
        walk.note("listen.origins", "\"*\"".into(), expected.into());
    }
}

fn check_session(config: &Config, walk: &Walk) {
    let session = &config.session;
    if let Some(live_for) = session.live_for {
        longer(
            walk,
            ("session.live_for", live_for),
            ("session.heartbeat", session.heartbeat),
        );
    }
    longer(
        walk,
        ("session.drain.deadline", session.drain.deadline),
        ("session.drain.window", session.drain.window),
    );
}

/// Whatever holds records must hold the largest one.
fn check_records(config: &Config, walk: &Walk) {
    let (limits, record) = (
        &config.limits,
        ("limits.record_bytes", config.limits.record_bytes),
    );
    at_least(walk, ("limits.message_bytes", limits.message_bytes), record);
    at_least(
        walk,
        ("session.outbox.bytes", config.session.outbox.bytes),
        record,
    );
}

/// The servers of the cache, or of a stream of Redis, whose keys are at `path`.
fn check_servers(path: &str, cache: &CacheConfig, walk: &Walk) {
    let at = |key: &str| format!("{path}.{key}");
    let together = cache.cluster || cache.sentinel.is_some();
    if cache.redis.len() > 1 && !together && walk.clean(&[&at("cluster"), &at("sentinel")]) {
        walk.note(
            &at("redis"),
            format!("{} servers", cache.redis.len()),
            format!("one, unless {path}.cluster is true or {path}.sentinel names what they watch"),
        );
    }
    if cache.cluster && cache.sentinel.is_some() {
        let expected = format!("either {path}.cluster or {path}.sentinel");
        walk.note(&at("sentinel"), "sentinels of a cluster".into(), expected);
    }
    if !cache.user.is_empty() && cache.password.is_none() && walk.clean(&[&at("password_file")]) {
        walk.note(
            &at("user"),
            format!("{:?} without a password", cache.user),
            format!("{path}.password_file beside it"),
        );
    }
}

/// Who is told to fold must have something to fold, and somewhere to put it.
fn check_roles(config: &Config, walk: &Walk) {
    if !config.roles.contains(&Role::Materializer) || !walk.clean(&["cache.redis", "streams"]) {
        return;
    }
    if let Some(lacks) = config.cannot_materialize() {
        walk.note("roles", "\"materializer\"".into(), lacks.into());
    }
}

fn check_stream(config: &Config, walk: &Walk, path: &str, stream: &StreamConfig) {
    let record = ("limits.record_bytes", config.limits.record_bytes);
    match &stream.source {
        SourceConfig::Embedded { retention } => at_least(
            walk,
            (&format!("{path}.source.retention.bytes"), retention.bytes),
            record,
        ),
        SourceConfig::Kafka(_) if !cfg!(feature = "kafka") => walk.note(
            &format!("{path}.source.kind"),
            "\"kafka\"".into(),
            "\"embedded\": this program was built without the Cargo feature \"kafka\"".into(),
        ),
        SourceConfig::Kafka(_) if stream.row_ttl.is_some() => walk.note(
            &format!("{path}.row_ttl"),
            "a duration".into(),
            "none: of a stream of Kafka, rows are deleted by whoever writes them".into(),
        ),
        SourceConfig::Redis(redis) => check_redis(walk, path, (stream, redis)),
        // Else a proof could outlive the time in which nothing that it covers has been compacted.
        SourceConfig::Kafka(kafka) => longer(
            walk,
            (
                &format!("{path}.source.compacts_after"),
                kafka.compacts_after,
            ),
            (&format!("{path}.freshness_slo"), stream.freshness_slo),
        ),
    }
    at_least(
        walk,
        (&format!("{path}.tail.bytes"), stream.tail.bytes),
        record,
    );
    at_least(
        walk,
        (&format!("{path}.view_max.bytes"), stream.view_max.bytes),
        record,
    );
    check_eager(walk, path, stream);
    check_generations(config, walk, path, stream);
    let key = format!("{path}.partitions");
    let spread = stream.placement == Placement::Spread;
    if spread && stream.partitions > SPREAD_PARTITIONS_MAX && walk.clean(&[&key]) {
        let expected = format!(
            "at most {SPREAD_PARTITIONS_MAX} where placement is \"spread\", so that a token fits"
        );
        walk.note(&key, stream.partitions.to_string(), expected);
    }
    let (key, mode) = (format!("{path}.row_ttl"), format!("{path}.mode"));
    if let Some(ttl) = stream.row_ttl
        && stream.mode == Mode::Events
        && walk.clean(&[&key, &mode])
    {
        let expected = "no time, since mode is \"events\" and events have no rows".to_owned();
        walk.note(&key, format!("{:?}", show_duration(ttl)), expected);
    }
    check_poison(walk, path, stream);
    check_canary(walk, path, stream);
    let default = stream.default.as_ref().map_or(0, String::len);
    if default > record.1 && walk.clean(&[record.0]) {
        let expected = format!("at most limits.record_bytes ({})", show_size(record.1));
        walk.note(
            &format!("{path}.default"),
            format!("{default} bytes of JSON"),
            expected,
        );
    }
    check_default(walk, path, stream);
}

/// Views are folded from the log's beginning, so it may only be lost where that is said to be well.
fn check_redis(walk: &Walk, path: &str, (stream, redis): (&StreamConfig, &RedisConfig)) {
    check_servers(&format!("{path}.source"), &redis.servers, walk);
    let at = |key: &str| format!("{path}.{key}");
    if stream.row_ttl.is_some() {
        let expected = "none: of a stream of Redis, rows are deleted by whoever writes them";
        walk.note(&at("row_ttl"), "a duration".into(), expected.into());
    }
    let keeps_all = redis.records.is_none() && redis.age.is_none();
    let keys = [at("source.history"), at("source.retention"), at("mode")];
    if stream.mode == Mode::View
        && !keeps_all
        && !redis.incomplete_history
        && walk.clean(&keys.each_ref().map(String::as_str))
    {
        let expected = "nothing, since mode is \"view\" and a row whose record was trimmed would be missing; or history = \"incomplete\" beside it";
        walk.note(&keys[1], "bounds".into(), expected.into());
    }
}

/// A default is a view: the rows of it, which lie in one partition.
fn check_default(walk: &Walk, path: &str, stream: &StreamConfig) {
    let Some(default) = &stream.default else {
        return;
    };
    let keys = ["default", "mode", "placement", "partitions", "row"];
    let keys = keys.map(|key| format!("{path}.{key}"));
    if !walk.clean(&keys.each_ref().map(String::as_str)) {
        return;
    }
    let scattered = stream.placement == Placement::Spread && stream.partitions > 1;
    let expected = if stream.mode == Mode::Events {
        "none, since mode is \"events\" and events have no rows"
    } else if scattered {
        "none, since placement is \"spread\" and no partition knows which of its rows are its own"
    } else if stream.default_rows().is_none() {
        "an object with the data of each row, under the row's id of 1 to 256 bytes"
    } else {
        return;
    };
    walk.note(&keys[0], default.clone(), expected.to_owned());
}

/// What was where before is known of channels that are placed by their names in a topic, and of nothing else.
fn check_generations(config: &Config, walk: &Walk, path: &str, stream: &StreamConfig) {
    let keys = ["partitions", "placement", "source.kind"];
    let keys = keys.map(|key| format!("{path}.{key}"));
    let counts = stream.generations.counts();
    if counts.len() == 1 || !walk.clean(&keys.each_ref().map(String::as_str)) {
        return;
    }
    let expected = if matches!(stream.source, SourceConfig::Embedded { .. }) {
        "one integer, since the partitions of an embedded log never become more"
    } else if matches!(stream.source, SourceConfig::Redis(_)) {
        "one integer, since the partitions of a stream of Redis never become more"
    } else if stream.placement == Placement::Spread {
        "one integer, since placement is \"spread\" and nobody knows where a row was before"
    } else if config.cache.is_there() && stream.is_cacheable() {
        "one integer, since a cache holds its views, which keeps no graves; with cache = \"none\" nodes fold them themselves"
    } else {
        return;
    };
    walk.note(&keys[0], format!("{counts:?}"), expected.to_owned());
}

/// What is read at no cost is always read.
fn check_eager(walk: &Walk, path: &str, stream: &StreamConfig) {
    let (key, kind) = (format!("{path}.eager"), format!("{path}.source.kind"));
    let embedded = matches!(stream.source, SourceConfig::Embedded { .. });
    if embedded && stream.eager == Some(false) && walk.clean(&[&key, &kind]) {
        let expected = "true, or nothing: an embedded log is in this process and always read";
        walk.note(&key, "false".into(), expected.into());
    }
}

/// What is put aside needs a place, which is not where it came from; what publishing has checked never means nothing.
fn check_poison(walk: &Walk, path: &str, stream: &StreamConfig) {
    let at = |key: &str| format!("{path}.{key}");
    let topic = stream.dead_letter.as_deref();
    match (&stream.source, stream.poison) {
        (SourceConfig::Embedded { .. } | SourceConfig::Redis(_), rule) => {
            let expected = if matches!(stream.source, SourceConfig::Redis(_)) {
                "none: this version puts aside, and stops at, records of Kafka only"
            } else {
                "none: what publishing takes means something, so this is for streams of Kafka"
            };
            if rule != PoisonRule::Skip && walk.clean(&[&at("source.kind")]) {
                walk.note(
                    &at("poison"),
                    "another rule than \"skip\"".into(),
                    expected.into(),
                );
            }
            if topic.is_some() && walk.clean(&[&at("source.kind")]) {
                walk.note(&at("dead_letter"), "a topic".into(), expected.into());
            }
        }
        (SourceConfig::Kafka(_), PoisonRule::Quarantine)
            if topic.is_none() && walk.clean(&[&at("dead_letter")]) =>
        {
            let expected = "a topic, since poison is \"quarantine\"";
            walk.note(&at("dead_letter"), "nothing".into(), expected.into());
        }
        (SourceConfig::Kafka(kafka), _) if topic == Some(&kafka.topic) => {
            let expected = "another topic than the stream's own";
            walk.note(
                &at("dead_letter"),
                format!("{:?}", kafka.topic),
                expected.into(),
            );
        }
        (SourceConfig::Kafka(_), _) => {}
    }
}

/// What measures a stream is published to it.
fn check_canary(walk: &Walk, path: &str, stream: &StreamConfig) {
    let shared = !matches!(stream.source, SourceConfig::Embedded { .. });
    let foreign = shared && stream.placement == Placement::Spread || !stream.reads_own_keys();
    if stream.canary.is_some() && foreign {
        let expected = "none: this stream can't be published to from here, since others place its rows, or channel and row are not those of the defaults";
        walk.note(
            &format!("{path}.canary"),
            "a duration".into(),
            expected.into(),
        );
    }
}

fn at_least(walk: &Walk, (path, bytes): (&str, usize), (than, least): (&str, usize)) {
    if bytes < least && walk.clean(&[path, than]) {
        walk.note(
            path,
            show_size(bytes),
            format!("at least {than} ({})", show_size(least)),
        );
    }
}

fn longer(walk: &Walk, (path, duration): (&str, Duration), (than, least): (&str, Duration)) {
    if duration <= least && walk.clean(&[path, than]) {
        walk.note(
            path,
            show_duration(duration),
            format!("longer than {than} ({})", show_duration(least)),
        );
    }
}

/// What is allowed but unwise.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let (access, admin) = (&config.access, &config.admin);
    let mut warnings = Vec::new();
    if !admin.address.ip().is_loopback() && admin.token.is_none() {
        warnings.push(format!(
            "admin.address is {}, which is not loopback, and admin.token is not set: whoever reaches it can read \
             everything there, and every request that changes something is refused; set admin.token",
            admin.address
        ));
    }
    if access.anonymous.is_none() && access.jwt_keys.is_empty() && access.api_keys.is_empty() {
        warnings.push(
            "access grants nothing to anybody: set access.anonymous, access.jwt_keys or access.api_keys".to_owned(),
        );
    }
    if access
        .anonymous
        .as_ref()
        .is_some_and(|grant| grant.can.contains(&Permission::Publish))
    {
        warnings
            .push("access.anonymous lets anybody publish who reaches listen.address".to_owned());
    }
    let held = config
        .streams
        .iter()
        .map(|stream| held_bytes(stream, config.embedded.dir.is_none()))
        .fold(0, usize::saturating_add);
    if held > config.limits.memory {
        warnings.push(format!(
            "limits.memory is {}, but tails and embedded logs alone may hold {}: they will be shed before their own \
             bounds are reached; lower streams[].tail.bytes or streams[].source.retention.bytes, or raise limits.memory",
            show_size(config.limits.memory),
            show_size(held)
        ));
    }
    warnings
}

/// Most bytes of memory that a stream's tails and logs may hold. Of a log on disk memory holds what the tail has as well.
fn held_bytes(stream: &StreamConfig, logs_in_memory: bool) -> usize {
    let log = match &stream.source {
        SourceConfig::Embedded { retention } if logs_in_memory => retention.bytes,
        SourceConfig::Embedded { .. } | SourceConfig::Kafka(_) | SourceConfig::Redis(_) => 0,
    };
    let partitions = usize::try_from(stream.partitions).unwrap_or(usize::MAX);
    stream
        .tail
        .bytes
        .saturating_add(log)
        .saturating_mul(partitions)
}
