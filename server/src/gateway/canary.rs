//! Canaries: of each stream that asks for it, a record of this node's own now and then, by which the way from publishing to a
//! socket is measured.
//!
//! Does: publishes as any publisher does, and follows that channel over a socket that a worker serves as any event stream; so what is
//! measured has gone through the log, the partition, the worker and the kernel, and lacks only the network. Owns: one task, and one
//! end of a socket, for each such stream. Keeps: nobody sees it by a pattern that does not name it; a stream has a few dozen such
//! channels at most, however many nodes come and go, and a node that leaves deletes its row.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as Pair},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixStream,
    runtime::Handle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Claims, GrantSpec, Permission},
    config::StreamConfig,
    model::{CANARIES, Channel, Mode, Moment},
    publish::Flow,
    telemetry::CanaryCounts,
    transport::{
        App,
        thread::{Command, WorkerHandle},
    },
    worker::Opening,
};

/// Channels of a stream that nodes use for this: a node that was killed leaves its row to whoever takes the same one.
const CHANNELS: u32 = 64;
/// How long the row of a node that leaves may take to be deleted.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What begins and ends a node's canaries.
pub(super) struct Canaries {
    app: Arc<App>,
    workers: Vec<WorkerHandle>,
    node: Arc<str>,
    handle: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    ends: Mutex<BTreeMap<String, CancellationToken>>,
}

impl Canaries {
    /// For this node, of which none runs yet.
    pub(super) fn new(
        app: Arc<App>,
        workers: Vec<WorkerHandle>,
        node: Arc<str>,
        handle: Handle,
        (tasks, stop): (TaskTracker, CancellationToken),
    ) -> Self {
        Self {
            app,
            workers,
            node,
            handle,
            tasks,
            stop,
            ends: Mutex::default(),
        }
    }

    /// Measures a stream from now on, where it asks for that and this process serves it.
    pub(super) fn begin(&self, stream: &StreamConfig) {
        let Some(every) = stream.canary else {
            return;
        };
        let served = self.app.streams.get(&stream.name);
        let number = getrandom::u32().unwrap_or(0);
        let name = format!("{CANARIES}{}", number % CHANNELS);
        let channel = Channel::new(&stream.name, &name);
        let (Some(served), Ok(channel), false) = (served, channel, self.workers.is_empty()) else {
            return;
        };
        let Some(claims) = claims(&channel) else {
            return;
        };
        let stop = self.stop.child_token();
        let canary = Canary {
            app: self.app.clone(),
            worker: self.workers[number as usize % self.workers.len()].clone(),
            node: self.node.clone(),
            channel,
            claims,
            every,
            rows: stream.mode == Mode::View,
            counts: served.canary.clone(),
        };
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.insert(stream.name.clone(), stop.clone());
        self.tasks.spawn_on(canary.run(stop), &self.handle);
    }

    /// Measures a stream no longer.
    pub(super) fn end(&self, stream: &str) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stop) = ends.remove(stream) {
            stop.cancel();
        }
    }
}

/// What a canary may do: publish to its channel, and follow it.
fn claims(channel: &Channel) -> Option<Arc<Claims>> {
    let grant = GrantSpec {
        channels: vec![channel.to_string()],
        can: vec![Permission::Subscribe, Permission::Publish],
    };
    let grant = grant.resolve(None).ok()?;
    let key = format!("canary:{}", channel.stream()).into();
    Some(Arc::new(Claims::new(key, None, None, &grant)))
}

/// One stream's.
struct Canary {
    app: Arc<App>,
    worker: WorkerHandle,
    node: Arc<str>,
    channel: Channel,
    claims: Arc<Claims>,
    every: Duration,
    /// Its channel has a row.
    rows: bool,
    counts: Arc<CanaryCounts>,
}

/// The value of its own records.
#[derive(Deserialize)]
struct Own {
    node: String,
    /// When, in microseconds of the node's clock.
    at_us: u64,
}

/// What it is sent, as far as it matters.
#[derive(Deserialize)]
struct Heard {
    op: String,
    data: Option<Own>,
}

/// What happened to it.
enum Next {
    Line(String),
    Published,
    Due,
}

impl Canary {
    async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                ended = self.follow() => if let Err(error) = ended {
                    tracing::debug!(%error, channel = %self.channel, "the canary's socket broke");
                },
            }
            if self.app.is_draining() {
                return;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep(self.every) => {}
            }
        }
        self.leave().await;
    }

    /// Publishes and listens until its socket ends. A node that drains is left in order: the row first, then the socket.
    async fn follow(&self) -> io::Result<()> {
        let (own, served) = Pair::pair()?;
        own.set_nonblocking(true)?;
        let opening = Opening::Sse {
            claims: self.claims.clone(),
            channels: vec![self.channel.clone()],
            token: None,
            max_rate: None,
            policy: None,
            retry_ms: 0,
            chunked: false,
        };
        let adopt = Command::Adopt(OwnedFd::from(served), Box::new(opening));
        if self.worker.commands.send(adopt).await.is_err() {
            return Ok(());
        }
        let mut lines = BufReader::new(UnixStream::from_std(own)?).lines();
        let mut tick = interval(self.every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut follows, mut publishing) = (false, None::<BoxFuture<'_, ()>>);
        loop {
            let may_publish = follows && publishing.is_none();
            let published = async {
                match &mut publishing {
                    Some(publishing) => publishing.await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                biased;
                line = lines.next_line() => match line? {
                    Some(line) => Next::Line(line),
                    None => break,
                },
                () = published => Next::Published,
                _ = tick.tick(), if may_publish => Next::Due,
            };
            match next {
                Next::Line(line) => follows |= self.hear(&line),
                Next::Published => publishing = None,
                Next::Due => publishing = Some(Box::pin(self.measure())),
            }
            if self.app.is_draining() {
                drop(publishing.take());
                self.leave().await;
                break;
            }
        }
        Ok(())
    }

    /// Takes a line of its event stream. Whether its subscription has been answered.
    fn hear(&self, line: &str) -> bool {
        let message = line.strip_prefix("data: ");
        let heard = message.and_then(|json| serde_json::from_str::<Heard>(json).ok());
        let Some(Heard { op, data }) = heard else {
            return false;
        };
        if let Some(own) = data.filter(|own| own.node == *self.node) {
            let at = Moment::from_micros(own.at_us);
            self.counts.came(at, self.app.clock.now());
        }
        // What is published once the subscription was answered comes as an update; sooner, it may come in a snapshot.
        op != "hello"
    }

    async fn measure(&self) {
        let at_us = self.app.clock.now().micros();
        self.publish(json!({"node": &*self.node, "at_us": at_us}))
            .await;
    }

    /// Its row goes with it.
    async fn leave(&self) {
        if self.rows {
            let deleting = self.publish(serde_json::Value::Null);
            drop(timeout(LAST_WORD, deleting).await);
        }
    }

    async fn publish(&self, data: serde_json::Value) {
        let line = json!({"channel": self.channel.name(), "data": data}).to_string();
        let publisher = &self.app.publisher;
        let stream = self.channel.stream();
        let publishing =
            publisher.publish_one(stream, &self.claims, line.as_bytes(), Flow::default());
        if let Err(refusal) = publishing.await {
            tracing::debug!(?refusal, channel = %self.channel, "the canary's record is refused");
        }
    }
}
