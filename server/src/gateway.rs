//! The composition root: builds the rooms, owns every task, starts and drains in order.
//!
//! Does: turns a [`Config`] into a running node, and ends it with the data: admission closes, sessions are told, outboxes
//! flush until the deadline, sockets close, partitions stop. Owns: threads, tasks, tokens of cancellation. Keeps: I7.

mod memory;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{mpsc, oneshot, watch},
    task::LocalSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin,
    auth::{self, ApiKey, Authority, GrantSpec, JwtKey},
    cache::ViewMax,
    clock::Clock,
    config::{self, Config, Selector, SourceConfig, StreamConfig},
    decode::{Decoder, KeyPart},
    model::Epoch,
    partition::{
        Partition, Settings,
        tail::{Tail, TailMax},
        task,
    },
    publish::Publisher,
    source::embedded::{EmbeddedSource, Engine, LogSettings, Retention},
    streams::{PartitionHandle, Stream, Streams},
    telemetry::{NodeCounts, WorkerCounts},
    transport::{
        App, HttpMax,
        admission::{Admission, AdmissionMax},
        router,
        thread::{Command, Thread, WorkerHandle, commands, listen},
    },
    worker::{self, outbox::OutboxMax, talk::Rate},
};

/// Streams that publishing may create.
const CREATED_MAX: usize = 1000;
/// Pings and refused messages that a connection may send at once, in seconds of its rate.
const MESSAGES_BURST_S: u32 = 5;
/// Between two looks at whether a drain is done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("can't listen on {address} for {what}: {error}")]
    Listen {
        /// For whom.
        what: &'static str,
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The keys contradict each other.
    #[error("access: {0}")]
    Access(String),
    /// The operating system gives no thread, runtime or random number.
    #[error("can't start {what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

/// A running node.
pub struct Gateway {
    address: SocketAddr,
    admin_address: SocketAddr,
    app: Arc<App>,
    workers: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    control: Option<Runtime>,
    tasks: TaskTracker,
    closed: CancellationToken,
    stop: CancellationToken,
    drain: config::DrainConfig,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were still there at the deadline, and were closed then.
    pub left: usize,
    /// Tasks that were still there when all should have ended.
    pub tasks: usize,
}

impl Gateway {
    /// Starts a node. Its engine may be shared with other nodes of the process; without one it has its own.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: &Config, engine: Option<Arc<Engine>>) -> Result<Self, StartError> {
        let system = |what| move |error| StartError::System { what, error };
        let clock = Clock::start();
        let control = Builder::new_multi_thread()
            .worker_threads(config.listen.workers)
            .thread_name("tidegate-control")
            .enable_all()
            .build()
            .map_err(system("the runtime"))?;
        let (tasks, stop, closed) = (
            TaskTracker::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let streams = Arc::<Streams>::default();
        let factory = Arc::new(Factory {
            engine: engine.unwrap_or_default(),
            streams: streams.clone(),
            clock,
            handle: control.handle().clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            defaults: config.stream_defaults.clone(),
            replay_records: config.limits.replay_records,
            hold: config.limits.resume_hold,
            creating: Mutex::default(),
        });
        for stream in &config.streams {
            factory.make(stream);
        }
        let listeners = bind(config)?;
        let address = listeners[0].local_addr().map_err(system("the listener"))?;
        let counts: Vec<Arc<WorkerCounts>> = listeners.iter().map(|_| Arc::default()).collect();
        let app = Arc::new(app(config, streams, clock, counts.clone(), &factory)?);
        let routes = router(app.clone());
        let node: Arc<str> = short_random().map_err(system("random numbers"))?.into();
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        for (number, (listener, counts)) in listeners.into_iter().zip(counts).enumerate() {
            let (handle, commands) = commands();
            workers.push(handle);
            let thread = Thread {
                app: app.clone(),
                router: routes.clone(),
                listener,
                settings: worker_settings(config, &node, number),
                counts,
                commands,
                closed: closed.clone(),
                stop: stop.clone(),
            };
            threads.push(spawn_worker(number, thread).map_err(system("a worker's thread"))?);
        }
        let admin_address = config.admin.address;
        let listener = std::net::TcpListener::bind(admin_address);
        let listener = listener.map_err(|error| StartError::Listen {
            what: "the admin listener",
            address: admin_address,
            error,
        })?;
        let admin_address = listener
            .local_addr()
            .map_err(system("the admin listener"))?;
        let guard = admin::Guard::new(admin_address, config.admin.token.as_deref());
        let admin = admin::Admin::new(app.clone(), workers.clone(), node, guard);
        tasks.spawn_on(
            admin::serve(admin, listener, stop.clone()),
            control.handle(),
        );
        let budget = memory::keep(
            app.clone(),
            workers.clone(),
            config.limits.memory,
            stop.clone(),
        );
        tasks.spawn_on(budget, control.handle());
        Ok(Self {
            address,
            admin_address,
            app,
            workers,
            threads,
            control: Some(control),
            tasks,
            closed,
            stop,
            drain: config.session.drain.clone(),
        })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where operators connect.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What the handlers share: for the demo, which publishes as any publisher would, and for tests.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Returns once an operator has asked the node to leave, by `POST /drain`: then it is to be drained. Cancel safe.
    pub async fn asked_to_leave(&self) {
        self.app.leave.cancelled().await;
    }

    /// Runs a task of the node's own until it ends or the node stops.
    pub fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        if let Some(control) = &self.control {
            let task = async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = task => {}
                }
            };
            self.tasks.spawn_on(task, control.handle());
        }
    }

    /// Leaves in order: not ready, everybody told within the window, flushed, closed; at the deadline at the latest.
    pub async fn drain(mut self) -> Drained {
        let deadline = tokio::time::Instant::now() + self.drain.deadline;
        self.app.draining.store(true, Ordering::Relaxed);
        for worker in &self.workers {
            // A worker that is gone has nobody to tell.
            let told = worker.commands.send(Command::Drain(self.drain.window));
            drop(tokio::time::timeout_at(deadline, told).await);
        }
        let mut left = self.connections(deadline).await;
        while left > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(DRAIN_LOOK).await;
            left = self.connections(deadline).await;
        }
        self.closed.cancel();
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("a worker's thread panicked");
            }
        }
        self.tasks.close();
        let ended = tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await;
        let tasks = if ended.is_ok() { 0 } else { self.tasks.len() };
        if let Some(control) = self.control.take() {
            control.shutdown_background();
        }
        Drained { left, tasks }
    }

    /// Connections that are left, as far as the workers say so before the deadline.
    async fn connections(&self, deadline: tokio::time::Instant) -> usize {
        let mut count = 0;
        for worker in &self.workers {
            let asked = async {
                let (reply, answer) = oneshot::channel();
                worker.commands.send(Command::Count(reply)).await.ok()?;
                answer.await.ok()
            };
            // A worker that does not answer has at least one.
            count += tokio::time::timeout_at(deadline, asked)
                .await
                .map_or(1, |left| left.unwrap_or(0));
        }
        count
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.closed.cancel();
        self.stop.cancel();
        if let Some(control) = self.control.take() {
            control.shutdown_background();
        }
    }
}

