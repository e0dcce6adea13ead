//! `Update → Frame`: what goes over a socket, encoded once and shared.
//!
//! Does: turns an update into JSON on first need ([`Shared`]), a view into numbered parts ([`Snapshot`]), and wraps JSON
//! for a wire format ([`Wire`]). Owns: the encoded bytes. Never knows: who receives them; a frame holds nothing of its
//! connection. Keeps: I8.

pub mod held;
#[cfg(test)]
pub mod samples;

use std::{
    fmt::Display,
    io::Write as _,
    ops::Bound,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use held::{Held, Share};

use crate::{
    model::{Channel, Moment, Position, RowId, Rows, Update},
    protocol::{rfc6455, write},
};

/// A snapshot's part is closed once it holds so many bytes.
pub const PART_BYTES: usize = 48 * 1024;

/// Updates encoded by this process: with one wire format or three, with one subscriber or a million, one for each update
/// that anybody received.
pub static UPDATES_ENCODED: AtomicU64 = AtomicU64::new(0);
/// Parts of snapshots encoded by this process.
pub static PARTS_ENCODED: AtomicU64 = AtomicU64::new(0);

/// How a message is wrapped for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A WebSocket text frame.
    WebSocket,
    /// A server-sent event in a chunk of HTTP/1.1, with its `id:`.
    Sse,
    /// The same without `id:`, for connections with several channels: their ids come in blocks of their own.
    SseBare,
    /// A server-sent event with its `id:` as it is, for HTTP/1.0, which has no chunks: the body ends with the connection.
    SsePlain,
    /// The same without `id:`.
    SsePlainBare,
}

impl Wire {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// All of them, each in the place that its index names.
    pub const ALL: [Self; 5] = [
        Self::WebSocket,
        Self::Sse,
        Self::SseBare,
        Self::SsePlain,
        Self::SsePlainBare,
    ];
    /// That of an event stream.
    #[must_use]
    pub const fn of_sse(chunked: bool, ids_apart: bool) -> Self {
        match (chunked, ids_apart) {
            (true, false) => Self::Sse,
            (true, true) => Self::SseBare,
            (false, false) => Self::SsePlain,
            (false, true) => Self::SsePlainBare,
        }
    }
    /// The same with its ids, if it has any, in blocks of their own.
    #[must_use]
    pub const fn with_ids_apart(self) -> Self {
        match self {
            Self::Sse => Self::SseBare,
            Self::SsePlain => Self::SsePlainBare,
            other => other,
        }
    }
    /// Whether ids come in blocks of their own.
    #[must_use]
    pub const fn has_ids_apart(self) -> bool {
        matches!(self, Self::SseBare | Self::SsePlainBare)
    }
    const fn has_ids(self) -> bool {
        matches!(self, Self::Sse | Self::SsePlain)
    }
    const fn is_chunked(self) -> bool {
        matches!(self, Self::Sse | Self::SseBare)
    }
    /// What ends the body of an event stream, before the connection ends.
    #[must_use]
    pub const fn last_chunk(self) -> &'static [u8] {
        // RFC 9112, section 7.1.
        if self.is_chunked() { b"0\r\n\r\n" } else { b"" }
    }
    /// For tables by wire format.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::WebSocket => 0,
            Self::Sse => 1,
            Self::SseBare => 2,
            Self::SsePlain => 3,
            Self::SsePlainBare => 4,
        }
    }

    /// Appends one message. `op` is the event's name over SSE, `id` its position.
    pub fn append(self, out: &mut Vec<u8>, op: &str, id: Option<&dyn Display>, json: &[u8]) {
        match self {
            Self::WebSocket => {
                rfc6455::frame_header(rfc6455::Opcode::Text, json.len(), out);
                out.extend_from_slice(json);
            }
            Self::Sse | Self::SseBare | Self::SsePlain | Self::SsePlainBare => {
                self.block(out, |out| {
                    if let Some(id) = id.filter(|_| self.has_ids()) {
                        writeln!(out, "id: {id}").unwrap_or_default();
                    }
                    out.extend_from_slice(b"event: ");
                    out.extend_from_slice(op.as_bytes());
                    out.extend_from_slice(b"\ndata: ");
                    out.extend_from_slice(json);
                    out.extend_from_slice(b"\n\n");
                });
            }
        }
    }

    fn block(self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
        if self.is_chunked() {
            chunk(out, fill);
        } else {
            fill(out);
        }
    }
}

/// An event without data: it sets the reader's last id and fires nothing.
pub fn sse_id(wire: Wire, out: &mut Vec<u8>, id: &dyn Display) {
    wire.block(out, |out| write!(out, "id: {id}\n\n").unwrap_or_default());
}

