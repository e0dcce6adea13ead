//! What a client hears, as `docs/protocol.md` has it, read once.
//!
//! Does: JSON → [`Message`]. Owns: nothing. Never knows: sockets, what the messages mean. Keeps: what this version does not
//! know is ignored, what it knows and can't read is said.

use serde_json::Value;
use tidegate::model::{Position, Token};

use super::scene::{Number, Row, Scene, row_of};

/// How a subscription began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Resumed,
    Started,
    CatchingUp,
    New,
    TooOld,
    EpochChanged,
    /// It was refused: the client asks elsewhere.
    Refused,
}

/// Why events will not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    SlowConsumer,
    TooOld,
    EpochChanged,
}

/// A message of a node.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Hello {
        now_ms: i64,
        live_for_ms: i64,
    },
    Outcome {
        channel: usize,
        outcome: Outcome,
    },
    Snapshot {
        channel: usize,
        part: u64,
        rows: Vec<(Row, Number)>,
        /// With the last part.
        at: Option<Position>,
    },
    Update {
        channel: usize,
        at: Position,
        row: Row,
        value: Option<Number>,
    },
    Heartbeat {
        channel: usize,
        token: Token,
        proved_at_ms: Option<i64>,
    },
    Freshness {
        channel: usize,
        age_ms: Option<i64>,
        reason: String,
    },
    Gap {
        channel: usize,
        from: Position,
        to: Position,
        dropped: Option<u64>,
        why: Why,
    },
    /// The answer to a poll; without rows when nothing is newer.
    View {
        channel: usize,
        token: Token,
        rows: Option<Vec<(Row, Number)>>,
        live: bool,
        age_ms: Option<i64>,
    },
    Bye,
}

/// What makes no sense.
pub(super) type Garbled = String;

impl Message {
    /// Of which channel.
    pub(super) const fn channel(&self) -> Option<usize> {
        match self {
            Self::Hello { .. } | Self::Bye => None,
            Self::Outcome { channel, .. }
            | Self::Snapshot { channel, .. }
            | Self::Update { channel, .. }
            | Self::Heartbeat { channel, .. }
            | Self::Freshness { channel, .. }
            | Self::Gap { channel, .. }
            | Self::View { channel, .. } => Some(*channel),
        }
    }

    /// Reads a message; `asked` are the channels of the requests, by id from 1 on. None for what means nothing here.
    pub(super) fn read(
        text: &[u8],
        scene: &Scene,
        asked: &[usize],
    ) -> Result<Option<Self>, Garbled> {
        let garbled = || String::from_utf8_lossy(&text[..text.len().min(300)]).into_owned();
        let value: Value = serde_json::from_slice(text).map_err(|_| garbled())?;
        let read = match value["op"].as_str() {
            Some(op) => Self::of_op(op, &value, scene),
            None => answer(&value, asked).map(Some),
        };
        read.ok_or_else(garbled)
    }

    /// None where it can't be read, nothing inside where it is not known.
    fn of_op(op: &str, value: &Value, scene: &Scene) -> Option<Option<Self>> {
        let channel = || scene.channel(value["channel"].as_str()?);
        let message = match op {
            "hello" => Self::Hello {
                now_ms: value["now_ms"].as_i64()?,
                live_for_ms: value["live_for_ms"].as_i64()?,
            },
            "outcome" => Self::Outcome {
                channel: channel()?,
                outcome: outcome(value)?,
            },
            "snapshot" => Self::Snapshot {
                channel: channel()?,
                part: value["part"].as_u64()?,
                rows: rows(&value["rows"])?,
                at: match value.get("more") {
                    Some(_) => None,
                    None => Some(position(&value["position"])?),
                },
            },
            "update" => Self::Update {
                channel: channel()?,
                at: position(&value["position"])?,
                row: row_of(value["row"].as_str()?)?,
                value: match value.get("deleted") {
                    Some(_) => None,
                    None => Some(number(&value["data"])?),
                },
            },
            "heartbeat" => Self::Heartbeat {
                channel: channel()?,
                token: value["position"].as_str()?.parse().ok()?,
                proved_at_ms: value["proved_at_ms"].as_i64(),
            },
            "freshness" => Self::Freshness {
                channel: channel()?,
                age_ms: value["age_ms"].as_i64(),
                reason: value["reason"].as_str().unwrap_or("none").to_owned(),
            },
            "gap" => Self::Gap {
                channel: channel()?,
                from: position(&value["from"])?,
                to: position(&value["to"])?,
                dropped: value["dropped"].as_u64(),
                why: match value["reason"].as_str()? {
                    "slow_consumer" => Why::SlowConsumer,
                    "too_old" => Why::TooOld,
                    "epoch_changed" => Why::EpochChanged,
                    _ => return None,
                },
            },
            "bye" => Self::Bye,
            _ => return Some(None),
        };
        Some(Some(message))
    }

    /// Reads the body of a view.
    pub(super) fn view(text: &str, channel: usize) -> Result<Self, Garbled> {
        let read = || {
            let value: Value = serde_json::from_str(text).ok()?;
            Some(Self::View {
                channel,
                token: value["position"].as_str()?.parse().ok()?,
                rows: Some(rows(&value["rows"])?),
                live: value["freshness"]["state"] == "live",
                age_ms: value["freshness"]["age_ms"].as_i64(),
            })
        };
        read().ok_or_else(|| text.chars().take(300).collect())
    }
}

/// An answer to a request.
fn answer(value: &Value, asked: &[usize]) -> Option<Message> {
    let at = usize::try_from(value["id"].as_u64()?)
        .ok()?
        .checked_sub(1)?;
    let outcome = match value.get("ok") {
        Some(ok) => outcome(ok)?,
        None => value.get("error").map(|_| Outcome::Refused)?,
    };
    Some(Message::Outcome {
        channel: *asked.get(at)?,
        outcome,
    })
}

fn outcome(value: &Value) -> Option<Outcome> {
    if value.get("error").is_some() {
        return Some(Outcome::Refused);
    }
    Some(
        match (value["outcome"].as_str()?, value["reason"].as_str()) {
            ("resumed", _) => Outcome::Resumed,
            ("started", _) => Outcome::Started,
            ("catching_up", _) => Outcome::CatchingUp,
            ("snapshot", Some("new")) => Outcome::New,
            ("snapshot", Some("too_old")) => Outcome::TooOld,
            ("snapshot", Some("epoch_changed")) => Outcome::EpochChanged,
            _ => return None,
        },
    )
}

fn position(value: &Value) -> Option<Position> {
    value.as_str()?.parse().ok()
}

fn number(data: &Value) -> Option<Number> {
    data["n"].as_u64()
}

fn rows(value: &Value) -> Option<Vec<(Row, Number)>> {
    let rows = value.as_object()?.iter();
    rows.map(|(row, cell)| Some((row_of(row)?, number(&cell["data"])?)))
        .collect()
}
