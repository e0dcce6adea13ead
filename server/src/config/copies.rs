//! `[copies]`: where a node keeps copies of its views.
//!
//! Does: reads the section. Owns: its defaults and bounds. Never knows: a file; the directory is opened by the gateway.

use std::{path::PathBuf, time::Duration};

use super::{
    units::{GIB, MIB, SIZE_MAX},
    walk::Section,
};

/// Where a node keeps copies of its views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiesConfig {
    /// The directory, from the configuration file's directory; default: none, so no copies.
    pub dir: Option<PathBuf>,
    /// How often each partition's views are copied where they have changed, 1 s to 1 d; default 1 min.
    pub every: Duration,
    /// Bytes of a partition's copy at most, 1 MiB at least; default 1 GiB.
    pub bytes: usize,
}

impl Default for CopiesConfig {
    fn default() -> Self {
        Self {
            dir: None,
            every: Duration::from_mins(1),
            bytes: GIB,
        }
    }
}

impl CopiesConfig {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let default = Self::default();
        let base = section.base();
        Self {
            dir: section.text("dir", "a path that is not empty", |path| {
                (!path.is_empty()).then(|| base.join(path))
            }),
            every: section
                .duration("every", Duration::from_secs(1)..=Duration::from_hours(24))
                .unwrap_or(default.every),
            bytes: section
                .size("bytes", MIB..=SIZE_MAX)
                .unwrap_or(default.bytes),
        }
    }
}
