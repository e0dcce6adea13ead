//! What an operator sees: streams, partitions, channels, connections, as JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Asked, bad_request, json as respond};
use crate::{
    materializer::{PartitionStatus, StreamStatus},
    model::{Channel, Freshness, Moment, Position, Token},
    partition::tail::least_fresh,
    protocol::{ErrorCode, Refusal, write},
    source::embedded::EmbeddedLog,
    streams::Stream,
    transport::{problem::Problem, thread::Command},
    worker::{ChannelInfo, Pick},
};

/// Entries of a list, where nobody says how many.
const LIMIT: usize = 100;
/// Entries of a list at most.
const LIMIT_MAX: usize = 10_000;

/// What a list is narrowed to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Narrow {
    limit: Option<usize>,
    stream: Option<String>,
    channel: Option<String>,
    sub: Option<String>,
    id: Option<String>,
}

type Narrowed = Result<Query<Narrow>, QueryRejection>;

impl Narrow {
    /// Reads the query; `known` are the parameters of this list.
    fn read(query: Narrowed, known: &[&str]) -> Result<Self, Problem> {
        let Query(narrow) = query.map_err(|error| bad_request(error.body_text()))?;
        let given = [
            ("limit", narrow.limit.is_some()),
            ("stream", narrow.stream.is_some()),
            ("channel", narrow.channel.is_some()),
            ("sub", narrow.sub.is_some()),
            ("id", narrow.id.is_some()),
        ];
        let unknown = given
            .iter()
            .find(|(name, given)| *given && !known.contains(name));
        if let Some((name, _)) = unknown {
            return Err(bad_request(format!("this list is not narrowed by {name}")));
        }
        if narrow
            .limit
            .is_some_and(|limit| !(1..=LIMIT_MAX).contains(&limit))
        {
            return Err(bad_request(format!("limit: 1 to {LIMIT_MAX}")));
        }
        Ok(narrow)
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT)
    }
}

pub(super) async fn streams(State(admin): State<Arc<Admin>>) -> Response {
    let now = admin.app.clock.now();
    let streams: Vec<Value> = admin
        .app
        .streams
        .all()
        .iter()
        .map(|stream| stream_json(stream, now))
        .collect();
    respond(json!({
        "node": &*admin.node,
        "draining": admin.app.is_draining(),
        "streams": streams,
    }))
}

fn stream_json(stream: &Stream, now: Moment) -> Value {
    let hindrance = *stream.hindrance.borrow();
    json!({
        "name": stream.name,
        "mode": stream.mode,
        "placement": stream.placement,
        "partitions": stream.partitions.len(),
        "generations": stream.generations.counts(),
        "freshness_slo_ms": millis(stream.options().freshness_slo),
        "expect_every_ms": stream.options().expect_every.map(millis),
        "slow_consumer": stream.options().policy,
        "poison": stream.poisons.rule(),
        "freshness": freshness_json(freshness_of(stream, now)),
        "hindrance": {"paused": hindrance.paused, "delay_ms": millis(hindrance.delay)},
    })
}

/// A stream is as fresh as the least fresh of its partitions that are read.
pub(super) fn freshness_of(stream: &Stream, now: Moment) -> Option<Freshness> {
    let states = (0..stream.partitions.len()).filter_map(|at| partition_freshness(stream, at, now));
    least_fresh(states)
}

/// How fresh a partition is; none of one that is not read, since nobody needs it.
fn partition_freshness(stream: &Stream, at: usize, now: Moment) -> Option<Freshness> {
    let tail = &stream.partitions[at].tail;
    if tail.resting().is_some() {
        return None;
    }
    let freshness = tail.here().health.freshness(
        stream.options().freshness_slo,
        stream.options().expect_every,
        now,
    );
    Some(freshness)
}

