//! One connection of the soak, whatever it speaks.
//!
//! Does: moves a connection from its connect through the request to messages, hands these on, says goodbye. Owns: a socket and
//! what was cut. Never knows: what the messages mean, nor when anything happens. Keeps: a message that is cut is finished with
//! the next read, and is bounded.

use std::net::SocketAddr;

use anyhow::Result;
use rustix::{fd::OwnedFd, net::Shutdown};

use crate::{
    net::{self, Poller, Read, Ready},
    parse::{self, Chunks},
    wire::{self, Transport, client_frame},
};

/// Bytes that one read takes.
const READ: usize = 64 << 10;
/// Longest message, or answer, that can be cut.
const REST_MAX: usize = 192 << 10;

/// What a connection asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// A WebSocket.
    WebSocket,
    /// An event stream.
    Events,
    /// One view, once something is newer.
    View,
}

/// What it says, and to whom.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// What for.
    pub(super) asks: Asks,
    /// Full names of channels, at least one.
    pub(super) channels: Vec<String>,
    /// From where it goes on.
    pub(super) from: Option<String>,
    /// Who it is.
    pub(super) token: String,
}

impl Request {
    fn head(&self, host: &str) -> String {
        let named: Vec<_> = self
            .channels
            .iter()
            .map(|channel| format!("channel={channel}"))
            .collect();
        let mut head = match self.asks {
            Asks::WebSocket => wire::opening("/v1/ws", Transport::Ws, host),
            Asks::Events => wire::opening(
                &format!("/v1/sse?{}", named.join("&")),
                Transport::Sse,
                host,
            ),
            Asks::View => format!(
                "GET /v1/view/{}?wait=1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n",
                self.channels[0]
            ),
        };
        match (self.asks, &self.from) {
            (Asks::Events, Some(from)) => head.push_str(&format!("Last-Event-ID: {from}\r\n")),
            (Asks::View, Some(from)) => head.push_str(&format!("If-None-Match: \"{from}\"\r\n")),
            _ => {}
        }
        wire::authorize(&mut head, Some(&self.token));
        head.push_str("\r\n");
        head
    }

    /// The message by which a WebSocket subscribes.
    fn wishes(&self) -> Vec<u8> {
        let wish = |(id, channel): (usize, &String)| {
            let mut wish = serde_json::json!({"id": id, "op": "subscribe", "channel": channel});
            if let Some(from) = &self.from {
                wish["from"] = from.as_str().into();
            }
            wish
        };
        let wishes: serde_json::Value = self.channels.iter().enumerate().map(wish).collect();
        client_frame(1, wishes.to_string().as_bytes())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Head,
    Body,
}

/// How a read ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The other side has closed.
    Closed,
    /// This was not to be expected.
    Wrong(String),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    socket: OwnedFd,
    request: Request,
    phase: Phase,
    /// The answer's status, once it is there.
    status: u16,
    chunks: Chunks,
    rest: Vec<u8>,
}

/// The buffer into which all of them read.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; REST_MAX + READ]
}

