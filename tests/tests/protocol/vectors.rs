//! Every vector is what the code does, and what the schema accepts.

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use tidegate::{
    model::{
        Change, Channel, Freshness, FreshnessState, Moment, Offset, Position, RowId, StaleReason,
        Token, Update,
    },
    protocol::{
        BadMessage, ClientMessage, CloseCode, Envelope, ErrorCode, Outcome, Refusal,
        SnapshotReason, StartFrom, Subscribe, parse_client,
        write::{self, GapReason},
    },
};

use super::{list, text};

/// A validator for one definition of the schema.
fn schema(definition: &str) -> Validator {
    let mut schema = super::json("docs/protocol.schema.json");
    schema["$ref"] = json!(format!("#/$defs/{definition}"));
    schema.as_object_mut().unwrap().remove("anyOf");
    jsonschema::draft202012::new(&schema).unwrap()
}

fn assert_valid(validator: &Validator, value: &Value, what: &str) {
    let errors: Vec<_> = validator
        .iter_errors(value)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{what}: {value}: {errors:?}");
}

// === what clients send

fn described(parsed: &Result<Envelope, BadMessage>) -> Value {
    let (id, message) = match parsed {
        Ok(Envelope { id, message }) => (id, message),
        Err(BadMessage { id, refusal }) => return json!({"id": id, "error": refusal.code.as_str()}),
    };
    match message {
        ClientMessage::Ping => json!({"id": id, "op": "ping"}),
        ClientMessage::Auth { token } => json!({"id": id, "op": "auth", "token": token}),
        ClientMessage::Unsubscribe { channel } => {
            json!({"id": id, "op": "unsubscribe", "channel": &**channel})
        }
        ClientMessage::Publish(publish) => {
            json!({"id": id, "op": "publish", "stream": publish.stream, "record": publish.record})
        }
        ClientMessage::Subscribe(subscribe) => described_subscribe(*id, subscribe),
    }
}

fn described_subscribe(id: Option<u64>, subscribe: &Subscribe) -> Value {
    let from = subscribe.from.as_ref().map(|from| match from {
        StartFrom::Token(token) => json!(token.to_string()),
        StartFrom::Earliest => json!("earliest"),
    });
    let options = [
        ("from", from),
        ("max_rate", subscribe.max_rate.map(|rate| json!(rate))),
        ("policy", subscribe.policy.map(|policy| json!(policy))),
        ("history", subscribe.history.map(|n| json!(n))),
    ];
    let mut all: Map<String, Value> = Map::new();
    all.extend([
        ("id".to_owned(), json!(id)),
        ("op".to_owned(), json!("subscribe")),
        ("channel".to_owned(), json!(&*subscribe.channel)),
    ]);
    all.extend(
        options
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?))),
    );
    Value::Object(all)
}

#[test]
fn what_clients_send_means_what_the_vectors_say() {
    for vector in list("tests/vectors/client.json", "vectors") {
        let parsed: Vec<_> = parse_client(text(&vector, "text"))
            .iter()
            .map(described)
            .collect();
        assert_eq!(Value::from(parsed), vector["parsed"], "{}", vector["name"]);
    }
}

#[test]
fn the_schema_accepts_exactly_what_has_no_refusal() {
    let schema = schema("client_text");
    for vector in list("tests/vectors/client.json", "vectors") {
        let Ok(message) = serde_json::from_str(text(&vector, "text")) else {
            continue; // no JSON: nothing that a schema could judge
        };
        let parsed = vector["parsed"].as_array().unwrap();
        let fine = match vector["schema"].as_str() {
            None => parsed.iter().all(|one| one.get("error").is_none()),
            Some(word) => word == "accepts",
        };
        assert_eq!(schema.is_valid(&message), fine, "{}", vector["name"]);
    }
}

// === what the gateway sends

fn channel(inputs: &Value) -> Channel {
    text(inputs, "channel").parse().unwrap()
}

fn position(inputs: &Value, field: &str) -> Position {
    text(inputs, field).parse().unwrap()
}