fn freshness_json(freshness: Option<Freshness>) -> Value {
    freshness.map_or(Value::Null, |freshness| {
        json!({
            "state": write::state_word(freshness.state),
            "age_ms": freshness.age_ms,
            "reason": freshness.reason,
        })
    })
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) async fn partitions(
    State(admin): State<Arc<Admin>>,
    query: Narrowed,
) -> Result<Response, Problem> {
    let narrow = Narrow::read(query, &["stream", "limit"])?;
    let streams = match &narrow.stream {
        None => admin.app.streams.all(),
        Some(name) => vec![admin.app.streams.get(name).ok_or_else(|| {
            Refusal::new(
                ErrorCode::UnknownStream,
                format!("there is no stream {name:?}"),
            )
        })?],
    };
    let total: usize = streams.iter().map(|stream| stream.partitions.len()).sum();
    let mut asked = admin.ask_partitions(&streams).await;
    asked.truncate(narrow.limit());
    let now = admin.app.clock.now();
    let partitions: Vec<Value> = asked
        .iter()
        .map(|asked| partition_json(asked, now))
        .collect();
    Ok(respond(json!({"total": total, "partitions": partitions})))
}

fn partition_json(asked: &Asked, now: Moment) -> Value {
    let handle = asked.handle();
    let here = handle.tail.here();
    let (updates, bytes, floor) = handle.tail.extent();
    let freshness = partition_freshness(&asked.stream, asked.number as usize, now);
    json!({
        "stream": asked.stream.name,
        "partition": asked.number,
        "epoch": here.epoch.map(|epoch| epoch.as_str().to_owned()),
        "freshness": freshness_json(freshness),
        "task": asked.inspection,
        "stopped": asked.stream.poisons.stopped(asked.number),
        "queued_requests": handle.requests.max_capacity() - handle.requests.capacity(),
        "tail": {
            "life": here.cursor.resets,
            "floor": floor.number(),
            "applied": here.cursor.offset.number(),
            "updates": updates,
            "bytes": bytes,
        },
        "log": handle.log.embedded().map(|log| log_json(log)),
    })
}

fn log_json(log: &EmbeddedLog) -> Value {
    let (head, start, records, bytes) = log.extent();
    let (rows, row_bytes) = log.rows();
    json!({
        "start": start.number(),
        "head": head.number(),
        "records": records,
        "bytes": bytes,
        "rows": rows,
        "row_bytes": row_bytes,
    })
}

/// One channel, as all workers together see it.
#[derive(Debug, Default)]
struct Merged {
    subscribers: usize,
    workers: usize,
    freshness: Option<Freshness>,
    positions: BTreeMap<u32, Position>,
}

impl Merged {
    fn take(&mut self, info: &ChannelInfo) {
        self.subscribers += info.subscribers;
        self.workers += 1;
        self.freshness = least_fresh(self.freshness.into_iter().chain(info.freshness));
        for position in info.position.positions() {
            let kept = self
                .positions
                .entry(position.partition)
                .or_insert_with(|| position.clone());
            if kept.epoch == position.epoch && position.offset < kept.offset {
                *kept = position.clone();
            }
        }
    }
}

/// What the workers say of each channel, added up: the worst freshness, the earliest positions.
fn merge(infos: impl IntoIterator<Item = ChannelInfo>) -> BTreeMap<Channel, Merged> {
    let mut merged = BTreeMap::<Channel, Merged>::new();
    for info in infos {
        merged.entry(info.channel.clone()).or_default().take(&info);
    }
    merged
}

pub(super) async fn channels(
    State(admin): State<Arc<Admin>>,
    query: Narrowed,
) -> Result<Response, Problem> {
    let narrow = Narrow::read(query, &["channel", "limit"])?;
    let named: Vec<Channel> = match &narrow.channel {
        Some(name) => vec![
            name.parse()
                .map_err(|error| bad_request(format!("channel: {error}")))?,
        ],
        None => admin.some_channels(narrow.limit()).await,
    };
    let named: Arc<[Channel]> = named.into();
    // Every worker is asked for the same names, so that what it says of them can be added up.
    let answers = admin
        .ask_workers(|reply| Command::Named(named.clone(), reply))
        .await;
    let silent = admin.workers.len() - answers.len();
    let channels: Vec<Value> = merge(answers.into_iter().flatten())
        .into_iter()
        .map(|(channel, merged)| {
            json!({
                "channel": channel.to_string(),
                "subscribers": merged.subscribers,
                "workers": merged.workers,
                "freshness": freshness_json(merged.freshness),
                "position": Token::of(merged.positions.into_values()).to_string(),
            })
        })
        .collect();
    Ok(respond(
        json!({"workers_silent": silent, "channels": channels}),
    ))
}

