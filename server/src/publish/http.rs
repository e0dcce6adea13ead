//! `POST /v1/publish/{stream}`: one JSON record, or NDJSON, streamed both ways.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Answer, Flow, Pending};
use crate::{
    auth::Claims,
    protocol::{ErrorCode, Refusal, write},
    source::embedded::NewRecord,
    streams::Stream,
    transport::{App, bad_path, bearer_of, problem::Problem},
};

/// Bytes of a connection's lines that may be on their way into the log; beyond it, nothing more is read.
const STORING_BYTES: usize = 8 << 20;
/// What a chunk counts at least.
const CHUNK_BYTES: usize = 4 << 10;

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
    single(&app, &stream, &claims, &parts.headers, body).await
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
    app: &App,
    stream: &Stream,
    claims: &Claims,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let publisher = &app.publisher;
    let limit = publisher.record_bytes();
    let body = axum::body::to_bytes(body, limit + 1);
    let body = timeout(app.http.body_timeout, body).await;
    let body = body
        .map_err(|_| late("the record"))?
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
    let mut flow = Flow::default();
    let mut answers = publisher
        .append(stream, claims, &mut flow, vec![Ok(record)])
        .await;
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

fn late(what: &str) -> Refusal {
    Refusal::new(
        ErrorCode::TimedOut,
        format!("{what} did not come whole within limits.body_timeout"),
    )
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
    /// Lines that the log was handed, in order.
    storing: VecDeque<Storing>,
    storing_bytes: usize,
    ended: bool,
}

/// Lines of one chunk on their way into the log.
struct Storing {
    numbers: Vec<u64>,
    pending: Pending,
    bytes: usize,
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
            storing: VecDeque::new(),
            storing_bytes: 0,
            ended: false,
        }
    }

    /// The answers to the next lines; none at the end. Reads on while earlier lines are being stored. A line must be whole in
    /// time, counted from the one before: a body that trickles holds a connection no longer than one that is silent.
    async fn next(&mut self) -> Option<Bytes> {
        let patience = self.app.http.body_timeout;
        let (mut line, mut due) = (self.line, Instant::now() + patience);
        loop {
            if self.line > line {
                (line, due) = (self.line, Instant::now() + patience);
            }
            let may_read = !self.ended && self.storing_bytes < STORING_BYTES;
            tokio::select! {
                biased;
                () = known(&mut self.storing), if !self.storing.is_empty() => {
                    let answers = self.answers();
                    if !answers.is_empty() {
                        return Some(answers.into());
                    }
                }
                chunk = timeout_at(due, self.body.next()), if may_read => match chunk {
                    Ok(Some(Ok(chunk))) => self.take(&chunk).await,
                    // The connection broke: nobody is there to be answered.
                    Ok(Some(Err(_))) => return None,
                    Ok(None) => {
                        self.ended = true;
                        self.take(b"\n").await;
                    }
                    Err(_) => {
                        self.ended = true;
                        self.give_up();
                    }
                },
                else => return None,
            }
        }
    }

    /// The line that did not come in time is answered behind those before it.
    fn give_up(&mut self) {
        self.storing.push_back(Storing {
            numbers: vec![self.line + 1],
            pending: Pending::refused(late("the line")),
            bytes: 0,
        });
    }

    /// The answers to the oldest lines that are known.
    fn answers(&mut self) -> Vec<u8> {
        let Some(Storing {
            numbers,
            pending,
            bytes,
        }) = self.storing.pop_front()
        else {
            return Vec::new();
        };
        self.storing_bytes -= bytes;
        let mut out = Vec::with_capacity(numbers.len() * 40);
        for (number, answer) in numbers.into_iter().zip(self.app.publisher.answers(pending)) {
            write_answer(&mut out, number, answer);
        }
        out
    }

    /// Hands the lines of a chunk to the log.
    async fn take(&mut self, chunk: &[u8]) {
        let (numbers, mut records) = self.read(chunk);
        let (live, key) = (&self.app.live, self.claims.key_id());
        if live.revoked_since(self.reloads, key) {
            records = records.into_iter().map(|_| Err(revoked())).collect();
        }
        let publisher = &self.app.publisher;
        let pending = publisher
            .submit(&self.stream, &self.claims, &mut self.flow, records)
            .await;
        // A chunk costs something also without a line.
        let bytes = chunk.len().max(CHUNK_BYTES);
        self.storing_bytes += bytes;
        self.storing.push_back(Storing {
            numbers,
            pending,
            bytes,
        });
    }

    /// The lines that end in this chunk, by their numbers.
    fn read(&mut self, chunk: &[u8]) -> (Vec<u64>, Vec<Result<NewRecord, Refusal>>) {
        let (mut records, mut numbers) = (Vec::new(), Vec::new());
        let mut rest = chunk;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (piece, behind) = rest.split_at(end);
            rest = behind;
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
        (numbers, records)
    }
}

/// Returns once the answers to the oldest lines are known. Cancel safe.
async fn known(storing: &mut VecDeque<Storing>) {
    if let Some(oldest) = storing.front_mut() {
        oldest.pending.known().await;
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
