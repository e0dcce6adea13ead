//! Event streams through readers that others wrote: `eventsource-client`, which reconnects by itself, and
//! `eventsource-stream`, a parser. `tests/sse-readers` does the same with what runs in Node.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use eventsource_client::{Client, ClientBuilder, Event, ReconnectOptions, SSE};
use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt, stream};
use launchdarkly_sdk_transport::HyperTransport;
use serde_json::Value;
use tidegate::streams::partition_of;
use tidegate_tests::{
    gateway::{Node, Setup, until},
    wire::{Wire, within},
};
use tokio::time::Instant;

/// The rows that a reader has, as a page would keep them; and how often a row was told what it was already.
#[derive(Debug, Default)]
struct Rows {
    rows: HashMap<String, Value>,
    repeated: usize,
    outcomes: Vec<String>,
}

impl Rows {
    fn take(&mut self, event: &Event) {
        let json: Value = serde_json::from_str(&event.data).expect("JSON");
        assert_eq!(json["op"], event.event_type.as_str());
        match event.event_type.as_str() {
            "snapshot" => {
                for (row, value) in json["rows"].as_object().expect("rows") {
                    self.rows.insert(row.clone(), value["data"].clone());
                }
            }
            "update" => {
                let row = json["row"].as_str().expect("a row").to_owned();
                let old = self.rows.insert(row, json["data"].clone());
                self.repeated += usize::from(old.as_ref() == Some(&json["data"]));
            }
            "outcome" => self
                .outcomes
                .push(json["outcome"].as_str().unwrap_or("error").to_owned()),
            _ => {}
        }
    }
}

fn reader(
    address: SocketAddr,
    query: &str,
) -> impl Stream<Item = eventsource_client::Result<SSE>> + Unpin + use<> {
    let reconnect = ReconnectOptions::reconnect(true)
        .delay(Duration::from_millis(10))
        .build();
    let client = ClientBuilder::for_url(&format!("http://{address}/v1/sse?{query}"))
        .expect("an address")
        .reconnect(reconnect)
        .build_with_transport(HyperTransport::new().expect("a transport"));
    client.stream()
}

/// The next event; breaks and reconnects are passed over.
async fn next(stream: &mut (impl Stream<Item = eventsource_client::Result<SSE>> + Unpin)) -> Event {
    let event = async {
        loop {
            if let Ok(SSE::Event(event)) = stream.next().await.expect("it goes on for ever") {
                return event;
            }
        }
    };
    within("an event", event).await
}

fn start(setup: &Setup) -> Node {
    setup.start().expect("a gateway")
}

#[tokio::test]
async fn a_reader_that_is_cut_again_and_again_has_no_gap_and_no_repeat() {
    let node = start(&Setup::new().open().view("s"));
    let cut = Cut::new(node.gateway.address()).await;
    let mut stream = reader(cut.address, "channel=s/a");
    let (mut rows, mut published) = (Rows::default(), 0);
    for round in 0..3 {
        for _ in 0..20 {
            published += 1;
            node.publish("s/a", &published.to_string(), &published.to_string())
                .unwrap();
        }
        while rows.rows.len() < published {
            rows.take(&next(&mut stream).await);
        }
        cut.all();
        until("the gateway knows", || {
            node.gateway.app().connections() == 0
        })
        .await
        .unwrap();
        // What happens meanwhile is what must not be missed; and one row that changes twice comes once, or twice in order.
        published += 1;
        node.publish("s/a", &published.to_string(), &round.to_string())
            .unwrap();
    }
    while rows.rows.len() < published {
        rows.take(&next(&mut stream).await);
    }
    assert_eq!(rows.repeated, 0);
    assert_eq!(rows.outcomes, ["snapshot", "resumed", "resumed", "resumed"]);
}

