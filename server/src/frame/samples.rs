//! Updates for the tests of rooms that only pass them on.

use std::sync::Arc;

use super::Shared;
use crate::model::{Change, Epoch, Moment, Offset, Position, RowId, Update};

/// The update of a row at this offset of partition 0, in epoch `e`.
///
/// # Panics
/// When the names are none.
pub fn shared(offset: u64, channel: &str, row: &str, data: &str) -> Arc<Shared> {
    let position = Position {
        partition: 0,
        epoch: Epoch::new("e").unwrap(),
        offset: Offset::new(offset),
    };
    let change = Change {
        channel: channel.parse().unwrap(),
        row: RowId::new(row).unwrap(),
        data: Some(data.to_owned().into()),
        ts_ms: 0,
    };
    Shared::new(Update { position, change }, Moment::default())
}
