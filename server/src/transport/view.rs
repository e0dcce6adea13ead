//! `GET /v1/view/{channel}` and `POST /v1/views`: a view as one answer; with `wait`, once there is something newer.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{
        Path, Query, Request, State,
        rejection::{JsonRejection, PathRejection},
    },
    http::{HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{sync::oneshot, time::timeout};

use super::{App, bad_path, problem::Problem};
use crate::{
    auth::{Claims, Permission},
    model::{Channel, Freshness, FreshnessState, Mode, Moment, Position, Token},
    partition::{ViewAt, tail::least_fresh, task::Request as Ask},
    protocol::{ErrorCode, Refusal, write},
    streams::Stream,
};

/// The longest `wait`, in seconds.
const WAIT_MAX: u64 = 60;
/// Without `wait`, a node that can't answer within this time is behind.
const ANSWER: Duration = Duration::from_secs(5);
/// Channels of one `POST /v1/views`.
const VIEWS_MAX: usize = 100;
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
    let answer = match &seen {
        Some(token) => {
            let newer = newer_than(&channel, &stream, token, Duration::from_secs(wait)).await?;
            match newer {
                Some(parts) => parts,
                None => {
                    return Ok(
                        (StatusCode::NOT_MODIFIED, [(header::ETAG, etag(token))]).into_response()
                    );
                }
            }
        }
        None => parts_of(&channel, &stream).await?,
    };
    Ok(respond(channel, stream, answer, &app).await)
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
    headers: axum::http::HeaderMap,
    body: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Result<Response, Problem> {
    app.counts.requests.add(1);
    let claims = app.claims(app.token_of(&headers))?;
    let bad = |message: String| Refusal::new(ErrorCode::BadRequest, message);
    let Json(body) = body.map_err(|error| bad(error.body_text()))?;
    let several: Several =
        serde_json::from_value(Value::Object(body)).map_err(|error| bad(error.to_string()))?;
    if several.channels.len() > VIEWS_MAX {
        return Err(Refusal::new(
            ErrorCode::TooManyChannels,
            format!("at most {VIEWS_MAX} channels in one request"),
        )
        .into());
    }
    let mut json = b"{\"views\":[".to_vec();
    for (at, channel) in several.channels.iter().enumerate() {
        let (channel, stream) = find(&app, &claims, channel)?;
        let parts = parts_of(&channel, &stream).await?;
        if at > 0 {
            json.push(b',');
        }
        write_view(&mut json, &channel, &stream, &parts, app.clock.now());
    }
    json.extend_from_slice(b"]}");
    Ok((
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        json,
    )
        .into_response())
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
    let (reply, answer) = oneshot::channel();
    let request = Ask::View {
        channel: channel.clone(),
        newer_than,
        reply,
    };
    let sent = stream.partitions[partition as usize]
        .requests
        .try_send(request);
    sent.map_err(|_| {
        Refusal::retry(
            ErrorCode::Overloaded,
            "too many requests wait for this stream",
            1000,
        )
    })?;
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

/// The view, as soon as any of its partitions has something newer than the token; none when nothing came in time.
async fn newer_than(
    channel: &Channel,
    stream: &Stream,
    token: &Token,
    wait: Duration,
) -> Result<Option<Vec<ViewAt>>, Refusal> {
    let newer = |parts: &Vec<ViewAt>| {
        let mut partitions = stream.partitions_of(channel).zip(parts);
        partitions.any(|(partition, part)| part.is_newer_than(token.position(partition)))
    };
    if !wait.is_zero() {
        let mut asked = Vec::new();
        for partition in stream.partitions_of(channel) {
            let seen = token.position(partition).cloned();
            asked.push(ask(stream, partition, channel, seen)?);
        }
        if timeout(wait, futures_util::future::select_all(asked))
            .await
            .is_err()
        {
            return Ok(None);
        }
    }
    Ok(Some(parts_of(channel, stream).await?).filter(newer))
}

async fn respond(channel: Channel, stream: Arc<Stream>, parts: Vec<ViewAt>, app: &App) -> Response {
    let now = app.clock.now();
    let token = Token::of(parts.iter().map(|part| part.snapshot.position().clone()));
    let freshness = freshness_of(&stream, &parts, now);
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
    let state = HeaderValue::from_static(write::state_word(freshness.state));
    let head = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, etag(&token)),
        (HeaderName::from_static("tidegate-freshness"), state),
    ];
    let mut response = (head, json).into_response();
    if let Some(age) = freshness.age_ms {
        response.headers_mut().insert(
            HeaderName::from_static("tidegate-age-ms"),
            HeaderValue::from(age),
        );
    }
    response
}

fn etag(token: &Token) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{token}\""))
        .unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// As fresh as the least fresh of its partitions.
fn freshness_of(stream: &Stream, parts: &[ViewAt], now: Moment) -> Freshness {
    let states = parts.iter().map(|part| {
        part.health
            .freshness(stream.freshness_slo, stream.expect_every, now)
    });
    least_fresh(states).unwrap_or(Freshness {
        state: FreshnessState::Unavailable,
        age_ms: None,
        reason: None,
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
    write::freshness_fields(out, freshness_of(stream, parts, now));
    out[begin] = b'{';
    out.extend_from_slice(b"},\"rows\":{");
    let rows = parts.iter().flat_map(|part| part.snapshot.rows().iter());
    for (at, (id, row)) in rows.enumerate() {
        write::snapshot_row(out, at == 0, id.as_str(), row.ts_ms, &row.data);
    }
    out.extend_from_slice(b"}}");
}
