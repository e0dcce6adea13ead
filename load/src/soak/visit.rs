//! What each visitor of the soak does: a plan by its number alone, so that every run does the same.
//!
//! Does: says how the nth visitor comes, what it asks for and how it leaves. Owns: nothing. Never knows: sockets, clocks.
//! Keeps: of 120 visitors in a row every way to come meets every way to leave.

use super::client::Asks;

/// Known channels of each stream.
pub(super) const KNOWN: usize = 10;

/// From where a visitor goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resumes {
    /// It is new.
    Not,
    /// With the token of somebody who has just left.
    Fresh,
    /// With one that the tail, and mostly the log, no longer reaches back to.
    Aged,
}

/// A channel of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// One that is always there.
    Known(usize),
    /// One that nobody has named before or will again. `written`: something is published to it.
    Invented {
        /// Of a view also deleted again when the visitor leaves.
        written: bool,
    },
}

/// A visitor's plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Visit {
    /// What it asks for.
    pub(super) asks: Asks,
    /// Which stream: 0 views, 1 events.
    pub(super) stream: usize,
    /// Which channel.
    pub(super) place: Place,
    /// From where.
    pub(super) resumes: Resumes,
    /// It says goodbye; else its connection is reset.
    pub(super) is_polite: bool,
    /// How long it stays, in milliseconds.
    pub(super) stays_ms: u64,
}

impl Visit {
    /// The plan of the nth visitor.
    pub(super) const fn of(nth: u64) -> Self {
        let asks = match nth % 5 {
            0 | 3 => Asks::WebSocket,
            1 | 4 => Asks::Events,
            _ => Asks::View,
        };
        let stream = match asks {
            Asks::View => 0,
            Asks::WebSocket | Asks::Events => (nth / 5 % 2) as usize,
        };
        let place = if (nth / 10).is_multiple_of(2) {
            Place::Known((nth / 3 % KNOWN as u64) as usize)
        } else {
            Place::Invented {
                written: nth % 3 != 2,
            }
        };
        let resumes = match (place, nth / 20 % 3) {
            (Place::Known(_), 1) => Resumes::Fresh,
            (Place::Known(_), 2) => Resumes::Aged,
            _ => Resumes::Not,
        };
        Self {
            asks,
            stream,
            place,
            resumes,
            is_polite: (nth / 60).is_multiple_of(2),
            stays_ms: 500 + nth * 7_919 % 3_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_and_twenty_visitors_do_everything() {
        let visits: Vec<_> = (0..120).map(Visit::of).collect();
        for asks in [Asks::WebSocket, Asks::Events, Asks::View] {
            for is_polite in [true, false] {
                for resumes in [Resumes::Not, Resumes::Fresh, Resumes::Aged] {
                    let found = |visit: &&Visit| {
                        (visit.asks, visit.is_polite, visit.resumes) == (asks, is_polite, resumes)
                    };
                    assert!(
                        visits.iter().any(|visit| found(&visit)),
                        "{asks:?} {is_polite} {resumes:?}"
                    );
                }
                for written in [true, false] {
                    let found = |visit: &Visit| {
                        (visit.asks, visit.place) == (asks, Place::Invented { written })
                    };
                    assert!(visits.iter().any(found), "{asks:?}, invented, {written}");
                }
            }
        }
        let average = visits.iter().map(|visit| visit.stays_ms).sum::<u64>() / 120;
        assert!((1_800..2_200).contains(&average), "{average}");
    }
}
