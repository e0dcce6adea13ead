//! A lane: one channel of one partition on one worker, its members, and the line of what some of them have not been given.
//!
//! Updates and notices stand in one line, in the order in which they leave. A sweep walks over the members and gives each
//! all that waits for it, up to [`BATCH_BYTES`], as shared bytes; it can stop between any two of them. So one big channel
//! never holds the others up for longer than a turn's budget (I2), and none of its members waits longer than one round.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use super::{
    batch::{Batch, Load},
    sweep::{Members, Sweep},
};
use crate::{
    frame::{Shared, Wire},
    model::{Channel, Epoch, Mode, Moment, Offset},
    partition::resume::From,
};

pub use super::sweep::NONE;

/// A slice ends once it holds so many bytes of updates.
pub const BATCH_BYTES: usize = 64 * 1024;
/// Updates that wait in a lane; beyond it the lane reads on from the tail when half of them have been swept.
pub const PENDING_MAX: usize = 2048;
/// An empty line keeps room for so many items.
const LINE_KEPT: usize = 64;
/// Writes that one member gets in its turn: one, or some more where a notice lies between updates.
const LOADS_MAX: usize = 4;

/// What stands in the line.
#[derive(Debug)]
enum Item {
    Update(Arc<Shared>),
    Notice(Rc<Batch>),
}

impl Item {
    /// Who has been given it has everything up to here; none where it says nothing of that.
    fn offset(&self) -> Option<Offset> {
        match self {
            Self::Update(shared) => Some(shared.update.position.offset),
            Self::Notice(batch) => match &batch.load {
                Load::Gap(_, gap) => Some(gap.to.offset),
                Load::Updates(_) | Load::Beat(_) | Load::News(_) => None,
            },
        }
    }

    fn is_gap(&self) -> bool {
        matches!(self, Self::Notice(batch) if matches!(batch.load, Load::Gap(..)))
    }
}

/// A piece of the line, as it is given to members who are at its beginning.
#[derive(Debug)]
pub struct Slice {
    /// Where it begins, counted over the lane's life.
    from: u64,
    /// Where it ends.
    upto: u64,
    /// It has no room for more.
    full: bool,
    /// What is written, four batches at most.
    pub batches: Vec<Rc<Batch>>,
}

/// A sweep, and the piece of the line that it gives now.
#[derive(Debug)]
struct Round {
    sweep: Sweep,
    /// It ends with what stood in the line when it began; else it takes in what comes.
    upto: Option<u64>,
    slice: Option<Rc<Slice>>,
}

