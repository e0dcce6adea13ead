//! Tokens over WebSocket: where they come from, when they end, what they permit.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use serde_json::json;
use tidegate::auth::Permission::{Publish, Subscribe};
use tidegate_tests::{
    gateway::{API_KEY, Setup, jwt},
    websocket::{Client, Connect},
};
use tokio_tungstenite::tungstenite;

fn closed() -> Setup {
    Setup::new().view("board")
}

#[tokio::test]
async fn a_session_without_a_token_may_do_nothing_until_it_sends_one() -> anyhow::Result<()> {
    let node = closed().start()?;
    let mut client = Client::connect(&node).await?;
    let answer = client.try_subscribe("board/a", json!({})).await?;
    assert_eq!(answer["error"]["code"], "unauthorized");
    client.send(&json!({"op": "ping"})).await?;
    client.expect("pong").await?;
    let answer = client.ask(json!({"op": "auth", "token": API_KEY})).await?;
    assert_eq!(answer["ok"], json!({}));
    client.subscribe("board/a", json!({})).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_first_token_that_does_not_hold_ends_the_session() -> anyhow::Result<()> {
    let node = closed().start()?;
    for bad in ["", "x", "a.b.c", &jwt(None, &["*"], &[Subscribe], -60)?] {
        let mut client = Client::connect(&node).await?;
        let answer = client.ask(json!({"op": "auth", "token": bad})).await?;
        let code = &answer["error"]["code"];
        assert!(
            code == "unauthorized" || code == "token_expired",
            "{bad:?}: {answer}"
        );
        assert_eq!(client.expect("bye").await?["code"], "unauthorized");
        assert_eq!(client.closed().await?.code, 4501);
    }
    node.drain().await
}

#[tokio::test]
async fn who_sends_no_token_in_time_is_closed() -> anyhow::Result<()> {
    let node = closed().access("auth_timeout = \"200ms\"").start()?;
    let mut client = Client::connect(&node).await?;
    assert_eq!(client.expect("bye").await?["code"], "auth_timeout");
    assert_eq!(client.closed().await?.code, 4500);
    node.drain().await
}

#[tokio::test]
async fn a_token_that_ends_ends_the_session_unless_a_fresh_one_came() -> anyhow::Result<()> {
    let node = closed().start()?;
    let short = jwt(Some("ann"), &["board/*"], &[Subscribe], -3)?;
    let mut ends = Connect::new().bearer(&short).hello(&node).await?;
    let mut stays = Connect::new().bearer(&short).hello(&node).await?;
    ends.subscribe("board/a", json!({})).await?;
    stays.subscribe("board/a", json!({})).await?;
    let fresh = jwt(Some("ann"), &["board/*"], &[Subscribe], 3600)?;
    let answer = stays.ask(json!({"op": "auth", "token": fresh})).await?;
    assert_eq!(answer["ok"], json!({}));
    let bye = ends.find(|message| message["op"] == "bye").await?;
    assert_eq!(bye["code"], "token_expired");
    assert_eq!(ends.closed().await?.code, 4001);
    node.publish("board/a", "A", "1")?;
    stays.find(|message| message["op"] == "update").await?;
    // A fresh token that does not hold leaves the session as it was.
    let answer = stays.ask(json!({"op": "auth", "token": "x"})).await?;
    assert_eq!(answer["error"]["code"], "unauthorized");
    node.publish("board/a", "A", "2")?;
    stays.find(|message| message["op"] == "update").await?;
    drop(stays);
    node.drain().await
}

#[tokio::test]
async fn a_fresh_token_that_permits_less_ends_the_channels_that_it_does_not() -> anyhow::Result<()>
{
    let node = closed().start()?;
    let wide = jwt(None, &["board/*"], &[Subscribe], 3600)?;
    let mut client = Connect::new().bearer(&wide).hello(&node).await?;
    for channel in ["board/a", "board/b"] {
        client.subscribe(channel, json!({})).await?;
        client.expect("snapshot").await?;
    }
    let narrow = jwt(None, &["board/a"], &[Subscribe], 3600)?;
    client.ask(json!({"op": "auth", "token": narrow})).await?;
    let outcome = client.expect("outcome").await?;
    assert_eq!(
        (&outcome["channel"], &outcome["error"]["code"]),
        (&json!("board/b"), &json!("forbidden"))
    );
    node.publish("board/b", "A", "1")?;
    let position = node.publish("board/a", "A", "1")?;
    let update = client.expect("update").await?;
    assert_eq!(
        (&update["channel"], &update["position"]),
        (&json!("board/a"), &json!(position))
    );
    let answer = client.try_subscribe("board/b", json!({})).await?;
    assert_eq!(answer["error"]["code"], "forbidden");
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_token_permits_what_it_says_and_nothing_else() -> anyhow::Result<()> {
    let node = closed().start()?;
    let token = jwt(Some("ann"), &["board/{sub}/*"], &[Subscribe], 60)?;
    let mut client = Connect::new().bearer(&token).hello(&node).await?;
    client.subscribe("board/ann/1", json!({})).await?;
    for other in ["board/bob/1", "board/ann", "other/ann/1"] {
        let answer = client.try_subscribe(other, json!({})).await?;
        assert_eq!(answer["error"]["code"], "forbidden", "{other}");
    }
    let record = json!({"channel": "ann/1", "data": 1});
    let publish = json!({"op": "publish", "stream": "board", "record": record});
    let answer = client.ask(publish.clone()).await?;
    assert_eq!(answer["error"]["code"], "forbidden");
    let token = jwt(None, &["board/ann/*"], &[Publish], 60)?;
    let mut writer = Connect::new().bearer(&token).hello(&node).await?;
    assert!(writer.ask(publish).await?["ok"].is_object());
    let answer = writer.try_subscribe("board/ann/1", json!({})).await?;
    assert_eq!(answer["error"]["code"], "forbidden");
    drop((client, writer));
    node.drain().await
}

#[tokio::test]
async fn a_browsers_token_comes_beside_the_subprotocol() -> anyhow::Result<()> {
    let node = closed().start()?;
    let token = jwt(None, &["board/*"], &[Subscribe], 60)?;
    let offers = format!("tidegate.v1.json, tidegate.bearer.{token}");
    let connect = Connect::new().header("sec-websocket-protocol", offers);
    let (mut client, response) = connect.open(&node).await?;
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "tidegate.v1.json"
    );
    client.expect("hello").await?;
    client.subscribe("board/a", json!({})).await?;
    drop(client);
    let connect = Connect::new().header("sec-websocket-protocol", "tidegate.v1.json");
    let (_, response) = connect.open(&node).await?;
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "tidegate.v1.json"
    );
    let (_, response) = Connect::new().open(&node).await?;
    assert!(response.headers().get("sec-websocket-protocol").is_none());
    node.drain().await
}

#[tokio::test]
async fn a_handshake_with_a_token_that_does_not_hold_is_refused() -> anyhow::Result<()> {
    let node = closed().open().start()?;
    let bearer = "tidegate.v1.json, tidegate.bearer.x";
    for connect in [
        Connect::new().bearer("x"),
        Connect::new().header("sec-websocket-protocol", bearer),
    ] {
        let error = connect.open(&node).await.err().unwrap();
        let Some(tungstenite::Error::Http(response)) = error.downcast_ref() else {
            panic!("{error:?}")
        };
        assert_eq!(response.status(), 401);
    }
    node.drain().await
}
