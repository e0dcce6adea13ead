//! What one subscriber has seen of one channel, held against what was published.
//!
//! Does: follows the numbers of a channel. Every publication of the soak has one in its `ts`: counted from 1 in each
//! channel, tombstones too. Owns: counters and, of views, the rows as this subscriber has them. Never knows: sockets.
//! Keeps: of events every number comes, in order, unless a gap was told; of views numbers never go back.

use serde_json::Value;

/// Rows of a view.
pub(super) const ROWS: usize = 8;

/// A view's rows: of each the number of its last change, none where it is deleted.
pub(super) type Rows = [Option<u64>; ROWS];

/// The name of a row.
pub(super) fn row_name(row: usize) -> String {
    format!("r{row}")
}

/// What went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Numbers of events that never came, without a gap.
    pub(super) lost: u64,
    /// Numbers that came again, or too late.
    pub(super) went_back: u64,
}

/// A channel as one subscriber sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Track {
    /// Every number comes, or a gap is told.
    pub(super) is_events: bool,
    /// The number that comes next; none where that can't be known.
    pub(super) next: Option<u64>,
    /// The rows of a view.
    pub(super) rows: Rows,
    /// Updates.
    pub(super) updates: u64,
    /// Gaps that were told.
    pub(super) gaps: u64,
    /// Numbers of a view that were passed over: conflated.
    pub(super) conflated: u64,
    /// The token of the newest message.
    pub(super) position: Option<String>,
    /// What went wrong.
    pub(super) faults: Faults,
}

impl Track {
    /// Takes a message of this channel.
    pub(super) fn take(&mut self, message: &Value) {
        match message["op"].as_str() {
            Some("update") => self.update(message),
            Some("gap") => {
                self.gaps += 1;
                self.next = None;
                self.remember(&message["to"]);
            }
            Some("snapshot") => self.snapshot(message),
            Some("heartbeat") => self.remember(&message["position"]),
            _ => {}
        }
    }

    fn update(&mut self, message: &Value) {
        self.updates += 1;
        self.remember(&message["position"]);
        let Some(number) = message["ts"].as_u64() else {
            return;
        };
        match self.next {
            Some(next) if number < next => self.faults.went_back += 1,
            Some(next) if self.is_events => self.faults.lost += number - next,
            Some(next) => self.conflated += number - next,
            None => {}
        }
        self.next = self.next.max(Some(number + 1));
        if let Some(row) = self.row_of(message["row"].as_str()) {
            *row = message["deleted"].is_null().then_some(number);
        }
    }

    fn snapshot(&mut self, message: &Value) {
        if message["part"] == 0 {
            self.rows = Rows::default();
        }
        for (name, row) in message["rows"].as_object().into_iter().flatten() {
            let number = row["ts"].as_u64();
            self.next = self.next.max(number.map(|number| number + 1));
            if let Some(row) = self.row_of(Some(name)) {
                *row = number;
            }
        }
        self.remember(&message["position"]);
    }

    fn row_of(&mut self, name: Option<&str>) -> Option<&mut Option<u64>> {
        let row: usize = name?.strip_prefix('r')?.parse().ok()?;
        self.rows.get_mut(row)
    }

    fn remember(&mut self, position: &Value) {
        if let Some(position) = position.as_str() {
            position.clone_into(self.position.get_or_insert_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn update(number: u64, row: usize, deleted: bool) -> Value {
        let mut update = json!({"op": "update", "ts": number, "row": row_name(row), "position": format!("0.e:{number}")});
        if deleted {
            update["deleted"] = true.into();
        }
        update
    }

    fn followed(is_events: bool, messages: &[Value]) -> Track {
        let mut track = Track {
            is_events,
            next: Some(1),
            ..Track::default()
        };
        messages.iter().for_each(|message| track.take(message));
        track
    }

    #[test]
    fn an_event_that_never_came_is_lost_unless_a_gap_was_told() {
        let gap = json!({"op": "gap", "to": "0.e:5"});
        let (one, four) = (update(1, 0, false), update(4, 0, false));
        assert_eq!(followed(true, &[one.clone(), four.clone()]).faults.lost, 2);
        let told = followed(true, &[one.clone(), gap, four.clone()]);
        assert_eq!((told.faults, told.gaps), (Faults::default(), 1));
        let back = followed(true, &[four.clone(), one.clone()]).faults;
        assert_eq!((back.lost, back.went_back), (3, 1));
        let view = followed(false, &[one, four]);
        assert_eq!((view.faults, view.conflated), (Faults::default(), 2));
        assert_eq!(view.position.as_deref(), Some("0.e:4"));
    }

    #[test]
    fn rows_are_those_of_the_last_snapshot_and_what_followed() {
        let part = |part: u64, row: usize, number: u64| {
            let mut rows = serde_json::Map::new();
            rows.insert(row_name(row), json!({"ts": number, "data": 0}));
            json!({"op": "snapshot", "part": part, "rows": rows})
        };
        let track = followed(
            false,
            &[
                update(1, 7, false),
                part(0, 0, 11),
                part(1, 1, 12),
                update(13, 1, true),
                update(14, 2, false),
            ],
        );
        let mut expected = Rows::default();
        (expected[0], expected[2]) = (Some(11), Some(14));
        assert_eq!(track.rows, expected);
        assert_eq!((track.next, track.faults), (Some(15), Faults::default()));
    }
}
