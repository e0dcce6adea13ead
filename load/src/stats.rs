//! What is counted while a run goes on.
//!
//! Does: counts deliveries, their latency, and what is missing. Owns: the counters of one group of subscribers. Never
//! knows: sockets. Keeps: recording allocates nothing.

use hdrhistogram::Histogram;

/// Longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 120_000_000;

/// The counters of one group of subscribers.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Latency from due to read, in microseconds, to 1 %; with kernel times from written to arrived.
    pub(crate) latency_us: Histogram<u64>,
    /// With kernel times, from written to read, in microseconds.
    pub(crate) read_us: Option<Histogram<u64>>,
    /// Updates that arrived.
    pub(crate) deliveries: u64,
    /// Numbers that were passed over by a later one on the same connection.
    pub(crate) skipped: u64,
    /// Updates whose number was not above the one before on the same connection.
    pub(crate) repeated: u64,
    /// `gap` messages.
    pub(crate) gaps: u64,
    /// Messages that are neither updates nor gaps: hello, heartbeat, freshness, snapshot, comments, pings.
    pub(crate) others: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Reads that brought bytes.
    pub(crate) reads: u64,
    /// Connections that ended by themselves.
    pub(crate) closed: u64,
    /// Length on the wire of the newest update, in bytes.
    pub(crate) frame_bytes: usize,
    /// When the newest update was read: nanoseconds, monotonic.
    pub(crate) last_ns: u64,
}

/// When bytes came: nanoseconds, monotonic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct When {
    /// The driver read them.
    pub(crate) read: u64,
    /// The kernel had them, where it notes that.
    pub(crate) arrived: Option<u64>,
}

/// Times in microseconds, none yet.
pub(crate) fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 2).expect("the bounds are valid")
}

impl Tally {
    /// All at zero.
    pub(crate) fn new() -> Self {
        Self {
            latency_us: times(),
            read_us: None,
            deliveries: 0,
            skipped: 0,
            repeated: 0,
            gaps: 0,
            others: 0,
            bytes: 0,
            reads: 0,
            closed: 0,
            frame_bytes: 0,
            last_ns: 0,
        }
    }

    /// Counts an update that was due at `due` and came at `when`, with number `seq`, on a connection that expected
    /// `next`; returns what it expects now.
    pub(crate) fn update(&mut self, when: When, due: u64, seq: u64, next: u64) -> u64 {
        self.deliveries += 1;
        self.last_ns = when.read;
        self.latency_us
            .saturating_record(when.arrived.unwrap_or(when.read).saturating_sub(due) / 1000);
        if when.arrived.is_some() {
            self.read_us
                .get_or_insert_with(times)
                .saturating_record(when.read.saturating_sub(due) / 1000);
        }
        if seq < next {
            self.repeated += 1;
            return next;
        }
        self.skipped += seq - next;
        seq + 1
    }

    /// A quantile of the latency, in microseconds; 0 when nothing arrived.
    pub(crate) fn quantile_us(&self, quantile: f64) -> u64 {
        if self.latency_us.is_empty() {
            0
        } else {
            self.latency_us.value_at_quantile(quantile)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_repeats_are_counted_per_connection() {
        let mut tally = Tally::new();
        let mut next = 0;
        for seq in [0, 1, 4, 4, 2, 5] {
            let when = When {
                read: 5_000,
                arrived: None,
            };
            next = tally.update(when, 2_000, seq, next);
        }
        assert_eq!(
            (next, tally.deliveries, tally.skipped, tally.repeated),
            (6, 6, 2, 2)
        );
        assert_eq!(tally.quantile_us(0.5), 3);
        assert_eq!(tally.read_us, None);
    }

    #[test]
    fn what_was_read_late_did_not_come_late() {
        let mut tally = Tally::new();
        let when = When {
            read: 9_000_000,
            arrived: Some(3_000_000),
        };
        tally.update(when, 1_000_000, 0, 0);
        let read_us = tally.read_us.unwrap();
        assert!(tally.latency_us.equivalent(tally.latency_us.max(), 2_000));
        assert!(read_us.equivalent(read_us.max(), 8_000));
    }
}
