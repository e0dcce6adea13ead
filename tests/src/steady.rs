//! A node in its steady state: one partition, one worker, and subscribers whose sockets take everything.
//!
//! The rooms are the product's own; only sockets and time are simulated, and the sockets count. So what a delivery costs
//! can be told exactly, on any machine: writes, reads, allocations, instructions.

use std::{cell::Cell, io, rc::Rc, sync::Arc, time::Duration};

use tidegate::{
    auth::{Authority, Claims, GrantSpec, JwtKey, Permission, TokenSpec, issue},
    cache::ViewMax,
    decode::{Decoder, KeyPart, own_key},
    model::{Change, Channel, Epoch, Generations, Mode, Moment, Placement, Policy, RowId},
    partition::{
        Partition, Settings,
        tail::{Tail, TailMax},
        task::Request,
    },
    protocol::{ErrorCode, PublishMessage, Refusal},
    source::{
        embedded::{EmbeddedLog, LogSettings, NewRecord, Retention},
        log::Log,
    },
    streams::{PartitionHandle, Stream, StreamOptions},
    telemetry::WorkerCounts,
    worker::{
        self, Opening, Outside, Worker,
        outbox::OutboxMax,
        slab::Key,
        sockets::{Ready, Sockets},
    },
};
use tokio::sync::{mpsc, watch};

const STREAM: &str = "s";
/// Records that one fetch takes.
const FETCH_BYTES: usize = 1 << 20;
/// Turns after which a worker that still has something to do is broken.
const TURNS_MAX: usize = 100_000;
/// Records whose updates stay in memory: few, so that the log soon forgets as much as it learns.
const HELD_BYTES: usize = 64 << 10;

/// Subscribers whose numbers are kept without the list of them growing.
const KEYS: usize = 1 << 14;
/// When the subscribers' own tokens end, in seconds since 1970, beside the leeway.
pub const TOKENS_END_S: u64 = 400;
/// Between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(25);
/// While time passes, the log is heard of so often.
const STEP: Duration = Duration::from_millis(100);

/// How the subscribers listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// Over WebSocket.
    WebSocket,
    /// Over server-sent events.
    Sse,
}

/// What the sockets were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Registrations with the poller.
    pub watches: u64,
}

/// Sockets that take everything, have nothing to read, and count.
#[derive(Debug, Default)]
pub struct Counting(pub Calls);

impl Sockets for Counting {
    type Socket = ();

    fn watch(&mut self, (): &(), _: u64) -> io::Result<()> {
        self.0.watches += 1;
        Ok(())
    }
    fn read(&mut self, (): &(), _: &mut [u8]) -> io::Result<usize> {
        self.0.reads += 1;
        Err(io::ErrorKind::WouldBlock.into())
    }
    fn write(&mut self, (): &(), bytes: &[u8]) -> io::Result<usize> {
        self.0.writes += 1;
        self.0.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn tell_from(&mut self, (): &(), _: usize) {}
    fn finish(&mut self, (): &()) {}
}

/// The rest of the node: one stream, and the time of day.
struct Rest(Arc<Stream>, Rc<Cell<u64>>);

impl Outside for Rest {
    fn verify(&self, _: &str) -> Result<Arc<Claims>, Refusal> {
        Err(Refusal::new(
            ErrorCode::Unauthorized,
            "nobody is verified here",
        ))
    }
    fn stream(&self, name: &str) -> Option<Arc<Stream>> {
        (name == STREAM).then(|| self.0.clone())
    }
    fn publish(&self, _: u64, _: u64, _: PublishMessage, _: Arc<Claims>) {}
    fn wall_s(&self) -> u64 {
        self.1.get()
    }
}

/// The node.
pub struct Steady {
    log: Arc<EmbeddedLog>,
    partition: Partition,
    requests: mpsc::Receiver<Request>,
    worker: Worker<Counting, Rest>,
    counts: Arc<WorkerCounts>,
    claims: Arc<Claims>,
    /// Seconds since 1970, which was when the node was made.
    wall_s: Rc<Cell<u64>>,
    issuer: Option<Issuer>,
    keys: Vec<Key>,
    now: Moment,
    published: u64,
}

/// Who signs a token for each subscriber, and who verifies it.
struct Issuer {
    key: JwtKey,
    authority: Authority,
    issued: usize,
}

impl Issuer {
    fn new() -> Self {
        let key = || JwtKey::hs256("k", &[7; 32]).expect("long enough");
        Self {
            key: key(),
            authority: Authority::new(vec![key()], Vec::new(), None).expect("one key"),
            issued: 0,
        }
    }