fn refusal(error: &Value) -> Refusal {
    let code = ErrorCode::ALL
        .into_iter()
        .find(|code| code.as_str() == text(error, "code"))
        .unwrap();
    Refusal {
        code,
        message: text(error, "message").to_owned(),
        retry_after_ms: error["retry_after_ms"].as_u64(),
    }
}

fn outcome(inputs: &Value) -> Outcome {
    let reasons = [
        SnapshotReason::New,
        SnapshotReason::TooOld,
        SnapshotReason::EpochChanged,
    ];
    match text(inputs, "outcome") {
        "resumed" => Outcome::Resumed,
        "started" => Outcome::Started,
        "catching_up" => Outcome::CatchingUp,
        _ => Outcome::Snapshot(
            reasons
                .into_iter()
                .find(|r| r.as_str() == text(inputs, "reason"))
                .unwrap(),
        ),
    }
}

fn word<T: serde::de::DeserializeOwned>(inputs: &Value, field: &str) -> T {
    serde_json::from_value(inputs[field].clone()).unwrap()
}

fn written(message: &str, inputs: &Value) -> Vec<u8> {
    let out = &mut Vec::new();
    let id = inputs["id"].as_u64();
    match message {
        "hello" => hello(out, inputs),
        "pong" => write::pong(out),
        "ok" => write::ok(out, id.unwrap()),
        "subscribed" => write::subscribed(out, id.unwrap(), outcome(inputs)),
        "published" => {
            write::published(
                out,
                id.unwrap(),
                text(inputs, "position"),
                inputs["duplicate"] == true,
            );
        }
        "error" => write::error(out, id, &refusal(&inputs["error"])),
        "outcome" => match inputs.get("error") {
            Some(error) => write::outcome(out, &channel(inputs), Err(&refusal(error))),
            None => write::outcome(out, &channel(inputs), Ok(outcome(inputs))),
        },
        "update" => write::update(out, &update(inputs)),
        "snapshot" => snapshot(out, inputs),
        "heartbeat" => {
            let token: Token = text(inputs, "position").parse().unwrap();
            let proved_at = inputs["proved_at_ms"]
                .as_u64()
                .map(|ms| Moment::from_micros(ms * 1000));
            write::heartbeat(out, &channel(inputs), &token, proved_at);
        }
        "freshness" => write::freshness(out, &channel(inputs), freshness(inputs)),
        "gap" => gap(out, inputs),
        "bye" => {
            let code = CloseCode::ALL
                .into_iter()
                .find(|code| code.as_str() == text(inputs, "code"));
            write::bye(out, code.unwrap(), inputs["reconnect_after_ms"].as_u64());
        }
        other => panic!("no message {other}"),
    }
    std::mem::take(out)
}

fn hello(out: &mut Vec<u8>, inputs: &Value) {
    let hello = write::Hello {
        session: text(inputs, "session"),
        node: text(inputs, "node"),
        now: Moment::from_micros(word::<u64>(inputs, "now_ms") * 1000),
        heartbeat_ms: word(inputs, "heartbeat_ms"),
        live_for_ms: word(inputs, "live_for_ms"),
        message_bytes: word(inputs, "message_bytes"),
        channels: word(inputs, "channels"),
    };
    write::hello(out, &hello);
}

fn update(inputs: &Value) -> Update {
    let change = Change {
        channel: channel(inputs),
        row: RowId::new(text(inputs, "row")).unwrap(),
        data: inputs["data"].as_str().map(|data| data.to_owned().into()),
        ts_ms: word(inputs, "ts"),
    };
    Update {
        position: position(inputs, "position"),
        change,
    }
}

fn snapshot(out: &mut Vec<u8>, inputs: &Value) {
    write::snapshot_begin(out, &channel(inputs), word(inputs, "part"));
    for (at, row) in inputs["rows"].as_array().unwrap().iter().enumerate() {
        write::snapshot_row(
            out,
            at == 0,
            text(row, "row"),
            word(row, "ts"),
            row["data"].as_str().map(str::as_bytes),
        );
    }
    let at = inputs["position"]
        .as_str()
        .map(|_| position(inputs, "position"));
    write::snapshot_end(out, at.as_ref().map(|at| at as &dyn std::fmt::Display));
}

