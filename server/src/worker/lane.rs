//! A lane: one channel of one partition on one worker, its members by wire format, and the sweep that is under way.
//!
//! A sweep writes one shared buffer to all members and can stop between any two of them: who leaves makes a hole, who
//! joins is appended behind its end. So one big channel never holds the others up for longer than a turn's budget (I2).

use std::{cell::OnceCell, collections::VecDeque, rc::Rc, sync::Arc};

use crate::{
    frame::{Shared, Wire},
    model::{Channel, Epoch, Mode, Offset},
    partition::resume::From,
};

/// No lane, no member.
pub const NONE: u32 = u32::MAX;
/// A sweep's buffer is closed once it holds so many bytes of messages.
pub const BATCH_BYTES: usize = 64 * 1024;
/// Updates that wait in a lane; beyond it the lane reads on from the tail when it has swept them.
pub const PENDING_MAX: usize = 2048;

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

/// What one sweep carries.
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

/// What a sweep writes: encoded at most once per wire format, shared by all members (I8).
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

/// A sweep under way.
#[derive(Debug)]
pub struct Sweep {
    /// What is written.
    pub batch: Rc<Batch>,
    wire: usize,
    next: usize,
    ends: [usize; Wire::COUNT],
}

/// One channel and partition, for the connections of one worker.
#[derive(Debug)]
pub struct Lane {
    /// The channel.
    pub channel: Channel,
    /// The worker's number for the channel.
    pub channel_no: u32,
    /// The worker's number for the partition.
    pub seat: u32,
    /// View or events.
    pub mode: Mode,
    members: [Vec<u32>; Wire::COUNT],
    live: usize,
    holes: bool,
    /// Updates that the next sweeps carry.
    pub pending: VecDeque<Arc<Shared>>,
    /// Messages that go before them, in order.
    pub notices: VecDeque<Load>,
    /// The sweep under way.
    pub sweep: Option<Sweep>,
    /// Everything up to here has been swept; meaningful while a sweep or updates wait, else the seat's cursor counts.
    pub swept: Offset,
    /// Updates that are not in `pending` begin after this offset, since `pending` was full.
    pub behind_from: Option<Offset>,
    /// In which life of the tail, and which epoch, its positions count.
    pub life: (u64, Option<Epoch>),
    /// Updates up to here were part of an answer to the whole lane, and are not taken from the tail again.
    pub skip_to: Offset,
    /// Connections to be looked at again when the sweep ends: they may leave the slow path.
    pub recheck: Vec<u64>,
    /// Whether the worker has it on its list.
    pub queued: bool,
    /// A rejoin of the whole lane is under way, from here, where its fast members are; one is asked at a time.
    pub rejoining: Option<From>,
    /// It was refused, and is asked again when a timer says so.
    pub refused: bool,
}

impl Lane {
    /// A lane without members, at `at` in that life of its tail.
    #[must_use]
    pub fn new(
        channel: Channel,
        channel_no: u32,
        seat: u32,
        mode: Mode,
        at: Offset,
        life: (u64, Option<Epoch>),
    ) -> Self {
        Self {
            channel,
            channel_no,
            seat,
            mode,
            members: Default::default(),
            live: 0,
            holes: false,
            pending: VecDeque::new(),
            notices: VecDeque::new(),
            sweep: None,
            swept: at,
            behind_from: None,
            life,
            skip_to: Offset::BEFORE_ALL,
            recheck: Vec::new(),
            queued: false,
            rejoining: None,
            refused: false,
        }
    }

    /// Takes a member in, behind the end of a sweep under way; gives its place.
    pub fn enter(&mut self, wire: Wire, connection: u32) -> u32 {
        let members = &mut self.members[wire.index()];
        self.live += 1;
        members.push(connection);
        u32::try_from(members.len() - 1).unwrap_or(NONE)
    }

    /// Lets a member go. During a sweep it leaves a hole; else the last one takes its place: then that one's number, and
    /// its new place, come back.
    pub fn leave(&mut self, wire: Wire, at: u32) -> Option<(u32, u32)> {
        let members = &mut self.members[wire.index()];
        let place = at as usize;
        if self.sweep.is_some() {
            if let Some(member) = members.get_mut(place).filter(|member| **member != NONE) {
                *member = NONE;
                self.live -= 1;
                self.holes = true;
            }
            return None;
        }
        if place >= members.len() {
            return None;
        }
        self.live -= 1;
        members.swap_remove(place);
        if members.len() < members.capacity() / 4 {
            members.shrink_to(members.len() * 2);
        }
        members.get(place).map(|&moved| (moved, at))
    }

