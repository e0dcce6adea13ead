//! Records that mean nothing, and the rule of the stream for them: put aside before they are passed over, or not passed at all.
//! In either case the records around them, the other partitions and the other streams are as if they had not been there.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tidegate::model::partition_of;
use tidegate_tests::{
    gateway::{Node, SOON, Setup, found},
    http,
    services::kafka::{Kafka, Read},
    websocket::Client,
    wire,
};

const B6: &str = r#"["JFK","B6"]"#;
const DL: &str = r#"["JFK","DL"]"#;

fn setup() -> Setup {
    Setup::new().open().session("heartbeat = \"300ms\"")
}

/// A stream's lines: of this topic, with these beside.
fn lines(kafka: &Kafka, topic: &str, more: &str) -> String {
    let brokers = kafka.address();
    format!(
        "freshness_slo = \"1s\"\n{more}\n\
         source = {{ kind = \"kafka\", brokers = [\"{brokers}\"], topic = \"{topic}\", publish_timeout = \"1s\" }}"
    )
}

/// A partition, as operators see it.
async fn partition(node: &Node, stream: &str, number: usize) -> anyhow::Result<Value> {
    let path = format!("/inspect/partitions?stream={stream}");
    let page = http::get(node.gateway.admin_address(), &path).await?;
    Ok(page.json()?["partitions"][number].clone())
}

/// Waits until a partition has stopped at this offset. What operators are told.
async fn stopped(node: &Node, number: usize, offset: u64) -> anyhow::Result<String> {
    found(&format!("it stops at {offset}"), async || {
        let stopped = partition(node, "board", number).await?["stopped"].clone();
        let here = stopped["offset"] == offset;
        Ok(here.then(|| stopped["message"].as_str().unwrap_or_default().to_owned()))
    })
    .await
}

async fn view(node: &Node, channel: &str) -> Value {
    let path = format!("/v1/view/{channel}");
    wire::get(node.gateway.address(), &path).await.json()
}

/// Waits until a row of a view says this.
async fn row_is(node: &Node, row: &str, data: Value) -> anyhow::Result<()> {
    found(&format!("{row} is {data}"), async || {
        let view = view(node, "board/JFK").await;
        Ok((view["rows"][row]["data"] == data).then_some(()))
    })
    .await
}

async fn live(node: &Node, channel: &str) -> anyhow::Result<Client> {
    let mut client = Client::connect(node).await?;
    client.subscribe(channel, json!({})).await?;
    client.heartbeat().await?;
    Ok(client)
}

async fn has_metric(node: &Node, line: &str) -> anyhow::Result<()> {
    found(line, async || {
        let page = http::get(node.gateway.admin_address(), "/metrics").await?;
        Ok(page.body.lines().any(|is| is == line).then_some(()))
    })
    .await
}

async fn skip(node: &Node, partition: u32, offset: u64) -> anyhow::Result<http::Answer> {
    let path = format!("/streams/board/skip?partition={partition}&offset={offset}");
    http::post(node.gateway.admin_address(), &path, &[]).await
}

fn header(letter: &Read, name: &str) -> Option<String> {
    let found = letter.headers.iter().find(|(is, _)| is == name)?;
    Some(String::from_utf8_lossy(&found.1).into_owned())
}