fn spawn_worker(number: usize, thread: Thread) -> io::Result<JoinHandle<()>> {
    // The I/O driver is looked at every few turns also while sweeps keep the worker busy: a turn is about a millisecond.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .event_interval(1)
        .build()?;
    let run = move || {
        if let Err(error) = LocalSet::new().block_on(&runtime, thread.run()) {
            tracing::error!(worker = number, %error, "worker ended");
        }
    };
    std::thread::Builder::new()
        .name(format!("tidegate-worker-{number}"))
        .spawn(run)
}

/// One listener a worker, all on the same port.
fn bind(config: &Config) -> Result<Vec<std::net::TcpListener>, StartError> {
    let mut address = config.listen.address;
    let failed = |address| {
        move |error| StartError::Listen {
            what: "clients",
            address,
            error,
        }
    };
    // Sockets that share a port would also share it with another process of the same user: so the port is tried alone first.
    let alone = std::net::TcpListener::bind(address).map_err(failed(address))?;
    address = alone.local_addr().map_err(failed(address))?;
    drop(alone);
    (0..config.listen.workers)
        .map(|_| listen(address, config.listen.backlog).map_err(failed(address)))
        .collect()
}

fn worker_settings(config: &Config, node: &Arc<str>, number: usize) -> worker::Settings {
    let (session, limits) = (&config.session, &config.limits);
    let channels = u32::try_from(limits.channels_per_connection).unwrap_or(u32::MAX);
    let slo = config
        .streams
        .iter()
        .map(|stream| stream.freshness_slo)
        .max()
        .unwrap_or(config.stream_defaults.freshness_slo);
    worker::Settings {
        node: node.clone(),
        number,
        heartbeat: session.heartbeat,
        live_for: session.live_for.unwrap_or(session.heartbeat + slo),
        outbox: OutboxMax {
            bytes: session.outbox.bytes,
            frames: session.outbox.frames,
        },
        drain_bytes: session.drain_rate_min.bytes,
        drain_over: session.drain_rate_min.over,
        message_bytes: limits.message_bytes,
        message_timeout: limits.message_timeout,
        messages: limits.messages_per_second.map(|rate| {
            let burst = rate.get().saturating_mul(MESSAGES_BURST_S).max(channels);
            Rate::per_second(rate, burst)
        }),
        subscribes: limits
            .subscribes_per_second
            .map(|rate| Rate::per_second(rate, channels)),
        channels_max: limits.channels_per_connection,
        auth_timeout: config.access.auth_timeout,
    }
}

