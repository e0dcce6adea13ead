//! What a client that follows `docs/protocol.md` holds of one channel: the rows, the token, the lease.
//!
//! Does: takes messages as they come; ignores what it has passed, shows snapshots only when whole, is live by proofs alone.
//! Owns: that state. Never knows: sockets, the truth; time comes in as an argument. The clients hold it while they run, and
//! the judge once more when it goes through what they heard.

use std::collections::BTreeMap;

use tidegate::model::{Mode, Position, Token};

use super::{
    message::{Message, Outcome},
    scene::{Ms, Number, Row},
};

pub(super) type Rows = BTreeMap<Row, Number>;

/// How a connection's clock lies, and how long its proofs hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lease {
    /// Of the client's clock over the node's.
    pub(super) offset_ms: Ms,
    pub(super) live_for_ms: Ms,
}

/// An answer to a poll counts as new for so long: until the next one, and some.
const POLL_LIVE_MS: Ms = 5000;

impl Lease {
    /// Of polls, whose answers tell an age instead of a moment.
    pub(super) const OF_POLLS: Self = Self {
        offset_ms: 0,
        live_for_ms: POLL_LIVE_MS,
    };

    /// As `hello` says, on a connection that began at `began`.
    pub(super) const fn new(began: Ms, now_ms: Ms, live_for_ms: Ms) -> Self {
        Self {
            offset_ms: began - now_ms,
            live_for_ms,
        }
    }
}

/// One channel at one client.
#[derive(Clone, Debug)]
pub(super) struct Held {
    mode: Mode,
    /// Rows by partition.
    pub(super) rows: BTreeMap<u32, Rows>,
    pub(super) token: Token,
    /// Where each row was changed last, deletes too.
    changed: BTreeMap<(u32, Row), Position>,
    /// Where the last snapshot of each partition was.
    whole: BTreeMap<u32, Position>,
    staging: Option<Rows>,
    pub(super) joined: bool,
    pub(super) live_until: Ms,
    /// Only a proof that is newer than this ends the bad news.
    doubt: Option<Ms>,
}

impl Held {
    pub(super) fn new(mode: Mode) -> Self {
        Self {
            mode,
            rows: BTreeMap::new(),
            token: Token::default(),
            changed: BTreeMap::new(),
            whole: BTreeMap::new(),
            staging: None,
            joined: false,
            live_until: Ms::MIN,
            doubt: None,
        }
    }

    /// The connection is gone: nothing is live, and what was not whole is dropped.
    pub(super) fn cut(&mut self) {
        (self.staging, self.joined, self.doubt) = (None, false, None);
        self.live_until = Ms::MIN;
    }

    /// Forgets everything, so that the next subscription begins afresh.
    pub(super) fn forget(&mut self) {
        *self = Self::new(self.mode);
    }

    /// Whether it is shown as live.
    pub(super) fn is_live(&self, now: Ms) -> bool {
        self.joined && now < self.live_until
    }

    /// The rows of all partitions.
    pub(super) fn all_rows(&self) -> Rows {
        let all = self.rows.values().flatten();
        all.map(|(row, number)| (*row, *number)).collect()
    }

    /// Takes a message of its channel.
    pub(super) fn take(&mut self, message: &Message, now: Ms, lease: Lease) {
        match message {
            Message::Hello { .. } | Message::Bye => {}
            Message::Outcome { outcome, .. } => {
                self.joined = !matches!(outcome, Outcome::CatchingUp | Outcome::Refused);
            }
            Message::Snapshot { part, rows, at, .. } => self.snapshot(*part, rows, at.as_ref()),
            Message::Update { at, row, value, .. } => self.update(at, *row, *value),
            Message::Heartbeat {
                token,
                proved_at_ms,
                ..
            } => {
                for position in token.positions() {
                    self.advance(position);
                }
                if let Some(proved) = proved_at_ms {
                    self.prove(now.min(lease.offset_ms + proved), lease);
                }
            }
            Message::Freshness { age_ms, .. } => {
                self.live_until = Ms::MIN;
                self.doubt = Some(age_ms.map_or(Ms::MIN, |age| now - age));
            }
            Message::Gap { to, .. } => {
                self.token.advance(to.clone());
            }
            Message::View {
                token,
                rows,
                live,
                age_ms,
                ..
            } => self.view(
                token,
                rows.as_deref(),
                live.then_some(*age_ms).flatten(),
                now,
                lease,
            ),
        }
    }

    /// Forwards within an epoch; an epoch ends by a snapshot or a gap alone.
    fn advance(&mut self, position: &Position) {
        let before = self.token.position(position.partition);
        if before.is_none_or(|before| is_after(position, before)) {
            self.token.advance(position.clone());
        }
    }

    fn prove(&mut self, proved: Ms, lease: Lease) {
        if self.doubt.is_some_and(|doubt| proved <= doubt) {
            return;
        }
        self.doubt = None;
        self.live_until = self.live_until.max(proved + lease.live_for_ms);
    }

    fn snapshot(&mut self, part: u64, rows: &[(Row, Number)], at: Option<&Position>) {
        if part == 0 {
            self.staging = Some(Rows::new());
        }
        let Some(staging) = &mut self.staging else {
            return;
        };
        staging.extend(rows.iter().copied());
        let Some(at) = at else { return };
        let rows = self.staging.take().unwrap_or_default();
        self.rows.insert(at.partition, rows);
        self.changed
            .retain(|(partition, _), _| *partition != at.partition);
        self.whole.insert(at.partition, at.clone());
        self.token.advance(at.clone());
    }

    fn update(&mut self, at: &Position, row: Row, value: Option<Number>) {
        if self.mode == Mode::View && !self.has_passed(at, row) {
            self.changed.insert((at.partition, row), at.clone());
            let rows = self.rows.entry(at.partition).or_default();
            match value {
                Some(number) => drop(rows.insert(row, number)),
                None => drop(rows.remove(&row)),
            }
        }
        self.advance(at);
    }

    fn has_passed(&self, at: &Position, row: Row) -> bool {
        let whole = self.whole.get(&at.partition);
        let changed = self.changed.get(&(at.partition, row));
        let passed = |seen: &&Position| seen.epoch == at.epoch && !is_after(at, seen);
        whole.is_some_and(|seen| passed(&seen)) || changed.is_some_and(|seen| passed(&seen))
    }

    /// A poll's answer is a view of its own.
    fn view(
        &mut self,
        token: &Token,
        rows: Option<&[(Row, Number)]>,
        age_ms: Option<Ms>,
        now: Ms,
        lease: Lease,
    ) {
        self.joined = true;
        if let Some(rows) = rows {
            self.rows = BTreeMap::from([(0, rows.iter().copied().collect())]);
            self.token = token.clone();
        }
        self.live_until = age_ms.map_or(Ms::MIN, |age| now - age + lease.live_for_ms);
    }
}

/// Whether one is behind the other, in one epoch.
pub(super) fn is_after(one: &Position, other: &Position) -> bool {
    one.epoch == other.epoch && one.offset > other.offset
}
