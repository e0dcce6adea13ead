//! What clients send: one JSON object, or an array of them, a text message.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ErrorCode, Refusal};
use crate::model::{Channel, Policy, Token};

/// Ids of requests are whole numbers that every JSON reader keeps exactly.
const ID_MAX: u64 = 1 << 53;
/// `max_rate` below this is refused: a flush an hour is not a subscription.
const RATE_MIN: f64 = 0.01;
/// `max_rate` above this has no effect that a wheel's tick could give.
const RATE_MAX: f64 = 100.0;

/// Messages in one array.
const ARRAY_MAX: usize = 4096;

/// One message of a client.
#[derive(Debug, PartialEq)]
pub enum ClientMessage {
    /// `ping`, answered by `pong`.
    Ping,
    /// A first token, or a fresh one.
    Auth {
        /// The token.
        token: String,
    },
    /// A subscription.
    Subscribe(Box<Subscribe>),
    /// Its end.
    Unsubscribe {
        /// Of which channel.
        channel: Channel,
    },
    /// One record.
    Publish(Box<PublishMessage>),
}

/// A message and the id that its answer carries (none for `ping`).
#[derive(Debug, PartialEq)]
pub struct Envelope {
    /// The request's id.
    pub id: Option<u64>,
    /// What is asked.
    pub message: ClientMessage,
}

/// `subscribe`.
#[derive(Debug, PartialEq)]
pub struct Subscribe {
    /// To what.
    pub channel: Channel,
    /// From where; none: from now.
    pub from: Option<StartFrom>,
    /// Flushes a second at most (0.01 to 100).
    pub max_rate: Option<f64>,
    /// Instead of the stream's own.
    pub policy: Option<Policy>,
    /// Events: the last so many of the tail come first.
    pub history: Option<u32>,
}

/// Where a subscription begins.
#[derive(Debug, PartialEq)]
pub enum StartFrom {
    /// Behind this token.
    Token(Token),
    /// Events: from what the log still has, bounded.
    Earliest,
}

/// `publish`.
#[derive(Debug, PartialEq)]
pub struct PublishMessage {
    /// To which stream.
    pub stream: String,
    /// The record, as one line of the publish API.
    pub record: String,
}

/// A message that was refused, and the id by which the client knows it.
#[derive(Debug, PartialEq)]
pub struct BadMessage {
    /// The request's id, where there was one.
    pub id: Option<u64>,
    /// Why.
    pub refusal: Refusal,
}

/// All fields of all messages; each `op` says which of them it takes.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawMessage<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    op: Option<Cow<'a, str>>,
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    from: Option<Cow<'a, str>>,
    max_rate: Option<f64>,
    policy: Option<Policy>,
    history: Option<u32>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
    #[serde(borrow)]
    stream: Option<Cow<'a, str>>,
    #[serde(borrow)]
    record: Option<&'a RawValue>,
}

/// Only the id: of a message that does not parse otherwise.
#[derive(Deserialize)]
struct OnlyId {
    id: Option<u64>,
}

/// Reads a text message. In an array each object stands for itself: one that is bad does not harm the others.
pub fn parse_client(text: &str) -> Vec<Result<Envelope, BadMessage>> {
    if !text.trim_start().starts_with('[') {
        return vec![parse_one(text)];
    }
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(messages) if messages.len() > ARRAY_MAX => vec![Err(bad(
            None,
            ErrorCode::BadMessage,
            format!(
                "an array of {} messages; {ARRAY_MAX} are the most: send several",
                messages.len()
            ),
        ))],
        Ok(messages) => messages
            .into_iter()
            .map(|raw| parse_one(raw.get()))
            .collect(),
        Err(error) => vec![Err(bad(
            None,
            ErrorCode::BadMessage,
            format!("not a JSON array: {error}"),
        ))],
    }
}

fn bad(id: Option<u64>, code: ErrorCode, message: impl Into<String>) -> BadMessage {
    BadMessage {
        id,
        refusal: Refusal::new(code, message),
    }
}

