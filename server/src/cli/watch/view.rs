//! What is known of one channel, from what the gateway said.
//!
//! Does: folds messages into rows or a list of events, a token, and a verdict on their freshness. Owns: that state.
//! Never knows: a socket, a terminal; the time comes in.
//! Keeps: a snapshot is shown only whole; what was passed is ignored; only a proof of this connection renews `live`, and
//! an error in the reading of the node's clock only ever makes the rows look older than they are.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::model::{Channel, Position, Token};

/// Rows that are kept, deleted ones whose position is remembered included.
const ROWS_MAX: usize = 200_000;
/// Deleted rows that are remembered.
const GRAVES_MAX: usize = 10_000;
/// Events that are kept for the list.
const EVENTS_MAX: usize = 500;
/// Longest lease or interval that a node may name.
const SPAN_MAX: Duration = Duration::from_secs(3600);

/// One row, or one event.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Event time, in milliseconds since 1970.
    pub(super) ts_ms: i64,
    /// JSON text; none when deleted.
    pub(super) data: Option<Box<RawValue>>,
    /// Its last update's; none when it came with a snapshot.
    at: Option<Position>,
    /// The partitions in which it may be; none: those of the last snapshot.
    home: Option<u32>,
}

/// What a message means to whoever holds the connection.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// Nothing to be done.
    Nothing,
    /// The connection stands: subscribe.
    Hello,
    /// The connection will end, and asks to be away for so long.
    Goodbye(Option<Duration>),
    /// The subscription was refused, for so long or for good.
    Refused(String, Option<Duration>),
    /// The gateway said what it should not, or something of the view is lost: start afresh.
    Broken(String),
}

/// What may be said of the rows now.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    /// Whether they are known to be up to date.
    pub(super) live: bool,
    /// The state's word.
    pub(super) state: String,
    /// Why, in words for people; empty when live.
    pub(super) why: String,
    /// The age of the newest proof; none where there never was one.
    pub(super) age: Option<Duration>,
}

enum Link {
    Connecting,
    Open,
    Waiting { message: String, until: Instant },
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Asking,
    CatchingUp,
    Loading,
    Following,
}

struct BadNews {
    state: String,
    reason: String,
    proven_at: Option<Instant>,
}

/// One channel.
pub(super) struct View {
    pub(super) channel: Channel,
    /// Rows by id, deleted ones as entries without data.
    rows: BTreeMap<String, Entry>,
    graves: usize,
    /// The last events, newest last, with their row's id; only of a stream of events.
    pub(super) events: VecDeque<(String, Entry)>,
    /// Whether the channel is a list of events.
    pub(super) is_events: bool,
    /// Updates since the start.
    pub(super) updates: u64,
    /// What was said last of events that are missing.
    pub(super) gap: Option<String>,
    token: Token,
    floor: Token,
    staged: Option<(u64, BTreeMap<String, Entry>)>,
    link: Link,
    phase: Phase,
    begun_at: Instant,
    answered_at: Instant,
    /// The node's clock when it was read, after `begun_at`.
    node_ms: u64,
    heartbeat: Duration,
    live_for: Duration,
    bad_news: Option<BadNews>,
    proven_at: Option<Instant>,
    lease_until: Option<Instant>,
    news: bool,
}

#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    ok: Option<Answer>,
    error: Option<Fault>,
    op: Option<String>,
    outcome: Option<String>,
    position: Option<String>,
    part: Option<u64>,
    #[serde(default)]
    more: bool,
    rows: Option<BTreeMap<String, SnapshotRow>>,
    row: Option<String>,
    ts: Option<i64>,
    data: Option<Box<RawValue>>,
    #[serde(default)]
    deleted: bool,
    state: Option<String>,
    reason: Option<String>,
    age_ms: Option<u64>,
    proved_at_ms: Option<u64>,
    now_ms: Option<u64>,
    heartbeat_ms: Option<u64>,
    live_for_ms: Option<u64>,
    dropped: Option<u64>,
    reconnect_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Answer {
    outcome: Option<String>,
}

