//! A minimal HTTP/1.1 client for tests: one request a connection, the answer as it came.
//!
//! Does: writes a request, reads until the server closes. Owns: nothing that outlives a call. Never knows: what is asked
//! for. Keeps: nothing waits for ever.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The first field of this name, in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// Its body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {:?}", self.body))
    }
}

/// Asks with GET.
///
/// # Errors
/// When there is no whole answer in time.
pub async fn get(at: SocketAddr, path: &str) -> Result<Answer> {
    send(at, "GET", path, &[], "").await
}

/// Asks with POST, without a body.
///
/// # Errors
/// When there is no whole answer in time.
pub async fn post(at: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    send(at, "POST", path, headers, "").await
}

/// Sends a request and reads its answer.
///
/// # Errors
/// When there is no whole answer in time.
pub async fn send(
    at: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        request += &format!("host: {at}\r\n");
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    let exchange = async {
        let mut socket = TcpStream::connect(at).await?;
        socket.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(ANSWER, exchange)
        .await
        .with_context(|| format!("no answer to {method} {path}"))??;
    parse(&String::from_utf8(answer)?).with_context(|| format!("no HTTP answers {method} {path}"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Answer {
        status,
        headers,
        body: body.to_owned(),
    })
}