fn parse_one(text: &str) -> Result<Envelope, BadMessage> {
    // serde would also read an array, field by field.
    if text.trim_start().starts_with('[') {
        return Err(bad(
            None,
            ErrorCode::BadMessage,
            "not a message: an array in an array",
        ));
    }
    let raw: RawMessage<'_> = serde_json::from_str(text).map_err(|error| {
        let id = serde_json::from_str::<OnlyId>(text)
            .ok()
            .and_then(|only| only.id)
            .filter(|&id| id <= ID_MAX);
        bad(id, ErrorCode::BadMessage, format!("not a message: {error}"))
    })?;
    let id = raw.id.filter(|&id| id <= ID_MAX);
    if raw.id.is_some() && id.is_none() {
        return Err(bad(
            None,
            ErrorCode::BadMessage,
            "id must be a whole number of at most 2^53",
        ));
    }
    let message = raw
        .into_message()
        .map_err(|refusal| BadMessage { id, refusal })?;
    if id.is_none() && message != ClientMessage::Ping {
        return Err(bad(
            None,
            ErrorCode::BadMessage,
            "id is missing: the answer could not be told from others",
        ));
    }
    Ok(Envelope { id, message })
}

impl RawMessage<'_> {
    fn into_message(mut self) -> Result<ClientMessage, Refusal> {
        let op = self
            .op
            .take()
            .ok_or_else(|| Refusal::new(ErrorCode::BadMessage, "op is missing"))?;
        let message = match &*op {
            "ping" => ClientMessage::Ping,
            "auth" => ClientMessage::Auth {
                token: required(self.token.take(), "token")?.into_owned(),
            },
            "subscribe" => ClientMessage::Subscribe(Box::new(self.take_subscribe()?)),
            "unsubscribe" => ClientMessage::Unsubscribe {
                channel: self.take_channel()?,
            },
            "publish" => ClientMessage::Publish(Box::new(PublishMessage {
                stream: required(self.stream.take(), "stream")?.into_owned(),
                record: required(self.record.take(), "record")?.get().to_owned(),
            })),
            other => {
                let shown: String = other.chars().take(40).collect();
                return Err(Refusal::new(
                    ErrorCode::UnknownOp,
                    format!(
                        "unknown op {shown:?}; known are ping, auth, subscribe, unsubscribe, publish"
                    ),
                ));
            }
        };
        match self.left_over() {
            None => Ok(message),
            Some(field) => Err(Refusal::new(
                ErrorCode::BadMessage,
                format!("{op} takes no field {field}"),
            )),
        }
    }

    fn take_channel(&mut self) -> Result<Channel, Refusal> {
        let text = required(self.channel.take(), "channel")?;
        text.parse()
            .map_err(|error| Refusal::new(ErrorCode::BadChannel, format!("channel: {error}")))
    }

    fn take_subscribe(&mut self) -> Result<Subscribe, Refusal> {
        let channel = self.take_channel()?;
        let from = match self.from.take() {
            None => None,
            Some(text) if text == "earliest" => Some(StartFrom::Earliest),
            Some(text) => Some(StartFrom::Token(text.parse().map_err(|error| {
                Refusal::new(ErrorCode::BadToken, format!("from: {error}"))
            })?)),
        };
        let max_rate = self.max_rate.take();
        if max_rate.is_some_and(|rate| !(RATE_MIN..=RATE_MAX).contains(&rate)) {
            return Err(Refusal::new(
                ErrorCode::BadOption,
                format!("max_rate must lie between {RATE_MIN} and {RATE_MAX}"),
            ));
        }
        Ok(Subscribe {
            channel,
            from,
            max_rate,
            policy: self.policy.take(),
            history: self.history.take(),
        })
    }

    /// A field that this `op` did not take.
    fn left_over(&self) -> Option<&'static str> {
        let present = [
            ("channel", self.channel.is_some()),
            ("from", self.from.is_some()),
            ("max_rate", self.max_rate.is_some()),
            ("policy", self.policy.is_some()),
            ("history", self.history.is_some()),
            ("token", self.token.is_some()),
            ("stream", self.stream.is_some()),
            ("record", self.record.is_some()),
        ];
        present
            .into_iter()
            .find_map(|(field, there)| there.then_some(field))
    }
}

