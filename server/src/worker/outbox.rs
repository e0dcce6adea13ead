//! What one connection is owed from one channel and partition while its socket takes no more, or its rate allows none.
//!
//! A view has two sets: a *frozen* one, in offset order, that is being sent, and an *open* one, where a newer update of a
//! row takes the older one's place; when the frozen one is empty the open one freezes. So no row starves, memory is bounded
//! by twice the rows, and what leaves never goes back (I4). Events have a queue that is bounded in frames and bytes; the
//! oldest that gives way leaves a counted gap in its place. Pure: no clock, no socket (I9).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    frame::{Shared, Snapshot},
    model::{Mode, Moment, Offset, Policy, Position, RowId},
    partition::{Begin, Gap, resume::From, tail::Proof},
    protocol::{Outcome, write::GapReason},
};

/// The bound of an outbox.
#[derive(Clone, Copy, Debug)]
pub struct OutboxMax {
    /// Bytes that it pins.
    pub bytes: usize,
    /// Frames.
    pub frames: usize,
}

/// What a line sends next.
#[derive(Debug)]
pub enum Next {
    /// Part of a snapshot; with its position, if it is the last.
    Part(Arc<[u8]>, Option<Position>),
    /// An update.
    Update(Arc<Shared>),
    /// Events that will not come.
    Gap(Gap),
}

/// What came of owing something to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// It waits, or it was passed already.
    Kept,
    /// An older one of the same row gave way.
    Conflated,
    /// So many of the oldest gave way.
    Dropped(u64),
    /// There is no room: a view begins again from what was sent, when the socket takes more.
    Overflow,
    /// There is no room, and the policy is to disconnect.
    Disconnect,
}

#[derive(Debug)]
enum Item {
    Update(Arc<Shared>),
    /// Dropped, up to this offset.
    Dropped {
        count: u64,
        to: Position,
    },
    Gap(Gap),
}

/// Whether a line has its beginning.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    /// A join is to be asked, from here, once the socket takes more.
    Behind(From),
    /// A join has been asked.
    Joining(From),
    /// It follows.
    Streaming,
}

/// One channel and partition of one connection.
#[derive(Debug)]
pub struct Line {
    /// Which lane of the worker.
    pub lane: u32,
    mode: Mode,
    policy: Policy,
    /// Whether it has its beginning.
    pub phase: Phase,
    /// Everything up to here is in here, or was sent, or was superseded.
    pub cursor: Offset,
    /// The newest position handed to the socket.
    pub sent: Option<Position>,
    snapshot: Option<(Arc<Snapshot>, usize)>,
    /// What came with the beginning: it is bounded by the replay's own limit, not by the outbox's.
    ahead: VecDeque<Item>,
    frozen: VecDeque<Item>,
    open: HashMap<RowId, Arc<Shared>>,
    bytes: usize,
    /// At most one flush in this time.
    every: Option<Duration>,
    next_flush: Moment,
    /// Since when something waits.
    pub waiting_since: Option<Moment>,
    /// Once all that is frozen has left, this proof may leave.
    pub proof: Option<Proof>,
    /// The first `live` after a join needs a proof asked for after this moment.
    pub unproven_since: Option<Moment>,
    /// A heartbeat is to leave when nothing of the channel waits.
    pub beat_due: bool,
    /// Its last join was refused: the next one is asked when a timer says so.
    pub retry_later: bool,
    /// The client was told that this line is behind.
    pub told_lagging: bool,
    /// The request that its outcome answers; none once answered, or over SSE.
    pub request: Option<u64>,
    /// `catching_up` has been said: the outcome follows as a message of its own.
    pub held: bool,
    /// In which life of the tail its cursor counts.
    pub life: u64,
    /// The outcome, until it is said.
    pub outcome: Option<Outcome>,
    /// The outcome has been said: data may leave.
    pub greeted: bool,
}

impl Line {
    /// Another line of the same subscription, for a lane that is new: it has nothing yet, and keeps to the same rules.
    #[must_use]
    pub fn beside(&self) -> Self {
        let fresh = Self::new(self.lane, self.mode, self.policy, None);
        Self {
            every: self.every,
            greeted: self.greeted,
            held: self.held,
            ..fresh
        }
    }

    /// A line that has nothing yet.
    #[must_use]
    pub fn new(lane: u32, mode: Mode, policy: Policy, max_rate: Option<f64>) -> Self {
        Self {
            lane,
            mode,
            policy,
            phase: Phase::Streaming,
            cursor: Offset::BEFORE_ALL,
            sent: None,
            snapshot: None,
            ahead: VecDeque::new(),
            frozen: VecDeque::new(),
            open: HashMap::new(),
            bytes: 0,
            every: max_rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            next_flush: Moment::default(),
            waiting_since: None,
            proof: None,
            unproven_since: None,
            beat_due: false,
            retry_later: false,
            told_lagging: false,
            request: None,
            held: false,
            life: 0,
            outcome: None,
            greeted: false,
        }
    }

    /// Whether it flushes at a rate of its own.
    #[must_use]
    pub const fn has_rate(&self) -> bool {
        self.every.is_some()
    }

