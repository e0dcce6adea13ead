//! One channel over one WebSocket after another.
//!
//! Does: connects, subscribes, hands messages to the view, asks a silent gateway whether it is there, comes back with
//! the token that the view has. Owns: the socket. Never knows: rows, a terminal.
//! Keeps: a close code of 4500–4999 and a refusal without a time are final; `reconnect_after_ms` is obeyed; any other end
//! is tried again with full jitter.

use std::{
    cell::RefCell,
    io::{self, Write},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        Error, Message as Frame, client::ClientRequestBuilder, http::StatusCode,
        protocol::WebSocketConfig,
    },
};

use super::{
    super::{plain, remote::Remote},
    view::{Told, View},
};
use crate::model::Channel;

/// Largest message taken, in bytes.
const MESSAGE_MAX: usize = 64 << 20;
/// How long the opening of a WebSocket may take.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered.
const PONG_MAX: Duration = Duration::from_secs(10);
/// The longest wait for another attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The wait for a second attempt; it doubles.
const BACKOFF: Duration = Duration::from_millis(500);
/// Characters of a message that are shown.
const SHOWN_MAX: usize = 300;

/// How a connection ended.
enum End {
    /// For good.
    Final(String),
    /// Nobody reads the lines any more.
    Unread,
    /// It may be tried again, at once after what was said, else after a wait of our own.
    Lost(String, Option<Duration>),
}

/// Follows the channel; `json` prints the messages. Ends when nobody reads them.
///
/// # Errors
/// What the gateway said when it wants to see this client no more.
pub(super) async fn follow(
    remote: &Remote,
    channel: &Channel,
    view: &RefCell<View>,
    json: bool,
) -> Result<(), String> {
    let token = remote.token()?;
    let mut attempt = 0;
    loop {
        view.borrow_mut().begin(Instant::now());
        let end = match open(remote, token.as_deref()).await {
            Ok(socket) => converse(socket, channel, view, json, &mut attempt).await,
            Err(end) => end,
        };
        let (message, after) = match end {
            End::Final(message) => return Err(message),
            End::Unread => return Ok(()),
            End::Lost(message, after) => (message, after),
        };
        let wait = after.map_or_else(|| backoff(attempt), |after| after.min(BACKOFF_MAX));
        attempt += 1;
        if json {
            super::super::complain(&format!(
                "{message}; trying again in {:.1} s",
                wait.as_secs_f32()
            ));
        }
        view.borrow_mut().lost(message, Instant::now() + wait);
        sleep(wait).await;
    }
}

/// Anywhere between nothing and twice as much as before, so that clients who lost a node together do not come back so.
fn backoff(attempt: u32) -> Duration {
    let longest = (BACKOFF * 2_u32.pow(attempt.min(10))).min(BACKOFF_MAX);
    // Without random numbers the longest wait is the polite one.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

async fn open(remote: &Remote, token: Option<&str>) -> Result<WebSocketStream<TcpStream>, End> {
    let lost = |message| End::Lost(message, None);
    let stream = remote.connect().await.map_err(lost)?;
    let address = format!("ws://{}/v1/ws", remote.url.authority());
    let address = address
        .parse()
        .map_err(|error| End::Final(format!("{}: {error}", remote.url)))?;
    let mut request = ClientRequestBuilder::new(address).with_sub_protocol("tidegate.v1.json");
    if let Some(token) = token {
        request = request.with_header("Authorization", format!("Bearer {token}"));
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    let opened = timeout(
        OPEN_MAX,
        client_async_with_config(request, stream, Some(limits)),
    );
    match opened.await {
        Ok(Ok((socket, _))) => Ok(socket),
        Ok(Err(Error::Http(response))) => Err(refused(
            remote,
            response.status(),
            response.body().as_deref(),
        )),
        Ok(Err(error)) => Err(lost(format!(
            "{} did not open a WebSocket: {error}",
            remote.url
        ))),
        Err(_) => Err(lost(format!(
            "{} did not open a WebSocket within {} s",
            remote.url,
            OPEN_MAX.as_secs()
        ))),
    }
}

/// An answer over HTTP: one that passes is tried again.
fn refused(remote: &Remote, status: StatusCode, body: Option<&[u8]>) -> End {
    let body = String::from_utf8_lossy(body.unwrap_or_default());
    let message = plain(
        &format!("{} refused ({status}) {body}", remote.url),
        SHOWN_MAX,
    );
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        End::Lost(message, None)
    } else {
        End::Final(message)
    }
}

/// Talks until the connection ends.
async fn converse(
    mut socket: WebSocketStream<TcpStream>,
    channel: &Channel,
    view: &RefCell<View>,
    json: bool,
    attempt: &mut u32,
) -> End {
    let mut asked = false;
    // What was said last decides how the end is taken.
    let mut goodbye = None;
    loop {
        let patience = if asked {
            PONG_MAX
        } else {
            view.borrow().heartbeat()
        };
        let frame = match timeout_at(Instant::now() + patience, socket.next()).await {
            Err(_) if asked => return End::Lost("the gateway fell silent".to_owned(), None),
            Err(_) => {
                asked = true;
                send(&mut socket, "{\"op\":\"ping\"}".to_owned()).await;
                continue;
            }
            Ok(None) => return End::Lost("the connection ended".to_owned(), goodbye),
            Ok(Some(Err(error))) => {
                return End::Lost(format!("the connection broke: {error}"), goodbye);
            }
            Ok(Some(Ok(frame))) => frame,
        };
        asked = false;
        match frame {
            Frame::Text(text) => {
                if json && !print_line(&text) {
                    return End::Unread;
                }
                let told = view.borrow_mut().receive(&text, Instant::now());
                match told {
                    Told::Nothing => {}
                    Told::Hello => {
                        *attempt = 0;
                        let wish = subscribe(channel, &view.borrow().token());
                        send(&mut socket, wish).await;
                    }
                    Told::Goodbye(after) => goodbye = after,
                    Told::Refused(why, Some(after)) => {
                        return End::Lost(plain(&why, SHOWN_MAX), Some(after));
                    }
                    Told::Refused(why, None) => return End::Final(plain(&why, SHOWN_MAX)),
                    Told::Broken(why) => return End::Lost(plain(&why, SHOWN_MAX), None),
                }
            }
            Frame::Close(close) => {
                let (code, reason) = close.map_or((1005, String::new()), |close| {
                    (close.code.into(), close.reason.to_string())
                });
                let message = plain(
                    &format!("the gateway closed the connection: {code} {reason}"),
                    SHOWN_MAX,
                );
                if (4500..5000).contains(&code) {
                    return End::Final(message);
                }
                return End::Lost(message, goodbye);
            }
            Frame::Binary(_) | Frame::Ping(_) | Frame::Pong(_) | Frame::Frame(_) => {}
        }
    }
}

/// A message that can't be sent means that the connection is gone, which the next read says.
async fn send(socket: &mut WebSocketStream<TcpStream>, text: String) {
    timeout(OPEN_MAX, socket.send(Frame::text(text)))
        .await
        .unwrap_or(Ok(()))
        .unwrap_or_default();
}

fn subscribe(channel: &Channel, token: &str) -> String {
    let mut wish = serde_json::json!({ "id": 1, "op": "subscribe", "channel": &**channel });
    if !token.is_empty() {
        wish["from"] = token.into();
    }
    wish.to_string()
}

fn print_line(text: &str) -> bool {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}
