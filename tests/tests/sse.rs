//! Event streams: the bytes, the ids, resuming, refusals, slow readers.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;
use tidegate::streams::partition_of;
use tidegate_tests::{
    gateway::{Node, Setup, until},
    sse::{Block, Events},
    wire::{Wire, ask, get, request_bytes},
};
use tokio::time::Instant;

fn start(setup: &Setup) -> Node {
    setup.start().expect("a gateway")
}

fn view() -> Node {
    start(&Setup::new().open().view("s"))
}

/// The name of a channel that is in this partition.
fn named(partition: u32, partitions: u32) -> String {
    let mut names = (0..).map(|n| format!("c{n}"));
    let here = |name: &String| partition_of(name, "", partitions) == partition;
    names.find(here).expect("a name")
}

fn offset(id: &str) -> u64 {
    let (_, offset) = id.split_once(':').expect("a position");
    offset.parse().expect("an offset")
}

#[tokio::test]
async fn the_head_says_that_nobody_may_store_or_buffer_it() {
    let node = view();
    let events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    let head = |name| events.head.get(name);
    assert_eq!(
        head("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(head("cache-control"), Some("no-store, no-transform"));
    assert_eq!(head("x-accel-buffering"), Some("no"));
    assert_eq!(head("transfer-encoding"), Some("chunked"));
    assert_eq!(head("content-length"), None);
    assert!(head("date").is_some());
}

#[tokio::test]
async fn the_bytes_are_one_block_a_chunk_with_six_digits_of_size() {
    let node = view();
    let mut wire = Wire::open(node.gateway.address()).await;
    wire.request("GET", "/v1/sse?channel=s/a", &[], b"").await;
    wire.head().await;
    let mut blocks = Vec::new();
    for _ in 0..3 {
        let size = wire.exactly(8).await;
        assert_eq!(&size[6..], b"\r\n");
        let digits = std::str::from_utf8(&size[..6]).unwrap();
        assert!(
            digits
                .bytes()
                .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit)),
            "{digits}"
        );
        let len = usize::from_str_radix(digits, 16).unwrap();
        blocks.push(String::from_utf8(wire.exactly(len).await).unwrap());
        assert_eq!(wire.exactly(2).await, b"\r\n");
    }
    let (retry, hello) = blocks[0].split_once('\n').unwrap();
    assert!(retry.starts_with("retry: "), "{blocks:?}");
    assert!(hello.starts_with("event: hello\ndata: {\"op\":\"hello\","));
    assert_eq!(
        blocks[1],
        "event: outcome\ndata: {\"op\":\"outcome\",\"channel\":\"s/a\",\"outcome\":\"snapshot\",\"reason\":\"new\"}\n\n"
    );
    assert!(blocks[2].starts_with("id: 0.") && blocks[2].contains("\nevent: snapshot\ndata: {"));
    assert!(
        blocks.iter().all(|block| block.ends_with("\n\n")),
        "{blocks:?}"
    );
}

#[tokio::test]
async fn one_channel_has_its_ids_in_its_frames() {
    let node = view();
    let mut events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    let hello = events.next().await.unwrap();
    let retry = hello.retry.unwrap();
    assert!((1000..3000).contains(&retry), "{retry}");
    assert!(hello.is("hello") && hello.id.is_none());
    for field in ["now_ms", "heartbeat_ms", "live_for_ms"] {
        assert!(hello.json()[field].is_u64(), "{field}");
    }
    let snapshot = events.event("snapshot").await;
    assert_eq!(snapshot.id.as_deref(), snapshot.json()["position"].as_str());
    // The first live needs a proof, and that comes in a heartbeat.
    let beat = events.event("heartbeat").await;
    assert_eq!(beat.id.as_deref(), beat.json()["position"].as_str());
    assert!(beat.json()["proved_at_ms"].is_u64());
    for row in 0..5 {
        let position = node.publish("s/a", &row.to_string(), "1").unwrap();
        let update = events.until(|block| !block.is("heartbeat")).await;
        assert!(update.is("update") && !update.is_id_only());
        assert_eq!(update.id.as_deref(), Some(position.as_str()));
        assert_eq!(update.json()["position"], position.as_str());
    }
}