#[tokio::test]
async fn a_reader_of_several_partitions_resumes_from_id_blocks_that_fire_no_event() {
    let node = start(&Setup::new().open().stream("s", "partitions = 3"));
    let named = |partition| {
        let mut names = (0..).map(|n| format!("c{n}"));
        names
            .find(|name| partition_of(name, "", 3) == partition)
            .expect("a name")
    };
    let names = [0, 1, 2].map(|partition| format!("s/{}", named(partition)));
    let cut = Cut::new(node.gateway.address()).await;
    let mut stream = reader(
        cut.address,
        &format!(
            "channel={}&channel={}&channel={}",
            names[0], names[1], names[2]
        ),
    );
    let mut rows = Rows::default();
    // Events behind the id block carry its id: so the reader has it.
    loop {
        let event = next(&mut stream).await;
        rows.take(&event);
        if event
            .id
            .as_deref()
            .is_some_and(|id| id.matches(',').count() == 2)
        {
            break;
        }
        node.publish(&names[0], "tick", &rows.rows.len().to_string())
            .unwrap();
    }
    cut.all();
    until("the gateway knows", || {
        node.gateway.app().connections() == 0
    })
    .await
    .unwrap();
    for name in &names {
        node.publish(name, name, "\"missed\"").unwrap();
    }
    while names
        .iter()
        .any(|name| rows.rows.get(name).is_none_or(|data| data != "missed"))
    {
        rows.take(&next(&mut stream).await);
    }
    let mut outcomes = rows.outcomes;
    outcomes.sort();
    assert_eq!(
        outcomes,
        [
            "resumed", "resumed", "resumed", "snapshot", "snapshot", "snapshot"
        ]
    );
}

#[tokio::test]
async fn a_reader_comes_back_when_it_is_told_to() {
    let node = start(&Setup::new().open().view("s"));
    let cut = Cut::new(node.gateway.address()).await;
    let mut stream = reader(cut.address, "channel=s/a");
    while next(&mut stream).await.event_type != "heartbeat" {}
    cut.all();
    let began = Instant::now();
    while next(&mut stream).await.event_type != "hello" {}
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(400)..Duration::from_secs(8)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_parser_hears_the_events_by_name_with_their_ids_and_the_time_to_retry() {
    // The record may come in the snapshot or behind it: then a heartbeat is what follows.
    let often = Setup::new().open().session("heartbeat = \"200ms\"");
    let node = start(&often.view("s"));
    let mut wire = Wire::open(node.gateway.address()).await;
    wire.request("GET", "/v1/sse?channel=s/a", &[], b"").await;
    wire.head().await;
    let chunks = stream::unfold(wire, |mut wire| async move {
        let chunk = wire.chunk().await?;
        // Cut where a network would: a byte, then the rest.
        let (first, rest) = chunk.split_at(1);
        Some((
            stream::iter([Ok::<_, std::io::Error>(first.to_vec()), Ok(rest.to_vec())]),
            wire,
        ))
    });
    let mut events = Box::pin(chunks.flatten().eventsource());
    let mut names = Vec::new();
    let position = node.publish("s/a", "ü", "\"z\u{2028}\"").unwrap();
    loop {
        let event = within("an event", events.next())
            .await
            .expect("more")
            .expect("an event");
        names.push(event.event.clone());
        if event.event == "hello" {
            assert!((1000..3000).contains(&event.retry.expect("retry").as_millis()));
            assert_eq!(event.id, "");
        }
        if event.event == "heartbeat" && event.id == position {
            break;
        }
    }
    assert_eq!(names[..3], ["hello", "outcome", "snapshot"]);
}

/// Where a reader that someone else wrote connects: to a proxy that can cut it.
struct Cut {
    address: SocketAddr,
    cut: tokio::sync::broadcast::Sender<()>,
    tasks: tokio::task::JoinSet<()>,
}

impl Cut {
    async fn new(gateway: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, _) = tokio::sync::broadcast::channel(4);
        let mut tasks = tokio::task::JoinSet::new();
        let cuts = cut.clone();
        tasks.spawn(async move {
            let mut copies = tokio::task::JoinSet::new();
            while let Ok((mut here, _)) = listener.accept().await {
                let mut cut = cuts.subscribe();
                copies.spawn(async move {
                    let mut there = tokio::net::TcpStream::connect(gateway)
                        .await
                        .expect("the gateway");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        });
        Self {
            address,
            cut,
            tasks,
        }
    }

    /// Breaks all connections.
    fn all(&self) {
        self.cut.send(()).expect("somebody to cut");
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}
