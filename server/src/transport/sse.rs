//! `GET /v1/sse`: the head of an event stream; the worker writes the rest.

use std::sync::Arc;

use axum::{
    extract::{Extension, Query, Request, State},
    http::{HeaderName, HeaderValue, Method, StatusCode, Version, header},
    response::{IntoResponse, Response},
};

use super::{App, problem::Problem, takeover::Slot};
use crate::{
    auth::Permission,
    model::{Channel, Policy, Token},
    partition::resume::From,
    protocol::{ErrorCode, Refusal},
    worker::Opening,
};

/// A reader comes back after this time, when the connection breaks; jitter is added.
const RETRY_MS: u64 = 1000;
const RETRY_JITTER_MS: u64 = 2000;

/// What a query asks for.
#[derive(Debug, Default)]
struct Wish {
    channels: Vec<Channel>,
    last_event_id: Option<String>,
    max_rate: Option<f64>,
    policy: Option<Policy>,
}

/// Answers with the head and hands the socket over.
pub(super) async fn stream(
    State(app): State<Arc<App>>,
    Extension(slot): Extension<Slot>,
    request: Request,
) -> Result<Response, Problem> {
    app.counts.requests.add(1);
    let headers = request.headers();
    if request.method() != Method::GET {
        // axum offers HEAD wherever there is GET; here it would hand over a socket that has no body to write.
        let refusal = Refusal::new(ErrorCode::BadRequest, "event streams are for GET");
        return Ok(Problem(refusal).under(StatusCode::METHOD_NOT_ALLOWED));
    }
    app.admit(headers)?;
    // Proxies speak HTTP/1.0 to us unless they are told otherwise; it has no chunks, so the body ends with the connection.
    let chunked = request.version() == Version::HTTP_11;
    let claims = app.claims(app.token_of(headers))?;
    let Query(pairs) = Query::try_from_uri(request.uri())
        .map_err(|error| Refusal::new(ErrorCode::BadRequest, error.body_text()))?;
    let mut wish = read(pairs)?;
    for channel in &wish.channels {
        if !claims.may(Permission::Subscribe, channel) {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                format!("the token does not permit subscribing to {channel}"),
            )
            .into());
        }
    }
    let stream = app.check_channels(&wish.channels)?;
    let id = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok())
        .map(str::to_owned)
        .or(wish.last_event_id.take());
    let token = id
        .filter(|id| !id.is_empty())
        .map(|id| id.parse::<Token>())
        .transpose();
    let token = token
        .map_err(|error| Refusal::new(ErrorCode::BadToken, format!("Last-Event-ID: {error}")))?;
    stream.check(wish.policy, wish.max_rate, token.as_ref(), &From::Now)?;
    slot.take_over(Opening::Sse {
        claims,
        channels: wish.channels,
        token,
        max_rate: wish.max_rate,
        policy: wish.policy,
        retry_ms: RETRY_MS + app.jitter(RETRY_JITTER_MS),
        chunked,
    });
    let head = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let mut response = (head, slot.held_body()).into_response();
    if !chunked {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        // Said outright, or hyper offers to keep the connection.
        *response.version_mut() = Version::HTTP_10;
    }
    Ok(response)
}

fn read(pairs: Vec<(String, String)>) -> Result<Wish, Refusal> {
    let mut wish = Wish::default();
    for (name, value) in pairs {
        match name.as_str() {
            "channel" => {
                let channel: Channel = value.parse().map_err(|error| {
                    Refusal::new(ErrorCode::BadChannel, format!("channel: {error}"))
                })?;
                if wish.channels.contains(&channel) {
                    return Err(Refusal::new(
                        ErrorCode::AlreadySubscribed,
                        format!("{channel} is named twice"),
                    ));
                }
                wish.channels.push(channel);
            }
            "last_event_id" => wish.last_event_id = Some(value),
            "max_rate" => wish.max_rate = Some(rate(&value)?),
            "policy" => wish.policy = Some(policy(&value)?),
            // Pages add parameters of their own against caches; they mean nothing here.
            _ => {}
        }
    }
    Ok(wish)
}

fn rate(value: &str) -> Result<f64, Refusal> {
    let rate = value
        .parse::<f64>()
        .ok()
        .filter(|rate| (0.01..=100.0).contains(rate));
    rate.ok_or_else(|| {
        Refusal::new(
            ErrorCode::BadOption,
            "max_rate must lie between 0.01 and 100",
        )
    })
}

fn policy(value: &str) -> Result<Policy, Refusal> {
    match value {
        "conflate" => Ok(Policy::Conflate),
        "drop_oldest" => Ok(Policy::DropOldest),
        "disconnect" => Ok(Policy::Disconnect),
        _ => Err(Refusal::new(
            ErrorCode::BadOption,
            "policy is conflate, drop_oldest or disconnect",
        )),
    }
}