#[tokio::test]
async fn a_large_snapshot_comes_in_parts_and_only_the_last_has_an_id() {
    let node = view();
    let value = format!("\"{}\"", "x".repeat(1000));
    let rows = (0..300).map(|row| (format!("r{row:04}"), value.clone()));
    let last = node.publish_all("s/a", rows).unwrap().pop().unwrap();
    node.applied("s", &last).await.unwrap();
    let mut events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    let mut rows = 0;
    for part in 0.. {
        let block = events.event("snapshot").await;
        let json = block.json();
        assert_eq!(json["part"], part);
        rows += json["rows"].as_object().unwrap().len();
        if json["more"] == true {
            assert_eq!((block.id, json.get("position")), (None, None));
            continue;
        }
        assert_eq!(
            (block.id.as_deref(), json["position"].as_str()),
            (Some(last.as_str()), Some(last.as_str()))
        );
        assert!(part >= 5);
        break;
    }
    assert_eq!(rows, 300);
}

/// Reads up to the id-only block that names these offsets; nothing else may carry an id.
async fn ids_until(events: &mut Events, wanted: &[String]) -> String {
    loop {
        let block = events.next().await.expect("a block");
        assert!(block.is_id_only() || block.id.is_none(), "{block:?}");
        let Some(id) = block.id else { continue };
        if id.split(',').eq(wanted.iter()) {
            return id;
        }
    }
}

#[tokio::test]
async fn channels_in_several_partitions_have_their_ids_in_blocks_of_their_own() {
    let node = start(&Setup::new().open().stream("s", "partitions = 3"));
    let names: Vec<_> = [0, 2].map(|partition| named(partition, 3)).into();
    let query = format!("channel=s/{}&channel=s/{}", names[0], names[1]);
    let mut events = Events::open(node.gateway.address(), &query, &[]).await;
    let mut snapshots = 0;
    let first = loop {
        let block = events.next().await.unwrap();
        snapshots += u32::from(block.is("snapshot"));
        if block.is_id_only() {
            break block.id.unwrap();
        }
        assert_eq!(block.id, None);
    };
    assert_eq!(snapshots, 2, "no id before all joins are done");
    let partitions: Vec<_> = first.split(',').map(|position| &position[..2]).collect();
    assert_eq!(partitions, ["0.", "2."]);
    let at: Vec<_> = names
        .iter()
        .map(|name| node.publish(&format!("s/{name}"), "1", "1").unwrap())
        .collect();
    ids_until(&mut events, &at).await;
}

#[tokio::test]
async fn two_channels_in_one_partition_have_one_position() {
    let node = view();
    let mut events = Events::open(node.gateway.address(), "channel=s/a&channel=s/b", &[]).await;
    events.until(Block::is_id_only).await;
    node.publish("s/a", "1", "1").unwrap();
    let last = node.publish("s/b", "1", "1").unwrap();
    ids_until(&mut events, &[last]).await;
}

/// The id that comes before the first snapshot, if there is one.
async fn id_before_snapshot(events: &mut Events) -> Option<String> {
    let block = events
        .until(|block| block.is_id_only() || block.is("snapshot"))
        .await;
    block.id.filter(|_| block.event.is_none())
}

#[tokio::test]
async fn the_id_of_another_log_is_taken_back_before_a_snapshot_takes_its_rows_place() {
    let node = view();
    node.publish("s/a", "1", "1").unwrap();
    let at = node.gateway.address();
    let query = "channel=s/a&channel=s/b&last_event_id=0.another:7";
    let mut events = Events::open(at, query, &[]).await;
    // Cut from here on, it would come back without a position, and not with that of rows it no longer has.
    assert_eq!(id_before_snapshot(&mut events).await.as_deref(), Some(""));
    let mut snapshots = 0;
    let id = events
        .until(|block| {
            snapshots += u32::from(block.is("snapshot"));
            block.is_id_only()
        })
        .await;
    assert_eq!(snapshots, 2, "one id behind both, none between them");
    let id = id.id.unwrap();
    assert!(!id.is_empty() && !id.contains("another"), "{id}");
    // Who has a position of this log, or none, has nothing to give back.
    let query = format!("channel=s/a&channel=s/b&last_event_id={id}");
    let mut events = Events::open(at, &query, &[]).await;
    node.publish("s/a", "1", "2").unwrap();
    let next = events.until(|block| block.id.is_some()).await;
    assert_ne!(next.id.as_deref(), Some(""));
}

