//! What is known of one channel, from what the gateway said.
//!
//! Does: folds messages into rows or a list of events, and a token; hands what tells of freshness on. Owns: that state.
//! Never knows: a socket, a terminal; the time comes in.
//! Keeps: a snapshot is shown only whole; what was passed is ignored.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    freshness::{Freshness, Phase, Verdict},
    message::{Message, SnapshotRow},
};
use crate::model::{Channel, Position, Token};

/// Rows that are kept, deleted ones whose position is remembered included.
const ROWS_MAX: usize = 200_000;
/// Deleted rows that are remembered.
const GRAVES_MAX: usize = 10_000;
/// Events that are kept for the list.
const EVENTS_MAX: usize = 500;

/// One row, or one event.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Event time, in milliseconds since 1970.
    pub(super) ts_ms: i64,
    /// JSON text; none when deleted.
    pub(super) data: Option<Box<RawValue>>,
    /// Its last update's; none when it came with a snapshot.
    at: Option<Position>,
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

/// One channel.
pub(super) struct View {
    pub(super) channel: Channel,
    /// Rows by id, deleted ones as entries without data.
    /// What each partition has said of its rows, deletes included.
    lanes: BTreeMap<u32, BTreeMap<String, Entry>>,
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
    /// What is known of its age.
    pub(super) freshness: Freshness,
    news: bool,
}

impl View {
    pub(super) fn new(channel: Channel, now: Instant) -> Self {
        Self {
            channel,
            lanes: BTreeMap::new(),
            graves: 0,
            events: VecDeque::new(),
            is_events: false,
            updates: 0,
            gap: None,
            token: Token::default(),
            floor: Token::default(),
            staged: None,
            freshness: Freshness::new(now),
            news: true,
        }
    }

    /// A connection is tried: nothing is live until a proof of it, and no snapshot is finished.
    pub(super) fn begin(&mut self, now: Instant) {
        self.freshness.begin(now);
        self.staged = None;
        self.news = true;
    }

    /// It ended, and will be tried again.
    pub(super) fn lost(&mut self, message: String, until: Instant) {
        self.freshness.lost(message, until);
        self.news = true;
    }

    /// What to hand back to resume; empty before the first position.
    pub(super) fn token(&self) -> String {
        self.token.to_string()
    }

    /// Whether something happened since the last call.
    pub(super) fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// The rows that are there, by id: of each what the partition with the highest number says that has said anything of it.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&str, &Entry)> {
        let said = self.lanes.values().flatten();
        let rows: BTreeMap<&str, &Entry> = said.map(|(row, entry)| (row.as_str(), entry)).collect();
        rows.into_iter().filter(|(_, entry)| entry.data.is_some())
    }

    /// How many rows are there.
    pub(super) fn row_count(&self) -> usize {
        self.rows().count()
    }

    /// What may be said of the rows now.
    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        let empty = self.lanes.values().all(BTreeMap::is_empty) && self.events.is_empty();
        self.freshness.verdict(!empty, now)
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
            "hello" => return self.freshness.hello(&message).map(|()| Told::Hello),
            "bye" => {
                return Ok(Told::Goodbye(
                    message.reconnect_after_ms.map(Duration::from_millis),
                ));
            }
            "outcome" => self.outcome(message.outcome.as_deref().unwrap_or(""), now),
            "snapshot" => self.snapshot(message, now)?,
            "update" => self.update(message)?,
            "heartbeat" => self.proof(&message, now)?,
            "freshness" => self.freshness.judged(message, now),
            "gap" => self.missing(&message)?,
            _ => {} // A word of a later version.
        }
        Ok(Told::Nothing)
    }

    fn outcome(&mut self, outcome: &str, now: Instant) {
        self.is_events |= outcome == "started";
        self.staged = None;
        let phase = match outcome {
            "started" | "resumed" => Phase::Following,
            "snapshot" => Phase::Loading,
            _ => Phase::CatchingUp,
        };
        self.freshness.answered(phase, now);
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
            data: row.data,
            at: None,
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
        self.freshness.loaded(now);
        Ok(())
    }

    /// Puts a snapshot in the place of the rows of the partitions that it names.
    fn replace(&mut self, rows: BTreeMap<String, Entry>, token: &Token) {
        self.lanes
            .retain(|partition, _| token.position(*partition).is_none());
        // It is one partition's; of several the rows would be those of the newest.
        if let Some(newest) = token.positions().last() {
            self.lanes.insert(newest.partition, rows);
        }
        let said = self.lanes.values().flat_map(BTreeMap::values);
        self.graves = said.filter(|entry| entry.data.is_none()).count();
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
            at: Some(at.clone()),
        };
        let (floor, partition) = (self.floor.position(at.partition), at.partition);
        let known = self.lanes.get(&partition);
        let last = known.and_then(|rows| rows.get(&row)?.at.as_ref());
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
        let rows = self.lanes.entry(partition).or_default();
        if let Some(old) = rows.insert(row, entry) {
            self.graves -= usize::from(old.data.is_none());
        }
        let kept = rows.len();
        if self.graves > GRAVES_MAX {
            self.forget_graves();
        }
        if kept > ROWS_MAX {
            return Err(format!("the view has more than {ROWS_MAX} rows"));
        }
        Ok(())
    }

    /// Forgets what was deleted, but for what an older partition may still have.
    fn forget_graves(&mut self) {
        let oldest = self.lanes.keys().next().copied();
        for (partition, rows) in &mut self.lanes {
            if Some(*partition) == oldest {
                rows.retain(|_, entry| entry.data.is_some());
            }
        }
        let said = self.lanes.values().flat_map(BTreeMap::values);
        self.graves = said.filter(|entry| entry.data.is_none()).count();
    }

    fn proof(&mut self, message: &Message, now: Instant) -> Result<(), String> {
        let token: Token = parsed(message.position.as_deref())?;
        for position in token.positions() {
            if !passed(self.token.position(position.partition), position) {
                self.token.advance(position.clone());
            }
        }
        if let Some(proved_at_ms) = message.proved_at_ms {
            self.freshness.prove(proved_at_ms, now);
        }
        Ok(())
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
