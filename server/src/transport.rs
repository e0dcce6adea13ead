//! The door: listener, admission, HTTP, and the hand-over of sockets to the worker.
//!
//! Does: accepts, answers HTTP through axum, checks who may come in, and gives WebSocket and SSE sockets to the worker of
//! the same thread. Owns: the listeners and the HTTP connections. Never knows: lanes, outboxes, views. Keeps: I7 (every
//! task of a thread is in one tracker, which is waited for at the end).

pub mod admission;
mod assets;
mod door;
mod head;
pub mod live;
pub mod problem;
mod sse;
mod takeover;
pub mod thread;
mod view;
mod websocket;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use axum::{
    Router,
    extract::{Request, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::Response,
    routing::{any, get, post},
};
use tokio_util::sync::CancellationToken;

use live::LiveDoor;
use tower_http::cors::{AllowCredentials, AllowOrigin, CorsLayer};

use crate::{
    auth::{AuthError, Claims},
    clock::Clock,
    model::Channel,
    protocol::{ErrorCode, Refusal},
    publish::{self, Publisher},
    streams::{Stream, Streams},
    telemetry::{LogCounts, NodeCounts, WorkerCounts},
};

pub use takeover::HttpMax;

/// What the HTTP handlers share.
pub struct App {
    /// The node's streams.
    pub streams: Arc<Streams>,
    /// Who may come in, as of now: what a reload replaces.
    pub live: LiveDoor,
    /// Where records go.
    pub publisher: Arc<Publisher>,
    /// The time.
    pub clock: Clock,
    /// What the node counts.
    pub counts: Arc<NodeCounts>,
    /// What the writer of its data directory counts; nothing without one.
    pub log_counts: Arc<LogCounts>,
    /// What its workers count.
    pub workers: Vec<Arc<WorkerCounts>>,
    /// Channels of one connection.
    pub channels_max: usize,
    /// What every HTTP connection keeps to.
    pub http: HttpMax,
    /// Long-polls that wait now.
    pub long_polls: AtomicUsize,
    /// The node is leaving.
    pub draining: AtomicBool,
    /// An operator asked the node to leave: whoever runs it drains it then.
    pub leave: CancellationToken,
    /// Spreads what must not happen to all clients at once.
    pub seed: AtomicU64,
}

/// The token of an `Authorization: Bearer` header.
#[must_use]
pub fn bearer_of(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    // A scheme without a token is a token that does not hold, not a client without one.
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl App {
    /// Whether the node is leaving.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A number below `span`, another one each time.
    #[must_use]
    pub fn jitter(&self, span: u64) -> u64 {
        let next = self
            .seed
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        ((next ^ (next >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) % span.max(1)
    }

    /// Whether a token holds.
    ///
    /// # Errors
    /// What the client is told.
    pub fn verify(&self, token: &str) -> Result<Arc<Claims>, Refusal> {
        self.live
            .load()
            .authority
            .verify(token, self.clock.wall_s())
            .map_err(|error| refusal_of(&error))
    }

    /// What this token permits, or what everybody is permitted.
    ///
    /// # Errors
    /// `unauthorized` and its kin.
    pub fn claims(&self, token: Option<&str>) -> Result<Arc<Claims>, Refusal> {
        match token {
            Some(token) => self.verify(token),
            None => self.anonymous().ok_or_else(|| {
                Refusal::new(
                    ErrorCode::Unauthorized,
                    "a token is needed: Authorization: Bearer …",
                )
            }),
        }
    }

    /// What a client without a token may do.
    #[must_use]
    pub fn anonymous(&self) -> Option<Arc<Claims>> {
        self.live.load().authority.anonymous()
    }

    /// A request's token: its header, else the cookie, where the page is one that may connect.
    #[must_use]
    pub fn token_of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        bearer_of(headers).or_else(|| {
            let live = self.live.load();
            let name = live.cookie.as_deref()?;
            if !self.origin_is_allowed(headers) {
                return None;
            }
            let cookies = headers
                .get_all(header::COOKIE)
                .iter()
                .filter_map(|value| value.to_str().ok());
            let mut pairs = cookies
                .flat_map(|value| value.split(';'))
                .filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        })
    }

    /// Browsers say where a page came from; whoever is no browser says nothing, and its token speaks for it.
    fn origin_is_allowed(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return true;
        };
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        if self.live.load().names_origin(origin) {
            return true;
        }
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let of_origin = origin.split_once("://").map(|(_, host)| host);
        host.is_some() && host == of_origin
    }

    /// Whether another long-lived connection may come in.
    ///
    /// # Errors
    /// `draining`, `forbidden` by origin, `overloaded`.
    pub fn admit(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        if self.is_draining() {
            return Err(Refusal::retry(
                ErrorCode::Draining,
                "this node is leaving: connect to another",
                1000 + self.jitter(4000),
            ));
        }
        if !self.origin_is_allowed(headers) {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                "pages of this origin may not connect: listen.origins names those that may",
            ));
        }
        if self.connections() >= self.live.load().connections_max {
            self.counts.turned.connections.add(1);
            return Err(Refusal::retry(
                ErrorCode::Overloaded,
                "limits.connections is reached",
                5000 + self.jitter(5000),
            ));
        }
        Ok(())
    }