    /// What the next subscriber's token means.
    fn claims(&mut self) -> Arc<Claims> {
        self.issued += 1;
        let spec = TokenSpec {
            subject: Some(format!("reader-{:05}", self.issued)),
            grant: grant(),
        };
        let token = issue(&self.key, &spec, TOKENS_END_S, 0).expect("a small token");
        self.authority.verify(&token, 0).expect("it holds")
    }
}

impl Steady {
    /// A node of events without subscribers.
    ///
    /// # Panics
    /// When the rooms refuse what they are made of.
    #[must_use]
    pub fn new() -> Self {
        let now = Moment::default().plus(Duration::from_secs(1));
        let log = log();
        let tail = Tail::new(TailMax {
            bytes: HELD_BYTES,
            age: Duration::from_secs(1 << 30),
        });
        let (sender, requests) = mpsc::channel(1 << 16);
        let partition = partition(&log, &tail);
        let stream = Stream {
            name: STREAM.to_owned(),
            mode: Mode::Events,
            placement: Placement::ByChannel,
            generations: Generations::single(1),
            may_grow: false,
            options: Arc::new(StreamOptions {
                freshness_slo: Duration::from_secs(5),
                expect_every: None,
                policy: Policy::DropOldest,
            })
            .into(),
            partitions: vec![PartitionHandle {
                tail,
                requests: sender,
                log: Log::Embedded(log.clone()),
                held: partition.held(),
            }],
            misplaced: Arc::default(),
            hindrance: watch::Sender::default(),
            poisons: Arc::default(),
            event_time: None,
            canary: Arc::default(),
        };
        let counts = Arc::<WorkerCounts>::default();
        let wall_s = Rc::<Cell<u64>>::default();
        let worker = Worker::new(
            settings(),
            Counting::default(),
            Rest(Arc::new(stream), wall_s.clone()),
            counts.clone(),
            now,
        );
        let mut node = Self {
            log,
            partition,
            requests,
            worker,
            counts,
            claims: claims(),
            wall_s,
            issuer: None,
            keys: Vec::with_capacity(KEYS),
            now,
            published: 0,
        };
        node.fetch();
        node
    }

    /// From now on every subscriber has a token of its own.
    #[must_use]
    pub fn with_own_tokens(mut self) -> Self {
        self.issuer = Some(Issuer::new());
        self
    }

    /// The last ones leave: their sockets break.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn leave(&mut self, subscribers: usize) {
        for key in self.keys.split_off(self.keys.len() - subscribers) {
            let broken = Ready {
                key: key.number(),
                broken: true,
                ..Ready::default()
            };
            self.worker.step(self.now, &[broken]);
        }
        assert_eq!(self.worker.len(), self.keys.len(), "who left has gone");
    }

    /// Time passes, in which nothing is published.
    pub fn rest(&mut self, time: Duration) {
        let until = self.now.plus(time);
        while self.now < until {
            self.now = self.now.plus(STEP);
            self.wall_s.set(self.now.millis() / 1000);
            self.fetch();
            self.turns();
        }
    }

    /// Lets so many subscribers in, each with `channels` channels from the first on, and waits until all follow them.
    ///
    /// # Panics
    /// When a subscription does not begin.
    pub fn subscribe(&mut self, subscribers: usize, channels: usize, how: Listening) {
        let before = self.counts.subscriptions.get();
        for _ in 0..subscribers {
            let claims = match &mut self.issuer {
                Some(issuer) => issuer.claims(),
                None => self.claims.clone(),
            };
            let names = (0..channels).map(channel);
            let (opening, early) = match how {
                Listening::WebSocket => {
                    let opening = Opening::WebSocket {
                        claims: Some(claims),
                    };
                    (opening, names.enumerate().flat_map(subscribe).collect())
                }
                Listening::Sse => {
                    let opening = Opening::Sse {
                        claims,
                        channels: names.collect(),
                        token: None,
                        max_rate: None,
                        policy: None,
                        retry_ms: 1000,
                        chunked: true,
                    };
                    (opening, Vec::new())
                }
            };
            let key = self
                .worker
                .adopt((), (&[], &early), opening, self.now)
                .expect("counting sockets can be watched");
            self.keys.push(key);
        }
        self.turns();
        while let Ok(request) = self.requests.try_recv() {
            if let Request::Join(join) = request {
                self.partition.join(join, self.now);
            }
        }
        self.partition.step(self.now);
        self.turns();
        self.fetch();
        self.turns();
        assert_eq!(
            self.counts.subscriptions.get() - before,
            (subscribers * channels) as u64,
            "every subscription has begun"
        );
    }

    /// Publishes one record to each of the first `channels` channels, `times` times over, and lets the partition take them.
    pub fn publish(&mut self, channels: usize, times: usize) {
        for _ in 0..times {
            for name in 0..channels {
                self.append(channel(name));
            }
        }
        self.fetch();
    }

