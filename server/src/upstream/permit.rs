//! The right to one call, and what is said of it in the end.

use std::{fmt, sync::Arc};

use super::{
    breaker::{Outcome, Ticket},
    gate::{Count, Upstream, Verdict},
};

/// The right to one call. Say what came of it; dropped without a word, it counts as abandoned: so a probe whose holder went
/// away has failed, and the next one may try.
#[derive(Debug)]
#[must_use = "dropped at once it counts as abandoned"]
pub struct Permit {
    upstream: Arc<Upstream>,
    ticket: Option<Ticket>,
}

impl Permit {
    pub(super) const fn new(upstream: Arc<Upstream>, ticket: Ticket) -> Self {
        Self {
            upstream,
            ticket: Some(ticket),
        }
    }

    /// Whether it is the one call that a half-open breaker lets out.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.ticket.is_some_and(|ticket| ticket.is_probe())
    }
    /// The callee did what was asked.
    pub fn answered(self) {
        self.settle(Verdict::Answered);
    }
    /// The callee is there, and will not. No breaker opens for it, so a loop waits before it asks again ([`Backoff`]).
    ///
    /// [`Backoff`]: super::Backoff
    pub fn declined(self) {
        self.settle(Verdict::Declined);
    }
    /// The callee was not reached, did not answer in time, or is broken.
    pub fn failed(self, reason: impl fmt::Display) {
        self.settle(Verdict::Failed(reason.to_string()));
    }
    /// Any of these.
    pub fn settle(self, verdict: Verdict) {
        match verdict {
            Verdict::Answered => self.end(Outcome::Answered, |counts| &counts.answered, None),
            Verdict::Declined => self.end(Outcome::Declined, |counts| &counts.declined, None),
            Verdict::Failed(why) => self.end(Outcome::Failed, |counts| &counts.failed, Some(why)),
        }
    }
    /// The callee did not answer in time.
    pub fn timed_out(self) {
        let why = format!("no answer within {} ms", self.waited_ms());
        self.end(Outcome::Failed, |counts| &counts.timed_out, Some(why));
    }

    /// As though it had never been given: not for probes.
    pub(super) fn forget(mut self) {
        self.ticket = None;
        self.upstream.counts.active.sub(1);
    }

    fn waited_ms(&self) -> u128 {
        let now = self.upstream.clock.now();
        self.ticket
            .map_or(0, |ticket| now.since(ticket.at()).as_millis())
    }

    fn end(mut self, outcome: Outcome, count: Count, why: Option<String>) {
        if let Some(ticket) = self.ticket.take() {
            self.upstream.settle(ticket, outcome, count, why);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let waited = self.waited_ms();
        if let Some(ticket) = self.ticket.take() {
            let why = format!("its caller went away after {waited} ms without an answer");
            let count: Count = |counts| &counts.abandoned;
            self.upstream
                .settle(ticket, Outcome::Abandoned, count, Some(why));
        }
    }
}
