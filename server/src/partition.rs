//! One partition of one stream on this node: the only writer of its views and of its tail.
//!
//! Does: applies what the source yields, makes channels resident (fence join), answers joins by the resume table, and
//! says how fresh everything is. Owns: views, tail, last changes, held joins. Never knows: connections, sockets, wire
//! formats but for the snapshots that it hands on. Keeps: I3, I5, I6. [`Partition`] is pure: fetches and moments come in
//! as arguments (I9); `partition/task.rs` drives it, `partition/answer.rs` is how it answers.

mod alone;
mod answer;
mod awaited;
mod backfill;
mod backing;
mod changes;
mod copying;
mod fence;
mod join;
mod letting_go;
mod lineage;
mod loading;
mod misplaced;
mod need;
mod reading;
mod resting;
pub mod resume;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod stand_in;
pub mod tail;
pub mod task;
mod view;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use answer::{Answers, Way};
use awaited::Awaited;
pub use backing::Backing;
pub use copying::{CopyReport, Copying};
pub use fence::{FenceReport, FenceSettings, Next};
pub use join::Load;
pub use loading::Cached;
pub use misplaced::Misplaced;
pub use need::Reads;
pub use reading::FoldSettings;
use resume::From;
use stand_in::StandIn;
use tail::{Health, Proof, Tail, Wake};
use view::View;
pub use view::ViewsHeld;

use crate::{
    cache::CachedView,
    decode::Decoder,
    frame::{Shared, Snapshot},
    model::{Channel, Epoch, Mode, Moment, Offset, Position, Record, Update},
    protocol::{ErrorCode, Outcome, Refusal, write::GapReason},
    source::{Fetch, SourceError},
    telemetry::Throttle,
};

/// A join that has no answer after so long is told that it is held.
const HELD_NEWS: Duration = Duration::from_millis(250);
/// An encoded snapshot, or list of changes, that nobody asked for is kept so long for those who join a little later.
const SHARED_KEPT: Duration = Duration::from_secs(5);

/// What a partition is told of its stream.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The stream's name.
    pub stream: String,
    /// Which partition.
    pub partition: u32,
    /// View or events.
    pub mode: Mode,
    /// It was added later: its channels have moved here from older partitions, so what it deletes leaves graves.
    pub is_later: bool,
    /// Records read for one replay, at most.
    pub replay_records: usize,
    /// How long a join is held for this node to become as far as its token.
    pub hold: Duration,
}

/// A record that was passed over.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Where it is.
    pub offset: u64,
    /// Why.
    pub message: String,
}

/// A wish to follow a channel of this partition.
#[derive(Debug)]
#[cfg_attr(feature = "seeded-bugs", derive(Clone))]
pub struct Join {
    /// The asker's own number for this partition.
    pub seat: u32,
    /// Of which channel.
    pub channel: Channel,
    /// From where.
    pub from: From,
    /// When the wish reached the node.
    pub arrived: Moment,
    /// The asker's own numbers for who wishes it.
    pub members: Vec<u64>,
    /// Where the answer goes.
    pub reply: Arc<Mailbox>,
    /// Whether it has been told that it is held.
    pub told: bool,
}

/// Events that will not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// After this position; in another epoch than `to` when the log has changed.
    pub from: Position,
    /// Up to this one.
    pub to: Position,
    /// How many, where it is known.
    pub dropped: Option<u64>,
    /// Why.
    pub reason: GapReason,
}

/// How a line begins.
#[derive(Clone, Debug)]
pub struct Begin {
    /// What the client is told.
    pub outcome: Outcome,
    /// The view, where it comes whole.
    pub snapshot: Option<Arc<Snapshot>>,
    /// What is missing, where something is.
    pub gap: Option<Gap>,
    /// What comes first, in order.
    pub updates: Vec<Arc<Shared>>,
    /// With all that, the line is here.
    pub at: Position,
    /// In this life of the tail: an answer of an earlier one is no answer.
    pub life: u64,
}

/// The answer to a join.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Not yet: this node is behind. Another answer follows.
    Held,
    /// No, and when to ask again.
    Refused(Refusal),
    /// From here on.
    Begin(Begin),
}