#[tokio::test]
async fn what_is_taken_back_is_the_partition_that_became_another() {
    let spread = "placement = \"spread\"\npartitions = 3";
    let node = start(&Setup::new().open().stream("s", spread));
    let at = node.gateway.address();
    let mut events = Events::open(at, "channel=s/a", &[]).await;
    let id = events.until(Block::is_id_only).await.id.unwrap();
    let [first, _, third] = id.split(',').collect::<Vec<_>>()[..] else {
        panic!("three positions: {id}");
    };
    let query = format!("channel=s/a&last_event_id={first},1.another:3,{third}");
    let mut events = Events::open(at, &query, &[]).await;
    let left = id_before_snapshot(&mut events).await;
    assert_eq!(left, Some(format!("{first},{third}")));
}

#[tokio::test]
async fn a_spread_channel_has_a_vector_too() {
    let node = start(
        &Setup::new()
            .open()
            .stream("s", "placement = \"spread\"\npartitions = 3"),
    );
    let mut events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    events.until(Block::is_id_only).await;
    let mut newest = HashMap::new();
    for row in 0..20 {
        let position = node.publish("s/a", &row.to_string(), "1").unwrap();
        newest.insert(position[..1].to_owned(), position);
    }
    let mut wanted: Vec<_> = newest.into_values().collect();
    wanted.sort();
    assert_eq!(wanted.len(), 3);
    ids_until(&mut events, &wanted).await;
}

#[tokio::test]
async fn id_blocks_come_at_most_once_a_second_under_traffic() {
    let node = view();
    let mut events = Events::open(node.gateway.address(), "channel=s/a&channel=s/b", &[]).await;
    // The proofs of both joins: after them, heartbeats are half a minute away.
    let mut beats = 0;
    events
        .until(|block| {
            beats += u32::from(block.is("heartbeat"));
            beats == 2
        })
        .await;
    let began = Instant::now();
    let (mut ids, mut updates) = (Vec::new(), 0);
    while began.elapsed() < Duration::from_millis(2600) {
        node.publish("s/a", "1", "1").unwrap();
        loop {
            let block = events.next().await.unwrap();
            if block.is_id_only() {
                ids.push(began.elapsed());
            }
            if block.is("update") {
                updates += 1;
                break;
            }
        }
    }
    assert!(updates > 20);
    // One at once for the joins, where it has not come yet, then one a second.
    assert!((2..=4).contains(&ids.len()), "{ids:?}");
    for pair in ids.windows(2) {
        assert!(pair[1] - pair[0] > Duration::from_millis(900), "{ids:?}");
    }
}

#[tokio::test]
async fn an_id_block_follows_a_heartbeat_at_once() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .session("heartbeat = \"300ms\"\nlive_for = \"5s\""),
    );
    let mut events = Events::open(node.gateway.address(), "channel=s/a&channel=s/b", &[]).await;
    events.until(Block::is_id_only).await;
    let mut last = node.publish("s/a", "1", "1").unwrap();
    for round in 0..6 {
        // A heartbeat that names the update is behind it; so is its id, and not a second later.
        events
            .until(|block| {
                block.is("heartbeat")
                    && block.json()["channel"] == "s/a"
                    && block.json()["position"] == last.as_str()
            })
            .await;
        let heard = Instant::now();
        ids_until_offset(&mut events, offset(&last)).await;
        assert!(
            heard.elapsed() < Duration::from_millis(700),
            "round {round}: {:?}",
            heard.elapsed()
        );
        last = node.publish("s/a", "1", "1").unwrap();
    }
}