#[derive(Deserialize)]
struct Fault {
    code: String,
    #[serde(default)]
    message: String,
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct SnapshotRow {
    ts: i64,
    data: Box<RawValue>,
}

impl View {
    pub(super) fn new(channel: Channel, now: Instant) -> Self {
        Self {
            channel,
            rows: BTreeMap::new(),
            graves: 0,
            events: VecDeque::new(),
            is_events: false,
            updates: 0,
            gap: None,
            token: Token::default(),
            floor: Token::default(),
            staged: None,
            link: Link::Connecting,
            phase: Phase::Asking,
            begun_at: now,
            answered_at: now,
            node_ms: 0,
            heartbeat: Duration::from_secs(25),
            live_for: Duration::from_secs(30),
            bad_news: None,
            proven_at: None,
            lease_until: None,
            news: true,
        }
    }

    /// A connection is tried: nothing is live until a proof of it, and no snapshot is finished.
    pub(super) fn begin(&mut self, now: Instant) {
        self.link = Link::Connecting;
        self.begun_at = now;
        self.phase = Phase::Asking;
        self.staged = None;
        self.bad_news = None;
        self.lease_until = None;
        self.news = true;
    }

    /// It ended, and will be tried again.
    pub(super) fn lost(&mut self, message: String, until: Instant) {
        self.link = Link::Waiting { message, until };
        self.lease_until = None;
        self.news = true;
    }

    /// What to hand back to resume; empty before the first position.
    pub(super) fn token(&self) -> String {
        self.token.to_string()
    }

    /// Between two heartbeats of the node, with some patience.
    pub(super) fn heartbeat(&self) -> Duration {
        self.heartbeat + Duration::from_secs(1)
    }

    /// How long a proof holds.
    pub(super) fn live_for(&self) -> Duration {
        self.live_for
    }

    /// Whether something happened since the last call.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// The rows that are there, by id.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.rows
            .iter()
            .filter(|(_, entry)| entry.data.is_some())
            .map(|(row, entry)| (row.as_str(), entry))
    }

    /// How many rows are there.
    pub(super) fn row_count(&self) -> usize {
        self.rows.len() - self.graves
    }

    /// Takes one message.
    pub(super) fn receive(&mut self, text: &str, now: Instant) -> Told {
        self.news = true;
        let told = serde_json::from_str::<Message>(text)
            .map_err(|error| format!("the gateway said what is no message: {error}"))
            .and_then(|message| self.take(message, now));
        told.unwrap_or_else(|why| {
            self.token = Token::default();
            Told::Broken(why)
        })
    }

    fn take(&mut self, message: Message, now: Instant) -> Result<Told, String> {
        if let Some(fault) = message.error {
            let after = fault.retry_after_ms.map(Duration::from_millis);
            return Ok(Told::Refused(
                format!("{}: {} ({})", self.channel, fault.message, fault.code),
                after,
            ));
        }
        if let (Some(_), Some(answer)) = (message.id, &message.ok) {
            self.outcome(answer.outcome.as_deref().unwrap_or(""), now);
            return Ok(Told::Nothing);
        }
        match message.op.as_deref().unwrap_or("") {
            "hello" => return self.hello(&message).map(|()| Told::Hello),
            "bye" => {
                return Ok(Told::Goodbye(
                    message.reconnect_after_ms.map(Duration::from_millis),
                ));
            }
            "outcome" => self.outcome(message.outcome.as_deref().unwrap_or(""), now),
            "snapshot" => self.snapshot(message, now)?,
            "update" => self.update(message)?,
            "heartbeat" => self.proof(&message, now)?,
            "freshness" => self.judged(message, now),
            "gap" => self.missing(&message)?,
            _ => {} // A word of a later version.
        }
        Ok(Told::Nothing)
    }

