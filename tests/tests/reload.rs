//! Reloading the configuration: what is new is there, what is gone is told, and what is wrong changes nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};
use futures_util::SinkExt;
use serde_json::{Value, json};
use tidegate::{
    admin::NotReloaded,
    auth::Permission::{Publish, Subscribe},
};
use tidegate_tests::{
    binary,
    gateway::{API_KEY, Node, Setup, jwt, until, until_told},
    http::{self, Answer},
    sse::Events,
    websocket::{Client, Connect},
    wire,
};
use tokio_tungstenite::tungstenite::Message;

/// A node, and the configuration as it is written now.
struct Written {
    node: Node,
    setup: Arc<Mutex<Setup>>,
}

impl Written {
    fn start(setup: Setup) -> Result<Self> {
        let setup = Arc::new(Mutex::new(setup));
        let node = Setup::start_reloadable(setup.clone())?;
        Ok(Self { node, setup })
    }

    fn write(&self, setup: Setup) {
        *self.setup.lock().expect("no panic") = setup;
    }

    fn admin(&self) -> SocketAddr {
        self.node.gateway.admin_address()
    }

    async fn post(&self) -> Result<Answer> {
        http::post(self.admin(), "/reload", &[]).await
    }

    /// A reload that is applied.
    async fn reload(&self, setup: Setup) -> Result<Value> {
        self.write(setup);
        let answer = self.post().await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        answer.json()
    }

    async fn metric(&self, name: &str) -> Result<f64> {
        let scrape = http::get(self.admin(), "/metrics").await?.body;
        let line = scrape.lines().find(|line| line.starts_with(name));
        let (_, value) = line
            .and_then(|line| line.rsplit_once(' '))
            .context("no such metric")?;
        Ok(value.parse()?)
    }
}

fn base() -> Setup {
    Setup::new().view("s").view("t")
}

async fn subscriber(node: &Node, channel: &str) -> Result<Client> {
    let mut client = Connect::new().bearer(API_KEY).hello(node).await?;
    client.subscribe(channel, json!({})).await?;
    client.expect("snapshot").await?;
    Ok(client)
}

