//! What can be wrong with a stream of Kafka: each is told for what it is, where operators look, and harms no other stream.

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, SOON, Setup, found},
    http,
    services::kafka::{Kafka, PASSWORD, STRANGER, USER},
    websocket::Client,
    wire::{self, BEARER},
};

const B6: &str = r#"["JFK","B6"]"#;
const DL: &str = r#"["JFK","DL"]"#;

/// A stream's lines, with this source.
fn lines(source: &str) -> String {
    format!("freshness_slo = \"1s\"\nsource = {{ kind = \"kafka\", {source} }}")
}

fn setup() -> Setup {
    Setup::new().open().session("heartbeat = \"300ms\"")
}

fn plain(kafka: &Kafka, topic: &str) -> String {
    format!("brokers = [\"{}\"], topic = \"{topic}\"", kafka.address())
}

/// The first partition of a stream, as operators see it.
async fn partition(node: &Node, stream: &str) -> anyhow::Result<Value> {
    let path = format!("/inspect/partitions?stream={stream}");
    let page = http::get(node.gateway.admin_address(), &path).await?;
    Ok(page.json()?["partitions"][0].clone())
}

/// What the source of a stream fails of.
async fn failing(node: &Node, stream: &str) -> anyhow::Result<String> {
    found("the operators' page says why", async || {
        let failing = partition(node, stream).await?["task"]["failing"].clone();
        assert!(failing.is_null() || failing["for_ms"].is_u64(), "{failing}");
        Ok(failing["message"].as_str().map(str::to_owned))
    })
    .await
}

async fn publish(node: &Node, stream: &str) -> wire::Answer {
    let record = r#"{"channel":"JFK","row":"B6","data":1}"#;
    let json = ("content-type", "application/json");
    let path = format!("/v1/publish/{stream}");
    wire::ask(
        node.gateway.address(),
        "POST",
        &path,
        &[BEARER, json],
        record,
    )
    .await
}

async fn reload(node: &Node) -> anyhow::Result<()> {
    let reloaded = tokio::time::timeout(SOON, node.gateway.reload()).await?;
    reloaded.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(())
}

/// A client that follows this channel and is live.
async fn live(node: &Node, channel: &str) -> anyhow::Result<Client> {
    let mut client = Client::connect(node).await?;
    client.subscribe(channel, json!({})).await?;
    client.heartbeat().await?;
    Ok(client)
}

#[tokio::test]
async fn a_source_that_cant_be_read_says_why_and_harms_no_other_stream() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("forbidden", 1, &[]).await?;
    kafka.create_topic("good", 1, &[]).await?;
    kafka.produce("good", 0, [(B6, Some("1"))], &[]).await?;
    let with = |brokers: &str, secured: &str| {
        let (_, rest) = secured.split_once(", ").unwrap_or_default();
        format!("brokers = [\"{brokers}\"], topic = \"forbidden\", {rest}")
    };
    let right = kafka.secured(USER, PASSWORD, "plain")?;
    let cases = [
        (
            "missing",
            plain(kafka, "no-such-topic"),
            "there is no topic no-such-topic",
        ),
        (
            "denied",
            with(
                &kafka.secure_address(),
                &kafka.secured(STRANGER, PASSWORD, "plain")?,
            ),
            "permit this node Describe and Read",
        ),
        (
            "nowhere",
            "brokers = [\"127.0.0.1:1\"], topic = \"forbidden\"".to_owned(),
            "127.0.0.1:1: Connection refused",
        ),
        (
            "unencrypted",
            format!(
                "brokers = [\"{}\"], topic = \"forbidden\"",
                kafka.secure_address()
            ),
            "does it want TLS",
        ),
        (
            "encrypted",
            with(&kafka.address(), &right),
            &kafka.address(),
        ),
        (
            "password",
            with(
                &kafka.secure_address(),
                &kafka.secured(USER, "another", "scram-sha-512")?,
            ),
            "name or password are wrong",
        ),
    ];
    let mut many = setup().stream("good", &lines(&plain(kafka, "good")));
    for (name, source, _) in &cases {
        many = many.stream(
            name,
            &lines(&format!("{source}, publish_timeout = \"500ms\"")),
        );
    }
    let node = many.start()?;
    let mut client = live(&node, "good/JFK").await?;
    for (name, _, expected) in &cases {
        let message = failing(&node, name).await?;
        assert!(message.contains(expected), "{name}: {message}");
        assert!(
            !message.contains("another"),
            "a password is shown: {message}"
        );
        let refused = publish(&node, name).await;
        refused.problem(503, "unavailable");
        assert!(refused.head.get("retry-after").is_some());
        let task = partition(&node, name).await?["task"].clone();
        let tries = task["failed_fetches"].as_u64().unwrap_or_default();
        assert!(
            (1..1000).contains(&tries),
            "{name} makes a hot loop: {task}"
        );
    }
    client.heartbeat().await?;
    assert_eq!(
        partition(&node, "good").await?["task"]["failing"],
        Value::Null
    );
    // What was missing is made, and is there without a restart.
    kafka.create_topic("no-such-topic", 1, &[]).await?;
    let healed = live(&node, "missing/JFK").await?;
    drop((client, healed));
    node.drain().await
}

