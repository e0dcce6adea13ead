//! Clients that mean harm: floods, trickles, silence, readers who hardly read. Each ends within its time, and nobody else
//! loses anything.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::net::SocketAddr;

use serde_json::{Value, json};
use tidegate::{protocol::CloseCode, telemetry::Counter};
use tidegate_tests::{
    gateway::{API_KEY, Node, Setup, found, pace, until},
    websocket::{Client, Closed, Connect},
    wire::{Wire, request_bytes, within},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

fn setup(limits: &str) -> Setup {
    Setup::new().open().view("s").limits(limits)
}

async fn write_raw(client: &mut Client, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(client.socket.get_mut().write_all(bytes).await?)
}

/// A masked frame, its mask all zero.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match u8::try_from(payload.len()) {
        Ok(len) if len < 126 => bytes.push(0x80 | len),
        _ => {
            bytes.push(0xfe);
            bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// How a connection ends, once the socket takes nothing more or there is nothing more to send.
async fn end_of(client: &mut Client) -> anyhow::Result<u16> {
    Ok(client.closed().await?.code)
}

fn closed_as(node: &Node, code: CloseCode) -> u64 {
    let place = CloseCode::ALL.iter().position(|&other| other == code);
    let counts = &node.gateway.app().workers[0];
    let of = |closed: &[Counter]| closed[place.unwrap()].get();
    of(&counts.closed_websocket) + of(&counts.closed_sse)
}

/// That a connection that behaves still gets what is published.
async fn others_go_on(node: &Node) -> anyhow::Result<()> {
    let mut other = Client::connect(node).await?;
    other.subscribe("s/others", json!({})).await?;
    other.expect("snapshot").await?;
    node.publish("s/others", "1", "1")?;
    other.expect("update").await?;
    Ok(())
}

#[tokio::test]
async fn a_flood_that_asks_for_nothing_is_answered_so_often_and_ends() -> anyhow::Result<()> {
    let node = setup("messages_per_second = 1\nchannels_per_connection = 100").start()?;
    let check = async |what: &str, message: Vec<u8>, answered: bool| {
        let mut client = Client::connect(&node).await?;
        // Into one segment or several: the gateway may close before it has all of it.
        drop(write_raw(&mut client, &message.repeat(2000)).await);
        let mut answers = 0;
        let code = loop {
            match client.frame().await? {
                tokio_tungstenite::tungstenite::Message::Close(frame) => {
                    break u16::from(frame.unwrap().code);
                }
                _ => answers += 1,
            }
        };
        assert_eq!(code, 4003, "{what}");
        // A hundred at once, and one a second while it goes on.
        let expected = if answered { 100..=400 } else { 0..=0 };
        assert!(expected.contains(&answers), "{what}: {answers} answers");
        anyhow::Ok(())
    };
    check("pings", frame(0x89, b"x"), true).await?;
    check("pongs", frame(0x8a, b"x"), false).await?;
    check("the op ping", frame(0x81, br#"{"op":"ping"}"#), true).await?;
    check(
        "unknown ops",
        frame(0x81, br#"{"id":1,"op":"dance"}"#),
        true,
    )
    .await?;
    let forged = frame(0x81, br#"{"id":1,"op":"auth","token":"x"}"#);
    check("tokens that do not hold", forged, true).await?;
    others_go_on(&node).await?;
    Ok(())
}

#[tokio::test]
async fn noise_costs_as_much_as_it_has_bytes() -> anyhow::Result<()> {
    let node = setup("messages_per_second = 1\nchannels_per_connection = 100").start()?;
    let mut client = Client::connect(&node).await?;
    let noise = frame(0x81, &[b'x'; 60_000]);
    // Fifteen each, of a hundred; one a second comes back.
    for _ in 0..6 {
        write_raw(&mut client, &noise).await?;
        let answer = client.next().await?;
        assert_eq!(answer["error"]["code"], "bad_message");
    }
    write_raw(&mut client, &noise).await?;
    assert_eq!(end_of(&mut client).await?, 4003);
    assert_eq!(closed_as(&node, CloseCode::RateLimited), 1);
    Ok(())
}

#[tokio::test]
async fn subscribing_too_often_is_refused_and_passes() -> anyhow::Result<()> {
    let node = setup("subscribes_per_second = 4\nchannels_per_connection = 3").start()?;
    let mut client = Client::connect(&node).await?;
    let mut refused = None;
    for _ in 0..100 {
        let answer = client.try_subscribe("s/a", json!({})).await?;
        if answer["ok"].is_null() {
            refused = Some(answer["error"].clone());
            break;
        }
        client
            .ask(json!({"op": "unsubscribe", "channel": "s/a"}))
            .await?;
    }
    let refused = refused.expect("a hundred at once were too few");
    assert_eq!(refused["code"], "rate_limited", "{refused}");
    let wait = refused["retry_after_ms"].as_u64().expect("when");
    assert!((1..=250).contains(&wait), "{wait}");
    found("the rate permits another one", async || {
        let answer = client.try_subscribe("s/a", json!({})).await?;
        Ok(answer["error"].is_null().then_some(()))
    })
    .await
}

#[tokio::test]
async fn publishing_over_a_websocket_keeps_to_the_rate_of_its_key() -> anyhow::Result<()> {
    let node = setup("publishes_per_second = 3").start()?;
    let mut client = Connect::new().bearer(API_KEY).hello(&node).await?;
    let record = json!({"channel": "a", "row": "1", "data": 1});
    let mut refused = 0;
    for _ in 0..50 {
        let publish = json!({"op": "publish", "stream": "s", "record": record});
        let answer = client.ask(publish).await?;
        if answer["ok"].is_null() {
            assert_eq!(answer["error"]["code"], "rate_limited", "{answer}");
            assert!(answer["error"]["retry_after_ms"].as_u64() > Some(0));
            refused += 1;
        }
    }
    assert!((1..=47).contains(&refused), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_never_whole_ends_whatever_comes_between() -> anyhow::Result<()> {
    let node = setup("message_timeout = \"500ms\"").start()?;
    let check = async |what: &str, first: &[u8], again: &dyn Fn(usize) -> Vec<u8>| {
        let mut client = Client::connect(&node).await?;
        write_raw(&mut client, first).await?;
        for turn in 0..500 {
            pace(20).await;
            if write_raw(&mut client, &again(turn)).await.is_err()
                || closed_as(&node, CloseCode::TooSlow) > 0
            {
                break;
            }
        }
        let code = end_of(&mut client).await?;
        assert_eq!(code, 4004, "{what}");
        let place = CloseCode::ALL
            .iter()
            .position(|&code| code == CloseCode::TooSlow)
            .unwrap();
        let counts = &node.gateway.app().workers[0];
        assert_eq!(counts.closed_websocket[place].get(), 1, "{what}");
        counts.closed_websocket[place].set(0);
        anyhow::Ok(())
    };
    let head = [0x81, 0xfe, 0xff, 0xff, 0, 0, 0, 0];
    check("a byte at a time", &head, &|_| b"x".to_vec()).await?;
    let begin = frame(0x01, b"{");
    check("fragments without end", &begin, &|_| frame(0x00, b" ")).await?;
    check("pings between fragments", &begin, &|turn| {
        if turn % 5 == 0 {
            frame(0x89, b"x")
        } else {
            frame(0x00, b" ")
        }
    })
    .await?;
    check("a header that stops", &[0x81, 0xfe], &|_| Vec::new()).await?;
    others_go_on(&node).await?;
    Ok(())
}

#[tokio::test]
async fn messages_that_are_cut_but_come_in_time_are_no_harm() -> anyhow::Result<()> {
    let node = setup("message_timeout = \"400ms\"").start()?;
    let mut client = Client::connect(&node).await?;
    let ping = frame(0x81, br#"{"op":"ping"}"#);
    for turn in 0..40 {
        // Always something of the next one behind it: the connection is never between messages.
        let (first, rest) = ping.split_at(1 + turn % (ping.len() - 1));
        if turn == 0 {
            write_raw(&mut client, first).await?;
        }
        let (_, missing) = ping.split_at(1 + turn % (ping.len() - 1));
        assert_eq!(rest.len(), missing.len());
        let (next, _) = ping.split_at(1 + (turn + 1) % (ping.len() - 1));
        write_raw(&mut client, &[missing, next].concat()).await?;
        assert_eq!(client.next().await?["op"], "pong");
        pace(30).await;
    }
    assert_eq!(closed_as(&node, CloseCode::TooSlow), 0);
    Ok(())
}

#[tokio::test]
async fn who_says_a_message_byte_by_byte_wakes_nobody_and_is_heard_with_the_last_one()
-> anyhow::Result<()> {
    let node = setup("").start()?;
    let mut client = Client::connect(&node).await?;
    let turns = || node.gateway.app().workers[0].turns.get();
    let before = turns();
    let padding = " ".repeat(300);
    for byte in frame(0x81, format!("{{\"op\":\"ping\"{padding}}}").as_bytes()) {
        write_raw(&mut client, &[byte]).await?;
        pace(2).await;
    }
    assert_eq!(client.next().await?["op"], "pong");
    // Its header, and the node's own ticks meanwhile.
    assert!(turns() - before < 100, "{} turns", turns() - before);
    client.send(&json!({"op": "ping"})).await?;
    assert_eq!(client.next().await?["op"], "pong");
    Ok(())
}

/// A socket whose kernel takes little for it.
async fn narrow(at: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    within("a connection", socket.connect(at)).await.unwrap()
}

/// Reads a byte now and then, until the connection ends.
async fn sip(mut socket: TcpStream) {
    let mut byte = [0];
    while socket.read(&mut byte).await.is_ok_and(|len| len > 0) {
        pace(20).await;
    }
}

#[tokio::test]
async fn a_reader_of_a_byte_at_a_time_is_closed_over_sse_and_websocket() -> anyhow::Result<()> {
    let node = Setup::new()
        .open()
        .view("s")
        .session("drain_rate_min = { bytes = \"64KiB\", over = \"700ms\" }")
        .session("outbox = { bytes = \"64KiB\", frames = 1000 }")
        .limits("record_bytes = \"32KiB\"")
        .start()?;
    let at = node.gateway.address();
    let mut quick = Client::connect(&node).await?;
    quick.subscribe("s/a", json!({})).await?;
    quick.expect("snapshot").await?;

    let mut events = narrow(at).await;
    events
        .write_all(&request_bytes("GET", "/v1/sse?channel=s/a", &[], b""))
        .await?;
    let mut websocket = narrow(at).await;
    websocket.write_all(&handshake(at)).await?;
    let subscribe = br#"{"id":1,"op":"subscribe","channel":"s/a"}"#;
    websocket.write_all(&frame(0x81, subscribe)).await?;
    let mut sipping = JoinSet::new();
    for socket in [events, websocket] {
        sipping.spawn(sip(socket));
    }
    let counts = node.gateway.app().workers[0].clone();
    until("both have subscribed", || counts.subscriptions.get() == 3).await?;

    let value = format!("\"{}\"", "x".repeat(30_000));
    let mut published = 0u64;
    while closed_as(&node, CloseCode::SlowConsumer) < 2 {
        assert!(published < 10_000, "they are still there");
        let row = (published % 10).to_string();
        let last = node.publish("s/a", &row, &format!("[{published},{value}]"))?;
        node.applied("s", &last).await?;
        let update = quick.expect("update").await?;
        assert_eq!(update["data"][0], published, "the quick one loses nothing");
        published += 1;
    }
    sipping.shutdown().await;
    Ok(())
}

fn handshake(at: SocketAddr) -> Vec<u8> {
    format!(
        "GET /v1/ws HTTP/1.1\r\nhost: {at}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    .into_bytes()
}

/// Two hundred of all kinds, each as long as the gateway lets it.
async fn attack(at: SocketAddr, hostile: &mut JoinSet<()>) {
    for number in 0..200 {
        let mut wire = Wire::open(at).await;
        hostile.spawn(async move {
            match number % 4 {
                // A head that never ends, a byte at a time.
                0 => {
                    wire.send("GET /v1/ws HTTP/1.1\r\nx: ").await;
                    while wire.try_send(b"x") {
                        pace(50).await;
                    }
                }
                // Nothing at all.
                1 => drop(wire.rest().await),
                // A session that floods.
                2 => {
                    wire.send(handshake(at)).await;
                    let flood = frame(0x89, b"x").repeat(1000);
                    while wire.try_send(&flood) {
                        wire.is_quiet();
                        tokio::task::yield_now().await;
                    }
                }
                // A session whose first message comes a byte at a time.
                _ => {
                    wire.send(handshake(at)).await;
                    wire.send([0x81, 0xfe, 0xff, 0xff, 0, 0, 0, 0]).await;
                    while wire.try_send(b"x") {
                        wire.is_quiet();
                        pace(50).await;
                    }
                }
            }
        });
    }
}

#[tokio::test]
async fn two_hundred_hostile_clients_end_and_ten_honest_ones_lose_nothing() -> anyhow::Result<()> {
    let limits = "head_timeout = \"1s\"\nmessage_timeout = \"1s\"";
    let node = Setup::new().open().events("s").limits(limits).start()?;
    let mut honest = Vec::new();
    for _ in 0..10 {
        let mut client = Client::connect(&node).await?;
        client.subscribe("s/a", json!({})).await?;
        honest.push(client);
    }
    let mut hostile = JoinSet::new();
    attack(node.gateway.address(), &mut hostile).await;
    let app = node.gateway.app().clone();
    let sessions = || app.workers[0].websocket.get();
    let mut published = 0u64;
    // While they are at it, and until they are gone.
    while app.counts.http.get() > 0 || sessions() > 10 || published < 200 {
        assert!(published < 5000, "hostile clients are still there");
        node.publish("s/a", "", &published.to_string())?;
        published += 1;
        pace(5).await;
    }
    for client in &mut honest {
        for expected in 0..published {
            let update: Value = client.expect("update").await?;
            assert_eq!(update["data"], expected);
        }
    }
    assert_eq!(sessions(), 10);
    assert_eq!(closed_as(&node, CloseCode::TooSlow), 50);
    assert_eq!(closed_as(&node, CloseCode::RateLimited), 50);
    hostile.shutdown().await;
    drop(honest);
    node.drain().await
}

#[tokio::test]
async fn who_floods_is_told_in_the_close_frame() -> anyhow::Result<()> {
    let node = setup("messages_per_second = 1\nchannels_per_connection = 1").start()?;
    let mut client = Client::connect(&node).await?;
    write_raw(&mut client, &frame(0x89, b"").repeat(50)).await?;
    let Closed { code, reason } = client.closed().await?;
    assert_eq!(code, 4003);
    assert!(reason.contains("limits.messages_per_second"), "{reason}");
    Ok(())
}
