//! Views over HTTP: as they are, how fresh they are, and long-polls that answer on something newer.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{Node, Setup},
    wire::{Answer, Wire, ask, get, within},
};
use tokio::time::Instant;

fn start(setup: &Setup) -> Node {
    setup.start().expect("a gateway")
}

fn view() -> Node {
    start(&Setup::new().open().view("s"))
}

/// Publishes a row, and waits until a view shows it.
async fn put(node: &Node, channel: &str, row: &str, data: &str) -> String {
    let position = node.publish(channel, row, data).expect("published");
    let stream = channel.split_once('/').expect("stream/name").0;
    node.applied(stream, &position).await.expect("applied");
    position
}

async fn seen(address: SocketAddr, path: &str, tag: &str) -> Answer {
    ask(address, "GET", path, &[("if-none-match", tag)], "").await
}

fn tag(answer: &Answer) -> String {
    answer.head.get("etag").expect("an ETag").to_owned()
}

/// A long-poll that has been sent, and that the gateway holds.
async fn poll(node: &Node, path: &str, tag: &str) -> Wire {
    let mut wire = Wire::open(node.gateway.address()).await;
    let before = node.gateway.app().counts.requests.get();
    wire.request("GET", path, &[("if-none-match", tag)], b"")
        .await;
    tidegate_tests::gateway::until("the poll is with the gateway", || {
        node.gateway.app().counts.requests.get() > before
    })
    .await
    .expect("a poll");
    wire
}

#[tokio::test]
async fn a_view_has_its_rows_its_position_and_how_fresh_it_is() {
    let node = view();
    let at = node.gateway.address();
    let position = put(&node, "s/JFK", "B6", "{\"gate\":\"A1\"}").await;
    put(&node, "s/JFK", "", "7").await;
    let answer = get(at, "/v1/view/s/JFK").await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.get("content-type"), Some("application/json"));
    assert_eq!(answer.head.get("cache-control"), Some("no-cache"));
    assert_eq!(answer.head.get("tidegate-freshness"), Some("live"));
    let age: u64 = answer.head.get("tidegate-age-ms").unwrap().parse().unwrap();
    assert!(age < 5000);
    let json = answer.json();
    assert_eq!(json["channel"], "s/JFK");
    assert_eq!(json["freshness"]["state"], "live");
    assert_eq!(json["freshness"]["age_ms"], age);
    assert_eq!(json["rows"]["B6"]["data"], json!({"gate":"A1"}));
    assert_eq!(json["rows"][""]["data"], 7);
    assert_eq!(
        tag(&answer),
        format!("\"{}\"", json["position"].as_str().unwrap())
    );
    assert_ne!(json["position"], position.as_str());
    assert_eq!(json.as_object().unwrap().len(), 4);
}

#[tokio::test]
async fn a_channel_without_records_is_an_empty_view() {
    let node = view();
    let json = get(node.gateway.address(), "/v1/view/s/nothing")
        .await
        .json();
    assert_eq!(json["rows"], json!({}));
    assert_eq!(json["freshness"]["state"], "live");
}

#[tokio::test]
async fn names_with_slashes_and_escapes_are_found() {
    let node = view();
    put(&node, "s/a/b/ü%", "1", "1").await;
    let answer = get(node.gateway.address(), "/v1/view/s/a/b/%C3%BC%25").await;
    assert_eq!(answer.json()["channel"], "s/a/b/ü%");
    assert_eq!(answer.json()["rows"]["1"]["data"], 1);
    let answer = get(node.gateway.address(), "/v1/view/s%2Fa%2Fb%2F%C3%BC%25").await;
    assert_eq!(answer.json()["rows"]["1"]["data"], 1);
}

#[tokio::test]
async fn what_was_seen_is_304_and_what_is_newer_is_200() {
    let node = view();
    let at = node.gateway.address();
    put(&node, "s/a", "1", "1").await;
    let first = get(at, "/v1/view/s/a").await;
    for tag in [tag(&first), format!("W/{}", tag(&first))] {
        let again = seen(at, "/v1/view/s/a", &tag).await;
        assert_eq!((again.status(), again.body.len()), (304, 0));
        assert_eq!(again.head.get("etag"), first.head.get("etag"));
    }
    put(&node, "s/other", "1", "1").await;
    assert_eq!(
        seen(at, "/v1/view/s/a", &tag(&first)).await.status(),
        304,
        "another channel is no news"
    );
    put(&node, "s/a", "1", "2").await;
    let newer = seen(at, "/v1/view/s/a", &tag(&first)).await;
    assert_eq!(newer.status(), 200);
    assert_eq!(newer.json()["rows"]["1"]["data"], 2);
    for garbage in ["*", "\"\"", "garbage", "\"0.zz:5\"", "\"x\", \"y\""] {
        assert_eq!(
            seen(at, "/v1/view/s/a", garbage).await.status(),
            200,
            "{garbage}"
        );
    }
}

