//! What an operator does: readiness, pause, resume, delay, skip, close, drain.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{Admin, bad_request, json as respond, problem};
use crate::{
    model::Offset,
    protocol::{CloseCode, ErrorCode, Refusal},
    source::{hindered::Hindrance, poisons::Poisons},
    transport::{problem::Problem, thread::Command},
    worker::{Farewell, Pick},
};

/// The longest delay, in milliseconds.
const DELAY_MS_MAX: u64 = 3_600_000;
/// The longest that a client is asked to stay away, in milliseconds.
const RECONNECT_MS_MAX: u64 = 3_600_000;

pub(super) async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.app.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else {
        "ready\n".into_response()
    }
}

pub(super) async fn pause(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
) -> Result<Response, Problem> {
    hinder(&admin, &stream, |hindrance| hindrance.paused = true)
}

pub(super) async fn resume(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
) -> Result<Response, Problem> {
    hinder(&admin, &stream, |hindrance| {
        *hindrance = Hindrance::default()
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Delay {
    ms: u64,
}

pub(super) async fn delay(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
    delay: Result<Query<Delay>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(delay) = delay.map_err(|error| bad_request(error.body_text()))?;
    if delay.ms > DELAY_MS_MAX {
        return Err(bad_request(format!("ms: {DELAY_MS_MAX} at most")));
    }
    hinder(&admin, &stream, |hindrance| {
        hindrance.delay = Duration::from_millis(delay.ms)
    })
}

fn unknown(stream: &str) -> Problem {
    let message = format!("there is no stream {stream:?}");
    Problem(Refusal::new(ErrorCode::UnknownStream, message))
}

fn hinder(
    admin: &Admin,
    stream: &str,
    change: impl FnOnce(&mut Hindrance),
) -> Result<Response, Problem> {
    let found = admin.app.streams.get(stream);
    let stream = found.ok_or_else(|| unknown(stream))?;
    stream.hindrance.send_modify(change);
    let now = *stream.hindrance.borrow();
    tracing::info!(stream = stream.name, paused = now.paused, delay = ?now.delay, "hindered by an operator");
    let delay_ms = u64::try_from(now.delay.as_millis()).unwrap_or(u64::MAX);
    Ok(respond(json!({
        "stream": stream.name,
        "paused": now.paused,
        "delay_ms": delay_ms,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Skip {
    partition: u32,
    offset: u64,
}

/// Passes over the one record at which a partition stopped: of the node, of the materializer in this process, or of both.
pub(super) async fn skip(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
    skip: Result<Query<Skip>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Skip { partition, offset }) = skip.map_err(|error| bad_request(error.body_text()))?;
    let served = admin.app.streams.get(&stream);
    let folded = admin.materializers.of(&stream);
    if served.is_none() && folded.is_none() {
        return Err(unknown(&stream));
    }
    let record = Offset::new(offset);
    let excused = |poisons: &Poisons| poisons.excuse(partition, record);
    let node = served.is_some_and(|stream| excused(&stream.poisons));
    let materializer = folded.is_some_and(|status| excused(&status.poisons));
    if !node && !materializer {
        let detail = format!(
            "partition {partition} of {stream} does not stop at offset {offset} here: /inspect/partitions and /inspect/materializer say where it does"
        );
        return Ok(problem(StatusCode::CONFLICT, "not_stopped", &detail));
    }
    tracing::info!(
        stream,
        partition,
        offset,
        node,
        materializer,
        "a record that means nothing is passed over by an operator"
    );
    Ok(respond(json!({
        "stream": stream,
        "partition": partition,
        "offset": offset,
        "node": node,
        "materializer": materializer,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Close {
    sub: Option<String>,
    id: Option<String>,
    reconnect_after_ms: Option<u64>,
}

impl Close {
    fn pick(&self) -> Result<Pick, Problem> {
        match (&self.id, &self.sub) {
            (Some(id), None) => Ok(Pick::Id(id.clone())),
            (None, Some(subject)) => Ok(Pick::Subject(subject.clone())),
            _ => Err(bad_request("name either ?id= or ?sub=")),
        }
    }

    /// Without a word on reconnecting, nobody shall.
    fn farewell(&self) -> Result<Farewell, Problem> {
        match self.reconnect_after_ms {
            None => Ok(Farewell::FOR_GOOD),
            Some(after) if after > RECONNECT_MS_MAX => Err(bad_request(format!(
                "reconnect_after_ms: {RECONNECT_MS_MAX} at most"
            ))),
            Some(after) => Ok(Farewell {
                code: CloseCode::Moved,
                reconnect_after_ms: Some(after),
                apart: false,
            }),
        }
    }
}

pub(super) async fn close(
    State(admin): State<Arc<Admin>>,
    close: Result<Query<Close>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(close) = close.map_err(|error| bad_request(error.body_text()))?;
    let (pick, farewell) = (close.pick()?, close.farewell()?);
    let answers = admin
        .ask_workers(|reply| Command::Close(pick.clone(), farewell, reply))
        .await;
    let closed: usize = answers.iter().sum();
    let workers_silent = admin.workers.len() - answers.len();
    tracing::info!(
        ?pick,
        code = farewell.code.as_str(),
        closed,
        workers_silent,
        "connections closed by an operator"
    );
    Ok(respond(json!({
        "closed": closed,
        "code": farewell.code.number(),
        "workers_silent": workers_silent,
    })))
}

/// Asks whoever runs the node to drain it. Nobody new is admitted from now on.
pub(super) async fn drain(State(admin): State<Arc<Admin>>) -> Response {
    admin.app.draining.store(true, Ordering::Relaxed);
    admin.app.leave.cancel();
    tracing::info!("asked to leave by an operator");
    (StatusCode::ACCEPTED, Json(json!({"draining": true}))).into_response()
}
