//! Publishing over HTTP: what is taken, what is refused and how, and that nobody else pays for it.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tidegate_tests::{
    gateway::{API_KEY, Node, Setup},
    sse::Events,
    wire::{Answer, BEARER, Wire, ask, get, lines_of, sha256_of, within},
};

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

fn setup() -> Setup {
    Setup::new().open().view("s")
}

fn start(setup: &Setup) -> Node {
    setup.start().expect("a gateway")
}

async fn one(address: SocketAddr, record: impl AsRef<[u8]>) -> Answer {
    ask(address, "POST", "/v1/publish/s", &[BEARER, JSON], record).await
}

async fn many(address: SocketAddr, body: impl AsRef<[u8]>) -> Vec<Value> {
    let answer = ask(address, "POST", "/v1/publish/s", &[BEARER, NDJSON], body).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(
        answer.head.get("content-type"),
        Some("application/x-ndjson")
    );
    lines_of(&answer.body)
}

async fn rows(address: SocketAddr, channel: &str) -> Value {
    get(address, &format!("/v1/view/{channel}")).await.json()["rows"].clone()
}

/// An NDJSON request whose body stays open.
struct Open(Wire);

impl Open {
    async fn new(address: SocketAddr) -> Self {
        let mut wire = Wire::open(address).await;
        let chunked = ("transfer-encoding", "chunked");
        wire.request("POST", "/v1/publish/s", &[BEARER, NDJSON, chunked], b"")
            .await;
        Self(wire)
    }
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        let size = format!("{:x}\r\n", bytes.len());
        self.0
            .send([size.as_bytes(), bytes, b"\r\n"].concat())
            .await;
    }
    async fn answers(&mut self) -> Vec<Value> {
        lines_of(&self.0.chunk().await.expect("an answer"))
    }
    async fn end(mut self) -> Vec<Value> {
        self.0.send("0\r\n\r\n").await;
        let mut rest = Vec::new();
        while let Some(chunk) = self.0.chunk().await {
            rest.extend(lines_of(&chunk));
        }
        rest
    }
}

#[tokio::test]
async fn a_record_is_answered_with_its_position_and_is_in_the_view_at_once() {
    let node = start(&setup());
    let at = node.gateway.address();
    let answer = one(
        at,
        r#"{"channel":"JFK","row":"B6","ts":7,"data":{"gate":"A1"}}"#,
    )
    .await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let position = answer.json()["position"].as_str().unwrap().to_owned();
    assert!(
        position.starts_with("0.") && position.ends_with(":1"),
        "{position}"
    );
    assert_eq!(
        rows(at, "s/JFK").await,
        json!({"B6":{"ts":7,"data":{"gate":"A1"}}})
    );
}

#[tokio::test]
async fn answers_come_while_the_request_is_still_open() {
    let node = start(&setup());
    let mut open = Open::new(node.gateway.address()).await;
    open.send("{\"channel\":\"a\",\"data\":1}\n").await;
    let head = open.0.head().await;
    assert_eq!(head.status, 200);
    for line in 1..=3 {
        let answers = open.answers().await;
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0]["line"], line);
        assert!(answers[0]["position"].is_string());
        open.send(format!("{{\"channel\":\"a\",\"data\":{line}}}\n"))
            .await;
    }
    assert_eq!(open.answers().await[0]["line"], 4);
    assert_eq!(open.end().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_bad_line_is_named_and_those_around_it_count() {
    let node = start(&setup());
    let body = concat!(
        "{\"channel\":\"a\",\"row\":\"1\",\"data\":1}\n",
        "{\"channel\":\"a\",\"row\":\"2\",\"data\":\n",
        "\n",
        "{\"channel\":\"a\",\"row\":\"4\",\"data\":4}",
    );
    let answers = many(node.gateway.address(), body).await;
    let lines: Vec<_> = answers
        .iter()
        .map(|answer| answer["line"].clone())
        .collect();
    assert_eq!(lines, [1, 2, 4]);
    assert_eq!(answers[1]["error"]["code"], "bad_record");
    let message = answers[1]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("line 2: "), "{message}");
    let rows = rows(node.gateway.address(), "s/a").await;
    assert_eq!(
        rows.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["1", "4"]
    );
}