/// The first event of an event stream, with the time after which a reader comes back by itself. Both in one block: readers
/// other than browsers take `retry` only together with an event.
pub fn sse_hello(wire: Wire, out: &mut Vec<u8>, retry_ms: u64, json: &[u8]) {
    wire.block(out, |out| {
        write!(out, "retry: {retry_ms}\nevent: hello\ndata: ").unwrap_or_default();
        out.extend_from_slice(json);
        out.extend_from_slice(b"\n\n");
    });
}

/// One chunk of HTTP/1.1 (RFC 9112, section 7.1). Its size has leading zeros, so that it is known where it stands.
fn chunk(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(b"000000\r\n");
    let begin = out.len();
    fill(out);
    let size = out.len() - begin;
    for (place, digit) in out[at..at + 6].iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(size >> (4 * place)) & 0xf];
    }
    out.extend_from_slice(b"\r\n");
}

/// An update as all workers, tails and outboxes share it. Its JSON is made by the first who needs it.
#[derive(Debug)]
pub struct Shared {
    /// The update.
    pub update: Update,
    /// When the partition applied it.
    pub applied_at: Moment,
    json: OnceLock<Box<[u8]>>,
}

impl Shared {
    /// Takes an update into sharing.
    #[must_use]
    pub fn new(update: Update, applied_at: Moment) -> Arc<Self> {
        Arc::new(Self {
            update,
            applied_at,
            json: OnceLock::new(),
        })
    }

    /// Its message as JSON.
    pub fn json(&self) -> &[u8] {
        self.json.get_or_init(|| {
            UPDATES_ENCODED.fetch_add(1, Ordering::Relaxed);
            let data = self
                .update
                .change
                .data
                .as_ref()
                .map_or(0, bytes::Bytes::len);
            let mut out = Vec::with_capacity(data + self.update.change.channel.len() + 160);
            write::update(&mut out, &self.update);
            out.into_boxed_slice()
        })
    }

    /// Appends its frame.
    pub fn append(&self, wire: Wire, out: &mut Vec<u8>) {
        wire.append(out, "update", Some(&self.update.position), self.json());
    }

    /// What it holds in memory, about: counted against tails and outboxes.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.update
            .change
            .data
            .as_ref()
            .map_or(0, bytes::Bytes::len)
            * 2
            + 256
    }
}

/// A whole view at one position, encoded part by part as its first reader goes along, and shared by all readers.
#[derive(Debug)]
pub struct Snapshot {
    channel: Channel,
    position: Position,
    rows: Rows,
    parts: Mutex<Parts>,
    abandoned: AtomicBool,
}

/// What is encoded of a snapshot: counted among what encodings hold for as long as somebody has the snapshot.
#[derive(Debug)]
struct Parts {
    encoded: Vec<Part>,
    held: Share,
}

/// One encoded part.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its message.
    pub json: Arc<[u8]>,
    /// The last row in it.
    last_row: Option<RowId>,
    /// Whether it is the last one.
    pub last: bool,
}

impl Snapshot {
    /// A snapshot of `rows` at `position`; its encoding counts among those of `held`.
    #[must_use]
    pub fn new(channel: Channel, position: Position, rows: Rows, held: &Held) -> Arc<Self> {
        Arc::new(Self {
            channel,
            position,
            rows,
            parts: Mutex::new(Parts {
                encoded: Vec::new(),
                held: held.share(),
            }),
            abandoned: AtomicBool::new(false),
        })
    }
    /// Where it was taken.
    #[must_use]
    pub const fn position(&self) -> &Position {
        &self.position
    }
    /// Its rows.
    #[must_use]
    pub const fn rows(&self) -> &Rows {
        &self.rows
    }
    /// Asks its readers to begin again with a newer one: a third encoding of the channel would be needed otherwise.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
    /// Whether its readers are to begin again.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Part `n`, encoded by whoever comes first. Parts are asked for in order.
    pub fn part(&self, n: usize) -> Part {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        while parts.encoded.len() <= n {
            let last = parts.encoded.last();
            let next = self.encode(
                parts.encoded.len(),
                last.and_then(|part| part.last_row.clone()),
            );
            parts.held.add(next.json.len());
            parts.encoded.push(next);
        }
        parts.encoded[n].clone()
    }