fn required<T>(field: Option<T>, name: &str) -> Result<T, Refusal> {
    field.ok_or_else(|| Refusal::new(ErrorCode::BadMessage, format!("{name} is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Envelope, BadMessage> {
        let mut parsed = parse_client(text);
        assert_eq!(parsed.len(), 1);
        parsed.remove(0)
    }

    #[test]
    fn messages_parse() {
        assert_eq!(
            one(r#"{"op":"ping"}"#),
            Ok(Envelope {
                id: None,
                message: ClientMessage::Ping
            })
        );
        let parsed = one(r#"{"id":1,"op":"subscribe","channel":"departures/JFK","from":"0.e7:17","max_rate":5,"policy":"conflate"}"#).unwrap();
        let ClientMessage::Subscribe(subscribe) = parsed.message else {
            panic!("{parsed:?}")
        };
        assert_eq!(&*subscribe.channel, "departures/JFK");
        assert_eq!(
            subscribe.from,
            Some(StartFrom::Token("0.e7:17".parse().unwrap()))
        );
        assert_eq!(
            (parsed.id, subscribe.max_rate, subscribe.policy),
            (Some(1), Some(5.0), Some(Policy::Conflate))
        );
        let parsed =
            one(r#"{"id":2,"op":"publish","stream":"s","record":{"channel":"a", "data":null}}"#)
                .unwrap();
        let ClientMessage::Publish(publish) = parsed.message else {
            panic!("{parsed:?}")
        };
        assert_eq!(publish.record, r#"{"channel":"a", "data":null}"#);
    }

    #[test]
    fn bad_messages_say_why_and_keep_their_id() {
        let check = |text: &str, id: Option<u64>, code: ErrorCode, word: &str| {
            let error = one(text).unwrap_err();
            assert_eq!((error.id, error.refusal.code), (id, code), "{text}");
            assert!(
                error.refusal.message.contains(word),
                "{text}: {}",
                error.refusal.message
            );
        };
        check("", None, ErrorCode::BadMessage, "EOF");
        check("{", None, ErrorCode::BadMessage, "EOF");
        check("3", None, ErrorCode::BadMessage, "invalid type");
        check("[1", None, ErrorCode::BadMessage, "array");
        check(
            r#"{"id":3}"#,
            Some(3),
            ErrorCode::BadMessage,
            "op is missing",
        );
        check(
            r#"{"op":"auth","token":"x"}"#,
            None,
            ErrorCode::BadMessage,
            "id is missing",
        );
        check(
            r#"{"id":3,"op":"dance"}"#,
            Some(3),
            ErrorCode::UnknownOp,
            "dance",
        );
        check(
            r#"{"id":3,"op":"ping","x":1}"#,
            Some(3),
            ErrorCode::BadMessage,
            "unknown field",
        );
        check(
            r#"{"id":3,"op":"subscribe"}"#,
            Some(3),
            ErrorCode::BadMessage,
            "channel is missing",
        );
        check(
            r#"{"id":3,"op":"subscribe","channel":"a"}"#,
            Some(3),
            ErrorCode::BadChannel,
            "stream/name",
        );
        check(
            r#"{"id":3,"op":"subscribe","channel":"a/b","from":"?"}"#,
            Some(3),
            ErrorCode::BadToken,
            "partition.epoch",
        );
        check(
            r#"{"id":3,"op":"subscribe","channel":"a/b","max_rate":0}"#,
            Some(3),
            ErrorCode::BadOption,
            "max_rate",
        );
        check(
            r#"{"id":3,"op":"subscribe","channel":"a/b","token":"x"}"#,
            Some(3),
            ErrorCode::BadMessage,
            "takes no field token",
        );
        check(
            r#"{"id":9007199254740993,"op":"ping"}"#,
            None,
            ErrorCode::BadMessage,
            "2^53",
        );
    }

    #[test]
    fn in_an_array_each_stands_for_itself() {
        let parsed = parse_client(r#"[{"op":"ping"},{"id":7,"op":"x"},{"op":"ping"}]"#);
        assert!(parsed[0].is_ok() && parsed[2].is_ok());
        assert_eq!(parsed[1].as_ref().unwrap_err().id, Some(7));
    }
}
