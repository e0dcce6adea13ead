//! An upstream around a tower service.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tower::{Layer, Service, ServiceExt};

use super::{CallError, Upstream, Verdict};

/// Puts a service behind its upstream. `verdict` says which of its results count as failures.
#[derive(Clone, Debug)]
pub struct UpstreamLayer<V> {
    upstream: Arc<Upstream>,
    verdict: V,
}

impl<V> UpstreamLayer<V> {
    /// A layer of this upstream.
    #[must_use]
    pub const fn new(upstream: Arc<Upstream>, verdict: V) -> Self {
        Self { upstream, verdict }
    }
}

impl<S, V: Clone> Layer<S> for UpstreamLayer<V> {
    type Service = Guarded<S, V>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded {
            inner,
            upstream: self.upstream.clone(),
            verdict: self.verdict.clone(),
        }
    }
}

/// A service behind its upstream. It is always ready: an open breaker answers each call at once, where holding callers back
/// until it closes would let them pile up. The inner service's readiness is waited for inside of the call and its time-out.
#[derive(Clone, Debug)]
pub struct Guarded<S, V> {
    inner: S,
    upstream: Arc<Upstream>,
    verdict: V,
}

impl<S, V, R> Service<R> for Guarded<S, V>
where
    S: Service<R> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
    R: Send + 'static,
    V: Fn(&Result<S::Response, S::Error>) -> Verdict + Clone + Send + 'static,
{
    type Response = S::Response;
    type Error = CallError<S::Error>;
    type Future = BoxFuture<'static, Result<S::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let Self {
            inner,
            upstream,
            verdict,
        } = self.clone();
        // `oneshot` does nothing until it is polled, which a refused call never is.
        Box::pin(async move { upstream.call(inner.oneshot(request), verdict).await })
    }
}
