//! The private listener: health, metrics, inspection, and the operator's hands.
//!
//! Does: answers probes, shows what the node knows of itself, pauses, delays, closes, drains. Owns: its listener. Never
//! knows: what is in the data. Keeps: readiness never depends on a source, else the fleet would leave its balancer in the
//! very outage that staleness is marked for; nothing changes but by a POST that the guard let through; nothing but a probe is
//! answered to who asks for another host.

mod guard;
mod hands;
mod inspect;
mod metrics;
mod reload;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::limit::GlobalConcurrencyLimitLayer;

pub use guard::Guard;
pub use reload::{NotReloaded, Reload, Reloaded};

use crate::{
    materializer::Statuses,
    partition::task::{Inspection, Request as Ask},
    protocol::{ErrorCode, Refusal},
    streams::{PartitionHandle, Stream},
    transport::{
        App,
        problem::Problem,
        thread::{Command, WorkerHandle},
    },
    upstream::Upstreams,
};

/// How long a worker or a partition is waited for; what does not answer is left out.
const ANSWER: Duration = Duration::from_secs(1);
/// Requests at once, beside the probes; more of them wait.
const REQUESTS_MAX: usize = 16;
/// How long requests may go on when the node stops.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// What the handlers share.
pub struct Admin {
    app: Arc<App>,
    workers: Vec<WorkerHandle>,
    node: Arc<str>,
    guard: Guard,
    reload: Arc<dyn Reload>,
    upstreams: Arc<Upstreams>,
    materializers: Arc<Statuses>,
}

impl Admin {
    /// For this node.
    #[must_use]
    pub fn new(
        app: Arc<App>,
        workers: Vec<WorkerHandle>,
        node: Arc<str>,
        guard: Guard,
        reload: Arc<dyn Reload>,
        upstreams: Arc<Upstreams>,
        materializers: Arc<Statuses>,
    ) -> Arc<Self> {
        Arc::new(Self {
            app,
            workers,
            node,
            guard,
            reload,
            upstreams,
            materializers,
        })
    }

    /// Asks all workers at once; whoever does not answer in time is left out.
    async fn ask_workers<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let asks = self.workers.iter().map(|worker| {
            let (reply, answer) = oneshot::channel();
            let command = command(reply);
            async move {
                timeout(ANSWER, async {
                    worker.commands.send(command).await.ok()?;
                    answer.await.ok()
                })
                .await
                .ok()
                .flatten()
            }
        });
        join_all(asks).await.into_iter().flatten().collect()
    }

    /// Asks all partitions of these streams at once; none for those that do not answer in time.
    async fn ask_partitions(&self, streams: &[Arc<Stream>]) -> Vec<Asked> {
        let ask = async |stream: &Arc<Stream>, number: u32, handle: &PartitionHandle| Asked {
            stream: stream.clone(),
            number,
            inspection: inspection_of(&handle.requests).await,
        };
        let ask = &ask;
        let asks = streams.iter().flat_map(|stream| {
            let handles = (0u32..).zip(&stream.partitions);
            handles.map(move |(number, handle)| ask(stream, number, handle))
        });
        join_all(asks).await
    }
}

/// A partition, and what its task said of itself.
struct Asked {
    stream: Arc<Stream>,
    number: u32,
    inspection: Option<Inspection>,
}

impl Asked {
    fn handle(&self) -> &PartitionHandle {
        &self.stream.partitions[self.number as usize]
    }
}

async fn inspection_of(requests: &mpsc::Sender<Ask>) -> Option<Inspection> {
    let (reply, answer) = oneshot::channel();
    requests.try_send(Ask::Inspect(reply)).ok()?;
    timeout(ANSWER, answer).await.ok()?.ok()
}

fn routes(admin: Arc<Admin>) -> Router {
    let hands = Router::new()
        .route("/streams/{stream}/pause", post(hands::pause))
        .route("/streams/{stream}/resume", post(hands::resume))
        .route("/streams/{stream}/delay", post(hands::delay))
        .route("/streams/{stream}/skip", post(hands::skip))
        .route("/connections/close", post(hands::close))
        .route("/drain", post(hands::drain))
        .route("/reload", post(reload::reload))
        .route_layer(middleware::from_fn_with_state(admin.clone(), guard::check));
    let bounded = Router::new()
        .route("/metrics", get(metrics::scrape))
        .route("/inspect/streams", get(inspect::streams))
        .route("/inspect/partitions", get(inspect::partitions))
        .route("/inspect/channels", get(inspect::channels))
        .route("/inspect/connections", get(inspect::connections))
        .route("/inspect/breakers", get(inspect::breakers))
        .route("/inspect/materializer", get(inspect::materializer))
        .merge(hands)
        .route_layer(middleware::from_fn_with_state(
            admin.clone(),
            guard::check_host,
        ))
        .route_layer(GlobalConcurrencyLimitLayer::new(REQUESTS_MAX));
    Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(hands::ready))
        .merge(bounded)
        .fallback(|| async {
            Problem(Refusal::new(
                ErrorCode::NotFound,
                "no such path: see docs/reference/admin.md",
            ))
        })
        .with_state(admin)
}

/// Serves until it is stopped, and lets what was asked until then finish, for a second.
pub async fn serve(admin: Arc<Admin>, listener: std::net::TcpListener, stop: CancellationToken) {
    admin.guard.say();
    let listener = listener
        .set_nonblocking(true)
        .and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin listener did not start"),
    };
    let stopped = stop.clone().cancelled_owned();
    let serving = axum::serve(listener, routes(admin)).with_graceful_shutdown(stopped);
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_REQUESTS).await;
    };
    tokio::select! {
        biased;
        served = serving.into_future() => if let Err(error) = served {
            tracing::error!(%error, "the admin listener ended");
        },
        () = late => {}
    }
}

fn json(value: serde_json::Value) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(value)).into_response()
}

/// A problem whose status no error code of the protocol has.
fn problem(status: StatusCode, code: &str, detail: &str) -> Response {
    problem_with(status, code, detail, serde_json::json!({}))
}

/// The same with more to it: the fields of an object.
fn problem_with(status: StatusCode, code: &str, detail: &str, more: serde_json::Value) -> Response {
    let mut body = more;
    body["type"] = "about:blank".into();
    body["status"] = status.as_u16().into();
    body["code"] = code.into();
    body["title"] = status.canonical_reason().into();
    body["detail"] = detail.into();
    let kind = [
        (header::CONTENT_TYPE, "application/problem+json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, kind, body.to_string()).into_response()
}

fn bad_request(message: impl Into<String>) -> Problem {
    Problem(Refusal::new(ErrorCode::BadRequest, message))
}
