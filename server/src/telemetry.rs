//! Every metric's name, and what is counted.
//!
//! Does: names metrics once; counts per worker in plain counters that the admin listener reads. Owns: the counters. Never
//! knows: what they mean to anybody. No label is looked up per delivery: a worker adds to its own numbers once a turn.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread adds to and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    /// Sets, for what goes up and down.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
    /// Reads.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts.
#[derive(Debug, Default)]
pub struct WorkerCounts {
    /// Connections over WebSocket now.
    pub websocket: Counter,
    /// Connections over SSE now.
    pub sse: Counter,
    /// Subscriptions (lanes of connections) now.
    pub subscriptions: Counter,
    /// Messages of updates handed to sockets whole, or into an outbox.
    pub deliveries: Counter,
    /// Writes to sockets.
    pub writes: Counter,
    /// Bytes handed to sockets.
    pub sent_bytes: Counter,
    /// Times that a socket took no more.
    pub blocked: Counter,
    /// Connections whose socket takes no more now.
    pub blocked_now: Counter,
    /// Updates that gave way to newer ones of their row.
    pub conflated: Counter,
    /// Events that gave way and are a gap.
    pub dropped: Counter,
    /// Lines that began again since their outbox was full, or the worker fell off the tail.
    pub rejoined: Counter,
    /// Joins that were asked.
    pub joins: Counter,
    /// Heartbeats and states handed out.
    pub notices: Counter,
    /// Messages that were refused.
    pub refused: Counter,
    /// Turns.
    pub turns: Counter,
    /// Connections closed, by [`crate::protocol::CloseCode`] in the order of `ALL`.
    pub closed: [Counter; 14],
}

/// What the whole node counts.
#[derive(Debug, Default)]
pub struct NodeCounts {
    /// Records that the log took.
    pub published: Counter,
    /// Records that were refused.
    pub publish_refused: Counter,
    /// Records dropped as repeats.
    pub duplicates: Counter,
    /// HTTP requests answered.
    pub requests: Counter,
    /// Connections refused at the door.
    pub refused_connections: Counter,
}
