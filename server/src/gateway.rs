//! The composition root: builds the rooms, owns every task, starts and drains in order.
//!
//! Does: turns a [`Config`] into a running node, and ends it with the data: admission closes, sessions are told, outboxes
//! flush until the deadline, sockets close, partitions stop. Owns: threads, tasks, tokens of cancellation. Keeps: I7.

mod access;
mod app;
mod cache;
mod canary;
mod copies;
mod engine;
mod factory;
mod heap;
mod kafka;
mod materializers;
mod memory;
mod reload;
mod workers;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use access::{authority, jwt_key};
pub use reload::Loader;

use crate::{
    admin::{self, NotReloaded, Reload, Reloaded},
    clock::Clock,
    config::{self, Config, Role},
    source::{durable::DataError, embedded::Engine},
    streams::Streams,
    telemetry::WorkerCounts,
    transport::{
        App, router,
        thread::{Command, Thread, WorkerHandle, commands},
    },
    upstream::Upstreams,
};
use canary::Canaries;
use copies::Keepsakes;
pub use factory::MakeError;
use factory::{Factory, Ground};
use materializers::Materializers;
use reload::{Reloader, Reloads};

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
    /// The data directory can't be used.
    #[error("embedded.dir: {0}")]
    Data(#[from] DataError),
    /// A stream can't be made.
    #[error(transparent)]
    Stream(#[from] MakeError),
    /// Views can't be copied where they should be.
    #[error("copies.dir: {0}")]
    Copies(String),
    /// The cache's options make no sense.
    #[error("cache: {0}")]
    Cache(String),
    /// The operating system gives no thread, runtime or random number.
    #[error("can't start {what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

impl StartError {
    /// What the operating system did not give.
    fn system(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self::System { what, error }
    }
}

/// The engine of a process that was given none. Who serves nobody leaves the data directory to who does.
fn own_engine(config: &Config, serves: bool) -> Result<Arc<Engine>, StartError> {
    if serves {
        engine::open(&config.embedded)
    } else {
        Ok(Arc::default())
    }
}

/// The workers' listeners, and where they listen.
fn listen(config: &Config) -> Result<(Vec<TcpListener>, Option<SocketAddr>), StartError> {
    let listeners = workers::bind(config)?;
    let first = listeners.first();
    let address = first.map(|listener| local_address(listener, "the listener"));
    Ok((listeners, address.transpose()?))
}

/// Begins what keeps to the budget of memory, and what gives back to the system.
fn keep_memory(
    config: &Config,
    app: &Arc<App>,
    workers: &[WorkerHandle],
    ends: &Ends,
    control: &tokio::runtime::Handle,
) {
    let (stop, limit) = (|| ends.stop.clone(), config.limits.memory);
    let budget = memory::keep(app.clone(), workers.to_vec(), limit, stop());
    ends.tasks.spawn_on(budget, control);
    ends.tasks
        .spawn_on(heap::tend(app.clone(), stop()), control);
}

/// A running node.
pub struct Gateway {
    /// None where it serves nobody.
    address: Option<SocketAddr>,
    admin_address: SocketAddr,
    app: Arc<App>,
    engine: Arc<Engine>,
    owns_engine: bool,
    workers: Vec<WorkerHandle>,
    threads: Vec<JoinHandle<()>>,
    control: Option<Runtime>,
    tasks: TaskTracker,
    closed: CancellationToken,
    stop: CancellationToken,
    drain: config::DrainConfig,
    reloads: Arc<Reloads>,
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
        Self::start_reloadable(config, engine, None)
    }

    /// Starts a node whose configuration can be read again: a reload takes it from there.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_reloadable(
        config: &Config,
        engine: Option<Arc<Engine>>,
        load: Option<Loader>,
    ) -> Result<Self, StartError> {
        let control = control_runtime(config)?;
        let ends = Ends::default();
        let (clock, streams) = (Clock::start(), Arc::<Streams>::default());
        cache::check(&config.cache).map_err(|error| StartError::Cache(error.to_string()))?;
        let upstreams = Upstreams::new(clock);
        let ground = Ground {
            clock,
            handle: control.handle().clone(),
            tasks: ends.tasks.clone(),
            stop: ends.stop.clone(),
            upstreams: upstreams.clone(),
        };
        let owns_engine = engine.is_none();
        let serves = config.roles.contains(&Role::Gateway);
        let engine = engine.map_or_else(|| own_engine(config, serves), Ok)?;
        let materializers = Materializers::new(config, ground.clone());
        let keepsakes = Keepsakes::open(&config.copies)?;
        let factory = Factory::new(config, engine.clone(), streams.clone(), ground, keepsakes);
        let factory = Arc::new(factory);
        if serves {
            for stream in config.streams.iter().chain(&engine::kept(config, &engine)?) {
                factory.make(stream)?;
            }
        }
        for stream in &config.streams {
            materializers.begin(stream);
        }
        let (listeners, address) = if serves {
            listen(config)?
        } else {
            (Vec::new(), None)
        };
        let counts: Vec<Arc<WorkerCounts>> = listeners.iter().map(|_| Arc::default()).collect();
        let app = Arc::new(app::app(config, streams, clock, counts, &factory)?);
        let node: Arc<str> = short_random()
            .map_err(StartError::system("random numbers"))?
            .into();
        let (workers, threads) = start_workers(config, &app, &node, listeners, &ends)?;
        let (admin_address, listener) = bind_admin(config)?;
        let guard = admin::Guard::new(
            admin_address,
            config.admin.token.as_deref(),
            &config.admin.hosts,
        );
        let statuses = materializers.statuses();
        let canaries = Canaries::new(
            app.clone(),
            workers.clone(),
            node.clone(),
            control.handle().clone(),
            (ends.tasks.clone(), ends.stop.clone()),
        );
        for stream in &config.streams {
            canaries.begin(stream);
        }
        let reloader = Reloader {
            load,
            now: config.clone(),
            app: app.clone(),
            factory: serves.then_some(factory),
            materializers,
            canaries,
            workers: workers.clone(),
        };
        let (reloads, run) = reloader.start(ends.stop.clone());
        ends.tasks.spawn_on(run, control.handle());
        let admin = admin::Admin::new(
            app.clone(),
            workers.clone(),
            node,
            guard,
            reloads.clone(),
            upstreams,
            statuses,
        );
        let serve = admin::serve(admin, listener, ends.stop.clone());
        ends.tasks.spawn_on(serve, control.handle());
        keep_memory(config, &app, &workers, &ends, control.handle());
        Ok(Self {
            address,
            admin_address,
            app,
            engine,
            owns_engine,
            workers,
            threads,
            control: Some(control),
            tasks: ends.tasks,
            closed: ends.closed,
            stop: ends.stop,
            drain: config.session.drain.clone(),
            reloads,
        })
    }

    /// Reads the configuration again and does what it says, as far as that can change while the node runs; else nothing.
    ///
    /// # Errors
    /// [`NotReloaded`]: nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded, NotReloaded> {
        self.reloads.clone().reload().await
    }

    /// Where clients connect; an address that nobody can connect to where it has not the role of a gateway.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        self.address.unwrap_or(nowhere)
    }

    /// Whether it has the role of a gateway.
    #[must_use]
    pub const fn serves(&self) -> bool {
        self.address.is_some()
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
        // What was taken for a log elsewhere is still delivered.
        let patience = deadline.max(tokio::time::Instant::now() + Duration::from_secs(2));
        let ended = tokio::time::timeout_at(patience, self.tasks.wait()).await;
        let tasks = if ended.is_ok() { 0 } else { self.tasks.len() };
        self.close_engine(deadline).await;
        if let Some(control) = self.control.take() {
            control.shutdown_background();
        }
        Drained { left, tasks }
    }

    /// Closes the data directory, which a disk that hangs may hold up. Who shares the engine with other nodes closes it after
    /// the last of them.
    async fn close_engine(&self, deadline: tokio::time::Instant) {
        if !self.owns_engine {
            return;
        }
        let engine = self.engine.clone();
        let closing = tokio::task::spawn_blocking(move || engine.close());
        let deadline = deadline.max(tokio::time::Instant::now() + Duration::from_secs(2));
        if tokio::time::timeout_at(deadline, closing).await.is_err() {
            tracing::error!(
                "the data directory's disk does not answer: nothing acknowledged is lost, but the directory was not left in order"
            );
        }
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

/// What ends a node's tasks: the tracker that counts them, and what they are told by.
#[derive(Default)]
struct Ends {
    tasks: TaskTracker,
    /// Ends accepting.
    closed: CancellationToken,
    /// Ends everything.
    stop: CancellationToken,
}

fn control_runtime(config: &Config) -> Result<Runtime, StartError> {
    Builder::new_multi_thread()
        .worker_threads(config.listen.workers)
        .thread_name("tidegate-control")
        .enable_all()
        .build()
        .map_err(StartError::system("the runtime"))
}

/// A thread for each listener.
fn start_workers(
    config: &Config,
    app: &Arc<App>,
    node: &Arc<str>,
    listeners: Vec<TcpListener>,
    ends: &Ends,
) -> Result<(Vec<WorkerHandle>, Vec<JoinHandle<()>>), StartError> {
    let routes = router(app.clone());
    let (mut workers, mut threads) = (Vec::new(), Vec::new());
    for (number, (listener, counts)) in listeners.into_iter().zip(&app.workers).enumerate() {
        let (handle, commands) = commands();
        let thread = Thread {
            app: app.clone(),
            router: routes.clone(),
            listener,
            settings: workers::settings(config, node, number),
            counts: counts.clone(),
            commands,
            closed: ends.closed.clone(),
            stop: ends.stop.clone(),
        };
        workers.push(handle);
        let thread = workers::spawn(number, thread);
        threads.push(thread.map_err(StartError::system("a worker's thread"))?);
    }
    Ok((workers, threads))
}

fn bind_admin(config: &Config) -> Result<(SocketAddr, TcpListener), StartError> {
    let address = config.admin.address;
    let listener = TcpListener::bind(address).map_err(|error| StartError::Listen {
        what: "the admin listener",
        address,
        error,
    })?;
    Ok((local_address(&listener, "the admin listener")?, listener))
}

fn local_address(listener: &TcpListener, what: &'static str) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(StartError::system(what))
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