/// An answer and whom it is for.
#[derive(Clone, Debug)]
pub struct Joined {
    /// The asker's own number for this partition.
    pub seat: u32,
    /// The channel.
    pub channel: Channel,
    /// From where it was wished: an asker that wishes something else by now goes by that.
    pub from: From,
    /// The asker's own numbers.
    pub members: Vec<u64>,
    /// When the wish arrived: the first `live` needs a proof asked for after it.
    pub arrived: Moment,
    /// The answer.
    pub answer: Answer,
}

/// Where a worker finds its answers. It holds at most as many as the worker has asked joins.
#[derive(Debug, Default)]
pub struct Mailbox {
    answers: Mutex<Vec<Joined>>,
    /// Raised when there is something.
    pub wake: Arc<Wake>,
}

impl Mailbox {
    /// A mailbox that raises this flag.
    #[must_use]
    pub fn new(wake: Arc<Wake>) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::default(),
            wake,
        })
    }
    fn put(&self, joined: Joined) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(joined);
        self.wake.raise();
    }
    /// Takes what has come.
    #[must_use]
    pub fn take(&self) -> Vec<Joined> {
        std::mem::take(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A view as `/v1/view` gives it.
#[derive(Clone, Debug)]
pub struct ViewAt {
    /// The rows and their position.
    pub snapshot: Arc<Snapshot>,
    /// Its last change, as far as it is known.
    pub last_change: Option<Position>,
    /// How the partition is doing.
    pub health: Health,
    /// It is not the log's, but what stands in for that.
    pub stands_in: bool,
}

impl ViewAt {
    /// Whether it has a change behind `seen`.
    #[must_use]
    pub fn is_newer_than(&self, seen: Option<&Position>) -> bool {
        let Some(seen) = seen else { return true };
        let behind = |last: &Position| last.offset > seen.offset;
        self.snapshot.position().epoch != seen.epoch
            || self.last_change.as_ref().is_some_and(behind)
    }

    /// Whether this node has not come as far as `seen`.
    #[must_use]
    pub fn is_behind(&self, seen: Option<&Position>) -> bool {
        let here = self.snapshot.position();
        // Whether another log is newer nobody knows who could not read any.
        let other = |seen: &Position| self.stands_in && seen.epoch != here.epoch;
        seen.is_some_and(|seen| {
            other(seen) || (seen.epoch == here.epoch && seen.offset > here.offset)
        })
    }
}

/// The state of one partition.
pub struct Partition {
    settings: Settings,
    decoder: Decoder,
    backing: Backing,
    tail: Arc<Tail>,
    epoch: Option<Epoch>,
    applied: Offset,
    views: HashMap<Channel, View>,
    /// Channels whose views hold something shared that is let go of after a while.
    sharing: HashSet<Channel>,
    awaited: Awaited,
    last_change: HashMap<Channel, Offset>,
    /// The channels of `last_change`, each once, in the order in which they are looked at.
    names: VecDeque<Channel>,
    /// Channels without a last change have not changed after this; none where that is not known.
    forgotten: Option<Offset>,
    head: (Offset, Moment),
    unproven: Option<Proof>,
    health: Health,
    readable: bool,
    stand_in: Option<StandIn>,
    /// It rested, and joins wait until it has come as far as the log.
    waking: Option<resting::Waking>,
    /// Where a log that it has not read yet is begun.
    begins: Option<Offset>,
    joins: Vec<Join>,
    answers: Answers,
    held: ViewsHeld,
    evicted: u64,
    poisoned: u64,
    misplaced: (Arc<Misplaced>, u64),
    last_skipped: Option<Skipped>,
    warning: Throttle,
    #[cfg(feature = "seeded-bugs")]
    seeded: seeded::Seeded,
}

impl Partition {
    /// A partition that has read nothing yet.
    #[must_use]
    pub fn new(
        settings: Settings,
        decoder: Decoder,
        backing: impl Into<Backing>,
        tail: Arc<Tail>,
    ) -> Self {
        let backing = backing.into();
        Self {
            settings,
            decoder,
            held: ViewsHeld {
                data_too: backing.is_fold() || backing.is_cache(),
                ..ViewsHeld::default()
            },
            backing,
            tail,
            epoch: None,
            applied: Offset::BEFORE_ALL,
            views: HashMap::new(),
            sharing: HashSet::new(),
            awaited: Awaited::default(),
            last_change: HashMap::new(),
            names: VecDeque::new(),
            forgotten: None,
            head: (Offset::BEFORE_ALL, Moment::default()),
            unproven: None,
            health: Health::default(),
            readable: false,
            stand_in: None,
            waking: None,
            begins: None,
            joins: Vec::new(),
            answers: Answers::default(),
            evicted: 0,
            poisoned: 0,
            misplaced: (Arc::default(), 0),
            last_skipped: None,
            warning: Throttle::default(),
            #[cfg(feature = "seeded-bugs")]
            seeded: seeded::Seeded::default(),
        }
    }

    /// The same, of a stream whose channels others place: what all of its partitions know of that.
    #[must_use]
    pub fn placed(mut self, misplaced: Arc<Misplaced>) -> Self {
        self.misplaced.0 = misplaced;
        self
    }

    /// What its views hold: the sums go on by themselves.
    #[must_use]
    pub fn held(&self) -> ViewsHeld {
        self.held.clone()
    }

    /// After which offset the next fetch begins; none before the first.
    #[must_use]
    pub fn next_after(&self) -> Option<Offset> {
        let epoch = self.epoch.as_ref().filter(|_| self.standing().is_none());
        epoch.map(|_| self.applied).or(self.begins)
    }

    /// Records that meant nothing.
    #[must_use]
    pub const fn poisoned(&self) -> u64 {
        self.poisoned
    }

    /// Records of channels that belong into other partitions.
    #[must_use]
    pub const fn misplaced(&self) -> u64 {
        self.misplaced.1
    }

    /// Records whose event time was not where it should be.
    #[must_use]
    pub const fn untimed(&self) -> u64 {
        self.decoder.untimed()
    }

    /// The last record that was passed over.
    #[must_use]
    pub const fn last_skipped(&self) -> Option<&Skipped> {
        self.last_skipped.as_ref()
    }

    /// What came of the joins.
    #[must_use]
    pub const fn answers(&self) -> Answers {
        self.answers
    }

    /// The log's identity; none before the first fetch, unless something stands in.
    #[must_use]
    pub const fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// How many joins wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.joins.len()
    }

    /// Takes a successful fetch that was sent at `asked_at`.
    pub fn take(&mut self, fetch: &Fetch, asked_at: Moment, now: Moment) {
        self.readable = true;
        self.step_aside();
        if self.land(fetch, asked_at, now) {
            return;
        }
        let other_log = self.backing.is_other_log(self.epoch.as_ref(), fetch);
        if self.epoch.is_none() && !self.backing.is_cache() {
            self.open(fetch, self.beginning(fetch), now);
        } else if other_log || self.applied < fetch.start || self.backing.has_missed(fetch) {
            let at = self
                .backing
                .begins_anew(fetch, other_log, self.settings.mode);
            return self.restart(fetch, at, asked_at, now);
        }
        let mut batch: Vec<_> = fetch
            .records
            .iter()
            .filter_map(|record| self.apply(record, now))
            .collect();
        self.applied = self.applied.max(fetch.upto);
        self.backing.applied(fetch);
        self.health.flaw = self.backing.flaw();
        if self.backing.lacks_tombstones() {
            self.misplaced.0.lineage.tear(self.settings.partition);
        }
        self.tell_lineage(&batch);
        if self.rename(fetch, now) {
            batch.clear();
        }
        self.saw(fetch.head, asked_at);
        #[cfg(feature = "seeded-bugs")]
        let batch = self.seeded.pass(batch);
        self.tail.push(batch, self.applied, self.health, now);
        self.come_to(fetch.head);
        self.forget_quiet(fetch.start, fetch.records.len());
    }

    /// Where deletes may be missing in some partition of the stream, all tell what they have: first all of it, then what changes.
    fn tell_lineage(&self, batch: &[Arc<Shared>]) {
        let lineage = &self.misplaced.0.lineage;
        if !lineage.is_torn() || !self.backing.is_fold() {
            return;
        }
        let here = self.settings.partition;
        let note = |channel: &Channel| {
            let homes = self.misplaced.0.moved(channel);
            if let Some((view, homes)) = self.views.get(channel).zip(homes) {
                lineage.note(here, channel, view.rows(), self.applied, &homes);
            }
        };
        if lineage.has_all_of(here) {
            let changed = batch.iter().map(|shared| &shared.update.change.channel);
            let changed: HashSet<&Channel> = changed.collect();
            changed.into_iter().for_each(note);
        } else if self.applied >= self.backing.settled() {
            self.views.keys().for_each(note);
            self.misplaced.0.told_all(here);
        }
    }

    /// What was read has made the fold another one than it was taken for: clients get it under that name. Nobody has been given any
    /// of it yet, since that is found before it is settled. Tells whether it was so.
    fn rename(&mut self, fetch: &Fetch, now: Moment) -> bool {
        if !self.backing.is_fold() {
            return false;
        }
        let name = self.backing.name(fetch);
        let another = self.epoch.as_ref() != Some(&name);
        if another {
            self.tail.reset(name.clone(), self.applied, now);
            self.epoch = Some(name);
        }
        another
    }

    /// The log is another one, or lost what follows: nothing here bridges that.
    fn restart(&mut self, fetch: &Fetch, at: Offset, asked_at: Moment, now: Moment) {
        self.open(fetch, at, now);
        self.saw(fetch.head, asked_at);
        self.tail.set_health(self.health);
    }

    fn open(&mut self, fetch: &Fetch, at: Offset, now: Moment) {
        (self.applied, self.unproven) = (at, None);
        (self.waking, self.begins) = (None, None);
        self.health = Health {
            last_record_at: now,
            ..Health::default()
        };
        self.views.clear();
        self.awaited.clear();
        self.misplaced.0.forget(self.settings.partition);
        (self.last_change, self.forgotten) = self.backing.open(fetch, at, self.settings.mode);
        self.health.flaw = self.backing.flaw();
        self.names = self.last_change.keys().cloned().collect();
        let epoch = self.backing.name(fetch);
        self.tail.reset(epoch.clone(), at, now);
        self.epoch = Some(epoch);
    }

    fn apply(&mut self, record: &Record, now: Moment) -> Option<Arc<Shared>> {
        let change = self.decoder.decode(record);
        // That the log deletes, and that a node measures it, says nothing of whoever should write to it.
        let measured = change
            .as_ref()
            .is_ok_and(|change| change.channel.is_canary());
        if !record.expired && !measured {
            self.health.last_record_at = now;
        }
        let change = match change {
            Ok(change) => change,
            Err(poison) => {
                self.poisoned += 1;
                self.skip(record, poison.to_string(), now);
                return None;
            }
        };
        let here = self.settings.partition;
        if let Some(home) = self.misplaced.0.look(&change.channel, here) {
            self.misplaced.1 += 1;
            let channel = &change.channel;
            let why = format!(
                "a record of {channel}, which belongs into partition {home}: its producer places channels in another way"
            );
            self.skip(record, why, now);
            return None;
        }
        match self.last_change.get_mut(&change.channel) {
            Some(last) => *last = record.offset.max(*last),
            None => {
                self.last_change
                    .insert(change.channel.clone(), record.offset);
                self.names.push_back(change.channel.clone());
            }
        }
        let awaited = self.awaited.take(&change.channel);
        let folds = self.backing.is_fold() && self.settings.mode == Mode::View;
        if awaited || (folds && !self.views.contains_key(&change.channel)) {
            // It may have had rows, and deletes that nobody remembers, before it was forgotten.
            let born = View::new(CachedView::default(), self.applied, &self.held, now);
            let born = born.burying(self.settings.is_later);
            self.views.insert(change.channel.clone(), born);
        }
        if let Some(view) = self.views.get_mut(&change.channel) {
            view.apply(&change, record.offset);
        }
        let position = self.at(record.offset)?;
        Some(Shared::new(Update { position, change }, now))
    }

    /// Passes over a record, and says so.
    fn skip(&mut self, record: &Record, message: String, now: Moment) {
        if let Some(kept_back) = self.warning.pass(now) {
            tracing::warn!(stream = self.settings.stream, partition = self.settings.partition, offset = %record.offset, message, kept_back, "record skipped");
        }
        let offset = record.offset.number();
        self.last_skipped = Some(Skipped { offset, message });
    }

    fn at(&self, offset: Offset) -> Option<Position> {
        let epoch = self.epoch.clone()?;
        Some(Position {
            partition: self.settings.partition,
            epoch,
            offset,
        })
    }

    /// A fetch sent at `asked_at` found this head: a proof, once the head has been applied, and what was applied is a state.
    fn saw(&mut self, head: Offset, asked_at: Moment) {
        self.head = (head, asked_at);
        self.health.trouble = None;
        let found = Proof { asked_at, head };
        let waiting = self.unproven.get_or_insert(found);
        if self.applied >= waiting.head.max(self.backing.settled()) {
            self.health.proof = Some(if self.applied >= head {
                found
            } else {
                *waiting
            });
            self.unproven = (self.applied < head).then_some(found);
        }
    }

    /// A fetch failed.
    pub fn fail(&mut self, error: SourceError) {
        self.readable = false;
        // What is known is better than nothing, and says how old it is.
        (self.waking, self.begins) = (None, None);
        if self.health.trouble != Some(error.reason()) {
            self.health.trouble = Some(error.reason());
            self.tail.set_health(self.health);
        }
    }

    /// Takes a wish; answers at once where that is possible.
    pub fn join(&mut self, mut join: Join, now: Moment) {
        if self.joins.len() >= task::REQUESTS_MAX {
            let refusal = Refusal::retry(
                ErrorCode::Overloaded,
                "too many joins wait for this stream",
                1000,
            );
            let members = std::mem::take(&mut join.members);
            self.answers.count(Way::Refused, members.len());
            return Self::reply(&join, members, Answer::Refused(refusal));
        }
        if !self.answer(&mut join, now) {
            self.joins.push(join);
        }
    }

    /// Looks again at the joins that wait, and lets go of what nobody needs.
    pub fn step(&mut self, now: Moment) {
        self.let_stand_in(now);
        let mut joins = std::mem::take(&mut self.joins);
        joins.retain_mut(|join| !self.answer(join, now));
        self.joins = joins;
        self.tail.trim(now);
        let views = &mut self.views;
        self.sharing.retain(|channel| {
            let view = views.get_mut(channel);
            view.is_some_and(|view| !view.forget_shared(now, SHARED_KEPT))
        });
    }

    /// Answers a join if it can be answered; tells it that it is held, or refuses it, when it waited too long.
    fn answer(&mut self, join: &mut Join, now: Moment) -> bool {
        let (begin, behind) = self.begin(join, now);
        let waited = now.since(join.arrived);
        let answer = match begin {
            Some(begin) => Answer::Begin(begin),
            None if waited >= self.settings.hold => {
                self.answers.count(Way::Refused, join.members.len());
                Answer::Refused(Refusal::retry(
                    ErrorCode::RetryLater,
                    "this node is behind the token or its source; another may not be",
                    1000,
                ))
            }
            None if !join.told && (behind || waited >= HELD_NEWS) => {
                join.told = true;
                Self::reply(join, join.members.clone(), Answer::Held);
                return false;
            }
            None => return false,
        };
        let members = std::mem::take(&mut join.members);
        Self::reply(join, members, answer);
        true
    }

    fn reply(join: &Join, members: Vec<u64>, answer: Answer) {
        let (seat, channel, arrived) = (join.seat, join.channel.clone(), join.arrived);
        join.reply.put(Joined {
            seat,
            channel,
            from: join.from.clone(),
            members,
            arrived,
            answer,
        });
    }

    /// Views that were evicted.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Resident views, and the rows of all of them.
    #[must_use]
    pub fn resident(&self) -> (usize, usize) {
        (
            self.views.len(),
            self.views.values().map(|view| view.rows().len()).sum(),
        )
    }

    /// Everything up to here has been applied, and the newest head that was seen.
    #[must_use]
    pub const fn progress(&self) -> (Offset, Offset) {
        (self.applied, self.head.0)
    }
}

#[cfg(test)]
mod tests;
