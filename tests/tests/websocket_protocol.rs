//! What clients may send, and what becomes of those that send something else.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use futures_util::SinkExt;
use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{API_KEY, Node, Setup},
    websocket::{Client, Connect},
};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

fn open() -> Setup {
    Setup::new().open().view("board").events("trades")
}

async fn pong(client: &mut Client) -> anyhow::Result<()> {
    client.send(&json!({"op": "ping"})).await?;
    let pong = client.find(|message| message["op"] == "pong").await?;
    assert_eq!(pong, json!({"op": "pong"}));
    Ok(())
}

/// Writes bytes past the client's own framing.
async fn write_raw(client: &mut Client, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(client.socket.get_mut().write_all(bytes).await?)
}

/// A masked frame, its mask all zero.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![
        first,
        0x80 | u8::try_from(payload.len()).unwrap(),
        0,
        0,
        0,
        0,
    ];
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test]
async fn hello_comes_first_and_says_what_holds() -> anyhow::Result<()> {
    let node = open().start()?;
    let (mut client, _) = Connect::new().open(&node).await?;
    let hello = client.next().await?;
    assert_eq!(hello["op"], "hello");
    assert_eq!(
        (
            &hello["heartbeat_ms"],
            &hello["live_for_ms"],
            &hello["limits"]
        ),
        (
            &json!(25000),
            &json!(30000),
            &json!({"message_bytes": 1 << 20, "channels": 100})
        )
    );
    assert!(hello["now_ms"].is_u64() && hello["session"].is_string());
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn of_a_thousand_subscriptions_in_one_message_those_within_the_limit_begin()
-> anyhow::Result<()> {
    // The rate of subscriptions is another limit: without it, how fast the answers come is nothing to this test.
    let node = open().limits("subscribes_per_second = 0").start()?;
    let mut client = Client::connect(&node).await?;
    let all: Vec<Value> = (0..1000)
        .map(|n| json!({"id": n, "op": "subscribe", "channel": format!("board/{n}")}))
        .collect();
    client.send(&Value::Array(all)).await?;
    let (mut answered, mut good) = (std::collections::BTreeSet::new(), 0);
    while answered.len() < 1000 {
        let answer = client.find(|message| message["id"].is_u64()).await?;
        let id = answer["id"].as_u64().unwrap();
        assert!(answered.insert(id), "one answer each: {answer}");
        if answer["ok"].is_object() {
            assert!(id < 100, "{answer}");
            good += 1;
        } else {
            assert_eq!(answer["error"]["code"], "too_many_channels", "{answer}");
        }
    }
    assert_eq!(good, 100);
    client
        .ask(json!({"op": "unsubscribe", "channel": "board/5"}))
        .await?;
    client.subscribe("board/new", json!({})).await?;
    node.publish("board/new", "A", "1")?;
    client
        .find(|message| message["op"] == "update" && message["channel"] == "board/new")
        .await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_message_that_means_nothing_is_refused_and_harms_nothing() -> anyhow::Result<()> {
    let node = open().start()?;
    let mut client = Client::connect(&node).await?;
    for (text, code) in [
        ("", "bad_message"),
        ("{", "bad_message"),
        ("[", "bad_message"),
        ("null", "bad_message"),
        ("17", "bad_message"),
        ("[1]", "bad_message"),
        ("[[]]", "bad_message"),
        ("{\"op\":\"ping\"}{\"op\":\"ping\"}", "bad_message"),
        (r#"{"id":1}"#, "bad_message"),
        (r#"{"id":1,"op":7}"#, "bad_message"),
        (r#"{"id":1,"op":"dance"}"#, "unknown_op"),
        (r#"{"id":1,"op":"subscribe"}"#, "bad_message"),
        (r#"{"op":"subscribe","channel":"board/a"}"#, "bad_message"),
        (
            r#"{"id":-1,"op":"subscribe","channel":"board/a"}"#,
            "bad_message",
        ),
        (
            r#"{"id":9007199254740993,"op":"subscribe","channel":"board/a"}"#,
            "bad_message",
        ),
        (r#"{"id":1,"op":"subscribe","channel":7}"#, "bad_message"),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","colour":"red"}"#,
            "bad_message",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","token":"t"}"#,
            "bad_message",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","policy":"hope"}"#,
            "bad_message",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","max_rate":0}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","policy":"drop_oldest"}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","history":3}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a","from":"earliest"}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"trades/a","max_rate":3}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"trades/a","policy":"conflate"}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"trades/a","history":3,"from":"earliest"}"#,
            "bad_option",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"nosuch/a"}"#,
            "unknown_stream",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board"}"#,
            "bad_channel",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/"}"#,
            "bad_channel",
        ),
        (r#"{"id":1,"op":"subscribe","channel":"/a"}"#, "bad_channel"),
        (
            r#"{"id":1,"op":"subscribe","channel":"Board/a"}"#,
            "bad_channel",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/a b"}"#,
            "bad_channel",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/*"}"#,
            "bad_channel",
        ),
        (
            r#"{"id":1,"op":"subscribe","channel":"board/\u0000"}"#,
            "bad_channel",
        ),
        (
            r#"{"id":1,"op":"unsubscribe","channel":"board/a"}"#,
            "not_subscribed",
        ),
    ] {
        client.send_text(text).await?;
        let answer = client.next().await?;
        assert_eq!(answer["error"]["code"], code, "{text}: {answer}");
    }
    let long = format!("board/{}", "x".repeat(201));
    let answer = client.try_subscribe(&long, json!({})).await?;
    assert_eq!(answer["error"]["code"], "bad_channel");
    let deep = "[".repeat(100_000);
    client.send_text(&deep).await?;
    let answer = client.next().await?;
    assert_eq!(answer["error"]["code"], "bad_message");
    pong(&mut client).await?;
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn in_an_array_each_message_stands_for_itself() -> anyhow::Result<()> {
    // A megabyte of nonsense also breaks the rate of messages, of which there is a test of its own.
    let node = open().limits("messages_per_second = 0").start()?;
    let mut client = Client::connect(&node).await?;
    client
        .send_text(r#"[{"id":1,"op":"dance"},7,{"id":2,"op":"ping"},{"id":3,"op":"subscribe","channel":"board/a"}]"#)
        .await?;
    assert_eq!(client.next().await?["error"]["code"], "unknown_op");
    assert_eq!(client.next().await?["error"]["code"], "bad_message");
    assert_eq!(client.next().await?["op"], "pong");
    assert_eq!(client.next().await?["ok"]["outcome"], "snapshot");
    client.send_text("[]").await?;
    pong(&mut client).await?;
    // Each message has its answer: so many at once would only be a way to keep the others waiting.
    let flood = format!("[{}0]", "0,".repeat(500_000));
    client.send_text(&flood).await?;
    assert_eq!(client.next().await?["error"]["code"], "bad_message");
    pong(&mut client).await?;
    drop(client);
    node.drain().await
}

/// How a connection that sends these bytes is closed.
async fn closed_for(node: &Node, bytes: &[u8]) -> anyhow::Result<u16> {
    let mut client = Client::connect(node).await?;
    write_raw(&mut client, bytes).await?;
    Ok(client.closed().await?.code)
}

#[tokio::test]
async fn frames_that_break_the_rules_close_the_connection_with_the_code_for_it()
-> anyhow::Result<()> {
    let node = open()
        .limits("message_bytes = \"2KiB\"\nrecord_bytes = \"1KiB\"")
        .start()?;
    let mut bystander = Client::connect(&node).await?;
    bystander.subscribe("board/a", json!({})).await?;
    bystander.expect("snapshot").await?;
    assert_eq!(closed_for(&node, &frame(0x81, b"\xff\xfe")).await?, 1007);
    assert_eq!(closed_for(&node, b"\x81\x02{}").await?, 1002, "unmasked");
    assert_eq!(
        closed_for(&node, &frame(0x82, b"{}")).await?,
        1003,
        "binary"
    );
    assert_eq!(
        closed_for(&node, &frame(0xc1, b"{}")).await?,
        1002,
        "reserved"
    );
    assert_eq!(
        closed_for(&node, &frame(0x83, b"{}")).await?,
        1002,
        "opcode"
    );
    assert_eq!(
        closed_for(&node, &frame(0x80, b"{}")).await?,
        1002,
        "nothing to continue"
    );
    assert_eq!(
        closed_for(&node, &frame(0x09, b"")).await?,
        1002,
        "a ping in parts"
    );
    let mut big = vec![0x81, 0xfe, 0x10, 0x00, 0, 0, 0, 0];
    big.extend(std::iter::repeat_n(b' ', 4096));
    assert_eq!(closed_for(&node, &big).await?, 1009);
    node.publish("board/a", "A", "1")?;
    bystander.expect("update").await?;
    drop(bystander);
    node.drain().await
}

#[tokio::test]
async fn who_sends_far_too_much_still_hears_why_it_is_closed() -> anyhow::Result<()> {
    let node = open().start()?;
    for _ in 0..5 {
        let mut client = Client::connect(&node).await?;
        let mut head = vec![0x81, 0xff];
        head.extend_from_slice(&(8u64 << 20).to_be_bytes());
        head.extend_from_slice(&[0; 4]);
        write_raw(&mut client, &head).await?;
        let body = vec![b' '; 1 << 20];
        for _ in 0..8 {
            // The other side may have ended it already; what counts is what it said.
            if write_raw(&mut client, &body).await.is_err() {
                break;
            }
        }
        assert_eq!(client.closed().await?.code, 1009);
    }
    node.drain().await
}

#[tokio::test]
async fn a_message_in_fragments_with_a_ping_between_them_is_one_message() -> anyhow::Result<()> {
    let node = open().start()?;
    let mut client = Client::connect(&node).await?;
    let text = r#"{"id":7,"op":"subscribe","channel":"board/ä"}"#.as_bytes();
    // The cut is inside a character.
    let at = text.iter().position(|&byte| byte == 0xc3).unwrap() + 1;
    let part = |payload: &[u8], opcode, last| {
        Message::Frame(Frame::message(payload.to_vec(), opcode, last))
    };
    let (data, more) = (OpCode::Data(Data::Text), OpCode::Data(Data::Continue));
    client.socket.send(part(&text[..at], data, false)).await?;
    client
        .socket
        .send(Message::Ping(b"between"[..].into()))
        .await?;
    client.socket.send(part(&[], more, false)).await?;
    client.socket.send(part(&text[at..], more, true)).await?;
    assert_eq!(client.frame().await?, Message::Pong(b"between"[..].into()));
    let answer = client.next().await?;
    assert_eq!(
        answer,
        json!({"id": 7, "ok": {"outcome": "snapshot", "reason": "new"}})
    );
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_goodbye_is_answered_in_kind_and_ends_the_connection() -> anyhow::Result<()> {
    let node = open().start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/a", json!({})).await?;
    write_raw(&mut client, &frame(0x88, b"\x03\xe9away")).await?;
    assert_eq!(client.closed().await?.code, 1001);
    let workers = node.gateway.app().workers.clone();
    tidegate_tests::gateway::until("the connection is gone", || {
        workers
            .iter()
            .all(|worker| worker.websocket.get() == 0 && worker.subscriptions.get() == 0)
    })
    .await?;
    node.drain().await
}

#[tokio::test]
async fn a_channel_is_had_once_and_ends_when_it_is_left() -> anyhow::Result<()> {
    let node = open().start()?;
    let mut client = Client::connect(&node).await?;
    client.subscribe("board/a", json!({})).await?;
    client.expect("snapshot").await?;
    let answer = client.try_subscribe("board/a", json!({})).await?;
    assert_eq!(answer["error"]["code"], "already_subscribed");
    let answer = client
        .ask(json!({"op": "unsubscribe", "channel": "board/a"}))
        .await?;
    assert_eq!(answer["ok"], json!({}));
    let position = node.publish("board/a", "A", "1")?;
    node.applied("board", &position).await?;
    pong(&mut client).await?;
    let answer = client
        .ask(json!({"op": "unsubscribe", "channel": "board/a"}))
        .await?;
    assert_eq!(answer["error"]["code"], "not_subscribed");
    client.subscribe("board/a", json!({})).await?;
    // The first encoding serves here too, within its time; then what followed comes behind it.
    let snapshot = client.expect("snapshot").await?;
    if snapshot["rows"]["A"].is_null() {
        assert_eq!(client.expect("update").await?["position"], position);
    }
    drop(client);
    node.drain().await
}

#[tokio::test]
async fn a_record_published_over_the_socket_is_taken_once_by_its_id() -> anyhow::Result<()> {
    let node = open().start()?;
    let mut client = Connect::new().bearer(API_KEY).hello(&node).await?;
    client.subscribe("trades/a", json!({})).await?;
    let publish = |record: Value| json!({"op": "publish", "stream": "trades", "record": record});
    let record = json!({"channel": "a", "data": {"n": 1}, "id": "x"});
    let first = client.ask(publish(record.clone())).await?;
    assert!(first["ok"]["position"].is_string(), "{first}");
    let second = client.ask(publish(record)).await?;
    assert_eq!(
        second["ok"],
        json!({"position": first["ok"]["position"], "duplicate": true})
    );
    let third = client
        .ask(publish(json!({"channel": "a", "data": {"n": 2}})))
        .await?;
    let update = client.expect("update").await?;
    assert_eq!(update["position"], first["ok"]["position"]);
    let update = client.expect("update").await?;
    assert_eq!(update["position"], third["ok"]["position"]);
    for (request, code) in [
        (publish(json!({"channel": "a"})), "bad_record"),
        (publish(json!({"channel": "a b", "data": 1})), "bad_record"),
        (publish(json!(7)), "bad_record"),
        (
            json!({"op": "publish", "stream": "nosuch", "record": {"channel": "a", "data": 1}}),
            "unknown_stream",
        ),
    ] {
        let answer = client.ask(request).await?;
        assert_eq!(answer["error"]["code"], code, "{answer}");
    }
    let mut anybody = Client::connect(&node).await?;
    let answer = anybody
        .ask(publish(json!({"channel": "a", "data": 1})))
        .await?;
    assert_eq!(answer["error"]["code"], "forbidden", "{answer}");
    drop((client, anybody));
    node.drain().await
}