    /// Whether nobody is here.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// How many are here.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.live
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = u32> + '_ {
        self.members
            .iter()
            .flatten()
            .copied()
            .filter(|&member| member != NONE)
    }

    /// Whether there is anything to sweep.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.sweep.is_some() || !self.pending.is_empty() || !self.notices.is_empty()
    }

    /// Whether updates wait: then its own position counts, else its seat's.
    #[must_use]
    pub fn has_updates(&self) -> bool {
        let sweeping = self
            .sweep
            .as_ref()
            .is_some_and(|sweep| matches!(sweep.batch.load, Load::Updates(_) | Load::Gap(..)));
        sweeping
            || self.has_gap()
            || !self.pending.is_empty()
            || self.behind_from.is_some()
            || self.rejoining.is_some()
    }

    /// Whether events that will not come are still to be told.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        let swept_now = self.sweep.as_ref().map(|sweep| &sweep.batch.load);
        let mut loads = self.notices.iter().chain(swept_now);
        loads.any(|load| matches!(load, Load::Gap(..)))
    }

    /// Begins a sweep with what waits, if something does. `number` is the lane's own; its members have everything up to
    /// `after`.
    pub fn begin_sweep(&mut self, number: u32, after: Offset) -> bool {
        let Some(load) = self.notices.pop_front().or_else(|| self.take_updates()) else {
            return false;
        };
        let ends = std::array::from_fn(|wire| self.members[wire].len());
        self.sweep = Some(Sweep {
            batch: Batch::new(load, number, after),
            wire: 0,
            next: 0,
            ends,
        });
        true
    }

    fn take_updates(&mut self) -> Option<Load> {
        let (mut bytes, mut updates) = (0, Vec::new());
        while let Some(next) = self.pending.front() {
            bytes += next.json().len() + 16;
            if !updates.is_empty() && bytes > BATCH_BYTES {
                break;
            }
            updates.extend(self.pending.pop_front());
        }
        (!updates.is_empty()).then_some(Load::Updates(updates))
    }

    /// The next member of the sweep under way, and its wire format; none at its end.
    pub fn next_member(&mut self) -> Option<(u32, Wire)> {
        let sweep = self.sweep.as_mut()?;
        while sweep.wire < Wire::COUNT {
            let members = &self.members[sweep.wire];
            while sweep.next < sweep.ends[sweep.wire] {
                let member = members[sweep.next];
                sweep.next += 1;
                if member != NONE {
                    return Some((member, Wire::ALL[sweep.wire]));
                }
            }
            sweep.wire += 1;
            sweep.next = 0;
        }
        None
    }

    /// Ends the sweep; closes its holes and tells `moved` who got another place.
    pub fn end_sweep(&mut self, mut moved: impl FnMut(u32, u32)) -> Option<Rc<Batch>> {
        let batch = self.sweep.take()?.batch;
        match &batch.load {
            Load::Updates(updates) => {
                if let Some(last) = updates.last() {
                    self.swept = last.update.position.offset;
                }
            }
            Load::Gap(_, gap) => self.swept = gap.to.offset,
            Load::Beat(_) | Load::News(_) => {}
        }
        if std::mem::take(&mut self.holes) {
            for members in &mut self.members {
                let before = members.len();
                members.retain(|&member| member != NONE);
                if members.len() != before {
                    for (place, &member) in (0u32..).zip(members.iter()) {
                        moved(member, place);
                    }
                }
            }
        }
        Some(batch)
    }

    /// The offset of the first update that a member of now may yet be given.
    #[must_use]
    pub fn first_waiting(&self) -> Option<Offset> {
        let swept_now = self
            .sweep
            .as_ref()
            .and_then(|sweep| match &sweep.batch.load {
                Load::Updates(updates) => updates.first(),
                Load::Beat(_) | Load::News(_) | Load::Gap(..) => None,
            });
        swept_now
            .or(self.pending.front())
            .map(|shared| shared.update.position.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Moment, Position, RowId, Update};

    fn shared(offset: u64, bytes: usize) -> Arc<Shared> {
        let position = Position {
            partition: 0,
            epoch: Epoch::new("e").unwrap(),
            offset: Offset::new(offset),
        };
        let data = Some(format!("\"{}\"", "x".repeat(bytes)).into());
        let change = Change {
            channel: "s/c".parse().unwrap(),
            row: RowId::default(),
            data,
            ts_ms: 0,
        };
        Shared::new(Update { position, change }, Moment::default())
    }

    fn lane(members: u32) -> Lane {
        let mut lane = Lane::new(
            "s/c".parse().unwrap(),
            0,
            0,
            Mode::View,
            Offset::BEFORE_ALL,
            (0, None),
        );
        for member in 0..members {
            lane.enter(Wire::WebSocket, member);
        }
        lane
    }

    #[test]
    fn who_leaves_during_a_sweep_is_passed_over_and_who_joins_comes_behind_its_end() {
        let mut lane = lane(5);
        lane.pending.push_back(shared(1, 1));
        assert!(lane.begin_sweep(0, Offset::BEFORE_ALL));
        let mut seen = vec![lane.next_member().unwrap().0, lane.next_member().unwrap().0];
        lane.leave(Wire::WebSocket, 1);
        lane.leave(Wire::WebSocket, 3);
        lane.enter(Wire::WebSocket, 9);
        seen.extend(std::iter::from_fn(|| lane.next_member()).map(|(member, _)| member));
        assert_eq!(seen, [0, 1, 2, 4]);
        let mut places = Vec::new();
        lane.end_sweep(|member, place| places.push((member, place)));
        assert_eq!(places, [(0, 0), (2, 1), (4, 2), (9, 3)]);
        assert_eq!(lane.leave(Wire::WebSocket, 0), Some((9, 0)));
    }

    #[test]
    fn a_batch_is_bounded_and_takes_at_least_one() {
        let mut lane = lane(1);
        lane.pending
            .extend([shared(1, 60_000), shared(2, 60_000), shared(3, 200_000)]);
        for offset in 1..=3 {
            assert!(lane.begin_sweep(0, Offset::BEFORE_ALL));
            while lane.next_member().is_some() {}
            lane.end_sweep(|_, _| {});
            assert_eq!(lane.swept, Offset::new(offset));
        }
        assert!(!lane.begin_sweep(0, Offset::BEFORE_ALL));
    }

    #[test]
    fn a_batch_is_encoded_once_per_wire() {
        let batch = Batch::new(
            Load::Updates(vec![shared(1, 10), shared(2, 10)]),
            0,
            Offset::BEFORE_ALL,
        );
        let encoded = batch.encoded(Wire::WebSocket);
        assert_eq!(encoded.ends.len(), 2);
        assert_eq!(encoded.ends[1], encoded.bytes.len());
        assert!(std::ptr::eq(encoded, batch.encoded(Wire::WebSocket)));
    }
}
