//! What a reload would change: two configurations → what differs, or why it can't be done while the node runs.
//!
//! Owns: which keys may change live. Never knows: a running node. Keeps: every key is in it, since sections are taken apart
//! field by field; one key that can't change makes the whole reload impossible.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use crate::config::{
    AccessConfig, AdminConfig, CacheConfig, Config, CopiesConfig, EmbeddedConfig, LimitsConfig,
    ListenConfig, MaterializerConfig, SessionConfig, StreamConfig,
};

/// The key id of who has no token, as claims have it.
const ANONYMOUS: &str = "anonymous";

/// What is to be done. Paths are those of keys.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Everything that differs.
    pub(super) changed: Vec<String>,
    /// Streams that are new.
    pub(super) added: Vec<StreamConfig>,
    /// Streams that go.
    pub(super) removed: Vec<String>,
    /// Streams whose options differ.
    pub(super) altered: Vec<StreamConfig>,
    /// Ids of keys that no longer grant what they granted.
    pub(super) revoked: HashSet<Arc<str>>,
}

/// What differs so far.
#[derive(Default)]
struct Differences {
    live: Vec<String>,
    fixed: Vec<String>,
}

impl Differences {
    fn live<T: PartialEq>(&mut self, path: &str, old: &T, new: &T) -> bool {
        if old != new {
            self.live.push(path.to_owned());
        }
        old != new
    }

    fn fixed<T: PartialEq>(&mut self, path: &str, old: &T, new: &T) {
        if old != new {
            self.fixed.push(path.to_owned());
        }
    }
}

/// What leads from one configuration to another. `made` are the streams that the engine has, those that were taken away
/// included, by name.
///
/// # Errors
/// The paths of what can't change while the node runs.
pub(super) fn plan(
    old: &Config,
    new: &Config,
    made: &BTreeMap<String, StreamConfig>,
) -> Result<Plan, Vec<String>> {
    let (mut seen, mut plan) = (Differences::default(), Plan::default());
    listen(&mut seen, &old.listen, &new.listen);
    admin(&mut seen, &old.admin, &new.admin);
    plan.revoked = access(&mut seen, &old.access, &new.access);
    session(&mut seen, &old.session, &new.session);
    limits(&mut seen, &old.limits, &new.limits);
    embedded(&mut seen, &old.embedded, &new.embedded);
    cache(&mut seen, &old.cache, &new.cache);
    copies(&mut seen, &old.copies, &new.copies);
    seen.fixed("roles", &old.roles, &new.roles);
    materializer(&mut seen, &old.materializer, &new.materializer);
    if old.creates_streams != new.creates_streams {
        seen.fixed.push(
            "streams (from none at all, where publishing creates them, or to none)".to_owned(),
        );
    } else {
        streams(&mut seen, &mut plan, old, new, made);
    }
    if !seen.fixed.is_empty() {
        return Err(seen.fixed);
    }
    plan.changed = seen.live;
    Ok(plan)
}

fn listen(seen: &mut Differences, old: &ListenConfig, new: &ListenConfig) {
    let ListenConfig {
        address,
        workers,
        origins,
        backlog,
    } = old;
    seen.fixed("listen.address", address, &new.address);
    seen.fixed("listen.workers", workers, &new.workers);
    seen.live("listen.origins", origins, &new.origins);
    seen.fixed("listen.backlog", backlog, &new.backlog);
}

fn admin(seen: &mut Differences, old: &AdminConfig, new: &AdminConfig) {
    let AdminConfig {
        address,
        token,
        hosts,
    } = old;
    seen.fixed("admin.address", address, &new.address);
    seen.fixed("admin.token", token, &new.token);
    seen.fixed("admin.hosts", hosts, &new.hosts);
}

/// Also which keys' sessions end: those whose key is gone, or is another one, or grants something else.
fn access(seen: &mut Differences, old: &AccessConfig, new: &AccessConfig) -> HashSet<Arc<str>> {
    let AccessConfig {
        anonymous,
        auth_timeout,
        cookie,
        jwt_keys,
        api_keys,
    } = old;
    let mut revoked = HashSet::new();
    seen.live("access.auth_timeout", auth_timeout, &new.auth_timeout);
    seen.live("access.cookie", cookie, &new.cookie);
    if seen.live("access.anonymous", anonymous, &new.anonymous) && anonymous.is_some() {
        revoked.insert(ANONYMOUS.into());
    }
    if seen.live("access.jwt_keys", jwt_keys, &new.jwt_keys) {
        let gone = jwt_keys.iter().filter(|key| !new.jwt_keys.contains(key));
        revoked.extend(gone.map(|key| Arc::from(key.id.as_str())));
    }
    if seen.live("access.api_keys", api_keys, &new.api_keys) {
        let gone = api_keys.iter().filter(|key| !new.api_keys.contains(key));
        revoked.extend(gone.map(|key| Arc::from(key.id.as_str())));
    }
    revoked
}

