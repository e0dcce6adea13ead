//! A topic that gets more partitions while a node reads it: real broker, real sockets.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tidegate::streams::partition_of;
use tidegate_tests::{
    gateway::{Node, Setup, found},
    http,
    services::kafka::Kafka,
    sse::{Block, Events},
    websocket::Client,
};

const BEFORE: u32 = 2;
const AFTER: u32 = 4;

/// A node that reads this topic, as a stream with these lines beside.
fn reads(kafka: &Kafka, topic: &str, more: &str) -> Setup {
    let source = format!(
        "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{topic}\" }}",
        kafka.address()
    );
    let setup = Setup::new()
        .access("anonymous = { channels = [\"*\"], can = [\"subscribe\", \"publish\"] }")
        .session("heartbeat = \"300ms\"");
    setup.stream(
        "board",
        &format!("freshness_slo = \"1s\"\npartitions = {more}\n{source}"),
    )
}

/// The names of channels that are in this partition of so many, and later in that one.
fn names(before: u32, after: u32) -> impl Iterator<Item = String> {
    let is = move |name: &String| {
        partition_of(name, "", BEFORE) == before && partition_of(name, "", AFTER) == after
    };
    (0..).map(|number| format!("C{number}")).filter(is)
}

/// Writes these rows of a channel where it is among so many partitions, as others do it.
async fn write(
    kafka: &Kafka,
    topic: &str,
    channel: &str,
    partitions: u32,
    rows: &[(&str, Option<u32>)],
) -> anyhow::Result<()> {
    let text = |(row, value): &(&str, Option<u32>)| {
        let key = json!([channel, row]).to_string();
        (key, value.map(|value| value.to_string()))
    };
    let rows: Vec<_> = rows.iter().map(text).collect();
    let records = rows
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_deref()));
    let partition = i32::try_from(partition_of(channel, "", partitions))?;
    kafka.produce(topic, partition, records, &[]).await?;
    Ok(())
}

/// A subscriber who keeps what each partition says apart, as the protocol's page has it.
struct Follower {
    client: Client,
    lanes: BTreeMap<u64, BTreeMap<String, Option<Value>>>,
    token: BTreeMap<u64, String>,
    ends: Vec<String>,
}

impl Follower {
    async fn begin(node: &Node, channel: &str, from: Option<&str>) -> anyhow::Result<Self> {
        let mut client = Client::connect(node).await?;
        let options = from.map_or_else(|| json!({}), |from| json!({"from": from}));
        client
            .subscribe(&format!("board/{channel}"), options)
            .await?;
        Ok(Self {
            client,
            lanes: BTreeMap::new(),
            token: BTreeMap::new(),
            ends: Vec::new(),
        })
    }

    fn token(&self) -> String {
        let positions: Vec<&str> = self.token.values().map(String::as_str).collect();
        positions.join(",")
    }

    /// The view: of each row what the newest partition says that has said anything of it.
    fn rows(&self) -> BTreeMap<&str, &Value> {
        let said = self.lanes.values().flatten();
        let rows: BTreeMap<&str, &Option<Value>> =
            said.map(|(row, data)| (row.as_str(), data)).collect();
        let there = rows.into_iter();
        there
            .filter_map(|(row, data)| Some((row, data.as_ref()?)))
            .collect()
    }

    fn data(value: &Value) -> Option<Value> {
        (value["deleted"] != true).then(|| value["data"].clone())
    }