async fn ids_until_offset(events: &mut Events, wanted: u64) {
    events
        .until(|block| {
            block.is_id_only() && offset(block.id.as_deref().unwrap_or_default()) >= wanted
        })
        .await;
}

#[tokio::test]
async fn last_event_id_resumes_with_what_was_missed_and_nothing_else() {
    let node = view();
    let at = node.gateway.address();
    node.publish("s/a", "kept", "1").unwrap();
    let mut events = Events::open(at, "channel=s/a", &[]).await;
    let seen = node.publish("s/a", "1", "1").unwrap();
    events
        .until(|block| block.id.as_deref() == Some(&seen))
        .await;
    drop(events);
    let missed: Vec<_> = ["2", "3"]
        .iter()
        .map(|row| node.publish("s/a", row, "1").unwrap())
        .collect();
    node.publish("s/other", "1", "1").unwrap();
    let empty_header = [("last-event-id", "")];
    for (query, headers) in [
        (
            "channel=s/a".to_owned(),
            &[("last-event-id", seen.as_str())][..],
        ),
        (format!("channel=s/a&last_event_id={seen}"), &[]),
        // The header is what the reader knows; the query is what its page knew when it was made.
        (
            format!("channel=s/a&last_event_id={}", missed[1]),
            &[("last-event-id", seen.as_str())],
        ),
        (
            format!("channel=s/a&last_event_id={seen}"),
            &empty_header[..0],
        ),
    ] {
        let mut events = Events::open(at, &query, headers).await;
        assert_eq!(
            events.event("outcome").await.json()["outcome"],
            "resumed",
            "{query}"
        );
        for position in &missed {
            let next = events
                .until(|block| block.is("update") || block.is("snapshot"))
                .await;
            assert_eq!(next.id.as_ref(), Some(position));
        }
        events.event("heartbeat").await;
    }
    let mut events = Events::open(at, "channel=s/a&last_event_id=", &[]).await;
    let outcome = events.event("outcome").await.json();
    assert_eq!(
        (&outcome["outcome"], &outcome["reason"]),
        (&"snapshot".into(), &"new".into())
    );
}

#[tokio::test]
async fn several_channels_resume_from_their_vector() {
    let node = start(&Setup::new().open().stream("s", "partitions = 3"));
    let at = node.gateway.address();
    let names: Vec<_> = [0, 1, 2]
        .map(|partition| format!("s/{}", named(partition, 3)))
        .into();
    let query = format!("channel={}&channel={}", names[0], names[1]);
    let mut events = Events::open(at, &query, &[]).await;
    let positions: Vec<_> = names[..2]
        .iter()
        .map(|name| node.publish(name, "1", "1").unwrap())
        .collect();
    let id = ids_until(&mut events, &positions).await;
    drop(events);
    let missed = node.publish(&names[1], "2", "2").unwrap();
    // One channel more than before: it is new to the client, the others resume.
    let query = format!("{query}&channel={}", names[2]);
    let mut events = Events::open(at, &query, &[("last-event-id", &id)]).await;
    let (mut outcomes, mut updates, mut snapshots) = (HashMap::new(), Vec::new(), Vec::new());
    loop {
        let block = events.next().await.unwrap();
        if block.is_id_only() {
            break;
        }
        let channel = || block.json()["channel"].as_str().unwrap().to_owned();
        match block.event.as_deref() {
            Some("outcome") => drop(outcomes.insert(channel(), block.json()["outcome"].clone())),
            Some("update") => updates.push(block.json()["position"].clone()),
            Some("snapshot") => snapshots.push(channel()),
            _ => {}
        }
    }
    let outcome = |at: usize| outcomes[&names[at]].as_str().unwrap();
    assert_eq!(
        (outcome(0), outcome(1), outcome(2)),
        ("resumed", "resumed", "snapshot")
    );
    assert_eq!(updates, [Value::from(missed)]);
    assert_eq!(snapshots, [names[2].clone()]);
}

