//! Reloading: the configuration as it is now written → the running node, without a restart.
//!
//! Does: reads the configuration again, plans what differs, and applies it: streams that come, go and change, keys, grants,
//! origins, limits. Owns: the configuration that holds. Keeps: all or nothing: whatever may be refused is refused before anything changes;
//! one reload after the other; who was let in by a key that is gone is sent away.

mod plan;

use std::{collections::BTreeSet, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    app::door,
    canary::Canaries,
    factory::{Factory, Growth},
    materializers::Materializers,
    workers::live_for,
};
use crate::{
    admin::{NotReloaded, Reload, Reloaded},
    auth::Authority,
    config::{Config, Problems},
    transport::{
        App,
        thread::{Command, WorkerHandle},
    },
    worker::{Farewell, Pick, Retold},
};
use plan::{Plan, plan};

/// How a configuration is read again.
pub type Loader = Box<dyn Fn() -> std::result::Result<Config, Problems> + Send + Sync>;

/// How long a worker may take to do as it is told; a worker that takes longer does it later.
const DONE: std::time::Duration = std::time::Duration::from_secs(10);

/// Reloads that may wait for the one that is under way; more of them wait to be asked.
const WAITING: usize = 8;

type Result = std::result::Result<Reloaded, NotReloaded>;

/// The next growth, where there may be one.
async fn next(growths: &mut Option<mpsc::Receiver<Growth>>) -> Option<Growth> {
    growths.as_mut()?.recv().await
}

/// The way to the task that reloads.
pub(super) struct Reloads {
    asks: mpsc::Sender<oneshot::Sender<Result>>,
}

impl Reload for Reloads {
    fn reload(self: Arc<Self>) -> BoxFuture<'static, Result> {
        async move {
            let (reply, answer) = oneshot::channel();
            let asked = self.asks.send(reply).await;
            asked.map_err(|_| NotReloaded::Leaving)?;
            answer.await.unwrap_or(Err(NotReloaded::Leaving))
        }
        .boxed()
    }
}

/// What reloads a node: one task, so that one reload comes after the other, and is finished whoever waits for it.
pub(super) struct Reloader {
    /// None: the node was started without anything that could be read again.
    pub(super) load: Option<Loader>,
    /// What holds.
    pub(super) now: Config,
    pub(super) app: Arc<App>,
    /// What makes the streams that this process serves; none where it serves none.
    pub(super) factory: Option<Arc<Factory>>,
    pub(super) materializers: Materializers,
    pub(super) canaries: Canaries,
    pub(super) workers: Vec<WorkerHandle>,
}