/// Clients were told these when they connected, or buffers were made by them.
fn session(seen: &mut Differences, old: &SessionConfig, new: &SessionConfig) {
    let SessionConfig {
        heartbeat,
        live_for,
        outbox,
        drain_rate_min,
        drain,
    } = old;
    seen.fixed("session.heartbeat", heartbeat, &new.heartbeat);
    seen.fixed("session.live_for", live_for, &new.live_for);
    seen.fixed("session.outbox", outbox, &new.outbox);
    seen.fixed(
        "session.drain_rate_min",
        drain_rate_min,
        &new.drain_rate_min,
    );
    seen.fixed("session.drain", drain, &new.drain);
}

/// Only those that are asked about anew at each connection or record.
fn limits(seen: &mut Differences, old: &LimitsConfig, new: &LimitsConfig) {
    let LimitsConfig {
        memory,
        message_bytes,
        record_bytes,
        channels_per_connection,
        connections,
        connections_per_address,
        connects_per_second,
        connects_per_second_per_address,
        subscribes_per_second,
        messages_per_second,
        publishes_per_second,
        header_bytes,
        head_timeout,
        body_timeout,
        message_timeout,
        replay_records,
        resume_hold,
    } = old;
    macro_rules! key {
        ($how:ident $key:ident) => {
            seen.$how(concat!("limits.", stringify!($key)), $key, &new.$key);
        };
    }
    key!(fixed memory);
    key!(fixed message_bytes);
    key!(fixed record_bytes);
    key!(fixed channels_per_connection);
    key!(live connections);
    key!(live connections_per_address);
    key!(live connects_per_second);
    key!(live connects_per_second_per_address);
    key!(fixed subscribes_per_second);
    key!(fixed messages_per_second);
    key!(live publishes_per_second);
    key!(fixed header_bytes);
    key!(fixed head_timeout);
    key!(fixed body_timeout);
    key!(fixed message_timeout);
    key!(fixed replay_records);
    key!(fixed resume_hold);
}

/// The directory is open, and its writer has its policy.
fn embedded(seen: &mut Differences, old: &EmbeddedConfig, new: &EmbeddedConfig) {
    let EmbeddedConfig {
        dir,
        sync,
        sync_every,
    } = old;
    seen.fixed("embedded.dir", dir, &new.dir);
    seen.fixed("embedded.sync", sync, &new.sync);
    seen.fixed("embedded.sync_every", sync_every, &new.sync_every);
}

/// Streams read by its connection, and materializers write by it.
fn cache(seen: &mut Differences, old: &CacheConfig, new: &CacheConfig) {
    let CacheConfig {
        redis,
        cluster,
        sentinel,
        user,
        password,
        ca_pem,
        prefix,
        timeout,
    } = old;
    seen.fixed("cache.redis", redis, &new.redis);
    seen.fixed("cache.cluster", cluster, &new.cluster);
    seen.fixed("cache.sentinel", sentinel, &new.sentinel);
    seen.fixed("cache.user", user, &new.user);
    seen.fixed("cache.password_file", password, &new.password);
    seen.fixed("cache.ca_file", ca_pem, &new.ca_pem);
    seen.fixed("cache.prefix", prefix, &new.prefix);
    seen.fixed("cache.timeout", timeout, &new.timeout);
}

/// Partitions were begun with these.
fn copies(seen: &mut Differences, old: &CopiesConfig, new: &CopiesConfig) {
    let CopiesConfig { dir, every, bytes } = old;
    seen.fixed("copies.dir", dir, &new.dir);
    seen.fixed("copies.every", every, &new.every);
    seen.fixed("copies.bytes", bytes, &new.bytes);
}