#[tokio::test]
async fn a_bad_record_is_422_and_says_what_is_wrong_with_it() {
    let node = start(&setup());
    let long = "r".repeat(257);
    for (record, word) in [
        ("{\"channel\":\"a\",", "EOF"),
        ("", "EOF"),
        ("[\"a\",\"row\",7,{}]", "object"),
        ("{\"data\":1}", "channel"),
        ("{\"channel\":\"a\"}", "data"),
        ("{\"channel\":1,\"data\":1}", "invalid type"),
        (
            "{\"channel\":\"a\",\"data\":1,\"ts\":\"7\"}",
            "ts must be an integer of milliseconds",
        ),
        (
            "{\"channel\":\"a\",\"data\":1,\"ts\":1.5}",
            "ts must be an integer of milliseconds",
        ),
        (
            "{\"channel\":\"a\",\"data\":1,\"ts\":99999999999999999999}",
            "ts must be an integer of milliseconds",
        ),
        (
            "{\"channel\":\"a\",\"data\":1,\"ts\":true}",
            "ts must be an integer of milliseconds",
        ),
        ("{\"channel\":\"a\",\"data\":1,\"rov\":\"1\"}", "rov"),
        ("{\"channel\":\"a b\",\"data\":1}", "/channel"),
        ("{\"channel\":\"a*\",\"data\":1}", "/channel"),
        ("{\"channel\":\"\",\"data\":1}", "/channel"),
        (
            &format!("{{\"channel\":\"a\",\"data\":1,\"row\":\"{long}\"}}"),
            "/row",
        ),
        ("{\"channel\":\"a\",\"data\":1,\"id\":\"\"}", "/id"),
        ("{\"channel\":\"a\",\"data\":NaN}", "expected"),
        ("{\"channel\":\"a\",\"data\":01}", "invalid number"),
        (
            "{\"channel\":\"a\",\"data\":1}{\"channel\":\"a\",\"data\":2}",
            "trailing",
        ),
    ] {
        let detail = one(node.gateway.address(), record)
            .await
            .problem(422, "bad_record");
        assert!(detail.contains(word), "{record}: {detail}");
    }
    assert_eq!(rows(node.gateway.address(), "s/a").await, json!({}));
}

#[tokio::test]
async fn an_oversize_line_is_named_and_the_rest_of_the_stream_goes_on() {
    let node = start(&setup().limits("record_bytes = \"1KiB\""));
    let line = |row: &str, len: usize| {
        format!(
            "{{\"channel\":\"a\",\"row\":\"{row}\",\"data\":\"{}\"}}\n",
            "x".repeat(len)
        )
    };
    let frame = line("r", 0).len() - 1;
    let body = [
        line("1", 10),
        line("2", 100_000),
        line("3", 1024 - frame),
        line("4", 1025 - frame),
        line("5", 10),
    ]
    .concat();
    let answers = many(node.gateway.address(), body).await;
    for (answer, fits) in answers.iter().zip([true, false, true, false, true]) {
        assert_eq!(answer["position"].is_string(), fits, "{answer}");
        if !fits {
            assert_eq!(answer["error"]["code"], "record_too_large");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(
                message.contains(&format!("line {}: ", answer["line"])),
                "{message}"
            );
        }
    }
    assert_eq!(answers.len(), 5);
}

#[tokio::test]
async fn an_oversize_line_at_the_end_without_a_line_break_is_named_too() {
    let node = start(&setup().limits("record_bytes = \"1KiB\""));
    let body = format!(
        "{{\"channel\":\"a\",\"data\":1}}\n{{\"channel\":\"a\",\"data\":\"{}\"}}",
        "x".repeat(3000)
    );
    let answers = many(node.gateway.address(), body).await;
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[1]["error"]["code"], "record_too_large");
}

#[tokio::test]
async fn an_oversize_single_record_is_413_also_when_it_is_much_too_large() {
    let node = start(&setup().limits("record_bytes = \"1KiB\""));
    for len in [1025, 100_000, 4 << 20] {
        let record = format!("{{\"channel\":\"a\",\"data\":\"{}\"}}", "x".repeat(len));
        let answer = one(node.gateway.address(), record).await;
        answer.problem(413, "record_too_large");
    }
}

