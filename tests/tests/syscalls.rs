//! What a delivery costs in system calls of the real process, counted from outside.
//!
//! `gates.rs` counts the writes that a worker makes on its own sockets; here the kernel's view of all threads counts: whatever
//! the runtime, the allocator, the clock and the partition's task add would show. The one test of its binary: who traces
//! waits for any child of the process.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets something else than it expects ends there"
)]

use std::net::SocketAddr;

use serde_json::json;
use tidegate_tests::{
    http,
    sse::Events,
    traced::Traced,
    websocket::{Client, Connect},
};

/// Half of them over WebSocket, half over SSE.
const SUBSCRIBERS: usize = 400;
const PUBLICATIONS: usize = 25;
const DELIVERIES: u64 = (SUBSCRIBERS * PUBLICATIONS) as u64;
/// Calls for one publication, whoever listens: its connection, its request and answer, and waking who has to do with it.
const EACH_PUBLICATION: u64 = 60;
/// Of these, writes: the answer, and what wakes the other threads.
const EACH_PUBLICATION_WRITES: u64 = 12;
/// Calls of a node that looks after itself meanwhile, some ten a second.
const BESIDES: u64 = 1_000;

struct Subscribers {
    by_websocket: Vec<Client>,
    by_sse: Vec<Events>,
}

impl Subscribers {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let mut all = Self {
            by_websocket: Vec::new(),
            by_sse: Vec::new(),
        };
        for _ in 0..SUBSCRIBERS / 2 {
            let (mut client, _) = Connect::new().open_at(address).await?;
            client
                .send(&json!({"id": 1, "op": "subscribe", "channel": "s/a"}))
                .await?;
            all.by_websocket.push(client);
            all.by_sse
                .push(Events::open(address, "channel=s/a", &[]).await);
        }
        // Their first heartbeats, and the last until the test has ended.
        for client in &mut all.by_websocket {
            client.find(|message| message["op"] == "heartbeat").await?;
        }
        for events in &mut all.by_sse {
            events.event("heartbeat").await;
        }
        Ok(all)
    }

    /// Everybody gets this, and before it nothing that was published.
    async fn get(&mut self, number: usize) -> anyhow::Result<()> {
        for client in &mut self.by_websocket {
            let update = client.find(|message| message["op"] == "update").await?;
            assert_eq!(update["data"], number);
        }
        for events in &mut self.by_sse {
            assert_eq!(events.update().await["data"], number);
        }
        Ok(())
    }
}

async fn publish(address: SocketAddr, number: usize) -> anyhow::Result<()> {
    let record = json!({"channel": "a", "data": number}).to_string();
    let fields = [("content-type", "application/json")];
    let answer = http::send(address, "POST", "/v1/publish/s", &fields, &record).await?;
    assert_eq!(answer.status, 200, "{}", answer.body);
    Ok(())
}

#[tokio::test]
async fn a_delivery_is_one_system_call_of_the_process() -> anyhow::Result<()> {
    let node = Traced::start(&[
        ("TIDEGATE_STREAMS", r#"[{"name":"s","mode":"events"}]"#),
        (
            "TIDEGATE_ACCESS_ANONYMOUS",
            r#"{"channels":["s/*"],"can":["subscribe","publish"]}"#,
        ),
        ("TIDEGATE_LISTEN_WORKERS", "1"),
        ("TIDEGATE_SESSION_HEARTBEAT", "1h"),
    ])?;
    let mut subscribers = Subscribers::connect(node.address).await?;
    // The first one finds buffers and threads that are not there yet.
    publish(node.address, 0).await?;
    subscribers.get(0).await?;
    let before = node.calls();
    for number in 1..=PUBLICATIONS {
        publish(node.address, number).await?;
        subscribers.get(number).await?;
    }
    let calls = node.calls().since(&before);
    let publications = PUBLICATIONS as u64;
    // As many at least: or the calls were not counted.
    let writes = DELIVERIES..=DELIVERIES + publications * EACH_PUBLICATION_WRITES;
    assert!(
        writes.contains(&calls.writes()),
        "{} writes: {calls:?}",
        calls.writes()
    );
    let most = DELIVERIES + publications * EACH_PUBLICATION + BESIDES;
    assert!(calls.all() <= most, "{} calls: {calls:?}", calls.all());
    println!(
        "{DELIVERIES} deliveries: {} writes, {} calls, {:.3} calls a delivery: {calls:?}",
        calls.writes(),
        calls.all(),
        calls.all() as f64 / DELIVERIES as f64
    );
    Ok(())
}