/// One channel and partition, for the connections of one worker.
#[derive(Debug)]
pub struct Lane {
    /// The worker's number for it.
    pub number: u32,
    /// The channel.
    pub channel: Channel,
    /// The worker's number for the channel.
    pub channel_no: u32,
    /// The worker's number for the partition.
    pub seat: u32,
    /// View or events.
    pub mode: Mode,
    members: Members,
    /// What not all members have been given, oldest first.
    line: VecDeque<Item>,
    /// How many items were before the first of them.
    first: u64,
    /// Of them, updates and gaps.
    data: usize,
    gaps: usize,
    round: Option<Round>,
    /// Everything up to here all members have been given; meaningful while updates wait, else the seat's cursor counts.
    pub swept: Offset,
    /// A position before this one is none of the view's states, so no heartbeat names it: the answer to a rejoin left out what was
    /// superseded by what came with it.
    pub whole_from: Offset,
    /// Updates that are not in the line begin after this offset, since it was full.
    pub behind_from: Option<Offset>,
    /// In which life of the tail, and which epoch, its positions count.
    pub life: (u64, Option<Epoch>),
    /// Updates up to here were part of an answer to the whole lane, and are not taken from the tail again.
    pub skip_to: Offset,
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
            number: NONE,
            channel,
            channel_no,
            seat,
            mode,
            members: Members::default(),
            line: VecDeque::new(),
            first: 0,
            data: 0,
            gaps: 0,
            round: None,
            swept: at,
            whole_from: Offset::BEFORE_ALL,
            behind_from: None,
            life,
            skip_to: Offset::BEFORE_ALL,
            queued: false,
            rejoining: None,
            refused: false,
        }
    }

    /// Takes a member in; gives its place. Of what waits it may be given more than it needs: its own line knows.
    pub fn enter(&mut self, wire: Wire, connection: u32) -> u32 {
        let place = self.members.push(wire, connection);
        if let Some(round) = &mut self.round {
            round.sweep.entered(&self.members, wire);
        }
        place
    }

    /// Lets a member go. During a sweep it leaves a hole; else the last one takes its place: then that one's number, and
    /// its new place, come back.
    pub fn leave(&mut self, wire: Wire, place: u32) -> Option<(u32, u32)> {
        if self.round.is_some() {
            self.members.vacate(wire, place);
            return None;
        }
        self.members.remove(wire, place)
    }

    /// Whether nobody is here.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many are here.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.members.len()
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = u32> + '_ {
        self.members.iter()
    }

    /// Whether there is anything to sweep.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.round.is_some() || !self.line.is_empty()
    }

    /// Whether some members have been given more than others.
    #[must_use]
    pub const fn is_sweeping(&self) -> bool {
        self.round.is_some()
    }

    /// Whether updates wait: then its own position counts, else its seat's.
    #[must_use]
    pub const fn has_updates(&self) -> bool {
        self.data > 0 || self.behind_from.is_some() || self.rejoining.is_some()
    }

    /// Whether updates or gaps are in the line.
    #[must_use]
    pub const fn has_data(&self) -> bool {
        self.data > 0
    }

    /// Whether events that will not come are still to be told to somebody.
    #[must_use]
    pub const fn has_gap(&self) -> bool {
        self.gaps > 0
    }

    /// How many more updates the line takes.
    #[must_use]
    pub fn room(&self) -> usize {
        PENDING_MAX.saturating_sub(self.line.len())
    }

    /// The offset of the last update in the line.
    #[must_use]
    pub fn last_offset(&self) -> Option<Offset> {
        self.line.iter().rev().find_map(Item::offset)
    }

    /// An update goes to the line's end.
    pub fn push(&mut self, shared: Arc<Shared>) {
        self.data += 1;
        self.line.push_back(Item::Update(shared));
    }

    /// Events that will not come go to the line's end.
    pub fn push_gap(&mut self, gap: Load) {
        self.data += 1;
        self.gaps += 1;
        let batch = Batch::new(gap, self.number, Offset::BEFORE_ALL);
        self.line.push_back(Item::Notice(batch));
    }

    /// A heartbeat or news goes as far to the front as nobody has been given what is behind it, and makes those of them
    /// untold that say no longer what is: a heartbeat all, news other news. `cursor` is the seat's.
    pub fn put_notice(&mut self, notice: Load, cursor: Offset) {
        let begin = self.index(self.newest());
        let is_beat = matches!(notice, Load::Beat(_));
        let mut at = begin;
        while let Some(Item::Notice(batch)) = self.line.get(at) {
            match batch.load {
                Load::News(_) => drop(self.line.remove(at)),
                Load::Beat(_) if is_beat => drop(self.line.remove(at)),
                Load::Beat(_) => at += 1,
                Load::Updates(_) | Load::Gap(..) => break,
            }
        }
        let after = self.after(self.first + at as u64, cursor);
        let batch = Batch::new(notice, self.number, after);
        self.line.insert(at, Item::Notice(batch));
    }

    fn index(&self, place: u64) -> usize {
        let ahead = usize::try_from(place.saturating_sub(self.first));
        ahead.map_or(self.line.len(), |ahead| ahead.min(self.line.len()))
    }

    fn end(&self) -> u64 {
        self.first + self.line.len() as u64
    }

    /// What somebody has been given, and nobody more.
    #[must_use]
    pub fn newest(&self) -> u64 {
        let round = self.round.as_ref();
        round.map_or(self.first, |round| round.sweep.newest())
    }

    /// What everybody has been given.
    #[must_use]
    pub const fn oldest(&self) -> u64 {
        self.first
    }

    /// What the member at this place has been given.
    #[must_use]
    pub fn given_at(&self, wire: Wire, place: u32) -> u64 {
        let round = self.round.as_ref();
        round.map_or(self.first, |round| round.sweep.given_at(wire, place))
    }

    /// Who has been given what is before `given` has everything up to here, if the seat is at `cursor`.
    #[must_use]
    pub fn offset_at(&self, given: u64, cursor: Offset) -> Offset {
        if given == self.end() && self.behind_from.is_none() && self.rejoining.is_none() {
            return cursor.max(self.after(given, cursor));
        }
        self.after(given, cursor)
    }

    fn after(&self, given: u64, cursor: Offset) -> Offset {
        let before = self.line.range(..self.index(given));
        let known = before.rev().find_map(Item::offset);
        known.unwrap_or(if self.has_updates() {
            self.swept
        } else {
            cursor
        })
    }

    /// The offset of the first update that waits for who has been given what is before `given`; a gap is before all.
    #[must_use]
    pub fn first_waiting(&self, given: u64) -> Option<Offset> {
        let mut ahead = self.line.range(self.index(given)..);
        ahead.find_map(|item| {
            let offset = item.offset()?;
            Some(if item.is_gap() {
                Offset::BEFORE_ALL
            } else {
                offset
            })
        })
    }

    /// What the next members are given; a sweep begins if there is none. None when everybody has everything, or all that
    /// this sweep carries. `rolling`: it takes in what comes while it is under way. `cursor` is the seat's.
    pub fn slice(&mut self, cursor: Offset, rolling: bool) -> Option<Rc<Slice>> {
        let end = self.end();
        if self.round.is_none() && !self.line.is_empty() {
            self.round = Some(Round {
                sweep: Sweep::new(&self.members, self.first),
                upto: (!rolling).then_some(end),
                slice: None,
            });
        }
        let round = self.round.as_ref()?;
        let from = round.sweep.oldest()?;
        let end = round.upto.unwrap_or(end);
        let fits = |slice: &&Rc<Slice>| slice.from == from && (slice.full || slice.upto == end);
        if let Some(slice) = round.slice.as_ref().filter(fits) {
            return Some(slice.clone());
        }
        if from >= end {
            return None;
        }
        let slice = Rc::new(self.cut(cursor, from, end));
        if let Some(round) = &mut self.round {
            round.slice = Some(slice.clone());
        }
        Some(slice)
    }

    fn cut(&self, cursor: Offset, from: u64, end: u64) -> Slice {
        let mut slice = Slice {
            from,
            upto: from,
            full: true,
            batches: Vec::with_capacity(1),
        };
        let (mut after, mut bytes) = (self.after(from, cursor), 0);
        let mut updates = Vec::new();
        for item in self.line.range(self.index(from)..self.index(end)) {
            if slice.batches.len() + usize::from(!updates.is_empty()) == LOADS_MAX
                && (updates.is_empty() || matches!(item, Item::Notice(_)))
            {
                break;
            }
            match item {
                Item::Update(shared) => {
                    bytes += shared.json().len() + 16;
                    if bytes > BATCH_BYTES && slice.upto > from {
                        break;
                    }
                    updates.push(shared.clone());
                }
                Item::Notice(batch) => {
                    slice.add(&mut updates, self.number, &mut after);
                    slice.batches.push(batch.clone());
                    after = item.offset().unwrap_or(after);
                }
            }
            slice.upto += 1;
        }
        slice.add(&mut updates, self.number, &mut after);
        slice.full = slice.upto < end;
        slice
    }

    /// Whose turn it is to get the slice, at most `most` of those who are at its beginning; tells `moved` who got another
    /// place. Their wire format comes back.
    pub fn next_members(
        &mut self,
        most: usize,
        turn: &mut Vec<u32>,
        moved: impl FnMut(u32, u32),
    ) -> Option<Wire> {
        let sweep = &mut self.round.as_mut()?.sweep;
        sweep.visit(&mut self.members, most, turn, moved)
    }

    /// Those who were visited have been given the slice. Tells of the updates that everybody has now, when the first and
    /// the last of them were applied.
    pub fn settle(&mut self, slice: &Slice) -> Option<(Moment, Moment)> {
        let round = self.round.as_mut()?;
        round.sweep.settle(&mut self.members, slice.upto);
        let oldest = round.sweep.oldest().unwrap_or(slice.upto);
        let mut applied: Option<(Moment, Moment)> = None;
        while self.first < oldest {
            let Some(item) = self.line.pop_front() else {
                break;
            };
            self.first += 1;
            self.gaps -= usize::from(item.is_gap());
            if let Some(offset) = item.offset() {
                self.data -= 1;
                self.swept = offset;
            }
            if let Item::Update(shared) = &item {
                let at = shared.applied_at;
                applied = Some((applied.map_or(at, |(first, _)| first), at));
            }
        }
        applied
    }

    /// Ends the sweep, when everybody has been given the same; closes its holes and tells `moved` who got another place.
    pub fn end_sweep(&mut self, moved: impl FnMut(u32, u32)) {
        if self.round.take().is_some() {
            self.members.close_holes(moved);
        }
        if self.line.is_empty() && self.line.capacity() > LINE_KEPT {
            self.line = VecDeque::new();
        }
    }
}

impl Slice {
    /// Updates that lie side by side become one batch; who gets the next one has everything up to `after`.
    fn add(&mut self, updates: &mut Vec<Arc<Shared>>, number: u32, after: &mut Offset) {
        let Some(last) = updates.last().map(|last| last.update.position.offset) else {
            return;
        };
        let load = Load::Updates(std::mem::take(updates));
        self.batches.push(Batch::new(load, number, *after));
        *after = last;
    }
}

#[cfg(test)]
mod tests;
