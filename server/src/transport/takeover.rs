//! Serving HTTP/1.1 on a socket until a handler takes the socket over.
//!
//! A handler that wants the socket fills the [`Slot`] in its request's extensions and answers with the head. When hyper has
//! written that head, which is kept back, hyper is taken apart and the bare socket goes to the worker: no upgraded stream, no
//! task. The head leaves with the worker's first words, in one write.

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    body::{Frame, Incoming},
    rt::ReadBufCursor,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};
use tower::ServiceExt;

use crate::worker::Opening;

/// hyper's least buffer; the configured limit of headers lies above it.
const HEAD_BYTES_MIN: usize = 8192;

/// After the last answer, what still comes is passed over for so long …
const LINGER: Duration = Duration::from_secs(2);
/// … and so far.
const LINGER_BYTES: usize = 16 << 20;

/// What every HTTP connection keeps to.
#[derive(Clone, Copy, Debug)]
pub struct HttpMax {
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Within which a head must come.
    pub head_timeout: Duration,
    /// Within which a body, or its next line, must come, and a reader take something.
    pub body_timeout: Duration,
}

impl HttpMax {
    /// Bytes of a head that are read before it is refused for its length.
    pub(super) fn head_buffer(&self) -> usize {
        self.head_bytes.max(HEAD_BYTES_MIN)
    }
}

#[derive(Default)]
struct Taken {
    opening: Option<Opening>,
    head_encoded: bool,
}

/// Where a handler says that it takes the socket over.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<Taken>>);

impl Slot {
    /// Takes the socket over as soon as the answer's head is written.
    pub(super) fn take_over(&self, opening: Opening) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .opening = Some(opening);
    }
    fn is_taken(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .opening
            .is_some()
    }
    fn head_is_encoded(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .head_encoded
    }
    fn opening(&self) -> Option<Opening> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .opening
            .take()
    }
    /// A body that never ends: its first poll tells that hyper has encoded the head.
    pub(super) fn held_body(&self) -> Body {
        Body::new(Held(self.clone()))
    }
}

struct Held(Slot);

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .head_encoded = true;
        Poll::Pending
    }
}

/// The socket under hyper. A completed flush after the head was encoded means that hyper has written all of the head, since
/// it flushes its io only with an empty buffer of its own.
struct Watched {
    io: TokioIo<TcpStream>,
    /// What was read before, and hyper has not asked for yet.
    first: Bytes,
    slot: Slot,
    head_sent: Rc<Cell<bool>>,
    /// The head of a socket that was taken over: whoever gets the socket sends it with its own first words.
    head: Vec<u8>,
    /// Runs while the socket takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    stall_max: Duration,
}

impl hyper::rt::Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let len = self.first.len().min(into.remaining());
            into.put_slice(&self.first.split_to(len));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl hyper::rt::Write for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.slot.is_taken() {
            self.head.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let most = self.stall_max;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(most)));
        if stalled.as_mut().poll(context).is_ready() {
            let error = "the client did not take its answer in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)));
        }
        Poll::Pending
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        if flushed.is_ready() && self.slot.head_is_encoded() {
            self.head_sent.set(true);
        }
        flushed
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// A socket that a handler took over.
pub(super) struct Handover {
    /// The socket, still in tokio's reactor.
    pub(super) socket: TcpStream,
    /// The answer's head, which has not left yet.
    pub(super) head: Vec<u8>,
    /// What was read beyond the request.
    pub(super) early: Bytes,
    /// How the connection begins.
    pub(super) opening: Opening,
}

/// Serves `router` on `socket`, of which `first` was read already, until the client or the server ends it, or a handler takes the socket over. `on_head` is told
/// of each request whose head has come.
pub(super) async fn serve(
    (socket, first): (TcpStream, Bytes),
    router: Router,
    max: HttpMax,
    peer: std::net::SocketAddr,
    on_head: impl Fn() + Unpin,
) -> Option<Handover> {
    let (slot, head_sent) = (Slot::default(), Rc::new(Cell::new(false)));
    let extension = slot.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        on_head();
        request.extensions_mut().insert(extension.clone());
        request
            .extensions_mut()
            .insert(axum::extract::ConnectInfo(peer));
        Box::pin(router.clone().oneshot(request.map(Body::new)))
    });
    let io = Watched {
        io: TokioIo::new(socket),
        first,
        slot: slot.clone(),
        head_sent: head_sent.clone(),
        head: Vec::new(),
        stalled: None,
        stall_max: max.body_timeout,
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(max.head_timeout)
        .max_buf_size(max.head_buffer())
        .serve_connection(io, service);
    let served = poll_fn(|context| match connection.poll_without_shutdown(context) {
        Poll::Pending if head_sent.get() => Poll::Ready(Ok(())),
        polled => polled,
    });
    let served = served.await;
    let parts = connection.into_parts();
    let early = match &parts.io.first[..] {
        [] => parts.read_buf,
        rest => [&parts.read_buf, rest].concat().into(),
    };
    let (socket, head) = (parts.io.io.into_inner(), parts.io.head);
    if let Err(error) = &served {
        tracing::debug!(%peer, %error, "http connection ended");
    }
    match slot.opening() {
        Some(opening) if served.is_ok() => Some(Handover {
            socket,
            head,
            early,
            opening,
        }),
        _ => {
            linger(socket).await;
            None
        }
    }
}

/// A socket that is closed with bytes unread sends a reset, which may overtake the answer: so who still writes, because it
/// was refused before its body was read, is read from for a little while (RFC 9112, section 9.6).
pub(super) async fn linger(mut socket: TcpStream) {
    if socket.shutdown().await.is_err() {
        return;
    }
    let passing_over = async {
        let (mut void, mut left) = (vec![0; 16 * 1024], LINGER_BYTES);
        while left > 0 {
            match socket.read(&mut void).await {
                Ok(len) if len > 0 => left = left.saturating_sub(len),
                _ => return,
            }
        }
    };
    // Who writes on and on is cut off.
    drop(timeout(LINGER, passing_over).await);
}
