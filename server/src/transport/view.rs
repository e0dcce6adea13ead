//! `GET /v1/view/{channel}` and `POST /v1/views`: a view as one answer; with `wait`, once there is something newer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{Path, Query, Request, State, rejection::PathRejection},
    http::{HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{sync::oneshot, time::timeout};

use super::{App, bad_path, problem::Problem};
use crate::{
    auth::{Claims, Permission},
    model::{
        Channel, Freshness, FreshnessState, Mode, Moment, Placement, Position, Row, RowId,
        StaleReason, Token,
    },
    partition::{
        ViewAt,
        tail::least_fresh,
        task::{Request as Ask, has_room},
    },
    protocol::{ErrorCode, Refusal, write},
    streams::Stream,
};

/// The longest `wait`, in seconds.
const WAIT_MAX: u64 = 60;
/// Without `wait`, a node that can't answer within this time is behind.
const ANSWER: Duration = Duration::from_secs(5);
/// Channels of one `POST /v1/views`.
const VIEWS_MAX: usize = 100;
/// A request's body.
const BODY_BYTES: usize = 64 * 1024;
/// Long-polls that wait, for each worker; beyond it they are answered at once. Half of a worker's HTTP connections.
const LONG_POLLS_MAX: usize = super::door::HTTP_MAX / 2;
/// Views with more rows than this are written off the worker's thread.
const ROWS_INLINE: usize = 512;

/// `?wait=SECONDS`; other parameters mean nothing here.
fn wait_of(uri: &Uri) -> Result<u64, Refusal> {
    let bad = |_| Refusal::new(ErrorCode::BadOption, "wait is a whole number of seconds");
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|error| Refusal::new(ErrorCode::BadRequest, error.body_text()))?;
    let wait = pairs.iter().find(|(name, _)| name == "wait");
    let wait = wait.map(|(_, value)| value.parse::<u64>()).transpose();
    Ok(wait.map_err(bad)?.unwrap_or(0).min(WAIT_MAX))
}

/// One view.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    channel: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    app.counts.requests.add(1);
    let Path(channel) = channel.map_err(|error| bad_path(&error))?;
    let wait = wait_of(request.uri())?;
    let claims = app.claims(app.token_of(request.headers()))?;
    let (channel, stream) = find(&app, &claims, &channel)?;
    let seen = request
        .headers()
        .get(header::IF_NONE_MATCH)
        .and_then(|tag| tag.to_str().ok());
    let seen: Option<Token> = seen.and_then(|tag| {
        tag.trim()
            .trim_start_matches("W/")
            .trim_matches('"')
            .parse()
            .ok()
    });
    let (parts, newer) = match &seen {
        Some(token) => {
            let held = LongPoll::begin(&app).filter(|_| wait > 0);
            let wait = held.as_ref().map_or(0, |_| wait);
            newer_than(&channel, &stream, token, Duration::from_secs(wait)).await?
        }
        None => (parts_of(&channel, &stream).await?, true),
    };
    if let (Some(token), false) = (&seen, newer) {
        let mut response =
            (StatusCode::NOT_MODIFIED, [(header::ETAG, etag(token))]).into_response();
        tell_freshness(
            &mut response,
            freshness_of((&stream, &channel), &parts, app.clock.now()),
        );
        return Ok(response);
    }
    Ok(respond(channel, stream, parts, &app).await)
}

/// A long-poll that waits, and is counted while it does.
struct LongPoll<'a>(&'a AtomicUsize);

impl<'a> LongPoll<'a> {
    fn begin(app: &'a App) -> Option<Self> {
        let waiting = app.long_polls.fetch_add(1, Ordering::Relaxed);
        let one = Self(&app.long_polls);
        (waiting < LONG_POLLS_MAX * app.workers.len()).then_some(one)
    }
}

impl Drop for LongPoll<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which views.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Several {
    channels: Vec<String>,
}

