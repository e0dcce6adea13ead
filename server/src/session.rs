//! One client's protocol: message in, action out.
//!
//! Does: decides what a message means in the phase that the session is in. Owns: the phase. Never knows: sockets, clocks,
//! lanes, how a wish is carried out. Keeps: I9. The table below is total: every phase meets every message.

use crate::{
    auth::{Claims, Permission},
    protocol::{
        BadMessage, ClientMessage, CloseCode, Envelope, ErrorCode, PublishMessage, Refusal,
        Subscribe,
    },
};

/// What a session is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A token must come before anything else.
    Waiting,
    /// It has its claims.
    Open,
    /// It has been told goodbye.
    Closing,
}

/// What the session is told of its surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// What its token permits.
    pub claims: Option<&'a Claims>,
    /// Channels that it has.
    pub channels: usize,
    /// … and may have.
    pub channels_max: usize,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Nothing: it is on its way out.
    Ignore,
    /// Answer `pong`.
    Pong,
    /// Refuse, by the request's id where there was one.
    Refuse(Option<u64>, Refusal),
    /// Look at this token.
    Verify {
        /// The request.
        id: u64,
        /// The token.
        token: String,
    },
    /// Begin a subscription.
    Subscribe {
        /// The request.
        id: u64,
        /// What is wished.
        wish: Box<Subscribe>,
    },
    /// End one.
    Unsubscribe {
        /// The request.
        id: u64,
        /// Of which channel.
        channel: crate::model::Channel,
    },
    /// Publish a record.
    Publish {
        /// The request.
        id: u64,
        /// The record.
        record: Box<PublishMessage>,
    },
}

/// What a message means.
#[must_use]
pub fn on_message(
    phase: Phase,
    around: Surroundings<'_>,
    message: Result<Envelope, BadMessage>,
) -> Action {
    if phase == Phase::Closing {
        return Action::Ignore;
    }
    let (id, message) = match message {
        Ok(Envelope { id, message }) => (id, message),
        Err(BadMessage { id, refusal }) => return Action::Refuse(id, refusal),
    };
    let Some(id) = id else { return Action::Pong };
    match (phase, message) {
        (_, ClientMessage::Ping) => Action::Pong,
        (_, ClientMessage::Auth { token }) => Action::Verify { id, token },
        (Phase::Open, ClientMessage::Subscribe(wish)) => match may_subscribe(around, &wish) {
            Ok(()) => Action::Subscribe { id, wish },
            Err(refusal) => Action::Refuse(Some(id), refusal),
        },
        (Phase::Open, ClientMessage::Unsubscribe { channel }) => {
            Action::Unsubscribe { id, channel }
        }
        (Phase::Open, ClientMessage::Publish(record)) => match may_publish(around, &record) {
            Ok(()) => Action::Publish { id, record },
            Err(refusal) => Action::Refuse(Some(id), refusal),
        },
        (Phase::Waiting | Phase::Closing, _) => Action::Refuse(
            Some(id),
            Refusal::new(
                ErrorCode::Unauthorized,
                "no token yet: send {\"op\":\"auth\"} first",
            ),
        ),
    }
}

fn may_subscribe(around: Surroundings<'_>, wish: &Subscribe) -> Result<(), Refusal> {
    if !around
        .claims
        .is_some_and(|claims| claims.may(Permission::Subscribe, &wish.channel))
    {
        return Err(Refusal::new(
            ErrorCode::Forbidden,
            format!("the token does not permit subscribing to {}", wish.channel),
        ));
    }
    if around.channels >= around.channels_max {
        return Err(Refusal::new(
            ErrorCode::TooManyChannels,
            format!(
                "a connection has at most {} channels; unsubscribe from one first",
                around.channels_max
            ),
        ));
    }
    Ok(())
}

fn may_publish(around: Surroundings<'_>, record: &PublishMessage) -> Result<(), Refusal> {
    if around
        .claims
        .is_some_and(|claims| claims.may_publish_stream(&record.stream))
    {
        return Ok(());
    }
    Err(Refusal::new(
        ErrorCode::Forbidden,
        "the token does not permit publishing to this stream",
    ))
}

