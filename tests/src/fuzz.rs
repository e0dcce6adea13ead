//! What holds for any bytes from outside.
//!
//! Each check takes bytes, and panics when a promise is broken. `tests/fuzz/run.sh` searches for such bytes with
//! libFuzzer; `tests/seeds.rs` runs the inputs kept in `tests/fuzz/seeds` as ordinary tests.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    ops::ControlFlow,
    str,
};

use bytes::Bytes;
use serde_json::{Value, value::RawValue};
use tidegate::{
    decode::{Decoder, KeyPart},
    model::{Change, NameError, Offset, Record, TOKEN_MAX, Token},
    protocol::{
        BadMessage, Envelope, parse_client,
        rfc6455::{CONTROL_MAX, Event, Limits, Partial, REASON_MAX, Violation, feed},
    },
    publish::record::{self, ID_MAX},
};
use tokio_tungstenite::tungstenite::{
    Message, WebSocket,
    protocol::{Role, WebSocketConfig},
};

/// A check by name.
pub type Target = (&'static str, fn(&[u8]));

/// All checks: each has a file `fuzz/src/bin/NAME.rs` and a folder `fuzz/seeds/NAME`.
pub const TARGETS: &[Target] = &[
    ("frames", frames),
    ("message", message),
    ("record", record),
    ("token", token),
];

const LIMITS: Limits = Limits { message_bytes: 300 };
/// What a partial may hold beside the message.
const OVERHEAD: usize = 500;

/// A client's frames: where reads cut them changes nothing, memory stays bounded, and an independent reader hears the
/// same. The first byte says how long the reads are.
///
/// # Panics
/// When that does not hold.
pub fn frames(data: &[u8]) {
    let Some((&step, stream)) = data.split_first() else {
        return;
    };
    let whole = hear(stream, stream.len());
    let cut = hear(stream, 1 + usize::from(step));
    assert_eq!(whole, cut, "reads of {} bytes", 1 + usize::from(step));

    let (mut ours, verdict) = whole;
    if let Some(Heard::Close(code @ Some(1014), reason)) = ours.last_mut() {
        // Registered after the RFC, and unknown to tungstenite, which then says this instead.
        (*code, *reason) = (Some(1002), "Protocol violation".to_owned());
    }
    let theirs = hear_with_tungstenite(stream);
    match verdict {
        Ok(()) => assert_eq!(ours, theirs),
        // The violation itself is not compared: tungstenite allows more, and notices later.
        Err(_) => assert!(
            theirs.starts_with(&ours),
            "{ours:?} is no beginning of {theirs:?}"
        ),
    }
}

#[derive(Debug, PartialEq)]
enum Heard {
    Text(String),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

fn hear(stream: &[u8], step: usize) -> (Vec<Heard>, Result<(), Violation>) {
    let (mut heard, mut partial) = (Vec::new(), None);
    for piece in stream.chunks(step.max(1)) {
        let mut shared = piece.to_vec();
        let verdict = feed(&mut partial, &mut shared, &LIMITS, &mut |event| {
            heard.push(checked(event));
            ControlFlow::Continue(())
        });
        assert!(
            partial.as_deref().map_or(0, Partial::held_bytes) <= LIMITS.message_bytes + OVERHEAD
        );
        if verdict.is_err() {
            return (heard, verdict);
        }
    }
    (heard, Ok(()))
}

fn checked(event: Event<'_>) -> Heard {
    match event {
        Event::Text(text) => {
            assert!(text.len() <= LIMITS.message_bytes);
            Heard::Text(text.to_owned())
        }
        Event::Ping(payload) => {
            assert!(payload.len() <= CONTROL_MAX);
            Heard::Ping(payload.to_vec())
        }
        Event::Pong(payload) => {
            assert!(payload.len() <= CONTROL_MAX);
            Heard::Pong(payload.to_vec())
        }
        Event::Close { code, reason } => {
            assert!(reason.len() <= REASON_MAX && (code.is_some() || reason.is_empty()));
            Heard::Close(code, reason.to_owned())
        }
    }
}

/// Reads what a client sent; takes what it is answered.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}
impl Write for Wire<'_> {
    fn write(&mut self, answer: &[u8]) -> io::Result<usize> {
        Ok(answer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Up to a close frame, an error, or the end.
fn hear_with_tungstenite(stream: &[u8]) -> Vec<Heard> {
    let config = WebSocketConfig::default()
        .read_buffer_size(512)
        .max_message_size(Some(LIMITS.message_bytes))
        .max_frame_size(Some(LIMITS.message_bytes));
    let mut socket = WebSocket::from_raw_socket(Wire(stream), Role::Server, Some(config));
    let mut heard = Vec::new();
    while let Ok(message) = socket.read() {
        match message {
            Message::Text(text) => heard.push(Heard::Text(text.to_string())),
            Message::Ping(payload) => heard.push(Heard::Ping(payload.to_vec())),
            Message::Pong(payload) => heard.push(Heard::Pong(payload.to_vec())),
            Message::Close(frame) => {
                let code = frame.as_ref().map(|f| f.code.into());
                let reason = frame.map_or_else(String::new, |f| f.reason.to_string());
                heard.push(Heard::Close(code, reason));
                break;
            }
            Message::Binary(_) | Message::Frame(_) => break,
        }
    }
    heard
}

/// A client's token: what parses prints, within the limit, to what parses to the same.
///
/// # Panics
/// When that does not hold.
pub fn token(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(token) = text.parse::<Token>() else {
        return;
    };
    let printed = token.to_string();
    assert!(printed.len() <= text.len() && text.len() <= TOKEN_MAX);
    let again: Result<Token, NameError> = printed.parse();
    assert_eq!(again.as_ref(), Ok(&token));
    let positions = token.positions();
    assert!(positions.is_sorted_by(|a, b| a.partition < b.partition));
    assert!(
        positions
            .iter()
            .all(|p| token.position(p.partition) == Some(p))
    );
}

/// A client's text message: one answer for each message of an array, and each keeps its own id.
///
/// # Panics
/// When that does not hold.
pub fn message(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let parsed = parse_client(text);
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(messages) if messages.len() <= ARRAY_MAX => {
            assert_eq!(messages.len(), parsed.len());
            for (message, parsed) in messages.iter().zip(&parsed) {
                keeps_its_id(message.get(), parsed);
            }
        }
        Ok(_) => assert!(matches!(&*parsed, [Err(BadMessage { id: None, .. })])),
        Err(_) => {
            assert_eq!(parsed.len(), 1);
            keeps_its_id(text, &parsed[0]);
        }
    }
}

/// Messages of an array at most, by `docs/protocol.md`.
const ARRAY_MAX: usize = 4096;

/// The fields of an object, as they are written.
type Fields<'a> = BTreeMap<String, &'a RawValue>;

fn keeps_its_id(text: &str, parsed: &Result<Envelope, BadMessage>) {
    let fields = serde_json::from_str::<Fields<'_>>(text);
    let id = fields.as_ref().ok().and_then(|fields| fields.get("id"));
    let id = id
        .and_then(|id| id.get().parse().ok())
        .filter(|&id| id <= 1 << 53);
    match parsed {
        Ok(message) => {
            assert!(fields.is_ok(), "{message:?} is no object");
            assert_eq!(message.id, id);
        }
        Err(refused) => assert!(refused.id.is_none() || refused.id == id, "{refused:?}"),
    }
}

/// A record of the publish API: its data stays the same JSON, without line breaks, and its key reads back.
///
/// # Panics
/// When that does not hold.
pub fn record(line: &[u8]) {
    let Ok(record) = record::parse("s", line) else {
        return;
    };
    assert!(
        record
            .id
            .is_none_or(|id| !id.is_empty() && id.len() <= ID_MAX)
    );
    let fields: Fields<'_> = serde_json::from_slice(line).expect("a record is an object");
    same_json(fields["data"].get(), record.change.data.as_ref());
    reads_back(record.key, record.event_time_ms, &record.change);
}

fn same_json(sent: &str, kept: Option<&Bytes>) {
    let Some(kept) = kept else {
        assert_eq!(sent, "null");
        return;
    };
    let kept = str::from_utf8(kept).expect("data is text");
    assert!(!kept.contains(['\n', '\r']));
    assert!(serde_json::from_str::<&RawValue>(kept).is_ok());
    // What is nested deeply, or counts too far, is JSON, but no `Value`.
    if let Ok(sent) = serde_json::from_str::<Value>(sent) {
        assert_eq!(serde_json::from_str::<Value>(kept).ok(), Some(sent));
    }
}

fn reads_back(key: Bytes, event_time_ms: Option<i64>, change: &Change) {
    let names = |pointer: &str| KeyPart::Pointer(pointer.to_owned());
    let stored = Record {
        offset: Offset::new(1),
        key,
        value: change.data.clone(),
        event_time_ms,
        append_time_ms: 5,
        expired: false,
    };
    // A trusted log's values are not looked at again; to an untrusting reader they are good as well.
    for trusted in [true, false] {
        let again = Decoder::new("s", names("/0"), Some(names("/1")), trusted)
            .decode(&stored)
            .expect("what was accepted is understood");
        assert_eq!(
            (&again.channel, &again.row, &again.data),
            (&change.channel, &change.row, &change.data)
        );
        assert_eq!(again.ts_ms, event_time_ms.unwrap_or(5));
    }
}