impl Admin {
    /// The names of at most `limit` channels that somebody follows.
    async fn some_channels(&self, limit: usize) -> Vec<Channel> {
        let answers = self
            .ask_workers(|reply| Command::Channels(limit, reply))
            .await;
        let names: BTreeSet<Channel> = answers
            .into_iter()
            .flatten()
            .map(|info| info.channel)
            .collect();
        names.into_iter().take(limit).collect()
    }
}

pub(super) async fn connections(
    State(admin): State<Arc<Admin>>,
    query: Narrowed,
) -> Result<Response, Problem> {
    let narrow = Narrow::read(query, &["sub", "id", "limit"])?;
    let limit = narrow.limit();
    let pick = match (narrow.id, narrow.sub) {
        (Some(id), None) => Pick::Id(id),
        (None, Some(subject)) => Pick::Subject(subject),
        (None, None) => Pick::All,
        (Some(_), Some(_)) => return Err(bad_request("name either ?id= or ?sub=, not both")),
    };
    let answers = admin
        .ask_workers(|reply| Command::Inspect(pick.clone(), limit, reply))
        .await;
    let silent = admin.workers.len() - answers.len();
    let mut connections: Vec<_> = answers.into_iter().flatten().collect();
    connections.truncate(limit);
    Ok(respond(json!({
        "total": admin.app.connections(),
        "workers_silent": silent,
        "connections": connections,
    })))
}

/// The partitions that this process folds into the cache.
pub(super) async fn materializer(State(admin): State<Arc<Admin>>) -> Response {
    let stream = |status: &Arc<StreamStatus>| {
        let share = status.share();
        let partition = |(number, partition): (&u32, &PartitionStatus)| {
            let mut shown = json!(partition);
            shown["partition"] = json!(number);
            shown["stopped"] = json!(status.poisons.stopped(*number));
            shown
        };
        let partitions: Vec<Value> = status.partitions().iter().map(partition).collect();
        json!({"stream": status.stream, "group_generation": share.generation, "given": share.partitions, "poison": status.poisons.rule(), "partitions": partitions})
    };
    let streams: Vec<Value> = admin.materializers.all().iter().map(stream).collect();
    respond(json!({ "streams": streams }))
}

pub(super) async fn breakers(State(admin): State<Arc<Admin>>) -> Response {
    respond(json!({"breakers": admin.upstreams.reports()}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FreshnessState, StaleReason};

    fn info(channel: &str, subscribers: usize, age_ms: Option<u64>, position: &str) -> ChannelInfo {
        let freshness = age_ms.map(|age| Freshness {
            state: if age < 1000 {
                FreshnessState::Live
            } else {
                FreshnessState::Stale
            },
            age_ms: Some(age),
            reason: (age >= 1000).then_some(StaleReason::Lagging),
        });
        ChannelInfo {
            channel: channel.parse().unwrap(),
            subscribers,
            freshness,
            position: position.parse().unwrap(),
        }
    }

    #[test]
    fn workers_are_added_up_with_the_worst_freshness_and_the_earliest_positions() {
        let merged = merge([
            info("s/a", 2, Some(10), "0.e:7,1.e:3"),
            info("s/b", 1, None, "0.e:1"),
            info("s/a", 3, Some(2000), "0.e:5,1.e:9"),
        ]);
        let names: Vec<String> = merged.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["s/a", "s/b"]);
        let a = &merged[&"s/a".parse::<Channel>().unwrap()];
        assert_eq!((a.subscribers, a.workers), (5, 2));
        assert_eq!(a.freshness.unwrap().state, FreshnessState::Stale);
        let token = Token::of(a.positions.values().cloned()).to_string();
        assert_eq!(token, "0.e:5,1.e:3");
        assert_eq!(merged[&"s/b".parse::<Channel>().unwrap()].freshness, None);
    }
}