#[tokio::test]
async fn records_that_mean_nothing_are_passed_over_counted_and_shown() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka
        .create_topic("poisoned", 1, &[("max.message.bytes", "16000000")])
        .await?;
    let ten = format!("\"{}\"", "x".repeat(10 << 20));
    let records = [
        (B6, Some("{\"gate\":")),
        ("not what channel expects", Some("1")),
        (r#"{"airport":"JFK"}"#, Some("1")),
        (r#"["a b","B6"]"#, Some("1")),
        (DL, Some(ten.as_str())),
        (B6, Some("2")),
    ];
    let settings = [("message.max.bytes", "16000000")];
    kafka.produce("poisoned", 0, records, &settings).await?;
    kafka.produce_keyless("poisoned", 0, "3").await?;
    let node = setup()
        .stream("board", &lines(&plain(kafka, "poisoned")))
        .start()?;
    let client = live(&node, "board/JFK").await?;
    let task = partition(&node, "board").await?["task"].clone();
    assert_eq!(
        (&task["records"], &task["poisoned"]),
        (&json!(7), &json!(5)),
        "{task}"
    );
    assert_eq!(task["last_skipped"]["offset"], 7, "{task}");
    let why = task["last_skipped"]["message"].as_str().unwrap_or_default();
    assert!(why.contains("the key has no name"), "{task}");
    let view = wire::get(node.gateway.address(), "/v1/view/board/JFK")
        .await
        .json();
    assert_eq!(view["rows"]["B6"]["data"], 2);
    let large = view["rows"]["DL"]["data"].as_str().map(str::len);
    assert_eq!(
        large,
        Some(10 << 20),
        "what is in the topic is served, however large"
    );
    let metrics = http::get(node.gateway.admin_address(), "/metrics")
        .await?
        .body;
    let counted = "tidegate_source_poisoned_records_total{stream=\"board\",partition=\"0\"} 5";
    assert!(metrics.contains(counted), "{metrics}");
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn event_times_of_1970_and_2100_are_what_they_are_and_age_nothing() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka
        .create_topic(
            "times",
            1,
            &[("message.timestamp.after.max.ms", "9223372036854775807")],
        )
        .await?;
    let far = 4_102_444_800_000_i64;
    for (key, time) in [(B6, 1), (DL, far)] {
        kafka.produce_at("times", 0, key, "1", time).await?;
    }
    let node = setup()
        .stream("board", &lines(&plain(kafka, "times")))
        .start()?;
    let client = live(&node, "board/JFK").await?;
    let view = wire::get(node.gateway.address(), "/v1/view/board/JFK")
        .await
        .json();
    let times = (&view["rows"]["B6"]["ts"], &view["rows"]["DL"]["ts"]);
    assert_eq!(times, (&json!(1), &json!(far)), "{view}");
    assert_eq!(view["freshness"]["state"], "live", "{view}");
    // Published through the gateway, they are header and value only: brokers see the time of publishing.
    let json = ("content-type", "application/json");
    for (row, ts) in [("early", 0), ("late", far)] {
        let record = format!(r#"{{"channel":"JFK","row":"{row}","ts":{ts},"data":1}}"#);
        let at = node.gateway.address();
        let answer = wire::ask(at, "POST", "/v1/publish/board", &[BEARER, json], record).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let rows = found("both are in the view", async || {
        let view = wire::get(node.gateway.address(), "/v1/view/board/JFK")
            .await
            .json();
        Ok(view["rows"]
            .get("late")
            .is_some()
            .then(|| view["rows"].clone()))
    })
    .await?;
    assert_eq!(
        (&rows["early"]["ts"], &rows["late"]["ts"]),
        (&json!(0), &json!(far))
    );
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn an_event_time_that_is_none_is_counted_and_that_of_the_publisher_holds()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("said-times", 1, &[]).await?;
    let at = kafka_time();
    for (key, value) in [
        (B6, r#"{"at":"2013-07-11T00:00:00+02:00"}"#),
        (DL, r#"{"at":"soon"}"#),
        (r#"["JFK","AA"]"#, "{}"),
    ] {
        kafka.produce_at("said-times", 0, key, value, at).await?;
    }
    let lines = lines(&plain(kafka, "said-times"));
    let node = setup()
        .stream("board", &format!("event_time = \"$value/at\"\n{lines}"))
        .start()?;
    let client = live(&node, "board/JFK").await?;
    let json = ("content-type", "application/json");
    for (row, data) in [("said", r#"{"at":7}"#), ("unsaid", "1")] {
        let record = format!(r#"{{"channel":"JFK","row":"{row}","ts":9,"data":{data}}}"#);
        let (at, head) = (node.gateway.address(), [BEARER, json]);
        let answer = wire::ask(at, "POST", "/v1/publish/board", &head, record).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let rows = found("all are in the view", async || {
        let view = wire::get(node.gateway.address(), "/v1/view/board/JFK")
            .await
            .json();
        Ok(view["rows"]
            .get("unsaid")
            .is_some()
            .then(|| view["rows"].clone()))
    })
    .await?;
    for (row, ts) in [
        ("B6", 1_373_493_600_000),
        ("DL", at),
        ("AA", at),
        ("said", 7),
        ("unsaid", 9),
    ] {
        assert_eq!(rows[row]["ts"], ts, "{row}: {rows}");
    }
    let metrics = http::get(node.gateway.admin_address(), "/metrics")
        .await?
        .body;
    let counted = "tidegate_source_untimed_records_total{stream=\"board\",partition=\"0\"} 3";
    assert!(metrics.contains(counted), "{metrics}");
    drop(client);
    node.drain().await
}

/// A time that a broker takes: now, in milliseconds since 1970.
fn kafka_time() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(0)
}

#[tokio::test]
async fn a_channel_with_records_where_it_does_not_belong_is_not_live() -> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("misplaced", 4, &[]).await?;
    // Of 4 partitions JFK is in 3; LGA, too, is where it belongs.
    kafka
        .produce("misplaced", 3, [(B6, Some("1"))], &[])
        .await?;
    let quick = setup();
    let stream = format!("partitions = 4\n{}", lines(&plain(kafka, "misplaced")));
    let node = quick.stream("board", &stream).start()?;
    let mut client = live(&node, "board/JFK").await?;
    let mut other = live(&node, "board/LGA").await?;
    kafka
        .produce("misplaced", 1, [(B6, Some("2"))], &[])
        .await?;
    let told = client.find(|message| message["op"] == "freshness").await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("misplaced"))
    );
    let view = wire::get(node.gateway.address(), "/v1/view/board/JFK")
        .await
        .json();
    assert_eq!(view["freshness"]["reason"], "misplaced", "{view}");
    assert_eq!(view["rows"]["B6"]["data"], 1);
    for _ in 0..2 {
        other.heartbeat().await?;
    }
    let metrics = http::get(node.gateway.admin_address(), "/metrics")
        .await?
        .body;
    let counted = "tidegate_source_misplaced_records_total{stream=\"board\",partition=\"1\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    drop((client, other));
    node.drain().await
}

#[tokio::test]
async fn a_stream_that_a_reload_takes_away_ends_with_its_publishers_and_its_breaker()
-> anyhow::Result<()> {
    let kafka = Kafka::shared().await?;
    kafka.create_topic("stays", 1, &[]).await?;
    kafka.create_topic("goes", 1, &[]).await?;
    let one = setup().stream("stays", &lines(&plain(kafka, "stays")));
    let two = one.clone().stream("goes", &lines(&plain(kafka, "goes")));
    let written = std::sync::Arc::new(std::sync::Mutex::new(two.clone()));
    let node = Setup::start_reloadable(written.clone())?;
    let mut client = live(&node, "goes/JFK").await?;
    let mut stays = live(&node, "stays/JFK").await?;
    assert_eq!(publish(&node, "goes").await.status(), 200);
    let write = |setup: Setup| *written.lock().expect("a test writes alone") = setup;
    write(one);
    reload(&node).await?;
    let ended = client.find(|message| message["op"] == "outcome").await?;
    assert_eq!(ended["error"]["code"], "unknown_stream", "{ended}");
    publish(&node, "goes").await.problem(404, "unknown_stream");
    stays.heartbeat().await?;
    let breakers = found("the breaker goes with its stream", async || {
        let page = http::get(node.gateway.admin_address(), "/inspect/breakers").await?;
        let breakers = page.json()?["breakers"].clone();
        Ok((breakers.as_array().map(Vec::len) == Some(1)).then_some(breakers))
    })
    .await?;
    assert_eq!(breakers[0]["name"], "kafka:stays");
    // And it comes back as it was.
    write(two);
    reload(&node).await?;
    let back = live(&node, "goes/JFK").await?;
    assert_eq!(publish(&node, "goes").await.status(), 200);
    drop((client, stays, back));
    node.drain().await
}
