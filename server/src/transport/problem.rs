//! Errors over HTTP: `application/problem+json` (RFC 9457) with our `code`.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::protocol::{Refusal, write};

/// A refusal as an HTTP answer.
#[derive(Debug)]
pub struct Problem(pub Refusal);

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl Problem {
    /// The same under another status: where HTTP has one for what our codes don't tell apart.
    pub(super) fn under(self, status: StatusCode) -> Response {
        respond(&self.0, status)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        respond(&self.0, status)
    }
}

/// The whole answer as bytes, after which the connection ends: for whoever is turned away before HTTP begins.
pub(super) fn whole(refusal: &Refusal) -> Vec<u8> {
    let status =
        StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let json = json(refusal, status);
    let mut whole = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         content-length: {}\r\nconnection: close\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("error"),
        json.len()
    );
    if let Some(after_ms) = refusal.retry_after_ms {
        whole += &format!("retry-after: {}\r\n", seconds(after_ms));
    }
    whole += "\r\n";
    let mut whole = whole.into_bytes();
    whole.extend_from_slice(&json);
    whole
}

/// Whole seconds (RFC 9110, section 10.2.3), rounded up.
fn seconds(after_ms: u64) -> u64 {
    after_ms.div_ceil(1000).max(1)
}

fn json(refusal: &Refusal, status: StatusCode) -> Vec<u8> {
    let mut json = format!(
        "{{\"type\":\"about:blank\",\"status\":{},\"code\":\"{}\",\"title\":",
        status.as_u16(),
        refusal.code.as_str()
    )
    .into_bytes();
    write::string(&mut json, status.canonical_reason().unwrap_or("error"));
    json.extend_from_slice(b",\"detail\":");
    write::string(&mut json, &refusal.message);
    json.push(b'}');
    json
}

fn respond(refusal: &Refusal, status: StatusCode) -> Response {
    let json = json(refusal, status);
    let mut response = (
        status,
        [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        json,
    )
        .into_response();
    if let Some(after_ms) = refusal.retry_after_ms {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds(after_ms)));
    }
    if status == StatusCode::UNAUTHORIZED {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