    fn hear(&mut self, message: &Value) -> anyhow::Result<()> {
        let text = message["position"].as_str().unwrap_or_default();
        for position in text.split(',').filter(|position| !position.is_empty()) {
            let (partition, _) = position.split_once('.').context("a position")?;
            let partition: u64 = partition.parse()?;
            match message["op"].as_str() {
                Some("snapshot") => {
                    let rows = message["rows"].as_object().context("rows")?;
                    let rows = rows
                        .iter()
                        .map(|(row, cell)| (row.clone(), Self::data(cell)));
                    self.lanes.insert(partition, rows.collect());
                }
                Some("update") => {
                    let row = message["row"].as_str().context("a row")?.to_owned();
                    let lane = self.lanes.entry(partition).or_default();
                    lane.insert(row, Self::data(message));
                }
                _ => {}
            }
            self.token.insert(partition, position.to_owned());
        }
        if message["op"] == "bye" {
            self.ends.push(message.to_string());
        }
        Ok(())
    }

    /// Listens until it is live with these partitions and these rows.
    async fn comes_to(&mut self, partitions: &[u64], rows: &[(&str, u32)]) -> anyhow::Result<()> {
        let wanted: BTreeMap<&str, Value> = rows
            .iter()
            .map(|(row, value)| (*row, json!(value)))
            .collect();
        loop {
            let message = self.client.next().await.with_context(|| {
                format!(
                    "waits for {wanted:?} in {partitions:?}, has {:?}",
                    self.lanes
                )
            })?;
            self.hear(&message)?;
            ensure!(
                self.ends.is_empty(),
                "the connection ended: {:?}",
                self.ends
            );
            let live = message["op"] == "heartbeat" && message["proved_at_ms"].is_number();
            let named = self.token.keys().copied().eq(partitions.iter().copied());
            let shown = self.rows();
            let same = shown.len() == wanted.len()
                && wanted
                    .iter()
                    .all(|(row, value)| shown.get(row) == Some(&value));
            if live && named && same {
                return Ok(());
            }
        }
    }
}

async fn generations(node: &Node) -> anyhow::Result<Value> {
    let page = http::get(node.gateway.admin_address(), "/inspect/streams").await?;
    Ok(page.json()?["streams"][0]["generations"].clone())
}

/// Gives the topic more partitions, and waits until the node has taken them up.
async fn grow(kafka: &Kafka, topic: &str, node: &Node) -> anyhow::Result<()> {
    kafka.grow_topic(topic, AFTER as usize).await?;
    is_grown(node).await
}