#[tokio::test]
async fn a_stream_that_is_new_can_be_used_at_once_and_nobody_is_disturbed() -> Result<()> {
    let written = Written::start(base())?;
    let mut old = subscriber(&written.node, "s/a").await?;
    let refused = old.try_subscribe("new/a", json!({})).await?;
    assert_eq!(refused["error"]["code"], "unknown_stream");
    let done = written.reload(base().events("new")).await?;
    assert_eq!(done["changed"], json!(["streams[new] is new"]));
    assert_eq!(
        (&done["closed"], &done["ended_subscriptions"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(
        old.subscribe("new/a", json!({})).await?["outcome"],
        "started"
    );
    written.node.publish("new/a", "", "1")?;
    assert_eq!(old.expect("update").await?["channel"], "new/a");
    written.node.publish("s/a", "r", "2")?;
    assert_eq!(old.expect("update").await?["channel"], "s/a");
    drop(old);
    written.node.drain().await
}

#[tokio::test]
async fn a_stream_that_is_gone_ends_its_subscriptions_and_only_those() -> Result<()> {
    let written = Written::start(base())?;
    let mut both = subscriber(&written.node, "s/a").await?;
    both.subscribe("t/a", json!({})).await?;
    both.expect("snapshot").await?;
    let at = written.node.gateway.address();
    let mut events = Events::open(at, "channel=t/a&channel=t/b", &[wire::BEARER]).await;
    events.event("snapshot").await;
    let publisher = written.node.stream("t")?;
    let done = written.reload(Setup::new().view("s")).await?;
    assert_eq!(done["changed"], json!(["streams[t] is gone"]));
    assert_eq!(done["ended_subscriptions"], 3);
    let outcome = both.expect("outcome").await?;
    assert_eq!(
        (&outcome["channel"], &outcome["error"]["code"]),
        (&json!("t/a"), &json!("unknown_stream"))
    );
    let told = events.until(|block| block.is("outcome") && block.json()["error"].is_object());
    assert_eq!(told.await.json()["error"]["code"], "unknown_stream");
    assert_eq!(events.event("bye").await.json()["code"], "closed");
    assert!(events.next().await.is_none(), "the event stream ends");
    // What is left goes on; what is gone is gone, also for who had it in hand.
    written.node.publish("s/a", "r", "1")?;
    assert_eq!(both.expect("update").await?["channel"], "s/a");
    let again = both.try_subscribe("t/a", json!({})).await?;
    assert_eq!(again["error"]["code"], "unknown_stream");
    let (publish, app) = ("t", written.node.gateway.app());
    let claims = app
        .verify(API_KEY)
        .map_err(|refusal| anyhow::anyhow!(refusal.message))?;
    assert!(app.publisher.stream(publish, &claims).is_err());
    let record = app
        .publisher
        .read(&publisher, br#"{"channel":"a","row":"r","data":1}"#);
    let answers = app
        .publisher
        .append(&publisher, &claims, &mut Default::default(), vec![record])
        .await;
    let refusal = answers[0].as_ref().expect_err("the stream is gone");
    assert_eq!(refusal.code.as_str(), "unknown_stream");
    // It comes back with what it had, but not as another one.
    let other = Setup::new().view("s").stream("t", "partitions = 2");
    written.write(other);
    let refused = written.post().await?;
    assert_eq!(
        (refused.status, &refused.json()?["paths"]),
        (409, &json!(["streams[t].partitions"]))
    );
    written.reload(base()).await?;
    let mut back = subscriber(&written.node, "t/a").await?;
    written.node.publish("t/a", "r", "1")?;
    assert_eq!(back.expect("update").await?["channel"], "t/a");
    drop((both, back));
    written.node.drain().await
}

#[tokio::test]
async fn a_streams_options_change_while_it_runs() -> Result<()> {
    let written = Written::start(base())?;
    let mut client = subscriber(&written.node, "s/a").await?;
    let options = "freshness_slo = \"200ms\"\nexpect_every = \"1h\"\nslow_consumer = \"disconnect\"\ntail = { bytes = \"2MiB\", age = \"1m\" }";
    let done = written
        .reload(Setup::new().stream("s", options).view("t"))
        .await?;
    assert_eq!(
        done["changed"],
        json!([
            "streams[s].tail",
            "streams[s].freshness_slo",
            "streams[s].slow_consumer",
            "streams[s].expect_every"
        ])
    );
    let shown = http::get(written.admin(), "/inspect/streams")
        .await?
        .json()?;
    let stream = &shown["streams"][0];
    assert_eq!(
        (
            &stream["freshness_slo_ms"],
            &stream["expect_every_ms"],
            &stream["slow_consumer"]
        ),
        (&json!(200), &json!(3_600_000), &json!("disconnect"))
    );
    // The new objective is kept: proofs come more often, and what is paused is stale soon.
    written.node.hinder("s", true, std::time::Duration::ZERO)?;
    let told = client.find(|message| message["op"] == "freshness").await?;
    assert_eq!(
        (&told["state"], &told["reason"]),
        (&json!("stale"), &json!("paused"))
    );
    drop(client);
    written.node.drain().await
}

#[tokio::test]
async fn who_was_let_in_by_a_key_that_is_gone_is_sent_away_and_others_stay() -> Result<()> {
    let anybody = "anonymous = { channels = [\"s/*\"], can = [\"subscribe\"] }";
    let written = Written::start(base().access(anybody))?;
    let node = &written.node;
    let token = jwt(Some("ann"), &["s/*"], &[Subscribe], 3600)?;
    let mut by_token = Connect::new().bearer(&token).hello(node).await?;
    by_token.subscribe("s/a", json!({})).await?;
    let mut nobody = Client::connect(node).await?;
    nobody.subscribe("s/a", json!({})).await?;
    let mut by_key = subscriber(node, "s/a").await?;
    // Anonymous access goes; the keys stay.
    let done = written.reload(base()).await?;
    assert_eq!(
        (&done["changed"], &done["revoked_keys"]),
        (&json!(["access.anonymous"]), &json!(["anonymous"]))
    );
    assert_eq!(done["closed"], 1);
    let bye = nobody.find(|message| message["op"] == "bye").await?;
    assert_eq!(bye["code"], "token_expired");
    assert!(bye["reconnect_after_ms"].is_u64(), "{bye}");
    assert_eq!(nobody.closed().await?.code, 4001);
    // The key of the tokens goes.
    let done = written.reload(base().without_jwt_keys()).await?;
    assert_eq!(
        (&done["revoked_keys"], &done["closed"]),
        (&json!(["tests"]), &json!(1))
    );
    by_token.find(|message| message["op"] == "bye").await?;
    assert_eq!(by_token.closed().await?.code, 4001);
    assert!(
        Connect::new().bearer(&token).hello(node).await.is_err(),
        "its tokens no longer hold"
    );
    node.publish("s/a", "r", "1")?;
    assert_eq!(by_key.expect("update").await?["data"], 1);
    // And comes back.
    written.reload(base()).await?;
    Connect::new().bearer(&token).hello(node).await?;
    drop(by_key);
    written.node.drain().await
}

#[tokio::test]
async fn origins_and_limits_hold_from_the_reload_on() -> Result<()> {
    let written = Written::start(base().open())?;
    let origin = ("origin", "https://board.example");
    let view = async || {
        wire::ask(
            written.node.gateway.address(),
            "GET",
            "/v1/sse?channel=none/a",
            &[origin],
            b"",
        )
        .await
    };
    view().await.problem(403, "forbidden");
    let wide = base()
        .open()
        .listen("origins = [\"https://board.example\"]");
    let done = written.reload(wide.clone()).await?;
    assert_eq!(done["changed"], json!(["listen.origins"]));
    let answer = view().await;
    answer.problem(404, "unknown_stream");
    assert_eq!(
        answer.head.get("access-control-allow-origin"),
        Some("https://board.example")
    );
    let full = wide.limits("connections = 1\npublishes_per_second = 1");
    let done = written.reload(full).await?;
    assert_eq!(
        done["changed"],
        json!(["limits.connections", "limits.publishes_per_second"])
    );
    let one = Client::connect(&written.node).await?;
    assert!(
        Connect::new().hello(&written.node).await.is_err(),
        "there is room for one"
    );
    written.node.publish("s/a", "r", "1")?;
    let refused = written
        .node
        .publish_all("s/a", (0..3).map(|n| (n.to_string(), "1".to_owned())));
    assert!(
        format!("{refused:?}").contains("RateLimited"),
        "{refused:?}"
    );
    drop(one);
    written.node.drain().await
}

#[tokio::test]
async fn limits_of_addresses_hold_from_the_reload_on_and_know_who_is_there() -> Result<()> {
    let limited = |most: u32| {
        base()
            .open()
            .limits(&format!("connections_per_address = {most}"))
    };
    let written = Written::start(limited(2))?;
    let _one = Client::connect(&written.node).await?;
    let _two = Client::connect(&written.node).await?;
    assert!(Connect::new().hello(&written.node).await.is_err());
    let done = written.reload(limited(3)).await?;
    assert_eq!(done["changed"], json!(["limits.connections_per_address"]));
    let _three = Client::connect(&written.node).await?;
    assert!(
        Connect::new().hello(&written.node).await.is_err(),
        "the first two still count"
    );
    let slower = limited(3).limits("connects_per_second = 1\nmessages_per_second = 7");
    written.write(slower);
    let refused = written.post().await?;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert_eq!(
        refused.json()?["paths"],
        json!(["limits.messages_per_second"])
    );
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_changes_nothing_and_says_all_of_it() -> Result<()> {
    let written = Written::start(base())?;
    let mut client = subscriber(&written.node, "s/a").await?;
    let loaded = written
        .metric("tidegate_config_loaded_timestamp_seconds")
        .await?;
    assert!(loaded > 1_600_000_000.0, "{loaded}");
    let wrong = Setup::new()
        .view("s")
        .view("s")
        .view("new")
        .limits("connections = 0");
    written.write(wrong);
    let answer = written.post().await?;
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    let problem = answer.json()?;
    assert_eq!(problem["code"], "bad_config");
    let mistakes = problem["mistakes"].as_array().context("no list")?;
    assert_eq!(mistakes.len(), 2, "{problem}");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("limits.connections"))
    );
    // What needs a restart is refused as a whole, with what could have changed.
    let fixed = base()
        .view("new")
        .session("heartbeat = \"7s\"")
        .limits("header_bytes = \"32KiB\"");
    written.write(fixed);
    let answer = written.post().await?;
    assert_eq!(answer.status, 409);
    let problem = answer.json()?;
    assert_eq!(problem["code"], "restart_needed");
    assert_eq!(
        problem["paths"],
        json!(["session.heartbeat", "limits.header_bytes"])
    );
    let app = written.node.gateway.app();
    assert!(app.streams.get("new").is_none() && app.streams.get("t").is_some());
    assert!(matches!(
        written.node.gateway.reload().await,
        Err(NotReloaded::Fixed(_))
    ));
    assert!(
        (written
            .metric("tidegate_config_reloads_total{outcome=\"refused\"}")
            .await?
            - 3.0)
            .abs()
            < 0.5
    );
    assert!(
        (written
            .metric("tidegate_config_reloads_total{outcome=\"applied\"}")
            .await?)
            .abs()
            < 0.5
    );
    // And nothing at all is a reload, too.
    assert_eq!(written.reload(base()).await?["changed"], json!([]));
    written.node.publish("s/a", "r", "1")?;
    client.expect("update").await?;
    drop(client);
    written.node.drain().await
}

/// The program reads its file again at SIGHUP.
#[tokio::test]
async fn a_hangup_reloads_the_file() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("tidegate-reload-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("tidegate.toml");
    let text = |streams: &str| {
        format!("[access]\nanonymous = {{ channels = [\"*\"], can = [\"subscribe\"] }}\n{streams}")
    };
    std::fs::write(&file, text("[[streams]]\nname = \"s\"\n"))?;
    let path = file.display().to_string();
    let node = binary::Node::start(&["--config", &path]).await?;
    let address: SocketAddr = node.address.parse()?;
    let asked = async |stream: &str| {
        wire::get(address, &format!("/v1/view/{stream}/a"))
            .await
            .status()
    };
    assert_eq!((asked("s").await, asked("new").await), (200, 404));
    std::fs::write(
        &file,
        text("[[streams]]\nname = \"s\"\n[[streams]]\nname = \"new\"\n"),
    )?;
    node.signal("HUP").await?;
    until_told("the stream comes", async || asked("new").await == 200).await?;
    assert_eq!(asked("s").await, 200);
    node.signal("TERM").await?;
    let (status, _) = node.ended().await?;
    assert!(status.success());
    Ok(std::fs::remove_dir_all(&directory)?)
}

/// What an argument says holds at each reload as well, and a new stream's log is in the directory.
#[tokio::test]
async fn a_data_directory_takes_new_streams_and_names_what_does_not_fit_it() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("tidegate-reloads-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&directory));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("tidegate.toml");
    let write = |streams: &[&str]| {
        let streams: String = streams
            .iter()
            .map(|stream| format!("[[streams]]\n{stream}\n"))
            .collect();
        let anybody = "anonymous = { channels = [\"*\"], can = [\"subscribe\", \"publish\"] }";
        std::fs::write(&file, format!("[access]\n{anybody}\n{streams}"))
    };
    let (path, data) = (file.display().to_string(), directory.join("data"));
    let data_dir = data.display().to_string();
    let arguments = ["--config", &path, "--data-dir", &data_dir];
    write(&["name = \"s\"", "name = \"t\""])?;
    let publish = async |address: SocketAddr, stream: &str| {
        let record = b"{\"channel\":\"a\",\"row\":\"r\",\"data\":1}";
        let (path, kind) = (format!("/v1/publish/{stream}"), "application/json");
        let answer = wire::ask(address, "POST", &path, &[("content-type", kind)], record).await;
        assert_eq!(answer.status(), 200);
    };
    let node = binary::Node::start(&arguments).await?;
    publish(node.address.parse()?, "t").await;
    node.signal("TERM").await?;
    anyhow::ensure!(node.ended().await?.0.success());
    // What is in the directory, and not in the configuration, is not served.
    write(&["name = \"s\""])?;
    let node = binary::Node::start(&arguments).await?;
    let (address, admin) = (node.address.parse()?, node.admin.parse()?);
    let reload = async || http::post(admin, "/reload", &[]).await;
    write(&[
        "name = \"s\"",
        "name = \"new\"",
        "name = \"t\"\npartitions = 2",
    ])?;
    let refused = reload().await?;
    assert_eq!(
        (refused.status, &refused.json()?["code"]),
        (422, &json!("bad_config"))
    );
    assert!(refused.body.contains("the stream t has"), "{refused:?}");
    let new = wire::get(address, "/v1/view/new/a").await;
    assert_eq!(new.status(), 404, "all or nothing");
    write(&["name = \"s\"", "name = \"new\"", "name = \"t\""])?;
    let done = reload().await?;
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(
        done.json()?["changed"],
        json!(["streams[new] is new", "streams[t] is new"])
    );
    publish(address, "new").await;
    node.signal("TERM").await?;
    anyhow::ensure!(node.ended().await?.0.success());
    // It was stored there.
    let node = binary::Node::start(&arguments).await?;
    let address = node.address.parse()?;
    let row =
        async || wire::get(address, "/v1/view/new/a").await.json()["rows"]["r"]["data"].clone();
    until_told("the row is there", async || row().await == json!(1)).await?;
    node.signal("TERM").await?;
    anyhow::ensure!(node.ended().await?.0.success());
    Ok(std::fs::remove_dir_all(&directory)?)
}

/// A publisher that streams its lines is stopped where its key was taken away.
#[tokio::test]
async fn a_publisher_that_streams_is_stopped_when_its_key_goes() -> Result<()> {
    let written = Written::start(base())?;
    let token = jwt(None, &["s/*"], &[Publish], 3600)?;
    let bearer = format!("Bearer {token}");
    let head = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/x-ndjson"),
        ("transfer-encoding", "chunked"),
    ];
    let mut publisher = wire::Wire::open(written.node.gateway.address()).await;
    let head = head
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .concat();
    let request = format!("POST /v1/publish/s HTTP/1.1\r\nhost: tests\r\n{head}\r\n");
    publisher.send(request).await;
    let line = "{\"channel\":\"a\",\"row\":\"r\",\"data\":1}\n";
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    publisher.send(&chunk).await;
    assert_eq!(publisher.head().await.status, 200);
    let answer = async |publisher: &mut wire::Wire| {
        let answers = publisher.chunk().await.unwrap_or_default();
        wire::lines_of(&answers).remove(0)
    };
    assert!(answer(&mut publisher).await["position"].is_string());
    written.reload(base().view("new")).await?;
    publisher.send(&chunk).await;
    let second = answer(&mut publisher).await;
    assert!(
        second["position"].is_string(),
        "its key is still there: {second}"
    );
    written
        .reload(base().without_jwt_keys().view("new"))
        .await?;
    publisher.send(&chunk).await;
    assert_eq!(
        answer(&mut publisher).await["error"]["code"],
        "unauthorized"
    );
    publisher.send("0\r\n\r\n").await;
    written.node.drain().await
}

/// Many reloads while clients come and subscribe: nobody is left with what a key granted that is gone.
#[tokio::test]
async fn no_session_outlives_its_key() -> Result<()> {
    let anybody = "anonymous = { channels = [\"s/*\"], can = [\"subscribe\"] }";
    let written = Written::start(base().access(anybody))?;
    let url = format!("ws://{}/v1/ws", written.node.gateway.address());
    let stop = AtomicBool::new(false);
    let subscriptions = || {
        let workers = written.node.gateway.app().workers.iter();
        workers
            .map(|counts| counts.subscriptions.get())
            .sum::<u64>()
    };
    let coming = async {
        let mut came = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            if let Ok((mut socket, _)) = tokio_tungstenite::connect_async(&url).await {
                let subscribe = json!({"id": 1, "op": "subscribe", "channel": "s/a"});
                // Where it was closed meanwhile it has no subscription either.
                drop(socket.send(Message::text(subscribe.to_string())).await);
                came.push(socket);
            }
        }
        came
    };
    let reloading = async {
        for _ in 0..20 {
            written.reload(base()).await?;
            written.reload(base().access(anybody)).await?;
            until("somebody follows", || subscriptions() > 0).await?;
        }
        written.reload(base()).await?;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (came, reloaded) = tokio::join!(coming, reloading);
    reloaded?;
    until("nobody has what anonymous access granted", || {
        subscriptions() == 0
    })
    .await?;
    drop(came);
    written.node.drain().await
}