    fn append(&mut self, channel: Channel) {
        // The length of a number must not change what is measured.
        let data = format!(
            "{{\"n\":{:012},\"pad\":\"{}\"}}",
            self.published,
            "x".repeat(100)
        );
        self.published += 1;
        let record = NewRecord {
            key: own_key(channel.name(), ""),
            change: Change {
                channel,
                row: RowId::default(),
                data: Some(data.into()),
                ts_ms: 0,
            },
            event_time_ms: Some(0),
            id: None,
        };
        self.log.append(vec![record], 0);
    }

    /// A moment passes with every fetch: what it proves is newer than what was asked for before.
    fn fetch(&mut self) {
        self.now = self.now.plus(Duration::from_micros(1));
        loop {
            let fetch = self.log.read(self.partition.next_after(), FETCH_BYTES);
            let fetch = fetch.expect("a log in memory");
            let done = fetch.upto >= fetch.head;
            self.partition.take(&fetch, self.now, self.now);
            if done {
                return;
            }
        }
    }

    /// One turn of the worker: it writes to some of the subscribers.
    pub fn turn(&mut self) {
        self.worker.step(self.now, &[] as &[Ready]);
    }

    /// Turns the worker until it has nothing left to do; tells how many turns that took.
    ///
    /// # Panics
    /// When it never ends.
    pub fn turns(&mut self) -> usize {
        for turn in 1..=TURNS_MAX {
            if !self.worker.step(self.now, &[] as &[Ready]).more {
                return turn;
            }
        }
        panic!("the worker has still something to do after {TURNS_MAX} turns");
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn wall_s(&self) -> u64 {
        self.wall_s.get()
    }

    /// Connections that are there.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.worker.len()
    }

    /// What its sockets were asked for so far.
    #[must_use]
    pub const fn calls(&self) -> Calls {
        self.worker.sockets.0
    }

    /// Updates that were handed to sockets so far.
    #[must_use]
    pub fn deliveries(&self) -> u64 {
        self.counts.deliveries.get()
    }
}

impl Default for Steady {
    fn default() -> Self {
        Self::new()
    }
}

fn log() -> Arc<EmbeddedLog> {
    let settings = LogSettings {
        mode: Mode::Events,
        retention: Retention {
            records: None,
            bytes: HELD_BYTES,
            age: Duration::from_secs(1 << 30),
        },
        view_max: ViewMax {
            rows: usize::MAX,
            bytes: usize::MAX,
        },
        row_ttl: None,
    };
    EmbeddedLog::new(0, Epoch::new("e1").expect("letters and digits"), settings)
}

fn partition(log: &Arc<EmbeddedLog>, tail: &Arc<Tail>) -> Partition {
    let settings = Settings {
        stream: STREAM.to_owned(),
        partition: 0,
        mode: Mode::Events,
        is_later: false,
        replay_records: 1000,
        hold: Duration::from_secs(5),
    };
    let decoder = Decoder::new(
        STREAM,
        KeyPart::Pointer("/0".into()),
        Some(KeyPart::Pointer("/1".into())),
        true,
    );
    Partition::new(settings, decoder, log.clone(), tail.clone())
}

fn settings() -> worker::Settings {
    worker::Settings {
        node: "n0".into(),
        number: 0,
        heartbeat: HEARTBEAT,
        live_for: Duration::from_secs(30),
        outbox: OutboxMax {
            bytes: 1 << 20,
            frames: 4096,
        },
        drain_bytes: 1024,
        drain_over: Duration::from_secs(30),
        message_bytes: 1 << 20,
        message_timeout: Duration::from_secs(30),
        messages: None,
        subscribes: None,
        sweep_sockets: worker::SWEEP_SOCKETS,
        channels_max: 100,
        auth_timeout: Duration::from_secs(10),
    }
}

fn grant() -> GrantSpec {
    GrantSpec {
        channels: vec![format!("{STREAM}/*")],
        can: vec![Permission::Subscribe],
    }
}

fn claims() -> Arc<Claims> {
    let grant = grant().resolve(None).expect("a plain pattern");
    Arc::new(Claims::new("simulated".into(), None, None, &grant))
}

fn channel(n: usize) -> Channel {
    Channel::new(STREAM, &format!("c{n}")).expect("a name")
}

/// A client's frame that subscribes. Its mask is zero, which is a mask like any other.
fn subscribe((id, channel): (usize, Channel)) -> Vec<u8> {
    let text = format!("{{\"id\":{id},\"op\":\"subscribe\",\"channel\":\"{channel}\"}}");
    let length = u8::try_from(text.len()).expect("a short message");
    assert!(length < 126, "a short message");
    let mut frame = vec![0x81, 0x80 | length, 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    frame
}
