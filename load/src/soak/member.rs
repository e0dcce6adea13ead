//! One of those who are connected: whom it stands for, and what it has seen.
//!
//! Does: gives each message to the channel that it is about. Owns: a connection and its tracks. Never knows: the others. Keeps:
//! a refusal, wherever it comes from, is not passed over.

use serde_json::Value;

use super::{
    client::{Asks, Client, End},
    track::Track,
    visit::Visit,
};
use crate::net::Ready;

const MILLISECOND: u64 = 1_000_000;
/// A slow reader reads for so long, …
const SLOW_READS: u64 = 4_000 * MILLISECOND;
/// … and then not, in rounds of so long.
const SLOW_ROUND: u64 = 10_000 * MILLISECOND;

/// Whom a connection stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It stays and reads at once.
    Steady,
    /// It stays, and does not always read.
    Slow,
    /// It comes and goes.
    Visitor(u64, Visit),
}

/// A connection and what it has seen.
#[derive(Debug)]
pub(super) struct Member {
    /// Whom it stands for.
    pub(super) role: Role,
    /// Its connection.
    pub(super) client: Client,
    /// Its channels by name.
    pub(super) tracks: Vec<(String, Track)>,
    /// Channels of which it has heard how they begin.
    pub(super) began: usize,
    /// When it connected.
    pub(super) born: u64,
    /// When it leaves.
    pub(super) leaves_at: u64,
    /// When it said goodbye.
    pub(super) said_goodbye: Option<u64>,
}

impl Member {
    /// Whether it has heard of all its channels how they begin, or, for a long-poll, that it is answered.
    pub(super) fn has_begun(&self) -> bool {
        match self.client.asks() {
            Asks::View => self.client.status() > 0,
            Asks::WebSocket | Asks::Events => self.began >= self.tracks.len(),
        }
    }

    /// Goes on with what its socket allows; without `ready` it reads what may be there.
    ///
    /// # Errors
    /// [`End`], or what it was refused.
    pub(super) fn go_on(
        &mut self,
        ready: Option<Ready>,
        host: &str,
        buf: &mut [u8],
    ) -> Result<(), End> {
        let Self {
            client,
            tracks,
            began,
            ..
        } = self;
        let mut refused = None;
        let mut on = |message: &[u8]| take(tracks, began, &mut refused, message);
        let end = match ready {
            Some(ready) => client.ready(ready, host, buf, &mut on),
            None => client.read(buf, &mut on),
        };
        refused.map_or(end, |refusal| Err(End::Wrong(refusal)))
    }

    /// Whether it reads now.
    pub(super) fn reads(&self, id: u64, now: u64) -> bool {
        let round = (now + id * SLOW_READS / 3) % SLOW_ROUND;
        self.role != Role::Slow || !self.has_begun() || round < SLOW_READS
    }
}

/// Takes a message: it belongs to a channel, or answers a request.
fn take(
    tracks: &mut [(String, Track)],
    began: &mut usize,
    refused: &mut Option<String>,
    message: &[u8],
) {
    let Ok(value) = serde_json::from_slice::<Value>(message) else {
        // The answer to a long-poll when nothing is newer has no body.
        if !message.is_empty() {
            refused.get_or_insert_with(|| String::from_utf8_lossy(message).into_owned());
        }
        return;
    };
    let op = value["op"].as_str();
    if !value["error"].is_null() || op == Some("bye") {
        refused.get_or_insert_with(|| value.to_string());
    }
    let outcome = if op.is_some() { &value } else { &value["ok"] };
    if outcome["outcome"]
        .as_str()
        .is_some_and(|outcome| outcome != "catching_up")
    {
        *began += 1;
    }
    let channel = value["channel"].as_str();
    if let Some((_, track)) = tracks
        .iter_mut()
        .find(|(name, _)| Some(name.as_str()) == channel)
    {
        if op.is_none() {
            track.position = value["position"].as_str().map(str::to_owned);
        }
        track.take(&value);
    }
}
