//! The first step of shedding: views that nobody follows, and nobody asked for lately, go.
//!
//! A partition knows which views were not asked for, the workers know who is followed. Both are asked only now, so that
//! following a channel costs nothing for it. Whoever joins later makes its view resident again, from the log's rows.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    model::{Channel, Moment},
    partition::task::Request,
    streams::PartitionHandle,
    transport::{
        App,
        thread::{Command, WorkerHandle},
    },
};

/// Between two evictions: who has just been asked for is not looked at before.
const PAUSE: Duration = Duration::from_secs(5);
/// Who does not answer within this time is passed over.
const PATIENCE: Duration = Duration::from_millis(250);

/// When it was done last.
#[derive(Debug, Default)]
pub(super) struct Eviction {
    last: Option<Moment>,
}

impl Eviction {
    /// Whether it may be done again.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.last.is_none_or(|last| now.since(last) >= PAUSE)
    }

    /// Has partitions let go of views that nobody follows, and of what readers of the others share.
    pub(super) async fn evict(&mut self, app: &App, workers: &[WorkerHandle]) {
        self.last = Some(app.clock.now());
        let streams = app.streams.all();
        let partitions: Vec<_> = streams
            .iter()
            .flat_map(|stream| &stream.partitions)
            .filter(|partition| partition.held.views.bytes() > 0)
            .collect();
        let unasked = join_all(partitions.iter().map(|partition| unasked(partition))).await;
        let names: Arc<[Channel]> = unasked.iter().flatten().cloned().collect();
        let Some(followed) = followed(workers, &names).await else {
            return;
        };
        let evictions = partitions.iter().zip(unasked).map(|(partition, channels)| {
            let alone = |channel: &Channel| !followed.contains(channel);
            evict_of(partition, channels.into_iter().filter(alone).collect())
        });
        let evicted: usize = join_all(evictions).await.into_iter().sum();
        app.counts.memory.evicted.add(evicted as u64);
        tracing::info!(evicted, "memory is short: views that nobody follows went");
    }
}

async fn unasked(partition: &PartitionHandle) -> Vec<Channel> {
    let (reply, answer) = oneshot::channel();
    // A partition with a full queue has more to do than this.
    drop(partition.requests.try_send(Request::Unasked(reply)));
    let answer = timeout(PATIENCE, answer).await;
    answer.ok().and_then(Result::ok).unwrap_or_default()
}

/// Those of these channels that somebody follows; none where a worker does not say.
async fn followed(workers: &[WorkerHandle], names: &Arc<[Channel]>) -> Option<HashSet<Channel>> {
    let ask = async |worker: &WorkerHandle| {
        let (reply, answer) = oneshot::channel();
        let command = Command::Named(names.clone(), reply);
        worker.commands.try_send(command).ok()?;
        timeout(PATIENCE, answer).await.ok()?.ok()
    };
    let answers = join_all(workers.iter().map(ask)).await;
    let mut followed = HashSet::new();
    for answer in answers {
        followed.extend(answer?.into_iter().map(|info| info.channel));
    }
    Some(followed)
}

/// How many were asked to go.
async fn evict_of(partition: &PartitionHandle, channels: Vec<Channel>) -> usize {
    let (reply, done) = oneshot::channel();
    let request = Request::Evict(channels, reply);
    if partition.requests.try_send(request).is_err() {
        return 0;
    }
    let evicted = timeout(PATIENCE, done).await;
    evicted.ok().and_then(Result::ok).unwrap_or_default()
}
