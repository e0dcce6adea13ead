//! HTTP/1.1 as bytes: for tests that look at what is really sent, and send what no client library would.
//!
//! Does: writes requests, reads heads, chunks and bodies. Owns: its sockets. Never knows: what
//! the bodies mean. Every wait has a time-out that panics.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// No wait takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
///
/// # Panics
/// When it takes too long.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A head as it came.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status.
    pub status: u16,
    /// Names in lower case, values as they came.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// The first header of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its head.
    pub head: Head,
    /// Its body, chunks joined.
    pub body: Vec<u8>,
}

impl Answer {
    /// The status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.head.status
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status(), self.text()))
    }

    /// That it is a problem (RFC 9457) of this status and code; gives its detail.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status(), status, "{}", self.text());
        assert_eq!(
            self.head.get("content-type"),
            Some("application/problem+json")
        );
        let json = self.json();
        assert_eq!(
            (&json["status"], &json["code"]),
            (&status.into(), &code.into())
        );
        assert!(json["title"].is_string(), "{json}");
        json["detail"].as_str().unwrap_or_default().to_owned()
    }
}

/// One connection.
#[derive(Debug)]
pub struct Wire {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects.
    ///
    /// # Panics
    /// When that fails.
    pub async fn open(address: SocketAddr) -> Self {
        let socket = within("a connection", TcpStream::connect(address)).await;
        let socket = socket.unwrap_or_else(|error| panic!("connect: {error}"));
        Self::of(socket)
    }

    /// Takes a socket that is connected.
    #[must_use]
    pub const fn of(socket: TcpStream) -> Self {
        Self {
            socket,
            buffer: Vec::new(),
        }
    }

    /// Writes all of it.
    ///
    /// # Panics
    /// When the other end has gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = within("a write", self.socket.write_all(bytes.as_ref())).await;
        sent.unwrap_or_else(|error| panic!("write: {error}"));
    }

    /// Writes what the other end takes at once; gives how much that was.
    #[must_use]
    pub fn send_some(&mut self, bytes: &[u8]) -> usize {
        self.socket.try_write(bytes).unwrap_or(0)
    }

    /// Writes what the other end takes at once; whether it is still there, as far as is known.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        let sent = self.socket.try_write(bytes);
        sent.map_or_else(
            |error| error.kind() == std::io::ErrorKind::WouldBlock,
            |_| true,
        )
    }

    /// Whether the other end takes more within a quarter of a second: that it does not can only be seen by waiting.
    pub async fn writable_soon(&self) -> bool {
        let soon = timeout(Duration::from_millis(250), self.socket.writable());
        soon.await.is_ok()
    }

    /// Writes a request; a body gets its length.
    pub async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        self.send(request_bytes(method, path, headers, body)).await;
    }

    async fn more(&mut self) -> bool {
        let read = within("bytes", self.socket.read_buf(&mut self.buffer)).await;
        matches!(read, Ok(read) if read > 0)
    }

    /// Whether nothing has come that was not read.
    pub fn is_quiet(&mut self) -> bool {
        self.buffer.is_empty() && self.socket.try_read_buf(&mut self.buffer).is_err()
    }

    /// What has come and was not read yet.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads up to and including `end`.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn upto(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            let found = self.buffer.windows(end.len()).position(|at| at == end);
            if let Some(at) = found {
                return self.buffer.drain(..at + end.len()).collect();
            }
            let seen = String::from_utf8_lossy(&self.buffer).into_owned();
            assert!(self.more().await, "the connection ended after {seen:?}");
        }
    }

    /// Reads so many bytes.
    ///
    /// # Panics
    /// When the connection ends first.
    pub async fn exactly(&mut self, len: usize) -> Vec<u8> {
        while self.buffer.len() < len {
            assert!(self.more().await, "the connection ended too early");
        }
        self.buffer.drain(..len).collect()
    }

    /// Reads to the end of the connection; whatever has come, also when it was broken.
    pub async fn rest(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    /// Reads a head.
    ///
    /// # Panics
    /// When none comes.
    pub async fn head(&mut self) -> Head {
        let bytes = self.upto(b"\r\n\r\n").await;
        let text = String::from_utf8(bytes).unwrap_or_else(|error| panic!("a head: {error}"));
        let mut lines = text.trim_end().split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Head {
            status: status.unwrap_or_else(|| panic!("no status: {first}")),
            headers,
        }
    }

    /// Reads one chunk of a body (RFC 9112, section 7.1); none at its end.
    ///
    /// # Panics
    /// When it is not framed as it must be.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.upto(b"\r\n").await;
        let line = String::from_utf8_lossy(&line).into_owned();
        let len = usize::from_str_radix(line.trim(), 16)
            .unwrap_or_else(|_| panic!("no chunk size: {line:?}"));
        let chunk = self.exactly(len).await;
        assert_eq!(self.exactly(2).await, b"\r\n", "a chunk ends so");
        (len > 0).then_some(chunk)
    }

    /// Reads the body that goes with a head.
    pub async fn body(&mut self, head: &Head) -> Vec<u8> {
        if head.get("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            while let Some(chunk) = self.chunk().await {
                body.extend(chunk);
            }
            return body;
        }
        match head.get("content-length").and_then(|len| len.parse().ok()) {
            Some(len) => self.exactly(len).await,
            None if head.status == 304 || head.status == 204 => Vec::new(),
            None => self.rest().await,
        }
    }

    /// Reads an answer.
    pub async fn answer(&mut self) -> Answer {
        let head = self.head().await;
        let body = self.body(&head).await;
        Answer { head, body }
    }
}

/// A request as bytes. Headers come as given; `host` is added unless it is given.
#[must_use]
pub fn request_bytes(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let given = |name: &str| {
        headers
            .iter()
            .any(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    if !given("host") {
        head.push_str("host: gateway.test\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() && !given("transfer-encoding") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// Asks on a connection of its own.
pub async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Answer {
    let mut wire = Wire::open(address).await;
    wire.request(method, path, headers, body.as_ref()).await;
    wire.answer().await
}

/// Gets on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, "GET", path, &[], "").await
}

/// NDJSON as values.
///
/// # Panics
/// When a line is no JSON.
#[must_use]
pub fn lines_of(body: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(body);
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

/// The `Authorization` of [`API_KEY`](crate::gateway::API_KEY).
pub const BEARER: (&str, &str) = ("authorization", "Bearer a-key-of-the-tests");

/// A key's hash, as a configuration names it.
#[must_use]
pub fn sha256_of(key: &str) -> String {
    let hash = tidegate::auth::hash_api_key(key);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