impl Reloader {
    /// The way to it, and what it does until it is stopped.
    pub(super) fn start(
        mut self,
        stop: CancellationToken,
    ) -> (Arc<Reloads>, impl Future<Output = ()>) {
        let (asks, mut asked) = mpsc::channel::<oneshot::Sender<Result>>(WAITING);
        self.app
            .counts
            .reload_succeeded_s
            .set(self.app.clock.wall_s());
        let mut growths = self
            .factory
            .as_ref()
            .and_then(|factory| factory.take_growths());
        let run = async move {
            loop {
                let reply = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    Some(growth) = next(&mut growths) => {
                        self.grow(growth).await;
                        continue;
                    }
                    reply = asked.recv() => reply,
                };
                let Some(reply) = reply else {
                    return;
                };
                let result = self.reload().await;
                self.note(&result);
                // Who asked may have gone.
                drop(reply.send(result));
            }
        };
        (Arc::new(Reloads { asks }), run)
    }

    /// Takes up the partitions that a topic has got: they are run, every worker follows the channels that moved there as well, and
    /// only then is the stream read on.
    async fn grow(&self, growth: Growth) {
        let Growth {
            stream: name,
            generations,
            done,
        } = growth;
        let counts = generations.counts();
        let grown = self.factory.as_ref().and_then(|factory| {
            let stream = factory.grow(&name, generations)?;
            Some((factory, stream))
        });
        let Some((factory, stream)) = grown else {
            return;
        };
        let asks = self.workers.iter().map(|worker| {
            let (reply, answer) = oneshot::channel();
            let command = Command::Grow(stream.clone(), reply);
            async move {
                // However long it takes: until then nothing may be called live. A worker that has ended follows nothing.
                if worker.commands.send(command).await.is_ok() {
                    answer.await.unwrap_or_default();
                }
            }
        });
        join_all(asks).await;
        factory.adopt(&name, generations);
        // The stream may have ended meanwhile.
        done.send(()).unwrap_or_default();
        tracing::info!(
            stream = name,
            ?counts,
            "partitions were added, and are taken up: channels that moved are read from where they were and where they are"
        );
        if counts.len() > 2 {
            let before = &counts[..counts.len() - 1];
            tracing::warn!(
                stream = name,
                "streams[].partitions must be {before:?} before this node is started again: else it does not know where channels were in between"
            );
        }
    }

    async fn reload(&mut self) -> Result {
        let load = self.load.as_ref().ok_or(NotReloaded::Unavailable)?;
        let new = load().map_err(|problems| {
            NotReloaded::Mistakes(problems.0.iter().map(ToString::to_string).collect())
        })?;
        let made = self.factory.as_ref().map(|factory| factory.made());
        let plan = plan(&self.now, &new, &made.unwrap_or_default()).map_err(NotReloaded::Fixed)?;
        let authority = super::authority(&new)
            .map_err(|error| NotReloaded::Mistakes(vec![error.to_string()]))?;
        self.prepare(&plan).await?;
        for warning in new.warnings() {
            tracing::warn!("{warning}");
        }
        let done = self.apply(&new, plan, authority).await;
        self.now = new;
        Ok(done)
    }

    /// Opens the logs of new streams: with a data directory that may fail.
    async fn prepare(&self, plan: &Plan) -> std::result::Result<(), NotReloaded> {
        let Some(factory) = self.factory.clone() else {
            return Ok(());
        };
        let added = plan.added.clone();
        let opened = tokio::task::spawn_blocking(move || factory.prepare(&added)).await;
        let failed = |error: &dyn std::fmt::Display| NotReloaded::Mistakes(vec![error.to_string()]);
        opened
            .map_err(|error| failed(&error))?
            .map_err(|error| failed(&error))
    }

    /// Nothing here can be refused.
    async fn apply(&self, new: &Config, plan: Plan, authority: Authority) -> Reloaded {
        for stream in &plan.added {
            // Its logs are open: what could fail was done before.
            if let Some(Err(error)) = self.factory.as_ref().map(|factory| factory.make(stream)) {
                tracing::error!(stream = stream.name, %error, "a stream can't be made");
            }
            self.materializers.begin(stream);
            self.canaries.begin(stream);
        }
        for stream in &plan.altered {
            if let Some(factory) = &self.factory {
                factory.alter(stream).await;
            }
            self.materializers.alter(stream);
            self.canaries.end(&stream.name);
            self.canaries.begin(stream);
        }
        let limits = &new.limits;
        if self.now.limits.publishes_per_second != limits.publishes_per_second {
            self.app.publisher.set_rate(limits.publishes_per_second);
        }
        let retold = Retold {
            auth_timeout: new.access.auth_timeout,
            live_for: live_for(new),
        };
        self.ask(|_: oneshot::Sender<()>| Command::Retell(retold))
            .await;
        let revoked = Arc::new(plan.revoked);
        let door = door(new, authority, Some(&self.app.live.load()));
        self.app.live.replace(door, revoked.clone());
        let mut done = Reloaded {
            changed: plan.changed,
            ..Reloaded::default()
        };
        if !revoked.is_empty() {
            let pick = Pick::Keys(revoked.clone());
            let close = |reply| Command::Close(pick.clone(), Farewell::REVOKED, reply);
            done.closed = self.ask(close).await.iter().sum();
        }
        for name in &plan.removed {
            done.ended += self.remove(name).await;
        }
        let ids: BTreeSet<&str> = revoked.iter().map(|id| &**id).collect();
        done.revoked = ids.into_iter().map(str::to_owned).collect();
        done
    }

    /// Takes a stream away: nobody finds it any more, who follows it is told, its tasks end. Gives how many subscriptions
    /// ended.
    async fn remove(&self, name: &str) -> usize {
        self.materializers.end(name);
        self.canaries.end(name);
        let Some(stream) = self.app.streams.remove(name) else {
            return 0;
        };
        let gone: Arc<str> = name.into();
        let end = |reply| Command::EndStream(gone.clone(), reply);
        let ended = self.ask(end).await.iter().sum();
        if let Some(factory) = &self.factory {
            factory.end(name);
        }
        for partition in &stream.partitions {
            partition.tail.clear();
        }
        ended
    }

    /// Tells every worker the same, and gives what those answer that answer in time.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let asks = self.workers.iter().map(|worker| {
            let (reply, answer) = oneshot::channel();
            let command = command(reply);
            async move {
                // The command itself is never given up: a worker that is busy finds it later.
                worker.commands.send(command).await.ok()?;
                timeout(DONE, answer).await.ok()?.ok()
            }
        });
        join_all(asks).await.into_iter().flatten().collect()
    }

    fn note(&self, result: &Result) {
        let counts = &self.app.counts;
        match result {
            Ok(done) => {
                counts.reloads_applied.add(1);
                counts.reload_succeeded_s.set(self.app.clock.wall_s());
                tracing::info!(
                    changed = ?done.changed, revoked = ?done.revoked, closed = done.closed, ended = done.ended,
                    "configuration reloaded"
                );
            }
            Err(why) => {
                counts.reloads_refused.add(1);
                tracing::error!(%why, "configuration not reloaded: what held before holds");
            }
        }
    }
}