/// Several views.
pub(super) async fn several(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response, Problem> {
    app.counts.requests.add(1);
    let claims = app.claims(app.token_of(request.headers()))?;
    let channels = channels_of(request, app.http.body_timeout).await?;
    let views = async {
        let mut views = Vec::new();
        for channel in &channels {
            let (channel, stream) = find(&app, &claims, channel)?;
            let parts = parts_of(&channel, &stream).await?;
            views.push((channel, stream, parts));
        }
        Ok::<_, Refusal>(views)
    };
    let views = timeout(ANSWER, views).await.map_err(|_| behind())??;
    let now = app.clock.now();
    let write = move || {
        let mut json = b"{\"views\":[".to_vec();
        for (at, (channel, stream, parts)) in views.iter().enumerate() {
            if at > 0 {
                json.push(b',');
            }
            write_view(&mut json, channel, stream, parts, now);
        }
        json.extend_from_slice(b"]}");
        json
    };
    let json = tokio::task::spawn_blocking(write).await.unwrap_or_default();
    let head = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((head, json).into_response())
}

/// The body of `POST /v1/views`, which must come whole within a time.
async fn channels_of(request: Request, patience: Duration) -> Result<Vec<String>, Refusal> {
    let bad = |message: String| Refusal::new(ErrorCode::BadRequest, message);
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or("");
    if !kind
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .eq_ignore_ascii_case("application/json")
    {
        return Err(bad("Content-Type must be application/json".to_owned()));
    }
    let body = timeout(
        patience,
        axum::body::to_bytes(request.into_body(), BODY_BYTES),
    )
    .await;
    let late = "the body did not come whole within limits.body_timeout";
    let body = body.map_err(|_| Refusal::new(ErrorCode::TimedOut, late))?;
    let body =
        body.map_err(|error| bad(format!("the body can't be read, or is too large: {error}")))?;
    let body: Map<String, Value> =
        serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    let several: Several =
        serde_json::from_value(Value::Object(body)).map_err(|error| bad(error.to_string()))?;
    if several.channels.len() > VIEWS_MAX {
        let message = format!("at most {VIEWS_MAX} channels in one request");
        return Err(Refusal::new(ErrorCode::TooManyChannels, message));
    }
    Ok(several.channels)
}

fn find(app: &App, claims: &Claims, channel: &str) -> Result<(Channel, Arc<Stream>), Refusal> {
    let channel: Channel = channel
        .parse()
        .map_err(|error| Refusal::new(ErrorCode::BadChannel, format!("channel: {error}")))?;
    if !claims.may(Permission::Subscribe, &channel) {
        return Err(Refusal::new(
            ErrorCode::Forbidden,
            format!("the token does not permit reading {channel}"),
        ));
    }
    let stream = app.streams.get(channel.stream());
    let stream = stream.ok_or_else(|| {
        Refusal::new(
            ErrorCode::UnknownStream,
            format!("there is no stream {}", channel.stream()),
        )
    })?;
    if stream.mode == Mode::Events {
        return Err(Refusal::new(
            ErrorCode::BadRequest,
            "this stream has events, not views: follow it over WebSocket or SSE",
        ));
    }
    Ok((channel, stream))
}

fn behind() -> Refusal {
    Refusal::retry(
        ErrorCode::RetryLater,
        "this node is behind its source and can't answer yet; another may",
        1000,
    )
}

fn ask(
    stream: &Stream,
    partition: u32,
    channel: &Channel,
    newer_than: Option<Position>,
) -> Result<oneshot::Receiver<ViewAt>, Refusal> {
    let full = || {
        Refusal::retry(
            ErrorCode::Overloaded,
            "too many requests wait for this stream",
            1000,
        )
    };
    let requests = &stream.partitions[partition as usize].requests;
    if !has_room(requests, newer_than.is_some()) {
        return Err(full());
    }
    let (reply, answer) = oneshot::channel();
    let request = Ask::View {
        channel: channel.clone(),
        newer_than,
        reply,
    };
    requests.try_send(request).map_err(|_| full())?;
    Ok(answer)
}

async fn parts_of(channel: &Channel, stream: &Stream) -> Result<Vec<ViewAt>, Refusal> {
    let mut parts = Vec::new();
    for partition in stream.partitions_of(channel) {
        let answer = ask(stream, partition, channel, None)?;
        parts.push(
            timeout(ANSWER, answer)
                .await
                .ok()
                .and_then(Result::ok)
                .ok_or_else(behind)?,
        );
    }
    Ok(parts)
}

/// The view, as soon as any of its partitions has something newer than the token, and whether it has.
async fn newer_than(
    channel: &Channel,
    stream: &Stream,
    token: &Token,
    wait: Duration,
) -> Result<(Vec<ViewAt>, bool), Refusal> {
    if !wait.is_zero() {
        let mut asked = Vec::new();
        for partition in stream.partitions_of(channel) {
            let seen = token.position(partition).cloned();
            asked.push(ask(stream, partition, channel, seen)?);
        }
        // Whoever answers, or nobody: what is known then is looked at below.
        drop(timeout(wait, futures_util::future::select_all(asked)).await);
    }
    if stream.is_behind(token) {
        return Err(behind());
    }
    let parts = parts_of(channel, stream).await?;
    let partitions = stream.partitions_of(channel);
    let seen = || {
        let partitions = partitions.iter();
        partitions.map(|partition| token.position(*partition))
    };
    // First of all nothing goes back: of a view that is spread one partition may be newer here, and another not as far.
    if seen().zip(&parts).any(|(seen, part)| part.is_behind(seen)) {
        return Err(behind());
    }
    let newer = seen()
        .zip(&parts)
        .any(|(seen, part)| part.is_newer_than(seen));
    Ok((parts, newer))
}

async fn respond(channel: Channel, stream: Arc<Stream>, parts: Vec<ViewAt>, app: &App) -> Response {
    let now = app.clock.now();
    let token = Token::of(parts.iter().map(|part| part.snapshot.position().clone()));
    let freshness = freshness_of((&stream, &channel), &parts, now);
    let rows: usize = parts.iter().map(|part| part.snapshot.rows().len()).sum();
    let write = move || {
        let mut json = Vec::new();
        write_view(&mut json, &channel, &stream, &parts, now);
        json
    };
    let json = if rows <= ROWS_INLINE {
        write()
    } else {
        tokio::task::spawn_blocking(write).await.unwrap_or_default()
    };
    let head = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, etag(&token)),
    ];
    let mut response = (head, json).into_response();
    tell_freshness(&mut response, freshness);
    response
}