#[tokio::test]
async fn what_means_nothing_is_put_aside_before_it_is_passed_over() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("aside", 1, &[]).await?;
    kafka.create_topic("aside-other", 1, &[]).await?;
    let rule = "poison = \"quarantine\"\ndead_letter = \"aside-dead\"";
    let setup = setup()
        .stream("board", &lines(kafka, "aside", rule))
        .stream("other", &lines(kafka, "aside-other", ""));
    let node = setup.start()?;
    let mut client = live(&node, "board/JFK").await?;
    let mut other = live(&node, "other/JFK").await?;
    let records = [
        (B6, Some("1")),
        (B6, Some("{\"gate\":")),
        ("no key of ours", None),
        (DL, Some("2")),
    ];
    kafka.produce("aside", 0, records, &[]).await?;
    // There is no such topic yet: what comes before is served, nothing that comes behind.
    let message = stopped(&node, 0, 2).await?;
    for word in [
        "partition 0 of board",
        "offset 2",
        "Kafka's 1 of aside",
        "aside-dead",
    ] {
        assert!(message.contains(word), "{word}: {message}");
    }
    row_is(&node, "B6", json!(1)).await?;
    let told = client.find(|message| message["op"] == "freshness").await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("source_unavailable"))
    );
    assert!(view(&node, "board/JFK").await["rows"].get("DL").is_none());
    let task = partition(&node, "board", 0).await?["task"].clone();
    assert_eq!(task["applied"], 1, "{task}");
    let failing = task["failing"]["message"].as_str().unwrap_or_default();
    assert!(failing.contains("aside-dead"), "{task}");
    has_metric(
        &node,
        "tidegate_source_stopped{stream=\"board\",partition=\"0\"} 1",
    )
    .await?;
    for _ in 0..2 {
        other.heartbeat().await?;
    }
    let compact = [("cleanup.policy", "compact")];
    kafka.create_topic("aside-dead", 1, &compact).await?;
    row_is(&node, "DL", json!(2)).await?;
    client.heartbeat().await?;
    has_metric(
        &node,
        "tidegate_source_stopped{stream=\"board\",partition=\"0\"} 0",
    )
    .await?;
    let quarantined = "tidegate_source_quarantined_records_total{stream=\"board\",partition=\"0\"}";
    has_metric(&node, &format!("{quarantined} 2")).await?;
    let poisoned = "tidegate_source_poisoned_records_total{stream=\"board\",partition=\"0\"}";
    has_metric(&node, &format!("{poisoned} 2")).await?;
    let letters = kafka.read("aside-dead", 0).await?;
    assert_eq!(letters.len(), 2, "{letters:?}");
    let (value, key) = (&letters[0], &letters[1]);
    assert_eq!(
        (&value.key[..], &key.key[..]),
        (&b"aside/0/1"[..], &b"aside/0/2"[..])
    );
    assert_eq!(value.value.as_deref(), Some(b"{\"gate\":".as_slice()));
    for (name, is) in [
        ("tidegate-key", B6),
        ("tidegate-stream", "board"),
        ("tidegate-topic", "aside"),
        ("tidegate-partition", "0"),
        ("tidegate-offset", "1"),
        ("tidegate-reason", "the value is not JSON"),
        ("tidegate-tombstone", "false"),
        ("from", "tests"),
    ] {
        assert_eq!(
            header(value, name).as_deref(),
            Some(is),
            "{name}: {value:?}"
        );
    }
    assert_eq!(key.value.as_deref(), Some(b"".as_slice()), "a letter stays");
    assert_eq!(header(key, "tidegate-tombstone").as_deref(), Some("true"));
    // Many of them do not take long, and what is between them is all there.
    let texts: Vec<String> = (0..500).map(|number| format!("{number}")).collect();
    let many = texts.iter().map(|number| match number.ends_with('0') {
        true => (B6, Some(number.as_str())),
        false => ("no key of ours", Some(number.as_str())),
    });
    kafka.produce("aside", 0, many, &[]).await?;
    row_is(&node, "B6", json!(490)).await?;
    has_metric(&node, &format!("{quarantined} 452")).await?;
    drop((client, other));
    node.drain().await?;
    // Whoever reads the topic afresh writes letters of his own; by their keys they are the same.
    let again = setup.start()?;
    row_is(&again, "B6", json!(490)).await?;
    let letters = kafka.read("aside-dead", 0).await?;
    assert_eq!(letters.len(), 2 * 452);
    let keys: BTreeSet<_> = letters.iter().map(|letter| letter.key.clone()).collect();
    assert_eq!(keys.len(), 452);
    again.drain().await
}