#[tokio::test]
async fn an_id_of_another_epoch_is_a_fresh_start_with_the_reason() {
    let node = view();
    node.publish("s/a", "1", "1").unwrap();
    let mut events = Events::open(
        node.gateway.address(),
        "channel=s/a",
        &[("last-event-id", "0.elsewhere:7")],
    )
    .await;
    let outcome = events
        .until(|block| block.is("outcome") && block.json()["outcome"] != "catching_up")
        .await
        .json();
    assert_eq!(
        (&outcome["outcome"], &outcome["reason"]),
        (&"snapshot".into(), &"epoch_changed".into())
    );
    assert_eq!(
        events.event("snapshot").await.json()["rows"]["1"]["data"],
        1
    );
}

#[tokio::test]
async fn events_start_at_the_present_and_resume_with_every_event() {
    let node = start(&Setup::new().open().events("e"));
    let at = node.gateway.address();
    let before = node.publish("e/a", "", "0").unwrap();
    node.applied("e", &before).await.unwrap();
    let mut events = Events::open(at, "channel=e/a", &[]).await;
    assert_eq!(events.event("outcome").await.json()["outcome"], "started");
    let first = node.publish("e/a", "", "1").unwrap();
    assert_eq!(events.update().await["position"], first.as_str());
    drop(events);
    for n in 2..50 {
        node.publish("e/a", "", &n.to_string()).unwrap();
    }
    let mut events = Events::open(at, "channel=e/a", &[("last-event-id", &first)]).await;
    for n in 2..50 {
        assert_eq!(events.update().await["data"], n);
    }
}

#[tokio::test]
async fn a_drain_says_bye_and_ends_the_body_as_it_must_be_ended() {
    let node = start(&Setup::new().open().stream("s", "partitions = 3"));
    let at = node.gateway.address();
    let names = [0, 1].map(|partition| named(partition, 3));
    let one = format!("channel=s/{}", names[0]);
    let two = format!("{one}&channel=s/{}", names[1]);
    let (mut one, mut two) = (
        Events::open(at, &one, &[]).await,
        Events::open(at, &two, &[]).await,
    );
    one.event("snapshot").await;
    two.until(Block::is_id_only).await;
    let draining = node.drain();
    let reading = async {
        for events in [&mut one, &mut two] {
            let bye = events.event("bye").await;
            assert_eq!(bye.json()["code"], "draining");
            assert!(bye.json()["reconnect_after_ms"].is_u64());
            assert_eq!(events.next().await, None, "the last chunk");
            assert_eq!(events.wire.rest().await, b"", "and nothing behind it");
        }
    };
    let (drained, ()) = tokio::join!(draining, reading);
    drained.expect("nothing is left");
}