#[tokio::test]
async fn data_is_forwarded_byte_for_byte() {
    let node = start(&setup());
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let cases = [
        r#"{"b":1,"a":2,"b":3}"#,
        r#"  { "x" : [ 1 , 2 ] }"#,
        "\"Zürich \u{1F6EB} \u{2028}\u{2029}\"",
        r#""\u00fc\ud83d\udeeb\n\r\t\/""#,
        "123456789012345678901234567890.000000000000000000001e-400",
        "-0.0",
        "1E400",
        deep.as_str(),
        "\"data: x\\n\\nevent: bye\"",
        "\"\"",
        "false",
    ];
    let mut events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    events.event("snapshot").await;
    for (at, data) in cases.iter().enumerate() {
        let record = format!("{{\"channel\":\"a\",\"row\":\"{at}\",\"data\":{data}}}");
        let answer = one(node.gateway.address(), &record).await;
        assert_eq!(answer.status(), 200, "{record}: {}", answer.text());
        let line = events.event("update").await.data.unwrap();
        let data = data.trim_start();
        assert!(line.ends_with(&format!("\"data\":{data}}}")), "{line}");
    }
    let view = get(node.gateway.address(), "/v1/view/s/a").await.text();
    for data in cases {
        assert!(view.contains(&format!("\"data\":{}}}", data.trim_start())));
    }
}

#[tokio::test]
async fn line_breaks_outside_strings_are_removed_and_nothing_else() {
    let node = start(&setup());
    let mut events = Events::open(node.gateway.address(), "channel=s/a", &[]).await;
    events.event("snapshot").await;
    let record =
        "{\r\n \"channel\": \"a\",\n \"data\": {\r\n\t\"x\": [1,\r2],\n\n \"y\": \"\\n\"}\n}\n";
    assert_eq!(one(node.gateway.address(), record).await.status(), 200);
    let line = events.event("update").await.data.unwrap();
    assert!(
        line.ends_with("\"data\":{\t\"x\": [1,2], \"y\": \"\\n\"}}"),
        "{line}"
    );
}

#[tokio::test]
async fn raw_line_breaks_within_strings_and_bad_utf8_are_refused() {
    let node = start(&setup());
    let broken = one(
        node.gateway.address(),
        "{\"channel\":\"a\",\"data\":\"x\ny\"}",
    )
    .await;
    broken.problem(422, "bad_record");
    let bytes = b"{\"channel\":\"a\",\"data\":\"\xff\xfe\"}";
    one(node.gateway.address(), bytes)
        .await
        .problem(422, "bad_record");
}

