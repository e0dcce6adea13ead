//! `GET /v1/ws`: the handshake of RFC 6455, section 4.2.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{App, bearer_of, problem::Problem, takeover::Slot};
use crate::{
    protocol::{BEARER_SUBPROTOCOL, ErrorCode, Refusal, SUBPROTOCOL},
    worker::Opening,
};

/// Answers the handshake and hands the socket over.
pub(super) async fn handshake(
    State(app): State<Arc<App>>,
    Extension(slot): Extension<Slot>,
    request: Request,
) -> Result<Response, Problem> {
    app.counts.requests.add(1);
    let headers = request.headers();
    app.admit(headers)?;
    let key = accept_key(request.method(), headers)?;
    let offered = subprotocols(headers);
    let bearer = offered
        .iter()
        .find_map(|offer| offer.strip_prefix(BEARER_SUBPROTOCOL));
    let claims = match bearer_of(headers).or(bearer) {
        Some(token) => Some(app.verify(token)?),
        None => app.anonymous(),
    };
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, key);
    if offered.contains(&SUBPROTOCOL) {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    }
    slot.take_over(Opening::WebSocket { claims });
    response
        .body(Body::empty())
        .map_err(|error| Refusal::new(ErrorCode::Internal, error.to_string()).into())
}

fn has(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

fn accept_key(method: &Method, headers: &HeaderMap) -> Result<String, Refusal> {
    let bad = |message: &str| Err(Refusal::new(ErrorCode::BadRequest, message));
    if method != Method::GET
        || !has(headers, header::UPGRADE, "websocket")
        || !has(headers, header::CONNECTION, "upgrade")
    {
        return bad(
            "this is the WebSocket endpoint: GET with Connection: Upgrade and Upgrade: websocket",
        );
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return bad("Sec-WebSocket-Version must be 13");
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| key.as_bytes());
    match key {
        Some(key) if STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) => {
            Ok(derive_accept_key(key))
        }
        _ => bad("Sec-WebSocket-Key must be 16 bytes in base64"),
    }
}

fn subprotocols(headers: &HeaderMap) -> Vec<&str> {
    let offers = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    offers
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect()
}