#[tokio::test]
async fn what_can_not_be_served_is_refused_before_the_head() {
    let free =
        "anonymous = { channels = [\"s/*\", \"t/*\", \"e/*\", \"gone/*\"], can = [\"subscribe\"] }";
    let node = start(
        &Setup::new()
            .access(free)
            .view("s")
            .view("t")
            .view("private")
            .events("e")
            .limits("channels_per_connection = 3"),
    );
    let at = node.gateway.address();
    for (query, status, code) in [
        ("", 400, "bad_request"),
        ("channel=", 400, "bad_channel"),
        ("channel=s", 400, "bad_channel"),
        ("channel=s/", 400, "bad_channel"),
        ("channel=s/a%0Ab", 400, "bad_channel"),
        ("channel=s/*", 400, "bad_channel"),
        ("channel=gone/a", 404, "unknown_stream"),
        ("channel=private/a", 403, "forbidden"),
        ("channel=s/a&channel=private/a", 403, "forbidden"),
        ("channel=s/a&channel=t/a", 400, "bad_request"),
        ("channel=s/a&channel=s/a", 409, "already_subscribed"),
        (
            "channel=s/a&channel=s/b&channel=s/c&channel=s/d",
            400,
            "too_many_channels",
        ),
        ("channel=s/a&last_event_id=nonsense", 400, "bad_token"),
        ("channel=s/a&last_event_id=7.e:1", 400, "bad_token"),
        ("channel=s/a&max_rate=0", 400, "bad_option"),
        ("channel=s/a&max_rate=NaN", 400, "bad_option"),
        ("channel=s/a&max_rate=1e9", 400, "bad_option"),
        ("channel=s/a&max_rate=fast", 400, "bad_option"),
        ("channel=s/a&policy=best", 400, "bad_option"),
        ("channel=s/a&policy=drop_oldest", 400, "bad_option"),
        ("channel=e/a&policy=conflate", 400, "bad_option"),
        ("channel=e/a&max_rate=1", 400, "bad_option"),
    ] {
        let answer = ask(
            at,
            "GET",
            &format!("/v1/sse?{query}"),
            &[("connection", "close")],
            "",
        )
        .await;
        assert_eq!(answer.status(), status, "{query}: {}", answer.text());
        assert!(!answer.problem(status, code).is_empty(), "{query}");
    }
    let bad = [("last-event-id", "nonsense")];
    ask(at, "GET", "/v1/sse?channel=s/a", &bad, "")
        .await
        .problem(400, "bad_token");
    for method in ["POST", "HEAD", "DELETE"] {
        let mut wire = Wire::open(at).await;
        wire.request(
            method,
            "/v1/sse?channel=s/a",
            &[("connection", "close")],
            b"",
        )
        .await;
        assert_eq!(wire.head().await.status, 405, "{method}");
        wire.rest().await;
    }
    assert_eq!(node.gateway.app().connections(), 0);
}

#[tokio::test]
async fn over_http_1_0_the_events_are_the_same_unchunked_and_the_end_is_the_connections() {
    let node = view();
    let at = node.gateway.address();
    node.publish("s/a", "1", "1").expect("published");
    for keep_alive in ["", "connection: keep-alive\r\n", "connection: close\r\n"] {
        let mut wire = Wire::open(at).await;
        wire.send(format!(
            "GET /v1/sse?channel=s/a HTTP/1.0\r\nhost: gateway.test\r\n{keep_alive}\r\n"
        ))
        .await;
        let head = wire.head().await;
        assert_eq!(head.status, 200);
        assert_eq!(head.get("transfer-encoding"), None);
        assert_eq!(head.get("content-length"), None);
        assert_eq!(head.get("connection"), Some("close"));
        let hello = wire.upto(b"\n\n").await;
        assert!(hello.starts_with(b"retry: "), "no chunk size first");
        let outcome = wire.upto(b"\n\n").await;
        assert!(outcome.starts_with(b"event: outcome\ndata: {"));
        let snapshot = wire.upto(b"\n\n").await;
        let snapshot = String::from_utf8(snapshot).expect("text");
        assert!(snapshot.starts_with("id: 0."), "{snapshot}");
        let mut last = String::new();
        for round in 0..3 {
            let position = node.publish("s/a", "1", &round.to_string());
            last = position.expect("published");
            let expected = format!("id: {last}\nevent: update\n");
            // Heartbeats come between, and what was published while the snapshot was shared.
            loop {
                let block = wire.upto(b"\n\n").await;
                let block = String::from_utf8(block).expect("text");
                assert!(!block.contains('\r'), "{block}");
                if block.starts_with(&expected) {
                    break;
                }
            }
        }
        let mut again = Wire::open(at).await;
        again
            .send(format!(
                "GET /v1/sse?channel=s/a HTTP/1.0\r\nlast-event-id: {last}\r\n\r\n"
            ))
            .await;
        assert_eq!(again.head().await.status, 200);
        again.upto(b"\n\n").await;
        let outcome = again.upto(b"\n\n").await;
        let outcome = String::from_utf8(outcome).expect("text");
        assert!(outcome.contains("\"resumed\""), "{outcome}");
    }
    // Several channels: ids apart, also unchunked; then the end, which is nothing but the connection's.
    let mut wire = Wire::open(at).await;
    wire.send("GET /v1/sse?channel=s/a&channel=s/b HTTP/1.0\r\n\r\n")
        .await;
    assert_eq!(wire.head().await.status, 200);
    let ids = wire.upto(b"\n\nid: ").await;
    assert!(!String::from_utf8(ids).expect("text").contains('\r'));
    drop(wire.upto(b"\n\n").await);
    let (drained, rest) = tokio::join!(node.drain(), wire.rest());
    drained.expect("drained");
    let rest = String::from_utf8(rest).expect("text");
    assert!(rest.contains("event: bye\n"), "{rest}");
    assert!(
        rest.ends_with("}\n\n"),
        "nothing behind the last event: {rest}"
    );
}