/// Its membership of the groups was begun with these.
fn materializer(seen: &mut Differences, old: &MaterializerConfig, new: &MaterializerConfig) {
    let MaterializerConfig {
        group,
        session_timeout,
    } = old;
    seen.fixed("materializer.group", group, &new.group);
    seen.fixed(
        "materializer.session_timeout",
        session_timeout,
        &new.session_timeout,
    );
}

fn streams(
    seen: &mut Differences,
    plan: &mut Plan,
    old: &Config,
    new: &Config,
    made: &BTreeMap<String, StreamConfig>,
) {
    let find = |config: &Config, name: &str| {
        let mut streams = config.streams.iter();
        streams.find(|stream| stream.name == name).cloned()
    };
    for stream in &old.streams {
        if find(new, &stream.name).is_none() {
            seen.live.push(format!("streams[{}] is gone", stream.name));
            plan.removed.push(stream.name.clone());
        }
    }
    for stream in &new.streams {
        let path = format!("streams[{}]", stream.name);
        match (find(old, &stream.name), made.get(&stream.name)) {
            (Some(before), _) => {
                if same_stream(seen, &path, &before, stream) {
                    plan.altered.push(stream.clone());
                }
            }
            (None, before) => {
                seen.live.push(format!("{path} is new"));
                plan.added.push(stream.clone());
                // Its log is still there, as it was made; options are those of now.
                if let Some(before) = before {
                    let mut options = Differences::default();
                    same_stream(&mut options, &path, before, stream);
                    seen.fixed.extend(options.fixed);
                }
            }
        }
    }
}

