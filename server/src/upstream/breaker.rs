//! A breaker as a state machine. Time and chance come in as arguments: it touches no clock and no random source (I9).
//!
//! ```text
//!            failures in a row                its time is over, somebody asks
//!   closed ────────────────────► open ────────────────────────────────────────► half-open
//!     ▲                           ▲    the probe failed, was dropped, or never ended  │ │
//!     │                           └───────────────────────────────────────────────────┘ │
//!     └──────────────────────────── the probe was answered ─────────────────────────────┘
//! ```
//!
//! A state that was entered is a *life*. A ticket belongs to the life that gave it, and what comes of it later changes
//! nothing: neither a call that hung through an outage can open what has healed, nor can an old answer close what is open.

use std::time::Duration;

use super::backoff::Backoff;
use crate::model::Moment;

/// What an upstream's calls keep to. The defaults fit a dependency in the same data centre.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest that one call may take. Default 2 s. A fetch that waits for records at its server needs its wait on top.
    pub time_out: Duration,
    /// Failures with no answer between them that open the breaker. Default 3, at least 1.
    pub failures: u32,
    /// How long it stays open the first time; a half of it at least. Default 50 ms.
    pub backoff_min: Duration,
    /// How long it stays open at most, after doubling with each probe that fails. Default 1 s.
    pub backoff_max: Duration,
    /// Closed for so long, it begins at `backoff_min` when it opens again; earlier it goes on where it was. Default 10 s.
    pub calm: Duration,
    /// Calls at once. Default 64, at least 1; a probe comes on top.
    pub concurrent: usize,
    /// Calls that wait for their turn, each for `time_out` at most. Default 1,024.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time_out: Duration::from_secs(2),
            failures: 3,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            calm: Duration::from_secs(10),
            concurrent: 64,
            waiting: 1024,
        }
    }
}

/// A breaker's state, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Calls go through.
    Closed,
    /// One call goes through, to see.
    HalfOpen,
    /// No call goes through.
    Open,
}

impl State {
    /// Its number in metrics: the higher, the worse.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// What came of a call that was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The callee did what was asked.
    Answered,
    /// The callee answered that it will not: no permission, a bad request. It is there; the fault is the caller's.
    Declined,
    /// The callee was not reached, did not answer in time, or broke.
    Failed,
    /// The caller went away before the end.
    Abandoned,
}

/// The right to one call. Has no effect until [`Breaker::settle`]; a probe's ticket must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    life: u64,
    at: Moment,
    probe: bool,
}

impl Ticket {
    /// Whether it is the one call of a half-open breaker.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.probe
    }
    /// When it was given.
    #[must_use]
    pub const fn at(&self) -> Moment {
        self.at
    }
}

/// What somebody is told who wants to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Call, and settle.
    Call(Ticket),
    /// Not now: nothing changes before this moment, but for the end of a probe. Always later than now.
    Wait(Moment),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed { failures: u32 },
    Open { until: Moment },
    HalfOpen { until: Moment },
}

/// What an outcome says of the callee.
enum Sign {
    Well,
    Ill,
    Nothing,
}

/// One dependency's breaker.
#[derive(Clone, Debug)]
pub struct Breaker {
    limits: Limits,
    phase: Phase,
    life: u64,
    since: Moment,
    backoff: Backoff,
    openings: u64,
    left_closed_at: Moment,
    open_before: Duration,
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub fn new(limits: Limits, now: Moment) -> Self {
        Self {
            limits,
            phase: Phase::Closed { failures: 0 },
            life: 0,
            since: now,
            backoff: Backoff::new(limits.backoff_min, limits.backoff_max),
            openings: 0,
            left_closed_at: now,
            open_before: Duration::ZERO,
        }
    }

    /// Whether somebody may call now. `chance` is any number, another one each time.
    #[must_use]
    pub fn admit(&mut self, now: Moment, chance: u32) -> Admission {
        if let Phase::HalfOpen { until } = self.phase
            && now >= until
        {
            self.open(now, chance); // the probe's holder sits on it: whatever it says later comes too late
        }
        match self.phase {
            Phase::Closed { .. } => Admission::Call(self.ticket(now)),
            Phase::Open { until } if now < until => Admission::Wait(until),
            Phase::Open { .. } => {
                let until = now.plus(self.lease());
                self.enter(Phase::HalfOpen { until }, now);
                Admission::Call(self.ticket(now))
            }
            Phase::HalfOpen { until } => Admission::Wait(until),
        }
    }