    /// Whether the client chose another policy than the stream's.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Nothing waits here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_drained() && self.open.is_empty()
    }

    /// Nothing waits here but what the rate holds back.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.snapshot.is_none() && self.ahead.is_empty() && self.frozen.is_empty()
    }

    /// Bytes that it pins, about.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames that wait.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frozen.len() + self.open.len() + self.ahead.len()
    }

    /// Takes the answer to its join.
    pub fn begin(&mut self, begin: &Begin, arrived: Moment, now: Moment) {
        if let Phase::Joining(From::After(token)) = &self.phase
            && begin.snapshot.is_none()
            && self.sent.is_none()
        {
            self.sent = Some(token.clone());
        }
        (self.phase, self.life) = (Phase::Streaming, begin.life);
        self.unproven_since = Some(arrived);
        let keep = self.mode == Mode::Events && begin.snapshot.is_none();
        if !keep {
            self.purge();
        }
        self.snapshot = begin.snapshot.clone().map(|snapshot| (snapshot, 0));
        let queue = if self.frozen.is_empty() {
            &mut self.ahead
        } else {
            &mut self.frozen
        };
        queue.extend(begin.gap.iter().cloned().map(Item::Gap));
        match self.mode {
            Mode::Events if self.frozen.is_empty() => self
                .ahead
                .extend(begin.updates.iter().cloned().map(Item::Update)),
            Mode::Events => {
                self.bytes += begin
                    .updates
                    .iter()
                    .map(|shared| shared.weight())
                    .sum::<usize>();
                self.frozen
                    .extend(begin.updates.iter().cloned().map(Item::Update));
            }
            Mode::View => self.lead(&begin.updates, now),
        }
        self.cursor = begin.at.offset;
        if self.sent.is_none()
            && begin.snapshot.is_none()
            && begin.gap.is_none()
            && begin.updates.is_empty()
        {
            self.sent = Some(begin.at.clone());
        }
        if !self.is_empty() {
            self.waiting_since.get_or_insert(now);
        }
    }

    /// What follows a view's token or snapshot, of each row the newest: sent before all else, as one flush. The outbox's
    /// bound would make a line with more than that ask for ever, and get the same answer.
    fn lead(&mut self, updates: &[Arc<Shared>], now: Moment) {
        let mut newest: HashMap<&RowId, &Arc<Shared>> = HashMap::new();
        for shared in updates {
            newest.insert(&shared.update.change.row, shared);
        }
        let mut newest: Vec<_> = newest.into_values().cloned().collect();
        newest.sort_unstable_by_key(|shared| shared.update.position.offset);
        if let Some(every) = self.every.filter(|_| !newest.is_empty()) {
            self.next_flush = now.plus(every);
        }
        self.ahead.extend(newest.into_iter().map(Item::Update));
    }

    /// Owes an update.
    pub fn owe(&mut self, shared: &Arc<Shared>, now: Moment, max: OutboxMax) -> Owed {
        let offset = shared.update.position.offset;
        if self.phase != Phase::Streaming || offset <= self.cursor {
            return Owed::Kept;
        }
        self.cursor = offset;
        self.waiting_since.get_or_insert(now);
        self.bytes += shared.weight();
        if self.mode == Mode::Events {
            self.frozen.push_back(Item::Update(shared.clone()));
            return self.bound_events(max);
        }
        let old = self
            .open
            .insert(shared.update.change.row.clone(), shared.clone());
        self.bytes -= old.as_ref().map_or(0, |old| old.weight());
        if self.bytes <= max.bytes && self.frozen.len() + self.open.len() <= max.frames {
            return if old.is_some() {
                Owed::Conflated
            } else {
                Owed::Kept
            };
        }
        if self.policy == Policy::Disconnect {
            return Owed::Disconnect;
        }
        self.fall_behind();
        Owed::Overflow
    }

    /// Owes a gap that its whole lane is told of, unless it went through the resume table by itself.
    pub fn owe_gap(&mut self, gap: &Gap, now: Moment) {
        if self.phase != Phase::Streaming || self.cursor >= gap.to.offset {
            return;
        }
        self.cursor = gap.to.offset;
        self.waiting_since.get_or_insert(now);
        self.frozen.push_back(Item::Gap(gap.clone()));
    }

    /// Gives up what is open, and begins again from what will have been sent once the rest has left: a snapshot under way
    /// is finished, or a busy view would never arrive at a slow reader.
    fn fall_behind(&mut self) {
        self.bytes -= self
            .open
            .drain()
            .map(|(_, shared)| shared.weight())
            .sum::<usize>();
        self.phase = Phase::Behind(self.sent.clone().map_or(From::Now, From::After));
    }

    /// Where the next join is asked from: behind what was sent, if anything was.
    #[must_use]
    pub fn join_from(&self, from: &From) -> From {
        self.sent.clone().map_or_else(|| from.clone(), From::After)
    }

    /// A snapshot of which some parts have left, and some not.
    #[must_use]
    pub fn is_between_parts(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|(_, part)| *part > 0)
    }

    /// The tail under it has another life: it goes through the resume table. Events keep what waits, and go on behind it.
    pub fn restart(&mut self) {
        if self.phase != Phase::Streaming {
            return;
        }
        let from = match self.mode {
            Mode::View => {
                self.purge();
                self.sent.clone()
            }
            Mode::Events => self.newest_waiting().or_else(|| self.sent.clone()),
        };
        self.phase = Phase::Behind(from.map_or(From::Now, From::After));
    }

    fn newest_waiting(&self) -> Option<Position> {
        let newest = self.frozen.back().or(self.ahead.back())?;
        Some(match newest {
            Item::Update(shared) => shared.update.position.clone(),
            Item::Dropped { to, .. } => to.clone(),
            Item::Gap(gap) => gap.to.clone(),
        })
    }

    fn purge(&mut self) {
        self.snapshot = None;
        self.ahead.clear();
        self.frozen.clear();
        self.open.clear();
        (self.bytes, self.proof, self.waiting_since) = (0, None, None);
    }

    fn bound_events(&mut self, max: OutboxMax) -> Owed {
        let mut dropped = 0;
        while self.bytes > max.bytes || self.frozen.len() > max.frames {
            if self.policy == Policy::Disconnect {
                return Owed::Disconnect;
            }
            if !self.drop_oldest() {
                break;
            }
            dropped += 1;
        }
        if dropped > 0 {
            Owed::Dropped(dropped)
        } else {
            Owed::Kept
        }
    }

    /// The oldest waiting event becomes a gap in its place; gaps side by side become one.
    fn drop_oldest(&mut self) -> bool {
        let Some(at) = self
            .frozen
            .iter()
            .position(|item| matches!(item, Item::Update(_)))
        else {
            return false;
        };
        let Some(Item::Update(oldest)) = self.frozen.remove(at) else {
            return false;
        };
        self.bytes -= oldest.weight();
        let to = oldest.update.position.clone();
        match at.checked_sub(1).map(|before| &mut self.frozen[before]) {
            Some(Item::Dropped { count, to: up_to }) => (*count, *up_to) = (*count + 1, to),
            _ => self.frozen.insert(at, Item::Dropped { count: 1, to }),
        }
        true
    }

    /// What leaves next, if anything may. `proof` is what the open set proves when it freezes now.
    pub fn next(&mut self, now: Moment, proof: Option<Proof>) -> Option<Next> {
        if self
            .snapshot
            .as_ref()
            .is_some_and(|(snapshot, _)| snapshot.is_abandoned())
        {
            self.purge();
            self.fall_behind();
            return None;
        }
        if let Some((snapshot, n)) = &mut self.snapshot {
            let part = snapshot.part(*n);
            *n += 1;
            let position = part.last.then(|| snapshot.position().clone());
            if part.last {
                self.sent.clone_from(&position);
                self.snapshot = None;
                self.rest(now);
            }
            return Some(Next::Part(part.json, position));
        }
        if self.ahead.is_empty() && self.frozen.is_empty() {
            self.freeze(now, proof);
        }
        let item = self.ahead.pop_front().or_else(|| {
            let item = self.frozen.pop_front();
            if let Some(Item::Update(shared)) = &item {
                self.bytes -= shared.weight();
            }
            item
        })?;
        let next = self.leave(item);
        self.rest(now);
        Some(next)
    }

    fn leave(&mut self, item: Item) -> Next {
        match item {
            Item::Update(shared) => {
                self.sent = Some(shared.update.position.clone());
                Next::Update(shared)
            }
            Item::Gap(gap) => {
                self.sent = Some(gap.to.clone());
                Next::Gap(gap)
            }
            Item::Dropped { count, to } => {
                let from = self.sent.replace(to.clone()).unwrap_or_else(|| to.clone());
                Next::Gap(Gap {
                    from,
                    to,
                    dropped: Some(count),
                    reason: GapReason::SlowConsumer,
                })
            }
        }
    }

    fn rest(&mut self, now: Moment) {
        if self.is_empty() {
            self.waiting_since = None;
        } else if self.is_drained() {
            // What waits now is younger than what has left.
            self.waiting_since = Some(now);
        }
    }

    /// The open set freezes, in offset order, if the rate allows it.
    fn freeze(&mut self, now: Moment, proof: Option<Proof>) {
        if now < self.next_flush {
            return;
        }
        if self.open.is_empty() {
            return;
        }
        let mut updates: Vec<_> = self.open.drain().map(|(_, shared)| shared).collect();
        if self.open.capacity() > 64 {
            self.open = HashMap::new();
        }
        updates.sort_unstable_by_key(|shared| shared.update.position.offset);
        self.frozen.extend(updates.into_iter().map(Item::Update));
        self.proof = proof;
        if let Some(every) = self.every {
            self.next_flush = now.plus(every);
        }
    }

    /// When it may flush again, if something waits for that.
    #[must_use]
    pub fn flush_at(&self, now: Moment) -> Option<Moment> {
        (self.is_drained() && !self.open.is_empty() && self.next_flush > now)
            .then_some(self.next_flush)
    }
}

#[cfg(test)]
mod tests;
