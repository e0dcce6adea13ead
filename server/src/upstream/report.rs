//! What there is to see of an upstream: for `GET /inspect/breakers` and the metrics.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{State, Upstream, lock};

/// What was said last of a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastFailure {
    /// The call's own words, cut where they are long.
    pub reason: String,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
}

/// One upstream, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BreakerReport {
    /// The upstream's name.
    pub name: String,
    /// Its breaker's state.
    pub state: State,
    /// For how long it has been in that, in milliseconds.
    pub state_ms: u64,
    /// Failures in a row while it is closed.
    pub failures: u32,
    /// How long until it lets somebody out again, in milliseconds; absent while it is closed, 0 when the next caller may.
    pub next_probe_ms: Option<u64>,
    /// The newest failure.
    pub last_failure: Option<LastFailure>,
    /// How often it left the closed state.
    pub openings: u64,
    /// How long it was not closed, in milliseconds, all together.
    pub open_ms: u64,
    /// Calls that are out, guards of loops included.
    pub active: u64,
    /// Calls that wait for a place.
    pub waiting: u64,
    /// Calls by what came of them.
    pub calls: BTreeMap<&'static str, u64>,
    /// The longest that a call may take, in milliseconds.
    pub time_out_ms: u64,
    /// Calls at once, at most.
    pub concurrent_max: usize,
    /// Calls that wait, at most.
    pub waiting_max: usize,
}

impl Upstream {
    /// What there is to see of it now.
    #[must_use]
    pub fn report(&self) -> BreakerReport {
        let (now, inner) = (self.clock.now(), lock(&self.inner));
        let breaker = &inner.breaker;
        let last_failure = inner.last_failure.as_ref().map(|(at, reason)| LastFailure {
            reason: reason.clone(),
            age_ms: millis(now.since(*at)),
        });
        let calls = self.counts.outcomes();
        BreakerReport {
            name: self.name.to_string(),
            state: breaker.state(),
            state_ms: millis(now.since(breaker.since())),
            failures: breaker.failures(),
            next_probe_ms: breaker.opens_again().map(|at| millis(at.since(now))),
            last_failure,
            openings: breaker.openings(),
            open_ms: millis(breaker.open_time(now)),
            active: self.counts.active.get(),
            waiting: self.counts.waiting.get(),
            calls: calls.map(|(word, count)| (word, count.get())).into(),
            time_out_ms: millis(self.limits.time_out),
            concurrent_max: self.limits.concurrent,
            waiting_max: self.limits.waiting,
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