/// Whether a stream's options differ. What its logs and positions hang on can't.
fn same_stream(seen: &mut Differences, path: &str, old: &StreamConfig, new: &StreamConfig) -> bool {
    let StreamConfig {
        name: _,
        mode,
        // The newest of the generations.
        partitions: _,
        generations,
        placement,
        source,
        cache,
        format,
        channel,
        row,
        event_time,
        tail,
        eager,
        linger,
        freshness_slo,
        slow_consumer,
        view_max,
        row_ttl,
        expect_every,
        default,
        poison,
        dead_letter,
        canary,
        #[cfg(feature = "seeded-bugs")]
            seeded_bug: _,
    } = old;
    let at = |key: &str| format!("{path}.{key}");
    seen.fixed(&at("mode"), mode, &new.mode);
    seen.fixed(&at("partitions"), generations, &new.generations);
    seen.fixed(&at("placement"), placement, &new.placement);
    seen.fixed(&at("source"), source, &new.source);
    seen.fixed(&at("cache"), cache, &new.cache);
    seen.fixed(&at("format"), format, &new.format);
    seen.fixed(&at("channel"), channel, &new.channel);
    seen.fixed(&at("row"), row, &new.row);
    seen.fixed(&at("event_time"), event_time, &new.event_time);
    seen.fixed(&at("view_max"), view_max, &new.view_max);
    seen.fixed(&at("row_ttl"), row_ttl, &new.row_ttl);
    seen.fixed(&at("default"), default, &new.default);
    seen.fixed(&at("dead_letter"), dead_letter, &new.dead_letter);
    let mut differs = seen.live(&at("tail"), tail, &new.tail);
    differs |= seen.live(&at("eager"), eager, &new.eager);
    differs |= seen.live(&at("linger"), linger, &new.linger);
    differs |= seen.live(&at("freshness_slo"), freshness_slo, &new.freshness_slo);
    differs |= seen.live(&at("slow_consumer"), slow_consumer, &new.slow_consumer);
    differs |= seen.live(&at("poison"), poison, &new.poison);
    differs |= seen.live(&at("canary"), canary, &new.canary);
    differs | seen.live(&at("expect_every"), expect_every, &new.expect_every)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = r#"
        [access]
        anonymous = { channels = ["a/*"], can = ["subscribe"] }
        jwt_keys = [
            { id = "one", algorithm = "HS256", secret = "0123456789abcdef0123456789abcdef" },
            { id = "two", algorithm = "HS256", secret = "0123456789abcdef0123456789abcdef" },
        ]
        [[streams]]
        name = "a"
        [[streams]]
        name = "b"
    "#;

    fn read(text: &str) -> Config {
        Config::from_toml(text, std::iter::empty()).unwrap()
    }

    fn from_old(change: impl Fn(&str) -> String) -> Result<Plan, Vec<String>> {
        plan(&read(OLD), &read(&change(OLD)), &BTreeMap::new())
    }

    #[test]
    fn nothing_differs_from_itself() {
        assert_eq!(from_old(str::to_owned), Ok(Plan::default()));
    }

    #[test]
    fn streams_come_and_go_and_change() {
        let text = |old: &str| {
            old.replace("name = \"a\"", "name = \"a\"\nfreshness_slo = \"1s\"")
                .replace("name = \"b\"", "name = \"c\"")
        };
        let plan = from_old(text).unwrap();
        let wished = [
            "streams[b] is gone",
            "streams[a].freshness_slo",
            "streams[c] is new",
        ];
        assert_eq!(plan.changed, wished);
        assert_eq!(plan.removed, ["b"]);
        assert_eq!((&*plan.altered[0].name, &*plan.added[0].name), ("a", "c"));
        assert!(plan.revoked.is_empty());
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn the_rule_for_what_means_nothing_changes_while_a_stream_runs_and_its_topic_does_not() {
        let with = |lines: &str| {
            read(&format!(
                "[[streams]]\nname = \"a\"\nsource = {{ kind = \"kafka\", brokers = [\"b:1\"] }}\n{lines}"
            ))
        };
        let halt = with("poison = \"halt\"\ndead_letter = \"dead\"");
        let aside = with("poison = \"quarantine\"\ndead_letter = \"dead\"\ncanary = \"5s\"");
        let found = plan(&halt, &aside, &BTreeMap::new()).unwrap();
        assert_eq!(found.changed, ["streams[a].poison", "streams[a].canary"]);
        assert_eq!(found.altered, aside.streams);
        let elsewhere = with("poison = \"halt\"\ndead_letter = \"other\"");
        let fixed = plan(&halt, &elsewhere, &BTreeMap::new());
        assert_eq!(fixed, Err(vec!["streams[a].dead_letter".to_owned()]));
    }

    #[test]
    fn a_key_that_goes_or_changes_revokes_what_it_granted() {
        let revoked = |from: &str, to: &str| {
            let plan = from_old(|old| old.replacen(from, to, 1)).unwrap();
            let mut ids: Vec<_> = plan.revoked.iter().map(ToString::to_string).collect();
            ids.sort();
            (ids.join(" "), plan.changed.join(" "))
        };
        let jwt = || "access.jwt_keys".to_owned();
        assert_eq!(revoked("\"one\"", "\"three\""), ("one".to_owned(), jwt()));
        assert_eq!(revoked("0123", "9123"), ("one".to_owned(), jwt()));
        let anonymous = "access.anonymous".to_owned();
        assert_eq!(
            revoked("\"a/*\"", "\"b/*\""),
            ("anonymous".to_owned(), anonymous)
        );
        let added = "jwt_keys = [ { id = \"new\", algorithm = \"HS256\", secret = \"0123456789abcdef0123456789abcdef\" },";
        assert_eq!(revoked("jwt_keys = [", added), (String::new(), jwt()));
    }

    #[test]
    fn what_cannot_change_is_named_and_nothing_is_planned() {
        let text = |old: &str| {
            old.replace(
                "name = \"a\"",
                "name = \"a\"\nmode = \"events\"\npartitions = 3",
            ) + "\n[cache]\ncluster = true\n[listen]\nworkers = 77\n[session]\nheartbeat = \"1s\"\n[limits]\nconnections = 5"
        };
        assert_eq!(
            from_old(text).unwrap_err(),
            [
                "listen.workers",
                "session.heartbeat",
                "cache.cluster",
                "streams[a].mode",
                "streams[a].partitions"
            ]
        );
    }

    #[test]
    fn a_stream_that_comes_back_is_the_one_that_went() {
        let (old, new) = (
            read("streams = []"),
            read("[[streams]]\nname = \"a\"\npartitions = 2"),
        );
        let mut made = BTreeMap::new();
        made.insert("a".to_owned(), new.streams[0].clone());
        assert_eq!(plan(&old, &new, &made).unwrap().added, new.streams);
        made.insert(
            "a".to_owned(),
            read("[[streams]]\nname = \"a\"").streams[0].clone(),
        );
        assert_eq!(
            plan(&old, &new, &made),
            Err(vec!["streams[a].partitions".to_owned()])
        );
    }

    #[test]
    fn publishing_creates_streams_from_the_start_or_never() {
        assert!(plan(&read(""), &read("streams = []"), &BTreeMap::new()).is_err());
    }
}
