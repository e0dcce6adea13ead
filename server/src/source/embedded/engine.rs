//! The engine of a process: the logs of all its streams, in memory or in a data directory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    super::durable::{DataDir, DataError, KeptStream},
    EmbeddedLog, LogSettings,
};
use crate::{
    model::{Epoch, Placement},
    telemetry::LogCounts,
};

/// What the engine is told of a stream.
#[derive(Clone, Debug)]
pub struct LogSpec<'a> {
    /// Its name.
    pub stream: &'a str,
    /// Its lanes.
    pub partitions: u32,
    /// How records are placed in them.
    pub placement: Placement,
    /// What each is told.
    pub settings: LogSettings,
    /// Of logs with files: bytes of the newest records of each partition that memory holds as well.
    pub hot_bytes: usize,
}

/// The engine of a process: the logs of all its streams. Two gateways of one process may share it.
#[derive(Debug, Default)]
pub struct Engine {
    logs: Mutex<HashMap<String, Vec<Arc<EmbeddedLog>>>>,
    data: Option<DataDir>,
}

impl Engine {
    /// An engine whose logs are in this directory.
    #[must_use]
    pub fn on(data: DataDir) -> Self {
        Self {
            data: Some(data),
            ..Self::default()
        }
    }

    /// The logs of a stream, made, or read from their files, at first asking; `epoch` names each new one.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn logs(
        &self,
        spec: &LogSpec<'_>,
        epoch: impl Fn() -> Epoch,
    ) -> Result<Vec<Arc<EmbeddedLog>>, DataError> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = logs.get(spec.stream) {
            return Ok(made.clone());
        }
        let made: Vec<_> = match &self.data {
            Some(data) => data.logs(spec, epoch)?,
            None => (0..spec.partitions)
                .map(|partition| EmbeddedLog::new(partition, epoch(), spec.settings))
                .collect(),
        };
        logs.insert(spec.stream.to_owned(), made.clone());
        Ok(made)
    }

    /// The streams that the directory keeps from before; none without one.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn kept(&self) -> Result<Vec<KeptStream>, DataError> {
        self.data.as_ref().map_or(Ok(Vec::new()), DataDir::kept)
    }

    /// Stores what was submitted, and closes the directory. Blocks until that is done; nothing is taken afterwards.
    pub fn close(&self) {
        if let Some(data) = &self.data {
            data.close();
        }
    }

    /// What the directory's writer counts.
    #[must_use]
    pub fn counts(&self) -> Arc<LogCounts> {
        self.data
            .as_ref()
            .map_or_else(Arc::default, DataDir::counts)
    }
}
