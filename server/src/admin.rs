//! The private listener: health, metrics, inspection, and the operator's hands.
//!
//! Does: answers probes, shows what the node knows of itself, pauses, delays, closes, drains. Owns: its listener. Never
//! knows: what is in the data. Readiness never depends on a source: else the fleet would leave its balancer in the very
//! outage that the ladder is for.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::{
    protocol::{ErrorCode, Refusal},
    source::embedded::Hindrance,
    transport::{App, problem::Problem, thread::WorkerHandle},
};

/// What the handlers share.
pub struct Admin {
    app: Arc<App>,
    workers: Vec<WorkerHandle>,
    node: Arc<str>,
    token: Option<String>,
}

impl Admin {
    /// For this node.
    #[must_use]
    pub fn new(
        app: Arc<App>,
        workers: Vec<WorkerHandle>,
        node: Arc<str>,
        token: Option<String>,
    ) -> Arc<Self> {
        Arc::new(Self {
            app,
            workers,
            node,
            token,
        })
    }
}

/// Serves until it is stopped.
pub async fn serve(admin: Arc<Admin>, listener: std::net::TcpListener, stop: CancellationToken) {
    let router = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/streams/{stream}/pause", post(pause))
        .route("/streams/{stream}/resume", post(resume))
        .route("/streams/{stream}/delay", post(delay))
        .with_state(admin);
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(listener));
    let served = match listener {
        Ok(listener) => {
            axum::serve(listener, router)
                .with_graceful_shutdown(async move { stop.cancelled().await })
                .await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the admin listener ended");
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.app.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
    } else {
        "ready\n".into_response()
    }
}

async fn pause(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
) -> Result<Response, Problem> {
    hinder(&admin, &stream, |hindrance| hindrance.paused = true)
}

async fn resume(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
) -> Result<Response, Problem> {
    hinder(&admin, &stream, |hindrance| {
        *hindrance = Hindrance::default()
    })
}

#[derive(Deserialize)]
struct Delay {
    ms: u64,
}

async fn delay(
    State(admin): State<Arc<Admin>>,
    Path(stream): Path<String>,
    Query(delay): Query<Delay>,
) -> Result<Response, Problem> {
    hinder(&admin, &stream, |hindrance| {
        hindrance.delay = Duration::from_millis(delay.ms.min(3_600_000))
    })
}

fn hinder(
    admin: &Admin,
    stream: &str,
    change: impl FnOnce(&mut Hindrance),
) -> Result<Response, Problem> {
    let found = admin.app.streams.get(stream);
    let stream = found.ok_or_else(|| {
        Refusal::new(
            ErrorCode::UnknownStream,
            format!("there is no stream {stream:?}"),
        )
    })?;
    stream.hindrance.send_modify(change);
    let now = *stream.hindrance.borrow();
    let delay_ms = u64::try_from(now.delay.as_millis()).unwrap_or(u64::MAX);
    Ok(
        Json(
            serde_json::json!({"stream": stream.name, "paused": now.paused, "delay_ms": delay_ms}),
        )
        .into_response(),
    )
}
