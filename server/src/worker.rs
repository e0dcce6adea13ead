//! The turn: pull, fan out, write.
//!
//! Does: owns connections and, a turn at a time, reads what came in, pulls what is new in the tails, and writes once per
//! connection and turn: the shared bytes of one update, or one shared buffer of several. Owns: connections, lanes, outboxes,
//! one timer wheel. Never knows: sources, views, HTTP. Keeps: I2, I4, I8, I9: [`Worker::step`] touches no clock, no random
//! source, and sockets only through [`Sockets`], so that a simulation can drive it.
//!
//! The fast path is a connection without a cold box: a sweep writes the lane's shared buffer to it, and that is all. Who
//! blocks, joins, has a rate or several channels has a box with lines (`outbox.rs`), and leaves the slow path when nothing
//! is left in it.

mod arrivals;
mod batch;
pub mod connection;
mod ears;
mod fan_out;
mod flush;
mod freshness;
mod growing;
mod input;
mod inspect;
mod joins;
pub mod lane;
mod offer;
pub mod outbox;
pub mod poll;
mod reload;
mod rounds;
pub mod slab;
pub mod sockets;
mod subscriptions;
pub mod sweep;
pub mod talk;
mod timers;
pub mod wheel;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

pub use inspect::{ChannelInfo, ConnectionInfo, Pick};
pub use reload::Retold;
pub use timers::Farewell;

use connection::{Closing, Cold, Connection, ENDLESS, Life, ends_s};
use joins::Wishes;
use lane::{Lane, NONE};
use outbox::{Line, OutboxMax};
use slab::{Key, Places, Slab};
use sockets::{Ready, Sockets};
use talk::{Rate, Talkers};
use wheel::Wheel;

use crate::{
    auth::Claims,
    model::{Channel, Epoch, FreshnessState, Moment, Policy, StaleReason, Token},
    partition::{
        Joined, Mailbox,
        tail::{Cursor, Health, Proof, Wake},
    },
    protocol::{CloseCode, PublishMessage, Refusal, write},
    session::Phase,
    streams::Stream,
    telemetry::WorkerCounts,
};

/// Sockets that one turn of sweeps writes to, about a millisecond.
pub const SWEEP_SOCKETS: usize = 128;
/// Bytes that one turn reads from one connection.
const READ_BYTES: usize = 16 * 1024;
/// A write from the slow path.
const FLUSH_BYTES: usize = 16 * 1024;
/// Replies that wait for a client that does not read them; beyond it, it is a slow consumer.
const REPLIES_MAX: usize = 256 * 1024;
/// Updates that one turn pulls from one tail.
const PULL_MAX: usize = 4096;
/// How often freshness is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long the peer's close frame is awaited.
const LINGER: Duration = Duration::from_secs(2);

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name.
    pub node: Arc<str>,
    /// This worker's number.
    pub number: usize,
    /// Between two heartbeats of a channel.
    pub heartbeat: Duration,
    /// A proof keeps a view live for so long.
    pub live_for: Duration,
    /// The bound of a line.
    pub outbox: OutboxMax,
    /// Bytes that a blocked connection must drain …
    pub drain_bytes: usize,
    /// … in this time.
    pub drain_over: Duration,
    /// Largest message of a client.
    pub message_bytes: usize,
    /// Within which a message that has begun must be whole.
    pub message_timeout: Duration,
    /// Pings and refused messages of one connection.
    pub messages: Option<Rate>,
    /// Subscriptions that one connection may ask.
    pub subscribes: Option<Rate>,
    /// Channels of one connection.
    pub channels_max: usize,
    /// Sockets that one turn of sweeps writes to: [`SWEEP_SOCKETS`], or fewer where turns are to be interrupted often.
    pub sweep_sockets: usize,
    /// How long a session may wait for its token.
    pub auth_timeout: Duration,
}

/// What a worker asks of the rest of the node.
pub trait Outside {
    /// Whether a token holds.
    ///
    /// # Errors
    /// What the client is told.
    fn verify(&self, token: &str) -> Result<Arc<Claims>, Refusal>;
    /// A stream by its name.
    fn stream(&self, name: &str) -> Option<Arc<Stream>>;
    /// Publishes; the answer comes back through [`Worker::published`].
    fn publish(&self, from: u64, id: u64, record: PublishMessage, claims: Arc<Claims>);
    /// Seconds since 1970, for the ends of tokens.
    fn wall_s(&self) -> u64;
    /// Whether the node's memory is short: who joins cold is sent away.
    fn is_short_of_memory(&self) -> bool {
        false
    }
    /// A connection has gone.
    fn closed(&self, _key: u64) {}
}

