//! The three manners in which a client follows: one connection each, from its begin to its end.
//!
//! Does: speaks WebSocket, event streams and polls as bytes, with patience for nodes that say nothing. Owns: a socket for as
//! long as a call lasts. Never knows: what the messages mean. Dropping a call cuts the connection.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{client_async, tungstenite::Message as Frame};

use super::{client::Client, message::Message};
use crate::{http, simulation::Dice};

/// How long a node may take to let a client in.
const CONNECT: Duration = Duration::from_millis(2500);
/// After so long without a word a client tries elsewhere: four heartbeats.
const SILENCE: Duration = Duration::from_secs(4);
/// How long a poll asks to wait, in seconds.
const WAIT_S: u64 = 2;

/// Follows over WebSocket; tells how it ended.
pub(super) async fn websocket(
    client: &Client,
    node: usize,
    address: SocketAddr,
    mut dice: Dice,
) -> &'static str {
    let tokens = client.begin(node);
    let connect = async {
        let socket = TcpStream::connect(address).await.ok()?;
        socket.set_nodelay(true).ok()?;
        let (socket, _) = client_async(format!("ws://{address}/v1/ws"), socket)
            .await
            .ok()?;
        Some(socket)
    };
    let Ok(Some(mut socket)) = timeout(CONNECT, connect).await else {
        return "no connection";
    };
    let rate = client.character.max_rate;
    let requests = (1u64..).zip(&tokens).map(|(id, (channel, token))| {
        let name = &client.scene.channels[*channel].0;
        let mut request = json!({"id": id, "op": "subscribe", "channel": name});
        if let Some(token) = token {
            request["from"] = token.to_string().into();
        }
        if let Some(rate) = rate {
            request["max_rate"] = rate.into();
        }
        request
    });
    let requests = Value::Array(requests.collect()).to_string();
    if socket.send(Frame::text(requests)).await.is_err() {
        return "the request could not be sent";
    }
    let asked: Vec<usize> = tokens.iter().map(|(channel, _)| *channel).collect();
    loop {
        if client.character.dawdles {
            sleep(Duration::from_millis(dice.below(60) as u64)).await;
        }
        match timeout(SILENCE, socket.next()).await {
            Err(_) => return "silence",
            Ok(Some(Ok(Frame::Text(text)))) => {
                if !client.heard(Message::read(text.as_bytes(), &client.scene, &asked)) {
                    return "refused";
                }
            }
            Ok(Some(Ok(Frame::Ping(_) | Frame::Pong(_)))) => {}
            Ok(_) => return "the node closed",
        }
    }
}

/// Follows an event stream; tells how it ended.
pub(super) async fn sse(client: &Client, node: usize, address: SocketAddr) -> &'static str {
    let tokens = client.begin(node);
    let names = tokens
        .iter()
        .map(|(channel, _)| format!("channel={}", client.scene.channels[*channel].0));
    let mut query = names.collect::<Vec<_>>().join("&");
    if let Some(rate) = client.character.max_rate {
        query += &format!("&max_rate={rate}");
    }
    let mut request = format!("GET /v1/sse?{query} HTTP/1.1\r\nhost: {address}\r\n");
    if let Some((_, Some(token))) = tokens.first() {
        request += &format!("last-event-id: {token}\r\n");
    }
    request += "\r\n";
    let connect = async {
        let mut socket = TcpStream::connect(address).await.ok()?;
        socket.set_nodelay(true).ok()?;
        socket.write_all(request.as_bytes()).await.ok()?;
        Some(socket)
    };
    let Ok(Some(mut socket)) = timeout(CONNECT, connect).await else {
        return "no connection";
    };
    let mut body = Body::default();
    loop {
        match timeout(SILENCE, socket.read_buf(&mut body.unread)).await {
            Err(_) => return "silence",
            Ok(Ok(count)) if count > 0 => {}
            Ok(_) => return "the node closed",
        }
        match body.take_in() {
            Some(true) => {}
            Some(false) => return "refused",
            None => {
                client.heard(Err("the framing of an event stream".to_owned()));
                return "garbled";
            }
        }
        while let Some(block) = body.block() {
            let field = |name: &str| {
                let mut lines = block.lines();
                lines
                    .find_map(|line| line.strip_prefix(name))
                    .map(str::trim_start)
            };
            if let Some(data) = field("data:")
                && !client.heard(Message::read(data.as_bytes(), &client.scene, &[]))
            {
                return "refused";
            }
            if let Some(id) = field("id:") {
                client.identified(id);
            }
        }
    }
}

/// The body of an event stream, in chunks.
#[derive(Default)]
struct Body {
    unread: Vec<u8>,
    has_head: bool,
    text: Vec<u8>,
}

impl Body {
    /// Takes in all that is whole. False where the request was refused, none where the framing is wrong.
    fn take_in(&mut self) -> Option<bool> {
        if !self.has_head {
            let Some(end) = find(&self.unread, b"\r\n\r\n") else {
                return Some(true);
            };
            let head: Vec<u8> = self.unread.drain(..end + 4).collect();
            if !head.starts_with(b"HTTP/1.1 200") {
                return Some(false);
            }
            self.has_head = true;
        }
        while let Some(end) = find(&self.unread, b"\r\n") {
            let size = std::str::from_utf8(&self.unread[..end]).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let whole = end + 2 + size + 2;
            if self.unread.len() < whole {
                break;
            }
            self.text
                .extend_from_slice(&self.unread[end + 2..end + 2 + size]);
            self.unread.drain(..whole);
        }
        Some(true)
    }

    /// The next block: what stands before an empty line.
    fn block(&mut self) -> Option<String> {
        let end = find(&self.text, b"\n\n")?;
        let block: Vec<u8> = self.text.drain(..end + 2).collect();
        Some(String::from_utf8_lossy(&block).into_owned())
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// Polls one view again and again; tells how it ended.
pub(super) async fn poll(
    client: &Client,
    node: usize,
    address: SocketAddr,
    mut dice: Dice,
) -> &'static str {
    loop {
        let tokens = client.begin(node);
        let Some((channel, token)) = tokens.into_iter().next() else {
            return "nothing to ask for";
        };
        let path = format!(
            "/v1/view/{}?wait={WAIT_S}",
            client.scene.channels[channel].0
        );
        let tag = token.as_ref().map(|token| format!("\"{token}\""));
        let headers: Vec<_> = tag
            .iter()
            .map(|tag| ("if-none-match", tag.as_str()))
            .collect();
        let asking = http::send(address, "GET", &path, &headers, "");
        let answer = match timeout(SILENCE + CONNECT, asking).await {
            Err(_) => return "silence",
            Ok(Err(_)) => return "no answer",
            Ok(Ok(answer)) => answer,
        };
        let header = |name: &str| answer.header(name);
        let read = match (answer.status, token) {
            (200, _) => Message::view(&answer.body, channel).map(Some),
            (304, Some(token)) => Ok(Some(Message::View {
                channel,
                token,
                rows: None,
                live: header("tidegate-freshness") == Some("live"),
                age_ms: header("tidegate-age-ms").and_then(|age| age.parse().ok()),
            })),
            (503, _) => return "refused",
            (status, _) => Err(format!("{status}: {}", answer.body)),
        };
        if !client.heard(read) {
            return "garbled";
        }
        sleep(Duration::from_millis(dice.below(200) as u64)).await;
    }
}
