//! `POST /v1/publish/{stream}`: one JSON record, or NDJSON, streamed both ways.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::{Answer, Flow, Publisher};
use crate::{
    auth::Claims,
    protocol::{ErrorCode, Refusal, write},
    streams::Stream,
    transport::{App, bad_path, bearer_of, problem::Problem},
};

/// A single record must have come whole within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Handles a publish request.
///
/// # Errors
/// [`Problem`]: draining, no permission, no such stream, and whatever is wrong with a single record.
pub async fn publish(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    app.counts.requests.add(1);
    let Path(name) = name.map_err(|error| bad_path(&error))?;
    if app.is_draining() {
        return Err(Refusal::retry(
            ErrorCode::Draining,
            "this node is leaving: publish to another",
            1000,
        )
        .into());
    }
    let reloads = app.live.number();
    let claims = app.claims(bearer_of(request.headers()))?;
    let stream = app.publisher.stream(&name, &claims)?;
    let (parts, body) = request.into_parts();
    if is_ndjson(&parts.headers) {
        let lines = Lines::new(app, stream, (claims, reloads), body.into_data_stream());
        let answers = stream::unfold(lines, |mut lines| async move {
            lines
                .next()
                .await
                .map(|bytes| (Ok::<_, Infallible>(bytes), lines))
        });
        let kind = [
            (header::CONTENT_TYPE, "application/x-ndjson"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        return Ok((kind, Body::from_stream(answers)).into_response());
    }
    single(&app.publisher, &stream, &claims, &parts.headers, body).await
}

fn is_ndjson(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    kind.eq_ignore_ascii_case("application/x-ndjson")
        || kind.eq_ignore_ascii_case("application/ndjson")
}

async fn single(
    publisher: &Publisher,
    stream: &Stream,
    claims: &Claims,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let limit = publisher.record_bytes();
    let body = timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit + 1)).await;
    let late = |_| Refusal::new(ErrorCode::BadRequest, "the record did not come in time");
    let body = body
        .map_err(late)?
        .map_err(|_| publisher.too_large(limit + 1))?;
    let mut record = publisher
        .read(stream, &body)
        .inspect_err(|_| publisher.note_refused())?;
    if let Some(key) = headers.get("idempotency-key") {
        let id = key
            .to_str()
            .ok()
            .filter(|id| !id.is_empty() && id.len() <= super::record::ID_MAX);
        let id = id.ok_or_else(|| {
            Refusal::new(
                ErrorCode::BadRequest,
                "Idempotency-Key: 1 to 128 visible characters",
            )
        })?;
        record.id.get_or_insert_with(|| id.into());
    }
    let mut answers = publisher.append(stream, claims, &mut Flow::default(), vec![Ok(record)]);
    let (position, duplicate) = answers
        .pop()
        .unwrap_or_else(|| Err(Refusal::new(ErrorCode::Internal, "the log gave no answer")))?;
    let mut json = format!("{{\"position\":\"{position}\"");
    json.push_str(if duplicate {
        ",\"duplicate\":true}"
    } else {
        "}"
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// An NDJSON body: its lines as they come, and an answer for each.
struct Lines {
    app: Arc<App>,
    stream: Arc<Stream>,
    claims: Arc<Claims>,
    /// Reloads before the claims were looked at.
    reloads: u64,
    body: BodyDataStream,
    flow: Flow,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
    /// Bytes of a line that is too long, and whose rest is passed over.
    overlong: usize,
    line: u64,
    ended: bool,
}

impl Lines {
    fn new(
        app: Arc<App>,
        stream: Arc<Stream>,
        (claims, reloads): (Arc<Claims>, u64),
        body: BodyDataStream,
    ) -> Self {
        Self {
            app,
            stream,
            claims,
            reloads,
            body,
            flow: Flow::default(),
            begun: Vec::new(),
            overlong: 0,
            line: 0,
            ended: false,
        }
    }

    /// The answers to the next lines; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            let answers = match self.body.next().await {
                Some(Ok(chunk)) => self.take(&chunk),
                Some(Err(_)) => {
                    // The connection broke: nobody is there to be answered.
                    self.ended = true;
                    return None;
                }
                None => {
                    self.ended = true;
                    self.take(b"\n")
                }
            };
            if !answers.is_empty() {
                return Some(answers.into());
            }
        }
    }

    fn take(&mut self, chunk: &[u8]) -> Vec<u8> {
        let (mut records, mut numbers) = (Vec::new(), Vec::new());
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            let whole = piece.ends_with(b"\n");
            let limit = self.app.publisher.record_bytes();
            if self.overlong > 0 || self.begun.len() + piece.len() > limit + 1 {
                self.overlong += self.begun.len() + piece.len();
                self.begun = Vec::new();
                if whole {
                    self.line += 1;
                    numbers.push(self.line);
                    records.push(Err(self
                        .app
                        .publisher
                        .too_large(std::mem::take(&mut self.overlong) - 1)));
                }
                continue;
            }
            if !whole {
                self.begun.extend_from_slice(piece);
                continue;
            }
            self.line += 1;
            let begun = std::mem::take(&mut self.begun);
            let joined;
            let line = if begun.is_empty() {
                piece
            } else {
                joined = [&begun, piece].concat();
                &joined
            };
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            numbers.push(self.line);
            records.push(self.app.publisher.read(&self.stream, line));
        }
        if self
            .app
            .live
            .revoked_since(self.reloads, &self.claims.key_id)
        {
            records = records.into_iter().map(|_| Err(revoked())).collect();
        }
        let answers =
            self.app
                .publisher
                .append(&self.stream, &self.claims, &mut self.flow, records);
        let mut out = Vec::with_capacity(answers.len() * 40);
        for (number, answer) in numbers.into_iter().zip(answers) {
            write_answer(&mut out, number, answer);
        }
        out
    }
}

/// What a publisher is told whose key was taken away while it was at it.
fn revoked() -> Refusal {
    Refusal::new(
        ErrorCode::Unauthorized,
        "the key of this token was taken away: publish on with one that holds",
    )
}

fn write_answer(out: &mut Vec<u8>, line: u64, answer: Answer) {
    match answer {
        Ok((position, duplicate)) => {
            out.extend_from_slice(
                format!("{{\"line\":{line},\"position\":\"{position}\"").as_bytes(),
            );
            out.extend_from_slice(if duplicate {
                b",\"duplicate\":true}\n"
            } else {
                b"}\n"
            });
        }
        Err(mut refusal) => {
            refusal.message = format!("line {line}: {}", refusal.message);
            out.extend_from_slice(format!("{{\"line\":{line},\"error\":").as_bytes());
            write::error_object(out, &refusal);
            out.extend_from_slice(b"}\n");
        }
    }
}