#[tokio::test]
async fn a_refused_stream_leaves_the_connection_for_the_next_request() {
    let node = view();
    let mut wire = Wire::open(node.gateway.address()).await;
    wire.request("GET", "/v1/sse?channel=gone", &[], b"").await;
    wire.answer().await.problem(400, "bad_channel");
    wire.request("GET", "/v1/view/s/a", &[], b"").await;
    assert_eq!(wire.answer().await.status(), 200);
    wire.request("GET", "/v1/sse?channel=s/a", &[], b"").await;
    let head = wire.head().await;
    assert_eq!(
        head.get("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let mut events = Events { head, wire };
    events.event("snapshot").await;
    // What a client says behind its request is nothing to an event stream.
    events
        .wire
        .send(request_bytes("GET", "/v1/view/s/a", &[], b""))
        .await;
    let position = node.publish("s/a", "1", "1").unwrap();
    assert_eq!(events.update().await["position"], position.as_str());
}

#[tokio::test]
async fn parameters_that_mean_nothing_are_ignored() {
    let node = view();
    let query = "_=1700000000&channel=s/a&=&&x&y=%ff&CHANNEL=t/b&policy=conflate&max_rate=10";
    let mut events = Events::open(node.gateway.address(), query, &[]).await;
    events.event("snapshot").await;
    let mut escaped = Events::open(node.gateway.address(), "channel=s%2Fa%2Bb", &[]).await;
    assert_eq!(escaped.event("snapshot").await.json()["channel"], "s/a+b");
}

#[tokio::test]
async fn max_rate_flushes_so_often_and_the_last_value_always_comes() {
    let node = view();
    let mut events = Events::open(node.gateway.address(), "channel=s/a&max_rate=4", &[]).await;
    events.event("snapshot").await;
    let (began, mut published) = (Instant::now(), 0u64);
    let (mut flushes, mut last) = (0, Value::Null);
    while began.elapsed() < Duration::from_millis(1500) {
        published += 1;
        node.publish("s/a", "1", &published.to_string()).unwrap();
        tokio::task::yield_now().await;
        if !events.wire.is_quiet() {
            let block = events.next().await.unwrap();
            flushes += u32::from(block.is("update"));
        }
    }
    while last != published {
        last = events.update().await["data"].clone();
        flushes += 1;
    }
    assert!(published > 100);
    assert!(
        (3..=9).contains(&flushes),
        "{flushes} flushes of {published}"
    );
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_values_and_delays_nobody() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .session("heartbeat = \"1s\"\nlive_for = \"9s\""),
    );
    let at = node.gateway.address();
    let mut slow = Events::open(at, "channel=s/a", &[]).await;
    slow.event("heartbeat").await;
    let mut quick = Events::open(at, "channel=s/a", &[]).await;
    quick.event("heartbeat").await;
    let counts = node.gateway.app().workers[0].clone();
    let mut rounds = 0u64;
    // Until the slow one's socket is full, and then ten times over.
    let mut enough = None;
    while enough.is_none_or(|enough| rounds < enough) {
        rounds += 1;
        let value = format!("{{\"n\":{rounds},\"fill\":\"{}\"}}", "x".repeat(2000));
        let rows = (0..100).map(|row| (row.to_string(), value.clone()));
        let last = node.publish_all("s/a", rows).unwrap().pop().unwrap();
        quick
            .until(|block| block.id.as_deref() == Some(&last))
            .await;
        if enough.is_none() && counts.conflated.get() > 0 {
            enough = Some(rounds + 20);
        }
        assert!(rounds < 2000, "the slow reader was never blocked");
    }
    let (mut rows, mut received, mut sent) = (HashMap::new(), 0u64, 0);
    while rows.len() < 100 || rows.values().any(|n| *n != rounds) {
        let block = slow
            .until(|block| block.is("update") || block.is("snapshot"))
            .await;
        let json = block.json();
        if block.is("snapshot") {
            for (row, value) in json["rows"].as_object().unwrap() {
                rows.insert(row.clone(), value["data"]["n"].as_u64().unwrap());
            }
            continue;
        }
        let at = offset(json["position"].as_str().unwrap());
        assert!(at > sent, "what leaves leaves in order");
        sent = at;
        received += 1;
        rows.insert(
            json["row"].as_str().unwrap().to_owned(),
            json["data"]["n"].as_u64().unwrap(),
        );
    }
    assert!(received < rounds * 100, "{received} of {}", rounds * 100);
    let beat = slow.until(|block| block.is("heartbeat")).await;
    assert!(offset(beat.id.as_deref().unwrap()) >= sent);
}

#[tokio::test]
async fn a_slow_reader_whose_policy_is_to_be_disconnected_is_told_and_resumes() {
    let node = start(
        &Setup::new()
            .open()
            .view("s")
            .session("outbox = { bytes = \"64KiB\" }")
            .limits("record_bytes = \"32KiB\"\nmessage_bytes = \"64KiB\""),
    );
    let at = node.gateway.address();
    let mut slow = Events::open(at, "channel=s/a&policy=disconnect", &[]).await;
    slow.event("heartbeat").await;
    // Far more than both socket buffers and the outbox take.
    let value = format!("\"{}\"", "x".repeat(20_000));
    for n in 0..1200 {
        node.publish("s/a", &(n % 50).to_string(), &value).unwrap();
        if n % 20 == 0 {
            // Lets the worker turn.
            get(at, "/v1/view/s/none").await;
        }
    }
    let mut last = None;
    loop {
        let block = slow.next().await.expect("bye before the end");
        last = block.id.clone().or(last);
        if block.is("bye") {
            assert_eq!(block.json()["code"], "slow_consumer");
            break;
        }
    }
    assert_eq!(slow.next().await, None);
    let last = last.unwrap();
    let mut again = Events::open(at, "channel=s/a", &[("last-event-id", &last)]).await;
    assert_eq!(again.event("outcome").await.json()["outcome"], "resumed");
    let missed = again.event("update").await;
    assert!(offset(missed.id.as_deref().unwrap()) > offset(&last));
}

#[tokio::test]
async fn bad_news_is_told_when_the_source_pauses_and_only_a_proof_ends_it() {
    let node = start(
        &Setup::new()
            .open()
            .stream("s", "freshness_slo = \"200ms\"")
            .session("heartbeat = \"500ms\"\nlive_for = \"5s\""),
    );
    let mut events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    events.event("heartbeat").await;
    node.hinder("s", true, Duration::ZERO).unwrap();
    let news = events.event("freshness").await;
    assert_eq!(
        (&news.json()["state"], &news.json()["reason"]),
        (&"stale".into(), &"paused".into())
    );
    assert_eq!(news.id, None);
    let hidden = node.publish("s/a", "1", "1").unwrap();
    node.hinder("s", false, Duration::ZERO).unwrap();
    let mut seen = false;
    let beat = events.until(|block| {
        seen |= block.id.as_deref() == Some(&hidden);
        block.is("heartbeat")
    });
    let beat = beat.await;
    assert!(!seen || offset(beat.id.as_deref().unwrap()) >= offset(&hidden));
}

#[tokio::test]
async fn a_reader_that_goes_is_forgotten() {
    let node = view();
    let at = node.gateway.address();
    let events = Events::open(at, "channel=s/a", &[]).await;
    until("it is counted", || node.gateway.app().connections() == 1)
        .await
        .unwrap();
    drop(events);
    until("it is forgotten", || node.gateway.app().connections() == 0)
        .await
        .unwrap();
}
