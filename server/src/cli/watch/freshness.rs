//! How fresh a channel is, from the proofs that were heard.
//!
//! Does: keeps the link, the phase of the subscription, the lease and the node's verdicts; says what may be said now.
//! Owns: that state. Never knows: rows, a socket; the time comes in.
//! Keeps: only a proof of this connection renews `live`, and an error in the reading of the node's clock only ever makes
//! the rows look older than they are.

use std::time::Duration;

use tokio::time::Instant;

use super::message::Message;

/// Longest lease or interval that a node may name.
const SPAN_MAX: Duration = Duration::from_secs(3600);

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

/// How the connection stands.
enum Link {
    Connecting,
    Open,
    Waiting { message: String, until: Instant },
}

/// How far the subscription is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Asking,
    CatchingUp,
    Loading,
    Following,
}

/// A verdict of the node, and the newest proof that it knew of.
struct BadNews {
    state: String,
    reason: String,
    proven_at: Option<Instant>,
}

/// What is known of one channel's freshness.
pub(super) struct Freshness {
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
}

impl Freshness {
    pub(super) fn new(now: Instant) -> Self {
        Self {
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
        }
    }

    /// Between two heartbeats of the node, with some patience.
    pub(super) fn heartbeat(&self) -> Duration {
        self.heartbeat + Duration::from_secs(1)
    }

    /// How long a proof holds.
    pub(super) fn live_for(&self) -> Duration {
        self.live_for
    }

    /// A connection is tried.
    pub(super) fn begin(&mut self, now: Instant) {
        self.link = Link::Connecting;
        self.begun_at = now;
        self.phase = Phase::Asking;
        self.bad_news = None;
        self.lease_until = None;
    }

    /// It ended, and will be tried again.
    pub(super) fn lost(&mut self, message: String, until: Instant) {
        self.link = Link::Waiting { message, until };
        self.lease_until = None;
    }

    /// The connection stands.
    pub(super) fn hello(&mut self, message: &Message) -> Result<(), String> {
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

    /// The subscription was answered.
    pub(super) fn answered(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.answered_at = now;
        self.lease_until = None;
    }

    /// A snapshot is whole.
    pub(super) fn loaded(&mut self, now: Instant) {
        self.phase = Phase::Following;
        self.answered_at = now;
    }

    /// A proof, in the node's clock.
    pub(super) fn prove(&mut self, proved_at_ms: u64, now: Instant) {
        // The node's clock was read after the connection began: so a proof is never taken to be younger than it is.
        let later = Duration::from_millis(proved_at_ms.saturating_sub(self.node_ms));
        let earlier = Duration::from_millis(self.node_ms.saturating_sub(proved_at_ms));
        let Some(proven) = self
            .begun_at
            .checked_add(later)
            .and_then(|at| at.checked_sub(earlier))
        else {
            return;
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
    }

    /// Bad news counts until a proof that is newer than the newest one that it knew of; good news renews nothing.
    pub(super) fn judged(&mut self, message: Message, now: Instant) {
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

    /// What may be said now of a channel that has or has not something to show.
    pub(super) fn verdict(&self, has_rows: bool, now: Instant) -> Verdict {
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
        let had = age.is_some() || has_rows;
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
