//! What more than one section of the configuration keeps to. The helpers are here.

use std::{collections::BTreeSet, iter, path::PathBuf};

mod environment;
mod mistakes;
mod never_panics;

use super::*;

const PAGE: &str = include_str!("../../../docs/reference/config.md");

type Env<'a> = &'a [(&'a str, &'a str)];

fn read(text: &str, env: Env<'_>) -> Result<Config, Problems> {
    Config::from_toml(
        text,
        env.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

fn check_with(text: &str, env: Env<'_>, expected: &[&str]) {
    let problems = read(text, env)
        .err()
        .map(|problems| problems.to_string())
        .unwrap_or_default();
    assert_eq!(problems.lines().collect::<Vec<_>>(), expected, "{text}");
}

fn check(text: &str, expected: &[&str]) {
    check_with(text, &[], expected);
}

/// The default text with its examples as values.
fn whole_text() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.is_empty() && !example.starts_with(' ') => format!("{example}\n"),
        _ => format!("{line}\n"),
    };
    Config::default_text().lines().map(line).collect()
}

/// A directory of this test's own, which goes with the value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("tidegate-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn the_default_text_is_the_defaults() {
    assert_eq!(read(&Config::default_text(), &[]), Ok(Config::default()));
    assert_eq!(read("", &[]), Ok(Config::default()));
    assert_eq!(Config::load(None, iter::empty()), Ok(Config::default()));
}

#[test]
fn the_examples_of_the_default_text_are_valid() {
    let directory = Directory::new("examples");
    directory.write("jwt.key", b"  0123456789abcdef0123456789abcdef\n");
    directory.write("redis.password", b" s3cret\n");
    directory.write("redis-ca.pem", b"certificates");
    let file = directory.write("tidegate.toml", whole_text().as_bytes());
    let config = Config::load(Some(&file), iter::empty()).unwrap();
    assert_eq!(
        config.access.jwt_keys[0].key,
        b"0123456789abcdef0123456789abcdef"
    );
    assert_eq!(config.access.api_keys[0].sha256[..2], [0x9f, 0x86]);
    let cache = &config.cache;
    assert_eq!(cache.redis, ["redis://127.0.0.1:6379"]);
    assert_eq!(
        (&*cache.user, cache.password.as_deref()),
        ("tidegate", Some("s3cret"))
    );
    assert_eq!(cache.ca_pem.as_deref(), Some(&b"certificates"[..]));
    assert!(!format!("{cache:?}").contains("s3cret"));
    assert!(!config.creates_streams);
    let mut defaults = config.stream_defaults.named("departures");
    defaults.event_time = Some(Selector::Value("/ts".into()));
    defaults.row_ttl = units::parse_duration("1d");
    defaults.eager = Some(true);
    defaults.expect_every = units::parse_duration("1m");
    defaults.canary = units::parse_duration("5s");
    defaults.default = Some("{}".into());
    assert_eq!(config.streams, [defaults]);
}

/// A stream of another source, with its defaults.
const OF_KAFKA: &str = r#"[[streams]]
name = "departures"
source = { kind = "kafka", brokers = ["127.0.0.1:9092"], topic = "departures", tls = false, timeout = "1s", publish_timeout = "10s", history = "whole", compacts_after = "10s", tombstones_kept = "1d", folds_alone = 1000000 }
"#;

/// The same of Redis.
const OF_REDIS: &str = r#"[[streams]]
name = "departures"
source = { kind = "redis", redis = ["redis://127.0.0.1:6379"], cluster = false, prefix = "tg", timeout = "2s", publish_timeout = "10s", history = "whole", retention = { records = 0 } }
"#;

/// The paths of all keys that the walk asks for in files that have them all.
fn asked() -> BTreeSet<String> {
    let texts = [&whole_text(), OF_KAFKA, OF_REDIS];
    let asked = texts.into_iter().flat_map(|text| {
        let walk = Walk::new(iter::empty(), Path::new(""));
        Config::read(text, &walk);
        walk.asked()
    });
    // No key of a release.
    asked
        .filter(|path| path != "streams[].seeded_bug")
        .collect()
}

#[test]
fn the_defaults_of_a_stream_of_kafka_are_what_they_are_said_to_be() {
    let walk = Walk::new(iter::empty(), Path::new(""));
    let config = Config::read(OF_KAFKA, &walk);
    let walk = Walk::new(iter::empty(), Path::new(""));
    let short = "[[streams]]\nname = \"departures\"\nsource = { kind = \"kafka\", brokers = [\"127.0.0.1:9092\"] }";
    assert_eq!(config.streams, Config::read(short, &walk).streams);
}

#[test]
fn the_defaults_of_a_stream_of_redis_are_what_they_are_said_to_be() {
    let short = "[[streams]]\nname = \"departures\"\nsource = { kind = \"redis\", redis = [\"redis://127.0.0.1:6379\"] }";
    assert_eq!(
        read(OF_REDIS, &[]).unwrap().streams,
        read(short, &[]).unwrap().streams
    );
}

#[test]
fn the_default_text_and_the_page_name_every_key() {
    let (asked, text) = (asked(), Config::default_text());
    assert!(asked.len() > 50, "{asked:?}");
    for path in &asked {
        let key = path.rsplit('.').next().unwrap().trim_end_matches("[]");
        assert!(
            text.contains(&format!("{key} = ")) || text.contains(&format!("[{key}]")),
            "default.toml lacks {path}"
        );
    }
    let on_page: BTreeSet<String> = page_rows().map(|(path, _)| path.to_owned()).collect();
    let is_leaf = |path: &&String| {
        !asked.iter().any(|other| {
            other.starts_with(&format!("{path}.")) || other.starts_with(&format!("{path}[]"))
        })
    };
    let leaves: BTreeSet<String> = asked.iter().filter(is_leaf).cloned().collect();
    assert_eq!(on_page, leaves, "docs/reference/config.md");
}

/// Key and default of each row of the page's tables.
fn page_rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let path = cells.next()?.trim_end_matches('`');
        Some((path, cells.next()?)).filter(|(path, _)| !path.starts_with("TIDEGATE_"))
    })
}

#[test]
fn the_page_gives_the_defaults() {
    let table = |text: &str| toml::Value::Table(text.parse().unwrap());
    let (whole, of_kafka, of_redis) = (table(&whole_text()), table(OF_KAFKA), table(OF_REDIS));
    let mut compared = 0;
    for (path, default) in page_rows() {
        let Some(default) = default
            .strip_prefix('`')
            .and_then(|rest| rest.strip_suffix('`'))
        else {
            continue;
        };
        let page: toml::Table = format!("value = {default}").parse().unwrap();
        let found = |whole| {
            path.split('.').try_fold(whole, |at: &toml::Value, key| {
                match key.strip_suffix("[]") {
                    Some(key) => at.get(key)?.get(0),
                    None => at.get(key),
                }
            })
        };
        let value = found(&whole).or_else(|| found(&of_kafka));
        let value = value.or_else(|| found(&of_redis));
        assert_eq!(value, page.get("value"), "{path}");
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn no_two_keys_have_one_variable() {
    let paths: Vec<_> = asked()
        .into_iter()
        .filter(|path| !path.contains('['))
        .collect();
    let variables: BTreeSet<_> = paths.iter().map(|path| path.replace('.', "_")).collect();
    assert_eq!(variables.len(), paths.len());
}