    fn encode(&self, n: usize, after: Option<RowId>) -> Part {
        PARTS_ENCODED.fetch_add(1, Ordering::Relaxed);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = self.rows.range((from, Bound::Unbounded)).peekable();
        let (mut out, mut last_row) = (Vec::with_capacity(1024), None);
        write::snapshot_begin(&mut out, &self.channel, n);
        for (id, row) in rows.by_ref() {
            write::snapshot_row(
                &mut out,
                last_row.is_none(),
                id.as_str(),
                row.ts_ms,
                (!row.is_grave()).then_some(&row.data),
            );
            last_row = Some(id.clone());
            if out.len() >= PART_BYTES {
                break;
            }
        }
        let last = rows.peek().is_none();
        write::snapshot_end(&mut out, last.then_some(&self.position as &dyn Display));
        Part {
            json: out.into(),
            last_row,
            last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Epoch, Offset, Row};

    fn position() -> Position {
        Position {
            partition: 0,
            epoch: Epoch::new("e7").unwrap(),
            offset: Offset::new(42),
        }
    }

    #[test]
    fn every_wire_has_its_place() {
        for (place, wire) in Wire::ALL.into_iter().enumerate() {
            assert_eq!(wire.index(), place, "{wire:?}");
        }
    }

    #[test]
    fn what_is_chunked_holds_what_is_plain() {
        for bare in [false, true] {
            let (mut chunked, mut plain) = (Vec::new(), Vec::new());
            for (out, is_chunked) in [(&mut chunked, true), (&mut plain, false)] {
                let wire = Wire::of_sse(is_chunked, bare);
                wire.append(out, "gap", Some(&position()), b"{}");
            }
            let plain = String::from_utf8(plain).unwrap();
            assert_eq!(plain.contains("id: "), !bare, "{plain}");
            let expected = format!("{:06x}\r\n{plain}\r\n", plain.len());
            assert_eq!(String::from_utf8(chunked).unwrap(), expected);
        }
    }

    #[test]
    fn an_update_is_encoded_once_for_all_wires() {
        let change = Change {
            channel: "d/JFK".parse().unwrap(),
            row: RowId::new("B6").unwrap(),
            data: Some("{}".into()),
            ts_ms: 7,
        };
        let shared = Shared::new(
            Update {
                position: position(),
                change,
            },
            Moment::default(),
        );
        let json =
            r#"{"op":"update","channel":"d/JFK","position":"0.e7:42","ts":7,"row":"B6","data":{}}"#;
        let mut out = Vec::new();
        shared.append(Wire::WebSocket, &mut out);
        assert_eq!(
            out,
            [&[0x81, u8::try_from(json.len()).unwrap()], json.as_bytes()].concat()
        );
        out.clear();
        shared.append(Wire::Sse, &mut out);
        let event = format!("id: 0.e7:42\nevent: update\ndata: {json}\n\n");
        assert_eq!(
            String::from_utf8(out.clone()).unwrap(),
            format!("{:06x}\r\n{event}\r\n", event.len())
        );
        assert!(std::ptr::eq(shared.json(), shared.json()));
    }

    #[test]
    fn parts_hold_all_rows_in_order_and_only_the_last_has_the_position() {
        let value: bytes::Bytes = format!("\"{}\"", "x".repeat(1000)).into();
        let rows: Rows = (0..200)
            .map(|i| {
                (
                    RowId::new(&format!("r{i:03}")).unwrap(),
                    Row {
                        data: value.clone(),
                        ts_ms: i,
                        offset: Offset::new(1),
                    },
                )
            })
            .collect();
        let held = Held::default();
        let snapshot = Snapshot::new("d/JFK".parse().unwrap(), position(), rows, &held);
        let (mut seen, mut encoded) = (Vec::new(), 0);
        for n in 0.. {
            let part = snapshot.part(n);
            let json: serde_json::Value = serde_json::from_slice(&part.json).unwrap();
            encoded += part.json.len();
            assert_eq!(held.bytes(), encoded);
            assert_eq!(json["part"], n);
            seen.extend(json["rows"].as_object().unwrap().keys().cloned());
            assert_eq!(json.get("position").is_some(), part.last);
            assert_eq!(json.get("more").is_some(), !part.last);
            if part.last {
                assert!(n >= 4);
                break;
            }
        }
        assert_eq!(
            seen,
            (0..200).map(|i| format!("r{i:03}")).collect::<Vec<_>>()
        );
        drop(snapshot);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn an_empty_view_has_one_part() {
        let (channel, held) = ("d/JFK".parse().unwrap(), Held::default());
        let part = Snapshot::new(channel, position(), Rows::new(), &held).part(0);
        assert!(part.last);
        assert_eq!(
            &*part.json,
            br#"{"op":"snapshot","channel":"d/JFK","part":0,"rows":{},"position":"0.e7:42"}"#
        );
    }
}