    fn hello(&mut self, message: &Message) -> Result<(), String> {
        let (Some(now_ms), Some(heartbeat), Some(live_for)) =
            (message.now_ms, message.heartbeat_ms, message.live_for_ms)
        else {
            return Err("hello without now_ms, heartbeat_ms or live_for_ms".to_owned());
        };
        self.link = Link::Open;
        self.node_ms = now_ms;
        self.heartbeat =
            Duration::from_millis(heartbeat).clamp(Duration::from_millis(100), SPAN_MAX);
        self.live_for = Duration::from_millis(live_for).min(SPAN_MAX);
        Ok(())
    }

    fn outcome(&mut self, outcome: &str, now: Instant) {
        self.phase = match outcome {
            "started" => {
                self.is_events = true;
                Phase::Following
            }
            "resumed" => Phase::Following,
            "snapshot" => Phase::Loading,
            _ => Phase::CatchingUp,
        };
        self.answered_at = now;
        self.staged = None;
        self.lease_until = None;
    }

    fn snapshot(&mut self, message: Message, now: Instant) -> Result<(), String> {
        let part = message.part.unwrap_or(0);
        if part == 0 {
            self.staged = Some((0, BTreeMap::new()));
        }
        let Some((parts, staged)) = self.staged.as_mut().filter(|(parts, _)| *parts == part) else {
            return Err(format!("part {part} of a snapshot came out of turn"));
        };
        *parts += 1;
        let fresh = |row: SnapshotRow| Entry {
            ts_ms: row.ts,
            data: Some(row.data),
            at: None,
            home: None,
        };
        let rows = message.rows.unwrap_or_default();
        staged.extend(rows.into_iter().map(|(id, row)| (id, fresh(row))));
        if staged.len() > ROWS_MAX {
            return Err(format!("a snapshot has more than {ROWS_MAX} rows"));
        }
        if message.more {
            return Ok(());
        }
        let token: Token = parsed(message.position.as_deref())?;
        let (_, rows) = self.staged.take().unwrap_or_default();
        self.replace(rows, &token);
        self.phase = Phase::Following;
        self.answered_at = now;
        Ok(())
    }

    /// Puts a snapshot in the place of the rows of the partitions that it names.
    fn replace(&mut self, rows: BTreeMap<String, Entry>, token: &Token) {
        let named = |partition: u32| token.position(partition).is_some();
        // Rows of an earlier snapshot are replaced too: the gateway's snapshots name every partition of the view.
        self.rows
            .retain(|_, old| old.home.is_some_and(|home| !named(home)));
        self.rows.extend(rows);
        self.graves = self
            .rows
            .values()
            .filter(|entry| entry.data.is_none())
            .count();
        for position in token.positions() {
            self.token.advance(position.clone());
            self.floor.advance(position.clone());
        }
    }

    fn update(&mut self, message: Message) -> Result<(), String> {
        let at: Position = parsed(message.position.as_deref())?;
        let row = message.row.unwrap_or_default();
        let entry = Entry {
            ts_ms: message.ts.unwrap_or(0),
            data: message.data.filter(|_| !message.deleted),
            home: Some(at.partition),
            at: Some(at.clone()),
        };
        let floor = self.floor.position(at.partition);
        let last = self.rows.get(&row).and_then(|old| old.at.as_ref());
        if passed(floor, &at) || passed(last, &at) {
            return Ok(());
        }
        self.updates += 1;
        if !passed(self.token.position(at.partition), &at) {
            self.token.advance(at);
        }
        if self.is_events {
            self.events.push_back((row, entry));
            if self.events.len() > EVENTS_MAX {
                self.events.pop_front();
            }
            return Ok(());
        }
        self.graves += usize::from(entry.data.is_none());
        if let Some(old) = self.rows.insert(row, entry) {
            self.graves -= usize::from(old.data.is_none());
        }
        if self.graves > GRAVES_MAX {
            self.rows.retain(|_, entry| entry.data.is_some());
            self.graves = 0;
        }
        if self.rows.len() > ROWS_MAX {
            return Err(format!("the view has more than {ROWS_MAX} rows"));
        }
        Ok(())
    }

