//! `[cache]`: the Redis that nodes share views in.
//!
//! Does: reads the section, and the files that it names. Owns: its defaults and bounds. Never knows: a connection.
//! Keeps: the password is in a file, never in this section, and in no message and no debug text.

use std::{fmt, time::Duration};

use super::{read_bounded, units::KIB, walk::Section};

/// Longest file that the section names.
const FILE_MAX: usize = 64 * KIB;
/// What a server looks like.
const SERVER: &str = "redis://host[:port][/database], or rediss:// for TLS, without user and password, which are \
                      cache.user and cache.password_file";

/// The Redis that views are folded into and read from.
#[derive(Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// The servers, as URLs without user and password; default: none, so no cache.
    pub redis: Vec<String>,
    /// Whether they are a cluster; default no.
    pub cluster: bool,
    /// The name of what they watch, where they are sentinels; default: they are none.
    pub sentinel: Option<String>,
    /// The user; default: the one without a name.
    pub user: String,
    /// The password, from its file; default: none.
    pub password: Option<String>,
    /// The certificates, in PEM, that a server's own must come from; default: those that the system trusts.
    pub ca_pem: Option<Vec<u8>>,
    /// What all keys begin with; default `tg`.
    pub prefix: String,
    /// The longest that a call takes, 100 ms to 1 min; default 2 s.
    pub timeout: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            redis: Vec::new(),
            cluster: false,
            sentinel: None,
            user: String::new(),
            password: None,
            ca_pem: None,
            prefix: "tg".to_owned(),
            timeout: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for CacheConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheConfig")
            .field("redis", &self.redis)
            .field("cluster", &self.cluster)
            .field("sentinel", &self.sentinel)
            .field("user", &self.user)
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl CacheConfig {
    /// Whether there is a cache.
    #[must_use]
    pub const fn is_there(&self) -> bool {
        !self.redis.is_empty()
    }

    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let timeouts = Duration::from_millis(100)..=Duration::from_secs(60);
        let is_name = |text: &str| {
            (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        let is_prefix = |text: &str| is_name(text) && !text.contains(['{', '}', '*', '?', '[']);
        let name = "1 to 128 visible ASCII characters";
        Self {
            redis: section
                .secret_texts("redis", SERVER, parse_server)
                .unwrap_or(default.redis),
            cluster: section.flag("cluster").unwrap_or(default.cluster),
            sentinel: section.text("sentinel", name, |text| {
                is_name(text).then(|| text.to_owned())
            }),
            user: section
                .text("user", name, |text| is_name(text).then(|| text.to_owned()))
                .unwrap_or(default.user),
            password: read_password(section),
            ca_pem: read_file(section, "ca_file"),
            prefix: section
                .text(
                    "prefix",
                    &format!("{name} but {{, }}, *, ? and ["),
                    |text| is_prefix(text).then(|| text.to_owned()),
                )
                .unwrap_or(default.prefix),
            timeout: section
                .duration("timeout", timeouts)
                .unwrap_or(default.timeout),
        }
    }
}

/// A server's URL. Who would write a password there is told so, since URLs are logged, and this one is.
fn parse_server(text: &str) -> Option<String> {
    let rest = ["redis://", "rediss://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))?;
    let plain = text.len() <= 300 && rest.bytes().all(|b| b.is_ascii_graphic());
    let host = rest.split('/').next().unwrap_or_default();
    (plain && !host.is_empty() && !rest.contains(['@', '?', '#', '%'])).then(|| text.to_owned())
}

fn read_password(section: &mut Section<'_>) -> Option<String> {
    let bytes = read_file(section, "password_file")?;
    let password = std::str::from_utf8(bytes.trim_ascii())
        .ok()
        .filter(|text| !text.is_empty());
    if password.is_none() {
        section.note(
            "password_file",
            "a file without a password",
            "a password as text, white space around it aside",
        );
    }
    password.map(str::to_owned)
}

fn read_file(section: &mut Section<'_>, key: &'static str) -> Option<Vec<u8>> {
    let file = section.text(key, "the path of a file", |text| {
        (!text.is_empty()).then(|| text.to_owned())
    })?;
    let path = section.base().join(file);
    let noted = |error| {
        section.note(
            key,
            format!("{:?} ({error})", path.display().to_string()),
            "a file that can be read, 64KiB at most",
        );
    };
    read_bounded(&path, FILE_MAX).map_err(noted).ok()
}