impl Client {
    /// Starts to connect; `id` is what the poller will call it.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) fn connect(
        address: SocketAddr,
        poller: &Poller,
        id: u64,
        request: Request,
        receive: Option<usize>,
    ) -> Result<Self> {
        let socket = net::connect(address, 0, receive)?;
        poller.add(&socket, id)?;
        Ok(Self {
            socket,
            request,
            phase: Phase::Connecting,
            status: 0,
            chunks: Chunks::Plain,
            rest: Vec::new(),
        })
    }

    /// What it asks for.
    pub(super) const fn asks(&self) -> Asks {
        self.request.asks
    }

    /// The status of the answer; 0 before it.
    pub(super) const fn status(&self) -> u16 {
        self.status
    }

    /// Its socket is ready: goes on with what that allows.
    ///
    /// # Errors
    /// [`End`].
    pub(super) fn ready(
        &mut self,
        ready: Ready,
        host: &str,
        buf: &mut [u8],
        on: &mut dyn FnMut(&[u8]),
    ) -> Result<(), End> {
        if ready.writable && self.phase == Phase::Connecting {
            net::connected(&self.socket).map_err(End::Wrong)?;
            self.phase = Phase::Head;
            self.say(self.request.head(host).as_bytes())?;
        }
        if ready.readable {
            self.read(buf, on)
        } else {
            Ok(())
        }
    }

    /// Reads all that waits.
    ///
    /// # Errors
    /// [`End`].
    pub(super) fn read(&mut self, buf: &mut [u8], on: &mut dyn FnMut(&[u8])) -> Result<(), End> {
        if self.phase == Phase::Connecting {
            return Ok(());
        }
        loop {
            let kept = self.rest.len();
            if kept > REST_MAX {
                return Err(End::Wrong(format!(
                    "a message of more than {REST_MAX} bytes"
                )));
            }
            buf[..kept].copy_from_slice(&self.rest);
            match net::read(&self.socket, &mut buf[kept..kept + READ]) {
                Read::Empty => return Ok(()),
                Read::Closed => {
                    if self.asks() == Asks::View && self.phase == Phase::Body {
                        on(&self.rest);
                    }
                    return Err(End::Closed);
                }
                // Also behind a short read: the end may have come together with the last bytes.
                Read::Bytes(bytes) => self.take(&mut buf[..kept + bytes], kept, on)?,
            }
        }
    }

    fn take(&mut self, buf: &mut [u8], kept: usize, on: &mut dyn FnMut(&[u8])) -> Result<(), End> {
        let (start, kept) = match self.phase {
            Phase::Body => (0, kept),
            Phase::Connecting | Phase::Head => match self.head(buf)? {
                Some(start) => (start, 0),
                None => {
                    buf.clone_into(&mut self.rest);
                    return Ok(());
                }
            },
        };
        let text = &mut buf[start..];
        let end = self.chunks.unwrap_in_place(text, kept);
        let end = end.map_err(|broken| {
            End::Wrong(format!(
                "a body that is not chunked as it should be: {broken:?}"
            ))
        })?;
        let used = self.messages(&text[..end], on)?;
        self.rest.clear();
        self.rest.extend_from_slice(&text[used..end]);
        Ok(())
    }

    /// Takes the answer's head, if it is whole: tells where the body begins.
    fn head(&mut self, buf: &[u8]) -> Result<Option<usize>, End> {
        let Some(length) = memchr::memmem::find(buf, b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&buf[..length]).to_ascii_lowercase();
        let status = head.split_ascii_whitespace().nth(1);
        self.status = status.and_then(|status| status.parse().ok()).unwrap_or(0);
        let expected: &[u16] = match self.asks() {
            Asks::WebSocket => &[101],
            Asks::Events => &[200],
            Asks::View => &[200, 304],
        };
        if !expected.contains(&self.status) {
            let answer = String::from_utf8_lossy(buf).into_owned();
            return Err(End::Wrong(format!("refused: {answer}")));
        }
        if head.contains("transfer-encoding: chunked") {
            self.chunks = Chunks::Size(0);
        }
        self.phase = Phase::Body;
        if self.asks() == Asks::WebSocket {
            self.say(&self.request.wishes())?;
        }
        Ok(Some(length + b"\r\n\r\n".len()))
    }

    /// Hands on the whole messages at the front; tells how many bytes they took.
    fn messages(&self, text: &[u8], on: &mut dyn FnMut(&[u8])) -> Result<usize, End> {
        match self.asks() {
            Asks::View => Ok(0),
            Asks::Events => Ok(parse::events(text, |data, _| {
                if !data.is_empty() {
                    on(data);
                }
            })),
            Asks::WebSocket => parse::frames(text, |frame| match frame.opcode {
                1 => on(frame.payload),
                9 => {
                    // A pong that finds no room is not missed: the next ping asks again.
                    net::send(&self.socket, &client_frame(10, frame.payload));
                }
                _ => {}
            })
            .map_err(|broken| End::Wrong(format!("not a server's frame: {broken:?}"))),
        }
    }

    /// Says goodbye: the server is to close.
    pub(super) fn say_goodbye(&self) {
        match self.asks() {
            Asks::WebSocket => {
                net::send(&self.socket, &client_frame(8, &1000_u16.to_be_bytes()));
            }
            // It may have gone by itself.
            Asks::Events | Asks::View => {
                rustix::net::shutdown(&self.socket, Shutdown::Write).unwrap_or_default();
            }
        }
    }

    /// What a client says at its begin always fits an empty socket buffer.
    fn say(&self, bytes: &[u8]) -> Result<(), End> {
        match net::send(&self.socket, bytes) {
            Some(taken) if taken == bytes.len() => Ok(()),
            _ => Err(End::Wrong("the server did not take the request".to_owned())),
        }
    }
}