    fn proof(&mut self, message: &Message, now: Instant) -> Result<(), String> {
        let token: Token = parsed(message.position.as_deref())?;
        for position in token.positions() {
            if !passed(self.token.position(position.partition), position) {
                self.token.advance(position.clone());
            }
        }
        let Some(proved_at_ms) = message.proved_at_ms else {
            return Ok(());
        };
        // The node's clock was read after the connection began: so a proof is never taken to be younger than it is.
        let later = Duration::from_millis(proved_at_ms.saturating_sub(self.node_ms));
        let earlier = Duration::from_millis(self.node_ms.saturating_sub(proved_at_ms));
        let Some(proven) = self
            .begun_at
            .checked_add(later)
            .and_then(|at| at.checked_sub(earlier))
        else {
            return Ok(());
        };
        let proven = proven.min(now);
        self.proven_at = self.proven_at.max(Some(proven));
        self.lease_until = self.lease_until.max(Some(proven + self.live_for));
        if self
            .bad_news
            .as_ref()
            .is_some_and(|bad| Some(proven) > bad.proven_at)
        {
            self.bad_news = None;
        }
        Ok(())
    }

    /// Bad news counts until a proof that is newer than the newest one that it knew of; good news renews nothing.
    fn judged(&mut self, message: Message, now: Instant) {
        let state = message.state.unwrap_or_default();
        if state == "live" {
            return;
        }
        self.bad_news = Some(BadNews {
            state,
            reason: message.reason.unwrap_or_default(),
            proven_at: message
                .age_ms
                .and_then(|age| now.checked_sub(Duration::from_millis(age))),
        });
    }

    fn missing(&mut self, message: &Message) -> Result<(), String> {
        let reason = message.reason.as_deref().unwrap_or("unknown");
        if !self.is_events {
            return Err(format!("updates of {} are missing: {reason}", self.channel));
        }
        let dropped = message
            .dropped
            .map_or_else(|| "some".to_owned(), |count| count.to_string());
        self.gap = Some(format!("{dropped} events are missing: {reason}"));
        Ok(())
    }

    /// What may be said of the rows now.
    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        let known = self
            .bad_news
            .as_ref()
            .and_then(|bad| bad.proven_at)
            .max(self.proven_at);
        let age = known.map(|at| now.saturating_duration_since(at));
        let say = |state: &str, why: String| Verdict {
            live: state == "live",
            state: state.to_owned(),
            why,
            age,
        };
        let had = age.is_some() || !self.rows.is_empty() || !self.events.is_empty();
        let disconnected = if had { "stale" } else { "connecting" };
        match (&self.link, &self.bad_news) {
            (Link::Waiting { message, until }, _) => {
                let wait = until.saturating_duration_since(now).as_secs_f32();
                return say(
                    disconnected,
                    format!("disconnected: {message}; next attempt in {wait:.1} s"),
                );
            }
            (Link::Connecting, _) => return say(disconnected, "connecting".to_owned()),
            (Link::Open, Some(bad)) => return say(&bad.state, bad.reason.clone()),
            (Link::Open, None) => {}
        }
        match (self.phase, self.lease_until) {
            (Phase::Asking, _) => say(disconnected, "subscribing".to_owned()),
            (Phase::CatchingUp, _) => say("catching_up", "the node is behind the token".to_owned()),
            (Phase::Loading, _) => say("catching_up", "loading".to_owned()),
            (Phase::Following, Some(until)) if now < until => say("live", String::new()),
            (Phase::Following, None) if now < self.answered_at + self.live_for => {
                say("catching_up", "awaiting a proof".to_owned())
            }
            (Phase::Following, _) => say(
                "stale",
                format!(
                    "lapsed: a proof holds for {:.1} s and none came",
                    self.live_for.as_secs_f32()
                ),
            ),
        }
    }
}

/// Whether this mark is of the same log and not before this position.
fn passed(mark: Option<&Position>, at: &Position) -> bool {
    mark.is_some_and(|mark| {
        mark.epoch == at.epoch && mark.partition == at.partition && mark.offset >= at.offset
    })
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: Option<&str>) -> Result<T, String> {
    text.unwrap_or("")
        .parse()
        .map_err(|error| format!("a position can't be read: {error}"))
}

#[cfg(test)]
mod tests;
