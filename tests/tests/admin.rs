//! The admin listener of a whole gateway: what it shows moves with what happens, and what it is told is done.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tidegate::{
    auth::{GrantSpec, JwtKey, Permission, TokenSpec, issue},
    config::Config,
    gateway::Gateway,
    telemetry,
};
use tidegate_tests::{
    gateway::found,
    http::{Answer, get, post, send},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

const SECRET: &str = "a secret of the tests, long enough for HS256";
const ADMIN_TOKEN: &str = "an-admin-token-of-the-tests";
/// How long anything may take that should happen soon.
const SOON: Duration = Duration::from_secs(15);

struct Node {
    gateway: Gateway,
    admin: SocketAddr,
    public: SocketAddr,
}

fn start(admin: &str) -> Result<Node> {
    let text = format!(
        r#"
        [listen]
        address = "127.0.0.1:0"
        workers = 2
        [admin]
        address = "127.0.0.1:0"
        {admin}
        [access]
        jwt_keys = [{{ id = "k", algorithm = "HS256", secret = "{SECRET}" }}]
        [session]
        heartbeat = "1s"
        drain = {{ window = "0s", deadline = "5s" }}
        [[streams]]
        name = "board"
        partitions = 2
        freshness_slo = "500ms"
        "#
    );
    let config = Config::from_toml(&text, std::iter::empty())?;
    let gateway = Gateway::start(&config, None)?;
    Ok(Node {
        admin: gateway.admin_address(),
        public: gateway.address(),
        gateway,
    })
}

fn token(subject: &str) -> Result<String> {
    let key = JwtKey::hs256("k", SECRET.as_bytes())?;
    let grant = GrantSpec {
        channels: vec!["board/*".to_owned()],
        can: vec![Permission::Subscribe, Permission::Publish],
    };
    let spec = TokenSpec {
        subject: Some(subject.to_owned()),
        grant,
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(issue(&key, &spec, 3600, now.as_secs())?)
}

impl Node {
    async fn inspect(&self, what: &str) -> Result<Value> {
        let answer = get(self.admin, &format!("/inspect/{what}")).await?;
        ensure!(answer.status == 200, "{what}: {answer:?}");
        ensure!(answer.header("content-type") == Some("application/json"));
        answer.json()
    }

    async fn metrics(&self) -> Result<Scrape> {
        let answer = get(self.admin, "/metrics").await?;
        ensure!(answer.status == 200);
        let kind = answer.header("content-type").unwrap_or_default();
        ensure!(kind.starts_with("application/openmetrics-text"), "{kind}");
        Ok(Scrape(answer.body))
    }

    async fn publish(&self, row: &str, data: Value) -> Result<Answer> {
        let bearer = format!("Bearer {}", token("publisher")?);
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        let record = json!({"channel": "JFK", "row": row, "data": data}).to_string();
        send(self.public, "POST", "/v1/publish/board", &headers, &record).await
    }

    async fn subscriber(&self, subject: &str) -> Result<Subscriber> {
        let mut request = format!("ws://{}/v1/ws", self.public).into_client_request()?;
        let bearer = format!("Bearer {}", token(subject)?);
        request
            .headers_mut()
            .insert("authorization", bearer.parse()?);
        let (socket, _) = timeout(SOON, connect_async(request)).await??;
        let mut subscriber = Subscriber(socket);
        let hello = subscriber.until(|json| json["op"] == "hello").await?;
        ensure!(hello["session"].is_string(), "{hello}");
        let subscribe = json!({"id": 1, "op": "subscribe", "channel": "board/JFK"});
        let message = Message::text(subscribe.to_string());
        subscriber.0.send(message).await?;
        subscriber.until(|json| json["op"] == "snapshot").await?;
        Ok(subscriber)
    }

    /// Looks until it is as wished.
    async fn wait<T>(
        &self,
        what: &str,
        look: impl AsyncFn(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        found(what, async || look(self).await).await
    }

    async fn wait_for_freshness(&self, state: &str) -> Result<Value> {
        self.wait(state, async |node: &Self| {
            let streams = node.inspect("streams").await?;
            let stream = streams["streams"][0].clone();
            Ok((stream["freshness"]["state"] == state).then_some(stream))
        })
        .await
    }
}

struct Scrape(String);

impl Scrape {
    /// The sum of all samples of a name whose labels contain this text.
    fn sum(&self, name: &str, labels: &str) -> f64 {
        self.0
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(key, _)| key.split('{').next() == Some(name) && key.contains(labels))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }

    /// Name and kind of each metric that is there.
    fn families(&self) -> Vec<(String, String)> {
        self.0
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect()
    }
}

struct Subscriber(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Subscriber {
    /// Reads until a message is as wished.
    async fn until(&mut self, wished: impl Fn(&Value) -> bool) -> Result<Value> {
        let reads = async {
            while let Some(message) = self.0.next().await {
                let Message::Text(text) = message? else {
                    continue;
                };
                let json: Value = serde_json::from_str(&text)?;
                if wished(&json) {
                    return Ok(json);
                }
            }
            anyhow::bail!("closed")
        };
        timeout(SOON, reads).await?
    }

    /// Reads until the close frame; gives its code.
    async fn until_closed(&mut self) -> Result<u16> {
        let reads = async {
            while let Some(message) = self.0.next().await {
                if let Message::Close(frame) = message? {
                    return Ok(frame.context("no code")?.code.into());
                }
            }
            anyhow::bail!("no close frame")
        };
        timeout(SOON, reads).await?
    }
}

fn is_problem(answer: &Answer, status: u16, code: &str) -> Result<()> {
    ensure!(answer.status == status, "{answer:?}");
    ensure!(answer.header("content-type") == Some("application/problem+json"));
    let problem = answer.json()?;
    ensure!(problem["code"] == code, "{problem}");
    ensure!(problem["detail"].is_string(), "{problem}");
    Ok(())
}

#[tokio::test]
async fn every_route_answers() -> Result<()> {
    let node = start("")?;
    for (path, body) in [("/live", "live\n"), ("/ready", "ready\n")] {
        let answer = get(node.admin, path).await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, body));
    }
    let stream = node.wait_for_freshness("live").await?;
    assert_eq!(
        (&stream["name"], &stream["mode"], &stream["partitions"]),
        (&json!("board"), &json!("view"), &json!(2))
    );
    assert_eq!(stream["hindrance"], json!({"paused": false, "delay_ms": 0}));
    node.publish("a", json!(1)).await?;
    let partitions = node
        .wait("the record in its partition", async |node: &Node| {
            let partitions = node.inspect("partitions?stream=board").await?;
            let list = partitions["partitions"].as_array().context("no list")?;
            let read: u64 = list
                .iter()
                .filter_map(|partition| partition["task"]["records"].as_u64())
                .sum();
            Ok((read == 1).then(|| partitions.clone()))
        })
        .await?;
    assert_eq!(partitions["total"], 2);
    let list = partitions["partitions"].as_array().context("no list")?;
    let sum = |part: &str, field: &str| -> u64 {
        list.iter()
            .filter_map(|partition| partition[part][field].as_u64())
            .sum()
    };
    assert_eq!((sum("tail", "updates"), sum("log", "records")), (1, 1));
    assert_eq!(node.inspect("channels").await?["channels"], json!([]));
    let connections = node.inspect("connections").await?;
    assert_eq!(
        (&connections["total"], &connections["connections"]),
        (&json!(0), &json!([]))
    );
    let breakers = node.inspect("breakers").await?;
    assert_eq!(breakers, json!({"breakers": []}));
    let reload = post(node.admin, "/reload", &[]).await?;
    is_problem(&reload, 501, "not_implemented")
}

#[tokio::test]
async fn the_page_names_exactly_the_routes_that_are_there() -> Result<()> {
    let page = include_str!("../../docs/reference/admin.md");
    let mut named: Vec<(&str, String)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .filter_map(|(request, _)| request.split_once(' '))
        .filter_map(|(method, target)| Some((method, target.split('?').next()?.to_owned())))
        .collect();
    named.push(("GET", "/metrics".to_owned()));
    named.dedup();
    assert_eq!(named.len(), 16, "{named:?}");
    let node = start("")?;
    // Draining last: whoever drains goes on answering.
    named.sort_by_key(|(_, path)| path == "/drain");
    for (method, path) in named {
        let path = path.replace("{stream}", "board");
        let answer = send(node.admin, method, &path, &[], "").await?;
        assert!(
            ![404, 405].contains(&answer.status),
            "{method} {path}: {answer:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn mistakes_are_told() -> Result<()> {
    let node = start("")?;
    for (path, code, status) in [
        ("/nowhere", "not_found", 404),
        ("/inspect/connections?limit=0", "bad_request", 400),
        ("/inspect/connections?limit=10001", "bad_request", 400),
        ("/inspect/connections?limit=x", "bad_request", 400),
        ("/inspect/connections?id=a&sub=b", "bad_request", 400),
        ("/inspect/connections?channel=board/JFK", "bad_request", 400),
        ("/inspect/channels?channel=board", "bad_request", 400),
        ("/inspect/channels?word=1", "bad_request", 400),
        ("/inspect/partitions?stream=none", "unknown_stream", 404),
    ] {
        let answer = get(node.admin, path).await?;
        is_problem(&answer, status, code).context(path)?;
    }
    for (path, code, status) in [
        ("/streams/none/pause", "unknown_stream", 404),
        ("/streams/board/delay", "bad_request", 400),
        ("/streams/board/delay?ms=3600001", "bad_request", 400),
        ("/streams/board/delay?ms=-1", "bad_request", 400),
        ("/connections/close", "bad_request", 400),
        ("/connections/close?id=a&sub=b", "bad_request", 400),
        (
            "/connections/close?id=a&reconnect_after_ms=3600001",
            "bad_request",
            400,
        ),
    ] {
        let answer = post(node.admin, path, &[]).await?;
        is_problem(&answer, status, code).context(path)?;
    }
    assert_eq!(get(node.admin, "/drain").await?.status, 405);
    assert_eq!(get(node.admin, "/ready").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn every_metric_of_the_list_is_there_and_no_other() -> Result<()> {
    let node = start("")?;
    node.wait_for_freshness("live").await?;
    let found = node.metrics().await?.families();
    let listed: Vec<(String, String)> = telemetry::ALL
        .iter()
        // This node's engine is in its process: there is nobody whom it calls.
        .filter(|metric| !metric.labels.contains(&"upstream"))
        // Nor does it fold anything into a cache.
        .filter(|metric| !metric.name.starts_with("materializer_"))
        // And no stream of it has a canary.
        .filter(|metric| !metric.name.starts_with("canary_"))
        .map(|metric| {
            let name = format!("{}{}", telemetry::PREFIX, metric.name);
            (name, metric.kind.word().to_owned())
        })
        .collect();
    assert_eq!(found, listed);
    Ok(())
}

#[tokio::test]
async fn counters_move_with_what_happens() -> Result<()> {
    let node = start("")?;
    let before = node.metrics().await?;
    let mut ann = node.subscriber("ann").await?;
    let mut ben = node.subscriber("ben").await?;
    assert_eq!(node.publish("a", json!({"n": 1})).await?.status, 200);
    for subscriber in [&mut ann, &mut ben] {
        subscriber.until(|json| json["op"] == "update").await?;
    }
    assert_eq!(node.publish("a", json!({"n": 2})).await?.status, 200);
    for subscriber in [&mut ann, &mut ben] {
        subscriber
            .until(|json| json["op"] == "update" && json["data"]["n"] == 2)
            .await?;
    }
    let bearer = format!("Bearer {}", token("publisher")?);
    let refused = send(
        node.public,
        "POST",
        "/v1/publish/board",
        &[
            ("authorization", &bearer),
            ("content-type", "application/json"),
        ],
        "no JSON",
    )
    .await?;
    assert_eq!(refused.status, 422);
    let after = node
        .wait(
            "both updates counted, both ticks passed",
            async |node: &Node| {
                let scrape = node.metrics().await?;
                let sent = scrape.sum("tidegate_transport_sent_updates_total", "");
                let channels = scrape.sum("tidegate_fanout_followed_channels", "");
                Ok((sent >= 4.0 && channels >= 1.0).then_some(scrape))
            },
        )
        .await?;
    let grown = |name: &str, labels: &str| after.sum(name, labels) - before.sum(name, labels);
    for (name, labels, by) in [
        ("tidegate_transport_sent_updates_total", "", 4.0),
        ("tidegate_publish_records_total", "appended", 2.0),
        ("tidegate_publish_records_total", "refused", 1.0),
        ("tidegate_source_records_total", "board", 2.0),
        ("tidegate_log_held_records", "board", 2.0),
        ("tidegate_tail_held_updates", "board", 2.0),
        ("tidegate_view_resident_rows", "board", 1.0),
        ("tidegate_view_resident_channels", "board", 1.0),
        ("tidegate_session_active", "websocket", 2.0),
        ("tidegate_session_active", "sse", 0.0),
        ("tidegate_fanout_active_subscriptions", "", 2.0),
        ("tidegate_fanout_joins_total", "", 2.0),
        ("tidegate_transport_requests_total", "", 5.0),
    ] {
        let found = grown(name, labels);
        assert!((found - by).abs() < 1e-9, "{name} {labels}: {found}");
    }
    // Other tests of this process encode too.
    for (name, least) in [
        ("tidegate_frame_encoded_updates_total", 2.0),
        ("tidegate_frame_encoded_parts_total", 1.0),
        ("tidegate_transport_sent_bytes_total", 4.0 * 80.0),
        ("tidegate_transport_delivery_seconds_count", 4.0),
        ("tidegate_worker_turns_total", 4.0),
        ("tidegate_worker_busy_seconds_total", 1e-6),
    ] {
        assert!(grown(name, "") >= least, "{name}: {}", grown(name, ""));
    }
    // What was offered was taken at once, or waited first behind a connection's greeting: each is counted once.
    let offered = grown("tidegate_fanout_offers_total", "written")
        + grown("tidegate_fanout_offers_total", "queued")
        + grown("tidegate_fanout_offers_total", "conflated");
    assert!((offered - 4.0).abs() < 1e-9, "{offered}\n{}", after.0);
    Ok(())
}

#[tokio::test]
async fn channels_and_connections_are_listed_and_closed() -> Result<()> {
    let node = start("")?;
    let mut ann = node.subscriber("ann").await?;
    let mut ben = node.subscriber("ben").await?;
    let channels = node.inspect("channels").await?;
    let [channel] = channels["channels"]
        .as_array()
        .context("no list")?
        .as_slice()
    else {
        anyhow::bail!("not one channel: {channels}");
    };
    assert_eq!(
        (&channel["channel"], &channel["subscribers"]),
        (&json!("board/JFK"), &json!(2))
    );
    assert_eq!(channel["freshness"]["state"], "live");
    let position = channel["position"].as_str().context("no position")?;
    assert!(
        position.contains(".") && position.ends_with(":0"),
        "{position}"
    );
    assert_eq!(
        node.inspect("channels?channel=board/LGA").await?["channels"],
        json!([])
    );
    let all = node.inspect("connections").await?;
    assert_eq!(
        (&all["total"], all["connections"].as_array().map(Vec::len)),
        (&json!(2), Some(2))
    );
    let one = node.inspect("connections?limit=1").await?;
    assert_eq!(one["connections"].as_array().map(Vec::len), Some(1));
    let of_ann = node.inspect("connections?sub=ann").await?;
    let [info] = of_ann["connections"]
        .as_array()
        .context("no list")?
        .as_slice()
    else {
        anyhow::bail!("not one of ann: {of_ann}");
    };
    assert_eq!(
        (&info["subject"], &info["transport"], &info["channels"]),
        (&json!("ann"), &json!("websocket"), &json!(["board/JFK"]))
    );
    let id = info["id"].as_str().context("no id")?;
    let by_id = node.inspect(&format!("connections?id={id}")).await?;
    assert_eq!(by_id["connections"][0]["subject"], "ann");

    let closed = post(node.admin, &format!("/connections/close?id={id}"), &[]).await?;
    assert_eq!(closed.json()?["closed"], 1);
    assert_eq!(ann.until_closed().await?, 4502);
    let closed = post(node.admin, "/connections/close?sub=ben", &[]).await?;
    assert_eq!(closed.json()?["closed"], 1);
    assert_eq!(ben.until_closed().await?, 4502);
    let mut moved = node.subscriber("cat").await?;
    let path = "/connections/close?sub=cat&reconnect_after_ms=1500";
    let closed = post(node.admin, path, &[]).await?.json()?;
    assert_eq!(
        (&closed["closed"], &closed["code"]),
        (&json!(1), &json!(4005))
    );
    let bye = moved.until(|json| json["op"] == "bye").await?;
    assert_eq!(
        (&bye["code"], &bye["reconnect_after_ms"]),
        (&json!("moved"), &json!(1500))
    );
    assert_eq!(moved.until_closed().await?, 4005);
    let closed = post(node.admin, "/connections/close?sub=nobody", &[]).await?;
    assert_eq!(closed.json()?["closed"], 0);
    let scrape = node
        .wait("nobody left", async |node: &Node| {
            let scrape = node.metrics().await?;
            let active = scrape.sum("tidegate_session_active", "");
            Ok((active < 0.5).then_some(scrape))
        })
        .await?;
    let closed = |labels: &str| scrape.sum("tidegate_session_closed_total", labels);
    assert!((closed("code=\"closed\"") - 2.0).abs() < 1e-9);
    assert!((closed("code=\"moved\"") - 1.0).abs() < 1e-9);
    assert!((closed("") - 3.0).abs() < 1e-9, "each is counted once");
    Ok(())
}

#[tokio::test]
async fn a_paused_stream_goes_stale_and_heals() -> Result<()> {
    let node = start("")?;
    node.wait_for_freshness("live").await?;
    let paused = post(node.admin, "/streams/board/pause", &[]).await?;
    assert_eq!(
        paused.json()?,
        json!({"stream": "board", "paused": true, "delay_ms": 0})
    );
    let stream = node.wait_for_freshness("stale").await?;
    assert_eq!(stream["freshness"]["reason"], "paused");
    assert_eq!(stream["hindrance"]["paused"], true);
    let scrape = node.metrics().await?;
    assert!(scrape.sum("tidegate_view_live_streams", "board") < 0.5);
    assert!(scrape.sum("tidegate_view_age_seconds", "partition=\"0\"") > 0.5);
    assert!(scrape.sum("tidegate_source_fetches_total", "failed") > 0.5);
    assert_eq!(get(node.admin, "/ready").await?.status, 200);

    let delayed = post(node.admin, "/streams/board/delay?ms=20", &[]).await?;
    assert_eq!(
        delayed.json()?,
        json!({"stream": "board", "paused": true, "delay_ms": 20})
    );
    let resumed = post(node.admin, "/streams/board/resume", &[]).await?;
    assert_eq!(
        resumed.json()?,
        json!({"stream": "board", "paused": false, "delay_ms": 0})
    );
    node.wait_for_freshness("live").await?;
    let live = node
        .metrics()
        .await?
        .sum("tidegate_view_live_streams", "board");
    assert!(live > 0.5);
    Ok(())
}

#[tokio::test]
async fn asked_to_drain_the_node_is_not_ready_and_leaves() -> Result<()> {
    let node = start("")?;
    let mut ann = node.subscriber("ann").await?;
    let answer = post(node.admin, "/drain", &[]).await?;
    assert_eq!(
        (answer.status, answer.json()?),
        (202, json!({"draining": true}))
    );
    let ready = get(node.admin, "/ready").await?;
    assert_eq!((ready.status, ready.body.as_str()), (503, "draining\n"));
    assert_eq!(get(node.admin, "/live").await?.status, 200);
    let again = post(node.admin, "/drain", &[]).await?;
    assert_eq!(again.status, 202);
    timeout(SOON, node.gateway.asked_to_leave()).await?;
    let (drained, code) = tokio::join!(node.gateway.drain(), ann.until_closed());
    assert_eq!((drained.left, drained.tasks), (0, 0));
    assert_eq!(code?, 1012);
    Ok(())
}

#[tokio::test]
async fn with_a_token_configured_only_who_has_it_changes_something() -> Result<()> {
    let node = start(&format!("token = \"{ADMIN_TOKEN}\""))?;
    let right = format!("Bearer {ADMIN_TOKEN}");
    for path in [
        "/streams/board/pause",
        "/connections/close?sub=a",
        "/drain",
        "/reload",
    ] {
        for headers in [&[][..], &[("authorization", "Bearer another-token-of-it")]] {
            let answer = post(node.admin, path, headers).await?;
            is_problem(&answer, 401, "unauthorized").context(path)?;
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(get(node.admin, "/ready").await?.status, 200);
    assert_eq!(
        node.inspect("streams").await?["streams"][0]["hindrance"]["paused"],
        false
    );
    let answer = post(
        node.admin,
        "/streams/board/pause",
        &[("authorization", &right)],
    )
    .await?;
    assert_eq!(answer.status, 200);
    assert_eq!(
        node.inspect("streams").await?["streams"][0]["hindrance"]["paused"],
        true
    );
    Ok(())
}

#[tokio::test]
async fn a_page_in_a_browser_changes_nothing_without_a_token() -> Result<()> {
    let node = start("")?;
    let page = [("origin", "https://elsewhere.example")];
    let answer = post(node.admin, "/drain", &page).await?;
    is_problem(&answer, 403, "forbidden")?;
    assert_eq!(get(node.admin, "/ready").await?.status, 200);
    Ok(())
}

/// A page whose own name points here is not answered; probes are.
#[tokio::test]
async fn who_asks_for_another_host_is_refused() -> Result<()> {
    let node = start("hosts = [\"tidegate-admin\"]")?;
    let asked = async |method: &str, path: &str, host: &str| {
        let headers = [("host", host)];
        send(node.admin, method, path, &headers, "").await
    };
    for path in ["/metrics", "/inspect/streams", "/inspect/connections"] {
        for host in [
            "evil.example",
            "evil.example:9701",
            "localhost.evil.example",
        ] {
            let answer = asked("GET", path, host).await?;
            is_problem(&answer, 403, "forbidden").with_context(|| format!("{path} {host}"))?;
        }
        for host in [
            "localhost",
            "10.1.2.3:9701",
            "[::1]:9701",
            "tidegate-admin:9701",
        ] {
            let answer = asked("GET", path, host).await?;
            ensure!(answer.status == 200, "{path} {host}: {answer:?}");
        }
    }
    let answer = asked("POST", "/streams/board/pause", "evil.example").await?;
    is_problem(&answer, 403, "forbidden")?;
    for path in ["/live", "/ready"] {
        ensure!(asked("GET", path, "balancer.example").await?.status == 200);
    }
    Ok(())
}
