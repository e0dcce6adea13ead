//! `roles` and `[materializer]`: what this process is, and how those share their work that fold streams into the cache.
//!
//! Does: reads them. Owns: their defaults and bounds. Never knows: a broker, a cache.

use std::time::Duration;

use super::walk::Section;

/// What a process may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It serves clients.
    Gateway,
    /// It folds streams into the cache.
    Materializer,
}

/// How materializers share their work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaterializerConfig {
    /// What consumer groups begin with; the stream's name follows behind a dot; default `tidegate`.
    pub group: String,
    /// After which silence the others take a materializer's partitions, 1 s to 30 min; default 30 s.
    pub session_timeout: Duration,
}

impl Default for MaterializerConfig {
    fn default() -> Self {
        Self {
            group: "tidegate".to_owned(),
            session_timeout: Duration::from_secs(30),
        }
    }
}

impl MaterializerConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = |text: &str| (1..=128).contains(&text.len()) && text.bytes().all(legal);
        let group = "1 to 128 of A-Z, a-z, 0-9, ., _ and -";
        Self {
            group: section
                .text("group", group, |text| fits(text).then(|| text.to_owned()))
                .unwrap_or(default.group),
            session_timeout: section
                .duration(
                    "session_timeout",
                    Duration::from_secs(1)..=Duration::from_secs(1800),
                )
                .unwrap_or(default.session_timeout),
        }
    }
}

/// What this process is, each once: at least one thing.
pub(super) fn read_roles(section: &mut Section<'_>) -> Vec<Role> {
    let expected = "\"gateway\" or \"materializer\"";
    let default = vec![Role::Gateway];
    if !section.has("roles") {
        // Asked for all the same, so that it is known as a key.
        section.texts::<Role>("roles", expected, |_| None);
        return default;
    }
    let mut roles = section.some_texts("roles", expected, |text| match text {
        "gateway" => Some(Role::Gateway),
        "materializer" => Some(Role::Materializer),
        _ => None,
    });
    let mut seen = Vec::new();
    roles.retain(|role| {
        let new = !seen.contains(role);
        seen.push(*role);
        new
    });
    roles
}