/// How a connection begins.
#[derive(Debug)]
pub enum Opening {
    /// A WebSocket after its handshake.
    WebSocket {
        /// What its token permits; none when it is to come as a message.
        claims: Option<Arc<Claims>>,
    },
    /// An event stream after its head.
    Sse {
        /// What its token permits.
        claims: Arc<Claims>,
        /// Its channels, already permitted, all of one stream.
        channels: Vec<Channel>,
        /// Where it was.
        token: Option<Token>,
        /// The connection's rate.
        max_rate: Option<f64>,
        /// The connection's policy.
        policy: Option<Policy>,
        /// After which its reader comes back by itself.
        retry_ms: u64,
        /// Its body is chunked; over HTTP/1.0 it is not.
        chunked: bool,
    },
}

/// When the next turn is due.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// At once: something was left over.
    pub more: bool,
    /// Then at the latest.
    pub at: Option<Moment>,
}

/// A partition that some connection of this worker follows.
struct Seat {
    stream: Arc<Stream>,
    partition: u32,
    cursor: Cursor,
    epoch: Option<Epoch>,
    health: Health,
    /// The last proofs, oldest first: a line that is busy proves what it has sent by an older one.
    proofs: VecDeque<Proof>,
    lanes: HashMap<Channel, u32>,
    /// The tail no longer reached back: all lanes rejoin once they are quiet.
    fallen: bool,
}

/// A channel that some connection of this worker follows, with a lane for each of its partitions.
struct ChannelSeat {
    channel: Channel,
    lanes: Vec<u32>,
    told: (FreshnessState, Option<StaleReason>),
    beat_due: bool,
    /// Distinguishes this channel's timer from that of an earlier holder of the number.
    life: u32,
}

#[derive(Debug, Clone, Copy)]
enum Timer {
    Tick,
    Beat(u32, u32),
    Auth(Key),
    Rate(Key),
    Flush(Key),
    Linger(Key),
    Bye(Key, u64),
    Retry(Key),
    RetryLane(u32),
}

/// One worker.
pub struct Worker<S: Sockets, O: Outside> {
    settings: Settings,
    /// The sockets.
    pub sockets: S,
    outside: O,
    connections: Slab<Connection<S::Socket>>,
    lanes: Places<Lane>,
    channels: Places<ChannelSeat>,
    channel_numbers: HashMap<Channel, u32>,
    channel_lives: u32,
    seats: Vec<Seat>,
    /// Channels whose stream has grown, and whose lanes have not yet all been entered.
    growing: BTreeSet<Channel>,
    wheel: Wheel<Timer>,
    /// The rounds have gone up to this tick.
    rounded: usize,
    wake: Arc<Wake>,
    mailbox: Arc<Mailbox>,
    wishes: Wishes,
    busy: VecDeque<u32>,
    /// Those whom a sweep visits.
    turn: Vec<u32>,
    touched: Vec<Key>,
    unread: VecDeque<Key>,
    unproven: Vec<Key>,
    beats_due: Vec<u32>,
    /// Answers for lanes that were still being swept.
    deferred: Vec<Joined>,
    blocked: Vec<Key>,
    /// Connections of which a message came in part.
    unfinished: Vec<Key>,
    talkers: Talkers,
    /// The messages of one array are looked at: they are charged together.
    in_array: bool,
    input: Vec<u8>,
    scratch: Vec<u8>,
    counts: Arc<WorkerCounts>,
    pull_again: bool,
    draining: bool,
    /// Of each sweep that ended in this turn, when its first and its last update were applied.
    swept: Vec<(Moment, Moment)>,
    /// The turn's moment.
    now: Moment,
}