fn app(
    config: &Config,
    streams: Arc<Streams>,
    clock: Clock,
    workers: Vec<Arc<WorkerCounts>>,
    factory: &Arc<Factory>,
) -> Result<App, StartError> {
    let counts = Arc::<NodeCounts>::default();
    let (limits, makes) = (&config.limits, config.creates_streams);
    let creator = {
        let factory = factory.clone();
        Box::new(move |name: &str| makes.then(|| factory.create(name)).flatten())
    };
    let publisher = Publisher::new(
        streams.clone(),
        clock,
        limits.record_bytes,
        limits.publishes_per_second,
        creator,
        counts.clone(),
    );
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| StartError::System {
        what: "random numbers",
        error: error.into(),
    })?;
    Ok(App {
        streams,
        authority: Arc::new(authority(config)?),
        publisher: Arc::new(publisher),
        clock,
        counts,
        workers,
        origins: config.listen.origins.clone(),
        cookie: config.access.cookie.clone(),
        connections_max: limits.connections,
        channels_max: limits.channels_per_connection,
        http: HttpMax {
            head_bytes: limits.header_bytes,
            head_timeout: limits.head_timeout,
            body_timeout: limits.body_timeout,
        },
        admission: Admission::new(AdmissionMax {
            per_second: limits.connects_per_second,
            per_second_of_address: limits.connects_per_second_per_address,
            of_address: limits.connections_per_address,
        }),
        long_polls: 0.into(),
        draining: false.into(),
        leave: CancellationToken::new(),
        seed: u64::from_le_bytes(seed).into(),
    })
}

/// Whose tokens hold, as configured.
///
/// # Errors
/// [`StartError::Access`].
pub fn authority(config: &Config) -> Result<Authority, StartError> {
    let refused = |error: &dyn std::fmt::Display| StartError::Access(error.to_string());
    let access = &config.access;
    let jwt = access
        .jwt_keys
        .iter()
        .map(|key| JwtKey::hs256(&key.id, &key.secret))
        .collect::<Result<Vec<_>, _>>();
    let api = access.api_keys.iter().map(|key| ApiKey {
        id: key.id.clone(),
        sha256: key.sha256,
        grant: grant(&key.channels, &key.can),
    });
    let anonymous = access
        .anonymous
        .as_ref()
        .map(|anonymous| grant(&anonymous.channels, &anonymous.can));
    Authority::new(
        jwt.map_err(|error| refused(&error))?,
        api.collect(),
        anonymous,
    )
    .map_err(|error| refused(&error))
}

fn grant(channels: &[config::ChannelPattern], can: &[config::Permission]) -> GrantSpec {
    let permission = |can: &config::Permission| match can {
        config::Permission::Subscribe => auth::Permission::Subscribe,
        config::Permission::Publish => auth::Permission::Publish,
    };
    GrantSpec {
        channels: channels
            .iter()
            .map(|pattern| pattern.as_str().to_owned())
            .collect(),
        can: can.iter().map(permission).collect(),
    }
}

