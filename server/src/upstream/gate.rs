//! One upstream, as its callers hold it: the breaker behind a lock, the places for calls, and what is counted.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{sleep, sleep_until, timeout},
};

use super::{
    breaker::{Admission, Breaker, Limits, Outcome, State, Ticket},
    error::{CallError, Refused, Why},
    lock,
    permit::Permit,
};
use crate::{
    clock::Clock,
    model::Moment,
    telemetry::{Counter, Throttle, UpstreamCounts},
};

/// What is kept of a failure's text.
const REASON_MAX: usize = 300;

/// Which number a call adds to.
pub(super) type Count = fn(&UpstreamCounts) -> &Counter;

/// What a result says of the callee.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It did what was asked.
    Answered,
    /// It is there, and will not: no permission, a bad request, an unknown name.
    Declined,
    /// It was not reached, or is broken; with the reason for the log.
    Failed(String),
}

/// One dependency outside of the process.
#[derive(Debug)]
pub struct Upstream {
    pub(super) name: Arc<str>,
    pub(super) clock: Clock,
    pub(super) limits: Limits,
    pub(super) inner: Mutex<Inner>,
    pub(super) counts: UpstreamCounts,
    places: Semaphore,
    /// Told at every change of the breaker's state.
    turned: Notify,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) breaker: Breaker,
    pub(super) last_failure: Option<(Moment, String)>,
    dice: u64,
    throttle: Throttle,
    declined: Throttle,
    /// When it answered last.
    answered: Option<Moment>,
    /// Whether the log knows that it is not closed.
    told: bool,
}

impl Inner {
    /// Any number, another one each time.
    const fn chance(&mut self) -> u32 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.dice ^ (self.dice >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 32) as u32
    }
}

