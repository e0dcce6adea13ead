//! Limits at the door and of HTTP: who is turned away and how, and that nobody holds a connection by being slow.

use std::net::SocketAddr;

use serde_json::json;
use tidegate::telemetry::Counter;
use tidegate_tests::{
    gateway::{Node, Setup, pace, until},
    sse::Events,
    websocket::Client,
    wire::{Answer, BEARER, Wire, ask, get, lines_of, request_bytes, within},
};
use tokio::net::TcpSocket;

const VIEW: &str = "/v1/view/s/a";
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");

fn start(limit: &str) -> Node {
    let setup = Setup::new().open().view("s").limits(limit);
    setup.start().expect("a gateway")
}

async fn asked(wire: &mut Wire) -> Answer {
    wire.send(request_bytes("GET", VIEW, &[], b"")).await;
    wire.answer().await
}

fn http(node: &Node) -> u64 {
    node.gateway.app().counts.http.get()
}

/// A problem that says when to come back.
fn passes(answer: &Answer, status: u16, code: &str) {
    answer.problem(status, code);
    let after = answer.head.get("retry-after").expect("when to come back");
    assert!(after.parse::<u64>().expect("seconds") > 0, "{after}");
}

#[tokio::test]
async fn an_address_has_so_many_connections_sessions_included() {
    let node = start("connections_per_address = 3");
    let at = node.gateway.address();
    let mut http = Wire::open(at).await;
    assert_eq!(asked(&mut http).await.status(), 200);
    let websocket = Client::connect(&node).await.expect("a session");
    let events = Events::open(at, "channel=s/a", &[]).await;
    assert_eq!(events.head.status, 200);
    for _ in 0..3 {
        let mut beyond = Wire::open(at).await;
        passes(&asked(&mut beyond).await, 429, "too_many_connections");
    }
    let turned = &node.gateway.app().counts.turned;
    assert_eq!(turned.address_connections.get(), 3);
    drop(websocket);
    let again = async {
        loop {
            let mut wire = Wire::open(at).await;
            if asked(&mut wire).await.status() == 200 {
                return;
            }
        }
    };
    within("the seat to be free again", again).await;
}

#[tokio::test]
async fn the_node_takes_so_many_connections_a_second() {
    let node = start("connects_per_second = 5");
    let at = node.gateway.address();
    let mut wires = Vec::new();
    for _ in 0..20 {
        wires.push(Wire::open(at).await);
    }
    let mut refused = 0;
    for wire in &mut wires {
        let answer = asked(wire).await;
        if answer.status() != 200 {
            passes(&answer, 503, "overloaded");
            refused += 1;
        }
    }
    assert!((10..=15).contains(&refused), "{refused} refused");
    let turned = &node.gateway.app().counts.turned;
    assert_eq!(turned.node_rate.get(), refused);
}

#[tokio::test]
async fn a_full_node_says_so_and_counts_it() {
    let node = start("connections = 1");
    let at = node.gateway.address();
    let events = Events::open(at, "channel=s/a", &[]).await;
    assert_eq!(events.head.status, 200);
    passes(&get(at, "/v1/sse?channel=s/a").await, 503, "overloaded");
    assert_eq!(get(at, VIEW).await.status(), 200, "single answers go on");
    assert_eq!(node.gateway.app().counts.turned.connections.get(), 1);
}

#[tokio::test]
async fn a_head_must_come_in_time_whether_it_trickles_or_not() {
    let node = start("head_timeout = \"400ms\"");
    let at = node.gateway.address();
    let mut silent = Wire::open(at).await;
    let mut idle = Wire::open(at).await;
    assert_eq!(asked(&mut idle).await.status(), 200);
    let mut trickling = Wire::open(at).await;
    let request = request_bytes("GET", VIEW, &[("x-fill", &"x".repeat(4000))], b"");
    let mut taken = 0;
    for byte in &request {
        // A closed socket takes bytes until the answer to them comes: so this ends a little later than the connection.
        if !trickling.try_send(&[*byte]) {
            break;
        }
        taken += 1;
        pace(5).await;
    }
    assert!(taken < request.len(), "it took the whole head");
    within("the silent one's end", silent.rest()).await;
    within("the idle one's end", idle.rest()).await;
    until("no connection is left", || http(&node) == 0)
        .await
        .expect("all are closed");
    assert_eq!(get(at, VIEW).await.status(), 200);
}

#[tokio::test]
async fn a_head_has_so_many_fields() {
    let node = start("");
    let at = node.gateway.address();
    let names: Vec<_> = (0..200).map(|number| format!("x-{number}")).collect();
    let fields = |most: usize| -> Vec<(&str, &str)> {
        let fields = names.iter().map(|name| (name.as_str(), "1"));
        fields.take(most).collect()
    };
    let answer = ask(at, "GET", VIEW, &fields(80), b"").await;
    assert_eq!(answer.status(), 200);
    let answer = ask(at, "GET", VIEW, &fields(200), b"").await;
    assert_eq!(answer.status(), 431);
    assert_eq!(get(at, VIEW).await.status(), 200);
}