    /// Takes what came of a call. Of an earlier life, it changes nothing.
    pub fn settle(&mut self, ticket: Ticket, outcome: Outcome, now: Moment, chance: u32) {
        if ticket.life != self.life {
            return;
        }
        match (&mut self.phase, self.limits.sign(ticket, outcome, now)) {
            (Phase::Closed { failures }, Sign::Well) => *failures = 0,
            (Phase::Closed { failures }, Sign::Ill) => {
                *failures += 1;
                if *failures >= self.limits.failures {
                    self.open(now, chance);
                }
            }
            (Phase::HalfOpen { .. }, Sign::Well) => self.close(now),
            (Phase::HalfOpen { .. }, Sign::Ill) => self.open(now, chance),
            (_, Sign::Nothing) | (Phase::Open { .. }, _) => {}
        }
    }

    /// Its state.
    #[must_use]
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }
    /// Grows with every change of state.
    #[must_use]
    pub const fn life(&self) -> u64 {
        self.life
    }
    /// Since when it is in its state.
    #[must_use]
    pub const fn since(&self) -> Moment {
        self.since
    }
    /// Failures in a row, while it is closed.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        match self.phase {
            Phase::Closed { failures } => failures,
            Phase::Open { .. } | Phase::HalfOpen { .. } => 0,
        }
    }
    /// When it lets the next call through, where it lets none through now; a probe that ends is not foreseen.
    #[must_use]
    pub const fn opens_again(&self) -> Option<Moment> {
        match self.phase {
            Phase::Closed { .. } => None,
            Phase::Open { until } | Phase::HalfOpen { until } => Some(until),
        }
    }
    /// How often it left the closed state.
    #[must_use]
    pub const fn openings(&self) -> u64 {
        self.openings
    }
    /// How long it was not closed, all together.
    #[must_use]
    pub fn open_time(&self, now: Moment) -> Duration {
        match self.phase {
            Phase::Closed { .. } => self.open_before,
            Phase::Open { .. } | Phase::HalfOpen { .. } => {
                self.open_before + now.since(self.left_closed_at)
            }
        }
    }

    /// A probe that is held longer than a call can take is lost.
    fn lease(&self) -> Duration {
        self.limits.time_out + self.limits.backoff_max
    }

    fn ticket(&self, now: Moment) -> Ticket {
        Ticket {
            life: self.life,
            at: now,
            probe: matches!(self.phase, Phase::HalfOpen { .. }),
        }
    }

    fn open(&mut self, now: Moment, chance: u32) {
        if let Phase::Closed { .. } = self.phase {
            if now.since(self.since) >= self.limits.calm {
                self.backoff.reset();
            }
            self.openings += 1;
            self.left_closed_at = now;
        }
        let until = now.plus(self.backoff.pause(chance));
        self.enter(Phase::Open { until }, now);
    }

    fn close(&mut self, now: Moment) {
        self.open_before = self.open_time(now);
        self.enter(Phase::Closed { failures: 0 }, now);
    }

    const fn enter(&mut self, phase: Phase, now: Moment) {
        self.phase = phase;
        self.since = now;
        self.life += 1;
    }
}

impl Limits {
    /// A callee that declines is there: that answers a probe. But among calls that fail it proves nothing, since what is
    /// declined is often declined before what is broken is reached. Of who goes away early nothing can be said; who waited for
    /// half of the time-out has seen it hang, else callers with less patience than the time-out would hide every outage.
    fn sign(&self, ticket: Ticket, outcome: Outcome, now: Moment) -> Sign {
        let waited_long = now.since(ticket.at) >= self.time_out / 2;
        match outcome {
            Outcome::Answered => Sign::Well,
            Outcome::Declined if ticket.probe => Sign::Well,
            Outcome::Failed => Sign::Ill,
            Outcome::Abandoned if ticket.probe || waited_long => Sign::Ill,
            Outcome::Declined | Outcome::Abandoned => Sign::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