#[tokio::test]
async fn null_deletes_the_row() {
    let node = start(&setup());
    let at = node.gateway.address();
    let mut events = Events::open(at, "channel=s/a", &[]).await;
    events.event("snapshot").await;
    many(at, "{\"channel\":\"a\",\"row\":\"1\",\"data\":1}\n{\"channel\":\"a\",\"row\":\"2\",\"data\":2}\n{\"channel\":\"a\",\"row\":\"1\",\"data\": null }\n").await;
    let deleted = events
        .until(|block| block.is("update") && block.json()["deleted"] == true)
        .await;
    assert_eq!(deleted.json()["row"], "1");
    assert!(deleted.json().get("data").is_none());
    assert_eq!(rows(at, "s/a").await.as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn a_repeated_id_is_answered_with_the_first_position_and_not_taken_again() {
    let node = start(&setup());
    let at = node.gateway.address();
    let first = one(at, r#"{"channel":"a","data":1,"id":"x"}"#).await.json();
    assert!(first.get("duplicate").is_none());
    let again = one(at, r#"{"channel":"a","data":2,"id":"x"}"#).await.json();
    assert_eq!(
        again,
        json!({"position": first["position"], "duplicate": true})
    );
    let lines = many(at, "{\"channel\":\"a\",\"data\":3,\"id\":\"x\"}\n{\"channel\":\"a\",\"data\":4,\"id\":\"y\"}\n{\"channel\":\"a\",\"data\":5,\"id\":\"y\"}\n").await;
    assert_eq!(
        lines[0],
        json!({"line":1,"position":first["position"],"duplicate":true})
    );
    assert!(lines[1].get("duplicate").is_none());
    assert_eq!(
        lines[2],
        json!({"line":3,"position":lines[1]["position"],"duplicate":true})
    );
    assert_eq!(rows(at, "s/a").await[""]["data"], 4);
}

#[tokio::test]
async fn an_idempotency_key_is_the_id_of_a_single_record() {
    let node = start(&setup());
    let at = node.gateway.address();
    let send = async |key: &str, data: u32| {
        let record = format!("{{\"channel\":\"a\",\"data\":{data}}}");
        ask(
            at,
            "POST",
            "/v1/publish/s",
            &[BEARER, JSON, ("idempotency-key", key)],
            record,
        )
        .await
    };
    let first = send("k-1", 1).await.json();
    let again = send("k-1", 2).await.json();
    assert_eq!(
        again,
        json!({"position": first["position"], "duplicate": true})
    );
    let named = one(at, r#"{"channel":"a","data":3,"id":"k-1"}"#)
        .await
        .json();
    assert_eq!(named["duplicate"], true);
    assert!(send("k-2", 4).await.json().get("duplicate").is_none());
    send("", 5).await.problem(400, "bad_request");
    send(&"k".repeat(129), 6).await.problem(400, "bad_request");
}

#[tokio::test]
async fn an_event_time_in_the_value_is_that_of_the_row_and_of_the_update() {
    let node = start(
        &Setup::new()
            .open()
            .stream("s", "event_time = \"$value/at\""),
    );
    let at = node.gateway.address();
    let mut events = Events::open(at, "channel=s/a", &[]).await;
    for (data, ts) in [
        (r#"{"at":"1970-01-01T00:00:01.5Z"}"#, 1500),
        (r#"{"at":77}"#, 77),
        // What is no time leaves what the publisher says.
        (r#"{"at":"soon"}"#, 9),
        ("1", 9),
        ("null", 9),
    ] {
        let record = format!("{{\"channel\":\"a\",\"row\":\"r\",\"ts\":9,\"data\":{data}}}");
        assert_eq!(one(at, record).await.status(), 200);
        assert_eq!(events.update().await["ts"], ts, "{data}");
        let row = rows(at, "s/a").await["r"].clone();
        let of_row = if data == "null" {
            Value::Null
        } else {
            json!(ts)
        };
        assert_eq!(row["ts"], of_row, "{data}");
    }
    let page = tidegate_tests::http::get(node.gateway.admin_address(), "/metrics").await;
    let page = page.expect("metrics").body;
    let counted = "tidegate_source_untimed_records_total{stream=\"s\",partition=\"0\"} 2";
    assert!(page.contains(counted), "{page}");
}

#[tokio::test]
async fn a_full_view_takes_changes_and_deletions_but_no_new_rows() {
    let node = start(&Setup::new().open().stream("s", "view_max = { rows = 2 }"));
    let at = node.gateway.address();
    let record =
        |row: u32, data: &str| format!("{{\"channel\":\"a\",\"row\":\"{row}\",\"data\":{data}}}");
    let send = async |row: u32, data: &str| one(at, record(row, data)).await;
    assert_eq!(send(1, "1").await.status(), 200);
    assert_eq!(send(2, "2").await.status(), 200);
    send(3, "3").await.problem(422, "view_full");
    let other = one(at, r#"{"channel":"b","row":"3","data":3}"#).await;
    assert_eq!(other.status(), 200, "another channel has room of its own");
    assert_eq!(send(1, "9").await.status(), 200);
    assert_eq!(send(2, "null").await.status(), 200);
    assert_eq!(send(3, "3").await.status(), 200);
    let lines = many(at, format!("{}\n{}\n", record(7, "7"), record(1, "1"))).await;
    assert_eq!(lines[0]["error"]["code"], "view_full");
    assert!(
        lines[1]["position"].is_string(),
        "a full view is no reason to refuse what follows: {}",
        lines[1]
    );
    let counts = &node.gateway.app().counts;
    assert_eq!(counts.view_full.get(), 2);
    assert_eq!(counts.publish_refused.get(), 0);
}

#[tokio::test]
async fn beyond_the_rate_a_record_is_429_with_a_time_and_later_lines_of_the_channel_are_after_failed()
 {
    let node = start(&setup().limits("publishes_per_second = 2"));
    let at = node.gateway.address();
    let body: String = (0..40)
        .map(|n| {
            format!(
                "{{\"channel\":\"c{}\",\"row\":\"{n}\",\"data\":1}}\n",
                n % 2
            )
        })
        .collect();
    let lines = many(at, body).await;
    let code = |line: &Value| line["error"]["code"].as_str().map(str::to_owned);
    assert!(lines[0]["position"].is_string());
    let limited: Vec<_> = lines
        .iter()
        .filter(|line| code(line).as_deref() == Some("rate_limited"))
        .collect();
    assert_eq!(limited.len(), 2, "one for each channel: {lines:?}");
    for line in &limited {
        assert!(line["error"]["retry_after_ms"].as_u64().unwrap() > 0);
    }
    for channel in 0..2 {
        let mut of_channel = lines
            .iter()
            .filter(|line| (line["line"].as_u64().unwrap() - 1) % 2 == channel)
            .map(code);
        assert!(of_channel.any(|code| code.as_deref() == Some("rate_limited")));
        assert!(of_channel.all(|code| code.as_deref() == Some("after_failed")));
    }
    let refused = loop {
        let answer = one(at, r#"{"channel":"z","data":1}"#).await;
        if answer.status() != 200 {
            break answer;
        }
    };
    refused.problem(429, "rate_limited");
    let after: u64 = refused.head.get("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&after));
}

#[tokio::test]
async fn who_may_not_publish_is_told_why() {
    let (loader, reader) = (sha256_of(API_KEY), sha256_of("reader-key"));
    let keys = format!(
        r#"[{{"id":"loader","sha256":"{loader}","channels":["s/mine-*"],"can":["publish"]}},
            {{"id":"reader","sha256":"{reader}","channels":["s/*"],"can":["subscribe"]}}]"#
    );
    let node = start(&setup().env("TIDEGATE_ACCESS_API_KEYS", &keys));
    let at = node.gateway.address();
    let send = async |headers: &[(&str, &str)], path: &str, channel: &str| {
        let record = format!("{{\"channel\":\"{channel}\",\"data\":1}}");
        ask(at, "POST", path, headers, record).await
    };
    let reader = ("authorization", "Bearer reader-key");
    let unknown = ("authorization", "Bearer nobody");
    let path = "/v1/publish/s";
    let answer = send(&[unknown], path, "mine-1").await;
    answer.problem(401, "unauthorized");
    assert_eq!(answer.head.get("www-authenticate"), Some("Bearer"));
    send(&[], path, "mine-1").await.problem(403, "forbidden");
    send(&[reader], path, "mine-1")
        .await
        .problem(403, "forbidden");
    send(&[BEARER], path, "yours-1")
        .await
        .problem(403, "forbidden");
    send(&[BEARER], "/v1/publish/other", "mine-1")
        .await
        .problem(403, "forbidden");
    assert_eq!(send(&[BEARER], path, "mine-1").await.status(), 200);
    let body = "{\"channel\":\"mine-1\",\"data\":1}\n{\"channel\":\"yours\",\"data\":1}\n{\"channel\":\"mine-2\",\"data\":1}\n";
    let lines = many(at, body).await;
    assert!(lines[0]["position"].is_string() && lines[2]["position"].is_string());
    assert_eq!(lines[1]["error"]["code"], "forbidden");
}

#[tokio::test]
async fn streams_are_made_by_publishing_only_where_none_are_configured() {
    let record = r#"{"channel":"a","data":1}"#;
    let free = start(&Setup::new().open());
    let at = free.gateway.address();
    let fresh = "/v1/publish/fresh";
    ask(at, "POST", fresh, &[JSON], record)
        .await
        .problem(403, "forbidden");
    get(at, "/v1/view/fresh/a")
        .await
        .problem(404, "unknown_stream");
    assert_eq!(
        ask(at, "POST", fresh, &[BEARER, JSON], record)
            .await
            .status(),
        200
    );
    assert_eq!(
        get(at, "/v1/view/fresh/a").await.json()["rows"][""]["data"],
        1
    );
    for bad in ["UPPER", "a%20b", "-a", "%00"] {
        let path = format!("/v1/publish/{bad}");
        let answer = ask(at, "POST", &path, &[BEARER, JSON], record).await;
        assert!(
            matches!(answer.status(), 403 | 404),
            "{bad}: {}",
            answer.text()
        );
        answer.problem(
            answer.status(),
            if answer.status() == 404 {
                "unknown_stream"
            } else {
                "forbidden"
            },
        );
    }
    for fixed in [setup(), Setup::new().open().env("TIDEGATE_STREAMS", "[]")] {
        let node = start(&fixed);
        let answer = ask(
            node.gateway.address(),
            "POST",
            fresh,
            &[BEARER, JSON],
            record,
        )
        .await;
        answer.problem(404, "unknown_stream");
    }
}

#[tokio::test]
async fn a_publisher_that_does_not_read_its_answers_is_not_read_from_and_loses_nothing() {
    let node = start(&setup());
    let at = node.gateway.address();
    let mut open = Open::new(at).await;
    let line = format!(
        "{{\"channel\":\"a\",\"row\":\"1\",\"data\":1}}{}\n",
        " ".repeat(20)
    );
    let batch = line.repeat(200);
    let chunk = format!("{:x}\r\n{batch}\r\n", batch.len()).into_bytes();
    // Writes until nothing is taken for a while: both socket buffers and the gateway's own are full.
    let (mut lines, mut left) = (0u64, Vec::new());
    loop {
        if left.is_empty() {
            left.clone_from(&chunk);
            lines += 200;
        }
        let took = open.0.send_some(&left);
        left.drain(..took);
        if took == 0 && !open.0.writable_soon().await {
            break;
        }
        assert!(
            lines < 4_000_000,
            "the gateway reads on without being read from"
        );
    }
    assert!(
        one(at, r#"{"channel":"b","data":1}"#).await.status() == 200,
        "others go on"
    );
    let reading = async {
        let head = open.0.head().await;
        assert_eq!(head.status, 200);
        let mut seen = 0;
        let mut rest = std::mem::take(&mut left);
        rest.extend_from_slice(b"0\r\n\r\n");
        loop {
            let took = open.0.send_some(&rest);
            rest.drain(..took);
            let Some(answers) = open.0.chunk().await else {
                return seen;
            };
            for answer in lines_of(&answers) {
                seen += 1;
                assert_eq!(answer["line"], seen);
                assert!(answer["position"].is_string(), "{answer}");
            }
        }
    };
    assert_eq!(within("all answers", reading).await, lines);
}

#[tokio::test]
async fn a_byte_at_a_time_is_the_same_as_all_at_once() {
    let node = start(&setup());
    let mut open = Open::new(node.gateway.address()).await;
    let body = "{\"channel\":\"a\",\"data\":\"ü\"}\r\n\r\n{\"channel\":\"a\",\"data\":2}";
    for byte in body.as_bytes() {
        open.send([*byte]).await;
    }
    open.0.head().await;
    let answers = open.end().await;
    let lines: Vec<_> = answers
        .iter()
        .map(|answer| answer["line"].clone())
        .collect();
    assert_eq!(lines, [1, 3]);
    assert!(
        answers.iter().all(|answer| answer["position"].is_string()),
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_publisher_that_goes_in_the_middle_of_a_line_has_published_the_lines_before_it() {
    let node = start(&setup());
    let at = node.gateway.address();
    let mut open = Open::new(at).await;
    open.send(
        "{\"channel\":\"a\",\"row\":\"1\",\"data\":1}\n{\"channel\":\"a\",\"row\":\"2\",\"da",
    )
    .await;
    open.0.head().await;
    assert_eq!(open.answers().await.len(), 1);
    drop(open);
    // A complete record whose line was cut before its end is no record either.
    let mut open = Open::new(at).await;
    open.send("{\"channel\":\"a\",\"row\":\"3\",\"data\":3}\n{\"channel\":\"a\",\"row\":\"4\",\"data\":4}").await;
    open.0.head().await;
    assert_eq!(open.answers().await.len(), 1);
    drop(open);
    // The connection's end has been seen once a request on a fresh one, behind it, is answered twice over.
    for _ in 0..2 {
        assert_eq!(one(at, r#"{"channel":"b","data":1}"#).await.status(), 200);
    }
    let rows = rows(at, "s/a").await;
    assert_eq!(
        rows.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["1", "3"]
    );
}

#[tokio::test]
async fn other_methods_and_kinds_of_paths_are_problems_too() {
    let node = start(&setup());
    let at = node.gateway.address();
    ask(at, "GET", "/v1/publish/s", &[BEARER], "")
        .await
        .problem(405, "bad_request");
    ask(at, "POST", "/v1/publish/%ff", &[BEARER], "{}")
        .await
        .problem(400, "bad_request");
    ask(at, "POST", "/v1/publish/", &[BEARER], "{}")
        .await
        .problem(404, "not_found");
}