#[tokio::test]
async fn a_record_must_come_whole_in_time() {
    let node = start("body_timeout = \"300ms\"");
    let at = node.gateway.address();
    for path in ["/v1/publish/s", "/v1/views"] {
        let mut wire = Wire::open(at).await;
        let kind = ("content-type", "application/json");
        wire.request("POST", path, &[BEARER, kind, CHUNKED], b"")
            .await;
        wire.send("1\r\n{\r\n").await;
        wire.answer().await.problem(408, "timed_out");
    }
}

#[tokio::test]
async fn a_line_must_come_whole_in_time_and_those_before_it_count() {
    let node = start("body_timeout = \"400ms\"");
    let at = node.gateway.address();
    let mut wire = Wire::open(at).await;
    wire.request("POST", "/v1/publish/s", &[BEARER, NDJSON, CHUNKED], b"")
        .await;
    let line = "{\"channel\":\"a\",\"row\":\"1\",\"data\":1}\n";
    wire.send(format!("{:x}\r\n{line}\r\n", line.len())).await;
    assert_eq!(wire.head().await.status, 200);
    let first = lines_of(&wire.chunk().await.expect("an answer")).remove(0);
    assert_eq!(first["line"], 1);
    assert!(first["position"].is_string(), "{first}");
    // The next one trickles, a byte at a time, and would never end.
    for _ in 0..1000 {
        if !wire.is_quiet() {
            break;
        }
        wire.try_send(b"1\r\n \r\n");
        pace(10).await;
    }
    assert!(!wire.is_quiet(), "no answer while the line goes on");
    let last = lines_of(&wire.chunk().await.expect("an answer")).remove(0);
    assert_eq!(last["line"], 2);
    assert_eq!(last["error"]["code"], "timed_out", "{last}");
    assert_eq!(get(at, VIEW).await.json()["rows"]["1"]["data"], json!(1));
}

#[tokio::test]
async fn empty_lines_keep_a_publisher_alive() {
    let node = start("body_timeout = \"400ms\"");
    let mut wire = Wire::open(node.gateway.address()).await;
    wire.request("POST", "/v1/publish/s", &[BEARER, NDJSON, CHUNKED], b"")
        .await;
    for _ in 0..20 {
        wire.send(b"1\r\n\n\r\n").await;
        pace(50).await;
    }
    let line = "{\"channel\":\"a\",\"row\":\"1\",\"data\":1}\n";
    wire.send(format!("{:x}\r\n{line}\r\n0\r\n\r\n", line.len()))
        .await;
    assert_eq!(wire.head().await.status, 200);
    let answer = lines_of(&wire.chunk().await.expect("an answer")).remove(0);
    assert!(answer["position"].is_string(), "{answer}");
    assert_eq!(answer["line"], 21);
}

/// A socket whose kernel takes little for it.
async fn narrow(at: SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let connected = within("a connection", socket.connect(at)).await;
    Wire::of(connected.expect("connected"))
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_given_up() {
    let node = start("body_timeout = \"300ms\"");
    let text = format!("\"{}\"", "x".repeat(900_000));
    let rows = (0..8).map(|row| (row.to_string(), text.clone()));
    node.publish_all("s/a", rows).expect("published");
    let mut wire = narrow(node.gateway.address()).await;
    wire.send(request_bytes("GET", VIEW, &[], b"")).await;
    until("it is being answered", || http(&node) == 1)
        .await
        .expect("a connection");
    until("it is given up", || http(&node) == 0)
        .await
        .expect("given up");
    let head = wire.head().await;
    let length: usize = head
        .get("content-length")
        .expect("a length")
        .parse()
        .expect("bytes");
    assert!(wire.rest().await.len() < length);
}

#[tokio::test]
async fn long_polls_beyond_the_bound_are_answered_at_once() {
    let node = start("");
    let at = node.gateway.address();
    node.publish("s/a", "1", "1").expect("published");
    let etag = get(at, VIEW)
        .await
        .head
        .get("etag")
        .expect("a token")
        .to_owned();
    let waiting = &node.gateway.app().long_polls;
    waiting.store(1_000_000, std::sync::atomic::Ordering::Relaxed);
    let path = format!("{VIEW}?wait=60");
    let answer = ask(at, "GET", &path, &[("if-none-match", &etag)], b"").await;
    assert_eq!(answer.status(), 304);
    assert_eq!(
        waiting.load(std::sync::atomic::Ordering::Relaxed),
        1_000_000
    );
}

#[tokio::test]
async fn every_refusal_has_a_counter_of_its_own() {
    let node = start("");
    let turned = node.gateway.app().counts.turned.all();
    let mut words: Vec<_> = turned.iter().map(|(word, _)| *word).collect();
    words.dedup();
    assert_eq!(words.len(), turned.len());
    turned
        .iter()
        .for_each(|(_, counter)| Counter::add(counter, 1));
    let text = tidegate_tests::http::get(node.gateway.admin_address(), "/metrics")
        .await
        .expect("metrics")
        .body;
    for word in words {
        let line = format!("tidegate_transport_refused_connections_total{{limit=\"{word}\"}} 1");
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}
