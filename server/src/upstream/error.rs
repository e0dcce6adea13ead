//! Why a call came to nothing.

use std::{fmt, sync::Arc, time::Duration};

/// Why a call was not let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The breaker is open.
    Open,
    /// As many calls are out, and as many wait, as may; or this one has waited for as long as it may.
    Busy,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "does not answer, its breaker is open",
            Self::Busy => "has as many calls as it may",
        })
    }
}

/// A call that was not let out: the callee has not heard of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{upstream} {why}: try again in {} ms", .retry_after.as_millis())]
pub struct Refused {
    /// Who was to be called.
    pub upstream: Arc<str>,
    /// Why not.
    pub why: Why,
    /// When it may be different; a second at most with the default limits. Add chance to it before many come back at once.
    pub retry_after: Duration,
}

/// What came of a call instead of an answer. All but [`CallError::Declined`] mean that the upstream is not available.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// It was not let out.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It was given up. The callee may have done what was asked all the same.
    #[error("{upstream} did not answer within {} ms", .time_out.as_millis())]
    TimedOut {
        /// Who was called.
        upstream: Arc<str>,
        /// For how long.
        time_out: Duration,
    },
    /// It failed, and its breaker counts that.
    #[error("{upstream}: {error}")]
    Failed {
        /// Who was called.
        upstream: Arc<str>,
        /// What the call said.
        #[source]
        error: E,
    },
    /// The callee is there and answered that it will not: asking again in the same way comes to the same.
    #[error("{upstream} declined: {error}")]
    Declined {
        /// Who was called.
        upstream: Arc<str>,
        /// What the call said.
        #[source]
        error: E,
    },
}

impl<E> CallError<E> {
    /// Whether the upstream is not available now: what subscribers of its data are told as staleness.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        !matches!(self, Self::Declined { .. })
    }

    /// When asking again may help, where that is known.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(refused) => Some(refused.retry_after),
            Self::TimedOut { .. } | Self::Failed { .. } | Self::Declined { .. } => None,
        }
    }
}
