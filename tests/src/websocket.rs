//! A WebSocket client that a test leads by the hand.
//!
//! Does: the handshake, requests and their answers, waits with a hard time-out. Owns: one connection and what it received.
//! Never knows: the gateway's insides. Keeps: messages are handed out in the order in which they came, each once; a time-out
//! tells what came instead.

use std::{collections::VecDeque, net::SocketAddr};

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        handshake::client::Response,
        http::{HeaderName, HeaderValue},
    },
};

use crate::gateway::{Node, SOON};

/// Messages that a time-out shows.
const SHOWN: usize = 12;

/// How to connect.
#[derive(Clone, Debug, Default)]
pub struct Connect {
    headers: Vec<(&'static str, String)>,
    receive_buffer: Option<u32>,
}

impl Connect {
    /// As a browser's page without a token.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With a header of the handshake.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a token.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// With a receive buffer of about so many bytes: such a client blocks soon when it does not read.
    #[must_use]
    pub const fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Connects; gives the answer to the handshake, too.
    ///
    /// # Errors
    /// When the handshake fails: the cause is tungstenite's error.
    pub async fn open(&self, node: &Node) -> anyhow::Result<(Client, Response)> {
        self.open_at(node.gateway.address()).await
    }

    /// Connects to whoever listens there; gives the answer to the handshake, too.
    ///
    /// # Errors
    /// When the handshake fails: the cause is tungstenite's error.
    pub async fn open_at(&self, address: SocketAddr) -> anyhow::Result<(Client, Response)> {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = timeout(SOON, socket.connect(address)).await??;
        stream.set_nodelay(true)?;
        let mut request = format!("ws://{address}/v1/ws").into_client_request()?;
        for (name, value) in &self.headers {
            request
                .headers_mut()
                .append(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
        let (socket, response) = timeout(SOON, client_async(request, stream)).await??;
        let client = Client {
            socket,
            waiting: VecDeque::new(),
            recent: VecDeque::new(),
            next_id: 1,
        };
        Ok((client, response))
    }

    /// Connects and takes the `hello`.
    ///
    /// # Errors
    /// When the handshake fails, or something else comes first.
    pub async fn hello(&self, node: &Node) -> anyhow::Result<Client> {
        let (mut client, _) = self.open(node).await?;
        let hello = client.next().await?;
        ensure!(hello["op"] == "hello", "{hello}");
        Ok(client)
    }
}

/// A connection.
pub struct Client {
    /// The socket, for what only one test does.
    pub socket: WebSocketStream<TcpStream>,
    waiting: VecDeque<Value>,
    recent: VecDeque<String>,
    next_id: u64,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The close frame's code.
    pub code: u16,
    /// Its reason.
    pub reason: String,
}

impl Client {
    /// Connects without a token, and takes the `hello`.
    ///
    /// # Errors
    /// When that fails.
    pub async fn connect(node: &Node) -> anyhow::Result<Self> {
        Connect::new().hello(node).await
    }

    /// Sends text as it is.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn send_text(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(timeout(SOON, self.socket.send(Message::text(text))).await??)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the socket is closed.
    pub async fn send(&mut self, message: &Value) -> anyhow::Result<()> {
        self.send_text(&message.to_string()).await
    }

    /// The next frame, whatever it is.
    ///
    /// # Errors
    /// At a time-out, or at the end of the connection.
    pub async fn frame(&mut self) -> anyhow::Result<Message> {
        let next = timeout(SOON, self.socket.next()).await;
        let next =
            next.map_err(|_| anyhow!("nothing within {SOON:?}; last: {:#?}", self.recent))?;
        Ok(next.context("the connection has ended")??)
    }

    /// The next message from the socket.
    async fn receive(&mut self) -> anyhow::Result<Value> {
        loop {
            match self.frame().await? {
                Message::Text(text) => {
                    if self.recent.len() == SHOWN {
                        self.recent.pop_front();
                    }
                    self.recent.push_back(text.chars().take(300).collect());
                    return Ok(serde_json::from_str(&text)?);
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => bail!("{other:?}; before it: {:#?}", self.recent),
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// At a time-out, or at the end of the connection.
    pub async fn next(&mut self) -> anyhow::Result<Value> {
        match self.waiting.pop_front() {
            Some(message) => Ok(message),
            None => self.receive().await,
        }
    }

    /// The next message that `is`; others before it are dropped.
    ///
    /// # Errors
    /// At a time-out, or at the end of the connection.
    pub async fn find(&mut self, is: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let message = self.next().await?;
            if is(&message) {
                return Ok(message);
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "not within {SOON:?}; last: {:#?}",
                self.recent
            );
        }
    }

    /// The next message with this `op`; only heartbeats and news of freshness may come before it, and are dropped.
    ///
    /// # Errors
    /// When something else comes first, at a time-out, or at the end of the connection.
    pub async fn expect(&mut self, op: &str) -> anyhow::Result<Value> {
        let quiet = |message: &Value| message["op"] == "heartbeat" || message["op"] == "freshness";
        let message = self
            .find(|message| message["op"] == op || !quiet(message))
            .await?;
        ensure!(message["op"] == op, "not {op} but {message}");
        Ok(message)
    }

    /// The next heartbeat; whatever comes before it is dropped.
    ///
    /// # Errors
    /// At a time-out, or at the end of the connection.
    pub async fn heartbeat(&mut self) -> anyhow::Result<Value> {
        self.find(|message| message["op"] == "heartbeat").await
    }

    /// Sends a request with an id of its own, and waits for the answer; what comes before it is kept.
    ///
    /// # Errors
    /// At a time-out, or at the end of the connection.
    pub async fn ask(&mut self, mut request: Value) -> anyhow::Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        request["id"] = id.into();
        self.send(&request).await?;
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let message = self.receive().await?;
            if message["id"] == id {
                return Ok(message);
            }
            self.waiting.push_back(message);
            ensure!(
                tokio::time::Instant::now() < deadline,
                "no answer within {SOON:?} to {request}; last: {:#?}",
                self.recent
            );
        }
    }

    /// Subscribes, with these options beside the channel; gives what `ok` says.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn subscribe(&mut self, channel: &str, options: Value) -> anyhow::Result<Value> {
        let answer = self.try_subscribe(channel, options).await?;
        ensure!(answer["ok"].is_object(), "{answer}");
        Ok(answer["ok"].clone())
    }

    /// Subscribes, with these options beside the channel; gives the whole answer.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn try_subscribe(&mut self, channel: &str, options: Value) -> anyhow::Result<Value> {
        let mut request = json!({"op": "subscribe", "channel": channel});
        if let (Some(request), Value::Object(options)) = (request.as_object_mut(), options) {
            request.extend(options);
        }
        self.ask(request).await
    }

    /// Reads on to the close frame.
    ///
    /// # Errors
    /// At a time-out, or when the connection ends without one.
    pub async fn closed(&mut self) -> anyhow::Result<Closed> {
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "not closed within {SOON:?}; last: {:#?}",
                self.recent
            );
            match self.frame().await? {
                Message::Close(Some(frame)) => {
                    return Ok(Closed {
                        code: frame.code.into(),
                        reason: frame.reason.to_string(),
                    });
                }
                Message::Close(None) => bail!("closed without a code"),
                Message::Text(text) => self
                    .recent
                    .push_back(text.chars().take(300).collect::<String>()),
                _ => {}
            }
        }
    }
}

/// The offset of a message's position, where it has one of one partition.
#[must_use]
pub fn offset(message: &Value) -> u64 {
    let position = message["position"].as_str().unwrap_or_default();
    let offset = position.rsplit_once(':').map(|(_, offset)| offset);
    offset
        .and_then(|offset| offset.parse().ok())
        .unwrap_or_default()
}