impl<S: Sockets, O: Outside> Worker<S, O> {
    /// A worker without connections, at `now`.
    #[must_use]
    pub fn new(
        settings: Settings,
        sockets: S,
        outside: O,
        counts: Arc<WorkerCounts>,
        now: Moment,
    ) -> Self {
        let wake = Arc::<Wake>::default();
        let mut wheel = Wheel::new(now);
        wheel.add(now.plus(TICK), Timer::Tick);
        Self {
            settings,
            sockets,
            outside,
            connections: Slab::default(),
            lanes: Places::default(),
            channels: Places::default(),
            channel_numbers: HashMap::new(),
            channel_lives: 0,
            seats: Vec::new(),
            growing: BTreeSet::new(),
            wheel,
            rounded: rounds::ticks_of(now),
            mailbox: Mailbox::new(wake.clone()),
            wake,
            wishes: Wishes::default(),
            busy: VecDeque::new(),
            turn: Vec::new(),
            touched: Vec::new(),
            unread: VecDeque::new(),
            unproven: Vec::new(),
            beats_due: Vec::new(),
            deferred: Vec::new(),
            blocked: Vec::new(),
            unfinished: Vec::new(),
            talkers: Talkers::default(),
            in_array: false,
            input: vec![0; READ_BYTES],
            scratch: Vec::with_capacity(FLUSH_BYTES * 2),
            counts,
            pull_again: false,
            draining: false,
            swept: Vec::new(),
            now,
        }
    }

    /// What wakes it.
    #[must_use]
    pub fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Connections that it owns.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether it owns none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether it owns this connection.
    #[must_use]
    pub fn holds(&self, key: Key) -> bool {
        self.connections.peek(key).is_some()
    }

    /// A connection's name, for logs and support.
    #[must_use]
    pub fn session_name(&self, key: Key) -> String {
        format!(
            "{}-{}-{:x}",
            self.settings.node,
            self.settings.number,
            key.number()
        )
    }

    /// One turn.
    pub fn step(&mut self, now: Moment, ready: &[Ready]) -> Turn {
        self.counts.turns.add(1);
        self.swept.clear();
        for ready in ready {
            self.on_ready(*ready, now);
        }
        self.read_on(now);
        self.fire(now);
        let woken = self.wake.take();
        // Answers are taken before the tails are pulled: so a pull is at least as new as any answer.
        let answers = self.mailbox.take();
        if woken || self.pull_again || !answers.is_empty() {
            self.pull(now);
        }
        for joined in std::mem::take(&mut self.deferred)
            .into_iter()
            .chain(answers)
        {
            self.on_joined(&joined, now);
        }
        self.rejoin_fallen();
        self.sweep(now);
        self.flush_touched(now);
        self.send_wishes(now);
        let more = !self.busy.is_empty()
            || !self.unread.is_empty()
            || !self.touched.is_empty()
            || self.pull_again
            || !self.deferred.is_empty();
        Turn {
            more,
            at: self.wheel.next(),
        }
    }

    /// Counts what the turn that began at `began` took, and how old what it swept is when it ends at `now`.
    pub fn turned(&mut self, began: Moment, now: Moment) {
        let busy = u64::try_from(now.since(began).as_micros()).unwrap_or(u64::MAX);
        self.counts.busy_us.add(busy);
        for (first, last) in self.swept.drain(..) {
            self.counts.delivery.note(now.since(first));
            self.counts.delivery.note(now.since(last));
        }
    }

    fn touch(&mut self, key: Key) {
        if let Some(connection) = self.connections.get(key) {
            let cold = connection.cold();
            if !cold.touched {
                cold.touched = true;
                self.touched.push(key);
            }
        }
    }

    /// Sends one message to one connection, in the lane of replies.
    fn reply(&mut self, key: Key, op: &'static str, json: &[u8], news_of: Option<Channel>) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let mut bytes = Vec::with_capacity(json.len() + 16);
        connection.wire.append(&mut bytes, op, None, json);
        let cold = connection.cold();
        cold.reply(news_of, bytes);
        if cold.reply_bytes > REPLIES_MAX {
            self.close(key, CloseCode::SlowConsumer);
            return;
        }
        self.touch(key);
    }

    fn refuse(&mut self, key: Key, id: Option<u64>, refusal: &Refusal) {
        self.counts.refused.add(1);
        if !self.in_array && !self.charge(key, 1, self.now) {
            return;
        }
        let mut json = Vec::new();
        write::error(&mut json, id, refusal);
        self.reply(key, "error", &json, None);
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Lends a connection's cold box and its socket at the same time.
fn parts<S>(connection: &mut Connection<S>) -> (&S, &mut Cold) {
    let cold = connection.cold.get_or_insert_default();
    (&connection.socket, cold)
}