    /// Connections that the workers own.
    #[must_use]
    pub fn connections(&self) -> usize {
        let count: u64 = self
            .workers
            .iter()
            .map(|counts| counts.websocket.get() + counts.sse.get())
            .sum();
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// Whether an event stream may have these channels.
    fn check_channels(&self, channels: &[Channel]) -> Result<Arc<Stream>, Refusal> {
        let Some(first) = channels.first() else {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "name at least one channel: ?channel=stream/name",
            ));
        };
        if channels.len() > self.channels_max {
            return Err(Refusal::new(
                ErrorCode::TooManyChannels,
                format!("a connection has at most {} channels", self.channels_max),
            ));
        }
        if channels
            .iter()
            .any(|channel| channel.stream() != first.stream())
        {
            return Err(Refusal::new(
                ErrorCode::BadRequest,
                "the channels of one event stream must be of one stream: one id serves them all",
            ));
        }
        let unknown = || {
            Refusal::new(
                ErrorCode::UnknownStream,
                format!("there is no stream {}", first.stream()),
            )
        };
        self.streams.get(first.stream()).ok_or_else(unknown)
    }
}

/// What a client is told of a token that does not hold.
#[must_use]
pub fn refusal_of(error: &AuthError) -> Refusal {
    let code = match error {
        AuthError::Expired => ErrorCode::TokenExpired,
        AuthError::Refused(_) | AuthError::Claims(_) | AuthError::NotYetValid => {
            ErrorCode::Unauthorized
        }
    };
    Refusal::new(code, error.to_string())
}

/// What a client is told whose path can't be read.
#[must_use]
pub fn bad_path(error: &PathRejection) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, error.body_text())
}

/// The public routes.
pub fn router(app: Arc<App>) -> Router {
    let cors = cors(app.clone());
    Router::new()
        .route("/v1/ws", any(websocket::handshake))
        .route("/v1/sse", get(sse::stream))
        .route("/v1/view/{*channel}", get(view::one))
        .route("/v1/views", post(view::several))
        .route("/v1/publish/{stream}", post(publish::http::publish))
        .merge(assets::router())
        .fallback(|| async {
            problem::Problem(Refusal::new(
                ErrorCode::NotFound,
                "no such path: see docs/protocol.md",
            ))
        })
        .method_not_allowed_fallback(|| async {
            let refusal = Refusal::new(ErrorCode::BadRequest, "no such method here");
            problem::Problem(refusal).under(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(cors)
        .layer(middleware::from_fn_with_state(app.clone(), open_to_all))
        .with_state(app)
}

/// Where every page may read, the answer says so in a word that caches can keep.
async fn open_to_all(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if app.live.load().names_all() {
        let all = HeaderValue::from_static("*");
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, all);
    }
    response
}

/// What pages of other origins may read, asked anew at each request: a reload may have changed it.
fn cors(app: Arc<App>) -> CorsLayer {
    let asked = app.clone();
    let origins = AllowOrigin::predicate(move |origin: &HeaderValue, _: &Parts| {
        origin
            .to_str()
            .is_ok_and(|origin| asked.live.load().names_origin(origin))
    });
    let credentials = AllowCredentials::predicate(move |_: &HeaderValue, _: &Parts| {
        app.live.load().cookie.is_some()
    });
    let own = |name| HeaderName::from_static(name);
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_NONE_MATCH,
            own("last-event-id"),
            own("idempotency-key"),
        ])
        .expose_headers([
            header::ETAG,
            header::RETRY_AFTER,
            own("tidegate-freshness"),
            own("tidegate-age-ms"),
        ])
        .allow_credentials(credentials)
}
