//! One coarse timer wheel a worker: nothing per connection but an entry, where it waits for something.
//!
//! An entry is never taken back: it fires, and whoever it is for looks whether it still matters.

use std::time::Duration;

use crate::model::Moment;

/// How coarse it is.
pub const TICK: Duration = Duration::from_millis(8);
const TICK_MICROS: u64 = 8000;
const SLOTS: usize = 4096;

struct Entry<T> {
    tick: u64,
    timer: T,
}

/// Timers of kind `T`.
pub struct Wheel<T> {
    slots: Vec<Vec<Entry<T>>>,
    /// The next tick to be looked at.
    tick: u64,
    len: usize,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a moment is made of an u64 of microseconds"
)]
const fn tick_of(moment: Moment) -> u64 {
    moment.since(Moment::from_micros(0)).as_micros() as u64 / TICK_MICROS
}

impl<T> Wheel<T> {
    /// A wheel that begins at `now`.
    #[must_use]
    pub fn new(now: Moment) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            tick: tick_of(now),
            len: 0,
        }
    }

    /// Fires at `due` or up to a tick later, never earlier.
    pub fn add(&mut self, due: Moment, timer: T) {
        let tick = (tick_of(due) + 1).max(self.tick);
        self.slots[slot(tick)].push(Entry { tick, timer });
        self.len += 1;
    }

    /// Moves what is due at `now` into `fired`.
    pub fn fire(&mut self, now: Moment, fired: &mut Vec<T>) {
        let until = tick_of(now);
        // After a long pause every slot is looked at once, not every tick.
        let looks = (until + 1).saturating_sub(self.tick).min(SLOTS as u64);
        for tick in self.tick..self.tick + looks {
            let entries = &mut self.slots[slot(tick)];
            let before = fired.len();
            fired.extend(
                entries
                    .extract_if(.., |entry| entry.tick <= until)
                    .map(|entry| entry.timer),
            );
            self.len -= fired.len() - before;
            if entries.is_empty() {
                // Thousands of slots that each keep a little would be more than all that idles.
                *entries = Vec::new();
            }
        }
        self.tick = self.tick.max(until + 1);
    }

    /// When it is to be looked at again; none when nothing waits. May be early for timers beyond one turn of the wheel.
    #[must_use]
    pub fn next(&self) -> Option<Moment> {
        if self.len == 0 {
            return None;
        }
        let ticks = self.tick..self.tick + SLOTS as u64;
        let tick = ticks
            .into_iter()
            .find(|&tick| !self.slots[slot(tick)].is_empty())?;
        Some(Moment::from_micros(tick * TICK_MICROS))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "less than SLOTS")]
const fn slot(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_micros(millis * 1000)
    }

    #[test]
    fn timers_fire_once_at_their_time_or_a_tick_later() {
        let mut wheel = Wheel::new(at(1000));
        let dues = [1000, 1001, 1500, 40_000, 90_000, 500];
        for due in dues {
            wheel.add(at(due), due);
        }
        let mut fired = Vec::new();
        for now in (1000..100_000).step_by(3) {
            let mut some = Vec::new();
            wheel.fire(at(now), &mut some);
            for due in some {
                assert!(
                    due <= now && now <= due.max(1000) + 8 + 3,
                    "{due} fired at {now}"
                );
                fired.push(due);
            }
        }
        fired.sort_unstable();
        assert_eq!(fired, [500, 1000, 1001, 1500, 40_000, 90_000]);
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn it_says_when_to_look_again() {
        let mut wheel = Wheel::new(at(0));
        wheel.add(at(100), ());
        let next = wheel.next().unwrap();
        assert!(next >= at(100) && next <= at(109), "{next:?}");
        let mut fired = Vec::new();
        wheel.fire(at(1_000_000), &mut fired);
        assert_eq!(fired.len(), 1);
    }
}
