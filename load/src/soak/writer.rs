//! The source of one stream: one endless publication over HTTP.
//!
//! Does: publishes to the known channels in turn, at a pace, and to invented ones when it is asked to. Owns: a connection, the
//! numbers of the known channels, and the rows of a view as they are to be in the end. Never knows: subscribers. Keeps: a
//! publication's number is its `ts`; every third round of a view's rows deletes them.

use anyhow::{Context as _, Result, ensure};
use rustix::fd::OwnedFd;
use serde_json::json;

use super::track::{ROWS, Rows, row_name};
use crate::{
    answers::{Answers, Style},
    net::{self, Poller},
    wire,
};

/// Bytes that may wait for the server to take them.
const OUT_MAX: usize = 4 << 20;
/// Of so many rounds over a view's rows the last deletes them.
const ROUNDS: u64 = 3;
/// Bytes of a publication's data.
const DATA: usize = 600;

/// What was published to one channel.
#[derive(Debug, Clone, Default)]
pub(super) struct Published {
    /// The newest number.
    pub(super) number: u64,
    /// The rows as they are after it.
    pub(super) rows: Rows,
}

/// One stream's source.
pub(super) struct Writer {
    /// The stream's name.
    pub(super) stream: &'static str,
    socket: OwnedFd,
    answers: Answers,
    batch: Vec<u8>,
    out: Vec<u8>,
    /// The known channels.
    pub(super) known: Vec<Published>,
    turn: usize,
    start: u64,
    interval: u64,
    paced: u64,
    written: u64,
    /// Those that deleted a row.
    pub(super) tombstones: u64,
}

impl Writer {
    /// Connects; the first publication leaves with the first [`Writer::pump`] after `start`.
    ///
    /// # Errors
    /// When the server does not take it.
    pub(super) fn open(
        stream: &'static str,
        address: std::net::SocketAddr,
        poller: &Poller,
        id: u64,
        token: &str,
        channels: usize,
    ) -> Result<Self> {
        let socket = net::connect(address, 0, None)?;
        net::no_delay(&socket)?;
        poller.add(&socket, id)?;
        let mut head = format!(
            "POST /v1/publish/{stream} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"
        );
        wire::authorize(&mut head, Some(token));
        head.push_str("\r\n");
        Ok(Self {
            stream,
            socket,
            answers: Answers::new(Style::Streamed),
            batch: Vec::new(),
            out: head.into_bytes(),
            known: vec![Published::default(); channels],
            turn: 0,
            start: 0,
            interval: 0,
            paced: 0,
            written: 0,
            tombstones: 0,
        })
    }

    /// Publishes so many a second to the known channels from now on; 0 ends it.
    pub(super) fn pace(&mut self, start: u64, per_second: u64) {
        (self.start, self.paced) = (start, 0);
        self.interval = 1_000_000_000_u64.checked_div(per_second).unwrap_or(0);
    }

    /// Publications.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Whether every publication has been answered.
    pub(super) const fn is_answered(&self) -> bool {
        self.answers.count >= self.written
    }

    /// Writes what is due, reads answers.
    ///
    /// # Errors
    /// When the server has gone, refuses something, or takes nothing.
    pub(super) fn pump(&mut self, now: u64) -> Result<()> {
        while self.interval > 0 && self.start + self.paced * self.interval <= now {
            self.paced += 1;
            self.publish_next();
        }
        while !self.is_answered() && self.answers.read(&self.socket)? {}
        ensure!(
            self.answers.refused == 0,
            "a publication to {} was refused: {}",
            self.stream,
            self.answers.first_refusal
        );
        self.flush()
    }

    fn publish_next(&mut self) {
        let channel = self.turn;
        self.turn = (self.turn + 1) % self.known.len();
        let published = &mut self.known[channel];
        published.number += 1;
        let number = published.number;
        let row = usize::try_from(number).unwrap_or(0) % ROWS;
        let deletes = self.stream == "views" && number / ROWS as u64 % ROUNDS == ROUNDS - 1;
        published.rows[row] = (!deletes).then_some(number);
        let name = (self.stream == "views").then(|| row_name(row));
        self.line(&format!("c{channel}"), name.as_deref(), number, deletes);
    }

    /// Publishes to a channel of any name.
    pub(super) fn line(&mut self, channel: &str, row: Option<&str>, number: u64, deletes: bool) {
        let mut record = json!({"channel": channel, "ts": number, "data": null});
        if let Some(row) = row {
            record["row"] = row.into();
        }
        if deletes {
            self.tombstones += 1;
        } else {
            record["data"] = json!({"n": number, "pad": "x".repeat(DATA)});
        }
        self.batch.extend_from_slice(record.to_string().as_bytes());
        self.batch.push(b'\n');
        self.written += 1;
    }

    fn flush(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            self.out
                .extend_from_slice(format!("{:x}\r\n", self.batch.len()).as_bytes());
            self.out.append(&mut self.batch);
            self.out.extend_from_slice(b"\r\n");
        }
        let gone = || format!("the server closed the publications to {}", self.stream);
        let taken = match self.out.is_empty() {
            true => 0,
            false => net::send(&self.socket, &self.out).with_context(gone)?,
        };
        self.out.drain(..taken);
        ensure!(
            self.out.len() < OUT_MAX,
            "the server does not take the publications to {}",
            self.stream
        );
        Ok(())
    }
}