/// After a token was looked at: the new phase, and whether the connection is closed. A fresh token that does not hold
/// leaves a session as it was; a first one that does not hold ends it.
#[must_use]
pub fn on_verified(phase: Phase, holds: bool) -> (Phase, Option<CloseCode>) {
    match (phase, holds) {
        (Phase::Waiting | Phase::Open, true) => (Phase::Open, None),
        (Phase::Waiting, false) => (Phase::Closing, Some(CloseCode::Unauthorized)),
        (Phase::Open, false) => (Phase::Open, None),
        (Phase::Closing, _) => (Phase::Closing, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{auth::GrantSpec, protocol::parse_client};

    /// The word for what comes of each message, in each phase, with a token that permits `a/*` both ways.
    fn check(message: &str, waiting: &str, open: &str) {
        let spec = GrantSpec {
            channels: vec!["a/*".into()],
            can: vec![Permission::Subscribe, Permission::Publish],
        };
        let claims = Claims::new("test".into(), None, None, &spec.resolve(None).unwrap());
        for (phase, expected) in [
            (Phase::Waiting, waiting),
            (Phase::Open, open),
            (Phase::Closing, "ignore"),
        ] {
            let around = Surroundings {
                claims: (phase != Phase::Waiting).then_some(&claims),
                channels: 1,
                channels_max: 2,
            };
            let parsed = parse_client(message).remove(0);
            let word = match on_message(phase, around, parsed) {
                Action::Ignore => "ignore".to_owned(),
                Action::Pong => "pong".to_owned(),
                Action::Refuse(_, refusal) => refusal.code.as_str().to_owned(),
                Action::Verify { .. } => "verify".to_owned(),
                Action::Subscribe { .. } => "subscribe".to_owned(),
                Action::Unsubscribe { .. } => "unsubscribe".to_owned(),
                Action::Publish { .. } => "publish".to_owned(),
            };
            assert_eq!(word, expected, "{message} while {phase:?}");
        }
    }

    #[test]
    fn every_phase_meets_every_message() {
        check(r#"{"op":"ping"}"#, "pong", "pong");
        check(r#"{"id":1,"op":"ping"}"#, "pong", "pong");
        check(r#"{"id":1,"op":"auth","token":"t"}"#, "verify", "verify");
        check(
            r#"{"id":1,"op":"subscribe","channel":"a/b"}"#,
            "unauthorized",
            "subscribe",
        );
        check(
            r#"{"id":1,"op":"subscribe","channel":"b/b"}"#,
            "unauthorized",
            "forbidden",
        );
        check(
            r#"{"id":1,"op":"unsubscribe","channel":"a/b"}"#,
            "unauthorized",
            "unsubscribe",
        );
        check(
            r#"{"id":1,"op":"publish","stream":"a","record":{}}"#,
            "unauthorized",
            "publish",
        );
        check(
            r#"{"id":1,"op":"publish","stream":"b","record":{}}"#,
            "unauthorized",
            "forbidden",
        );
        check(r#"{"id":1,"op":"dance"}"#, "unknown_op", "unknown_op");
        check("{", "bad_message", "bad_message");
    }

    #[test]
    fn a_full_connection_takes_no_more_channels() {
        let around = Surroundings {
            claims: None,
            channels: 2,
            channels_max: 2,
        };
        let spec = GrantSpec {
            channels: vec!["a/*".into()],
            can: vec![Permission::Subscribe],
        };
        let claims = Claims::new("test".into(), None, None, &spec.resolve(None).unwrap());
        let parsed = parse_client(r#"{"id":1,"op":"subscribe","channel":"a/b"}"#).remove(0);
        let action = on_message(
            Phase::Open,
            Surroundings {
                claims: Some(&claims),
                ..around
            },
            parsed,
        );
        assert!(
            matches!(action, Action::Refuse(Some(1), refusal) if refusal.code == ErrorCode::TooManyChannels)
        );
    }

    #[test]
    fn tokens_that_hold_and_that_do_not() {
        assert_eq!(on_verified(Phase::Waiting, true), (Phase::Open, None));
        assert_eq!(
            on_verified(Phase::Waiting, false),
            (Phase::Closing, Some(CloseCode::Unauthorized))
        );
        assert_eq!(on_verified(Phase::Open, false), (Phase::Open, None));
        assert_eq!(on_verified(Phase::Open, true), (Phase::Open, None));
        assert_eq!(on_verified(Phase::Closing, true), (Phase::Closing, None));
    }
}
