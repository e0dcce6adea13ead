//! What the operator wrote → what the rooms are told.
//!
//! Does: reads the configuration file, key files and the environment, checks every value and every relation between
//! two of them, and reports all that is wrong at once, each with its place and what was expected.
//! Owns: nothing that outlives the start; each room receives its own `…Config`.
//! Never knows: what a room does with its values, a socket, a clock.
//! Keeps: after [`Config::load`] no value is doubtful and no `Option` means "default"; secrets are in no message; only
//! this room reads files and the environment.

mod access;
mod cache;
mod copies;
mod embedded;
mod files;
mod kafka;
mod listen;
mod materializer;
mod pattern;
mod public_key;
mod relations;
mod selector;
mod session;
mod stream;
mod units;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

pub use access::{AccessConfig, ApiKeyConfig, Grant, JwtAlgorithm, JwtKeyConfig, Permission};
pub use cache::CacheConfig;
pub use copies::CopiesConfig;
pub use embedded::{EmbeddedConfig, Sync};
pub use kafka::{KafkaConfig, KafkaSasl, KafkaSecurity, KafkaTls, SaslMechanism};
pub use listen::{AdminConfig, ListenConfig};
pub use materializer::{MaterializerConfig, Role};
pub use pattern::ChannelPattern;
pub use selector::Selector;
pub use session::{DrainConfig, DrainRate, LimitsConfig, OutboxConfig, SessionConfig};
pub use stream::{CacheUse, Format, Retention, SourceConfig, StreamConfig, TailConfig, ViewMax};
pub use units::parse_duration;
pub use walk::{Problem, Problems};

use walk::Walk;

/// Longest configuration file, in bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;

/// The configuration as meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The public listener.
    pub listen: ListenConfig,
    /// The private listener.
    pub admin: AdminConfig,
    /// Who may do what.
    pub access: AccessConfig,
    /// What every session keeps to.
    pub session: SessionConfig,
    /// What the node keeps to.
    pub limits: LimitsConfig,
    /// Where the embedded engine keeps its logs.
    pub embedded: EmbeddedConfig,
    /// The Redis that views are folded into and read from.
    pub cache: CacheConfig,
    /// Where the node keeps copies of its views.
    pub copies: CopiesConfig,
    /// What this process is, at least one thing, each once; default: a gateway.
    pub roles: Vec<Role>,
    /// How those share their work that fold streams into the cache.
    pub materializer: MaterializerConfig,
    /// The streams, in the order of the file. No two have the same name.
    pub streams: Vec<StreamConfig>,
    /// What a stream gets that a permitted publish creates; its name is empty ([`StreamConfig::named`] fills it in).
    pub stream_defaults: StreamConfig,
    /// Whether a permitted publish creates a stream: so where no `streams` were given, not even an empty list.
    pub creates_streams: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: ListenConfig::default(),
            admin: AdminConfig::default(),
            access: AccessConfig::default(),
            session: SessionConfig::default(),
            limits: LimitsConfig::default(),
            embedded: EmbeddedConfig::default(),
            cache: CacheConfig::default(),
            copies: CopiesConfig::default(),
            roles: vec![Role::Gateway],
            materializer: MaterializerConfig::default(),
            streams: Vec::new(),
            stream_defaults: StreamConfig::default(),
            creates_streams: true,
        }
    }
}

impl Config {
    /// Reads a file, or only the defaults, and lays the environment over it. Relative paths of key files are taken
    /// from the file's directory.
    ///
    /// # Errors
    /// [`Problems`]: everything that is wrong, at least one.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        let base = file.and_then(Path::parent).unwrap_or(Path::new(""));
        let walk = Walk::new(env, base);
        let text = file
            .map_or(Ok(String::new()), read_text)
            .unwrap_or_else(|error| {
                let path = file
                    .map(|path| path.display().to_string())
                    .unwrap_or_default();
                let expected = format!(
                    "a readable file of UTF-8, {} at most",
                    units::show_size(FILE_BYTES_MAX)
                );
                walk.note(&path, error.to_string(), expected);
                String::new()
            });
        Self::convert(&text, walk)
    }

    /// Reads a file's text, and lays the environment over it. Relative paths of key files are taken from the current
    /// directory.
    ///
    /// # Errors
    /// [`Problems`]: everything that is wrong, at least one.
    pub fn from_toml(
        text: &str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Problems> {
        Self::convert(text, Walk::new(env, Path::new("")))
    }

    /// The documented file, which says what holds without a file.
    #[must_use]
    pub fn default_text() -> String {
        include_str!("config/default.toml").to_owned()
    }

    /// The streams that the cache holds: what materializers fold, and nodes read from it.
    pub fn cached_streams(&self) -> impl Iterator<Item = (&StreamConfig, &KafkaConfig)> {
        let there = self.cache.is_there();
        let streams = self.streams.iter().filter(move |_| there);
        streams.filter_map(|stream| Some((stream, stream.cacheable()?)))
    }

    /// What a materializer lacks here, if it lacks something.
    #[must_use]
    pub fn cannot_materialize(&self) -> Option<&'static str> {
        if !self.cache.is_there() {
            Some("cache.redis beside it: a materializer folds into the cache")
        } else if self.cached_streams().next().is_none() {
            Some("a stream for it: one of Kafka with mode \"view\" and cache \"shared\"")
        } else {
            None
        }
    }

    /// What is allowed but unwise, a line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        relations::warnings(self)
    }

    fn convert(text: &str, walk: Walk) -> Result<Self, Problems> {
        let config = Self::read(text, &walk);
        let problems = walk.into_problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Problems(problems))
        }
    }

    /// The configuration with defaults in the place of whatever was noted as a problem.
    fn read(text: &str, walk: &Walk) -> Self {
        let mut root = walk.root(text);
        let streams = root.tables("streams");
        let paths: Vec<_> = streams
            .iter()
            .flatten()
            .map(|section| section.path().to_owned())
            .collect();
        let config = Self {
            listen: root.within("listen", ListenConfig::read),
            admin: root.within("admin", AdminConfig::read),
            access: root.within("access", AccessConfig::read),
            session: root.within("session", SessionConfig::read),
            limits: root.within("limits", LimitsConfig::read),
            embedded: root.within("embedded", EmbeddedConfig::read),
            cache: root.within("cache", CacheConfig::read),
            copies: root.within("copies", CopiesConfig::read),
            materializer: root.within("materializer", MaterializerConfig::read),
            roles: materializer::read_roles(&mut root),
            creates_streams: streams.is_none(),
            streams: streams
                .into_iter()
                .flatten()
                .map(|mut section| StreamConfig::read(&mut section))
                .collect(),
            stream_defaults: StreamConfig::default(),
        };
        drop(root);
        walk.note_unknown_variables();
        relations::check(&config, &paths, walk);
        config
    }
}

/// The process's environment, as [`Config::load`] wants it: the variables of ours. Bytes that are not UTF-8 are
/// replaced, so that they are refused where they matter.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .filter(|(name, _)| name.starts_with(walk::PREFIX))
}

fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_bounded(path, FILE_BYTES_MAX)?;
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8"))
}

/// A file's bytes; one that is longer than `max` is an error, and is not read on.
fn read_bounded(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        Err(io::Error::other("too long"))
    } else {
        Ok(bytes)
    }
}