#[tokio::test]
async fn a_long_poll_answers_on_something_newer_and_on_nothing_else() {
    let node = view();
    let at = node.gateway.address();
    put(&node, "s/a", "1", "1").await;
    let seen = tag(&get(at, "/v1/view/s/a").await);
    let mut poll = poll(&node, "/v1/view/s/a?wait=30", &seen).await;
    // Another channel of the same partition, and a proof after it: neither is news of this one.
    let noise = put(&node, "s/b", "1", "1").await;
    let other = get(at, "/v1/view/s/b").await.json();
    assert_eq!(other["position"], noise.as_str());
    assert_eq!(poll.unread(), b"");
    let newer = node.publish("s/a", "1", "2").unwrap();
    let answer = poll.answer().await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json()["rows"]["1"]["data"], 2);
    assert_eq!(answer.json()["position"], newer.as_str());
}

#[tokio::test]
async fn a_long_poll_that_hears_nothing_is_304_when_its_time_is_over() {
    let node = view();
    put(&node, "s/a", "1", "1").await;
    let seen = tag(&get(node.gateway.address(), "/v1/view/s/a").await);
    let began = Instant::now();
    let mut poll = poll(&node, "/v1/view/s/a?wait=1", &seen).await;
    put(&node, "s/b", "1", "1").await;
    let answer = poll.answer().await;
    assert_eq!(answer.status(), 304);
    assert_eq!(tag(&answer), seen);
    assert!(began.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_long_poll_answers_on_a_deletion() {
    let node = view();
    put(&node, "s/a", "1", "1").await;
    let seen = tag(&get(node.gateway.address(), "/v1/view/s/a").await);
    let mut poll = poll(&node, "/v1/view/s/a?wait=30", &seen).await;
    node.publish("s/a", "1", "null").unwrap();
    assert_eq!(poll.answer().await.json()["rows"], json!({}));
}

#[tokio::test]
async fn a_long_poll_from_another_epoch_is_answered_at_once() {
    let node = view();
    put(&node, "s/a", "1", "1").await;
    let answer = seen(
        node.gateway.address(),
        "/v1/view/s/a?wait=30",
        "\"0.elsewhere:999\"",
    )
    .await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_wait_that_is_no_number_is_a_problem_and_other_parameters_are_nothing() {
    let node = view();
    let at = node.gateway.address();
    for wait in ["x", "-1", "1.5", "99999999999999999999999"] {
        get(at, &format!("/v1/view/s/a?wait={wait}"))
            .await
            .problem(400, "bad_option");
    }
    assert_eq!(
        get(at, "/v1/view/s/a?_=%ff&&=&x=y&wait=0").await.status(),
        200
    );
}

#[tokio::test]
async fn a_paused_source_makes_the_view_stale_with_its_age_and_reason_and_resuming_heals_it() {
    let node = start(&Setup::new().open().stream("s", "freshness_slo = \"200ms\""));
    let at = node.gateway.address();
    put(&node, "s/a", "1", "1").await;
    node.hinder("s", true, Duration::ZERO).unwrap();
    let stale = becomes(at, "/v1/view/s/a", "stale").await;
    let json = stale.json();
    assert_eq!(json["freshness"]["reason"], "paused");
    assert_eq!(json["rows"]["1"]["data"], 1, "it still says what it knows");
    let age = json["freshness"]["age_ms"].as_u64().unwrap();
    assert_eq!(
        stale.head.get("tidegate-age-ms"),
        Some(age.to_string().as_str())
    );
    node.publish("s/a", "1", "2").unwrap();
    let hidden = get(at, "/v1/view/s/a").await.json();
    assert_eq!(
        (&hidden["rows"]["1"]["data"], &hidden["freshness"]["state"]),
        (&json!(1), &json!("stale"))
    );
    node.hinder("s", false, Duration::ZERO).unwrap();
    let healed = becomes(at, "/v1/view/s/a", "live").await;
    assert_eq!(healed.json()["rows"]["1"]["data"], 2);
    assert!(healed.json()["freshness"].get("reason").is_none());
}

/// Asks until the view is in this state.
async fn becomes(address: SocketAddr, path: &str, state: &str) -> Answer {
    let asking = async {
        loop {
            let answer = get(address, path).await;
            if answer.head.get("tidegate-freshness") == Some(state) {
                return answer;
            }
        }
    };
    within(state, asking).await
}

#[tokio::test]
async fn a_spread_view_is_the_union_of_its_partitions_and_its_tag_a_vector() {
    let node = start(
        &Setup::new()
            .open()
            .stream("s", "placement = \"spread\"\npartitions = 4"),
    );
    let at = node.gateway.address();
    for row in 0..20 {
        put(&node, "s/a", &row.to_string(), &row.to_string()).await;
    }
    let answer = get(at, "/v1/view/s/a").await;
    let json = answer.json();
    assert_eq!(json["rows"].as_object().unwrap().len(), 20);
    let token = json["position"].as_str().unwrap();
    let partitions: Vec<_> = token.split(',').map(|position| &position[..2]).collect();
    assert_eq!(partitions, ["0.", "1.", "2.", "3."]);
    assert_eq!(seen(at, "/v1/view/s/a", &tag(&answer)).await.status(), 304);
    let mut poll = poll(&node, "/v1/view/s/a?wait=30", &tag(&answer)).await;
    node.publish("s/a", "3", "\"news\"").unwrap();
    assert_eq!(poll.answer().await.json()["rows"]["3"]["data"], "news");
    // A tag that names only some of the partitions knows nothing of the others.
    let part = format!("\"{}\"", token.split(',').next().unwrap());
    assert_eq!(seen(at, "/v1/view/s/a?wait=30", &part).await.status(), 200);
}

#[tokio::test]
async fn a_spread_view_is_not_answered_by_who_is_behind_in_one_partition_and_ahead_in_another() {
    let node = start(
        &Setup::new()
            .open()
            .stream("s", "placement = \"spread\"\npartitions = 4"),
    );
    let at = node.gateway.address();
    for row in 0..20 {
        put(&node, "s/a", &row.to_string(), "1").await;
    }
    let old = tag(&get(at, "/v1/view/s/a").await);
    let position = put(&node, "s/a", "3", "2").await;
    let partition = position.split('.').next().unwrap();
    // Another node was further in all partitions but the one that has something newer here.
    let ahead = old.trim_matches('"').split(',').map(|position| {
        let (place, offset) = position.split_once(':').unwrap();
        let offset: u64 = offset.parse().unwrap();
        let is_newer = place.split('.').next() == Some(partition);
        format!("{place}:{}", if is_newer { offset } else { offset + 9 })
    });
    let ahead = format!("\"{}\"", ahead.collect::<Vec<_>>().join(","));
    assert_eq!(seen(at, "/v1/view/s/a", &old).await.status(), 200);
    seen(at, "/v1/view/s/a", &ahead)
        .await
        .problem(503, "retry_later");
}

#[tokio::test]
async fn several_views_come_in_one_answer_in_the_order_asked_for() {
    let node = view();
    let at = node.gateway.address();
    for channel in ["a", "b"] {
        put(
            &node,
            &format!("s/{channel}"),
            "1",
            &format!("\"{channel}\""),
        )
        .await;
    }
    let answer = views(
        at,
        &json!({"channels": ["s/b", "s/a", "s/none"]}).to_string(),
    )
    .await;
    assert_eq!(answer.status(), 200);
    let json = answer.json();
    let found: Vec<&Value> = json["views"]
        .as_array()
        .unwrap()
        .iter()
        .map(|view| &view["channel"])
        .collect();
    assert_eq!(found, ["s/b", "s/a", "s/none"]);
    assert_eq!(json["views"][0]["rows"]["1"]["data"], "b");
    assert_eq!(json["views"][0]["freshness"]["state"], "live");
    assert!(json["views"][0]["position"].is_string());
    assert_eq!(
        views(at, "{\"channels\":[]}").await.json(),
        json!({"views": []})
    );
}

async fn views(address: SocketAddr, body: &str) -> Answer {
    let json = ("content-type", "application/json");
    ask(address, "POST", "/v1/views", &[json], body).await
}

#[tokio::test]
async fn several_views_are_refused_whole_with_the_reason() {
    let node = start(
        &Setup::new()
            .access(
                "anonymous = { channels = [\"s/*\", \"e/*\", \"gone/*\"], can = [\"subscribe\"] }",
            )
            .view("s")
            .view("private")
            .events("e"),
    );
    let at = node.gateway.address();
    let of = |channels: &[&str]| json!({ "channels": channels }).to_string();
    views(at, &of(&["s/a", "private/a"]))
        .await
        .problem(403, "forbidden");
    views(at, &of(&["s/a", "gone/a"]))
        .await
        .problem(404, "unknown_stream");
    views(at, &of(&["s/a", "e/a"]))
        .await
        .problem(400, "bad_request");
    views(at, &of(&["s/a", "no-slash"]))
        .await
        .problem(400, "bad_channel");
    let many: Vec<String> = (0..101).map(|n| format!("s/{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    views(at, &of(&many))
        .await
        .problem(400, "too_many_channels");
    assert_eq!(views(at, &of(&many[..100])).await.status(), 200);
    for broken in [
        "",
        "{",
        "[]",
        "[[\"s/a\"]]",
        "{\"channels\":\"s/a\"}",
        "{\"channels\":[1]}",
        "{\"channels\":[],\"more\":1}",
    ] {
        views(at, broken).await.problem(400, "bad_request");
    }
    ask(at, "POST", "/v1/views", &[], "{\"channels\":[]}")
        .await
        .problem(400, "bad_request");
    ask(at, "GET", "/v1/views", &[], "")
        .await
        .problem(405, "bad_request");
}

#[tokio::test]
async fn what_is_no_view_is_refused_with_the_reason() {
    let node = start(
        &Setup::new()
            .access(
                "anonymous = { channels = [\"s/*\", \"e/*\", \"gone/*\"], can = [\"subscribe\"] }",
            )
            .view("s")
            .view("private")
            .events("e"),
    );
    let at = node.gateway.address();
    get(at, "/v1/view/e/a").await.problem(400, "bad_request");
    get(at, "/v1/view/gone/a")
        .await
        .problem(404, "unknown_stream");
    get(at, "/v1/view/private/a")
        .await
        .problem(403, "forbidden");
    get(at, "/v1/view/s").await.problem(400, "bad_channel");
    get(at, "/v1/view/s/").await.problem(400, "bad_channel");
    get(at, "/v1/view/s/a%20b")
        .await
        .problem(400, "bad_channel");
    get(at, "/v1/view/s/a*").await.problem(400, "bad_channel");
    get(at, "/v1/view/s/%ff").await.problem(400, "bad_request");
    get(at, "/v1/view/").await.problem(404, "not_found");
    ask(at, "POST", "/v1/view/s/a", &[], "")
        .await
        .problem(405, "bad_request");
}

#[tokio::test]
async fn a_large_view_comes_whole() {
    let node = view();
    let value = format!("\"{}\"", "x".repeat(1000));
    let rows = (0..8000).map(|row| (format!("r{row:05}"), value.clone()));
    let positions = node.publish_all("s/a", rows).unwrap();
    node.applied("s", positions.last().unwrap()).await.unwrap();
    let answer = get(node.gateway.address(), "/v1/view/s/a").await;
    let json = answer.json();
    assert!(answer.body.len() > 8_000_000);
    let rows = json["rows"].as_object().unwrap();
    assert_eq!(rows.len(), 8000);
    assert!(
        rows.values()
            .all(|row| row["data"].as_str().unwrap().len() == 1000)
    );
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let node = view();
    put(&node, "s/a", "1", "1").await;
    let mut wire = Wire::open(node.gateway.address()).await;
    for path in [
        "/v1/view/s/a",
        "/v1/view/gone/a",
        "/v1/view/s/a",
        "/nowhere",
        "/",
    ] {
        wire.request("GET", path, &[], b"").await;
        let answer = wire.answer().await;
        assert_eq!(
            answer.status() == 200,
            matches!(path, "/v1/view/s/a" | "/"),
            "{path}"
        );
    }
    wire.request("HEAD", "/v1/view/s/a", &[], b"").await;
    let head = wire.head().await;
    assert_eq!(head.status, 200);
    wire.request("GET", "/v1/view/s/a", &[("connection", "close")], b"")
        .await;
    assert_eq!(wire.answer().await.status(), 200);
    assert_eq!(wire.rest().await, b"");
}