fn freshness(inputs: &Value) -> Freshness {
    Freshness {
        state: word::<FreshnessState>(inputs, "state"),
        age_ms: inputs["age_ms"].as_u64(),
        reason: Some(word::<StaleReason>(inputs, "reason")),
    }
}

fn gap(out: &mut Vec<u8>, inputs: &Value) {
    let reasons = [
        GapReason::SlowConsumer,
        GapReason::TooOld,
        GapReason::EpochChanged,
    ];
    let reason = reasons
        .into_iter()
        .find(|reason| reason.as_str() == text(inputs, "reason"))
        .unwrap();
    let (from, to) = (position(inputs, "from"), position(inputs, "to"));
    write::gap(
        out,
        &channel(inputs),
        &from,
        &to,
        inputs["dropped"].as_u64(),
        reason,
    );
}

#[test]
fn what_the_gateway_sends_is_written_as_the_vectors_say() {
    for vector in list("tests/vectors/server.json", "vectors") {
        let out = written(text(&vector, "message"), &vector["inputs"]);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            text(&vector, "json"),
            "{}",
            vector["name"]
        );
    }
}

#[test]
fn the_schema_accepts_what_the_gateway_sends() {
    let schema = schema("server_message");
    for vector in list("tests/vectors/server.json", "vectors") {
        let json = serde_json::from_str(text(&vector, "json")).unwrap();
        assert_valid(&schema, &json, text(&vector, "name"));
    }
    for wrong in [
        json!({"op": "dance"}),
        json!({"op": "bye", "code": "done"}),
        json!({"op": "update", "channel": "a/b", "position": "0.e:1", "ts": 0, "row": ""}),
        json!({"op": "snapshot", "channel": "a/b", "part": 0, "rows": {}}),
        json!({"op": "outcome", "channel": "a/b", "outcome": "snapshot"}),
        json!({"id": 1, "ok": {"outcome": "resumed", "reason": "new"}}),
    ] {
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
}

#[test]
fn clients_are_tested_with_what_a_gateway_sends() {
    let schema = schema("server_message");
    let mut received = 0;
    for vector in list("tests/vectors/behaviour.json", "vectors") {
        let (name, mut now, mut expected) = (text(&vector, "name"), 0, 0);
        for step in vector["steps"].as_array().unwrap() {
            let at = step["at"].as_u64().unwrap();
            assert!(at >= now, "{name}: time goes back at {at}");
            now = at;
            expected += u32::from(step.get("expect").is_some());
            if let Some(message) = step.get("receive") {
                received += 1;
                assert_valid(&schema, message, name);
                let foreign = message
                    .get("channel")
                    .is_some_and(|channel| *channel != vector["channel"]);
                assert!(!foreign, "{name}: {message} is of another channel");
            }
        }
        assert!(expected > 0, "{name} expects nothing");
    }
    assert!(received > 100);
}

// === tokens

#[test]
fn tokens_that_are_good_are_read_and_written() {
    let schema = schema("token");
    for vector in list("tests/vectors/tokens.json", "good") {
        let token: Token = text(&vector, "text")
            .parse()
            .unwrap_or_else(|error| panic!("{vector}: {error}"));
        let canonical = vector["canonical"]
            .as_str()
            .unwrap_or(text(&vector, "text"));
        assert_eq!(token.to_string(), canonical);
        assert_valid(&schema, &vector["text"], "good");
    }
}

#[test]
fn tokens_that_are_bad_are_refused() {
    for vector in list("tests/vectors/tokens.json", "bad") {
        assert!(text(&vector, "text").parse::<Token>().is_err(), "{vector}");
    }
}

#[test]
fn offsets_of_other_engines_are_refused_here_but_part_of_the_protocol() {
    let schema = schema("token");
    for vector in list("tests/vectors/tokens.json", "large") {
        assert!(text(&vector, "text").parse::<Token>().is_err(), "{vector}");
        assert_valid(&schema, &vector["text"], "large");
    }
    assert_eq!(Offset::new(u64::MAX).to_string(), "18446744073709551615");
}
