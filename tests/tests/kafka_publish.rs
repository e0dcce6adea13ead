//! Publishing to a topic of Kafka through a gateway: real broker, real sockets, both ways in.

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{API_KEY, Node, Setup, found},
    services::kafka::{Kafka, PASSWORD, USER},
    websocket::{Client, Connect},
    wire::{self, Answer, BEARER, lines_of},
};

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

/// A node whose stream `board` is this topic.
fn on(kafka: &Kafka, topic: &str, lines: &str, source: &str) -> Setup {
    let source = format!(
        "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{topic}\"{source} }}",
        kafka.address()
    );
    let setup = Setup::new().open().session("heartbeat = \"5s\"");
    let slo = "freshness_slo = \"1s\"";
    setup.stream("board", &format!("{slo}\n{lines}\n{source}"))
}

/// A record of channel JFK.
fn record(row: &str, data: &str, id: &str) -> String {
    format!(r#"{{"channel":"JFK","row":"{row}","ts":1373493600000,"data":{data},"id":"{id}"}}"#)
}

/// One record over HTTP.
async fn one(node: &Node, record: &str) -> Answer {
    let at = node.gateway.address();
    wire::ask(at, "POST", "/v1/publish/board", &[BEARER, JSON], record).await
}

/// Many records over HTTP, and what each line is answered.
async fn many(node: &Node, lines: &[String]) -> Vec<Value> {
    let at = node.gateway.address();
    let body = lines.join("\n");
    let answer = wire::ask(at, "POST", "/v1/publish/board", &[BEARER, NDJSON], body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    lines_of(&answer.body)
}

/// A WebSocket that may publish.
async fn publisher(node: &Node) -> anyhow::Result<Client> {
    Connect::new().bearer(API_KEY).hello(node).await
}

fn publishing(id: u32, record: &str) -> anyhow::Result<Value> {
    let record: Value = serde_json::from_str(record)?;
    Ok(json!({"id": id, "op": "publish", "stream": "board", "record": record}))
}

/// A client that follows channel JFK and is live.
async fn follower(node: &Node) -> anyhow::Result<Client> {
    let mut client = Client::connect(node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    client.heartbeat().await?;
    Ok(client)
}

async fn update(client: &mut Client) -> anyhow::Result<Value> {
    client.find(|message| message["op"] == "update").await
}

/// Publishes until it is taken: whoever was told to come back does so.
async fn insist(node: &Node, record: &str) -> anyhow::Result<Value> {
    found("the record is taken", async || {
        let answer = one(node, record).await;
        Ok((answer.status() == 200).then(|| answer.json()))
    })
    .await
}

#[tokio::test]
async fn what_one_node_publishes_is_seen_on_another_and_read_by_others() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("published", 4, &[]).await?;
    let setup = on(kafka, "published", "partitions = 4", "");
    let (node, other) = (setup.start()?, setup.start()?);
    let mut client = follower(&other).await?;

    let answer = one(&node, &record("B6", r#"{"gate": "A1"}"#, "a")).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let mut socket = publisher(&node).await?;
    let published = publishing(7, &record("B6", "null", "b"))?;
    let told = socket.ask(published).await?;
    let lines = ["1", "2"].map(|number| record("DL", number, number));
    let lines = many(&node, &lines).await;

    let mut positions = vec![
        answer.json()["position"].clone(),
        told["ok"]["position"].clone(),
    ];
    positions.extend(lines.iter().map(|line| line["position"].clone()));
    let mut updates = Vec::new();
    for _ in 0..4 {
        updates.push(update(&mut client).await?);
    }
    let seen: Vec<_> = updates
        .iter()
        .map(|update| update["position"].clone())
        .collect();
    assert_eq!(seen, positions);
    assert_eq!(updates[0]["data"], json!({"gate": "A1"}));
    assert_eq!(updates[1]["deleted"], json!(true));
    assert!(
        updates
            .iter()
            .all(|update| update["ts"] == 1_373_493_600_000_i64),
        "{updates:?}"
    );

    // The channel's partition is 3 of 4, as `streams::partition_of` places it; the key is what the log compacts by.
    let read = kafka.read("published", 3).await?;
    let keys: Vec<_> = read
        .iter()
        .map(|read| String::from_utf8_lossy(&read.key))
        .collect();
    let [b6, dl] = [r#"["JFK","B6"]"#, r#"["JFK","DL"]"#];
    assert_eq!(keys, [b6, b6, dl, dl]);
    assert_eq!(
        read[0].value.as_deref(),
        Some(br#"{"gate": "A1"}"#.as_slice())
    );
    assert_eq!(read[1].value, None);
    let headers = [("tidegate-id", "a"), ("tidegate-ts", "1373493600000")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    assert_eq!(read[0].headers, headers);
    // Its own time is now: a topic's retention goes by that.
    assert!(
        read[0].time_ms > Some(1_700_000_000_000),
        "{:?}",
        read[0].time_ms
    );
    drop((client, socket));
    node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn a_retry_with_the_same_id_is_answered_as_a_duplicate_on_any_node_that_has_read_the_first()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("repeated", 1, &[]).await?;
    let setup = on(kafka, "repeated", "", "");
    let (node, other) = (setup.start()?, setup.start()?);
    let mut client = follower(&other).await?;
    let twice = [
        record("B6", "1", "x"),
        record("B6", "1", "x"),
        record("B6", "2", "y"),
    ];
    let lines = many(&node, &twice).await;
    assert_eq!(lines[1]["duplicate"], json!(true), "{lines:?}");
    assert_eq!(lines[1]["position"], lines[0]["position"]);
    assert_eq!(lines[2]["duplicate"], Value::Null);
    while update(&mut client).await?["data"] != 2 {}
    for node in [&node, &other] {
        let again = one(node, &record("B6", "1", "x")).await.json();
        assert_eq!(again["duplicate"], json!(true), "{again}");
        assert_eq!(again["position"], lines[0]["position"]);
    }
    assert_eq!(kafka.read("repeated", 0).await?.len(), 2);
    drop(client);
    node.drain().await?;
    other.drain().await
}

/// Two copies get into a log where the second comes before the first has been read.
#[tokio::test]
async fn of_events_a_repeat_that_is_in_the_log_is_passed_over() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("repeats", 1, &[]).await?;
    let setup = on(kafka, "repeats", "mode = \"events\"", "");
    let (one_node, other) = (setup.start()?, setup.start()?);
    let mut client = follower(&one_node).await?;
    // The other node does not read, and so knows nothing of the first.
    other.hinder("board", true, std::time::Duration::ZERO)?;
    found("the other node has stopped", async || {
        let mut late = Client::connect(&other).await?;
        late.subscribe("board/JFK", json!({})).await?;
        let paused = late.find(|message| message["op"] == "freshness").await?;
        Ok((paused["reason"] == "paused").then_some(()))
    })
    .await?;
    assert_eq!(one(&one_node, &record("", "1", "x")).await.status(), 200);
    let again = one(&other, &record("", "1", "x")).await.json();
    assert_eq!(again["duplicate"], Value::Null, "{again}");
    assert_eq!(one(&one_node, &record("", "2", "y")).await.status(), 200);
    let mut seen = Vec::new();
    while seen.last() != Some(&json!(2)) {
        seen.push(update(&mut client).await?["data"].clone());
    }
    assert_eq!(seen, [json!(1), json!(2)]);
    assert_eq!(kafka.read("repeats", 0).await?.len(), 3);
    drop(client);
    one_node.drain().await?;
    other.drain().await
}

#[tokio::test]
async fn a_broker_that_is_frozen_or_gone_is_told_with_a_time_and_keeps_a_channels_order()
-> anyhow::Result<()> {
    let mut kafka = Kafka::start().await?;
    kafka.create_topic("frozen", 1, &[]).await?;
    let source = ", timeout = \"500ms\", publish_timeout = \"2s\"";
    let node = on(&kafka, "frozen", "", source).start()?;
    let mut client = follower(&node).await?;
    insist(&node, &record("B6", "0", "before")).await?;

    kafka.freeze();
    let mut socket = publisher(&node).await?;
    // Two at once, of which the second waits behind the first; NDJSON and single ones beside them.
    socket
        .send(&publishing(1, &record("WS", "1", "w1"))?)
        .await?;
    socket
        .send(&publishing(2, &record("WS", "2", "w2"))?)
        .await?;
    let lines = [record("B6", "1", "l1"), record("B6", "2", "l2")];
    let (single, lines) = tokio::join!(
        async { one(&node, &record("DL", "1", "s1")).await },
        async { many(&node, &lines).await }
    );
    assert_eq!(single.status(), 503, "{}", single.text());
    assert_eq!(single.head.get("retry-after"), Some("1"));
    assert_eq!(single.json()["code"], "unavailable");
    assert_eq!(lines[0]["error"]["code"], "unavailable", "{lines:?}");
    assert!(
        lines[0]["error"]["retry_after_ms"].as_u64() > Some(0),
        "{lines:?}"
    );
    let behind = |code: &Value| *code == "after_failed" || *code == "unavailable";
    assert!(behind(&lines[1]["error"]["code"]), "{lines:?}");
    for id in [1, 2] {
        let told = socket.find(|message| message["id"] == id).await?;
        assert!(behind(&told["error"]["code"]), "{told}");
    }

    kafka.thaw();
    // Whoever waited for all answers begins anew: in order, and under the same ids.
    for (row, data, id) in [("WS", "1", "w1"), ("WS", "2", "w2"), ("DL", "1", "s1")] {
        insist(&node, &record(row, data, id)).await?;
    }
    let told = found("the socket publishes again", async || {
        let told = socket.ask(publishing(9, &record("WS", "3", "w3"))?).await?;
        Ok(told.get("ok").cloned())
    })
    .await?;
    assert!(told["position"].is_string(), "{told}");
    while update(&mut client).await?["data"] != 3 {}
    let rows = wire::get(node.gateway.address(), "/v1/view/board/JFK")
        .await
        .json()["rows"]
        .clone();
    assert_eq!(
        (&rows["WS"]["data"], &rows["DL"]["data"]),
        (&json!(3), &json!(1))
    );

    kafka.kill()?;
    let gone = one(&node, &record("DL", "2", "s2")).await;
    assert_eq!(
        (gone.status(), &gone.json()["code"]),
        (503, &json!("unavailable"))
    );
    kafka.restart().await?;
    insist(&node, &record("DL", "2", "s2")).await?;
    drop((client, socket));
    node.drain().await
}

#[tokio::test]
async fn a_record_that_the_topic_does_not_take_is_refused_and_those_beside_it_count()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("small", 1, &[]).await?;
    let larger = "record_bytes = \"16MiB\"\nmessage_bytes = \"16MiB\"";
    let setup = on(kafka, "small", "view_max = { bytes = \"16MiB\" }", "");
    let setup = setup
        .limits(larger)
        .session("outbox = { bytes = \"16MiB\" }");
    let node = setup.start()?;
    let ten = format!("\"{}\"", "x".repeat(10 << 20));
    let refused = one(&node, &record("B6", &ten, "ten")).await;
    let refused = refused.problem(413, "record_too_large");
    assert!(
        refused.contains("larger than the stream's log takes"),
        "{refused}"
    );
    let lines = [
        record("B6", "1", "a"),
        record("B6", &ten, "b"),
        record("B6", "2", "c"),
    ];
    let lines = many(&node, &lines).await;
    assert!(
        lines[0]["position"].is_string() && lines[2]["position"].is_string(),
        "{lines:?}"
    );
    assert_eq!(lines[1]["error"]["code"], "record_too_large");
    assert_eq!(kafka.read("small", 0).await?.len(), 2);
    // What the gateway itself does not take never comes there.
    let strict = on(kafka, "small", "", "").start()?;
    let refused = one(&strict, &record("B6", &ten, "ten")).await;
    let refused = refused.problem(413, "record_too_large");
    assert!(refused.contains("limits.record_bytes"), "{refused}");
    node.drain().await?;
    strict.drain().await
}

#[tokio::test]
async fn what_was_accepted_before_a_drain_is_delivered_by_it() -> anyhow::Result<()> {
    let kafka = Kafka::start().await?;
    kafka.create_topic("drained", 1, &[]).await?;
    let setup = on(&kafka, "drained", "", ", publish_timeout = \"30s\"");
    let node = setup.start()?;
    let mut socket = publisher(&node).await?;
    insist(&node, &record("B6", "0", "first")).await?;
    kafka.freeze();
    for number in 1..=20 {
        let record = record("B6", &number.to_string(), &format!("id {number}"));
        socket.send(&publishing(number, &record)?).await?;
    }
    // Answered behind them: so they have been read.
    socket.send(&json!({"op": "ping"})).await?;
    socket.find(|message| message["op"] == "pong").await?;
    drop(socket);
    let (drained, ()) = tokio::join!(node.drain(), async { kafka.thaw() });
    drained?;
    let values = kafka.read("drained", 0).await?.into_iter();
    let values: Vec<_> = values.map(|read| read.value.unwrap_or_default()).collect();
    let expected: Vec<_> = (0..=20)
        .map(|number| number.to_string().into_bytes())
        .collect();
    assert_eq!(values, expected);
    Ok(())
}

#[tokio::test]
async fn what_others_place_in_a_way_of_their_own_is_not_published_here() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("spread", 2, &[]).await?;
    let spread = on(
        kafka,
        "spread",
        "partitions = 2\nplacement = \"spread\"",
        "",
    )
    .start()?;
    let refused = one(&spread, &record("B6", "1", "a")).await;
    let refused = refused.problem(400, "bad_request");
    assert!(refused.contains("spread its rows"), "{refused}");
    kafka.create_topic("named", 1, &[]).await?;
    let named = on(kafka, "named", "channel = \"$key/airport\"", "").start()?;
    let refused = one(&named, &record("B6", "1", "a")).await;
    let refused = refused.problem(400, "bad_request");
    assert!(refused.contains("write to its log itself"), "{refused}");
    // And nothing goes where nobody would look for it: a topic that can't have grown from the partitions that were configured.
    kafka.create_topic("wide", 3, &[]).await?;
    let timeout = ", publish_timeout = \"500ms\"";
    let wide = on(kafka, "wide", "partitions = 2", timeout).start()?;
    let refused = one(&wide, &record("B6", "1", "a")).await;
    refused.problem(503, "unavailable");
    for partition in 0..3 {
        assert!(kafka.read("wide", partition).await?.is_empty());
    }
    spread.drain().await?;
    named.drain().await?;
    wide.drain().await
}

#[tokio::test]
async fn brokers_that_want_tls_and_a_password_are_read_and_published_to() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    for sasl in ["plain", "scram-sha-256", "scram-sha-512"] {
        let topic = format!("secured-{sasl}");
        kafka.create_topic(&topic, 1, &[]).await?;
        let secured = kafka.secured(USER, PASSWORD, sasl)?;
        let source = format!("source = {{ kind = \"kafka\", topic = \"{topic}\", {secured} }}");
        let setup = Setup::new().open();
        let node = setup.stream("board", &format!("freshness_slo = \"1s\"\n{source}"));
        let node = node.start()?;
        let mut client = follower(&node).await?;
        let answer = one(&node, &record("B6", "1", "a")).await;
        assert_eq!(answer.status(), 200, "{sasl}: {}", answer.text());
        assert_eq!(update(&mut client).await?["data"], 1);
        assert_eq!(kafka.read(&topic, 0).await?.len(), 1);
        drop(client);
        node.drain().await?;
    }
    Ok(())
}