/// The state in the head: also of an answer without a body.
fn tell_freshness(response: &mut Response, freshness: Freshness) {
    let state = HeaderValue::from_static(write::state_word(freshness.state));
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("tidegate-freshness"), state);
    if let Some(age) = freshness.age_ms {
        headers.insert(
            HeaderName::from_static("tidegate-age-ms"),
            HeaderValue::from(age),
        );
    }
}

fn etag(token: &Token) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{token}\""))
        .unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// As fresh as the least fresh of its partitions.
fn freshness_of(
    (stream, channel): (&Stream, &Channel),
    parts: &[ViewAt],
    now: Moment,
) -> Freshness {
    let states = parts.iter().map(|part| {
        part.health.freshness(
            stream.options().freshness_slo,
            stream.options().expect_every,
            now,
        )
    });
    let freshness = least_fresh(states).unwrap_or(Freshness {
        state: FreshnessState::Unavailable,
        age_ms: None,
        reason: None,
    });
    let freshness = stream.misplaced.seen_in(freshness, channel);
    let is_live = freshness.state == FreshnessState::Live;
    if is_live && stream.misplaced.is_torn_for(channel) && !speaks_of_all(parts) {
        return Freshness {
            state: FreshnessState::Stale,
            reason: Some(StaleReason::IncompleteHistory),
            ..freshness
        };
    }
    freshness
}

/// Whether every row of an older part is one that a newer one speaks of: else it may have been deleted there.
fn speaks_of_all(parts: &[ViewAt]) -> bool {
    parts.iter().enumerate().all(|(at, part)| {
        let newer = &parts[at + 1..];
        let spoken = |id: &RowId| {
            let mut newer = newer.iter();
            newer.any(|part| part.snapshot.rows().contains_key(id))
        };
        let mut rows = part.snapshot.rows().iter();
        newer.is_empty() || rows.all(|(id, row)| row.is_grave() || spoken(id))
    })
}

fn write_view(
    out: &mut Vec<u8>,
    channel: &Channel,
    stream: &Stream,
    parts: &[ViewAt],
    now: Moment,
) {
    let token = Token::of(parts.iter().map(|part| part.snapshot.position().clone()));
    out.extend_from_slice(b"{\"channel\":");
    write::string(out, channel);
    out.extend_from_slice(format!(",\"position\":\"{token}\",\"freshness\":").as_bytes());
    let begin = out.len();
    write::freshness_fields(out, freshness_of((stream, channel), parts, now));
    out[begin] = b'{';
    out.extend_from_slice(b"},\"rows\":{");
    for (at, (id, row)) in rows_of(stream, parts).enumerate() {
        write::snapshot_row(out, at == 0, id.as_str(), row.ts_ms, Some(&row.data));
    }
    out.extend_from_slice(b"}}");
}

/// The rows of a view: of a channel that has moved each as the newest of its partitions has it that has said anything of it.
fn rows_of<'a>(stream: &Stream, parts: &'a [ViewAt]) -> impl Iterator<Item = (&'a RowId, &'a Row)> {
    let moves = stream.placement == Placement::ByChannel;
    let of_part = move |(at, part): (usize, &'a ViewAt)| {
        let newer = if moves { &parts[at + 1..] } else { &[] };
        let hidden = |id: &RowId| {
            newer
                .iter()
                .any(|part| part.snapshot.rows().contains_key(id))
        };
        let rows = part.snapshot.rows().iter();
        rows.filter(move |(id, row)| !row.is_grave() && !hidden(id))
    };
    parts.iter().enumerate().flat_map(of_part)
}