/// A short name that nobody else has.
///
/// # Errors
/// When the operating system gives no random numbers.
pub fn short_random() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)?;
    let mut number = u64::from_le_bytes(bytes);
    let mut name = String::new();
    for _ in 0..8 {
        let digit = u32::try_from(number % 36).unwrap_or(0);
        name.push(char::from_digit(digit, 36).unwrap_or('0'));
        number /= 36;
    }
    Ok(name)
}

/// Makes streams: logs, partitions, and the tasks that drive them.
struct Factory {
    engine: Arc<Engine>,
    streams: Arc<Streams>,
    clock: Clock,
    handle: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    defaults: StreamConfig,
    replay_records: usize,
    hold: Duration,
    creating: Mutex<()>,
}

impl Factory {
    /// A stream that nobody configured.
    fn create(&self, name: &str) -> Option<Arc<Stream>> {
        crate::model::check_stream_name(name).ok()?;
        let _one_at_a_time = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = self.streams.get(name) {
            return Some(stream);
        }
        if self.streams.all().len() >= CREATED_MAX {
            return None;
        }
        Some(self.make(&self.defaults.named(name)))
    }

    fn make(&self, config: &StreamConfig) -> Arc<Stream> {
        let SourceConfig::Embedded { retention } = &config.source;
        let settings = LogSettings {
            mode: config.mode,
            retention: Retention {
                bytes: retention.bytes,
                age: retention.age,
            },
            view_max: ViewMax {
                rows: config.view_max.rows,
                bytes: config.view_max.bytes,
            },
        };
        let epoch = || short_random().ok().and_then(|name| Epoch::new(&name).ok());
        // Without random numbers the start has failed long before.
        let fallback = Epoch::new(&format!("w{}", self.clock.wall_ms()));
        let epoch = || epoch().or_else(|| fallback.clone().ok());
        let logs = self
            .engine
            .logs(&config.name, config.partitions, settings, || {
                epoch().unwrap_or_else(|| unreachable!("letters and digits are an epoch"))
            });
        let hindrance = watch::Sender::default();
        let (mut partitions, mut starts) = (Vec::new(), Vec::new());
        for (number, log) in (0u32..).zip(logs) {
            let tail = Tail::new(TailMax {
                bytes: config.tail.bytes,
                age: config.tail.age,
            });
            let (requests, taken) = mpsc::channel(task::REQUESTS_MAX);
            let settings = Settings {
                stream: config.name.clone(),
                partition: number,
                mode: config.mode,
                replay_records: self.replay_records,
                hold: self.hold,
            };
            let decoder = Decoder::new(
                &config.name,
                key_part(&config.channel),
                config.row.as_ref().map(key_part),
                true,
            );
            let partition = Partition::new(settings, decoder, log.clone(), tail.clone());
            let clock = self.clock;
            let source =
                EmbeddedSource::new(log.clone(), hindrance.subscribe(), move || clock.wall_ms());
            partitions.push(PartitionHandle {
                tail,
                requests,
                log,
            });
            starts.push((partition, source, taken));
        }
        let stream = Arc::new(Stream {
            name: config.name.clone(),
            mode: config.mode,
            placement: config.placement,
            freshness_slo: config.freshness_slo,
            expect_every: config.expect_every,
            policy: config.slow_consumer,
            partitions,
            hindrance,
        });
        let proof_every =
            (config.freshness_slo / 5).clamp(Duration::from_millis(20), Duration::from_secs(1));
        for (partition, source, requests) in starts {
            let run = task::run(
                partition,
                source,
                requests,
                self.clock,
                proof_every,
                self.stop.clone(),
            );
            self.tasks.spawn_on(run, &self.handle);
        }
        self.streams.add(stream)
    }
}

fn key_part(selector: &Selector) -> KeyPart {
    match selector {
        Selector::Key(pointer) if pointer.is_empty() => KeyPart::Whole,
        Selector::Key(pointer) => KeyPart::Pointer(pointer.clone()),
        // The configuration refuses these for channels and rows.
        Selector::Header(name) | Selector::Value(name) => KeyPart::Pointer(name.clone()),
    }
}
