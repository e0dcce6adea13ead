//! What one write to many carries: updates or a notice, encoded once per wire format and shared by all who get it (I8).

use std::{cell::OnceCell, rc::Rc, sync::Arc};

use crate::{
    frame::{Shared, Wire},
    model::{Channel, Offset},
};

/// A message for all members that is no update.
#[derive(Debug)]
pub struct Notice {
    /// Of which channel.
    pub channel: Channel,
    /// Its event's name.
    pub op: &'static str,
    /// Its JSON.
    pub json: Vec<u8>,
    /// Its position, for SSE.
    pub id: Option<String>,
}

/// What a batch carries.
#[derive(Debug)]
pub enum Load {
    /// Updates, in order.
    Updates(Vec<Arc<Shared>>),
    /// A heartbeat: it goes behind the data.
    Beat(Notice),
    /// A state other than live: it may overtake data.
    News(Notice),
    /// Events that will not come: in its place in the line.
    Gap(Notice, crate::partition::Gap),
}

/// One wire format's bytes, and where each message ends.
#[derive(Debug)]
pub struct Encoded {
    /// All messages.
    pub bytes: Vec<u8>,
    /// The end of each.
    pub ends: Vec<usize>,
}

/// One write to many: encoded at most once per wire format.
#[derive(Debug)]
pub struct Batch {
    /// What it carries.
    pub load: Load,
    /// The worker's number for the lane.
    pub lane: u32,
    /// Who gets it has everything up to here.
    pub after: Offset,
    encoded: [OnceCell<Encoded>; Wire::COUNT],
}

impl Batch {
    /// A batch that nobody has encoded yet.
    #[must_use]
    pub fn new(load: Load, lane: u32, after: Offset) -> Rc<Self> {
        Rc::new(Self {
            load,
            lane,
            after,
            encoded: Default::default(),
        })
    }

    /// Its bytes in one wire format.
    pub fn encoded(&self, wire: Wire) -> &Encoded {
        self.encoded[wire.index()].get_or_init(|| {
            let mut encoded = Encoded {
                bytes: Vec::new(),
                ends: Vec::new(),
            };
            match &self.load {
                Load::Updates(updates) => {
                    for shared in updates {
                        shared.append(wire, &mut encoded.bytes);
                        encoded.ends.push(encoded.bytes.len());
                    }
                }
                Load::Beat(notice) | Load::News(notice) | Load::Gap(notice, _) => {
                    let id = notice.id.as_ref().map(|id| id as &dyn std::fmt::Display);
                    wire.append(&mut encoded.bytes, notice.op, id, &notice.json);
                    encoded.ends.push(encoded.bytes.len());
                }
            }
            encoded
        })
    }

    /// How many messages it carries.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.load {
            Load::Updates(updates) => updates.len(),
            Load::Beat(_) | Load::News(_) | Load::Gap(..) => 1,
        }
    }

    /// Whether it carries none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::samples::shared;

    #[test]
    fn a_batch_is_encoded_once_per_wire() {
        let load = Load::Updates([1, 2].map(|at| shared(at, "s/c", "", "7")).into());
        let batch = Batch::new(load, 0, Offset::BEFORE_ALL);
        let encoded = batch.encoded(Wire::WebSocket);
        assert_eq!(encoded.ends.len(), 2);
        assert_eq!(encoded.ends[1], encoded.bytes.len());
        assert!(std::ptr::eq(encoded, batch.encoded(Wire::WebSocket)));
    }
}