#[tokio::test]
async fn a_partition_halts_before_what_means_nothing_until_an_operator_says_so()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("halting", 2, &[]).await?;
    let number = partition_of("JFK", "", 2);
    let here = i32::try_from(number)?;
    let with = |rule: &str| {
        let rule = format!("partitions = 2\npoison = \"{rule}\"");
        setup().stream("board", &lines(kafka, "halting", &rule))
    };
    let written = Arc::new(Mutex::new(with("halt")));
    let node = Setup::start_reloadable(written.clone())?;
    let mut client = live(&node, "board/JFK").await?;
    let elsewhere = ["LGA", "EWR", "BOS"].into_iter();
    let elsewhere: Vec<_> = elsewhere
        .filter(|name| partition_of(name, "", 2) != number)
        .collect();
    let mut other = live(&node, &format!("board/{}", elsewhere[0])).await?;
    let records = [
        (B6, Some("1")),
        (B6, Some("{")),
        (B6, Some("2")),
        (DL, Some("[")),
        (DL, Some("3")),
    ];
    kafka.produce("halting", here, records, &[]).await?;
    let at = usize::try_from(number)?;
    let message = stopped(&node, at, 2).await?;
    let hand = format!("/streams/board/skip?partition={number}&offset=2");
    for word in ["the value is not JSON", hand.as_str(), "streams[].poison"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    row_is(&node, "B6", json!(1)).await?;
    let told = client.find(|message| message["op"] == "freshness").await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("paused"))
    );
    for _ in 0..2 {
        other.heartbeat().await?;
    }
    // What it does not stop at can't be passed over.
    assert_eq!(skip(&node, number, 3).await?.status, 409);
    assert_eq!(skip(&node, 1 - number, 2).await?.status, 409);
    let elsewhere = "/streams/nowhere/skip?partition=0&offset=2";
    let admin = node.gateway.admin_address();
    assert_eq!(http::post(admin, elsewhere, &[]).await?.status, 404);
    row_is(&node, "B6", json!(1)).await?;
    let passed = skip(&node, number, 2).await?;
    assert_eq!(passed.status, 200, "{}", passed.body);
    assert_eq!(passed.json()?["node"], true);
    // That one, and no other.
    stopped(&node, at, 4).await?;
    row_is(&node, "B6", json!(2)).await?;
    assert!(view(&node, "board/JFK").await["rows"].get("DL").is_none());
    *written.lock().expect("a test writes alone") = with("skip");
    let reloaded = tokio::time::timeout(SOON, node.gateway.reload()).await?;
    let reloaded = reloaded.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    assert_eq!(reloaded.changed, ["streams[board].poison"]);
    row_is(&node, "DL", json!(3)).await?;
    client.heartbeat().await?;
    assert_eq!(partition(&node, "board", at).await?["stopped"], Value::Null);
    drop((client, other));
    node.drain().await
}

#[tokio::test]
async fn a_partition_that_halts_goes_on_when_its_topic_no_longer_has_the_record()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("deleted", 1, &[]).await?;
    let records = [(B6, Some("{")), (DL, Some("1"))];
    kafka.produce("deleted", 0, records, &[]).await?;
    // Nobody follows it, and it is read all the same.
    let rule = "poison = \"halt\"\nmode = \"events\"\neager = true";
    let node = setup()
        .stream("board", &lines(kafka, "deleted", rule))
        .start()?;
    stopped(&node, 0, 1).await?;
    kafka.delete_records("deleted", 0, 1).await?;
    found("it has read to the end", async || {
        let task = partition(&node, "board", 0).await?["task"].clone();
        Ok((task["applied"] == 2).then_some(()))
    })
    .await?;
    assert_eq!(partition(&node, "board", 0).await?["stopped"], Value::Null);
    node.drain().await
}
