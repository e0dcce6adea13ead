//! `[embedded]`: where the embedded engine keeps its logs.
//!
//! Does: reads the section. Owns: its defaults and bounds. Never knows: a file; the directory is opened by the engine.

use std::{path::PathBuf, time::Duration};

use super::walk::Section;

/// Where the embedded engine keeps its logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// The data directory, from the configuration file's directory; default: none, so in memory.
    pub dir: Option<PathBuf>,
    /// When a record counts as stored; default `commit`.
    pub sync: Sync,
    /// With [`Sync::Interval`]: how often what was written is synced, 1 ms to 1 h; default 50 ms.
    pub sync_every: Duration,
}

/// When a record counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// When it is on the device.
    Commit,
    /// When the operating system has it; it is synced at intervals.
    Interval,
    /// When the operating system has it.
    Never,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            dir: None,
            sync: Sync::Commit,
            sync_every: Duration::from_millis(50),
        }
    }
}

impl EmbeddedConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let base = section.base();
        let bounds = Duration::from_millis(1)..=Duration::from_secs(3600);
        Self {
            dir: section.text("dir", "a path that is not empty", |path| {
                (!path.is_empty()).then(|| base.join(path))
            }),
            sync: section
                .choice(
                    "sync",
                    &[
                        ("commit", Sync::Commit),
                        ("interval", Sync::Interval),
                        ("never", Sync::Never),
                    ],
                )
                .unwrap_or(default.sync),
            sync_every: section
                .duration("sync_every", bounds)
                .unwrap_or(default.sync_every),
        }
    }
}