impl Upstream {
    pub(super) fn new(name: &str, limits: Limits, clock: Clock) -> Self {
        let now = clock.now();
        Self {
            name: name.into(),
            clock,
            limits,
            inner: Mutex::new(Inner {
                breaker: Breaker::new(limits, now),
                last_failure: None,
                // Without random numbers nodes come back together after an outage, which is no reason not to start.
                dice: getrandom::u64().unwrap_or(0),
                throttle: Throttle::default(),
                declined: Throttle::default(),
                answered: None,
                told: false,
            }),
            counts: UpstreamCounts::default(),
            places: Semaphore::new(limits.concurrent.clamp(1, Semaphore::MAX_PERMITS)),
            turned: Notify::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
    /// What its calls keep to.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }
    /// Whether anybody was answered within this time.
    #[must_use]
    pub fn has_answered(&self, within: Duration) -> bool {
        let (at, now) = (lock(&self.inner).answered, self.clock.now());
        at.is_some_and(|at| now.since(at) < within)
    }
    /// Its breaker's state.
    #[must_use]
    pub fn state(&self) -> State {
        lock(&self.inner).breaker.state()
    }

    /// Calls: at once where there is a place, else after a wait of `time_out` at most; then for `time_out` at most. `call` is
    /// not polled before it is let out. The breaker counts what `verdict` says of the result.
    ///
    /// # Errors
    /// [`CallError`]; of an open breaker at once.
    ///
    /// # Cancel safety
    /// Dropping it drops the call, and gives back what it held.
    pub async fn call<T, E>(
        self: &Arc<Self>,
        call: impl Future<Output = Result<T, E>>,
        verdict: impl FnOnce(&Result<T, E>) -> Verdict,
    ) -> Result<T, CallError<E>> {
        let (permit, _place) = self.enter().await?;
        let time_out = self.limits.time_out;
        let Ok(result) = timeout(time_out, call).await else {
            permit.timed_out();
            let upstream = self.name.clone();
            return Err(CallError::TimedOut { upstream, time_out });
        };
        let verdict = verdict(&result);
        let failed = matches!(verdict, Verdict::Failed(_));
        permit.settle(verdict);
        result.map_err(|error| {
            let upstream = self.name.clone();
            if failed {
                CallError::Failed { upstream, error }
            } else {
                CallError::Declined { upstream, error }
            }
        })
    }

    /// Tells the log, once in a while, that it is there and will not.
    pub fn tell_declined(&self, error: &impl std::fmt::Display) {
        let kept_back = lock(&self.inner).declined.pass(self.clock.now());
        if let Some(kept_back) = kept_back {
            tracing::warn!(%error, kept_back, "an upstream does not do what it is asked");
        }
    }

    /// A permit for one round of a caller that keeps its own time, where there is one now. It takes no place.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn try_acquire(self: &Arc<Self>) -> Result<Permit, Refused> {
        self.admit().map_err(|until| self.shed(until))
    }

    /// The same, for loops: waits until there is one. Nothing is spent while it waits.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        loop {
            let mut turned = pin!(self.turned.notified());
            // Before it looks, so that no change of state passes unheard between the look and the wait.
            turned.as_mut().enable();
            match self.admit() {
                Ok(permit) => return permit,
                Err(until) => tokio::select! {
                    biased;
                    () = turned => {}
                    () = sleep_until(self.clock.instant(until)) => {}
                },
            }
        }
    }

    /// For how long nobody is let out, as far as is known; none where somebody may be.
    #[must_use]
    pub fn shed_for(&self) -> Option<Duration> {
        let until = lock(&self.inner).breaker.opens_again()?;
        let left = until.since(self.clock.now());
        (!left.is_zero()).then(|| left.min(self.limits.backoff_max))
    }

    /// Returns when somebody may be let out, who then asks for a permit and may find that another was quicker. For loops that
    /// know only later whether they call. Nothing is spent while it waits.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn passable(&self) {
        loop {
            let mut turned = pin!(self.turned.notified());
            turned.as_mut().enable();
            let until = lock(&self.inner).breaker.opens_again();
            let Some(until) = until.filter(|until| *until > self.clock.now()) else {
                return;
            };
            tokio::select! {
                biased;
                () = turned => {}
                () = sleep_until(self.clock.instant(until)) => {}
            }
        }
    }

    /// A permit and a place. A probe takes no place: those who hang from before the breaker opened may have them all.
    async fn enter(self: &Arc<Self>) -> Result<(Permit, Option<SemaphorePermit<'_>>), Refused> {
        let permit = self.try_acquire()?;
        if permit.is_probe() {
            return Ok((permit, None));
        }
        permit.forget(); // waiting for a place is no call
        let place = self.place().await?;
        Ok((self.try_acquire()?, Some(place)))
    }

    /// A place, after a wait where all are taken.
    async fn place(&self) -> Result<SemaphorePermit<'_>, Refused> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let waiting = Waiting::new(&self.counts, self.limits.waiting);
        if waiting.is_none() {
            return Err(self.busy());
        }
        let mut turned = pin!(self.turned.notified());
        turned.as_mut().enable();
        if self.state() == State::Closed {
            tokio::select! {
                biased;
                Ok(place) = self.places.acquire() => return Ok(place),
                // It has opened: the places are held by calls that hang.
                () = turned => {}
                () = sleep(self.limits.time_out) => return Err(self.busy()),
            }
        }
        let until = lock(&self.inner).breaker.opens_again();
        Err(self.shed(until.unwrap_or_default()))
    }

    /// Lets somebody out, or says until when not.
    fn admit(self: &Arc<Self>) -> Result<Permit, Moment> {
        let admission = self.turn(|inner, now, chance| inner.breaker.admit(now, chance));
        match admission {
            Admission::Wait(until) => Err(until),
            Admission::Call(ticket) => {
                self.counts.active.add(1);
                Ok(Permit::new(self.clone(), ticket))
            }
        }
    }

    fn shed(&self, until: Moment) -> Refused {
        self.counts.shed.add(1);
        self.refused(Why::Open, until.since(self.clock.now()))
    }

    fn busy(&self) -> Refused {
        self.counts.busy.add(1);
        self.refused(Why::Busy, self.limits.backoff_max)
    }

    fn refused(&self, why: Why, retry_after: Duration) -> Refused {
        Refused {
            upstream: self.name.clone(),
            why,
            retry_after: retry_after.min(self.limits.backoff_max),
        }
    }

    /// Takes what came of a call that was let out.
    pub(super) fn settle(
        &self,
        ticket: Ticket,
        outcome: Outcome,
        count: Count,
        why: Option<String>,
    ) {
        self.counts.active.sub(1);
        count(&self.counts).add(1);
        self.turn(|inner, now, chance| {
            let marks = |breaker: &Breaker| (breaker.life(), breaker.failures());
            let before = marks(&inner.breaker);
            inner.breaker.settle(ticket, outcome, now, chance);
            if outcome == Outcome::Answered {
                inner.answered = Some(now);
            }
            // A caller that went away early is no failure.
            let counted = outcome == Outcome::Failed || before != marks(&inner.breaker);
            if let Some(mut why) = why.filter(|_| counted) {
                why.truncate(why.floor_char_boundary(REASON_MAX));
                inner.last_failure = Some((now, why));
            }
        });
    }

    /// Does something to the breaker; where that changed its state, those who wait and the log are told.
    fn turn<T>(&self, act: impl FnOnce(&mut Inner, Moment, u32) -> T) -> T {
        let (done, turned, news) = {
            let (now, mut inner) = (self.clock.now(), lock(&self.inner));
            let (before, chance) = (inner.breaker.life(), inner.chance());
            let done = act(&mut inner, now, chance);
            let turned = inner.breaker.life() != before;
            (done, turned, turned.then(|| inner.news(now)).flatten())
        };
        if turned {
            self.turned.notify_waiters();
        }
        match news {
            Some(News::Lost { reason, kept_back }) => {
                tracing::warn!(upstream = %self.name, reason, kept_back, "an upstream is not available: its breaker is open");
            }
            Some(News::Back { openings }) => {
                tracing::info!(upstream = %self.name, openings, "an upstream is available again");
            }
            None => {}
        }
        done
    }
}

/// What the log is told.
enum News {
    Lost { reason: String, kept_back: u64 },
    Back { openings: u64 },
}

impl Inner {
    /// Once for an outage, not for each of its probes; and of one that flaps not each time.
    fn news(&mut self, now: Moment) -> Option<News> {
        match (self.breaker.state(), self.told) {
            (State::Open, false) => {
                let kept_back = self.throttle.pass(now)?;
                self.told = true;
                let reason = self.last_failure.as_ref().map(|(_, reason)| reason.clone());
                let reason = reason.unwrap_or_default();
                Some(News::Lost { reason, kept_back })
            }
            (State::Closed, true) => {
                self.told = false;
                let openings = self.breaker.openings();
                Some(News::Back { openings })
            }
            (State::Open | State::HalfOpen, true) | (State::Closed | State::HalfOpen, false) => {
                None
            }
        }
    }
}

/// One of those who wait for a place.
struct Waiting<'a>(&'a UpstreamCounts);

impl<'a> Waiting<'a> {
    fn new(counts: &'a UpstreamCounts, max: usize) -> Option<Self> {
        counts.waiting.add(1);
        let waiting = Self(counts);
        (counts.waiting.get() <= max as u64).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.sub(1);
    }
}
