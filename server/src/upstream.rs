//! What every call out of the process goes through: a time-out, a limit of calls at once, and a breaker for each dependency.
//!
//! Does: lets calls out, gives up on those that take too long, stops asking what does not answer, and tries again by itself,
//! one probe at a time, a second apart at most. Owns: each dependency's breaker and what is counted of it. Never knows: what
//! is called, nor by whom; nor whether a call may be repeated, so it repeats none. Keeps: a dependency that hangs costs its
//! callers nothing once its breaker is open, and no restart to be used again; a call that its caller drops holds nothing; I1
//! (waiting calls are bounded), I9 (the state machine in `breaker` gets time and chance as arguments).
//!
//! Three doors, for three kinds of callers. [`Upstream::call`] runs one future. [`UpstreamLayer`] does the same around a tower
//! service. A loop that holds its connection for long (a consumer of Kafka) takes a [`Permit`] for each round, by
//! [`Upstream::acquire`], which waits until there is one. One breaker is for what fails as one: a cluster, a server.

mod backoff;
mod breaker;
mod error;
mod gate;
mod layer;
mod permit;
mod report;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

pub use backoff::Backoff;
pub use breaker::{Admission, Breaker, Limits, Outcome, State, Ticket};
pub use error::{CallError, Refused, Why};
pub use gate::{Upstream, Verdict};
pub use layer::{Guarded, UpstreamLayer};
pub use permit::Permit;
pub use report::{BreakerReport, LastFailure};

use crate::clock::Clock;

/// The node's upstreams by name. An upstream is listed as long as somebody holds it.
#[derive(Debug)]
pub struct Upstreams {
    clock: Clock,
    known: Mutex<BTreeMap<String, Weak<Upstream>>>,
}

impl Upstreams {
    /// None yet.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            known: Mutex::default(),
        })
    }

    /// The upstream of this name: a kind and the name of what uses it in the configuration, `kafka:departures`. Whoever opens
    /// one that is there gets the same, with the limits that it has.
    #[must_use]
    pub fn open(&self, name: &str, limits: Limits) -> Arc<Upstream> {
        let mut known = lock(&self.known);
        known.retain(|_, upstream| upstream.strong_count() > 0);
        if let Some(there) = known.get(name).and_then(Weak::upgrade) {
            return there;
        }
        let upstream = Arc::new(Upstream::new(name, limits, self.clock));
        known.insert(name.to_owned(), Arc::downgrade(&upstream));
        upstream
    }

    /// What there is to see of all of them, in the order of names.
    #[must_use]
    pub fn reports(&self) -> Vec<BreakerReport> {
        let here: Vec<_> = lock(&self.known)
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        here.iter().map(|upstream| upstream.report()).collect()
    }
}

/// What a lock guards here is never left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