async fn is_grown(node: &Node) -> anyhow::Result<()> {
    found("the node has taken the new partitions up", async || {
        let now = generations(node).await?;
        Ok((now == json!([BEFORE, AFTER])).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_view_that_moves_is_what_was_said_of_its_rows_last() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let topic = "grown-view";
    kafka.create_topic(topic, 2, &[]).await?;
    let (moves, stays) = (names(1, 3).next(), names(0, 0).next());
    let (moves, stays) = (moves.context("a name")?, stays.context("a name")?);
    let rows = [("a", Some(1)), ("b", Some(2)), ("c", Some(3))];
    write(kafka, topic, &moves, BEFORE, &rows).await?;
    write(kafka, topic, &stays, BEFORE, &[("x", Some(1))]).await?;
    let node = reads(kafka, topic, "2\nmode = \"view\"").start()?;
    let mut follows = Follower::begin(&node, &moves, None).await?;
    let mut beside = Follower::begin(&node, &stays, None).await?;
    follows
        .comes_to(&[1], &[("a", 1), ("b", 2), ("c", 3)])
        .await?;
    beside.comes_to(&[0], &[("x", 1)]).await?;
    let (old, old_beside) = (follows.token(), beside.token());

    grow(kafka, topic, &node).await?;
    write(
        kafka,
        topic,
        &moves,
        AFTER,
        &[("a", Some(4)), ("b", None), ("d", Some(5))],
    )
    .await?;
    // Somebody who has not heard of it yet.
    write(
        kafka,
        topic,
        &moves,
        BEFORE,
        &[("a", Some(6)), ("b", Some(6)), ("c", Some(7))],
    )
    .await?;
    write(kafka, topic, &stays, AFTER, &[("y", Some(2))]).await?;
    let view = [("a", 4), ("c", 7), ("d", 5)];
    follows.comes_to(&[1, 3], &view).await?;
    beside.comes_to(&[0], &[("x", 1), ("y", 2)]).await?;

    // With the token of before, with the one of now, and with none.
    for (from, knows) in [
        (Some(old.as_str()), true),
        (Some(&*follows.token()), true),
        (None, false),
    ] {
        let mut again = Follower::begin(&node, &moves, from).await?;
        if knows {
            // What it had is what it went away with.
            again.lanes.clone_from(&follows.lanes);
            again.token.clone_from(&follows.token);
        }
        again.comes_to(&[1, 3], &view).await?;
    }
    let mut again = Follower::begin(&node, &stays, Some(&old_beside)).await?;
    again.lanes.clone_from(&beside.lanes);
    again.comes_to(&[0], &[("x", 1), ("y", 2)]).await?;
    let page = http::get(node.gateway.address(), &format!("/v1/view/board/{moves}")).await?;
    let page = page.json()?;
    let shown = page["rows"].as_object().context("rows")?;
    let shown: Vec<_> = shown
        .iter()
        .map(|(row, cell)| (row.as_str(), &cell["data"]))
        .collect();
    assert_eq!(
        shown,
        [("a", &json!(4)), ("c", &json!(7)), ("d", &json!(5))],
        "{page}"
    );

    // What is published goes where the channel is now.
    let record = json!({"channel": moves, "row": "c", "data": 8}).to_string();
    let json = [("content-type", "application/json")];
    let at = node.gateway.address();
    let published = http::send(at, "POST", "/v1/publish/board", &json, &record).await?;
    let position = published.json()?["position"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(position.starts_with("3."), "{position}");
    follows
        .comes_to(&[1, 3], &[("a", 4), ("c", 8), ("d", 5)])
        .await?;
    let token = follows.token();
    node.drain().await?;

    // A node that begins now, with what the topic had at first, or with both.
    for written in ["2", "[2, 4]"] {
        let node = reads(kafka, topic, &format!("{written}\nmode = \"view\"")).start()?;
        is_grown(&node).await?;
        let mut again = Follower::begin(&node, &moves, Some(&token)).await?;
        again.lanes.clone_from(&follows.lanes);
        again.token.clone_from(&follows.token);
        again
            .comes_to(&[1, 3], &[("a", 4), ("c", 8), ("d", 5)])
            .await?;
        let mut new = Follower::begin(&node, &moves, None).await?;
        new.comes_to(&[1, 3], &[("a", 4), ("c", 8), ("d", 5)])
            .await?;
        drop((again, new));
        node.drain().await?;
    }
    Ok(())
}

#[tokio::test]
async fn events_of_a_channel_that_moves_all_come() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let topic = "grown-events";
    kafka.create_topic(topic, 2, &[]).await?;
    let moves = names(0, 2).next().context("a name")?;
    let node = reads(kafka, topic, "2\nmode = \"events\"").start()?;
    let mut client = Client::connect(&node).await?;
    let channel = format!("board/{moves}");
    client.subscribe(&channel, json!({})).await?;
    client.heartbeat().await?;
    write(kafka, topic, &moves, BEFORE, &[("r", Some(1))]).await?;
    let first = client.expect("update").await?;
    kafka.grow_topic(topic, AFTER as usize).await?;
    // Before the node has seen it, and after.
    found("the topic has its new partitions", async || {
        Ok(write(kafka, topic, &moves, AFTER, &[("r", Some(2))])
            .await
            .ok())
    })
    .await?;
    is_grown(&node).await?;
    write(kafka, topic, &moves, AFTER, &[("r", Some(3))]).await?;
    for number in [2, 3] {
        let update = client.find(|message| message["op"] == "update").await?;
        assert_eq!(update["data"], number, "{update}");
    }
    // Who was away since before it finds them all.
    let mut again = Client::connect(&node).await?;
    again
        .subscribe(&channel, json!({"from": first["position"]}))
        .await?;
    for number in [2, 3] {
        let update = again.find(|message| message["op"] == "update").await?;
        assert_eq!(update["data"], number, "{update}");
    }
    let token = |message: &Value| message["op"] == "heartbeat";
    let whole = again.find(token).await?;
    assert_eq!(
        whole["position"]
            .as_str()
            .unwrap_or_default()
            .split(',')
            .count(),
        2
    );
    drop((client, again));
    node.drain().await
}

#[tokio::test]
async fn an_event_stream_of_one_channel_gets_its_ids_of_both_partitions() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let topic = "grown-sse";
    kafka.create_topic(topic, 2, &[]).await?;
    let moves = names(1, 3).next().context("a name")?;
    write(kafka, topic, &moves, BEFORE, &[("a", Some(1))]).await?;
    let node = reads(kafka, topic, "2\nmode = \"view\"").start()?;
    let (at, query) = (node.gateway.address(), format!("channel=board/{moves}"));
    let mut events = Events::open(at, &query, &[]).await;
    let snapshot = events.event("snapshot").await;
    let id = snapshot.id.context("an id in the frame")?;
    assert!(id.starts_with("1.") && !id.contains(','), "{id}");
    events.event("heartbeat").await;
    grow(kafka, topic, &node).await?;
    let names_both = |block: &Block| {
        let id = block.id.as_deref().unwrap_or_default();
        block.is_id_only() && id.starts_with("1.") && id.contains(",3.")
    };
    let added = events.event("snapshot").await;
    assert_eq!(
        (added.json()["rows"].clone(), &added.id),
        (json!({}), &None)
    );
    events.until(names_both).await;
    write(kafka, topic, &moves, AFTER, &[("a", None), ("b", Some(2))]).await?;
    for (row, deleted) in [("a", true), ("b", false)] {
        let update = events.event("update").await;
        let json = update.json();
        assert_eq!(
            (&json["row"], json["deleted"] == true),
            (&json!(row), deleted)
        );
        assert_eq!(update.id, None, "{json}");
    }
    let id = events.until(names_both).await.id.context("an id")?;
    drop(events);
    let mut again = Events::open(at, &query, &[("last-event-id", &id)]).await;
    let outcome = again.event("outcome").await.json();
    assert_eq!(outcome["outcome"], "resumed", "{outcome}");
    let beat = again.event("heartbeat").await.json();
    assert!(beat["proved_at_ms"].is_number(), "{beat}");
    // Who has been away since before gets what was deleted, too.
    let mut old = Events::open(at, &query, &[("last-event-id", "1.other:1")]).await;
    let added = old
        .until(|block| {
            block.is("snapshot")
                && block.json()["position"]
                    .as_str()
                    .is_some_and(|at| at.starts_with("3."))
        })
        .await
        .json();
    assert_eq!(added["rows"]["a"]["deleted"], true, "{added}");
    assert_eq!(added["rows"]["b"]["data"], 2, "{added}");
    drop((again, old));
    node.drain().await
}

#[tokio::test]
async fn partitions_that_are_no_multiple_are_not_taken_up_and_said() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    let topic = "grown-oddly";
    kafka.create_topic(topic, 2, &[]).await?;
    kafka.grow_topic(topic, 3).await?;
    let node = reads(kafka, topic, "2\nmode = \"view\"").start()?;
    let why = found("it says why it does not read", async || {
        let page = http::get(node.gateway.admin_address(), "/inspect/partitions").await?;
        let page = page.json()?;
        let failing = &page["partitions"][0]["task"]["failing"]["message"];
        Ok(failing.as_str().map(str::to_owned))
    })
    .await?;
    assert!(why.contains("a multiple of that"), "{why}");
    assert_eq!(generations(&node).await?, json!([2]));
    node.drain().await
}
