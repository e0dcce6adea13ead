//! Canaries: a node's own records, by which the way from publishing to a socket is measured.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tidegate_tests::{
    gateway::{Node, SOON, Setup, found},
    http,
    services::kafka::Kafka,
    websocket::Client,
    wire,
};

/// A stream's number of this metric; none where it is not there.
async fn metric(node: &Node, name: &str, stream: &str) -> anyhow::Result<Option<f64>> {
    let page = http::get(node.gateway.admin_address(), "/metrics").await?;
    let begin = format!("tidegate_{name}{{stream=\"{stream}\"}} ");
    let line = page.body.lines().find_map(|line| line.strip_prefix(&begin));
    Ok(line.map(str::parse).transpose()?)
}

/// Waits until so many records came back.
async fn came(node: &Node, stream: &str, least: f64) -> anyhow::Result<f64> {
    found(&format!("{stream} has {least} of them"), async || {
        let count = metric(node, "canary_freshness_seconds_count", stream).await?;
        Ok(count.filter(|count| *count >= least))
    })
    .await
}

/// The channel that a stream's canary follows.
async fn channel(node: &Node, stream: &str) -> anyhow::Result<String> {
    found("somebody follows the canary's channel", async || {
        let page = http::get(node.gateway.admin_address(), "/inspect/channels").await?;
        let channels = page.json()?["channels"].clone();
        let names = channels.as_array().into_iter().flatten();
        let mut names = names.filter_map(|channel| channel["channel"].as_str());
        let begin = format!("{stream}/$canary/");
        Ok(names
            .find(|name| name.starts_with(&begin))
            .map(str::to_owned))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_publishes_itself_comes_back_and_is_measured() -> anyhow::Result<()> {
    let canary = "canary = \"100ms\"";
    let with = |more: &str| {
        Setup::new()
            .open()
            .session("heartbeat = \"300ms\"")
            .stream("rows", &format!("{canary}\n{more}"))
            .stream(
                "spread",
                &format!("{canary}\npartitions = 3\nplacement = \"spread\""),
            )
            .stream("events", &format!("{canary}\nmode = \"events\""))
            .stream("none", "")
    };
    let written = Arc::new(Mutex::new(with("")));
    let node = Setup::start_reloadable(written.clone())?;
    for stream in ["rows", "spread", "events"] {
        came(&node, stream, 3.0).await?;
        let sum = metric(&node, "canary_freshness_seconds_sum", stream).await?;
        assert!(sum.is_some_and(|sum| sum > 0.0), "{stream}: {sum:?}");
        assert!(metric(&node, "canary_age_seconds", stream).await?.is_some());
    }
    let none = metric(&node, "canary_freshness_seconds_count", "none").await?;
    assert_eq!(none, None);
    // Whoever may follow everything does not see it.
    let own = channel(&node, "rows").await?;
    let mut client = Client::connect(&node).await?;
    let refused = client.try_subscribe(&own, json!({})).await?;
    assert_eq!(refused["error"]["code"], "forbidden", "{refused}");
    let view = wire::get(node.gateway.address(), &format!("/v1/view/{own}")).await;
    view.problem(403, "forbidden");
    // While nothing is read nothing comes; then it does again.
    node.hinder("rows", true, std::time::Duration::ZERO)?;
    let before = metric(&node, "canary_age_seconds", "rows").await?;
    found("its age grows", async || {
        let age = metric(&node, "canary_age_seconds", "rows").await?;
        Ok((age > before.map(|age| age + 0.5)).then_some(()))
    })
    .await?;
    node.hinder("rows", false, std::time::Duration::ZERO)?;
    let count = came(&node, "rows", 0.0).await?;
    came(&node, "rows", count + 2.0).await?;
    // A connection that an operator closes is opened anew.
    let admin = node.gateway.admin_address();
    let sessions = http::get(admin, "/inspect/connections").await?.json()?;
    for session in sessions["connections"].as_array().into_iter().flatten() {
        let id = session["id"].as_str().unwrap_or_default();
        let path = format!("/connections/close?id={id}");
        assert_eq!(http::post(admin, &path, &[]).await?.status, 200);
    }
    let count = came(&node, "events", 0.0).await?;
    came(&node, "events", count + 2.0).await?;
    // It does not stand for whoever should write to the stream.
    *written.lock().expect("a test writes alone") = with("expect_every = \"300ms\"");
    let reloaded = tokio::time::timeout(SOON, node.gateway.reload()).await?;
    reloaded.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let view = found("the producer is silent", async || {
        let view = wire::get(node.gateway.address(), "/v1/view/rows/JFK").await;
        let view = view.json();
        Ok((view["freshness"]["reason"] == "producer_silent").then_some(view))
    })
    .await?;
    assert_eq!(view["freshness"]["state"], "stale", "{view}");
    let count = came(&node, "rows", 0.0).await?;
    came(&node, "rows", count + 2.0).await?;
    node.drain().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_takes_its_row_with_it() -> anyhow::Result<()> {
    let engine = Arc::default();
    let setup = Setup::new().open().stream("rows", "canary = \"100ms\"");
    let node = setup.start_on(&engine)?;
    came(&node, "rows", 1.0).await?;
    let app = node.gateway.app().clone();
    let rows = move || {
        let stream = app.streams.get("rows");
        let log = stream.and_then(|stream| stream.partitions[0].log.embedded().cloned());
        log.map(|log| log.rows().0)
    };
    assert_eq!(rows(), Some(1));
    node.drain().await?;
    assert_eq!(rows(), Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_through_kafka_is_measured_too() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("canaries", 4, &[]).await?;
    let stream = format!(
        "canary = \"100ms\"\npartitions = 4\n\
         source = {{ kind = \"kafka\", brokers = [\"{}\"], topic = \"canaries\" }}",
        kafka.address()
    );
    let node = Setup::new().open().stream("board", &stream).start()?;
    came(&node, "board", 3.0).await?;
    let sum = metric(&node, "canary_freshness_seconds_sum", "board").await?;
    assert!(sum.is_some_and(|sum| sum > 0.0), "{sum:?}");
    node.drain().await
}
