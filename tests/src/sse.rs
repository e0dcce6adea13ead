//! A raw reader of event streams: it keeps what other readers hide, chunk borders and blocks without an event.
//!
//! Does: opens an event stream and reads it block by block. Owns: its socket. Never knows: what the data means.

use std::net::SocketAddr;

use serde_json::Value;

use crate::wire::{Head, Wire};

/// What stands between two empty lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// `event:`.
    pub event: Option<String>,
    /// `data:`.
    pub data: Option<String>,
    /// `id:`.
    pub id: Option<String>,
    /// `retry:`.
    pub retry: Option<u64>,
}

impl Block {
    /// Its data as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        let data = self.data.as_deref().unwrap_or_default();
        serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))
    }

    /// Whether it only sets the id.
    #[must_use]
    pub const fn is_id_only(&self) -> bool {
        self.id.is_some() && self.event.is_none() && self.data.is_none() && self.retry.is_none()
    }

    /// Whether it is an event of this name.
    #[must_use]
    pub fn is(&self, event: &str) -> bool {
        self.event.as_deref() == Some(event)
    }

    fn parse(text: &str) -> Self {
        let mut block = Self::default();
        for line in text.trim_end_matches('\n').split('\n') {
            let (field, value) = line
                .split_once(": ")
                .unwrap_or_else(|| panic!("no field: {line:?} in {text:?}"));
            let value = value.to_owned();
            match field {
                "event" => block.event = Some(value),
                "data" => {
                    assert!(block.data.is_none(), "one line of data: {text}");
                    block.data = Some(value);
                }
                "id" => block.id = Some(value),
                "retry" => block.retry = value.parse().ok(),
                _ => panic!("an unknown field in {text:?}"),
            }
        }
        block
    }
}

/// An open event stream.
#[derive(Debug)]
pub struct Events {
    /// Its head.
    pub head: Head,
    /// Its socket.
    pub wire: Wire,
}

impl Events {
    /// Opens one; `query` without `?`.
    ///
    /// # Panics
    /// When the answer is no event stream.
    pub async fn open(address: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        let mut wire = Wire::open(address).await;
        wire.request("GET", &format!("/v1/sse?{query}"), headers, b"")
            .await;
        let head = wire.head().await;
        if head.status != 200 {
            let body = wire.body(&head).await;
            panic!("{}: {}", head.status, String::from_utf8_lossy(&body));
        }
        Self { head, wire }
    }

    /// The next block, each in a chunk of its own; none after the last chunk.
    ///
    /// # Panics
    /// When the framing is wrong.
    pub async fn next(&mut self) -> Option<Block> {
        let chunk = self.wire.chunk().await?;
        let text = String::from_utf8(chunk).unwrap_or_else(|error| panic!("{error}"));
        let inner = text
            .strip_suffix("\n\n")
            .unwrap_or_else(|| panic!("a block ends with an empty line: {text:?}"));
        assert!(!inner.contains("\n\n"), "one block a chunk: {text:?}");
        Some(Block::parse(inner))
    }

    /// The next block for which this holds; the ones before it are passed over.
    ///
    /// # Panics
    /// When the stream ends first.
    pub async fn until(&mut self, mut wanted: impl FnMut(&Block) -> bool) -> Block {
        loop {
            let block = self
                .next()
                .await
                .unwrap_or_else(|| panic!("the stream ended"));
            if wanted(&block) {
                return block;
            }
        }
    }

    /// The next event of this name.
    pub async fn event(&mut self, name: &str) -> Block {
        self.until(|block| block.is(name)).await
    }

    /// The next update, as JSON.
    pub async fn update(&mut self) -> Value {
        self.event("update").await.json()
    }
}
