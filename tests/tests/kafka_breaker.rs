//! A cluster of Kafka that hangs, behind its breaker: what it costs, who is told what, and that it heals by itself.

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup, found},
    http,
    services::kafka::Kafka,
    websocket::Client,
    wire::{self, Answer, BEARER},
};

/// A node whose stream `board` is this topic.
fn on(kafka: &Kafka, topic: &str) -> Setup {
    let source = format!(
        "source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"{topic}\", timeout = \"500ms\" }}",
        kafka.address()
    );
    let setup = Setup::new().open();
    setup.stream(
        "board",
        &format!("freshness_slo = \"1s\"\npartitions = 4\n{source}"),
    )
}

/// The node's only breaker, as operators see it.
async fn breaker(node: &Node) -> anyhow::Result<Value> {
    let page = http::get(node.gateway.admin_address(), "/inspect/breakers").await?;
    Ok(page.json()?["breakers"][0].clone())
}

/// Calls that really went out.
fn calls(breaker: &Value) -> u64 {
    let of = |outcome: &str| breaker["calls"][outcome].as_u64().unwrap_or(0);
    let ends = ["answered", "declined", "failed", "timed_out", "abandoned"];
    ends.iter().map(|outcome| of(outcome)).sum()
}

async fn breaker_is(node: &Node, state: &str) -> anyhow::Result<Value> {
    found(&format!("the breaker is {state}"), async || {
        let breaker = breaker(node).await?;
        Ok((breaker["state"] == state).then_some(breaker))
    })
    .await
}

async fn publish(node: &Node, id: u32) -> Answer {
    let record = format!(r#"{{"channel":"JFK","row":"B6","data":{id},"id":"{id}"}}"#);
    let json = ("content-type", "application/json");
    let at = node.gateway.address();
    wire::ask(at, "POST", "/v1/publish/board", &[BEARER, json], record).await
}

/// How old the newest proof of the view is.
async fn age(node: &Node) -> Option<u64> {
    let view = wire::get(node.gateway.address(), "/v1/view/board/JFK").await;
    view.json()["freshness"]["age_ms"].as_u64()
}

#[tokio::test]
async fn a_cluster_that_hangs_costs_its_callers_nothing_and_comes_back_by_itself()
-> anyhow::Result<()> {
    let kafka = Kafka::start().await?;
    kafka.create_topic("hangs", 4, &[]).await?;
    let node = on(&kafka, "hangs").start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/JFK", json!({})).await?;
    client.heartbeat().await?;
    assert_eq!(publish(&node, 0).await.status(), 200);
    let at_rest = breaker_is(&node, "closed").await?;
    assert_eq!(at_rest["name"], "kafka:board");

    kafka.freeze();
    let open = breaker_is(&node, "open").await?;
    let why = open["last_failure"]["reason"].as_str().unwrap_or_default();
    assert!(why.contains("no answer within"), "{open}");
    let stale = client.find(|message| message["op"] == "freshness").await?;
    assert_eq!(stale["reason"], "source_unavailable", "{stale}");
    // Who publishes is told at once that nothing was tried, and when to come back; nobody asks the cluster for him.
    let (mut told, mut ages) = (0, Vec::new());
    for id in 1..=200 {
        let refused = publish(&node, id).await;
        let detail = refused.problem(503, "unavailable");
        told += u32::from(detail.contains("was not tried"));
        assert!(refused.head.get("retry-after").is_some());
        ages.push(age(&node).await);
    }
    assert!(told > 100, "{told} of 200 were told at once");
    let after = breaker(&node).await?;
    assert!(calls(&after) < calls(&open) + 100, "{open} {after}");
    // No proof is younger than one before it.
    assert!(
        ages.iter().all(Option::is_some) && ages.is_sorted(),
        "{ages:?}"
    );
    let metrics = http::get(node.gateway.admin_address(), "/metrics")
        .await?
        .body;
    let counted = "tidegate_upstream_openings_total{upstream=\"kafka:board\"} ";
    assert!(metrics.contains(counted), "{metrics}");

    kafka.thaw();
    breaker_is(&node, "closed").await?;
    client.heartbeat().await?;
    found("publishing works again", async || {
        Ok((publish(&node, 1000).await.status() == 200).then_some(()))
    })
    .await?;
    client.find(|message| message["data"] == 1000).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn one_broker_that_hangs_holds_up_its_own_partitions_only() -> anyhow::Result<()> {
    let kafka = Kafka::start_behind(&[vec![], vec![], vec![]]).await?;
    kafka.create_topic("one-hangs", 4, &[]).await?;
    let node = on(&kafka, "one-hangs").start()?;
    let partitions = async || {
        let page = http::get(node.gateway.admin_address(), "/inspect/partitions").await?;
        anyhow::Ok(
            page.json()?["partitions"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        )
    };
    let live = |partition: &Value| partition["freshness"]["state"] == "live";
    found("all partitions are live", async || {
        Ok(partitions().await?.iter().all(live).then_some(()))
    })
    .await?;
    let frozen = kafka.leader_of("one-hangs", 0).await?;
    kafka.freeze_one(frozen);
    let failures = |partition: &Value| partition["task"]["failed_fetches"].as_u64().unwrap_or(0);
    let seen = found("what it leads has failed often", async || {
        let seen = partitions().await?;
        Ok((failures(&seen[0]) >= 5).then_some(seen))
    })
    .await?;
    assert!(!live(&seen[0]), "{seen:?}");
    let mut of_others = 0;
    for (partition, number) in seen.iter().zip(0..) {
        if kafka.leader_of("one-hangs", number).await? != frozen {
            of_others += 1;
            assert!(live(partition) && failures(partition) == 0, "{partition}");
        }
    }
    assert!(of_others > 0);
    let breaker = breaker(&node).await?;
    assert_eq!(
        (&breaker["state"], &breaker["openings"]),
        (&json!("closed"), &json!(0)),
        "{breaker}"
    );
    kafka.thaw();
    found("all partitions are live again", async || {
        Ok(partitions().await?.iter().all(live).then_some(()))
    })
    .await?;
    node.drain().await
}
