//! Membership of those who share a stream's partitions: which are this process's, by leases in Redis.
//!
//! Does: says that it is there, hears which partitions it has, leaves. Owns: its lease. Never knows: records, nor where a
//! partition goes on, which is said elsewhere.
//! Keeps: who was not heard for the session's time counts as having nothing, here as in Redis, and here first: its time begins when it
//! asks. Two may believe for a moment that they have a partition, so it is of use only for work that bears that. Failing costs a try
//! a second at most, and a member that ends leaves.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{LogError, RedisServer};
use crate::source::{Assignment, backoff::Backoff};

/// So many times it says that it is there in a session's time …
const BEATS: u32 = 10;
/// … and one at least so often, since it is by the answer that it hears what it has.
const BEAT_MAX: Duration = Duration::from_secs(3);

/// Who shares what.
#[derive(Clone, Debug)]
pub struct MemberSettings {
    /// What the keys of the leases are called, beside the stream's name.
    pub group: String,
    /// The stream whose partitions are shared …
    pub stream: String,
    /// … and how many it has.
    pub partitions: u32,
    /// After which silence a member counts as gone.
    pub session_timeout: Duration,
}

/// A member.
pub struct RedisMember {
    server: Arc<RedisServer>,
    settings: MemberSettings,
    name: String,
    told: watch::Sender<Assignment>,
    /// Until when others leave it what it has.
    until: Instant,
    /// How often what it has was another share than before.
    shares: i32,
    backoff: Backoff,
}

impl RedisMember {
    /// A member, and what it has; nothing yet.
    #[must_use]
    pub fn new(
        server: Arc<RedisServer>,
        settings: MemberSettings,
    ) -> (Self, watch::Receiver<Assignment>) {
        let (told, has) = watch::channel(Assignment::default());
        let member = Self {
            server,
            settings,
            // Without random numbers the start has failed long before.
            name: format!("{:016x}", getrandom::u64().unwrap_or(0)),
            told,
            until: Instant::now(),
            shares: 0,
            backoff: Backoff::default(),
        };
        (member, has)
    }

    /// Belongs to those who share until it is stopped; then it has nothing, and leaves.
    pub async fn run(mut self, stop: CancellationToken) {
        let ended = stop.run_until_cancelled(Box::pin(self.belong())).await;
        debug_assert!(ended.is_none(), "it belongs until it is stopped");
        self.lose();
        if let Err(error) = self.say(Duration::ZERO).await {
            tracing::debug!(%error, stream = self.settings.stream, "could not leave: the others wait for this member's silence");
        }
    }

    async fn belong(&mut self) {
        let session = self.settings.session_timeout;
        let beat = (session / BEATS).min(BEAT_MAX);
        loop {
            let asked = Instant::now();
            match self.say(session).await {
                Ok(partitions) => {
                    self.backoff = Backoff::default();
                    self.until = asked + session;
                    self.give(partitions);
                    sleep(beat).await;
                }
                Err(error) => {
                    if self.backoff.is_clear() {
                        tracing::warn!(%error, stream = self.settings.stream, "the leases of the stream's partitions can't be asked for");
                    }
                    self.backoff.fail();
                    tokio::select! {
                        biased;
                        () = sleep_until(self.until), if self.told.borrow().generation.is_some() => self.lose(),
                        () = self.backoff.over() => {}
                    }
                }
            }
            if Instant::now() >= self.until {
                self.lose();
            }
        }
    }

    /// Says that it is there for so long, or that it leaves; which partitions it has.
    async fn say(&self, session: Duration) -> Result<Vec<u32>, LogError> {
        let MemberSettings {
            group,
            stream,
            partitions,
            ..
        } = &self.settings;
        let home = format!("{}:{{{stream}}}:{group}", self.server.prefix);
        let keys = [format!("{home}:members"), format!("{home}:leases")];
        let (session, count) = (session.as_millis().to_string(), partitions.to_string());
        let words = [self.name.as_bytes(), session.as_bytes(), count.as_bytes()];
        let known = &self.server.scripts.share;
        self.server.ask(self.server.run(known, &keys, &words)).await
    }

    fn give(&mut self, mut partitions: Vec<u32>) {
        partitions.sort_unstable();
        let shares = &mut self.shares;
        self.told.send_if_modified(|told| {
            let differs = told.generation.is_none() || told.partitions != partitions;
            if differs {
                *shares = shares.wrapping_add(1);
                *told = Assignment {
                    generation: Some(*shares),
                    partitions,
                };
            }
            differs
        });
    }

    fn lose(&self) {
        self.told
            .send_if_modified(|told| std::mem::take(told) != Assignment::default());
    }
}
