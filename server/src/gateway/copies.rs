//! The copies of views that a configuration asks for.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::StartError;
use crate::{
    cache::copies::Copies,
    config::{CopiesConfig, SourceConfig, StreamConfig},
    model::Mode,
    partition::Copying,
};

/// Says how partitions' views are copied.
pub(super) struct Keepsakes {
    copies: Option<Copies>,
    every: Duration,
    turn: Arc<Semaphore>,
}

impl Keepsakes {
    /// As configured; makes the directory.
    pub(super) fn open(config: &CopiesConfig) -> Result<Self, StartError> {
        let open = |dir: &std::path::PathBuf| Copies::open(dir, config.bytes as u64);
        let copies = config.dir.as_ref().map(open).transpose();
        Ok(Self {
            copies: copies.map_err(|error| StartError::Copies(error.to_string()))?,
            every: config.every,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// How a partition of this stream is copied, if it is. A log of this process is there whenever the process is.
    pub(super) fn of(&self, stream: &StreamConfig, partition: u32) -> Option<Copying> {
        let is_elsewhere = !matches!(stream.source, SourceConfig::Embedded { .. });
        let copies = self.copies.as_ref();
        let copies = copies.filter(|_| is_elsewhere && stream.mode == Mode::View)?;
        Some(Copying {
            place: copies.of(&stream.name, partition, &stream.fold_id()),
            every: self.every,
            turn: self.turn.clone(),
        })
    }
}
